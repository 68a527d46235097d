//! Chromium and Firefox together.

use crate::data::chat;
use crate::driver::Driver;
use crate::file::transfer;
use crate::firefox::Firefox;
use crate::place::{Servers, only};
use crate::relay::Relay;
use crate::table::Row;
use crate::webdriver::Browser;

const SIZE: u64 = 5 << 20;

/// Runs a case with both browsers. The first one enters the room first.
fn with_both(is_firefox_first: bool, case: impl FnOnce(&Servers, [&dyn Driver; 2], &str)) {
    let servers = Servers::start(vec![Relay::start()], "127.0.0.1:0", &[]);
    let (chromium, firefox) = (Browser::start(), Firefox::start());
    let drivers: [&dyn Driver; 2] = if is_firefox_first { [&firefox, &chromium] } else { [&chromium, &firefox] };
    case(&servers, drivers, &drivers.map(Driver::name).join(", "));
}

/// A call of two with data channels.
fn call(is_firefox_first: bool, transport: &str) {
    with_both(is_firefox_first, |servers, drivers, browsers| {
        let [first, second] = servers.pair(drivers, &only(transport));
        for participant in [&first, &second] {
            participant.wait_for_frames(30);
            assert_eq!(participant.paths_over(transport).len(), 1);
        }
        let row = Row { system: "", transport, browsers, network: "loopback", seen: "", first_frame: None };
        let seen = "30 further frames on both sides";
        Row { system: "call of two", seen, first_frame: Some(second.first_frame()), ..row }.report();
        chat(&first, &second);
        Row { system: "chat", seen: "a message each way", ..row }.report();
        for (from, to) in [(&first, &second), (&second, &first)] {
            // Each browser also writes a file and computes its hash.
            let seconds = transfer(from, to, SIZE);
            let seen = format!("{SIZE} bytes in {seconds:.1} s, equal SHA-256");
            let browsers = format!("{} to {}", from.driver.name(), to.driver.name());
            Row { system: "file", browsers: &browsers, seen: &seen, ..row }.report();
        }
    });
}

/// The first one sends through the forwarding unit, and the second one watches.
fn broadcast(is_firefox_first: bool, transport: &str) {
    with_both(is_firefox_first, |servers, drivers, browsers| {
        let room = servers.room(drivers[0]);
        let sender = servers.enter(drivers[0], &room, "Ann", &only(transport));
        sender.run("rooms.setMode('broadcast');");
        sender.wait("for the way to the unit", "state.sfu.publish?.connectionState === 'connected'");
        let viewer = servers.enter(drivers[1], &room, "Ben", &only(transport));
        viewer.wait_for_frames(30);
        sender.paths_over(transport);
        viewer.paths_over(transport);
        let seen = "30 further frames";
        let (system, network, first_frame) = ("broadcast", "loopback", Some(viewer.first_frame()));
        Row { system, transport, browsers, network, seen, first_frame }.report();
    });
}

#[test]
fn chromium_calls_firefox_over_udp() {
    call(true, "udp");
}

#[test]
fn chromium_calls_firefox_over_tcp() {
    call(true, "tcp");
}

#[test]
fn firefox_calls_chromium_over_udp() {
    call(false, "udp");
}

#[test]
fn firefox_calls_chromium_over_tcp() {
    call(false, "tcp");
}

#[test]
fn firefox_watches_a_broadcast_of_chromium_over_udp() {
    broadcast(false, "udp");
}

#[test]
fn firefox_watches_a_broadcast_of_chromium_over_tcp() {
    broadcast(false, "tcp");
}

#[test]
fn chromium_watches_a_broadcast_of_firefox_over_udp() {
    broadcast(true, "udp");
}

#[test]
fn chromium_watches_a_broadcast_of_firefox_over_tcp() {
    broadcast(true, "tcp");
}
