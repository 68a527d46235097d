//! `[[front]]`.

use super::*;

const TLS: &str = "[tls]\ncertificate = \"c.pem\"\nprivate-key = \"k.pem\"\n";

fn front(keys: &str) -> String {
    format!("{TLS}[[front]]\n{keys}")
}

#[test]
fn a_front_needs_an_address_and_a_web_site() {
    assert_eq!(
        errors(&front("names = [\"turn.example.org\"]")),
        [
            "4:1: `[[front]]` has no `listen`: set for example listen = \"[::]:443\"",
            "4:1: `[[front]]` has no `web`: set for example web = \"127.0.0.1:8443\"",
        ]
    );
    // A wrong front uses the certificate all the same.
    let only = "[listen]\nudp = [\"[::]:3478\"]\ntcp = []\n";
    assert_eq!(errors(&format!("{only}{}", front("listen = \"[::]:443\"\nweb = \"name:1\""))).len(), 1);
    assert_eq!(
        error("[front]\nlisten = \"[::]:443\""),
        "1:1: `front` must be a list of tables: write each one as `[[front]]`"
    );
}

#[test]
fn the_web_site_is_an_address_or_a_unix_socket_and_not_a_front() {
    let of = |web: &str| error(&front(&format!("listen = \"[::]:443\"\nnames = [\"a.example\"]\nweb = \"{web}\"")));
    assert_eq!(of("web.example.org:8443"), "7:7: `front.web`: `web.example.org:8443` is a name; use an IP address");
    assert_eq!(
        of("0.0.0.0:8443"),
        "7:7: `front.web`: `0.0.0.0:8443` is not the address of a web server, for example \"127.0.0.1:8443\""
    );
    for web in ["127.0.0.1:443", "[::1]:443"] {
        assert_eq!(
            of(web),
            format!("4:1: `front.web`: {web} is the address of a front, so visitors would go in a circle")
        );
    }
    for (before, what) in [
        ("[listen]\ntcp = [\"127.0.0.1:8443\"]\n", "a listener of the relay, whose limits visitors would escape"),
        (
            "[http]\nlisten = [\"0.0.0.0:8443\"]\n",
            "`http.listen`, where every visitor would seem to be on this machine",
        ),
    ] {
        let web = "listen = \"[::]:443\"\nnames = [\"a.example\"]\nweb = \"127.0.0.1:8443\"";
        let error = error(&format!("{before}{}", front(web)));
        assert!(error.contains(&format!("`front.web`: 127.0.0.1:8443 is the address of {what}")), "{error}");
    }
    for (web, path) in [("unix:/run/web.sock", "/run/web.sock"), ("/run/web.sock", "/run/web.sock")] {
        let config = parse(&front(&format!("listen = \"[::]:443\"\nnames = [\"a.example\"]\nweb = \"{web}\"")));
        assert_eq!(config.fronts[0].web, WebSite::Unix(path.into()));
    }
}

#[test]
fn the_port_of_a_front_belongs_to_nothing_else() {
    let other = "listen = \"0.0.0.0:443\"\nweb = \"127.0.0.1:8443\"\nnames = [\"a.example\"]\n";
    for (before, name) in [
        ("[listen]\ntls = [\"[::]:443\"]\n", "`listen.tls`"),
        ("[listen]\ntcp = [\"[::]:443\"]\n", "`listen.tcp`"),
        ("[http]\nlisten = [\"[::]:443\"]\n", "`http.listen`"),
        ("[[front]]\nlisten = \"[::]:443\"\nweb = \"127.0.0.1:1\"\nnames = [\"a.example\"]\n", "another `[[front]]`"),
    ] {
        let error = error(&format!("{before}{}", front(other)));
        let expected = format!("`front.listen`: {name} has 0.0.0.0:443 too. A front serves TURN over TCP and TLS");
        assert!(error.contains(&expected), "{error}");
    }
    // UDP has ports of its own.
    parse(&format!("[listen]\nudp = [\"[::]:443\"]\n{}", front(other)));
}

#[test]
fn the_names_of_the_relay_are_dns_names_and_the_default_is_the_hostname() {
    let of = |first: &str, names: &str| {
        format!("{first}{}", front(&format!("listen = \"[::]:443\"\nweb = \"127.0.0.1:8443\"\n{names}")))
    };
    assert_eq!(parse(&of("hostname = \"turn.example.org\"\n", "")).fronts[0].names, ["turn.example.org"]);
    assert_eq!(
        error(&of("", "names = [\"192.0.2.7\"]")),
        "7:10: `front.names`: `192.0.2.7` is an address: clients send no server name for it; see `without-name`"
    );
    assert_eq!(
        error(&of("", "names = [\"*.example.org\"]")),
        "7:10: `front.names`: `*.example.org` contains a wildcard: use only the name or the address, for example \
         \"turn.example.org\""
    );
    let none = "the front at [::]:443 has no name of the relay, so it serves no `turns:` URL: set `names`, or \
                `hostname` at the top of the file";
    for first in ["", "hostname = \"192.0.2.7\"\n"] {
        let lines = warnings(&of(first, ""));
        assert!(matches!(lines.as_slice(), [line] if line.ends_with(none)), "{lines:?}");
    }
    parse(&of("", "without-name = \"relay\""));
    parse(&of("", "").replace("443", "80").replace("880", "8080"));
}

#[test]
fn without_a_certificate_names_have_no_effect_and_pages_cannot_be_served() {
    let of = |more: &str| {
        format!("[[front]]\nlisten = \"[::]:443\"\nweb = \"127.0.0.1:1\"\nnames = [\"a.example\"]\n{more}")
    };
    let lines = warnings(&of(""));
    assert!(matches!(lines.as_slice(), [line] if line.contains("without TLS only")), "{lines:?}");
    assert!(error(&of("http = true")).contains("`front.http` needs a certificate"));
}

#[test]
fn unknown_values_of_a_front_are_errors() {
    let of = |keys: &str| {
        error(&front(&format!("listen = \"[::]:443\"\nweb = \"127.0.0.1:8443\"\nnames = [\"a.example\"]\n{keys}")))
    };
    assert_eq!(
        of("without-name = \"relya\""),
        "8:16: `front.without-name` must be one of `web` and `relay`, not `relya`; did you mean `relay`?"
    );
    assert_eq!(of("connections = 0"), "8:15: `front.connections` must be between 1 and 1000000");
    assert_eq!(of("idle = \"2d\""), "8:8: `front.idle` must be between 1s and 1d");
    assert_eq!(of("nmaes = []"), "8:1: unknown key `nmaes` in `[[front]]`; did you mean `names`?");
}
