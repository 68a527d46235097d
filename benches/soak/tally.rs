//! What the clients and the operator have done.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Problems that are kept.
const MOST: usize = 20;

/// A count of several threads.
#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
pub(crate) struct Tally {
    /// Packets of valid calls, and those of them that the peers returned.
    pub(crate) sent: Count,
    pub(crate) returned: Count,
    /// Valid calls that have ended as they should.
    pub(crate) calls: Count,
    /// Valid calls that waited for the end of a drain.
    pub(crate) postponed: Count,
    /// Calls of users that the operator kicks.
    pub(crate) victims: Count,
    /// Allocations that were left behind.
    pub(crate) left: Count,
    /// Broken and hostile clients.
    pub(crate) broken: Count,
    pub(crate) hostile: Count,
    /// What the operator did.
    pub(crate) reloads: Count,
    pub(crate) kicks: Count,
    /// Sessions that ended by a kick.
    pub(crate) kicked: Count,
    pub(crate) certificates: Count,
    pub(crate) drains: Count,
    /// The number of beginnings and ends of drains. While the server drains, it is odd.
    pub(crate) drain_phase: Count,
    problems: Mutex<Vec<String>>,
}

impl Tally {
    /// Whether the server has drained at some time since the phase was this.
    pub(crate) fn has_drained_since(&self, phase: u64) -> bool {
        phase % 2 == 1 || self.drain_phase.get() != phase
    }

    /// Notes what must not happen.
    pub(crate) fn problem(&self, problem: String) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        if problems.len() < MOST {
            problems.push(problem);
        }
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [calls, postponed, sent, returned] =
            [&self.calls, &self.postponed, &self.sent, &self.returned].map(Count::get);
        let [victims, left, broken, hostile] = [&self.victims, &self.left, &self.broken, &self.hostile].map(Count::get);
        let [reloads, kicks, kicked, certificates, drains] =
            [&self.reloads, &self.kicks, &self.kicked, &self.certificates, &self.drains].map(Count::get);
        writeln!(f, "{calls} valid calls ({postponed} attempts during drains), {returned} of {sent} packets returned")?;
        writeln!(f, "{victims} calls that could be kicked, {left} allocations left behind")?;
        writeln!(f, "{broken} broken clients, {hostile} hostile ones")?;
        write!(
            f,
            "{reloads} reloads, {kicks} kicks of {kicked} sessions, {certificates} new certificates, {drains} drains"
        )
    }
}
