//! What is in a recording, and what a change of the policy does to the connections with the forwarding unit.

use crate::place::Place;
use crate::table::report;

/// Returns how loud the tones of Ben and Ann, and one of neither, are in a recording, in decibels of the full scale.
const TONES: &str = "
    const tone = (name) => 220 + [...name].reduce((sum, c) => (sum * 31 + c.codePointAt(0)) % 360, 7) / 2;
    const audio = new OfflineAudioContext(1, 1, 48000);
    const sound = await audio.decodeAudioData(await recording.blob.arrayBuffer());
    const samples = sound.getChannelData(0);
    const loudness = (frequency) => {
      let [re, im] = [0, 0];
      samples.forEach((sample, i) => {
        const angle = (2 * Math.PI * frequency * i) / sound.sampleRate;
        re += sample * Math.cos(angle);
        im += sample * Math.sin(angle);
      });
      return 20 * Math.log10((2 * Math.hypot(re, im)) / samples.length);
    };
    return [tone('Ben'), tone('Ann'), 400].map((frequency) => Math.round(loudness(frequency)));";

#[test]
fn a_recording_contains_both_voices_and_not_the_own_one_while_it_is_muted() {
    let place = Place::new();
    let [ann, ben] = place.pair("udp");
    ann.wait_for_frames(5);
    ben.wait_for_frames(5);
    for muted in [false, true] {
        ben.run(&format!("rooms.mute({muted}); await rooms.record(true); window.since = performance.now();"));
        ben.wait("to have recorded", "state.recording.state === 'recording' && performance.now() - since > 3000");
        let loudness = ben.run(&format!("const recording = await rooms.record(false); {TONES}"));
        let [own, other, none] = [0, 1, 2].map(|index| loudness[index].as_i64().unwrap());
        assert!(other > -50 && none < -60, "the voice of the other: {loudness}");
        assert_eq!(own > -50, !muted, "the own voice: {loudness}");
        report("voices in a recording", "udp", &format!("own {own} dB, other {other} dB, muted: {muted}"), None);
    }
}

/// Whether both connections with the forwarding unit work, each over the relay or not.
fn over_relay(relay: bool) -> String {
    format!(
        "[state.sfu.publish, state.sfu.subscribe].every((link) =>
           link?.connectionState === 'connected' && link.pair && (link.pair.local === 'relay') === {relay})"
    )
}

#[test]
fn the_relay_only_switch_replaces_the_connections_with_the_forwarding_unit() {
    let place = Place::new();
    let [ann, ben] = place.pair("udp");
    ann.wait_for_frames(5);
    ann.run("rooms.setMode('sfu');");
    ann.wait("for frames of the unit", "state.mode === 'sfu' && peer.framesDecoded > 0");
    for relay in [false, true] {
        ann.run("document.getElementById('call-relay-only').click();");
        ann.wait("for the paths", &over_relay(relay));
        ann.wait_for_frames(10);
        ben.wait_for_frames(10);
    }
    report("relay-only switch, forwarding unit", "udp", "both connections leave the relay and come back", None);
}
