//! Checks of the certificate at the start.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use turnserver::clock::unix_seconds;

use crate::common::Fixture;
use crate::support::certificates::{Authority, Issued, self_signed};
use crate::support::client::Client;
use crate::support::tls::{ANY, Offer, handshake};
use crate::support::{Server, TIMEOUT, TempDir, config, config_without_secret, run, with_tls};

const DAY: u64 = 86_400;

/// Asserts that the start and `check-config` fail with the same error line and exit code 1, and returns the line.
#[track_caller]
fn start_error(directory: &TempDir, files: &[PathBuf; 2]) -> String {
    let path = directory.write("turnserver.toml", &with_tls(&config(&["127.0.0.1"], ""), &["127.0.0.1"], files));
    let lines = [&[][..], &["check-config"]].map(|arguments| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
        let finished = run(command.args(arguments).arg("--config").arg(&path), None, TIMEOUT);
        assert_eq!(finished.code, Some(1), "{finished:?}");
        let errors: Vec<String> = finished.stderr.into_iter().filter(|line| line.starts_with("turnserver: ")).collect();
        assert_eq!(errors.len(), 1, "{errors:?}");
        errors.concat()
    });
    assert_eq!(lines[0], lines[1]);
    lines[0].replace(&format!("{}/", directory.path().display()), "")
}

#[test]
fn an_unusable_certificate_prevents_the_start_with_the_reason() {
    let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
    let now = unix_seconds();
    let good = authority.issue(&["localhost"]);
    let other = authority.issue(&["localhost"]);
    let expired = authority.issue_for(&["localhost"], now - 90 * DAY, now - 3 * DAY - 30);
    let chain = |issued: &Issued| authority.chain(issued);
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let old_encrypted = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMAAA\n\
                         -----END EC PRIVATE KEY-----\n";
    let damaged = "-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n";
    let bad_key = "-----BEGIN PRIVATE KEY-----\nMAAA\n-----END PRIVATE KEY-----\n";
    let cases = [
        ("", good.key.as_str(), "`tls.certificate`: `c.pem` cannot be used: it contains no certificate"),
        (
            &good.key,
            &good.key,
            "`tls.certificate`: `c.pem` cannot be used: it contains a private key but no certificate",
        ),
        ("0\u{1}\u{1}", &good.key, "`tls.certificate`: `c.pem` cannot be used: it is binary (DER)"),
        (damaged, &good.key, "`tls.certificate`: `c.pem` cannot be used: certificate 1 in the file is damaged"),
        (&chain(&good), "", "`tls.private-key`: `k.pem` cannot be used: it contains no private key"),
        (
            &chain(&good),
            &good.own,
            "`tls.private-key`: `k.pem` cannot be used: it contains a certificate but no private key",
        ),
        (&chain(&good), encrypted, "`tls.private-key`: `k.pem` cannot be used: the key is encrypted"),
        (&chain(&good), old_encrypted, "`tls.private-key`: `k.pem` cannot be used: the key is encrypted"),
        (&chain(&good), bad_key, "`tls.private-key`: `k.pem` cannot be used: the key cannot be used"),
        (
            &chain(&good),
            &other.key,
            "`tls.private-key`: the key in `k.pem` does not belong to the certificate in `c.pem`",
        ),
        (&chain(&expired), &expired.key, "`tls.certificate`: the certificate in `c.pem` expired 3 d ago, on 20"),
    ];
    for (certificate, key, expected) in cases {
        let files = [directory.write("c.pem", certificate), directory.write("k.pem", key)];
        let error = start_error(&directory, &files);
        assert!(error.starts_with(&format!("turnserver: {expected}")), "{error}");
    }
    let files = [directory.path().join("none.pem"), directory.write("k.pem", &good.key)];
    assert_eq!(
        start_error(&directory, &files),
        "turnserver: `tls.certificate`: `none.pem` cannot be read: file not found"
    );
    let files = [directory.write("c.pem", &chain(&good)), directory.path().to_owned()];
    assert!(start_error(&directory, &files).ends_with("cannot be read: it is a directory"));
}

/// Returns the summary of a configuration with this certificate.
fn check_config(directory: &TempDir, hostname: &str, certificate: &str, issued: &Issued) -> String {
    let files = [directory.write("c.pem", certificate), directory.write("k.pem", &issued.key)];
    let config = with_tls(&config(&["127.0.0.1"], ""), &["127.0.0.1"], &files);
    let path = directory.write("turnserver.toml", &format!("{hostname}{config}"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
    let finished = run(command.arg("check-config").arg("--config").arg(path), None, TIMEOUT);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    finished.stdout.join("\n").replace(&format!("{}/", directory.path().display()), "")
}

// A machine without a clock battery boots in the past.
#[test]
fn a_certificate_that_is_not_yet_valid_is_served_with_a_warning() {
    let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
    let now = unix_seconds();
    let early = authority.issue_for(&["localhost"], now + 2 * DAY + 3630, now + 90 * DAY);
    let chain = authority.chain(&early);
    let report = check_config(&directory, "", &chain, &early);
    let warning =
        "warning: `tls.certificate`: the certificate in `c.pem` is not yet valid; it becomes valid in 2 d 1 h";
    assert!(report.contains(warning), "{report}");
    let files = [directory.write("c.pem", &chain), directory.write("k.pem", &early.key)];
    let server = Server::start(&with_tls(&config(&["127.0.0.1"], ""), &["127.0.0.1"], &files));
    server.wait_for_log(|line| line.level() == "WARN" && line.message().contains("is not yet valid"));
    let later = Offer { ahead: Duration::from_secs(3 * DAY), ..ANY };
    let client = Client::on_tls(handshake(server.tls_address(), &authority, &later).unwrap());
    assert_eq!(client.binding(), client.address());
}

// A byte order mark is not part of PEM.
#[test]
fn a_certificate_with_a_byte_order_mark_is_usable() {
    let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
    let issued = authority.issue(&["localhost"]);
    let report = check_config(&directory, "", &format!("\u{feff}{}", authority.chain(&issued)), &issued);
    assert!(report.contains("certificate for localhost"), "{report}");
}

#[test]
fn a_usable_but_suspicious_certificate_is_a_warning() {
    let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
    let now = unix_seconds();
    let names = ["turn.example.org", "*.example.net", "192.0.2.7", "2001:db8::7"];
    let good = authority.issue(&names);
    let chain = authority.chain(&good);
    let report = check_config(&directory, "", &chain, &good);
    let expected = "certificate for turn.example.org, *.example.net, 192.0.2.7, 2001:db8::7; issued by \
                    CN=Test Intermediate, serial ";
    assert!(report.contains(expected), "{report}");
    assert!(!report.contains("warning: `tls"), "{report}");
    for host in ["turn.example.org", "TURN.example.org", "a.example.net", "192.0.2.7", "[2001:db8::7]"] {
        let report = check_config(&directory, &format!("hostname = \"{host}\"\n"), &chain, &good);
        assert!(!report.contains("warning: `tls"), "{report}");
    }

    let soon = authority.issue_for(&names, now - DAY, now + 13 * DAY + 30);
    let own = self_signed(&["turn.example.org"], now);
    let nameless = authority.issue(&[]);
    let ed25519 = authority.issue_with_ed25519(&names);
    let shuffled = [&authority.root(), &authority.intermediate(), &good.own].map(String::as_str).concat();
    let whole = [&good.own, &authority.intermediate(), &authority.root()].map(String::as_str).concat();
    for (hostname, certificate, issued, expected) in [
        ("", &good.own, &good, "the certificate of the issuer (CN=Test Intermediate) is missing in `c.pem`"),
        ("", &shuffled, &good, "the certificates in `c.pem` are not in the right order"),
        ("", &authority.chain(&soon), &soon, "the certificate in `c.pem` expires in 13 d, on 20"),
        ("", &own.own, &own, "the certificate in `c.pem` is self-signed, so browsers reject it"),
        (
            "hostname = \"turn.example.org\"\n",
            &authority.chain(&nameless),
            &nameless,
            "the certificate in `c.pem` has no subjectAltName, so browsers and most other clients reject it, because \
             they ignore its subject (CN=server)",
        ),
        ("", &authority.chain(&ed25519), &ed25519, "the key of the certificate in `c.pem` is of Ed25519"),
        (
            "hostname = \"a.b.example.net\"\n",
            &whole,
            &good,
            "the certificate in `c.pem` is valid for turn.example.org, *.example.net, 192.0.2.7, 2001:db8::7, so \
             clients that connect to `hostname` a.b.example.net will reject it",
        ),
    ] {
        let report = check_config(&directory, hostname, certificate, issued);
        let warnings: Vec<&str> = report.lines().filter(|line| line.starts_with("warning: `tls")).collect();
        assert_eq!(warnings.len(), 1, "{report}");
        assert!(warnings[0].starts_with(&format!("warning: `tls.certificate`: {expected}")), "{report}");
    }
}

#[test]
fn the_certificate_is_logged_and_a_shuffled_chain_is_sent_in_order() {
    let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
    let issued = authority.issue(&["localhost"]);
    let shuffled = [&authority.intermediate(), &issued.own].map(String::as_str).concat();
    let files = [directory.write("c.pem", &shuffled), directory.write("k.pem", &issued.key)];
    let server = Server::start(&with_tls(&config(&["127.0.0.1"], ""), &["127.0.0.1"], &files));
    handshake(server.tls_address(), &authority, &ANY).unwrap();
    let loaded = server.wait_for_log(|line| line.message() == "certificate loaded");
    assert_eq!(loaded.field("names").as_deref(), Some("localhost"));
    assert_eq!(loaded.field("issuer").as_deref(), Some("CN=Test Intermediate"));
    assert_eq!(loaded.field("serial"), Some(issued.serial));
    assert!(loaded.field("expires").unwrap().ends_with(" UTC"), "{loaded:?}");
    let warned = server.wait_for_log(|line| line.message().contains("each followed by its issuer"));
    assert_eq!(warned.level(), "WARN");
}

// RFC 7065 §3.1: a client compares the URL's host with the certificate.
#[test]
fn the_printed_urls_have_a_name_of_the_certificate() {
    let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
    for (names, hostname, host) in [
        (&["*.example.org", "turn.example.org", "127.0.0.1"][..], "", Some("127.0.0.1")),
        (&["*.example.org", "turn.example.org", "127.0.0.2"], "", Some("turn.example.org")),
        (&["*.example.org"], "", None),
        (&["*.example.org"], "hostname = \"a.example.org\"\n", Some("a.example.org")),
    ] {
        let files = authority.write(&authority.issue(names), directory.path());
        let config = with_tls(&config_without_secret(&["127.0.0.1"], ""), &["127.0.0.1"], &files);
        let server = Server::start(&format!("{hostname}{config}"));
        let printed = server.printed_credential().configuration;
        let urls = printed["iceServers"][0]["urls"].as_array().unwrap();
        let turns: Vec<_> = urls.iter().filter(|url| url.as_str().unwrap().starts_with("turns:")).collect();
        let port = server.tls_address().port();
        let expected: Vec<_> = host.iter().map(|host| json!(format!("turns:{host}:{port}?transport=tcp"))).collect();
        assert_eq!(turns, expected.iter().collect::<Vec<_>>());
    }
}

#[test]
fn a_certificate_with_its_key_in_one_file_is_served() {
    let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
    let issued = authority.issue(&["localhost"]);
    let both = directory.write("both.pem", &(authority.chain(&issued) + &issued.key));
    let files = [both.clone(), both];
    let server = Server::start(&with_tls(&config(&["127.0.0.1"], ""), &["127.0.0.1"], &files));
    handshake(server.tls_address(), &authority, &ANY).unwrap();
}

#[test]
fn the_log_contains_no_private_key() {
    let fixture = Fixture::new("");
    assert!(Path::new(&fixture.files[1]).exists());
    fixture.client().binding();
    let words = shown(&fixture.issued.key);
    for line in fixture.server.terminate().logs {
        assert!(words.iter().all(|word| !line.text().contains(word)), "{line:?}");
    }
}

/// Returns how a log could show a key: the lines of the PEM file, and some bytes inside in hexadecimal and as `Debug`
/// formats them.
fn shown(key: &str) -> Vec<String> {
    let lines = key.lines().filter(|line| !line.starts_with('-')).map(str::to_owned);
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let octets = key.secret_der();
    assert_eq!(octets[34..36], [0x04, 0x20], "PKCS #8 of P-256 has an OCTET STRING of 32 bytes here");
    let forms = octets[36..68].chunks(8).flat_map(|part| {
        let hexadecimal: String = part.iter().map(|octet| format!("{octet:02x}")).collect();
        let lists = [format!("{part:?}"), format!("{part:02x?}")].map(|list| list.trim_matches(['[', ']']).to_owned());
        [hexadecimal.to_uppercase(), hexadecimal].into_iter().chain(lists)
    });
    lines.chain(forms).collect()
}

// The search itself finds each form of a key.
#[test]
fn each_form_of_a_private_key_is_found() {
    let issued = Authority::new(unix_seconds()).issue(&["localhost"]);
    let words = shown(&issued.key);
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let octets = key.secret_der();
    let hexadecimal: String = octets.iter().map(|octet| format!("{octet:02x}")).collect();
    for text in [issued.key.clone(), format!("{octets:?}"), format!("{octets:02x?}"), hexadecimal] {
        assert!(words.iter().any(|word| text.contains(word)), "{text}");
    }
}
