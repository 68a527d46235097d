//! The clocks of the server jump: with libfaketime, and only those of the server.

use std::path::PathBuf;
use std::process::Command;

use super::call::Call;
use super::inventory::{Inventory, Metrics, USER, settings, wait_for_allocations};
use crate::support::client::{Client, Login};
use crate::support::{Controlled, TempDir, skip};

const HOUR: i64 = 3_600;

/// More than the lifetime of a nonce, an hour.
const JUMP: i64 = HOUR + 60;

/// The clocks that jump.
#[derive(Clone, Copy)]
pub(super) enum Jumping {
    /// Only the time of day.
    Wall,
    /// The monotonic clock, too: what a process sees that did not run for a while.
    Both,
}

/// A server whose clocks a file shifts.
pub(super) struct Shifted {
    pub(super) controlled: Controlled,
    file: PathBuf,
    _directory: TempDir,
}

impl Shifted {
    /// Starts a server. `None` without libfaketime; the test is [skipped](skip) then.
    pub(super) fn start(jumping: Jumping, config: &str) -> Option<Self> {
        // The program knows where its library is.
        let shown = Command::new("faketime").args(["-m", "-f", "+0", "printenv", "LD_PRELOAD"]).output();
        let Some(library) = shown.ok().and_then(|shown| String::from_utf8(shown.stdout).ok()) else {
            skip("the program faketime is missing");
            return None;
        };
        let directory = TempDir::new();
        let file = directory.write("shift", "+0\n");
        let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
        command.env("LD_PRELOAD", library.trim()).env("FAKETIME_TIMESTAMP_FILE", &file).env("FAKETIME_NO_CACHE", "1");
        if let Jumping::Wall = jumping {
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        Some(Self { controlled: Controlled::start_by(&mut command, config), file, _directory: directory })
    }

    /// Shifts the clocks, counted from the real time.
    pub(super) fn shift(&self, seconds: i64) {
        // Replaced as a whole, because the server reads it at any time.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{seconds:+}\n")).unwrap();
        std::fs::rename(new, &self.file).unwrap();
    }
}

fn allocate(controlled: &Controlled, after: i64) -> Result<(), u16> {
    let client = Client::new(controlled.server.udp_address());
    client.allocate(&Login::mint(USER, after)).map(|(session, _)| client.delete(&session))
}

#[test]
fn allocations_outlive_a_clock_that_jumps_an_hour_and_back_and_credentials_follow_it() {
    let Some(shifted) = Shifted::start(Jumping::Wall, &settings(&["127.0.0.1"])) else { return };
    let controlled = &shifted.controlled;
    let inventory = Inventory::of(controlled);
    let calls: Vec<Call> = (0..3).map(|_| Call::start(&controlled.server)).collect();
    // The number of responses about a nonce that is too old or too new.
    let stale = || Metrics::of(controlled).sum("turnserver_rejected_requests_total{code=\"438\"}");
    for shift in [JUMP, 0, -JUMP, 0] {
        let before = stale();
        shifted.shift(shift);
        for call in &calls {
            call.exchange();
            call.refresh();
        }
        assert_eq!(stale(), before + 3, "one for each call, {shift}");
        // The clock of the server decides when a credential expires, at once.
        let expires = allocate(controlled, HOUR / 2);
        assert_eq!(expires, if shift == JUMP { Err(401) } else { Ok(()) }, "{shift}");
        assert_eq!(allocate(controlled, 2 * HOUR), Ok(()), "{shift}");
        let expired = allocate(controlled, -HOUR / 2);
        assert_eq!(expired, if shift == -JUMP { Ok(()) } else { Err(401) }, "{shift}");
    }
    let failed = controlled.event("authentication-failed");
    assert!(failed.field("reason").is_some_and(|reason| reason.contains("expired")), "{failed:?}");
    wait_for_allocations(controlled, 3);
    assert!(Metrics::of(controlled).sum("turnserver_failed_authentications_total{reason=\"expired\"}") > 0);
    assert_eq!(controlled.events("worker-stalled"), 0);
    calls.into_iter().for_each(Call::end);
    inventory.assert_kept(controlled);
}
