//! The state directory: the key of the account, the certificate and its key, and the wait after failures. Each file is
//! replaced as a whole.

use std::fs::{self, File};
use std::io::{self, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use instant_acme::AccountCredentials;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::back_off::BackOff;
use super::failure::{Failure, Kind};
use super::same_names;
use super::schedule::Validity;
use crate::config::Acme;
use crate::control::state_directory::{self, Lock, Unusable, create, rename, replace, temporary};
use crate::file;
use crate::net::tls;
use crate::setting::TLS_ACME_STATE_DIRECTORY;

/// The bytes that are reserved for a certificate before it is ordered.
const RESERVED: usize = 64 * 1024;
/// The first line of the certificate file, before the URL of the directory.
const ORDERED_FROM: &str = "# Ordered by turnserver from ";

/// The state directory, which no other server uses.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    certificate: PathBuf,
    _lock: Lock,
}

/// The account of the server with an authority.
pub(super) struct StoredAccount {
    pub(super) credentials: AccountCredentials,
    pub(super) contact: Option<String>,
}

/// A certificate in the state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredCertificate {
    pub(super) validity: Validity,
    /// When it was written. The validity may begin earlier: Let's Encrypt subtracts an hour.
    pub(super) written: u64,
    pub(super) names: Vec<String>,
    /// The directory that it was ordered from.
    pub(super) directory: String,
    /// The certificate itself, in DER.
    pub(super) der: Vec<u8>,
}

impl Store {
    /// Opens the state directory, which is created if it is missing.
    ///
    /// # Errors
    /// If it cannot be written, or another server uses it.
    pub(super) fn open(acme: &Acme) -> Result<Self, Failure> {
        let directory = acme.state_directory.clone();
        match state_directory::lock(&directory) {
            Ok(lock) => Ok(Self { directory, certificate: acme.files().certificate, _lock: lock }),
            Err(Unusable::InUse) => Err(Failure::new(format!(
                "another server uses {}: set another `{TLS_ACME_STATE_DIRECTORY}` for each server",
                directory.display()
            ))),
            Err(Unusable::Io(error)) => Err(unwritable(&directory, &error)),
        }
    }

    /// Makes sure that there is room for a certificate, before one is ordered.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn reserve(&self) -> Result<Reserved, Failure> {
        let path = temporary(&self.certificate);
        let reserve = || {
            let mut file = create(&path)?;
            let reserved = file.write_all(&[b'\n'; RESERVED]).and_then(|()| file.sync_all());
            // A full disk must not stay full because of this.
            reserved.inspect_err(|_| drop(fs::remove_file(&path)))?;
            Ok(Reserved { file, path: path.clone(), target: self.certificate.clone() })
        };
        reserve().map_err(|error| unwritable(&self.directory, &error))
    }

    /// Returns the account with a directory, if there is one.
    ///
    /// # Errors
    /// If its file cannot be read.
    pub(super) fn account(&self, directory: &str) -> Result<Option<StoredAccount>, Failure> {
        let path = self.account_path(directory);
        let bytes = match file::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::new(format!("{} cannot be read: {error}", path.display()))),
        };
        let parse = || {
            let mut value: Value = serde_json::from_slice(&bytes).ok()?;
            let contact = value.get("contact").and_then(Value::as_str).map(str::to_owned);
            let credentials = serde_json::from_value(value.get_mut("account")?.take()).ok()?;
            Some(StoredAccount { credentials, contact })
        };
        // The content is not shown: it has the key.
        parse().map(Some).ok_or_else(|| {
            Failure::new(format!("{} is damaged: remove it, and the server makes a new account", path.display()))
        })
    }

    /// Keeps the account with a directory.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn keep_account(
        &self,
        directory: &str,
        credentials: &AccountCredentials,
        contact: Option<&str>,
    ) -> Result<(), Failure> {
        let path = self.account_path(directory);
        let account = serde_json::to_value(credentials).map_err(|error| Failure::new(error.to_string()))?;
        let text = json!({ "directory": directory, "contact": contact, "account": account });
        let text = Zeroizing::new(text.to_string());
        replace(&path, text.as_bytes()).map_err(|error| unwritable(&self.directory, &error))
    }

    /// Returns the file of the account with a directory: one per directory, so that a trial with another authority does
    /// not lose it.
    fn account_path(&self, directory: &str) -> PathBuf {
        let hash = Sha256::digest(directory.as_bytes());
        let name: String = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        self.directory.join(format!("account-{name}.json"))
    }

    /// Returns the certificate in the state directory; `None` if there is no usable one. Control logs why it is not usable.
    ///
    /// # Errors
    /// If reading fails in a way that may pass, so that another order would be premature.
    pub(super) fn certificate(&self) -> Result<Option<StoredCertificate>, Failure> {
        match read_certificate(&self.certificate) {
            Ok(certificate) => Ok(certificate),
            // A new one replaces a file that this user may not read.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => Ok(None),
            Err(error) => Err(Failure::new(format!("{} cannot be read: {error}", self.certificate.display()))),
        }
    }

    /// Returns the wait after failures to order the certificate that `acme` wants, if there were any.
    pub(super) fn back_off(&self, acme: &Acme) -> Option<BackOff> {
        let path = self.back_off_path();
        let read = match file::read(&path) {
            Ok(bytes) => BackOff::from_file(&bytes, acme).map_err(str::to_owned),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.to_string()),
        };
        read.unwrap_or_else(|error| {
            tracing::warn!(
                event = "acme-back-off-ignored", file = %path.display(), error,
                "the file with the wait after the last failed order is not used, so the next order may be made at once"
            );
            None
        })
    }

    /// Keeps the wait after failures; without failures, there is none.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn keep_back_off(&self, back_off: &BackOff, acme: &Acme) -> Result<(), Failure> {
        let path = self.back_off_path();
        let kept = if back_off.failures > 0 {
            replace(&path, back_off.to_file(acme).as_bytes())
        } else {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        };
        kept.map_err(|error| unwritable(&self.directory, &error))
    }

    fn back_off_path(&self) -> PathBuf {
        self.directory.join("back-off.json")
    }
}

/// Reads a certificate that the server has ordered; `None` if it is not usable.
pub(super) fn read_certificate(path: &Path) -> io::Result<Option<StoredCertificate>> {
    let bytes = file::read(path)?;
    let written = fs::metadata(path)?.mtime();
    Ok(StoredCertificate::parse(path, &bytes, written.try_into().unwrap_or_default()))
}

impl StoredCertificate {
    fn parse(path: &Path, bytes: &[u8], written: u64) -> Option<Self> {
        let setup = tls::load(path, path).ok()?;
        let first = bytes.split(|byte| *byte == b'\n').next()?;
        let directory = str::from_utf8(first).ok()?.strip_prefix(ORDERED_FROM)?.to_owned();
        let names = setup.certificate.names.clone();
        let validity = Validity { from: setup.certificate.not_before, to: setup.certificate.not_after };
        Some(Self { validity, written, names, directory, der: setup.der().to_vec() })
    }

    /// Returns whether this is the certificate that the configuration wants, apart from its validity.
    pub(super) fn fits(&self, acme: &Acme) -> bool {
        same_names(&self.names, &acme.domains) && self.directory == acme.directory
    }
}

/// Room for a certificate. Dropping it removes the file.
#[derive(Debug)]
pub(super) struct Reserved {
    file: File,
    path: PathBuf,
    target: PathBuf,
}

impl Reserved {
    /// Puts the certificate and its key in the place of the former ones, in one step.
    ///
    /// # Errors
    /// If the file system fails.
    pub(super) fn keep(mut self, directory: &str, chain: &str, key: &str) -> Result<(), Failure> {
        let text = Zeroizing::new(format!("{ORDERED_FROM}{directory}\n{key}{chain}"));
        let keep = |file: &mut File| {
            // The reserved bytes are overwritten in place, which needs no further room.
            file.rewind()?;
            file.write_all(text.as_bytes())?;
            file.set_len(text.len() as u64)?;
            file.sync_all()?;
            rename(&self.path, &self.target)
        };
        keep(&mut self.file).map_err(|error| unwritable(self.target.parent().unwrap_or(&self.target), &error))
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // After `keep`, there is no such file.
        let _ = fs::remove_file(&self.path);
    }
}

fn unwritable(directory: &Path, error: &io::Error) -> Failure {
    let advice = state_directory::advice(directory, error);
    let message = format!("{} cannot be written (`{TLS_ACME_STATE_DIRECTORY}`): {error}{advice}", directory.display());
    Failure { kind: Kind::Unwritable, ..Failure::new(message) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::test_certificates::Authority;

    const DIRECTORY: &str = "https://acme.example.org/directory";

    /// A state directory of this test, deleted when dropped.
    struct Place(Acme);

    impl Place {
        fn new(name: &str) -> Self {
            let directory = std::env::temp_dir().join(format!("turnserver-acme-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&directory);
            Self(Acme { state_directory: directory.join("state"), ..Acme::of(&["turn.example.org", "a.example.org"]) })
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(self.0.state_directory.parent().unwrap());
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn the_certificate_and_its_key_are_one_file_of_this_user_alone() {
        let place = Place::new("certificate");
        let store = Store::open(&place.0).unwrap();
        assert_eq!(mode(&place.0.state_directory), 0o700);
        assert_eq!(store.certificate(), Ok(None));
        let authority = Authority::new(crate::clock::unix_seconds());
        let issued = authority.issue(&["turn.example.org", "A.example.org"]);
        store.reserve().unwrap().keep(DIRECTORY, &authority.chain(&issued), &issued.key).unwrap();
        assert_eq!(mode(&place.0.files().certificate), 0o600);
        let stored = store.certificate().unwrap().unwrap();
        assert!(stored.fits(&place.0), "{stored:?}");
        // Another set of names, or another directory, needs another certificate.
        let fewer = Acme { domains: vec!["turn.example.org".to_owned()], ..place.0.clone() };
        let other = Acme { directory: "https://other.example.org/".to_owned(), ..place.0.clone() };
        assert!(!stored.fits(&fewer) && !stored.fits(&other));
        // Nothing else is left.
        let mut names: Vec<_> =
            fs::read_dir(&place.0.state_directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["certificate.pem", "lock"]);
    }

    #[test]
    fn a_reservation_that_is_not_used_leaves_the_certificate_as_it_is() {
        let place = Place::new("reservation");
        let store = Store::open(&place.0).unwrap();
        fs::write(place.0.files().certificate, "old").unwrap();
        let reserved = store.reserve().unwrap();
        assert_eq!(fs::metadata(&reserved.path).unwrap().len(), RESERVED as u64);
        drop(reserved);
        assert_eq!(fs::read(place.0.files().certificate).unwrap(), b"old");
        assert_eq!(store.certificate(), Ok(None));
        assert_eq!(fs::read_dir(&place.0.state_directory).unwrap().count(), 2);
        // It is there, but cannot be read.
        fs::remove_file(place.0.files().certificate).unwrap();
        fs::create_dir(place.0.files().certificate).unwrap();
        let failure = store.certificate().unwrap_err();
        assert!(failure.message.contains("certificate.pem cannot be read: "), "{failure}");
    }

    #[test]
    fn an_account_is_kept_for_each_directory_and_a_damaged_one_is_an_error_without_its_content() {
        let place = Place::new("account");
        let store = Store::open(&place.0).unwrap();
        assert!(store.account(DIRECTORY).unwrap().is_none());
        let json = r#"{"id":"https://acme.example.org/1","key_pkcs8":"MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0","directory":"https://acme.example.org/directory"}"#;
        let credentials: AccountCredentials = serde_json::from_str(json).unwrap();
        store.keep_account(DIRECTORY, &credentials, Some("mailto:a@example.org")).unwrap();
        let path = store.account_path(DIRECTORY);
        assert_eq!(mode(&path), 0o600);
        let account = store.account(DIRECTORY).unwrap().unwrap();
        assert_eq!(serde_json::to_string(&account.credentials).unwrap(), json);
        assert_eq!(account.contact.as_deref(), Some("mailto:a@example.org"));
        assert!(store.account("https://other.example.org/").unwrap().is_none());
        fs::write(&path, "{\"account\":{\"key_pkcs8\":\"SECRET\"}}").unwrap();
        let Err(failure) = store.account(DIRECTORY) else { panic!("the account is damaged") };
        assert!(failure.message.contains("is damaged") && !failure.message.contains("SECRET"), "{failure}");
    }

    #[test]
    fn the_wait_after_failures_is_kept_until_there_are_none() {
        let place = Place::new("back-off");
        let store = Store::open(&place.0).unwrap();
        assert_eq!(store.back_off(&place.0), None);
        let mut back_off = BackOff::default();
        back_off.add(&Failure::new("refused"), 1_800_000_000, None, 0.0);
        store.keep_back_off(&back_off, &place.0).unwrap();
        assert_eq!(mode(&store.back_off_path()), 0o600);
        assert_eq!(store.back_off(&place.0), Some(back_off));
        fs::write(store.back_off_path(), "{").unwrap();
        assert_eq!(store.back_off(&place.0), None);
        for _ in 0..2 {
            store.keep_back_off(&BackOff::default(), &place.0).unwrap();
            assert!(!store.back_off_path().exists());
        }
    }

    #[test]
    fn two_servers_do_not_share_a_state_directory() {
        let place = Place::new("lock");
        let first = Store::open(&place.0).unwrap();
        let failure = Store::open(&place.0).unwrap_err();
        assert!(failure.message.starts_with("another server uses "), "{failure}");
        drop(first);
        Store::open(&place.0).unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_an_error_with_advice() {
        let place = Place::new("unwritable");
        fs::create_dir_all(place.0.state_directory.parent().unwrap()).unwrap();
        // A file in place of the directory: root can write everything else.
        fs::write(&place.0.state_directory, "").unwrap();
        let failure = Store::open(&place.0).unwrap_err();
        assert!(failure.message.contains("cannot be written (`tls.acme.state-directory`)"), "{failure}");
        let denied = unwritable(Path::new("/x"), &io::ErrorKind::PermissionDenied.into());
        assert!(denied.message.contains("StateDirectory=turnserver"), "{denied}");
        let read_only = unwritable(Path::new("/srv/acme"), &io::ErrorKind::ReadOnlyFilesystem.into());
        assert!(read_only.message.contains("set ReadWritePaths=/srv/acme in a drop-in"), "{read_only}");
    }
}
