//! Relayed addresses at a real relay.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "support/mod.rs"]
mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rooms::connect::{Trust, connect};
use rooms::message::{Ice, IceServer};
use rooms::relay::{Relay, RelayEvent};
use support::relay::{Authority, Identity, RelayProcess};
use support::{At, PATIENCE, SECRET};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use turnserver::auth::{Secret, time_limited};
use turnserver::clock::unix_seconds;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Returns credentials for a URL.
fn ice(url: String) -> Ice {
    ice_for(url, 600)
}

/// Returns credentials that expire after some seconds.
fn ice_for(url: String, lifetime: u64) -> Ice {
    let expires = unix_seconds() + lifetime;
    let credential = time_limited::mint(&Secret::new(SECRET).unwrap(), Some("test"), expires);
    let (username, credential) = (credential.username, credential.password.as_str().to_owned());
    Ice { ice_servers: vec![IceServer { urls: vec![url], username, credential }], expires, lifetime, at_once: false }
}

fn start(ice: watch::Receiver<Ice>) -> Relay {
    Relay::start(ice, Trust::Authorities)
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

/// Sends data until it comes. Both sides open the way, since data is dropped before the permission of the receiver.
async fn passes((one, at_one): (&mut Relay, SocketAddr), (two, at_two): (&mut Relay, SocketAddr)) {
    let end = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < end, "no data from {at_one} to {at_two}");
        two.send(at_two, at_one, b"open".to_vec());
        one.send(at_one, at_two, b"data".to_vec());
        match timeout(Duration::from_millis(200), two.next()).await {
            Ok(Some(RelayEvent::Data { peer, local, data }))
                if (peer, local) == (at_one, at_two) && data == b"data" =>
            {
                return;
            }
            Ok(Some(RelayEvent::Data { .. })) | Err(_) => {}
            Ok(other) => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn data_passes_between_two_relayed_addresses_over_udp_and_tcp() {
    let process = RelayProcess::start();
    let (_first, udp) = watch::channel(ice(process.url("udp")));
    let (_second, tcp) = watch::channel(ice(process.url("tcp")));
    let (mut one, mut two) = (start(udp), start(tcp));
    let (at_one, at_two) = (allocated(&mut one).await, allocated(&mut two).await);
    passes((&mut one, at_one), (&mut two, at_two)).await;
    passes((&mut two, at_two), (&mut one, at_one)).await;
}

/// Sends numbered datagrams to a peer, and checks that they come in order.
async fn burst((relay, local): (&Relay, SocketAddr), peer: &UdpSocket) {
    for number in 0..64 {
        relay.send(local, peer.local_addr().unwrap(), vec![number]);
    }
    for number in 0..64 {
        let mut received = [0; 2];
        let length = timeout(PATIENCE, peer.recv(&mut received)).await.unwrap().unwrap();
        assert_eq!(received[..length], [number]);
    }
}

// RFC 8656 §9, §12: a permission is for an IP address, a channel for one peer.
#[tokio::test]
async fn hundreds_of_peers_are_reached_although_the_relay_permits_one_channel() {
    let limits = "[limits]\npermissions-per-allocation = 1\nchannels-per-allocation = 1\n";
    let process = RelayProcess::start_with(LOOPBACK, None, &format!("{limits}[peers]\nallow = ['127.0.0.1']\n"));
    let (_credentials, receiver) = watch::channel(ice(process.url("udp")));
    let mut relay = start(receiver);
    let local = allocated(&mut relay).await;
    let mut peers = Vec::new();
    for _ in 0..300 {
        let peer = UdpSocket::bind(LOOPBACK).await.unwrap();
        relay.send(local, peer.local_addr().unwrap(), b"check".to_vec());
        timeout(PATIENCE, peer.recv(&mut [0; 8])).await.unwrap().unwrap();
        peers.push(peer);
    }
    let http = At { address: process.http };
    let metrics = || http.request("GET /metrics");
    let has = |metrics: &str, line| metrics.lines().any(|other| other == line);
    assert!(has(&metrics().await, "turnserver_channels 0"));
    let end = Instant::now() + PATIENCE;
    // On a slow machine, one burst may take so long that it is no reason for a channel.
    while !has(&metrics().await, "turnserver_channels 1") {
        assert!(Instant::now() < end, "no channel");
        burst((&relay, local), &peers[0]).await;
    }
    for peer in &peers[..3] {
        burst((&relay, local), peer).await;
    }
    let metrics = metrics().await;
    assert!(has(&metrics, "turnserver_channels 1") && has(&metrics, "turnserver_permissions 1"), "{metrics}");
}

#[tokio::test]
async fn after_the_relay_was_restarted_there_is_a_new_address_over_tcp() {
    let process = RelayProcess::start();
    let (credentials, receiver) = watch::channel(ice(process.url("tcp")));
    let mut relay = start(receiver);
    let before = allocated(&mut relay).await;
    drop(process);
    assert!(matches!(next(&mut relay).await, RelayEvent::Lost(addresses) if addresses[0] == before));
    let again = RelayProcess::start();
    // The next attempt uses the newest URLs and credentials.
    credentials.send_replace(ice(again.url("tcp")));
    allocated(&mut relay).await;
}

// RFC 8656 §5: nothing ends over UDP. The response to a request is 437.
#[tokio::test]
async fn after_the_relay_was_restarted_there_is_a_new_address_over_udp() {
    let sections = "[peers]\nallow = ['127.0.0.1']\n";
    let process = RelayProcess::start_with(LOOPBACK, None, sections);
    let (_credentials, receiver) = watch::channel(ice(process.url("udp")));
    let mut relay = start(receiver);
    let before = allocated(&mut relay).await;
    let address = process.udp;
    drop(process);
    let _again = RelayProcess::start_with(address, None, sections);
    let peer = UdpSocket::bind(LOOPBACK).await.unwrap();
    relay.send(before, peer.local_addr().unwrap(), b"new".to_vec());
    assert!(matches!(next(&mut relay).await, RelayEvent::Lost(addresses) if addresses[0] == before));
    let after = allocated(&mut relay).await;
    relay.send(after, peer.local_addr().unwrap(), b"data".to_vec());
    let mut received = [0; 8];
    let length = timeout(PATIENCE, peer.recv(&mut received)).await.unwrap().unwrap();
    assert_eq!(received[..length], *b"data");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_left_for_the_next_one() {
    let process = RelayProcess::start();
    let mut both = ice("turn:127.0.0.1:1?transport=tcp".to_owned());
    both.ice_servers.extend(ice(process.url("udp")).ice_servers);
    let (_credentials, receiver) = watch::channel(both);
    allocated(&mut start(receiver)).await;
}

#[tokio::test]
async fn credentials_that_come_later_are_used_at_once() {
    let process = RelayProcess::start();
    let (credentials, receiver) = watch::channel(Ice::default());
    let mut relay = start(receiver);
    // The pauses between attempts without success grow to many seconds.
    assert!(timeout(Duration::from_secs(2), relay.next()).await.is_err());
    credentials.send_replace(ice(process.url("udp")));
    assert!(matches!(timeout(Duration::from_millis(400), relay.next()).await, Ok(Some(RelayEvent::Allocated(_)))));
}

// RFC 8656 §5: a Refresh has the username of its Allocate. The relay rejects one whose username has expired.
#[tokio::test]
async fn an_address_is_replaced_before_its_credentials_expire_and_works_until_it_is_not_used() {
    let process = RelayProcess::start_with(LOOPBACK, None, "");
    let (_credentials, fixed) = watch::channel(ice(process.url("udp")));
    let mut peer = start(fixed);
    let at_peer = allocated(&mut peer).await;
    let (credentials, receiver) = watch::channel(ice_for(process.url("udp"), 10));
    let mut relay = start(receiver);
    let old = allocated(&mut relay).await;
    passes((&mut relay, old), (&mut peer, at_peer)).await;
    // Credentials of the same lifetime, 4 s later.
    credentials.send_replace(ice_for(process.url("udp"), 14));
    let new = loop {
        match next(&mut relay).await {
            RelayEvent::Allocated(addresses) => break addresses[0],
            RelayEvent::Data { .. } => {}
            other @ RelayEvent::Lost(_) => panic!("{other:?} before there is another"),
        }
    };
    assert_ne!(new, old);
    let replaced = Instant::now();
    passes((&mut peer, at_peer), (&mut relay, old)).await;
    passes((&mut peer, at_peer), (&mut relay, new)).await;
    // The old one is given back although the new one is used.
    loop {
        peer.send(at_peer, new, b"data".to_vec());
        match timeout(Duration::from_millis(200), relay.next()).await {
            Ok(Some(RelayEvent::Lost(addresses))) => break assert_eq!(addresses[0], old),
            Ok(Some(RelayEvent::Data { local, .. })) => assert!(local == new || replaced.elapsed().as_secs() < 5),
            Ok(other) => panic!("{other:?}"),
            Err(_) => assert!(replaced.elapsed() < PATIENCE),
        }
    }
    passes((&mut relay, new), (&mut peer, at_peer)).await;
}

#[tokio::test]
async fn attempts_to_replace_an_address_that_fail_are_repeated_after_pauses_that_grow() {
    let process = RelayProcess::start();
    let (credentials, receiver) = watch::channel(ice(process.url("udp")));
    let mut relay = start(receiver);
    allocated(&mut relay).await;
    // Closes each connection.
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    // The first attempt comes within 2 s: a quarter of the time between the ends of both credentials.
    credentials.send_replace(ice_for(format!("turn:{}?transport=tcp", listener.local_addr().unwrap()), 608));
    let mut times = Vec::new();
    while times.len() < 4 {
        timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        times.push(Instant::now());
    }
    let pauses: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (pause, least) in pauses.iter().zip([450, 950, 1_950]) {
        assert!(*pause >= Duration::from_millis(least), "{pauses:?}");
    }
    // The address before is still there.
    assert!(timeout(Duration::ZERO, relay.next()).await.is_err());
}

#[tokio::test]
async fn an_address_is_given_back_at_the_end() {
    let process = RelayProcess::start_with(LOOPBACK, None, "[limits]\nallocations-per-user = 1\n");
    let (_credentials, receiver) = watch::channel(ice(process.url("udp")));
    for _ in 0..3 {
        let mut relay = start(receiver.clone());
        // Otherwise, the relay would reject it: the next attempt would come after a pause.
        assert!(matches!(timeout(Duration::from_millis(400), relay.next()).await, Ok(Some(RelayEvent::Allocated(_)))));
        relay.close().await;
    }
    // This one may be requested, but has not come.
    start(receiver.clone()).close().await;
    assert!(timeout(Duration::from_millis(400), start(receiver).next()).await.is_ok());
}

// RFC 8489 §10
#[tokio::test]
async fn a_relay_that_refers_to_another_one_is_left_for_that() {
    let target = RelayProcess::start();
    let alternate = format!("[alternate]\nservers = ['{}']\nwhen = 'always'\n", target.udp);
    let first = RelayProcess::start_with(LOOPBACK, None, &alternate);
    let (_credentials, receiver) = watch::channel(ice(first.url("udp")));
    let mut relay = start(receiver);
    let local = allocated(&mut relay).await;
    // The allocation is at the other one.
    drop(first);
    let (_credentials, receiver) = watch::channel(ice(target.url("udp")));
    let mut peer = start(receiver);
    let at_peer = allocated(&mut peer).await;
    passes((&mut relay, local), (&mut peer, at_peer)).await;
    passes((&mut peer, at_peer), (&mut relay, local)).await;
}

#[tokio::test]
async fn over_tls_the_certificate_of_the_relay_has_to_be_trusted() {
    let identity = Identity::of("localhost");
    let process = RelayProcess::start_with(LOOPBACK, Some(&identity), "");
    let (port, trust) = (process.tls.unwrap().port(), Trust::from_file(Some(&identity.certificate)).unwrap());
    let (_credentials, receiver) = watch::channel(ice(format!("turns:localhost:{port}?transport=tcp")));
    let (mut one, mut two) = (Relay::start(receiver.clone(), trust.clone()), Relay::start(receiver, trust));
    let (at_one, at_two) = (allocated(&mut one).await, allocated(&mut two).await);
    passes((&mut one, at_one), (&mut two, at_two)).await;

    let error = connect("localhost", port, Some(Trust::Authorities)).await.err().unwrap().to_string();
    assert!(error.contains("--relay-ca") && error.contains("localhost"), "{error}");
    let another = Identity::of("localhost");
    let another = Trust::from_file(Some(&another.certificate)).unwrap();
    assert!(connect("localhost", port, Some(another)).await.is_err());
}

// RFC 8489 §10: without ALTERNATE-DOMAIN, the certificate has the name of the first server.
#[tokio::test]
async fn a_relay_over_tls_that_refers_to_another_one_has_its_name() {
    let authority = Authority::new();
    let (target, first) = (authority.issue("localhost"), authority.issue("localhost"));
    let target = RelayProcess::start_with(LOOPBACK, Some(&target), "");
    let alternate = format!(
        "[alternate]\nservers = ['{}']\ntls-servers = ['{}']\nwhen = 'always'\n",
        target.tcp,
        target.tls.unwrap()
    );
    let first = RelayProcess::start_with(LOOPBACK, Some(&first), &alternate);
    let port = first.tls.unwrap().port();
    let (_credentials, receiver) = watch::channel(ice(format!("turns:localhost:{port}?transport=tcp")));
    let trust = Trust::from_file(Some(&authority.certificate)).unwrap();
    allocated(&mut Relay::start(receiver, trust)).await;
}
