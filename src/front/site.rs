//! The web site behind a front.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

use super::log::PerMinute;
use super::{Front, hello};
use crate::config::WebSite;
use crate::net::limits::{SpareFiles, is_out_of_files, is_service, too_many_open_files};
use crate::setting::{self, name_for_operator};

/// The time for the connection to the web site.
const CONNECT: Duration = Duration::from_secs(5);

/// The time until the next attempt while the queue of a Unix socket is full. Each one is twice as long as the one before.
const FIRST_RETRY: Duration = Duration::from_millis(5);
const LONGEST_RETRY: Duration = Duration::from_millis(200);

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
    let mut pause = FIRST_RETRY;
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(pause).await,
            connected => return connected,
        }
        pause = (pause * 2).min(LONGEST_RETRY);
    }
}

impl Connected {
    /// Returns the connection, unless it leads to a front of this server, which would connect to itself again and again.
    ///
    /// # Errors
    /// If it does.
    pub(super) fn unless_a_front(self, fronts: &[Arc<Front>]) -> io::Result<Self> {
        let Self::Tcp(stream) = &self else { return Ok(self) };
        let (local, remote) = (stream.local_addr()?.ip(), stream.peer_addr()?);
        let ip = remote.ip().to_canonical();
        let is_here = |front: SocketAddr| {
            // [::] also has the IPv4 addresses.
            let is_any = front.ip().is_unspecified() && (front.is_ipv6() || ip.is_ipv4());
            front.port() == remote.port() && (front.ip().to_canonical() == ip || is_any)
        };
        if local == remote.ip() && fronts.iter().any(|front| is_here(front.address)) {
            return Err(io::Error::other("this is the address of a front of this server"));
        }
        Ok(self)
    }

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
    /// The web site that cannot be reached according to the last line, and whether this server lacks files for it.
    unreachable: RefCell<Option<(WebSite, bool)>>,
    lines: PerMinute,
}

impl Reachability {
    pub(super) fn reached(&self, front: SocketAddr, site: &WebSite) {
        if self.unreachable.take().is_some() {
            // The next line about a failure waits.
            self.lines.begin();
            tracing::info!(event = "web-site-reachable", %front, web = %site, "the web site can be reached again");
        }
    }

    pub(super) fn failed(&self, front: SocketAddr, site: &WebSite, error: &io::Error) {
        let lacks_files = is_out_of_files(error);
        let mut unreachable = self.unreachable.borrow_mut();
        match &*unreachable {
            Some((known, cause)) if known == site && *cause == lacks_files => return,
            // The operator has named another one.
            Some((known, _)) if known != site => self.lines.begin(),
            _ if self.lines.allows() => {}
            _ => return,
        }
        *unreachable = Some((site.clone(), lacks_files));
        if lacks_files {
            let limit = name_for_operator(setting::OPEN_FILES, is_service());
            return tracing::warn!(
                event = "web-site-unreachable", %front, web = %site, %error,
                "this server has too many open files to connect to the web site: raise {limit}, or set fewer \
                 `connections` at the front"
            );
        }
        tracing::warn!(
            event = "web-site-unreachable", %front, web = %site, %error,
            "the web site behind a front cannot be reached, so its visitors get an error; the relay is not affected. \
             Check that the web server listens at this address. Further failures are counted until it can be reached \
             again"
        );
    }
}

/// A fatal `internal_error` alert (RFC 8446 §6.2).
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

const BAD_GATEWAY: &[u8] = b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain\r\nContent-Length: 36\r\n\
    Connection: close\r\n\r\nThe web site cannot be reached now.\n";

/// Tells a visitor that the web site cannot be reached: by a TLS alert, or by a response of HTTP.
pub(super) async fn refuse(mut visitor: TcpStream) {
    let refused = async {
        // What a visitor has sent must have been read. Otherwise the kernel resets the connection, and the visitor may
        // lose the response.
        let mut sent = vec![0; hello::MAX_HELLO];
        let read = visitor.read(&mut sent).await?;
        let response = if sent.get(..read).is_some_and(|sent| sent.starts_with(&[hello::HANDSHAKE])) {
            &ALERT[..]
        } else {
            BAD_GATEWAY
        };
        visitor.write_all(response).await?;
        visitor.shutdown().await?;
        while visitor.read(&mut sent).await? > 0 {}
        Ok::<(), io::Error>(())
    };
    // Whatever the visitor does, nothing more can be said to it.
    let _ = timeout(LINGER, refused).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front::Rules;

    #[tokio::test]
    async fn a_connection_to_a_front_of_this_server_is_refused() {
        let own = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let site = WebSite::Tcp(address);
        let refuses = async |front: SocketAddr| {
            let rules = Rules::new(&[], false, false);
            let front = Front {
                address: front,
                rules,
                site: site.clone(),
                proxy_protocol: false,
                connections: 1,
                idle: CONNECT,
            };
            let stream = TcpStream::connect(address).await.unwrap();
            Connected::Tcp(stream).unless_a_front(&[Arc::new(front)]).is_err()
        };
        assert!(refuses(address).await);
        assert!(refuses(SocketAddr::new("::".parse().unwrap(), address.port())).await);
        assert!(!refuses(own).await);
        assert!(!refuses(SocketAddr::new("127.0.0.2".parse().unwrap(), address.port())).await);
    }
}
