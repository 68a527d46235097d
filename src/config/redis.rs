//! `[auth.redis]`: a Redis or Valkey server with static users, as coturn keeps them. `[redis-status]`: one that gets the
//! status of allocations. No message contains a password.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use super::general::{check_host, duration, one_of};
use super::problem::{Report, quoted};
use super::reader::Section;
use super::{credentials, paths, schema};
use crate::auth::Secret;
use crate::file;

/// The port of Redis.
const PORT: u16 = 6379;
/// The most bytes of a password, and of a username.
const MAX_PASSWORD: usize = 1024;
const MAX_USERNAME: usize = 256;
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// `[auth.redis]`: a Redis or Valkey server with static users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redis {
    /// How the server is reached.
    pub access: RedisAccess,
    /// How long a request waits for a response, 1 s to 10 s.
    pub time_limit: Duration,
    /// How long a user that was found is known, 1 s to 1 day.
    pub found_for: Duration,
    /// How long a user that was not found is known to be absent, 1 s to 1 hour.
    pub absent_for: Duration,
    /// For how much longer a user that was found is known while the server does not respond, at most 7 days.
    pub stale_for: Duration,
    /// The most users that a worker knows, 8 to 1 million.
    pub cached_users: u32,
    /// Look-ups per second. 0: no limit.
    pub lookups_per_second: u32,
    /// Requests per second of one source that need a look-up. 0: no limit.
    pub lookups_per_second_per_source: u32,
    /// The response if the server does not respond.
    pub when_unavailable: RedisUnavailable,
}

/// How a Redis server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisAccess {
    /// Where the server is.
    pub server: RedisServer,
    /// The number of the database.
    pub database: u32,
    /// The user of Redis; `None` for the default one.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// The certificates, in PEM, of the authorities that the certificate of the server comes from. `None`: those that
    /// browsers trust.
    pub ca: Option<PathBuf>,
}

/// Where a Redis server is. `Display` is its URL, which has neither a user nor a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisServer {
    /// At a port of a host.
    Tcp {
        /// The name or the address, an IPv6 address without brackets.
        host: String,
        /// The port.
        port: u16,
        /// Whether the connection has TLS.
        tls: bool,
    },
    /// At a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for RedisServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, tls } => {
                let scheme = if *tls { "rediss" } else { "redis" };
                if host.contains(':') {
                    write!(f, "{scheme}://[{host}]:{port}")
                } else {
                    write!(f, "{scheme}://{host}:{port}")
                }
            }
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// The response to a request of a user that is not known, if Redis does not respond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RedisUnavailable {
    /// 500.
    #[default]
    ServerError,
    /// 401.
    Unauthenticated,
}

impl RedisUnavailable {
    /// Every choice.
    pub const ALL: [Self; 2] = [Self::ServerError, Self::Unauthenticated];

    /// Returns the choice as written in the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ServerError => "500",
            Self::Unauthenticated => "401",
        }
    }
}

/// Where a URL leads, or what is wrong with it. The message does not contain the URL, which may have a password.
fn parse_url(url: &str) -> Result<RedisServer, String> {
    if let Some(path) = url.strip_prefix("unix://") {
        return if path.starts_with('/') && !path.contains(['?', '\0']) {
            Ok(RedisServer::Unix(path.into()))
        } else {
            Err("must have the absolute path of the socket after unix://, for example \
                 \"unix:///run/redis/redis-server.sock\""
                .to_owned())
        };
    }
    let (tls, rest) = match (url.strip_prefix("redis://"), url.strip_prefix("rediss://")) {
        (Some(rest), _) => (false, rest),
        (_, Some(rest)) => (true, rest),
        _ => {
            return Err("must begin with redis://, rediss:// (TLS) or unix://, for example \
                        \"redis://127.0.0.1:6379\""
                .to_owned());
        }
    };
    if rest.contains('@') {
        return Err("must not contain a user or a password: set `username`, and write the password to a file that \
                    `password-file` names"
            .to_owned());
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#']) {
        return Err("must end with the host and the port: set `database` for the number of the database".to_owned());
    }
    let (host, port) = match rest.strip_prefix('[') {
        Some(bracketed) => {
            let (host, rest) = bracketed.split_once(']').ok_or("has a `[` without a `]`")?;
            (host, rest.strip_prefix(':').or_else(|| rest.is_empty().then_some("")))
        }
        None => match rest.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (rest, Some("")),
        },
    };
    let port = match port {
        Some("") => Some(PORT),
        Some(port) => port.parse().ok().filter(|port| *port != 0),
        None => None,
    };
    let port = port.ok_or("has no valid port: it is a number from 1 to 65535 after the host and a `:`")?;
    let shown = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    check_host(&shown).map_err(|why| format!("has no valid host: {why}"))?;
    Ok(RedisServer::Tcp { host: host.to_owned(), port, tls })
}

/// Reads `[auth.redis]`.
pub(super) fn redis(auth: &Section<'_>, report: &mut Report<'_>) -> Option<Redis> {
    let header = auth.span("redis");
    let section = auth.section("redis", &schema::REDIS, report)?;
    let errors = report.errors.len();
    let access = access(&section, &header, "the keys of users", report);
    let time = |key, least, most, default, report: &mut Report<'_>| {
        duration(&section, key, least, most, report).unwrap_or(default)
    };
    let redis = Redis {
        access,
        time_limit: time("time-limit", SECOND, 10 * SECOND, 2 * SECOND, report),
        found_for: time("found-for", SECOND, DAY, 60 * SECOND, report),
        absent_for: time("absent-for", SECOND, 3_600 * SECOND, 10 * SECOND, report),
        stale_for: time("stale-for", Duration::ZERO, 7 * DAY, 3_600 * SECOND, report),
        cached_users: section.number("cached-users", 8..=1_000_000, report).unwrap_or(10_000),
        lookups_per_second: section.number("lookups-per-second", 0..=u32::MAX, report).unwrap_or(1_000),
        lookups_per_second_per_source: section
            .number("lookups-per-second-per-source", 0..=u32::MAX, report)
            .unwrap_or(20),
        when_unavailable: when_unavailable(&section, report),
    };
    (report.errors.len() == errors).then_some(redis)
}

/// Reads `[redis-status]`.
pub(super) fn redis_status(top: &Section<'_>, report: &mut Report<'_>) -> Option<RedisAccess> {
    let header = top.span("redis-status");
    let section = top.section("redis-status", &schema::REDIS_STATUS, report)?;
    let errors = report.errors.len();
    let access = access(&section, &header, "the users and addresses of clients", report);
    (report.errors.len() == errors).then_some(access)
}

/// Reads how a Redis server is reached. `content` is what the traffic to it shows.
fn access(section: &Section<'_>, header: &Range<usize>, content: &str, report: &mut Report<'_>) -> RedisAccess {
    let server = server(section, header, report);
    let is_encrypted = matches!(server, Some(RedisServer::Tcp { tls: true, .. }));
    let ca = paths::of_authorities(section, "ca-file", report);
    if ca.is_some() && server.is_some() && !is_encrypted {
        let [ca, url] = ["ca-file", "url"].map(|key| section.name(key));
        report
            .error(&section.span("ca-file"), format!("{ca} is for TLS: begin {url} with rediss://, or remove the key"));
    }
    let password = password(section, report);
    warn_of_clear_text(section, server.as_ref(), password.is_some(), content, report);
    RedisAccess {
        server: server.unwrap_or(RedisServer::Unix(PathBuf::new())),
        database: section.number("database", 0..=65_535, report).unwrap_or_default(),
        username: username(section, password.is_some(), report),
        password,
        ca,
    }
}

fn when_unavailable(section: &Section<'_>, report: &mut Report<'_>) -> RedisUnavailable {
    let word = section.string("when-unavailable", report);
    let choice = word.and_then(|word| {
        let name = section.name("when-unavailable");
        one_of(&name, &word, &RedisUnavailable::ALL, RedisUnavailable::as_str, report)
    });
    choice.unwrap_or_default()
}

fn server(section: &Section<'_>, header: &Range<usize>, report: &mut Report<'_>) -> Option<RedisServer> {
    let Some(url) = section.string("url", report) else {
        if section.value("url").is_none() {
            report.error(
                header,
                format!("{} is missing: set it, for example to \"redis://127.0.0.1:6379\"", section.name("url")),
            );
        }
        return None;
    };
    parse_url(url.get_ref()).map_err(|why| report.error(&url.span(), format!("{} {why}", section.name("url")))).ok()
}

fn username(section: &Section<'_>, has_password: bool, report: &mut Report<'_>) -> Option<String> {
    let name: Spanned<&str> = section.string("username", report)?;
    let (span, text) = (name.span(), *name.get_ref());
    if text.is_empty() || text.len() > MAX_USERNAME || text.chars().any(|c| c.is_control() || c == ' ') {
        report.error(&span, format!("{} {} is no name of a user of Redis", section.name("username"), quoted(text)));
    }
    if !has_password && section.value("password-file").is_none() {
        let [username, file] = ["username", "password-file"].map(|key| section.name(key));
        report.error(&span, format!("{username} needs {file}: Redis accepts a user only with its password"));
    }
    Some(text.to_owned())
}

fn password(section: &Section<'_>, report: &mut Report<'_>) -> Option<Secret> {
    let file = paths::of_key(section, "password-file", report)?;
    let (span, name) = (section.span("password-file"), section.name("password-file"));
    match read_password(&file) {
        Ok(password) => {
            if credentials::readable_by_others(&file) {
                let shown = file.display();
                report.warn(&span, format!("{name}: `{shown}` is world-readable: run `chmod 640 {shown}`"));
            }
            Some(password)
        }
        Err(why) => {
            report.error(&span, format!("{name}: {why}"));
            None
        }
    }
}

/// Reads the password of Redis: the only line of a file.
fn read_password(path: &Path) -> Result<Secret, String> {
    let shown = quoted(&path.display().to_string());
    let text = file::read(path).map_err(|error| format!("{shown} cannot be read: {}", super::read_failure(&error)))?;
    let line = text.strip_suffix(b"\n").unwrap_or(&text);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() || line.len() > MAX_PASSWORD || line.contains(&b'\n') {
        return Err(format!("{shown} must contain the password of Redis in one line, and nothing else"));
    }
    Secret::new(line).map_err(|error| error.to_string())
}

/// Warns of a connection through a network without TLS.
fn warn_of_clear_text(
    section: &Section<'_>,
    server: Option<&RedisServer>,
    has_password: bool,
    content: &str,
    report: &mut Report<'_>,
) {
    let Some(RedisServer::Tcp { host, tls: false, .. }) = server else { return };
    let is_local = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if !is_local {
        let password = if has_password { "its password and " } else { "" };
        report.warn(
            &section.span("url"),
            format!(
                "{} has no TLS, so whoever sees the traffic to Redis learns {password}{content}: use rediss:// unless \
                 the network is protected",
                section.name("url")
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(&format!("realm = \"example.org\"\n[auth.redis]\n{text}"), "t.toml").map_err(|e| e.to_string())
    }

    #[test]
    fn a_url_names_a_host_or_a_socket() {
        for (url, shown) in [
            ("redis://127.0.0.1", "redis://127.0.0.1:6379"),
            ("redis://redis.example.org:7000/", "redis://redis.example.org:7000"),
            ("rediss://[2001:db8::1]:6380", "rediss://[2001:db8::1]:6380"),
            ("rediss://[::1]", "rediss://[::1]:6379"),
            ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ] {
            assert_eq!(parse_url(url).unwrap().to_string(), shown);
        }
        for (url, why) in [
            ("127.0.0.1:6379", "must begin with redis://"),
            ("http://127.0.0.1", "must begin with redis://"),
            ("redis://127.0.0.1/2", "`database`"),
            ("redis://127.0.0.1:0", "no valid port"),
            ("redis://127.0.0.1:x", "no valid port"),
            ("redis://", "no valid host"),
            ("redis://[::1", "without a `]`"),
            ("unix://run/redis.sock", "absolute path"),
        ] {
            let error = parse_url(url).unwrap_err();
            assert!(error.contains(why), "{url}: {error}");
        }
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_not_repeated() {
        for url in ["redis://:hunter2@127.0.0.1", "rediss://ann:hunter2@redis.example.org:6380/2"] {
            let error = parse(&format!("url = \"{url}\"")).unwrap_err();
            assert!(error.contains("password-file") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_defaults_need_only_a_url() {
        let redis = parse("url = \"redis://127.0.0.1\"").unwrap().auth.redis.unwrap();
        assert_eq!(redis.time_limit, 2 * SECOND);
        assert_eq!((redis.found_for, redis.absent_for, redis.stale_for), (60 * SECOND, 10 * SECOND, 3_600 * SECOND));
        assert_eq!(redis.when_unavailable, RedisUnavailable::ServerError);
        assert!(parse("").unwrap_err().contains("`auth.redis.url` is missing"));
    }

    #[test]
    fn keys_that_do_not_fit_are_errors_with_advice() {
        for (text, why) in [
            ("url = \"redis://127.0.0.1\"\nca-file = \"ca.pem\"", "rediss://"),
            (
                "url = \"rediss://127.0.0.1\"\nca-file = \"/nonexistent\"",
                "`auth.redis.ca-file`: `/nonexistent` cannot be",
            ),
            ("url = \"rediss://127.0.0.1\"\nca-file = \"Cargo.toml\"", "`Cargo.toml` has no certificate in PEM"),
            ("url = \"redis://127.0.0.1\"\nusername = \"turn\"", "`auth.redis.password-file`"),
            ("url = \"redis://127.0.0.1\"\npassword-file = \"/nonexistent\"", "file not found"),
            ("url = \"redis://127.0.0.1\"\nwhen-unavailable = \"503\"", "500"),
            ("url = \"redis://127.0.0.1\"\ntime-limit = \"1m\"", "time-limit"),
            ("url = \"redis://127.0.0.1\"\npassword = \"x\"", "unknown key `password`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_server_for_the_status_of_allocations_has_the_same_keys_for_its_access() {
        let parse = |text: &str| Config::parse(&format!("[redis-status]\n{text}"), "t.toml").map_err(|e| e.to_string());
        let status = parse("url = \"redis://127.0.0.1\"\ndatabase = 3").unwrap().redis_status.unwrap();
        assert_eq!((status.server.to_string().as_str(), status.database), ("redis://127.0.0.1:6379", 3));
        assert!(parse("").unwrap_err().contains("`redis-status.url` is missing"));
        let error = parse("url = \"redis://127.0.0.1\"\nusername = \"turn\"").unwrap_err();
        assert!(error.contains("`redis-status.username` needs `redis-status.password-file`"), "{error}");
        let warnings = parse("url = \"redis://redis.example.org\"").unwrap().warnings;
        assert!(format!("{warnings:?}").contains("the users and addresses of clients"), "{warnings:?}");
    }

    #[test]
    fn a_connection_through_a_network_without_tls_is_warned_of() {
        let warnings = |url: &str| parse(&format!("url = \"{url}\"")).unwrap().warnings.len();
        assert_eq!(warnings("redis://redis.example.org"), 1);
        assert_eq!([warnings("redis://[::1]"), warnings("redis://localhost"), warnings("rediss://a.example")], [0; 3]);
    }
}
