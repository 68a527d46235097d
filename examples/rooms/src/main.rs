//! The command line of `rooms`.

use std::process::ExitCode;

use clap::Parser as _;
use rooms::arguments::{Arguments, Command};
use rooms::{bot, log, own_relay, serve};
use turnserver::control::logging::write_directly;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // The relay has a log and threads of its own.
    if let Some(Command::Relay { config }) = &arguments.command {
        return match own_relay::run(config) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                write_directly(format!("rooms relay: {error}\n"));
                ExitCode::FAILURE
            }
        };
    }
    log::start(arguments.log);
    match tokio::runtime::Runtime::new() {
        Ok(runtime) => finish(runtime.block_on(run(arguments))),
        Err(error) => finish(Err(format!("cannot start threads: {error}"))),
    }
}

async fn run(arguments: Arguments) -> Result<(), String> {
    match arguments.command {
        Some(Command::Bot(options)) => bot::run(options).await.map_err(|error| error.to_string()),
        Some(Command::Serve(options)) => serve::run(options).await.map_err(|error| error.to_string()),
        _ => serve::run(arguments.serve).await.map_err(|error| error.to_string()),
    }
}

fn finish(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
