//! The transports between client and server, the endpoints that clients send to, and the URIs that name them.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};

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
}
