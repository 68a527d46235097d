//! The message for each kind of error.

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
            "5:1: unknown key `abcdefgh` in `[log]`; valid keys are `level` and `format`",
            "7:1: unknown key `x` in `[[auth.users]]`; valid keys are `name` and `password`",
            "11:1: unknown key `x` in `[[auth.users]]`",
        ]
    );
}

#[test]
fn a_configuration_of_coturn_is_recognized_and_its_keys_are_translated() {
    let header = "1:1: this is a configuration of coturn, but the server reads TOML with keys of its own: start with \
                  the turnserver.toml that comes with it";
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

const TLS: &str = "[tls]\ncertificate = \"c.pem\"\nprivate-key = \"k.pem\"\n";

#[test]
fn tls_listeners_require_a_certificate_and_vice_versa() {
    assert_eq!(
        error("[listen]\ntls = [\"[::]:5349\"]"),
        "2:7: `listen.tls` needs a certificate: set `certificate` and `private-key` in `[tls]`"
    );
    let without = "`[tls]` has no effect, because `listen.tls` and `listen.tcp` are empty: set one, for example \
                   tls = [\"[::]:5349\"], or remove `[tls]`";
    assert_eq!(error(&format!("[listen]\ntcp = []\n{TLS}")), format!("3:1: {without}"));
    let warnings = Config::parse(TLS, "t.toml").unwrap().warnings;
    assert!(warnings[0].to_string().contains("TLS is served only on the ports of `listen.tcp`"), "{warnings:?}");
    let listen = "[listen]\ntls = [\"[::]:5349\"]\n";
    assert_eq!(
        errors(&format!("{listen}[tls]")),
        [
            "3:1: `[tls]` has no `certificate`: set the path of the PEM file",
            "3:1: `[tls]` has no `private-key`: set the path of the PEM file",
        ]
    );
    assert_eq!(
        errors(&format!("{listen}[tls]\ncertificate = \"\"\nprivate-key = 1")),
        [
            "4:15: `tls.certificate` is empty: set the path of a PEM file",
            "5:15: `tls.private-key` must be a string, not a whole number",
        ]
    );
    assert_eq!(error(&format!("tls = 1\n{listen}")), "1:7: `tls` must be a table, not a whole number");
    // Only the error in the list is reported.
    assert_eq!(
        error(&format!("[listen]\ntls = [\"5349\"]\n{TLS}")),
        "2:8: `listen.tls`: `5349` has no address; did you mean `[::]:5349`?"
    );
    parse(&format!("{listen}{TLS}"));
}

#[test]
fn tcp_and_tls_may_share_a_port_with_the_same_address_or_a_wildcard() {
    let wildcards = [("[::]:443", "0.0.0.0:443"), ("0.0.0.0:443", "[::]:443")];
    for (tcp, tls) in wildcards {
        assert_eq!(
            error(&format!("[listen]\ntcp = [\"{tcp}\"]\ntls = [\"{tls}\"]\n{TLS}")),
            format!(
                "3:7: `listen.tls` has {tls} and `listen.tcp` has {tcp}, which conflict, because [::] also accepts \
                 IPv4: use the same address in both"
            )
        );
    }
    for (tcp, tls) in [
        ("[::]:443", "[::]:443"),
        ("[::]:443", "192.0.2.7:443"),
        ("192.0.2.7:443", "0.0.0.0:443"),
        ("192.0.2.7:443", "192.0.2.7:443"),
        ("[::]:80", "[::]:443"),
        ("0.0.0.0:443", "[::1]:443"),
        ("192.0.2.7:443", "192.0.2.8:443"),
        ("[::1]:443", "192.0.2.8:443"),
        ("[::]:0", "[::]:0"),
    ] {
        parse(&format!("[listen]\ntcp = [\"{tcp}\"]\ntls = [\"{tls}\"]\n{TLS}"));
    }
    parse(&format!("[listen]\nudp = []\ntcp = []\ntls = [\"[::]:443\"]\n{TLS}"));
}

#[test]
fn a_timeout_out_of_range_is_an_error() {
    for (key, value, range) in [
        ("tls-handshake", "\"0s\"", "1s and 5m"),
        ("first-request", "\"6m\"", "1s and 5m"),
        ("idle", "\"25h\"", "1s and 1d"),
        ("unauthenticated", "\"0s\"", "1s and 1d"),
    ] {
        let column = key.len() + 4;
        assert_eq!(
            error(&format!("[timeouts]\n{key} = {value}")),
            format!("2:{column}: `timeouts.{key}` must be between {range}")
        );
    }
}

#[test]
fn all_errors_are_reported_at_once_in_the_order_of_the_file() {
    let text = "relam = 1\nworkers = \"two\"\n[relay]\nports = \"9-2\"\n\
                [auth]\nnonce-lifetime = 0\n[log]\nlevel = \"warning\"\n";
    assert_eq!(
        errors(text),
        [
            "1:1: unknown key `relam` in the top level; did you mean `realm`?",
            "2:11: `workers` must be a whole number, not a string",
            "4:9: `relay.ports`: `9-2` is an empty range; did you mean `2-9`?",
            "6:18: `auth.nonce-lifetime` must be between 1 and 86400",
            "8:9: `log.level` must be one of `error`, `warn`, `info`, `debug` and `trace`, not `warning`",
        ]
    );
}

#[test]
fn columns_count_characters() {
    assert_eq!(
        error("log = { level = \"info\", \"größe\" = 1 }"),
        "1:25: unknown key `größe` in `[log]`; valid keys are `level` and `format`"
    );
    assert_eq!(
        errors("peers = { allow = [\"é\", \"x\"] }\n[lgo]"),
        [
            "1:20: `peers.allow`: `é` is neither an address nor a prefix, for example \"192.0.2.7\" or \"10.0.0.0/8\"",
            "1:25: `peers.allow`: `x` is a name; use an IP address",
            "2:2: unknown key `lgo` in the top level; did you mean `log`?",
        ]
    );
}

#[test]
fn one_syntax_error_is_reported_per_line() {
    assert_eq!(
        errors("realm = \nworkers 3\n[log]\nlevel = 'a\n[listen\n"),
        [
            "1:9: not valid TOML: a value is missing here",
            "2:9: not valid TOML: key with no value, expected `=`",
            "4:9: not valid TOML: the string has no closing quote",
            "5:8: not valid TOML: unclosed table, expected `]`",
        ]
    );
    assert_eq!(
        errors("realm = a b c\n[log]\nlevel = 'a\nlevel = info\n[log]\n"),
        [
            "1:9: not valid TOML: this is not a number, true or false; strings need quotes",
            "3:9: not valid TOML: the string has no closing quote",
            "4:1: `level` is defined twice",
            "5:2: `log` is defined twice",
        ]
    );
}

#[test]
fn a_missing_quote_is_reported_at_its_string_without_its_consequences() {
    let missing = |place: &str| format!("{place}: not valid TOML: the string has no closing quote");
    for (text, place) in [
        ("[auth]\nsecrets = [\"abc]\n", "2:12"),
        ("[auth]\nsecrets = ['abc]\n", "2:12"),
        ("[listen]\nudp = [\"[::]:3478]\n\n[relay]\nports = \"1-2\"\n", "2:8"),
        ("[listen]\nudp = [\"[::]:3478, \"[::]:80\"]\n", "2:28"),
        ("[relay]\nexternal = { \"10.0.0.5\" = \"192.0.2.1 }\n", "2:27"),
        ("[relay]\nexternal = { \"10.0.0.5 = \"192.0.2.1\" }\n", "2:36"),
        ("realm = \"\"\"abc\n", "1:9"),
    ] {
        assert_eq!(error(text), missing(place), "{text}");
    }
    // Other errors are still reported.
    assert_eq!(
        errors("realm = \"a\nhostname = turn.example.org\nworkers 3\n"),
        [
            missing("1:9"),
            "2:12: not valid TOML: this is not a number, true or false; strings need quotes".to_owned(),
            "3:9: not valid TOML: key with no value, expected `=`".to_owned(),
        ]
    );
    assert_eq!(
        error("[listen]\nudp = [\"[::]:3478\"\n[relay]\n"),
        "3:1: not valid TOML: the list before this needs `,` or `]`"
    );
}

#[test]
fn an_unquoted_string_is_an_error() {
    for value in ["turn.example.org", "True", "1-2", "08", "info"] {
        assert_eq!(
            error(&format!("realm = {value}")),
            "1:9: not valid TOML: this is not a number, true or false; strings need quotes",
            "{value}"
        );
    }
}

#[test]
fn a_byte_order_mark_does_not_count_as_a_column() {
    assert_eq!(error("\u{feff}realm = 3"), "1:9: `realm` must be a string, not a whole number");
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
            "[peers]\nnat64-prefixes = [\"2001:db8:64::/95\"]",
            "2:19: `peers.nat64-prefixes`: `2001:db8:64::/95` must be an IPv6 prefix of 32, 40, 48, 56, 64 or 96 bits \
             (RFC 6052 §2.2), for example \"2001:db8:64::/96\"",
        ),
        (
            "[peers]\nnat64-prefixes = [\"2001:db8::/48\", \"2001:db8::/96\"]",
            "2:36: `peers.nat64-prefixes`: `2001:db8::/96` overlaps `2001:db8::/48`",
        ),
        (
            "[auth]\nsecrets = [\"  \"]",
            "2:12: `auth.secrets` contains a secret of blanks only: create one with `openssl rand -hex 32`",
        ),
        (
            "[auth]\nsecrets = [\"static-auth-secret=0123456789abcdef\"]",
            "2:12: `auth.secrets` contains a line that sets `static-auth-secret`, not only a secret: remove everything \
             except the secret",
        ),
        (
            "[[auth.users]]\nname = \"ann\"\npassword = \"  \"",
            "3:12: the password of user `ann` consists of blanks only",
        ),
        (
            "[compat]\nicmp-indications = \"alway\"",
            "2:20: `compat.icmp-indications` must be one of `auto`, `always` and `never`, not `alway`; did you mean \
             `always`?",
        ),
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
        ("workers = 99999999999999999999999999999999999999999", "1:11: `workers` must be between 0 and 1024"),
    ] {
        assert_eq!(error(text), expected, "{text}");
    }
}

// RFC 8489 §14.9
#[test]
fn a_realm_that_clients_cannot_quote_is_an_error() {
    assert_eq!(
        error("realm = \"\""),
        "1:9: `realm` is empty: omit it to use the default, or set the domain of your service"
    );
    assert_eq!(
        error(&format!("realm = \"{}\"", "ä".repeat(128))),
        "1:9: `realm` has 128 characters; the maximum is 127 (RFC 8489 §14.9)"
    );
    assert_eq!(error("realm = 'a\"b'"), "1:9: `realm` must not contain a quotation mark");
    assert_eq!(error("realm = 'a\\b'"), "1:9: `realm` must not contain a backslash");
    assert_eq!(error("realm = \"a\\tb\""), "1:9: `realm` must not contain a control character (U+0009)");
    assert_eq!(parse(&format!("realm = \"{}\"", "ä".repeat(127))).realm.chars().count(), 127);
}

#[test]
fn a_hostname_that_is_not_a_host_is_reported_with_the_reason() {
    const EXAMPLE: &str = "use only the name or the address, for example \"turn.example.org\"";
    for (host, what) in [
        ("turn:a.example", format!("contains a scheme: {EXAMPLE}")),
        ("https://a.example/x", format!("contains a scheme: {EXAMPLE}")),
        ("a.example/", format!("contains a slash: {EXAMPLE}")),
        ("a.example:3478", format!("contains a port: {EXAMPLE}; ports belong in `[listen]`")),
        ("[2001:db8::1]:3478", format!("contains a port: {EXAMPLE}; ports belong in `[listen]`")),
        ("a b", format!("contains a space: {EXAMPLE}")),
        ("", format!("is empty: {EXAMPLE}")),
        ("*.example", format!("contains a wildcard: {EXAMPLE}")),
        ("a@b", format!("contains `@`: {EXAMPLE}")),
        ("bücher.example", "is not ASCII: use the form that starts with xn--".to_owned()),
        ("a..b", "is not a valid name: a label has 1 to 63 characters, the name at most 253".to_owned()),
        ("300.1.1.1", "is not an IPv4 address: it must have four numbers from 0 to 255".to_owned()),
    ] {
        assert_eq!(error(&format!("hostname = \"{host}\"")), format!("1:12: `hostname` `{host}` {what}"));
    }
}

#[test]
fn an_incomplete_listen_address_is_reported_with_a_complete_one() {
    const ZONE: &str = "has a zone ID: a link-local address is reachable only from its own link; use another address";
    for (address, what) in [
        ("3478", "has no address; did you mean `[::]:3478`?"),
        (":5000", "has no address; did you mean `[::]:5000`?"),
        ("0.0.0.0", "has no port; did you mean `0.0.0.0:3478`?"),
        ("[2001:db8::1]", "has no port; did you mean `[2001:db8::1]:3478`?"),
        ("::", "has no port; did you mean `[::]:3478`?"),
        ("localhost:3478", "is a name; use an address: did you mean `127.0.0.1:3478` or `[::1]:3478`?"),
        ("fe80::1%eth0", ZONE),
        ("[fe80::1%eth0]:3478", ZONE),
        (
            "[2001:db8::1%2]:3478",
            "has a zone ID, which only link-local addresses need; did you mean `[2001:db8::1]:3478`?",
        ),
        ("3478/udp", "is not an address with a port, for example \"[::]:3478\" or \"192.0.2.7:3478\""),
        ("224.0.0.1:3478", "is not a unicast address"),
        ("[::ffff:192.0.2.1]:3478", "is IPv4-mapped; use `192.0.2.1:3478`"),
    ] {
        for key in ["udp", "tcp"] {
            assert_eq!(
                error(&format!("[listen]\n{key} = [\"{address}\"]")),
                format!("2:8: `listen.{key}`: `{address}` {what}")
            );
        }
    }
}

// RFC 8656 §19.
#[test]
fn a_tls_listener_without_a_port_is_reported_with_the_port_of_tls() {
    for (address, what) in [
        ("::", "has no port; did you mean `[::]:5349`?"),
        ("192.0.2.7", "has no port; did you mean `192.0.2.7:5349`?"),
        ("localhost", "is a name; use an address: did you mean `127.0.0.1:5349` or `[::1]:5349`?"),
        ("x y", "is not an address with a port, for example \"[::]:5349\" or \"192.0.2.7:5349\""),
    ] {
        let text = format!("[listen]\ntls = [\"{address}\"]\n{TLS}");
        assert_eq!(error(&text), format!("2:8: `listen.tls`: `{address}` {what}"));
    }
}

#[test]
fn conflicting_or_missing_listeners_are_an_error() {
    for key in ["udp", "tcp"] {
        assert_eq!(
            error(&format!("[listen]\n{key} = [\"[::1]:5\", \"[0::1]:5\"]")),
            format!("2:19: `listen.{key}` contains `[0::1]:5` twice")
        );
        assert_eq!(
            error(&format!("[listen]\n{key} = [\"[::]:3478\", \"0.0.0.0:3478\"]")),
            format!(
                "2:21: `listen.{key}`: 0.0.0.0:3478 and [::]:3478 conflict, \
                 because [::] also accepts IPv4: keep one"
            )
        );
    }
    assert_eq!(
        error("[listen]\ntcp = []\nudp = []"),
        "3:7: `listen.udp` and `listen.tcp` are empty, so no client can reach the server: \
         omit one to use its default"
    );
    assert_eq!(error("[listen]\ntcp = []\nudp = [\"x\"]"), "3:8: `listen.udp`: `x` is a name; use an IP address");
}

#[test]
fn a_relay_address_that_peers_cannot_reach_is_an_error() {
    for (address, what) in [
        ("0.0.0.0", "is the unspecified address; use a specific one"),
        ("::", "is the unspecified address; use a specific one"),
        ("224.0.0.1", "is not a unicast address"),
        ("255.255.255.255", "is not a unicast address"),
        ("ff02::1", "is not a unicast address"),
        ("fe80::1", "is link-local, so peers cannot reach it"),
        ("::ffff:192.0.2.1", "is IPv4-mapped; use `192.0.2.1`"),
        ("192.0.2.1:80", "has a port; did you mean `192.0.2.1`? Ports belong in `relay.ports`"),
        ("example.org", "is a name; use an IP address"),
        ("localhost", "is a name; use an address: did you mean `127.0.0.1` or `::1`?"),
        (
            "fe80::1%eth0",
            "has a zone ID: a link-local address is reachable only from its own link; use another address",
        ),
        ("300.1.1.1", "is not an IP address"),
    ] {
        let expected = format!("2:14: `relay.addresses`: `{address}` {what}");
        assert_eq!(error(&format!("[relay]\naddresses = [\"{address}\"]")), expected);
    }
    for (value, what) in [
        ("\"192.0.2.1\"", "; did you mean [\"192.0.2.1\"]?"),
        ("\"Auto\"", ", not `Auto`"),
        ("[]", ", not an empty list"),
    ] {
        let expected = format!("2:13: `relay.addresses` must be \"auto\" or a list of addresses{what}");
        assert_eq!(error(&format!("[relay]\naddresses = {value}")), expected);
    }
    assert_eq!(error("[relay]\naddresses = [\"::1\", \"0::1\"]"), "2:21: `relay.addresses` contains `0::1` twice");
}

#[test]
fn a_contradictory_external_address_is_an_error() {
    assert_eq!(
        errors(
            "[relay.external]\n\"10.0.0.1\" = \"2001:db8::1\"\n\"10.0.0.2\" = \"0.0.0.0\"\n\"here\" = \"192.0.2.1\""
        ),
        [
            "2:1: `relay.external`: `10.0.0.1` and `2001:db8::1` are of different address families",
            "3:14: `relay.external`: `0.0.0.0` is the unspecified address; use a specific one",
            "4:1: `relay.external`: `here` is a name; use an IP address",
        ]
    );
    assert_eq!(
        error("[relay]\naddresses = [\"10.0.0.1\"]\nexternal = { \"10.0.0.2\" = \"192.0.2.1\" }"),
        "3:14: `relay.external`: `10.0.0.2` is not in `relay.addresses`; \
         the address on the left must be one of this machine"
    );
    assert_eq!(
        error("[relay.external]\n\"10.0.0.1\" = \"192.0.2.1\"\n\"10.0.0.2\" = \"192.0.2.1\""),
        "3:14: `relay.external` maps two addresses to `192.0.2.1`; 1:1 NAT needs a different one for each"
    );
    assert_eq!(
        error("[relay.external]\n\"0::1\" = \"2001:db8::1\"\n\"::1\" = \"2001:db8::2\""),
        "3:1: `relay.external` contains `::1` twice"
    );
}

#[test]
fn an_invalid_port_range_is_an_error() {
    for (range, what) in [
        ("65535-49152", "is an empty range; did you mean `49152-65535`?"),
        ("50000", "is not a port range, for example \"49152-65535\""),
        ("a-b", "is not a port range, for example \"49152-65535\""),
        ("50000-70000", "contains a port above 65535"),
        ("0-100", "contains port 0, which cannot be used"),
    ] {
        assert_eq!(error(&format!("[relay]\nports = \"{range}\"")), format!("2:9: `relay.ports`: `{range}` {what}"));
    }
}

#[test]
fn an_invalid_duration_is_an_error() {
    let grammar =
        "a duration is a whole number with a unit (s, m, h or d), for example \"90s\", \"10m\", \"1h\" or \"1d\"";
    for (value, what) in [
        ("\"0s\"", " must be between 1s and 1d".to_owned()),
        ("\"25h\"", " must be between 1s and 1d".to_owned()),
        ("86401", " must be between 1 and 86400".to_owned()),
        ("\"1.5h\"", format!(" `1.5h`: {grammar}")),
        ("\"h\"", format!(" `h`: {grammar}")),
        ("\"5 min\"", format!(" `5 min`: {grammar}")),
        ("\"90\"", " `90`: the unit is missing: append s, m, h or d, for example \"90s\" or \"1h\"".to_owned()),
        ("\"99999999999999999999d\"", " `99999999999999999999d`: the duration is too long".to_owned()),
        ("\"9999999999999999999d\"", " `9999999999999999999d`: the duration is too long".to_owned()),
    ] {
        let expected = format!("2:18: `auth.nonce-lifetime`{what}");
        assert_eq!(error(&format!("[auth]\nnonce-lifetime = {value}")), expected);
    }
}

#[test]
fn an_invalid_drain_deadline_is_an_error() {
    let expected = "1:18: `drain-deadline` must be between 0s and 1d";
    assert_eq!(error("drain-deadline = \"25h\""), expected);
    assert_eq!(error("drain-deadline = -1"), "1:18: `drain-deadline` must be between 0 and 86400");
    assert_eq!(
        error("drain-deadline = \"2\""),
        "1:18: `drain-deadline` `2`: the unit is missing: append s, m, h or d, for example \"90s\" or \"1h\""
    );
    assert_eq!(
        error("[limits]\ndrain-deadline = 2"),
        "2:1: unknown key `drain-deadline` in `[limits]`; it belongs at the top of the file, \
         before the first `[section]`"
    );
}

#[test]
fn a_credential_path_without_a_credentials_directory_is_an_error() {
    assert_eq!(
        error("[auth]\nsecrets-file = \"$CREDENTIALS_DIRECTORY/secrets\""),
        "2:16: `auth.secrets-file`: `$CREDENTIALS_DIRECTORY` is not set: systemd sets it for a unit with \
         `LoadCredential=secrets:PATH`; to run without systemd, set it to the directory that contains `secrets`"
    );
}

#[test]
fn a_user_that_cannot_authenticate_is_an_error() {
    assert_eq!(error("[[auth.users]]\nname = \"ann\""), "1:1: user `ann` has no `password`");
    assert_eq!(error("[[auth.users]]\npassword = \"x\""), "1:1: a user has no `name`");
    assert_eq!(error("[[auth.users]]\nname = \"ann\"\npassword = \"\""), "3:12: the password of user `ann` is empty");
    assert_eq!(error("[[auth.users]]\nname = \"\"\npassword = \"x\""), "2:8: the `name` of a user is empty");
    assert_eq!(
        error("[[auth.users]]\nname = \"a\\u0000b\"\npassword = \"x\""),
        "2:8: the `name` of a user must not contain a control character (U+0000)"
    );
    // RFC 8489 §14.3
    assert_eq!(
        error(&format!("[[auth.users]]\nname = \"{}\"\npassword = \"x\"", "a".repeat(509))),
        "2:8: the `name` of a user has 509 bytes; the maximum is 508 (RFC 8489 §14.3)"
    );
    let ann = "[[auth.users]]\nname = \"ann\"\npassword = \"x\"\n";
    assert_eq!(error(&ann.repeat(2)), "5:8: user `ann` is defined twice; the first is in line 2");
}

#[test]
fn an_invalid_prefix_is_reported_with_a_valid_one() {
    for (prefix, what) in [
        ("10.0.0.1/8", "has bits set after the prefix; did you mean `10.0.0.0/8`?"),
        ("2001:db8::1/32", "has bits set after the prefix; did you mean `2001:db8::/32`?"),
        ("10.0.0.0/33", "is neither an address nor a prefix, for example \"192.0.2.7\" or \"10.0.0.0/8\""),
        ("private", "is a name; use an IP address"),
        ("10.0.0.0-10.0.0.9", "is a range; write it as one or more prefixes, for example \"10.0.0.0/8\""),
        ("::ffff:10.0.0.0/104", "is IPv4-mapped; use `10.0.0.0/8`"),
        ("::ffff:10.0.0.1", "is IPv4-mapped; use `10.0.0.1`"),
    ] {
        assert_eq!(error(&format!("[peers]\ndeny = [\"{prefix}\"]")), format!("2:9: `peers.deny`: `{prefix}` {what}"));
    }
}

#[test]
fn an_allowed_range_inside_a_denied_one_is_an_error() {
    assert_eq!(
        error("[peers]\nallow = [\"10.1.0.0/16\"]\ndeny = [\"10.0.0.0/8\"]"),
        "2:10: `peers.allow`: `10.1.0.0/16` has no effect, \
         because `peers.deny` contains `10.0.0.0/8` and takes precedence"
    );
    parse("[peers]\nallow = [\"10.0.0.0/8\"]\ndeny = [\"10.1.0.0/16\", \"::/0\"]");
}

#[test]
fn a_misspelled_choice_is_reported_with_the_similar_one() {
    assert_eq!(
        error("log.format = \"jsn\""),
        "1:14: `log.format` must be one of `text` and `json`, not `jsn`; did you mean `json`?"
    );
}

#[test]
fn probably_unintended_settings_cause_warnings() {
    for (text, expected) in [
        (
            "[relay]\nports = \"1000-2000\"",
            "2:9: `relay.ports` starts below 1024: \
             these ports need a privilege, and peers may mistake them for well-known services",
        ),
        ("[relay]\nports = \"3000-4000\"", "2:9: `relay.ports` contains 3478, the port of a UDP listener"),
        ("[listen]\nudp = [\"[::]:50000\"]", "2:7: `relay.ports` contains 50000, the port of a UDP listener"),
        (
            "[limits]\nbytes-per-second-per-allocation = 2000\nbytes-per-second-per-user = 1999",
            "2:35: `limits.bytes-per-second-per-allocation` has no effect: `limits.bytes-per-second-per-user` is lower",
        ),
        (
            "[relay]\naddresses = [\"192.0.2.1\", \"192.0.2.2\"]\nports = \"50000-50009\"\n[limits]\nallocations = 21",
            "2:13: `limits.allocations` is 21, but there are only 20 relay ports",
        ),
        (
            "[auth]\nsecrets = [\"0123456789abcde\"]",
            "2:12: `auth.secrets` contains a secret shorter than 16 bytes, \
             which can be guessed: create one with `openssl rand -hex 32`",
        ),
        (
            "[[auth.users]]\nname = \"1700000000:ann\"\npassword = \"x\"",
            "2:8: user `1700000000:ann` has a name in the form of a time-limited credential, \
             but its password never expires",
        ),
        (
            "[peers]\nallow = [\"64:ff9b::/96\"]",
            "2:10: `peers.allow`: `64:ff9b::/96` allows IPv4 addresses in NAT64 form, including private ones",
        ),
        (
            "[peers]\nallow = [\"::/96\"]",
            "2:10: `peers.allow`: `::/96` allows IPv4 addresses in IPv4-compatible form, including private ones",
        ),
        (
            "[peers]\nallow = [\"::ffff:0:0:0/96\"]",
            "2:10: `peers.allow`: `::ffff:0:0:0/96` allows IPv4 addresses in IPv4-translated form, including private \
             ones",
        ),
        (
            "[peers]\nallow = [\"2000::/3\"]",
            "2:10: `peers.allow`: `2000::/3` allows IPv4 addresses in Teredo and 6to4 form, including private ones",
        ),
        (
            "[auth]\nsecrets = [\"north\"]",
            "2:12: `auth.secrets` contains a secret that is an example of public guides, which attackers try: create \
             one with `openssl rand -hex 32`",
        ),
        (
            "[auth]\nsecrets = [\" 0123456789abcdef\"]",
            "2:12: `auth.secrets` contains a secret that begins or ends with a blank, which is part of it",
        ),
        (
            "[auth]\nsecrets = [\"0123456789abcdef\", \"0123456789abcdef\"]",
            "2:32: `auth.secrets` contains the same secret as before: remove it",
        ),
    ] {
        assert_eq!(warnings(text), [expected], "{text}");
    }
    assert!(warnings("[peers]\ndeny = [\"64:ff9b::/96\"]").is_empty());
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

#[test]
fn alternate_servers_must_be_addresses_of_other_servers() {
    let of = |value: &str| error(&format!("[alternate]\nservers = [\"{value}\"]"));
    for (value, why) in [
        ("203.0.113.5", "has no port; did you mean `203.0.113.5:3478`?"),
        ("2001:db8::5", "has no port; did you mean `[2001:db8::5]:3478`?"),
        (
            "turn.example.org:3478",
            "is not an address with a port, for example \"203.0.113.5:3478\"; names are not supported",
        ),
        ("203.0.113.5:0", "has port 0, which cannot be used"),
        ("0.0.0.0:3478", "is the unspecified address; use a specific one"),
        ("[::]:3478", "is the unspecified address; use a specific one"),
        ("224.0.0.1:3478", "is not a unicast address"),
        ("255.255.255.255:3478", "is not a unicast address"),
        ("[fe80::1]:3478", "is link-local and reachable only from its own link"),
        ("[::ffff:203.0.113.5]:3478", "is IPv4-mapped; use `203.0.113.5:3478`"),
    ] {
        assert_eq!(of(value), format!("2:12: `alternate.servers`: `{value}` {why}"));
    }
    assert_eq!(
        error("[alternate]\nservers = [\"203.0.113.5:1\", \"[2001:db8::5]:1\", \"203.0.113.5:1\"]"),
        "2:48: `alternate.servers` contains `203.0.113.5:1` twice"
    );
    for transport in ["udp", "tcp"] {
        assert_eq!(
            error(&format!("[listen]\n{transport} = [\"203.0.113.5:1\"]\n[alternate]\nservers = [\"203.0.113.5:1\"]")),
            "4:12: `alternate.servers`: `203.0.113.5:1` is an address of this server, \
             so clients would be redirected in a loop"
        );
    }
    assert_eq!(
        error("[alternate]\ntls-servers = [\"203.0.113.5\"]"),
        "2:16: `alternate.tls-servers`: `203.0.113.5` has no port; did you mean `203.0.113.5:5349`?"
    );
    assert_eq!(
        error("[alternate]\nservers = \"203.0.113.5:1\""),
        "2:11: `alternate.servers` must be a list: put the value in brackets, [\"…\"]"
    );
}

// RFC 8489 §10: a client is redirected only to an address of its own family.
#[test]
fn a_family_without_an_alternate_server_causes_a_warning() {
    let without =
        |family| format!("`alternate.servers` has no {family} address, so {family} clients are not redirected");
    assert_eq!(warnings("[alternate]\nservers = [\"203.0.113.5:1\"]"), [format!("2:11: {}", without("IPv6"))]);
    assert_eq!(warnings("[alternate]\nservers = [\"[2001:db8::5]:1\"]"), [format!("2:11: {}", without("IPv4"))]);
    let v4 = "[listen]\nudp = [\"0.0.0.0:1\"]\ntcp = [\"127.0.0.1:1\"]\n[alternate]\nservers = [\"203.0.113.5:1\"]";
    assert_eq!(warnings(v4), [""; 0]);
}

const WITH_TLS: &str = "[listen]\ntls = [\"203.0.113.9:443\"]\n[tls]\ncertificate = \"a\"\nprivate-key = \"b\"\n";

// RFC 8489 §10: over the same transport.
#[test]
fn a_transport_without_an_alternate_server_causes_a_warning() {
    let (plain, tls) = ("\"203.0.113.5:1\", \"[2001:db8::5]:1\"", "\"203.0.113.5:2\"");
    assert_eq!(
        warnings(&format!("{WITH_TLS}[alternate]\nservers = [{plain}]")),
        ["7:11: `alternate.tls-servers` is empty, so clients of `listen.tls` are not redirected"]
    );
    assert_eq!(
        warnings(&format!("{WITH_TLS}[alternate]\ntls-servers = [{tls}]")),
        ["7:15: `alternate.servers` is empty, so clients of `listen.udp` and `listen.tcp` are not redirected"]
    );
    assert_eq!(
        warnings(&format!("[alternate]\nservers = [{plain}]\ntls-servers = [{tls}]")),
        ["3:15: `alternate.tls-servers` has no effect without listeners in `listen.tls`"]
    );
    parse(&format!("{WITH_TLS}[alternate]\nservers = [{plain}]\ntls-servers = [{tls}]\ndomain = \"a.example\""));
    // The same address over another transport may belong to another server.
    parse(&format!("{WITH_TLS}[alternate]\nservers = [{plain}, \"203.0.113.9:443\"]\ntls-servers = [{tls}]"));
    assert_eq!(
        error(&format!("{WITH_TLS}[alternate]\ntls-servers = [\"203.0.113.9:443\"]")),
        "7:16: `alternate.tls-servers`: `203.0.113.9:443` is an address of this server, \
         so clients would be redirected in a loop"
    );
}

#[test]
fn the_domain_of_an_alternate_server_must_be_a_dns_name() {
    const INVALID_LABEL: &str = "is not a valid name: a label consists of letters, digits and hyphens, \
                                 and does not start or end with a hyphen (RFC 1123 §2.1)";
    let of = |value: &str| {
        let servers = "tls-servers = [\"203.0.113.5:1\", \"[2001:db8::5]:1\"]";
        error(&format!("[alternate]\n{servers}\ndomain = \"{value}\""))
    };
    for (value, why) in [
        ("", "is empty: use only the name or the address, for example \"turn.example.org\""),
        ("203.0.113.5", "is an address; set the DNS name in the certificate of the alternate servers"),
        ("2001:db8::5", "is an address; set the DNS name in the certificate of the alternate servers"),
        ("-a.example", INVALID_LABEL),
        ("a_b.example", INVALID_LABEL),
    ] {
        assert_eq!(of(value), format!("3:10: `alternate.domain`: `{value}` {why}"));
    }
}

#[test]
fn alternate_settings_without_servers_have_no_effect() {
    for servers in ["", "servers = []"] {
        assert_eq!(
            error(&format!("[alternate]\nwhen = \"full\"\n{servers}")),
            "2:8: `alternate.when` has no effect without `alternate.servers`: list the alternate servers there"
        );
        assert_eq!(
            warnings(&format!("[alternate]\ndomain = \"a.example\"\n{servers}")),
            ["2:10: `alternate.domain` has no effect without `alternate.tls-servers`: only TLS clients use it"]
        );
        parse(&format!("[alternate]\nwhen = \"draining\"\n{servers}"));
    }
    assert_eq!(
        error("[alternate]\nservers = [\"203.0.113.5:1\", \"[2001:db8::5]:1\"]\nwhen = \"allways\""),
        "3:8: `alternate.when` must be one of `draining`, `full` and `always`, not `allways`; did you mean `always`?"
    );
}
