//! Calls over a fleet of relays.

use std::time::Duration;

use serde_json::Value;
use turnserver::clock::Clock;

use crate::cluster::{self, Cluster};
use crate::data::chat;
use crate::driver::Driver;
use crate::homes::Inside;
use crate::node::{KEY, Node};
use crate::participant::Participant;
use crate::place::{Servers, only};
use crate::relay::Relay;
use crate::support::network::{Host, in_own_network};
use crate::support::{TIMEOUT, TempDir, skip};
use crate::table::Row;

const NODES: usize = 5;

/// The longest time without a picture. The machine may be busy.
const STILL: Duration = Duration::from_secs(5);

/// The nodes, at 192.0.2.11 and the addresses after it.
struct Fleet {
    nodes: Vec<Relay>,
    /// The state directories, and the key.
    directory: TempDir,
}

fn name(index: usize) -> String {
    format!("node-{index}")
}

fn address(index: usize) -> String {
    format!("192.0.2.{}", 11 + index)
}

impl Fleet {
    fn start() -> Self {
        let mut fleet = Self { nodes: Vec::new(), directory: TempDir::new() };
        fleet.nodes = (0..NODES).map(|index| fleet.node(index)).collect();
        fleet.wait_for_nodes();
        fleet
    }

    fn node(&self, index: usize) -> Relay {
        let node = Node {
            name: &name(index),
            address: &address(index),
            peers: &(0..NODES).map(address).collect::<Vec<_>>(),
            state: &self.directory.path().join(name(index)),
            keys: "",
            more: "",
        };
        Relay::start_from(TempDir::new(), &node.config())
    }

    /// Waits until each node sees all nodes, none of which drains.
    fn wait_for_nodes(&self) {
        let clock = Clock::start();
        for node in &self.nodes {
            loop {
                let fleet = node.ctl(&["--fleet", "status"]);
                if fleet["totals"]["nodes"] == NODES && fleet["totals"]["draining"] == 0 {
                    break;
                }
                assert!(clock.elapsed() < TIMEOUT, "{fleet}\n{}", node.output());
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }

    /// Returns the options of `rooms` that name the endpoint of each node.
    fn options(&self) -> Vec<String> {
        let urls = (0..NODES).map(|index| format!("http://{}:9641/v1/ice-servers", address(index)));
        let key = self.directory.write("key", KEY).display().to_string();
        urls.flat_map(|url| ["--credentials-url".to_owned(), url])
            .chain(["--credentials-key-file".to_owned(), key])
            .collect()
    }
}

/// Returns the nodes that carry the connections of a participant, on both sides.
fn used(participant: &Participant<'_>) -> Vec<usize> {
    let paths = participant.paths_over("udp");
    let uses = |path: &Value, index: usize| {
        let url = format!("turn:{}:3478?transport=udp", address(index));
        path["url"] == url || path["remoteAddress"] == address(index)
    };
    (0..NODES).filter(|index| paths.iter().any(|path| uses(path, *index))).collect()
}

/// Returns the longest time without a picture since the last call.
fn longest_gap(participant: &Participant<'_>) -> Duration {
    Duration::from_millis(participant.run("return Math.round(observer.longestGap());").as_u64().unwrap())
}

/// Returns who is in the room, how many connections were made, and how many were lost.
fn call(participant: &Participant<'_>) -> Value {
    participant.run(
        "const { id, peers } = rooms.state;
         const lost = observer.states().filter((state) => state === 'failed' || state === 'closed').length;
         return { id, peers: peers.map(({ id }) => id), made: observer.made(), lost };",
    )
}

/// A rolling restart of all nodes during a call of two.
fn rolling_restart(mode: &str, connections: usize) {
    if !cluster::is_installed() {
        return skip("nats-server is missing");
    }
    let addresses: Vec<String> = (0..NODES).map(address).chain(["192.0.2.1".to_owned()]).collect();
    let setup: Vec<String> = addresses.iter().map(|address| format!("addr add {address}/32 dev lo")).collect();
    let setup: Vec<&str> = ["link set lo up"].into_iter().chain(setup.iter().map(String::as_str)).collect();
    in_own_network(&setup, || {
        let _cluster = Cluster::start(cluster::OPEN);
        let mut fleet = Fleet::start();
        let servers = Servers::without_relays("192.0.2.1:443", &fleet.options());
        let host = Host::new(1);
        host.ip("route add default via 10.0.1.1");
        let browser = Inside::start(&host);
        let drivers: [&dyn Driver; 2] = [&browser, &browser];
        let [ann, ben] = &servers.pair(drivers, &only("udp"));
        if mode != "mesh" {
            ann.run(&format!("rooms.setMode('{mode}');"));
        }
        for participant in [ann, ben] {
            let connected = format!("state.mode === '{mode}' && (await observer.paths()).length === {connections}");
            participant.wait("for the connections", &connected);
            participant.wait("for the picture", "peer.framesDecoded > 0");
            participant.wait_for_frames(30);
            participant.run("observer.follow();");
        }
        let before = [ann, ben].map(call);
        assert_eq!((&before[0]["made"], &before[0]["lost"]), (&connections.into(), &0.into()));

        let (mut left, mut moves, mut longest): (Vec<usize>, _, _) = ((0..NODES).collect(), 0, Duration::ZERO);
        while !left.is_empty() {
            // First those that are used.
            let is_used = |index: &usize| [ann, ben].iter().any(|participant| used(participant).contains(index));
            let index = left.remove(left.iter().position(is_used).unwrap_or_default());
            let moving: Vec<_> = [ann, ben].into_iter().filter(|one| used(one).contains(&index)).collect();
            let clock = Clock::start();
            fleet.nodes[(index + 1) % NODES].ctl(&["--fleet", "--node", &name(index), "drain"]);
            let is_away = format!(
                "await observer.paths().then((paths) => paths.length === {connections} &&
                   !paths.some(({{ url, remoteAddress }}) => url.includes('{0}:') || remoteAddress === '{0}'))",
                address(index)
            );
            for participant in &moving {
                participant.wait("to leave the node that drains", &is_away);
            }
            let moved = clock.elapsed();
            // As an operator does when no call uses it: Chromium keeps the old allocation for 80 s, or until the call ends
            // if the other side goes on checking the old path.
            fleet.nodes[index].stop();
            fleet.nodes[index] = fleet.node(index);
            fleet.wait_for_nodes();
            for participant in [ann, ben] {
                participant.wait_for_frames(20);
            }
            let still = [ann, ben].map(longest_gap);
            println!(
                "{mode}: the calls of {} of 2 left {} within {:.1} s; no picture for {} ms and {} ms",
                moving.len(),
                name(index),
                moved.as_secs_f64(),
                still[0].as_millis(),
                still[1].as_millis()
            );
            moves += moving.len();
            longest = longest.max(still[0]).max(still[1]);
        }
        // No connection was ended or made, and no participant was removed.
        assert_eq!(before, [ann, ben].map(call));
        assert!(moves > 1 && longest < STILL, "{moves} moves, no picture for {longest:?}");
        chat(ann, ben);
        let seen = format!(
            "{moves} moves before the nodes ended, at most {} ms without a picture, no connection lost",
            longest.as_millis()
        );
        Row {
            system: &format!("restart of all nodes of a fleet, {mode}"),
            transport: "udp",
            browsers: "Chromium",
            network: "relay only",
            seen: &seen,
            first_frame: None,
        }
        .report();
    });
}

#[test]
#[ignore = "it takes minutes"]
fn a_call_goes_on_while_each_node_of_a_fleet_is_drained_and_restarted() {
    rolling_restart("mesh", 1);
}

#[test]
#[ignore = "it takes minutes"]
fn a_call_with_the_forwarding_unit_goes_on_while_each_node_of_a_fleet_is_drained_and_restarted() {
    rolling_restart("sfu", 3);
}
