//! A participant who moves to another network during a call.

use turnserver::clock::Clock;

use crate::data::chat;
use crate::file::{accept, offer, received};
use crate::homes::{Home, Inside, Rules, among_homes, servers};
use crate::table::Row;

const SIZE: u64 = 64 << 20;

#[test]
fn a_call_goes_on_after_a_change_of_address() {
    among_homes(|| {
        let homes = [1, 3, 5].map(|network| Home::new(network, Rules::OPEN));
        let [moving, staying] = [0, 1].map(|at| homes[at].participant(Rules::OPEN));
        let servers = servers();
        let browsers = [&moving, &staying].map(|participant| Inside::start(participant));
        let [ann, ben] = servers.pair([&browsers[0], &browsers[1]], "transport=udp");
        for participant in [&ann, &ben] {
            participant.wait_for_frames(10);
            participant.wait_for_relay(&["udp"]);
        }
        let before = ann.run("return { id: rooms.state.id, path: (await observer.paths())[0] };");
        let offered = offer(&ann, SIZE);
        accept(&ben);
        let begun = ben.wait("for a part of the file", "state.files.at(-1).offset > 2 ** 20 && state.files.at(-1)");
        assert_eq!(begun["state"], "running", "{begun}");

        moving.ip("link del n2");
        let moved = Clock::start();
        let held = ben.run("return rooms.state.files.at(-1).offset;").as_u64().unwrap();
        assert!(held < SIZE, "the file was complete before the change");
        homes[2].join(&moving);
        let port = before["path"]["port"].clone();
        ann.wait("for a new path", &format!("((await observer.paths())[0]?.port ?? {port}) !== {port}"));
        ben.wait("for a new path", &format!("((await observer.paths())[0]?.remotePort ?? {port}) !== {port}"));
        for participant in [&ann, &ben] {
            participant.wait_for_frames(1);
        }
        let interruption = moved.elapsed();
        let mut frames = Vec::new();
        for participant in [&ann, &ben] {
            participant.wait_for_frames(20);
            participant.wait_for_relay(&["udp"]);
            frames.push(participant.run("return rooms.state.peers[0].framesDecoded;"));
        }
        let seconds = received(&ann, &ben, &offered);
        chat(&ann, &ben);
        let after = ann.run("return { id: rooms.state.id, path: (await observer.paths())[0] };");
        assert_eq!(before["id"], after["id"], "the same participant");
        assert_ne!(port, after["path"]["port"], "another allocation");
        let seen = format!(
            "pictures on both sides {:.1} s after the change, {} and {} frames; a file of {SIZE} bytes that began before \
             it: {seconds:.1} s, equal SHA-256",
            interruption.as_secs_f64(),
            frames[0],
            frames[1]
        );
        Row {
            system: "change of address in a call",
            transport: "udp",
            browsers: "Chromium",
            network: "to another symmetric NAT",
            seen: &seen,
            first_frame: None,
        }
        .report();
    });
}
