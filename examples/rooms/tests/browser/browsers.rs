//! Chromium and Firefox together.

use crate::data::chat;
use crate::driver::Driver;
use crate::file::transfer;
use crate::firefox::Firefox;
use crate::place::{Servers, only};
use crate::relay::Relay;
use crate::table::Row;
use crate::transports::over_each_transport;
use crate::webdriver::Browser;

const SIZE: u64 = 5 << 20;

/// Runs all cases with both browsers, whose start takes longest. The first one enters each room first, and so the second
/// one calls it.
fn between(is_firefox_first: bool, transport: &str) {
    let servers = Servers::start(vec![Relay::start()], "127.0.0.1:0", &[]);
    let (chromium, firefox) = (Browser::start(), Firefox::start());
    let drivers: [&dyn Driver; 2] = if is_firefox_first { [&firefox, &chromium] } else { [&chromium, &firefox] };
    let browsers = drivers.map(Driver::name).join(", ");
    let row = Row { system: "", transport, browsers: &browsers, network: "loopback", seen: "", first_frame: None };

    let [first, second] = servers.pair(drivers, &only(transport));
    for participant in [&first, &second] {
        participant.wait_for_frames(30);
        assert_eq!(participant.paths_over(transport).len(), 1);
    }
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
    for participant in [first, second] {
        participant.run("rooms.leave();");
    }

    // The first one sends through the forwarding unit, and the second one watches.
    let room = servers.room(drivers[0]);
    let sender = servers.enter(drivers[0], &room, "Ann", &only(transport));
    sender.run("rooms.setMode('broadcast');");
    sender.wait("for the way to the unit", "state.sfu.publish?.connectionState === 'connected'");
    let viewer = servers.enter(drivers[1], &room, "Ben", &only(transport));
    viewer.wait_for_frames(30);
    for participant in [&sender, &viewer] {
        participant.paths_over(transport);
    }
    Row { system: "broadcast", seen: "30 further frames", first_frame: Some(viewer.first_frame()), ..row }.report();
}

over_each_transport! {
    firefox_calls_chromium_and_watches_its_broadcast: |transport| between(false, transport);
    chromium_calls_firefox_and_watches_its_broadcast: |transport| between(true, transport);
}
