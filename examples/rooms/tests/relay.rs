//! Relayed addresses at a real relay.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "support/mod.rs"]
mod support;

use std::net::SocketAddr;

use rooms::message::{Ice, IceServer};
use rooms::relay::{Relay, RelayEvent};
use support::relay::RelayProcess;
use support::{PATIENCE, SECRET};
use tokio::sync::watch;
use tokio::time::timeout;
use turnserver::auth::{Secret, time_limited};
use turnserver::clock::unix_seconds;

fn ice(url: String) -> Ice {
    let expires = unix_seconds() + 600;
    let credential = time_limited::mint(&Secret::new(SECRET).unwrap(), Some("test"), expires);
    let (username, credential) = (credential.username, credential.password.as_str().to_owned());
    Ice { ice_servers: vec![IceServer { urls: vec![url], username, credential }], expires }
}

async fn next(relay: &mut Relay) -> RelayEvent {
    timeout(PATIENCE, relay.next()).await.unwrap().unwrap()
}

async fn allocated(relay: &mut Relay) -> SocketAddr {
    match next(relay).await {
        RelayEvent::Allocated(addresses) => addresses[0],
        other => panic!("{other:?}"),
    }
}

async fn data(relay: &mut Relay) -> (SocketAddr, SocketAddr, Vec<u8>) {
    match next(relay).await {
        RelayEvent::Data { peer, local, data } => (peer, local, data),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn data_passes_between_two_relayed_addresses_over_udp_and_tcp() {
    let process = RelayProcess::start();
    let (_first, udp) = watch::channel(ice(process.url("udp")));
    let (_second, tcp) = watch::channel(ice(process.url("tcp")));
    let (mut one, mut two) = (Relay::start(udp), Relay::start(tcp));
    let (at_one, at_two) = (allocated(&mut one).await, allocated(&mut two).await);
    // The first datagram opens the way: what comes before the permission of the receiver is lost.
    two.send(at_one, b"open".to_vec());
    let mut answers = 0;
    while answers == 0 {
        one.send(at_two, b"ping".to_vec());
        if let Ok(Some(RelayEvent::Data { .. })) = timeout(std::time::Duration::from_millis(200), two.next()).await {
            answers += 1;
        }
    }
    two.send(at_one, b"pong".to_vec());
    loop {
        let (peer, local, content) = data(&mut one).await;
        assert_eq!((peer, local), (at_two, at_one));
        if content == b"pong" {
            break;
        }
    }
}

#[tokio::test]
async fn after_the_relay_was_restarted_there_is_a_new_address() {
    let process = RelayProcess::start();
    let (credentials, receiver) = watch::channel(ice(process.url("tcp")));
    let mut relay = Relay::start(receiver);
    allocated(&mut relay).await;
    drop(process);
    assert!(matches!(next(&mut relay).await, RelayEvent::Lost));
    let again = RelayProcess::start();
    // The next attempt uses the newest URLs and credentials.
    credentials.send_replace(ice(again.url("tcp")));
    allocated(&mut relay).await;
}

#[tokio::test]
async fn a_server_that_is_not_there_is_left_for_the_next_one() {
    let process = RelayProcess::start();
    let mut both = ice("turn:127.0.0.1:1?transport=tcp".to_owned());
    both.ice_servers.extend(ice(process.url("udp")).ice_servers);
    let (_credentials, receiver) = watch::channel(both);
    allocated(&mut Relay::start(receiver)).await;
}
