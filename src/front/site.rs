//! The web site behind a front.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout};

use super::hello;
use crate::config::WebSite;
use crate::net::limits::{SpareFiles, is_out_of_files, too_many_open_files};
use crate::setting;

/// The time for the connection to the web site.
const CONNECT: Duration = Duration::from_secs(5);

/// The time until the next attempt while the queue of a Unix socket is full.
const RETRY: Duration = Duration::from_millis(5);

/// The time in which a visitor has to read why there is no web site.
const LINGER: Duration = Duration::from_secs(2);

/// A connection to the web site.
#[derive(Debug)]
pub(super) enum Connected {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Connects to the web site.
///
/// # Errors
/// Those of `connect`; `TimedOut` after five seconds; `EMFILE` if no other than the spare files are free.
pub(super) async fn connect(site: &WebSite, spare: &SpareFiles) -> io::Result<Connected> {
    let connected = async {
        match site {
            WebSite::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Connected::Tcp(stream))
            }
            WebSite::Unix(path) => connect_unix(path).await.map(Connected::Unix),
        }
    };
    let connected = timeout(CONNECT, connected).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    let permitted = match &connected {
        Connected::Tcp(stream) => spare.permit(stream),
        Connected::Unix(stream) => spare.permit(stream),
    };
    if permitted { Ok(connected) } else { Err(too_many_open_files()) }
}

/// Connects to a Unix socket. While its queue is full, `connect` fails at once, so it is tried again.
async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(RETRY).await,
            connected => return connected,
        }
    }
}

impl Connected {
    /// Sends bytes that come before those of the visitor. They fit into the empty buffer of the socket.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes).await,
            Self::Unix(stream) => stream.write_all(bytes).await,
        }
    }
}

/// Logs that the web site of a front cannot be reached, and that it can be reached again: once each, and at most once per
/// minute, because a web site near its limits changes all the time.
#[derive(Debug, Default)]
pub(super) struct Reachability {
    is_unreachable: Cell<bool>,
    last_line: Cell<Option<Instant>>,
}

impl Reachability {
    fn may_log(&self) -> bool {
        let last = self.last_line.get();
        // The opposite of the first line may follow it at once.
        let may = last.is_none_or(|last| last.elapsed() >= PAUSE) || self.is_unreachable.get();
        if may {
            self.last_line.set(Some(Instant::now()));
        }
        may
    }

    pub(super) fn reached(&self, front: SocketAddr, site: &WebSite) {
        if self.is_unreachable.get() && self.may_log() {
            self.is_unreachable.set(false);
            tracing::info!(event = "web-site-reachable", %front, web = %site, "the web site can be reached again");
        }
    }

    pub(super) fn failed(&self, front: SocketAddr, site: &WebSite, error: &io::Error) {
        if !self.is_unreachable.get() && self.may_log() {
            self.is_unreachable.set(true);
            if is_out_of_files(error) {
                let limit = setting::OPEN_FILES;
                return tracing::warn!(
                    event = "web-site-unreachable", %front, web = %site, %error,
                    "this server has too many open files to connect to the web site: raise {limit}, or set fewer \
                     `connections` at the front"
                );
            }
            tracing::warn!(
                event = "web-site-unreachable", %front, web = %site, %error,
                "the web site behind a front cannot be reached, so its visitors get an error; the relay is not \
                 affected. Check that the web server listens at this address. Further failures are counted until it \
                 can be reached again"
            );
        }
    }
}

/// The time after a line until the next one about a failure.
const PAUSE: Duration = Duration::from_secs(60);

/// A fatal `internal_error` alert (RFC 8446 §6.2).
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

const BAD_GATEWAY: &[u8] = b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain\r\nContent-Length: 36\r\n\
    Connection: close\r\n\r\nThe web site cannot be reached now.\n";

/// Tells a visitor that the web site cannot be reached: by a TLS alert, or by a response of HTTP.
pub(super) async fn refuse(mut visitor: TcpStream) {
    let refused = async {
        // What a visitor has sent must have been read. Otherwise the kernel resets the connection, and the visitor may
        // lose the response.
        let mut first = [0; hello::MAX_HELLO];
        let read = visitor.read(&mut first).await?;
        let response = if first.get(..read).is_some_and(|first| first.starts_with(&[hello::HANDSHAKE])) {
            &ALERT[..]
        } else {
            BAD_GATEWAY
        };
        visitor.write_all(response).await?;
        visitor.shutdown().await?;
        until_end(&mut visitor).await
    };
    // Whatever the visitor does, nothing more can be said to it.
    let _ = timeout(LINGER, refused).await;
}

async fn until_end(visitor: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut rest = [0; 1024];
    while visitor.read(&mut rest).await? > 0 {}
    Ok(())
}
