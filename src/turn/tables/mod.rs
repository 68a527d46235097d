//! One worker's state: allocations and their indexes, timers.

pub(crate) mod allocation;
pub(crate) mod channels;
pub(crate) mod drops;
pub(crate) mod permissions;
pub(crate) mod relays;
mod short_list;
pub(crate) mod table;
pub(crate) mod user_cache;
pub(crate) mod waiting;
pub(crate) mod wheel;
