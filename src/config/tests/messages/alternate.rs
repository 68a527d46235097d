//! `[alternate]`.

use super::*;

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
        "2:11: `alternate.servers` must be a list of addresses, for example [\"203.0.113.5:3478\"], or \"fleet\" for the \
         other nodes of `[fleet]`"
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

// With a certificate, a TCP listener serves TLS clients too.
#[test]
fn a_tcp_listener_with_a_certificate_counts_for_both_lists() {
    let (plain, tls) = ("\"198.51.100.1:443\"", "\"198.51.100.1:5349\"");
    let with = |listen: &str, servers: &str| {
        format!("[listen]\n{listen}\n[alternate]\n{servers}\n[tls]\ncertificate = \"a\"\nprivate-key = \"b\"\n")
    };
    let listen = "udp = []\ntcp = [\"203.0.113.9:443\"]\ntls = [\"203.0.113.9:443\"]";
    parse(&with(listen, &format!("servers = [{plain}]\ntls-servers = [{tls}]")));
    let only_tcp = "udp = []\ntcp = [\"203.0.113.9:443\"]";
    let warned = |servers: &str, part: &str| warnings(&with(only_tcp, servers)).iter().any(|line| line.contains(part));
    assert!(!warned(&format!("servers = [{plain}]\ntls-servers = [{tls}]"), "has no effect"));
    assert!(warned(&format!("servers = [{plain}]"), "TLS clients are not redirected"));
    let message = error(&with(only_tcp, "tls-servers = [\"203.0.113.9:443\"]"));
    assert!(message.contains("redirected in a loop"), "{message}");
}

// RFC 8489 §10: over the same transport.
#[test]
fn a_transport_without_an_alternate_server_causes_a_warning() {
    let (plain, tls) = ("\"203.0.113.5:1\", \"[2001:db8::5]:1\"", "\"203.0.113.5:2\", \"[2001:db8::5]:2\"");
    assert_eq!(
        warnings(&format!("{WITH_TLS}[alternate]\nservers = [{plain}]")),
        ["7:11: `alternate.tls-servers` is empty, so TLS clients are not redirected"]
    );
    assert_eq!(
        warnings(&format!("{WITH_TLS}[alternate]\ntls-servers = [{tls}]")),
        ["7:15: `alternate.servers` is empty, so clients of `listen.udp` and `listen.tcp` are not redirected"]
    );
    assert_eq!(
        warnings(&format!("[alternate]\nservers = [{plain}]\ntls-servers = [{tls}]")),
        [
            "3:15: `alternate.tls-servers` has no effect without listeners in `listen.tls` or, with `[tls]`, in `listen.tcp`"
        ]
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
