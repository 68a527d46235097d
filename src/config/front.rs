//! `[[front]]`: ports that the relay shares with a web site.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;

use super::addresses::{collide, listen_address};
use super::credentials::DAY;
use super::general::{check_host, duration, one_of};
use super::problem::{Report, quoted};
use super::reader::{Section, list};
use super::{Config, Front, HTTP_PORT, Http, WebSite, WithoutName, paths, schema};
use crate::transport::{Endpoint, Transport, TurnUri};

/// The port of HTTPS.
const DEFAULT_PORT: u16 = 443;
/// The port of a web site that an error suggests.
const SITE_PORT: u16 = 8443;

const DEFAULT_CONNECTIONS: u32 = 10_000;
const MAX_CONNECTIONS: u32 = 1_000_000;
const DEFAULT_IDLE: Duration = Duration::from_secs(3_600);
const SECOND: Duration = Duration::from_secs(1);

/// Reads all fronts. `listen`: the listeners of the clients.
pub(super) fn fronts(
    top: &Section<'_>,
    listen: &[Endpoint],
    http: &Http,
    hostname: Option<&str>,
    report: &mut Report<'_>,
) -> Vec<Front> {
    let mut fronts: Vec<Front> = Vec::new();
    for table in top.tables("front", report) {
        let section = Section::new(&schema::FRONT, table.get_ref(), report);
        let Some((front, span)) = front(&section, &table.span(), hostname, report) else { continue };
        let others = fronts.iter().map(|other| ("another `[[front]]`", other.listen));
        let clients = listen.iter().filter(|endpoint| endpoint.transport.is_connection());
        let clients = clients.map(|endpoint| {
            (if endpoint.transport.is_encrypted() { "`listen.tls`" } else { "`listen.tcp`" }, endpoint.address)
        });
        let http = http.listen.iter().map(|address| ("`http.listen`", *address));
        if let Some((other, _)) = others.chain(clients).chain(http).find(|(_, other)| collide(*other, front.listen)) {
            report.error(
                &span,
                format!(
                    "`front.listen`: {other} has {} too. A front serves TURN over TCP and TLS by itself: keep the \
                     address here",
                    front.listen
                ),
            );
            continue;
        }
        fronts.push(front);
    }
    let of_fronts = fronts.iter().map(|front| (front.listen, "a front, so visitors would go in a circle"));
    let of_clients = listen.iter().filter(|endpoint| endpoint.transport.is_connection());
    let of_clients = of_clients.map(|endpoint| {
        (endpoint.address, "a listener of the relay, whose limits visitors would escape. A front serves TURN by itself")
    });
    let of_http = http.listen.iter().map(|address| {
        (*address, "`http.listen`, where every visitor would seem to be on this machine; see `http = true`")
    });
    let own: Vec<(SocketAddr, &str)> = of_fronts.chain(of_clients).chain(of_http).collect();
    for front in &fronts {
        if let Some((_, what)) = own.iter().find(|(address, _)| front.web.is_at(*address)) {
            report.error(&top.span("front"), format!("`front.web`: {} is the address of {what}", front.web));
        }
        if top.value("tls").is_some() {
            continue;
        }
        if front.http {
            report.error(
                &top.span("front"),
                "`front.http` needs a certificate: set `certificate` and `private-key` in `[tls]`, or `[tls.acme]`",
            );
        } else if !front.names.is_empty() && front.listen.port() != HTTP_PORT {
            report.warn(
                &top.span("front"),
                format!(
                    "the front at {} serves TURN without TLS only, because there is no `[tls]`: clients that use {} with \
                     TLS are disconnected",
                    front.listen,
                    list(&front.names.iter().map(String::as_str).collect::<Vec<_>>())
                ),
            );
        }
    }
    fronts
}

fn front(
    section: &Section<'_>,
    header: &Range<usize>,
    hostname: Option<&str>,
    report: &mut Report<'_>,
) -> Option<(Front, Range<usize>)> {
    let mut required = |key: &str, example: &str| {
        if section.value(key).is_none() {
            report.error(header, format!("`[[front]]` has no `{key}`: set for example {key} = \"{example}\""));
        }
        section.string(key, report)
    };
    let (listen, web) = (required("listen", "[::]:443"), required("web", "127.0.0.1:8443"));
    let (span, listen) = listen.map(|text| (text.span(), *text.get_ref()))?;
    let listen = listen_address(&section.name("listen"), listen, DEFAULT_PORT, &span, report);
    let web = web.and_then(|web| site(section, &web, report));
    let names = names(section, hostname, report);
    let without_name = section
        .string("without-name", report)
        .and_then(|word| one_of(&section.name("without-name"), &word, &WithoutName::ALL, WithoutName::as_str, report));
    let without_name = without_name.unwrap_or_default();
    let (listen, web) = (listen?, web?);
    if names.is_empty() && without_name == WithoutName::Web && listen.port() != HTTP_PORT {
        report.warn(
            header,
            format!(
                "the front at {listen} has no name of the relay, so it serves no `turns:` URL: set `names`, or \
                 `hostname` at the top of the file"
            ),
        );
    }
    let front = Front {
        listen,
        web,
        names,
        without_name,
        http: section.boolean("http", report).unwrap_or_default(),
        proxy_protocol: section.boolean("proxy-protocol", report).unwrap_or_default(),
        connections: section.number("connections", 1..=MAX_CONNECTIONS, report).unwrap_or(DEFAULT_CONNECTIONS),
        idle: duration(section, "idle", SECOND, DAY, report).unwrap_or(DEFAULT_IDLE),
    };
    Some((front, span))
}

/// Reads the place of the web site.
fn site(section: &Section<'_>, web: &Spanned<&str>, report: &mut Report<'_>) -> Option<WebSite> {
    let (span, text) = (web.span(), *web.get_ref());
    let name = section.name("web");
    if let Some(path) = text.strip_prefix("unix:").or_else(|| text.starts_with('/').then_some(text)) {
        return match paths::resolve(&report.directory, path) {
            Ok(path) => Some(WebSite::Unix(path)),
            Err(why) => {
                report.error(&span, format!("{name}: {why}"));
                None
            }
        };
    }
    let address: Option<SocketAddr> = listen_address(&name, text, SITE_PORT, &span, report);
    let address = address?;
    if address.ip().is_unspecified() || address.port() == 0 {
        report.error(
            &span,
            format!("{name}: {} is not the address of a web server, for example \"127.0.0.1:8443\"", quoted(text)),
        );
        return None;
    }
    Some(WebSite::Tcp(address))
}

/// Reads the names of the relay. The default is `hostname`, if it is a name.
fn names(section: &Section<'_>, hostname: Option<&str>, report: &mut Report<'_>) -> Vec<String> {
    let Some(texts) = section.strings("names", report) else {
        let is_name = |host: &&str| !host.starts_with('[') && host.parse::<std::net::Ipv4Addr>().is_err();
        return hostname.filter(is_name).map(str::to_owned).into_iter().collect();
    };
    let mut names = Vec::new();
    for text in texts {
        let (span, name) = (text.span(), *text.get_ref());
        let why = match check_host(name) {
            Ok(host) if host.starts_with('[') || host.parse::<std::net::Ipv4Addr>().is_ok() => {
                "is an address: clients send no server name for it; see `without-name`".to_owned()
            }
            Ok(host) => {
                names.push(host);
                continue;
            }
            Err(why) => why,
        };
        report.error(&span, format!("{}: {} {why}", section.name("names"), quoted(name)));
    }
    names
}

impl Config {
    /// Returns the TURN URIs (RFC 7065) of the fronts without duplicates. `actual` returns the address of a front with its
    /// actual port, if that is known.
    pub fn front_urls(&self, actual: impl Fn(SocketAddr) -> Option<SocketAddr>) -> Vec<String> {
        // Without a certificate, no client can use a name; and a front on the port of HTTP is there for its web site.
        let has_url = |front: &&Front| self.tls.is_some() && front.listen.port() != HTTP_PORT;
        let mut urls: Vec<String> = Vec::new();
        for front in self.fronts.iter().filter(has_url) {
            let Some(port) = actual(front.listen).map(|address| address.port()).filter(|port| *port != 0) else {
                continue;
            };
            for name in &front.names {
                let url = TurnUri::new(Transport::Tls, name, port).to_string();
                if !urls.contains(&url) {
                    urls.push(url);
                }
            }
        }
        urls
    }
}

impl WebSite {
    /// Whether a connection to the web site would reach a listener.
    fn is_at(&self, listener: SocketAddr) -> bool {
        match self {
            Self::Tcp(address) => {
                let own = listener.ip() == address.ip()
                    || listener.ip().is_unspecified() && address.ip().to_canonical().is_loopback();
                own && listener.port() == address.port()
            }
            Self::Unix(_) => false,
        }
    }
}
