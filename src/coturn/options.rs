//! The options of coturn, and what this server has in their place.
//!
//! The names are those of coturn 4.17, and those of earlier versions that configurations still contain.

use Argument::{Nothing, Optional, Presence, Required, Switch};

/// An option of coturn, in its file or on its command line.
#[derive(Debug)]
pub struct CoturnOption {
    /// The long name.
    pub name: &'static str,
    /// The letter on the command line.
    pub(super) short: Option<char>,
    pub(super) argument: Argument,
    /// What this server has in its place.
    pub rule: Rule,
    /// Whether the value must not be shown.
    pub(super) is_secret: bool,
}

/// Whether an option has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Argument {
    /// None, or a value that turns the option off.
    Switch,
    /// None. coturn ignores a value: the option is on wherever it stands.
    Presence,
    /// None for the default, or a value.
    Optional,
    /// Always.
    Required,
    /// Never.
    Nothing,
}

/// What this server has in place of an option. The texts are clauses for the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The value decides. These keys have its place; empty if none has.
    Convert(&'static [&'static str]),
    /// What the option turns on is the default here.
    Default(&'static str),
    /// The option has no use here.
    Dropped(&'static str),
    /// The option cannot be taken over. The text also says what to do instead.
    Never(&'static str),
    /// It is an option of `turnadmin`, which the server ignores.
    Admin,
}

impl CoturnOption {
    const fn new(name: &'static str, argument: Argument, rule: Rule) -> Self {
        Self { name, short: None, argument, rule, is_secret: false }
    }

    const fn short(self, letter: char) -> Self {
        Self { short: Some(letter), ..self }
    }

    const fn secret(self) -> Self {
        Self { is_secret: true, ..self }
    }

    /// Whether the option stands in a file of coturn. `turnadmin` has its options on the command line only.
    #[must_use]
    pub fn is_of_the_server(&self) -> bool {
        self.rule != Rule::Admin
    }
}

/// Returns the option with this long name.
#[must_use]
pub fn find(name: &str) -> Option<&'static CoturnOption> {
    OPTIONS.binary_search_by(|option| option.name.cmp(name)).ok().and_then(|at| OPTIONS.get(at))
}

/// Returns the option with this letter.
pub(super) fn find_short(letter: char) -> Option<&'static CoturnOption> {
    OPTIONS.iter().find(|option| option.short == Some(letter))
}

/// Returns the options whose names start with `prefix`, which `getopt_long` accepts if there is one.
pub(super) fn abbreviated(prefix: &str) -> impl Iterator<Item = &'static CoturnOption> {
    OPTIONS.iter().filter(move |option| option.is_of_the_server() && option.name.starts_with(prefix))
}

/// Returns the option of which `name` is probably a misspelling.
pub(super) fn similar(name: &str) -> Option<&'static CoturnOption> {
    let name = name.to_lowercase().replace('_', "-");
    OPTIONS
        .iter()
        .filter(|option| option.is_of_the_server())
        .map(|option| (strsim::damerau_levenshtein(&name, option.name), option))
        .filter(|(distance, option)| *distance <= (option.name.len() / 4).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, option)| option)
}

const fn convert(name: &'static str, argument: Argument, ours: &'static [&'static str]) -> CoturnOption {
    CoturnOption::new(name, argument, Rule::Convert(ours))
}

const fn default(name: &'static str, argument: Argument, why: &'static str) -> CoturnOption {
    CoturnOption::new(name, argument, Rule::Default(why))
}

const fn dropped(name: &'static str, argument: Argument, why: &'static str) -> CoturnOption {
    CoturnOption::new(name, argument, Rule::Dropped(why))
}

const fn never(name: &'static str, argument: Argument, instead: &'static str) -> CoturnOption {
    CoturnOption::new(name, argument, Rule::Never(instead))
}

const fn admin(name: &'static str, argument: Argument) -> CoturnOption {
    CoturnOption::new(name, argument, Rule::Admin)
}

/// All options, sorted by name.
pub static OPTIONS: &[CoturnOption] = &[
    never(
        "CA-file",
        Required,
        "clients are not asked for certificates: they authenticate with TURN credentials",
    ),
    convert("Verbose", Switch, &["log.level"]).short('V'),
    never(
        "acme-redirect",
        Required,
        "the server does not serve ACME challenges: use a DNS challenge, or a web server on port 80",
    ),
    admin("add", Nothing),
    admin("add-admin", Nothing),
    admin("add-origin", Nothing),
    convert("allocation-default-address-family", Required, &[]).short('A'),
    convert("allow-loopback-peers", Switch, &["peers.allow"]),
    convert("allowed-peer-ip", Required, &["peers.allow"]),
    dropped(
        "alt-listening-port",
        Required,
        "it serves NAT behavior discovery (RFC 5780) only, which WebRTC clients do not use",
    ),
    dropped(
        "alt-tls-listening-port",
        Required,
        "it serves NAT behavior discovery (RFC 5780) only, which WebRTC clients do not use",
    ),
    convert("alternate-server", Required, &["alternate.servers"]),
    convert("aux-server", Required, &["listen.udp", "listen.tcp"]),
    convert("bps-capacity", Required, &[]).short('B'),
    convert("cert", Required, &["tls.certificate"]),
    convert("channel-lifetime", Optional, &[]),
    dropped("check-origin-consistency", Switch, "ORIGIN is not used; browsers do not send it"),
    dropped(
        "cipher-list",
        Required,
        "the ciphers are those of rustls for TLS 1.2 and 1.3, all of them with forward secrecy",
    ),
    dropped(
        "cli",
        Switch,
        "`turnserver ctl` takes its place, over a Unix socket that only the server's user and group can use",
    ),
    dropped("cli-ip", Required, "there is no telnet interface; use `turnserver ctl`"),
    dropped(
        "cli-max-output-sessions",
        Required,
        "there is no telnet interface; use `turnserver ctl sessions`",
    ),
    dropped(
        "cli-password",
        Required,
        "there is no telnet interface; `turnserver ctl` needs the rights of the server's user or group",
    ).secret(),
    dropped("cli-port", Required, "there is no telnet interface; use `turnserver ctl`"),
    convert("cpus", Required, &["workers"]),
    dropped(
        "daemon",
        Switch,
        "the server runs in the foreground; the systemd unit runs it as a service",
    ).short('o'),
    convert("db", Required, &[]),
    admin("del-origin", Nothing),
    admin("delete", Nothing),
    admin("delete-admin", Nothing),
    admin("delete-all-secrets", Nothing),
    admin("delete-secret", Required).secret(),
    convert("denied-peer-ip", Required, &["peers.deny"]),
    dropped("dh-file", Required, "there is no DHE cipher, only ECDHE"),
    dropped("dh1066", Switch, "there is no DHE cipher, only ECDHE"),
    dropped("dh2066", Switch, "there is no DHE cipher, only ECDHE"),
    dropped("dh566", Switch, "there is no DHE cipher, only ECDHE"),
    dropped(
        "drain-min-allocations",
        Required,
        "a server that drains ends with its last allocation; `turnserver ctl drain --wait` waits for that",
    ),
    default("drop-invalid-packets", Switch, "invalid packets are dropped and counted"),
    dropped(
        "drop-invalid-packets-log",
        Switch,
        "dropped packets are counted in the metrics, by reason",
    ),
    never(
        "dtls",
        Switch,
        "DTLS is not supported; browsers do not use it: clients use `turns:` over TCP",
    ),
    dropped("ec-curve-name", Required, "the curves are X25519, P-256 and P-384"),
    convert("external-ip", Required, &["relay.external"]).short('X'),
    admin("file-key-path", Required),
    default(
        "fingerprint",
        Switch,
        "a response has FINGERPRINT if the request has it (RFC 8489 §7.3)",
    ).short('f'),
    admin("generate-encrypted-password", Nothing),
    admin("generate-encrypted-password-aes", Nothing),
    dropped("help", Nothing, "it only prints a text").short('h'),
    default(
        "include-reason-string",
        Switch,
        "responses to authenticated clients have a reason phrase",
    ),
    never(
        "keep-address-family",
        Switch,
        "a client gets IPv4 unless it asks for IPv6 (RFC 8656 §7.2): let clients send REQUESTED-ADDRESS-FAMILY",
    ).short('K'),
    admin("key", Nothing),
    admin("key-path", Required),
    admin("list", Nothing),
    admin("list-admin", Nothing),
    admin("list-origins", Required),
    admin("list-realm-option", Nothing),
    never(
        "listening-device",
        Required,
        "listeners are bound to addresses, not to a device: write its addresses in `listen.udp` and `listen.tcp`",
    ).short('d'),
    convert("listening-ip", Required, &["listen.udp", "listen.tcp"]).short('L'),
    convert("listening-port", Required, &["listen.udp", "listen.tcp"]).short('p'),
    dropped("log-binding", Switch, "Binding requests are counted in the metrics, not logged"),
    dropped(
        "log-file",
        Required,
        "the log goes to standard error; the systemd unit sends it to the journal (`journalctl -u turnserver`)",
    ).short('l'),
    convert("log-min-level", Required, &["log.level"]),
    default("lt-cred-mech", Switch, "the server always requires credentials").short('a'),
    convert("max-allocate-lifetime", Optional, &[]),
    convert("max-allocate-timeout", Required, &["timeouts.unauthenticated"]),
    convert("max-bps", Required, &["limits.bytes-per-second-per-allocation"]).short('s'),
    convert("max-port", Required, &["relay.ports"]),
    convert("min-port", Required, &["relay.ports"]),
    never(
        "mobility",
        Switch,
        "mobility (RFC 8016) is not supported: clients allocate again when their address changes, as WebRTC clients do \
         with an ICE restart",
    ),
    convert("mongo-userdb", Required, &[]).short('J').secret(),
    dropped(
        "multiplex-peer",
        Nothing,
        "each allocation has a port of its own, as RFC 8656 requires: open all of `relay.ports` in the firewall",
    ),
    dropped(
        "multiplex-peer-max-peers",
        Required,
        "each allocation has a port of its own; see `multiplex-peer`",
    ),
    dropped(
        "multiplex-peer-port",
        Required,
        "each allocation has a port of its own; see `multiplex-peer`",
    ),
    convert("mysql-userdb", Required, &[]).short('M').secret(),
    dropped("ne", Required, "the number of workers is the only choice (`workers`)"),
    dropped(
        "new-log-timestamp",
        Presence,
        "every line of the log has a time in ISO 8601, unless the journal adds it",
    ),
    dropped(
        "new-log-timestamp-format",
        Required,
        "the format of times in the log cannot be changed",
    ),
    never(
        "no-auth",
        Switch,
        "anonymous use cannot be allowed, because a relay without credentials is open to everyone: set a secret in \
         `auth.secrets`, or one user in `[[auth.users]]` for all clients",
    ).short('z'),
    default("no-auth-pings", Presence, "there is no database"),
    default("no-cli", Switch, "there is no telnet interface; `turnserver ctl` uses a Unix socket"),
    default("no-dtls", Switch, "there is no DTLS listener"),
    default("no-dynamic-ip-list", Presence, "there is no list in a database"),
    default("no-dynamic-realms", Presence, "there is one realm"),
    default("no-http", Switch, "there is no HTTP on the ports of clients"),
    default("no-loopback-peers", Switch, "loopback peers are denied"),
    default("no-multicast-peers", Switch, "multicast and broadcast peers are denied"),
    default("no-rfc5780", Presence, "there is no NAT behavior discovery (RFC 5780)"),
    default("no-software-attribute", Switch, "only authenticated clients get SOFTWARE"),
    default("no-sslv2", Switch, "TLS 1.2 and 1.3 are supported, and nothing older"),
    default("no-sslv3", Switch, "TLS 1.2 and 1.3 are supported, and nothing older"),
    default("no-stdout-log", Switch, "the log goes to standard error only"),
    never(
        "no-stun",
        Switch,
        "the server always responds to Binding requests, within the limit for unverified sources (`limits.unverified-responses`)",
    ),
    default("no-stun-backward-compatibility", Switch, "requests of RFC 3489 are dropped"),
    convert("no-tcp", Switch, &["listen.tcp"]),
    default("no-tcp-relay", Switch, "the server relays UDP only"),
    convert("no-tls", Switch, &["listen.tls"]),
    default("no-tlsv1", Switch, "TLS 1.2 and 1.3 are supported, and nothing older"),
    default("no-tlsv1_1", Switch, "TLS 1.2 and 1.3 are supported, and nothing older"),
    never("no-tlsv1_2", Switch, "TLS 1.2 cannot be turned off; clients with TLS 1.3 use 1.3"),
    dropped("no-tlsv1_3", Switch, "TLS 1.3 is always supported, in addition to TLS 1.2"),
    convert("no-udp", Switch, &["listen.udp"]),
    never("no-udp-relay", Switch, "the server relays UDP only, so without it nothing is left"),
    never(
        "oauth",
        Switch,
        "tokens of RFC 7635 are not supported: use time-limited credentials (docs/credentials.md)",
    ),
    admin("origin", Required),
    admin("password", Required).secret(),
    convert("permission-lifetime", Optional, &[]),
    dropped(
        "pidfile",
        Required,
        "the service manager knows the process; the server runs in the foreground",
    ),
    convert("pkey", Required, &["tls.private-key"]),
    never(
        "pkey-pwd",
        Required,
        "an encrypted key cannot be read: decrypt it with `openssl pkey -in OLD -out NEW`, readable by the server only, \
         and name the new file",
    ).secret(),
    dropped(
        "proc-group",
        Required,
        "the systemd unit starts the server with the group `turnserver`",
    ),
    dropped(
        "proc-user",
        Required,
        "the systemd unit starts the server as the user `turnserver`; without it, start the server as the user that it \
         should have",
    ),
    default("prod", Switch, "only authenticated clients get SOFTWARE"),
    convert("prometheus", Presence, &["http.listen"]),
    convert("prometheus-address", Required, &["http.listen"]),
    never(
        "prometheus-cert",
        Required,
        "the metrics use the certificate of `[tls]`: set `http.tls`, and let that certificate cover the name",
    ),
    never(
        "prometheus-key",
        Required,
        "the metrics use the certificate of `[tls]`: see `prometheus-cert`",
    ),
    convert("prometheus-path", Required, &["http.listen"]),
    convert("prometheus-port", Required, &["http.listen"]),
    convert("prometheus-tls", Switch, &["http.tls"]),
    dropped(
        "prometheus-username-labels",
        Presence,
        "the metrics have no labels for users; `turnserver ctl sessions` shows them",
    ),
    convert("psql-userdb", Required, &[]).short('e').secret(),
    never("raw-public-keys", Switch, "raw public keys are not supported: use a certificate"),
    convert("realm", Required, &["realm"]).short('r'),
    convert("redis-statsdb", Required, &["redis-status.url", "redis-status.database"]).short('O').secret(),
    convert("redis-userdb", Required, &["auth.redis.url", "auth.redis.database", "auth.redis.time-limit"]).short('N').secret(),
    never(
        "relay-device",
        Required,
        "relays are bound to addresses, not to a device: write its addresses in `relay.addresses`",
    ).short('i'),
    convert("relay-ip", Required, &["relay.addresses"]).short('E'),
    convert("relay-threads", Required, &["workers"]).short('m'),
    dropped("respond-http-unsupported", Switch, "a connection that does not speak STUN is closed"),
    default("response-origin-only-with-rfc5780", Switch, "responses have no RESPONSE-ORIGIN"),
    convert("rest-api-separator", Required, &[]).short('C'),
    never(
        "rfc3489-compatibility",
        Switch,
        "requests of RFC 3489 are dropped: clients need RFC 5389 or later",
    ),
    convert("rfc5766-channel-numbers", Switch, &["compat.rfc5766-channels"]),
    never(
        "rfc5780",
        Switch,
        "NAT behavior discovery (RFC 5780) is not supported; WebRTC clients do not use it: run another STUN server for \
         clients that do",
    ),
    dropped("secret-key-file", Required, "there is no database with an encrypted password"),
    dropped(
        "secret-ts-exp-time",
        Required,
        "later versions of coturn ignore it: the application writes the expiry into the username",
    ),
    never(
        "secure-stun",
        Switch,
        "the server responds to Binding requests without credentials, within the limit for unverified sources \
         (`limits.unverified-responses`)",
    ),
    convert("server-name", Required, &["hostname"]),
    never(
        "server-relay",
        Switch,
        "peers need a permission (RFC 8656 §9): a server behind the relay must be reached by a client that created one",
    ),
    admin("set-realm-option", Nothing),
    admin("set-secret", Required).secret(),
    dropped("sha256", Switch, "clients choose between SHA-1 and SHA-256 (RFC 8489 §14.6), as in later versions of coturn"),
    admin("show-secret", Nothing),
    dropped("simple-log", Switch, "there is no log file to rotate"),
    dropped(
        "sock-buf-size",
        Required,
        "the server sets the sizes of its socket buffers itself, and says so if the system limits them",
    ),
    dropped(
        "software-attribute",
        Switch,
        "authenticated clients get SOFTWARE; it cannot be changed",
    ),
    convert("sql-userdb", Required, &[]).secret(),
    dropped(
        "st-cred-mech",
        Switch,
        "TURN uses the long-term credential mechanism only (RFC 8656 §5), and so do later versions of coturn",
    ),
    convert("stale-nonce", Optional, &["auth.nonce-lifetime"]),
    default("stateless-nonce", Switch, "nonces are always stateless"),
    default(
        "stateless-nonce-secret",
        Required,
        "nonces are made with the first secret of `auth.secrets`, so servers with the same secret accept each other's",
    ).secret(),
    convert("static-auth-secret", Required, &["auth.secrets"]).secret(),
    never(
        "stun-backward-compatibility",
        Switch,
        "requests of RFC 3489 are dropped: clients need RFC 5389 or later",
    ),
    never(
        "stun-only",
        Switch,
        "allocations cannot be turned off: set a random secret (`openssl rand -hex 32`) in `auth.secrets` that no \
         application has",
    ).short('S'),
    dropped(
        "syslog",
        Switch,
        "the log goes to standard error; the systemd unit sends it to the journal",
    ),
    dropped(
        "syslog-facility",
        Required,
        "the log goes to standard error; the systemd unit sends it to the journal",
    ),
    convert("tcp-alternate-server", Required, &["alternate.servers"]),
    never(
        "tcp-proxy-port",
        Required,
        "a proxy is known by its address and not by the port: add this port to `listen.tcp`, and the addresses of your \
         proxies to `listen.proxies`",
    ),
    convert("tls-alternate-server", Required, &["alternate.tls-servers"]),
    convert("tls-listening-port", Required, &["listen.tls"]),
    never("tlsv1", Switch, "TLS 1.0 is not supported (RFC 8996): clients need TLS 1.2"),
    never("tlsv1_1", Switch, "TLS 1.1 is not supported (RFC 8996): clients need TLS 1.2"),
    convert("total-quota", Required, &["limits.allocations"]).short('Q'),
    convert("udp-alternate-server", Required, &["alternate.servers"]),
    default(
        "udp-gso",
        Switch,
        "packets are sent with GSO where the kernel and the device support it",
    ),
    default("udp-recvmmsg", Switch, "packets are received in batches"),
    dropped("udp-recvmmsg-log", Switch, "batches are counted in the metrics"),
    dropped(
        "udp-self-balance",
        Switch,
        "the kernel distributes the clients over the workers, without a redirection",
    ),
    dropped("udp-sendmmsg-log", Switch, "batches are counted in the metrics"),
    default(
        "unauthorized-ratelimit",
        Switch,
        "responses to unverified sources and failed authentications are limited; see `[limits]`",
    ),
    convert("unauthorized-ratelimit-rps", Optional, &["limits.unverified-responses"]),
    default(
        "use-auth-secret",
        Presence,
        "with a secret in `auth.secrets`, time-limited credentials are accepted",
    ),
    convert("user", Required, &["auth.users"]).short('u').secret(),
    convert("user-quota", Required, &["limits.allocations-per-user"]).short('q'),
    convert("userdb", Required, &[]).short('b'),
    convert("verbose", Switch, &["log.level"]).short('v'),
    admin("verify", Required).secret(),
    dropped("version", Switch, "it only prints a text"),
    never(
        "web-admin",
        Switch,
        "there is no web interface: use `turnserver ctl top`, `turnserver ctl sessions` and the metrics",
    ),
    dropped("web-admin-ip", Required, "there is no web interface; see `web-admin`"),
    dropped("web-admin-listen-on-workers", Switch, "there is no web interface; see `web-admin`"),
    dropped("web-admin-port", Required, "there is no web interface; see `web-admin`"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_are_sorted_and_their_letters_are_unique() {
        assert!(OPTIONS.is_sorted_by(|one, other| one.name < other.name));
        let mut letters: Vec<char> = OPTIONS.iter().filter_map(|option| option.short).collect();
        letters.sort_unstable();
        // The letters of coturn, without `c` and `n`, which select its file.
        let of_coturn = "dpLEXimlrubBeMJNOqQsCKAvVofhzaS";
        let mut expected: Vec<char> = of_coturn.chars().collect();
        expected.sort_unstable();
        assert_eq!(letters, expected);
    }

    #[test]
    fn an_option_is_found_by_its_name_its_letter_and_its_misspelling() {
        assert_eq!(find("realm").map(|option| option.short), Some(Some('r')));
        assert!(find("relam").is_none() && find("").is_none());
        assert_eq!(find_short('X').map(|option| option.name), Some("external-ip"));
        assert_eq!(similar("static_auth_secrets").map(|option| option.name), Some("static-auth-secret"));
        assert_eq!(similar("listening_port").map(|option| option.name), Some("listening-port"));
        assert!(similar("something else").is_none());
        assert_eq!(abbreviated("total").map(|option| option.name).collect::<Vec<_>>(), ["total-quota"]);
    }
}
