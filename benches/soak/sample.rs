//! What the server holds at a moment, and what the samples of a run mean.

use std::fmt;
use std::fs;
use std::thread;
use std::time::Duration;

use turnserver::clock::Clock;

use crate::http::Http;
use crate::support::{Controlled, TIMEOUT};
use crate::tally::Tally;

/// Allocations that are left behind end after ten minutes. From then on, as many end as begin.
const WARM_UP: Duration = Duration::from_secs(12 * 60);

/// What the resident memory may differ by without growth: the peaks of buffers, in KiB.
const NOISE: u64 = 6 * 1024;

/// How many of the packets of valid calls may be lost: the machine is small, and the floods fill buffers of the kernel.
const LOST_PERCENT: u64 = 2;

/// What the server holds.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    at: Duration,
    /// In KiB.
    resident: u64,
    descriptors: u64,
    allocations: u64,
    permissions: u64,
    channels: u64,
    used_ports: u64,
    /// Reserved ports, and those that rest after use.
    other_ports: u64,
    connections: u64,
    relayed: u64,
    dropped: u64,
    rejected: u64,
}

impl Sample {
    pub(crate) const HEAD: &str = "  time  RSS KiB  files  allocations  permissions  channels  ports  others  connections    relayed    dropped  rejected";

    pub(crate) fn take(controlled: &Controlled, at: Duration) -> Self {
        let process = controlled.server.id();
        let status = fs::read_to_string(format!("/proc/{process}/status")).expect("the server runs");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a resident size");
        let descriptors = fs::read_dir(format!("/proc/{process}/fd")).expect("the server runs").count() as u64;
        let page = Http::unix(&controlled.socket).get("/metrics").body;
        let sum = |name: &str| -> u64 {
            let of = |line: &str| {
                let rest = line.strip_prefix(name)?;
                rest.starts_with(['{', ' ']).then(|| line.rsplit(' ').next()?.parse::<u64>().ok()).flatten()
            };
            let values: Vec<u64> = page.lines().filter_map(of).collect();
            assert!(!values.is_empty(), "{name} is not in:\n{page}");
            values.iter().sum()
        };
        let ports = |state| sum(&format!("turnserver_relay_ports{{state={state:?}}}"));
        Self {
            at,
            resident: resident.trim().trim_end_matches(" kB").parse().expect("a number"),
            descriptors,
            allocations: sum("turnserver_allocations"),
            permissions: sum("turnserver_permissions"),
            channels: sum("turnserver_channels"),
            used_ports: ports("used"),
            other_ports: ports("reserved") + ports("quarantined"),
            connections: sum("turnserver_connections"),
            relayed: sum("turnserver_relayed_packets_total"),
            dropped: sum("turnserver_dropped_packets_total"),
            rejected: sum("turnserver_rejected_requests_total") + sum("turnserver_limited_requests_total"),
        }
    }

    /// Waits until the server holds nothing of its clients. If that does not come, the last sample shows it.
    pub(crate) fn settled(mut self, controlled: &Controlled) -> Self {
        let clock = Clock::start();
        while !self.is_empty() && clock.elapsed() < TIMEOUT {
            thread::sleep(Duration::from_millis(200));
            self = Self::take(controlled, self.at);
        }
        self
    }

    fn is_empty(&self) -> bool {
        let ports = self.used_ports + self.other_ports;
        [self.allocations, self.permissions, self.channels, ports, self.connections] == [0; 5]
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resident, descriptors, allocations, permissions, channels, used_ports, connections, .. } = self;
        let Self { other_ports, relayed, dropped, rejected, .. } = self;
        let (minutes, seconds) = (self.at.as_secs() / 60, self.at.as_secs() % 60);
        write!(f, "{minutes:>3}:{seconds:02}  {resident:>7}  {descriptors:>5}  {allocations:>11}  {permissions:>11}")?;
        write!(
            f,
            "  {channels:>8}  {used_ports:>5}  {other_ports:>6}  {connections:>11}  {relayed:>9}  {dropped:>9}  {rejected:>8}"
        )
    }
}

pub(crate) enum Verdict {
    Sound,
    Unsound(Vec<String>),
}

impl Verdict {
    /// Judges a run: the sample before the clients came, those during the run, and the one after all have gone.
    pub(crate) fn of(before: &Sample, during: &[Sample], after: &Sample, tally: &Tally) -> Self {
        let mut problems = tally.problems();
        if !after.is_empty() {
            problems.push(format!("all clients have gone, and the server still holds something: {after}"));
        }
        if after.descriptors > before.descriptors {
            let (first, last) = (before.descriptors, after.descriptors);
            problems.push(format!("{first} descriptors before the clients came, {last} after they have gone"));
        }
        problems.extend(growth(during));
        let (sent, returned) = (tally.sent.get(), tally.returned.get());
        if returned * 100 < sent * (100 - LOST_PERCENT) {
            problems.push(format!("{returned} of {sent} packets of valid calls came back"));
        }
        let (calls, postponed) = (tally.calls.get(), tally.postponed.get());
        if postponed > calls {
            problems
                .push(format!("{postponed} attempts were rejected during short drains, and {calls} calls were made"));
        }
        if [&tally.calls, &tally.reloads, &tally.kicked, &tally.certificates, &tally.drains]
            .iter()
            .any(|it| it.get() == 0)
        {
            problems.push("not everything happened: the run was too short".to_owned());
        }
        if problems.is_empty() { Self::Sound } else { Self::Unsound(problems) }
    }
}

/// Compares the peak of the memory in the two halves of the time after the warm-up.
fn growth(during: &[Sample]) -> Option<String> {
    let end = during.last()?.at;
    let settled: Vec<&Sample> = during.iter().filter(|sample| sample.at >= WARM_UP.min(end / 3)).collect();
    let (early, late) = settled.split_at(settled.len() / 2);
    let peak = |samples: &[&Sample]| samples.iter().map(|sample| sample.resident).max();
    let (early, late) = (peak(early)?, peak(late)?);
    (late > early + early / 20 + NOISE)
        .then(|| format!("the memory grows: {early} KiB at most in the first half after the warm-up, then {late} KiB"))
}
