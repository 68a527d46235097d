//! The configuration: from `turnserver.toml` to values that can be used as they are.
//!
//! A file is read completely before anything is said about it: every unknown key, every value that cannot be used and
//! every contradiction is reported at once, with its line and column, and each one stops the start. What is allowed
//! but probably not meant becomes a warning in [`Config::warnings`]. `docs/configuration.md` lists the keys.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, fs, io};

use ipnet::IpNet;
use toml::de::DeTable;
use zeroize::Zeroizing;

use crate::auth::Secret;

mod addresses;
mod alternate;
mod credentials;
mod duration;
mod general;
mod paths;
mod problem;
mod reader;
mod schema;
mod summary;
#[cfg(test)]
mod tests;
mod tls;

pub use duration::{DurationError, format_duration, parse_duration};
pub use problem::{ConfigErrors, Problem};
pub use summary::Summary;

pub(crate) use credentials::read_failure;

use problem::{Report, position};
use reader::Section;

/// A complete configuration. [`Config::default`] is what an empty file means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The realm of the long-term credentials (RFC 8489 §14.9): 1 to 127 characters, no quotes or backslashes.
    pub realm: String,
    /// The name or address by which clients reach this server, as it stands in a URL: IPv6 in brackets.
    pub hostname: Option<String>,
    /// How many workers to run, 0 to 1024; 0 is one for each CPU.
    pub workers: usize,
    /// How long a stop (SIGTERM) waits for allocations to end, at most 1 day; 0 is not at all.
    pub drain_deadline: Duration,
    /// Where clients are served.
    pub listen: Listen,
    /// The certificate of the TLS listeners; `Some` exactly if there are any.
    pub tls: Option<Tls>,
    /// The relayed transport addresses.
    pub relay: Relay,
    /// Who may allocate.
    pub auth: Auth,
    /// Which peers may be reached.
    pub peers: Peers,
    /// How much one client, and all of them, may take.
    pub limits: Limits,
    /// How long the server waits for clients on connections.
    pub timeouts: Timeouts,
    /// Other servers.
    pub alternate: Alternate,
    /// Deviations from the RFCs for old clients.
    pub compat: Compat,
    /// What is logged, and how.
    pub log: Log,
    /// Things worth saying that do not stop the start, in the order of the file.
    pub warnings: Vec<Problem>,
}

/// `[listen]`: where clients are served; at least one list is not empty. `[::]` takes IPv4 as well; port 0 is any free
/// port, another one in each place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// UDP listeners, all different.
    pub udp: Vec<SocketAddr>,
    /// TCP listeners, all different; they may have the addresses and ports of UDP listeners.
    pub tcp: Vec<SocketAddr>,
    /// TLS listeners, all different, none on a port of a TCP listener; they may have the addresses and ports of UDP
    /// listeners.
    pub tls: Vec<SocketAddr>,
}

/// `[tls]`: the certificate of the TLS listeners. The files are read at the start and when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The certificate and those of its issuers, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM and not encrypted.
    pub private_key: PathBuf,
}

/// Where relayed transport addresses come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayAddresses {
    /// From the interfaces of the machine.
    Auto,
    /// These: at least one, all different, none unspecified or multicast.
    Given(Vec<IpAddr>),
}

/// `[relay]`: the relayed transport addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// The addresses that relay sockets are bound to.
    pub addresses: RelayAddresses,
    /// 1:1 NAT: an address of ours, and the address of the same family that the world sees for it. Sorted by the first.
    pub external: Vec<(IpAddr, IpAddr)>,
    /// The ports of the relay sockets; never empty, never with port 0.
    pub ports: RangeInclusive<u16>,
}

/// `[auth]`: who may allocate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// The secrets of time-limited credentials, those of `secrets` before those of `secrets-file`.
    pub secrets: Vec<Secret>,
    /// Users with a password that does not expire; their names are all different.
    pub users: Vec<StaticUser>,
    /// How long a nonce is accepted, 1 s to 1 day (RFC 8489 §9.2).
    pub nonce_lifetime: Duration,
    /// How far past the expiry of its time-limited credential a Refresh may extend an allocation, at most 365 days.
    pub expiry_grace: Duration,
}

/// `[[auth.users]]`: a user with a password that does not expire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticUser {
    /// The USERNAME that the client sends (RFC 8489 §14.3).
    pub name: String,
    /// The password.
    pub password: Secret,
}

/// `[peers]`: which peers may be reached, beyond the built-in list of denied ranges. `deny` is asked before `allow`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// Ranges that are allowed although the built-in list denies them.
    pub allow: Vec<IpNet>,
    /// Ranges that are denied whatever else holds.
    pub deny: Vec<IpNet>,
}

/// `[limits]`: how much one client, and all of them, may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Allocations of one user at a time; 0 is no limit.
    pub allocations_per_user: u32,
    /// Allocations of all users together; 0 is as many as there are ports.
    pub allocations: u32,
    /// New allocations of one user in a second, 1 to 1000, with a burst of four seconds' worth but at least 32; 0 is no
    /// limit.
    pub allocations_per_second_per_user: u32,
    /// Permissions of one allocation, at least 1 (RFC 8656 §9).
    pub permissions_per_allocation: u16,
    /// Channels of one allocation, 1 to 16 384 (RFC 8656 §12).
    pub channels_per_allocation: u16,
    /// New peer addresses of one allocation in a second, 1 to 10 000, with a burst of four seconds' worth but at least
    /// 64; 0 is no limit.
    pub peers_per_second: u32,
    /// Application data of one allocation in bytes a second, each direction apart, with a burst of one second's worth
    /// but at least 64 KiB; 0 is no limit.
    pub bytes_per_second_per_allocation: u32,
    /// The same for all allocations of one user together.
    pub bytes_per_second_per_user: u32,
    /// TCP and TLS connections of all clients together; 0 is no limit.
    pub connections: u32,
    /// TCP and TLS connections of one source, which is an IPv4 address or an IPv6 /64; 0 is no limit.
    pub connections_per_source: u32,
    /// Answers per second to a source that has not shown that it receives them, 1 to 1000 in each worker; 0 is no limit.
    pub unverified_replies: u32,
}

/// `[timeouts]`: how long the server waits for clients on connections (TCP and TLS).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From the connection to the end of the TLS handshake, 1 s to 5 minutes.
    pub tls_handshake: Duration,
    /// From there to the first request, 1 s to 5 minutes.
    pub first_request: Duration,
    /// After a request, on a connection without an allocation, 1 s to 1 day.
    pub idle: Duration,
    /// On a connection that has had no allocation, whatever is asked on it, 1 s to 1 day.
    pub unauthenticated: Duration,
}

/// `[alternate]`: the servers that clients are sent to which get no allocation here (RFC 8489 §10).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alternate {
    /// Their addresses for clients over UDP and TCP, all different, none of them a listener's; empty for none.
    pub servers: Vec<SocketAddr>,
    /// The same for clients over TLS.
    pub tls_servers: Vec<SocketAddr>,
    /// The DNS name in their certificate, if it is another one than in ours (RFC 8489 §14.16).
    pub domain: Option<String>,
    /// When clients are sent there.
    pub when: AlternateWhen,
}

/// When clients are sent to another server; each includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AlternateWhen {
    /// While this one drains.
    #[default]
    Draining,
    /// When no further allocation has a place here.
    Full,
    /// Always: this one makes no allocation.
    Always,
}

impl AlternateWhen {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Draining, Self::Full, Self::Always];

    /// The choice as the file spells it.
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
    /// Also accept the channel numbers 0x5000–0x7FFF, which RFC 8656 §12 reserves.
    pub rfc5766_channels: bool,
    /// Also know ADDITIONAL-ADDRESS-FAMILY and ADDRESS-ERROR-CODE by 0x8032 and 0x8033, the numbers of a draft of RFC 8656
    /// that coturn's clients use.
    pub draft_dual_allocation: bool,
}

/// `[log]`: what is logged, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// The least important level that is written.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
}

/// The least important level that is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// What keeps the server from doing its work.
    Error,
    /// What an operator should look at.
    Warn,
    /// The life of the process and of its allocations.
    #[default]
    Info,
    /// The reasons of single decisions.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// Every level, from the fewest lines to the most.
    pub const ALL: [Self; 5] = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// The level as the file spells it.
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

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object for each line.
    Json,
}

impl LogFormat {
    /// Every format.
    pub const ALL: [Self; 2] = [Self::Text, Self::Json];

    /// The format as the file spells it.
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
            workers: 0,
            drain_deadline: Duration::from_secs(1),
            listen: Listen::default(),
            tls: None,
            relay: Relay::default(),
            auth: Auth::default(),
            peers: Peers::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            alternate: Alternate::default(),
            compat: Compat::default(),
            log: Log::default(),
            warnings: Vec::new(),
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        let everywhere = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 3478));
        Self { udp: vec![everywhere], tcp: vec![everywhere], tls: Vec::new() }
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
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            allocations_per_user: 32,
            allocations: 0,
            allocations_per_second_per_user: 0,
            permissions_per_allocation: 256,
            channels_per_allocation: 256,
            peers_per_second: 0,
            bytes_per_second_per_allocation: 0,
            bytes_per_second_per_user: 0,
            connections: 10_000,
            connections_per_source: 500,
            unverified_replies: 50,
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
    /// Reads and checks a configuration file, and the secrets file that it names.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or everything that is wrong in it.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let file = path.display().to_string();
        let bytes = fs::read(path).map_err(|error| {
            let message = format!("cannot be read: {}", read_failure(&error));
            ConfigErrors::new(vec![Problem { file: file.clone(), position: None, message }])
        })?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            let before = String::from_utf8_lossy(error.as_bytes().get(..valid).unwrap_or_default());
            let message = "this byte is not UTF-8: save the file as UTF-8".to_owned();
            let position = Some(position(&before, valid));
            ConfigErrors::new(vec![Problem { file: file.clone(), position, message }])
        })?;
        let text = Zeroizing::new(text);
        let mut report = Report::new(&file, &text);
        report.world_readable = credentials::readable_by_others(path);
        Self::check(report)
    }

    /// Checks a configuration text.
    ///
    /// `file_name` is what the errors call it; the relative paths in it begin beside it.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, in the order of the file.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, ConfigErrors> {
        Self::check(Report::new(file_name, text))
    }

    fn check(mut report: Report<'_>) -> Result<Self, ConfigErrors> {
        let (document, syntax_errors) = DeTable::parse_recoverable(report.text());
        let mut config = Self::default();
        if syntax_errors.is_empty() {
            config = Self::read(document.get_ref(), &mut report);
        } else {
            // The rest of such a file may not mean what it seems to: only the syntax is worth talking about.
            general::report_syntax_errors(&syntax_errors, &mut report);
        }
        if report.errors.is_empty() {
            config.warnings = report.warnings;
            Ok(config)
        } else {
            Err(ConfigErrors::new(report.errors))
        }
    }

    /// Reads every section, whatever is wrong in the others.
    fn read(document: &DeTable<'_>, report: &mut Report<'_>) -> Self {
        let top = Section::new(&schema::TOP, document, report);
        let workers = general::workers(&top, report);
        let listen = addresses::listen(&top, report);
        let limits = general::limits(&top, report);
        let relay = addresses::relay(&top, workers, &limits, report);
        addresses::warn_of_overlap(&top, &listen, &relay, report);
        let alternate = alternate::alternate(&top, &listen, report);
        Self {
            realm: general::realm(&top, report),
            hostname: general::hostname(&top, report),
            workers,
            drain_deadline: general::drain_deadline(&top, report),
            tls: tls::tls(&top, &listen, report),
            listen,
            relay,
            auth: credentials::auth(&top, report),
            peers: addresses::peers(&top, report),
            limits,
            timeouts: general::timeouts(&top, report),
            alternate,
            compat: general::compat(&top, report),
            log: general::log(&top, report),
            warnings: Vec::new(),
        }
    }

    /// What the server will do with this configuration, for a person to read.
    pub fn summary(&self) -> Summary<'_> {
        Summary::new(self)
    }
}

/// The configuration file that is used when none is named: `turnserver.toml` in the working directory, else
/// `/etc/turnserver/turnserver.toml`, else none.
pub fn default_path() -> Option<PathBuf> {
    ["turnserver.toml", "/etc/turnserver/turnserver.toml"]
        .into_iter()
        .map(PathBuf::from)
        // A file that is there but cannot be looked at is to be complained about, not passed over.
        .find(|path| !matches!(fs::metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound))
}
