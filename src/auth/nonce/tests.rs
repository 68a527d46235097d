use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6};

use proptest::prelude::*;

use super::*;

const NOW: u64 = 1_700_000_000;
const LIFETIME: u64 = 600;

fn secrets(texts: &[&str]) -> Vec<Secret> {
    texts.iter().map(|text| Secret::new(*text).unwrap()).collect()
}

fn mint_of(texts: &[&str]) -> NonceMint {
    NonceMint::from_secrets(&secrets(texts), LIFETIME).unwrap()
}

fn client() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 7], 50_000))
}

// RFC 8489 §9.2, §9.2.4: a nonce starts with "obMatJos2" and the base64 of 24 feature bits.
#[test]
fn a_nonce_starts_with_the_cookie_and_needs_no_padding() {
    let nonce = mint_of(&["north-star"]).mint(NOW, client());
    assert_eq!(&nonce.as_str()[..13], "obMatJos2gAAB");
    assert_eq!(nonce.as_str().len(), 24);
    assert_eq!(nonce.to_string(), nonce.as_str());
}

// RFC 8489 §14.10: qdtext without quotes and backslashes, so that a quoted string needs no escapes.
#[test]
fn a_nonce_consists_of_qdtext() {
    let mint = mint_of(&["north-star"]);
    for port in 0..500 {
        let nonce = mint.mint(NOW + u64::from(port), SocketAddr::from(([192, 0, 2, 7], port)));
        assert!(nonce.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{nonce}");
    }
}

// From Python's hmac and base64 with the layout in the documentation of this module.
#[test]
fn nonces_are_those_that_python_computes() {
    let mint = mint_of(&["north-star"]);
    assert_eq!(mint.mint(NOW, client()).as_str(), "obMatJos2gAAB_EA-jAzYpwK");
    let v6 = SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7), 50_000));
    assert_eq!(mint.mint(NOW, v6).as_str(), "obMatJos2gAAB_EARoh-Uowm");
    let anonymous = SecurityFeatures { password_algorithms: true, username_anonymity: true };
    let mint = mint.with_features(anonymous);
    assert_eq!(mint.mint(NOW, client()).as_str(), "obMatJos2wAAD_EADrMoJt_C");
    assert_eq!(SecurityFeatures::of(mint.mint(NOW, client()).as_str()), Some(anonymous));
}

// RFC 8489 §9.2.1: the announced features cannot be changed in transit.
#[test]
fn a_nonce_with_changed_features_is_invalid() {
    let mint = mint_of(&["north-star"]);
    let nonce = mint.mint(NOW, client()).to_string();
    for features in ["AAAA", "gAAA", "AAAB", "wAAD", "gAAD", "AAAD"] {
        let changed = nonce.replacen("gAAB", features, 1);
        assert_eq!(mint.check(&changed, NOW, client()), Err(NonceError::Invalid), "{features}");
    }
}

// From servers that announce other features, or none.
#[test]
fn a_nonce_is_accepted_with_the_features_it_was_minted_with() {
    let mint = mint_of(&["north-star"]);
    for nonce in ["obMatJos2AAAA_EA1SbSFQO9", "obMatJos2wAAD_EADrMoJt_C"] {
        assert_eq!(mint.check(nonce, NOW, client()), Ok(()), "{nonce}");
    }
}

#[test]
fn a_nonce_expires_after_its_lifetime() {
    let mint = mint_of(&["north-star"]);
    let nonce = mint.mint(NOW, client());
    let at = |now| mint.check(nonce.as_str(), now, client());
    assert_eq!(at(NOW), Ok(()));
    assert_eq!(at(NOW + LIFETIME - 1), Ok(()));
    assert_eq!(at(NOW + LIFETIME), Err(NonceError::Expired));
    assert_eq!(at(NOW + 86_400), Err(NonceError::Expired));
}

#[test]
fn the_longest_lifetime_fits_the_bits_of_the_time() {
    let mint = NonceMint::from_random([7; 32], u64::MAX);
    let nonce = mint.mint(NOW, client());
    let at = |now| mint.check(nonce.as_str(), now, client());
    assert_eq!((at(NOW + 86_400), at(NOW + LONGEST_LIFETIME - 1)), (Ok(()), Ok(())));
    assert_eq!(at(NOW + LONGEST_LIFETIME), Err(NonceError::Expired));
    assert_eq!(at(NOW + LONGEST_LIFETIME + 2), Err(NonceError::Invalid));
}

#[test]
fn a_nonce_from_the_future_is_accepted_within_its_lifetime() {
    let mint = mint_of(&["north-star"]);
    let nonce = mint.mint(NOW, client());
    let at = |now| mint.check(nonce.as_str(), now, client());
    assert_eq!(at(NOW - 5), Ok(()), "another server whose clock is ahead");
    assert_eq!(at(NOW - LIFETIME - 1), Err(NonceError::Expired), "a clock that was set back");
    assert_eq!(at(0), Err(NonceError::Invalid), "a clock that was set back by more than the timestamp can express");
}

// The time has 18 bits: 73 hours. The MAC covers the others.
#[test]
fn the_timestamp_may_wrap_but_an_old_nonce_does_not_become_valid_again() {
    const WRAP: u64 = 1 << 18;
    let mint = mint_of(&["north-star"]);
    for last in [WRAP - 1, 6_500 * WRAP - 1, u64::from(u32::MAX)] {
        let nonce = mint.mint(last, client());
        let at = |now| mint.check(nonce.as_str(), now, client());
        assert_eq!((at(last - 1), at(last), at(last + LIFETIME - 1)), (Ok(()), Ok(()), Ok(())));
        assert_eq!(
            (at(last + LIFETIME), at(last + WRAP / 2 - 1)),
            (Err(NonceError::Expired), Err(NonceError::Expired))
        );
        for wraps in 1..4 {
            assert_eq!(at(last + wraps * WRAP), Err(NonceError::Invalid));
        }
    }
}

// RFC 8489 §9.2.4: two source addresses or ports never have the same NONCE.
#[test]
fn a_nonce_is_valid_only_for_its_client() {
    let mint = mint_of(&["north-star"]);
    let nonce = mint.mint(NOW, client());
    for other in [([192, 0, 2, 7], 50_001), ([192, 0, 2, 8], 50_000)].map(SocketAddr::from) {
        assert_eq!(mint.check(nonce.as_str(), NOW, other), Err(NonceError::Invalid));
        assert_ne!(mint.mint(NOW, other), nonce);
    }
}

#[test]
fn an_ipv4_mapped_client_has_the_nonce_of_the_ipv4_client() {
    let mint = mint_of(&["north-star"]);
    let mapped = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped(), 50_000));
    assert_eq!(mint.mint(NOW, mapped), mint.mint(NOW, client()));
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    let scoped = |scope| SocketAddr::V6(SocketAddrV6::new(link_local, 50_000, 7, scope));
    assert_eq!(mint.mint(NOW, scoped(1)), mint.mint(NOW, scoped(2)));
}

#[test]
fn a_nonce_of_another_key_is_invalid() {
    let random = NonceMint::from_random([7; 32], LIFETIME);
    let nonce = random.mint(NOW, client());
    assert_eq!(random.check(nonce.as_str(), NOW, client()), Ok(()));
    for other in [NonceMint::from_random([8; 32], LIFETIME), mint_of(&["north-star"])] {
        assert_eq!(other.check(nonce.as_str(), NOW, client()), Err(NonceError::Invalid));
    }
}

#[test]
fn a_nonce_is_accepted_while_its_secret_is_configured() {
    let before = mint_of(&["old"]);
    let during = mint_of(&["new", "old"]);
    let after = mint_of(&["new"]);
    let old_nonce = before.mint(NOW, client());
    let new_nonce = during.mint(NOW, client());
    assert_eq!(during.check(old_nonce.as_str(), NOW, client()), Ok(()));
    assert_eq!(during.check(new_nonce.as_str(), NOW, client()), Ok(()));
    assert_eq!(after.check(new_nonce.as_str(), NOW, client()), Ok(()));
    assert_eq!(after.check(old_nonce.as_str(), NOW, client()), Err(NonceError::Invalid));
    assert!(NonceMint::from_secrets(&[], LIFETIME).is_none());
}

#[test]
fn a_malformed_nonce_is_invalid() {
    let mint = mint_of(&["north-star"]);
    let nonce = mint.mint(NOW, client()).to_string();
    let unassigned = nonce.replacen("gAAB", "oAAB", 1);
    let longer = format!("{nonce}A");
    let padded = format!("{nonce}=");
    for text in ["", "obMatJos2gAAB", &nonce[..23], &nonce[13..], &longer, &padded, &unassigned, "nonsense"] {
        assert_eq!(mint.check(text, NOW, client()), Err(NonceError::Invalid), "{text:?}");
    }
}

#[test]
fn debug_shows_no_byte_of_a_key() {
    let shown = format!("{:?}", NonceMint::from_random([7; 32], LIFETIME));
    assert!(shown.starts_with("NonceMint { keys: 1, lifetime_seconds: 600, features: SecurityFeatures {"), "{shown}");
    assert!(!shown.contains('7'), "{shown}");
}

proptest! {
    #[test]
    fn a_nonce_with_any_changed_character_is_invalid(
        secret in "[a-z]{1,40}", now in 0..u64::from(u32::MAX), port: u16, at in 0..24usize, to in any::<char>(),
    ) {
        let mint = mint_of(&[&secret]);
        let client = SocketAddr::from(([198, 51, 100, 1], port));
        let mut changed: Vec<char> = mint.mint(now, client).as_str().chars().collect();
        prop_assume!(changed[at] != to);
        changed[at] = to;
        let changed: String = changed.into_iter().collect();
        prop_assert_eq!(mint.check(&changed, now, client), Err(NonceError::Invalid));
    }

    // Characters with unused bits, padding or another alphabet could allow two encodings of the same nonce.
    #[test]
    fn a_nonce_has_only_one_encoding(now in 0..u64::from(u32::MAX), at in 0..24usize, to in "[A-Za-z0-9_+/=-]") {
        let mint = mint_of(&["north-star"]);
        let mut changed = mint.mint(now, client()).to_string();
        prop_assume!(changed[at..=at] != to);
        changed.replace_range(at..=at, &to);
        prop_assert_eq!(mint.check(&changed, now, client()), Err(NonceError::Invalid));
    }

    #[test]
    fn checking_any_text_does_not_panic(text in any::<String>()) {
        let _ = mint_of(&["north-star"]).check(&text, NOW, client());
        let _ = mint_of(&["north-star"]).check(&format!("obMatJos2gAAB{text}"), NOW, client());
    }
}
