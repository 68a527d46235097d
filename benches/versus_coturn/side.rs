//! The client and the peer of a load, as processes.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::interrupt;
use crate::load::Outcome;
use crate::load::clock::{self, MILLISECOND};
use crate::network::{Host, Network};
use crate::process::Role;
use crate::scenario::{Scenario, Transport};

/// Timeout of the steps of a server, a client or a peer.
pub(crate) const STEP_TIMEOUT: Duration = Duration::from_secs(120);

/// What a side does, and where.
pub(crate) struct Plan<'p> {
    pub(crate) scenario: &'static Scenario,
    /// Index of the load in the scenario.
    pub(crate) load: usize,
    pub(crate) network: &'p Network,
    /// The directory of its socket.
    pub(crate) directory: &'p Path,
    pub(crate) certificate: &'p Path,
    /// Further arguments.
    pub(crate) more: Vec<String>,
}

/// The client and the peer of a load, or a client alone.
pub(crate) struct Side {
    pub(crate) client: Role,
    peer: Option<Role>,
    /// The address and the port of the peer.
    pub(crate) peer_address: String,
}

/// The results of the roles of a load.
pub(crate) struct Counted(pub(crate) Vec<Value>);

impl Side {
    pub(crate) fn start(plan: &Plan<'_>) -> Outcome<Self> {
        let Plan { scenario, load, network, .. } = plan;
        let feedback = plan.directory.join(format!("feedback-{load}.sock"));
        // The preceding measurement may have left the file.
        let _ = fs::remove_file(&feedback);
        let addresses = &network.addresses;
        let tls = scenario.work.loads().get(*load).is_some_and(|load| load.transport == Transport::Tls);
        let port = if tls { addresses.tls_port } else { addresses.port };
        let arguments = |role: &str, own: String, peer: String| {
            let fixed = [
                role.to_owned(),
                format!("--scenario={}", scenario.name),
                format!("--load={load}"),
                format!("--own={own}"),
                format!("--server={}:{port}", addresses.listen),
                format!("--peer={peer}"),
                format!("--feedback={}", feedback.display()),
                format!("--certificate={}", plan.certificate.display()),
            ];
            fixed.into_iter().chain(plan.more.iter().cloned())
        };
        let (mut peer, mut peer_address) = (None, format!("{}:9", addresses.peer));
        if !scenario.work.loads().is_empty() {
            let line = arguments("peer", addresses.peer.to_string(), peer_address);
            let role = Role::start("peer", &mut network.command(Host::Peer, line))?;
            peer_address = role.wait_for("address", STEP_TIMEOUT)?;
            peer = Some(role);
        }
        let line = arguments("client", addresses.client.to_string(), peer_address.clone());
        Ok(Self { client: Role::start("client", &mut network.command(Host::Client, line))?, peer, peer_address })
    }

    pub(crate) fn roles(&self) -> impl Iterator<Item = &Role> {
        std::iter::once(&self.client).chain(&self.peer)
    }

    pub(crate) fn send_command(&mut self, command: &str) -> Outcome<()> {
        self.client.send_command(command)?;
        self.peer.as_mut().map_or(Ok(()), |peer| peer.send_command(command))
    }

    pub(crate) fn result(&self) -> Outcome<Counted> {
        let values = self.roles().map(|role| Ok(serde_json::from_str(&role.wait_for("result", STEP_TIMEOUT)?)?));
        Ok(Counted(values.collect::<Outcome<Vec<Value>>>()?))
    }
}

impl Counted {
    pub(crate) fn number(&self, name: &str) -> Outcome<f64> {
        let found = self.0.iter().find_map(|value| value.get(name)?.as_f64());
        Ok(found.ok_or_else(|| format!("no role reported {name}"))?)
    }
}

/// Sleeps until `deadline`. Fails if interrupted.
pub(crate) fn wait_until(deadline: u64) -> Outcome<()> {
    while clock::now() < deadline {
        if interrupt::interrupted() {
            return Err("interrupted".into());
        }
        clock::sleep_until(deadline.min(clock::now() + 100 * MILLISECOND));
    }
    Ok(())
}
