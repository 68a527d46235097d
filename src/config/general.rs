//! The top level and the sections of plain values: `[limits]`, `[timeouts]`, `[compat]`, `[log]`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::credentials::DAY;
use super::problem::{Report, closest, quoted};
use super::reader::{Section, list};
use super::{
    Compat, Config, IcmpIndications, Limits, Log, LogFormat, LogLevel, Timeouts, format_duration, parse_duration,
    schema,
};
use crate::privacy::{ClientAddresses, Usernames};

const MAX_WORKERS: usize = 1024;
/// The number of channel numbers with `compat.rfc5766-channels`: 0x4000–0x7FFF.
const MAX_CHANNELS: u16 = 16_384;
/// RFC 8489 §14.9: fewer than 128 characters.
const MAX_REALM: usize = 127;
/// The longest realm, in bytes, that causes no warning: a challenge then has three times the bytes of its request.
const LONG_REALM: usize = 64;

pub(super) fn realm(top: &Section<'_>, report: &mut Report<'_>) -> String {
    let Some(realm) = top.string("realm", report) else { return Config::default().realm };
    let (span, realm) = (realm.span(), *realm.get_ref());
    let length = realm.chars().count();
    if realm.is_empty() {
        report.error(&span, "`realm` is empty: omit it to use the default, or set the domain of your service");
    } else if length > MAX_REALM {
        report.error(&span, format!("`realm` has {length} characters; the maximum is {MAX_REALM} (RFC 8489 §14.9)"));
    } else if realm.len() > LONG_REALM {
        report.warn(
            &span,
            format!(
                "`realm` has {} bytes, and each 401 response contains it: requests with a forged source make the \
                 server send several times as many bytes to that source. Use at most {LONG_REALM} bytes",
                realm.len()
            ),
        );
    }
    // RFC 8489 §14.9: qdtext excludes quotes and backslashes, because clients quote the realm.
    if let Some(bad) = realm.chars().find(|c| c.is_control() || matches!(c, '"' | '\'' | '\\')) {
        report.error(&span, format!("`realm` must not contain {}", name_of(bad)));
    }
    realm.to_owned()
}

/// Reads the hostname in URL form.
pub(super) fn hostname(top: &Section<'_>, report: &mut Report<'_>) -> Option<String> {
    let hostname = top.string("hostname", report)?;
    match check_host(hostname.get_ref()) {
        Ok(host) => Some(host),
        Err(why) => {
            report.error(&hostname.span(), format!("`hostname` {} {why}", quoted(hostname.get_ref())));
            None
        }
    }
}

pub(super) fn check_host(host: &str) -> Result<String, String> {
    const EXAMPLE: &str = "use only the name or the address, for example \"turn.example.org\"";
    if host.is_empty() {
        return Err(format!("is empty: {EXAMPLE}"));
    }
    let inside_brackets = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if inside_brackets.parse::<Ipv6Addr>().is_ok() {
        return Ok(format!("[{inside_brackets}]"));
    }
    if host.contains(char::is_whitespace) {
        return Err(format!("contains a space: {EXAMPLE}"));
    }
    if host.contains("://") || ["stun:", "stuns:", "turn:", "turns:"].iter().any(|scheme| host.starts_with(scheme)) {
        return Err(format!("contains a scheme: {EXAMPLE}"));
    }
    if host.contains('/') {
        return Err(format!("contains a slash: {EXAMPLE}"));
    }
    if host.contains(':') {
        return Err(format!("contains a port: {EXAMPLE}; ports belong in `[listen]`"));
    }
    if host.contains('*') {
        return Err(format!("contains a wildcard: {EXAMPLE}"));
    }
    if !host.is_ascii() {
        return Err("is not ASCII: use the form that starts with xn--".to_owned());
    }
    if let Some(bad) = host.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '.')) {
        return Err(format!("contains {}: {EXAMPLE}", name_of(bad)));
    }
    let labels = host.strip_suffix('.').unwrap_or(host);
    if labels.len() > 253 || labels.split('.').any(|label| label.is_empty() || label.len() > 63) {
        return Err("is not a valid name: a label has 1 to 63 characters, the name at most 253".to_owned());
    }
    // Resolvers treat a name of only digits and dots as an address (RFC 3986 §3.2.2).
    if host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') && host.parse::<Ipv4Addr>().is_err() {
        return Err("is not an IPv4 address: it must have four numbers from 0 to 255".to_owned());
    }
    Ok(host.to_owned())
}

pub(super) fn workers(top: &Section<'_>, report: &mut Report<'_>) -> usize {
    top.number("workers", 0..=MAX_WORKERS, report).unwrap_or_default()
}

pub(super) fn drain_deadline(top: &Section<'_>, report: &mut Report<'_>) -> Duration {
    let deadline = duration(top, "drain-deadline", Duration::ZERO, DAY, report);
    deadline.unwrap_or_else(|| Config::default().drain_deadline)
}

pub(super) fn limits(top: &Section<'_>, report: &mut Report<'_>) -> Limits {
    let default = Limits::default();
    let Some(section) = top.section("limits", &schema::LIMITS, report) else { return default };
    let bytes = [
        ("bytes-per-second-per-allocation", default.bytes_per_second_per_allocation),
        ("bytes-per-second-per-user", default.bytes_per_second_per_user),
    ];
    let [bytes_per_second_per_allocation, bytes_per_second_per_user] =
        bytes.map(|(key, default)| section.number(key, 0..=u32::MAX, report).unwrap_or(default));
    if (1..bytes_per_second_per_allocation).contains(&bytes_per_second_per_user) {
        report.warn(
            &section.span("bytes-per-second-per-allocation"),
            "`limits.bytes-per-second-per-allocation` has no effect: `limits.bytes-per-second-per-user` is lower",
        );
    }
    let allocations_per_user =
        section.number("allocations-per-user", 0..=u32::MAX, report).unwrap_or(default.allocations_per_user);
    // Without a limit on the allocations of a user, one user may be many people.
    let default_rate = if allocations_per_user == 0 { 0 } else { default.allocations_per_second_per_user };
    Limits {
        bytes_per_second_per_allocation,
        bytes_per_second_per_user,
        allocations_per_second_per_user: section
            .number("allocations-per-second-per-user", 0..=1_000, report)
            .unwrap_or(default_rate),
        peers_per_second: section.number("peers-per-second", 0..=10_000, report).unwrap_or(default.peers_per_second),
        allocations_per_user,
        allocations: section.number("allocations", 0..=u32::MAX, report).unwrap_or(default.allocations),
        permissions_per_allocation: section
            .number("permissions-per-allocation", 1..=u16::MAX, report)
            .unwrap_or(default.permissions_per_allocation),
        channels_per_allocation: section
            .number("channels-per-allocation", 1..=MAX_CHANNELS, report)
            .unwrap_or(default.channels_per_allocation),
        connections: section.number("connections", 0..=u32::MAX, report).unwrap_or(default.connections),
        connections_per_source: section
            .number("connections-per-source", 0..=u32::MAX, report)
            .unwrap_or(default.connections_per_source),
        allocated_connections_per_source: section
            .number("allocated-connections-per-source", 0..=u32::MAX, report)
            .unwrap_or(default.allocated_connections_per_source),
        unverified_responses: section
            .number("unverified-responses", 0..=1000, report)
            .unwrap_or(default.unverified_responses),
        failed_authentications: section
            .number("failed-authentications", 0..=1000, report)
            .unwrap_or(default.failed_authentications),
    }
}

pub(super) fn timeouts(top: &Section<'_>, report: &mut Report<'_>) -> Timeouts {
    const SECOND: Duration = Duration::from_secs(1);
    const FIVE_MINUTES: Duration = Duration::from_secs(300);
    let default = Timeouts::default();
    let Some(section) = top.section("timeouts", &schema::TIMEOUTS, report) else { return default };
    let mut read = |key, max, default| duration(&section, key, SECOND, max, report).unwrap_or(default);
    Timeouts {
        tls_handshake: read("tls-handshake", FIVE_MINUTES, default.tls_handshake),
        first_request: read("first-request", FIVE_MINUTES, default.first_request),
        idle: read("idle", DAY, default.idle),
        unauthenticated: read("unauthenticated", DAY, default.unauthenticated),
    }
}

pub(super) fn compat(top: &Section<'_>, report: &mut Report<'_>) -> Compat {
    let Some(section) = top.section("compat", &schema::COMPAT, report) else { return Compat::default() };
    let icmp = section.string("icmp-indications", report);
    Compat {
        icmp_indications: icmp
            .and_then(|word| {
                let name = "`compat.icmp-indications`";
                one_of(name, &word, &IcmpIndications::ALL, IcmpIndications::as_str, report)
            })
            .unwrap_or_default(),
        rfc5766_channels: section.boolean("rfc5766-channels", report).unwrap_or_default(),
        draft_dual_allocation: section.boolean("draft-dual-allocation", report).unwrap_or_default(),
    }
}

pub(super) fn log(top: &Section<'_>, report: &mut Report<'_>) -> Log {
    let Some(section) = top.section("log", &schema::LOG, report) else { return Log::default() };
    let level = section.string("level", report);
    let format = section.string("format", report);
    let [addresses, usernames] = ["client-addresses", "usernames"].map(|key| section.string(key, report));
    Log {
        level: level
            .and_then(|word| one_of("`log.level`", &word, &LogLevel::ALL, LogLevel::as_str, report))
            .unwrap_or_default(),
        format: format
            .and_then(|word| one_of("`log.format`", &word, &LogFormat::ALL, LogFormat::as_str, report))
            .unwrap_or_default(),
        client_addresses: addresses
            .and_then(|word| {
                let name = "`log.client-addresses`";
                one_of(name, &word, &ClientAddresses::ALL, ClientAddresses::as_str, report)
            })
            .unwrap_or_default(),
        usernames: usernames
            .and_then(|word| one_of("`log.usernames`", &word, &Usernames::ALL, Usernames::as_str, report))
            .unwrap_or_default(),
    }
}

/// Reads a duration: a string with a unit, or a number of seconds.
pub(super) fn duration(
    section: &Section<'_>,
    key: &str,
    min: Duration,
    max: Duration,
    report: &mut Report<'_>,
) -> Option<Duration> {
    let value = section.value(key)?;
    let (span, name) = (value.span(), section.name(key));
    let duration = match value.get_ref() {
        DeValue::Integer(_) => {
            let seconds: u64 = section.number(key, min.as_secs()..=max.as_secs(), report)?;
            Duration::from_secs(seconds)
        }
        DeValue::String(text) => match parse_duration(text) {
            Ok(duration) => duration,
            Err(why) => {
                report.error(&span, format!("{name} {}: {why}", quoted(text)));
                return None;
            }
        },
        other => {
            section.mismatch(key, span, "a duration such as \"1h\"", other, report);
            return None;
        }
    };
    if !(min..=max).contains(&duration) {
        let (min, max) = (format_duration(min), format_duration(max));
        report.error(&span, format!("{name} must be between {min} and {max}"));
        return None;
    }
    Some(duration)
}

/// Reads one of several choices.
pub(super) fn one_of<T: Copy>(
    name: &str,
    word: &Spanned<&str>,
    choices: &[T],
    spelling: fn(T) -> &'static str,
    report: &mut Report<'_>,
) -> Option<T> {
    let found = choices.iter().copied().find(|choice| spelling(*choice) == *word.get_ref());
    if found.is_none() {
        let words: Vec<&str> = choices.iter().map(|choice| spelling(*choice)).collect();
        let hint = match closest(word.get_ref(), words.iter().copied()) {
            Some(candidate) => format!("; did you mean `{candidate}`?"),
            None => String::new(),
        };
        report.error(
            &word.span(),
            format!("{name} must be one of {}, not {}{hint}", list(&words), quoted(word.get_ref())),
        );
    }
    found
}

/// Describes a character for a message.
pub(super) fn name_of(character: char) -> String {
    match character {
        '"' | '\'' => "a quotation mark".to_owned(),
        '\\' => "a backslash".to_owned(),
        c if c.is_control() => format!("a control character (U+{:04X})", u32::from(c)),
        c => format!("`{c}`"),
    }
}
