use super::*;

const NOW: u64 = 1_700_000_000;
const REALM: &str = "turn.example.org";

fn secret(text: &str) -> Secret {
    Secret::new(text).unwrap()
}

fn authenticator(secrets: &[&str], users: &[(&str, &str)]) -> Authenticator {
    Authenticator::new(
        REALM.to_owned(),
        secrets.iter().map(|text| secret(text)).collect(),
        users.iter().map(|(name, password)| ((*name).to_owned(), secret(password))),
    )
}

/// A client that signs with the key of `username` and `password`; the server's view of its integrity.
fn signed(username: &str, password: &str) -> impl FnMut(&LongTermKey) -> bool {
    let key = LongTermKey::derive(username, REALM, password.as_bytes());
    move |candidate| *candidate == key
}

// Made with Python: md5(username ":" realm ":" base64(hmac_sha1("north-star", username)))
#[test]
fn the_key_of_a_time_limited_credential_is_the_one_that_python_computes() {
    let authenticator = authenticator(&["north-star"], &[]);
    let mut candidates = Vec::new();
    let result = authenticator.authenticate("1700000000:alice", 0, &mut |key| {
        candidates.push(u128::from_be_bytes(*key.as_bytes()));
        true
    });
    assert_eq!(candidates, [0xb2a0_1cd8_b6b1_bed4_a312_9efd_021c_3dd8]);
    assert_eq!(result.unwrap().key.as_bytes(), &candidates[0].to_be_bytes());
}

#[test]
fn a_static_user_is_known_by_the_password() {
    let authenticator = authenticator(&["north-star"], &[("bob", "builder"), ("eve", "dropper")]);
    let identity = authenticator.authenticate("bob", NOW, &mut signed("bob", "builder")).unwrap();
    assert_eq!((identity.user, identity.expires), ("bob", None));
    assert_eq!(identity.expired_for(u64::MAX), None);
    assert_eq!(identity.key, LongTermKey::derive("bob", REALM, b"builder"));
    for (name, password) in [("bob", "dropper"), ("eve", "builder")] {
        let failure = authenticator.authenticate(name, NOW, &mut signed(name, password)).unwrap_err();
        assert_eq!(failure, AuthFailure::WrongPassword);
    }
}

#[test]
fn each_of_several_secrets_is_tried_in_turn() {
    let authenticator = authenticator(&["first", "second", "third"], &[]);
    for (index, text) in ["first", "second", "third"].into_iter().enumerate() {
        let minted = time_limited::mint(&secret(text), Some("alice"), NOW + 60);
        let mut right = signed(&minted.username, &minted.password);
        let mut asked = 0;
        let mut counted = |key: &LongTermKey| {
            asked += 1;
            right(key)
        };
        let identity = authenticator.authenticate(&minted.username, NOW, &mut counted).unwrap();
        assert_eq!((identity.user, identity.expires), ("alice", Some(NOW + 60)));
        assert_eq!(asked, index + 1);
    }
}

#[test]
fn quotas_count_the_name_or_else_the_whole_username() {
    let authenticator = authenticator(&["north-star"], &[]);
    let user = |username| authenticator.authenticate(username, NOW, &mut |_| true).unwrap().user;
    assert_eq!(user("1800000000:alice"), "alice");
    assert_eq!(user("1800000000:alice:phone"), "alice:phone");
    assert_eq!(user("1800000000"), "1800000000");
    assert_eq!(user("1800000000:"), "1800000000:");
}

#[test]
fn an_expired_credential_is_an_identity_that_says_for_how_long() {
    let authenticator = authenticator(&["north-star"], &[]);
    let minted = time_limited::mint(&secret("north-star"), Some("alice"), NOW);
    let identity = authenticator
        .authenticate(&minted.username, NOW + 90, &mut signed(&minted.username, &minted.password))
        .unwrap();
    assert_eq!(identity.expired_for(NOW - 1), None);
    assert_eq!(identity.expired_for(NOW), Some(0));
    assert_eq!(identity.expired_for(NOW + 90), Some(90));
}

// RFC 8489 §9.2.4: a wrong username and a wrong integrity are both 401; the operator is told which
#[test]
fn failures_say_what_is_wrong() {
    let with_secrets = authenticator(&["first", "second"], &[("bob", "builder")]);
    let failure = |username| with_secrets.authenticate(username, NOW, &mut |_| false).unwrap_err();
    assert_eq!(failure("mallory"), AuthFailure::UnknownUser);
    assert_eq!(failure(""), AuthFailure::UnknownUser);
    assert_eq!(failure("alice:1800000000"), AuthFailure::ExpiryBehindName);
    assert_eq!(failure("1800000000:alice"), AuthFailure::WrongSecret { tried: 2 });
    let expired = failure("1699996400:alice");
    assert_eq!(expired, AuthFailure::WrongSecretAndExpired { tried: 2, ago_seconds: 3_600 });
    assert!(expired.to_string().contains("expired 1 h ago"), "{expired}");

    let without = authenticator(&[], &[("bob", "builder")]);
    let failure = without.authenticate("1800000000:alice", NOW, &mut |_| true).unwrap_err();
    assert_eq!(failure, AuthFailure::NoSecret);
}

#[test]
fn an_expiry_in_milliseconds_is_refused_even_with_the_right_secret() {
    let authenticator = authenticator(&["north-star"], &[]);
    let failure = authenticator.authenticate("1700000000000:alice", NOW, &mut |_| true).unwrap_err();
    assert_eq!(failure, AuthFailure::ExpiryInMilliseconds { expires: 1_700_000_000_000 });
    assert!(failure.to_string().contains("milliseconds"), "{failure}");
}

#[test]
fn a_static_user_goes_before_the_time_limited_form() {
    let authenticator = authenticator(&["north-star"], &[("1700000000", "builder")]);
    let identity = authenticator.authenticate("1700000000", NOW, &mut |_| true).unwrap();
    assert_eq!(identity.expires, None);
    let failure = authenticator.authenticate("1700000000", NOW, &mut |_| false).unwrap_err();
    assert_eq!(failure, AuthFailure::WrongPassword);
}

// RFC 8489 §9.2.2: trailing NULs of the USERNAME do not count
#[test]
fn trailing_nuls_of_a_username_do_not_count() {
    let authenticator = authenticator(&["north-star"], &[("bob", "builder")]);
    let identity = authenticator.authenticate("bob\0\0", NOW, &mut signed("bob", "builder")).unwrap();
    assert_eq!(identity.user, "bob");
}

#[test]
fn debug_shows_names_but_no_secret() {
    let authenticator = authenticator(&["north-star"], &[("bob", "builder")]);
    let identity = authenticator.authenticate("bob", NOW, &mut |_| true).unwrap();
    let shown = format!("{authenticator:?} {identity:?}");
    assert_eq!(authenticator.realm(), REALM);
    assert!(shown.contains("bob") && shown.contains(REALM), "{shown}");
    assert!(!shown.contains("north") && !shown.contains("builder"), "{shown}");
    assert!(shown.contains("LongTermKey(redacted)") && shown.contains("Secret(redacted)"), "{shown}");
}
