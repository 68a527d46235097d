//! Recognizes the keys of coturn's `turnserver.conf`, which is easily taken for `turnserver.toml`.

use std::ops::Range;

use super::problem::Report;

/// The keys of coturn that its configurations usually contain, and the corresponding key of this server; empty without
/// one. Keys that this server has too are not in the list.
const KEYS: &[(&str, &str)] = &[
    ("Verbose", "log.level"),
    ("allow-loopback-peers", "peers.allow"),
    ("allowed-peer-ip", "peers.allow"),
    ("alternate-server", "alternate.servers"),
    ("bps-capacity", ""),
    ("cert", "tls.certificate"),
    ("cipher-list", ""),
    ("cli-password", ""),
    ("denied-peer-ip", "peers.deny"),
    ("external-ip", "relay.external"),
    ("fingerprint", ""),
    ("listening-ip", "listen.udp` and `listen.tcp"),
    ("listening-port", "listen.udp` and `listen.tcp"),
    ("log-file", ""),
    ("lt-cred-mech", ""),
    ("max-bps", "limits.bytes-per-second-per-allocation"),
    ("max-port", "relay.ports"),
    ("min-port", "relay.ports"),
    ("mobility", ""),
    ("mysql-userdb", ""),
    ("no-cli", ""),
    ("no-dtls", ""),
    ("no-loopback-peers", ""),
    ("no-multicast-peers", ""),
    ("no-rfc5780", ""),
    ("no-software-attribute", ""),
    ("no-stdout-log", ""),
    ("no-stun-backward-compatibility", ""),
    ("no-tcp", "listen.tcp"),
    ("no-tcp-relay", ""),
    ("no-tls", "listen.tls"),
    ("no-tlsv1", ""),
    ("no-tlsv1_1", ""),
    ("no-udp", "listen.udp"),
    ("pidfile", ""),
    ("pkey", "tls.private-key"),
    ("proc-group", ""),
    ("proc-user", ""),
    ("prometheus", ""),
    ("psql-userdb", ""),
    ("redis-userdb", ""),
    ("relay-ip", "relay.addresses"),
    ("response-origin-only-with-rfc5780", ""),
    ("server-name", ""),
    ("simple-log", ""),
    ("stale-nonce", "auth.nonce-lifetime"),
    ("static-auth-secret", "auth.secrets"),
    ("syslog", ""),
    ("tls-listening-port", "listen.tls"),
    ("total-quota", "limits.allocations"),
    ("use-auth-secret", ""),
    ("user", "auth.users"),
    ("user-quota", "limits.allocations-per-user"),
    ("userdb", ""),
    ("verbose", "log.level"),
];

/// The number of different keys of coturn from which a file counts as a configuration of coturn.
const ENOUGH: usize = 2;

/// Returns the hint for a key of coturn.
pub(super) fn hint(key: &str) -> Option<String> {
    let (_, ours) = KEYS.iter().find(|(name, _)| *name == key)?;
    Some(match *ours {
        "" => format!("`{key}` is a key of coturn without a counterpart: remove it"),
        ours if key.starts_with("no-") => format!("`{key}` is a key of coturn; use `{ours} = []`"),
        ours => format!("`{key}` is a key of coturn; use `{ours}`"),
    })
}

/// Returns whether a text is probably a configuration of coturn.
pub(super) fn is_file(text: &str) -> bool {
    keys(text).len() >= ENOUGH
}

/// Reports that the file is a configuration of coturn, and each of its keys once.
pub(super) fn report_file(report: &mut Report<'_>) {
    report.error(
        &(0..0),
        "this is a configuration of coturn, but the server reads TOML with keys of its own: start with the \
         turnserver.toml that comes with it",
    );
    for (key, span) in keys(report.text()) {
        report.error(&span, hint(key).unwrap_or_default());
    }
}

/// Returns the keys of coturn at the start of lines, each once, with their spans.
fn keys(text: &str) -> Vec<(&str, Range<usize>)> {
    let mut found: Vec<(&str, Range<usize>)> = Vec::new();
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let start = offset + (line.len() - line.trim_start().len());
        offset += line.len();
        let line = line.trim();
        // coturn has no sections.
        if line.starts_with('[') {
            break;
        }
        let key = line.split(['=', ' ', '\t']).next().unwrap_or_default();
        let is_new = !found.iter().any(|(other, _)| *other == key);
        if is_new && KEYS.iter().any(|(name, _)| *name == key) {
            found.push((key, start..start + key.len()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::schema;

    #[test]
    fn the_keys_are_sorted_and_unique() {
        for pair in KEYS.windows(2) {
            assert!(pair[0].0 < pair[1].0, "{pair:?}");
        }
    }

    #[test]
    fn each_counterpart_is_a_key_and_no_key_of_coturn_is_one_of_the_top_level() {
        for (theirs, ours) in KEYS {
            assert!(!schema::TOP.keys.contains(theirs), "{theirs}");
            for name in ours.split("` and `").filter(|name| !name.is_empty()) {
                let (path, key) = name.split_once('.').unwrap();
                assert!(schema::ALL.iter().any(|table| table.path == path && table.keys.contains(&key)), "{name}");
            }
        }
    }
}
