//! Responses to sources that may be forged: their number, their length, and what they disclose.

use std::collections::BTreeSet;

use crate::stun::attribute::{Lifetime, Nonce, Realm, RequestedTransport, Username, XorPeerAddress};
use crate::stun::{AttributeType, Class, Method, TransactionId};
use crate::turn::tests::support::*;
use crate::turn::{DropReason, Event, FromClient, Outcome, RejectionCode, Transport, Waiting};

const METHODS: [Method; 4] = [Method::ALLOCATE, Method::REFRESH, Method::CREATE_PERMISSION, Method::CHANNEL_BIND];

/// Returns the first request of a client.
fn first_request() -> Vec<u8> {
    plain(Class::Request, Method::ALLOCATE, &[&RequestedTransport::UDP])
}

/// Returns the number of responses to `count` copies of a packet. The others must be dropped for this reason.
fn responses(world: &mut World, client: &Client, packet: &[u8], count: usize, otherwise: DropReason) -> usize {
    let responded = |_: &usize| match world.client_packet(&client.tuple, packet).0 {
        FromClient::Respond(_) => true,
        FromClient::Drop(reason) if reason == otherwise => false,
        other => panic!("{other:?}"),
    };
    (0..count).filter(responded).count()
}

fn waits(client: &Client) -> Event {
    let (username, tuple) = (client.username.clone(), client.tuple);
    Event::SourceWaits { id: None, username, tuple, waiting: Waiting::User }
}

/// Returns the same client with another port.
fn at_port(world: &World, client: &Client, port: u16) -> Client {
    let mut other = client.clone();
    other.tuple.client.set_port(port);
    other.nonce = world.nonce(other.tuple.client);
    other
}

// A source without a valid nonce may be forged.
#[test]
fn binding_and_challenges_have_separate_limits_per_source() {
    let mut world = World::with(|setup| setup.limits.unverified_responses = 10);
    let (client, other) = (world.client(1), world.client(2));
    let binding = plain(Class::Request, Method::BINDING, &[]);
    let limit = DropReason::ResponseLimit;
    assert_eq!(responses(&mut world, &client, &first_request(), 1_000, limit), 40);
    assert_eq!(responses(&mut world, &client, &binding, 1_000, limit), 200);
    world.pass(seconds(1));
    assert_eq!(responses(&mut world, &client, &first_request(), 1_000, limit), 10);
    assert_eq!(responses(&mut world, &client, &binding, 1_000, limit), 50);
    // Valid credentials lift the limit. Another source, and a client on a connection, have their own.
    for _ in 0..1_000 {
        assert_eq!(world.error_code(&client, Method::REFRESH, &[]), 437);
    }
    assert_eq!(responses(&mut world, &other, &first_request(), 1_000, limit), 40);
    let mut connected = client;
    connected.tuple.transport = Transport::Tcp;
    assert_eq!(responses(&mut world, &connected, &first_request(), 1_000, limit), 1_000);
    assert_eq!(world.footprint(), EMPTY);
}

// Workers see different ports of a source. An attacker must not get more from more of them.
#[test]
fn the_workers_share_the_limit_of_a_source() {
    let mut world = World::with(|setup| setup.limits.unverified_responses = 10);
    let client = world.client(1);
    let mut other_worker = world.other_worker();
    let limit = DropReason::ResponseLimit;
    assert_eq!(responses(&mut world, &client, &first_request(), 1_000, limit), 40);
    assert_eq!(responses(&mut other_worker, &client, &first_request(), 1_000, limit), 0);
    // What a client proves to one worker holds for all.
    let neighbour = at_port(&world, &client, 6_000);
    assert_eq!(world.error_code(&neighbour, Method::REFRESH, &[]), 437);
    assert_eq!(responses(&mut other_worker, &client, &first_request(), 10_000, limit), 2 * 10 * 10);
}

// An office, or a carrier's NAT: many clients of one source start at the same time, beside a flood that forges it.
#[test]
fn the_clients_that_a_source_has_proved_let_the_others_in() {
    let mut world = World::with(|setup| setup.limits.unverified_responses = 50);
    let client = world.client(1);
    let first = first_request();
    // The flood has drained what the source has without proof.
    responses(&mut world, &client, &first, 10_000, DropReason::ResponseLimit);
    let mut waiting: Vec<_> = (10_000..13_000).map(|port| at_port(&world, &client, port)).collect();
    let mut rounds = 0;
    while !waiting.is_empty() {
        // RFC 8489 §6.2.1: clients retransmit after 500 ms.
        world.pass(std::time::Duration::from_millis(500));
        rounds += 1;
        waiting.retain(|client| {
            responses(&mut world, &client.clone(), &first, 1, DropReason::ResponseLimit) == 0
                || world.error_code(client, Method::REFRESH, &[]) != 437
        });
        responses(&mut world, &client, &first, 150, DropReason::ResponseLimit);
    }
    assert!(rounds <= 2, "{rounds}");
}

// A client with an allocation sends its next request after minutes.
#[test]
fn a_client_with_an_allocation_lets_others_in_between_its_requests() {
    let mut world = World::with(|setup| setup.limits.unverified_responses = 10);
    let (client, other) = (world.client(1), world.client(2));
    world.allocate(&client);
    world.accept(&client, Method::REFRESH, &[]);
    world.pass(seconds(200));
    let admitted = |world: &mut World, client: &Client| {
        responses(world, &at_port(world, client, 7_000), &first_request(), 1_000, DropReason::ResponseLimit)
    };
    assert!(admitted(&mut world, &client) > 2 * admitted(&mut world, &other));
}

// The proof raises the limit and does not lift it.
#[test]
fn a_nonce_without_valid_credentials_only_raises_the_limit() {
    let mut world = World::with(|setup| setup.limits.unverified_responses = 50);
    let client = world.client(1);
    let no_username = write(Class::Request, Method::ALLOCATE, TransactionId::new([1; 12]), |writer| {
        writer.push(&Nonce(&client.nonce));
        writer.message_integrity(b"some key");
    });
    let got = responses(&mut world, &client, &no_username, 10_000, DropReason::ResponseLimit);
    assert!((2 * 50 * 10..=2 * 50 * 32).contains(&got), "{got}");
    // RFC 8489 §9.2.4: a client with valid credentials gets its 438 all the same.
    world.unix += NONCE_LIFETIME + 1;
    for _ in 0..1_000 {
        assert_eq!(world.error_code(&client, Method::REFRESH, &[]), 438);
    }
}

// An attacker that forges the address of a client must not block the client when its nonce has expired.
#[test]
fn a_forged_flood_does_not_block_a_client_with_an_allocation_or_an_expired_nonce() {
    let mut world = World::with(|setup| setup.limits.unverified_responses = 10);
    let mut holder = world.client(1);
    world.allocate(&holder);
    holder.nonce = "an invalid nonce".to_owned();
    let returning = at_port(&world, &holder, 5_001);
    world.unix += NONCE_LIFETIME + 1;

    let mut forged = returning.clone();
    forged.tuple.client.set_port(9);
    let binding = plain(Class::Request, Method::BINDING, &[]);
    for packet in [first_request(), forged.request(TransactionId::new([4; 12]), Method::REFRESH, &[]), binding.clone()]
    {
        while let FromClient::Respond(_) = world.client_packet(&forged.tuple, &packet).0 {}
    }

    assert_eq!(world.error_code(&holder, Method::REFRESH, &[]), 438);
    assert_eq!(world.error_code(&returning, Method::REFRESH, &[]), 438);
    assert_eq!(world.response_to(&holder.tuple, &binding).code(), None);
}

// The responses to a flood from many forged sources must leave time for data.
#[test]
fn sources_without_proof_share_a_budget_that_clients_with_proof_do_not_need() {
    let mut world = World::with(|setup| setup.limits.unverified_responses = 50);
    let client = world.client(1);
    assert_eq!(world.error_code(&client, Method::REFRESH, &[]), 437);
    let binding = plain(Class::Request, Method::BINDING, &[]);
    let flood = |world: &mut World, packet: &[u8], count: u32| {
        let mut forged = client.clone();
        let sources = (0..count).map(|n| std::net::Ipv4Addr::from(0x0100_0000 + n));
        let mut responded = 0;
        for source in sources {
            forged.tuple.client.set_ip(source.into());
            responded += responses(world, &forged, packet, 1, DropReason::ResponseBudget);
        }
        responded
    };
    // A flood of one kind leaves the other one its share.
    for packet in [&first_request(), &binding] {
        assert_eq!(flood(&mut world, packet, 10_000), 4_096);
    }
    world.pass(std::time::Duration::from_millis(10));
    for packet in [&first_request(), &binding] {
        assert_eq!(flood(&mut world, packet, 10_000), 100);
    }
    // Another client of a source that has proved something, and a client on a connection.
    let neighbour = at_port(&world, &client, 7_000);
    assert_eq!(responses(&mut world, &neighbour, &first_request(), 1, DropReason::ResponseBudget), 1);
    let mut connected = world.client(9);
    connected.tuple.transport = Transport::Tcp;
    assert_eq!(responses(&mut world, &connected, &first_request(), 1, DropReason::ResponseBudget), 1);
}

// RFC 8656 §7.1: REQUESTED-TRANSPORT is required, so every client sends it in its first request.
#[test]
fn only_the_first_request_of_a_client_is_challenged_over_udp() {
    let mut world = World::new();
    let client = world.client(1);
    for method in METHODS {
        for transport in [false, true] {
            let udp = RequestedTransport::UDP;
            let packet =
                if transport { plain(Class::Request, method, &[&udp]) } else { plain(Class::Request, method, &[]) };
            let begins = method == Method::ALLOCATE && transport;
            let (decision, _) = world.client_packet(&client.tuple, &packet);
            assert_eq!(matches!(decision, FromClient::Respond(_)), begins, "{decision:?}");
            assert!(begins || matches!(decision, FromClient::Drop(DropReason::NoCredentials)), "{decision:?}");
        }
    }
    // A client that has proved its source gets its 401.
    let nonce_only = plain(Class::Request, Method::REFRESH, &[&Nonce(&client.nonce)]);
    assert_eq!(world.response_to(&client.tuple, &nonce_only).code(), Some(401));
    world.allocate(&client);
    let bare = plain(Class::Request, Method::REFRESH, &[]);
    assert_eq!(world.response_to(&client.tuple, &bare).code(), Some(401));
}

/// Returns the highest ratio of a response to its request that an unverified source gets, in IP packets over IPv4, in
/// hundredths.
fn gain(realm: &str) -> usize {
    let mut world = World::with(|setup| realm.clone_into(&mut setup.realm));
    let client = Client { nonce: "n".to_owned(), username: "u".to_owned(), ..world.client(1) };
    let mut requests = vec![plain(Class::Request, Method::BINDING, &[]), first_request()];
    let unknown = Raw(AttributeType::new(0x7abc), &[]);
    requests.push(plain(Class::Request, Method::BINDING, &[&unknown]));
    for method in METHODS {
        requests.push(plain(Class::Request, method, &[]));
        requests
            .push(write(Class::Request, method, TransactionId::new([1; 12]), |writer| writer.message_integrity(b"")));
        requests.push(write(Class::Request, method, TransactionId::new([1; 12]), |writer| {
            writer.push(&RequestedTransport::UDP);
            writer.fingerprint();
        }));
        requests.push(write(Class::Request, method, TransactionId::new([1; 12]), |writer| {
            writer.push(&Username("u"));
            writer.push(&Realm(""));
            writer.push(&Nonce(&client.nonce));
            writer.message_integrity(b"");
        }));
    }
    let gains = requests.iter().filter_map(|request| match world.client_packet(&client.tuple, request).0 {
        FromClient::Respond(response) => Some(((response.length + 28) * 100).div_ceil(request.len() + 28)),
        FromClient::Drop(_) => None,
        other => panic!("{other:?}"),
    });
    gains.max().unwrap()
}

// docs/threat-model.md states these figures.
#[test]
fn an_unverified_source_gets_a_small_multiple_of_what_it_sends() {
    // The default realm, a domain name of 31 bytes, the longest realm without a warning, and the longest that the
    // configuration allows: 127 characters of four bytes.
    let realms = ["turnserver".to_owned(), "r".repeat(31), "r".repeat(64), "\u{10437}".repeat(127)];
    assert_eq!(realms.map(|realm| gain(&realm)), [200, 236, 293, 1_086]);
}

// RFC 8489 §9.2.4: integrity without USERNAME → 400; §6.3.1: an unknown attribute → 420.
#[test]
fn an_error_without_a_challenge_is_short_for_an_unauthenticated_client() {
    let mut world = World::new();
    let client = world.client(1);
    let no_username =
        write(Class::Request, Method::ALLOCATE, TransactionId::new([1; 12]), |writer| writer.message_integrity(b""));
    let unknown = plain(Class::Request, Method::BINDING, &[&Raw(AttributeType::new(0x7abc), &[])]);
    for (request, code, list) in [(no_username, 400, 0), (unknown, 420, 8)] {
        let response = world.response_to(&client.tuple, &request);
        assert_eq!((response.code(), response.bytes.len()), (Some(code), 20 + (4 + 4) + list));
    }
}

#[test]
fn a_challenge_is_short() {
    let mut world = World::new();
    let client = world.client(1);
    let response = world.response_to(&client.tuple, &first_request());
    assert_eq!(response.bytes.len(), 20 + (4 + 4) + (4 + REALM.len().next_multiple_of(4)) + (4 + 24) + (4 + 8));
}

// Anyone can make up a nonce, so the response must not show whether the password is right.
#[test]
fn with_a_made_up_nonce_every_password_gets_the_same_response() {
    let mut world = World::new();
    for transport in [Transport::Udp, Transport::Tcp, Transport::Tls] {
        let mut client = world.client(1);
        client.tuple.transport = transport;
        client.nonce = "made up".to_owned();
        let wrong = Client { password: "a guess".to_owned(), ..client.clone() };
        let unknown = Client { username: "nobody".to_owned(), ..client.clone() };
        let transaction = world.transaction();
        let responses: BTreeSet<_> = [client, wrong, unknown]
            .into_iter()
            .map(|client| {
                let request = client.request(transaction, Method::ALLOCATE, &[&RequestedTransport::UDP]);
                let response = world.response_to(&client.tuple, &request);
                assert_eq!(response.outcome, Outcome::Rejected(RejectionCode::StaleNonce));
                response.bytes
            })
            .collect();
        assert_eq!(responses.len(), 1);
    }
}

// RFC 8489 §9.2.4: with an expired nonce of this server, a wrong password is still a 401.
#[test]
fn a_source_that_guesses_passwords_waits_on_every_transport() {
    for transport in [Transport::Udp, Transport::Tcp, Transport::Tls] {
        let mut world = World::with(|setup| setup.limits.failed_authentications = 5);
        let mut client = world.client(1);
        client.tuple.transport = transport;
        let guesser = Client { password: "a guess".to_owned(), ..at_port(&world, &client, 4_000) };
        let holder = at_port(&world, &client, 4_001);
        world.allocate(&holder);
        let (mut rejected, mut logged) = (0, 0);
        for n in 0..1_000 {
            // Half of the guesses have an expired nonce.
            world.unix = UNIX + (n % 2) * NONCE_LIFETIME;
            let packet = guesser.request(world.transaction(), Method::REFRESH, &[&Lifetime(0)]);
            match world.client_packet(&guesser.tuple, &packet) {
                (FromClient::Respond(response), buffer) => {
                    assert_eq!(CheckedResponse::new(&packet, &buffer, &response).code(), Some(401));
                    rejected += 1;
                }
                (FromClient::Drop(DropReason::FailedAuthentications), _) => {}
                (other, _) => panic!("{other:?}"),
            }
            while let Some(action) = world.action() {
                logged += usize::from(action == crate::turn::Action::Log(waits(&guesser)));
            }
        }
        assert_eq!((rejected, logged), (100, 900), "{transport}");
        // Even the right password waits, or else the guesser would learn it.
        world.unix = UNIX;
        let right = client.request(world.transaction(), Method::REFRESH, &[]);
        assert_eq!(world.dropped(&client.tuple, &right), DropReason::FailedAuthentications);
        assert_eq!(world.event(), waits(&client));
        // A client that uses its allocation does not wait, and neither does another source.
        world.accept(&holder, Method::CREATE_PERMISSION, &[&XorPeerAddress(peer(1))]);
        assert_eq!(world.error_code(&world.client(2), Method::REFRESH, &[]), 437);
        world.pass(seconds(1));
        assert_eq!(world.error_code(&client, Method::REFRESH, &[]), 437);
    }
}
