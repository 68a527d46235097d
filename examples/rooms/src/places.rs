//! The places for connections: so many in all, and so many for each source.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::rate::network;

/// The greatest number of connections.
const ALL: usize = 2_000;

/// The greatest number of connections of a source. A page has one for its signalling and some for its files.
const OF_A_SOURCE: usize = 400;

/// The connections that exist.
#[derive(Debug, Default)]
pub(crate) struct Places {
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    of_sources: HashMap<IpAddr, usize>,
}

/// The place of a connection, free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    source: Option<IpAddr>,
}

impl Places {
    /// Takes a place. `None` as the source is a proxy, which has the connections of many. Returns `None` if there is
    /// no place.
    pub(crate) fn take(self: &Arc<Self>, source: Option<IpAddr>) -> Option<Place> {
        let source = source.map(network);
        let mut taken = self.lock();
        let of_source = source.map_or(0, |source| taken.of_sources.get(&source).copied().unwrap_or_default());
        if taken.all >= ALL || of_source >= OF_A_SOURCE {
            return None;
        }
        taken.all += 1;
        if let Some(source) = source {
            taken.of_sources.insert(source, of_source + 1);
        }
        drop(taken);
        Some(Place { places: Arc::clone(self), source })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all -= 1;
        let Some(source) = self.source else { return };
        match taken.of_sources.get_mut(&source) {
            Some(number) if *number > 1 => *number -= 1,
            _ => drop(taken.of_sources.remove(&source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_its_places_and_leaves_the_others() {
        let places = Arc::<Places>::default();
        let source = |text: &str| Some(text.parse().unwrap());
        let mut one: Vec<_> = (0..OF_A_SOURCE).map(|_| places.take(source("192.0.2.1")).unwrap()).collect();
        assert!(places.take(source("192.0.2.1")).is_none());
        let _other = places.take(source("192.0.2.2")).unwrap();
        one.pop();
        one.push(places.take(source("192.0.2.1")).unwrap());
        drop(one);
        assert_eq!(places.lock().of_sources.len(), 1);
    }

    #[test]
    fn proxies_have_all_places() {
        let places = Arc::<Places>::default();
        let _taken: Vec<_> = (0..ALL).map(|_| places.take(None).unwrap()).collect();
        assert!(places.take(None).is_none());
    }
}
