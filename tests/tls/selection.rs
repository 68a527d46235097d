//! The certificate that a client gets, if the server has several.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, AlertDescription, ClientConfig, ClientConnection, SignatureScheme};
use turnserver::clock::unix_seconds;

use crate::support::any_certificate::AnyCertificate;
use crate::support::certificates::{Authority, Issued};
use crate::support::tls::{handshake_of, serial};
use crate::support::{Controlled, LogLine, TempDir, config, run, with_tls};

const ALL: AnyCertificate = AnyCertificate(&[SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256]);
const ED25519: AnyCertificate = AnyCertificate(&[SignatureScheme::ED25519]);
const RSA: AnyCertificate = AnyCertificate(&[SignatureScheme::RSA_PSS_SHA256]);

/// Returns the serial number of the certificate that a client gets. Without a name, it sends none.
fn presented(server: SocketAddr, name: Option<&str>, signatures: AnyCertificate) -> Result<String, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(signatures))
        .with_no_client_auth();
    config.enable_sni = name.is_some();
    let name = ServerName::try_from(name.unwrap_or("unnamed.example").to_owned()).unwrap();
    let session = ClientConnection::new(Arc::new(config), name).unwrap();
    handshake_of(session, server).map(|stream| serial(&stream))
}

/// A server whose first certificate is the default one, and the files of its certificates.
struct Several {
    authority: Authority,
    directory: TempDir,
    controlled: Controlled,
}

impl Several {
    fn start(certificates: &[&Issued], authority: Authority) -> Self {
        let directory = TempDir::new();
        let config = configuration(&authority, directory.path(), certificates);
        let controlled = Controlled::start_with(&config);
        Self { authority, directory, controlled }
    }

    fn presented(&self, name: Option<&str>, signatures: AnyCertificate) -> String {
        presented(self.controlled.server.tls_address(), name, signatures).unwrap()
    }

    fn wait_for_replacement(&self, serial: &str) {
        self.controlled.server.wait_for_log(|line| {
            line.field("event").as_deref() == Some("certificate") && line.field("serial").as_deref() == Some(serial)
        });
    }
}

/// Writes each certificate into a directory of its own, and returns a configuration with all of them.
fn configuration(authority: &Authority, directory: &Path, certificates: &[&Issued]) -> String {
    let files: Vec<_> = certificates
        .iter()
        .enumerate()
        .map(|(index, issued)| {
            let own = directory.join(index.to_string());
            fs::create_dir_all(&own).unwrap();
            authority.write(issued, &own)
        })
        .collect();
    let further: String = files[1..]
        .iter()
        .map(|[certificate, key]| {
            format!("[[tls.certificates]]\ncertificate = {certificate:?}\nprivate-key = {key:?}\n")
        })
        .collect();
    with_tls(&config(&["127.0.0.1"], &further), &["127.0.0.1"], &files[0])
}

#[test]
fn the_server_name_selects_the_certificate_and_a_name_precedes_a_wildcard() {
    let authority = Authority::new(unix_seconds());
    let names: [&[&str]; 4] =
        [&["turn.example.org"], &["*.example.net"], &["a.example.net", "web.example"], &["*.sub.example.net"]];
    let issued = names.map(|names| authority.issue(names));
    let several = Several::start(&issued.each_ref(), authority);
    for (name, expected) in [
        (Some("turn.example.org"), 0),
        (Some("b.example.net"), 1),
        (Some("a.example.net"), 2),
        (Some("WEB.example"), 2),
        (Some("a.sub.example.net"), 3),
        (Some("example.net"), 0),
        (Some("other.example"), 0),
        (None, 0),
    ] {
        assert_eq!(several.presented(name, ALL), issued[expected].serial, "{name:?}");
    }
}

#[test]
fn http_listeners_have_the_same_certificates() {
    let authority = Authority::new(unix_seconds());
    let issued = [["turn.example.org"], ["web.example.org"]].map(|names| authority.issue(&names));
    let directory = TempDir::new();
    let config = configuration(&authority, directory.path(), &issued.each_ref());
    let controlled = Controlled::start_with(&format!("{config}[http]\nlisten = [\"127.0.0.1:0\"]\ntls = true\n"));
    let address = controlled.event("http-listening").field("address").unwrap().parse().unwrap();
    for (name, expected) in [(Some("web.example.org"), 1), (Some("turn.example.org"), 0), (None, 0)] {
        assert_eq!(presented(address, name, ALL).unwrap(), issued[expected].serial, "{name:?}");
    }
}

// Many operators have a certificate for each type of key. RSA is among the checks with OpenSSL.
#[test]
fn of_two_certificates_for_a_name_the_client_gets_the_one_that_it_can_verify() {
    let authority = Authority::new(unix_seconds());
    let issued = [
        authority.issue_with_ed25519(&["turn.example.org"]),
        authority.issue(&["turn.example.org"]),
        authority.issue_with_ed25519(&["web.example.org"]),
        authority.issue(&["*.example.org"]),
        authority.issue(&["web.example.org"]),
    ];
    let several = Several::start(&issued.each_ref(), authority);
    for (name, signatures, expected) in [
        // ECDSA is preferred. Without a name, and with an unknown one, it is the twin of the default certificate.
        (Some("turn.example.org"), ALL, 1),
        (Some("turn.example.org"), ED25519, 0),
        (None, ALL, 1),
        (None, ED25519, 0),
        (Some("other.example"), ALL, 1),
        (Some("web.example.org"), ALL, 4),
        (Some("web.example.org"), ED25519, 2),
    ] {
        let what = format!("{name:?} {signatures:?}");
        assert_eq!(several.presented(name, signatures), issued[expected].serial, "{what}");
    }
    // A client that can verify none is told so.
    for name in [None, Some("web.example.org"), Some("b.example.org")] {
        let refused = presented(several.controlled.server.tls_address(), name, RSA).unwrap_err();
        assert_eq!(refused, rustls::Error::AlertReceived(AlertDescription::HandshakeFailure), "{name:?}");
    }
}

#[test]
fn each_certificate_is_replaced_on_its_own_and_an_unusable_one_stays() {
    let authority = Authority::new(unix_seconds());
    let issued = [["turn.example.org"], ["web.example.org"]].map(|names| authority.issue(&names));
    let several = Several::start(&issued.each_ref(), authority);
    let [default, further] = ["0", "1"].map(|name| several.directory.path().join(name));
    let is_kept = |line: &LogLine| line.field("event").as_deref() == Some("certificate-unusable");

    fs::write(default.join("fullchain.pem"), "").unwrap();
    let kept = several.controlled.server.wait_for_log(is_kept);
    assert!(kept.message().contains("`tls.certificate`: `") && kept.message().contains("0/fullchain.pem"), "{kept:?}");
    let renewed = several.authority.issue(&["web.example.org"]);
    several.authority.write(&renewed, &further);
    several.wait_for_replacement(&renewed.serial);
    assert_eq!(several.presented(Some("web.example.org"), ALL), renewed.serial);
    assert_eq!(several.presented(None, ALL), issued[0].serial);

    // A reload of the configuration needs all of them. Refused, it changes none.
    let again = several.authority.issue(&["web.example.org"]);
    several.authority.write(&again, &further);
    let (code, message) = several.controlled.failure(&["reload"]);
    assert!(code == Some(1) && message.contains("0/fullchain.pem"), "{message}");
    several.wait_for_replacement(&again.serial);
    let default_again = several.authority.issue(&["turn.example.org"]);
    several.authority.write(&default_again, &default);
    several.wait_for_replacement(&default_again.serial);
    assert_eq!(several.presented(None, ALL), default_again.serial);

    fs::remove_file(further.join("privkey.pem")).unwrap();
    let is_further = |line: &LogLine| is_kept(line) && line.message().contains("`tls.certificates.private-key`");
    several.controlled.server.wait_for_log(is_further);
    assert_eq!(several.presented(Some("web.example.org"), ALL), again.serial);
}

#[test]
fn the_operator_sees_every_certificate() {
    let authority = Authority::new(unix_seconds());
    let issued = [["turn.example.org"], ["web.example.org"]].map(|names| authority.issue(&names));
    let several = Several::start(&issued.each_ref(), authority);
    let shown = several.controlled.json(&["certificates"]);
    let shown = shown["certificates"].as_array().unwrap();
    let field = |name: &str| shown.iter().map(|own| own[name].clone()).collect::<Vec<_>>();
    assert_eq!(field("serial"), issued.each_ref().map(|issued| json!(issued.serial)));
    assert_eq!(field("default"), [json!(true), json!(false)]);
    assert_eq!(field("key"), [json!("ECDSA"), json!("ECDSA")]);
    let lines = several.controlled.lines(&["certificates"]).join("\n");
    assert!(lines.contains("used     for its names, other names and clients without a name\n"), "{lines}");

    // The configuration without one of them.
    let (before, rest) = several.controlled.config.split_once("[[tls.certificates]]").unwrap();
    let (_, after) = rest.split_once("[control]").unwrap();
    several.controlled.server.write_config(&format!("{before}[control]{after}"));
    let response = several.controlled.json(&["reload"]);
    let keys: Vec<&str> =
        response["changes"].as_array().unwrap().iter().map(|change| change["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["tls.certificates.certificate", "tls.certificates.private-key"], "{response}");
    assert_eq!(several.presented(Some("web.example.org"), ALL), issued[0].serial);
    assert_eq!(several.controlled.json(&["certificates"])["certificates"].as_array().unwrap().len(), 1);
}

/// Returns the warnings of `check-config` about these certificates.
fn warnings(certificates: &[&Issued], authority: &Authority, hostname: &str) -> Vec<String> {
    let directory = TempDir::new();
    let config = configuration(authority, directory.path(), certificates);
    let path = directory.write("turnserver.toml", &format!("hostname = {hostname:?}\n{config}"));
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_turnserver"));
    let finished = run(command.arg("check-config").arg("--config").arg(path), None, crate::support::TIMEOUT);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let place = format!("{}/", directory.path().display());
    let warnings = finished.stdout.iter().filter(|line| line.starts_with("warning: `tls"));
    warnings.map(|line| line.replace(&place, "")).collect()
}

#[test]
fn a_certificate_that_no_client_gets_is_a_warning() {
    let authority = Authority::new(unix_seconds());
    let own = authority.issue(&["turn.example.org", "192.0.2.7"]);
    let [twin, web, address] = [&["192.0.2.7", "turn.example.org"][..], &["web.example.org"], &["192.0.2.8"]]
        .map(|names| authority.issue(names));
    let other_key = authority.issue_with_ed25519(&["turn.example.org", "192.0.2.7"]);
    assert_eq!(warnings(&[&own, &other_key, &web], &authority, "web.example.org"), [""; 0]);
    assert_eq!(
        warnings(&[&own, &web, &twin], &authority, "turn.example.org"),
        [
            "warning: `tls.certificates.certificate`: no client gets the certificate in `2/fullchain.pem` while the one in \
             `0/fullchain.pem` is valid, which is for the same names and has the same type of key (ECDSA): remove one of them"
        ]
    );
    assert_eq!(
        warnings(&[&own, &address], &authority, "192.0.2.7"),
        [
            "warning: `tls.certificates.certificate`: no client gets the certificate in `1/fullchain.pem`, because it has no \
          DNS name (subjectAltName): a client that connects to an address sends no name, and gets the certificate of \
          `tls.certificate`"
        ]
    );
    assert_eq!(
        warnings(&[&own, &web], &authority, "c.example.org"),
        [
            "warning: `tls.certificate`: the certificate in `0/fullchain.pem` is valid for turn.example.org, 192.0.2.7, so \
          clients that connect to `hostname` c.example.org will reject it, and no other certificate is valid for it"
        ]
    );
}
