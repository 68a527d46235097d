//! What a participant sends is checked by the pages of the others, and what can be changed during a call.

use serde_json::Value;

use crate::file::{accept, offer, received};
use crate::place::Place;

/// Keeps the data channels of a page by label as soon as it sends something, and sends something on those for the chat
/// and files.
const TAKE_CHANNELS: &str = "
    const { send } = RTCDataChannel.prototype;
    window.channels = {};
    RTCDataChannel.prototype.send = function (data) {
      channels[this.label] = this;
      send.call(this, data);
    };
    rooms.send('first');
    rooms.sendFile(new File(['content'], 'first.txt'), rooms.state.peers[0].id);
    window.say = (label, message) => channels[label].send(JSON.stringify(message));";

#[test]
fn a_message_of_the_chat_with_an_impossible_time_is_shown() {
    let place = Place::new();
    let [ann, ben] = place.pair("udp");
    ben.wait("for the channels", "peer.dataChannels.chat === 'open' && peer.dataChannels.files === 'open'");
    ben.run(TAKE_CHANNELS);
    ben.run("say('chat', { text: 5 }); say('chat', []); say('chat', { text: 'sec\\u202eond', at: 9e99 });");
    ann.wait("for both messages", "state.chat.length === 2 && state.chat[1].text === 'second'");
    ann.wait("for the list", "document.querySelectorAll('#messages time').length === 2");
}

#[test]
fn a_peer_cannot_fill_the_list_of_files_nor_resume_what_was_not_sent() {
    let place = Place::new();
    let [ann, ben] = place.pair("udp");
    ben.wait("for the channels", "peer.dataChannels.chat === 'open' && peer.dataChannels.files === 'open'");
    ben.run(TAKE_CHANNELS);
    ben.run(
        "const offer = { type: 'offer', name: '../x\\u202etxt.exe', size: 1 };
         for (let i = 0; i < 500; i += 1) say('files', { ...offer, id: `offer-${i}` });
         say('files', { type: 'data', id: 'offer-0', offset: 0 });
         channels.files.send(new Uint8Array(1));
         say('files', { type: 'cancel', id: 'offer-1' });",
    );
    ann.wait("for the last message", "state.files.find(({ id }) => id === 'offer-1')?.state === 'cancelled'");
    assert_eq!(ann.run("return rooms.state.files.length;"), 20);
    let name = ann.run("return rooms.state.files.find(({ id }) => id === 'offer-0').name;");
    assert_eq!(name, "_xtxt.exe");
    // It was not accepted.
    assert_eq!(ann.run("return rooms.state.files.find(({ id }) => id === 'offer-0').state;"), "offered");

    for offset in ["-1", "0.5", "1", "null", "'0'"] {
        let id = ann.run("return rooms.sendFile(new File(['content'], 'a.txt'), rooms.state.peers[0].id);");
        ben.run(&format!("say('files', {{ type: 'resume', id: {id}, offset: {offset} }});"));
        let state = format!("state.files.find(({{ id }}) => id === {id}).state === 'failed'");
        ann.wait(&format!("for the end of the transfer after {offset}"), &state);
    }
}

#[test]
fn the_relay_only_switch_replaces_connections_and_a_file_continues() {
    let place = Place::new();
    let [ann, ben] = place.pair("udp");
    ann.wait("for the channel", "peer.dataChannels.files === 'open'");
    for participant in [&ann, &ben] {
        participant.run("document.getElementById('call-relay-only').click();");
    }
    let is_direct = "peer.connectionState === 'connected' && peer.pair && peer.pair.local !== 'relay'";
    ann.wait("for the direct path", is_direct);
    ann.wait("for the new channel", "peer.dataChannels.files === 'open'");
    let offered = offer(&ann, 60 << 20);
    // Keeps the requests for the rest of the file.
    ben.run(
        "const { send } = RTCDataChannel.prototype;
         window.resumed = [];
         RTCDataChannel.prototype.send = function (data) {
           const message = this.label === 'files' && typeof data === 'string' ? JSON.parse(data) : {};
           if (message.type === 'resume') resumed.push(message.offset);
           send.call(this, data);
         };",
    );
    accept(&ben);
    ann.wait("for a part of the file", "state.files[0].offset > 0");
    for participant in [&ann, &ben] {
        participant.run("document.getElementById('call-relay-only').click();");
    }
    ann.wait("for the path over the relay", "peer.connectionState === 'connected' && peer.pair?.local === 'relay'");
    received(&ann, &ben, &offered);
    let resumed = ben.run("return resumed;");
    let is_within = |offset: &Value| (1..offered.size).contains(&offset.as_u64().unwrap());
    assert!(resumed.as_array().unwrap().iter().any(is_within), "the file was not interrupted: {resumed}");
    ann.paths_over("udp");
    for participant in [&ann, &ben] {
        participant.wait_for_frames(10);
    }
}
