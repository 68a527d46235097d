//! Calls of two.

use std::fs;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::place::Place;
use crate::support::{TIMEOUT, TempDir, run};
use crate::table::report;
use crate::transports::over_each_transport;

fn a_call_of_two(transport: &str) {
    let place = Place::new();
    let [ann, ben] = place.pair(transport);
    let mut frames = Vec::new();
    for participant in [&ann, &ben] {
        participant.wait_for_frames(30);
        let paths = participant.paths_over(transport);
        assert_eq!(paths.len(), 1);
        frames.push(paths[0]["framesDecoded"].as_u64().unwrap());
    }
    report("call of two", transport, &format!("{} and {} frames", frames[0], frames[1]), Some(ben.first_frame()));
}

fn a_shared_screen(transport: &str) {
    let place = Place::new();
    let [ann, ben] = place.pair(transport);
    ben.wait_for_frames(10);
    ann.run("await rooms.share(true);");
    let frames =
        ben.wait("for the screen", "peer.screen && peer.screenFramesDecoded >= 10 && peer.screenFramesDecoded");
    ben.wait_for_frames(10);
    ben.paths_over(transport);
    ann.run("await rooms.share(false);");
    ben.wait("for the end of the screen", "!peer.screen && !state.peers[0].screenFramesDecoded");
    // The camera goes on.
    ben.wait_for_frames(10);
    report("screen share in a call", transport, &format!("{frames} frames of the screen, then withdrawn"), None);
}

/// Returns how many frames of a kind a decoder finds in a file.
fn decoded(file: &Path, stream: &str) -> u64 {
    let entries = "stream=nb_read_frames";
    let mut ffprobe = Command::new("ffprobe");
    ffprobe.args([
        "-v",
        "error",
        "-count_frames",
        "-select_streams",
        stream,
        "-show_entries",
        entries,
        "-of",
        "csv=p=0",
    ]);
    let finished = run(ffprobe.arg(file), Some("ffmpeg"), TIMEOUT);
    assert_eq!((finished.code, &finished.stderr), (Some(0), &Vec::new()), "{finished:?}");
    finished.stdout.first().and_then(|line| line.trim_end_matches(',').parse().ok()).unwrap_or_default()
}

fn a_recording(transport: &str) {
    let place = Place::new();
    let [ann, ben] = place.pair(transport);
    ben.wait_for_frames(10);
    ben.run("await rooms.record(true); window.since = performance.now();");
    ben.wait("to have recorded for 3 s", "state.recording.state === 'recording' && performance.now() - since > 3000");
    ben.wait_for_frames(60);
    let recording = ben.run(
        "const { blob, size, seconds } = await rooms.record(false);
         const url = await new Promise((resolve, reject) => {
           const reader = new FileReader();
           reader.onload = () => resolve(reader.result);
           reader.onerror = () => reject(reader.error);
           reader.readAsDataURL(blob);
         });
         return { size, seconds, content: url.slice(url.indexOf(',') + 1) };",
    );
    let content = BASE64.decode(recording["content"].as_str().unwrap()).unwrap();
    assert_eq!(content.len() as u64, recording["size"].as_u64().unwrap());
    let directory = TempDir::new();
    let file = directory.path().join("call.webm");
    fs::write(&file, &content).unwrap();
    let (video, audio) = (decoded(&file, "v"), decoded(&file, "a"));
    // A busy machine records few frames.
    assert!(video >= 5 && audio >= 20, "{video} frames of video and {audio} of audio");
    ann.paths_over(transport);
    let seen = format!("{} bytes, ffprobe decodes {video} frames of video, {audio} of audio", content.len());
    report("recording", transport, &seen, None);
}

over_each_transport! {
    two_see_each_other: a_call_of_two;
    a_screen_is_shared_and_withdrawn_during_a_call: a_shared_screen;
    ffprobe_decodes_a_recording: a_recording;
}
