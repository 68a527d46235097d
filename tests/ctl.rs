//! Tests of `turnserver ctl`: the real client with a real server, whose clients have real allocations.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "http/client.rs"]
mod client;
#[cfg(test)]
mod support;

#[cfg(test)]
mod ctl {
    use std::collections::HashSet;
    use std::fs::{self, File};
    use std::io::{Read as _, Write as _};
    use std::net::SocketAddr;
    use std::os::fd::{AsFd as _, OwnedFd};
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::CommandExt as _;
    use std::path::Path;
    use std::process::{Child, Command};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::pty::{OpenptyResult, Winsize, openpty};
    use nix::sys::signal::{self, Signal};
    use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
    use nix::unistd::{Pid, getgid, getuid};
    use serde_json::{Value, json};
    use turnserver::clock::{Clock, unix_seconds};
    use turnserver::stun::attribute::Lifetime;
    use turnserver::stun::{Method, TransactionId};

    use crate::client::Http;
    use crate::support::certificates::Authority;
    use crate::support::client::{self, Client, Login, Session};
    use crate::support::{Controlled, LogLine, Process, Server, TIMEOUT, TempDir, config, run, skip, with_tls};

    const ALLOW: &str = "[peers]\nallow = [\"127.0.0.1\"]\n";

    impl Controlled {
        /// Returns the sessions that a command line lists.
        fn sessions(&self, arguments: &[&str]) -> Vec<Value> {
            self.json(&[&["sessions"], arguments].concat())["sessions"].as_array().unwrap().clone()
        }

        /// Asserts that an event names this process's user and the process of a command.
        fn assert_by_this_user(&self, line: &LogLine) {
            assert_eq!(line.field("uid"), Some(getuid().to_string()), "{line:?}");
            assert!(line.field("pid").is_some_and(|pid| pid.parse::<u32>().is_ok_and(|pid| pid != 0)), "{line:?}");
        }
    }

    fn text(value: &Value, field: &str) -> String {
        value[field].as_str().unwrap_or_else(|| panic!("no {field} in {value}")).to_owned()
    }

    #[test]
    fn sessions_are_listed_and_described_as_the_log_names_them() {
        let controlled = Controlled::start(ALLOW);
        assert_eq!(controlled.lines(&["sessions"]).last().unwrap(), "0 sessions");
        let peer = client::socket("127.0.0.1:0".parse().unwrap());
        let (ann, session, relay) = controlled.allocate("ann");
        let (_bob, ..) = controlled.allocate("bob");
        ann.permit(&session, peer.local_addr().unwrap());
        ann.send_to_peer(peer.local_addr().unwrap(), &[7; 1_000]);
        client::receive(&peer);
        peer.send_to(&[8; 300], relay).unwrap();
        ann.receive();

        let listed = controlled.sessions(&["--user", "ann"]);
        let [session] = listed.as_slice() else { panic!("{listed:?}") };
        assert_eq!(text(session, "client"), ann.address().to_string());
        assert_eq!(session["relay"][0].as_str(), Some(relay.to_string().as_str()));
        let numbers = ["bytes_to_peers", "packets_to_peers", "bytes_to_client", "packets_to_client", "permissions"];
        assert_eq!(numbers.map(|field| session[field].as_u64().unwrap()), [1_000, 1, 300, 1, 1]);
        let created = controlled.server.wait_for_log(|line| {
            line.field("event").as_deref() == Some("allocation-created") && line.field("user").as_deref() == Some("ann")
        });
        let id = text(session, "id");
        assert_eq!(created.field("session"), Some(id.clone()));

        let lines = controlled.lines(&["sessions"]);
        assert!(lines[0].starts_with("SESSION  USER  CLIENT"), "{lines:#?}");
        assert!(lines.iter().any(|line| line.contains("ann") && line.contains("1.00 kB")), "{lines:#?}");
        assert_eq!((lines.len(), lines.last().unwrap().as_str()), (4, "2 sessions"));

        let described = controlled.json(&["session", &id]);
        assert_eq!(described["permissions"][0]["peer"].as_str(), Some("127.0.0.1"));
        let left = described["permissions"][0]["expires_in"].as_u64().unwrap();
        assert!((200..=300).contains(&left), "{left}");
        assert_eq!(described["rate"]["bytes_to_peers"].as_f64(), Some(0.0));
        let lines = controlled.lines(&["session", &id]);
        assert!(
            lines.iter().any(|line| line == "to peers    1.00 kB in 1 packet; at present 0 bit/s, 0 packets/s"),
            "{lines:#?}"
        );
    }

    /// Waits until a session and the server, which has no other one, have dropped the same packets. Returns them.
    fn drops(controlled: &Controlled, id: &str) -> Value {
        let start = Clock::start();
        loop {
            let session = controlled.json(&["session", id])["drops"].clone();
            let server = controlled.json(&["status"])["dropped"].clone();
            if session == server {
                return session;
            }
            assert!(start.elapsed() < TIMEOUT, "{session} {server}");
        }
    }

    #[test]
    fn a_session_shows_its_dropped_packets_by_reason() {
        let controlled = Controlled::start("[peers]\nallow = [\"127.0.0.2\", \"127.0.0.3\"]\n");
        let [permitted, other] =
            ["127.0.0.2", "127.0.0.3"].map(|ip| client::socket(SocketAddr::new(ip.parse().unwrap(), 0)));
        let (client, session, relay) = controlled.allocate("ann");
        let id = text(&controlled.sessions(&[])[0], "id");
        assert_eq!(controlled.json(&["session", &id])["drops"], json!({}));
        assert_eq!(controlled.lines(&["session", &id]).last().unwrap(), "no dropped packets");

        client.permit(&session, permitted.local_addr().unwrap());
        for _ in 0..3 {
            client.send_to_peer(other.local_addr().unwrap(), b"without permission");
        }
        client.send(&[0x40, 0, 0, 4, 1, 2, 3, 4]);
        // A TURN message in relayed data.
        client.send_to_peer(permitted.local_addr().unwrap(), &client::allocate(TransactionId::new([7; 12])));
        // The Binding response shows that the server has handled them.
        client.binding();
        other.send_to(b"without permission", relay).unwrap();
        permitted.send_to(b"relayed", relay).unwrap();
        client.receive();
        let expected = json!({ "no-permission": 4, "channel-not-bound": 1, "relayed-turn": 1 });
        assert_eq!(drops(&controlled, &id), expected);
        let lines = controlled.lines(&["session", &id]);
        assert_eq!(lines[lines.len() - 4], "DROPPED BECAUSE    PACKETS", "{lines:#?}");
        assert_eq!(lines[lines.len() - 3], "no-permission            4", "{lines:#?}");
    }

    #[test]
    fn data_above_a_limit_and_data_for_a_client_that_does_not_read_are_drops_of_the_session() {
        let limited = Controlled::start(&format!("{ALLOW}[limits]\nbytes-per-second-per-allocation = 1\n"));
        let peer = client::socket("127.0.0.1:0".parse().unwrap());
        let (client, session, _) = limited.allocate("ann");
        client.permit(&session, peer.local_addr().unwrap());
        // The burst is 64 KiB.
        (0..100).for_each(|_| client.send_to_peer(peer.local_addr().unwrap(), &[7; 1_000]));
        client.binding();
        let dropped = drops(&limited, &text(&limited.sessions(&[])[0], "id"));
        assert_eq!(dropped, json!({ "allocation-bandwidth": 35 }));

        let controlled = Controlled::start(ALLOW);
        let client = Client::connect(controlled.server.tcp_address());
        let (session, relay) = client.allocate(&Login::mint("ann", 600)).unwrap();
        client.permit(&session, peer.local_addr().unwrap());
        let id = text(&controlled.sessions(&[])[0], "id");
        let start = Clock::start();
        loop {
            (0..200).for_each(|_| _ = peer.send_to(&[8; 1_000], relay).unwrap());
            let dropped = drops(&controlled, &id);
            if ["send-buffer-full", "outdated"].iter().any(|reason| dropped[reason].as_u64() > Some(0)) {
                break;
            }
            assert!(start.elapsed() < TIMEOUT, "{dropped}");
        }
    }

    #[test]
    fn sessions_are_selected_by_client_peer_and_rank() {
        let controlled = Controlled::start(ALLOW);
        let peer = client::socket("127.0.0.1:0".parse().unwrap());
        let peer_address = peer.local_addr().unwrap();
        let clients: Vec<_> = ["ann", "bob", "eve"].into_iter().map(|user| controlled.allocate(user)).collect();
        for ((client, session, _), length) in clients.iter().skip(1).zip([100, 900]) {
            client.permit(session, peer_address);
            client.send_to_peer(peer_address, &vec![7; length]);
            client::receive(&peer);
        }
        let users = |arguments: &[&str]| -> Vec<String> {
            controlled.sessions(arguments).iter().map(|session| text(session, "user")).collect()
        };
        assert_eq!(users(&["--top", "bytes"]), ["eve", "bob", "ann"]);
        assert_eq!(users(&["--top", "age", "--limit", "1"]), ["ann"]);
        assert_eq!(users(&["--client", "127.0.0.0/8"]).len(), 3);
        assert_eq!(users(&["--client", "127.0.0.2"]), [""; 0]);
        let mut with_peer = users(&["--peer", "127.0.0.1"]);
        with_peer.sort_unstable();
        assert_eq!(with_peer, ["bob", "eve"]);
    }

    #[test]
    fn thousands_of_sessions_are_listed_in_pages_each_once() {
        const SESSIONS: usize = 2_500;
        let config = config(&["127.0.0.1"], "[limits]\nunverified-responses = 0\n");
        let (before, rest) = config.split_once("ports = ").unwrap();
        let (_, after) = rest.split_once('\n').unwrap();
        let controlled = Controlled::start_with(&format!("{before}ports = \"20000-31999\"\n{after}"));
        let mut made = 0;
        while made < SESSIONS {
            let client = controlled.client();
            match client.allocate(&Login::mint(&format!("user {made}"), 600)) {
                Ok(_) => made += 1,
                // An earlier client had the same port.
                Err(code) => assert_eq!(code, 437),
            }
        }
        let all = controlled.sessions(&[]);
        let ids: HashSet<String> = all.iter().map(|session| text(session, "id")).collect();
        assert_eq!((all.len(), ids.len()), (SESSIONS, SESSIONS));
        assert_eq!(controlled.sessions(&["--limit", "1234"]).len(), 1_234);
        assert_eq!(controlled.sessions(&["--user", "user 2047"]).len(), 1);
        let top = controlled.sessions(&["--top", "age", "--limit", "3"]);
        assert_eq!(top.iter().map(|session| text(session, "user")).collect::<Vec<_>>(), ["user 0", "user 1", "user 2"]);
        // What curl sees.
        let get =
            |path: &str| -> Value { serde_json::from_str(&Http::unix(&controlled.socket).get(path).body).unwrap() };
        let first = get("/v1/sessions?limit=7");
        assert_eq!(first["sessions"].as_array().unwrap().len(), 7);
        let second = get(&format!("/v1/sessions?limit=7&cursor={}", text(&first, "next")));
        assert_ne!(first["sessions"][6]["id"], second["sessions"][0]["id"]);
    }

    /// Waits for the end of a user's allocation, and returns the reason in the log.
    fn end_of(controlled: &Controlled, user: &str) -> String {
        let ended = controlled.server.wait_for_log(|line| {
            line.field("event").as_deref() == Some("allocation-ended") && line.field("user").as_deref() == Some(user)
        });
        ended.field("reason").unwrap()
    }

    /// Asserts that a client has no allocation: Refresh is rejected with 437.
    fn assert_without_allocation(client: &Client, session: &Session) {
        let response = client.request(session, Method::REFRESH, &|writer| writer.push(&Lifetime(600)));
        assert_eq!(response.error(), Some(437));
    }

    #[test]
    fn a_kick_ends_allocations_and_the_log_says_by_whom() {
        let controlled = Controlled::start("");
        let clients: Vec<_> = ["ann", "bob", "eve"].into_iter().map(|user| controlled.allocate(user)).collect();
        let ann = text(&controlled.sessions(&["--user", "ann"])[0], "id");
        assert_eq!(controlled.lines(&["kick", &ann]), ["ended 1 session"]);
        let reason = end_of(&controlled, "ann");
        let kicked = controlled.event("sessions-ended");
        controlled.assert_by_this_user(&kicked);
        let (uid, pid) = (kicked.field("uid").unwrap(), kicked.field("pid").unwrap());
        assert_eq!(reason, format!("ended by the operator (process {pid} of user {uid})"));
        assert_eq!(kicked.field("filter"), Some(format!("session {ann}")));
        assert_without_allocation(&clients[0].0, &clients[0].1);

        assert_eq!(controlled.failure(&["kick", &ann]).0, Some(1));
        controlled.server.wait_for_log(|line| {
            line.field("ended").as_deref() == Some("0") && line.message().starts_with("the operator ended no session")
        });
        assert_eq!(controlled.lines(&["kick", "--user", "bob"]), ["ended 1 session"]);
        assert_without_allocation(&clients[1].0, &clients[1].1);
        assert_eq!(controlled.lines(&["kick", "--user", "bob"]), ["ended 0 sessions"]);
        assert_eq!(controlled.json(&["kick", "--client", "127.0.0.0/8"])["ended"].as_u64(), Some(1));
        assert_without_allocation(&clients[2].0, &clients[2].1);
        assert_eq!(controlled.failure(&["kick"]).0, Some(2));
        assert_eq!(controlled.failure(&["kick", &ann, "--user", "bob"]).0, Some(2));
    }

    #[test]
    fn a_revoked_credential_no_longer_works_and_its_allocations_end() {
        let controlled = Controlled::start("workers = 2\n");
        let (revoked, other) = (Login::mint("ann", 600), Login::mint("ann", 900));
        // Some of them on each worker.
        let allocate = |login: &Login| {
            let client = controlled.client();
            let (session, _) = client.allocate(login).unwrap();
            (client, session)
        };
        let clients: Vec<_> = (0..8).map(|_| allocate(&revoked)).collect();
        let (other_client, other_session) = allocate(&other);
        let lines = controlled.lines(&["revoke", &revoked.username]);
        assert!(lines.len() == 1 && lines[0].starts_with("revoked for "), "{lines:?}");
        assert_eq!(end_of(&controlled, "ann"), "the credentials were revoked");
        let line = controlled.event("username-revoked");
        controlled.assert_by_this_user(&line);
        assert_eq!(line.field("username").as_deref(), Some(revoked.username.as_str()));
        assert_eq!(line.field("complete").as_deref(), Some("true"));
        assert_eq!(controlled.sessions(&[]).len(), 1);
        for (client, session) in &clients {
            let response = client.request(session, Method::REFRESH, &|writer| writer.push(&Lifetime(600)));
            assert_eq!(response.error(), Some(401));
        }
        for _ in 0..8 {
            assert_eq!(controlled.client().allocate(&revoked).err(), Some(401));
        }
        let response = other_client.request(&other_session, Method::REFRESH, &|writer| writer.push(&Lifetime(600)));
        assert_eq!(response.error(), None);

        assert_eq!(controlled.lines(&["revoke", &revoked.username, "--end"]), ["no longer revoked"]);
        allocate(&revoked);
    }

    #[test]
    fn a_username_without_an_expiry_is_revoked_until_a_time() {
        let controlled = Controlled::start("[[auth.users]]\nname = \"fixed\"\npassword = \"a password for tests\"\n");
        let login = Login::new("fixed", "a password for tests");
        controlled.client().allocate(&login).unwrap();
        let (code, message) = controlled.failure(&["revoke", "fixed"]);
        assert_eq!(code, Some(1));
        assert!(message.contains("no expiry") && message.ends_with("say until when"), "{message}");
        let until = (unix_seconds() + 100).to_string();
        let revoked = controlled.json(&["revoke", "fixed", "--until", &until]);
        assert_eq!(revoked["until"].as_u64().map(|until| until.to_string()), Some(until));
        assert_eq!(controlled.client().allocate(&login).err(), Some(401));
        let (code, message) = controlled.failure(&["revoke", "1000000000:ann"]);
        assert_eq!(code, Some(1));
        assert!(message.contains("expired") && message.contains("nothing to revoke"), "{message}");
    }

    #[test]
    fn a_drain_can_be_ended_whatever_has_started_it() {
        let controlled = Controlled::start("");
        let _call = controlled.allocate("ann");
        let can_allocate = || controlled.client().allocate(&Login::mint("bob", 600)).is_ok();
        let lines = controlled.lines(&["drain"]);
        assert_eq!(lines, ["draining: 1 session left. The server stops when the last one has ended"]);
        controlled.assert_by_this_user(&controlled.event("drain-started"));
        assert!(!can_allocate());
        let status = controlled.lines(&["status"]);
        assert!(status.contains(&"state        makes no new allocations: draining".to_owned()), "{status:#?}");
        assert_eq!(controlled.json(&["drain"])["allocations"].as_u64(), Some(1));

        assert_eq!(controlled.lines(&["resume"]), ["the server makes new allocations"]);
        controlled.assert_by_this_user(&controlled.event("drain-ended"));
        assert!(can_allocate());

        let drains = |count: usize| {
            controlled.server.wait_for_logs(|lines| {
                let started = lines.iter().filter(|line| line.field("event").as_deref() == Some("drain-started"));
                started.count() == count
            });
        };
        drains(1);
        controlled.server.signal(Signal::SIGUSR1);
        drains(2);
        assert!(!can_allocate());
        assert_eq!(controlled.json(&["resume"])["draining"].as_bool(), Some(false));
        assert!(can_allocate());

        controlled.server.signal(Signal::SIGTERM);
        drains(3);
        let (code, message) = controlled.failure(&["resume"]);
        assert_eq!(code, Some(1));
        assert!(message.ends_with("the server is stopping because of SIGTERM, so it cannot resume"), "{message}");
        assert_eq!(controlled.json(&["drain"])["draining"].as_bool(), Some(true));
    }

    #[test]
    fn a_drain_may_be_waited_for() {
        let controlled = Controlled::start("");
        let (client, session, _) = controlled.allocate("ann");
        let waiting = Process::start(&mut controlled.command(&["drain", "--wait"]), None);
        controlled.event("drain-started");
        client.delete(&session);
        let finished = waiting.finish(TIMEOUT);
        // The process is that of this test, which has not asked for its exit code.
        let stat = fs::read_to_string(format!("/proc/{}/stat", controlled.server.id())).unwrap();
        assert!(stat.contains(") Z "), "{stat}");
        assert_eq!((finished.code, finished.stdout.last().unwrap().as_str()), (Some(0), "the server has stopped"));
        controlled.event("stopped");
        assert_eq!(controlled.failure(&["status"]).0, Some(3));
    }

    #[test]
    fn a_draining_server_says_who_is_left() {
        // Sessions of one worker have an order, also if they begin in the same millisecond.
        let controlled = Controlled::start("workers = 1\n");
        let clients: Vec<_> = (0..12).map(|number| controlled.allocate(&format!("user, {number}"))).collect();
        assert_eq!(controlled.json(&["status"])["remaining"], Value::Null);
        let waiting = Process::start(&mut controlled.command(&["drain", "--wait"]), None);
        let logged = controlled.event("draining");
        let user = |number: usize| format!("user, {number}");
        let ids: Vec<String> =
            (0..10).map(|number| text(&controlled.sessions(&["--user", &user(number)])[0], "id")).collect();
        let expected: Vec<String> = ids
            .iter()
            .zip(&clients)
            .enumerate()
            .map(|(number, (id, (client, ..)))| format!("{id} user\\u{{2c}}\\u{{20}}{number} {}", client.address()))
            .collect();
        assert_eq!(logged.field("sessions"), Some(expected.join(", ")));
        assert_eq!(["allocations", "more"].map(|field| logged.field(field).unwrap()), ["12", "2"]);

        let status = controlled.json(&["status"]);
        let named = status["remaining"].as_array().unwrap();
        assert_eq!(named.iter().map(|session| text(session, "id")).collect::<Vec<_>>(), ids);
        assert_eq!(text(&named[3], "client"), clients[3].0.address().to_string());
        let lines = controlled.lines(&["status"]);
        assert_eq!(lines.last().unwrap(), "and 2 younger sessions");
        assert!(lines[lines.len() - 11].starts_with(&ids[0]), "{lines:#?}");
        let get = |path: &str| Http::unix(&controlled.socket).get(path);
        let first: Value = serde_json::from_str(&get("/v1/status?remaining=1").body).unwrap();
        assert_eq!((first["remaining"].as_array().unwrap().len(), get("/v1/status?remaining=101").status), (1, 400));

        let shown = waiting.stdout.wait_for(TIMEOUT, |lines| (lines.len() >= 13).then(|| lines.to_vec())).unwrap();
        assert_eq!((shown[0].as_str(), shown[12].as_str()), ("draining: 12 sessions left", "and 2 younger sessions"));
        assert!(shown[2].starts_with(&ids[0]), "{shown:#?}");
        clients.iter().for_each(|(client, session, _)| client.delete(session));
        assert_eq!(waiting.finish(TIMEOUT).code, Some(0));
    }

    #[test]
    fn a_drain_of_an_idle_server_has_a_response() {
        for _ in 0..5 {
            let controlled = Controlled::start("");
            // A connection without a request does not delay the end.
            let idle = Http::unix(&controlled.socket);
            let lines = controlled.lines(&["drain"]);
            assert_eq!(lines, ["draining: 0 sessions left. The server stops when the last one has ended"]);
            controlled.event("stopped");
            drop(idle);
        }
    }

    #[test]
    fn steady_commands_do_not_hold_up_the_end_of_a_drain() {
        const SENDERS: usize = 12;
        let controlled = Controlled::start("");
        let (client, session, _) = controlled.allocate("ann");
        controlled.lines(&["drain"]);
        let request = b"POST /v1/drain HTTP/1.1\r\nHost: test\r\n\r\n";
        let streams: Vec<_> = (0..SENDERS).map(|_| UnixStream::connect(&controlled.socket).unwrap()).collect();
        std::thread::scope(|scope| {
            for mut stream in streams {
                scope.spawn(move || {
                    let mut response = [0; 1_024];
                    // Until the server stops.
                    while stream.write_all(request).is_ok() && stream.read(&mut response).is_ok_and(|length| length > 0)
                    {
                    }
                });
            }
            client.delete(&session);
            controlled.event("stopped");
        });
    }

    #[test]
    fn a_wait_for_a_drain_fails_if_the_drain_is_ended() {
        let controlled = Controlled::start("");
        let _call = controlled.allocate("ann");
        let waiting = Process::start(&mut controlled.command(&["drain", "--wait"]), None);
        controlled.event("drain-started");
        controlled.lines(&["resume"]);
        let finished = waiting.finish(TIMEOUT);
        assert_eq!(finished.code, Some(1));
        assert!(finished.stderr[0].contains("the drain has been ended"), "{finished:?}");
    }

    #[test]
    fn the_status_shows_what_the_server_does_and_waits_for_its_start() {
        let directory = TempDir::new();
        let socket = directory.path().join("control.sock");
        let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
        let waiting = Process::start(command.args(["ctl", "status", "--wait", "--socket"]).arg(&socket), None);
        let server = Server::start(&format!("{}[control]\nsocket = {socket:?}\n", config(&["127.0.0.1"], "")));
        let finished = waiting.finish(TIMEOUT);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        let first = format!("turnserver   {}, process {}", env!("CARGO_PKG_VERSION"), server.id());
        assert_eq!(finished.stdout[..2], [first, "state        ready".to_owned()]);
        let client = Client::new(server.udp_address());
        client.send(&[0x40, 0, 0, 4, 1, 2, 3, 4]);
        client.binding();
        let status: Value = serde_json::from_str(&Http::unix(&socket).get("/v1/status").body).unwrap();
        let dropped: u64 = status["dropped"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
        assert_eq!(dropped, 1, "{status}");
    }

    #[test]
    fn the_log_level_is_changed_at_run_time() {
        let controlled = Controlled::start("");
        let messages = |event: &str| {
            controlled.server.logs().iter().filter(|line| line.field("event").as_deref() == Some(event)).count()
        };
        assert_eq!(controlled.lines(&["log-level", "debug"]), ["debug (was info)"]);
        let changed = controlled.event("log-level-changed");
        controlled.assert_by_this_user(&changed);
        assert_eq!((changed.field("from"), changed.field("to")), (Some("info".to_owned()), Some("debug".to_owned())));
        let client = controlled.client();
        client.challenge(&Login::mint("ann", 600));
        controlled.event("packet-failed");
        assert_eq!(controlled.lines(&["log-level", "error"]), ["error (was debug)"]);
        let (client, session, _) = controlled.allocate("ann");
        client.delete(&session);
        assert_eq!(controlled.lines(&["log-level", "info"]), ["info (was error)"]);
        controlled.allocate("bob");
        controlled.event("allocation-created");
        controlled.server.wait_for_logs(|lines| {
            lines.iter().filter(|line| line.field("event").as_deref() == Some("log-level-changed")).count() == 3
        });
        assert_eq!((messages("allocation-created"), messages("allocation-ended")), (1, 0));
        assert_eq!(controlled.json(&["status"])["log_level"].as_str(), Some("info"));
        let (code, message) = controlled.failure(&["log-level", "loud"]);
        assert_eq!(code, Some(1));
        assert!(message.ends_with("level must be one of error, warn, info, debug, trace"), "{message}");
    }

    #[test]
    fn the_certificate_in_use_is_shown() {
        let controlled = Controlled::start("");
        assert_eq!(controlled.lines(&["certificates"]), ["no certificate: [tls] is not set"]);
        let (authority, files) = (Authority::new(unix_seconds()), TempDir::new());
        let paths = authority.write(&authority.issue(&["turn.example.org"]), files.path());
        let config = with_tls(&config(&["127.0.0.1"], ""), &["127.0.0.1"], &paths);
        let controlled = Controlled::start_with(&config);
        let lines = controlled.lines(&["certificates"]);
        assert_eq!(lines[0], format!("file     {}", paths[0].display()));
        assert_eq!(lines[1], "names    turn.example.org");
        assert!(lines[4].starts_with("expires  in "), "{lines:#?}");
        let not_after = controlled.json(&["certificates"])["certificates"][0]["not_after"].as_u64().unwrap();
        assert!(not_after > unix_seconds());
    }

    /// `turnserver ctl top` on a terminal.
    struct Top {
        child: Child,
        terminal: File,
        /// The program's side, which shows its mode.
        program_side: OwnedFd,
        shown: String,
    }

    impl Top {
        fn start(controlled: &Controlled) -> Self {
            let size = Winsize { ws_row: 24, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
            let OpenptyResult { master, slave } = openpty(Some(&size), None).unwrap();
            let side = || slave.try_clone().unwrap();
            let child = controlled.command(&["top"]).stdin(side()).stdout(side()).stderr(side()).spawn().unwrap();
            Self { child, terminal: File::from(master), program_side: slave, shown: String::new() }
        }

        /// Reads the screen until it has this text.
        fn wait_for(&mut self, text: &str) {
            let (mut buffer, start) = ([0; 4_096], Clock::start());
            while !self.shown.contains(text) {
                assert!(start.elapsed() < TIMEOUT, "no {text} in {:?}", self.shown);
                let mut readable = [PollFd::new(self.terminal.as_fd(), PollFlags::POLLIN)];
                let timeout = PollTimeout::try_from(TIMEOUT).unwrap();
                assert_eq!(poll(&mut readable, timeout).unwrap(), 1, "no {text} in {:?}", self.shown);
                let length = self.terminal.read(&mut buffer).unwrap();
                self.shown += &String::from_utf8_lossy(&buffer[..length]);
            }
        }

        fn mode(&self) -> Termios {
            tcgetattr(&self.program_side).unwrap()
        }

        /// Waits for the end. Asserts that the terminal is as before.
        fn finish(mut self, mode: &Termios) {
            self.wait_for("\x1b[?25h\x1b[?1049l");
            assert_eq!(self.child.wait().unwrap().code(), Some(0));
            assert_eq!(self.mode(), *mode);
            let after = self.shown.split("\x1b[?1049l").nth(1).unwrap();
            assert_eq!(after, "");
        }
    }

    #[test]
    fn top_shows_the_greatest_sessions_and_leaves_the_terminal_as_it_was() {
        let controlled = Controlled::start(ALLOW);
        let (client, session, _) = controlled.allocate("ann");
        let peer = client::socket("127.0.0.1:0".parse().unwrap());
        client.permit(&session, peer.local_addr().unwrap());
        let mode = tcgetattr(openpty(None, None).unwrap().slave).unwrap();
        for interrupt in [false, true] {
            let mut top = Top::start(&controlled);
            top.wait_for("(q quits)");
            top.wait_for("ann");
            assert!(!top.mode().local_flags.intersects(LocalFlags::ECHO | LocalFlags::ICANON));
            client.send_to_peer(peer.local_addr().unwrap(), &[7; 1_000]);
            client::receive(&peer);
            // The next look shows the rate.
            top.wait_for("kbit/s");
            if interrupt {
                signal::kill(Pid::from_raw(top.child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
            } else {
                top.terminal.write_all(b"q").unwrap();
            }
            top.finish(&mode);
        }
        let mut top = Top::start(&controlled);
        top.wait_for("(q quits)");
        drop(controlled.server);
        top.wait_for("no server listens");
        assert_eq!(top.child.wait().unwrap().code(), Some(3));
        assert_eq!(top.mode(), mode);
    }

    #[test]
    fn health_is_that_of_the_workers_and_with_ready_that_of_new_clients() {
        let controlled = Controlled::start("");
        let (_client, ..) = controlled.allocate("ann");
        assert_eq!(
            (controlled.lines(&["health"]), controlled.lines(&["health", "--ready"])),
            (vec!["ok".to_owned()], vec!["ready".to_owned()])
        );
        controlled.lines(&["drain"]);
        assert_eq!(controlled.lines(&["health"]), ["ok"]);
        assert_eq!(controlled.failure(&["health", "--ready"]), (Some(1), "turnserver: draining".to_owned()));
    }

    #[test]
    fn top_needs_a_terminal() {
        let controlled = Controlled::start("");
        let (code, message) = controlled.failure(&["top"]);
        assert_eq!(code, Some(2));
        assert!(message.contains("standard output is no terminal"), "{message}");
        assert_eq!(controlled.failure(&["top", "--json"]).0, Some(2));
    }

    /// Each command in docs/operations.md is a valid command line: it fails only because there is no server.
    #[test]
    fn the_commands_of_the_document_are_valid() {
        let document = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap();
        let directory = TempDir::new();
        let socket = directory.path().join("none.sock");
        let commands: Vec<&str> = document.lines().filter_map(|line| line.strip_prefix("turnserver ctl ")).collect();
        assert!(commands.len() > 15, "{commands:?}");
        for line in commands {
            // It would wait for a server. Another test runs it.
            let line = if line == "status --wait" { "status" } else { line };
            let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
            let finished = run(command.arg("ctl").args(line.split(' ')).arg("--socket").arg(&socket), None, TIMEOUT);
            assert_eq!(finished.code, Some(3), "{line}: {finished:?}");
        }
    }

    #[test]
    fn wrong_requests_are_refused_with_the_reason() {
        let controlled = Controlled::start("");
        assert_eq!(
            controlled.failure(&["session", "0-0-0"]),
            (Some(1), "turnserver: there is no session 0-0-0; it may have ended".to_owned())
        );
        let (code, message) = controlled.failure(&["session", "../x"]);
        assert_eq!((code, message.as_str()), (Some(1), "turnserver: a session ID has three numbers, such as 0-17-42"));
        let (code, message) = controlled.failure(&["sessions", "--client", "10.0.0"]);
        assert_eq!(code, Some(1));
        assert!(message.contains("client: `10.0.0` is neither an address nor a prefix"), "{message}");
        assert_eq!(controlled.failure(&["sessions", "--limit", "0"]).0, Some(2));
        assert_eq!(controlled.failure(&["no-such-command"]).0, Some(2));
        let (code, message) = controlled.failure(&["--fleet", "--node", "fra-1", "status"]);
        assert_eq!(code, Some(2));
        assert!(message.contains("--node goes with sessions, top, kick, drain and resume"), "{message}");
        let status = |method: &str, path: &str| Http::unix(&controlled.socket).request(method, path, "", b"").status;
        assert_eq!(status("POST", "/v1/sessions"), 405);
        assert_eq!(status("GET", "/v1/no-such-thing"), 404);
        assert_eq!(status("GET", "/v1/sessions?usr=ann"), 400);
        assert_eq!(status("GET", "/v1/sessions?limit=1001"), 400);
        assert_eq!(status("GET", "/v1/sessions?cursor=x"), 400);
        assert_eq!(status("DELETE", "/v1/sessions"), 400);
    }

    #[test]
    fn without_a_server_the_exit_code_is_3_and_the_message_says_why() {
        let directory = TempDir::new();
        let ctl = |socket: &Path| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
            let finished = run(command.args(["ctl", "sessions", "--socket"]).arg(socket), None, TIMEOUT);
            (finished.code, finished.stderr.join("\n"))
        };
        let socket = directory.path().join("control.sock");
        let (code, message) = ctl(&socket);
        assert_eq!(code, Some(3));
        assert!(message.contains("there is no control socket"), "{message}");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let (code, message) = ctl(&socket);
        assert_eq!(code, Some(3));
        assert!(message.contains("no server listens at"), "{message}");
    }

    #[test]
    fn the_socket_is_found_in_the_configuration() {
        let controlled = Controlled::start("");
        let ctl = |config: &Path| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
            run(command.args(["ctl", "sessions", "--config"]).arg(config), None, TIMEOUT)
        };
        assert_eq!(ctl(controlled.server.config_path()).code, Some(0));
        let none = controlled.directory.write("none.toml", "[control]\nsocket = \"\"\n");
        let finished = ctl(&none);
        assert_eq!(finished.code, Some(2));
        assert!(finished.stderr[0].contains("no control socket"), "{finished:?}");
    }

    #[test]
    fn another_user_cannot_use_the_socket() {
        if !getuid().is_root() {
            return skip("only root can run a command as another user");
        }
        // Everybody may enter the directory, so only the permissions of the socket matter.
        let directory = std::env::temp_dir().join(format!("turnserver-ctl-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let (program, socket) = (directory.join("turnserver"), directory.join("control.sock"));
        fs::copy(env!("CARGO_BIN_EXE_turnserver"), &program).unwrap();
        let server = Server::start(&format!("{}[control]\nsocket = {socket:?}\n", config(&["127.0.0.1"], "")));
        let ctl = |uid: u32, gid: u32| {
            let mut command = Command::new(&program);
            command.args(["ctl", "sessions", "--socket"]).arg(&socket).uid(uid).gid(gid).current_dir("/");
            run(&mut command, None, TIMEOUT)
        };
        let nobody = 65_534;
        let (other, member, owner) = (ctl(nobody, nobody), ctl(nobody, getgid().as_raw()), ctl(0, nobody));
        drop(server);
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!((other.code, other.stdout.len()), (Some(3), 0), "{other:?}");
        assert!(other.stderr[0].contains("this user may not use the control socket"), "{other:?}");
        assert_eq!((member.code, owner.code), (Some(0), Some(0)), "{member:?} {owner:?}");
    }

    #[test]
    fn a_kick_ends_the_sessions_with_a_peer() {
        let controlled = Controlled::start(ALLOW);
        let [(ann, session, _), (bob, of_bob, _)] = ["ann", "bob"].map(|user| controlled.allocate(user));
        ann.permit(&session, "127.0.0.1:9".parse().unwrap());
        assert_eq!(controlled.lines(&["kick", "--peer", "192.0.2.0/24"]), ["ended 0 sessions"]);
        assert_eq!(controlled.lines(&["kick", "--peer", "127.0.0.1"]), ["ended 1 session"]);
        assert_without_allocation(&ann, &session);
        bob.permit(&of_bob, "127.0.0.1:9".parse().unwrap());
        assert_eq!(controlled.failure(&["kick", "--peer", "127.0.0.1", "--user", "bob"]).0, Some(2));
    }

    /// Each command in docs/operations.md does what the document says, with real values in place of those of the examples.
    /// `top` needs a terminal, and `drain --wait` lasts as long as the session: other tests run them.
    #[test]
    fn the_commands_of_the_document_work_with_a_server() {
        let document = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap();
        let commands = document.lines().filter_map(|line| line.strip_prefix("turnserver ctl "));
        for line in commands.filter(|line| !["top", "drain --wait"].contains(line)) {
            let controlled = Controlled::start(&format!("{ALLOW}[http]\nlisten = [\"127.0.0.1:0\"]\n"));
            let (client, login) = (controlled.client(), Login::mint("alice", 600));
            let (session, _) = client.allocate(&login).unwrap();
            client.permit(&session, "127.0.0.1:9".parse().unwrap());
            let id = text(&controlled.sessions(&[])[0], "id");
            let until = (unix_seconds() + 300).to_string();
            if line == "resume" {
                controlled.lines(&["drain"]);
            }
            let real = [
                ("2-17-90", id.as_str()),
                ("192.0.2.0/24", "127.0.0.0/8"),
                ("198.51.100.7", "127.0.0.1"),
                ("1767225600:alice", &login.username),
                ("1767220000", &until),
            ];
            let words = line
                .split(' ')
                .map(|word| real.iter().find(|(shown, _)| word == *shown).map_or(word, |(_, real)| real));
            let lines = controlled.lines(&words.collect::<Vec<_>>());
            let has = |part: &str| lines.iter().any(|line| line.contains(part));
            let quiet = line.ends_with("--quiet");
            assert_eq!(lines.is_empty(), quiet, "{line}");
            match line.split(' ').next().unwrap() {
                "sessions" => assert!(has(&id), "{line}: {lines:#?}"),
                "session" => assert!(has(&client.address().to_string()), "{line}: {lines:#?}"),
                "kick" => assert_eq!(lines, ["ended 1 session"], "{line}"),
                "revoke" if !line.contains("--") => assert!(end_of(&controlled, "alice").contains("revoked")),
                "drain" => _ = controlled.event("drain-started"),
                "resume" => _ = controlled.event("drain-ended"),
                "reload" if !line.contains("--dry-run") => _ = controlled.event("reload-done"),
                "log-level" => _ = controlled.event("log-level-changed"),
                "status" => assert!(has("ready"), "{line}: {lines:#?}"),
                "test-link" => assert!(has("/test#"), "{line}: {lines:#?}"),
                "test-results" => assert!(has("no results"), "{line}: {lines:#?}"),
                _ => {}
            }
        }
    }
}
