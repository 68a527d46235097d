//! Idle allocations, as after a call that found a direct path.

use serde_json::{Value, json};
use turnserver::client::Request;

use super::allocation::{Session, allocate, bind_channel, channel, error_of, transaction, write};
use super::link::{Connector, Link};
use super::{Commands, Job, Outcome, Report, clock};
use crate::scenario::Transport;

/// The lifetime that a Refresh requests, in seconds.
const LIFETIME: u32 = 600;

/// Refresh interval of an allocation with a lifetime of ten minutes, in seconds.
const REFRESH: u64 = 540;

/// Rebinding interval of a channel, which also refreshes the permission (five minutes), in seconds.
const REBIND: u64 = 240;

/// Creates `allocations` with one channel each. With `refreshed` it refreshes them until the end of the measurement.
pub(crate) fn run(
    job: &Job,
    allocations: usize,
    refreshed: bool,
    commands: &Commands,
    report: Report<'_>,
) -> Outcome<Value> {
    let connector = Connector::new(job, Transport::Udp)?;
    let mut all = Vec::with_capacity(allocations);
    for _ in 0..allocations {
        let mut link = connector.connect()?;
        let session = allocate(&mut link)?;
        bind_channel(&mut link, &session, job.peer)?;
        all.push((link, session));
    }
    report("ready");
    let window = commands.window()?;
    clock::sleep_until(window.start);
    let (mut sent, mut failed) = (0_u64, 0_u64);
    if refreshed {
        // Both kinds of request, evenly spaced by this interval.
        let count = allocations as u64;
        let interval = clock::SECOND * REFRESH * REBIND / (count * (REFRESH + REBIND));
        for (number, due) in (window.start..window.to).step_by(usize::try_from(interval)?).enumerate() {
            clock::sleep_until(due);
            let Some((link, session)) = all.get_mut(number % allocations) else { continue };
            let is_refresh = (number as u64 * REBIND) % (REFRESH + REBIND) < REBIND;
            sent += u64::from(window.counts(due));
            failed += u64::from(!refresh(job, link, session, is_refresh)?);
        }
    }
    clock::sleep_until(window.to);
    Ok(json!({ "allocations": all.len(), "sent": sent, "failed": failed }))
}

/// Refreshes an allocation or its channel. Returns whether this succeeded.
fn refresh(job: &Job, link: &mut Link, session: &mut Session, is_refresh: bool) -> Outcome<bool> {
    let request = if is_refresh { Request::Refresh(LIFETIME) } else { channel(job.peer) };
    link.send(&write(&request, transaction(), Some(session))?)?;
    Ok(match link.receive()? {
        Some(response) => error_of(&response)?.is_none(),
        None => false,
    })
}
