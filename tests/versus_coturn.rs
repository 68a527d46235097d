//! Tests of the parts of the benchmark. `cargo bench` does not run them.

#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "../benches/versus_coturn/comparison.rs"]
mod comparison;
#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "../benches/versus_coturn/interrupt.rs"]
mod interrupt;
#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "../benches/versus_coturn/load/mod.rs"]
mod load;
#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "../benches/versus_coturn/network.rs"]
mod network;
#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "../benches/versus_coturn/offload.rs"]
mod offload;
#[path = "../benches/versus_coturn/output.rs"]
mod output;
#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "../benches/versus_coturn/process.rs"]
mod process;
#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "../benches/versus_coturn/round.rs"]
mod round;
#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "../benches/versus_coturn/scenario.rs"]
mod scenario;
#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "../benches/versus_coturn/server.rs"]
mod server;
#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "../benches/versus_coturn/side.rs"]
mod side;
#[path = "../benches/versus_coturn/summary.rs"]
mod summary;
#[cfg(test)]
mod support;
#[path = "../benches/versus_coturn/table.rs"]
mod table;

/// The load generator drives our server on loopback.
#[cfg(test)]
mod through_a_server {
    use std::fs;
    use std::hash::{BuildHasher, RandomState};
    use std::net::SocketAddr;
    use std::path::PathBuf;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread::JoinHandle;

    use serde_json::Value;

    use crate::load::clock::{self, MILLISECOND};
    use crate::load::{Commands, Job, Outcome, PASSWORD, Report, USER, Window, client, peer};
    use crate::scenario::{Direction, Framing, Load, Pace, Scenario, Shape, Transport, Work};
    use crate::support::{Server, TIMEOUT, config_without_secret};

    const LOAD: Load = Load {
        transport: Transport::Udp,
        direction: Direction::Up,
        framing: Framing::Channel,
        flows: 3,
        payload: 500,
        pace: Pace::Rate(600),
        shape: Shape::Single,
    };

    /// A directory with a short path, because a Unix socket's path has at most 107 bytes.
    struct ShortDir(PathBuf);

    impl ShortDir {
        fn new() -> Self {
            let name = format!("load-{:016x}", RandomState::new().hash_one(std::process::id()));
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for ShortDir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// A client or a peer in a thread.
    struct Role {
        commands: Sender<String>,
        lines: Receiver<String>,
        thread: JoinHandle<Outcome<()>>,
    }

    impl Role {
        fn start(job: Job, part: fn(&Job, &Commands, Report<'_>) -> Outcome<()>) -> Self {
            let (commands, received) = channel();
            let (reports, lines) = channel();
            let thread = std::thread::spawn(move || {
                part(&job, &Commands(received), &mut |line| reports.send(line.to_owned()).unwrap())
            });
            Self { commands, lines, thread }
        }

        fn wait_for(&self, wanted: &str) -> String {
            let line = self.lines.recv_timeout(TIMEOUT).unwrap();
            line.strip_prefix(wanted).unwrap_or_else(|| panic!("{wanted:?} is not {line:?}")).trim().to_owned()
        }

        fn result(self) -> Value {
            let result = self.wait_for("result");
            self.thread.join().unwrap().unwrap();
            serde_json::from_str(&result).unwrap()
        }
    }

    fn server() -> Server {
        let more = format!(
            "[[auth.users]]\nname = {USER:?}\npassword = {PASSWORD:?}\n[peers]\nallow = [\"127.0.0.1\"]\n\
             [limits]\nallocations-per-user = 0\nunverified-responses = 0\n"
        );
        Server::start(&config_without_secret(&["127.0.0.1"], &more))
    }

    fn window(milliseconds: u64) -> Window {
        let start = clock::now();
        Window { start, from: start + 20 * MILLISECOND, to: start + (20 + milliseconds) * MILLISECOND }
    }

    fn job(work: Work, server: SocketAddr, directory: &ShortDir, peer: SocketAddr) -> Job {
        let scenario = Scenario { name: "test", about: "", work, workers: None, rows: &[] };
        Job {
            scenario: Box::leak(Box::new(scenario)),
            load: 0,
            own: [127, 0, 0, 1].into(),
            server,
            peer,
            feedback: directory.0.join("feedback.sock"),
            certificate: directory.0.join("certificate.pem"),
            forwarded: false,
            unsent: false,
        }
    }

    /// Runs a load through our server and returns the counts of the sender and the receiver.
    fn relay(load: Load) -> (Value, Value) {
        let server = server();
        exchange(
            load,
            if load.transport == Transport::Udp { server.udp_address() } else { server.tcp_address() },
            |_| (),
        )
    }

    /// Runs a load whose jobs `change` has changed, and returns the counts of the sender and the receiver.
    fn exchange(load: Load, server: SocketAddr, change: fn(&mut Job)) -> (Value, Value) {
        let directory = ShortDir::new();
        let job = |peer| {
            let mut job = job(Work::Relay(Box::leak(Box::new([load]))), server, &directory, peer);
            change(&mut job);
            job
        };
        let peer = Role::start(job("127.0.0.1:9".parse().unwrap()), peer);
        let peer_address = peer.wait_for("address").parse().unwrap();
        let client = Role::start(job(peer_address), client);
        client.wait_for("reachable");
        client.commands.send("begin".to_owned()).unwrap();
        client.wait_for("ready");
        let window = window(300);
        for role in [&client, &peer] {
            role.commands.send(window.command()).unwrap();
        }
        let (client, peer) = (client.result(), peer.result());
        if load.direction == Direction::Up { (client, peer) } else { (peer, client) }
    }

    fn assert_arrives(load: Load) {
        assert_counts(&relay(load));
    }

    fn assert_counts((sent, received): &(Value, Value)) {
        let (sent, delivered) = (sent["sent"].as_u64().unwrap(), received["delivered"].as_u64().unwrap());
        assert!(delivered > 0 && delivered <= sent, "{delivered} of {sent}");
        assert_eq!((received["damaged"].as_u64(), received["reordered"].as_u64()), (Some(0), Some(0)));
        assert!(received["p50"].as_u64().unwrap() <= received["p99"].as_u64().unwrap());
    }

    fn run_client(work: Work) -> Value {
        let (server, directory) = (server(), ShortDir::new());
        let peer = "127.0.0.1:9".parse().unwrap();
        let client = Role::start(job(work, server.udp_address(), &directory, peer), client);
        client.wait_for("reachable");
        client.commands.send("begin".to_owned()).unwrap();
        client.wait_for("ready");
        client.commands.send(window(300).command()).unwrap();
        client.result()
    }

    #[test]
    fn a_paced_load_arrives_in_both_directions() {
        assert_arrives(LOAD);
        assert_arrives(Load { direction: Direction::Down, ..LOAD });
    }

    #[test]
    fn indications_arrive_in_both_directions() {
        assert_arrives(Load { framing: Framing::Indication, ..LOAD });
        assert_arrives(Load { framing: Framing::Indication, direction: Direction::Down, ..LOAD });
    }

    #[test]
    fn a_load_over_tcp_arrives_in_both_directions() {
        assert_arrives(Load { transport: Transport::Tcp, ..LOAD });
        assert_arrives(Load { transport: Transport::Tcp, direction: Direction::Down, ..LOAD });
    }

    // If more packets arrive than fit into the windows, the receiver's reports have reached the sender.
    #[test]
    fn a_window_advances_with_arriving_packets() {
        for direction in [Direction::Up, Direction::Down] {
            let (_, received) = relay(Load { direction, pace: Pace::Window(4), ..LOAD });
            assert!(received["delivered"].as_u64().unwrap() > 12, "{received}");
        }
    }

    #[test]
    fn trains_and_merged_trains_arrive() {
        for shape in [Shape::Train, Shape::Merged] {
            for direction in [Direction::Up, Direction::Down] {
                assert_arrives(Load { direction, shape, pace: Pace::Window(32), ..LOAD });
            }
        }
    }

    // There is no server at this address.
    #[test]
    fn a_forwarded_load_arrives_without_a_server() {
        let server = "127.0.0.1:9".parse().unwrap();
        for direction in [Direction::Up, Direction::Down] {
            for (pace, shape) in [(LOAD.pace, LOAD.shape), (Pace::Window(32), Shape::Train)] {
                let load = Load { direction, pace, shape, ..LOAD };
                assert_counts(&exchange(load, server, |job| job.forwarded = true));
            }
        }
    }

    #[test]
    fn an_unsent_load_is_counted_and_does_not_arrive() {
        let server = "127.0.0.1:9".parse().unwrap();
        for direction in [Direction::Up, Direction::Down] {
            let (sent, received) = exchange(Load { direction, ..LOAD }, server, |job| {
                (job.forwarded, job.unsent) = (true, true);
            });
            assert!(sent["sent"].as_u64().unwrap() > 0, "{sent}");
            assert_eq!(received["delivered"].as_u64(), Some(0), "{received}");
        }
    }

    #[test]
    fn churning_clients_are_counted() {
        let counted = run_client(Work::Churn { clients: 2 });
        assert!(counted["allocations"].as_u64().unwrap() > 0, "{counted}");
        assert_eq!(counted["failed"].as_u64(), Some(0), "{counted}");
    }

    #[test]
    fn binding_responses_are_counted() {
        let counted = run_client(Work::Binding { clients: 2, window: 2 });
        assert!(counted["responses"].as_u64().unwrap() > 0, "{counted}");
        assert_eq!(counted["damaged"].as_u64(), Some(0), "{counted}");
    }

    // The first refresh is due at once.
    #[test]
    fn idle_allocations_are_refreshed() {
        let counted = run_client(Work::Idle { allocations: 100, refreshed: true });
        assert_eq!((counted["allocations"].as_u64(), counted["failed"].as_u64()), (Some(100), Some(0)), "{counted}");
    }
}
