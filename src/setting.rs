//! The names of settings in messages. A test in `config/schema.rs` checks that each is a key of the configuration.
//!
//! A message that must be a string literal repeats the name. A test compares this message with the constant.

macro_rules! settings {
    ($($name:ident = $key:literal;)+) => {
        $(
            #[doc = concat!("`", $key, "`.")]
            pub const $name: &str = $key;
        )+

        /// All names in this module.
        pub const ALL: &[&str] = &[$($name),+];
    };
}

settings! {
    HOSTNAME = "hostname";
    WORKERS = "workers";
    DRAIN_DEADLINE = "drain-deadline";
    STATE_DIRECTORY = "state-directory";
    LISTEN_PROXIES = "listen.proxies";
    TLS_CERTIFICATE = "tls.certificate";
    TLS_PRIVATE_KEY = "tls.private-key";
    TLS_CERTIFICATES_CERTIFICATE = "tls.certificates.certificate";
    TLS_CERTIFICATES_PRIVATE_KEY = "tls.certificates.private-key";
    TLS_ACME = "tls.acme";
    TLS_ACME_DIRECTORY = "tls.acme.directory";
    TLS_ACME_DIRECTORY_CA_FILE = "tls.acme.directory-ca-file";
    TLS_ACME_DOMAINS = "tls.acme.domains";
    TLS_ACME_CHALLENGE = "tls.acme.challenge";
    TLS_ACME_EAB_KEY_FILE = "tls.acme.eab-key-file";
    TLS_ACME_STATE_DIRECTORY = "tls.acme.state-directory";
    RELAY_ADDRESSES = "relay.addresses";
    RELAY_EXTERNAL = "relay.external";
    RELAY_PORTS = "relay.ports";
    AUTH_SECRETS = "auth.secrets";
    AUTH_SECRETS_FILE = "auth.secrets-file";
    AUTH_REDIS = "auth.redis";
    AUTH_REDIS_URL = "auth.redis.url";
    AUTH_REDIS_PASSWORD_FILE = "auth.redis.password-file";
    AUTH_REDIS_CA_FILE = "auth.redis.ca-file";
    OFFLOAD_MODE = "offload.mode";
    PEERS_ALLOW = "peers.allow";
    STATIC_USER_ALLOCATIONS = "auth.users.allocations";
    ALLOCATIONS_PER_USER = "limits.allocations-per-user";
    ALLOCATIONS_PER_SECOND_PER_USER = "limits.allocations-per-second-per-user";
    ALLOCATIONS = "limits.allocations";
    PERMISSIONS_PER_ALLOCATION = "limits.permissions-per-allocation";
    CHANNELS_PER_ALLOCATION = "limits.channels-per-allocation";
    PEERS_PER_SECOND = "limits.peers-per-second";
    BYTES_PER_SECOND_PER_ALLOCATION = "limits.bytes-per-second-per-allocation";
    BYTES_PER_SECOND_PER_USER = "limits.bytes-per-second-per-user";
    CONNECTIONS = "limits.connections";
    CONNECTIONS_PER_SOURCE = "limits.connections-per-source";
    ALLOCATED_CONNECTIONS_PER_SOURCE = "limits.allocated-connections-per-source";
    FAILED_AUTHENTICATIONS = "limits.failed-authentications";
    ALTERNATE_WHEN = "alternate.when";
    RFC5766_CHANNELS = "compat.rfc5766-channels";
    CONTROL_SOCKET = "control.socket";
    HTTP_LISTEN = "http.listen";
    FRONT_LISTEN = "front.listen";
    HTTP_KEYS = "http.keys";
    HTTP_KEYS_FILE = "http.keys-file";
    HTTP_METRICS_FROM = "http.metrics-from";
    HTTP_METRICS_TOKEN_FILE = "http.metrics-token-file";
    FLEET_SERVERS = "fleet.servers";
    FLEET_PASSWORD_FILE = "fleet.password-file";
    FLEET_CA_FILE = "fleet.ca-file";
    FLEET_REGIONS_FILE = "fleet.regions-file";
    WEBHOOK_URL = "webhook.url";
    WEBHOOK_SECRET_FILE = "webhook.secret-file";
    WEBHOOK_CA_FILE = "webhook.ca-file";
    WEBHOOK_SPOOL = "webhook.spool";
    REDIS_STATUS_URL = "redis-status.url";
    REDIS_STATUS_PASSWORD_FILE = "redis-status.password-file";
    REDIS_STATUS_CA_FILE = "redis-status.ca-file";
}

/// The limit of open files, which is a setting of the systemd unit.
pub const OPEN_FILES: &str = "LimitNOFILE";

/// The limit of address space, as the setting of a systemd unit and as a command of a shell.
pub const ADDRESS_SPACE: &str = "LimitAS, `ulimit -v`";

/// Returns the name by which the operator sets a setting. Only a service has the settings of a systemd unit.
pub fn name_for_operator(setting: &'static str, is_service: bool) -> &'static str {
    if setting == OPEN_FILES && !is_service { "ulimit -n" } else { setting }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_key_has_one_name() {
        let distinct: HashSet<&&str> = ALL.iter().collect();
        assert_eq!(distinct.len(), ALL.len());
    }

    #[test]
    fn at_a_shell_the_limit_of_open_files_has_the_name_of_the_shell() {
        assert_eq!(name_for_operator(OPEN_FILES, true), "LimitNOFILE");
        assert_eq!(name_for_operator(OPEN_FILES, false), "ulimit -n");
        assert_eq!(name_for_operator(WORKERS, false), WORKERS);
    }

    #[test]
    fn the_systemd_unit_sets_the_limit_of_open_files() {
        let unit = include_str!("../systemd/turnserver.service");
        assert!(unit.lines().any(|line| line.starts_with(&format!("{OPEN_FILES}="))));
    }
}
