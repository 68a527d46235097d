//! The start, the signals and the stop of the process.

mod account;
mod acme;
mod addresses;
mod alternate;
mod api;
mod commands;
mod events;
mod failed;
mod fleet;
mod follow;
mod front;
mod life;
mod listeners;
mod log_interval;
pub mod logging;
#[cfg(feature = "offload")]
mod offload;
#[cfg(not(feature = "offload"))]
#[path = "no_offload.rs"]
mod offload;
mod outbound;
mod passed;
mod random;
mod redis;
mod relay_tables;
mod reload;
mod remaining;
mod service;
mod service_listeners;
mod signals;
mod snapshot;
mod spool;
mod start;
mod state_directory;
mod text_fields;
mod tls;
mod urls;
mod webhook;

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::thread;

use tokio::sync::{mpsc, watch};

use crate::auth::{Secret, time_limited};
use crate::clock::{self, Clock};
use crate::config::Config;
use crate::http;
use crate::net::limits::SpareFiles;
use crate::net::tls::Certificate;
use crate::net::{limits, udp};
use crate::setting::{AUTH_SECRETS, STATIC_USER_ALLOCATIONS};
use crate::transport::Endpoint;
use crate::turn::Outcome;
use crate::worker::{self, ListenerSocket, Totals};
use acme::Acme;
use events::Events;
use failed::FailedListeners;
use fleet::Fleet;
use front::Fronts;
use life::RunningServer;
use redis::Redis;
use service::Service;
use service_listeners::{NewServiceListeners, ServiceListeners, ServiceThread};
use signals::Signals;

pub use crate::net::passed::PassedSockets;
pub use account::{may_write, unreadable_files};
pub(crate) use acme::ordered_certificate_fits;
pub use addresses::{AddressError, Choice, RelayAddress};
#[cfg(any(test, feature = "fuzzing"))]
pub use api::fuzzing::http;
pub(crate) use fleet::{Found as FoundInFleet, check as check_fleet};
pub use listeners::ListenError;
pub(crate) use redis::{Found as FoundInRedis, check as check_redis, check_status as check_redis_status};
pub use reload::Source;
pub(crate) use start::worker_count;
pub use start::{StartError, check_alternate, choose_addresses, denied_own_addresses, missing_listeners};
pub use tls::{CheckedCertificate, TlsError, check as check_tls};
pub use urls::client_urls;

type WorkerThread = thread::JoinHandle<io::Result<()>>;

/// The lifetime in seconds of the credential that is printed if no secret is configured.
const PRINTED_LIFETIME: u64 = 24 * 3600;

/// The most connections from fronts that wait for the HTTP server.
const HANDED_OVER: usize = 16;

/// The most requests of the fleet that wait for the HTTP server.
const INTERNAL: usize = 16;

/// The most names of users that wait for the thread of the fleet.
const ACTIVE_USERS: usize = 4_096;

/// Why the server did not run or did not stop normally.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The server did not start.
    #[error("{0}")]
    Start(#[from] StartError),
    /// The signal handlers could not be installed.
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
    /// A worker ended before the server stopped. This is a bug; the log has the message.
    #[error(
        "worker {0} stopped unexpectedly, so the server stopped. This is a bug; please report the preceding log lines"
    )]
    WorkerEnded(usize),
}

/// Prepares the memory of the process. Must be called before the log and the server start, because they start threads.
pub fn prepare_memory() {
    limits::save_address_space();
}

/// Runs the server until SIGINT, or until the drain that SIGTERM or SIGUSR1 starts has ended. `log` is the running log
/// of this process. A reload reads the configuration from `source` again.
///
/// # Errors
/// If it cannot start, or a worker fails.
pub fn run(config: Config, source: &Source, log: &logging::Logging) -> Result<(), RunError> {
    run_with_sockets(config, source, log, PassedSockets::default())
}

/// Like [`run`], with sockets that the service manager has passed. A listener whose address one of them has uses it.
///
/// # Errors
/// As [`run`].
pub fn run_with_sockets(
    config: Config,
    source: &Source,
    log: &logging::Logging,
    passed: PassedSockets,
) -> Result<(), RunError> {
    let config = Arc::new(config);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Signals)?;
    // A signal during the start is handled after it. Without a handler, it would end the process without a log line.
    let mut signals = {
        let _entered = runtime.enter();
        Signals::install().map_err(RunError::Signals)?
    };
    let shown = source.path.as_ref().map_or_else(|| "built-in defaults".to_owned(), |path| path.display().to_string());
    tracing::info!(event = "starting", version = env!("CARGO_PKG_VERSION"), configuration = shown, "starting");
    for warning in &config.warnings {
        tracing::warn!(event = "configuration-warning", "{warning}");
    }
    let (mut workers, stopped) = WorkerThreads::new();
    let clock = Clock::start();
    let prepared = {
        let _entered = runtime.enter();
        start::prepare(&config, clock, &stopped, passed)?
    };
    announce(&prepared);
    if let Some(message) = users_without_limit(&config) {
        tracing::info!(event = "users-without-limit", "{message}");
    }

    let boot = boot().map_err(StartError::Random)?;
    let (active_users, users) = mpsc::channel(ACTIVE_USERS);
    let webhook = Arc::<webhook::Statistics>::default();
    let stream = Arc::<fleet::stream::Statistics>::default();
    let status = Arc::<redis::status::Statistics>::default();
    let inputs = events::Inputs {
        readers: prepared.feeds,
        workers: prepared.controls.clone(),
        users: active_users,
        quota: Arc::clone(&prepared.ledger.quota),
        webhook: Arc::clone(&webhook),
        stream: Arc::clone(&stream),
        status: Arc::clone(&status),
    };
    let mut accounting = Events::new(inputs, format!("{boot:016x}"));
    accounting.configure(&config);
    let (sender, mut events) = mpsc::channel(2 * prepared.plans.len().max(1));
    for (index, plan) in prepared.plans.into_iter().enumerate() {
        let (started, reporter) = (sender.clone(), EndReporter { index, sender: sender.clone() });
        let work = move || {
            let _reporter = reporter;
            // The channel has space for two events of each worker.
            worker::run(plan, move || drop(started.try_send(WorkerEvent::Started)))
        };
        let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(work);
        workers.threads.push(thread.map_err(StartError::Worker)?);
    }
    let mut ended_early = None;
    for _ in 0..workers.threads.len() {
        match events.blocking_recv() {
            Some(WorkerEvent::Started) => {}
            Some(WorkerEvent::Ended(index)) => ended_early = Some(index),
            None => break,
        }
    }
    if ended_early.is_some() {
        return Err(failed_to_start(workers));
    }
    let started = clock::unix_seconds();
    let endpoints = prepared.listeners.endpoints();
    let fronts = &prepared.fronts.listeners;
    let mut entry = BrowserEntry::new(&config, endpoints, fronts, prepared.inputs.generated_secret.clone(), log);
    let certificate = prepared.certificates.as_ref().and_then(tls::Certificates::current);
    let published = api::Published {
        snapshot: Arc::clone(&prepared.snapshot),
        certificates: prepared.certificates.as_ref().map(tls::Certificates::published).unwrap_or_default(),
        log_level: config.log.level,
        reload: api::Reload::at_start(started),
        secret: prepared.inputs.minting_secret(&config).cloned(),
        test_links: prepared.inputs.test_links.clone(),
        pages: urls::pages(&config, &prepared.http.listeners.addresses(), prepared.addresses.choice(), certificate),
        urls: entry.urls(prepared.addresses.choice(), certificate),
        keys: config.http.keys.clone(),
        access: api::Access::new(&config.http),
    };
    let (published, publications) = watch::channel(published);
    let (commands, requests) = commands::commands();
    let mut acme = Acme::new();
    let (internal, of_fleet) = mpsc::channel(INTERNAL);
    let inputs = fleet::Inputs {
        workers: prepared.controls.clone(),
        ledger: Arc::clone(&prepared.ledger),
        published: publications.clone(),
        commands: commands.clone(),
        internal,
        users: users.into(),
        clock,
        boot,
    };
    let mut fleet = Fleet::new(inputs, stream);
    let redis_statistics = Arc::default();
    let handles = prepared.controls.iter().map(|worker| worker.handle.clone()).collect();
    let mut redis = Redis::new(prepared.lookups, handles, Arc::clone(&redis_statistics));
    let api = api::Inputs {
        acme: acme.published(),
        redis: redis_statistics,
        workers: prepared.controls.clone(),
        ledger: Arc::clone(&prepared.ledger),
        published: publications,
        clock,
        started,
        commands,
        offload: Arc::clone(&prepared.offload),
        front: Arc::default(),
        fleet: fleet.handle(),
        webhook,
        status,
    };
    let front_statistics = Arc::clone(&api.front);
    let (http_handle, changes) = http::changes();
    let control_socket = prepared.control_socket.map(http::Listener::Unix);
    let [(plain, of_plain), (encrypted, of_encrypted)] = [(); 2].map(|()| mpsc::channel(HANDED_OVER));
    let http_thread = HttpThread::start(
        control_socket,
        (changes, [of_plain, of_encrypted]),
        of_fleet,
        api,
        prepared.spare.control.clone(),
    )?;
    let NewServiceListeners { listeners, change, difference } = prepared.http;
    let http = ServiceThread::start(listeners, change, http_handle)?;
    difference.log(&http.listeners);
    let fronts = Fronts::start(front::Inputs {
        config: &config,
        listeners: prepared.fronts,
        workers: prepared.controls.clone(),
        http: [plain, encrypted],
        statistics: front_statistics,
        spare: prepared.spare.all.clone(),
        open_files: start::open_files(),
        privacy: Arc::clone(&prepared.snapshot.privacy),
    })?;
    entry.print(prepared.addresses.choice(), certificate);
    acme.configure(&config);
    fleet.configure(&config);
    redis.configure(&config);
    tracing::info!(event = "ready", workers = workers.threads.len(), "ready");

    let server = RunningServer {
        source,
        config,
        listeners: prepared.listeners,
        http,
        fronts,
        failed: FailedListeners::new(prepared.controls.len()),
        inputs: prepared.inputs,
        spare: prepared.spare,
        requests,
        log,
        addresses: prepared.addresses,
        entry,
        ledger: &prepared.ledger,
        workers: &prepared.controls,
        accounting: &mut accounting,
        fleet: &mut fleet,
        published,
        certificates: prepared.certificates,
        acme,
        redis,
        service: Service::from_environment(),
        offload: &prepared.offload,
        stalled: Vec::new(),
    };
    let ended_early = runtime.block_on(server.run(&mut signals, &mut events));
    fleet.finish();
    let mut failed = ended_early;
    for (index, result) in workers.stop().into_iter().enumerate() {
        match result {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(event = "worker-failed", worker = index, %error, "worker failed");
                failed = Some(index);
            }
            Err(_) => failed = Some(index),
        }
    }
    accounting.finish();
    // Until here, the operator gets the response to the command that has stopped the server.
    drop(http_thread);
    let mut totals = Totals::default();
    prepared.controls.iter().for_each(|worker| totals.add(&worker.statistics.read()));
    log_totals(&totals, clock);
    failed.map_or(Ok(()), |index| Err(RunError::WorkerEnded(index)))
}

/// The threads of the workers. Dropping it stops them, so that no error of the start leaves clients that are served.
#[derive(Debug)]
struct WorkerThreads {
    stop: watch::Sender<bool>,
    threads: Vec<WorkerThread>,
}

impl WorkerThreads {
    /// Also returns what tells the workers that they have to stop.
    fn new() -> (Self, watch::Receiver<bool>) {
        let (stop, stopped) = watch::channel(false);
        (Self { stop, threads: Vec::new() }, stopped)
    }

    /// Stops the workers, and returns their results, or that they panicked.
    fn stop(&mut self) -> Vec<thread::Result<io::Result<()>>> {
        // This fails only if every worker has ended already.
        let _ = self.stop.send(true);
        self.threads.drain(..).map(WorkerThread::join).collect()
    }
}

impl Drop for WorkerThreads {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The thread of the HTTP server. Dropping it stops the server, which removes the file of the control socket.
#[derive(Debug)]
struct HttpThread {
    stop: watch::Sender<bool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl HttpThread {
    /// Starts the HTTP server. `changes` opens and closes its TCP listeners, and fronts give it connections.
    fn start(
        control_socket: Option<http::Listener>,
        (changes, handed_over): (http::Changes, [mpsc::Receiver<http::HandedOver>; 2]),
        internal: mpsc::Receiver<http::InternalRequest>,
        api: api::Inputs,
        spare: SpareFiles,
    ) -> Result<Self, StartError> {
        let (stop, stopped) = watch::channel(false);
        let published = api.published.clone();
        let certificate = move || published.borrow().snapshot.tls.clone();
        let certificate = Box::new(certificate);
        let plan = http::Plan { control_socket, handed_over, internal, changes, certificate, spare, stop: stopped };
        let thread = http::start(plan, move || api::Api::new(api)).map_err(StartError::Worker)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for HttpThread {
    fn drop(&mut self) {
        // This fails only if the server has ended already.
        let _ = self.stop.send(true);
        // A panic of this thread has been logged.
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

/// Returns an identifier of this run of the process.
fn boot() -> Result<u64, getrandom::Error> {
    let mut bytes = [0; 8];
    getrandom::getrandom(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Describes the static users without a limit on their allocations, if such limits are wanted.
fn users_without_limit(config: &Config) -> Option<String> {
    let count = config.auth.users.iter().filter(|user| user.allocations == 0).count();
    (count > 0 && config.limits.allocations_per_user != 0).then(|| {
        format!(
            "static users without `{STATIC_USER_ALLOCATIONS}` ({count}): no limit on their allocations; set the key to \
             limit them"
        )
    })
}

/// An event that the thread of a worker reports.
enum WorkerEvent {
    Started,
    Ended(usize),
}

/// Reports the end of a worker's thread on drop, also after a panic.
struct EndReporter {
    index: usize,
    sender: mpsc::Sender<WorkerEvent>,
}

impl Drop for EndReporter {
    fn drop(&mut self) {
        // The channel has space for it. After the server has stopped there is no receiver.
        let _ = self.sender.try_send(WorkerEvent::Ended(self.index));
    }
}

/// Stops the workers that started, and returns the error of the one that did not.
fn failed_to_start(mut workers: WorkerThreads) -> RunError {
    let results =
        workers.stop().into_iter().map(|result| result.unwrap_or_else(|_| Err(io::Error::other("it panicked"))));
    let error = results.filter_map(Result::err).next_back();
    StartError::Worker(error.unwrap_or_else(|| io::Error::other("it ended at once"))).into()
}

fn announce(prepared: &start::Prepared) {
    for Endpoint { transport, address } in prepared.listeners.endpoints() {
        tracing::info!(event = "listening", transport = transport.as_str(), %address, "listening");
    }
    prepared.addresses.choice().addresses.iter().for_each(follow::log_relay);
    for warning in prepared.addresses.warnings() {
        tracing::warn!(event = "address-warning", "{warning}");
    }
    let listeners = prepared.plans.iter().flat_map(|plan| &plan.listeners);
    let mut sizes = listeners.filter_map(|listener| match &listener.socket {
        ListenerSocket::Udp(socket) => udp::buffer_sizes(socket).ok(),
        ListenerSocket::Tcp(_) => None,
    });
    if let Some(advice) = sizes.find_map(buffer_advice) {
        tracing::info!(event = "udp-buffer-limited", "{advice}");
    }
}

/// Returns advice if the buffers of a UDP listener are smaller than requested.
fn buffer_advice(sizes: udp::BufferSizes) -> Option<String> {
    let wanted = udp::LISTENER_BUFFER;
    let limits = [("rmem_max", sizes.receive), ("wmem_max", sizes.send)];
    let too_small = || limits.iter().filter(|(_, size)| *size < wanted);
    let least = too_small().map(|(_, size)| size / 1024).min()?;
    let commands: String = too_small().map(|(limit, _)| format!(" net.core.{limit}={wanted}")).collect();
    Some(format!(
        "the system limits the buffer of a UDP listener to {least} KiB instead of {} KiB, so bursts of packets may be \
         dropped. To raise the limit, run: sysctl{commands}",
        wanted / 1024
    ))
}

/// Prints an `iceServers` entry for `new RTCPeerConnection` with a credential of the generated secret, and again when
/// its URIs have changed.
#[derive(Debug)]
struct BrowserEntry<'a> {
    config: Arc<Config>,
    endpoints: Vec<Endpoint>,
    /// The URIs of the fronts.
    fronts: Vec<String>,
    /// `None` if secrets are configured. Then nothing is printed.
    secret: Option<Secret>,
    printed: Option<Vec<String>>,
    log: &'a logging::Logging,
}

impl<'a> BrowserEntry<'a> {
    fn new(
        config: &Arc<Config>,
        endpoints: &[Endpoint],
        fronts: &ServiceListeners,
        secret: Option<Secret>,
        log: &'a logging::Logging,
    ) -> Self {
        let fronts = config.front_urls(|front| fronts.actual(front));
        Self { config: Arc::clone(config), endpoints: endpoints.to_vec(), fronts, secret, printed: None, log }
    }

    fn reconfigure(
        &mut self,
        config: &Arc<Config>,
        endpoints: &[Endpoint],
        fronts: &ServiceListeners,
        secret: Option<Secret>,
    ) {
        let printed = self.printed.take().filter(|_| secret == self.secret);
        *self = Self { printed, ..Self::new(config, endpoints, fronts, secret, self.log) };
    }

    /// Returns the URIs of the listeners; none if no relay address is there.
    fn urls(&self, choice: &Choice, certificate: Option<&Certificate>) -> Vec<String> {
        if choice.addresses.is_empty() {
            return Vec::new();
        }
        // A server that still orders its certificate has no TLS.
        let has_tls = |endpoint: &&Endpoint| certificate.is_some() || !endpoint.transport.is_encrypted();
        let endpoints: Vec<Endpoint> = self.endpoints.iter().filter(has_tls).copied().collect();
        let mut urls = urls::urls(&self.config, &endpoints, choice, certificate);
        let of_fronts = self.fronts.iter().filter(|url| certificate.is_some() && !urls.contains(url));
        urls.extend(of_fronts.cloned().collect::<Vec<_>>());
        urls
    }

    fn print(&mut self, choice: &Choice, certificate: Option<&Certificate>) {
        let Some(secret) = &self.secret else { return };
        let urls = self.urls(choice, certificate);
        if self.printed.as_ref() == Some(&urls) || choice.addresses.is_empty() {
            return;
        }
        let credential = time_limited::mint(secret, Some("try"), clock::unix_seconds() + PRINTED_LIFETIME);
        print_entry(&credential.ice_servers(&urls), self.printed.is_some(), self.log);
        self.printed = Some(urls);
    }
}

/// Prints an `iceServers` entry as one line on standard output, after its explanation. On a terminal, the explanation
/// is next to the entry, and both are separate from the log.
fn print_entry(entry: &str, again: bool, log: &logging::Logging) {
    let mut stdout = io::stdout().lock();
    let text = if again {
        tracing::info!(
            event = "ice-servers-printed",
            "the addresses have changed, so the new line on standard output replaces the earlier one"
        );
        format!("{entry}\n")
    } else if stdout.is_terminal() {
        // The log is written by another thread.
        log.flush();
        let mut text = explanation("Pass the next line").join(".\n");
        if let Some(first) = text.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        format!("\n{text}.\n\n{entry}\n\n")
    } else {
        let text = explanation("Pass the line on standard output").join(". ");
        tracing::info!(event = "ice-servers-printed", "{text}");
        format!("{entry}\n")
    };
    if let Err(error) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        tracing::warn!(event = "ice-servers-not-printed", %error, "cannot print the iceServers entry");
    }
}

/// Returns the sentences that explain the entry. `pass` begins the one that says what to do with it.
fn explanation(pass: &str) -> [String; 4] {
    [
        "no secret is configured, so the server created one for this run".to_owned(),
        format!("{pass} to new RTCPeerConnection(…)"),
        "Its credential expires after 24 h, or earlier if the server stops; limits on the allocations of a user do not \
         apply to it"
            .to_owned(),
        format!(
            "For permanent credentials, set {AUTH_SECRETS} to the output of `openssl rand -hex 32` and use \
             `turn-credential mint`"
        ),
    ]
}

fn log_totals(totals: &Totals, clock: Clock) {
    let sum = |which: fn(Outcome) -> bool| -> u64 {
        totals.packets.occurred().filter(|(outcome, _)| which(*outcome)).map(|(_, count)| count).sum()
    };
    let outcomes: Vec<String> =
        totals.packets.occurred().map(|(outcome, count)| format!("{outcome}: {count}")).collect();
    let connections: Vec<String> =
        totals.connections.occurred().map(|(name, count)| format!("{name}: {count}")).collect();
    tracing::info!(
        event = "stopped",
        uptime = clock.elapsed().as_secs(),
        relayed = sum(|outcome| matches!(outcome, Outcome::RelayedToPeer | Outcome::RelayedToClient)),
        answered = sum(|outcome| matches!(outcome, Outcome::Answered(_))),
        rejected = sum(|outcome| matches!(outcome, Outcome::Rejected(_) | Outcome::RejectedByLimit(_))),
        dropped = sum(|outcome| matches!(outcome, Outcome::Dropped(_))),
        outcomes = outcomes.join(", "),
        connection_ends = connections.join(", "),
        "stopped"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_stop_when_their_threads_are_dropped() {
        let (mut workers, stopped) = WorkerThreads::new();
        let (sender, ended) = std::sync::mpsc::channel();
        for worker in 0..2 {
            let (mut stopped, sender) = (stopped.clone(), sender.clone());
            workers.threads.push(thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build()?;
                let result = runtime.block_on(stopped.wait_for(|stop| *stop)).map(drop).map_err(io::Error::other);
                sender.send((worker, result.is_ok())).map_err(io::Error::other)
            }));
        }
        drop(workers);
        let mut ended: Vec<_> = ended.try_iter().collect();
        ended.sort_unstable();
        assert_eq!(ended, [(0, true), (1, true)]);
    }

    #[test]
    fn small_listener_buffers_cause_advice() {
        let sizes = |receive, send| udp::BufferSizes { receive, send };
        let advice = buffer_advice(sizes(212_992, udp::LISTENER_BUFFER)).unwrap();
        assert!(advice.contains("208 KiB instead of 4096 KiB"), "{advice}");
        assert!(advice.ends_with("sysctl net.core.rmem_max=4194304"), "{advice}");
        let advice = buffer_advice(sizes(212_992, 100 << 10)).unwrap();
        assert!(advice.contains(" 100 KiB "), "{advice}");
        assert!(advice.ends_with("sysctl net.core.rmem_max=4194304 net.core.wmem_max=4194304"), "{advice}");
        assert_eq!(buffer_advice(sizes(udp::LISTENER_BUFFER, udp::LISTENER_BUFFER)), None);
    }

    #[test]
    fn only_static_users_without_a_limit_are_reported_and_only_if_limits_are_wanted() {
        let limited = |allocations_per_user: u32, allocations: &[u32]| {
            let mut text =
                "realm = \"example.org\"\n[auth]\nsecrets = [\"0123456789abcdef0123456789abcdef\"]\n".to_owned();
            for (number, allocations) in allocations.iter().enumerate() {
                text += &format!(
                    "[[auth.users]]\nname = \"u{number}\"\npassword = \"password\"\nallocations = {allocations}\n"
                );
            }
            text += &format!("[limits]\nallocations-per-user = {allocations_per_user}\n");
            users_without_limit(&Config::parse(&text, "turnserver.toml").unwrap())
        };
        assert_eq!((limited(32, &[]), limited(32, &[5]), limited(0, &[0])), (None, None, None));
        let expected = "static users without `auth.users.allocations` (2): no limit on their allocations; set the key to \
                        limit them";
        assert_eq!(limited(32, &[0, 5, 0]).as_deref(), Some(expected));
    }

    #[test]
    fn the_log_and_a_terminal_have_the_same_explanation_of_the_printed_entry() {
        let [log, terminal] = ["Pass the line on standard output", "Pass the next line"].map(explanation);
        assert!(log[2].ends_with("limits on the allocations of a user do not apply to it"), "{log:?}");
        assert_eq!([&log[0], &log[2], &log[3]], [&terminal[0], &terminal[2], &terminal[3]]);
    }
}
