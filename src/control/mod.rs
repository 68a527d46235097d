//! Placeholder.
pub mod addresses;
