//! Command line arguments.

use std::ffi::OsString;
use std::net::Ipv6Addr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use turnserver::config::{DurationError, KEY_NAME_RULE, is_key_name, parse_duration};
use turnserver::generate::Generate;

/// The longest lifetime of a credential, in seconds: ten years.
const LONGEST_TTL: u64 = 3_650 * 86_400;

/// Create and check time-limited TURN credentials, and create API keys
#[derive(Debug, Parser)]
#[command(name = "turn-credential", version, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create and print a credential
    #[command(after_help = MINT_HELP, next_line_help = true)]
    Mint(Mint),
    /// Report whether a credential is valid, and if not, why
    #[command(after_help = VERIFY_HELP, next_line_help = true)]
    Verify(Verify),
    /// Create a key with which an application gets credentials over HTTP
    #[command(after_help = KEY_HELP, next_line_help = true)]
    Key(Key),
    /// Generate man pages and shell completions
    #[command(subcommand)]
    Generate(Generate),
}

const MINT_HELP: &str = "\
The secret comes from the configuration unless a --secret option names another
source. Without --config and without a --secret option, this is
./turnserver.toml, or /etc/turnserver/turnserver.toml if the former does not
exist. If there are several secrets, the first one is used.

Examples:
  turn-credential mint --user alice
  turn-credential mint --ttl 30m --host turn.example.org --format ice-servers
  turn-credential mint --secret-file /run/secrets/turn --format json";

const VERIFY_HELP: &str = "\
Exit code 0: valid. 1: not valid; the reason is on standard error.
2: usage error.

The password is read from standard input unless --password-env names a variable.
Every configured secret is tried, and static users of the configuration are
checked, too.

Example:
  echo 'rchw+7XvnG7mN0BXm8xDnHNSHX0=' | turn-credential verify 1700000000:alice";

const KEY_HELP: &str = "\
Prints the key, which cannot be shown again, and the block for the
configuration of the server. The block contains only a hash of the key.

Example:
  turn-credential key --name shop";

#[derive(Args, Debug)]
pub(crate) struct Mint {
    #[command(flatten)]
    pub(crate) source: Source,
    /// The user, for whom limits are counted; may contain colons
    #[arg(long, value_name = "NAME", value_parser = parse_user)]
    pub(crate) user: Option<String>,
    /// The lifetime: seconds, or a number with s, m, h or d
    #[arg(long, value_name = "DURATION", default_value = "12h", value_parser = parse_ttl)]
    pub(crate) ttl: u64,
    /// The server in URLs; by default `hostname` or a configured address
    #[arg(long, value_name = "HOST", value_parser = parse_host)]
    pub(crate) host: Option<String>,
    /// Format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

#[derive(Args, Debug)]
pub(crate) struct Verify {
    /// EXPIRY:NAME, NAME:EXPIRY or EXPIRY (in Unix time), or a static user
    pub(crate) username: String,
    /// A password on the command line, which is rejected with an error that names the right source.
    #[arg(hide = true)]
    pub(crate) misplaced_password: Option<String>,
    #[command(flatten)]
    pub(crate) source: Source,
    /// Read the password from standard input (default)
    #[arg(long, conflicts_with = "password_env")]
    pub(crate) password_stdin: bool,
    /// Read the password from this variable
    #[arg(long, value_name = "VARIABLE")]
    pub(crate) password_env: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Key {
    /// The name: letters, digits, dots, hyphens, underscores
    #[arg(long, value_name = "NAME", default_value = "app", value_parser = parse_key_name)]
    pub(crate) name: String,
}

/// The source of the secrets.
#[derive(Args, Debug)]
pub(crate) struct Source {
    /// The configuration file of the server
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Read secrets from this regular file, one per line; # starts a comment
    #[arg(long, value_name = "FILE", group = "secret_source")]
    pub(crate) secret_file: Option<PathBuf>,
    /// Read secrets from standard input, one per line
    #[arg(long, group = "secret_source")]
    pub(crate) secret_stdin: bool,
    /// Read the secret from this environment variable
    #[arg(long, value_name = "VARIABLE", group = "secret_source")]
    pub(crate) secret_env: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Human-readable lines
    Text,
    /// An object with username, password, expiry and URLs
    Json,
    /// The argument of `new RTCPeerConnection(...)`
    IceServers,
    /// Lines for `eval` in a shell: TURN_USERNAME=… and others
    Env,
}

/// Returns the error message if a secret or a password is passed as an argument.
pub(crate) fn secret_on_the_command_line(arguments: impl Iterator<Item = OsString>) -> Option<String> {
    let mut names = arguments.take_while(|argument| argument != "--").filter_map(|argument| {
        let bytes = argument.as_encoded_bytes();
        let name = bytes.split(|byte| *byte == b'=').next()?;
        [("--secret", SECRET_SOURCES), ("--password", PASSWORD_SOURCES)]
            .into_iter()
            .find(|(option, _)| option.as_bytes() == name)
    });
    names.next().map(|(option, sources)| {
        format!(
            "there is no {option} option, because every user of this machine can read the command line; {sources}\n\
             If the value was real, replace it."
        )
    })
}

const SECRET_SOURCES: &str =
    "the secret comes from --config FILE, --secret-file FILE, --secret-stdin or --secret-env VARIABLE.";

pub(crate) const PASSWORD_SOURCES: &str = "the password comes from standard input or --password-env VARIABLE.";

fn parse_user(user: &str) -> Result<String, String> {
    if user.is_empty() {
        return Err("the name is empty; omit --user for a credential without a name".to_owned());
    }
    // RFC 8265 §4.2: the OpaqueString profile, which RFC 8489 §14.3 requires, excludes control characters.
    if let Some(control) = user.chars().find(|character| character.is_control()) {
        return Err(format!("it contains the control character {}", control.escape_unicode()));
    }
    Ok(user.to_owned())
}

fn parse_key_name(name: &str) -> Result<String, String> {
    if is_key_name(name) { Ok(name.to_owned()) } else { Err(KEY_NAME_RULE.to_owned()) }
}

fn parse_ttl(ttl: &str) -> Result<u64, String> {
    let seconds = match parse_duration(ttl) {
        Ok(duration) => duration.as_secs(),
        Err(DurationError::NoUnit) => ttl.trim().parse().map_err(|_| DurationError::TooLong.to_string())?,
        Err(error) => return Err(error.to_string()),
    };
    match seconds {
        0 => Err("the lifetime must be at least one second".to_owned()),
        1..=LONGEST_TTL => Ok(seconds),
        _ => Err("the lifetime must not exceed 3650d".to_owned()),
    }
}

fn parse_host(host: &str) -> Result<String, String> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if bare.parse::<Ipv6Addr>().is_ok() {
        return Ok(format!("[{bare}]"));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if host.is_empty() || !host.bytes().all(plain) {
        return Err(
            "use only the name or the address, without scheme and port, for example turn.example.org".to_owned()
        );
    }
    Ok(host.to_owned())
}
