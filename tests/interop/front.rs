//! What `openssl s_client` and `curl` find at a port that the relay shares with a web site of Debian's nginx. Only over
//! loopback, because no data is relayed.

use crate::http::Http;
use crate::openssl::{Fixture, PAGE, Port};

const RELAY: &str = "turn.example.org";
const WEB: &str = "www.example.org";

/// Returns the number of connections for the web site so far.
fn to_web_site(fixture: &Fixture) -> u64 {
    let page = Http::unix(&fixture.server.socket).get("/metrics").body;
    let name = "turnserver_front_decisions_total{destination=\"web\"} ";
    page.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
}

/// Checks who serves a client: the certificate that it gets is for this name.
#[track_caller]
fn assert_served_by(port: &Port<'_>, name: &str, arguments: &str) {
    port.assert_connects(&format!("-verify_return_error -verify_hostname {name} {arguments}"), "Verify return code: 0");
}

#[test]
fn curl_gets_the_pages_of_the_web_site() {
    let fixture = Fixture::start();
    for port in [fixture.plain_front(), fixture.full_front()] {
        for (arguments, version) in [("--http1.1", "1.1"), ("--http2", "2"), ("--no-alpn", "1.1")] {
            let get = |path: &str| {
                let finished = port.curl("https", WEB, path, &[arguments, "-w", "\n%{http_code} %{http_version}"]);
                assert_eq!(finished.code, Some(0), "{finished:?}");
                finished.stdout
            };
            assert_eq!(get("/"), [PAGE, &format!("200 {version}")]);
            assert_eq!(get("/visitor"), ["127.0.0.1", &format!("200 {version}")]);
        }
        // nginx responds to HTTP without TLS, too.
        let plain = port.curl("http", WEB, "/", &[]).stdout.concat();
        assert!(plain.contains("The plain HTTP request was sent to HTTPS port"), "{plain}");
    }
}

#[test]
fn curl_reaches_with_the_name_of_the_relay_what_the_front_is_configured_for() {
    let fixture = Fixture::start();
    // 60: the certificate is that of the web site.
    assert_eq!(fixture.plain_front().curl("https", RELAY, "/healthz", &[]).code, Some(60));
    let page = fixture.plain_front().curl("https", RELAY, "/", &["--insecure"]);
    assert_eq!(page.stdout, [PAGE], "{page:?}");
    // Without ALPN, it is a client of TURN, which begins with no letter.
    let finished = fixture.plain_front().curl("https", RELAY, "/", &["--no-alpn"]);
    assert_eq!(finished.code, Some(52), "{finished:?}");
    assert_eq!(fixture.full_front().curl("https", RELAY, "/healthz", &[]).stdout, ["ok"]);
}

#[test]
fn the_server_name_and_the_application_protocols_of_openssl_decide() {
    let fixture = Fixture::start();
    let (plain, full) = (fixture.plain_front(), fixture.full_front());
    for version in ["-tls1_2", "-tls1_3"] {
        for port in [&plain, &full] {
            for protocols in ["", "-alpn stun.turn", "-alpn stun.nat-discovery,h2"] {
                assert_served_by(port, RELAY, &format!("{version} -servername {RELAY} {protocols}"));
                assert_served_by(port, WEB, &format!("{version} -servername {WEB}"));
            }
            assert_served_by(port, WEB, &format!("{version} -servername other.example"));
            assert_served_by(port, WEB, &format!("{version} -servername {RELAY} -alpn h2"));
        }
        assert_served_by(&plain, WEB, &format!("{version} -noservername"));
        assert_served_by(&full, RELAY, &format!("{version} -noservername"));
        assert_served_by(&plain, WEB, &format!("{version} -servername {RELAY} -alpn h2,http/1.1"));
        assert_served_by(&full, RELAY, &format!("{version} -servername {RELAY} -alpn h2,http/1.1"));
    }
}

// RFC 8737 §3: an authority that checks the web site's own certificate.
#[test]
fn a_challenge_that_is_not_pending_reaches_the_web_site() {
    let fixture = Fixture::start();
    for port in [fixture.plain_front(), fixture.full_front()] {
        for name in [RELAY, WEB] {
            let before = to_web_site(&fixture);
            // nginx has no challenge either.
            port.assert_refused(&format!("-servername {name} -alpn acme-tls/1"), "alert no application protocol");
            assert_eq!(to_web_site(&fixture), before + 1);
        }
    }
}

#[test]
fn old_clients_reach_the_web_site_and_are_refused_by_the_relay() {
    let fixture = Fixture::start();
    let front = fixture.plain_front();
    for version in ["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"] {
        let option = version.to_lowercase().replace('v', "").replace('.', "_");
        // In the versions before 1.2, the client uses SHA-1.
        let arguments = format!("-{option} -cipher ALL:@SECLEVEL=0");
        front.assert_connects(&format!("{arguments} -servername {WEB} -brief"), &format!("version: {version}\n"));
        if matches!(version, "TLSv1" | "TLSv1.1") {
            front.assert_refused(&format!("{arguments} -servername {RELAY}"), "SSL alert number");
        }
    }
    // What a client does later reaches the web site, too.
    front.assert_connects(&format!("-tls1_2 -reconnect -servername {WEB}"), "Reused, TLSv1.2");
    assert!(!front.renegotiates(&format!("-tls1_2 -servername {RELAY}")));
}
