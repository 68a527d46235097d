//! A worker on real sockets, with a clock that the test moves.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use rand::SeedableRng as _;
use tokio::task::LocalSet;

use super::*;
use crate::auth::{Authenticator, LongTermKey, NonceMint, Secret};
use crate::net::watch::Ready;
use crate::stun::attribute::{Nonce, Realm, RequestedTransport, Username};
use crate::stun::{Class, Message, MessageWriter, Method, TransactionId};
use crate::turn::{LiveRelays, PeerPolicy, Quota, RelayRange, Reservations};

const REALM: &str = "test";
const UNIX: u64 = 1_700_000_000;

/// A worker with one static user and these relay ports, what it shares, and the address of its listener.
fn worker(ports: std::ops::RangeInclusive<u16>) -> (Rc<RefCell<Worker>>, Arc<Shared>, SocketAddr) {
    let localhost = IpAddr::from([127, 0, 0, 1]);
    let listener = udp::claim_listener((localhost, 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    let shared = Shared {
        authenticator: Authenticator::new(REALM.into(), vec![], [("ann".into(), Secret::new("password").unwrap())]),
        nonces: NonceMint::from_random([1; 32], 3600),
        policy: PeerPolicy::default(),
        live: LiveRelays::new([(localhost, localhost)]),
        reservations: Reservations::new([(localhost, localhost)], &ports),
        quota: Quota::new(0, 0, [2; 32]),
        connections: Quota::new(0, 0, [4; 32]),
        draining: false.into(),
        alternate: None,
    };
    let settings = Settings {
        relays: vec![RelayRange { bind: localhost, advertised: localhost, ports }],
        permissions_per_allocation: 8,
        channels_per_allocation: 8,
        peer_rate: None,
        byte_rate: None,
        unverified_replies: 0,
        rfc5766_channels: false,
        draft_dual_allocation: false,
        expiry_grace: 0,
    };
    let (_, stop) = channel::channel(false);
    let (rng, clock) = (StdRng::seed_from_u64(3), Clock::start());
    let shared = Arc::new(shared);
    let plan = Plan {
        listeners: vec![listener],
        tcp_listeners: vec![],
        tls_listeners: vec![],
        tls: None,
        timeouts: Timeouts {
            tls_handshake: Duration::from_secs(10),
            first_request: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            unauthenticated: Duration::from_secs(300),
        },
        settings,
        shared: Arc::clone(&shared),
        clock,
        rng,
        stop,
        heartbeat: Arc::default(),
    };
    (Worker::new(plan).unwrap(), shared, address)
}

fn allocate(number: u8, nonce: &str) -> Vec<u8> {
    let mut buffer = [0; 256];
    let transaction = TransactionId::new([number; 12]);
    let mut writer = MessageWriter::new(&mut buffer, Class::Request, Method::ALLOCATE, transaction);
    writer.push(&RequestedTransport::UDP);
    writer.push(&Username("ann"));
    writer.push(&Realm(REALM));
    writer.push(&Nonce(nonce));
    writer.message_integrity(LongTermKey::derive("ann", REALM, b"password").as_bytes());
    writer.finish().unwrap().to_vec()
}

// A client that comes back in the very moment in which its allocation expires, before the clock has ticked, takes the
// place of the old allocation, whose socket is closed first and whose port is free again.
#[tokio::test(flavor = "current_thread")]
async fn an_allocation_that_takes_the_place_of_an_expired_one_leaves_no_socket_and_no_port_behind() {
    let test = async {
        let (worker, shared, address) = worker(15_300..=15_303);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let nonce = shared.nonces.mint(UNIX, client.local_addr().unwrap());
        for round in 0..12_u8 {
            client.send(&allocate(round, nonce.as_str())).unwrap();
            let listener = Rc::clone(&worker.borrow().listeners[0]);
            drop(listener.socket.readable().await.unwrap());
            let monotonic = Instant::from_elapsed(Duration::from_secs(600 * u64::from(round)));
            let now = Now { monotonic, unix: UNIX };
            worker.borrow_mut().serve_clients(now, &listener).unwrap();
            worker.borrow_mut().flush_to_clients();
            let mut answer = [0; 512];
            let length = client.recv(&mut answer).unwrap();
            assert_eq!(Message::parse(&answer[..length]).unwrap().class(), Class::Success, "round {round}");
            assert_eq!(worker.borrow().relays.iter().flatten().count(), 1);
        }
    };
    LocalSet::new().run_until(test).await;
}

/// A worker that has an allocation for each of so many clients, and its relay sockets' addresses by slot.
async fn worker_with_relays(
    ports: std::ops::RangeInclusive<u16>,
    clients: u8,
) -> (Rc<RefCell<Worker>>, Vec<(usize, SocketAddr)>) {
    let (worker, shared, address) = worker(ports);
    for number in 0..clients {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let nonce = shared.nonces.mint(UNIX, client.local_addr().unwrap());
        client.send_to(&allocate(number, nonce.as_str()), address).unwrap();
        serve(&worker).await;
    }
    worker.borrow_mut().flush_to_clients();
    let of = |relay: &Relay| (relay.id.slot(), relay.socket.local_addr().unwrap());
    let relays: Vec<_> = worker.borrow().relays.iter().flatten().map(of).collect();
    assert_eq!(relays.len(), usize::from(clients));
    (worker, relays)
}

fn now() -> Now {
    Now { monotonic: Instant::from_elapsed(Duration::from_secs(1)), unix: UNIX }
}

/// Serves the listener once when it has something, and returns whether there may be more.
async fn serve(worker: &RefCell<Worker>) -> bool {
    let listener = Rc::clone(&worker.borrow().listeners[0]);
    drop(listener.socket.readable().await.unwrap());
    worker.borrow_mut().serve_clients(now(), &listener).unwrap()
}

/// Packets that the worker has seen to the end.
fn settled(worker: &RefCell<Worker>) -> u64 {
    worker.borrow().counters.occurred().map(|(_, count)| count).sum()
}

fn told(slot: usize, error: bool) -> Ready {
    Ready { token: u64::try_from(slot).unwrap(), error }
}

#[tokio::test(flavor = "current_thread")]
async fn a_peer_that_floods_gets_its_share_and_the_next_one_its_own() {
    let (worker, relays) = worker_with_relays(15_304..=15_311, 2).await;
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..40 {
        peer.send_to(b"flood", relays[0].1).unwrap();
    }
    peer.send_to(b"one", relays[1].1).unwrap();
    let before = settled(&worker);
    worker.borrow_mut().relay_ready(told(relays[1].0, false));
    for (served, left) in [(17, 1), (16, 1), (8, 0)] {
        // It is told of again and again, and stands in the queue once.
        worker.borrow_mut().relay_ready(told(relays[0].0, false));
        worker.borrow_mut().relay_ready(told(relays[0].0, false));
        let start = settled(&worker);
        assert_eq!(worker.borrow_mut().serve_relays(now()), left > 0);
        assert_eq!((settled(&worker) - start, worker.borrow().due.len()), (served, left));
    }
    let dropped = worker.borrow().counters.get(Outcome::Dropped(DropReason::NoPermission));
    assert_eq!((settled(&worker) - before, dropped), (41, 41));
}

#[tokio::test(flavor = "current_thread")]
async fn icmp_errors_are_served_a_few_at_a_time() {
    let (worker, relays) = worker_with_relays(15_312..=15_319, 1).await;
    // Nobody but itself can write to it: the answer to others is that its port is unreachable.
    let deaf = UdpSocket::bind("127.0.0.1:0").unwrap();
    deaf.connect(deaf.local_addr().unwrap()).unwrap();
    for _ in 0..60 {
        // Every other time it reports the error of the one before.
        let _ = worker.borrow().relays[relays[0].0].as_ref().unwrap().socket.send_to(b"x", deaf.local_addr().unwrap());
    }
    let before = settled(&worker);
    worker.borrow_mut().relay_ready(told(relays[0].0, true));
    assert!(worker.borrow_mut().serve_relays(now()));
    assert_eq!(settled(&worker), before + 16);
    assert!(!worker.borrow_mut().serve_relays(now()));
    assert!(settled(&worker) > before + 16);
}

#[tokio::test(flavor = "current_thread")]
async fn a_socket_that_cannot_be_received_from_is_tried_again_at_the_next_tick() {
    let (worker, relays) = worker_with_relays(15_324..=15_331, 1).await;
    let (slot, address) = relays[0];
    let no_socket = UdpSocket::from(std::os::fd::OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
    let swap = |socket| {
        let mut worker = worker.borrow_mut();
        std::mem::replace(&mut worker.relays[slot].as_mut().unwrap().socket, socket)
    };
    let socket = swap(no_socket);
    for _ in 0..3 {
        worker.borrow_mut().relay_ready(told(slot, false));
        assert!(!worker.borrow_mut().serve_relays(now()));
    }
    assert_eq!(worker.borrow().unread, [slot]);
    drop(swap(socket));
    for _ in 0..20 {
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", address).unwrap();
    }
    let before = settled(&worker);
    // What one call leaves is for the next tick: perhaps no news will come of it.
    for served in [16, 20] {
        worker.borrow_mut().tick(now());
        assert_eq!(settled(&worker), before + served);
    }
    assert!(worker.borrow().unread.is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn merged_datagrams_are_bounded_in_bytes() {
    const DATAGRAMS: usize = 34;
    let (worker, _, address) = worker(15_320..=15_323);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    // An old kernel cuts nothing apart and merges nothing.
    if setsockopt(&client, sockopt::UdpGsoSegment, &1_000).is_err() {
        return;
    }
    for _ in 0..DATAGRAMS {
        assert_eq!(client.send_to(&[0; 9_000], address).unwrap(), 9_000);
    }
    assert!(serve(&worker).await, "32 datagrams are too many bytes already");
    assert_eq!(settled(&worker), 32 * 9);
    assert!(!serve(&worker).await);
    assert_eq!(settled(&worker), 34 * 9);
}
