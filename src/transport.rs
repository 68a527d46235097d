//! The transports between client and server, the endpoints that clients send to, and the URIs that name them.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::ip_fields::IpFields;

/// The transport between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// Plain UDP.
    Udp,
    /// Plain TCP.
    Tcp,
    /// TLS over TCP.
    Tls,
}

impl Transport {
    /// Every transport, in the order in which listeners are listed.
    pub const ALL: [Self; 3] = [Self::Udp, Self::Tcp, Self::Tls];

    /// Returns the name in the configuration and in logs: `udp`, `tcp` or `tls`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }

    /// Returns the protocol that the transport's ports belong to: `udp` or `tcp`.
    #[must_use]
    pub fn port_protocol(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp | Self::Tls => "tcp",
        }
    }

    /// Whether each client has a connection, which the server accepts, sends on and closes.
    #[must_use]
    pub fn is_connection(self) -> bool {
        match self {
            Self::Udp => false,
            Self::Tcp | Self::Tls => true,
        }
    }

    /// Whether messages follow each other in a byte stream. ChannelData is padded there (RFC 8656 §12.5).
    #[must_use]
    pub fn is_framed(self) -> bool {
        match self {
            Self::Udp => false,
            Self::Tcp | Self::Tls => true,
        }
    }

    /// Whether a handshake has shown that the client receives at its source address.
    #[must_use]
    pub fn proves_source(self) -> bool {
        match self {
            Self::Udp => false,
            Self::Tcp | Self::Tls => true,
        }
    }

    /// Whether each message is one datagram, with IP header fields of its own (RFC 8656 §14–§16).
    #[must_use]
    pub fn carries_ip_fields(self) -> bool {
        match self {
            Self::Udp => true,
            Self::Tcp | Self::Tls => false,
        }
    }

    /// Returns the fields to send with, of data that is relayed from or to a client on this transport. It arrived with
    /// `fields`. If the client has a connection, the fields are the defaults (RFC 8656 §14–§16). Returns `None` if the
    /// datagram must not be forwarded any more, see [`IpFields::forwarded`].
    pub(crate) fn relayed_fields(self, fields: IpFields) -> Option<IpFields> {
        if self.carries_ip_fields() { fields.forwarded() } else { Some(IpFields::default()) }
    }

    /// Whether the client authenticates the server by its certificate and the messages are encrypted.
    #[must_use]
    pub fn is_encrypted(self) -> bool {
        match self {
            Self::Udp | Self::Tcp => false,
            Self::Tls => true,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A transport and an address of the server, such as `udp 0.0.0.0:3478`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The transport.
    pub transport: Transport,
    /// The address. It may be unspecified, and its port may be 0 until the socket is bound.
    pub address: SocketAddr,
}

impl Endpoint {
    /// Returns the endpoint of `transport` at `address`.
    #[must_use]
    pub fn new(transport: Transport, address: SocketAddr) -> Self {
        Self { transport, address }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.transport, self.address)
    }
}

/// A TURN URI (RFC 7065 §3.1), such as `turn:192.0.2.7:3478?transport=udp`. The scheme is `turns` for an encrypted
/// transport. The port and the transport are always given.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TurnUri {
    transport: Transport,
    host: String,
    port: u16,
}

impl TurnUri {
    /// Returns the URI of a server that is reached at `host`: a name, an IPv4 address, or an IPv6 address with or
    /// without brackets. The host is not checked.
    #[must_use]
    pub fn new(transport: Transport, host: &str, port: u16) -> Self {
        // RFC 3986 §3.2.2: an IPv6 address is in brackets.
        let host = if host.parse::<Ipv6Addr>().is_ok() { format!("[{host}]") } else { host.to_owned() };
        Self { transport, host, port }
    }

    /// Returns the transport.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Returns the host: a name or an address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        self.host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&self.host)
    }

    /// Returns the port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Why a text is not a TURN URI that this program can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TurnUriError {
    /// The scheme is neither `turn` nor `turns`.
    #[error("a TURN URI begins with turn: or turns:, as in turn:turn.example.org:3478?transport=udp")]
    Scheme,
    /// There is `//` after the scheme.
    #[error("a TURN URI has no // after its scheme: write {0}")]
    Slashes(String),
    /// The host is missing or contains characters that no host has.
    #[error("the host {0:?} is neither a name nor an address; an IPv6 address needs brackets")]
    Host(String),
    /// The port is not a number from 1 to 65535.
    #[error("the port {0:?} is not a number from 1 to 65535")]
    Port(String),
    /// The transport is neither UDP nor TCP.
    #[error("the transport {0:?} is neither udp nor tcp")]
    Transport(String),
    /// `turns` on UDP.
    #[error("turns with transport=udp is DTLS, which browsers do not use: use transport=tcp")]
    Dtls,
}

impl FromStr for TurnUri {
    type Err = TurnUriError;

    /// Reads a URI of RFC 7065 §3.1. Without a port it is 3478, or 5349 with `turns`; without a transport it is UDP, or
    /// TLS with `turns`.
    fn from_str(text: &str) -> Result<Self, TurnUriError> {
        let (scheme, rest) = text.trim().split_once(':').ok_or(TurnUriError::Scheme)?;
        let is_encrypted = match scheme.to_ascii_lowercase().as_str() {
            "turn" => false,
            "turns" => true,
            _ => return Err(TurnUriError::Scheme),
        };
        if let Some(rest) = rest.strip_prefix("//") {
            return Err(TurnUriError::Slashes(format!("{scheme}:{rest}")));
        }
        let (authority, query) = rest.split_once('?').unwrap_or((rest, ""));
        let named = query.split('&').find_map(|pair| pair.strip_prefix("transport="));
        let transport = match (named.map(str::to_ascii_lowercase).as_deref(), is_encrypted) {
            (None | Some("tcp"), true) => Transport::Tls,
            (Some("udp"), true) => return Err(TurnUriError::Dtls),
            (None | Some("udp"), false) => Transport::Udp,
            (Some("tcp"), false) => Transport::Tcp,
            (Some(other), _) => return Err(TurnUriError::Transport(other.to_owned())),
        };
        // The colons of an IPv6 address are inside brackets.
        let after_address = authority.rfind(']').unwrap_or(0);
        let colon = authority.get(after_address..).and_then(|rest| rest.rfind(':')).map(|at| after_address + at);
        let (host, port) = match colon.and_then(|colon| authority.split_at_checked(colon)) {
            Some((host, port)) => (host, Some(port.trim_start_matches(':'))),
            None => (authority, None),
        };
        let port = match port {
            None => {
                if is_encrypted {
                    5349
                } else {
                    3478
                }
            }
            Some(port) => match port.parse::<u16>() {
                Ok(number) if number > 0 => number,
                _ => return Err(TurnUriError::Port(port.to_owned())),
            },
        };
        let is_name =
            |name: &str| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '.' | '_'));
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = address.map_or_else(|| is_name(host), |address| address.parse::<Ipv6Addr>().is_ok());
        if !is_host {
            return Err(TurnUriError::Host(host.to_owned()));
        }
        Ok(Self::new(transport, address.unwrap_or(host), port))
    }
}

impl fmt::Display for TurnUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.transport.is_encrypted() { "turns" } else { "turn" };
        write!(f, "{scheme}:{}:{}?transport={}", self.host, self.port, self.transport.port_protocol())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transports_and_endpoints_are_displayed_as_the_configuration_names_them() {
        assert_eq!(Transport::ALL.map(|transport| transport.to_string()), ["udp", "tcp", "tls"]);
        let address = "[::]:3478".parse().unwrap();
        assert_eq!(Endpoint::new(Transport::Tls, address).to_string(), "tls [::]:3478");
    }

    #[test]
    fn tls_is_tcp_with_encryption() {
        let properties = |transport: Transport| {
            (
                transport.port_protocol(),
                transport.is_connection(),
                transport.is_framed(),
                transport.proves_source(),
                transport.carries_ip_fields(),
            )
        };
        assert_eq!(properties(Transport::Udp), ("udp", false, false, false, true));
        assert_eq!(properties(Transport::Tcp), ("tcp", true, true, true, false));
        assert_eq!(properties(Transport::Tls), properties(Transport::Tcp));
        assert_eq!(Transport::ALL.map(Transport::is_encrypted), [false, false, true]);
    }

    #[test]
    fn transports_are_listed_in_ascending_order() {
        assert!(Transport::ALL.is_sorted());
    }

    // RFC 7065 §3.2: `turns` with `transport=tcp` is TLS over TCP.
    #[test]
    fn a_uri_names_scheme_host_port_and_transport() {
        let uri = |transport, host| TurnUri::new(transport, host, 3478).to_string();
        assert_eq!(uri(Transport::Udp, "192.0.2.7"), "turn:192.0.2.7:3478?transport=udp");
        assert_eq!(uri(Transport::Tcp, "turn.example.org"), "turn:turn.example.org:3478?transport=tcp");
        assert_eq!(uri(Transport::Tls, "turn.example.org"), "turns:turn.example.org:3478?transport=tcp");
    }

    #[test]
    fn an_ipv6_host_is_in_brackets() {
        for host in ["2001:db8::7", "[2001:db8::7]"] {
            let uri = TurnUri::new(Transport::Udp, host, 443);
            assert_eq!(uri.to_string(), "turn:[2001:db8::7]:443?transport=udp");
        }
    }

    // RFC 7065 §3.1, §3.2
    #[test]
    fn uris_are_read_with_the_defaults_of_their_scheme() {
        for (text, expected) in [
            ("turn:turn.example.org", "turn:turn.example.org:3478?transport=udp"),
            ("TURN:turn.example.org?transport=TCP", "turn:turn.example.org:3478?transport=tcp"),
            ("turns:turn.example.org", "turns:turn.example.org:5349?transport=tcp"),
            ("turns:192.0.2.7:443?transport=tcp", "turns:192.0.2.7:443?transport=tcp"),
            ("turn:[2001:db8::7]", "turn:[2001:db8::7]:3478?transport=udp"),
            (" turn:[2001:db8::7]:80?transport=tcp ", "turn:[2001:db8::7]:80?transport=tcp"),
        ] {
            let uri: TurnUri = text.parse().unwrap();
            assert_eq!(uri.to_string(), expected, "{text}");
            assert_eq!(uri.to_string().parse(), Ok(uri.clone()));
            assert!(!uri.host().contains('['), "{uri}");
        }
    }

    #[test]
    fn a_uri_that_cannot_be_used_is_refused_with_the_reason() {
        for (text, expected) in [
            ("", TurnUriError::Scheme),
            ("turn.example.org:3478", TurnUriError::Scheme),
            ("stun:turn.example.org", TurnUriError::Scheme),
            ("turn://turn.example.org:3478", TurnUriError::Slashes("turn:turn.example.org:3478".to_owned())),
            ("turn:", TurnUriError::Host(String::new())),
            ("turn:2001:db8::7", TurnUriError::Host("2001:db8:".to_owned())),
            ("turn:a b", TurnUriError::Host("a b".to_owned())),
            ("turn:[2001:db8::x]:1", TurnUriError::Host("[2001:db8::x]".to_owned())),
            ("turn:a:0", TurnUriError::Port("0".to_owned())),
            ("turn:a:65536", TurnUriError::Port("65536".to_owned())),
            ("turn:a:", TurnUriError::Port(String::new())),
            ("turn:a?transport=sctp", TurnUriError::Transport("sctp".to_owned())),
            ("turns:a?transport=udp", TurnUriError::Dtls),
        ] {
            assert_eq!(text.parse::<TurnUri>(), Err(expected), "{text}");
        }
    }
}
