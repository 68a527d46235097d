//! `turn-credential`: makes and checks time-limited TURN credentials.
//!
//! Exit code 0 is success, 1 a failure or a credential that is not valid, 2 a wrong use. What is asked for goes to
//! standard output, every complaint to standard error.

mod args;
mod mint;
mod source;
mod text;
mod urls;
mod verify;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser as _;

use args::{Arguments, Command};

/// Why there is nothing on standard output.
enum Failure {
    /// What to say on standard error.
    Because(String),
    /// Wrong use of the command line.
    Usage(String),
    /// Standard output cannot be written.
    Output(io::Error),
}

fn main() -> ExitCode {
    // Before clap, whose message would not say what to do, and might repeat the secret.
    let outcome = match args::secret_on_the_command_line(std::env::args_os().skip(1)) {
        Some(message) => Err(Failure::Usage(message)),
        None => run(Arguments::try_parse().unwrap_or_else(|error| error.exit())),
    };
    let (code, message) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Because(message)) => (1, message),
        Err(Failure::Usage(message)) => (2, message),
        // The reader has seen enough: not worth a word.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::FAILURE,
        Err(Failure::Output(error)) => (1, format!("cannot write to standard output: {error}")),
    };
    // Where standard error is closed as well there is nobody left to tell.
    let _ = writeln!(io::stderr(), "turn-credential: {message}");
    ExitCode::from(code)
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let answer = match arguments.command {
        Command::Mint(mint) => mint::run(&mint)?,
        Command::Verify(verify) => verify::run(&verify)?,
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(answer.as_bytes()).and_then(|()| stdout.flush()).map_err(Failure::Output)
}
