//! The addresses at which a participant is reached. For each, the forwarding unit takes a channel and a permission of its
//! allocation at the relay, which all participants of the room share.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::message::Link;
use crate::rate::{Bucket, Rate};

/// The greatest number of addresses of a connection, from one ICE restart to the next.
const ADDRESSES: usize = 16;

/// How fast a participant may name new addresses. A relay keeps a channel for 10 min, and by default 256 of them for an
/// allocation.
const NEW: Rate = Rate { burst: 64, interval: Duration::from_secs(10) };

/// The addresses of a participant.
#[derive(Debug)]
pub(super) struct Remotes {
    left: Bucket,
    known: HashSet<(Link, SocketAddr)>,
}

/// Whether the forwarding unit uses an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It does so already.
    Known,
    /// From now on.
    New,
    /// There are too many.
    Refused,
}

impl Remotes {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: Bucket::new(now), known: HashSet::new() }
    }

    /// Admits an address, if there are not too many.
    pub(super) fn admit(&mut self, link: Link, address: SocketAddr, now: Instant) -> Admission {
        if self.known.contains(&(link, address)) {
            return Admission::Known;
        }
        let present = self.known.iter().filter(|(of, _)| *of == link).count();
        if present >= ADDRESSES || self.left.take(NEW, now).is_err() {
            return Admission::Refused;
        }
        self.known.insert((link, address));
        Admission::New
    }

    /// Forgets the addresses of a connection, whose ICE restarts.
    pub(super) fn restart(&mut self, link: Link) {
        self.known.retain(|(of, _)| *of != link);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: usize) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], u16::try_from(port).unwrap()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_has_a_limited_number_of_addresses_until_it_restarts() {
        let mut remotes = Remotes::new(Instant::now());
        let mut admit = |link, port| remotes.admit(link, address(port), Instant::now());
        assert!((0..ADDRESSES).all(|port| admit(Link::Publish, port) == Admission::New));
        assert_eq!(admit(Link::Publish, 0), Admission::Known);
        assert_eq!(admit(Link::Publish, 99), Admission::Refused);
        assert_eq!(admit(Link::Subscribe, 99), Admission::New, "another connection");
        remotes.restart(Link::Publish);
        assert_eq!(remotes.admit(Link::Publish, address(99), Instant::now()), Admission::New);
        assert_eq!(remotes.admit(Link::Subscribe, address(99), Instant::now()), Admission::Known);
    }

    #[tokio::test(start_paused = true)]
    async fn restarts_do_not_give_a_participant_more_addresses_than_its_rate() {
        let mut remotes = Remotes::new(Instant::now());
        let mut admitted = 0;
        for port in 0..1_000 {
            remotes.restart(Link::Publish);
            admitted += usize::from(remotes.admit(Link::Publish, address(port), Instant::now()) == Admission::New);
        }
        assert_eq!(admitted, 64);
        tokio::time::advance(NEW.interval).await;
        assert_eq!(remotes.admit(Link::Publish, address(2_000), Instant::now()), Admission::New);
    }
}
