//! Messages about a certificate, and their frequency.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Mutex;
use std::{fs, io};

use super::files::{next_warning, permission_advice};
use super::*;
use crate::net::tls::for_client;
use crate::test_certificates::{Authority, Issued};

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
        let files = CertificateFiles { certificate, private_key, is_further: false, is_ordered: false };
        Tls { certificates: vec![files], acme: None }
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
    // A reload of the configuration is refused, and logs nothing here.
    assert!(
        logged(|| {
            let refused = Certificates::reload(Some(&certificates), &tls, None).err().unwrap();
            assert!(refused.to_string().contains("expired"), "{refused}");
        })
        .is_empty()
    );
    fs::remove_file(&tls.certificates[0].private_key).unwrap();
    assert_eq!(logged(|| poll(&mut certificates)), [""; 0]);
    assert_eq!(logged(|| (0..5).for_each(|_| poll(&mut certificates))).len(), 1);
    let renewed = authority.issue(&["localhost"]);
    directory.write(&authority, &renewed);
    let lines = logged(|| (0..5).for_each(|_| poll(&mut certificates)));
    assert!(lines.len() == 1 && lines[0].contains(&renewed.serial), "{lines:?}");
    assert_eq!(certificates.current().unwrap().serial, renewed.serial);
}

#[tokio::test]
async fn an_expiring_certificate_is_logged_once_a_day() {
    let (authority, directory) = (Authority::new(clock::unix_seconds()), Directory::new("daily"));
    let now = clock::unix_seconds();
    let tls = directory.write(&authority, &authority.issue_for(&["localhost"], now - 100, now + 5 * DAY + 30));
    let (mut certificates, _) = Certificates::load(&tls, None).unwrap();
    assert_eq!(logged(|| poll(&mut certificates)), [""; 0]);
    certificates.all[0].next_warning = now;
    let lines = logged(|| (0..5).for_each(|_| poll(&mut certificates)));
    assert!(lines.len() == 1 && lines[0].contains("expires in 5 d, on "), "{lines:?}");
    certificates.all[0].current.as_mut().unwrap().certificate.not_after = now - 60;
    certificates.all[0].next_warning = now;
    let lines = logged(|| (0..5).for_each(|_| poll(&mut certificates)));
    assert!(lines.len() == 1 && lines[0].contains(" expired on "), "{lines:?}");
    assert!(certificates.all[0].next_warning <= clock::unix_seconds() + HOUR);
}

// The next warning after the moment of expiry is not a day late, also if the clock was set back meanwhile.
#[tokio::test]
async fn the_expiry_itself_is_logged_and_then_each_hour() {
    let (authority, directory) = (Authority::new(clock::unix_seconds()), Directory::new("hourly"));
    let now = clock::unix_seconds();
    let tls = directory.write(&authority, &authority.issue(&["localhost"]));
    let (mut certificates, _) = Certificates::load(&tls, None).unwrap();
    let certificate = certificates.all[0].current.as_ref().unwrap().certificate.clone();
    let until = |not_after| {
        let mut certificate = certificate.clone();
        certificate.not_after = not_after;
        certificate
    };
    assert_eq!(next_warning(&until(now + 3 * DAY), now), now + DAY);
    assert_eq!(next_warning(&until(now + 60), now), now + 61);
    assert_eq!(next_warning(&until(now - 1), now), now + HOUR);
    certificates.all[0].next_warning = now + 3650 * DAY;
    poll(&mut certificates);
    assert!(certificates.all[0].next_warning <= clock::unix_seconds() + DAY);
}

// A machine without a clock battery boots in the past. TLS is served, and works as soon as the clock is set.
#[tokio::test]
async fn a_certificate_that_is_not_yet_valid_is_used_with_a_warning() {
    let (authority, directory) = (Authority::new(clock::unix_seconds()), Directory::new("early"));
    let now = clock::unix_seconds();
    let early = authority.issue_for(&["localhost"], now + 2 * DAY + 30, now + 90 * DAY);
    let tls = directory.write(&authority, &early);
    let mut loaded = None;
    let lines = logged(|| loaded = Some(Certificates::load(&tls, None).unwrap()));
    assert!(lines.iter().any(|line| line.contains("WARN") && line.contains("not yet valid")), "{lines:?}");
    let (mut certificates, _) = loaded.unwrap();
    assert_eq!(certificates.current().unwrap().serial, early.serial);
    let [CheckedCertificate { result, .. }] = &check(&tls, None)[..] else { panic!("there is one certificate") };
    let (_, warnings) = result.as_ref().unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("it becomes valid in 2 d, on "), "{warnings:?}");
    // A valid certificate replaces it. It is not replaced by another early one.
    let valid = authority.issue(&["localhost"]);
    directory.write(&authority, &valid);
    logged(|| (0..3).for_each(|_| poll(&mut certificates)));
    assert_eq!(certificates.current().unwrap().serial, valid.serial);
    directory.write(&authority, &early);
    let lines = logged(|| (0..3).for_each(|_| poll(&mut certificates)));
    assert!(lines.len() == 1 && lines[0].contains("ERROR") && lines[0].contains("not yet valid"), "{lines:?}");
    assert_eq!(certificates.current().unwrap().serial, valid.serial);
}

#[tokio::test]
async fn a_certificate_that_the_server_orders_may_be_missing_and_the_former_one_serves_until_it_is_there() {
    let (authority, directory) = (Authority::new(clock::unix_seconds()), Directory::new("ordered"));
    let file = directory.0.join("certificate.pem");
    let files =
        CertificateFiles { certificate: file.clone(), private_key: file.clone(), is_further: false, is_ordered: true };
    let ordered = Tls { certificates: vec![files], acme: None };
    let mut loaded = None;
    let lines = logged(|| loaded = Some(Certificates::load(&ordered, None).unwrap()));
    assert!(lines.len() == 1 && lines[0].contains("certificate-missing"), "{lines:?}");
    let (mut certificates, _) = loaded.unwrap();
    assert!(certificates.current().is_none() && certificates.published().is_empty());
    let [CheckedCertificate { result, .. }] = &check(&ordered, None)[..] else { panic!("there is one certificate") };
    let (_, warnings) = result.as_ref().unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("so TLS does not work"), "{warnings:?}");
    let write = |issued: &Issued| fs::write(&file, format!("{}{}", issued.key, authority.chain(issued))).unwrap();

    let first = authority.issue(&["localhost"]);
    write(&first);
    let lines = logged(|| poll(&mut certificates));
    assert!(lines.len() == 1 && lines[0].contains("certificate loaded"), "{lines:?}");
    // The thread that orders the certificate replaces a file that has been removed, and an expired certificate.
    fs::remove_file(&file).unwrap();
    assert_eq!(logged(|| (0..3).for_each(|_| poll(&mut certificates))), [""; 0]);
    assert_eq!(certificates.current().unwrap().serial, first.serial);
    let (reloaded, _) = Certificates::reload(Some(&certificates), &ordered, None).unwrap();
    assert_eq!(reloaded.current().unwrap().serial, first.serial);
    let now = clock::unix_seconds();
    let expired = authority.issue_for(&["localhost"], now - 90 * DAY, now - DAY);
    write(&expired);
    let (started, _) = Certificates::load(&ordered, None).unwrap();
    assert_eq!(started.current().unwrap().serial, expired.serial);

    // Files of somebody else are replaced by an order: they serve until then.
    fs::remove_file(&file).unwrap();
    let own = directory.write(&authority, &authority.issue(&["localhost"]));
    let (given, _) = Certificates::load(&own, None).unwrap();
    let (reloaded, _) = Certificates::reload(Some(&given), &ordered, None).unwrap();
    assert_eq!(reloaded.current().unwrap().serial, given.current().unwrap().serial);
    // A damaged one is not merely missing.
    fs::write(&file, "damaged").unwrap();
    let mut started = Certificates::load(&ordered, None).unwrap().0;
    let lines = logged(|| (0..3).for_each(|_| poll(&mut started)));
    assert!(lines.len() == 1 && lines[0].contains("there is no certificate, because"), "{lines:?}");
    let [CheckedCertificate { result, .. }] = &check(&ordered, None)[..] else { panic!("there is one certificate") };
    let (_, warnings) = result.as_ref().unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("cannot be used"), "{warnings:?}");
}

#[tokio::test]
async fn a_reload_uses_the_stored_certificate_if_it_is_the_wanted_one_and_otherwise_keeps_the_former_one() {
    const DIRECTORY: &str = "https://acme.example.org/directory";
    let (authority, directory) = (Authority::new(clock::unix_seconds()), Directory::new("stored"));
    let text = format!(
        "[listen]\ntls = [\"[::]:443\"]\n[tls.acme]\ndomains = [\"turn.example.org\"]\nterms-agreed = true\n\
         directory = \"{DIRECTORY}\"\nstate-directory = {:?}\n",
        directory.0
    );
    let wanted = crate::config::Config::parse(&text, "t.toml").unwrap().tls.unwrap();
    let file = &wanted.certificates[0].certificate;
    let write = |from: &str, issued: &Issued| {
        let text = format!("# Ordered by turnserver from {from}\n{}{}", issued.key, authority.chain(issued));
        fs::write(file, text).unwrap();
    };
    let own = directory.write(&authority, &authority.issue(&["localhost"]));
    let (given, _) = Certificates::load(&own, None).unwrap();
    let serial = |certificates: &Certificates| certificates.current().unwrap().serial.clone();
    let reload = || Certificates::reload(Some(&given), &wanted, None).unwrap().0;

    let now = clock::unix_seconds();
    let expired = authority.issue_for(&["turn.example.org"], now - 90 * DAY, now - DAY);
    let early = authority.issue_for(&["turn.example.org"], now + DAY, now + 90 * DAY);
    let better = authority.issue(&["turn.example.org"]);
    for (from, worse) in [
        (DIRECTORY, &expired),
        (DIRECTORY, &early),
        (DIRECTORY, &authority.issue(&["other.example.org"])),
        ("https://staging.example.org/directory", &better),
    ] {
        write(from, worse);
        assert_eq!(serial(&reload()), serial(&given), "{from} {}", worse.serial);
    }
    write(DIRECTORY, &better);
    assert_eq!(serial(&reload()), better.serial);

    // One that is not yet valid is read again until it is, without another change of its file.
    let soon = authority.issue_for(&["turn.example.org"], clock::unix_seconds() + 5, now + 90 * DAY);
    write(DIRECTORY, &soon);
    let mut reloaded = reload();
    assert_eq!(serial(&reloaded), serial(&given));
    let mut polls = tokio::time::interval(Duration::from_millis(50));
    tokio::time::timeout(Duration::from_secs(20), async {
        while serial(&reloaded) != soon.serial {
            polls.tick().await;
            poll(&mut reloaded);
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn other_certificates_serve_until_the_ordered_one_is_there() {
    let (authority, directory) = (Authority::new(clock::unix_seconds()), Directory::new("others"));
    let mut tls = directory.write(&authority, &authority.issue(&["localhost"]));
    let file = directory.0.join("missing.pem");
    let ordered =
        CertificateFiles { certificate: file.clone(), private_key: file, is_further: false, is_ordered: true };
    tls.certificates.insert(0, ordered);
    let lines = logged(|| drop(Certificates::load(&tls, None).unwrap()));
    let missing = lines.iter().find(|line| line.contains("certificate-missing")).unwrap();
    assert!(missing.contains("gets one of the other certificates"), "{missing}");
}

// The server starts with an expired certificate that it has ordered, and any certificate may expire while it runs.
#[tokio::test]
async fn an_expired_certificate_makes_way_for_a_valid_one_with_its_name_and_comes_back_when_it_is_renewed() {
    let now = clock::unix_seconds();
    let (authority, directory) = (Authority::new(now), Directory::new("expired"));
    let further_directory = directory.0.join("further");
    fs::create_dir_all(&further_directory).unwrap();
    let file = directory.0.join("certificate.pem");
    let write = |issued: &Issued| fs::write(&file, format!("{}{}", issued.key, authority.chain(issued))).unwrap();
    let further = authority.issue(&["*.example.org"]);
    let [certificate, private_key] = authority.write(&further, &further_directory);
    let certificates = vec![
        CertificateFiles { certificate: file.clone(), private_key: file.clone(), is_further: false, is_ordered: true },
        CertificateFiles { certificate, private_key, is_further: true, is_ordered: false },
    ];
    let tls = Tls { certificates, acme: None };
    let expired = authority.issue_for(&["turn.example.org"], now - 90 * DAY, now - DAY);
    write(&expired);
    let (mut certificates, _) = Certificates::load(&tls, None).unwrap();
    let selected = |certificates: &Certificates| {
        let all: Vec<Setup> = certificates.all.iter().filter_map(|own| own.current.clone()).collect();
        for_client(&all, Some("turn.example.org")).unwrap().certificate.serial.clone()
    };
    assert_eq!(selected(&certificates), further.serial);
    // Without another one for the name, clients get the expired one.
    let alone = Tls { certificates: tls.certificates[..1].to_vec(), acme: None };
    assert_eq!(selected(&Certificates::load(&alone, None).unwrap().0), expired.serial);

    let renewed = authority.issue_for(&["turn.example.org"], now - 90 * DAY, clock::unix_seconds() + 5);
    write(&renewed);
    assert!(certificates.poll().is_some());
    assert_eq!(selected(&certificates), renewed.serial);
    // Until it expires, which the workers have to know.
    let mut polls = tokio::time::interval(Duration::from_millis(50));
    let replacement = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            polls.tick().await;
            if let Some(replacement) = certificates.poll() {
                break replacement;
            }
        }
    });
    let replacement = replacement.await.unwrap();
    assert_eq!(selected(&certificates), further.serial);
    assert_eq!(logged(|| certificates.log_replacement(&replacement)), [""; 0]);
    assert!(certificates.poll().is_none());
}

#[test]
fn a_certificate_without_a_name_is_compared_with_the_one_that_the_server_orders() {
    let (authority, directory) = (Authority::new(clock::unix_seconds()), Directory::new("nameless"));
    let mut tls = directory.write(&authority, &authority.issue(&["192.0.2.7"]));
    tls.certificates[0].is_further = true;
    let (file, issued) = (directory.0.join("certificate.pem"), authority.issue(&["turn.example.org"]));
    fs::write(&file, format!("{}{}", issued.key, authority.chain(&issued))).unwrap();
    let ordered =
        CertificateFiles { certificate: file.clone(), private_key: file, is_further: false, is_ordered: true };
    tls.certificates.insert(0, ordered);
    let [_, CheckedCertificate { result, .. }] = &check(&tls, None)[..] else { panic!("there are two") };
    let (_, warnings) = result.as_ref().unwrap();
    assert!(warnings.len() == 1 && warnings[0].ends_with("gets the certificate of `tls.acme`"), "{warnings:?}");
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
