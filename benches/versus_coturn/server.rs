//! The measured variants: servers with equivalent configurations, and the kernel's forwarding.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use serde_json::Value;

use crate::load::{Outcome, PASSWORD, REALM, USER};
use crate::network::{Addresses, Host, Network, SERVER_INTERFACES, Setup};
use crate::process::Server;
use crate::scenario::Scenario;

/// The first and the last relay port of both servers.
const PORTS: (u16, u16) = (49152, 65535);

/// The port of the engine of a fleet.
const ENGINE_PORT: u16 = 4222;

/// What is measured, in the order of a round.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
pub(crate) enum Kind {
    /// Our server, which relays in user space.
    Ours,
    /// coturn.
    Coturn,
    /// The kernel's forwarding of the same packets between clients and peer, without a server.
    Forwarding,
    /// Our server, for which the kernel relays.
    Offloaded,
    /// Our server as a node of a fleet.
    Node,
    /// The load generator alone: it paces the packets, but does not send them.
    Generator,
}

impl Kind {
    /// Returns the name for the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Coturn => "coturn",
            Self::Forwarding => "forwarding",
            Self::Offloaded => "offloaded",
            Self::Node => "node",
            Self::Generator => "generator",
        }
    }

    /// Returns whether the packets take the kernel's forwarding, for which no server runs.
    pub(crate) fn is_forwarded(self) -> bool {
        matches!(self, Self::Forwarding | Self::Generator)
    }
}

/// The programs and the directory of their files.
pub(crate) struct Servers {
    pub(crate) ours: PathBuf,
    pub(crate) coturn: PathBuf,
    pub(crate) directory: PathBuf,
}

impl Servers {
    /// Returns the path of the certificate of both servers.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.directory.join("certificate.pem")
    }

    /// Returns the path of the control socket of our server with the offload.
    fn control_socket(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    fn key(&self) -> PathBuf {
        self.directory.join("key.pem")
    }

    /// Generates the certificate.
    pub(crate) fn prepare(&self, addresses: &Addresses) -> Outcome<()> {
        let generated = rcgen::generate_simple_self_signed([addresses.listen.to_string()])?;
        fs::write(self.certificate(), generated.cert.pem())?;
        fs::write(self.key(), generated.signing_key.serialize_pem())?;
        Ok(())
    }

    /// Starts a server for a scenario. `None` if there is none.
    pub(crate) fn start(&self, kind: Kind, scenario: &Scenario, network: &Network) -> Outcome<Option<Server>> {
        let (program, arguments) = match kind {
            Kind::Forwarding | Kind::Generator => return Ok(None),
            Kind::Ours | Kind::Offloaded | Kind::Node => {
                let path = self.directory.join("turnserver.toml");
                let mut configuration = self.configuration(scenario, &network.addresses);
                configuration += &match (kind, network.setup()) {
                    (Kind::Offloaded, _) => self.offload(),
                    (Kind::Node, _) => format!("[fleet]\nservers = [\"nats://{}\"]\n", engine(&network.addresses)),
                    (_, Setup::Offload) => "[offload]\nmode = \"off\"\n".to_owned(),
                    (_, Setup::Plain | Setup::Attack) => String::new(),
                };
                fs::write(&path, configuration)?;
                (&self.ours, vec!["--config".to_owned(), text(&path)])
            }
            Kind::Coturn => (&self.coturn, self.coturn_arguments(scenario, &network.addresses)),
        };
        let line = ["run".to_owned(), "--".to_owned(), text(program)].into_iter().chain(arguments);
        Server::start(&mut network.command(Host::Server, line)).map(Some)
    }

    /// Starts the engine of a fleet, a single server of it.
    pub(crate) fn start_engine(&self, nats: &Path, network: &Network) -> Outcome<Server> {
        let path = self.directory.join("nats-server.conf");
        let store = text(&self.directory.join("nats"));
        let engine = engine(&network.addresses);
        fs::write(&path, format!("listen: \"{engine}\"\njetstream {{ store_dir: {store:?} }}\n"))?;
        let line = ["run".to_owned(), "--".to_owned(), text(nats), "-c".to_owned(), text(&path)];
        Server::start(&mut network.command(Host::Server, line))
    }

    /// Returns what the configuration has in addition if the kernel relays.
    fn offload(&self) -> String {
        let socket = text(&self.control_socket());
        format!("[offload]\nmode = \"require\"\ninterfaces = {SERVER_INTERFACES:?}\n[control]\nsocket = {socket:?}\n")
    }

    /// Returns what our server reports about the offload. It reads the counters of the kernel every second.
    pub(crate) fn offload_state(&self) -> Outcome<OffloadState> {
        let mut command = Command::new(&self.ours);
        command.args(["ctl", "offload", "--json", "--socket"]).arg(self.control_socket());
        let output = command.output()?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            return Err(format!("`turnserver ctl offload` failed: {}", stderr.trim()).into());
        }
        let response: Value = serde_json::from_slice(&output.stdout)?;
        let relayed = packets_in(&response);
        let relayed = relayed.ok_or_else(|| format!("`turnserver ctl offload --json` has no packets: {response}"))?;
        Ok(OffloadState { relayed, response })
    }

    /// Returns our configuration. Limits per user and per source are disabled, because all clients share one user and
    /// one address. coturn has no such limits by default.
    fn configuration(&self, scenario: &Scenario, addresses: &Addresses) -> String {
        let Addresses { listen, port, tls_port, relay, peer, .. } = addresses;
        let (first, last) = PORTS;
        let (mut tls, mut certificate) = (String::new(), String::new());
        if scenario.uses_tls() {
            tls = format!("tls = [\"{listen}:{tls_port}\"]\n");
            certificate = format!(
                "[tls]\ncertificate = {:?}\nprivate-key = {:?}\n",
                text(&self.certificate()),
                text(&self.key())
            );
        }
        format!(
            "node = \"one\"\nstate-directory = {:?}\nrealm = \"{REALM}\"\nworkers = {}\n\
             [listen]\nudp = [\"{listen}:{port}\"]\ntcp = [\"{listen}:{port}\"]\n{tls}{certificate}\
             [relay]\naddresses = [\"{relay}\"]\nports = \"{first}-{last}\"\n\
             [[auth.users]]\nname = \"{USER}\"\npassword = \"{PASSWORD}\"\n\
             [peers]\nallow = [\"{peer}\"]\n\
             [limits]\nallocations-per-user = 0\nconnections-per-source = 0\nunverified-responses = 0\n\
             [log]\nlevel = \"warn\"\n",
            text(&self.directory.join("state")),
            scenario.workers.unwrap_or(0),
        )
    }

    /// Returns coturn's arguments. It logs almost nothing by default. Its files are in the temporary directory.
    fn coturn_arguments(&self, scenario: &Scenario, addresses: &Addresses) -> Vec<String> {
        let Addresses { listen, port, tls_port, relay, peer, .. } = addresses;
        let own = |name: &str| text(&self.directory.join(name));
        let mut line = format!(
            "-n --no-dtls --no-cli --lt-cred-mech --realm {REALM} --user {USER}:{PASSWORD} \
             --listening-ip {listen} --listening-port {port} --relay-ip {relay} --min-port {} --max-port {} \
             --allow-loopback-peers --allowed-peer-ip {peer} --log-file stdout --pidfile {} --userdb {}",
            PORTS.0,
            PORTS.1,
            own("coturn.pid"),
            own("coturn.db"),
        );
        if scenario.uses_tls() {
            line += &format!(
                " --tls-listening-port {tls_port} --cert {} --pkey {}",
                own("certificate.pem"),
                own("key.pem")
            );
        } else {
            line += " --no-tls";
        }
        if let Some(workers) = scenario.workers {
            line += &format!(" --relay-threads {workers}");
        }
        line.split_whitespace().map(str::to_owned).collect()
    }
}

/// Returns the address of the engine.
fn engine(addresses: &Addresses) -> SocketAddr {
    SocketAddr::new(addresses.listen, ENGINE_PORT)
}

/// The response of `turnserver ctl offload --json`.
pub(crate) struct OffloadState {
    /// Packets that the kernel has relayed since the start of the server.
    pub(crate) relayed: u64,
    /// The whole response, for error messages.
    pub(crate) response: Value,
}

fn packets_in(response: &Value) -> Option<u64> {
    let packets = response.get("packets")?;
    Some(packets.get("to_peers")?.as_u64()? + packets.get("to_clients")?.as_u64()?)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
