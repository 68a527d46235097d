//! A headless Chromium calls itself. The call goes through the real server only.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "http/client.rs"]
mod client;
#[cfg(test)]
#[path = "browser/forwarder.rs"]
mod forwarder;
#[cfg(test)]
#[path = "browser/page.rs"]
mod page;
#[cfg(test)]
mod support;
#[cfg(test)]
#[path = "browser/test_page.rs"]
mod test_page;
#[cfg(test)]
#[path = "browser/webdriver.rs"]
mod webdriver;

#[cfg(test)]
mod browser {
    use std::net::SocketAddr;
    use std::path::PathBuf;
    use std::process::Command;

    use serde_json::{Value, json};
    use turnserver::clock::unix_seconds;

    use crate::page::serve_page;
    use crate::support::certificates::Authority;
    use crate::support::{
        Credential, Server, TIMEOUT, TempDir, config_for, config_without_secret, has_ipv6, run, with_tls,
    };
    use crate::webdriver::Browser;

    const BYTES: usize = 10 << 20;

    /// Returns the configuration of a page with only the URLs of one transport.
    fn only(transport: &str, credential: &Credential) -> Value {
        let mut configuration = credential.configuration.clone();
        let urls = configuration["iceServers"][0]["urls"].as_array_mut().unwrap();
        let (scheme, protocol) = if transport == "tls" { ("turns:", "tcp") } else { ("turn:", transport) };
        let end = format!("?transport={protocol}");
        urls.retain(|url| url.as_str().is_some_and(|url| url.starts_with(scheme) && url.ends_with(&end)));
        assert_eq!(urls.len(), 1);
        configuration
    }

    /// Makes a call with one configuration per side. Asserts that all data went through the relay, and that each side
    /// reached the relay over one of its `transports`.
    fn call(case: &str, server: &Server, configurations: [&Value; 2], transports: [&[&str]; 2]) {
        let browser = Browser::start();
        browser.navigate(&format!("http://{}/", serve_page()));
        let report = browser.execute_async(
            "const [configurations, bytes, done] = arguments;
             call(configurations, bytes).then(done, (error) => done({ error: error.message }));",
            &[json!(configurations), BYTES.into()],
        );
        println!("browser, {case}: {report}");
        assert_eq!(report["error"], Value::Null, "server output:\n{:#?}", server.logs());

        assert_eq!(report["receivedBytes"], json!(BYTES));
        assert_eq!(report["receivedHash"], report["sentHash"]);
        assert_eq!(report["sentHash"].as_str().map(str::len), Some(64));

        let frames: Vec<u64> = serde_json::from_value(report["framesDecoded"].clone()).unwrap();
        assert!(frames[0] > 0 && frames[1] > frames[0], "{frames:?}");

        // The server's log confirms that it relayed the data. A browser may switch between allocations.
        server.wait_for_logs(|lines| {
            let ended = lines.iter().filter(|line| line.message() == "allocation ended");
            let bytes = ended.filter_map(|line| line.field("bytes_to_client")?.parse::<usize>().ok());
            bytes.sum::<usize>() > BYTES
        });

        // Chromium requests no address family, so it gets IPv4 (RFC 8656 §7.2) however it reaches the server.
        let relay_ip = "127.0.0.1";
        for (pair, transport) in report["pairs"].as_array().unwrap().iter().zip(transports) {
            for side in ["local", "remote"] {
                assert_eq!(pair[side]["candidateType"], "relay", "{report}");
                assert_eq!(pair[side]["address"], relay_ip, "{report}");
            }
            let used = pair["local"]["relayProtocol"].as_str().unwrap();
            assert!(transport.contains(&used), "{report}");
        }
        assert_eq!(report["pairs"].as_array().unwrap().len(), 2);
        let clients = server.logs().into_iter().filter(|line| line.message() == "allocation created");
        let clients: Vec<SocketAddr> = clients.map(|line| line.field("client").unwrap().parse().unwrap()).collect();
        assert!(
            clients.len() >= 2 && clients.iter().all(|client| client.ip() == server.udp_address().ip()),
            "{clients:?}"
        );
    }

    /// Makes a call in which each side reaches the relay over one transport only.
    fn call_over(case: &str, ip: &str, transports: [&str; 2]) {
        let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
        let files = authority.write(&authority.issue(&[ip]), directory.path());
        let relay: &[&str] = if ip == "127.0.0.1" { &[ip] } else { &["127.0.0.1", ip] };
        let server = Server::start(&with_tls(&config_for(&[ip], relay, ""), &[ip], &files));
        let credential = server.credential("alice");
        let [caller, callee] = transports.map(|transport| only(transport, &credential));
        call(case, &server, [&caller, &callee], [&transports[..1], &transports[1..]]);
    }

    /// A server with a control socket, and a browser whose page calls itself through it.
    struct Steered {
        server: Server,
        browser: Browser,
        config: String,
        socket: PathBuf,
        credential: Credential,
        _directory: TempDir,
    }

    impl Steered {
        /// Makes a call that goes on until `finish`.
        fn begin() -> Self {
            let directory = TempDir::new();
            let socket = directory.path().join("control.sock");
            let config = format!("{}[control]\nsocket = {socket:?}\n", config_for(&["127.0.0.1"], &["127.0.0.1"], ""));
            let server = Server::start(&config);
            let (credential, browser) = (server.credential("alice"), Browser::start());
            browser.navigate(&format!("http://{}/", serve_page()));
            let steered = Self { server, browser, config, socket, credential, _directory: directory };
            let udp = only("udp", &steered.credential);
            let begun = steered.script("begin", &[json!([udp, udp])]);
            assert_eq!(begun["error"], Value::Null, "server output:\n{:#?}", steered.server.logs());
            steered
        }

        /// Calls a function of the page.
        fn script(&self, function: &str, arguments: &[Value]) -> Value {
            let script = format!(
                "const done = arguments[arguments.length - 1];
                 {function}(...[...arguments].slice(0, -1)).then(done, (error) => done({{ error: error.message }}));"
            );
            self.browser.execute_async(&script, arguments)
        }

        fn ctl(&self, arguments: &[&str]) {
            let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
            let finished = run(command.arg("ctl").arg("--socket").arg(&self.socket).args(arguments), None, TIMEOUT);
            assert_eq!(finished.code, Some(0), "{finished:?}");
        }

        /// Waits until the call has ended, and returns the reasons in the log.
        fn ended(&self) -> Vec<String> {
            let silent = self.script("silent", &[]);
            assert_eq!(silent["error"], Value::Null);
            let ends = self.server.logs().into_iter().filter(|line| line.message() == "allocation ended");
            ends.map(|line| line.field("reason").unwrap()).collect()
        }
    }

    #[test]
    fn a_call_survives_reloads_and_loses_nothing() {
        let steered = Steered::begin();
        let changes = [
            ("realm = \"test.example\"", "realm = \"new.example\""),
            ("secrets = [", "secrets = [\"another secret for tests\", "),
            ("[relay]", "[limits]\npermissions-per-allocation = 9\nbytes-per-second-per-allocation = 9000000\n[relay]"),
            ("format = \"json\"", "format = \"json\"\nlevel = \"debug\""),
            ("udp = [\"127.0.0.1:0\"", "udp = [\"127.0.0.1:0\", \"127.0.0.2:0\""),
            ("[control]", "[http]\nlisten = [\"127.0.0.1:0\"]\n[control]"),
            ("[control]", "[peers]\ndeny = [\"198.51.100.0/24\"]\n[control]"),
            ("[control]", "[compat]\ndraft-dual-allocation = true\n[control]"),
        ];
        let mut config = steered.config.clone();
        for (from, to) in changes {
            assert!(config.contains(from), "{from} in {config}");
            config = config.replacen(from, to, 1);
            steered.server.write_config(&config);
            steered.ctl(&["reload"]);
        }
        let report = steered.script("finish", &[]);
        println!("browser, {} reloads under a call: {report}", changes.len());
        for (one, other) in [(0, 1), (1, 0)] {
            assert_eq!(report[one]["received"], report[other]["sent"], "{report}");
            assert!(report[one]["states"].as_array().unwrap().iter().all(|state| state != "failed"), "{report}");
        }
    }

    #[test]
    fn kick_ends_a_call_and_the_log_says_by_whom() {
        let steered = Steered::begin();
        steered.ctl(&["kick", "--user", "alice"]);
        let reasons = steered.ended();
        let operator = format!(" of user {})", nix::unistd::getuid());
        assert!(reasons.len() >= 2, "{reasons:?}");
        for reason in reasons {
            assert!(reason.starts_with("ended by the operator (process ") && reason.ends_with(&operator), "{reason}");
        }
    }

    #[test]
    fn revoke_ends_a_call_and_prevents_the_next_one() {
        let steered = Steered::begin();
        let before = steered.server.logs().len();
        steered.ctl(&["revoke", &steered.credential.username]);
        let reasons = steered.ended();
        assert!(
            reasons.len() >= 2 && reasons.iter().all(|reason| reason == "the credentials were revoked"),
            "{reasons:?}"
        );
        let revoked = steered.server.wait_for_log(|line| line.field("event").as_deref() == Some("username-revoked"));
        assert_eq!(revoked.field("uid"), Some(nix::unistd::getuid().to_string()));
        let udp = only("udp", &steered.credential);
        let next = steered.script("call", &[json!([udp, udp]), 10.into()]);
        assert!(next["error"].as_str().is_some_and(|error| error.contains("401")), "{next}");
        let logs = steered.server.logs();
        assert!(logs[before..].iter().all(|line| line.message() != "allocation created"), "{logs:#?}");
    }

    #[test]
    fn a_call_runs_with_a_minted_credential() {
        call_over("minted credential, udp", "127.0.0.1", ["udp", "udp"]);
    }

    #[test]
    fn a_call_runs_over_tcp_only() {
        call_over("minted credential, tcp", "127.0.0.1", ["tcp", "tcp"]);
    }

    #[test]
    fn a_call_runs_over_tls_only() {
        call_over("minted credential, tls", "127.0.0.1", ["tls", "tls"]);
    }

    #[test]
    fn a_call_runs_between_udp_and_tls() {
        call_over("udp to tls", "127.0.0.1", ["udp", "tls"]);
    }

    #[test]
    fn a_call_runs_between_tcp_and_udp() {
        call_over("tcp to udp", "127.0.0.1", ["tcp", "udp"]);
    }

    #[test]
    fn a_call_runs_over_ipv6_only() {
        if has_ipv6() {
            call_over("IPv6, udp to tls", "::1", ["udp", "tls"]);
        }
    }

    #[test]
    fn a_call_runs_with_the_credential_that_a_server_without_a_secret_prints() {
        let server = Server::start(&config_without_secret(&["127.0.0.1"], ""));
        let printed = server.printed_credential().configuration;
        call("printed credential", &server, [&printed, &printed], [&["udp", "tcp"]; 2]);
    }
}
