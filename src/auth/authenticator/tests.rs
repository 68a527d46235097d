use super::*;
use crate::auth::DERIVATIONS;

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

impl Authenticator {
    /// Authenticates a request with USERNAME and without PASSWORD-ALGORITHM.
    fn by_name(
        &self,
        username: &str,
        unix_now: u64,
        matches: &mut dyn FnMut(&LongTermKey) -> bool,
    ) -> Result<Rc<Identity>, AuthFailure> {
        self.authenticate(Some(username), KeyAlgorithm::Md5, unix_now, None, matches)
    }
}

/// Returns the integrity check of a request that is signed with the key of `username` and `password`.
fn signed(username: &str, password: &str) -> impl FnMut(&LongTermKey) -> bool {
    let key = LongTermKey::derive(username, REALM, password.as_bytes());
    move |candidate| *candidate == key
}

#[test]
fn a_hash_with_a_former_realm_names_the_user_and_its_key_makes_no_new_identity() {
    let authenticator = authenticator(&[], &[("ann", "password")]).with_former_realms(vec!["old.example".to_owned()]);
    assert_eq!(authenticator.username_for(&userhash("ann", "old.example")), Some("ann"));
    assert_eq!(authenticator.username_for(&userhash("ann", REALM)), Some("ann"));
    let old = LongTermKey::derive("ann", "old.example", b"password");
    assert_eq!(
        authenticator.by_name("ann", NOW, &mut |candidate| *candidate == old).err(),
        Some(AuthFailure::WrongPassword)
    );
}

// From Python: md5(username ":" realm ":" base64(hmac_sha1("north-star", username)))
#[test]
fn the_key_of_a_time_limited_credential_is_the_one_that_python_computes() {
    let authenticator = authenticator(&["north-star"], &[]);
    let mut candidates = Vec::new();
    let result = authenticator.by_name("1700000000:alice", 0, &mut |key| {
        candidates.push(u128::from_be_bytes(key.as_bytes().try_into().unwrap()));
        true
    });
    assert_eq!(candidates, [0xb2a0_1cd8_b6b1_bed4_a312_9efd_021c_3dd8]);
    assert_eq!(result.unwrap().key().as_bytes(), &candidates[0].to_be_bytes());
}

#[test]
fn a_static_user_is_authenticated_by_the_password() {
    let authenticator = authenticator(&["north-star"], &[("bob", "builder"), ("eve", "dropper")]);
    let identity = authenticator.by_name("bob", NOW, &mut signed("bob", "builder")).unwrap();
    assert_eq!((identity.user(), identity.expires()), ("bob", None));
    assert_eq!(identity.expired_for(u64::MAX), None);
    assert_eq!(*identity.key(), LongTermKey::derive("bob", REALM, b"builder"));
    for (name, password) in [("bob", "dropper"), ("eve", "builder")] {
        let failure = authenticator.by_name(name, NOW, &mut signed(name, password)).unwrap_err();
        assert_eq!(failure, AuthFailure::WrongPassword);
    }
}

#[test]
fn a_static_user_is_authenticated_by_the_key_alone() {
    let key = LongTermKey::derive("ann", REALM, b"password");
    let authenticator = authenticator(&[], &[("bob", "builder")]).with_md5_keys([("ann".to_owned(), key.clone())]);
    let identity = authenticator.by_name("ann", NOW, &mut signed("ann", "password")).unwrap();
    assert_eq!((identity.user(), identity.expires(), identity.key()), ("ann", None, &key));
    assert_eq!(authenticator.standing(&identity), Standing::Valid);
    assert_eq!(authenticator.username_for(&userhash("ann", REALM)), Some("ann"));
    let failure = authenticator.by_name("ann", NOW, &mut signed("ann", "builder")).unwrap_err();
    assert_eq!(failure, AuthFailure::WrongPassword);
    // With another key, the identity has no credentials any more.
    let other = LongTermKey::derive("ann", "old.example", b"password");
    let changed = Authenticator::new(REALM.to_owned(), Vec::new(), []).with_md5_keys([("ann".to_owned(), other)]);
    assert_eq!(changed.standing(&identity), Standing::Removed);
}

// RFC 8489 §9.2.4: a client chooses the first announced algorithm that it supports, and there is no key for SHA-256.
#[test]
fn a_user_with_an_md5_key_alone_prevents_password_algorithms() {
    let key = LongTermKey::derive("ann", REALM, b"password");
    let authenticator = authenticator(&["north-star"], &[("bob", "builder")]);
    assert!(authenticator.features().password_algorithms);
    let authenticator = authenticator.with_md5_keys([("ann".to_owned(), key)]);
    assert!(!authenticator.features().password_algorithms);
    // A request with a nonce from before.
    let mut checks = 0;
    let result = authenticator.authenticate(Some("ann"), KeyAlgorithm::Sha256, NOW, None, &mut |_| {
        checks += 1;
        true
    });
    assert_eq!((result.unwrap_err(), checks), (AuthFailure::WrongPassword, 1));
}

#[test]
fn each_of_several_secrets_is_tried_in_order() {
    let authenticator = authenticator(&["first", "second", "third"], &[]);
    for (index, text) in ["first", "second", "third"].into_iter().enumerate() {
        let minted = time_limited::mint(&secret(text), Some("alice"), NOW + 60);
        let mut right = signed(&minted.username, &minted.password);
        let mut checks = 0;
        let mut counted = |key: &LongTermKey| {
            checks += 1;
            right(key)
        };
        let identity = authenticator.by_name(&minted.username, NOW, &mut counted).unwrap();
        assert_eq!((identity.user(), identity.expires()), ("alice", Some(NOW + 60)));
        assert_eq!(checks, index + 1);
    }
}

#[test]
fn quotas_apply_to_the_name_or_else_the_whole_username() {
    let authenticator = authenticator(&["north-star"], &[]);
    let user = |username| authenticator.by_name(username, NOW, &mut |_| true).unwrap().user().to_owned();
    assert_eq!(user("1800000000:alice"), "alice");
    assert_eq!(user("1800000000:alice:phone"), "alice:phone");
    assert_eq!(user("1800000000"), "1800000000");
    assert_eq!(user("1800000000:"), "1800000000:");
}

#[test]
fn an_expired_credential_is_an_identity_with_the_time_since_the_expiry() {
    let authenticator = authenticator(&["north-star"], &[]);
    let minted = time_limited::mint(&secret("north-star"), Some("alice"), NOW);
    let identity =
        authenticator.by_name(&minted.username, NOW + 90, &mut signed(&minted.username, &minted.password)).unwrap();
    assert_eq!(identity.expired_for(NOW - 1), None);
    assert_eq!(identity.expired_for(NOW), Some(0));
    assert_eq!(identity.expired_for(NOW + 90), Some(90));
}

// RFC 8489 §9.2.4: a wrong username and a wrong integrity are both 401. The log distinguishes them.
#[test]
fn failures_have_distinct_reasons() {
    let with_secrets = authenticator(&["first", "second"], &[("bob", "builder")]);
    let failure = |username| with_secrets.by_name(username, NOW, &mut |_| false).unwrap_err();
    assert_eq!(failure("mallory"), AuthFailure::UnknownUser);
    assert_eq!(failure(""), AuthFailure::UnknownUser);
    let last = failure("alice:1800000000");
    assert_eq!(last, AuthFailure::WrongSecret { tried: 2, reading: Reading::ExpiryLast });
    assert!(last.to_string().contains("read as <name>:<unix expiry>"), "{last}");
    let reading = Reading::ExpiryFirst;
    assert_eq!(failure("1800000000:alice"), AuthFailure::WrongSecret { tried: 2, reading });
    let expired = failure("1699996400:alice");
    assert_eq!(expired, AuthFailure::WrongSecretAndExpired { tried: 2, ago_seconds: 3_600, reading });
    assert!(expired.to_string().contains("expired 1 h ago"), "{expired}");

    let without = authenticator(&[], &[("bob", "builder")]);
    let failure = without.by_name("1800000000:alice", NOW, &mut |_| true).unwrap_err();
    assert_eq!(failure, AuthFailure::NoSecret);
}

#[test]
fn an_expiry_in_milliseconds_fails_even_with_the_right_secret() {
    let authenticator = authenticator(&["north-star"], &[]);
    let failure = authenticator.by_name("1700000000000:alice", NOW, &mut |_| true).unwrap_err();
    assert_eq!(failure, AuthFailure::ExpiryInMilliseconds { expires: 1_700_000_000_000 });
    assert!(failure.to_string().contains("milliseconds"), "{failure}");
}

#[test]
fn a_static_user_takes_precedence_over_a_time_limited_username() {
    let authenticator = authenticator(&["north-star"], &[("1700000000", "builder")]);
    let identity = authenticator.by_name("1700000000", NOW, &mut |_| true).unwrap();
    assert_eq!(identity.expires(), None);
    let failure = authenticator.by_name("1700000000", NOW, &mut |_| false).unwrap_err();
    assert_eq!(failure, AuthFailure::WrongPassword);
}

// RFC 8489 §9.2.2
#[test]
fn trailing_nuls_of_a_username_are_ignored() {
    let authenticator = authenticator(&["north-star"], &[("bob", "builder")]);
    let identity = authenticator.by_name("bob\0\0", NOW, &mut signed("bob", "builder")).unwrap();
    assert_eq!(identity.user(), "bob");
}

#[test]
fn debug_shows_names_but_no_secret() {
    let authenticator = authenticator(&["north-star"], &[("bob", "builder")]);
    let identity = authenticator.by_name("bob", NOW, &mut |_| true).unwrap();
    let shown = format!("{authenticator:?} {identity:?}");
    assert_eq!(authenticator.realm(), REALM);
    assert!(shown.contains("bob") && shown.contains(REALM), "{shown}");
    assert!(!shown.contains("north") && !shown.contains("builder"), "{shown}");
    assert!(shown.contains("LongTermKey(redacted)") && shown.contains("Secret(redacted)"), "{shown}");
}

// RFC 8489 §9.2.2, §18.5.1. From Python: hashlib.sha256(username ":" realm ":" password)
#[test]
fn keys_are_derived_with_the_algorithm_of_the_client() {
    let authenticator = authenticator(&["north-star"], &[("bob", "builder")]);
    let hex = |key: &LongTermKey| key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    for (name, expected) in [
        ("bob", "96392e9b3639d6dda613ecc17dcd147bc84bd04b64defb3f9ce6c0122e3189f9"),
        ("1700000000:alice", "71a216d3144d684488cada1ee4ca72676e3bb0d022abaaead4d9a45edc16d83e"),
    ] {
        let mut candidates = Vec::new();
        let identity = authenticator.authenticate(Some(name), KeyAlgorithm::Sha256, 0, None, &mut |key| {
            candidates.push(hex(key));
            true
        });
        assert_eq!(
            (hex(identity.unwrap().key()).as_str(), candidates.as_slice()),
            (expected, &[expected.to_owned()][..])
        );
    }
    let failure = authenticator.authenticate(Some("bob"), KeyAlgorithm::Sha256, 0, None, &mut signed("bob", "builder"));
    assert_eq!(failure.unwrap_err(), AuthFailure::WrongPassword, "the MD5 key is different");
}

// RFC 8489 Appendix B.1
#[test]
fn the_userhash_of_the_rfc_example_is_found() {
    let name = "\u{30DE}\u{30C8}\u{30EA}\u{30C3}\u{30AF}\u{30B9}";
    let users = [(name.to_owned(), secret("TheMatrIX")), ("bob".to_owned(), secret("builder"))];
    let authenticator = Authenticator::new("example.org".to_owned(), Vec::new(), users);
    let mut userhash = [
        0x4a, 0x3c, 0xf3, 0x8f, 0xef, 0x69, 0x92, 0xbd, 0xa9, 0x52, 0xc6, 0x78, 0x04, 0x17, 0xda, 0x0f, 0x24, 0x81,
        0x94, 0x15, 0x56, 0x9e, 0x60, 0xb2, 0x05, 0xc4, 0x6e, 0x41, 0x40, 0x7f, 0x17, 0x04,
    ];
    assert_eq!(authenticator.username_for(&userhash), Some(name));
    userhash[31] ^= 1;
    assert_eq!(authenticator.username_for(&userhash), None);
}

#[test]
fn username_anonymity_requires_static_users_and_no_secret() {
    let anonymity = |secrets: &[&str], users: &[(&str, &str)]| authenticator(secrets, users).features();
    let features = |username_anonymity| SecurityFeatures { password_algorithms: true, username_anonymity };
    assert_eq!(anonymity(&[], &[("bob", "builder")]), features(true));
    assert_eq!(anonymity(&["north-star"], &[("bob", "builder")]), features(false));
    assert_eq!(anonymity(&["north-star"], &[]), features(false));
    assert_eq!(anonymity(&[], &[]), features(false));
}

// The response time must not reveal which usernames exist.
#[test]
fn an_unknown_name_takes_as_many_integrity_checks_as_a_wrong_password() {
    let authenticator = authenticator(&["north-star"], &[("bob", "builder")]);
    let without = Authenticator::new(REALM.to_owned(), Vec::new(), [("bob".to_owned(), secret("builder"))]);
    let names = ["bob", "mallory", "", "mallory:1800000000", "1800000000:mallory", "1800000000000:mallory"];
    for (name, authenticator) in
        names.into_iter().map(Some).chain([None]).flat_map(|name| [(name, &authenticator), (name, &without)])
    {
        let mut checks = 0;
        let result = authenticator.authenticate(name, KeyAlgorithm::Md5, NOW, None, &mut |_| {
            checks += 1;
            false
        });
        assert!(result.is_err());
        assert_eq!(checks, 1, "{name:?}");
    }
}

#[test]
fn the_dummy_key_authenticates_no_request() {
    let authenticator = authenticator(&[], &[("bob", "builder")]);
    let failure = |name| authenticator.authenticate(name, KeyAlgorithm::Md5, NOW, None, &mut |_| true).unwrap_err();
    assert_eq!(failure(None), AuthFailure::UnknownUserhash);
    assert_eq!(failure(Some("mallory")), AuthFailure::UnknownUser);
    assert_eq!(failure(Some("")), AuthFailure::UnknownUser);
}

fn derivations() -> usize {
    DERIVATIONS.get()
}

#[test]
fn a_known_identity_is_authenticated_without_deriving_a_key() {
    let authenticator = authenticator(&["first", "second", "third"], &[("bob", "builder")]);
    let minted = time_limited::mint(&secret("third"), Some("alice"), NOW + 60);
    for (name, password) in [(minted.username.as_str(), minted.password.as_str()), ("bob", "builder")] {
        let mut right = signed(name, password);
        let identity = authenticator.by_name(name, NOW, &mut right).unwrap();
        let (before, mut checks) = (derivations(), 0);
        let again = authenticator.authenticate(Some(name), KeyAlgorithm::Md5, NOW + 90, Some(&identity), &mut |key| {
            checks += 1;
            right(key)
        });
        let again = again.unwrap();
        assert!(Rc::ptr_eq(&again, &identity));
        assert_eq!((derivations() - before, checks), (0, 1), "{name}");
        assert_eq!(again.expired_for(NOW + 90), identity.expires().map(|_| 30), "{name}");
    }
}

#[test]
fn an_identity_of_a_former_configuration_does_not_hide_the_new_key() {
    let former = authenticator(&["old"], &[("bob", "hush")]);
    let current = authenticator(&["new", "old"], &[("bob", "quiet")]);
    let [old, new] = ["old", "new"].map(|text| time_limited::mint(&secret(text), Some("alice"), NOW + 60));
    for (name, before, after) in
        [(old.username.as_str(), old.password.as_str(), new.password.as_str()), ("bob", "hush", "quiet")]
    {
        let known = former.by_name(name, NOW, &mut signed(name, before)).unwrap();
        let mut right = signed(name, after);
        assert!(current.authenticate(Some(name), KeyAlgorithm::Md5, NOW, Some(&known), &mut right).is_ok(), "{name}");
    }
}

// While secrets are rotated, an application may mint two credentials with one username.
#[test]
fn a_credential_of_another_secret_is_valid_in_addition_to_the_known_one() {
    let authenticator = authenticator(&["new", "old"], &[]);
    let [old, new] = ["old", "new"].map(|text| time_limited::mint(&secret(text), Some("alice"), NOW + 60));
    assert_eq!(old.username, new.username);
    let name = Some(old.username.as_str());
    let known = authenticator.by_name(&old.username, NOW, &mut signed(&old.username, &old.password)).unwrap();
    let mut right = signed(&new.username, &new.password);
    let identity = authenticator.authenticate(name, KeyAlgorithm::Md5, NOW, Some(&known), &mut right).unwrap();
    assert_ne!(identity.key(), known.key());
    assert_eq!(identity.user(), "alice");
}

#[test]
fn a_known_identity_authenticates_no_other_name_or_algorithm() {
    let authenticator = authenticator(&["north-star"], &[("bob", "builder")]);
    let minted = time_limited::mint(&secret("north-star"), Some("alice"), NOW + 60);
    let mut right = signed(&minted.username, &minted.password);
    let alice = authenticator.by_name(&minted.username, NOW, &mut right).unwrap();
    let other = time_limited::mint(&secret("north-star"), Some("eve"), NOW + 60);
    for (name, algorithm) in
        [("bob", KeyAlgorithm::Md5), (&other.username, KeyAlgorithm::Md5), (&minted.username, KeyAlgorithm::Sha256)]
    {
        let result = authenticator.authenticate(Some(name), algorithm, NOW, Some(&alice), &mut right);
        assert!(result.is_err(), "{name}");
    }
}

// The response time must not reveal which users are cached.
#[test]
fn a_wrong_password_takes_as_many_checks_whether_its_user_is_known_or_not() {
    let authenticator = authenticator(&["first", "second", "third"], &[("bob", "builder")]);
    let minted = time_limited::mint(&secret("second"), Some("alice"), NOW + 60);
    for (name, password, expected) in
        [(minted.username.as_str(), minted.password.as_str(), (3, 3)), ("bob", "builder", (0, 1))]
    {
        let identity = authenticator.by_name(name, NOW, &mut signed(name, password)).unwrap();
        for known in [None, Some(&identity)] {
            let (before, mut checks) = (derivations(), 0);
            let result = authenticator.authenticate(Some(name), KeyAlgorithm::Md5, NOW, known, &mut |_| {
                checks += 1;
                false
            });
            assert!(matches!(result, Err(AuthFailure::WrongSecret { tried: 3, .. } | AuthFailure::WrongPassword)));
            assert_eq!((derivations() - before, checks), expected, "{name}");
        }
    }
}

#[test]
fn a_credential_with_the_name_first_has_that_user() {
    let authenticator = authenticator(&["north-star"], &[]);
    for (username, user) in [("alice:1700000000", "alice"), ("17:1700000000", "17"), ("a:b:1700000000", "a:b")] {
        let identity = authenticator.by_name(username, NOW, &mut |_| true).unwrap();
        assert_eq!((identity.user(), identity.username()), (user, username));
        assert_eq!((identity.expires(), identity.reading()), (Some(NOW), Reading::ExpiryLast));
    }
}
