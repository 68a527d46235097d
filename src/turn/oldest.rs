//! The search for the oldest allocations, in steps, so that no packet waits for the search through all.

use std::time::Duration;

use super::contract::AllocationId;
use super::inspect::{AllocationInfo, Cursor, info};
use super::server::Server;
use super::time::Instant;

/// The oldest allocations that a search has found so far.
#[derive(Clone, Debug)]
pub struct Oldest {
    /// When the search began.
    start: Instant,
    most: usize,
    /// The oldest first.
    found: Vec<(Duration, AllocationId)>,
}

impl Oldest {
    /// Begins a search for up to `most` allocations.
    #[must_use]
    pub fn new(start: Instant, most: usize) -> Self {
        Self { start, most, found: Vec::new() }
    }

    fn offer(&mut self, created: Instant, id: AllocationId) {
        let age = self.start.since(created);
        let place = self.found.partition_point(|(other, _)| *other >= age);
        if place < self.most {
            self.found.insert(place, (age, id));
            self.found.truncate(self.most);
        }
    }
}

impl Server {
    /// Continues a search with up to `most` allocations from `cursor` on. Returns where it continues; `None` at the
    /// end.
    pub fn seek_oldest(&self, now: Instant, cursor: Cursor, most: usize, oldest: &mut Oldest) -> Option<Cursor> {
        let (mut examined, mut last) = (0, None);
        for (id, allocation) in self.table.iter_from(cursor.place()).take(most) {
            examined += 1;
            last = Some(Cursor::after(id));
            if allocation.is_open(now) {
                oldest.offer(allocation.created, id);
            }
        }
        last.filter(|_| examined == most)
    }

    /// Returns those allocations of a search that are still open, the oldest first.
    #[must_use]
    pub fn found_oldest(&self, now: Instant, oldest: &Oldest) -> Vec<AllocationInfo> {
        let open = |id: &AllocationId| self.table.get(*id).filter(|allocation| allocation.is_open(now));
        oldest.found.iter().filter_map(|(_, id)| Some(info(*id, open(id)?, now))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_kept_in_the_order_of_their_age() {
        let at = |second| Instant::from_elapsed(Duration::from_secs(second));
        let id = |place| AllocationId { place, generation: 0 };
        let mut oldest = Oldest::new(at(100), 3);
        for (place, created) in [(0, 50), (1, 10), (2, 90), (3, 40), (4, 10), (5, 120)] {
            oldest.offer(at(created), id(place));
        }
        assert_eq!(oldest.found.iter().map(|(_, id)| id.place).collect::<Vec<_>>(), [1, 4, 3]);
        let mut none = Oldest::new(at(100), 0);
        none.offer(at(1), id(0));
        assert!(none.found.is_empty());
    }
}
