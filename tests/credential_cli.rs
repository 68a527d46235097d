//! Tests of `turn-credential` as a process: exit codes, output, and sources of secrets.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests and their helpers fail by panicking")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use turnserver::auth::{KeyHash, Secret, time_limited};
use turnserver::clock::unix_seconds;

const SECRET: &str = "north-star-north-star";
const CONFIG: &str = "hostname = \"turn.example.org\"\n[auth]\nsecrets = [\"north-star-north-star\", \"old-star-old-star-old\"]\n\
                      [[auth.users]]\nname = \"bob\"\npassword = \"builder-of-things\"\n";

/// The URLs for [`CONFIG`].
const URLS: [&str; 2] = ["turn:turn.example.org:3478?transport=udp", "turn:turn.example.org:3478?transport=tcp"];

/// The working directory of the command, one per test.
struct Workdir(PathBuf);

impl Workdir {
    fn new(test: &str) -> Self {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("credential_cli").join(test);
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    fn with_config(test: &str) -> Self {
        Self::new(test).with("turnserver.toml", CONFIG)
    }

    fn with(self, file: &str, text: &str) -> Self {
        fs::write(self.0.join(file), text).unwrap();
        self
    }

    fn run(&self, arguments: &[&str]) -> Completed {
        self.run_with(arguments, &[], "")
    }

    fn run_with(&self, arguments: &[&str], environment: &[(&str, &str)], stdin: &str) -> Completed {
        let mut child = Command::new(env!("CARGO_BIN_EXE_turn-credential"))
            .args(arguments)
            .current_dir(&self.0)
            .env_clear()
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that rejects its arguments does not read its input.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        Completed::from(child.wait_with_output().unwrap())
    }
}

#[derive(Debug)]
struct Completed {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Completed {
    fn from(output: Output) -> Self {
        let Output { status, stdout, stderr } = output;
        Self {
            code: status.code(),
            stdout: String::from_utf8(stdout).unwrap(),
            stderr: String::from_utf8(stderr).unwrap(),
        }
    }
}

impl Completed {
    #[track_caller]
    fn succeeded(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{}", self.stdout);
        self.stdout
    }

    #[track_caller]
    fn json(self) -> Value {
        let stdout = self.succeeded();
        assert_eq!(stdout.lines().count(), 1, "{stdout}");
        serde_json::from_str(&stdout).unwrap()
    }

    /// Asserts the exit code, an empty standard output, and that standard error starts with the command's name and
    /// contains all of `parts`.
    #[track_caller]
    fn failed(self, code: i32, parts: &[&str]) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(code), ""), "{}", self.stderr);
        assert!(self.stderr.starts_with("turn-credential: "), "{}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in: {}", self.stderr);
        }
    }

    /// Asserts that the argument parser rejected the command with a message that contains `part`.
    #[track_caller]
    fn rejected(self, part: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(2), ""), "{}", self.stderr);
        assert!(self.stderr.contains(part), "{part:?} is not in: {}", self.stderr);
    }
}

/// Returns the credential that an application with `secret` mints.
fn credential(secret: &str, user: Option<&str>, expires: u64) -> time_limited::Credential {
    time_limited::mint(&Secret::new(secret).unwrap(), user, expires)
}

fn string<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_else(|| panic!("no string {key} in {value}"))
}

// mint: formats

#[test]
fn json_has_a_credential_made_with_the_first_secret() {
    let before = unix_seconds();
    let minted = Workdir::with_config("json").run(&["mint", "--user", "alice", "--format", "json"]).json();
    let after = unix_seconds();

    let expires = minted["expires"].as_u64().unwrap();
    assert!((before + 43_200..=after + 43_200).contains(&expires), "12 h by default: {minted}");
    let expected = credential(SECRET, Some("alice"), expires);
    assert_eq!(string(&minted, "username"), expected.username);
    assert_eq!(string(&minted, "password"), expected.password.as_str());
    assert_eq!(minted["urls"], serde_json::json!(URLS));
    let expires_at = string(&minted, "expires_at");
    assert!(expires_at.starts_with("20") && expires_at.ends_with('Z') && expires_at.len() == 20, "{expires_at}");
}

#[test]
fn text_is_the_default_and_has_all_values() {
    let text = Workdir::with_config("text").run(&["mint", "--user", "alice", "--ttl", "90m"]).succeeded();
    let lines: Vec<(&str, &str)> = text.lines().map(|line| line.split_once(' ').unwrap()).collect();
    let names: Vec<&str> = lines.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["username", "password", "expires", "url", "url"]);
    let value = |index: usize| lines[index].1.trim();
    let expires: u64 = value(0).strip_suffix(":alice").unwrap().parse().unwrap();
    assert_eq!(value(1), credential(SECRET, Some("alice"), expires).password.as_str());
    assert!(value(2).ends_with("Z (in 1 h 30 min)"), "{text}");
    assert_eq!([value(3), value(4)], URLS);
}

// W3C WebRTC §4.2.1 and §4.2.4: RTCConfiguration, RTCIceServer
#[test]
fn ice_servers_is_the_argument_of_a_peer_connection() {
    let minted = Workdir::with_config("ice").run(&["mint", "--format", "ice-servers"]).json();
    assert_eq!(minted.as_object().unwrap().keys().collect::<Vec<_>>(), ["iceServers"]);
    let [server] = minted["iceServers"].as_array().unwrap().as_slice() else { panic!("{minted}") };
    assert_eq!(server.as_object().unwrap().len(), 3, "{minted}");
    assert_eq!(server["urls"], serde_json::json!(URLS));
    let expires: u64 = string(server, "username").parse().expect("without --user, the username is the expiry");
    assert_eq!(string(server, "credential"), credential(SECRET, None, expires).password.as_str());
}

#[test]
fn env_output_survives_eval_in_a_shell() {
    let directory = Workdir::with_config("env");
    let user = "o'brien $(touch pwned) `touch pwned` \"x\" \\ ; # : ü";
    let lines = directory.run(&["mint", "--user", user, "--format", "env"]).succeeded();
    let script = "set -eu; eval \"$LINES_OF_ENV\"; printf '%s\\n' \
                  \"$TURN_USERNAME\" \"$TURN_PASSWORD\" \"$TURN_EXPIRES\" \"$TURN_URLS\"";
    let shell = Command::new("/bin/sh")
        .args(["-c", script])
        .env("LINES_OF_ENV", lines)
        .current_dir(&directory.0)
        .output()
        .unwrap();
    let printed = Completed::from(shell).succeeded();
    let [username, password, expires, urls] = printed.lines().collect::<Vec<_>>()[..] else { panic!("{printed}") };
    let expected = credential(SECRET, Some(user), expires.parse().unwrap());
    assert_eq!((username, password), (expected.username.as_str(), expected.password.as_str()));
    assert_eq!(urls, URLS.join(" "));
    assert!(!directory.0.join("pwned").exists());
}

#[test]
fn a_minted_credential_is_accepted_by_verify() {
    let directory = Workdir::with_config("roundtrip");
    let minted = directory.run(&["mint", "--user", "a:b", "--ttl", "30m", "--format", "json"]).json();
    let (username, password) = (string(&minted, "username"), string(&minted, "password"));
    for ending in ["", "\n", "\r\n"] {
        let output = directory.run_with(&["verify", username], &[], &format!("{password}{ending}")).succeeded();
        assert!(output.starts_with("valid: user a:b, "), "{output}");
        assert!(output.contains(" left (until 20") && output.contains("made with secret 1 of 2"), "{output}");
    }
    let output =
        directory.run_with(&["verify", username, "--password-env", "PASS"], &[("PASS", password)], "").succeeded();
    assert!(output.starts_with("valid: "), "{output}");
    let output = directory.run_with(&["verify", username, "--password-stdin"], &[], password).succeeded();
    assert!(output.starts_with("valid: "), "{output}");
}

// mint: sources of the secret

#[test]
fn each_source_of_a_secret_makes_the_same_credential() {
    let directory = Workdir::new("sources")
        .with("other.toml", CONFIG)
        .with("secrets", &format!("# the newest first\n\n  {SECRET}\r\nold-star-old-star-old\n"))
        .with("one-line", &format!("{SECRET}\n"))
        .with("referring.toml", "[auth]\nsecrets-file = \"secrets\"\n");
    let stdin = format!("{SECRET}\n");
    type Source<'s> = (&'s [&'s str], &'s [(&'s str, &'s str)], &'s str);
    let sources: [Source<'_>; 6] = [
        (&["--config", "other.toml"], &[], ""),
        (&["--config", "referring.toml"], &[], ""),
        (&["--secret-file", "secrets"], &[], ""),
        (&["--secret-file", "one-line"], &[], ""),
        (&["--secret-stdin"], &[], &stdin),
        (&["--secret-env", "TURN_SECRET"], &[("TURN_SECRET", SECRET)], ""),
    ];
    for (arguments, environment, stdin) in sources {
        let arguments = [&["mint", "--format", "json"], arguments].concat();
        let minted = directory.run_with(&arguments, environment, stdin).json();
        let expected = credential(SECRET, None, minted["expires"].as_u64().unwrap());
        assert_eq!(string(&minted, "password"), expected.password.as_str(), "{arguments:?}");
    }
}

#[test]
fn urls_come_from_the_configuration_if_the_secret_does_not() {
    let directory = Workdir::with_config("mixed").with("secret", "another-star-another-star");
    let minted =
        directory.run(&["mint", "--config", "turnserver.toml", "--secret-file", "secret", "--format", "json"]).json();
    let expected = credential("another-star-another-star", None, minted["expires"].as_u64().unwrap());
    assert_eq!(string(&minted, "password"), expected.password.as_str());
    assert_eq!(minted["urls"], serde_json::json!(URLS));
}

#[test]
fn unknown_urls_are_omitted() {
    let directory = Workdir::new("no_urls");
    let environment = [("S", SECRET)];
    let mint = |format| directory.run_with(&["mint", "--secret-env", "S", "--format", format], &environment, "");
    assert!(mint("json").json().get("urls").is_none());
    assert!(!mint("text").succeeded().contains("turn:"));
    assert!(!mint("env").succeeded().contains("TURN_URLS"));
    mint("ice-servers").failed(1, &["set `hostname`", "--host HOST"]);
}

#[test]
fn the_host_option_completes_the_urls() {
    let directory = Workdir::new("host");
    for (host, expected) in [
        ("turn.example.net", "turn:turn.example.net:3478"),
        ("192.0.2.7", "turn:192.0.2.7:3478"),
        ("2001:db8::7", "turn:[2001:db8::7]:3478"),
        ("[2001:db8::7]", "turn:[2001:db8::7]:3478"),
    ] {
        let arguments = ["mint", "--secret-env", "S", "--format", "ice-servers", "--host", host];
        let minted = directory.run_with(&arguments, &[("S", SECRET)], "").json();
        assert_eq!(
            minted["iceServers"][0]["urls"],
            serde_json::json!(["udp", "tcp"].map(|transport| format!("{expected}?transport={transport}")))
        );
    }
    for host in ["turn:turn.example.org", "turn.example.org:3478", "a b", "", "https://turn.example.org/"] {
        let arguments = ["mint", "--secret-env", "S", "--host", host];
        directory.run_with(&arguments, &[("S", SECRET)], "").rejected("without scheme and port");
    }
}

#[test]
fn a_missing_or_empty_secret_is_reported_with_its_source() {
    let directory = Workdir::new("missing")
        .with("turnserver.toml", "realm = \"example.org\"\n")
        .with("empty", "")
        .with("comments", "# nothing\n\n");
    directory.run(&["mint"]).failed(1, &["turnserver.toml", "`auth.secrets`", "--secret-file"]);
    directory.run(&["mint", "--secret-file", "empty"]).failed(1, &["empty contains no secret"]);
    directory.run(&["mint", "--secret-file", "comments"]).failed(1, &["comments contains no secret"]);
    directory.run(&["mint", "--secret-file", "absent"]).failed(1, &["absent", "No such file"]);
    directory.run(&["mint", "--secret-file", "."]).failed(1, &["cannot read .:", "directory"]);
    directory.run(&["mint", "--secret-file", "/dev/null"]).failed(1, &["cannot read /dev/null: it is a device"]);
    directory.run_with(&["mint", "--secret-stdin"], &[], "\n").failed(1, &["standard input contains no secret"]);
    directory.run(&["mint", "--secret-env", "ABSENT"]).failed(1, &["ABSENT is not set"]);
    directory.run_with(&["mint", "--secret-env", "S"], &[("S", "")], "").failed(1, &["S contains no secret"]);
    directory.run(&["mint", "--config", "absent.toml"]).failed(1, &["absent.toml"]);
}

#[test]
fn an_invalid_configuration_is_reported_with_its_line() {
    let directory = Workdir::new("invalid").with("turnserver.toml", "\nrealmm = \"example.org\"\n");
    directory.run(&["mint"]).failed(1, &["turnserver.toml:2:"]);
}

#[test]
fn two_secret_sources_are_an_error() {
    let directory = Workdir::with_config("two").with("secret", SECRET);
    for two in [["--secret-stdin", "--secret-env=S"], ["--secret-file=secret", "--secret-stdin"]] {
        directory.run(&[&["mint"], &two[..]].concat()).rejected("cannot be used with");
    }
}

#[test]
fn a_secret_or_a_password_as_an_argument_is_rejected_and_not_printed() {
    let directory = Workdir::with_config("argv");
    let attempts: [&[&str]; 6] = [
        &["mint", "--secret", SECRET],
        &["mint", "--secret=north-star-north-star"],
        &["verify", "1700000000:alice", "--secret", SECRET],
        &["mint", "--secret"],
        &["verify", "1700000000:alice", "--password", SECRET],
        &["verify", "1700000000:alice", SECRET],
    ];
    for attempt in attempts {
        let completed = directory.run(attempt);
        assert!(!completed.stderr.contains("north-star"), "{attempt:?}: {}", completed.stderr);
        let alternative =
            if attempt[0] == "mint" || attempt.contains(&"--secret") { "--secret-file" } else { "--password-env" };
        completed.failed(2, &["command line", alternative]);
    }
}

#[test]
fn a_secret_given_as_a_variable_name_is_not_printed() {
    let completed = Workdir::new("value_as_name").run(&["mint", "--secret-env", SECRET]);
    assert!(!completed.stderr.contains("north-star"), "{}", completed.stderr);
    completed.failed(1, &["--secret-env", "the name of a variable, not the value"]);
}

// mint: options

#[test]
fn a_ttl_is_a_number_of_seconds_or_has_a_unit() {
    let directory = Workdir::with_config("ttl");
    for (ttl, seconds) in [("86400", 86_400), ("45s", 45), ("30m", 1_800), ("12h", 43_200), ("7d", 604_800)] {
        let before = unix_seconds();
        let minted = directory.run(&["mint", "--ttl", ttl, "--format", "json"]).json();
        let expires = minted["expires"].as_u64().unwrap();
        assert!((before + seconds..=unix_seconds() + seconds).contains(&expires), "{ttl}: {minted}");
    }
    for ttl in ["0", "0s", "-5", "12x", "h", "", "1.5h", "3651d", "99999999999999999999", "99999999999999999d"] {
        directory.run(&["mint", &format!("--ttl={ttl}")]).rejected("--ttl");
    }
}

// RFC 8489 §14.3: fewer than 509 bytes of text without control characters
#[test]
fn a_user_that_no_client_can_send_is_rejected() {
    let directory = Workdir::with_config("user");
    directory.run(&["mint", "--user", "a\nb"]).rejected("control character");
    directory.run(&["mint", "--user", "a\u{7f}b"]).rejected("control character");
    directory.run(&["mint", "--user", ""]).rejected("empty");
    let longest = "x".repeat(508 - "1700000000:".len());
    directory.run(&["mint", "--user", &longest]).succeeded();
    directory.run(&["mint", "--user", &format!("{longest}x")]).failed(2, &["509 bytes", "maximum is 508"]);
}

// verify: reasons of failure

#[test]
fn an_expired_credential_is_reported_with_its_age() {
    let directory = Workdir::with_config("expired");
    let old = credential("old-star-old-star-old", Some("alice"), unix_seconds() - 3 * 3_600);
    directory
        .run_with(&["verify", &old.username], &[], &old.password)
        .failed(1, &["not valid: expired 3 h ago (at 20"]);
}

#[test]
fn a_wrong_secret_is_reported_with_the_number_tried() {
    let directory = Workdir::with_config("wrong");
    let foreign = credential("foreign", Some("alice"), unix_seconds() + 600);
    directory
        .run_with(&["verify", &foreign.username], &[], &foreign.password)
        .failed(1, &["not valid: wrong secret", "none of the 2"]);
    let environment = [("S", "a-third-star"), ("PASS", foreign.password.as_str())];
    let arguments = ["verify", &foreign.username, "--secret-env", "S", "--password-env", "PASS"];
    directory.run_with(&arguments, &environment, "").failed(1, &["the password does not match the secret"]);
    let both = credential("foreign", Some("alice"), unix_seconds() - 7_200);
    directory
        .run_with(&["verify", &both.username], &[], &both.password)
        .failed(1, &["wrong secret", "expired 2 h ago"]);
}

#[test]
fn a_credential_with_the_name_before_the_expiry_is_verified() {
    let directory = Workdir::with_config("name-first");
    let username = format!("alice:{}", unix_seconds() + 3_600);
    let password = time_limited::password(&Secret::new(SECRET).unwrap(), &username);
    let output = directory.run_with(&["verify", &username], &[], &password).succeeded();
    assert!(output.starts_with("valid: user alice, "), "{output}");
    let wrong = directory.run_with(&["verify", "alice:1700000000"], &[], &password);
    wrong.failed(1, &["wrong secret", "read as <name>:<unix expiry>"]);
}

#[test]
fn a_malformed_credential_is_reported_with_the_reason() {
    let directory = Workdir::with_config("malformed");
    let password = "rchw+7XvnG7mN0BXm8xDnHNSHX0=";
    let verify = |username, password| directory.run_with(&["verify", username], &[], password);
    verify("alice", password).failed(1, &["malformed", "<unix expiry>:<name>", "static user"]);
    verify("alice:1700000000000", password).failed(1, &["malformed", "milliseconds"]);
    verify("1700000000000:alice", password).failed(1, &["malformed", "milliseconds"]);
    verify("1700000000:alice", "hunter2").failed(1, &["malformed", "base64"]);
    verify("1700000000:alice", "").failed(1, &["malformed", "0 bytes"]);
}

#[test]
fn without_a_secret_no_credential_is_valid() {
    let directory = Workdir::new("verify_no_secret").with("turnserver.toml", "realm = \"example.org\"\n");
    let minted = credential(SECRET, None, unix_seconds() + 600);
    directory
        .run_with(&["verify", &minted.username], &[], &minted.password)
        .failed(1, &["not valid", "no secret", "turnserver.toml"]);
}

#[test]
fn static_users_of_the_configuration_are_verified() {
    let directory = Workdir::with_config("static");
    let output = directory.run_with(&["verify", "bob"], &[], "builder-of-things\n").succeeded();
    assert!(output.starts_with("valid: ") && output.contains("static user bob"), "{output}");
    directory
        .run_with(&["verify", "bob"], &[], "breaker")
        .failed(1, &["not valid", "password is wrong", "static user"]);
    directory.run_with(&["verify", "bob"], &[], "\n").failed(1, &["not valid", "password is empty"]);
    // Of a user with a key, the password is not known: RFC 8489 §9.2.2 has this one.
    let user = "realm = \"realm\"\n[[auth.users]]\nname = \"user\"\nkey = \"8493fbc53ba582fb4c044c456bdc40eb\"\n";
    let directory = Workdir::new("static_key").with("turnserver.toml", user);
    let output = directory.run_with(&["verify", "user"], &[], "pass\n").succeeded();
    assert!(output.starts_with("valid: ") && output.contains("static user user"), "{output}");
    directory.run_with(&["verify", "user"], &[], "word").failed(1, &["password is wrong", "another realm"]);
}

#[test]
fn standard_input_cannot_be_both_secret_and_password() {
    let directory = Workdir::with_config("both_stdin");
    directory
        .run_with(&["verify", "1700000000", "--secret-stdin"], &[], SECRET)
        .failed(2, &["standard input", "--password-env"]);
    let good = credential(SECRET, None, unix_seconds() + 600);
    let arguments = ["verify", &good.username, "--secret-stdin", "--password-env", "PASS"];
    let output = directory.run_with(&arguments, &[("PASS", &good.password)], SECRET).succeeded();
    assert!(output.contains("made with secret 1 of 1"), "{output}");
}

// The process

#[test]
fn invalid_arguments_are_exit_code_2_and_help_is_0() {
    let directory = Workdir::new("usage");
    directory.run(&["verify"]).rejected("USERNAME");
    directory.run(&["mint", "--format", "xml"]).rejected("ice-servers");
    directory.run(&["make"]).rejected("make");
    assert_eq!(directory.run(&[]).code, Some(2));
    assert!(directory.run(&["--version"]).succeeded().starts_with("turn-credential "));
    let help = directory.run(&["mint", "--help"]).succeeded();
    for option in
        ["--config", "--secret-file", "--secret-stdin", "--secret-env", "--user", "--ttl", "--host", "--format"]
    {
        assert!(help.contains(option), "{option} is not in: {help}");
    }
    for arguments in [
        &["--help"][..],
        &["mint", "--help"],
        &["mint", "-h"],
        &["verify", "--help"],
        &["verify", "-h"],
        &["key", "--help"],
    ] {
        // A terminal wraps longer lines in the middle of words.
        for line in directory.run(arguments).succeeded().lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
    assert!(!directory.run(&["verify", "--help"]).succeeded().contains("misplaced"));
}

#[test]
fn a_closed_pipe_is_not_a_panic_and_a_full_disk_is_an_error() {
    let directory = Workdir::with_config("output");
    let mint = |stdout: Stdio| {
        let output = Command::new(env!("CARGO_BIN_EXE_turn-credential"))
            .arg("mint")
            .current_dir(&directory.0)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        Completed::from(output)
    };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let closed = mint(writer.into());
    assert_eq!((closed.code, closed.stderr.as_str()), (Some(1), ""));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    mint(full.into()).failed(1, &["cannot write to standard output"]);
}

#[test]
fn each_key_is_new_and_its_block_has_its_hash_and_name() {
    let directory = Workdir::new("key");
    let make = |arguments: &[&str]| {
        let output = directory.run(&[&["key"], arguments].concat()).succeeded();
        let (key, block) = output.split_once("\n\n").unwrap();
        let key = key.lines().last().unwrap().to_owned();
        let table: toml::Table = block.parse().unwrap();
        let entry = table["http"]["keys"][0].clone();
        assert_eq!(entry["sha256"].as_str(), Some(KeyHash::of(key.as_bytes()).to_hex().as_str()));
        (key, entry["name"].as_str().unwrap().to_owned())
    };
    let ((one, name), (other, default)) = (make(&["--name", "shop.2"]), make(&[]));
    assert_eq!((name.as_str(), default.as_str()), ("shop.2", "app"));
    assert_ne!(one, other);
    for wrong in ["", "a b", "a/b"] {
        let rejected = directory.run(&["key", "--name", wrong]);
        assert!(rejected.code == Some(2) && rejected.stderr.contains("letters, digits, dots"), "{rejected:?}");
    }
}
