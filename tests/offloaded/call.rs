//! A client with an allocation, and its peer.

use std::cell::Cell;
use std::net::{SocketAddr, UdpSocket};

use serde_json::Value;
use turnserver::client::{Allocate, Families, Request};
use turnserver::stun::Method;
use turnserver::stun::attribute::{AddressFamily, XorRelayedAddress};

use crate::interfaces::{Traffic, wait_until};
use crate::support::LogLine;
use crate::support::client::{Client, Login, Session, receive};
use crate::world::{CLIENTS, LISTENERS, PEERS, World, assert_silent, is_v4, socket_of, waiting};

/// The channel of calls.
pub(crate) const CHANNEL: u16 = 0x4005;

/// A channel between a UDP client and a UDP peer. It counts what the server has to relay.
pub(crate) struct Call<'w> {
    world: &'w World<'w>,
    pub(crate) client: Client,
    pub(crate) login: Login,
    pub(crate) session: Session,
    pub(crate) relay: SocketAddr,
    pub(crate) peer: UdpSocket,
    pub(crate) channel: u16,
    /// The session, as `turnserver ctl` names it.
    pub(crate) id: String,
    sent: Cell<Traffic>,
}

impl<'w> Call<'w> {
    /// Starts a call over IPv4, which the kernel relays.
    pub(crate) fn start(world: &'w World<'w>) -> Self {
        Self::start_over(world, [0, 0])
    }

    /// Starts a call of a client and a peer with these IP versions: 0 is IPv4, and 1 is IPv6.
    pub(crate) fn start_over(world: &'w World<'w>, [of_client, of_peer]: [usize; 2]) -> Self {
        let client = socket_of(&world.network.client, CLIENTS[of_client]);
        Self::start_with(world, client, socket_of(&world.network.peer, PEERS[of_peer]))
    }

    /// Starts a call with these sockets of client and peer, which the kernel relays.
    pub(crate) fn start_with(world: &'w World<'w>, client: UdpSocket, peer: UdpSocket) -> Self {
        let call = Self::start_in_user_space(world, client, peer);
        call.wait_for_kernel();
        call
    }

    /// The same, without waiting for the kernel.
    pub(crate) fn start_in_user_space(world: &'w World<'w>, client: UdpSocket, peer: UdpSocket) -> Self {
        let listener = LISTENERS[usize::from(!client.local_addr().unwrap().is_ipv4())];
        let client = Client::on(client, world.controlled.server.udp_address_on(listener.parse().unwrap()));
        let call = Self::start_for(world, client, &Login::mint("ann", 600), peer, CHANNEL);
        call.exchange(&[b"the first packet resolves the neighbours"]);
        call
    }

    /// Allocates, and binds a channel to a peer.
    pub(crate) fn start_for(
        world: &'w World<'w>,
        client: Client,
        login: &Login,
        peer: UdpSocket,
        channel: u16,
    ) -> Self {
        let session = client.challenge(login);
        let families = Families::One(AddressFamily::of(peer.local_addr().unwrap().ip()));
        let request = Request::Allocate(Allocate { families, ..Allocate::default() });
        let response = client.request(&session, Method::ALLOCATE, &|writer| request.encode(writer));
        assert_eq!(response.error(), None);
        let relay = response.get::<XorRelayedAddress>().unwrap().0;
        bind(&client, &session, channel, peer.local_addr().unwrap());
        let address = client.address().to_string();
        let listed = world.sessions().into_iter().find(|session| session["client"] == address.as_str());
        let id = listed.expect("the session is listed")["id"].as_str().unwrap().to_owned();
        Self { world, client, login: login.clone(), session, relay, peer, channel, id, sent: Cell::default() }
    }

    pub(crate) fn world(&self) -> &'w World<'w> {
        self.world
    }

    /// Sends data both ways, and waits for it.
    pub(crate) fn exchange(&self, data: &[&[u8]]) {
        for data in data {
            self.to_peer(data);
            self.to_client(data);
        }
    }

    /// Sends data of ordinary lengths both ways, and asserts that the kernel relays all of it.
    pub(crate) fn exchange_in_kernel(&self) {
        // The kernel may examine a neighbour meanwhile, for which it gets a packet.
        let in_kernel = (0..3).any(|_| {
            self.wait_for_kernel();
            self.try_exchange_in_kernel()
        });
        assert!(in_kernel, "user space relays {:?}", self.why_not());
        self.check();
    }

    /// Sends data of ordinary lengths both ways. Returns whether the kernel has relayed all of it.
    fn try_exchange_in_kernel(&self) -> bool {
        let before = self.world.in_kernel();
        let data = vec![1; 800];
        let lengths = [100, 101, 200, 302, 403, 500, 601, 800];
        lengths.iter().for_each(|length| self.exchange(&[&data[..*length]]));
        let bytes = lengths.iter().sum::<usize>() as u64;
        self.world.in_kernel().since(before) == Traffic { packets: [8; 2], bytes: [bytes; 2] }
    }

    /// Sends data both ways, and asserts that the kernel relays nothing of it.
    pub(crate) fn exchange_in_user_space(&self) {
        let before = self.world.in_kernel();
        self.exchange(&[&[3; 300], &[4; 1100]]);
        assert_eq!(self.world.in_kernel(), before);
        self.check();
    }

    /// Sends data to the peer, which arrives.
    pub(crate) fn to_peer(&self, data: &[u8]) {
        self.send_to_peer(data);
        let (received, source) = receive(&self.peer);
        assert_eq!((received.len(), source), (data.len(), self.relay));
        assert!(received == data, "other data arrives at the peer");
    }

    /// Sends data to the client, which arrives.
    pub(crate) fn to_client(&self, data: &[u8]) {
        self.send_to_client(data);
        let (received, _) = receive(self.client.socket());
        assert_eq!(received.len(), data.len() + 4);
        assert!(received == channel_data(self.channel, data), "other data arrives at the client");
    }

    /// Sends data to the peer, which the server has to relay.
    pub(crate) fn send_to_peer(&self, data: &[u8]) {
        self.try_to_peer(data);
        self.count(0, data);
    }

    /// Sends data to the client, which the server has to relay.
    pub(crate) fn send_to_client(&self, data: &[u8]) {
        self.peer.send_to(data, self.relay).unwrap();
        self.count(1, data);
    }

    pub(crate) fn count(&self, direction: usize, data: &[u8]) {
        let mut sent = self.sent.get();
        sent.packets[direction] += 1;
        sent.bytes[direction] += data.len() as u64;
        self.sent.set(sent);
    }

    /// Sends data to the peer.
    pub(crate) fn try_to_peer(&self, data: &[u8]) {
        send(self.client.socket(), &channel_data(self.channel, data));
    }

    /// Sends data both ways, and asserts that nothing arrives.
    pub(crate) fn assert_nothing_arrives(&self) {
        for length in 100..150 {
            self.try_to_peer(&vec![9; length]);
            let _ = self.peer.send_to(&vec![9; length], self.relay);
        }
        self.world.network.fence();
        self.assert_silent();
    }

    /// Asserts that nothing has arrived that was not expected.
    pub(crate) fn assert_silent(&self) {
        self.world.network.fence();
        assert_silent(&self.peer);
        assert_silent(self.client.socket());
    }

    /// Receives what has arrived at the peer. Returns the number of datagrams and their bytes.
    pub(crate) fn arrived_at_peer(&self) -> (u64, u64) {
        self.world.network.fence();
        let lengths: Vec<u64> = std::iter::from_fn(|| waiting(&self.peer)).map(|data| data.len() as u64).collect();
        (lengths.len() as u64, lengths.iter().sum())
    }

    /// Asserts that nothing has arrived that was not expected, and that the server has counted what it has relayed.
    pub(crate) fn check(&self) {
        self.assert_silent();
        assert_eq!(self.counted(), self.sent.get());
    }

    /// Returns what the server has relayed for this session.
    pub(crate) fn counted(&self) -> Traffic {
        let described = self.describe();
        let both = |fields: [&str; 2]| fields.map(|field| described[field].as_u64().unwrap());
        Traffic {
            packets: both(["packets_to_peers", "packets_to_client"]),
            bytes: both(["bytes_to_peers", "bytes_to_client"]),
        }
    }

    pub(crate) fn describe(&self) -> Value {
        self.world.session(&self.id)
    }

    /// Returns why user space relays packets to the peer, and to the client; `null` if the kernel does.
    pub(crate) fn why_not(&self) -> [Value; 2] {
        let described = self.describe();
        let channel = format!("{:#06x}", self.channel);
        let channels = described["channels"].as_array().unwrap();
        let channel = channels.iter().find(|bound| bound["channel"] == channel.as_str());
        let offload = &channel.unwrap_or_else(|| panic!("{described}"))["offload"];
        ["to_peer", "to_client"].map(|to| {
            assert_eq!(offload[to]["in_kernel"], offload[to]["why_not"].is_null(), "{described}");
            offload[to]["why_not"].clone()
        })
    }

    /// Waits until the kernel relays both directions.
    pub(crate) fn wait_for_kernel(&self) {
        wait_until(|| {
            let why_not = self.why_not();
            if why_not.iter().all(Value::is_null) { Ok(()) } else { Err(format!("{why_not:?}")) }
        });
    }

    /// Waits until user space relays packets to the peer for a reason with this text.
    pub(crate) fn wait_for_user_space(&self, reason: &str) {
        wait_until(|| {
            let [why_not, _] = self.why_not();
            let found = why_not.as_str().is_some_and(|why_not| why_not.contains(reason));
            if found { Ok(()) } else { Err(why_not.to_string()) }
        });
    }

    /// Deletes the allocation, and asserts that the log has what it has relayed.
    pub(crate) fn end(self) {
        self.client.delete(&self.session);
        self.assert_logged(&self.logged_end());
    }

    /// Returns the line of the log about the end of the allocation.
    pub(crate) fn logged_end(&self) -> LogLine {
        self.world.controlled.server.wait_for_log(|line| self.is_end(line))
    }

    pub(crate) fn is_end(&self, line: &LogLine) -> bool {
        line.field("event").as_deref() == Some("allocation-ended") && line.field("session").as_deref() == Some(&self.id)
    }

    /// Asserts that a line of the log about the end of the allocation has what it has relayed.
    pub(crate) fn assert_logged(&self, line: &LogLine) {
        assert_eq!(logged_bytes(line), self.sent.get().bytes, "{line:?}");
    }
}

/// Returns the bytes to peers and to the client in a line of the log about the end of an allocation.
pub(crate) fn logged_bytes(line: &LogLine) -> [u64; 2] {
    ["bytes_to_peers", "bytes_to_client"].map(|field| line.field(field).unwrap().parse().unwrap())
}

/// Binds a channel to a peer.
pub(crate) fn bind(client: &Client, session: &Session, channel: u16, peer: SocketAddr) {
    let request = Request::ChannelBind { channel, peer };
    let response = client.request(session, request.method(), &|writer| request.encode(writer));
    assert_eq!(response.error(), None);
}

/// Sends a datagram. A connected socket reports an ICMP error about an earlier one in its place.
pub(crate) fn send(socket: &UdpSocket, datagram: &[u8]) {
    assert!((0..8).any(|_| socket.send(datagram).is_ok()), "{} bytes cannot be sent", datagram.len());
}

/// Returns a ChannelData message without padding.
pub(crate) fn channel_data(channel: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap();
    [&channel.to_be_bytes(), &length.to_be_bytes(), data].concat()
}

/// The largest number of bytes of data in both directions of a call that the kernel relays.
pub(crate) fn largest([client, peer]: [usize; 2]) -> usize {
    let headers = |ip: &str| if is_v4(ip) { 28 } else { 48 };
    let to_client = 1_500 - headers(CLIENTS[client]) - 4;
    to_client.min(1_500 - headers(PEERS[peer]))
}
