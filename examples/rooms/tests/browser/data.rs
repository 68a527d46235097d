//! Data channels: chat, files and the game.

use serde_json::json;

use crate::participant::report;
use crate::place::Place;

const SIZE: u64 = 20 << 20;

fn chat_and_a_file(transport: &str) {
    let place = Place::new();
    let [ann, ben] = place.pair(transport);
    for participant in [&ann, &ben] {
        participant.wait("for the channels", "peer.dataChannels.chat === 'open' && peer.dataChannels.files === 'open'");
    }
    assert_eq!(ann.run("return rooms.send('Good morning, Ben ☀');"), 1);
    ben.wait("for the message", "state.chat.some(({ text, own }) => text === 'Good morning, Ben ☀' && !own)");
    assert_eq!(ben.run("return rooms.send('Good morning, Ann');"), 1);
    ann.wait("for the response", "state.chat.some(({ text, own }) => text === 'Good morning, Ann' && !own)");

    let before = ann.paths_over(transport)[0]["port"].clone();
    let digest = "const digest = async (blob) => [...new Uint8Array(await crypto.subtle.digest('SHA-256', \
                  await blob.arrayBuffer()))].map((byte) => byte.toString(16).padStart(2, '0')).join('');";
    let sent = ann.run(&format!(
        "{digest}
         const bytes = new Uint8Array({SIZE});
         for (let at = 0; at < bytes.length; at += 65536) crypto.getRandomValues(bytes.subarray(at, at + 65536));
         const file = new File([bytes], 'picture.raw');
         rooms.sendFile(file, rooms.state.peers[0].id);
         return digest(file);"
    ));
    ben.wait("for the offer", "state.files[0]?.state === 'offered'");
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
    ben.run("rooms.acceptFile(rooms.state.files[0].id);");
    let restarted = ann.wait("for a part of the file", "window.restartedAt");
    assert_eq!(restarted["state"], "running", "{restarted}");
    assert!(restarted["offset"].as_u64().unwrap() < SIZE, "{restarted}");
    ben.wait("for the file", "state.files[0].state === 'complete'");
    let received = ben.run(&format!(
        "{digest}
         const [{{ id, size, sha256, seconds }}] = rooms.state.files;
         return {{ size, sha256, seconds, digest: await digest(rooms.file(id)) }};"
    ));
    assert_eq!((&received["size"], &received["sha256"], &received["digest"]), (&json!(SIZE), &sent, &sent));
    assert_eq!(sent.as_str().map(str::len), Some(64));
    let shown = ann.wait("for the confirmation", "state.files[0].state === 'complete' && state.files[0].sha256");
    assert_eq!(shown, sent);
    ann.wait(
        "for the path of the restart",
        &format!("peer.restarts === 1 && (await observer.paths())[0]?.port !== {before}"),
    );
    ann.paths_over(transport);
    ben.paths_over(transport);
    let (at, seconds) = (&restarted["offset"], received["seconds"].as_f64().unwrap());
    report("chat", transport, "a message each way", None);
    report("file", transport, &format!("{SIZE} bytes in {seconds:.1} s, equal SHA-256, ICE restart at {at}"), None);
}

#[test]
fn chat_and_a_file_arrive_over_udp_and_the_file_survives_an_ice_restart() {
    chat_and_a_file("udp");
}

#[test]
fn chat_and_a_file_arrive_over_tcp_and_the_file_survives_an_ice_restart() {
    chat_and_a_file("tcp");
}

#[test]
fn chat_and_a_file_arrive_over_tls_and_the_file_survives_an_ice_restart() {
    chat_and_a_file("tls");
}

#[test]
fn two_players_agree_on_the_score() {
    let place = Place::new();
    let [ann, ben] = place.pair("udp");
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
    let score = ann.wait("for a point", "state.game.score[0] + state.game.score[1] > 0 && state.game.score");
    ben.wait(&format!("for the score {score}"), &format!("String(state.game.score) === String({score})"));
    let mut latencies = Vec::new();
    for participant in [&ann, &ben] {
        let latency = participant.wait("for the latency", "Number.isFinite(state.game.latency) && state.game.latency");
        latencies.push(latency.as_f64().unwrap());
        participant.paths_over("udp");
    }
    let seen = format!("score {score} on both sides, round trip {:.1} and {:.1} ms", latencies[0], latencies[1]);
    report("game", "udp", &seen, None);
}
