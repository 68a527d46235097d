//! Stateless nonces (RFC 8489 §9.2 and §18.1).
//!
//! A nonce is 36 ASCII characters, a multiple of four so that its attribute needs no padding:
//!
//! ```text
//! obMatJos2  gAAB                        base64url, 23 characters
//! cookie     24 feature bits in base64   timestamp (4 bytes) ‖ truncated HMAC-SHA256 (13 bytes)
//! ```
//!
//! The HMAC covers the timestamp, the client's transport address and the feature bits, so the server has nothing
//! to remember, a nonce is of use to nobody else, and its features cannot be changed under way (RFC 8489 §9.2.1).

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

const TIMESTAMP_LEN: usize = 4;
const MAC_LEN: usize = 13;
const BODY_LEN: usize = TIMESTAMP_LEN + MAC_LEN;
const BODY_TEXT_LEN: usize = (BODY_LEN * 8).div_ceil(6);
const NONCE_LEN: usize = COOKIE_LEN + BODY_TEXT_LEN;

/// What is announced unless the mint is told otherwise.
const FEATURES: SecurityFeatures = SecurityFeatures { password_algorithms: true, username_anonymity: false };

/// What sets a nonce key apart from every other use of the secret it is derived from.
const KEY_LABEL: &[u8] = b"turnserver nonce key 1";

/// A nonce as it goes into a NONCE attribute: characters of qdtext (RFC 8489 §14.10), no quote and no backslash.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Nonce([u8; NONCE_LEN]);

impl Nonce {
    /// Its text.
    ///
    /// # Panics
    ///
    /// Never: a nonce is made of ASCII.
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

/// Why a nonce is not accepted. Either way RFC 8489 §9.2.4 has a 438 with a fresh one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NonceError {
    /// Not made with any of our keys, made for another client, or malformed.
    #[error("the nonce was not made here for this client")]
    Foreign,
    /// Ours, and older than its lifetime (or further in the future than that: the clock was set back).
    #[error("the nonce has expired")]
    Expired,
}

/// Makes and checks nonces.
pub struct NonceMint {
    /// The one that mints, and others whose nonces are accepted.
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
    /// Keys from the shared secrets, so that a restarted or a sibling server accepts the nonces: mints with the
    /// first, accepts all. `None` without a secret. A lifetime above 2³¹ − 1 seconds counts as that.
    #[must_use]
    pub fn from_secrets(secrets: &[Secret], lifetime_seconds: u64) -> Option<Self> {
        let mut keys = secrets.iter().map(|secret| Zeroizing::new(hmac_sha256(secret.as_bytes(), &[KEY_LABEL])));
        let first = keys.next()?;
        Some(Self { keys: (first, keys.collect()), lifetime_seconds, features: FEATURES })
    }

    /// One key of random bytes, for a server without a shared secret: its nonces end with it.
    #[must_use]
    pub fn from_random(key: [u8; 32], lifetime_seconds: u64) -> Self {
        Self { keys: (Zeroizing::new(key), Vec::new()), lifetime_seconds, features: FEATURES }
    }

    /// Announces these features in the nonces to come, in place of password algorithms alone. Nonces are accepted with
    /// whatever features they were made.
    #[must_use]
    pub fn announcing(self, features: SecurityFeatures) -> Self {
        Self { features, ..self }
    }

    /// Makes the nonce of this second for `client`. Two clients never get the same (RFC 8489 §9.2.4).
    ///
    /// # Panics
    ///
    /// Never: the buffer has the length of what is encoded into it.
    #[must_use]
    pub fn mint(&self, unix_now: u64, client: SocketAddr) -> Nonce {
        let timestamp = timestamp(unix_now);
        let mut body = [0; BODY_LEN];
        let (timestamp_bytes, mac_bytes) = body.split_at_mut(TIMESTAMP_LEN);
        timestamp_bytes.copy_from_slice(&timestamp.to_be_bytes());
        let features = self.features.bits();
        mac_bytes.copy_from_slice(&mac(&self.keys.0, timestamp, client, features));

        let mut nonce = [0; NONCE_LEN];
        let (cookie, text) = nonce.split_at_mut(COOKIE_LEN);
        cookie.copy_from_slice(&features::cookie(features));
        let written = URL_SAFE_NO_PAD.encode_slice(body, text).expect("the buffer fits the encoded body");
        debug_assert_eq!(written, BODY_TEXT_LEN);
        Nonce(nonce)
    }

    /// Whether `nonce` was made for `client` with one of the keys and is still in its lifetime. Its features are then
    /// as they were announced ([`SecurityFeatures::of`]).
    ///
    /// A timestamp in the future counts by its distance too, so that a sibling server with a clock that runs ahead
    /// is understood, and a clock that was set back far does not make nonces that last.
    ///
    /// # Errors
    ///
    /// [`NonceError::Foreign`] before [`NonceError::Expired`]: the time is that of an authentic nonce.
    pub fn check(&self, nonce: &str, unix_now: u64, client: SocketAddr) -> Result<(), NonceError> {
        let Decoded { features, stamped, given } = decode(nonce.as_bytes()).ok_or(NonceError::Foreign)?;
        let (first, others) = &self.keys;
        let mut keys = std::iter::once(first).chain(others);
        let authentic = keys.any(|key| mac(key, stamped, client, features).ct_eq(&given).into());
        if !authentic {
            return Err(NonceError::Foreign);
        }
        // The difference of wrapping 32-bit seconds as a signed number stays right beyond 2106.
        let distance = timestamp(unix_now).wrapping_sub(stamped).cast_signed();
        let lifetime = i32::try_from(self.lifetime_seconds).unwrap_or(i32::MAX);
        let alive = -i64::from(lifetime) <= i64::from(distance) && distance < lifetime;
        if alive { Ok(()) } else { Err(NonceError::Expired) }
    }
}

/// A nonce, taken apart.
struct Decoded {
    features: [u8; 3],
    stamped: u32,
    given: [u8; MAC_LEN],
}

/// `None` unless it has exactly the form that we write, with features that we know.
fn decode(nonce: &[u8]) -> Option<Decoded> {
    let (features, text) = features::split(nonce)?;
    SecurityFeatures::from_bits(features)?;
    // Decoding refuses other alphabets, padding and stray trailing bits, so that no two texts mean the same nonce.
    let mut body = [0; BODY_LEN];
    if text.len() != BODY_TEXT_LEN || URL_SAFE_NO_PAD.decode_slice(text, &mut body).ok()? != BODY_LEN {
        return None;
    }
    let (timestamp, mac) = body.split_first_chunk()?;
    Some(Decoded { features, stamped: u32::from_be_bytes(*timestamp), given: mac.try_into().ok()? })
}

#[expect(clippy::cast_possible_truncation, reason = "timestamps are compared modulo 2^32")]
fn timestamp(unix_seconds: u64) -> u32 {
    unix_seconds as u32
}

fn mac(key: &NonceKey, timestamp: u32, client: SocketAddr, features: [u8; 3]) -> [u8; MAC_LEN] {
    // An IPv4 client is one client whether a socket reports it as IPv4 or as an IPv4-mapped address. Flow label and
    // scope are no part of a transport address.
    let address = match client.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let parts: [&[u8]; 4] = [&timestamp.to_be_bytes(), &address.octets(), &client.port().to_be_bytes(), &features];
    let full = hmac_sha256(key.as_slice(), &parts);
    let mut truncated = [0; MAC_LEN];
    for (to, from) in truncated.iter_mut().zip(full) {
        *to = from;
    }
    truncated
}

fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests;
