//! `node` and `[fleet]`: the name of this server among others, and the engine that connects them.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::general::{check_host, one_of};
use super::problem::{Report, quoted};
use super::reader::Section;
use super::{Config, Fleet, FleetAccess, FleetLimits, FleetServer, credentials, paths, schema};
use crate::auth::Secret;
use crate::file;
use crate::fleet::{Heartbeat, Prefixes};
use crate::transport::TurnUri;

/// The port of NATS.
const PORT: u16 = 4222;

/// What the names of nodes and fleets consist of: they are parts of subjects and of keys.
const NAME_RULE: &str = "1 to 64 letters, digits, hyphens and underscores";

const MAX_SERVERS: usize = 16;
const MAX_NODES: u8 = 8;
/// The longest file of prefixes in bytes: a million lines.
const MAX_REGIONS_FILE: u64 = 64 << 20;
/// The number of wrong lines of it that are shown.
const SHOWN_LINES: usize = 5;

impl Fleet {
    /// The default of `region`.
    pub(super) const REGION: &str = "default";
    /// The default of `weight`.
    pub(super) const WEIGHT: u32 = 100;
    /// The default of `nodes-per-credential`.
    pub(super) const NODES_PER_CREDENTIAL: u8 = 2;
}

impl fmt::Display for FleetServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "tls" } else { "nats" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

impl Config {
    /// Returns the name of this server: `node`, or else the host name of the machine.
    #[must_use]
    pub fn node_name(&self) -> String {
        self.node
            .clone()
            .unwrap_or_else(|| host_node(&nix::unistd::gethostname().unwrap_or_default().to_string_lossy()))
    }
}

/// Returns the name of the node on a machine with this host name.
fn host_node(host: &str) -> String {
    let label = host.split('.').next().unwrap_or_default();
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let longest = Heartbeat::LONGEST_NAME;
    let name: String = label.chars().map(|c| if allowed(c) { c } else { '-' }).take(longest).collect();
    if name.is_empty() { "turnserver".to_owned() } else { name }
}

/// Reads `node`.
pub(super) fn node(top: &Section<'_>, report: &mut Report<'_>) -> Option<String> {
    name(top, "node", report)
}

fn name(section: &Section<'_>, key: &str, report: &mut Report<'_>) -> Option<String> {
    let text = section.string(key, report)?;
    if Heartbeat::is_node_name(text.get_ref()) {
        return Some((*text.get_ref()).to_owned());
    }
    let (name, text_shown) = (section.name(key), quoted(text.get_ref()));
    report.error(&text.span(), format!("{name} must have {NAME_RULE}, not {text_shown}"));
    None
}

/// Reads `[fleet]`.
pub(super) fn fleet(top: &Section<'_>, report: &mut Report<'_>) -> Option<Fleet> {
    let header = top.span("fleet");
    let section = top.section("fleet", &schema::FLEET, report)?;
    let errors = report.errors.len();
    let servers = servers(&section, report);
    if servers.is_empty() && report.errors.len() == errors {
        report.error(
            &header,
            "`[fleet]` has no `servers`: set the addresses of the NATS servers, for example servers = \
             [\"tls://nats.example.org:4222\"]",
        );
    }
    let access = access(&section, report);
    warn_of_plain(&section, &servers, report);
    let fleet = Fleet {
        servers,
        access,
        ca_file: paths::of_authorities(&section, "ca-file", report),
        name: name(&section, "name", report).unwrap_or_else(|| "turn".to_owned()),
        region: region(&section, report),
        weight: section.number("weight", 1..=Heartbeat::MAX_WEIGHT, report).unwrap_or(Fleet::WEIGHT),
        urls: urls(&section, report),
        limits: limits(&section, report),
        regions: Arc::new(regions(&section, report)),
        nodes_per_credential: section
            .number("nodes-per-credential", 1..=MAX_NODES, report)
            .unwrap_or(Fleet::NODES_PER_CREDENTIAL),
        replicas: replicas(&section, report),
    };
    (report.errors.len() == errors).then_some(fleet)
}

fn servers(section: &Section<'_>, report: &mut Report<'_>) -> Vec<FleetServer> {
    let mut servers = Vec::new();
    let texts = section.strings("servers", report).unwrap_or_default();
    if texts.len() > MAX_SERVERS {
        report.error(&section.span("servers"), format!("`fleet.servers` has more than {MAX_SERVERS} servers"));
    }
    for text in texts {
        match server(text.get_ref()) {
            Ok(server) if servers.contains(&server) => {
                report.error(&text.span(), format!("`fleet.servers` contains {} twice", quoted(text.get_ref())));
            }
            Ok(server) => servers.push(server),
            Err(why) => {
                let has_password = text.get_ref().contains('@');
                let shown = if has_password { "an entry".to_owned() } else { quoted(text.get_ref()) };
                report.error(&text.span(), format!("`fleet.servers`: {shown} {why}"));
            }
        }
    }
    servers
}

/// Parses the URL of a NATS server.
fn server(text: &str) -> Result<FleetServer, String> {
    const EXAMPLE: &str = "for example \"tls://nats.example.org:4222\"";
    let (tls, rest) = match text.split_once("://") {
        Some(("nats", rest)) => (false, rest),
        Some(("tls", rest)) => (true, rest),
        Some(_) => return Err(format!("must begin with nats:// or tls://, {EXAMPLE}")),
        None => return Err(format!("is no URL: write nats:// or tls:// before it, {EXAMPLE}")),
    };
    if rest.contains('@') {
        return Err("has a user or a password in the URL: set `fleet.user` and `fleet.password-file`".to_owned());
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') && !host.is_empty() => {
            let port = port.parse().ok().filter(|port| *port != 0);
            (host, port.ok_or_else(|| format!("has no valid port, {EXAMPLE}"))?)
        }
        _ => (rest, PORT),
    };
    let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let host = check_host(host).map_err(|why| if is_address { why } else { format!("has no valid host: {why}") })?;
    Ok(FleetServer { tls, host, port })
}

/// NATS sends credentials in clear to a server without TLS.
fn warn_of_plain(section: &Section<'_>, servers: &[FleetServer], report: &mut Report<'_>) {
    let is_loopback = |server: &FleetServer| {
        server.host == "localhost"
            || server.host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    if let Some(plain) = servers.iter().find(|server| !server.tls && !is_loopback(server)) {
        report.warn(
            &section.span("servers"),
            format!(
                "`fleet.servers`: the connection to {}:{} has no TLS unless the server demands it, and secrets of \
                 credentials cross it: use tls://, or a network that nobody else can read",
                plain.host, plain.port
            ),
        );
    }
}

fn access(section: &Section<'_>, report: &mut Report<'_>) -> FleetAccess {
    let user = section.string("user", report).map(|user| (user.span(), (*user.get_ref()).to_owned()));
    let password = paths::of_key(section, "password-file", report);
    match (user, password) {
        (Some((span, user)), Some(file)) => {
            if user.is_empty() {
                report.error(&span, "`fleet.user` is empty: set the name of the user, or omit it");
            }
            if credentials::readable_by_others(&file) {
                let (shown, name) = (quoted(&file.display().to_string()), file.display());
                report.warn(
                    &section.span("password-file"),
                    format!("`fleet.password-file`: {shown} is world-readable: run `chmod 640 {name}`"),
                );
            }
            match password_text(&file) {
                Ok(password) => FleetAccess::Password(user, password),
                Err(why) => {
                    report.error(&section.span("password-file"), format!("`fleet.password-file`: {why}"));
                    FleetAccess::Open
                }
            }
        }
        (Some((span, _)), None) => {
            if section.value("password-file").is_none() {
                report.error(&span, "`fleet.user` needs `fleet.password-file`");
            }
            FleetAccess::Open
        }
        (None, Some(_)) => {
            report.error(&section.span("password-file"), "`fleet.password-file` needs `fleet.user`");
            FleetAccess::Open
        }
        (None, None) => FleetAccess::Open,
    }
}

fn password_text(path: &Path) -> Result<Secret, String> {
    let shown = quoted(&path.display().to_string());
    let text = file::read(path).map_err(|error| format!("{shown} cannot be read: {}", super::read_failure(&error)))?;
    let text: Zeroizing<Vec<u8>> = Zeroizing::new(text.trim_ascii().to_vec());
    if text.is_empty() || str::from_utf8(&text).is_err() || text.contains(&b'\n') {
        return Err(format!("{shown} must contain the password and nothing else"));
    }
    Secret::new(&**text).map_err(|error| error.to_string())
}

fn urls(section: &Section<'_>, report: &mut Report<'_>) -> Vec<String> {
    let texts = section.strings("urls", report).unwrap_or_default();
    if texts.len() > Heartbeat::MOST_URLS {
        let most = Heartbeat::MOST_URLS;
        report.error(&section.span("urls"), format!("`fleet.urls` has more than {most} URLs"));
    }
    let mut urls = Vec::new();
    for text in texts {
        match text.get_ref().parse::<TurnUri>() {
            Ok(uri) if uri.to_string().len() > Heartbeat::LONGEST_URL => report.error(
                &text.span(),
                format!("`fleet.urls`: a URL has more than {} bytes", Heartbeat::LONGEST_URL),
            ),
            Ok(uri) => urls.push(uri.to_string()),
            Err(error) => report.error(
                &text.span(),
                format!(
                    "`fleet.urls`: {} is no TURN URL ({error}), for example \"turn:fra1.example.org:3478?transport=udp\"",
                    quoted(text.get_ref())
                ),
            ),
        }
    }
    urls
}

fn region(section: &Section<'_>, report: &mut Report<'_>) -> String {
    let Some(text) = section.string("region", report) else { return Fleet::REGION.to_owned() };
    if !Heartbeat::is_region_name(text.get_ref()) {
        let shown = quoted(text.get_ref());
        report.error(
            &text.span(),
            format!("`fleet.region` must have 1 to 32 letters, digits, hyphens and underscores, not {shown}"),
        );
    }
    (*text.get_ref()).to_owned()
}

/// Reads the file of client prefixes.
fn regions(section: &Section<'_>, report: &mut Report<'_>) -> Prefixes {
    let Some(file) = paths::of_key(section, "regions-file", report) else { return Prefixes::default() };
    let shown = quoted(&file.display().to_string());
    let span = section.span("regions-file");
    let text = match file::read_up_to(&file, MAX_REGIONS_FILE) {
        Ok(text) => text,
        Err(error) => {
            let why = super::read_failure(&error);
            report.error(&span, format!("`fleet.regions-file`: {shown} cannot be read: {why}"));
            return Prefixes::default();
        }
    };
    match Prefixes::parse(&String::from_utf8_lossy(&text)) {
        Ok(regions) => regions,
        Err(lines) => {
            for line in lines.iter().take(SHOWN_LINES) {
                report.error(&span, format!("`fleet.regions-file`: {shown}: {line}"));
            }
            if lines.len() > SHOWN_LINES {
                let more = lines.len() - SHOWN_LINES;
                report.error(&span, format!("`fleet.regions-file`: {shown} has {more} more lines that cannot be used"));
            }
            Prefixes::default()
        }
    }
}

fn limits(section: &Section<'_>, report: &mut Report<'_>) -> FleetLimits {
    let word = section.string("limits", report);
    word.and_then(|word| one_of("`fleet.limits`", &word, &FleetLimits::ALL, FleetLimits::as_str, report))
        .unwrap_or_default()
}

fn replicas(section: &Section<'_>, report: &mut Report<'_>) -> Option<u8> {
    let replicas = section.number("replicas", 1..=5_u8, report)?;
    if replicas % 2 == 0 {
        report.error(
            &section.span("replicas"),
            format!("`fleet.replicas` must be 1, 3 or 5, not {replicas}: an even number tolerates no more failures"),
        );
    }
    Some(replicas)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_password_that_others_can_read_is_warned_of() {
        let directory = std::env::temp_dir().join(format!("turnserver-fleet-password-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let file = directory.join("password");
        fs::write(&file, "a password").unwrap();
        let text = format!("[fleet]\nservers = [\"nats://127.0.0.1\"]\nuser = \"a\"\npassword-file = {file:?}\n");
        for (mode, count) in [(0o644, 1), (0o640, 0)] {
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            let warnings = format!("{:?}", Config::parse(&text, "t.toml").unwrap().warnings);
            assert_eq!(warnings.matches("`fleet.password-file`").count(), count, "{warnings}");
        }
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn the_node_is_named_as_its_host_up_to_the_first_dot() {
        for (host, node) in [
            ("fra-1.example.org", "fra-1"),
            ("fra_1", "fra_1"),
            ("fr a", "fr-a"),
            ("", "turnserver"),
            (".example.org", "turnserver"),
        ] {
            assert_eq!(host_node(host), node, "{host}");
            assert!(Heartbeat::is_node_name(node));
        }
    }

    #[test]
    fn a_server_is_a_url_with_a_host_and_without_a_user() {
        let parsed = |text| server(text).map(|FleetServer { tls, host, port }| (tls, host, port));
        let ok = |tls, host: &str, port| Ok((tls, host.to_owned(), port));
        assert_eq!(parsed("nats://10.0.0.1"), ok(false, "10.0.0.1", 4222));
        assert_eq!(parsed("tls://nats.example.org:4333/"), ok(true, "nats.example.org", 4333));
        assert_eq!(parsed("nats://[::1]:4222"), ok(false, "[::1]", 4222));
        assert_eq!(parsed("nats://[::1]"), ok(false, "[::1]", 4222));
        for (wrong, part) in [
            ("10.0.0.1:4222", "is no URL"),
            ("http://10.0.0.1", "must begin with nats:// or tls://"),
            ("nats://ann:pw@10.0.0.1", "has a user or a password"),
            ("nats://10.0.0.1:0", "no valid port"),
            ("nats://10.0.0.1:x", "no valid port"),
            ("nats://", "is empty"),
        ] {
            let error = server(wrong).unwrap_err();
            assert!(error.contains(part), "{wrong}: {error}");
        }
    }
}
