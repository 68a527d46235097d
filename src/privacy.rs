//! What the log says about clients, peers and users: `log.client-addresses` and `log.usernames`.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use hmac::{Hmac, KeyInit, Mac};
use ipnet::IpNet;
use sha2::Sha256;
use tracing::field::{DisplayValue, display};

use crate::auth::time_limited::{Reading, TimeLimitedUsername};
use crate::printable::{Escaped, is_printable};

/// The maximum length of a name in a line, in characters.
const LONGEST_NAME: usize = 64;

/// The length of the hash of a name, in bytes.
const HASH: usize = 8;

/// The prefix lengths of the logged networks.
const IPV4_PREFIX: u8 = 24;
const IPV6_PREFIX: u8 = 48;
/// A 6to4 address (RFC 3056 §2) has an IPv4 address after its first 16 bits.
const IPV6_PREFIX_OF_6TO4: u8 = 16 + IPV4_PREFIX;

/// How the log shows the addresses of clients and peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAddresses {
    /// Address and port.
    #[default]
    Full,
    /// The network: an IPv4 /24 or an IPv6 /48.
    Prefix,
    /// Not at all.
    None,
}

impl ClientAddresses {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Full, Self::Prefix, Self::None];

    /// Returns the choice as written in the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Prefix => "prefix",
            Self::None => "none",
        }
    }
}

/// How the log shows the names of users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Usernames {
    /// As they are.
    #[default]
    Full,
    /// As a hash whose key is random and differs for each run.
    Hash,
    /// Not at all.
    None,
}

impl Usernames {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Full, Self::Hash, Self::None];

    /// Returns the choice as written in the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Hash => "hash",
            Self::None => "none",
        }
    }
}

/// The settings that limit what the log says, and the key of the hashes.
#[derive(Clone)]
pub struct Privacy {
    addresses: ClientAddresses,
    names: Usernames,
    key: [u8; 32],
}

impl Privacy {
    /// `key` must be random and the same for the whole run, so that lines about one user can be matched.
    #[must_use]
    pub fn new(addresses: ClientAddresses, names: Usernames, key: [u8; 32]) -> Self {
        Self { addresses, names, key }
    }

    /// Returns the address of a client or a peer for a field of a log line; `None` omits the field.
    #[must_use]
    pub fn address(&self, address: SocketAddr) -> Option<DisplayValue<LoggedAddress>> {
        let logged = match self.addresses {
            ClientAddresses::Full => LoggedAddress::Full(address),
            ClientAddresses::Prefix => LoggedAddress::Prefix(prefix_of(IpNet::from(address.ip()))),
            ClientAddresses::None => return None,
        };
        Some(display(logged))
    }

    /// Returns a range of clients or peers for the log; `None` omits it.
    #[must_use]
    pub fn network(&self, network: IpNet) -> Option<IpNet> {
        match self.addresses {
            ClientAddresses::Full => Some(network),
            ClientAddresses::Prefix => Some(prefix_of(network)),
            ClientAddresses::None => None,
        }
    }

    /// Returns the name of a user, which is not part of a USERNAME with an expiry, for the log; `None` omits it.
    ///
    /// The name may look like fields of a line. It must therefore be logged as a string, which the text format quotes,
    /// not with `%`.
    #[must_use]
    pub fn user<'n>(&self, name: &'n str) -> Option<Cow<'n, str>> {
        match self.names {
            Usernames::Full => Some(printable(name)),
            Usernames::Hash => Some(Cow::Owned(self.hash(name))),
            Usernames::None => None,
        }
    }

    /// Returns the value of USERNAME for the log; `None` omits it. Of a time-limited credential, only the name is
    /// hashed, so that it has the hash that [`user`](Self::user) returns.
    #[must_use]
    pub fn username<'n>(&self, username: &'n str) -> Option<Cow<'n, str>> {
        if self.names != Usernames::Hash {
            return self.user(username);
        }
        let parsed = TimeLimitedUsername::parse(username);
        // Without a name, the digits may be anything, such as a phone number.
        let parsed = parsed.filter(|parsed| !parsed.user.is_empty() && !parsed.is_in_milliseconds());
        Some(Cow::Owned(match parsed {
            None => self.hash(username),
            Some(TimeLimitedUsername { expires, user, reading: Reading::ExpiryLast }) => {
                format!("{}:{expires}", self.hash(user))
            }
            Some(TimeLimitedUsername { expires, user, .. }) => format!("{expires}:{}", self.hash(user)),
        }))
    }

    fn hash(&self, name: &str) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC accepts a key of any length");
        mac.update(name.as_bytes());
        mac.finalize().into_bytes().iter().take(HASH).map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for Privacy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { addresses, names, key: _ } = self;
        f.debug_struct("Privacy").field("addresses", addresses).field("names", names).finish_non_exhaustive()
    }
}

/// An address of a client or a peer, as the log shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoggedAddress {
    /// Address and port.
    Full(SocketAddr),
    /// The network.
    Prefix(IpNet),
}

impl fmt::Display for LoggedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(address) => address.fmt(f),
            Self::Prefix(network) => network.fmt(f),
        }
    }
}

/// Returns the part of a network that the log may show.
fn prefix_of(network: IpNet) -> IpNet {
    let mapped = |ip: Ipv6Addr| ip.to_ipv4_mapped().filter(|_| network.prefix_len() >= 96);
    let (ip, given) = match network.addr() {
        IpAddr::V6(ip) => match mapped(ip) {
            Some(ip) => (IpAddr::V4(ip), network.prefix_len() - 96),
            None => (IpAddr::V6(ip), network.prefix_len()),
        },
        ip @ IpAddr::V4(_) => (ip, network.prefix_len()),
    };
    let most = match ip {
        IpAddr::V4(_) => IPV4_PREFIX,
        IpAddr::V6(ip) if ip.segments().first() == Some(&0x2002) => IPV6_PREFIX_OF_6TO4,
        IpAddr::V6(_) => IPV6_PREFIX,
    };
    IpNet::new(ip, given.min(most)).map_or(network, |network| network.trunc())
}

/// Returns a name from the network with a limited length, and with its characters escaped that are not printable.
fn printable(name: &str) -> Cow<'_, str> {
    if name.len() <= LONGEST_NAME && name.chars().all(is_printable) {
        return Cow::Borrowed(name);
    }
    let end = name.char_indices().nth(LONGEST_NAME).map(|(end, _)| end);
    let mut shown = Escaped(end.and_then(|end| name.get(..end)).unwrap_or(name)).to_string();
    if end.is_some() {
        shown.push('…');
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn privacy(addresses: ClientAddresses, names: Usernames) -> Privacy {
        Privacy::new(addresses, names, [7; 32])
    }

    fn hashing() -> Privacy {
        privacy(ClientAddresses::Full, Usernames::Hash)
    }

    #[test]
    fn an_address_is_shown_in_full_as_a_prefix_or_not_at_all() {
        let shown = |addresses, address: &str| {
            let shown = privacy(addresses, Usernames::Full).address(address.parse().unwrap());
            shown.map(|shown| shown.to_string())
        };
        for (address, prefix) in [
            ("192.0.2.129:5000", "192.0.2.0/24"),
            ("[2001:db8:1:2:3::4]:5000", "2001:db8:1::/48"),
            ("[::ffff:192.0.2.129]:5000", "192.0.2.0/24"),
            ("[2002:c000:281::1]:5000", "2002:c000:200::/40"),
            ("[::1]:5000", "::/48"),
        ] {
            assert_eq!(shown(ClientAddresses::Full, address).as_deref(), Some(address));
            assert_eq!(shown(ClientAddresses::Prefix, address).as_deref(), Some(prefix));
            assert_eq!(shown(ClientAddresses::None, address), None);
        }
    }

    #[test]
    fn a_range_is_never_longer_than_the_prefix() {
        let shown = |range: &str| {
            let range = range.parse().unwrap();
            privacy(ClientAddresses::Prefix, Usernames::Full).network(range).unwrap().to_string()
        };
        assert_eq!(shown("192.0.2.1/32"), "192.0.2.0/24");
        assert_eq!(shown("10.0.0.0/8"), "10.0.0.0/8");
        assert_eq!(shown("2001:db8:1:2::/64"), "2001:db8:1::/48");
        assert_eq!(shown("2001:db8::/32"), "2001:db8::/32");
        assert_eq!(shown("::ffff:192.0.2.0/124"), "192.0.2.0/24");
        assert_eq!(shown("::/0"), "::/0");
    }

    // The expected hash is that of `openssl dgst -sha256 -mac hmac`.
    #[test]
    fn a_name_is_hashed_with_the_key_of_the_run() {
        let alice = hashing().user("alice").unwrap();
        assert_eq!(alice, "6a8851c590ddeb5a");
        assert_eq!(hashing().user("alice"), Some(alice.clone()));
        assert_ne!(hashing().user("bob"), Some(alice.clone()));
        let other_run = Privacy::new(ClientAddresses::Full, Usernames::Hash, [8; 32]);
        assert_ne!(other_run.user("alice"), Some(alice));
        assert_eq!(privacy(ClientAddresses::Full, Usernames::None).user("alice"), None);
    }

    #[test]
    fn the_expiry_of_a_username_is_readable_and_its_name_has_the_hash_of_the_user() {
        let hash = |name| hashing().user(name).unwrap().into_owned();
        let shown = |username| hashing().username(username).unwrap().into_owned();
        assert_eq!(shown("1700000000:alice"), format!("1700000000:{}", hash("alice")));
        assert_eq!(shown("alice:1700000000"), format!("{}:1700000000", hash("alice")));
        for whole in ["alice", "1700000000", "14155550100", "1700000000000:alice", ""] {
            assert_eq!(shown(whole), hash(whole), "{whole}");
        }
        let privacy = |names| privacy(ClientAddresses::Full, names);
        assert_eq!(privacy(Usernames::Full).username("1700000000:alice").as_deref(), Some("1700000000:alice"));
        assert_eq!(privacy(Usernames::None).username("1700000000:alice"), None);
    }

    #[test]
    fn names_from_the_network_cannot_forge_lines_and_are_truncated() {
        assert_eq!(printable("1700000000:alice"), "1700000000:alice");
        assert_eq!(printable("a\nINFO \u{1b}[2J"), "a\\nINFO \\u{1b}[2J");
        assert_eq!(printable("a\u{202e}b\u{2028}c"), "a\\u{202e}b\\u{2028}c");
        assert_eq!(printable(&"é".repeat(1_000)).chars().count(), LONGEST_NAME + 1);
    }

    #[test]
    fn the_key_is_not_in_debug_output() {
        let shown = format!("{:?}", hashing());
        assert_eq!(shown, "Privacy { addresses: Full, names: Hash, .. }");
    }
}
