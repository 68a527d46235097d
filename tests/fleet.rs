//! A fleet of five real relays on a cluster of three NATS servers, in a network namespace of its own.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "fleet/cluster.rs"]
mod cluster;
#[cfg(test)]
#[path = "fleet/engine.rs"]
mod engine;
#[cfg(test)]
#[path = "http/client.rs"]
mod http;
#[cfg(test)]
#[path = "fleet/node.rs"]
mod node;
#[cfg(test)]
#[allow(dead_code, reason = "another test binary uses the rest of it")]
#[path = "doctor/report.rs"]
mod report;
#[cfg(test)]
mod support;

#[cfg(test)]
mod fleet {
    mod tls;
    mod together;
    mod users;

    use std::collections::{BTreeMap, BTreeSet};
    use std::net::{SocketAddr, UdpSocket};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Duration;

    use futures_util::StreamExt as _;
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    use nix::sys::signal::Signal;
    use serde_json::Value;
    use turnserver::client::{Allocate, Families, Request};
    use turnserver::clock::{Clock, unix_seconds};
    use turnserver::net::limits::raise_open_files;
    use turnserver::stun::Method;
    use turnserver::stun::attribute::{AddressFamily, AlternateServer};

    use crate::cluster;
    use crate::engine::{self, Engine};
    use crate::http::Http;
    use crate::node::{KEY, Node};
    use crate::support::client::{self, Client, Login, Session};
    use crate::support::network::in_own_network;
    use crate::support::{Controlled, TIMEOUT, TempDir, skip};

    const NODES: usize = 5;

    /// Runs a test in a namespace of its own, if the engine is installed.
    fn with_engine(test: impl FnOnce() + Send) {
        if !cluster::is_installed() {
            return skip("nats-server is missing");
        }
        in_own_network(&["link set lo up"], test);
    }

    /// The nodes, each on an address of its own.
    struct Fleet {
        nodes: Vec<Option<Controlled>>,
        /// The state directories.
        directory: TempDir,
        /// Further configuration.
        more: String,
        /// Further keys of `[fleet]`.
        keys: String,
    }

    fn name(index: usize) -> String {
        format!("node-{index}")
    }

    impl Fleet {
        fn start(count: usize, more: &str, keys: &str) -> Self {
            let (more, keys) = (more.to_owned(), keys.to_owned());
            let mut fleet = Self { nodes: Vec::new(), directory: TempDir::new(), more, keys };
            for index in 0..count {
                fleet.nodes.push(None);
                fleet.restart(index);
            }
            fleet
        }

        fn config(&self, index: usize) -> String {
            let node = Node {
                name: &name(index),
                address: &Self::address(index).ip().to_string(),
                peers: &["127.0.0.1".to_owned()],
                state: &self.directory.path().join(name(index)),
                keys: &self.keys,
                more: &self.more,
            };
            node.config()
        }

        /// Starts a node that does not run.
        fn restart(&mut self, index: usize) {
            self.nodes[index] = Some(Controlled::start_with(&self.config(index)));
        }

        fn node(&self, index: usize) -> &Controlled {
            self.nodes[index].as_ref().unwrap()
        }

        fn running(&self) -> impl Iterator<Item = &Controlled> {
            self.nodes.iter().flatten()
        }

        fn kill(&mut self, index: usize) {
            let node = self.nodes[index].take().unwrap();
            node.server.signal(Signal::SIGKILL);
            node.server.finish();
        }

        /// Waits until each node sees `count` nodes.
        fn wait_for_nodes(&self, count: usize) {
            for node in self.running() {
                wait(|| {
                    let fleet = node.json(&["--fleet", "status"]);
                    let found = fleet["nodes"].as_array().unwrap().len();
                    if found == count { Ok(()) } else { Err(fleet.to_string()) }
                });
            }
        }

        fn address(index: usize) -> SocketAddr {
            SocketAddr::from(([127, 0, 1, u8::try_from(index + 1).unwrap()], 3478))
        }

        fn client(index: usize) -> Client {
            Client::new(Self::address(index))
        }

        /// Returns the URLs of the nodes that drain, as a node says to an application.
        fn draining(index: usize) -> Vec<String> {
            let address = SocketAddr::new(Self::address(index).ip(), 9641);
            let headers = format!("Authorization: Bearer {KEY}\r\n");
            let response = Http::tcp(address).request("GET", "/v1/ice-servers/draining", &headers, b"");
            assert_eq!(response.status, 200, "{}", response.body);
            let value: Value = serde_json::from_str(&response.body).unwrap();
            value["urls"].as_array().unwrap().iter().map(|url| url.as_str().unwrap().to_owned()).collect()
        }

        /// Requests credentials at a node. Returns the addresses in them, and the login.
        fn credentials(index: usize, body: &str) -> (Vec<SocketAddr>, Login) {
            let address = SocketAddr::new(Self::address(index).ip(), 9641);
            let headers = format!("Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\n");
            let response = Http::tcp(address).request("POST", "/v1/ice-servers", &headers, body.as_bytes());
            assert_eq!(response.status, 201, "{}", response.body);
            let value: Value = serde_json::from_str(&response.body).unwrap();
            let server = &value["iceServers"][0];
            let urls = server["urls"].as_array().unwrap().iter().map(|url| {
                let text = url.as_str().unwrap();
                text.strip_prefix("turn:").unwrap().strip_suffix("?transport=udp").unwrap().parse().unwrap()
            });
            let text = |key: &str| server[key].as_str().unwrap();
            (urls.collect(), Login::new(text("username"), text("credential")))
        }
    }

    fn wait<T>(mut look: impl FnMut() -> Result<T, String>) -> T {
        wait_within(TIMEOUT, &mut look).0
    }

    /// Waits for a result, and returns how long that took.
    fn wait_within<T>(limit: Duration, mut look: impl FnMut() -> Result<T, String>) -> (T, Duration) {
        let clock = Clock::start();
        loop {
            match look() {
                Ok(found) => return (found, clock.elapsed()),
                Err(why) => assert!(clock.elapsed() < limit, "{why}"),
            }
            // A look may be a request that fails, and responses to such are limited.
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// What a call has relayed.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct Relayed {
        to_peers: u64,
        to_client: u64,
    }

    /// A call that goes on until it is told to end. Nothing of it may get lost.
    struct Call {
        client: Client,
        session: Session,
        relay: SocketAddr,
        peer: UdpSocket,
        relayed: Relayed,
    }

    impl Call {
        fn start(index: usize, login: &Login) -> Result<Self, u16> {
            let client = Fleet::client(index);
            let (session, relay) = client.allocate(login)?;
            let peer = client::socket("127.0.0.1:0".parse().unwrap());
            client.permit(&session, peer.local_addr().unwrap());
            Ok(Self { client, session, relay, peer, relayed: Relayed::default() })
        }

        /// Relays a datagram in each direction, and waits for both.
        fn exchange(&mut self, bytes: usize) {
            self.client.send_to_peer(self.peer.local_addr().unwrap(), &vec![1; bytes]);
            assert_eq!(client::receive(&self.peer).0.len(), bytes);
            self.peer.send_to(&vec![2; bytes / 2], self.relay).unwrap();
            self.client.receive();
            self.relayed.to_peers += bytes as u64;
            self.relayed.to_client += bytes as u64 / 2;
        }

        fn end(self) -> Relayed {
            self.client.delete(&self.session);
            self.relayed
        }

        /// Refreshes the allocation. Returns the error code, if any.
        fn refresh(&mut self) -> Option<u16> {
            let refresh = |call: &Self| call.client.request(&call.session, Method::REFRESH, &|_| {}).error();
            let error = refresh(self);
            if error == Some(438) {
                // The secrets, and with them the nonces, have changed.
                self.session = self.client.renew(&self.session);
                return refresh(self);
            }
            error
        }
    }

    /// Runs calls on all nodes while something happens. Returns what each has relayed.
    fn under_calls<T>(calls: Vec<Call>, during: impl FnOnce() -> T) -> (Vec<Call>, T) {
        let ends = AtomicBool::new(false);
        thread::scope(|scope| {
            let running: Vec<_> = calls
                .into_iter()
                .map(|mut call| {
                    let ends = &ends;
                    scope.spawn(move || {
                        while !ends.load(Ordering::Relaxed) {
                            call.exchange(300);
                            thread::sleep(Duration::from_millis(5));
                        }
                        call
                    })
                })
                .collect();
            let result = during();
            ends.store(true, Ordering::Relaxed);
            (running.into_iter().map(|call| call.join().unwrap()).collect(), result)
        })
    }

    /// Sums up the events as a billing program does: the greatest sums of each allocation count.
    fn totals(events: &[Value]) -> (BTreeSet<String>, BTreeSet<String>, Relayed) {
        let mut sums: BTreeMap<String, Relayed> = BTreeMap::new();
        let (mut started, mut ended) = (BTreeSet::new(), BTreeSet::new());
        for event in events.iter().filter(|event| event["session"].is_string()) {
            let id = format!("{}.{}", event["boot"].as_str().unwrap(), event["session"].as_str().unwrap());
            let number = |key: &str| event[key].as_u64().unwrap_or_default();
            let sum = sums.entry(id.clone()).or_default();
            sum.to_peers = sum.to_peers.max(number("bytes_to_peers"));
            sum.to_client = sum.to_client.max(number("bytes_to_client"));
            match event["type"].as_str().unwrap() {
                "allocation.started" => drop(started.insert(id)),
                "allocation.ended" => drop(ended.insert(id)),
                _ => {}
            }
        }
        let add = |sum: Relayed, own: &Relayed| Relayed {
            to_peers: sum.to_peers + own.to_peers,
            to_client: sum.to_client + own.to_client,
        };
        (started, ended, sums.values().fold(Relayed::default(), add))
    }

    #[test]
    fn credentials_name_two_live_nodes_and_none_that_is_killed_or_drains() {
        with_engine(|| {
            let _engine = Engine::start();
            let mut fleet = Fleet::start(NODES, "", "");
            fleet.wait_for_nodes(NODES);
            let status = fleet.node(0).json(&["status"])["fleet"].clone();
            assert_eq!((&status["nodes"], &status["is_member"]), (&NODES.into(), &true.into()), "{status}");
            let mut named = BTreeSet::new();
            let clock = Clock::start();
            // A node with a load of other programs comes later.
            for request in 0.. {
                let (addresses, login) = Fleet::credentials(request % NODES, "{}");
                assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), 2, "{addresses:?}");
                named.extend(addresses.iter().copied());
                // They are valid at both.
                for address in addresses {
                    Client::new(address).allocate(&login).unwrap();
                }
                if request >= 20 && named.len() == NODES {
                    break;
                }
                assert!(clock.elapsed() < TIMEOUT, "{named:?}");
            }
            // A node that is killed is out within ten seconds, and one that drains at once.
            fleet.node(2).lines(&["--fleet", "--node", "node-1", "drain"]);
            let clock = Clock::start();
            fleet.kill(4);
            let avoids = |index: usize| {
                move || {
                    let named: Vec<SocketAddr> = (0..20).flat_map(|_| Fleet::credentials(0, "{}").0).collect();
                    if named.contains(&Fleet::address(index)) { Err(format!("{named:?}")) } else { Ok(()) }
                }
            };
            // Applications can ask which nodes drain, and move their calls.
            wait_within(Duration::from_secs(5), || {
                let draining = Fleet::draining(0);
                if draining == ["turn:127.0.1.2:3478?transport=udp"] { Ok(()) } else { Err(format!("{draining:?}")) }
            });
            avoids(1)().unwrap();
            wait_within(Duration::from_secs(12), avoids(4));
            let killed = clock.elapsed();
            assert!(killed < Duration::from_secs(11), "{killed:?}");
            eprintln!("a killed node was out after {:.1} s", killed.as_secs_f64());
            let lines = fleet.node(0).lines(&["--fleet", "status"]);
            assert!(lines.iter().any(|line| line.starts_with("node-1") && line.contains("draining")), "{lines:?}");
            fleet.node(0).lines(&["--fleet", "--node", "node-1", "resume"]);
            wait(|| match Fleet::draining(0) {
                draining if draining.is_empty() => Ok(()),
                draining => Err(format!("{draining:?}")),
            });
            // A node that stops says so.
            let node = fleet.nodes[3].take().unwrap();
            node.server.terminate();
            wait_within(Duration::from_secs(5), avoids(3));
        });
    }

    #[test]
    fn ten_thousand_allocations_are_spread_over_the_nodes() {
        with_engine(|| {
            // Each client has a socket.
            let room = raise_open_files().unwrap().saturating_sub(1_000);
            let count = usize::try_from(room).unwrap().min(10_000);
            let _engine = Engine::start();
            let fleet = Fleet::start(NODES, "", "nodes-per-credential = 1");
            fleet.wait_for_nodes(NODES);
            let mut clients = Vec::new();
            let mut counts: BTreeMap<SocketAddr, usize> = BTreeMap::new();
            for request in 0..count {
                let (addresses, login) = Fleet::credentials(request % NODES, "{}");
                let client = Client::new(addresses[0]);
                client.allocate(&login).unwrap();
                *counts.entry(addresses[0]).or_default() += 1;
                clients.push(client);
            }
            let most = counts.values().max().unwrap();
            eprintln!(
                "{count} allocations: {:?}, the most are {} % of the mean",
                counts.values(),
                *most * NODES * 100 / count
            );
            assert_eq!(counts.values().sum::<usize>(), count);
            // The CPU time of other programs of this machine counts as load, too.
            assert!(counts.len() == NODES && *most < count * 3 / 10, "{counts:?}");
        });
    }

    #[test]
    fn calls_and_credentials_go_on_without_the_engine_and_the_sums_are_right_after_it() {
        with_engine(|| {
            let mut engine = Engine::start();
            let mut fleet = Fleet::start(NODES, "", "");
            fleet.wait_for_nodes(NODES);
            let (mut expected, mut count) = (Relayed::default(), 0);
            let mut add = |relayed: Relayed| {
                expected.to_peers += relayed.to_peers;
                expected.to_client += relayed.to_client;
                count += 1;
            };
            let short = |index: usize| {
                let mut call = Call::start(index % NODES, &Login::mint("short", 600)).unwrap();
                call.exchange(100 + index);
                call.end()
            };
            const RESTARTED: usize = 3;
            const KILLED: usize = 1;
            let long = (0..2 * NODES).filter(|index| ![RESTARTED, KILLED].contains(&(index % NODES)));
            let login = |index: usize| Login::mint(&format!("user-{index}"), 600);
            let long = long.map(|index| Call::start(index % NODES, &login(index)).unwrap()).collect();
            let mut at_restarted = Call::start(RESTARTED, &login(0)).unwrap();
            let mut at_killed = Call::start(KILLED, &login(0)).unwrap();
            let (long, ()) = under_calls(long, || {
                // The server that leads the stream goes away.
                let leader = engine.kill_leader("turn_events");
                (0..20).for_each(|index| add(short(index)));
                engine.restart(leader);
                // All of the engine goes away.
                (0..3).for_each(|index| engine.kill(index));
                wait(|| {
                    let fleet = fleet.node(0).json(&["--fleet", "status"]);
                    if fleet["connected"] == false { Ok(()) } else { Err(fleet.to_string()) }
                });
                (0..50).for_each(|index| add(short(index)));
                // Longer than a node may be silent: the last view stays.
                let clock = Clock::start();
                while clock.elapsed() < Duration::from_secs(12) {
                    assert_eq!(Fleet::credentials(0, "{}").0.len(), 2);
                    thread::sleep(Duration::from_millis(100));
                }
                // A node stops and starts again: what it has to say is on its disk.
                at_restarted.exchange(777);
                add(at_restarted.relayed);
                fleet.nodes[RESTARTED].take().unwrap().server.terminate();
                fleet.restart(RESTARTED);
                add(short(RESTARTED));
                // One is killed: what had ended there is on its disk, too.
                let waiting =
                    |fleet: &Fleet| fleet.node(KILLED).json(&["status"])["fleet"]["events_queued"].as_u64().unwrap();
                let before = waiting(&fleet);
                at_killed.exchange(555);
                add(at_killed.end());
                wait(|| match waiting(&fleet) {
                    now if now > before => Ok(()),
                    now => Err(now.to_string()),
                });
                fleet.kill(KILLED);
                fleet.restart(KILLED);
                add(short(KILLED));
                (0..3).for_each(|index| engine.restart(index));
            });
            long.into_iter().for_each(|call| add(call.end()));
            let events = engine.wait_for_events(|events| totals(events).1.len() >= count);
            let (started, ended, sums) = totals(&events);
            assert_eq!((started.len(), ended.len()), (count, count), "{:?}", engine::kinds(&events));
            assert_eq!(sums, expected, "to the byte");
            let is_start = |event: &&Value| event["type"] == "node.started" && event["node"] == name(KILLED).as_str();
            let boots: BTreeSet<String> =
                events.iter().filter(is_start).map(|event| event["boot"].to_string()).collect();
            assert_eq!(boots.len(), 2, "{boots:?}");
            eprintln!("{count} allocations, {sums:?}, in {} events: {:?}", events.len(), engine::kinds(&events));
            fleet.wait_for_nodes(NODES);
        });
    }

    #[test]
    fn a_full_disk_neither_loses_sums_nor_holds_up_the_stop() {
        with_engine(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
            let engine = Engine::start();
            let mut fleet = Fleet::start(0, "", "");
            let state = fleet.directory.path().join(name(0));
            std::fs::create_dir(&state).unwrap();
            mount(Some("tmpfs"), &state, Some("tmpfs"), MsFlags::empty(), Some("size=256k")).unwrap();
            fleet.nodes.push(None);
            fleet.restart(0);
            fleet.wait_for_nodes(1);
            let empty = || {
                let waiting = &fleet.node(0).json(&["status"])["fleet"]["events_queued"];
                if *waiting == 0 { Ok(()) } else { Err(waiting.to_string()) }
            };
            let filler = state.join("filler");
            let dropped = || fleet.node(0).events("fleet-events-dropped");
            let call = || {
                wait(empty);
                // Until nothing fits.
                assert!(std::fs::write(&filler, vec![1; 300 * 1024]).is_err());
                let mut call = Call::start(0, &Login::mint("ann", 600)).unwrap();
                call.exchange(500);
                call.end()
            };
            let relayed = call();
            wait(|| if dropped() > 0 { Ok(()) } else { Err("nothing was dropped".to_owned()) });
            std::fs::remove_file(&filler).unwrap();
            let lost = |events: &[Value]| events.iter().find(|event| event["ended"] == 1).cloned();
            let events = engine.wait_for_events(|events| lost(events).is_some());
            let lost = lost(&events).unwrap();
            assert_eq!((&lost["type"], &lost["bytes_to_peers"]), (&"events.lost".into(), &relayed.to_peers.into()));
            call();
            fleet.nodes[0].take().unwrap().server.terminate();
        });
    }

    #[test]
    fn a_revoked_user_is_off_all_nodes_within_a_second_and_off_one_that_starts_later() {
        with_engine(|| {
            let engine = Engine::start();
            let mut fleet = Fleet::start(NODES, "", "");
            fleet.wait_for_nodes(NODES);
            let (ann, bob) = (Login::mint("ann", 600), Login::mint("bob", 600));
            fleet.kill(4);
            let mut of_ann: Vec<Call> = (0..4).map(|index| Call::start(index, &ann).unwrap()).collect();
            let of_bob = (0..4).map(|index| Call::start(index, &bob).unwrap()).collect();
            fleet.wait_for_nodes(4);
            let (of_bob, elapsed) = under_calls(of_bob, || {
                let clock = Clock::start();
                let revoked = fleet.node(2).json(&["--fleet", "revoke", &ann.username]);
                assert_eq!(revoked["nodes"].as_array().unwrap().len(), 4, "{revoked}");
                for call in &mut of_ann {
                    assert!(matches!(call.refresh(), Some(401 | 437)), "the allocation is there");
                }
                clock.elapsed()
            });
            assert!(elapsed < Duration::from_secs(1), "{elapsed:?}");
            eprintln!("off four nodes after {} ms", elapsed.as_millis());
            assert_eq!(of_bob.len(), 4);
            fleet.restart(4);
            fleet.wait_for_nodes(NODES);
            // A node knows it before it is one.
            assert_eq!(Call::start(4, &ann).err(), Some(401));
            // Also if the engine is away when it starts.
            let copy = fleet.directory.path().join(name(4)).join("fleet-state");
            wait(|| match std::fs::read_to_string(&copy) {
                Ok(text) if text.contains("revoked.") => Ok(()),
                other => Err(format!("{other:?}")),
            });
            drop(engine);
            fleet.kill(4);
            fleet.restart(4);
            assert_eq!(Call::start(4, &ann).err(), Some(401));
            assert!(Call::start(4, &bob).is_ok());
        });
    }

    #[test]
    fn the_nodes_give_an_engine_that_has_lost_everything_their_secrets_and_revocations() {
        with_engine(|| {
            let mut engine = Engine::start();
            let mut fleet = Fleet::start(3, "", "");
            fleet.wait_for_nodes(3);
            let place = TempDir::new();
            let secret = place.write("secret", "the secret of all the nodes").display().to_string();
            fleet.node(0).lines(&["--fleet", "secret", "add", "--id", "first", "--file", &secret]);
            fleet.node(0).lines(&["--fleet", "secret", "add", "--id", "retired", "--file", &secret]);
            fleet.node(1).lines(&["--fleet", "secret", "retire", "--id", "retired"]);
            let ann = Login::mint("ann", 600);
            fleet.node(0).lines(&["--fleet", "revoke", &ann.username]);
            engine.lose_everything();
            fleet.wait_for_nodes(3);
            // A node that has never been there.
            fleet.nodes.push(None);
            fleet.restart(3);
            fleet.wait_for_nodes(4);
            wait(|| match Call::start(3, &ann) {
                Err(401) => Ok(()),
                other => Err(format!("{:?}", other.err())),
            });
            // What has ended is known, too: a node that was away must not bring it back.
            let list = fleet.node(3).json(&["--fleet", "secret", "list"]);
            let retired = list["secrets"].as_array().unwrap().iter().find(|secret| secret["id"] == "retired");
            assert!(retired.is_some_and(|secret| secret["until"].is_u64() && secret["accepted"] == false), "{list}");
            let of_fleet = Fleet::credentials(3, "{}").1;
            assert!(Call::start(3, &of_fleet).is_ok());
            // A change counts as used only when all nodes use it.
            let bob = Login::mint("bob", 600);
            wait(|| {
                let revoked = fleet.node(1).json(&["--fleet", "revoke", &bob.username]);
                if revoked["nodes"].as_array().unwrap().len() == 4 { Ok(()) } else { Err(revoked.to_string()) }
            });
            for index in 0..4 {
                assert_eq!(Call::start(index, &bob).err(), Some(401));
            }
            assert!(fleet.running().map(|node| node.events("fleet-state-restored")).sum::<usize>() > 0);
            // A node whose reload removes `[fleet]` is alone again.
            let config = fleet.config(2);
            let (alone, _) = config.split_once("[fleet]").unwrap();
            fleet.node(2).server.write_config(&format!("{alone}[control]\nsocket = {:?}\n", fleet.node(2).socket));
            fleet.node(2).lines(&["reload"]);
            wait(|| {
                let (addresses, login) = Fleet::credentials(2, "{}");
                let is_own = addresses == [Fleet::address(2)] && Call::start(2, &login).is_ok();
                // The secrets of the fleet are not in use any more.
                if is_own && Call::start(2, &of_fleet).is_err() { Ok(()) } else { Err(format!("{addresses:?}")) }
            });
            fleet.nodes[2].take();
            fleet.wait_for_nodes(3);
        });
    }

    #[test]
    fn an_engine_from_a_backup_brings_back_neither_a_retired_secret_nor_a_revocation_that_was_ended() {
        with_engine(|| {
            let mut engine = Engine::start();
            let mut fleet = Fleet::start(2, "", "");
            fleet.wait_for_nodes(2);
            let place = TempDir::new();
            let secret = |text: &str| place.write("secret", text).display().to_string();
            let change = |node: &Controlled, order: &[&str]| {
                let changed = node.run(&[&["--fleet"], order].concat());
                if changed.code == Some(0) { Ok(()) } else { Err(format!("{changed:?}")) }
            };
            let change_now = |node: &Controlled, order: &[&str]| change(node, order).unwrap();
            change_now(
                fleet.node(0),
                &["secret", "add", "--id", "old", "--file", &secret("the old secret of the fleet")],
            );
            let [ann, bob, old] =
                ["ann", "bob", "eve"].map(|user| Fleet::credentials(0, &format!(r#"{{"user":"{user}"}}"#)).1);
            change_now(fleet.node(0), &["revoke", &ann.username]);
            engine.back_up();
            // Both use changes again.
            wait(|| change(fleet.node(0), &["revoke", &ann.username]));
            change_now(
                fleet.node(0),
                &["secret", "add", "--id", "new", "--file", &secret("the new secret of the fleet")],
            );
            let new = Fleet::credentials(0, r#"{"user":"eve"}"#).1;
            change_now(fleet.node(1), &["secret", "retire", "--id", "old"]);
            change_now(fleet.node(1), &["revoke", &bob.username]);
            change_now(fleet.node(1), &["revoke", &ann.username, "--end"]);
            engine.roll_back();
            wait(|| match fleet.running().map(|node| node.events("fleet-state-restored")).sum::<usize>() {
                2 => Ok(()),
                restored => Err(restored.to_string()),
            });
            // A node that has never been there has what it knows from the engine.
            fleet.nodes.push(None);
            fleet.restart(2);
            fleet.wait_for_nodes(3);
            wait(|| match Call::start(2, &new) {
                Ok(_) => Ok(()),
                Err(code) => Err(code.to_string()),
            });
            for index in 0..3 {
                assert_eq!(Call::start(index, &old).err(), Some(401));
            }
            let state = engine.run(async |jetstream| {
                let bucket = jetstream.get_key_value("turn_state").await.unwrap();
                let keys: Vec<_> = bucket.keys().await.unwrap().collect().await;
                let mut entries = Vec::new();
                for key in keys {
                    entries.push(bucket.get(key.unwrap()).await.unwrap().unwrap());
                }
                entries.iter().map(|entry| serde_json::from_slice(entry).unwrap()).collect::<Vec<Value>>()
            });
            let until = |login: &Login| {
                let found = state.iter().find(|entry| entry["username"] == login.username);
                found.and_then(|entry| entry["until"].as_u64()).unwrap()
            };
            assert!(until(&ann) <= unix_seconds() && until(&bob) > unix_seconds(), "{state:?}");
        });
    }

    #[test]
    fn a_node_stays_in_the_fleet_over_a_reload_of_its_settings() {
        with_engine(|| {
            let _engine = Engine::start();
            let fleet = Fleet::start(2, "", "");
            fleet.wait_for_nodes(2);
            // Each change makes a heartbeat at once.
            for number in 0..20 {
                let username = Login::mint(&format!("user-{number}"), 600).username;
                fleet.node(0).lines(&["--fleet", "revoke", &username]);
            }
            let config = fleet.config(1).replace("[fleet]\n", "[fleet]\nweight = 7\n");
            let node = fleet.node(1);
            node.server.write_config(&format!("{config}[control]\nsocket = {:?}\n", node.socket));
            node.lines(&["reload"]);
            wait_within(Duration::from_secs(10), || {
                let seen = fleet.node(0).json(&["--fleet", "status"])["nodes"][1]["weight"].clone();
                if seen == 7 { Ok(()) } else { Err(seen.to_string()) }
            });
        });
    }

    #[test]
    fn a_secret_is_rotated_under_calls_without_touching_a_node() {
        with_engine(|| {
            let _engine = Engine::start();
            let fleet = Fleet::start(NODES, "", "");
            fleet.wait_for_nodes(NODES);
            let place = TempDir::new();
            let file = |text: &str| place.write(text.split(' ').next().unwrap(), text).display().to_string();
            let first = file("first secret of all the nodes");
            fleet.node(0).lines(&["--fleet", "secret", "add", "--id", "first", "--file", &first]);
            let old = Fleet::credentials(1, r#"{"user":"old"}"#).1;
            let calls = (0..NODES).map(|index| Call::start(index, &old).unwrap()).collect();
            let (mut calls, ()) = under_calls(calls, || {
                let second = file("second secret of all the nodes");
                fleet.node(3).lines(&["--fleet", "secret", "add", "--id", "second", "--file", &second]);
                let new = Fleet::credentials(4, r#"{"user":"new"}"#).1;
                for index in 0..NODES {
                    // Both are valid.
                    assert!(Call::start(index, &new).is_ok() && Call::start(index, &old).is_ok());
                }
                let end = (unix_seconds() + 2).to_string();
                fleet.node(0).lines(&["--fleet", "secret", "retire", "--id", "first", "--at", &end]);
                wait(|| if Call::start(2, &old).is_err() { Ok(()) } else { Err("it is still valid".to_owned()) });
                assert!(Call::start(2, &new).is_ok());
            });
            // The allocations go on until a Refresh, which needs valid credentials.
            for call in &mut calls {
                wait(|| if call.refresh() == Some(401) { Ok(()) } else { Err("it is still valid".to_owned()) });
            }
            let secrets = fleet.node(0).json(&["--fleet", "secret", "list"]);
            let text = secrets.to_string();
            assert!(text.contains("second") && !text.contains("secret of all the nodes"), "{text}");
            let log: String =
                fleet.running().flat_map(|node| node.server.logs()).map(|line| line.text().to_owned()).collect();
            assert!(!log.contains("secret of all the nodes"), "{log}");
        });
    }

    #[test]
    fn a_user_on_all_nodes_exceeds_the_limit_by_no_more_than_the_first_shares() {
        with_engine(|| {
            const LIMIT: usize = 32;
            const FIRST: usize = 16;
            let mut engine = Engine::start();
            let limits = format!("[limits]\nallocations-per-user = {LIMIT}\nallocations-per-second-per-user = 0\n");
            let fleet = Fleet::start(NODES, &limits, "limits = \"fleet\"");
            fleet.wait_for_nodes(NODES);
            // One node after the other: the records have time to agree.
            let ann = Login::mint("ann", 600);
            let mut clients = Vec::new();
            let try_all = |login: &Login, clients: &mut Vec<Client>, index: usize| {
                let mut admitted = 0;
                for _ in 0..LIMIT + 1 {
                    let client = Fleet::client(index);
                    match client.allocate(login) {
                        Ok(_) => {
                            admitted += 1;
                            clients.push(client);
                        }
                        Err(486) => break,
                        Err(other) => panic!("{other}"),
                    }
                }
                admitted
            };
            let mut counts = Vec::new();
            for index in 0..NODES {
                counts.push(try_all(&ann, &mut clients, index));
                thread::sleep(Duration::from_millis(2_500));
            }
            // What was not used comes to who needs it.
            for (index, count) in counts.iter_mut().enumerate() {
                *count += try_all(&ann, &mut clients, index);
            }
            let sum: usize = counts.iter().sum();
            eprintln!("one node after the other: {counts:?}, {sum} of {LIMIT}");
            assert!(sum <= LIMIT + FIRST * (NODES - 1), "{counts:?}");
            // A user at one node gets the whole limit there, as soon as the node has the lease.
            let dan = Login::mint("dan", 600);
            let first = try_all(&dan, &mut clients, 0);
            assert_eq!(first, FIRST);
            let mut whole = first;
            wait(|| {
                whole += try_all(&dan, &mut clients, 0);
                if whole == LIMIT { Ok(()) } else { Err(format!("{whole} allocations")) }
            });
            // All at once.
            let bob = Login::mint("bob", 600);
            let at_once: usize = (0..NODES).map(|index| try_all(&bob, &mut clients, index)).sum();
            eprintln!("all nodes at once: {at_once} of {LIMIT}");
            assert!((LIMIT..=LIMIT + FIRST * (NODES - 1)).contains(&at_once));
            // Without the engine, each node keeps to its share.
            (0..3).for_each(|index| engine.kill(index));
            let eve = Login::mint("eve", 600);
            let without: Vec<usize> = (0..NODES).map(|index| try_all(&eve, &mut clients, index)).collect();
            eprintln!("without the engine: {without:?}");
            assert!(without.iter().all(|count| *count == FIRST), "{without:?}");
        });
    }

    #[test]
    fn clients_of_a_node_that_drains_are_redirected_to_the_others() {
        with_engine(|| {
            let _engine = Engine::start();
            let fleet = Fleet::start(NODES, "[alternate]\nservers = \"fleet\"\n", "");
            fleet.wait_for_nodes(NODES);
            let ann = Login::mint("ann", 600);
            let mut call = Call::start(0, &ann).unwrap();
            fleet.node(0).lines(&["--fleet", "--node", "node-0", "drain"]);
            let mut others = BTreeSet::new();
            wait(|| {
                let client = Fleet::client(0);
                let session = client.challenge(&ann);
                let request =
                    Request::Allocate(Allocate { families: Families::One(AddressFamily::V4), ..Allocate::default() });
                let response = client.request(&session, Method::ALLOCATE, &|writer| request.encode(writer));
                match response.error() {
                    Some(300) => drop(others.insert(response.get::<AlternateServer>().unwrap().0)),
                    // No other node is known yet.
                    Some(508) => return Err("508".to_owned()),
                    other => panic!("{other:?}"),
                }
                Ok(())
            });
            assert!(!others.contains(&Fleet::address(0)), "{others:?}");
            for other in others {
                Client::new(other).allocate(&ann).unwrap();
            }
            call.exchange(100);
        });
    }
}
