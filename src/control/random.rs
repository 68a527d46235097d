//! Randomness that spreads what would otherwise happen at the same moment.

/// Returns a number from 0 to 1. Without a source of randomness, it is 0.
pub(super) fn fraction() -> f64 {
    let mut bytes = [0; 4];
    let _ = getrandom::getrandom(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

/// Returns a number below `limit`, or 0 if that is 0. Without a source of randomness, it is 0.
pub(super) fn below(limit: usize) -> usize {
    let mut bytes = [0; size_of::<usize>()];
    let _ = getrandom::getrandom(&mut bytes);
    usize::from_le_bytes(bytes).checked_rem(limit).unwrap_or_default()
}
