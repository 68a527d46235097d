//! `turnserver offload`: attaches and detaches the XDP program, and shows it.

#[cfg(feature = "offload")]
mod program;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Attach, detach or show the XDP program of the offload.
///
/// Established channels between UDP clients and UDP peers are then relayed
/// in the driver of the network interface. The systemd unit attaches the
/// program before it starts the server, and detaches it when the server has
/// stopped. A second unit attaches it to interfaces that get their addresses
/// after that. Needs root.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// The directory of the program and its maps, for tests.
    #[arg(long, value_name = "DIRECTORY", global = true, hide = true)]
    directory: Option<PathBuf>,

    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Attach the program to the interfaces of offload.interfaces.
    ///
    /// Reads [offload], [limits] and [relay] of the configuration. A program
    /// that is attached already is replaced. While a server uses it, this
    /// fails without --running. With mode = "off" in [offload], the program
    /// is detached, unless a server uses it.
    ///
    /// Exit codes: 0 the program is attached, or offload.mode is "off"; 1 no
    /// interface takes it, or a server uses it; 2 the command line is wrong.
    /// With --wait, it is 0 also if no interface is ready in time or takes it.
    #[command(verbatim_doc_comment)]
    Attach {
        /// The group that may use the program's maps. Default: turnserver,
        /// if it exists, otherwise only root.
        #[arg(long, value_name = "NAME|GID", verbatim_doc_comment)]
        group: Option<String>,

        /// Only change the interfaces of a program that is attached, such as
        /// for one that has appeared since. The server continues.
        #[arg(long, verbatim_doc_comment, conflicts_with = "group")]
        running: bool,

        /// Wait at most so long for interfaces that are absent, down or have
        /// no address, attach each as soon as it is ready, and report only
        /// changes and failures. Exits at once if there are none.
        #[arg(long, value_name = "SECONDS", verbatim_doc_comment, requires = "running")]
        wait: Option<u16>,
    },
    /// Detach the program from all interfaces.
    ///
    /// As the systemd unit runs it, after a failure of the server
    /// ($SERVICE_RESULT), the program stays until the next start. Without a
    /// server it relays nothing.
    #[command(verbatim_doc_comment)]
    Detach,
    /// Show the interfaces, the maps and what became of packets.
    Status,
}

/// Runs the command and returns its exit code.
///
/// # Errors
/// A message, if it fails.
#[cfg(feature = "offload")]
pub(crate) fn run(arguments: &Arguments, config: Option<&Path>) -> Result<ExitCode, String> {
    use turnserver::offload::pinned::DIRECTORY;

    let directory = arguments.directory.as_deref().unwrap_or(Path::new(DIRECTORY));
    match &arguments.action {
        Action::Attach { wait: Some(seconds), .. } => program::attach_later(directory, *seconds, config),
        Action::Attach { group, running, wait: None } => program::attach(directory, group.as_deref(), *running, config),
        Action::Detach => program::detach(directory).map(|()| ExitCode::SUCCESS),
        Action::Status => program::status(directory).map(|()| ExitCode::SUCCESS),
    }
}

/// Says that this program cannot run the command.
#[cfg(not(feature = "offload"))]
pub(crate) fn run(_: &Arguments, _: Option<&Path>) -> Result<ExitCode, String> {
    Err("this program was built without the offload (the cargo feature `offload`): the server relays everything itself"
        .to_owned())
}
