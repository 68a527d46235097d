//! A file from one participant to another.

use serde_json::{Value, json};

use crate::participant::Participant;

/// The browser's own SHA-256 of each slice of a file, which does not have to fit into memory.
const DIGESTS: &str = "
    const digests = async (blob) => {
      const all = [];
      for (let at = 0; at < blob.size; at += 2 ** 26) {
        const bytes = await crypto.subtle.digest('SHA-256', await blob.slice(at, at + 2 ** 26).arrayBuffer());
        all.push([...new Uint8Array(bytes)].map((byte) => byte.toString(16).padStart(2, '0')).join(''));
      }
      return all;
    };";

/// What was offered.
pub(crate) struct Offered {
    pub(crate) size: u64,
    digests: Value,
}

/// Offers random bytes to the first peer.
pub(crate) fn offer(from: &Participant<'_>, size: u64) -> Offered {
    from.wait("for the channel", "peer.dataChannels.files === 'open'");
    // The parts of a large file repeat, each with its number.
    let digests = from.run(&format!(
        "{DIGESTS}
         const bytes = new Uint8Array(Math.min({size}, 2 ** 24));
         for (let at = 0; at < bytes.length; at += 65536) crypto.getRandomValues(bytes.subarray(at, at + 65536));
         const parts = [bytes];
         for (let at = bytes.length; at < {size}; at += bytes.length) {{
           parts.push(new Uint32Array([at]), bytes.subarray(4, Math.min(bytes.length, {size} - at)));
         }}
         const file = new File(parts, 'picture.raw');
         rooms.sendFile(file, rooms.state.peers[0].id);
         return digests(file);"
    ));
    Offered { size, digests }
}

/// Accepts the file that is offered.
pub(crate) fn accept(to: &Participant<'_>) {
    to.wait("for the offer", "state.files.at(-1)?.state === 'offered'");
    to.run("rooms.acceptFile(rooms.state.files.at(-1).id);");
}

/// Waits for the file, and asserts that it is the one that was offered. Returns the seconds that it took.
pub(crate) fn received(from: &Participant<'_>, to: &Participant<'_>, offered: &Offered) -> f64 {
    let over = "['complete', 'failed', 'cancelled'].includes(state.files.at(-1).state)";
    to.wait_minutes(10, "for the file", over);
    let file = to.run(&format!(
        "{DIGESTS}
         const {{ id, state, problem, size, sha256, seconds }} = rooms.state.files.at(-1);
         const blob = rooms.file(id);
         return {{ state, problem, size, sha256, seconds, digests: blob && await digests(blob) }};"
    ));
    assert_eq!((&file["state"], &file["size"]), (&json!("complete"), &json!(offered.size)), "{file}");
    assert_eq!(file["digests"], offered.digests, "the SHA-256 of the slices");
    if let Some([only]) = file["digests"].as_array().map(Vec::as_slice) {
        assert_eq!(&file["sha256"], only, "the page computes the same");
    }
    let shown =
        from.wait("for the confirmation", "state.files.at(-1).state === 'complete' && state.files.at(-1).sha256");
    assert_eq!((shown.as_str().map(str::len), &shown), (Some(64), &file["sha256"]));
    file["seconds"].as_f64().unwrap()
}

/// Sends a file and returns the seconds that it took.
pub(crate) fn transfer(from: &Participant<'_>, to: &Participant<'_>, size: u64) -> f64 {
    let offered = offer(from, size);
    accept(to);
    received(from, to, &offered)
}
