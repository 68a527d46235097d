//! Redirecting clients to another server (RFC 8489 §10, RFC 8656 §7.2 step 11).

use std::net::SocketAddr;

use crate::stun::TransactionId;
use crate::transport::Transport;
use crate::turn::contract::FiveTuple;

/// When clients are redirected. Each condition includes the preceding ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RedirectWhen {
    /// While the server drains.
    Draining,
    /// When the server has no relay port or socket for another allocation, or has reached `limits.allocations`.
    Full,
    /// Always. The server makes no allocation itself.
    Always,
}

/// The servers that clients are redirected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alternate {
    /// The servers for clients over UDP and TCP. A client is redirected to one of its own address family and keeps its
    /// transport (RFC 8489 §10).
    pub servers: Vec<SocketAddr>,
    /// The servers for clients over TLS.
    pub tls_servers: Vec<SocketAddr>,
    /// The name in their certificate, if it differs from the name in this server's certificate (RFC 8489 §14.16).
    pub domain: Option<String>,
    /// When clients are redirected.
    pub when: RedirectWhen,
}

/// The servers that one client is redirected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Redirect {
    /// Of the client's address family.
    pub(crate) server: SocketAddr,
    /// Of the other address family, if there is one: RFC 8489 §10 puts it after the first.
    pub(crate) other_family: Option<SocketAddr>,
}

impl Alternate {
    /// Selects the servers for a client; `None` if there is none of its address family. Clients choose transaction IDs
    /// at random (RFC 8489 §5), so they spread over the servers, and a retransmission gets the same servers.
    pub(crate) fn pick(&self, tuple: &FiveTuple, transaction: TransactionId) -> Option<Redirect> {
        let servers = match tuple.transport {
            Transport::Udp | Transport::Tcp => &self.servers,
            Transport::Tls => &self.tls_servers,
        };
        let is_ipv4 = tuple.client.ip().to_canonical().is_ipv4();
        let server = one_of(servers.iter().filter(|server| server.is_ipv4() == is_ipv4), transaction)?;
        let other_family = one_of(servers.iter().filter(|server| server.is_ipv4() != is_ipv4), transaction);
        Some(Redirect { server, other_family })
    }

    /// Returns the ALTERNATE-DOMAIN of a response over TLS. RFC 8489 §10 requires it if the request has
    /// MESSAGE-INTEGRITY-SHA256. Other responses over TLS have it too, because their clients may use it.
    pub(crate) fn domain_for(&self, transport: Transport) -> Option<&str> {
        match transport {
            Transport::Udp | Transport::Tcp => None,
            Transport::Tls => self.domain.as_deref(),
        }
    }
}

fn one_of<'a>(servers: impl Iterator<Item = &'a SocketAddr> + Clone, transaction: TransactionId) -> Option<SocketAddr> {
    let sum = transaction.as_bytes().iter().map(|byte| usize::from(*byte)).sum::<usize>();
    let at = sum.checked_rem(servers.clone().count())?;
    servers.copied().nth(at)
}
