//! `POST /v1/reload`, the configuration in use, and how it was last read.

use hyper::Request;
use hyper::body::Bytes;

use super::body::Fields;
use super::refusal::Refusal;

/// The result of reading the configuration, at the start or by a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::control) struct Reload {
    /// Counts the configurations that were in use, from 1.
    pub(in crate::control) generation: u64,
    /// When the configuration was last read, in seconds since the Unix epoch.
    pub(in crate::control) time: u64,
    /// Whether it is in use.
    pub(in crate::control) succeeded: bool,
}

impl Reload {
    /// Returns the state of a server that starts, at a time in seconds since the Unix epoch.
    pub(in crate::control) fn at_start(time: u64) -> Self {
        Self { generation: 1, time, succeeded: true }
    }

    /// Records a reload.
    pub(in crate::control) fn record(&mut self, time: u64, succeeded: bool) {
        self.generation += u64::from(succeeded);
        (self.time, self.succeeded) = (time, succeeded);
    }
}

/// Whether a request asks what a reload would do. Without a body, it asks for the reload.
pub(super) fn is_dry_run(request: &Request<Bytes>) -> Result<bool, Refusal> {
    if request.body().is_empty() {
        return Ok(false);
    }
    let mut fields = Fields::of(request)?;
    let dry_run = fields.flag("dry_run")?.unwrap_or_default();
    fields.finish()?;
    Ok(dry_run)
}
