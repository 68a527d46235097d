//! The relay path: two allocations that send each other data.

use std::net::SocketAddr;
use std::time::Duration;

use super::session::{Problem, Received, Session};
use crate::client::{Allocate, Allocation, Failure, Families, Request, Success};
use crate::clock;
use crate::stun::attribute::{AddressFamily, Icmp};

/// The round trips that are measured on each path.
const ROUNDS: u32 = 20;

/// The time that a message may take in one direction.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// The time for an ICMP error, which comes as soon as a response.
const BRIEFLY: Duration = Duration::from_millis(50);

/// After so many losses without any arrival, nothing arrives.
const GIVE_UP: u32 = 3;

/// How often data of a size is sent before it counts as too long.
const ATTEMPTS: u32 = 3;

/// The channel of each client for the other.
const CHANNEL: u16 = 0x4000;

/// The sizes of data, in bytes, with which the path MTU is examined.
const SIZES: [usize; 6] = [500, 1_000, 1_200, 1_300, 1_400, 1_452];

/// A client and its allocation.
pub(super) struct Relayed {
    pub(super) session: Session,
    pub(super) allocation: Allocation,
}

/// What was measured on a path.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Exchange {
    /// Messages from the first to the second client, and how many arrived.
    pub(super) sent: u32,
    pub(super) arrived: u32,
    /// How many of those came back.
    pub(super) returned: u32,
    /// The times of the round trips, in ascending order.
    pub(super) times: Vec<Duration>,
    /// The address from which data came, if it is not the relayed address.
    pub(super) other_source: Option<SocketAddr>,
    /// The last ICMP error.
    pub(super) icmp: Option<Icmp>,
}

impl Exchange {
    /// Returns the time below which this part of the round trips is, in percent.
    pub(super) fn quantile(&self, percent: usize) -> Duration {
        let last = self.times.len().saturating_sub(1);
        self.times.get(last * percent / 100).copied().unwrap_or_default()
    }
}

impl Relayed {
    /// Allocates a relayed address of the family.
    pub(super) fn allocate(mut session: Session, family: AddressFamily) -> Result<Self, Problem> {
        // Old servers do not know REQUESTED-ADDRESS-FAMILY, and IPv4 needs none.
        let families = if family == AddressFamily::V4 { Families::Unstated } else { Families::One(family) };
        match session.request(Request::Allocate(Allocate { families, ..Allocate::default() }))? {
            Success::Allocate(allocation) => Ok(Self { session, allocation }),
            _ => Err(Failure::Missing(crate::stun::AttributeType::XOR_RELAYED_ADDRESS).into()),
        }
    }

    /// Returns the relayed address.
    pub(super) fn address(&self) -> SocketAddr {
        self.allocation.relayed.first().copied().unwrap_or(self.allocation.mapped)
    }

    /// Deletes the allocation. The server deletes it later if this fails.
    pub(super) fn end(mut self) {
        let _ = self.session.request(Request::Refresh(0));
    }
}

/// Lets each of two clients send to the other.
pub(super) fn permit(first: &mut Relayed, second: &mut Relayed) -> Result<(), Problem> {
    let (one, other) = (first.address(), second.address());
    first.session.request(Request::CreatePermission(vec![other]))?;
    second.session.request(Request::CreatePermission(vec![one]))?;
    Ok(())
}

/// Binds a channel of each client to the other.
pub(super) fn bind_channels(first: &mut Relayed, second: &mut Relayed) -> Result<(), Problem> {
    let (one, other) = (first.address(), second.address());
    first.session.request(Request::ChannelBind { channel: CHANNEL, peer: other })?;
    second.session.request(Request::ChannelBind { channel: CHANNEL, peer: one })?;
    Ok(())
}

/// Sends messages from the first to the second client and back, in Send indications or on channels.
pub(super) fn exchange(first: &mut Relayed, second: &mut Relayed, on_channel: bool) -> Result<Exchange, Problem> {
    let channel = on_channel.then_some(CHANNEL);
    let (one, other) = (first.address(), second.address());
    let mut exchange = Exchange::default();
    for round in 0..ROUNDS {
        let data = format!("turnserver doctor {round} {on_channel}").into_bytes();
        let begin = clock::monotonic();
        first.session.send(other, channel, &data)?;
        exchange.sent += 1;
        if arrives(&mut second.session, one, &data, &mut exchange)? {
            exchange.arrived += 1;
            second.session.send(one, channel, &data)?;
            if arrives(&mut first.session, other, &data, &mut exchange)? {
                exchange.returned += 1;
                exchange.times.push(clock::monotonic().saturating_sub(begin));
            }
        } else {
            // Errors for the data are sent to its sender.
            let end = clock::monotonic() + BRIEFLY;
            while let Some(Received::Icmp { icmp, .. }) = first.session.receive(end)? {
                exchange.icmp = Some(icmp);
            }
        }
        if exchange.returned == 0 && exchange.sent >= GIVE_UP {
            break;
        }
    }
    exchange.times.sort_unstable();
    Ok(exchange)
}

/// Waits for data. Older data, which came late, is not counted.
fn arrives(session: &mut Session, from: SocketAddr, expected: &[u8], exchange: &mut Exchange) -> Result<bool, Problem> {
    let end = clock::monotonic() + PATIENCE;
    while let Some(received) = session.receive(end)? {
        match received {
            Received::Data { peer, data, .. } if data == expected => {
                if peer != from {
                    exchange.other_source = Some(peer);
                }
                return Ok(true);
            }
            Received::Data { .. } => {}
            Received::Icmp { icmp, .. } => exchange.icmp = Some(icmp),
        }
    }
    Ok(false)
}

/// Returns the largest data in bytes, of a few sizes, that the first client can send to the second one on a channel.
/// The socket of the first must forbid fragments, so the result is that of the path from it to the server.
pub(super) fn largest_data(first: &mut Relayed, second: &mut Relayed) -> Result<Option<usize>, Problem> {
    let (one, other) = (first.address(), second.address());
    let mut largest = None;
    for size in SIZES {
        let data = vec![u8::try_from(size % 251).unwrap_or_default(); size];
        let mut has_arrived = false;
        for _ in 0..ATTEMPTS {
            // The kernel refuses what exceeds the MTU of the interface.
            has_arrived = first.session.send(other, Some(CHANNEL), &data).is_ok()
                && arrives(&mut second.session, one, &data, &mut Exchange::default())?;
            if has_arrived {
                break;
            }
        }
        if !has_arrived {
            break;
        }
        largest = Some(size);
    }
    Ok(largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_sorted_times() {
        let times = (1..=100).map(Duration::from_millis).collect();
        let exchange = Exchange { times, ..Exchange::default() };
        assert_eq!([0, 50, 95, 100].map(|percent| exchange.quantile(percent).as_millis()), [1, 50, 95, 100]);
        assert_eq!(Exchange::default().quantile(50), Duration::ZERO);
    }
}
