//! `[auth]`: secrets, the secrets file and static users. No message contains a secret or a password.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use toml::Spanned;
use toml::de::DeTable;
use zeroize::Zeroizing;

use super::general::{duration, name_of};
use super::problem::{Report, quoted};
use super::reader::Section;
use super::{Auth, StaticUser, paths, schema};
use crate::auth::Secret;
use crate::auth::time_limited::TimeLimitedUsername;

pub(super) const DAY: Duration = Duration::from_secs(86_400);
const SECOND: Duration = Duration::from_secs(1);
/// The minimum length of a strong secret, in bytes. Shorter secrets can be guessed.
const MIN_STRONG_SECRET: usize = 16;
/// RFC 8489 §14.3: fewer than 509 bytes.
const MAX_USERNAME: usize = 508;

pub(super) fn auth(top: &Section<'_>, report: &mut Report<'_>) -> Auth {
    let default = Auth::default();
    let Some(section) = top.section("auth", &schema::AUTH, report) else { return default };
    let mut secrets: Vec<Secret> = Vec::new();
    for secret in section.strings("secrets", report).unwrap_or_default() {
        secrets.extend(inline_secret("`auth.secrets`", &secret, report));
    }
    secrets.extend(secrets_file(&section, report));
    Auth {
        users: users(&section, report),
        nonce_lifetime: duration(&section, "nonce-lifetime", SECOND, DAY, report).unwrap_or(default.nonce_lifetime),
        expiry_grace: duration(&section, "expiry-grace", Duration::ZERO, 365 * DAY, report)
            .unwrap_or(default.expiry_grace),
        secrets,
    }
}

fn inline_secret(name: &str, text: &Spanned<&str>, report: &mut Report<'_>) -> Option<Secret> {
    warn_if_world_readable(&text.span(), report);
    let secret = Secret::new(text.get_ref().as_bytes()).ok();
    match &secret {
        None => report
            .error(&text.span(), format!("{name} contains an empty secret: create one with `openssl rand -hex 32`")),
        Some(secret) if secret.as_bytes().len() < MIN_STRONG_SECRET => {
            report.warn(&text.span(), format!("{name} contains {SHORT_SECRET}"));
        }
        Some(_) => {}
    }
    secret
}

const SHORT_SECRET: &str =
    "a secret shorter than 16 bytes, which can be guessed: create one with `openssl rand -hex 32`";

/// Warns once that the configuration file, which contains a secret at `span`, is world-readable.
fn warn_if_world_readable(span: &std::ops::Range<usize>, report: &mut Report<'_>) {
    if std::mem::take(&mut report.world_readable) {
        let file = report.file();
        report.warn(span, format!("this file contains a secret and is world-readable: run `chmod 640 {file}`"));
    }
}

/// Reads the secrets in `secrets-file`.
fn secrets_file(section: &Section<'_>, report: &mut Report<'_>) -> Vec<Secret> {
    let Some(name) = section.string("secrets-file", report) else { return Vec::new() };
    let (span, name) = (name.span(), *name.get_ref());
    if name.is_empty() {
        report.error(&span, "`auth.secrets-file` is empty: omit it if there is no such file");
        return Vec::new();
    }
    let path = match paths::resolve(report.file(), name) {
        Ok(path) => path,
        Err(why) => {
            report.error(&span, format!("`auth.secrets-file`: {why}"));
            return Vec::new();
        }
    };
    let text = match fs::read_to_string(&path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) => {
            report.error(
                &span,
                format!(
                    "`auth.secrets-file`: {}{} cannot be read: {}",
                    quoted(&path.display().to_string()),
                    paths::origin(name),
                    read_failure(&error)
                ),
            );
            return Vec::new();
        }
    };
    if readable_by_others(&path) {
        let path = path.display();
        report.warn(&span, format!("`auth.secrets-file`: `{path}` is world-readable: run `chmod 640 {path}`"));
    }
    let mut secrets: Vec<Secret> = Vec::new();
    let shown = path.display().to_string();
    let mut inner = Report::new(&shown, &text);
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let content = line.trim();
        let start = offset + (line.len() - line.trim_start().len());
        offset += line.len();
        if content.starts_with('#') {
            continue;
        }
        // Only an empty line is invalid as a secret.
        let Ok(secret) = Secret::new(content.as_bytes()) else { continue };
        if secret.as_bytes().len() < MIN_STRONG_SECRET {
            inner.warn(&(start..offset), SHORT_SECRET);
        }
        secrets.push(secret);
    }
    report.warnings.append(&mut inner.warnings);
    if secrets.is_empty() {
        let origin = paths::origin(name);
        report.error(
            &span,
            format!("`auth.secrets-file`: `{shown}`{origin} contains no secret: write one secret per line"),
        );
    }
    secrets
}

pub(super) fn readable_by_others(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o004 != 0)
}

/// Describes why a file cannot be read, with the user if the permission is denied.
pub(crate) fn read_failure(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "file not found".to_owned(),
        io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
        io::ErrorKind::InvalidData => "it is not UTF-8 text".to_owned(),
        io::ErrorKind::PermissionDenied => match effective_user() {
            Some(user) => format!("permission denied for {user}"),
            None => "permission denied".to_owned(),
        },
        _ => error.to_string(),
    }
}

/// Returns the user of this process: the owner of `/proc/self`. The standard library cannot return the user directly.
fn effective_user() -> Option<String> {
    let uid = fs::metadata("/proc/self").ok()?.uid();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    });
    Some(match name {
        Some(name) => format!("user {name} (uid {uid})"),
        None => format!("uid {uid}"),
    })
}

fn users(section: &Section<'_>, report: &mut Report<'_>) -> Vec<StaticUser> {
    let mut users = Vec::new();
    let mut seen = HashMap::new();
    for table in section.tables("users", report) {
        let Some(user) = user(table.get_ref(), table.span(), report) else { continue };
        let (span, user) = (user.span(), user.into_inner());
        if let Some(first) = seen.insert(user.name.clone(), span.start) {
            let line = report.line_of(first);
            report.error(&span, format!("user {} is defined twice; the first is in line {line}", quoted(&user.name)));
        }
        users.push(user);
    }
    users
}

/// Reads one `[[auth.users]]`, with the span of its name.
fn user(table: &DeTable<'_>, header: std::ops::Range<usize>, report: &mut Report<'_>) -> Option<Spanned<StaticUser>> {
    let section = Section::new(&schema::USER, table, report);
    let name = section.string("name", report);
    let password = section.string("password", report);
    let who = name.as_ref().map_or_else(|| "a user".to_owned(), |name| format!("user {}", quoted(name.get_ref())));
    if section.value("name").is_none() {
        report.error(&header, "a user has no `name`");
    }
    if section.value("password").is_none() {
        report.error(&header, format!("{who} has no `password`"));
    }
    if let Some(name) = &name {
        check_username(name, report);
    }
    let password = password.and_then(|password| {
        warn_if_world_readable(&password.span(), report);
        let secret = Secret::new(password.get_ref().as_bytes()).ok();
        if secret.is_none() {
            report.error(&password.span(), format!("the password of {who} is empty"));
        }
        secret
    })?;
    let name = name?;
    Some(Spanned::new(name.span(), StaticUser { name: (*name.get_ref()).to_owned(), password }))
}

fn check_username(name: &Spanned<&str>, report: &mut Report<'_>) {
    let (span, name) = (name.span(), *name.get_ref());
    if name.is_empty() {
        report.error(&span, "the `name` of a user is empty");
    }
    if name.len() > MAX_USERNAME {
        let length = name.len();
        report.error(
            &span,
            format!("the `name` of a user has {length} bytes; the maximum is {MAX_USERNAME} (RFC 8489 §14.3)"),
        );
    }
    // RFC 8265 §4.2: the OpaqueString profile excludes control characters, so no client can send this name.
    if let Some(bad) = name.chars().find(|c| c.is_control()) {
        report.error(&span, format!("the `name` of a user must not contain {}", name_of(bad)));
    }
    if TimeLimitedUsername::parse(name).is_some() {
        report.warn(
            &span,
            format!(
                "user {} has a name in the form of a time-limited credential, but its password never expires",
                quoted(name)
            ),
        );
    }
}
