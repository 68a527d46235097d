//! turnutils_uclient relays while the configuration changes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::Signal;

use crate::support::{Finally, Server, config};
use crate::uclient::{Allocation, FOR_UCLIENT, LOOPBACK_PEERS, Transport, family, start_peer, start_with, uclient};

/// Reloads other configurations until `done`. Returns the number of reloads.
fn reload(server: &Server, text: &str, done: &AtomicBool) -> usize {
    let changes = [
        ("[auth]\nsecrets = [", "[auth]\nsecrets = [\"another secret for tests\", "),
        ("realm = \"test.example\"", "realm = \"new.example\""),
        ("[auth]", "[timeouts]\nidle = \"50s\"\n[auth]"),
        ("udp = [\"127.0.0.1:0\"", "udp = [\"127.0.0.1:0\", \"127.0.0.2:0\""),
        ("[peers]", "icmp-indications = \"never\"\n[peers]"),
        ("format = \"json\"", "format = \"json\"\nlevel = \"debug\""),
    ];
    let mut reloads = 0;
    while !done.load(Ordering::Relaxed) {
        let (from, to) = changes[reloads % changes.len()];
        assert!(text.contains(from), "{from} in {text}");
        server.write_config(&text.replacen(from, to, 1));
        server.signal(Signal::SIGHUP);
        reloads += 1;
        server.wait_for_logs(|lines| {
            lines.iter().filter(|line| line.field("event").as_deref() == Some("reload-done")).count() == reloads
        });
    }
    reloads
}

fn relay_during_reloads(case: &str, transport: Transport) {
    let text = config(&["127.0.0.1"], &format!("{FOR_UCLIENT}{LOOPBACK_PEERS}"));
    let server = start_with(transport, "127.0.0.1", &text);
    let (_peer, peer) = start_peer("127.0.0.1".parse().unwrap());
    let (peer_ip, peer_port) = (peer.ip().to_string(), peer.port().to_string());
    let arguments = [family("127.0.0.1"), "-e", &peer_ip, "-r", &peer_port];
    let done = AtomicBool::new(false);
    let reloads = thread::scope(|scope| {
        let reloads = scope.spawn(|| reload(&server, &text, &done));
        let finally = Finally(&done);
        uclient(case, &server, transport, Allocation::One, 4, &arguments);
        drop(finally);
        reloads.join().unwrap()
    });
    println!("uclient {case}: {reloads} reloads");
    assert!(reloads >= 6, "{reloads}");
    let refused = server.logs().into_iter().find(|line| line.field("event").as_deref() == Some("reload-refused"));
    assert!(refused.is_none(), "{refused:?}");
}

#[test]
fn nothing_is_lost_over_udp() {
    relay_during_reloads("reloads, udp", Transport::Udp);
}

#[test]
fn nothing_is_lost_over_tcp() {
    relay_during_reloads("reloads, tcp", Transport::Tcp);
}
