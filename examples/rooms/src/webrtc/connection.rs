//! A connection with a participant.

use std::collections::VecDeque;
use std::time::Duration;

use str0m::net::{Protocol, Receive};
use str0m::{Candidate, Event, Input, Output, Rtc, RtcConfig};
use tokio::time::Instant;

use super::network::{Datagram, Network, is_usable};
use crate::message;

/// When a connection that has ended is advanced next. Nothing happens then.
const ENDED: Duration = Duration::from_secs(3_600);

/// A connection. After each change of its state, what it wants to send is sent, and its events wait in order.
pub(crate) struct Connection {
    rtc: Rtc,
    timeout: Instant,
    events: VecDeque<Event>,
}

/// Returns how all connections are: VP8 and Opus, which all browsers have.
pub(crate) fn configuration() -> RtcConfig {
    Rtc::builder().clear_codecs().enable_vp8(true).enable_opus(true, false)
}

impl Connection {
    /// Creates a connection with the present candidates.
    pub(crate) fn new(configuration: RtcConfig, network: &Network) -> Self {
        let now = Instant::now();
        let mut new = Self { rtc: configuration.build(now.into_std()), timeout: now, events: VecDeque::new() };
        for candidate in network.candidates() {
            new.add_local_candidate(candidate, network);
        }
        new
    }

    /// Changes the connection.
    pub(crate) fn change<T>(&mut self, network: &Network, change: impl FnOnce(&mut Rtc) -> T) -> T {
        let result = change(&mut self.rtc);
        self.drain(network);
        result
    }

    /// Adds a candidate of this program.
    pub(crate) fn add_local_candidate(&mut self, candidate: Candidate, network: &Network) {
        self.change(network, |rtc| {
            rtc.add_local_candidate(candidate);
        });
    }

    /// Removes candidates of this program. Until another pair of candidates is found, data goes on from those.
    pub(crate) fn remove_local_candidates(&mut self, candidates: &[Candidate], network: &Network) {
        self.change(network, |rtc| {
            for candidate in candidates {
                rtc.direct_api().invalidate_candidate(candidate);
            }
        });
    }

    /// Adds a candidate of the participant.
    pub(crate) fn add_remote_candidate(&mut self, candidate: Candidate, network: &Network) {
        self.change(network, |rtc| rtc.add_remote_candidate(candidate));
    }

    /// Returns the connection for reading.
    pub(crate) fn rtc(&self) -> &Rtc {
        &self.rtc
    }

    /// Returns when [`advance`](Self::advance) has to be called.
    pub(crate) fn timeout(&self) -> Instant {
        self.timeout
    }

    /// Returns the next event.
    pub(crate) fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Lets time pass.
    pub(crate) fn advance(&mut self, network: &Network) {
        self.input(network, Input::Timeout(Instant::now().into_std()));
    }

    /// Ends the connection. Nothing is sent.
    pub(crate) fn end(&mut self) {
        self.rtc.disconnect();
        self.timeout = Instant::now() + ENDED;
    }

    /// Whether a datagram is for this connection.
    pub(crate) fn accepts(&self, datagram: &Datagram) -> bool {
        receive(datagram).is_some_and(|input| self.rtc.is_alive() && self.rtc.accepts(&input))
    }

    /// Takes a datagram if it is for this connection.
    pub(crate) fn receive(&mut self, network: &Network, datagram: &Datagram) -> bool {
        let Some(input) = receive(datagram) else { return false };
        let is_for_this = self.rtc.is_alive() && self.rtc.accepts(&input);
        if is_for_this {
            self.input(network, input);
        }
        is_for_this
    }

    fn input(&mut self, network: &Network, input: Input<'_>) {
        if let Err(error) = self.rtc.handle_input(input) {
            tracing::debug!("a connection ended: {error}");
            self.rtc.disconnect();
        }
        self.drain(network);
    }

    fn drain(&mut self, network: &Network) {
        loop {
            match self.rtc.poll_output() {
                Ok(Output::Timeout(timeout)) => {
                    self.timeout = timeout.into();
                    return;
                }
                Ok(Output::Transmit(transmit)) => network.send(transmit),
                Ok(Output::Event(event)) => self.events.push_back(event),
                Err(error) => {
                    tracing::debug!("a connection ended: {error}");
                    self.end();
                    return;
                }
            }
        }
    }
}

fn receive(datagram: &Datagram) -> Option<Input<'_>> {
    let Datagram { source, destination, data } = datagram;
    let contents = data.as_slice().try_into().ok()?;
    let receive = Receive { proto: Protocol::Udp, source: *source, destination: *destination, contents };
    Some(Input::Receive(Instant::now().into_std(), receive))
}

/// Reads a candidate of a browser. `None` for one that cannot be used: the name of an mDNS host, TCP, a multicast address,
/// or the mark of the end.
pub(crate) fn remote_candidate(candidate: &message::Candidate) -> Option<Candidate> {
    parse_candidate(&candidate.candidate)
}

fn parse_candidate(text: &str) -> Option<Candidate> {
    let candidate = Candidate::from_sdp_string(text.trim_start_matches("a=")).ok()?;
    (candidate.proto() == Protocol::Udp && is_usable(candidate.addr().ip())).then_some(candidate)
}

/// Takes the candidates out of a session description, so that they can be added one by one.
pub(crate) fn split_candidates(sdp: &str) -> (String, Vec<Candidate>) {
    let is_candidate = |line: &&str| line.starts_with("a=candidate:");
    let rest = sdp.split_inclusive('\n').filter(|line| !is_candidate(line)).collect();
    (rest, sdp.lines().filter(is_candidate).filter_map(parse_candidate).collect())
}

/// Returns the ICE user of a session description. Another one means an ICE restart.
pub(crate) fn ice_user(sdp: &str) -> Option<&str> {
    sdp.lines().find_map(|line| line.strip_prefix("a=ice-ufrag:"))
}

/// Returns the first hash of a certificate in a session description. Another one means another connection.
pub(crate) fn fingerprint(sdp: &str) -> Option<&str> {
    sdp.lines().find_map(|line| line.strip_prefix("a=fingerprint:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_split_into_its_usable_candidates_and_the_rest() {
        let sdp = "v=0\r\na=ice-ufrag:abcd\r\na=candidate:1 1 udp 1 192.0.2.1 4000 typ host\r\n\
                   a=candidate:2 1 tcp 1 192.0.2.1 9 typ host tcptype active\r\n\
                   a=candidate:4 1 udp 1 239.255.0.1 4000 typ host\r\n\
                   a=candidate:5 1 udp 1 169.254.169.254 80 typ host\r\n\
                   a=candidate:3 1 udp 1 00000000-0000-4000-8000-000000000000.local 4000 typ host\r\na=mid:0\r\n";
        let (rest, candidates) = split_candidates(sdp);
        assert_eq!(rest, "v=0\r\na=ice-ufrag:abcd\r\na=mid:0\r\n");
        let addresses: Vec<String> = candidates.iter().map(|candidate| candidate.addr().to_string()).collect();
        assert_eq!(addresses, ["192.0.2.1:4000"]);
        assert_eq!(ice_user(sdp), Some("abcd"));
    }
}
