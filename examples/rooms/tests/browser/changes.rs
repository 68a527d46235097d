//! What participants change during a call.

use crate::participant::Participant;
use crate::place::Place;
use crate::table::report;
use crate::transports::over_each_transport;

fn changes_of_the_mode(transport: &str) {
    let place = Place::new();
    let [ann, ben] = place.pair(transport);
    let both = [&ann, &ben];
    for participant in both {
        participant.wait_for_frames(10);
    }
    // Alternately, so that each has changed the mode.
    for (who, mode, paths) in [(&ann, "sfu", 3), (&ben, "mesh", 1), (&ben, "broadcast", 2), (&ann, "mesh", 1)] {
        who.run(&format!("rooms.setMode('{mode}');"));
        for participant in both {
            participant.wait("for the mode", &format!("state.mode === '{mode}'"));
            let is_viewer = mode != "broadcast" || participant.window == ann.window;
            if is_viewer {
                // Counters begin again with a connection.
                participant.wait("for the first frame", "peer.framesDecoded > 0");
                participant.wait_for_frames(20);
            }
            participant.wait("for the connections", &format!("(await observer.paths()).length === {paths}"));
            participant.paths_over(transport);
        }
    }
    report("mesh, forwarding unit, mesh, broadcast, mesh", transport, "20 further frames after each change", None);
}

/// Waits until a participant hears nothing, or something.
fn wait_for_sound(participant: &Participant<'_>, is_heard: bool) {
    let energy = "await observer.sound()";
    let compare = if is_heard { "> before" } else { "=== before" };
    let condition = format!(
        "await (async () => {{
           const before = {energy};
           await new Promise((resolve) => setTimeout(resolve, 1000));
           return ({energy}) {compare};
         }})()"
    );
    participant.wait(if is_heard { "for sound" } else { "for silence" }, &condition);
}

fn mute_and_camera(transport: &str) {
    let place = Place::new();
    let [ann, ben] = place.pair(transport);
    ben.wait_for_frames(10);
    wait_for_sound(&ben, true);
    ann.run("rooms.mute(true);");
    wait_for_sound(&ben, false);
    ann.run("rooms.mute(false);");
    wait_for_sound(&ben, true);

    let toggle = "document.getElementById('camera-toggle').click();";
    ann.run(toggle);
    ben.wait("for the tile without a picture", "document.querySelector('.tile.still')");
    ann.run(toggle);
    ben.wait("for the tile with a picture", "!document.querySelector('.tile.still')");
    ben.wait_for_frames(10);
    report("mute, camera off and on", transport, "silence, then sound; no picture, then one", None);
}

fn choice_of_a_layer(transport: &str) {
    let place = Place::new();
    let [ann, ben] = place.pair(transport);
    ann.run("rooms.setMode('sfu');");
    ben.wait("for the picture", "state.mode === 'sfu' && peer.framesDecoded > 0");
    let video = "state.sfu.tracks.find(({ peer, kind }) => peer === state.peers[0].id && kind === 'video')";
    // The synthetic picture is 640 pixels wide.
    for (layer, width) in [("low", 160), ("medium", 320), ("low", 160)] {
        ben.run(&format!("const {{ state }} = rooms; rooms.setLayer(({video}).track, '{layer}');"));
        let is_sent = format!("({video}).layer === '{layer}' && ({video}).why === 'chosen'");
        ben.wait(&format!("for the layer {layer}"), &is_sent);
        let shown =
            format!("[...document.querySelectorAll('video')].some(({{ videoWidth }}) => videoWidth === {width})");
        ben.wait(&format!("for {width} pixels"), &shown);
    }
    report("choice of a layer", transport, "pictures 160, 320 and 160 pixels wide", None);
}

fn quality(transport: &str) {
    let place = Place::new();
    let [ann, ben] = place.pair(transport);
    ben.wait_for_frames(10);
    ann.wait("for some samples", "Object.values(rooms.report().connections)[0]?.lastMinute.rtt");
    let level = ann.wait("for the verdict", "document.getElementById('quality-level').textContent.trim()");
    assert!(["Good.", "Fair.", "Poor."].contains(&level.as_str().unwrap()), "{level}");
    let quiet = ann.run("return JSON.stringify(rooms.report());");
    let full = ann.run("return JSON.stringify(rooms.report({ addresses: true }));");
    assert!(quiet.as_str().unwrap().contains(r#""local":"relay","remote":"relay""#), "{quiet}");
    assert!(!quiet.as_str().unwrap().contains("127.0.0.1"), "{quiet}");
    assert!(full.as_str().unwrap().contains("127.0.0.1"), "{full}");
    ann.paths_over(transport);
}

over_each_transport! {
    a_call_goes_on_from_the_mesh_to_the_forwarding_unit_and_back: changes_of_the_mode;
    a_muted_microphone_is_silent_and_a_camera_that_is_off_shows_nothing: mute_and_camera;
    a_viewer_gets_the_layer_that_it_chooses: choice_of_a_layer;
    the_quality_is_judged_and_the_report_names_addresses_only_on_request: quality;
}

#[test]
fn the_channel_of_the_game_is_unordered_and_repeats_nothing() {
    let place = Place::new();
    let [ann, ben] = place.pair("udp");
    for participant in [&ann, &ben] {
        participant.wait("for the channel", "peer.dataChannels.game === 'open'");
    }
    // The one that has come later has made the channels.
    let channels = ben.run("return observer.channels();");
    let game = channels.as_array().unwrap().iter().find(|channel| channel["label"] == "game").unwrap();
    assert_eq!((&game["ordered"], &game["maxRetransmits"]), (&false.into(), &0.into()), "{channels}");
}
