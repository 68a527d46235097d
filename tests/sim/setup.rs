//! The world of a seed: addresses, limits, credentials.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use turnserver::auth::time_limited::{self, TimeLimitedUsername};
use turnserver::auth::{KeyAlgorithm, LongTermKey, Secret};
use turnserver::turn::{
    Alternate, ChannelNumbers, Compat, Denial, FiveTuple, IcmpIndications, Limits, PeerPolicy, Rate, RedirectWhen,
    Transport, UserRates,
};

use crate::rng::SplitMix;
use crate::test_world::Blueprint;

pub(crate) const REALM: &str = "sim.example.org";

/// An address of this machine that no relay socket is bound to.
const LISTENER: &str = "8.8.4.200";

/// An address of this machine in a range of `allow`.
const IN_ALLOWED_RANGE: &str = "10.7.0.200";

/// An address of this machine that `allow` names exactly.
const NAMED: &str = "10.7.0.201";

/// Peers, and the decision of the policy below about each: `deny` precedes `allow`, which precedes the special ranges.
const PEERS: &[(&str, Option<Denial>)] = &[
    ("1.1.1.1", None),
    ("1.0.0.7", None),
    ("5.5.5.5", None),
    ("203.0.114.9", None),
    ("2606:4700::1111", None),
    ("2a01::99", None),
    ("2a01::9a", None),
    // Private, and allowed by the operator.
    ("10.7.0.9", None),
    (IN_ALLOWED_RANGE, Some(Denial::OwnAddress)),
    (NAMED, None),
    ("9.9.9.9", Some(Denial::Operator)),
    ("10.7.1.1", Some(Denial::Operator)),
    ("127.0.0.1", Some(Denial::Special("loopback"))),
    ("192.168.1.1", Some(Denial::Special("private"))),
    ("169.254.169.254", Some(Denial::Special("link-local"))),
    ("0.0.0.0", Some(Denial::Special("this-network"))),
    (LISTENER, Some(Denial::OwnAddress)),
    ("::1", Some(Denial::Special("loopback"))),
    ("fe80::1", Some(Denial::Special("link-local"))),
    ("::ffff:127.0.0.1", Some(Denial::Special("loopback"))),
    ("::ffff:9.9.9.9", Some(Denial::Operator)),
    ("64:ff9b::7f00:1", Some(Denial::Special("loopback"))),
    ("2002:101:101::1", Some(Denial::Special("6to4"))),
    // Other notations of IPv4 relay addresses do not reach a relay socket.
    ("::ffff:8.8.4.4", Some(Denial::OwnAddress)),
];

/// The ranges that the strict policy denies in addition.
const STRICTLY_DENIED: &[&str] = &["5.5.5.0/24", "1.0.0.7/32", "2a01::/16"];

#[derive(Clone, Copy, Debug)]
pub(crate) struct Relay {
    pub(crate) bind: IpAddr,
    pub(crate) advertised: IpAddr,
    /// The decision about a port that is not live, by its bound and its advertised address.
    pub(crate) denial: (Denial, Denial),
}

#[derive(Clone, Debug)]
pub(crate) struct Credential {
    pub(crate) username: String,
    password: String,
    /// The user for the quota; `None` for a credential that the server does not accept.
    pub(crate) user: Option<String>,
    pub(crate) expires: Option<u64>,
}

impl Credential {
    pub(crate) fn key(&self, algorithm: KeyAlgorithm) -> LongTermKey {
        LongTermKey::derive_by(algorithm, &self.username, REALM, self.password.as_bytes())
    }
}

/// RFC 8489 §14.4.
pub(crate) fn userhash(username: &str) -> [u8; 32] {
    Sha256::digest(format!("{username}:{REALM}")).into()
}

/// The amount per second, and the burst.
pub(crate) type RateLimit = Option<(u32, u32)>;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rates {
    pub(crate) peers: RateLimit,
    pub(crate) bytes: RateLimit,
    pub(crate) user_bytes: RateLimit,
    pub(crate) user_allocations: RateLimit,
}

impl Rates {
    /// Generates the rate limits. Most worlds have none. The rates divide a second, so that no rounding is needed.
    fn generate(rng: &mut SplitMix) -> Self {
        if rng.percent(70) {
            return Self::default();
        }
        Self {
            peers: rng.pick(&[None, Some((1, 1)), Some((1, 3)), Some((5, 8))]),
            bytes: rng.pick(&[None, Some((1, 40)), Some((10, 1_200)), Some((1_000, 1_000))]),
            user_bytes: rng.pick(&[None, Some((1, 60)), Some((10, 1_500)), Some((500, 1_300))]),
            user_allocations: rng.pick(&[None, Some((1, 1)), Some((1, 4)), Some((2, 2))]),
        }
    }
}

fn rate(limit: RateLimit) -> Option<Rate> {
    limit.and_then(|(per_second, burst)| Rate::new(per_second, burst))
}

/// The properties of a world.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) workers: usize,
    /// Whether most steps create and delete allocations.
    pub(crate) churn: bool,
    pub(crate) ports: RangeInclusive<u16>,
    pub(crate) relays: Vec<Relay>,
    pub(crate) per_user: u32,
    pub(crate) in_all: u32,
    pub(crate) permissions: usize,
    pub(crate) channels: usize,
    pub(crate) rates: Rates,
    pub(crate) rfc5766_channels: bool,
    pub(crate) draft_dual_allocation: bool,
    pub(crate) icmp_indications: IcmpIndications,
    pub(crate) expiry_grace: u64,
    pub(crate) nonce_lifetime: u64,
    pub(crate) secrets: Vec<Secret>,
    pub(crate) statics: Vec<(String, &'static str)>,
    /// The wall clock at millisecond 0 of the monotonic clock. The seconds of the two clocks start at different times.
    pub(crate) unix_ms: u64,
    pub(crate) clients: Vec<FiveTuple>,
    pub(crate) alternate: Option<Alternate>,
    /// Whether the policy also denies [`STRICTLY_DENIED`].
    pub(crate) strict: bool,
    peers: Vec<(IpAddr, Option<Denial>)>,
    nonce_key: [u8; 32],
    quota_key: [u8; 32],
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl Setup {
    pub(crate) fn generate(rng: &mut SplitMix) -> Self {
        let first = 50_000 + rng.between(0, 3) as u16;
        let workers = rng.between(1, 3) as usize;
        let ports = first..=first + rng.between(2, 20) as u16;
        let plain =
            Relay { bind: ip("8.8.4.4"), advertised: ip("8.8.4.4"), denial: (Denial::OwnAddress, Denial::OwnAddress) };
        let nat = Relay {
            bind: ip("10.0.0.5"),
            advertised: ip("198.51.99.1"),
            denial: (Denial::Special("private"), Denial::OwnAddress),
        };
        let v6 = Relay { bind: ip("2a00::7"), advertised: ip("2a00::7"), ..plain };
        let relays = match rng.below(8) {
            0 => vec![plain],
            1 => vec![v6],
            2 => vec![nat],
            3 => vec![nat, v6],
            _ => vec![plain, v6, nat],
        };
        let secrets = ["north wind", "south wind"].map(|text| Secret::new(text).unwrap());
        let secrets = secrets.into_iter().take(rng.pick(&[0, 1, 1, 2, 2, 2])).collect();
        let servers = ["8.8.4.200:3478", "[2a00::200]:3478"].map(|text| text.parse::<SocketAddr>().unwrap());
        let clients = (0..rng.between(6, 14))
            .map(|index| {
                let port = 4_000 + index as u16;
                let (client, server) = match rng.below(16) {
                    // A tunnel endpoint, which gets no allocation.
                    0 => (SocketAddr::new(ip("2002:101:101::5"), port), servers[1]),
                    1..4 => (SocketAddr::new(ip("2a02::5"), port), servers[1]),
                    // One client transport address and several server addresses are several 5-tuples.
                    4..8 => (SocketAddr::new(ip("77.0.0.1"), 4_000), SocketAddr::new(servers[0].ip(), port)),
                    _ => (SocketAddr::new(ip("77.0.0.2"), port), servers[0]),
                };
                FiveTuple { client, server, transport: Transport::Udp }
            })
            .collect();
        let servers = ["8.8.6.1:3478", "8.8.6.2:3478", "8.8.6.3:3478", "[2a00::6]:3478"];
        let mut servers: Vec<SocketAddr> = servers.iter().map(|text| text.parse().unwrap()).collect();
        servers.retain(|_| rng.percent(60));
        let when = rng.weighted(&[10, 10, 1]);
        let when = [RedirectWhen::Draining, RedirectWhen::Full, RedirectWhen::Always][when];
        let domain = rng.percent(50).then(|| "turn2.example.org".to_owned());
        let alternate = rng.percent(60).then_some(Alternate { servers, tls_servers: Vec::new(), domain, when });
        let byte = rng.next() as u8;
        Self {
            workers,
            churn: rng.percent(30),
            ports,
            relays,
            per_user: rng.pick(&[0, 0, 1, 2, 3, 5]),
            in_all: rng.pick(&[0, 0, 3, 6, 12]),
            permissions: rng.between(1, 6) as usize,
            channels: rng.between(1, 5) as usize,
            rates: Rates::generate(rng),
            rfc5766_channels: rng.percent(40),
            draft_dual_allocation: rng.percent(40),
            icmp_indications: match byte % 8 {
                0 => IcmpIndications::Never,
                1 | 2 => IcmpIndications::Auto,
                _ => IcmpIndications::Always,
            },
            expiry_grace: rng.pick(&[0, 30, 700]),
            nonce_lifetime: rng.pick(&[60, 600, 3_600]),
            secrets,
            statics: vec![("alice".to_owned(), "wonderland"), ("bob".to_owned(), "builder")],
            unix_ms: 1_700_000_000_000 + rng.between(0, 999),
            clients,
            alternate,
            strict: false,
            peers: PEERS.iter().map(|(text, denial)| (ip(text), *denial)).collect(),
            nonce_key: [byte; 32],
            quota_key: [!byte; 32],
        }
    }

    /// Returns the configuration of the servers.
    pub(crate) fn blueprint(&self) -> Blueprint {
        let secret = |word: &str| Secret::new(word).unwrap();
        let mut own = vec![ip(LISTENER), ip("2a00::200"), ip(IN_ALLOWED_RANGE), ip(NAMED)];
        own.extend(self.relays.iter().flat_map(|relay| [relay.bind, relay.advertised]));
        // Always an address of the server, so that PEERS is correct in every world.
        own.push(ip("8.8.4.4"));
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let mut deny = nets(&["9.9.9.0/24", "10.7.1.0/24"]);
        if self.strict {
            deny.extend(nets(STRICTLY_DENIED));
        }
        let mut blueprint = Blueprint::new(REALM, ("8.8.4.4", "8.8.4.4"), self.ports.clone());
        blueprint.secrets.clone_from(&self.secrets);
        blueprint.users = self.statics.iter().map(|(name, word)| (name.clone(), secret(word))).collect();
        blueprint.nonce_key = self.secrets.is_empty().then_some(self.nonce_key);
        blueprint.nonce_lifetime = self.nonce_lifetime;
        blueprint.policy =
            PeerPolicy { allow: nets(&["10.7.0.0/16", "10.7.0.201/32"]), deny, own, ..PeerPolicy::default() };
        blueprint.limits = Limits {
            allocations_per_user: self.per_user,
            allocations: self.in_all,
            user_rates: UserRates {
                allocations: rate(self.rates.user_allocations),
                bytes: rate(self.rates.user_bytes),
            },
            permissions_per_allocation: self.permissions,
            channels_per_allocation: self.channels,
            peer_rate: rate(self.rates.peers),
            byte_rate: rate(self.rates.bytes),
            unverified_responses: 0,
            failed_authentications: 0,
        };
        blueprint.alternate = self.alternate.clone();
        blueprint.compat = Compat {
            channels: if self.rfc5766_channels { ChannelNumbers::Rfc5766 } else { ChannelNumbers::Rfc8656 },
            draft_dual_allocation: self.draft_dual_allocation,
            icmp_indications: self.icmp_indications,
        };
        blueprint.expiry_grace = self.expiry_grace;
        blueprint.relays = self.relays.iter().map(|relay| (relay.bind, relay.advertised)).collect();
        blueprint.quota_key = self.quota_key;
        blueprint
    }

    /// Returns the worker that serves a client.
    pub(crate) fn worker_of(&self, client: usize) -> usize {
        client % self.workers
    }

    /// Returns the credentials at the start.
    pub(crate) fn credentials(&self, rng: &mut SplitMix) -> Vec<Credential> {
        let mut all: Vec<Credential> = Vec::new();
        for (name, word) in &self.statics {
            all.push(Credential {
                username: name.clone(),
                password: (*word).to_owned(),
                user: Some(name.clone()),
                expires: None,
            });
        }
        let now = self.unix_ms / 1_000;
        for secret in 0..self.secrets.len() {
            for name in [Some("alice"), Some("carol"), None] {
                let expires = now + rng.pick(&[5, 100, 1_000, 5_000, 100_000]);
                all.push(match name {
                    // The first secret belongs to an application that writes the name first.
                    Some("carol") if secret == 0 => self.name_first(secret, "carol", expires),
                    _ => self.time_limited(secret, name, expires),
                });
            }
        }
        all
    }

    pub(crate) fn time_limited(&self, secret: usize, name: Option<&str>, expires: u64) -> Credential {
        let made = time_limited::mint(&self.secrets[secret], name, expires);
        let user = TimeLimitedUsername::parse(&made.username).unwrap().user;
        Credential {
            password: made.password.to_string(),
            user: Some(if user.is_empty() { made.username.clone() } else { user.to_owned() }),
            expires: Some(expires),
            username: made.username,
        }
    }

    /// Returns a credential of an application that writes the name before the expiry.
    fn name_first(&self, secret: usize, name: &str, expires: u64) -> Credential {
        let username = format!("{name}:{expires}");
        let password = time_limited::password(&self.secrets[secret], &username).to_string();
        Credential { password, user: Some(name.to_owned()), expires: Some(expires), username }
    }

    /// Returns credentials that the server does not accept.
    pub(crate) fn unknown_credentials(&self, unix: u64) -> [Credential; 5] {
        let names = [
            "mallory".to_owned(),
            format!("mallory:{}", unix + 1_000),
            format!("{}:mallory", (unix + 1_000) * 1_000),
            format!("{}:mallory", unix + 1_000),
            format!("{}:mallory", unix - 1_000),
        ];
        names.map(|username| Credential { password: "guess".to_owned(), username, user: None, expires: None })
    }

    pub(crate) fn is_relay_address(&self, address: IpAddr) -> bool {
        self.relays.iter().any(|relay| relay.advertised == address)
    }

    /// Returns the decision about an address without a live relay socket.
    pub(crate) fn denial(&self, address: IpAddr) -> Option<Denial> {
        for relay in &self.relays {
            if relay.bind == address {
                return Some(relay.denial.0);
            }
            if relay.advertised == address {
                return Some(relay.denial.1);
            }
        }
        if self.strict && STRICTLY_DENIED.iter().any(|net| net.parse::<IpNet>().unwrap().contains(&address)) {
            return Some(Denial::Operator);
        }
        let known = self.peers.iter().find(|(peer, _)| *peer == address);
        known.unwrap_or_else(|| panic!("{address} is not in PEERS")).1
    }

    pub(crate) fn peer(&self, rng: &mut SplitMix, v6: bool, allowed: bool) -> SocketAddr {
        loop {
            let (address, denial) = rng.pick(&self.peers);
            if address.is_ipv6() == v6 && denial.is_none() == allowed {
                return SocketAddr::new(address, 7_000 + rng.between(0, 2) as u16);
            }
        }
    }
}
