//! Mints and verifies credentials.
fn main() {}
