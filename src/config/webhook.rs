//! `[webhook]`: where the events of allocations are sent. No message contains a secret.

use std::fmt;
use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use zeroize::Zeroizing;

use super::general::{duration, one_of};
use super::problem::{Report, quoted};
use super::reader::Section;
use super::{credentials, paths, schema};
use crate::auth::Secret;
use crate::file;

/// The prefix of a secret of Standard Webhooks.
const PREFIX: &str = "whsec_";
/// The bytes of a secret. Standard Webhooks has the same limits.
const SECRET: std::ops::RangeInclusive<usize> = 24..=64;
/// Each secret adds a signature to each request.
const MAX_SECRETS: usize = 4;
/// The longest URL, in bytes.
const MAX_URL: usize = 2_048;
const MAX_BATCH: usize = 1_000;
/// The least room: for a few batches.
const MIN_SPOOL: u64 = 64 * 1024;
const MAX_SPOOL: u64 = 1 << 40;
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// `[webhook]`: where the events of allocations are sent. `Debug` does not show the whole URL, which may have a token.
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook {
    /// The URL of the receiver. It begins with `https://`, or with `http://`.
    pub url: String,
    /// The keys of the signatures: at least one. Each request has a signature with each of them.
    pub secrets: Vec<Secret>,
    /// The kinds of events that are sent, without duplicates. Never empty.
    pub events: Vec<WebhookEvent>,
    /// The most events of a request, 1 to 1000.
    pub batch: usize,
    /// How long an event waits for further ones, at most 1 minute.
    pub interval: Duration,
    /// The most bytes of events that wait for the receiver.
    pub spool: u64,
    /// The longest time of a request, 1 s to 1 minute.
    pub timeout: Duration,
    /// The certificates, in PEM, of the authorities that the certificate of the receiver comes from. `None`: those that
    /// browsers trust.
    pub ca: Option<PathBuf>,
    /// Whether the URL may begin with `http://` although the receiver is not on this machine.
    pub allow_http: bool,
}

impl Webhook {
    /// Returns the scheme, the host and the port of the URL, for messages: the rest may contain a token.
    #[must_use]
    pub fn origin(&self) -> &str {
        let host = self.url.find("://").map_or(0, |at| at + 3);
        let rest = self.url.get(host..).unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        self.url.get(..host + end).unwrap_or_default()
    }
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url: _, secrets, events, batch, interval, spool, timeout, ca, allow_http } = self;
        f.debug_struct("Webhook")
            .field("origin", &self.origin())
            .field("secrets", secrets)
            .field("events", events)
            .field("batch", batch)
            .field("interval", interval)
            .field("spool", spool)
            .field("timeout", timeout)
            .field("ca", ca)
            .field("allow_http", allow_http)
            .finish()
    }
}

/// A kind of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebhookEvent {
    /// An allocation has begun.
    Started,
    /// What an allocation has relayed until the present.
    Usage,
    /// An allocation has ended.
    Ended,
}

impl WebhookEvent {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Started, Self::Usage, Self::Ended];

    /// Returns the choice as written in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Usage => "usage",
            Self::Ended => "ended",
        }
    }
}

/// Reads `[webhook]`.
pub(super) fn webhook(top: &Section<'_>, report: &mut Report<'_>) -> Option<Webhook> {
    let header = top.span("webhook");
    let section = top.section("webhook", &schema::WEBHOOK, report)?;
    let errors = report.errors.len();
    let allow_http = section.boolean("allow-http", report).unwrap_or_default();
    let webhook = Webhook {
        url: url(&section, &header, allow_http, report),
        secrets: secrets(&section, &header, report),
        events: events(&section, report),
        batch: section.number("batch", 1..=MAX_BATCH, report).unwrap_or(100),
        interval: duration(&section, "interval", Duration::ZERO, MINUTE, report).unwrap_or(SECOND),
        spool: section.number("spool", MIN_SPOOL..=MAX_SPOOL, report).unwrap_or(16 << 20),
        timeout: duration(&section, "timeout", SECOND, MINUTE, report).unwrap_or(10 * SECOND),
        ca: paths::of_authorities(&section, "ca-file", report),
        allow_http,
    };
    (report.errors.len() == errors).then_some(webhook)
}

/// Warns if the events that wait for the receiver are lost when the process ends.
pub(super) fn warn_without_state(
    top: &Section<'_>,
    webhook: Option<&Webhook>,
    state: Option<&Path>,
    report: &mut Report<'_>,
) {
    if webhook.is_some() && state.is_none() {
        report.warn(
            &top.span("webhook"),
            "`[webhook]`: events that the receiver has not taken are lost when the server stops, because there is no \
             directory for them: set `state-directory`, or StateDirectory=turnserver in the unit",
        );
    }
}

fn url(section: &Section<'_>, header: &Range<usize>, allow_http: bool, report: &mut Report<'_>) -> String {
    const FORM: &str = "for example \"https://billing.example.org/turn\"";
    let Some(url) = section.string("url", report) else {
        if section.value("url").is_none() {
            report.error(header, format!("`[webhook]` has no `url`: set that of the receiver, {FORM}"));
        }
        return String::new();
    };
    let text = *url.get_ref();
    match check_url(text, allow_http) {
        Ok(()) => {}
        Err(why) => report.error(&url.span(), format!("`webhook.url` {why}, {FORM}")),
    }
    text.to_owned()
}

/// A URL may contain a token, so messages do not contain it.
fn check_url(text: &str, allow_http: bool) -> Result<(), &'static str> {
    let (is_plain, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
        (Some(rest), _) => (false, rest),
        (_, Some(rest)) => (true, rest),
        _ => return Err("must begin with https://"),
    };
    if text.len() > MAX_URL || !text.bytes().all(|byte| byte.is_ascii_graphic() && !b"#\\\"<>".contains(&byte)) {
        return Err("is no URL: it has a character that a URL does not have, or is longer than 2048 bytes");
    }
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err("must not contain a user or a password");
    }
    let parts = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']'),
        None => authority.find(':').map_or(Some((authority, "")), |at| authority.split_at_checked(at)),
    };
    let (host, port) = parts.filter(|(host, _)| !host.is_empty()).ok_or("has no host")?;
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
        return Err("has no valid port: it is a number from 1 to 65535 after the host and a `:`");
    }
    // The same steps as for a request.
    let uri: Result<Uri, _> = text.parse();
    let path = uri.ok().and_then(|uri| uri.path_and_query()?.as_str().parse::<Uri>().ok());
    path.ok_or("is no URL: a host with a port, a path that begins with / and a query are expected")?;
    let is_loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if is_plain && !is_loopback && !allow_http {
        return Err("sends the events without encryption: use https://, or set `webhook.allow-http = true`");
    }
    Ok(())
}

fn secrets(section: &Section<'_>, header: &Range<usize>, report: &mut Report<'_>) -> Vec<Secret> {
    let Some(name) = section.string("secret-file", report) else {
        if section.value("secret-file").is_none() {
            report.error(
                header,
                "`[webhook]` has no `secret-file`: create one with `echo whsec_$(openssl rand -base64 32) > FILE`, and \
                 give the receiver the same secret",
            );
        }
        return Vec::new();
    };
    let (span, name) = (name.span(), *name.get_ref());
    let Some(path) = paths::of_key(section, "secret-file", report) else { return Vec::new() };
    let (shown, origin) = (quoted(&path.display().to_string()), paths::origin(name));
    if credentials::readable_by_others(&path) {
        report.warn(
            &span,
            format!("`webhook.secret-file`: {shown} is world-readable: run `chmod 640 {}`", path.display()),
        );
    }
    read_secrets(&path).unwrap_or_else(|why| {
        report.error(&span, format!("`webhook.secret-file`: {shown}{origin} {why}"));
        Vec::new()
    })
}

fn read_secrets(path: &Path) -> Result<Vec<Secret>, String> {
    let text = file::read(path);
    let text = text.map_err(|error| format!("cannot be read: {}", credentials::read_failure(&error)))?;
    let text = str::from_utf8(&text).map_err(|_| "is not UTF-8 text".to_owned())?;
    let mut secrets = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let encoded = line.strip_prefix(PREFIX).unwrap_or(line);
        let decoded = STANDARD.decode(encoded).map(Zeroizing::new).ok();
        let secret = decoded.filter(|bytes| SECRET.contains(&bytes.len())).and_then(|bytes| {
            let bytes: &[u8] = &bytes;
            Secret::new(bytes).ok()
        });
        let secret = secret.ok_or_else(|| {
            format!(
                "has no secret in line {}: a secret is {PREFIX} and 24 to 64 random bytes in base64; create one with \
                 `echo {PREFIX}$(openssl rand -base64 32)`",
                index + 1
            )
        })?;
        if !secrets.contains(&secret) {
            secrets.push(secret);
        }
    }
    match secrets.len() {
        0 => Err("contains no secret: write one secret per line".to_owned()),
        1..=MAX_SECRETS => Ok(secrets),
        _ => Err(format!("contains more than {MAX_SECRETS} secrets: remove those that no receiver needs")),
    }
}

fn events(section: &Section<'_>, report: &mut Report<'_>) -> Vec<WebhookEvent> {
    let Some(words) = section.strings("events", report) else { return WebhookEvent::ALL.to_vec() };
    let mut events = Vec::new();
    for word in &words {
        let event = one_of("`webhook.events`", word, &WebhookEvent::ALL, WebhookEvent::as_str, report);
        events.extend(event.filter(|event| !events.contains(event)));
    }
    if words.is_empty() {
        report.error(&section.span("events"), "`webhook.events` is empty: omit it, or omit `[webhook]`");
    }
    events
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_url_without_encryption_leads_to_this_machine_only() {
        for right in [
            "https://billing.example.org/turn?x=1",
            "https://192.0.2.7:8443",
            "http://localhost:8080/",
            "http://127.0.0.1:1",
            "http://[::1]:8080/hook",
            "https://a.example:65535",
        ] {
            assert_eq!(check_url(right, false), Ok(()), "{right}");
        }
        for wrong in [
            "",
            "billing.example.org",
            "ftp://a/",
            "https://",
            "https:///x",
            "https://a b/",
            "https://a/#x",
            "https://user:password@a/",
            "http://localhost.example.org/",
            "http://localhost@example.org/",
            "http://127.0.0.1.example.org/",
            "http://[::1",
            "http://192.0.2.7/",
            "https://a.example:99999/",
            "https://a.example:0/",
            "https://a.example:/",
            "https://a.example:https/",
            "https://[2001:db8::1]x/",
            "https://a.example/`id`",
            "https://a.example?token=1",
        ] {
            assert!(check_url(wrong, false).is_err(), "{wrong}");
        }
        assert_eq!(check_url("http://192.0.2.7/", true), Ok(()));
    }

    /// A file of this test, deleted when dropped.
    struct Written(PathBuf);

    impl Written {
        fn new(name: &str, text: &str) -> Self {
            let path = std::env::temp_dir().join(format!("turnserver-webhook-{name}-{}", std::process::id()));
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            Self(path)
        }
    }

    impl Drop for Written {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_file_of_secrets_has_one_per_line_with_or_without_its_prefix() {
        let (one, other) = (STANDARD.encode([1; 24]), STANDARD.encode([2; 64]));
        let file = Written::new("right", &format!("# the new one\n{PREFIX}{one}\r\n\n  {other}\n{one}\n"));
        let secrets = read_secrets(&file.0).unwrap();
        let bytes: Vec<&[u8]> = secrets.iter().map(Secret::as_bytes).collect();
        assert_eq!(bytes, [&[1; 24][..], &[2; 64]]);
    }

    #[test]
    fn a_wrong_secret_is_an_error_with_its_line_and_without_its_text() {
        let five: String = (1..=5).map(|byte| STANDARD.encode([byte; 24]) + "\n").collect();
        for (text, part) in [
            ("", "contains no secret"),
            ("# whsec_x\n", "contains no secret"),
            ("\nopensesame\n", "has no secret in line 2: a secret is whsec_ and 24 to 64 random bytes in base64"),
            ("whsec_b3BlbnNlc2FtZQ==\n", "has no secret in line 1"),
            (&five, "contains more than 4 secrets"),
        ] {
            let file = Written::new("wrong", text);
            let why = read_secrets(&file.0).unwrap_err();
            assert!(why.contains(part) && !why.contains("opensesame") && !why.contains("b3Blb"), "{why}");
        }
        assert!(read_secrets(Path::new("/nonexistent")).unwrap_err().contains("cannot be read: file not found"));
    }

    #[test]
    fn what_is_missing_or_wrong_is_an_error_that_says_what_is_right() {
        let file = Written::new("used", &STANDARD.encode([1; 24]));
        let with = |keys: &str| {
            let text = format!("state-directory = \"/srv\"\n[webhook]\nsecret-file = {:?}\n{keys}", file.0);
            crate::config::Config::parse(&text, "t.toml")
        };
        let error = |keys: &str| with(keys).unwrap_err().to_string();
        assert!(error("").contains("`[webhook]` has no `url`"));
        let url = "url = \"https://a.example/secret-token\"\n";
        for (keys, part) in [
            ("events = []", "`webhook.events` is empty"),
            ("events = [\"endet\"]", "did you mean `ended`?"),
            ("batch = 0", "`webhook.batch` must be between 1 and 1000"),
            ("spool = 1000", "`webhook.spool` must be between 65536 and"),
            ("timeout = \"2m\"", "`webhook.timeout` must be between 1s and 1m"),
            ("ca-file = \"/nonexistent\"", "`webhook.ca-file`: `/nonexistent` cannot be read"),
        ] {
            let error = error(&format!("{url}{keys}"));
            assert!(error.contains(part) && !error.contains("secret-token"), "{error}");
        }
        let wrong = error("url = \"http://a.example/secret-token\"");
        assert!(wrong.contains("`webhook.url` sends the events without encryption"), "{wrong}");
        assert!(!wrong.contains("secret-token"), "{wrong}");
        let right = with(url).unwrap();
        let webhook = right.webhook.clone().unwrap();
        assert_eq!((webhook.origin(), webhook.events.len()), ("https://a.example", 3));
        assert!(right.warnings.is_empty(), "{:?}", right.warnings);
        assert!(!right.summary().to_string().contains("secret-token"));
        let shown = format!("{webhook:?}");
        assert!(shown.contains("https://a.example\"") && !shown.contains("secret-token"), "{shown}");
    }
}
