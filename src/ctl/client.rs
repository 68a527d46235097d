//! A client of the control socket.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The longest time for a response.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a command has no result.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server refuses the command: its message.
    Refused(String),
    /// The command cannot be carried out as it was given.
    Usage(String),
    /// No server responds at the socket.
    NoServer { message: String, why: NoServer },
}

/// Why no server responds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoServer {
    /// It has not started, or it has stopped: there is no socket, nothing listens at it, or the connection was closed.
    Gone,
    /// This user may not use the socket.
    NotAllowed,
    /// It is too slow, or this machine lacks a resource.
    Other,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(message) | Self::Usage(message) | Self::NoServer { message, .. } => f.write_str(message),
        }
    }
}

/// A connection to the control socket.
#[derive(Debug)]
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
    path: PathBuf,
    /// The process that listens at the socket, if it is visible here.
    process: Option<i32>,
}

impl Client {
    /// Connects to the server at a socket. Must be called within a runtime.
    pub(crate) async fn connect(path: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(path).await.map_err(|error| unreachable(path, &error))?;
        let process = stream.peer_cred().ok().and_then(|peer| peer.pid()).filter(|pid| *pid > 0);
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| silent(path, &error))?;
        // The error of the connection is also that of the request.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, path: path.to_owned(), process })
    }

    /// Returns the process that listens at the socket; `None` if it is not visible here.
    pub(crate) fn process(&self) -> Option<i32> {
        self.process
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<Value, Failure> {
        self.send(Method::GET, path, None).await
    }

    /// Returns the text of a check, which is the failure if the check does not succeed.
    pub(crate) async fn check(&mut self, path: &str) -> Result<String, Failure> {
        let (status, body) = self.exchange(Method::GET, path, None).await?;
        let text = String::from_utf8_lossy(body.trim_ascii()).into_owned();
        if status.is_success() { Ok(text) } else { Err(Failure::Refused(text)) }
    }

    /// Sends a request, and returns the JSON of its success response.
    pub(crate) async fn send(&mut self, method: Method, path: &str, body: Option<Value>) -> Result<Value, Failure> {
        let (status, body) = self.exchange(method, path, body).await?;
        let value: Result<Value, _> = serde_json::from_slice(&body);
        let value =
            value.map_err(|_| Failure::Refused(format!("what responds at the socket is no turnserver ({status})")))?;
        if status.is_success() {
            return Ok(value);
        }
        let message = value.get("error").and_then(Value::as_str);
        Err(Failure::Refused(message.map_or_else(|| status.to_string(), str::to_owned)))
    }

    /// Sends a request, and returns the status and the body of the response.
    async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let body = body.map_or_else(String::new, |body| body.to_string());
        let request = Request::builder().method(method).uri(path).header(HOST, "localhost");
        let request = request.header(CONTENT_TYPE, "application/json").body(Full::from(body));
        let request = request.map_err(|error| Failure::Usage(format!("the command cannot be sent: {error}")))?;
        let socket = self.path.clone();
        let exchange = async {
            self.sender.ready().await.map_err(|error| silent(&socket, &error))?;
            let response = self.sender.send_request(request).await.map_err(|error| silent(&socket, &error))?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| silent(&socket, &error))?.to_bytes();
            Ok((head.status, body))
        };
        let response = timeout(PATIENCE, exchange).await;
        response.unwrap_or_else(|_| {
            let (path, seconds) = (self.path.display(), PATIENCE.as_secs());
            let message = format!("the server at {path} has not responded for {seconds} s");
            Err(Failure::NoServer { message, why: NoServer::Other })
        })
    }
}

fn unreachable(path: &Path, error: &io::Error) -> Failure {
    let shown = path.display();
    let why = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => NoServer::Gone,
        io::ErrorKind::PermissionDenied => NoServer::NotAllowed,
        _ => NoServer::Other,
    };
    let message = match error.kind() {
        io::ErrorKind::NotFound => format!(
            "there is no control socket {shown}: start the server, or name its socket with --socket or its \
             configuration with --config"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "this user may not use the control socket {shown}: use root or a member of the group of the socket, for \
             example with `sudo turnserver ctl`"
        ),
        io::ErrorKind::ConnectionRefused => {
            format!("no server listens at {shown}: it has ended without removing its socket")
        }
        _ => format!("cannot connect to {shown}: {error}"),
    };
    Failure::NoServer { message, why }
}

fn silent(path: &Path, error: &hyper::Error) -> Failure {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, UnexpectedEof};
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    let was_reset =
        |error: &io::Error| matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected | UnexpectedEof);
    let is_closed = error.is_closed() || error.is_canceled() || error.is_incomplete_message();
    let why = if is_closed || cause.is_some_and(was_reset) { NoServer::Gone } else { NoServer::Other };
    Failure::NoServer { message: format!("the server at {} does not respond: {error}", path.display()), why }
}
