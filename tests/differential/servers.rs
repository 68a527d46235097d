//! Both servers, with clients and peers in network namespaces of their own.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use turnserver::stun::{Class, Method, TransactionId};

use crate::run::Runner;
use crate::side::{Listening, PEERS, SERVER, USERS};
use crate::support::client::message;
use crate::support::network::{Host, Namespace};
use crate::support::{Process, REALM, Server, TempDir};

/// Debian's coturn. Our program has the same name.
const COTURN: &str = "/usr/bin/turnserver";
const SERVER6: &str = "fd00:1::1";
const COTURN_PORT: u16 = 3578;

pub(crate) struct Servers {
    ours: (Listening, Server),
    coturn: (Listening, Process),
    clients: Namespace,
    peers: Host,
    _clients: Host,
    _directory: TempDir,
}

impl Servers {
    pub(crate) fn new() -> Self {
        let (clients, peers) = (Host::new(1), Host::new(2));
        peers.ip("addr add 10.0.2.3/24 dev n2");
        peers.ip("route add 10.0.1.0/24 via 10.0.2.1");
        peers.ip("-6 route add fd00:1::/64 via fd00:2::1");
        let namespace = clients.run(Namespace::own);
        let server = SERVER.to_string();
        let users: String = USERS
            .map(|(name, password)| format!("[[auth.users]]\nname = {name:?}\npassword = {password:?}\n"))
            .concat();
        let listen = [format!("{SERVER}:0"), format!("[{SERVER6}]:0")];
        let addresses = [&server, SERVER6];
        let config = format!(
            "realm = {REALM:?}\n[listen]\nudp = {listen:?}\ntcp = {listen:?}\n\
             [relay]\naddresses = {addresses:?}\nports = \"10000-39999\"\n[log]\nformat = \"json\"\n\
             {users}[peers]\nallow = [\"10.0.2.0/24\", \"fd00:2::/64\"]\n\
             [limits]\nunverified-responses = 0\nfailed-authentications = 0\nconnections-per-source = 0\n\
             [compat]\ndraft-dual-allocation = true\n[offload]\nmode = \"off\"\n"
        );
        let ours = Server::start(&config);
        let udp6 = ours.udp_address_on(SERVER6.parse().unwrap());
        let (udp, tcp) = (ours.udp_address_on(SERVER.into()), ours.tcp_address_on(SERVER.into()));
        let directory = TempDir::new();
        let coturn = start_coturn(&directory);
        let listening = Listening {
            udp: (SERVER, COTURN_PORT).into(),
            udp6: SocketAddr::new(SERVER6.parse().unwrap(), COTURN_PORT),
            tcp: (SERVER, COTURN_PORT).into(),
        };
        wait_until_ready(&coturn, listening);
        Self {
            ours: (Listening { udp, udp6, tcp }, ours),
            coturn: (listening, coturn),
            clients: namespace,
            peers,
            _clients: clients,
            _directory: directory,
        }
    }

    /// Moves this thread to the clients.
    pub(crate) fn runner(&self) -> Runner {
        self.clients.enter();
        let sockets = || {
            self.peers.run(|| {
                PEERS.map(|(_, ip)| {
                    let socket = UdpSocket::bind((ip, 0)).unwrap();
                    socket.set_nonblocking(true).unwrap();
                    socket
                })
            })
        };
        Runner { listening: [self.ours.0, self.coturn.0], peers: [0; 3].map(|_| sockets().into()) }
    }
}

fn start_coturn(directory: &TempDir) -> Process {
    let own = |name: &str| directory.path().join(name).display().to_string();
    let mut command = Command::new(COTURN);
    command.args(["-n", "--no-tls", "--no-dtls", "--no-cli", "--lt-cred-mech", "--realm", REALM]);
    for (name, password) in USERS {
        command.args(["--user", &format!("{name}:{password}")]);
    }
    for address in [SERVER.to_string(), SERVER6.to_owned()] {
        command.args(["--listening-ip", &address, "--relay-ip", &address]);
    }
    command.args(["--listening-port", &COTURN_PORT.to_string(), "--min-port", "40000", "--max-port", "65535"]);
    command.args(["--denied-peer-ip", "10.0.3.0-10.0.3.255", "--no-multicast-peers"]);
    command.args(["--log-file", &own("coturn.log"), "--no-stdout-log"]);
    command.args(["--pidfile", &own("coturn.pid"), "--userdb", &own("coturn.db")]);
    Process::start(&mut command, Some("coturn"))
}

/// Sends Binding requests until coturn responds on each address.
fn wait_until_ready(coturn: &Process, listening: Listening) {
    let request = message(Class::Request, Method::BINDING, TransactionId::new([1; 12]), &|_| {});
    for server in [listening.udp, listening.udp6] {
        let socket = UdpSocket::bind(SocketAddr::new(server.ip(), 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let is_ready = |_| socket.send_to(&request, server).is_ok() && socket.recv(&mut [0; 1500]).is_ok();
        assert!((0..600).any(is_ready), "coturn is not ready; its output:\n{}", coturn.output());
    }
}
