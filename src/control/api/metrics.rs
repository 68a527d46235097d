//! `GET /metrics`, in the formats OpenMetrics and Prometheus text.
//!
//! Every value is read when the page is made. The labels have few values, none of which a client can choose.

use std::fmt;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::ACCEPT;
use hyper::{Request, Response, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelValue, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::Api;
use crate::http::response;
use crate::stun::Method;
use crate::turn::{Outcome, PortCounts};
use crate::worker::{ConnectionOutcome, Totals};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

impl Api {
    pub(super) async fn metrics(&self, request: &Request<Bytes>) -> Response<Full<Bytes>> {
        self.publish_gauges().await;
        let mut registry = Registry::with_prefix("turnserver");
        registry.register_collector(Box::new(self.page()));
        let mut page = String::new();
        if text::encode(&mut page, &registry).is_err() {
            return response::error(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written");
        }
        if accepts_open_metrics(request) {
            response::with(StatusCode::OK, OPEN_METRICS, page)
        } else {
            response::with(StatusCode::OK, PROMETHEUS, prometheus_text(&page))
        }
    }

    fn page(&self) -> Page {
        let published = self.published.borrow();
        let mut ports = PortCounts::default();
        let now = self.now();
        published.snapshot.core.relays.iter().for_each(|address| ports.add(&address.port_counts(now)));
        Page {
            totals: self.totals(),
            ports,
            draining: self.ledger.is_draining(),
            started: self.started,
            certificate_expiry: published.certificate_expiry,
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
    certificate_expiry: Option<u64>,
}

/// A sample of a family with one label: the value of the label, and the value of the sample.
type Sample<L> = (L, u64);

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families(&mut encoder);
        self.process(&mut families)?;
        self.relaying(&mut families)?;
        self.requests(&mut families)?;
        self.connections(&mut families)
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
        match self.certificate_expiry {
            Some(expiry) => families.gauge(
                "tls_certificate_expiry_timestamp",
                "When the certificate expires, since the Unix epoch",
                Some(&Unit::Seconds),
                expiry,
            ),
            None => Ok(()),
        }
    }

    fn relaying(&self, families: &mut Families<'_, '_>) -> fmt::Result {
        let Self { totals, ports, .. } = self;
        families.gauge("allocations", "Allocations that exist", None, totals.allocations)?;
        families.gauge("channels", "Channels through which data can be relayed", None, totals.routes)?;
        families.gauges(
            "relay_ports",
            "Ports of all relay addresses by state",
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
        )
    }

    fn requests(&self, families: &mut Families<'_, '_>) -> fmt::Result {
        let (mut answered, mut rejected, mut limited, mut dropped) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for outcome in Outcome::all() {
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
        families.counters("dropped_packets", "Packets that were dropped", None, "reason", dropped)
    }

    fn connections(&self, families: &mut Families<'_, '_>) -> fmt::Result {
        let counters = &self.totals.connections;
        families.gauge("connections", "TCP and TLS connections that are open", None, counters.open())?;
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
}

/// Writes families.
struct Families<'e, 'w>(&'e mut DescriptorEncoder<'w>);

impl Families<'_, '_> {
    fn family<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        unit: Option<&'s Unit>,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, unit, kind)
    }

    fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) -> fmt::Result {
        self.family(name, help, None, MetricType::Info)?.encode_info(&labels)
    }

    fn gauge(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        self.family(name, help, unit, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn gauges<L: EncodeLabelValue>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        samples: impl IntoIterator<Item = Sample<L>>,
    ) -> fmt::Result {
        let mut family = self.family(name, help, None, MetricType::Gauge)?;
        samples.into_iter().try_for_each(|(value, count)| family.encode_family(&[(label, value)])?.encode_gauge(&count))
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.family(name, help, None, MetricType::Counter)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn counters<L: EncodeLabelValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        label: &str,
        samples: impl IntoIterator<Item = Sample<L>>,
    ) -> fmt::Result {
        let mut family = self.family(name, help, unit, MetricType::Counter)?;
        samples.into_iter().try_for_each(|(value, count)| {
            family.encode_family(&[(label, value)])?.encode_counter::<NoLabelSet, _, u64>(&count, None)
        })
    }
}

/// Whether the client prefers OpenMetrics. Prometheus lists it before its own format.
fn accepts_open_metrics(request: &Request<Bytes>) -> bool {
    let accept = request.headers().get_all(ACCEPT);
    let mut accepted = accept.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    accepted.any(|kind| {
        let mut parts = kind.split(';').map(str::trim);
        let is_open_metrics =
            parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/openmetrics-text"));
        is_open_metrics && !parts.any(|parameter| matches!(parameter, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    })
}

/// Converts a page from OpenMetrics to the text format of Prometheus, in which the family of a counter has the name of
/// its samples, an info is a gauge, and there are neither units nor an end.
fn prometheus_text(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let types: std::collections::HashMap<&str, &str> = types.collect();
    for line in page.lines() {
        let comment = ["# HELP ", "# TYPE "].into_iter().find_map(|kind| Some((kind, line.strip_prefix(kind)?)));
        match comment.and_then(|(kind, rest)| Some((kind, rest.split_once(' ')?))) {
            Some((kind, (name, rest))) => {
                let (suffix, shown) = match types.get(name) {
                    Some(&"counter") => ("_total", "counter"),
                    Some(&"info") => ("_info", "gauge"),
                    other => ("", other.copied().unwrap_or("untyped")),
                };
                let rest = if kind == "# TYPE " { shown } else { rest };
                text += &format!("{kind}{name}{suffix} {rest}\n");
            }
            None if line.starts_with('#') => {}
            None => {
                text += line;
                text.push('\n');
            }
        }
    }
    text
}
