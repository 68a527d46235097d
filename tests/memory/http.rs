//! The bounds of HTTP and of the control socket.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use turnserver::clock::unix_seconds;

use super::{Memory, alone, judge, one_worker, until_closed, until_read, with_many_ports};
use crate::client::Http;
use crate::support::certificates::Authority;
use crate::support::client::{Client, Login};
use crate::support::{Controlled, LogLine, Server, TempDir, config, tls, with_tls};

fn http_address(server: &Server) -> SocketAddr {
    server.wait_for_log(|line| line.message() == "HTTP listening").field("address").unwrap().parse().unwrap()
}

const HTTP: &str = "[http]\nlisten = [\"127.0.0.1:0\"]\n";

#[test]
fn http_connections_take_what_is_documented() {
    const COUNT: usize = 64;
    let _alone = alone();
    for (is_tls, topic) in [(false, "An HTTP connection"), (true, "An HTTP connection with TLS")] {
        fill_http(topic, COUNT, is_tls);
    }
}

/// Opens many HTTP connections whose requests lack their ends.
fn fill_http(topic: &str, count: usize, is_tls: bool) {
    let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
    let files = authority.write(&authority.issue(&["localhost"]), directory.path());
    let http = format!("{HTTP}tls = {is_tls}\n");
    let server = Server::start(&with_tls(&one_worker("", &http), &["127.0.0.1"], &files));
    let address = http_address(&server);
    let connect = || match is_tls {
        true => Http::over(tls::handshake(address, &authority, &tls::ANY).unwrap()),
        false => Http::tcp(address),
    };
    assert_eq!(connect().get("/metrics").status, 200);
    let memory = Memory::of(server.id());
    let bodies = format!("GET /metrics HTTP/1.1\r\nHost: t\r\nContent-Length: 65000\r\n\r\n{}", "x".repeat(64_900));
    let heads = format!("GET /metrics HTTP/1.1\r\nHost: t\r\nX: {}", "x".repeat(15_900));
    let push = |half: &str, count: usize| {
        let mut open: Vec<Http> = Vec::new();
        while open.len() < count {
            open.extend((0..32).map(|_| connect().begin(half.as_bytes())));
            // The server has accepted these, so that its backlog does not overflow.
            until_read(address);
        }
        let grown = memory.grown();
        drop(open);
        until_closed(address);
        grown
    };
    // The memory of a connection that is evicted is free only when the new one is there already.
    let bound = push(&bodies, 2 * count).max(push(&heads, 2 * count));
    let beyond = push(&bodies, 4 * count).max(push(&heads, 4 * count));
    judge(topic, count, [bound, beyond, memory.grown()]);
}

#[test]
fn responses_over_http_that_are_not_read_take_what_is_documented() {
    const LISTENERS: usize = 4;
    const COUNT: usize = LISTENERS * 64;
    let _alone = alone();
    let listen: Vec<String> = (1..=LISTENERS).map(|host| format!("127.0.0.{host}:0")).collect();
    let server = Server::start(&one_worker("", &format!("[http]\nlisten = {listen:?}\n")));
    let is_listening = |line: &&LogLine| line.message() == "HTTP listening";
    server.wait_for_logs(|lines| lines.iter().filter(is_listening).count() == LISTENERS);
    let logs = server.logs();
    let address = |line: &LogLine| line.field("address").unwrap().parse().unwrap();
    let addresses: Vec<SocketAddr> = logs.iter().filter(is_listening).map(address).collect();
    assert_eq!(Http::tcp(addresses[0]).get("/metrics").status, 200);
    let memory = Memory::of(server.id());
    let connect = |address: SocketAddr| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // The kernel keeps little of what the client does not read.
        socket.set_recv_buffer_size(4_096).unwrap();
        setsockopt(&socket, sockopt::TcpMaxSeg, &536).unwrap();
        socket.connect(&address.into()).unwrap();
        Http::over(TcpStream::from(socket)).begin(b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n")
    };
    let push = |count: usize| {
        let mut open: Vec<Http> = Vec::new();
        while open.len() < count {
            for address in &addresses {
                open.extend((0..32).map(|_| connect(*address)));
                until_read(*address);
            }
        }
        let grown = memory.grown();
        drop(open);
        addresses.iter().copied().for_each(until_closed);
        grown
    };
    let (bound, beyond) = (push(4 * COUNT), push(8 * COUNT));
    judge("A response over HTTP that is not read", COUNT, [bound, beyond, memory.grown()]);
}

#[test]
fn lists_of_sessions_that_are_not_read_take_what_is_documented() {
    const SESSIONS: usize = 1_000;
    const COUNT: usize = 8;
    let _alone = alone();
    let limits = "[limits]\nallocations-per-user = 0\nallocations-per-second-per-user = 0\nunverified-responses = 0\n";
    let controlled = Controlled::start_with(&with_many_ports(&config(&["127.0.0.1"], limits)));
    // Each byte of the names takes six in JSON.
    let allocate = |number: usize| {
        let client = Client::new(controlled.server.udp_address());
        client.allocate(&Login::mint(&format!("{number}{}", "\u{1}".repeat(735)), 600)).unwrap();
        client
    };
    let _clients: Vec<Client> = (0..SESSIONS).map(allocate).collect();
    let list = || {
        let request = format!("GET /v1/sessions?limit={SESSIONS} HTTP/1.1\r\nHost: t\r\n\r\n");
        let mut connection = UnixStream::connect(&controlled.socket).unwrap();
        connection.write_all(request.as_bytes()).unwrap();
        // The response has begun.
        assert_eq!(connection.read(&mut [0; 12]).unwrap(), 12);
        connection
    };
    drop(list());
    let memory = Memory::of(controlled.server.id());
    let open: Vec<UnixStream> = (0..COUNT).map(|_| list()).collect();
    let bound = memory.grown();
    drop(open);
    let more: Vec<UnixStream> = (0..COUNT).map(|_| list()).collect();
    let again = memory.grown();
    judge("A list of 1000 sessions that is not read", COUNT, [bound.max(again), again, again]);
    drop(more);
}

#[test]
fn results_of_the_test_page_take_what_is_documented() {
    const COUNT: usize = 100;
    const PER_LINK: usize = 5;
    let _alone = alone();
    let controlled = Controlled::start_with(&one_worker("", HTTP));
    let address = http_address(&controlled.server);
    // As many errors as a report can have, and texts that fill a body of 64 KiB.
    let errors: Vec<Value> = (0..16).map(|_| json!({ "code": 1, "text": "t" })).collect();
    let way =
        json!({ "url": "u".repeat(70), "ok": false, "step": "done", "reason": "r".repeat(512), "errors": errors });
    let report = json!({ "browser": "B", "verdict": "failed", "ways": vec![way; 64] });
    let post =
        |path: &str, body: &Value| Http::tcp(address).request("POST", path, "", body.to_string().as_bytes()).status;
    let send = |link: usize| {
        let made = controlled.json(&["test-link"]);
        let (_, token) = made["urls"][0].as_str().unwrap().split_once('#').unwrap();
        let key = format!("the key of page {link:0>5}");
        assert_eq!(post("/test/start", &json!({ "token": token, "key": key })), 200);
        for _ in 0..PER_LINK {
            assert_eq!(post("/test/report", &json!({ "key": key, "report": report })), 200);
        }
    };
    send(2 * COUNT);
    let memory = Memory::of(controlled.server.id());
    (0..COUNT / PER_LINK).for_each(send);
    let bound = memory.grown();
    (COUNT / PER_LINK..2 * COUNT / PER_LINK).for_each(send);
    let beyond = memory.grown();
    judge("A result of the test page", COUNT, [bound, beyond, beyond]);
}
