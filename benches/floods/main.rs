//! Floods beside a real call: `cargo bench --bench floods`.
//!
//! docs/performance.md explains the floods and the figures. The load generator is that of the comparison with coturn.

mod attack;
mod clients;
mod counters;
mod forged;
#[path = "../versus_coturn/interrupt.rs"]
mod interrupt;
#[path = "../versus_coturn/load/mod.rs"]
#[allow(dead_code, reason = "another benchmark uses the rest of it")]
mod load;
mod measure;
#[path = "../versus_coturn/network.rs"]
#[allow(dead_code, reason = "another benchmark uses the rest of it")]
mod network;
#[path = "../versus_coturn/output.rs"]
mod output;
mod priority;
#[path = "../versus_coturn/process.rs"]
#[allow(dead_code, reason = "another benchmark uses the rest of it")]
mod process;
#[path = "../versus_coturn/roles.rs"]
mod roles;
#[path = "../versus_coturn/scenario.rs"]
#[allow(dead_code, reason = "another benchmark uses the rest of it")]
mod scenario;
#[path = "../versus_coturn/setup.rs"]
mod setup;
#[path = "../versus_coturn/side.rs"]
mod side;
mod streams;
#[path = "../versus_coturn/summary.rs"]
#[allow(dead_code, reason = "another benchmark uses the rest of it")]
mod summary;
#[path = "../versus_coturn/table.rs"]
#[allow(dead_code, reason = "another benchmark uses the rest of it")]
mod table;
mod targets;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use attack::{Attack, AttackArguments};
use load::Outcome;
use measure::{Measurement, named};
use network::{Network, Setup};
use output::{print, print_progress};
use priority::{CALL, SERVER};
use roles::{RoleArguments, exec_program};
use setup::{Directory, build_server};
use table::Table;

/// Measures a call while an attacker floods the server, and fails if the call or the server suffers.
///
/// The call, the server and the attacker are in temporary network namespaces, which requires root, iproute2 and ethtool.
/// The load never leaves the machine.
#[derive(Parser)]
#[command(name = "floods", bin_name = "cargo bench --bench floods --")]
struct Arguments {
    /// Run only this flood. Can be repeated.
    #[arg(long, value_enum, value_name = "NAME")]
    flood: Vec<Attack>,
    /// Seconds to measure each flood.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Print the table in Markdown.
    #[arg(long)]
    markdown: bool,
    /// Print the log lines that the server writes during each flood.
    #[arg(long)]
    log: bool,
    /// Path of the server's program. By default, the benchmark builds it first.
    #[arg(long, value_name = "FILE")]
    ours: Option<PathBuf>,
    /// Added by Cargo.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// The parts of the benchmark that run in their own processes. For each part, this program starts itself.
#[derive(Subcommand)]
#[command(disable_help_subcommand = true)]
enum Part {
    /// The clients of the call.
    #[command(hide = true)]
    Client(RoleArguments),
    /// Its peer.
    #[command(hide = true)]
    Peer(RoleArguments),
    /// The attacker.
    #[command(hide = true)]
    Attacker(AttackArguments),
    /// The server, which is killed when the benchmark ends.
    #[command(hide = true)]
    Run {
        #[arg(last = true)]
        line: Vec<String>,
    },
}

fn main() -> ExitCode {
    if std::env::args_os().len() == 1 {
        // `cargo test --benches` passes no arguments.
        print("This is a benchmark: cargo bench --bench floods -- --help");
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::parse();
    let result = match &arguments.part {
        None => benchmark(&arguments),
        Some(Part::Client(role)) => priority::set(CALL).and_then(|()| role.run(named, load::client)),
        Some(Part::Peer(role)) => priority::set(CALL).and_then(|()| role.run(named, load::peer)),
        Some(Part::Attacker(attack)) => attack.run(),
        Some(Part::Run { line }) => priority::set(SERVER).and_then(|()| exec_program(line)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if arguments.part.is_none() => {
            print_progress(&format!("floods: {error}"));
            if interrupt::interrupted() { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
        Err(error) => {
            print(&format!("error {error}"));
            ExitCode::FAILURE
        }
    }
}

fn benchmark(arguments: &Arguments) -> Outcome<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err("run it as root: it creates network namespaces".into());
    }
    let ours = arguments.ours.clone().map_or_else(build_server, Ok)?;
    interrupt::catch()?;
    let directory = Directory::make()?;
    let network = Network::namespaces(Setup::Attack)?;
    let measurement = Measurement {
        ours,
        directory: &directory.0,
        network: &network,
        seconds: arguments.seconds,
        log: arguments.log,
    };
    measurement.prepare()?;
    print_progress(&format!("load average: {}", counters::load_average()));
    let (mut lines, mut missed, mut failed) = (Vec::new(), Vec::new(), false);
    for attack in Attack::selected(&arguments.flood) {
        match measurement.run(attack) {
            Ok(measured) => {
                print_progress(&measured.line.join(" | "));
                missed.extend(measured.missed.iter().map(|target| format!("{}: {target}", attack.name())));
                lines.push(measured.line);
            }
            Err(error) if interrupt::interrupted() => return Err(error),
            Err(error) => {
                print_progress(&format!("{}: {error}", attack.name()));
                failed = true;
            }
        }
    }
    let table = Table { headings: &measure::HEADINGS, numbers: measure::NUMBERS, lines };
    print(&if arguments.markdown { table.markdown() } else { table.text() });
    print_progress(&format!("load average: {}", counters::load_average()));
    match missed.as_slice() {
        _ if failed => Err("not everything could be measured".into()),
        [] => Ok(()),
        _ => Err(format!("a target was missed:\n{}", missed.join("\n")).into()),
    }
}
