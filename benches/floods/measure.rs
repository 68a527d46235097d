//! Performs one measurement: the server, the call and the attacker, and the line of the table.

use std::fs;
use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::attack::Attack;
use crate::counters::{Metrics, Traffic};
use crate::interrupt;
use crate::load::clock::{self, MILLISECOND, SECOND};
use crate::load::{Outcome, PASSWORD, REALM, USER, Window};
use crate::network::{ATTACKER_NETWORK, Addresses, Host, Network};
use crate::output::print_progress;
use crate::process::{MachineCpu, Role, Server};
use crate::scenario::{Direction, Framing, Load, Pace, Scenario, Shape, Transport, Work};
use crate::side::{Counted, Plan, STEP_TIMEOUT, Side, wait_until};
use crate::table::Line;
use crate::targets::Observed;

/// The relay ports of the server. So few that forged ICMP errors about random ones meet allocations.
pub(crate) const RELAY_PORTS: (u16, u16) = (50_000, 52_047);

/// Packets per second of a flow of the call in each direction.
const PER_FLOW: u64 = 50;

/// Seconds of load before the measurement.
const WARM_UP: u64 = 1;

pub(crate) const HEADINGS: [&str; 11] = [
    "flood",
    "offered /s",
    "served /s",
    "lost, %",
    "p50, µs",
    "p99, µs",
    "TCP lost, %",
    "TCP p99, µs",
    "PSS, KiB",
    "log lines",
    "received ÷ sent",
];

pub(crate) const NUMBERS: Range<usize> = 1..11;

const UP: Load = Load {
    transport: Transport::Udp,
    direction: Direction::Up,
    framing: Framing::Channel,
    flows: 50,
    payload: 200,
    pace: Pace::Rate(50 * PER_FLOW),
    shape: Shape::Single,
};

const TCP_UP: Load = Load { transport: Transport::Tcp, flows: 1, pace: Pace::Rate(PER_FLOW), ..UP };

/// The two directions of the UDP flows, and those of the TCP client.
static CALL: Scenario = Scenario {
    name: "call",
    about: "50 flows over UDP and a client on TCP, 50 packets/s each way",
    work: Work::Relay(&[
        UP,
        Load { direction: Direction::Down, ..UP },
        TCP_UP,
        Load { direction: Direction::Down, ..TCP_UP },
    ]),
    workers: None,
    rows: &[],
};

/// Returns the call.
pub(crate) fn call() -> &'static Scenario {
    &CALL
}

/// Returns the call, if it has this name.
pub(crate) fn named(name: &str) -> Option<&'static Scenario> {
    (name == CALL.name).then_some(&CALL)
}

/// What all measurements have in common.
pub(crate) struct Measurement<'m> {
    pub(crate) ours: PathBuf,
    pub(crate) directory: &'m Path,
    pub(crate) network: &'m Network,
    pub(crate) seconds: u64,
    /// Whether to print the log of the server.
    pub(crate) log: bool,
}

/// The state of the server and of the attacker's interface at a moment.
struct Sample {
    traffic: Traffic,
    metrics: Metrics,
    memory: u64,
    cpu: u64,
    machine: MachineCpu,
}

/// The result of a measurement.
pub(crate) struct Measured {
    pub(crate) line: Line,
    /// The targets that were missed.
    pub(crate) missed: Vec<String>,
}

impl Measurement<'_> {
    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Generates the certificate.
    pub(crate) fn prepare(&self) -> Outcome<()> {
        let generated = rcgen::generate_simple_self_signed([self.network.addresses.listen.to_string()])?;
        fs::write(self.file("certificate.pem"), generated.cert.pem())?;
        fs::write(self.file("key.pem"), generated.signing_key.serialize_pem())?;
        fs::write(self.file("turnserver.toml"), self.configuration())?;
        Ok(())
    }

    /// Measures the call beside a flood and returns the line of the table.
    pub(crate) fn run(&self, attack: Attack) -> Outcome<Measured> {
        let program = ["run", "--"].map(PathBuf::from).into_iter();
        let line = program.chain([self.ours.clone(), "--config".into(), self.file("turnserver.toml")]);
        let server = Server::start(&mut self.network.command(Host::Server, line))?;
        self.beside(&server, attack).map_err(|error| match server.last_lines() {
            _ if interrupt::interrupted() => "interrupted".into(),
            lines => format!("{error}\nLast output of the server:\n{lines}").into(),
        })
    }

    fn beside(&self, server: &Server, attack: Attack) -> Outcome<Measured> {
        let certificate = self.file("certificate.pem");
        let plan = |load| Plan {
            scenario: &CALL,
            load,
            network: self.network,
            directory: self.directory,
            certificate: &certificate,
            more: Vec::new(),
        };
        let count = CALL.work.loads().len();
        let mut sides = (0..count).map(|load| Side::start(&plan(load))).collect::<Outcome<Vec<_>>>()?;
        for side in &mut sides {
            side.client.wait_for("reachable", STEP_TIMEOUT)?;
            side.client.send_command("begin")?;
            side.client.wait_for("ready", STEP_TIMEOUT)?;
        }
        let mut attacker = self.start_attacker(attack, &sides)?;
        attacker.wait_for("ready", STEP_TIMEOUT)?;

        let empty = server.process.memory()?;
        // Leaves time for all roles to receive the command.
        let start = clock::now() + 50 * MILLISECOND;
        let from = start + WARM_UP * SECOND;
        let window = Window { start, from, to: from + self.seconds * SECOND };
        for side in &mut sides {
            side.send_command(&window.command())?;
        }
        attacker.send_command(&window.command())?;
        wait_until(window.from)?;
        let before = self.sample(server, &attacker)?;
        server.take_lines();
        wait_until(window.to)?;
        let after = self.sample(server, &attacker)?;
        let lines = server.take_lines();
        let counted = sides.iter().map(Side::result).collect::<Outcome<Vec<_>>>()?;
        let result: serde_json::Value = serde_json::from_str(&attacker.wait_for("result", STEP_TIMEOUT)?)?;
        if self.log {
            lines.iter().for_each(|line| print_progress(line));
        }
        print_progress(&format!(
            "{}: the server used {:.2} cores, the hypervisor took {:.2}; the longest iteration took {:.1} ms; \
             p99 up, down, TCP up, down, in µs: {:?}; the attacker reports {result}; {}",
            attack.name(),
            (after.cpu - before.cpu) as f64 / (self.seconds * SECOND) as f64,
            (after.machine.stolen - before.machine.stolen) as f64 / (self.seconds * SECOND) as f64,
            after.metrics.longest_iteration(),
            counted.iter().map(|side| side.number("p99").map_or(0.0, |p99| (p99 / 1000.0).round())).collect::<Vec<_>>(),
            changes(&before.metrics, &after.metrics),
        ));
        self.line(attack, &before, &after, empty, &counted, &result, lines.len())
    }

    #[expect(clippy::too_many_arguments, reason = "these are the parts of a line")]
    fn line(
        &self,
        attack: Attack,
        before: &Sample,
        after: &Sample,
        empty: u64,
        counted: &[Counted],
        result: &serde_json::Value,
        lines: usize,
    ) -> Outcome<Measured> {
        let [up, down, tcp_up, tcp_down] = counted else { return Err("the call has four loads".into()) };
        let (udp, tcp) = (Ends::of(up, down)?, Ends::of(tcp_up, tcp_down)?);
        let seconds = self.seconds as f64;
        let packets = (after.traffic.sent_packets - before.traffic.sent_packets) as f64;
        let delta = |family: &str| after.metrics.sum(family).saturating_sub(before.metrics.sum(family)) as f64;
        let dropped = delta("turnserver_dropped_packets_total");
        let (offered, served) = match attack {
            Attack::None => (0.0, 0.0),
            _ if attack.connects() => {
                let begun = result.get("sent").and_then(serde_json::Value::as_f64).unwrap_or(0.0);
                (begun, delta("turnserver_accepted_connections_total"))
            }
            // The kernel drops those about other ports.
            Attack::Icmp => (packets, delta("turnserver_relayed_icmp_errors_total") + dropped),
            // The interface counts a segmented datagram once.
            Attack::OneSourceMerged | Attack::EmptyMerged => {
                let sent = result.get("sent").and_then(serde_json::Value::as_f64).unwrap_or(0.0);
                (sent, dropped + delta("turnserver_answered_requests_total"))
            }
            _ => (packets, packets - delta("turnserver_receive_buffer_drops_total")),
        };
        let sent = after.traffic.sent_bytes - before.traffic.sent_bytes;
        let received = after.traffic.received_bytes - before.traffic.received_bytes;
        let drawn = attack.is_unverified().then(|| received as f64 / sent as f64);
        let observed = Observed {
            udp: &udp,
            tcp: &tcp,
            growth: after.memory.saturating_sub(empty),
            lines_per_second: lines as f64 / seconds,
            drawn,
        };
        let missed = observed.missed();
        let line = vec![
            attack.name(),
            format!("{:.0}", offered / seconds),
            format!("{:.0}", served / seconds),
            format!("{:.2}", udp.loss),
            format!("{:.0}", udp.p50),
            format!("{:.0}", udp.p99),
            format!("{:.2}", tcp.loss),
            format!("{:.0}", tcp.p99),
            format!("{} → {}", empty / 1024, after.memory / 1024),
            lines.to_string(),
            drawn.map_or(String::new(), |drawn| format!("{drawn:.3}")),
        ];
        Ok(Measured { line, missed })
    }

    fn sample(&self, server: &Server, attacker: &Role) -> Outcome<Sample> {
        Ok(Sample {
            traffic: Traffic::of(attacker.process.id())?,
            metrics: Metrics::read(&self.file("control.sock"))?,
            memory: server.process.memory()?,
            cpu: server.process.cpu()?,
            machine: MachineCpu::read()?,
        })
    }

    fn start_attacker(&self, attack: Attack, sides: &[Side]) -> Outcome<Role> {
        let Addresses { client, listen, port, tls_port, relay, peer, attacker } = &self.network.addresses;
        let ports: Vec<String> =
            sides.iter().filter_map(|side| side.peer_address.rsplit(':').next()).map(str::to_owned).collect();
        let arguments = [
            "attacker".to_owned(),
            format!("--flood={}", attack.name()),
            format!("--own={attacker}"),
            format!("--server={listen}:{port}"),
            format!("--tls={listen}:{tls_port}"),
            format!("--relay={relay}"),
            format!("--peer={peer}"),
            format!("--peer-ports={}", ports.join(",")),
            format!("--client={client}"),
            format!("--certificate={}", self.file("certificate.pem").display()),
        ];
        Role::start("attacker", &mut self.network.command(Host::Attacker, arguments))
    }

    /// Returns the configuration: the defaults, except that the clients share one static user, who has no limit.
    fn configuration(&self) -> String {
        let Addresses { listen, port, tls_port, relay, peer, .. } = &self.network.addresses;
        let relay: &IpAddr = relay;
        let (first, last) = RELAY_PORTS;
        format!(
            "realm = \"{REALM}\"\n\
             [listen]\nudp = [\"{listen}:{port}\"]\ntcp = [\"{listen}:{port}\"]\ntls = [\"{listen}:{tls_port}\"]\n\
             [tls]\ncertificate = {:?}\nprivate-key = {:?}\n\
             [relay]\naddresses = [\"{relay}\"]\nports = \"{first}-{last}\"\n\
             [[auth.users]]\nname = \"{USER}\"\npassword = \"{PASSWORD}\"\n\
             [peers]\nallow = [\"{peer}\", \"{ATTACKER_NETWORK}\"]\n\
             [control]\nsocket = {:?}\n",
            self.file("certificate.pem"),
            self.file("key.pem"),
            self.file("control.sock"),
        )
    }
}

/// The figures of both directions of a part of the call.
pub(crate) struct Ends {
    /// In percent of what was sent.
    pub(crate) loss: f64,
    /// Those of the slower direction, in microseconds.
    p50: f64,
    pub(crate) p99: f64,
}

impl Ends {
    fn of(up: &Counted, down: &Counted) -> Outcome<Self> {
        let both =
            |name: &str| Ok::<_, Box<dyn std::error::Error + Send + Sync>>([up.number(name)?, down.number(name)?]);
        let (sent, delivered) = (both("sent")?.iter().sum::<f64>(), both("delivered")?.iter().sum::<f64>());
        let slower = |name: &str| both(name).map(|[up, down]| up.max(down) / 1000.0);
        Ok(Self { loss: 100.0 * (sent - delivered).max(0.0) / sent, p50: slower("p50")?, p99: slower("p99")? })
    }
}

/// Returns what the server has counted in the meantime, apart from zeros.
fn changes(before: &Metrics, after: &Metrics) -> String {
    let families = [
        "turnserver_dropped_packets_total",
        "turnserver_receive_buffer_drops_total",
        "turnserver_answered_requests_total",
        "turnserver_rejected_requests_total",
        "turnserver_limited_requests_total",
        "turnserver_tls_handshakes_total",
        "turnserver_closed_connections_total",
    ];
    let mut changes = Vec::new();
    for family in families {
        for (labels, value) in after.values(family) {
            let old = before.values(family).find(|(of, _)| *of == labels).map_or(0, |(_, old)| old);
            if value > old {
                changes.push(format!("{family}{labels} {}", value - old));
            }
        }
    }
    changes.join(", ")
}
