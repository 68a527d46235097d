//! Calls of many: mesh, forwarding unit, broadcast and bots.

use crate::participant::Participant;
use crate::place::Place;
use crate::table::report;
use crate::transports::over_each_transport;

fn mesh<const COUNT: usize>(names: [&str; COUNT], transport: &str) {
    let place = Place::new();
    let room = place.room();
    let all = names.map(|name| place.enter(&room, name, transport));
    let others = COUNT - 1;
    let pictures = format!("state.peers.length === {others} && state.peers.every((peer) => peer.framesDecoded > 0)");
    for participant in &all {
        participant.wait(&format!("for {others} pictures"), &pictures);
        participant.wait_for_frames(10);
        assert_eq!(participant.paths_over(transport).len(), others);
    }
    let seen = format!("{COUNT} × {others} pictures go on");
    report(&format!("mesh of {COUNT}"), transport, &seen, Some(all[others].first_frame()));
}

fn mesh_of_four(transport: &str) {
    mesh(["Ann", "Ben", "Cid", "Dan"], transport);
}

#[test]
#[ignore = "six windows with thirty pictures take a minute"]
fn six_see_each_other_in_a_mesh() {
    mesh(["Ann", "Ben", "Cid", "Dan", "Eve", "Fay"], "udp");
}

#[test]
fn the_seventh_of_a_mesh_is_sent_to_the_forwarding_unit() {
    let place = Place::new();
    let room = place.room();
    // The six need no media.
    place.enter_silently(&room, 6);
    let seventh = place.open(&room, "Gil", "udp");
    let shown = seventh.wait("for the refusal", "document.querySelector('#join-problem').textContent");
    assert!(shown.as_str().unwrap().contains("forwarding unit"), "{shown}");
    seventh.wait("to be outside", "!state.joined && !document.querySelector('#prejoin').hidden");
    report("seventh in a mesh", "–", &format!("“{}”", shown.as_str().unwrap()), None);
}

/// Lets participants enter a room in which media are forwarded.
fn forwarded<'p>(place: &'p Place, mode: &str, count: usize, transport: &str) -> Vec<Participant<'p>> {
    let room = place.room();
    let first = place.enter(&room, "Ann", transport);
    first.run(&format!("rooms.setMode('{mode}');"));
    first.wait("for the mode", &format!("state.mode === '{mode}'"));
    first.wait("for the way to the unit", "state.sfu.publish?.connectionState === 'connected'");
    let mut all = vec![first];
    all.extend((1..count).map(|number| place.enter(&room, &format!("Viewer {number}"), transport)));
    all
}

fn two_with_the_forwarding_unit(transport: &str) {
    let place = Place::new();
    let all = forwarded(&place, "sfu", 2, transport);
    for participant in &all {
        participant.wait("for frames of the unit", "state.mode === 'sfu' && peer.framesDecoded > 0");
        participant.wait_for_frames(30);
        // To the unit, from the unit, and data to the other.
        assert_eq!(participant.paths_over(transport).len(), 3);
    }
    report("forwarding unit, two", transport, "frames on both sides", Some(all[1].first_frame()));
}

fn broadcast(viewers: usize, transport: &str) {
    let place = Place::new();
    let all = forwarded(&place, "broadcast", viewers + 1, transport);
    let (sender, viewers) = all.split_first().unwrap();
    let from_sender = "state.peers.find(({ id }) => id === state.sender).framesDecoded";
    let mut frames = Vec::new();
    for viewer in viewers {
        let before = viewer.wait("for the first frame", from_sender);
        let now = viewer.wait("for 20 more frames", &format!("{from_sender} >= {before} + 20 && {from_sender}"));
        frames.push(now.as_u64().unwrap());
        viewer.paths_over(transport);
        let publishes = viewer.run("return rooms.state.sfu.publish !== null;");
        assert_eq!(publishes, false, "only the sender sends");
    }
    let received = sender.run("return rooms.state.peers.map(({ framesDecoded }) => framesDecoded ?? 0);");
    assert!(received.as_array().unwrap().iter().all(|count| count == 0), "the sender watches nobody: {received}");
    sender.paths_over(transport);
    let least = frames.iter().min().unwrap();
    let seen = format!("each of {} decoded at least {least} frames", frames.len());
    report(&format!("broadcast to {}", frames.len()), transport, &seen, Some(viewers.last().unwrap().first_frame()));
}

#[test]
#[ignore = "21 windows take minutes"]
fn a_broadcast_reaches_twenty() {
    broadcast(20, "udp");
}

fn bot(transport: &str) {
    let place = Place::new();
    let room = place.room();
    let ann = place.enter(&room, "Ann", transport);
    let relay = &place.servers.relays[0];
    let authority = relay.authority();
    let options = ["--turn-url", relay.url(transport), "--relay-ca", authority.to_str().unwrap()];
    let bot = place.servers.bot(&room, &options);
    ann.wait("for the bot", "peer.kind === 'bot' && peer.connectionState === 'connected'");
    ann.wait("for the picture", "peer.framesDecoded > 0");
    ann.wait_for_frames(20);
    ann.wait("for the channel", "peer.dataChannels.chat === 'open'");
    assert_eq!(ann.run("return rooms.send('Is there anybody?');"), 1, "{}", bot.output());
    ann.wait("for the echo", "state.chat.some(({ text, own }) => text === 'Is there anybody?' && !own)");
    ann.paths_over(transport);
    report("bot", transport, "its picture, and an echo", Some(ann.first_frame()));
}

fn sound_of_a_screen(transport: &str) {
    let place = Place::new();
    let all = forwarded(&place, "sfu", 2, transport);
    let sharer = "state.peers.find(({ name }) => name === 'Ann')";
    all[1].wait("for the first", &format!("{sharer}.framesDecoded > 0"));
    all[0].run("await rooms.share(true);");
    all[1].wait("for picture and sound", &format!("{sharer}.screenFramesDecoded > 10 && {sharer}.screenSound"));
    all[0].run("await rooms.share(false);");
    all[1].wait("for the end", &format!("!{sharer}.screen && !{sharer}.screenSound"));
    all[0].run("await rooms.share(true);");
    all[1].wait("for both again", &format!("{sharer}.screenFramesDecoded > 10 && {sharer}.screenSound"));
    all[1].paths_over(transport);
    report("screen with sound, forwarding unit", transport, "picture and sound, withdrawn, and again", None);
}

over_each_transport! {
    four_see_each_other_in_a_mesh: mesh_of_four;
    the_forwarding_unit_connects_two: two_with_the_forwarding_unit;
    a_broadcast_reaches_four: |transport| broadcast(4, transport);
    a_bot_shows_its_picture_and_echoes_the_chat: bot;
    the_sound_of_a_screen_is_forwarded_with_its_picture: sound_of_a_screen;
}

#[test]
fn a_viewer_restarts_its_connection_with_the_forwarding_unit() {
    let place = Place::new();
    let all = forwarded(&place, "broadcast", 2, "udp");
    let viewer = &all[1];
    let from_sender = "state.peers.find(({ id }) => id === state.sender).framesDecoded";
    viewer.wait("for the first frame", from_sender);
    // A restart gathers new candidates.
    let address = "state.sfu.subscribe.pair?.localAddress";
    let before = viewer.wait("for the path", address);
    viewer.run("await rooms.restartIce();");
    viewer.wait("for another path", &format!("{address} && {address} !== {before}"));
    let decoded = viewer.wait("for its frames", from_sender);
    viewer.wait("for more frames", &format!("{from_sender} >= {decoded} + 20"));
    viewer.paths_over("udp");
}
