//! The certificates of the TLS and TCP listeners: loading, checking and replacement.
//!
//! The files are polled once per second. The kernel could watch them, but ACME clients replace symlinks in several
//! directories, and polling the configured path detects all of these changes.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior};

use super::acme;
use super::api::PublishedCertificate;
use crate::clock;
use crate::config::{CertificateFiles, Tls};
use crate::net::tls::{Acceptor, Certificate, Setup, date};
use files::Watched;
use warnings::{describe, early_warning};

mod files;
mod warnings;

/// The interval between checks of the files.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// One hour, in seconds.
const HOUR: u64 = 3_600;
/// One day, in seconds.
const DAY: u64 = 24 * HOUR;

/// The time before the expiry at which warnings start, in seconds. Automatic renewal happens about a month before the
/// expiry, so it has probably failed if the certificate is not renewed by then.
const EXPIRY_WARNING: u64 = 14 * DAY;

/// Why a configured certificate is unusable: one line with the file, the reason and advice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError(String);

impl std::error::Error for TlsError {}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What [`check`] has found out about a certificate.
#[derive(Debug)]
pub struct CheckedCertificate {
    /// The file of the certificate.
    pub file: PathBuf,
    /// Its description and the warnings, or why it is unusable.
    pub result: Result<(String, Vec<String>), TlsError>,
}

/// Returns the descriptions of the certificates and the warnings, for `check-config`.
#[must_use]
pub fn check(tls: &Tls, hostname: Option<&str>) -> Vec<CheckedCertificate> {
    let now = clock::unix_seconds();
    let loaded: Vec<Result<Option<Setup>, TlsError>> =
        tls.certificates.iter().map(|files| files::load(files, now)).collect();
    let pairs = || tls.certificates.iter().zip(&loaded);
    // If one is unusable, it may be the one for the name.
    let usable: Option<Vec<(&CertificateFiles, &Setup)>> =
        pairs().map(|(files, setup)| Some((files, setup.as_ref().ok()?.as_ref()?))).collect();
    let shared = usable.map(|usable| warnings::of_all(&usable, hostname, now)).unwrap_or_default();
    let none = |warning: String| {
        let names = tls.acme.as_ref().map(|acme| acme.domains.join(", ")).unwrap_or_default();
        Ok((format!("{names}: none yet"), vec![warning]))
    };
    let effect = if tls.certificates.len() > 1 { "so only the others work" } else { "so TLS does not work" };
    let checked = |(place, (files, setup)): (usize, (&CertificateFiles, &Result<Option<Setup>, TlsError>))| {
        let ([key, _], file) = (files.settings(), files.certificate.display());
        let orders = "The running server orders it: `turnserver ctl certificates` says why it has not";
        let result = match setup {
            Ok(None) => none(format!("`{key}`: there is no certificate in `{file}` yet, {effect}. {orders}")),
            // This user may have fewer rights than the server.
            Err(error) if files.is_ordered => none(format!(
                "{error}. If the running server cannot use it either, it orders another one: `turnserver ctl \
                 certificates` shows it"
            )),
            Err(error) => Err(error.clone()),
            Ok(Some(setup)) => {
                let mut warnings = warnings::warnings(files, setup, now);
                warnings.extend(shared.iter().filter(|(of, _)| *of == place).map(|(_, warning)| warning.clone()));
                Ok((describe(&setup.certificate), warnings))
            }
        };
        CheckedCertificate { file: files.certificate.clone(), result }
    };
    pairs().enumerate().map(checked).collect()
}

/// Loads the default certificate if it has not expired at `now`. `None` if the server has not ordered it yet, or if this
/// user may not read it.
///
/// # Errors
/// If it is unusable.
pub(super) fn load_default(tls: &Tls, now: u64) -> Result<Option<Certificate>, TlsError> {
    let Some(files) = tls.certificates.first() else { return Ok(None) };
    match files::load(files, now) {
        Err(_) if files.is_ordered => Ok(None),
        result => Ok(result?.map(|setup| setup.certificate)),
    }
}

const LOADED: &str = "certificate loaded";

const REPLACED: &str = "certificate replaced for new connections";

/// Certificates that were read or whose validity has changed, and that the workers do not use yet.
#[must_use]
pub(super) struct Replacement {
    acceptor: Acceptor,
    /// The places of the new certificates, and what to log as soon as the workers use them.
    messages: Vec<(usize, &'static str)>,
}

impl Replacement {
    /// Returns the acceptor that performs handshakes with the certificates.
    pub(super) fn acceptor(&self) -> Acceptor {
        self.acceptor.clone()
    }
}

/// The files of the certificates, checked for changes.
#[derive(Debug)]
pub(super) struct Certificates {
    hostname: Option<String>,
    /// The first one is the default.
    all: Vec<Watched>,
    polls: Interval,
}

impl Certificates {
    /// Loads and logs the certificates. Must be called within a runtime with a timer.
    ///
    /// # Errors
    /// If one of them is unusable.
    pub(super) fn load(tls: &Tls, hostname: Option<&str>) -> Result<(Self, Acceptor), TlsError> {
        let now = clock::unix_seconds();
        let loaded = Self::prepare(tls, hostname, now)?;
        let acceptor = loaded.acceptor();
        let messages = (0..loaded.all.len()).map(|place| (place, LOADED)).collect();
        loaded.log_replacement(&Replacement { acceptor: acceptor.clone(), messages });
        Ok((loaded, acceptor))
    }

    fn prepare(tls: &Tls, hostname: Option<&str>, now: u64) -> Result<Self, TlsError> {
        let all: Result<Vec<Watched>, TlsError> =
            tls.certificates.iter().map(|files| Watched::load(files, now)).collect();
        let all = all?;
        let mut polls = tokio::time::interval(POLL_INTERVAL);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut loaded = Self { hostname: hostname.map(str::to_owned), all, polls };
        loaded.compare(now);
        Ok(loaded)
    }

    /// Compares the validity periods with the time. Returns whether a result has changed.
    fn compare(&mut self, now: u64) -> bool {
        let all = self.all.iter_mut().filter_map(|own| own.current.as_mut());
        all.fold(false, |changed, current| current.compare(now) | changed)
    }

    fn acceptor(&self) -> Acceptor {
        Acceptor::new(self.all.iter().filter_map(|own| own.current.clone()).collect())
    }

    /// Returns the default certificate; `None` if the server has not ordered it yet.
    pub(super) fn current(&self) -> Option<&Certificate> {
        self.all.first()?.current.as_ref().map(|current| &current.certificate)
    }

    /// Returns the certificates in use with their files.
    pub(super) fn published(&self) -> Arc<[PublishedCertificate]> {
        let published = |(place, own): (usize, &Watched)| {
            let current = own.current.as_ref()?;
            Some(PublishedCertificate {
                file: own.files.certificate.clone(),
                certificate: current.certificate.clone(),
                key_type: current.key_type(),
                is_default: place == 0,
            })
        };
        self.all.iter().enumerate().filter_map(published).collect()
    }

    /// Reads the files that have changed. The caller passes new certificates to the workers and then to
    /// [`log_replacement`](Self::log_replacement). One that expires makes way for another one with its names.
    pub(super) fn poll(&mut self) -> Option<Replacement> {
        let now = clock::unix_seconds();
        let mut messages = Vec::new();
        for (place, own) in self.all.iter_mut().enumerate() {
            let message = if own.current.is_some() { REPLACED } else { LOADED };
            if own.poll(now) {
                messages.push((place, message));
            }
        }
        (self.compare(now) || !messages.is_empty()).then(|| Replacement { acceptor: self.acceptor(), messages })
    }

    /// Loads the certificates of another configuration, or the same ones again. The caller passes them to the workers
    /// and then to [`log_replacement`](Self::log_replacement).
    ///
    /// # Errors
    /// If one of them is unusable, or not yet valid although its predecessor is.
    pub(super) fn reload(
        present: Option<&Self>,
        tls: &Tls,
        hostname: Option<&str>,
    ) -> Result<(Self, Replacement), TlsError> {
        let now = clock::unix_seconds();
        let mut loaded = Self::prepare(tls, hostname, now)?;
        let mut messages = Vec::new();
        for (place, new) in loaded.all.iter_mut().enumerate() {
            let predecessor = present.and_then(|present| present.predecessor(place, &new.files)?.current.as_ref());
            // The former certificate stays in use until the server has ordered the new one. One in the state directory
            // may come from an earlier time, with other names, or from another authority.
            let is_kept = new.files.is_ordered && predecessor.is_some_and(|old| old.certificate.is_valid_at(now));
            if is_kept && let Some(stored) = new.current.take() {
                let fits = |ordered| acme::ordered_certificate_fits(ordered) == Some(true);
                let is_wanted = tls.acme.as_ref().is_none_or(fits);
                // The next polls read one that is not yet valid again.
                let early = early_warning(&new.files, &stored.certificate, now).filter(|_| is_wanted);
                new.failure = early.map(TlsError);
                new.current = Some(stored).filter(|stored| is_wanted && stored.certificate.is_valid_at(now));
            }
            let current = new.current.take().or_else(|| predecessor.cloned());
            if let Some(new_one) = &current
                && predecessor.is_some_and(|old| old.certificate.is_valid_at(now))
                && let Some(early) = early_warning(&new.files, &new_one.certificate, now)
            {
                return Err(TlsError(early));
            }
            let certificate = current.as_ref().map(|current| &current.certificate);
            let message = match predecessor {
                Some(old) if certificate == Some(&old.certificate) => "certificate reloaded, unchanged",
                Some(_) => REPLACED,
                None => LOADED,
            };
            new.current = current;
            messages.push((place, message));
        }
        let replacement = Replacement { acceptor: loaded.acceptor(), messages };
        Ok((loaded, replacement))
    }

    /// Returns the certificate that another one replaces: the one with the same files, and the default one that of
    /// other files.
    fn predecessor(&self, place: usize, files: &CertificateFiles) -> Option<&Watched> {
        let same = self.all.iter().find(|own| own.files.certificate == files.certificate);
        same.or(if place == 0 { self.all.first() } else { None })
    }

    /// Logs that the workers use new certificates.
    pub(super) fn log_replacement(&self, replacement: &Replacement) {
        if replacement.messages.is_empty() {
            // Only the validity has changed. `poll` logs an expiry.
            return;
        }
        let now = clock::unix_seconds();
        let new = |place: usize| replacement.messages.iter().find(|(new, _)| *new == place);
        for (place, own) in self.all.iter().enumerate() {
            let Some((_, message)) = new(place) else { continue };
            let Watched { files, current, .. } = own;
            let Some(current) = current else {
                log_missing(files, self.all.iter().any(|own| own.current.is_some()));
                continue;
            };
            let certificate = &current.certificate;
            tracing::info!(
                event = "certificate", names = certificate.all_names(), issuer = certificate.issuer,
                serial = certificate.serial, expires = date(certificate.not_after), file = %files.certificate.display(),
                "{message}"
            );
            for warning in warnings::warnings(files, current, now) {
                tracing::warn!(event = "certificate-warning", "{warning}");
            }
        }
        let all = self.all.iter().filter_map(|own| Some((&own.files, own.current.as_ref()?)));
        let all: Vec<(&CertificateFiles, &Setup)> = all.collect();
        for (_, warning) in warnings::of_all(&all, self.hostname.as_deref(), now) {
            tracing::warn!(event = "certificate-warning", "{warning}");
        }
    }
}

/// Logs that the server orders a certificate, and has none until then.
fn log_missing(files: &CertificateFiles, has_others: bool) {
    let until = if has_others {
        "every TLS handshake gets one of the other certificates"
    } else {
        "TLS handshakes end with an alert; everything else is served"
    };
    tracing::warn!(
        event = "certificate-missing", file = %files.certificate.display(),
        "there is no certificate yet. The server orders it now: `acme-ordered` in the log says when it is there, and \
         `acme-failed` why it is not. Until then, {until}"
    );
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
