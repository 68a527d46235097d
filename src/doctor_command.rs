//! `turnserver doctor`: arguments and report.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgGroup, Args};
use turnserver::auth::Secret;
use turnserver::config::secrets;
use turnserver::doctor::{self, Finding, IceServer, Machine};
use turnserver::file;

/// The lifetime of the credential that is made from a secret, in seconds.
const LIFETIME: u64 = 600;

/// Find out whether a TURN server works, and why not.
///
/// Without --url and --ice-servers, examines this machine, the
/// configuration and, if the server runs, the path through it. With them,
/// examines each URI as a client sees it: name, certificate, response,
/// credentials, relayed address, and data from one allocation to another
/// and back. It works with every TURN server. A server whose certificate
/// is wrong gets the credentials all the same: a hash of the password.
///
/// Exit codes: 0 all is well, 1 there are warnings, 2 there are faults,
/// or the command line is wrong.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
#[command(group(ArgGroup::new("target").args(["url", "ice_servers"])))]
pub(crate) struct Arguments {
    /// A URI of the server, as in turn:turn.example.org:3478?transport=udp.
    /// Can be repeated.
    #[arg(long, value_name = "URI", verbatim_doc_comment)]
    url: Vec<String>,

    /// A file with the servers and credentials that an application hands
    /// out: iceServers of WebRTC, Matrix, Nextcloud or Cloudflare, as JSON;
    /// - is standard input.
    #[arg(long, value_name = "FILE", verbatim_doc_comment, conflicts_with_all = ["secret_file", "username"])]
    ice_servers: Option<PathBuf>,

    /// A file with the secret for time-limited credentials (auth.secrets;
    /// coturn: static-auth-secret); - is standard input.
    #[arg(long, value_name = "FILE", verbatim_doc_comment, conflicts_with = "username", requires = "target")]
    secret_file: Option<PathBuf>,

    /// A STUN server elsewhere, as in stun.example.org:3478, which tells the
    /// public address of this machine.
    #[arg(long, value_name = "HOST", verbatim_doc_comment, conflicts_with = "target")]
    stun: Option<String>,

    /// A username. Its password comes from --password-file.
    #[arg(long, value_name = "NAME", requires_all = ["password_file", "target"])]
    username: Option<String>,

    /// A file with the password; - is standard input.
    #[arg(long, value_name = "FILE", requires = "username")]
    password_file: Option<PathBuf>,

    /// A file with the certificates of further authorities, in PEM.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the diagnosis and returns its exit code.
///
/// # Errors
/// If a file of the command line cannot be used.
pub(crate) fn run(arguments: &Arguments, config: Option<&Path>) -> Result<ExitCode, String> {
    let mut findings = Vec::new();
    let mut failure = None;
    let mut report = |finding: Finding| {
        if !arguments.json && failure.is_none() {
            failure = print(&finding.line()).err();
        }
        findings.push(finding);
    };
    let authorities = arguments.ca_file.as_deref();
    if arguments.url.is_empty() && arguments.ice_servers.is_none() {
        let path = config.map(Path::to_owned).or_else(turnserver::config::default_path);
        let machine = Machine { path: path.as_deref(), stun: arguments.stun.as_deref() };
        doctor::examine_machine(&machine, authorities, &mut report)?;
    } else {
        doctor::examine_servers(&servers(arguments)?, authorities, &mut report)?;
    }
    let last = if arguments.json { format!("{:#}", doctor::report(&findings)) } else { doctor::summary(&findings) };
    match failure.map_or_else(|| print(&last), Err) {
        // A closed pipe means that the reader has read enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(format!("cannot write the report: {error}")),
        _ => Ok(ExitCode::from(doctor::worst(&findings).exit_code())),
    }
}

fn print(line: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}

fn servers(arguments: &Arguments) -> Result<Vec<IceServer>, String> {
    if let Some(path) = &arguments.ice_servers {
        let text = String::from_utf8_lossy(&read(path)?).into_owned();
        return doctor::parse_ice_servers(&text).map_err(|error| format!("{}: {error}", path.display()));
    }
    let uris = arguments.url.clone();
    let (username, password) = match (&arguments.secret_file, &arguments.username, &arguments.password_file) {
        (Some(path), ..) => return Ok(vec![IceServer::minted(uris, &first_secret(path)?, LIFETIME)]),
        (None, Some(username), Some(path)) => {
            let bytes = read(path)?;
            let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let password = Secret::new(line).map_err(|_| format!("{}: the password is empty", path.display()))?;
            (Some(username.clone()), Some(password))
        }
        _ => (None, None),
    };
    Ok(vec![IceServer { uris, username, password, secret: None }])
}

fn first_secret(path: &Path) -> Result<Secret, String> {
    let text = read(path)?;
    let shown = path.display();
    let line = secrets::lines(&text).next().ok_or_else(|| format!("{shown} contains no secret"))?;
    line.secret.map_err(|bad| format!("{shown}, line {}, contains {bad}", line.number))
}

/// Reads a file, or standard input if the path is `-`.
fn read(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, String> {
    if path != Path::new("-") {
        return file::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()));
    }
    let mut bytes = zeroize::Zeroizing::new(Vec::new());
    io::stdin().read_to_end(&mut bytes).map_err(|error| format!("cannot read standard input: {error}"))?;
    file::strip_byte_order_mark(&mut bytes);
    Ok(bytes)
}
