//! Follows the addresses of this machine while the server runs.
//!
//! The kernel notifies of changes; a notification only causes the addresses to be read again.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::{Instant, sleep_until};

use super::addresses::{AddressError, Choice, RelayAddress};
use super::alternate::own_server;
use super::listeners::{self, MissingListener};
use super::relay_tables::{Left, RelayTables};
use super::start::{choose_again, denied_among, own_addresses};
use crate::config::Config;
use crate::net::changes::Changes;
use crate::net::interfaces::{self, Interfaces};
use crate::turn::RelayAddresses;

/// How long the server waits after a change, because changes come in groups: an address, then its route.
const SETTLE: Duration = Duration::from_millis(300);

/// The interval at which the addresses are read if the kernel does not notify.
const POLL: Duration = Duration::from_secs(3);

/// The addresses of this machine, and what follows from them.
#[derive(Debug)]
pub(super) struct Follower {
    config: Arc<Config>,
    machine: Machine,
    tables: RelayTables,
    /// `None`: the addresses are read every [`POLL`].
    changes: Option<Changes>,
    /// When the addresses are read after a change.
    due: Option<Instant>,
    /// The last failure to read the addresses, which is logged once.
    failure: Option<String>,
    /// Whether the states of IPv6 addresses have been read before.
    states_known: bool,
}

/// What the server derives from the addresses of the machine.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    choice: Choice,
    /// The addresses at which packets arrive at this machine, sorted.
    own: Vec<IpAddr>,
    /// Further prefixes that are routed to this machine, sorted.
    own_networks: Vec<IpNet>,
    missing_listeners: Vec<MissingListener>,
    denied_own: Option<String>,
    /// The bound relay addresses that it has.
    present: Vec<IpAddr>,
}

impl Machine {
    pub(super) fn choice(&self) -> &Choice {
        &self.choice
    }

    pub(super) fn own(&self) -> &[IpAddr] {
        &self.own
    }

    /// Derives it from the addresses. Those in `current` precede equally good ones as relay addresses.
    fn new(config: &Config, interfaces: &Interfaces, current: &[IpAddr]) -> Result<Self, AddressError> {
        let choice = choose_again(config, interfaces, current)?;
        let own = own_addresses(config, interfaces, &choice);
        let own_networks = interfaces.routed.clone();
        let denied_own = denied_among(config, own.clone(), own_networks.clone());
        let missing_listeners = listeners::missing(config)?;
        Ok(Self { own, own_networks, missing_listeners, denied_own, choice, present: Vec::new() })
    }

    /// Whether two values have the same consequences. The reasons for the choice may differ.
    fn is_like(&self, other: &Self) -> bool {
        let (own, others) = (&self.choice, &other.choice);
        own.addresses.len() == others.addresses.len()
            && own.addresses.iter().zip(&others.addresses).all(|(one, other)| one.is_like(other))
            && (&own.missing, &own.warnings) == (&others.missing, &others.warnings)
            && (&self.own, &self.missing_listeners) == (&other.own, &other.missing_listeners)
            && (&self.own_networks, &self.denied_own) == (&other.own_networks, &other.denied_own)
    }

    pub(super) fn warnings(&self) -> impl Iterator<Item = String> + '_ {
        let missing = self.missing_listeners.iter().map(ToString::to_string);
        self.choice.warnings.iter().cloned().chain(missing).chain(self.denied_own.clone())
    }
}

/// A change that the workers have to use. It is logged afterwards.
#[derive(Debug)]
pub(super) struct Change {
    new_relays: Vec<RelayAddress>,
    left: Left,
    reachable: Vec<MissingListener>,
    warnings: Vec<String>,
}

impl Follower {
    /// Reads the addresses and subscribes to changes. It must be called within a tokio runtime.
    ///
    /// # Errors
    /// If a configured address is unusable, or the interfaces cannot be read.
    pub(super) fn start(config: Arc<Config>) -> Result<Self, AddressError> {
        // A change after the subscription is not lost.
        let changes = Changes::subscribe().inspect_err(|error| {
            tracing::warn!(
                event = "address-changes-polled", %error,
                "the kernel does not notify of changed addresses, so they are read every {} s",
                POLL.as_secs()
            );
        });
        let mut interfaces = interfaces::read()?;
        let states_known = knows_states(&interfaces);
        let unknown_states = interfaces.unknown_states.take();
        let machine = Machine::new(&config, &interfaces, &[])?;
        let mut tables = RelayTables::new(config.relay.ports.clone());
        tables.update(&machine.choice, &|_| true);
        if let Some(error) = unknown_states {
            tracing::warn!(
                event = "address-states-unknown", %error,
                "cannot read /proc/thread-self/net/if_inet6, so temporary and deprecated IPv6 addresses are not \
                 recognized"
            );
        }
        Ok(Self { config, machine, tables, changes: changes.ok(), due: None, failure: None, states_known })
    }

    pub(super) fn choice(&self) -> &Choice {
        &self.machine.choice
    }

    /// Returns the addresses at which packets arrive at this machine.
    pub(super) fn own(&self) -> &[IpAddr] {
        &self.machine.own
    }

    /// Returns further prefixes whose packets arrive at this machine.
    pub(super) fn own_networks(&self) -> &[IpNet] {
        &self.machine.own_networks
    }

    /// Returns the relay addresses for a snapshot.
    pub(super) fn relays(&self) -> RelayAddresses {
        self.tables.addresses()
    }

    /// Returns the warnings about the present addresses.
    pub(super) fn warnings(&self) -> impl Iterator<Item = String> + '_ {
        self.machine.warnings()
    }

    /// Returns what the server waits for, for the service manager.
    pub(super) fn waits_for(&self) -> Option<String> {
        let Choice { addresses, missing, .. } = &self.machine.choice;
        let mut list: Vec<String> = missing.iter().map(|(bind, _)| bind.to_string()).collect();
        list.extend(self.machine.missing_listeners.iter().map(|listener| listener.address().ip().to_string()));
        list.sort_unstable();
        list.dedup();
        if list.is_empty() && addresses.is_empty() {
            list.push("a relay address".to_owned());
        }
        (!list.is_empty()).then(|| format!("waiting for {}", list.join(", ")))
    }

    /// Waits until the addresses have to be read again. It may be cancelled and called again.
    pub(super) async fn due(&mut self) {
        loop {
            if let Some(due) = self.due {
                sleep_until(due).await;
                self.due = None;
                return;
            }
            let wait = match &self.changes {
                None => POLL,
                Some(changes) => match changes.next().await {
                    Ok(()) => SETTLE,
                    Err(error) => {
                        self.polls_from_now_on(&error);
                        POLL
                    }
                },
            };
            self.due = Some(Instant::now() + wait);
        }
    }

    fn polls_from_now_on(&mut self, error: &io::Error) {
        tracing::warn!(
            event = "address-changes-polled", %error,
            "the kernel no longer notifies of changed addresses, so they are read every few seconds"
        );
        self.changes = None;
    }

    /// Derives the machine of a configuration from the interfaces.
    fn derive(&mut self, config: &Config, mut interfaces: Interfaces) -> Result<Machine, AddressError> {
        if let Some(error) = interfaces.unknown_states.take_if(|_| self.states_known) {
            // With all of them as stable, the choice would change.
            return Err(error.into());
        }
        self.states_known |= knows_states(&interfaces);
        let current: Vec<IpAddr> = self.machine.choice.for_all().map(|relay| relay.bind).collect();
        let machine = Machine::new(config, &interfaces, &current)?;
        let mut present = Vec::new();
        for ip in self.tables.bound() {
            if interfaces::is_local(ip)? {
                present.push(ip);
            }
        }
        Ok(Machine { present, ..machine })
    }

    /// Reads the addresses for another configuration, and changes nothing.
    ///
    /// # Errors
    /// If an address of the configuration is unusable, or the interfaces cannot be read.
    pub(super) fn preview(&mut self, config: &Config) -> Result<Machine, AddressError> {
        self.derive(config, interfaces::read()?)
    }

    /// Uses another configuration, with the result of [`preview`](Self::preview). Returns the change, if there is one.
    pub(super) fn adopt_config(&mut self, config: Arc<Config>, machine: Machine) -> Option<Change> {
        self.tables.set_ports(config.relay.ports.clone());
        self.config = config;
        self.adopt(machine)
    }

    /// Reads the addresses. Returns the change, if there is one.
    pub(super) fn reread(&mut self) -> Option<Change> {
        let config = Arc::clone(&self.config);
        let machine = match self.preview(&config) {
            Ok(machine) => machine,
            Err(error) => {
                // The reason may go without a further change of the addresses, for example if no file could be opened.
                self.due = Some(Instant::now() + POLL);
                if self.failure.as_ref() != Some(&error.to_string()) {
                    tracing::warn!(
                        event = "addresses-unusable", %error,
                        "the addresses of this machine may have changed, but the server cannot use them. It tries again \
                         every {} s",
                        POLL.as_secs()
                    );
                }
                self.failure = Some(error.to_string());
                return None;
            }
        };
        self.failure = None;
        self.adopt(machine)
    }

    fn adopt(&mut self, machine: Machine) -> Option<Change> {
        let before = std::mem::replace(&mut self.machine, machine);
        let after = &self.machine;
        let left = self.tables.update(&after.choice, &|ip| after.present.contains(&ip));
        if before.is_like(after) && left == Left::default() {
            return None;
        }
        let mut warnings: Vec<String> = after.warnings().collect();
        warnings.retain(|warning| before.warnings().all(|old| old != *warning));
        if let Some(server) = own_server(&self.config, &after.own)
            && own_server(&self.config, &before.own).is_none()
        {
            warnings.push(format!(
                "[alternate]: {server} is now an address of this server, so clients are redirected in a loop"
            ));
        }
        let is_new = |relay: &&RelayAddress| !before.choice.addresses.iter().any(|known| known.is_like(relay));
        let is_reachable = |listener: &&MissingListener| !after.missing_listeners.contains(listener);
        Some(Change {
            new_relays: after.choice.addresses.iter().filter(is_new).cloned().collect(),
            left,
            reachable: before.missing_listeners.iter().filter(is_reachable).cloned().collect(),
            warnings,
        })
    }
}

/// Whether the states of IPv6 addresses have been read.
fn knows_states(interfaces: &Interfaces) -> bool {
    interfaces.unknown_states.is_none() && interfaces.addresses.iter().any(|entry| entry.address.is_ipv6())
}

impl Change {
    /// Logs the change. It is called when the workers use it, because a reader of the log may send a request at once.
    pub(super) fn log(&self) {
        for (address, advertised) in &self.left.gone {
            tracing::warn!(
                event = "relay-address-gone", %address, %advertised,
                "this machine no longer has the relay address, so the allocations on it end"
            );
        }
        for (address, advertised) in &self.left.unusable {
            tracing::warn!(
                event = "relay-address-unusable", %address, %advertised,
                "the relay address gets no new allocations, because its interface is down, it is not usable at \
                 present, or the configuration no longer names it. Those on it remain"
            );
        }
        for (address, advertised) in &self.left.retired {
            tracing::info!(
                event = "relay-address-retired", %address, %advertised,
                "the relay address gets no new allocations, because there is a better one or the configuration \
                 has changed. Those on it continue"
            );
        }
        self.reachable.iter().for_each(MissingListener::log_reachable);
        self.new_relays.iter().for_each(log_relay);
        for warning in &self.warnings {
            tracing::warn!(event = "address-warning", "{warning}");
        }
    }
}

/// Logs a relay address with the reason for its choice.
pub(super) fn log_relay(relay: &RelayAddress) {
    tracing::info!(
        event = "relay-address", address = %relay.bind, advertised = %relay.advertised, reason = relay.reason,
        "relay address"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::interfaces::{AddressState, InterfaceAddress};

    // Otherwise a temporary or deprecated address would be taken for a stable one.
    #[test]
    fn states_of_addresses_that_were_known_before_must_be_known() {
        let interfaces = |unknown: bool| {
            let own = |text: &str| InterfaceAddress {
                name: "eth0".to_owned(),
                address: text.parse().unwrap(),
                loopback: false,
                up: true,
                state: AddressState::Stable,
            };
            let addresses = vec![own("5.9.1.1"), own("2a01:4f8::1")];
            let unknown_states = unknown.then(|| io::Error::from_raw_os_error(libc::EMFILE));
            Interfaces { addresses, beyond_loopback: true, unknown_states, ..Interfaces::default() }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        let config = Arc::<Config>::default();
        let mut follower = Follower { states_known: false, ..Follower::start(Arc::clone(&config)).unwrap() };
        assert!(follower.derive(&config, interfaces(true)).is_ok());
        assert!(follower.derive(&config, interfaces(false)).is_ok());
        assert!(matches!(follower.derive(&config, interfaces(true)), Err(AddressError::Interfaces(_))));
        assert!(follower.derive(&config, interfaces(false)).is_ok());
    }
}
