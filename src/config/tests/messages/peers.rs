//! `[peers]`.

use super::*;

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
fn an_allowed_range_with_embedded_ipv4_addresses_causes_a_warning() {
    for (range, form) in [
        ("64:ff9b::/96", "NAT64"),
        ("::/96", "IPv4-compatible"),
        ("::ffff:0:0:0/96", "IPv4-translated"),
        ("2000::/3", "Teredo and 6to4"),
    ] {
        let expected = format!(
            "2:10: `peers.allow`: `{range}` also allows the IPv4 addresses that it contains in {form} form, even if they \
             are private"
        );
        assert_eq!(warnings(&format!("[peers]\nallow = [\"{range}\"]")), [expected]);
    }
    assert!(warnings("[peers]\ndeny = [\"64:ff9b::/96\"]").is_empty());
    assert!(warnings("[peers]\nallow = [\"64:ff9b::a00:5\"]").is_empty());

    let with_gateway =
        |range: &str| warnings(&format!("[peers]\nallow = [\"{range}\"]\nnat64-prefixes = [\"fd00:64::/96\"]"));
    for range in ["fd00::/8", "fd00:64::/96", "fd00:64::a00:0/104"] {
        let expected = format!(
            "2:10: `peers.allow`: `{range}` also allows the IPv4 addresses behind the gateway `fd00:64::/96` \
             (`peers.nat64-prefixes`), even if they are private"
        );
        assert_eq!(with_gateway(range), [expected]);
    }
    assert!(with_gateway("fd00:65::/96").is_empty() && with_gateway("fd00:64::a00:5").is_empty());
}

// RFC 6052 §2.2, §3.1: the prefix of a gateway is the well-known one or a global or unique local one.
#[test]
fn a_prefix_that_no_gateway_has_is_an_error() {
    for (text, expected) in [
        (
            "[peers]\nnat64-prefixes = [\"2001:db8:64::/95\"]",
            "2:19: `peers.nat64-prefixes`: `2001:db8:64::/95` must be an IPv6 prefix of 32, 40, 48, 56, 64 or 96 bits \
             (RFC 6052 §2.2), for example \"2001:db8:64::/96\"",
        ),
        (
            "[peers]\nnat64-prefixes = [\"2001:db8::/48\", \"2001:db8::/96\"]",
            "2:36: `peers.nat64-prefixes`: `2001:db8::/96` overlaps `2001:db8::/48`",
        ),
    ] {
        assert_eq!(error(text), expected, "{text}");
    }
    for prefix in ["fe80::/64", "ff02::/96", "::/96"] {
        let message = error(&format!("[peers]\nnat64-prefixes = [\"{prefix}\"]"));
        assert!(message.contains("is in a range of local or multicast addresses"), "{message}");
    }
}
