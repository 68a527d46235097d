//! Runs each target over its corpus.

#[test]
fn nothing() {}
