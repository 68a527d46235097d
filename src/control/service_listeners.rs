//! The control socket, and the TCP listeners of the HTTP server and of the fronts.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::listeners::{Neighbours, overlaps};
use super::start::StartError;
use crate::config::{CONTROL_SOCKET as CONTROL_SOCKET_PATH, Config, ControlSocket};
use crate::http::{self, FailedListener, ListenerChange, NewListener, Report, UnixSocket};
use crate::net::passed::PassedSockets;
use crate::setting::{FRONT_LISTEN, HTTP_LISTEN};
use crate::transport::Endpoint;

/// A thread of this process that has TCP listeners of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    Http,
    Front,
}

impl Service {
    /// The setting of its listeners.
    pub(super) fn setting(self) -> &'static str {
        match self {
            Self::Http => HTTP_LISTEN,
            Self::Front => FRONT_LISTEN,
        }
    }

    /// Its name in a sentence.
    fn name(self) -> &'static str {
        match self {
            Self::Http => "the HTTP server",
            Self::Front => "the thread of the fronts",
        }
    }
}

/// The TCP listeners of a service.
#[derive(Debug)]
pub(super) struct ServiceListeners {
    service: Service,
    bound: Vec<Bound>,
    /// Counts the configurations.
    generation: u64,
    /// The sockets that the service manager has passed.
    passed: Arc<PassedSockets>,
}

/// A listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bound {
    /// As in the configuration.
    wanted: SocketAddr,
    /// With the actual port.
    actual: SocketAddr,
    /// The configuration that opened it.
    generation: u64,
}

/// The listeners of a new configuration. Their sockets are bound; nothing else has changed.
#[derive(Debug)]
pub(super) struct NewServiceListeners {
    pub(super) listeners: ServiceListeners,
    pub(super) change: ListenerChange,
    pub(super) difference: Difference,
}

/// The listeners that a change opens and closes, for the log.
#[derive(Debug)]
pub(super) struct Difference {
    service: Service,
    opened: Vec<SocketAddr>,
    closed: Vec<SocketAddr>,
    scheme: &'static str,
}

impl ServiceListeners {
    /// Returns no listeners. Those of configurations use sockets that the service manager has passed.
    pub(super) fn new(service: Service, passed: Arc<PassedSockets>) -> Self {
        Self { service, bound: Vec::new(), generation: 0, passed }
    }

    /// Returns the actual addresses.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.bound.iter().map(|own| own.actual).collect()
    }

    /// Returns the actual address of a listener.
    pub(super) fn actual(&self, wanted: SocketAddr) -> Option<SocketAddr> {
        self.bound.iter().find(|own| own.wanted == wanted).map(|own| own.actual)
    }

    /// Returns the addresses that a new configuration keeps or opens, and those that it closes.
    pub(super) fn neighbours(&self, new: &Self) -> Neighbours {
        let stay: Vec<SocketAddr> = new.bound.iter().map(|own| own.actual).collect();
        let go = self.bound.iter().map(|own| own.actual).filter(|own| !stay.contains(own)).collect();
        Neighbours { stay, go }
    }

    /// Returns the addresses that listeners in `wanted` keep, and those that the others close.
    pub(super) fn neighbours_of(&self, wanted: &[SocketAddr]) -> Neighbours {
        let stays = |own: &&Bound| wanted.contains(&own.wanted) || wanted.contains(&own.actual);
        let of = |all: Vec<&Bound>| all.into_iter().map(|own| own.actual).collect();
        let (stay, go) = self.bound.iter().partition(stays);
        Neighbours { stay: of(stay), go: of(go) }
    }

    /// Binds the listeners of a configuration, except those that these have. `others`: the other TCP listeners of this
    /// process.
    ///
    /// # Errors
    /// If one of them cannot be bound. Then none is.
    pub(super) fn preview(
        &self,
        wanted: &[SocketAddr],
        is_encrypted: bool,
        others: &Neighbours,
    ) -> Result<NewServiceListeners, StartError> {
        let service = self.service;
        let (mut bound, mut open) = (Vec::<Bound>::new(), Vec::new());
        let generation = self.generation + 1;
        // Wildcards first: they hold their port on every address, so that specific addresses can share it.
        let mut wanted = wanted.to_vec();
        wanted.sort_by_key(|address| !address.ip().is_unspecified());
        for wanted in wanted {
            if let Some(own) = self.bound.iter().find(|own| own.wanted == wanted || own.actual == wanted) {
                bound.push(Bound { wanted, ..*own });
                continue;
            }
            if let Some(other) = others.conflict(wanted) {
                return Err(StartError::ServiceInUse { setting: service.setting(), address: wanted, other });
            }
            let is_own = self.bound.iter().chain(&bound).any(|own| overlaps(own.actual, wanted));
            let failed = |error| StartError::Service { setting: service.setting(), address: wanted, error };
            let passed = self.passed.tcp(wanted).map_err(failed)?;
            if passed.len() > 1 {
                let (setting, passed) = (service.setting(), passed.len());
                return Err(StartError::TooManyPassed { setting, address: wanted, passed });
            }
            let (listener, actual) = match passed.into_iter().next() {
                Some(socket) => (http::Listener::Tcp(socket), wanted),
                None => http::Listener::tcp(wanted, is_own || others.share(wanted)).map_err(failed)?,
            };
            open.push(NewListener { listener, address: actual, generation });
            bound.push(Bound { wanted, actual, generation });
        }
        let listeners = Self { service, bound, generation, passed: Arc::clone(&self.passed) };
        let close = self.neighbours(&listeners).go;
        let opened = open.iter().map(|new| new.address).collect();
        let scheme = if is_encrypted { "https" } else { "http" };
        let difference = Difference { service, opened, closed: close.clone(), scheme };
        let change = ListenerChange { open, close, is_encrypted };
        Ok(NewServiceListeners { listeners, change, difference })
    }

    /// Forgets a listener that has failed, so that the next reload opens it again. Returns whether it was one of these.
    fn forget(&mut self, failed: &FailedListener) -> bool {
        let is_it = |own: &Bound| (own.actual, own.generation) == (failed.address, failed.generation);
        let at = self.bound.iter().position(is_it);
        at.map(|at| self.bound.remove(at)).is_some()
    }
}

/// The listeners of a service, and the way to its thread.
#[derive(Debug)]
pub(super) struct ServiceThread {
    pub(super) listeners: ServiceListeners,
    handle: http::Handle,
    /// The number of the last change.
    last: u64,
    /// The changes that are not complete.
    unfinished: Vec<u64>,
    /// Whether the thread of the server has ended, because of a bug.
    has_ended: bool,
}

/// What has become of a change of the listeners of a service, and of earlier ones that were not complete.
#[derive(Debug)]
pub(super) struct ServiceChanged {
    service: Service,
    failed: Vec<FailedListener>,
    /// Whether the server has not changed all its listeners yet.
    is_pending: bool,
    /// Whether the server has ended, so that it changes nothing.
    has_ended: bool,
}

impl ServiceChanged {
    /// Nothing was to be changed.
    pub(super) fn nothing(service: Service) -> Self {
        Self { service, failed: Vec::new(), is_pending: false, has_ended: false }
    }

    /// Returns the result of this change and a later one.
    pub(super) fn and(mut self, later: Self) -> Self {
        self.failed.extend(later.failed);
        Self { failed: self.failed, ..later }
    }

    pub(super) fn is_pending(&self) -> bool {
        self.is_pending
    }

    pub(super) fn is_complete(&self) -> bool {
        self.failed.is_empty() && !self.is_pending
    }

    /// Adds the result to a response to the operator.
    pub(super) fn show(&self, response: &mut Value) {
        let failed = self.failed.iter();
        let failed = failed.map(|failed| json!({ "address": failed.address, "error": failed.error.to_string() }));
        let [pending, failed_listeners] = match self.service {
            Service::Http => ["http_pending", "failed_http_listeners"],
            Service::Front => ["front_pending", "failed_front_listeners"],
        };
        response[pending] = self.is_pending.into();
        response[failed_listeners] = failed.collect();
    }

    /// Logs why the change is not complete.
    pub(super) fn log_gaps(&self) {
        let name = self.service.name();
        for FailedListener { address, error, .. } in &self.failed {
            tracing::warn!(
                event = "reload-incomplete", %address, %error,
                "{name} cannot use a listener; reload again"
            );
        }
        if self.has_ended {
            let also = if self.service == Service::Http { ", and the control socket, too" } else { "" };
            tracing::warn!(
                event = "reload-incomplete",
                "{name} has ended, so its listeners are closed{also}. This is a bug: restart the server, and please \
                 report it"
            );
        } else if self.is_pending {
            tracing::warn!(
                event = "reload-incomplete",
                "{name} is busy and has not changed its listeners yet; it will do so when it is less busy"
            );
        }
    }
}

impl ServiceThread {
    fn new(listeners: ServiceListeners, handle: http::Handle) -> Self {
        Self { listeners, handle, last: 0, unfinished: Vec::new(), has_ended: false }
    }

    /// Opens the first listeners, and waits until they are open. Must be called outside of a runtime.
    ///
    /// # Errors
    /// If one of them cannot be opened, or the server has ended.
    pub(super) fn start(
        listeners: ServiceListeners,
        change: ListenerChange,
        handle: http::Handle,
    ) -> Result<Self, StartError> {
        let mut server = Self::new(listeners, handle);
        server.begin(change);
        while !server.unfinished.is_empty() {
            let service = server.listeners.service;
            let report = server.handle.blocking_report().ok_or(StartError::ServiceEnded(service.name()))?;
            if let Some(FailedListener { address, error, .. }) = server.take(report) {
                return Err(StartError::Service { setting: service.setting(), address, error });
            }
        }
        Ok(server)
    }

    /// Takes what the server has reported since the last change, without waiting, so that the next change opens the
    /// listeners again that have failed.
    pub(super) fn update(&mut self) {
        while let Some(report) = self.handle.report_now() {
            self.take(report);
        }
    }

    /// Changes the listeners, and waits until that is complete, but not longer than `time`.
    pub(super) async fn change(&mut self, change: ListenerChange, time: Duration) -> ServiceChanged {
        self.begin(change);
        let (deadline, mut failed) = (Instant::now() + time, Vec::new());
        while !self.unfinished.is_empty() {
            match timeout_at(deadline, self.handle.report()).await {
                Ok(Some(report)) => failed.extend(self.take(report)),
                Ok(None) => {
                    self.has_ended = true;
                    break;
                }
                Err(_) => break,
            }
        }
        ServiceChanged {
            service: self.listeners.service,
            failed,
            is_pending: !self.unfinished.is_empty(),
            has_ended: self.has_ended,
        }
    }

    fn begin(&mut self, change: ListenerChange) {
        self.last += 1;
        self.unfinished.push(self.last);
        self.handle.change(self.last, change);
    }

    /// Takes a report. Returns the listener that has failed, if it is one of the present ones.
    fn take(&mut self, report: Report) -> Option<FailedListener> {
        match report {
            Report::Failed(failed) => self.listeners.forget(&failed).then_some(failed),
            Report::Complete(number) => {
                self.unfinished.retain(|own| *own != number);
                None
            }
        }
    }
}

impl NewServiceListeners {
    /// Takes out the listeners to close whose ports the listeners of the clients and these others need.
    pub(super) fn take_closed_for(&mut self, clients: &[Endpoint], others: &[SocketAddr]) -> Vec<SocketAddr> {
        let tcp = clients.iter().filter(|endpoint| endpoint.transport.is_connection()).map(|endpoint| endpoint.address);
        let new: Vec<SocketAddr> = tcp.chain(others.iter().copied()).collect();
        let is_needed = |own: &SocketAddr| new.iter().any(|new| overlaps(*new, *own));
        self.change.close.extract_if(.., |own| is_needed(own)).collect()
    }
}

impl Difference {
    /// Logs the difference, except for listeners that could not be opened. `present`: the listeners after it.
    pub(super) fn log(&self, present: &ServiceListeners) {
        for address in &self.closed {
            match self.service {
                Service::Http => {
                    tracing::info!(event = "http-listener-closed", %address, "HTTP no longer listening");
                }
                Service::Front => tracing::info!(
                    event = "front-closed", %address, "front no longer listening; connections on it continue"
                ),
            }
        }
        let is_open = |address: &&SocketAddr| present.bound.iter().any(|own| own.actual == **address);
        for address in self.opened.iter().filter(is_open) {
            match self.service {
                Service::Http => {
                    tracing::info!(event = "http-listening", %address, scheme = self.scheme, "HTTP listening");
                }
                Service::Front => tracing::info!(event = "front-listening", %address, "front listening"),
            }
        }
    }
}

/// Binds the control socket. At its default place it is only made if it can be made, so that a trial needs neither the
/// directory nor the permission.
///
/// # Errors
/// If it is configured and cannot be bound.
pub(super) fn control_socket(config: &Config, passed: &PassedSockets) -> Result<Option<UnixSocket>, StartError> {
    let place = match &config.control.socket {
        ControlSocket::None => None,
        ControlSocket::At(path) => Some(path.as_path()),
        ControlSocket::Default => Some(Path::new(CONTROL_SOCKET_PATH)),
    };
    let failed = |path: &Path, error: io::Error| StartError::Control { path: path.to_owned(), error: error.into() };
    if let Some(path) = place
        && let Some(socket) = passed.unix(path).map_err(|error| failed(path, error))?
    {
        tracing::info!(event = "control-socket", path = %path.display(), "control socket");
        return UnixSocket::passed(socket, path).map(Some).map_err(|error| failed(path, error));
    }
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
    use super::*;

    const LONG: Duration = Duration::from_secs(3_600);

    /// The addresses of a configuration with one listener.
    fn one() -> Vec<SocketAddr> {
        vec!["127.0.0.1:0".parse().unwrap()]
    }

    fn failed(change: &ListenerChange) -> Report {
        let NewListener { address, generation, .. } = change.open[0];
        Report::Failed(FailedListener { address, generation, error: io::Error::other("no room") })
    }

    fn server() -> (ServiceThread, http::Changes) {
        let (handle, changes) = http::changes();
        (ServiceThread::new(ServiceListeners::new(Service::Http, Arc::default()), handle), changes)
    }

    /// Begins to use a configuration with one listener.
    fn begin(server: &mut ServiceThread) -> ListenerChange {
        begin_with(server, &one())
    }

    fn begin_with(server: &mut ServiceThread, listen: &[SocketAddr]) -> ListenerChange {
        server.update();
        let NewServiceListeners { listeners, change, .. } =
            server.listeners.preview(listen, false, &Neighbours::default()).unwrap();
        server.listeners = listeners;
        change
    }

    /// Carries out the next change.
    async fn complete(changes: &mut http::Changes) {
        let (number, _) = changes.next().await.unwrap();
        changes.report(Report::Complete(number));
    }

    /// Returns the number of failed listeners, and whether the change is pending.
    fn shown(changed: &ServiceChanged) -> (usize, bool) {
        let mut response = json!({});
        changed.show(&mut response);
        let (failed, is_pending) = (&response["failed_http_listeners"], &response["http_pending"]);
        (failed.as_array().unwrap().len(), is_pending.as_bool().unwrap())
    }

    #[tokio::test]
    async fn a_listener_that_could_not_be_opened_is_reported_and_the_next_reload_opens_it_again() {
        let (mut server, mut changes) = server();
        let change = begin(&mut server);
        let fail = async {
            let (number, change) = changes.next().await.unwrap();
            changes.report(failed(&change));
            changes.report(Report::Complete(number));
        };
        let (changed, ()) = tokio::join!(server.change(change, LONG), fail);
        assert_eq!((changed.is_complete(), shown(&changed)), (false, (1, false)));
        let change = begin(&mut server);
        assert_eq!(change.open.len(), 1);
        let (changed, ()) = tokio::join!(server.change(change, LONG), complete(&mut changes));
        assert_eq!((changed.is_complete(), shown(&changed)), (true, (0, false)));
        assert!(begin(&mut server).open.is_empty());
    }

    #[tokio::test]
    async fn a_change_that_takes_too_long_is_pending_and_the_next_reload_opens_what_has_failed() {
        let (mut server, mut changes) = server();
        let change = begin(&mut server);
        let changed = server.change(change, Duration::ZERO).await;
        assert_eq!((changed.is_complete(), shown(&changed)), (false, (0, true)));
        let (number, first) = changes.next().await.unwrap();
        changes.report(failed(&first));
        changes.report(Report::Complete(number));
        let change = begin(&mut server);
        assert_eq!(change.open.len(), 1);
        let (changed, ()) = tokio::join!(server.change(change, LONG), complete(&mut changes));
        assert_eq!((changed.is_complete(), shown(&changed)), (true, (0, false)));
    }

    #[tokio::test]
    async fn a_late_failure_does_not_concern_a_newer_listener_with_the_same_address() {
        let (mut server, mut changes) = server();
        let change = begin(&mut server);
        let address = change.open[0].address;
        server.change(change, Duration::ZERO).await;
        let (_, first) = changes.next().await.unwrap();
        // The listener is removed and comes again, while the first change is still under way.
        let removed = begin_with(&mut server, &[]);
        server.change(removed, Duration::ZERO).await;
        let report = failed(&first);
        drop(first);
        let again = begin_with(&mut server, &[address]);
        assert_eq!(again.open.len(), 1);
        server.change(again, Duration::ZERO).await;
        changes.report(report);
        assert!(begin_with(&mut server, &[address]).open.is_empty());
    }

    #[tokio::test]
    async fn a_server_that_has_ended_completes_no_change() {
        let (mut server, changes) = server();
        let change = begin(&mut server);
        drop(changes);
        let changed = server.change(change, LONG).await;
        assert_eq!((changed.is_complete(), changed.has_ended, shown(&changed)), (false, true, (0, true)));
    }

    #[test]
    fn the_start_fails_with_the_first_listener_that_cannot_be_opened_and_if_the_server_has_ended() {
        let start = |serve: fn(u64, &ListenerChange, &http::Changes)| {
            let (handle, mut changes) = http::changes();
            let NewServiceListeners { listeners, change, .. } = ServiceListeners::new(Service::Http, Arc::default())
                .preview(&one(), false, &Neighbours::default())
                .unwrap();
            let thread = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                let (number, change) = runtime.block_on(changes.next()).unwrap();
                serve(number, &change, &changes);
            });
            let result = ServiceThread::start(listeners, change, handle);
            thread.join().unwrap();
            result
        };
        assert!(start(|number, _, changes| changes.report(Report::Complete(number))).is_ok());
        let failing = start(|_, change, changes| changes.report(failed(change)));
        assert!(matches!(failing, Err(StartError::Service { .. })), "{failing:?}");
        let ended = start(|_, _, _| {});
        assert!(matches!(ended, Err(StartError::ServiceEnded(_))), "{ended:?}");
    }
}
