//! Tests of the control socket and `turnserver ctl` when something is wrong: a worker or the server does not respond, a
//! request or the configuration has errors.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "http/client.rs"]
mod client;
#[cfg(test)]
mod support;

#[cfg(test)]
mod steer {
    use std::fs;
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpStream};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::Path;
    use std::process::{Child, Command};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::pty::{OpenptyResult, Winsize, openpty};
    use nix::sys::ptrace;
    use nix::sys::signal::{self, Signal};
    use nix::sys::wait::{WaitPidFlag, waitpid};
    use nix::unistd::Pid;
    use serde_json::{Value, json};
    use socket2::{Domain, Socket, Type};
    use turnserver::clock::unix_seconds;

    use crate::client::{Http, Response};
    use crate::support::client::{Client, Login};
    use crate::support::{Controlled, LogLine, Server, TIMEOUT, TempDir, run, skip};

    impl Controlled {
        fn request(&self, method: &str, path: &str, body: &str) -> Response {
            Http::unix(&self.socket).request(method, path, "", body.as_bytes())
        }

        fn get_json(&self, path: &str) -> Value {
            serde_json::from_str(&self.request("GET", path, "").body).unwrap()
        }

        /// Waits for a response to `/healthz`.
        fn wait_for_health(&self, status: u16, body: &str) {
            let end = unix_seconds() + TIMEOUT.as_secs();
            loop {
                let health = self.request("GET", "/healthz", "");
                if (health.status, health.body.as_str()) == (status, body) {
                    return;
                }
                assert!(unix_seconds() < end, "{health:?}");
            }
        }

        /// Makes allocations until both workers have two or more. Returns the numbers of allocations.
        fn allocate_on_both_workers(&self) -> [usize; 2] {
            loop {
                // The code is 437 if an earlier client had the same port.
                let _ = self.client().allocate(&Login::mint("ann", 600));
                let counts = self.sessions();
                if counts.iter().all(|count| *count >= 2) {
                    return counts;
                }
            }
        }

        /// Returns the numbers of sessions of both workers.
        fn sessions(&self) -> [usize; 2] {
            let listed = self.get_json("/v1/sessions?limit=1000");
            let sessions = listed["sessions"].as_array().unwrap();
            let workers = sessions.iter().map(|session| session["id"].as_str().unwrap().split_once('-').unwrap().0);
            let workers: Vec<&str> = workers.collect();
            ["0", "1"].map(|worker| workers.iter().filter(|other| **other == worker).count())
        }
    }

    /// A thread of the server that is stopped, as by a debugger. Dropping it lets the thread go on.
    struct Stopped(Pid);

    impl Stopped {
        /// Stops a worker. `None` if the system does not allow it.
        fn worker(server: &Server, index: usize) -> Option<Self> {
            Self::named(server, &format!("worker-{index}"))
        }

        /// Stops the thread with a name.
        fn named(server: &Server, name: &str) -> Option<Self> {
            let tasks = fs::read_dir(format!("/proc/{}/task", server.id())).unwrap().map(|task| task.unwrap());
            let name = format!("{name}\n");
            let mut tasks = tasks.filter(|task| fs::read_to_string(task.path().join("comm")).unwrap() == name);
            let thread = tasks.next().unwrap().file_name().to_str().unwrap().parse().unwrap();
            Self::thread(Pid::from_raw(thread))
        }

        /// Stops the thread of control, which is the first one of the process.
        fn control(server: &Server) -> Option<Self> {
            Self::thread(Pid::from_raw(server.id().try_into().unwrap()))
        }

        fn thread(thread: Pid) -> Option<Self> {
            if let Err(error) = ptrace::seize(thread, ptrace::Options::empty()) {
                skip(&format!("a thread cannot be stopped: {error}"));
                return None;
            }
            ptrace::interrupt(thread).unwrap();
            waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
            Some(Self(thread))
        }
    }

    impl Drop for Stopped {
        fn drop(&mut self) {
            // The server may have ended.
            let _ = ptrace::detach(self.0, None);
        }
    }

    #[test]
    fn a_request_with_what_its_route_does_not_read_is_refused_and_changes_nothing() {
        let controlled = Controlled::start("");
        controlled.allocate("ann");
        let id = controlled.get_json("/v1/sessions")["sessions"][0]["id"].as_str().unwrap().to_owned();
        let session = format!("/v1/sessions/{id}");
        let (trial, until) = (json!({ "dry_run": true }).to_string(), unix_seconds() + 100);
        let revocation = json!({ "username": "ann", "until": until }).to_string();
        for (method, path, body) in [
            ("POST", "/v1/reload?dry_run=true", ""),
            ("POST", "/v1/drain?dry_run=true", ""),
            ("POST", "/v1/drain", &trial),
            ("POST", "/v1/resume?dry_run", ""),
            ("POST", "/v1/resume", &trial),
            ("PUT", "/v1/log-level?dry_run=1", r#"{"level":"debug"}"#),
            ("POST", "/v1/revocations?dry_run=1", &revocation),
            ("GET", "/v1/certificates?dry_run=1", ""),
            ("GET", "/v1/certificates", &trial),
            ("GET", "/v1/status", &trial),
            ("GET", "/v1/sessions", &trial),
            ("DELETE", "/v1/sessions?user=ann", &trial),
            ("DELETE", &format!("{session}?dry_run=true"), ""),
            ("DELETE", &session, &trial),
        ] {
            let response = controlled.request(method, path, body);
            let is_named = response.body.contains("dry_run is not a");
            assert!(response.status == 400 && is_named, "{method} {path} {body}: {response:?}");
        }
        let status = controlled.get_json("/v1/status");
        assert_eq!((&status["draining"], &status["allocations"]), (&json!(false), &json!(1)));
        assert_eq!(status["log_level"], json!("info"));
        let metrics = controlled.request("GET", "/metrics", "").body;
        assert!(metrics.contains("\nturnserver_config_generation 1\n"), "{metrics}");
        assert_eq!(controlled.request("POST", "/v1/drain", "{}").status, 200);
    }

    #[test]
    fn a_stalled_worker_is_reported_and_does_not_hold_up_the_others() {
        let controlled = Controlled::start("workers = 2\n");
        let [first, second] = controlled.allocate_on_both_workers();
        let listed = controlled.get_json("/v1/sessions?limit=1000");
        let mut ids = listed["sessions"].as_array().unwrap().iter().map(|session| session["id"].as_str().unwrap());
        let of_stopped = ids.find(|id| id.starts_with("1-")).unwrap().to_owned();
        let Some(stopped) = Stopped::worker(&controlled.server, 1) else { return };
        // The server waits for the worker, which is not known to be stalled.
        let finished = controlled.run(&["sessions"]);
        assert_eq!(finished.code, Some(4), "{finished:?}");
        assert_eq!(finished.stdout.last().unwrap(), &format!("{first} sessions"));
        assert!(finished.stderr[0].contains("no response from worker 1"), "{finished:?}");
        let stalled = controlled.event("worker-stalled");
        assert_eq!((stalled.level(), stalled.field("worker").as_deref()), ("ERROR", Some("1")));
        assert!(!stalled.message().contains("service manager"), "{stalled:?}");
        controlled.wait_for_health(503, "worker 1 is stalled\n");
        assert_eq!(controlled.failure(&["health"]), (Some(1), "turnserver: worker 1 is stalled".to_owned()));
        let metric = |worker: u8, value: u8| format!("\nturnserver_worker_stalled{{worker=\"{worker}\"}} {value}\n");
        let metrics = controlled.request("GET", "/metrics", "").body;
        assert!(metrics.contains(&metric(0, 0)) && metrics.contains(&metric(1, 1)), "{metrics}");

        let top = controlled.get_json("/v1/sessions?top=age");
        assert_eq!((top["sessions"].as_array().unwrap().len(), &top["missing_workers"]), (first, &json!([1])));
        let finished = controlled.run(&["--json", "kick", "--user", "ann"]);
        let ended: Value = serde_json::from_str(&finished.stdout.join("")).unwrap();
        assert_eq!((finished.code, &ended), (Some(4), &json!({ "ended": first, "missing_workers": [1] })));
        let kicked = controlled.event("sessions-ended");
        assert_eq!(
            kicked.message(),
            "the operator ended sessions; worker 1 does not respond, so others that it selects may be left"
        );

        // It is not asked, so it cannot end it later.
        let finished = controlled.run(&["kick", &of_stopped]);
        assert_eq!((finished.code, finished.stdout), (Some(4), vec!["ended 0 sessions".to_owned()]));
        assert!(finished.stderr[0].contains("no response from worker 1"), "{:?}", finished.stderr);
        let of_one = |line: &LogLine| line.field("filter") == Some(format!("session {of_stopped}"));
        assert_eq!(
            controlled.server.wait_for_log(of_one).message(),
            "the operator ended no session; worker 1 does not respond, so those that it selects may be left"
        );
        let (code, message) = controlled.failure(&["session", &of_stopped]);
        assert!(code == Some(1) && message.contains("worker 1 does not respond"), "{message}");

        drop(stopped);
        controlled.event("worker-recovered");
        assert_eq!(controlled.sessions(), [0, second]);
        let metrics = controlled.request("GET", "/metrics", "").body;
        assert!(metrics.contains(&metric(1, 0)), "{metrics}");
        let finished = controlled.run(&["kick", "--user", "ann"]);
        assert_eq!((finished.code, finished.stdout), (Some(0), vec![format!("ended {second} sessions")]));
    }

    // Control waits for files during a reload.
    #[test]
    fn health_shows_a_stalled_worker_also_while_control_waits() {
        let controlled = Controlled::start("workers = 2\n");
        let Some(_control) = Stopped::control(&controlled.server) else { return };
        let Some(worker) = Stopped::worker(&controlled.server, 1) else { return };
        controlled.wait_for_health(503, "worker 1 is stalled\n");
        drop(worker);
        controlled.wait_for_health(200, "ok\n");
    }

    #[test]
    fn a_change_that_a_worker_has_not_made_is_incomplete() {
        let controlled = Controlled::start("workers = 2\n");
        let Some(stopped) = Stopped::worker(&controlled.server, 1) else { return };
        let login = Login::mint("ann", 600);
        let revoke = ["revoke", &login.username];
        for (arguments, is_quiet) in [(&revoke[..], false), (&["reload"], false), (&["reload", "--quiet"], true)] {
            for json in [&[][..], &["--json"]] {
                let finished = controlled.run(&[json, arguments].concat());
                let is_silent = finished.stdout.is_empty();
                assert_eq!((finished.code, is_silent), (Some(4), is_quiet), "{arguments:?}: {finished:?}");
                let [why] = finished.stderr.as_slice() else { panic!("{arguments:?}: {finished:?}") };
                assert!(why.contains("incomplete: worker 1 is busy and does not apply the change yet"), "{why}");
            }
        }
        drop(stopped);
        controlled.lines(&revoke);
        assert_eq!(controlled.lines(&["--json", "reload", "--quiet"]), [""; 0]);
    }

    #[test]
    fn a_listener_that_no_worker_could_open_is_in_the_log_and_the_next_reload_opens_it() {
        let controlled = Controlled::start("workers = 2\n");
        let port = controlled.server.tcp_address().port();
        // It prevents that the workers listen on the wildcard address, although they could bind their sockets.
        let other = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        other.set_reuse_address(true).unwrap();
        let blocked = SocketAddr::from(([127, 0, 0, 2], port));
        other.bind(&blocked.into()).unwrap();
        let config = controlled.config.replace("tcp = [\"127.0.0.1:0\"]", &format!("tcp = [\"0.0.0.0:{port}\"]"));
        assert_ne!(config, controlled.config);
        controlled.server.write_config(&config);
        let Some(first) = Stopped::worker(&controlled.server, 0) else { return };
        let Some(second) = Stopped::worker(&controlled.server, 1) else { return };
        let of = |name: &'static str| move |line: &&LogLine| line.field("event").as_deref() == Some(name);
        let about_port = |name: &'static str| -> usize {
            let logs = controlled.server.logs();
            let address = |line: &&LogLine| line.field("address").is_some_and(|at| at.ends_with(&format!(":{port}")));
            logs.iter().filter(of(name)).filter(address).count()
        };
        let listening = about_port("listening");
        controlled.server.signal(Signal::SIGHUP);
        assert_eq!(controlled.event("reload-done").field("complete").as_deref(), Some("false"));
        let logs = controlled.server.logs();
        let pending: Vec<_> = logs.iter().filter(of("reload-incomplete")).map(|line| line.field("worker")).collect();
        assert_eq!(pending, [Some("0".to_owned()), Some("1".to_owned())]);
        assert_eq!([about_port("listening"), about_port("listener-closed")], [listening, 0]);
        other.listen(1).unwrap();
        drop((first, second));
        controlled.server.wait_for_logs(|lines| lines.iter().filter(|line| of("listener-failed")(line)).count() == 2);

        drop(other);
        let response: Value = controlled.json(&["reload"]);
        assert_eq!((&response["complete"], &response["failed_listeners"]), (&json!(true), &json!([])), "{response}");
        assert_eq!([about_port("listening"), about_port("listener-failed")], [listening + 1, 2]);
        Client::connect(blocked).allocate(&Login::mint("ann", 600)).unwrap();
    }

    #[test]
    fn an_http_server_that_has_not_changed_its_listeners_is_in_the_log() {
        let controlled = Controlled::start("[http]\nlisten = [\"127.0.0.1:0\"]\n");
        let http = controlled.event("http-listening").field("address").unwrap();
        controlled.server.write_config(&controlled.config.replace("listen = [\"127.0.0.1:0\"]\n", "listen = []\n"));
        let Some(stopped) = Stopped::named(&controlled.server, "http") else { return };
        controlled.server.signal(Signal::SIGHUP);
        assert_eq!(controlled.event("reload-done").field("complete").as_deref(), Some("false"));
        assert!(controlled.event("reload-incomplete").message().starts_with("the HTTP server is busy"));
        assert_eq!(controlled.events("http-listener-closed"), 0);
        drop(stopped);
        assert_eq!(controlled.json(&["reload"])["complete"], true);
        assert!(TcpStream::connect(http).is_err());
    }

    #[test]
    fn the_log_says_what_an_interrupted_kick_has_ended() {
        let controlled = Controlled::start("workers = 2\n");
        let [first, second] = controlled.allocate_on_both_workers();
        let Some(stopped) = Stopped::worker(&controlled.server, 1) else { return };
        // The client goes away while the server waits for the stopped worker.
        let request = b"DELETE /v1/sessions?user=ann HTTP/1.1\r\nHost: test\r\n\r\n";
        let interrupted = Http::unix(&controlled.socket).begin(request);
        controlled.server.wait_for_logs(|lines| {
            let ended = lines.iter().filter(|line| line.field("event").as_deref() == Some("allocation-ended"));
            ended.count() == first
        });
        drop(interrupted);
        let kick = controlled.event("sessions-ended");
        let ended: usize = kick.field("ended").unwrap().parse().unwrap();
        let (before, after) = ("the operator ended sessions; the command was interrupted, so", "may have ended, and ");
        let rest = kick.message().strip_prefix(before).unwrap_or_else(|| panic!("{kick:?}"));
        let rest = rest.strip_suffix("others that it selects may be left").unwrap_or_else(|| panic!("{kick:?}"));
        // The result of the other worker may be known to the log before it is known to the command.
        let requested: usize = match rest.trim() {
            "" => 0,
            more => more.strip_prefix("up to ").unwrap().split_once(" more ").unwrap().0.parse().unwrap(),
        };
        assert!(requested == 0 || rest.ends_with(after), "{kick:?}");
        assert_eq!((ended + requested, requested % first), (first, 0), "{kick:?}");
        drop(stopped);
        assert_eq!(controlled.sessions(), [0, second]);
    }

    #[test]
    fn a_prefix_with_further_bits_or_of_a_mapped_address_is_refused_with_a_suggestion() {
        let controlled = Controlled::start("");
        controlled.allocate("ann");
        for (prefix, suggestion) in [("127.0.0.1/1", "`0.0.0.0/1`"), ("::ffff:127.0.0.1", "`127.0.0.1`")] {
            for command in ["kick", "sessions"] {
                let finished = controlled.run(&[command, "--client", prefix]);
                assert_eq!(finished.code, Some(1), "{finished:?}");
                assert!(finished.stderr[0].contains(suggestion), "{finished:?}");
            }
        }
        assert_eq!(controlled.get_json("/v1/status")["allocations"], json!(1));
    }

    #[test]
    fn a_time_that_is_a_typing_error_does_not_end_a_revocation() {
        let controlled = Controlled::start("");
        let login = Login::mint("ann", 600);
        assert_eq!(controlled.run(&["revoke", &login.username]).code, Some(0));
        let in_milliseconds = (unix_seconds() * 1_000).to_string();
        let past = (unix_seconds() - 100).to_string();
        for (until, why) in [("3600", "no time in seconds"), (&in_milliseconds, "no time in seconds"), (&past, "--end")]
        {
            let finished = controlled.run(&["revoke", &login.username, "--until", until]);
            assert_eq!(finished.code, Some(1), "{finished:?}");
            assert!(finished.stderr[0].contains(why), "{finished:?}");
        }
        assert_eq!(controlled.client().allocate(&login).map(|_| ()), Err(401));
        assert_eq!(controlled.run(&["revoke", &login.username, "--end"]).stdout, ["no longer revoked"]);
        assert_eq!(controlled.client().allocate(&login).map(|_| ()), Ok(()));
    }

    #[test]
    fn the_limit_of_the_greatest_sessions_is_said_before_the_request() {
        let controlled = Controlled::start("");
        let finished = controlled.run(&["sessions", "--top", "age", "--limit", "1001"]);
        assert_eq!(finished.code, Some(2), "{finished:?}");
        assert!(finished.stderr[0].contains("--top lists at most 1000 sessions"), "{finished:?}");
        assert_eq!(controlled.run(&["sessions", "--top", "age", "--limit", "1000"]).code, Some(0));
        assert_eq!(controlled.run(&["sessions", "--limit", "1001"]).code, Some(0));
    }

    #[test]
    fn the_socket_is_found_in_a_configuration_with_other_errors() {
        let controlled = Controlled::start("");
        let ctl = |config: &str| {
            let config = controlled.directory.write("turnserver.toml", config);
            let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
            command.args(["ctl", "status", "--config"]).arg(config).env_remove("CREDENTIALS_DIRECTORY");
            run(&mut command, None, TIMEOUT)
        };
        let control = format!("[control]\nsocket = {:?}\n", controlled.socket);
        for other in [
            "[auth]\nsecrets-file = \"$CREDENTIALS_DIRECTORY/secrets\"\n",
            "[limits]\nalocations = \"many\"\n",
            "[relay]\nports = \n",
        ] {
            for config in [format!("{control}{other}"), format!("{other}{control}")] {
                let finished = ctl(&config);
                assert_eq!(finished.code, Some(0), "{config}: {finished:?}");
            }
        }
        // The default socket may be that of another server.
        for config in ["[control\nsocket = \"/nonexistent\"\n", "[control]\nsocket = 5\n"] {
            let finished = ctl(config);
            assert_eq!(finished.code, Some(2), "{config}: {finished:?}");
            assert!(finished.stderr.last().unwrap().contains("--socket names it, too"), "{finished:?}");
        }
    }

    fn accept(listener: &UnixListener) -> UnixStream {
        let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut ready, PollTimeout::try_from(TIMEOUT).unwrap()).unwrap(), 1, "nothing connects");
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream
    }

    fn read_request(stream: &mut UnixStream) {
        assert_ne!(stream.read(&mut [0; 4_096]).unwrap(), 0);
    }

    /// Starts `turnserver ctl top` on a terminal, with a server that does not respond after the first look.
    fn top_with_a_silent_server(directory: &Path) -> (Child, fs::File, UnixStream) {
        let socket = directory.join("silent.sock");
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let size = Winsize { ws_row: 24, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(Some(&size), None).unwrap();
        let side = || slave.try_clone().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
        command.args(["ctl", "top", "--socket"]).arg(&socket).stdin(side()).stdout(side()).stderr(side());
        let child = command.spawn().unwrap();
        let mut first = accept(&listener);
        for _ in ["status", "sessions"] {
            read_request(&mut first);
            first.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").unwrap();
        }
        let mut second = accept(&listener);
        read_request(&mut second);
        (child, fs::File::from(master), second)
    }

    #[test]
    fn top_ends_while_it_waits_for_the_server() {
        let directory = TempDir::new();
        for end in [None, Some(Signal::SIGINT), Some(Signal::SIGTERM)] {
            let (mut child, mut terminal, _silent) = top_with_a_silent_server(directory.path());
            match end {
                None => terminal.write_all(b"q").unwrap(),
                Some(end) => signal::kill(Pid::from_raw(child.id().try_into().unwrap()), end).unwrap(),
            }
            assert_eq!(child.wait().unwrap().code(), Some(0), "{end:?}");
        }
    }
}
