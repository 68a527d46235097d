//! The program between two network namespaces: real sockets, whose kernel verifies every checksum.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use aya::programs::XdpMode;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::gettid;
use turnserver::offload::maps::Maps;

use crate::example::{CHANNEL, DIRECTIONS, FAMILIES};
use crate::frame::channel_data;
use crate::kernel::{Kernel, LEASED, is_linux_6_1, skip};
use crate::layout::{Direction, Entry, Outcome, Received, Sent};

/// A host on the other end of one interface of the server. Network `n` is 10.0.n.0/24 and fd00:n::/64; the server is
/// host 1 there, and the other end is host 2. The last bytes of the link addresses are n and the host.
struct Host {
    network: u8,
    clients: Sockets,
    peers: Sockets,
    /// The program that makes the interface accept redirected packets.
    _accepting: Kernel,
}

/// Who computes the UDP checksums of what a host sends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Checksums {
    /// Its kernel.
    Computed,
    /// The interface, which leaves them to the other end, because that is this machine too.
    Left,
}

struct Sockets {
    v4: UdpSocket,
    v6: UdpSocket,
}

impl Sockets {
    fn of_family(&self, v4: bool) -> &UdpSocket {
        if v4 { &self.v4 } else { &self.v6 }
    }
}

#[test]
fn data_arrives_through_one_and_two_interfaces() {
    in_a_namespace(|kernel| {
        let hosts = [host(1, Checksums::Computed), host(2, Checksums::Computed)];
        for name in ["n1", "n2"] {
            kernel.program("relay").attach(name, XdpMode::Driver).unwrap();
        }
        let pairs = [(0, 0), (0, 1), (1, 0)].into_iter().flat_map(|hosts| FAMILIES.map(|families| (hosts, families)));
        for (number, ((client, peer), families)) in (1..).zip(pairs) {
            exchange(kernel, number, &hosts[client], &hosts[peer], families);
        }
    });
}

/// As the other ends of veth interfaces do by default.
#[test]
fn data_of_hosts_that_leave_checksums_to_a_device_goes_to_user_space() {
    in_a_namespace(|kernel| {
        let hosts = [host(1, Checksums::Left), host(2, Checksums::Left)];
        for name in ["n1", "n2"] {
            kernel.program("relay").attach(name, XdpMode::Driver).unwrap();
        }
        let pairs = [(0, 0), (0, 1)].into_iter().flat_map(|hosts| FAMILIES.map(|families| (hosts, families)));
        for (number, ((client, peer), families)) in (1..).zip(pairs) {
            let ends = insert(kernel, number, &hosts[client], &hosts[peer], families);
            let before = (kernel.outcome(Outcome::PartialChecksum), kernel.outcome(Outcome::Relayed));
            for (sender, receiver, data) in [
                (ends.client, ends.listener, channel_data(CHANNEL + number, &[7; 100])),
                (ends.peer, ends.relayed, vec![8; 100]),
            ] {
                let user_space = UdpSocket::bind(receiver).unwrap();
                user_space.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                sender.send_to(&data, receiver).unwrap();
                let mut buffer = [0; 2000];
                let (length, source) = user_space.recv_from(&mut buffer).expect("user space gets the data");
                assert_eq!((&buffer[..length], source), (&data[..], sender.local_addr().unwrap()));
            }
            let after = (kernel.outcome(Outcome::PartialChecksum), kernel.outcome(Outcome::Relayed));
            assert_eq!(after, (before.0 + 2, before.1));
        }
    });
}

/// Runs a test in a network namespace of its own.
fn in_a_namespace(test: impl FnOnce(&mut Kernel) + Send) {
    if [("ip", "-V"), ("ethtool", "--version")]
        .iter()
        .any(|(name, flag)| Command::new(name).arg(flag).output().is_err())
    {
        return skip("`ip` or `ethtool` is missing");
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
                return skip(&format!("no privilege to create a network namespace ({error})"));
            }
            let Some(mut kernel) = Kernel::load() else { return };
            test(&mut kernel);
        });
    });
}

/// The ends of a channel.
struct Ends<'a> {
    client: &'a UdpSocket,
    listener: SocketAddr,
    peer: &'a UdpSocket,
    relayed: SocketAddr,
}

/// Inserts the entries of a channel between a client and a peer.
fn insert<'a>(
    kernel: &mut Kernel,
    number: u16,
    client: &'a Host,
    peer: &'a Host,
    (client_v4, peer_v4): (bool, bool),
) -> Ends<'a> {
    let mut maps = Maps::new(kernel.descriptors()).unwrap();
    let listener = SocketAddr::new(address(client_v4, client.network, 1), 3478);
    let relayed = SocketAddr::new(address(peer_v4, peer.network, 1), 50_000 + number);
    let (client_network, peer_network) = (client.network, peer.network);
    let (client, peer) = (client.clients.of_family(client_v4), peer.peers.of_family(peer_v4));
    for direction in DIRECTIONS {
        let client_side = (client.local_addr().unwrap(), listener, client_network);
        let peer_side = (peer.local_addr().unwrap(), relayed, peer_network);
        let ((source, destination, _), (to, from, network)) = match direction {
            Direction::ToPeer => (client_side, peer_side),
            Direction::ToClient => (peer_side, client_side),
        };
        let entry = Entry {
            direction,
            received: Received { source, destination },
            sent: Sent {
                source: from,
                destination: to,
                interface: if_nametoindex(format!("n{network}").as_str()).unwrap(),
                is_redirected: number.is_multiple_of(2),
                link_destination: [2, 0, 0, 0, network, 2],
                link_source: [2, 0, 0, 0, network, 1],
                longest_packet: 1500,
                flow_label: 5,
                identification: 9,
            },
            channel: CHANNEL + number,
            expires: u64::MAX,
            slot: u32::from(2 * number) + u32::from(direction == Direction::ToClient),
            worker: LEASED,
        };
        maps.insert(&entry).unwrap();
    }
    Ends { client, listener, peer, relayed }
}

/// Sends data both ways between a client and a peer.
fn exchange(kernel: &mut Kernel, number: u16, client: &Host, peer: &Host, families: (bool, bool)) {
    let Ends { client, listener, peer, relayed } = insert(kernel, number, client, peer, families);
    let before = kernel.outcome(Outcome::Relayed);
    let mut buffer = [0; 2000];
    for length in [18, 19, 20, 21, 33, 500, 1001, 1400] {
        let data = vec![0xa7; length];
        client.send_to(&channel_data(CHANNEL + number, &data), listener).unwrap();
        let (received, source) = peer.recv_from(&mut buffer).expect("the data arrives at the peer");
        assert_eq!((&buffer[..received], source), (&data[..], relayed));
        peer.send_to(&data, relayed).unwrap();
        let (received, source) = client.recv_from(&mut buffer).expect("the data arrives at the client");
        assert_eq!((&buffer[..received], source), (&channel_data(CHANNEL + number, &data)[..], listener));
    }
    assert_eq!(kernel.outcome(Outcome::Relayed) - before, 16);
    merged_datagrams(CHANNEL + number, client, listener, peer, relayed);
    short_datagrams(kernel, client, peer, relayed);
}

/// Sends several datagrams as one message (`UDP_SEGMENT`). They are relayed one by one.
fn merged_datagrams(channel: u16, client: &UdpSocket, listener: SocketAddr, peer: &UdpSocket, relayed: SocketAddr) {
    const LENGTH: i32 = 200;
    let mut buffer = [0; 2000];
    setsockopt(peer, sockopt::UdpGsoSegment, &LENGTH).unwrap();
    let data = [[1; 200], [2; 200], [3; 200]];
    let sent = peer.send_to(&data.concat(), relayed);
    if is_linux_6_1() && sent.is_err() {
        // It splits no message for an interface that computes no checksums.
        setsockopt(peer, sockopt::UdpGsoSegment, &0).unwrap();
        return;
    }
    sent.unwrap();
    for data in &data {
        let received = client.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..received], channel_data(channel, data));
    }
    setsockopt(peer, sockopt::UdpGsoSegment, &0).unwrap();

    setsockopt(client, sockopt::UdpGsoSegment, &(LENGTH + 4)).unwrap();
    client.send_to(&data.map(|data| channel_data(channel, &data)).concat(), listener).unwrap();
    for data in &data {
        let received = peer.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..received], data[..]);
    }
    setsockopt(client, sockopt::UdpGsoSegment, &0).unwrap();
}

/// The most attempts to receive a datagram, which takes the kernel far less time than this.
const ATTEMPTS: usize = 10_000_000;

/// Sends datagrams whose frames are too short. The driver may have no room for padding, and then user space gets them.
fn short_datagrams(kernel: &mut Kernel, client: &UdpSocket, peer: &UdpSocket, relayed: SocketAddr) {
    let (relayed_before, passed_before) = (kernel.outcome(Outcome::Relayed), kernel.outcome(Outcome::NoTailroom));
    let user_space = UdpSocket::bind(relayed).unwrap();
    user_space.set_nonblocking(true).unwrap();
    let mut passed = 0;
    let mut buffer = [0; 2000];
    for length in 0..14 {
        let data = vec![0x5a; length];
        peer.send_to(&data, relayed).unwrap();
        client.set_nonblocking(true).unwrap();
        let arrived = (0..ATTEMPTS).any(|_| {
            if let Ok(received) = user_space.recv(&mut buffer) {
                assert_eq!(buffer[..received], data);
                passed += 1;
                return true;
            }
            if let Ok(received) = client.recv(&mut buffer) {
                assert_eq!(buffer[4..received], data);
                return true;
            }
            thread::yield_now();
            false
        });
        assert!(arrived, "{length} bytes");
        client.set_nonblocking(false).unwrap();
    }
    assert_eq!(kernel.outcome(Outcome::NoTailroom) - passed_before, passed);
    assert_eq!(kernel.outcome(Outcome::Relayed) - relayed_before, 14 - passed);
}

/// Connects the namespace of this thread to a new one with a veth pair, and returns the host in it.
fn host(network: u8, checksums: Checksums) -> Host {
    let (near, far) = (format!("n{network}"), format!("f{network}"));
    let link = |host: u8| format!("02:00:00:00:{network:02x}:{host:02x}");
    run(&format!("ip link add {near} address {} type veth peer name {far} address {}", link(1), link(2)));
    let (to_host, moved) = mpsc::channel();
    let (to_server, namespace) = mpsc::channel();
    thread::scope(|scope| {
        let far_name = far.clone();
        let host = scope.spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            to_server.send(gettid()).unwrap();
            moved.recv().unwrap();
            configure(&far_name, network, 2, checksums);
            let mut accepting = Kernel::load().unwrap();
            accepting.program("pass_all").attach(&far_name, XdpMode::Driver).unwrap();
            let bind = |v4| {
                let socket = UdpSocket::bind((address(v4, network, 2), 0)).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                socket
            };
            let sockets = || Sockets { v4: bind(true), v6: bind(false) };
            Host { network, clients: sockets(), peers: sockets(), _accepting: accepting }
        });
        run(&format!("ip link set {far} netns {}", namespace.recv().unwrap()));
        configure(&near, network, 1, checksums);
        to_host.send(()).unwrap();
        host.join().unwrap()
    })
}

fn configure(interface: &str, network: u8, host: u8, checksums: Checksums) {
    run(&format!("ip addr add {}/24 dev {interface}", address(true, network, host)));
    run(&format!("ip addr add {}/64 dev {interface} nodad", address(false, network, host)));
    if checksums == Checksums::Computed {
        run(&format!("ethtool -K {interface} tx off"));
    }
    run(&format!("ip link set {interface} up"));
}

fn address(v4: bool, network: u8, host: u8) -> IpAddr {
    if v4 {
        IpAddr::from([10, 0, network, host])
    } else {
        IpAddr::from([0xfd00, network.into(), 0, 0, 0, 0, 0, host.into()])
    }
}

fn run(line: &str) {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}
