//! The scenarios: their loads, figures and goals.

/// The number of packets in a train or a segmented datagram.
pub(crate) const TRAIN: usize = 32;

/// A scenario of the benchmark.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// One line for `--list`.
    pub(crate) about: &'static str,
    pub(crate) work: Work,
    /// Worker threads of each server. `None` is the server's default.
    pub(crate) workers: Option<usize>,
    /// The figures to show, the most important first.
    pub(crate) rows: &'static [Row],
}

/// The activity of the clients.
#[derive(Clone, Copy)]
pub(crate) enum Work {
    /// Payloads through allocations. Each load has its own clients and peer. Latency and loss are those of the first
    /// load.
    Relay(&'static [Load]),
    /// Each client allocates, deletes the allocation and is replaced by the next. `clients` is the concurrency.
    Churn { clients: usize },
    /// Binding requests. Each client has up to `window` outstanding requests.
    Binding { clients: usize, window: u64 },
    /// Idle allocations with one channel each. With `refreshed`, clients refresh them as usual.
    Idle { allocations: usize, refreshed: bool },
}

/// A stream of payloads through allocations.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) transport: Transport,
    pub(crate) direction: Direction,
    pub(crate) framing: Framing,
    /// The number of allocations.
    pub(crate) flows: usize,
    /// The length of a payload, in bytes.
    pub(crate) payload: usize,
    pub(crate) pace: Pace,
    pub(crate) shape: Shape,
}

/// The transport between client and server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Transport {
    Udp,
    Tcp,
    Tls,
}

/// The direction of payloads: up from client to peer, or down to the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    Up,
    Down,
}

/// The form of payloads between client and server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Framing {
    Channel,
    Indication,
}

/// The sending rate.
#[derive(Clone, Copy)]
pub(crate) enum Pace {
    /// Packets per second over all flows, evenly spaced.
    Rate(u64),
    /// A closed loop with this many packets of each flow in flight.
    Window(u64),
}

/// The packets passed to the kernel at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    /// Single packets of alternating flows.
    Single,
    /// [`TRAIN`] consecutive packets of one flow.
    Train,
    /// A train as one segmented datagram (`UDP_SEGMENT`). The server receives it in one piece, as if a network card had
    /// merged the packets (GRO).
    Merged,
}

/// A figure in the table, and its goal.
pub(crate) struct Row {
    pub(crate) figure: Figure,
    pub(crate) goal: Option<Goal>,
}

/// A measured value. The order of the variants has no meaning.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Figure {
    CpuPerPacket,
    MachinePerPacket,
    /// The same without what the load generator uses if it does not send.
    PathPerPacket,
    MachineCores,
    PerCpuSecond,
    Delivered,
    Loss,
    P50,
    P99,
    ServerCores,
    AllocationsPerCpuSecond,
    Allocations,
    ResponsesPerCpuSecond,
    Responses,
    BytesPerAllocation,
    CoreShare,
}

/// The goal of a figure.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Goal {
    /// At most this multiple of coturn's figure.
    RatioAtMost(f64),
    /// At least this multiple of coturn's figure.
    RatioAtLeast(f64),
    /// At most this value, independent of coturn's.
    AtMost(f64),
}

impl Figure {
    /// Returns the figure's name and unit for the table.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::CpuPerPacket => "server CPU per packet, µs",
            Self::MachinePerPacket => "machine CPU per packet, µs",
            Self::PathPerPacket => "the same less generator, µs",
            Self::MachineCores => "machine CPU, cores",
            Self::PerCpuSecond => "packets per CPU second",
            Self::Delivered => "delivered, packets/s",
            Self::Loss => "lost, %",
            Self::P50 => "latency p50, µs",
            Self::P99 => "latency p99, µs",
            Self::ServerCores => "server CPU, cores",
            Self::AllocationsPerCpuSecond => "allocations per CPU second",
            Self::Allocations => "allocations/s",
            Self::ResponsesPerCpuSecond => "responses per CPU second",
            Self::Responses => "responses/s",
            Self::BytesPerAllocation => "memory per allocation, bytes",
            Self::CoreShare => "server CPU, % of a core",
        }
    }

    /// Returns the number of decimal places.
    pub(crate) fn decimals(self) -> usize {
        match self {
            Self::CpuPerPacket | Self::MachinePerPacket | Self::PathPerPacket | Self::MachineCores => 2,
            Self::Loss | Self::ServerCores | Self::CoreShare => 2,
            _ => 0,
        }
    }
}

const fn row(figure: Figure, goal: Goal) -> Row {
    Row { figure, goal: Some(goal) }
}

const fn shown(figure: Figure) -> Row {
    Row { figure, goal: None }
}

/// 50 flows of 1000 bytes over UDP and channels, 40 000 packets per second in total.
const PACED: Load = Load {
    transport: Transport::Udp,
    direction: Direction::Up,
    framing: Framing::Channel,
    flows: 50,
    payload: 1000,
    pace: Pace::Rate(40_000),
    shape: Shape::Single,
};

const SATURATED: Load = Load { pace: Pace::Window(6), ..PACED };
const BULK: Load = Load { flows: 4, payload: 1200, pace: Pace::Window(64), shape: Shape::Train, ..PACED };
const BULK_MERGED: Load = Load { shape: Shape::Merged, ..BULK };

const fn down(load: Load) -> Load {
    Load { direction: Direction::Down, ..load }
}

const PACED_ROWS: &[Row] = &[
    row(Figure::CpuPerPacket, Goal::RatioAtMost(0.5)),
    row(Figure::P99, Goal::AtMost(500.0)),
    row(Figure::Loss, Goal::AtMost(0.0)),
    shown(Figure::P50),
    shown(Figure::Delivered),
];

/// "No worse than coturn", with a tolerance of 5 % for the variation between runs.
const QUIET_ROWS: &[Row] = &[
    row(Figure::CpuPerPacket, Goal::RatioAtMost(1.05)),
    row(Figure::P50, Goal::RatioAtMost(1.05)),
    row(Figure::P99, Goal::RatioAtMost(1.05)),
    shown(Figure::Loss),
];

const CHEAP_ROWS: &[Row] = &[
    row(Figure::CpuPerPacket, Goal::RatioAtMost(0.6)),
    shown(Figure::P99),
    shown(Figure::Loss),
    shown(Figure::Delivered),
];

const SATURATED_ROWS: &[Row] = &[
    row(Figure::PerCpuSecond, Goal::RatioAtLeast(1.4)),
    shown(Figure::CpuPerPacket),
    shown(Figure::Delivered),
    shown(Figure::ServerCores),
    shown(Figure::Loss),
];

const BULK_ROWS: &[Row] = &[
    row(Figure::PerCpuSecond, Goal::RatioAtLeast(1.8)),
    shown(Figure::CpuPerPacket),
    shown(Figure::Delivered),
    shown(Figure::ServerCores),
    shown(Figure::Loss),
];

const MERGED_ROWS: &[Row] = &[
    row(Figure::PerCpuSecond, Goal::RatioAtLeast(5.0)),
    shown(Figure::CpuPerPacket),
    shown(Figure::Delivered),
    shown(Figure::ServerCores),
    shown(Figure::Loss),
];

const fn relay(name: &'static str, about: &'static str, loads: &'static [Load], rows: &'static [Row]) -> Scenario {
    Scenario { name, about, work: Work::Relay(loads), workers: None, rows }
}

/// Every scenario, in the order of the table.
pub(crate) const ALL: &[Scenario] = &[
    relay("paced-up", "50 flows, 1000 bytes, 40 000 packets/s in total, to the peer", &[PACED], PACED_ROWS),
    relay("paced-down", "as paced-up, to the clients", &[down(PACED)], PACED_ROWS),
    relay(
        "many-up",
        "1000 flows, 40 000 packets/s in total, to the peer",
        &[Load { flows: 1000, ..PACED }],
        PACED_ROWS,
    ),
    relay("many-down", "as many-up, to the clients", &[down(Load { flows: 1000, ..PACED })], PACED_ROWS),
    relay(
        "quiet-up",
        "50 flows, 2 000 packets/s, to the peer",
        &[Load { pace: Pace::Rate(2_000), ..PACED }],
        QUIET_ROWS,
    ),
    relay("quiet-down", "as quiet-up, to the clients", &[down(Load { pace: Pace::Rate(2_000), ..PACED })], QUIET_ROWS),
    relay("saturated-up", "50 flows as fast as the server relays them, to the peer", &[SATURATED], SATURATED_ROWS),
    relay("saturated-down", "as saturated-up, to the clients", &[down(SATURATED)], SATURATED_ROWS),
    relay("bulk-up", "4 fast flows of 1200 bytes in trains of 32 packets, to the peer", &[BULK], BULK_ROWS),
    relay("bulk-down", "as bulk-up, to the clients", &[down(BULK)], BULK_ROWS),
    relay("bulk-merged-up", "4 fast flows, 32 packets merged into one datagram", &[BULK_MERGED], MERGED_ROWS),
    relay("bulk-merged-down", "as bulk-merged-up, to the clients", &[down(BULK_MERGED)], MERGED_ROWS),
    relay(
        "indications-up",
        "as paced-up, in Send indications",
        &[Load { framing: Framing::Indication, ..PACED }],
        CHEAP_ROWS,
    ),
    relay(
        "indications-down",
        "as paced-down, in Data indications",
        &[down(Load { framing: Framing::Indication, ..PACED })],
        CHEAP_ROWS,
    ),
    relay("tcp-up", "as paced-up, clients on TCP", &[Load { transport: Transport::Tcp, ..PACED }], CHEAP_ROWS),
    relay(
        "tcp-down",
        "as paced-down, clients on TCP",
        &[down(Load { transport: Transport::Tcp, ..PACED })],
        CHEAP_ROWS,
    ),
    relay("tls-up", "as paced-up, clients on TLS 1.3", &[Load { transport: Transport::Tls, ..PACED }], CHEAP_ROWS),
    relay(
        "tls-down",
        "as paced-down, clients on TLS 1.3",
        &[down(Load { transport: Transport::Tls, ..PACED })],
        CHEAP_ROWS,
    ),
    Scenario {
        name: "mixed",
        about: "50 paced flows (10 000 packets/s) and one flow at full speed, one worker; latency of the 50 flows",
        work: Work::Relay(&[
            Load { pace: Pace::Rate(10_000), ..PACED },
            Load { flows: 1, pace: Pace::Window(128), ..PACED },
        ]),
        workers: Some(1),
        rows: &[
            row(Figure::P99, Goal::AtMost(2000.0)),
            shown(Figure::P50),
            shown(Figure::Loss),
            shown(Figure::Delivered),
            shown(Figure::ServerCores),
        ],
    },
    Scenario {
        name: "churn",
        about: "clients that allocate, delete the allocation and are replaced by the next, 32 at a time",
        work: Work::Churn { clients: 32 },
        workers: None,
        rows: &[
            row(Figure::AllocationsPerCpuSecond, Goal::RatioAtLeast(1.5)),
            shown(Figure::Allocations),
            shown(Figure::ServerCores),
        ],
    },
    Scenario {
        name: "binding",
        about: "STUN Binding requests, 50 clients with 4 outstanding requests each",
        work: Work::Binding { clients: 50, window: 4 },
        workers: None,
        rows: &[
            row(Figure::ResponsesPerCpuSecond, Goal::RatioAtLeast(2.0)),
            shown(Figure::Responses),
            shown(Figure::ServerCores),
        ],
    },
    Scenario {
        name: "memory",
        about: "4000 idle allocations, one permission and one channel each",
        work: Work::Idle { allocations: 4000, refreshed: false },
        workers: None,
        rows: &[row(Figure::BytesPerAllocation, Goal::AtMost(2048.0))],
    },
    Scenario {
        name: "idle",
        about: "10 000 idle allocations that clients refresh as usual",
        work: Work::Idle { allocations: 10_000, refreshed: true },
        workers: None,
        rows: &[row(Figure::CoreShare, Goal::AtMost(1.0)), shown(Figure::BytesPerAllocation)],
    },
];

impl Scenario {
    /// Returns the scenario with this name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|scenario| scenario.name == name)
    }

    /// Returns the scenarios that `wanted` selects: by name, or by the name without `-up` and `-down`.
    pub(crate) fn matching(wanted: &str) -> Vec<&'static Self> {
        let stem = |name: &'static str| name.strip_suffix("-up").or_else(|| name.strip_suffix("-down"));
        ALL.iter().filter(|scenario| scenario.name == wanted || stem(scenario.name) == Some(wanted)).collect()
    }

    /// Returns whether clients use TLS.
    pub(crate) fn uses_tls(&self) -> bool {
        matches!(self.work, Work::Relay(loads) if loads.iter().any(|load| load.transport == Transport::Tls))
    }
}

impl Work {
    /// Returns the loads. Empty for scenarios that relay nothing.
    pub(crate) fn loads(self) -> &'static [Load] {
        match self {
            Self::Relay(loads) => loads,
            _ => &[],
        }
    }
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "a benchmark is built with cfg(test), but without its tests")]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn scenario_names_are_unique_and_found() {
        let names: BTreeSet<_> = ALL.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), ALL.len());
        assert!(names.iter().all(|name| Scenario::named(name).is_some()));
        assert!(Scenario::named("paced").is_none());
    }

    #[test]
    fn a_stem_matches_both_directions() {
        let names = |wanted| Scenario::matching(wanted).iter().map(|scenario| scenario.name).collect::<Vec<_>>();
        assert_eq!(names("paced"), ["paced-up", "paced-down"]);
        assert_eq!(names("bulk"), ["bulk-up", "bulk-down"]);
        assert_eq!(names("bulk-merged-up"), ["bulk-merged-up"]);
        assert_eq!(names("churn"), ["churn"]);
        assert!(names("pace").is_empty());
    }

    // A train has to fit into the window of its flow, and its segments into one datagram.
    #[test]
    fn trains_fit_into_their_window_and_datagram() {
        for load in ALL.iter().flat_map(|scenario| scenario.work.loads()).filter(|load| load.shape != Shape::Single) {
            assert!(matches!(load.pace, Pace::Window(window) if window >= TRAIN as u64));
            assert!((load.payload + 4) * TRAIN < 65_000);
        }
    }

    #[test]
    fn the_first_row_of_each_scenario_has_a_goal() {
        assert!(ALL.iter().all(|scenario| scenario.rows.first().is_some_and(|row| row.goal.is_some())));
    }
}
