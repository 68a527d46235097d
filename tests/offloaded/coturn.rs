//! coturn's test client and echo peer (Debian package `coturn`) over the offload. Needs the feature `interop`.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use crate::interfaces::wait_until;
use crate::support::{Process, TIMEOUT, run};
use crate::world::{LISTENERS, PEERS, RELAYS, in_host, socket_of, with_server};

const PACKAGE: Option<&str> = Some("coturn");
const CLIENTS: u64 = 4;
const MESSAGES: u64 = 200;
const LENGTH: u64 = 1_000;

#[test]
fn all_bytes_of_coturns_client_come_back_through_the_kernel() {
    for (version, family) in [(0, "-X"), (1, "-x")] {
        // The client uses channel numbers of RFC 5766.
        with_server("[compat]\nrfc5766-channels = true\n", |world| {
            let peer = socket_of(&world.network.peer, PEERS[version]).local_addr().unwrap();
            let _peer = in_host(&world.network.peer, move || {
                let [ip, port] = [peer.ip().to_string(), peer.port().to_string()];
                Process::start(Command::new("turnutils_peer").args(["-p", &port, "-L", &ip]), PACKAGE)
            });
            wait_for_echo(version, peer);

            let credential = world.controlled.server.credential("uclient");
            let listener = world.controlled.server.udp_address_on(LISTENERS[version].parse().unwrap());
            let before = world.in_kernel();
            let finished = in_host(&world.network.client, move || {
                let mut command = Command::new("turnutils_uclient");
                command.args(["-u", &credential.username, "-w", &credential.password, "-c", family, "-z", "5"]);
                command.args(["-m", &CLIENTS.to_string(), "-n", &MESSAGES.to_string(), "-l", &LENGTH.to_string()]);
                command.args(["-e", &peer.ip().to_string(), "-r", &peer.port().to_string()]);
                command.args(["-p", &listener.port().to_string(), &listener.ip().to_string()]);
                run(&mut command, PACKAGE, TIMEOUT)
            });
            let (messages, bytes) = (CLIENTS * MESSAGES, CLIENTS * MESSAGES * LENGTH);
            let all = format!("start_mclient: tot_send_msgs={messages}, tot_recv_msgs={messages}");
            assert!(finished.stdout.iter().any(|line| line.ends_with(&all)), "{finished:#?}");

            let relayed = world.in_kernel().since(before).packets;
            println!("IPv{}: the kernel relays {relayed:?} of {messages} packets", if version == 0 { 4 } else { 6 });
            assert!(relayed.iter().all(|packets| *packets > messages / 2), "{relayed:?}");
            world.controlled.server.wait_for_logs(|lines| {
                let bytes_of = |field: &str| -> u64 {
                    let ended = lines.iter().filter(|line| line.message() == "allocation ended");
                    ended.map(|line| line.field(field).unwrap().parse::<u64>().unwrap()).sum()
                };
                [bytes_of("bytes_to_peers"), bytes_of("bytes_to_client")] == [bytes; 2]
            });
            world.assert_checksums();
        });
    }
}

/// Waits until a peer sends back what it receives.
fn wait_for_echo(version: usize, peer: SocketAddr) {
    let probe = UdpSocket::bind((RELAYS[version], 0)).unwrap();
    probe.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    wait_until(|| {
        probe.send_to(b"are you there?", peer).unwrap();
        probe.recv_from(&mut [0; 64]).map(drop).map_err(|error| error.to_string())
    });
}
