//! When calls begin, how long they last, and what they relay.

use rand::RngExt as _;
use rand::rngs::StdRng;

/// Seconds of the day.
pub(crate) const DAY: f64 = 86_400.0;

/// A region: its part of all calls in percent, and its time zone in hours.
pub(crate) const REGIONS: [(&str, u32, f64); 12] = [
    ("eu-west", 18, 0.0),
    ("us-east", 17, -5.0),
    ("eu-central", 14, 1.0),
    ("us-west", 11, -8.0),
    ("asia-east", 10, 8.0),
    ("asia-south", 9, 5.5),
    ("sa-east", 7, -3.0),
    ("eu-east", 5, 3.0),
    ("asia-southeast", 4, 7.0),
    ("me", 2, 4.0),
    ("oceania", 2, 10.0),
    ("africa", 1, 2.0),
];

/// Allocations of a call: at the first node, and one at the second.
pub(crate) const ALLOCATIONS_PER_CALL: f64 = 1.5 + 1.0;

/// The mean length of a call in seconds: a lognormal distribution with a median of five minutes.
const MEDIAN_SECONDS: f64 = 300.0;
const SIGMA: f64 = 1.2;

/// Returns how busy a region is at a time of the day in seconds, UTC, from 0.15 (night) to 1 (early afternoon).
pub(crate) fn activity(seconds: f64, zone: f64) -> f64 {
    let hour = (seconds / 3600.0 + zone).rem_euclid(24.0);
    let day = ((hour - 6.0) / 17.0 * std::f64::consts::PI).sin().max(0.0);
    let day = if (6.0..23.0).contains(&hour) { day } else { 0.0 };
    0.15 + 0.85 * day.powf(1.3)
}

/// Returns the mean of [`activity`] over a day.
pub(crate) fn mean_activity() -> f64 {
    (0..1440).map(|minute| activity(f64::from(minute) * 60.0, 0.0)).sum::<f64>() / 1440.0
}

fn normal(rng: &mut StdRng) -> f64 {
    // Box and Muller.
    let (one, two): (f64, f64) = (rng.random_range(f64::MIN_POSITIVE..1.0), rng.random_range(0.0..1.0));
    (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * two).cos()
}

/// Returns the length of a call in seconds, at most six hours.
pub(crate) fn duration(rng: &mut StdRng) -> f64 {
    (MEDIAN_SECONDS * (SIGMA * normal(rng)).exp()).clamp(2.0, 6.0 * 3600.0)
}

pub(crate) fn mean_duration() -> f64 {
    MEDIAN_SECONDS * (SIGMA * SIGMA / 2.0).exp()
}

/// Returns the bits per second of a call, both directions together: two of five are audio only, one of seven is a
/// conference.
pub(crate) fn bits_per_second(rng: &mut StdRng) -> f64 {
    match rng.random_range(0..100) {
        0..40 => 100_000.0,
        40..86 => (2_000_000.0 * (0.6 * normal(rng)).exp()).min(8e6),
        _ => (4_000_000.0 * (0.7 * normal(rng)).exp()).min(2e7),
    }
}

/// The mean of [`bits_per_second`], about.
pub(crate) fn mean_bits() -> f64 {
    0.4 * 1e5 + 0.46 * 2e6 * (0.18_f64).exp() + 0.14 * 4e6 * (0.245_f64).exp()
}

/// Returns the number of allocations of a call at its first node.
pub(crate) fn allocations(rng: &mut StdRng) -> u32 {
    match rng.random_range(0..100) {
        0..65 => 1,
        65..90 => 2,
        _ => 3,
    }
}
