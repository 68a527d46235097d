//! One worker's state: allocations and their indexes, timers, response limits.

pub(crate) mod allocation;
pub(crate) mod channels;
pub(crate) mod permissions;
pub(crate) mod relays;
pub(crate) mod response_limit;
mod short_list;
pub(crate) mod table;
pub(crate) mod wheel;
