//! The HTTP/1.1 server of the control socket and of `[http] listen`, on a thread of its own.
//!
//! It never runs on the thread of a worker. Connections, requests and responses are bounded in number, size and time
//! (`limits`), so whatever clients do, it takes a bounded amount of memory and leaves relaying alone.

mod connections;
mod exchange;
mod listener;
pub(crate) mod response;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::future::{Future, pending};
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
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::net::background;
use crate::net::limits::SpareFiles;
use crate::net::tls::Acceptor;
use crate::privacy::Privacy;
use connections::{Connection, Connections};
use exchange::{Observed, ResponseBody};
use limits::Times;
pub use listener::BindError;
pub(crate) use listener::{AsyncListener, Client, Listener, PeerCredentials, UnixSocket};

/// The limits of the server. Each listener has its own, so that no client on the network can take the control socket
/// away from the operator.
pub(crate) mod limits {
    use std::time::Duration;

    /// The connections of a listener. A further one evicts the oldest that waits for a request.
    pub(crate) const CONNECTIONS: usize = 64;
    /// The connections of a source on another machine: of an IPv4 address or an IPv6 /64. A further one evicts the
    /// oldest of them that waits for a request.
    pub(crate) const CONNECTIONS_PER_SOURCE: usize = 16;
    /// The size of the head of a request in bytes.
    pub(crate) const HEAD: usize = 16 * 1024;
    /// The size of the body of a request in bytes.
    pub(crate) const BODY: usize = 64 * 1024;
    /// The times that clients have.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Times {
        /// For the head of a request, and for the next request on an open connection.
        pub(crate) head: Duration,
        /// For the body of a request.
        pub(crate) body: Duration,
        /// For the TLS handshake.
        pub(crate) handshake: Duration,
        /// For all on one connection. It also bounds the time in which a client receives a response.
        pub(crate) connection: Duration,
    }

    pub(crate) const TIMES: Times = Times {
        head: Duration::from_secs(10),
        body: Duration::from_secs(10),
        handshake: Duration::from_secs(10),
        connection: Duration::from_secs(300),
    };
    /// The time for the last responses when the server stops.
    pub(crate) const STOP_TIME: Duration = Duration::from_secs(1);
}

/// Responds to requests.
pub(crate) trait Handler: 'static {
    /// Returns the response to a request that is refused because of its head, before its body is read.
    fn refuse<B>(&self, client: &Client, request: &Request<B>) -> Option<Response<Full<Bytes>>>;

    /// Completes an error response of the server itself to a request with this head.
    fn complete(&self, client: &Client, request: &Request<()>, response: &mut Response<Full<Bytes>>);

    /// Responds to a request that is not refused, and whose body has been read.
    fn handle(&self, client: &Client, request: Request<Bytes>) -> impl Future<Output = Response<Full<Bytes>>>;

    /// Returns what the log may say about clients at present.
    fn privacy(&self) -> Arc<Privacy>;
}

/// What the thread of the server needs.
pub(crate) struct Plan {
    pub(crate) control_socket: Option<Listener>,
    /// Connections that fronts have accepted for this server: those without TLS, and those with it.
    pub(crate) handed_over: [mpsc::Receiver<HandedOver>; 2],
    /// Requests of this process, on behalf of the fleet.
    pub(crate) internal: mpsc::Receiver<InternalRequest>,
    /// The first one opens the TCP listeners.
    pub(crate) changes: Changes,
    /// Returns the present certificate, for the listeners with TLS.
    pub(crate) certificate: Certificate,
    /// The files that clients on TCP leave to the control socket.
    pub(crate) spare: SpareFiles,
    /// Becomes true when the server has to stop. It then sends the responses to requests that it has received, for at
    /// most [`STOP_TIME`](limits::STOP_TIME), and closes all other connections.
    pub(crate) stop: watch::Receiver<bool>,
}

/// A request of this process, and where the response goes.
pub(crate) type InternalRequest = (Request<Bytes>, oneshot::Sender<Response<Full<Bytes>>>);

/// A connection that a front has accepted, and its client.
pub(crate) type HandedOver = (std::net::TcpStream, SocketAddr);

/// A change of the TCP listeners. Open connections stay as they are.
#[derive(Debug)]
pub(crate) struct ListenerChange {
    pub(crate) open: Vec<NewListener>,
    /// The actual addresses of the listeners to close.
    pub(crate) close: Vec<SocketAddr>,
    /// Whether clients use TLS after the change.
    pub(crate) is_encrypted: bool,
}

impl ListenerChange {
    /// Returns the addresses of the listeners to open.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.open.iter().map(|new| new.address).collect()
    }
}

/// A listener to open.
#[derive(Debug)]
pub(crate) struct NewListener {
    pub(crate) listener: Listener,
    /// The actual address.
    pub(crate) address: SocketAddr,
    /// Distinguishes it from earlier listeners with the same address.
    pub(crate) generation: u64,
}

/// A listener that could not be opened, or whose task has panicked.
#[derive(Debug)]
pub(crate) struct FailedListener {
    pub(crate) address: SocketAddr,
    /// As in [`NewListener`].
    pub(crate) generation: u64,
    pub(crate) error: io::Error,
}

/// A report of the server about its TCP listeners.
#[derive(Debug)]
pub(crate) enum Report {
    Failed(FailedListener),
    /// The change with this number is complete: the new listeners accept connections, except those that failed, and the
    /// sockets of those to close are closed.
    Complete(u64),
}

/// The end of the channel to the server that control has.
#[derive(Debug)]
pub(crate) struct Handle {
    changes: mpsc::UnboundedSender<(u64, ListenerChange)>,
    reports: mpsc::UnboundedReceiver<Report>,
}

/// The server's end of the channel.
#[derive(Debug)]
pub(crate) struct Changes {
    changes: mpsc::UnboundedReceiver<(u64, ListenerChange)>,
    reports: mpsc::UnboundedSender<Report>,
}

/// Creates the channel through which the TCP listeners change.
pub(crate) fn changes() -> (Handle, Changes) {
    let (sender, changes) = mpsc::unbounded_channel();
    let (reporter, reports) = mpsc::unbounded_channel();
    (Handle { changes: sender, reports }, Changes { changes, reports: reporter })
}

impl Handle {
    /// Passes a change to the server. `number` identifies it in [`Report::Complete`].
    pub(crate) fn change(&self, number: u64, change: ListenerChange) {
        // There is no report about it if the server has ended.
        let _ = self.changes.send((number, change));
    }

    /// Waits for the next report; `None` if the server has ended.
    pub(crate) async fn report(&mut self) -> Option<Report> {
        self.reports.recv().await
    }

    /// Waits for the next report outside of a runtime; `None` if the server has ended.
    pub(crate) fn blocking_report(&mut self) -> Option<Report> {
        self.reports.blocking_recv()
    }

    /// Returns the next report if there is one.
    pub(crate) fn report_now(&mut self) -> Option<Report> {
        self.reports.try_recv().ok()
    }
}

impl Changes {
    /// Returns the next change and its number; `None` if there will be no more.
    pub(crate) async fn next(&mut self) -> Option<(u64, ListenerChange)> {
        self.changes.recv().await
    }

    /// Reports to control, which may have ended.
    pub(crate) fn report(&self, report: Report) {
        let _ = self.reports.send(report);
    }
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
    start_with(limits::TIMES, plan, handler)
}

fn start_with<H: Handler>(
    times: Times,
    plan: Plan,
    handler: impl FnOnce() -> H + Send + 'static,
) -> io::Result<thread::JoinHandle<()>> {
    // On a machine with few CPUs, a list of many sessions would delay packets by milliseconds.
    background::start("http", move || serve(times, plan, Rc::new(handler())))
}

async fn serve<H: Handler>(times: Times, plan: Plan, handler: Rc<H>) {
    let Plan { control_socket, handed_over, mut internal, changes, certificate, spare, stop } = plan;
    let (certificate, is_encrypted) = (Rc::new(certificate), Rc::default());
    let shared = Shared { certificate, is_encrypted, handler, spare, times, stop, keep_alive: true };
    let mut tasks = JoinSet::new();
    let mut control = None;
    match control_socket.map(Listener::into_async) {
        Some(Ok(socket)) => control = Some(tasks.spawn_local(accept(socket, None, None, shared.clone())).id()),
        Some(Err(error)) => control_socket_failed(&error),
        None => {}
    }
    for (connections, is_encrypted) in handed_over.into_iter().zip([false, true]) {
        let always = Some(Rc::new(Cell::new(is_encrypted)));
        // Without TLS, the front has decided for the first request only: one for the response to a challenge.
        let shared = Shared { keep_alive: is_encrypted, ..shared.clone() };
        tasks.spawn_local(accept(AsyncListener::HandedOver(connections), always, None, shared));
    }
    let (handler, stopping) = (Rc::clone(&shared.handler), shared.stop.clone());
    tasks.spawn_local(async move {
        loop {
            tokio::select! {
                () = stopped(stopping.clone()) => return,
                Some((request, response)) = internal.recv() => {
                    let handler = Rc::clone(&handler);
                    tokio::task::spawn_local(async move {
                        let refused = handler.refuse(&Client::Fleet, &request);
                        let result = match refused {
                            Some(refused) => refused,
                            None => handler.handle(&Client::Fleet, request).await,
                        };
                        // The sender may have given up.
                        let _ = response.send(result);
                    });
                }
                else => return stopped(stopping.clone()).await,
            }
        }
    });
    let stop = shared.stop.clone();
    follow(changes, stop, tasks, &TcpListeners { shared, control }).await;
}

/// The TCP listeners of the HTTP server.
struct TcpListeners<H> {
    shared: Shared<H>,
    /// The task of the control socket.
    control: Option<tokio::task::Id>,
}

impl<H: Handler> Service for TcpListeners<H> {
    fn begin(&self, change: &ListenerChange) {
        self.shared.is_encrypted.set(change.is_encrypted);
    }

    fn serve(
        &self,
        listener: AsyncListener,
        _address: SocketAddr,
        close: oneshot::Receiver<Closed>,
    ) -> impl Future<Output = ()> + 'static {
        accept(listener, Some(Rc::clone(&self.shared.is_encrypted)), Some(close), self.shared.clone())
    }

    fn log_failure(&self, FailedListener { address, error, .. }: &FailedListener) {
        tracing::error!(
            event = "http-failed", %address, %error,
            "cannot serve HTTP at this listener; a reload or a restart tries again"
        );
    }

    fn other_panicked(&self, task: tokio::task::Id) {
        if self.control == Some(task) {
            control_socket_failed(&panicked());
        } else {
            tracing::error!(
                event = "http-handover-failed", error = %panicked(),
                "connections that fronts give to the HTTP server are not served any more. This is a bug: restart the \
                 server, and please report it"
            );
        }
    }
}

/// A service whose TCP listeners change while it runs.
pub(crate) trait Service {
    /// Prepares a change. Listeners to close accept no more connections for it, and new ones do not yet.
    fn begin(&self, change: &ListenerChange);

    /// Serves a listener until `close`, and its connections until they end or the server stops.
    fn serve(
        &self,
        listener: AsyncListener,
        address: SocketAddr,
        close: oneshot::Receiver<Closed>,
    ) -> impl Future<Output = ()> + 'static;

    /// Logs that a listener could not be opened, or that its task has panicked.
    fn log_failure(&self, failed: &FailedListener);

    /// A task that belongs to no listener has panicked.
    fn other_panicked(&self, task: tokio::task::Id);
}

/// Opens and closes the listeners of a service as control says, until the server has to stop. Then it completes `tasks`,
/// to which those of the listeners are added.
pub(crate) async fn follow(
    mut changes: Changes,
    stop: watch::Receiver<bool>,
    mut tasks: JoinSet<()>,
    service: &impl Service,
) {
    let failed = |listener: FailedListener, changes: &Changes| {
        service.log_failure(&listener);
        changes.report(Report::Failed(listener));
    };
    let mut open: Vec<Open> = Vec::new();
    loop {
        tokio::select! {
            () = stopped(stop.clone()) => break,
            // A listener that has been closed leaves nothing.
            Some(ended) = tasks.join_next_with_id() => if let Err(ended) = ended {
                if let Some(at) = open.iter().position(|own| own.task == ended.id()) {
                    let Open { address, generation, .. } = open.remove(at);
                    failed(FailedListener { address, generation, error: panicked() }, &changes);
                } else {
                    service.other_panicked(ended.id());
                }
            },
            Some((number, change)) = changes.next() => {
                let mut closing = Vec::new();
                for listener in open.extract_if(.., |own| change.close.contains(&own.address)) {
                    let (closed, is_closed) = oneshot::channel();
                    // A listener that has ended needs no message.
                    let _ = listener.close.send(closed);
                    closing.push(is_closed);
                }
                service.begin(&change);
                for NewListener { listener, address, generation } in change.open {
                    match listener.into_async() {
                        Ok(socket) => {
                            let (close, closing) = oneshot::channel();
                            let task = tasks.spawn_local(service.serve(socket, address, closing)).id();
                            open.push(Open { address, generation, task, close });
                        }
                        Err(error) => failed(FailedListener { address, generation, error }, &changes),
                    }
                }
                let reports = changes.reports.clone();
                tasks.spawn_local(async move {
                    for closed in closing {
                        // The message never comes: its sender is dropped when the socket is closed.
                        let _ = closed.await;
                    }
                    // Control may have ended.
                    let _ = reports.send(Report::Complete(number));
                });
            }
        }
    }
    complete(&mut tasks).await;
}

fn panicked() -> io::Error {
    io::Error::other("its task has panicked")
}

/// Dropped when the socket of a listener is closed.
pub(crate) type Closed = oneshot::Sender<()>;

/// A TCP listener that is open.
struct Open {
    address: SocketAddr,
    generation: u64,
    task: tokio::task::Id,
    close: oneshot::Sender<Closed>,
}

fn control_socket_failed(error: &io::Error) {
    tracing::error!(
        event = "control-socket-failed", %error,
        "cannot serve the control socket, so `turnserver ctl` cannot reach this server; restart it"
    );
}

async fn complete(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

/// What the tasks of all listeners share.
struct Shared<H> {
    certificate: Rc<Certificate>,
    is_encrypted: Rc<Cell<bool>>,
    handler: Rc<H>,
    spare: SpareFiles,
    times: Times,
    stop: watch::Receiver<bool>,
    /// Whether a connection may have several requests.
    keep_alive: bool,
}

impl<H> Clone for Shared<H> {
    fn clone(&self) -> Self {
        Self {
            certificate: Rc::clone(&self.certificate),
            is_encrypted: Rc::clone(&self.is_encrypted),
            handler: Rc::clone(&self.handler),
            spare: self.spare.clone(),
            times: self.times,
            stop: self.stop.clone(),
            keep_alive: self.keep_alive,
        }
    }
}

/// Waits until the server has to stop.
pub(crate) async fn stopped(mut stop: watch::Receiver<bool>) {
    // Without a sender, the process ends.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The time to wait after a connection could not be accepted, for example because there is no free descriptor.
pub(crate) const BACK_OFF: Duration = Duration::from_millis(100);

/// Accepts and serves connections until the server stops, or until `close`, which `None` never does. `is_encrypted`:
/// whether clients use TLS; `None` on the control socket.
async fn accept<H: Handler>(
    mut socket: AsyncListener,
    is_encrypted: Option<Rc<Cell<bool>>>,
    close: Option<oneshot::Receiver<Closed>>,
    shared: Shared<H>,
) {
    let Shared { certificate, handler, stop, spare, times, keep_alive, .. } = shared;
    let connections = Rc::new(Connections::new(limits::CONNECTIONS, limits::CONNECTIONS_PER_SOURCE));
    let mut tasks = JoinSet::new();
    let begin = |tasks: &mut JoinSet<()>, (stream, client): (listener::Stream, Client)| {
        let place = Connections::admit(&connections, client.source());
        let is_encrypted = is_encrypted.as_ref().is_some_and(|encrypted| encrypted.get());
        let acceptor = is_encrypted.then(|| certificate());
        let (handler, stop) = (Rc::clone(&handler), stop.clone());
        tasks.spawn_local(async move {
            let connection = &place.connection;
            let served = serve_connection(stream, client, acceptor, connection, (handler, times, keep_alive));
            tokio::select! {
                // The client gets no response: the request did not come, or took too long.
                () = connection.evicted() => {}
                () = stopped_and_sent(stop, connection) => {}
                _ = timeout(times.connection, served) => {}
            }
        });
    };
    let (stopping, closing) = (stopped(stop.clone()), closing(close));
    tokio::pin!(stopping, closing);
    let closed = loop {
        let accepted = tokio::select! {
            () = &mut stopping => break None,
            closed = &mut closing => break Some(closed),
            // A connection that has ended leaves nothing.
            Some(_) = tasks.join_next() => continue,
            accepted = socket.accept(&spare) => accepted,
        };
        match accepted {
            Ok(accepted) => begin(&mut tasks, accepted),
            Err(error) => {
                tracing::debug!(event = "http-accept-failed", %error, "cannot accept an HTTP connection");
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    };
    if closed.is_some() {
        socket.waiting(&spare).into_iter().for_each(|accepted| begin(&mut tasks, accepted));
    } else {
        drop(socket);
    }
    drop(closed);
    // Connections to a listener that has been closed continue.
    tokio::select! {
        () = stopped(stop.clone()) => {}
        () = complete(&mut tasks) => {}
    }
    let _ = timeout(limits::STOP_TIME, complete(&mut tasks)).await;
}

/// Waits until a listener has to be closed.
pub(crate) async fn closing(close: Option<oneshot::Receiver<Closed>>) -> Closed {
    match close {
        Some(close) => match close.await {
            Ok(closed) => closed,
            // The server stops.
            Err(_) => pending().await,
        },
        None => pending().await,
    }
}

/// Waits until the server has to stop, and the response on a connection, if there is one, has been sent.
async fn stopped_and_sent(stop: watch::Receiver<bool>, connection: &Connection) {
    stopped(stop).await;
    connection.until_it_waits().await;
}

/// Serves a connection to its end. `acceptor` is `Some` on a listener with TLS.
async fn serve_connection<H: Handler>(
    stream: listener::Stream,
    client: Client,
    acceptor: Option<Option<Acceptor>>,
    connection: &Rc<Connection>,
    (handler, times, keep_alive): (Rc<H>, Times, bool),
) {
    match (stream, acceptor) {
        (listener::Stream::Unix(stream), _) => requests(stream, client, connection, (handler, times, keep_alive)).await,
        (listener::Stream::Tcp(stream), None) => {
            requests(stream, client, connection, (handler, times, keep_alive)).await;
        }
        (listener::Stream::Tcp(stream), Some(Some(acceptor))) => {
            if let Ok(Ok(Some(stream))) = timeout(times.handshake, acceptor.accept_http(stream)).await {
                requests(stream, client, connection, (handler, times, keep_alive)).await;
            }
        }
        // A reload has removed the certificate and TLS, just after the client connected.
        (listener::Stream::Tcp(_), Some(None)) => {}
    }
}

async fn requests<S, H>(
    stream: S,
    client: Client,
    connection: &Rc<Connection>,
    (handler, times, keep_alive): (Rc<H>, Times, bool),
) where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    let service = service_fn(|request: Request<Incoming>| {
        let (handler, client) = (&handler, &client);
        async move {
            let response = respond(request, client, connection, &**handler, times).await;
            let response = response.map(|body| ResponseBody::new(body, Rc::clone(connection)));
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let stream = Observed { stream, connection: Rc::clone(connection) };
    let server = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(keep_alive)
        .header_read_timeout(times.head)
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

async fn respond(
    request: Request<Incoming>,
    client: &Client,
    connection: &Connection,
    handler: &impl Handler,
    times: Times,
) -> Response<Full<Bytes>> {
    if let Some(refusal) = handler.refuse(client, &request) {
        return refusal;
    }
    let (head, body) = request.into_parts();
    let head = Request::from_parts(head, ());
    match collect(body, times.body).await {
        Ok(body) => {
            // Until here, the client has to do something, so the connection can be evicted.
            connection.responds();
            handler.handle(client, head.map(|()| body)).await
        }
        Err(mut rejection) => {
            handler.complete(client, &head, &mut rejection);
            rejection
        }
    }
}

/// Reads the body of a request within `time`.
async fn collect(body: Incoming, time: Duration) -> Result<Bytes, Response<Full<Bytes>>> {
    let body = Limited::new(body, limits::BODY).collect();
    match timeout(time, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(response::error(
            StatusCode::PAYLOAD_TOO_LARGE,
            &format!("the body is longer than {} KiB", limits::BODY / 1024),
        )),
        Ok(Err(error)) => Err(response::error(StatusCode::BAD_REQUEST, &format!("the body cannot be read: {error}"))),
        Err(_) => Err(response::error(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")),
    }
}
