//! The web site behind a front.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::hello;
use crate::config::WebSite;
use crate::net::limits::{SpareFiles, too_many_open_files};

/// The time for the connection to the web site.
const CONNECT: Duration = Duration::from_secs(5);

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
            WebSite::Unix(path) => UnixStream::connect(path).await.map(Connected::Unix),
        }
    };
    let connected = timeout(CONNECT, connected).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    let permitted = match &connected {
        Connected::Tcp(stream) => spare.permit(stream),
        Connected::Unix(stream) => spare.permit(stream),
    };
    if permitted { Ok(connected) } else { Err(too_many_open_files()) }
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

/// Logs that the web site of a front cannot be reached, and that it can be reached again: once each.
#[derive(Debug, Default)]
pub(super) struct Reachability {
    is_unreachable: Cell<bool>,
}

impl Reachability {
    pub(super) fn reached(&self, front: SocketAddr, site: &WebSite) {
        if self.is_unreachable.replace(false) {
            tracing::info!(event = "web-site-reachable", %front, web = %site, "the web site can be reached again");
        }
    }

    pub(super) fn failed(&self, front: SocketAddr, site: &WebSite, error: &io::Error) {
        if !self.is_unreachable.replace(true) {
            tracing::warn!(
                event = "web-site-unreachable", %front, web = %site, %error,
                "the web site behind a front cannot be reached, so its visitors get an error; the relay is not \
                 affected. Check that the web server listens at this address. Further failures are counted until it \
                 can be reached again"
            );
        }
    }
}

/// A fatal `internal_error` alert (RFC 8446 §6.2).
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

const BAD_GATEWAY: &[u8] = b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain\r\nContent-Length: 36\r\n\
    Connection: close\r\n\r\nThe web site cannot be reached now.\n";

/// Tells a visitor that the web site cannot be reached: by a TLS alert, or by a response of HTTP.
pub(super) async fn refuse(mut visitor: TcpStream) {
    let told = async {
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
    let _ = timeout(LINGER, told).await;
}

async fn until_end(visitor: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut rest = [0; 1024];
    while visitor.read(&mut rest).await? > 0 {}
    Ok(())
}
