//! RFC 8656 §8.2.

use std::time::Duration;

use crate::stun::attribute::{AddressFamily, Lifetime, RequestedAddressFamily, RequestedTransport, XorPeerAddress};
use crate::stun::{AttributeType, Method};
use crate::turn::tests::authentication::CHALLENGE;
use crate::turn::tests::support::*;
use crate::turn::{AuthCause, EndReason, Event};

// A shorter or missing lifetime is raised to the default, a longer one is lowered to the maximum.
#[test]
fn refresh_sets_the_lifetime_between_the_default_and_the_maximum() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate_with(&client, &[&Lifetime(3_600)]);
    for (requested, given) in [(1, 600), (599, 600), (601, 601), (3_600, 3_600), (3_601, 3_600), (u32::MAX, 3_600)] {
        let response = world.accept(&client, Method::REFRESH, &[&Lifetime(requested)]);
        assert_eq!(response.lifetime(), Some(given), "requested {requested}");
        let kinds = [AttributeType::LIFETIME, AttributeType::SOFTWARE, AttributeType::MESSAGE_INTEGRITY];
        assert_eq!(response.kinds(), kinds);
    }
    // Without LIFETIME it is the default, which may be shorter than the remaining time.
    assert_eq!(world.accept(&client, Method::REFRESH, &[]).lifetime(), Some(600));
    world.advance(Duration::from_millis(599_999));
    assert_eq!(world.server.allocation_count(), 1);
    world.advance(Duration::from_millis(1));
    assert_eq!(world.expect_end(&relay).reason, EndReason::Expired);
}

// All other tests show that there are no such events unless the snapshot wants them.
#[test]
fn refreshes_are_events_if_the_snapshot_says_so() {
    let mut world = World::with(|setup| setup.refresh_events = true);
    let client = world.client(1);
    let relay = world.allocate(&client);
    for (requested, given) in [(1_000, 1_000), (1, 600), (0, 0)] {
        world.accept(&client, Method::REFRESH, &[&Lifetime(requested)]);
        let Event::AllocationRefreshed { id, lifetime, tuple, .. } = world.event() else { panic!("it was refreshed") };
        assert_eq!((id, lifetime, tuple), (relay.id.allocation(), given, client.tuple));
    }
    assert_eq!(world.expect_end(&relay).reason, EndReason::Deleted);
}

#[test]
fn refresh_extends_the_allocation_to_the_second() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client);
    world.advance(seconds(599));
    world.accept(&client, Method::REFRESH, &[&Lifetime(1_000)]);
    world.advance(seconds(999));
    assert_eq!(world.server.allocation_count(), 1);
    world.advance(seconds(1));
    assert_eq!(world.expect_end(&relay).duration, seconds(1_599));
    assert_eq!(world.footprint(), EMPTY);
}

// An allocation ends at its expiry, also before `advance` is called.
#[test]
fn refresh_after_the_expiry_is_437() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate(&client);
    world.pass(seconds(600));
    assert_eq!(world.error_code(&client, Method::REFRESH, &[]), 437);
    assert_eq!(world.error_code(&client, Method::CREATE_PERMISSION, &[&XorPeerAddress(peer(1))]), 437);
}

// A lifetime of zero deletes the allocation. A retransmission is 437, which the client treats as success (§8.3).
#[test]
fn refresh_with_lifetime_zero_deletes_the_allocation_and_its_state() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client);
    world.permit(&client, peer(1));
    let request = client.request(world.transaction(), Method::REFRESH, &[&Lifetime(0)]);
    let response = world.response_to(&client.tuple, &request);
    assert_eq!((response.code(), response.lifetime()), (None, Some(0)));
    assert!(response.is_signed_for(&client));
    let summary = world.expect_end(&relay);
    assert_eq!((summary.reason, summary.tuple, summary.user.as_str()), (EndReason::Deleted, client.tuple, "alice"));
    assert_eq!(world.footprint(), EMPTY);
    assert_eq!(world.response_to(&client.tuple, &request).code(), Some(437));
    // The next allocation of the 5-tuple has no permissions (§7.2).
    let next = world.allocate(&client);
    assert!(world.peer_packet(next.id, peer(1), b"in").is_err());
}

#[test]
fn malformed_lifetime_is_400_and_changes_nothing() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client);
    world.pass(seconds(100));
    for value in [&[][..], &[0, 0], &[0, 0, 0, 0, 0]] {
        assert_eq!(world.error_code(&client, Method::REFRESH, &[&Raw(AttributeType::LIFETIME, value)]), 400);
    }
    world.advance(seconds(500));
    world.expect_end(&relay);
}

// REQUESTED-ADDRESS-FAMILY that is not the allocation's → 443.
#[test]
fn refresh_of_the_other_address_family_is_443() {
    let mut world = World::new();
    let (first, second) = (world.client(1), world.client(2));
    let [v4, v6] = [AddressFamily::V4, AddressFamily::V6].map(RequestedAddressFamily);
    let relay = world.allocate(&first);
    world.allocate_with(&second, &[&v6]);
    world.accept(&first, Method::REFRESH, &[&v4]);
    world.accept(&second, Method::REFRESH, &[&v6]);
    assert_eq!(world.error_code(&first, Method::REFRESH, &[&v6, &Lifetime(0)]), 443);
    assert_eq!(world.error_code(&second, Method::REFRESH, &[&v4, &Lifetime(0)]), 443);
    let unknown = Raw(AttributeType::REQUESTED_ADDRESS_FAMILY, &[3, 0, 0, 0]);
    assert_eq!(world.error_code(&first, Method::REFRESH, &[&unknown]), 443);
    assert_eq!(world.error_code(&first, Method::REFRESH, &[&Raw(AttributeType::REQUESTED_ADDRESS_FAMILY, &[1])]), 400);
    world.accept(&first, Method::REFRESH, &[&v4, &Lifetime(0)]);
    world.expect_end(&relay);
}

#[test]
fn unknown_attributes_in_refresh_are_420() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate(&client);
    let unknown = Raw(AttributeType::new(0x7abc), &[]);
    assert_eq!(world.error_code(&client, Method::REFRESH, &[&Lifetime(0), &unknown]), 420);
    assert_eq!(world.server.allocation_count(), 1);
}

// A time-limited credential can refresh its allocation until the end of the grace period.
#[test]
fn refresh_is_capped_by_the_expiry_of_the_credential_plus_the_grace_period() {
    let mut world = World::new();
    let client = world.client(1).with_credential("carol", UNIX + 1_000);
    let relay = world.allocate(&client);
    let refresh = |world: &mut World| world.accept(&client, Method::REFRESH, &[&Lifetime(3_600)]).lifetime();
    assert_eq!(refresh(&mut world), Some(1_700));
    world.advance(seconds(1_000));
    assert_eq!(refresh(&mut world), Some(700), "expired, and within the grace period");
    world.advance(seconds(600));
    // The lifetime is below the default, because it cannot exceed the remaining time.
    assert_eq!(world.accept(&client, Method::REFRESH, &[]).lifetime(), Some(100));
    world.accept(&client, Method::CREATE_PERMISSION, &[&XorPeerAddress(peer(1))]);
    world.advance(seconds(100));
    assert_eq!(world.expect_end(&relay).reason, EndReason::Expired);
    assert_eq!(world.footprint(), EMPTY);
}

// The allocation keeps the lifetime that it had before, and can always be deleted.
#[test]
fn refresh_after_the_grace_period_is_401_and_keeps_the_allocation() {
    let mut world = World::with(|setup| setup.expiry_grace = 0);
    let client = world.client(1).with_credential("carol", UNIX + 10);
    let relay = world.allocate_with(&client, &[&Lifetime(600)]);
    world.pass(seconds(10));
    let response = world.send_request(&client, Method::REFRESH, &[]);
    assert_eq!(response.code(), Some(401));
    assert_eq!(response.kinds(), CHALLENGE);
    let Event::AuthenticationFailed { id, cause: AuthCause::Expired { ago: 0, .. }, .. } = world.event() else {
        panic!("the credential has expired")
    };
    assert_eq!(id, Some(relay.id.allocation()));
    world.permit(&client, peer(1));
    assert!(world.peer_packet(relay.id, peer(1), b"in").is_ok());
    world.accept(&client, Method::REFRESH, &[&Lifetime(0)]);
    assert_eq!(world.expect_end(&relay).reason, EndReason::Deleted);
}

// RFC 8489 §6.3.1: known but unexpected attributes are ignored.
#[test]
fn attributes_of_other_methods_are_ignored() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client);
    world.accept(&client, Method::REFRESH, &[&RequestedTransport::TCP, &XorPeerAddress(peer(1)), &Lifetime(600)]);
    assert!(world.peer_packet(relay.id, peer(1), b"in").is_err());
}
