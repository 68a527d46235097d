//! The heartbeat of this node.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{Inputs, Settings};
use crate::control::api::Published;
use crate::fleet::{Heartbeat, Load};
use crate::transport::Transport;
use crate::worker::Totals;

/// The least time over which the rate is measured.
const LEAST_MEASURED: Duration = Duration::from_secs(1);

/// Measures the load of this node, and makes its heartbeats.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    sequence: u64,
    /// The bytes that were relayed, and when.
    last: Option<(u64, Duration)>,
    bits_per_second: u64,
}

impl Pulse {
    /// Makes the next heartbeat. `state` is the revision of the common state that this node uses.
    pub(super) fn next(&mut self, inputs: &Inputs, settings: &Settings, state: u64) -> Heartbeat {
        self.sequence += 1;
        let mut totals = Totals::default();
        let mut busy = 0.0;
        for worker in &inputs.workers {
            totals.add(&worker.statistics.read());
            busy += worker.statistics.event_loop().busy_ratio;
        }
        self.measure(totals.bytes_to_peers + totals.bytes_to_clients, inputs.clock.elapsed());
        let published = inputs.published.borrow();
        let ports = published.snapshot.core.relays.port_counts(inputs.now());
        let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let all = ports.used + ports.reserved + ports.quarantined + ports.free;
        #[expect(clippy::cast_precision_loss, reason = "there are few workers")]
        let workers = inputs.workers.len().max(1) as f64;
        let [addresses, tls_addresses] = addresses(&published, settings);
        let urls = if settings.fleet.urls.is_empty() { published.urls.clone() } else { settings.fleet.urls.clone() };
        Heartbeat {
            name: settings.node.clone(),
            boot: inputs.boot,
            sequence: self.sequence,
            region: settings.fleet.region.clone(),
            weight: settings.fleet.weight,
            urls: urls
                .into_iter()
                .filter(|url| url.len() <= Heartbeat::LONGEST_URL)
                .take(Heartbeat::MOST_URLS)
                .collect(),
            load: Load {
                allocations: inputs.ledger.quota.allocations(),
                free_ports: count(ports.free),
                capacity: count(all),
                bits_per_second: self.bits_per_second,
                cpu: (busy / workers).clamp(0.0, 1.0),
            },
            draining: inputs.ledger.is_draining(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            addresses,
            tls_addresses,
            state,
        }
    }

    fn measure(&mut self, bytes: u64, at: Duration) {
        if let Some((before, then)) = self.last {
            let time = at.saturating_sub(then);
            if time < LEAST_MEASURED {
                return;
            }
            let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            self.bits_per_second = bytes.saturating_sub(before).saturating_mul(8_000) / millis;
        }
        self.last = Some((bytes, at));
    }
}

/// Returns the addresses at which clients of other nodes can be sent to this one: of its URLs with an address for a host,
/// and of its relay addresses at the ports of the other URLs. The first list is for clients over UDP and TCP, the second
/// one for those over TLS.
fn addresses(published: &Published, settings: &Settings) -> [Vec<SocketAddr>; 2] {
    let hosts: Vec<IpAddr> = published.snapshot.core.relays.iter().map(|relay| relay.advertised()).collect();
    let mut found = [BTreeSet::new(), BTreeSet::new()];
    let urls = if settings.fleet.urls.is_empty() { &published.urls } else { &settings.fleet.urls };
    for uri in urls.iter().filter_map(|url| url.parse::<crate::transport::TurnUri>().ok()) {
        let [plain, tls] = &mut found;
        let list = if uri.transport() == Transport::Tls { tls } else { plain };
        match uri.host().parse() {
            Ok(host) => drop(list.insert(SocketAddr::new(host, uri.port()))),
            Err(_) => list.extend(hosts.iter().map(|host| SocketAddr::new(*host, uri.port()))),
        }
    }
    found.map(|list| list.into_iter().take(Heartbeat::MOST_URLS).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_since_the_last_heartbeat() {
        let mut pulse = Pulse::default();
        pulse.measure(1_000, Duration::from_secs(10));
        assert_eq!(pulse.bits_per_second, 0);
        pulse.measure(251_000, Duration::from_secs(12));
        assert_eq!(pulse.bits_per_second, 1_000_000);
        // Soon after a heartbeat, the rate would be that of a moment.
        pulse.measure(900_000, Duration::from_millis(12_200));
        assert_eq!(pulse.bits_per_second, 1_000_000);
        // A counter never goes back, and neither does the clock.
        pulse.measure(0, Duration::from_secs(13));
        assert_eq!(pulse.bits_per_second, 0);
    }
}
