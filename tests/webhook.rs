//! The webhook: a real server, real clients, and a receiver that misbehaves. Nothing is lost, and all sums are right.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "webhook/receiver.rs"]
mod receiver;
#[cfg(test)]
mod support;

#[cfg(test)]
mod webhook {
    use std::fs;
    use std::net::UdpSocket;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::Arc;
    use std::time::Duration;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use hmac::{Hmac, KeyInit as _, Mac as _};
    use nix::sys::signal::Signal;
    use serde_json::Value;
    use sha2::Sha256;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use turnserver::clock::{Clock, unix_seconds};

    use crate::receiver::{Got, Mode, Receiver, Totals, events, totals};
    use crate::support::certificates::Authority;
    use crate::support::client::{self, Client, Login, Session};
    use crate::support::{Controlled, Server, TIMEOUT, TempDir, config, run, skip};

    /// `whsec_` and 32 bytes.
    const SECRET: &str = "whsec_d2ViaG9vayBzZWNyZXQgb2YgdGhlIHRlc3RzISEhISE=";
    const NEXT_SECRET: &str = "whsec_YW5vdGhlciBzZWNyZXQgb2YgdGhlIHRlc3RzISEhISE=";

    /// The files of a server with a webhook.
    struct Place {
        directory: TempDir,
        secret: PathBuf,
    }

    impl Place {
        fn new() -> Self {
            let directory = TempDir::new();
            let secret = directory.write("secret", &format!("# of the receiver\n{SECRET}\n"));
            Self { directory, secret }
        }

        fn state(&self) -> PathBuf {
            self.directory.path().join("state")
        }

        /// Returns a configuration. `more` has further keys of `[webhook]`.
        fn config(&self, url: &str, more: &str) -> String {
            let (state, secret) = (self.state(), &self.secret);
            let tables = format!(
                "[peers]\nallow = [\"127.0.0.1\"]\n[webhook]\nurl = {url:?}\nsecret-file = {secret:?}\n\
                 interval = 0\n{more}\n"
            );
            format!("node = \"fra-1\"\nstate-directory = {state:?}\n{}", config(&["127.0.0.1"], &tables))
        }

        fn start(&self, url: &str, more: &str) -> Controlled {
            Controlled::start_with(&self.config(url, more))
        }
    }

    /// An allocation with what it has relayed.
    struct Call {
        client: Client,
        session: Session,
        relay: std::net::SocketAddr,
        peer: UdpSocket,
    }

    impl Call {
        fn start(server: &Server, user: &str) -> Self {
            let client = Client::new(server.udp_address());
            let (session, relay) = client.allocate(&Login::mint(user, 600)).unwrap();
            let peer = client::socket("127.0.0.1:0".parse().unwrap());
            client.permit(&session, peer.local_addr().unwrap());
            Self { client, session, relay, peer }
        }

        /// Relays a datagram in each direction.
        fn relay(&self, bytes: usize, total: &mut Totals) {
            self.client.send_to_peer(self.peer.local_addr().unwrap(), &vec![1; bytes]);
            assert_eq!(client::receive(&self.peer).0.len(), bytes);
            self.peer.send_to(&vec![2; bytes / 2], self.relay).unwrap();
            self.client.receive();
            total.packets_to_peers += 1;
            total.bytes_to_peers += bytes as u64;
            total.packets_to_client += 1;
            total.bytes_to_client += bytes as u64 / 2;
        }

        fn end(self) {
            self.client.delete(&self.session);
        }
    }

    /// Makes calls that each relay something and end.
    fn make_calls(server: &Server, users: std::ops::Range<usize>, total: &mut Totals) {
        for user in users {
            let call = Call::start(server, &format!("user-{user}"));
            call.relay(100 + user % 900, total);
            call.end();
            total.started += 1;
            total.ended += 1;
        }
    }

    fn webhook(controlled: &Controlled) -> Value {
        controlled.json(&["status"])["webhook"].clone()
    }

    /// Waits until the status satisfies a condition.
    fn wait_for_status(controlled: &Controlled, wanted: impl Fn(&Value) -> bool) {
        let clock = Clock::start();
        loop {
            let status = webhook(controlled);
            if wanted(&status) {
                return;
            }
            assert!(clock.elapsed() < TIMEOUT, "{status}");
        }
    }

    fn number(value: &Value, key: &str) -> u64 {
        value[key].as_u64().unwrap()
    }

    /// Kills a server, as a crash does.
    fn kill(controlled: Controlled) {
        controlled.server.signal(Signal::SIGKILL);
        assert_eq!(controlled.server.finish().signal, Some(Signal::SIGKILL));
    }

    #[test]
    fn events_arrive_in_order_with_sums_right_to_the_byte() {
        let (receiver, place) = (Receiver::start(), Place::new());
        let controlled = place.start(&receiver.url(), "");
        let mut total = Totals::default();
        make_calls(&controlled.server, 0..20, &mut total);
        receiver.wait_for_totals(total);
        let all = events(&receiver.got());
        assert_eq!(all[0]["type"], "node.started");
        assert!(all.iter().all(|event| event["node"] == "fra-1" && event["v"] == 1), "{all:#?}");
        // The start of an allocation comes before its end.
        for session in all.iter().filter(|event| event["type"] == "allocation.started") {
            let place = |kind: &str| {
                all.iter().position(|event| event["type"] == kind && event["session"] == session["session"]).unwrap()
            };
            assert!(place("allocation.started") < place("allocation.ended"));
        }
        let batches = receiver.got();
        for got in &batches {
            let json = got.json();
            assert_eq!((&json["v"], &json["node"]), (&1.into(), &"fra-1".into()));
            assert_eq!(json["batch"], got.header("webhook-id"));
            assert_eq!(got.header("content-type"), "application/json");
            assert!(got.head.starts_with("POST /hook?token=url-token HTTP/1.1"), "{}", got.head);
        }
        // The response is on its way.
        wait_for_status(&controlled, |status| number(status, "sent") == 41);
        let status = webhook(&controlled);
        assert_eq!((number(&status, "queued"), number(&status, "failures")), (0, 0));
        let lines = controlled.lines(&["status"]);
        assert!(lines.contains(&"webhook      41 events sent, 0 waiting".to_owned()), "{lines:#?}");
        // The last event is that of the stop, and it arrives before the process ends.
        let Controlled { server, directory: _directory, .. } = controlled;
        assert_eq!(server.terminate().code, Some(0));
        assert_eq!(events(&receiver.got()).last().unwrap()["type"], "node.stopped");
    }

    #[test]
    fn running_sums_arrive_once_a_minute_and_not_for_an_allocation_that_has_ended() {
        let (receiver, place) = (Receiver::start(), Place::new());
        let controlled = place.start(&receiver.url(), "");
        let (mut total, call) = (Totals::default(), Call::start(&controlled.server, "ann"));
        call.relay(700, &mut total);
        let mut usage = |got: &[Got]| events(got).into_iter().find(|event| event["type"] == "allocation.usage");
        let usage = receiver.wait_longer(2 * TIMEOUT, &mut usage);
        assert_eq!((&usage["user"], number(&usage, "bytes_to_peers")), (&"ann".into(), 700));
        call.relay(50, &mut total);
        call.end();
        (total.started, total.ended) = (1, 1);
        receiver.wait_for_totals(total);
    }

    #[test]
    fn nothing_is_lost_whatever_the_receiver_does() {
        let (mut receiver, place) = (Receiver::away(None), Place::new());
        let controlled = place.start(&receiver.url(), "timeout = 1\nbatch = 7");
        let mut total = Totals::default();
        make_calls(&controlled.server, 0..10, &mut total);
        let failed = controlled.event("webhook-failed");
        assert!(failed.field("error").unwrap().contains("cannot connect to 127.0.0.1"), "{failed:?}");
        receiver.set(Mode::Respond("500 Internal Server Error\r\n"));
        receiver.listen();
        receiver.wait_for_requests(1);
        for mode in [Mode::Hang, Mode::CutRequest, Mode::CutResponse] {
            receiver.set(mode);
            let connections = receiver.connections();
            make_calls(&controlled.server, 0..5, &mut total);
            receiver.wait_for_connections(connections + 1);
        }
        receiver.set(Mode::Slow(Duration::from_millis(300)));
        let taken = events(&receiver.got()).len();
        make_calls(&controlled.server, 0..5, &mut total);
        receiver.wait_for(|got| (events(got).len() > taken).then_some(()));
        receiver.set(Mode::Accept);
        receiver.wait_for_totals(total);
        controlled.event("webhook-recovered");
        // Each try of a batch is the same one.
        let got = receiver.got();
        for one in &got {
            for other in got.iter().filter(|other| other.header("webhook-id") == one.header("webhook-id")) {
                assert_eq!(one.body, other.body);
            }
        }
        let repeated = got.iter().filter(|other| other.header("webhook-id") == got[0].header("webhook-id"));
        assert!(repeated.count() > 1);
        wait_for_status(&controlled, |status| number(status, "queued") == 0);
        assert_eq!(number(&webhook(&controlled), "dropped"), 0);
    }

    #[test]
    fn the_status_of_a_response_counts_whatever_its_body_is() {
        let (receiver, place) = (Receiver::start(), Place::new());
        receiver.set(Mode::Endless("200 OK\r\n"));
        let controlled = place.start(&receiver.url(), "");
        let mut total = Totals::default();
        make_calls(&controlled.server, 0..5, &mut total);
        receiver.wait_for_totals(total);
        wait_for_status(&controlled, |status| number(status, "queued") == 0);
        let mut batches: Vec<_> = receiver.got().iter().map(|got| got.header("webhook-id").to_owned()).collect();
        let sent = batches.len();
        batches.sort_unstable();
        batches.dedup();
        assert_eq!(batches.len(), sent);
        receiver.set(Mode::Endless("404 Not Found\r\n"));
        make_calls(&controlled.server, 0..1, &mut total);
        let failed = controlled.event("webhook-failed");
        assert!(failed.field("error").unwrap().contains("check `webhook.url`"), "{failed:?}");
    }

    #[test]
    fn batches_share_a_connection_and_none_fails_because_the_receiver_has_closed_it() {
        let (receiver, place) = (Receiver::start(), Place::new());
        let controlled = place.start(&receiver.url(), "");
        let mut total = Totals::default();
        for users in [0..3, 3..6] {
            make_calls(&controlled.server, users, &mut total);
            receiver.wait_for_totals(total);
        }
        assert!(receiver.got().len() > 1);
        assert_eq!(receiver.connections(), 1);
        receiver.set(Mode::AcceptOne);
        for users in [6..9, 9..12] {
            make_calls(&controlled.server, users, &mut total);
            receiver.wait_for_totals(total);
        }
        wait_for_status(&controlled, |status| number(status, "sent") == 25);
        assert!(receiver.connections() > 1);
        let logs = controlled.server.logs();
        assert!(!logs.iter().any(|line| line.text().contains("webhook-failed")), "{logs:#?}");
    }

    #[test]
    fn a_reload_that_removes_the_webhook_closes_its_connection() {
        let (receiver, place) = (Receiver::start(), Place::new());
        let controlled = place.start(&receiver.url(), "");
        let mut total = Totals::default();
        make_calls(&controlled.server, 0..3, &mut total);
        receiver.wait_for_totals(total);
        receiver.wait_for_open(1);
        let without = place.config(&receiver.url(), "").split("[webhook]").next().unwrap().to_owned();
        controlled.server.write_config(&with_socket(&controlled, &without));
        controlled.lines(&["reload"]);
        receiver.wait_for_open(0);
    }

    #[test]
    fn a_receiver_that_takes_only_small_batches_is_not_away() {
        let (mut receiver, place) = (Receiver::away(None), Place::new());
        let controlled = place.start(&receiver.url(), "");
        let mut total = Totals::default();
        make_calls(&controlled.server, 0..40, &mut total);
        wait_for_status(&controlled, |status| number(status, "queued") == 81);
        receiver.set(Mode::AtMost(4));
        receiver.listen();
        receiver.wait_for_totals(total);
        wait_for_status(&controlled, |status| number(status, "queued") == 0);
        // From 100 events, to the half each time.
        let refused = receiver.got().iter().filter(|got| !got.is_taken).count();
        assert!((1..=5).contains(&refused), "{refused}");
        let logs = controlled.server.logs();
        assert!(!logs.iter().any(|line| line.text().contains("responded with 413")), "{logs:#?}");
    }

    #[test]
    fn a_killed_server_loses_nothing_that_its_spool_has() {
        let (mut receiver, place) = (Receiver::away(None), Place::new());
        let mut total = Totals::default();
        for run in 0..3_u64 {
            let controlled = place.start(&receiver.url(), "");
            make_calls(&controlled.server, 0..20, &mut total);
            // `node.started`, and two events for each call.
            wait_for_status(&controlled, |status| number(status, "queued") == 41 * (run + 1));
            kill(controlled);
        }
        receiver.listen();
        // In the middle of its work, too.
        receiver.set(Mode::CutResponse);
        let controlled = place.start(&receiver.url(), "batch = 3");
        receiver.wait_for_requests(1);
        kill(controlled);
        receiver.set(Mode::Accept);
        let controlled = place.start(&receiver.url(), "batch = 3");
        receiver.wait_for_totals(total);
        wait_for_status(&controlled, |status| number(status, "queued") == 0);
        assert_eq!(number(&webhook(&controlled), "dropped"), 0);
    }

    #[test]
    fn sums_stay_right_if_the_spool_is_full_even_if_the_server_is_killed() {
        let (mut receiver, place) = (Receiver::away(None), Place::new());
        let (mut total, mut before) = (Totals::default(), 0);
        for _ in 0..2 {
            let controlled = place.start(&receiver.url(), "spool = 65536");
            make_calls(&controlled.server, 0..200, &mut total);
            // Whether the event of the lost sums is in the spool makes a difference of one. This start may be missing.
            let _last = Call::start(&controlled.server, "last");
            let made = 1 + 2 * 200 + 1;
            let kept = |status: &Value| number(status, "queued") + number(status, "dropped");
            wait_for_status(&controlled, |status| kept(status) >= before + made);
            let status = webhook(&controlled);
            assert!(number(&status, "dropped") > 50 && number(&status, "queued_bytes") <= 65_536, "{status}");
            controlled.event("webhook-dropped");
            before = number(&status, "queued");
            kill(controlled);
        }
        receiver.listen();
        let _controlled = place.start(&receiver.url(), "spool = 65536");
        receiver.wait_for(|got| {
            let arrived = totals(got);
            (Totals { started: total.started, ..arrived } == total).then_some(())
        });
        let lost: Vec<_> = events(&receiver.got()).into_iter().filter(|event| event["type"] == "events.lost").collect();
        assert!(lost.iter().all(|event| event["lost"] == lost[0]["lost"]), "{lost:#?}");
    }

    #[test]
    fn what_does_not_fit_while_the_server_runs_is_reported_when_there_is_room() {
        let (receiver, place) = (Receiver::start(), Place::new());
        receiver.set(Mode::Respond("503 Service Unavailable\r\n"));
        let controlled = place.start(&receiver.url(), "spool = 65536");
        let mut total = Totals::default();
        make_calls(&controlled.server, 0..150, &mut total);
        controlled.event("webhook-dropped");
        receiver.set(Mode::Accept);
        receiver.wait_for_totals(total);
    }

    #[test]
    fn the_receiver_can_demand_a_wait_and_is_told_apart_from_a_redirect_and_one_that_is_gone() {
        let (receiver, elsewhere, place) = (Receiver::start(), Receiver::start(), Place::new());
        receiver.set(Mode::Respond("429 Too Many Requests\r\nRetry-After: 3\r\n"));
        let controlled = place.start(&receiver.url(), "");
        let got = receiver.wait_for_requests(2);
        assert!(got[1].at - got[0].at >= Duration::from_millis(2_900), "{got:#?}");
        let location: &'static str =
            Box::leak(format!("307 Temporary Redirect\r\nLocation: {}\r\n", elsewhere.url()).into_boxed_str());
        for (response, part) in [(location, "it redirects, which is not followed"), ("410 Gone\r\n", "it is gone")] {
            let receiver = Receiver::start();
            receiver.set(Mode::Respond(response));
            controlled.server.write_config(&with_socket(&controlled, &place.config(&receiver.url(), "")));
            controlled.lines(&["reload"]);
            let got = receiver.wait_for_requests(1);
            assert!(!got[0].is_taken);
            let failed = controlled.server.wait_for_log(|line| {
                line.field("event").as_deref() == Some("webhook-failed") && line.text().contains(part)
            });
            assert!(failed.field("receiver").unwrap().ends_with(&receiver.address.to_string()), "{failed:?}");
        }
        assert_eq!(elsewhere.connections(), 0);
    }

    fn with_socket(controlled: &Controlled, config: &str) -> String {
        format!("{config}[control]\nsocket = {:?}\n", controlled.socket)
    }

    #[test]
    fn a_reload_changes_the_receiver_and_the_secrets_and_what_waits_is_kept() {
        let (first, second, place) = (Receiver::start(), Receiver::start(), Place::new());
        first.set(Mode::Respond("500 Internal Server Error\r\n"));
        let controlled = place.start(&first.url(), "");
        let mut total = Totals::default();
        make_calls(&controlled.server, 0..5, &mut total);
        first.wait_for_requests(1);
        // Without [webhook], nothing is sent, and what waits stays.
        let without = place.config(&first.url(), "").split("[webhook]").next().unwrap().to_owned();
        controlled.server.write_config(&with_socket(&controlled, &without));
        controlled.lines(&["reload"]);
        assert_eq!(webhook(&controlled), Value::Null);
        // While the secret is replaced, each request has a signature with both.
        fs::write(&place.secret, format!("{NEXT_SECRET}\n{SECRET}\n")).unwrap();
        controlled.server.write_config(&with_socket(&controlled, &place.config(&second.url(), "")));
        controlled.lines(&["reload"]);
        second.wait_for_totals(total);
        let got = second.got();
        for secret in [SECRET, NEXT_SECRET] {
            assert!(is_signed_with(secret, &got[0]), "{got:?}");
        }
        // The events of a kind that is not wanted are not sent.
        controlled.server.write_config(&with_socket(&controlled, &place.config(&second.url(), "events = [\"ended\"]")));
        controlled.lines(&["reload"]);
        make_calls(&controlled.server, 0..2, &mut total);
        total.started -= 2;
        second.wait_for_totals(total);
    }

    /// Returns whether a request has a signature with a secret.
    fn is_signed_with(secret: &str, got: &Got) -> bool {
        let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
        mac.update(format!("{}.{}.{}", got.header("webhook-id"), got.header("webhook-timestamp"), got.body).as_bytes());
        let expected = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
        got.header("webhook-signature").split(' ').any(|one| one == expected)
    }

    /// Runs the example of docs/webhook.md.
    fn verified(place: &Place, secret: &str, got: &Got, body: &str) -> bool {
        let document = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/webhook.md")).unwrap();
        let (_, code) = document.split_once("```python\n").unwrap();
        let code = code.split("```").next().unwrap();
        let more = "import json, os, sys\nheaders = json.loads(os.environ['HEADERS'])\n\
                    sys.exit(0 if verify(os.environ['SECRET'], headers, os.environ['BODY'].encode()) else 7)\n";
        let script = place.directory.write("verify.py", &format!("{code}\n{more}"));
        let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
        let headers: serde_json::Map<_, _> =
            names.iter().map(|name| ((*name).to_owned(), got.header(name).into())).collect();
        let mut python = Command::new("python3");
        python.arg(script).env("SECRET", secret).env("BODY", body);
        python.env("HEADERS", Value::Object(headers).to_string());
        let finished = run(&mut python, Some("python3"), TIMEOUT);
        assert!(matches!(finished.code, Some(0 | 7)), "{finished:?}");
        finished.code == Some(0)
    }

    #[test]
    fn the_documented_lines_of_python_verify_a_batch_and_no_other_one() {
        if Command::new("python3").arg("--version").output().is_err() {
            return skip("there is no python3");
        }
        let (receiver, place) = (Receiver::start(), Place::new());
        let _controlled = place.start(&receiver.url(), "");
        let got = receiver.wait_for_requests(1).remove(0);
        assert!(verified(&place, SECRET, &got, &got.body));
        assert!(!verified(&place, SECRET, &got, &got.body.replace("fra-1", "fra-2")));
        assert!(!verified(&place, NEXT_SECRET, &got, &got.body));
        let time: u64 = got.header("webhook-timestamp").parse().unwrap();
        let of = |time: u64| Got {
            head: got.head.replace(got.header("webhook-timestamp"), &time.to_string()),
            ..got.clone()
        };
        assert!(!verified(&place, SECRET, &of(time - 1), &got.body));
        assert!(!verified(&place, SECRET, &of(time - 3600), &got.body));
    }

    #[test]
    fn the_certificate_of_the_receiver_must_have_its_name_and_come_from_a_trusted_authority() {
        let authority = Authority::new(unix_seconds());
        let place = Place::new();
        let ca = place.directory.write("ca.pem", &authority.root());
        let (trusted, other_name) = (tls(&authority, "127.0.0.1"), tls(&authority, "other.example"));
        let ca = format!("ca-file = {ca:?}");
        for (config, more, part) in [
            (&other_name, ca.as_str(), "TLS failed: invalid peer certificate"),
            (&trusted, "", "set `webhook.ca-file`"),
        ] {
            let mut receiver = Receiver::away(Some(Arc::clone(config)));
            receiver.listen();
            let controlled = place.start(&format!("https://{}/", receiver.address), more);
            let failed = controlled.event("webhook-failed");
            assert!(failed.field("error").unwrap().contains(part), "{failed:?}");
            assert!(receiver.got().is_empty());
        }
        let mut receiver = Receiver::away(Some(trusted));
        receiver.listen();
        let controlled = place.start(&format!("https://{}/", receiver.address), &ca);
        let mut total = Totals::default();
        make_calls(&controlled.server, 0..2, &mut total);
        receiver.wait_for_totals(total);
    }

    fn tls(authority: &Authority, name: &str) -> Arc<ServerConfig> {
        let issued = authority.issue(&[name]);
        let chain = authority.chain(&issued);
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap());
        Arc::new(config.unwrap())
    }

    #[test]
    fn packets_do_not_wait_for_a_receiver_that_hangs_and_a_spool_that_is_full() {
        let (receiver, place) = (Receiver::start(), Place::new());
        receiver.set(Mode::Hang);
        let controlled = place.start(&receiver.url(), "spool = 65536");
        let mut total = Totals::default();
        make_calls(&controlled.server, 0..150, &mut total);
        controlled.event("webhook-dropped");
        let call = Call::start(&controlled.server, "ann");
        let clock = Clock::start();
        let mut times: Vec<Duration> = Vec::new();
        for _ in 0..1_000 {
            let before = clock.elapsed();
            call.relay(200, &mut total);
            times.push(clock.elapsed() - before);
        }
        times.sort_unstable();
        assert!(times[900] < Duration::from_millis(50), "{:?}", &times[900..]);
        // The receiver was there all the time, and has taken nothing.
        assert!(receiver.connections() > 0 && number(&webhook(&controlled), "sent") == 0);
    }

    #[test]
    fn neither_the_secret_nor_the_rest_of_the_url_is_in_the_log_or_in_what_the_server_prints() {
        let (receiver, place) = (Receiver::start(), Place::new());
        receiver.set(Mode::Respond("403 Forbidden\r\n"));
        let config = place.config(&receiver.url(), "").replace("[log]\n", "[log]\nlevel = \"trace\"\n");
        let controlled = Controlled::start_with(&config);
        controlled.event("webhook-failed");
        fs::write(&place.secret, NEXT_SECRET).unwrap();
        controlled
            .server
            .write_config(&with_socket(&controlled, &place.config("http://127.0.0.1:1/hook?token=url-token", "")));
        let reloaded = controlled.lines(&["reload"]).join("\n");
        let mut check = Command::new(env!("CARGO_BIN_EXE_turnserver"));
        let checked =
            run(check.arg("check-config").arg("--config").arg(controlled.server.config_path()), None, TIMEOUT);
        assert_eq!(checked.code, Some(0), "{checked:?}");
        let text = controlled.server.logs().iter().map(|line| line.text().to_owned()).collect::<Vec<_>>().join("\n");
        for (what, text) in [("log", &text), ("reload", &reloaded), ("check-config", &checked.stdout.join("\n"))] {
            for hidden in [SECRET, NEXT_SECRET, &SECRET[6..], "url-token"] {
                assert!(!text.contains(hidden), "{what}: {text}");
            }
            assert!(text.contains("webhook"), "{what}: {text}");
        }
    }

    #[test]
    fn two_servers_do_not_share_a_spool_and_the_second_one_goes_on_without() {
        let (receiver, place) = (Receiver::start(), Place::new());
        let _first = place.start(&receiver.url(), "");
        let second = place.start(&receiver.url(), "");
        let error = second.event("webhook-spool-unusable").field("error").unwrap();
        assert!(error.starts_with("another server uses ") && error.contains("`state-directory`"), "{error}");
        let mut total = Totals::default();
        make_calls(&second.server, 0..2, &mut total);
        receiver.wait_for_totals(total);
        assert_eq!(totals(&receiver.got()).ended, 2);
    }
}
