//! What the workers of a process share: immutable configuration and tables of atomic words. Nothing is ever locked.

pub(crate) mod alternate;
pub(crate) mod ledger;
pub(crate) mod live_relays;
pub(crate) mod policy;
pub(crate) mod quota;
pub(crate) mod reservations;
pub(crate) mod snapshot;
