//! The command line of `rooms`.

use std::process::ExitCode;

use clap::Parser as _;
use rooms::arguments::{Arguments, Command};
use rooms::{bot, log, serve};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log::start(arguments.log);
    let result = match arguments.command {
        Some(Command::Bot(options)) => bot::run(options).await.map_err(|error| error.to_string()),
        Some(Command::Serve(options)) => serve::run(options).await.map_err(|error| error.to_string()),
        None => serve::run(arguments.serve).await.map_err(|error| error.to_string()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
