//! The thread of the fronts, and what it reads of the configuration.

use std::cell::Cell;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::service_listeners::{NewServiceListeners, ServiceChanged, ServiceListeners, ServiceThread};
use super::start::{StartError, WorkerControl, visitors};
use crate::config::{Config, WithoutName};
use crate::front::{self, Front, Handler, Rules, Settings, Statistics};
use crate::http::{self, HandedOver};
use crate::net::limits::SpareFiles;
use crate::net::tls::Challenges;
use crate::privacy::Privacy;
use crate::proxy_protocol::Addresses;

/// The fronts of a running server. Dropping it ends their connections.
#[derive(Debug)]
pub(super) struct Fronts {
    pub(super) service: ServiceThread,
    settings: watch::Sender<Arc<Settings>>,
    _thread: Thread,
}

/// What the thread of the fronts is started with.
pub(super) struct Inputs<'a> {
    pub(super) config: &'a Config,
    pub(super) listeners: NewServiceListeners,
    pub(super) workers: Vec<WorkerControl>,
    /// Take connections for the HTTP server: without TLS, and with it.
    pub(super) http: [mpsc::Sender<HandedOver>; 2],
    pub(super) statistics: Arc<Statistics>,
    pub(super) spare: SpareFiles,
    /// The limit of open files.
    pub(super) open_files: u64,
    pub(super) privacy: Arc<Privacy>,
}

impl Fronts {
    /// Starts the thread, and waits until the first listeners are open. Must be called outside of a runtime.
    ///
    /// # Errors
    /// If a listener cannot be opened, or the thread cannot be created.
    pub(super) fn start(inputs: Inputs<'_>) -> Result<Self, StartError> {
        let Inputs { config, listeners, workers, http, statistics, spare, open_files, privacy } = inputs;
        let NewServiceListeners { listeners, change, difference } = listeners;
        let settings = watch::Sender::new(Arc::new(settings(config, &listeners, open_files, privacy)));
        let (handle, changes) = http::changes();
        let (stop, stopped) = watch::channel(false);
        let plan = front::Plan { changes, settings: settings.subscribe(), statistics, spare, stop: stopped };
        let handles = workers.into_iter().map(|worker| worker.handle).collect();
        let destinations = move || Destinations { workers: handles, next: Cell::new(0), http };
        let thread = front::start(plan, destinations).map_err(StartError::Worker)?;
        let thread = Thread { stop, thread: Some(thread) };
        let service = ServiceThread::start(listeners, change, handle)?;
        difference.log(&service.listeners);
        Ok(Self { service, settings, _thread: thread })
    }

    /// Recognizes these challenges of an authority, and no others.
    pub(super) fn use_challenges(&self, challenges: &Arc<Challenges>) {
        let settings = Settings { challenges: Arc::clone(challenges), ..(**self.settings.borrow()).clone() };
        self.settings.send_replace(Arc::new(settings));
    }

    /// Uses another configuration for new connections, with these listeners.
    pub(super) fn configure(
        &mut self,
        config: &Config,
        listeners: ServiceListeners,
        open_files: u64,
        privacy: Arc<Privacy>,
    ) {
        self.service.listeners = listeners;
        let challenges = Arc::clone(&self.settings.borrow().challenges);
        let settings = settings(config, &self.service.listeners, open_files, privacy);
        self.settings.send_replace(Arc::new(Settings { challenges, ..settings }));
    }

    /// Changes the listeners, and waits until that is complete, but not longer than `time`.
    pub(super) async fn change(&mut self, change: http::ListenerChange, time: Duration) -> ServiceChanged {
        self.service.change(change, time).await
    }
}

/// `open_files` is the limit of open files.
fn settings(config: &Config, listeners: &ServiceListeners, open_files: u64, privacy: Arc<Privacy>) -> Settings {
    let front = |front: &crate::config::Front| {
        let rules = Rules::new(&front.names, front.without_name == WithoutName::Relay, front.http);
        Some(Arc::new(Front {
            address: listeners.actual(front.listen)?,
            rules,
            site: front.web.clone(),
            proxy_protocol: front.proxy_protocol,
            connections: usize::try_from(visitors(config, front, open_files)).unwrap_or(usize::MAX),
            idle: front.idle,
        }))
    };
    let fronts = config.fronts.iter().filter_map(front).collect();
    let (proxies, first_bytes) = (config.proxies.clone(), config.timeouts.tls_handshake);
    Settings { fronts, proxies, challenges: Arc::default(), first_bytes, privacy }
}

/// Where connections go that are not for the web site.
struct Destinations {
    workers: Vec<crate::worker::Handle>,
    /// The worker that gets the next connection.
    next: Cell<usize>,
    http: [mpsc::Sender<HandedOver>; 2],
}

impl Handler for Destinations {
    async fn relay(&self, connection: TcpStream, addresses: Addresses) {
        let next = self.next.replace(self.next.get().wrapping_add(1));
        if let Some(worker) = self.workers.get(next % self.workers.len().max(1)) {
            worker.adopt(connection, addresses).await;
        }
    }

    async fn http(&self, connection: TcpStream, client: SocketAddr, is_encrypted: bool) {
        let [plain, encrypted] = &self.http;
        // The server closes it if it has ended.
        let _ = if is_encrypted { encrypted } else { plain }.send((connection, client)).await;
    }
}

/// The thread. Dropping it stops and joins it.
#[derive(Debug)]
struct Thread {
    stop: watch::Sender<bool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        // This fails only if the thread has ended already.
        let _ = self.stop.send(true);
        // A panic of this thread has been logged.
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}
