//! The relay ports of one relay address. All workers take ports from one table and release them to it.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rand::RngExt as _;

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

/// The even ports of a word.
const EVEN: u64 = u64::MAX / 3;

/// The ports of a range. A free port is selected at random (RFC 6056 §3.3.1), so that ports are not predictable.
///
/// A worker takes a port by setting its bit. Whoever holds the port releases it by clearing the bit.
#[derive(Debug)]
pub(crate) struct Ports {
    range: RangeInclusive<u16>,
    /// The first port of the first word: a multiple of 64.
    first: u16,
    /// A bit for each port, set if it is taken. The bits of ports outside the range are always set.
    taken: Box<[AtomicU64]>,
    /// For each port, the second until which it is set aside (with [`IN_USE`]) or rests. 0 for neither.
    held_until: Box<[AtomicU32]>,
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

impl Ports {
    pub(crate) fn new(range: &RangeInclusive<u16>) -> Self {
        let first = range.start() & !63;
        let words = usize::from((range.end().saturating_sub(first)) / 64) + 1;
        let outside = |word: u16, bit: &u16| !range.contains(&(first + 64 * word + bit));
        let word = |at| AtomicU64::new((0..64).filter(|bit| outside(at, bit)).fold(0, |bits, bit| bits | 1 << bit));
        Self {
            range: range.clone(),
            first,
            taken: (0..).take(words).map(word).collect(),
            held_until: (0..64 * words).map(|_| AtomicU32::new(0)).collect(),
            all_resting_before: AtomicU32::new(0),
        }
    }

    pub(crate) fn range(&self) -> &RangeInclusive<u16> {
        &self.range
    }

    /// Takes a random free port that matches the preference.
    pub(crate) fn take(
        &self,
        now: Instant,
        preference: PortPreference,
        resting: Resting,
        rng: &mut dyn rand::CryptoRng,
    ) -> Option<u16> {
        let second = now.second_u32();
        for _ in 0..PROBES {
            let port = rng.random_range(self.range.clone());
            let port = if preference == PortPreference::Any { port } else { port & !1 };
            if self.try_take(port, preference, resting, second) {
                return Some(port);
            }
        }
        // A rest ends at the beginning of a second, so the result of a search is valid for the rest of its second.
        if resting == Resting::Excluded && self.all_resting_before.load(Ordering::Relaxed) == second.saturating_add(1) {
            return None;
        }
        // Few ports are free. The search starts at a random word, and in each word at the same random bit.
        let (start, turn) = (rng.random_range(0..self.taken.len()), rng.random_range(0..64));
        let words = self.taken.iter().zip(0u16..);
        for (word, at) in words.clone().skip(start).chain(words.take(start)) {
            let mut found = preference.matching(!word.load(Ordering::Relaxed)).rotate_right(turn);
            while found != 0 {
                let bit = (found.trailing_zeros() + turn) % 64;
                found &= found - 1;
                let port = self.first + 64 * at + bit as u16;
                if self.try_take(port, preference, resting, second) {
                    return Some(port);
                }
            }
        }
        if preference == PortPreference::Any && resting == Resting::Excluded {
            self.all_resting_before.store(second.saturating_add(1), Ordering::Relaxed);
        }
        None
    }

    fn try_take(&self, port: u16, preference: PortPreference, resting: Resting, second: u32) -> bool {
        let may_be_taken = |port: u16| {
            let held = self.held(port).map_or(0, |held| held.load(Ordering::Relaxed));
            held & !IN_USE <= second || (resting == Resting::Included && held & IN_USE == 0)
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
        let Some(word) = self.word(port) else { return false };
        // Acquire: the worker that released the port has closed its socket.
        word.fetch_update(Ordering::Acquire, Ordering::Relaxed, |taken| (taken & mask == 0).then_some(taken | mask))
            .is_ok()
    }

    /// Takes this port if it is free.
    pub(crate) fn take_exactly(&self, port: u16) -> bool {
        let taken = self.set(port, PortPreference::Any.mask(port));
        if taken {
            self.hold(port, 0);
        }
        taken
    }

    /// Releases a taken port.
    pub(crate) fn release(&self, port: u16) {
        debug_assert!(self.is_taken(port), "port {port} is released by whoever holds it");
        if let Some(word) = self.word(port).filter(|_| self.range.contains(&port)) {
            // Release: the socket is closed before another worker takes the port.
            word.fetch_and(!PortPreference::Any.mask(port), Ordering::Release);
        }
        let held = self.held(port).map_or(0, |held| held.load(Ordering::Relaxed));
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
        if let Some(held) = self.held(port) {
            held.store(until, Ordering::Relaxed);
        }
    }

    /// Returns the number of ports that other programs use.
    pub(crate) fn in_use_elsewhere(&self, now: Instant) -> usize {
        let second = now.second_u32();
        let held = self.held_until.iter().map(|held| held.load(Ordering::Relaxed));
        held.filter(|held| held & IN_USE != 0 && held & !IN_USE > second).count()
    }

    /// Returns the number of free ports that new allocations do not get yet: those that rest, and those that other
    /// programs use.
    pub(crate) fn quarantined(&self, now: Instant) -> usize {
        let second = now.second_u32();
        let held = |port: &u16| self.held(*port).is_some_and(|held| held.load(Ordering::Relaxed) & !IN_USE > second);
        self.range.clone().filter(|port| held(port) && !self.is_taken(*port)).count()
    }

    /// Returns the number of ports.
    pub(crate) fn count(&self) -> usize {
        self.range.len()
    }

    /// Returns the number of taken ports.
    pub(crate) fn taken(&self) -> usize {
        let bits: usize = self.taken.iter().map(|word| word.load(Ordering::Relaxed).count_ones() as usize).sum();
        bits - (64 * self.taken.len() - self.range.len())
    }

    /// Whether `port` belongs to the range and is taken.
    pub(crate) fn is_taken(&self, port: u16) -> bool {
        let word = self.word(port).filter(|_| self.range.contains(&port));
        word.is_some_and(|word| word.load(Ordering::Relaxed) & PortPreference::Any.mask(port) != 0)
    }

    fn word(&self, port: u16) -> Option<&AtomicU64> {
        self.taken.get(usize::from(port.checked_sub(self.first)? / 64))
    }

    fn held(&self, port: u16) -> Option<&AtomicU32> {
        self.held_until.get(usize::from(port.checked_sub(self.first)?))
    }
}

#[cfg(test)]
#[path = "ports/tests.rs"]
mod tests;
