//! The slots of the counters that a worker uses, and what they have counted.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::offload::layout::Counter;
use crate::offload::maps::Maps;
use crate::turn::{Direction, SocketId};

/// The number of consecutive slots that a worker takes at a time, and that one call of the kernel reads.
const BLOCK: u32 = 64;

/// Which blocks of slots workers use.
#[derive(Debug)]
pub(crate) struct Blocks(Box<[AtomicBool]>);

impl Blocks {
    /// Divides slots into blocks. A rest that is no whole block is not used.
    pub(crate) fn new(slots: u32) -> Self {
        Self((0..slots / BLOCK).map(|_| AtomicBool::new(false)).collect())
    }

    fn take(&self) -> Option<u32> {
        // Relaxed: no other memory depends on it. Who takes a block reads its counters from the kernel.
        let take = |used: &AtomicBool| used.compare_exchange(false, true, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        self.0.iter().position(take).and_then(|number| u32::try_from(number).ok())
    }

    fn give_back(&self, block: u32) {
        if let Some(used) = self.0.get(block as usize) {
            used.store(false, Ordering::Relaxed);
        }
    }
}

/// Packets that the program has relayed and that are not yet credited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Relayed {
    pub(crate) socket: SocketId,
    pub(crate) direction: Direction,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// The slots of a worker.
#[derive(Debug)]
pub(super) struct Counting {
    all: Arc<Blocks>,
    /// Each block by its number.
    blocks: BTreeMap<u32, Block>,
    /// Free slots.
    free: Vec<u32>,
}

type Block = Box<[Slot; BLOCK as usize]>;

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// What is credited.
    seen: Counter,
    user: User,
    /// The packets of earlier users.
    at_start: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum User {
    None,
    Entry(SocketId, Direction),
    /// The entry has been removed. A packet that was being relayed then may still be counted, so the slot is free only
    /// after it was read this often.
    Former(SocketId, Direction, u8),
}

/// The readings after which a slot is free. The second one is at least a second after the removal of the entry.
const READINGS: u8 = 2;

impl Counting {
    pub(super) fn new(all: Arc<Blocks>) -> Self {
        Self { all, blocks: BTreeMap::new(), free: Vec::new() }
    }

    /// Returns a slot for an entry; `None` if all slots are in use.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(super) fn take(&mut self, maps: &mut Maps, socket: SocketId, direction: Direction) -> io::Result<Option<u32>> {
        if self.free.is_empty() && !self.add_block(maps)? {
            return Ok(None);
        }
        let Some(slot) = self.free.pop() else { return Ok(None) };
        if let Some(slot) = self.slot(slot) {
            *slot = Slot { user: User::Entry(socket, direction), at_start: slot.seen.packets, ..*slot };
        }
        Ok(Some(slot))
    }

    fn add_block(&mut self, maps: &mut Maps) -> io::Result<bool> {
        let Some(number) = self.all.take() else { return Ok(false) };
        let first = number * BLOCK;
        let mut counters = [Counter::default(); BLOCK as usize];
        // Another worker may have used them.
        if let Err(error) = maps.read_counters(first, &mut counters) {
            self.all.give_back(number);
            return Err(error);
        }
        self.blocks.insert(number, Box::new(counters.map(|seen| Slot { seen, user: User::None, at_start: 0 })));
        self.free.extend((first..first + BLOCK).rev());
        Ok(true)
    }

    /// Notes that the entry of a slot has been removed.
    pub(super) fn release(&mut self, slot: u32) {
        if let Some(slot) = self.slot(slot)
            && let User::Entry(socket, direction) = slot.user
        {
            slot.user = User::Former(socket, direction, READINGS);
        }
    }

    /// Reads one slot.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(super) fn read_one(&mut self, maps: &mut Maps, slot: u32) -> io::Result<Option<Relayed>> {
        let mut counters = [Counter::default()];
        maps.read_counters(slot, &mut counters)?;
        let [counter] = counters;
        Ok(self.slot(slot).and_then(|slot| slot.advance(counter)))
    }

    /// Returns the time of `CLOCK_MONOTONIC` of the last packet that a reading has shown, in nanoseconds; `None` without
    /// such a packet since the slot was taken.
    pub(super) fn last(&self, slot: u32) -> Option<u64> {
        let slot = self.blocks.get(&(slot / BLOCK))?.get(usize::try_from(slot % BLOCK).ok()?)?;
        (slot.seen.packets > slot.at_start).then_some(slot.seen.last)
    }

    /// Returns the block after another one; the first one after `None`.
    pub(super) fn block_after(&self, number: Option<u32>) -> Option<u32> {
        let after = number.map_or(Unbounded, Excluded);
        self.blocks.range((after, Unbounded)).next().map(|(number, _)| *number)
    }

    /// Reads the slots of a block, and frees those that are no longer used. Calls `credit` for each that has counted
    /// packets.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(super) fn read_block(
        &mut self,
        maps: &mut Maps,
        number: u32,
        mut credit: impl FnMut(Relayed),
    ) -> io::Result<()> {
        let Some(block) = self.blocks.get_mut(&number).filter(|block| is_used(block)) else { return Ok(()) };
        let mut counters = [Counter::default(); BLOCK as usize];
        let first = number * BLOCK;
        maps.read_counters(first, &mut counters)?;
        for ((number, slot), counter) in (first..).zip(block.iter_mut()).zip(counters) {
            if let Some(relayed) = slot.advance(counter) {
                credit(relayed);
            }
            slot.user = match slot.user {
                User::Former(socket, direction, left @ 2..) => User::Former(socket, direction, left - 1),
                User::Former(..) => {
                    self.free.push(number);
                    User::None
                }
                user => user,
            };
        }
        Ok(())
    }

    /// Gives blocks back that have no slots in use, but one.
    pub(super) fn give_back(&mut self) {
        let unused = self.blocks.iter().filter(|(_, block)| !is_used(block)).map(|(number, _)| *number);
        let unused: Vec<u32> = unused.skip(1).collect();
        if unused.is_empty() {
            return;
        }
        self.free.retain(|slot| !unused.contains(&(slot / BLOCK)));
        for number in unused {
            self.blocks.remove(&number);
            self.all.give_back(number);
        }
    }

    fn slot(&mut self, slot: u32) -> Option<&mut Slot> {
        self.blocks.get_mut(&(slot / BLOCK))?.get_mut(usize::try_from(slot % BLOCK).ok()?)
    }
}

impl Slot {
    /// Returns what has been counted since the last reading.
    fn advance(&mut self, counter: Counter) -> Option<Relayed> {
        let seen = std::mem::replace(&mut self.seen, counter);
        let (User::Entry(socket, direction) | User::Former(socket, direction, _)) = self.user else { return None };
        let (packets, bytes) = (counter.packets.wrapping_sub(seen.packets), counter.bytes.wrapping_sub(seen.bytes));
        (packets > 0).then_some(Relayed { socket, direction, packets, bytes })
    }
}

fn is_used(block: &Block) -> bool {
    block.iter().any(|slot| slot.user != User::None)
}
