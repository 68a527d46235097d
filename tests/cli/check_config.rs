//! `turnserver check-config`.

use std::path::Path;

use super::running::{failure, text_config, turnserver};
use crate::support::{Finished, SECRET, TempDir};

#[track_caller]
fn report(finished: &Finished) -> String {
    assert_eq!((finished.code, finished.stderr.as_slice()), (Some(0), &[][..]), "{finished:?}");
    finished.stdout.join("\n")
}

#[test]
fn a_good_file_is_summed_up_on_standard_output_without_its_secrets() {
    let directory = TempDir::new();
    let users = "[[auth.users]]\nname = \"bob\"\npassword = \"builder-of-things\"\n";
    directory.write("good.toml", &text_config(&["127.0.0.1"], users));
    for arguments in [["check-config", "--config", "good.toml"], ["--config", "good.toml", "check-config"]] {
        let report = report(&turnserver(&directory, &arguments));
        for part in [
            "good.toml: no errors",
            "realm    test.example",
            "listen   udp 127.0.0.1:0 (any free port)",
            "listen   tcp 127.0.0.1:0 (any free port)",
            "relaying on 127.0.0.1: ",
            "1 secret, 1 static user",
            "warning: only programs on this machine",
        ] {
            assert!(report.contains(part), "{part} is not in:\n{report}");
        }
        assert!(!report.contains(SECRET) && !report.contains("builder-of-things"), "{report}");
    }
}

#[test]
fn a_bad_file_is_exit_code_1() {
    let directory = TempDir::new();
    directory.write("bad.toml", "realm = \n");
    let finished = turnserver(&directory, &["check-config", "--config", "bad.toml"]);
    assert!(failure(&finished).starts_with("bad.toml:1:"), "{finished:?}");
}

#[test]
fn the_shipped_file_has_no_errors() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("turnserver.toml");
    let finished = turnserver(&TempDir::new(), &["check-config", "--config", shipped.to_str().unwrap()]);
    let report = report(&finished);
    assert!(report.contains("turnserver.toml: no errors") && report.contains("listen   udp [::]:3478"), "{report}");
}

#[test]
fn the_file_in_the_working_directory_is_the_one_that_is_checked() {
    let directory = TempDir::new();
    directory.write("turnserver.toml", &text_config(&["127.0.0.1"], ""));
    let report = report(&turnserver(&directory, &["check-config"]));
    assert!(report.starts_with("turnserver.toml: no errors\n"), "{report}");
}

#[test]
fn without_a_file_it_says_that_these_are_the_defaults() {
    if Path::new("/etc/turnserver/turnserver.toml").exists() {
        // This machine runs a server of its own, whose file is the one that is found.
        return;
    }
    let report = report(&turnserver(&TempDir::new(), &["check-config"]));
    assert!(report.starts_with("no configuration file: these are the defaults\n"), "{report}");
    assert!(report.contains("no secret and no user: one secret is made for each run"), "{report}");
}

#[test]
fn nothing_is_started() {
    let directory = TempDir::new();
    let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = text_config(&["127.0.0.1"], "").replace("127.0.0.1:0", &other.local_addr().unwrap().to_string());
    directory.write("turnserver.toml", &taken);
    report(&turnserver(&directory, &["check-config"]));
}
