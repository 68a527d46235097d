//! `[offload]`.

use super::*;

#[test]
fn a_wrong_mode_is_reported_with_the_words_that_there_are() {
    let error_of = |mode: &str| error(&format!("[offload]\nmode = {mode}"));
    let expected = "2:8: `offload.mode` must be one of `auto`, `off` and `require`, not";
    assert_eq!(error_of("\"on\""), format!("{expected} `on`"));
    assert_eq!(error_of("\"required\""), format!("{expected} `required`; did you mean `require`?"));
    assert_eq!(error_of("\"xdp\""), format!("{expected} `xdp`"));
    assert_eq!(error_of("true"), "2:8: `offload.mode` must be a string, not a boolean");
}

#[test]
fn a_name_that_no_interface_can_have_is_an_error() {
    for (name, what) in [
        ("", "is empty"),
        ("abcdefghijklmnop", "has 16 bytes; the name of an interface has at most 15"),
        ("ééééééé²", "has 16 bytes; the name of an interface has at most 15"),
        ("eth0/1", "contains `/`"),
        ("eth0:1", "contains `:`"),
        ("eth 0", "contains white space"),
        ("..", "is not the name of an interface"),
    ] {
        let expected = format!("2:15: `offload.interfaces`: `{name}` {what}");
        assert_eq!(error(&format!("[offload]\ninterfaces = [\"{name}\"]")), expected);
    }
    let control = error("[offload]\ninterfaces = [\"eth0\\u0000\"]");
    assert!(control.ends_with("contains a control character (U+0000)"), "{control}");
    let twice = "2:23: `offload.interfaces`: `eth0` is there twice";
    assert_eq!(error("[offload]\ninterfaces = [\"eth0\", \"eth0\"]"), twice);
}

#[test]
fn interfaces_are_auto_or_a_list_of_at_most_64_names() {
    let expected = "2:14: `offload.interfaces` must be \"auto\" or a list of names";
    for (value, what) in [
        ("\"eth0\"", "; did you mean [\"eth0\"]?"),
        ("\"Auto\"", ", not `Auto`"),
        ("\"eth0, eth1\"", ", not `eth0, eth1`"),
        ("[]", ", not an empty list: `offload.mode = \"off\"` switches the offload off"),
        ("0", ", not a whole number"),
    ] {
        assert_eq!(error(&format!("[offload]\ninterfaces = {value}")), format!("{expected}{what}"));
    }
    let names = |count: usize| {
        let names: Vec<String> = (0..count).map(|number| format!("\"eth{number}\"")).collect();
        format!("[offload]\ninterfaces = [{}]", names.join(", "))
    };
    assert!(Config::parse(&names(64), "t.toml").is_ok());
    assert_eq!(error(&names(65)), "2:14: `offload.interfaces` has 65 names; the maximum is 64");
}

#[test]
fn the_number_of_channels_has_a_range() {
    for value in ["0", "1000001", "-1"] {
        assert_eq!(
            error(&format!("[offload]\nchannels = {value}")),
            "2:12: `offload.channels` must be between 1 and 1000000"
        );
    }
}
