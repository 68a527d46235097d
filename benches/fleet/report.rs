//! What a day has shown.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use turnserver::clock::Clock;
use turnserver::fleet::{Heartbeat, Load, Nodes, Prefixes};
use turnserver::turn::Instant;

use super::Policy;
use super::day::{Day, LIMIT};
use super::engine::{EVENT, HEADER};

/// How even the loads of the nodes of a region were, minute by minute.
#[derive(Default)]
pub(crate) struct Balance {
    usual: Ratios,
    /// During the outage, when the loads are unknown.
    outage: Ratios,
}

#[derive(Default)]
struct Ratios {
    max: Vec<f32>,
    p99: Vec<f32>,
    /// Minutes of nodes with more than 90 % load, and all of them.
    hot: u64,
    minutes: u64,
}

impl Balance {
    /// The heading of [`line`](Self::line).
    pub(crate) const HEADING: &str = "choice      | max/mean: mean, p99 over time | p99/mean | node minutes above 90 % load, % | \
                               in the outage: max/mean, above 90 %";

    /// Takes the loads of the nodes of a region. A quiet region is not interesting.
    pub(crate) fn sample(&mut self, mut loads: Vec<f64>, outage: bool) {
        let ratios = if outage { &mut self.outage } else { &mut self.usual };
        let mean = loads.iter().sum::<f64>() / loads.len().max(1) as f64;
        if loads.len() < 2 || mean < 0.2 {
            return;
        }
        ratios.hot += loads.iter().filter(|load| **load > 0.9).count() as u64;
        ratios.minutes += loads.len() as u64;
        loads.sort_by(f64::total_cmp);
        let at = (loads.len() as f64 * 0.99).ceil() as usize;
        ratios.max.push((loads[loads.len() - 1] / mean) as f32);
        ratios.p99.push((loads[at.clamp(1, loads.len()) - 1] / mean) as f32);
    }

    pub(crate) fn line(&mut self, policy: Policy) -> String {
        let name = format!("{policy:?}");
        let mean = |list: &[f32]| list.iter().sum::<f32>() / list.len().max(1) as f32;
        let hot = |ratios: &Ratios| 100.0 * ratios.hot as f64 / ratios.minutes.max(1) as f64;
        let Self { usual, outage } = self;
        usual.max.sort_by(f32::total_cmp);
        let worst = usual.max.get(usual.max.len() * 99 / 100).copied().unwrap_or_default();
        let (max, p99, usual_hot) = (mean(&usual.max), mean(&usual.p99), hot(usual));
        let (outage_max, outage_hot) = (mean(&outage.max), hot(outage));
        format!(
            "{name:<11} | {max:>22.2} {worst:>6.2} | {p99:>8.2} | {usual_hot:>31.1} | {outage_max:>23.2} {outage_hot:>10.1}"
        )
    }
}

/// Prints the rest, and returns whether all is as promised.
pub(crate) fn full(day: &Day) -> bool {
    let nodes = day.nodes.len() as u64;
    let first = turnserver::fleet::lease::Limits { allocations: LIMIT, nodes: nodes as u32 }.first().allocations;
    let mut problems = Vec::new();

    println!(
        "\nclients: {} allocations made, {} attempts at nodes that were not there, {} clients without any node",
        day.started, day.failed_attempts, day.unserved
    );
    println!("nodes: {} died", day.deaths);
    println!(
        "limits: ordinary clients had {} allocations rejected; {} states above the bound",
        day.rejected, day.over_bound
    );
    for (what, in_outage) in [("while the engine works", false), ("in the outage", true)] {
        let most = day.hostile.iter().filter(|user| user.in_outage == in_outage).map(|user| user.most).max();
        let bound = LIMIT + first * (nodes as u32 - 1);
        println!(
            "limits: a hostile user had at most {} allocations {what} (limit {LIMIT}, bound {bound})",
            most.unwrap_or(0)
        );
    }
    if day.over_bound > 0 || day.rejected > 0 {
        problems.push("a limit did not hold, or was applied to an ordinary client".to_owned());
    }

    let consumer = &day.consumer;
    let repeated = consumer.arrived as i64 - day.sent_events as i64;
    println!(
        "events: {} sent, {} arrived; {} changed nothing; {} usage events dropped; longest outbox {}",
        day.sent_events, consumer.arrived, consumer.repeated, day.dropped_usage, day.longest_outbox
    );
    println!("events: arrived more often than sent, less those of dead nodes: {repeated}");
    println!(
        "sums: {} of {} ended sessions, {} of {} bytes, {} without a start",
        consumer.finished, day.ended, consumer.bytes, day.ended_bytes, consumer.without_start
    );
    let (known, missing) = consumer.of_dead_nodes(&day.dead);
    let all: u64 = day.dead.values().sum();
    println!(
        "sums: of {} sessions that died with their nodes {known} are known, and {missing} of their {all} bytes are lost",
        day.dead.len()
    );
    // A session may have died with its node just after its `ended` event had been accepted.
    let late = consumer.finished.saturating_sub(day.ended);
    if consumer.finished < day.ended || late > day.dead.len() as u64 || (late == 0 && consumer.bytes != day.ended_bytes)
    {
        problems.push(format!("sums differ; {} sessions are open", consumer.open()));
    }

    let traffic = &day.engine.traffic;
    let per_second = |count: u64| count as f64 / 86_400.0 / nodes as f64;
    let beat = beat(7).to_json().len() as u64 + HEADER;
    println!("\nengine, for each node          | messages/s | bytes/s");
    let rows = [
        ("own heartbeats", traffic.heartbeats, traffic.heartbeats * beat),
        ("heartbeats of the others", traffic.heartbeats * (nodes - 1), traffic.heartbeats * (nodes - 1) * beat),
        ("leases, requests and responses", 2 * traffic.lease_requests, traffic.lease_bytes),
        ("hints, sent and received", 2 * traffic.hints, 2 * traffic.hints * (HEADER + 32)),
        ("events and acknowledgements", 2 * traffic.events, traffic.events * (EVENT + 2 * HEADER)),
    ];
    for (what, messages, bytes) in rows {
        println!("{what:<30} | {:>10.2} | {:>7.0}", per_second(messages), per_second(bytes));
    }
    println!(
        "leases: {} requests, {:.1} % refused by their revision, {:.0} requests/s of all nodes, at most {} records",
        traffic.lease_requests,
        100.0 * traffic.lease_conflicts as f64 / traffic.lease_requests.max(1) as f64,
        traffic.lease_requests as f64 / 86_400.0,
        traffic.most_records
    );
    problems.iter().for_each(|problem| println!("FAILED: {problem}"));
    problems.is_empty()
}

/// Returns what a table of client prefixes costs.
pub(crate) fn prefixes(count: u32) -> String {
    let spread = |number: u32| number.wrapping_mul(0x9e37_79b1);
    let line = |number: u32| {
        let address = Ipv4Addr::from_bits(spread(number) & 0xffff_ff00);
        format!("{address}/24 region-{}\n", number % 12)
    };
    let lines: std::collections::BTreeMap<u32, String> =
        (0..count).map(|number| (spread(number) >> 8, line(number))).collect();
    let clock = Clock::start();
    let table = Prefixes::parse(&lines.into_values().collect::<String>()).unwrap();
    let parsed = clock.elapsed();
    let clock = Clock::start();
    let found = (0..1_000_000).filter(|number| table.region(Ipv4Addr::from_bits(spread(*number)).into()).is_some());
    let found = found.count();
    let lookup = clock.elapsed().as_nanos() / 1_000_000;
    let (kilobytes, parsed) = (table.memory() / 1000, parsed.as_millis());
    format!(
        "{count} prefixes: {kilobytes} kB, parsed in {parsed} ms, {lookup} ns for a lookup ({found} of 1000000 found)"
    )
}

/// A heartbeat as a real node makes it.
fn beat(number: u16) -> Heartbeat {
    let host = format!("relay-{number}.eu-west.example.org");
    let urls = [
        "turn:HOST:3478",
        "turn:HOST:3478?transport=tcp",
        "turns:HOST:5349?transport=tcp",
        "turns:HOST:443?transport=tcp",
    ];
    Heartbeat {
        name: format!("relay-{number}"),
        boot: u64::MAX - 5,
        sequence: 43_200,
        region: "eu-west".to_owned(),
        weight: 100,
        urls: urls.iter().map(|url| url.replace("HOST", &host)).collect(),
        load: Load { allocations: 1234, free_ports: 15_000, capacity: 16_384, bits_per_second: 123_456_789, cpu: 0.25 },
        draining: false,
        version: "0.1.0".to_owned(),
        addresses: vec!["198.51.100.7:3478".parse().unwrap(), "[2001:db8::7]:3478".parse().unwrap()],
        tls_addresses: vec!["198.51.100.7:5349".parse().unwrap(), "[2001:db8::7]:5349".parse().unwrap()],
        state: 12,
    }
}

/// Returns the resident memory of a view in bytes for each node, measured over some views.
pub(crate) fn memory_of_view(nodes: u16) -> u64 {
    let views = (20_000 / u64::from(nodes)).max(1);
    let resident = || {
        let text = fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let before = resident();
    let mut all = vec![Nodes::new(); views as usize];
    for view in &mut all {
        for number in 0..nodes {
            view.heard(beat(number), Instant::from_elapsed(Duration::ZERO));
        }
    }
    let after = resident();
    assert!(all.iter().all(|view| view.len() == usize::from(nodes)));
    after.saturating_sub(before) / views / u64::from(nodes)
}
