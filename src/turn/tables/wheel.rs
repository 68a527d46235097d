//! The timer wheel: one-second slots, one entry per allocation.
//!
//! An entry is filed under the second of the allocation's next deadline. If the deadline moves later, the entry stays
//! where it is, and its owner files it again when it fires. If the deadline moves earlier, the entry moves. The slots
//! are linked lists through the entries, so filing, moving and cancelling are O(1), and no stale entries remain.

use crate::turn::time::{Deadline, Instant};

/// More than the longest lifetime (3600 s), so that a slot never holds two different seconds.
const SLOTS: usize = 4096;
const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct Wheel {
    /// The first entry of each slot.
    heads: Vec<u32>,
    /// Indexed by key, which is the allocation's slab index.
    entries: Vec<Entry>,
    /// The next second to process. Every entry is filed under this second or a later one.
    next_second: u64,
    filed: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    previous: u32,
    next: u32,
    /// [`NO_SECOND`] while the entry is in no slot.
    second: u64,
}

const NO_SECOND: u64 = u64::MAX;
const UNFILED: Entry = Entry { previous: NONE, next: NONE, second: NO_SECOND };

#[expect(
    clippy::indexing_slicing,
    reason = "slots are indices modulo SLOTS, the vector grows before a key is used, links refer to filed entries"
)]
impl Wheel {
    pub(crate) fn new() -> Self {
        Self { heads: vec![NONE; SLOTS], entries: Vec::new(), next_second: 0, filed: 0 }
    }

    /// Files `key` under the first whole second at which `deadline` has passed, but not before the next second to
    /// process. An entry that is filed under an earlier second stays there.
    pub(crate) fn file(&mut self, key: u32, deadline: Deadline) {
        let index = key as usize;
        if self.entries.len() <= index {
            self.entries.resize(index + 1, UNFILED);
        }
        // A deadline beyond the horizon fires early and is filed again.
        let horizon = self.next_second + SLOTS as u64 - 1;
        let second = deadline.second().clamp(self.next_second, horizon);
        match self.entries[index].second {
            NO_SECOND => {}
            filed if filed <= second => return,
            _ => self.cancel(key),
        }
        let slot = Self::slot(second);
        let head = self.heads[slot];
        self.entries[index] = Entry { previous: NONE, next: head, second };
        if head != NONE {
            self.entries[head as usize].previous = key;
        }
        self.heads[slot] = key;
        self.filed += 1;
    }

    /// Removes `key` from the wheel, if it is filed.
    pub(crate) fn cancel(&mut self, key: u32) {
        let Some(entry) = self.entries.get(key as usize).copied() else { return };
        if entry.second == NO_SECOND {
            return;
        }
        if entry.previous == NONE {
            self.heads[Self::slot(entry.second)] = entry.next;
        } else {
            self.entries[entry.previous as usize].next = entry.next;
        }
        if entry.next != NONE {
            self.entries[entry.next as usize].previous = entry.previous;
        }
        self.entries[key as usize] = UNFILED;
        self.filed -= 1;
    }

    /// Removes and returns one key whose second has passed.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<u32> {
        let due = now.second();
        if self.filed == 0 {
            self.next_second = self.next_second.max(due);
            return None;
        }
        while self.next_second <= due {
            let key = self.heads[Self::slot(self.next_second)];
            if key != NONE {
                self.cancel(key);
                return Some(key);
            }
            self.next_second += 1;
        }
        None
    }

    #[expect(clippy::cast_possible_truncation, reason = "the remainder is below SLOTS")]
    fn slot(second: u64) -> usize {
        (second % SLOTS as u64) as usize
    }

    /// Returns the second that `key` is filed under. For `Table::check_invariants`.
    pub(crate) fn filed_second(&self, key: u32) -> Option<u64> {
        self.entries.get(key as usize).map(|entry| entry.second).filter(|second| *second != NO_SECOND)
    }

    pub(crate) fn len(&self) -> usize {
        self.filed
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn at(second: u64) -> Instant {
        Instant::from_elapsed(Duration::from_secs(second))
    }

    fn deadline(second: u64) -> Deadline {
        Deadline::after(at(0), Duration::from_secs(second))
    }

    fn drain(wheel: &mut Wheel, now: Instant) -> Vec<u32> {
        std::iter::from_fn(|| wheel.pop(now)).collect()
    }

    #[test]
    fn fires_at_its_second_and_not_before() {
        let mut wheel = Wheel::new();
        wheel.file(3, deadline(10));
        assert!(drain(&mut wheel, at(9)).is_empty());
        assert_eq!(drain(&mut wheel, at(10)), [3]);
        assert!(drain(&mut wheel, at(11)).is_empty());
    }

    #[test]
    fn a_deadline_between_two_seconds_fires_at_the_later_one() {
        let mut wheel = Wheel::new();
        wheel.file(0, Deadline::after(at(0), Duration::from_millis(1_001)));
        assert!(drain(&mut wheel, at(1)).is_empty());
        assert_eq!(drain(&mut wheel, at(2)), [0]);
    }

    #[test]
    fn a_later_deadline_leaves_the_entry_and_an_earlier_one_moves_it() {
        let mut wheel = Wheel::new();
        wheel.file(1, deadline(20));
        wheel.file(1, deadline(30));
        assert_eq!(wheel.filed_second(1), Some(20));
        wheel.file(1, deadline(5));
        assert_eq!(wheel.filed_second(1), Some(5));
        assert_eq!(wheel.len(), 1);
    }

    #[test]
    fn a_deadline_past_the_horizon_fires_early() {
        let mut wheel = Wheel::new();
        wheel.file(1, deadline(1_000_000));
        assert_eq!(drain(&mut wheel, at(SLOTS as u64)), [1]);
    }

    #[test]
    fn an_empty_wheel_skips_idle_time() {
        let mut wheel = Wheel::new();
        assert!(drain(&mut wheel, at(u64::MAX / 1000)).is_empty());
        wheel.file(1, deadline(1));
        assert_eq!(drain(&mut wheel, at(u64::MAX / 1000)), [1]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        File(u32, u64),
        Cancel(u32),
        Advance(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..16u32, 1..=3_600u64).prop_map(|(key, second)| Step::File(key, second)),
            (0..16u32).prop_map(Step::Cancel),
            (0..700u64).prop_map(Step::Advance),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_sorted_map(steps in prop::collection::vec(step(), 1..200)) {
            let mut wheel = Wheel::new();
            let mut model = BTreeMap::<u32, u64>::new();
            let mut now = 0;
            for step in steps {
                match step {
                    Step::File(key, pause) => {
                        wheel.file(key, deadline(now + pause));
                        let due = model.entry(key).or_insert(now + pause);
                        *due = (*due).min(now + pause);
                    }
                    Step::Cancel(key) => {
                        wheel.cancel(key);
                        model.remove(&key);
                    }
                    Step::Advance(by) => {
                        now += by;
                        for key in drain(&mut wheel, at(now)) {
                            prop_assert!(model.remove(&key).unwrap() <= now, "{} fired early", key);
                        }
                        prop_assert!(model.values().all(|due| *due > now), "one fired late");
                    }
                }
                prop_assert_eq!(wheel.len(), model.len());
            }
        }
    }
}
