//! Starts that fail: exit codes and the line with the reason.

use std::fs::{self, Permissions};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Stdio;

use super::running::{Running, command, failure, full_stream, text_config, turnserver};
use crate::support::client::{Client, Login};
use crate::support::{Process, Server, TIMEOUT, TempDir, config};

/// Returns a configuration that listens on `address` over one transport, and on any port over the other.
fn listening_on(transport: &str, address: &str) -> String {
    let config = text_config(&["127.0.0.1"], "");
    let (before, after) = config.split_once(&format!("{transport} = ")).unwrap();
    let (_, after) = after.split_once('\n').unwrap();
    format!("{before}{transport} = [{address:?}]\n{after}")
}

#[track_caller]
fn assert_fails_with(config: &str, parts: &[&str]) {
    let directory = TempDir::new();
    directory.write("turnserver.toml", config);
    let finished = turnserver(&directory, &[]);
    let line = failure(&finished);
    for part in parts {
        assert!(line.contains(part), "{part} is not in: {line}");
    }
}

#[track_caller]
fn assert_in_use(transport: &str, address: SocketAddr) {
    let begin = format!("cannot listen on {transport} {address}: another program uses the port");
    let flag = if transport == "udp" { 'u' } else { 't' };
    let hint = format!("ss -{flag}lpn sport = :{}", address.port());
    assert_fails_with(
        &listening_on(transport, &address.to_string()),
        &[&begin, &hint, &format!("set another port in listen.{transport}")],
    );
}

#[test]
fn a_port_in_use_by_another_program_is_one_line_with_port_and_remedy() {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_in_use("udp", udp.local_addr().unwrap());
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_in_use("tcp", tcp.local_addr().unwrap());
}

#[test]
fn a_port_in_use_by_another_turnserver_is_one_line_with_port_and_remedy() {
    let other = Running::start(&text_config(&["127.0.0.1"], ""), &[]);
    assert_in_use("udp", other.address());
    assert_in_use("tcp", other.listening("tcp")[0]);
    assert_eq!(other.terminate().code, Some(0));
}

#[test]
fn a_missing_or_unreadable_configuration_file_is_one_line_with_its_path() {
    let directory = TempDir::new();
    fs::create_dir(directory.path().join("directory.toml")).unwrap();
    fs::write(directory.path().join("binary.toml"), b"realm = \"\xff\"\n").unwrap();
    for file in ["missing.toml", "directory.toml", "binary.toml"] {
        for arguments in [&["--config", file][..], &["check-config", "--config", file]] {
            let finished = turnserver(&directory, arguments);
            let line = failure(&finished);
            assert!(line.starts_with(file), "{line}");
            assert_eq!(finished.stderr.len(), 1, "{finished:?}");
        }
    }
}

#[test]
fn a_default_configuration_file_that_cannot_be_read_is_an_error() {
    let directory = TempDir::new();
    let path = directory.path().join("turnserver.toml");
    let assert_fails_with = |reason: &str| {
        for arguments in [&[][..], &["check-config"]] {
            let line = failure(&turnserver(&directory, arguments)).to_owned();
            assert!(line.starts_with("turnserver.toml: cannot be read: ") && line.contains(reason), "{line}");
        }
    };
    symlink("nowhere", &path).unwrap();
    assert_fails_with("it is a symbolic link to `nowhere`, which does not exist");
    fs::remove_file(&path).unwrap();
    symlink("turnserver.toml", &path).unwrap();
    assert_fails_with("symbolic link");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_fails_with("it is a directory");
    fs::remove_dir(&path).unwrap();
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
    // root may read it.
    if fs::read(&path).is_err() {
        assert_fails_with("permission denied");
    }
}

#[test]
fn three_configuration_errors_are_three_lines_with_position_and_suggestion() {
    let directory = TempDir::new();
    directory.write("wrong.toml", "relam = \"r\"\n[relay]\nports = \"65535-49152\"\n[log]\nlevel = \"inof\"\n");
    for arguments in [&["--config", "wrong.toml"][..], &["check-config", "--config", "wrong.toml"]] {
        let finished = turnserver(&directory, arguments);
        assert_eq!((finished.code, finished.stdout.as_slice()), (Some(1), &[][..]));
        let [relam, ports, level] = finished.stderr.as_slice() else { panic!("{finished:?}") };
        for (line, place, suggestion) in [
            (relam, "1:1", "did you mean `realm`?"),
            (ports, "3:9", "did you mean `49152-65535`?"),
            (level, "5:9", "did you mean `info`?"),
        ] {
            assert!(line.starts_with(&format!("turnserver: wrong.toml:{place}: ")), "{line}");
            assert!(line.ends_with(suggestion), "{line}");
        }
    }
}

#[test]
fn invalid_arguments_are_exit_code_2() {
    let directory = TempDir::new();
    for (arguments, part) in [
        (&["--frobnicate"][..], "--frobnicate"),
        (&["frobnicate"], "frobnicate"),
        (&["--config"], "--config"),
        (&["--log-level", "loud"], "error, warn, info, debug, trace"),
        (&["check-config", "--frobnicate"], "--frobnicate"),
    ] {
        let finished = turnserver(&directory, arguments);
        assert_eq!((finished.code, finished.stdout.as_slice()), (Some(2), &[][..]), "{finished:?}");
        assert!(finished.stderr.join("\n").contains(part), "{finished:?}");
    }
}

// A program may read only the standard output of the server, or stop reading.
#[test]
fn a_start_that_fails_ends_with_its_exit_code_while_standard_error_is_stalled() {
    let used = UdpSocket::bind("127.0.0.1:0").unwrap();
    let in_use = listening_on("udp", &used.local_addr().unwrap().to_string());
    for (config, arguments, code) in [
        ("realmm = 1\n", &[][..], 1),
        ("realmm = 1\n", &["check-config"], 1),
        (in_use.as_str(), &["--log-level", "trace"], 1),
        (in_use.as_str(), &["--frobnicate"], 2),
    ] {
        let directory = TempDir::new();
        directory.write("turnserver.toml", config);
        let (_unread, stderr) = full_stream();
        let server = Process::start_with(&mut command(&directory, arguments), Stdio::piped(), stderr.into());
        assert_eq!(server.finish(TIMEOUT).code, Some(code), "{config} {arguments:?}");
    }
}

// An allocator that reserves space for each thread would let a larger limit fail where a smaller one suffices.
#[test]
fn a_limited_address_space_is_sufficient_or_one_line_names_the_limit() {
    let config = format!("workers = 2\n{}", config(&["127.0.0.1"], ""));
    let mut started = Vec::new();
    // With 20 MB, little more than the program itself has room.
    for megabytes in [30, 40, 60, 80, 100, 120, 150, 180, 200, 250, 300] {
        match Server::try_start_with_address_space(&config, megabytes * 1_000) {
            Ok(server) => {
                let login = Login::mint("alice", 600);
                assert!(Client::new(server.udp_address()).allocate(&login).is_ok());
                assert!(Client::connect(server.tcp_address()).allocate(&login).is_ok());
                assert_eq!(server.terminate().code, Some(0));
                started.push(true);
            }
            Err(output) => {
                assert_eq!(output.matches("turnserver: ").count(), 1, "{megabytes} MB: {output}");
                assert!(output.contains("LimitAS, `ulimit -v`"), "{megabytes} MB: {output}");
                assert!(!output.contains("memory allocation of"), "{megabytes} MB: {output}");
                started.push(false);
            }
        }
    }
    // Each limit above a sufficient one is sufficient, too.
    assert!(started.is_sorted(), "{started:?}");
    assert_eq!((started.first(), started.last()), (Some(&false), Some(&true)));
}
