//! RFC 8656 §8.2.

use std::time::Duration;

use crate::stun::attribute::{AddressFamily, Lifetime, RequestedAddressFamily, RequestedTransport, XorPeerAddress};
use crate::stun::{AttributeType, Method};
use crate::turn::tests::authentication::CHALLENGE;
use crate::turn::tests::support::*;
use crate::turn::{AuthCause, EndReason, Event};

// The desired lifetime: the default where less is asked for or nothing, the maximum where more is.
#[test]
fn refresh_sets_the_lifetime_between_the_default_and_the_maximum() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate_with(&client, &[&Lifetime(3_600)]);
    for (asked, given) in [(1, 600), (599, 600), (601, 601), (3_600, 3_600), (3_601, 3_600), (u32::MAX, 3_600)] {
        let answer = world.accept(&client, Method::REFRESH, &[&Lifetime(asked)]);
        assert_eq!(answer.lifetime(), Some(given), "asked for {asked}");
        let kinds = [AttributeType::LIFETIME, AttributeType::SOFTWARE, AttributeType::MESSAGE_INTEGRITY];
        assert_eq!(answer.kinds(), kinds);
    }
    // Without LIFETIME it is the default, and that may be less than what was left.
    assert_eq!(world.accept(&client, Method::REFRESH, &[]).lifetime(), Some(600));
    world.advance(Duration::from_millis(599_999));
    assert_eq!(world.server.allocation_count(), 1);
    world.advance(Duration::from_millis(1));
    assert_eq!(world.ended(&relay).reason, EndReason::Expired);
}

#[test]
fn refresh_postpones_the_end_to_the_second() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client);
    world.advance(seconds(599));
    world.accept(&client, Method::REFRESH, &[&Lifetime(1_000)]);
    world.advance(seconds(999));
    assert_eq!(world.server.allocation_count(), 1);
    world.advance(seconds(1));
    assert_eq!(world.ended(&relay).duration, seconds(1_599));
    assert_eq!(world.footprint(), NOTHING);
}

// An allocation is over when its time is, and not when somebody next looks.
#[test]
fn refresh_after_the_end_is_437() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate(&client);
    world.pass(seconds(600));
    assert_eq!(world.refusal(&client, Method::REFRESH, &[]), 437);
    assert_eq!(world.refusal(&client, Method::CREATE_PERMISSION, &[&XorPeerAddress(peer(1))]), 437);
}

// Zero deletes; the retransmission is 437, which the client takes for success (§8.3).
#[test]
fn refresh_with_zero_deletes_the_allocation_and_all_that_it_held() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client);
    world.permit(&client, peer(1));
    let request = client.request(world.transaction(), Method::REFRESH, &[&Lifetime(0)]);
    let answer = world.answer_to(&client.tuple, &request);
    assert_eq!((answer.code(), answer.lifetime()), (None, Some(0)));
    assert!(answer.is_signed_for(&client));
    let summary = world.ended(&relay);
    assert_eq!((summary.reason, summary.tuple, summary.user.as_str()), (EndReason::Deleted, client.tuple, "alice"));
    assert_eq!(world.footprint(), NOTHING);
    assert_eq!(world.answer_to(&client.tuple, &request).code(), Some(437));
    // The next allocation of the 5-tuple begins with nothing (§7.2).
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
        assert_eq!(world.refusal(&client, Method::REFRESH, &[&Raw(AttributeType::LIFETIME, value)]), 400);
    }
    world.advance(seconds(500));
    world.ended(&relay);
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
    assert_eq!(world.refusal(&first, Method::REFRESH, &[&v6, &Lifetime(0)]), 443);
    assert_eq!(world.refusal(&second, Method::REFRESH, &[&v4, &Lifetime(0)]), 443);
    let unknown = Raw(AttributeType::REQUESTED_ADDRESS_FAMILY, &[3, 0, 0, 0]);
    assert_eq!(world.refusal(&first, Method::REFRESH, &[&unknown]), 443);
    assert_eq!(world.refusal(&first, Method::REFRESH, &[&Raw(AttributeType::REQUESTED_ADDRESS_FAMILY, &[1])]), 400);
    world.accept(&first, Method::REFRESH, &[&v4, &Lifetime(0)]);
    world.ended(&relay);
}

#[test]
fn unknown_attributes_in_refresh_are_420() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate(&client);
    let unknown = Raw(AttributeType::new(0x7abc), &[]);
    assert_eq!(world.refusal(&client, Method::REFRESH, &[&Lifetime(0), &unknown]), 420);
    assert_eq!(world.server.allocation_count(), 1);
}

// A time-limited credential keeps its allocation for the grace period beyond its expiry, and no longer.
#[test]
fn refresh_is_capped_by_the_expiry_of_the_credential_and_its_grace() {
    let mut world = World::new();
    let client = world.client(1).with_credential("carol", UNIX + 1_000);
    let relay = world.allocate(&client);
    let refresh = |world: &mut World| world.accept(&client, Method::REFRESH, &[&Lifetime(3_600)]).lifetime();
    assert_eq!(refresh(&mut world), Some(1_700));
    world.advance(seconds(1_000));
    assert_eq!(refresh(&mut world), Some(700), "expired, and within the grace period");
    world.advance(seconds(600));
    // Less than the default, and never more than what is left.
    assert_eq!(world.accept(&client, Method::REFRESH, &[]).lifetime(), Some(100));
    world.accept(&client, Method::CREATE_PERMISSION, &[&XorPeerAddress(peer(1))]);
    world.advance(seconds(100));
    assert_eq!(world.ended(&relay).reason, EndReason::Expired);
    assert_eq!(world.footprint(), NOTHING);
}

// What it was given before the expiry stays with it, and it may always be deleted.
#[test]
fn refresh_after_the_grace_is_401_and_leaves_the_allocation_its_time() {
    let mut world = World::with(|setup| setup.expiry_grace = 0);
    let client = world.client(1).with_credential("carol", UNIX + 10);
    let relay = world.allocate_with(&client, &[&Lifetime(600)]);
    world.pass(seconds(10));
    let answer = world.ask(&client, Method::REFRESH, &[]);
    assert_eq!(answer.code(), Some(401));
    assert_eq!(answer.kinds(), CHALLENGE);
    assert!(matches!(world.event(), Event::AuthenticationFailed { cause: AuthCause::Expired { ago: 0 }, .. }));
    world.permit(&client, peer(1));
    assert!(world.peer_packet(relay.id, peer(1), b"in").is_ok());
    world.accept(&client, Method::REFRESH, &[&Lifetime(0)]);
    assert_eq!(world.ended(&relay).reason, EndReason::Deleted);
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
