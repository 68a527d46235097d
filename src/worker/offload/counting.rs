//! The slots of the counters that a worker uses, and what they have counted.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Leg;
use crate::offload::layout::Counter;
use crate::offload::maps::Maps;
use crate::offload::program::BLOCK;
use crate::turn::{Direction, SocketId};

/// Which blocks of slots workers use.
#[derive(Debug)]
pub(crate) struct Blocks(Box<[AtomicBool]>);

impl Blocks {
    /// Divides slots into blocks. A rest that is no whole block is not used.
    pub(crate) fn new(slots: u32) -> Self {
        Self((0..slots / BLOCK).map(|_| AtomicBool::new(false)).collect())
    }

    pub(super) fn take(&self) -> Option<u32> {
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
pub(super) struct Slot {
    /// What is credited.
    seen: Counter,
    user: User,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum User {
    None,
    Entry(SocketId, Leg),
    /// The entry has been removed. A packet that was being relayed then may still be counted, so the slot is free only
    /// after it was read this often.
    Former(SocketId, Direction, u8),
}

/// The slots of a block from which on reading the whole block costs less than reading them.
const WORTH_A_BLOCK: usize = 14;

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
    pub(super) fn take(&mut self, maps: &mut Maps, socket: SocketId, leg: Leg) -> io::Result<Option<u32>> {
        if self.free.is_empty() && !self.add_block(maps)? {
            return Ok(None);
        }
        let Some(slot) = self.free.pop() else { return Ok(None) };
        if let Some(slot) = self.slot(slot) {
            slot.user = User::Entry(socket, leg);
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
        self.blocks.insert(number, Box::new(counters.map(|seen| Slot { seen, user: User::None })));
        self.free.extend((first..first + BLOCK).rev());
        Ok(true)
    }

    /// Reads the slots of entries that have been removed, and frees them later. Calls `credit` for each that has counted
    /// packets, with the direction if it has an entry.
    ///
    /// # Errors
    /// Those of the kernel. The slots are freed all the same.
    pub(super) fn release(
        &mut self,
        maps: &mut Maps,
        mut slots: Vec<u32>,
        mut credit: impl FnMut(Relayed, Option<Leg>),
    ) -> io::Result<()> {
        let mut result = Ok(());
        slots.sort_unstable();
        for slots in slots.chunk_by(|one, other| one / BLOCK == other / BLOCK) {
            let Some(first) = slots.first() else { continue };
            // Reading a whole block costs as much as reading some of its slots one by one.
            result = result.and(if slots.len() >= WORTH_A_BLOCK {
                self.read_slots(maps, first / BLOCK, &mut credit)
            } else {
                slots.iter().try_for_each(|slot| {
                    self.read_one(maps, *slot)?.into_iter().for_each(|relayed| credit(relayed, None));
                    Ok(())
                })
            });
            for slot in slots {
                if let Some(slot) = self.slot(*slot)
                    && let User::Entry(socket, Leg { direction, .. }) = slot.user
                {
                    slot.user = User::Former(socket, direction, READINGS);
                }
            }
        }
        result
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

    /// Returns the block after another one; the first one after `None`.
    pub(super) fn block_after(&self, number: Option<u32>) -> Option<u32> {
        let after = number.map_or(Unbounded, Excluded);
        self.blocks.range((after, Unbounded)).next().map(|(number, _)| *number)
    }

    /// Reads the slots of a block once a second, and frees those that are not used. Calls `credit` for each that has
    /// counted packets, with the direction if it has an entry.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(super) fn read_block(
        &mut self,
        maps: &mut Maps,
        number: u32,
        credit: impl FnMut(Relayed, Option<Leg>),
    ) -> io::Result<()> {
        self.read_slots(maps, number, credit)?;
        let Some(block) = self.blocks.get_mut(&number) else { return Ok(()) };
        for (number, slot) in (number * BLOCK..).zip(block.iter_mut()) {
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

    fn read_slots(
        &mut self,
        maps: &mut Maps,
        number: u32,
        mut credit: impl FnMut(Relayed, Option<Leg>),
    ) -> io::Result<()> {
        let Some(block) = self.blocks.get_mut(&number).filter(|block| is_used(block)) else { return Ok(()) };
        let mut counters = [Counter::default(); BLOCK as usize];
        maps.read_counters(number * BLOCK, &mut counters)?;
        for (slot, counter) in block.iter_mut().zip(counters) {
            let leg = slot.leg();
            slot.advance(counter).into_iter().for_each(|relayed| credit(relayed, leg));
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
        for number in unused {
            self.blocks.remove(&number);
            self.all.give_back(number);
        }
        self.free.retain(|slot| self.blocks.contains_key(&(slot / BLOCK)));
    }

    fn slot(&mut self, slot: u32) -> Option<&mut Slot> {
        self.blocks.get_mut(&(slot / BLOCK))?.get_mut(usize::try_from(slot % BLOCK).ok()?)
    }
}

impl Slot {
    /// Returns the direction whose entry counts here.
    fn leg(&self) -> Option<Leg> {
        match self.user {
            User::Entry(_, leg) => Some(leg),
            User::Former(..) | User::None => None,
        }
    }

    /// Returns what has been counted since the last reading.
    fn advance(&mut self, counter: Counter) -> Option<Relayed> {
        let seen = std::mem::replace(&mut self.seen, counter);
        let (User::Entry(socket, Leg { direction, .. }) | User::Former(socket, direction, _)) = self.user else {
            return None;
        };
        let (packets, bytes) = (counter.packets.wrapping_sub(seen.packets), counter.bytes.wrapping_sub(seen.bytes));
        (packets > 0).then_some(Relayed { socket, direction, packets, bytes })
    }
}

fn is_used(block: &Block) -> bool {
    block.iter().any(|slot| slot.user != User::None)
}
