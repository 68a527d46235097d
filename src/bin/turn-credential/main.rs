//! `turn-credential`: creates and checks time-limited TURN credentials, and creates API keys.
//!
//! Exit codes: 0 for success, 1 for a failure or an invalid credential, 2 for a usage error. Results go to standard
//! output, errors to standard error.

mod args;
mod key;
mod mint;
mod source;
mod text;
mod urls;
mod verify;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use args::{Arguments, Command};

/// Why the command failed.
enum Failure {
    /// The reason, for standard error.
    Failed(String),
    /// A usage error.
    Usage(String),
    /// Standard output cannot be written.
    Output(io::Error),
}

fn main() -> ExitCode {
    // This check runs before clap, whose message would give no advice and might repeat the secret.
    let outcome = match args::secret_on_the_command_line(std::env::args_os().skip(1)) {
        Some(message) => Err(Failure::Usage(message)),
        None => run(Arguments::try_parse().unwrap_or_else(|error| error.exit())),
    };
    let (code, message) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Failed(message)) => (1, message),
        Err(Failure::Usage(message)) => (2, message),
        // A closed pipe means that the reader has read enough.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::FAILURE,
        Err(Failure::Output(error)) => (1, format!("cannot write to standard output: {error}")),
    };
    // If standard error is closed as well, the error cannot be reported.
    let _ = writeln!(io::stderr(), "turn-credential: {message}");
    ExitCode::from(code)
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let output = match arguments.command {
        Command::Generate(generate) => {
            return generate.run(Arguments::command(), &mut io::stdout().lock()).map_err(Failure::Output);
        }
        Command::Mint(mint) => mint::run(&mint)?,
        Command::Key(key) => key::run(&key)?,
        Command::Verify(verify) => verify::run(&verify)?,
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(output.as_bytes()).and_then(|()| stdout.flush()).map_err(Failure::Output)
}
