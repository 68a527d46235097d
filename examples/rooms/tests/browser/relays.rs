//! What happens when a relay drains, and when credentials expire.

use std::time::Duration;

use serde_json::Value;
use turnserver::clock::Clock;

use crate::place::Place;
use crate::table::report;

#[test]
fn a_drained_relay_keeps_its_call_and_new_calls_use_the_other() {
    let place = Place::with(2, &[]);
    let [ann, ben] = place.pair("udp");
    for participant in [&ann, &ben] {
        participant.wait_for_frames(10);
    }
    let before = ann.paths_over("udp").remove(0);
    let drained =
        place.servers.relays.iter().position(|relay| relay.urls().iter().any(|url| before["url"] == url.as_str()));
    let drained = &place.servers.relays[drained.unwrap_or_else(|| panic!("a relay of this test: {before}"))];
    drained.ctl(&["drain"]);
    let status = drained.ctl(&["status"]);
    assert_eq!(status["draining"], true, "{status}");
    for participant in [&ann, &ben] {
        participant.wait_for_frames(30);
        participant.wait("no interruption", "peer.connectionState === 'connected' && peer.restarts === 0");
    }
    let after = ann.paths_over("udp").remove(0);
    assert_eq!((&after["url"], &after["port"]), (&before["url"], &before["port"]), "the path is the same");
    let count = |path: &Value, key: &str| path[key].as_u64().unwrap();
    let received = count(&after, "packetsReceived") - count(&before, "packetsReceived");
    let lost = count(&after, "packetsLost").saturating_sub(count(&before, "packetsLost"));
    // A busy machine may lose some in a socket.
    assert!(lost * 100 <= received, "{before} {after}");

    let allocations = || drained.ctl(&["status"])["allocations"].as_u64().unwrap();
    let running = allocations();
    let [cid, dan] = place.pair("udp");
    for participant in [&cid, &dan] {
        participant.wait_for_frames(10);
        let path = participant.paths_over("udp").remove(0);
        assert!(!drained.urls().iter().any(|url| path["url"] == url.as_str()), "{path}");
    }
    assert!(running > 0 && allocations() <= running, "{} allocations after {running}", allocations());
    let seen = format!("running call: {received} packets, {lost} lost, no restart; new call: the other relay");
    report("drain of one of two relays", "udp", &seen, Some(dan.first_frame()));
}

#[test]
fn a_page_moves_before_its_credentials_expire_and_can_restart_after_that() {
    let place = Place::with(1, &["--lifetime", "30"]);
    let [ann, ben] = place.pair("udp");
    for participant in [&ann, &ben] {
        participant.wait_for_frames(10);
    }
    let first = ann.run("return rooms.state.credentialsExpire;").as_u64().unwrap();
    let port = ann.paths_over("udp")[0]["port"].clone();
    let second =
        ann.wait("for new credentials", &format!("state.credentialsExpire > {first} && state.credentialsExpire"));
    let early = ann.run(&format!("return {first} - Date.now() / 1000;")).as_f64().unwrap();
    assert!(early > 0.0, "the new credentials came {} s late", -early);
    // One of the two pages restarts by itself, and both gather anew.
    ann.wait("for a new path", &format!("![undefined, {port}].includes((await observer.paths())[0]?.port)"));
    let left = ann.run(&format!("return {first} - Date.now() / 1000;")).as_f64().unwrap();
    assert!(left > 0.0, "the allocation of the first credentials was replaced {} s after their expiry", -left);
    ann.wait("for the expiry", &format!("Date.now() / 1000 > {first} + 1"));
    let (port, restarts) = (ann.paths_over("udp")[0]["port"].clone(), ann.run("return rooms.state.peers[0].restarts;"));
    ann.run("rooms.restartIce();");
    let moved = format!("peer.restarts > {restarts} && (await observer.paths())[0]?.port !== {port}");
    ann.wait("for another path", &moved);
    for participant in [&ann, &ben] {
        participant.wait_for_frames(20);
        participant.paths_over("udp");
    }
    let seen = format!(
        "new ones {early:.0} s before the expiry, a lifetime of {} s later; the page moved {left:.0} s before the expiry",
        second.as_u64().unwrap() - first
    );
    report("renewed credentials", "udp", &seen, None);
}

#[test]
fn a_call_with_the_forwarding_unit_goes_on_after_its_first_credentials_have_expired() {
    let place = Place::with(1, &["--lifetime", "30"]);
    let room = place.room();
    let [ann, ben] = ["Ann", "Ben"].map(|name| place.enter(&room, name, "udp"));
    ann.run("rooms.setMode('sfu');");
    for participant in [&ann, &ben] {
        participant.wait("for the mode", "state.mode === 'sfu'");
        participant.wait_for_frames(10);
    }
    let ports = || -> Vec<Value> { ann.paths_over("udp").iter().map(|path| path["port"].clone()).collect() };
    let (before, begin, mut longest) = (ports(), Clock::start(), Duration::ZERO);
    while begin.elapsed() < Duration::from_secs(50) {
        let at = begin.elapsed();
        ann.wait_for_frames(1);
        longest = longest.max(begin.elapsed() - at);
    }
    assert!(longest < Duration::from_secs(5), "no picture for {longest:?}");
    let after = ports();
    assert!(!after.is_empty() && !after.iter().any(|port| before.contains(port)), "{before:?} {after:?}");
    let seen = format!("50 s with credentials for 30 s: all paths are new, at most {longest:?} between pictures");
    report("renewed credentials with the forwarding unit", "udp", &seen, None);
}
