use super::*;

const NOW: u64 = 1_700_000_000;

fn secrets(texts: &[&str]) -> Vec<Secret> {
    texts.iter().map(|text| Secret::new(*text).unwrap()).collect()
}

fn north_star() -> Secret {
    Secret::new("north-star").unwrap()
}

#[test]
fn usernames_are_split_at_the_first_colon() {
    let parsed = |username| {
        let parsed = TimeLimitedUsername::parse(username);
        assert!(parsed.is_none_or(|parsed| parsed.reading == Reading::ExpiryFirst), "{username}");
        parsed.map(|parsed| (parsed.expires, parsed.user))
    };
    assert_eq!(parsed("1700000000:alice"), Some((NOW, "alice")));
    assert_eq!(parsed("1700000000"), Some((NOW, "")));
    assert_eq!(parsed("1700000000:"), Some((NOW, "")));
    assert_eq!(parsed("1700000000:a:b"), Some((NOW, "a:b")));
    assert_eq!(parsed("0:x"), Some((0, "x")));
    assert_eq!(parsed("18446744073709551615"), Some((u64::MAX, "")));
    for other in ["", ":", ":alice", "alice", ":1700000000", "alice:1", "+1:x", "-1:x", " 1:x", "1 :x", "1.5:x", "١:x"]
    {
        assert_eq!(parsed(other), None, "{other:?}");
    }
    assert_eq!(parsed("18446744073709551616:x"), None, "one more than 64 bits hold");
}

// From `printf %s USERNAME | openssl dgst -sha1 -hmac SECRET -binary | base64`.
#[test]
fn passwords_are_those_that_openssl_computes() {
    let vectors = [
        ("north-star", "1700000000:alice", "rchw+7XvnG7mN0BXm8xDnHNSHX0="),
        ("north-star", "1700000000", "RmP6lGGpX8jd3LqscGHFfND43q4="),
        ("north-star", "4102444800:a:b c", "TDnH33bjGct3QzYDEP5uGaLlXYU="),
        ("s3cr3t ünïcode", "1700000000:alice", "klewgrP+KBtpu41MiNrpPANqaRU="),
        ("s3cr3t ünïcode", "1700000000", "PFiQ0ydIj1aIqsfnrEj5r9MAmOo="),
    ];
    for (secret, username, expected) in vectors {
        assert_eq!(*password(&Secret::new(secret).unwrap(), username), expected, "{secret} {username}");
    }
}

#[test]
fn a_minted_username_contains_the_expiry_and_the_user() {
    let named = mint(&north_star(), Some("alice"), NOW);
    assert_eq!((named.username.as_str(), named.expires), ("1700000000:alice", NOW));
    assert_eq!(*named.password, "rchw+7XvnG7mN0BXm8xDnHNSHX0=");
    let anonymous = mint(&north_star(), None, NOW);
    assert_eq!(anonymous.username, "1700000000");
    assert_eq!(*anonymous.password, "RmP6lGGpX8jd3LqscGHFfND43q4=");
}

#[test]
fn a_minted_credential_is_valid_until_its_expiry() {
    let secrets = secrets(&["old", "north-star"]);
    let minted = mint(&north_star(), Some("alice"), NOW);
    let at = |now| verify(&secrets, &minted.username, &minted.password, now);
    let valid = Valid { user: "alice", expires: NOW, secret_index: 1 };
    let expired =
        |ago_seconds| CredentialError::Expired { ago_seconds, secret_index: 1, reading: Reading::ExpiryFirst };
    assert_eq!(at(0), Ok(valid));
    assert_eq!(at(NOW - 1), Ok(valid));
    assert_eq!(at(NOW), Err(expired(0)));
    assert_eq!(at(NOW + 3 * 3_600), Err(expired(10_800)));
    assert_eq!(at(NOW + 3 * 3_600).unwrap_err().to_string(), "expired 3 h ago");
}

#[test]
fn each_of_several_secrets_is_tried() {
    let all = secrets(&["first", "second", "third"]);
    for (index, secret) in all.iter().enumerate() {
        let minted = mint(secret, None, NOW);
        let valid = verify(&all, &minted.username, &minted.password, 0).unwrap();
        assert_eq!((valid.secret_index, valid.user), (index, ""));
    }
    let other = mint(&north_star(), Some("alice"), NOW);
    let reading = Reading::ExpiryFirst;
    let wrong = verify(&all, &other.username, &other.password, 0);
    assert_eq!(wrong, Err(CredentialError::WrongSecret { tried: 3, reading }));
    assert_eq!(
        verify(&all, &other.username, &other.password, NOW + 5),
        Err(CredentialError::WrongSecretAndExpired { tried: 3, ago_seconds: 5, reading })
    );
    assert_eq!(verify(&[], &other.username, &other.password, 0), Err(CredentialError::NoSecret));
}

#[test]
fn a_password_is_valid_only_for_its_username() {
    let minted = mint(&north_star(), Some("alice"), NOW);
    let later = verify(&[north_star()], "1700009999:alice", &minted.password, 0);
    assert_eq!(later, Err(CredentialError::WrongSecret { tried: 1, reading: Reading::ExpiryFirst }));
}

#[test]
fn the_error_says_how_a_username_is_malformed() {
    let password = password(&north_star(), "1700000000:alice");
    let malformed = |username| match verify(&[north_star()], username, &password, 0) {
        Err(CredentialError::Malformed(what)) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(malformed("alice"), Malformed::NoExpiry);
    assert_eq!(malformed(""), Malformed::NoExpiry);
    assert_eq!(malformed("alice:bob"), Malformed::NoExpiry);
    assert_eq!(malformed("alice:1"), Malformed::NoExpiry);
    let milliseconds = Malformed::ExpiryInMilliseconds { expires: 1_700_000_000_000 };
    assert_eq!(malformed("1700000000000:alice"), milliseconds);
    assert_eq!(malformed("alice:1700000000000"), milliseconds);
    assert!(milliseconds.to_string().contains("milliseconds"), "{milliseconds}");
}

#[test]
fn the_last_expiry_in_seconds_is_in_the_year_5138() {
    assert!(check_username("99999999999").is_ok());
    assert!(check_username("100000000000").is_err());
}

#[test]
fn the_error_says_how_a_password_is_malformed() {
    let malformed = |password| match verify(&[north_star()], "1700000000:alice", password, 0) {
        Err(CredentialError::Malformed(what)) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(malformed("adc870fbb5ef9c6ee63740579bcc439c73521d7d"), Malformed::PasswordIsHex);
    assert_eq!(malformed("rchw-7XvnG7mN0BXm8xDnHNSHX0="), Malformed::PasswordNotBase64, "base64url");
    assert_eq!(malformed("rchw+7XvnG7mN0BXm8xDnHNSHX0"), Malformed::PasswordNotBase64, "no padding");
    assert_eq!(malformed("rchw+7XvnG7mN0BXm8xDnHNSHX0=\n"), Malformed::PasswordNotBase64, "a newline");
    assert_eq!(malformed(""), Malformed::PasswordLength { bytes: 0 });
    let sha256 = malformed("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    assert_eq!(sha256, Malformed::PasswordLength { bytes: 32 });
    assert!(sha256.to_string().contains("HMAC-SHA256"), "{sha256}");
}

#[test]
fn debug_of_a_credential_shows_no_password() {
    let minted = mint(&north_star(), Some("alice"), NOW);
    let shown = format!("{minted:?} {minted:#?}");
    assert!(shown.contains("1700000000:alice"), "{shown}");
    assert!(!shown.contains(minted.password.as_str()), "{shown}");
}

// Some applications write the name first. A name may be a number, so the part that can be a time is the expiry.
#[test]
fn the_expiry_is_the_only_part_that_is_a_plausible_time_or_else_the_first() {
    let parsed = |username| {
        let parsed = TimeLimitedUsername::parse(username).unwrap();
        (parsed.expires, parsed.user, parsed.reading)
    };
    assert_eq!(parsed("alice:1700000000"), (NOW, "alice", Reading::ExpiryLast));
    assert_eq!(parsed("a:b:1700000000"), (NOW, "a:b", Reading::ExpiryLast));
    assert_eq!(parsed("17:1700000000"), (NOW, "17", Reading::ExpiryLast));
    assert_eq!(parsed("1700000000:17"), (NOW, "17", Reading::ExpiryFirst));
    assert_eq!(parsed("1700000000:999999999"), (NOW, "999999999", Reading::ExpiryFirst));
    assert_eq!(parsed("1700000000:1800000000"), (NOW, "1800000000", Reading::Ambiguous));
    assert_eq!(parsed("1700000000:a:1800000000"), (NOW, "a:1800000000", Reading::Ambiguous));
    assert_eq!(parsed("17:18"), (17, "18", Reading::ExpiryFirst));
    // A phone number, and two times in milliseconds.
    assert_eq!(parsed("4915112345678:1700000000"), (NOW, "4915112345678", Reading::ExpiryLast));
    assert_eq!(parsed("1700000000000:1800000000000"), (1_700_000_000_000, "1800000000000", Reading::Ambiguous));
}

#[test]
fn a_credential_with_the_name_first_is_valid_until_its_expiry() {
    let (secrets, username) = (secrets(&["north-star"]), "alice:1700000000");
    let password = password(&north_star(), username);
    let at = |now| verify(&secrets, username, &password, now);
    assert_eq!(at(NOW - 1), Ok(Valid { user: "alice", expires: NOW, secret_index: 0 }));
    let expired = at(NOW + 60).unwrap_err().to_string();
    assert_eq!(expired, "expired 1 min ago (the username was read as <name>:<unix expiry>)");
    let both = verify(&secrets, "1700000000:1800000000", &password, 0).unwrap_err().to_string();
    assert!(both.ends_with("read as <unix expiry>:<name>, although the name could also be a time)"), "{both}");
}
