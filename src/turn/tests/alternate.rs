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

/// Returns the servers of a 300 response, in order.
fn servers(response: &CheckedResponse) -> Vec<SocketAddr> {
    assert_eq!((response.code(), response.reason().as_str()), (Some(300), "Try Alternate"));
    response.message().all::<AlternateServer>().map(|server| server.unwrap().0).collect()
}

/// Returns the server and the cause of the next log entry, which must be about a redirect.
fn redirected(world: &mut World) -> (SocketAddr, RedirectCause) {
    match world.event() {
        Event::AllocationRedirected { server, cause, .. } => (server, cause),
        other => panic!("a log entry about a redirect is expected, not {other:?}"),
    }
}

fn v6_client(world: &World) -> Client {
    let mut client = world.client(1);
    client.tuple.client = address("[2001:db8:7::1]:5000");
    client.tuple.server = address("[2001:db8:7::2]:3478");
    Client { nonce: world.nonce(client.tuple.client), ..client }
}

// RFC 8489 §10: an address of the client's family first, then one of the other family.
#[test]
fn a_redirect_lists_a_server_of_the_clients_family_and_then_one_of_the_other() {
    let mut world = world(RedirectWhen::Always, |_| {});
    let response = world.send_request(&world.client(1), Method::ALLOCATE, &[&UDP]);
    let [first, second] = servers(&response)[..] else { panic!("two servers are expected: {response:?}") };
    assert!(SERVERS.map(address)[..2].contains(&first));
    assert_eq!((second, redirected(&mut world)), (address(SERVERS[2]), (first, RedirectCause::Always)));

    let response = world.send_request(&v6_client(&world), Method::ALLOCATE, &[&UDP]);
    let [first, second] = servers(&response)[..] else { panic!("two servers are expected: {response:?}") };
    assert!(SERVERS.map(address)[..2].contains(&second));
    assert_eq!((first, redirected(&mut world).0), (address(SERVERS[2]), first));
    assert_eq!(world.footprint(), EMPTY);
}

// RFC 8489 §10: ALTERNATE-SERVER must be of the client's address family. Without such a server there is no 300.
#[test]
fn a_client_without_an_alternate_server_of_its_family_is_508() {
    let mut world = world(RedirectWhen::Always, |setup| {
        setup.alternate.as_mut().unwrap().servers = vec![address(SERVERS[2])];
    });
    let response = world.send_request(&world.client(1), Method::ALLOCATE, &[&UDP]);
    assert_eq!(response.code(), Some(508));
    assert!(response.reason().contains("address family"));
    let note = rejection_note(&mut world);
    assert!(note.starts_with(setting::ALTERNATE_WHEN) && note.contains("no alternate server"), "{note}");
}

#[test]
fn clients_are_spread_over_the_servers_and_a_retransmission_gets_the_same_server() {
    let mut world = world(RedirectWhen::Always, |_| {});
    let client = world.client(1);
    let mut seen = BTreeSet::new();
    for _ in 0..20 {
        let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
        let response = world.response_to(&client.tuple, &request);
        assert_eq!(world.response_to(&client.tuple, &request), response);
        assert_eq!(redirected(&mut world), redirected(&mut world));
        seen.insert(servers(&response)[0]);
    }
    assert_eq!(seen, BTreeSet::from([address(SERVERS[0]), address(SERVERS[1])]));
}

// RFC 8489 §10, §14.16.
#[test]
fn clients_over_tls_are_redirected_to_tls_servers_with_alternate_domain() {
    let mut world = world(RedirectWhen::Always, |setup| {
        setup.alternate.as_mut().unwrap().domain = Some("turn2.example.org".to_owned());
    });
    let mut client = world.client(1);
    for transport in [Transport::Udp, Transport::Tcp] {
        client.tuple.transport = transport;
        let response = world.send_request(&client, Method::ALLOCATE, &[&UDP]);
        assert!(!response.kinds().contains(&AttributeType::ALTERNATE_DOMAIN));
        assert_ne!(redirected(&mut world).0, address(TLS_SERVER));
    }
    client.tuple.transport = Transport::Tls;
    let response = world.send_request(&client, Method::ALLOCATE, &[&UDP]);
    assert_eq!(response.get(), Some(AlternateDomain("turn2.example.org")));
    assert_eq!(redirected(&mut world).0, address(TLS_SERVER));
    assert_eq!(
        response.kinds(),
        [
            AttributeType::ERROR_CODE,
            AttributeType::ALTERNATE_SERVER,
            AttributeType::ALTERNATE_DOMAIN,
            AttributeType::SOFTWARE,
            AttributeType::MESSAGE_INTEGRITY
        ]
    );
}

// Unauthenticated clients do not learn the alternate servers.
#[test]
fn only_authenticated_allocate_requests_are_redirected() {
    let mut world = world(RedirectWhen::Always, |_| {});
    let client = world.client(1);
    let mut mistaken = client.clone();
    mistaken.password = "looking-glass".to_owned();
    assert_eq!(world.error_code(&mistaken, Method::ALLOCATE, &[&UDP]), 401);
    assert!(matches!(world.event(), Event::AuthenticationFailed { .. }));
    assert_eq!(world.error_code(&client, Method::REFRESH, &[]), 437);
    assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP, &Raw(AttributeType::new(0x7f01), &[])]), 420);
}

// An existing allocation continues, and its Allocate request can be retransmitted. New Allocate requests are
// redirected.
#[test]
fn a_draining_server_redirects_new_allocations_and_keeps_existing_ones() {
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
            let response = world.send_request(&world.client(2), Method::ALLOCATE, attributes);
            let (server, cause) = redirected(&mut world);
            assert_eq!(servers(&response)[0], server);
            assert!(cause.to_string().contains("shutting down"), "{cause}");
        }
        assert_eq!(world.response_to(&client.tuple, &request), first);
        assert_eq!(world.accept(&client, Method::REFRESH, &[]).lifetime(), Some(600));
        world.permit(&client, peer(1));
        world.accept(&client, Method::CHANNEL_BIND, &[&ChannelNumber(0x4000), &XorPeerAddress(peer(1))]);
        assert_eq!(world.footprint(), before);
        assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP]), 437);
        world.ledger.set_draining(false);
        world.allocate(&world.client(3));
    }
}

#[test]
fn a_draining_server_without_an_alternate_server_is_508() {
    let mut without_alternate = World::new();
    let mut with_alternate = world(RedirectWhen::Draining, |setup| {
        setup.alternate.as_mut().unwrap().servers.truncate(2);
    });
    let v6 = v6_client(&with_alternate);
    let v4 = without_alternate.client(1);
    for (world, client) in [(&mut without_alternate, v4), (&mut with_alternate, v6)] {
        world.ledger.set_draining(true);
        let response = world.send_request(&client, Method::ALLOCATE, &[&UDP]);
        assert_eq!(response.code(), Some(508));
        assert!(response.reason().contains("shutting down"), "{}", response.reason());
        assert!(rejection_note(world).contains("shutting down"));
        assert_eq!(world.footprint(), EMPTY);
    }
}

// A server is full if it has no relay port or no socket, or has reached limits.allocations.
#[test]
fn a_full_server_redirects_clients_if_configured() {
    for when in [RedirectWhen::Draining, RedirectWhen::Full] {
        let expect = |world: &mut World, response: &CheckedResponse, words: &str| {
            let note = match when {
                RedirectWhen::Draining => {
                    assert_eq!(response.code(), Some(508));
                    rejection_note(world)
                }
                _ => {
                    let (server, cause) = redirected(world);
                    assert_eq!(servers(response)[0], server);
                    cause.to_string()
                }
            };
            assert!(note.contains(words), "{note}");
        };
        let mut limited = world(when, |setup| setup.limits.allocations = 1);
        limited.allocate(&limited.client(1));
        let before = limited.footprint();
        let response = limited.send_request(&limited.client(2), Method::ALLOCATE, &[&UDP]);
        expect(&mut limited, &response, "limits.allocations");
        assert_eq!(limited.footprint(), before);

        let mut narrow = world(when, |setup| setup.ports = 50_000..=50_000);
        narrow.allocate(&narrow.client(1));
        let response = narrow.send_request(&narrow.client(2), Method::ALLOCATE, &[&UDP]);
        expect(&mut narrow, &response, "relay.ports");

        for (error, words) in [(OpenError::PortInUse, "other programs"), (OpenError::Other, "LimitNOFILE")] {
            let mut world = world(when, |setup| {
                setup.ports = 50_000..=50_000;
            });
            let client = world.client(1);
            let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
            let open = world.open_for(&client.tuple, &request);
            let response = world.opened(&request, &open, Err(error));
            assert!(response.is_signed_for(&client));
            expect(&mut world, &response, words);
            assert_eq!(world.footprint(), EMPTY);
        }
    }
}

// A redirect would let the user exceed its quota on another server (RFC 8656 §7.2 step 10).
#[test]
fn a_user_at_its_quota_is_486_and_not_redirected() {
    let mut world = world(RedirectWhen::Full, |setup| setup.limits.allocations_per_user = 1);
    world.allocate_with(&world.client(1), &[&Lifetime(700)]);
    assert_eq!(world.error_code(&world.client(2), Method::ALLOCATE, &[&UDP]), 486);
    assert!(rejection_note(&mut world).contains("allocations-per-user"));
}
