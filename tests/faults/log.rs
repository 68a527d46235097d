//! A log that cannot be written.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use turnserver::clock::Clock;

use super::inventory::settings;
use crate::support::client::{Client, Login};
use crate::support::{LogLine, Process, TIMEOUT, TempDir, skip};

/// Runs a test with a file system of its own, of 256 KiB.
pub(super) fn with_small_disk(test: impl FnOnce(&Path) + Send) {
    let directory = TempDir::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNS) {
                return skip(&format!("no privilege to create a mount namespace ({error})"));
            }
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("tmpfs"), directory.path(), Some("tmpfs"), MsFlags::empty(), Some("size=256k")).unwrap();
            test(directory.path());
        });
    });
}

fn lines(log: &Path) -> Vec<LogLine> {
    let text = String::from_utf8(fs::read(log).unwrap()).unwrap();
    text.lines().map(LogLine::parse).collect()
}

fn wait_for(log: &Path, wanted: impl Fn(&LogLine) -> bool) -> LogLine {
    let clock = Clock::start();
    loop {
        if let Some(line) = lines(log).into_iter().find(|line| wanted(line)) {
            return line;
        }
        assert!(clock.elapsed() < TIMEOUT, "no such line in {:#?}", lines(log));
        thread::yield_now();
    }
}

// The disk is full for a while. A line is written as a whole or not at all, except the last one that still fits in part.
#[test]
fn a_full_disk_takes_lines_of_the_log_and_nothing_else_and_their_number_follows() {
    with_small_disk(|disk| {
        let (log, ballast) = (disk.join("log"), disk.join("ballast"));
        let files = TempDir::new();
        let config = files.write("turnserver.toml", &settings(&["127.0.0.1"]));
        let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
        // The file is opened as a service manager does that appends to it.
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let server = Process::start_with(command.arg("--config").arg(&config), Stdio::null(), file.into());
        wait_for(&log, |line| line.message() == "ready");
        let udp = wait_for(&log, |line| line.field("transport").as_deref() == Some("udp"));
        let address: SocketAddr = udp.field("address").unwrap().parse().unwrap();
        let churn = |name: &str, count: usize| {
            for number in 0..count {
                let client = Client::new(address);
                let (session, _) = client.allocate(&Login::mint(&format!("{name}-{number}"), 600)).unwrap();
                client.delete(&session);
            }
        };
        let is_loss = |line: &LogLine| line.field("event").as_deref() == Some("lines-lost");
        // The thread of the log may be late, and write nothing while the disk is full.
        for round in 0.. {
            assert!(round < 20, "no line is lost: {:#?}", lines(&log));
            // The last page of the log has room for a part of these lines. A rate limit would end them if all were of one
            // user.
            assert!(fs::write(&ballast, vec![0; 512 << 10]).is_err());
            churn(&format!("round-{round}"), 10);
            fs::remove_file(&ballast).unwrap();
            let after = format!("after-{round}");
            churn(&after, 1);
            wait_for(&log, |line| is_loss(line) || line.text().contains(&after));
            if lines(&log).iter().any(is_loss) {
                break;
            }
        }
        let lost = wait_for(&log, is_loss);
        assert!(lost.message().contains("standard error could not be written: No space left on device"), "{lost:?}");
        assert!(lost.field("count").unwrap().parse::<u32>().unwrap() > 0, "{lost:?}");
        // A line that was cut off does not spoil the next one.
        let torn: Vec<LogLine> = lines(&log).into_iter().filter(|line| line.message().is_empty()).collect();
        let glued = |line: &LogLine| line.text().matches("\"timestamp\"").count() > 1;
        assert!(!torn.iter().any(glued), "{torn:#?}");
        server.terminate();
        assert_eq!(server.finish(TIMEOUT).code, Some(0));
        wait_for(&log, |line| line.message() == "stopped");
    });
}
