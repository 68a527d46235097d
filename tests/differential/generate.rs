//! Random sequences. The same seed gives the same sequence.

use turnserver::client::write_message;
use turnserver::stun::{Class, Method, TransactionId};

use crate::operations::{
    Attribute, Credentials, Damage, Fingerprint, Message, Operation, Peer, Sequence, Target, Token, Transport,
};
use crate::rng::SplitMix;

/// Returns the sequence of a seed.
pub(crate) fn sequence(seed: u64) -> Sequence {
    let mut random = SplitMix::new(seed);
    let count = random.pick(&[1, 1, 2, 2, 3]);
    let transports = [
        Transport::Udp,
        Transport::Udp,
        Transport::Udp,
        Transport::Udp,
        Transport::Udp6,
        Transport::Tcp,
        Transport::Tcp,
    ];
    let clients: Vec<_> = (0..count).map(|_| random.pick(&transports)).collect();
    let mut generator = Generator { random, clients: &clients, reserved: None };
    let mut operations = Vec::new();
    for client in 0..count {
        match generator.random.below(100) {
            0..75 => {
                operations.push(generator.first_allocate(client));
                if generator.random.percent(10) {
                    operations.push(Operation::Again { client });
                }
                let is_ipv6 = [Attribute::Family(2), Attribute::DraftAdditionalFamily(2)].iter().any(|family| {
                    operations.last().and_then(Operation::message).is_some_and(|last| last.has(|one| one == family))
                });
                if is_ipv6 && generator.random.percent(15) {
                    let attributes = vec![Attribute::Peer(Target::MappedDenied)];
                    let message = Message::request(Method::CREATE_PERMISSION, attributes);
                    operations.push(Operation::Message { client, message });
                }
                if generator.random.percent(60) {
                    operations.extend(generator.first_peer(client));
                }
            }
            75..85 => operations.push(generator.message(client, Generator::allocate)),
            85..95 => {
                operations.push(generator.special_allocate(client));
                operations.push(generator.first_allocate(client));
            }
            _ => {
                let mut message = Message::request(Method::REFRESH, vec![]);
                message.credentials = generator.random.pick(&[Credentials::OtherUser, Credentials::None]);
                operations.push(Operation::Message { client, message });
                operations.push(Operation::Message { client, message: Message::request(Method::REFRESH, vec![]) });
            }
        }
    }
    for _ in 0..3 + generator.random.below(9) {
        operations.push(generator.operation());
    }
    Sequence { clients, operations }
}

struct Generator<'c> {
    random: SplitMix,
    clients: &'c [Transport],
    /// The last client whose first request reserves a port.
    reserved: Option<usize>,
}

impl Generator<'_> {
    fn client(&mut self) -> usize {
        self.random.below(self.clients.len())
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.random.below(most + 1);
        self.random.bytes(length)
    }

    /// An allocation, so that most sequences have one.
    fn first_allocate(&mut self, client: usize) -> Operation {
        let mut attributes = vec![Attribute::RequestedTransport(17)];
        match self.random.below(12) {
            0 | 1 => {
                attributes.push(Attribute::EvenPort(true));
                self.reserved = Some(client);
            }
            2 => attributes.push(Attribute::EvenPort(false)),
            3 => attributes.push(Attribute::Family(2)),
            4 => attributes.push(Attribute::DraftAdditionalFamily(2)),
            5..9 => attributes.extend(self.reserved.map(|other| Attribute::Token(Token::Of(other)))),
            _ => {}
        }
        Operation::Message { client, message: Message::request(Method::ALLOCATE, attributes) }
    }

    /// An Allocate request that servers are known to treat differently, and that is rare otherwise.
    fn special_allocate(&mut self, client: usize) -> Operation {
        let mut attributes = vec![Attribute::RequestedTransport(17)];
        attributes.extend(self.random.pick(&[
            vec![Attribute::Family(2), Attribute::DontFragment],
            vec![Attribute::Token(Token::Garbage)],
            vec![Attribute::Token(Token::Of(client)), Attribute::Family(3)],
            vec![Attribute::Token(Token::Of(client))],
            vec![Attribute::AdditionalFamily(2)],
            vec![Attribute::DraftAdditionalFamily(9)],
            vec![Attribute::Family(9), Attribute::Raw(0x7abc, vec![])],
            vec![],
        ]));
        if self.random.percent(10) {
            attributes = vec![Attribute::RequestedTransport(6), Attribute::Lifetime(600)];
        }
        let is_plain = attributes.len() == 1;
        let mut message = Message::request(Method::ALLOCATE, attributes);
        if is_plain {
            message.credentials = Credentials::UnknownUser;
        }
        Operation::Message { client, message }
    }

    /// A permission or a channel, and data for it, so that data flows in many sequences.
    fn first_peer(&mut self, client: usize) -> Vec<Operation> {
        let other = self.client();
        let peer = self.random.pick(&[Peer::A, Peer::A, Peer::B]);
        let target = if self.random.percent(75) { Target::Peer(peer) } else { Target::Relay(other) };
        let (payload, padding) = (self.payload(), self.random.pick(&[0, 1]));
        let from_peer = Operation::FromPeer { peer, client, payload: self.payload() };
        let send = vec![Attribute::Peer(target), Attribute::Data(self.payload())];
        let mut send = Message::request(Method::SEND, send);
        (send.class, send.credentials) = (Class::Indication, Credentials::None);
        let mut data = vec![Operation::Message { client, message: send.clone() }, from_peer];
        if self.random.percent(15) {
            // PRIORITY, or port 0.
            let odd = [Attribute::Raw(0x0024, vec![0, 0, 1, 1]), Attribute::Peer(Target::ZeroPort)];
            send.attributes.insert(0, self.random.pick(&odd));
            send.attributes.dedup_by_key(|attribute| attribute.kind());
            send.attributes.pop();
            send.attributes.push(Attribute::Data(self.payload()));
            data.push(Operation::Message { client, message: send });
        }
        let message = if self.random.percent(50) {
            Message::request(Method::CREATE_PERMISSION, vec![Attribute::Peer(target)])
        } else {
            let padding = padding + payload.len().wrapping_neg() % 4;
            let padding =
                if self.clients[client] == Transport::Tcp { payload.len().wrapping_neg() % 4 } else { padding };
            data.push(Operation::ChannelData { client, number: 0x4001, payload, excess: 0, padding });
            Message::request(Method::CHANNEL_BIND, vec![Attribute::Channel(0x4001), Attribute::Peer(target)])
        };
        let mut operations = vec![Operation::Message { client, message }];
        operations.extend(data.into_iter().filter(|_| self.random.percent(40)));
        operations
    }

    fn operation(&mut self) -> Operation {
        let client = self.client();
        match self.random.below(100) {
            0..10 => self.message(client, Self::allocate),
            10..20 => self.message(client, Self::refresh),
            20..34 => self.message(client, Self::create_permission),
            34..48 => self.message(client, Self::channel_bind),
            48..58 => self.message(client, Self::send),
            58..68 => self.channel_data(client),
            68..82 => {
                let (peer, payload) = (self.random.pick(&Peer::ALL), self.payload());
                Operation::FromPeer { peer, client, payload }
            }
            82..86 => self.message(client, Self::binding),
            86..89 => Operation::Again { client },
            89..92 => self.message(client, Self::other),
            92..97 => self.special(client),
            _ if self.clients[client] == Transport::Tcp => self.message(client, Self::binding),
            _ => {
                let mut bytes = self.bytes(40);
                if let Some(first) = bytes.first_mut() {
                    *first = self.random.pick(&[0, 1, 2, 3, 4, 20, 0x3f, 0x50, 0x7f, 0x80, 0xff]);
                }
                Operation::Bytes { client, bytes }
            }
        }
    }

    fn message(&mut self, client: usize, make: fn(&mut Self) -> Message) -> Operation {
        let mut message = make(self);
        if self.clients[client] == Transport::Tcp && message.method.number() >= 0x100 {
            // RFC 7983: a response would not be found in the stream.
            (message.class, message.credentials) = (Class::Indication, Credentials::None);
        }
        if message.class == Class::Request && message.method != Method::BINDING {
            if self.random.percent(16) {
                message.credentials = self.random.pick(&[
                    Credentials::None,
                    Credentials::OtherUser,
                    Credentials::UnknownUser,
                    Credentials::WrongPassword,
                    Credentials::WrongRealm,
                    Credentials::MadeUpNonce,
                    Credentials::ForeignNonce,
                    Credentials::NoUsername,
                    Credentials::NoRealm,
                    Credentials::NoNonce,
                    Credentials::NoIntegrity,
                    Credentials::ShortIntegrity,
                    Credentials::Sha256,
                ]);
            }
            if self.random.percent(6) {
                message.after.push(self.after(message.method));
            }
        }
        if self.random.percent(12) {
            let odd = self.odd();
            let at = self.random.below(message.attributes.len() + 1);
            message.attributes.insert(at, odd);
        }
        if self.random.percent(5) && !message.attributes.is_empty() {
            let first = self.random.pick(&message.attributes);
            let again = self.another(&first);
            message.attributes.push(again);
        }
        if self.random.percent(2) && !message.attributes.is_empty() {
            message.attributes.remove(self.random.below(message.attributes.len()));
        }
        if self.random.percent(8) {
            message.fingerprint =
                self.random.pick(&[Fingerprint::Right, Fingerprint::Right, Fingerprint::Wrong, Fingerprint::NotLast]);
        }
        if self.random.percent(4) && self.clients[client] != Transport::Tcp {
            message.damage = Some(self.random.pick(&[
                Damage::Truncated(1),
                Damage::Truncated(4),
                Damage::Trailing(1),
                Damage::Trailing(4),
                Damage::Cookie,
                Damage::LeadingBits,
                Damage::LongLength(1),
                Damage::LongLength(4),
            ]));
        }
        Operation::Message { client, message }
    }

    /// A message that servers are known to treat differently, and that is rare otherwise.
    fn special(&mut self, client: usize) -> Operation {
        let (peer, data) = (Attribute::Peer(Target::Peer(Peer::A)), Attribute::Data(vec![0x80; 3]));
        let (method, attributes) = self.random.pick(&[
            (Method::BINDING, vec![]),
            (Method::REFRESH, vec![Attribute::Raw(0x8030, vec![])]),
            (Method::REFRESH, vec![Attribute::Raw(0x7abc, vec![]), data.clone()]),
            (Method::CREATE_PERMISSION, vec![peer.clone()]),
            (Method::CREATE_PERMISSION, vec![Attribute::Peer(Target::MappedDenied)]),
            (Method::CHANNEL_BIND, vec![Attribute::Channel(0x4002), Attribute::Peer(Target::MappedDenied)]),
            (Method::SEND, vec![Attribute::Peer(Target::ZeroPort), data.clone()]),
            (Method::SEND, vec![Attribute::Peer(Target::ZeroPort), data.clone()]),
            (Method::SEND, vec![peer.clone(), data.clone(), Attribute::Raw(0x0024, vec![0, 0, 1, 1])]),
            (Method::SEND, vec![peer.clone(), data.clone(), Attribute::Lifetime(600)]),
            (Method::SEND, vec![peer.clone(), data, Attribute::Raw(0x7abc, vec![])]),
            (Method::ALLOCATE, vec![Attribute::RequestedTransport(6)]),
            (Method::CHANNEL_BIND, vec![Attribute::Raw(0x7abc, vec![])]),
            (Method::CHANNEL_BIND, vec![Attribute::Channel(0x4002), Attribute::Peer(Target::ZeroPort)]),
            (Method::CREATE_PERMISSION, vec![peer, Attribute::Raw(0x0012, vec![0, 3, 2, 3, 4, 5, 6, 7])]),
            (Method::new(0xfff).unwrap(), vec![]),
        ]);
        let is_permission = method == Method::CREATE_PERMISSION && self.random.percent(50);
        let mut message = Message::request(method, attributes);
        match method {
            Method::ALLOCATE | Method::CHANNEL_BIND => {}
            _ if method.number() == 0xfff => {
                (message.class, message.credentials) = (Class::Indication, Credentials::None);
            }
            Method::SEND => (message.class, message.credentials) = (Class::Indication, Credentials::None),
            Method::BINDING => {
                message.credentials = Credentials::None;
                message.damage = Some(Damage::Cookie).filter(|_| self.clients[client] != Transport::Tcp);
            }
            _ if is_permission => message.credentials = Credentials::None,
            _ => {}
        }
        Operation::Message { client, message }
    }

    /// An attribute after the integrity of a request. Most would change its result if they were used.
    fn after(&mut self, method: Method) -> Attribute {
        let peer = Attribute::Peer(Target::Peer(self.random.pick(&[Peer::A, Peer::B])));
        let used = match method {
            Method::ALLOCATE => &[
                Attribute::Lifetime(777),
                Attribute::EvenPort(true),
                Attribute::Family(2),
                Attribute::DraftAdditionalFamily(2),
                Attribute::RequestedTransport(6),
            ][..],
            Method::REFRESH => &[Attribute::Lifetime(0), Attribute::Lifetime(777), Attribute::Family(2)],
            Method::CHANNEL_BIND => &[peer, Attribute::Channel(0x4002)],
            _ => &[peer],
        };
        if self.random.percent(70) {
            return self.random.pick(used);
        }
        self.random.pick(&[
            Attribute::Raw(0x7abc, vec![1, 2, 3, 4]),
            Attribute::Lifetime(0),
            Attribute::EvenPort(true),
            Attribute::Data(vec![9; 3]),
        ])
    }

    /// An attribute of the same type, in most cases with another value.
    fn another(&mut self, attribute: &Attribute) -> Attribute {
        if self.random.percent(20) {
            return attribute.clone();
        }
        match attribute {
            Attribute::RequestedTransport(_) => Attribute::RequestedTransport(self.random.pick(&[6, 17])),
            Attribute::Lifetime(_) => self.lifetime(),
            Attribute::EvenPort(reserve_next) => Attribute::EvenPort(!reserve_next),
            Attribute::Token(_) => Attribute::Token(Token::Garbage),
            Attribute::Family(_) => Attribute::Family(self.family()),
            Attribute::AdditionalFamily(_) => Attribute::AdditionalFamily(self.family()),
            Attribute::DraftAdditionalFamily(_) => Attribute::DraftAdditionalFamily(self.family()),
            Attribute::Peer(_) => Attribute::Peer(self.target()),
            Attribute::Channel(_) => Attribute::Channel(self.number()),
            Attribute::Data(_) => Attribute::Data(self.payload()),
            Attribute::DontFragment | Attribute::Raw(..) => attribute.clone(),
        }
    }

    /// An attribute that the message need not have.
    fn odd(&mut self) -> Attribute {
        self.random.pick(&[
            Attribute::Raw(0x7abc, vec![1, 2, 3, 4]),
            Attribute::Raw(0x0030, vec![]),
            Attribute::Raw(0xbeef, vec![5; 5]),
            Attribute::Raw(0x8022, b"client".to_vec()),
            // PRIORITY, CHANGE-REQUEST, RESPONSE-PORT, CONNECTION-ID, MOBILITY-TICKET.
            Attribute::Raw(0x0024, vec![0, 0, 1, 1]),
            Attribute::Raw(0x0003, vec![0; 4]),
            Attribute::Raw(0x0003, vec![0, 0, 0, 6]),
            Attribute::Raw(0x0027, vec![0; 4]),
            Attribute::Raw(0x002a, vec![0; 4]),
            Attribute::Raw(0x8030, vec![]),
            // Wrong lengths: LIFETIME, REQUESTED-TRANSPORT, REQUESTED-ADDRESS-FAMILY, EVEN-PORT, RESERVATION-TOKEN,
            // CHANNEL-NUMBER, XOR-PEER-ADDRESS.
            Attribute::Raw(0x000d, vec![0; 3]),
            Attribute::Raw(0x0019, vec![17]),
            Attribute::Raw(0x0017, vec![1]),
            Attribute::Raw(0x0018, vec![]),
            Attribute::Raw(0x0022, vec![0; 7]),
            Attribute::Raw(0x000c, vec![0x40]),
            Attribute::Raw(0x0012, vec![0, 1, 2, 3]),
            // A family that does not exist.
            Attribute::Raw(0x0012, vec![0, 3, 2, 3, 4, 5, 6, 7]),
            Attribute::DontFragment,
            Attribute::EvenPort(false),
            Attribute::EvenPort(true),
            Attribute::Family(1),
            Attribute::Family(2),
            Attribute::Lifetime(700),
            Attribute::Data(vec![9; 3]),
            Attribute::Channel(0x4003),
            Attribute::Peer(Target::Peer(Peer::A)),
        ])
    }

    fn payload(&mut self) -> Vec<u8> {
        if self.random.percent(5) {
            let method = self.random.pick(&[Method::BINDING, Method::ALLOCATE, Method::REFRESH]);
            let id = TransactionId::new([0x5a; 12]);
            return write_message(Class::Request, method, id, 64, |_| {}).unwrap();
        }
        let most = if self.random.percent(3) { 1_200 } else { 30 };
        let mut payload = self.bytes(most);
        // As RTP, so that it is no STUN message.
        if let Some(first) = payload.first_mut() {
            *first |= 0x80;
        }
        payload
    }

    fn target(&mut self) -> Target {
        if self.random.percent(82) {
            return Target::Peer(self.random.pick(&[Peer::A, Peer::A, Peer::A, Peer::A2, Peer::B, Peer::B, Peer::V6]));
        }
        let client = self.client();
        self.random.pick(&[
            Target::Relay(client),
            Target::Relay(client),
            Target::Relay(client),
            Target::Relay(client),
            Target::Denied,
            Target::Denied,
            Target::Loopback,
            Target::Unspecified,
            Target::Multicast,
            Target::Broadcast,
            Target::MappedDenied,
            Target::ZeroPort,
        ])
    }

    fn lifetime(&mut self) -> Attribute {
        Attribute::Lifetime(self.random.pick(&[0, 1, 599, 600, 601, 777, 3600, 3601, 86_400, u32::MAX]))
    }

    fn family(&mut self) -> u8 {
        self.random.pick(&[1, 1, 2, 2, 0, 3, 255])
    }

    fn allocate(&mut self) -> Message {
        let mut attributes = Vec::new();
        if self.random.percent(96) {
            let transport = if self.random.percent(92) { 17 } else { self.random.pick(&[6, 0, 99, 255]) };
            attributes.push(Attribute::RequestedTransport(transport));
        }
        if self.random.percent(30) {
            attributes.push(self.lifetime());
        }
        if self.random.percent(20) {
            attributes.push(Attribute::EvenPort(self.random.percent(50)));
        }
        if self.random.percent(15) {
            let client = self.client();
            attributes.push(Attribute::Token(if self.random.percent(75) { Token::Of(client) } else { Token::Garbage }));
        }
        if self.random.percent(25) {
            attributes.push(Attribute::Family(self.family()));
        }
        if self.random.percent(12) {
            let family = self.random.pick(&[2, 2, 2, 1, 0, 9]);
            attributes.push(if self.random.percent(75) {
                Attribute::DraftAdditionalFamily(family)
            } else {
                Attribute::AdditionalFamily(family)
            });
        }
        if self.random.percent(10) {
            attributes.push(Attribute::DontFragment);
        }
        Message::request(Method::ALLOCATE, attributes)
    }

    fn refresh(&mut self) -> Message {
        let mut attributes = Vec::new();
        if self.random.percent(75) {
            attributes.push(self.lifetime());
        }
        if self.random.percent(20) {
            attributes.push(Attribute::Family(self.family()));
        }
        Message::request(Method::REFRESH, attributes)
    }

    fn create_permission(&mut self) -> Message {
        let count = self.random.pick(&[0, 1, 1, 1, 1, 1, 1, 2, 2, 3]);
        let attributes = (0..count).map(|_| Attribute::Peer(self.target())).collect();
        Message::request(Method::CREATE_PERMISSION, attributes)
    }

    fn number(&mut self) -> u16 {
        if self.random.percent(90) {
            self.random.pick(&[0x4000, 0x4001, 0x4001, 0x4002, 0x4fff])
        } else {
            self.random.pick(&[0, 0x3fff, 0x5000, 0x7ffe, 0x7fff, 0x8000, 0xffff])
        }
    }

    fn channel_bind(&mut self) -> Message {
        let attributes = vec![Attribute::Channel(self.number()), Attribute::Peer(self.target())];
        Message::request(Method::CHANNEL_BIND, attributes)
    }

    fn send(&mut self) -> Message {
        let mut attributes = vec![Attribute::Peer(self.target()), Attribute::Data(self.payload())];
        if self.random.percent(8) {
            attributes.push(Attribute::DontFragment);
        }
        let mut message = Message::request(Method::SEND, attributes);
        (message.class, message.credentials) = (Class::Indication, Credentials::None);
        message
    }

    fn channel_data(&mut self, client: usize) -> Operation {
        let (number, payload) = (self.number(), self.payload());
        let aligned = payload.len().wrapping_neg() % 4;
        if self.clients[client] == Transport::Tcp {
            return Operation::ChannelData {
                client,
                number: number.clamp(0x4000, 0x4fff),
                payload,
                excess: 0,
                padding: aligned,
            };
        }
        let padding = self.random.pick(&[0, 0, aligned, aligned, 1, 8]);
        let excess = if self.random.percent(90) { 0 } else { self.random.pick(&[-1, 1, 4, 100]) };
        let excess = if payload.is_empty() { excess.max(0) } else { excess };
        Operation::ChannelData { client, number, payload, excess, padding }
    }

    fn binding(&mut self) -> Message {
        let mut message = Message::request(Method::BINDING, Vec::new());
        let signed = self.random.percent(15);
        message.credentials = if signed { Credentials::Right } else { Credentials::None };
        message
    }

    /// A message that clients do not send.
    fn other(&mut self) -> Message {
        let method = self
            .random
            .pick(&[0x000, 0x001, 0x002, 0x003, 0x004, 0x006, 0x007, 0x008, 0x009, 0x00a, 0x00b, 0x00c, 0x0ff, 0xfff]);
        let attributes = vec![Attribute::Peer(Target::Peer(Peer::A)), Attribute::Data(vec![0x81; 3])];
        let mut message = Message::request(Method::new(method).unwrap(), attributes);
        message.class =
            self.random.pick(&[Class::Request, Class::Request, Class::Indication, Class::Success, Class::Error]);
        if message.class != Class::Request {
            message.credentials = Credentials::None;
        }
        message
    }
}
