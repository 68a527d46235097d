//! The HTTP/1.1 server of the control socket and of `[http] listen`, on a thread of its own.
//!
//! It never runs on the thread of a worker. Connections, requests and responses are bounded in number, size and time
//! (`limits`), so whatever clients do, it takes a bounded amount of memory and leaves relaying alone.

mod connections;
mod listener;
pub(crate) mod response;

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::net::tls::Acceptor;
use crate::privacy::Privacy;
use connections::{Connections, Place};
pub use listener::BindError;
pub(crate) use listener::{Client, Listener, PeerCredentials, UnixSocket};

/// The limits of the server. Each listener has its own, so that nobody on the network can take the control socket away
/// from the operator.
pub(crate) mod limits {
    use std::time::Duration;

    /// The connections of a listener. A further one evicts the oldest that waits for a request.
    pub(crate) const CONNECTIONS: usize = 64;
    /// The size of the head of a request in bytes.
    pub(crate) const HEAD: usize = 16 * 1024;
    /// The size of the body of a request in bytes.
    pub(crate) const BODY: usize = 64 * 1024;
    /// The time for the head of a request, and for the next request on an open connection.
    pub(crate) const HEAD_TIME: Duration = Duration::from_secs(10);
    /// The time for the body of a request.
    pub(crate) const BODY_TIME: Duration = Duration::from_secs(10);
    /// The time for the TLS handshake.
    pub(crate) const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
    /// The lifetime of a connection. It also bounds the time in which a client receives a response.
    pub(crate) const CONNECTION_TIME: Duration = Duration::from_secs(300);
}

/// Responds to requests.
pub(crate) trait Handler: 'static {
    /// Responds to a request whose body has been read.
    fn handle(&self, client: &Client, request: Request<Bytes>) -> impl Future<Output = Response<Full<Bytes>>>;

    /// Returns what the log may say about clients at present.
    fn privacy(&self) -> Arc<Privacy>;
}

/// What the thread of the server needs.
pub(crate) struct Plan {
    pub(crate) control_socket: Option<Listener>,
    /// The first one opens the TCP listeners.
    pub(crate) changes: mpsc::UnboundedReceiver<ListenerChange>,
    /// Returns the present certificate, for the listeners with TLS.
    pub(crate) certificate: Certificate,
    /// Becomes true when the server has to stop.
    pub(crate) stop: watch::Receiver<bool>,
}

/// A change of the TCP listeners. Open connections stay as they are.
#[derive(Debug)]
pub(crate) struct ListenerChange {
    /// With their actual addresses.
    pub(crate) open: Vec<(Listener, SocketAddr)>,
    /// The actual addresses of the listeners to close.
    pub(crate) close: Vec<SocketAddr>,
    /// Whether clients use TLS from now on.
    pub(crate) is_encrypted: bool,
}

type Certificate = Box<dyn Fn() -> Option<Acceptor> + Send>;

/// Starts the thread of the server. `handler` is called on that thread, within its `LocalSet`.
///
/// # Errors
/// If the thread or its runtime cannot be created.
pub(crate) fn start<H: Handler>(
    plan: Plan,
    handler: impl FnOnce() -> H + Send + 'static,
) -> io::Result<thread::JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let run = move || {
        let tasks = tokio::task::LocalSet::new();
        tasks.block_on(&runtime, async { serve(plan, Rc::new(handler())).await });
    };
    thread::Builder::new().name("http".to_owned()).spawn(run)
}

async fn serve<H: Handler>(plan: Plan, handler: Rc<H>) {
    let Plan { control_socket, mut changes, certificate, mut stop } = plan;
    let shared = Shared { certificate: Rc::new(certificate), is_encrypted: Rc::default(), handler };
    let mut tcp: Vec<(SocketAddr, AbortHandle)> = Vec::new();
    if let Some(listener) = control_socket {
        tokio::task::spawn_local(accept(listener, None, shared.clone()));
    }
    loop {
        tokio::select! {
            // The sender is dropped only when the process ends.
            _ = stop.wait_for(|stop| *stop) => return,
            Some(change) = changes.recv() => {
                let closed = tcp.extract_if(.., |(address, _)| change.close.contains(address));
                closed.for_each(|(_, task)| task.abort());
                shared.is_encrypted.set(change.is_encrypted);
                for (listener, address) in change.open {
                    let task = accept(listener, Some(Rc::clone(&shared.is_encrypted)), shared.clone());
                    tcp.push((address, tokio::task::spawn_local(task).abort_handle()));
                }
            }
        }
    }
}

/// What the tasks of all listeners share.
struct Shared<H> {
    certificate: Rc<Certificate>,
    is_encrypted: Rc<Cell<bool>>,
    handler: Rc<H>,
}

impl<H> Clone for Shared<H> {
    fn clone(&self) -> Self {
        let Self { certificate, is_encrypted, handler } = self;
        Self { certificate: Rc::clone(certificate), is_encrypted: Rc::clone(is_encrypted), handler: Rc::clone(handler) }
    }
}

/// The time to wait after a connection could not be accepted, for example because there is no free descriptor.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Accepts connections. `is_encrypted`: whether its clients use TLS; `None` on the control socket.
async fn accept<H: Handler>(listener: Listener, is_encrypted: Option<Rc<Cell<bool>>>, shared: Shared<H>) {
    let socket = match listener.into_async() {
        Ok(socket) => socket,
        Err(error) => return tracing::error!(event = "http-failed", %error, "cannot serve HTTP"),
    };
    let connections = Rc::new(Connections::new(limits::CONNECTIONS));
    loop {
        match socket.accept().await {
            Ok((stream, client)) => {
                let place = Connections::admit(&connections);
                let acceptor =
                    is_encrypted.as_ref().is_some_and(|encrypted| encrypted.get()).then(|| (shared.certificate)());
                let handler = Rc::clone(&shared.handler);
                tokio::task::spawn_local(async move {
                    tokio::select! {
                        // Its own task tells the client nothing: it waited for a request that did not come.
                        () = place.evicted() => {}
                        _ = timeout(limits::CONNECTION_TIME, connection(stream, client, acceptor, &place, handler)) => {}
                    }
                });
            }
            Err(error) => {
                tracing::debug!(event = "http-accept-failed", %error, "cannot accept an HTTP connection");
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
}

/// Serves a connection to its end. `acceptor` is `Some` on a listener with TLS.
async fn connection<H: Handler>(
    stream: listener::Stream,
    client: Client,
    acceptor: Option<Option<Acceptor>>,
    place: &Place,
    handler: Rc<H>,
) {
    match (stream, acceptor) {
        (listener::Stream::Unix(stream), _) => requests(stream, client, place, handler).await,
        (listener::Stream::Tcp(stream), None) => requests(stream, client, place, handler).await,
        (listener::Stream::Tcp(stream), Some(Some(acceptor))) => {
            if let Ok(Ok(stream)) = timeout(limits::HANDSHAKE_TIME, acceptor.accept_http(stream)).await {
                requests(stream, client, place, handler).await;
            }
        }
        // The start fails if a listener with TLS has no certificate, and a reload never removes the certificate.
        (listener::Stream::Tcp(_), Some(None)) => {}
    }
}

async fn requests<S, H>(stream: S, client: Client, place: &Place, handler: Rc<H>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    let service = service_fn(|request: Request<Incoming>| {
        let (handler, client) = (&handler, &client);
        async move {
            place.busy(true);
            let response = match collect(request).await {
                Ok(request) => handler.handle(client, request).await,
                Err(rejection) => rejection,
            };
            place.busy(false);
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let server = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD_TIME)
        .max_buf_size(limits::HEAD)
        .serve_connection(TokioIo::new(stream), service);
    // An error concerns this client only: it sent something other than HTTP, was too slow, or has gone.
    if let Err(error) = server.await {
        let privacy = handler.privacy();
        tracing::debug!(
            event = "http-connection-failed", client = client.logged(&privacy), %error, "HTTP connection failed"
        );
    }
}

/// Reads the body of a request.
async fn collect(request: Request<Incoming>) -> Result<Request<Bytes>, Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, limits::BODY).collect();
    match timeout(limits::BODY_TIME, body).await {
        Ok(Ok(body)) => Ok(Request::from_parts(head, body.to_bytes())),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(response::error(
            StatusCode::PAYLOAD_TOO_LARGE,
            &format!("the body is longer than {} KiB", limits::BODY / 1024),
        )),
        Ok(Err(error)) => Err(response::error(StatusCode::BAD_REQUEST, &format!("the body cannot be read: {error}"))),
        Err(_) => Err(response::error(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")),
    }
}
