//! Converts the configuration to the snapshot that the workers read.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::alternate::alternate;
use super::events::wants_events;
use super::fleet::FleetInUse;
use super::follow::Follower;
use super::redis;
use crate::auth::{Authenticator, NonceMint, Revocations, Secret};
use crate::clock;
use crate::config::{self, Config, RedisUnavailable};
use crate::net::tls::{Acceptor, Challenges};
use crate::privacy::Privacy;
use crate::transport::Transport;
use crate::turn::{
    self, ChannelNumbers, Compat, IcmpIndications, Limits, PeerPolicy, Rate, UserDatabase, UserRates, WhenUnavailable,
};
use crate::worker::{ConnectionLimits, Snapshot, Timeouts};

/// The parts of each snapshot of a run that are not in the configuration file.
#[derive(Debug)]
pub(super) struct SnapshotInputs {
    /// The secret that was generated for this run, if none is configured.
    pub(super) generated_secret: Option<Secret>,
    /// The secret of the credentials of test links.
    pub(super) test_links: Secret,
    /// The key for nonces if there is neither a configured nor a generated secret.
    pub(super) nonce_key: [u8; 32],
    /// The key of the hashes of names in the log.
    pub(super) log_key: [u8; 32],
    /// The usernames that the operator has revoked.
    pub(super) revoked: Revocations,
    /// The limit on connections, which the limit of open files may have reduced.
    pub(super) connections: u32,
    /// The realms of earlier configurations of this run, the latest last.
    pub(super) former_realms: Vec<String>,
    /// The secrets of the Redis server.
    pub(super) redis_secrets: Arc<[Secret]>,
    /// The indices of the interfaces that have the XDP program.
    pub(super) offload_interfaces: Arc<BTreeSet<u32>>,
    /// The challenges of an authority that are pending.
    pub(super) challenges: Arc<Challenges>,
    /// The secrets and revocations of the fleet.
    pub(super) fleet: FleetInUse,
    /// The other nodes of the fleet to which clients are redirected: over UDP and TCP, and over TLS.
    pub(super) alternates: [Vec<SocketAddr>; 2],
}

impl SnapshotInputs {
    /// Returns the secret for new credentials.
    pub(super) fn minting_secret<'s>(&'s self, config: &'s Config) -> Option<&'s Secret> {
        let of_fleet = self.fleet.secrets.first().filter(|_| self.fleet.mints);
        of_fleet.or(config.auth.secrets.first()).or(self.generated_secret.as_ref())
    }
}

/// Builds the snapshot of a configuration with the present addresses. `tls` serves TLS handshakes.
pub(super) fn snapshot(
    config: &Config,
    inputs: &SnapshotInputs,
    addresses: &Follower,
    tls: Option<Acceptor>,
) -> Snapshot {
    let SnapshotInputs {
        generated_secret,
        test_links,
        nonce_key,
        log_key,
        revoked,
        connections,
        former_realms,
        redis_secrets,
        offload_interfaces,
        challenges,
        fleet,
        alternates,
    } = inputs;
    let configured = config.auth.secrets.iter().chain(generated_secret).chain(&fleet.secrets);
    let configured: Vec<Secret> = configured.cloned().collect();
    let users = &config.auth.users;
    let passwords = users.iter().filter_map(|user| Some((user.name.clone(), user.password()?.clone())));
    let keys = users.iter().filter_map(|user| Some((user.name.clone(), user.key()?.clone())));
    let nonce_lifetime = config.auth.nonce_lifetime.as_secs();
    let nonces = NonceMint::from_secrets(&configured, nonce_lifetime)
        .unwrap_or_else(|| NonceMint::from_random(*nonce_key, nonce_lifetime));
    // A secret of Redis may be one of the configuration.
    let of_redis = redis_secrets.iter().filter(|secret| !configured.contains(secret));
    let secrets: Vec<Secret> = configured.iter().chain(of_redis).cloned().collect();
    let static_limits = users.iter().map(|user| (user.name.as_str(), user.allocations));
    let authenticator = Authenticator::new(config.realm.clone(), secrets, passwords).with_md5_keys(keys);
    let authenticator = authenticator.with_allocations(static_limits);
    let authenticator = authenticator.with_revoked(fleet.revocations(revoked, clock::unix_seconds()));
    let authenticator = authenticator.with_test_links(test_links.clone());
    let authenticator = authenticator.with_former_realms(former_realms.clone());
    let database = user_database(config);
    let authenticator = if database.is_some() { authenticator.with_database() } else { authenticator };
    let core = turn::Snapshot {
        nonces: nonces.with_features(authenticator.features()),
        authenticator,
        policy: policy(config, addresses.own().to_vec(), addresses.own_networks().to_vec()),
        relays: addresses.relays(),
        udp_ports: udp_ports(config),
        limits: limits(config, inputs.generated_secret.is_some()),
        alternate: alternate(&config.alternate, alternates),
        compat: Compat {
            channels: if config.compat.rfc5766_channels { ChannelNumbers::Rfc5766 } else { ChannelNumbers::Rfc8656 },
            draft_dual_allocation: config.compat.draft_dual_allocation,
            icmp_indications: match config.compat.icmp_indications {
                config::IcmpIndications::Auto => IcmpIndications::Auto,
                config::IcmpIndications::Always => IcmpIndications::Always,
                config::IcmpIndications::Never => IcmpIndications::Never,
            },
        },
        database,
        expiry_grace: config.auth.expiry_grace.as_secs(),
        refresh_events: config.redis_status.is_some(),
    };
    let config::Timeouts { tls_handshake, first_request, idle, unauthenticated } = config.timeouts;
    Snapshot {
        core: Arc::new(core),
        connection_limits: ConnectionLimits {
            per_source: config.limits.connections_per_source,
            allocated_per_source: config.limits.allocated_connections_per_source,
            in_all: *connections,
        },
        timeouts: Timeouts { tls_handshake, first_request, idle, unauthenticated },
        tls: tls.map(|acceptor| acceptor.with_challenges(Arc::clone(challenges))),
        challenges: Arc::clone(challenges),
        privacy: Arc::new(Privacy::new(config.log.client_addresses, config.log.usernames, *log_key)),
        offload_interfaces: Arc::clone(offload_interfaces),
        proxies: config.proxies.as_slice().into(),
        records: wants_events(config),
    }
}

/// Returns the settings of the user database, if there is one.
fn user_database(config: &Config) -> Option<UserDatabase> {
    let redis = config.auth.redis.as_ref()?;
    Some(UserDatabase {
        source: redis::source(config)?,
        time_limit: redis.time_limit,
        found_for: redis.found_for,
        absent_for: redis.absent_for,
        stale_for: redis.stale_for,
        cached_users: usize::try_from(redis.cached_users).unwrap_or(usize::MAX),
        lookups_per_second: redis.lookups_per_second,
        lookups_per_second_per_source: redis.lookups_per_second_per_source,
        when_unavailable: match redis.when_unavailable {
            RedisUnavailable::ServerError => WhenUnavailable::ServerError,
            RedisUnavailable::Unauthenticated => WhenUnavailable::Unauthenticated,
        },
    })
}

/// Returns the ports of the UDP listeners. A port that the kernel chooses is not known here; only trials use these.
fn udp_ports(config: &Config) -> Vec<u16> {
    let udp = config.listen.iter().filter(|endpoint| endpoint.transport == Transport::Udp);
    udp.map(|endpoint| endpoint.address.port()).filter(|port| *port != 0).collect()
}

/// Returns the peer policy of a configuration.
pub(super) fn policy(config: &Config, own: Vec<IpAddr>, own_networks: Vec<IpNet>) -> PeerPolicy {
    PeerPolicy {
        allow: config.peers.allow.clone(),
        deny: config.peers.deny.clone(),
        own,
        own_networks,
        nat64: config.peers.nat64_prefixes.clone(),
    }
}

/// Returns the limits. In a `trial`, everyone uses the one credential that the server has printed, so limits on the
/// allocations of a user do not apply.
fn limits(config: &Config, trial: bool) -> Limits {
    let limits = &config.limits;
    let per_user = |limit| if trial { 0 } else { limit };
    Limits {
        allocations_per_user: per_user(limits.allocations_per_user),
        allocations: limits.allocations,
        user_rates: UserRates {
            allocations: Rate::of_allocations(per_user(limits.allocations_per_second_per_user)),
            bytes: Rate::of_bytes(limits.bytes_per_second_per_user),
        },
        permissions_per_allocation: limits.permissions_per_allocation.into(),
        channels_per_allocation: limits.channels_per_allocation.into(),
        peer_rate: Rate::of_peers(limits.peers_per_second),
        byte_rate: Rate::of_bytes(limits.bytes_per_second_per_allocation),
        unverified_responses: limits.unverified_responses,
        failed_authentications: limits.failed_authentications,
    }
}
