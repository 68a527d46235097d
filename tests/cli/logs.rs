//! The log: events, their rate limits, and formats.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStderr, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use turnserver::stun::attribute::{ChannelNumber, XorPeerAddress};
use turnserver::stun::{Class, Method, TransactionId};

use super::running::{Running, UNLIMITED_RESPONSES, is_ready, text_config};
use crate::support::client::{Client, Login, allocate, message, receive, socket};
use crate::support::{Finished, LogLine, Server, TIMEOUT, TempDir, config, config_without_secret};

/// The number of failed authentications that a worker logs individually per minute.
const FAILURES_LOGGED: usize = 5;
const WORKERS: usize = 2;

fn with_workers(config: &str) -> String {
    format!("workers = {WORKERS}\n{config}")
}

/// Returns the lines logged between start and stop.
fn between(ended: &Finished) -> Vec<LogLine> {
    let lines = ended.stderr.iter().skip_while(|line| !is_ready(line)).skip(1);
    lines.map(|line| LogLine::parse(line)).take_while(|line| line.message() != "stopped").collect()
}

#[test]
fn an_allocation_is_logged_when_it_is_created_and_when_its_client_deletes_it() {
    let server = Server::start(&config(&["127.0.0.1"], "[peers]\nallow = [\"127.0.0.1\"]\n"));
    let peer = socket("127.0.0.1:0".parse().unwrap());
    let client = Client::new(server.udp_address());
    let (session, relayed) = client.allocate(&Login::mint("alice", 600)).unwrap();
    client.permit(&session, peer.local_addr().unwrap());
    client.send_to_peer(peer.local_addr().unwrap(), b"seven b");
    receive(&peer);
    peer.send_to(b"four", relayed).unwrap();
    client.receive();
    client.delete(&session);

    for message in ["allocation created", "allocation ended"] {
        let line = server.wait_for_log(|line| line.message() == message);
        assert_eq!(line.level(), "INFO");
        assert_eq!(line.field("user").as_deref(), Some("alice"));
        assert_eq!(line.field("client"), Some(client.address().to_string()));
        assert_eq!(line.field("relay"), Some(relayed.to_string()));
    }
    let ended = server.wait_for_log(|line| line.message() == "allocation ended");
    assert_eq!(ended.field("reason").as_deref(), Some("deleted by the client"));
    assert_eq!(ended.field("bytes_to_peers").as_deref(), Some("7"));
    assert_eq!(ended.field("bytes_to_client").as_deref(), Some("4"));
    let duration: u64 = ended.field("duration").unwrap().parse().unwrap();
    assert!(duration <= TIMEOUT.as_secs(), "{ended:?}");
}

#[test]
fn a_failed_authentication_is_logged_with_its_reason() {
    let users = "[[auth.users]]\nname = \"bob\"\npassword = \"builder\"\n";
    let server = Server::start(&config(&["127.0.0.1"], users));
    let minted = Login::mint("alice", 600);
    let expired = Login::mint("carol", -7_230);
    let cases = [
        (Login::new(&minted.username, "x"), "secret"),
        (expired, "expired 2 h ago"),
        (Login::new("bob", "destroyer"), "wrong password"),
        (Login::new("mallory", "x"), "unknown user"),
        (Login::new("1700000000000:dave", "x"), "milliseconds"),
    ];
    // One worker may serve all clients, and it logs only a few failures per minute.
    assert!(cases.len() <= FAILURES_LOGGED);
    for (login, reason) in cases {
        let client = Client::new(server.udp_address());
        assert_eq!(client.allocate(&login).map(drop), Err(401));
        let line = server.wait_for_log(|line| line.field("client") == Some(client.address().to_string()));
        assert_eq!((line.message(), line.level()), ("authentication failed", "WARN"));
        assert_eq!(line.field("user"), Some(login.username));
        assert!(line.field("reason").unwrap().contains(reason), "{line:?}");
    }
}

#[test]
fn a_thousand_failed_authentications_are_a_few_lines_and_a_total() {
    let server = Running::start(&with_workers(&config(&["127.0.0.1"], UNLIMITED_RESPONSES)), &[]);
    let login = Login::new(&Login::mint("alice", 600).username, "wrong");
    for _ in 0..20 {
        let client = Client::new(server.address());
        for _ in 0..50 {
            assert_eq!(client.allocate(&login).map(drop), Err(401));
        }
    }
    let ended = server.terminate();
    let lines = between(&ended);
    let individual = lines.iter().filter(|line| line.message() == "authentication failed").count();
    assert!((FAILURES_LOGGED..=FAILURES_LOGGED * WORKERS).contains(&individual), "{lines:?}");
    let totals = lines.iter().filter(|line| line.message().starts_with("further failed authentications"));
    let totals: Vec<usize> = totals.map(|line| line.field("count").unwrap().parse().unwrap()).collect();
    assert_eq!(individual + totals.iter().sum::<usize>(), 1_000, "{lines:?}");
    assert_eq!(lines.len(), individual + totals.len(), "{lines:?}");
}

#[test]
fn a_source_that_guesses_passwords_is_rejected_a_few_times_and_then_waits() {
    let guesses = 200;
    for over_tcp in [false, true] {
        let server = Server::start(&config(&["127.0.0.1"], "[limits]\nfailed-authentications = 1\n"));
        let client = || match over_tcp {
            true => Client::connect(server.tcp_address()),
            false => Client::new(server.udp_address()),
        };
        let guesser = client();
        let session = guesser.challenge(&Login::new(&Login::mint("alice", 600).username, "wrong"));
        let mut rejected = 0;
        for _ in 0..guesses {
            guesser.send(&guesser.signed(&session, Method::REFRESH, &|_| {}));
            // The Binding response shows that the server has handled the guess.
            guesser.send(&message(Class::Request, Method::BINDING, TransactionId::new([0; 12]), &|_| {}));
            if guesser.receive().error() == Some(401) {
                rejected += 1;
                guesser.receive();
            }
        }
        // The burst is 20, and one more per second.
        assert!((20..guesses).contains(&rejected), "{rejected}");
        let lines = server.terminate().logs;
        let dropped = lines.iter().filter(|line| line.message().starts_with("request dropped")).count();
        let totals = lines.iter().filter(|line| line.message().starts_with("further requests of sources"));
        let totals: Vec<usize> = totals.map(|line| line.field("count").unwrap().parse().unwrap()).collect();
        assert_eq!(dropped + totals.iter().sum::<usize>(), guesses - rejected, "{lines:?}");
        assert_eq!(lines.iter().find_map(|line| line.field("limit")).as_deref(), Some("limits.failed-authentications"));
    }
}

#[test]
fn a_thousand_packets_from_unauthenticated_clients_are_not_logged() {
    let server = Running::start(&with_workers(&config(&["127.0.0.1"], UNLIMITED_RESPONSES)), &[]);
    for _ in 0..10 {
        let client = Client::new(server.address());
        for round in 0..25_u8 {
            client.send(&allocate(TransactionId::new([round; 12])));
            assert_eq!(client.receive().error(), Some(401));
            client.send(&[round.wrapping_mul(17); 40]);
            client.send(&[0, 1, 0, 8, 0x21, 0x12, 0xa4, 0x42, round]);
            // The Binding response shows that the server has handled the preceding packets.
            client.binding();
        }
    }
    let ended = server.terminate();
    assert_eq!(ended.code, Some(0));
    assert_eq!(between(&ended).len(), 0, "{ended:?}");
}

#[test]
fn json_format_makes_every_line_of_standard_error_json() {
    let server = Running::start(&config(&["127.0.0.1"], ""), &["--log-level", "trace"]);
    let client = Client::new(server.address());
    assert!(client.allocate(&Login::mint("alice\u{1b}[31m", 600)).is_ok());
    assert_eq!(Client::new(server.address()).allocate(&Login::mint("bob", -1)).map(drop), Err(401));
    let ended = server.terminate();
    for line in &ended.stderr {
        let line = LogLine::parse(line);
        assert!(!line.message().is_empty() && !line.level().is_empty(), "{line:?}");
        assert!(line.field("event").is_some_and(|event| !event.is_empty()), "{line:?}");
    }
    assert!(ended.stderr.len() > 6, "{ended:?}");
}

#[test]
fn text_format_has_no_escape_sequences_when_standard_error_is_a_pipe() {
    let server = Running::start(&text_config(&["127.0.0.1"], ""), &["--log-level", "trace"]);
    assert!(Client::new(server.address()).allocate(&Login::mint("alice\u{1b}[31m", 600)).is_ok());
    for line in server.terminate().stderr {
        assert!(!line.contains('\u{1b}'), "{line}");
    }
}

/// Returns a line of the text log without its quoted strings.
fn outside_of_quotes(line: &str) -> String {
    let (mut outside, mut quoted) = (String::new(), false);
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => quoted = !quoted,
            '\\' if quoted => _ = characters.next(),
            c if !quoted => outside.push(c),
            _ => {}
        }
    }
    outside
}

#[test]
fn a_username_cannot_forge_a_line_or_a_field_of_the_text_log() {
    let server = Running::start(&text_config(&["127.0.0.1"], ""), &[]);
    let login = Login::mint("a\r\nINFO forged \u{1b}[2J client=203.0.113.7:1 \"\u{202e}", 600);
    let client = Client::new(server.address());
    assert!(client.allocate(&login).is_ok());
    assert_eq!(Client::new(server.address()).allocate(&Login::new(&login.username, "wrong")).map(drop), Err(401));

    let lines = server.terminate().stderr;
    // The allocation's creation and end, the failure, and who is left at the start of the drain.
    assert_eq!(lines.iter().filter(|line| line.contains("forged")).count(), 4, "{lines:?}");
    for line in &lines {
        assert!(line.contains("  INFO ") || line.contains("  WARN "), "{line:?}");
        assert!(!line.contains(['\u{1b}', '\r', '\u{202e}']), "{line:?}");
        let outside = outside_of_quotes(line);
        assert!(!outside.contains("forged") && !outside.contains("203.0.113.7"), "{line}");
    }
}

#[test]
fn the_log_level_option_overrides_the_configuration() {
    let quiet = text_config(&["127.0.0.1"], "").replace("format =", "level = \"error\"\nformat =");
    let server = Running::start(&quiet, &["--log-level", "debug"]);
    Client::new(server.address()).send(b"neither STUN nor ChannelData");
    let line = server.wait_for_line(|line| line.contains("unknown-protocol"));
    assert!(line.contains(" DEBUG "), "{line}");
}

#[test]
fn at_level_error_a_normal_run_logs_nothing() {
    let server = Running::begin(&config_without_secret(&["127.0.0.1"], ""), &["--log-level", "error"]);
    let line = server.process.stdout.wait_for(TIMEOUT, |lines| lines.first().cloned()).unwrap();
    let address = line.split_once("turn:").unwrap().1.split_once('?').unwrap().0;
    Client::new(address.parse().unwrap()).binding();
    let ended = server.terminate();
    assert_eq!((ended.code, ended.stderr.as_slice()), (Some(0), &[][..]));
}

/// A server whose standard error only the test reads. Dropping it kills it.
struct PipedServer(Child);

impl PipedServer {
    fn assert_stops(mut self) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        assert_eq!(self.0.wait().unwrap().code(), Some(0));
    }
}

impl Drop for PipedServer {
    fn drop(&mut self) {
        // It has already ended unless the test failed.
        let _ = self.0.kill();
    }
}

/// Starts a server, and returns the unread part of its standard error and its UDP address.
fn start_piped(more: &str) -> (PipedServer, BufReader<ChildStderr>, SocketAddr, TempDir) {
    let directory = TempDir::new();
    let path = directory.write("turnserver.toml", &config(&["127.0.0.1"], more));
    let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
    command.arg("--config").arg(path).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut server = PipedServer(command.spawn().unwrap());
    let mut stderr = BufReader::new(server.0.stderr.take().unwrap());
    let (mut address, mut text) = (None, String::new());
    while address.is_none() || !text.contains("\"ready\"") {
        text.clear();
        assert_ne!(stderr.read_line(&mut text).unwrap(), 0, "the server has ended");
        let line = LogLine::parse(&text);
        if line.message() == "listening" && line.field("transport").as_deref() == Some("udp") {
            address = line.field("address").and_then(|address| address.parse().ok());
        }
    }
    (server, stderr, address.unwrap(), directory)
}

#[test]
fn a_closed_log_pipe_does_not_stop_the_server() {
    let (server, stderr, address, _directory) = start_piped("");
    drop(stderr);
    for _ in 0..20 {
        let client = Client::new(address);
        let (session, _) = client.allocate(&Login::mint("alice", 600)).unwrap();
        assert_eq!(client.binding(), client.address());
        client.delete(&session);
    }
    server.assert_stops();
}

#[test]
fn a_stalled_log_reader_does_not_stop_the_relay() {
    let (server, stderr, address, _directory) = start_piped(UNLIMITED_RESPONSES);
    // Far more lines than the pipe and the log queue hold.
    for client in 0..40 {
        let login = |number| Login::mint(&format!("user-{client}-{number}"), 600);
        let client = Client::new(address);
        for number in 0..100 {
            let (session, _) = client.allocate(&login(number)).unwrap();
            client.delete(&session);
        }
    }
    server.assert_stops();
    drop(stderr);
}

/// Starts the server with a socket as standard error, as systemd does, and returns the lines up to `ready`.
fn lines_in_journal(config: &str, stream: impl Fn(u64, u64) -> String) -> (PipedServer, Vec<String>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let file = File::from(theirs.as_fd().try_clone_to_owned().unwrap()).metadata().unwrap();
    let directory = TempDir::new();
    let path = directory.write("turnserver.toml", config);
    let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
    command.arg("--config").arg(path).stdout(Stdio::null()).stderr(OwnedFd::from(theirs));
    let server = PipedServer(command.env("JOURNAL_STREAM", stream(file.dev(), file.ino())).spawn().unwrap());
    drop(command);
    ours.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut lines = Vec::new();
    for line in BufReader::new(ours).lines() {
        lines.push(line.unwrap());
        if lines.last().is_some_and(|line| line.contains("ready")) {
            break;
        }
    }
    (server, lines)
}

// sd-daemon(3): the journal reads the priority from the start of a line, and has a timestamp of its own.
#[test]
fn lines_in_the_journal_have_a_priority_and_no_timestamp() {
    let (server, lines) = lines_in_journal(&text_config(&["127.0.0.1"], ""), |dev, ino| format!("{dev}:{ino}"));
    assert!(lines.iter().all(|line| line.starts_with("<6> INFO ") || line.starts_with("<4> WARN ")), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("<6> INFO ready event=\"ready\" workers=")), "{lines:?}");
    server.assert_stops();

    let (server, lines) = lines_in_journal(&config(&["127.0.0.1"], ""), |dev, ino| format!("{dev}:{ino}"));
    for line in lines {
        let (priority, line) = line.split_at(3);
        let level = LogLine::parse(line).level().to_owned();
        assert!([("<6>", "INFO"), ("<4>", "WARN")].contains(&(priority, &level)), "{priority}{line}");
        assert!(!line.contains("timestamp"), "{line}");
    }
    server.assert_stops();
}

#[test]
fn a_failed_start_has_the_priority_of_an_error_in_the_journal() {
    let (mut server, lines) = lines_in_journal("realmm = 1\n", |dev, ino| format!("{dev}:{ino}"));
    assert_eq!(server.0.wait().unwrap().code(), Some(1));
    assert!(!lines.is_empty() && lines.iter().all(|line| line.starts_with("<3>turnserver: ")), "{lines:?}");
}

// A program that a service starts inherits the variable, although its standard error goes elsewhere.
#[test]
fn another_stream_than_the_journal_has_timestamps_and_no_priority() {
    let config = text_config(&["127.0.0.1"], "");
    let (server, lines) = lines_in_journal(&config, |dev, ino| format!("{dev}:{}", ino + 1));
    assert!(lines.iter().all(|line| line.starts_with("20") && line.contains("Z  ")), "{lines:?}");
    server.assert_stops();
}

#[test]
fn at_level_debug_every_rejected_or_dropped_packet_is_named_over_each_transport() {
    let debug = config(&["127.0.0.1"], UNLIMITED_RESPONSES);
    let server = Running::start(&debug, &["--log-level", "debug"]);
    for client in [Client::new(server.address()), Client::connect(server.listening("tcp")[0])] {
        let named = |what: &str| {
            let line = server.wait_for_line(|line| {
                let line = LogLine::parse(line);
                line.message().starts_with(what) && line.field("client") == Some(client.address().to_string())
            });
            assert_eq!(LogLine::parse(&line).level(), "DEBUG");
        };
        client.send(&allocate(TransactionId::new([7; 12])));
        assert_eq!(client.receive().error(), Some(401));
        named("rejected 401");
        let (session, _) = client.allocate(&Login::mint("alice", 600)).unwrap();
        let private = "10.0.0.1:9".parse().unwrap();
        let denied =
            client.request(&session, Method::CREATE_PERMISSION, &|writer| writer.push(&XorPeerAddress(private)));
        assert_eq!(denied.error(), Some(403));
        named("rejected 403");
    }
}

#[test]
fn each_line_about_an_allocation_names_its_session() {
    let limits = "[limits]\npermissions-per-allocation = 1\nchannels-per-allocation = 1\n\
                  bytes-per-second-per-allocation = 1\n[peers]\nallow = [\"127.0.0.1\", \"127.0.0.2\"]\n";
    let server = Server::start(&config(&["127.0.0.1"], limits));
    let client = Client::new(server.udp_address());
    let login = Login::mint("alice", 600);
    let (session, _) = client.allocate(&login).unwrap();
    let (peer, other) = ("127.0.0.1:9".parse().unwrap(), "127.0.0.2:9".parse().unwrap());
    let permit =
        |peer| client.request(&session, Method::CREATE_PERMISSION, &|writer| writer.push(&XorPeerAddress(peer)));
    let bind = |number, peer| {
        let response = client.request(&session, Method::CHANNEL_BIND, &|writer| {
            writer.push(&ChannelNumber(number));
            writer.push(&XorPeerAddress(peer));
        });
        response.error()
    };
    assert_eq!((permit(peer).error(), permit(other).error()), (None, Some(508)));
    assert_eq!(permit("10.0.0.1:9".parse().unwrap()).error(), Some(403));
    assert_eq!((bind(0x4000, peer), bind(0x4001, "127.0.0.1:10".parse().unwrap())), (None, Some(508)));
    assert_eq!(bind(0x5000, peer), Some(400));
    // The burst is 64 KiB.
    (0..70).for_each(|_| client.send_to_peer(peer, &[7; 1_000]));
    let guessed = client.challenge(&Login::new(&login.username, "guessed"));
    assert_eq!(client.request(&guessed, Method::REFRESH, &|_| {}).error(), Some(401));
    client.delete(&session);

    let created = server.wait_for_log(|line| line.message() == "allocation created").field("session").unwrap();
    for (event, about) in [
        ("limit-reached", "permissions-per-allocation"),
        ("peer-denied", "private"),
        ("limit-reached", "channels-per-allocation"),
        ("channel-rejected", "0x5000"),
        ("limit-reached", "bytes-per-second-per-allocation"),
        ("authentication-failed", "password"),
        ("allocation-ended", "deleted"),
    ] {
        let line =
            server.wait_for_log(|line| line.field("event").as_deref() == Some(event) && line.text().contains(about));
        assert_eq!(line.field("session"), Some(created.clone()), "{line:?}");
    }
}
