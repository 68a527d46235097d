//! The parts of a benchmark that are processes of their own, and what they share.

use std::fs;
use std::io::BufRead;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::channel;

use clap::Args;
use nix::sys::signal::Signal;

use crate::load::{Commands, Job, Outcome, Report};
use crate::output::{print, print_progress};
use crate::scenario::Scenario;

/// The arguments of a client or a peer.
#[derive(Args)]
pub(crate) struct RoleArguments {
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
    #[arg(long)]
    forwarded: bool,
    #[arg(long)]
    unsent: bool,
}

impl RoleArguments {
    /// Runs a role until the benchmark ends it. `named` finds its scenario.
    pub(crate) fn run(
        &self,
        named: fn(&str) -> Option<&'static Scenario>,
        part: fn(&Job, &Commands, Report<'_>) -> Outcome<()>,
    ) -> Outcome<()> {
        die_with_parent()?;
        let job = Job {
            scenario: named(&self.scenario).ok_or("no such scenario")?,
            load: self.load,
            own: self.own,
            server: self.server,
            peer: self.peer,
            feedback: self.feedback.clone(),
            certificate: self.certificate.clone(),
            forwarded: self.forwarded,
            unsent: self.unsent,
        };
        part(&job, &commands(), &mut print)
    }
}

/// Returns the commands of this process, which come from its standard input.
pub(crate) fn commands() -> Commands {
    let (send, commands) = channel();
    std::thread::spawn(move || {
        let mut lines = std::io::stdin().lock().lines().map_while(Result::ok);
        while lines.next().is_some_and(|line| send.send(line).is_ok()) {}
    });
    Commands(commands)
}

/// Replaces this process with another program.
pub(crate) fn exec_program(line: &[String]) -> Outcome<()> {
    die_with_parent()?;
    turnserver::net::limits::raise_open_files()?;
    let (program, arguments) = line.split_first().ok_or("no program")?;
    Err(format!("{program}: {}", Command::new(program).args(arguments).exec()).into())
}

/// Makes the kernel kill this process when the benchmark ends.
pub(crate) fn die_with_parent() -> Outcome<()> {
    Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)
}

/// Builds the server in a target directory of its own, as `cargo build --release` does. The server that `cargo bench`
/// builds has the additional features that the dev-dependencies enable in tokio and others, so its cost differs.
pub(crate) fn build_server() -> Outcome<PathBuf> {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("shipped");
    print_progress("building the server as `cargo build --release` does");
    let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--locked", "--quiet", "--bin", "turnserver", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .status()?;
    if built.success() { Ok(target.join("release/turnserver")) } else { Err("the server could not be built".into()) }
}

/// A temporary directory, removed on drop.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn make() -> Outcome<Self> {
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
