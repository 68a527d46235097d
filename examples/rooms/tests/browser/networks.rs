//! Calls and files between participants behind routers, in which the browsers find the way themselves.

use crate::data::chat;
use crate::file::transfer;
use crate::homes::{Home, Inside, Rules, among_homes, servers, servers_v6};
use crate::participant::Participant;
use crate::place::Servers;
use crate::table::Row;

const MEBIBYTE: u64 = 1 << 20;

/// Lets two participants call each other, and asserts by which transport each of them reaches the relay.
struct Case {
    network: &'static str,
    servers: fn() -> Servers,
    rules: [Rules; 2],
    /// What is done in the namespace of each participant.
    prepare: &'static [&'static str],
    query: &'static str,
    /// The transports by which each participant may reach the relay. Browsers choose what works first.
    transports: [&'static [&'static str]; 2],
    size: u64,
    /// What else is asserted.
    check: fn(&Participant<'_>),
}

const USUAL: Case = Case {
    network: "",
    servers,
    rules: [Rules::OPEN; 2],
    prepare: &[],
    query: "transport=udp",
    transports: [&["udp"]; 2],
    size: MEBIBYTE,
    check: |_| {},
};

impl Case {
    fn run(&self) {
        among_homes(|| {
            let homes = [1, 3].map(|network| Home::new(network, self.rules[usize::from(network / 2)]));
            let participants = [0, 1].map(|at| homes[at].participant(self.rules[at]));
            for (participant, command) in participants.iter().flat_map(|one| self.prepare.iter().map(move |c| (one, c)))
            {
                participant.ip(command);
            }
            let servers = (self.servers)();
            let browsers = participants.each_ref().map(|participant| Inside::start(participant));
            let [ann, ben] = servers.pair([&browsers[0], &browsers[1]], self.query);
            let (mut frames, mut used) = (Vec::new(), Vec::new());
            for (participant, transport) in [&ann, &ben].into_iter().zip(self.transports) {
                participant.wait_for_frames(30);
                used.push(participant.wait_for_relay(transport));
                frames.push(participant.run("return rooms.state.peers[0].framesDecoded;"));
            }
            chat(&ann, &ben);
            let seconds = transfer(&ann, &ben, self.size);
            for (participant, transport) in [&ann, &ben].into_iter().zip(self.transports) {
                participant.wait_for_frames(10);
                participant.wait_for_relay(transport);
                (self.check)(participant);
            }
            Row {
                system: "call of two, chat, file",
                transport: &used.join(", "),
                browsers: "Chromium",
                network: self.network,
                seen: &format!(
                    "{} and {} frames, a message each way, {} bytes in {seconds:.1} s with equal SHA-256",
                    frames[0], frames[1], self.size
                ),
                first_frame: Some(ben.first_frame()),
            }
            .report();
        });
    }
}

#[test]
fn a_call_between_symmetric_nats_goes_through_the_relay() {
    Case { network: "both behind symmetric NAT", ..USUAL }.run();
}

#[test]
fn a_call_without_udp_on_one_side_goes_over_tcp() {
    let no_udp = Rules { filter: "meta l4proto udp drop;", ..Rules::OPEN };
    let rules = [no_udp, Rules::OPEN];
    Case {
        network: "UDP blocked on one side",
        rules,
        query: "",
        transports: [&["tcp", "tls"], &["udp", "tcp", "tls"]],
        ..USUAL
    }
    .run();
}

#[test]
fn a_call_with_only_port_443_open_goes_over_tls() {
    let https = Rules { filter: "policy drop; ct state established accept; tcp dport 443 accept;", ..Rules::OPEN };
    Case { network: "only TCP to port 443", rules: [https; 2], query: "", transports: [&["tls"]; 2], ..USUAL }.run();
}

#[test]
fn a_call_over_ipv6_only() {
    Case {
        network: "IPv6 only",
        servers: servers_v6,
        prepare: &["-4 addr flush scope global"],
        // The participants could reach each other: there is no NAT.
        query: "relay=only&transport=udp",
        ..USUAL
    }
    .run();
}

#[test]
fn a_call_with_loss_and_delay() {
    let slow = Rules { is_slow: true, ..Rules::OPEN };
    let network = "5 % loss and 100 ms delay in each direction, one side";
    let check = |participant: &Participant<'_>| {
        let is_seen =
            "(await observer.paths()).every(({ roundTrip, packetsLost }) => roundTrip > 0.2 && packetsLost > 0)";
        participant.wait("to see loss and delay", is_seen);
    };
    Case { network, rules: [slow, Rules::OPEN], size: MEBIBYTE / 8, check, ..USUAL }.run();
}
