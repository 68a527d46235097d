//! Pictures of the pages, for people to look at: target/tmp/rooms-screenshots/.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::data::chat;
use crate::driver::switch_to;
use crate::file::{offer, transfer};
use crate::participant::Participant;
use crate::place::Place;

/// How a page is looked at: name, width and height in CSS pixels, pixels for each of these, and scheme.
type Look = (&'static str, [u32; 2], u32, &'static str);

const LOOKS: [Look; 3] =
    [("light", [1280, 800], 1, "light"), ("dark", [1280, 800], 1, "dark"), ("phone", [390, 844], 1, "light")];
const SHARP_PHONE: Look = ("sharp-phone", [360, 740], 2, "dark");
const PANELS: [&str; 6] = ["room", "chat", "files", "game", "statistics", "settings"];

/// Saves pictures of the current window. `settle` waits for what a new size changes.
fn save(place: &Place, page: &str, looks: &[Look], settle: impl Fn()) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rooms-screenshots");
    fs::create_dir_all(&directory).unwrap();
    for (look, [width, height], scale, scheme) in looks {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": scale, "mobile": *width < 500 });
        place.browser.devtools("Emulation.setDeviceMetricsOverride", &metrics);
        // Without motion, no picture shows a transition from one scheme to the other.
        let features = [("prefers-color-scheme", *scheme), ("prefers-reduced-motion", "reduce")]
            .map(|(name, value)| json!({ "name": name, "value": value }));
        place.browser.devtools("Emulation.setEmulatedMedia", &json!({ "features": features }));
        settle();
        let picture = place.browser.picture();
        assert!(picture.starts_with(b"\x89PNG") && picture.len() > 5_000, "{page} is no picture");
        fs::write(directory.join(format!("{page}-{look}.png")), &picture).unwrap();
    }
}

/// Saves pictures of a participant's window, in which pictures move.
fn save_call(place: &Place, page: &str, looks: &[Look], participant: &Participant<'_>) {
    switch_to(&place.browser, &participant.window);
    save(place, page, looks, || {
        participant.wait("for moving pictures", "document.visibilityState === 'visible'");
        participant.wait_for_frames(2);
    });
}

#[test]
fn pictures_of_the_pages() {
    let place = Place::with_devices();
    let room = place.room();
    save(&place, "start", &LOOKS, || {});
    place.browser.navigate(&format!("{}/room/{room}?capture=synthetic&name=Alice+Archer", place.servers.url));
    save(&place, "before-joining", &LOOKS, || {});

    let [alice, bob] = ["Alice+Archer", "Bob"].map(|name| place.enter(&room, name, "udp"));
    chat(&alice, &bob);
    transfer(&bob, &alice, 5 << 20);
    offer(&bob, 3 << 20);
    alice.wait("for the offer", "state.files.at(-1).state === 'offered'");
    alice.wait("for the channel", "peer.dataChannels.game === 'open'");
    alice.run("rooms.invite(rooms.state.peers[0].id);");
    bob.wait("for the invitation", "state.game.phase === 'invited'");
    bob.run("rooms.acceptGame();");
    alice.wait("for the game", "state.game.phase === 'playing' && Number.isFinite(state.game.latency)");
    let [chiara, _deniz] = ["Chiara+Conti", "Deniz"].map(|name| place.enter(&room, name, "udp"));
    alice.wait(
        "for three pictures",
        "state.peers.length === 3 && state.peers.every((other) => other.framesDecoded > 0)",
    );
    alice.wait_for_frames(20);
    save_call(&place, "mesh", &LOOKS, &alice);
    for panel in PANELS {
        let shown = format!("!document.querySelector('#panel-{panel}').hidden");
        let open = format!("if (!({shown})) document.querySelector('[data-panel={panel}]').click();");
        alice.run(&open);
        alice.wait("for the panel", &shown);
        save_call(&place, &format!("panel-{panel}"), &LOOKS, &alice);
        if panel == "statistics" {
            save_call(&place, "panel-statistics", &[SHARP_PHONE], &alice);
        }
    }
    alice.run("document.querySelector('#close-panel').click();");

    chiara.run("await rooms.share(true);");
    alice.wait("for the screen", "state.peers.some((other) => other.screenFramesDecoded > 0)");
    save_call(&place, "screen", &LOOKS, &alice);
    chiara.run("await rooms.share(false); rooms.setMode('sfu');");
    alice.wait("for the unit", "state.mode === 'sfu' && state.sfu.subscribe?.connectionState === 'connected'");
    save_call(&place, "forwarding-unit", &LOOKS, &alice);
    chiara.run("rooms.setMode('broadcast');");
    alice.wait("for the broadcast", "state.mode === 'broadcast'");
    switch_to(&place.browser, &alice.window);
    save(&place, "broadcast", &LOOKS, || {
        let from_sender = "state.peers.find(({ id }) => id === state.sender).framesDecoded";
        let before = alice.wait("for the sender", from_sender);
        alice.wait("for moving pictures", &format!("{from_sender} > {before}"));
    });

    // What goes wrong, and what a page says about it.
    let gone: String = room.chars().rev().collect();
    let nowhere = place.open(&gone, "Dan", "udp");
    let is_refused = "!state.joined && document.getElementById('join-problem').textContent";
    nowhere.wait("for the refusal", is_refused);
    switch_to(&place.browser, &nowhere.window);
    save(&place, "refused", &LOOKS, || {});
    chiara.run("rooms.setMode('mesh');");
    alice.wait("for the mesh", "state.mode === 'mesh' && peer.framesDecoded > 0");
    place.servers.end_server();
    alice.wait("for the notice", "document.getElementById('notices').textContent.includes('is lost')");
    save_call(&place, "server-lost", &LOOKS, &alice);
}
