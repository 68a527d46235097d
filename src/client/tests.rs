//! A client and a server that each test plays itself.

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::*;
use crate::auth::{KeyAlgorithm, LongTermKey, Secret, userhash};
use crate::stun::attribute::{
    AddressErrorCode, AddressFamily, ChannelNumber, ErrorCodeAttribute, Lifetime, Nonce, PasswordAlgorithm,
    PasswordAlgorithms, RequestedAddressFamily, Userhash, Username, XorMappedAddress, XorRelayedAddress,
};
use crate::stun::{Attribute, AttributeType, EncodeAttribute, IntegrityStatus, RawAttribute};

const REALM: &str = "example.org";
const NONCE: &str = "a nonce";
/// A nonce that announces password algorithms and username anonymity.
const RFC8489_NONCE: &str = "obMatJos2wAADrest";
const START: Duration = Duration::from_secs(5);

struct World {
    client: Client,
    rng: StdRng,
    now: Duration,
    /// The key of the server.
    key: LongTermKey,
}

fn settings(is_connection: bool, algorithms: Algorithms) -> Settings {
    Settings { is_connection, timing: Timing::RECOMMENDED, algorithms, software: None }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn peer() -> SocketAddr {
    address("192.0.2.7:7000")
}

impl World {
    fn with(settings: Settings) -> Self {
        let credentials = Credentials { username: "ann".to_owned(), password: Secret::new("pass").unwrap() };
        Self {
            client: Client::new(settings, Some(credentials)),
            rng: StdRng::seed_from_u64(7),
            now: START,
            key: LongTermKey::derive("ann", REALM, b"pass"),
        }
    }

    fn new() -> Self {
        Self::with(settings(false, Algorithms::Rfc5389))
    }

    fn request(&mut self, request: Request) -> (RequestId, Vec<u8>) {
        let id = self.client.request(request, self.now, &mut self.rng).unwrap();
        (id, self.sent())
    }

    /// Returns the one message that the client sends.
    fn sent(&mut self) -> Vec<u8> {
        let message = self.client.transmit().expect("a message");
        assert_eq!(self.client.transmit(), None);
        message
    }

    fn receive<'m>(&mut self, message: &'m [u8]) -> Option<Event<'m>> {
        self.client.receive(message, self.now, &mut self.rng)
    }

    /// Responds with `attributes`, and with MESSAGE-INTEGRITY by the key of the server.
    fn respond(&self, request: &[u8], class: Class, attributes: &[&dyn Push]) -> Vec<u8> {
        response(request, class, attributes, |writer| writer.message_integrity(self.key.as_bytes()))
    }

    /// Requests, and responds to the signed request after the challenge. Returns how it ends.
    fn exchange(&mut self, request: Request, class: Class, attributes: &[&dyn Push]) -> Result<Success, Failure> {
        let (id, first) = self.request(request);
        let signed = if self.client.session().is_none() {
            assert_eq!(self.receive(&challenge(&first, REALM, NONCE)), None);
            self.sent()
        } else {
            first
        };
        let response = self.respond(&signed, class, attributes);
        match self.receive(&response) {
            Some(Event::Finished(finished, result)) if finished == id => result,
            other => panic!("{other:?}"),
        }
    }
}

/// An attribute of any type.
trait Push {
    fn push(&self, writer: &mut MessageWriter<'_>);
}

impl<A: EncodeAttribute> Push for A {
    fn push(&self, writer: &mut MessageWriter<'_>) {
        writer.push(self);
    }
}

fn response(request: &[u8], class: Class, attributes: &[&dyn Push], end: impl Fn(&mut MessageWriter<'_>)) -> Vec<u8> {
    let request = Message::parse(request).unwrap();
    write_message(class, request.method(), request.transaction_id(), 2_048, |writer| {
        attributes.iter().for_each(|attribute| attribute.push(writer));
        end(writer);
    })
    .unwrap()
}

fn unsigned(request: &[u8], class: Class, attributes: &[&dyn Push]) -> Vec<u8> {
    response(request, class, attributes, |_| {})
}

fn error(code: ErrorCode) -> ErrorCodeAttribute<'static> {
    ErrorCodeAttribute::new(code)
}

fn challenge(request: &[u8], realm: &str, nonce: &str) -> Vec<u8> {
    unsigned(request, Class::Error, &[&error(ErrorCode::UNAUTHENTICATED), &Realm(realm), &Nonce(nonce)])
}

fn get<'a, A: Attribute<'a>>(message: &'a [u8]) -> Option<A> {
    Message::parse(message).unwrap().get().unwrap()
}

fn relayed(relayed: &'static str) -> [Box<dyn Push>; 3] {
    [
        Box::new(XorRelayedAddress(address(relayed))),
        Box::new(XorMappedAddress(address("198.51.100.1:4000"))),
        Box::new(Lifetime(600)),
    ]
}

fn pushes(attributes: &[Box<dyn Push>]) -> Vec<&dyn Push> {
    attributes.iter().map(AsRef::as_ref).collect()
}

const ALLOCATE: Request = Request::Allocate(Allocate {
    families: Families::Unstated,
    lifetime: None,
    dont_fragment: false,
    even_port: None,
    reservation: None,
});

fn allocate(families: Families) -> Request {
    Request::Allocate(Allocate { families, ..Allocate::default() })
}

#[test]
fn a_binding_request_has_no_credentials_and_returns_the_mapped_address() {
    let mut world = World::new();
    let (id, request) = world.request(Request::Binding);
    assert_eq!(Message::parse(&request).unwrap().attributes().count(), 0);
    let mapped = address("198.51.100.1:4000");
    let response = unsigned(&request, Class::Success, &[&XorMappedAddress(mapped)]);
    assert_eq!(world.receive(&response), Some(Event::Finished(id, Ok(Success::Binding(mapped)))));
    assert_eq!((world.receive(&response), world.client.deadline()), (None, None), "the request has ended");
}

#[test]
fn a_challenge_is_answered_and_later_requests_are_signed_at_once() {
    let mut world = World::new();
    let (id, first) = world.request(ALLOCATE);
    assert_eq!(get::<Username<'_>>(&first), None);
    assert_eq!(world.receive(&challenge(&first, REALM, NONCE)), None);
    let signed = world.sent();
    let message = Message::parse(&signed).unwrap();
    assert_ne!(message.transaction_id(), Message::parse(&first).unwrap().transaction_id());
    assert_eq!(message.verify_integrity(world.key.as_bytes()), IntegrityStatus::Valid);
    assert_eq!(
        (get(&signed), get(&signed), get(&signed)),
        (Some(Username("ann")), Some(Realm(REALM)), Some(Nonce(NONCE)))
    );
    let response = world.respond(&signed, Class::Success, &pushes(&relayed("203.0.113.1:50000")));
    let allocation = Allocation {
        relayed: vec![address("203.0.113.1:50000")],
        mapped: address("198.51.100.1:4000"),
        lifetime: Duration::from_secs(600),
        reservation: None,
        refused: None,
    };
    assert_eq!(world.receive(&response), Some(Event::Finished(id, Ok(Success::Allocate(allocation)))));
    let (_, refresh) = world.request(Request::Refresh(0));
    assert_eq!(Message::parse(&refresh).unwrap().verify_integrity(world.key.as_bytes()), IntegrityStatus::Valid);
    assert_eq!(get(&refresh), Some(Lifetime(0)));
}

// RFC 8489 §9.2.5
#[test]
fn a_challenge_of_signed_requests_is_answered_only_for_another_realm_and_not_forever() {
    let mut world = World::new();
    let (id, first) = world.request(ALLOCATE);
    world.receive(&challenge(&first, REALM, NONCE));
    let mut signed = world.sent();
    for round in 0..CHALLENGES - 1 {
        let realm = format!("realm {round}");
        assert_eq!(world.receive(&challenge(&signed, &realm, NONCE)), None);
        signed = world.sent();
        let key = LongTermKey::derive("ann", &realm, b"pass");
        assert_eq!(Message::parse(&signed).unwrap().verify_integrity(key.as_bytes()), IntegrityStatus::Valid);
    }
    let last = challenge(&signed, "one more realm", NONCE);
    let Some(Event::Finished(ended, Err(Failure::CredentialsRefused { realm, rejection }))) = world.receive(&last)
    else {
        panic!("the client goes on");
    };
    assert_eq!((ended, realm.as_str(), rejection.code), (id, "realm 2", ErrorCode::UNAUTHENTICATED));
}

#[test]
fn refused_credentials_end_the_request_with_the_realm() {
    for code in [ErrorCode::UNAUTHENTICATED, ErrorCode::WRONG_CREDENTIALS] {
        let mut world = World::new();
        let result = world.exchange(ALLOCATE, Class::Error, &[&error(code), &Realm(REALM), &Nonce("next")]);
        let Err(Failure::CredentialsRefused { realm, rejection }) = result else { panic!("{result:?}") };
        assert_eq!((realm.as_str(), rejection.code), (REALM, code));
    }
}

#[test]
fn a_client_without_credentials_says_which_realm_wants_them() {
    let mut world = World::new();
    world.client = Client::new(settings(false, Algorithms::Rfc5389), None);
    let (id, first) = world.request(ALLOCATE);
    let failure = Failure::CredentialsRequired { realm: REALM.to_owned() };
    assert_eq!(world.receive(&challenge(&first, REALM, NONCE)), Some(Event::Finished(id, Err(failure))));
}

#[test]
fn a_stale_nonce_is_replaced_but_not_forever() {
    let mut world = World::new();
    let (_, first) = world.request(ALLOCATE);
    world.receive(&challenge(&first, REALM, NONCE));
    let mut signed = world.sent();
    let stale = |request: &[u8], nonce: &str| {
        unsigned(request, Class::Error, &[&error(ErrorCode::STALE_NONCE), &Realm(REALM), &Nonce(nonce)])
    };
    for round in 1..CHALLENGES {
        let nonce = format!("nonce {round}");
        assert_eq!(world.receive(&stale(&signed, &nonce)), None);
        signed = world.sent();
        assert_eq!(get(&signed), Some(Nonce(&nonce)));
    }
    let last = stale(&signed, "one more nonce");
    let event = world.receive(&last);
    assert!(matches!(event, Some(Event::Finished(_, Err(Failure::StaleNonces { nonces: CHALLENGES })))), "{event:?}");
}

// RFC 8489 §9.2.5: also a 400 without integrity.
#[test]
fn a_response_that_is_not_authentic_counts_as_lost_on_udp_and_ends_the_request_on_a_connection() {
    let other = LongTermKey::derive("ann", REALM, b"another password");
    let wrong = |writer: &mut MessageWriter<'_>| writer.message_integrity(other.as_bytes());
    let attributes = relayed("203.0.113.1:50000");
    for is_connection in [false, true] {
        for (class, attributes, is_wrong, expected) in [
            (Class::Success, pushes(&attributes), false, Discarded::Unauthenticated(None)),
            (Class::Success, pushes(&attributes), true, Discarded::WrongIntegrity),
            (
                Class::Error,
                vec![&error(ErrorCode::BAD_REQUEST) as &dyn Push],
                false,
                Discarded::Unauthenticated(Some(ErrorCode::BAD_REQUEST)),
            ),
        ] {
            let mut world = World::with(settings(is_connection, Algorithms::Rfc5389));
            let (id, first) = world.request(ALLOCATE);
            world.receive(&challenge(&first, REALM, NONCE));
            let signed = world.sent();
            let forged = response(&signed, class, &attributes, |writer| {
                if is_wrong {
                    wrong(writer);
                }
            });
            let ended = Event::Finished(id, Err(Failure::NotAuthentic(expected)));
            if is_connection {
                assert_eq!(world.receive(&forged), Some(ended));
                continue;
            }
            assert_eq!(world.receive(&forged), None);
            for transmission in 2..=7 {
                world.now = world.client.deadline().unwrap();
                assert_eq!(world.client.expire(world.now), None);
                assert_eq!(world.sent(), signed, "{transmission}");
            }
            world.now = world.client.deadline().unwrap();
            assert_eq!(world.client.expire(world.now), Some(ended));
            assert_eq!(world.client.deadline(), None);
        }
    }
}

#[test]
fn a_server_that_lists_algorithms_gets_the_first_supported_one_and_a_hashed_username() {
    let unknown = PasswordAlgorithm { algorithm: 9, parameters: b"abc" };
    let offered = [unknown, PasswordAlgorithm::SHA256, PasswordAlgorithm::MD5];
    let attributes: [&dyn Push; 4] =
        [&error(ErrorCode::UNAUTHENTICATED), &Realm(REALM), &Nonce(RFC8489_NONCE), &PasswordAlgorithms::new(&offered)];
    let mut world = World::with(settings(false, Algorithms::Rfc8489));
    let (id, first) = world.request(Request::Refresh(60));
    let challenge = unsigned(&first, Class::Error, &attributes);
    assert_eq!(world.receive(&challenge), None);
    let signed = world.sent();
    let key = LongTermKey::derive_by(KeyAlgorithm::Sha256, "ann", REALM, b"pass");
    let message = Message::parse(&signed).unwrap();
    assert_eq!(message.verify_integrity_sha256(key.as_bytes()), IntegrityStatus::Valid);
    assert_eq!(message.verify_integrity(key.as_bytes()), IntegrityStatus::Absent);
    assert_eq!(get(&signed), Some(Userhash(&userhash("ann", REALM))));
    assert_eq!(get(&signed), Some(PasswordAlgorithm::SHA256));
    assert_eq!(get(&signed), Some(PasswordAlgorithms::new(&offered)), "repeated as it came");
    // The server must use MESSAGE-INTEGRITY-SHA256, too.
    let bid_down = response(&signed, Class::Success, &[], |writer| writer.message_integrity(key.as_bytes()));
    assert_eq!(world.receive(&bid_down), None);
    let right = response(&signed, Class::Success, &[], |writer| writer.message_integrity_sha256(key.as_bytes()));
    assert_eq!(world.receive(&right), Some(Event::Finished(id, Ok(Success::Refresh(None)))));
    // A client like a browser does not look at the list.
    let mut browser = World::new();
    let (_, first) = browser.request(Request::Refresh(60));
    assert_eq!(browser.receive(&unsigned(&first, Class::Error, &attributes)), None);
    let signed = browser.sent();
    assert_eq!(get(&signed), Some(Username("ann")));
    assert_eq!(Message::parse(&signed).unwrap().verify_integrity(browser.key.as_bytes()), IntegrityStatus::Valid);
}

// RFC 8489 §9.2.5
#[test]
fn a_challenge_without_the_announced_or_without_supported_algorithms_is_not_answered() {
    let unknown =
        [PasswordAlgorithm { algorithm: 9, parameters: &[] }, PasswordAlgorithm { algorithm: 77, parameters: &[] }];
    for (offered, expected) in [
        (None, Failure::AlgorithmsRemoved),
        (Some(PasswordAlgorithms::new(&unknown)), Failure::NoCommonAlgorithm(vec![9, 77])),
    ] {
        let mut world = World::with(settings(false, Algorithms::Rfc8489));
        let (id, first) = world.request(ALLOCATE);
        let challenge = response(&first, Class::Error, &[], |writer| {
            writer.push(&error(ErrorCode::UNAUTHENTICATED));
            writer.push(&Realm(REALM));
            writer.push(&Nonce(RFC8489_NONCE));
            if let Some(offered) = &offered {
                writer.push(offered);
            }
        });
        assert_eq!(world.receive(&challenge), Some(Event::Finished(id, Err(expected))));
        assert_eq!(world.client.transmit(), None);
    }
}

#[test]
fn a_referral_names_the_other_server() {
    let mut world = World::new();
    let (id, request) = world.request(ALLOCATE);
    let servers = [address("192.0.2.9:3478"), address("[2001:db8::9]:3478")];
    let attributes: [&dyn Push; 4] = [
        &error(ErrorCode::TRY_ALTERNATE),
        &AlternateServer(servers[0]),
        &AlternateServer(servers[1]),
        &AlternateDomain("other.example"),
    ];
    let referral = unsigned(&request, Class::Error, &attributes);
    let failure = Failure::TryAlternate { servers: servers.to_vec(), domain: Some("other.example".to_owned()) };
    assert_eq!(world.receive(&referral), Some(Event::Finished(id, Err(failure))));
}

// RFC 8489 §10: the integrity of a 300 may be absent. §9.2.5: a wrong one is discarded, and so is any other error that
// the server demonstrably has not sent, readable or not.
#[test]
fn a_forged_error_ends_no_signed_request() {
    let other = LongTermKey::derive("ann", REALM, b"another password");
    let to = AlternateServer(address("192.0.2.9:3478"));
    let (alternate, mismatch) = (error(ErrorCode::TRY_ALTERNATE), error(ErrorCode::WRONG_CREDENTIALS));
    let unreadable = RawAttribute { kind: AttributeType::ERROR_CODE, value: &[0, 0, 9, 99] };
    let errors: [(Vec<&dyn Push>, bool); 6] = [
        (vec![&alternate, &to], true),
        (vec![&mismatch, &Realm("example.net"), &Nonce(NONCE)], true),
        (vec![&mismatch, &Realm("example.net"), &Nonce(NONCE)], false),
        (vec![&unreadable], true),
        (vec![&unreadable], false),
        (vec![], false),
    ];
    for (attributes, is_signed) in errors {
        let mut world = World::new();
        let (id, first) = world.request(ALLOCATE);
        world.receive(&challenge(&first, REALM, NONCE));
        let signed = world.sent();
        let forged = response(&signed, Class::Error, &attributes, |writer| {
            if is_signed {
                writer.message_integrity(other.as_bytes());
            }
        });
        assert_eq!(world.receive(&forged), None);
        assert_eq!(world.client.transmit(), None);
        // The server's own is believed, and a 300 without integrity.
        let (own, unsigned) =
            (world.respond(&signed, Class::Error, &[&alternate, &to]), [&alternate as &dyn Push, &to]);
        let own = if is_signed { own } else { response(&signed, Class::Error, &unsigned, |_| {}) };
        let failure = Failure::TryAlternate { servers: vec![to.0], domain: None };
        assert_eq!(world.receive(&own), Some(Event::Finished(id, Err(failure))));
    }
}

#[test]
fn an_allocation_must_have_the_requested_families() {
    let v6 = XorRelayedAddress(address("[2001:db8::5]:50000"));
    let mut world = World::new();
    let mut result = |families, more: &[&dyn Push]| {
        let attributes = relayed("203.0.113.1:50000");
        world.exchange(allocate(families), Class::Success, &[pushes(&attributes).as_slice(), more].concat())
    };
    assert_eq!(result(Families::One(AddressFamily::V6), &[]), Err(Failure::FamilyMissing(AddressFamily::V6)));
    assert_eq!(result(Families::Both, &[]), Err(Failure::FamilyMissing(AddressFamily::V6)));
    let both = result(Families::Both, &[&v6]).unwrap();
    assert!(matches!(&both, Success::Allocate(allocation) if allocation.relayed.len() == 2), "{both:?}");
    let code = ErrorCode::ADDRESS_FAMILY_NOT_SUPPORTED;
    let refusal = AddressErrorCode { family: AddressFamily::V6, code, reason: "no" };
    let refused = result(Families::Both, &[&refusal]).unwrap();
    let Success::Allocate(allocation) = refused else { panic!("{refused:?}") };
    assert_eq!(allocation.refused, Some((AddressFamily::V6, code)));
}

#[test]
fn requests_contain_what_was_asked_for() {
    let mut world = World::new();
    world.exchange(ALLOCATE, Class::Success, &pushes(&relayed("203.0.113.1:50000"))).unwrap();
    let options = Allocate {
        families: Families::One(AddressFamily::V6),
        lifetime: Some(700),
        dont_fragment: true,
        even_port: Some(true),
        reservation: Some([9; 8]),
    };
    let (_, request) = world.request(Request::Allocate(options));
    let message = Message::parse(&request).unwrap();
    assert_eq!(get(&request), Some(RequestedAddressFamily(AddressFamily::V6)));
    assert_eq!(get(&request), Some(Lifetime(700)));
    assert!(message.contains(AttributeType::DONT_FRAGMENT));
    assert_eq!(get(&request), Some(crate::stun::attribute::EvenPort { reserve_next: true }));
    assert_eq!(get(&request), Some(crate::stun::attribute::ReservationToken([9; 8])));
    let (_, request) = world.request(Request::CreatePermission(vec![peer(), address("192.0.2.8:1")]));
    assert_eq!(Message::parse(&request).unwrap().all::<XorPeerAddress>().count(), 2);
    let (_, request) = world.request(Request::ChannelBind { channel: 0x4001, peer: peer() });
    assert_eq!((get(&request), get(&request)), (Some(ChannelNumber(0x4001)), Some(XorPeerAddress(peer()))));
}

#[test]
fn a_response_that_cannot_be_used_says_what_is_wrong() {
    let mapped = XorMappedAddress(address("198.51.100.1:4000"));
    let strange = RawAttribute { kind: AttributeType::new(0x0055), value: b"1234" };
    let short = RawAttribute { kind: AttributeType::LIFETIME, value: b"12" };
    for (attributes, expected) in [
        (vec![&mapped as &dyn Push, &Lifetime(1)], Failure::Missing(AttributeType::XOR_RELAYED_ADDRESS)),
        (vec![&mapped as &dyn Push], Failure::Missing(AttributeType::LIFETIME)),
        (vec![&strange as &dyn Push], Failure::NotUnderstood(vec![AttributeType::new(0x0055)])),
        (
            vec![&short as &dyn Push],
            Failure::Malformed(AttributeType::LIFETIME, crate::stun::AttributeError::WrongLength),
        ),
    ] {
        assert_eq!(World::new().exchange(ALLOCATE, Class::Success, &attributes), Err(expected));
    }
    let mut world = World::new();
    let result = world.exchange(ALLOCATE, Class::Error, &[&error(ErrorCode::INSUFFICIENT_CAPACITY)]);
    let Err(Failure::Rejected(rejection)) = result else { panic!("{result:?}") };
    assert_eq!(
        (rejection.code, rejection.reason.as_str()),
        (ErrorCode::INSUFFICIENT_CAPACITY, "Insufficient Capacity")
    );
}

#[test]
fn responses_to_other_requests_are_ignored() {
    let mut world = World::new();
    let (_, request) = world.request(Request::Binding);
    let mut other = unsigned(&request, Class::Success, &[&XorMappedAddress(peer())]);
    other[19] ^= 1;
    assert_eq!(world.receive(&other), None);
    let transaction = Message::parse(&request).unwrap().transaction_id();
    let allocate = write_message(Class::Success, Method::ALLOCATE, transaction, 64, |_| {}).unwrap();
    for message in [&allocate as &[u8], &request, b"", b"\0", b"GET / HTTP/1.1\r\n"] {
        assert_eq!(world.receive(message), None);
    }
    assert!(world.client.deadline().is_some(), "the request still waits");
}

#[test]
fn data_and_icmp_errors_name_their_peer() {
    let mut world = World::new();
    let bind = Request::ChannelBind { channel: 0x4001, peer: peer() };
    let channel_data = world.client.channel_data(0x4001, b"hello").unwrap();
    assert_eq!(world.receive(&channel_data), None, "the channel is not bound");
    world.exchange(bind, Class::Success, &[]).unwrap();
    let data = Event::Data { peer: peer(), channel: Some(0x4001), data: b"hello" };
    assert_eq!(world.receive(&channel_data), Some(data));
    let indication = |method, attributes: &[&dyn Push]| {
        write_message(Class::Indication, method, TransactionId::new([1; 12]), 256, |writer| {
            attributes.iter().for_each(|attribute| attribute.push(writer));
        })
        .unwrap()
    };
    let from = XorPeerAddress(address("192.0.2.8:9"));
    let message = indication(Method::DATA, &[&from, &Data(b"world")]);
    assert_eq!(world.receive(&message), Some(Event::Data { peer: from.0, channel: None, data: b"world" }));
    let icmp = Icmp { kind: 3, code: 4, data: 1400 };
    let message = indication(Method::DATA, &[&from, &icmp]);
    assert_eq!(world.receive(&message), Some(Event::Icmp { peer: from.0, icmp }));
    for message in [indication(Method::DATA, &[&from]), indication(Method::SEND, &[&from, &Data(b"x")])] {
        assert_eq!(world.receive(&message), None);
    }
    let sent = Client::send_indication(peer(), b"hello", &mut world.rng).unwrap();
    assert_eq!((get(&sent), get(&sent)), (Some(XorPeerAddress(peer())), Some(Data(b"hello"))));
    assert_eq!(Client::send_indication(peer(), &[0; 70_000], &mut world.rng), None);
    assert_eq!(world.client.channel_data(0x4001, &[0; 70_000]), None);
}

#[test]
fn channel_data_is_padded_on_a_connection_only() {
    for (is_connection, length) in [(false, 9), (true, 12)] {
        let world = World::with(settings(is_connection, Algorithms::Rfc5389));
        let message = world.client.channel_data(0x4000, b"hello").unwrap();
        assert_eq!(message.len(), length);
        assert_eq!(message[..4], [0x40, 0, 0, 5]);
    }
}

#[test]
fn a_request_that_does_not_fit_has_not_begun() {
    let mut world = World::new();
    let result = world.client.request(Request::CreatePermission(vec![peer(); 400]), world.now, &mut world.rng);
    assert_eq!(result, Err(Failure::TooLong));
    assert_eq!((world.client.transmit(), world.client.deadline()), (None, None));
}

#[test]
fn debug_shows_no_credential() {
    let mut world = World::new();
    let (_, first) = world.request(ALLOCATE);
    world.receive(&challenge(&first, REALM, "nonce-of-the-server"));
    let session = format!("{:?}", world.client.session().unwrap());
    assert!(session.contains(REALM) && !session.contains("nonce-of-the-server"), "{session}");
    let client = format!("{:?}", world.client.credentials);
    assert!(client.contains("ann") && !client.contains("pass\""), "{client}");
}
