//! `[[http.keys]]`.

use super::*;

const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

/// Returns a configuration with these lines in a key.
fn key(lines: &str) -> String {
    format!("[http]\nlisten = [\"127.0.0.1:9641\"]\n[[http.keys]]\n{lines}")
}

#[test]
fn a_key_needs_a_name_and_a_hash() {
    let advice = "`turnserver";
    let found = errors(&key(""));
    assert_eq!(found.len(), 2, "{found:?}");
    for (error, missing) in found.iter().zip(["`name`", "`sha256`"]) {
        assert!(error.starts_with("3:1: ") && error.contains(missing), "{error}");
        assert!(error.contains("`turn-credential key` makes a key") && !error.contains(advice), "{error}");
    }
}

#[test]
fn a_key_in_place_of_its_hash_is_an_error_that_does_not_repeat_it() {
    let error = error(&key("name = \"a\"\nsha256 = \"turn_the-key-itself\""));
    assert!(error.starts_with("5:10: ") && error.contains("64 hexadecimal digits"), "{error}");
    assert!(!error.contains("the-key-itself"), "{error}");
}

#[test]
fn wrong_values_of_a_key_are_named() {
    for (line, part) in [
        ("user-prefix = \"a\\n\"", "control character"),
        ("origins = [\"https://a/\"]", "`https://a/` is not an origin"),
        ("origins = [\"https://a\", \"https://a\"]", "twice"),
        ("ttl = 5", "between 60 and 31536000"),
        ("ttl = \"400d\"", "between 1m and 365d"),
        ("requests-per-second = 10001", "between 0 and 10000"),
        ("sha265 = \"\"", "did you mean `sha256`?"),
    ] {
        let error = error(&key(&format!("name = \"a\"\nsha256 = \"{HASH}\"\n{line}\n")));
        assert!(error.starts_with("6:") && error.contains(part), "{error}");
    }
    let bad_name = error(&key(&format!("name = \"a b\"\nsha256 = \"{HASH}\"")));
    assert!(bad_name.contains("letters, digits"), "{bad_name}");
}

#[test]
fn two_keys_have_different_names_and_hashes() {
    let one = format!("name = \"a\"\nsha256 = \"{HASH}\"\n");
    let found = errors(&key(&format!("{one}[[http.keys]]\n{one}")));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("used twice") && found[1].contains("same `sha256`"), "{found:?}");
}

#[test]
fn keys_that_cross_the_network_unencrypted_or_have_no_listener_cause_a_warning() {
    let key = format!("[[http.keys]]\nname = \"a\"\nsha256 = \"{HASH}\"\n");
    let of = |http: &str| warnings(&format!("[http]\n{http}{key}"));
    assert!(of("").iter().any(|warning| warning.contains("the control socket does not serve credentials")));
    assert!(of("listen = [\"192.0.2.7:80\"]\n").iter().any(|warning| warning.contains("unencrypted")));
    assert_eq!(of("listen = [\"127.0.0.1:80\", \"[::1]:80\"]\n"), [""; 0]);
}

#[test]
fn keys_without_a_secret_cause_a_warning() {
    let users = "[auth]\nusers = [{ name = \"ann\", password = \"north wind north\" }]\n";
    let http = key(&format!("name = \"a\"\nsha256 = \"{HASH}\"\n"));
    let [warning] = <[String; 1]>::try_from(warnings(&format!("{users}{http}"))).unwrap();
    assert!(warning.starts_with("3:1: ") && warning.contains("there is no secret"), "{warning}");
    assert_eq!(warnings(&http), [""; 0]);
}
