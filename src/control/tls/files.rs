//! The two files of a certificate: loading them, and why they are unusable.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::warnings::{early_warning, expiry_warning};
use super::{DAY, HOUR, TlsError};
use crate::auth::HumanSeconds;
use crate::config::{self, CertificateFiles};
use crate::net::tls::{self, Certificate, FileError, LoadError, Setup, date};

/// Loads the certificate if it has not expired at `now`.
///
/// A machine without a clock battery boots in the past, and its clock is set later. A certificate that is not yet valid
/// is therefore usable.
///
/// A certificate that the server orders may be missing (`None`) or expired: then the server orders another one.
pub(super) fn load(files: &CertificateFiles, now: u64) -> Result<Option<Setup>, TlsError> {
    let setup = match tls::load(&files.certificate, &files.private_key) {
        Err(LoadError::Certificate(FileError::Unreadable(error)) | LoadError::Key(FileError::Unreadable(error)))
            if files.is_ordered && error.kind() == io::ErrorKind::NotFound =>
        {
            return Ok(None);
        }
        result => result.map_err(|error| unusable(files, error))?,
    };
    if files.is_ordered {
        return Ok(Some(setup));
    }
    let end = setup.certificate.not_after;
    if end < now {
        let ([key, _], file) = (files.settings(), files.certificate.display());
        return Err(TlsError(format!(
            "`{key}`: the certificate in `{file}` expired {} ago, on {}: renew it",
            HumanSeconds(now - end),
            date(end)
        )));
    }
    Ok(Some(setup))
}

fn unusable(files: &CertificateFiles, error: LoadError) -> TlsError {
    let [of_certificate, of_key] = files.settings();
    let (key, path, error) = match error {
        LoadError::Certificate(error) => (of_certificate, &files.certificate, error),
        LoadError::Key(error) => (of_key, &files.private_key, error),
        LoadError::Mismatch => {
            return TlsError(format!(
                "`{of_key}`: the key in `{}` does not belong to the certificate in `{}`: use the key and the \
                 certificate from the same renewal",
                files.private_key.display(),
                files.certificate.display()
            ));
        }
    };
    let file = path.display();
    TlsError(match error {
        FileError::Unreadable(error) => {
            let reason = config::read_failure(&error);
            let advice = match error.kind() {
                io::ErrorKind::PermissionDenied if files.is_ordered => {
                    ": it must belong to the user of the server".to_owned()
                }
                io::ErrorKind::PermissionDenied => permission_advice(path),
                _ => String::new(),
            };
            format!("`{key}`: `{file}` cannot be read: {reason}{advice}")
        }
        other => format!("`{key}`: `{file}` cannot be used: {other}"),
    })
}

/// Describes the permissions that prevent reading, and how to change them.
pub(super) fn permission_advice(path: &Path) -> String {
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

/// Identifies a version of a file: device, inode, size and times. `None` for a missing file.
type Stamp = Option<(u64, u64, u64, [i64; 4])>;

fn stamp(path: &Path) -> Stamp {
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.size(), [file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()]))
}

fn stamps(files: &CertificateFiles) -> [Stamp; 2] {
    [stamp(&files.certificate), stamp(&files.private_key)]
}

/// The files of a certificate, checked for changes.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) files: CertificateFiles,
    /// The certificate in use; `None` until the server has ordered it.
    pub(super) current: Option<Setup>,
    /// The stamps of the files when they were last read.
    seen: [Stamp; 2],
    /// Why the files are unusable.
    pub(super) failure: Option<TlsError>,
    failure_logged: bool,
    /// When to log the next expiry warning, in seconds since the Unix epoch.
    pub(super) next_warning: u64,
}

impl Watched {
    pub(super) fn load(files: &CertificateFiles, now: u64) -> Result<Self, TlsError> {
        let seen = stamps(files);
        // Without an ordered certificate, the server starts. The polls log why it is unusable.
        let (current, failure) = match load(files, now) {
            Err(error) if files.is_ordered => (None, Some(error)),
            result => (result?, None),
        };
        let next_warning = current.as_ref().map_or(now, |current| next_warning(&current.certificate, now));
        Ok(Self { files: files.clone(), current, seen, failure, failure_logged: false, next_warning })
    }

    /// Reads the files if they have changed. Returns whether there is another certificate.
    ///
    /// A renewal replaces two files, one after the other. Until they match, each call retries. The failure is logged if
    /// the files are unchanged at the next call.
    pub(super) fn poll(&mut self, now: u64) -> bool {
        let before = self.seen;
        let mut is_replaced = false;
        if self.failure.is_some() || stamps(&self.files) != before {
            is_replaced = self.read(now);
            if !is_replaced && self.seen == before {
                self.log_failure();
            }
        }
        let Some(current) = &self.current else { return is_replaced };
        let next = next_warning(&current.certificate, now);
        if now >= self.next_warning {
            self.next_warning = next;
            if let Some(warning) = expiry_warning(&self.files, &current.certificate, now) {
                tracing::warn!(event = "certificate-warning", "{warning}");
            }
        }
        // The clock may be set back, or a new certificate may expire earlier.
        self.next_warning = self.next_warning.min(next);
        is_replaced
    }

    fn read(&mut self, now: u64) -> bool {
        let seen = stamps(&self.files);
        if seen != std::mem::replace(&mut self.seen, seen) {
            self.failure_logged = false;
        }
        let is_valid = self.current.as_ref().is_some_and(|current| current.certificate.is_valid_at(now));
        let usable = load(&self.files, now).and_then(|setup| {
            let Some(setup) = setup else { return Ok(None) };
            // A valid certificate is not replaced by one that clients reject. The next polls retry.
            let early = early_warning(&self.files, &setup.certificate, now);
            match early.filter(|_| is_valid) {
                Some(early) => Err(TlsError(early)),
                None => Ok(Some(setup)),
            }
        });
        match usable {
            Ok(setup) => {
                self.failure = None;
                // Without a file, the certificate stays in use until the server has ordered another one.
                let is_replaced = setup.is_some();
                self.current = setup.or(self.current.take());
                is_replaced
            }
            Err(error) => {
                self.failure = Some(error);
                false
            }
        }
    }

    /// Logs why the files are unusable, once per change.
    fn log_failure(&mut self) {
        if let Some(error) = &self.failure
            && !std::mem::replace(&mut self.failure_logged, true)
        {
            let result =
                if self.current.is_some() { "the old certificate stays in use" } else { "there is no certificate" };
            tracing::error!(
                event = "certificate-unusable",
                "{result}, because the configured files are unusable: {error}"
            );
        }
    }
}

/// Returns when to log the next expiry warning: in a day, when the certificate has expired, or an hour later.
pub(super) fn next_warning(certificate: &Certificate, now: u64) -> u64 {
    match certificate.not_after.checked_sub(now) {
        None => now + HOUR,
        Some(left) => now + DAY.min(left + 1),
    }
}
