//! Compares our server with coturn under the same load: `cargo bench --bench versus-coturn`.
//!
//! docs/performance.md explains the scenarios and the figures.

mod comparison;
mod interrupt;
mod load;
mod network;
mod offload;
mod output;
mod process;
mod roles;
mod round;
mod scenario;
mod server;
mod setup;
#[allow(dead_code, reason = "another benchmark uses the rest of it")]
mod side;
mod summary;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use comparison::{Comparison, Remarks, Rounds, values};
use load::Outcome;
use network::{Network, Setup};
use output::{print, print_progress};
use roles::{RoleArguments, exec_program};
use round::Times;
use scenario::{Figure, Scenario};
use server::{Kind, Servers};
use setup::{Directory, build_server};
use table::{Pair, Table};

/// Measures our TURN server and coturn alternately under the same load.
///
/// The load runs between three temporary network namespaces, which requires root, iproute2 and ethtool. With --loopback
/// it runs on the loopback interface. It never leaves the machine. Nothing else should run at the same time.
#[derive(Parser)]
#[command(name = "versus-coturn", bin_name = "cargo bench --bench versus-coturn --")]
struct Arguments {
    /// Run only this scenario. A name without -up or -down selects both directions. Can be repeated.
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// Compare the offload with the kernel's forwarding, coturn and our server in user space, in the CPU time of the
    /// machine. Without --scenario, it runs all scenarios of single packets over UDP and channels.
    #[arg(long, conflicts_with = "loopback")]
    offload: bool,
    /// With --offload, measure only this variant. Can be repeated.
    #[arg(long, value_enum, value_name = "NAME", requires = "offload")]
    variant: Vec<Kind>,
    /// Compare our server as a node of a fleet with the same server alone. The engine of the fleet runs beside both.
    #[arg(long, conflicts_with = "offload")]
    fleet: bool,
    /// Number of rounds. Each measures both servers, or every variant, once.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: u64,
    /// Seconds to measure in each round.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Seconds of load before each measurement.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=3600))]
    warm_up: u64,
    /// Use the loopback interface instead of network namespaces. The figures differ from those with namespaces.
    #[arg(long)]
    loopback: bool,
    /// Print the table in Markdown.
    #[arg(long)]
    markdown: bool,
    /// List the scenarios and exit.
    #[arg(long)]
    list: bool,
    /// Path of coturn's program.
    #[arg(long, value_name = "FILE", default_value = "/usr/bin/turnserver")]
    coturn: PathBuf,
    /// Path of the program of the fleet's engine.
    #[arg(long, value_name = "FILE", default_value = "/usr/sbin/nats-server")]
    nats: PathBuf,
    /// Path of our server's program. By default, the benchmark builds it first.
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
    /// The clients.
    #[command(hide = true)]
    Client(RoleArguments),
    /// The peer.
    #[command(hide = true)]
    Peer(RoleArguments),
    /// Another program, which is killed when the benchmark ends.
    #[command(hide = true)]
    Run {
        #[arg(last = true)]
        line: Vec<String>,
    },
}

/// The headings of the comparison of a node of a fleet with the same server alone.
const FLEET_HEADINGS: [&str; 7] = ["scenario", "figure", "in a fleet", "alone", "ratio", "goal", "reached"];

fn main() -> ExitCode {
    if std::env::args_os().len() == 1 {
        // `cargo test --benches` passes no arguments.
        print("This is a benchmark: cargo bench --bench versus-coturn -- --help");
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::parse();
    let result = match &arguments.part {
        None => benchmark(&arguments),
        Some(Part::Client(role)) => role.run(Scenario::named, load::client),
        Some(Part::Peer(role)) => role.run(Scenario::named, load::peer),
        Some(Part::Run { line }) => exec_program(line),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if arguments.part.is_none() => {
            print_progress(&format!("versus-coturn: {error}"));
            if interrupt::interrupted() { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
        Err(error) => {
            print(&format!("error {error}"));
            ExitCode::FAILURE
        }
    }
}

fn benchmark(arguments: &Arguments) -> Outcome<()> {
    let (scenarios, kinds) = (selected(arguments)?, selected_kinds(arguments));
    if arguments.list {
        scenarios.iter().for_each(|scenario| print(&format!("{:18} {}", scenario.name, scenario.about)));
        return Ok(());
    }
    check(arguments)?;
    let ours = arguments.ours.clone().map_or_else(build_server, Ok)?;
    interrupt::catch()?;
    let directory = Directory::make()?;
    let setup = if arguments.offload { Setup::Offload } else { Setup::Plain };
    let network = if arguments.loopback { Network::loopback()? } else { Network::namespaces(setup)? };
    let servers = Servers { ours, coturn: arguments.coturn.clone(), directory: directory.0.clone() };
    servers.prepare(&network.addresses)?;
    let _engine = if arguments.fleet { Some(servers.start_engine(&arguments.nats, &network)?) } else { None };

    let comparison = Comparison {
        servers: &servers,
        network: &network,
        times: Times { warm_up: arguments.warm_up, seconds: arguments.seconds, machine: arguments.offload },
        rounds: arguments.rounds,
        kinds: &kinds,
        figures: if arguments.offload { offload_figures } else { figures },
    };
    let (mut lines, mut remarks) = (Vec::new(), Remarks::default());
    for scenario in scenarios {
        let rounds = comparison.measure(scenario, &mut remarks)?;
        if arguments.offload {
            lines.extend(offload::lines(scenario, &rounds));
        } else {
            let [measured, other] = if arguments.fleet { [Kind::Node, Kind::Ours] } else { [Kind::Ours, Kind::Coturn] };
            lines.extend(pairs(scenario, &rounds, measured, other).iter().filter_map(Pair::line));
        }
    }
    let (headings, numbers): (&[&str], _) = match (arguments.offload, arguments.fleet) {
        (true, _) => (&offload::HEADINGS, offload::NUMBERS),
        (_, true) => (&FLEET_HEADINGS, table::NUMBERS),
        _ => (&table::HEADINGS, table::NUMBERS),
    };
    let table = Table { headings, numbers, lines };
    print(&if arguments.markdown { table.markdown() } else { table.text() });
    remarks.print();
    if remarks.failed { Err("not everything could be measured".into()) } else { Ok(()) }
}

/// Returns the figures of both servers. The goals are those of the comparison with coturn.
fn pairs(scenario: &'static Scenario, rounds: &Rounds, measured: Kind, other: Kind) -> Vec<Pair> {
    let pair = |row: &scenario::Row| Pair {
        scenario: scenario.name,
        figure: row.figure,
        goal: row.goal.filter(|_| other == Kind::Coturn),
        ours: values(rounds, measured, row.figure),
        other: values(rounds, other, row.figure),
    };
    scenario.rows.iter().map(pair).collect()
}

fn figures(scenario: &Scenario) -> Vec<Figure> {
    scenario.rows.iter().map(|row| row.figure).collect()
}

fn offload_figures(scenario: &Scenario) -> Vec<Figure> {
    offload::rows(scenario).unwrap_or_default().iter().map(|row| row.figure).collect()
}

/// Returns the variants to measure, in the order of a round.
fn selected_kinds(arguments: &Arguments) -> Vec<Kind> {
    let wanted = |kind: &Kind| arguments.variant.is_empty() || arguments.variant.contains(kind);
    match arguments.offload {
        true => offload::KINDS.into_iter().filter(wanted).collect(),
        false if arguments.fleet => vec![Kind::Ours, Kind::Node],
        false => vec![Kind::Ours, Kind::Coturn],
    }
}

fn selected(arguments: &Arguments) -> Outcome<Vec<&'static Scenario>> {
    let usable = |scenario: &&Scenario| !arguments.offload || offload::rows(scenario).is_some();
    if arguments.scenario.is_empty() {
        return Ok(scenario::ALL.iter().filter(usable).collect());
    }
    let mut selected = Vec::new();
    for name in &arguments.scenario {
        let found = Scenario::matching(name);
        if found.is_empty() {
            return Err(format!("there is no scenario {name:?}; --list shows all").into());
        }
        if !found.iter().all(usable) {
            return Err(
                format!("{name:?} is not compared with the offload; --offload --list shows the scenarios").into()
            );
        }
        selected.extend(found);
    }
    Ok(selected)
}

/// Reports all missing prerequisites before anything is created.
fn check(arguments: &Arguments) -> Outcome<()> {
    let mut missing = Vec::new();
    if let Some(ours) = arguments.ours.as_ref().filter(|ours| !ours.exists()) {
        missing.push(format!("our server at {}: cargo build --release", ours.display()));
    }
    if arguments.fleet && !arguments.nats.exists() {
        missing.push(format!("NATS at {}: apt-get install nats-server, or --nats FILE", arguments.nats.display()));
    }
    if !arguments.fleet && !arguments.coturn.exists() {
        missing.push(format!("coturn at {}: apt-get install coturn, or --coturn FILE", arguments.coturn.display()));
    }
    if !arguments.loopback {
        for (program, package) in [("ip", "iproute2"), ("ethtool", "ethtool")] {
            if !on_path(program) {
                missing.push(format!("{program}: apt-get install {package}, or --loopback"));
            }
        }
        if !nix::unistd::geteuid().is_root() {
            missing.push("permission to create network namespaces: run as root, or --loopback".to_owned());
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(format!("missing:\n  {}", missing.join("\n  ")).into()) }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}
