//! Runs the server under the churn of valid, lazy, broken and hostile clients for a given time, while an operator reloads,
//! kicks, drains and replaces the certificate: `cargo bench --bench soak -- --minutes 60`.
//!
//! Prints a line at regular intervals, and fails if memory or descriptors grow, if a valid call breaks, or if something is
//! still held after all clients have gone. The load stays on loopback addresses.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "this is a test, which shares its helpers with others"
)]

mod call;
mod clients;
#[path = "../../tests/http/client.rs"]
mod http;
mod link;
mod operator;
mod sample;
#[path = "../../tests/support/mod.rs"]
mod support;
mod tally;

use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Parser;
use turnserver::clock::{Clock, unix_seconds};

use clients::{Clients, Kind};
use operator::Operator;
use sample::{Sample, Verdict};
use support::certificates::Authority;
use support::{Controlled, config, with_tls};
use tally::Tally;

/// Where the server listens and relays.
const SERVER: &str = "127.0.0.1";

/// Where the peers are. On the relay address itself, only relayed addresses are peers.
const PEERS: &str = "127.0.0.2";

/// The lines that a run prints.
const LINES: u32 = 12;

/// Runs the server under the churn of valid, lazy, broken and hostile clients, and fails if it grows.
#[derive(Parser)]
#[command(name = "soak", bin_name = "cargo bench --bench soak --")]
struct Arguments {
    /// How long the clients come and go.
    #[arg(long, value_name = "MINUTES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    minutes: u32,
    /// How many valid clients there are at a time. There are about as many others.
    #[arg(long, value_name = "NUMBER", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=1000))]
    calls: u32,
    /// Added by Cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let Arguments { minutes, calls, .. } = Arguments::parse();
    let duration = Duration::from_secs(60) * minutes;
    let authority = Arc::new(Authority::new(unix_seconds()));
    let directory = support::TempDir::new();
    let certificate = authority.write(&authority.issue(&["localhost"]), directory.path());
    // So low that clients reach the limits that are not for one client.
    let more = format!(
        "[limits]\nconnections = 600\nconnections-per-source = 40\n[peers]\nallow = [{PEERS:?}]\n[timeouts]\nidle = '5s'\n"
    );
    let config = with_tls(&config(&[SERVER], &more), &[SERVER], &certificate);
    let controlled = Arc::new(Controlled::start_with(&config));
    let tally = Arc::new(Tally::default());

    let mut clients = Clients::new(&controlled.server, &authority, &tally);
    // What the first clients make the server keep for ever is not growth.
    clients.run_each();
    let before = Sample::take(&controlled, Duration::ZERO).settled(&controlled);
    clients.add(Kind::Call, calls);
    clients.add(Kind::Victim, calls.div_ceil(5));
    clients.add(Kind::Lazy, calls.div_ceil(5));
    clients.add(Kind::Broken, calls.div_ceil(4));
    clients.add(Kind::Hostile, calls.div_ceil(4));
    let operator = Operator::start(Arc::clone(&controlled), certificate, Arc::clone(&authority), Arc::clone(&tally));

    println!("{}", Sample::HEAD);
    let (clock, mut samples) = (Clock::start(), Vec::new());
    let interval = (duration / LINES).min(Duration::from_secs(60));
    while clock.elapsed() < duration {
        thread::sleep(interval);
        let sample = Sample::take(&controlled, clock.elapsed());
        println!("{sample}");
        samples.push(sample);
    }
    operator.stop();
    clients.stop();
    // Lazy clients leave allocations behind, which would last ten minutes.
    controlled.json(&["kick", "--client", "127.0.0.0/8"]);
    let after = Sample::take(&controlled, clock.elapsed()).settled(&controlled);
    println!("{after}  (all clients have gone)\n{tally}");
    match Verdict::of(&before, &samples, &after, &tally) {
        Verdict::Sound => ExitCode::SUCCESS,
        Verdict::Unsound(problems) => {
            problems.iter().for_each(|problem| println!("FAILED: {problem}"));
            ExitCode::FAILURE
        }
    }
}

/// Returns the address of a source: each client has one of its own, and each kind a range.
fn source(kind: Kind, number: u32) -> IpAddr {
    let [_, _, high, low] = number.to_be_bytes();
    IpAddr::from([127, 10 + kind as u8, high, low.max(1)])
}
