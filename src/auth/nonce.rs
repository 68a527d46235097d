//! Stateless nonces (RFC 8489 §9.2, §18.1).
//!
//! A nonce is 28 ASCII characters, a multiple of four so that its attribute needs no padding:
//!
//! ```text
//! obMatJos2  gAAB                        base64url, 15 characters
//! cookie     24 feature bits in base64   timestamp (3 bytes) ‖ truncated HMAC-SHA256 (8 bytes)
//! ```
//!
//! The HMAC covers the whole time, the client's transport address and the feature bits. The server therefore stores no
//! nonce, no other client can use it, and its features cannot be changed in transit (RFC 8489 §9.2.1).
//!
//! The nonce is as short as is safe, because an unverified source gets it. Someone who forges a source has to guess the
//! 64 bits of the HMAC, and learns of a success only from packets that go to the forged source. A million guesses per
//! second for 10 000 years find one nonce with a probability of 2 %. The nonce protects no data: requests are
//! authenticated by their integrity. The timestamp consists of the low 24 bits of the seconds, which repeat after 194
//! days. The server adds the bits that bring the time closest to the present, and the HMAC covers these as well.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::Secret;
use super::features::{self, COOKIE_LEN, SecurityFeatures};

const TIMESTAMP_LEN: usize = 3;
const MAC_LEN: usize = 8;
const BODY_LEN: usize = TIMESTAMP_LEN + MAC_LEN;
const BODY_TEXT_LEN: usize = (BODY_LEN * 8).div_ceil(6);
const NONCE_LEN: usize = COOKIE_LEN + BODY_TEXT_LEN;

/// The features that are announced by default.
const FEATURES: SecurityFeatures = SecurityFeatures { password_algorithms: true, username_anonymity: false };

/// The label that separates a nonce key from other keys derived from the same secret.
const KEY_LABEL: &[u8] = b"turnserver nonce key 2";

/// The value of a NONCE attribute: characters of qdtext, without quotes and backslashes (RFC 8489 §14.10).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Nonce([u8; NONCE_LEN]);

impl Nonce {
    /// Returns the nonce as text.
    ///
    /// # Panics
    ///
    /// Never: a nonce consists of ASCII.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("cookie and base64 are ASCII")
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nonce({self})")
    }
}

/// Why a nonce is not accepted. In both cases the response is 438 with a new nonce (RFC 8489 §9.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NonceError {
    /// The nonce was not minted with one of the keys for this client, or is malformed.
    #[error("this server did not issue the nonce to this client")]
    Invalid,
    /// The nonce is authentic, but its timestamp differs from the current time by more than the lifetime.
    #[error("the nonce has expired")]
    Expired,
}

/// Mints and checks nonces.
pub struct NonceMint {
    /// The key that mints nonces, and the other keys whose nonces are accepted.
    keys: (NonceKey, Vec<NonceKey>),
    lifetime_seconds: u64,
    features: SecurityFeatures,
}

type NonceKey = Zeroizing<[u8; 32]>;

impl fmt::Debug for NonceMint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NonceMint")
            .field("keys", &(1 + self.keys.1.len()))
            .field("lifetime_seconds", &self.lifetime_seconds)
            .field("features", &self.features)
            .finish()
    }
}

impl NonceMint {
    /// Creates a mint with keys derived from the shared secrets; `None` without a secret.
    ///
    /// It mints with the first key and accepts nonces of all keys. The server still accepts its nonces after a restart,
    /// and so do other servers with the same secrets. The lifetime is limited to 2³¹ − 1 seconds.
    #[must_use]
    pub fn from_secrets(secrets: &[Secret], lifetime_seconds: u64) -> Option<Self> {
        let mut keys = secrets.iter().map(|secret| Zeroizing::new(hmac_sha256(secret.as_bytes(), &[KEY_LABEL])));
        let first = keys.next()?;
        Some(Self { keys: (first, keys.collect()), lifetime_seconds, features: FEATURES })
    }

    /// Creates a mint with a random key, for a server without a shared secret. A restart invalidates its nonces.
    #[must_use]
    pub fn from_random(key: [u8; 32], lifetime_seconds: u64) -> Self {
        Self { keys: (Zeroizing::new(key), Vec::new()), lifetime_seconds, features: FEATURES }
    }

    /// Sets the features that new nonces announce, by default only password algorithms.
    ///
    /// A nonce that was minted with other features is still accepted.
    #[must_use]
    pub fn with_features(self, features: SecurityFeatures) -> Self {
        Self { features, ..self }
    }

    /// Mints the nonce of this second for `client`. Two clients never receive the same nonce (RFC 8489 §9.2.4).
    ///
    /// # Panics
    ///
    /// Never: the buffer has the length of the encoded nonce.
    #[must_use]
    pub fn mint(&self, unix_now: u64, client: SocketAddr) -> Nonce {
        let mut body = [0; BODY_LEN];
        let (timestamp_bytes, mac_bytes) = body.split_at_mut(TIMESTAMP_LEN);
        timestamp_bytes.copy_from_slice(&low_bytes(unix_now));
        let features = self.features.bits();
        mac_bytes.copy_from_slice(&mac(&self.keys.0, unix_now, client, features));

        let mut nonce = [0; NONCE_LEN];
        let (cookie, text) = nonce.split_at_mut(COOKIE_LEN);
        cookie.copy_from_slice(&features::cookie(features));
        let written = URL_SAFE_NO_PAD.encode_slice(body, text).expect("the buffer fits the encoded body");
        debug_assert_eq!(written, BODY_TEXT_LEN);
        Nonce(nonce)
    }

    /// Checks that `nonce` was minted for `client` with one of the keys and has not expired.
    ///
    /// If the check succeeds, [`SecurityFeatures::of`] returns the features that were announced with the nonce.
    ///
    /// The timestamp may be in the future by at most the lifetime. This accepts nonces of other servers whose clock is
    /// ahead, but not nonces from before the clock was set back by a long time.
    ///
    /// # Errors
    ///
    /// [`NonceError::Invalid`] takes precedence over [`NonceError::Expired`], because only the timestamp of an
    /// authentic nonce is meaningful.
    pub fn check(&self, nonce: &str, unix_now: u64, client: SocketAddr) -> Result<(), NonceError> {
        let Decoded { features, timestamp, given } = decode(nonce.as_bytes()).ok_or(NonceError::Invalid)?;
        let minted_at = closest(timestamp, unix_now);
        let (first, others) = &self.keys;
        let mut keys = std::iter::once(first).chain(others);
        let authentic = keys.any(|key| mac(key, minted_at, client, features).ct_eq(&given).into());
        if !authentic {
            return Err(NonceError::Invalid);
        }
        let age = unix_now.wrapping_sub(minted_at).cast_signed();
        let lifetime = i64::from(i32::try_from(self.lifetime_seconds).unwrap_or(i32::MAX));
        let alive = -lifetime <= age && age < lifetime;
        if alive { Ok(()) } else { Err(NonceError::Expired) }
    }
}

/// A parsed nonce.
struct Decoded {
    features: [u8; 3],
    /// The low bits of the time at which the nonce was minted.
    timestamp: [u8; TIMESTAMP_LEN],
    given: [u8; MAC_LEN],
}

/// Parses a nonce; `None` unless it has exactly the form of a minted one and announces only known features.
fn decode(nonce: &[u8]) -> Option<Decoded> {
    let (features, text) = features::split(nonce)?;
    SecurityFeatures::from_bits(features)?;
    // Decoding fails on other alphabets, padding and non-zero trailing bits, so that each nonce has exactly one
    // encoding.
    let mut body = [0; BODY_LEN];
    if text.len() != BODY_TEXT_LEN || URL_SAFE_NO_PAD.decode_slice(text, &mut body).ok()? != BODY_LEN {
        return None;
    }
    let (timestamp, mac) = body.split_first_chunk()?;
    Some(Decoded { features, timestamp: *timestamp, given: mac.try_into().ok()? })
}

fn low_bytes(unix_seconds: u64) -> [u8; TIMESTAMP_LEN] {
    let [.., high, middle, low] = unix_seconds.to_be_bytes();
    [high, middle, low]
}

/// Returns the time closest to `unix_now` that has these low bytes.
fn closest(low: [u8; TIMESTAMP_LEN], unix_now: u64) -> u64 {
    let [high, middle, low] = low;
    let [now_high, now_middle, now_low] = low_bytes(unix_now);
    let shifted = |bytes| u32::from_be_bytes(bytes);
    // In the upper 24 bits, so that the sign of the difference is the sign of the word.
    let difference = shifted([high, middle, low, 0]).wrapping_sub(shifted([now_high, now_middle, now_low, 0]));
    unix_now.wrapping_add_signed(i64::from(difference.cast_signed() >> 8))
}

fn mac(key: &NonceKey, unix_seconds: u64, client: SocketAddr, features: [u8; 3]) -> [u8; MAC_LEN] {
    // The MAC is the same for an IPv4 address and its IPv4-mapped form. Flow label and scope id are not part of a
    // transport address.
    let address = match client.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let parts: [&[u8]; 4] = [&unix_seconds.to_be_bytes(), &address.octets(), &client.port().to_be_bytes(), &features];
    let full = hmac_sha256(key.as_slice(), &parts);
    let mut truncated = [0; MAC_LEN];
    for (to, from) in truncated.iter_mut().zip(full) {
        *to = from;
    }
    truncated
}

fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC accepts a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests;
