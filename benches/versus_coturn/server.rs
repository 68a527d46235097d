//! The two servers with equivalent configurations.

use std::fs;
use std::path::{Path, PathBuf};

use crate::load::{Outcome, PASSWORD, REALM, USER};
use crate::network::{Addresses, Host, Network};
use crate::process::Server;
use crate::scenario::Scenario;

/// The first and the last relay port of both servers.
const PORTS: (u16, u16) = (49152, 65535);

/// Which server is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Ours,
    Coturn,
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

    /// Starts a server for a scenario.
    pub(crate) fn start(&self, kind: Kind, scenario: &Scenario, network: &Network) -> Outcome<Server> {
        let (program, arguments) = match kind {
            Kind::Ours => {
                let path = self.directory.join("turnserver.toml");
                fs::write(&path, self.configuration(scenario, &network.addresses))?;
                (&self.ours, vec!["--config".to_owned(), text(&path)])
            }
            Kind::Coturn => (&self.coturn, self.coturn_arguments(scenario, &network.addresses)),
        };
        let line = ["run".to_owned(), "--".to_owned(), text(program)].into_iter().chain(arguments);
        Server::start(&mut network.command(Host::Server, line))
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
            "realm = \"{REALM}\"\nworkers = {}\n\
             [listen]\nudp = [\"{listen}:{port}\"]\ntcp = [\"{listen}:{port}\"]\n{tls}{certificate}\
             [relay]\naddresses = [\"{relay}\"]\nports = \"{first}-{last}\"\n\
             [[auth.users]]\nname = \"{USER}\"\npassword = \"{PASSWORD}\"\n\
             [peers]\nallow = [\"{peer}\"]\n\
             [limits]\nallocations-per-user = 0\nconnections-per-source = 0\nunverified-responses = 0\n\
             [log]\nlevel = \"warn\"\n",
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

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
