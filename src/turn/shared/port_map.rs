//! A table with an entry for each port, or for each group of ports. It grows while workers use it.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::OnceLock;

/// The number of ports of a block.
const BLOCK: usize = 1024;

/// The number of blocks that hold all ports.
const BLOCKS: usize = (u16::MAX as usize + 1) / BLOCK;

/// Has an entry for each `PORTS` ports. `PORTS` divides 1024.
///
/// Ports are added in blocks, and remain. A block is made before the first port of it is given to a worker, so no worker
/// ever waits for one.
pub(crate) struct PortMap<T, const PORTS: usize>([OnceLock<Box<[T]>>; BLOCKS]);

impl<T: Default, const PORTS: usize> PortMap<T, PORTS> {
    /// Creates a table with the ports of a range.
    pub(crate) fn new(range: &RangeInclusive<u16>) -> Self {
        let map = Self([const { OnceLock::new() }; BLOCKS]);
        map.cover(range);
        map
    }

    /// Adds the ports of a range, unless they are there. The entries of other ports stay as they are.
    pub(crate) fn cover(&self, range: &RangeInclusive<u16>) {
        let blocks = usize::from(*range.start()) / BLOCK..=usize::from(*range.end()) / BLOCK;
        for block in self.0.get(blocks).into_iter().flatten() {
            block.get_or_init(|| (0..BLOCK / PORTS).map(|_| T::default()).collect());
        }
    }
}

impl<T, const PORTS: usize> PortMap<T, PORTS> {
    /// Returns the entry of a port; `None` if the port was never added.
    pub(crate) fn get(&self, port: u16) -> Option<&T> {
        let port = usize::from(port);
        self.0.get(port / BLOCK)?.get()?.get(port % BLOCK / PORTS)
    }

    /// Returns all entries, in the order of their ports.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().filter_map(OnceLock::get).flatten()
    }
}

impl<T, const PORTS: usize> fmt::Debug for PortMap<T, PORTS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blocks = self.0.iter().filter(|block| block.get().is_some()).count();
        f.debug_struct("PortMap").field("blocks", &blocks).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU16, Ordering};

    use super::*;

    #[test]
    fn each_entry_belongs_to_its_ports_and_stays_when_the_table_grows() {
        let map = PortMap::<AtomicU16, 2>::new(&(1000..=1030));
        let set = |port: u16| map.get(port).unwrap().store(port, Ordering::Relaxed);
        let get = |port: u16| Some(map.get(port)?.load(Ordering::Relaxed));
        (1000..=1030).step_by(2).for_each(set);
        assert_eq!((get(2048), map.iter().count()), (None, 1024));
        map.cover(&(3000..=u16::MAX));
        (3000..=u16::MAX).step_by(2).for_each(set);
        for port in (1000..=1030).chain(3000..=u16::MAX) {
            assert_eq!(get(port), Some(port & !1));
        }
        assert_eq!((get(2047), get(999)), (Some(0), Some(0)));
        assert_eq!(map.iter().count(), 1024 + (65_536 - 2048) / 2);
    }
}
