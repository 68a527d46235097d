//! The certificate of the TLS and TCP listeners: loading, checking and replacement.
//!
//! The files are polled once per second instead of being watched by the kernel: ACME clients replace symlinks in
//! several directories, and polling the configured path detects all of these changes.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use tokio::time::{Interval, MissedTickBehavior};

use super::api::PublishedCertificate;
use crate::auth::HumanSeconds;
use crate::clock;
use crate::config::{self, Tls};
use crate::net::tls::{self, Acceptor, Certificate, Chain, FileError, LoadError, Setup, date};
use crate::setting::{HOSTNAME, TLS_CERTIFICATE, TLS_PRIVATE_KEY};

/// The interval between checks of the files.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// One hour, in seconds.
const HOUR: u64 = 3_600;
/// One day, in seconds.
const DAY: u64 = 24 * HOUR;

/// The time before the expiry at which warnings start, in seconds. Automatic renewal happens about a month before the
/// expiry, so it has probably failed if the certificate is not renewed by then.
const EXPIRY_WARNING: u64 = 14 * DAY;

/// Why the configured certificate is unusable: one line with the file, the reason and advice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError(String);

impl std::error::Error for TlsError {}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns the description of the certificate and the warnings, for `check-config`.
///
/// # Errors
/// If the certificate is unusable.
pub fn check(tls: &Tls, hostname: Option<&str>) -> Result<(String, Vec<String>), TlsError> {
    let setup = load(tls, clock::unix_seconds())?;
    let warnings = warnings(tls, &setup, hostname, clock::unix_seconds());
    Ok((describe(&setup.certificate), warnings))
}

/// Loads the certificate if it has not expired at `now`.
///
/// A machine without a clock battery boots in the past, and its clock is set later. A certificate that is not yet valid
/// is therefore usable.
pub(super) fn load(tls: &Tls, now: u64) -> Result<Setup, TlsError> {
    let setup = tls::load(&tls.certificate, &tls.private_key).map_err(|error| unusable(tls, error))?;
    let end = setup.certificate.not_after;
    if end < now {
        let file = tls.certificate.display();
        return Err(TlsError(format!(
            "`{TLS_CERTIFICATE}`: the certificate in `{file}` expired {} ago, on {}: renew it",
            HumanSeconds(now - end),
            date(end)
        )));
    }
    Ok(setup)
}

/// Returns the warning about a certificate that is not yet valid.
fn early_warning(tls: &Tls, certificate: &Certificate, now: u64) -> Option<String> {
    let (file, start) = (tls.certificate.display(), certificate.not_before);
    (start > now).then(|| {
        format!(
            "`{TLS_CERTIFICATE}`: the certificate in `{file}` is not yet valid; it becomes valid in {}, on {}. Clients \
             will reject it until then: check the clock of this machine",
            HumanSeconds(start - now),
            date(start)
        )
    })
}

fn unusable(tls: &Tls, error: LoadError) -> TlsError {
    let (key, path, error) = match error {
        LoadError::Certificate(error) => (TLS_CERTIFICATE, &tls.certificate, error),
        LoadError::Key(error) => (TLS_PRIVATE_KEY, &tls.private_key, error),
        LoadError::Mismatch => {
            return TlsError(format!(
                "`{TLS_PRIVATE_KEY}`: the key in `{}` does not belong to the certificate in `{}`: use the key and \
                 the certificate from the same renewal",
                tls.private_key.display(),
                tls.certificate.display()
            ));
        }
    };
    let file = path.display();
    TlsError(match error {
        FileError::Unreadable(error) => {
            let reason = config::read_failure(&error);
            let advice =
                if error.kind() == io::ErrorKind::PermissionDenied { permission_advice(path) } else { String::new() };
            format!("`{key}`: `{file}` cannot be read: {reason}{advice}")
        }
        other => format!("`{key}`: `{file}` cannot be used: {other}"),
    })
}

/// Describes the permissions that prevent reading, and how to change them.
fn permission_advice(path: &Path) -> String {
    let owned = |metadata: &Metadata| {
        format!("mode {:04o}, owner uid {}, group gid {}", metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
    };
    if let Ok(metadata) = fs::metadata(path) {
        let file = path.display();
        return format!(
            " ({}): make it readable for the group: `chgrp turnserver {file}; chmod 640 {file}`",
            owned(&metadata)
        );
    }
    // The innermost accessible directory is the one that denies access to its content.
    let closed = path.ancestors().skip(1).find_map(|directory| Some((directory, fs::metadata(directory).ok()?)));
    let closed = closed.map_or_else(String::new, |(directory, metadata)| {
        format!(" (directory {}: {})", directory.display(), owned(&metadata))
    });
    format!("{closed}: copy the file to a directory that the server can read, in a deploy hook of the ACME client")
}

/// Returns the warnings about a usable certificate.
fn warnings(tls: &Tls, setup: &Setup, hostname: Option<&str>, now: u64) -> Vec<String> {
    let (file, own) = (tls.certificate.display(), &setup.certificate);
    let mut warnings = Vec::new();
    match setup.chain {
        Chain::Ordered => {}
        Chain::Unordered => warnings.push(format!(
            "`{TLS_CERTIFICATE}`: the certificates in `{file}` are not in the right order (each followed by its \
             issuer), or some are unrelated. The server sends the related ones in the right order"
        )),
        Chain::Incomplete => warnings.push(format!(
            "`{TLS_CERTIFICATE}`: the certificate of the issuer ({}) is missing in `{file}`, so many clients will not \
             trust the certificate: use the file with the whole chain (fullchain.pem)",
            own.issuer
        )),
    }
    if let Some(host) = hostname.filter(|host| !own.covers(host)) {
        warnings.push(format!(
            "`{TLS_CERTIFICATE}`: the certificate in `{file}` is valid for {}, so clients that connect to `{HOSTNAME}` \
             {host} will reject it",
            own.all_names()
        ));
    }
    warnings.extend(early_warning(tls, own, now));
    warnings.extend(expiry_warning(tls, own, now));
    warnings
}

fn expiry_warning(tls: &Tls, certificate: &Certificate, now: u64) -> Option<String> {
    let (file, end) = (tls.certificate.display(), certificate.not_after);
    match end.checked_sub(now) {
        None => Some(format!(
            "`{TLS_CERTIFICATE}`: the certificate in `{file}` expired on {}, so clients reject it: renew it",
            date(end)
        )),
        Some(left) if left < EXPIRY_WARNING => Some(format!(
            "`{TLS_CERTIFICATE}`: the certificate in `{file}` expires in {}, on {}: renew it",
            HumanSeconds(left),
            date(end)
        )),
        Some(_) => None,
    }
}

fn describe(certificate: &Certificate) -> String {
    let Certificate { issuer, serial, not_after, .. } = certificate;
    format!("{}; issued by {issuer}, serial {serial}, valid until {}", certificate.all_names(), date(*not_after))
}

/// Identifies a version of a file: device, inode, size and times. `None` for a missing file.
type Stamp = Option<(u64, u64, u64, [i64; 4])>;

fn stamp(path: &Path) -> Stamp {
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.size(), [file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()]))
}

fn stamps(tls: &Tls) -> [Stamp; 2] {
    [stamp(&tls.certificate), stamp(&tls.private_key)]
}

const LOADED: &str = "certificate loaded";

const REPLACED: &str = "certificate replaced for new connections";

/// A certificate that was read and that the workers do not use yet.
#[must_use]
pub(super) struct Replacement {
    setup: Setup,
    /// What to log as soon as the workers use it.
    message: &'static str,
}

impl Replacement {
    /// Returns the acceptor that performs handshakes with the certificate.
    pub(super) fn acceptor(&self) -> Acceptor {
        self.setup.acceptor.clone()
    }
}

/// The files of the certificate, checked for changes.
#[derive(Debug)]
pub(super) struct Certificates {
    files: Tls,
    hostname: Option<String>,
    current: Certificate,
    /// The stamps of the files when they were last read.
    seen: [Stamp; 2],
    /// Why the files are unusable.
    failure: Option<TlsError>,
    failure_logged: bool,
    /// When to log the next expiry warning, in seconds since the Unix epoch.
    next_warning: u64,
    polls: Interval,
}

impl Certificates {
    /// Loads and logs the certificate. Must be called within a runtime with a timer.
    ///
    /// # Errors
    /// If it is unusable.
    pub(super) fn load(tls: &Tls, hostname: Option<&str>) -> Result<(Self, Acceptor), TlsError> {
        let now = clock::unix_seconds();
        let (loaded, setup) = Self::prepare(tls, hostname, now)?;
        loaded.log(&setup, now, LOADED);
        Ok((loaded, setup.acceptor))
    }

    fn prepare(tls: &Tls, hostname: Option<&str>, now: u64) -> Result<(Self, Setup), TlsError> {
        let seen = stamps(tls);
        let setup = load(tls, now)?;
        let mut polls = tokio::time::interval(POLL_INTERVAL);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let loaded = Self {
            files: tls.clone(),
            hostname: hostname.map(str::to_owned),
            current: setup.certificate.clone(),
            seen,
            failure: None,
            failure_logged: false,
            next_warning: next_warning(&setup.certificate, now),
            polls,
        };
        Ok((loaded, setup))
    }

    /// Returns the certificate in use.
    pub(super) fn current(&self) -> &Certificate {
        &self.current
    }

    /// Returns the certificate in use with its file.
    pub(super) fn published(&self) -> Arc<PublishedCertificate> {
        let (file, certificate) = (self.files.certificate.clone(), self.current.clone());
        Arc::new(PublishedCertificate { file, certificate })
    }

    /// Reads the files if they have changed. The caller passes the new certificate to the workers and then to
    /// [`log_replacement`](Self::log_replacement).
    ///
    /// A renewal replaces two files, one after the other. Until they match, each call retries. The failure is logged if
    /// the files are unchanged at the next call.
    pub(super) fn poll(&mut self) -> Option<Replacement> {
        let (now, before) = (clock::unix_seconds(), self.seen);
        let mut replacement = None;
        if self.failure.is_some() || stamps(&self.files) != before {
            replacement = self.read(now).map(|setup| Replacement { setup, message: REPLACED });
            if replacement.is_none() && self.seen == before {
                self.log_failure();
            }
        }
        let next = next_warning(&self.current, now);
        if now >= self.next_warning {
            self.next_warning = next;
            if let Some(warning) = expiry_warning(&self.files, &self.current, now) {
                tracing::warn!(event = "certificate-warning", "{warning}");
            }
        }
        // The clock may be set back, or a new certificate may expire earlier.
        self.next_warning = self.next_warning.min(next);
        replacement
    }

    /// Loads the certificate of another configuration, or the same one again. The caller passes it to the workers and
    /// then to [`log_replacement`](Self::log_replacement).
    ///
    /// # Errors
    /// If it is unusable, or not yet valid although the `present` one is.
    pub(super) fn reload(
        present: Option<&Self>,
        tls: &Tls,
        hostname: Option<&str>,
    ) -> Result<(Self, Replacement), TlsError> {
        let now = clock::unix_seconds();
        let (loaded, setup) = Self::prepare(tls, hostname, now)?;
        let valid = present.filter(|present| present.current.is_valid_at(now));
        if let Some(early) = valid.and_then(|_| early_warning(tls, &setup.certificate, now)) {
            return Err(TlsError(early));
        }
        let message = match present {
            Some(present) if present.current == setup.certificate => "certificate reloaded, unchanged",
            Some(_) => REPLACED,
            None => LOADED,
        };
        Ok((loaded, Replacement { setup, message }))
    }

    /// Logs that the workers use the new certificate.
    pub(super) fn log_replacement(&self, replacement: &Replacement) {
        self.log(&replacement.setup, clock::unix_seconds(), replacement.message);
    }

    fn read(&mut self, now: u64) -> Option<Setup> {
        let seen = stamps(&self.files);
        if seen != std::mem::replace(&mut self.seen, seen) {
            self.failure_logged = false;
        }
        let usable = load(&self.files, now).and_then(|setup| {
            // A valid certificate is not replaced by one that clients reject. The next polls retry.
            let early = early_warning(&self.files, &setup.certificate, now);
            match early.filter(|_| self.current.is_valid_at(now)) {
                Some(early) => Err(TlsError(early)),
                None => Ok(setup),
            }
        });
        match usable {
            Ok(setup) => {
                self.failure = None;
                self.current = setup.certificate.clone();
                Some(setup)
            }
            Err(error) => {
                self.failure = Some(error);
                None
            }
        }
    }

    /// Logs why the files are unusable, once per change.
    fn log_failure(&mut self) {
        if let Some(error) = &self.failure
            && !std::mem::replace(&mut self.failure_logged, true)
        {
            tracing::error!(
                event = "certificate-unusable",
                "the old certificate stays in use, because the configured files are unusable: {error}"
            );
        }
    }

    fn log(&self, setup: &Setup, now: u64, message: &str) {
        let certificate = &setup.certificate;
        tracing::info!(
            event = "certificate", names = certificate.all_names(), issuer = certificate.issuer, serial = certificate.serial,
            expires = date(certificate.not_after), file = %self.files.certificate.display(), "{message}"
        );
        for warning in warnings(&self.files, setup, self.hostname.as_deref(), now) {
            tracing::warn!(event = "certificate-warning", "{warning}");
        }
    }
}

/// Returns when to log the next expiry warning: in a day, when the certificate has expired, or an hour later.
fn next_warning(certificate: &Certificate, now: u64) -> u64 {
    match certificate.not_after.checked_sub(now) {
        None => now + HOUR,
        Some(left) => now + DAY.min(left + 1),
    }
}

/// Waits until the next check of the files is due; forever without a certificate. Cancel-safe.
pub(super) async fn due(certificates: &mut Option<Certificates>) {
    match certificates {
        Some(certificates) => drop(certificates.polls.tick().await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
