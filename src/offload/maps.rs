//! The maps of the program as a worker uses them: from their descriptors alone, without capabilities.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use aya::util::nr_cpus;
use thiserror::Error;

use super::layout::{COUNTER, Counter, Direction, ENTRY, Entry, KEY, LINK, Outcome, link};
use crate::net::PerCpuArray;

/// The number of leases, and so of workers that can have entries.
pub const LEASES: u32 = 256;
/// The number of interfaces whose link addresses the program knows.
const LINKS: u32 = 256;
/// The 64-bit words of a counter.
const COUNTER_WORDS: usize = COUNTER / 8;

/// One descriptor of each map.
#[derive(Debug)]
pub struct Descriptors<T> {
    /// The entries for packets of clients.
    pub to_peer: T,
    /// The entries for packets of peers.
    pub to_client: T,
    /// What each slot has counted.
    pub counters: T,
    /// What became of the packets that have an entry.
    pub outcomes: T,
    /// Until when the entries of each worker are used.
    pub lease: T,
    /// The link addresses of interfaces.
    pub links: T,
}

impl Descriptors<&str> {
    /// The names of the maps in the object.
    pub const NAMES: Self = Self {
        to_peer: "to_peer",
        to_client: "to_client",
        counters: "counters",
        outcomes: "outcomes",
        lease: "lease",
        links: "links",
    };
}

impl<T> Descriptors<T> {
    /// Replaces each descriptor.
    ///
    /// # Errors
    /// The first error of `change`.
    pub fn try_map<U, E>(&self, mut change: impl FnMut(&T) -> Result<U, E>) -> Result<Descriptors<U>, E> {
        Ok(Descriptors {
            to_peer: change(&self.to_peer)?,
            to_client: change(&self.to_client)?,
            counters: change(&self.counters)?,
            outcomes: change(&self.outcomes)?,
            lease: change(&self.lease)?,
            links: change(&self.links)?,
        })
    }
}

type Entries = HashMap<MapData, [u8; KEY], [u8; ENTRY]>;

/// The maps of the program.
///
/// Several workers may have them, each with slots and a lease of its own.
pub struct Maps {
    descriptors: Descriptors<OwnedFd>,
    to_peer: Entries,
    to_client: Entries,
    counters: PerCpuArray,
    /// The same map, for writing.
    counters_to_write: aya::maps::PerCpuArray<MapData, [u64; COUNTER_WORDS]>,
    outcomes: PerCpuArray,
    lease: Array<MapData, u64>,
    links: Array<MapData, [u8; LINK]>,
    /// What the workers have written to `links`.
    known_links: Arc<Mutex<KnownLinks>>,
    entries: u32,
    slots: u32,
}

/// The values of `links`, by their index.
type KnownLinks = BTreeMap<u32, (u32, [u8; 6])>;

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { descriptors, entries, slots, .. } = self;
        let mut shown = f.debug_struct("Maps");
        shown.field("descriptors", descriptors).field("entries", entries).field("slots", slots).finish_non_exhaustive()
    }
}

/// Why an entry was not inserted.
#[derive(Debug, Error)]
pub enum NotInserted {
    /// The map has no room. It has the same entries as before.
    #[error("the map is full")]
    Full,
    /// Another error of the kernel.
    #[error("the kernel did not take the entry: {0}")]
    Failed(#[source] io::Error),
}

/// Why a descriptor is not that of a map of this program.
#[derive(Debug, Error)]
#[error("the map `{name}` cannot be used, and is perhaps that of another version: {reason}")]
pub struct NotUsable {
    name: &'static str,
    reason: MapError,
}

impl Maps {
    /// Uses the maps of these descriptors.
    ///
    /// # Errors
    /// If a descriptor is not that of such a map.
    pub fn new(descriptors: Descriptors<OwnedFd>) -> Result<Self, NotUsable> {
        let names = Descriptors::NAMES;
        let to_peer = entries(names.to_peer, &descriptors.to_peer)?;
        let to_client = entries(names.to_client, &descriptors.to_client)?;
        let capacity = |name, fd: &OwnedFd| {
            let info = data(name, fd)?.info().map_err(|reason| NotUsable { name, reason })?;
            Ok(info.max_entries())
        };
        Ok(Self {
            to_peer,
            to_client,
            counters: per_cpu(names.counters, &descriptors.counters, COUNTER_WORDS)?,
            counters_to_write: typed(names.counters, &descriptors.counters)?,
            outcomes: per_cpu(names.outcomes, &descriptors.outcomes, 1)?,
            lease: typed(names.lease, &descriptors.lease)?,
            links: typed(names.links, &descriptors.links)?,
            known_links: Arc::default(),
            entries: capacity(names.to_peer, &descriptors.to_peer)?
                .min(capacity(names.to_client, &descriptors.to_client)?),
            slots: capacity(names.counters, &descriptors.counters)?,
            descriptors,
        })
    }

    /// Returns the same maps with descriptors of their own, for another worker.
    ///
    /// # Errors
    /// If the process has too many open files.
    pub fn try_clone(&self) -> io::Result<Self> {
        let maps = Self::new(self.descriptors.try_map(OwnedFd::try_clone)?).map_err(io::Error::other)?;
        Ok(Self { known_links: Arc::clone(&self.known_links), ..maps })
    }

    /// The descriptors.
    #[must_use]
    pub fn descriptors(&self) -> &Descriptors<OwnedFd> {
        &self.descriptors
    }

    /// The largest number of entries of each direction.
    #[must_use]
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// The number of slots of the counters.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Inserts an entry. It replaces an entry with the same key.
    ///
    /// The interface that sends is noted with its link address, as by [`Self::set_link_address`].
    ///
    /// # Errors
    /// If the map is full, or the kernel fails.
    pub fn insert(&mut self, entry: &Entry) -> Result<(), NotInserted> {
        // First, so that there is no entry if this fails.
        self.set_link_address(entry.sent.interface, entry.sent.link_source).map_err(NotInserted::Failed)?;
        let inserted = self.map(entry.direction).insert(entry.key(), entry.value(), 0);
        inserted.map_err(io_error).map_err(|error| match error.raw_os_error() {
            Some(libc::E2BIG) => NotInserted::Full,
            _ => NotInserted::Failed(error),
        })
    }

    /// Notes the link address of an interface: frames with another one are for other hosts, and are not relayed if this
    /// interface receives them.
    ///
    /// The caller needs this only for an interface that receives packets of entries, but through which no entry sends.
    /// Until then, the program expects the link address of the interface through which the entry of a packet sends.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn set_link_address(&mut self, interface: u32, address: [u8; 6]) -> io::Result<()> {
        let place = interface % LINKS;
        // Workers share it, so that it is what the kernel has. It rarely changes.
        let mut known = self.known_links.lock().unwrap_or_else(PoisonError::into_inner);
        if known.get(&place) != Some(&(interface, address)) {
            self.links.set(place, link(interface, address), 0).map_err(io_error)?;
            known.insert(place, (interface, address));
        }
        Ok(())
    }

    /// Removes the entry with this key. Returns whether there was one.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn remove(&mut self, direction: Direction, key: &[u8; KEY]) -> io::Result<bool> {
        match self.map(direction).remove(key).map_err(io_error) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns the number of entries of a direction. It reads all keys, which takes up to 1 µs for each.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn count(&mut self, direction: Direction) -> io::Result<usize> {
        // The kernel starts again at the first key if another process removes the one that was read last.
        let most = usize::try_from(self.entries).unwrap_or(usize::MAX);
        let mut count = 0;
        for key in self.map(direction).keys().take(most) {
            key.map_err(io_error)?;
            count += 1;
        }
        Ok(count)
    }

    /// Reads the counters of consecutive slots, from `first` on, as the sums of all CPUs.
    ///
    /// # Errors
    /// If there are fewer slots, or the kernel fails.
    pub fn read_counters(&mut self, first: u32, counters: &mut [Counter]) -> io::Result<()> {
        let mut counters = counters.iter_mut();
        self.counters.read(first, counters.len(), |words| {
            if let Some(counter) = counters.next() {
                *counter = sum(words);
            }
        })
    }

    /// Reads how many packets had each outcome, in the order of [`Outcome::ALL`].
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn read_outcomes(&mut self) -> io::Result<[u64; Outcome::ALL.len()]> {
        let mut outcomes = [0; Outcome::ALL.len()];
        let mut each = outcomes.iter_mut();
        self.outcomes.read(0, Outcome::ALL.len(), |words| {
            if let Some(outcome) = each.next() {
                *outcome = words.iter().sum();
            }
        })?;
        Ok(outcomes)
    }

    /// Lets the entries of a worker be used until this time of `CLOCK_MONOTONIC`, in nanoseconds. 0 ends
    /// their use.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn extend_lease(&mut self, worker: u8, until: u64) -> io::Result<()> {
        self.lease.set(worker.into(), until, 0).map_err(io_error)
    }

    /// Ends all leases, removes all entries and link addresses, and sets all counters to zero, those of other workers
    /// and processes too.
    ///
    /// Outcomes stay.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn clear(&mut self) -> io::Result<()> {
        // The first step suffices to end the relaying.
        for worker in 0..LEASES {
            self.lease.set(worker, 0, 0).map_err(io_error)?;
        }
        let mut known = self.known_links.lock().unwrap_or_else(PoisonError::into_inner);
        known.clear();
        for place in 0..LINKS {
            self.links.set(place, [0; LINK], 0).map_err(io_error)?;
        }
        drop(known);
        for direction in [Direction::ToPeer, Direction::ToClient] {
            let keys: Result<Vec<_>, _> = self.map(direction).keys().collect();
            for key in keys.map_err(io_error)? {
                self.remove(direction, &key)?;
            }
        }
        let mut counters = vec![Counter::default(); usize::try_from(self.slots).unwrap_or_default()];
        self.read_counters(0, &mut counters)?;
        let cpus = nr_cpus().map_err(|(_, error)| error)?;
        for (slot, _) in (0..).zip(&counters).filter(|(_, counter)| **counter != Counter::default()) {
            let zero = vec![[0; COUNTER_WORDS]; cpus].try_into()?;
            self.counters_to_write.set(slot, zero, 0).map_err(io_error)?;
        }
        Ok(())
    }

    fn map(&mut self, direction: Direction) -> &mut Entries {
        match direction {
            Direction::ToPeer => &mut self.to_peer,
            Direction::ToClient => &mut self.to_client,
        }
    }
}

/// Returns the sum of the counters of all CPUs.
fn sum(words: &[u64]) -> Counter {
    let (counters, _) = words.as_chunks::<COUNTER_WORDS>();
    counters.iter().fold(Counter::default(), |sum, [packets, bytes, last]| Counter {
        packets: sum.packets.wrapping_add(*packets),
        bytes: sum.bytes.wrapping_add(*bytes),
        last: sum.last.max(*last),
    })
}

fn entries(name: &'static str, fd: &OwnedFd) -> Result<Entries, NotUsable> {
    typed(name, fd)
}

fn typed<T: TryFrom<Map, Error = MapError>>(name: &'static str, fd: &OwnedFd) -> Result<T, NotUsable> {
    let map = Map::from_map_data(data(name, fd)?).and_then(T::try_from);
    map.map_err(|reason| NotUsable { name, reason })
}

fn per_cpu(name: &'static str, fd: &OwnedFd, words: usize) -> Result<PerCpuArray, NotUsable> {
    let array = PerCpuArray::new(data(name, fd)?, words);
    array.map_err(|reason| NotUsable { name, reason })
}

fn data(name: &'static str, fd: &OwnedFd) -> Result<MapData, NotUsable> {
    let duplicate = fd.as_fd().try_clone_to_owned().map_err(MapError::IoError);
    duplicate.and_then(MapData::from_fd).map_err(|reason| NotUsable { name, reason })
}

/// Returns the error of the system call.
fn io_error(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        MapError::IoError(error) => error,
        // `remove` and `set` report these without an error of a system call.
        MapError::KeyNotFound | MapError::ElementNotFound => io::ErrorKind::NotFound.into(),
        error => io::Error::other(error),
    }
}
