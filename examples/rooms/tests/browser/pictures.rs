//! Pictures of the pages, for people to look at: target/tmp/rooms-screenshots/.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::data::chat;
use crate::driver::switch_to;
use crate::file::{offer, transfer};
use crate::participant::Participant;
use crate::place::Place;

const WIDE: [u32; 2] = [1280, 800];
const PHONE: [u32; 2] = [390, 844];
const LOOKS: [(&str, [u32; 2], &str); 3] =
    [("light", WIDE, "light"), ("dark", WIDE, "dark"), ("phone", PHONE, "light")];
const PANELS: [&str; 5] = ["room", "chat", "files", "game", "statistics"];

/// Saves a picture of the current window in each size and scheme. `settle` waits for what a new size changes.
fn save(place: &Place, page: &str, settle: impl Fn()) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rooms-screenshots");
    fs::create_dir_all(&directory).unwrap();
    for (look, [width, height], scheme) in LOOKS {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500 });
        place.browser.devtools("Emulation.setDeviceMetricsOverride", &metrics);
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        place.browser.devtools("Emulation.setEmulatedMedia", &features);
        settle();
        let picture = place.browser.picture();
        assert!(picture.starts_with(b"\x89PNG") && picture.len() > 5_000, "{page} is no picture");
        fs::write(directory.join(format!("{page}-{look}.png")), &picture).unwrap();
    }
}

/// Saves pictures of a participant's window, in which pictures move.
fn save_call(place: &Place, page: &str, participant: &Participant<'_>) {
    switch_to(&place.browser, &participant.window);
    save(place, page, || {
        participant.wait("for moving pictures", "document.visibilityState === 'visible'");
        participant.wait_for_frames(2);
    });
}

#[test]
fn pictures_of_the_pages() {
    let place = Place::new();
    let room = place.room();
    save(&place, "start", || {});
    place.browser.navigate(&format!("{}/room/{room}?capture=synthetic&name=Ann", place.servers.url));
    save(&place, "before-joining", || {});

    let [ann, ben] = ["Ann", "Ben"].map(|name| place.enter(&room, name, "udp"));
    chat(&ann, &ben);
    transfer(&ben, &ann, 5 << 20);
    offer(&ben, 3 << 20);
    ann.wait("for the offer", "state.files.at(-1).state === 'offered'");
    ann.wait("for the channel", "peer.dataChannels.game === 'open'");
    ann.run("rooms.invite(rooms.state.peers[0].id);");
    ben.wait("for the invitation", "state.game.phase === 'invited'");
    ben.run("rooms.acceptGame();");
    ann.wait("for the game", "state.game.phase === 'playing' && Number.isFinite(state.game.latency)");
    let cid = place.enter(&room, "Cid", "udp");
    ann.wait_for_frames(20);
    save_call(&place, "mesh", &ann);
    for panel in PANELS {
        let shown = format!("!document.querySelector('#panel-{panel}').hidden");
        let open = format!("if (!({shown})) document.querySelector('[data-panel={panel}]').click();");
        ann.run(&open);
        ann.wait("for the panel", &shown);
        save_call(&place, &format!("panel-{panel}"), &ann);
    }
    ann.run("document.querySelector('#close-panel').click();");

    cid.run("await rooms.share(true);");
    ann.wait("for the screen", "state.peers.some((other) => other.screenFramesDecoded > 0)");
    save_call(&place, "screen", &ann);
    cid.run("await rooms.share(false); rooms.setMode('sfu');");
    ann.wait("for the unit", "state.mode === 'sfu' && state.sfu.subscribe?.connectionState === 'connected'");
    save_call(&place, "forwarding-unit", &ann);
    cid.run("rooms.setMode('broadcast');");
    ann.wait("for the broadcast", "state.mode === 'broadcast'");
    switch_to(&place.browser, &ann.window);
    save(&place, "broadcast", || {
        let from_sender = "state.peers.find(({ id }) => id === state.sender).framesDecoded";
        let before = ann.wait("for the sender", from_sender);
        ann.wait("for moving pictures", &format!("{from_sender} > {before}"));
    });
}
