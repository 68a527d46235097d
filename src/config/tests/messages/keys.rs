//! Unknown keys, keys of coturn, values of the wrong type or range.

use super::*;

#[test]
fn an_unknown_key_is_reported_with_its_position_and_a_similar_key() {
    assert_eq!(error("relam = \"x\""), "1:1: unknown key `relam` in the top level; did you mean `realm`?");
    assert_eq!(
        error("[limits]\nallocations_per_user = 3"),
        "2:1: unknown key `allocations_per_user` in `[limits]`; did you mean `allocations-per-user`?"
    );
    assert_eq!(
        error("[[auth.users]]\nname = \"a\"\npassword = \"b\"\n  pasword = \"c\""),
        "4:3: unknown key `pasword` in `[[auth.users]]`; did you mean `password`?"
    );
}

#[test]
fn an_unknown_key_of_another_table_is_reported_with_that_table() {
    assert_eq!(
        error("[listen]\nrealm = \"x\""),
        "2:1: unknown key `realm` in `[listen]`; it belongs at the top of the file, before the first `[section]`"
    );
    assert_eq!(error("ports = \"1-2\""), "1:1: unknown key `ports` in the top level; it belongs in `[relay]`");
}

#[test]
fn an_unknown_key_without_a_similar_one_is_reported_with_the_valid_keys() {
    assert_eq!(
        error("[peers]\nfrobnicate = 1"),
        "2:1: unknown key `frobnicate` in `[peers]`; valid keys are `allow`, `deny` and `nat64-prefixes`"
    );
    assert_eq!(
        error("[peers]\n\"a\\nb\" = 1"),
        "2:1: unknown key `a\\nb` in `[peers]`; valid keys are `allow`, `deny` and `nat64-prefixes`"
    );
}

#[test]
fn the_valid_keys_of_a_table_are_listed_once() {
    assert_eq!(
        errors(
            "[peers]\nzzz = 1\nfrobnicate = 1\n[log]\nabcdefgh = 1\n[[auth.users]]\nx = 1\nname = \"a\"\npassword = \"b\"\n[[auth.users]]\nx = 1\nname = \"c\"\npassword = \"d\""
        ),
        [
            "2:1: unknown key `zzz` in `[peers]`; valid keys are `allow`, `deny` and `nat64-prefixes`",
            "3:1: unknown key `frobnicate` in `[peers]`",
            "5:1: unknown key `abcdefgh` in `[log]`; valid keys are `level`, `format`, `client-addresses` and `usernames`",
            "7:1: unknown key `x` in `[[auth.users]]`; valid keys are `name`, `password`, `key` and `allocations`",
            "11:1: unknown key `x` in `[[auth.users]]`",
        ]
    );
}

#[test]
fn a_configuration_of_coturn_is_recognized_and_its_keys_are_translated() {
    let header = "1:1: this is a configuration of coturn, but the server reads TOML with keys of its own: \
                  convert it with `turnserver import-coturn t.toml --output NEW`";
    assert_eq!(
        errors(
            "# coturn\nlistening-port=3478\nfingerprint\nuse-auth-secret\nstatic-auth-secret=n33dle\n\
                realm=turn.example.org\ndenied-peer-ip=10.0.0.0-10.255.255.255\ndenied-peer-ip=::1\n"
        ),
        [
            header,
            "2:1: `listening-port` is a key of coturn; use `listen.udp` and `listen.tcp`",
            "3:1: `fingerprint` is a key of coturn without a counterpart: remove it",
            "4:1: `use-auth-secret` is a key of coturn without a counterpart: remove it",
            "5:1: `static-auth-secret` is a key of coturn; use `auth.secrets`",
            "7:1: `denied-peer-ip` is a key of coturn; use `peers.deny`",
        ]
    );
    // It is valid TOML.
    assert_eq!(errors("min-port=49152\nmax-port=65535\n")[0], header);
    assert_eq!(
        error("static-auth-secret = \"x\""),
        "1:1: unknown key `static-auth-secret` in the top level; `static-auth-secret` is a key of coturn; \
         use `auth.secrets`"
    );
}

#[test]
fn a_value_of_the_wrong_type_is_reported_with_the_expected_type() {
    for (text, expected) in [
        ("realm = 1", "1:9: `realm` must be a string, not a whole number"),
        ("workers = 1.5", "1:11: `workers` must be a whole number, not a decimal number"),
        ("log = \"info\"", "1:7: `log` must be a table, not a string"),
        ("[listen]\nudp = \"[::]:1\"", "2:7: `listen.udp` must be a list: put the value in brackets, [\"…\"]"),
        ("[listen]\ntcp = \"[::]:1\"", "2:7: `listen.tcp` must be a list: put the value in brackets, [\"…\"]"),
        ("[listen]\nudp = [3478]", "2:8: `listen.udp` must be a list of strings, not a whole number"),
        ("[listen]\nudp = 1979-05-27", "2:7: `listen.udp` must be a list of strings, not a date or time"),
        ("[compat]\nrfc5766-channels = 1", "2:20: `compat.rfc5766-channels` must be true or false, not a whole number"),
        (
            "[compat]\ndraft-dual-allocation = \"yes\"",
            "2:25: `compat.draft-dual-allocation` must be true or false, not a string",
        ),
        ("[auth]\nusers = 1", "2:9: `auth.users` must be a list of tables: write each one as `[[auth.users]]`"),
        ("[auth]\nusers = [1]", "2:10: `auth.users` must be a list of tables, not a whole number"),
        ("[auth]\nexpiry-grace = true", "2:16: `auth.expiry-grace` must be a duration such as \"1h\", not a boolean"),
        (
            "[relay]\naddresses = 5",
            "2:13: `relay.addresses` must be \"auto\" or a list of addresses, not a whole number",
        ),
        ("[relay]\nexternal = []", "2:12: `relay.external` must be a table, not a list"),
        (
            "[relay.external]\n\"10.0.0.1\" = 1",
            "2:14: `relay.external` must be a table of quoted addresses, not a whole number",
        ),
    ] {
        assert_eq!(error(text), expected, "{text}");
    }
}

#[test]
fn a_number_out_of_range_is_reported_with_the_range() {
    for (text, expected) in [
        ("workers = -1", "1:11: `workers` must be between 0 and 1024"),
        ("workers = 1025", "1:11: `workers` must be between 0 and 1024"),
        ("limits.allocations = 4294967296", "1:22: `limits.allocations` must be between 0 and 4294967295"),
        (
            "limits.permissions-per-allocation = 0",
            "1:37: `limits.permissions-per-allocation` must be between 1 and 65535",
        ),
        (
            "limits.channels-per-allocation = 0x4001",
            "1:34: `limits.channels-per-allocation` must be between 1 and 16384",
        ),
        (
            "limits.allocations-per-second-per-user = 1001",
            "1:42: `limits.allocations-per-second-per-user` must be between 0 and 1000",
        ),
        ("limits.peers-per-second = -1", "1:27: `limits.peers-per-second` must be between 0 and 10000"),
        (
            "limits.bytes-per-second-per-allocation = 4294967296",
            "1:42: `limits.bytes-per-second-per-allocation` must be between 0 and 4294967295",
        ),
        (
            "limits.bytes-per-second-per-user = -1",
            "1:36: `limits.bytes-per-second-per-user` must be between 0 and 4294967295",
        ),
        ("limits.connections = -1", "1:22: `limits.connections` must be between 0 and 4294967295"),
        (
            "limits.connections-per-source = 4294967296",
            "1:33: `limits.connections-per-source` must be between 0 and 4294967295",
        ),
        (
            "limits.allocated-connections-per-source = 4294967296",
            "1:43: `limits.allocated-connections-per-source` must be between 0 and 4294967295",
        ),
        ("limits.unverified-responses = 1001", "1:31: `limits.unverified-responses` must be between 0 and 1000"),
        ("limits.failed-authentications = 1001", "1:33: `limits.failed-authentications` must be between 0 and 1000"),
        ("workers = 99999999999999999999999999999999999999999", "1:11: `workers` must be between 0 and 1024"),
    ] {
        assert_eq!(error(text), expected, "{text}");
    }
}

#[test]
fn a_misspelled_choice_is_reported_with_the_similar_one() {
    assert_eq!(
        error("log.format = \"jsn\""),
        "1:14: `log.format` must be one of `text` and `json`, not `jsn`; did you mean `json`?"
    );
    let (text, expected) = (
        "[compat]\nicmp-indications = \"alway\"",
        "2:20: `compat.icmp-indications` must be one of `auto`, `always` and `never`, not `alway`; did you mean \
             `always`?",
    );
    assert_eq!(error(text), expected);
}

#[test]
fn no_error_and_no_warning_quotes_a_secret() {
    const NEEDLE: &str = "n33dle";
    for text in [
        "auth = \"n33dle\"",
        "[auth]\nsecrets = \"n33dle\"",
        "[auth]\nsecret = \"n33dle\"",
        "[auth]\nsecrets = [\"n33dle\", \"\"]",
        "[auth]\nsecrets = [\"n33dle\", 1]",
        "[auth]\nsecrets = [\"n33dle]\n",
        "[auth]\nsecrets = [n33dle]\n",
        "[auth]\nsecrets = [\"\\qn33dle\"]\n",
        "[auth]\nsecrets = [\n\"n33dle\"\n\"n33dle\"\n]\n",
        "[auth]\nsecrets = { n33dle\n",
        "auth = { secrets = [\"n33dle\"], relm = 1 }",
        "[auth]\nusers = \"n33dle\"",
        "[auth]\nusers = [\"n33dle\"]",
        "[auth]\nusers = [{ name = \"a\", password = [\"n33dle\"] }]",
        "[[auth.users]]\npassword = \"n33dle\"",
        "[[auth.users]]\nname = \"a\"\npassword = \"n33dle\"\npassword = \"n33dle\"",
        "[[auth.users]]\nname = \"a\"\npasword = \"n33dle\"",
    ] {
        let errors = Config::parse(text, "t.toml").unwrap_err();
        assert!(!errors.to_string().contains(NEEDLE), "{errors}");
        assert!(!format!("{errors:?}").contains(NEEDLE));
    }
    let config =
        Config::parse("[auth]\nsecrets = [\"n33dle\"]\n[[auth.users]]\nname = \"a\"\npassword = \"n33dle\"", "t")
            .unwrap();
    assert!(!format!("{config:?} {config:#?} {}", config.summary()).contains(NEEDLE));
}
