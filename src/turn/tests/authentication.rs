//! RFC 8489 §9.2.4 check by check, and RFC 8656 §5.

use crate::auth::AuthFailure;
use crate::auth::time_limited::Reading;
use crate::stun::attribute::{
    ChannelNumber, Lifetime, Nonce, Realm, RequestedTransport, Software, Username, XorPeerAddress, XorRelayedAddress,
};
use crate::stun::{AttributeType, Class, EncodeAttribute, FingerprintStatus, MessageWriter, Method, TransactionId};
use crate::turn::contract::SocketIndex;
use crate::turn::tests::support::*;
use crate::turn::{AuthCause, DropReason, Event, FromClient, Transport};

/// The attributes of a 401 and a 438 response (RFC 8489 §9.2.4).
pub(crate) const CHALLENGE: [AttributeType; 4] =
    [AttributeType::ERROR_CODE, AttributeType::REALM, AttributeType::NONCE, AttributeType::PASSWORD_ALGORITHMS];

const METHODS: [Method; 4] = [Method::ALLOCATE, Method::REFRESH, Method::CREATE_PERMISSION, Method::CHANNEL_BIND];

/// Returns the cause in the next log entry, which must be about a failed authentication.
fn logged_failure(world: &mut World) -> AuthFailure {
    match world.event() {
        Event::AuthenticationFailed { cause: AuthCause::Failure(failure), .. } => failure,
        other => panic!("a log entry about a failed authentication is expected, not {other:?}"),
    }
}

// No MESSAGE-INTEGRITY → 401 with REALM, NONCE and PASSWORD-ALGORITHMS. It is not logged, because every client gets it.
#[test]
fn request_without_credentials_is_401_with_only_realm_nonce_and_algorithms() {
    let mut world = World::new();
    let mut client = world.client(1);
    for (transport, methods) in
        [(Transport::Udp, &METHODS[..1]), (Transport::Tcp, &METHODS), (Transport::Tls, &METHODS)]
    {
        client.tuple.transport = transport;
        for method in methods.iter().copied() {
            let request = plain(Class::Request, method, &[&RequestedTransport::UDP]);
            let response = world.response_to(&client.tuple, &request);
            assert_eq!(response.code(), Some(401));
            assert_eq!(response.kinds(), CHALLENGE);
            assert_eq!(response.get(), Some(Realm(REALM)));
            assert_eq!(response.nonce(), Some(client.nonce.clone()));
        }
    }
    assert_eq!(world.footprint(), EMPTY);
}

// MESSAGE-INTEGRITY without USERNAME, REALM or NONCE → 400. The response has none of them, and no integrity.
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
            let response = world.response_to(&client.tuple, &request);
            assert_eq!((response.code(), response.kinds()), (Some(400), vec![AttributeType::ERROR_CODE]));
        }
    }
    assert_eq!(world.footprint(), EMPTY);
}

#[test]
fn username_that_is_not_valid_text_is_400() {
    let mut world = World::new();
    let client = world.client(1);
    for name in [&[0xff_u8, 0xfe][..], &[b'a'; 764][..]] {
        let request = write(Class::Request, Method::ALLOCATE, TransactionId::new([1; 12]), |writer| {
            writer.push(&Raw(AttributeType::USERNAME, name));
            writer.push(&Realm(REALM));
            writer.push(&Nonce(&client.nonce));
            writer.message_integrity(client.key().as_bytes());
        });
        assert_eq!(world.response_to(&client.tuple, &request).code(), Some(400));
    }
}

// An unknown USERNAME, or an integrity that does not match → 401 with REALM and NONCE.
#[test]
fn unknown_user_and_wrong_password_are_401_and_logged_once() {
    let mut world = World::new();
    let alice = world.client(1);
    let (mut unknown, mut mistaken) = (alice.clone(), alice.clone());
    unknown.username = "mallory".to_owned();
    mistaken.password = "looking-glass".to_owned();
    let mut forger = alice.with_credential("alice", UNIX + 1_000);
    forger.password = "guess".to_owned();
    for method in METHODS {
        for (client, failure) in [
            (&unknown, AuthFailure::UnknownUser),
            (&mistaken, AuthFailure::WrongPassword),
            (&forger, AuthFailure::WrongSecret { tried: 1, reading: Reading::ExpiryFirst }),
        ] {
            let response = world.send_request(client, method, &[&RequestedTransport::UDP]);
            assert_eq!(response.code(), Some(401));
            assert_eq!(response.kinds(), CHALLENGE);
            assert_eq!(logged_failure(&mut world), failure);
        }
    }
    assert_eq!(world.footprint(), EMPTY);
}

// A client without a nonce of this server may have forged its source address. It must not be able to fill the log.
#[test]
fn nothing_is_logged_without_a_valid_nonce() {
    let mut world = World::new();
    let mut client = world.client(1);
    client.password = "looking-glass".to_owned();
    for nonce in [String::new(), "obMatJos2AAAAsomebody-elses".to_owned(), world.client(2).nonce] {
        client.nonce = nonce;
        assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&RequestedTransport::UDP]), 438);
    }
    client.nonce = world.client(1).nonce;
    world.pass(seconds(NONCE_LIFETIME));
    assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&RequestedTransport::UDP]), 401);
    assert_eq!(world.action(), None);
}

// The NONCE is no longer valid → 438 with a valid one and the REALM.
#[test]
fn expired_and_foreign_nonces_are_438_and_the_new_one_is_accepted() {
    let mut world = World::new();
    let client = world.client(1);
    let mut other_port = client.tuple.client;
    other_port.set_port(5_001);
    let stale = client.nonce.clone();
    world.pass(seconds(NONCE_LIFETIME));
    for nonce in [stale, world.nonce(other_port), world.client(2).nonce, "f//499k954d6OL34oL9FSTvy64sA".to_owned()] {
        for method in METHODS {
            let response = world.send_request(&Client { nonce: nonce.clone(), ..client.clone() }, method, &[]);
            assert_eq!(response.code(), Some(438));
            assert_eq!(response.kinds(), CHALLENGE);
            assert_eq!(response.nonce(), Some(world.nonce(client.tuple.client)));
        }
    }
    assert_eq!(world.footprint(), EMPTY);
    let renewed = Client { nonce: world.nonce(client.tuple.client), ..client };
    world.allocate(&renewed);
}

#[test]
fn a_nonce_is_valid_for_exactly_its_lifetime() {
    let mut world = World::new();
    let client = world.client(1);
    world.pass(seconds(NONCE_LIFETIME - 1));
    assert_eq!(world.error_code(&client, Method::REFRESH, &[]), 437);
    world.pass(seconds(1));
    assert_eq!(world.error_code(&client, Method::REFRESH, &[]), 438);
}

// RFC 8489 §9.2.4: two requests get the same NONCE only if they have the same source address and port.
#[test]
fn two_clients_are_given_different_nonces() {
    let mut world = World::new();
    let challenge = |world: &mut World, client: &Client| {
        world
            .response_to(&client.tuple, &plain(Class::Request, Method::ALLOCATE, &[&RequestedTransport::UDP]))
            .nonce()
            .unwrap()
    };
    let (first, second) = (world.client(1), world.client(2));
    let mut third = world.client(1);
    third.tuple.client.set_port(5_001);
    let nonces = [&first, &second, &third].map(|client| challenge(&mut world, client));
    assert!(nonces[0] != nonces[1] && nonces[0] != nonces[2] && nonces[1] != nonces[2], "{nonces:?}");
    // RFC 8489 §9.2: the cookie and its security feature.
    assert!(nonces.iter().all(|nonce| nonce.starts_with("obMatJos2gAAB")));
}

// An expired credential cannot create an allocation.
#[test]
fn allocate_with_an_expired_credential_is_401_and_logged() {
    let mut world = World::new();
    let client = world.client(1).with_credential("carol", UNIX + 10);
    world.pass(seconds(10));
    let response = world.send_request(&client, Method::ALLOCATE, &[&RequestedTransport::UDP]);
    assert_eq!(response.kinds(), CHALLENGE);
    assert_eq!(response.code(), Some(401));
    let cause = AuthCause::Expired { ago: 0, reading: Reading::ExpiryFirst };
    let (username, tuple) = (client.username.clone(), client.tuple);
    assert_eq!(world.event(), Event::AuthenticationFailed { id: None, username, tuple, cause });
    assert_eq!(world.footprint(), EMPTY);
}

#[test]
fn allocate_with_a_credential_in_its_last_second_is_accepted() {
    let mut world = World::new();
    let client = world.client(1).with_credential("carol", UNIX + 10);
    world.pass(seconds(9));
    world.allocate(&client);
}

// RFC 8656 §5: a username other than that of the Allocate request → 441.
#[test]
fn another_username_on_an_allocation_is_441() {
    let mut world = World::new();
    let alice = world.client(1);
    let relay = world.allocate(&alice);
    let before = world.footprint();
    let other = alice.as_user(1);
    assert_eq!(world.error_code(&other, Method::REFRESH, &[&Lifetime(0)]), 441);
    assert_eq!(world.error_code(&other, Method::CREATE_PERMISSION, &[&XorPeerAddress(peer(1))]), 441);
    let bind: [&dyn EncodeAttribute; 2] = [&ChannelNumber(0x4000), &XorPeerAddress(peer(1))];
    assert_eq!(world.error_code(&other, Method::CHANNEL_BIND, &bind), 441);
    assert_eq!(world.footprint(), before);
    assert!(world.peer_packet(relay.id, peer(1), b"in").is_err());
}

// Two credentials of one user have two usernames.
#[test]
fn a_later_credential_of_the_same_user_is_441() {
    let mut world = World::new();
    let client = world.client(1).with_credential("carol", UNIX + 1_000);
    world.allocate(&client);
    let later = client.with_credential("carol", UNIX + 2_000);
    assert_eq!(world.error_code(&later, Method::REFRESH, &[]), 441);
}

// RFC 8656 §5: no allocation → 437, for every method except Allocate.
#[test]
fn requests_without_an_allocation_are_437() {
    let mut world = World::new();
    let client = world.client(1);
    assert_eq!(world.error_code(&client, Method::REFRESH, &[]), 437);
    assert_eq!(world.error_code(&client, Method::REFRESH, &[&Lifetime(0)]), 437);
    assert_eq!(world.error_code(&client, Method::CREATE_PERMISSION, &[&XorPeerAddress(peer(1))]), 437);
    let bind: [&dyn EncodeAttribute; 2] = [&ChannelNumber(0x4000), &XorPeerAddress(peer(1))];
    assert_eq!(world.error_code(&client, Method::CHANNEL_BIND, &bind), 437);
    assert_eq!(world.footprint(), EMPTY);
}

// RFC 8656 §2: the server's address is part of the 5-tuple.
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
        let mut other_tuple = client.clone();
        change(&mut other_tuple);
        assert_eq!(world.error_code(&other_tuple, Method::REFRESH, &[]), 437);
    }
}

// RFC 8489 §9.2.4: MESSAGE-INTEGRITY-SHA256 takes precedence. Without PASSWORD-ALGORITHM the key is derived with MD5,
// and the response has MESSAGE-INTEGRITY.
#[test]
fn sha256_integrity_without_password_algorithm_gets_a_sha1_response() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate(&client);
    let mut seal = |seal: &dyn Fn(&mut MessageWriter<'_>, &[u8])| {
        let transaction = world.transaction();
        let request = client.request_sealed(transaction, Method::REFRESH, &[], |writer, key| seal(writer, key));
        let response = world.response_to(&client.tuple, &request);
        if response.code().is_none() {
            assert!(response.is_signed_for(&client));
            assert!(!response.message().contains(AttributeType::MESSAGE_INTEGRITY_SHA256));
        } else {
            assert_eq!(logged_failure(&mut world), AuthFailure::WrongPassword);
        }
        response.code()
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
fn authenticated_responses_have_a_fingerprint_if_the_request_has_one() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate(&client);
    for (lifetime, code) in [(600, None), (0, None), (600, Some(437))] {
        let (transaction, lifetime) = (world.transaction(), Lifetime(lifetime));
        let mut request = client.request_sealed(transaction, Method::REFRESH, &[&lifetime], |writer, key| {
            writer.message_integrity(key);
            writer.fingerprint();
        });
        let response = world.response_to(&client.tuple, &request);
        assert_eq!((response.code(), response.message().fingerprint()), (code, FingerprintStatus::Valid));
        request[24] ^= 1;
        assert_eq!(world.dropped(&client.tuple, &request), DropReason::WrongFingerprint);
        while world.action().is_some() {}
    }
}

// RFC 8656 §5: SOFTWARE in Allocate and Refresh responses. Unauthenticated clients do not get it.
#[test]
fn software_is_sent_to_authenticated_clients_in_allocate_and_refresh() {
    let mut world = World::new();
    let client = world.client(1);
    let has_software = |response: &CheckedResponse| response.get::<Software<'_>>().is_some();
    assert!(has_software(&world.send_request(&client, Method::ALLOCATE, &[])));
    world.allocate(&client);
    // RFC 8489 §14.14: the software and its version.
    let named = Software(concat!("turnserver/", env!("CARGO_PKG_VERSION")));
    assert_eq!(world.send_request(&client, Method::REFRESH, &[]).get(), Some(named));
    assert!(has_software(&world.send_request(&client, Method::REFRESH, &[])));
    assert!(!has_software(&world.send_request(&client, Method::CREATE_PERMISSION, &[&XorPeerAddress(peer(1))])));
}

/// Returns `message` with more attributes at the end, and the length in its header adjusted.
fn appended(message: &[u8], attributes: &[&dyn EncodeAttribute]) -> Vec<u8> {
    let appendix = plain(Class::Request, Method::BINDING, attributes);
    let mut whole = [message, &appendix[20..]].concat();
    let length = u16::try_from(whole.len() - 20).unwrap();
    whole[2..4].copy_from_slice(&length.to_be_bytes());
    whole
}

// RFC 8489 §14.5: what follows MESSAGE-INTEGRITY is ignored, except FINGERPRINT and MESSAGE-INTEGRITY-SHA256.
#[test]
fn attributes_after_the_integrity_are_ignored_in_every_method() {
    let mut world = World::new();
    let client = world.client(1);
    let unknown = Raw(AttributeType::new(0x7abc), &[]);
    let send_request = |world: &mut World, method, before: &[&dyn EncodeAttribute], after: &[&dyn EncodeAttribute]| {
        let request = appended(&client.request(world.transaction(), method, before), after);
        match world.client_packet(&client.tuple, &request) {
            (FromClient::Open(open), _) => world.opened(&request, &open, Ok(())),
            (FromClient::Respond(response), buffer) => CheckedResponse::new(&request, &buffer, &response),
            (other, _) => panic!("a response is expected, not {other:?}"),
        }
    };
    // Allocate: required attributes must precede the integrity, and a later LIFETIME has no effect.
    assert_eq!(send_request(&mut world, Method::ALLOCATE, &[], &[&RequestedTransport::UDP]).code(), Some(400));
    let udp = RequestedTransport::UDP;
    let response = send_request(&mut world, Method::ALLOCATE, &[&udp], &[&Lifetime(3_600), &unknown]);
    assert_eq!((response.code(), response.lifetime()), (None, Some(600)));
    assert!(matches!(world.event(), Event::AllocationCreated { lifetime: 600, .. }));
    let (id, _) = world.server.table.find_open(&client.tuple, world.now).unwrap();
    let relay = id.socket(SocketIndex::FIRST);
    // Refresh: neither a longer lifetime nor a deletion.
    for lifetime in [3_600, 0] {
        let response = send_request(&mut world, Method::REFRESH, &[], &[&Lifetime(lifetime), &unknown]);
        assert_eq!((response.code(), response.lifetime()), (None, Some(600)));
    }
    // CreatePermission: no second permission.
    let (one, two) = (XorPeerAddress(peer(1)), XorPeerAddress(peer(2)));
    assert_eq!(send_request(&mut world, Method::CREATE_PERMISSION, &[&one], &[&two, &unknown]).code(), None);
    assert_eq!(send_request(&mut world, Method::CREATE_PERMISSION, &[], &[&two]).code(), Some(400));
    assert!(world.peer_packet(relay, peer(1), b"in").is_ok());
    assert!(world.peer_packet(relay, peer(2), b"in").is_err());
    // ChannelBind: no other channel, no other peer.
    let number = ChannelNumber(0x4000);
    let more: [&dyn EncodeAttribute; 3] = [&ChannelNumber(0x4001), &two, &unknown];
    assert_eq!(send_request(&mut world, Method::CHANNEL_BIND, &[&number, &one], &more).code(), None);
    assert_eq!(send_request(&mut world, Method::CHANNEL_BIND, &[&number], &[&one]).code(), Some(400));
    assert_eq!(send_request(&mut world, Method::CHANNEL_BIND, &[&one], &[&number]).code(), Some(400));
    assert_eq!(world.relayed(&client.tuple, &channel_data(0x4000, b"out")).1, peer(1));
    assert_eq!(world.dropped(&client.tuple, &channel_data(0x4001, b"out")), DropReason::ChannelNotBound);
    // Credentials after the integrity are ignored.
    let bare = write(Class::Request, Method::REFRESH, TransactionId::new([1; 12]), |writer| {
        writer.message_integrity(client.key().as_bytes());
    });
    let username = Username(&client.username);
    let credentials: [&dyn EncodeAttribute; 3] = [&username, &Realm(REALM), &Nonce(&client.nonce)];
    assert_eq!(world.response_to(&client.tuple, &appended(&bare, &credentials)).code(), Some(400));
}

// RFC 8489 §6.3.1: the client may receive either response, so both must have the same content.
#[test]
fn a_retransmitted_allocate_gets_the_same_response_after_the_credential_has_expired() {
    let mut world = World::new();
    let client = world.client(1).with_credential("alice", UNIX + 5);
    let packet = client.request(world.transaction(), Method::ALLOCATE, &[&RequestedTransport::UDP]);
    let open = world.open_for(&client.tuple, &packet);
    let first = world.opened(&packet, &open, Ok(()));
    assert!(matches!(world.event(), Event::AllocationCreated { .. }));
    world.pass(seconds(10));
    let again = world.response_to(&client.tuple, &packet);
    assert_eq!((first.code(), again.code()), (None, None));
    assert_eq!(first.get::<XorRelayedAddress>(), again.get::<XorRelayedAddress>());
}
