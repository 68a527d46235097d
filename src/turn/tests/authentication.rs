//! RFC 8489 §9.2.4 check by check, and RFC 8656 §5.

use crate::auth::AuthFailure;
use crate::stun::attribute::{
    ChannelNumber, Lifetime, Nonce, Realm, RequestedTransport, Software, Username, XorPeerAddress, XorRelayedAddress,
};
use crate::stun::{AttributeType, Class, EncodeAttribute, FingerprintStatus, MessageWriter, Method, TransactionId};
use crate::turn::contract::SocketIndex;
use crate::turn::tests::support::*;
use crate::turn::{AuthCause, DropReason, Event, FromClient};

/// What a 401 and a 438 consist of (RFC 8489 §9.2.4).
pub(crate) const CHALLENGE: [AttributeType; 4] =
    [AttributeType::ERROR_CODE, AttributeType::REALM, AttributeType::NONCE, AttributeType::PASSWORD_ALGORITHMS];

const METHODS: [Method; 4] = [Method::ALLOCATE, Method::REFRESH, Method::CREATE_PERMISSION, Method::CHANNEL_BIND];

/// What the log says when the next request fails.
fn logged_failure(world: &mut World) -> AuthFailure {
    match world.event() {
        Event::AuthenticationFailed { cause: AuthCause::Failure(failure), .. } => failure,
        other => panic!("a failed authentication is expected in the log, not {other:?}"),
    }
}

// No MESSAGE-INTEGRITY → 401 with REALM, NONCE and PASSWORD-ALGORITHMS. Nothing is logged: every client begins so.
#[test]
fn request_without_credentials_is_401_with_realm_nonce_and_algorithms_alone() {
    let mut world = World::new();
    let client = world.client(1);
    for method in METHODS {
        let request = plain(Class::Request, method, &[&RequestedTransport::UDP]);
        let answer = world.answer_to(&client.tuple, &request);
        assert_eq!(answer.code(), Some(401));
        assert_eq!(answer.kinds(), CHALLENGE);
        assert_eq!(answer.get(), Some(Realm(REALM)));
        assert_eq!(answer.nonce(), Some(client.nonce.clone()));
    }
    assert_eq!(world.footprint(), NOTHING);
}

// A forged source must not find an amplifier here: with 28 bytes of IP and UDP header on both sides the smallest
// request that gets this answer, 48 bytes, is answered with 140.
#[test]
fn the_answer_to_a_stranger_is_small() {
    let mut world = World::new();
    let tuple = world.client(1).tuple;
    let request = plain(Class::Request, Method::ALLOCATE, &[]);
    let answer = world.answer_to(&tuple, &request);
    assert_eq!(answer.bytes.len(), 20 + (4 + 4 + 16) + (4 + REALM.len().next_multiple_of(4)) + (4 + 36) + (4 + 8));
    assert!(answer.bytes.len() + 28 < 3 * (request.len() + 28), "less than three times as long");
}

// MESSAGE-INTEGRITY without USERNAME, REALM or NONCE → 400, without any of them and without integrity.
#[test]
fn integrity_without_username_realm_or_nonce_is_400() {
    let mut world = World::new();
    let client = world.client(1);
    let (username, realm, nonce) = (Username(&client.username), Realm(REALM), Nonce(&client.nonce));
    let all: [&dyn EncodeAttribute; 3] = [&username, &realm, &nonce];
    for method in METHODS {
        for missing in 0..3 {
            let request = write(Class::Request, method, TransactionId::new([1; 12]), |writer| {
                let present = (0..3).filter(|at| *at != missing);
                present.for_each(|at| writer.push(all[at]));
                writer.message_integrity(client.key().as_bytes());
            });
            let answer = world.answer_to(&client.tuple, &request);
            assert_eq!((answer.code(), answer.kinds()), (Some(400), vec![AttributeType::ERROR_CODE]));
        }
    }
    assert_eq!(world.footprint(), NOTHING);
}

#[test]
fn username_that_is_no_text_is_400() {
    let mut world = World::new();
    let client = world.client(1);
    for name in [&[0xff_u8, 0xfe][..], &[b'a'; 764][..]] {
        let request = write(Class::Request, Method::ALLOCATE, TransactionId::new([1; 12]), |writer| {
            writer.push(&Raw(AttributeType::USERNAME, name));
            writer.push(&Realm(REALM));
            writer.push(&Nonce(&client.nonce));
            writer.message_integrity(client.key().as_bytes());
        });
        assert_eq!(world.answer_to(&client.tuple, &request).code(), Some(400));
    }
}

// A USERNAME that is not valid, or an integrity that does not match → 401 with REALM and NONCE.
#[test]
fn unknown_user_and_wrong_password_are_401_and_logged_once() {
    let mut world = World::new();
    let alice = world.client(1);
    let (mut stranger, mut mistaken) = (alice.clone(), alice.clone());
    stranger.username = "mallory".to_owned();
    mistaken.password = "looking-glass".to_owned();
    let mut forger = alice.with_credential("alice", UNIX + 1_000);
    forger.password = "guess".to_owned();
    for method in METHODS {
        for (client, failure) in [
            (&stranger, AuthFailure::UnknownUser),
            (&mistaken, AuthFailure::WrongPassword),
            (&forger, AuthFailure::WrongSecret { tried: 1 }),
        ] {
            let answer = world.ask(client, method, &[&RequestedTransport::UDP]);
            assert_eq!(answer.code(), Some(401));
            assert_eq!(answer.kinds(), CHALLENGE);
            assert_eq!(logged_failure(&mut world), failure);
        }
    }
    assert_eq!(world.footprint(), NOTHING);
}

// Whoever has no nonce of ours may have forged the source address, and must not be able to fill the log.
#[test]
fn nothing_is_logged_without_a_valid_nonce() {
    let mut world = World::new();
    let mut client = world.client(1);
    client.password = "looking-glass".to_owned();
    for nonce in [String::new(), "obMatJos2AAAAsomebody-elses".to_owned(), world.client(2).nonce] {
        client.nonce = nonce;
        assert_eq!(world.refusal(&client, Method::ALLOCATE, &[&RequestedTransport::UDP]), 401);
    }
    client.nonce = world.client(1).nonce;
    world.pass(seconds(NONCE_LIFETIME));
    assert_eq!(world.refusal(&client, Method::ALLOCATE, &[&RequestedTransport::UDP]), 401);
    assert_eq!(world.action(), None);
}

// The NONCE is no longer valid → 438 with a valid one and the REALM.
#[test]
fn stale_foreign_and_borrowed_nonces_are_438_and_the_fresh_one_works() {
    let mut world = World::new();
    let client = world.client(1);
    let mut other_port = client.tuple.client;
    other_port.set_port(5_001);
    let stale = client.nonce.clone();
    world.pass(seconds(NONCE_LIFETIME));
    for nonce in [stale, world.nonce(other_port), world.client(2).nonce, "f//499k954d6OL34oL9FSTvy64sA".to_owned()] {
        for method in METHODS {
            let answer = world.ask(&Client { nonce: nonce.clone(), ..client.clone() }, method, &[]);
            assert_eq!(answer.code(), Some(438));
            assert_eq!(answer.kinds(), CHALLENGE);
            assert_eq!(answer.nonce(), Some(world.nonce(client.tuple.client)));
        }
    }
    assert_eq!(world.footprint(), NOTHING);
    let fresh = Client { nonce: world.nonce(client.tuple.client), ..client };
    world.allocate(&fresh);
}

#[test]
fn a_nonce_lasts_to_the_second() {
    let mut world = World::new();
    let client = world.client(1);
    world.pass(seconds(NONCE_LIFETIME - 1));
    assert_eq!(world.refusal(&client, Method::REFRESH, &[]), 437);
    world.pass(seconds(1));
    assert_eq!(world.refusal(&client, Method::REFRESH, &[]), 438);
}

// RFC 8489 §9.2.4: no NONCE twice, unless for the same source address and port.
#[test]
fn two_clients_are_given_different_nonces() {
    let mut world = World::new();
    let challenge = |world: &mut World, client: &Client| {
        world.answer_to(&client.tuple, &plain(Class::Request, Method::ALLOCATE, &[])).nonce().unwrap()
    };
    let (first, second) = (world.client(1), world.client(2));
    let mut third = world.client(1);
    third.tuple.client.set_port(5_001);
    let nonces = [&first, &second, &third].map(|client| challenge(&mut world, client));
    assert!(nonces[0] != nonces[1] && nonces[0] != nonces[2] && nonces[1] != nonces[2], "{nonces:?}");
    // RFC 8489 §9.2: the cookie and its security feature.
    assert!(nonces.iter().all(|nonce| nonce.starts_with("obMatJos2gAAB")));
}

// An expired credential makes no allocation.
#[test]
fn allocate_with_an_expired_credential_is_401_and_says_so_in_the_log() {
    let mut world = World::new();
    let client = world.client(1).with_credential("carol", UNIX + 10);
    world.pass(seconds(10));
    let answer = world.ask(&client, Method::ALLOCATE, &[&RequestedTransport::UDP]);
    assert_eq!(answer.kinds(), CHALLENGE);
    assert_eq!(answer.code(), Some(401));
    let (username, tuple, cause) = (client.username.clone(), client.tuple, AuthCause::Expired { ago: 0 });
    assert_eq!(world.event(), Event::AuthenticationFailed { username, tuple, cause });
    assert_eq!(world.footprint(), NOTHING);
}

#[test]
fn allocate_with_a_credential_in_its_last_second_is_accepted() {
    let mut world = World::new();
    let client = world.client(1).with_credential("carol", UNIX + 10);
    world.pass(seconds(9));
    world.allocate(&client);
}

// RFC 8656 §5: another username than that of the Allocate request → 441.
#[test]
fn another_username_on_an_allocation_is_441() {
    let mut world = World::new();
    let alice = world.client(1);
    let relay = world.allocate(&alice);
    let before = world.footprint();
    let other = alice.as_user(1);
    assert_eq!(world.refusal(&other, Method::REFRESH, &[&Lifetime(0)]), 441);
    assert_eq!(world.refusal(&other, Method::CREATE_PERMISSION, &[&XorPeerAddress(peer(1))]), 441);
    let bind: [&dyn EncodeAttribute; 2] = [&ChannelNumber(0x4000), &XorPeerAddress(peer(1))];
    assert_eq!(world.refusal(&other, Method::CHANNEL_BIND, &bind), 441);
    assert_eq!(world.footprint(), before);
    assert!(world.peer_packet(relay.id, peer(1), b"in").is_err());
}

// Two credentials of one user are two usernames.
#[test]
fn a_later_credential_of_the_same_user_is_441() {
    let mut world = World::new();
    let client = world.client(1).with_credential("carol", UNIX + 1_000);
    world.allocate(&client);
    let later = client.with_credential("carol", UNIX + 2_000);
    assert_eq!(world.refusal(&later, Method::REFRESH, &[]), 441);
}

// RFC 8656 §5: no allocation → 437, for every method but Allocate.
#[test]
fn requests_without_an_allocation_are_437() {
    let mut world = World::new();
    let client = world.client(1);
    assert_eq!(world.refusal(&client, Method::REFRESH, &[]), 437);
    assert_eq!(world.refusal(&client, Method::REFRESH, &[&Lifetime(0)]), 437);
    assert_eq!(world.refusal(&client, Method::CREATE_PERMISSION, &[&XorPeerAddress(peer(1))]), 437);
    let bind: [&dyn EncodeAttribute; 2] = [&ChannelNumber(0x4000), &XorPeerAddress(peer(1))];
    assert_eq!(world.refusal(&client, Method::CHANNEL_BIND, &bind), 437);
    assert_eq!(world.footprint(), NOTHING);
}

// RFC 8656 §2: the server's side is part of the 5-tuple.
#[test]
fn an_allocation_belongs_to_its_whole_5_tuple() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate(&client);
    for change in [
        |client: &mut Client| client.tuple.server.set_port(3_479),
        |client: &mut Client| {
            client.tuple.server.set_ip("192.0.2.201".parse().unwrap());
        },
    ] {
        let mut elsewhere = client.clone();
        change(&mut elsewhere);
        assert_eq!(world.refusal(&elsewhere, Method::REFRESH, &[]), 437);
    }
}

// RFC 8489 §9.2.4: MESSAGE-INTEGRITY-SHA256 takes precedence; without PASSWORD-ALGORITHM the key is the MD5 one, and
// then the answer has MESSAGE-INTEGRITY.
#[test]
fn sha256_integrity_is_accepted_and_answered_with_sha1() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate(&client);
    let mut seal = |seal: &dyn Fn(&mut MessageWriter<'_>, &[u8])| {
        let transaction = world.transaction();
        let request = client.request_sealed(transaction, Method::REFRESH, &[], |writer, key| seal(writer, key));
        let answer = world.answer_to(&client.tuple, &request);
        if answer.code().is_none() {
            assert!(answer.is_signed_for(&client));
            assert!(!answer.message().contains(AttributeType::MESSAGE_INTEGRITY_SHA256));
        } else {
            assert_eq!(logged_failure(&mut world), AuthFailure::WrongPassword);
        }
        answer.code()
    };
    assert_eq!(seal(&|writer, key| writer.message_integrity_sha256(key)), None);
    assert_eq!(
        seal(&|writer, key| {
            writer.message_integrity(key);
            writer.message_integrity_sha256(key);
        }),
        None
    );
    assert_eq!(
        seal(&|writer, key| {
            writer.message_integrity(key);
            writer.message_integrity_sha256(b"another key");
        }),
        Some(401)
    );
    // RFC 8489 §14.6: TURN allows no truncation.
    assert_eq!(seal(&|writer, _| writer.push(&Raw(AttributeType::MESSAGE_INTEGRITY_SHA256, &[0; 16]))), Some(401));
    assert_eq!(seal(&|writer, _| writer.push(&Raw(AttributeType::MESSAGE_INTEGRITY, &[0; 19]))), Some(401));
}

#[test]
fn authenticated_answers_have_a_fingerprint_where_the_request_has_one() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate(&client);
    for (lifetime, code) in [(600, None), (0, None), (600, Some(437))] {
        let (transaction, lifetime) = (world.transaction(), Lifetime(lifetime));
        let mut request = client.request_sealed(transaction, Method::REFRESH, &[&lifetime], |writer, key| {
            writer.message_integrity(key);
            writer.fingerprint();
        });
        let answer = world.answer_to(&client.tuple, &request);
        assert_eq!((answer.code(), answer.message().fingerprint()), (code, FingerprintStatus::Valid));
        request[24] ^= 1;
        assert_eq!(world.dropped(&client.tuple, &request), DropReason::WrongFingerprint);
        while world.action().is_some() {}
    }
}

// RFC 8656 §5: SOFTWARE in Allocate and Refresh responses; a stranger is not told.
#[test]
fn software_is_told_to_authenticated_clients_in_allocate_and_refresh() {
    let mut world = World::new();
    let client = world.client(1);
    let has_software = |answer: &Answer| answer.get::<Software<'_>>().is_some();
    assert!(has_software(&world.ask(&client, Method::ALLOCATE, &[])));
    world.allocate(&client);
    // RFC 8489 §14.14: who made it, and which version it is.
    let named = Software(concat!("turnserver/", env!("CARGO_PKG_VERSION")));
    assert_eq!(world.ask(&client, Method::REFRESH, &[]).get(), Some(named));
    assert!(has_software(&world.ask(&client, Method::REFRESH, &[])));
    assert!(!has_software(&world.ask(&client, Method::CREATE_PERMISSION, &[&XorPeerAddress(peer(1))])));
}

/// `message` with more attributes behind its end, and the length of its header made to fit.
fn appended(message: &[u8], attributes: &[&dyn EncodeAttribute]) -> Vec<u8> {
    let behind = plain(Class::Request, Method::BINDING, attributes);
    let mut whole = [message, &behind[20..]].concat();
    let length = u16::try_from(whole.len() - 20).unwrap();
    whole[2..4].copy_from_slice(&length.to_be_bytes());
    whole
}

// RFC 8489 §14.5: what follows MESSAGE-INTEGRITY is ignored, except FINGERPRINT and MESSAGE-INTEGRITY-SHA256.
#[test]
fn attributes_behind_the_integrity_are_ignored_in_every_method() {
    let mut world = World::new();
    let client = world.client(1);
    let unknown = Raw(AttributeType::new(0x7abc), &[]);
    let ask = |world: &mut World, method, inside: &[&dyn EncodeAttribute], behind: &[&dyn EncodeAttribute]| {
        let request = appended(&client.request(world.transaction(), method, inside), behind);
        match world.client_packet(&client.tuple, &request) {
            (FromClient::Open(open), _) => world.opened(&request, &open, Ok(())),
            (FromClient::Respond(reply), buffer) => Answer::new(&request, &buffer, &reply),
            (other, _) => panic!("an answer is expected, not {other:?}"),
        }
    };
    // Allocate: no longer lifetime; and what it needs must stand in front.
    assert_eq!(ask(&mut world, Method::ALLOCATE, &[], &[&RequestedTransport::UDP]).code(), Some(400));
    let udp = RequestedTransport::UDP;
    let answer = ask(&mut world, Method::ALLOCATE, &[&udp], &[&Lifetime(3_600), &unknown]);
    assert_eq!((answer.code(), answer.lifetime()), (None, Some(600)));
    assert!(matches!(world.event(), Event::AllocationCreated { lifetime: 600, .. }));
    let (id, _) = world.server.table.find_open(&client.tuple, world.now).unwrap();
    let relay = id.socket(SocketIndex::FIRST);
    // Refresh: neither a longer lifetime nor a deletion.
    for lifetime in [3_600, 0] {
        let answer = ask(&mut world, Method::REFRESH, &[], &[&Lifetime(lifetime), &unknown]);
        assert_eq!((answer.code(), answer.lifetime()), (None, Some(600)));
    }
    // CreatePermission: no second permission.
    let (one, two) = (XorPeerAddress(peer(1)), XorPeerAddress(peer(2)));
    assert_eq!(ask(&mut world, Method::CREATE_PERMISSION, &[&one], &[&two, &unknown]).code(), None);
    assert_eq!(ask(&mut world, Method::CREATE_PERMISSION, &[], &[&two]).code(), Some(400));
    assert!(world.peer_packet(relay, peer(1), b"in").is_ok());
    assert!(world.peer_packet(relay, peer(2), b"in").is_err());
    // ChannelBind: no other channel, no other peer.
    let number = ChannelNumber(0x4000);
    let more: [&dyn EncodeAttribute; 3] = [&ChannelNumber(0x4001), &two, &unknown];
    assert_eq!(ask(&mut world, Method::CHANNEL_BIND, &[&number, &one], &more).code(), None);
    assert_eq!(ask(&mut world, Method::CHANNEL_BIND, &[&number], &[&one]).code(), Some(400));
    assert_eq!(ask(&mut world, Method::CHANNEL_BIND, &[&one], &[&number]).code(), Some(400));
    assert_eq!(world.relayed(&client.tuple, &channel_data(0x4000, b"out")).1, peer(1));
    assert_eq!(world.dropped(&client.tuple, &channel_data(0x4001, b"out")), DropReason::ChannelNotBound);
    // And credentials behind the integrity are none.
    let bare = write(Class::Request, Method::REFRESH, TransactionId::new([1; 12]), |writer| {
        writer.message_integrity(client.key().as_bytes());
    });
    let username = Username(&client.username);
    let credentials: [&dyn EncodeAttribute; 3] = [&username, &Realm(REALM), &Nonce(&client.nonce)];
    assert_eq!(world.answer_to(&client.tuple, &appended(&bare, &credentials)).code(), Some(400));
}

// design: an answer to a source that nobody has seen receive is a gift to whoever forges it.
#[test]
fn a_source_without_a_valid_nonce_gets_few_answers_and_one_with_a_nonce_all() {
    let mut world = World::with(|setup| setup.limits.unverified_responses = 10);
    let client = world.client(1);
    let other = world.client(2);
    let stranger = |world: &mut World, method| {
        let packet = plain(Class::Request, method, &[&RequestedTransport::UDP]);
        match world.client_packet(&client.tuple, &packet).0 {
            FromClient::Respond(_) => true,
            FromClient::Drop(DropReason::ResponseLimit) => false,
            other => panic!("{other:?}"),
        }
    };
    let answered = (0..1_000).filter(|n| {
        let method = if n % 2 == 0 { Method::BINDING } else { Method::ALLOCATE };
        stranger(&mut world, method)
    });
    assert_eq!(answered.count(), 41);
    world.pass(seconds(1));
    assert_eq!((0..100).filter(|_| stranger(&mut world, Method::ALLOCATE)).count(), 10);

    // Who repeats the nonce is not counted, and is not slowed down by the forger; nor is another source.
    for _ in 0..100 {
        assert_eq!(world.refusal(&client, Method::REFRESH, &[]), 437);
    }
    let packet = plain(Class::Request, Method::BINDING, &[]);
    assert!(matches!(world.client_packet(&other.tuple, &packet).0, FromClient::Respond(_)));
    assert_eq!(world.footprint(), NOTHING);
}

// Whoever forges the address of a client whose nonce has expired meanwhile must not be able to cut its call off.
#[test]
fn a_client_with_an_allocation_or_an_expired_nonce_is_answered_whatever_a_forger_sends() {
    let mut world = World::with(|setup| setup.limits.unverified_responses = 10);
    let mut holder = world.client(1);
    world.allocate(&holder);
    holder.nonce = "of another life".to_owned();
    let mut returning = world.client(1);
    returning.tuple.client.set_port(5_001);
    returning.nonce = world.nonce(returning.tuple.client);
    world.unix += NONCE_LIFETIME + 1;

    let mut forged = returning.tuple;
    forged.client.set_port(9);
    let packet = plain(Class::Request, Method::ALLOCATE, &[&RequestedTransport::UDP]);
    while let FromClient::Respond(_) = world.client_packet(&forged, &packet).0 {}

    assert_eq!(world.refusal(&holder, Method::REFRESH, &[]), 438);
    assert_eq!(world.refusal(&returning, Method::REFRESH, &[]), 438);
}

#[test]
fn passwords_cannot_be_tried_faster_than_strangers_are_answered() {
    let mut world = World::with(|setup| setup.limits.unverified_responses = 10);
    let (client, mut guesser) = (world.client(1), world.client(1));
    guesser.password = "a guess".to_owned();
    let mut answered = 0;
    for _ in 0..1_000 {
        let packet = guesser.request(world.transaction(), Method::REFRESH, &[]);
        if let FromClient::Respond(_) = world.client_packet(&guesser.tuple, &packet).0 {
            answered += 1;
        }
    }
    assert_eq!(answered, 41);
    while world.action().is_some() {}
    assert_eq!(world.refusal(&client, Method::REFRESH, &[]), 437);
}

// RFC 8489 §6.3.1: the client may have got either answer, so both have to say the same.
#[test]
fn a_retransmitted_allocate_is_answered_alike_when_the_credential_has_expired_in_between() {
    let mut world = World::new();
    let client = world.client(1).with_credential("alice", UNIX + 5);
    let packet = client.request(world.transaction(), Method::ALLOCATE, &[&RequestedTransport::UDP]);
    let open = world.open_for(&client.tuple, &packet);
    let first = world.opened(&packet, &open, Ok(()));
    assert!(matches!(world.event(), Event::AllocationCreated { .. }));
    world.pass(seconds(10));
    let again = world.answer_to(&client.tuple, &packet);
    assert_eq!((first.code(), again.code()), (None, None));
    assert_eq!(first.get::<XorRelayedAddress>(), again.get::<XorRelayedAddress>());
}
