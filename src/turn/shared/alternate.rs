//! Sending clients to another server (RFC 8489 §10, RFC 8656 §7.2 step 11).

use std::net::SocketAddr;

use crate::stun::{ErrorCode, TransactionId};
use crate::turn::contract::{Action, Event, FiveTuple, RedirectCause, Transport};
use crate::turn::protocol::response::Reject;
use crate::turn::server::Server;

/// When clients are sent elsewhere; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RedirectWhen {
    /// While the server takes no new allocations because it is about to end.
    Draining,
    /// When there is no place for another allocation: neither a relay port nor a socket, or `limits.allocations` reached.
    Full,
    /// Always: the server makes no allocation itself.
    Always,
}

/// The other servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alternate {
    /// Their transport addresses for clients over UDP and TCP. A client is sent to one of its own family, and stays with
    /// its transport (RFC 8489 §10).
    pub servers: Vec<SocketAddr>,
    /// The same for clients over TLS.
    pub tls_servers: Vec<SocketAddr>,
    /// The name in their certificate, if it is another one than in ours (RFC 8489 §14.16).
    pub domain: Option<String>,
    /// When clients are sent there.
    pub when: RedirectWhen,
}

/// Where one client is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Redirect<'a> {
    /// Of the client's family.
    pub(crate) server: SocketAddr,
    /// Of the other family, if there is one: RFC 8489 §10 wants it behind the first.
    pub(crate) other_family: Option<SocketAddr>,
    pub(crate) domain: Option<&'a str>,
}

impl Alternate {
    /// Picks for a client; `None` if there is no server of its family. Clients choose transaction IDs at random
    /// (RFC 8489 §5), so they spread over the servers, and a retransmission is sent where the request was.
    pub(crate) fn pick(&self, tuple: &FiveTuple, transaction: TransactionId) -> Option<Redirect<'_>> {
        let (servers, domain) = match tuple.transport {
            Transport::Udp | Transport::Tcp => (&self.servers, None),
            // RFC 8489 §10 demands the name of some answers over TLS; other clients over TLS may use it.
            Transport::Tls => (&self.tls_servers, self.domain.as_deref()),
        };
        let is_ipv4 = tuple.client.ip().to_canonical().is_ipv4();
        let server = one_of(servers.iter().filter(|server| server.is_ipv4() == is_ipv4), transaction)?;
        let other_family = one_of(servers.iter().filter(|server| server.is_ipv4() != is_ipv4), transaction);
        Some(Redirect { server, other_family, domain })
    }
}

impl Server {
    pub(crate) fn redirect_for(&self, tuple: &FiveTuple, transaction: TransactionId) -> Option<Redirect<'_>> {
        self.shared.alternate.as_ref()?.pick(tuple, transaction)
    }

    /// The 300 for a client that gets no allocation, if there is another server for it and it is to be sent there `when`
    /// it is so.
    pub(crate) fn redirect(
        &mut self,
        user: &str,
        tuple: FiveTuple,
        transaction: TransactionId,
        when: RedirectWhen,
        cause: RedirectCause,
    ) -> Option<Reject> {
        let alternate = self.shared.alternate.as_ref().filter(|alternate| when <= alternate.when)?;
        let Redirect { server, .. } = alternate.pick(&tuple, transaction)?;
        let user = user.to_owned();
        self.actions.push_back(Action::Log(Event::AllocationRedirected { user, tuple, server, cause }));
        Some(Reject::new(ErrorCode::TRY_ALTERNATE, ErrorCode::TRY_ALTERNATE.reason()))
    }
}

fn one_of<'a>(servers: impl Iterator<Item = &'a SocketAddr> + Clone, transaction: TransactionId) -> Option<SocketAddr> {
    let sum = transaction.as_bytes().iter().map(|byte| usize::from(*byte)).sum::<usize>();
    let at = sum.checked_rem(servers.clone().count())?;
    servers.copied().nth(at)
}
