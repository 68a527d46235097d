//! The requests that clients send, with the mistakes that occur.

use std::net::SocketAddr;

use turnserver::auth::KeyAlgorithm;
use turnserver::stun::attribute::{
    AdditionalAddressFamily, AddressFamily, ChannelNumber, EvenPort, Lifetime, RequestedAddressFamily,
    RequestedTransport, ReservationToken, XorPeerAddress,
};
use turnserver::stun::{Class, MessageWriter, Method};

use crate::packet::{self, Authentication, Signed, raw};
use crate::steps::{CHANNELS, ODD_CHANNELS};
use crate::world::World;

const LIFETIMES: [u32; 10] = [0, 1, 599, 600, 601, 900, 3_599, 3_600, 7_200, u32::MAX];

impl World {
    /// How a client proves who it is, with the mistakes that occur.
    fn authentication(&mut self, client: usize) -> (Authentication, Signed) {
        let Some(nonce) = self.clients[client].nonce.clone() else {
            return (Authentication::NONE, Signed::Wrongly);
        };
        let mut at = self.clients[client].credential;
        if self.dice.percent(3) {
            at = self.dice.below(self.model.credentials.len());
        }
        let credential = self.model.credentials[at].clone();
        let (listed, named, algorithm) = self.algorithm();
        let mut by = Authentication {
            hidden: self.dice.percent(if credential.expires.is_none() { 30 } else { 2 }),
            listed,
            named,
            realm: true,
            nonce: Some(nonce),
            key: Some(credential.key(algorithm)),
            sha256: self.dice.percent(if named.is_some() { 95 } else { 4 }),
            username: Some(credential.username),
        };
        let mut signed = Signed::With(at, algorithm);
        match self.dice.below(80) {
            0 => {
                let stranger = self.setup().strangers(0x7000_0000)[0].clone();
                (by.key, signed) = (Some(stranger.key(algorithm)), Signed::Wrongly);
            }
            1 => {
                let unix = self.now().unix;
                let strangers = self.setup().strangers(unix);
                let stranger = strangers[self.dice.below(strangers.len())].clone();
                (by.key, signed) = (Some(stranger.key(algorithm)), Signed::Wrongly);
                by.username = Some(stranger.username);
            }
            2 => by.username = None,
            3 => by.realm = false,
            4 => by.nonce = None,
            5 => by.nonce = Some("obMatJos2AAAAforged".to_owned()),
            6 => {
                let other = self.dice.below(self.clients.len());
                by.nonce = self.clients[other].nonce.clone();
            }
            7 => by.nonce = self.clients[client].old_nonce.clone(),
            8 => by = Authentication::NONE,
            9 => {
                let other = if algorithm == KeyAlgorithm::Md5 { KeyAlgorithm::Sha256 } else { KeyAlgorithm::Md5 };
                (by.key, signed) = (Some(self.model.credentials[at].key(other)), Signed::With(at, other));
            }
            _ => {}
        }
        (by, signed)
    }

    /// What a client says of password algorithms, and the one that it uses.
    fn algorithm(&mut self) -> (Option<&'static [u8]>, Option<&'static [u8]>, KeyAlgorithm) {
        const LISTED: Option<&[u8]> = Some(&[0, 2, 0, 0, 0, 1, 0, 0]);
        const MD5: Option<&[u8]> = Some(&[0, 1, 0, 0]);
        const SHA256: Option<&[u8]> = Some(&[0, 2, 0, 0]);
        match self.dice.below(100) {
            0..=49 => (None, None, KeyAlgorithm::Md5),
            50..=84 => (LISTED, SHA256, KeyAlgorithm::Sha256),
            85..=93 => (LISTED, MD5, KeyAlgorithm::Md5),
            94 => (None, SHA256, KeyAlgorithm::Sha256),
            95 => (LISTED, None, KeyAlgorithm::Md5),
            // As a bid-down attack would have it.
            96 => (MD5, MD5, KeyAlgorithm::Md5),
            97 => (MD5, SHA256, KeyAlgorithm::Sha256),
            98 => (LISTED, Some(&[0, 3, 0, 0]), KeyAlgorithm::Sha256),
            _ => (LISTED, Some(&[0, 2, 0]), KeyAlgorithm::Sha256),
        }
    }

    fn request(&mut self, client: usize, method: Method, attributes: impl FnOnce(&mut MessageWriter<'_>)) {
        let (by, signed) = self.authentication(client);
        let (mut id, fingerprint) = (packet::transaction(&mut self.dice), self.dice.percent(25));
        // Another user's request may have the very transaction ID that made the allocation.
        let tuple = self.setup().clients[client];
        if let Some(alloc) = self.model.allocs.iter().find(|alloc| alloc.tuple == tuple)
            && by.username.as_ref() != Some(&alloc.username)
            && self.dice.percent(50)
        {
            id = alloc.transaction;
        }
        let odd = self.dice.below(150);
        let bytes = packet::message(Class::Request, method, id, fingerprint, &by, |writer| {
            attributes(writer);
            match odd {
                0 => raw(writer, 0x7f01, b"what is this"),
                1 | 4..=6 => raw(writer, 0x001a, &[]),
                2 => raw(writer, 0x0022, &[1; 8]),
                3 => raw(writer, 0xc001, b"optional"),
                _ => {}
            }
        });
        self.client_sends(client, bytes, signed);
    }

    fn lifetime(&mut self) -> Option<u32> {
        let lifetime = self.dice.pick(&LIFETIMES);
        self.dice.percent(60).then_some(lifetime)
    }

    pub(super) fn allocate(&mut self) {
        let mut client = self.dice.below(self.clients.len());
        for _ in 0..3 {
            if self.alloc_of(client).is_none() {
                break;
            }
            client = self.dice.below(self.clients.len());
        }
        let v4 = self.setup().relays.iter().any(|relay| relay.bind.is_ipv4());
        let family = match self.dice.below(40) {
            0..=11 => Some(AddressFamily::V6),
            12..=16 => Some(AddressFamily::V4),
            _ if v4 => None,
            _ => Some(AddressFamily::V6),
        };
        let (lifetime, flaw) = (self.lifetime(), self.dice.below(110));
        let tokens: Vec<[u8; 8]> = self.model.reservations.iter().map(|reservation| reservation.token).collect();
        if !tokens.is_empty() && self.dice.percent(35) {
            let token = self.dice.pick(&tokens);
            return self.claim(client, token, lifetime);
        }
        self.request(client, Method::ALLOCATE, |writer| {
            match flaw {
                0 => {}
                1 => writer.push(&RequestedTransport::TCP),
                2 => raw(writer, 0x0019, &[17, 0, 0]),
                _ => writer.push(&RequestedTransport::UDP),
            }
            match (flaw, family) {
                (3, _) => raw(writer, 0x0017, &[3, 0, 0, 0]),
                (4, _) => raw(writer, 0x0017, &[1]),
                (5..=8 | 60..=79, _) => writer.push(&AdditionalAddressFamily(AddressFamily::V6)),
                (103..=105, _) => raw(writer, 0x8032, &[2, 0, 0, 0]),
                (9, _) => writer.push(&AdditionalAddressFamily(AddressFamily::V4)),
                (_, Some(family)) => writer.push(&RequestedAddressFamily(family)),
                _ => {}
            }
            match flaw {
                10 => writer.push(&AdditionalAddressFamily(AddressFamily::V6)),
                8 | 12 | 80..=102 => writer.push(&EvenPort { reserve_next: true }),
                13 => raw(writer, 0x0018, &[0, 0]),
                7 | 14..=20 => writer.push(&EvenPort { reserve_next: false }),
                _ => {}
            }
            match (flaw, lifetime) {
                (11, _) => raw(writer, 0x000d, &[0, 1]),
                (_, Some(lifetime)) => writer.push(&Lifetime(lifetime)),
                _ => {}
            }
        });
    }

    /// Comes with a token that is good, or nearly.
    fn claim(&mut self, client: usize, mut token: [u8; 8], lifetime: Option<u32>) {
        let flaw = self.dice.below(20);
        if flaw == 0 {
            let at = self.dice.below(8);
            token[at] ^= 1 << self.dice.below(8);
        }
        self.request(client, Method::ALLOCATE, |writer| {
            writer.push(&RequestedTransport::UDP);
            match flaw {
                1 => raw(writer, 0x0022, &token[1..]),
                _ => writer.push(&ReservationToken(token)),
            }
            match flaw {
                2 => writer.push(&EvenPort { reserve_next: false }),
                3 => writer.push(&RequestedAddressFamily(AddressFamily::V4)),
                4 => writer.push(&AdditionalAddressFamily(AddressFamily::V6)),
                _ => {}
            }
            if let Some(lifetime) = lifetime {
                writer.push(&Lifetime(lifetime));
            }
        });
    }

    pub(super) fn refresh(&mut self) {
        let client = self.some_client();
        let (mut lifetime, flaw) = (self.lifetime(), self.dice.below(40));
        if self.setup().churn && self.dice.percent(50) {
            lifetime = Some(0);
        }
        self.request(client, Method::REFRESH, |writer| {
            match flaw {
                0 | 5..=8 => writer.push(&RequestedAddressFamily(AddressFamily::V4)),
                1 | 9..=12 => writer.push(&RequestedAddressFamily(AddressFamily::V6)),
                2 => raw(writer, 0x0017, &[9, 0, 0, 0]),
                3 => raw(writer, 0x0017, &[]),
                4 => raw(writer, 0x000d, &[]),
                _ => {}
            }
            if let Some(lifetime) = lifetime {
                writer.push(&Lifetime(lifetime));
            }
        });
    }

    pub(super) fn create_permission(&mut self) {
        let client = self.some_client();
        let count = if self.dice.percent(70) { 1 } else { self.dice.below(5) };
        let peers: Vec<SocketAddr> = (0..count).map(|_| self.some_peer(client, 25)).collect();
        let malformed = self.dice.percent(1);
        self.request(client, Method::CREATE_PERMISSION, |writer| {
            peers.iter().for_each(|peer| writer.push(&XorPeerAddress(*peer)));
            if malformed {
                raw(writer, 0x0012, &[0, 1, 2, 3]);
            }
        });
    }

    pub(super) fn channel_bind(&mut self) {
        let client = self.some_client();
        let bound = self.alloc_of(client).map_or(Vec::new(), |at| self.model.allocs[at].channels.clone());
        let mut peer = self.some_peer(client, 40);
        let mut number = self.dice.pick(&CHANNELS);
        if !bound.is_empty() && self.dice.percent(35) {
            (number, peer, _) = self.dice.pick(&bound);
        } else if self.dice.percent(10) {
            number = self.dice.pick(&ODD_CHANNELS);
        }
        let flaw = self.dice.below(60);
        self.request(client, Method::CHANNEL_BIND, |writer| {
            match flaw {
                0 => {}
                1 => raw(writer, 0x000c, &[0x40, 0]),
                _ => writer.push(&ChannelNumber(number)),
            }
            match flaw {
                2 => {}
                3 => raw(writer, 0x0012, &[0, 3, 0, 0, 0, 0, 0, 0]),
                _ => writer.push(&XorPeerAddress(peer)),
            }
        });
    }
}
