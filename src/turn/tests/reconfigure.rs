//! Reconfiguration of a running server, and the listing, ending, export and import of allocations.

use std::net::{IpAddr, SocketAddr};

use crate::stun::Method;
use crate::stun::attribute::{ChannelNumber, XorPeerAddress};
use crate::test_world::Blueprint;
use crate::turn::tests::support::*;
use crate::turn::{
    Action, AllocationRecord, ChannelNumbers, Cursor, DropReason, EndReason, Epoch, Event, Filter, ImportError,
    Operator, Rate, RelayRecord,
};

/// Replaces the configuration, and reviews every allocation.
fn reconfigure(world: &mut World, change: impl FnOnce(&mut Blueprint)) {
    let mut blueprint = blueprint();
    change(&mut blueprint);
    world.server.reconfigure(blueprint.snapshot_with(world.relays().clone()));
    while world.server.review(world.now, 1) {}
}

/// Returns the events since the last call, and reports the sockets closed.
fn events(world: &mut World, relays: &[Relay]) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(action) = world.action() {
        match action {
            Action::Log(event) => events.push(event),
            Action::Close { socket, bind } => {
                assert!(relays.iter().any(|relay| relay.id == socket && relay.bind == bind));
                world.server.socket_closed(bind);
            }
            other => panic!("{other:?}"),
        }
    }
    world.server.check_invariants(0);
    events
}

#[test]
fn the_allocations_of_a_removed_user_end_at_their_next_refresh() {
    let mut world = World::new();
    let clients = [world.client(1), world.client(2).as_user(1), world.client(3).with_credential("carol", UNIX + 900)];
    let relays = clients.clone().map(|client| world.allocate(&client));
    let [_, bob, carol] = &clients;
    reconfigure(&mut world, |blueprint| blueprint.users.retain(|(name, _)| name != "bob"));
    assert_eq!(events(&mut world, &relays), []);
    // Until then, it works as before, and nobody makes a new one.
    world.permit(bob, peer(1));
    let udp = crate::stun::attribute::RequestedTransport::UDP;
    assert_eq!(world.error_code(&world.client(9).as_user(1), Method::ALLOCATE, &[&udp]), 401);
    world.event();
    // Bob's credentials are valid again before his next Refresh.
    reconfigure(&mut world, |blueprint| blueprint.secrets.clear());
    world.accept(bob, Method::REFRESH, &[]);
    assert_eq!(world.error_code(carol, Method::REFRESH, &[]), 401);
    let [Event::AllocationEnded(summary)] = &events(&mut world, &relays)[..] else { panic!("one allocation ends") };
    assert_eq!((summary.user.as_str(), summary.reason), ("carol", EndReason::CredentialsRemoved));
    reconfigure(&mut world, |_| {});
    assert_eq!(events(&mut world, &relays), []);
    assert_eq!(world.footprint().allocations, 2);
}

#[test]
fn an_allocation_that_has_expired_makes_no_new_one_with_removed_credentials() {
    let mut world = World::new();
    let client = world.client(1);
    let relays = [world.allocate(&client)];
    reconfigure(&mut world, |blueprint| blueprint.users.clear());
    // Its time has passed, and the server has not noticed yet.
    world.now = world.now.plus(std::time::Duration::from_secs(601));
    let udp = crate::stun::attribute::RequestedTransport::UDP;
    assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&udp]), 401);
    world.event();
    assert_eq!(events(&mut world, &relays), []);
}

#[test]
fn a_client_may_end_its_allocation_after_its_credentials_were_removed() {
    let mut world = World::new();
    let client = world.client(1);
    let relays = [world.allocate(&client)];
    reconfigure(&mut world, |blueprint| blueprint.users.clear());
    world.accept(&client, Method::REFRESH, &[&crate::stun::attribute::Lifetime(0)]);
    let [Event::AllocationEnded(summary)] = &events(&mut world, &relays)[..] else { panic!("one allocation ends") };
    assert_eq!(summary.reason, EndReason::Deleted);
}

#[test]
fn the_allocations_of_a_revoked_user_end_at_once() {
    let mut world = World::new();
    let clients = [world.client(1), world.client(2).as_user(1)];
    let relays = clients.clone().map(|client| world.allocate(&client));
    reconfigure(&mut world, |blueprint| blueprint.revoked = vec!["bob".to_owned()]);
    let [Event::AllocationEnded(summary)] = &events(&mut world, &relays)[..] else { panic!("one allocation ends") };
    assert_eq!((summary.user.as_str(), summary.reason), ("bob", EndReason::CredentialsRevoked));
}

#[test]
fn an_allocation_continues_after_the_realm_has_changed() {
    let mut world = World::new();
    let clients = [world.client(1), world.client(3).with_credential("carol", UNIX + 900)];
    let relays = clients.clone().map(|client| world.allocate(&client));
    let change = |blueprint: &mut Blueprint| {
        blueprint.former_realms = vec![std::mem::replace(&mut blueprint.realm, "new.example".to_owned())];
    };
    reconfigure(&mut world, change);
    for client in &clients {
        world.accept(client, Method::REFRESH, &[]);
        world.permit(client, peer(1));
    }
    // The key of the old realm makes no new allocation.
    let udp = crate::stun::attribute::RequestedTransport::UDP;
    assert_eq!(world.error_code(&world.client(4), Method::ALLOCATE, &[&udp]), 401);
    world.event();
    assert_eq!(events(&mut world, &relays), []);
}

#[test]
fn a_new_password_ends_the_allocations_of_the_old_one_and_applies_to_requests_at_once() {
    let mut world = World::new();
    let client = world.client(1);
    let relays = [world.allocate(&client)];
    let mut changed = blueprint();
    changed.users.clear();
    let changed = changed.user("alice", "looking-glass");
    world.server.reconfigure(changed.snapshot_with(world.relays().clone()));
    // The allocation continues until the review.
    let new = Client { password: "looking-glass".to_owned(), ..world.client(2) };
    let other = world.allocate(&new);
    assert_eq!(world.error_code(&world.client(3), Method::ALLOCATE, &[]), 401);
    world.event();
    while world.server.review(world.now, 1) {}
    assert_eq!(events(&mut world, &relays), []);
    assert_eq!(world.error_code(&client, Method::REFRESH, &[]), 401);
    let [Event::AllocationEnded(summary)] = &events(&mut world, &relays)[..] else { panic!("one allocation ends") };
    assert_eq!(summary.reason, EndReason::CredentialsRemoved);
    assert!(world.peer_packet(other.id, peer(1), b"x").is_err_and(|reason| reason == DropReason::NoPermission));
}

#[test]
fn a_refresh_with_the_new_password_keeps_the_allocation() {
    let mut world = World::new();
    let client = world.client(1);
    let relays = [world.allocate(&client)];
    let mut changed = blueprint();
    changed.users.clear();
    let changed = changed.user("alice", "looking-glass");
    world.server.reconfigure(changed.snapshot_with(world.relays().clone()));
    while world.server.review(world.now, 1) {}
    let new = Client { password: "looking-glass".to_owned(), ..client };
    for _ in 0..2 {
        world.accept(&new, Method::REFRESH, &[]);
    }
    assert_eq!(events(&mut world, &relays), []);
}

#[test]
fn a_refresh_of_a_removed_user_is_rejected_before_the_others_are_reviewed() {
    let mut world = World::new();
    let client = world.client(1);
    let relays = [world.allocate(&client)];
    let mut changed = blueprint();
    changed.users.clear();
    world.server.reconfigure(changed.snapshot_with(world.relays().clone()));
    assert_eq!(world.error_code(&client, Method::REFRESH, &[]), 401);
    assert_eq!(events(&mut world, &relays).len(), 1);
    while world.server.review(world.now, 1) {}
}

#[test]
fn peers_that_the_new_policy_denies_lose_their_permissions_and_channels() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client);
    for host in [1, 2] {
        let number = ChannelNumber(0x4000 + u16::from(host));
        world.accept(&client, Method::CHANNEL_BIND, &[&number, &XorPeerAddress(peer(host))]);
    }
    world.permit(&client, peer(3));
    reconfigure(&mut world, |blueprint| {
        blueprint
            .policy
            .deny
            .extend(["198.51.100.1/32", "198.51.100.3/32"].map(|net| net.parse::<ipnet::IpNet>().unwrap()));
    });
    let [Event::PeersRevoked { id, permissions, channels, .. }] = &events(&mut world, &[relay])[..] else {
        panic!("one allocation loses peers")
    };
    assert_eq!((*id, *permissions, *channels), (relay.id.allocation(), 2, 1));
    assert_eq!(world.routes.iter().map(|route| route.peer).collect::<Vec<_>>(), [peer(2)]);
    assert_eq!(world.dropped(&client.tuple, &channel_data(0x4001, b"x")), DropReason::ChannelNotBound);
    assert_eq!(world.relayed(&client.tuple, &channel_data(0x4002, b"x")).1, peer(2));
    assert_eq!(world.peer_packet(relay.id, peer(3), b"x"), Err(DropReason::NoPermission));
    let attributes = XorPeerAddress(peer(3));
    assert_eq!(world.error_code(&client, Method::CREATE_PERMISSION, &[&attributes]), 403);
    world.event();
}

#[test]
fn channels_above_0x4fff_end_when_they_are_no_longer_accepted() {
    let mut world = World::with(|setup| setup.compat.channels = ChannelNumbers::Rfc5766);
    let client = world.client(1);
    let relay = world.allocate(&client);
    world.accept(&client, Method::CHANNEL_BIND, &[&ChannelNumber(0x5000), &XorPeerAddress(peer(1))]);
    reconfigure(&mut world, |_| {});
    let [Event::PeersRevoked { permissions: 0, channels: 1, .. }] = &events(&mut world, &[relay])[..] else {
        panic!("one channel ends")
    };
    assert_eq!(world.routes, []);
}

#[test]
fn lower_limits_apply_to_new_requests_only() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate(&client);
    (1..=3).for_each(|host| world.permit(&client, peer(host)));
    reconfigure(&mut world, |blueprint| {
        blueprint.limits.permissions_per_allocation = 2;
        blueprint.limits.allocations_per_user = 1;
    });
    world.permit(&client, peer(3));
    assert_eq!(world.error_code(&client, Method::CREATE_PERMISSION, &[&XorPeerAddress(peer(4))]), 508);
    world.logged_limit();
    let udp = crate::stun::attribute::RequestedTransport::UDP;
    assert_eq!(world.error_code(&world.client(2), Method::ALLOCATE, &[&udp]), 486);
    world.logged_limit();
    // Refreshing a permission is not charged. Otherwise it would fail here: the new peers owe five seconds at the old
    // rate, and the burst of the new rate is four seconds.
    reconfigure(&mut world, |blueprint| blueprint.limits.peer_rate = Rate::of_peers(1));
    (4..=8).for_each(|host| world.permit(&client, peer(host)));
    reconfigure(&mut world, |blueprint| blueprint.limits.peer_rate = Rate::of_peers(1000));
    world.permit(&client, peer(8));
}

#[test]
fn allocations_are_listed_in_pages_described_and_ended() {
    let mut world = World::new();
    let clients: Vec<_> = (1..=5).map(|host| world.client(host)).collect();
    let relays: Vec<_> = clients.iter().map(|client| world.allocate(client)).collect();
    world.accept(&clients[2], Method::CHANNEL_BIND, &[&ChannelNumber(0x4000), &XorPeerAddress(peer(1))]);
    world.permit(&clients[2], peer(2));
    world.relayed(&clients[2].tuple, &channel_data(0x4000, &[7; 30]));
    world.action();
    let (mut listed, mut cursor, mut pages) = (Vec::new(), Cursor::default(), 0);
    loop {
        let page = world.server.allocations(world.now, cursor, 2, &Filter::default());
        assert!(page.allocations.len() <= 2);
        listed.extend(page.allocations);
        pages += 1;
        match page.next {
            Some(next) => cursor = next,
            None => break,
        }
    }
    assert_eq!((listed.len(), pages), (5, 3));
    let third = listed.iter().find(|info| info.tuple == clients[2].tuple).unwrap();
    assert_eq!((third.permissions, third.channels, third.expires_in), (2, 1, 600));
    assert_eq!((third.traffic.packets_to_peers, third.traffic.bytes_to_peers), (1, 30));
    let detail = world.server.describe(world.now, third.id).unwrap();
    assert_eq!(detail.permissions, [(peer(1).ip(), 300), (peer(2).ip(), 300)]);
    assert_eq!(detail.channels, [(0x4000, peer(1), 600)]);
    let operator = Operator { process: Some(7), user: Some(0) };
    assert!(world.server.end_allocation(world.now, third.id, operator));
    let reason = world.expect_end(&relays[2]).reason;
    assert_eq!(reason, EndReason::EndedByOperator(operator));
    assert_eq!(reason.to_string(), "ended by the operator (process 7 of user 0)");
    assert!(!world.server.end_allocation(world.now, third.id, operator));
    assert_eq!(world.server.describe(world.now, third.id), None);
}

#[test]
fn a_listing_may_be_limited_to_a_user_a_client_or_a_peer() {
    let mut world = World::new();
    let clients: Vec<_> = (1..=3).map(|host| world.client(host)).collect();
    for client in &clients {
        world.allocate(client);
    }
    world.permit(&clients[0], peer(1));
    world.accept(&clients[1], Method::CHANNEL_BIND, &[&ChannelNumber(0x4000), &XorPeerAddress(peer(2))]);
    world.action();
    let listed = |filter: Filter| -> Vec<SocketAddr> {
        let page = world.server.allocations(world.now, Cursor::default(), 100, &filter);
        page.allocations.iter().map(|info| info.tuple.client).collect()
    };
    let net = |address: IpAddr| Some(ipnet::IpNet::from(address));
    let [first, second, third] = [0, 1, 2].map(|at| clients[at].tuple.client);
    assert_eq!(listed(Filter::default()), [first, second, third]);
    assert_eq!(listed(Filter { user: Some("alice".to_owned()), ..Filter::default() }), [first, second, third]);
    assert_eq!(listed(Filter { user: Some("alic".to_owned()), ..Filter::default() }), []);
    assert_eq!(listed(Filter { client: net(second.ip()), ..Filter::default() }), [second]);
    assert_eq!(listed(Filter { peer: net(peer(1).ip()), ..Filter::default() }), [first]);
    assert_eq!(listed(Filter { peer: net(peer(2).ip()), ..Filter::default() }), [second]);
    assert_eq!(listed(Filter { client: net(first.ip()), peer: net(peer(2).ip()), user: None }), []);
}

fn records(world: &World) -> (Epoch, Vec<AllocationRecord>) {
    let epoch = Epoch { now: world.now, unix: seconds(world.unix) };
    (epoch, world.server.export(epoch).collect())
}

#[test]
fn an_imported_allocation_continues_in_the_other_process() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client);
    world.accept(&client, Method::CHANNEL_BIND, &[&ChannelNumber(0x4000), &XorPeerAddress(peer(1))]);
    world.action();
    let (epoch, all) = records(&world);
    let mut successor = world.successor();
    let sockets = successor.server.import(epoch, &all[0]).unwrap();
    assert_eq!((sockets.len(), sockets[0].bind), (1, relay.bind));
    assert_eq!(successor.relayed(&client.tuple, &channel_data(0x4000, b"on")).1, peer(1));
    let to_client = successor.peer_packet(sockets[0].socket, peer(1), b"and on").unwrap();
    assert_eq!(to_client.0, client.tuple);
    assert_eq!(successor.footprint().counted, 1);
    successor.accept(&client, Method::REFRESH, &[]);
    successor.action();
    // It cannot be imported twice, and a failed import changes nothing.
    let before = successor.footprint();
    assert_eq!(successor.server.import(epoch, &all[0]).unwrap_err(), ImportError::TupleInUse);
    let other = AllocationRecord { tuple: world.client(2).tuple, ..all[0].clone() };
    assert_eq!(successor.server.import(epoch, &other).unwrap_err(), ImportError::Port(relay.bind));
    assert_eq!(successor.footprint(), before);
    successor.server.check_invariants(0);
}

#[test]
fn peers_that_the_other_process_denies_are_not_imported() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate(&client);
    for host in [1, 2] {
        let number = ChannelNumber(0x4000 + u16::from(host));
        world.accept(&client, Method::CHANNEL_BIND, &[&number, &XorPeerAddress(peer(host))]);
    }
    let (epoch, all) = records(&world);
    let mut successor = World::with(|setup| {
        setup.policy.deny.extend(["198.51.100.1/32".parse::<ipnet::IpNet>().unwrap()]);
        setup.limits.permissions_per_allocation = 1;
        setup.limits.channels_per_allocation = 0;
    });
    successor.server.import(epoch, &all[0]).unwrap();
    let Event::PeersRevoked { permissions, channels, .. } = successor.event() else { panic!("peers are revoked") };
    assert_eq!((permissions, channels), (1, 1));
    assert_eq!(successor.routes.iter().map(|route| route.peer).collect::<Vec<_>>(), [peer(2)]);
    assert_eq!(successor.dropped(&client.tuple, &channel_data(0x4001, b"x")), DropReason::ChannelNotBound);
    assert_eq!(successor.relayed(&client.tuple, &channel_data(0x4002, b"x")).1, peer(2));
    successor.server.check_invariants(0);
}

#[test]
fn an_allocation_with_invalid_credentials_or_past_its_expiry_is_not_imported() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate(&client);
    let (epoch, all) = records(&world);
    let mut successor = World::with(|setup| setup.users.clear());
    assert_eq!(successor.server.import(epoch, &all[0]).unwrap_err(), ImportError::Credentials);
    let mut successor = world.successor();
    let relay = RelayRecord { bind: address("192.0.2.1:50999"), ..all[0].relays[0] };
    let twice = AllocationRecord { relays: vec![all[0].relays[0], relay], ..all[0].clone() };
    assert_eq!(successor.server.import(epoch, &twice).unwrap_err(), ImportError::Relays);
    let late = Epoch { unix: epoch.unix + seconds(600), ..epoch };
    assert_eq!(successor.server.import(late, &all[0]).unwrap_err(), ImportError::Expired);
    assert_eq!(successor.footprint(), EMPTY);
    assert!(!format!("{:?}", all[0]).contains("wonderland"));
}
