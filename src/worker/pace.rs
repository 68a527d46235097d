//! Pauses between the iterations of a worker, similar to the interrupt moderation of a network card.
//!
//! Under load, a thread that sleeps until a packet arrives wakes up for almost every packet, and each wake-up costs as
//! much as serving the packet. During a pause several packets arrive, which one wake-up then serves. But a pause delays
//! packets and needs a timer, and what a timer costs depends on the machine: on a virtual one, often more than a wake-up
//! by a packet. Therefore a loaded worker tries both, and pauses only if that saves a third of its CPU time. Under heavy
//! load, where packets wait for each other anyway, it always pauses.

use std::time::Duration;

use crate::net::timer;
use crate::turn::Instant;

/// The longest pause. Including the wake-up of the thread, a packet waits up to 180 µs, and half of that on average.
const LONGEST: Duration = timer::MAX_PAUSE;

/// The number of packets that a pause gathers. With this number, the wake-up is a small part of the cost.
const GATHER: u32 = 32;

/// The interval over which the load is measured.
const WINDOW: Duration = Duration::from_millis(1);

/// The minimum load for pauses, in packets per [`WINDOW`]. At this load, the longest pause gathers three packets.
const LOADED: u32 = 17;

/// The time of one turn of a trial.
const TURN: Duration = Duration::from_millis(20);

/// The turns of a trial: without pauses, with pauses, and the same again, in case the load changes slowly.
const TURNS: u32 = 4;

/// The time for which the result of a trial is used. A trial that finds no use then delays packets in 0.4 % of the time.
const VALID: Duration = Duration::from_secs(10);

/// The load from which pauses need no trial, in packets per [`WINDOW`]. The longest pause gathers nine packets then. At 90
/// packets, pauses saved 28 % of the CPU time and raised the throughput by 17 %.
const HEAVY: u32 = 50;

/// The load at which the result is used, as a multiple of that in the trial or its inverse.
const SIMILAR: u32 = 2;

/// Measures the load of a worker and determines its pauses.
#[derive(Debug)]
pub(super) struct Pace {
    /// The number of packets since the start of the window.
    packets: u32,
    start: Instant,
    /// The pause at the present load. `None`: the load is too small.
    pause: Option<Duration>,
    /// Whether a packet was served in this iteration.
    served: bool,
    benefit: Benefit,
}

/// Whether pauses pay.
#[derive(Debug)]
enum Benefit {
    Unknown,
    Tried(Trial),
    Known { pays: bool, until: Instant, load: u32 },
}

/// A comparison of the CPU time with and without pauses.
#[derive(Debug)]
struct Trial {
    /// Even turns have no pauses.
    turn: u32,
    begin: Instant,
    /// The CPU time of the thread at the beginning of the turn.
    cpu: Duration,
    /// The packets in the turn.
    packets: u32,
    without: Cost,
    with: Cost,
}

/// The CPU time of packets.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    cpu: Duration,
    packets: u32,
}

impl Cost {
    fn per_packet(self) -> f64 {
        self.cpu.as_secs_f64() / f64::from(self.packets.max(1))
    }
}

impl Trial {
    fn new(now: Instant, cpu: Duration) -> Self {
        Self { turn: 0, begin: now, cpu, packets: 0, without: Cost::default(), with: Cost::default() }
    }

    fn has_pauses(&self) -> bool {
        self.turn % 2 == 1
    }

    /// Ends a turn, and begins the next one. Returns whether pauses pay, after the last turn.
    fn end_turn(&mut self, now: Instant, cpu: Duration) -> Option<bool> {
        let cost = if self.has_pauses() { &mut self.with } else { &mut self.without };
        cost.cpu += cpu.saturating_sub(self.cpu);
        cost.packets += self.packets;
        let turn = self.turn + 1;
        (self.turn, self.begin, self.cpu, self.packets) = (turn, now, cpu, 0);
        (turn == TURNS).then(|| self.with.per_packet() * 3.0 <= self.without.per_packet() * 2.0)
    }

    /// Returns the packets in a second.
    fn load(&self) -> u32 {
        let packets = self.without.packets.saturating_add(self.with.packets);
        packets / TURNS * (1_000 / u32::try_from(TURN.as_millis()).unwrap_or(1).max(1))
    }
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { packets: 0, start: now, pause: None, served: false, benefit: Benefit::Unknown }
    }

    /// Counts packets that were served.
    pub(super) fn count(&mut self, packets: usize) {
        let packets = u32::try_from(packets).unwrap_or(u32::MAX);
        self.served |= packets > 0;
        self.packets = self.packets.saturating_add(packets);
        if let Benefit::Tried(trial) = &mut self.benefit {
            trial.packets = trial.packets.saturating_add(packets);
        }
    }

    /// Returns whether a packet was served in the iteration that ends.
    pub(super) fn take_served(&mut self) -> bool {
        std::mem::take(&mut self.served)
    }

    /// Returns how long to pause at the end of an iteration of the event loop. `cpu` returns the CPU time of the thread.
    pub(super) fn pause(&mut self, now: Instant, cpu: impl FnOnce() -> Duration) -> Option<Duration> {
        let elapsed = now.since(self.start);
        if elapsed >= WINDOW {
            let loaded = u128::from(self.packets) * WINDOW.as_micros() >= u128::from(LOADED) * elapsed.as_micros();
            self.pause = loaded.then(|| (elapsed / self.packets * GATHER).min(LONGEST));
            let load = self.packets.saturating_mul(1_000) / u32::try_from(elapsed.as_millis()).unwrap_or(u32::MAX);
            self.packets = 0;
            self.start = now;
            self.judge(now, load, cpu);
        }
        let pays = match &self.benefit {
            Benefit::Unknown => false,
            Benefit::Tried(trial) => trial.has_pauses(),
            Benefit::Known { pays, .. } => *pays,
        };
        self.pause.filter(|_| pays)
    }

    /// Begins, continues or ends a trial. `load`: in packets per second.
    fn judge(&mut self, now: Instant, load: u32, cpu: impl FnOnce() -> Duration) {
        if load >= HEAVY * 1_000 {
            self.benefit = Benefit::Known { pays: true, until: now.plus(VALID), load };
            return;
        }
        match &mut self.benefit {
            // Without load, there is nothing to compare.
            Benefit::Tried(_) if self.pause.is_none() => self.benefit = Benefit::Unknown,
            Benefit::Tried(trial) if now.since(trial.begin) >= TURN => {
                if let Some(pays) = trial.end_turn(now, cpu()) {
                    self.benefit = Benefit::Known { pays, until: now.plus(VALID), load: trial.load() };
                }
            }
            Benefit::Tried(_) => {}
            Benefit::Known { until, load: tried, .. }
                if until.since(now) > Duration::ZERO
                    && load <= tried.saturating_mul(SIMILAR)
                    && load >= *tried / SIMILAR => {}
            Benefit::Unknown | Benefit::Known { .. } if self.pause.is_some() => {
                self.benefit = Benefit::Tried(Trial::new(now, cpu()));
            }
            Benefit::Unknown | Benefit::Known { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a simulated machine needs for a packet, for a wake-up by a packet, and for a timer.
    #[derive(Clone, Copy)]
    struct Machine {
        gap: Duration,
        work: Duration,
        wake: Duration,
        timer: Duration,
    }

    /// What happened in a simulation.
    #[derive(Debug, Default)]
    struct Run {
        packets: u32,
        iterations: u32,
        pauses: u32,
        longest: Duration,
    }

    /// Simulates an event loop. A packet arrives every `gap`.
    fn run(machine: Machine, packets: u32) -> Run {
        let Machine { gap, work, wake, timer } = machine;
        let mut now = Instant::from_elapsed(Duration::from_secs(1));
        let mut cpu = Duration::ZERO;
        let mut pace = Pace::new(now);
        let mut next = now.plus(gap);
        let mut run = Run::default();
        while run.packets < packets {
            if next.since(now) > Duration::ZERO {
                now = next.plus(wake);
                cpu += wake;
            }
            run.iterations += 1;
            while next.since(now) == Duration::ZERO {
                run.packets += 1;
                pace.count(1);
                now = now.plus(work);
                cpu += work;
                next = next.plus(gap);
            }
            if let Some(pause) = pace.pause(now, || cpu) {
                run.pauses += 1;
                run.longest = run.longest.max(pause);
                now = now.plus(pause);
                cpu += timer;
            }
        }
        run
    }

    const fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    /// A machine on which a timer costs as much as a wake-up by a packet.
    const CHEAP: Machine = Machine { gap: micros(25), work: micros(4), wake: micros(10), timer: micros(10) };

    #[test]
    fn light_traffic_causes_no_pause() {
        let run = run(Machine { gap: micros(500), ..CHEAP }, 10_000);
        assert_eq!((run.iterations, run.pauses), (10_000, 0));
    }

    #[test]
    fn each_wake_up_under_ordinary_load_serves_several_packets_if_that_pays() {
        let run = run(CHEAP, 100_000);
        assert!(run.iterations < 30_000, "{run:?}");
        assert!(run.longest <= LONGEST);
    }

    #[test]
    fn a_worker_does_not_pause_where_timers_are_expensive_but_tries_again() {
        // Four packets share a pause, so it saves a third of 14 µs at most if it costs less than 20 µs.
        let machine = Machine { timer: micros(40), ..CHEAP };
        let seconds = 100_000 / 40_000;
        let few = run(machine, 100_000);
        let most = u32::try_from(2 * TURN.as_micros() / LONGEST.as_micros()).unwrap();
        assert!((1..=most).contains(&few.pauses), "one trial in {seconds} s: {few:?}");
        let more = run(machine, 40_000 * 25);
        assert!((2 * few.pauses..=4 * most).contains(&more.pauses), "{few:?} {more:?}");
    }

    #[test]
    fn under_heavy_load_a_pause_gathers_a_fixed_number_of_packets() {
        let gap = micros(3);
        let machine = Machine { gap, work: Duration::from_nanos(500), ..CHEAP };
        let run = run(machine, 1_000_000);
        assert!(run.iterations < 100_000, "{run:?}");
        assert!((gap * (GATHER - 4)..gap * (GATHER + 8)).contains(&run.longest), "{run:?}");
    }

    /// A worker that pauses at 20 000 packets per second.
    fn pausing(now: Instant) -> Pace {
        let benefit = Benefit::Known { pays: true, until: now.plus(VALID), load: 20_000 };
        Pace { benefit, ..Pace::new(now) }
    }

    fn cpu() -> Duration {
        Duration::ZERO
    }

    #[test]
    fn without_load_there_is_no_pause() {
        let start = Instant::from_elapsed(Duration::from_secs(1));
        let mut pace = pausing(start);
        pace.count(20);
        let later = start.plus(WINDOW);
        assert!(pace.pause(later, cpu).is_some());
        assert_eq!(pace.pause(later.plus(WINDOW), cpu), None);
    }

    #[test]
    fn another_load_needs_another_trial() {
        let start = Instant::from_elapsed(Duration::from_secs(1));
        for (packets, is_known) in [(17, true), (39, true), (41, false), (49, false), (50, true), (1_000, true)] {
            let mut pace = pausing(start);
            pace.count(packets);
            assert_eq!(pace.pause(start.plus(WINDOW), cpu).is_some(), is_known, "{packets}");
        }
        let mut pace = pausing(start);
        pace.count(200_000);
        assert_eq!(pace.pause(start.plus(VALID), cpu), None, "the result is too old");
    }

    #[test]
    fn packets_before_a_long_idle_time_are_not_load() {
        let start = Instant::from_elapsed(Duration::from_secs(1));
        let mut pace = pausing(start);
        pace.count(50);
        assert_eq!(pace.pause(start.plus(Duration::from_secs(10)), cpu), None);
        assert_eq!(pace.pause(start.plus(Duration::from_secs(20)), cpu), None);
    }
}
