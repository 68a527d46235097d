//! `turnserver import-coturn`: converts a configuration of coturn.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use turnserver::config::{Config, Problem};
use turnserver::coturn::{self, Import, Source, Verdict};
use turnserver::file;
use turnserver::net::interfaces;
use zeroize::Zeroizing;

/// The file that the messages name if the new configuration is not written to one.
const STANDARD_OUTPUT: &str = "turnserver.toml";

/// The most that is read from standard input. No command line is longer.
const MAX_STDIN: u64 = 1 << 20;

/// Converts a configuration of coturn to a turnserver.toml.
///
/// The new configuration goes to standard output, or to --output. A report
/// on standard error says what became of each option, without secrets.
///
/// Exit codes: 0 each option is taken over or not needed, 1 some cannot be
/// taken over or the result is not valid, 2 a file cannot be read or written,
/// or the command line is wrong.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// Files of coturn (turnserver.conf). Later ones take precedence.
    #[arg(value_name = "FILE", required_unless_present = "arguments")]
    files: Vec<PathBuf>,

    /// Options of coturn's command line, in one argument and quoted as for a
    /// shell; `-`: from standard input, because other users can see the
    /// arguments of a process. They take precedence over the files.
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true, verbatim_doc_comment)]
    arguments: Option<Secret>,

    /// Write the new configuration to this file, which must not exist. Only
    /// its owner can read it if it has secrets.
    #[arg(long, value_name = "FILE", verbatim_doc_comment)]
    output: Option<PathBuf>,

    /// Replace the file of --output if it exists. The old one stays as
    /// FILE.old, which must not exist. The new one has its owner and group.
    #[arg(long, requires = "output", verbatim_doc_comment)]
    force: bool,
}

/// A text that `Debug` does not show.
#[derive(Clone)]
struct Secret(Zeroizing<String>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

impl std::str::FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(Zeroizing::new(text.to_owned())))
    }
}

/// Runs the command. The error is a message and the exit code.
pub(crate) fn run(arguments: &Arguments) -> Result<(), (String, ExitCode)> {
    let failure = |message| (message, ExitCode::from(2));
    let files = arguments.files.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>().map_err(failure)?;
    let mut sources: Vec<Source<'_>> = files.iter().map(|(name, bytes)| Source::File(name, bytes)).collect();
    let options = arguments.arguments.as_ref().map(|Secret(text)| options(text)).transpose().map_err(failure)?;
    sources.extend(options.as_ref().map(|text| Source::Arguments(text)));
    let import = coturn::import(&sources, &addresses());
    if import.entries.is_empty() {
        let message = "there is no option of coturn in it: name coturn's turnserver.conf, or pass --arguments";
        return Err(failure(message.to_owned()));
    }
    write(arguments.output.as_deref(), arguments.force, &import).map_err(failure)?;
    let name = arguments.output.as_ref().map_or(STANDARD_OUTPUT.to_owned(), |path| path.display().to_string());
    let checked = Config::parse(&import.toml, &name);
    // A closed standard error only loses the report.
    let _ = io::stderr().lock().write_all(report(&import, &checked, arguments.output.as_deref(), &name).as_bytes());
    match (checked, import.count(Verdict::Cannot)) {
        (Ok(_), 0) => Ok(()),
        (Ok(_), 1) => Err((failed("1 option"), ExitCode::FAILURE)),
        (Ok(_), count) => Err((failed(&format!("{count} options")), ExitCode::FAILURE)),
        (Err(_), _) => Err((format!("the server would not start with {name}: correct it"), ExitCode::FAILURE)),
    }
}

fn failed(options: &str) -> String {
    format!("{options} cannot be taken over: the report says what to do instead")
}

/// Returns the options in an argument, or those on standard input.
fn options(argument: &str) -> Result<Zeroizing<String>, String> {
    if argument != "-" {
        return Ok(Zeroizing::new(argument.to_owned()));
    }
    let mut text = Zeroizing::new(String::new());
    let read = io::stdin().lock().take(MAX_STDIN).read_to_string(&mut text);
    read.map(|_| text).map_err(|error| format!("standard input cannot be read: {error}"))
}

/// Reads a file. Returns its name, too.
fn read(path: &Path) -> Result<(String, Zeroizing<Vec<u8>>), String> {
    let name = path.display().to_string();
    let bytes = file::read(path).map_err(|error| format!("{name} cannot be read: {error}"))?;
    Ok((name, bytes))
}

/// Returns the addresses of this machine that others can use.
fn addresses() -> Vec<IpAddr> {
    // Without them, the report says that the address must be written.
    let found = interfaces::read().map(|found| found.addresses).unwrap_or_default();
    found.into_iter().filter(|own| own.up && own.state.is_usable()).map(|own| own.address).collect()
}

fn write(output: Option<&Path>, force: bool, import: &Import) -> Result<(), String> {
    let text = import.toml.as_bytes();
    let Some(path) = output else {
        return match io::stdout().lock().write_all(text) {
            // A closed pipe means that the reader has read enough.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(format!("cannot write the configuration: {error}"))
            }
            _ => Ok(()),
        };
    };
    let mode = if import.has_secrets { 0o600 } else { 0o644 };
    let name = path.display();
    match create(path, mode).and_then(|mut file| file.write_all(text)) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(format!("{name} cannot be written: {error}")),
        Err(_) if force => replace(path, text, import.has_secrets),
        Err(_) => Err(format!("{name} exists already: name another file, or keep it as {name}.old with --force")),
    }
}

fn create(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
}

/// Replaces a file at once, and keeps the old one as `FILE.old`.
fn replace(path: &Path, text: &[u8], has_secrets: bool) -> Result<(), String> {
    // A symbolic link stays one.
    let path = &fs::canonicalize(path).map_err(|error| format!("{} cannot be found: {error}", path.display()))?;
    let [kept, new] = [".old", ".new"].map(|end| {
        let mut name = OsString::from(path);
        name.push(end);
        PathBuf::from(name)
    });
    let cannot = |path: &Path, error: io::Error| format!("{} cannot be written: {error}", path.display());
    let mut file = create(&new, 0o600).map_err(|error| cannot(&new, error))?;
    let mut write = || {
        let old = fs::metadata(path)?;
        file.write_all(text)?;
        // Others must not read the secrets. Who may not give the file to the group keeps it for the owner.
        let mode = if has_secrets { old.mode() & 0o640 } else { old.mode() & 0o777 };
        if fchown(&file, Some(old.uid()), Some(old.gid())).is_ok() {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        file.sync_all()
    };
    let written = write().map_err(|error| cannot(&new, error));
    // Unlike a renaming, a link does not replace an older copy.
    let keep = || {
        fs::hard_link(path, &kept).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => format!("{} exists already: move it away", kept.display()),
            _ => cannot(&kept, error),
        })
    };
    let replaced =
        written.and_then(|()| keep()).and_then(|()| fs::rename(&new, path).map_err(|error| cannot(path, error)));
    if replaced.is_err() {
        // Nothing has been replaced, so the new text is of no use.
        let _ = fs::remove_file(&new);
    }
    replaced
}

/// Returns the report, the result of the check, and what to do next.
fn report(
    import: &Import,
    checked: &Result<Config, turnserver::config::ConfigErrors>,
    output: Option<&Path>,
    name: &str,
) -> String {
    let mut report = format!("{import}\n\n");
    let (what, problems): (&str, &[Problem]) = match checked {
        Ok(config) => ("warning", &config.warnings),
        Err(errors) => ("error", errors.problems()),
    };
    for problem in problems {
        report += &format!("{what}: {problem}\n");
    }
    let place = if output.is_some() { String::new() } else { format!(" (written to a file `{name}`)") };
    match (checked, import.count(Verdict::Cannot)) {
        (Ok(_), 0) => {
            report +=
                &format!("the new configuration{place} is valid; before the first start, check it on its machine:\n");
            report += &format!("  turnserver check-config --config {name}\n");
        }
        (Ok(_), _) => {
            report += &format!("decide on what cannot be taken over; then check the new configuration{place}:\n");
            report += &format!("  turnserver check-config --config {name}\n");
        }
        (Err(_), _) => {}
    }
    if output.is_some() && import.has_secrets {
        report += &format!("for the service: chgrp turnserver {name} && chmod 640 {name}\n");
    }
    report
}
