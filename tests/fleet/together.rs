//! What the nodes do as one service: the regions of credentials, the commands for all of them, a limit over them.

use super::*;

#[test]
fn credentials_name_nodes_of_the_region_that_is_asked_for_or_that_of_the_client() {
    with_engine(|| {
        let _engine = Engine::start();
        let mut fleet = Fleet::start(0, "", "");
        let file = fleet.directory.write("regions", "198.51.100.0/24 us\n198.51.100.128/25 eu\n");
        for (index, region) in ["eu", "eu", "us", "us"].into_iter().enumerate() {
            fleet.keys = format!("region = {region:?}\nregions-file = {file:?}");
            fleet.nodes.push(None);
            fleet.restart(index);
        }
        fleet.wait_for_nodes(4);
        for (index, body, expected) in [
            (0, "{}", [0, 1]),
            (2, "{}", [2, 3]),
            (0, r#"{"region":"us"}"#, [2, 3]),
            (0, r#"{"client":"198.51.100.7"}"#, [2, 3]),
            (2, r#"{"client":"198.51.100.200"}"#, [0, 1]),
            (0, r#"{"region":"eu","client":"198.51.100.7"}"#, [0, 1]),
            // If a region has no nodes, and no table has the address.
            (2, r#"{"region":"asia"}"#, [2, 3]),
            (2, r#"{"client":"203.0.113.1"}"#, [2, 3]),
        ] {
            let (mut addresses, _) = Fleet::credentials(index, body);
            addresses.sort_unstable();
            assert_eq!(addresses, expected.map(Fleet::address), "{body}");
        }
    });
}

#[test]
fn the_commands_for_all_nodes_list_sum_up_and_end_sessions() {
    with_engine(|| {
        const MANY: usize = 1_010;
        let _engine = Engine::start();
        raise_open_files().unwrap();
        let limits = "[limits]\nallocations-per-user = 0\nallocations-per-second-per-user = 0\n";
        let fleet = Fleet::start(3, limits, "");
        fleet.wait_for_nodes(3);
        let login = |user: &str| Login::mint(user, 600);
        let mut of_ann: Vec<Call> = (0..3).map(|index| Call::start(index, &login("ann")).unwrap()).collect();
        of_ann.iter_mut().for_each(|call| call.exchange(1_000));
        let mut of_bob = Call::start(0, &login("bob")).unwrap();
        of_bob.exchange(2_000);
        // More than fit into a page.
        let many: Vec<Client> = (0..MANY).map(|_| Fleet::client(1)).collect();
        many.iter().for_each(|client| drop(client.allocate(&login("many")).unwrap()));
        let node = fleet.node(2);
        let all = node.json(&["--fleet", "sessions"])["sessions"].as_array().unwrap().clone();
        let distinct: BTreeSet<String> =
            all.iter().map(|session| format!("{} {}", session["node"], session["id"])).collect();
        assert_eq!((all.len(), distinct.len()), (MANY + 4, MANY + 4));
        let of_user = node.json(&["--fleet", "sessions", "--user", "ann"]);
        let nodes = of_user["sessions"].as_array().unwrap().iter().map(|session| session["node"].clone());
        assert_eq!(nodes.collect::<Vec<_>>(), ["node-0", "node-1", "node-2"]);
        let some = node.run(&["--fleet", "sessions", "--limit", "2"]);
        assert!(some.code == Some(4) && some.stderr[0].contains("node-1 has further sessions"), "{some:?}");
        let top = node.json(&["--fleet", "top"])["users"].clone();
        let user =
            |at: usize| (top[at]["user"].clone(), top[at]["sessions"].clone(), top[at]["bytes_to_peers"].clone());
        assert_eq!(user(0), ("ann".into(), 3.into(), 3_000.into()), "{top}");
        assert_eq!(user(1), ("bob".into(), 1.into(), 2_000.into()), "{top}");
        assert_eq!(user(2), ("many".into(), MANY.into(), 0.into()), "{top}");
        let totals = || node.json(&["--fleet", "status"])["totals"]["allocations"].clone();
        wait(|| if totals() == MANY + 4 { Ok(()) } else { Err(totals().to_string()) });
        assert_eq!(node.lines(&["--fleet", "kick", "--user", "ann"]), ["ended 3 sessions"]);
        for call in &mut of_ann {
            assert_eq!(call.refresh(), Some(437));
        }
        of_bob.exchange(100);
        // A drain of all would stop the service, and at once if there were no calls.
        let _calls: Vec<Call> = (0..3).map(|index| Call::start(index, &login("carl")).unwrap()).collect();
        let refused = node.run(&["--fleet", "drain"]);
        assert!(refused.code == Some(2) && refused.stderr[0].contains("--node"), "{refused:?}");
        let drained = node.lines(&["--fleet", "drain", "--all"]);
        assert!(drained[0].starts_with("3 nodes now drain"), "{drained:?}");
    });
}

#[test]
fn the_bytes_per_second_of_a_user_are_divided_between_the_nodes() {
    with_engine(|| {
        const LIMIT: u64 = 200_000;
        const TIME: Duration = Duration::from_secs(4);
        let _engine = Engine::start();
        let limits = format!("[limits]\nallocations-per-user = 32\nbytes-per-second-per-user = {LIMIT}\n");
        let fleet = Fleet::start(2, &limits, "limits = \"fleet\"");
        fleet.wait_for_nodes(2);
        let ann = Login::mint("ann", 600);
        let calls: Vec<Call> = (0..2).map(|index| Call::start(index, &ann).unwrap()).collect();
        let mut received = [0; 2];
        let relay = |time: Duration, received: &mut [u64; 2]| {
            let clock = Clock::start();
            while clock.elapsed() < time {
                for (call, received) in calls.iter().zip(received.iter_mut()) {
                    call.client.send_to_peer(call.peer.local_addr().unwrap(), &[1; 1_000]);
                    call.peer.set_nonblocking(true).unwrap();
                    let mut bytes = [0; 2_000];
                    while let Ok(length) = call.peer.recv(&mut bytes) {
                        *received += length as u64;
                    }
                }
                thread::sleep(Duration::from_millis(1));
            }
            clock.elapsed()
        };
        // The bursts.
        relay(Duration::from_secs(2), &mut [0; 2]);
        let elapsed = relay(TIME, &mut received);
        let sum = received.iter().sum::<u64>() as f64 / elapsed.as_secs_f64();
        eprintln!("{received:?} bytes, {sum:.0} bytes/s of {LIMIT}");
        assert!(received.iter().all(|bytes| *bytes > 0) && sum < 1.3 * LIMIT as f64, "{received:?}");
    });
}
