//! turnutils_uclient relays while the configuration changes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::Signal;

use crate::site::Version::V4;
use crate::site::{Site, on_each_site};
use crate::support::{Finally, Server};
use crate::uclient::{Allocation, FOR_UCLIENT, Transport, family, start_peer, start_with, uclient};

/// Reloads other configurations until `done`. Returns the number of reloads.
fn reload(site: &Site, server: &Server, text: &str, done: &AtomicBool) -> usize {
    let listener = format!("udp = [\"{}:0\"", site.server(V4));
    let two_listeners = format!("{listener}, \"127.0.0.2:0\"");
    let changes = [
        ("[auth]\nsecrets = [", "[auth]\nsecrets = [\"another secret for tests\", "),
        ("realm = \"test.example\"", "realm = \"new.example\""),
        ("[auth]", "[timeouts]\nidle = \"50s\"\n[auth]"),
        (&listener, &two_listeners),
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

fn relay_during_reloads(site: &Site, case: &str, transport: Transport) {
    let text = site.config(&[V4], &format!("{FOR_UCLIENT}{}", site.peers()));
    let server = start_with(site, transport, V4, &text);
    let (_peer, peer) = start_peer(site, V4);
    let (peer_ip, peer_port) = (peer.ip().to_string(), peer.port().to_string());
    let arguments = [family(V4), "-e", &peer_ip, "-r", &peer_port];
    let done = AtomicBool::new(false);
    let reloads = thread::scope(|scope| {
        let reloads = scope.spawn(|| reload(site, &server, &text, &done));
        let finally = Finally(&done);
        uclient(site, case, &server, transport, Allocation::One, 4, &arguments);
        drop(finally);
        reloads.join().unwrap()
    });
    println!("uclient {case}: {reloads} reloads, {:?} relayed by the kernel", site.in_kernel());
    assert!(reloads >= 6, "{reloads}");
    let refused = server.logs().into_iter().find(|line| line.field("event").as_deref() == Some("reload-refused"));
    assert!(refused.is_none(), "{refused:?}");
}

on_each_site! {
    nothing_is_lost_over_udp: |site| relay_during_reloads(site, "reloads, udp", Transport::Udp);
    nothing_is_lost_over_tcp: |site| relay_during_reloads(site, "reloads, tcp", Transport::Tcp);
}
