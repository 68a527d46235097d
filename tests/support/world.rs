//! Test support for the core: a configuration, servers with this configuration, and functions that pass packets to
//! them.
//!
//! The unit tests of the library, the simulation, the allocation counter and the benchmark of the core share this file.
#![allow(dead_code, reason = "each user uses only a part of it")]

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use turnserver::auth::{Authenticator, NonceMint, Revocations, Secret};
use turnserver::ip_fields::IpFields;
use turnserver::turn::{
    Alternate, ClientBurst, Compat, Context, DropReason, FiveTuple, FromClient, FromPeer, HEADROOM, Ledger, Limits,
    PeerBurst, PeerPolicy, RelayAddress, RelayAddresses, Server, Snapshot, SocketId, TAILROOM, ToClient, UserDatabase,
    UserRates,
};

/// A configuration that a test changes before it creates servers.
pub(crate) struct Blueprint {
    pub(crate) realm: String,
    pub(crate) secrets: Vec<Secret>,
    pub(crate) users: Vec<(String, Secret)>,
    /// The secret of the credentials of test links.
    pub(crate) test_links: Option<Secret>,
    /// Usernames that the operator has revoked for good.
    pub(crate) revoked: Vec<String>,
    pub(crate) former_realms: Vec<String>,
    /// The key of nonces; `None` derives it from the secrets.
    pub(crate) nonce_key: Option<[u8; 32]>,
    pub(crate) nonce_lifetime: u64,
    pub(crate) policy: PeerPolicy,
    pub(crate) udp_ports: Vec<u16>,
    pub(crate) limits: Limits,
    pub(crate) alternate: Option<Alternate>,
    pub(crate) compat: Compat,
    pub(crate) database: Option<UserDatabase>,
    pub(crate) expiry_grace: u64,
    pub(crate) refresh_events: bool,
    /// For each relay address: the address that relay sockets are bound to, and the advertised address.
    pub(crate) relays: Vec<(IpAddr, IpAddr)>,
    /// The ports of all workers.
    pub(crate) ports: RangeInclusive<u16>,
    pub(crate) quota_key: [u8; 32],
}

impl Blueprint {
    /// Returns a configuration with one relay address, without users, and almost without limits.
    pub(crate) fn new(realm: &str, relay: (&str, &str), ports: RangeInclusive<u16>) -> Self {
        let address = |text: &str| text.parse().unwrap();
        Self {
            realm: realm.to_owned(),
            secrets: Vec::new(),
            users: Vec::new(),
            test_links: None,
            revoked: Vec::new(),
            former_realms: Vec::new(),
            nonce_key: Some([3; 32]),
            nonce_lifetime: 3_000,
            policy: PeerPolicy::default(),
            udp_ports: Vec::new(),
            limits: Limits {
                allocations_per_user: 0,
                allocations: 0,
                user_rates: UserRates::default(),
                permissions_per_allocation: 8,
                channels_per_allocation: 8,
                peer_rate: None,
                byte_rate: None,
                unverified_responses: 0,
                failed_authentications: 0,
            },
            alternate: None,
            compat: Compat::default(),
            database: None,
            expiry_grace: 0,
            refresh_events: false,
            relays: vec![(address(relay.0), address(relay.1))],
            ports,
            quota_key: [5; 32],
        }
    }

    pub(crate) fn user(mut self, name: &str, password: &str) -> Self {
        self.users.push((name.to_owned(), Secret::new(password).unwrap()));
        self
    }

    /// Returns the configuration, with relay addresses of its own.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot_with(self.relay_addresses())
    }

    /// Returns the relay addresses with free ports.
    pub(crate) fn relay_addresses(&self) -> RelayAddresses {
        let address = |(bind, advertised): &(IpAddr, IpAddr)| RelayAddress::new(*bind, *advertised, &self.ports);
        self.relays.iter().map(|relay| Arc::new(address(relay))).collect()
    }

    /// Returns the configuration with relay addresses that other workers or an earlier configuration may use.
    pub(crate) fn snapshot_with(&self, relays: RelayAddresses) -> Arc<Snapshot> {
        let mut revoked = Revocations::default();
        for username in &self.revoked {
            revoked.revoke(username, u64::MAX, 0).expect("there is room");
        }
        let authenticator = Authenticator::new(self.realm.clone(), self.secrets.clone(), self.users.clone());
        let authenticator = authenticator.with_revoked(revoked).with_former_realms(self.former_realms.clone());
        let authenticator = if self.database.is_some() { authenticator.with_database() } else { authenticator };
        let authenticator = self.test_links.iter().cloned().fold(authenticator, Authenticator::with_test_links);
        let nonces = match self.nonce_key {
            Some(key) => NonceMint::from_random(key, self.nonce_lifetime),
            None => NonceMint::from_secrets(&self.secrets, self.nonce_lifetime).expect("there are secrets"),
        };
        Arc::new(Snapshot {
            nonces: nonces.with_features(authenticator.features()),
            authenticator,
            policy: self.policy.clone(),
            relays,
            udp_ports: self.udp_ports.clone(),
            limits: self.limits.clone(),
            alternate: self.alternate.clone(),
            compat: self.compat,
            database: self.database.clone(),
            expiry_grace: self.expiry_grace,
            refresh_events: self.refresh_events,
        })
    }

    pub(crate) fn ledger(&self) -> Arc<Ledger> {
        Arc::new(Ledger::new(self.relays.len() * self.ports.len(), 16, [self.quota_key; 2]))
    }

    /// Returns a ledger for one of many short runs.
    pub(crate) fn small_ledger(&self) -> Arc<Ledger> {
        Arc::new(Ledger::with_small_tables(self.relays.len() * self.ports.len(), 16, [self.quota_key; 2]))
    }

    /// Returns a server with its snapshot and ledger.
    pub(crate) fn server(&self) -> (Server, Arc<Snapshot>, Arc<Ledger>) {
        let (snapshot, ledger) = (self.snapshot(), self.ledger());
        let server = Server::new(Arc::clone(&snapshot), Arc::clone(&ledger));
        (server, snapshot, ledger)
    }
}

/// Passes one packet of a client to a server.
pub(crate) fn client_packet(
    server: &mut Server,
    cx: &mut Context<'_>,
    tuple: &FiveTuple,
    packet: &[u8],
    fields: IpFields,
    response: &mut [u8],
) -> FromClient {
    let mut burst = ClientBurst::new(0..packet.len(), None, fields);
    let decision = server.client_packet(cx, tuple, packet, &mut burst, response).expect("a packet has a decision");
    debug_assert!(server.client_packet(cx, tuple, packet, &mut burst, response).is_none(), "there was one packet");
    decision
}

/// Passes one datagram of a peer to a server. The datagram is in `buffer`, between [`HEADROOM`] and [`TAILROOM`] bytes.
/// Writes the header and the padding around it, as a worker does, and returns the range of the whole message.
pub(crate) fn peer_packet(
    server: &mut Server,
    cx: &mut Context<'_>,
    socket: SocketId,
    source: SocketAddr,
    fields: IpFields,
    buffer: &mut [u8],
) -> Result<(ToClient, std::ops::Range<usize>), DropReason> {
    let payload = HEADROOM..buffer.len() - TAILROOM;
    let mut burst = PeerBurst::new(source, payload, None, fields);
    let mut headroom = [0; HEADROOM];
    let decision = server.peer_packet(cx, socket, buffer, &mut burst, &mut headroom);
    match decision.expect("a datagram has a decision") {
        FromPeer::Relay(route) => {
            buffer[HEADROOM - route.header..HEADROOM].copy_from_slice(&headroom[HEADROOM - route.header..]);
            let end = route.payload.end + route.padding;
            buffer[route.payload.end..end].fill(0);
            let message = HEADROOM - route.header..end;
            Ok((route, message))
        }
        FromPeer::Drop(reason) => Err(reason),
    }
}
