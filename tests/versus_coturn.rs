//! Tests of the parts of the benchmark. `cargo bench` does not run them.

#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "../benches/versus_coturn/load/mod.rs"]
mod load;
#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "../benches/versus_coturn/scenario.rs"]
mod scenario;
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
        }
    }

    /// Runs a load and returns the counts of the sender and the receiver.
    fn relay(load: Load) -> (Value, Value) {
        let (server, directory) = (server(), ShortDir::new());
        let address = if load.transport == Transport::Udp { server.udp_address() } else { server.tcp_address() };
        let unused = "127.0.0.1:9".parse().unwrap();
        let work = || Work::Relay(Box::leak(Box::new([load])));
        let peer = Role::start(job(work(), address, &directory, unused), peer);
        let peer_address = peer.wait_for("address").parse().unwrap();
        let client = Role::start(job(work(), address, &directory, peer_address), client);
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
        let (sent, received) = relay(load);
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
