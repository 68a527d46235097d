//! The differences between two configurations, for the response to a reload.

use std::fmt::Display;

use super::{
    CertificateFiles, Config, ControlSocket, Fleet, FleetAccess, Front, HttpKey, OffloadInterfaces, RelayAddresses,
    StaticUser, format_duration,
};

/// A key whose value differs between two configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The dotted name, such as `limits.allocations`.
    pub key: &'static str,
    /// The old and the new value; `None` for a secret.
    pub values: Option<(String, String)>,
    /// Whether the values are not for the log, because they contain the names of users.
    pub is_private: bool,
    /// Whether the new value applies only after a restart.
    pub needs_restart: bool,
}

/// The keys that a running server does not change.
const RESTART: [&str; 6] =
    ["workers", "state-directory", "offload.mode", "offload.interfaces", "offload.channels", "control.socket"];

impl Config {
    /// Returns the keys whose effective values differ in a new configuration, in the order of the file. A default that is
    /// written out is no difference.
    #[must_use]
    pub fn changes(&self, new: &Self) -> Vec<Change> {
        let mut comparison = Comparison::new(self, new);
        comparison.all();
        comparison.changes
    }

    /// Returns a warning if a new configuration has another realm and keys of users that were made for this one.
    #[must_use]
    pub fn keys_of_the_old_realm(&self, new: &Self) -> Option<String> {
        let key = |config: &Self, name: &str| {
            config.auth.users.iter().find(|user| user.name == name).and_then(|user| user.key().cloned())
        };
        let mut users = new.auth.users.iter().filter(|user| user.key().is_some());
        let is_old = users.any(|user| key(self, &user.name).as_ref() == user.key());
        // Warnings are logged, so this one has no name.
        (self.realm != new.realm && is_old).then(|| {
            "`realm` has changed, but a `key` in `[[auth.users]]` has not: a key is valid in one realm only, so its \
             user cannot authenticate any more. Replace the key, or set `password`"
                .to_owned()
        })
    }

    /// Keeps the values of the running configuration that need a restart.
    pub fn keep_until_restart(&mut self, running: &Self) {
        self.workers = running.workers;
        self.state_directory = running.state_directory.clone();
        self.offload = running.offload.clone();
        self.control = running.control.clone();
    }
}

struct Comparison<'c> {
    old: &'c Config,
    new: &'c Config,
    changes: Vec<Change>,
    /// The keys that were compared.
    keys: Vec<&'static str>,
}

impl<'c> Comparison<'c> {
    fn new(old: &'c Config, new: &'c Config) -> Self {
        Self { old, new, changes: Vec::new(), keys: Vec::new() }
    }

    /// Compares a value that may be shown.
    fn shown(&mut self, key: &'static str, value: impl Fn(&Config) -> String) {
        self.keys.push(key);
        let values = (value(self.old), value(self.new));
        if values.0 != values.1 {
            self.changes.push(Change {
                key,
                values: Some(values),
                is_private: false,
                needs_restart: RESTART.contains(&key),
            });
        }
    }

    /// Compares a secret.
    fn hidden<'a, T: PartialEq>(&'a mut self, key: &'static str, value: impl Fn(&'c Config) -> T) {
        self.keys.push(key);
        if value(self.old) != value(self.new) {
            self.changes.push(Change { key, values: None, is_private: false, needs_restart: false });
        }
    }

    /// Compares a key of the tables of a list. Only the tables whose values differ are shown, with their names.
    fn entries(&mut self, key: &'static str, values: impl Fn(&Config) -> Vec<(String, String)>) {
        self.keys.push(key);
        let [old, new] = [values(self.old), values(self.new)];
        let without = |all: &[(String, String)], others: &[(String, String)]| {
            let rest = all.iter().filter(|entry| !others.contains(entry));
            list(rest.map(|(name, value)| if value.is_empty() { name.clone() } else { format!("{name}: {value}") }))
        };
        let values = (without(&old, &new), without(&new, &old));
        if values.0 != values.1 {
            let is_private = key.starts_with("auth.users");
            self.changes.push(Change { key, values: Some(values), is_private, needs_restart: false });
        }
    }

    fn all(&mut self) {
        self.general();
        self.relay();
        self.auth();
        self.redis();
        self.limits();
        self.rest();
        self.http();
        self.fronts();
        self.fleet();
        self.webhook();
        self.redis_status();
    }

    /// Compares the keys of `[redis-status]`.
    fn redis_status(&mut self) {
        let mut shown = |key, value: fn(&super::RedisAccess) -> Option<String>| {
            self.shown(key, |config| config.redis_status.as_ref().and_then(value).unwrap_or_else(not_set));
        };
        shown("redis-status.url", |redis| Some(redis.server.to_string()));
        shown("redis-status.username", |redis| redis.username.clone());
        shown("redis-status.database", |redis| Some(redis.database.to_string()));
        shown("redis-status.ca-file", |redis| redis.ca.as_ref().map(|path| path.display().to_string()));
        self.hidden("redis-status.password-file", |config| {
            config.redis_status.as_ref().and_then(|redis| redis.password.as_ref())
        });
    }

    fn webhook(&mut self) {
        let mut shown = |key, value: fn(&super::Webhook) -> String| {
            self.shown(key, |config| config.webhook.as_ref().map_or_else(not_set, value));
        };
        shown("webhook.events", |webhook| list(webhook.events.iter().map(|event| event.as_str())));
        shown("webhook.batch", |webhook| webhook.batch.to_string());
        shown("webhook.interval", |webhook| format_duration(webhook.interval));
        shown("webhook.spool", |webhook| webhook.spool.to_string());
        shown("webhook.timeout", |webhook| format_duration(webhook.timeout));
        shown("webhook.ca-file", |webhook| webhook.ca.as_ref().map_or_else(not_set, |ca| ca.display().to_string()));
        shown("webhook.allow-http", |webhook| webhook.allow_http.to_string());
        // It may contain a token.
        self.hidden("webhook.url", |config| config.webhook.as_ref().map(|webhook| &webhook.url));
        self.hidden("webhook.secret-file", |config| config.webhook.as_ref().map(|webhook| &webhook.secrets));
    }

    /// Compares the keys of `[tls.acme]`.
    fn acme(&mut self) {
        let acme = |config: &Config| config.tls.as_ref().and_then(|tls| tls.acme.clone());
        let mut shown = |key, value: fn(super::Acme) -> Option<String>| {
            self.shown(key, |config| acme(config).and_then(value).unwrap_or_else(not_set));
        };
        shown("tls.acme.domains", |acme| Some(list(acme.domains)));
        shown("tls.acme.contact", |acme| acme.contact);
        shown("tls.acme.directory", |acme| Some(acme.directory));
        shown("tls.acme.directory-ca-file", |acme| acme.directory_ca.map(|path| path.display().to_string()));
        shown("tls.acme.profile", |acme| acme.profile);
        // It must be true.
        shown("tls.acme.terms-agreed", |_| Some("true".to_owned()));
        shown("tls.acme.eab-key-id", |acme| acme.external_account.map(|account| account.key_id));
        shown("tls.acme.challenge", |acme| Some(acme.challenge.as_str().to_owned()));
        shown("tls.acme.state-directory", |acme| Some(acme.state_directory.display().to_string()));
        self.hidden("tls.acme.eab-key-file", |config| {
            config.tls.as_ref()?.acme.as_ref()?.external_account.as_ref().map(|account| &account.key)
        });
    }

    fn general(&mut self) {
        self.shown("realm", |config| config.realm.clone());
        self.shown("hostname", |config| config.hostname.clone().unwrap_or_else(not_set));
        self.shown("node", Config::node_name);
        self.shown("workers", |config| match config.workers {
            0 => "one per CPU".to_owned(),
            workers => workers.to_string(),
        });
        self.shown("drain-deadline", |config| format_duration(config.drain_deadline));
        self.shown("state-directory", |config| {
            config.state_directory.as_ref().map_or_else(not_set, |path| path.display().to_string())
        });
        for (key, transport) in [
            ("listen.udp", crate::transport::Transport::Udp),
            ("listen.tcp", crate::transport::Transport::Tcp),
            ("listen.tls", crate::transport::Transport::Tls),
        ] {
            self.shown(key, |config| {
                let of = config.listen.iter().filter(|endpoint| endpoint.transport == transport);
                list(of.map(|endpoint| endpoint.address))
            });
        }
        self.shown("listen.proxies", |config| list(config.proxies.iter().map(super::addresses::short)));
        self.shown("tls.certificate", |config| {
            default_certificate(config).map_or_else(not_set, |files| files.certificate.display().to_string())
        });
        self.shown("tls.private-key", |config| {
            default_certificate(config).map_or_else(not_set, |files| files.private_key.display().to_string())
        });
        self.shown("tls.certificates.certificate", |config| {
            list(further_certificates(config).map(|files| files.certificate.display()))
        });
        self.shown("tls.certificates.private-key", |config| {
            list(further_certificates(config).map(|files| files.private_key.display()))
        });
        self.acme();
    }

    fn relay(&mut self) {
        self.shown("relay.addresses", |config| match &config.relay.addresses {
            RelayAddresses::Auto => "auto".to_owned(),
            RelayAddresses::Given(addresses) => list(addresses),
        });
        self.shown("relay.external", |config| {
            list(config.relay.external.iter().map(|(inside, outside)| format!("{inside} = {outside}")))
        });
        self.shown("relay.ports", |config| format!("{}-{}", config.relay.ports.start(), config.relay.ports.end()));
    }

    fn auth(&mut self) {
        // The secrets of the file are among them.
        self.hidden("auth.secrets", |config| &config.auth.secrets);
        self.shown("auth.secrets-file", |config| file(config, crate::setting::AUTH_SECRETS_FILE));
        self.shown("auth.nonce-lifetime", |config| format_duration(config.auth.nonce_lifetime));
        self.shown("auth.expiry-grace", |config| format_duration(config.auth.expiry_grace));
        let users = |value: fn(&StaticUser) -> String| {
            move |config: &Config| {
                config.auth.users.iter().map(|user| (user.name.clone(), value(user))).collect::<Vec<_>>()
            }
        };
        self.entries("auth.users.name", users(|_| String::new()));
        self.hidden("auth.users.password", |config| {
            by_name(config.auth.users.iter().filter_map(|user| Some((&user.name, user.password()?))))
        });
        self.hidden("auth.users.key", |config| {
            by_name(config.auth.users.iter().filter_map(|user| Some((&user.name, user.key()?))))
        });
        self.entries("auth.users.allocations", users(|user| or_no_limit(user.allocations)));
        self.shown("peers.allow", |config| list(&config.peers.allow));
        self.shown("peers.deny", |config| list(&config.peers.deny));
        self.shown("peers.nat64-prefixes", |config| {
            list(config.peers.nat64_prefixes.iter().map(|prefix| prefix.network()))
        });
    }

    /// Compares the keys of `[auth.redis]`.
    fn redis(&mut self) {
        let redis = |config: &Config| config.auth.redis.clone();
        let mut shown = |key, value: fn(super::Redis) -> Option<String>| {
            self.shown(key, |config| redis(config).and_then(value).unwrap_or_else(not_set));
        };
        shown("auth.redis.url", |redis| Some(redis.access.server.to_string()));
        shown("auth.redis.username", |redis| redis.access.username);
        shown("auth.redis.database", |redis| Some(redis.access.database.to_string()));
        shown("auth.redis.ca-file", |redis| redis.access.ca.map(|path| path.display().to_string()));
        shown("auth.redis.time-limit", |redis| Some(format_duration(redis.time_limit)));
        shown("auth.redis.found-for", |redis| Some(format_duration(redis.found_for)));
        shown("auth.redis.absent-for", |redis| Some(format_duration(redis.absent_for)));
        shown("auth.redis.stale-for", |redis| Some(format_duration(redis.stale_for)));
        shown("auth.redis.cached-users", |redis| Some(redis.cached_users.to_string()));
        shown("auth.redis.lookups-per-second", |redis| Some(or_no_limit(redis.lookups_per_second)));
        shown("auth.redis.lookups-per-second-per-source", |redis| {
            Some(or_no_limit(redis.lookups_per_second_per_source))
        });
        shown("auth.redis.when-unavailable", |redis| Some(redis.when_unavailable.as_str().to_owned()));
        self.hidden("auth.redis.password-file", |config| {
            config.auth.redis.as_ref().and_then(|redis| redis.access.password.as_ref())
        });
    }

    fn limits(&mut self) {
        type Limit = fn(&super::Limits) -> u32;
        let limits: [(&'static str, Limit); 13] = [
            ("limits.allocations-per-user", |limits| limits.allocations_per_user),
            ("limits.allocations", |limits| limits.allocations),
            ("limits.allocations-per-second-per-user", |limits| limits.allocations_per_second_per_user),
            ("limits.permissions-per-allocation", |limits| limits.permissions_per_allocation.into()),
            ("limits.channels-per-allocation", |limits| limits.channels_per_allocation.into()),
            ("limits.peers-per-second", |limits| limits.peers_per_second),
            ("limits.bytes-per-second-per-allocation", |limits| limits.bytes_per_second_per_allocation),
            ("limits.bytes-per-second-per-user", |limits| limits.bytes_per_second_per_user),
            ("limits.connections", |limits| limits.connections),
            ("limits.connections-per-source", |limits| limits.connections_per_source),
            ("limits.allocated-connections-per-source", |limits| limits.allocated_connections_per_source),
            ("limits.unverified-responses", |limits| limits.unverified_responses),
            ("limits.failed-authentications", |limits| limits.failed_authentications),
        ];
        for (key, limit) in limits {
            self.shown(key, |config| or_no_limit(limit(&config.limits)));
        }
    }

    fn rest(&mut self) {
        self.shown("timeouts.tls-handshake", |config| format_duration(config.timeouts.tls_handshake));
        self.shown("timeouts.first-request", |config| format_duration(config.timeouts.first_request));
        self.shown("timeouts.idle", |config| format_duration(config.timeouts.idle));
        self.shown("timeouts.unauthenticated", |config| format_duration(config.timeouts.unauthenticated));
        self.shown("alternate.servers", |config| {
            if config.alternate.from_fleet { "fleet".to_owned() } else { list(&config.alternate.servers) }
        });
        self.shown("alternate.tls-servers", |config| list(&config.alternate.tls_servers));
        self.shown("alternate.domain", |config| config.alternate.domain.clone().unwrap_or_else(not_set));
        self.shown("alternate.when", |config| config.alternate.when.as_str().to_owned());
        self.shown("compat.rfc5766-channels", |config| config.compat.rfc5766_channels.to_string());
        self.shown("compat.draft-dual-allocation", |config| config.compat.draft_dual_allocation.to_string());
        self.shown("compat.icmp-indications", |config| config.compat.icmp_indications.as_str().to_owned());
        self.shown("offload.mode", |config| config.offload.mode.as_str().to_owned());
        self.shown("offload.interfaces", |config| match &config.offload.interfaces {
            OffloadInterfaces::Auto => "auto".to_owned(),
            OffloadInterfaces::Given(names) => list(names),
        });
        // The default depends on other keys, which a reload changes without an effect on it.
        self.shown("offload.channels", |config| config.offload.channels.map_or_else(not_set, |most| most.to_string()));
        self.shown("log.level", |config| config.log.level.to_string());
        self.shown("log.format", |config| config.log.format.to_string());
        self.shown("log.client-addresses", |config| config.log.client_addresses.as_str().to_owned());
        self.shown("log.usernames", |config| config.log.usernames.as_str().to_owned());
        self.shown("control.socket", |config| match &config.control.socket {
            ControlSocket::Default => super::CONTROL_SOCKET.to_owned(),
            ControlSocket::At(path) => path.display().to_string(),
            ControlSocket::None => "none".to_owned(),
        });
    }

    fn http(&mut self) {
        self.shown("http.listen", |config| list(&config.http.listen));
        self.shown("http.tls", |config| config.http.tls.to_string());
        self.shown("http.url", |config| config.http.url.clone().unwrap_or_default());
        self.shown("http.metrics-from", |config| list(&config.http.metrics_from));
        self.hidden("http.metrics-token-file", |config| {
            (file(config, crate::setting::HTTP_METRICS_TOKEN_FILE), &config.http.metrics_token)
        });
        self.shown("http.keys-file", |config| file(config, crate::setting::HTTP_KEYS_FILE));
        // The keys of the file are among them.
        let keys = |value: fn(&HttpKey) -> String| {
            move |config: &Config| config.http.keys.iter().map(|key| (key.name.clone(), value(key))).collect::<Vec<_>>()
        };
        self.entries("http.keys.name", keys(|_| String::new()));
        self.hidden("http.keys.sha256", |config| by_name(config.http.keys.iter().map(|key| (&key.name, &key.hash))));
        self.entries("http.keys.ttl", keys(|key| format_duration(key.ttl)));
        self.entries("http.keys.user-prefix", keys(|key| key.user_prefix.clone()));
        self.entries("http.keys.origins", keys(|key| list(&key.origins)));
        self.entries("http.keys.requests-per-second", keys(|key| or_no_limit(key.requests_per_second)));
    }

    fn fronts(&mut self) {
        let fronts = |value: fn(&Front) -> String| {
            move |config: &Config| {
                let entry = |front: &Front| (front.listen.to_string(), value(front));
                config.fronts.iter().map(entry).collect::<Vec<_>>()
            }
        };
        self.entries("front.listen", fronts(|_| String::new()));
        self.entries("front.web", fronts(|front| front.web.to_string()));
        self.entries("front.names", fronts(|front| list(&front.names)));
        self.entries("front.without-name", fronts(|front| front.without_name.as_str().to_owned()));
        self.entries("front.http", fronts(|front| front.http.to_string()));
        self.entries("front.proxy-protocol", fronts(|front| front.proxy_protocol.to_string()));
        self.entries("front.connections", fronts(|front| front.connections.to_string()));
        self.entries("front.idle", fronts(|front| format_duration(front.idle)));
    }

    /// Compares the keys of `[fleet]`.
    fn fleet(&mut self) {
        let mut shown = |key, value: fn(&Fleet) -> Option<String>| {
            self.shown(key, |config| config.fleet.as_ref().and_then(value).unwrap_or_else(not_set));
        };
        shown("fleet.servers", |fleet| Some(list(&fleet.servers)));
        shown("fleet.user", |fleet| match &fleet.access {
            FleetAccess::Password(user, _) => Some(user.clone()),
            FleetAccess::Open => None,
        });
        shown("fleet.ca-file", |fleet| fleet.ca_file.as_ref().map(|path| path.display().to_string()));
        shown("fleet.name", |fleet| Some(fleet.name.clone()));
        shown("fleet.region", |fleet| Some(fleet.region.clone()));
        shown("fleet.weight", |fleet| Some(fleet.weight.to_string()));
        shown("fleet.urls", |fleet| Some(list(&fleet.urls)));
        shown("fleet.limits", |fleet| Some(fleet.limits.as_str().to_owned()));
        shown("fleet.nodes-per-credential", |fleet| Some(fleet.nodes_per_credential.to_string()));
        shown("fleet.replicas", |fleet| fleet.replicas.map(|replicas| replicas.to_string()));
        self.hidden("fleet.regions-file", |config| {
            (file(config, crate::setting::FLEET_REGIONS_FILE), config.fleet.as_ref().map(|fleet| &fleet.regions))
        });
        self.hidden("fleet.password-file", |config| match &config.fleet.as_ref()?.access {
            FleetAccess::Password(_, password) => Some(password),
            FleetAccess::Open => None,
        });
    }
}

/// Sorts secrets by their names, because their order in the file does not matter.
fn by_name<'c, T>(secrets: impl Iterator<Item = (&'c String, T)>) -> Vec<(&'c String, T)> {
    let mut secrets: Vec<_> = secrets.collect();
    secrets.sort_unstable_by_key(|(name, _)| *name);
    secrets
}

fn default_certificate(config: &Config) -> Option<&CertificateFiles> {
    certificates(config).find(|files| !files.is_further && !files.is_ordered)
}

fn further_certificates(config: &Config) -> impl Iterator<Item = &CertificateFiles> {
    certificates(config).filter(|files| files.is_further)
}

fn certificates(config: &Config) -> impl Iterator<Item = &CertificateFiles> {
    config.tls.iter().flat_map(|tls| &tls.certificates)
}

fn not_set() -> String {
    "not set".to_owned()
}

fn or_no_limit(limit: u32) -> String {
    match limit {
        0 => "0 (no limit)".to_owned(),
        limit => limit.to_string(),
    }
}

fn list<T: Display>(values: impl IntoIterator<Item = T>) -> String {
    let values: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
    if values.is_empty() { "none".to_owned() } else { values.join(", ") }
}

/// Returns the file that a key names.
fn file(config: &Config, key: &str) -> String {
    let found = config.files.iter().find(|(name, _)| *name == key);
    found.map_or_else(not_set, |(_, path)| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text, "turnserver.toml").unwrap()
    }

    #[test]
    fn every_key_is_compared() {
        let default = Config::default();
        let mut comparison = Comparison::new(&default, &default);
        comparison.all();
        let tables: Vec<&str> = schema::ALL.iter().map(|table| table.path).collect();
        let keys = schema::ALL.iter().flat_map(|table| {
            table
                .keys
                .iter()
                .map(|key| if table.path.is_empty() { (*key).to_owned() } else { format!("{}.{key}", table.path) })
        });
        let mut keys: Vec<String> = keys.filter(|key| !tables.contains(&key.as_str())).collect();
        keys.sort_unstable();
        let mut compared: Vec<String> = comparison.keys.iter().map(|key| (*key).to_owned()).collect();
        compared.sort_unstable();
        assert_eq!(compared, keys);
        assert_eq!(comparison.changes, []);
    }

    #[test]
    fn a_change_has_the_effective_values_and_no_secret() {
        let old = config("workers = 1\n[limits]\nallocations = 5\n[auth]\nsecrets = [\"north-wind-north-wind\"]\n");
        let new = config(
            "workers = 2\n[limits]\nallocations = 0\nallocations-per-user = 32\n[auth]\nsecrets = [\"east-wind-east-wind\"]\n",
        );
        let changes = old.changes(&new);
        let shown = |from: &str, to: &str| Some((from.to_owned(), to.to_owned()));
        let expected = [
            ("workers", shown("1", "2"), true),
            ("auth.secrets", None, false),
            ("limits.allocations", shown("5", "0 (no limit)"), false),
        ];
        let found: Vec<_> =
            changes.iter().map(|change| (change.key, change.values.clone(), change.needs_restart)).collect();
        assert_eq!(found, expected);
        assert!(!format!("{changes:?}").contains("wind"));
        let mut kept = new;
        kept.keep_until_restart(&old);
        assert_eq!(
            old.changes(&kept).iter().map(|change| change.key).collect::<Vec<_>>(),
            ["auth.secrets", "limits.allocations"]
        );
    }

    #[test]
    fn a_key_stays_valid_as_long_as_the_realm_does() {
        let with_key = |realm: &str, key: &str| {
            config(&format!("realm = \"{realm}\"\n[[auth.users]]\nname = \"zoe\"\nkey = \"{key}\"\n"))
        };
        let (one, other) = ("8493fbc53ba582fb4c044c456bdc40eb", "0493fbc53ba582fb4c044c456bdc40eb");
        let old = with_key("old.example", one);
        assert_eq!(old.keys_of_the_old_realm(&with_key("old.example", one)), None);
        assert_eq!(old.keys_of_the_old_realm(&with_key("new.example", other)), None);
        let warning = old.keys_of_the_old_realm(&with_key("new.example", one)).unwrap();
        assert!(warning.contains("valid in one realm only") && !warning.contains("zoe"), "{warning}");
        let changes = old.changes(&with_key("old.example", other));
        assert_eq!(
            changes.iter().map(|change| (change.key, &change.values)).collect::<Vec<_>>(),
            [("auth.users.key", &None)]
        );
        assert!(!format!("{old:?}").contains("8493"), "{old:?}");
    }

    #[test]
    fn of_users_and_keys_only_those_that_differ_are_shown() {
        let user = |name: &str, password: &str, allocations: u32| {
            format!("[[auth.users]]\nname = \"{name}\"\npassword = \"{password}\"\nallocations = {allocations}\n")
        };
        let old = config(&(user("ann", "ann's password", 1) + &user("bob", "bob's password", 2)));
        let new = config(&(user("bob", "bob's password", 3) + &user("carol", "carol's password", 4)));
        let changes = old.changes(&new);
        let shown = |from: &str, to: &str| Some((from.to_owned(), to.to_owned()));
        let found: Vec<_> =
            changes.iter().map(|change| (change.key, change.values.clone(), change.is_private)).collect();
        let expected = [
            ("auth.users.name", shown("ann", "carol"), true),
            ("auth.users.password", None, false),
            ("auth.users.allocations", shown("ann: 1, bob: 2", "bob: 3, carol: 4"), true),
        ];
        assert_eq!(found, expected);
        // Their order does not matter.
        let swapped = config(&(user("bob", "bob's password", 2) + &user("ann", "ann's password", 1)));
        assert_eq!(old.changes(&swapped), []);
    }
}
