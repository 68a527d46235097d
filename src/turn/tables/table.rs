//! The allocation table: a slab and its index by 5-tuple. A [`SocketId`] contains the place in the slab, so relay
//! sockets need no index.

use std::hash::{BuildHasher as _, RandomState};

use slab::Slab;

use crate::turn::contract::{AllocationId, FiveTuple, SocketId};
use crate::turn::tables::allocation::Allocation;
use crate::turn::tables::wheel::Wheel;
use crate::turn::time::Instant;

/// The maximum number of lists: as many as one relay address has ports.
const MOST_LISTS: usize = 65_536;
const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct Table {
    slab: Slab<Entry>,
    /// The index by 5-tuple: lists of the allocations that share a hash, linked through the slab. The number of lists
    /// depends on the number of ports and is fixed, so no packet waits for the index to grow.
    heads: Box<[u32]>,
    hasher: RandomState,
    wheel: Wheel,
    /// Distinguishes an allocation from an earlier one in the same place.
    next_generation: u32,
}

#[derive(Debug)]
struct Entry {
    generation: u32,
    /// The next entry whose 5-tuple has the same hash.
    next: u32,
    allocation: Allocation,
}

impl Table {
    /// Creates a table for about `room` allocations.
    pub(crate) fn new(room: usize) -> Self {
        let lists = room.next_power_of_two().min(MOST_LISTS);
        Self {
            slab: Slab::new(),
            heads: vec![NONE; lists].into(),
            hasher: RandomState::new(),
            wheel: Wheel::new(),
            next_generation: 0,
        }
    }

    /// Adds an allocation. Its 5-tuple must have none.
    pub(crate) fn insert(&mut self, allocation: Allocation) -> AllocationId {
        debug_assert!(self.find(&allocation.tuple).is_none(), "a 5-tuple has one allocation");
        let generation = self.next_generation;
        self.next_generation = self.next_generation.wrapping_add(1);
        let (list, deadline) = (self.list(&allocation.tuple), allocation.next_deadline());
        let next = self.heads.get(list).copied().unwrap_or(NONE);
        #[expect(clippy::cast_possible_truncation, reason = "there are fewer allocations than relay ports")]
        let place = self.slab.insert(Entry { generation, next, allocation }) as u32;
        if let Some(head) = self.heads.get_mut(list) {
            *head = place;
        }
        self.wheel.file(place, deadline);
        AllocationId { place, generation }
    }

    pub(crate) fn remove(&mut self, id: AllocationId) -> Option<Allocation> {
        let list = self.list(&self.get(id)?.tuple);
        let (mut before, mut place) = (NONE, *self.heads.get(list)?);
        while place != id.place {
            before = place;
            place = self.slab.get(place as usize)?.next;
        }
        let Entry { next, allocation, .. } = self.slab.try_remove(id.place as usize)?;
        let link = match before {
            NONE => self.heads.get_mut(list),
            before => self.slab.get_mut(before as usize).map(|entry| &mut entry.next),
        };
        if let Some(link) = link {
            *link = next;
        }
        self.wheel.cancel(id.place);
        Some(allocation)
    }

    pub(crate) fn find(&self, tuple: &FiveTuple) -> Option<AllocationId> {
        let mut place = *self.heads.get(self.list(tuple))?;
        loop {
            let entry = self.slab.get(place as usize)?;
            if entry.allocation.tuple == *tuple {
                return Some(AllocationId { place, generation: entry.generation });
            }
            place = entry.next;
        }
    }

    /// Returns the list of a 5-tuple. The hash is keyed, so clients cannot make a list long.
    #[expect(clippy::cast_possible_truncation, reason = "the remainder is below the number of lists")]
    fn list(&self, tuple: &FiveTuple) -> usize {
        (self.hasher.hash_one(tuple) % self.heads.len() as u64) as usize
    }

    /// Returns the allocation of a 5-tuple, unless it is not open yet or has expired.
    pub(crate) fn find_open(&mut self, tuple: &FiveTuple, now: Instant) -> Option<(AllocationId, &mut Allocation)> {
        let id = self.find(tuple)?;
        self.get_mut(id).filter(|allocation| allocation.is_open(now)).map(|allocation| (id, allocation))
    }

    /// Returns the open allocation of a 5-tuple.
    pub(crate) fn open_id(&self, tuple: &FiveTuple, now: Instant) -> Option<AllocationId> {
        self.find(tuple).filter(|id| self.get(*id).is_some_and(|allocation| allocation.is_open(now)))
    }

    /// Returns the allocation of a relay socket, unless its relayed transport address has ended.
    pub(crate) fn find_by_socket(&mut self, socket: SocketId, now: Instant) -> Option<&mut Allocation> {
        let live =
            |allocation: &&mut Allocation| allocation.relays.at(socket.index()).is_some_and(|relay| relay.is_live(now));
        self.get_mut(socket.allocation()).filter(live)
    }

    pub(crate) fn get(&self, id: AllocationId) -> Option<&Allocation> {
        let entry = self.slab.get(id.place as usize)?;
        (entry.generation == id.generation).then_some(&entry.allocation)
    }

    /// Returns an allocation for changes. After a change to its deadlines, call [`reschedule`](Self::reschedule).
    pub(crate) fn get_mut(&mut self, id: AllocationId) -> Option<&mut Allocation> {
        let entry = self.slab.get_mut(id.place as usize)?;
        (entry.generation == id.generation).then_some(&mut entry.allocation)
    }

    /// Files the allocation under its earliest deadline.
    pub(crate) fn reschedule(&mut self, id: AllocationId) {
        if let Some(allocation) = self.get(id) {
            let deadline = allocation.next_deadline();
            self.wheel.file(id.place, deadline);
        }
    }

    /// Returns an allocation that has expired, or whose permissions or channels may have expired. The caller must
    /// remove or reschedule it.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<AllocationId> {
        let place = self.wheel.pop(now)?;
        self.id_at(place)
    }

    /// Returns any allocation.
    pub(crate) fn any(&self) -> Option<AllocationId> {
        let (place, entry) = self.slab.iter().next()?;
        Some(AllocationId { place: u32::try_from(place).ok()?, generation: entry.generation })
    }

    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Allocation> {
        self.slab.iter().map(|(_, entry)| &entry.allocation)
    }

    /// Returns the allocations in the places from `place` on, in order.
    pub(crate) fn iter_from(&self, place: u32) -> impl Iterator<Item = (AllocationId, &Allocation)> {
        (place..).take((self.slab.capacity()).saturating_sub(place as usize)).filter_map(|place| {
            let entry = self.slab.get(place as usize)?;
            Some((AllocationId { place, generation: entry.generation }, &entry.allocation))
        })
    }

    fn id_at(&self, place: u32) -> Option<AllocationId> {
        self.slab.get(place as usize).map(|entry| AllocationId { place, generation: entry.generation })
    }

    /// Panics unless slab, index and wheel are consistent.
    pub(crate) fn check_invariants(&self) {
        let next = |place: &u32| self.slab.get(*place as usize).map(|entry| entry.next);
        let lists = self.heads.iter().map(|head| std::iter::successors(Some(*head), next).take_while(|at| *at != NONE));
        // The limit detects circular lists.
        let indexed = lists.flatten().take(self.slab.len() + 1).count();
        assert_eq!(self.slab.len(), indexed, "every allocation is indexed once");
        assert_eq!(self.slab.len(), self.wheel.len(), "every allocation is filed once");
        for (place, entry) in &self.slab {
            let place = u32::try_from(place).expect("places are small");
            let found = self.find(&entry.allocation.tuple).map(|id| id.place);
            assert_eq!(found, Some(place), "the index refers to the place");
            let filed = self.wheel.filed_second(place).expect("every allocation is filed");
            assert!(filed <= entry.allocation.next_deadline().second(), "the wheel fires in time");
            entry.allocation.channels.check_invariants();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // tests/no_allocation.rs measures an allocation with its permissions, channels and identity.
    #[test]
    fn an_entry_is_small() {
        let bytes = size_of::<Entry>();
        assert!(bytes <= 352, "{bytes}");
    }
}
