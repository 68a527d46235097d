//! Stateless nonces (RFC 8489 §9.2, §18.1).
//!
//! A nonce is 24 ASCII characters, a multiple of four so that its attribute needs no padding:
//!
//! ```text
//! obMatJos2  gAAB                        abc                      defghijk
//! cookie     24 feature bits in base64   18 bits of the time      truncated HMAC-SHA256 (6 bytes)
//! ```
//!
//! The last two parts are base64url. The HMAC covers the whole time, the client's transport address and the feature
//! bits. The server therefore stores no nonce, no other client can use it, and its features cannot be changed in transit
//! (RFC 8489 §9.2.1).
//!
//! The nonce is as short as is safe, because an unverified source gets it: with the default realm, a challenge has twice
//! the bytes of the shortest request. Someone who forges a source has to guess the 48 bits of the HMAC, which takes nine
//! years at a million guesses per second, and gains a higher limit on the responses to that source until the nonce
//! expires. The nonce protects no data: requests are authenticated by their integrity. The low 18 bits of the seconds
//! repeat after 73 hours. The server adds the bits that bring the time closest to the present, and the HMAC covers these
//! as well.

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

/// The bits of the time in a nonce: three characters.
const TIME_BITS: u32 = 18;
const TIME_TEXT_LEN: usize = 3;
const MAC_LEN: usize = 6;
const MAC_TEXT_LEN: usize = 8;
const NONCE_LEN: usize = COOKIE_LEN + TIME_TEXT_LEN + MAC_TEXT_LEN;

/// The longest lifetime, about 36 hours: times that differ by more could be taken for each other.
const LONGEST_LIFETIME: u64 = (1 << (TIME_BITS - 1)) - 1;

/// The features that are announced by default.
const FEATURES: SecurityFeatures = SecurityFeatures { password_algorithms: true, username_anonymity: false };

/// The label that separates a nonce key from other keys derived from the same secret.
const KEY_LABEL: &[u8] = b"turnserver nonce key 3";

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
    /// and so do other servers with the same secrets. The lifetime is limited to 36 hours.
    #[must_use]
    pub fn from_secrets(secrets: &[Secret], lifetime_seconds: u64) -> Option<Self> {
        let mut keys = secrets.iter().map(|secret| Zeroizing::new(hmac_sha256(secret.as_bytes(), &[KEY_LABEL])));
        let first = keys.next()?;
        Some(Self::new(first, keys.collect(), lifetime_seconds))
    }

    /// Creates a mint with a random key, for a server without a shared secret. A restart invalidates its nonces.
    #[must_use]
    pub fn from_random(key: [u8; 32], lifetime_seconds: u64) -> Self {
        Self::new(Zeroizing::new(key), Vec::new(), lifetime_seconds)
    }

    fn new(first: NonceKey, others: Vec<NonceKey>, lifetime_seconds: u64) -> Self {
        Self { keys: (first, others), lifetime_seconds: lifetime_seconds.min(LONGEST_LIFETIME), features: FEATURES }
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
        let features = self.features.bits();
        let mac = mac(&self.keys.0, unix_now, client, features);

        let mut nonce = [0; NONCE_LEN];
        let (cookie, text) = nonce.split_at_mut(COOKIE_LEN);
        cookie.copy_from_slice(&features::cookie(features));
        let (time_text, mac_text) = text.split_at_mut(TIME_TEXT_LEN);
        time_text.copy_from_slice(&encode_time(unix_now));
        let written = URL_SAFE_NO_PAD.encode_slice(mac, mac_text).expect("the buffer fits the encoded HMAC");
        debug_assert_eq!(written, MAC_TEXT_LEN);
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
        let Decoded { features, time, given } = decode(nonce.as_bytes()).ok_or(NonceError::Invalid)?;
        let minted_at = closest(time, unix_now);
        let (first, others) = &self.keys;
        let mut keys = std::iter::once(first).chain(others);
        let authentic = keys.any(|key| mac(key, minted_at, client, features).ct_eq(&given).into());
        if !authentic {
            return Err(NonceError::Invalid);
        }
        let age = unix_now.wrapping_sub(minted_at).cast_signed();
        let lifetime = self.lifetime_seconds.cast_signed();
        let alive = -lifetime <= age && age < lifetime;
        if alive { Ok(()) } else { Err(NonceError::Expired) }
    }
}

/// A parsed nonce.
struct Decoded {
    features: [u8; 3],
    /// The low bits of the time at which the nonce was minted.
    time: u32,
    given: [u8; MAC_LEN],
}

/// Parses a nonce; `None` unless it has exactly the form of a minted one and announces only known features.
fn decode(nonce: &[u8]) -> Option<Decoded> {
    let (features, text) = features::split(nonce)?;
    SecurityFeatures::from_bits(features)?;
    let (time, mac_text) = text.split_first_chunk()?;
    // Decoding fails on other alphabets and padding, and no character has unused bits, so that each nonce has exactly
    // one encoding.
    let mut given = [0; MAC_LEN];
    if mac_text.len() != MAC_TEXT_LEN || URL_SAFE_NO_PAD.decode_slice(mac_text, &mut given).ok()? != MAC_LEN {
        return None;
    }
    Some(Decoded { features, time: decode_time(*time)?, given })
}

/// Returns the low bits of the time, as base64url.
fn encode_time(unix_seconds: u64) -> [u8; TIME_TEXT_LEN] {
    let [.., high, middle, low] = (unix_seconds << (24 - TIME_BITS)).to_be_bytes();
    let mut text = [0; TIME_TEXT_LEN + 1];
    let written = URL_SAFE_NO_PAD.encode_slice([high, middle, low], &mut text);
    debug_assert_eq!(written, Ok(text.len()));
    // The fourth character stands for six bits that are zero.
    let [time @ .., _] = text;
    time
}

fn decode_time([first, second, third]: [u8; TIME_TEXT_LEN]) -> Option<u32> {
    let mut bytes = [0; 3];
    let read = URL_SAFE_NO_PAD.decode_slice([first, second, third, b'A'], &mut bytes).ok()?;
    let [high, middle, low] = bytes;
    (read == bytes.len()).then_some(u32::from_be_bytes([0, high, middle, low]) >> (24 - TIME_BITS))
}

/// Returns the time closest to `unix_now` that has these low bits.
fn closest(low: u32, unix_now: u64) -> u64 {
    const UNUSED: u32 = u32::BITS - TIME_BITS;
    let [.., a, b, c, d] = unix_now.to_be_bytes();
    // In the upper bits, so that the sign of the difference is the sign of the word.
    let difference = (low << UNUSED).wrapping_sub(u32::from_be_bytes([a, b, c, d]) << UNUSED);
    unix_now.wrapping_add_signed(i64::from(difference.cast_signed() >> UNUSED))
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
