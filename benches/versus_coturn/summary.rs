//! Several rounds of one figure in three numbers, and whether they reach a goal.

use crate::scenario::Goal;

/// The middle and the ends of the rounds of one figure.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Summary {
    /// Of these values; `None` of nothing.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let (middle, even) = (sorted.len() / 2, sorted.len().is_multiple_of(2));
        let upper = *sorted.get(middle)?;
        let median = if even { (sorted.get(middle - 1)? + upper) / 2.0 } else { upper };
        Some(Self { median, least, most })
    }
}

/// The ratios of rounds that ran one after the other, ours to coturn's, in their middle: what the machine did
/// meanwhile has changed both. `None` where coturn's is 0 or a round is missing.
pub(crate) fn ratio(ours: &[f64], coturn: &[f64]) -> Option<f64> {
    let ratios: Vec<f64> = ours.iter().zip(coturn).map(|(ours, coturn)| ours / coturn).collect();
    let usable = ours.len() == coturn.len() && ratios.iter().all(|ratio| ratio.is_finite());
    Summary::of(&ratios).filter(|_| usable).map(|summary| summary.median)
}

impl Goal {
    /// Whether it is reached; `None` where it cannot be told.
    pub(crate) fn reached(self, ours: f64, ratio: Option<f64>) -> Option<bool> {
        match self {
            Self::RatioAtMost(most) => ratio.map(|ratio| ratio <= most),
            Self::RatioAtLeast(least) => ratio.map(|ratio| ratio >= least),
            Self::AtMost(most) => Some(ours <= most),
        }
    }

    /// As the table has it.
    pub(crate) fn label(self) -> String {
        match self {
            Self::RatioAtMost(most) => format!("≤ {most} ×"),
            Self::RatioAtLeast(least) => format!("≥ {least} ×"),
            Self::AtMost(most) => format!("≤ {most}"),
        }
    }
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "a benchmark is built with cfg(test), but without its tests")]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[3.0, 1.0, 9.0]), Some(Summary { median: 3.0, least: 1.0, most: 9.0 }));
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 9.0]), Some(Summary { median: 3.0, least: 1.0, most: 9.0 }));
        assert_eq!(Summary::of(&[7.0]), Some(Summary { median: 7.0, least: 7.0, most: 7.0 }));
    }

    // The middle of the ratios, not the ratio of the middles: 2/4, 30/20, 5/10.
    #[test]
    fn rounds_are_compared_with_their_neighbours() {
        assert_eq!(ratio(&[2.0, 30.0, 5.0], &[4.0, 20.0, 10.0]), Some(0.5));
    }

    #[test]
    fn there_is_no_ratio_to_nothing() {
        assert_eq!(ratio(&[1.0], &[0.0]), None);
        assert_eq!(ratio(&[0.0], &[0.0]), None);
        assert_eq!(ratio(&[1.0, 2.0], &[1.0]), None);
        assert_eq!(ratio(&[], &[]), None);
    }

    #[test]
    fn a_goal_is_reached_at_its_limit() {
        assert_eq!(Goal::RatioAtMost(0.5).reached(9.0, Some(0.5)), Some(true));
        assert_eq!(Goal::RatioAtMost(0.5).reached(0.1, Some(0.51)), Some(false));
        assert_eq!(Goal::RatioAtLeast(1.4).reached(0.0, Some(1.4)), Some(true));
        assert_eq!(Goal::RatioAtLeast(1.4).reached(9.0, Some(1.3)), Some(false));
        assert_eq!(Goal::RatioAtLeast(1.4).reached(9.0, None), None);
        assert_eq!(Goal::AtMost(0.0).reached(0.0, None), Some(true));
        assert_eq!(Goal::AtMost(500.0).reached(500.1, Some(0.1)), Some(false));
    }
}
