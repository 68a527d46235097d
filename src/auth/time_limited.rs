//! Time-limited credentials (the TURN REST API convention).
//!
//! The username is `<unix expiry>:<name>` or `<unix expiry>`. The password is `base64(HMAC-SHA1(secret, username))`.
//! Some applications write `<name>:<unix expiry>`, which is also accepted.
//!
//! An application that shares the secret mints them without contacting the server, and the server checks them without a
//! database.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::json;
use sha1::Sha1;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{HumanSeconds, Secret};

/// The smallest expiry that is interpreted as milliseconds: the year 5138 in seconds, or 1973 in milliseconds.
///
/// Interpreted as seconds, an expiry in milliseconds would result in a credential that never expires.
const MILLISECONDS_FROM: u64 = 100_000_000_000;

/// The smallest number that is plausible as an expiry in seconds: the year 2001.
const PLAUSIBLE_FROM: u64 = 1_000_000_000;

const HMAC_SHA1_LEN: usize = 20;

/// Which part of a username was read as the expiry. `Display` is the end of a message about a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The first part. The last part cannot be an expiry.
    ExpiryFirst,
    /// The last part. The first part cannot be an expiry.
    ExpiryLast,
    /// The first part, but the last part could also be an expiry.
    Ambiguous,
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ExpiryFirst => Ok(()),
            Self::ExpiryLast => f.write_str(" (the username was read as <name>:<unix expiry>)"),
            Self::Ambiguous => {
                f.write_str(" (the username was read as <unix expiry>:<name>, although the name could also be a time)")
            }
        }
    }
}

/// A parsed time-limited username.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLimitedUsername<'a> {
    /// When the credential expires, in seconds since the Unix epoch.
    pub expires: u64,
    /// The name, or an empty string.
    pub user: &'a str,
    /// Which part was read as the expiry.
    pub reading: Reading,
}

impl<'a> TimeLimitedUsername<'a> {
    /// Parses a username: a decimal number of up to 64 bits, optionally followed by a colon and a name; or a name, a
    /// colon and a time in seconds or milliseconds.
    ///
    /// If only the last part is a plausible time, it is the expiry. If both are, the first one is the expiry: this is
    /// the convention, and the name may be a number.
    #[must_use]
    pub fn parse(username: &'a str) -> Option<Self> {
        let (start, rest) = username.split_once(':').unwrap_or((username, ""));
        let first = number(start);
        // A name without a colon after the expiry has no last part.
        let last = username.rsplit_once(':').and_then(|(name, end)| Some((name, number(end)?)));
        let last = last.filter(|(name, expires)| !name.is_empty() && *expires >= PLAUSIBLE_FROM);
        let (expires, user, reading) = match (first, last) {
            (Some(expires), None) => (expires, rest, Reading::ExpiryFirst),
            // A phone number is not a time, unless the other part is none either.
            (Some(expires), Some((_, last)))
                if expires >= PLAUSIBLE_FROM && (expires < MILLISECONDS_FROM || last >= MILLISECONDS_FROM) =>
            {
                (expires, rest, Reading::Ambiguous)
            }
            (_, Some((name, expires))) => (expires, name, Reading::ExpiryLast),
            (None, None) => return None,
        };
        Some(Self { expires, user, reading })
    }

    /// Returns whether the expiry seems to be in milliseconds, because in seconds it would be after the year 5138.
    ///
    /// Such a credential is invalid. Otherwise it would be valid for thousands of years.
    #[must_use]
    pub fn is_in_milliseconds(&self) -> bool {
        self.expires >= MILLISECONDS_FROM
    }
}

/// Returns whether a number is plausible as a time in seconds since the Unix epoch: it is in the years 2001 to 5138.
#[must_use]
pub fn is_plausible_time(seconds: u64) -> bool {
    (PLAUSIBLE_FROM..MILLISECONDS_FROM).contains(&seconds)
}

fn number(text: &str) -> Option<u64> {
    // `u64::from_str` would also accept a leading plus sign.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Returns the seconds since `expires`, `Some(0)` in that second, and `None` before.
///
/// Both arguments are in seconds since the Unix epoch. Only this function compares an expiry with the wall clock.
#[must_use]
pub fn expired_for(expires: u64, unix_now: u64) -> Option<u64> {
    unix_now.checked_sub(expires)
}

/// Returns the password for `username` with `secret`.
///
/// # Panics
///
/// Never: HMAC accepts a key of any length.
#[must_use]
pub fn password(secret: &Secret, username: &str) -> Zeroizing<String> {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("HMAC accepts a key of any length");
    mac.update(username.as_bytes());
    Zeroizing::new(STANDARD.encode(mac.finalize().into_bytes()))
}

/// A credential for a client.
#[derive(Clone)]
pub struct Credential {
    /// The value of USERNAME.
    pub username: String,
    /// The password, in base64.
    pub password: Zeroizing<String>,
    /// When it expires, in seconds since the Unix epoch.
    pub expires: u64,
}

impl Credential {
    /// Returns an `RTCConfiguration` with one `RTCIceServer` as JSON on one line, the argument of
    /// `new RTCPeerConnection(…)` (W3C WebRTC §4.2.1).
    #[must_use]
    pub fn ice_servers(&self, urls: &[String]) -> String {
        // Formatted by hand to keep the usual order of the keys.
        let (urls, username, password) = (json!(urls), json!(self.username), json!(self.password.as_str()));
        format!("{{\"iceServers\":[{{\"urls\":{urls},\"username\":{username},\"credential\":{password}}}]}}")
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("username", &self.username)
            .field("password", &"redacted")
            .field("expires", &self.expires)
            .finish()
    }
}

/// Mints a credential for `user`, or an anonymous one, that expires at `expires` (seconds since the Unix epoch).
#[must_use]
pub fn mint(secret: &Secret, user: Option<&str>, expires: u64) -> Credential {
    let username = match user {
        Some(user) => format!("{expires}:{user}"),
        None => expires.to_string(),
    };
    let password = password(secret, &username);
    Credential { username, password, expires }
}

/// A valid credential that has not expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Valid<'u> {
    /// The name, or an empty string.
    pub user: &'u str,
    /// When it expires, in seconds since the Unix epoch.
    pub expires: u64,
    /// The index of the matching secret.
    pub secret_index: usize,
}

/// Why a credential is not valid. `Display` is the text for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The username or the password does not follow the convention.
    #[error("malformed: {0}")]
    Malformed(#[from] Malformed),
    /// No secret is configured.
    #[error("no secret is configured, so no time-limited credential can be valid")]
    NoSecret,
    /// The password does not match any secret.
    #[error("wrong secret: {}{reading}", NoSecretMatched(*tried))]
    WrongSecret {
        /// The number of secrets tried.
        tried: usize,
        /// Which part of the username was read as the expiry.
        reading: Reading,
    },
    /// The password does not match any secret, and the credential has expired as well.
    #[error(
        "wrong secret: {}; in addition, the credential expired {} ago{reading}",
        NoSecretMatched(*tried), HumanSeconds(*ago_seconds)
    )]
    WrongSecretAndExpired {
        /// The number of secrets tried.
        tried: usize,
        /// Seconds since the expiry.
        ago_seconds: u64,
        /// Which part of the username was read as the expiry.
        reading: Reading,
    },
    /// The password is correct, and the credential has expired.
    #[error("expired {} ago{reading}", HumanSeconds(*ago_seconds))]
    Expired {
        /// Seconds since the expiry.
        ago_seconds: u64,
        /// Which part of the username was read as the expiry.
        reading: Reading,
        /// The index of the matching secret.
        secret_index: usize,
    },
}

/// Displays that a password matches none of the given number of secrets.
pub(super) struct NoSecretMatched(pub(super) usize);

impl fmt::Display for NoSecretMatched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("the password does not match the secret"),
            tried => write!(f, "the password matches none of the {tried} secrets"),
        }
    }
}

/// Why a credential does not follow the convention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The username contains no expiry.
    #[error("the username contains no expiry; it must be <unix expiry>:<name>, <name>:<unix expiry> or <unix expiry>")]
    NoExpiry,
    /// The expiry is in milliseconds.
    #[error("the expiry {expires} seems to be in milliseconds; it must be in seconds since the Unix epoch")]
    ExpiryInMilliseconds {
        /// The number in the username.
        expires: u64,
    },
    /// The password is the MAC in hexadecimal.
    #[error("the password seems to be hexadecimal; it must be the HMAC-SHA1 in base64")]
    PasswordIsHex,
    /// The password is not base64.
    #[error("the password is not base64 (standard alphabet, with padding)")]
    PasswordNotBase64,
    /// The decoded password does not have the length of an HMAC-SHA1.
    #[error("the password decodes to {bytes} bytes, but an HMAC-SHA1 has 20{}", if *bytes == 32 { " (an HMAC-SHA256 has 32)" } else { "" })]
    PasswordLength {
        /// The length of the decoded password in bytes.
        bytes: usize,
    },
}

/// Parses a time-limited username and checks its expiry.
///
/// # Errors
///
/// One of the variants of [`Malformed`] that are about the username.
pub fn check_username(username: &str) -> Result<TimeLimitedUsername<'_>, Malformed> {
    let parsed = TimeLimitedUsername::parse(username).ok_or(Malformed::NoExpiry)?;
    if parsed.is_in_milliseconds() {
        return Err(Malformed::ExpiryInMilliseconds { expires: parsed.expires });
    }
    Ok(parsed)
}

/// Checks a credential with each secret.
///
/// # Errors
///
/// Why the credential is not valid. The form is checked first, then the secret, then the expiry.
pub fn verify<'u>(
    secrets: &[Secret],
    username: &'u str,
    given: &str,
    unix_now: u64,
) -> Result<Valid<'u>, CredentialError> {
    let TimeLimitedUsername { expires, user, reading } = check_username(username)?;
    check_password_form(given)?;
    if secrets.is_empty() {
        return Err(CredentialError::NoSecret);
    }
    let matches = |secret: &Secret| bool::from(password(secret, username).as_bytes().ct_eq(given.as_bytes()));
    let tried = secrets.len();
    match (secrets.iter().position(matches), expired_for(expires, unix_now)) {
        (Some(secret_index), None) => Ok(Valid { user, expires, secret_index }),
        (Some(secret_index), Some(ago_seconds)) => Err(CredentialError::Expired { ago_seconds, secret_index, reading }),
        (None, None) => Err(CredentialError::WrongSecret { tried, reading }),
        (None, Some(ago_seconds)) => Err(CredentialError::WrongSecretAndExpired { tried, ago_seconds, reading }),
    }
}

fn check_password_form(given: &str) -> Result<(), Malformed> {
    if given.len() == 2 * HMAC_SHA1_LEN && given.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Malformed::PasswordIsHex);
    }
    match STANDARD.decode(given).map(|bytes| bytes.len()) {
        Ok(HMAC_SHA1_LEN) => Ok(()),
        Ok(bytes) => Err(Malformed::PasswordLength { bytes }),
        Err(_) => Err(Malformed::PasswordNotBase64),
    }
}

#[cfg(test)]
mod tests;
