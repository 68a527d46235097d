//! `turnserver check-config`.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use super::running::{command, failure, text_config, turnserver};
use crate::support::{Finished, SECRET, TIMEOUT, TempDir, run, skip};

#[track_caller]
fn report(finished: &Finished) -> String {
    assert_eq!((finished.code, finished.stderr.as_slice()), (Some(0), &[][..]), "{finished:?}");
    finished.stdout.join("\n")
}

#[test]
fn a_valid_file_is_summarized_on_standard_output_without_secrets() {
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
fn an_invalid_file_is_exit_code_1() {
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
fn the_file_in_the_working_directory_is_checked() {
    let directory = TempDir::new();
    directory.write("turnserver.toml", &text_config(&["127.0.0.1"], ""));
    let report = report(&turnserver(&directory, &["check-config"]));
    assert!(report.starts_with("turnserver.toml: no errors\n"), "{report}");
}

#[test]
fn without_a_file_the_defaults_are_reported() {
    if Path::new("/etc/turnserver/turnserver.toml").exists() {
        // The installed configuration of this machine would be found.
        return;
    }
    let report = report(&turnserver(&TempDir::new(), &["check-config"]));
    assert!(report.starts_with("no configuration file: using the defaults\n"), "{report}");
    assert!(report.contains("no secret and no user: a secret is created at each start"), "{report}");
}

// systemctl reload runs the check in the journal.
#[test]
fn each_warning_is_reported_once_with_and_without_the_journal() {
    let directory = TempDir::new();
    directory.write("turnserver.toml", &text_config(&["127.0.0.1"], "").replace(SECRET, "short"));
    let wanted = "warning: turnserver.toml:";
    let report = report(&turnserver(&directory, &["check-config"]));
    assert_eq!(report.matches("shorter than 16 bytes").count(), 1, "{report}");
    assert!(report.lines().any(|line| line.starts_with(wanted)) && report.contains("realm    "), "{report}");

    // Only standard output is the journal.
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(TIMEOUT)).unwrap();
    let journal = File::from(theirs.as_fd().try_clone_to_owned().unwrap()).metadata().unwrap();
    let mut command = command(&directory, &["check-config"]);
    command.env("JOURNAL_STREAM", format!("{}:{}", journal.dev(), journal.ino())).stdout(OwnedFd::from(theirs));
    let mut check = command.stderr(Stdio::null()).spawn().unwrap();
    drop(command);
    let mut report = String::new();
    ours.read_to_string(&mut report).unwrap();
    assert_eq!(check.wait().unwrap().code(), Some(0));
    let warnings: Vec<&str> = report.lines().filter(|line| line.contains("shorter than 16 bytes")).collect();
    assert!(matches!(warnings[..], [line] if line.starts_with(&format!("<4>{wanted}"))), "{report}");
    assert!(!report.contains("realm    "), "{report}");
}

#[test]
fn check_config_starts_nothing() {
    let directory = TempDir::new();
    let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = text_config(&["127.0.0.1"], "").replace("127.0.0.1:0", &other.local_addr().unwrap().to_string());
    directory.write("turnserver.toml", &taken);
    report(&turnserver(&directory, &["check-config"]));
}

// The command in docs/install.md restarts the service only if the check succeeds.
#[test]
fn root_gets_an_error_for_a_file_that_the_user_of_the_service_cannot_read() {
    let directory = TempDir::new();
    let path = directory.write("turnserver.toml", &text_config(&["127.0.0.1"], ""));
    let unit = format!("[Service]\nUser=nobody\nExecStart=/bin/turnserver --config {}\n", path.display());
    let unit = directory.write("turnserver.service", &unit);
    // The unit is installed only for the processes of this test.
    let script = "mount -t tmpfs tmpfs /run && if [ -d /etc/systemd ]; then mount -t tmpfs tmpfs /etc/systemd; fi && \
                  mkdir -p /run/systemd/system && cp \"$1\" /run/systemd/system/ && \
                  exec \"$2\" check-config --config \"$3\"";
    let check = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh"]).arg(&unit).arg(env!("CARGO_BIN_EXE_turnserver")).arg(&path);
        run(&mut command, None, TIMEOUT)
    };
    let possible = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "tmpfs", "/run"]).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        return skip("no privilege to mount a file system");
    }
    let finished = check();
    let line = failure(&finished);
    assert!(line.contains("the service will not start, because its user nobody (uid "), "{line}");
    for (path, mode) in [(directory.path(), 0o755), (path.as_path(), 0o644)] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }
    assert_eq!(check().code, Some(0));
}
