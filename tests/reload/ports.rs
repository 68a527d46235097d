//! Ranges of relay ports that change while allocations, reservations and resting ports are in them.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;

use turnserver::stun::Method;
use turnserver::stun::attribute::{EvenPort, RequestedTransport, ReservationToken, XorRelayedAddress};

use super::{metric, refresh, with};
use crate::client::Http;
use crate::support::client::{Client, Login, Session};
use crate::support::{Controlled, config};

type Allocated = (Client, Session, SocketAddr);

/// Returns the address of the relay ports. No other test uses it, nor another run on this machine: it contains the
/// process ID, which has at most 22 bits.
fn relay_address() -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(127, 64, 0, 0).to_bits() + std::process::id())
}

/// Starts a server with four workers and a range of ports.
fn start(ports: &str) -> Controlled {
    let addresses = format!("['{}']", relay_address());
    let settings = [("workers", "4"), ("relay.addresses", &addresses), ("relay.ports", ports)];
    Controlled::start_with(&with(&config(&["127.0.0.1"], ""), &settings))
}

impl Controlled {
    fn change_ports(&self, ports: &str) {
        self.reload(&with(&self.config, &[("relay.ports", ports)]));
    }

    /// Makes an allocation with an EVEN-PORT that reserves the next port.
    fn allocate_pair(&self, user: &str) -> (Allocated, ReservationToken) {
        let client = self.client();
        let session = client.challenge(&Login::mint(user, 600));
        let response = client.request(&session, Method::ALLOCATE, &|writer| {
            writer.push(&RequestedTransport::UDP);
            writer.push(&EvenPort { reserve_next: true });
        });
        let (XorRelayedAddress(relay), token) = (response.get().unwrap(), response.get().unwrap());
        ((client, session, relay), token)
    }

    /// Makes an allocation with the port that a token reserves.
    fn claim(&self, user: &str, token: &ReservationToken) -> Allocated {
        let client = self.client();
        let session = client.challenge(&Login::mint(user, 600));
        let response = client.request(&session, Method::ALLOCATE, &|writer| {
            writer.push(&RequestedTransport::UDP);
            writer.push(token);
        });
        let XorRelayedAddress(relay) = response.get().unwrap();
        (client, session, relay)
    }

    /// Makes allocations until no port is free, and returns them in the order of their ports.
    fn allocate_all(&self) -> Vec<Allocated> {
        let mut all = Vec::new();
        loop {
            let client = self.client();
            match client.allocate(&Login::mint(&format!("user-{}", all.len()), 600)) {
                Ok((session, relay)) => all.push((client, session, relay)),
                Err(code) => {
                    assert_eq!(code, 508);
                    all.sort_by_key(|(.., relay)| relay.port());
                    return all;
                }
            }
        }
    }

    /// Asserts the number of ports that are used and reserved, and of those that allocations may still get.
    fn assert_ports(&self, used: u64, reserved: u64, left: u64) {
        let page = Http::unix(&self.socket).get("/metrics").body;
        let ports = |state| metric(&page, &format!("turnserver_relay_ports{{state=\"{state}\"}}"));
        let counted = [ports("used"), ports("reserved"), ports("quarantined") + ports("free")];
        assert_eq!(counted, [used, reserved, left], "{page}");
        // No port was taken for free that was not.
        assert_eq!(metric(&page, "turnserver_failed_relay_sockets_total{cause=\"port-in-use\"}"), 0, "{page}");
    }
}

fn ports(allocated: &[Allocated]) -> Vec<u16> {
    allocated.iter().map(|(.., relay)| relay.port()).collect()
}

fn expected(ports: RangeInclusive<u16>, except: &[u16]) -> Vec<u16> {
    ports.filter(|port| !except.contains(port)).collect()
}

// RFC 8656 §7.2: no other client gets a reserved port, and its token remains valid for 30 s.
#[test]
fn a_range_that_grows_moves_and_shrinks_keeps_the_state_of_every_port() {
    let server = start("'31900-31907'");
    let (first, first_token) = server.allocate_pair("ann");
    let (second, second_token) = server.allocate_pair("bob");
    let (used, released) = (server.allocate("carol"), server.allocate("dave"));
    released.0.delete(&released.1);
    server.assert_ports(3, 2, 3);

    server.change_ports("'31900-31915'");
    server.assert_ports(3, 2, 11);
    let [first_port, second_port] = [first.2.port(), second.2.port()];
    let busy = [first_port, first_port + 1, second_port, second_port + 1, used.2.port()];
    let grown = server.allocate_all();
    assert_eq!(ports(&grown), expected(31_900..=31_915, &busy));
    server.assert_ports(14, 2, 0);

    server.change_ports("'31908-31923'");
    server.assert_ports(14, 2, 8);
    let claimed = [server.claim("ann", &first_token), server.claim("bob", &second_token)];
    let reserved = [first_port, second_port].map(|port| port + 1);
    assert_eq!(ports(&claimed), reserved, "a reservation outside of the range remains valid");
    for (client, session, _) in [&first, &second] {
        client.delete(session);
    }
    server.assert_ports(14, 0, 8);
    // The last token has to remain valid until the end only.
    let (third, third_token) = server.allocate_pair("erin");
    let third_port = third.2.port();
    let moved = server.allocate_all();
    let busy = [third_port, third_port + 1];
    assert_eq!(ports(&moved), expected(31_916..=31_923, &busy), "released ports outside of the range are gone");
    server.assert_ports(21, 1, 0);

    server.change_ports("'31910-31911'");
    server.assert_ports(21, 1, 0);
    assert!(server.allocate_all().is_empty());
    let at_31910 = grown.iter().find(|(.., relay)| relay.port() == 31_910).unwrap();
    at_31910.0.delete(&at_31910.1);
    server.assert_ports(20, 1, 1);
    let last = server.allocate_all();
    assert_eq!(ports(&last), [31_910]);

    server.change_ports("'31900-31923'");
    server.assert_ports(21, 1, 2);
    assert_eq!(server.claim("erin", &third_token).2.port(), third_port + 1);
    let mut free = [first_port, second_port];
    free.sort_unstable();
    assert_eq!(ports(&server.allocate_all()), free);
    let others = grown.iter().filter(|(.., relay)| relay.port() != 31_910).chain(&moved).chain(&last);
    for (client, session, _) in others.chain([&used, &third]).chain(&claimed) {
        assert_eq!(refresh(client, session), None);
    }
}

// Behind NAT, the ports belong to the address to which the sockets are bound.
#[test]
fn a_new_mapping_knows_the_ports_that_the_old_one_uses() {
    let server = start("'31930-31941'");
    let (pair, token) = server.allocate_pair("ann");
    let used = [server.allocate("bob"), server.allocate("carol")];
    let mapping = format!("{{ '{}' = '192.0.2.9' }}", relay_address());
    server.reload(&with(&server.config, &[("relay.external", &mapping)]));
    server.assert_ports(3, 1, 8);
    let new = server.allocate_all();
    let port = pair.2.port();
    assert_eq!(ports(&new), expected(31_930..=31_941, &[port, port + 1, used[0].2.port(), used[1].2.port()]));
    assert!(new.iter().all(|(.., relay)| relay.ip().to_string() == "192.0.2.9"), "{:?}", new[0].2);
    server.assert_ports(11, 1, 0);
    assert_eq!(server.claim("ann", &token).2, SocketAddr::new(pair.2.ip(), port + 1));
}
