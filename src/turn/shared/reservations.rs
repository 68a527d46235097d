//! Relayed transport addresses that are reserved for the Allocate request with their token (RFC 8656 §7.2). All workers
//! share the table, because the request may arrive at another worker.
//!
//! A worker reserves its own ports, and ends the reservations that are not claimed in time. The token of a reservation
//! is one word. To claim or to end the reservation, a worker exchanges the token for 0. The worker that succeeds then
//! owns the port and its place in the quota. A worker returns a claimed port by setting a bit, which the owner of the
//! port collects.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::turn::shared::quota::{Quota, Ticket, TicketWord};

/// The reservations of all workers.
#[derive(Debug)]
pub struct Reservations {
    addresses: Vec<Address>,
}

/// A RESERVATION-TOKEN: 8 bits for the relay address, 16 for the port, and 40 random bits. Only ports of the first 256
/// relay addresses can be reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token(NonZeroU64);

const ADDRESS_BITS: u32 = 8;
const RANDOM_BITS: u32 = 40;

impl Token {
    /// Reads a token; `None` for 0, which is never a token.
    pub(crate) fn from_bytes(bytes: [u8; 8]) -> Option<Self> {
        NonZeroU64::new(u64::from_be_bytes(bytes)).map(Self)
    }

    pub(crate) fn to_bytes(self) -> [u8; 8] {
        self.0.get().to_be_bytes()
    }

    /// Creates the token for an odd port. It is never 0, because `port` is not 0.
    fn new(address: u8, port: u16, random: u64) -> Option<Self> {
        let place = (u64::from(address) << 16) | u64::from(port);
        NonZeroU64::new((place << RANDOM_BITS) | (random >> (u64::BITS - RANDOM_BITS))).map(Self)
    }

    fn place(self) -> (usize, u16) {
        let [address, high, low, ..] = self.to_bytes();
        (address.into(), u16::from_be_bytes([high, low]))
    }
}

/// A reserved relayed transport address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reserved {
    pub(crate) bind: SocketAddr,
    pub(crate) relayed: SocketAddr,
    /// Its place in the quota.
    pub(crate) ticket: TicketWord,
}

#[derive(Debug)]
struct Address {
    bind: IpAddr,
    advertised: IpAddr,
    /// The even port of the first pair.
    first: u16,
    pairs: Box<[Pair]>,
    /// A bit for each pair, set if its odd port is returned.
    returned: Box<[AtomicU64]>,
}

/// The reservation of the odd port of a pair.
#[derive(Debug)]
struct Pair {
    /// 0 if the port is not reserved.
    token: AtomicU64,
    /// Valid while there is a token.
    ticket: AtomicU64,
}

impl Reservations {
    /// Creates a table without reservations. `addresses` are pairs of the address that relay sockets are bound to and
    /// the advertised address, each with `ports`.
    #[must_use]
    pub fn new(addresses: impl IntoIterator<Item = (IpAddr, IpAddr)>, ports: &RangeInclusive<u16>) -> Self {
        let first = ports.start() & !1;
        let pairs = usize::from(ports.end().saturating_sub(first) / 2) + 1;
        let word = || AtomicU64::new(0);
        let address = |(bind, advertised)| Address {
            bind,
            advertised,
            first,
            pairs: (0..pairs).map(|_| Pair { token: word(), ticket: word() }).collect(),
            returned: (0..pairs.div_ceil(64)).map(|_| word()).collect(),
        };
        Self { addresses: addresses.into_iter().map(address).collect() }
    }

    /// Returns the number of reservations.
    #[must_use]
    pub fn count(&self) -> usize {
        let pairs = self.addresses.iter().flat_map(|address| &address.pairs);
        pairs.filter(|pair| pair.token.load(Ordering::Relaxed) != 0).count()
    }

    /// Returns the number of returned ports that their owners have not collected.
    #[must_use]
    pub fn returned(&self) -> usize {
        let words = self.addresses.iter().flat_map(|address| &address.returned);
        words.map(|word| word.load(Ordering::Relaxed).count_ones() as usize).sum()
    }

    /// Whether ports of a relay address can be reserved.
    pub(crate) fn cover(&self, bind: IpAddr) -> bool {
        self.addresses.iter().take(1 << ADDRESS_BITS).any(|address| address.bind == bind)
    }

    /// Reserves the odd port of a pair that the caller owns. Returns the ticket as the error if the port cannot be
    /// reserved.
    pub(crate) fn reserve(
        &self,
        bind: SocketAddr,
        ticket: Ticket,
        rng: &mut dyn rand::CryptoRng,
    ) -> Result<Token, Ticket> {
        let found = self.find_pair(bind).and_then(|(at, address, index)| Some((at, address.pairs.get(index)?)));
        let Some((at, pair)) = found else { return Err(ticket) };
        let Some(token) = Token::new(at, bind.port(), rng.next_u64()) else { return Err(ticket) };
        debug_assert_eq!(pair.token.load(Ordering::Relaxed), 0, "a port is reserved once at a time");
        pair.ticket.store(ticket.into_word().to_bits(), Ordering::Relaxed);
        // Release: a worker that reads the token also reads the ticket.
        pair.token.store(token.0.get(), Ordering::Release);
        Ok(token)
    }

    /// Returns the address that a token reserves. Another worker may claim it at the same time.
    pub(crate) fn find(&self, token: Token) -> Option<Reserved> {
        let (address, pair) = self.pair(token)?;
        let port = token.place().1;
        (pair.token.load(Ordering::Acquire) == token.0.get()).then(|| Reserved {
            bind: SocketAddr::new(address.bind, port),
            relayed: SocketAddr::new(address.advertised, port),
            ticket: TicketWord::from_bits(pair.ticket.load(Ordering::Relaxed)),
        })
    }

    /// Ends a reservation. The caller that gets the ticket also owns the port.
    pub(crate) fn claim(&self, token: Token, quota: &Arc<Quota>) -> Option<Ticket> {
        let (_, pair) = self.pair(token)?;
        pair.token.compare_exchange(token.0.get(), 0, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(quota.ticket(TicketWord::from_bits(pair.ticket.load(Ordering::Relaxed))))
    }

    /// Returns a claimed port to the worker that owns it.
    pub(crate) fn return_port(&self, bind: SocketAddr) {
        let Some((_, address, index)) = self.find_pair(bind) else { return };
        if let Some(word) = address.returned.get(index / 64) {
            // Release: the socket is closed before the owner reads the bit.
            word.fetch_or(1 << (index % 64), Ordering::Release);
        }
    }

    /// Collects the returned ports of a relay address that are in `ports`.
    pub(crate) fn collect(&self, bind: IpAddr, ports: &RangeInclusive<u16>, mut take: impl FnMut(u16)) {
        let Some(address) = self.addresses.iter().find(|address| address.bind == bind) else { return };
        let (Some(first), Some(last)) = (address.index(ports.start() | 1), address.index(*ports.end())) else { return };
        for (word, at) in address.returned.iter().zip(0..).take(last / 64 + 1).skip(first / 64) {
            let back = word.load(Ordering::Relaxed);
            for bit in (0..64).filter(|bit| back & (1 << bit) != 0) {
                let port = address.first + 2 * (64 * at + bit) + 1;
                if ports.contains(&port) {
                    word.fetch_and(!(1 << bit), Ordering::Acquire);
                    take(port);
                }
            }
        }
    }

    fn pair(&self, token: Token) -> Option<(&Address, &Pair)> {
        let (at, port) = token.place();
        let address = self.addresses.get(at)?;
        Some((address, address.pairs.get(address.index(port)?)?))
    }

    /// Returns the relay address of an odd port, with the index of the address and the index of the port's pair.
    fn find_pair(&self, bind: SocketAddr) -> Option<(u8, &Address, usize)> {
        let (at, address) = (0..=u8::MAX).zip(&self.addresses).find(|(_, address)| address.bind == bind.ip())?;
        Some((at, address, address.index(bind.port()).filter(|_| !bind.port().is_multiple_of(2))?))
    }
}

impl Address {
    fn index(&self, port: u16) -> Option<usize> {
        port.checked_sub(self.first).map(|above| usize::from(above / 2))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;
    use crate::turn::shared::quota::Quota;

    const BIND: &str = "10.0.0.5";

    fn reservations(ports: RangeInclusive<u16>) -> Reservations {
        let addresses = [("10.0.0.4", "203.0.113.4"), (BIND, "203.0.113.9")];
        Reservations::new(
            addresses.map(|(bind, advertised)| (bind.parse().unwrap(), advertised.parse().unwrap())),
            &ports,
        )
    }

    fn bind(port: u16) -> SocketAddr {
        SocketAddr::new(BIND.parse().unwrap(), port)
    }

    #[test]
    fn a_token_is_valid_only_once_and_unmodified() {
        let (reservations, quota) = (reservations(50_000..=50_009), Arc::new(Quota::new(64, [7; 32])));
        let mut rng = StdRng::seed_from_u64(1);
        let token = reservations.reserve(bind(50_003), quota.admit("ann", 0, 0).unwrap(), &mut rng).unwrap();
        let found = reservations.find(token).unwrap();
        assert_eq!((found.bind, found.relayed), (bind(50_003), "203.0.113.9:50003".parse().unwrap()));
        assert_eq!((quota.is_of(found.ticket, "ann"), quota.is_of(found.ticket, "bob")), (true, false));
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
    fn tokens_have_forty_random_bits() {
        let (reservations, quota) = (reservations(50_000..=50_009), Arc::new(Quota::new(64, [7; 32])));
        let mut rng = StdRng::seed_from_u64(1);
        let mut changing = 0;
        let mut tokens = BTreeSet::new();
        for _ in 0..200 {
            let token = reservations.reserve(bind(50_001), quota.admit("ann", 0, 0).unwrap(), &mut rng).unwrap();
            changing |= token.0.get() ^ tokens.first().copied().unwrap_or(token.0.get());
            assert!(tokens.insert(token.0.get()));
            drop(reservations.claim(token, &quota).unwrap());
        }
        assert_eq!(changing, (1 << 40) - 1);
    }

    #[test]
    fn ports_are_returned_to_the_worker_that_owns_them() {
        let reservations = reservations(50_001..=50_400);
        let odd: BTreeSet<u16> = (50_001..=50_399).step_by(2).collect();
        odd.iter().for_each(|port| reservations.return_port(bind(*port)));
        assert_eq!(reservations.returned(), 200);
        let collect = |ports: &RangeInclusive<u16>| {
            let mut back = BTreeSet::new();
            reservations.collect(BIND.parse().unwrap(), ports, |port| assert!(back.insert(port)));
            back
        };
        let mut all = BTreeSet::new();
        for ports in [50_001..=50_001, 50_002..=50_127, 50_128..=50_128, 50_129..=50_131, 50_132..=50_400] {
            let back = collect(&ports);
            assert_eq!(back, odd.iter().copied().filter(|port| ports.contains(port)).collect());
            all.extend(back);
        }
        assert_eq!((all, reservations.returned()), (odd, 0));
    }

    #[test]
    fn concurrent_claims_of_a_token_succeed_once() {
        let (reservations, quota) = (reservations(50_000..=50_199), Arc::new(Quota::new(64, [7; 32])));
        let mut rng = StdRng::seed_from_u64(1);
        let mut reserve = |port| reservations.reserve(bind(port), quota.admit("ann", 0, 0).unwrap(), &mut rng).unwrap();
        let tokens: Vec<Token> = (50_001..=50_199).step_by(2).map(&mut reserve).collect();
        let claimed: usize = std::thread::scope(|scope| {
            let claim_all = || tokens.iter().filter_map(|token| reservations.claim(*token, &quota)).count();
            let workers = [(); 4].map(|()| scope.spawn(claim_all));
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!((claimed, reservations.count()), (100, 0));
    }
}
