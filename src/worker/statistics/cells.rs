//! The memory cells of the statistics: one thread writes them, others read them at any time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A counter or a gauge.
#[derive(Debug, Default)]
pub(super) struct Cell(AtomicU64);

impl Cell {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Adds to the value. No other thread writes it, so a load and a store suffice.
    pub(super) fn add(&self, amount: u64) {
        self.set(self.get().wrapping_add(amount));
    }

    pub(super) fn subtract(&self, amount: u64) {
        self.set(self.get().wrapping_sub(amount));
    }
}

/// An array of counters or gauges.
#[derive(Debug)]
pub(super) struct Cells<const N: usize>([Cell; N]);

impl<const N: usize> Default for Cells<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Cell::default()))
    }
}

impl<const N: usize> Cells<N> {
    /// Returns the cell with this index, which must be below `N`.
    #[expect(clippy::indexing_slicing, reason = "the callers use indices of enums, whose tests check them")]
    pub(super) fn at(&self, index: usize) -> &Cell {
        &self.0[index]
    }

    pub(super) fn read(&self) -> [u64; N] {
        self.0.each_ref().map(Cell::get)
    }

    pub(super) fn set(&self, values: [u64; N]) {
        self.0.iter().zip(values).for_each(|(cell, value)| cell.set(value));
    }
}

/// A histogram whose buckets have fixed upper bounds.
#[derive(Debug)]
pub(super) struct Histogram<const N: usize> {
    bounds: &'static [u64; N],
    /// The number of values in each bucket, not including those in lower buckets.
    buckets: Cells<N>,
    above: Cell,
    sum: Cell,
}

impl<const N: usize> Histogram<N> {
    pub(super) fn new(bounds: &'static [u64; N]) -> Self {
        Self { bounds, buckets: Cells::default(), above: Cell::default(), sum: Cell::default() }
    }

    pub(super) fn observe(&self, value: u64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        let bucket = if at < N { self.buckets.at(at) } else { &self.above };
        bucket.add(1);
        self.sum.add(value);
    }

    /// Reads the values; each bucket is exact, but they may be read at slightly different times.
    pub(super) fn read(&self) -> Distribution<N> {
        Distribution { buckets: self.buckets.read(), above: self.above.get(), sum: self.sum.get() }
    }
}

/// The values of a histogram at one moment, of one worker or of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Distribution<const N: usize> {
    /// The number of values in each bucket, not including those in lower buckets.
    pub(crate) buckets: [u64; N],
    /// The number of values above the last bucket.
    pub(crate) above: u64,
    /// The sum of all values.
    pub(crate) sum: u64,
}

impl<const N: usize> Default for Distribution<N> {
    fn default() -> Self {
        Self { buckets: [0; N], above: 0, sum: 0 }
    }
}

impl<const N: usize> Distribution<N> {
    pub(super) fn add(&mut self, other: &Self) {
        add_all(&mut self.buckets, &other.buckets);
        self.above += other.above;
        self.sum += other.sum;
    }
}

/// Adds the values of another worker.
pub(super) fn add_all(to: &mut [u64], values: &[u64]) {
    to.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

/// Returns whole microseconds: enough for 584 000 years.
pub(super) fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let histogram = Histogram::new(&[10, 100]);
        for value in [0, 10, 11, 100, 101, 1_000] {
            histogram.observe(value);
        }
        let read = histogram.read();
        assert_eq!(read, Distribution { buckets: [2, 2], above: 2, sum: 1_222 });
        let mut both = read.clone();
        both.add(&read);
        assert_eq!(both, Distribution { buckets: [4, 4], above: 4, sum: 2_444 });
    }
}
