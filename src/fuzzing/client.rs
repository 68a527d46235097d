//! The client core under a server that sends anything.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::input::Input;
use super::stun::assert_padding_is_zero;
use crate::auth::{KeyAlgorithm, LongTermKey, Secret};
use crate::client::{Algorithms, Allocate, Client, Credentials, Event, Families, Request, RequestId, Settings, Timing};
use crate::stun::attribute::{
    AddressFamily, ErrorCodeAttribute, Lifetime, Nonce, PasswordAlgorithms, Realm, XorMappedAddress, XorRelayedAddress,
};
use crate::stun::{Attribute as _, AttributeType, Class, ErrorCode, Message, MessageWriter, RawAttribute};

/// What a request may cost at most: it is sent once, and again for each of four challenges, each with seven repetitions.
const MOST_SENT: usize = 5 * 7;

const NONCES: [&str; 4] =
    ["a nonce", "obMatJos2gAABAAAAAAAAAAA", "obMatJos2wAABAAAAAAAAAAA", "obMatJos2AAABAAAAAAAAAAA"];
const REALMS: [&str; 2] = ["example.org", "example.net"];

/// Lets a client make requests, and passes messages to it.
pub fn client(data: &[u8]) {
    let mut input = Input::new(data);
    let flags = input.byte();
    let settings = Settings {
        is_connection: flags & 1 != 0,
        timing: Timing::RECOMMENDED,
        algorithms: if flags & 2 != 0 { Algorithms::Rfc8489 } else { Algorithms::Rfc5389 },
        software: (flags & 4 != 0).then(|| "fuzz".to_owned()),
    };
    let credentials = (flags & 8 == 0)
        .then(|| Credentials { username: "alice".to_owned(), password: Secret::new("wonderland").unwrap() });
    let mut run = Run {
        client: Client::new(settings, credentials),
        rng: StdRng::seed_from_u64(7),
        now: Duration::ZERO,
        sent: Vec::new(),
        pending: HashSet::new(),
        requests: 0,
    };
    while !input.is_empty() {
        match input.byte() % 8 {
            0 | 1 => run.request(&mut input),
            2 => {
                let message = input.bytes();
                run.receive(message);
            }
            3 => {
                run.now += Duration::from_millis(u64::from(input.u16()));
                run.expire();
            }
            _ => {
                let message = run.response(&mut input);
                run.receive(&message);
            }
        }
        run.take_outgoing();
    }
    // Each request ends, whatever the server does.
    while let Some(deadline) = run.client.deadline() {
        assert!(deadline >= run.now);
        run.now = deadline;
        run.expire();
        run.take_outgoing();
    }
    assert!(run.pending.is_empty(), "each request has ended, once");
    assert!(run.sent.len() <= run.requests * MOST_SENT, "no server makes a client flood it");
    let _ = format!("{:?}", run.client);
}

struct Run {
    client: Client,
    rng: StdRng,
    now: Duration,
    /// The messages that the client has sent.
    sent: Vec<Vec<u8>>,
    pending: HashSet<RequestId>,
    requests: usize,
}

impl Run {
    fn request(&mut self, input: &mut Input<'_>) {
        if self.requests == 32 {
            return;
        }
        let choice = input.byte();
        let peer = SocketAddr::from(([192, 0, 2, choice >> 4], 7_000));
        let request = match choice % 8 {
            0 => Request::Binding,
            1 | 2 => Request::Allocate(Allocate {
                families: match choice >> 4 & 3 {
                    0 => Families::Unstated,
                    1 => Families::One(AddressFamily::V6),
                    _ => Families::Both,
                },
                even_port: (choice >> 6 == 1).then_some(true),
                ..Allocate::default()
            }),
            3 => Request::Refresh(600),
            4 => Request::CreatePermission(vec![peer]),
            5 => Request::ChannelBind { channel: 0x4000 + u16::from(choice >> 6), peer },
            6 => Request::CreatePermission(vec![peer; 600]),
            _ => Request::Refresh(0),
        };
        if let Ok(id) = self.client.request(request, self.now, &mut self.rng) {
            self.requests += 1;
            assert!(self.pending.insert(id), "each request has an ID of its own");
        }
    }

    fn receive(&mut self, message: &[u8]) {
        let event = self.client.receive(message, self.now, &mut self.rng);
        match event {
            Some(Event::Data { data, .. }) => {
                let within = message.windows(data.len().max(1)).any(|part| part == data) || data.is_empty();
                assert!(within, "data is a part of the message");
            }
            Some(Event::Finished(id, result)) => {
                if let Err(failure) = &result {
                    assert!(!failure.to_string().contains(char::is_control), "{failure:?} is printable");
                }
                assert!(self.pending.remove(&id), "a request ends once");
            }
            Some(Event::Icmp { .. }) | None => {}
        }
    }

    fn expire(&mut self) {
        while let Some(event) = self.client.expire(self.now) {
            let Event::Finished(id, Err(failure)) = event else { panic!("time ends requests only") };
            let _ = failure.to_string();
            assert!(self.pending.remove(&id), "a request ends once");
        }
    }

    fn take_outgoing(&mut self) {
        while let Some(message) = self.client.transmit() {
            let parsed = Message::parse(&message).expect("a client sends messages");
            assert_eq!(parsed.class(), Class::Request);
            assert_padding_is_zero(&message);
            self.sent.push(message);
        }
    }

    /// Returns a response to one of the requests.
    fn response(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        let (which, kind, content) = (input.byte(), input.byte(), input.byte());
        let Some(at) = self.sent.len().checked_sub(1 + usize::from(which % 8)) else { return Vec::new() };
        let request = Message::parse(&self.sent[at]).expect("a client sends messages");
        const CODES: [u16; 8] = [401, 438, 401, 438, 300, 441, 437, 508];
        let class = if kind & 1 == 0 { Class::Error } else { Class::Success };
        let mut buffer = vec![0; 4_000];
        let mut writer = MessageWriter::new(&mut buffer, class, request.method(), request.transaction_id());
        let (realm, nonce) = (REALMS[usize::from(content >> 2 & 1)], NONCES[usize::from(content & 3)]);
        if class == Class::Error {
            let code = ErrorCode::new(CODES[usize::from(kind >> 1 & 7)]).unwrap();
            writer.push(&ErrorCodeAttribute { code, reason: "because" });
        }
        if content & 8 == 0 {
            writer.push(&Realm(realm));
            writer.push(&Nonce(nonce));
        }
        let listed: &[u8] = match content >> 6 {
            0 => &[0, 2, 0, 0, 0, 1, 0, 0],
            1 => &[0, 1, 0, 0],
            2 => &[0, 7, 0, 1, 9, 0, 0, 0],
            _ => &[],
        };
        if let (true, Ok(_)) = (content & 0x20 == 0, PasswordAlgorithms::decode(listed, request.transaction_id())) {
            writer.push(&RawAttribute { kind: AttributeType::PASSWORD_ALGORITHMS, value: listed });
        }
        if content & 0x10 == 0 {
            writer.push(&XorMappedAddress(SocketAddr::from(([192, 0, 2, 9], 9))));
            writer.push(&XorRelayedAddress(SocketAddr::from(([192, 0, 2, 10], 10))));
            writer.push(&Lifetime(600));
        }
        for _ in 0..kind >> 6 {
            writer.push(&RawAttribute { kind: AttributeType::new(input.u16()), value: input.bytes() });
        }
        let by = |algorithm| LongTermKey::derive_by(algorithm, "alice", realm, b"wonderland");
        match kind >> 4 & 3 {
            0 => {}
            1 => writer.message_integrity(by(KeyAlgorithm::Md5).as_bytes()),
            2 => writer.message_integrity_sha256(by(KeyAlgorithm::Sha256).as_bytes()),
            _ => writer.message_integrity_sha256(by(KeyAlgorithm::Md5).as_bytes()),
        }
        writer.finish().map(<[u8]>::to_vec).unwrap_or_default()
    }
}
