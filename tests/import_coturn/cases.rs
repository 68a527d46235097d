//! Ten configurations of coturn, in the shapes that its users have, and what is expected of each.
#![allow(dead_code, reason = "each test binary compiles this module and uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::Command;

use toml::{Table, Value};
use turnserver::auth::{Secret, time_limited};
use turnserver::clock::unix_seconds;

use crate::support::client::Login;
use crate::support::{Finished, TIMEOUT, TempDir, run};

/// How a client of the old server authenticates.
#[derive(Clone, Copy)]
pub(crate) enum Access {
    Secret(&'static str),
    User(&'static str, &'static str),
    /// With the credential that the server prints, because nothing was imported.
    Printed,
}

/// A configuration of coturn.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// The file; empty without one.
    file: &'static [u8],
    arguments: &'static str,
    pub(crate) access: Access,
    pub(crate) realm: &'static str,
    /// The options that cannot be taken over, as the report shows them.
    pub(crate) cannot: &'static [&'static str],
    /// Texts of the new configuration.
    pub(crate) written: &'static [&'static str],
}

const fn case(name: &'static str, file: &'static [u8], access: Access, realm: &'static str) -> Case {
    Case { name, file, arguments: "", access, realm, cannot: &[], written: &[] }
}

pub(crate) const CASES: [Case; 10] = [
    Case {
        written: &[
            "tls = [\"[::]:5349\"]",
            "allow = [\"10.0.0.1\"]",
            "deny = [\"64:ff9b::/96\"]",
            "allocations-per-user = 12",
            "allocations = 1200",
        ],
        ..case(
            "synapse",
            include_bytes!("synapse.conf"),
            Access::Secret("a1f0c2d4e6b8097f5d3c1b2a4e6f8091"),
            "turn.example.org",
        )
    },
    Case {
        cannot: &["line 2: keep-address-family"],
        written: &["tcp = []", "tls = [\"[::]:5349\"]"],
        ..case("jitsi", include_bytes!("jitsi.conf"), Access::Secret("WrkQhJpXm4TzVb8N"), "meet.example.org")
    },
    Case {
        written: &["nonce-lifetime = 600"],
        ..case(
            "nextcloud",
            include_bytes!("nextcloud.conf"),
            Access::Secret("9d3b7e6a5c1f48209d3b7e6a5c1f4820"),
            "cloud.example.org",
        )
    },
    Case {
        written: &[
            "udp = [\"10.0.0.5:3478\"]",
            "tls = [\"10.0.0.5:443\"]",
            "addresses = [\"10.0.0.5\"]",
            "external = { \"10.0.0.5\" = \"203.0.113.9\" }",
            "ports = \"32769-65535\"",
        ],
        ..case(
            "bigbluebutton",
            include_bytes!("bigbluebutton.conf"),
            Access::Secret("4c9f0b1e2d3a48576c9f0b1e2d3a4857"),
            "bbb.example.org",
        )
    },
    Case {
        written: &["external = { \"10.0.0.5\" = \"203.0.113.9\" }", "[[auth.users]]"],
        ..case("netbird", include_bytes!("netbird.conf"), Access::User("self", "kT8vQ2nLr6Xw3ZpY"), "wiretrustee.com")
    },
    Case {
        arguments: "turnserver -n --log-file=stdout --lt-cred-mech --fingerprint --no-multicast-peers --no-cli \
                    --no-tlsv1 --realm=docker.example.org --user='ann:a b c d e f' -v --min-port=49160 --max-port=49200 \
                    --external-ip='$(detect-external-ip)'",
        cannot: &["argument 13: external-ip=$(detect-external-ip)"],
        written: &["password = \"a b c d e f\"", "ports = \"49160-49200\""],
        ..case("docker", b"", Access::User("ann", "a b c d e f"), "docker.example.org")
    },
    Case {
        written: &["hostname = \"turn.example.org\"", "password = \"right: #horse!\"", "allocations = 10"],
        ..case("keys", include_bytes!("keys.conf"), Access::User("alice", "battery staple"), "voice.example.org")
    },
    Case {
        cannot: &["line 21: max-alocate-lifetime", "line 22: listening_port"],
        written: &[
            "secrets = [\"quoted secret of some length\", \"a second one with = and ;\"]",
            "nonce-lifetime = 600",
            "ports = \"20000-29999\"",
            "allow = [\"192.168.7.0/24\"]",
            "\"93.184.216.128/25\"",
        ],
        ..case("quirks", include_bytes!("quirks.conf"), Access::Secret("a second one with = and ;"), "example.org")
    },
    Case {
        cannot: &["line 3: mysql-userdb=…", "line 4: redis-statsdb=…", "line 6: web-admin"],
        ..case("database", include_bytes!("database.conf"), Access::Printed, "example.org")
    },
    Case {
        cannot: &["line 9: bps-capacity=8388608"],
        written: &[
            "undecided = [\"line 9: bps-capacity=8388608\"]",
            "workers = 2",
            "addresses = [\"10.0.0.5\"]",
            "external = { \"10.0.0.5\" = \"203.0.113.9\" }",
            "bytes-per-second-per-allocation = 262144",
            "unverified-responses = 20",
            "unauthenticated = 30",
            "rfc5766-channels = true",
            "level = \"debug\"",
            "listen = [\"127.0.0.1:9641\"]",
        ],
        ..case(
            "metered",
            include_bytes!("metered.conf"),
            Access::Secret("7b1d9f3e5a6c48207b1d9f3e5a6c4820"),
            "metered.example.org",
        )
    },
];

impl Case {
    /// Imports the configuration into `output` of the directory.
    pub(crate) fn import(&self, directory: &TempDir, output: &str) -> (Finished, PathBuf) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
        command.arg("import-coturn");
        if !self.file.is_empty() {
            let name = format!("{}.conf", self.name);
            std::fs::write(directory.path().join(&name), self.file).unwrap();
            command.arg(name);
        }
        if !self.arguments.is_empty() {
            command.args(["--arguments", self.arguments]);
        }
        let path = directory.path().join(output);
        let finished = run(command.args(["--output", output]).current_dir(directory.path()), None, TIMEOUT);
        (finished, path)
    }

    /// Returns a credential that a client of the old server has. `None` if the server prints it.
    pub(crate) fn login(&self) -> Option<Login> {
        match self.access {
            Access::Secret(secret) => {
                let minted = time_limited::mint(&Secret::new(secret).unwrap(), Some("ann"), unix_seconds() + 600);
                Some(Login::new(&minted.username, &minted.password))
            }
            Access::User(name, password) => Some(Login::new(name, password)),
            Access::Printed => None,
        }
    }
}

/// Returns an imported configuration with the address, ports and certificate of the test, without what is undecided, and
/// with nothing else changed.
pub(crate) fn adapted(text: &str, ip: &str, certificate: &[PathBuf; 2]) -> Table {
    let mut table: Table = text.parse().unwrap();
    // The decision of the operator.
    table.remove("undecided");
    let of = |table: &mut Table, name: &str| -> Table {
        table.remove(name).map_or_else(Table::new, |value| value.as_table().unwrap().clone())
    };
    let any = || Value::Array(vec![format!("{ip}:0").into()]);
    let free = |list: &Value| match list.as_array().unwrap().as_slice() {
        [] => Value::Array(Vec::new()),
        _ => any(),
    };
    let mut listen = of(&mut table, "listen");
    for transport in ["udp", "tcp"] {
        let list = listen.get(transport).map_or_else(any, free);
        listen.insert(transport.to_owned(), list);
    }
    if let Some(tls) = listen.get("tls").map(free) {
        listen.insert("tls".to_owned(), tls);
    }
    table.insert("listen".to_owned(), listen.into());
    if table.contains_key("tls") {
        let path = |path: &Path| Value::String(path.to_str().unwrap().to_owned());
        let [chain, key] = certificate;
        let tls = [("certificate", path(chain)), ("private-key", path(key))];
        table.insert(
            "tls".to_owned(),
            tls.map(|(key, path)| (key.to_owned(), path)).into_iter().collect::<Table>().into(),
        );
    }
    let mut relay = of(&mut table, "relay");
    relay.remove("external");
    relay.insert("addresses".to_owned(), Value::Array(vec![ip.into()]));
    table.insert("relay".to_owned(), relay.into());
    let mut http = of(&mut table, "http");
    if let Some(listen) = http.get("listen").map(free) {
        http.insert("listen".to_owned(), listen);
        table.insert("http".to_owned(), http.into());
    }
    let mut log = of(&mut table, "log");
    log.insert("format".to_owned(), "json".into());
    table.insert("log".to_owned(), log.into());
    table
}
