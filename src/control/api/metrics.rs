//! `GET /metrics`, in the formats OpenMetrics and Prometheus text.
//!
//! Every value is read when the page is made. The labels have few values, none of which a client can choose.

mod families;
mod fleet;
mod format;

use std::fmt;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Response, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::registry::{Registry, Unit};

use super::{Api, PublishedCertificate, Reload};
use crate::control::acme::{self, State, Status};
use crate::control::redis::status as redis_status;
use crate::control::webhook;
use crate::front;
use crate::http::response;
use crate::stun::Method;
use crate::transport::Transport;
use crate::turn::{AuthCause, OpenError, Outcome, PortCounts, RelayedFamily};
use crate::worker::{
    ConnectionOutcome, EventLoop, HANDSHAKE_BOUNDS, LIFETIME_BOUNDS, OFFLOAD_REASONS, SIZE_BOUNDS, Totals,
};
use families::Families;
use format::{Format, prometheus_text};

/// The number of microseconds in a second.
const MICROSECONDS: f64 = 1e6;

impl Api {
    pub(super) async fn metrics(&self, request: &Request<Bytes>) -> Response<Full<Bytes>> {
        self.publish_gauges().await;
        let mut registry = Registry::with_prefix("turnserver");
        registry.register_collector(Box::new(self.page()));
        let mut page = String::new();
        if text::encode(&mut page, &registry).is_err() {
            return response::error(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written");
        }
        let format = Format::of(request);
        let page = if format == Format::Prometheus { prometheus_text(&page) } else { page };
        response::with(StatusCode::OK, format.content_type(), page)
    }

    fn page(&self) -> Page {
        let (published, stalled) = (self.published.borrow(), self.health.stalled());
        Page {
            totals: self.totals(),
            ports: published.snapshot.core.relays.port_counts(self.now()),
            draining: self.ledger.is_draining(),
            started: self.started,
            certificates: Arc::clone(&published.certificates),
            reload: published.reload,
            acme: self.acme.borrow().clone(),
            lookups: self.redis.lookups(),
            redis_connected: self.redis.is_connected(),
            stalled: (0..self.workers.len()).map(|worker| stalled.contains(&worker)).collect(),
            event_loops: self.workers.iter().map(|worker| worker.statistics.event_loop()).collect(),
            credentials: self.credentials.outcomes().collect(),
            offload_outcomes: self.offload.outcomes(),
            offload_interfaces: self.offload.interfaces(),
            front: Arc::clone(&self.front),
            webhook: self.webhook.read(),
            status: self.status.read(),
            fleet: fleet::Fleet::read(&self.inputs.fleet, self.now()),
        }
    }
}

/// The values of a page.
#[derive(Debug)]
struct Page {
    totals: Totals,
    ports: PortCounts,
    draining: bool,
    started: u64,
    certificates: Arc<[PublishedCertificate]>,
    acme: acme::Published,
    /// Look-ups in Redis, by their result.
    lookups: [(&'static str, u64); 3],
    redis_connected: bool,
    reload: Reload,
    /// Whether each worker is stalled.
    stalled: Vec<bool>,
    /// That of each worker.
    event_loops: Vec<EventLoop>,
    credentials: Vec<(&'static str, u64)>,
    /// Packets with an entry, by what the XDP program did with them.
    offload_outcomes: Vec<(&'static str, u64)>,
    /// The names and drivers of the interfaces that have the XDP program.
    offload_interfaces: Vec<(String, String)>,
    front: Arc<front::Statistics>,
    /// `None` without `[webhook]`.
    webhook: Option<webhook::Counts>,
    /// `None` without `[redis-status]`.
    status: Option<redis_status::Counts>,
    /// `None` without `[fleet]`.
    fleet: Option<fleet::Fleet>,
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families(&mut encoder);
        self.process(&mut families)?;
        self.event_loops(&mut families)?;
        self.allocations(&mut families)?;
        self.relaying(&mut families)?;
        self.offload(&mut families)?;
        self.requests(&mut families)?;
        self.connections(&mut families)?;
        self.tls(&mut families)?;
        self.front(&mut families)?;
        self.webhook.map_or(Ok(()), |counts| webhook(&counts, &mut families))?;
        self.status.map_or(Ok(()), |counts| status(&counts, &mut families))?;
        self.fleet.as_ref().map_or(Ok(()), |fleet| fleet.write(&mut families))?;
        families.counters(
            "credential_requests",
            "HTTP requests for credentials",
            None,
            "outcome",
            self.credentials.iter().copied(),
        )
    }
}

impl Page {
    fn process(&self, families: &mut Families<'_, '_>) -> fmt::Result {
        families.info("build", "The version of the server", &[("version", env!("CARGO_PKG_VERSION"))])?;
        families.gauge(
            "start_time",
            "When the server started, since the Unix epoch",
            Some(&Unit::Seconds),
            self.started,
        )?;
        families.gauge(
            "draining",
            "1 while new allocations are rejected because the server is about to stop",
            None,
            u64::from(self.draining),
        )?;
        families.gauge(
            "config_generation",
            "The configuration in use: 1 at the start, and one more after each successful reload",
            None,
            self.reload.generation,
        )?;
        families.gauge(
            "config_last_reload_timestamp",
            "When the configuration was last read, at the start or by a reload, since the Unix epoch",
            Some(&Unit::Seconds),
            self.reload.time,
        )?;
        families.gauge(
            "config_last_reload_success",
            "1 if the configuration that was last read is in use, 0 if it was refused",
            None,
            u64::from(self.reload.succeeded),
        )
    }

    fn event_loops(&self, families: &mut Families<'_, '_>) -> fmt::Result {
        let loops = || self.event_loops.iter().enumerate().map(|(worker, event_loop)| (worker.to_string(), event_loop));
        families.gauges(
            "worker_stalled",
            "1 while the event loop of a worker has completed no iteration for 4 seconds or more",
            None,
            "worker",
            self.stalled.iter().enumerate().map(|(worker, stalled)| (worker.to_string(), u64::from(*stalled))),
        )?;
        families.counters(
            "event_loop_busy",
            "Time in which the event loop of a worker did not wait",
            Some(&Unit::Seconds),
            "worker",
            loops().map(|(worker, event_loop)| (worker, event_loop.busy.as_secs_f64())),
        )?;
        families.gauges(
            "event_loop_busy_ratio",
            "Part of the last second in which the event loop of a worker did not wait",
            None,
            "worker",
            loops().map(|(worker, event_loop)| (worker, event_loop.busy_ratio)),
        )?;
        families.gauges(
            "event_loop_longest_iteration",
            "Longest iteration of the event loop of a worker in the last 30 to 60 seconds",
            Some(&Unit::Seconds),
            "worker",
            loops().map(|(worker, event_loop)| (worker, event_loop.longest.as_secs_f64())),
        )
    }

    fn allocations(&self, families: &mut Families<'_, '_>) -> fmt::Result {
        let Totals { gauges, lifetimes, sizes, failed_relay_sockets, .. } = &self.totals;
        let by_transport = Transport::ALL.iter().zip(gauges.allocations);
        families.gauges_by_two(
            "allocations",
            "Allocations by transport of the client and by address family of the relayed transport addresses",
            ["transport", "family"],
            by_transport.flat_map(|(transport, counts)| {
                let families = RelayedFamily::ALL.iter().map(|family| [transport.as_str(), family.label()]);
                families.zip(counts)
            }),
        )?;
        families.gauge("test_allocations", "Allocations of the test page", None, gauges.test_links)?;
        families.gauge("permissions", "Permissions of all allocations", None, gauges.permissions)?;
        families.gauge("channels", "Channels of all allocations", None, gauges.channels)?;
        families.counters(
            "revoked_peers",
            "Permissions and channels that a new configuration has ended",
            None,
            "kind",
            [("permission", self.totals.revoked_permissions), ("channel", self.totals.revoked_channels)],
        )?;
        families.histogram(
            "allocation_lifetime",
            "Time from the Allocate request to the end of allocations that have ended",
            &Unit::Seconds,
            (&LIFETIME_BOUNDS, MICROSECONDS),
            lifetimes,
        )?;
        families.histogram(
            "allocation_size",
            "Application data that allocations relayed in both directions until they ended",
            &Unit::Bytes,
            (&SIZE_BOUNDS, 1.0),
            sizes,
        )?;
        families.counters(
            "failed_relay_sockets",
            "Relay sockets that could not be opened; another port is tried if one is in use",
            None,
            "cause",
            OpenError::ALL.iter().map(|error| error.label()).zip(*failed_relay_sockets),
        )
    }

    fn relaying(&self, families: &mut Families<'_, '_>) -> fmt::Result {
        let Self { totals, ports, .. } = self;
        families.gauges(
            "relay_ports",
            "Ports of all relay addresses by state",
            None,
            "state",
            [
                ("used", ports.used),
                ("reserved", ports.reserved),
                ("quarantined", ports.quarantined),
                ("free", ports.free),
            ],
        )?;
        let packets = |outcome| totals.packets.get(outcome);
        families.counters(
            "relayed_packets",
            "Packets of application data that were relayed",
            None,
            "direction",
            [("to_peer", packets(Outcome::RelayedToPeer)), ("to_client", packets(Outcome::RelayedToClient))],
        )?;
        families.counters(
            "relayed",
            "Application data that was relayed",
            Some(&Unit::Bytes),
            "direction",
            [("to_peer", totals.bytes_to_peers), ("to_client", totals.bytes_to_clients)],
        )?;
        families.counter(
            "relayed_icmp_errors",
            "ICMP errors that were passed on to clients",
            packets(Outcome::RelayedIcmp),
        )?;
        families.counters(
            "receive_buffer_drops",
            "Datagrams that the kernel dropped because the receive buffer of a socket was full",
            None,
            "socket",
            [("listener", totals.listener_drops), ("relay", totals.relay_drops)],
        )
    }

    fn offload(&self, families: &mut Families<'_, '_>) -> fmt::Result {
        let offload = &self.totals.offload;
        let by_direction = |[to_peer, to_client]: [u64; 2]| [("to_peer", to_peer), ("to_client", to_client)];
        families.gauges(
            "offload_entries",
            "Directions of channels that the kernel relays",
            None,
            "direction",
            by_direction(offload.entries),
        )?;
        families.gauges(
            "offload_missing_entries",
            "Directions of channels that this process relays while the offload is in use",
            None,
            "reason",
            OFFLOAD_REASONS.into_iter().zip(offload.without),
        )?;
        families.counters(
            "offload_packets",
            "Packets of application data that the kernel relayed; relayed_packets includes them",
            None,
            "direction",
            by_direction(offload.packets),
        )?;
        families.counters(
            "offload",
            "Application data that the kernel relayed; relayed_bytes includes it",
            Some(&Unit::Bytes),
            "direction",
            by_direction(offload.bytes),
        )?;
        families.counters(
            "offload_outcomes",
            "Packets that belong to an entry, by what the XDP program did with them",
            None,
            "outcome",
            self.offload_outcomes.iter().copied(),
        )?;
        families.gauges_by_two(
            "offload_interfaces",
            "1 for each interface that has the XDP program",
            ["interface", "driver"],
            self.offload_interfaces.iter().map(|(name, driver)| ([name.as_str(), driver.as_str()], 1)),
        )
    }

    fn requests(&self, families: &mut Families<'_, '_>) -> fmt::Result {
        let (mut answered, mut rejected, mut limited, mut dropped) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for outcome in Outcome::all().filter(|outcome| outcome.is_possible()) {
            let packets = self.totals.packets.get(outcome);
            match outcome {
                Outcome::RelayedToPeer | Outcome::RelayedToClient | Outcome::RelayedIcmp => {}
                Outcome::Answered(method) => answered.push((Method::from(method).to_string(), packets)),
                Outcome::Rejected(code) => rejected.push((code.code().code().to_string(), packets)),
                Outcome::RejectedByLimit(limit) => limited.push((limit.label().to_owned(), packets)),
                Outcome::Dropped(reason) => dropped.push((reason.label().to_owned(), packets)),
            }
        }
        families.counters("answered_requests", "Requests with a success response", None, "method", answered)?;
        families.counters(
            "rejected_requests",
            "Requests with an error response, except those rejected by a limit",
            None,
            "code",
            rejected,
        )?;
        families.counters("limited_requests", "Requests that were rejected by a limit", None, "limit", limited)?;
        families.counters("dropped_packets", "Packets that were dropped", None, "reason", dropped)?;
        families.counters(
            "failed_authentications",
            "Requests with a valid nonce and credentials that are not valid",
            None,
            "reason",
            AuthCause::LABELS.into_iter().zip(self.totals.failed_authentications),
        )?;
        families.counters("redis_lookups", "Users that were looked up in Redis", None, "result", self.lookups)?;
        families.gauge(
            "redis_connected",
            "1 while there is a connection to the Redis server with users",
            None,
            u64::from(self.redis_connected),
        )
    }

    fn connections(&self, families: &mut Families<'_, '_>) -> fmt::Result {
        let counters = &self.totals.connections;
        families.gauges(
            "connections",
            "Connections that are open; one that may still become TLS counts as TCP",
            None,
            "transport",
            [("tcp", self.totals.open_tcp), ("tls", self.totals.open_tls)],
        )?;
        families.counter(
            "accepted_connections",
            "TCP and TLS connections that were accepted",
            counters.get(ConnectionOutcome::Accepted),
        )?;
        families.counters(
            "rejected_connections",
            "TCP and TLS connections that were not accepted",
            None,
            "cause",
            [
                ("connections-per-source", counters.get(ConnectionOutcome::RejectedBySource)),
                ("connections", counters.get(ConnectionOutcome::Rejected)),
                ("accept-failed", counters.get(ConnectionOutcome::AcceptFailed)),
            ],
        )?;
        families.counters(
            "closed_connections",
            "Accepted connections that have ended",
            None,
            "reason",
            counters.ended(),
        )
    }

    fn tls(&self, families: &mut Families<'_, '_>) -> fmt::Result {
        let Totals { handshakes, handshake_durations, .. } = &self.totals;
        families.counters(
            "tls_handshakes",
            "TLS handshakes of clients by result",
            None,
            "result",
            handshakes.results(),
        )?;
        families.histogram(
            "tls_handshake_duration",
            "Time from the first byte of a client to the end of its TLS handshake, if that was complete",
            &Unit::Seconds,
            (&HANDSHAKE_BOUNDS, MICROSECONDS),
            handshake_durations,
        )?;
        if !self.certificates.is_empty() {
            let expiry = |own: &PublishedCertificate| (own.file.display().to_string(), own.certificate.not_after);
            families.gauges(
                "tls_certificate_expiry_timestamp",
                "When a certificate expires, since the Unix epoch",
                Some(&Unit::Seconds),
                "file",
                self.certificates.iter().map(expiry),
            )?;
            let start = |own: &PublishedCertificate| (own.file.display().to_string(), own.certificate.not_before);
            families.gauges(
                "tls_certificate_not_before_timestamp",
                "When the validity of a certificate begins, since the Unix epoch",
                Some(&Unit::Seconds),
                "file",
                self.certificates.iter().map(start),
            )?;
        }
        match &self.acme.status {
            Some(status) => self.acme(status, families),
            None => Ok(()),
        }
    }

    fn acme(&self, status: &Status, families: &mut Families<'_, '_>) -> fmt::Result {
        let acme::Published { succeeded, failed, .. } = self.acme;
        families.counters(
            "acme_orders",
            "Certificates that the server has ordered, by result",
            None,
            "result",
            [("succeeded", succeeded), ("failed", failed)],
        )?;
        families.gauges(
            "acme_state",
            "1 for what the server does about its certificate",
            None,
            "state",
            State::ALL.map(|state| (state.as_str(), u64::from(state == status.state))),
        )?;
        families.gauge(
            "acme_failures",
            "Orders of a certificate that have failed since the last one that succeeded",
            None,
            u64::from(status.failures),
        )?;
        let times = [
            (
                "acme_last_success_timestamp",
                "When the last order of a certificate succeeded, since the Unix epoch",
                status.last_success,
            ),
            (
                "acme_next_try_timestamp",
                "When the server orders a certificate next, since the Unix epoch",
                status.next_try,
            ),
        ];
        for (name, help, time) in times {
            if let Some(time) = time {
                families.gauge(name, help, Some(&Unit::Seconds), time)?;
            }
        }
        Ok(())
    }

    fn front(&self, families: &mut Families<'_, '_>) -> fmt::Result {
        let front = &self.front;
        families.gauges(
            "front_connections",
            "Connections to fronts by what they are connected to; none as long as the first bytes do not tell",
            None,
            "to",
            [("none", front.open().saturating_sub(front.with_web_site())), ("web_site", front.with_web_site())],
        )?;
        families.counter("front_accepted_connections", "Connections to fronts that were accepted", front.accepted())?;
        families.counter(
            "front_failed_accepts",
            "Connections to fronts that could not be accepted, most often because of too many open files",
            front.accept_failed(),
        )?;
        families.counters(
            "front_decisions",
            "Connections to fronts by where they belong",
            None,
            "destination",
            front.decided(),
        )?;
        families.counters(
            "front_closed_connections",
            "Accepted connections to fronts that have ended or were handed over",
            None,
            "reason",
            front.ended(),
        )?;
        families.counters(
            "front",
            "Data between visitors and the web sites behind fronts",
            Some(&Unit::Bytes),
            "direction",
            front.bytes(),
        )
    }
}

fn status(counts: &redis_status::Counts, families: &mut Families<'_, '_>) -> fmt::Result {
    families.gauge(
        "redis_status_connected",
        "1 while there is a connection to the Redis server for the status of allocations",
        None,
        u64::from(counts.is_connected),
    )?;
    families.gauge(
        "redis_status_queued_changes",
        "Changes of the status of allocations that wait for Redis",
        None,
        counts.queued,
    )?;
    families.counters(
        "redis_status_changes",
        "Changes of the status of allocations that Redis has taken, that it has refused, and that did not fit",
        None,
        "outcome",
        [("sent", counts.sent), ("refused", counts.refused), ("dropped", counts.dropped)],
    )
}

fn webhook(counts: &webhook::Counts, families: &mut Families<'_, '_>) -> fmt::Result {
    families.gauge("webhook_queued_events", "Events that wait for the receiver of the webhook", None, counts.queued)?;
    families.gauge("webhook_queued", "Size of the spool of the webhook", Some(&Unit::Bytes), counts.queued_bytes)?;
    families.counters(
        "webhook_events",
        "Events that the receiver of the webhook has taken, and those that did not fit or are damaged",
        None,
        "outcome",
        [("sent", counts.sent), ("dropped", counts.dropped)],
    )?;
    families.counters(
        "webhook_requests",
        "Requests to the receiver of the webhook, by result",
        None,
        "result",
        [("succeeded", counts.succeeded), ("failed", counts.failed)],
    )?;
    families.gauge(
        "webhook_failures",
        "Requests to the receiver of the webhook that have failed since the last one that succeeded",
        None,
        counts.failures,
    )?;
    let Some(time) = counts.last_success else { return Ok(()) };
    families.gauge(
        "webhook_last_success_timestamp",
        "When a request to the receiver of the webhook last succeeded, since the Unix epoch",
        Some(&Unit::Seconds),
        time,
    )
}
