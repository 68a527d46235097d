//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use tracing::level_filters::LevelFilter;

use crate::connect::{Fingerprint, parse_fingerprint};
use crate::message::{LayerChoice, Mode};

/// Calls, broadcasts, files and a game over WebRTC, with turnserver as the relay.
#[derive(Clone, Debug, Parser)]
#[command(name = "rooms", version, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// What to do; without it, serve.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The options of `serve`.
    #[command(flatten)]
    pub serve: Serve,

    /// The least severe level that is logged: error, warn, info, debug or trace. `debug` names users and addresses.
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info")]
    pub log: LevelFilter,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Serve the pages and the signalling (the default).
    Serve(Serve),
    /// Take part in a room without a browser: play a test picture and a tone, and echo data.
    Bot(Bot),
    /// Run the relay of `serve`, which starts this itself.
    #[command(hide = true)]
    Relay {
        /// The configuration of the relay.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// The options of `rooms bot`.
#[derive(Args, Clone, Debug)]
pub struct Bot {
    /// The URL of the room.
    #[arg(value_name = "ROOM-URL")]
    pub url: String,

    /// The name that the others see.
    #[arg(long, value_name = "NAME", default_value = "Bot")]
    pub name: String,

    /// The SHA-256 fingerprint of the certificate that the server made itself and printed. Without it, the certificate
    /// must be of an authority that browsers trust.
    #[arg(long, value_name = "FINGERPRINT", value_parser = parse_fingerprint)]
    pub certificate_sha256: Option<Fingerprint>,

    /// An address of this machine at which others reach it directly. Can be repeated. Without it, only the relay is used.
    #[arg(long, value_name = "ADDRESS")]
    pub host: Vec<IpAddr>,

    /// A URL of the relay, in place of those of the server. Can be repeated.
    #[arg(long, value_name = "URL")]
    pub turn_url: Vec<String>,

    /// Certificates, in PEM, that are trusted for `turns` URLs besides those of the authorities that browsers trust: that
    /// of the relay, or that of its authority.
    #[arg(long, value_name = "FILE")]
    pub relay_ca: Option<PathBuf>,

    /// A message for the chat, sent to everyone who connects.
    #[arg(long, value_name = "TEXT")]
    pub say: Option<String>,

    /// The highest layer of each picture that the forwarding unit sends. `auto` is what the bandwidth allows.
    #[arg(long, value_enum, value_name = "LAYER", default_value = "auto")]
    pub layer: LayerChoice,

    /// Change how media are sent in the room. In a broadcast, the bot is the sender.
    #[arg(long, value_enum, value_name = "MODE")]
    pub mode: Option<Mode>,

    /// Leave after this time.
    #[arg(long, value_name = "SECONDS")]
    pub duration: Option<u64>,
}

/// Whether the pages are served over TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TlsMode {
    /// With --certificate, and on other addresses than loopback ones, where browsers allow cameras without TLS.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never: a proxy in front of this server has the certificate.
    Off,
}

/// The options of `rooms serve`.
#[derive(Args, Clone, Debug)]
pub struct Serve {
    /// The address on which the pages are served. Port 0 selects a free port.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8443")]
    pub listen: SocketAddr,

    /// Whether the pages are served over TLS. Without --certificate, the certificate is made at the start.
    #[arg(long, value_enum, default_value_t)]
    pub tls: TlsMode,

    /// The address of a proxy, or a prefix, as in 10.0.0.0/8. Its X-Forwarded-For header is believed. Can be repeated.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_prefix)]
    pub proxy: Vec<IpNet>,

    /// The certificate and its issuers' certificates, in PEM.
    #[arg(long, value_name = "FILE", requires = "private_key")]
    pub certificate: Option<PathBuf>,

    /// The private key of the certificate, in PEM.
    #[arg(long, value_name = "FILE", requires = "certificate")]
    pub private_key: Option<PathBuf>,

    /// A name or address in the certificate that is made at the start. Can be repeated.
    #[arg(long, value_name = "NAME")]
    pub name: Vec<String>,

    /// The configuration of the relay. Credentials are made with its first secret. If it has none, a relay is started with
    /// it and with a secret of this run.
    #[arg(long, value_name = "FILE", default_value = "turnserver.toml")]
    pub config: PathBuf,

    /// A URL of the relay, as in turn:turn.example.org:3478?transport=udp. Can be repeated. By default, the URLs follow
    /// from --config.
    #[arg(long, value_name = "URL")]
    pub turn_url: Vec<String>,

    /// The endpoint of the relay that makes credentials (docs/credentials.md), in place of --config. Can be repeated, with
    /// those of other relays of a fleet, which are used if one does not respond.
    #[arg(long, value_name = "URL", requires = "credentials_key_file", conflicts_with = "turn_url")]
    pub credentials_url: Vec<String>,

    /// A file with the key for --credentials-url.
    #[arg(long, value_name = "FILE", requires = "credentials_url")]
    pub credentials_key_file: Option<PathBuf>,

    /// What the names of users begin with, if the key for --credentials-url has a `user-prefix`.
    #[arg(long, value_name = "TEXT", default_value = "", requires = "credentials_url")]
    pub user_prefix: String,

    /// Certificates, in PEM, that this server trusts for `turns` URLs and --credentials-url besides those of the authorities
    /// that browsers trust: that of the relay, or that of its authority. Browsers do not learn it.
    #[arg(long, value_name = "FILE")]
    pub relay_ca: Option<PathBuf>,

    /// The lifetime of credentials in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(30..=86_400))]
    pub lifetime: u64,

    /// The address of the forwarding unit. By default, that of the listener or, if it is unspecified, the address from
    /// which this machine reaches others.
    #[arg(long, value_name = "ADDRESS")]
    pub sfu: Option<IpAddr>,

    /// The greatest number of rooms.
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000)]
    pub rooms: usize,

    /// Serve the pages from this directory, for their development. By default, they are in the program.
    #[arg(long, value_name = "DIRECTORY", env = "ROOMS_PAGES")]
    pub pages: Option<PathBuf>,
}

/// Reads an address or a prefix.
fn parse_prefix(text: &str) -> Result<IpNet, String> {
    let prefix = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    prefix.map_err(|_| "expected an address or a prefix, as in 192.0.2.7 or 10.0.0.0/8".to_owned())
}
