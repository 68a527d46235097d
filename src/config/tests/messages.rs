//! What is said about each kind of mistake.

use super::*;

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_key_it_resembles() {
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
fn an_unknown_key_that_another_table_has_is_sent_there() {
    assert_eq!(
        error("[listen]\nrealm = \"x\""),
        "2:1: unknown key `realm` in `[listen]`; it belongs at the top of the file, above the first `[section]`"
    );
    assert_eq!(error("ports = \"1-2\""), "1:1: unknown key `ports` in the top level; it belongs in `[relay]`");
}

#[test]
fn an_unknown_key_that_resembles_none_is_answered_with_the_list() {
    assert_eq!(
        error("[peers]\nfrobnicate = 1"),
        "2:1: unknown key `frobnicate` in `[peers]`; the keys there are `allow` and `deny`"
    );
    assert_eq!(
        error("[peers]\n\"a\\nb\" = 1"),
        "2:1: unknown key `a\\nb` in `[peers]`; the keys there are `allow` and `deny`"
    );
}

const TLS: &str = "[tls]\ncertificate = \"c.pem\"\nprivate-key = \"k.pem\"\n";

#[test]
fn tls_listeners_and_their_certificate_come_together() {
    assert_eq!(
        error("[listen]\ntls = [\"[::]:5349\"]"),
        "2:7: `listen.tls` needs a certificate: set `certificate` and `private-key` in `[tls]`"
    );
    let without = "`[tls]` has no effect, because `listen.tls` is empty: set it, as in tls = [\"[::]:5349\"], \
                   or leave `[tls]` out";
    assert_eq!(error(TLS), format!("1:1: {without}"));
    assert_eq!(error(&format!("[listen]\ntls = []\n{TLS}")), format!("3:1: {without}"));
    let listen = "[listen]\ntls = [\"[::]:5349\"]\n";
    assert_eq!(
        errors(&format!("{listen}[tls]")),
        [
            "3:1: `[tls]` has no `certificate`: give the path of its PEM file",
            "3:1: `[tls]` has no `private-key`: give the path of its PEM file",
        ]
    );
    assert_eq!(
        errors(&format!("{listen}[tls]\ncertificate = \"\"\nprivate-key = 1")),
        [
            "4:15: `tls.certificate` is empty: give the path of a PEM file",
            "5:15: `tls.private-key` takes a string, and this is a whole number",
        ]
    );
    assert_eq!(error(&format!("tls = 1\n{listen}")), "1:7: `tls` takes a table, and this is a whole number");
    // What is wrong in the list is said, and nothing besides.
    assert_eq!(
        error(&format!("[listen]\ntls = [\"5349\"]\n{TLS}")),
        "2:8: `listen.tls`: `5349` has no address; did you mean `[::]:5349`?"
    );
    parse(&format!("{listen}{TLS}"));
}

#[test]
fn a_port_of_tcp_is_for_tcp_or_for_tls() {
    for (tcp, tls) in [
        ("[::]:443", "[::]:443"),
        ("[::]:443", "192.0.2.7:443"),
        ("192.0.2.7:443", "0.0.0.0:443"),
        ("[::]:443", "0.0.0.0:443"),
        ("192.0.2.7:443", "192.0.2.7:443"),
    ] {
        assert_eq!(
            error(&format!("[listen]\ntcp = [\"{tcp}\"]\ntls = [\"{tls}\"]\n{TLS}")),
            format!(
                "3:7: `listen.tls` has {tls} and `listen.tcp` has {tcp}, which is the same port: a port is for one of \
                 the two; 5349 and 443 are usual for TLS"
            )
        );
    }
    for (tcp, tls) in [
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
fn a_timeout_that_cannot_be_used_is_refused() {
    for (key, value, range) in [
        ("tls-handshake", "\"0s\"", "1s and 5m"),
        ("first-request", "\"6m\"", "1s and 5m"),
        ("idle", "\"25h\"", "1s and 1d"),
        ("unauthenticated", "\"0s\"", "1s and 1d"),
    ] {
        let place = key.len() + 4;
        assert_eq!(
            error(&format!("[timeouts]\n{key} = {value}")),
            format!("2:{place}: `timeouts.{key}` must be between {range}")
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
            "2:11: `workers` takes a whole number, and this is a string",
            "4:9: `relay.ports`: `9-2` is empty; did you mean `2-9`?",
            "6:18: `auth.nonce-lifetime` must be between 1 and 86400",
            "8:9: `log.level` is one of `error`, `warn`, `info`, `debug` and `trace`, not `warning`",
        ]
    );
}

#[test]
fn columns_count_characters() {
    assert_eq!(
        error("log = { level = \"info\", \"größe\" = 1 }"),
        "1:25: unknown key `größe` in `[log]`; the keys there are `level` and `format`"
    );
    assert_eq!(
        errors("peers = { allow = [\"é\", \"x\"] }\n[lgo]"),
        [
            "1:20: `peers.allow`: `é` is neither an address nor a prefix, as in \"192.0.2.7\" or \"10.0.0.0/8\"",
            "1:25: `peers.allow`: `x` is neither an address nor a prefix, as in \"192.0.2.7\" or \"10.0.0.0/8\"",
            "2:2: unknown key `lgo` in the top level; did you mean `log`?",
        ]
    );
}

#[test]
fn syntax_errors_are_reported_one_for_each_line() {
    assert_eq!(
        errors("realm = \nworkers 3\n[log]\nlevel = 'a\n[listen\n"),
        [
            "1:9: not valid TOML: here a value is missing",
            "2:9: not valid TOML: key with no value, expected `=`",
            "5:8: not valid TOML: unclosed table, expected `]`",
        ]
    );
    assert_eq!(
        errors("realm = a b c\n[log]\nlevel = 'a\nlevel = info\n[log]\n"),
        [
            "1:9: not valid TOML: this is neither a number nor true or false; text stands in quotes",
            "3:11: not valid TOML: the string has no closing quote",
            "4:1: `level` is there twice",
            "5:2: `log` is there twice",
        ]
    );
}

#[test]
fn text_without_quotes_is_told_so() {
    for value in ["turn.example.org", "True", "1-2", "08", "info"] {
        assert_eq!(
            error(&format!("realm = {value}")),
            "1:9: not valid TOML: this is neither a number nor true or false; text stands in quotes",
            "{value}"
        );
    }
}

#[test]
fn a_byte_order_mark_takes_no_column() {
    assert_eq!(error("\u{feff}realm = 3"), "1:9: `realm` takes a string, and this is a whole number");
}

#[test]
fn a_value_of_the_wrong_type_is_answered_with_the_right_one() {
    for (text, expected) in [
        ("realm = 1", "1:9: `realm` takes a string, and this is a whole number"),
        ("workers = 1.5", "1:11: `workers` takes a whole number, and this is a fraction"),
        ("log = \"info\"", "1:7: `log` takes a table, and this is a string"),
        ("[listen]\nudp = \"[::]:1\"", "2:7: `listen.udp` is a list: put brackets around the value, as in [\"…\"]"),
        ("[listen]\ntcp = \"[::]:1\"", "2:7: `listen.tcp` is a list: put brackets around the value, as in [\"…\"]"),
        ("[listen]\nudp = [3478]", "2:8: `listen.udp` takes a list of strings, and this is a whole number"),
        ("[listen]\nudp = 1979-05-27", "2:7: `listen.udp` takes a list of strings, and this is a date or time"),
        (
            "[compat]\nrfc5766-channels = 1",
            "2:20: `compat.rfc5766-channels` takes true or false, and this is a whole number",
        ),
        (
            "[compat]\ndraft-dual-allocation = \"yes\"",
            "2:25: `compat.draft-dual-allocation` takes true or false, and this is a string",
        ),
        ("[auth]\nusers = 1", "2:9: `auth.users` is a list of tables: write each as `[[auth.users]]`"),
        ("[auth]\nusers = [1]", "2:10: `auth.users` takes a list of tables, and this is a whole number"),
        (
            "[auth]\nexpiry-grace = true",
            "2:16: `auth.expiry-grace` takes a duration such as \"1h\", and this is true or false",
        ),
        (
            "[relay]\naddresses = 5",
            "2:13: `relay.addresses` takes \"auto\" or a list of addresses, and this is a whole number",
        ),
        ("[relay]\nexternal = []", "2:12: `relay.external` takes a table, and this is a list"),
        (
            "[relay.external]\n\"10.0.0.1\" = 1",
            "2:14: `relay.external` takes a table of addresses in quotes, and this is a whole number",
        ),
    ] {
        assert_eq!(error(text), expected, "{text}");
    }
}

#[test]
fn a_number_out_of_range_is_answered_with_the_range() {
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
fn a_realm_that_clients_cannot_quote_is_refused() {
    assert_eq!(
        error("realm = \"\""),
        "1:9: `realm` is empty: leave it out for the default, or give the domain of your service"
    );
    assert_eq!(
        error(&format!("realm = \"{}\"", "ä".repeat(128))),
        "1:9: `realm` has 128 characters, and 127 are allowed (RFC 8489 §14.9)"
    );
    assert_eq!(error("realm = 'a\"b'"), "1:9: `realm` must not contain a quotation mark");
    assert_eq!(error("realm = 'a\\b'"), "1:9: `realm` must not contain a backslash");
    assert_eq!(error("realm = \"a\\tb\""), "1:9: `realm` must not contain a control character (U+0009)");
    assert_eq!(parse(&format!("realm = \"{}\"", "ä".repeat(127))).realm.chars().count(), 127);
}

#[test]
fn a_hostname_with_more_than_a_host_says_what_is_too_much() {
    const EXAMPLE: &str = "write only the name or the address, as in \"turn.example.org\"";
    for (host, what) in [
        ("turn:a.example", format!("contains a scheme: {EXAMPLE}")),
        ("https://a.example/x", format!("contains a scheme: {EXAMPLE}")),
        ("a.example/", format!("contains a slash: {EXAMPLE}")),
        ("a.example:3478", format!("contains a port: {EXAMPLE}; the ports are those of `[listen]`")),
        ("[2001:db8::1]:3478", format!("contains a port: {EXAMPLE}; the ports are those of `[listen]`")),
        ("a b", format!("contains a space: {EXAMPLE}")),
        ("", format!("is empty: {EXAMPLE}")),
        ("*.example", format!("contains a wildcard: {EXAMPLE}")),
        ("a@b", format!("contains `@`: {EXAMPLE}")),
        ("bücher.example", "is not in ASCII: write it in its form that begins with xn--".to_owned()),
        ("a..b", "is no name: between its dots stand 1 to 63 characters, and 253 in all".to_owned()),
        ("300.1.1.1", "is not an IPv4 address: that has four numbers from 0 to 255".to_owned()),
    ] {
        assert_eq!(error(&format!("hostname = \"{host}\"")), format!("1:12: `hostname` `{host}` {what}"));
    }
}

#[test]
fn a_listen_address_without_its_other_half_is_completed() {
    for (address, what) in [
        ("3478", "has no address; did you mean `[::]:3478`?"),
        (":5000", "has no address; did you mean `[::]:5000`?"),
        ("0.0.0.0", "has no port; did you mean `0.0.0.0:3478`?"),
        ("[2001:db8::1]", "has no port; did you mean `[2001:db8::1]:3478`?"),
        ("::", "has no port; did you mean `[::]:3478`?"),
        ("localhost:3478", "is not an address and a port, as in \"[::]:3478\" or \"192.0.2.7:3478\""),
        ("224.0.0.1:3478", "is not an address of one machine"),
        ("[::ffff:192.0.2.1]:3478", "is an IPv4 address in disguise; write `192.0.2.1:3478`"),
    ] {
        for key in ["udp", "tcp"] {
            assert_eq!(
                error(&format!("[listen]\n{key} = [\"{address}\"]")),
                format!("2:8: `listen.{key}`: `{address}` {what}")
            );
        }
    }
}

#[test]
fn listeners_that_collide_or_are_missing_are_refused() {
    for key in ["udp", "tcp"] {
        assert_eq!(
            error(&format!("[listen]\n{key} = [\"[::1]:5\", \"[0::1]:5\"]")),
            format!("2:19: `listen.{key}` has `[0::1]:5` twice")
        );
        assert_eq!(
            error(&format!("[listen]\n{key} = [\"[::]:3478\", \"0.0.0.0:3478\"]")),
            format!(
                "2:21: `listen.{key}`: 0.0.0.0:3478 and [::]:3478 are the same port, \
                 because [::] takes IPv4 as well: keep one"
            )
        );
    }
    assert_eq!(
        error("[listen]\ntcp = []\nudp = []"),
        "3:7: `listen.udp` and `listen.tcp` are empty, so no client could reach the server: \
         leave one out for its default"
    );
    assert_eq!(
        error("[listen]\ntcp = []\nudp = [\"x\"]"),
        "3:8: `listen.udp`: `x` is not an address and a port, as in \"[::]:3478\" or \"192.0.2.7:3478\""
    );
}

#[test]
fn a_relay_address_that_no_peer_can_send_to_is_refused() {
    for (address, what) in [
        ("0.0.0.0", "stands for every address; name one"),
        ("::", "stands for every address; name one"),
        ("224.0.0.1", "is not an address of one machine"),
        ("255.255.255.255", "is not an address of one machine"),
        ("ff02::1", "is not an address of one machine"),
        ("fe80::1", "is link-local, so no peer could reach it"),
        ("::ffff:192.0.2.1", "is an IPv4 address in disguise; write `192.0.2.1`"),
        ("192.0.2.1:80", "has a port; did you mean `192.0.2.1`? The ports are those of `relay.ports`"),
        ("example.org", "is not an IP address"),
    ] {
        let expected = format!("2:14: `relay.addresses`: `{address}` {what}");
        assert_eq!(error(&format!("[relay]\naddresses = [\"{address}\"]")), expected);
    }
    for (value, what) in [
        ("\"192.0.2.1\"", "; did you mean [\"192.0.2.1\"]?"),
        ("\"Auto\"", ", not `Auto`"),
        ("[]", ", and this list is empty"),
    ] {
        let expected = format!("2:13: `relay.addresses` is \"auto\" or a list of addresses{what}");
        assert_eq!(error(&format!("[relay]\naddresses = {value}")), expected);
    }
    assert_eq!(error("[relay]\naddresses = [\"::1\", \"0::1\"]"), "2:21: `relay.addresses` has `0::1` twice");
}

#[test]
fn an_external_address_that_contradicts_is_refused() {
    assert_eq!(
        errors(
            "[relay.external]\n\"10.0.0.1\" = \"2001:db8::1\"\n\"10.0.0.2\" = \"0.0.0.0\"\n\"here\" = \"192.0.2.1\""
        ),
        [
            "2:1: `relay.external`: `10.0.0.1` and `2001:db8::1` are not of the same family (IPv4 or IPv6)",
            "3:14: `relay.external`: `0.0.0.0` stands for every address; name one",
            "4:1: `relay.external`: `here` is not an IP address",
        ]
    );
    assert_eq!(
        error("[relay]\naddresses = [\"10.0.0.1\"]\nexternal = { \"10.0.0.2\" = \"192.0.2.1\" }"),
        "3:14: `relay.external`: `10.0.0.2` is not in `relay.addresses`; \
         the address on the left is that of this machine"
    );
    assert_eq!(
        error("[relay.external]\n\"10.0.0.1\" = \"192.0.2.1\"\n\"10.0.0.2\" = \"192.0.2.1\""),
        "3:14: `relay.external`: `192.0.2.1` stands for two addresses, and 1:1 NAT has one behind each"
    );
    assert_eq!(
        error("[relay.external]\n\"0::1\" = \"2001:db8::1\"\n\"::1\" = \"2001:db8::2\""),
        "3:1: `relay.external` has `::1` twice"
    );
}

#[test]
fn a_port_range_that_cannot_be_used_is_refused() {
    for (range, what) in [
        ("65535-49152", "is empty; did you mean `49152-65535`?"),
        ("50000", "is not a range of ports, as in \"49152-65535\""),
        ("a-b", "is not a range of ports, as in \"49152-65535\""),
        ("50000-70000", "has a port above 65535"),
        ("0-100", "has port 0, which does not exist"),
    ] {
        assert_eq!(error(&format!("[relay]\nports = \"{range}\"")), format!("2:9: `relay.ports`: `{range}` {what}"));
    }
    assert_eq!(
        error("workers = 4\n[relay]\nports = \"50000-50002\""),
        "3:9: `relay.ports` has fewer ports (3) than there are `workers` (4); each needs its own"
    );
}

#[test]
fn a_duration_that_cannot_be_used_is_refused() {
    let grammar =
        "a duration is a whole number and one of the units s, m, h, d, as in \"90s\", \"10m\", \"1h\" or \"1d\"";
    for (value, what) in [
        ("\"0s\"", " must be between 1s and 1d".to_owned()),
        ("\"25h\"", " must be between 1s and 1d".to_owned()),
        ("86401", " must be between 1 and 86400".to_owned()),
        ("\"1.5h\"", format!(" `1.5h`: {grammar}")),
        ("\"h\"", format!(" `h`: {grammar}")),
        ("\"5 min\"", format!(" `5 min`: {grammar}")),
        ("\"90\"", " `90`: it has no unit: write it with s, m, h or d behind it, as in \"90s\" or \"1h\"".to_owned()),
        ("\"99999999999999999999d\"", " `99999999999999999999d`: it is too long".to_owned()),
        ("\"9999999999999999999d\"", " `9999999999999999999d`: it is too long".to_owned()),
    ] {
        let expected = format!("2:18: `auth.nonce-lifetime`{what}");
        assert_eq!(error(&format!("[auth]\nnonce-lifetime = {value}")), expected);
    }
}

#[test]
fn a_drain_deadline_that_cannot_be_used_is_refused() {
    let expected = "1:18: `drain-deadline` must be between 0s and 1d";
    assert_eq!(error("drain-deadline = \"25h\""), expected);
    assert_eq!(error("drain-deadline = -1"), "1:18: `drain-deadline` must be between 0 and 86400");
    assert_eq!(
        error("drain-deadline = \"2\""),
        "1:18: `drain-deadline` `2`: it has no unit: write it with s, m, h or d behind it, as in \"90s\" or \"1h\""
    );
    assert_eq!(
        error("[limits]\ndrain-deadline = 2"),
        "2:1: unknown key `drain-deadline` in `[limits]`; it belongs at the top of the file, above the first `[section]`"
    );
}

#[test]
fn a_credential_that_nobody_provides_is_refused() {
    assert_eq!(
        error("[auth]\nsecrets-file = \"$CREDENTIALS_DIRECTORY/secrets\""),
        "2:16: `auth.secrets-file`: `$CREDENTIALS_DIRECTORY` is not set: systemd sets it for a unit with \
         `LoadCredential=secrets:PATH`; to try it by hand, set it to the directory that has `secrets`"
    );
}

#[test]
fn a_user_that_cannot_log_in_is_refused() {
    assert_eq!(error("[[auth.users]]\nname = \"ann\""), "1:1: user `ann` has no `password`");
    assert_eq!(error("[[auth.users]]\npassword = \"x\""), "1:1: a user without a `name`");
    assert_eq!(error("[[auth.users]]\nname = \"ann\"\npassword = \"\""), "3:12: the password of user `ann` is empty");
    assert_eq!(error("[[auth.users]]\nname = \"\"\npassword = \"x\""), "2:8: the `name` of a user is empty");
    assert_eq!(
        error("[[auth.users]]\nname = \"a\\u0000b\"\npassword = \"x\""),
        "2:8: the `name` of a user must not contain a control character (U+0000)"
    );
    // RFC 8489 §14.3
    assert_eq!(
        error(&format!("[[auth.users]]\nname = \"{}\"\npassword = \"x\"", "a".repeat(509))),
        "2:8: the `name` of a user has 509 bytes, and 508 are allowed (RFC 8489 §14.3)"
    );
    let ann = "[[auth.users]]\nname = \"ann\"\npassword = \"x\"\n";
    assert_eq!(error(&ann.repeat(2)), "5:8: user `ann` is there twice; the first is in line 2");
}

#[test]
fn a_prefix_with_host_bits_is_corrected() {
    for (prefix, what) in [
        ("10.0.0.1/8", "has bits set behind its prefix; did you mean `10.0.0.0/8`?"),
        ("2001:db8::1/32", "has bits set behind its prefix; did you mean `2001:db8::/32`?"),
        ("10.0.0.0/33", "is neither an address nor a prefix, as in \"192.0.2.7\" or \"10.0.0.0/8\""),
        ("private", "is neither an address nor a prefix, as in \"192.0.2.7\" or \"10.0.0.0/8\""),
        ("::ffff:10.0.0.0/104", "is IPv4 in disguise; write `10.0.0.0/8`"),
        ("::ffff:10.0.0.1", "is IPv4 in disguise; write `10.0.0.1`"),
    ] {
        assert_eq!(error(&format!("[peers]\ndeny = [\"{prefix}\"]")), format!("2:9: `peers.deny`: `{prefix}` {what}"));
    }
}

#[test]
fn an_allowed_range_inside_a_denied_one_is_a_contradiction() {
    assert_eq!(
        error("[peers]\nallow = [\"10.1.0.0/16\"]\ndeny = [\"10.0.0.0/8\"]"),
        "2:10: `peers.allow`: `10.1.0.0/16` has no effect, because `peers.deny` has `10.0.0.0/8` and is asked first"
    );
    parse("[peers]\nallow = [\"10.0.0.0/8\"]\ndeny = [\"10.1.0.0/16\", \"::/0\"]");
}

#[test]
fn a_misspelt_word_is_corrected() {
    assert_eq!(
        error("log.format = \"jsn\""),
        "1:14: `log.format` is one of `text` and `json`, not `jsn`; did you mean `json`?"
    );
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    for (text, expected) in [
        (
            "[relay]\nports = \"1000-2000\"",
            "2:9: `relay.ports` begins below 1024: \
             such ports need a privilege, and peers may take them for those of services",
        ),
        ("[relay]\nports = \"3000-4000\"", "2:9: `relay.ports` contains 3478, the port of a UDP listener"),
        ("[listen]\nudp = [\"[::]:50000\"]", "2:7: `relay.ports` contains 50000, the port of a UDP listener"),
        (
            "[limits]\nbytes-per-second-per-allocation = 2000\nbytes-per-second-per-user = 1999",
            "2:35: `limits.bytes-per-second-per-allocation` has no effect: `limits.bytes-per-second-per-user` is less",
        ),
        (
            "[relay]\naddresses = [\"192.0.2.1\", \"192.0.2.2\"]\nports = \"50000-50009\"\n[limits]\nallocations = 21",
            "2:13: `limits.allocations` is 21, but there are only 20 relay ports",
        ),
        (
            "[auth]\nsecrets = [\"0123456789abcde\"]",
            "2:12: `auth.secrets` has a secret shorter than 16 bytes, \
             which can be guessed: `openssl rand -hex 32` makes a good one",
        ),
        (
            "[[auth.users]]\nname = \"1700000000:ann\"\npassword = \"x\"",
            "2:8: user `1700000000:ann` is named like a time-limited credential, but its password never expires",
        ),
        (
            "[peers]\nallow = [\"64:ff9b::/96\"]",
            "2:10: `peers.allow`: `64:ff9b::/96` admits IPv4 addresses as NAT64 spells them, private ones too",
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
fn alternate_servers_are_addresses_of_other_servers() {
    let of = |value: &str| error(&format!("[alternate]\nservers = [\"{value}\"]"));
    for (value, why) in [
        ("203.0.113.5", "has no port; did you mean `203.0.113.5:3478`?"),
        ("2001:db8::5", "has no port; did you mean `[2001:db8::5]:3478`?"),
        ("turn.example.org:3478", "is not an address and a port, as in \"203.0.113.5:3478\"; a name cannot be sent"),
        ("203.0.113.5:0", "has port 0, which no client can reach"),
        ("0.0.0.0:3478", "stands for every address; name one"),
        ("[::]:3478", "stands for every address; name one"),
        ("224.0.0.1:3478", "is not an address of one machine"),
        ("255.255.255.255:3478", "is not an address of one machine"),
        ("[fe80::1]:3478", "is link-local, and no client outside of its network has a route to it"),
        ("[::ffff:203.0.113.5]:3478", "is an IPv4 address in disguise; write `203.0.113.5:3478`"),
    ] {
        assert_eq!(of(value), format!("2:12: `alternate.servers`: `{value}` {why}"));
    }
    assert_eq!(
        error("[alternate]\nservers = [\"203.0.113.5:1\", \"[2001:db8::5]:1\", \"203.0.113.5:1\"]"),
        "2:48: `alternate.servers` has `203.0.113.5:1` twice"
    );
    for transport in ["udp", "tcp"] {
        assert_eq!(
            error(&format!("[listen]\n{transport} = [\"203.0.113.5:1\"]\n[alternate]\nservers = [\"203.0.113.5:1\"]")),
            "4:12: `alternate.servers`: `203.0.113.5:1` is this server's own, and clients would go round in circles"
        );
    }
    assert_eq!(
        error("[alternate]\ntls-servers = [\"203.0.113.5\"]"),
        "2:16: `alternate.tls-servers`: `203.0.113.5` has no port; did you mean `203.0.113.5:5349`?"
    );
    assert_eq!(
        error("[alternate]\nservers = \"203.0.113.5:1\""),
        "2:11: `alternate.servers` is a list: put brackets around the value, as in [\"…\"]"
    );
}

// RFC 8489 §10: a client is only sent to an address of its own family.
#[test]
fn a_family_without_an_alternate_server_is_a_warning() {
    let without = |family| {
        format!("`alternate.servers` has no {family} address, so clients that come over {family} are not sent anywhere")
    };
    assert_eq!(warnings("[alternate]\nservers = [\"203.0.113.5:1\"]"), [format!("2:11: {}", without("IPv6"))]);
    assert_eq!(warnings("[alternate]\nservers = [\"[2001:db8::5]:1\"]"), [format!("2:11: {}", without("IPv4"))]);
    let v4 = "[listen]\nudp = [\"0.0.0.0:1\"]\ntcp = [\"127.0.0.1:1\"]\n[alternate]\nservers = [\"203.0.113.5:1\"]";
    assert_eq!(warnings(v4), [""; 0]);
}

const WITH_TLS: &str = "[listen]\ntls = [\"203.0.113.9:443\"]\n[tls]\ncertificate = \"a\"\nprivate-key = \"b\"\n";

// RFC 8489 §10: over the same transport.
#[test]
fn transports_without_an_alternate_server_are_a_warning() {
    let (plain, tls) = ("\"203.0.113.5:1\", \"[2001:db8::5]:1\"", "\"203.0.113.5:2\"");
    assert_eq!(
        warnings(&format!("{WITH_TLS}[alternate]\nservers = [{plain}]")),
        ["7:11: `alternate.tls-servers` is empty, so clients of `listen.tls` are not sent anywhere"]
    );
    assert_eq!(
        warnings(&format!("{WITH_TLS}[alternate]\ntls-servers = [{tls}]")),
        ["7:15: `alternate.servers` is empty, so clients of `listen.udp` and `listen.tcp` are not sent anywhere"]
    );
    assert_eq!(
        warnings(&format!("[alternate]\nservers = [{plain}]\ntls-servers = [{tls}]")),
        ["3:15: `alternate.tls-servers` has no effect, because no client comes by `listen.tls`"]
    );
    parse(&format!("{WITH_TLS}[alternate]\nservers = [{plain}]\ntls-servers = [{tls}]\ndomain = \"a.example\""));
    // The same address is another server's by another transport.
    parse(&format!("{WITH_TLS}[alternate]\nservers = [{plain}, \"203.0.113.9:443\"]\ntls-servers = [{tls}]"));
    assert_eq!(
        error(&format!("{WITH_TLS}[alternate]\ntls-servers = [\"203.0.113.9:443\"]")),
        "7:16: `alternate.tls-servers`: `203.0.113.9:443` is this server's own, and clients would go round in circles"
    );
}

#[test]
fn the_domain_of_an_alternate_server_is_a_dns_name() {
    let of = |value: &str| {
        let servers = "tls-servers = [\"203.0.113.5:1\", \"[2001:db8::5]:1\"]";
        error(&format!("[alternate]\n{servers}\ndomain = \"{value}\""))
    };
    for (value, why) in [
        ("", "is empty: write only the name or the address, as in \"turn.example.org\""),
        ("203.0.113.5", "is an address; write the name in the other servers' certificate"),
        ("2001:db8::5", "is an address; write the name in the other servers' certificate"),
        ("-a.example", "is no name for a certificate: letters, digits and hyphens within each part (RFC 1123 §2.1)"),
        ("a_b.example", "is no name for a certificate: letters, digits and hyphens within each part (RFC 1123 §2.1)"),
    ] {
        assert_eq!(of(value), format!("3:10: `alternate.domain`: `{value}` {why}"));
    }
}

#[test]
fn what_is_said_of_alternate_servers_that_are_not_listed_has_no_effect() {
    for servers in ["", "servers = []"] {
        assert_eq!(
            error(&format!("[alternate]\nwhen = \"full\"\n{servers}")),
            "2:8: `alternate.when` has no effect without `alternate.servers`: list the other servers there"
        );
        assert_eq!(
            warnings(&format!("[alternate]\ndomain = \"a.example\"\n{servers}")),
            [
                "2:10: `alternate.domain` has no effect without `alternate.tls-servers`: only clients over TLS look at it"
            ]
        );
        parse(&format!("[alternate]\nwhen = \"draining\"\n{servers}"));
    }
    assert_eq!(
        error("[alternate]\nservers = [\"203.0.113.5:1\", \"[2001:db8::5]:1\"]\nwhen = \"allways\""),
        "3:8: `alternate.when` is one of `draining`, `full` and `always`, not `allways`; did you mean `always`?"
    );
}
