//! `[[http.keys]]`: the keys with which applications get credentials. No message contains a key or its hash.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeTable;

use super::credentials::DAY;
use super::general::{duration, name_of};
use super::problem::{Report, quoted};
use super::reader::Section;
use super::{Auth, Http, HttpKey, keys_file, schema};
use crate::auth::KeyHash;

const MINUTE: Duration = Duration::from_secs(60);
const DEFAULT_TTL: Duration = Duration::from_secs(10 * 86_400);
const MAX_NAME: usize = 64;
/// A username has at most 508 bytes (RFC 8489 §14.3), with the expiry and the rest of the name.
const MAX_PREFIX: usize = 256;
const MAX_REQUESTS: u32 = 10_000;

/// Reads the keys of `[http]`, which has these listeners, and those of its `keys-file`.
pub(super) fn keys(section: &Section<'_>, listen: &[SocketAddr], tls: bool, report: &mut Report<'_>) -> Vec<HttpKey> {
    let mut keys = Vec::new();
    append(section, &mut keys, report);
    keys_file::append(section, &mut keys, report);
    if !keys.is_empty() {
        warn_of_listeners(section, listen, tls, report);
    }
    keys
}

/// Appends the keys of a section.
pub(super) fn append(section: &Section<'_>, keys: &mut Vec<HttpKey>, report: &mut Report<'_>) {
    for table in section.tables("keys", report) {
        let Some(key) = key(table.get_ref(), table.span(), report) else { continue };
        let (span, key) = (key.span(), key.into_inner());
        if keys.iter().any(|other| other.name == key.name) {
            report.error(&span, format!("the name {} of a key is used twice", quoted(&key.name)));
        }
        if let Some(other) = keys.iter().find(|other| other.hash == key.hash) {
            let (one, other) = (quoted(&key.name), quoted(&other.name));
            report.error(&span, format!("the keys {other} and {one} have the same `sha256`"));
        }
        keys.push(key);
    }
}

/// Warns of keys that cannot be used because there are only static users.
pub(super) fn warn_without_secret(top: &Section<'_>, http: &Http, auth: &Auth, report: &mut Report<'_>) {
    if !http.keys.is_empty() && auth.secrets.is_empty() && (!auth.users.is_empty() || auth.redis.is_some()) {
        report.warn(
            &top.span("http"),
            "there are keys for credentials over HTTP, but no credential can be made for them, because there is no \
             secret: set `secrets` or `secrets-file` in `[auth]`",
        );
    }
}

fn warn_of_listeners(section: &Section<'_>, listen: &[SocketAddr], tls: bool, report: &mut Report<'_>) {
    if listen.is_empty() {
        report.warn(
            &section.span(if section.value("keys").is_some() { "keys" } else { "keys-file" }),
            "there are keys for credentials over HTTP, but `http.listen` has no address, so no program can use them \
             (the control socket does not serve credentials): set `http.listen`, for example to [\"127.0.0.1:9641\"]",
        );
    } else if !tls && listen.iter().any(|address| !address.ip().is_loopback()) {
        report.warn(
            &section.span("listen"),
            "keys and credentials cross the network unencrypted: set `http.tls`, or listen on a loopback address \
             behind a proxy with TLS",
        );
    }
}

/// Reads one `[[http.keys]]`, with the span of its name.
fn key(table: &DeTable<'_>, header: Range<usize>, report: &mut Report<'_>) -> Option<Spanned<HttpKey>> {
    let section = Section::new(&schema::HTTP_KEY, table, report);
    for required in ["name", "sha256"] {
        if section.value(required).is_none() {
            report.error(
                &header,
                format!("a key has no `{required}`: `turn-credential key` makes a key and prints this block"),
            );
        }
    }
    let name = name(&section, report);
    let hash = hash(&section, report);
    let ttl = duration(&section, "ttl", MINUTE, 365 * DAY, report).unwrap_or(DEFAULT_TTL);
    let user_prefix = user_prefix(&section, report);
    let origins = origins(&section, report);
    let requests_per_second = section.number("requests-per-second", 0..=MAX_REQUESTS, report).unwrap_or_default();
    let name = name?;
    let span = name.span();
    let key = HttpKey { name: name.into_inner(), hash: hash?, ttl, user_prefix, origins, requests_per_second };
    Some(Spanned::new(span, key))
}

/// Whether a text can be the name of a key.
#[must_use]
pub fn is_key_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(is_plain)
}

/// What [`is_key_name`] checks, as the end of a message.
pub const KEY_NAME_RULE: &str = "must be 1 to 64 letters, digits, dots, hyphens and underscores";

fn name(section: &Section<'_>, report: &mut Report<'_>) -> Option<Spanned<String>> {
    let name = section.string("name", report)?;
    let (span, name) = (name.span(), *name.get_ref());
    if !is_key_name(name) {
        report.error(&span, format!("the `name` of a key {KEY_NAME_RULE}"));
        return None;
    }
    Some(Spanned::new(span, name.to_owned()))
}

fn hash(section: &Section<'_>, report: &mut Report<'_>) -> Option<KeyHash> {
    let text = section.string("sha256", report)?;
    let hash = KeyHash::from_hex(text.get_ref());
    if hash.is_none() {
        // The value may be the key itself.
        report.error(
            &text.span(),
            "`sha256` must be the 64 hexadecimal digits that `turn-credential key` prints, not the key itself",
        );
    }
    hash
}

fn user_prefix(section: &Section<'_>, report: &mut Report<'_>) -> String {
    let Some(prefix) = section.string("user-prefix", report) else { return String::new() };
    let (span, prefix) = (prefix.span(), *prefix.get_ref());
    if prefix.len() > MAX_PREFIX {
        report.error(&span, format!("`user-prefix` has {} bytes; the maximum is {MAX_PREFIX}", prefix.len()));
    }
    if let Some(bad) = prefix.chars().find(|c| c.is_control()) {
        report.error(&span, format!("`user-prefix` must not contain {}", name_of(bad)));
    }
    prefix.to_owned()
}

fn origins(section: &Section<'_>, report: &mut Report<'_>) -> Vec<String> {
    let mut origins: Vec<String> = Vec::new();
    for text in section.strings("origins", report).unwrap_or_default() {
        let (span, origin) = (text.span(), *text.get_ref());
        match check_origin(origin) {
            Err(why) => report.error(&span, format!("`origins`: {} {why}", quoted(origin))),
            Ok(()) if origins.iter().any(|other| other == origin) => {
                report.error(&span, format!("`origins` contains {} twice", quoted(origin)));
            }
            Ok(()) => origins.push(origin.to_owned()),
        }
    }
    origins
}

/// Checks that an origin is written as browsers send it (RFC 6454 §6.2), because it is compared byte by byte.
fn check_origin(origin: &str) -> Result<(), &'static str> {
    const FORM: &str = "is not an origin: write scheme, host and port only, for example \"https://app.example.org\"";
    let (scheme, host) = origin.split_once("://").ok_or(FORM)?;
    let is_host = |byte: u8| byte.is_ascii_graphic() && !b"/?#@*\\\"".contains(&byte);
    if scheme.is_empty() || !scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)) {
        return Err(FORM);
    }
    if host.is_empty() || !host.bytes().all(is_host) {
        return Err(FORM);
    }
    if origin.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("has capital letters, but browsers send origins in lowercase");
    }
    if matches!(scheme, "https") && host.ends_with(":443") || matches!(scheme, "http") && host.ends_with(":80") {
        return Err("has the default port of its scheme, which browsers do not send: omit it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_written_as_browsers_send_it() {
        for right in
            ["https://app.example.org", "http://localhost:5173", "https://[2001:db8::7]:8443", "capacitor://localhost"]
        {
            assert_eq!(check_origin(right), Ok(()), "{right}");
        }
        for wrong in [
            "",
            "*",
            "null",
            "app.example.org",
            "https://",
            "://a",
            "https://a/",
            "https://a/path",
            "https://u@a",
            "https://*.example.org",
            "https://a b",
            "https://App.example.org",
            "https://a:443",
            "http://a:80",
        ] {
            assert!(check_origin(wrong).is_err(), "{wrong}");
        }
    }
}
