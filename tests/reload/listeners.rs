//! Listeners that move between the HTTP server and the clients of the relay.

use std::net::{SocketAddr, TcpListener, TcpStream};

use nix::sys::signal::Signal;

use super::{HTTP, with};
use crate::client::Http;
use crate::support::Controlled;
use crate::support::client::{Client, Login};

fn allocate_over_tcp(server: SocketAddr) {
    Client::connect(server).allocate(&Login::mint("ann", 600)).unwrap();
}

/// Starts a server that listens on 127.0.0.1 for clients and for HTTP. Also returns the two TCP addresses.
fn start() -> (Controlled, SocketAddr, SocketAddr) {
    let server = Controlled::start(HTTP);
    let (tcp, http) = (server.server.tcp_address(), server.http_address());
    (server, tcp, http)
}

fn listen(tcp: &str, http: &str) -> [(&'static str, String); 2] {
    [("listen.tcp", format!("[{tcp:?}]")), ("http.listen", format!("[{http:?}]"))]
}

impl Controlled {
    fn with_listeners(&self, settings: &[(&str, String)]) -> String {
        let settings: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
        with(&self.config, &settings)
    }
}

#[test]
fn ports_move_between_http_and_clients_in_one_reload() {
    let (server, tcp, http) = start();
    let connected = Client::connect(tcp);
    let (session, _) = connected.allocate(&Login::mint("bob", 600)).unwrap();
    // They exchange their ports, and then the HTTP server gets both: one on the wildcard address.
    server.reload(&server.with_listeners(&listen(&http.to_string(), &tcp.to_string())));
    allocate_over_tcp(http);
    assert_eq!(Http::tcp(tcp).get("/healthz").status, 200);
    server.reload(&server.with_listeners(&listen(&format!("0.0.0.0:{}", tcp.port()), "127.0.0.1:0")));
    allocate_over_tcp(tcp);
    server.reload(&server.with_listeners(&listen("127.0.0.1:0", &format!("0.0.0.0:{}", tcp.port()))));
    assert_eq!(Http::tcp(tcp).get("/healthz").status, 200);
    assert_eq!(super::refresh(&connected, &session), None, "the connection has outlived its listener");
}

// The kernel resets the connections that wait at a socket that is closed.
#[test]
fn connections_that_wait_at_closed_listeners_are_served() {
    let (server, tcp, http) = start();
    let changed = server.with_listeners(&[("listen.tcp", "[]".to_owned()), ("http.listen", "[]".to_owned())]);
    server.server.write_config(&changed);
    // A stopped process accepts nothing.
    server.server.signal(Signal::SIGSTOP);
    let waiting: Vec<_> = (0..30).map(|_| [tcp, http].map(|own| TcpStream::connect(own).unwrap())).collect();
    server.server.signal(Signal::SIGHUP);
    server.server.signal(Signal::SIGCONT);
    server.event("reload-done");
    for (number, [tcp, http]) in waiting.into_iter().enumerate() {
        Client::on_tcp(tcp).allocate(&Login::mint(&format!("user-{number}"), 600)).unwrap();
        assert_eq!(Http::over(http).get("/healthz").status, 200);
    }
}

#[test]
fn a_port_that_both_have_is_refused_and_nothing_changes() {
    let (server, tcp, http) = start();
    for (settings, message) in [
        (
            listen(&http.to_string(), &http.to_string()),
            format!(
                "cannot listen on tcp {http}: http.listen or front.listen of this server uses {http}. Set another port"
            ),
        ),
        (
            listen(&tcp.to_string(), &format!("0.0.0.0:{}", tcp.port())),
            format!(
                "cannot listen on 0.0.0.0:{} (http.listen): another TCP or TLS listener of this server uses {tcp}. \
                 Set another port",
                tcp.port()
            ),
        ),
    ] {
        let refused = server.refused(&server.with_listeners(&settings));
        assert!(refused.contains(&message), "{refused}");
    }
    // The port that moves does not move if another listener cannot be opened.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut settings = listen(&http.to_string(), &tcp.to_string());
    settings[0].1 = format!("['{http}', '{}']", taken.local_addr().unwrap());
    assert!(server.refused(&server.with_listeners(&settings)).contains("another program uses the port"));
    assert_eq!(Http::tcp(http).get("/healthz").status, 200);
    allocate_over_tcp(tcp);
    assert_eq!(server.generation(), 1);
}
