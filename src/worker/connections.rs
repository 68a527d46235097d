//! Connections (TCP and TLS): how many there were, and how each of them ended.

use std::fmt;

use crate::net::tls::Failure;
use crate::turn::QuotaExceeded;

macro_rules! closes {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// Why a connection ended. Every one that was admitted ends in exactly one of these.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Close {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Close {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The name in logs and counters.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)+
                }
            }
        }
    };
}

closes! {
    /// The client closed it, or its half of it.
    ByClient = "closed-by-client",
    /// The client's half of a TLS connection ended without `close_notify`, or during the handshake.
    Truncated = "closed-without-notify",
    /// What the client sent is no TURN.
    Garbage = "not-turn",
    /// The client negotiated `stun.nat-discovery` and asked for something else (RFC 7443).
    OtherUsage = "not-nat-discovery",
    /// The client does not read what it asked for.
    Unread = "answers-unread",
    /// The client made no request in time, and has no allocation.
    Idle = "idle",
    /// The client has asked for long enough without ever having had an allocation.
    Unauthenticated = "unauthenticated",
    /// The connection broke.
    Broken = "broken",
    /// The TLS handshake was not done in time.
    HandshakeTimeout = "tls-handshake-timeout",
    /// There were many unfinished TLS handshakes, and this was the oldest.
    HandshakeGaveWay = "tls-handshake-gave-way",
    /// The client sent more than a TLS handshake takes.
    HandshakeTooLong = "tls-handshake-too-long",
    /// What the client sent is no TLS.
    NotTls = "not-tls",
    /// None of the protocols that the client offered is ours (RFC 7301 §3.2).
    NoApplicationProtocol = "no-application-protocol",
    /// The client has no TLS version, cipher suite or signature scheme in common with us.
    Incompatible = "tls-incompatible",
    /// The client sent a TLS alert: it does not trust the certificate, for example.
    Alert = "tls-alert-from-client",
    /// The client broke the rules of TLS.
    Violation = "tls-violation",
    /// The server stopped.
    ServerStopped = "server-stopped",
}

impl From<Failure> for Close {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotTls => Self::NotTls,
            Failure::NoApplicationProtocol => Self::NoApplicationProtocol,
            Failure::Incompatible => Self::Incompatible,
            Failure::Alert => Self::Alert,
            Failure::Violation => Self::Violation,
            Failure::TooLong => Self::HandshakeTooLong,
            Failure::Truncated => Self::Truncated,
            Failure::Broken => Self::Broken,
        }
    }
}

impl fmt::Display for Close {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// How many connections there were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionCounters {
    admitted: u64,
    refused_by_source: u64,
    refused_in_all: u64,
    not_accepted: u64,
    ended: [u64; Close::ALL.len()],
}

impl ConnectionCounters {
    pub(super) fn admitted(&mut self) {
        self.admitted += 1;
    }

    pub(super) fn refused(&mut self, exceeded: QuotaExceeded) {
        match exceeded {
            QuotaExceeded::User => self.refused_by_source += 1,
            QuotaExceeded::Server => self.refused_in_all += 1,
        }
    }

    pub(super) fn not_accepted(&mut self) {
        self.not_accepted += 1;
    }

    pub(super) fn ended(&mut self, close: Close) {
        self.add_ended(close, 1);
    }

    /// Those that are open end with the server.
    pub(super) fn server_stopped(&mut self) {
        let ended: u64 = self.ended.iter().sum();
        self.add_ended(Close::ServerStopped, self.admitted.saturating_sub(ended));
    }

    fn add_ended(&mut self, close: Close, count: u64) {
        if let Some(counter) = self.ended.get_mut(close as usize) {
            *counter += count;
        }
    }

    /// Adds the counts of another worker.
    pub fn add(&mut self, other: &Self) {
        self.admitted += other.admitted;
        self.refused_by_source += other.refused_by_source;
        self.refused_in_all += other.refused_in_all;
        self.not_accepted += other.not_accepted;
        for (counter, count) in self.ended.iter_mut().zip(other.ended) {
            *counter += count;
        }
    }

    /// Everything that occurred, with its name and count. `admitted` is the sum of the ends behind the first four.
    pub fn occurred(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let accepting = [
            ("admitted", self.admitted),
            ("refused connections-per-source", self.refused_by_source),
            ("refused connections", self.refused_in_all),
            ("accept failed", self.not_accepted),
        ];
        let ended = Close::ALL.iter().map(|close| close.label()).zip(self.ended);
        accepting.into_iter().chain(ended).filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_end_has_a_counter_and_a_name_of_its_own() {
        let mut counters = ConnectionCounters::default();
        for close in Close::ALL {
            counters.admitted();
            counters.ended(*close);
        }
        let mut sum = counters.clone();
        sum.add(&counters);
        let expected: Vec<(&str, u64)> = [("admitted", 2 * Close::ALL.len() as u64)]
            .into_iter()
            .chain(Close::ALL.iter().map(|close| (close.label(), 2)))
            .collect();
        assert_eq!(sum.occurred().collect::<Vec<_>>(), expected);
        assert_eq!(expected.iter().map(|(name, _)| name).collect::<BTreeSet<_>>().len(), expected.len());
    }

    #[test]
    fn what_is_open_at_the_stop_ends_with_it() {
        let mut counters = ConnectionCounters::default();
        counters.refused(QuotaExceeded::User);
        counters.refused(QuotaExceeded::Server);
        counters.not_accepted();
        for _ in 0..3 {
            counters.admitted();
        }
        counters.ended(Close::ByClient);
        counters.server_stopped();
        let occurred: Vec<_> = counters.occurred().collect();
        assert_eq!(
            occurred,
            [
                ("admitted", 3),
                ("refused connections-per-source", 1),
                ("refused connections", 1),
                ("accept failed", 1),
                ("closed-by-client", 1),
                ("server-stopped", 2)
            ]
        );
    }
}
