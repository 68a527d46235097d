//! A histogram of latencies. Buckets grow with the value, so each value is accurate to 1.6 %.

/// The binary logarithm of the number of buckets per doubling of the value.
const PRECISION: u32 = 6;

const STEPS: u64 = 1 << PRECISION;

/// Counts values.
#[derive(Default)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    /// Counts one value.
    pub(crate) fn add(&mut self, value: u64) {
        let bucket = bucket_of(value);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
            self.total += 1;
        }
    }

    /// Returns the quantile for `share` (0.5 for the median): the value that this share of all values does not exceed,
    /// rounded up to the end of its bucket. `None` if there are no values.
    pub(crate) fn quantile(&self, share: f64) -> Option<u64> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank is between 1 and the total"
        )]
        let rank = ((self.total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(last_value_of(bucket))
    }
}

fn bucket_of(value: u64) -> usize {
    let doublings = value.max(1).ilog2().saturating_sub(PRECISION);
    let bucket = u64::from(doublings) * STEPS + (value >> doublings);
    usize::try_from(bucket).unwrap_or(usize::MAX)
}

fn last_value_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * STEPS {
        return bucket;
    }
    let doublings = bucket / STEPS - 1;
    let first = (bucket - doublings * STEPS) << doublings;
    first + ((1 << doublings) - 1)
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "a benchmark is built with cfg(test), but without its tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::default();
        values.into_iter().for_each(|value| histogram.add(value));
        histogram
    }

    #[test]
    fn nothing_has_no_quantile() {
        assert_eq!(Histogram::default().quantile(0.5), None);
    }

    #[test]
    fn quantiles_of_small_values_are_exact() {
        let histogram = of(1..=100);
        assert_eq!([0.0, 0.01, 0.5, 0.99, 1.0].map(|share| histogram.quantile(share).unwrap()), [1, 1, 50, 99, 100]);
    }

    // With one slow packet in a hundred, the 99th percentile is fast. With two, it is slow.
    #[test]
    fn the_tail_appears_in_the_right_quantile() {
        let fast = std::iter::repeat_n(10, 99);
        assert_eq!(of(fast.clone().chain([5_000])).quantile(0.99), Some(10));
        assert!(of(fast.chain([5_000, 5_000])).quantile(0.99).unwrap() >= 5_000);
    }

    proptest! {
        #[test]
        fn a_value_is_accurate_to_a_sixtieth(value in 0_u64..1 << 50) {
            let found = of([value]).quantile(0.5).unwrap();
            prop_assert!(value <= found && found - value <= value / 60, "{value} became {found}");
        }

        #[test]
        fn larger_values_are_in_later_buckets(value in 0_u64..1 << 50, more in 0_u64..1 << 50) {
            prop_assert!(bucket_of(value) <= bucket_of(value + more));
        }
    }
}
