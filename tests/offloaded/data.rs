//! Data that the kernel relays.

use crate::call::{CHANNEL, Call, bind, channel_data, largest, send};
use crate::support::client::{Client, receive};
use crate::world::{CLIENTS, PEERS, assert_silent, is_v4, socket_of, with_server};

/// Runs a call of each pair of IP versions: 0 is IPv4, and 1 is IPv6.
fn with_each_pair(test: impl Fn(&Call<'_>, [usize; 2]) + Send + Sync) {
    with_server("", |world| {
        for versions in [[0, 0], [0, 1], [1, 0], [1, 1]] {
            let call = Call::start_over(world, versions);
            test(&call, versions);
            call.check();
            call.end();
        }
        world.assert_checksums();
        let offload = world.offload();
        assert_eq!((&offload["entries"]["to_peers"], &offload["entries"]["to_clients"]), (&0.into(), &0.into()));
    });
}

#[test]
fn data_of_every_length_arrives_once_and_is_counted() {
    with_server("", |world| {
        for versions in [[0, 0], [0, 1], [1, 0], [1, 1]] {
            let call = Call::start_over(world, versions);
            let before = world.in_kernel();
            let most = largest(versions);
            let lengths = [18, 19, 20, 33, 500, 1200, most - 1, most];
            for length in lengths {
                call.exchange(&[&vec![length.to_le_bytes()[0]; length]]);
            }
            call.check();
            let relayed = world.in_kernel().since(before);
            assert_eq!(relayed.packets, [8; 2], "{versions:?}");
            assert_eq!(relayed.bytes, [lengths.iter().sum::<usize>() as u64; 2], "{versions:?}");
            call.end();
        }
        world.assert_checksums();
    });
}

// The driver may have no room for the padding of a frame that is shorter than 60 bytes.
#[test]
fn short_data_arrives_whoever_relays_it() {
    with_each_pair(|call, versions| {
        let world = call.world();
        let (before, passed) = (world.in_kernel(), world.outcome("no-tailroom"));
        call.exchange(&[&[], &[1], &[1, 2], &[1, 2, 3], &[1, 2, 3, 4]]);
        call.check();
        let [to_peers, to_clients] = world.in_kernel().since(before).packets;
        let passed = world.outcome("no-tailroom") - passed;
        assert_eq!(to_peers + to_clients + passed, 10);
        // Their frames have at least 62 bytes.
        assert!(is_v4(PEERS[versions[1]]) || to_peers == 5, "{to_peers}");
        assert!(is_v4(CLIENTS[versions[0]]) || to_clients == 5, "{to_clients}");
    });
}

#[test]
fn data_that_is_too_long_for_a_packet_goes_through_user_space_in_fragments() {
    with_each_pair(|call, versions| {
        let world = call.world();
        let too_long = world.outcome("too-long");
        let before = world.in_kernel();
        // The longest that the peer sends in one packet.
        let to_client = if is_v4(PEERS[versions[1]]) { 1_472 } else { 1_452 };
        call.to_client(&vec![5; to_client]);
        let is_too_long = to_client > largest(versions);
        assert_eq!(world.outcome("too-long") - too_long, u64::from(is_too_long), "{versions:?}");
        assert_eq!(world.in_kernel().since(before).packets, [0, u64::from(!is_too_long)], "{versions:?}");
        // The longest that the client sends in one packet.
        let to_peer = if is_v4(CLIENTS[versions[0]]) { 1_468 } else { 1_448 };
        call.to_peer(&vec![6; to_peer]);
    });
}

#[test]
fn only_the_socket_of_the_client_uses_its_channel() {
    with_server("", |world| {
        let call = Call::start(world);
        // After a NAT rebinding, packets come from another port.
        let rebound = socket_of(&world.network.client, CLIENTS[0]);
        rebound.connect(call.client.socket().peer_addr().unwrap()).unwrap();
        for length in 20..40 {
            send(&rebound, &channel_data(CHANNEL, &vec![1; length]));
        }
        // Nor does another port of the peer: it has a permission, and its data is an indication.
        let other = socket_of(&world.network.peer, PEERS[0]);
        let before = world.in_kernel();
        other.send_to(b"from another port of the peer", call.relay).unwrap();
        assert!(receive(call.client.socket()).0.starts_with(&[0, 0x17]));
        call.count(1, b"from another port of the peer");
        assert_eq!(world.in_kernel(), before);
        call.exchange_in_kernel();
        assert_silent(&rebound);
        assert_silent(&other);
        call.end();
    });
}

#[test]
fn a_recreated_allocation_uses_its_own_channel_and_relayed_address() {
    with_server("", |world| {
        let call = Call::start(world);
        call.exchange_in_kernel();
        let (client, peer) = (call.client.socket().try_clone().unwrap(), call.peer.try_clone().unwrap());
        let (listener, former) = (client.peer_addr().unwrap(), call.relay);
        let login = call.login.clone();
        call.end();
        let client = Client::on(client, listener);
        let call = Call::start_for(world, client, &login, peer, CHANNEL + 1);
        assert_ne!(call.relay, former);
        call.exchange(&[b"first"]);
        call.wait_for_kernel();
        send(call.client.socket(), &channel_data(CHANNEL, &[1; 100]));
        let _ = call.peer.send_to(&[2; 100], former);
        call.exchange_in_kernel();
        call.end();
    });
}

#[test]
fn channels_of_one_client_lead_to_their_own_peers() {
    with_server("", |world| {
        let call = Call::start(world);
        let others: Vec<_> = (1..5)
            .map(|number| {
                let peer = socket_of(&world.network.peer, PEERS[0]);
                bind(&call.client, &call.session, CHANNEL + number, peer.local_addr().unwrap());
                (CHANNEL + number, peer)
            })
            .collect();
        for (channel, peer) in &others {
            for data in [&b"one"[..], &[5; 300]] {
                send(call.client.socket(), &channel_data(*channel, data));
                assert_eq!(receive(peer), (data.to_vec(), call.relay));
                call.count(0, data);
                peer.send_to(data, call.relay).unwrap();
                assert_eq!(receive(call.client.socket()).0, channel_data(*channel, data));
                call.count(1, data);
            }
        }
        call.exchange_in_kernel();
        others.iter().for_each(|(_, peer)| assert_silent(peer));
        call.end();
    });
}
