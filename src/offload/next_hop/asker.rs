//! Next hops for other threads. An owner says which pairs it wants and takes notices, and never waits for the thread
//! that has the watcher.
//!
//! Only the last wish for a pair and its last resolution wait for the other side, so a slow side bounds what waits.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use super::{Notice, Obstacle, Owner, Pair, Watcher};

/// The time between two attempts to open a watcher after an error of its sockets.
const REOPEN: Duration = Duration::from_secs(1);

/// Of the attempts that fail one after the other, one in so many is reported: once a minute.
const REPORTED: u32 = 60;

/// Asks for next hops on behalf of one owner. Dropping it releases all of its pairs.
#[derive(Debug)]
pub struct Asker(Arc<Desk>);

/// Serves askers: the end for the thread of the watcher.
#[derive(Debug)]
pub struct Desks {
    desks: Vec<Arc<Desk>>,
    asked: Arc<Notify>,
}

/// What waits between an owner and the watcher.
#[derive(Debug)]
struct Desk {
    waiting: Mutex<Waiting>,
    /// Wakes the thread of the watcher.
    asked: Arc<Notify>,
    /// Wakes the owner.
    answered: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    wishes: HashMap<Pair, Wish>,
    notices: HashMap<Pair, Noticed>,
    /// The owner asks for nothing more.
    is_closed: bool,
    /// The owner is not served.
    is_dead: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Ask,
    Recheck,
    Release,
}

/// The last notices about a pair.
#[derive(Debug, Default)]
struct Noticed {
    changed: Option<Notice>,
    used: Option<Notice>,
}

/// Returns an asker for each of the owners 0 to `owners` − 1, and their other ends.
#[must_use]
pub fn desks(owners: Owner) -> (Vec<Asker>, Desks) {
    let asked = Arc::<Notify>::default();
    let desk = |_| Arc::new(Desk { waiting: Mutex::default(), asked: Arc::clone(&asked), answered: Notify::new() });
    let desks: Vec<_> = (0..owners).map(desk).collect();
    (desks.iter().cloned().map(Asker).collect(), Desks { desks, asked })
}

impl Desk {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Every change under the lock is complete at each of its steps.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asker {
    /// Asks for a pair: [`notices`](Self::notices) reports its resolution, and each change until
    /// [`release`](Self::release). An owner asks once for a pair.
    pub fn ask(&self, pair: Pair) {
        self.wish(pair, Wish::Ask);
    }

    /// Ends what [`ask`](Self::ask) began. A few notices may still follow.
    pub fn release(&self, pair: Pair) {
        self.wish(pair, Wish::Release);
    }

    /// Looks the route of a pair up again, because a packet was too long for the path.
    pub fn recheck(&self, pair: Pair) {
        let mut waiting = self.0.waiting();
        // A wish that waits leads to a lookup, or the pair is not wanted.
        if !waiting.is_dead {
            waiting.wishes.entry(pair).or_insert(Wish::Recheck);
        }
        drop(waiting);
        self.0.asked.notify_one();
    }

    fn wish(&self, pair: Pair, wish: Wish) {
        let mut waiting = self.0.waiting();
        if !waiting.is_dead {
            waiting.wishes.insert(pair, wish);
        }
        drop(waiting);
        self.0.asked.notify_one();
    }

    /// Waits for notices. Nothing is lost if its future is dropped. `None`: the other end has gone, and there are
    /// no further ones.
    pub async fn notices(&self) -> Option<Vec<Notice>> {
        loop {
            {
                let mut waiting = self.0.waiting();
                if waiting.is_dead {
                    return None;
                }
                let notices = std::mem::take(&mut waiting.notices);
                if !notices.is_empty() {
                    let each = notices.into_values().flat_map(|noticed| [noticed.changed, noticed.used]);
                    return Some(each.flatten().collect());
                }
            }
            self.0.answered.notified().await;
        }
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.0.waiting().is_closed = true;
        self.0.asked.notify_one();
    }
}

impl Drop for Desks {
    fn drop(&mut self) {
        for desk in &self.desks {
            *desk.waiting() = Waiting { is_dead: true, ..Waiting::default() };
            desk.answered.notify_one();
        }
    }
}

impl Desks {
    /// Serves the askers until all of them are dropped. After an error of the sockets, it calls `report`, tells the
    /// owners that there are no next hops, and opens a new watcher.
    ///
    /// # Panics
    /// If called outside a tokio runtime.
    pub async fn serve(self, watcher: Watcher, report: impl Fn(&io::Error)) {
        let mut watcher = Some(watcher);
        let mut wanted: Vec<HashSet<Pair>> = self.desks.iter().map(|_| HashSet::new()).collect();
        let mut failures = 0_u32;
        loop {
            let Some(current) = &mut watcher else {
                sleep(REOPEN).await;
                if self.are_closed() {
                    return;
                }
                self.take_wishes(None, &mut wanted);
                match Watcher::open() {
                    Ok(mut new) => {
                        for (owner, pairs) in (0..).zip(&wanted) {
                            pairs.iter().for_each(|pair| self.ask(&mut new, owner, *pair));
                        }
                        (watcher, failures) = (Some(new), 0);
                    }
                    Err(error) => {
                        failures += 1;
                        if failures.is_multiple_of(REPORTED) {
                            report(&error);
                        }
                    }
                }
                continue;
            };
            let result = tokio::select! {
                notices = current.next() => notices.map(|notices| notices.into_iter().for_each(|notice| self.tell(notice))),
                () = self.asked.notified() => {
                    self.take_wishes(Some(current), &mut wanted);
                    Ok(())
                }
            };
            if self.are_closed() {
                return;
            }
            if let Err(error) = result {
                report(&error);
                watcher = None;
                for (owner, pairs) in (0..).zip(&wanted) {
                    let lost =
                        |pair: &Pair| Notice::Changed { owner, pair: *pair, resolution: Err(Obstacle::Unwatched) };
                    pairs.iter().map(lost).for_each(|notice| self.tell(notice));
                }
            }
        }
    }

    fn are_closed(&self) -> bool {
        self.desks.iter().all(|desk| desk.waiting().is_closed)
    }

    /// Notes what the owners want. Without a watcher, they get no resolutions.
    fn take_wishes(&self, mut watcher: Option<&mut Watcher>, wanted: &mut [HashSet<Pair>]) {
        for ((owner, desk), wanted) in (0..).zip(&self.desks).zip(wanted) {
            let (wishes, is_closed) = {
                let mut waiting = desk.waiting();
                (std::mem::take(&mut waiting.wishes), waiting.is_closed)
            };
            for (pair, wish) in wishes {
                let was_wanted = match wish {
                    Wish::Recheck => wanted.contains(&pair),
                    Wish::Release => wanted.remove(&pair),
                    Wish::Ask => !wanted.insert(pair),
                };
                let Some(watcher) = watcher.as_deref_mut() else { continue };
                match wish {
                    Wish::Recheck => watcher.recheck(pair),
                    Wish::Release if was_wanted => watcher.release(owner, pair),
                    Wish::Release => {}
                    Wish::Ask => {
                        // The owner has released it and asked again.
                        if was_wanted {
                            watcher.release(owner, pair);
                        }
                        self.ask(watcher, owner, pair);
                    }
                }
            }
            if is_closed {
                for pair in wanted.drain() {
                    if let Some(watcher) = watcher.as_deref_mut() {
                        watcher.release(owner, pair);
                    }
                }
            }
        }
    }

    fn ask(&self, watcher: &mut Watcher, owner: Owner, pair: Pair) {
        if let Some(resolution) = watcher.ask_later(owner, pair) {
            self.tell(Notice::Changed { owner, pair, resolution });
        }
    }

    fn tell(&self, notice: Notice) {
        let (Notice::Changed { owner, pair, .. } | Notice::Use { owner, pair }) = &notice;
        let Some(desk) = self.desks.get(usize::from(*owner)) else { return };
        let mut waiting = desk.waiting();
        if waiting.is_closed {
            return;
        }
        let noticed = waiting.notices.entry(*pair).or_default();
        match notice {
            Notice::Changed { .. } => noticed.changed = Some(notice),
            Notice::Use { .. } => noticed.used = Some(notice),
        }
        drop(waiting);
        desk.answered.notify_one();
    }
}
