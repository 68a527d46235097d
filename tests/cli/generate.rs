//! Man pages and shell completions.

use std::process::Command;

use crate::support::{TIMEOUT, TempDir, run};

const PROGRAMS: [&str; 2] = [env!("CARGO_BIN_EXE_turnserver"), env!("CARGO_BIN_EXE_turn-credential")];

#[test]
fn man_pages_describe_each_command() {
    let directory = TempDir::new();
    let pages = directory.path().join("man");
    for program in PROGRAMS {
        let finished = run(Command::new(program).args(["generate", "man"]).arg(&pages), None, TIMEOUT);
        assert_eq!((finished.code, finished.stdout.len()), (Some(0), 0), "{finished:?}");
    }
    for (page, text) in [
        ("turnserver.1", "A STUN/TURN server for WebRTC"),
        ("turnserver-doctor.1", "\\-\\-ice\\-servers"),
        ("turnserver-ctl.1", "control socket"),
        ("turnserver-offload-attach.1", "\\-\\-running"),
        ("turnserver-ctl-drain.1", "Wait until the server has stopped"),
        ("turn-credential.1", "time\\-limited TURN credentials"),
        ("turn-credential-mint.1", "\\-\\-ttl"),
    ] {
        let source = std::fs::read_to_string(pages.join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(source.contains(".TH ") && source.contains(text), "{page}: {source}");
    }
}

#[test]
fn completions_of_each_shell_know_the_commands() {
    for (program, word) in PROGRAMS.into_iter().zip(["doctor", "mint"]) {
        for shell in ["bash", "zsh", "fish"] {
            let finished = run(Command::new(program).args(["generate", "completions", shell]), None, TIMEOUT);
            let script = finished.stdout.join("\n");
            assert!(finished.code == Some(0) && script.contains(word), "{shell}: {finished:?}");
        }
        let finished = run(Command::new(program).args(["generate", "completions", "bash"]), None, TIMEOUT);
        let directory = TempDir::new();
        let script = directory.write("completions", &finished.stdout.join("\n"));
        let checked = run(Command::new("bash").arg("-n").arg(script), None, TIMEOUT);
        assert_eq!((checked.code, checked.stderr.len()), (Some(0), 0), "{checked:?}");
    }
}
