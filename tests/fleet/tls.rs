//! An engine that requires TLS.

use std::fs;

use super::*;
use crate::support::certificates::Authority;

#[test]
fn the_engine_is_used_over_tls_if_its_certificate_is_right_also_after_a_reload_of_another_authority() {
    with_engine(|| {
        let place = TempDir::new();
        let authorities = [(); 2].map(|()| Authority::new(unix_seconds()));
        let [certificate, key] = authorities[1].write(&authorities[1].issue(&["localhost"]), place.path());
        let store = place.path().join("store");
        let engine = format!(
            "listen: \"127.0.0.1:4222\"\njetstream {{ store_dir: {store:?} }}\n\
             tls {{ cert_file: {certificate:?}, key_file: {key:?} }}\n"
        );
        let _engine = cluster::start_one(&place.write("engine.conf", &engine));
        let root = place.write("root.pem", &authorities[0].root());
        let node = Node {
            name: "node-0",
            address: "127.0.1.1",
            peers: &[],
            state: &place.path().join("state"),
            keys: &format!("ca-file = {root:?}"),
            more: "",
        };
        let config = node.config().replace(&cluster::servers(), "[\"tls://localhost:4222\"]");
        let node = Controlled::start_with(&config);
        let why = node.event("fleet-disconnected").field("error").unwrap();
        assert!(why.contains("`fleet.ca-file`"), "{why}");
        fs::write(&root, authorities[1].root()).unwrap();
        node.lines(&["reload"]);
        node.event("fleet-connected");
        wait(|| {
            let status = node.json(&["--fleet", "status"]);
            if status["totals"]["nodes"] == 1 { Ok(()) } else { Err(status.to_string()) }
        });
        node.lines(&["--fleet", "revoke", &Login::mint("ann", 600).username]);
    });
}
