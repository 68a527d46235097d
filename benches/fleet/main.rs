//! A day of a fleet in virtual time: `cargo bench --bench fleet -- --nodes 1000 --sessions 10000000`.
//!
//! Nodes are chosen, limits are kept and sums are made by the code of the server (`turnserver::fleet`). The engine, the
//! clients and the failures are models. docs/fleet.md has the figures. Without arguments, as in `cargo test`, a small day
//! runs. It fails if a limit is exceeded by more than its bound, or an event is lost.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "this is a simulation, whose numbers and indexes are its own"
)]

mod clients;
mod consumer;
mod day;
mod engine;
mod node;
mod report;

use std::env;
use std::process::ExitCode;

use clap::Parser;

use day::Day;

/// Simulates a day of a fleet and reports how the load spreads, how limits hold, and what reaches the accounting.
#[derive(Clone, Parser)]
#[command(name = "fleet", bin_name = "cargo bench --bench fleet --")]
struct Arguments {
    /// The number of nodes.
    #[arg(long, value_name = "NUMBER", default_value_t = 24, value_parser = clap::value_parser!(u16).range(12..=10_000))]
    nodes: u16,
    /// About how many allocations clients make during the day.
    #[arg(long, value_name = "NUMBER", default_value_t = 30_000, value_parser = clap::value_parser!(u32).range(1000..=100_000_000))]
    sessions: u32,
    /// How many nodes make credentials, each with a view of its own.
    #[arg(long, value_name = "NUMBER", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000))]
    minters: u16,
    /// How many users try to have a thousand allocations at each node.
    #[arg(long, value_name = "NUMBER", default_value_t = 4, value_parser = clap::value_parser!(u16).range(0..=1000))]
    hostile: u16,
    /// Selects the random numbers.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Only compare the choices of nodes, without leases and events.
    #[arg(long)]
    choices: bool,
    /// Added by Cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// How the nodes for a client are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    /// As the server does: the better of two random nodes.
    Fleet,
    /// A random node.
    Random,
    /// The node with the least load in its last heartbeat.
    LeastLoaded,
}

fn main() -> ExitCode {
    let given: Vec<String> = env::args().skip(1).collect();
    if !given.is_empty() && !given.iter().any(|argument| argument == "--bench") {
        // `cargo test` passes on which tests to run.
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::parse();
    let mut sound = true;
    println!("{} nodes, {} sessions, {} minters", arguments.nodes, arguments.sessions, arguments.minters);
    println!("view of {} nodes: {} bytes for each", arguments.nodes, report::memory_of_view(arguments.nodes));
    println!("{}", report::prefixes(200_000));
    println!("\n{}", report::Balance::HEADING);
    for policy in [Policy::Fleet, Policy::Random, Policy::LeastLoaded] {
        let full = policy == Policy::Fleet && !arguments.choices;
        let mut day = Day::run(&arguments, policy, full);
        println!("{}", day.balance.line(policy));
        if full {
            sound &= report::full(&day);
        }
    }
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
