//! Notifications to the service manager (`sd_notify(3)`): readiness, status, watchdog pings, reload and stop.
//!
//! Without `NOTIFY_SOCKET` in the environment, nothing is sent.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use crate::worker::Statistics;

/// The send timeout, for a service manager that does not read.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a heartbeat may be unchanged before its worker counts as stalled. A heartbeat may be late on a busy
/// machine.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(4);

/// The interval at which the workers are checked.
pub(super) const WORKER_CHECK: Duration = Duration::from_secs(1);

/// The connection to the service manager, if it wants notifications.
#[derive(Debug, Default)]
pub(super) struct Service {
    socket: Option<UnixDatagram>,
    /// The longest interval between watchdog pings that the service manager tolerates.
    watchdog_timeout: Option<Duration>,
    /// The last status that was sent.
    status: String,
}

impl Service {
    /// Connects to the service manager that the environment names.
    pub(super) fn from_environment() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET") else { return Self::default() };
        let socket = match connect(&name) {
            Ok(socket) => Some(socket),
            Err(error) => {
                let socket = name.display();
                tracing::warn!(
                    event = "service-manager-unreachable", %socket, %error,
                    "cannot connect to the service manager (NOTIFY_SOCKET)"
                );
                None
            }
        };
        let watchdog_timeout =
            watchdog_timeout(env::var_os("WATCHDOG_USEC"), env::var_os("WATCHDOG_PID"), std::process::id());
        Self { watchdog_timeout: watchdog_timeout.filter(|_| socket.is_some()), socket, status: String::new() }
    }

    /// Returns whether notifications are sent.
    pub(super) fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    /// Returns the interval of watchdog pings: half the watchdog timeout.
    pub(super) fn watchdog_period(&self) -> Option<Duration> {
        self.watchdog_timeout.map(|timeout| timeout / 2)
    }

    /// Reports that the server is ready, or that a reload is complete.
    pub(super) fn ready(&self) {
        self.send("READY=1\n");
    }

    /// Reports that a reload started at `monotonic` (`CLOCK_MONOTONIC`).
    pub(super) fn reloading(&self, monotonic: Duration) {
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}\n", monotonic.as_micros()));
    }

    /// Reports that the process stops within `at_most`.
    ///
    /// The service manager starts its stop timeout on this message, so it is not sent for a drain without a deadline.
    pub(super) fn stopping(&self, at_most: Duration) {
        self.send(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}\n", at_most.as_micros()));
    }

    /// Sends the status text if it has changed.
    pub(super) fn status(&mut self, status: String) {
        if self.status != status {
            self.send(&format!("STATUS={status}\n"));
            self.status = status;
        }
    }

    /// Sends a watchdog ping.
    pub(super) fn ping_watchdog(&self) {
        self.send("WATCHDOG=1\n");
    }

    fn send(&self, message: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(message.as_bytes()) {
            tracing::warn!(
                event = "service-manager-unreachable", %error,
                "cannot send a notification to the service manager"
            );
        }
    }
}

/// Connects a datagram socket to `name`: a path, or `@` and a name in the abstract namespace.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "neither a path nor an abstract socket")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    Ok(socket)
}

/// Returns the watchdog timeout if the watchdog applies to this process.
fn watchdog_timeout(micros: Option<OsString>, pid: Option<OsString>, own: u32) -> Option<Duration> {
    let number = |text: OsString| text.to_str()?.parse::<u64>().ok();
    let applies = pid.is_none_or(|pid| number(pid) == Some(own.into()));
    micros.and_then(number).filter(|micros| *micros > 0 && applies).map(Duration::from_micros)
}

/// Detects stalled workers.
#[derive(Debug)]
pub(super) struct Watchdog {
    workers: Vec<Worker>,
    /// The number of consecutive checks with an unchanged heartbeat after which a worker counts as stalled.
    threshold: u32,
}

#[derive(Debug)]
struct Worker {
    statistics: Arc<Statistics>,
    seen: u64,
    unchanged: u32,
}

impl Watchdog {
    /// Creates a watchdog that checks the workers once per `period`.
    pub(super) fn new(workers: impl IntoIterator<Item = Arc<Statistics>>, period: Duration) -> Self {
        let worker = |statistics: Arc<Statistics>| Worker { seen: statistics.heartbeat(), statistics, unchanged: 0 };
        let threshold = STALL_TIMEOUT.as_micros().div_ceil(period.as_micros().max(1));
        Self {
            workers: workers.into_iter().map(worker).collect(),
            threshold: u32::try_from(threshold).unwrap_or(u32::MAX),
        }
    }

    /// Checks all workers and returns those that are stalled.
    pub(super) fn check(&mut self) -> Vec<usize> {
        for worker in &mut self.workers {
            let count = worker.statistics.heartbeat();
            worker.unchanged = if count == worker.seen { worker.unchanged.saturating_add(1) } else { 0 };
            worker.seen = count;
        }
        self.stalled()
    }

    /// Returns the workers that were stalled at the last check and have had no heartbeat since.
    pub(super) fn stalled(&self) -> Vec<usize> {
        let is_stalled =
            |worker: &Worker| worker.unchanged >= self.threshold && worker.statistics.heartbeat() == worker.seen;
        let workers = self.workers.iter().enumerate();
        workers.filter(|(_, worker)| is_stalled(worker)).map(|(index, _)| index).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(socket: UnixDatagram) -> Service {
        Service { socket: Some(socket), ..Service::default() }
    }

    fn received(manager: &UnixDatagram) -> String {
        manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut buffer = [0; 512];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn an_abstract_socket_receives_notifications() {
        let name = format!("turnserver-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        service(connect(OsStr::new(&format!("@{name}"))).unwrap()).ready();
        assert_eq!(received(&manager), "READY=1\n");
    }

    #[test]
    fn an_unsupported_or_missing_socket_is_an_error() {
        for name in ["vsock:2:1", "", "relative", "/missing/socket"] {
            assert!(connect(OsStr::new(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn a_status_is_sent_when_it_changes() {
        let (socket, manager) = UnixDatagram::pair().unwrap();
        let mut service = service(socket);
        for status in ["1 allocation", "1 allocation", "2 allocations"] {
            service.status(status.to_owned());
        }
        assert_eq!([received(&manager), received(&manager)], ["STATUS=1 allocation\n", "STATUS=2 allocations\n"]);
        manager.set_nonblocking(true).unwrap();
        assert!(manager.recv(&mut [0; 64]).is_err());
    }

    #[test]
    fn a_reload_has_a_timestamp_and_a_stop_has_a_timeout() {
        let (socket, manager) = UnixDatagram::pair().unwrap();
        let service = service(socket);
        service.reloading(Duration::from_micros(1_234_567));
        assert_eq!(received(&manager), "RELOADING=1\nMONOTONIC_USEC=1234567\n");
        service.stopping(Duration::from_secs(3));
        assert_eq!(received(&manager), "STOPPING=1\nEXTEND_TIMEOUT_USEC=3000000\n");
    }

    #[test]
    fn an_absent_or_blocked_service_manager_does_not_stop_the_server() {
        let (socket, manager) = UnixDatagram::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut service = service(socket);
        for number in 0..2_000 {
            service.status(number.to_string());
        }
        drop(manager);
        service.ready();
        Service::default().ready();
    }

    #[test]
    fn a_watchdog_for_another_process_is_ignored() {
        let os = |text: &str| Some(OsString::from(text));
        let thirty = Some(Duration::from_secs(30));
        assert_eq!(watchdog_timeout(os("30000000"), None, 7), thirty);
        assert_eq!(watchdog_timeout(os("30000000"), os("7"), 7), thirty);
        assert_eq!(watchdog_timeout(os("30000000"), os("8"), 7), None);
        for unusable in [None, os("0"), os("soon"), os("-1")] {
            assert_eq!(watchdog_timeout(unusable, None, 7), None);
        }
    }

    #[test]
    fn a_stalled_worker_is_detected_until_it_recovers() {
        let workers = [Arc::<Statistics>::default(), Arc::default()];
        let beat = |worker: usize| workers[worker].beat();
        let mut watchdog = Watchdog::new(workers.clone(), Duration::from_secs(15));
        for _ in 0..3 {
            beat(0);
            beat(1);
            assert_eq!(watchdog.check(), [0; 0]);
        }
        beat(0);
        assert_eq!(watchdog.check(), [1]);
        beat(0);
        assert_eq!(watchdog.check(), [1]);
        beat(0);
        beat(1);
        assert_eq!(watchdog.stalled(), [0; 0], "a heartbeat counts before the next check");
        assert_eq!(watchdog.check(), [0; 0]);
    }

    // Checks may be more frequent than heartbeats.
    #[test]
    fn a_worker_between_two_heartbeats_is_not_stalled() {
        let mut watchdog = Watchdog::new([Arc::<Statistics>::default()], Duration::from_millis(500));
        for check in 1..=8 {
            assert_eq!(watchdog.check().len(), usize::from(check == 8), "after {check} checks");
        }
    }
}
