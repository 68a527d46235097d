//! The client core under a server, or somebody in between, that sends anything.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::input::Input;
use crate::auth::{KeyAlgorithm, LongTermKey, Secret};
use crate::client::{
    Algorithms, Allocate, Client, Credentials, Event, Failure, Families, Request, RequestId, Settings, Timing,
};
use crate::stun::attribute::{
    AddressFamily, ErrorCodeAttribute, Lifetime, Nonce, PasswordAlgorithm, PasswordAlgorithms, Realm, XorMappedAddress,
    XorRelayedAddress,
};
use crate::stun::{
    Attribute as _, AttributeType, Class, ErrorCode, IntegrityStatus, Message, MessageWriter, RawAttribute,
};
use crate::test_messages::assert_padding_is_zero;

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
        is_connection: settings.is_connection,
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

/// What the integrity of a response says (RFC 8489 §9.2.5, §10).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Authenticity {
    /// It responds to a request without credentials, or to none.
    Unsigned,
    /// The server has sent it.
    Valid,
    /// A 401 or 438, which has no integrity.
    Challenge,
    /// A 300 without integrity.
    Redirect,
    /// Its integrity is wrong or absent.
    Forged,
}

impl Authenticity {
    /// Whether such a response may end a request.
    fn may_end(self) -> bool {
        self != Self::Forged
    }
}

/// Returns the key of the client.
fn key(algorithm: KeyAlgorithm, realm: &str) -> LongTermKey {
    LongTermKey::derive_by(algorithm, "alice", realm, b"wonderland")
}

struct Run {
    client: Client,
    is_connection: bool,
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
        let (authenticity, is_connection) = (self.authenticity(message), self.is_connection);
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
                let given_up = is_connection && matches!(result, Err(Failure::NotAuthentic(_)));
                assert!(authenticity.may_end() || given_up, "{result:?} is not from the server");
                assert!(self.pending.remove(&id), "a request ends once");
            }
            Some(Event::Icmp { .. }) | None => {}
        }
    }

    /// Judges a message as a response to the request with its transaction ID.
    fn authenticity(&self, message: &[u8]) -> Authenticity {
        let Ok(response) = Message::parse(message) else { return Authenticity::Unsigned };
        let mut sent = self.sent.iter().map(|sent| Message::parse(sent).expect("a client sends messages"));
        let Some(request) = sent.find(|sent| sent.transaction_id() == response.transaction_id()) else {
            return Authenticity::Unsigned;
        };
        let Ok(Some(Realm(realm))) = request.get() else { return Authenticity::Unsigned };
        let named = request.get().expect("a client sends well-formed attributes");
        let algorithm = match named {
            Some(PasswordAlgorithm::SHA256) => KeyAlgorithm::Sha256,
            _ => KeyAlgorithm::Md5,
        };
        let key = key(algorithm, realm);
        let status = if request.contains(AttributeType::MESSAGE_INTEGRITY_SHA256) {
            response.verify_integrity_sha256(key.as_bytes())
        } else {
            assert!(request.contains(AttributeType::MESSAGE_INTEGRITY), "a request with a realm is signed");
            response.verify_integrity(key.as_bytes())
        };
        if status == IntegrityStatus::Valid {
            return Authenticity::Valid;
        }
        let integrity = [AttributeType::MESSAGE_INTEGRITY, AttributeType::MESSAGE_INTEGRITY_SHA256];
        let is_signed = integrity.into_iter().any(|kind| response.contains(kind));
        let error =
            response.get::<ErrorCodeAttribute<'_>>().ok().flatten().filter(|_| response.class() == Class::Error);
        match error.map(|error| error.code) {
            Some(ErrorCode::UNAUTHENTICATED | ErrorCode::STALE_NONCE) => Authenticity::Challenge,
            Some(ErrorCode::TRY_ALTERNATE) if !is_signed => Authenticity::Redirect,
            _ => Authenticity::Forged,
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
        match kind >> 4 & 3 {
            0 => {}
            1 => writer.message_integrity(key(KeyAlgorithm::Md5, realm).as_bytes()),
            2 => writer.message_integrity_sha256(key(KeyAlgorithm::Sha256, realm).as_bytes()),
            _ => writer.message_integrity_sha256(key(KeyAlgorithm::Md5, realm).as_bytes()),
        }
        writer.finish().map(<[u8]>::to_vec).unwrap_or_default()
    }
}
