//! Messages about a certificate, and their frequency.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::*;
use crate::net::tls::tests::certificates::{Authority, Issued};

/// A temporary directory with a certificate, deleted when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("turnserver-tls-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, authority: &Authority, issued: &Issued) -> Tls {
        let [certificate, private_key] = authority.write(issued, &self.0);
        Tls { certificate, private_key }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Returns the lines that are logged while `work` runs.
fn logged(work: impl FnOnce()) -> Vec<String> {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, work);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Polls as control does.
fn poll(certificates: &mut Certificates) {
    if let Some(replacement) = certificates.poll() {
        certificates.log_replacement(&replacement);
    }
}

#[tokio::test]
async fn unusable_files_are_logged_once_and_not_at_the_first_poll() {
    let (authority, directory) = (Authority::new(clock::unix_seconds()), Directory::new("once"));
    let tls = directory.write(&authority, &authority.issue(&["localhost"]));
    let (mut certificates, _) = Certificates::load(&tls, None).unwrap();
    assert_eq!(logged(|| poll(&mut certificates)), [""; 0]);
    let now = clock::unix_seconds();
    // The reason contains a time, so its text changes. The change alone causes no further line.
    let expired = authority.issue_for(&["localhost"], now - 100, now - 1);
    directory.write(&authority, &expired);
    assert_eq!(logged(|| poll(&mut certificates)), [""; 0]);
    let lines = logged(|| (0..5).for_each(|_| poll(&mut certificates)));
    assert!(lines.len() == 1 && lines[0].contains("expired"), "{lines:?}");
    // An explicit reload logs the failure again.
    assert_eq!(logged(|| assert!(certificates.reload().is_none())).len(), 1);
    fs::remove_file(&tls.private_key).unwrap();
    assert_eq!(logged(|| poll(&mut certificates)), [""; 0]);
    assert_eq!(logged(|| (0..5).for_each(|_| poll(&mut certificates))).len(), 1);
    let renewed = authority.issue(&["localhost"]);
    directory.write(&authority, &renewed);
    let lines = logged(|| (0..5).for_each(|_| poll(&mut certificates)));
    assert!(lines.len() == 1 && lines[0].contains(&renewed.serial), "{lines:?}");
    assert_eq!(certificates.current().serial, renewed.serial);
}

#[tokio::test]
async fn an_expiring_certificate_is_logged_once_a_day() {
    let (authority, directory) = (Authority::new(clock::unix_seconds()), Directory::new("daily"));
    let now = clock::unix_seconds();
    let tls = directory.write(&authority, &authority.issue_for(&["localhost"], now - 100, now + 5 * DAY + 30));
    let (mut certificates, _) = Certificates::load(&tls, None).unwrap();
    assert_eq!(logged(|| poll(&mut certificates)), [""; 0]);
    certificates.next_warning = now;
    let lines = logged(|| (0..5).for_each(|_| poll(&mut certificates)));
    assert!(lines.len() == 1 && lines[0].contains("expires in 5 d, on "), "{lines:?}");
    certificates.current.not_after = now - 60;
    certificates.next_warning = now;
    let lines = logged(|| (0..5).for_each(|_| poll(&mut certificates)));
    assert!(lines.len() == 1 && lines[0].contains(" expired on "), "{lines:?}");
}

#[test]
fn missing_permissions_are_reported_with_advice() {
    let directory = Directory::new("obstacle");
    let file = directory.0.join("key.pem");
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let shown = permission_advice(&file);
    let advice = format!("make it readable for the group: `chgrp turnserver {0}; chmod 640 {0}`", file.display());
    assert!(shown.starts_with(" (mode 0600, owner uid ") && shown.ends_with(&advice), "{shown}");

    fs::set_permissions(&directory.0, fs::Permissions::from_mode(0o750)).unwrap();
    let shown = permission_advice(&directory.0.join("closed").join("key.pem"));
    let begin = format!(" (directory {}: mode 0750, owner uid ", directory.0.display());
    assert!(shown.starts_with(&begin) && shown.ends_with("in a deploy hook of the ACME client"), "{shown}");
}
