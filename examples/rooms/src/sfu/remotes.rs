//! The addresses at which participants are reached. For each IP address, the forwarding unit takes a permission of its
//! allocation at the relay, which all participants of the room share.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

use super::unit::Key;
use crate::rate::{Bucket, Rate};
use crate::room::LIMITS;

/// The greatest number of addresses of a connection, from one ICE restart to the next.
const ADDRESSES: usize = 16;

/// How fast a participant may name new addresses.
const NEW: Rate = Rate { burst: 64, interval: Duration::from_secs(10) };

/// The IP addresses of all participants. A relay gives an allocation 256 permissions by default.
const PERMISSIONS: usize = 256;

/// The IP addresses that each participant may have, whatever the others have: a public one, and two at the relay. Who enters
/// again and again can take all permissions nevertheless, at the pace of entries.
const OWN: usize = 3;

/// The IP addresses that participants may have besides, all together.
const SHARED: usize = PERMISSIONS - LIMITS.room * OWN;

/// One participant may take this part of the shared ones that are free, so that a few do not take all.
const PART: usize = 8;

/// How long a permission lasts that is not used any more (RFC 8656 §9).
const PERMISSION: Duration = Duration::from_secs(5 * 60);

/// The addresses of all participants.
#[derive(Debug, Default)]
pub(super) struct Remotes {
    participants: HashMap<u32, Participant>,
    permissions: HashMap<IpAddr, Permission>,
}

/// The addresses of a participant.
#[derive(Debug)]
struct Participant {
    left: Bucket,
    known: HashSet<(Key, SocketAddr)>,
}

/// The permission for an IP address.
#[derive(Debug)]
struct Permission {
    /// The participant that named the address first.
    owner: u32,
    /// The number of addresses with it.
    uses: usize,
    /// When it ends if it has no use.
    end: Instant,
}

/// Whether the forwarding unit uses an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It does so already.
    Known,
    /// From now on.
    New,
    /// There are too many.
    Rejected,
}

impl Remotes {
    /// Admits an address of a connection, if there are not too many.
    pub(super) fn admit(&mut self, key: Key, address: SocketAddr, now: Instant) -> Admission {
        let (owner, ip) = (key.0, address.ip());
        let new = || Participant { left: Bucket::new(now), known: HashSet::new() };
        let participant = self.participants.entry(owner).or_insert_with(new);
        if participant.known.contains(&(key, address)) {
            return Admission::Known;
        }
        let present = participant.known.iter().filter(|(of, _)| *of == key).count();
        if present >= ADDRESSES || participant.left.take(NEW, now).is_err() {
            return Admission::Rejected;
        }
        self.permissions.retain(|_, permission| permission.uses > 0 || now < permission.end);
        if !self.permissions.contains_key(&ip) && !self.has_permission_left(owner) {
            return Admission::Rejected;
        }
        self.permissions.entry(ip).or_insert(Permission { owner, uses: 0, end: now }).uses += 1;
        if let Some(participant) = self.participants.get_mut(&owner) {
            participant.known.insert((key, address));
        }
        Admission::New
    }

    /// Whether a participant may take another permission.
    fn has_permission_left(&self, owner: u32) -> bool {
        let mut taken = HashMap::<u32, usize>::new();
        self.permissions.values().for_each(|permission| *taken.entry(permission.owner).or_default() += 1);
        // Those of participants that have left last for a while.
        let own = |number: u32| if self.participants.contains_key(&number) { OWN } else { 0 };
        let shared: usize = taken.iter().map(|(number, taken)| taken.saturating_sub(own(*number))).sum();
        let taken = taken.get(&owner).copied().unwrap_or_default();
        taken < OWN || taken - OWN < SHARED.saturating_sub(shared).div_ceil(PART)
    }

    /// Forgets the addresses of a connection, whose ICE restarts.
    pub(super) fn restart(&mut self, key: Key, now: Instant) {
        let Some(participant) = self.participants.get_mut(&key.0) else { return };
        for (_, address) in participant.known.extract_if(|(of, _)| *of == key) {
            release(&mut self.permissions, address.ip(), now);
        }
    }

    /// Forgets a participant.
    pub(super) fn leave(&mut self, number: u32, now: Instant) {
        let Some(participant) = self.participants.remove(&number) else { return };
        for (_, address) in participant.known {
            release(&mut self.permissions, address.ip(), now);
        }
    }
}

fn release(permissions: &mut HashMap<IpAddr, Permission>, ip: IpAddr, now: Instant) {
    if let Some(permission) = permissions.get_mut(&ip) {
        permission.uses -= 1;
        permission.end = now + PERMISSION;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Link;

    const PUBLISH: Key = (0, Link::Publish);
    const SUBSCRIBE: Key = (0, Link::Subscribe);

    /// Returns one of many ports of an address.
    fn port(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    /// Returns one of many addresses.
    fn address(number: u16) -> SocketAddr {
        let [high, low] = number.to_be_bytes();
        SocketAddr::from(([198, 51, high, low], 1))
    }

    /// Names addresses until one is rejected, and returns their number.
    fn fill(remotes: &mut Remotes, number: u32, addresses: impl IntoIterator<Item = SocketAddr>) -> usize {
        let keys = [Link::Publish, Link::Subscribe].into_iter().cycle().map(|link| (number, link));
        let mut admissions = keys.zip(addresses).map(|(key, address)| remotes.admit(key, address, Instant::now()));
        admissions.position(|admission| admission == Admission::Rejected).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_has_a_limited_number_of_addresses_until_it_restarts() {
        let (mut remotes, now) = (Remotes::default(), Instant::now());
        assert!((0..16).all(|number| remotes.admit(PUBLISH, port(number), now) == Admission::New));
        assert_eq!(remotes.admit(PUBLISH, port(0), now), Admission::Known);
        assert_eq!(remotes.admit(PUBLISH, port(99), now), Admission::Rejected);
        assert_eq!(remotes.admit(SUBSCRIBE, port(99), now), Admission::New, "another connection");
        remotes.restart(PUBLISH, now);
        assert_eq!(remotes.admit(PUBLISH, port(99), now), Admission::New);
        assert_eq!(remotes.admit(SUBSCRIBE, port(99), now), Admission::Known);
    }

    #[tokio::test(start_paused = true)]
    async fn restarts_do_not_give_a_participant_more_addresses_than_its_rate() {
        let (mut remotes, now) = (Remotes::default(), Instant::now());
        let mut admitted = 0;
        for number in 0..1_000 {
            remotes.restart(PUBLISH, now);
            admitted += usize::from(remotes.admit(PUBLISH, port(number), now) == Admission::New);
        }
        assert_eq!(admitted, 64);
        assert_eq!(remotes.admit(PUBLISH, port(2_000), now + NEW.interval), Admission::New);
    }

    #[tokio::test(start_paused = true)]
    async fn participants_that_name_many_addresses_leave_some_for_all_others() {
        let mut remotes = Remotes::default();
        let mut next = (0..).map(address);
        let taken: Vec<usize> = (0..50).map(|number| fill(&mut remotes, number, &mut next)).collect();
        assert_eq!(taken[0], 15);
        assert!(taken.iter().all(|taken| *taken >= OWN), "{taken:?}");
        assert_eq!(remotes.permissions.len(), PERMISSIONS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_permission_is_taken_until_five_minutes_after_its_last_use() {
        let (mut remotes, now) = (Remotes::default(), Instant::now());
        assert_eq!(fill(&mut remotes, 0, (0..).map(address)), 15);
        assert_eq!(remotes.admit((1, Link::Publish), address(0), now), Admission::New, "shared");
        remotes.restart(PUBLISH, now);
        assert_eq!(remotes.admit(PUBLISH, address(100), now), Admission::Rejected);
        let later = now + PERMISSION;
        assert_eq!(remotes.admit(PUBLISH, address(100), later), Admission::New);
        remotes.leave(0, later);
        remotes.leave(1, later);
        assert_eq!(remotes.admit((2, Link::Publish), address(200), later + PERMISSION), Admission::New);
        assert_eq!(remotes.permissions.len(), 1);
    }
}
