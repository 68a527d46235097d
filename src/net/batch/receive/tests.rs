//! Real sockets on the loopback interface.

use std::net::UdpSocket;

use nix::poll::PollFlags;
use socket2::SockRef;

use super::*;
use crate::net::batch::{Piece, SendBatch, SendStatus, Target};
use crate::net::testing::{addr, closed_port, has_ipv6, ip, loopbacks, marked, send, wait_for};
use crate::net::udp::{bind_listener, bind_relay, enable_error_queue, enable_gro};

const LAYOUT: SlotLayout = SlotLayout { headroom: 48, payload: 65_536, tailroom: 4 };

/// Receives until `wanted` slots are filled.
fn fill(batch: &mut RecvBatch, socket: &UdpSocket, wanted: usize) {
    let mut filled = 0;
    while filled < wanted {
        wait_for(socket, PollFlags::POLLIN);
        filled += batch.receive(socket, filled, wanted - filled).unwrap().count;
    }
}

fn payload(batch: &RecvBatch, slot: usize) -> &[u8] {
    &batch.arena()[batch.datagram(slot).unwrap().payload.clone()]
}

/// Returns `length` bytes, of which no two adjacent ones are equal.
fn bytes(length: usize) -> Vec<u8> {
    (0..251).cycle().take(length).collect()
}

/// Sends `payload` as one message that the kernel splits into datagrams of `segment` bytes.
fn send_merged(socket: &UdpSocket, to: SocketAddr, tos: u8, segment: usize, payload: &[u8]) {
    let mut batch = SendBatch::new();
    for start in (0..payload.len()).step_by(segment) {
        let piece = Piece::of_arena(start..payload.len().min(start + segment));
        batch.push(&Target::new(to, None, marked(tos)), &[piece]);
    }
    assert!(batch.flush(socket, payload).iter().all(|status| *status == SendStatus::Sent));
}

const HOP_LIMIT: Option<u8> = Some(60);

#[test]
fn one_call_receives_all_datagrams_in_order() {
    for ip in loopbacks() {
        let listener = bind_listener(SocketAddr::new(ip, 0)).unwrap();
        let to = listener.local_addr().unwrap();
        let clients = [(); 2].map(|()| bind_relay(SocketAddr::new(ip, 0)).unwrap());
        let sent = [(0, 5, 0), (1, 0, 3), (0, 1_200, 0xb8), (1, 60_000, 0)];
        for (client, length, tos) in sent {
            let target = Target::new(to, None, IpFields { tos, hop_limit: HOP_LIMIT });
            assert_eq!(send(&clients[client], &bytes(length), &target), SendStatus::Sent);
        }
        let mut batch = RecvBatch::new(6, LAYOUT);
        fill(&mut batch, &listener, sent.len());
        for (slot, (client, length, tos)) in sent.into_iter().enumerate() {
            let start = slot * (48 + 65_536 + 4) + 48;
            let source = clients[client].local_addr().unwrap();
            let expected = Datagram {
                payload: start..start + length,
                source,
                destination: None,
                truncated: false,
                fields: IpFields { tos, hop_limit: HOP_LIMIT },
                segment: None,
            };
            assert_eq!(batch.datagram(slot), Some(&expected));
            assert_eq!(payload(&batch, slot), bytes(length));
        }
        assert_eq!(batch.datagram(4), None);
        assert_eq!(batch.receive(&listener, 0, 6).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}

#[test]
fn slots_before_the_first_are_not_changed() {
    let listener = bind_listener(addr("127.0.0.1:0")).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut batch = RecvBatch::new(3, LAYOUT);
    for slot in 0..3 {
        client.send_to(&bytes(slot + 1), listener.local_addr().unwrap()).unwrap();
        wait_for(&listener, PollFlags::POLLIN);
        assert_eq!(batch.receive(&listener, slot, 64).unwrap().count, 1);
    }
    for slot in 0..3 {
        assert_eq!(payload(&batch, slot), bytes(slot + 1));
    }
}

#[test]
fn a_slot_can_be_reused_for_another_family_and_another_length() {
    if has_ipv6() {
        let listener = bind_listener(addr("[::]:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut batch = RecvBatch::new(1, LAYOUT);
        for (host, length, tos) in [("::1", 9, 7), ("127.0.0.1", 3, 0), ("::1", 0, 0), ("127.0.0.2", 1_000, 0xff)] {
            let client = bind_relay(SocketAddr::new(ip(host), 0)).unwrap();
            let target = Target::new(SocketAddr::new(ip(host), port), None, marked(tos));
            assert_eq!(send(&client, &bytes(length), &target), SendStatus::Sent);
            fill(&mut batch, &listener, 1);
            let datagram = batch.datagram(0).unwrap();
            assert_eq!((datagram.source, datagram.destination), (client.local_addr().unwrap(), Some(ip(host))));
            assert_eq!((datagram.fields.tos, datagram.truncated), (tos, false));
            assert_eq!(payload(&batch, 0), bytes(length));
        }
    }
}

#[test]
fn consecutive_datagrams_are_merged_and_reported_with_their_length() {
    let mut listens = vec!["127.0.0.1:0", "0.0.0.0:0"];
    if has_ipv6() {
        listens.extend(["[::1]:0", "[::]:0"]);
    }
    for listen in listens {
        let listener = bind_listener(addr(listen)).unwrap();
        if !enable_gro(&listener) {
            return;
        }
        let (bound, port) = (addr(listen).ip(), listener.local_addr().unwrap().port());
        for host in loopbacks() {
            if !bound.is_unspecified() && bound != host || bound.is_ipv4() && host.is_ipv6() {
                continue;
            }
            let client = bind_relay(SocketAddr::new(host, 0)).unwrap();
            let sent = bytes(5 * 1_200 + 700);
            send_merged(&client, SocketAddr::new(host, port), 0xb9, 1_200, &sent);
            let mut batch = RecvBatch::new(2, LAYOUT);
            fill(&mut batch, &listener, 1);
            let datagram = batch.datagram(0).unwrap();
            assert_eq!(datagram.segment, NonZeroUsize::new(1_200), "{host} to {listen}");
            assert_eq!((datagram.fields.tos, datagram.truncated), (0xb9, false));
            assert_eq!(payload(&batch, 0), sent);
            assert_eq!(batch.receive(&listener, 0, 2).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }
}

#[test]
fn a_socket_without_gro_receives_datagrams_one_by_one() {
    let listener = bind_listener(addr("127.0.0.1:0")).unwrap();
    let client = bind_relay(addr("127.0.0.1:0")).unwrap();
    let sent = bytes(3 * 500 + 1);
    send_merged(&client, listener.local_addr().unwrap(), 0, 500, &sent);
    let mut batch = RecvBatch::new(4, LAYOUT);
    fill(&mut batch, &listener, 4);
    for (slot, expected) in sent.chunks(500).enumerate() {
        assert_eq!(payload(&batch, slot), expected);
        assert_eq!(batch.datagram(slot).unwrap().segment, None);
    }
}

#[test]
fn a_datagram_longer_than_its_slot_is_truncated_and_overwrites_nothing_else() {
    let listener = bind_listener(addr("127.0.0.1:0")).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut batch = RecvBatch::new(2, SlotLayout { headroom: 2, payload: 8, tailroom: 2 });
    for length in [9, 8] {
        client.send_to(&bytes(length), listener.local_addr().unwrap()).unwrap();
    }
    fill(&mut batch, &listener, 2);
    assert_eq!([0, 1].map(|slot| batch.datagram(slot).unwrap().truncated), [true, false]);
    assert_eq!(batch.arena(), [&[0; 2][..], &bytes(8), &[0; 4], &bytes(8), &[0; 2]].concat());
}

// RFC 8656 §11.5: an ICMP error concerns one peer and must not delay the datagram of another.
#[test]
fn an_error_of_an_earlier_datagram_does_not_affect_receiving() {
    for host in loopbacks() {
        let relay = bind_relay(SocketAddr::new(host, 0)).unwrap();
        enable_error_queue(&relay).unwrap();
        let peer = UdpSocket::bind((host, 0)).unwrap();
        let closed_port = closed_port(host);
        let to_closed_port = Target::new(closed_port.local_addr().unwrap(), None, IpFields::default());
        let mut batch = RecvBatch::new(4, LAYOUT);
        for _ in 0..3 {
            assert_eq!(send(&relay, b"lost", &to_closed_port), SendStatus::Sent);
            wait_for(&relay, PollFlags::POLLERR);
            assert_eq!(batch.receive(&relay, 0, 4).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            assert_eq!(send(&relay, b"lost", &to_closed_port), SendStatus::Sent);
            peer.send_to(b"arrives", relay.local_addr().unwrap()).unwrap();
            wait_for(&relay, PollFlags::POLLIN);
            assert_eq!(batch.receive(&relay, 0, 4).unwrap().count, 1);
            assert_eq!(payload(&batch, 0), b"arrives");
        }
    }
}

#[test]
fn datagrams_that_the_kernel_dropped_are_counted() {
    let relay = bind_relay(addr("127.0.0.1:0")).unwrap();
    SockRef::from(&relay).set_recv_buffer_size(0).unwrap();
    let (to, client) = (relay.local_addr().unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let mut batch = RecvBatch::new(64, LAYOUT);
    let (mut counter, mut received, mut dropped) = (DropCounter::default(), 0, 0);
    for round in 1..=2 {
        for _ in 0..100 {
            client.send_to(&bytes(1_200), to).unwrap();
        }
        // Drops are reported with a datagram that arrives later.
        let mut counted = false;
        while !counted {
            while let Ok(taken) = batch.receive(&relay, 0, 64) {
                received += u32::try_from(taken.count).unwrap();
                let advanced = counter.advance(taken.dropped);
                counted |= advanced > 0;
                dropped += advanced;
            }
            if !counted {
                client.send_to(&[], to).unwrap();
                received -= 1;
                wait_for(&relay, PollFlags::POLLIN);
            }
        }
        assert_eq!(received + dropped, 100 * round);
    }
}

#[test]
fn the_drop_counter_wraps_around() {
    let mut counter = DropCounter::default();
    assert_eq!(counter.advance(None), 0);
    assert_eq!(counter.advance(Some(2_000_000_000)), 2_000_000_000);
    assert_eq!(counter.advance(Some(4_000_000_000)), 2_000_000_000);
    assert_eq!(counter.advance(Some(2)), u32::MAX - 4_000_000_000 + 3);
    assert_eq!(counter.advance(None), 0);
    assert_eq!(counter.advance(Some(2)), 0);
    // The value with a datagram can be older than the last one.
    assert_eq!(counter.advance(Some(4_000_000_000)), 0);
    assert_eq!(counter.advance(Some(3)), 1);
}

#[test]
fn drops_are_counted_without_a_later_datagram() {
    let relay = bind_relay(addr("127.0.0.1:0")).unwrap();
    SockRef::from(&relay).set_recv_buffer_size(0).unwrap();
    let (to, client) = (relay.local_addr().unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    for _ in 0..100 {
        client.send_to(&bytes(1_200), to).unwrap();
    }
    let mut counter = DropCounter::default();
    let dropped = counter.advance(crate::net::udp::dropped(&relay));
    let mut batch = RecvBatch::new(64, LAYOUT);
    let mut received = 0;
    while let Ok(taken) = batch.receive(&relay, 0, 64) {
        received += u32::try_from(taken.count).unwrap();
        assert_eq!(counter.advance(taken.dropped), 0, "these are counted already");
    }
    assert!(dropped > 0);
    assert_eq!(received + dropped, 100);
    assert_eq!(counter.advance(crate::net::udp::dropped(&relay)), 0);
}

#[test]
fn an_arena_that_does_not_fit_into_the_address_space_is_an_error() {
    for slots in [usize::MAX / 2, 1 << 44] {
        let error = RecvBatch::try_new(slots, LAYOUT).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
    }
}

#[test]
fn receiving_into_no_slot_is_an_error() {
    let listener = bind_listener(addr("127.0.0.1:0")).unwrap();
    let mut batch = RecvBatch::new(1, LAYOUT);
    for (first, max) in [(0, 0), (1, 1), (9, 1)] {
        assert_eq!(batch.receive(&listener, first, max).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
