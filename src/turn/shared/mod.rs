//! What the workers of a process share: immutable configuration and tables of atomic words. There are no locks.

pub(crate) mod alternate;
pub(crate) mod ledger;
pub(crate) mod live_relays;
pub(crate) mod policy;
pub(crate) mod quota;
pub(crate) mod reservations;
pub(crate) mod snapshot;
