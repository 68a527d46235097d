//! Relayed transport addresses that are reserved for the Allocate request with their token (RFC 8656 §7.2). All workers
//! share the table, because the request may arrive at another worker.
//!
//! The token of a reservation is one word. To claim or to end the reservation, a worker exchanges the token for 0. The
//! worker that succeeds then holds the port and its place in the quota.

use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::turn::shared::port_map::PortMap;
use crate::turn::shared::quota::{Quota, Ticket, TicketWord};

/// The reservations of one relay address.
#[derive(Debug)]
pub(crate) struct Reservations(PortMap<Pair, 2>);

/// A RESERVATION-TOKEN: 16 bits for the port, and 48 random bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token(NonZeroU64);

const RANDOM_BITS: u32 = 48;

impl Token {
    /// Reads a token; `None` for 0, which is never a token.
    pub(crate) fn from_bytes(bytes: [u8; 8]) -> Option<Self> {
        NonZeroU64::new(u64::from_be_bytes(bytes)).map(Self)
    }

    pub(crate) fn to_bytes(self) -> [u8; 8] {
        self.0.get().to_be_bytes()
    }

    /// Creates the token for an odd port. It is never 0, because `port` is not 0.
    fn new(port: u16, random: u64) -> Option<Self> {
        NonZeroU64::new((u64::from(port) << RANDOM_BITS) | (random >> (u64::BITS - RANDOM_BITS))).map(Self)
    }

    /// Returns the reserved port.
    pub(crate) fn port(self) -> u16 {
        let [high, low, ..] = self.to_bytes();
        u16::from_be_bytes([high, low])
    }
}

/// The reservation of the odd port of a pair.
#[derive(Debug, Default)]
struct Pair {
    /// 0 if the port is not reserved.
    token: AtomicU64,
    /// Valid while there is a token.
    ticket: AtomicU64,
}

impl Reservations {
    /// Creates a table without reservations.
    pub(crate) fn new(ports: &RangeInclusive<u16>) -> Self {
        Self(PortMap::new(ports))
    }

    /// Adds the ports of a range. Reservations stay.
    pub(crate) fn cover(&self, ports: &RangeInclusive<u16>) {
        self.0.cover(ports);
    }

    /// Returns the number of reservations.
    pub(crate) fn count(&self) -> usize {
        self.0.iter().filter(|pair| pair.token.load(Ordering::Relaxed) != 0).count()
    }

    /// Reserves the odd port of a pair that the caller holds. Returns the ticket as the error if the port cannot be
    /// reserved.
    pub(crate) fn reserve(&self, port: u16, ticket: Ticket, rng: &mut dyn rand::CryptoRng) -> Result<Token, Ticket> {
        let Some(pair) = self.pair(port) else { return Err(ticket) };
        let Some(token) = Token::new(port, rng.next_u64()) else { return Err(ticket) };
        debug_assert_eq!(pair.token.load(Ordering::Relaxed), 0, "a port is reserved once at a time");
        pair.ticket.store(ticket.into_word().to_bits(), Ordering::Relaxed);
        // Release: a worker that reads the token also reads the ticket.
        pair.token.store(token.0.get(), Ordering::Release);
        Ok(token)
    }

    /// Returns the ticket of a reservation. Another worker may claim it at the same time.
    pub(crate) fn find(&self, token: Token) -> Option<TicketWord> {
        let pair = self.pair(token.port())?;
        let found = pair.token.load(Ordering::Acquire) == token.0.get();
        found.then(|| TicketWord::from_bits(pair.ticket.load(Ordering::Relaxed)))
    }

    /// Ends a reservation. The caller that gets the ticket also holds the port.
    pub(crate) fn claim(&self, token: Token, quota: &Arc<Quota>) -> Option<Ticket> {
        let pair = self.pair(token.port())?;
        pair.token.compare_exchange(token.0.get(), 0, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(quota.ticket(TicketWord::from_bits(pair.ticket.load(Ordering::Relaxed))))
    }

    fn pair(&self, port: u16) -> Option<&Pair> {
        self.0.get(port).filter(|_| !port.is_multiple_of(2))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn a_token_is_valid_only_once_and_unmodified() {
        let (reservations, quota) = (Reservations::new(&(50_000..=50_009)), Arc::new(Quota::new(64, [7; 32])));
        let mut rng = StdRng::seed_from_u64(1);
        let token = reservations.reserve(50_003, quota.admit("ann", 0, 0).unwrap(), &mut rng).unwrap();
        let ticket = reservations.find(token).unwrap();
        assert_eq!(token.port(), 50_003);
        assert_eq!((quota.is_of(ticket, "ann"), quota.is_of(ticket, "bob")), (true, false));
        for bit in 0..64 {
            let other = Token(NonZeroU64::new(token.0.get() ^ (1 << bit)).unwrap());
            assert!(reservations.find(other).is_none() && reservations.claim(other, &quota).is_none());
        }
        assert_eq!(reservations.count(), 1);
        drop(reservations.claim(token, &quota).unwrap());
        assert!(reservations.find(token).is_none() && reservations.claim(token, &quota).is_none());
        assert_eq!((reservations.count(), quota.allocations()), (0, 0));
    }

    // A token cannot be predicted from earlier ones.
    #[test]
    fn tokens_have_forty_eight_random_bits() {
        let (reservations, quota) = (Reservations::new(&(50_000..=50_009)), Arc::new(Quota::new(64, [7; 32])));
        let mut rng = StdRng::seed_from_u64(1);
        let mut changing = 0;
        let mut tokens = BTreeSet::new();
        for _ in 0..200 {
            let token = reservations.reserve(50_001, quota.admit("ann", 0, 0).unwrap(), &mut rng).unwrap();
            changing |= token.0.get() ^ tokens.first().copied().unwrap_or(token.0.get());
            assert!(tokens.insert(token.0.get()));
            drop(reservations.claim(token, &quota).unwrap());
        }
        assert_eq!(changing, (1 << 48) - 1);
    }

    #[test]
    fn concurrent_claims_of_a_token_succeed_once() {
        let (reservations, quota) = (Reservations::new(&(50_000..=50_199)), Arc::new(Quota::new(64, [7; 32])));
        let mut rng = StdRng::seed_from_u64(1);
        let mut reserve = |port| reservations.reserve(port, quota.admit("ann", 0, 0).unwrap(), &mut rng).unwrap();
        let tokens: Vec<Token> = (50_001..=50_199).step_by(2).map(&mut reserve).collect();
        let claimed: usize = std::thread::scope(|scope| {
            let claim_all = || tokens.iter().filter_map(|token| reservations.claim(*token, &quota)).count();
            let workers = [(); 4].map(|()| scope.spawn(claim_all));
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!((claimed, reservations.count()), (100, 0));
    }
}
