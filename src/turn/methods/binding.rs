//! Binding (RFC 8489 §12): tells the client its transport address. It needs no authentication and no memory.

use super::super::contract::{FiveTuple, FromClient};
use super::super::outcome::DropReason;
use super::super::reply::{self, Answering, Besides};
use super::super::request::unknown_attributes;
use super::super::server::Server;
use super::super::time::Instant;
use crate::stun::Message;

impl Server {
    pub(in crate::turn) fn binding(
        &mut self,
        now: Instant,
        tuple: &FiveTuple,
        message: &Message<'_>,
        reply: &mut [u8],
    ) -> FromClient {
        // The client of an allocation has shown that it is where it says.
        if self.table.find_open(tuple, now).is_none() && !self.replies.admits(tuple, now) {
            return FromClient::Drop(DropReason::ReplyLimit);
        }
        let answering = Answering::to(message);
        match unknown_attributes(message) {
            Some(reject) => reply::error(reply, &answering, None, &reject, Besides::Nothing),
            None => reply::binding(reply, &answering, tuple.client),
        }
        .map_or(FromClient::Drop(DropReason::TooLarge), FromClient::Reply)
    }
}
