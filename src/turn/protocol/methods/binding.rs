//! Binding (RFC 8489 §12): tells the client its transport address. It needs no authentication and no memory.

use crate::stun::Message;
use crate::turn::contract::{FiveTuple, FromClient};
use crate::turn::outcome::DropReason;
use crate::turn::protocol::request::unknown_attributes;
use crate::turn::protocol::response::{self, Answering, Besides};
use crate::turn::server::Server;
use crate::turn::time::Instant;

impl Server {
    pub(crate) fn binding(
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
            Some(reject) => response::error(reply, &answering, None, &reject, Besides::Nothing),
            None => response::binding(reply, &answering, tuple.client),
        }
        .map_or(FromClient::Drop(DropReason::TooLarge), FromClient::Reply)
    }
}
