//! The part of the configuration that the core reads. A reload replaces it as a whole.

use std::net::SocketAddr;

use crate::auth::{Authenticator, NonceMint};
use crate::turn::protocol::channel_numbers::ChannelNumbers;
use crate::turn::rate::Rate;
use crate::turn::shared::alternate::Alternate;
use crate::turn::shared::policy::PeerPolicy;
use crate::turn::shared::quota::UserRates;
use crate::turn::shared::relay_address::RelayAddresses;

/// A configuration, immutable. [`Server::reconfigure`](crate::turn::Server::reconfigure) replaces it.
#[derive(Debug)]
pub struct Snapshot {
    /// The realm, the shared secrets and the static users.
    pub authenticator: Authenticator,
    /// Makes and checks nonces.
    pub nonces: NonceMint,
    /// The peers that clients may reach.
    pub policy: PeerPolicy,
    /// The relay addresses. An address that is also in the preceding snapshot is the same [`RelayAddress`]: it has the
    /// tables of its ports.
    ///
    /// [`RelayAddress`]: crate::turn::RelayAddress
    pub relays: RelayAddresses,
    /// The ports of the UDP listeners.
    pub udp_ports: Vec<u16>,
    /// Limits on allocations, users and sources.
    pub limits: Limits,
    /// The servers for clients that get no allocation here.
    pub alternate: Option<Alternate>,
    /// Deviations from RFC 8656 for deployed clients.
    pub compat: Compat,
    /// How long an allocation can be refreshed after its credential has expired, in seconds.
    pub expiry_grace: u64,
}

impl Snapshot {
    /// Whether a UDP socket of this server has this address. No such socket is a client: its allocation could be the
    /// client of another allocation, and packets would circle between the two (RFC 8656 §21.1.7).
    pub(crate) fn is_own_socket(&self, address: SocketAddr) -> bool {
        let listens = self.udp_ports.contains(&address.port()) && self.policy.own.contains(&address.ip());
        listens || self.relays.is_live(address)
    }
}

/// Limits. They apply to new requests and to data. Existing allocations, permissions and channels are not affected.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Allocations of one user; 0 for no limit.
    pub allocations_per_user: u32,
    /// Allocations of the server; 0 for no limit.
    pub allocations: u32,
    /// Rates of one user.
    pub user_rates: UserRates,
    /// Permissions of one allocation.
    pub permissions_per_allocation: usize,
    /// Channels of one allocation.
    pub channels_per_allocation: usize,
    /// New peer addresses of one allocation.
    pub peer_rate: Option<Rate>,
    /// Application data of one allocation in bytes, per direction.
    pub byte_rate: Option<Rate>,
    /// Responses per second to a source that has proved nothing; 0 for no limit.
    pub unverified_responses: u32,
    /// Failed authentications per second of a source with one username; 0 for no limit.
    pub failed_authentications: u32,
}

/// Deviations from RFC 8656.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compat {
    /// The channel numbers that are accepted.
    pub channels: ChannelNumbers,
    /// Whether ADDITIONAL-ADDRESS-FAMILY is also accepted under the number that coturn's clients use.
    pub draft_dual_allocation: bool,
    /// Which clients get Data indications about ICMP errors.
    pub icmp_indications: IcmpIndications,
}

/// Which clients get Data indications about ICMP errors (RFC 8656 §11.5).
///
/// RFC 5766 has no Data indications without DATA, and some clients of RFC 5766 stop receiving at the first one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IcmpIndications {
    /// Clients that have shown on their allocation that they implement RFC 8489 or RFC 8656.
    #[default]
    Auto,
    /// All clients.
    Always,
    /// No client.
    Never,
}

impl IcmpIndications {
    /// Whether a client gets them, according to what its requests have shown.
    pub(crate) fn include(self, shows_rfc8656: bool) -> bool {
        match self {
            Self::Auto => shows_rfc8656,
            Self::Always => true,
            Self::Never => false,
        }
    }
}
