//! The pairs that are asked for, what the kernel has reported, and what follows from it. No sockets and no clock.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Bound::{self, Excluded, Included, Unbounded};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::judge::{self, Hop, Link, Neighbour, Response, Rule};
use super::message::Message;
use super::{Notice, Owner, Pair, Resolution};

/// After this time, owners of a stale neighbour are asked to use it, and again after each such time.
pub(super) const USE_AFTER: Duration = Duration::from_secs(5);
/// The number of pairs of a stale neighbour that are asked for a packet at a time: some may have none.
const USES: usize = 8;
/// The most stale neighbours that one step asks to use.
const USED: usize = 256;
/// The time in which the routes of all pairs are asked for again. It finds changes without notification, such as a
/// smaller path MTU.
pub(super) const AUDIT: Duration = Duration::from_secs(60);

/// All state of a watcher that does not belong to sockets.
#[derive(Debug, Default)]
pub(super) struct Table {
    links: HashMap<u32, Link>,
    neighbours: HashMap<Hop, Neighbour>,
    addresses: HashSet<(u32, IpAddr)>,
    rules: Vec<Rule>,
    pairs: BTreeMap<Pair, Watched>,
    users: BTreeMap<Hop, Users>,
    /// Pairs whose route is unknown.
    lookups: VecDeque<Pair>,
    /// Pairs whose resolution may have changed with a neighbour.
    reviews: VecDeque<Pair>,
    /// Stale neighbours in the order of their times.
    stale: VecDeque<(Duration, Hop)>,
    /// The last pair that the audit has reached, and the time of its last step.
    audited: Option<Pair>,
    audited_at: Option<Duration>,
    notices: Vec<Notice>,
}

/// A pair that is asked for.
#[derive(Debug)]
struct Watched {
    /// How often each owner has asked.
    owners: Vec<(Owner, u32)>,
    response: Option<Response>,
    /// The key of `users` that has the pair.
    hop: Option<Hop>,
    /// `None` until the first lookup.
    resolution: Option<Resolution>,
    /// Whether the pair is in `lookups` or `reviews`. An entry of these queues whose flag is unset has no effect.
    in_lookups: bool,
    in_reviews: bool,
}

/// The pairs whose packets go to one neighbour.
#[derive(Debug, Default)]
struct Users {
    pairs: BTreeSet<Pair>,
    /// The time of the neighbour in `stale`. An entry there with another time has no effect.
    due: Option<Duration>,
    /// The last pair that was asked for a packet.
    asked: Option<Pair>,
}

impl Users {
    /// Returns the pairs whose turn it is to send a packet.
    fn next(&mut self) -> Vec<Pair> {
        let pairs = following(self.asked, USES, |range| self.pairs.range(range).copied());
        self.asked = pairs.last().copied();
        pairs
    }
}

impl Table {
    /// Notes that an owner needs a pair. Returns its resolution if it is known.
    pub(super) fn ask(&mut self, owner: Owner, pair: Pair) -> Option<Resolution> {
        let watched = self.pairs.entry(pair).or_insert_with(|| Watched {
            owners: Vec::with_capacity(1),
            response: None,
            hop: None,
            resolution: judge::check(&pair).err().map(Err),
            in_lookups: false,
            in_reviews: false,
        });
        match watched.owners.iter_mut().find(|(other, _)| *other == owner) {
            Some((_, count)) => *count = count.saturating_add(1),
            None => watched.owners.push((owner, 1)),
        }
        if watched.resolution.is_none() {
            enqueue(&mut self.lookups, &mut watched.in_lookups, pair);
        }
        watched.resolution.clone()
    }

    /// Ends one request of an owner for a pair. After its last one, the owner gets no notice about the pair, not even
    /// one that waits.
    pub(super) fn release(&mut self, owner: Owner, pair: Pair) {
        let Some(watched) = self.pairs.get_mut(&pair) else { return };
        let Some(index) = watched.owners.iter().position(|(other, _)| *other == owner) else { return };
        if let Some((_, count @ 2..)) = watched.owners.get_mut(index) {
            *count -= 1;
            return;
        }
        watched.owners.swap_remove(index);
        self.notices.retain(|notice| !notice.is_for(owner, &pair));
        if watched.owners.is_empty() {
            self.detach(pair);
            self.pairs.remove(&pair);
        }
    }

    /// Asks for the route of a pair again.
    pub(super) fn recheck(&mut self, pair: Pair) {
        self.look_up(pair..=pair);
    }

    /// Returns how many pairs are asked for.
    pub(super) fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Applies a notification.
    pub(super) fn apply(&mut self, message: Message, now: Duration) {
        match message {
            Message::Link(index, link) => self.apply_link(index, link),
            Message::LinkGone(index) => {
                self.neighbours.retain(|hop, _| hop.interface != index);
                if self.links.remove(&index).is_some() {
                    self.look_up_all();
                }
            }
            Message::Ipv6Mtu(index, mtu) => {
                if let Some(link) = self.links.get(&index) {
                    self.apply_link(index, Link { ipv6_mtu: Some(mtu), ..link.clone() });
                }
            }
            Message::Neighbour(hop, neighbour) => {
                let before = self.neighbours.insert(hop, neighbour);
                if before.map(Neighbour::reach) != Some(neighbour.reach()) {
                    self.review(hop);
                }
                self.note_stale(hop, now);
            }
            Message::NeighbourGone(hop) => {
                if self.neighbours.remove(&hop).is_some() {
                    self.review(hop);
                }
            }
            // The kernel repeats the notification when only the lifetime of an address changes.
            Message::Address(interface, ip) => {
                if self.addresses.insert((interface, ip)) {
                    self.look_up_family(ip.is_ipv4());
                }
            }
            Message::AddressGone(interface, ip) => {
                if self.addresses.remove(&(interface, ip)) {
                    self.look_up_family(ip.is_ipv4());
                }
            }
            Message::Route(prefix) => self.look_up(Pair::range(prefix.network(), prefix.broadcast())),
            Message::LocalRoute(prefix) => self.look_up_family(prefix.network().is_ipv4()),
            Message::Rule(rule) => {
                self.rules.push(rule);
                self.look_up_family(rule.v4);
            }
            Message::RuleGone(rule) => {
                if let Some(index) = self.rules.iter().position(|other| *other == rule) {
                    self.rules.swap_remove(index);
                }
                self.look_up_family(rule.v4);
            }
            Message::NextHopObject => self.look_up_all(),
        }
    }

    fn apply_link(&mut self, index: u32, link: Link) {
        let Some(before) = self.links.get(&index) else {
            self.links.insert(index, link);
            return self.look_up_all();
        };
        if *before == link {
            return;
        }
        // The kernel does not report the IPv4 routes that it removes with an interface that goes down.
        let routes_changed = (before.up, before.running) != (link.up, link.running);
        self.links.insert(index, link);
        if routes_changed {
            return self.look_up_all();
        }
        let pairs: Vec<Pair> = self.users_of(index).flat_map(|users| users.pairs.iter().copied()).collect();
        pairs.into_iter().for_each(|pair| self.look_up(pair..=pair));
    }

    fn users_of(&self, interface: u32) -> impl Iterator<Item = &Users> {
        let first = Hop { interface, address: Ipv4Addr::UNSPECIFIED.into() };
        let last = Hop { interface, address: Ipv6Addr::from([u8::MAX; 16]).into() };
        self.users.range(first..=last).map(|(_, users)| users)
    }

    /// Replaces everything that the kernel has reported by complete lists. Resolutions stay until the next lookup.
    pub(super) fn replace(&mut self, lists: Vec<Message>, now: Duration) {
        self.links.clear();
        self.neighbours.clear();
        self.addresses.clear();
        self.rules.clear();
        for message in lists {
            match message {
                Message::Link(index, link) => {
                    self.links.insert(index, link);
                }
                Message::Neighbour(hop, neighbour) => {
                    self.neighbours.insert(hop, neighbour);
                    self.note_stale(hop, now);
                }
                Message::Address(interface, ip) => {
                    self.addresses.insert((interface, ip));
                }
                Message::Rule(rule) => self.rules.push(rule),
                _ => {}
            }
        }
        self.look_up_all();
    }

    /// Returns the IPv6 sources of some pairs that are no addresses of interfaces.
    ///
    /// The kernel chooses an IPv6 route for any source. These sources may have a local route (AnyIP), or belong to
    /// other hosts.
    pub(super) fn unknown_sources(&self, pairs: &[Pair]) -> BTreeSet<IpAddr> {
        let mut sources: BTreeSet<IpAddr> = pairs.iter().map(|pair| pair.source).filter(IpAddr::is_ipv6).collect();
        if !sources.is_empty() {
            let Self { addresses, .. } = self;
            addresses.iter().for_each(|(_, ip)| _ = sources.remove(ip));
        }
        sources
    }

    /// Takes the pairs to look up next, at most `most`.
    pub(super) fn take_lookups(&mut self, most: usize) -> Vec<Pair> {
        let Self { lookups, pairs, .. } = self;
        take(lookups, most, |pair| pairs.get_mut(pair).is_some_and(|watched| std::mem::take(&mut watched.in_lookups)))
    }

    /// Puts a pair that was not looked up back.
    pub(super) fn put_back(&mut self, pair: Pair) {
        self.look_up(pair..=pair);
    }

    /// Enters the kernel's response to a lookup.
    pub(super) fn enter_response(&mut self, pair: Pair, response: Response, now: Duration) {
        let Some(watched) = self.pairs.get_mut(&pair) else { return };
        watched.response = Some(response);
        watched.in_lookups = false;
        let hop = judge::hop(&pair, &response);
        if watched.hop != hop {
            self.detach(pair);
            self.attach(pair, hop, now);
        }
        self.resolve(pair);
    }

    /// Examines at most `most` pairs again whose neighbour has changed.
    pub(super) fn review_some(&mut self, most: usize) {
        let Self { reviews, pairs, .. } = self;
        let due = take(reviews, most, |pair| {
            pairs.get_mut(pair).is_some_and(|watched| std::mem::take(&mut watched.in_reviews))
        });
        due.into_iter().for_each(|pair| self.resolve(pair));
    }

    /// Returns whether pairs wait for a lookup or a review.
    pub(super) fn has_work(&self) -> bool {
        !self.lookups.is_empty() || !self.reviews.is_empty()
    }

    /// Takes the notices.
    pub(super) fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Removes and returns what is known about a pair: for an owner that has just asked.
    pub(super) fn resolution(&mut self, owner: Owner, pair: &Pair) -> Option<Resolution> {
        self.notices.retain(|notice| !(matches!(notice, Notice::Changed { .. }) && notice.is_for(owner, pair)));
        self.pairs.get(pair)?.resolution.clone()
    }

    /// Does what is due: the next step of the audit, and uses of stale neighbours.
    pub(super) fn tick(&mut self, now: Duration) {
        self.audit(now);
        for _ in 0..USED {
            let Some((due, hop)) = self.stale.pop_front_if(|(due, _)| *due <= now) else { return };
            let is_stale = self.is_stale(&hop);
            let Some(users) = self.users.get_mut(&hop).filter(|users| users.due == Some(due)) else { continue };
            users.due = is_stale.then_some(now + USE_AFTER);
            if let Some(due) = users.due {
                self.stale.push_back((due, hop));
                let pairs = users.next();
                self.notices.extend(pairs.into_iter().flat_map(|pair| request_use(&self.pairs, pair)));
            }
        }
    }

    /// Looks the next pairs up again, all of them within [`AUDIT`] and one step.
    fn audit(&mut self, now: Duration) {
        let last_step = self.audited_at.filter(|_| !self.pairs.is_empty());
        let elapsed = now.saturating_sub(*self.audited_at.insert(last_step.unwrap_or(now))).min(AUDIT);
        let count = self.pairs.len() as u128;
        let share = count * elapsed.as_nanos() / AUDIT.as_nanos();
        if share == 0 {
            return;
        }
        // The rest of the time, in which less than a pair is due, counts in the next step.
        let used = u64::try_from(share * AUDIT.as_nanos() / count).unwrap_or(u64::MAX);
        self.audited_at = Some(now.saturating_sub(elapsed.saturating_sub(Duration::from_nanos(used))));
        let due = following(self.audited, usize::try_from(share).unwrap_or(usize::MAX), |range| {
            self.pairs.range(range).map(|(pair, _)| *pair)
        });
        self.audited = due.last().copied();
        due.into_iter().for_each(|pair| self.look_up(pair..=pair));
    }

    fn is_stale(&self, hop: &Hop) -> bool {
        self.neighbours.get(hop).is_some_and(|neighbour| neighbour.state & libc::NUD_STALE != 0)
    }

    fn note_stale(&mut self, hop: Hop, now: Duration) {
        if !self.is_stale(&hop) {
            return;
        }
        let Some(users) = self.users.get_mut(&hop) else { return };
        if users.due.is_none() {
            users.due = Some(now + USE_AFTER);
            self.stale.push_back((now + USE_AFTER, hop));
        }
    }

    fn attach(&mut self, pair: Pair, hop: Option<Hop>, now: Duration) {
        let Some(watched) = self.pairs.get_mut(&pair) else { return };
        watched.hop = hop;
        let Some(hop) = hop else { return };
        self.users.entry(hop).or_default().pairs.insert(pair);
        self.note_stale(hop, now);
    }

    fn detach(&mut self, pair: Pair) {
        let Some(hop) = self.pairs.get_mut(&pair).and_then(|watched| watched.hop.take()) else { return };
        let Some(users) = self.users.get_mut(&hop) else { return };
        users.pairs.remove(&pair);
        if users.pairs.is_empty() {
            self.users.remove(&hop);
        }
    }

    /// Determines the resolution of a pair and reports a change.
    fn resolve(&mut self, pair: Pair) {
        let Some(watched) = self.pairs.get_mut(&pair) else { return };
        let Some(response) = &watched.response else { return };
        let resolution = judge::resolution(&pair, response, &self.rules, &self.links, &self.neighbours);
        if watched.resolution.as_ref() == Some(&resolution) {
            return;
        }
        watched.resolution = Some(resolution.clone());
        let changed =
            |(owner, _): &(Owner, u32)| Notice::Changed { owner: *owner, pair, resolution: resolution.clone() };
        self.notices.extend(watched.owners.iter().map(changed));
    }

    fn review(&mut self, hop: Hop) {
        let Some(users) = self.users.get(&hop) else { return };
        for pair in &users.pairs {
            if let Some(watched) = self.pairs.get_mut(pair) {
                enqueue(&mut self.reviews, &mut watched.in_reviews, *pair);
            }
        }
    }

    fn look_up(&mut self, range: RangeInclusive<Pair>) {
        for (pair, watched) in self.pairs.range_mut(range) {
            enqueue_lookup(&mut self.lookups, watched, *pair);
        }
    }

    fn look_up_family(&mut self, v4: bool) {
        self.look_up(if v4 {
            Pair::range(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into())
        } else {
            Pair::range(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::from([u8::MAX; 16]).into())
        });
    }

    fn look_up_all(&mut self) {
        self.look_up_family(true);
        self.look_up_family(false);
    }
}

/// Returns at most `most` pairs, from the one after `last` on, and after the greatest the least. None is repeated.
fn following<I: Iterator<Item = Pair>>(
    last: Option<Pair>,
    most: usize,
    pairs: impl Fn((Bound<Pair>, Bound<Pair>)) -> I,
) -> Vec<Pair> {
    let rest = pairs((last.map_or(Unbounded, Excluded), Unbounded));
    let start = last.map(|last| pairs((Unbounded, Included(last))));
    rest.chain(start.into_iter().flatten()).take(most).collect()
}

/// Returns the notices that ask for a packet of a pair, if the pair has a next hop. All owners get one, because only
/// they know whether the pair has packets.
fn request_use(pairs: &BTreeMap<Pair, Watched>, pair: Pair) -> impl Iterator<Item = Notice> {
    let watched = pairs.get(&pair).filter(|watched| matches!(watched.resolution, Some(Ok(_))));
    let owners = watched.into_iter().flat_map(|watched| &watched.owners);
    owners.map(move |(owner, _)| Notice::Use { owner: *owner, pair })
}

fn enqueue(queue: &mut VecDeque<Pair>, flag: &mut bool, pair: Pair) {
    if !std::mem::replace(flag, true) {
        queue.push_back(pair);
    }
}

/// Enqueues a pair unless it can never have a route.
fn enqueue_lookup(lookups: &mut VecDeque<Pair>, watched: &mut Watched, pair: Pair) {
    if judge::check(&pair).is_ok() {
        enqueue(lookups, &mut watched.in_lookups, pair);
    }
}

/// Takes at most `most` pairs from a queue whose flag is set, and unsets it.
fn take(queue: &mut VecDeque<Pair>, most: usize, mut unset: impl FnMut(&Pair) -> bool) -> Vec<Pair> {
    let mut taken = Vec::with_capacity(most.min(queue.len()));
    while taken.len() < most
        && let Some(pair) = queue.pop_front()
    {
        if unset(&pair) {
            taken.push(pair);
        }
    }
    taken
}
