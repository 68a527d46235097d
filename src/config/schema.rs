//! The valid keys of each table, shared by the reader, the suggestions and the tests of the documents.

/// One table of the file and its keys.
pub(super) struct TableKeys {
    /// The dotted path of the table; empty for the top level.
    pub(super) path: &'static str,
    pub(super) keys: &'static [&'static str],
}

impl TableKeys {
    /// Returns the name of the table for a message.
    pub(super) fn name(&self) -> String {
        match self.path {
            "" => "the top level".to_owned(),
            "auth.users" | "http.keys" | "tls.certificates" | "front" => format!("`[[{}]]`", self.path),
            path => format!("`[{path}]`"),
        }
    }
}

pub(super) const TOP: TableKeys = TableKeys {
    path: "",
    keys: &[
        "realm",
        "hostname",
        "node",
        "workers",
        "drain-deadline",
        "state-directory",
        "listen",
        "tls",
        "relay",
        "auth",
        "peers",
        "limits",
        "timeouts",
        "alternate",
        "compat",
        "offload",
        "log",
        "control",
        "http",
        "front",
        "fleet",
        "webhook",
        "redis-status",
    ],
};
pub(super) const LISTEN: TableKeys = TableKeys { path: "listen", keys: &["udp", "tcp", "tls", "proxies"] };
pub(super) const TLS: TableKeys =
    TableKeys { path: "tls", keys: &["certificate", "private-key", "certificates", "acme"] };
pub(super) const TLS_CERTIFICATE: TableKeys =
    TableKeys { path: "tls.certificates", keys: &["certificate", "private-key"] };
pub(super) const ACME: TableKeys = TableKeys {
    path: "tls.acme",
    keys: &[
        "domains",
        "contact",
        "directory",
        "directory-ca-file",
        "profile",
        "terms-agreed",
        "eab-key-id",
        "eab-key-file",
        "challenge",
        "state-directory",
    ],
};
pub(super) const RELAY: TableKeys = TableKeys { path: "relay", keys: &["addresses", "external", "ports"] };
pub(super) const AUTH: TableKeys =
    TableKeys { path: "auth", keys: &["secrets", "secrets-file", "nonce-lifetime", "expiry-grace", "users", "redis"] };
pub(super) const REDIS: TableKeys = TableKeys {
    path: "auth.redis",
    keys: &[
        "url",
        "username",
        "password-file",
        "database",
        "ca-file",
        "time-limit",
        "found-for",
        "absent-for",
        "stale-for",
        "cached-users",
        "lookups-per-second",
        "lookups-per-second-per-source",
        "when-unavailable",
    ],
};
pub(super) const USER: TableKeys = TableKeys { path: "auth.users", keys: &["name", "password", "key", "allocations"] };
pub(super) const PEERS: TableKeys = TableKeys { path: "peers", keys: &["allow", "deny", "nat64-prefixes"] };
pub(super) const LIMITS: TableKeys = TableKeys {
    path: "limits",
    keys: &[
        "allocations-per-user",
        "allocations",
        "allocations-per-second-per-user",
        "permissions-per-allocation",
        "channels-per-allocation",
        "peers-per-second",
        "bytes-per-second-per-allocation",
        "bytes-per-second-per-user",
        "connections",
        "connections-per-source",
        "allocated-connections-per-source",
        "unverified-responses",
        "failed-authentications",
    ],
};
pub(super) const TIMEOUTS: TableKeys =
    TableKeys { path: "timeouts", keys: &["tls-handshake", "first-request", "idle", "unauthenticated"] };
pub(super) const ALTERNATE: TableKeys =
    TableKeys { path: "alternate", keys: &["servers", "tls-servers", "domain", "when"] };
pub(super) const COMPAT: TableKeys =
    TableKeys { path: "compat", keys: &["rfc5766-channels", "draft-dual-allocation", "icmp-indications"] };
pub(super) const OFFLOAD: TableKeys = TableKeys { path: "offload", keys: &["mode", "interfaces", "channels"] };
pub(super) const LOG: TableKeys =
    TableKeys { path: "log", keys: &["level", "format", "client-addresses", "usernames"] };

pub(super) const CONTROL: TableKeys = TableKeys { path: "control", keys: &["socket"] };
pub(super) const HTTP: TableKeys = TableKeys {
    path: "http",
    keys: &["listen", "tls", "url", "metrics-from", "metrics-token-file", "keys-file", "keys"],
};
pub(super) const HTTP_KEY: TableKeys =
    TableKeys { path: "http.keys", keys: &["name", "sha256", "ttl", "user-prefix", "origins", "requests-per-second"] };

pub(super) const FRONT: TableKeys = TableKeys {
    path: "front",
    keys: &["listen", "web", "names", "without-name", "http", "proxy-protocol", "connections", "idle"],
};

pub(super) const FLEET: TableKeys = TableKeys {
    path: "fleet",
    keys: &[
        "servers",
        "user",
        "password-file",
        "ca-file",
        "name",
        "region",
        "weight",
        "urls",
        "limits",
        "regions-file",
        "nodes-per-credential",
        "replicas",
    ],
};

pub(super) const WEBHOOK: TableKeys = TableKeys {
    path: "webhook",
    keys: &["url", "secret-file", "events", "batch", "interval", "spool", "timeout", "ca-file", "allow-http"],
};

pub(super) const REDIS_STATUS: TableKeys =
    TableKeys { path: "redis-status", keys: &["url", "username", "password-file", "database", "ca-file"] };

pub(super) const ALL: &[&TableKeys] = &[
    &TOP,
    &LISTEN,
    &TLS,
    &TLS_CERTIFICATE,
    &ACME,
    &RELAY,
    &AUTH,
    &REDIS,
    &USER,
    &PEERS,
    &LIMITS,
    &TIMEOUTS,
    &ALTERNATE,
    &COMPAT,
    &OFFLOAD,
    &LOG,
    &CONTROL,
    &HTTP,
    &HTTP_KEY,
    &FRONT,
    &FLEET,
    &WEBHOOK,
    &REDIS_STATUS,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setting;
    use crate::transport::Transport;

    fn is_key(name: &str) -> bool {
        let (path, key) = name.rsplit_once('.').unwrap_or(("", name));
        ALL.iter().any(|table| table.path == path && table.keys.contains(&key))
    }

    #[test]
    fn every_setting_that_a_message_names_is_a_key() {
        for name in setting::ALL {
            assert!(is_key(name), "{name}");
        }
    }

    #[test]
    fn the_listeners_of_each_transport_have_a_key() {
        for transport in Transport::ALL {
            assert!(is_key(&format!("listen.{transport}")));
        }
        assert_eq!(LISTEN.keys.len(), Transport::ALL.len() + 1, "and the proxies");
    }
}
