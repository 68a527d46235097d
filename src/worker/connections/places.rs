//! The places of a worker's connections in the quota. When a source or the server is full, a connection without an
//! allocation gives way to a new one.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;

use super::ConnectionLimits;
use crate::by_source::{BySource, Source};
use crate::turn::{Quota, QuotaExceeded, Ticket};

/// The most connections that give way to one new connection. Other workers may take the places first.
const MAX_EVICTIONS: usize = 4;

/// The places of all connections of a worker.
#[derive(Debug, Default)]
pub(super) struct Places {
    next: u64,
    tickets: HashMap<u64, Ticket>,
    /// The connections without an allocation. Each is notified when it is evicted.
    without_allocation: BySource<Rc<Notify>>,
}

/// The place of one connection. Dropping it releases the place.
#[derive(Debug)]
pub(in crate::worker) struct Place {
    places: Rc<RefCell<Places>>,
    number: u64,
    source: Source,
    evicted: Rc<Notify>,
    has_allocation: bool,
}

impl Places {
    /// Counts a new connection. If its source is full, the oldest connection of the source without an allocation is
    /// evicted. If the server is full, it is the oldest of the source with the most of them. If this worker has no such
    /// connection, the error says which of the two is full.
    pub(super) fn admit(
        places: &Rc<RefCell<Self>>,
        quota: &Arc<Quota>,
        source: Source,
        limits: &ConnectionLimits,
    ) -> Result<Place, QuotaExceeded> {
        let mut this = places.borrow_mut();
        let key = source.to_string();
        let mut evictions = 0;
        let ticket = loop {
            let exceeded = match quota.admit(&key, limits.per_source, limits.in_all) {
                Ok(ticket) => break ticket,
                // Otherwise other sources would lose connections to one that is not admitted.
                Err(_) if quota.is_full(&key, limits.per_source) => QuotaExceeded::User,
                Err(exceeded) => exceeded,
            };
            let evicted = evictions < MAX_EVICTIONS
                && match exceeded {
                    QuotaExceeded::User => this.evict_of(source),
                    QuotaExceeded::Server => this.evict(),
                };
            if !evicted {
                return Err(exceeded);
            }
            evictions += 1;
        };
        let (number, evicted) = (this.next, Rc::<Notify>::default());
        this.next += 1;
        this.tickets.insert(number, ticket);
        this.without_allocation.insert(source, number, Rc::clone(&evicted));
        Ok(Place { places: Rc::clone(places), number, source, evicted, has_allocation: false })
    }

    /// Evicts a connection. Its place is free at once; the connection ends when its task runs. Returns whether there
    /// was a connection without an allocation.
    pub(super) fn evict(&mut self) -> bool {
        let oldest = self.without_allocation.pop_fullest();
        self.end(oldest)
    }

    /// Evicts the oldest connection of a source, as [`evict`](Self::evict) does.
    pub(super) fn evict_of(&mut self, source: Source) -> bool {
        let oldest = self.without_allocation.pop_oldest(source);
        self.end(oldest)
    }

    fn end(&mut self, connection: Option<(u64, Rc<Notify>)>) -> bool {
        let Some((number, evicted)) = connection else { return false };
        self.tickets.remove(&number);
        evicted.notify_one();
        true
    }
}

impl Place {
    pub(super) fn source(&self) -> Source {
        self.source
    }

    pub(super) fn has_allocation(&self) -> bool {
        self.has_allocation
    }

    /// Returns the notification of the eviction.
    pub(super) fn evicted(&self) -> Rc<Notify> {
        Rc::clone(&self.evicted)
    }

    /// Counts the connection with the others of its source that have an allocation, or with those that have none.
    ///
    /// # Errors
    /// If the source has as many connections with an allocation as it may have.
    pub(super) fn set_allocation(
        &mut self,
        quota: &Arc<Quota>,
        has_allocation: bool,
        limits: &ConnectionLimits,
    ) -> Result<(), QuotaExceeded> {
        let mut places = self.places.borrow_mut();
        // The task of an evicted connection may run once more before it ends.
        if self.has_allocation == has_allocation || !places.tickets.contains_key(&self.number) {
            return Ok(());
        }
        // The connection has a place already, so the limit in all does not apply. Neither does the limit of connections
        // without an allocation: the connection was below it once.
        let ticket = if has_allocation {
            quota.admit(&format!("{} with an allocation", self.source), limits.allocated_per_source, 0)?
        } else {
            quota.admit(&self.source.to_string(), 0, 0)?
        };
        places.tickets.insert(self.number, ticket);
        if has_allocation {
            places.without_allocation.remove(self.source, self.number);
        } else {
            places.without_allocation.insert(self.source, self.number, Rc::clone(&self.evicted));
        }
        self.has_allocation = has_allocation;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.places.borrow_mut();
        places.tickets.remove(&self.number);
        places.without_allocation.remove(self.source, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ConnectionLimits = ConnectionLimits { per_source: 3, allocated_per_source: 2, in_all: 5 };

    struct Fixture {
        quota: Arc<Quota>,
        places: Rc<RefCell<Places>>,
    }

    impl Fixture {
        fn new() -> Self {
            Self { quota: Arc::new(Quota::new(16, [7; 32])), places: Rc::default() }
        }

        fn admit(&self, host: u8) -> Result<Place, QuotaExceeded> {
            Places::admit(&self.places, &self.quota, Source::of([192, 0, 2, host].into()), &LIMITS)
        }

        fn allocate(&self, place: &mut Place) -> Result<(), QuotaExceeded> {
            place.set_allocation(&self.quota, true, &LIMITS)
        }
    }

    fn is_evicted(place: &Place) -> bool {
        !place.has_allocation && !place.places.borrow().tickets.contains_key(&place.number)
    }

    #[test]
    fn a_full_source_evicts_its_oldest_connection_without_an_allocation() {
        let fixture = Fixture::new();
        let other = fixture.admit(2).unwrap();
        let mut first: Vec<Place> = (0..3).map(|_| fixture.admit(1).unwrap()).collect();
        fixture.allocate(&mut first[0]).unwrap();
        let more = fixture.admit(1).unwrap();
        assert!(!first.iter().any(is_evicted));
        let newest = fixture.admit(1).unwrap();
        assert_eq!(
            [&other, &first[0], &first[1], &first[2], &more, &newest].map(is_evicted),
            [false, false, true, false, false, false]
        );
        assert_eq!(fixture.quota.allocations(), 5);
        drop((first, more, newest, other));
        assert_eq!(fixture.quota.allocations(), 0);
        assert_eq!(fixture.places.borrow().without_allocation.len(), 0);
    }

    #[test]
    fn a_full_source_in_a_full_server_takes_no_place_of_another_source() {
        let fixture = Fixture::new();
        let others = [2, 2].map(|host| fixture.admit(host).unwrap());
        let full: Vec<Place> = (0..3).map(|_| fixture.admit(1).unwrap()).collect();
        let newest = fixture.admit(1).unwrap();
        assert!(is_evicted(&full[0]) && !is_evicted(&newest) && !others.iter().any(is_evicted));
        // Another worker, which has connections of other sources only.
        let elsewhere = Fixture { quota: Arc::clone(&fixture.quota), places: Rc::default() };
        drop(others);
        let others = [3, 3].map(|host| elsewhere.admit(host).unwrap());
        assert_eq!(fixture.quota.allocations(), 5);
        assert_eq!(elsewhere.admit(1).unwrap_err(), QuotaExceeded::User);
        assert!(!others.iter().any(is_evicted));
    }

    #[test]
    fn the_limit_of_connections_with_an_allocation_evicts_none() {
        let fixture = Fixture::new();
        let mut places: Vec<Place> = (0..3).map(|_| fixture.admit(1).unwrap()).collect();
        fixture.allocate(&mut places[0]).unwrap();
        fixture.allocate(&mut places[1]).unwrap();
        assert_eq!(fixture.allocate(&mut places[2]), Err(QuotaExceeded::User));
        places[0].set_allocation(&fixture.quota, false, &LIMITS).unwrap();
        assert_eq!(fixture.allocate(&mut places[2]), Ok(()));
        assert!(!places.iter().any(is_evicted));
    }

    #[test]
    fn a_full_server_evicts_the_oldest_connection_without_an_allocation_of_the_fullest_source() {
        let fixture = Fixture::new();
        let old = fixture.admit(1).unwrap();
        let mut full: Vec<Place> = (0..3).map(|_| fixture.admit(2).unwrap()).collect();
        fixture.allocate(&mut full[0]).unwrap();
        let other = fixture.admit(3).unwrap();
        let newest = fixture.admit(4).unwrap();
        let evicted: Vec<bool> = full.iter().chain([&old, &other, &newest]).map(is_evicted).collect();
        assert_eq!(evicted, [false, true, false, false, false, false]);
        assert_eq!(fixture.quota.allocations(), 5);
        // The end of an evicted connection changes nothing.
        full.remove(1);
        assert_eq!(fixture.quota.allocations(), 5);
        // Each source has one. The oldest of all gives way.
        let _last = fixture.admit(5).unwrap();
        assert!(is_evicted(&old) && !is_evicted(&full[1]));
    }

    #[test]
    fn a_server_that_is_full_of_allocations_rejects_connections() {
        let fixture = Fixture::new();
        let mut places: Vec<Place> = (1..6).map(|host| fixture.admit(host).unwrap()).collect();
        places.iter_mut().for_each(|place| fixture.allocate(place).unwrap());
        assert_eq!(fixture.admit(7).unwrap_err(), QuotaExceeded::Server);
        places[3].set_allocation(&fixture.quota, false, &LIMITS).unwrap();
        assert!(fixture.admit(7).is_ok() && is_evicted(&places[3]));
    }
}
