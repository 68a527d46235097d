//! The command line.

use std::ffi::OsString;
use std::net::Ipv6Addr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use turnserver::config::{DurationError, parse_duration};

/// In seconds: the longest life of a credential, ten years.
const LONGEST_TTL: u64 = 3_650 * 86_400;

/// Makes and checks time-limited TURN credentials
#[derive(Debug, Parser)]
#[command(name = "turn-credential", version, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print a new credential
    #[command(after_help = MINT_HELP)]
    Mint(Mint),
    /// Say whether a credential is valid, and if not, why
    #[command(after_help = VERIFY_HELP)]
    Verify(Verify),
}

const MINT_HELP: &str = "\
The secret comes from the configuration unless one of the --secret options names another place. Without --config and
without a --secret option, ./turnserver.toml is read, else /etc/turnserver/turnserver.toml. Of several secrets the
first one is used.

Examples:
  turn-credential mint --user alice
  turn-credential mint --ttl 30m --host turn.example.org --format ice-servers
  turn-credential mint --secret-file /run/secrets/turn --format json";

const VERIFY_HELP: &str = "\
Exit code 0: valid. 1: not valid, and standard error says why. 2: wrong use.

The password is read from standard input unless --password-env names a variable. Every configured secret is tried,
and static users of the configuration are known as well.

Example:
  echo 'rchw+7XvnG7mN0BXm8xDnHNSHX0=' | turn-credential verify 1700000000:alice";

#[derive(Args, Debug)]
pub(crate) struct Mint {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Whom the credential is for; limits are counted per user. May contain colons
    #[arg(long, value_name = "NAME", value_parser = parse_user)]
    pub(crate) user: Option<String>,
    /// How long the credential lives: seconds, or a number with s, m, h or d
    #[arg(long, value_name = "DURATION", default_value = "12h", value_parser = parse_ttl)]
    pub(crate) ttl: u64,
    /// The name or address of the server in URLs; without it, `hostname` of the configuration or an address from it
    #[arg(long, value_name = "HOST", value_parser = parse_host)]
    pub(crate) host: Option<String>,
    /// How to print the credential
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

#[derive(Args, Debug)]
pub(crate) struct Verify {
    /// The username: EXPIRY:NAME or EXPIRY (in unix time), or a static user
    pub(crate) username: String,
    /// Takes what is refused, a password, so that the refusal can say where it belongs.
    #[arg(hide = true)]
    pub(crate) misplaced_password: Option<String>,
    #[command(flatten)]
    pub(crate) source: Source,
    /// Read the password from standard input (the default)
    #[arg(long, conflicts_with = "password_env")]
    pub(crate) password_stdin: bool,
    /// Take the password from this environment variable
    #[arg(long, value_name = "VARIABLE")]
    pub(crate) password_env: Option<String>,
}

/// Where secrets come from.
#[derive(Args, Debug)]
pub(crate) struct Source {
    /// The configuration of the server
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Read secrets from this file, one a line; empty lines and lines that begin with # do not count
    #[arg(long, value_name = "FILE", group = "secret_source")]
    pub(crate) secret_file: Option<PathBuf>,
    /// Read secrets from standard input, one a line as in a file
    #[arg(long, group = "secret_source")]
    pub(crate) secret_stdin: bool,
    /// Take the secret from this environment variable
    #[arg(long, value_name = "VARIABLE", group = "secret_source")]
    pub(crate) secret_env: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Lines for a person
    Text,
    /// An object with username, password, expires, expires_at and, where they are known, urls
    Json,
    /// The argument of `new RTCPeerConnection(...)`
    IceServers,
    /// Lines for `eval` in a shell: TURN_USERNAME, TURN_PASSWORD, TURN_EXPIRES and, where they are known, TURN_URLS
    Env,
}

/// Finds the attempt to pass a secret or a password as an argument; returns what to answer.
pub(crate) fn secret_on_the_command_line(arguments: impl Iterator<Item = OsString>) -> Option<String> {
    let mut names = arguments.take_while(|argument| argument != "--").filter_map(|argument| {
        let bytes = argument.as_encoded_bytes();
        let name = bytes.split(|byte| *byte == b'=').next()?;
        [("--secret", SECRET_PLACES), ("--password", PASSWORD_PLACES)]
            .into_iter()
            .find(|(option, _)| option.as_bytes() == name)
    });
    names.next().map(|(option, places)| {
        format!(
            "there is no {option} option, because every user of this machine can read a command line; {places}\n\
             If a real one stood there, replace it."
        )
    })
}

const SECRET_PLACES: &str =
    "the secret comes from --config FILE, --secret-file FILE, --secret-stdin or --secret-env VARIABLE.";

pub(crate) const PASSWORD_PLACES: &str = "the password comes from standard input or --password-env VARIABLE.";

fn parse_user(user: &str) -> Result<String, String> {
    if user.is_empty() {
        return Err("the name is empty; leave --user out for a credential without a name".to_owned());
    }
    // RFC 8265 §4.2: the OpaqueString profile, which RFC 8489 §14.3 asks for, has no control characters.
    if let Some(control) = user.chars().find(|character| character.is_control()) {
        return Err(format!("it contains the control character {}", control.escape_unicode()));
    }
    Ok(user.to_owned())
}

fn parse_ttl(ttl: &str) -> Result<u64, String> {
    let seconds = match parse_duration(ttl) {
        Ok(duration) => duration.as_secs(),
        Err(DurationError::NoUnit) => ttl.trim().parse().map_err(|_| DurationError::TooLong.to_string())?,
        Err(error) => return Err(error.to_string()),
    };
    match seconds {
        0 => Err("a credential has to live for a second at least".to_owned()),
        1..=LONGEST_TTL => Ok(seconds),
        _ => Err("that is longer than 3650d".to_owned()),
    }
}

fn parse_host(host: &str) -> Result<String, String> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if bare.parse::<Ipv6Addr>().is_ok() {
        return Ok(format!("[{bare}]"));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if host.is_empty() || !host.bytes().all(plain) {
        return Err("give only the name or the address, without scheme and port, as in turn.example.org".to_owned());
    }
    Ok(host.to_owned())
}
