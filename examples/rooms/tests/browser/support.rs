//! What these tests share with those of the relay.
#![allow(dead_code, unused_imports, reason = "these tests use a part of it")]

#[path = "../../../../tests/support/certificates.rs"]
pub(crate) mod certificates;
#[path = "../../../../tests/support/config.rs"]
mod config;
#[path = "../../../../tests/support/network.rs"]
pub(crate) mod network;
#[path = "../../../../tests/support/process.rs"]
mod process;
#[path = "../../../../tests/support/skip.rs"]
mod skip;
#[path = "../../../../tests/support/temp_dir.rs"]
mod temp_dir;

use std::time::Duration;

pub(crate) use config::{REALM, SECRET};
pub(crate) use process::{Finished, Process, run};
pub(crate) use skip::skip;
pub(crate) use temp_dir::TempDir;

/// Timeout of every wait. It is long because the machine may be busy.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);
