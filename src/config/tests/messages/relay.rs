//! `[relay]`.

use super::*;

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
fn unusual_ports_and_limits_without_effect_cause_warnings() {
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
    ] {
        assert_eq!(warnings(text), [expected], "{text}");
    }
}
