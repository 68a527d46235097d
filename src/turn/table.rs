//! The allocation table: a slab and its index by 5-tuple. The index by relay socket is the slab itself, since a
//! [`RelayId`] names a place in it.

use std::collections::HashMap;

use slab::Slab;

use super::allocation::Allocation;
use super::contract::{AllocationId, FiveTuple, RelayId};
use super::time::Instant;
use super::wheel::Wheel;

#[derive(Debug)]
pub(super) struct Table {
    slab: Slab<Entry>,
    by_tuple: HashMap<FiveTuple, u32>,
    wheel: Wheel,
    /// Distinguishes an allocation from an earlier one in the same place.
    next_generation: u32,
}

#[derive(Debug)]
struct Entry {
    generation: u32,
    allocation: Allocation,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { slab: Slab::new(), by_tuple: HashMap::new(), wheel: Wheel::new(), next_generation: 0 }
    }

    /// Adds an allocation, whose 5-tuple has none.
    pub(super) fn insert(&mut self, allocation: Allocation) -> AllocationId {
        let generation = self.next_generation;
        self.next_generation = self.next_generation.wrapping_add(1);
        let (tuple, deadline) = (allocation.tuple, allocation.next_deadline());
        #[expect(clippy::cast_possible_truncation, reason = "there are fewer allocations than relay ports")]
        let place = self.slab.insert(Entry { generation, allocation }) as u32;
        let previous = self.by_tuple.insert(tuple, place);
        debug_assert!(previous.is_none(), "a 5-tuple has one allocation");
        self.wheel.file(place, deadline);
        AllocationId { place, generation }
    }

    pub(super) fn remove(&mut self, id: AllocationId) -> Option<Allocation> {
        self.get(id)?;
        let entry = self.slab.try_remove(id.place as usize)?;
        self.by_tuple.remove(&entry.allocation.tuple);
        self.wheel.cancel(id.place);
        Some(entry.allocation)
    }

    pub(super) fn find(&self, tuple: &FiveTuple) -> Option<AllocationId> {
        self.id_at(*self.by_tuple.get(tuple)?)
    }

    /// The allocation of a 5-tuple, unless it is not open yet or its time has come.
    pub(super) fn find_open(&mut self, tuple: &FiveTuple, now: Instant) -> Option<(AllocationId, &mut Allocation)> {
        let id = self.find(tuple)?;
        self.get_mut(id).filter(|allocation| allocation.is_open(now)).map(|allocation| (id, allocation))
    }

    /// The allocation of a relay socket, unless the relayed transport address is over.
    pub(super) fn find_by_relay(&mut self, relay: RelayId, now: Instant) -> Option<&mut Allocation> {
        self.get_mut(relay.allocation()).filter(|allocation| allocation.has(relay.family(), now))
    }

    pub(super) fn get(&self, id: AllocationId) -> Option<&Allocation> {
        let entry = self.slab.get(id.place as usize)?;
        (entry.generation == id.generation).then_some(&entry.allocation)
    }

    /// After a change to its deadlines, the allocation must be handed to [`reschedule`](Self::reschedule).
    pub(super) fn get_mut(&mut self, id: AllocationId) -> Option<&mut Allocation> {
        let entry = self.slab.get_mut(id.place as usize)?;
        (entry.generation == id.generation).then_some(&mut entry.allocation)
    }

    /// Takes note of a deadline of the allocation that may be earlier than the others.
    pub(super) fn reschedule(&mut self, id: AllocationId) {
        if let Some(allocation) = self.get(id) {
            let deadline = allocation.next_deadline();
            self.wheel.file(id.place, deadline);
        }
    }

    /// One allocation that may have something to expire; it must be removed or rescheduled.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<AllocationId> {
        let place = self.wheel.pop(now)?;
        self.id_at(place)
    }

    /// Some allocation, if there is any.
    pub(super) fn any(&self) -> Option<AllocationId> {
        let (place, entry) = self.slab.iter().next()?;
        Some(AllocationId { place: u32::try_from(place).ok()?, generation: entry.generation })
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Allocation> {
        self.slab.iter().map(|(_, entry)| &entry.allocation)
    }

    fn id_at(&self, place: u32) -> Option<AllocationId> {
        self.slab.get(place as usize).map(|entry| AllocationId { place, generation: entry.generation })
    }

    /// Panics unless slab, index and wheel agree.
    pub(super) fn check_invariants(&self) {
        assert_eq!(self.slab.len(), self.by_tuple.len(), "every allocation is indexed once");
        assert_eq!(self.slab.len(), self.wheel.len(), "every allocation is filed once");
        for (place, entry) in &self.slab {
            let place = u32::try_from(place).expect("places are small");
            assert_eq!(self.by_tuple.get(&entry.allocation.tuple), Some(&place), "the index names the place");
            let filed = self.wheel.filed_second(place).expect("every allocation is filed");
            assert!(filed <= entry.allocation.next_deadline().second(), "the wheel fires in time");
            entry.allocation.channels.check_invariants();
        }
    }
}
