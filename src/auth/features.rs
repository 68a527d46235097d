//! The security features that a nonce announces (RFC 8489 §9.2, §9.2.1, §18.1).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The start of every nonce of a server that implements RFC 8489, followed by the feature bits (§9.2).
const COOKIE: &[u8; 9] = b"obMatJos2";
/// The length of the 24 feature bits in base64.
const BITS_LEN: usize = 4;

/// The length of the nonce cookie with its feature bits, in bytes.
pub(super) const COOKIE_LEN: usize = COOKIE.len() + BITS_LEN;

// RFC 8489 §18.1 counts the bits from the left; its verified erratum 6290 and its Appendix B.1 count them from the
// right. Both kinds of client exist, and neither numbering assigns the bits in between. Each feature is therefore
// announced at both ends, and accepted at either end.
const PASSWORD_ALGORITHMS: u32 = 1 << 23 | 1;
const USERNAME_ANONYMITY: u32 = 1 << 22 | 1 << 1;

/// The features that a nonce announces. If an attacker removes one of them from a challenge, the client or the server
/// detects this (RFC 8489 §9.2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SecurityFeatures {
    /// The challenge contains PASSWORD-ALGORITHMS.
    pub password_algorithms: bool,
    /// The client sends USERHASH in place of USERNAME.
    pub username_anonymity: bool,
}

impl SecurityFeatures {
    /// Returns the features in the cookie of a nonce. This does not authenticate the nonce.
    ///
    /// `None` if there is no cookie or if it contains features that RFC 8489 does not define.
    #[must_use]
    pub fn of(nonce: &str) -> Option<Self> {
        split(nonce.as_bytes()).and_then(|(bits, _)| Self::from_bits(bits))
    }

    pub(super) fn from_bits([high, middle, low]: [u8; 3]) -> Option<Self> {
        let bits = u32::from_be_bytes([0, high, middle, low]);
        (bits & !(PASSWORD_ALGORITHMS | USERNAME_ANONYMITY) == 0).then_some(Self {
            password_algorithms: bits & PASSWORD_ALGORITHMS != 0,
            username_anonymity: bits & USERNAME_ANONYMITY != 0,
        })
    }

    pub(super) fn bits(self) -> [u8; 3] {
        let password_algorithms = if self.password_algorithms { PASSWORD_ALGORITHMS } else { 0 };
        let username_anonymity = if self.username_anonymity { USERNAME_ANONYMITY } else { 0 };
        let [_, bits @ ..] = (password_algorithms | username_anonymity).to_be_bytes();
        bits
    }
}

/// Returns the nonce cookie with these bits.
pub(super) fn cookie(bits: [u8; 3]) -> [u8; COOKIE_LEN] {
    let mut cookie = [0; COOKIE_LEN];
    let (start, text) = cookie.split_at_mut(COOKIE.len());
    start.copy_from_slice(COOKIE);
    let written = STANDARD.encode_slice(bits, text);
    debug_assert_eq!(written, Ok(BITS_LEN));
    cookie
}

/// Splits a nonce into the bits of its cookie and the rest.
pub(super) fn split(nonce: &[u8]) -> Option<([u8; 3], &[u8])> {
    let (text, rest) = nonce.strip_prefix(COOKIE)?.split_first_chunk::<BITS_LEN>()?;
    let mut bits = [0; 3];
    // Four characters decode to three bytes, or to fewer if they include padding.
    (STANDARD.decode_slice(text, &mut bits) == Ok(bits.len())).then_some((bits, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: SecurityFeatures = SecurityFeatures { password_algorithms: false, username_anonymity: false };
    const ALGORITHMS: SecurityFeatures = SecurityFeatures { password_algorithms: true, ..NONE };
    const ANONYMITY: SecurityFeatures = SecurityFeatures { username_anonymity: true, ..NONE };
    const BOTH: SecurityFeatures = SecurityFeatures { password_algorithms: true, username_anonymity: true };

    // RFC 8489 §18.1 and erratum 6290: bit 0 is the leftmost or the rightmost.
    #[test]
    fn a_feature_is_announced_at_both_ends_of_the_bits() {
        for (features, expected) in [(NONE, "AAAA"), (ALGORITHMS, "gAAB"), (ANONYMITY, "QAAC"), (BOTH, "wAAD")] {
            let cookie = cookie(features.bits());
            assert_eq!(cookie, *format!("obMatJos2{expected}").as_bytes());
            assert_eq!(SecurityFeatures::of(std::str::from_utf8(&cookie).unwrap()), Some(features));
        }
    }

    // RFC 8489 Appendix B.1: a request with USERHASH has the cookie with "AAAC".
    #[test]
    fn a_feature_is_accepted_at_either_end() {
        for (text, expected) in [
            ("gAAA", ALGORITHMS),
            ("AAAB", ALGORITHMS),
            ("QAAA", ANONYMITY),
            ("AAAC", ANONYMITY),
            ("wAAA", BOTH),
            ("AAAD", BOTH),
            ("gAAC", BOTH),
        ] {
            assert_eq!(SecurityFeatures::of(&format!("obMatJos2{text}//499k954d6")), Some(expected), "{text}");
        }
    }

    #[test]
    fn an_invalid_cookie_announces_nothing() {
        for nonce in
            ["", "obMatJos2", "obMatJos2gAA", "obMatJos2gA==", "obMatJos2gAA=x", "obMatJos2g-AA", "xobMatJos2gAAB"]
        {
            assert_eq!(SecurityFeatures::of(nonce), None, "{nonce}");
        }
        assert_eq!(SecurityFeatures::of("obMatJos2IAAA"), None, "bit 2 is unassigned");
        assert_eq!(SecurityFeatures::of("obMatJos2AAAE"), None, "bit 2 is unassigned");
    }
}
