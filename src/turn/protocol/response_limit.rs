//! Which requests of unverified clients get a response.
//!
//! Over UDP the source of such a request may be forged. Each source has its limits ([`Sources`]), and all sources without
//! proof together have two budgets, for Binding and for challenges, so that the responses to a flood from many forged sources leave the worker time for the
//! data of its clients. To drop a request costs a fraction of a response.
//!
//! [`Sources`]: crate::turn::shared::sources::Sources

use crate::stun::{AttributeType, Message};
use crate::turn::contract::FiveTuple;
use crate::turn::outcome::DropReason;
use crate::turn::protocol::request_method::RequestMethod;
use crate::turn::rate::{Bucket, Rate};
use crate::turn::server::Server;
use crate::turn::shared::sources::{Admission, Kind};
use crate::turn::time::Instant;

/// The responses per second of a worker to sources without proof, for Binding and for challenges each.
const RESPONSES: u32 = 10_000;
/// The responses that a worker may send at once: as many clients may start together.
const BURST: u32 = 4_096;

/// The budget of a worker for responses to sources that have proved nothing.
#[derive(Debug)]
pub(crate) struct ResponseBudget {
    rate: Option<Rate>,
    bindings: Bucket,
    challenges: Bucket,
}

impl Default for ResponseBudget {
    fn default() -> Self {
        Self { rate: Rate::new(RESPONSES, BURST), bindings: Bucket::FULL, challenges: Bucket::FULL }
    }
}

impl ResponseBudget {
    /// Takes a response. A flood of one kind leaves the other one its share.
    fn take(&mut self, kind: Kind, now: Instant) -> bool {
        let bucket = match kind {
            Kind::Binding => &mut self.bindings,
            Kind::Challenge => &mut self.challenges,
            Kind::Verified | Kind::Allocated => return true,
        };
        self.rate.is_none_or(|rate| bucket.take(&rate, now, 1))
    }
}

impl Server {
    /// Charges a response to the limits of its source and to the budget of the worker. A client with a connection has
    /// proved its source, so its responses are not limited.
    pub(crate) fn admit_response(&mut self, tuple: &FiveTuple, kind: Kind, now: Instant) -> Result<(), DropReason> {
        let per_second = self.snapshot.limits.unverified_responses;
        if tuple.transport.proves_source() || per_second == 0 {
            return Ok(());
        }
        let sources = &self.ledger.sources;
        match sources.admit(sources.find(tuple.client.ip()), kind, per_second, now) {
            Admission::Unproved if !self.responses.take(kind, now) => Err(DropReason::ResponseBudget),
            Admission::Proved | Admission::Unproved => Ok(()),
            Admission::Denied => Err(DropReason::ResponseLimit),
        }
    }

    /// Like [`admit_response`](Self::admit_response), for a request other than Binding of an unverified client.
    pub(crate) fn admit_challenge(
        &mut self,
        tuple: &FiveTuple,
        method: RequestMethod,
        message: &Message<'_>,
        now: Instant,
    ) -> Result<(), DropReason> {
        // A client begins with an Allocate request, and RFC 8656 §7.1 requires its REQUESTED-TRANSPORT. Other requests
        // without credentials are shorter, so their challenge would be a larger multiple of them.
        let begins = || method == RequestMethod::Allocate && message.contains(AttributeType::REQUESTED_TRANSPORT);
        if !tuple.transport.proves_source() && !has_integrity(message) && !begins() {
            return Err(DropReason::NoCredentials);
        }
        self.admit_response(tuple, Kind::Challenge, now)
    }
}

fn has_integrity(message: &Message<'_>) -> bool {
    message.contains(AttributeType::MESSAGE_INTEGRITY) || message.contains(AttributeType::MESSAGE_INTEGRITY_SHA256)
}
