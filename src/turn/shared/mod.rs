//! What the workers of a process share: immutable configuration and tables of atomic words. There are no locks.

pub(crate) mod alternate;
pub(crate) mod ledger;
pub(crate) mod policy;
pub(crate) mod port_map;
pub(crate) mod ports;
pub(crate) mod quota;
pub(crate) mod relay_address;
pub(crate) mod reservations;
pub(crate) mod snapshot;
pub(crate) mod sources;
pub(crate) mod test_links;
