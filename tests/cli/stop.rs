//! Stopping: exit code, totals, and the end of allocations.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use turnserver::stun::TransactionId;

use super::running::{Running, command, full_stream, is_ready};
use crate::support::client::{Client, Login, allocate, receive, socket};
use crate::support::{Finished, LogLine, Process, TempDir, config, config_without_secret};

const LOOPBACK_PEERS: &str = "[peers]\nallow = [\"127.0.0.1\"]\n";

fn stopped(finished: &Finished) -> LogLine {
    let last = LogLine::parse(finished.stderr.last().unwrap());
    assert_eq!((last.message(), last.level()), ("stopped", "INFO"), "{finished:?}");
    last
}

fn number(line: &LogLine, field: &str) -> u64 {
    line.field(field).unwrap().parse().unwrap()
}

/// Parses the counts of the field `outcomes`: "answered Binding: 3, dropped no-allocation: 1".
fn outcomes(line: &LogLine) -> HashMap<String, u64> {
    let outcomes = line.field("outcomes").unwrap();
    let entry = |entry: &str| {
        let (name, count) = entry.split_once(": ").unwrap();
        (name.to_owned(), count.parse().unwrap())
    };
    outcomes.split(", ").map(entry).collect()
}

#[test]
fn signals_without_an_effect_are_logged_and_do_not_end_the_server() {
    let server = Running::start(&config(&["127.0.0.1"], ""), &[]);
    let assert_ignored = |name: &str, advice: &str| {
        let line = LogLine::parse(&server.wait_for_line(|line| line.contains(name)));
        assert_eq!((line.level(), line.field("signal").as_deref()), ("WARN", Some(name)));
        assert!(line.message().contains(advice), "{line:?}");
    };
    for signal in [
        Signal::SIGUSR2,
        Signal::SIGALRM,
        Signal::SIGIO,
        Signal::SIGPWR,
        Signal::SIGSTKFLT,
        Signal::SIGPROF,
        Signal::SIGVTALRM,
    ] {
        server.process.signal(signal);
        assert_ignored(signal.as_str(), "SIGUSR1 drains the server");
    }
    server.process.signal(Signal::SIGXFSZ);
    assert_ignored("SIGXFSZ", "raise the limit");
    for (signal, name) in [(libc::SIGRTMIN(), "SIGRTMIN+0"), (libc::SIGRTMAX(), "SIGRTMIN+30")] {
        // `nix` does not have these signals.
        let kill = Command::new("sh").args(["-c", &format!("kill -{signal} {}", server.process.id())]).status();
        assert!(kill.unwrap().success());
        assert_ignored(name, "SIGUSR1 drains the server");
    }
    let client = Client::new(server.address());
    assert_eq!(client.binding(), client.address());
    assert_eq!(server.terminate().code, Some(0));
}

/// Starts a server whose start is stalled, because its standard output is. It goes on when the stream is dropped.
fn start_stalled() -> (Running, UnixStream) {
    let (directory, (unread, stdout)) = (TempDir::new(), full_stream());
    directory.write("turnserver.toml", &config_without_secret(&["127.0.0.1"], ""));
    let process = Process::start_with(&mut command(&directory, &[]), stdout.into(), Stdio::piped());
    let server = Running::new(process, directory);
    server.wait_for_line(|line| line.contains("listening"));
    (server, unread)
}

#[test]
fn a_signal_without_an_effect_during_the_start_does_not_end_the_server() {
    let (server, unread) = start_stalled();
    for signal in [Signal::SIGUSR2, Signal::SIGALRM, Signal::SIGIO, Signal::SIGHUP] {
        server.process.signal(signal);
    }
    assert!(!server.process.stderr.so_far().iter().any(|line| is_ready(line)), "the start is not stalled");
    drop(unread);
    for name in ["SIGUSR2", "SIGALRM", "SIGIO", "SIGHUP"] {
        server.wait_for_line(|line| line.contains(name));
    }
    assert_eq!(server.terminate().code, Some(0));
}

#[test]
fn a_signal_to_stop_during_the_start_stops_the_server_after_it_with_exit_code_0() {
    for signal in [Signal::SIGUSR1, Signal::SIGTERM, Signal::SIGINT] {
        let (server, unread) = start_stalled();
        server.process.signal(signal);
        drop(unread);
        let ended = server.finish();
        assert_eq!(ended.code, Some(0), "{signal} {ended:?}");
        assert!(ended.stderr.iter().any(|line| is_ready(line)), "{signal} {ended:?}");
        stopped(&ended);
    }
}

#[test]
fn sigint_ends_an_idle_server_with_exit_code_0() {
    let ended = Running::start(&config(&["127.0.0.1"], ""), &[]).interrupt();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for total in ["relayed", "answered", "rejected", "dropped"] {
        assert_eq!(number(&stopped(&ended), total), 0);
    }
}

#[test]
fn sigterm_ends_an_idle_server_with_exit_code_0() {
    let ended = Running::start(&config(&["127.0.0.1"], ""), &[]).terminate();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    stopped(&ended);
}

#[test]
fn each_packet_is_in_exactly_one_of_the_totals() {
    let server = Running::start(&config(&["127.0.0.1"], LOOPBACK_PEERS), &[]);
    let peer = socket("127.0.0.1:0".parse().unwrap());
    let peer_address = peer.local_addr().unwrap();
    let mut sent = 0;
    // The kernel spreads the clients over the workers.
    for _ in 0..8 {
        let client = Client::new(server.address());
        client.binding();
        assert_eq!(client.allocate(&Login::mint("alice", -60)).map(drop), Err(401));
        let (session, relayed) = client.allocate(&Login::mint("alice", 600)).unwrap();
        client.send_to_peer(peer_address, b"dropped without a permission");
        client.permit(&session, peer_address);
        client.send_to_peer(peer_address, b"there");
        assert_eq!(receive(&peer), (b"there".to_vec(), relayed));
        peer.send_to(b"back", relayed).unwrap();
        client.receive();
        client.send(b"neither STUN nor ChannelData");
        client.delete(&session);
        client.send_to_peer(peer_address, b"dropped without an allocation");
        client.send(&allocate(TransactionId::new([1; 12])));
        assert_eq!(client.receive().error(), Some(401));
        sent += client.sent() + 1;
    }
    let stopped = stopped(&server.interrupt());
    let totals = ["relayed", "answered", "rejected", "dropped"].map(|total| number(&stopped, total));
    assert_eq!(totals, [2 * 8, 4 * 8, 4 * 8, 3 * 8], "{stopped:?}");
    assert_eq!(totals.iter().sum::<u64>(), sent);

    let outcomes = outcomes(&stopped);
    assert_eq!(outcomes.values().sum::<u64>(), sent, "{stopped:?}");
    for (name, count) in
        [("relayed-to-peer", 8), ("relayed-to-client", 8), ("rejected 401", 32), ("answered Binding", 8)]
    {
        assert_eq!(outcomes.get(name), Some(&count), "{name} in {stopped:?}");
    }
    for name in ["dropped no-permission", "dropped unknown-protocol", "dropped no-allocation"] {
        assert_eq!(outcomes.get(name), Some(&8), "{name} in {stopped:?}");
    }
}

#[test]
fn a_stop_logs_the_end_of_each_allocation_before_the_totals() {
    let server = Running::start(&config(&["127.0.0.1"], ""), &[]);
    let clients: Vec<_> = (0..8)
        .map(|index| {
            let client = Client::new(server.address());
            let (_, relayed) = client.allocate(&Login::mint(&format!("user-{index}"), 600)).unwrap();
            (client, relayed)
        })
        .collect();
    let ended = server.terminate();
    assert_eq!(ended.code, Some(0));
    stopped(&ended);
    let lines: Vec<LogLine> = ended.stderr.iter().map(|line| LogLine::parse(line)).collect();
    let ends: Vec<&LogLine> = lines.iter().filter(|line| line.message() == "allocation ended").collect();
    assert_eq!(ends.len(), clients.len());
    for (client, relayed) in &clients {
        let end = ends.iter().find(|end| end.field("relay") == Some(relayed.to_string())).unwrap();
        assert_eq!(end.field("client"), Some(client.address().to_string()));
        assert_eq!(end.field("reason").as_deref(), Some("the server stopped"));
    }
}
