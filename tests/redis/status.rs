//! The status of allocations in Redis, beside what coturn writes for the same client.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use turnserver::client::Request;
use turnserver::clock::Clock;
use turnserver::stun::Method;

use crate::server::Redis;
use crate::support::client::{Client, Login};
use crate::support::{Process, REALM, Server, TIMEOUT, TempDir, config_without_secret, run, skip};

/// The user of all tests.
const USER: &str = "[[auth.users]]\nname = \"ann\"\npassword = \"song-of-ann\"\n";

fn config(url: &str) -> String {
    let more = format!(
        "{USER}[redis-status]\nurl = {url:?}\ndatabase = 2\n[peers]\nallow = [\"127.0.0.1\"]\n[compat]\nrfc5766-channels = true\n"
    );
    config_without_secret(&["127.0.0.1"], &more)
}

fn start(redis: &Redis) -> Server {
    let server = Server::start(&config(&redis.url()));
    server.wait_for_log(|line| line.field("event").as_deref() == Some("redis-status-connected"));
    server
}

fn login() -> Login {
    Login::new("ann", "song-of-ann")
}

/// Sends everything back to its sender until the process ends.
fn echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    address
}

/// Makes a call of 20 messages of 100 bytes each way with coturn's client.
fn call(server: SocketAddr) {
    let peer = echo();
    let mut client = Command::new("turnutils_uclient");
    client.args(["-u", "ann", "-w", "song-of-ann", "-n", "20", "-l", "100", "-m", "1", "-c", "-z", "5"]);
    client.args(["-e", &peer.ip().to_string(), "-r", &peer.port().to_string()]);
    client.args(["-p", &server.port().to_string(), &server.ip().to_string()]);
    let finished = run(&mut client, Some("coturn"), TIMEOUT);
    let output = [finished.stdout, finished.stderr].concat().join("\n");
    assert!(output.contains("Total lost packets 0 "), "{output}");
}

/// Returns the allocation that a command is about.
fn allocation(command: &[String]) -> &str {
    let (_, rest) = command[1].split_once("/allocation/").unwrap();
    rest.split('/').next().unwrap()
}

/// Returns the commands of the allocation that ends, without what differs: its ID, ports of clients, the expiry of keys, and
/// the traffic with the client, of which coturn counts all messages.
fn shape(commands: &[Vec<String>], server: SocketAddr) -> Vec<String> {
    let id = allocation(commands.last().unwrap()).to_owned();
    assert!(id.len() == 18 && id.bytes().all(|byte| byte.is_ascii_digit()), "{id}");
    let of_call = commands.iter().filter(|command| allocation(command) == id);
    of_call
        .map(|words| {
            let mut words = words.clone();
            if words[0] == "SET" {
                words.truncate(3);
            }
            words.retain(|word| !word.is_empty());
            let mut line = words.join(" ").replace(&id, "ID").replace(&server.to_string(), "SERVER");
            if let Some((before, rest)) = line.clone().split_once("remote=127.0.0.1:") {
                let after = rest.trim_start_matches(|character: char| character.is_ascii_digit());
                line = format!("{before}remote=CLIENT{after}");
            }
            if line.contains("traffic rcvp=") {
                line = line.split(" rcvp=").next().unwrap().to_owned();
            }
            line
        })
        .collect()
}

/// Starts coturn with a database for the status.
fn coturn(directory: &TempDir, port: u16) -> (Process, SocketAddr) {
    let server: SocketAddr = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let text = format!(
        "listening-ip=127.0.0.1\nrelay-ip=127.0.0.1\nlistening-port={}\nrealm={REALM}\nlt-cred-mech\n\
         user=ann:song-of-ann\nallow-loopback-peers\nno-tls\nno-dtls\nno-tcp\nno-cli\npidfile={}\nuserdb={}\n\
         log-file=stdout\nredis-statsdb=\"ip=127.0.0.1 dbname=2 port={port} connect_timeout=5\"\n",
        server.port(),
        path("coturn.pid"),
        path("coturn.db"),
    );
    let file = directory.write("coturn.conf", &text);
    let process = Process::start(Command::new("/usr/bin/turnserver").arg("-c").arg(file), Some("coturn"));
    let probe = UdpSocket::bind("127.0.0.1:0").unwrap();
    probe.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let binding = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat();
    let clock = Clock::start();
    loop {
        let _ = probe.send_to(&binding, server);
        if probe.recv(&mut [0; 512]).is_ok() {
            return (process, server);
        }
        assert!(clock.elapsed() < TIMEOUT, "{}", process.output());
    }
}

#[test]
fn a_call_has_the_keys_channels_and_values_of_coturn() {
    let Some(mut redis) = Redis::start() else { return };
    if Command::new("turnutils_uclient").output().is_err() {
        return skip("there is no coturn (Debian: apt-get install coturn)");
    }
    let port = redis.start_with_port();
    let directory = TempDir::new();
    let (process, server) = coturn(&directory, port);
    let mut monitor = redis.monitor();
    call(server);
    let theirs = shape(&monitor.until("/total_traffic/peer"), server);
    drop(process);

    let server = start(&redis);
    let mut monitor = redis.monitor();
    call(server.udp_address());
    let commands = monitor.until("/total_traffic/peer");
    let ours = shape(&commands, server.udp_address());
    assert_eq!(ours, theirs);
    let last = commands.last().unwrap();
    assert_eq!(last[2], "rcvp=20, rcvb=2000, sentp=20, sentb=2000");
    server.terminate();
}

#[test]
fn a_key_is_there_while_its_allocation_is_and_a_stop_of_the_server_deletes_it() {
    let Some(redis) = Redis::start() else { return };
    let server = start(&redis);
    let mut monitor = redis.monitor();
    let client = Client::new(server.udp_address());
    let (session, _) = client.allocate(&login()).unwrap();
    let [set, published] = monitor.until("PUBLISH").try_into().unwrap();
    assert_eq!((&set[1], &set[2]), (&published[1], &published[2]));
    assert_eq!(set[3..], ["EX", "660"]);
    let expected = format!(
        "new lifetime=600, type=UDP, local={}, remote={}, ssl=NONE, cipher=NONE",
        server.udp_address(),
        client.address()
    );
    assert_eq!(set[2], expected);
    client.request(&session, Method::REFRESH, &|writer| Request::Refresh(1000).encode(writer));
    let [set, _] = monitor.until("PUBLISH").try_into().unwrap();
    assert!(set[2].starts_with("refreshed lifetime=1000, ") && set[4] == "1060", "{set:?}");
    server.terminate();
    let last: Vec<_> = monitor.until("/total_traffic/peer").iter().map(|words| words[0].clone()).collect();
    assert_eq!(last, ["PUBLISH", "PUBLISH", "DEL", "PUBLISH", "PUBLISH", "PUBLISH"]);
}

#[test]
fn while_redis_hangs_or_is_away_packets_do_not_wait_and_the_ends_come_later() {
    let Some(mut redis) = Redis::start() else { return };
    let server = start(&redis);
    let peer = echo();
    let client = Client::new(server.udp_address());
    let (session, _) = client.allocate(&login()).unwrap();
    client.permit(&session, peer);
    redis.stop();
    server.wait_for_log(|line| line.field("event").as_deref() == Some("redis-status-unavailable"));
    let round_trip = |client: &Client| {
        let clock = Clock::start();
        client.send_to_peer(peer, b"0123456789");
        client.receive();
        clock.elapsed()
    };
    let others: Vec<_> = (0..20).map(|_| Client::new(server.udp_address())).collect();
    let sessions: Vec<_> = others.iter().map(|other| other.allocate(&login()).unwrap().0).collect();
    let longest = (0..100).map(|_| round_trip(&client)).max().unwrap();
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    for (other, session) in others.iter().zip(&sessions) {
        other.delete(session);
    }
    client.delete(&session);
    redis.start_again();
    // Each end deletes a key once, also the one that the server has seen while Redis was away.
    let clock = Clock::start();
    while !redis.command(&["INFO", "commandstats"]).contains("cmdstat_del:calls=21,") {
        assert!(clock.elapsed() < TIMEOUT, "{}", redis.command(&["INFO", "commandstats"]));
    }
    assert!(!redis.command(&["INFO", "keyspace"]).contains("db2:"));

    // A server that hangs keeps the connection, and gets everything when it goes on.
    let mut monitor = redis.monitor();
    redis.signal(Signal::SIGSTOP);
    let client = Client::new(server.udp_address());
    let (session, _) = client.allocate(&login()).unwrap();
    client.permit(&session, peer);
    let longest = (0..100).map(|_| round_trip(&client)).max().unwrap();
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    client.delete(&session);
    redis.signal(Signal::SIGCONT);
    let commands = monitor.until("/total_traffic/peer");
    assert_eq!(commands.last().unwrap()[2], "rcvp=100, rcvb=1000, sentp=100, sentb=1000");
    server.terminate();
}

#[test]
fn a_refused_command_is_not_sent_again_and_no_change_waits_for_it() {
    let Some(redis) = Redis::start() else { return };
    let server = start(&redis);
    let mut monitor = redis.monitor();
    let mut call = || {
        let client = Client::new(server.udp_address());
        let (session, _) = client.allocate(&login()).unwrap();
        client.delete(&session);
        monitor.until("/total_traffic/peer")
    };
    assert_eq!(redis.command(&["CONFIG", "SET", "maxmemory", "1"]), "+OK\r\n");
    let first = call();
    let refused = server.wait_for_log(|line| line.field("event").as_deref() == Some("redis-status-refused"));
    assert_eq!(refused.field("reason").as_deref(), Some("OOM"));
    assert_eq!(redis.command(&["CONFIG", "SET", "maxmemory", "0"]), "+OK\r\n");
    // Nothing of the first one comes again.
    let second = call();
    assert_ne!(allocation(first.last().unwrap()), allocation(second.last().unwrap()));
    assert!(second.iter().all(|command| allocation(command) == allocation(second.last().unwrap())), "{second:#?}");
    server.terminate();
}

#[test]
fn after_a_replica_has_refused_a_change_the_server_connects_again_and_repeats_none() {
    let Some(redis) = Redis::start() else { return };
    let server = start(&redis);
    let call = || {
        let client = Client::new(server.udp_address());
        let (session, _) = client.allocate(&login()).unwrap();
        client.delete(&session);
    };
    let mut monitor = redis.monitor();
    // What was the primary server becomes a replica of one that is away.
    assert_eq!(redis.command(&["REPLICAOF", "127.0.0.1", "1"]), "+OK\r\n");
    call();
    let event = |name: &'static str| server.wait_for_log(move |line| line.field("event").as_deref() == Some(name));
    assert_eq!(event("redis-status-refused").field("reason").as_deref(), Some("READONLY"));
    assert!(event("redis-status-unavailable").field("reason").unwrap().contains("replica"));
    assert_eq!(redis.command(&["REPLICAOF", "NO", "ONE"]), "+OK\r\n");
    call();
    let mut published: Vec<_> = Vec::new();
    while published.iter().filter(|command: &&Vec<String>| command[1].ends_with("/total_traffic/peer")).count() < 2 {
        published.extend(monitor.until("/total_traffic/peer"));
    }
    published.retain(|command| command[0] == "PUBLISH");
    let before = published.len();
    published.sort_unstable();
    published.dedup();
    assert_eq!(published.len(), before, "{published:#?}");
    server.terminate();
}
