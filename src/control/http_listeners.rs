//! The control socket and the HTTP listeners.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::listeners::{Neighbours, overlaps};
use super::start::StartError;
use crate::config::{CONTROL_SOCKET as CONTROL_SOCKET_PATH, Config, ControlSocket, Http};
use crate::http::{self, FailedListener, ListenerChange, UnixSocket};
use crate::transport::Endpoint;

/// The HTTP listeners of the process.
#[derive(Debug, Default)]
pub(super) struct HttpListeners {
    bound: Vec<Bound>,
}

/// A listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bound {
    /// As in the configuration.
    wanted: SocketAddr,
    /// With the actual port.
    actual: SocketAddr,
}

/// The listeners of a new configuration. Their sockets are bound; nothing else has changed.
#[derive(Debug)]
pub(super) struct NewHttpListeners {
    pub(super) listeners: HttpListeners,
    pub(super) change: ListenerChange,
    pub(super) difference: Difference,
}

/// The listeners that a change opens and closes, for the log.
#[derive(Debug)]
pub(super) struct Difference {
    opened: Vec<SocketAddr>,
    closed: Vec<SocketAddr>,
    scheme: &'static str,
}

impl HttpListeners {
    /// Returns the actual addresses.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.bound.iter().map(|own| own.actual).collect()
    }

    /// Returns the addresses that a new configuration keeps or opens, and those that it closes.
    pub(super) fn neighbours(&self, new: &Self) -> Neighbours {
        let stay: Vec<SocketAddr> = new.bound.iter().map(|own| own.actual).collect();
        let go = self.bound.iter().map(|own| own.actual).filter(|own| !stay.contains(own)).collect();
        Neighbours { stay, go }
    }

    /// Binds the listeners of a configuration, except those that these have. `clients`: the TCP listeners of the
    /// clients.
    ///
    /// # Errors
    /// If one of them cannot be bound. Then none is.
    pub(super) fn preview(&self, config: &Http, clients: &Neighbours) -> Result<NewHttpListeners, StartError> {
        let (mut bound, mut open) = (Vec::<Bound>::new(), Vec::new());
        // Wildcards first: they hold their port on every address, so that specific addresses can share it.
        let mut wanted: Vec<SocketAddr> = config.listen.clone();
        wanted.sort_by_key(|address| !address.ip().is_unspecified());
        for wanted in wanted {
            if let Some(own) = self.bound.iter().find(|own| own.wanted == wanted || own.actual == wanted) {
                bound.push(Bound { wanted, actual: own.actual });
                continue;
            }
            if let Some(clients) = clients.conflict(wanted) {
                return Err(StartError::HttpInUse { address: wanted, clients });
            }
            let is_own = self.bound.iter().chain(&bound).any(|own| overlaps(own.actual, wanted));
            let (listener, actual) = http::Listener::tcp(wanted, is_own || clients.share(wanted))
                .map_err(|error| StartError::Http { address: wanted, error })?;
            open.push((listener, actual));
            bound.push(Bound { wanted, actual });
        }
        let listeners = Self { bound };
        let close = self.neighbours(&listeners).go;
        let opened = open.iter().map(|(_, address)| *address).collect();
        let scheme = if config.tls { "https" } else { "http" };
        let difference = Difference { opened, closed: close.clone(), scheme };
        let change = ListenerChange { open, close, is_encrypted: config.tls };
        Ok(NewHttpListeners { listeners, change, difference })
    }

    /// Forgets a listener that could not be opened, so that the next reload opens it again. Returns whether it was one
    /// of these.
    fn forget(&mut self, failed: &FailedListener) -> bool {
        let at = self.bound.iter().position(|own| own.actual == failed.address);
        at.map(|at| self.bound.remove(at)).is_some()
    }
}

/// The listeners of the HTTP server, and the way to it.
#[derive(Debug)]
pub(super) struct HttpServer {
    pub(super) listeners: HttpListeners,
    handle: http::Handle,
    /// The changes that were not complete in time.
    unfinished: Vec<mpsc::UnboundedReceiver<FailedListener>>,
}

/// What has become of a change of the HTTP listeners, and of earlier ones that were not complete.
#[derive(Debug, Default)]
pub(super) struct HttpChanged {
    failed: Vec<FailedListener>,
    /// Whether the server has not changed all its listeners yet.
    is_pending: bool,
}

impl HttpChanged {
    /// Returns the result of this change and a later one.
    pub(super) fn and(mut self, later: Self) -> Self {
        self.failed.extend(later.failed);
        Self { failed: self.failed, is_pending: later.is_pending }
    }

    pub(super) fn is_pending(&self) -> bool {
        self.is_pending
    }

    pub(super) fn is_complete(&self) -> bool {
        self.failed.is_empty() && !self.is_pending
    }

    /// Adds the result to a response to the operator.
    pub(super) fn show(&self, response: &mut Value) {
        let failed = |FailedListener { address, error }: &FailedListener| json!({ "address": address, "error": error.to_string() });
        response["http_pending"] = self.is_pending.into();
        response["failed_http_listeners"] = self.failed.iter().map(failed).collect();
    }
}

impl HttpServer {
    pub(super) fn new(listeners: HttpListeners, handle: http::Handle) -> Self {
        Self { listeners, handle, unfinished: Vec::new() }
    }

    /// Changes the listeners, and waits until that is complete, but not longer than `time`.
    pub(super) async fn change(&mut self, change: ListenerChange, time: Duration) -> HttpChanged {
        self.unfinished.push(self.handle.change(change));
        let (deadline, mut failed) = (Instant::now() + time, Vec::new());
        let mut late = Vec::new();
        for mut reports in std::mem::take(&mut self.unfinished) {
            loop {
                match timeout_at(deadline, reports.recv()).await {
                    Ok(Some(report)) => failed.push(report),
                    Ok(None) => break,
                    Err(_) => {
                        late.push(reports);
                        break;
                    }
                }
            }
        }
        self.unfinished = late;
        failed.retain(|failed| self.listeners.forget(failed));
        HttpChanged { failed, is_pending: !self.unfinished.is_empty() }
    }
}

impl NewHttpListeners {
    /// Takes out the listeners to close whose ports the listeners of the clients need.
    pub(super) fn take_closed_for(&mut self, clients: &[Endpoint]) -> Vec<SocketAddr> {
        let tcp = |endpoint: &&Endpoint| endpoint.transport.is_connection();
        let is_needed = |own: &SocketAddr| clients.iter().filter(tcp).any(|new| overlaps(new.address, *own));
        self.change.close.extract_if(.., |own| is_needed(own)).collect()
    }
}

impl Difference {
    /// Logs the difference, except for listeners that could not be opened. `present`: the listeners after it.
    pub(super) fn log(&self, present: &HttpListeners) {
        for address in &self.closed {
            tracing::info!(event = "http-listener-closed", %address, "HTTP no longer listening");
        }
        let is_open = |address: &&SocketAddr| present.bound.iter().any(|own| own.actual == **address);
        for address in self.opened.iter().filter(is_open) {
            tracing::info!(event = "http-listening", %address, scheme = self.scheme, "HTTP listening");
        }
    }
}

/// Binds the control socket. At its default place it is only made if it can be made, so that a trial needs neither the
/// directory nor the permission.
///
/// # Errors
/// If it is configured and cannot be bound.
pub(super) fn control_socket(config: &Config) -> Result<Option<UnixSocket>, StartError> {
    let socket = match &config.control.socket {
        ControlSocket::None => None,
        ControlSocket::At(path) => {
            let error = |error| StartError::Control { path: path.clone(), error };
            Some(UnixSocket::bind(path).map_err(error)?)
        }
        ControlSocket::Default => {
            let path = Path::new(CONTROL_SOCKET_PATH);
            let directory = path.parent().filter(|directory| directory.is_dir());
            directory.and_then(|_| {
                let warn = |error: &http::BindError| {
                    tracing::warn!(
                        event = "no-control-socket", path = CONTROL_SOCKET_PATH, %error,
                        "there is no control socket, so `turnserver ctl` cannot reach this server; set control.socket \
                         to another path"
                    );
                };
                UnixSocket::bind(path).inspect_err(warn).ok()
            })
        }
    };
    if let Some(socket) = &socket {
        tracing::info!(event = "control-socket", path = %socket.path().display(), "control socket");
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    const LONG: Duration = Duration::from_secs(3_600);

    fn config() -> Http {
        Http { listen: vec!["127.0.0.1:0".parse().unwrap()], ..Config::default().http }
    }

    fn failed(change: &ListenerChange) -> FailedListener {
        FailedListener { address: change.open[0].1, error: io::Error::other("no room") }
    }

    /// Begins to use a configuration with one listener.
    fn begin(server: &mut HttpServer) -> ListenerChange {
        let NewHttpListeners { listeners, change, .. } =
            server.listeners.preview(&config(), &Neighbours::default()).unwrap();
        server.listeners = listeners;
        change
    }

    fn shown(changed: &HttpChanged) -> (usize, bool) {
        let mut response = json!({});
        changed.show(&mut response);
        let (failed, is_pending) = (&response["failed_http_listeners"], &response["http_pending"]);
        (failed.as_array().unwrap().len(), is_pending.as_bool().unwrap())
    }

    #[tokio::test]
    async fn a_listener_that_could_not_be_opened_is_reported_and_the_next_reload_opens_it_again() {
        let (handle, mut changes) = http::changes();
        let mut server = HttpServer::new(HttpListeners::default(), handle);
        let change = begin(&mut server);
        let fail = async {
            let (change, report) = changes.next().await.unwrap();
            report.send(failed(&change)).unwrap();
        };
        let (changed, ()) = tokio::join!(server.change(change, LONG), fail);
        assert_eq!((changed.is_complete(), shown(&changed)), (false, (1, false)));
        let change = begin(&mut server);
        assert_eq!(change.open.len(), 1);
        let (changed, _) = tokio::join!(server.change(change, LONG), async { drop(changes.next().await) });
        assert_eq!((changed.is_complete(), shown(&changed)), (true, (0, false)));
        assert!(begin(&mut server).open.is_empty());
    }

    #[tokio::test]
    async fn a_change_that_takes_too_long_is_pending_and_its_failure_is_reported_later() {
        let (handle, mut changes) = http::changes();
        let mut server = HttpServer::new(HttpListeners::default(), handle);
        let change = begin(&mut server);
        let changed = server.change(change, Duration::ZERO).await;
        assert_eq!((changed.is_complete(), shown(&changed)), (false, (0, true)));
        let (first, report) = changes.next().await.unwrap();
        report.send(failed(&first)).unwrap();
        drop(report);
        let change = begin(&mut server);
        let (changed, _) = tokio::join!(server.change(change, LONG), async { drop(changes.next().await) });
        assert_eq!(shown(&changed), (1, false));
        assert_eq!(begin(&mut server).open.len(), 1);
    }
}
