//! The steps of a run, and their frequency.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use turnserver::stun::{Class, Method};
use turnserver::turn::{FiveTuple, IcmpError, OpenError, SocketId, Transport};

use crate::model::Alloc;
use crate::packet::{self, Authentication, Packet, Signed, raw};
use crate::world::{Datagram, Flight, Socket, World};

const WEIGHTS: [u64; 22] = [
    180, // ChannelData
    140, // Send indication
    150, // peer's datagram
    120, // a delayed packet arrives
    30,  // Binding
    50,  // junk
    80,  // Allocate
    40,  // Refresh
    70,  // CreatePermission
    70,  // ChannelBind
    30,  // a retransmission
    60,  // time passes
    70,  // the result of opening a socket
    30,  // a socket is closed
    6,   // another credential
    20,  // a worker advances its clock
    3,   // a drain begins or ends
    2,   // the wall clock is set
    30,  // an ICMP error arrives
    3,   // the policy changes
    6,   // the allocations of a worker are handed over
    40,  // merged packets of a client
];

/// The frequencies in a world with [`churn`](crate::setup::Setup::churn).
const CHURN: [u64; 22] = [20, 20, 40, 30, 5, 10, 300, 250, 20, 20, 60, 30, 250, 150, 10, 20, 3, 1, 10, 2, 4, 20];

pub(crate) const CHANNELS: [u16; 5] = [0x4000, 0x4001, 0x4002, 0x4003, 0x4fff];
pub(crate) const ODD_CHANNELS: [u16; 8] = [0, 0x3fff, 0x5000, 0x5001, 0x6789, 0x7fff, 0x8000, 0xffff];

impl World {
    pub(crate) fn step(&mut self) {
        let weights = if self.setup().churn { &CHURN } else { &WEIGHTS };
        match self.rng.weighted(weights) {
            0 => self.channel_data(),
            1 => self.send_indication(),
            2 => self.peer_sends(),
            3 => self.arrive(),
            4 => self.binding(),
            5 => self.junk(),
            6 => self.allocate(),
            7 => self.refresh(),
            8 => self.create_permission(),
            9 => self.channel_bind(),
            10 => self.retransmit(),
            11 => self.time_passes(),
            12 => self.socket_opens(),
            13 => {
                if !self.closing.is_empty() {
                    let at = self.rng.below(self.closing.len());
                    self.report_closed(at);
                }
            }
            14 => self.change_credential(),
            15 => {
                let worker = self.rng.below(self.setup().workers);
                self.advance(worker);
            }
            18 => self.icmp(),
            19 => self.change_policy(),
            20 => {
                let worker = self.rng.below(self.setup().workers);
                self.hand_over(worker);
            }
            21 => self.merged_packets(),
            16 => {
                self.model.draining = !self.model.draining && self.rng.percent(20);
                self.ledger.set_draining(self.model.draining);
                self.trace(|world| format!("draining: {}", world.model.draining));
            }
            _ => {
                let by = self.rng.pick(&[1_000, 45_000, 700_000, 5_000_000]);
                let unix_ms = &mut self.model.setup.unix_ms;
                *unix_ms = if self.rng.percent(50) { *unix_ms + by } else { *unix_ms - by };
                self.trace(|world| format!("wall clock: {}", world.now().unix));
            }
        }
    }

    /// Sends a packet of a client. It may be lost, delayed or duplicated.
    pub(crate) fn client_sends(&mut self, client: usize, bytes: Rc<[u8]>, signed: Signed) {
        let packet = Packet { client, bytes, signed };
        let sent = &mut self.clients[client].sent;
        sent.push_back(packet.clone());
        if sent.len() > 6 {
            sent.pop_front();
        }
        match self.rng.below(20) {
            0 => {}
            1 | 2 => self.send(Flight::ToServer(packet)),
            3 => {
                self.send(Flight::ToServer(packet.clone()));
                self.client_packet(&packet);
            }
            _ => self.client_packet(&packet),
        }
    }

    fn arrive(&mut self) {
        if self.flight.is_empty() {
            return;
        }
        let at = self.rng.below(self.flight.len());
        let flight = if self.rng.percent(10) { self.flight[at].clone() } else { self.flight.swap_remove(at) };
        match flight {
            Flight::ToServer(packet) => self.client_packet(&packet),
            Flight::ToRelay(datagram) => self.peer_packet(&datagram),
        }
    }

    /// Retransmits a packet, mostly an Allocate request whose socket is being opened.
    fn retransmit(&mut self) {
        let mut client = self.rng.below(self.clients.len());
        let opening = self.model.allocs.iter().find(|alloc| !alloc.open).map(|alloc| alloc.tuple);
        if let Some(tuple) = opening.filter(|_| self.rng.percent(60)) {
            client = self.setup().clients.iter().position(|client| *client == tuple).expect("the tuple of a client");
        }
        if !self.clients[client].sent.is_empty() {
            let at = self.rng.below(self.clients[client].sent.len());
            let packet = self.clients[client].sent[at].clone();
            self.client_packet(&packet);
        }
    }

    /// Returns a client, mostly one with an open allocation.
    pub(crate) fn some_client(&mut self) -> usize {
        let clients: Vec<usize> = (0..self.clients.len()).collect();
        let open: Vec<usize> = clients.into_iter().filter(|client| self.alloc_of(*client).is_some()).collect();
        if open.is_empty() || self.rng.percent(6) { self.rng.below(self.clients.len()) } else { self.rng.pick(&open) }
    }

    pub(crate) fn alloc_of(&self, client: usize) -> Option<usize> {
        self.model.live(self.now(), &self.setup().clients[client])
    }

    fn payload(&mut self) -> Rc<[u8]> {
        if self.rng.percent(2) {
            return self.any_message();
        }
        let length = match self.rng.below(40) {
            0 => 1_200,
            1..=3 => 0,
            _ => self.rng.below(24),
        };
        self.rng.bytes(length).into()
    }

    /// Returns a STUN message of any class and method, without attributes.
    fn any_message(&mut self) -> Rc<[u8]> {
        let (id, class) = (packet::transaction(&mut self.rng), self.rng.below(4));
        let class = [Class::Request, Class::Indication, Class::Success, Class::Error][class];
        let method = Method::new(self.rng.between(0, 15) as u16).unwrap();
        packet::message(class, method, id, false, &Authentication::NONE, |_| {})
    }

    fn channel_data(&mut self) {
        let client = self.some_client();
        let bound = self.alloc_of(client).map_or(Vec::new(), |at| self.model.allocs[at].channels.clone());
        let number = if bound.is_empty() || self.rng.percent(10) {
            let number = self.rng.pick(&CHANNELS);
            if self.rng.percent(20) { self.rng.pick(&ODD_CHANNELS) } else { number }
        } else {
            self.rng.pick(&bound).0
        };
        let payload = self.payload();
        let bytes = packet::channel_data(&mut self.rng, number, &payload);
        self.client_sends(client, bytes, Signed::Unknown);
    }

    /// Sends two to six packets of one length that the kernel merges: ChannelData on one or two channels, and sometimes
    /// a request or a retransmission between them. The last may be shorter.
    fn merged_packets(&mut self) {
        let client = self.some_client();
        if self.setup().clients[client].transport != Transport::Udp {
            return;
        }
        let bound = self.alloc_of(client).map_or(Vec::new(), |at| self.model.allocs[at].channels.clone());
        let mut numbers = [self.rng.pick(&CHANNELS), self.rng.pick(&CHANNELS)];
        if !bound.is_empty() {
            numbers = [self.rng.pick(&bound).0, self.rng.pick(&bound).0];
        }
        let between = match self.rng.below(10) {
            0..6 => None,
            6 => Some(self.deletion(client)),
            _ => self.clients[client].sent.back().map(|packet| (packet.bytes.clone(), packet.signed)),
        };
        let between = between.filter(|(bytes, _)| bytes.len() > 8);
        let length = between.as_ref().map_or_else(|| self.rng.between(4, 40) as usize, |(bytes, _)| bytes.len());
        let count = self.rng.between(2, 6);
        let at = self.rng.between(0, count - 1);
        let packets: Vec<_> = (0..count)
            .map(|index| {
                if let Some(packet) = between.as_ref().filter(|_| index == at) {
                    return packet.clone();
                }
                let shorter = if index == count - 1 { self.rng.below(length.min(8)) } else { 0 };
                let number = if self.rng.percent(80) { numbers[0] } else { numbers[1] };
                let mut bytes = number.to_be_bytes().to_vec();
                let payload = length - shorter.min(length - 4) - 4;
                // The datagram may be longer than the message.
                let padding = if self.rng.percent(20) { payload.min(2) } else { 0 };
                bytes.extend(((payload - padding) as u16).to_be_bytes());
                bytes.extend(self.rng.bytes(payload));
                (bytes.into(), Signed::Unknown)
            })
            .collect();
        self.client_burst(client, &packets);
    }

    fn send_indication(&mut self) {
        let client = self.some_client();
        let peer = self.some_peer(client, 80);
        let payload = self.payload();
        let bytes = packet::send_indication(&mut self.rng, peer, &payload);
        self.client_sends(client, bytes, Signed::Unknown);
    }

    /// Returns a peer for a client. `permitted` is the probability in percent that the client has a permission for it.
    pub(crate) fn some_peer(&mut self, client: usize, permitted: u64) -> SocketAddr {
        let Some(at) = self.alloc_of(client) else { return self.setup_peer(false, true) };
        let alloc = &self.model.allocs[at];
        let now = self.now();
        let mut families: Vec<bool> = [false, true].into_iter().filter(|v6| alloc.has(now, *v6)).collect();
        if families.is_empty() {
            families = vec![false];
        }
        let v6 = self.rng.pick(&families);
        let alloc = &self.model.allocs[at];
        let own: Vec<SocketId> = alloc.addresses.iter().map(|address| address.id).collect();
        if !alloc.permissions.is_empty() && self.rng.percent(permitted) {
            let alloc = &self.model.allocs[at];
            if !alloc.channels.is_empty() && self.rng.percent(40) {
                return self.rng.pick(&alloc.channels).1;
            }
            let address = self.rng.pick(&alloc.permissions).0;
            return self.with_port(address);
        }
        match self.rng.below(20) {
            0 => self.setup_peer(!v6, true),
            1 | 2 => self.setup_peer(v6, false),
            // The relayed address of another client: the advertised or the bound one.
            3..=9 => {
                let others = self.model.allocs.iter().flat_map(|alloc| &alloc.addresses);
                let others = others.filter(|other| other.bind.is_ipv6() == v6 && !own.contains(&other.id));
                let names: Vec<SocketAddr> =
                    others.flat_map(|other| [other.relayed, other.relayed, other.bind]).collect();
                if names.is_empty() { self.setup_peer(v6, true) } else { self.rng.pick(&names) }
            }
            10 => {
                let relay = self.rng.below(self.setup().relays.len());
                self.with_port(self.setup().relays[relay].advertised)
            }
            _ => self.setup_peer(v6, true),
        }
    }

    fn setup_peer(&mut self, v6: bool, allowed: bool) -> SocketAddr {
        self.model.setup.peer(&mut self.rng, v6, allowed)
    }

    /// Adds a port to an address: that of a relay socket if it is a relay address, otherwise that of a peer.
    fn with_port(&mut self, address: IpAddr) -> SocketAddr {
        let own = self.model.allocs.iter().flat_map(|alloc| &alloc.addresses).map(|own| own.relayed);
        let own: Vec<SocketAddr> = own.filter(|relayed| relayed.ip() == address).collect();
        if self.rng.permille(15) {
            SocketAddr::new(address, 0)
        } else if own.is_empty() || self.rng.percent(10) {
            SocketAddr::new(address, 7_000 + self.rng.between(0, 2) as u16)
        } else {
            self.rng.pick(&own)
        }
    }

    fn peer_sends(&mut self) {
        if self.sockets.is_empty() || !self.stale.is_empty() && self.rng.percent(3) {
            let Some(socket) = self.stale.front().copied() else { return };
            let (source, payload) = (self.setup_peer(false, true), self.payload());
            let datagram = Datagram { worker: socket.worker, relay: socket.relay, source, payload };
            return self.peer_packet(&datagram);
        }
        let socket = self.rng.below(self.sockets.len());
        let socket = self.sockets[socket];
        let source = self.some_source(socket);
        let payload = if self.rng.permille(12) { vec![7; 65_500 + self.rng.below(20)].into() } else { self.payload() };
        let datagram = Datagram { worker: socket.worker, relay: socket.relay, source, payload };
        self.peer_packet(&datagram);
    }

    /// Returns a peer of the socket's address family, mostly one with a permission.
    fn some_source(&mut self, socket: Socket) -> SocketAddr {
        let v6 = socket.bind.is_ipv6();
        let has = |alloc: &&Alloc| alloc.addresses.iter().any(|address| address.bind == socket.bind);
        let to = self.model.allocs.iter().find(has).expect("a socket has an allocation");
        let permissions: Vec<_> = to.permissions.iter().copied().filter(|(peer, _)| peer.is_ipv6() == v6).collect();
        let channels: Vec<_> = to.channels.iter().copied().filter(|(_, peer, _)| peer.is_ipv6() == v6).collect();
        if !channels.is_empty() && self.rng.percent(45) {
            self.rng.pick(&channels).1
        } else if !permissions.is_empty() && self.rng.percent(70) {
            let address = self.rng.pick(&permissions).0;
            self.with_port(address)
        } else {
            let allowed = self.rng.percent(80);
            self.setup_peer(v6, allowed)
        }
    }

    fn icmp(&mut self) {
        let stale = !self.stale.is_empty() && self.rng.percent(5);
        let socket = match (stale, self.sockets.is_empty()) {
            (true, _) => self.stale[0],
            (false, true) => return,
            (false, false) => self.sockets[self.rng.below(self.sockets.len())],
        };
        let peer = if stale { self.setup_peer(socket.bind.is_ipv6(), true) } else { self.some_source(socket) };
        let kind = if self.rng.percent(10) { self.rng.next() as u8 } else { self.rng.pick(&[1, 2, 3, 3, 3, 11]) };
        let error = IcmpError { kind, code: self.rng.pick(&[0, 1, 3, 4]), mtu: 1_280 };
        let times = if self.rng.percent(5) { 12 } else { 1 };
        for _ in 0..times {
            self.peer_unreachable(&socket, peer, error);
        }
    }

    fn binding(&mut self) {
        let client = self.rng.below(self.clients.len());
        let (id, fingerprint, kind) = (packet::transaction(&mut self.rng), self.rng.percent(50), self.rng.below(12));
        let class = if kind == 0 { Class::Indication } else { Class::Request };
        let bytes = packet::message(class, Method::BINDING, id, fingerprint, &Authentication::NONE, |writer| {
            if kind == 1 {
                raw(writer, 0x7f01, b"x");
                raw(writer, 0x0003, &[0, 0, 0, 4]);
                raw(writer, 0xff01, b"xyz");
            }
        });
        self.client_sends(client, bytes, Signed::Unknown);
    }

    /// Sends bytes that no client sends: random, mutated, truncated, or from an impossible source.
    fn junk(&mut self) {
        let client = self.rng.below(self.clients.len());
        let kind = self.rng.below(10);
        if kind < 2 {
            let length = self.rng.below(60);
            let mut bytes = self.rng.bytes(length);
            if let (1, Some(first)) = (kind, bytes.first_mut()) {
                *first &= 0x43;
            }
            return self.client_packet(&Packet { client, bytes: bytes.into(), signed: Signed::Unknown });
        }
        if kind == 2 {
            let source = ["0.0.0.0:5", "77.0.0.2:0", "224.0.0.1:9", "[ff02::1]:9", "[::]:9", "255.255.255.255:1"];
            let client = self.rng.pick(&source).parse().unwrap();
            let tuple = FiveTuple { client, server: self.setup().clients[0].server, transport: Transport::Udp };
            return self.packets_from(0, tuple, &[([0, 1, 0, 0].into(), Signed::Unknown)], None);
        }
        if kind == 3 {
            let bytes = self.any_message();
            return self.client_packet(&Packet { client, bytes, signed: Signed::Unknown });
        }
        if kind == 4 && !self.sockets.is_empty() {
            // A relayed transport address, or one next to it.
            let (socket, bytes) = (self.rng.pick(&self.sockets), self.any_message());
            let mut source = socket.bind;
            source.set_port(source.port() - u16::from(self.rng.percent(20)));
            let tuple = FiveTuple { client: source, ..self.setup().clients[client] };
            return self.packets_from(socket.worker, tuple, &[(bytes, Signed::Unknown)], None);
        }
        let Some(packet) = self.clients[client].sent.back().cloned() else { return };
        let mut bytes = packet.bytes.to_vec();
        if bytes.is_empty() {
            return;
        }
        for _ in 0..self.rng.between(1, 3) {
            let (at, byte) = (self.rng.below(bytes.len()), self.rng.next() as u8);
            match self.rng.below(4) {
                0 => bytes[at] = byte,
                1 => bytes[at] ^= 1 << (byte % 8),
                2 => bytes.truncate(at.max(1)),
                // LIFETIME of 0. It is ignored after an integrity attribute.
                _ => {
                    bytes.extend([0, 0x0d, 0, 4, 0, 0, 0, 0]);
                    if bytes.len() >= 20 && bytes[0] < 4 {
                        let length = (bytes.len() - 20) as u16;
                        bytes[2..4].copy_from_slice(&length.to_be_bytes());
                    }
                }
            }
        }
        self.client_packet(&Packet { client, bytes: bytes.into(), signed: Signed::Unknown });
    }

    fn change_credential(&mut self) {
        let mut client = self.rng.below(self.clients.len());
        while self.alloc_of(client).is_some() && self.rng.percent(80) {
            client = self.rng.below(self.clients.len());
        }
        let secrets = self.setup().secrets.len();
        if secrets > 0 && self.model.credentials.len() < 40 {
            let expires = self.now().unix + self.rng.pick(&[3, 60, 700, 4_000]);
            let (secret, name) = (self.rng.below(secrets), self.rng.pick(&[None, Some("alice"), Some("dave")]));
            let made = self.setup().time_limited(secret, name, expires);
            self.model.credentials.push(made);
            self.clients[client].credential = self.model.credentials.len() - 1;
        } else {
            self.clients[client].credential = self.rng.below(self.model.credentials.len());
        }
    }

    pub(crate) fn socket_opens(&mut self) {
        if self.opens.is_empty() {
            return;
        }
        let at = self.rng.below(self.opens.len());
        // Claimed ports are rare. With fewer failures, hardly any claimed port could not be opened.
        let result = match self.rng.below(16) {
            0..=2 => Err(OpenError::PortInUse),
            3 | 4 => Err(OpenError::Other),
            5 => Err(OpenError::AddressGone),
            _ => Ok(()),
        };
        self.report_opened(at, result);
    }

    fn time_passes(&mut self) {
        let by = match self.rng.below(40) {
            0..=21 => self.rng.between(1, 60),
            22..=29 => self.rng.between(100, 2_500),
            30..=33 => self.rng.between(5_000, 60_000),
            34..=37 => self.until_some_deadline(),
            38 => self.rng.between(60_000, 400_000),
            _ => {
                if self.rng.percent(25) {
                    self.rng.between(400_000, 4_000_000)
                } else {
                    self.rng.between(1_000, 9_000)
                }
            }
        };
        self.ms += by;
        self.trace(|_| format!("{by} ms later"));
        for worker in 0..self.setup().workers {
            if self.rng.percent(if by > 2_000 { 95 } else { 40 }) {
                self.advance(worker);
            }
        }
    }

    /// Returns the time until something expires, or one millisecond less or more.
    fn until_some_deadline(&mut self) -> u64 {
        let mut deadlines = Vec::new();
        for alloc in &self.model.allocs {
            deadlines.extend(alloc.addresses.iter().map(|address| address.deadline));
            deadlines.extend(alloc.permissions.iter().map(|(_, until)| *until));
            deadlines.extend(alloc.channels.iter().map(|(_, _, until)| *until));
        }
        deadlines.extend(self.model.reservations.iter().map(|reservation| reservation.until));
        deadlines.extend(self.model.set_aside.iter().map(|(_, until)| *until));
        let second = |unix: u64| (unix * 1_000).saturating_sub(self.setup().unix_ms);
        let expiries = self.model.credentials.iter().filter_map(|credential| credential.expires);
        deadlines.extend(expiries.map(second));
        deadlines.push(second(self.now().unix + self.setup().nonce_lifetime));
        deadlines.retain(|deadline| (self.ms + 2..self.ms + 1_000_000).contains(deadline));
        if deadlines.is_empty() {
            return 1;
        }
        // Picks mostly one of the next three deadlines. With later deadlines, few allocations would last.
        deadlines.sort_unstable();
        if self.rng.percent(80) {
            deadlines.truncate(3);
        }
        self.rng.pick(&deadlines) + self.rng.between(0, 2) - 1 - self.ms
    }
}
