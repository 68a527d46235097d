//! Which camera, microphone and speaker a call uses.

use crate::participant::Participant;
use crate::place::{Place, only};
use crate::table::report;
use crate::transports::over_each_transport;

/// Waits for a list in the panel Settings, selects the device at an index, and returns its label.
fn choose(participant: &Participant<'_>, list: &str, index: usize) -> String {
    let select = format!("document.getElementById('{list}')");
    participant.wait("for the devices", &format!("{select}.options.length > {index} && !{select}.disabled"));
    let label = participant.run(&format!(
        "const select = {select};
         select.selectedIndex = {index};
         select.dispatchEvent(new Event('change'));
         return select.selectedOptions[0].text;"
    ));
    label.as_str().unwrap().to_owned()
}

/// The labels of the tracks that the only connection sends.
const SENT: &str = "observer.senders().filter(Boolean).map(({ label }) => label)";

fn devices(transport: &str) {
    let place = Place::with_devices();
    let room = place.room();
    let query = format!("{}&capture=devices", only(transport));
    let [ann, ben] = ["Ann", "Ben"].map(|name| place.servers.enter(&place.browser, &room, name, &query));
    for participant in [&ann, &ben] {
        participant.wait_for_frames(10);
    }
    let connections = ann.run("return observer.made();");
    let mut used = Vec::new();
    for index in [2, 0] {
        for list in ["call-camera", "call-microphone"] {
            let label = choose(&ann, list, index);
            ann.wait(&format!("to send “{label}”"), &format!("({SENT}).includes('{label}')"));
            used.push(label);
        }
        ben.wait_for_frames(10);
        ann.paths_over(transport);
    }
    assert_eq!(ann.run("return observer.made();"), connections, "the call needs no other connection");
    assert_ne!(used[0], used[2], "two cameras");
    assert_ne!(used[1], used[3], "two microphones");

    let speaker = choose(&ann, "call-speaker", 1);
    let plays = "[...document.querySelectorAll('video, audio')].filter(({ srcObject, muted }) => srcObject && !muted)";
    let is_used = format!("{plays}.some(({{ sinkId }}) => sinkId === document.getElementById('call-speaker').value)");
    ann.wait(&format!("for the speaker “{speaker}”"), &is_used);
    let problem = ann.run("return document.getElementById('settings-problem').textContent;");
    assert_eq!(problem, "", "no problem is shown");
    report(
        "choice of devices",
        transport,
        &format!("cameras “{}” and “{}”, speaker “{speaker}”", used[0], used[2]),
        None,
    );
}

over_each_transport! {
    camera_microphone_and_speaker_are_chosen_during_a_call: devices;
}
