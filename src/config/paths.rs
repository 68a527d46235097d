//! Paths in the configuration, and where they start.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// What a path begins with that systemd's `LoadCredential=` or `ImportCredential=` provides.
const CREDENTIALS: &str = "$CREDENTIALS_DIRECTORY/";

/// The file that a key names. `$CREDENTIALS_DIRECTORY/` is where the service manager puts what the unit loads; any other
/// relative path is meant from the directory of the configuration file, so that it does not depend on who starts us.
///
/// # Errors
///
/// What is missing and what to do, where the directory of the credentials is not known.
pub(super) fn resolve(config_file: &str, name: &str) -> Result<PathBuf, String> {
    resolve_in(env::var_os("CREDENTIALS_DIRECTORY").as_deref(), config_file, name)
}

/// Where the content of a file comes from that only the service has; empty for any other file.
pub(super) fn origin(name: &str) -> String {
    match name.strip_prefix(CREDENTIALS) {
        Some(credential) => {
            format!(" (the copy, made at the start, of what the unit loads as `LoadCredential={credential}:`)")
        }
        None => String::new(),
    }
}

fn resolve_in(credentials: Option<&OsStr>, config_file: &str, name: &str) -> Result<PathBuf, String> {
    let Some(credential) = name.strip_prefix(CREDENTIALS) else {
        return Ok(Path::new(config_file).parent().unwrap_or(Path::new("")).join(name));
    };
    match credentials {
        Some(directory) if Path::new(directory).is_absolute() => Ok(Path::new(directory).join(credential)),
        _ => Err(format!(
            "`$CREDENTIALS_DIRECTORY` is not set: systemd sets it for a unit with `LoadCredential={credential}:PATH`; \
             to try it by hand, set it to the directory that has `{credential}`"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(credentials: Option<&str>, name: &str) -> Result<PathBuf, String> {
        resolve_in(credentials.map(OsStr::new), "/etc/turnserver/turnserver.toml", name)
    }

    #[test]
    fn a_relative_path_starts_at_the_directory_of_the_configuration() {
        assert_eq!(resolved(Some("/run/credentials/x"), "secrets").unwrap(), Path::new("/etc/turnserver/secrets"));
        assert_eq!(resolved(None, "/srv/secrets").unwrap(), Path::new("/srv/secrets"));
        assert_eq!(resolve_in(None, "turnserver.toml", "secrets").unwrap(), Path::new("secrets"));
    }

    #[test]
    fn a_credential_is_in_the_directory_of_the_service_manager() {
        let path = resolved(Some("/run/credentials/turnserver.service"), "$CREDENTIALS_DIRECTORY/secrets").unwrap();
        assert_eq!(path, Path::new("/run/credentials/turnserver.service/secrets"));
    }

    #[test]
    fn a_credential_without_a_service_manager_says_what_to_do() {
        for directory in [None, Some(""), Some("relative")] {
            let message = resolved(directory, "$CREDENTIALS_DIRECTORY/secrets").unwrap_err();
            assert!(message.contains("is not set") && message.contains("LoadCredential=secrets:PATH"), "{message}");
        }
    }
}
