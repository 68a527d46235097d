//! Token buckets.

use std::net::IpAddr;

use turnserver::turn::{DropReason, Limit};

use super::{Model, Now};
use crate::setup::RateLimit;

/// The time between two log entries about dropped data.
const REPORT_INTERVAL_MS: u64 = 60_000;

/// The level of a bucket in thousandths, and the time of the last update; `None` if the bucket is full.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tokens(Option<(u64, u64)>);

impl Tokens {
    fn has(&mut self, limit: RateLimit, now: Now, amount: usize) -> bool {
        let Some((per_second, burst)) = limit else { return true };
        let full = u64::from(burst) * 1_000;
        let (level, at) = self.0.unwrap_or((full, now.ms));
        let level = full.min(level + (now.ms - at) * u64::from(per_second));
        self.0 = Some((level, now.ms));
        level >= amount as u64 * 1_000
    }

    fn take(&mut self, amount: usize) {
        if let Some((level, _)) = &mut self.0 {
            *level -= amount as u64 * 1_000;
        }
    }
}

/// The buckets of a user, over all workers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UserTokens {
    bytes: [Tokens; 2],
    allocations: Tokens,
}

/// The buckets of an allocation.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AllocTokens {
    bytes: [Tokens; 2],
    peers: Tokens,
    /// The earliest times of the next log entries about its own limit and about the limit of its user.
    silent_until: [u64; 2],
}

impl Model {
    /// Charges data to peers (0) or to the client (1). Both limits must allow it.
    pub(super) fn admit_data(&mut self, now: Now, at: usize, direction: usize, bytes: usize) -> Result<(), DropReason> {
        let rates = self.setup.rates;
        let alloc = &mut self.allocs[at];
        let user = self.users.entry(alloc.user.clone()).or_default();
        let (own, all) = (&mut alloc.tokens.bytes[direction], &mut user.bytes[direction]);
        let (limit, which, reason) = if !own.has(rates.bytes, now, bytes) {
            (Limit::AllocationBandwidth, 0, DropReason::AllocationBandwidth)
        } else if !all.has(rates.user_bytes, now, bytes) {
            (Limit::UserBandwidth, 1, DropReason::UserBandwidth)
        } else {
            own.take(bytes);
            all.take(bytes);
            return Ok(());
        };
        if alloc.tokens.silent_until[which] <= now.ms {
            alloc.tokens.silent_until[which] = now.ms + REPORT_INTERVAL_MS;
            self.limit_reached(at, limit);
        }
        Err(reason)
    }

    /// Charges an allocation to the rate of its user.
    pub(super) fn admit_allocation(&mut self, now: Now, user: &str) -> bool {
        let tokens = &mut self.users.entry(user.to_owned()).or_default().allocations;
        let has = tokens.has(self.setup.rates.user_allocations, now, 1);
        if has {
            tokens.take(1);
        }
        has
    }

    /// Checks the permissions that an allocation would have against the limits.
    pub(super) fn admit_permissions(&mut self, now: Now, at: usize, after: &[(IpAddr, u64)]) -> Result<(), Limit> {
        let alloc = &mut self.allocs[at];
        let known = |address: &IpAddr| alloc.permissions.iter().any(|(a, until)| a == address && *until > now.ms);
        let new = after.iter().filter(|(address, _)| !known(address)).count();
        if after.len() > self.setup.permissions {
            return Err(Limit::Permissions);
        }
        if new > 0 {
            if !alloc.tokens.peers.has(self.setup.rates.peers, now, new) {
                return Err(Limit::PeerRate);
            }
            alloc.tokens.peers.take(new);
        }
        Ok(())
    }
}
