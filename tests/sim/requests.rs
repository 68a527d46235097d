//! The requests of clients, with typical mistakes.

use std::net::SocketAddr;
use std::rc::Rc;

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
    /// Generates the authentication of a request, with typical mistakes.
    fn authentication(&mut self, client: usize) -> (Authentication, Signed) {
        let Some(nonce) = self.clients[client].nonce.clone() else {
            return (Authentication::NONE, Signed::Invalid);
        };
        let mut at = self.clients[client].credential;
        if self.rng.percent(3) {
            at = self.rng.below(self.model.credentials.len());
        }
        let credential = self.model.credentials[at].clone();
        let (listed, named, algorithm) = self.algorithm();
        let mut by = Authentication {
            as_userhash: self.rng.percent(if credential.expires.is_none() { 30 } else { 2 }),
            listed,
            named,
            realm: true,
            nonce: Some(nonce),
            key: Some(credential.key(algorithm)),
            sha256: self.rng.percent(if named.is_some() { 95 } else { 4 }),
            username: Some(credential.username),
        };
        let mut signed = Signed::With(at, algorithm);
        match self.rng.below(80) {
            0 => {
                let unknown = self.setup().unknown_credentials(0x7000_0000)[0].clone();
                (by.key, signed) = (Some(unknown.key(algorithm)), Signed::Invalid);
            }
            1 => {
                let unix = self.now().unix;
                let unknown_credentials = self.setup().unknown_credentials(unix);
                let unknown = unknown_credentials[self.rng.below(unknown_credentials.len())].clone();
                (by.key, signed) = (Some(unknown.key(algorithm)), Signed::Invalid);
                by.username = Some(unknown.username);
            }
            2 => by.username = None,
            3 => by.realm = false,
            4 => by.nonce = None,
            5 => by.nonce = Some("obMatJos2AAAAforged".to_owned()),
            6 => {
                let other = self.rng.below(self.clients.len());
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

    /// Generates the values of PASSWORD-ALGORITHMS and PASSWORD-ALGORITHM, and the algorithm in use.
    fn algorithm(&mut self) -> (Option<&'static [u8]>, Option<&'static [u8]>, KeyAlgorithm) {
        const LISTED: Option<&[u8]> = Some(&[0, 2, 0, 0, 0, 1, 0, 0]);
        const MD5: Option<&[u8]> = Some(&[0, 1, 0, 0]);
        const SHA256: Option<&[u8]> = Some(&[0, 2, 0, 0]);
        match self.rng.below(100) {
            0..=49 => (None, None, KeyAlgorithm::Md5),
            50..=84 => (LISTED, SHA256, KeyAlgorithm::Sha256),
            85..=93 => (LISTED, MD5, KeyAlgorithm::Md5),
            94 => (None, SHA256, KeyAlgorithm::Sha256),
            95 => (LISTED, None, KeyAlgorithm::Md5),
            // A bid-down attack.
            96 => (MD5, MD5, KeyAlgorithm::Md5),
            97 => (MD5, SHA256, KeyAlgorithm::Sha256),
            98 => (LISTED, Some(&[0, 3, 0, 0]), KeyAlgorithm::Sha256),
            _ => (LISTED, Some(&[0, 2, 0]), KeyAlgorithm::Sha256),
        }
    }

    fn request(&mut self, client: usize, method: Method, attributes: impl FnOnce(&mut MessageWriter<'_>)) {
        let (bytes, signed) = self.build_request(client, method, attributes);
        self.client_sends(client, bytes, signed);
    }

    fn build_request(
        &mut self,
        client: usize,
        method: Method,
        attributes: impl FnOnce(&mut MessageWriter<'_>),
    ) -> (Rc<[u8]>, Signed) {
        let (by, signed) = self.authentication(client);
        let (mut id, fingerprint) = (packet::transaction(&mut self.rng), self.rng.percent(25));
        // Another user's request may have the transaction ID that created the allocation.
        let tuple = self.setup().clients[client];
        if let Some(alloc) = self.model.allocs.iter().find(|alloc| alloc.tuple == tuple)
            && by.username.as_ref() != Some(&alloc.username)
            && self.rng.percent(50)
        {
            id = alloc.transaction;
        }
        let odd = self.rng.below(150);
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
        (bytes, signed)
    }

    /// Returns a request that deletes the allocation of a client.
    pub(super) fn deletion(&mut self, client: usize) -> (Rc<[u8]>, Signed) {
        self.build_request(client, Method::REFRESH, |writer| writer.push(&Lifetime(0)))
    }

    fn lifetime(&mut self) -> Option<u32> {
        let lifetime = self.rng.pick(&LIFETIMES);
        self.rng.percent(60).then_some(lifetime)
    }

    pub(super) fn allocate(&mut self) {
        let mut client = self.rng.below(self.clients.len());
        for _ in 0..3 {
            if self.alloc_of(client).is_none() {
                break;
            }
            client = self.rng.below(self.clients.len());
        }
        let v4 = self.setup().relays.iter().any(|relay| relay.bind.is_ipv4());
        let family = match self.rng.below(40) {
            0..=11 => Some(AddressFamily::V6),
            12..=16 => Some(AddressFamily::V4),
            _ if v4 => None,
            _ => Some(AddressFamily::V6),
        };
        let (lifetime, flaw) = (self.lifetime(), self.rng.below(110));
        let tokens: Vec<[u8; 8]> = self.model.reservations.iter().map(|reservation| reservation.token).collect();
        if !tokens.is_empty() && self.rng.percent(35) {
            let token = self.rng.pick(&tokens);
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

    /// Allocates with a token that is valid or almost valid.
    fn claim(&mut self, client: usize, mut token: [u8; 8], lifetime: Option<u32>) {
        let flaw = self.rng.below(20);
        if flaw == 0 {
            let at = self.rng.below(8);
            token[at] ^= 1 << self.rng.below(8);
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
        let (mut lifetime, flaw) = (self.lifetime(), self.rng.below(40));
        if self.setup().churn && self.rng.percent(50) {
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
        let count = if self.rng.percent(70) { 1 } else { self.rng.below(5) };
        let peers: Vec<SocketAddr> = (0..count).map(|_| self.some_peer(client, 25)).collect();
        let malformed = self.rng.percent(1);
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
        let mut number = self.rng.pick(&CHANNELS);
        if !bound.is_empty() && self.rng.percent(35) {
            (number, peer, _) = self.rng.pick(&bound);
        } else if self.rng.percent(10) {
            number = self.rng.pick(&ODD_CHANNELS);
        }
        let flaw = self.rng.below(60);
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
