//! Users of a user database.

use crate::auth::{AuthFailure, LongTermKey, SecurityFeatures};
use crate::stun::Method;
use crate::stun::attribute::{Lifetime, Nonce, RequestedTransport, XorPeerAddress};
use crate::turn::tests::support::*;
use crate::turn::*;

const SOURCE: &str = "redis";

fn database() -> UserDatabase {
    UserDatabase {
        source: SOURCE.into(),
        time_limit: seconds(2),
        found_for: seconds(60),
        absent_for: seconds(10),
        stale_for: seconds(600),
        cached_users: 64,
        lookups_per_second: 0,
        lookups_per_second_per_source: 0,
        when_unavailable: WhenUnavailable::ServerError,
    }
}

fn world_with(change: impl FnOnce(&mut UserDatabase)) -> World {
    let mut database = database();
    change(&mut database);
    World::with(|blueprint| blueprint.database = Some(database))
}

fn world() -> World {
    world_with(|_| {})
}

/// Returns a client with the credentials of a user who is not in the configuration.
fn carol(world: &World, host: u8) -> Client {
    Client { username: "carol".to_owned(), password: "song".to_owned(), ..world.client(host) }
}

fn allocate_request(world: &mut World, client: &Client) -> Vec<u8> {
    client.request(world.transaction(), Method::ALLOCATE, &[&RequestedTransport::UDP])
}

/// Sends a request, which must wait for a look-up of the user.
fn must_wait(world: &mut World, client: &Client, packet: &[u8]) {
    assert_eq!(world.client_packet(&client.tuple, packet).0, FromClient::Wait);
    assert_eq!(world.action(), Some(Action::LookUp(client.username.as_str().into())));
}

fn looked_up(world: &mut World, username: &str, key: Option<LongTermKey>) {
    world.server.looked_up(world.now, SOURCE, username, Ok(key));
}

/// Allocates for a user who is looked up.
fn allocate_by_look_up(world: &mut World, client: &Client) -> Relay {
    let packet = allocate_request(world, client);
    must_wait(world, client, &packet);
    looked_up(world, &client.username, Some(client.key()));
    let Some((tuple, FromClient::Open(open), _)) = world.resume() else { panic!("a socket request is expected") };
    assert_eq!(tuple, client.tuple);
    let response = world.opened(&packet, &open, Ok(()));
    assert!(response.is_signed_for(client));
    assert!(matches!(world.event(), Event::AllocationCreated { .. }));
    assert_eq!(world.resume(), None);
    let relayed = response.get::<crate::stun::attribute::XorRelayedAddress>().unwrap().0;
    Relay { id: open.socket, bind: open.bind, relayed }
}

/// Returns the outcome of the next request that has waited.
fn resumed_outcome(world: &mut World) -> Outcome {
    match world.resume() {
        Some((_, FromClient::Respond(response), _)) => response.outcome,
        Some((_, FromClient::Drop(reason), _)) => Outcome::Dropped(reason),
        other => panic!("an outcome is expected, not {other:?}"),
    }
}

fn logged(world: &mut World) -> AuthFailure {
    match world.event() {
        Event::AuthenticationFailed { cause: AuthCause::Failure(failure), .. } => failure,
        other => panic!("a failed authentication is expected, not {other:?}"),
    }
}

const REJECTED: Outcome = Outcome::Rejected(RejectionCode::Unauthenticated);

#[test]
fn a_user_of_the_database_allocates_and_is_known_then() {
    let mut world = world();
    let carol = carol(&world, 1);
    allocate_by_look_up(&mut world, &carol);
    world.permit(&carol, peer(1));
    // Another client of the same user.
    let other = Client { tuple: world.client(2).tuple, nonce: world.client(2).nonce, ..carol };
    world.allocate(&other);
}

#[test]
fn an_absent_user_is_rejected_and_not_looked_up_again_for_a_while() {
    let mut world = world();
    let carol = carol(&world, 1);
    let packet = allocate_request(&mut world, &carol);
    must_wait(&mut world, &carol, &packet);
    looked_up(&mut world, "carol", None);
    assert_eq!((resumed_outcome(&mut world), logged(&mut world)), (REJECTED, AuthFailure::UnknownToDatabase));
    world.pass(seconds(9));
    assert_eq!(world.error_code(&carol, Method::ALLOCATE, &[&RequestedTransport::UDP]), 401);
    assert_eq!(logged(&mut world), AuthFailure::UnknownToDatabase);
    world.pass(seconds(1));
    allocate_by_look_up(&mut world, &carol);
}

#[test]
fn static_users_and_credentials_of_a_secret_are_not_looked_up() {
    let mut world = world();
    let alice = world.client(1);
    world.allocate(&alice);
    let credential = world.client(2).with_credential("dave", UNIX + 100);
    world.allocate(&credential);
    let mistaken = Client { password: "wrong".to_owned(), ..world.client(3) };
    assert_eq!(world.error_code(&mistaken, Method::ALLOCATE, &[&RequestedTransport::UDP]), 401);
    assert_eq!(logged(&mut world), AuthFailure::WrongPassword);
}

#[test]
fn a_wrong_password_is_rejected_and_a_new_key_is_found() {
    let mut world = world();
    let carol = carol(&world, 1);
    allocate_by_look_up(&mut world, &carol);
    let other = Client { tuple: world.client(2).tuple, nonce: world.client(2).nonce, ..carol.clone() };
    let changed = Client { password: "new song".to_owned(), ..other };
    // The key that is known is so young that it is not asked for again.
    assert_eq!(world.error_code(&changed, Method::ALLOCATE, &[&RequestedTransport::UDP]), 401);
    assert_eq!(logged(&mut world), AuthFailure::WrongDatabaseKey);
    world.pass(seconds(5));
    let packet = allocate_request(&mut world, &changed);
    must_wait(&mut world, &changed, &packet);
    looked_up(&mut world, "carol", Some(carol.key()));
    assert_eq!((resumed_outcome(&mut world), logged(&mut world)), (REJECTED, AuthFailure::WrongDatabaseKey));
    world.pass(seconds(5));
    allocate_by_look_up(&mut world, &changed);
}

#[test]
fn a_name_is_looked_up_once_however_many_requests_wait_for_it() {
    let mut world = world();
    let carol = carol(&world, 1);
    let packet = allocate_request(&mut world, &carol);
    must_wait(&mut world, &carol, &packet);
    // A retransmission.
    assert_eq!(world.dropped(&carol.tuple, &packet), DropReason::LookupPending);
    let other = Client { tuple: world.client(2).tuple, nonce: world.client(2).nonce, ..carol };
    let of_other = allocate_request(&mut world, &other);
    assert_eq!(world.client_packet(&other.tuple, &of_other).0, FromClient::Wait);
    assert_eq!((world.action(), world.resume()), (None, None));
    looked_up(&mut world, "carol", None);
    for _ in 0..2 {
        assert_eq!((resumed_outcome(&mut world), logged(&mut world)), (REJECTED, AuthFailure::UnknownToDatabase));
    }
    assert_eq!(world.resume(), None);
}

#[test]
fn without_a_valid_nonce_nothing_is_looked_up() {
    let mut world = world();
    let carol = carol(&world, 1);
    let forged = Client { nonce: world.client(9).nonce, ..carol.clone() };
    assert_eq!(world.error_code(&forged, Method::ALLOCATE, &[&RequestedTransport::UDP]), 438);
    world.pass(seconds(NONCE_LIFETIME + 1));
    assert_eq!(world.error_code(&carol, Method::ALLOCATE, &[&RequestedTransport::UDP]), 438);
    assert_eq!(world.server.resumes_at(), None);
}

#[test]
fn a_request_waits_for_the_time_limit_and_is_then_answered_by_the_policy() {
    for (policy, code) in [
        (WhenUnavailable::ServerError, RejectionCode::ServerError),
        (WhenUnavailable::Unauthenticated, RejectionCode::Unauthenticated),
    ] {
        let mut world = world_with(|database| database.when_unavailable = policy);
        let carol = carol(&world, 1);
        let packet = allocate_request(&mut world, &carol);
        must_wait(&mut world, &carol, &packet);
        assert_eq!(world.server.resumes_at(), Some(Deadline::after(world.now, seconds(2))));
        world.pass(std::time::Duration::from_millis(1_999));
        assert_eq!(world.resume(), None);
        world.pass(std::time::Duration::from_millis(1));
        let Some((_, FromClient::Respond(response), buffer)) = world.resume() else { panic!("a response is expected") };
        let response = CheckedResponse::new(&packet, &buffer, &response);
        assert_eq!(response.outcome, Outcome::Rejected(code));
        assert!(!response.message().contains(crate::stun::AttributeType::MESSAGE_INTEGRITY));
        assert_eq!(response.get::<Nonce<'_>>().is_some(), code == RejectionCode::Unauthenticated);
        assert_eq!(logged(&mut world), AuthFailure::DatabaseUnavailable);
        assert_eq!(world.server.resumes_at(), None);
    }
}

#[test]
fn a_known_user_goes_on_while_the_database_is_away() {
    let mut world = world();
    let carol = carol(&world, 1);
    allocate_by_look_up(&mut world, &carol);
    world.pass(seconds(100));
    let packet = carol.request(world.transaction(), Method::REFRESH, &[]);
    must_wait(&mut world, &carol, &packet);
    world.server.looked_up(world.now, SOURCE, "carol", Err(DatabaseUnavailable));
    assert!(matches!(resumed_outcome(&mut world), Outcome::Answered(_)));
    // For the next ten seconds it is not asked again.
    world.pass(seconds(9));
    world.accept(&carol, Method::REFRESH, &[]);
    world.pass(seconds(1));
    let packet = carol.request(world.transaction(), Method::REFRESH, &[]);
    must_wait(&mut world, &carol, &packet);
    looked_up(&mut world, "carol", Some(carol.key()));
    assert!(matches!(resumed_outcome(&mut world), Outcome::Answered(_)));
    // When it has been away for too long, what was known is not used any more.
    world.accept(&carol, Method::REFRESH, &[&Lifetime(3_600)]);
    world.pass(seconds(660));
    let packet = carol.request(world.transaction(), Method::REFRESH, &[]);
    must_wait(&mut world, &carol, &packet);
    world.server.looked_up(world.now, SOURCE, "carol", Err(DatabaseUnavailable));
    assert_eq!(resumed_outcome(&mut world), Outcome::Rejected(RejectionCode::ServerError));
    assert_eq!(logged(&mut world), AuthFailure::DatabaseUnavailable);
    // The allocation is still there, with its permissions.
    world.permit(&carol, peer(1));
}

#[test]
fn a_known_user_goes_on_if_the_database_cannot_be_asked() {
    let mut world = world();
    let carol = carol(&world, 1);
    allocate_by_look_up(&mut world, &carol);
    world.accept(&carol, Method::REFRESH, &[&Lifetime(3_600)]);
    world.pass(seconds(100));
    // This request is too long to wait.
    let padding = Raw(crate::stun::AttributeType::new(0x8fff), &[0; 2_100]);
    world.accept(&carol, Method::REFRESH, &[&Lifetime(3_600), &padding]);
    // Requests for other names take all places.
    for number in 0..256 {
        let other = Client { username: format!("name-{number}"), ..world.client(2) };
        let packet = allocate_request(&mut world, &other);
        must_wait(&mut world, &other, &packet);
    }
    world.accept(&carol, Method::REFRESH, &[&Lifetime(3_600)]);
    let unknown = Client { username: "dave".to_owned(), ..world.client(3) };
    let packet = allocate_request(&mut world, &unknown);
    assert_eq!(world.response_to(&unknown.tuple, &packet).code(), Some(500));
    assert_eq!(logged(&mut world), AuthFailure::DatabaseUnavailable);
    // When the database could not be asked for too long, what was known is not used any more.
    world.pass(seconds(560));
    let packet = carol.request(world.transaction(), Method::REFRESH, &[]);
    assert_eq!(world.response_to(&carol.tuple, &packet).code(), Some(500));
    assert_eq!(logged(&mut world), AuthFailure::DatabaseUnavailable);
}

#[test]
fn a_known_user_goes_on_if_there_are_too_many_look_ups() {
    let mut world = world_with(|database| database.lookups_per_second = 1);
    let carol = carol(&world, 1);
    allocate_by_look_up(&mut world, &carol);
    world.pass(seconds(100));
    let other = Client { username: "dave".to_owned(), ..world.client(2) };
    let packet = allocate_request(&mut world, &other);
    must_wait(&mut world, &other, &packet);
    world.accept(&carol, Method::REFRESH, &[]);
}

#[test]
fn the_allocation_of_a_deleted_user_ends_at_its_refresh() {
    for key in [None, Some(LongTermKey::derive("carol", REALM, b"new song"))] {
        let mut world = world();
        let carol = carol(&world, 1);
        let relay = allocate_by_look_up(&mut world, &carol);
        world.pass(seconds(61));
        // Other requests go on with the key of the allocation.
        world.permit(&carol, peer(1));
        let packet = carol.request(world.transaction(), Method::REFRESH, &[]);
        must_wait(&mut world, &carol, &packet);
        looked_up(&mut world, "carol", key);
        assert_eq!(resumed_outcome(&mut world), REJECTED);
        assert_eq!(world.expect_end(&relay).reason, EndReason::CredentialsRemoved);
    }
}

#[test]
fn a_refresh_with_a_new_key_continues_the_allocation() {
    let mut world = world();
    let carol = carol(&world, 1);
    allocate_by_look_up(&mut world, &carol);
    let changed = Client { password: "new song".to_owned(), ..carol.clone() };
    world.pass(seconds(6));
    let packet = changed.request(world.transaction(), Method::REFRESH, &[]);
    must_wait(&mut world, &changed, &packet);
    looked_up(&mut world, "carol", Some(changed.key()));
    assert!(matches!(resumed_outcome(&mut world), Outcome::Answered(_)));
    world.accept(&changed, Method::CREATE_PERMISSION, &[&XorPeerAddress(peer(1))]);
    world.accept(&changed, Method::REFRESH, &[]);
}

#[test]
fn a_source_and_all_sources_have_a_limit_on_look_ups() {
    let mut world = world_with(|database| {
        database.lookups_per_second = 30;
        database.lookups_per_second_per_source = 10;
    });
    let mut send = |host: u8, number: u32| {
        let client = Client { username: format!("name-{host}-{number}"), ..world.client(host) };
        let packet = allocate_request(&mut world, &client);
        match world.client_packet(&client.tuple, &packet).0 {
            FromClient::Wait => {
                assert!(matches!(world.action(), Some(Action::LookUp(_))));
                None
            }
            FromClient::Drop(reason) => Some(Outcome::Dropped(reason)),
            FromClient::Respond(response) => {
                assert_eq!(logged(&mut world), AuthFailure::DatabaseUnavailable);
                Some(response.outcome)
            }
            other => panic!("{other:?}"),
        }
    };
    let of_one: Vec<_> = (0..21).map(|number| send(1, number)).collect();
    assert!(of_one[..20].iter().all(Option::is_none));
    assert_eq!(of_one[20], Some(Outcome::Dropped(DropReason::LookupLimit)));
    let of_others: Vec<_> = (0..11).map(|number| send(2, number)).collect();
    assert!(of_others[..10].iter().all(Option::is_none));
    assert_eq!(of_others[10], Some(Outcome::Rejected(RejectionCode::ServerError)));
}

#[test]
fn the_requests_that_wait_are_bounded_in_number_and_length() {
    let mut world = world();
    let carol = carol(&world, 1);
    let padding = Raw(crate::stun::AttributeType::new(0x8fff), &[0; 2_100]);
    let packet = carol.request(world.transaction(), Method::ALLOCATE, &[&RequestedTransport::UDP, &padding]);
    assert_eq!(world.response_to(&carol.tuple, &packet).code(), Some(500));
    assert_eq!(logged(&mut world), AuthFailure::DatabaseUnavailable);
    let mut waiting = 0;
    for _ in 0..1_000 {
        let packet = allocate_request(&mut world, &carol);
        match world.client_packet(&carol.tuple, &packet).0 {
            FromClient::Wait => waiting += 1,
            _ => assert_eq!(logged(&mut world), AuthFailure::DatabaseUnavailable),
        }
        if waiting == 1 && world.server.has_actions() {
            assert!(matches!(world.action(), Some(Action::LookUp(_))));
        }
    }
    assert_eq!(waiting, 256);
}

#[test]
fn a_request_whose_connection_ends_is_abandoned() {
    let mut world = world();
    let mut carol = carol(&world, 1);
    carol.tuple.transport = Transport::Tcp;
    let packet = allocate_request(&mut world, &carol);
    must_wait(&mut world, &carol, &packet);
    world.server.connection_closed(world.now, &carol.tuple);
    assert_eq!(resumed_outcome(&mut world), Outcome::Dropped(DropReason::LookupAbandoned));
    let packet = allocate_request(&mut world, &carol);
    must_wait(&mut world, &carol, &packet);
    world.server.stop(world.now);
    assert_eq!(resumed_outcome(&mut world), Outcome::Dropped(DropReason::LookupAbandoned));
}

#[test]
fn another_database_knows_other_users() {
    let mut world = world();
    let carol = carol(&world, 1);
    allocate_by_look_up(&mut world, &carol);
    let mut other = blueprint();
    other.database = Some(UserDatabase { source: "other".into(), ..database() });
    let relays = world.relays().clone();
    world.server.reconfigure(other.snapshot_with(relays));
    while world.server.review(world.now, 64) {}
    let packet = carol.request(world.transaction(), Method::REFRESH, &[]);
    must_wait(&mut world, &carol, &packet);
    // A response of the former database causes another look-up.
    looked_up(&mut world, "carol", Some(carol.key()));
    assert_eq!(world.action(), Some(Action::LookUp("carol".into())));
    assert_eq!(world.resume(), None);
    world.server.looked_up(world.now, "other", "carol", Ok(Some(carol.key())));
    assert!(matches!(resumed_outcome(&mut world), Outcome::Answered(_)));
}

#[test]
fn without_the_database_its_users_are_removed() {
    let mut world = world();
    let carol = carol(&world, 1);
    let relay = allocate_by_look_up(&mut world, &carol);
    let relays = world.relays().clone();
    world.server.reconfigure(blueprint().snapshot_with(relays));
    while world.server.review(world.now, 64) {}
    world.permit(&carol, peer(1));
    assert_eq!(world.error_code(&carol, Method::REFRESH, &[]), 401);
    assert_eq!(world.expect_end(&relay).reason, EndReason::CredentialsRemoved);
}

#[test]
fn a_revoked_user_of_the_database_is_rejected() {
    let mut blueprint = blueprint();
    blueprint.database = Some(database());
    blueprint.revoked = vec!["carol".to_owned()];
    let mut world = World::with(|world| *world = blueprint);
    let carol = carol(&world, 1);
    let packet = allocate_request(&mut world, &carol);
    must_wait(&mut world, &carol, &packet);
    looked_up(&mut world, "carol", Some(carol.key()));
    assert_eq!((resumed_outcome(&mut world), logged(&mut world)), (REJECTED, AuthFailure::Revoked));
}

#[test]
fn features_that_need_every_name_are_not_announced() {
    let world = world();
    assert_eq!(world.server.snapshot().authenticator.features(), SecurityFeatures::default());
    assert_eq!(SecurityFeatures::of(&world.nonce(address("192.0.2.1:1"))), Some(SecurityFeatures::default()));
}
