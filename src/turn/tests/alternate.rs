//! ALTERNATE-SERVER (RFC 8489 §10, §14.15, §14.16; RFC 8656 §7.2 step 11).

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::setting;
use crate::stun::attribute::{
    AlternateDomain, AlternateServer, ChannelNumber, EvenPort, Lifetime, RequestedTransport, XorPeerAddress,
};
use crate::stun::{AttributeType, EncodeAttribute, Method};
use crate::turn::tests::support::*;
use crate::turn::{Alternate, Event, OpenError, RedirectCause, RedirectWhen, Transport};

const UDP: RequestedTransport = RequestedTransport::UDP;
const TLS_SERVER: &str = "203.0.113.7:5349";
const SERVERS: [&str; 3] = ["203.0.113.5:3478", "203.0.113.6:3479", "[2001:db8::5]:3478"];

fn alternate(when: RedirectWhen) -> Alternate {
    Alternate { servers: SERVERS.map(address).to_vec(), tls_servers: vec![address(TLS_SERVER)], domain: None, when }
}

fn world(when: RedirectWhen, change: impl FnOnce(&mut crate::test_world::Blueprint)) -> World {
    World::with(|setup| {
        setup.alternate = Some(alternate(when));
        change(setup);
    })
}

/// The servers of a 300, in order.
fn servers(answer: &Answer) -> Vec<SocketAddr> {
    assert_eq!((answer.code(), answer.reason().as_str()), (Some(300), "Try Alternate"));
    answer.message().all::<AlternateServer>().map(|server| server.unwrap().0).collect()
}

/// The server and the cause that the log has for the last redirection.
fn redirected(world: &mut World) -> (SocketAddr, RedirectCause) {
    match world.event() {
        Event::AllocationRedirected { server, cause, .. } => (server, cause),
        other => panic!("a redirection is expected in the log, not {other:?}"),
    }
}

fn v6_client(world: &World) -> Client {
    let mut client = world.client(1);
    client.tuple.client = address("[2001:db8:7::1]:5000");
    client.tuple.server = address("[2001:db8:7::2]:3478");
    Client { nonce: world.nonce(client.tuple.client), ..client }
}

// RFC 8489 §10: an address of the client's family first, one of the other behind it.
#[test]
fn a_client_is_sent_to_a_server_of_its_family_and_told_one_of_the_other() {
    let mut world = world(RedirectWhen::Always, |_| {});
    let answer = world.ask(&world.client(1), Method::ALLOCATE, &[&UDP]);
    let [first, second] = servers(&answer)[..] else { panic!("two servers are expected: {answer:?}") };
    assert!(SERVERS.map(address)[..2].contains(&first));
    assert_eq!((second, redirected(&mut world)), (address(SERVERS[2]), (first, RedirectCause::Always)));

    let answer = world.ask(&v6_client(&world), Method::ALLOCATE, &[&UDP]);
    let [first, second] = servers(&answer)[..] else { panic!("two servers are expected: {answer:?}") };
    assert!(SERVERS.map(address)[..2].contains(&second));
    assert_eq!((first, redirected(&mut world).0), (address(SERVERS[2]), first));
    assert_eq!(world.footprint(), NOTHING);
}

// RFC 8489 §10: the ALTERNATE-SERVER must be of the family of the client's address, so there is no 300 without one.
#[test]
fn a_client_whose_family_no_server_has_is_508() {
    let mut world = world(RedirectWhen::Always, |setup| {
        setup.alternate.as_mut().unwrap().servers = vec![address(SERVERS[2])];
    });
    let answer = world.ask(&world.client(1), Method::ALLOCATE, &[&UDP]);
    assert_eq!(answer.code(), Some(508));
    assert!(answer.reason().contains("address family"));
    let note = limit(&mut world);
    assert!(note.starts_with(setting::ALTERNATE_WHEN) && note.contains("no alternate server"), "{note}");
}

#[test]
fn clients_spread_over_the_servers_and_a_retransmission_is_sent_where_the_request_was() {
    let mut world = world(RedirectWhen::Always, |_| {});
    let client = world.client(1);
    let mut seen = BTreeSet::new();
    for _ in 0..20 {
        let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
        let answer = world.answer_to(&client.tuple, &request);
        assert_eq!(world.answer_to(&client.tuple, &request), answer);
        assert_eq!(redirected(&mut world), redirected(&mut world));
        seen.insert(servers(&answer)[0]);
    }
    assert_eq!(seen, BTreeSet::from([address(SERVERS[0]), address(SERVERS[1])]));
}

// RFC 8489 §10, §14.16.
#[test]
fn clients_over_tls_have_servers_of_their_own_and_are_told_the_name_in_the_certificate() {
    let mut world = world(RedirectWhen::Always, |setup| {
        setup.alternate.as_mut().unwrap().domain = Some("turn2.example.org".to_owned());
    });
    let mut client = world.client(1);
    for transport in [Transport::Udp, Transport::Tcp] {
        client.tuple.transport = transport;
        let answer = world.ask(&client, Method::ALLOCATE, &[&UDP]);
        assert!(!answer.kinds().contains(&AttributeType::ALTERNATE_DOMAIN));
        assert_ne!(redirected(&mut world).0, address(TLS_SERVER));
    }
    client.tuple.transport = Transport::Tls;
    let answer = world.ask(&client, Method::ALLOCATE, &[&UDP]);
    assert_eq!(answer.get(), Some(AlternateDomain("turn2.example.org")));
    assert_eq!(redirected(&mut world).0, address(TLS_SERVER));
    assert_eq!(
        answer.kinds(),
        [
            AttributeType::ERROR_CODE,
            AttributeType::ALTERNATE_SERVER,
            AttributeType::ALTERNATE_DOMAIN,
            AttributeType::SOFTWARE,
            AttributeType::MESSAGE_INTEGRITY
        ]
    );
}

// Whoever has not proved who it is learns of no other server.
#[test]
fn only_authenticated_clients_are_redirected_and_only_from_allocate() {
    let mut world = world(RedirectWhen::Always, |_| {});
    let client = world.client(1);
    let mut mistaken = client.clone();
    mistaken.password = "looking-glass".to_owned();
    assert_eq!(world.refusal(&mistaken, Method::ALLOCATE, &[&UDP]), 401);
    assert!(matches!(world.event(), Event::AuthenticationFailed { .. }));
    assert_eq!(world.refusal(&client, Method::REFRESH, &[]), 437);
    assert_eq!(world.refusal(&client, Method::ALLOCATE, &[&UDP, &Raw(AttributeType::new(0x7f01), &[])]), 420);
}

// An allocation that was made lives on, its Allocate is answered once more, and new ones are sent elsewhere.
#[test]
fn while_the_server_drains_new_allocations_go_elsewhere_and_old_ones_go_on() {
    for when in [RedirectWhen::Draining, RedirectWhen::Full] {
        let mut world = world(when, |_| {});
        let client = world.client(1);
        let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
        let open = world.open_for(&client.tuple, &request);
        let first = world.opened(&request, &open, Ok(()));
        assert!(matches!(world.event(), Event::AllocationCreated { .. }));
        let before = world.footprint();
        world.ledger.set_draining(true);

        for attributes in [&[&UDP as &dyn EncodeAttribute][..], &[&UDP, &EvenPort { reserve_next: true }]] {
            let answer = world.ask(&world.client(2), Method::ALLOCATE, attributes);
            let (server, cause) = redirected(&mut world);
            assert_eq!(servers(&answer)[0], server);
            assert!(cause.to_string().contains("shutting down"), "{cause}");
        }
        assert_eq!(world.answer_to(&client.tuple, &request), first);
        assert_eq!(world.accept(&client, Method::REFRESH, &[]).lifetime(), Some(600));
        world.permit(&client, peer(1));
        world.accept(&client, Method::CHANNEL_BIND, &[&ChannelNumber(0x4000), &XorPeerAddress(peer(1))]);
        assert_eq!(world.footprint(), before);
        assert_eq!(world.refusal(&client, Method::ALLOCATE, &[&UDP]), 437);
        world.ledger.set_draining(false);
        world.allocate(&world.client(3));
    }
}

#[test]
fn a_server_that_drains_without_an_alternate_says_that_it_is_shutting_down() {
    let mut nowhere = World::new();
    let mut elsewhere = world(RedirectWhen::Draining, |setup| {
        setup.alternate.as_mut().unwrap().servers.truncate(2);
    });
    let v6 = v6_client(&elsewhere);
    let v4 = nowhere.client(1);
    for (world, client) in [(&mut nowhere, v4), (&mut elsewhere, v6)] {
        world.ledger.set_draining(true);
        let answer = world.ask(&client, Method::ALLOCATE, &[&UDP]);
        assert_eq!(answer.code(), Some(508));
        assert!(answer.reason().contains("shutting down"), "{}", answer.reason());
        assert!(limit(world).contains("shutting down"));
        assert_eq!(world.footprint(), NOTHING);
    }
}

// Full is the server as a whole: no relay port, no socket, or limits.allocations. Each leaves nothing behind.
#[test]
fn a_full_server_sends_clients_elsewhere_if_it_is_told_to() {
    for when in [RedirectWhen::Draining, RedirectWhen::Full] {
        let expect = |world: &mut World, answer: &Answer, words: &str| {
            let note = match when {
                RedirectWhen::Draining => {
                    assert_eq!(answer.code(), Some(508));
                    limit(world)
                }
                _ => {
                    let (server, cause) = redirected(world);
                    assert_eq!(servers(answer)[0], server);
                    cause.to_string()
                }
            };
            assert!(note.contains(words), "{note}");
        };
        let mut limited = world(when, |setup| setup.limits.allocations = 1);
        limited.allocate(&limited.client(1));
        let before = limited.footprint();
        let answer = limited.ask(&limited.client(2), Method::ALLOCATE, &[&UDP]);
        expect(&mut limited, &answer, "limits.allocations");
        assert_eq!(limited.footprint(), before);

        let mut narrow = world(when, |setup| setup.ports = 50_000..=50_000);
        narrow.allocate(&narrow.client(1));
        let answer = narrow.ask(&narrow.client(2), Method::ALLOCATE, &[&UDP]);
        expect(&mut narrow, &answer, "relay.ports");

        for (error, words) in [(OpenError::PortInUse, "other programs"), (OpenError::Other, "LimitNOFILE")] {
            let mut world = world(when, |setup| {
                setup.ports = 50_000..=50_000;
            });
            let client = world.client(1);
            let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
            let open = world.open_for(&client.tuple, &request);
            let answer = world.opened(&request, &open, Err(error));
            assert!(answer.is_signed_for(&client));
            expect(&mut world, &answer, words);
            assert_eq!(world.footprint(), NOTHING);
        }
    }
}

// One user's quota is no reason to send it where it may have another one (RFC 8656 §7.2 step 10).
#[test]
fn a_user_at_its_quota_is_486_and_not_redirected() {
    let mut world = world(RedirectWhen::Full, |setup| setup.limits.allocations_per_user = 1);
    world.allocate_with(&world.client(1), &[&Lifetime(700)]);
    assert_eq!(world.refusal(&world.client(2), Method::ALLOCATE, &[&UDP]), 486);
    assert!(limit(&mut world).contains("allocations-per-user"));
}
