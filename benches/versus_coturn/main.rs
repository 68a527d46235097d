//! Measures our server and coturn side by side with the same load: `cargo bench --bench versus-coturn`.
//!
//! docs/performance.md says what each scenario does and what the figures mean.

mod interrupt;
mod load;
mod network;
mod process;
mod round;
mod scenario;
mod server;
mod summary;
mod table;

use std::fs;
use std::io::{BufRead, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::mpsc::channel;

use clap::{Args, Parser, Subcommand};
use nix::sys::signal::Signal;

use load::{Job, Orders, Outcome};
use network::Network;
use round::{Measured, Times};
use scenario::Scenario;
use server::{Kind, Servers};
use table::Line;

/// CPU time of other programs, in cores, that makes a measurement doubtful. The kernel's own threads are among them.
const DISTURBED: f64 = 0.3;

/// What there is to say below the table.
#[derive(Default)]
struct Remarks {
    lines: Vec<String>,
    measurements: usize,
    /// Something could not be measured.
    failed: bool,
    /// How many measurements other programs disturbed, and the most that these used, in cores.
    disturbed: usize,
    others: f64,
}

impl Remarks {
    fn note(&mut self, name: &str, measured: &Measured) {
        self.lines.extend(measured.remarks.iter().map(|remark| format!("{name}: {remark}")));
        self.measurements += 1;
        self.disturbed += usize::from(measured.others > DISTURBED);
        self.others = self.others.max(measured.others);
    }

    fn say(&self) {
        self.lines.iter().for_each(|line| say(line));
        let Self { measurements, disturbed, others, .. } = self;
        if *disturbed > 0 {
            say(&format!(
                "{disturbed} of {measurements} measurements are doubtful: other programs ran meanwhile, on up to {others:.1} cores"
            ));
        }
    }
}

/// Measures our TURN server and coturn side by side, with the same load, in turn.
///
/// The load runs between three network namespaces that are made for it and removed at the end, which needs root,
/// iproute2 and ethtool; with --loopback on this machine's loopback interface. It never leaves the machine. Nothing
/// else should run meanwhile.
#[derive(Parser)]
#[command(name = "versus-coturn", bin_name = "cargo bench --bench versus-coturn --")]
struct Arguments {
    /// Only this scenario, or both directions of it (`paced` for paced-up and paced-down). Can be repeated.
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// Rounds; in each, both servers are measured once.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: u64,
    /// Seconds that are measured in each round.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Seconds of load before each measurement.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=3600))]
    warm_up: u64,
    /// Use the loopback interface; for machines where namespaces cannot be made. The figures differ from the others.
    #[arg(long)]
    loopback: bool,
    /// Print the table in Markdown.
    #[arg(long)]
    markdown: bool,
    /// List the scenarios and end.
    #[arg(long)]
    list: bool,
    /// coturn's program.
    #[arg(long, value_name = "FILE", default_value = "/usr/bin/turnserver")]
    coturn: PathBuf,
    /// Our program.
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_turnserver"))]
    ours: PathBuf,
    /// What Cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What this program starts itself as.
#[derive(Subcommand)]
#[command(disable_help_subcommand = true)]
enum Part {
    /// The clients.
    #[command(hide = true)]
    Client(RoleArguments),
    /// The peer.
    #[command(hide = true)]
    Peer(RoleArguments),
    /// Another program, which ends with the benchmark.
    #[command(hide = true)]
    Run {
        #[arg(last = true)]
        line: Vec<String>,
    },
}

#[derive(Args)]
struct RoleArguments {
    #[arg(long)]
    scenario: String,
    #[arg(long)]
    load: usize,
    #[arg(long)]
    own: IpAddr,
    #[arg(long)]
    server: SocketAddr,
    #[arg(long)]
    peer: SocketAddr,
    #[arg(long)]
    feedback: PathBuf,
    #[arg(long)]
    certificate: PathBuf,
}

fn main() -> ExitCode {
    if std::env::args_os().len() == 1 {
        // `cargo test --benches` starts it so.
        say("This is a benchmark: cargo bench --bench versus-coturn -- --help");
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::parse();
    let result = match &arguments.part {
        None => benchmark(&arguments),
        Some(Part::Client(role)) => play(role, load::client),
        Some(Part::Peer(role)) => play(role, load::peer),
        Some(Part::Run { line }) => become_program(line),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if arguments.part.is_none() => {
            report(&format!("versus-coturn: {error}"));
            if interrupt::interrupted() { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
        Err(error) => {
            say(&format!("error {error}"));
            ExitCode::FAILURE
        }
    }
}

fn benchmark(arguments: &Arguments) -> Outcome<()> {
    let scenarios = chosen(&arguments.scenario)?;
    if arguments.list {
        scenarios.iter().for_each(|scenario| say(&format!("{:18} {}", scenario.name, scenario.about)));
        return Ok(());
    }
    check(arguments)?;
    interrupt::catch()?;
    let directory = Directory::make()?;
    let network = if arguments.loopback { Network::loopback()? } else { Network::namespaces()? };
    let (ours, coturn) = (arguments.ours.clone(), arguments.coturn.clone());
    let servers = Servers { ours, coturn, directory: directory.0.clone() };
    servers.prepare(&network.addresses)?;

    let (mut lines, mut remarks) = (Vec::new(), Remarks::default());
    for scenario in scenarios {
        lines.extend(compare(scenario, &servers, &network, arguments, &mut remarks)?);
    }
    lines.retain(|line| !(line.ours.is_empty() && line.coturn.is_empty()));
    say(&if arguments.markdown { table::markdown(&lines) } else { table::text(&lines) });
    remarks.say();
    if remarks.failed { Err("not everything could be measured".into()) } else { Ok(()) }
}

/// Measures both servers in turn, round after round. One that cannot be measured is left out, as the other one's figures
/// and the other scenarios are worth having.
fn compare(
    scenario: &'static Scenario,
    servers: &Servers,
    network: &Network,
    arguments: &Arguments,
    remarks: &mut Remarks,
) -> Outcome<Vec<Line>> {
    let times = Times { warm_up: arguments.warm_up, seconds: arguments.seconds };
    let (mut ours, mut coturn) = (Some(Vec::new()), Some(Vec::new()));
    for number in 1..=arguments.rounds {
        for (kind, kept) in [(Kind::Ours, &mut ours), (Kind::Coturn, &mut coturn)] {
            let Some(all) = kept else { continue };
            let name = format!("{} {number}/{} {kind:?}", scenario.name, arguments.rounds);
            match round::measure(kind, scenario, servers, network, times) {
                Ok(measured) => {
                    report(&format!("{name}: {}", progress(scenario, &measured)));
                    remarks.note(&name, &measured);
                    all.push(measured);
                }
                Err(error) if interrupt::interrupted() => return Err(error),
                Err(error) => {
                    report(&format!("{name}: {error}"));
                    remarks.lines.push(format!("{name}: {error}"));
                    remarks.failed = true;
                    *kept = None;
                }
            }
        }
    }
    let (ours, coturn) = (ours.unwrap_or_default(), coturn.unwrap_or_default());
    let rounds = |all: &[Measured], figure| all.iter().filter_map(|one| one.figures.get(&figure).copied()).collect();
    let line = |row: &scenario::Row| Line {
        scenario: scenario.name,
        figure: row.figure,
        goal: row.goal,
        ours: rounds(&ours, row.figure),
        coturn: rounds(&coturn, row.figure),
    };
    Ok(scenario.rows.iter().map(line).collect())
}

fn progress(scenario: &Scenario, measured: &Measured) -> String {
    let figures = scenario.rows.iter().filter_map(|row| {
        let value = measured.figures.get(&row.figure)?;
        Some(format!("{} {value:.*}", row.figure.label(), row.figure.decimals()))
    });
    let figures: Vec<String> = figures.collect();
    let Measured { generator, others, .. } = measured;
    format!("{} (cores: generator {generator:.2}, others {others:.2})", figures.join("; "))
}

fn chosen(names: &[String]) -> Outcome<Vec<&'static Scenario>> {
    if names.is_empty() {
        return Ok(scenario::ALL.iter().collect());
    }
    let mut chosen = Vec::new();
    for name in names {
        let found = Scenario::matching(name);
        if found.is_empty() {
            return Err(format!("there is no scenario {name:?}; --list names them").into());
        }
        chosen.extend(found);
    }
    Ok(chosen)
}

/// Says what is missing before anything is made.
fn check(arguments: &Arguments) -> Outcome<()> {
    let mut missing = Vec::new();
    if !arguments.ours.exists() {
        missing.push(format!("our server at {}: cargo build --release, or --ours FILE", arguments.ours.display()));
    }
    if !arguments.coturn.exists() {
        missing.push(format!("coturn at {}: apt-get install coturn, or --coturn FILE", arguments.coturn.display()));
    }
    if !arguments.loopback {
        for (program, package) in [("ip", "iproute2"), ("ethtool", "ethtool")] {
            if !on_path(program) {
                missing.push(format!("{program}: apt-get install {package}, or --loopback"));
            }
        }
        if !nix::unistd::geteuid().is_root() {
            missing.push("the right to make network namespaces: run as root, or --loopback".to_owned());
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(format!("missing:\n  {}", missing.join("\n  ")).into()) }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}

/// Plays a role until the benchmark ends it.
fn play(role: &RoleArguments, part: fn(&Job, &Orders, load::Say<'_>) -> Outcome<()>) -> Outcome<()> {
    end_with_parent()?;
    let job = Job {
        scenario: Scenario::named(&role.scenario).ok_or("no such scenario")?,
        load: role.load,
        own: role.own,
        server: role.server,
        peer: role.peer,
        feedback: role.feedback.clone(),
        certificate: role.certificate.clone(),
    };
    let (send, orders) = channel();
    std::thread::spawn(move || {
        let mut lines = std::io::stdin().lock().lines().map_while(Result::ok);
        while lines.next().is_some_and(|line| send.send(line).is_ok()) {}
    });
    part(&job, &Orders(orders), &mut say)
}

/// Turns this process into another program.
fn become_program(line: &[String]) -> Outcome<()> {
    end_with_parent()?;
    turnserver::net::limits::raise_open_files()?;
    let (program, arguments) = line.split_first().ok_or("no program")?;
    Err(format!("{program}: {}", Command::new(program).args(arguments).exec()).into())
}

fn end_with_parent() -> Outcome<()> {
    Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)
}

/// A directory that is removed when this is dropped.
struct Directory(PathBuf);

impl Directory {
    fn make() -> Outcome<Self> {
        let path = std::env::temp_dir().join(format!("turn-bench-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn say(line: &str) {
    // Nobody is left to read it.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn report(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
