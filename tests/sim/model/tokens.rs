//! Token buckets as they are drawn: something drips in, and what is taken out has to be there.

use std::net::IpAddr;

use turnserver::turn::{DropReason, Limit};

use super::{Model, Now};
use crate::setup::Limited;

/// How long dropped data is not told again.
const TOLD_MS: u64 = 60_000;

/// What is in a bucket, in thousandths, and when it was looked at; full at first.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tokens(Option<(u64, u64)>);

impl Tokens {
    fn has(&mut self, limited: Limited, now: Now, amount: usize) -> bool {
        let Some((per_second, burst)) = limited else { return true };
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

/// What a user has left, over all workers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UserTokens {
    bytes: [Tokens; 2],
    allocations: Tokens,
}

/// What an allocation has left.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AllocTokens {
    bytes: [Tokens; 2],
    peers: Tokens,
    /// Until when its own limit, or its user's, is not told again.
    told: [u64; 2],
}

impl Model {
    /// Application data of an allocation to peers (0) or to its client (1): both limits have to allow it.
    pub(super) fn pass(&mut self, now: Now, at: usize, direction: usize, bytes: usize) -> Result<(), DropReason> {
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
        if alloc.tokens.told[which] <= now.ms {
            alloc.tokens.told[which] = now.ms + TOLD_MS;
            self.reached(at, limit);
        }
        Err(reason)
    }

    /// One more allocation of a user.
    pub(super) fn may_allocate(&mut self, now: Now, user: &str) -> bool {
        let tokens = &mut self.users.entry(user.to_owned()).or_default().allocations;
        let has = tokens.has(self.setup.rates.user_allocations, now, 1);
        if has {
            tokens.take(1);
        }
        has
    }

    /// The permissions that an allocation would have, if it may have them.
    pub(super) fn permit_all(&mut self, now: Now, at: usize, after: &[(IpAddr, u64)]) -> Result<(), Limit> {
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
