//! Sources of secrets, passwords and the configuration. Secrets and passwords are never read from arguments.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use turnserver::auth::Secret;
use turnserver::config::{self, Config, secrets};
use turnserver::file;
use turnserver::setting::{AUTH_SECRETS, AUTH_SECRETS_FILE};
use zeroize::Zeroizing;

use crate::Failure;
use crate::args::{Source, Verify};

/// The largest amount that is read from standard input, in bytes.
const MAX_STDIN: u64 = 1 << 20;

/// The configuration and the secrets.
pub(crate) struct Loaded {
    /// The configuration, or the defaults if none was read.
    pub(crate) config: Config,
    /// Whether the configuration was read from a file.
    pub(crate) from_file: bool,
    /// The secrets from the requested source.
    pub(crate) secrets: Vec<Secret>,
    /// If there are no secrets: the reason, for the error message.
    pub(crate) source: String,
}

/// Reads the secrets, of which there may be none, and the configuration if it is needed.
pub(crate) fn load(source: &Source) -> Result<Loaded, Failure> {
    let from_options = secrets_from_options(source)?;
    let path = match (&source.config, &from_options) {
        (Some(path), _) => Some(Cow::Borrowed(path.as_path())),
        (None, Some(_)) => None,
        (None, None) => config::default_path().map(Cow::Owned),
    };
    let config = match &path {
        Some(path) => Config::load(path).map_err(|errors| Failure::Failed(errors.to_string()))?,
        None => Config::default(),
    };
    let (secrets, description) = from_options.unwrap_or_else(|| {
        let description = path.as_ref().map_or_else(
            || "no configuration was found (./turnserver.toml, /etc/turnserver/turnserver.toml)".to_owned(),
            |path| format!("{} sets neither `{AUTH_SECRETS}` nor `{AUTH_SECRETS_FILE}`", path.display()),
        );
        (config.auth.secrets.clone(), description)
    });
    Ok(Loaded { config, from_file: path.is_some(), secrets, source: description })
}

/// Returns the secrets from a `--secret-…` option, at least one, and the name of their source. `None` without such an
/// option.
fn secrets_from_options(source: &Source) -> Result<Option<(Vec<Secret>, String)>, Failure> {
    let (text, description) = if let Some(path) = &source.secret_file {
        (read_file(path)?, path.display().to_string())
    } else if source.secret_stdin {
        let mut text = read_stdin("secret")?;
        file::strip_byte_order_mark(&mut text);
        (text, "standard input".to_owned())
    } else if let Some(name) = &source.secret_env {
        let (value, description) = (environment("--secret-env", name)?, format!("the environment variable {name}"));
        let secrets = match value.trim_ascii() {
            [] => Vec::new(),
            value => {
                vec![secrets::secret(value).map_err(|bad| Failure::Failed(format!("{description} contains {bad}")))?]
            }
        };
        return at_least_one(secrets, description).map(Some);
    } else {
        return Ok(None);
    };
    let read = secrets::lines(&text).map(|line| {
        let at = line.number;
        line.secret.map_err(|bad| Failure::Failed(format!("{description}, line {at}, contains {bad}")))
    });
    at_least_one(read.collect::<Result<_, _>>()?, description).map(Some)
}

fn at_least_one(secrets: Vec<Secret>, description: String) -> Result<(Vec<Secret>, String), Failure> {
    if secrets.is_empty() {
        return Err(Failure::Failed(format!("{description} contains no secret")));
    }
    Ok((secrets, description))
}

/// Returns the password that `verify` checks, without the end of its line.
pub(crate) fn password(verify: &Verify) -> Result<Zeroizing<String>, Failure> {
    let bytes = match &verify.password_env {
        Some(name) => environment("--password-env", name)?,
        None => read_stdin("password")?,
    };
    let mut line = bytes.as_slice();
    line = line.strip_suffix(b"\n").unwrap_or(line);
    line = line.strip_suffix(b"\r").unwrap_or(line);
    match str::from_utf8(line) {
        Ok(password) => Ok(Zeroizing::new(password.to_owned())),
        Err(_) => Err(Failure::Failed("the password is not UTF-8".to_owned())),
    }
}

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    file::read(path).map_err(|error| Failure::Failed(format!("cannot read {}: {error}", path.display())))
}

fn read_stdin(what: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        let _ = writeln!(io::stderr(), "Type the {what}, then Enter and Ctrl-D:");
    }
    let mut bytes = Zeroizing::new(Vec::new());
    // Standard input may be a device without an end.
    let read = stdin.take(MAX_STDIN + 1).read_to_end(&mut bytes);
    read.map_err(|error| Failure::Failed(format!("cannot read standard input: {error}")))?;
    if bytes.len() as u64 > MAX_STDIN {
        return Err(Failure::Failed("standard input is longer than 1 MiB".to_owned()));
    }
    Ok(bytes)
}

/// Returns the value of the environment variable `name`, the argument of `option`.
fn environment(option: &str, name: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    if let Some(value) = std::env::var_os(name) {
        return Ok(Zeroizing::new(value.into_vec()));
    }
    // A text that does not look like a variable name may be the secret itself, and messages end up in logs.
    let looks_like_a_name = name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
    Err(Failure::Failed(if looks_like_a_name {
        format!("the environment variable {name} is not set")
    } else {
        format!(
            "the environment variable of {option} is not set; the option takes the name of a variable, not the value"
        )
    }))
}
