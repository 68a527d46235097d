//! `turnserver`: reads the arguments and the configuration, and runs the server.

mod ctl;
mod doctor_command;
mod import;
mod offload_command;

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use turnserver::config::{self, Config, LogLevel};
use turnserver::control::{self, CheckedCertificate, PassedSockets};
use turnserver::generate::Generate;

/// A STUN/TURN server for WebRTC.
///
/// Without --config, the server reads ./turnserver.toml, or
/// /etc/turnserver/turnserver.toml if the former does not exist. If neither
/// exists, it uses the defaults.
// Lines of at most 80 characters, because terminals wrap in the middle of words.
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment)]
struct Arguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,

    /// The log level; overrides the configuration.
    #[arg(long, value_name = "LEVEL", value_parser = parse_level)]
    log_level: Option<LogLevel>,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check and explain the configuration without starting the server.
    CheckConfig,
    Ctl(ctl::Arguments),
    Doctor(doctor_command::Arguments),
    /// Generate man pages and shell completions.
    #[command(subcommand)]
    Generate(Generate),
    ImportCoturn(import::Arguments),
    Offload(offload_command::Arguments),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // --help and --version
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => {
            // In color on a terminal.
            if io::stderr().is_terminal() {
                error.exit();
            }
            write_lines(control::logging::error_prefix(), &error.to_string());
            return ExitCode::from(2);
        }
    };
    let result = match &arguments.command {
        Some(Command::Ctl(command)) => ctl::run(command, arguments.config.as_deref()),
        Some(Command::Doctor(command)) => match doctor_command::run(command, arguments.config.as_deref()) {
            Ok(code) => return code,
            Err(message) => Err((message, ExitCode::from(2))),
        },
        Some(Command::Generate(generate)) => generate
            .run(Arguments::command(), &mut io::stdout().lock())
            .map_err(|error| (format!("cannot write: {error}"), ExitCode::FAILURE)),
        Some(Command::ImportCoturn(command)) => import::run(command),
        Some(Command::Offload(command)) => match offload_command::run(command, arguments.config.as_deref()) {
            Ok(code) => return code,
            Err(message) => Err((message, ExitCode::FAILURE)),
        },
        Some(Command::CheckConfig) => execute(&arguments, true).map_err(|message| (message, ExitCode::FAILURE)),
        None => execute(&arguments, false).map_err(|message| (message, ExitCode::FAILURE)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err((message, code)) => {
            write_lines(&format!("{}turnserver: ", control::logging::error_prefix()), &message);
            code
        }
    }
}

/// Writes each line to standard error with a prefix. If standard error is closed or stalled, the lines are lost.
fn write_lines(prefix: &str, text: &str) {
    // An empty line has no use with a prefix.
    let lines = text.lines().filter(|line| prefix.is_empty() || !line.is_empty());
    control::logging::write_directly(lines.map(|line| format!("{prefix}{line}\n")).collect());
}

/// Runs the server, or only checks its configuration.
fn execute(arguments: &Arguments, only_check: bool) -> Result<(), String> {
    let path = arguments.config.clone().or_else(config::default_path);
    let source = control::Source { path, log_level: arguments.log_level, secrets: Vec::new() };
    let config = source.load().map_err(|errors| errors.to_string())?;
    if only_check {
        return check(source.path.as_deref(), &config);
    }
    control::prepare_memory();
    // Before the log has a thread.
    let passed = PassedSockets::from_environment();
    let log = control::logging::start(&config.log).map_err(|error| format!("cannot start the log: {error}"))?;
    let result = control::run_with_sockets(config, &source, &log, passed).map_err(|error| error.to_string());
    log.flush();
    result
}

fn check(path: Option<&Path>, config: &Config) -> Result<(), String> {
    let unreadable = control::unreadable_files(config, path);
    if !unreadable.is_empty() {
        return Err(unreadable.join("\n"));
    }
    let choice = control::choose_addresses(config).map_err(|error| error.to_string())?;
    control::check_alternate(config, &choice).map_err(|error| error.to_string())?;
    let prefix = control::logging::warning_prefix();
    let mut report = match path {
        Some(path) => format!("{}: no errors\n", path.display()),
        None => "no configuration file: using the defaults\n".to_owned(),
    };
    for relay in &choice.addresses {
        let advertised =
            if relay.advertised == relay.bind { String::new() } else { format!(" as {}", relay.advertised) };
        report += &format!("relaying on {}{advertised}: {}\n", relay.bind, relay.reason);
    }
    let checked = config.tls.as_ref().map(|tls| control::check_tls(tls, config.hostname.as_deref()));
    for CheckedCertificate { result, .. } in checked.unwrap_or_default() {
        let (description, warnings) = result.map_err(|error| error.to_string())?;
        report += &format!("certificate for {description}\n");
        for warning in warnings {
            report += &format!("{prefix}warning: {warning}\n");
        }
    }
    let denied = control::denied_own_addresses(config, &choice).map_err(|error| error.to_string())?;
    let settings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    let missing = control::missing_listeners(config).map_err(|error| error.to_string())?;
    for warning in settings.iter().chain(&choice.warnings).chain(&missing).chain(&denied) {
        report += &format!("{prefix}warning: {warning}\n");
    }
    // The journal of a reload needs no explanation of the configuration.
    if prefix.is_empty() {
        report += &config.summary().to_string();
    }
    match writeln!(io::stdout().lock(), "{report}") {
        // A closed pipe means that the reader has read enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(format!("cannot write the report: {error}")),
        _ => Ok(()),
    }
}

fn parse_level(text: &str) -> Result<LogLevel, String> {
    LogLevel::ALL.into_iter().find(|level| level.as_str() == text).ok_or_else(|| {
        let levels: Vec<&str> = LogLevel::ALL.iter().map(|level| level.as_str()).collect();
        format!("must be one of {}", levels.join(", "))
    })
}
