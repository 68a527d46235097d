//! The part of the configuration that the core reads. A reload replaces it as a whole.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::auth::{Authenticator, Identity, NonceMint};
use crate::turn::protocol::channel_numbers::ChannelNumbers;
use crate::turn::rate::Rate;
use crate::turn::shared::alternate::Alternate;
use crate::turn::shared::policy::{Denial, PeerPolicy};
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
    /// A database with further users.
    pub database: Option<UserDatabase>,
    /// How long an allocation can be refreshed after its credential has expired, in seconds.
    pub expiry_grace: u64,
    /// Whether each accepted Refresh is an event.
    pub refresh_events: bool,
}

impl Snapshot {
    /// Checks whether a client may exchange data with `peer`. Returns the destination of datagrams for the peer.
    pub(crate) fn peer_allowed(&self, identity: &Identity, peer: SocketAddr) -> Result<SocketAddr, Denial> {
        match identity.test_link() {
            Some(_) => self.relays.live(peer).ok_or(Denial::TestLink),
            None => self.policy.peer_allowed(&self.relays, peer),
        }
    }

    /// Checks whether a client may have a permission for `address`. If it is a relay address of this server, the port is
    /// checked when data is relayed.
    pub(crate) fn permission_allowed(&self, identity: &Identity, address: IpAddr) -> Result<(), Denial> {
        match identity.test_link() {
            Some(_) if !self.relays.is_relay_address(address) => Err(Denial::TestLink),
            _ => self.policy.permission_allowed(&self.relays, address),
        }
    }

    /// Checks whether data may be relayed between a client and a peer with a bound channel. The policy has allowed the
    /// binding, and a new policy removes the channels that it denies. Only relayed transport addresses of this server are
    /// checked again, because they may have ended.
    pub(crate) fn bound_peer_allowed(&self, identity: &Identity, peer: SocketAddr) -> Result<SocketAddr, Denial> {
        if self.relays.is_relay_address(peer.ip()) { self.peer_allowed(identity, peer) } else { Ok(peer) }
    }

    /// Returns until when an allocation may last, in seconds since the Unix epoch, if its credential expires at
    /// `expires`.
    pub(crate) fn last_use(&self, identity: &Identity, expires: u64) -> u64 {
        let grace = if identity.test_link().is_some() { 0 } else { self.expiry_grace };
        expires.saturating_add(grace)
    }

    /// Whether a UDP socket of this server has this address. No such socket is a client: its allocation could be the
    /// client of another allocation, and packets would circle between the two (RFC 8656 §21.1.7).
    pub(crate) fn is_own_socket(&self, address: SocketAddr) -> bool {
        let listens = self.udp_ports.contains(&address.port()) && self.policy.own.contains(&address.ip());
        listens || self.relays.is_live(address)
    }
}

/// How a database with users is asked, and how long its responses are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserDatabase {
    /// Identifies the database and the realm. What one database has said does not apply to another one.
    pub source: Arc<str>,
    /// How long a request waits for the database.
    pub time_limit: Duration,
    /// How long a user that was found is known.
    pub found_for: Duration,
    /// How long a user that was not found is known to be absent.
    pub absent_for: Duration,
    /// For how much longer a user that was found is known if the database does not respond.
    pub stale_for: Duration,
    /// The most users that a worker knows.
    pub cached_users: usize,
    /// Look-ups per second of all workers; 0 for no limit.
    pub lookups_per_second: u32,
    /// Requests per second of one source that need a look-up; 0 for no limit.
    pub lookups_per_second_per_source: u32,
    /// The response to a request if the database does not respond.
    pub when_unavailable: WhenUnavailable,
}

/// The response to a request of a user that is not known, if the database does not respond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenUnavailable {
    /// 500: the client may try again (RFC 8489 §14.8).
    #[default]
    ServerError,
    /// 401, as for an unknown user.
    Unauthenticated,
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
