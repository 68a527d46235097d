//! The links of the test page, over the control socket and HTTP of the real server. tests/browser has the page itself.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "http/client.rs"]
mod client;
#[cfg(test)]
mod support;

#[cfg(test)]
mod test_page {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};

    use serde_json::{Value, json};
    use socket2::{Domain, Socket, Type};
    use turnserver::stun::attribute::Data;

    use crate::client::{Http, Response};
    use crate::support::client::{Client, Login};
    use crate::support::network::in_own_network;
    use crate::support::{Controlled, TIMEOUT, config_without_secret, has_ipv6};

    const HTTP: &str = "[http]\nlisten = [\"127.0.0.1:0\"]\n";
    /// The key that a page makes.
    const KEY: &str = "0123456789abcdef";
    const FILES: [&str; 3] = ["/test", "/test/page.css", "/test/page.js"];

    fn http_address(controlled: &Controlled) -> SocketAddr {
        let line = controlled.server.wait_for_log(|line| line.message() == "HTTP listening");
        line.field("address").unwrap().parse().unwrap()
    }

    fn request(controlled: &Controlled, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let response = send(controlled, method, path, body);
        (response.status, serde_json::from_str(&response.body).unwrap_or_default())
    }

    fn send(controlled: &Controlled, method: &str, path: &str, body: &Value) -> Response {
        Http::tcp(http_address(controlled)).request(method, path, "", body.to_string().as_bytes())
    }

    /// Returns the token of a new link.
    fn link(controlled: &Controlled) -> String {
        let link = controlled.json(&["test-link"]);
        let url = link["urls"][0].as_str().unwrap();
        let (page, token) = url.split_once('#').unwrap();
        assert_eq!(page, format!("http://{}/test", http_address(controlled)));
        token.to_owned()
    }

    fn start(controlled: &Controlled, token: &str) -> (u16, Value) {
        start_with(controlled, token, KEY)
    }

    fn start_with(controlled: &Controlled, token: &str, key: &str) -> (u16, Value) {
        request(controlled, "POST", "/test/start", &json!({ "token": token, "key": key }))
    }

    fn login(session: &Value) -> Login {
        Login::new(session["username"].as_str().unwrap(), session["credential"].as_str().unwrap())
    }

    fn report(verdict: &str) -> Value {
        let way = json!({ "url": "turn:a\u{1b}:1", "ok": true, "step": "done", "rtt_median_ms": 1.5 });
        json!({ "browser": "B", "verdict": verdict, "ways": [way] })
    }

    #[test]
    fn there_is_no_page_before_the_first_link() {
        let controlled = Controlled::start(HTTP);
        for path in FILES {
            assert_eq!(request(&controlled, "GET", path, &Value::Null).0, 404, "{path}");
        }
        assert_eq!(start(&controlled, "x").0, 404);
        link(&controlled);
        for path in FILES {
            let response = send(&controlled, "GET", path, &Value::Null);
            assert_eq!(response.status, 200, "{path}");
            let policy = response.header("content-security-policy").unwrap();
            assert!(policy.starts_with("default-src 'none'; script-src 'self'"), "{policy}");
            assert_eq!(response.header("referrer-policy"), Some("no-referrer"));
            // No outside resource.
            let body = response.body.replace("http://www.w3.org/2000/svg", "");
            assert!(["http:", "https:", "\"//", "'//", "url("].iter().all(|part| !body.contains(part)), "{path}");
            assert_eq!(send(&controlled, "POST", path, &Value::Null).status, 405);
        }
        assert_eq!(request(&controlled, "GET", "/test/start", &Value::Null).0, 405);
        // Not on the control socket.
        assert_eq!(Http::unix(&controlled.socket).request("GET", "/test", "", b"").status, 404);
    }

    #[test]
    fn a_link_works_once_and_its_credential_reaches_only_relayed_addresses() {
        let controlled = Controlled::start(&format!("{HTTP}[peers]\nallow = [\"127.0.0.1\"]\n"));
        let token = link(&controlled);
        let (status, session) = start(&controlled, &token);
        assert_eq!(status, 200, "{session}");
        // The same page, which has not got the response.
        assert_eq!(start(&controlled, &token).1["username"], session["username"]);
        let (again, refusal) = start_with(&controlled, &token, "another key of a page");
        assert_eq!(again, 410);
        assert!(refusal["error"].as_str().unwrap().contains("has been used already"), "{refusal}");
        assert_eq!(start(&controlled, "x").0, 404);
        assert_eq!(start_with(&controlled, &token, "short").0, 400);

        let [caller, callee] = [0, 1].map(|_| Client::new(controlled.server.udp_address()));
        let [(of_caller, _), (of_callee, relayed)] =
            [&caller, &callee].map(|client| client.allocate(&login(&session)).unwrap());
        let other: SocketAddr = "127.0.0.1:9".parse().unwrap();
        caller.permit(&of_caller, relayed);
        callee.permit(&of_callee, relayed);
        // On this machine, all relayed addresses and this peer have one address, so the permission is for both.
        caller.send_to_peer(other, b"out");
        caller.send_to_peer(relayed, b"through");
        assert_eq!(callee.receive().get::<Data<'_>>().unwrap().0, b"through");
        let drops = |id: &str| controlled.json(&["session", id])["drops"].clone();
        let sessions = controlled.json(&["sessions"])["sessions"].as_array().unwrap().clone();
        let mine = sessions.iter().find(|one| one["client"] == json!(caller.address().to_string())).unwrap();
        assert!(mine["user"].as_str().unwrap().starts_with("test-link-"), "{mine}");
        assert_eq!(drops(mine["id"].as_str().unwrap()), json!({ "peer-forbidden": 1 }));
    }

    #[test]
    fn a_link_works_with_static_users_only_and_ends_with_its_revocation() {
        let users = format!("[[auth.users]]\nname = \"ann\"\npassword = \"a password of ann\"\n{HTTP}");
        let controlled = Controlled::start_with(&config_without_secret(&["127.0.0.1"], &users));
        let (_, session) = start(&controlled, &link(&controlled));
        // A reload keeps the secret of the links.
        controlled.server.write_config(&format!("drain-deadline = \"3s\"\n{}", controlled.config));
        controlled.json(&["reload"]);
        let client = Client::new(controlled.server.udp_address());
        client.allocate(&login(&session)).unwrap();
        controlled.json(&["revoke", session["username"].as_str().unwrap()]);
        assert_eq!(controlled.json(&["status"])["allocations"], json!(0));
        let (status, refusal) = request(&controlled, "POST", "/test/remaining", &json!({ "key": KEY }));
        assert_eq!(status, 410);
        assert!(refusal["error"].as_str().unwrap().starts_with("the operator has revoked this test link"), "{refusal}");
    }

    #[test]
    fn results_reach_the_operator_and_wrong_ones_do_not() {
        let controlled = Controlled::start(HTTP);
        assert!(controlled.lines(&["test-results"])[0].starts_with("no results"));
        let token = link(&controlled);
        let (_, session) = start(&controlled, &token);
        let key = json!(KEY);
        let send = |key: &Value, report: &Value| {
            request(&controlled, "POST", "/test/report", &json!({ "key": key, "report": report })).0
        };
        assert_eq!(send(&json!(token), &report("ok")), 404);
        assert_eq!(send(&key, &json!({ "browser": "B", "ways": [] })), 400);
        assert_eq!(send(&key, &json!("x".repeat(70_000))), 413);
        // The ways say what the verdict is.
        assert_eq!(send(&key, &report("failed")), 200);
        let lines = controlled.lines(&["test-results"]);
        assert!(lines[0].starts_with("every way works: link "), "{lines:?}");
        assert!(lines.iter().any(|line| line.starts_with("turn:a\\u{1b}:1  works")), "{lines:?}");
        let event = |name: &str| controlled.server.wait_for_log(|line| line.field("event").as_deref() == Some(name));
        let id = event("test-link-made").field("link");
        assert_eq!([event("test-link-used").field("link"), event("test-result").field("link")], [id.clone(), id]);
        for secret in [&token, KEY, session["credential"].as_str().unwrap()] {
            assert!(controlled.server.logs().iter().all(|line| !line.text().contains(secret)), "{secret} is in no log");
        }
    }

    #[test]
    fn a_link_needs_a_listener_and_a_sane_lifetime() {
        let without = Controlled::start("");
        let (code, message) = without.failure(&["test-link"]);
        assert_eq!(code, Some(1));
        assert!(message.contains("set `http.listen`"), "{message}");
        let controlled = Controlled::start(HTTP);
        let (code, message) = controlled.failure(&["test-link", "--ttl", "2d"]);
        assert_eq!((code, message.as_str()), (Some(1), "turnserver: ttl must be between 1 min and 1 d"));
        assert_eq!(controlled.failure(&["test-link", "--ttl", "soon"]).0, Some(2));
        let lines = controlled.lines(&["test-link", "--ttl", "2h"]);
        assert!(lines.iter().any(|line| line.contains("Only browsers on this machine")), "{lines:?}");
    }

    #[test]
    fn a_page_learns_what_its_link_may_still_relay() {
        let controlled = Controlled::start(HTTP);
        let token = link(&controlled);
        let remaining = |key: &str| request(&controlled, "POST", "/test/remaining", &json!({ "key": key }));
        assert_eq!(remaining(KEY).0, 404, "the page has not been started");
        let (_, session) = start(&controlled, &token);
        // Two URLs, five tests of each.
        let all = 2 * 5 * (48 << 20);
        assert_eq!(remaining(KEY), (200, json!({ "bytes": all })));
        assert_eq!(remaining(&token).0, 404);
        let [caller, callee] = [0, 1].map(|_| Client::new(controlled.server.udp_address()));
        let [(session, _), (_, relayed)] = [&caller, &callee].map(|client| client.allocate(&login(&session)).unwrap());
        caller.permit(&session, relayed);
        caller.send_to_peer(relayed, &[0; 1_000]);
        // After this response, the server has relayed the data. The callee has no permission for it, so its allocation
        // relays nothing.
        caller.binding();
        assert_eq!(remaining(KEY), (200, json!({ "bytes": all - 1_048 })));
    }

    #[test]
    fn wrong_links_from_this_machine_have_no_limit() {
        // A proxy on this machine hides its clients, so its wrong links have no limit.
        let (v4, v6): (&[&str], &[&str]) = (&["127.0.0.1", "127.0.0.2"], &["::1", "127.0.0.3"]);
        for (listener, sources) in [("0.0.0.0:0", v4), ("[::]:0", v6)] {
            if sources == v6 && !has_ipv6() {
                continue;
            }
            let controlled =
                Controlled::start(&format!("[http]\nlisten = [{listener:?}]\nurl = \"http://a.example\"\n"));
            token_of_url(&controlled);
            for source in sources {
                let statuses: Vec<u16> =
                    (0..40).map(|_| start_from(&controlled, source, "wrong", KEY).status).collect();
                assert_eq!(statuses, [404; 40], "{source} to {listener}");
            }
        }
    }

    #[test]
    fn a_machine_with_too_many_wrong_links_waits_and_others_do_not() {
        // Two addresses that are not those of the loopback network.
        let network = ["link set lo up", "addr add 192.0.2.7/24 dev lo", "addr add 192.0.2.8/24 dev lo"];
        in_own_network(&network, || {
            let http = "[http]\nlisten = [\"0.0.0.0:0\"]\nurl = \"http://a.example\"\n";
            let controlled = Controlled::start(http);
            let tokens = [0, 1].map(|_| token_of_url(&controlled));
            let wrong = |source: &str| start_from(&controlled, source, "wrong", KEY);
            // More than the burst and what a slow run adds to it.
            let responses: Vec<Response> = (0..1_000).map(|_| wrong("192.0.2.7")).collect();
            let first = responses.iter().position(|response| response.status != 404).unwrap();
            assert!(first >= 20, "{first}");
            let refusal: Value = serde_json::from_str(&responses[first].body).unwrap();
            assert_eq!((responses[first].status, &refusal["error"]), (429, &json!("too many wrong links; wait")));
            // The keys of pages share the limit.
            let key = json!({ "key": "wrong" });
            let asked = (0..1_000).find(|_| send_from(&controlled, "192.0.2.7", "/test/remaining", &key).status == 429);
            assert!(asked.is_some());

            // Other machines have attempts of their own. A link that exists needs none.
            assert_eq!(wrong("192.0.2.8").status, 404);
            assert_eq!(start_from(&controlled, "192.0.2.8", &tokens[0], KEY).status, 200);
            assert_eq!(start_from(&controlled, "192.0.2.7", &tokens[1], "another key of a page").status, 200);
            assert_eq!(wrong("127.0.0.1").status, 404);
        });
    }

    /// Returns the token of a new link to `http.url`.
    fn token_of_url(controlled: &Controlled) -> String {
        let link = controlled.json(&["test-link"]);
        link["urls"][0].as_str().unwrap().split_once('#').unwrap().1.to_owned()
    }

    fn start_from(controlled: &Controlled, source: &str, token: &str, key: &str) -> Response {
        send_from(controlled, source, "/test/start", &json!({ "token": token, "key": key }))
    }

    /// Sends a request from this address of the machine, to its loopback address of the same family.
    fn send_from(controlled: &Controlled, source: &str, path: &str, body: &Value) -> Response {
        let source = SocketAddr::new(source.parse().unwrap(), 0);
        let loopback: IpAddr = if source.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        let socket = Socket::new(Domain::for_address(source), Type::STREAM, None).unwrap();
        socket.bind(&source.into()).unwrap();
        socket.connect(&SocketAddr::new(loopback, http_address(controlled).port()).into()).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        Http::over(TcpStream::from(socket)).request("POST", path, "", body.to_string().as_bytes())
    }
}
