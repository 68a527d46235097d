//! The permissions of an allocation (RFC 8656 §9).

use std::net::IpAddr;
use std::time::Duration;

use super::short_list::insert;
use crate::turn::time::{Deadline, Instant};

/// RFC 8656 §9: it MUST be 300 seconds.
const PERMISSION_LIFETIME: Duration = Duration::from_secs(300);

/// The permissions of an allocation, ordered by address.
#[derive(Debug, Default)]
pub(crate) struct Permissions {
    list: Vec<Permission>,
}

#[derive(Debug)]
struct Permission {
    address: IpAddr,
    deadline: Deadline,
}

impl Permissions {
    pub(crate) fn allows(&self, address: IpAddr, now: Instant) -> bool {
        self.find(address).is_ok_and(|at| self.list.get(at).is_some_and(|found| !found.deadline.has_passed(now)))
    }

    /// Installs or refreshes a permission.
    pub(crate) fn install(&mut self, address: IpAddr, now: Instant) {
        self.install_until(address, Deadline::after(now, PERMISSION_LIFETIME));
    }

    /// Like [`install`](Self::install), with the given deadline.
    pub(crate) fn install_until(&mut self, address: IpAddr, deadline: Deadline) {
        match self.find(address) {
            Ok(at) => {
                if let Some(found) = self.list.get_mut(at) {
                    found.deadline = deadline;
                }
            }
            Err(at) => insert(&mut self.list, at, Permission { address, deadline }),
        }
    }

    /// Returns how many distinct `addresses` have no entry.
    pub(crate) fn missing(&self, addresses: impl Iterator<Item = IpAddr>) -> usize {
        let mut new: Vec<IpAddr> = addresses.filter(|address| self.find(*address).is_err()).collect();
        new.sort_unstable();
        new.dedup();
        new.len()
    }

    /// Removes the permissions that `keep` does not accept.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(IpAddr, Deadline) -> bool) {
        self.list.retain(|permission| keep(permission.address, permission.deadline));
    }

    /// Returns each permission.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (IpAddr, Deadline)> {
        self.list.iter().map(|permission| (permission.address, permission.deadline))
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    fn find(&self, address: IpAddr) -> Result<usize, usize> {
        self.list.binary_search_by_key(&address, |permission| permission.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Instant {
        Instant::from_elapsed(Duration::from_secs(second))
    }

    // RFC 8656 §9: 300 seconds, by address alone.
    #[test]
    fn a_permission_lasts_five_minutes_from_its_last_refresh() {
        let address = IpAddr::from([192, 0, 2, 1]);
        let mut permissions = Permissions::default();
        permissions.install(address, at(0));
        assert!(permissions.allows(address, at(299)));
        permissions.install(address, at(299));
        assert!(permissions.allows(address, at(598)));
        assert!(!permissions.allows(address, at(599)));
        assert_eq!(permissions.len(), 1);
    }

    #[test]
    fn missing_counts_distinct_new_addresses() {
        let mut permissions = Permissions::default();
        let [a, b, c]: [IpAddr; 3] = [[192, 0, 2, 1], [192, 0, 2, 2], [192, 0, 2, 3]].map(IpAddr::from);
        permissions.install(b, at(0));
        assert_eq!(permissions.missing([a, b, c, a].into_iter()), 2);
    }
}
