//! The log lines of the fronts that visitors can cause: at most one of each kind per minute.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::statistics::End;
use crate::net::limits::is_service;
use crate::privacy::Privacy;
use crate::proxy_protocol::Addresses;
use crate::setting::{self, name_for_operator};

/// The time from one line to the next one of its kind.
const PAUSE: Duration = Duration::from_secs(60);

/// Allows one line per minute.
#[derive(Debug, Default)]
pub(super) struct PerMinute(Cell<Option<Instant>>);

impl PerMinute {
    pub(super) fn allows(&self) -> bool {
        let allows = self.0.get().is_none_or(|last| last.elapsed() >= PAUSE);
        if allows {
            self.begin();
        }
        allows
    }

    /// Begins a minute without lines.
    pub(super) fn begin(&self) {
        self.0.set(Some(Instant::now()));
    }
}

/// Logs connections that cannot be accepted, and unexpected and missing PROXY headers.
#[derive(Debug, Default)]
pub(super) struct Log {
    accept_failed: PerMinute,
    header_unexpected: PerMinute,
    header_failed: PerMinute,
}

impl Log {
    pub(super) fn accept_failed(&self, front: SocketAddr, error: &io::Error) {
        if self.accept_failed.allows() {
            tracing::warn!(
                event = "front-accept-failed", %front, %error,
                "a connection to a front could not be accepted. If the process has too many open files, raise {}, or \
                 set fewer `connections` at the fronts",
                name_for_operator(setting::OPEN_FILES, is_service())
            );
        }
    }

    /// Logs why a connection between these addresses has ended, if the reason is its PROXY header.
    pub(super) fn header_failed(&self, end: End, Addresses { client, server }: Addresses, privacy: &Privacy) {
        match end {
            End::ProxyHeaderUnexpected if self.header_unexpected.allows() => tracing::warn!(
                event = "proxy-not-listed", client = privacy.address(client), %server, transport = "tcp",
                "PROXY header rejected: its source is not in {0}. If it is your proxy, add its address to {0}; otherwise \
                 a client tried to forge its address",
                setting::LISTEN_PROXIES
            ),
            End::ProxyHeaderMissing | End::ProxyHeaderMalformed if self.header_failed.allows() => tracing::warn!(
                event = "proxy-header-failed", proxy = %client, %server, transport = "tcp", reason = end.label(),
                "a connection of a proxy to a front was rejected: it must begin with one PROXY header. Let the proxy send \
                 one (HAProxy: send-proxy-v2; nginx: proxy_protocol on), or remove its address from {}",
                setting::LISTEN_PROXIES
            ),
            _ => {}
        }
    }
}
