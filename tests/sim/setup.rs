//! The world that a seed makes: addresses, limits, credentials.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use turnserver::auth::time_limited::{self, TimeLimitedUsername};
use turnserver::auth::{KeyAlgorithm, LongTermKey, Secret};
use turnserver::turn::{
    Alternate, ChannelNumbers, Compat, Denial, FiveTuple, Limits, PeerPolicy, Rate, RedirectWhen, RelayRange,
    Transport, UserRates, slice_of,
};

use crate::dice::Dice;
use crate::test_world::Blueprint;

pub(crate) const REALM: &str = "sim.example.org";

/// An address of this machine that no relay socket is bound to.
const LISTENER: &str = "8.8.4.200";

/// Peers out in the world, and what the policy below has to say of each: deny beats allow beats the special ranges.
const PEERS: &[(&str, Option<Denial>)] = &[
    ("1.1.1.1", None),
    ("1.0.0.7", None),
    ("5.5.5.5", None),
    ("203.0.114.9", None),
    ("2606:4700::1111", None),
    ("2a01::99", None),
    ("2a01::9a", None),
    // Admitted by the operator, though private.
    ("10.7.0.9", None),
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
    // IPv4 relay addresses in other words are no way to a relay socket.
    ("::ffff:8.8.4.4", Some(Denial::OwnAddress)),
];

/// What the strict policy denies in addition.
const STRICTLY_DENIED: &[&str] = &["5.5.5.0/24", "1.0.0.7/32", "2a01::/16"];

#[derive(Clone, Copy, Debug)]
pub(crate) struct Relay {
    pub(crate) bind: IpAddr,
    pub(crate) advertised: IpAddr,
    /// What the policy says of a port that is not live, by either name.
    pub(crate) denial: (Denial, Denial),
}

#[derive(Clone, Debug)]
pub(crate) struct Credential {
    pub(crate) username: String,
    password: String,
    /// Whose allocations are counted together; `None` for a credential that the server knows nothing of.
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

/// So much in a second, and so much at once.
pub(crate) type Limited = Option<(u32, u32)>;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rates {
    pub(crate) peers: Limited,
    pub(crate) bytes: Limited,
    pub(crate) user_bytes: Limited,
    pub(crate) user_allocations: Limited,
}

impl Rates {
    /// In most worlds nothing is limited. The rates divide a second, so that nothing has to be rounded.
    fn roll(dice: &mut Dice) -> Self {
        if dice.percent(70) {
            return Self::default();
        }
        Self {
            peers: dice.pick(&[None, Some((1, 1)), Some((1, 3)), Some((5, 8))]),
            bytes: dice.pick(&[None, Some((1, 40)), Some((10, 1_200)), Some((1_000, 1_000))]),
            user_bytes: dice.pick(&[None, Some((1, 60)), Some((10, 1_500)), Some((500, 1_300))]),
            user_allocations: dice.pick(&[None, Some((1, 1)), Some((1, 4)), Some((2, 2))]),
        }
    }
}

fn rate(limited: Limited) -> Option<Rate> {
    limited.and_then(|(per_second, burst)| Rate::new(per_second, burst))
}

/// What does not change while the world turns.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) workers: usize,
    /// Allocations come and go.
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
    pub(crate) expiry_grace: u64,
    pub(crate) nonce_lifetime: u64,
    pub(crate) secrets: Vec<Secret>,
    pub(crate) statics: Vec<(String, &'static str)>,
    /// The wall clock at millisecond 0 of the other clock; their seconds do not begin together.
    pub(crate) unix_ms: u64,
    pub(crate) clients: Vec<FiveTuple>,
    pub(crate) alternate: Option<Alternate>,
    /// Whether the policy denies [`STRICTLY_DENIED`] too.
    pub(crate) strict: bool,
    peers: Vec<(IpAddr, Option<Denial>)>,
    nonce_key: [u8; 32],
    quota_key: [u8; 32],
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl Setup {
    pub(crate) fn roll(dice: &mut Dice) -> Self {
        let first = 50_000 + dice.between(0, 3) as u16;
        let workers = dice.between(1, 3) as usize;
        let ports = first..=first + dice.between(workers as u64 * 2 + 2, 20) as u16;
        let plain =
            Relay { bind: ip("8.8.4.4"), advertised: ip("8.8.4.4"), denial: (Denial::OwnAddress, Denial::OwnAddress) };
        let nat = Relay {
            bind: ip("10.0.0.5"),
            advertised: ip("198.51.99.1"),
            denial: (Denial::Special("private"), Denial::OwnAddress),
        };
        let v6 = Relay { bind: ip("2a00::7"), advertised: ip("2a00::7"), ..plain };
        let relays = match dice.below(8) {
            0 => vec![plain],
            1 => vec![v6],
            2 => vec![nat],
            3 => vec![nat, v6],
            _ => vec![plain, v6, nat],
        };
        let secrets = ["north wind", "south wind"].map(|text| Secret::new(text).unwrap());
        let secrets = secrets.into_iter().take(dice.pick(&[0, 1, 1, 2, 2, 2])).collect();
        let servers = ["8.8.4.200:3478", "[2a00::200]:3478"].map(|text| text.parse::<SocketAddr>().unwrap());
        let clients = (0..dice.between(6, 14))
            .map(|index| {
                let port = 4_000 + index as u16;
                let (client, server) = match dice.below(16) {
                    // The end of a tunnel, which gets no allocation.
                    0 => (SocketAddr::new(ip("2002:101:101::5"), port), servers[1]),
                    1..4 => (SocketAddr::new(ip("2a02::5"), port), servers[1]),
                    // The same client transport address on two servers' addresses makes two 5-tuples.
                    4..8 => (SocketAddr::new(ip("77.0.0.1"), 4_000), SocketAddr::new(servers[0].ip(), port)),
                    _ => (SocketAddr::new(ip("77.0.0.2"), port), servers[0]),
                };
                FiveTuple { client, server, transport: Transport::Udp }
            })
            .collect();
        let servers = ["8.8.6.1:3478", "8.8.6.2:3478", "8.8.6.3:3478", "[2a00::6]:3478"];
        let mut servers: Vec<SocketAddr> = servers.iter().map(|text| text.parse().unwrap()).collect();
        servers.retain(|_| dice.percent(60));
        let when = dice.weighted(&[10, 10, 1]);
        let when = [RedirectWhen::Draining, RedirectWhen::Full, RedirectWhen::Always][when];
        let domain = dice.percent(50).then(|| "turn2.example.org".to_owned());
        let alternate = dice.percent(60).then_some(Alternate { servers, tls_servers: Vec::new(), domain, when });
        let byte = dice.next() as u8;
        Self {
            workers,
            churn: dice.percent(30),
            ports,
            relays,
            per_user: dice.pick(&[0, 0, 1, 2, 3, 5]),
            in_all: dice.pick(&[0, 0, 3, 6, 12]),
            permissions: dice.between(1, 6) as usize,
            channels: dice.between(1, 5) as usize,
            rates: Rates::roll(dice),
            rfc5766_channels: dice.percent(40),
            draft_dual_allocation: dice.percent(40),
            expiry_grace: dice.pick(&[0, 30, 700]),
            nonce_lifetime: dice.pick(&[60, 600, 3_600]),
            secrets,
            statics: vec![("alice".to_owned(), "wonderland"), ("bob".to_owned(), "builder")],
            unix_ms: 1_700_000_000_000 + dice.between(0, 999),
            clients,
            alternate,
            strict: false,
            peers: PEERS.iter().map(|(text, denial)| (ip(text), *denial)).collect(),
            nonce_key: [byte; 32],
            quota_key: [!byte; 32],
        }
    }

    /// The configuration of the servers.
    pub(crate) fn blueprint(&self) -> Blueprint {
        let secret = |word: &str| Secret::new(word).unwrap();
        let mut own = vec![ip(LISTENER), ip("2a00::200")];
        own.extend(self.relays.iter().flat_map(|relay| [relay.bind, relay.advertised]));
        // Always an address of the server, so that the table of peers holds whether or not a relay socket is bound to it.
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
        blueprint.policy = PeerPolicy { allow: nets(&["10.7.0.0/16"]), deny, own };
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
        };
        blueprint.alternate = self.alternate.clone();
        blueprint.compat = Compat {
            channels: if self.rfc5766_channels { ChannelNumbers::Rfc5766 } else { ChannelNumbers::Rfc8656 },
            draft_dual_allocation: self.draft_dual_allocation,
        };
        blueprint.expiry_grace = self.expiry_grace;
        blueprint.relays = self.relays.iter().map(|relay| (relay.bind, relay.advertised)).collect();
        blueprint.quota_key = self.quota_key;
        blueprint
    }

    /// The relay addresses and ports of a worker.
    pub(crate) fn ranges(&self, worker: usize) -> Vec<RelayRange> {
        self.blueprint().ranges(&self.ports_of(worker))
    }

    fn ports_of(&self, worker: usize) -> RangeInclusive<u16> {
        slice_of(&self.ports, self.workers, worker).expect("there are ports for every worker")
    }

    /// The worker whose a port is.
    pub(crate) fn owner_of(&self, port: u16) -> usize {
        (0..self.workers).find(|worker| self.ports_of(*worker).contains(&port)).expect("a port of ours")
    }

    /// The worker that a 5-tuple's packets arrive at.
    pub(crate) fn worker_of(&self, client: usize) -> usize {
        client % self.workers
    }

    /// The credentials at the beginning: right ones and such as the server cannot know.
    pub(crate) fn credentials(&self, dice: &mut Dice) -> Vec<Credential> {
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
                let expires = now + dice.pick(&[5, 100, 1_000, 5_000, 100_000]);
                all.push(self.time_limited(secret, name, expires));
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

    /// Usernames that no credential is right for, whatever the password.
    pub(crate) fn strangers(&self, unix: u64) -> [Credential; 5] {
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

    /// What the policy says of an address that no live relay socket has.
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
        known.unwrap_or_else(|| panic!("{address} is no peer of this world")).1
    }

    pub(crate) fn peer(&self, dice: &mut Dice, v6: bool, allowed: bool) -> SocketAddr {
        loop {
            let (address, denial) = dice.pick(&self.peers);
            if address.is_ipv6() == v6 && denial.is_none() == allowed {
                return SocketAddr::new(address, 7_000 + dice.between(0, 2) as u16);
            }
        }
    }
}
