//! A relay of this program's own, for a configuration without a secret: a relay that somebody else starts with it makes
//! a secret that only that relay knows.
//!
//! It runs in a child process, because a relay has threads, signals and a log of its own. The parent writes the secret
//! to its standard input, which no other user can read, and the end of that input stops it.

use std::io::{self, BufRead as _, Read as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram as StdDatagram};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixDatagram;
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;
use turnserver::auth::Secret;
use turnserver::control;

/// The time for the start, and for the end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why the relay does not run.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The random source of the system failed.
    #[error("the random number generator of the system failed: {0}")]
    Random(#[from] getrandom::Error),
    /// The process cannot be started.
    #[error("cannot start the relay: {0}")]
    Process(#[from] io::Error),
    /// The process has ended at its start.
    #[error(
        "the relay of {} did not start: the line above says why. If another relay uses its ports, stop that one, or \
         set auth.secrets in the file (`openssl rand -hex 32`) and restart that one", .0.display()
    )]
    Ended(PathBuf),
    /// The process was not ready in time.
    #[error("the relay of {} was not ready within {} s", .0.display(), PATIENCE.as_secs())]
    Late(PathBuf),
    /// The configuration cannot be used.
    #[error("{0}")]
    Config(#[from] turnserver::config::ConfigErrors),
    /// The relay failed.
    #[error("{0}")]
    Run(#[from] control::RunError),
    /// There is no secret in standard input.
    #[error("`rooms relay` is a part of `rooms serve`, which writes a secret to its standard input")]
    Secret,
}

/// A relay that runs.
#[derive(Debug)]
pub(crate) struct OwnRelay {
    process: Child,
    /// The relay stops when this is dropped.
    input: Option<ChildStdin>,
    secret: Secret,
    /// Reads what the relay reports later: otherwise its log says that the service manager cannot be reached.
    _reader: JoinSet<()>,
}

impl OwnRelay {
    /// Starts a relay with this configuration and a new secret, and waits until it is ready.
    ///
    /// # Errors
    /// If it does not start.
    pub(crate) async fn start(config: &Path) -> Result<Self, RelayError> {
        let mut bytes = [0; 32];
        getrandom::getrandom(&mut bytes)?;
        let text = URL_SAFE_NO_PAD.encode(bytes);
        let secret = Secret::new(text.as_str()).map_err(|_| RelayError::Secret)?;
        let (notifications, name) = notifications()?;
        let mut process = Command::new(std::env::current_exe()?)
            .args(["relay", "--config"])
            .arg(config)
            .env("NOTIFY_SOCKET", name)
            .env_remove("WATCHDOG_USEC")
            .stdin(Stdio::piped())
            // The signals of the terminal are for the parent, which stops the relay when the calls have ended.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        // Waiting for the end of the process would close it.
        let mut input = process.stdin.take();
        if let Some(input) = &mut input {
            // If the process has ended already, waiting for it says so.
            let _ = input.write_all(format!("{text}\n").as_bytes()).await;
        }
        let started = async {
            tokio::select! {
                ready = is_ready(&notifications) => ready,
                _ = process.wait() => Ok(false),
            }
        };
        match timeout(PATIENCE, started).await {
            Ok(Ok(true)) => {
                let mut reader = JoinSet::new();
                reader.spawn(async move { while notifications.recv(&mut [0; 1_024]).await.is_ok() {} });
                Ok(Self { process, input, secret, _reader: reader })
            }
            Ok(Err(error)) => Err(error.into()),
            Ok(Ok(false)) => Err(RelayError::Ended(config.to_owned())),
            Err(_) => Err(RelayError::Late(config.to_owned())),
        }
    }

    /// Returns the secret.
    pub(crate) fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Waits until the relay has ended by itself, which it should not.
    pub(crate) async fn ended(&mut self) {
        // An error means that there is no process any more.
        let _ = self.process.wait().await;
    }

    /// Stops the relay.
    pub(crate) async fn stop(mut self) {
        drop(self.input.take());
        if timeout(PATIENCE, self.process.wait()).await.is_err() {
            tracing::warn!("the relay did not stop in time, and was killed");
        }
    }
}

/// Opens the socket on which the relay says that it is ready (`sd_notify(3)`), and returns its name, too.
fn notifications() -> Result<(UnixDatagram, String), RelayError> {
    let mut number = [0; 9];
    getrandom::getrandom(&mut number)?;
    let name = format!("rooms-{}", URL_SAFE_NO_PAD.encode(number));
    let socket = StdDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    socket.set_nonblocking(true)?;
    Ok((UnixDatagram::from_std(socket)?, format!("@{name}")))
}

async fn is_ready(notifications: &UnixDatagram) -> io::Result<bool> {
    let mut buffer = [0; 1_024];
    loop {
        let length = notifications.recv(&mut buffer).await?;
        if buffer.get(..length).unwrap_or_default().starts_with(b"READY=1") {
            return Ok(true);
        }
    }
}

/// Runs the relay, in the child process. It stops when standard input ends.
///
/// # Errors
/// If it does not start, or fails.
pub fn run(config: &Path) -> Result<(), RelayError> {
    let mut line = String::new();
    let mut input = io::stdin().lock();
    input.read_line(&mut line)?;
    let secret = Secret::new(line.trim()).map_err(|_| RelayError::Secret)?;
    drop(input);
    let source = control::Source { path: Some(config.to_owned()), log_level: None, secrets: vec![secret] };
    let config = source.load()?;
    control::prepare_memory();
    std::thread::spawn(|| {
        let _ = io::stdin().lock().read_to_end(&mut Vec::new());
        let _ = kill(Pid::this(), Signal::SIGTERM);
    });
    let log = control::logging::start(&config.log)?;
    let result = control::run(config, &source, &log);
    log.flush();
    Ok(result?)
}
