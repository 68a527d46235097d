//! Performs one measurement: starts a server, its clients and peers, and evaluates their results.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::interrupt;
use crate::load::clock::{self, MILLISECOND, SECOND};
use crate::load::{Outcome, Window};
use crate::network::{Host, Network};
use crate::process::{Process, Role, Server, machine_cpu};
use crate::scenario::{Figure, Load, Pace, Scenario, Transport, Work};
use crate::server::{Kind, Servers};

/// Timeout of the steps of a server, a client or a peer.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);

/// Minimum duration for an idle server, which has few events to measure.
const IDLE_SECONDS: u64 = 10;

/// The durations of a measurement.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    /// Seconds of load before the measurement.
    pub(crate) warm_up: u64,
    /// Measured seconds.
    pub(crate) seconds: u64,
}

/// The result of a measurement.
pub(crate) struct Measured {
    pub(crate) figures: BTreeMap<Figure, f64>,
    /// Remarks for the reader of the figures.
    pub(crate) remarks: Vec<String>,
    /// CPU use of the load generator and of other programs, in cores.
    pub(crate) generator: f64,
    pub(crate) others: f64,
}

/// The client and the peer of a load, or a client alone.
struct Side {
    client: Role,
    peer: Option<Role>,
}

/// The results of the roles of a load.
struct Counted(Vec<Value>);

/// CPU time used so far, in nanoseconds.
struct Cpu {
    server: u64,
    generator: u64,
    machine: u64,
}

/// Measures one server in one scenario.
pub(crate) fn measure(
    kind: Kind,
    scenario: &'static Scenario,
    servers: &Servers,
    network: &Network,
    times: Times,
) -> Outcome<Measured> {
    let server = servers.start(kind, scenario, network)?;
    let result = with_server(&server, scenario, servers, network, times);
    result.map_err(|error| match server.last_lines() {
        _ if interrupt::interrupted() => "interrupted".into(),
        lines if lines.is_empty() => error,
        lines => format!("{error}\nLast output of the server:\n{lines}").into(),
    })
}

fn with_server(
    server: &Server,
    scenario: &'static Scenario,
    servers: &Servers,
    network: &Network,
    times: Times,
) -> Outcome<Measured> {
    let count = scenario.work.loads().len().max(1);
    let mut sides =
        (0..count).map(|load| Side::start(scenario, load, servers, network)).collect::<Outcome<Vec<_>>>()?;
    for side in &sides {
        side.client.wait_for("reachable", STEP_TIMEOUT)?;
    }
    let empty = server.process.memory()?;
    for side in &mut sides {
        side.client.send_command("begin")?;
        side.client.wait_for("ready", STEP_TIMEOUT)?;
    }
    let full = server.process.memory()?;

    let window = window(scenario, times);
    for side in &mut sides {
        side.send_command(&window.command())?;
    }
    wait_until(window.from)?;
    let (before, began) = (Cpu::read(server, &sides)?, clock::now());
    wait_until(window.to)?;
    let (after, ended) = (Cpu::read(server, &sides)?, clock::now());
    let counted = sides.iter().map(Side::result).collect::<Outcome<Vec<_>>>()?;

    let elapsed = (ended - began) as f64;
    let server_cpu = (after.server - before.server) as f64;
    let generator = (after.generator - before.generator) as f64;
    let all = after.machine.saturating_sub(before.machine) as f64;
    let mut measured = Measured {
        figures: BTreeMap::from([
            (Figure::ServerCores, server_cpu / elapsed),
            (Figure::CoreShare, 100.0 * server_cpu / elapsed),
        ]),
        remarks: Vec::new(),
        generator: generator / elapsed,
        others: ((all - server_cpu - generator) / elapsed).max(0.0),
    };
    let seconds = (window.to - window.from) as f64 / SECOND as f64;
    measured.evaluate(scenario.work, &counted, server_cpu, seconds)?;
    if let Work::Idle { allocations, .. } = scenario.work {
        let per_allocation = full.saturating_sub(empty) as f64 / allocations as f64;
        measured.figures.insert(Figure::BytesPerAllocation, per_allocation);
    }
    Ok(measured)
}

impl Measured {
    fn evaluate(&mut self, work: Work, counted: &[Counted], cpu: f64, seconds: f64) -> Outcome<()> {
        let cpu_seconds = cpu / SECOND as f64;
        match work {
            Work::Relay(loads) => {
                let mut delivered = 0.0;
                for (number, (load, counted)) in loads.iter().zip(counted).enumerate() {
                    delivered += counted.number("delivered")?;
                    self.remark_on(load, counted, seconds)?;
                    if number == 0 {
                        self.latency_and_loss(counted)?;
                    }
                }
                self.figures.insert(Figure::Delivered, delivered / seconds);
                self.figures.insert(Figure::CpuPerPacket, cpu / 1000.0 / delivered);
                self.figures.insert(Figure::PerCpuSecond, delivered / cpu_seconds);
            }
            Work::Churn { .. } => {
                let counted = counted.first().ok_or("no client")?;
                let allocations = counted.number("allocations")?;
                self.figures.insert(Figure::Allocations, allocations / seconds);
                self.figures.insert(Figure::AllocationsPerCpuSecond, allocations / cpu_seconds);
                if counted.number("failed")? > 0.0 {
                    let why = counted.0.iter().find_map(|value| value.get("why")?.as_str()).unwrap_or_default();
                    self.remark(counted, "failed", &format!("clients failed, the last one with: {why}"))?;
                }
                self.remark(counted, "repeated", "requests were retransmitted")?;
            }
            Work::Binding { .. } => {
                let counted = counted.first().ok_or("no client")?;
                let responses = counted.number("responses")?;
                self.figures.insert(Figure::Responses, responses / seconds);
                self.figures.insert(Figure::ResponsesPerCpuSecond, responses / cpu_seconds);
                self.remark(counted, "damaged", "responses were invalid")?;
                // A few may be missing: the requests in flight at the end of the window.
                if counted.number("sent")? - responses > 0.001 * responses + 1000.0 {
                    self.remarks.push("more than 0.1 % of the requests got no response".to_owned());
                }
            }
            Work::Idle { .. } => {
                self.remark(counted.first().ok_or("no client")?, "failed", "refreshes failed")?;
            }
        }
        Ok(())
    }

    fn latency_and_loss(&mut self, counted: &Counted) -> Outcome<()> {
        let (sent, delivered) = (counted.number("sent")?, counted.number("delivered")?);
        self.figures.insert(Figure::Loss, 100.0 * (sent - delivered).max(0.0) / sent);
        for (figure, name) in [(Figure::P50, "p50"), (Figure::P99, "p99")] {
            if let Ok(nanoseconds) = counted.number(name) {
                self.figures.insert(figure, nanoseconds / 1000.0);
            }
        }
        Ok(())
    }

    fn remark_on(&mut self, load: &Load, counted: &Counted, seconds: f64) -> Outcome<()> {
        if counted.number("delivered")? == 0.0 {
            return Err("nothing was delivered".into());
        }
        self.remark(counted, "reordered", "packets arrived out of order or twice")?;
        self.remark(counted, "damaged", "payloads were damaged")?;
        if let Pace::Rate(rate) = load.pace {
            let share = counted.number("sent")? / (rate as f64 * seconds);
            if share < 0.98 {
                let percent = 100.0 * share;
                self.remarks
                    .push(format!("the load generator was too slow and sent only {percent:.0} % of the packets"));
            }
        }
        Ok(())
    }

    fn remark(&mut self, counted: &Counted, name: &str, text: &str) -> Outcome<()> {
        let count = counted.number(name)?;
        if count > 0.0 {
            self.remarks.push(format!("{count} {text}"));
        }
        Ok(())
    }
}

impl Counted {
    fn number(&self, name: &str) -> Outcome<f64> {
        let found = self.0.iter().find_map(|value| value.get(name)?.as_f64());
        Ok(found.ok_or_else(|| format!("no role reported {name}"))?)
    }
}

impl Side {
    fn start(scenario: &'static Scenario, load: usize, servers: &Servers, network: &Network) -> Outcome<Self> {
        let feedback = servers.directory.join(format!("feedback-{load}.sock"));
        // The preceding measurement may have left the file.
        let _ = fs::remove_file(&feedback);
        let addresses = &network.addresses;
        let tls = scenario.work.loads().get(load).is_some_and(|load| load.transport == Transport::Tls);
        let port = if tls { addresses.tls_port } else { addresses.port };
        let arguments = |role: &str, own: String, peer: String| {
            [
                role.to_owned(),
                format!("--scenario={}", scenario.name),
                format!("--load={load}"),
                format!("--own={own}"),
                format!("--server={}:{port}", addresses.listen),
                format!("--peer={peer}"),
                format!("--feedback={}", feedback.display()),
                format!("--certificate={}", servers.certificate().display()),
            ]
        };
        let (mut peer, mut peer_address) = (None, format!("{}:9", addresses.peer));
        if !scenario.work.loads().is_empty() {
            let line = arguments("peer", addresses.peer.to_string(), peer_address);
            let role = Role::start("peer", &mut network.command(Host::Peer, line))?;
            peer_address = role.wait_for("address", STEP_TIMEOUT)?;
            peer = Some(role);
        }
        let line = arguments("client", addresses.client.to_string(), peer_address);
        Ok(Self { client: Role::start("client", &mut network.command(Host::Client, line))?, peer })
    }

    fn roles(&self) -> impl Iterator<Item = &Role> {
        std::iter::once(&self.client).chain(&self.peer)
    }

    fn send_command(&mut self, command: &str) -> Outcome<()> {
        self.client.send_command(command)?;
        self.peer.as_mut().map_or(Ok(()), |peer| peer.send_command(command))
    }

    fn result(&self) -> Outcome<Counted> {
        let values = self.roles().map(|role| Ok(serde_json::from_str(&role.wait_for("result", STEP_TIMEOUT)?)?));
        Ok(Counted(values.collect::<Outcome<Vec<Value>>>()?))
    }
}

impl Cpu {
    fn read(server: &Server, sides: &[Side]) -> Outcome<Self> {
        let roles = sides.iter().flat_map(Side::roles).map(|role| &role.process);
        let generator = roles.map(Process::cpu).sum::<Outcome<u64>>()?;
        Ok(Self { server: server.process.cpu()?, generator, machine: machine_cpu()? })
    }
}

fn window(scenario: &Scenario, times: Times) -> Window {
    let (warm_up, seconds) = match scenario.work {
        Work::Idle { refreshed: false, .. } => (0, 1),
        Work::Idle { refreshed: true, .. } => (times.warm_up, times.seconds.max(IDLE_SECONDS)),
        _ => (times.warm_up, times.seconds),
    };
    // Leaves time for all roles to receive the command.
    let start = clock::now() + 50 * MILLISECOND;
    let from = start + warm_up * SECOND;
    Window { start, from, to: from + seconds * SECOND }
}

/// Sleeps until `deadline`. Fails if interrupted.
fn wait_until(deadline: u64) -> Outcome<()> {
    while clock::now() < deadline {
        if interrupt::interrupted() {
            return Err("interrupted".into());
        }
        clock::sleep_until(deadline.min(clock::now() + 100 * MILLISECOND));
    }
    Ok(())
}
