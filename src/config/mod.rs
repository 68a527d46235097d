//! The configuration: parses `turnserver.toml` into validated values.
//!
//! Unknown keys, invalid values and contradictions are errors. All errors are reported together, each with its line and
//! column. Valid but probably unintended settings become warnings in [`Config::warnings`].
//! `docs/configuration.md` lists the keys.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, fs, io};

use ipnet::IpNet;
use toml::de::DeTable;
use zeroize::Zeroizing;

use crate::auth::{KeyHash, LongTermKey, Secret};
use crate::file;
use crate::fleet::Prefixes;
use crate::privacy::{ClientAddresses, Usernames};
use crate::special_purpose::Nat64Prefix;
use crate::transport::Endpoint;

mod acme;
mod address_hint;
mod addresses;
mod alternate;
mod changes;
mod coturn;
mod credentials;
mod duration;
mod fleet;
mod front;
mod general;
mod http;
mod http_keys;
mod keys_file;
mod offload;
mod passwords;
mod paths;
mod problem;
mod reader;
mod redis;
mod schema;
pub mod secrets;
mod summary;
mod syntax;
#[cfg(test)]
mod tests;
mod tls;
mod webhook;

pub use acme::{Acme, AcmeChallenge, ExternalAccount};
pub use changes::Change;
pub use duration::{DurationError, format_duration, parse_duration};
pub use http_keys::{KEY_NAME_RULE, is_key_name};
pub use offload::{Offload, OffloadInterfaces, OffloadMode};
pub use problem::{ConfigErrors, Problem};
pub use redis::{Redis, RedisAccess, RedisServer, RedisUnavailable};
pub use summary::Summary;
pub use webhook::{Webhook, WebhookEvent};

pub(crate) use addresses::network;
pub(crate) use credentials::read_failure;
pub(crate) use problem::quoted;

use problem::{Report, position};
use reader::Section;

/// A complete configuration. [`Config::default`] equals an empty file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The realm of the long-term credentials (RFC 8489 §14.9): 1 to 127 characters, no quotes or backslashes.
    pub realm: String,
    /// The name or address by which clients reach this server, in URL form: IPv6 in brackets.
    pub hostname: Option<String>,
    /// `node`: the name of this server in events and in a fleet, of letters, digits, hyphens and underscores. `None`:
    /// the host name of the machine.
    pub node: Option<String>,
    /// The number of workers, 0 to 1024. 0: one per CPU.
    pub workers: usize,
    /// How long the server waits for allocations to end after SIGTERM, at most 1 day. 0: it does not wait.
    pub drain_deadline: Duration,
    /// `[listen]`: the endpoints, UDP before TCP before TLS, each in the order of the file. Never empty. `[::]` also
    /// accepts IPv4. Each port 0 selects a free port. Except for those with port 0, the endpoints of one transport are
    /// distinct. A TLS endpoint may equal a TCP one.
    pub listen: Vec<Endpoint>,
    /// `listen.proxies`: the sources whose connections and datagrams begin with a PROXY header.
    pub proxies: Vec<IpNet>,
    /// The certificates of the TLS and TCP listeners; `Some` if there are TLS listeners.
    pub tls: Option<Tls>,
    /// The relayed transport addresses.
    pub relay: Relay,
    /// Credentials.
    pub auth: Auth,
    /// The peer policy.
    pub peers: Peers,
    /// Limits per user, per allocation and in total.
    pub limits: Limits,
    /// Timeouts of connections.
    pub timeouts: Timeouts,
    /// Alternate servers.
    pub alternate: Alternate,
    /// Deviations from the RFCs for old clients.
    pub compat: Compat,
    /// Relaying by the kernel.
    pub offload: Offload,
    /// What is logged, and how.
    pub log: Log,
    /// The control socket.
    pub control: Control,
    /// The HTTP listeners.
    pub http: Http,
    /// The ports that the relay shares with a web site, with distinct addresses, none of which is that of a TCP or TLS
    /// listener or of an HTTP listener.
    pub fronts: Vec<Front>,
    /// The engine that connects this server with others.
    pub fleet: Option<Fleet>,
    /// Where the events of allocations are sent.
    pub webhook: Option<Webhook>,
    /// Where the status of allocations is written.
    pub redis_status: Option<RedisAccess>,
    /// The directory of what the server keeps over restarts: `state-directory`, or the one that systemd has created.
    pub state_directory: Option<PathBuf>,
    /// The files that the configuration names, except systemd credentials: the key and the path.
    pub files: Vec<(&'static str, PathBuf)>,
    /// The warnings, in the order in which they were found.
    pub warnings: Vec<Problem>,
}

/// `[tls]`: the certificates of the TLS and TCP listeners. The files are read at the start and when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// At least one. The first one is the default: for clients that name no server, and for unknown names.
    pub certificates: Vec<CertificateFiles>,
    /// How the server orders the default certificate; `None` if somebody else renews its files.
    pub acme: Option<Acme>,
}

/// The files of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate and its issuers' certificates, in PEM.
    pub certificate: PathBuf,
    /// Its private key, unencrypted, in PEM.
    pub private_key: PathBuf,
    /// Whether it is one of `[[tls.certificates]]`.
    pub is_further: bool,
    /// Whether the server orders it. Then one file has both the certificate and the key, and it may be missing.
    pub is_ordered: bool,
}

impl CertificateFiles {
    /// Returns the names of the two keys of the configuration: of the certificate, and of its private key.
    #[must_use]
    pub fn settings(&self) -> [&'static str; 2] {
        use crate::setting::{
            TLS_ACME, TLS_CERTIFICATE, TLS_CERTIFICATES_CERTIFICATE, TLS_CERTIFICATES_PRIVATE_KEY, TLS_PRIVATE_KEY,
        };
        if self.is_ordered {
            [TLS_ACME, TLS_ACME]
        } else if self.is_further {
            [TLS_CERTIFICATES_CERTIFICATE, TLS_CERTIFICATES_PRIVATE_KEY]
        } else {
            [TLS_CERTIFICATE, TLS_PRIVATE_KEY]
        }
    }
}

/// The source of the relay addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayAddresses {
    /// Detected from the interfaces of the machine.
    Auto,
    /// Configured: at least one, without duplicates, none unspecified or multicast.
    Given(Vec<IpAddr>),
}

/// `[relay]`: the relayed transport addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// The addresses to which relay sockets are bound.
    pub addresses: RelayAddresses,
    /// 1:1 NAT: an address of this machine, and its public address of the same family. Sorted by the first.
    pub external: Vec<(IpAddr, IpAddr)>,
    /// The ports of the relay sockets; never empty, never contains port 0.
    pub ports: RangeInclusive<u16>,
}

/// `[auth]`: credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// The secrets of time-limited credentials: those of `secrets`, then those of `secrets-file`.
    pub secrets: Vec<Secret>,
    /// Users with a permanent password or key; their names are unique.
    pub users: Vec<StaticUser>,
    /// How long a nonce is accepted, 1 s to 1 day (RFC 8489 §9.2).
    pub nonce_lifetime: Duration,
    /// How far a Refresh may extend an allocation past the expiry of its time-limited credential, at most 365 days.
    pub expiry_grace: Duration,
    /// A Redis server with further static users and secrets.
    pub redis: Option<Redis>,
}

/// `[[auth.users]]`: a user with a permanent password or key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticUser {
    /// The USERNAME that the client sends (RFC 8489 §14.3).
    pub name: String,
    /// The password or the key.
    pub credential: StaticCredential,
    /// Concurrent allocations. 0: no limit.
    pub allocations: u32,
}

/// The credential of a static user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StaticCredential {
    /// `password`.
    Password(Secret),
    /// `key`: the MD5 of `name:realm:password` (RFC 8489 §9.2.2), which is valid in one realm only.
    Key(LongTermKey),
}

impl StaticUser {
    /// Returns the password of a user who has one.
    #[must_use]
    pub fn password(&self) -> Option<&Secret> {
        match &self.credential {
            StaticCredential::Password(password) => Some(password),
            StaticCredential::Key(_) => None,
        }
    }

    /// Returns the key of a user who has one in place of a password.
    #[must_use]
    pub fn key(&self) -> Option<&LongTermKey> {
        match &self.credential {
            StaticCredential::Password(_) => None,
            StaticCredential::Key(key) => Some(key),
        }
    }
}

/// `[peers]`: exceptions from the built-in list of denied ranges. `deny` takes precedence over `allow`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// Ranges that are allowed although the built-in list denies them.
    pub allow: Vec<IpNet>,
    /// Ranges that are always denied.
    pub deny: Vec<IpNet>,
    /// Prefixes of gateways to IPv4. Addresses with these prefixes are judged by the IPv4 address in them.
    pub nat64_prefixes: Vec<Nat64Prefix>,
}

/// `[limits]`: limits per user, per allocation and in total.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Concurrent allocations per user with a time-limited credential that has a name. 0: no limit.
    pub allocations_per_user: u32,
    /// Concurrent allocations in total. 0: as many as there are relay ports.
    pub allocations: u32,
    /// New allocations per second and user, 1 to 1000, with a burst of four seconds' worth, at least 32. 0: no limit.
    pub allocations_per_second_per_user: u32,
    /// Permissions per allocation, at least 1 (RFC 8656 §9).
    pub permissions_per_allocation: u16,
    /// Channels per allocation, 1 to 16 384 (RFC 8656 §12).
    pub channels_per_allocation: u16,
    /// New peer addresses per second and allocation, 1 to 10 000, with a burst of four seconds' worth, at least 64. 0:
    /// no limit.
    pub peers_per_second: u32,
    /// Application data per allocation in bytes per second and direction, with a burst of one second's worth, at least
    /// 64 KiB. 0: no limit.
    pub bytes_per_second_per_allocation: u32,
    /// The same for all allocations of a user together.
    pub bytes_per_second_per_user: u32,
    /// TCP and TLS connections in total. 0: only the limit of open files applies.
    pub connections: u32,
    /// TCP and TLS connections without an allocation per source (an IPv4 address or an IPv6 /64). 0: no limit.
    pub connections_per_source: u32,
    /// TCP and TLS connections with an allocation per source. 0: no limit.
    pub allocated_connections_per_source: u32,
    /// Responses per second to a source that has not proved that it receives them, 1 to 1000. 0: no limit.
    pub unverified_responses: u32,
    /// Failed authentications per second of a source with one username, 1 to 1000. 0: no limit.
    pub failed_authentications: u32,
}

/// `[timeouts]`: timeouts of connections (TCP and TLS).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From the connection to the end of the TLS handshake, 1 s to 5 minutes.
    pub tls_handshake: Duration,
    /// From the end of the handshake to the first request, 1 s to 5 minutes.
    pub first_request: Duration,
    /// From one request to the next, on a connection without an allocation, 1 s to 1 day.
    pub idle: Duration,
    /// From the end of the handshake to the first allocation, 1 s to 1 day.
    pub unauthenticated: Duration,
}

/// `[fleet]`: the engine (NATS) that connects this server with others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// The servers of the engine, at least one.
    pub servers: Vec<FleetServer>,
    /// How this server authenticates to them.
    pub access: FleetAccess,
    /// The certificates, in PEM, of the authorities that their certificates come from. `None`: those that browsers trust.
    pub ca_file: Option<PathBuf>,
    /// The name of the fleet, which begins subjects and the names of buckets.
    pub name: String,
    /// Where this server is.
    pub region: String,
    /// What this server can relay: 100 for 1 Gbit/s. 1 to 1 000 000.
    pub weight: u32,
    /// The TURN URIs that credentials name. Empty: those of the listeners.
    pub urls: Vec<String>,
    /// Whether limits per user apply to each node or to all nodes together.
    pub limits: FleetLimits,
    /// The regions of client prefixes, of `fleet.regions-file`.
    pub regions: Arc<Prefixes>,
    /// The number of nodes in the response to a request for credentials: 1 to 8.
    pub nodes_per_credential: u8,
    /// The number of copies that the engine keeps of what it stores: 1, 3 or 5. `None`: 3 if it can, otherwise 1.
    pub replicas: Option<u8>,
}

/// A server of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetServer {
    /// Whether the connection must use TLS.
    pub tls: bool,
    /// The name or address, in URL form.
    pub host: String,
    /// The port, not 0.
    pub port: u16,
}

/// How a node authenticates to the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FleetAccess {
    /// The engine demands nothing.
    Open,
    /// A user and its password.
    Password(String, Secret),
}

/// To what the limits per user apply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FleetLimits {
    /// To each node.
    #[default]
    Node,
    /// To all nodes together.
    Fleet,
}

impl FleetLimits {
    /// Every choice.
    pub const ALL: [Self; 2] = [Self::Node, Self::Fleet];

    /// Returns the choice as written in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Fleet => "fleet",
        }
    }
}

/// `[alternate]`: the alternate servers for clients that get no allocation here (RFC 8489 §10).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alternate {
    /// Their addresses for UDP and TCP clients, without duplicates. None is the address of a listener.
    pub servers: Vec<SocketAddr>,
    /// The same for TLS clients.
    pub tls_servers: Vec<SocketAddr>,
    /// The DNS name in their certificate, if it differs from this server's (RFC 8489 §14.16).
    pub domain: Option<String>,
    /// Whether the servers are other nodes of the fleet, the least loaded first. Then both lists are empty here.
    pub from_fleet: bool,
    /// When clients are redirected.
    pub when: AlternateWhen,
}

/// When clients are redirected to an alternate server. Each choice includes the preceding ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AlternateWhen {
    /// While this server drains.
    #[default]
    Draining,
    /// When this server has no capacity for further allocations.
    Full,
    /// Always; this server makes no allocations.
    Always,
}

impl AlternateWhen {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Draining, Self::Full, Self::Always];

    /// Returns the choice as written in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Full => "full",
            Self::Always => "always",
        }
    }
}

/// `[compat]`: deviations from the RFCs for old clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compat {
    /// Accepts the channel numbers 0x5000–0x7FFF, which RFC 8656 §12 reserves.
    pub rfc5766_channels: bool,
    /// Also uses 0x8032 for ADDITIONAL-ADDRESS-FAMILY and 0x8033 for ADDRESS-ERROR-CODE, the numbers of a draft of RFC
    /// 8656 that coturn's clients use.
    pub draft_dual_allocation: bool,
    /// Which clients get Data indications about ICMP errors (RFC 8656 §11.5).
    pub icmp_indications: IcmpIndications,
}

/// Which clients get Data indications about ICMP errors (RFC 8656 §11.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IcmpIndications {
    /// Clients that have shown on their allocation that they implement RFC 8489 or RFC 8656.
    #[default]
    Auto,
    /// All clients.
    Always,
    /// No client.
    Never,
}

impl IcmpIndications {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Always, Self::Never];

    /// Returns the choice as written in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

/// `[control]`: the control socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Its place.
    pub socket: ControlSocket,
}

/// The place of the control socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ControlSocket {
    /// [`CONTROL_SOCKET`], if its directory exists. The systemd unit creates the directory.
    #[default]
    Default,
    /// This path. The start fails if the socket cannot be created.
    At(PathBuf),
    /// There is no control socket.
    None,
}

/// The default path of the control socket.
pub const CONTROL_SOCKET: &str = "/run/turnserver/control.sock";

impl ControlSocket {
    /// Returns the path; `None` if there is no control socket.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Default => Some(Path::new(CONTROL_SOCKET)),
            Self::At(path) => Some(path),
            Self::None => None,
        }
    }
}

/// `[http]`: the HTTP listeners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Http {
    /// Their addresses. `[::]` also accepts IPv4. Each port 0 selects a free port.
    pub listen: Vec<SocketAddr>,
    /// Whether their clients use TLS, with the certificate of `[tls]`.
    pub tls: bool,
    /// The URL at which browsers reach the listeners, without a slash at the end, if the addresses do not tell it.
    pub url: Option<String>,
    /// The sources that may read metrics and health, in addition to this machine.
    pub metrics_from: Vec<IpNet>,
    /// Whoever sends this token as `Authorization: Bearer` may read them, too.
    pub metrics_token: Option<Secret>,
    /// The keys with which applications get credentials, with distinct names and hashes: those of `keys`, then those of
    /// `keys-file`.
    pub keys: Vec<HttpKey>,
}

/// `[[http.keys]]`: a key with which an application gets credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpKey {
    /// The name, for the log and for paths: 1 to 64 letters, digits, dots, hyphens and underscores.
    pub name: String,
    /// The SHA-256 of the key.
    pub hash: KeyHash,
    /// The longest lifetime of a credential, 1 minute to 365 days.
    pub ttl: Duration,
    /// The beginning of each user's name; empty if any name, or none, is allowed.
    pub user_prefix: String,
    /// The origins of pages (RFC 6454 §6.2) that may use the key.
    pub origins: Vec<String>,
    /// Requests per second, 0 to 10 000, with a burst of four seconds' worth. 0: no limit.
    pub requests_per_second: u32,
}

/// `[[front]]`: a port that the relay shares with a web site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Front {
    /// The address of the listener. `[::]` also accepts IPv4. Port 0 selects a free port.
    pub listen: SocketAddr,
    /// The web site.
    pub web: WebSite,
    /// The server names of the relay (RFC 6066 §3).
    pub names: Vec<String>,
    /// Who gets TLS clients that send no server name.
    pub without_name: WithoutName,
    /// Whether browsers that use a name of the relay get the pages of `[http]` in place of the web site.
    pub http: bool,
    /// Whether the web site gets the addresses of its visitors in a PROXY header of version 2.
    pub proxy_protocol: bool,
    /// Connections at the same time, 1 to 1 000 000.
    pub connections: u32,
    /// The longest time without data between a visitor and the web site, 1 s to 1 day.
    pub idle: Duration,
}

/// The port of HTTP, at which clients begin without TLS.
pub(crate) const HTTP_PORT: u16 = 80;

/// Where the web site behind a front listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WebSite {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for WebSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Who gets TLS clients of a front that send no server name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WithoutName {
    /// The web site.
    #[default]
    Web,
    /// The relay.
    Relay,
}

impl WithoutName {
    /// Every choice.
    pub const ALL: [Self; 2] = [Self::Web, Self::Relay];

    /// Returns the choice as written in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Web => "web",
            Self::Relay => "relay",
        }
    }
}

/// `[log]`: what is logged, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// The least severe level that is logged.
    pub level: LogLevel,
    /// The format of a line.
    pub format: LogFormat,
    /// How lines show the addresses of clients and peers.
    pub client_addresses: ClientAddresses,
    /// How lines show the names of users.
    pub usernames: Usernames,
}

/// The least severe level that is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// Failures that prevent the server from working.
    Error,
    /// Conditions that need the operator's attention.
    Warn,
    /// Events of the process and of allocations.
    #[default]
    Info,
    /// The reasons for individual decisions.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// Every level, from the fewest lines to the most.
    pub const ALL: [Self; 5] = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// Returns the level as written in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The format of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Human-readable text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl LogFormat {
    /// Every format.
    pub const ALL: [Self; 2] = [Self::Text, Self::Json];

    /// Returns the format as written in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            realm: "turnserver".to_owned(),
            hostname: None,
            node: None,
            workers: 0,
            drain_deadline: Duration::from_secs(1),
            listen: addresses::default_listen(),
            proxies: Vec::new(),
            tls: None,
            relay: Relay::default(),
            auth: Auth::default(),
            peers: Peers::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            alternate: Alternate::default(),
            compat: Compat::default(),
            offload: Offload::default(),
            log: Log::default(),
            control: Control::default(),
            http: Http::default(),
            fronts: Vec::new(),
            fleet: None,
            webhook: None,
            redis_status: None,
            state_directory: None,
            files: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

impl Default for Relay {
    fn default() -> Self {
        Self { addresses: RelayAddresses::Auto, external: Vec::new(), ports: 49_152..=65_535 }
    }
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            secrets: Vec::new(),
            users: Vec::new(),
            nonce_lifetime: Duration::from_secs(3_600),
            expiry_grace: Duration::from_secs(3_600),
            redis: None,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            allocations_per_user: 32,
            allocations: 0,
            allocations_per_second_per_user: 8,
            permissions_per_allocation: 256,
            channels_per_allocation: 256,
            peers_per_second: 0,
            bytes_per_second_per_allocation: 0,
            bytes_per_second_per_user: 0,
            connections: 10_000,
            connections_per_source: 500,
            allocated_connections_per_source: 0,
            unverified_responses: 50,
            failed_authentications: 5,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tls_handshake: Duration::from_secs(10),
            first_request: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            unauthenticated: Duration::from_secs(300),
        }
    }
}

impl Config {
    /// Reads and checks a configuration file and the files of secrets and keys that it names.
    ///
    /// # Errors
    ///
    /// All errors in the file, or that the file cannot be read.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let name = path.display().to_string();
        let mut bytes = read_bytes(path, &name)?;
        let text = String::from_utf8(std::mem::take(&mut *bytes)).map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            let before = String::from_utf8_lossy(error.as_bytes().get(..valid).unwrap_or_default());
            let message = "invalid UTF-8: save the file as UTF-8".to_owned();
            let position = Some(position(&before, valid));
            ConfigErrors::new(&name, vec![Problem { file: name.clone(), position, message }])
        })?;
        let text = Zeroizing::new(text);
        let mut report = Report::new(&name, &text);
        report.directory = path.parent().unwrap_or(Path::new("")).to_owned();
        report.world_readable = credentials::readable_by_others(path);
        Self::check(report)
    }

    /// Returns the control socket of a configuration, whatever else is wrong with it: the server that is to read the
    /// file may run with an earlier version of it, and with files that are not readable here.
    ///
    /// # Errors
    /// If the file cannot be read, or if `control.socket` is wrong.
    pub fn control_socket(path: &Path) -> Result<ControlSocket, ConfigErrors> {
        let name = path.display().to_string();
        let bytes = read_bytes(path, &name)?;
        let text = String::from_utf8_lossy(&bytes);
        let mut report = Report::new(&name, &text);
        report.directory = path.parent().unwrap_or(Path::new("")).to_owned();
        let (document, syntax_errors) = DeTable::parse_recoverable(report.text());
        let socket = http::control_socket(document.get_ref(), &mut report);
        if socket == ControlSocket::Default && !syntax_errors.is_empty() && http::mentions_control(report.text()) {
            // The server may have another socket.
            syntax::report_errors(&syntax_errors, &mut report);
        }
        if report.errors.is_empty() { Ok(socket) } else { Err(ConfigErrors::new(report.file(), report.errors)) }
    }

    /// Parses and checks a configuration text.
    ///
    /// `file_name` is used in error messages, and relative paths start at its directory.
    ///
    /// # Errors
    ///
    /// All errors, in the order of the file.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, ConfigErrors> {
        Self::check(Report::new(file_name, text))
    }

    fn check(mut report: Report<'_>) -> Result<Self, ConfigErrors> {
        let (document, syntax_errors) = DeTable::parse_recoverable(report.text());
        let mut config = Self::default();
        if syntax_errors.is_empty() {
            config = Self::read(document.get_ref(), &mut report);
            // A configuration of coturn has no tables.
            let has_table = document.get_ref().values().any(|value| value.get_ref().as_table().is_some());
            if !report.errors.is_empty() && !has_table && coturn::is_file(report.text()) {
                report.errors.clear();
                coturn::report_file(&mut report);
            }
        } else if coturn::is_file(report.text()) {
            coturn::report_file(&mut report);
        } else {
            // With syntax errors the meaning of the rest is uncertain, so only these are reported.
            syntax::report_errors(&syntax_errors, &mut report);
        }
        if report.errors.is_empty() {
            config.warnings = report.warnings;
            Ok(config)
        } else {
            Err(ConfigErrors::new(report.file(), report.errors))
        }
    }

    /// Reads all sections; errors in one section do not prevent reading the others.
    fn read(document: &DeTable<'_>, report: &mut Report<'_>) -> Self {
        let top = Section::new(&schema::TOP, document, report);
        let workers = general::workers(&top, report);
        let (listen, proxies) = addresses::listen(&top, report);
        let limits = general::limits(&top, report);
        let relay = addresses::relay(&top, &limits, report);
        addresses::warn_of_port_overlap(&top, &listen, &relay, report);
        let alternate = alternate::alternate(&top, &listen, report);
        let http = http::http(&top, report);
        let auth = credentials::auth(&top, report);
        http_keys::warn_without_secret(&top, &http, &auth, report);
        credentials::warn_of_keys_without_realm(&top, &auth, report);
        let hostname = general::hostname(&top, report);
        let fronts = front::fronts(&top, &listen, &http, hostname.as_deref(), report);
        // What is wrong with a front has been reported.
        let other_tls = http.tls || top.value("front").is_some();
        let state_directory = paths::state_directory(&top, report);
        let tls = tls::tls(&top, &listen, other_tls, state_directory.as_deref(), report);
        acme::warn_of_unreachable(&top, tls.as_ref(), &listen, &http, &fronts, report);
        acme::warn_of_other_names(&top, tls.as_ref(), hostname.as_deref(), &fronts, report);
        let webhook = webhook::webhook(&top, report);
        webhook::warn_without_state(&top, webhook.as_ref(), state_directory.as_deref(), report);
        Self {
            realm: general::realm(&top, report),
            hostname,
            node: fleet::node(&top, report),
            workers,
            drain_deadline: general::drain_deadline(&top, report),
            tls,
            listen,
            proxies,
            relay,
            auth,
            peers: addresses::peers(&top, report),
            limits,
            timeouts: general::timeouts(&top, report),
            alternate,
            compat: general::compat(&top, report),
            offload: offload::offload(&top, report),
            log: general::log(&top, report),
            control: http::control(&top, report),
            http,
            fronts,
            fleet: fleet::fleet(&top, report),
            webhook,
            redis_status: redis::redis_status(&top, report),
            state_directory,
            files: paths::files(document, &report.directory),
            warnings: Vec::new(),
        }
    }

    /// Returns a human-readable summary of this configuration.
    pub fn summary(&self) -> Summary<'_> {
        Summary::new(self)
    }
}

/// Returns the configuration file that is used by default: `turnserver.toml` in the working directory, otherwise
/// `/etc/turnserver/turnserver.toml`, if one of them exists.
pub fn default_path() -> Option<PathBuf> {
    default_path_in(Path::new(""))
}

/// Returns the configuration file that is used by default in a working directory.
pub(crate) fn default_path_in(directory: &Path) -> Option<PathBuf> {
    ["turnserver.toml", "/etc/turnserver/turnserver.toml"]
        .into_iter()
        .map(|path| directory.join(path))
        // A file that exists but cannot be accessed, such as a dangling symbolic link, is an error later; it must not be
        // skipped.
        .find(|path| !matches!(fs::symlink_metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound))
}

/// Reads a file. `name` is its name in the error.
fn read_bytes(path: &Path, name: &str) -> Result<Zeroizing<Vec<u8>>, ConfigErrors> {
    file::read(path).map_err(|error| {
        let reason = dangling_link(path).unwrap_or_else(|| read_failure(&error));
        let message = format!("cannot be read: {reason}");
        ConfigErrors::new(name, vec![Problem { file: name.to_owned(), position: None, message }])
    })
}

/// Describes a symbolic link whose target does not exist.
fn dangling_link(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    let missing = matches!(fs::metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound);
    missing.then(|| format!("it is a symbolic link to {}, which does not exist", quoted(&target.display().to_string())))
}
