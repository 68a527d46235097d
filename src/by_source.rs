//! Entries by their source, in the order of arrival.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::Bound;

/// A source of connections: an IPv4 address or an IPv6 /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Source(IpAddr);

impl Source {
    pub(crate) fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self(ip),
            IpAddr::V6(v6) => Self(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Entries with numbers that grow from entry to entry. Every operation takes logarithmic time.
#[derive(Debug)]
pub(crate) struct BySource<T> {
    entries: BTreeMap<Source, BTreeMap<u64, T>>,
    /// One element for each source. The last is the source with the most entries; of several, the one with the oldest.
    fullest: BTreeSet<(usize, Reverse<u64>, Source)>,
    length: usize,
}

impl<T> Default for BySource<T> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), fullest: BTreeSet::new(), length: 0 }
    }
}

impl<T> BySource<T> {
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn insert(&mut self, source: Source, number: u64, entry: T) {
        self.change(source, |entries| entries.insert(number, entry));
    }

    pub(crate) fn remove(&mut self, source: Source, number: u64) -> Option<T> {
        self.change(source, |entries| entries.remove(&number))
    }

    /// Removes the oldest entry of the source with the most entries.
    pub(crate) fn pop_fullest(&mut self) -> Option<(u64, T)> {
        let (_, Reverse(oldest), source) = self.fullest.last().copied()?;
        Some((oldest, self.remove(source, oldest)?))
    }

    /// Removes the oldest entry of a source.
    pub(crate) fn pop_oldest(&mut self, source: Source) -> Option<(u64, T)> {
        self.change(source, BTreeMap::pop_first)
    }

    /// Removes the oldest entry of the source that follows `last`, so that the sources take turns.
    pub(crate) fn pop_next(&mut self, last: Option<Source>) -> Option<(Source, u64, T)> {
        let after = last.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.entries.range((after, Bound::Unbounded)).next().or_else(|| self.entries.iter().next());
        let source = next.map(|(source, _)| *source)?;
        let (number, entry) = self.pop_oldest(source)?;
        Some((source, number, entry))
    }

    fn change<R>(&mut self, source: Source, change: impl FnOnce(&mut BTreeMap<u64, T>) -> R) -> R {
        let entries = self.entries.entry(source).or_default();
        let rank = |entries: &BTreeMap<u64, T>| {
            let (oldest, _) = entries.first_key_value()?;
            Some((entries.len(), Reverse(*oldest), source))
        };
        let before = rank(entries);
        let result = change(entries);
        let after = rank(entries);
        if before != after {
            if let Some(before) = before {
                self.length -= before.0;
                self.fullest.remove(&before);
            }
            if let Some(after) = after {
                self.length += after.0;
                self.fullest.insert(after);
            }
        }
        if after.is_none() {
            self.entries.remove(&source);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn source(text: &str) -> Source {
        Source::of(text.parse().unwrap())
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_prefix() {
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:0:0:1"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
    }

    #[test]
    fn sources_take_turns_and_the_fullest_gives_way() {
        let mut entries = BySource::default();
        for (number, from) in
            ["192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.3"].iter().enumerate()
        {
            entries.insert(source(from), number as u64, ());
        }
        assert_eq!(entries.pop_fullest(), Some((0, ())));
        // Two sources have two entries each. The oldest entry gives way.
        assert_eq!(entries.pop_fullest(), Some((1, ())));
        assert_eq!(entries.pop_fullest(), Some((3, ())));
        entries.insert(source("192.0.2.1"), 6, ());
        let mut last = None;
        let order: Vec<u64> = std::iter::from_fn(|| {
            let (from, number, ()) = entries.pop_next(last)?;
            last = Some(from);
            Some(number)
        })
        .collect();
        assert_eq!(order, [2, 4, 5, 6]);
        assert_eq!(entries.len(), 0);
    }

    proptest! {
        #[test]
        fn the_fullest_source_is_found_like_by_a_scan(steps in prop::collection::vec((0..4u8, 0..4u8), 1..200)) {
            let mut entries = BySource::default();
            let mut model: Vec<(u8, u64)> = Vec::new();
            for (number, (from, step)) in (0..).zip(steps) {
                let at = Source::of([192, 0, 2, from].into());
                match step {
                    0 => {
                        let place = model.iter().position(|(other, _)| *other == from);
                        let removed = place.map(|place| model.remove(place).1);
                        prop_assert_eq!(removed.and_then(|number| entries.remove(at, number)), removed.map(|_| from));
                    }
                    1 => {
                        let count = |of: u8| model.iter().filter(|(other, _)| *other == of).count();
                        let oldest = model.iter().min_by_key(|(of, number)| (Reverse(count(*of)), *number)).copied();
                        model.retain(|entry| Some(*entry) != oldest);
                        prop_assert_eq!(entries.pop_fullest(), oldest.map(|(from, number)| (number, from)));
                    }
                    _ => {
                        model.push((from, number));
                        entries.insert(at, number, from);
                    }
                }
                prop_assert_eq!(entries.len(), model.len());
            }
        }
    }
}
