//! `[listen]` and `[tls]`.

use super::*;

const TLS: &str = "[tls]\ncertificate = \"c.pem\"\nprivate-key = \"k.pem\"\n";

#[test]
fn tls_listeners_require_a_certificate_and_vice_versa() {
    assert_eq!(
        error("[listen]\ntls = [\"[::]:5349\"]"),
        "2:7: `listen.tls` needs a certificate: set `certificate` and `private-key` in `[tls]`, or `[tls.acme]`"
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
            "3:1: `[tls]` has no `certificate`: set the path of the PEM file, or set `[tls.acme]`",
            "3:1: `[tls]` has no `private-key`: set the path of the PEM file, or set `[tls.acme]`",
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
    let further = format!("{listen}{TLS}[[tls.certificates]]\n");
    assert_eq!(
        errors(&format!("{further}certificat = \"c.pem\"\nprivate-key = \"\"")),
        [
            "6:1: a certificate of `[[tls.certificates]]` has no `certificate`: set the path of the PEM file",
            "7:1: unknown key `certificat` in `[[tls.certificates]]`; did you mean `certificate`?",
            "8:15: `tls.certificates.private-key` is empty: set the path of a PEM file",
        ]
    );
    assert_eq!(
        error(&format!("{further}certificate = \"c.pem\"\nprivate-key = \"other.pem\"")),
        "7:15: `tls.certificates.certificate`: `c.pem` is configured already: remove one of the two certificates"
    );
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
fn proxies_are_prefixes_and_everybody_is_a_warning() {
    let config = parse("[listen]\nproxies = [\"10.0.0.7\", \"10.1.0.0/16\", \"2001:db8::/64\"]");
    let shown: Vec<String> = config.proxies.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["10.0.0.7/32", "10.1.0.0/16", "2001:db8::/64"]);
    assert_eq!(config.warnings, []);
    for all in ["0.0.0.0/0", "::/0"] {
        let expected =
            format!("2:12: `listen.proxies` contains {all}: everybody is a proxy, so every client can choose");
        let warnings = warnings(&format!("[listen]\nproxies = [\"{all}\"]"));
        assert!(matches!(warnings.as_slice(), [warning] if warning.starts_with(&expected)), "{warnings:?}");
    }
    for (list, message) in [
        ("[\"10.0.0.7\", \"10.0.0.7/32\"]", "2:24: `listen.proxies` contains 10.0.0.7 twice"),
        (
            "[\"10.0.0.7/8\"]",
            "2:12: `listen.proxies`: `10.0.0.7/8` has bits set after the prefix; did you mean `10.0.0.0/8`?",
        ),
        ("[\"::ffff:10.0.0.7\"]", "2:12: `listen.proxies`: `::ffff:10.0.0.7` is IPv4-mapped; use `10.0.0.7`"),
    ] {
        assert_eq!(error(&format!("[listen]\nproxies = {list}")), message);
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
