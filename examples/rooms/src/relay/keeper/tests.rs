use std::net::Ipv4Addr;

use rand::SeedableRng as _;
use turnserver::auth::Secret;
use turnserver::client::{Rejection, random_id, write_message};
use turnserver::stun::attribute::{
    ChannelNumber, Data, ErrorCodeAttribute, Lifetime, XorMappedAddress, XorPeerAddress, XorRelayedAddress,
};
use turnserver::stun::{Class, Message, MessageWriter, Method};

use super::*;

/// A server without authentication.
struct Server {
    keeper: Keeper,
    /// The requests that came, with their time in seconds.
    requests: Vec<(u64, Method)>,
    channels: HashMap<u16, SocketAddr>,
    /// The data that came for peers, each with its way.
    data: Vec<(Way, SocketAddr, Vec<u8>)>,
    /// Requests with this method are rejected.
    rejects: Option<Method>,
    /// The error code of rejections.
    code: ErrorCode,
    /// Requests with this method are lost.
    loses: Option<Method>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Indication,
    Channel,
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

impl Server {
    fn new() -> Self {
        let credentials = Credentials { username: "user".to_owned(), password: Secret::new("password").unwrap() };
        let keeper = Keeper::new(false, credentials, StdRng::from_seed([7; 32]));
        let (requests, channels, data) = (Vec::new(), HashMap::new(), Vec::new());
        Self { keeper, requests, channels, data, rejects: None, code: ErrorCode::FORBIDDEN, loses: None }
    }

    /// A server that has made an allocation.
    fn allocated() -> Self {
        let mut server = Self::new();
        server.keeper.allocate(Duration::ZERO).unwrap();
        server.run(Duration::ZERO);
        server
    }

    /// Exchanges what waits. Returns what the keeper reports.
    fn exchange(&mut self, now: Duration) -> Vec<Output> {
        let mut outputs = Vec::new();
        while let Some(sent) = self.keeper.transmit() {
            if sent[0] > 3 {
                let peer = self.channels[&u16::from_be_bytes([sent[0], sent[1]])];
                self.data.push((Way::Channel, peer, sent[4..].to_vec()));
                continue;
            }
            let request = Message::parse(&sent).unwrap();
            let peer = request.get().unwrap().map(|XorPeerAddress(peer)| peer);
            if request.class() == Class::Indication {
                let Data(data) = request.get().unwrap().unwrap();
                self.data.push((Way::Indication, peer.unwrap(), data.to_vec()));
                continue;
            }
            self.requests.push((now.as_secs(), request.method()));
            if self.loses == Some(request.method()) {
                continue;
            }
            let response = self.respond(&request);
            if let (Some(ChannelNumber(number)), None) = (request.get().unwrap(), self.rejects) {
                let peer = peer.unwrap();
                assert!(self.channels.iter().all(|(other, of)| (*other == number) == (*of == peer)), "{number} {peer}");
                self.channels.insert(number, peer);
            }
            outputs.extend(self.keeper.receive(&response, now));
        }
        outputs
    }

    /// Sends data and exchanges what follows.
    fn send(&mut self, peer: SocketAddr, data: &[u8], now: Duration) {
        self.keeper.send(peer, data, now).unwrap();
        self.exchange(now);
    }

    /// Sends numbered datagrams, all at once, so that the peer gets a channel.
    fn send_much(&mut self, peer: SocketAddr, now: Duration) {
        for number in 0..2 * MUCH {
            self.send(peer, &[number], now);
        }
    }

    /// Returns the numbers and ways of the data that came last.
    fn take_numbers(&mut self) -> Vec<(Way, u8)> {
        self.data.drain(..).map(|(way, _, data)| (way, data[0])).collect()
    }

    fn respond(&self, request: &Message<'_>) -> Vec<u8> {
        let is_rejected = self.rejects == Some(request.method());
        let class = if is_rejected { Class::Error } else { Class::Success };
        let fill = |writer: &mut MessageWriter<'_>| match request.method() {
            _ if is_rejected => writer.push(&ErrorCodeAttribute { code: self.code, reason: "" }),
            Method::ALLOCATE => {
                writer.push(&XorRelayedAddress(address("192.0.2.1:50000")));
                writer.push(&XorRelayedAddress(address("[2001:db8::1]:50000")));
                writer.push(&XorMappedAddress(address("192.0.2.9:1000")));
                writer.push(&Lifetime(600));
            }
            Method::REFRESH => writer.push(&Lifetime(600)),
            _ => {}
        };
        write_message(class, request.method(), request.transaction_id(), 512, fill).unwrap()
    }

    /// Lets time pass until `end`.
    fn run(&mut self, end: Duration) -> Vec<Output> {
        // What is sent before the first deadline is sent at the beginning.
        let mut outputs = self.exchange(Duration::ZERO);
        while self.keeper.deadline() <= end {
            let now = self.keeper.deadline();
            outputs.extend(self.keeper.expire(now).unwrap());
            outputs.extend(self.exchange(now));
        }
        outputs
    }

    fn times(&self, method: Method) -> Vec<u64> {
        self.requests.iter().filter(|(_, of)| *of == method).map(|(at, _)| *at).collect()
    }
}

const MINUTE: Duration = Duration::from_secs(60);

/// After one more datagram than this in a second, a peer gets a channel.
const MUCH: u8 = 32;

/// The ways of [`Server::send_much`] to a peer without a channel that gets one.
fn ways_of_much() -> Vec<(Way, u8)> {
    (0..2 * MUCH).map(|number| (if number <= MUCH { Way::Indication } else { Way::Channel }, number)).collect()
}

#[test]
fn an_allocation_is_refreshed_a_minute_before_its_end() {
    let mut server = Server::new();
    server.keeper.allocate(Duration::ZERO).unwrap();
    let outputs = server.run(30 * MINUTE);
    let relayed = vec![address("192.0.2.1:50000"), address("[2001:db8::1]:50000")];
    assert_eq!(outputs, [Output::Allocated(relayed)]);
    assert_eq!(server.times(Method::REFRESH), [540, 1_080, 1_620]);
}

#[test]
fn the_first_data_waits_for_its_permission_which_is_renewed_while_it_is_used() {
    let (mut server, peer) = (Server::allocated(), address("198.51.100.1:4000"));
    server.keeper.send(peer, b"1", Duration::ZERO).unwrap();
    server.keeper.send(peer, b"2", Duration::ZERO).unwrap();
    assert_eq!(server.data, []);
    server.exchange(Duration::ZERO);
    assert_eq!(server.take_numbers(), [(Way::Indication, b'1'), (Way::Indication, b'2')]);
    for second in (0..=500).step_by(10) {
        server.send(peer, b"used", Duration::from_secs(second));
    }
    server.run(30 * MINUTE);
    assert_eq!(server.times(Method::CREATE_PERMISSION), [0, 240, 480], "nothing is sent from then on");
    server.data.clear();
    server.keeper.send(peer, b"3", 31 * MINUTE).unwrap();
    assert_eq!(server.keeper.outgoing.len(), 0, "the permission has ended");
    server.exchange(31 * MINUTE);
    assert_eq!(server.take_numbers(), [(Way::Indication, b'3')]);
    assert_eq!(server.times(Method::CREATE_PERMISSION), [0, 240, 480, 31 * 60]);
    assert_eq!(server.times(Method::CHANNEL_BIND), [0; 0]);
}

#[test]
fn a_permission_that_is_not_renewed_is_requested_again_while_it_lasts() {
    let (mut server, peer) = (Server::allocated(), address("198.51.100.1:4000"));
    server.send(peer, b"data", Duration::ZERO);
    server.rejects = Some(Method::CREATE_PERMISSION);
    for second in 1..=360 {
        server.send(peer, b"data", Duration::from_secs(second));
    }
    assert_eq!(server.data.len(), 300, "the rest is dropped");
    assert_eq!(server.times(Method::CREATE_PERMISSION), [0, 240, 250, 260, 270, 280, 290, 300, 360]);
    server.rejects = None;
    server.send(peer, b"again", 7 * MINUTE);
    assert_eq!(server.data.len(), 301);
}

#[test]
fn a_peer_with_much_traffic_gets_a_channel_and_everything_in_order() {
    let (mut server, peer) = (Server::allocated(), address("198.51.100.1:4000"));
    for tenth in 0..600 {
        server.send(peer, b"some", Duration::from_millis(100 * tenth));
    }
    assert_eq!(server.times(Method::CHANNEL_BIND), [0; 0]);
    server.data.clear();
    server.send_much(peer, 2 * MINUTE);
    assert_eq!(server.take_numbers(), ways_of_much());
    assert_eq!(server.times(Method::CHANNEL_BIND), [120]);
}

#[test]
fn data_that_comes_counts_as_traffic_too() {
    let (mut server, peer) = (Server::allocated(), address("198.51.100.1:4000"));
    server.send(peer, b"1", Duration::ZERO);
    for _ in 0..MUCH {
        let fill = |writer: &mut MessageWriter<'_>| {
            writer.push(&XorPeerAddress(peer));
            writer.push(&Data(b"picture"));
        };
        let message = write_message(Class::Indication, Method::DATA, random_id(&mut server.keeper.rng), 128, fill);
        let output = server.keeper.receive(&message.unwrap(), Duration::ZERO);
        assert!(matches!(output, Some(Output::Data { peer: from, .. }) if from == peer));
    }
    server.send(peer, b"2", Duration::ZERO);
    server.send(peer, b"3", Duration::ZERO);
    let expected = [(Way::Indication, b'1'), (Way::Indication, b'2'), (Way::Channel, b'3')];
    assert_eq!(server.take_numbers(), expected);
}

#[test]
fn many_peers_at_one_address_need_one_permission_and_channels_for_those_with_much_traffic() {
    let mut server = Server::allocated();
    let peers: Vec<_> = (1..=300).map(|port| SocketAddr::from(([198, 51, 100, 1], port))).collect();
    for peer in &peers {
        server.keeper.send(*peer, b"check", Duration::ZERO).unwrap();
    }
    server.exchange(Duration::ZERO);
    let reached: Vec<_> = server.data.iter().map(|(_, peer, _)| *peer).collect();
    assert_eq!(reached, peers);
    for peer in &peers[..3] {
        server.send_much(*peer, MINUTE);
    }
    assert_eq!(server.times(Method::CREATE_PERMISSION), [0]);
    assert_eq!(server.times(Method::CHANNEL_BIND), [60; 3]);
}

#[test]
fn a_channel_is_renewed_while_it_is_used() {
    let (mut server, peer) = (Server::allocated(), address("198.51.100.1:4000"));
    server.send_much(peer, Duration::ZERO);
    server.data.clear();
    for second in (10..=1_100).step_by(10) {
        server.send(peer, b"used", Duration::from_secs(second));
    }
    assert!(server.data.iter().all(|(way, ..)| *way == Way::Channel));
    assert_eq!(server.times(Method::CHANNEL_BIND), [0, 540, 1_080]);
    let later = Duration::from_secs(1_080) + BINDING;
    server.data.clear();
    server.send(peer, b"1", later);
    assert_eq!(server.take_numbers(), [(Way::Indication, b'1')]);
    assert_eq!(server.times(Method::CHANNEL_BIND), [0, 540, 1_080, 1_680], "the number is still that of the peer");
    server.send(peer, b"2", later + RETIRED);
    assert_eq!(server.take_numbers(), [(Way::Indication, b'2')]);
    assert_eq!(server.times(Method::CHANNEL_BIND), [0, 540, 1_080, 1_680]);
    server.send_much(peer, later + RETIRED + MINUTE);
    assert_eq!(server.take_numbers(), ways_of_much());
}

#[test]
fn without_a_channel_data_goes_on_in_indications() {
    let (mut server, peer) = (Server::allocated(), address("198.51.100.1:4000"));
    server.rejects = Some(Method::CHANNEL_BIND);
    for second in [0, 59, 60] {
        server.send_much(peer, Duration::from_secs(second));
        let expected: Vec<_> = (0..2 * MUCH).map(|number| (Way::Indication, number)).collect();
        assert_eq!(server.take_numbers(), expected);
    }
    server.send(peer, b"little", 3 * MINUTE);
    assert_eq!(server.times(Method::CHANNEL_BIND), [0, 60]);
}

#[test]
fn data_to_a_peer_that_is_denied_is_dropped_and_it_is_tried_again_after_a_minute() {
    let (mut server, peer) = (Server::allocated(), address("10.0.0.1:4000"));
    server.rejects = Some(Method::CREATE_PERMISSION);
    for second in 0..=61 {
        server.send(peer, b"data", Duration::from_secs(second));
        server.keeper.expire(Duration::from_secs(second)).unwrap();
    }
    assert_eq!((server.times(Method::CREATE_PERMISSION), server.data.len()), (vec![0, 60], 0));
}

#[test]
fn data_that_waits_for_a_permission_is_bounded() {
    let mut server = Server::allocated();
    for port in 1..=1_000 {
        server.keeper.send(SocketAddr::from(([198, 51, 100, 1], port)), b"data", Duration::ZERO).unwrap();
    }
    server.exchange(Duration::ZERO);
    assert_eq!(server.data.len(), QUEUE);
}

#[test]
fn a_lost_refresh_is_repeated_while_the_allocation_lasts() {
    let mut server = Server::new();
    server.keeper.allocate(Duration::ZERO).unwrap();
    server.run(Duration::from_secs(539));
    server.loses = Some(Method::REFRESH);
    let outputs = server.run(Duration::from_secs(555));
    assert_eq!(outputs, [], "each request is repeated for 5 s");
    server.loses = None;
    assert_eq!(server.run(20 * MINUTE), []);
    let times = server.times(Method::REFRESH);
    assert!(times.contains(&540) && times.contains(&555) && times.contains(&(555 + 540)), "{times:?}");
    server.loses = Some(Method::REFRESH);
    assert!(matches!(server.run(40 * MINUTE)[..], [Output::Ended(Failure::NoResponse { .. })]));
    let end = *server.times(Method::REFRESH).last().unwrap();
    assert!((1_695..=1_700).contains(&end), "the last request comes before the end: {end}");
}

// RFC 8656 §5: without an allocation, the response is 437.
#[test]
fn an_allocation_that_the_server_does_not_have_has_ended() {
    for method in [Method::CREATE_PERMISSION, Method::CHANNEL_BIND, Method::REFRESH] {
        let mut server = Server::allocated();
        (server.rejects, server.code) = (Some(method), ErrorCode::ALLOCATION_MISMATCH);
        for number in 0..2 * MUCH {
            server.keeper.send(address("198.51.100.1:4000"), &[number], Duration::ZERO).unwrap();
        }
        // The datagrams wait for the permission, which precedes the channel.
        let outputs = server.run(9 * MINUTE);
        let expected = |rejection: &Rejection| rejection.code == ErrorCode::ALLOCATION_MISMATCH;
        assert!(matches!(&outputs[..], [Output::Ended(Failure::Rejected(rejection))] if expected(rejection)));
    }
}

#[test]
fn a_refresh_finds_out_whether_the_allocation_lasts_if_data_is_sent_and_nothing_comes() {
    let (mut server, peer) = (Server::allocated(), address("198.51.100.1:4000"));
    for second in 0..=30 {
        server.send(peer, b"check", Duration::from_secs(second));
        server.run(Duration::from_secs(second));
    }
    assert_eq!(server.times(Method::REFRESH), [10, 20, 30], "each response ends the silence");
    server.loses = Some(Method::REFRESH);
    for second in 31..=40 {
        server.send(peer, b"check", Duration::from_secs(second));
        server.run(Duration::from_secs(second));
    }
    assert_eq!(server.times(Method::REFRESH), [10, 20, 30, 40]);
    (server.loses, server.rejects, server.code) = (None, Some(Method::REFRESH), ErrorCode::ALLOCATION_MISMATCH);
    server.send(peer, b"check", Duration::from_secs(50));
    assert!(matches!(server.run(Duration::from_secs(50))[..], [Output::Ended(_)]));
}

#[test]
fn addresses_that_the_server_denies_are_not_remembered_without_bound() {
    let mut server = Server::allocated();
    server.rejects = Some(Method::CREATE_PERMISSION);
    for number in 0..5_000_u32 {
        server.send(SocketAddr::from((Ipv4Addr::from(0x0A00_0000 + number), 4_000)), b"data", Duration::ZERO);
    }
    assert_eq!(server.times(Method::CREATE_PERMISSION).len(), 5_000);
    assert!(server.keeper.permissions.len() <= PERMISSIONS);
    server.rejects = None;
    server.send(address("192.0.2.7:4000"), b"data", Duration::ZERO);
    assert_eq!(server.data.len(), 1);
}

#[test]
fn peers_without_a_number_are_reached_and_numbers_become_free() {
    let mut server = Server::allocated();
    let peer = |port| SocketAddr::from(([198, 51, 100, 1], port));
    for port in 1..=5_000 {
        server.send(peer(port), b"data", Duration::ZERO);
    }
    assert_eq!((server.data.len(), server.keeper.peers.len()), (5_000, CHANNELS.len()));
    server.data.clear();
    server.send_much(peer(5_000), MINUTE);
    assert!(server.data.iter().all(|(way, ..)| *way == Way::Indication));
    server.data.clear();
    server.send_much(peer(5_000), 3 * MINUTE);
    assert_eq!((server.take_numbers(), server.keeper.peers.len()), (ways_of_much(), 1));
}

#[test]
fn a_number_that_the_server_may_have_bound_is_used_for_no_other_peer() {
    let (mut server, peer) = (Server::allocated(), address("198.51.100.1:4000"));
    server.loses = Some(Method::CHANNEL_BIND);
    server.send_much(peer, Duration::ZERO);
    let number = server.keeper.peers[&peer].number;
    server.run(MINUTE);
    server.loses = None;
    // Only a peer that comes later makes room.
    server.send_much(address("198.51.100.2:4000"), 14 * MINUTE);
    assert_eq!(server.keeper.peers[&peer].number, number);
    server.send(peer, b"once", 14 * MINUTE);
    assert_eq!(server.channels[&number], peer);
    server.send(address("198.51.100.3:4000"), b"data", 60 * MINUTE);
    assert_eq!(server.keeper.peers.len(), 1);
}

#[test]
fn an_allocation_that_is_requested_when_it_is_given_back_is_given_back_when_it_comes() {
    let mut server = Server::new();
    server.keeper.allocate(Duration::ZERO).unwrap();
    assert_eq!(server.keeper.release(Duration::ZERO), None);
    assert_eq!(server.exchange(Duration::ZERO), [Output::Released]);
    assert_eq!((server.times(Method::ALLOCATE), server.times(Method::REFRESH)), (vec![0], vec![0]));
    let mut idle = Server::new();
    assert_eq!(idle.keeper.release(Duration::ZERO), Some(Output::Released));
}

#[test]
fn a_server_that_rejects_the_allocation_or_is_silent_ends_it() {
    let mut rejecting = Server::new();
    rejecting.rejects = Some(Method::ALLOCATE);
    rejecting.keeper.allocate(Duration::ZERO).unwrap();
    assert!(matches!(rejecting.run(Duration::ZERO)[..], [Output::Ended(Failure::Rejected(_))]));
    let mut silent = Server::new();
    silent.keeper.allocate(Duration::ZERO).unwrap();
    let mut outputs = Vec::new();
    while outputs.is_empty() {
        outputs = silent.keeper.expire(silent.keeper.deadline()).unwrap();
        while silent.keeper.transmit().is_some() {}
    }
    assert!(matches!(outputs[..], [Output::Ended(Failure::NoResponse { .. })]));
}
