//! The core by example: an input, its exact outputs, and nothing besides.

mod allocate;
mod authentication;
mod binding;
mod channel;
mod peer;
mod permission;
mod refresh;
mod robustness;
mod send;
mod support;
