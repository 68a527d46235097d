//! The options of an Allocate request (RFC 8656 §7.2, steps 3 to 9).

use std::time::Duration;

use crate::stun::attribute::{
    AdditionalAddressFamily, AddressFamily, DraftAdditionalAddressFamily, EvenPort, Lifetime, RequestedAddressFamily,
    RequestedTransport, ReservationToken,
};
use crate::stun::{AttributeError, AttributeType, Message};
use crate::turn::protocol::rejection::Rejection;
use crate::turn::protocol::request::{optional, required};
use crate::turn::shared::ports::PortPreference;
use crate::turn::shared::reservations::Token;
use crate::turn::{DEFAULT_LIFETIME, MAXIMUM_LIFETIME};

/// The allocation that a request requires.
pub(super) struct AllocateOptions {
    pub(super) address: AddressOption,
    pub(super) lifetime: Duration,
}

#[derive(Clone, Copy)]
pub(super) enum AddressOption {
    New {
        family: AddressFamily,
        /// Whether an IPv6 address is wanted in addition.
        additional: bool,
        preference: PortPreference,
    },
    /// The address that a token reserves; `None` if the token is 0.
    Reserved(Option<Token>),
}

/// The attributes that select the address, and so exclude a token.
const ADDRESS_CHOICES: [AttributeType; 3] =
    [AttributeType::EVEN_PORT, AttributeType::REQUESTED_ADDRESS_FAMILY, AttributeType::ADDITIONAL_ADDRESS_FAMILY];

impl AllocateOptions {
    pub(super) fn parse(message: &Message<'_>, draft_dual_allocation: bool) -> Result<Self, Rejection> {
        let bad = |reason| Err(Rejection::BadRequest(reason));
        // Step 3: missing or malformed → 400, no UDP → 442.
        let transport: RequestedTransport = required(message)?;
        if transport != RequestedTransport::UDP {
            return Err(Rejection::UnsupportedTransportProtocol);
        }
        // Step 5: a token and another attribute that selects the address → 400.
        let token = optional(message)?.map(|ReservationToken(bytes)| Token::from_bytes(bytes));
        let draft = draft_dual_allocation.then_some(AttributeType::DRAFT_ADDITIONAL_ADDRESS_FAMILY);
        if token.is_some() && ADDRESS_CHOICES.into_iter().chain(draft).any(|kind| message.contains(kind)) {
            return bad("Bad RESERVATION-TOKEN");
        }
        // Steps 6 and 7. An unknown family → 440.
        let requested = match message.get::<RequestedAddressFamily>() {
            Ok(requested) => requested.map(|RequestedAddressFamily(family)| family),
            Err(AttributeError::UnknownFamily) => return Err(Rejection::AddressFamilyNotSupported),
            Err(_) => return bad("Malformed Attribute"),
        };
        let additional = optional(message)?.map(|AdditionalAddressFamily(family)| family);
        let draft = if draft_dual_allocation { optional(message)? } else { None };
        let additional = additional.or(draft.map(|DraftAdditionalAddressFamily(family)| family));
        // Step 6: both attributes → 400. Step 9: the IPv4 family → 400.
        if additional.is_some_and(|family| family == AddressFamily::V4 || requested.is_some()) {
            return bad("Bad ADDITIONAL-ADDRESS-FAMILY");
        }
        let additional = additional.is_some();
        // Step 8: a reservation and an additional family → 400.
        let preference = match optional(message)? {
            None => PortPreference::Any,
            Some(EvenPort { reserve_next: false }) => PortPreference::Even,
            Some(EvenPort { reserve_next: true }) if additional => return bad("Bad EVEN-PORT"),
            Some(EvenPort { reserve_next: true }) => PortPreference::EvenAndNext,
        };
        let lifetime = optional(message)?.map_or(DEFAULT_LIFETIME, |Lifetime(seconds)| seconds);
        let lifetime = Duration::from_secs(lifetime.clamp(DEFAULT_LIFETIME, MAXIMUM_LIFETIME).into());
        let family = requested.unwrap_or(AddressFamily::V4);
        let address = token.map_or(AddressOption::New { family, additional, preference }, AddressOption::Reserved);
        Ok(Self { address, lifetime })
    }
}
