//! Summarizes the rounds of a figure and compares them with its goal.

use crate::scenario::Goal;

/// The median and the range of the rounds of a figure.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Summary {
    /// Summarizes values. `None` if there are none.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (middle, even) = (sorted.len() / 2, sorted.len().is_multiple_of(2));
        let upper = *sorted.get(middle)?;
        let median = if even { (sorted.get(middle - 1)? + upper) / 2.0 } else { upper };
        Some(Self { median, min, max })
    }
}

/// Returns the median over the rounds of the ratio of our figure to coturn's. The ratio is computed for each round,
/// because other activity on the machine affects both servers of a round. `None` if coturn's figure is 0 or a round is
/// missing.
pub(crate) fn ratio(ours: &[f64], coturn: &[f64]) -> Option<f64> {
    let ratios: Vec<f64> = ours.iter().zip(coturn).map(|(ours, coturn)| ours / coturn).collect();
    let usable = ours.len() == coturn.len() && ratios.iter().all(|ratio| ratio.is_finite());
    Summary::of(&ratios).filter(|_| usable).map(|summary| summary.median)
}

impl Goal {
    /// Returns whether the goal is reached. `None` if there is no ratio.
    pub(crate) fn reached(self, ours: f64, ratio: Option<f64>) -> Option<bool> {
        match self {
            Self::RatioAtMost(max) => ratio.map(|ratio| ratio <= max),
            Self::RatioAtLeast(min) => ratio.map(|ratio| ratio >= min),
            Self::AtMost(max) => Some(ours <= max),
        }
    }

    /// Returns the goal as shown in the table.
    pub(crate) fn label(self) -> String {
        match self {
            Self::RatioAtMost(max) => format!("≤ {max} ×"),
            Self::RatioAtLeast(min) => format!("≥ {min} ×"),
            Self::AtMost(max) => format!("≤ {max}"),
        }
    }
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "a benchmark is built with cfg(test), but without its tests")]
mod tests {
    use super::*;

    #[test]
    fn the_median_does_not_depend_on_the_order() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[3.0, 1.0, 9.0]), Some(Summary { median: 3.0, min: 1.0, max: 9.0 }));
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 9.0]), Some(Summary { median: 3.0, min: 1.0, max: 9.0 }));
        assert_eq!(Summary::of(&[7.0]), Some(Summary { median: 7.0, min: 7.0, max: 7.0 }));
    }

    // The median of the ratios, not the ratio of the medians: 2/4, 30/20, 5/10.
    #[test]
    fn the_ratio_is_the_median_of_the_rounds_ratios() {
        assert_eq!(ratio(&[2.0, 30.0, 5.0], &[4.0, 20.0, 10.0]), Some(0.5));
    }

    #[test]
    fn there_is_no_ratio_without_a_counterpart() {
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
