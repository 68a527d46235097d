//! From nothing to a certificate, and its renewal.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use tokio_rustls::rustls::{self, AlertDescription};
use turnserver::clock::unix_seconds;

use crate::pebble::{
    DIRECTORY, NAME, Place, Settings, TLS, USUAL, challenge, connect, files, presented, status, trusted, wait_for,
    wait_for_other, wait_for_state, wait_until,
};
use crate::proxy::{Gate, Proxy, Reply};
use crate::support::client::{Client, Login};
use crate::support::network::in_own_network;
use crate::support::tls::tcp;
use crate::support::{Controlled, Server};

/// Runs a test in a network of its own.
pub(crate) fn isolated(test: impl FnOnce() + Send) {
    in_own_network(&["link set lo up"], test);
}

/// A call over TLS: what the client sends comes back from its peer.
pub(crate) struct Call {
    client: Client,
    peer: UdpSocket,
    sent: u32,
}

impl Call {
    pub(crate) fn begin(client: Client) -> Self {
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.set_read_timeout(Some(crate::support::TIMEOUT)).unwrap();
        let (session, _) = client.allocate(&Login::mint("ann", 600)).unwrap();
        client.permit(&session, peer.local_addr().unwrap());
        Self { client, peer, sent: 0 }
    }

    /// Relays a datagram in each direction.
    pub(crate) fn relay(&mut self) {
        self.sent += 1;
        let payload = self.sent.to_be_bytes();
        self.client.send_to_peer(self.peer.local_addr().unwrap(), &payload);
        let mut received = [0; 64];
        let (length, relay) = self.peer.recv_from(&mut received).unwrap();
        assert_eq!(&received[..length], payload);
        self.peer.send_to(&received[..length], relay).unwrap();
        assert!(self.client.frame().unwrap().windows(4).any(|four| four == payload));
    }
}

const MORE: &str = "[peers]\nallow = [\"127.0.0.1\"]\n";

// RFC 8737. The server starts without a certificate, gets one, and uses it again after a restart.
#[test]
fn a_server_without_a_certificate_gets_one_by_tls_alpn_01_and_keeps_it() {
    isolated(|| {
        let place = Place::new();
        let config = place.config(&[NAME], MORE);
        let controlled = Controlled::start_with(&config);
        // The directory is away.
        let failed = wait_for(&controlled, "acme-failed", 1);
        assert!(failed.contains("cannot connect to 127.0.0.1"), "{failed}");
        assert_eq!(presented(TLS, NAME), Err(rustls::Error::AlertReceived(AlertDescription::AccessDenied)));
        let shown = wait_for_state(&controlled, "failed");
        assert_eq!(shown["failures"], 1, "{shown}");
        assert!(shown["next_try"].as_u64().unwrap() >= unix_seconds() + 50, "{shown}");
        // Everything else is served, and no URL names TLS.
        controlled.client().binding();
        assert_eq!(controlled.json(&["certificates"])["certificates"], serde_json::json!([]));

        let _pebble = place.pebble(USUAL);
        // A reload makes the next order at once.
        controlled.lines(&["reload"]);
        wait_for(&controlled, "acme-ordered", 1);
        wait_for(&controlled, "certificate", 1);
        let certificate = presented(TLS, NAME).unwrap();
        let client = Client::on_tls(trusted(&place, TLS, NAME));
        Call::begin(client).relay();
        assert_eq!(
            files(&place),
            [("account".to_owned(), 0o600), ("certificate.pem".to_owned(), 0o600), ("lock".to_owned(), 0o600)]
        );
        let shown = wait_for_state(&controlled, "waiting");
        assert_eq!(shown["last_error"], serde_json::Value::Null, "{shown}");
        let due = shown["next_try"].as_u64().unwrap() - unix_seconds();
        assert!((55 * 86_400..61 * 86_400).contains(&due), "{shown}");
        // No challenge is pending.
        let refused = challenge(TLS, NAME).unwrap_err();
        assert_eq!(refused, rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol));
        let text = controlled.lines(&["certificates"]).join("\n");
        assert!(text.contains(NAME) && text.contains("ordered from"), "{text}");
        controlled.server.terminate();

        let again = Controlled::start_with(&config);
        wait_for(&again, "acme-waiting", 1);
        assert_eq!(presented(TLS, NAME).unwrap(), certificate);
        assert_eq!(again.events("acme-ordering"), 0);
    });
}

// The authority reaches the server at a port that it shares with a web site.
#[test]
fn a_server_at_a_front_gets_its_certificate_by_the_challenge_of_its_port() {
    for port in [443, 80] {
        isolated(|| {
            let place = Place::new();
            let _pebble = place.pebble(USUAL);
            // There is no web server.
            let front =
                format!("[[front]]\nlisten = \"127.0.0.1:{port}\"\nweb = \"127.0.0.1:8443\"\nnames = [\"{NAME}\"]\n");
            let tls = "127.0.0.1:5349";
            let controlled = Controlled::start_with(&place.config_at(DIRECTORY, &[NAME], tls, &front));
            wait_for(&controlled, "certificate", 1);
            trusted(&place, tls, NAME);
            assert_eq!(controlled.events("acme-failed"), 0);
            let at_front = format!("127.0.0.1:{port}");
            trusted(&place, &at_front, NAME);
            // Other requests, also those for challenges of the web site, go there.
            let mut stream = tcp(at_front.parse::<SocketAddr>().unwrap());
            stream.write_all(b"GET /.well-known/acme-challenge/x HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut response = String::new();
            stream.read_to_string(&mut response).unwrap();
            assert!(response.starts_with("HTTP/1.1 502"), "{response}");
        });
    }
}

// RFC 8555 §8.3
#[test]
fn a_server_with_http_on_port_80_gets_its_certificate_by_http_01() {
    isolated(|| {
        let place = Place::new();
        let _pebble = place.pebble(USUAL);
        let tls = "127.0.0.1:5349";
        let names = [NAME, "web.example.org"];
        let config = place.config_at(DIRECTORY, &names, tls, "[http]\nlisten = [\"127.0.0.1:80\"]\n");
        let controlled = Controlled::start_with(&config);
        wait_for(&controlled, "certificate", 1);
        for name in names {
            trusted(&place, tls, name);
        }
        // Only pending tokens have a response.
        let mut stream = tcp("127.0.0.1:80".parse::<SocketAddr>().unwrap());
        stream
            .write_all(b"GET /.well-known/acme-challenge/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 404"), "{response}");
        let ended = controlled.server.terminate();
        let ordered: Vec<_> = ended.logs.iter().filter_map(|line| line.field("event")).collect();
        assert!(!ordered.contains(&"acme-failed".to_owned()), "{ordered:?}");
    });
}

// Every listener that serves TLS responds to it: one for HTTP, and one for TCP, which also serves TLS.
#[test]
fn each_kind_of_tls_listener_responds_to_tls_alpn_01() {
    isolated(|| {
        let place = Place::new();
        let _pebble = place.pebble(USUAL);
        let https = "[http]\nlisten = [\"127.0.0.1:443\"]\ntls = true\n";
        let controlled = Controlled::start_with(&place.config_at(DIRECTORY, &[NAME], "127.0.0.1:5349", https));
        wait_for(&controlled, "certificate", 1);
        trusted(&place, TLS, NAME);
        assert_eq!(controlled.server.terminate().code, Some(0));

        std::fs::remove_dir_all(place.state()).unwrap();
        let config = place.config_at(DIRECTORY, &[NAME], "127.0.0.1:5349", "");
        let tcp = Controlled::start_with(&config.replace("tcp = [\"127.0.0.1:0\"]", "tcp = [\"127.0.0.1:443\"]"));
        wait_for(&tcp, "certificate", 1);
        trusted(&place, TLS, NAME);
    });
}

#[test]
fn a_certificate_is_renewed_under_a_call() {
    isolated(|| {
        let place = Place::new();
        let _pebble = place.pebble(Settings { life: 30, ..USUAL });
        let controlled = Controlled::start_with(&place.config(&[NAME], MORE));
        wait_for(&controlled, "certificate", 1);
        let mut call = Call::begin(Client::on_tls(connect(TLS, NAME, None).unwrap()));
        let first = presented(TLS, NAME).unwrap();
        let is_renewed = || {
            call.relay();
            presented(TLS, NAME).unwrap() != first
        };
        wait_until(is_renewed, "the certificate has not been renewed");
        call.relay();
        trusted(&place, TLS, NAME);
        assert_eq!(controlled.events("acme-failed"), 0);
    });
}

#[test]
fn another_set_of_names_is_ordered_at_a_reload_and_no_more_acme_leaves_the_state() {
    isolated(|| {
        let place = Place::new();
        let _pebble = place.pebble(USUAL);
        let controlled = Controlled::start_with(&place.config(&[NAME], MORE));
        wait_for(&controlled, "certificate", 1);
        let mut call = Call::begin(Client::on_tls(connect(TLS, NAME, None).unwrap()));
        let first = presented(TLS, NAME).unwrap();
        let control = format!("[control]\nsocket = {:?}\n", controlled.socket);
        let names = [NAME, "other.example.org"];
        controlled.server.write_config(&(place.config(&names, MORE) + &control));
        let response = controlled.json(&["reload"]);
        assert_eq!(response["changes"][0]["key"], "tls.acme.domains", "{response}");
        wait_for_other(TLS, NAME, &first);
        names.iter().for_each(|name| drop(trusted(&place, TLS, name)));
        call.relay();
        // Files of somebody else in place of it.
        let files = place.authority.write(&place.authority.issue(&["localhost"]), place.directory.path());
        let own = crate::support::with_tls(&crate::support::config(&["127.0.0.1"], MORE), &["127.0.0.1"], &files);
        controlled
            .server
            .write_config(&(own.replace("tls = [\"127.0.0.1:0\"]", &format!("tls = [{TLS:?}]")) + &control));
        controlled.lines(&["reload"]);
        wait_until(|| status(&controlled).is_null(), "there are orders without `[tls.acme]`");
        assert!(place.state().join("certificate.pem").exists());
        call.relay();
    });
}

// RFC 8555 §7.3.4
#[test]
fn an_authority_that_requires_an_external_account_gets_its_key() {
    const KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    isolated(|| {
        let place = Place::new();
        let _pebble = place.pebble(Settings { external_account: Some(("kid-1", KEY)), ..USUAL });
        let controlled = Controlled::start_with(&place.config(&[NAME], ""));
        let failed = wait_for(&controlled, "acme-failed", 1);
        assert!(failed.contains("tls.acme.eab-key-id"), "{failed}");
        let control = format!("[control]\nsocket = {:?}\n", controlled.socket);
        let with_key = |key: &str| {
            let file = place.directory.write("eab", key);
            let more = format!("eab-key-id = \"kid-1\"\neab-key-file = {file:?}\n");
            controlled.server.write_config(&(place.config(&[NAME], &more) + &control));
            controlled.lines(&["reload"]);
        };
        with_key("d3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmc");
        let failed = wait_for(&controlled, "acme-failed", 2);
        assert!(failed.contains("has made no account"), "{failed}");
        with_key(KEY);
        wait_for(&controlled, "certificate", 1);
        let log: String = controlled.server.terminate().logs.iter().map(|line| line.text().to_owned()).collect();
        assert!(!log.contains(KEY) && !log.contains("zWND"), "the log has the key");
    });
}

// RFC 9773
#[test]
fn the_authority_chooses_when_the_certificate_is_renewed() {
    isolated(|| {
        let place = Place::new();
        let _pebble = place.pebble(USUAL);
        let proxy = Proxy::start(&place, |path| match path {
            "/dir" => Reply::Directory("https://127.0.0.1:14001/renewal"),
            path if path.starts_with("/renewal/") => {
                let (start, end) = crate::proxy::window();
                Reply::RenewalInfo(start, end)
            }
            _ => Reply::Forward,
        });
        let controlled = Controlled::start_with(&place.config_at(proxy.directory(), &[NAME], TLS, ""));
        wait_for(&controlled, "certificate", 1);
        let (first, last) = crate::proxy::window();
        let is_in_window = || {
            let next = status(&controlled)["next_try"].as_u64().unwrap_or_default();
            (first..=last).contains(&next)
        };
        wait_until(is_in_window, "the renewal is not in the window");
        assert!(proxy.paths().iter().any(|path| path.starts_with("/renewal/") && path.contains('.')));
    });
}

// RFC 9773 §4.2 and §5: a window in the past, as before a revocation.
#[test]
fn a_certificate_that_the_authority_wants_to_be_replaced_is_renewed_early_under_a_call() {
    const LIFE: u64 = 45;
    const PROFILE: &str = "profile = \"shortlived\"\n";
    isolated(|| {
        let place = Place::new();
        let _pebble = place.pebble(Settings { life: LIFE, ..USUAL });
        let proxy = Proxy::start(&place, |path| match path {
            "/dir" => Reply::Directory("https://127.0.0.1:14001/renewal"),
            path if path.starts_with("/renewal/") => Reply::RenewalInfo(0, 1),
            _ => Reply::Forward,
        });
        let more = format!("{PROFILE}{MORE}");
        let controlled = Controlled::start_with(&place.config_at(proxy.directory(), &[NAME], TLS, &more));
        wait_for(&controlled, "certificate", 1);
        let from = || controlled.json(&["certificates"])["certificates"][0]["not_before"].as_u64().unwrap();
        let (first, began) = (presented(TLS, NAME).unwrap(), from());
        let mut call = Call::begin(Client::on_tls(connect(TLS, NAME, None).unwrap()));
        let is_renewed = || {
            call.relay();
            presented(TLS, NAME).unwrap() != first
        };
        wait_until(is_renewed, "the certificate has not been renewed");
        call.relay();
        // Without the suggestion, a third of the life would be left.
        let life = from() - began;
        assert!((LIFE / 3..LIFE * 3 / 5).contains(&life), "renewed after {life} s");
        let requests = proxy.requests();
        let asked = requests.iter().find_map(|request| request.path.strip_prefix("/renewal/")).unwrap();
        let orders: Vec<_> = requests.iter().filter(|request| request.path == "/order-plz").collect();
        assert!(!orders[0].payload.contains("replaces"), "{orders:?}");
        assert!(orders.iter().all(|order| order.payload.contains("\"profile\":\"shortlived\"")), "{orders:?}");
        // Pebble does not know it, so that the last one is without it.
        let replaces = format!("\"replaces\":{asked:?}");
        assert!(orders.iter().any(|order| order.payload.contains(&replaces)), "{asked} {orders:?}");
        assert_eq!(controlled.events("acme-failed"), 0);
        let explained = wait_for(&controlled, "acme-renewal-suggested", 1);
        assert!(explained.contains("https://example.org/why"), "{explained}");
    });
}

// A front, or a listener for the other challenge, is set up while the authority checks the name.
#[test]
fn an_order_continues_when_listeners_are_added() {
    isolated(|| {
        let place = Place::new();
        let _pebble = place.pebble(USUAL);
        let gate = Arc::new(Gate::default());
        let closed = Arc::clone(&gate);
        let proxy = Proxy::start(&place, move |path| {
            if path == "/order-plz" {
                closed.pass();
            }
            Reply::Forward
        });
        let config = |more: &str| place.config_at(proxy.directory(), &[NAME], TLS, more);
        let controlled = Controlled::start_with(&config(""));
        wait_until(|| proxy.count("/order-plz") > 0, "nothing is ordered");
        let control = format!("[control]\nsocket = {:?}\n", controlled.socket);
        let more = "contact = \"mailto:a@example.org\"\n[http]\nlisten = [\"127.0.0.1:80\"]\n";
        controlled.server.write_config(&(config(more) + &control));
        controlled.lines(&["reload"]);
        gate.open();
        wait_for(&controlled, "certificate", 1);
        trusted(&place, TLS, NAME);
        assert_eq!(["acme-ordering", "acme-failed"].map(|event| controlled.events(event)), [1, 0]);
    });
}

#[test]
fn a_server_that_still_orders_its_certificate_does_not_name_tls_to_clients() {
    isolated(|| {
        let place = Place::new();
        let text =
            place.config(&[NAME], "").replace(&format!("[auth]\nsecrets = [{:?}]\n", crate::support::SECRET), "");
        let server = Server::start(&text);
        let printed = server.wait_for_stdout(1).join("\n");
        assert!(printed.contains("turn:") && !printed.contains("turns:"), "{printed}");
        let _pebble = place.pebble(USUAL);
        server.signal(nix::sys::signal::Signal::SIGHUP);
        let is_named = || server.stdout().join("\n").contains(&format!("turns:{NAME}"));
        wait_until(is_named, "no URL names TLS");
    });
}
