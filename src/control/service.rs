//! What the service manager is told (`sd_notify(3)`): that clients can be served, how it goes, and that it ends.
//!
//! Without `NOTIFY_SOCKET` in the environment nothing is told to anybody.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long a service manager that does not read may hold us up.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a worker's loop may stand still before it counts as stalled: a heartbeat may be late on a busy machine.
const STALL: Duration = Duration::from_secs(4);

/// The service manager that started the process, if one did that wants to be told.
#[derive(Debug, Default)]
pub(super) struct Service {
    socket: Option<UnixDatagram>,
    /// How often it wants a sign of life at the least.
    watchdog: Option<Duration>,
    /// What it was told last.
    status: String,
}

impl Service {
    /// As the environment says.
    pub(super) fn from_environment() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET") else { return Self::default() };
        let socket = match connect(&name) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(socket = %name.display(), %error, "the service manager cannot be told (NOTIFY_SOCKET)");
                None
            }
        };
        let watchdog = watchdog(env::var_os("WATCHDOG_USEC"), env::var_os("WATCHDOG_PID"), std::process::id());
        Self { watchdog: watchdog.filter(|_| socket.is_some()), socket, status: String::new() }
    }

    /// Whether anybody is told anything.
    pub(super) fn listens(&self) -> bool {
        self.socket.is_some()
    }

    /// How often to look after the workers and give a sign of life: twice as often as it is wanted.
    pub(super) fn watchdog_period(&self) -> Option<Duration> {
        self.watchdog.map(|wanted| wanted / 2)
    }

    /// Clients can be served, or the configuration is read again.
    pub(super) fn ready(&self) {
        self.tell("READY=1\n");
    }

    /// The configuration is being read again, since `monotonic` of the system's clock.
    pub(super) fn reloading(&self, monotonic: Duration) {
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}\n", monotonic.as_micros()));
    }

    /// The process ends, and that takes `at_most` from here on.
    ///
    /// The service manager counts its own timeout from here, so that it is not for a drain without an end.
    pub(super) fn stopping(&self, at_most: Duration) {
        self.tell(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}\n", at_most.as_micros()));
    }

    /// What the server does, in a few words; told only if it is another thing than before.
    pub(super) fn status(&mut self, status: String) {
        if self.status != status {
            self.tell(&format!("STATUS={status}\n"));
            self.status = status;
        }
    }

    /// A sign of life.
    pub(super) fn alive(&self) {
        self.tell("WATCHDOG=1\n");
    }

    fn tell(&self, message: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(message.as_bytes()) {
            tracing::warn!(%error, "the service manager could not be told");
        }
    }
}

/// A socket whose datagrams go to `name`: a path, or behind `@` a name of the abstract namespace.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "neither a path nor an abstract socket")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// The longest silence that the service manager puts up with, if its watchdog is for this process.
fn watchdog(micros: Option<OsString>, pid: Option<OsString>, own: u32) -> Option<Duration> {
    let number = |text: OsString| text.to_str()?.parse::<u64>().ok();
    let for_us = pid.is_none_or(|pid| number(pid) == Some(own.into()));
    micros.and_then(number).filter(|micros| *micros > 0 && for_us).map(Duration::from_micros)
}

/// Looks whether the loop of every worker turns.
#[derive(Debug)]
pub(super) struct Pulse {
    workers: Vec<Worker>,
    /// How many looks in a row may find a worker's count unchanged.
    patience: u32,
}

#[derive(Debug)]
struct Worker {
    heartbeat: Arc<AtomicU64>,
    seen: u64,
    unchanged: u32,
}

impl Pulse {
    /// For one look each `period`.
    pub(super) fn new(heartbeats: &[Arc<AtomicU64>], period: Duration) -> Self {
        let worker = |heartbeat: &Arc<AtomicU64>| Worker {
            heartbeat: Arc::clone(heartbeat),
            seen: heartbeat.load(Ordering::Relaxed),
            unchanged: 0,
        };
        let patience = STALL.as_micros().div_ceil(period.as_micros().max(1));
        Self { workers: heartbeats.iter().map(worker).collect(), patience: u32::try_from(patience).unwrap_or(u32::MAX) }
    }

    /// One look: the first worker whose loop stands still, if there is one.
    pub(super) fn stalled(&mut self) -> Option<usize> {
        for worker in &mut self.workers {
            let count = worker.heartbeat.load(Ordering::Relaxed);
            worker.unchanged = if count == worker.seen { worker.unchanged.saturating_add(1) } else { 0 };
            worker.seen = count;
        }
        self.workers.iter().position(|worker| worker.unchanged >= self.patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(socket: UnixDatagram) -> Service {
        Service { socket: Some(socket), ..Service::default() }
    }

    fn heard(manager: &UnixDatagram) -> String {
        manager.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut buffer = [0; 512];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn an_abstract_socket_is_told_as_well_as_one_in_the_file_system() {
        let name = format!("turnserver-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        service(connect(OsStr::new(&format!("@{name}"))).unwrap()).ready();
        assert_eq!(heard(&manager), "READY=1\n");
    }

    #[test]
    fn a_socket_of_another_kind_or_that_is_not_there_is_an_error() {
        for name in ["vsock:2:1", "", "relative", "/nobody/listens/here"] {
            assert!(connect(OsStr::new(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn a_status_is_told_when_it_changes() {
        let (ours, manager) = UnixDatagram::pair().unwrap();
        let mut service = service(ours);
        for status in ["1 allocation", "1 allocation", "2 allocations"] {
            service.status(status.to_owned());
        }
        assert_eq!([heard(&manager), heard(&manager)], ["STATUS=1 allocation\n", "STATUS=2 allocations\n"]);
        manager.set_nonblocking(true).unwrap();
        assert!(manager.recv(&mut [0; 64]).is_err());
    }

    #[test]
    fn a_reload_is_dated_and_the_end_has_its_time() {
        let (ours, manager) = UnixDatagram::pair().unwrap();
        let service = service(ours);
        service.reloading(Duration::from_micros(1_234_567));
        assert_eq!(heard(&manager), "RELOADING=1\nMONOTONIC_USEC=1234567\n");
        service.stopping(Duration::from_secs(3));
        assert_eq!(heard(&manager), "STOPPING=1\nEXTEND_TIMEOUT_USEC=3000000\n");
    }

    #[test]
    fn a_service_manager_that_is_gone_or_does_not_read_ends_nothing() {
        let (ours, manager) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut service = service(ours);
        for number in 0..2_000 {
            service.status(number.to_string());
        }
        drop(manager);
        service.ready();
        Service::default().ready();
    }

    #[test]
    fn the_watchdog_of_another_process_is_not_ours() {
        let os = |text: &str| Some(OsString::from(text));
        let thirty = Some(Duration::from_secs(30));
        assert_eq!(watchdog(os("30000000"), None, 7), thirty);
        assert_eq!(watchdog(os("30000000"), os("7"), 7), thirty);
        assert_eq!(watchdog(os("30000000"), os("8"), 7), None);
        for unusable in [None, os("0"), os("soon"), os("-1")] {
            assert_eq!(watchdog(unusable, None, 7), None);
        }
    }

    #[test]
    fn a_worker_whose_loop_stands_still_is_found_and_found_well_again() {
        let heartbeats = [Arc::<AtomicU64>::default(), Arc::default()];
        let beat = |worker: usize| heartbeats[worker].fetch_add(1, Ordering::Relaxed);
        let mut pulse = Pulse::new(&heartbeats, Duration::from_secs(15));
        for _ in 0..3 {
            beat(0);
            beat(1);
            assert_eq!(pulse.stalled(), None);
        }
        beat(0);
        assert_eq!(pulse.stalled(), Some(1));
        beat(0);
        assert_eq!(pulse.stalled(), Some(1));
        beat(0);
        beat(1);
        assert_eq!(pulse.stalled(), None);
    }

    // Looks that come faster than the heart beats say nothing by themselves.
    #[test]
    fn between_two_heartbeats_a_worker_is_not_taken_for_stalled() {
        let heartbeats = [Arc::<AtomicU64>::default()];
        let mut pulse = Pulse::new(&heartbeats, Duration::from_millis(500));
        for look in 1..=8 {
            assert_eq!(pulse.stalled(), (look == 8).then_some(0), "after {look} looks");
        }
    }
}
