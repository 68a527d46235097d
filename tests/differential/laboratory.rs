//! Both servers, with clients and peers in network namespaces of their own.

use std::fmt::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use turnserver::stun::{Class, Method, TransactionId};

use crate::explained::{Case, EXPLANATIONS, Explanation, diverges_silently};
use crate::observe::{Difference, Seen, compare};
use crate::operations::{Operation, Sequence};
use crate::party::{Listening, PEERS, Party, SERVER, USERS};
use crate::support::client::message;
use crate::support::network::{Host, Namespace};
use crate::support::{Process, REALM, Server, TempDir};

/// Debian's coturn. Our program has the same name.
const COTURN: &str = "/usr/bin/turnserver";
const SERVER6: &str = "fd00:1::1";
const COTURN_PORT: u16 = 3578;

pub(crate) struct Laboratory {
    ours: (Listening, Server),
    coturn: (Listening, Process),
    clients: Namespace,
    peers: Host,
    _clients: Host,
    _directory: TempDir,
}

/// The sockets of one thread that runs sequences.
pub(crate) struct Lane {
    listening: [Listening; 2],
    peers: [Vec<UdpSocket>; 2],
}

/// What a sequence has shown.
pub(crate) struct Run {
    pub(crate) operations: usize,
    pub(crate) explained: Vec<&'static Explanation>,
    /// The kind of a difference that is not explained. It ends the sequence.
    pub(crate) unexplained: Option<String>,
    pub(crate) transcript: String,
}

impl Laboratory {
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
    pub(crate) fn lane(&self) -> Lane {
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
        Lane { listening: [self.ours.0, self.coturn.0], peers: [sockets().into(), sockets().into()] }
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

impl Lane {
    /// Runs a sequence. If a difference is not explained, runs it again, so that timing does not explain it.
    pub(crate) fn run_until_certain(&self, sequence: &Sequence) -> Run {
        let run = self.run(sequence, false);
        if run.unexplained.is_some() { self.run(sequence, true) } else { run }
    }

    pub(crate) fn run_patiently(&self, sequence: &Sequence) -> Run {
        self.run(sequence, true)
    }

    /// Runs a sequence until the two servers are in different states.
    fn run(&self, sequence: &Sequence, patient: bool) -> Run {
        let [mut ours, mut coturn] =
            [0, 1].map(|at| Party::new(self.listening[at], &self.peers[at], &sequence.clients, patient));
        let mut run = Run { operations: 0, explained: Vec::new(), unexplained: None, transcript: String::new() };
        for (at, operation) in sequence.operations.iter().enumerate() {
            if ours.is_closed(operation.client()) {
                continue;
            }
            let mut seen = [ours.step(at, operation), coturn.step(at, operation)];
            if patient && seen[0].is_empty() != seen[1].is_empty() {
                let late = if seen[0].is_empty() { &mut ours } else { &mut coturn };
                let more = late.wait(operation.client());
                seen.iter_mut().filter(|seen| seen.is_empty()).for_each(|seen| seen.clone_from(&more));
            }
            run.operations += 1;
            let differences = compare(&seen[0], &seen[1]);
            write_step(&mut run.transcript, at, operation, &seen, &differences);
            let before = &sequence.operations[..at];
            let is_repeated = matches!(operation, Operation::Again { .. });
            let is_original = |earlier: &&Operation| matches!(earlier, Operation::Message { client, .. } if *client == operation.client());
            let original = before.iter().rev().find(is_original).filter(|_| is_repeated);
            let mut ends = diverges_silently(original.unwrap_or(operation));
            for difference in &differences {
                let operation = original.unwrap_or(operation);
                let case = Case { before, operation, is_repeated, difference, clients: &sequence.clients };
                match EXPLANATIONS.iter().find(|explanation| (explanation.matches)(&case)) {
                    Some(explanation) => {
                        ends |= explanation.ends;
                        run.explained.push(explanation);
                    }
                    None if run.unexplained.is_none() => run.unexplained = Some(case.kind()),
                    None => {}
                }
            }
            if ends || run.unexplained.is_some() {
                break;
            }
        }
        ours.finish();
        coturn.finish();
        run
    }
}

fn write_step(
    transcript: &mut String,
    at: usize,
    operation: &Operation,
    seen: &[Vec<Seen>; 2],
    differences: &[Difference],
) {
    writeln!(transcript, "{at:3}. {operation}").unwrap();
    for (server, seen) in ["ours  ", "coturn"].iter().zip(seen) {
        seen.iter().for_each(|seen| writeln!(transcript, "       {server} -> {seen}").unwrap());
    }
    differences.iter().for_each(|difference| writeln!(transcript, "       difference: {difference}").unwrap());
}
