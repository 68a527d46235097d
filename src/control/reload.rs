//! Reload: the whole configuration is read and checked, then replaced, or nothing changes.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use super::RunningServer;
use super::alternate::own_server;
use super::api::{Access, Reload};
use super::follow::Machine;
use super::listeners::NewListeners;
use super::passed::Users;
use super::redis;
use super::service_listeners::{NewServiceListeners, Service, ServiceChanged};
use super::snapshot::snapshot;
use super::start::{StartError, connection_limit, front_addresses, generate_secret, open_files, room};
use super::tls::{Certificates, Replacement};
use crate::auth::Secret;
use crate::clock;
use crate::config::{Change, Config, ConfigErrors, LogLevel};
use crate::privacy::Usernames;
use crate::setting::{CONNECTIONS, RELAY_PORTS};
use crate::transport::Endpoint;
use crate::turn::Operator;

/// The most realms of earlier configurations whose keys existing allocations may have.
const FORMER_REALMS: usize = 8;

/// Where the configuration comes from.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The file; `None` for the defaults.
    pub path: Option<PathBuf>,
    /// The level that the command line sets.
    pub log_level: Option<LogLevel>,
    /// Secrets that are accepted besides those of the file, for a program that runs the server itself.
    pub secrets: Vec<Secret>,
}

impl Source {
    /// Reads the configuration.
    ///
    /// # Errors
    /// All errors in the file, or that it cannot be read.
    pub fn load(&self) -> Result<Config, ConfigErrors> {
        let mut config = match &self.path {
            Some(path) => Config::load(path)?,
            None => Config::default(),
        };
        if let Some(level) = self.log_level {
            config.log.level = level;
        }
        config.auth.secrets.extend(self.secrets.iter().cloned());
        Ok(config)
    }
}

/// A configuration that can replace the present one. Everything that may fail has been done.
struct Plan {
    config: Arc<Config>,
    changes: Vec<Change>,
    warnings: Vec<String>,
    machine: Machine,
    certificates: Option<(Certificates, Replacement)>,
    listeners: NewListeners,
    http: NewServiceListeners,
    fronts: NewServiceListeners,
    /// The secret for this run, if none is configured.
    generated_secret: Option<Secret>,
}

/// What has become of a plan.
#[derive(Debug)]
struct Effect {
    /// The workers that do not use it yet.
    pending: Vec<usize>,
    http: ServiceChanged,
    fronts: ServiceChanged,
    /// The numbers of permissions and of channels that it has ended.
    revoked: [u64; 2],
}

impl Effect {
    /// That of a trial.
    fn nothing() -> Self {
        let [http, fronts] = [Service::Http, Service::Front].map(ServiceChanged::nothing);
        Self { pending: Vec::new(), http, fronts, revoked: [0, 0] }
    }
}

impl RunningServer<'_> {
    /// Reads the configuration and uses it; in a `dry_run` it only checks it. Without an operator, a signal is the
    /// cause. The error is why the configuration is refused.
    pub(super) async fn reload(&mut self, dry_run: bool, operator: Option<Operator>) -> Result<Value, String> {
        if dry_run {
            let plan = self.plan_reload(true);
            self.refuse_unused();
            return plan.map(|plan| self.report(&plan.changes, &plan.warnings, None));
        }
        self.service.reloading(clock::monotonic());
        let result = match self.plan_reload(false) {
            Ok(plan) => Ok(self.use_plan(plan, operator).await),
            Err(error) => {
                self.record(false);
                self.log_refusal(&error, operator);
                Err(error)
            }
        };
        self.refuse_unused();
        self.service.ready();
        result
    }

    /// Lets the kernel refuse connections to the sockets that the service manager has passed and that no listener uses.
    pub(super) fn refuse_unused(&self) {
        let services = [self.http.listeners.addresses(), self.fronts.service.listeners.addresses()].concat();
        let users = Users::new(&self.config, self.listeners.endpoints(), &services);
        self.listeners.passed().refuse_unused(|place| users.has(place));
    }

    /// Publishes the result of a reload.
    fn record(&self, succeeded: bool) {
        let time = clock::unix_seconds();
        self.published.send_modify(|published| published.reload.record(time, succeeded));
    }

    fn log_refusal(&self, error: &str, operator: Option<Operator>) {
        let (pid, uid) = (operator.and_then(|by| by.process), operator.and_then(|by| by.user));
        // An error may name a user.
        let error = match self.config.log.usernames {
            Usernames::Full => error,
            Usernames::Hash | Usernames::None => "`turnserver check-config` shows it",
        };
        tracing::error!(
            event = "reload-refused",
            error,
            uid,
            pid,
            "the configuration cannot be used, so everything stays as it was"
        );
    }

    /// Does everything that may fail. If it is `only_check`, the result must not be used.
    fn plan_reload(&mut self, only_check: bool) -> Result<Plan, String> {
        // What has failed since the last reload is opened again.
        self.http.update();
        self.fronts.service.update();
        self.failed.forget_lost(&mut self.listeners);
        let mut config = self.source.load().map_err(|errors| errors.to_string())?;
        let changes = self.config.changes(&config);
        config.keep_until_restart(&self.config);
        let machine = self.addresses.preview(&config).map_err(|error| error.to_string())?;
        if let Some(server) = own_server(&config, machine.own()) {
            return Err(StartError::Alternate(server).to_string());
        }
        let reload = |tls| Certificates::reload(self.certificates.as_ref(), tls, config.hostname.as_deref());
        let certificates = config.tls.as_ref().map(reload).transpose().map_err(|error| error.to_string())?;
        let new_secret = generate_secret(&config).map_err(|error| StartError::Random(error).to_string())?;
        let clients = || self.listeners.tcp_neighbours(&config.listen);
        let of_fronts = self.fronts.service.listeners.neighbours_of(&front_addresses(&config));
        let http = self.http.listeners.preview(&config.http.listen, config.http.tls, &clients().and(of_fronts));
        let http = http.map_err(|error| error.to_string())?;
        let http_ports = || self.http.listeners.neighbours(&http.listeners);
        let fronts = &self.fronts.service.listeners;
        let new_fronts = fronts.preview(&front_addresses(&config), false, &clients().and(http_ports()));
        let new_fronts = new_fronts.map_err(|error| error.to_string())?;
        let services = http_ports().and(fronts.neighbours(&new_fronts.listeners));
        // The last step, because new UDP sockets take packets from those with which they share a port.
        let listeners = self.listeners.preview(&config.listen, self.workers.len(), &services, only_check);
        let mut listeners = listeners.map_err(|error| error.to_string())?;
        listeners.open_again(&self.failed.to_retry()).map_err(|error| error.to_string())?;
        // The secret of a trial stays until there is another one.
        let generated_secret = new_secret.map(|new| self.inputs.generated_secret.clone().unwrap_or(new));
        let mut warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
        warnings.extend(self.config.keys_of_the_old_realm(&config));
        warnings.extend(machine.warnings());
        warnings.extend(self.limited_by_tables(&config, &machine));
        let config = Arc::new(config);
        let fronts = new_fronts;
        Ok(Plan { config, changes, warnings, machine, certificates, listeners, http, fronts, generated_secret })
    }

    /// Warns of values that are higher than the tables of this run allow.
    fn limited_by_tables(&self, config: &Config, machine: &Machine) -> Vec<String> {
        let mut warnings = Vec::new();
        let most = self.ledger.room();
        if room(config, machine.choice()) > most {
            warnings.push(format!(
                "`{RELAY_PORTS}`: the tables of this run have room for {most} allocations; restart the server for more"
            ));
        }
        let most = self.ledger.connections_room();
        let wanted = config.limits.connections;
        if wanted != self.config.limits.connections && (wanted == 0 || wanted > most) {
            warnings.push(format!(
                "`{CONNECTIONS}`: the tables of this run have room for {most} connections; restart the server for more"
            ));
        }
        warnings
    }

    async fn use_plan(&mut self, plan: Plan, operator: Option<Operator>) -> Value {
        let Plan {
            config,
            changes,
            warnings,
            machine,
            certificates,
            listeners,
            mut http,
            mut fronts,
            generated_secret,
        } = plan;
        let before = std::mem::replace(&mut self.config, Arc::clone(&config));
        self.inputs.remember_realm(&before.realm, &config.realm);
        self.inputs.generated_secret = generated_secret;
        if redis::source(&before) != redis::source(&config) {
            self.inputs.redis_secrets = Arc::default();
        }
        if let Some(interfaces) = self.offload.follow_interfaces() {
            self.inputs.offload_interfaces = interfaces;
        }
        let open_files = open_files();
        self.spare.adapt(open_files);
        let limit = connection_limit(&config, machine.choice(), open_files, self.offload.open_files());
        let most = self.ledger.connections_room();
        self.inputs.connections = if limit == 0 { most } else { limit.min(most) };
        let addresses = self.addresses.adopt_config(Arc::clone(&config), machine);
        let (certificates, replacement) = certificates.unzip();
        self.certificates = certificates;
        let [opened, closed] = difference(self.listeners.endpoints(), listeners.listeners.endpoints());
        self.listeners = listeners.listeners;
        self.failed.begin_reload();
        let secret = self.inputs.generated_secret.clone();
        self.entry.reconfigure(&config, self.listeners.endpoints(), &fronts.listeners, secret);
        let new_fronts = fronts.change.addresses();
        let needed = http.take_closed_for(self.listeners.endpoints(), &new_fronts);
        self.http.listeners = http.listeners;
        let needed_of_fronts = fronts.take_closed_for(self.listeners.endpoints(), &http.change.addresses());

        // Before the workers change, so that no new credential is made with a secret that they no longer accept.
        let secret = self.inputs.minting_secret(&config).cloned();
        self.published.send_modify(|published| {
            published.secret = secret;
            published.keys.clone_from(&config.http.keys);
            published.access = Access::new(&config.http);
        });
        let acceptor = replacement.as_ref().map(Replacement::acceptor);
        let snapshot = snapshot(&config, &self.inputs, &self.addresses, acceptor);
        let revoked = self.revoked();
        self.fronts.configure(&config, fronts.listeners, open_files, Arc::clone(&snapshot.privacy));
        let http_closed = self.close_http(needed, before.http.tls).await;
        let fronts_closed = self.close_fronts(needed_of_fronts).await;
        let pending = self.reconfigure_with(snapshot, listeners.changes).await;
        let [permissions, channels] = self.revoked();
        let revoked = [permissions - revoked[0], channels - revoked[1]];
        self.published.send_modify(|published| {
            published.certificates = self.certificates.as_ref().map(Certificates::published).unwrap_or_default();
        });
        self.publish_urls();
        self.record(true);
        // After the settings for access, so that no client of a new listener gets the old ones.
        let http_changed = self.change_http(http.change).await;
        let fronts_changed = self.change_fronts(fronts.change).await;

        self.log_listeners(&opened, &closed, pending.len());
        if !http_changed.is_pending() {
            http.difference.log(&self.http.listeners);
        }
        if !fronts_changed.is_pending() {
            fronts.difference.log(&self.fronts.service.listeners);
        }
        if let (Some(certificates), Some(replacement)) = (&self.certificates, &replacement) {
            certificates.log_replacement(replacement);
        }
        if let Some(change) = addresses {
            change.log();
        }
        // It may need the listeners.
        self.acme.configure(&config);
        self.accounting.configure(&config);
        self.fleet.configure(&config);
        self.redis.configure(&config);
        let (http, fronts) = (http_closed.and(http_changed), fronts_closed.and(fronts_changed));
        let effect = Effect { pending, http, fronts, revoked };
        self.log_reload(&changes, &warnings, &effect, operator);
        self.use_log_settings(&before);
        let certificate = self.certificates.as_ref().and_then(Certificates::current);
        self.entry.print(self.addresses.choice(), certificate);
        self.report(&changes, &warnings, Some(&effect))
    }

    /// Logs the listeners that are open or closed now. `pending`: the number of workers that do not use the
    /// configuration yet.
    fn log_listeners(&self, opened: &[Endpoint], closed: &[Endpoint], pending: usize) {
        let is_open = |endpoint: &&Endpoint| self.failed.workers_without(**endpoint) + pending < self.workers.len();
        for Endpoint { transport, address } in opened.iter().filter(is_open) {
            tracing::info!(event = "listening", transport = transport.as_str(), %address, "listening");
        }
        for Endpoint { transport, address } in closed.iter().filter(|_| pending == 0) {
            let clients =
                if transport.is_connection() { "connections on it continue" } else { "allocations on it end" };
            tracing::info!(
                event = "listener-closed", transport = transport.as_str(), %address,
                "no longer listening; {clients}"
            );
        }
    }

    fn log_reload(&self, changes: &[Change], warnings: &[String], effect: &Effect, operator: Option<Operator>) {
        for Change { key, values, is_private, needs_restart } in changes {
            let shown = values.as_ref().filter(|_| !is_private);
            let (from, to) = (shown.map(|(from, _)| from.as_str()), shown.map(|(_, to)| to.as_str()));
            let message = if *needs_restart { "setting changed; it needs a restart" } else { "setting changed" };
            tracing::info!(event = "setting-changed", key, from, to, needs_restart, "{message}");
        }
        for warning in warnings {
            tracing::warn!(event = "configuration-warning", "{warning}");
        }
        let (pid, uid) = (operator.and_then(|by| by.process), operator.and_then(|by| by.user));
        let cause = if operator.is_some() { "`turnserver ctl reload`" } else { "SIGHUP" };
        let generation = self.published.borrow().reload.generation;
        for worker in &effect.pending {
            tracing::warn!(
                event = "reload-incomplete",
                worker,
                "a worker is busy and does not use the configuration yet; it will do so when it is less busy. If the \
                 log has `worker-stalled`, restart the server"
            );
        }
        self.failed.log();
        effect.http.log_gaps();
        effect.fronts.log_gaps();
        let is_complete = self.is_complete(effect);
        let result = if is_complete { "is in use" } else { "is not in use everywhere yet; see `reload-incomplete`" };
        tracing::info!(
            event = "reload-done",
            generation,
            changes = changes.len(),
            complete = is_complete,
            uid,
            pid,
            "{cause}: the configuration has been read and {result}"
        );
    }

    fn is_complete(&self, effect: &Effect) -> bool {
        effect.pending.is_empty()
            && self.failed.is_complete()
            && effect.http.is_complete()
            && effect.fronts.is_complete()
    }

    /// A level that the operator has set for this run stays, unless the file changes the level.
    fn use_log_settings(&self, before: &Config) {
        let log = &self.config.log;
        self.log.set_format(log.format);
        if log.level != before.log.level {
            self.log.set_level(log.level);
            self.published.send_modify(|published| published.log_level = log.level);
        }
    }

    /// Returns the number of permissions and of channels that new configurations have revoked: after reloads, and after
    /// changes of the addresses of this machine.
    fn revoked(&self) -> [u64; 2] {
        let totals = self.workers.iter().map(|worker| worker.statistics.read());
        totals.fold([0, 0], |[permissions, channels], totals| {
            [permissions + totals.revoked_permissions, channels + totals.revoked_channels]
        })
    }

    /// Returns the response to the operator. `effect` is `None` if the configuration was only checked.
    fn report(&self, changes: &[Change], warnings: &[String], effect: Option<&Effect>) -> Value {
        let change = |change: &Change| {
            let (from, to) = change.values.clone().unzip();
            json!({ "key": change.key, "from": from, "to": to, "needs_restart": change.needs_restart })
        };
        let (is_trial, nothing) = (effect.is_none(), Effect::nothing());
        let effect = effect.unwrap_or(&nothing);
        let Effect { pending, http, fronts, revoked: [permissions, channels] } = effect;
        let failed = if is_trial { Vec::new() } else { self.failed.shown() };
        let Reload { generation, .. } = self.published.borrow().reload;
        let mut response = json!({
            "dry_run": is_trial,
            "generation": generation,
            "changes": changes.iter().map(change).collect::<Vec<_>>(),
            "warnings": warnings,
            "complete": is_trial || self.is_complete(effect),
            "pending_workers": pending,
            "failed_listeners": failed,
            "revoked_permissions": permissions,
            "revoked_channels": channels,
        });
        http.show(&mut response);
        fronts.show(&mut response);
        response
    }
}

/// Returns the endpoints that come and those that go.
fn difference(old: &[Endpoint], new: &[Endpoint]) -> [Vec<Endpoint>; 2] {
    let without = |all: &[Endpoint], others: &[Endpoint]| -> Vec<Endpoint> {
        all.iter().filter(|endpoint| !others.contains(endpoint)).copied().collect()
    };
    [without(new, old), without(old, new)]
}

impl super::snapshot::SnapshotInputs {
    /// Remembers the realm that a reload replaces, because existing allocations have keys of it.
    fn remember_realm(&mut self, old: &str, new: &str) {
        if old != new {
            self.former_realms.push(old.to_owned());
        }
        self.former_realms.retain(|realm| realm != new);
        let surplus = self.former_realms.len().saturating_sub(FORMER_REALMS);
        self.former_realms.drain(..surplus);
    }
}
