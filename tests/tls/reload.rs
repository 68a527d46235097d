//! Replacing the certificate while the server runs.

use std::fs;
use std::os::unix::fs::symlink;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use turnserver::stun::attribute::Data;

use crate::common::Fixture;
use crate::support::client::{Client, Login, receive, socket};
use crate::support::tls::{ANY, handshake, serial};
use crate::support::{LogLine, Server, TempDir, config, with_tls};

const LOOPBACK_PEERS: &str = "[peers]\nallow = [\"127.0.0.1\", \"::1\"]\n";

const REPLACED: &str = "certificate replaced for new connections";

fn replaced_by(serial: &str) -> impl Fn(&LogLine) -> bool + '_ {
    move |line| line.message() == REPLACED && line.field("serial").as_deref() == Some(serial)
}

fn is_kept(line: &LogLine) -> bool {
    line.level() == "ERROR" && line.message().starts_with("the old certificate stays in use")
}

fn hangup(server: &Server) {
    kill(Pid::from_raw(server.id().try_into().unwrap()), Signal::SIGHUP).unwrap();
}

#[test]
fn a_new_certificate_is_used_for_new_connections_and_old_ones_continue() {
    let fixture = Fixture::new(LOOPBACK_PEERS);
    let stream = fixture.stream();
    assert_eq!(serial(&stream), fixture.issued.serial);
    let client = Client::on_tls(stream);
    let peer = socket("127.0.0.1:0".parse().unwrap());
    let (session, relayed) = client.allocate(&Login::mint("alice", 600)).unwrap();
    client.permit(&session, peer.local_addr().unwrap());
    let exchange = || {
        client.send_to_peer(peer.local_addr().unwrap(), b"ping");
        assert_eq!(receive(&peer), (b"ping".to_vec(), relayed));
        peer.send_to(b"pong", relayed).unwrap();
        assert_eq!(client.receive().get::<Data<'_>>(), Some(Data(b"pong")));
    };
    exchange();
    for _ in 0..2 {
        let renewed = fixture.authority.issue(&["localhost"]);
        fixture.authority.write(&renewed, fixture.directory.path());
        fixture.server.wait_for_log(replaced_by(&renewed.serial));
        exchange();
        let new = fixture.stream();
        assert_eq!(serial(&new), renewed.serial);
        let new = Client::on_tls(new);
        assert_eq!(new.binding(), new.address());
    }
    assert!(!fixture.server.logs().iter().any(is_kept), "{:#?}", fixture.server.logs());
}

#[test]
fn the_old_certificate_stays_in_use_until_the_new_one_is_usable() {
    let fixture = Fixture::new("");
    let [certificate, key] = &fixture.files;
    fs::write(certificate, "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap();
    let kept = fixture.server.wait_for_log(is_kept);
    assert!(kept.message().ends_with("fullchain.pem` cannot be used: it is not well-formed PEM"), "{kept:?}");
    assert_eq!(serial(&fixture.stream()), fixture.issued.serial);

    // The first half of a renewal, while the key is still the old one.
    let renewed = fixture.authority.issue(&["localhost"]);
    fs::write(certificate, fixture.authority.chain(&renewed)).unwrap();
    let kept = fixture.server.wait_for_log(|line| is_kept(line) && line.message().contains("does not belong"));
    assert!(kept.message().contains("privkey.pem") && kept.message().contains("fullchain.pem"), "{kept:?}");
    assert_eq!(serial(&fixture.stream()), fixture.issued.serial);
    fs::write(key, &renewed.key).unwrap();
    fixture.server.wait_for_log(replaced_by(&renewed.serial));
    assert_eq!(serial(&fixture.stream()), renewed.serial);

    // Each state of the files is logged once.
    assert_eq!(fixture.server.terminate().logs.iter().filter(|line| is_kept(line)).count(), 2);
}

#[test]
fn sighup_reads_the_files_at_once_and_logs_the_result() {
    let fixture = Fixture::new("");
    hangup(&fixture.server);
    let same = fixture.server.wait_for_log(|line| line.message() == "certificate reloaded, unchanged");
    assert_eq!(same.field("serial").as_deref(), Some(fixture.issued.serial.as_str()));

    fs::remove_file(&fixture.files[1]).unwrap();
    hangup(&fixture.server);
    let refused = fixture.server.wait_for_log(|line| line.field("event").as_deref() == Some("reload-refused"));
    let error = refused.field("error").unwrap();
    assert!(error.ends_with("privkey.pem` cannot be read: file not found"), "{refused:?}");

    let renewed = fixture.authority.issue(&["localhost"]);
    fixture.authority.write(&renewed, fixture.directory.path());
    hangup(&fixture.server);
    fixture.server.wait_for_log(replaced_by(&renewed.serial));
    assert_eq!(serial(&fixture.stream()), renewed.serial);
}

// The files in certbot's live/ are links to files in archive/. Kubernetes replaces the link to a whole directory.
#[test]
fn a_changed_symlink_target_is_a_change() {
    let base = Fixture::new("");
    let directory = TempDir::new();
    let version = |name: &str| {
        let path = directory.path().join(name);
        fs::create_dir(&path).unwrap();
        let issued = base.authority.issue(&["localhost"]);
        base.authority.write(&issued, &path);
        issued.serial
    };
    let link = |target: &str| {
        let (new, current) = (directory.path().join("new"), directory.path().join("current"));
        symlink(target, &new).unwrap();
        fs::rename(new, current).unwrap();
    };
    let serials = ["v1", "v2"].map(version);
    link("v1");
    let files = ["fullchain.pem", "privkey.pem"].map(|name| directory.path().join("current").join(name));
    let server = Server::start(&with_tls(&config(&["127.0.0.1"], ""), &["127.0.0.1"], &files));
    let connect = || serial(&handshake(server.tls_address(), &base.authority, &ANY).unwrap());
    assert_eq!(connect(), serials[0]);
    link("v2");
    server.wait_for_log(replaced_by(&serials[1]));
    assert_eq!(connect(), serials[1]);
}
