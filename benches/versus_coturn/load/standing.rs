//! Allocations that nobody uses, as those of calls that found a direct way.

use serde_json::{Value, json};
use turnserver::stun::{MessageWriter, Method};

use super::allocation::{Session, allocate, bind_channel, channel_attributes, error_of, request, transaction};
use super::link::{Link, Linker};
use super::{Job, Orders, Outcome, Say, clock};
use crate::scenario::Transport;

/// How often a client refreshes an allocation of ten minutes.
const REFRESH: u64 = 540;

/// How often it binds its channel again, which keeps the permission (five minutes) too.
const REBIND: u64 = 240;

/// Makes `allocations` with one channel each and keeps them; with `refreshed` until the measured time is over.
pub(crate) fn run(job: &Job, allocations: usize, refreshed: bool, orders: &Orders, say: Say<'_>) -> Outcome<Value> {
    let linker = Linker::new(job, Transport::Udp)?;
    let mut all = Vec::with_capacity(allocations);
    for _ in 0..allocations {
        let mut link = linker.link()?;
        let session = allocate(&mut link)?;
        bind_channel(&mut link, &session, job.peer)?;
        all.push((link, session));
    }
    say("ready");
    let window = orders.window()?;
    clock::sleep_until(window.start);
    let (mut asked, mut failed) = (0_u64, 0_u64);
    if refreshed {
        // Both kinds of request, spread evenly: the next one is due when this share of a second has passed.
        let count = allocations as u64;
        let interval = clock::SECOND * REFRESH * REBIND / (count * (REFRESH + REBIND));
        for (turn, due) in (window.start..window.to).step_by(usize::try_from(interval)?).enumerate() {
            clock::sleep_until(due);
            let Some((link, session)) = all.get_mut(turn % allocations) else { continue };
            let refresh = (turn as u64 * REBIND) % (REFRESH + REBIND) < REBIND;
            asked += u64::from(window.counts(due));
            failed += u64::from(!keep(job, link, session, refresh)?);
        }
    }
    clock::sleep_until(window.to);
    Ok(json!({ "allocations": all.len(), "asked": asked, "failed": failed }))
}

/// One request that keeps an allocation or its channel; whether it was granted.
fn keep(job: &Job, link: &mut Link, session: &mut Session, refresh: bool) -> Outcome<bool> {
    let rebind = |writer: &mut MessageWriter<'_>| channel_attributes(writer, job.peer);
    let message = if refresh {
        request(Method::REFRESH, transaction(), Some(session), &|_| {})?
    } else {
        request(Method::CHANNEL_BIND, transaction(), Some(session), &rebind)?
    };
    link.send(&message)?;
    Ok(match link.receive()? {
        Some(answer) => error_of(&answer)?.is_none(),
        None => false,
    })
}
