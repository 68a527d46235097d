//! The sockets of a [`Table`]: notifications, lists and lookups, in steps that are short for the thread.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::time::sleep;

use super::judge::{self, Response};
use super::socket::{self, Reading, Received, Requests};
use super::{Notice, Owner, Pair, Resolution, Table};
use crate::clock::monotonic;
use crate::net::watch::{Readable, readable};

/// The number of lookups in one step.
const LOOKUPS: usize = 64;
/// The number of pairs that one step examines without a lookup.
const REVIEWS: usize = 512;
/// After this time, a step reads no more notifications. One of them may concern all pairs.
const READING: Duration = Duration::from_millis(1);
/// The time between two looks at stale neighbours and at the audit.
const TICK: Duration = Duration::from_secs(1);

/// How the table relates to the kernel's state.
#[derive(Debug)]
enum State {
    /// The table follows the notifications.
    Current,
    /// Notifications were lost. Those that wait are older than the lists that are read next.
    Discarding,
    /// All lists are being read. Notifications wait, because they are newer than the lists.
    Reading(Reading),
}

/// Finds the next hop of each pair that is asked for, and reports changes.
///
/// It belongs to one thread with a tokio runtime, and sees the network namespace in which it was opened.
#[derive(Debug)]
pub struct Watcher {
    table: Table,
    changes: Readable,
    lookups: Requests,
    state: State,
    ticked: Duration,
}

impl Watcher {
    /// Subscribes to notifications and reads the interfaces, addresses, rules and neighbours.
    ///
    /// # Errors
    /// Those of netlink sockets, which a sandbox may deny.
    ///
    /// # Panics
    /// If called outside a tokio runtime.
    pub fn open() -> io::Result<Self> {
        // The subscription precedes the lists, so that no change is missed.
        let changes = readable(socket::subscribe()?)?;
        let table = read_table()?;
        Ok(Self { table, changes, lookups: Requests::open()?, state: State::Current, ticked: monotonic() })
    }

    /// Asks for a pair: returns its resolution, and reports each change until [`release`](Self::release).
    ///
    /// A pair that no other owner has asked for costs one system call. An owner may ask several times for a pair; it
    /// gets one notice of a change.
    ///
    /// # Errors
    /// Those of netlink sockets. The pair stays, and [`next`](Self::next) reports its resolution.
    pub fn ask(&mut self, owner: Owner, pair: Pair) -> io::Result<Resolution> {
        if let Some(resolution) = self.table.ask(owner, pair) {
            return Ok(resolution);
        }
        look_up(&mut self.table, &mut self.lookups, &[pair])?;
        let missing = || io::Error::new(io::ErrorKind::WouldBlock, "the kernel did not respond to a route request");
        self.table.resolution(owner, &pair).ok_or_else(missing)
    }

    /// Asks for a pair without a system call. Returns its resolution if it is known; otherwise [`next`](Self::next)
    /// reports it. This costs less than [`ask`](Self::ask) for many pairs.
    pub fn ask_later(&mut self, owner: Owner, pair: Pair) -> Option<Resolution> {
        self.table.ask(owner, pair)
    }

    /// Reports no more changes of a pair to an owner, once it has called this as often as it asked.
    pub fn release(&mut self, owner: Owner, pair: Pair) {
        self.table.release(owner, pair);
    }

    /// Looks the route of a pair up again, because a packet was too long: the kernel does not report a change of the
    /// path MTU.
    pub fn recheck(&mut self, pair: Pair) {
        self.table.recheck(pair);
    }

    /// Returns the number of pairs that are asked for.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.table.len()
    }

    /// Waits for notices. It does at most one step of work between two points at which other tasks of the thread run,
    /// and nothing is lost if its future is dropped.
    ///
    /// # Errors
    /// Those of netlink sockets.
    pub async fn next(&mut self) -> io::Result<Vec<Notice>> {
        loop {
            let notices = self.table.take_notices();
            if !notices.is_empty() {
                return Ok(notices);
            }
            if !matches!(self.state, State::Current) || self.table.has_work() {
                tokio::task::yield_now().await;
                self.work()?;
            } else {
                // Without pairs there is nothing to do later.
                let wait = TICK.saturating_sub(monotonic().saturating_sub(self.ticked));
                tokio::select! {
                    ready = self.changes.readable() => {
                        let mut ready = ready?;
                        if receive(&mut self.table, &mut self.state, self.changes.get_ref())? == Progress::Complete {
                            ready.clear_ready();
                        }
                    }
                    () = sleep(wait), if self.table.len() > 0 => {}
                }
            }
            self.tick();
        }
    }

    fn tick(&mut self) {
        let now = monotonic();
        if now.saturating_sub(self.ticked) >= TICK {
            self.ticked = now;
            self.table.tick(now);
        }
    }

    /// Does one step of the work that waits.
    fn work(&mut self) -> io::Result<()> {
        match &mut self.state {
            State::Current => {
                receive(&mut self.table, &mut self.state, self.changes.get_ref())?;
                self.table.review_some(REVIEWS);
                let pairs = self.table.take_lookups(LOOKUPS);
                look_up(&mut self.table, &mut self.lookups, &pairs)
            }
            State::Discarding => receive(&mut self.table, &mut self.state, self.changes.get_ref()).map(drop),
            State::Reading(reading) => {
                if let Some(lists) = reading.step()? {
                    self.table.replace(lists, monotonic());
                    self.state = State::Current;
                }
                Ok(())
            }
        }
    }
}

/// Returns the resolution of a pair at this moment.
///
/// # Errors
/// Those of netlink sockets.
pub fn resolve(pair: Pair) -> io::Result<Resolution> {
    let mut table = read_table()?;
    if let Some(resolution) = table.ask(0, pair) {
        return Ok(resolution);
    }
    look_up(&mut table, &mut Requests::open()?, &[pair])?;
    table.resolution(0, &pair).ok_or_else(|| io::ErrorKind::WouldBlock.into())
}

fn read_table() -> io::Result<Table> {
    let mut table = Table::default();
    table.replace(Reading::start()?.complete()?, monotonic());
    Ok(table)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// No notification is left.
    Complete,
    More,
}

/// Applies or discards the notifications that have arrived, up to the limit of one step.
fn receive(table: &mut Table, state: &mut State, changes: &OwnedFd) -> io::Result<Progress> {
    let start = monotonic();
    let mut now = start;
    while now.saturating_sub(start) < READING {
        match (socket::notifications(changes)?, &state) {
            (Received::Messages(messages), State::Current) => {
                messages.into_iter().for_each(|message| table.apply(message, now));
            }
            (Received::Messages(_), _) => {}
            (Received::Overrun, _) => *state = State::Discarding,
            (Received::Nothing, State::Discarding) => {
                *state = State::Reading(Reading::start()?);
                return Ok(Progress::Complete);
            }
            (Received::Nothing, _) => return Ok(Progress::Complete),
        }
        now = monotonic();
    }
    Ok(Progress::More)
}

/// Looks pairs up. Those without response wait for the next step.
fn look_up(table: &mut Table, requests: &mut Requests, pairs: &[Pair]) -> io::Result<()> {
    if pairs.is_empty() {
        return Ok(());
    }
    let responses = responses(table, requests, pairs);
    if !responses.as_ref().is_ok_and(|responses| responses.len() == pairs.len()) {
        pairs.iter().for_each(|pair| table.put_back(*pair));
    }
    let now = monotonic();
    responses?.into_iter().for_each(|(pair, response)| table.enter_response(pair, response, now));
    Ok(())
}

/// Returns the responses of the kernel. To a pair with an IPv6 source of another machine, it is that of IPv4: there is
/// no route.
fn responses(table: &Table, requests: &mut Requests, pairs: &[Pair]) -> io::Result<Vec<(Pair, Response)>> {
    let unknown = table.unknown_sources(pairs);
    if unknown.is_empty() {
        return requests.routes(pairs);
    }
    let to_sources: Vec<Pair> = unknown.iter().map(|ip| Pair { destination: *ip, source: *ip }).collect();
    let of_sources = requests.routes(&to_sources)?;
    let is_local: HashMap<IpAddr, bool> =
        of_sources.iter().map(|(pair, response)| (pair.source, judge::is_local(response))).collect();
    // Without response about the source, the pair has none.
    let known = |pair: &&Pair| !unknown.contains(&pair.source) || is_local.contains_key(&pair.source);
    let pairs: Vec<Pair> = pairs.iter().filter(known).copied().collect();
    let mut responses = requests.routes(&pairs)?;
    for (pair, response) in &mut responses {
        if is_local.get(&pair.source) == Some(&false) {
            *response = Response::Refused(libc::ENETUNREACH);
        }
    }
    Ok(responses)
}
