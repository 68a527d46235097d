//! What the integration tests share: the real binaries as processes, their logs, configuration and credentials.
//!
//! Nothing here sleeps. Every wait is for an event (a log line, the end of a process) and is bounded; one that runs
//! out panics with what the process had said until then.
#![allow(dead_code, unused_imports, reason = "each test binary compiles this module and uses its own part of it")]

pub(crate) mod certificates;
pub(crate) mod client;
mod config;
mod log;
mod process;
mod server;
pub(crate) mod tls;

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub(crate) use config::{REALM, SECRET, config, config_for, config_without_secret, with_tls};
pub(crate) use log::LogLine;
pub(crate) use process::{Finished, Process, run};
pub(crate) use server::{Credential, Ended, Server};

/// How long anything that should happen at once may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A directory of one test's own, removed when it is dropped.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        // A killed run may have left the directory of a process with the same id.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file that only its owner may read, as one that holds a secret should be, and says where it is.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        file.unwrap().write_all(text.as_bytes()).unwrap();
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Whether this machine can be reached at `::1`; a test that needs it has nothing to show elsewhere.
pub(crate) fn has_ipv6() -> bool {
    let has = std::net::UdpSocket::bind("[::1]:0").is_ok();
    if !has {
        println!("left out: this machine has no IPv6 on its loopback interface");
    }
    has
}
