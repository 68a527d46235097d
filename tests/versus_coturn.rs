//! The parts of the benchmark: that it measures what it says. `cargo bench` runs no tests of its own.

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
    use crate::load::{Job, Orders, Outcome, PASSWORD, Say, USER, Window, client, peer};
    use crate::scenario::{Direction, Framing, Load, Pace, Scenario, Shape, Transport, Work};
    use crate::support::{PATIENCE, Server, config_without_secret};

    const LOAD: Load = Load {
        transport: Transport::Udp,
        direction: Direction::Up,
        framing: Framing::Channel,
        flows: 3,
        payload: 500,
        pace: Pace::Rate(600),
        shape: Shape::Single,
    };

    /// A directory whose path has room for the name of a socket, which may have 107 bytes in all.
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

    /// A client or a peer on a thread.
    struct Role {
        orders: Sender<String>,
        lines: Receiver<String>,
        thread: JoinHandle<Outcome<()>>,
    }

    impl Role {
        fn start(job: Job, part: fn(&Job, &Orders, Say<'_>) -> Outcome<()>) -> Self {
            let (orders, told) = channel();
            let (said, lines) = channel();
            let thread =
                std::thread::spawn(move || part(&job, &Orders(told), &mut |line| said.send(line.to_owned()).unwrap()));
            Self { orders, lines, thread }
        }

        fn hear(&self, wanted: &str) -> String {
            let line = self.lines.recv_timeout(PATIENCE).unwrap();
            line.strip_prefix(wanted).unwrap_or_else(|| panic!("{wanted:?} is not {line:?}")).trim().to_owned()
        }

        fn result(self) -> Value {
            let result = self.hear("result");
            self.thread.join().unwrap().unwrap();
            serde_json::from_str(&result).unwrap()
        }
    }

    fn server() -> Server {
        let more = format!(
            "[[auth.users]]\nname = {USER:?}\npassword = {PASSWORD:?}\n[peers]\nallow = [\"127.0.0.1\"]\n\
             [limits]\nallocations-per-user = 0\nunverified-replies = 0\n"
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

    /// What the sender and the receiver counted of a load.
    fn relay(load: Load) -> (Value, Value) {
        let (server, directory) = (server(), ShortDir::new());
        let address = if load.transport == Transport::Udp { server.udp_address() } else { server.tcp_address() };
        let nowhere = "127.0.0.1:9".parse().unwrap();
        let work = || Work::Relay(Box::leak(Box::new([load])));
        let peer = Role::start(job(work(), address, &directory, nowhere), peer);
        let its_address = peer.hear("address").parse().unwrap();
        let client = Role::start(job(work(), address, &directory, its_address), client);
        client.hear("reachable");
        client.orders.send("begin".to_owned()).unwrap();
        client.hear("ready");
        let window = window(300);
        for role in [&client, &peer] {
            role.orders.send(window.order()).unwrap();
        }
        let (client, peer) = (client.result(), peer.result());
        if load.direction == Direction::Up { (client, peer) } else { (peer, client) }
    }

    fn arrives(load: Load) {
        let (sent, received) = relay(load);
        let (sent, delivered) = (sent["sent"].as_u64().unwrap(), received["delivered"].as_u64().unwrap());
        assert!(delivered > 0 && delivered <= sent, "{delivered} of {sent}");
        assert_eq!((received["damaged"].as_u64(), received["disordered"].as_u64()), (Some(0), Some(0)));
        assert!(received["p50"].as_u64().unwrap() <= received["p99"].as_u64().unwrap());
    }

    fn alone(work: Work) -> Value {
        let (server, directory) = (server(), ShortDir::new());
        let peer = "127.0.0.1:9".parse().unwrap();
        let client = Role::start(job(work, server.udp_address(), &directory, peer), client);
        client.hear("reachable");
        client.orders.send("begin".to_owned()).unwrap();
        client.hear("ready");
        client.orders.send(window(300).order()).unwrap();
        client.result()
    }

    #[test]
    fn a_paced_load_arrives_on_either_side() {
        arrives(LOAD);
        arrives(Load { direction: Direction::Down, ..LOAD });
    }

    #[test]
    fn indications_arrive_on_either_side() {
        arrives(Load { framing: Framing::Indication, ..LOAD });
        arrives(Load { framing: Framing::Indication, direction: Direction::Down, ..LOAD });
    }

    #[test]
    fn a_load_over_tcp_arrives_on_either_side() {
        arrives(Load { transport: Transport::Tcp, ..LOAD });
        arrives(Load { transport: Transport::Tcp, direction: Direction::Down, ..LOAD });
    }

    // More arrives than the windows hold, so the sender hears from the receiver.
    #[test]
    fn a_window_moves_on_with_what_arrives() {
        for direction in [Direction::Up, Direction::Down] {
            let (_, received) = relay(Load { direction, pace: Pace::Window(4), ..LOAD });
            assert!(received["delivered"].as_u64().unwrap() > 12, "{received}");
        }
    }

    #[test]
    fn trains_and_merged_trains_arrive() {
        for shape in [Shape::Train, Shape::Merged] {
            for direction in [Direction::Up, Direction::Down] {
                arrives(Load { direction, shape, pace: Pace::Window(32), ..LOAD });
            }
        }
    }

    #[test]
    fn clients_that_come_and_go_are_counted() {
        let counted = alone(Work::Churn { clients: 2 });
        assert!(counted["allocations"].as_u64().unwrap() > 0, "{counted}");
        assert_eq!(counted["failed"].as_u64(), Some(0), "{counted}");
    }

    #[test]
    fn binding_answers_are_counted() {
        let counted = alone(Work::Binding { clients: 2, window: 2 });
        assert!(counted["answers"].as_u64().unwrap() > 0, "{counted}");
        assert_eq!(counted["damaged"].as_u64(), Some(0), "{counted}");
    }

    // The first request to keep one is due at once.
    #[test]
    fn standing_allocations_are_kept() {
        let counted = alone(Work::Standing { allocations: 100, refreshed: true });
        assert_eq!((counted["allocations"].as_u64(), counted["failed"].as_u64()), (Some(100), Some(0)), "{counted}");
    }
}
