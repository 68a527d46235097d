//! Servers that end: killed, or because of a bug.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use turnserver::stun::Method;

use super::call::{Call, wait_for_response};
use super::errors::{EPOLL_WAIT, Failing, crash};
use super::inventory::{Inventory, start, start_on_fixed_ports};
use crate::support::client::{Client, Login};
use crate::support::{Controlled, Finally, LogLine, Server};

// The clients notice it by the error responses of the new server, or by the end of their connection.
#[test]
fn after_kill_9_under_load_a_restarted_server_serves_the_same_clients_on_the_same_ports() {
    let Controlled { server, config, socket, directory } = start_on_fixed_ports();
    let mut calls: Vec<Call> = (0..8).map(|_| Call::start(&server)).collect();
    let connected = Client::connect(server.tcp_address());
    let (session, _) = connected.allocate(&Login::mint("tcp", 600)).unwrap();
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let _finally = Finally(&ended);
        let (sending, ended) =
            (calls.iter().map(|call| call.client.socket().try_clone().unwrap()).collect::<Vec<_>>(), &ended);
        let load = scope.spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                // While there is no server, the kernel reports its ICMP errors here.
                sending.iter().for_each(|socket| drop(socket.send(&[0x40, 1, 0, 4, 1, 2, 3, 4])));
            }
        });
        // The server handles the load.
        connected.request(&session, Method::REFRESH, &|_| {});
        server.signal(Signal::SIGKILL);
        let died = server.finish();
        assert_eq!(died.signal, Some(Signal::SIGKILL));
        assert!(UnixStream::connect(&socket).is_err() && socket.exists(), "the socket of the dead server stays");
        let server = Server::start(&config);
        let controlled = Controlled { server, config, socket, directory };
        assert_eq!(controlled.json(&["status"])["allocations"], 0);
        assert_eq!(connected.frame(), None);
        ended.store(true, Ordering::Relaxed);
        load.join().unwrap();
        for call in &mut calls {
            wait_for_response(call.client.socket());
            assert_eq!(call.refreshed(), Err(437));
            call.start_again();
        }
        let again = Client::connect(controlled.server.tcp_address());
        again.allocate(&Login::mint("tcp", 600)).unwrap();
        drop(again);
        calls.into_iter().for_each(Call::end);
        Inventory::of(&controlled).assert_kept(&controlled);
    });
}

// tokio panics if the kernel refuses to wait for events.
#[test]
fn a_panic_of_a_worker_ends_the_process_with_a_line_that_names_it() {
    let controlled = start();
    // The kernel assigns them to both workers.
    let calls: Vec<Call> = (0..16).map(|_| Call::start(&controlled.server)).collect();
    let process = controlled.server.id();
    let Some(failing) = Failing::start(process, "worker-1", |call| call.number == EPOLL_WAIT, Errno::EBADF) else {
        return;
    };
    let ended = controlled.server.finish();
    drop(failing);
    assert_eq!(ended.code, Some(1));
    let events = |event: &str| ended.logs.iter().filter(|line| line.field("event").as_deref() == Some(event)).count();
    assert_eq!((events("panic"), events("stopped")), (1, 1), "{:#?}", ended.logs);
    let panic = ended.logs.iter().find(|line| line.field("event").as_deref() == Some("panic")).unwrap();
    assert_eq!(panic.field("thread").as_deref(), Some("worker-1"));
    let names_worker = |line: &LogLine| line.text().starts_with("turnserver: worker 1 stopped unexpectedly");
    assert!(ended.logs.iter().any(names_worker), "{:#?}", ended.logs);
    // The other worker ends its allocations.
    let of_other = |event: &str| -> Vec<&LogLine> {
        let wanted = |line: &&LogLine| {
            line.field("event").as_deref() == Some(event)
                && line.field("session").is_some_and(|id| id.starts_with("0-"))
        };
        ended.logs.iter().filter(wanted).collect()
    };
    let (created, gone) = (of_other("allocation-created"), of_other("allocation-ended"));
    assert!(!created.is_empty() && created.len() == gone.len(), "{created:#?} {gone:#?}");
    let reason = |line: &&LogLine| line.field("reason").as_deref() == Some("the server stopped");
    assert!(gone.iter().all(reason), "{gone:#?}");
    assert!(!controlled.socket.exists());
    drop(calls);
}

#[test]
fn a_panic_of_the_thread_of_http_leaves_the_calls_and_the_end_as_they_are() {
    let controlled = start();
    let call = Call::start(&controlled.server);
    let process = controlled.server.id();
    let Some(failing) = Failing::start(process, "http", |call| call.number == EPOLL_WAIT, Errno::EBADF) else {
        return;
    };
    let line = controlled.event("panic");
    assert_eq!((line.level(), line.field("thread").as_deref()), ("ERROR", Some("http")));
    drop(failing);
    call.exchange();
    call.refresh();
    // A reload does not wait for the thread.
    controlled.server.signal(Signal::SIGHUP);
    controlled.event("reload-done");
    Call::start(&controlled.server).end();
    call.end();
    assert_eq!(controlled.server.terminate().code, Some(0));
}

// systemd logs the signal, and restarts the service because of `Restart=on-failure`.
#[test]
fn an_invalid_memory_access_of_a_worker_ends_the_process_by_its_signal() {
    let controlled = start_on_fixed_ports();
    let call = Call::start(&controlled.server);
    if crash(controlled.server.id(), "worker-0") {
        assert_eq!(controlled.server.finish().signal, Some(Signal::SIGSEGV));
        Call::start(&Server::start(&controlled.config)).end();
    }
    drop(call);
}
