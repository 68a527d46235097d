//! An allocation as plain data, for the hand-over to another process.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::contract::{AllocationId, FiveTuple, SocketKind, SocketSpec};
use super::event::Traffic;
use super::server::Server;
use super::shared::relay_address::RelayAddress;
use super::shared::reservations::Token;
use super::tables::allocation::{Allocation, IcmpBudget, Meter, State};
use super::tables::channels::Channels;
use super::tables::drops::Drops;
use super::tables::permissions::Permissions;
use super::tables::relays::{Relay, Relays, SocketState};
use super::time::{Deadline, Instant};
use crate::auth::{Identity, LongTermKey};
use crate::stun::attribute::AddressFamily;
use crate::stun::{ErrorCode, TransactionId};

/// An open allocation. All times are absolute, since the Unix epoch, so they are valid in another process.
///
/// Rate usage and dropped packets are not included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocationRecord {
    /// The client's 5-tuple.
    pub tuple: FiveTuple,
    /// The USERNAME of the credentials that created it.
    pub username: String,
    /// The key of the credentials. Redacted in `Debug`.
    pub key: LongTermKey,
    /// The transaction ID of the Allocate request.
    pub transaction: TransactionId,
    /// When the Allocate request arrived.
    pub created: Duration,
    /// The relayed transport addresses in use: one, or one of each address family.
    pub relays: Vec<RelayRecord>,
    /// The requested address family that could not be allocated, and the code (RFC 8656 §7.2 step 9).
    pub address_error: Option<(AddressFamily, ErrorCode)>,
    /// The RESERVATION-TOKEN of the Allocate response.
    pub token: Option<[u8; 8]>,
    /// Each permission and its expiry.
    pub permissions: Vec<(IpAddr, Duration)>,
    /// Each channel number, its peer and its expiry.
    pub channels: Vec<(u16, SocketAddr, Duration)>,
    /// The relayed traffic.
    pub traffic: Traffic,
    /// Whether a request has shown that the client implements RFC 8489 or RFC 8656.
    pub shows_rfc8656: bool,
}

/// A relayed transport address of an [`AllocationRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayRecord {
    /// The address that the relay socket is bound to.
    pub bind: SocketAddr,
    /// The advertised address.
    pub advertised: SocketAddr,
    /// When it expires.
    pub expires: Duration,
}

/// The same moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Epoch {
    /// On the monotonic clock of this process.
    pub now: Instant,
    /// On the wall clock, since the Unix epoch.
    pub unix: Duration,
}

impl Epoch {
    fn absolute(&self, deadline: Deadline) -> Duration {
        self.unix + deadline.left(self.now)
    }

    fn deadline(&self, absolute: Duration) -> Deadline {
        Deadline::after(self.now, absolute.saturating_sub(self.unix))
    }
}

/// Why an allocation was not imported. A failed import changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// The configuration does not accept its credentials.
    #[error("the configuration does not accept the credentials of the allocation")]
    Credentials,
    /// The 5-tuple has an allocation.
    #[error("the 5-tuple has an allocation already")]
    TupleInUse,
    /// It has no relayed transport address that is still in use.
    #[error("the allocation has expired")]
    Expired,
    /// It has several relayed transport addresses of one address family.
    #[error("the allocation has several relayed transport addresses of one address family")]
    Relays,
    /// The server does not have the relay address, or the port is in use.
    #[error("{0} is not on a relay address of this server, or its port is in use")]
    Port(SocketAddr),
    /// The number of allocations in the process has reached its maximum.
    #[error("the process has reached its maximum number of allocations")]
    Quota,
}

impl Server {
    /// Returns each open allocation as plain data.
    pub fn export(&self, epoch: Epoch) -> impl Iterator<Item = AllocationRecord> + '_ {
        let open = self.table.iter_from(0).filter(move |(_, allocation)| allocation.is_open(epoch.now));
        open.map(move |(_, allocation)| record(allocation, epoch))
    }

    /// Imports an allocation. Returns its sockets, which the shell has received with it or must open.
    ///
    /// # Errors
    /// If the allocation cannot exist here.
    pub fn import(&mut self, epoch: Epoch, record: &AllocationRecord) -> Result<Vec<SocketSpec>, ImportError> {
        let now = epoch.now;
        let identity = self.snapshot.authenticator.recognize(&record.username, &record.key);
        let identity = identity.ok_or(ImportError::Credentials)?;
        if self.table.find(&record.tuple).is_some() {
            return Err(ImportError::TupleInUse);
        }
        let live = record.relays.iter().filter(|relay| relay.expires > epoch.unix);
        let live: Vec<&RelayRecord> = live.collect();
        if live.is_empty() {
            return Err(ImportError::Expired);
        }
        let is_v6 = |relay: &&RelayRecord| relay.bind.is_ipv6();
        if live.iter().filter(|relay| is_v6(relay)).count() > 1 || live.iter().filter(|relay| !is_v6(relay)).count() > 1
        {
            return Err(ImportError::Relays);
        }
        // Limits apply to new allocations only.
        let ticket = self.ledger.quota.admit(identity.user(), 0, 0).map_err(|_| ImportError::Quota)?;
        let addresses = self.take_ports(&live)?;
        let mut relays = Relays::default();
        let mut sockets = Vec::new();
        for (address, RelayRecord { bind, expires, .. }) in addresses.into_iter().zip(live) {
            let (bind, deadline) = (*bind, epoch.deadline(*expires));
            address.set_live(bind.port(), true);
            let index = relays.set(Relay::new(address, bind.port(), deadline, SocketState::Open));
            sockets.push((index, bind));
        }
        let id = self.insert_imported(epoch, record, identity, relays, ticket);
        // The configuration of this process may deny peers of the imported allocation.
        self.review.raise_caps(record.permissions.len(), record.channels.len());
        self.review_one(id, now);
        self.table.reschedule(id);
        let spec = |(index, bind)| SocketSpec { socket: id.socket(index), kind: SocketKind::Udp, bind };
        Ok(sockets.into_iter().map(spec).collect())
    }

    /// Takes the ports of all addresses, or none.
    fn take_ports(&self, relays: &[&RelayRecord]) -> Result<Vec<Arc<RelayAddress>>, ImportError> {
        let mut taken = Vec::new();
        for RelayRecord { bind, .. } in relays {
            let address = self.snapshot.relays.bound_to(bind.ip());
            match address.filter(|address| address.ports.take_exactly(bind.port())) {
                Some(address) => taken.push(Arc::clone(address)),
                None => {
                    taken.iter().zip(relays).for_each(|(address, relay)| address.ports.release(relay.bind.port()));
                    return Err(ImportError::Port(*bind));
                }
            }
        }
        Ok(taken)
    }

    fn insert_imported(
        &mut self,
        epoch: Epoch,
        record: &AllocationRecord,
        identity: Rc<Identity>,
        relays: Relays,
        ticket: super::Ticket,
    ) -> AllocationId {
        let mut permissions = Permissions::default();
        for (address, expires) in &record.permissions {
            permissions.install_until(*address, epoch.deadline(*expires));
        }
        let mut channels = Channels::default();
        for (number, peer, expires) in &record.channels {
            channels.bind_until(*number, *peer, epoch.deadline(*expires));
        }
        let allocation = Allocation {
            tuple: record.tuple,
            relays,
            state: State::Open,
            transaction: record.transaction,
            identity,
            created: epoch.now.minus(epoch.unix.saturating_sub(record.created)),
            address_error: record.address_error,
            token: record.token.and_then(Token::from_bytes),
            permissions,
            channels,
            traffic: record.traffic,
            drops: Drops::default(),
            icmp: IcmpBudget::default(),
            shows_rfc8656: record.shows_rfc8656,
            credentials_removed: false,
            ticket,
            meter: Meter::UNUSED,
        };
        self.gauges.add(&allocation);
        self.table.insert(allocation)
    }
}

fn record(allocation: &Allocation, epoch: Epoch) -> AllocationRecord {
    let now = epoch.now;
    let relays = allocation.relays.iter().filter(|relay| relay.is_live(now)).map(|relay| RelayRecord {
        bind: relay.bind(),
        advertised: relay.advertised(),
        expires: epoch.absolute(relay.deadline),
    });
    let (permissions, channels) = (allocation.live_permissions(now), allocation.live_channels(now));
    AllocationRecord {
        tuple: allocation.tuple,
        username: allocation.identity.username().to_owned(),
        key: allocation.identity.key().clone(),
        transaction: allocation.transaction,
        created: epoch.unix.saturating_sub(now.since(allocation.created)),
        relays: relays.collect(),
        address_error: allocation.address_error,
        token: allocation.token.map(Token::to_bytes),
        permissions: permissions.map(|(address, deadline)| (address, epoch.absolute(deadline))).collect(),
        channels: channels.map(|channel| (channel.number, channel.peer, epoch.absolute(channel.deadline))).collect(),
        traffic: allocation.traffic,
        shows_rfc8656: allocation.shows_rfc8656,
    }
}
