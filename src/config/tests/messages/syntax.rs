//! Syntax errors, positions and order.

use super::*;

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
        "1:25: unknown key `größe` in `[log]`; valid keys are `level`, `format`, `client-addresses` and `usernames`"
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
