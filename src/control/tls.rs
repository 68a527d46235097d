//! The certificate of the TLS listeners: whether it can be served, and when it is replaced.
//!
//! The files are looked at once a second instead of being watched by the kernel: ACME clients replace symlinks, in one
//! directory or another, of files in a third, and looking at what the configured path leads to sees all of that.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;
use std::{fmt, io};

use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};

use crate::auth::HumanSeconds;
use crate::clock;
use crate::config::{self, Tls};
use crate::net::tls::{self, Acceptor, Certificate, Chain, FileError, LoadError, Setup, date};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// In seconds.
const DAY: u64 = 86_400;

/// Who renews automatically does so a month before the end; in the last two weeks something is wrong.
const EXPIRES_SOON: u64 = 14 * DAY;

/// Why the configured certificate cannot be served: one line that names the file, the reason and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError(String);

impl std::error::Error for TlsError {}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What `check-config` tells of the certificate: its description, and what is wrong with it and can be served still.
///
/// # Errors
/// If it cannot be served.
pub fn check(tls: &Tls, hostname: Option<&str>) -> Result<(String, Vec<String>), TlsError> {
    let setup = load(tls, clock::unix_seconds())?;
    let warnings = warnings(tls, &setup, hostname, clock::unix_seconds());
    Ok((describe(&setup.certificate), warnings))
}

/// Loads the certificate, if it can be served at `now`.
fn load(tls: &Tls, now: u64) -> Result<Setup, TlsError> {
    let setup = tls::load(&tls.certificate, &tls.private_key).map_err(|error| unusable(tls, error))?;
    let Certificate { not_before, not_after, .. } = setup.certificate;
    let why = if not_after < now {
        format!("expired {} ago, on {}: renew it", HumanSeconds(now - not_after), date(not_after))
    } else if not_before > now {
        format!(
            "is valid in {} only, from {} on: is the clock right?",
            HumanSeconds(not_before - now),
            date(not_before)
        )
    } else {
        return Ok(setup);
    };
    Err(TlsError(format!("`tls.certificate`: the certificate in `{}` {why}", tls.certificate.display())))
}

fn unusable(tls: &Tls, error: LoadError) -> TlsError {
    let (key, path, error) = match error {
        LoadError::Certificate(error) => ("certificate", &tls.certificate, error),
        LoadError::Key(error) => ("private-key", &tls.private_key, error),
        LoadError::Mismatch => {
            return TlsError(format!(
                "`tls.private-key`: the key in `{}` does not belong to the certificate in `{}`: both have to be of one \
                 renewal",
                tls.private_key.display(),
                tls.certificate.display()
            ));
        }
    };
    let file = path.display();
    TlsError(match error {
        FileError::Unreadable(error) => {
            let why = config::read_failure(&error);
            let obstacle = if error.kind() == io::ErrorKind::PermissionDenied { obstacle(path) } else { String::new() };
            format!("`tls.{key}`: `{file}` cannot be read: {why}{obstacle}")
        }
        other => format!("`tls.{key}`: `{file}` cannot be used: {other}"),
    })
}

/// Who may read what is in the way, and what to do about it.
fn obstacle(path: &Path) -> String {
    let owned = |metadata: &Metadata| {
        format!("mode {:04o}, owner uid {}, group gid {}", metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
    };
    if let Ok(metadata) = fs::metadata(path) {
        let file = path.display();
        return format!(" ({}): let its group read it, `chgrp turnserver {file}; chmod 640 {file}`", owned(&metadata));
    }
    // The innermost directory that can be looked at is the one that lets nobody through.
    let closed = path.ancestors().skip(1).find_map(|directory| Some((directory, fs::metadata(directory).ok()?)));
    let closed = closed.map_or_else(String::new, |(directory, metadata)| {
        format!(" (directory {}: {})", directory.display(), owned(&metadata))
    });
    format!("{closed}: copy the file to a place that the server may read, from a hook of the ACME client")
}

/// What is wrong and does not keep the certificate from being served.
fn warnings(tls: &Tls, setup: &Setup, hostname: Option<&str>, now: u64) -> Vec<String> {
    let (file, own) = (tls.certificate.display(), &setup.certificate);
    let mut warnings = Vec::new();
    match setup.chain {
        Chain::Ordered => {}
        Chain::Unordered => warnings.push(format!(
            "`tls.certificate`: the certificates in `{file}` are not each followed by its issuer; they are sent in the \
             right order, without those that do not belong there"
        )),
        Chain::Incomplete => warnings.push(format!(
            "`tls.certificate`: the certificate of the issuer ({}) is missing in `{file}`, so many clients will not \
             trust it: take the file with the whole chain (fullchain.pem)",
            own.issuer
        )),
    }
    if let Some(host) = hostname.filter(|host| !own.covers(host)) {
        warnings.push(format!(
            "`tls.certificate`: the certificate in `{file}` is for {}, and clients that connect to `hostname` {host} \
             will refuse it",
            names(own)
        ));
    }
    warnings.extend(expires_soon(tls, own, now));
    warnings
}

fn expires_soon(tls: &Tls, certificate: &Certificate, now: u64) -> Option<String> {
    let (file, end) = (tls.certificate.display(), certificate.not_after);
    match end.checked_sub(now) {
        None => Some(format!("`tls.certificate`: the certificate in `{file}` expired on {}: renew it", date(end))),
        Some(left) if left < EXPIRES_SOON => Some(format!(
            "`tls.certificate`: the certificate in `{file}` expires in {}, on {}: renew it",
            HumanSeconds(left),
            date(end)
        )),
        Some(_) => None,
    }
}

fn describe(certificate: &Certificate) -> String {
    let Certificate { issuer, serial, not_after, .. } = certificate;
    format!("{}; issued by {issuer}, serial {serial}, valid until {}", names(certificate), date(*not_after))
}

/// Whom a certificate is for.
fn names(certificate: &Certificate) -> String {
    let addresses = certificate.addresses.iter().map(ToString::to_string);
    let names: Vec<String> = certificate.names.iter().cloned().chain(addresses).collect();
    match (names.is_empty(), certificate.subject.is_empty()) {
        (false, _) => names.join(", "),
        (true, false) => format!("{} (which has no subjectAltName)", certificate.subject),
        (true, true) => "nobody".to_owned(),
    }
}

/// What tells one state of a file from another: device, inode, size and times. `None` for a file that is not there.
type Stamp = Option<(u64, u64, u64, [i64; 4])>;

fn stamp(path: &Path) -> Stamp {
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.size(), [file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()]))
}

fn stamps(tls: &Tls) -> [Stamp; 2] {
    [stamp(&tls.certificate), stamp(&tls.private_key)]
}

/// The certificate that is served, kept up to date.
#[derive(Debug)]
pub(super) struct Certificates {
    files: Tls,
    hostname: Option<String>,
    sender: watch::Sender<Acceptor>,
    current: Certificate,
    /// Of the files when they were last read.
    seen: [Stamp; 2],
    /// Why they are not served.
    failure: Option<TlsError>,
    failure_logged: bool,
    /// When the end of the certificate is to be spoken of next, in seconds since the Unix epoch.
    remind: u64,
    looks: Interval,
}

impl Certificates {
    /// Loads the certificate and tells about it. To be called within a runtime with a timer.
    ///
    /// # Errors
    /// If it cannot be served.
    pub(super) fn load(tls: &Tls, hostname: Option<&str>) -> Result<Self, TlsError> {
        let (seen, now) = (stamps(tls), clock::unix_seconds());
        let setup = load(tls, now)?;
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let loaded = Self {
            files: tls.clone(),
            hostname: hostname.map(str::to_owned),
            sender: watch::Sender::new(setup.acceptor.clone()),
            current: setup.certificate.clone(),
            seen,
            failure: None,
            failure_logged: false,
            remind: now + DAY,
            looks,
        };
        loaded.tell(&setup, now, "certificate loaded");
        Ok(loaded)
    }

    /// What workers serve handshakes with.
    pub(super) fn subscribe(&self) -> watch::Receiver<Acceptor> {
        self.sender.subscribe()
    }

    /// The certificate that is served.
    pub(super) fn current(&self) -> &Certificate {
        &self.current
    }

    /// Serves what is in the files if they have changed.
    ///
    /// A renewal replaces two files, one after the other. What does not fit together is tried again at each look, and
    /// spoken of when nothing has changed at the next one.
    pub(super) fn look(&mut self) {
        let (now, before) = (clock::unix_seconds(), self.seen);
        if self.failure.is_some() || stamps(&self.files) != before {
            if let Ok(setup) = self.read(now) {
                self.tell(&setup, now, "certificate replaced: new connections get this one");
            } else if self.seen == before {
                self.log_failure();
            }
        }
        if now >= self.remind {
            self.remind = now + DAY;
            if let Some(warning) = expires_soon(&self.files, &self.current, now) {
                tracing::warn!("{warning}");
            }
        }
    }

    /// Reads the files, changed or not, and says what came of it.
    pub(super) fn reload(&mut self) {
        let (now, before) = (clock::unix_seconds(), self.current.clone());
        match self.read(now) {
            Ok(setup) if setup.certificate == before => {
                self.tell(&setup, now, "certificate read again: it is the same");
            }
            Ok(setup) => self.tell(&setup, now, "certificate replaced: new connections get this one"),
            Err(()) => {
                self.failure_logged = false;
                self.log_failure();
            }
        }
    }

    fn read(&mut self, now: u64) -> Result<Setup, ()> {
        let seen = stamps(&self.files);
        if seen != std::mem::replace(&mut self.seen, seen) {
            self.failure_logged = false;
        }
        match load(&self.files, now) {
            Ok(setup) => {
                self.failure = None;
                self.sender.send_replace(setup.acceptor.clone());
                self.current = setup.certificate.clone();
                Ok(setup)
            }
            Err(error) => {
                self.failure = Some(error);
                Err(())
            }
        }
    }

    /// Says once for each change what is wrong with the files.
    fn log_failure(&mut self) {
        if let Some(error) = &self.failure
            && !std::mem::replace(&mut self.failure_logged, true)
        {
            tracing::error!("the old certificate stays in use, because the new one cannot be used: {error}");
        }
    }

    fn tell(&self, setup: &Setup, now: u64, message: &str) {
        let certificate = &setup.certificate;
        tracing::info!(
            names = names(certificate), issuer = certificate.issuer, serial = certificate.serial,
            expires = date(certificate.not_after), file = %self.files.certificate.display(), "{message}"
        );
        for warning in warnings(&self.files, setup, self.hostname.as_deref(), now) {
            tracing::warn!("{warning}");
        }
    }
}

/// Waits until it is time to look at the files, for ever where there are none. May be dropped at any time.
pub(super) async fn due(certificates: &mut Option<Certificates>) {
    match certificates {
        Some(certificates) => drop(certificates.looks.tick().await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
