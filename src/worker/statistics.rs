//! The counters and gauges of a worker. Only the worker writes them; other threads read them at any time.

mod cells;

use std::time::Duration;

use super::connections::{CloseReason, ConnectionCounters, ConnectionOutcome};
use super::iterations::Iterations;
use super::offload::{Counts as OffloadCounts, REASONS as OFFLOAD_REASONS};
use crate::transport::Transport;
use crate::turn::{AllocationSummary, AuthCause, Counters, Direction, Gauges, OpenError, Outcome};
pub(crate) use cells::Distribution;
use cells::{Cell, Cells, Histogram, add_all, microseconds};

/// The upper bounds of the buckets for the duration of TLS handshakes, in microseconds.
pub(crate) const HANDSHAKE_BOUNDS: [u64; 11] =
    [1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000];

/// The upper bounds of the buckets for the lifetime of allocations, in microseconds: 1 s to a day.
pub(crate) const LIFETIME_BOUNDS: [u64; 11] = [
    1_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
    7_200_000_000,
    21_600_000_000,
    86_400_000_000,
];

/// The upper bounds of the buckets for the application data of allocations, in bytes. An allocation without data is in
/// the first one.
pub(crate) const SIZE_BOUNDS: [u64; 9] =
    [0, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000, 10_000_000_000];

/// The kind of a socket whose receive buffer can overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketRole {
    Listener,
    Relay,
}

/// The counters and gauges of a worker. They have their own cache lines, so that writing them does not slow down other
/// workers.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Statistics {
    packets: Cells<{ Outcome::COUNT }>,
    bytes: Cells<2>,
    connections: Cells<{ ConnectionOutcome::COUNT }>,
    open_connections: Cells<2>,
    handshakes: Cells<{ HandshakeCounts::COUNT }>,
    handshake_durations: Histogram<{ HANDSHAKE_BOUNDS.len() }>,
    failed_authentications: Cells<{ AuthCause::LABELS.len() }>,
    failed_relay_sockets: Cells<{ OpenError::ALL.len() }>,
    receive_drops: Cells<2>,
    revoked_peers: Cells<2>,
    lifetimes: Histogram<{ LIFETIME_BOUNDS.len() }>,
    sizes: Histogram<{ SIZE_BOUNDS.len() }>,
    allocations: [Cells<3>; 3],
    test_links: Cell,
    permissions: Cell,
    channels: Cell,
    event_loop: EventLoopCells,
    offloaded: Cells<4>,
    offload_entries: Cells<2>,
    offload_without: Cells<{ OFFLOAD_REASONS.len() }>,
    publications: Cell,
}

impl Default for Statistics {
    fn default() -> Self {
        Self {
            packets: Cells::default(),
            bytes: Cells::default(),
            connections: Cells::default(),
            open_connections: Cells::default(),
            handshakes: Cells::default(),
            handshake_durations: Histogram::new(&HANDSHAKE_BOUNDS),
            failed_authentications: Cells::default(),
            failed_relay_sockets: Cells::default(),
            receive_drops: Cells::default(),
            revoked_peers: Cells::default(),
            lifetimes: Histogram::new(&LIFETIME_BOUNDS),
            sizes: Histogram::new(&SIZE_BOUNDS),
            allocations: Default::default(),
            test_links: Cell::default(),
            permissions: Cell::default(),
            channels: Cell::default(),
            event_loop: EventLoopCells::default(),
            offloaded: Cells::default(),
            offload_entries: Cells::default(),
            offload_without: Cells::default(),
            publications: Cell::default(),
        }
    }
}

/// The values of [`Statistics`] at one moment, of one worker or of several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Packets by outcome.
    pub(crate) packets: Counters,
    /// Application data that was sent to peers, in bytes.
    pub(crate) bytes_to_peers: u64,
    /// Application data that was sent to clients, in bytes.
    pub(crate) bytes_to_clients: u64,
    /// Connections by outcome.
    pub(crate) connections: ConnectionCounters,
    /// Open connections without TLS, including those that have sent nothing yet on a listener that accepts both.
    pub(crate) open_tcp: u64,
    /// Open connections with TLS.
    pub(crate) open_tls: u64,
    /// TLS handshakes by result.
    pub(crate) handshakes: HandshakeCounts,
    /// The duration of complete TLS handshakes, in microseconds.
    pub(crate) handshake_durations: Distribution<{ HANDSHAKE_BOUNDS.len() }>,
    /// Failed authentications, in the order of [`AuthCause::LABELS`].
    pub(crate) failed_authentications: [u64; AuthCause::LABELS.len()],
    /// Relay sockets that could not be opened, in the order of [`OpenError::ALL`].
    pub(crate) failed_relay_sockets: [u64; OpenError::ALL.len()],
    /// Datagrams that the kernel dropped at listeners, because the receive buffer was full.
    pub(crate) listener_drops: u64,
    /// The same at relay sockets.
    pub(crate) relay_drops: u64,
    /// Permissions that a new configuration has ended.
    pub(crate) revoked_permissions: u64,
    /// Channels that a new configuration has ended.
    pub(crate) revoked_channels: u64,
    /// The lifetime of allocations that have ended, in microseconds.
    pub(crate) lifetimes: Distribution<{ LIFETIME_BOUNDS.len() }>,
    /// The application data of allocations that have ended, in bytes.
    pub(crate) sizes: Distribution<{ SIZE_BOUNDS.len() }>,
    /// What the workers hold.
    pub(crate) gauges: Gauges,
    /// What the kernel relays.
    pub(crate) offload: OffloadTotals,
}

/// What the kernel relays for workers. Each pair is for the direction to peers and for the direction to clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OffloadTotals {
    /// Packets that the kernel has relayed.
    pub(crate) packets: [u64; 2],
    /// Their application data in bytes.
    pub(crate) bytes: [u64; 2],
    /// Directions of channels that the kernel relays.
    pub(crate) entries: [u64; 2],
    /// Directions of channels that user space relays, in the order of [`OFFLOAD_REASONS`].
    pub(crate) without: [u64; OFFLOAD_REASONS.len()],
}

impl Totals {
    /// Returns the number of open allocations.
    pub(crate) fn allocations(&self) -> u64 {
        self.gauges.allocations.iter().flatten().sum()
    }

    /// Adds the values of another worker.
    pub(crate) fn add(&mut self, other: &Self) {
        self.packets.add(&other.packets);
        self.bytes_to_peers += other.bytes_to_peers;
        self.bytes_to_clients += other.bytes_to_clients;
        self.connections.add(&other.connections);
        self.open_tcp += other.open_tcp;
        self.open_tls += other.open_tls;
        add_all(&mut self.handshakes.0, &other.handshakes.0);
        self.handshake_durations.add(&other.handshake_durations);
        add_all(&mut self.failed_authentications, &other.failed_authentications);
        add_all(&mut self.failed_relay_sockets, &other.failed_relay_sockets);
        self.listener_drops += other.listener_drops;
        self.relay_drops += other.relay_drops;
        self.revoked_permissions += other.revoked_permissions;
        self.revoked_channels += other.revoked_channels;
        self.lifetimes.add(&other.lifetimes);
        self.sizes.add(&other.sizes);
        add_all(self.gauges.allocations.as_flattened_mut(), other.gauges.allocations.as_flattened());
        self.gauges.test_links += other.gauges.test_links;
        self.gauges.permissions += other.gauges.permissions;
        self.gauges.channels += other.gauges.channels;
        let (own, offload) = (&mut self.offload, &other.offload);
        add_all(&mut own.packets, &offload.packets);
        add_all(&mut own.bytes, &offload.bytes);
        add_all(&mut own.entries, &offload.entries);
        add_all(&mut own.without, &offload.without);
    }
}

/// The number of TLS handshakes by result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HandshakeCounts([u64; Self::COUNT]);

impl HandshakeCounts {
    const COUNT: usize = 1 + CloseReason::OF_HANDSHAKES.len();

    /// Returns each result and its count.
    pub(crate) fn results(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let failures = CloseReason::OF_HANDSHAKES.iter().map(|reason| reason.label());
        std::iter::once("complete").chain(failures).zip(self.0)
    }
}

/// What the event loop of a worker has done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct EventLoop {
    /// The time in which it did not wait, since the start.
    pub(crate) busy: Duration,
    /// The part of the last second in which it did not wait, from 0 to 1.
    pub(crate) busy_ratio: f64,
    /// The longest iteration of the last 30 to 60 seconds.
    pub(crate) longest: Duration,
}

/// Durations are in microseconds.
#[derive(Debug, Default)]
struct EventLoopCells {
    busy: Cell,
    busy_per_million: Cell,
    longest: Cell,
}

impl Statistics {
    /// Reads all values. Each is exact, but they may be read at slightly different times.
    #[must_use]
    pub(crate) fn read(&self) -> Totals {
        let [bytes_to_peers, bytes_to_clients] = self.bytes.read();
        let [open_tcp, open_tls] = self.open_connections.read();
        let [listener_drops, relay_drops] = self.receive_drops.read();
        let [revoked_permissions, revoked_channels] = self.revoked_peers.read();
        Totals {
            packets: Counters::from(self.packets.read()),
            bytes_to_peers,
            bytes_to_clients,
            connections: ConnectionCounters::from(self.connections.read()),
            open_tcp,
            open_tls,
            handshakes: HandshakeCounts(self.handshakes.read()),
            handshake_durations: self.handshake_durations.read(),
            failed_authentications: self.failed_authentications.read(),
            failed_relay_sockets: self.failed_relay_sockets.read(),
            listener_drops,
            relay_drops,
            revoked_permissions,
            revoked_channels,
            lifetimes: self.lifetimes.read(),
            sizes: self.sizes.read(),
            gauges: Gauges {
                allocations: self.allocations.each_ref().map(Cells::read),
                test_links: self.test_links.get(),
                permissions: self.permissions.get(),
                channels: self.channels.get(),
            },
            offload: self.offload(),
        }
    }

    fn offload(&self) -> OffloadTotals {
        let [packets_to_peers, packets_to_clients, bytes_to_peers, bytes_to_clients] = self.offloaded.read();
        OffloadTotals {
            packets: [packets_to_peers, packets_to_clients],
            bytes: [bytes_to_peers, bytes_to_clients],
            entries: self.offload_entries.read(),
            without: self.offload_without.read(),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a number up to a million is exact")]
    pub(crate) fn event_loop(&self) -> EventLoop {
        EventLoop {
            busy: Duration::from_micros(self.event_loop.busy.get()),
            busy_ratio: self.event_loop.busy_per_million.get() as f64 / 1e6,
            longest: Duration::from_micros(self.event_loop.longest.get()),
        }
    }

    /// Returns a count that grows at least once per second while the event loop runs.
    #[must_use]
    pub(crate) fn heartbeat(&self) -> u64 {
        self.publications.get()
    }

    pub(super) fn count(&self, outcome: Outcome, packets: u64) {
        debug_assert!(outcome.is_possible(), "metrics omit the outcome: {outcome}");
        self.packets.at(outcome.index()).add(packets);
    }

    pub(super) fn count_bytes(&self, direction: Direction, bytes: u64) {
        self.bytes.at(usize::from(direction != Direction::ToPeers)).add(bytes);
    }

    /// Counts packets that the kernel has relayed, and their application data.
    pub(super) fn count_offloaded(&self, direction: Direction, packets: u64, bytes: u64) {
        let at = usize::from(direction != Direction::ToPeers);
        self.offloaded.at(at).add(packets);
        self.offloaded.at(2 + at).add(bytes);
    }

    pub(super) fn publish_offload(&self, counts: &OffloadCounts) {
        self.offload_entries.set(counts.entries);
        self.offload_without.set(counts.without);
    }

    pub(super) fn count_connection(&self, outcome: ConnectionOutcome, connections: u64) {
        self.connections.at(outcome.index()).add(connections);
    }

    pub(super) fn connection_opened(&self, transport: Transport) {
        self.open_connections.at(usize::from(transport.is_encrypted())).add(1);
    }

    pub(super) fn connection_closed(&self, transport: Transport) {
        self.open_connections.at(usize::from(transport.is_encrypted())).subtract(1);
    }

    pub(super) fn no_connection_is_open(&self) {
        self.open_connections.set([0; 2]);
    }

    /// Counts a TLS handshake: its duration, or why it failed.
    pub(super) fn count_handshake(&self, result: Result<Duration, CloseReason>) {
        let at = match result {
            Ok(took) => {
                self.handshake_durations.observe(microseconds(took));
                Some(0)
            }
            Err(close) => CloseReason::OF_HANDSHAKES.iter().position(|reason| *reason == close).map(|at| at + 1),
        };
        debug_assert!(at.is_some(), "no handshake fails for this reason: {result:?}");
        at.into_iter().for_each(|at| self.handshakes.at(at).add(1));
    }

    pub(super) fn count_failed_authentication(&self, cause: AuthCause) {
        self.failed_authentications.at(cause.index()).add(1);
    }

    pub(super) fn count_failed_relay_socket(&self, error: OpenError) {
        self.failed_relay_sockets.at(error as usize).add(1);
    }

    pub(super) fn count_receive_drops(&self, role: SocketRole, datagrams: u64) {
        self.receive_drops.at(role as usize).add(datagrams);
    }

    /// Counts the permissions and the channels of an allocation that a new configuration has ended.
    pub(super) fn count_revoked_peers(&self, permissions: usize, channels: usize) {
        self.revoked_peers.at(0).add(permissions as u64);
        self.revoked_peers.at(1).add(channels as u64);
    }

    pub(super) fn count_ended_allocation(&self, ended: &AllocationSummary) {
        self.lifetimes.observe(microseconds(ended.duration));
        self.sizes.observe(ended.traffic.bytes_to_peers + ended.traffic.bytes_to_client);
    }

    /// Increments the [`heartbeat`](Self::heartbeat).
    pub(crate) fn beat(&self) {
        self.publications.add(1);
    }

    /// Publishes the gauges, and increments the [`heartbeat`](Self::heartbeat).
    pub(super) fn publish(&self, gauges: &Gauges, iterations: &Iterations, now: Duration) {
        self.allocations.iter().zip(gauges.allocations).for_each(|(cells, counts)| cells.set(counts));
        self.test_links.set(gauges.test_links);
        self.permissions.set(gauges.permissions);
        self.channels.set(gauges.channels);
        self.event_loop.busy.set(microseconds(iterations.busy(now)));
        self.event_loop.busy_per_million.set(iterations.busy_per_million());
        self.event_loop.longest.set(microseconds(iterations.longest()));
        self.beat();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::AuthFailure;
    use crate::auth::time_limited::Reading;

    #[test]
    fn each_enum_has_the_order_of_its_counters() {
        assert!(OpenError::ALL.iter().enumerate().all(|(at, error)| *error as usize == at));
        let reading = Reading::ExpiryFirst;
        let failures = [
            AuthFailure::UnknownUser,
            AuthFailure::UnknownUserhash,
            AuthFailure::ExpiryInMilliseconds { expires: 0 },
            AuthFailure::NoSecret,
            AuthFailure::WrongPassword,
            AuthFailure::WrongSecret { tried: 1, reading },
            AuthFailure::WrongSecretAndExpired { tried: 1, ago_seconds: 1, reading },
        ];
        let others = [
            AuthCause::Expired { ago: 1, reading },
            AuthCause::Failure(AuthFailure::Revoked),
            AuthCause::Failure(AuthFailure::DatabaseUnavailable),
        ];
        let causes = failures.into_iter().map(AuthCause::Failure).chain(others);
        assert!(causes.map(AuthCause::index).eq(0..AuthCause::LABELS.len()));
    }

    #[test]
    fn the_values_of_workers_are_added() {
        let statistics = Statistics::default();
        statistics.count(Outcome::RelayedToPeer, 2);
        statistics.count_bytes(Direction::ToClient, 7);
        statistics.connection_opened(Transport::Tls);
        statistics.connection_opened(Transport::Tcp);
        statistics.connection_closed(Transport::Tcp);
        statistics.count_handshake(Ok(Duration::from_millis(3)));
        statistics.count_handshake(Err(CloseReason::Alert));
        statistics.count_failed_relay_socket(OpenError::AddressGone);
        statistics.count_receive_drops(SocketRole::Relay, 5);
        statistics.count_revoked_peers(3, 4);
        let gauges =
            Gauges { allocations: [[1, 2, 3], [4, 5, 6], [7, 8, 9]], test_links: 12, permissions: 10, channels: 11 };
        statistics.publish(&gauges, &Iterations::new(Duration::ZERO), Duration::from_secs(1));
        let mut both = statistics.read();
        both.add(&statistics.read());
        assert_eq!((both.packets.get(Outcome::RelayedToPeer), both.bytes_to_clients), (4, 14));
        assert_eq!((both.open_tcp, both.open_tls, both.listener_drops, both.relay_drops), (0, 2, 0, 10));
        assert_eq!((both.revoked_permissions, both.revoked_channels), (6, 8));
        assert_eq!((both.failed_relay_sockets, both.allocations()), ([0, 2, 0], 90));
        assert_eq!((both.gauges.test_links, both.gauges.permissions, both.gauges.channels), (24, 20, 22));
        assert_eq!((both.handshake_durations.sum, both.handshake_durations.buckets[2]), (6_000, 2));
        let results: Vec<_> = both.handshakes.results().filter(|(_, count)| *count > 0).collect();
        assert_eq!(results, [("complete", 2), ("tls-alert-from-client", 2)]);
        assert_eq!(statistics.event_loop().busy, Duration::from_secs(1));
    }
}
