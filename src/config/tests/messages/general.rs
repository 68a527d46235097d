//! Top-level settings and `[timeouts]`.

use super::*;

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
    assert!(Config::parse(&format!("realm = \"{}\"", "ä".repeat(127)), "t.toml").is_ok());
}

#[test]
fn a_realm_that_makes_challenges_long_causes_a_warning() {
    assert_eq!(warnings(&format!("realm = \"{}\"", "r".repeat(64))), [""; 0]);
    assert_eq!(
        warnings(&format!("realm = \"{}\"", "ä".repeat(33))),
        [
            "1:9: `realm` has 66 bytes, and each 401 response contains it: requests with a forged source make the server \
         send several times as many bytes to that source. Use at most 64 bytes"
        ]
    );
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
