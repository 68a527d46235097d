//! A server that does not run for a while.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use turnserver::client::Request;
use turnserver::clock::Clock;
use turnserver::net::limits::raise_open_files;

use super::call::{Call, wait_for_response};
use super::clock::{Jumping, Shifted};
use super::errors::threads;
use super::inventory::{Inventory, Metrics, memory, settings, wait_for_allocations, wait_for_sum};
use crate::support::client::{Client, Login, Session};
use crate::support::{Controlled, LogLine, Server, TIMEOUT};

const ALLOCATIONS: usize = 5_000;

/// The time in which everything that has expired ends.
const SOON: Duration = Duration::from_secs(15);

/// The longest time for which the end of what has expired may delay packets, on a machine that is busy with something else.
const STEP: Duration = Duration::from_secs(1);

/// The lifetime of allocations is 600 s.
const EXPIRED: i64 = 900;

/// Returns the median time of an exchange of data.
fn median(call: &Call) -> Duration {
    let mut times: Vec<Duration> = (0..51)
        .map(|_| {
            let clock = Clock::start();
            call.exchange();
            clock.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[25]
}

/// Allocates for many clients.
fn allocate(address: SocketAddr, clients: usize) -> Vec<(Client, Session)> {
    let one = |number: usize| {
        let client = Client::new(address);
        let (session, _) = client.allocate(&Login::mint(&format!("user-{}", number / 4), 36_000)).unwrap();
        (client, session)
    };
    (0..clients).map(one).collect()
}

/// Refreshes an allocation. Returns the code of an error response.
fn refresh(client: &Client, session: &Session, seconds: u32) -> Option<u16> {
    let request = Request::Refresh(seconds);
    client.request(session, request.method(), &|writer| request.encode(writer)).error()
}

/// Waits until the workers wait. An iteration in which the server was stopped would last as long.
fn wait_until_idle(server: &Server) {
    let waits = |thread: &Pid| {
        let stat = fs::read_to_string(format!("/proc/{}/task/{thread}/stat", server.id())).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('S')
    };
    let clock = Clock::start();
    while !threads(server.id(), "worker-").iter().all(waits) {
        assert!(clock.elapsed() < TIMEOUT, "the workers do not become idle");
        thread::yield_now();
    }
}

/// Stops a server, which gets packets in this time, and half of whose allocations expire. If `time` is given, it is stopped
/// at least that long.
fn assert_recovers(time: Option<Duration>) {
    raise_open_files().unwrap();
    let ports = |line: &str| match line.starts_with("ports = ") {
        true => "ports = \"20000-29999\"\n".to_owned(),
        false => format!("{line}\n"),
    };
    let config: String = settings(&["127.0.0.1"]).lines().map(ports).collect();
    let Some(shifted) = Shifted::start(Jumping::Both, &config) else { return };
    let Controlled { server, .. } = &shifted.controlled;
    let call = Call::start(server);
    assert_eq!(call.refreshed_for(3_600), Ok(3_600));
    let inventory = Inventory::of(&shifted.controlled);
    let connected = Client::connect(server.tcp_address());
    let (of_connected, _) = connected.allocate(&Login::mint("connected", 36_000)).unwrap();
    assert_eq!(refresh(&connected, &of_connected, 3_600), None);
    let clients = allocate(server.udp_address(), ALLOCATIONS);
    let (living, expiring) = clients.split_at(ALLOCATIONS / 2);
    for (client, session) in living {
        assert_eq!(refresh(client, session, 3_600), None);
    }
    let (before, held) = (median(&call), memory(&shifted.controlled));

    wait_until_idle(server);
    server.signal(Signal::SIGSTOP);
    shifted.shift(EXPIRED);
    // All of this waits for the server, or is lost in full buffers.
    for (client, _) in &clients {
        let message = [0x40, 1, 0, 4, 1, 2, 3, 4];
        (0..10).for_each(|_| client.send(&message));
    }
    if time.is_some() {
        call.client.socket().set_read_timeout(time).unwrap();
        let nothing = call.client.socket().recv(&mut [0; 64]).unwrap_err();
        assert!(matches!(nothing.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{nothing}");
        call.client.socket().set_read_timeout(Some(TIMEOUT)).unwrap();
    }
    let continued = Clock::start();
    server.signal(Signal::SIGCONT);

    wait_for_response(call.client.socket());
    // The channel has expired, its allocation lives.
    assert_eq!((call.refreshed_for(3_600), call.bind()), (Ok(3_600), Ok(())));
    let first = continued.elapsed();
    wait_for_sum(&shifted.controlled, "turnserver_allocation_lifetime_seconds_count", ALLOCATIONS as u64 / 2);
    wait_for_allocations(&shifted.controlled, 2 + ALLOCATIONS as u64 / 2);
    let ended = continued.elapsed();
    let longest = Metrics::of(&shifted.controlled).longest("turnserver_event_loop_longest_iteration_seconds");
    println!("first response {first:?}, expired {ended:?}, longest iteration {longest:?}");
    assert!(ended < SOON, "{ended:?}");
    assert!(longest < STEP, "{longest:?}");
    while median(&call) > 2 * before + Duration::from_millis(5) {
        assert!(continued.elapsed() < TIMEOUT, "{before:?} before, {:?} after", median(&call));
    }
    let normal = continued.elapsed();
    assert!(memory(&shifted.controlled) < held + 8 * 1024);
    // A client whose allocation has expired makes a new one on the same port.
    for (client, session) in expiring.iter().step_by(50) {
        assert_eq!(refresh(client, &client.renew(session), 600), Some(437));
    }
    for (client, session) in living {
        client.delete(&client.renew(session));
    }
    // A machine that is busy with something else may stall a worker for a while.
    let count = |lines: &[LogLine], event: &str| {
        lines.iter().filter(|line| line.field("event").as_deref() == Some(event)).count()
    };
    server.wait_for_logs(|lines| count(lines, "worker-stalled") == count(lines, "worker-recovered"));
    assert_eq!(refresh(&connected, &connected.renew(&of_connected), 0), None);
    drop(connected);
    // The beginning and the end of each allocation, and little else.
    assert!(server.logs().len() < 2 * ALLOCATIONS + 100, "{}", server.logs().len());
    println!("median of {before:?} again {normal:?}");
    // The tables of 5000 allocations stay.
    inventory.assert_kept_within(&shifted.controlled, 32);
    call.end();
}

// The clock of the server jumps, as if it had been stopped for a quarter of an hour.
#[test]
fn what_expires_while_the_process_is_stopped_ends_and_what_lives_goes_on() {
    assert_recovers(None);
}

#[test]
#[ignore = "stops a server for a minute"]
fn a_server_that_was_stopped_for_a_minute_recovers() {
    assert_recovers(Some(Duration::from_secs(60)));
}
