//! `turnserver doctor` knows what the running server says about its orders.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::issue::isolated;
use crate::pebble::{DIRECTORY, NAME, Place, TLS, USUAL, wait_for, wait_for_state};

use crate::support::{Controlled, TIMEOUT, run};

/// Returns the status and the text of each finding of a check.
fn findings(config: &Path, check: &str) -> Vec<(String, String)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
    command.arg("--config").arg(config).args(["doctor", "--json"]);
    let finished = run(&mut command, None, TIMEOUT);
    let report: Value = serde_json::from_str(&finished.stdout.join("\n")).unwrap();
    let found = report["findings"].as_array().unwrap().iter().filter(|finding| finding["check"] == check);
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    found.map(|finding| (text(finding, "status"), text(finding, "what"))).collect()
}

#[test]
fn doctor_says_why_the_running_server_has_no_certificate_and_when_it_renews_it() {
    isolated(|| {
        let place = Place::new();
        let controlled = Controlled::start_with(&place.config(&[NAME], ""));
        wait_for(&controlled, "acme-failed", 1);
        wait_for_state(&controlled, "failed");
        let orders = || findings(controlled.server.config_path(), "certificate-order");
        let [(status, what)] = &orders()[..] else { panic!("{:?}", orders()) };
        assert_eq!(status, "fault");
        assert!(what.starts_with("the last order failed: ") && what.contains("cannot connect to 127.0.0.1"), "{what}");
        assert!(what.contains("The server tries again on "), "{what}");

        let _pebble = place.pebble(USUAL);
        controlled.lines(&["reload"]);
        wait_for(&controlled, "certificate", 1);
        wait_for_state(&controlled, "waiting");
        let [(status, what)] = &orders()[..] else { panic!("{:?}", orders()) };
        assert_eq!(
            (status.as_str(), what.starts_with("the running server orders the next certificate on ")),
            ("ok", true)
        );
        let [(status, _)] = &findings(controlled.server.config_path(), "state-directory")[..] else {
            panic!("no state directory")
        };
        assert_eq!(status, "ok");

        // The file names another one than the running server has read.
        let control = format!("[control]\nsocket = {:?}\n", controlled.socket);
        let other = place.config_at(DIRECTORY, &["b.example.org"], TLS, "") + &control;
        let orders = findings(&place.directory.write("other.toml", &other), "certificate-order");
        assert!(orders.iter().any(|(_, what)| what.contains("is for other names")), "{orders:?}");
        assert!(orders.iter().any(|(_, what)| what.contains("uses an earlier configuration")), "{orders:?}");
    });
}
