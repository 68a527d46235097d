//! PROXY headers on UDP datagrams.

use std::net::{SocketAddr, UdpSocket};

use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use turnserver::client::{Allocate, Request};
use turnserver::stun::attribute::{ChannelNumber, XorMappedAddress, XorPeerAddress};
use turnserver::stun::{Class, Message, Method, TransactionId};

use crate::common::{behind_proxies, headers, is, local, proxy_socket, stopped, v1, v2};
use crate::support::client::{Client, Login, message, receive, socket};
use crate::support::{Controlled, Server, config, has_ipv6};

const CLIENT: &str = "198.51.100.7:4711";
const FRONT: &str = "203.0.113.1:443";

fn binding(number: u8) -> Vec<u8> {
    message(Class::Request, Method::BINDING, TransactionId::new([number; 12]), &|_| {})
}

/// Sends datagrams, and returns the mapped addresses of the responses.
fn mapped(socket: &UdpSocket, server: SocketAddr, datagrams: &[Vec<u8>], responses: usize) -> Vec<SocketAddr> {
    for datagram in datagrams {
        socket.send_to(datagram, server).unwrap();
    }
    let response = |_| {
        let (response, from) = receive(socket);
        assert_eq!(from, server);
        Message::parse(&response).unwrap().get::<XorMappedAddress>().unwrap().unwrap().0
    };
    (0..responses).map(response).collect()
}

#[test]
fn each_datagram_may_have_a_header_or_the_first_one_only_or_one_of_its_own() {
    for ip in ["127.0.0.1", "::1"] {
        if ip == "::1" && !has_ipv6() {
            continue;
        }
        let server = Server::start(&behind_proxies(ip, ""));
        let to = server.udp_address();
        for (header, client) in headers() {
            let with_header = |number| [header.clone(), binding(number)].concat();
            let each = [with_header(1), with_header(2)];
            assert_eq!(mapped(&proxy_socket(to), to, &each, 2), [client; 2]);
            let first = [with_header(1), binding(2), binding(3)];
            assert_eq!(mapped(&proxy_socket(to), to, &first, 3), [client; 3]);
            let alone = [header.clone(), binding(1), binding(2)];
            assert_eq!(mapped(&proxy_socket(to), to, &alone, 2), [client; 2]);
        }
        assert!(stopped(server, "outcomes").contains("dropped proxy-header-alone: 4"));
    }
}

// The kernel merges datagrams that arrive together.
#[test]
fn each_merged_datagram_may_have_a_header() {
    let server = Server::start(&behind_proxies("127.0.0.1", ""));
    let (proxy, to) = (proxy_socket(server.udp_address()), server.udp_address());
    let whole = [v2(CLIENT, FRONT), binding(1)].concat();
    setsockopt(&proxy, sockopt::UdpGsoSegment, &i32::try_from(whole.len()).unwrap()).unwrap();
    // The last one has no header.
    let merged = [whole.repeat(3), binding(2)].concat();
    let responses = mapped(&proxy, to, &[merged], 4);
    assert!(responses.iter().all(|client| client.to_string() == CLIENT), "{responses:?}");
    setsockopt(&proxy, sockopt::UdpGsoSegment, &i32::try_from(binding(3).len()).unwrap()).unwrap();
    assert_eq!(mapped(&proxy, to, &[binding(3).repeat(3)], 3).len(), 3);
}

#[test]
fn a_proxy_that_is_itself_the_client_has_its_own_address() {
    let server = Server::start(&behind_proxies("127.0.0.1", ""));
    let (proxy, to) = (proxy_socket(server.udp_address()), server.udp_address());
    for header in [local(), b"PROXY UNKNOWN\r\n".to_vec()] {
        let real = proxy.local_addr().unwrap();
        assert_eq!(mapped(&proxy, to, &[[header, binding(1)].concat(), binding(2)], 2), [real; 2]);
    }
}

#[test]
fn a_missing_bad_or_forged_header_drops_the_datagram_and_is_counted() {
    let server = Server::start(&behind_proxies("127.0.0.1", ""));
    let (proxy, to) = (proxy_socket(server.udp_address()), server.udp_address());
    let mut bad = v2(CLIENT, FRONT);
    bad[13] = 0x44;
    for dropped in [binding(1), [bad.clone(), binding(2)].concat(), bad[..14].to_vec(), Vec::new()] {
        proxy.send_to(&dropped, to).unwrap();
    }
    let direct = socket("127.0.0.1:0".parse().unwrap());
    for header in [v1(CLIENT, FRONT), v2(CLIENT, FRONT)] {
        direct.send_to(&[header, binding(3)].concat(), to).unwrap();
    }
    // Whoever has no proxy is served, and the proxy is served after its next header.
    assert_eq!(mapped(&direct, to, &[binding(4)], 1), [direct.local_addr().unwrap()]);
    assert_eq!(mapped(&proxy, to, &[[v2(CLIENT, FRONT), binding(5)].concat()], 1)[0].to_string(), CLIENT);
    let failed = server.wait_for_log(|line| is(line, "proxy-header-failed"));
    assert_eq!(failed.field("proxy"), Some(proxy.local_addr().unwrap().to_string()));
    assert_eq!(failed.field("transport").as_deref(), Some("udp"));
    let forged = server.wait_for_log(|line| is(line, "proxy-not-listed"));
    assert_eq!(forged.field("client"), Some(direct.local_addr().unwrap().to_string()));
    let outcomes = stopped(server, "outcomes");
    for expected in ["proxy-header-missing: 2", "proxy-header-malformed: 2", "proxy-header-unexpected: 2"] {
        assert!(outcomes.contains(expected), "{expected} in {outcomes}");
    }
}

/// A client whose datagrams a proxy sends.
struct Behind {
    proxy: UdpSocket,
    to: SocketAddr,
    header: Vec<u8>,
    session: turnserver::client::Session,
    relayed: SocketAddr,
}

impl Behind {
    /// Allocates. Only the first datagram has a header.
    fn allocate(server: &Server, header: Vec<u8>) -> Self {
        let (proxy, to) = (proxy_socket(server.udp_address()), server.udp_address());
        proxy.send_to(&header, to).unwrap();
        let client = Client::on(proxy.try_clone().unwrap(), to);
        let (session, relayed) = client.allocate(&Login::mint("alice", 600)).unwrap();
        Self { proxy, to, header, session, relayed }
    }

    fn request(&self, method: Method, number: u8, fill: &dyn Fn(&mut turnserver::stun::MessageWriter<'_>)) -> Vec<u8> {
        message(Class::Request, method, TransactionId::new([number; 12]), &|writer| {
            fill(writer);
            self.session.sign(writer);
        })
    }

    fn bind(&self, peer: SocketAddr) {
        let request = self.request(Method::CHANNEL_BIND, 9, &|writer| {
            writer.push(&ChannelNumber(0x4000));
            writer.push(&XorPeerAddress(peer));
        });
        self.proxy.send(&request).unwrap();
        let response = receive(&self.proxy).0;
        assert_eq!(Message::parse(&response).unwrap().class(), Class::Success);
    }
}

fn channel_data(payload: &[u8]) -> Vec<u8> {
    [&[0x40, 0, 0, u8::try_from(payload.len()).unwrap()], payload].concat()
}

const LOOPBACK_PEERS: &str = "[peers]\nallow = [\"127.0.0.1\"]\n";

#[test]
fn data_is_relayed_both_ways_through_the_proxy() {
    let controlled = Controlled::start_with(&behind_proxies("127.0.0.1", LOOPBACK_PEERS));
    let peer = socket("127.0.0.1:0".parse().unwrap());
    let behind = Behind::allocate(&controlled.server, v2(CLIENT, FRONT));
    behind.bind(peer.local_addr().unwrap());
    for datagram in [channel_data(b"plain"), [behind.header.clone(), channel_data(b"after a header")].concat()] {
        behind.proxy.send(&datagram).unwrap();
        let (payload, from) = receive(&peer);
        assert!(datagram.ends_with(&payload) && from == behind.relayed, "{payload:?}");
        peer.send_to(&payload, behind.relayed).unwrap();
        assert_eq!(receive(&behind.proxy), (channel_data(&payload), behind.to));
    }
    let created = controlled.event("allocation-created");
    assert_eq!(created.field("client").as_deref(), Some(CLIENT));
    assert_eq!(created.field("server").as_deref(), Some(FRONT));
    assert!(controlled.lines(&["sessions"]).join("\n").contains(CLIENT));
}

#[test]
fn a_client_keeps_its_allocation_when_its_proxy_sends_from_another_address() {
    let server = Server::start(&behind_proxies("127.0.0.1", LOOPBACK_PEERS));
    let peer = socket("127.0.0.1:0".parse().unwrap());
    let mut behind = Behind::allocate(&server, v2(CLIENT, FRONT));
    behind.bind(peer.local_addr().unwrap());
    let later = proxy_socket(behind.to);
    later.connect(behind.to).unwrap();
    let earlier = std::mem::replace(&mut behind.proxy, later);
    behind.proxy.send(&[behind.header.clone(), channel_data(b"here")].concat()).unwrap();
    assert_eq!(receive(&peer).0, b"here");
    peer.send_to(b"there", behind.relayed).unwrap();
    assert_eq!(receive(&behind.proxy).0, channel_data(b"there"));
    // The former address has lost its client, until it sends another header.
    earlier.send(&channel_data(b"lost")).unwrap();
    earlier.send(&[behind.header.clone(), channel_data(b"back")].concat()).unwrap();
    assert_eq!(receive(&peer).0, b"back");
    peer.send_to(b"again", behind.relayed).unwrap();
    assert_eq!(receive(&earlier).0, channel_data(b"again"));
    assert!(stopped(server, "outcomes").contains("dropped proxy-header-missing: 1"));
}

// The address in the header is one of this machine here, so that a datagram that is sent to it is seen.
#[test]
fn a_client_keeps_its_allocation_when_its_proxy_gives_its_address_to_another_client() {
    let server = Server::start(&behind_proxies("127.0.0.1", LOOPBACK_PEERS));
    let [peer, named] = [(); 2].map(|()| socket("127.0.0.1:0".parse().unwrap()));
    let name = named.local_addr().unwrap().to_string();
    let mut behind = Behind::allocate(&server, v2(&name, &server.udp_address().to_string()));
    behind.bind(peer.local_addr().unwrap());
    let later = proxy_socket(behind.to);
    later.connect(behind.to).unwrap();
    let earlier = std::mem::replace(&mut behind.proxy, later);
    let other = [v2(CLIENT, FRONT), binding(1)].concat();
    earlier.send(&other).unwrap();
    assert_eq!(Message::parse(&receive(&earlier).0).unwrap().class(), Class::Success);
    peer.send_to(b"lost", behind.relayed).unwrap();
    // The allocation is not one for a client without a proxy.
    named.send_to(&channel_data(b"forged"), behind.to).unwrap();
    server.wait_for_log(|line| line.message().contains("proxy-path-lost"));
    behind.proxy.send(&[behind.header.clone(), channel_data(b"here")].concat()).unwrap();
    assert_eq!(receive(&peer).0, b"here");
    peer.send_to(b"there", behind.relayed).unwrap();
    assert_eq!(receive(&behind.proxy).0, channel_data(b"there"));
    for unused in [&earlier, &named] {
        unused.set_nonblocking(true).unwrap();
        assert_eq!(unused.recv(&mut [0; 64]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
    let outcomes = stopped(server, "outcomes");
    for expected in ["proxy-path-lost: 1", "proxy-conflict: 1"] {
        assert!(outcomes.contains(expected), "{expected} in {outcomes}");
    }
}

#[test]
fn two_clients_with_one_address_are_told_apart_by_the_address_that_they_reach() {
    let server = Server::start(&behind_proxies("127.0.0.1", ""));
    let [one, two] = ["203.0.113.1:443", "203.0.113.1:3478"].map(|front| Behind::allocate(&server, v2(CLIENT, front)));
    assert_ne!(one.relayed, two.relayed);
}

// A header cannot take over the allocation of a client that is not behind the proxy, and the other way round.
#[test]
fn a_client_without_a_proxy_and_one_behind_it_do_not_share_a_5_tuple() {
    let server = Server::start(&behind_proxies("127.0.0.1", LOOPBACK_PEERS));
    let to = server.udp_address();
    let direct = Client::new(to);
    let (_, relayed) = direct.allocate(&Login::mint("alice", 600)).unwrap();
    let proxy = proxy_socket(to);
    let header = v2(&direct.address().to_string(), &to.to_string());
    let request = Request::Allocate(Allocate::default());
    let allocate = message(Class::Request, Method::ALLOCATE, TransactionId::new([5; 12]), &|w| request.encode(w));
    proxy.send_to(&[header, allocate].concat(), to).unwrap();
    // The other direction.
    let other = socket("127.0.0.1:0".parse().unwrap());
    let taken = Behind::allocate(&server, v2(&other.local_addr().unwrap().to_string(), &to.to_string()));
    other.send_to(&binding(1), to).unwrap();
    assert_eq!(direct.binding(), direct.address());
    assert_ne!(relayed, taken.relayed);
    assert!(stopped(server, "outcomes").contains("dropped proxy-conflict: 2"));
}

#[test]
fn a_reload_without_the_proxy_ends_its_allocations_and_serves_its_address_as_a_client() {
    let with_proxies = behind_proxies("127.0.0.1", "");
    let server = Server::start(&with_proxies);
    let behind = Behind::allocate(&server, v2(CLIENT, FRONT));
    let without = with_proxies.lines().filter(|line| !line.starts_with("proxies"));
    server.write_config(&without.collect::<Vec<_>>().join("\n"));
    server.signal(Signal::SIGHUP);
    let ended = server.wait_for_log(|line| is(line, "allocation-ended"));
    assert_eq!(ended.field("client").as_deref(), Some(CLIENT));
    let real = behind.proxy.local_addr().unwrap();
    behind.proxy.send(&binding(1)).unwrap();
    let response = receive(&behind.proxy).0;
    assert_eq!(Message::parse(&response).unwrap().get::<XorMappedAddress>().unwrap().unwrap().0, real);
}

#[test]
fn a_server_without_proxies_does_not_read_headers() {
    let server = Server::start(&config(&["127.0.0.1"], ""));
    let client = socket("127.0.0.1:0".parse().unwrap());
    let to = server.udp_address();
    let datagrams = [[v2(CLIENT, FRONT), binding(1)].concat(), binding(2)];
    assert_eq!(mapped(&client, to, &datagrams, 1), [client.local_addr().unwrap()]);
    let line = server.wait_for_log(|line| is(line, "proxy-not-listed"));
    assert!(line.message().contains("listen.proxies"), "{line:?}");
    assert!(stopped(server, "outcomes").contains("dropped unknown-protocol: 1"));
}
