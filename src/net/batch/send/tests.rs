//! Real sockets on the loopback interface, or in their own network namespace if a test has to configure an interface.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::poll::PollFlags;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::*;
use crate::net::batch::{RecvBatch, SlotLayout};
use crate::net::testing::{addr, closed_port, has_ipv6, in_own_network, ip, loopbacks, marked, wait_for};
use crate::net::udp::{bind_listener, bind_relay, enable_error_queue, enable_gro, receive_error};

/// Receives `count` datagrams; merged ones count as one.
fn receive(socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
    let mut batch = RecvBatch::new(8, SlotLayout { headroom: 0, payload: 65_536, tailroom: 0 });
    let mut payloads = Vec::new();
    while payloads.len() < count {
        wait_for(socket, PollFlags::POLLIN);
        let filled = batch.receive(socket, 0, 8.min(count - payloads.len())).unwrap().count;
        payloads.extend((0..filled).map(|slot| batch.arena()[batch.datagram(slot).unwrap().payload.clone()].to_vec()));
    }
    payloads
}

/// Returns an arena with datagrams of these lengths and different contents, and the piece of each.
fn arena(lengths: &[usize]) -> (Vec<u8>, Vec<Piece>) {
    let (mut arena, mut pieces) = (Vec::new(), Vec::new());
    for (number, length) in lengths.iter().enumerate() {
        pieces.push(Piece::of_arena(arena.len()..arena.len() + length));
        arena.extend((0..251).cycle().skip(7 * number).take(*length));
    }
    (arena, pieces)
}

fn payloads(arena: &[u8], pieces: &[Piece]) -> Vec<Vec<u8>> {
    pieces.iter().map(|piece| arena[piece.start..piece.end].to_vec()).collect()
}

/// Pushes a datagram for each length. Returns the arena and the expected payloads.
fn push_all(batch: &mut SendBatch, to: SocketAddr, lengths: &[usize]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let (arena, pieces) = arena(lengths);
    for (number, piece) in pieces.iter().enumerate() {
        assert_eq!(batch.push(&Target::new(to, None, IpFields::default()), &[*piece]), number);
    }
    let expected = payloads(&arena, &pieces);
    (arena, expected)
}

fn socket(ip: IpAddr) -> (UdpSocket, SocketAddr) {
    let socket = bind_listener(SocketAddr::new(ip, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[test]
fn datagrams_of_all_lengths_arrive_complete_and_in_order() {
    for ip in loopbacks() {
        let ((peer, to), (sender, _)) = (socket(ip), socket(ip));
        let lengths =
            [5, 1_200, 1_200, 700, 700, 1_200, 0, 0, 3, 1_452, 1_452, 1_472, 1_472, 1_473, 1_473, 65_507, 1, 1];
        let mut batch = SendBatch::new();
        let (arena, expected) = push_all(&mut batch, to, &lengths);
        assert_eq!(batch.flush(&sender, &arena), vec![SendStatus::Sent; lengths.len()]);
        assert_eq!(receive(&peer, lengths.len()), expected);
        assert_eq!(batch.flush(&sender, &arena), []);
    }
}

/// Sends datagrams of these lengths to a socket with GRO. Returns the lengths of the messages that arrive.
fn message_lengths(ip: IpAddr, lengths: &[usize], messages: usize) -> Option<Vec<usize>> {
    let ((peer, to), (sender, _)) = (socket(ip), socket(ip));
    let mut batch = SendBatch::new();
    if !enable_gro(&peer) || !batch.segmentation.is_on() {
        return None;
    }
    let (arena, expected) = push_all(&mut batch, to, lengths);
    assert_eq!(batch.flush(&sender, &arena), vec![SendStatus::Sent; lengths.len()]);
    let received = receive(&peer, messages);
    assert_eq!(received.concat(), expected.concat());
    Some(received.iter().map(Vec::len).collect())
}

#[test]
fn datagrams_of_equal_length_and_a_shorter_last_one_are_one_message() {
    for ip in loopbacks() {
        let Some(lengths) = message_lengths(ip, &[100, 100, 100, 40, 100, 100, 101, 101, 0, 0, 9, 9], 6) else {
            return;
        };
        assert_eq!(lengths, [340, 200, 202, 0, 0, 18]);
    }
}

#[test]
fn a_message_does_not_exceed_the_limits_of_the_kernel() {
    for ip in loopbacks() {
        let Some(lengths) = message_lengths(ip, &[10; 130], 3) else { return };
        assert_eq!(lengths, [640, 640, 20]);
        let longest = if ip.is_ipv4() { 1_472 } else { 1_452 };
        let most = 65_507 / longest;
        let lengths = message_lengths(ip, &vec![longest; most + 1], 2).unwrap();
        assert_eq!(lengths, [most * longest, longest]);
        let lengths = message_lengths(ip, &[longest + 1; 2], 2).unwrap();
        assert_eq!(lengths, [longest + 1; 2]);
    }
}

#[test]
fn a_run_of_datagrams_is_sent_like_the_single_datagrams() {
    for ip in loopbacks() {
        let ((peer, to), (sender, _)) = (socket(ip), socket(ip));
        let mut batch = SendBatch::new();
        if !enable_gro(&peer) || !batch.segmentation.is_on() {
            return;
        }
        let arena: Vec<u8> = (0..=u8::MAX).cycle().take(130 * 14).collect();
        let target = Target::new(to, None, IpFields::default());
        assert_eq!(batch.push(&target, &[Piece::of_arena(0..10)]), 0);
        let header = batch.keep(b"head");
        assert_eq!(batch.push_run(&target, &[Piece::of_arena(4..14)], 130, 14), 1);
        assert_eq!(batch.push_run(&target, &[header, Piece::of_arena(2..8)], 2, 5), 131);
        assert_eq!(batch.push(&target, &[Piece::of_arena(0..1)]), 133);
        assert_eq!(batch.flush(&sender, &arena), [SendStatus::Sent; 134]);

        let received = receive(&peer, 3);
        let run = (0..130).flat_map(|index| &arena[index * 14 + 4..index * 14 + 14]).copied();
        let headed = (0..2).flat_map(|index| [b"head", &arena[index * 5 + 2..index * 5 + 8]].concat());
        let expected = arena[..10].iter().copied().chain(run).chain(headed).chain(arena[..1].iter().copied());
        assert_eq!(received.concat(), expected.collect::<Vec<_>>());
        assert_eq!(received.iter().map(Vec::len).collect::<Vec<_>>(), [640, 640, 51]);
    }
}

#[test]
fn a_run_to_an_impossible_target_fails_as_a_whole() {
    let ((_, to), (sender, _)) = (socket(ip("127.0.0.1")), socket(ip("127.0.0.1")));
    let mut batch = SendBatch::new();
    batch.push_run(&Target::new(to, Some(ip("::1")), IpFields::default()), &[Piece::of_arena(0..1)], 3, 1);
    assert_eq!(batch.flush(&sender, b"abc"), [SendStatus::Failed(libc::EINVAL); 3]);
}

// RFC 8656 §12.4: the header of each ChannelData message is removed in one direction and added in the other.
#[test]
fn channel_data_headers_are_removed_and_added() {
    for ip in loopbacks() {
        let ((peer, to_peer), (client, to_client), (relay, _)) = (socket(ip), socket(ip), socket(ip));
        let merged: Vec<u8> = (0..30_u8).flat_map(|i| [&[0x40, 1, 0, 100][..], &[i; 100]].concat()).collect();
        let mut batch = SendBatch::new();
        for start in (0..merged.len()).step_by(104) {
            batch.push(&Target::new(to_peer, None, IpFields::default()), &[Piece::of_arena(start + 4..start + 104)]);
        }
        assert_eq!(batch.flush(&relay, &merged), [SendStatus::Sent; 30]);
        let payloads = receive(&peer, 30);
        assert_eq!(payloads, (0..30).map(|i| vec![i; 100]).collect::<Vec<_>>());

        let (arena, header) = (payloads.concat(), [0x40, 1, 0, 100]);
        for start in (0..arena.len()).step_by(100) {
            let pieces = [batch.keep(&header), Piece::of_arena(start..start + 100)];
            assert_eq!(pieces.map(|piece| piece.len()), [4, 100]);
            batch.push(&Target::new(to_client, None, IpFields::default()), &pieces);
        }
        assert_eq!(batch.flush(&relay, &arena), [SendStatus::Sent; 30]);
        assert_eq!(receive(&client, 30).concat(), merged);
    }
}

#[test]
fn each_target_has_its_own_source_address_dscp_and_ecn() {
    let (listener, _) = socket(ip("0.0.0.0"));
    let port = listener.local_addr().unwrap().port();
    let (client, to) = socket(ip("127.0.0.1"));
    let mut batch = SendBatch::new();
    let sent =
        [("127.0.0.1", 0), ("127.0.0.2", 0), ("127.0.0.2", 0b10), ("::ffff:127.0.0.2", 0b10), ("127.0.0.3", 0xb8)];
    for (from, tos) in sent {
        let piece = batch.keep(b"x");
        batch.push(&Target::new(to, Some(ip(from)), marked(tos)), &[piece]);
    }
    assert_eq!(batch.flush(&listener, &[]), [SendStatus::Sent; 5]);
    let mut received = RecvBatch::new(5, SlotLayout { headroom: 0, payload: 9, tailroom: 0 });
    for (slot, (from, tos)) in sent.into_iter().enumerate() {
        wait_for(&client, PollFlags::POLLIN);
        received.receive(&client, slot, 1).unwrap();
        let datagram = received.datagram(slot).unwrap();
        let source = SocketAddr::new(ip(from).to_canonical(), port);
        assert_eq!((datagram.source, datagram.fields.tos), (source, tos));
    }
}

#[test]
fn a_dual_stack_socket_sends_to_both_families_in_one_flush() {
    if has_ipv6() {
        let (listener, _) = socket(ip("::"));
        let mut batch = SendBatch::new();
        let clients: Vec<_> = loopbacks().into_iter().map(socket).collect();
        for (_, to) in clients.iter().chain(&clients) {
            let piece = batch.keep(to.to_string().as_bytes());
            batch.push(&Target::new(*to, Some(to.ip()), marked(0b11)), &[piece, piece]);
            batch.push(&Target::new(*to, Some(to.ip()), marked(0b11)), &[piece, piece]);
        }
        assert_eq!(batch.flush(&listener, &[]), [SendStatus::Sent; 8]);
        for (client, to) in &clients {
            assert_eq!(receive(client, 4), vec![to.to_string().repeat(2).into_bytes(); 4]);
        }
    }
}

#[test]
fn a_datagram_that_cannot_be_sent_does_not_affect_others() {
    let ((peer, to), (sender, _)) = (socket(ip("127.0.0.1")), socket(ip("127.0.0.1")));
    let mut batch = SendBatch::new();
    let good = Target::new(to, None, IpFields::default());
    let targets = [
        good,
        Target::new(to, Some(ip("::1")), IpFields::default()),
        good,
        Target::new(to, Some(ip("203.0.113.77")), IpFields::default()),
        Target::new(addr("127.0.0.1:0"), None, IpFields::default()),
        good,
    ];
    for (number, target) in (0..).zip(&targets) {
        let piece = batch.keep(&[number; 3]);
        batch.push(target, &[piece]);
    }
    let too_long = vec![0; 65_508];
    batch.push(&good, &[Piece::of_arena(0..65_508)]);
    let last = batch.keep(b"end");
    batch.push(&good, &[last]);

    let statuses = batch.flush(&sender, &too_long);
    let sent: Vec<bool> = statuses.iter().map(|status| *status == SendStatus::Sent).collect();
    assert_eq!(sent, [true, false, true, false, false, true, false, true]);
    assert_eq!((statuses[1], statuses[4]), (SendStatus::Failed(libc::EINVAL), SendStatus::Failed(libc::EINVAL)));
    assert_eq!(statuses[6], SendStatus::Failed(libc::EMSGSIZE));
    assert_eq!(receive(&peer, 4), [&[0; 3][..], &[2; 3], &[5; 3], b"end"]);
}

#[test]
fn pieces_outside_the_arena_are_not_sent() {
    let ((peer, to), (sender, _)) = (socket(ip("127.0.0.1")), socket(ip("127.0.0.1")));
    let mut batch = SendBatch::new();
    batch.push(&Target::new(to, None, IpFields::default()), &[Piece::of_arena(0..5), Piece::of_arena(0..1)]);
    assert_eq!(batch.flush(&sender, &[0; 4]), [SendStatus::Failed(libc::EFAULT)]);
    batch.push(&Target::new(to, None, IpFields::default()), &[Piece::of_arena(1..4)]);
    assert_eq!(batch.flush(&sender, &[7; 4]), [SendStatus::Sent]);
    assert_eq!(receive(&peer, 1), [[7; 3]]);
}

// RFC 8656 §11.5: a closed port of one peer must not affect the datagrams to another.
#[test]
fn errors_of_earlier_datagrams_do_not_affect_other_peers() {
    for ip in loopbacks() {
        let relay = bind_relay(SocketAddr::new(ip, 0)).unwrap();
        enable_error_queue(&relay).unwrap();
        let ((peer, to), closed_port) = (socket(ip), closed_port(ip));
        let nowhere = closed_port.local_addr().unwrap();
        let mut batch = SendBatch::new();
        for round in 0..3 {
            let sent = [nowhere, to, nowhere, nowhere, to, to, nowhere];
            for (number, target) in (0..).zip(&sent) {
                let piece = batch.keep(&[round, number]);
                batch.push(&Target::new(*target, None, IpFields::default()), &[piece]);
            }
            assert_eq!(batch.flush(&relay, &[]), [SendStatus::Sent; 7]);
            assert_eq!(receive(&peer, 3), [[round, 1], [round, 4], [round, 5]]);
        }
        for _ in 0..3 * 3 {
            wait_for(&relay, PollFlags::POLLERR);
            assert_eq!(receive_error(&relay).unwrap().unwrap().peer, nowhere);
        }
    }
}

/// Sends through a socket on which segmentation fails, and checks that every datagram arrives.
fn without_segmentation(sender: &UdpSocket, peer: &UdpSocket, length: usize) -> SendBatch {
    let to = peer.local_addr().unwrap();
    let mut batch = SendBatch::new();
    let lengths = [length, length, length, 9, length, length, 1, 5, 6];
    for _ in 0..2 {
        let (arena, expected) = push_all(&mut batch, to, &lengths);
        assert_eq!(batch.flush(sender, &arena), [SendStatus::Sent; 9]);
        assert_eq!(receive(peer, 9), expected);
    }
    batch
}

#[test]
fn datagrams_are_sent_one_by_one_if_the_socket_cannot_segment() {
    let (sender, peer) = (socket(ip("127.0.0.1")).0, socket(ip("127.0.0.1")).0);
    // Segmentation without checksums fails with EINVAL.
    sys::set_option(sender.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
    assert_eq!(without_segmentation(&sender, &peer, 1_000).segmentation.is_on(), segmentation_supported());
}

#[test]
fn datagrams_longer_than_the_mtu_are_sent_one_by_one() {
    in_own_network(&["link set lo up mtu 1280"], || {
        let (sender, peer) = (socket(ip("127.0.0.1")).0, socket(ip("127.0.0.1")).0);
        assert_eq!(without_segmentation(&sender, &peer, 1_400).segmentation.is_on(), segmentation_supported());
    });
}

#[test]
fn segmentation_pauses_if_the_interface_refuses_it_and_is_tried_again() {
    let no_checksum = socket(ip("127.0.0.1")).0;
    // Segmentation without checksums fails with EINVAL.
    sys::set_option(no_checksum.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
    let (peer, to) = socket(ip("127.0.0.1"));
    let mut batch = SendBatch::new();
    if !batch.segmentation.supported {
        return;
    }
    let send = |batch: &mut SendBatch| {
        let (arena, expected) = push_all(batch, to, &[1_000, 1_000]);
        let merged = batch.messages.len() == 1;
        assert_eq!(batch.flush(&no_checksum, &arena), [SendStatus::Sent; 2]);
        assert_eq!(receive(&peer, 2), expected);
        merged
    };
    for _ in 0..2 {
        assert_eq!((0..REFUSALS).filter(|_| send(&mut batch)).count(), REFUSALS as usize);
        assert_eq!((1..FLUSHES_WITHOUT).filter(|_| send(&mut batch)).count(), 0);
    }
}

// A source address that has gone fails with EINVAL, as a refused segmentation does.
#[test]
fn a_source_address_that_has_gone_does_not_disable_segmentation() {
    if has_ipv6() {
        // A listener may send from any address, because of IPV6_FREEBIND.
        let (sender, (_, to)) = (UdpSocket::bind("[::1]:0").unwrap(), socket(ip("::1")));
        let mut batch = SendBatch::new();
        let gone = Target::new(to, Some(ip("2001:db8::77")), IpFields::default());
        for _ in 0..REFUSALS {
            batch.push_run(&gone, &[Piece::of_arena(0..1)], 2, 1);
            assert_eq!(batch.flush(&sender, b"ab"), [SendStatus::Failed(libc::EINVAL); 2]);
        }
        assert_eq!((batch.segmentation.refusals, batch.segmentation.is_on()), (0, segmentation_supported()));
    }
}

#[test]
fn segmentation_pauses_on_an_interface_without_checksum_offload() {
    const UDP_LITE: i32 = 136;
    let lite = || {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::from(UDP_LITE)))?;
        socket.bind(&addr("127.0.0.1:0").into())?;
        io::Result::Ok(UdpSocket::from(socket))
    };
    // Segmentation with UDP-Lite fails with EIO.
    let (Ok(sender), Ok(peer)) = (lite(), lite()) else { return };
    let to = peer.local_addr().unwrap();
    let mut batch = SendBatch::new();
    for _ in 0..REFUSALS {
        let (arena, expected) = push_all(&mut batch, to, &[1_000, 1_000, 9]);
        assert_eq!(batch.flush(&sender, &arena), [SendStatus::Sent; 3]);
        assert_eq!(receive(&peer, 3), expected);
    }
    assert!(!batch.segmentation.is_on());
}

// An ICMP message can leave ENOPROTOOPT (3/2), EOPNOTSUPP (3/5) or EMSGSIZE (3/4) on a socket. RFC 8201 §4: Packet Too
// Big never lowers the path MTU below 1280 bytes.
#[test]
fn only_errors_that_no_icmp_message_causes_count_as_refusals() {
    let message = |to, length| Message::single(Target::new(addr(to), None, IpFields::default()), length, 0, 0..1);
    let messages =
        [message("192.0.2.1:9", 1_472), message("[2001:db8::1]:9", 1_232), message("[2001:db8::1]:9", 1_233)];
    let are_refusals = |code| messages.each_ref().map(|message| is_refusal(code, message));
    assert_eq!(are_refusals(libc::EIO), [true, true, true]);
    assert_eq!(are_refusals(libc::EINVAL), [true, true, false]);
    for code in [libc::EIO, libc::EINVAL] {
        assert!(is_segmentation_error(code) && !may_be_pending(&io::Error::from_raw_os_error(code)));
    }
    assert_eq!(are_refusals(libc::EMSGSIZE), [false; 3]);
    assert!(is_segmentation_error(libc::EMSGSIZE));
    for code in [libc::EPERM, libc::EOPNOTSUPP, libc::ENOPROTOOPT] {
        assert!(!is_segmentation_error(code));
    }
}

#[test]
fn a_full_buffer_leaves_the_rest_unsent_and_the_batch_usable() {
    // No host answers the neighbour lookup for 10.9.9.2, so packets to it wait and fill the buffer.
    let setup = [
        "link set lo up",
        "link add name near type veth peer name far",
        "address add 10.9.9.1/24 dev near",
        "link set near up",
        "link set far up",
    ];
    in_own_network(&setup, || {
        let sender = bind_relay(addr("0.0.0.0:0")).unwrap();
        SockRef::from(&sender).set_send_buffer_size(0).unwrap();
        let mut batch = SendBatch::new();
        let (arena, _) =
            push_all(&mut batch, addr("10.9.9.2:9"), &[1_000, 1_001, 1_002, 1_003, 1_004, 1_005, 1_006, 1_007]);
        let statuses = batch.flush(&sender, &arena).to_vec();
        let sent = statuses.iter().take_while(|status| **status == SendStatus::Sent).count();
        assert!((1..8).contains(&sent), "{statuses:?}");
        assert_eq!(statuses[sent..], vec![SendStatus::BufferFull; 8 - sent]);

        let (peer, to) = socket(ip("127.0.0.1"));
        let (free, _) = socket(ip("127.0.0.1"));
        let (arena, expected) = push_all(&mut batch, to, &[3, 4]);
        assert_eq!(batch.flush(&free, &arena), [SendStatus::Sent; 2]);
        assert_eq!(receive(&peer, 2), expected);
    });
}

/// Returns an ICMP message of type 3 about a datagram from `from` to `to`, as a router would send it.
fn icmp_unreachable(code: u8, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else { panic!("IPv4 only") };
    let mut message = vec![3, code, 0, 0, 0, 0, 0, 0];
    // The IPv4 header and the UDP header of the datagram.
    message.extend([0x45, 0, 0, 36, 0, 0, 0, 0, 64, 17, 0, 0]);
    message.extend([from.ip().octets(), to.ip().octets()].concat());
    message.extend([from.port().to_be_bytes(), to.port().to_be_bytes(), [0, 16], [0, 0]].concat());
    message.extend([0; 8]);
    let words = message.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum = words.sum::<u32>();
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    message
}

// ICMP can be forged. Types 3/2 and 3/5 leave ENOPROTOOPT and EOPNOTSUPP on the socket.
#[test]
fn icmp_errors_do_not_disable_segmentation_and_cost_few_datagrams() {
    in_own_network(&["link set lo up"], || {
        let relay = bind_relay(addr("127.0.0.1:0")).unwrap();
        enable_error_queue(&relay).unwrap();
        let (peer, to) = socket(ip("127.0.0.1"));
        let forger = Socket::new(Domain::IPV4, Type::from(libc::SOCK_RAW), Some(Protocol::ICMPV4)).unwrap();
        let forged = [2, 5].map(|code| icmp_unreachable(code, relay.local_addr().unwrap(), to));
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            // A full queue of errors still leaves the error on the socket.
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    forged.iter().for_each(|message| drop(forger.send_to(message, &addr("127.0.0.1:0").into())));
                }
            });
            let mut batch = SendBatch::new();
            let (mut lost, mut disabled, mut buffer) = (0, 0, [0; 256]);
            for _ in 0..5_000 {
                let (arena, _) = push_all(&mut batch, to, &[100, 100, 100]);
                lost += batch.flush(&relay, &arena).iter().filter(|status| **status != SendStatus::Sent).count();
                disabled += usize::from(!batch.segmentation.is_on());
                let _ = peer.recv(&mut buffer);
                while receive_error(&relay).unwrap().is_some() {}
            }
            stop.store(true, Ordering::Relaxed);
            assert_eq!(disabled, 0);
            // A datagram is lost if an error arrives before each of its retries, which takes a busy machine.
            assert!(lost < 150, "{lost} of 15000 datagrams are lost");
        });
    });
}
