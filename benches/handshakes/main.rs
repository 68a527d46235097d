//! TLS handshakes of this server and of coturn: `cargo bench --bench handshakes`.
//!
//! docs/performance.md has the figures. Both servers run on loopback, and short rounds alternate between them, so that
//! other load of the machine meets both.

#[path = "../../tests/support/any_certificate.rs"]
mod any_certificate;
mod client;
mod servers;

use std::io::{Write as _, stderr, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use client::{Load, Tally};
use servers::{Certificate, Directory, Kind, Server};

/// An error for the operator.
type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Measures TLS handshakes of this server and of coturn on loopback. It needs Debian's coturn and openssl.
#[derive(Parser)]
#[command(name = "handshakes", bin_name = "cargo bench --bench handshakes --")]
struct Arguments {
    /// The number of rounds of each server.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// The duration of a round in seconds.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// The number of clients at a time.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Another program than the one that cargo has built.
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_turnserver"))]
    ours: PathBuf,
    /// The program of coturn.
    #[arg(long, value_name = "PATH", default_value = "/usr/bin/turnserver")]
    coturn: PathBuf,
    /// Cargo passes this.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The figures of a round.
#[derive(Clone, Copy, Debug)]
struct Figures {
    /// Handshakes per second.
    rate: f64,
    /// CPU time of the server per handshake, in microseconds.
    cpu: f64,
    /// The part of the handshakes that resumed a session.
    resumed: f64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(stderr(), "handshakes: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Outcome<()> {
    let directory = Directory::new()?;
    writeln!(
        stdout(),
        "| certificate | version | handshake | server | handshakes/s | CPU per handshake, µs | resumed, % | CPU, of coturn's |\n\
         |---|---|---|---|--:|--:|--:|--:|"
    )?;
    for certificate in [Certificate::Ecdsa, Certificate::Rsa] {
        let files = directory.certificate(certificate)?;
        let servers = [
            Server::start(Kind::Ours, &arguments.ours, &directory, &files)?,
            Server::start(Kind::Coturn, &arguments.coturn, &directory, &files)?,
        ];
        for load in Load::all(arguments.clients) {
            let mut rounds = [Vec::new(), Vec::new()];
            for _ in 0..arguments.rounds {
                for (server, figures) in servers.iter().zip(&mut rounds) {
                    figures.push(round(server, &load, Duration::from_secs_f64(arguments.seconds))?);
                }
            }
            let [ours, coturn] = rounds.map(|rounds| median(&rounds));
            for (name, figures) in [("ours", ours), ("coturn", coturn)] {
                let Figures { rate, cpu, resumed } = figures;
                let ratio = if name == "ours" { format!("{:.2}", cpu / coturn.cpu) } else { String::new() };
                let (version, kind) = (load.version_name(), load.kind_name());
                let certificate = certificate.name();
                writeln!(
                    stdout(),
                    "| {certificate} | {version} | {kind} | {name} | {rate:.0} | {cpu:.0} | {:.0} | {ratio} |",
                    100.0 * resumed
                )?;
            }
        }
    }
    Ok(())
}

/// Measures one server for a while.
fn round(server: &Server, load: &Load, duration: Duration) -> Outcome<Figures> {
    let before = server.cpu()?;
    let Tally { handshakes, resumed, elapsed } = load.run(server.address, duration)?;
    let cpu = server.cpu()?.saturating_sub(before);
    if handshakes == 0 {
        return Err("no handshake was complete".into());
    }
    let count = handshakes as f64;
    Ok(Figures {
        rate: count / elapsed.as_secs_f64(),
        cpu: cpu.as_secs_f64() * 1e6 / count,
        resumed: resumed as f64 / count,
    })
}

/// Returns the median of each figure.
fn median(rounds: &[Figures]) -> Figures {
    let of = |figure: fn(&Figures) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    Figures { rate: of(|round| round.rate), cpu: of(|round| round.cpu), resumed: of(|round| round.resumed) }
}
