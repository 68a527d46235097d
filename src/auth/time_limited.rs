//! Time-limited credentials, the TURN REST convention: the username is `<unix expiry>:<name>` or a bare
//! `<unix expiry>`, the password is `base64(HMAC-SHA1(secret, username))`.
//!
//! An application that shares the secret makes them without asking the server, and the server checks them without
//! a database.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::json;
use sha1::Sha1;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{HumanSeconds, Secret};

/// An expiry from here on, the year 5138 in seconds, was meant in milliseconds, where it is a day of 1973 or later.
/// Taken as seconds it would make a credential that never ends.
const MILLISECONDS_FROM: u64 = 100_000_000_000;

const HMAC_SHA1_LEN: usize = 20;

/// A username of the time-limited form, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLimitedUsername<'a> {
    /// When the credential ends, in seconds since the Unix epoch.
    pub expires: u64,
    /// The name behind the expiry; the empty string where there is none.
    pub user: &'a str,
}

impl<'a> TimeLimitedUsername<'a> {
    /// Takes a username apart. `None` where it does not begin with decimal digits that are followed by a colon or
    /// by nothing, and where the number does not fit 64 bits.
    #[must_use]
    pub fn parse(username: &'a str) -> Option<Self> {
        let (expires, user) = username.split_once(':').unwrap_or((username, ""));
        // `u64::from_str` would also take a leading plus sign.
        if !expires.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        Some(Self { expires: expires.parse().ok()?, user })
    }

    /// Whether the expiry was evidently written in milliseconds (beyond the year 5138 as seconds). Such a
    /// credential is refused: it would be valid for thousands of years.
    #[must_use]
    pub fn is_in_milliseconds(&self) -> bool {
        self.expires >= MILLISECONDS_FROM
    }
}

/// Seconds since `expires`, `Some(0)` at that very second; `None` while the credential lives. The one comparison
/// of an expiry with the wall clock; both in seconds since the Unix epoch.
#[must_use]
pub fn expired_for(expires: u64, unix_now: u64) -> Option<u64> {
    unix_now.checked_sub(expires)
}

/// The password that belongs to `username` under `secret`.
///
/// # Panics
///
/// Never: HMAC takes a key of any length.
#[must_use]
pub fn password(secret: &Secret, username: &str) -> Zeroizing<String> {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(username.as_bytes());
    Zeroizing::new(STANDARD.encode(mac.finalize().into_bytes()))
}

/// A credential as it is handed to a client.
#[derive(Clone)]
pub struct Credential {
    /// What goes into USERNAME.
    pub username: String,
    /// The password, in base64.
    pub password: Zeroizing<String>,
    /// When it ends, in seconds since the Unix epoch.
    pub expires: u64,
}

impl Credential {
    /// The argument of `new RTCPeerConnection(…)` as JSON on one line: an `RTCConfiguration` with one `RTCIceServer`
    /// (W3C WebRTC §4.2.1).
    #[must_use]
    pub fn ice_servers(&self, urls: &[String]) -> String {
        // Put together by hand to keep the order in which people read it.
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

/// Makes a credential for `user`, or an anonymous one, that ends at `expires` (seconds since the Unix epoch).
#[must_use]
pub fn mint(secret: &Secret, user: Option<&str>, expires: u64) -> Credential {
    let username = match user {
        Some(user) => format!("{expires}:{user}"),
        None => expires.to_string(),
    };
    let password = password(secret, &username);
    Credential { username, password, expires }
}

/// A credential that is right and has not expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Valid<'u> {
    /// The name behind the expiry; the empty string where there is none.
    pub user: &'u str,
    /// When it ends, in seconds since the Unix epoch.
    pub expires: u64,
    /// Which of the secrets made it, from 0.
    pub secret_index: usize,
}

/// Why a credential fails. `Display` is a sentence for the person who has to repair it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The username or the password cannot come from the convention.
    #[error("malformed: {0}")]
    Malformed(#[from] Malformed),
    /// There is no secret to check it with.
    #[error("no secret is configured, so no time-limited credential can be right")]
    NoSecret,
    /// The password is right for none of the secrets.
    #[error("wrong secret: {}", NoneOf(*tried))]
    WrongSecret {
        /// How many secrets were tried.
        tried: usize,
    },
    /// The password is right for none of the secrets, and the expiry has passed as well.
    #[error("wrong secret: {}; besides, the credential expired {} ago", NoneOf(*tried), HumanSeconds(*ago_seconds))]
    WrongSecretAndExpired {
        /// How many secrets were tried.
        tried: usize,
        /// Seconds since the expiry.
        ago_seconds: u64,
    },
    /// The password is right, the time is over.
    #[error("expired {} ago", HumanSeconds(*ago_seconds))]
    Expired {
        /// Seconds since the expiry.
        ago_seconds: u64,
        /// Which of the secrets made it, from 0.
        secret_index: usize,
    },
}

/// Says that a password came from none of so many secrets.
pub(super) struct NoneOf(pub(super) usize);

impl fmt::Display for NoneOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("the password was not made with the one secret that was tried"),
            tried => write!(f, "the password was made with none of the {tried} secrets that were tried"),
        }
    }
}

/// What is wrong with the form of a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// No expiry stands at the front of the username.
    #[error("the username does not begin with an expiry; it has to be <unix expiry>:<name> or <unix expiry>")]
    NoExpiry,
    /// The username is `<name>:<expiry>`.
    #[error("the expiry stands behind the name; the username has to be <unix expiry>:<name>")]
    ExpiryBehindName,
    /// The expiry was written in milliseconds.
    #[error("the expiry {expires} looks like milliseconds; it has to be in seconds since the Unix epoch")]
    ExpiryInMilliseconds {
        /// The number as it stands in the username.
        expires: u64,
    },
    /// The password is the MAC in hexadecimal.
    #[error("the password looks like hexadecimal; it has to be the base64 of the HMAC-SHA1")]
    PasswordIsHex,
    /// The password is not base64.
    #[error("the password is not base64 (standard alphabet, with padding)")]
    PasswordNotBase64,
    /// The password is base64 of something that is no HMAC-SHA1.
    #[error("the password holds {bytes} bytes, an HMAC-SHA1 has 20{}", if *bytes == 32 { " (32 would be HMAC-SHA256)" } else { "" })]
    PasswordLength {
        /// Bytes behind the base64.
        bytes: usize,
    },
}

/// What keeps `username` from being of the time-limited form with a usable expiry.
///
/// # Errors
///
/// One of the variants of [`Malformed`] that are about the username.
pub fn check_username(username: &str) -> Result<TimeLimitedUsername<'_>, Malformed> {
    let Some(parsed) = TimeLimitedUsername::parse(username) else {
        let behind = username.rsplit_once(':').and_then(|(_, last)| TimeLimitedUsername::parse(last));
        return Err(if behind.is_some() { Malformed::ExpiryBehindName } else { Malformed::NoExpiry });
    };
    if parsed.is_in_milliseconds() {
        return Err(Malformed::ExpiryInMilliseconds { expires: parsed.expires });
    }
    Ok(parsed)
}

/// Checks a whole credential, each secret in turn.
///
/// # Errors
///
/// Says what is wrong with it: its form first, then its secret, then its expiry.
pub fn verify<'u>(
    secrets: &[Secret],
    username: &'u str,
    given: &str,
    unix_now: u64,
) -> Result<Valid<'u>, CredentialError> {
    let TimeLimitedUsername { expires, user } = check_username(username)?;
    check_password_form(given)?;
    if secrets.is_empty() {
        return Err(CredentialError::NoSecret);
    }
    let right = |secret: &Secret| bool::from(password(secret, username).as_bytes().ct_eq(given.as_bytes()));
    let tried = secrets.len();
    match (secrets.iter().position(right), expired_for(expires, unix_now)) {
        (Some(secret_index), None) => Ok(Valid { user, expires, secret_index }),
        (Some(secret_index), Some(ago_seconds)) => Err(CredentialError::Expired { ago_seconds, secret_index }),
        (None, None) => Err(CredentialError::WrongSecret { tried }),
        (None, Some(ago_seconds)) => Err(CredentialError::WrongSecretAndExpired { tried, ago_seconds }),
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
