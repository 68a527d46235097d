//! Performs one measurement: starts a server or the kernel's forwarding, clients and peers, and evaluates their results.

use std::collections::BTreeMap;

use crate::interrupt;
use crate::load::clock::{self, MILLISECOND, SECOND};
use crate::load::{Outcome, Window};
use crate::network::Network;
use crate::process::{MachineCpu, Process, Server, other_processes_cpu};
use crate::scenario::{Figure, Load, Pace, Scenario, Work};
use crate::server::{Kind, Servers};
use crate::side::{Counted, Plan, STEP_TIMEOUT, Side, wait_until};

/// Minimum duration for an idle server, which has few events to measure.
const IDLE_SECONDS: u64 = 10;

/// Minimum duration for the CPU time of the machine with a slow load: its resolution of 10 ms is 2 % of 25 µs for each of
/// 20 000 packets.
const SLOW_SECONDS: u64 = 10;

/// A load with fewer packets per second is slow.
const SLOW: u64 = 10_000;

/// Minimum share of the packets that the kernel relays with the offload.
const OFFLOADED_SHARE: f64 = 0.9;

/// The CPU use of the hypervisor, in cores, above which there is a remark.
const STOLEN: f64 = 0.02;

/// Time after which our server has read the counters of the kernel.
const COUNTERS_TIMEOUT: u64 = 3 * SECOND;

/// The durations of a measurement.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    /// Seconds of load before the measurement.
    pub(crate) warm_up: u64,
    /// Measured seconds.
    pub(crate) seconds: u64,
    /// Whether the CPU time of the machine is measured.
    pub(crate) machine: bool,
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

/// CPU time used so far, in nanoseconds, and when it was read.
struct Cpu {
    server: u64,
    generator: u64,
    machine: MachineCpu,
    /// That of processes that do not belong to the measurement, if the CPU time of the machine is measured.
    foreign: u64,
    at: u64,
}

/// What the machine uses without relaying, in the same round.
#[derive(Clone, Copy)]
pub(crate) struct Baseline {
    /// CPU use without a load, in cores.
    pub(crate) idle: f64,
    /// CPU time of the machine per packet that the load generator paces but does not send, in microseconds. `None` in a
    /// closed loop, where there is no pace.
    pub(crate) generator: Option<f64>,
}

impl Baseline {
    /// Measures the machine without a load, as long as the scenario is measured.
    pub(crate) fn measure(scenario: &Scenario, times: Times) -> Outcome<Self> {
        let window = window(scenario, Times { warm_up: 0, ..times });
        wait_until(window.from)?;
        let before = Cpu::read(None, &[], true)?;
        wait_until(window.to)?;
        Ok(Self { idle: before.busy_until(&Cpu::read(None, &[], true)?), generator: None })
    }
}

impl Cpu {
    fn read(server: Option<&Server>, sides: &[Side], machine: bool) -> Outcome<Self> {
        let processes: Vec<&Process> = sides.iter().flat_map(Side::roles).map(|role| &role.process).collect();
        let own: Vec<u32> =
            processes.iter().copied().chain(server.map(|server| &server.process)).map(Process::id).collect();
        Ok(Self {
            machine: MachineCpu::read()?,
            at: clock::now(),
            generator: processes.iter().map(|process| process.cpu()).sum::<Outcome<u64>>()?,
            server: server.map_or(Ok(0), |server| server.process.cpu())?,
            foreign: if machine { other_processes_cpu(&own)? } else { 0 },
        })
    }

    /// Returns the CPU use of the machine until `after`, except for that of foreign processes, in cores.
    fn busy_until(&self, after: &Self) -> f64 {
        let unavailable = (after.machine.idle + after.foreign).saturating_sub(self.machine.idle + self.foreign);
        after.machine.cpus as f64 - unavailable as f64 / (after.at - self.at) as f64
    }
}

/// Measures one variant in one scenario.
pub(crate) fn measure(
    kind: Kind,
    scenario: &'static Scenario,
    servers: &Servers,
    network: &Network,
    times: Times,
    baseline: Option<Baseline>,
) -> Outcome<Measured> {
    let _forwarding = if kind.is_forwarded() { Some(network.forwarding()?) } else { None };
    let server = servers.start(kind, scenario, network)?;
    let measurement = Measurement { kind, server: server.as_ref(), scenario, servers, network, times, baseline };
    let result = measurement.run();
    let Some(server) = &server else { return result };
    result.map_err(|error| match server.last_lines() {
        _ if interrupt::interrupted() => "interrupted".into(),
        lines if lines.is_empty() => error,
        lines => format!("{error}\nLast output of the server:\n{lines}").into(),
    })
}

/// One measurement.
struct Measurement<'m> {
    kind: Kind,
    /// The server, if there is one.
    server: Option<&'m Server>,
    scenario: &'static Scenario,
    servers: &'m Servers,
    network: &'m Network,
    times: Times,
    baseline: Option<Baseline>,
}

impl Measurement<'_> {
    fn run(&self) -> Outcome<Measured> {
        let scenario = self.scenario;
        let count = scenario.work.loads().len().max(1);
        let mut sides = (0..count).map(|load| self.start_side(load)).collect::<Outcome<Vec<_>>>()?;
        for side in &sides {
            side.client.wait_for("reachable", STEP_TIMEOUT)?;
        }
        let empty = self.memory()?;
        for side in &mut sides {
            side.client.send_command("begin")?;
            side.client.wait_for("ready", STEP_TIMEOUT)?;
        }
        let full = self.memory()?;
        let relayed = if self.kind == Kind::Offloaded { self.servers.offload_state()?.relayed } else { 0 };

        let window = window(scenario, self.times);
        for side in &mut sides {
            side.send_command(&window.command())?;
        }
        wait_until(window.from)?;
        let (before, packets_before) = (Cpu::read(self.server, &sides, self.times.machine)?, self.received_packets()?);
        wait_until(window.to)?;
        let (after, packets_after) = (Cpu::read(self.server, &sides, self.times.machine)?, self.received_packets()?);
        let counted = sides.iter().map(Side::result).collect::<Outcome<Vec<_>>>()?;

        let elapsed = (after.at - before.at) as f64;
        let server_cpu = (after.server - before.server) as f64;
        let generator = (after.generator - before.generator) as f64;
        let all = after.machine.sampled.saturating_sub(before.machine.sampled) as f64;
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
        if self.kind == Kind::Generator {
            let sent = counted.iter().map(|counted| counted.number("sent")).sum::<Outcome<f64>>()?;
            measured.figures.insert(Figure::Delivered, sent / seconds);
        } else {
            measured.evaluate(scenario.work, &counted, server_cpu, seconds)?;
        }
        if self.server.is_none() {
            let of_server = [Figure::ServerCores, Figure::CoreShare, Figure::CpuPerPacket, Figure::PerCpuSecond];
            measured.figures.retain(|figure, _| !of_server.contains(figure));
        }
        if let Some(baseline) = self.baseline {
            measured.evaluate_machine(&before, &after, baseline);
        }
        if self.kind == Kind::Offloaded {
            let delivered = measured.figure(Figure::Delivered) * seconds;
            self.await_counters(relayed, delivered)?;
            check_offloaded(delivered, (packets_after - packets_before) as f64)?;
        }
        if let Work::Idle { allocations, .. } = scenario.work {
            let per_allocation = full.saturating_sub(empty) as f64 / allocations as f64;
            measured.figures.insert(Figure::BytesPerAllocation, per_allocation);
        }
        Ok(measured)
    }

    fn start_side(&self, load: usize) -> Outcome<Side> {
        let flags = [("--forwarded", self.kind.is_forwarded()), ("--unsent", self.kind == Kind::Generator)];
        let plan = Plan {
            scenario: self.scenario,
            load,
            network: self.network,
            directory: &self.servers.directory,
            certificate: &self.servers.certificate(),
            more: flags.into_iter().filter(|(_, on)| *on).map(|(flag, _)| flag.to_owned()).collect(),
        };
        Side::start(&plan)
    }

    fn memory(&self) -> Outcome<u64> {
        self.server.map_or(Ok(0), |server| server.process.memory())
    }

    /// Returns the number of packets that the network stack of the offloaded server has received.
    fn received_packets(&self) -> Outcome<u64> {
        let server = self.server.filter(|_| self.kind == Kind::Offloaded);
        server.map_or(Ok(0), |server| server.process.received_packets())
    }

    /// Waits until our server reports the packets that the kernel has relayed.
    fn await_counters(&self, before: u64, delivered: f64) -> Outcome<()> {
        let deadline = clock::now() + COUNTERS_TIMEOUT;
        loop {
            let state = self.servers.offload_state()?;
            let counted = state.relayed.saturating_sub(before);
            if counted as f64 >= OFFLOADED_SHARE * delivered {
                return Ok(());
            }
            if clock::now() > deadline {
                let text = "the server does not report that the kernel relayed the packets";
                return Err(format!("{text}: {counted} of {delivered:.0}, {}", state.response).into());
            }
            wait_until(clock::now() + 200 * MILLISECOND)?;
        }
    }
}

/// Checks that the kernel has relayed the packets: then the network stack of the server has not received them.
fn check_offloaded(delivered: f64, received: f64) -> Outcome<()> {
    if received > (1.0 - OFFLOADED_SHARE) * delivered {
        let text =
            format!("not offloaded: {received:.0} packets reached user space, and {delivered:.0} were delivered");
        return Err(text.into());
    }
    Ok(())
}

impl Measured {
    /// Returns a figure, or 0 if it was not measured.
    fn figure(&self, figure: Figure) -> f64 {
        self.figures.get(&figure).copied().unwrap_or(0.0)
    }

    /// Adds the CPU time of the machine per packet: that of the processes and of the interrupts, which no process pays for.
    fn evaluate_machine(&mut self, before: &Cpu, after: &Cpu, baseline: Baseline) {
        let elapsed = after.at - before.at;
        let cores = before.busy_until(after) - baseline.idle;
        let delivered = self.figure(Figure::Delivered);
        self.figures.insert(Figure::MachineCores, cores);
        if delivered > 0.0 {
            let per_packet = cores * 1_000_000.0 / delivered;
            self.figures.insert(Figure::MachinePerPacket, per_packet);
            if let Some(generator) = baseline.generator {
                self.figures.insert(Figure::PathPerPacket, per_packet - generator);
            }
        }
        let stolen = after.machine.stolen.saturating_sub(before.machine.stolen) as f64 / elapsed as f64;
        if stolen > STOLEN {
            self.remarks.push(format!("the hypervisor took {stolen:.2} cores, which count as CPU time of the machine"));
        }
    }

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

fn window(scenario: &Scenario, times: Times) -> Window {
    let (warm_up, seconds) = match scenario.work {
        Work::Idle { refreshed: false, .. } => (0, 1),
        Work::Idle { refreshed: true, .. } => (times.warm_up, times.seconds.max(IDLE_SECONDS)),
        Work::Relay([Load { pace: Pace::Rate(..SLOW), .. }, ..]) if times.machine => {
            (times.warm_up, times.seconds.max(SLOW_SECONDS))
        }
        _ => (times.warm_up, times.seconds),
    };
    // Leaves time for all roles to receive the command.
    let start = clock::now() + 50 * MILLISECOND;
    let from = start + warm_up * SECOND;
    Window { start, from, to: from + seconds * SECOND }
}
