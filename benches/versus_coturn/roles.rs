//! The parts of a benchmark that are processes of their own.

use std::io::BufRead;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::channel;

use clap::Args;
use nix::sys::signal::Signal;

use crate::load::{Commands, Job, Outcome, Report};
use crate::output::print;
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
