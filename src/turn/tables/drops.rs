//! The dropped packets of one allocation by reason.

use crate::turn::outcome::DropReason;

/// Counts dropped packets. The first one allocates the counters, because most allocations drop nothing.
#[derive(Debug, Default)]
pub(crate) struct Drops(Option<Box<[u64; DropReason::ALL.len()]>>);

impl Drops {
    #[cold]
    pub(crate) fn add(&mut self, reason: DropReason, packets: u64) {
        let counts = self.0.get_or_insert_with(|| Box::new([0; DropReason::ALL.len()]));
        if let Some(count) = counts.get_mut(reason as usize) {
            *count += packets;
        }
    }

    /// Returns each reason that occurred, with its count.
    pub(crate) fn occurred(&self) -> impl Iterator<Item = (DropReason, u64)> {
        let counts = self.0.iter().flat_map(|counts| counts.iter().copied());
        DropReason::ALL.iter().copied().zip(counts).filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_count_of_its_own_and_nothing_is_allocated_without_drops() {
        assert_eq!(size_of::<Drops>(), size_of::<usize>());
        let mut drops = Drops::default();
        assert_eq!((drops.occurred().count(), drops.0.is_none()), (0, true));
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            drops.add(*reason, 1 + index as u64);
        }
        drops.add(DropReason::SendFailed, 100);
        let last = DropReason::ALL.len() as u64;
        let expected = DropReason::ALL.iter().copied().zip(1..=last);
        let expected =
            expected.map(|(reason, count)| (reason, count + 100 * u64::from(reason == DropReason::SendFailed)));
        assert!(drops.occurred().eq(expected));
    }
}
