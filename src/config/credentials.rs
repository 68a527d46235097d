//! `[auth]`: secrets, the secrets file and static users. No message contains a secret or a password.

use std::collections::HashMap;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use nix::unistd::{User, geteuid};
use toml::Spanned;
use toml::de::DeTable;

use super::general::{duration, name_of};
use super::problem::{Problem, Report, quoted};
use super::reader::Section;
use super::secrets::{self, BadSecret, SecretLine};
use super::{Auth, StaticCredential, StaticUser, passwords, paths, redis, schema};
use crate::auth::time_limited::TimeLimitedUsername;
use crate::auth::{LongTermKey, Secret};
use crate::file;

pub(super) const DAY: Duration = Duration::from_secs(86_400);
const SECOND: Duration = Duration::from_secs(1);
/// RFC 8489 §14.3: fewer than 509 bytes.
const MAX_USERNAME: usize = 508;

pub(super) fn auth(top: &Section<'_>, report: &mut Report<'_>) -> Auth {
    let default = Auth::default();
    let Some(section) = top.section("auth", &schema::AUTH, report) else { return default };
    let mut secrets: Vec<Secret> = Vec::new();
    for text in section.strings("secrets", report).unwrap_or_default() {
        let Some(secret) = inline_secret("`auth.secrets`", &text, report) else { continue };
        secrets.push(secret);
        if is_repeated(&secrets) {
            report.warn(&text.span(), format!("`auth.secrets` contains {REPEATED}"));
        }
    }
    secrets_file(&section, &mut secrets, report);
    Auth {
        users: users(&section, report),
        nonce_lifetime: duration(&section, "nonce-lifetime", SECOND, DAY, report).unwrap_or(default.nonce_lifetime),
        expiry_grace: duration(&section, "expiry-grace", Duration::ZERO, 365 * DAY, report)
            .unwrap_or(default.expiry_grace),
        redis: redis::redis(&section, report),
        secrets,
    }
}

fn inline_secret(name: &str, text: &Spanned<&str>, report: &mut Report<'_>) -> Option<Secret> {
    warn_if_world_readable(&text.span(), report);
    let value = *text.get_ref();
    let secret = match secrets::secret(value.as_bytes()) {
        Ok(secret) => secret,
        Err(bad @ (BadSecret::Empty | BadSecret::Blank)) => {
            report.error(&text.span(), format!("{name} contains {bad}"));
            return None;
        }
        // Unlike a line of a file, a TOML string states exactly what the secret is.
        Err(bad) => {
            report.warn(&text.span(), format!("{name} contains {bad}"));
            Secret::new(value).ok()?
        }
    };
    if value.trim() != value {
        report.warn(
            &text.span(),
            format!("{name} contains a secret that begins or ends with a blank, which is part of it"),
        );
    }
    if let Some(weakness) = secrets::weakness(&secret) {
        report.warn(&text.span(), format!("{name} contains {weakness}"));
    }
    Some(secret)
}

/// Whether the last of the secrets occurs before it.
fn is_repeated(secrets: &[Secret]) -> bool {
    secrets.split_last().is_some_and(|(last, others)| others.contains(last))
}

const REPEATED: &str = "the same secret as before: remove it";

/// Warns once that the configuration file, which contains a secret at `span`, is world-readable.
fn warn_if_world_readable(span: &Range<usize>, report: &mut Report<'_>) {
    if std::mem::take(&mut report.world_readable) {
        let file = report.file();
        report.warn(span, format!("this file contains a secret and is world-readable: run `chmod 640 {file}`"));
    }
}

/// Appends the secrets in `secrets-file`.
fn secrets_file(section: &Section<'_>, all: &mut Vec<Secret>, report: &mut Report<'_>) {
    let Some(name) = section.string("secrets-file", report) else { return };
    let (span, name) = (name.span(), *name.get_ref());
    if name.is_empty() {
        return report.error(&span, "`auth.secrets-file` is empty: omit it if there is no such file");
    }
    match paths::resolve(&report.directory, name) {
        Ok(path) => read_secrets(&path, name, &span, all, report),
        Err(why) => report.error(&span, format!("`auth.secrets-file`: {why}")),
    }
}

fn read_secrets(path: &Path, name: &str, span: &Range<usize>, all: &mut Vec<Secret>, report: &mut Report<'_>) {
    let unreadable = |error: &io::Error| {
        let (shown, origin) = (quoted(&path.display().to_string()), paths::origin(name));
        format!("`auth.secrets-file`: {shown}{origin} cannot be read: {}", read_failure(error))
    };
    let text = match file::read(path) {
        Ok(text) if str::from_utf8(&text).is_ok() => text,
        Ok(_) => return report.error(span, unreadable(&io::ErrorKind::InvalidData.into())),
        Err(error) => return report.error(span, unreadable(&error)),
    };
    if readable_by_others(path) {
        let path = path.display();
        report.warn(span, format!("`auth.secrets-file`: `{path}` is world-readable: run `chmod 640 {path}`"));
    }
    let shown = path.display().to_string();
    let mut lines = 0;
    for SecretLine { number, column, secret } in secrets::lines(&text) {
        lines += 1;
        let position = Some((number, column));
        let problem = |message| Problem { file: shown.clone(), position, message };
        match secret {
            Err(bad) => report.errors.push(problem(bad.to_string())),
            Ok(secret) => {
                report.warnings.extend(secrets::weakness(&secret).map(|weakness| problem(weakness.to_string())));
                all.push(secret);
                if is_repeated(all) {
                    report.warnings.push(problem(REPEATED.to_owned()));
                }
            }
        }
    }
    if lines == 0 {
        let origin = paths::origin(name);
        report.error(
            span,
            format!("`auth.secrets-file`: `{shown}`{origin} contains no secret: write one secret per line"),
        );
    }
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
        io::ErrorKind::PermissionDenied => format!("permission denied for {}", effective_user()),
        _ => error.to_string(),
    }
}

/// Returns the user of this process.
fn effective_user() -> String {
    let uid = geteuid();
    match User::from_uid(uid) {
        Ok(Some(user)) => format!("user {} (uid {uid})", user.name),
        _ => format!("uid {uid}"),
    }
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
        users.push(Spanned::new(span, user));
    }
    warn_of_repeated_passwords(&users, report);
    users.into_iter().map(Spanned::into_inner).collect()
}

/// Warns of users with the same password. A user who notices it can act as the other one. Warnings are logged, so these
/// have no names.
fn warn_of_repeated_passwords(users: &[Spanned<StaticUser>], report: &mut Report<'_>) {
    let mut seen = HashMap::new();
    for user in users {
        let Some(password) = user.get_ref().password() else { continue };
        if let Some(other) = seen.insert(password.as_bytes(), user.span().start) {
            let line = report.line_of(other);
            report.warn(
                &user.span(),
                format!(
                    "this user has the same password as the one in line {line}, so each can act as the other: give \
                     each a password of its own"
                ),
            );
        }
    }
}

/// Reads one `[[auth.users]]`, with the span of its name.
fn user(table: &DeTable<'_>, header: Range<usize>, report: &mut Report<'_>) -> Option<Spanned<StaticUser>> {
    let section = Section::new(&schema::USER, table, report);
    let name = section.string("name", report);
    let who = name.as_ref().map_or_else(|| "a user".to_owned(), |name| format!("user {}", quoted(name.get_ref())));
    if section.value("name").is_none() {
        report.error(&header, "a user has no `name`");
    }
    match (section.value("password"), section.value("key")) {
        (None, None) => report.error(&header, format!("{who} has no `password`")),
        (Some(_), Some(key)) => {
            report.error(&key.span(), format!("{who} has both `password` and `key`: remove one of them"));
        }
        _ => {}
    }
    if let Some(name) = &name {
        check_username(name, report);
    }
    let allocations = section.number("allocations", 0..=u32::MAX, report).unwrap_or_default();
    let password = password(&section, &who, name.as_ref().map(|name| *name.get_ref()), report);
    let key = key(&section, &who, report);
    let credential = password.map(StaticCredential::Password).or(key.map(StaticCredential::Key))?;
    let name = name?;
    Some(Spanned::new(name.span(), StaticUser { name: (*name.get_ref()).to_owned(), credential, allocations }))
}

/// Reads the password of the user `name`.
fn password(section: &Section<'_>, who: &str, name: Option<&str>, report: &mut Report<'_>) -> Option<Secret> {
    let password = section.string("password", report)?;
    warn_if_world_readable(&password.span(), report);
    let text = password.get_ref();
    if text.trim().is_empty() {
        let what = if text.is_empty() { "is empty" } else { "consists of blanks only" };
        report.error(&password.span(), format!("the password of {who} {what}"));
        return None;
    }
    if let Some(weakness) = passwords::weakness(text, name) {
        report.warn(&password.span(), format!("the `password` of this user {weakness}"));
    }
    Secret::new(text.as_bytes()).ok()
}

fn key(section: &Section<'_>, who: &str, report: &mut Report<'_>) -> Option<LongTermKey> {
    let text = section.string("key", report)?;
    warn_if_world_readable(&text.span(), report);
    let key = LongTermKey::from_hex(text.get_ref());
    if key.is_none() {
        // The value may be the password.
        report.error(
            &text.span(),
            format!(
                "the `key` of {who} must be 32 hexadecimal digits, the MD5 of `name:realm:password`; a password \
                 belongs in `password`"
            ),
        );
    }
    key
}

/// Warns of keys that were probably made for another realm than the default one.
pub(super) fn warn_of_keys_without_realm(top: &Section<'_>, auth: &Auth, report: &mut Report<'_>) {
    if top.value("realm").is_none() && auth.redis.is_some() {
        report.warn(
            &top.span("auth"),
            "`[auth.redis]` has the users of one realm, but `realm` is not set: set it to the realm in the names of the \
             keys, `turn/realm/REALM/user/NAME/key`",
        );
    }
    if top.value("realm").is_none() && auth.users.iter().any(|user| user.key().is_some()) {
        report.warn(
            &top.span("auth"),
            "a user has a `key`, which is valid in one realm only, but `realm` is not set: set it to the realm with \
             which the key was made",
        );
    }
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
        // Warnings are logged, so this one has no name (`log.usernames`).
        report.warn(
            &span,
            "the `name` of this user has the form of a time-limited credential, but the password never expires",
        );
    }
}
