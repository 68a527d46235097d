//! `turnserver ctl`: a client of the control socket for people and for scripts.
//!
//! It adds nothing that `curl --unix-socket` could not do, except for the text.

mod client;
mod fleet;
mod screen;
mod test_page;
mod text;
mod top;
mod views;
mod wait;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use form_urlencoded::Serializer;
use hyper::Method;
use serde_json::{Value, json};
use turnserver::clock;
use turnserver::config::{CONTROL_SOCKET, Config, parse_duration};

use client::{Client, Failure};
use text::{counted, number, text};

/// The exit code if a command has not had its whole effect, or its result is incomplete.
const INCOMPLETE: u8 = 4;

/// The sessions of `--top`, unless there is a limit.
const TOP: usize = 20;

/// The greatest number of sessions in a response.
const PAGE: usize = 1_000;

/// Inspects and steers the running server over its control socket.
///
/// Exit codes: 0 the command is done, 1 the server refuses it,
/// 2 the command line is wrong, 3 there is no server at the socket,
/// 4 the result is incomplete, or not everything is changed yet.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// The control socket. Without it, that of --config, or else
    /// /run/turnserver/control.sock.
    #[arg(long, value_name = "PATH", global = true, verbatim_doc_comment)]
    socket: Option<PathBuf>,

    /// Print the JSON of the server.
    #[arg(long, global = true)]
    json: bool,

    /// Ask and steer all nodes of the fleet, through this server.
    #[arg(long, global = true)]
    fleet: bool,

    /// With --fleet, only this node.
    #[arg(long, value_name = "NAME", global = true, requires = "fleet")]
    node: Option<String>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the state of the server.
    Status {
        /// First wait until the server makes new allocations.
        #[arg(long)]
        wait: bool,
    },
    /// Check whether every worker runs.
    ///
    /// Fails with exit code 1 if one does not, for health checks of
    /// containers.
    #[command(verbatim_doc_comment)]
    Health {
        /// Also check that the server makes new allocations.
        #[arg(long)]
        ready: bool,
    },
    /// List the sessions, which are the allocations of clients.
    Sessions(Sessions),
    /// Describe a session, and measure its rate for a second.
    Session {
        /// Its ID, as in `sessions` and in the log.
        id: String,
    },
    /// End sessions. Their clients may make new ones.
    Kick(Kick),
    /// Reject new allocations, and stop when the last one has ended.
    Drain {
        /// Wait until the server has stopped.
        #[arg(long)]
        wait: bool,
        /// With --fleet, all nodes.
        #[arg(long)]
        all: bool,
    },
    /// End a drain.
    Resume,
    /// Read the configuration again, and use it.
    ///
    /// If it has an error, it is shown, and everything stays as it was.
    /// Settings that need a restart are named and stay.
    #[command(verbatim_doc_comment)]
    Reload {
        /// Only show what would change.
        #[arg(long)]
        dry_run: bool,
        /// Show nothing, also no JSON, unless it fails or is incomplete. The
        /// log of the server has the result.
        #[arg(long, conflicts_with = "dry_run", verbatim_doc_comment)]
        quiet: bool,
    },
    /// Change the log level until the server ends.
    LogLevel {
        /// error, warn, info, debug or trace.
        level: String,
    },
    /// Show the certificates in use.
    Certificates,
    /// Show what the kernel relays, and why not the rest.
    ///
    /// `session` shows it for each channel.
    #[command(verbatim_doc_comment)]
    Offload,
    /// Make a link to a page that tests the relay from any browser.
    ///
    /// The link works once. The credential of its page reaches nothing but
    /// relayed addresses of this server, and expires with the link.
    #[command(verbatim_doc_comment)]
    TestLink {
        /// How long the link and its credential are valid, 1m to 24h.
        #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_ttl)]
        ttl: u64,
    },
    /// Show what browsers have found with test links, the last result last.
    TestResults,
    /// Show rates, drops and the greatest sessions, once per second.
    Top,
    /// Refuse a username on all workers, and end its sessions.
    ///
    /// It holds until the credential has expired, and does not survive
    /// a restart of the server.
    #[command(verbatim_doc_comment)]
    Revoke {
        /// The username of the credential, as in 1767225600:alice.
        username: String,
        /// Until this time, in seconds since the Unix epoch.
        #[arg(long, value_name = "T")]
        until: Option<u64>,
        /// End the revocation. The username works again.
        #[arg(long, conflicts_with = "until")]
        end: bool,
    },
    /// With --fleet: the secrets that all nodes have in common.
    Secret {
        #[command(subcommand)]
        command: SecretCommand,
    },
}

#[derive(Debug, Subcommand)]
enum SecretCommand {
    /// Let all nodes accept a further secret.
    Add {
        /// A name for it, of letters, digits, hyphens and underscores.
        #[arg(long)]
        id: String,
        /// The file that contains it, or - for standard input.
        #[arg(long, value_name = "PATH")]
        file: PathBuf,
        /// When nodes begin to make credentials with it, in seconds since
        /// the Unix epoch. The default is now.
        #[arg(long, value_name = "T", verbatim_doc_comment)]
        from: Option<u64>,
    },
    /// Let no node accept a secret any more.
    Retire {
        /// Its name.
        #[arg(long)]
        id: String,
        /// From this time on, in seconds since the Unix epoch. The default
        /// is now.
        #[arg(long, value_name = "T", verbatim_doc_comment)]
        at: Option<u64>,
    },
    /// List the names and times of the secrets.
    List,
}

#[derive(Debug, Args)]
struct Sessions {
    /// Only those of this user.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Only those of clients with this address or prefix.
    #[arg(long, value_name = "PREFIX")]
    client: Option<String>,
    /// Only those with a permission or a channel for such a peer.
    #[arg(long, value_name = "PREFIX")]
    peer: Option<String>,
    /// Only the greatest ones, the greatest first.
    #[arg(long, value_name = "WHAT")]
    top: Option<Top>,
    /// At most this many. Without it all, or 20 with --top, which
    /// lists at most 1000.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), verbatim_doc_comment)]
    limit: Option<u32>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Kick {
    /// The session with this ID.
    id: Option<String>,
    /// All sessions of this user.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// All sessions of clients with this address or prefix.
    #[arg(long, value_name = "PREFIX")]
    client: Option<String>,
    /// All sessions with a permission or a channel for such a peer.
    #[arg(long, value_name = "PREFIX")]
    peer: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Top {
    Bytes,
    Packets,
    Age,
}

impl Top {
    fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Packets => "packets",
            Self::Age => "age",
        }
    }
}

/// The result of a command: its JSON, and its text.
struct Output {
    /// `Null` if it is not shown.
    json: Value,
    text: Vec<String>,
    /// Why the result is incomplete; empty if it is complete.
    gaps: Vec<String>,
}

impl Output {
    /// Takes the gaps from the JSON.
    fn new(text: Vec<String>, json: Value) -> Self {
        let gaps = views::gaps(&json);
        Self { json, text, gaps }
    }

    fn line(text: String, json: Value) -> Self {
        Self::new(vec![text], json)
    }

    /// Shows nothing but the gaps.
    fn quiet(json: &Value) -> Self {
        Self { json: Value::Null, text: Vec::new(), gaps: views::gaps(json) }
    }

    fn shown(&self, as_json: bool) -> String {
        match &self.json {
            Value::Null => lines(&self.text),
            json if as_json => format!("{json}\n"),
            _ => lines(&self.text),
        }
    }
}

/// Runs a command. `config` is the argument of `--config`. The error is its message and the exit code.
pub(crate) fn run(arguments: &Arguments, config: Option<&Path>) -> Result<(), (String, ExitCode)> {
    let with_code = |failure: Failure| {
        let code = match failure {
            Failure::Refused(_) => 1,
            Failure::Usage(_) => 2,
            Failure::NoServer { .. } => 3,
        };
        (failure.to_string(), ExitCode::from(code))
    };
    let socket = socket(arguments, config).map_err(with_code)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| (format!("cannot start: {error}"), ExitCode::FAILURE))?;
    let command = &arguments.command;
    if matches!(command, Command::Top) && arguments.json && !arguments.fleet {
        return Err(with_code(Failure::Usage("top has no JSON: use status and sessions".to_owned())));
    }
    let output = runtime.block_on(execute(arguments, &socket)).map_err(with_code)?;
    match io::stdout().lock().write_all(output.shown(arguments.json).as_bytes()) {
        // A closed pipe means that the reader has read enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err((format!("cannot write: {error}"), ExitCode::FAILURE))
        }
        _ if output.gaps.is_empty() => Ok(()),
        _ => Err((output.gaps.join("\n"), ExitCode::from(INCOMPLETE))),
    }
}

fn lines(lines: &[String]) -> String {
    lines.iter().flat_map(|line| [line, "\n"]).collect()
}

fn socket(arguments: &Arguments, config: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(socket) = &arguments.socket {
        return Ok(socket.clone());
    }
    let Some(path) = config else { return Ok(CONTROL_SOCKET.into()) };
    let socket = Config::control_socket(path).map_err(|errors| {
        Failure::Usage(format!("{errors}\nthe control socket is in the configuration; --socket names it, too"))
    })?;
    socket.path().map(Path::to_owned).ok_or_else(|| {
        Failure::Usage(format!("{}: `control.socket` is empty, so the server has no control socket", path.display()))
    })
}

async fn execute(arguments: &Arguments, socket: &Path) -> Result<Output, Failure> {
    if arguments.fleet {
        return fleet::execute(arguments, socket).await;
    }
    let connect = || Client::connect(socket);
    match &arguments.command {
        Command::Secret { .. } => {
            Err(Failure::Usage("secret needs --fleet: the secrets of one server are in its configuration".to_owned()))
        }
        Command::Status { wait: true } => Ok(status(wait::until_ready(socket).await?)),
        Command::Status { wait: false } => Ok(status(connect().await?.get("/v1/status").await?)),
        Command::Health { ready } => {
            let path = if *ready { "/readyz" } else { "/healthz" };
            let health = connect().await?.check(path).await?;
            Ok(Output::line(health.clone(), json!({ "health": health })))
        }
        Command::Sessions(arguments) => {
            let (sessions, missing) = sessions(&mut connect().await?, arguments).await?;
            let text = views::sessions(&sessions);
            Ok(Output::new(text, json!({ "sessions": sessions, "missing_workers": missing })))
        }
        Command::Session { id } => {
            let session = connect().await?.get(&session_path(id)).await?;
            Ok(Output::new(views::session(&session), session))
        }
        Command::Kick(kick) => {
            let ended = connect().await?.send(Method::DELETE, &kick.path(), None).await?;
            Ok(Output::line(format!("ended {}", counted(number(&ended, "ended"), "session")), ended))
        }
        Command::Revoke { username, until, end } => {
            let body = json!({ "username": username, "until": until, "end": end });
            let revoked = connect().await?.send(Method::POST, "/v1/revocations", Some(body)).await?;
            Ok(Output::line(views::revocation(&revoked, clock::unix_seconds()), revoked))
        }
        Command::Drain { all: true, .. } => Err(Failure::Usage("--all needs --fleet".to_owned())),
        Command::Drain { wait, .. } => drain(&mut connect().await?, socket, *wait, arguments.json).await,
        Command::Resume => {
            let resumed = connect().await?.send(Method::POST, "/v1/resume", None).await?;
            Ok(Output::line("the server makes new allocations".to_owned(), resumed))
        }
        Command::Reload { dry_run, quiet } => {
            let body = json!({ "dry_run": dry_run });
            let reload = connect().await?.send(Method::POST, "/v1/reload", Some(body)).await?;
            Ok(if *quiet { Output::quiet(&reload) } else { Output::new(views::reload(&reload), reload) })
        }
        Command::LogLevel { level } => {
            let body = json!({ "level": level });
            let changed = connect().await?.send(Method::PUT, "/v1/log-level", Some(body)).await?;
            Ok(Output::line(format!("{} (was {})", text(&changed, "level"), text(&changed, "before")), changed))
        }
        Command::Certificates => {
            let certificates = connect().await?.get("/v1/certificates").await?;
            Ok(Output::new(views::certificates(&certificates, clock::unix_seconds()), certificates))
        }
        Command::Offload => {
            let offload = connect().await?.get("/v1/offload").await?;
            Ok(Output::new(views::offload(&offload), offload))
        }
        Command::TestLink { ttl } => {
            let link = connect().await?.send(Method::POST, "/v1/test-links", Some(json!({ "ttl": ttl }))).await?;
            Ok(Output::new(test_page::link(&link), link))
        }
        Command::TestResults => {
            let results = connect().await?.get("/v1/test-results").await?;
            Ok(Output::new(test_page::results(&results, clock::unix_seconds()), results))
        }
        Command::Top => {
            top::run(socket).await?;
            Ok(Output::new(Vec::new(), Value::Null))
        }
    }
}

/// Drains the server. With `wait`, shows who is left until it has stopped, unless it is `quiet`.
async fn drain(client: &mut Client, socket: &Path, wait: bool, quiet: bool) -> Result<Output, Failure> {
    let server = wait::RunningServer::behind(client).await?;
    let draining = client.send(Method::POST, "/v1/drain", None).await?;
    if wait {
        let show = |status: &Value| {
            if !quiet {
                // The wait goes on if nobody reads what it shows.
                let _ = io::stdout().lock().write_all(lines(&left(status)).as_bytes());
            }
        };
        server.until_stopped(socket, show).await?;
        return Ok(Output::line("the server has stopped".to_owned(), json!({ "stopped": true })));
    }
    let left = counted(number(&draining, "allocations"), "session");
    Ok(Output::line(format!("draining: {left} left. The server stops when the last one has ended"), draining))
}

/// Returns the lines of a wait for a drain about a status of the server.
fn left(status: &Value) -> Vec<String> {
    let count = counted(number(status, "allocations"), "session");
    std::iter::once(format!("draining: {count} left")).chain(views::remaining(status)).collect()
}

fn parse_ttl(ttl: &str) -> Result<u64, String> {
    parse_duration(ttl).map(|duration| duration.as_secs()).map_err(|error| error.to_string())
}

fn status(status: Value) -> Output {
    Output::new(views::status(&status), status)
}

impl Kick {
    fn path(&self) -> String {
        let Self { id, user, client, peer } = self;
        if let Some(id) = id {
            return session_path(id);
        }
        let mut query = Serializer::new(String::new());
        for (name, value) in [("user", user), ("client", client), ("peer", peer)] {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        format!("/v1/sessions?{}", query.finish())
    }
}

fn session_path(id: &str) -> String {
    // An ID has only characters that need no encoding. The server refuses others.
    format!("/v1/sessions/{}", form_urlencoded::byte_serialize(id.as_bytes()).collect::<String>())
}

/// Lists sessions, page by page. Also returns the workers whose sessions are missing.
async fn sessions(client: &mut Client, arguments: &Sessions) -> Result<(Vec<Value>, Vec<Value>), Failure> {
    let Sessions { user, client: prefix, peer, top, limit } = arguments;
    let limit = limit.map_or(if top.is_some() { TOP } else { usize::MAX }, |limit| limit as usize);
    if top.is_some() && limit > PAGE {
        return Err(Failure::Usage(format!(
            "--limit {limit}: --top lists at most {PAGE} sessions; without --top, there is no such limit"
        )));
    }
    let (mut sessions, mut missing, mut cursor) = (Vec::new(), Vec::new(), None);
    loop {
        let mut query = Serializer::new(String::new());
        for (name, value) in [("user", user), ("client", prefix), ("peer", peer), ("cursor", &cursor)] {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        if let Some(top) = top {
            query.append_pair("top", top.name());
        }
        let room = if top.is_some() { limit } else { PAGE.min(limit - sessions.len()) };
        query.append_pair("limit", &room.to_string());
        let mut page = client.get(&format!("/v1/sessions?{}", query.finish())).await?;
        for (field, all) in [("sessions", &mut sessions), ("missing_workers", &mut missing)] {
            if let Some(Value::Array(listed)) = page.get_mut(field).map(Value::take) {
                all.extend(listed);
            }
        }
        cursor = page.get("next").and_then(Value::as_str).map(str::to_owned);
        if cursor.is_none() || sessions.len() >= limit {
            return Ok((sessions, missing));
        }
    }
}
