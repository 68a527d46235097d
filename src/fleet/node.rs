//! Heartbeats, and the view of the fleet that they give.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use super::fields::{self, Fields, Malformed, VERSION};
use crate::turn::Instant;

/// What a node says about itself, every [`INTERVAL`](Self::INTERVAL).
#[derive(Clone, Debug, PartialEq)]
pub struct Heartbeat {
    /// The name, unique in the fleet: 1 to 64 letters, digits, `-` and `_`.
    pub name: String,
    /// A random number of this run of the node.
    pub boot: u64,
    /// Grows with each heartbeat of a run.
    pub sequence: u64,
    /// The region: 1 to 32 letters, digits, `-` and `_`.
    pub region: String,
    /// What the node can relay: 100 for 1 Gbit/s. 1 to 1 000 000.
    pub weight: u32,
    /// The TURN URIs for its clients, at most 16, each of at most 256 bytes.
    pub urls: Vec<String>,
    /// The load.
    pub load: Load,
    /// Whether it rejects new allocations.
    pub draining: bool,
    /// The version of the program, at most 32 bytes.
    pub version: String,
    /// The addresses of its UDP and TCP listeners, for ALTERNATE-SERVER. At most 16.
    pub addresses: Vec<SocketAddr>,
    /// The addresses of its TLS listeners, for ALTERNATE-SERVER. At most 16.
    pub tls_addresses: Vec<SocketAddr>,
    /// The revision of the revocations and secrets that the node uses.
    pub state: u64,
}

/// The load of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Its allocations.
    pub allocations: u32,
    /// Its relay ports that are free.
    pub free_ports: u32,
    /// All its relay ports.
    pub capacity: u32,
    /// Bits of application data that it relays per second, of both directions together.
    pub bits_per_second: u64,
    /// The CPU time of its workers, from 0 (idle) to 1 (all workers busy).
    pub cpu: f64,
}

impl Heartbeat {
    /// The time between two heartbeats of a node.
    pub const INTERVAL: Duration = Duration::from_secs(2);
    /// The greatest length of a heartbeat in bytes.
    pub const LONGEST: usize = 16 * 1024;
    /// The greatest weight.
    pub const MAX_WEIGHT: u32 = 1_000_000;
    /// The greatest length of the name of a node in bytes.
    pub const LONGEST_NAME: usize = 64;
    /// The greatest length of the name of a region in bytes.
    pub const LONGEST_REGION: usize = 32;
    /// The greatest number of URLs and of addresses.
    pub const MOST_URLS: usize = 16;
    /// The greatest length of a URL in bytes.
    pub const LONGEST_URL: usize = 256;

    /// Whether `text` can be the name of a node.
    #[must_use]
    pub fn is_node_name(text: &str) -> bool {
        fields::is_name(text, Self::LONGEST_NAME)
    }

    /// Whether `text` can be the name of a region.
    #[must_use]
    pub fn is_region_name(text: &str) -> bool {
        fields::is_name(text, Self::LONGEST_REGION)
    }

    /// Returns the heartbeat as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        let texts = |addresses: &[SocketAddr]| addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>();
        let Load { allocations, free_ports, capacity, bits_per_second, cpu } = self.load;
        json!({
            "v": VERSION,
            "name": self.name,
            "boot": format!("{:016x}", self.boot),
            "sequence": self.sequence,
            "region": self.region,
            "weight": self.weight,
            "urls": self.urls,
            "load": {
                "allocations": allocations,
                "free_ports": free_ports,
                "capacity": capacity,
                "bits_per_second": bits_per_second,
                "cpu": cpu.clamp(0.0, 1.0),
            },
            "draining": self.draining,
            "version": self.version,
            "addresses": texts(&self.addresses),
            "tls_addresses": texts(&self.tls_addresses),
            "state": self.state,
        })
        .to_string()
    }

    /// Parses a heartbeat.
    ///
    /// # Errors
    /// If it is not a heartbeat of this version, or exceeds a limit.
    pub fn from_json(bytes: &[u8]) -> Result<Self, Malformed> {
        let value = fields::parse(bytes, Self::LONGEST)?;
        let fields = Fields::of(&value)?;
        let load = fields.object("load")?;
        let boot = u64::from_str_radix(&fields.name("boot", 16)?, 16);
        let weight = fields.u32("weight")?;
        if !(1..=Self::MAX_WEIGHT).contains(&weight) {
            return Err(Malformed::Field { field: "weight", problem: "is not from 1 to 1000000" });
        }
        Ok(Self {
            name: fields.name("name", Self::LONGEST_NAME)?,
            boot: boot.map_err(|_| Malformed::Field { field: "boot", problem: "is not a hexadecimal number" })?,
            sequence: fields.u64("sequence")?,
            region: fields.name("region", Self::LONGEST_REGION)?,
            weight,
            urls: fields.texts("urls", Self::MOST_URLS, Self::LONGEST_URL)?,
            load: Load {
                allocations: load.u32("allocations")?,
                free_ports: load.u32("free_ports")?,
                capacity: load.u32("capacity")?,
                bits_per_second: load.u64("bits_per_second")?,
                cpu: load.fraction("cpu")?,
            },
            draining: fields.bool("draining")?,
            version: fields.text("version", 32)?,
            addresses: fields.parsed("addresses", Self::MOST_URLS)?,
            tls_addresses: fields.parsed("tls_addresses", Self::MOST_URLS)?,
            state: fields.u64("state")?,
        })
    }
}

/// What became of a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The node is new, or was out.
    Joined,
    /// The node beats on.
    Updated,
    /// The node has started again.
    Restarted,
    /// A repetition, or one that a later one has overtaken.
    Repeated,
    /// There are [`Nodes::CAPACITY`] nodes already.
    Full,
}

/// The view of the fleet.
///
/// A node is live until it has been silent for [`SILENCE`](Self::SILENCE). Silence is measured in *engine time*, which
/// passes only while the own heartbeats come back from the engine. If the engine is away, all nodes fall silent at once,
/// engine time stops, and the last view stays.
#[derive(Clone, Debug, Default)]
pub struct Nodes {
    entries: Vec<Entry>,
    by_name: BTreeMap<String, usize>,
    /// The entries of each region, so that a choice in a region needs no look at the others.
    by_region: BTreeMap<String, Vec<usize>>,
    /// The engine time at the last own heartbeat.
    engine: Duration,
    /// When the last own heartbeat came back.
    own_beat: Option<Instant>,
}

/// A node of the view.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) beat: Heartbeat,
    /// The run before, whose late heartbeats do not count.
    previous_boot: Option<u64>,
    /// The engine time at which the node is out.
    out: Duration,
    /// How often clients were sent to it since the last heartbeat, and in the interval before. A client needs a moment
    /// until it has allocated, so a heartbeat does not show the latest clients.
    pub(super) handed: [u32; 2],
}

impl Nodes {
    /// The greatest number of nodes.
    pub const CAPACITY: usize = 10_000;
    /// The engine time after which a silent node is out: four heartbeats.
    pub const SILENCE: Duration = Duration::from_secs(8);
    /// How much engine time passes at most from one own heartbeat to the next. Without a heartbeat for longer, the engine
    /// was away.
    const COUNTED: Duration = Duration::from_secs(3);
    /// How long nodes may be silent after the engine was away for longer than `AWAY`, since they come back one by one.
    const RETURN: Duration = Duration::from_secs(20);
    const AWAY: Duration = Duration::from_secs(6);

    /// Creates an empty view.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a heartbeat of any node, also the own one.
    pub fn heard(&mut self, beat: Heartbeat, now: Instant) -> Heard {
        let engine = self.engine_time(now);
        let out = engine + Self::SILENCE;
        let Some(entry) = self.by_name.get(&beat.name).and_then(|at| self.entries.get_mut(*at)) else {
            return self.join(beat, engine, out);
        };
        let same_run = entry.beat.boot == beat.boot;
        if same_run && beat.sequence <= entry.beat.sequence || entry.previous_boot == Some(beat.boot) {
            return Heard::Repeated;
        }
        let heard = match (entry.out <= engine, same_run) {
            (true, _) => Heard::Joined,
            (false, true) => Heard::Updated,
            (false, false) => Heard::Restarted,
        };
        if !same_run {
            entry.previous_boot = Some(entry.beat.boot);
            entry.handed = [0; 2];
        }
        if entry.beat.region != beat.region {
            // Moves the entry to its new region.
            let previous_boot = entry.previous_boot;
            let name = beat.name.clone();
            self.gone(&name);
            self.join(beat, engine, out);
            if let Some(entry) = self.by_name.get(&name).and_then(|at| self.entries.get_mut(*at)) {
                entry.previous_boot = previous_boot;
            }
            return heard;
        }
        entry.handed = [0, entry.handed[0]];
        entry.out = entry.out.max(out);
        entry.beat = beat;
        heard
    }

    fn join(&mut self, beat: Heartbeat, engine: Duration, out: Duration) -> Heard {
        if self.entries.len() >= Self::CAPACITY {
            // Nodes that are out make room.
            let gone: Vec<String> = self.out_at(engine).map(|entry| entry.beat.name.clone()).collect();
            gone.iter().for_each(|name| self.gone(name));
        }
        if self.entries.len() >= Self::CAPACITY {
            return Heard::Full;
        }
        let at = self.entries.len();
        self.by_name.insert(beat.name.clone(), at);
        self.by_region.entry(beat.region.clone()).or_default().push(at);
        self.entries.push(Entry { beat, previous_boot: None, out, handed: [0; 2] });
        Heard::Joined
    }

    fn out_at(&self, engine: Duration) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| entry.out <= engine)
    }

    /// Removes a node that said that it ends. A heartbeat that the engine has only let expire does not say that: the
    /// engine may have been away.
    pub fn gone(&mut self, name: &str) {
        let Some(at) = self.by_name.remove(name) else { return };
        let last = self.entries.len() - 1;
        let removed = self.entries.swap_remove(at);
        if let Some(members) = self.by_region.get_mut(&removed.beat.region) {
            members.retain(|member| *member != at);
            if members.is_empty() {
                self.by_region.remove(&removed.beat.region);
            }
        }
        // The last entry has taken the place.
        let Some(moved) = self.entries.get(at) else { return };
        if let Some(index) = self.by_name.get_mut(&moved.beat.name) {
            *index = at;
        }
        let members = self.by_region.get_mut(&moved.beat.region).into_iter().flatten();
        members.filter(|member| **member == last).for_each(|member| *member = at);
    }

    /// Counts engine time: a heartbeat of this node came back from the engine, which therefore works.
    pub fn own_beat_observed(&mut self, now: Instant) {
        let away = self.own_beat.is_some_and(|last| now.since(last) >= Self::AWAY);
        self.engine = self.engine_time(now);
        self.own_beat = Some(now);
        if away {
            let engine = self.engine;
            // A node that was out before the engine went away stays out.
            for entry in self.entries.iter_mut().filter(|entry| entry.out > engine) {
                entry.out = entry.out.max(engine + Self::RETURN);
            }
        }
    }

    /// Returns the live nodes, in no particular order.
    pub fn live(&self, now: Instant) -> impl Iterator<Item = &Heartbeat> {
        let engine = self.engine_time(now);
        self.entries.iter().filter(move |entry| entry.out > engine).map(|entry| &entry.beat)
    }

    /// Returns a live node.
    #[must_use]
    pub fn get(&self, name: &str, now: Instant) -> Option<&Heartbeat> {
        let entry = self.entries.get(*self.by_name.get(name)?)?;
        (entry.out > self.engine_time(now)).then_some(&entry.beat)
    }

    /// Returns the number of entries, with those of nodes that are out and have not been replaced.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the engine time. Until the first own heartbeat has come back, none passes.
    fn engine_time(&self, now: Instant) -> Duration {
        self.engine + self.own_beat.map_or(Duration::ZERO, |last| now.since(last).min(Self::COUNTED))
    }

    /// Returns the indexes of the nodes that may be chosen: live, not draining and with free ports.
    pub(super) fn eligible(&self, region: Option<&str>, now: Instant) -> Vec<usize> {
        let engine = self.engine_time(now);
        let may = |entry: &Entry| entry.out > engine && !entry.beat.draining && entry.beat.load.free_ports > 0;
        match region {
            None => (0..self.entries.len()).filter(|at| self.entries.get(*at).is_some_and(may)).collect(),
            Some(region) => {
                let members = self.by_region.get(region).into_iter().flatten().copied();
                members.filter(|at| self.entries.get(*at).is_some_and(may)).collect()
            }
        }
    }

    pub(super) fn entry(&self, at: usize) -> Option<&Entry> {
        self.entries.get(at)
    }

    pub(super) fn entry_mut(&mut self, at: usize) -> Option<&mut Entry> {
        self.entries.get_mut(at)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn at(seconds: f64) -> Instant {
        Instant::from_elapsed(Duration::from_secs_f64(seconds))
    }

    pub(crate) fn beat(name: &str, sequence: u64) -> Heartbeat {
        Heartbeat {
            name: name.to_owned(),
            boot: 1,
            sequence,
            region: "eu".to_owned(),
            weight: 100,
            urls: vec![format!("turn:{name}.example.org:3478")],
            load: Load { allocations: 10, free_ports: 990, capacity: 1000, bits_per_second: 0, cpu: 0.1 },
            draining: false,
            version: "0.1.0".to_owned(),
            addresses: vec!["192.0.2.7:3478".parse().unwrap()],
            tls_addresses: vec!["[2001:db8::7]:5349".parse().unwrap()],
            state: 3,
        }
    }

    fn names(nodes: &Nodes, now: f64) -> Vec<&str> {
        let mut names: Vec<&str> = nodes.live(at(now)).map(|beat| beat.name.as_str()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_heartbeat_survives_json() {
        let beat = beat("a", 7);
        assert_eq!(Heartbeat::from_json(beat.to_json().as_bytes()), Ok(beat));
    }

    #[test]
    fn unknown_fields_of_a_heartbeat_are_ignored() {
        let text = beat("a", 7).to_json().replacen('{', "{\"colour\":[{}],", 1);
        assert_eq!(Heartbeat::from_json(text.as_bytes()), Ok(beat("a", 7)));
    }

    #[test]
    fn a_malformed_heartbeat_has_a_reason() {
        let reason = |from: &str, to: &str| {
            let text = beat("a", 7).to_json();
            assert!(text.contains(from), "{from}");
            Heartbeat::from_json(text.replacen(from, to, 1).as_bytes()).unwrap_err().to_string()
        };
        assert_eq!(reason("\"v\":1", "\"v\":2"), "`v` is not 1");
        assert_eq!(reason("\"name\":\"a\"", "\"name\":\"a.b\""), "`name` is not a name, or too long");
        assert_eq!(reason("\"name\":\"a\"", "\"nam\":\"a\""), "`name` is absent");
        assert_eq!(reason("\"cpu\":0.1", "\"cpu\":1.5"), "`cpu` is not a number from 0 to 1");
        assert_eq!(reason("\"weight\":100", "\"weight\":0"), "`weight` is not from 1 to 1000000");
        assert_eq!(reason("\"weight\":100", "\"weight\":-1"), "`weight` is not a whole number of at least 0");
        assert_eq!(reason("\"capacity\":1000", "\"capacity\":4294967296"), "`capacity` is too large");
        assert_eq!(reason("192.0.2.7:3478", "192.0.2.7"), "`addresses` has an item that is not an address");
        let boot = reason("0000000000000001", "x");
        assert_eq!(boot, "`boot` is not a hexadecimal number");
        let long = format!("{{\"v\":1,\"x\":\"{}\"}}", "x".repeat(Heartbeat::LONGEST));
        assert!(matches!(Heartbeat::from_json(long.as_bytes()), Err(Malformed::TooLong { .. })));
        let mut many = beat("a", 7);
        many.urls = vec!["turn:a".to_owned(); 17];
        let many = Heartbeat::from_json(many.to_json().as_bytes());
        assert_eq!(many.unwrap_err().to_string(), "`urls` has too many items");
        assert_eq!(Heartbeat::from_json(b"[1]"), Err(Malformed::NotAnObject));
    }

    #[test]
    fn a_heartbeat_at_all_limits_is_valid() {
        let mut beat = beat(&"n".repeat(64), u64::MAX);
        beat.region = "r".repeat(32);
        beat.urls = vec!["u".repeat(256); 16];
        beat.addresses = vec!["[2001:db8:1111:2222:3333:4444:5555:6666]:65535".parse().unwrap(); 16];
        beat.tls_addresses = beat.addresses.clone();
        beat.load = Load { bits_per_second: u64::MAX, cpu: 1.0, ..beat.load };
        assert_eq!(Heartbeat::from_json(beat.to_json().as_bytes()), Ok(beat));
    }

    #[test]
    fn a_node_that_stops_beating_is_out_within_ten_seconds() {
        let mut nodes = Nodes::new();
        for second in 0..=10_u32 {
            let now = at(f64::from(second) * 2.0);
            nodes.own_beat_observed(now);
            nodes.heard(beat("own", second.into()), now);
            // The other one beats last at 4 s.
            if second <= 2 {
                nodes.heard(beat("other", second.into()), now);
            }
        }
        assert_eq!(names(&nodes, 20.0), ["own"]);
        let mut nodes = Nodes::new();
        nodes.heard(beat("other", 1), at(0.0));
        for second in [0.0, 2.0, 4.0, 6.0] {
            nodes.own_beat_observed(at(second));
        }
        assert_eq!(names(&nodes, 7.9), ["other"]);
        assert_eq!(names(&nodes, 8.0), [""; 0]);
    }

    #[test]
    fn while_the_engine_is_away_the_last_view_stays() {
        let mut nodes = Nodes::new();
        nodes.own_beat_observed(at(0.0));
        nodes.heard(beat("a", 1), at(0.0));
        nodes.heard(beat("own", 1), at(0.0));
        assert_eq!(names(&nodes, 3600.0), ["a", "own"]);
        // The engine is back. The others return within 20 s.
        nodes.own_beat_observed(at(3600.0));
        for second in 1..10 {
            nodes.heard(beat("own", second + 1), at(3600.0 + second as f64 * 2.0));
            nodes.own_beat_observed(at(3600.0 + second as f64 * 2.0));
        }
        assert_eq!(names(&nodes, 3619.0), ["a", "own"]);
        nodes.own_beat_observed(at(3620.0));
        assert_eq!(names(&nodes, 3620.0), ["own"]);
    }

    #[test]
    fn a_short_pause_of_the_engine_prolongs_nothing_for_ever() {
        let mut nodes = Nodes::new();
        nodes.own_beat_observed(at(0.0));
        nodes.heard(beat("dead", 1), at(0.0));
        // Own heartbeats come back late, as during an election: 5 s apart, of which 3 s count.
        for round in 1..=3 {
            nodes.own_beat_observed(at(f64::from(round) * 5.0));
        }
        assert_eq!(names(&nodes, 15.0), [""; 0]);
    }

    #[test]
    fn a_node_that_starts_again_replaces_its_old_entry() {
        let mut nodes = Nodes::new();
        let second = Heartbeat { boot: 2, draining: true, ..beat("a", 1) };
        assert_eq!(nodes.heard(beat("a", 9), at(0.0)), Heard::Joined);
        assert_eq!(nodes.heard(second.clone(), at(1.0)), Heard::Restarted);
        assert_eq!(nodes.heard(beat("a", 10), at(1.0)), Heard::Repeated);
        assert_eq!(nodes.live(at(1.0)).collect::<Vec<_>>(), [&second]);
    }

    #[test]
    fn a_repeated_heartbeat_does_not_keep_a_node_alive() {
        let mut nodes = Nodes::new();
        nodes.own_beat_observed(at(0.0));
        nodes.heard(beat("a", 5), at(0.0));
        for second in 1..5 {
            assert_eq!(nodes.heard(beat("a", 5 - second), at(second as f64 * 2.0)), Heard::Repeated);
            nodes.own_beat_observed(at(second as f64 * 2.0));
        }
        assert_eq!(names(&nodes, 8.0), [""; 0]);
        assert_eq!(nodes.heard(beat("a", 6), at(9.0)), Heard::Joined);
    }

    #[test]
    fn the_number_of_nodes_is_bounded_and_nodes_that_are_out_make_room() {
        let mut nodes = Nodes::new();
        nodes.own_beat_observed(at(0.0));
        for number in 0..Nodes::CAPACITY {
            assert_eq!(nodes.heard(beat(&format!("n{number}"), 1), at(0.0)), Heard::Joined);
        }
        assert_eq!(nodes.heard(beat("more", 1), at(0.0)), Heard::Full);
        for second in [2, 4, 6, 8_u32] {
            nodes.heard(beat("n7", second.into()), at(second.into()));
            nodes.own_beat_observed(at(second.into()));
        }
        assert_eq!(nodes.heard(beat("more", 2), at(9.0)), Heard::Joined);
        assert_eq!(names(&nodes, 9.0), ["more", "n7"]);
        assert_eq!(nodes.len(), 2);
    }

    proptest! {
        #[test]
        fn names_and_regions_lead_to_their_entries(steps in prop::collection::vec((0..12u8, 0..4u8, any::<bool>()), 1..200)) {
            let mut nodes = Nodes::new();
            for (number, (node, region, gone)) in steps.into_iter().enumerate() {
                let name = format!("n{node}");
                if gone {
                    nodes.gone(&name);
                } else {
                    let region = format!("r{region}");
                    nodes.heard(Heartbeat { region, ..beat(&name, number as u64) }, at(0.0));
                }
                let in_regions: usize = nodes.by_region.values().map(Vec::len).sum();
                prop_assert_eq!((nodes.by_name.len(), in_regions), (nodes.len(), nodes.len()));
                for (name, at) in &nodes.by_name {
                    prop_assert_eq!(&nodes.entries[*at].beat.name, name);
                }
                for (region, members) in &nodes.by_region {
                    prop_assert!(!members.is_empty());
                    for at in members {
                        prop_assert_eq!(&nodes.entries[*at].beat.region, region);
                    }
                }
            }
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Heartbeat::from_json(&bytes);
        }
    }
}
