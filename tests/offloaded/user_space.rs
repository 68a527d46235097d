//! What user space relays beside the kernel.

use std::net::SocketAddr;

use serde_json::json;
use turnserver::proxy_protocol::{self, Addresses};
use turnserver::stun::attribute::Data;

use crate::call::{CHANNEL, Call, bind, channel_data};
use crate::http::Http;
use crate::interfaces::run;
use crate::support::client::{Client, Login, receive};
use crate::world::{CLIENTS, LISTENERS, PEERS, World, config, in_host, socket_of, with_network, with_server};

fn client(world: &World<'_>) -> Client {
    Client::on(socket_of(&world.network.client, CLIENTS[0]), listener(world))
}

fn listener(world: &World<'_>) -> SocketAddr {
    world.controlled.server.udp_address_on(LISTENERS[0].parse().unwrap())
}

/// Allocates for two clients, and binds channels to the relayed addresses of each other. Data flows both ways through
/// user space.
fn relay_to_each_other(world: &World<'_>, login: &Login, reason: &str) {
    let [ann, bob] = [(), ()].map(|()| {
        let client = client(world);
        let (session, relay) = client.allocate(login).unwrap();
        (client, session, relay)
    });
    for ((client, session, _), (.., relay)) in [(&ann, &bob), (&bob, &ann)] {
        bind(client, session, CHANNEL, *relay);
    }
    let before = world.in_kernel();
    for ((from, ..), (to, ..)) in [(&ann, &bob), (&bob, &ann)].repeat(5) {
        from.send(&channel_data(CHANNEL, &[6; 300]));
        assert!(receive(to.socket()).0 == channel_data(CHANNEL, &[6; 300]));
    }
    assert_eq!(world.in_kernel(), before);
    assert_eq!(world.offload()["in_user_space"][reason], 4);
    for (client, session, _) in [&ann, &bob] {
        client.delete(session);
    }
}

#[test]
fn clients_relay_to_relayed_addresses_of_this_server_through_user_space() {
    with_server("", |world| {
        let call = Call::start(world);
        relay_to_each_other(world, &Login::mint("bob", 600), "own-peer");
        call.exchange_in_kernel();
        call.end();
    });
}

// The program does not know headers. This one names the address of the proxy itself, so that nothing else is in the way.
#[test]
fn a_client_behind_a_proxy_goes_through_user_space_beside_a_call_in_the_kernel() {
    with_network(|network| {
        let listed = format!("[listen]\nproxies = [{:?}]\n", CLIENTS[0]);
        let world = network.start(&config("").replace("[listen]\n", &listed));
        let (client, server) = (client(&world), listener(&world));
        let mut header = Vec::new();
        proxy_protocol::write(Some(Addresses { client: client.address(), server }), &mut header);
        client.socket().send(&header).unwrap();
        let peer = socket_of(&world.network.peer, PEERS[0]);
        let behind = Call::start_for(&world, client, &Login::mint("ann", 600), peer, CHANNEL);
        let direct = Call::start_over(&world, [1, 1]);
        behind.exchange(&[&[1; 200]]);
        behind.wait_for_user_space("PROXY headers");
        behind.exchange_in_user_space();
        assert_eq!(world.offload()["in_user_space"]["proxy"], 2);
        direct.exchange_in_kernel();
        behind.end();
        direct.end();
    });
}

#[test]
fn a_test_link_goes_through_user_space() {
    with_server("[http]\nlisten = [\"127.0.0.1:0\"]\n", |world| {
        let link = world.controlled.json(&["test-link"]);
        let (_, token) = link["urls"][0].as_str().unwrap().split_once('#').unwrap();
        let address = world.controlled.event("http-listening").field("address").unwrap().parse().unwrap();
        let request = json!({ "token": token, "key": "0123456789abcdef" }).to_string();
        let response = Http::tcp(address).request("POST", "/test/start", "", request.as_bytes());
        let session: serde_json::Value = serde_json::from_str(&response.body).unwrap();
        let [username, credential] = ["username", "credential"].map(|field| session[field].as_str().unwrap());
        relay_to_each_other(world, &Login::new(username, credential), "own-peer");
    });
}

#[test]
fn a_client_on_tcp_and_indications_go_through_user_space_beside_a_call_in_the_kernel() {
    with_server("", |world| {
        let call = Call::start(world);
        let listener = world.controlled.server.tcp_address_on(LISTENERS[0].parse().unwrap());
        let stream = in_host(&world.network.client, move || std::net::TcpStream::connect(listener).unwrap());
        let peer = socket_of(&world.network.peer, PEERS[0]);
        let tcp = Call::start_for(world, Client::on_tcp(stream), &Login::mint("bob", 600), peer, CHANNEL);
        let before = world.in_kernel();
        for length in [1, 30, 1000] {
            let data = vec![1; length];
            let mut message = channel_data(CHANNEL, &data);
            message.resize(message.len().next_multiple_of(4), 0);
            tcp.client.send(&message);
            assert_eq!(receive(&tcp.peer), (data.clone(), tcp.relay));
            tcp.send_to_client(&data);
            tcp.count(0, &data);
            assert!(tcp.client.frame().unwrap() == channel_data(CHANNEL, &data));
        }
        assert!(tcp.why_not().iter().all(|why| why == "the client is connected over TCP or TLS"));

        // The peer of the call with a channel gets indications too, and another one has only a permission.
        let other = socket_of(&world.network.peer, PEERS[0]);
        for peer in [&call.peer, &other] {
            call.client.send_to_peer(peer.local_addr().unwrap(), b"an indication");
            assert_eq!(receive(peer), (b"an indication".to_vec(), call.relay));
            call.count(0, b"an indication");
        }
        other.send_to(b"no channel", call.relay).unwrap();
        assert_eq!(call.client.receive().get::<Data<'_>>().unwrap().0, b"no channel");
        call.count(1, b"no channel");
        assert_eq!(world.in_kernel(), before);
        assert_eq!(tcp.counted().packets, [3, 3]);
        call.exchange_in_kernel();
        tcp.client.delete(&tcp.session);
        tcp.assert_logged(&tcp.logged_end());
        call.end();
    });
}

#[test]
fn calls_with_a_limit_on_the_bytes_of_a_user_go_through_user_space() {
    for key in ["bytes-per-second-per-user", "bytes-per-second-per-allocation"] {
        with_server(&format!("[limits]\n{key} = 1000000\n"), |world| {
            let [client, peer] = [(&world.network.client, CLIENTS[0]), (&world.network.peer, PEERS[0])]
                .map(|(host, ip)| socket_of(host, ip));
            let call = Call::start_in_user_space(world, client, peer);
            call.wait_for_user_space("limits the bytes per second");
            call.exchange_in_user_space();
            assert_eq!(world.in_kernel().packets, [0, 0]);
            call.end();
        });
    }
}

// A container on a veth interface of this machine does this.
#[test]
fn data_whose_checksum_the_sender_leaves_to_a_device_goes_through_user_space() {
    with_server("", |world| {
        for versions in [[0, 0], [1, 1]] {
            let call = Call::start_over(world, versions);
            call.exchange_in_kernel();
            world.network.client.run(|| drop(run("ethtool", "-K n1 tx on")));
            let (before, passed) = (world.in_kernel(), world.outcome("partial-checksum"));
            call.exchange(&[&[1; 100], &[2; 1001]]);
            call.check();
            let state = (world.offload(), call.why_not());
            assert_eq!(world.in_kernel().since(before).packets, [0, 2], "{state:?}");
            assert_eq!(world.outcome("partial-checksum") - passed, 2);
            world.network.client.run(|| drop(run("ethtool", "-K n1 tx off")));
            call.exchange_in_kernel();
            call.end();
        }
        world.assert_checksums();
    });
}
