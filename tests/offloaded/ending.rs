//! The end of allocations whose data the kernel relays.

use std::net::UdpSocket;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;

use nix::sys::signal::Signal;

use crate::call::{Call, channel_data, logged_bytes, send};
use crate::interfaces::wait_until;
use crate::support::Finally;
use crate::world::{Network, World, config, waiting, with_network, with_server};

/// The datagrams that a client sends to its peer all the time.
#[derive(Default)]
struct Stream {
    sent: AtomicU64,
    arrived: AtomicU64,
    /// How often the peer had received everything.
    idle: AtomicU64,
    /// The number of datagrams that may be on their way, so that the buffer of the peer's socket has room for them.
    window: AtomicU64,
    ended: AtomicBool,
}

impl Stream {
    fn send(&self, socket: &UdpSocket, datagram: &[u8]) {
        while !self.ended.load(Relaxed) {
            if self.sent.load(Relaxed) < self.arrived.load(Relaxed) + self.window.load(Relaxed) {
                send(socket, datagram);
                self.sent.fetch_add(1, Relaxed);
            }
            thread::yield_now();
        }
    }

    fn receive(&self, socket: &UdpSocket) {
        while !self.ended.load(Relaxed) {
            let counter = if waiting(socket).is_some() { &self.arrived } else { &self.idle };
            counter.fetch_add(1, Relaxed);
        }
    }

    /// Returns the number of datagrams that have arrived, and includes those that were sent until now and are relayed.
    fn arrived(&self, network: &Network) -> u64 {
        network.fence();
        let idle = self.idle.load(Relaxed);
        wait_for(|| self.idle.load(Relaxed) > idle + 1);
        self.arrived.load(Relaxed)
    }
}

fn wait_for(mut condition: impl FnMut() -> bool) {
    wait_until(|| if condition() { Ok(()) } else { Err("the stream does not go on".to_owned()) });
}

/// Ends an allocation while its client sends, and asserts that nothing arrives at the peer afterwards, and that the
/// log has what arrived. Returns the reason in the log.
fn end_while_sending(call: &Call<'_>, end: impl FnOnce()) -> String {
    call.exchange_in_kernel();
    let (before, in_kernel) = (call.counted(), call.world().in_kernel());
    let [client, peer] = [call.client.socket(), &call.peer].map(|socket| socket.try_clone().unwrap());
    let stream = Stream { window: AtomicU64::new(32), ..Stream::default() };
    let datagram = channel_data(call.channel, &[8; 200]);
    let arrived = thread::scope(|scope| {
        scope.spawn(|| stream.send(&client, &datagram));
        scope.spawn(|| stream.receive(&peer));
        let _finally = Finally(&stream.ended);
        wait_for(|| stream.arrived.load(Relaxed) > 1_000);
        assert!(call.world().in_kernel().since(in_kernel).packets[0] > 1_000);
        end();
        let arrived = stream.arrived(call.world().network);
        stream.window.store(332, Relaxed);
        wait_for(|| stream.sent.load(Relaxed) == arrived + 332);
        assert_eq!(stream.arrived(call.world().network), arrived, "data arrives after the end");
        arrived
    });
    let line = call.logged_end();
    assert_eq!(logged_bytes(&line), [before.bytes[0] + 200 * arrived, before.bytes[1]], "{line:?}");
    call.assert_nothing_arrives();
    line.field("reason").unwrap()
}

fn assert_without_entries(world: &World<'_>) {
    let offload = world.offload();
    assert_eq!([&offload["entries"]["to_peers"], &offload["entries"]["to_clients"]], [0, 0], "{offload}");
}

#[test]
fn nothing_arrives_after_the_response_to_a_refresh_with_lifetime_0() {
    with_server("", |world| {
        let call = Call::start(world);
        end_while_sending(&call, || call.client.delete(&call.session));
        assert_without_entries(world);
    });
}

#[test]
fn nothing_arrives_after_a_kick() {
    with_server("", |world| {
        let call = Call::start(world);
        let reason = end_while_sending(&call, || {
            assert_eq!(world.controlled.lines(&["kick", &call.id]), ["ended 1 session"]);
        });
        assert!(reason.starts_with("ended by the operator"), "{reason}");
        assert_without_entries(world);
    });
}

#[test]
fn nothing_arrives_after_a_revocation() {
    with_server("", |world| {
        let call = Call::start(world);
        let reason = end_while_sending(&call, || drop(world.controlled.lines(&["revoke", &call.login.username])));
        assert_eq!(reason, "the credentials were revoked");
        assert_without_entries(world);
    });
}

#[test]
fn calls_go_on_in_the_kernel_while_the_server_drains_and_end_with_it() {
    with_network(|network| {
        let world = &network.start(&format!("drain-deadline = \"10m\"\n{}", config("")));
        let call = Call::start(world);
        let server = &world.controlled.server;
        world.controlled.lines(&["drain"]);
        call.exchange_in_kernel();
        server.signal(Signal::SIGTERM);
        server.wait_for_log(|line| line.message().starts_with("SIGTERM: draining"));
        call.exchange_in_kernel();
        // It does not wait for the end of the call.
        server.signal(Signal::SIGINT);
        server.wait_for_log(|line| line.message() == "stopped");
        call.assert_logged(&call.logged_end());
        call.assert_nothing_arrives();
    });
}
