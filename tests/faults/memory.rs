//! No memory.

use std::io::{ErrorKind, Write as _};
use std::net::TcpStream;

use nix::sys::signal::Signal;
use turnserver::auth::Secret;
use turnserver::client::{Algorithms, Credentials};
use turnserver::net::limits::raise_open_files;
use turnserver::stun::attribute::RequestedTransport;
use turnserver::stun::{Message, Method, TransactionId};

use super::call::Call;
use super::descriptors::{can_limit, limit};
use super::inventory::start_on_fixed_ports;
use crate::support::Server;
use crate::support::client::{Client, Login, Session, allocate as without_credentials};

/// Limits the memory of a server to `kib` above what it has, and lets clients connect and allocate. Returns whether the
/// server has ended, for the reason in its output, or still serves calls.
fn ends_clearly(resource: &str, of_status: &str, kib: u64) -> bool {
    let controlled = start_on_fixed_ports();
    let call = Call::start(&controlled.server);
    let process = controlled.server.id();
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let present = status.lines().find_map(|line| line.strip_prefix(of_status)).unwrap();
    let present: u64 = present.trim().trim_end_matches(" kB").parse().unwrap();
    let bytes = (present + kib) * 1024;
    limit(process, &format!("--{resource}={bytes}:{bytes}"));
    raise_open_files().unwrap();
    let mut held = Vec::new();
    let has_ended = (0..4_000).any(|number| {
        let stream = TcpStream::connect(controlled.server.tcp_address());
        if stream.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
            return true;
        }
        held.push(stream.unwrap());
        number % 8 == 0 && allocate(&held[number], &Login::mint(&format!("user-{number}"), 600)).is_none()
    });
    if !has_ended {
        call.end();
        return false;
    }
    let ended = controlled.server.finish();
    assert_eq!(ended.signal, Some(Signal::SIGABRT), "{:#?}", ended.logs);
    // Those of the standard library: the reason, perhaps of two threads at once, and a backtrace or a note about it.
    let plain: Vec<&str> = ended.logs.iter().map(|line| line.text()).filter(|text| !text.starts_with('{')).collect();
    let reason = |line: &&str| line.starts_with("memory allocation of ");
    assert!(plain.iter().any(reason), "{plain:?}");
    drop((call, held));
    Call::start(&Server::start(&controlled.config)).end();
    true
}

/// Allocates over a connection. `None` if the server ends.
fn allocate(stream: &TcpStream, login: &Login) -> Option<()> {
    let client = Client::on_tcp(stream.try_clone().ok()?);
    let exchange = |request: &[u8]| (&mut &*stream).write_all(request).ok().and_then(|()| client.frame());
    let challenge = exchange(&without_credentials(TransactionId::new([1; 12])))?;
    let (username, password) = login.clone().into_parts();
    let credentials = Credentials { username, password: Secret::new(password).unwrap() };
    let session =
        Session::from_challenge(&Message::parse(&challenge).unwrap(), credentials, Algorithms::Rfc5389).unwrap();
    exchange(&client.signed(&session, Method::ALLOCATE, &|writer| writer.push(&RequestedTransport::UDP))).map(drop)
}

// The allocator may have reserved what it needs.
#[test]
fn without_address_space_the_server_goes_on_or_ends_with_a_line_about_memory_and_starts_again() {
    if can_limit() {
        ends_clearly("as", "VmSize:", 2 << 10);
    }
}

#[test]
fn without_memory_for_data_the_process_ends_with_a_line_about_memory_and_starts_again() {
    if can_limit() {
        assert!(ends_clearly("data", "VmData:", 2 << 10));
    }
}
