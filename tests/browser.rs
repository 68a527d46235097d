//! A headless Chromium calls itself. The call goes through the real server only. Each case runs over loopback
//! (`loopback::`), and over a veth interface with the XDP program (`offload::`), which needs root, `ip` and `ethtool`.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "browser/document.rs"]
mod document;
#[cfg(test)]
#[path = "browser/forwarder.rs"]
mod forwarder;
#[cfg(test)]
#[path = "browser/front.rs"]
mod front;
#[cfg(test)]
#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "next_hop/hosts.rs"]
mod hosts;
#[cfg(test)]
#[path = "http/client.rs"]
mod http;
#[cfg(test)]
#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "offloaded/interfaces.rs"]
mod interfaces;
#[cfg(test)]
#[path = "front/nginx.rs"]
mod nginx;
#[cfg(test)]
#[path = "browser/page.rs"]
mod page;
#[cfg(test)]
#[allow(dead_code, reason = "these tests use a part of it")]
mod site;
#[cfg(test)]
mod support;
#[cfg(test)]
#[path = "browser/test_page.rs"]
mod test_page;
#[cfg(test)]
#[path = "browser/webdriver.rs"]
mod webdriver;

#[cfg(test)]
use support::network;

#[cfg(test)]
mod browser {
    use std::net::SocketAddr;
    use std::path::PathBuf;
    use std::process::Command;

    use serde_json::{Value, json};
    use turnserver::clock::unix_seconds;

    use crate::interfaces::wait_until;
    use crate::page::serve_page;
    use crate::site::Version::{self, V4, V6};
    use crate::site::{Site, on_each_site, over_the_offload};
    use crate::support::certificates::Authority;
    use crate::support::{Credential, Server, TIMEOUT, TempDir, config_without_secret, has_ipv6, run, with_tls};
    use crate::webdriver::Browser;

    const BYTES: usize = 10 << 20;
    /// The longest message of SCTP that Chromium sends in one packet, at most.
    const LONGEST: usize = 1200;

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

    /// Makes a call with one configuration per side, and asserts that all data arrives. Returns its report.
    fn transfer(browser: &Browser, case: &str, server: &Server, configurations: [&Value; 2]) -> Value {
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
        report
    }

    /// Makes a call with one configuration per side. Asserts that all data went through the relay, and that each side
    /// reached the relay over one of its `transports`.
    fn call(site: &Site, case: &str, server: &Server, configurations: [&Value; 2], transports: [&[&str]; 2]) {
        let report = transfer(&Browser::start(), case, server, configurations);

        let frames: Vec<u64> = serde_json::from_value(report["framesDecoded"].clone()).unwrap();
        assert!(frames[0] > 0 && frames[1] > frames[0], "{frames:?}");

        // The server's log confirms that it relayed the data. A browser may switch between allocations.
        server.wait_for_logs(|lines| {
            let ended = lines.iter().filter(|line| line.message() == "allocation ended");
            let bytes = ended.filter_map(|line| line.field("bytes_to_client")?.parse::<usize>().ok());
            bytes.sum::<usize>() > BYTES
        });

        // Chromium requests no address family, so it gets IPv4 (RFC 8656 §7.2) however it reaches the server.
        let relay_ip = site.server(V4);
        for (pair, transport) in report["pairs"].as_array().unwrap().iter().zip(transports) {
            for side in ["local", "remote"] {
                assert_eq!(pair[side]["candidateType"], "relay", "{report}");
                assert_eq!(pair[side]["address"], relay_ip, "{report}");
            }
            let used = pair["local"]["relayProtocol"].as_str().unwrap();
            assert!(transport.contains(&used), "{report}");
        }
        assert_eq!(report["pairs"].as_array().unwrap().len(), 2);
        let own = site.host(if server.udp_address().is_ipv4() { V4 } else { V6 });
        let clients = server.logs().into_iter().filter(|line| line.message() == "allocation created");
        let clients: Vec<SocketAddr> = clients.map(|line| line.field("client").unwrap().parse().unwrap()).collect();
        assert!(clients.len() >= 2 && clients.iter().all(|client| client.ip().to_string() == own), "{clients:?}");
    }

    /// Makes a call in which each side reaches the relay over one transport only.
    fn call_over(site: &Site, case: &str, version: Version, transports: [&str; 2]) {
        let ip = site.server(version);
        let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
        let files = authority.write(&authority.issue(&[ip]), directory.path());
        let relay: &[Version] = match version {
            V4 => &[V4],
            V6 => &[V4, V6],
        };
        let server = site.start(&with_tls(&site.config_for(&[version], relay, ""), &[ip], &files));
        let credential = server.credential("alice");
        let [caller, callee] = transports.map(|transport| only(transport, &credential));
        call(site, case, &server, [&caller, &callee], [&transports[..1], &transports[1..]]);
    }

    /// A server with a control socket, and a browser whose page calls itself through it.
    struct Steered {
        server: Server,
        browser: Browser,
        config: String,
        socket: PathBuf,
        credential: Credential,
    }

    impl Steered {
        /// Makes a call that goes on until `finish`.
        fn begin(site: &Site) -> Self {
            let config = site.config(&[V4], "");
            let server = site.start(&config);
            let (credential, browser) = (server.credential("alice"), Browser::start());
            browser.navigate(&format!("http://{}/", serve_page()));
            let steered = Self { server, browser, config, socket: site.socket(), credential };
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

    fn reload(site: &Site) {
        let steered = Steered::begin(site);
        let listener = format!("udp = [\"{}:0\"", site.server(V4));
        let two_listeners = format!("{listener}, \"127.0.0.2:0\"");
        let changes = [
            ("realm = \"test.example\"", "realm = \"new.example\""),
            ("secrets = [", "secrets = [\"another secret for tests\", "),
            ("[relay]", "[limits]\npermissions-per-allocation = 9\nbytes-per-second-per-allocation = 9000000\n[relay]"),
            ("format = \"json\"", "format = \"json\"\nlevel = \"debug\""),
            (&listener, &two_listeners),
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

    fn kick(site: &Site) {
        let steered = Steered::begin(site);
        steered.ctl(&["kick", "--user", "alice"]);
        let reasons = steered.ended();
        let operator = format!(" of user {})", nix::unistd::getuid());
        assert!(reasons.len() >= 2, "{reasons:?}");
        for reason in reasons {
            assert!(reason.starts_with("ended by the operator (process ") && reason.ends_with(&operator), "{reason}");
        }
    }

    fn revoke(site: &Site) {
        let steered = Steered::begin(site);
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

    fn over_ipv6(site: &Site) {
        if has_ipv6() {
            call_over(site, "IPv6, udp to tls", V6, ["udp", "tls"]);
        }
    }

    fn with_printed_credential(site: &Site) {
        let server = site.start(&config_without_secret(&[site.server(V4)], &site.tables()));
        let printed = server.printed_credential().configuration;
        call(site, "printed credential", &server, [&printed, &printed], [&["udp", "tcp"]; 2]);
    }

    on_each_site! {
        a_call_survives_reloads_and_loses_nothing: reload;
        kick_ends_a_call_and_the_log_says_by_whom: kick;
        revoke_ends_a_call_and_prevents_the_next_one: revoke;
        a_call_runs_with_a_minted_credential: |site| call_over(site, "minted credential, udp", V4, ["udp", "udp"]);
        a_call_runs_over_tcp_only: |site| call_over(site, "minted credential, tcp", V4, ["tcp", "tcp"]);
        a_call_runs_over_tls_only: |site| call_over(site, "minted credential, tls", V4, ["tls", "tls"]);
        a_call_runs_between_udp_and_tls: |site| call_over(site, "udp to tls", V4, ["udp", "tls"]);
        a_call_runs_between_tcp_and_udp: |site| call_over(site, "tcp to udp", V4, ["tcp", "udp"]);
        a_call_runs_over_ipv6_only: over_ipv6;
        a_call_runs_with_the_credential_that_a_server_without_a_secret_prints: with_printed_credential;
    }

    // User space relays between two relayed transport addresses of one server. Here the callee is the peer, which is not
    // possible over loopback: Chromium has no candidates there.
    #[test]
    fn a_call_to_a_browser_without_the_relay_goes_through_the_kernel() {
        over_the_offload(|site| {
            let server = site.start(&site.config(&[V4], &site.peers()));
            let caller = only("udp", &server.credential("alice"));
            let callee = json!({ "iceServers": [], "iceTransportPolicy": "all" });
            let report =
                transfer(&Browser::with_addresses(), "only the caller is relayed", &server, [&caller, &callee]);
            let local = |at: usize| &report["pairs"][at]["local"];
            assert_eq!(
                (&local(0)["candidateType"], &local(0)["address"], &local(1)["address"]),
                (&json!("relay"), &json!(site.server(V4)), &json!(site.host(V4))),
            );
            // Nearly all data goes through the kernel: only the first packets come before the channel.
            let relayed = wait_until(|| {
                let relayed = site.in_kernel().unwrap();
                if relayed.bytes[0] > BYTES as u64 { Ok(relayed) } else { Err(format!("{relayed:?}")) }
            });
            println!("the kernel has relayed {relayed:?}");
            assert!(relayed.packets[0] > (BYTES / LONGEST) as u64 && relayed.packets[1] > 0, "{relayed:?}");
        });
    }
}
