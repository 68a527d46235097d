//! Calls in which messages are lost, the server is gone, or the room is too large for data channels.

use crate::file::offer;
use crate::participant::Participant;
use crate::place::Place;
use crate::table::report;

const CHANNELS_OPEN: &str = "['chat', 'files', 'game'].every((label) => peer.dataChannels[label] === 'open')";

/// Waits until a notice with a text is shown.
fn wait_for_notice(participant: &Participant<'_>, text: &str) {
    let shown = format!("document.getElementById('notices').textContent.includes('{text}')");
    participant.wait(&format!("for the notice “{text}”"), &shown);
}

#[test]
fn a_call_is_complete_although_its_first_answer_and_one_of_a_restart_are_lost() {
    let place = Place::new();
    let room = place.room();
    let ann = place.enter(&room, "Ann", "udp");
    ann.run("observer.lose('answer');");
    let ben = place.enter(&room, "Ben", "udp");
    for participant in [&ann, &ben] {
        participant.wait("for all channels", CHANNELS_OPEN);
        participant.wait_for_frames(10);
    }
    let first = ben.first_frame();
    assert_eq!(ann.run("return observer.lost();"), 1);

    let port = ben.paths_over("udp")[0]["port"].clone();
    ann.run("observer.lose('answer');");
    ben.run("await rooms.restartIce();");
    ben.wait("for another path", &format!("![undefined, {port}].includes((await observer.paths())[0]?.port)"));
    for participant in [&ann, &ben] {
        participant.wait_for_frames(10);
        participant.wait("for all channels", CHANNELS_OPEN);
    }
    assert_eq!(ann.run("return observer.lost();"), 2);
    report("lost answers", "udp", "the offers are repeated, all channels open", Some(first));
}

#[test]
fn a_screen_is_shared_after_the_unit_has_refused_too_many_restarts() {
    let place = Place::new();
    let [ann, ben] = place.pair("udp");
    ann.run("rooms.setMode('sfu');");
    for participant in [&ann, &ben] {
        participant.wait("for the unit", "state.mode === 'sfu' && peer.framesDecoded > 0");
    }
    ann.run(
        "const notices = document.getElementById('notices');
         const isRefused = () => notices.textContent.includes('too many new connections');
         const refused = new Promise((resolve) => {
           new MutationObserver(() => isRefused() && resolve()).observe(notices, { childList: true, subtree: true });
         });
         for (let restarts = 0; !isRefused(); restarts += 1) {
           if (restarts === 40) throw new Error('no restart is refused');
           const negotiated = observer.negotiated();
           await rooms.restartIce();
           await Promise.race([negotiated, refused]);
         }",
    );
    ann.run("await rooms.share(true);");
    ben.wait("for the screen", "peer.screen && peer.screenFramesDecoded >= 10");
    for participant in [&ann, &ben] {
        participant.wait_for_frames(10);
        // Until its candidate comes, the address of the other side is a peer-reflexive one.
        participant.wait("for all candidates", "(await observer.paths()).every(({ remote }) => remote === 'relay')");
        participant.paths_over("udp");
    }
    report("more restarts than the unit takes", "udp", "refused, then a screen is shared", None);
}

#[test]
fn without_the_server_a_call_goes_on_and_a_file_is_not_accepted() {
    let place = Place::new();
    let [ann, ben] = place.pair("udp");
    offer(&ann, 1 << 20);
    ben.wait("for the offer", "state.files.at(-1)?.state === 'offered'");
    place.servers.end_server();
    wait_for_notice(&ben, "The connection to the server of the room is lost");
    // The script that stores files has not been loaded.
    ben.run("rooms.acceptFile(rooms.state.files.at(-1).id);");
    let problem = ben.wait("for the end", "state.files.at(-1).state === 'failed' && state.files.at(-1).problem");
    assert!(problem.as_str().unwrap().contains("the server does not respond"), "{problem}");
    ann.wait("to be told", "state.files.at(-1).state === 'cancelled'");
    for participant in [&ann, &ben] {
        participant.wait_for_frames(10);
    }
    report("file, with the server ended", "udp", "“The file is not accepted”; the call goes on", None);
}

#[test]
fn in_a_room_that_is_too_large_for_a_mesh_the_chat_says_whom_it_reaches() {
    let place = Place::new();
    let [ann, ben] = place.pair("udp");
    ann.run("rooms.setMode('sfu');");
    ann.wait("for the channel", "state.mode === 'sfu' && peer.dataChannels.chat === 'open'");
    let room = ann.run("return location.pathname.split('/').at(-1);");
    let room = room.as_str().unwrap();
    place.enter_silently(room, 4);
    let gil = place.enter(room, "Gil", "udp");
    ann.wait("for six others", "state.peers.length === 6");

    assert_eq!(ann.run("return rooms.send('Who reads this?');"), 1);
    let reach = ann.wait("for the hint", "document.querySelector('#messages .reach').textContent");
    assert_eq!(reach, "Sent to 1 of 6 participants");
    ben.wait("for the message", "state.chat.some(({ text }) => text === 'Who reads this?')");

    gil.run(
        "document.getElementById('text').value = 'Nobody.';
         document.getElementById('chat-form').requestSubmit();",
    );
    wait_for_notice(&gil, "The message is not sent");
    report("chat of seven", "udp", "“Sent to 1 of 6 participants”; the seventh is told that it reaches nobody", None);
}
