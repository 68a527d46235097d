//! Where secrets, passwords and the configuration come from: never from an argument.

use std::borrow::Cow;
use std::fs;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use turnserver::auth::Secret;
use turnserver::config::{self, Config};
use zeroize::Zeroizing;

use crate::Failure;
use crate::args::{Source, Verify};

/// What the sources yield.
pub(crate) struct Loaded {
    /// The configuration, or built-in defaults where none was read.
    pub(crate) config: Config,
    /// Whether the configuration was read from a file.
    pub(crate) from_file: bool,
    /// The secrets, from the place that was asked for.
    pub(crate) secrets: Vec<Secret>,
    /// That place, as an error names it.
    pub(crate) place: String,
}

/// Reads the configuration, if it is needed, and the secrets. None at all is not an error here.
pub(crate) fn load(source: &Source) -> Result<Loaded, Failure> {
    let elsewhere = secrets_elsewhere(source)?;
    let path = match (&source.config, &elsewhere) {
        (Some(path), _) => Some(Cow::Borrowed(path.as_path())),
        (None, Some(_)) => None,
        (None, None) => config::default_path().map(Cow::Owned),
    };
    let config = match &path {
        Some(path) => Config::load(path).map_err(|errors| Failure::Because(errors.to_string()))?,
        None => Config::default(),
    };
    let (secrets, place) = elsewhere.unwrap_or_else(|| {
        let place = path.as_ref().map_or_else(
            || "no configuration was found (./turnserver.toml, /etc/turnserver/turnserver.toml)".to_owned(),
            |path| format!("{} sets neither `auth.secrets` nor `auth.secrets-file`", path.display()),
        );
        (config.auth.secrets.clone(), place)
    });
    Ok(Loaded { config, from_file: path.is_some(), secrets, place })
}

/// The secrets that a `--secret-…` option names, and what it names; `None` without such an option. Never empty.
fn secrets_elsewhere(source: &Source) -> Result<Option<(Vec<Secret>, String)>, Failure> {
    let (secrets, place) = if let Some(path) = &source.secret_file {
        (lines(&read_file(path)?), path.display().to_string())
    } else if source.secret_stdin {
        (lines(&read_stdin("secret")?), "standard input".to_owned())
    } else if let Some(name) = &source.secret_env {
        let value = environment("--secret-env", name)?;
        (Secret::new(value.trim_ascii()).into_iter().collect(), format!("the environment variable {name}"))
    } else {
        return Ok(None);
    };
    if secrets.is_empty() {
        return Err(Failure::Because(format!("{place} holds no secret")));
    }
    Ok(Some((secrets, place)))
}

/// One secret a line, as in the file that `auth.secrets-file` names.
fn lines(bytes: &[u8]) -> Vec<Secret> {
    bytes
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.starts_with(b"#"))
        .filter_map(|line| Secret::new(line).ok())
        .collect()
}

/// The password that `verify` is asked about, without the end of its line.
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
        Err(_) => Err(Failure::Because("the password is not UTF-8".to_owned())),
    }
}

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let bytes = fs::read(path).map_err(|error| Failure::Because(format!("cannot read {}: {error}", path.display())))?;
    Ok(Zeroizing::new(bytes))
}

fn read_stdin(what: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut stdin = io::stdin();
    if stdin.is_terminal() {
        let _ = writeln!(io::stderr(), "Type the {what}, then Enter and Ctrl-D:");
    }
    let mut bytes = Zeroizing::new(Vec::new());
    stdin.read_to_end(&mut bytes).map_err(|error| Failure::Because(format!("cannot read standard input: {error}")))?;
    Ok(bytes)
}

/// The value of the variable that `option` names.
fn environment(option: &str, name: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    if let Some(value) = std::env::var_os(name) {
        return Ok(Zeroizing::new(value.into_vec()));
    }
    // What looks unlike the name of a variable may be the secret itself, and messages end up in logs.
    let like_a_name = name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
    Err(Failure::Because(if like_a_name {
        format!("the environment variable {name} is not set")
    } else {
        format!("no environment variable has the name that {option} gives; it takes a name, not the value")
    }))
}
