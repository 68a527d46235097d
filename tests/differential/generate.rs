//! Random sequences. The same seed gives the same sequence.

use turnserver::client::write_message;
use turnserver::stun::{Class, Method, TransactionId};

use crate::operations::{
    Credentials, Damage, Fingerprint, Item, Link, Message, Operation, Peer, Sequence, Target, Token,
};

/// SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }

    /// True in this many of a hundred cases.
    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most + 1)).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// Returns the sequence of a seed.
pub(crate) fn sequence(seed: u64) -> Sequence {
    let mut random = Random::new(seed);
    let count = random.pick(&[1, 1, 2, 2, 3]);
    let links = [Link::Udp, Link::Udp, Link::Udp, Link::Udp, Link::Udp6, Link::Tcp, Link::Tcp];
    let clients: Vec<_> = (0..count).map(|_| random.pick(&links)).collect();
    let mut generator = Generator { random, clients: &clients, reserved: None };
    let mut operations = Vec::new();
    for client in 0..count {
        if generator.random.percent(85) {
            operations.push(generator.first_allocate(client));
            if generator.random.percent(40) {
                operations.push(generator.first_peer(client));
            }
        }
    }
    for _ in 0..3 + generator.random.below(9) {
        operations.push(generator.operation());
    }
    Sequence { clients, operations }
}

struct Generator<'c> {
    random: Random,
    clients: &'c [Link],
    /// The last client whose first request reserves a port.
    reserved: Option<usize>,
}

impl Generator<'_> {
    fn client(&mut self) -> usize {
        self.random.below(self.clients.len())
    }

    /// An allocation, so that most sequences have one.
    fn first_allocate(&mut self, client: usize) -> Operation {
        let mut items = vec![Item::RequestedTransport(17)];
        match self.random.below(12) {
            0 | 1 => {
                items.push(Item::EvenPort(true));
                self.reserved = Some(client);
            }
            2 => items.push(Item::EvenPort(false)),
            3 => items.push(Item::Family(2)),
            4 => items.push(Item::DraftAdditionalFamily(2)),
            5..9 => items.extend(self.reserved.map(|other| Item::Token(Token::Of(other)))),
            _ => {}
        }
        Operation::Message { client, message: Message::request(Method::ALLOCATE, items) }
    }

    /// A permission or a channel, so that data flows in many sequences.
    fn first_peer(&mut self, client: usize) -> Operation {
        let other = self.client();
        let target = self.random.pick(&[
            Target::Peer(Peer::A),
            Target::Peer(Peer::A),
            Target::Peer(Peer::B),
            Target::Relay(other),
        ]);
        let message = if self.random.percent(50) {
            Message::request(Method::CREATE_PERMISSION, vec![Item::Peer(target)])
        } else {
            Message::request(Method::CHANNEL_BIND, vec![Item::Channel(0x4001), Item::Peer(target)])
        };
        Operation::Message { client, message }
    }

    fn operation(&mut self) -> Operation {
        let client = self.client();
        match self.random.below(100) {
            0..10 => self.message(client, Self::allocate),
            10..20 => self.message(client, Self::refresh),
            20..36 => self.message(client, Self::create_permission),
            36..52 => self.message(client, Self::channel_bind),
            52..62 => self.message(client, Self::send),
            62..72 => self.channel_data(client),
            72..86 => {
                let (peer, payload) = (self.random.pick(&Peer::ALL), self.payload());
                Operation::FromPeer { peer, client, payload }
            }
            86..91 => self.message(client, Self::binding),
            91..94 => Operation::Again { client },
            94..97 => self.message(client, Self::other),
            _ if self.clients[client] == Link::Tcp => self.message(client, Self::binding),
            _ => {
                let mut bytes = self.random.bytes(40);
                if let Some(first) = bytes.first_mut() {
                    *first = self.random.pick(&[0, 1, 2, 3, 4, 20, 0x3f, 0x50, 0x7f, 0x80, 0xff]);
                }
                Operation::Bytes { client, bytes }
            }
        }
    }

    fn message(&mut self, client: usize, make: fn(&mut Self) -> Message) -> Operation {
        let mut message = make(self);
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
            if self.random.percent(4) {
                message.after.push(self.random.pick(&[
                    Item::Lifetime(0),
                    Item::Peer(Target::Peer(Peer::B)),
                    Item::Raw(0x7abc, vec![1, 2, 3, 4]),
                    Item::EvenPort(true),
                ]));
            }
        }
        if self.random.percent(12) {
            let odd = self.odd();
            let at = self.random.below(message.items.len() + 1);
            message.items.insert(at, odd);
        }
        if self.random.percent(4) && !message.items.is_empty() {
            let again = self.random.pick(&message.items);
            message.items.push(again);
        }
        if self.random.percent(2) && !message.items.is_empty() {
            message.items.remove(self.random.below(message.items.len()));
        }
        if self.random.percent(8) {
            message.fingerprint =
                self.random.pick(&[Fingerprint::Right, Fingerprint::Right, Fingerprint::Wrong, Fingerprint::NotLast]);
        }
        if self.random.percent(4) && self.clients[client] != Link::Tcp {
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

    /// An attribute that the message need not have.
    fn odd(&mut self) -> Item {
        self.random.pick(&[
            Item::Raw(0x7abc, vec![1, 2, 3, 4]),
            Item::Raw(0x0030, vec![]),
            Item::Raw(0xbeef, vec![5; 5]),
            Item::Raw(0x8022, b"client".to_vec()),
            // PRIORITY, CHANGE-REQUEST, RESPONSE-PORT, CONNECTION-ID, MOBILITY-TICKET.
            Item::Raw(0x0024, vec![0, 0, 1, 1]),
            Item::Raw(0x0003, vec![0; 4]),
            Item::Raw(0x0003, vec![0, 0, 0, 6]),
            Item::Raw(0x0027, vec![0; 4]),
            Item::Raw(0x002a, vec![0; 4]),
            Item::Raw(0x8030, vec![]),
            // Wrong lengths: LIFETIME, REQUESTED-TRANSPORT, REQUESTED-ADDRESS-FAMILY, EVEN-PORT, RESERVATION-TOKEN,
            // CHANNEL-NUMBER, XOR-PEER-ADDRESS.
            Item::Raw(0x000d, vec![0; 3]),
            Item::Raw(0x0019, vec![17]),
            Item::Raw(0x0017, vec![1]),
            Item::Raw(0x0018, vec![]),
            Item::Raw(0x0022, vec![0; 7]),
            Item::Raw(0x000c, vec![0x40]),
            Item::Raw(0x0012, vec![0, 1, 2, 3]),
            // A family that does not exist.
            Item::Raw(0x0012, vec![0, 3, 2, 3, 4, 5, 6, 7]),
            Item::DontFragment,
            Item::EvenPort(false),
            Item::EvenPort(true),
            Item::Family(1),
            Item::Family(2),
            Item::Lifetime(700),
            Item::Data(vec![9; 3]),
            Item::Channel(0x4003),
            Item::Peer(Target::Peer(Peer::A)),
        ])
    }

    fn payload(&mut self) -> Vec<u8> {
        if self.random.percent(3) {
            let method = self.random.pick(&[Method::BINDING, Method::ALLOCATE, Method::REFRESH]);
            let id = TransactionId::new([0x5a; 12]);
            return write_message(Class::Request, method, id, 64, |_| {}).unwrap();
        }
        let most = if self.random.percent(3) { 1_200 } else { 30 };
        let mut payload = self.random.bytes(most);
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

    fn lifetime(&mut self) -> Item {
        Item::Lifetime(self.random.pick(&[0, 1, 599, 600, 601, 777, 3600, 3601, 86_400, u32::MAX]))
    }

    fn family(&mut self) -> u8 {
        self.random.pick(&[1, 1, 2, 2, 0, 3, 255])
    }

    fn allocate(&mut self) -> Message {
        let mut items = Vec::new();
        if self.random.percent(96) {
            let transport = if self.random.percent(92) { 17 } else { self.random.pick(&[6, 0, 99, 255]) };
            items.push(Item::RequestedTransport(transport));
        }
        if self.random.percent(30) {
            items.push(self.lifetime());
        }
        if self.random.percent(20) {
            items.push(Item::EvenPort(self.random.percent(50)));
        }
        if self.random.percent(15) {
            let client = self.client();
            items.push(Item::Token(if self.random.percent(75) { Token::Of(client) } else { Token::Garbage }));
        }
        if self.random.percent(25) {
            items.push(Item::Family(self.family()));
        }
        if self.random.percent(12) {
            let family = self.random.pick(&[2, 2, 2, 1, 0, 9]);
            items.push(if self.random.percent(75) {
                Item::DraftAdditionalFamily(family)
            } else {
                Item::AdditionalFamily(family)
            });
        }
        if self.random.percent(10) {
            items.push(Item::DontFragment);
        }
        Message::request(Method::ALLOCATE, items)
    }

    fn refresh(&mut self) -> Message {
        let mut items = Vec::new();
        if self.random.percent(75) {
            items.push(self.lifetime());
        }
        if self.random.percent(20) {
            items.push(Item::Family(self.family()));
        }
        Message::request(Method::REFRESH, items)
    }

    fn create_permission(&mut self) -> Message {
        let count = self.random.pick(&[0, 1, 1, 1, 1, 1, 1, 2, 2, 3]);
        let items = (0..count).map(|_| Item::Peer(self.target())).collect();
        Message::request(Method::CREATE_PERMISSION, items)
    }

    fn number(&mut self) -> u16 {
        if self.random.percent(90) {
            self.random.pick(&[0x4000, 0x4001, 0x4001, 0x4002, 0x4fff])
        } else {
            self.random.pick(&[0, 0x3fff, 0x5000, 0x7ffe, 0x7fff, 0x8000, 0xffff])
        }
    }

    fn channel_bind(&mut self) -> Message {
        let items = vec![Item::Channel(self.number()), Item::Peer(self.target())];
        Message::request(Method::CHANNEL_BIND, items)
    }

    fn send(&mut self) -> Message {
        let mut items = vec![Item::Peer(self.target()), Item::Data(self.payload())];
        if self.random.percent(8) {
            items.push(Item::DontFragment);
        }
        let mut message = Message::request(Method::SEND, items);
        (message.class, message.credentials) = (Class::Indication, Credentials::None);
        message
    }

    fn channel_data(&mut self, client: usize) -> Operation {
        let (number, payload) = (self.number(), self.payload());
        let aligned = payload.len().wrapping_neg() % 4;
        if self.clients[client] == Link::Tcp {
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
        let items = vec![Item::Peer(Target::Peer(Peer::A)), Item::Data(vec![0x81; 3])];
        let mut message = Message::request(Method::new(method).unwrap(), items);
        message.class =
            self.random.pick(&[Class::Request, Class::Request, Class::Indication, Class::Success, Class::Error]);
        if message.class != Class::Request {
            message.credentials = Credentials::None;
        }
        message
    }
}
