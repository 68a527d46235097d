//! An operator who does everything that may go wrong during calls.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use turnserver::clock::Clock;

use crate::clients::VICTIM;
use crate::support::certificates::Authority;
use crate::support::{Controlled, TIMEOUT};
use crate::tally::Tally;

/// The time between two actions.
const PAUSE: Duration = Duration::from_secs(2);

pub(crate) struct Operator {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Operator {
    pub(crate) fn start(
        controlled: Arc<Controlled>,
        certificate: [PathBuf; 2],
        authority: Arc<Authority>,
        tally: Arc<Tally>,
    ) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&is_over);
        let thread = thread::spawn(move || {
            let mut serial = None;
            for step in 0_u64.. {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                thread::sleep(PAUSE);
                match step % 5 {
                    0 => {
                        let kicked = controlled.json(&["kick", "--user", VICTIM]);
                        tally.kicked.add(kicked["ended"].as_u64().expect("a number of sessions"));
                        tally.kicks.add(1);
                    }
                    1 => {
                        // A limit that no client reaches.
                        let limit = format!("[limits]\npermissions-per-allocation = {}\n", 200 + step % 50);
                        controlled.server.write_config(&controlled.config.replacen("[limits]\n", &limit, 1));
                        controlled.json(&["reload"]);
                        tally.reloads.add(1);
                    }
                    2 => {
                        // As ACME clients do: the key and the certificate one after the other.
                        let issued = authority.issue(&["localhost"]);
                        let fresh = authority.write(&issued, &directory(&certificate));
                        assert_eq!(fresh, certificate);
                        serial = Some(issued.serial);
                        tally.certificates.add(1);
                    }
                    3 => {
                        tally.drain_phase.add(1);
                        controlled.json(&["drain"]);
                        thread::sleep(PAUSE / 4);
                        controlled.json(&["resume"]);
                        tally.drain_phase.add(1);
                        tally.drains.add(1);
                    }
                    _ => {
                        controlled.json(&["sessions", "--top", "bytes", "--limit", "5"]);
                        if let Some(serial) = &serial
                            && !uses_certificate(&controlled, serial)
                        {
                            tally.problem(format!("the server does not use the certificate {serial}"));
                        }
                    }
                }
            }
        });
        Self { is_over, thread }
    }

    /// Ends it after its present action.
    pub(crate) fn stop(self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().expect("all commands of the operator succeed");
    }
}

/// Waits until the server uses the certificate with this serial number. Returns whether it does.
fn uses_certificate(controlled: &Controlled, serial: &str) -> bool {
    let clock = Clock::start();
    while clock.elapsed() < TIMEOUT {
        let present = controlled.json(&["certificates"]);
        let present = present["certificates"][0]["serial"].as_str().expect("a serial number").replace(':', "");
        if present.eq_ignore_ascii_case(serial) {
            return true;
        }
        thread::sleep(PAUSE / 10);
    }
    false
}

fn directory([certificate, _]: &[PathBuf; 2]) -> PathBuf {
    fs::canonicalize(certificate.parent().expect("a file in a directory")).expect("a directory")
}
