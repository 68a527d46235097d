//! Binding (RFC 8489 §12): reports the client's transport address. It needs no authentication and no state.

use crate::stun::Message;
use crate::turn::contract::{FiveTuple, FromClient};
use crate::turn::outcome::DropReason;
use crate::turn::protocol::rejection::Rejection;
use crate::turn::protocol::request::unknown_attributes;
use crate::turn::protocol::response::{self, ErrorExtras, ResponseContext};
use crate::turn::server::Server;
use crate::turn::shared::sources::Kind;
use crate::turn::time::Instant;

impl Server {
    pub(crate) fn binding(
        &mut self,
        now: Instant,
        tuple: &FiveTuple,
        context: &ResponseContext,
        message: &Message<'_>,
        response: &mut [u8],
    ) -> FromClient {
        // The client of an allocation has proved that it receives at its address. Its packets can still be forged.
        let kind = if self.table.find_open(tuple, now).is_some() { Kind::Allocated } else { Kind::Binding };
        if let Err(reason) = self.admit_response(tuple, kind, now) {
            return FromClient::Drop(reason);
        }
        match unknown_attributes(message) {
            Some(rejection) => {
                let extras = match &rejection {
                    Rejection::UnknownAttributes(list) => ErrorExtras::Unknown(list),
                    _ => ErrorExtras::None,
                };
                response::error(response, context, None, &rejection, extras)
            }
            None => response::binding(response, context, tuple.client),
        }
        .map_or(FromClient::Drop(DropReason::TooLarge), FromClient::Respond)
    }
}
