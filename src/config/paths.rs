//! Paths in the configuration, and their base directory.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use toml::de::DeTable;

use super::credentials::read_failure;
use super::problem::{Report, quoted};
use super::reader::Section;
use crate::file;
use crate::setting;

/// The prefix of a path to a file from systemd's `LoadCredential=` or `ImportCredential=`.
const CREDENTIALS: &str = "$CREDENTIALS_DIRECTORY/";

/// Resolves a path in the configuration. `$CREDENTIALS_DIRECTORY/` is the directory of systemd credentials. Any other
/// relative path starts at `directory`, that of the configuration file, independent of the working directory.
///
/// # Errors
///
/// If the path needs the directory of the credentials and `$CREDENTIALS_DIRECTORY` is not set.
pub(super) fn resolve(directory: &Path, name: &str) -> Result<PathBuf, String> {
    resolve_in(env::var_os("CREDENTIALS_DIRECTORY").as_deref(), directory, name)
}

/// Reads a key with a path.
pub(super) fn of_key(section: &Section<'_>, key: &str, report: &mut Report<'_>) -> Option<PathBuf> {
    let path = section.string(key, report)?;
    let (span, text) = (path.span(), *path.get_ref());
    if text.is_empty() {
        report.error(&span, format!("{} is empty: set a path, or omit it", section.name(key)));
        return None;
    }
    let resolved = resolve(&report.directory, text);
    resolved.map_err(|why| report.error(&span, format!("{}: {why}", section.name(key)))).ok()
}

/// Reads a key with the path of a file of authorities, which must have certificates in PEM.
pub(super) fn of_authorities(section: &Section<'_>, key: &str, report: &mut Report<'_>) -> Option<PathBuf> {
    let path = of_key(section, key, report)?;
    let wrong = match file::read(&path) {
        Err(error) => Some(format!("cannot be read: {}", read_failure(&error))),
        Ok(text) if has_certificates(&text) => None,
        Ok(_) => Some(
            "has no certificate in PEM, or one that is damaged: a file of authorities has the lines from \
                       -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----"
                .to_owned(),
        ),
    };
    if let Some(wrong) = wrong {
        let (name, shown) = (section.name(key), quoted(&path.display().to_string()));
        report.error(&section.span(key), format!("{name}: {shown} {wrong}"));
    }
    Some(path)
}

fn has_certificates(text: &[u8]) -> bool {
    let mut certificates = CertificateDer::pem_slice_iter(text).peekable();
    certificates.peek().is_some() && certificates.all(|certificate| certificate.is_ok())
}

/// Reads the directory of the server's state: that of the file, or that of systemd.
pub(super) fn state_directory(top: &Section<'_>, report: &mut Report<'_>) -> Option<PathBuf> {
    of_key(top, "state-directory", report).or_else(|| service_directory(env::var_os("STATE_DIRECTORY").as_deref()))
}

/// Returns the directory that systemd has created; there may be several, separated by colons.
fn service_directory(variable: Option<&OsStr>) -> Option<PathBuf> {
    let first = variable?.to_str()?.split(':').next()?;
    Some(Path::new(first)).filter(|path| path.is_absolute()).map(Path::to_owned)
}

/// Returns the files that a configuration names, except systemd credentials: the key and the path.
pub(super) fn files(document: &DeTable<'_>, directory: &Path) -> Vec<(&'static str, PathBuf)> {
    let keys = [
        (setting::AUTH_SECRETS_FILE, "auth", "secrets-file"),
        (setting::TLS_CERTIFICATE, "tls", "certificate"),
        (setting::TLS_PRIVATE_KEY, "tls", "private-key"),
        (setting::HTTP_METRICS_TOKEN_FILE, "http", "metrics-token-file"),
        (setting::HTTP_KEYS_FILE, "http", "keys-file"),
        (setting::FLEET_PASSWORD_FILE, "fleet", "password-file"),
        (setting::FLEET_CA_FILE, "fleet", "ca-file"),
        (setting::FLEET_REGIONS_FILE, "fleet", "regions-file"),
        (setting::WEBHOOK_SECRET_FILE, "webhook", "secret-file"),
        (setting::WEBHOOK_CA_FILE, "webhook", "ca-file"),
        (setting::REDIS_STATUS_PASSWORD_FILE, "redis-status", "password-file"),
        (setting::REDIS_STATUS_CA_FILE, "redis-status", "ca-file"),
    ];
    let further = document.get("tls").and_then(|tls| tls.get_ref().get("certificates")?.get_ref().as_array());
    let further = further.into_iter().flat_map(|tables| tables.iter()).flat_map(|table| {
        let keys = [
            (setting::TLS_CERTIFICATES_CERTIFICATE, "certificate"),
            (setting::TLS_CERTIFICATES_PRIVATE_KEY, "private-key"),
        ];
        keys.map(|(name, key)| Some((name, table.get_ref().get(key)?.get_ref().as_str()?)))
    });
    let acme = document.get("tls").and_then(|tls| tls.get_ref().get("acme"));
    let of_acme =
        [(setting::TLS_ACME_EAB_KEY_FILE, "eab-key-file"), (setting::TLS_ACME_DIRECTORY_CA_FILE, "directory-ca-file")]
            .into_iter()
            .map(|(name, key)| Some((name, acme?.get_ref().get(key)?.get_ref().as_str()?)));
    let redis = document.get("auth").and_then(|auth| auth.get_ref().get("redis"));
    let of_redis = [(setting::AUTH_REDIS_PASSWORD_FILE, "password-file"), (setting::AUTH_REDIS_CA_FILE, "ca-file")]
        .into_iter()
        .map(|(name, key)| Some((name, redis?.get_ref().get(key)?.get_ref().as_str()?)));
    let named = keys
        .into_iter()
        .map(|(name, table, key)| Some((name, document.get(table)?.get_ref().get(key)?.get_ref().as_str()?)))
        .chain(further)
        .chain(of_acme)
        .chain(of_redis)
        .flatten();
    named
        .filter(|(_, value)| !value.starts_with(CREDENTIALS))
        .filter_map(|(name, value)| Some((name, resolve(directory, value).ok()?)))
        .collect()
}

/// Describes the origin of a credential file for a message; empty for any other file.
pub(super) fn origin(name: &str) -> String {
    match name.strip_prefix(CREDENTIALS) {
        Some(credential) => {
            format!(" (copied at the start from `LoadCredential={credential}:` of the unit)")
        }
        None => String::new(),
    }
}

fn resolve_in(credentials: Option<&OsStr>, directory: &Path, name: &str) -> Result<PathBuf, String> {
    let Some(credential) = name.strip_prefix(CREDENTIALS) else {
        return Ok(directory.join(name));
    };
    match credentials {
        Some(directory) if Path::new(directory).is_absolute() => Ok(Path::new(directory).join(credential)),
        _ => Err(format!(
            "`$CREDENTIALS_DIRECTORY` is not set: systemd sets it for a unit with `LoadCredential={credential}:PATH`; \
             to run without systemd, set it to the directory that contains `{credential}`"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(credentials: Option<&str>, name: &str) -> Result<PathBuf, String> {
        resolve_in(credentials.map(OsStr::new), Path::new("/etc/turnserver"), name)
    }

    #[test]
    fn a_relative_path_starts_at_the_directory_of_the_configuration() {
        assert_eq!(resolved(Some("/run/credentials/x"), "secrets").unwrap(), Path::new("/etc/turnserver/secrets"));
        assert_eq!(resolved(None, "/srv/secrets").unwrap(), Path::new("/srv/secrets"));
        assert_eq!(resolve_in(None, Path::new(""), "secrets").unwrap(), Path::new("secrets"));
    }

    #[test]
    fn the_state_directory_of_systemd_is_the_first_one() {
        let of = |variable: &str| service_directory(Some(OsStr::new(variable)));
        assert_eq!(of("/var/lib/a:/var/lib/b").as_deref(), Some(Path::new("/var/lib/a")));
        for other in ["", "relative", ":/x"] {
            assert_eq!(of(other), None, "{other}");
        }
        assert_eq!(service_directory(None), None);
    }

    #[test]
    fn a_credential_path_starts_at_the_credentials_directory() {
        let path = resolved(Some("/run/credentials/turnserver.service"), "$CREDENTIALS_DIRECTORY/secrets").unwrap();
        assert_eq!(path, Path::new("/run/credentials/turnserver.service/secrets"));
    }

    #[test]
    fn a_credential_path_without_a_credentials_directory_is_an_error_with_advice() {
        for directory in [None, Some(""), Some("relative")] {
            let message = resolved(directory, "$CREDENTIALS_DIRECTORY/secrets").unwrap_err();
            assert!(message.contains("is not set") && message.contains("LoadCredential=secrets:PATH"), "{message}");
        }
    }
}
