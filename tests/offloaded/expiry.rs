//! The end of lifetimes (RFC 8656 §3.2, §12) under calls that the kernel relays. The server removes the entries then;
//! `tests/offload/relayed.rs` and `passed.rs` show that the program also observes their expiry by itself.

use std::thread;
use std::time::Duration;

use turnserver::client::Request;
use turnserver::clock::Clock;

use crate::call::{Call, bind};
use crate::support::client::{Client, Login};
use crate::world::{CLIENTS, LISTENERS, PEERS, World, socket_of, with_server};

/// The lifetime of channels, and the default of allocations.
const LIFETIME: Duration = Duration::from_secs(600);
/// The part of a lifetime after which clients refresh.
const REFRESH: Duration = Duration::from_secs(400);
/// The time for requests and responses at the start, and the delay of the program's clock.
const MARGIN: Duration = Duration::from_secs(3);

fn start<'w>(world: &'w World<'w>, channel: u16) -> Call<'w> {
    let server = world.controlled.server.udp_address_on(LISTENERS[0].parse().unwrap());
    let client = Client::on(socket_of(&world.network.client, CLIENTS[0]), server);
    let peer = socket_of(&world.network.peer, PEERS[0]);
    let call = Call::start_for(world, client, &Login::mint("ann", 3_600), peer, channel);
    call.exchange(&[b"the first packet resolves the neighbours"]);
    call.wait_for_kernel();
    call
}

fn refresh(call: &Call<'_>) {
    let request = Request::Refresh(600);
    let response = call.client.request(&call.session, request.method(), &|writer| request.encode(writer));
    assert_eq!(response.error(), None);
}

#[test]
#[ignore = "takes eleven minutes"]
fn data_flows_until_the_allocation_or_the_channel_expires() {
    with_server("", |world| {
        let clock = Clock::start();
        let [abandoned, unbound, kept] = [0x4001, 0x4002, 0x4003].map(|channel| start(world, channel));
        assert!(clock.elapsed() < MARGIN, "the first lifetimes end at different times");
        let exchange_until = |end: Duration| {
            // Lifetimes have a minimum (§7.2, §12), so there is no shorter way.
            while clock.elapsed() < end {
                [&abandoned, &unbound, &kept].iter().for_each(|call| call.exchange(&[&[7; 100]]));
                thread::park_timeout(Duration::from_millis(250));
            }
        };
        let before = world.in_kernel();
        exchange_until(REFRESH);
        refresh(&unbound);
        refresh(&kept);
        bind(&kept.client, &kept.session, kept.channel, kept.peer.local_addr().unwrap());
        exchange_until(LIFETIME - MARGIN);
        let [to_peers, to_clients] = world.in_kernel().since(before).packets;
        println!("the kernel has relayed {to_peers} packets to peers and {to_clients} to clients");
        // User space gets some while the kernel examines a neighbour.
        let sent: u64 = [&abandoned, &unbound, &kept].iter().map(|call| call.counted().packets[0]).sum();
        assert!(to_peers > sent * 9 / 10 && to_clients > sent * 9 / 10, "of {sent} each way");

        while clock.elapsed() < LIFETIME + MARGIN {
            kept.exchange(&[&[8; 100]]);
            thread::park_timeout(Duration::from_millis(250));
        }
        unbound.assert_nothing_arrives();
        abandoned.assert_nothing_arrives();
        kept.exchange_in_kernel();
        let end = abandoned.logged_end();
        abandoned.assert_logged(&end);
        println!("{}", end.field("reason").unwrap());

        bind(&unbound.client, &unbound.session, unbound.channel, unbound.peer.local_addr().unwrap());
        unbound.wait_for_kernel();
        unbound.exchange_in_kernel();
        unbound.end();
        kept.end();
        world.assert_checksums();
    });
}
