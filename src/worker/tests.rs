//! A worker on real sockets, with a clock that the test advances.

mod listeners;
mod outboxes;

use std::net::UdpSocket;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use rand::SeedableRng as _;
use tokio::task::LocalSet;

use super::*;
use crate::auth::LongTermKey;
use crate::ip_fields::IpFields;
use crate::net::limits::SpareFiles;
use crate::net::watch::Ready;
use crate::privacy::{ClientAddresses, Usernames};
use crate::stun::attribute::{
    Data, DontFragment, ErrorCodeAttribute, Nonce, Realm, RequestedTransport, Username, XorPeerAddress,
};
use crate::stun::{Class, EncodeAttribute, Message, MessageWriter, Method, TransactionId};
use crate::test_world::Blueprint;
use crate::transport::Transport;
use crate::turn::FiveTuple;

const REALM: &str = "test";
const UNIX: u64 = 1_700_000_000;

#[test]
fn the_buffers_of_a_worker_have_the_size_that_is_documented() {
    let documented = crate::test_memory_table::documented("The buffers of a worker for datagrams and reads");
    let bytes = address_space() - STACK;
    assert!(bytes <= documented && documented < bytes + bytes / 50, "{bytes}");
}

/// Returns a worker with one static user and these relay ports, its configuration, and the address of its listener.
fn worker(ports: std::ops::RangeInclusive<u16>) -> (Rc<RefCell<Worker>>, Arc<turn::Snapshot>, SocketAddr) {
    let (worker, _, plan) = worker_with_mailbox(ports);
    (worker, plan.snapshot, plan.address)
}

struct TestPlan {
    snapshot: Arc<turn::Snapshot>,
    address: SocketAddr,
    mailbox: Mailbox,
    statistics: Arc<Statistics>,
}

fn blueprint(ports: std::ops::RangeInclusive<u16>) -> Blueprint {
    Blueprint::new(REALM, ("127.0.0.1", "127.0.0.1"), ports).user("ann", "password")
}

fn snapshot(core: Arc<turn::Snapshot>) -> Snapshot {
    Snapshot {
        core,
        connection_limits: ConnectionLimits { per_source: 0, allocated_per_source: 0, in_all: 0 },
        timeouts: Timeouts {
            tls_handshake: Duration::from_secs(10),
            first_request: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            unauthenticated: Duration::from_secs(300),
        },
        tls: None,
        challenges: Arc::default(),
        privacy: Arc::new(Privacy::new(ClientAddresses::Full, Usernames::Full, [0; 32])),
        offload_interfaces: Arc::default(),
        proxies: [].into(),
        records: false,
    }
}

fn worker_with_mailbox(ports: std::ops::RangeInclusive<u16>) -> (Rc<RefCell<Worker>>, Handle, TestPlan) {
    worker_of(&blueprint(ports))
}

fn worker_of(blueprint: &Blueprint) -> (Rc<RefCell<Worker>>, Handle, TestPlan) {
    worker_with(blueprint, |_| {})
}

const OPERATOR: Operator = Operator { process: None, user: Some(0) };

/// Returns the plan of a worker without listeners, and the handle of its mailbox.
fn plan(blueprint: &Blueprint) -> (Plan, Handle) {
    let (_, stop) = channel::channel(false);
    let (handle, mailbox) = mailbox();
    let plan = Plan {
        index: 0,
        listeners: Vec::new(),
        snapshot: Arc::new(snapshot(blueprint.snapshot())),
        ledger: blueprint.ledger(),
        statistics: Arc::default(),
        mailbox,
        feed: feed().0,
        others: OtherWorkers::new(handle.clone(), 0),
        lookups: lookups().0,
        spare: SpareFiles::new(u64::MAX, 0),
        clock: Clock::start(),
        rng: StdRng::seed_from_u64(3),
        offload: None,
        stop,
    };
    (plan, handle)
}

fn worker_with(blueprint: &Blueprint, change: impl FnOnce(&mut Plan)) -> (Rc<RefCell<Worker>>, Handle, TestPlan) {
    let listener = udp::claim_listener(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = listener.local_addr().unwrap();
    let (mut plan, handle) = plan(blueprint);
    change(&mut plan);
    let (core, statistics) = (Arc::clone(&plan.snapshot.core), Arc::clone(&plan.statistics));
    let (worker, mailbox) = Worker::new(plan).unwrap();
    {
        let shell = &mut worker.borrow_mut().shell;
        shell.listeners.push(Rc::new(Listener::new(listener).unwrap()));
        shell.to_clients.add_listener();
    }
    (worker, handle, TestPlan { snapshot: core, address, mailbox, statistics })
}

fn allocate(number: u8, nonce: &str) -> Vec<u8> {
    signed(Method::ALLOCATE, number, nonce, &RequestedTransport::UDP)
}

fn signed(method: Method, number: u8, nonce: &str, attribute: &impl EncodeAttribute) -> Vec<u8> {
    let mut buffer = [0; 256];
    let transaction = TransactionId::new([number; 12]);
    let mut writer = MessageWriter::new(&mut buffer, Class::Request, method, transaction);
    writer.push(attribute);
    writer.push(&Username("ann"));
    writer.push(&Realm(REALM));
    writer.push(&Nonce(nonce));
    writer.message_integrity(LongTermKey::derive("ann", REALM, b"password").as_bytes());
    writer.finish().unwrap().to_vec()
}

// A client allocates again when its allocation has just expired, before the next tick. The socket of the old allocation
// is closed first, and its port can be used again.
#[tokio::test(flavor = "current_thread")]
async fn replacing_an_expired_allocation_closes_its_socket_and_releases_its_port() {
    let test = async {
        let (worker, snapshot, address) = worker(15_300..=15_303);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let nonce = snapshot.nonces.mint(UNIX, client.local_addr().unwrap());
        for round in 0..12_u8 {
            client.send(&allocate(round, nonce.as_str())).unwrap();
            let listener = Rc::clone(&worker.borrow().shell.listeners[0]);
            drop(listener.socket.readable().await.unwrap());
            let monotonic = Instant::from_elapsed(Duration::from_secs(600 * u64::from(round)));
            let now = Now { monotonic, unix: UNIX };
            worker.borrow_mut().serve_clients(now, &listener).unwrap();
            let mut response = [0; 512];
            let length = client.recv(&mut response).unwrap();
            assert_eq!(Message::parse(&response[..length]).unwrap().class(), Class::Success, "round {round}");
            assert_eq!(worker.borrow().shell.relays.iter().count(), 1);
        }
    };
    LocalSet::new().run_until(test).await;
}

/// Returns a worker with one allocation for each of `clients` clients, and the IDs and addresses of its relay sockets.
async fn worker_with_relays(
    ports: std::ops::RangeInclusive<u16>,
    clients: u8,
) -> (Rc<RefCell<Worker>>, Vec<(SocketId, SocketAddr)>) {
    let (worker, _, plan) = worker_with_mailbox(ports);
    let _clients = allocate_for(&worker, &plan, clients).await;
    let of = |relay: &relays::RelaySocket| (relay.id, relay.socket.local_addr().unwrap());
    let relays: Vec<_> = worker.borrow().shell.relays.iter().map(of).collect();
    assert_eq!(relays.len(), usize::from(clients));
    (worker, relays)
}

fn now() -> Now {
    Now { monotonic: Instant::from_elapsed(Duration::from_secs(1)), unix: UNIX }
}

/// Waits until the listener is readable and serves it once. Returns whether there may be more datagrams.
async fn serve(worker: &RefCell<Worker>) -> bool {
    let listener = Rc::clone(&worker.borrow().shell.listeners[0]);
    drop(listener.socket.readable().await.unwrap());
    worker.borrow_mut().serve_clients(now(), &listener).unwrap()
}

fn counters(worker: &RefCell<Worker>) -> turn::Counters {
    worker.borrow().shell.statistics.read().packets
}

/// Returns the number of packets whose outcome is counted.
fn counted(worker: &RefCell<Worker>) -> u64 {
    counters(worker).total()
}

fn ready(socket: SocketId, error: bool) -> Ready {
    Ready { token: u64::try_from(socket.slot()).unwrap(), error }
}

#[tokio::test(flavor = "current_thread")]
async fn a_flooding_peer_does_not_delay_the_peer_of_another_allocation() {
    let (worker, relays) = worker_with_relays(15_304..=15_311, 2).await;
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..40 {
        peer.send_to(b"flood", relays[0].1).unwrap();
    }
    peer.send_to(b"one", relays[1].1).unwrap();
    let before = counted(&worker);
    worker.borrow_mut().shell.relays.set_ready(ready(relays[1].0, false));
    for (served, left) in [(17, 1), (16, 1), (8, 0)] {
        // The socket is reported twice but queued once.
        worker.borrow_mut().shell.relays.set_ready(ready(relays[0].0, false));
        worker.borrow_mut().shell.relays.set_ready(ready(relays[0].0, false));
        let start = counted(&worker);
        assert_eq!(worker.borrow_mut().shell.serve_relays(now()), left > 0);
        assert_eq!((counted(&worker) - start, worker.borrow().shell.relays.ready_count()), (served, left));
    }
    let dropped = counters(&worker).get(Outcome::Dropped(DropReason::NoPermission));
    assert_eq!((counted(&worker) - before, dropped), (41, 41));
}

#[tokio::test(flavor = "current_thread")]
async fn icmp_errors_are_served_within_a_budget() {
    let (worker, relays) = worker_with_relays(15_312..=15_319, 1).await;
    // A connected socket receives only from its peer: others receive an ICMP port unreachable.
    let unreachable = UdpSocket::bind("127.0.0.1:0").unwrap();
    unreachable.connect(unreachable.local_addr().unwrap()).unwrap();
    let unreachable_address = unreachable.local_addr().unwrap();
    for _ in 0..60 {
        // Every second call fails with the error of the previous datagram.
        let _ = worker.borrow().shell.relays.socket(relays[0].0).unwrap().send_to(b"x", unreachable_address);
    }
    let before = counted(&worker);
    worker.borrow_mut().shell.relays.set_ready(ready(relays[0].0, true));
    assert!(worker.borrow_mut().shell.serve_relays(now()));
    assert_eq!(counted(&worker), before + 16);
    assert!(!worker.borrow_mut().shell.serve_relays(now()));
    assert!(counted(&worker) > before + 16);
}

#[tokio::test(flavor = "current_thread")]
async fn receiving_from_a_failed_socket_is_retried_at_the_next_tick() {
    let (worker, relays) = worker_with_relays(15_324..=15_331, 1).await;
    let (id, address) = relays[0];
    let no_socket = UdpSocket::from(std::os::fd::OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
    let swap = |socket| {
        let mut worker = worker.borrow_mut();
        std::mem::replace(&mut worker.shell.relays.get_mut(id).unwrap().socket, socket)
    };
    let socket = swap(no_socket);
    for _ in 0..3 {
        worker.borrow_mut().shell.relays.set_ready(ready(id, false));
        assert!(!worker.borrow_mut().shell.serve_relays(now()));
    }
    assert_eq!(worker.borrow().shell.relays.failed(), [id.slot()]);
    drop(swap(socket));
    for _ in 0..20 {
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", address).unwrap();
    }
    // No event reports the datagrams again.
    while !worker.borrow().shell.relays.watch().ready(&mut watch::Events::default()).unwrap() {}
    let before = counted(&worker);
    worker.borrow_mut().shell.tick(now());
    assert_eq!(counted(&worker), before + 16);
    assert!(worker.borrow().shell.relays.failed().is_empty());
    // The task of the relay sockets reads the datagrams that this call has left, before the next tick.
    let task = tasks::serve_relays(Rc::downgrade(&worker)).unwrap();
    let all = async {
        while counted(&worker) < before + 20 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = task => {}
        served = tokio::time::timeout(Duration::from_secs(10), all) => served.unwrap(),
    }
}

// ICMP can be forged, so an error costs as much of the budget as a packet.
#[tokio::test(flavor = "current_thread")]
async fn icmp_errors_of_many_sockets_leave_time_for_other_tasks() {
    let (worker, relays) = worker_with_relays(15_620..=15_699, 36).await;
    let unreachable = UdpSocket::bind("127.0.0.1:0").unwrap();
    unreachable.connect(unreachable.local_addr().unwrap()).unwrap();
    let unreachable = unreachable.local_addr().map(|address| (address, unreachable)).unwrap();
    for (id, _) in &relays {
        for _ in 0..60 {
            // Every second call fails with the error of the previous datagram.
            let _ = worker.borrow().shell.relays.socket(*id).unwrap().send_to(b"x", unreachable.0);
        }
        worker.borrow_mut().shell.relays.set_ready(ready(*id, true));
    }
    let before = counted(&worker);
    assert!(worker.borrow_mut().shell.serve_relays(now()));
    assert_eq!(counted(&worker), before + 512);
}

/// Fills the receive buffer of a socket until the kernel drops datagrams.
fn overflow(socket: &impl std::os::fd::AsFd, to: SocketAddr) {
    setsockopt(&socket.as_fd(), sockopt::RcvBuf, &0).unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..100 {
        sender.send_to(&[0; 1_200], to).unwrap();
    }
}

// A reload changes what the next line says.
#[tokio::test(flavor = "current_thread")]
async fn a_new_configuration_changes_what_the_log_says_about_clients() {
    let (worker, core, client) = worker(15_710..=15_711);
    let shown = |worker: &Rc<RefCell<Worker>>| {
        let shell = &worker.borrow().shell;
        let all = [&shell.events.privacy, &shell.packet_log.privacy, &shell.snapshot.privacy];
        all.map(|privacy| privacy.address(client).map(|address| address.to_string()))
    };
    assert_eq!(shown(&worker), [(); 3].map(|()| Some(client.to_string())));
    let privacy = Arc::new(Privacy::new(ClientAddresses::Prefix, Usernames::Full, [0; 32]));
    worker.borrow_mut().reconfigure(Arc::new(Snapshot { privacy, ..snapshot(core) }));
    assert_eq!(shown(&worker), [(); 3].map(|()| Some("127.0.0.0/24".to_owned())));
}

#[tokio::test(flavor = "current_thread")]
async fn kernel_drops_are_counted_at_ticks_and_when_a_relay_socket_closes() {
    let (worker, relays) = worker_with_relays(15_700..=15_707, 2).await;
    let dropped = || counters(&worker).get(Outcome::Dropped(DropReason::ReceiveBufferFull));
    let of = |id: SocketId| u64::from(udp::dropped(worker.borrow().shell.relays.socket(id).unwrap()).unwrap());
    for (id, address) in &relays {
        overflow(worker.borrow().shell.relays.socket(*id).unwrap(), *address);
        assert!(of(*id) > 0);
    }
    let [first, second] = [of(relays[0].0), of(relays[1].0)];
    assert_eq!(dropped(), 0);
    worker.borrow_mut().end_allocations(&[relays[0].0.allocation()], OPERATOR);
    assert_eq!(dropped(), first);
    let listener = Rc::clone(&worker.borrow().shell.listeners[0]);
    overflow(listener.socket.get_ref(), listener.address);
    let third = u64::from(udp::dropped(listener.socket.get_ref()).unwrap());
    assert!(third > 0);
    for _ in 0..2 {
        worker.borrow_mut().shell.tick(now());
        assert_eq!(dropped(), first + second + third);
    }
    let described = worker.borrow_mut().describe(relays[1].0.allocation()).unwrap().detail;
    assert_eq!(described.drops, [(DropReason::ReceiveBufferFull, second)]);
    let totals = worker.borrow().shell.statistics.read();
    assert_eq!((totals.relay_drops, totals.listener_drops), (first + second, third));
}

// No packet follows that would report them.
#[tokio::test(flavor = "current_thread")]
async fn kernel_drops_are_counted_when_the_worker_ends() {
    let (mut plan, _handle) = plan(&blueprint(15_736..=15_739));
    let socket = udp::claim_listener(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let (address, copy) = (socket.local_addr().unwrap(), socket.try_clone().unwrap());
    let endpoint = Endpoint::new(Transport::Udp, address);
    plan.listeners = vec![BoundListener { endpoint, socket: ListenerSocket::Udp(socket), plain: true }];
    let (stop, stopped) = channel::channel(false);
    plan.stop = stopped;
    let statistics = Arc::clone(&plan.statistics);
    let worker = tasks::serve(plan, || {});
    let end = async {
        // The first tick is at the start, the next one after a second.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        overflow(&copy, address);
        stop.send(true).unwrap();
    };
    let (result, ()) = LocalSet::new().run_until(async { tokio::join!(worker, end) }).await;
    result.unwrap();
    let dropped = u64::from(udp::dropped(&copy).unwrap());
    assert!(dropped > 0);
    assert_eq!(statistics.read().listener_drops, dropped);
}

#[tokio::test(flavor = "current_thread")]
async fn merged_datagrams_are_bounded_in_bytes() {
    const DATAGRAMS: usize = 34;
    let (worker, _, address) = worker(15_320..=15_323);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    // Old kernels support neither segmentation nor GRO.
    if setsockopt(&client, sockopt::UdpGsoSegment, &1_000).is_err() {
        return;
    }
    for _ in 0..DATAGRAMS {
        assert_eq!(client.send_to(&[0; 9_000], address).unwrap(), 9_000);
    }
    assert!(serve(&worker).await, "32 datagrams exceed the budget");
    assert_eq!(counted(&worker), 32 * 9);
    assert!(!serve(&worker).await);
    assert_eq!(counted(&worker), 34 * 9);
}

/// Runs `test` while a task serves the mailbox.
async fn with_served_mailbox<T>(worker: &Rc<RefCell<Worker>>, mailbox: Mailbox, test: impl Future<Output = T>) -> T {
    LocalSet::new()
        .run_until(async {
            let served = tokio::task::spawn_local(mailbox::serve(Rc::downgrade(worker), mailbox.commands));
            let result = test.await;
            served.abort();
            result
        })
        .await
}

/// Creates one allocation for each of `clients` clients. Their sockets stay open, so that each has its own port.
async fn allocate_for(worker: &Rc<RefCell<Worker>>, plan: &TestPlan, clients: u8) -> Vec<UdpSocket> {
    let mut sockets = Vec::new();
    for number in 0..clients {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let nonce = plan.snapshot.nonces.mint(UNIX, client.local_addr().unwrap());
        client.send_to(&allocate(number, nonce.as_str()), plan.address).unwrap();
        serve(worker).await;
        sockets.push(client);
    }
    sockets
}

/// Lists every allocation of a worker, page by page.
async fn list_all(handle: &Handle) -> Vec<AllocationId> {
    let (mut all, mut cursor) = (Vec::new(), Cursor::default());
    loop {
        let page = handle.list(cursor, Arc::default()).await.unwrap();
        all.extend(page.allocations.iter().map(|info| info.id));
        match page.next {
            Some(next) => cursor = next,
            None => return all,
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn control_lists_describes_and_ends_allocations_through_the_mailbox() {
    let (worker, handle, plan) = worker_with_mailbox(15_332..=15_471);
    let _clients = allocate_for(&worker, &plan, 130).await;
    let statistics = Arc::clone(&plan.statistics);
    let test = async {
        let all = list_all(&handle).await;
        assert_eq!(all.len(), 130, "more than two pages");
        let detail = handle.describe(all[0]).await.unwrap().unwrap().detail;
        assert_eq!((detail.info.id, detail.info.user.as_str()), (all[0], "ann"));
        handle.publish().await.unwrap();
        assert_eq!(statistics.read().allocations(), 130);
        assert_eq!(handle.end(all[..100].to_vec(), OPERATOR).await.unwrap(), 100);
        assert_eq!(handle.end(all.clone(), OPERATOR).await.unwrap(), 30);
        assert!(handle.describe(all[0]).await.unwrap().is_none());
        assert_eq!(list_all(&handle).await, []);
    };
    with_served_mailbox(&worker, plan.mailbox, test).await;
    assert_eq!(worker.borrow().shell.relays.iter().count(), 0);
}

#[tokio::test(flavor = "current_thread")]
async fn a_new_configuration_ends_the_allocations_of_revoked_users() {
    let ports = 15_472..=15_611;
    let (worker, handle, plan) = worker_with_mailbox(ports.clone());
    let _clients = allocate_for(&worker, &plan, 130).await;
    let same = Arc::new(snapshot(blueprint(ports.clone()).snapshot_with(plan.snapshot.relays.clone())));
    let mut without_ann = blueprint(ports);
    without_ann.revoked = vec!["ann".to_owned()];
    let without_ann = Arc::new(snapshot(without_ann.snapshot_with(plan.snapshot.relays.clone())));
    let test = async {
        handle.reconfigure(same, ListenerChange::default()).await.unwrap();
        assert_eq!(list_all(&handle).await.len(), 130);
        handle.reconfigure(without_ann, ListenerChange::default()).await.unwrap();
        assert_eq!(list_all(&handle).await, []);
    };
    with_served_mailbox(&worker, plan.mailbox, test).await;
    assert_eq!(worker.borrow().shell.relays.iter().count(), 0);
}

#[tokio::test(flavor = "current_thread")]
async fn a_command_to_a_worker_that_has_ended_fails() {
    let (worker, handle, plan) = worker_with_mailbox(15_612..=15_615);
    drop((worker, plan.mailbox));
    assert!(handle.list(Cursor::default(), Arc::default()).await.is_err());
}

// Bytes are counted when they are sent, even if the allocation ends in the same batch.
#[tokio::test(flavor = "current_thread")]
async fn bytes_are_counted_when_they_are_sent() {
    let (worker, relays) = worker_with_relays(15_616..=15_619, 1).await;
    let (id, _) = relays[0];
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = crate::net::batch::Target::new(peer.local_addr().unwrap(), None, IpFields::default());
    let mut worker = worker.borrow_mut();
    let Worker { shell, stream, .. } = &mut *worker;
    // The event of the creation is skipped.
    while shell.server.next_action().is_some() {}
    stream.push(id, target, 0..100);
    assert_eq!(shell.statistics.read().bytes_to_peers, 0);
    shell.server.end_allocation(now().monotonic, id.allocation(), OPERATOR);
    shell.flush_to_peers(stream);
    assert_eq!(shell.statistics.read().bytes_to_peers, 100);
    let ended = std::iter::from_fn(|| shell.server.next_action()).find_map(|action| match action {
        Action::Log(Event::AllocationEnded(summary)) => Some(summary),
        _ => None,
    });
    let traffic = ended.unwrap().traffic;
    assert_eq!((traffic.packets_to_peers, traffic.bytes_to_peers), (1, 100));
}

// The log entry has the bytes that were written. The rest is dropped before.
#[tokio::test(flavor = "current_thread")]
async fn data_that_waits_on_a_connection_is_dropped_when_its_allocation_ends() {
    let (worker, relays) = worker_with_relays(15_708..=15_711, 1).await;
    let (id, _) = relays[0];
    let tuple = worker.borrow_mut().describe(id.allocation()).unwrap().detail.info.tuple;
    let ended = || counters(&worker).get(Outcome::Dropped(DropReason::AllocationEnded));
    {
        let shell = &mut worker.borrow_mut().shell;
        shell.connections.open_for_tests(tuple);
        for _ in 0..3 {
            assert_eq!(shell.connections.push_data(now().monotonic, &tuple, id, 100, [&[7; 100], b"", b""]), Ok(()));
        }
        shell.server.end_allocation(now().monotonic, id.allocation(), OPERATOR);
    }
    assert_eq!(ended(), 0);
    worker.borrow_mut().shell.carry_out(now());
    assert_eq!(ended(), 3);
}

#[tokio::test(flavor = "current_thread")]
async fn data_that_waits_on_a_connection_is_counted_when_the_worker_ends() {
    let (worker, _) = worker_with_relays(15_712..=15_715, 0).await;
    let tuple = FiveTuple {
        client: "192.0.2.7:4000".parse().unwrap(),
        server: "192.0.2.1:3478".parse().unwrap(),
        transport: Transport::Tcp,
    };
    {
        let connections = &mut worker.borrow_mut().shell.connections;
        connections.open_for_tests(tuple);
        let socket = SocketId::for_tests(2);
        assert_eq!(connections.push_data(now().monotonic, &tuple, socket, 100, [&[7; 100], b"", b""]), Ok(()));
    }
    worker.borrow_mut().abandon_data();
    assert_eq!(counters(&worker).get(Outcome::Dropped(DropReason::SendFailed)), 1);
}

#[tokio::test(flavor = "current_thread")]
async fn data_that_cannot_be_sent_is_not_charged_to_the_byte_rate() {
    let mut blueprint = blueprint(15_716..=15_719);
    blueprint.limits.byte_rate = turn::Rate::new(1, 1_000);
    let (worker, _, plan) = worker_of(&blueprint);
    let client = &allocate_for(&worker, &plan, 1).await[0];
    let peer = XorPeerAddress("8.8.8.8:7000".parse().unwrap());
    let nonce = plan.snapshot.nonces.mint(UNIX, client.local_addr().unwrap());
    client.send_to(&signed(Method::CREATE_PERMISSION, 9, nonce.as_str(), &peer), plan.address).unwrap();
    serve(&worker).await;
    let id = worker.borrow().shell.relays.iter().next().unwrap().id;
    let no_socket = UdpSocket::from(std::os::fd::OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
    worker.borrow_mut().shell.relays.get_mut(id).unwrap().socket = no_socket;
    for dont_fragment in [false, true] {
        let mut buffer = [0; 1_024];
        let mut writer = MessageWriter::new(&mut buffer, Class::Indication, Method::SEND, TransactionId::new([10; 12]));
        writer.push(&peer);
        writer.push(&Data(&[7; 900]));
        if dont_fragment {
            writer.push(&DontFragment);
        }
        let indication = writer.finish().unwrap();
        for _ in 0..3 {
            client.send_to(indication, plan.address).unwrap();
            serve(&worker).await;
        }
    }
    assert_eq!(counters(&worker).get(Outcome::Dropped(DropReason::SendFailed)), 6);
}

/// Returns a worker with one allocation, whose ID and address are returned as well, and a peer with a permission.
async fn worker_with_peer(blueprint: &mut Blueprint) -> (Rc<RefCell<Worker>>, SocketId, SocketAddr, UdpSocket) {
    blueprint.policy.allow = vec!["127.0.0.2/32".parse().unwrap()];
    let (worker, _, plan) = worker_of(blueprint);
    let client = &allocate_for(&worker, &plan, 1).await[0];
    let peer = UdpSocket::bind("127.0.0.2:0").unwrap();
    let nonce = plan.snapshot.nonces.mint(UNIX, client.local_addr().unwrap());
    let address = XorPeerAddress(peer.local_addr().unwrap());
    client.send_to(&signed(Method::CREATE_PERMISSION, 9, nonce.as_str(), &address), plan.address).unwrap();
    serve(&worker).await;
    let relay = worker.borrow().shell.relays.iter().map(|relay| (relay.id, relay.socket.local_addr())).next().unwrap();
    (worker, relay.0, relay.1.unwrap(), peer)
}

// While clients keep connecting, for example, the iteration of the event loop does not end.
#[tokio::test(flavor = "current_thread")]
async fn data_for_a_client_is_sent_and_counted_before_the_iteration_ends() {
    let (worker, id, relay, peer) = worker_with_peer(&mut blueprint(15_724..=15_727)).await;
    peer.send_to(&[7; 100], relay).unwrap();
    let shell = &mut worker.borrow_mut().shell;
    shell.relays.set_ready(ready(id, false));
    shell.serve_relays(now());
    assert_eq!((shell.to_clients.len(), shell.statistics.read().bytes_to_clients), (0, 100));
}

// The listener of the client has closed.
#[tokio::test(flavor = "current_thread")]
async fn data_that_cannot_reach_its_client_is_not_charged_to_the_byte_rate() {
    let mut blueprint = blueprint(15_728..=15_731);
    blueprint.limits.byte_rate = turn::Rate::new(1, 1_000);
    let (worker, id, relay, peer) = worker_with_peer(&mut blueprint).await;
    worker.borrow_mut().shell.listeners.clear();
    for _ in 0..3 {
        peer.send_to(&[7; 900], relay).unwrap();
        worker.borrow_mut().shell.relays.set_ready(ready(id, false));
        worker.borrow_mut().shell.serve_relays(now());
    }
    assert_eq!(counters(&worker).get(Outcome::Dropped(DropReason::SendFailed)), 3);
}

// RFC 8656 §19: 508. The log has the address and the error of the kernel, and open files are not blamed.
#[tokio::test(flavor = "current_thread")]
async fn a_relay_address_that_the_machine_does_not_have_is_named_with_the_error() {
    const MISSING: &str = "192.0.2.77";
    let blueprint = Blueprint::new(REALM, (MISSING, MISSING), 15_732..=15_735).user("ann", "password");
    let (worker, _, plan) = worker_of(&blueprint);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let nonce = plan.snapshot.nonces.mint(UNIX, client.local_addr().unwrap());
    client.send_to(&allocate(1, nonce.as_str()), plan.address).unwrap();
    let listener = Rc::clone(&worker.borrow().shell.listeners[0]);
    drop(listener.socket.readable().await.unwrap());
    let lines = event_log::tests::logged(|| {
        worker.borrow_mut().serve_clients(now(), &listener).unwrap();
    });
    let mut response = [0; 512];
    let length = client.recv(&mut response).unwrap();
    let error: ErrorCodeAttribute<'_> = Message::parse(&response[..length]).unwrap().get().unwrap().unwrap();
    assert_eq!((error.code.code(), error.reason), (508, "Insufficient Capacity: relay address"));
    let failure = "relay socket not opened: this machine does not have the relay address";
    for parts in [[failure, MISSING, "(os error 99)"], ["limit-reached", "relay.addresses", "allocation rejected"]] {
        assert!(lines.iter().any(|line| parts.iter().all(|part| line.contains(part))), "{parts:?}: {lines:?}");
    }
}

// The connections that can be evicted belong to another worker. There is no tick in this test.
#[tokio::test(flavor = "current_thread")]
async fn a_worker_that_rejects_connections_has_one_evicted_at_another_worker() {
    for (per_source, in_all) in [(0, 3), (3, 0)] {
        let limits = ConnectionLimits { per_source, allocated_per_source: 0, in_all };
        let blueprint = blueprint(15_720..=15_723);
        let ledger = blueprint.ledger();
        let limited = |plan: &mut Plan| {
            plan.ledger = Arc::clone(&ledger);
            plan.snapshot = Arc::new(Snapshot { connection_limits: limits, ..(*plan.snapshot).clone() });
        };
        let (third, third_handle, third_plan) = worker_with(&blueprint, limited);
        let (second, second_handle, second_plan) = worker_with(&blueprint, |plan| {
            limited(plan);
            plan.others = OtherWorkers::new(third_handle.clone(), 2);
        });
        let (first, ..) = worker_with(&blueprint, |plan| {
            limited(plan);
            plan.others = OtherWorkers::new(second_handle.clone(), 2);
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accept = async |worker: &RefCell<Worker>| {
            let _client = tokio::net::TcpStream::connect(address).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            worker.borrow_mut().accept(&stream, Transport::Tcp)
        };
        let mut admitted = Vec::new();
        for _ in 0..3 {
            admitted.push(accept(&third).await.unwrap());
        }
        // When a later command has a response, the requests have been served.
        let served = async || {
            second_handle.publish().await.unwrap();
            third_handle.publish().await.unwrap();
        };
        for _ in 0..3 {
            assert!(accept(&first).await.is_none());
        }
        with_served_mailbox(&second, second_plan.mailbox, with_served_mailbox(&third, third_plan.mailbox, served()))
            .await;
        // Many rejections at once evict one connection.
        assert_eq!(ledger.connections.allocations(), 2);
        admitted.push(accept(&first).await.unwrap());
        assert_eq!(ledger.connections.allocations(), 3);
    }
}
