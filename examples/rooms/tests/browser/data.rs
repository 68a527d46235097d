//! Data channels: chat, files and the game.

use crate::file::{accept, offer, received, transfer};
use crate::participant::Participant;
use crate::place::Place;
use crate::table::report;
use crate::transports::over_each_transport;

const SIZE: u64 = 20 << 20;

/// Sends a message each way.
pub(crate) fn chat(ann: &Participant<'_>, ben: &Participant<'_>) {
    for (from, to, text) in [(ann, ben, "Good morning, Ben ☀"), (ben, ann, "Good morning, Ann")] {
        from.wait("for the channel", "peer.dataChannels.chat === 'open'");
        assert_eq!(from.run(&format!("return rooms.send('{text}');")), 1);
        to.wait("for the message", &format!("state.chat.some(({{ text, own }}) => text === '{text}' && !own)"));
    }
}

fn chat_and_a_file(transport: &str) {
    let place = Place::new();
    let [ann, ben] = place.pair(transport);
    chat(&ann, &ben);
    let before = ann.paths_over(transport)[0]["port"].clone();
    let offered = offer(&ann, SIZE);
    // The sender restarts as soon as a part of the file is there.
    ann.run(
        "const look = () => {
           const { state, offset } = rooms.state.files[0];
           if (offset < 2 ** 21) return setTimeout(look, 5);
           window.restartedAt = { state, offset };
           rooms.restartIce();
         };
         look();",
    );
    accept(&ben);
    let restarted = ann.wait("for a part of the file", "window.restartedAt");
    assert_eq!(restarted["state"], "running", "{restarted}");
    assert!(restarted["offset"].as_u64().unwrap() < SIZE, "{restarted}");
    let seconds = received(&ann, &ben, &offered);
    ann.wait(
        "for the path of the restart",
        &format!("peer.restarts === 1 && (await observer.paths())[0]?.port !== {before}"),
    );
    ann.paths_over(transport);
    ben.paths_over(transport);
    let at = &restarted["offset"];
    report("chat", transport, "a message each way", None);
    report("file", transport, &format!("{SIZE} bytes in {seconds:.1} s, equal SHA-256, ICE restart at {at}"), None);
}

fn game(transport: &str) {
    let place = Place::new();
    let [ann, ben] = place.pair(transport);
    for participant in [&ann, &ben] {
        participant.wait("for the channel", "peer.dataChannels.game === 'open'");
    }
    ann.run("rooms.invite(rooms.state.peers[0].id);");
    ben.wait("for the invitation", "state.game.phase === 'invited'");
    ben.run("rooms.acceptGame();");
    for participant in [&ann, &ben] {
        participant.wait("for the game", "state.game.phase === 'playing'");
        // Nobody hits the ball.
        participant.run("rooms.setPaddle(9);");
    }
    // Ben keeps each score that he sees: the next point may come before he is asked.
    ben.run("window.scores = []; setInterval(() => scores.push(String(rooms.state.game.score)), 50);");
    let score = ann.wait("for a point", "state.game.score[0] + state.game.score[1] > 0 && state.game.score");
    ben.wait(&format!("for the score {score}"), &format!("scores.includes(String({score}))"));
    let mut latencies = Vec::new();
    for participant in [&ann, &ben] {
        let latency = participant.wait("for the latency", "Number.isFinite(state.game.latency) && state.game.latency");
        latencies.push(latency.as_f64().unwrap());
        participant.paths_over(transport);
    }
    let seen = format!("score {score} on both sides, round trip {:.1} and {:.1} ms", latencies[0], latencies[1]);
    report("game", transport, &seen, None);
}

#[test]
#[ignore = "it takes minutes"]
fn a_file_of_one_gibibyte_arrives() {
    const GIBIBYTE: u64 = 1 << 30;
    let place = Place::new();
    let [ann, ben] = place.pair("udp");
    let seconds = transfer(&ann, &ben, GIBIBYTE);
    for participant in [&ann, &ben] {
        participant.paths_over("udp");
    }
    #[allow(clippy::cast_precision_loss, reason = "a rate needs no precision")]
    let rate = (GIBIBYTE >> 20) as f64 / seconds;
    let seen = format!("{GIBIBYTE} bytes in {seconds:.0} s ({rate:.1} MiB/s), equal SHA-256");
    report("file of 1 GiB", "udp", &seen, None);
}

over_each_transport! {
    chat_and_a_file_arrive_and_the_file_survives_an_ice_restart: chat_and_a_file;
    two_players_agree_on_the_score: game;
}
