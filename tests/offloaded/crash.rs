//! A server that ends or stalls without removing its entries.

use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use turnserver::clock::Clock;
use turnserver::offload::pinned;

use crate::call::Call;
use crate::interfaces::{SIZES, run, wait_until};
use crate::support::skip;
use crate::world::{LEASE, World, config, with_network, with_server};

fn is_attached(interface: &str) -> bool {
    run("ip", &format!("-d link show {interface}")).contains("prog/xdp")
}

/// Kills the server, and waits until it is dead.
fn kill(world: &World<'_>) {
    let server = &world.controlled.server;
    let status = format!("/proc/{}/stat", server.id());
    server.signal(Signal::SIGKILL);
    wait_until(|| {
        let status = std::fs::read_to_string(&status).unwrap();
        if status.contains(") Z ") { Ok(()) } else { Err(status) }
    });
}

/// Asserts that the kernel relays without the server, and ends it when its lease ends.
fn assert_end_of_lease(call: &Call<'_>, stopped: &Clock) {
    let mut relayed = 0;
    loop {
        let is_late = stopped.elapsed() > LEASE;
        call.try_to_peer(&[7; 100]);
        if call.arrived_at_peer().0 == 0 {
            break;
        }
        relayed += 1;
        assert!(!is_late, "the kernel relays after the lease");
    }
    assert!(relayed > 0, "the kernel relays until the lease ends");
}

#[test]
fn nothing_is_relayed_after_the_server_is_killed() {
    with_server("", |world| {
        let call = Call::start(world);
        call.exchange_in_kernel();
        kill(world);
        for interface in ["n1", "n2"] {
            wait_until(|| if is_attached(interface) { Err(interface.to_owned()) } else { Ok(()) });
        }
        call.assert_nothing_arrives();
        drop(call);
        let again = world.network.start(&config(""));
        let call = Call::start(&again);
        call.exchange_in_kernel();
        call.end();
    });
}

#[test]
fn a_pinned_program_relays_nothing_after_the_lease_of_a_server_that_was_killed() {
    with_network(|network| {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNS) {
            return skip(&format!("no privilege to create a mount namespace ({error})"));
        }
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        if let Err(error) = mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), Some("mode=755")) {
            return skip(&format!("a BPF file system cannot be mounted: {error}"));
        }
        let directory = Path::new(pinned::DIRECTORY);
        let interfaces = ["n1", "n2"].map(str::to_owned);
        let attached = pinned::attach(directory, None, SIZES, &interfaces).unwrap();
        assert!(attached.iter().all(|interface| interface.attached.is_ok()), "{attached:?}");

        let world = network.start(&config(""));
        assert_eq!(world.offload()["directory"], pinned::DIRECTORY);
        let call = Call::start(&world);
        call.exchange_in_kernel();
        kill(&world);
        let killed = Clock::start();
        assert_end_of_lease(&call, &killed);
        call.assert_nothing_arrives();
        assert!(is_attached("n1") && is_attached("n2"));
        let (client, peer) = (call.client.socket().try_clone().unwrap(), call.peer.try_clone().unwrap());
        drop(call);

        // The next server does not use the entries of the former one.
        let again = network.start(&config(""));
        let entries = &again.offload()["entries"];
        assert_eq!([&entries["to_peers"], &entries["to_clients"]], [&0, &0]);
        let call = Call::start_with(&again, client, peer);
        call.exchange_in_kernel();
        call.end();
        drop(again);
        pinned::detach(directory).unwrap();
        assert!(!is_attached("n1") && !is_attached("n2"));
    });
}

#[test]
fn the_kernel_relays_nothing_for_a_stalled_server_after_its_lease_and_goes_on_afterwards() {
    with_server("", |world| {
        let call = Call::start(world);
        call.exchange_in_kernel();
        let server = &world.controlled.server;
        server.signal(Signal::SIGSTOP);
        let stopped = Clock::start();
        let mut relayed = 0;
        loop {
            let is_late = stopped.elapsed() > LEASE;
            call.send_to_peer(&[7; 100]);
            if call.arrived_at_peer().0 == 0 {
                break;
            }
            relayed += 1;
            assert!(!is_late, "the kernel relays after the lease");
        }
        assert!(relayed > 0, "the kernel relays until the lease ends");
        // User space gets these, and relays them when it goes on.
        (0..10).for_each(|_| call.send_to_peer(&[8; 200]));
        call.assert_silent();
        server.signal(Signal::SIGCONT);
        for expected in [vec![7; 100]].into_iter().chain(vec![vec![8; 200]; 10]) {
            assert!(crate::support::client::receive(&call.peer) == (expected, call.relay));
        }
        // A tick extends the lease.
        wait_until(|| {
            let before = world.in_kernel();
            call.exchange(&[&[9; 100]]);
            if world.in_kernel().since(before).packets == [1, 1] { Ok(()) } else { Err("no lease".to_owned()) }
        });
        call.exchange_in_kernel();
        call.end();
    });
}
