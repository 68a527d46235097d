//! The relay ports of one relay address. All workers take ports from one table and release them to it.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rand::RngExt as _;

use crate::turn::shared::port_map::PortMap;
use crate::turn::time::Instant;

/// The number of ports that are tried at random before all ports are searched.
const PROBES: usize = 16;

/// The time in seconds after which a port that another program uses is retried.
const SET_ASIDE: u32 = 60;

/// The time in seconds for which a released port rests. Datagrams for the preceding allocation are then no longer under
/// way, and a client cannot get a port back that it has released a moment ago.
const REST: u32 = 5;

/// Distinguishes a port that another program uses from one that rests.
const IN_USE: u32 = 1 << 31;

/// The number of ports of a word.
const WORD: usize = 64;

/// The even ports of a word.
const EVEN: u64 = u64::MAX / 3;

/// The ports of a range, which may change. A free port is selected at random (RFC 6056 §3.3.1), so that ports are not
/// predictable.
///
/// A worker takes a port by setting its bit. Whoever holds the port releases it by clearing the bit. The state of a port
/// does not depend on the range: a port that leaves the range stays taken until it is released, and is then not taken
/// again.
#[derive(Debug)]
pub(crate) struct Ports {
    /// The last port, and in the high half the first port.
    range: AtomicU32,
    /// A bit for each port, set if it is taken.
    taken: PortMap<AtomicU64, WORD>,
    /// For each port, the second until which it is set aside (with [`IN_USE`]) or rests. 0 for neither.
    held_until: PortMap<AtomicU32, 1>,
    /// The second after the one in which a search found that each free port rests; 0 if there was none. While ports are
    /// freed at a high rate, this saves the search.
    all_resting_before: AtomicU32,
}

/// The kind of port that an Allocate request requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PortPreference {
    Any,
    /// RFC 8656 §18.7, R = 0.
    Even,
    /// RFC 8656 §18.7, R = 1: an even port, and the next higher port is reserved.
    EvenAndNext,
}

impl PortPreference {
    /// Returns the free ports of a word that match, each as its bit. A pair is represented by its even port.
    fn matching(self, free: u64) -> u64 {
        match self {
            Self::Any => free,
            Self::Even => free & EVEN,
            Self::EvenAndNext => free & (free >> 1) & EVEN,
        }
    }

    /// Returns the bits to set for a port. Both ports of a pair are in the same word, because the first one is even.
    fn mask(self, port: u16) -> u64 {
        let bits = if self == Self::EvenAndNext { 0b11 } else { 0b1 };
        bits << (port % 64)
    }
}

/// Whether a port that rests may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resting {
    Excluded,
    /// If no other port is free.
    Included,
}

fn range_word(range: &RangeInclusive<u16>) -> u32 {
    u32::from(*range.start()) << 16 | u32::from(*range.end())
}

/// Returns the ports of a word, given by its index, that are in a range, each as its bit.
fn within(range: &RangeInclusive<u16>, word: u16) -> u64 {
    let first = 64 * word;
    let (from, to) = (range.start().saturating_sub(first), range.end().saturating_sub(first).min(63));
    u64::MAX.checked_shl(from.into()).unwrap_or(0) & (u64::MAX >> (63 - to))
}

impl Ports {
    pub(crate) fn new(range: &RangeInclusive<u16>) -> Self {
        Self {
            range: AtomicU32::new(range_word(range)),
            taken: PortMap::new(range),
            held_until: PortMap::new(range),
            all_resting_before: AtomicU32::new(0),
        }
    }

    pub(crate) fn range(&self) -> RangeInclusive<u16> {
        // Acquire: the tables have the ports of the range.
        let [a, b, c, d] = self.range.load(Ordering::Acquire).to_be_bytes();
        u16::from_be_bytes([a, b])..=u16::from_be_bytes([c, d])
    }

    /// Replaces the range. Other ports are not taken any more; those that are taken stay taken until they are released.
    pub(crate) fn set_range(&self, range: &RangeInclusive<u16>) {
        self.taken.cover(range);
        self.held_until.cover(range);
        self.range.store(range_word(range), Ordering::Release);
        // The new range may have free ports that do not rest.
        self.all_resting_before.store(0, Ordering::Relaxed);
    }

    /// Takes a random free port that matches the preference.
    pub(crate) fn take(
        &self,
        now: Instant,
        preference: PortPreference,
        resting: Resting,
        rng: &mut dyn rand::CryptoRng,
    ) -> Option<u16> {
        let (range, second) = (self.range(), now.second_u32());
        for _ in 0..PROBES {
            let port = rng.random_range(range.clone());
            let port = if preference == PortPreference::Any { port } else { port & !1 };
            if self.try_take(port, &range, preference, resting, second) {
                return Some(port);
            }
        }
        // A rest ends at the beginning of a second, so the result of a search is valid for the rest of its second.
        if resting == Resting::Excluded && self.all_resting_before.load(Ordering::Relaxed) == second.saturating_add(1) {
            return None;
        }
        // Few ports are free. The search starts at a random word, and in each word at the same random bit.
        let (first, last) = (range.start() / 64, range.end() / 64);
        let (start, turn) = (rng.random_range(first..=last), rng.random_range(0..64));
        for word in (start..=last).chain(first..start) {
            let free = self.free(&range, word);
            let mut found = preference.matching(free).rotate_right(turn);
            while found != 0 {
                let bit = (found.trailing_zeros() + turn) % 64;
                found &= found - 1;
                let port = 64 * word + bit as u16;
                if self.try_take(port, &range, preference, resting, second) {
                    return Some(port);
                }
            }
        }
        if preference == PortPreference::Any && resting == Resting::Excluded {
            self.all_resting_before.store(second.saturating_add(1), Ordering::Relaxed);
        }
        None
    }

    /// Returns the ports of a word that are in a range and not taken, each as its bit.
    fn free(&self, range: &RangeInclusive<u16>, word: u16) -> u64 {
        let taken = self.taken.get(64 * word).map_or(u64::MAX, |word| word.load(Ordering::Relaxed));
        !taken & within(range, word)
    }

    fn try_take(
        &self,
        port: u16,
        range: &RangeInclusive<u16>,
        preference: PortPreference,
        resting: Resting,
        second: u32,
    ) -> bool {
        let may_be_taken = |port: u16| {
            let held = self.held_until.get(port).map_or(0, |held| held.load(Ordering::Relaxed));
            range.contains(&port) && (held & !IN_USE <= second || (resting == Resting::Included && held & IN_USE == 0))
        };
        let next = preference != PortPreference::EvenAndNext || may_be_taken(port | 1);
        let taken = may_be_taken(port) && next && self.set(port, preference.mask(port));
        if taken {
            self.hold(port, 0);
            if preference == PortPreference::EvenAndNext {
                self.hold(port | 1, 0);
            }
        }
        taken
    }

    /// Sets bits of the word of a port if all of them are clear.
    fn set(&self, port: u16, mask: u64) -> bool {
        let Some(word) = self.taken.get(port) else { return false };
        // Acquire: the worker that released the port has closed its socket.
        word.fetch_update(Ordering::Acquire, Ordering::Relaxed, |taken| (taken & mask == 0).then_some(taken | mask))
            .is_ok()
    }

    /// Takes this port if it is in the range and free.
    pub(crate) fn take_exactly(&self, port: u16) -> bool {
        let taken = self.range().contains(&port) && self.set(port, PortPreference::Any.mask(port));
        if taken {
            self.hold(port, 0);
        }
        taken
    }

    /// Releases a taken port.
    pub(crate) fn release(&self, port: u16) {
        debug_assert!(self.is_taken(port), "port {port} is released by whoever holds it");
        if let Some(word) = self.taken.get(port) {
            // Release: the socket is closed before another worker takes the port.
            word.fetch_and(!PortPreference::Any.mask(port), Ordering::Release);
        }
        let held = self.held_until.get(port).map_or(0, |held| held.load(Ordering::Relaxed));
        if held & !IN_USE < self.all_resting_before.load(Ordering::Relaxed) {
            self.all_resting_before.store(0, Ordering::Relaxed);
        }
    }

    /// Makes a taken port rest from now on. It becomes free when it is released.
    pub(crate) fn rest(&self, port: u16, now: Instant) {
        // One more second, because the current one has begun.
        self.hold(port, now.second_u32().saturating_add(REST + 1));
    }

    /// Sets aside a taken port that another program uses, and releases it.
    pub(crate) fn set_aside(&self, port: u16, now: Instant) {
        self.hold(port, now.second_u32().saturating_add(SET_ASIDE) | IN_USE);
        self.release(port);
    }

    fn hold(&self, port: u16, until: u32) {
        if let Some(held) = self.held_until.get(port) {
            held.store(until, Ordering::Relaxed);
        }
    }

    /// Returns the number of ports of the range that other programs use.
    pub(crate) fn in_use_elsewhere(&self, now: Instant) -> usize {
        let second = now.second_u32();
        let held = self.range().filter_map(|port| self.held_until.get(port)).map(|held| held.load(Ordering::Relaxed));
        held.filter(|held| held & IN_USE != 0 && held & !IN_USE > second).count()
    }

    /// Returns the number of free ports of the range that new allocations do not get yet: those that rest, and those
    /// that other programs use.
    pub(crate) fn quarantined(&self, now: Instant) -> usize {
        let second = now.second_u32();
        let held =
            |port: &u16| self.held_until.get(*port).is_some_and(|held| held.load(Ordering::Relaxed) & !IN_USE > second);
        self.range().filter(|port| held(port) && !self.is_taken(*port)).count()
    }

    /// Returns the number of ports of the range that are not taken.
    pub(crate) fn untaken(&self) -> usize {
        let range = self.range();
        let free = |word| self.free(&range, word).count_ones() as usize;
        (range.start() / 64..=range.end() / 64).map(free).sum()
    }

    /// Returns the number of taken ports, in the range and outside of it.
    pub(crate) fn taken(&self) -> usize {
        self.taken.iter().map(|word| word.load(Ordering::Relaxed).count_ones() as usize).sum()
    }

    /// Whether `port` is taken.
    pub(crate) fn is_taken(&self, port: u16) -> bool {
        let word = self.taken.get(port).map_or(0, |word| word.load(Ordering::Relaxed));
        word & PortPreference::Any.mask(port) != 0
    }
}

#[cfg(test)]
#[path = "ports/tests.rs"]
mod tests;
