//! Binding (RFC 8489 §12): tells the client its transport address. It needs no authentication and no memory.

use super::super::contract::{FiveTuple, FromClient};
use super::super::outcome::DropReason;
use super::super::reply::{self, Answering};
use super::super::request::unknown_attributes;
use super::super::server::Server;
use crate::stun::Message;

impl Server {
    pub(in crate::turn) fn binding(&self, tuple: &FiveTuple, message: &Message<'_>, reply: &mut [u8]) -> FromClient {
        let answering = Answering::to(message);
        match unknown_attributes(message) {
            Some(reject) => reply::error(reply, &answering, None, &reject, None),
            None => reply::binding(reply, &answering, tuple.client),
        }
        .map_or(FromClient::Drop(DropReason::TooLarge), FromClient::Reply)
    }
}
