//! Datagrams that the kernel does not send: a packet filter refuses them, or the queue of the interface is full.

use std::process::Command;

use nix::errno::Errno;
use nix::libc::{SYS_recvfrom, SYS_recvmmsg, SYS_recvmsg, SYS_sendmmsg, SYS_sendmsg, SYS_sendto};

use super::call::Call;
use super::errors::{self, Failing};
use super::inventory::{Inventory, Metrics, settings, start, wait_for_sum};
use crate::support::client::{Client, socket};
use crate::support::network::{Host, in_own_network};
use crate::support::{Controlled, TIMEOUT, run, skip};

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

// netfilter's verdict `drop` for a local datagram is EPERM.
#[test]
fn data_and_responses_that_a_packet_filter_refuses_are_counted_and_the_call_goes_on() {
    if !has("nft", "-v") {
        return;
    }
    in_own_network(&["link set lo up"], || {
        let controlled = Controlled::start_with(&settings(&["127.0.0.1"]));
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
        sh("nft delete table inet fault");
        // The lines of the log do not depend on the number of datagrams.
        assert!(controlled.server.logs().len() < 40);
        call.end();
        other.end();
        inventory.assert_kept(&controlled);
    });
}

// Whatever the kernel says, nothing waits for ever.
#[test]
fn sends_and_receives_that_fail_for_a_while_end_nothing() {
    const ROUNDS: u64 = 6;
    let sends = |call: errors::Call| [SYS_sendmmsg, SYS_sendmsg, SYS_sendto].contains(&call.number);
    let receives = |call: errors::Call| [SYS_recvmmsg, SYS_recvmsg, SYS_recvfrom].contains(&call.number);
    let controlled = start();
    let inventory = Inventory::of(&controlled);
    let call = Call::start(&controlled.server);
    let cases: [(fn(errors::Call) -> bool, Errno); 6] = [
        (sends, Errno::ENOBUFS),
        (sends, Errno::EPERM),
        (sends, Errno::ENOMEM),
        (receives, Errno::ENOBUFS),
        (receives, Errno::ENOMEM),
        (receives, Errno::EIO),
    ];
    for (calls, error) in cases {
        let Some(failing) = Failing::start(controlled.server.id(), "worker-", calls, error) else { return };
        for round in 0..ROUNDS {
            call.to_peer(&[7; 500]);
            call.peer.send_to(&[8; 500], call.relayed).unwrap();
            failing.wait_for_failures(round);
        }
        drop(failing);
        call.settle();
        call.refresh();
    }
    // What was not sent is lost; what was not received has waited.
    let lost = ["send-failed", "send-buffer-full"].map(|reason| Metrics::of(&controlled).sum(&dropped(reason)));
    assert_eq!(lost, [2 * 2 * ROUNDS, 2 * ROUNDS]);
    assert!(controlled.server.logs().len() < 60, "{:#?}", controlled.server.logs());
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
        let before = Metrics::of(&controlled).sum("turnserver_relayed_packets_total{direction=\"to_peer\"}");
        (0..200).for_each(|_| call.to_peer(&[7; 1_000]));
        let lost = wait_for_sum(&controlled, &dropped("send-buffer-full"), 100);
        other.exchange();
        let after = Metrics::of(&controlled).sum("turnserver_relayed_packets_total{direction=\"to_peer\"}");
        assert!(after - before + lost >= 200 && lost <= 200, "{before} {after} {lost}");
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
