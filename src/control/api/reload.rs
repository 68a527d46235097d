//! The configuration in use, and how it was last read.

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
}
