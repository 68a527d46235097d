//! Users and secrets of a Redis server, with Debian's `redis-server`.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[allow(dead_code, reason = "another test binary uses the rest of it")]
#[path = "doctor/report.rs"]
mod report;
#[cfg(test)]
#[path = "redis/server.rs"]
mod server;
#[cfg(test)]
#[path = "redis/status.rs"]
mod status;
#[cfg(test)]
mod support;

#[cfg(test)]
mod redis {
    use std::net::{SocketAddr, UdpSocket};
    use std::time::Duration;

    use nix::sys::signal::Signal;
    use turnserver::auth::{Secret, time_limited};
    use turnserver::client::{Allocate, Request};
    use turnserver::clock::{Clock, unix_seconds};
    use turnserver::stun::Method;

    use crate::report::examine;
    use crate::server::Redis;
    use crate::support::client::{Client, Login};
    use crate::support::{LogLine, REALM, SECRET, Server, TIMEOUT, config_without_secret};

    /// A test may do in a second what clients of one source do in minutes.
    const NO_LIMITS: &str = "[limits]\nunverified-responses = 0\nfailed-authentications = 0\n";

    /// Returns the configuration of a server that uses Redis, with further lines of `[auth.redis]`.
    fn config(redis: &Redis, more: &str) -> String {
        let auth =
            format!("[auth]\nsecrets = [{SECRET:?}]\n[auth.redis]\nurl = {:?}\ntime-limit = \"1s\"\n", redis.url());
        config_without_secret(&["127.0.0.1"], &format!("{auth}{more}"))
    }

    /// Starts a server that uses Redis, and waits until it is connected.
    fn start(redis: &Redis, more: &str) -> Server {
        let server = Server::start(&config(redis, more));
        server.wait_for_log(|line| line.field("event").as_deref() == Some("redis-connected"));
        server
    }

    fn event(server: &Server, name: &str) -> usize {
        server.logs().iter().filter(|line| line.field("event").as_deref() == Some(name)).count()
    }

    fn wait_for_event(server: &Server, name: &str) {
        server.wait_for_log(|line| line.field("event").as_deref() == Some(name));
    }

    /// Waits until something is so.
    fn until(is_so: impl Fn() -> bool) {
        let clock = Clock::start();
        while !is_so() {
            assert!(clock.elapsed() < TIMEOUT);
        }
    }

    /// Returns a client over UDP and one over TCP.
    fn clients(server: &Server) -> [Client; 2] {
        [Client::new(server.udp_address()), Client::connect(server.tcp_address())]
    }

    /// Allocates on both transports. Returns the code of each response, 0 for a success.
    fn allocate(server: &Server, login: &Login) -> [u16; 2] {
        clients(server).map(|client| client.allocate(login).err().unwrap_or_default())
    }

    #[test]
    fn the_diagnosis_says_whether_the_servers_can_be_used() {
        let Some(mut redis) = Redis::start() else { return };
        let status = format!("[redis-status]\nurl = {:?}\n", redis.url());
        let file = redis.write("turnserver.toml", &(config(&redis, "") + &status)).display().to_string();
        let diagnosis = |wanted: [&str; 2]| {
            let report = examine(&["--config", &file], "");
            let status = |check: &str| {
                let finding = report.findings.iter().find(|finding| finding["check"] == check);
                finding.and_then(|finding| finding["status"].as_str()).unwrap_or_default()
            };
            assert_eq!([status("redis"), status("redis-status")], wanted, "{:#?}", report.findings);
        };
        // There are no users of the realm.
        diagnosis(["warning", "ok"]);
        redis.set_user("ann", "song of ann");
        diagnosis(["ok", "ok"]);
        redis.stop();
        diagnosis(["fault", "fault"]);
    }

    #[test]
    fn users_are_found_over_udp_and_tcp_and_others_are_rejected() {
        let Some(redis) = Redis::start() else { return };
        redis.set_user("ann", "song of ann");
        let server = start(&redis, "");
        assert_eq!(allocate(&server, &Login::new("ann", "song of ann")), [0, 0]);
        assert_eq!(allocate(&server, &Login::new("ann", "another song")), [401, 401]);
        assert_eq!(allocate(&server, &Login::new("bob", "song of ann")), [401, 401]);
        // A credential of the configured secret needs no look-up.
        let before = redis.look_ups();
        assert_eq!(allocate(&server, &Login::mint("carol", 600)), [0, 0]);
        assert_eq!(redis.look_ups(), before);
        // Each worker asks at most once for each name.
        assert!(before <= 4, "{before}");
        server.terminate();
    }

    #[test]
    fn an_allocation_of_a_tcp_client_works_after_the_look_up() {
        let Some(redis) = Redis::start() else { return };
        redis.set_user("ann", "song of ann");
        let server = start(&redis, "[peers]\nallow = [\"127.0.0.1\"]\n");
        let client = Client::connect(server.tcp_address());
        let (session, _) = client.allocate(&Login::new("ann", "song of ann")).unwrap();
        client.permit(&session, "127.0.0.1:9".parse().unwrap());
        client.delete(&session);
        server.terminate();
    }

    #[test]
    fn a_wrong_password_and_a_malformed_key_are_logged_without_secrets() {
        let Some(redis) = Redis::start_with(Some("swordfish-of-redis")) else { return };
        redis.set_user("ann", "song of ann");
        redis.command(&["SET", &format!("turn/realm/{REALM}/user/bob/key"), "not-a-key-but-hunter2"]);
        let wrong = redis.write("wrong", "wrong-password-of-redis\n");
        let log = "[log]\nlevel = \"trace\"\nformat = \"json\"\n";
        let text = config(&redis, &format!("password-file = {:?}\n", wrong.display().to_string()));
        let server = Server::start(&text.replace("[log]\nformat = \"json\"\n", log));
        let line = server.wait_for_log(|line| line.field("event").as_deref() == Some("redis-unavailable"));
        assert!(line.field("reason").unwrap().contains("password-file"), "{line:?}");
        assert_eq!(allocate(&server, &Login::new("ann", "song of ann")), [500, 500]);
        let right = redis.write("right", "swordfish-of-redis\n");
        let text = config(&redis, &format!("password-file = {:?}\n", right.display().to_string()));
        server.write_config(&text.replace("[log]\nformat = \"json\"\n", log));
        server.signal(Signal::SIGHUP);
        wait_for_event(&server, "redis-connected");
        assert_eq!(allocate(&server, &Login::new("ann", "song of ann")), [0, 0]);
        assert_eq!(allocate(&server, &Login::new("bob", "song of ann")), [401, 401]);
        wait_for_event(&server, "redis-reply");
        let all = server.terminate().logs.iter().map(|line| line.text().to_owned()).collect::<String>();
        for secret in ["swordfish", "wrong-password", "hunter2", "song of ann", SECRET] {
            assert!(!all.contains(secret), "{secret}");
        }
    }

    #[test]
    fn a_value_that_is_too_long_costs_its_user_and_not_the_connection() {
        let Some(redis) = Redis::start() else { return };
        redis.set_user("ann", "song of ann");
        redis.command(&["SET", &format!("turn/realm/{REALM}/user/bob/key"), &"x".repeat(100_000)]);
        redis.add_secret(&"x".repeat(100_000));
        redis.add_secret("a secret that only redis has");
        let server = start(&redis, "");
        wait_for_event(&server, "redis-secrets");
        assert_eq!(allocate(&server, &Login::new("bob", "song of bob")), [401, 401]);
        assert_eq!(allocate(&server, &Login::new("ann", "song of ann")), [0, 0]);
        wait_for_event(&server, "redis-reply");
        assert_eq!(event(&server, "redis-unavailable"), 0);
        server.terminate();
    }

    #[test]
    fn a_server_without_its_password_is_refused_with_advice() {
        let Some(redis) = Redis::start_with(Some("swordfish-of-redis")) else { return };
        let server = Server::start(&config(&redis, ""));
        let line = server.wait_for_log(|line| line.field("event").as_deref() == Some("redis-unavailable"));
        assert!(line.field("reason").unwrap().contains("requires a password"), "{line:?}");
        server.terminate();
    }

    #[test]
    fn a_changed_key_and_a_deleted_user_take_effect() {
        let Some(redis) = Redis::start() else { return };
        redis.set_user("ann", "song of ann");
        let server = start(&redis, &format!("found-for = \"1s\"\nabsent-for = \"1s\"\n{NO_LIMITS}"));
        let [udp, tcp] = clients(&server);
        let login = Login::new("ann", "song of ann");
        let (of_udp, of_tcp) = (udp.allocate(&login).unwrap().0, tcp.allocate(&login).unwrap().0);
        redis.set_user("ann", "new song");
        let changed = Login::new("ann", "new song");
        // The old key is known for a second.
        until(|| allocate(&server, &changed) == [0, 0]);
        redis.delete_user("ann");
        until(|| allocate(&server, &changed) == [401, 401]);
        for (client, session) in [(&udp, &of_udp), (&tcp, &of_tcp)] {
            // Another worker may know the user for a second longer.
            let refresh = || client.request(session, Method::REFRESH, &|writer| Request::Refresh(600).encode(writer));
            until(|| refresh().error() == Some(401));
        }
        server.wait_for_logs(|lines| {
            let ended = |line: &&LogLine| line.field("reason").is_some_and(|why| why.contains("no longer has"));
            lines.iter().filter(ended).count() >= 2
        });
        server.terminate();
    }

    /// What a server does while Redis is away: the policy for users who are not known, and those who are known go on.
    fn without_redis(policy: &str, code: u16, go_away: impl Fn(&mut Redis), come_back: impl Fn(&mut Redis)) {
        let Some(mut redis) = Redis::start() else { return };
        redis.set_user("ann", "song of ann");
        redis.set_user("bob", "song of bob");
        let server = start(&redis, &format!("found-for = \"1s\"\nwhen-unavailable = \"{policy}\"\n"));
        let (ann, bob) = (Login::new("ann", "song of ann"), Login::new("bob", "song of bob"));
        let [udp, tcp] = clients(&server);
        let (of_udp, of_tcp) = (udp.allocate(&ann).unwrap().0, tcp.allocate(&ann).unwrap().0);
        go_away(&mut redis);
        let clock = Clock::start();
        assert_eq!(allocate(&server, &bob), [code, code]);
        // One time limit for each.
        let took = clock.elapsed();
        assert!(took >= Duration::from_millis(1_900) && took < Duration::from_secs(20), "{took:?}");
        for (client, session) in [(&udp, &of_udp), (&tcp, &of_tcp)] {
            let refresh = client.request(session, Method::REFRESH, &|writer| Request::Refresh(600).encode(writer));
            assert_eq!(refresh.error(), None);
        }
        wait_for_event(&server, "redis-unavailable");
        come_back(&mut redis);
        until(|| allocate(&server, &bob) == [0, 0]);
        assert_eq!(event(&server, "redis-unavailable"), 1);
        server.terminate();
    }

    #[test]
    fn a_redis_server_that_hangs_costs_a_500_and_known_users_go_on() {
        without_redis("500", 500, |redis| redis.signal(Signal::SIGSTOP), |redis| redis.signal(Signal::SIGCONT));
    }

    #[test]
    fn a_redis_server_that_hangs_costs_a_401_if_the_policy_says_so() {
        without_redis("401", 401, |redis| redis.signal(Signal::SIGSTOP), |redis| redis.signal(Signal::SIGCONT));
    }

    #[test]
    fn a_redis_server_that_was_killed_and_starts_again_is_used_again() {
        let come_back = |redis: &mut Redis| {
            redis.start_again();
            redis.set_user("bob", "song of bob");
        };
        without_redis("500", 500, Redis::stop, come_back);
    }

    #[test]
    fn a_redis_server_that_was_killed_costs_a_401_if_the_policy_says_so() {
        let come_back = |redis: &mut Redis| {
            redis.start_again();
            redis.set_user("bob", "song of bob");
        };
        without_redis("401", 401, Redis::stop, come_back);
    }

    /// Sends an Allocate request of a user, without waiting for the response.
    fn begin_allocation(server: SocketAddr, username: &str) -> Client {
        let client = Client::new(server);
        let session = client.challenge(&Login::new(username, "any password"));
        let request = Request::Allocate(Allocate::default());
        client.send(&client.signed(&session, Method::ALLOCATE, &|writer| request.encode(writer)));
        client
    }

    #[test]
    fn clients_of_other_users_do_not_wait_while_redis_hangs() {
        let Some(redis) = Redis::start() else { return };
        let server = start(&redis, &format!("lookups-per-second-per-source = 0\n{NO_LIMITS}"));
        redis.signal(Signal::SIGSTOP);
        let waiting: Vec<Client> =
            (0..100).map(|number| begin_allocation(server.udp_address(), &format!("user-{number}"))).collect();
        let (other, clock) = (Client::new(server.udp_address()), Clock::start());
        let mut longest = Duration::ZERO;
        let mut last = clock.elapsed();
        while last < Duration::from_millis(700) {
            other.binding();
            let now = clock.elapsed();
            longest = longest.max(now - last);
            last = now;
        }
        // A loop that waited for Redis would take the time limit, a second.
        assert!(longest < Duration::from_millis(500), "{longest:?}");
        assert_eq!(other.allocate(&Login::mint("carol", 600)).err(), None);
        for client in &waiting {
            assert_eq!(client.receive().error(), Some(500));
        }
        redis.signal(Signal::SIGCONT);
        server.terminate();
    }

    #[test]
    fn a_flood_of_names_from_one_source_causes_few_look_ups() {
        let Some(redis) = Redis::start() else { return };
        redis.set_user("ann", "song of ann");
        let server = start(&redis, &format!("lookups-per-second-per-source = 5\n{NO_LIMITS}"));
        let clock = Clock::start();
        let flood: Vec<Client> =
            (0..300).map(|number| begin_allocation(server.udp_address(), &format!("user-{number}"))).collect();
        // Which of them are within the limit depends on the workers, which share it.
        until(|| redis.look_ups() >= 10);
        // The source then waits, and can log in.
        let idle = UdpSocket::bind("127.0.0.1:0").unwrap();
        idle.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        assert!(idle.recv(&mut [0]).is_err());
        let (asked, most) = (redis.look_ups(), 10 + 5 * (clock.elapsed().as_secs() + 1));
        assert!(asked <= most, "{asked} of {most}");
        drop(flood);
        assert_eq!(allocate(&server, &Login::new("ann", "song of ann")), [0, 0]);
        server.terminate();
    }

    #[test]
    fn credentials_of_the_secrets_in_redis_are_accepted() {
        let Some(redis) = Redis::start() else { return };
        redis.add_secret("a secret that only redis has");
        let server = start(&redis, "");
        wait_for_event(&server, "redis-secrets");
        let secret = Secret::new("a secret that only redis has").unwrap();
        let minted = time_limited::mint(&secret, Some("carol"), unix_seconds() + 600);
        assert_eq!(allocate(&server, &Login::new(&minted.username, &minted.password)), [0, 0]);
        assert_eq!(allocate(&server, &Login::mint("carol", 600)), [0, 0]);
        server.terminate();
    }

    #[test]
    fn redis_is_used_with_tls_if_its_certificate_is_right() {
        let Some(mut redis) = Redis::start() else { return };
        let (url, root) = redis.start_with_tls();
        redis.set_user("ann", "song of ann");
        let with_tls = |more: &str| config(&redis, more).replace(&redis.url(), &url);
        // Browsers do not trust the authority.
        let server = Server::start(&with_tls(""));
        let line = server.wait_for_log(|line| line.field("event").as_deref() == Some("redis-unavailable"));
        assert!(line.field("reason").unwrap().contains("auth.redis.ca-file"), "{line:?}");
        server.terminate();
        let server = Server::start(&with_tls(&format!("ca-file = {:?}\n", root.display().to_string())));
        wait_for_event(&server, "redis-connected");
        assert_eq!(allocate(&server, &Login::new("ann", "song of ann")), [0, 0]);
        server.terminate();
    }

    #[test]
    fn a_reload_adds_and_removes_redis() {
        let Some(redis) = Redis::start() else { return };
        redis.set_user("ann", "song of ann");
        let without = config_without_secret(&["127.0.0.1"], &format!("[auth]\nsecrets = [{SECRET:?}]\n"));
        let server = Server::start(&without);
        let ann = Login::new("ann", "song of ann");
        assert_eq!(allocate(&server, &ann), [401, 401]);
        let ports = without.lines().find(|line| line.starts_with("ports")).unwrap().to_owned();
        let with = config(&redis, "");
        let own_ports = with.lines().find(|line| line.starts_with("ports")).unwrap().to_owned();
        server.write_config(&with.replace(&own_ports, &ports));
        server.signal(Signal::SIGHUP);
        wait_for_event(&server, "redis-connected");
        assert_eq!(allocate(&server, &ann), [0, 0]);
        let reloaded = event(&server, "reload-done");
        server.write_config(&without);
        server.signal(Signal::SIGHUP);
        server.wait_for_logs(|lines| {
            lines.iter().filter(|line| line.field("event").as_deref() == Some("reload-done")).count() > reloaded
        });
        assert_eq!(allocate(&server, &ann), [401, 401]);
        server.terminate();
    }
}
