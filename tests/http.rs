//! Tests of the real server over HTTP: metrics, health, and the control socket.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "http/client.rs"]
mod client;
#[cfg(test)]
mod support;

#[cfg(test)]
mod http {
    use std::collections::HashSet;
    use std::fs;
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpStream};
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use nix::sys::signal::Signal;
    use turnserver::clock::{Clock, unix_seconds};

    use crate::client::{Http, Response};
    use crate::support::certificates::Authority;
    use crate::support::client::{self, Client, Login};
    use crate::support::{Server, TIMEOUT, TempDir, config, tls, with_tls};

    const HTTP: &str = "[http]\nlisten = [\"127.0.0.1:0\"]\n";

    fn http_address(server: &Server) -> SocketAddr {
        server.wait_for_log(|line| line.message() == "HTTP listening").field("address").unwrap().parse().unwrap()
    }

    fn get(server: &Server, path: &str) -> Response {
        Http::tcp(http_address(server)).get(path)
    }

    /// Returns a sample of the metrics page.
    fn metric(page: &str, sample: &str) -> u64 {
        let line = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {sample} in:\n{page}")).parse().unwrap()
    }

    /// Requests the metrics until they have this line. A worker that is busy publishes its gauges up to a second later.
    fn page_with(server: &Server, line: &str) -> Response {
        let start = Clock::start();
        loop {
            let page = get(server, "/metrics");
            if page.body.lines().any(|other| other == line) {
                return page;
            }
            assert!(start.elapsed() < TIMEOUT, "no {line} in:\n{}", page.body);
        }
    }

    /// Returns the inodes of the sockets of a process on which it accepts TCP connections.
    fn listening_sockets(process: u32) -> usize {
        let descriptors = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
        let links = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        let own: HashSet<String> = links
            .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
            .collect();
        const LISTEN: &str = "0A";
        let tables = ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/{process}/net/{table}")).unwrap());
        let rows = tables.iter().flat_map(|table| table.lines().skip(1));
        let listening = rows.filter(|row| {
            let columns: Vec<&str> = row.split_whitespace().collect();
            columns[3] == LISTEN && own.contains(columns[9])
        });
        listening.count()
    }

    #[test]
    fn http_gives_way_to_the_workers() {
        let server = Server::start(&format!("workers = 2\n{}", config(&["127.0.0.1"], HTTP)));
        let _ = get(&server, "/healthz");
        let tasks = fs::read_dir(format!("/proc/{}/task", server.id())).unwrap();
        let mut nice: Vec<(String, i32)> = tasks
            .map(|task| {
                let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
                let (name, rest) = stat.split_once('(').unwrap().1.rsplit_once(')').unwrap();
                (name.to_owned(), rest.split_whitespace().nth(16).unwrap().parse().unwrap())
            })
            .filter(|(name, _)| name == "http" || name.starts_with("worker-"))
            .collect();
        nice.sort();
        // The workers have the priority of this test.
        let own = nice.last().unwrap().1;
        let expected = [("http", (own + 10).min(19)), ("worker-0", own), ("worker-1", own)];
        assert_eq!(nice, expected.map(|(name, nice)| (name.to_owned(), nice)));
    }

    #[test]
    fn without_an_http_listener_no_port_is_open() {
        let without = Server::start(&format!("workers = 1\n{}", config(&["127.0.0.1"], "")));
        let with = Server::start(&format!("workers = 1\n{}", config(&["127.0.0.1"], HTTP)));
        // The TCP listener of TURN.
        assert_eq!((listening_sockets(without.id()), listening_sockets(with.id())), (1, 2));
    }

    #[test]
    fn the_metrics_agree_with_what_a_client_counts() {
        let server = Server::start(&config(&["127.0.0.1"], &format!("[peers]\nallow = [\"127.0.0.1\"]\n{HTTP}")));
        let peer = client::socket("127.0.0.1:0".parse().unwrap());
        let client = Client::new(server.udp_address());
        let (session, relayed) = client.allocate(&Login::mint("ann", 600)).unwrap();
        client.permit(&session, peer.local_addr().unwrap());
        let (mut to_peer, mut to_client) = (0, 0);
        for length in (0..1_200).step_by(31) {
            client.send_to_peer(peer.local_addr().unwrap(), &vec![7; length]);
            to_peer += client::receive(&peer).0.len() as u64;
            peer.send_to(&vec![8; length / 2], relayed).unwrap();
            client.receive();
            to_client += (length / 2) as u64;
        }
        let page = page_with(&server, "turnserver_allocations{transport=\"udp\",family=\"ipv4\"} 1");
        assert_eq!((page.status, page.header("content-type")), (200, Some("text/plain; version=0.0.4; charset=utf-8")));
        let value = |sample: &str| metric(&page.body, sample);
        assert_eq!(value("turnserver_relayed_bytes_total{direction=\"to_peer\"}"), to_peer);
        assert_eq!(value("turnserver_relayed_bytes_total{direction=\"to_client\"}"), to_client);
        assert_eq!(value("turnserver_relayed_packets_total{direction=\"to_peer\"}"), 39);
        assert_eq!(value("turnserver_relayed_packets_total{direction=\"to_client\"}"), 39);
        assert_eq!(value("turnserver_relay_ports{state=\"used\"}"), 1);
        assert_eq!(value("turnserver_answered_requests_total{method=\"Allocate\"}"), 1);
        assert_eq!(value("turnserver_rejected_requests_total{code=\"401\"}"), 1);
        client.delete(&session);
        let page = page_with(&server, "turnserver_allocations{transport=\"udp\",family=\"ipv4\"} 0").body;
        assert_eq!(metric(&page, "turnserver_relay_ports{state=\"used\"}"), 0);
        assert_eq!(metric(&page, "turnserver_relay_ports{state=\"quarantined\"}"), 1);
    }

    #[test]
    fn prometheus_gets_open_metrics_if_it_accepts_it() {
        let server = Server::start(&config(&["127.0.0.1"], HTTP));
        let accept = "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2\r\n";
        let page = Http::tcp(http_address(&server)).request("GET", "/metrics", accept, b"");
        assert_eq!(page.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
        assert!(page.body.ends_with("# EOF\n"), "{}", page.body);
        assert!(page.body.contains("# UNIT turnserver_relayed_bytes bytes\n"), "{}", page.body);
    }

    #[test]
    fn a_draining_server_is_healthy_and_not_ready() {
        let server = Server::start(&config(&["127.0.0.1"], HTTP));
        assert_eq!(["/healthz", "/readyz"].map(|path| get(&server, path).status), [200, 200]);
        // The allocation keeps the draining server alive.
        let client = Client::new(server.udp_address());
        client.allocate(&Login::mint("ann", 600)).unwrap();
        server.signal(Signal::SIGUSR1);
        server.wait_for_log(|line| line.field("event").as_deref() == Some("drain-started"));
        let ready = get(&server, "/readyz");
        assert_eq!((ready.status, ready.body.as_str()), (503, "draining\n"));
        assert_eq!(get(&server, "/healthz").status, 200);
        assert_eq!(metric(&get(&server, "/metrics").body, "turnserver_draining"), 1);
    }

    #[test]
    fn a_full_server_is_not_ready() {
        let server = Server::start(&config(&["127.0.0.1"], &format!("[limits]\nallocations = 1\n{HTTP}")));
        let client = Client::new(server.udp_address());
        client.allocate(&Login::mint("ann", 600)).unwrap();
        let ready = get(&server, "/readyz");
        assert_eq!((ready.status, ready.body.as_str()), (503, "full: limits.allocations is reached\n"));
    }

    #[test]
    fn requests_that_are_not_served_get_an_error() {
        let server = Server::start(&config(&["127.0.0.1"], HTTP));
        let address = http_address(&server);
        let status = |method: &str, path: &str, headers: &str, body: &[u8]| {
            Http::tcp(address).request(method, path, headers, body).status
        };
        assert_eq!(status("GET", "/", "", b""), 404);
        assert_eq!(status("GET", "/v1/status", "", b""), 404);
        let unknown = get(&server, "/.well-known/acme-challenge/%00token");
        assert_eq!((unknown.status, unknown.header("location")), (404, None));
        assert!(!unknown.body.contains("token"), "no part of the request is repeated: {}", unknown.body);
        assert_eq!(status("POST", "/metrics", "", b"x"), 405);
        assert_eq!(status("HEAD", "/healthz", "", b""), 200);
        assert_eq!(status("GET", "/metrics", "", &vec![b'x'; 100_000]), 413);
        assert_eq!(status("GET", "/metrics", &format!("X: {}\r\n", "x".repeat(20_000)), b""), 431);
        assert_eq!(Http::tcp(address).raw(b"\x16\x03\x01 this is not HTTP\r\n\r\n").status, 400);
        assert_eq!(get(&server, "/healthz").status, 200);
    }

    #[test]
    fn a_request_that_is_refused_because_of_its_head_gets_its_response_before_its_body() {
        let key = "[[http.keys]]\nname = \"app\"\nsha256 = \"";
        let server = Server::start(&config(&["127.0.0.1"], &format!("{HTTP}{key}{}\"\n", "0".repeat(64))));
        let address = http_address(&server);
        let status = |request: &str| {
            let head = format!("{request} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 9\r\n\r\n");
            Http::tcp(address).raw(head.as_bytes()).status
        };
        assert_eq!(status("POST /no-such-thing"), 404);
        assert_eq!(status("POST /metrics"), 405);
        assert_eq!(status("PUT /v1/ice-servers"), 405);
        assert_eq!(status("POST /v1/ice-servers"), 401);
    }

    #[test]
    fn unfinished_bodies_do_not_evict_a_connection_that_waits() {
        let server = Server::start(&format!("workers = 1\n{}", config(&["127.0.0.1"], HTTP)));
        let address = http_address(&server);
        let unfinished = || Http::tcp(address).begin(b"GET /metrics HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\n\r\n");
        let mut others: Vec<Http> = (0..40).map(|_| unfinished()).collect();
        let mut waiting = TcpStream::connect(address).unwrap();
        waiting.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut request = || {
            waiting.write_all(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
            let (mut response, mut buffer) = (Vec::new(), [0; 1_024]);
            while !response.ends_with(b"ok\n") {
                let length = waiting.read(&mut buffer).unwrap();
                assert!(length > 0, "{:?}", String::from_utf8_lossy(&response));
                response.extend_from_slice(&buffer[..length]);
            }
        };
        request();
        others.extend((0..50).map(|_| unfinished()));
        assert_eq!(get(&server, "/healthz").status, 200);
        request();
    }

    #[test]
    fn with_a_token_only_the_control_socket_needs_none() {
        let directory = TempDir::new();
        let (token, socket) = (directory.write("token", "a-token-of-some-length\n"), directory.path().join("s"));
        let http = format!("{HTTP}metrics-token-file = {token:?}\n[control]\nsocket = {socket:?}\n");
        let server = Server::start(&config(&["127.0.0.1"], &http));
        let address = http_address(&server);
        for path in ["/healthz", "/readyz", "/metrics"] {
            let denied = Http::tcp(address).get(path);
            assert_eq!((denied.status, denied.body.contains("http.")), (401, false), "{path}: {}", denied.body);
            let with_token = "Authorization: Bearer a-token-of-some-length\r\n";
            assert_eq!(Http::tcp(address).request("GET", path, with_token, b"").status, 200, "{path}");
            assert_eq!(Http::unix(&socket).get(path).status, 200, "{path}");
        }
        let line = server.wait_for_log(|line| line.field("event").as_deref() == Some("http-denied"));
        assert!(line.message().contains("http.metrics-token-file"), "{line:?}");
    }

    /// Half of a request on each of many connections.
    #[test]
    fn many_half_requests_neither_block_others_nor_stay_open() {
        // Each worker has descriptors of its own.
        let server = Server::start(&format!("workers = 1\n{}", config(&["127.0.0.1"], HTTP)));
        let address = http_address(&server);
        let client = Client::new(server.udp_address());
        let half: Vec<Http> =
            (0..1_000).map(|_| Http::tcp(address).begin(b"GET /metrics HTTP/1.1\r\nHost: ")).collect();
        assert_eq!(get(&server, "/healthz").status, 200);
        assert_eq!(client.binding(), client.address());
        // The server's side of the others has been closed.
        let open = fs::read_dir(format!("/proc/{}/fd", server.id())).unwrap().count();
        assert!(open < 64 + 64, "{open}");
        drop(half);
    }

    /// Returns the resident memory of a process in KiB.
    fn resident(process: u32) -> u64 {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }

    #[test]
    fn a_thousand_requests_without_their_end_take_a_bounded_amount_of_memory() {
        const HALF_OF_ALL: u64 = 1_024 * 60 / 2;
        let server = Server::start(&format!("workers = 1\n{}", config(&["127.0.0.1"], HTTP)));
        let address = http_address(&server);
        assert_eq!(get(&server, "/metrics").status, 200);
        let before = resident(server.id());
        let bodies = format!("GET /metrics HTTP/1.1\r\nHost: t\r\nContent-Length: 65000\r\n\r\n{}", "x".repeat(60_000));
        let heads = format!("GET /metrics HTTP/1.1\r\nHost: t\r\nX: {}", "x".repeat(15_000));
        let mut most = 0;
        for half in [&bodies, &heads] {
            let mut open: Vec<Http> = Vec::new();
            for _ in 0..32 {
                open.extend((0..32).map(|_| Http::tcp(address).begin(half.as_bytes())));
                // The server has accepted what came before this, so that its backlog does not overflow.
                assert_eq!(get(&server, "/healthz").status, 200);
            }
            most = most.max(resident(server.id()));
            drop(open);
        }
        let grown = most.saturating_sub(before);
        println!("resident memory: {before} KiB, at most {grown} KiB more");
        assert!(grown < HALF_OF_ALL, "{before} KiB, and {grown} KiB more");
    }

    /// The times are those of the server, so this takes ten seconds.
    #[test]
    fn slow_clients_are_disconnected_after_ten_seconds() {
        let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
        let files = authority.write(&authority.issue(&["localhost"]), directory.path());
        let config = with_tls(&config(&["127.0.0.1"], &format!("{HTTP}tls = true\n")), &["127.0.0.1"], &files);
        let server = Server::start(&config);
        let address = http_address(&server);
        let start = Clock::start();
        let encrypted = || Http::over(tls::handshake(address, &authority, &tls::ANY).unwrap());
        let handshake = Http::tcp(address).begin(b"\x16\x03\x01\x02\x00");
        let head = encrypted().begin(b"GET /healthz HTTP/1.1\r\nHost: ");
        let body = encrypted().begin(b"GET /healthz HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\n\r\n12345678");
        // Each read ends when the server closes the connection. All connections are open at the same time.
        assert!(handshake.try_raw(b"").is_none());
        assert!(head.try_raw(b"").is_none());
        assert_eq!(body.raw(b"").status, 408);
        let elapsed = start.elapsed().as_secs();
        assert!((9..40).contains(&elapsed), "{elapsed}");
    }

    #[test]
    fn the_http_listener_may_use_the_certificate() {
        let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
        let files = authority.write(&authority.issue(&["localhost"]), directory.path());
        let config = with_tls(&config(&["127.0.0.1"], &format!("{HTTP}tls = true\n")), &["127.0.0.1"], &files);
        let server = Server::start(&config);
        let offer = tls::Offer { alpn: &["h2", "http/1.1"], ..tls::ANY };
        let stream = tls::handshake(http_address(&server), &authority, &offer).unwrap();
        assert_eq!(Http::over(stream).get("/healthz").status, 200);
        let plain = Http::tcp(http_address(&server)).try_get("/healthz");
        assert!(plain.is_none(), "{plain:?}");
    }

    fn with_socket(path: &Path) -> String {
        config(&["127.0.0.1"], &format!("[control]\nsocket = {path:?}\n"))
    }

    #[test]
    fn the_control_socket_is_for_its_user_and_group_and_goes_with_the_server() {
        let directory = TempDir::new();
        let path = directory.path().join("control.sock");
        let server = Server::start(&with_socket(&path));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let status = Http::unix(&path).get("/v1/status");
        assert_eq!(status.status, 200);
        let status: serde_json::Value = serde_json::from_str(&status.body).unwrap();
        assert_eq!((status["pid"].as_u64(), status["ready"].as_bool()), (Some(server.id().into()), Some(true)));
        assert_eq!(server.terminate().code, Some(0));
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_of_a_server_that_was_killed_is_replaced_and_that_of_a_running_server_is_not() {
        let directory = TempDir::new();
        let path = directory.path().join("control.sock");
        let killed = Server::start(&with_socket(&path));
        drop(killed);
        assert!(path.exists());
        let server = Server::start(&with_socket(&path));
        let second = Server::try_start_alone(&with_socket(&path)).err().unwrap();
        assert!(second.contains("cannot create the control socket"), "{second}");
        assert!(second.contains("another server uses"), "{second}");
        assert_eq!(Http::unix(&path).get("/healthz").status, 200);
        drop(server);
    }
}
