//! Datagrams that the kernel does not send: a packet filter refuses them, or the queue of the interface is full.

use std::process::Command;

use nix::errno::Errno;
use nix::libc::{SYS_recvfrom, SYS_recvmmsg, SYS_recvmsg, SYS_sendmmsg, SYS_sendmsg, SYS_sendto};

use turnserver::clock::Clock;
use turnserver::stun::attribute::Lifetime;
use turnserver::stun::{Class, Method, TransactionId};

use super::call::Call;
use super::errors::{self, Failing};
use super::inventory::{Inventory, Metrics, settings, wait_for_sum};
use crate::support::client::{Client, message, receive, socket};
use crate::support::network::{Host, in_own_network};
use crate::support::{Controlled, LogLine, TIMEOUT, run, skip};

/// The most lines about packets with one outcome that a worker logs in a minute.
const LINES: u64 = 1_000;

/// Runs a command in the namespace of this thread.
fn sh(command: &str) {
    let finished = run(Command::new("sh").args(["-c", command]), None, TIMEOUT);
    assert_eq!(finished.code, Some(0), "{command}: {finished:?}");
}

fn has(program: &str, option: &str) -> bool {
    let has = Command::new(program).arg(option).output().is_ok();
    if !has {
        skip(&format!("the program {program} is missing"));
    }
    has
}

fn dropped(reason: &str) -> String {
    format!("turnserver_dropped_packets_total{{reason={reason:?}}}")
}

/// Starts a server that logs packets that failed.
fn start_verbose() -> Controlled {
    let config = settings(&["127.0.0.1"]).replacen("[log]\n", "[log]\nlevel = \"debug\"\n", 1);
    Controlled::start_with(&config)
}

/// Asserts that the log has lines about packets that were dropped for this reason, and at most one for each of them.
#[track_caller]
fn assert_logged(controlled: &Controlled, reason: &str, most: u64) {
    let message = format!("dropped {reason}");
    controlled.server.wait_for_log(|line| line.message() == message);
    let lines = controlled.server.logs();
    let lines: Vec<&LogLine> = lines.iter().filter(|line| line.message() == message).collect();
    assert!(lines.iter().all(|line| line.field("event").as_deref() == Some("packet-failed")), "{lines:#?}");
    // A line may be about several.
    let of = |line: &&LogLine| line.field("packets").unwrap().parse::<u64>().unwrap();
    let (count, packets) = (lines.len() as u64, lines.iter().map(of).sum::<u64>());
    assert!(count <= LINES && packets <= most, "{count} lines about {packets} of {most} packets");
}

// netfilter's verdict `drop` for a local datagram is EPERM.
#[test]
fn data_and_responses_that_a_packet_filter_refuses_are_counted_and_the_call_goes_on() {
    if !has("nft", "-v") {
        return;
    }
    in_own_network(&["link set lo up"], || {
        let controlled = start_verbose();
        let inventory = Inventory::of(&controlled);
        let (call, other) = (Call::start(&controlled.server), Call::start(&controlled.server));
        let listener = controlled.server.udp_address().port();
        sh("nft add table inet fault");
        sh("nft add chain inet fault out '{ type filter hook output priority 0; }'");
        let refuse = |rule: &str| sh(&format!("nft add rule inet fault out {rule} drop"));
        refuse(&format!("udp dport {}", call.peer_address().port()));
        (0..50).for_each(|_| call.to_peer(&[7; 500]));
        assert_eq!(wait_for_sum(&controlled, &dropped("send-failed"), 50), 50);
        other.exchange();
        refuse(&format!("udp sport {listener} udp dport {}", call.client.address().port()));
        (0..50).for_each(|_| assert_eq!(call.peer.send_to(&[8; 500], call.relayed).unwrap(), 500));
        assert_eq!(wait_for_sum(&controlled, &dropped("send-failed"), 100), 100);
        other.exchange();
        // Responses are refused, too.
        let refresh = call.refresh_request(1_200);
        (0..25).for_each(|_| call.client.send(&refresh));
        let binding = message(Class::Request, Method::BINDING, TransactionId::new([9; 12]), &|_| {});
        (0..25).for_each(|_| call.client.send(&binding));
        assert_eq!(wait_for_sum(&controlled, &dropped("send-failed"), 150), 150);
        other.exchange();
        sh("nft delete table inet fault");
        assert_logged(&controlled, "send-failed", 150);
        // The client repeats its request.
        call.client.send(&refresh);
        assert_eq!(call.client.receive().get::<Lifetime>(), Some(Lifetime(1_200)));
        call.end();
        other.end();
        inventory.assert_kept(&controlled);
    });
}

#[test]
fn sends_that_fail_for_a_while_lose_their_data_and_nothing_else() {
    const COUNT: u64 = 6;
    let sends = |call: errors::Call| [SYS_sendmmsg, SYS_sendmsg, SYS_sendto].contains(&call.number);
    let controlled = start_verbose();
    let inventory = Inventory::of(&controlled);
    let call = Call::start(&controlled.server);
    for (error, reason, count) in [
        (Errno::ENOBUFS, "send-buffer-full", 2 * COUNT),
        (Errno::EPERM, "send-failed", 2 * COUNT),
        (Errno::ENOMEM, "send-failed", 4 * COUNT),
    ] {
        let Some(failing) = Failing::start(controlled.server.id(), "worker-", sends, error) else { return };
        for _ in 0..COUNT {
            call.to_peer(&[7; 500]);
            call.peer.send_to(&[8; 500], call.relayed).unwrap();
        }
        assert_eq!(wait_for_sum(&controlled, &dropped(reason), count), count);
        drop(failing);
        assert_logged(&controlled, reason, count);
        call.exchange();
        call.refresh();
    }
    call.end();
    inventory.assert_kept(&controlled);
}

// Datagrams wait in the buffers of the sockets meanwhile.
#[test]
fn receives_that_fail_for_a_while_lose_nothing() {
    let receives = |call: errors::Call| [SYS_recvmmsg, SYS_recvmsg, SYS_recvfrom].contains(&call.number);
    let controlled = start_verbose();
    let inventory = Inventory::of(&controlled);
    let call = Call::start(&controlled.server);
    for error in [Errno::ENOBUFS, Errno::ENOMEM, Errno::EIO] {
        let Some(failing) = Failing::start(controlled.server.id(), "worker-", receives, error) else { return };
        for number in 0..6 {
            call.to_peer(&[number; 500]);
            call.peer.send_to(&[number; 500], call.relayed).unwrap();
        }
        failing.wait_for_failures(5);
        let failures = failing.end();
        let failed = |line: &LogLine| {
            line.field("event").as_deref() == Some("receive-failed")
                && line.field("error").is_some_and(|text| text.ends_with(&format!("(os error {})", error as i32)))
        };
        controlled.server.wait_for_log(failed);
        let lines = controlled.server.logs().iter().filter(|line| failed(line)).count() as u64;
        assert!(lines <= failures, "{lines} lines about {failures} failures");
        for number in 0..6 {
            assert_eq!(receive(&call.peer).0, [number; 500], "{error}");
            assert_eq!(receive(call.client.socket()).0[4..], [number; 500], "{error}");
        }
        call.refresh();
    }
    call.end();
    inventory.assert_kept(&controlled);
}

// The kernel reports a full queue of an interface, ENOBUFS, to sockets with `IP_RECVERR`, which relay sockets have.
#[test]
fn data_for_an_interface_whose_queue_is_full_is_counted_and_the_call_goes_on() {
    if !has("tc", "-V") {
        return;
    }
    in_own_network(&["link set lo up"], || {
        let host = Host::new(1);
        let controlled = Controlled::start_with(&settings(&["10.0.1.1"]));
        let inventory = Inventory::of(&controlled);
        let peer = host.run(|| socket("10.0.1.2:0".parse().unwrap()));
        let here = || Client::on(socket("10.0.1.1:0".parse().unwrap()), controlled.server.udp_address());
        let call = Call::between(here(), peer);
        let other = Call::between(here(), socket("127.0.0.1:0".parse().unwrap()));
        sh("tc qdisc add dev n1 root tbf rate 8kbit burst 1600 limit 3200");
        // The queue takes a few, and the kernel reports no loss of a segmented message of which it takes a part.
        let relayed = || Metrics::of(&controlled).sum("turnserver_relayed_packets_total{direction=\"to_peer\"}");
        let lost = || Metrics::of(&controlled).sum(&dropped("send-buffer-full"));
        let before = relayed();
        for round in 1..=20 {
            (0..10).for_each(|_| call.to_peer(&[7; 1_000]));
            let clock = Clock::start();
            while relayed() - before + lost() < 10 * round {
                assert!(clock.elapsed() < TIMEOUT, "{} {before} {}", relayed(), lost());
            }
        }
        assert!(relayed() - before + lost() == 200 && lost() > 100, "{} {before} {}", relayed(), lost());
        other.exchange();
        sh("tc qdisc del dev n1 root");
        // What the queue had taken arrives before, or never.
        call.peer.set_nonblocking(true).unwrap();
        while call.peer.recv(&mut [0; 2_000]).is_ok() {}
        call.peer.set_nonblocking(false).unwrap();
        call.end();
        other.end();
        inventory.assert_kept(&controlled);
    });
}
