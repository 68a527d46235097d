//! An engine that requires TLS and a password: what the server and `turnserver doctor` say until it can be used.

use std::net::TcpStream;
use std::path::PathBuf;

use super::*;
use crate::report::examine;
use crate::support::Process;
use crate::support::certificates::Authority;

const PASSWORD: &str = "a-password-of-nodes";

struct Place {
    directory: TempDir,
    /// The first one is not that of the engine's certificate, the second one is.
    authorities: [Authority; 2],
}

impl Place {
    /// Prepares a node that trusts the wrong authority and has the wrong password.
    fn new() -> Self {
        let place = Self { directory: TempDir::new(), authorities: [(); 2].map(|()| Authority::new(unix_seconds())) };
        place.write("root.pem", &place.authorities[0].root());
        place.write("password", "a-wrong-password");
        place
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        self.directory.write(name, text)
    }

    fn config(&self) -> String {
        let path = |name: &str| self.directory.path().join(name);
        let (root, password) = (path("root.pem"), path("password"));
        let keys = format!("ca-file = {root:?}\nuser = \"node\"\npassword-file = {password:?}");
        let (state, keys, peers) = (&path("state"), &keys, &[]);
        let node = Node { name: "node-0", address: "127.0.1.1", peers, state, keys, more: "" };
        node.config().replace(&cluster::servers(), "[\"tls://localhost:4222\"]")
    }

    fn start_engine(&self) -> Process {
        let authority = &self.authorities[1];
        let [certificate, key] = authority.write(&authority.issue(&["localhost"]), self.directory.path());
        let store = self.directory.path().join("store");
        let config = format!(
            "listen: \"127.0.0.1:4222\"\njetstream {{ store_dir: {store:?} }}\n\
             tls {{ cert_file: {certificate:?}, key_file: {key:?} }}\n\
             authorization {{ user: node, password: {PASSWORD:?} }}\n"
        );
        let engine = cluster::start_one(&self.write("engine.conf", &config));
        wait(|| TcpStream::connect("127.0.0.1:4222").map(drop).map_err(|error| error.to_string()));
        engine
    }

    /// Returns what `turnserver doctor` says of the fleet while no server runs.
    fn diagnosis(&self) -> Value {
        let file = self.write("turnserver.toml", &self.config()).display().to_string();
        let report = examine(&["--config", &file], "");
        let fleet = report.findings.iter().find(|finding| finding["check"] == "fleet");
        fleet.unwrap_or_else(|| panic!("{:#?}", report.findings)).clone()
    }
}

#[test]
fn the_diagnosis_says_why_the_engine_cannot_be_used() {
    with_engine(|| {
        let place = Place::new();
        let says = |status: &str, part: &str| {
            let found = place.diagnosis();
            assert_eq!(found["status"], status, "{found}");
            assert!(found["what"].as_str().unwrap().contains(part), "{found}");
        };
        says("fault", "localhost:4222: cannot connect to ");
        let _engine = place.start_engine();
        says("fault", "an authority that is not trusted: for a private one, set `fleet.ca-file`");
        place.write("root.pem", &place.authorities[1].root());
        says("fault", "authorization violation");
        place.write("password", PASSWORD);
        says("ok", "accepts the user of this node");
    });
}

#[test]
fn a_reload_uses_another_authority_and_another_password() {
    with_engine(|| {
        let place = Place::new();
        let _engine = place.start_engine();
        let node = Controlled::start_with(&place.config());
        let why = node.event("fleet-disconnected").field("error").unwrap();
        assert!(why.contains("`fleet.ca-file`"), "{why}");
        let reason = |part: &str| {
            wait(|| {
                let status = node.json(&["--fleet", "status"]);
                if status["error"].to_string().contains(part) { Ok(()) } else { Err(status.to_string()) }
            });
        };
        // Each file alone is a reason for a new connection.
        place.write("root.pem", &place.authorities[1].root());
        node.lines(&["reload"]);
        reason("authorization violation");
        place.write("password", PASSWORD);
        node.lines(&["reload"]);
        node.event("fleet-connected");
        wait(|| {
            let status = node.json(&["--fleet", "status"]);
            if status["totals"]["nodes"] == 1 { Ok(()) } else { Err(status.to_string()) }
        });
        node.lines(&["--fleet", "revoke", &Login::mint("ann", 600).username]);
    });
}
