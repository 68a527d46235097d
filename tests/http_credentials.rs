//! Tests of the real server: credentials over HTTP for applications with a key.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "http/client.rs"]
mod client;
#[cfg(test)]
mod support;

#[cfg(test)]
mod credentials {
    use std::net::SocketAddr;
    use std::process::Command;

    use nix::sys::signal::Signal;
    use serde_json::{Value, json};
    use turnserver::auth::KeyHash;
    use turnserver::clock::unix_seconds;

    use crate::client::{Http, Response};
    use crate::support::certificates::Authority;
    use crate::support::client::{Client, Login};
    use crate::support::network::{in_own_network, ip};
    use crate::support::{Controlled, LogLine, Server, TIMEOUT, TempDir, config, config_without_secret, run, with_tls};

    const KEY: &str = "turn_a-key-for-tests";
    const HTTP: &str = "[http]\nlisten = [\"127.0.0.1:0\"]\n";
    const PAGE: &str = "https://app.example.org";

    /// Returns the block of a key.
    fn key(name: &str, key: &str, more: &str) -> String {
        let hash = KeyHash::of(key.as_bytes()).to_hex();
        format!("[[http.keys]]\nname = {name:?}\nsha256 = {hash:?}\n{more}\n")
    }

    /// Starts a server with one key, `app`.
    fn start(more: &str) -> Server {
        Server::start(&config(&["127.0.0.1"], &format!("{HTTP}{}", key("app", KEY, more))))
    }

    fn http_address(server: &Server) -> SocketAddr {
        server.wait_for_log(|line| line.message() == "HTTP listening").field("address").unwrap().parse().unwrap()
    }

    fn send(server: &Server, method: &str, path: &str, headers: &str, body: &str) -> Response {
        Http::tcp(http_address(server)).request(method, path, headers, body.as_bytes())
    }

    fn bearer(key: &str) -> String {
        format!("Authorization: Bearer {key}\r\n")
    }

    fn post(server: &Server, body: &str) -> Response {
        send(server, "POST", "/v1/ice-servers", &bearer(KEY), body)
    }

    fn json(response: &Response) -> Value {
        serde_json::from_str(&response.body).unwrap_or_else(|error| panic!("{error} in {response:?}"))
    }

    #[track_caller]
    fn assert_refused(response: &Response, status: u16, reason: &str) {
        assert_eq!(response.status, status, "{response:?}");
        let error = json(response)["error"].as_str().unwrap().to_owned();
        assert!(error.contains(reason), "{error}");
    }

    fn text(value: &Value) -> String {
        value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
    }

    fn login(server: &Value) -> Login {
        Login::new(&text(&server["username"]), &text(&server["credential"]))
    }

    /// Allocates with a credential, and deletes the allocation.
    fn allocate(server: &Server, login: &Login) {
        let client = Client::new(server.udp_address());
        let (session, _) = client.allocate(login).unwrap();
        client.delete(&session);
    }

    fn expected_urls(server: &Server) -> Value {
        json!([
            format!("turn:{}?transport=udp", server.udp_address()),
            format!("turn:{}?transport=tcp", server.tcp_address())
        ])
    }

    #[test]
    fn a_credential_for_a_user_makes_an_allocation() {
        let server = start("");
        let before = unix_seconds();
        let response = post(&server, r#"{"ttl": 3600, "user": "alice"}"#);
        assert_eq!((response.status, response.header("content-type")), (201, Some("application/json")));
        assert_eq!(response.header("cache-control"), Some("no-store"));
        let configuration = json(&response);
        let entry = &configuration["iceServers"][0];
        assert_eq!(configuration["iceServers"].as_array().unwrap().len(), 1);
        assert_eq!(entry["urls"], expected_urls(&server));
        let username = text(&entry["username"]);
        let (expires, user) = username.split_once(':').unwrap();
        assert_eq!(user, "alice");
        assert!((before + 3_600..=unix_seconds() + 3_600).contains(&expires.parse().unwrap()), "{username}");
        allocate(&server, &login(entry));
        server.wait_for_log(|line| {
            line.message() == "allocation created" && line.field("user").as_deref() == Some("alice")
        });
    }

    // draft-uberti-behave-turn-rest-00 §2.2 recommends one day.
    #[test]
    fn without_a_body_a_credential_has_no_name_and_lasts_a_day_or_as_long_as_the_key_allows() {
        let lifetime = |more| {
            let server = start(more);
            let before = unix_seconds();
            let entry = json(&post(&server, ""))["iceServers"][0].clone();
            allocate(&server, &login(&entry));
            text(&entry["username"]).parse::<u64>().unwrap() - before
        };
        assert!((86_400..86_460).contains(&lifetime("")));
        assert!((600..660).contains(&lifetime("ttl = \"10m\"")));
    }

    #[test]
    fn clients_of_cloudflare_work_with_the_name_and_the_key() {
        let server = start("");
        let path = "/v1/turn/keys/app/credentials";
        let body = r#"{"ttl": 864000, "customIdentifier": "user4523958"}"#;
        let stun = format!("stun:{}", server.udp_address());
        let list = send(&server, "POST", &format!("{path}/generate-ice-servers"), &bearer(KEY), body);
        assert_eq!(list.status, 201, "{list:?}");
        let servers = json(&list)["iceServers"].clone();
        assert_eq!((&servers[0], &servers[1]["urls"]), (&json!({ "urls": [stun] }), &expected_urls(&server)));
        assert!(text(&servers[1]["username"]).ends_with(":user4523958"));
        allocate(&server, &login(&servers[1]));
        let one = send(&server, "POST", &format!("{path}/generate"), &bearer(KEY), r#"{"ttl": 60}"#);
        assert_eq!(one.status, 201, "{one:?}");
        let entry = json(&one)["iceServers"].clone();
        assert_eq!((&entry["urls"][0], &entry["urls"][1]), (&json!(stun), &expected_urls(&server)[0]));
        allocate(&server, &login(&entry));
        let other = path.replace("app", "other") + "/generate";
        assert_refused(&send(&server, "POST", &other, &bearer(KEY), ""), 401, "the key is not valid for this path");
    }

    // draft-uberti-behave-turn-rest-00 §2
    #[test]
    fn the_turn_rest_api_serves_get_and_post() {
        let server = start("");
        let get = send(&server, "GET", &format!("/turn?service=turn&username=12334939&key={KEY}"), "", "");
        let form = format!("service=turn&api={KEY}&username=12334939");
        for response in [get, send(&server, "POST", "/turn", "", &form)] {
            assert_eq!(response.status, 200, "{response:?}");
            let body = json(&response);
            assert_eq!((&body["ttl"], &body["uris"]), (&json!(86_400), &expected_urls(&server)));
            assert!(text(&body["username"]).ends_with(":12334939"));
            allocate(&server, &Login::new(&text(&body["username"]), &text(&body["password"])));
        }
        let stun = send(&server, "GET", &format!("/turn?service=stun&key={KEY}"), "", "");
        assert_refused(&stun, 400, "`service` must be `turn`");
        let broken = |key: &str| send(&server, "GET", &format!("/turn?username=%ff&key={key}"), "", "");
        assert_refused(&broken(KEY), 400, "not UTF-8");
        assert_refused(&broken("turn_wrong"), 401, "the key is not valid");
        assert_refused(&send(&server, "GET", "/turn?service=turn", "", ""), 401, "there is no key");
    }

    #[test]
    fn refusals_say_why_and_the_log_has_no_key() {
        let server = start("ttl = \"1h\"\nuser-prefix = \"shop:\"");
        let refused = |key: &str, body: &str| send(&server, "POST", "/v1/ice-servers", &bearer(key), body);
        let unknown = refused("turn_a-wrong-key", "");
        assert_refused(&unknown, 401, "the key is not valid");
        assert_eq!(unknown.header("www-authenticate"), Some("Bearer"));
        assert_refused(&send(&server, "POST", "/v1/ice-servers", "", ""), 401, "Authorization: Bearer");
        assert_refused(&refused(KEY, "ttl=5"), 400, "JSON object");
        assert_refused(&refused(KEY, r#"{"ttl": 3601, "user": "shop:a"}"#), 400, "between 1 and 3600");
        assert_refused(&refused(KEY, r#"{"ttl": 0, "user": "shop:a"}"#), 400, "between 1 and 3600");
        assert_refused(&refused(KEY, r#"{"user": "ann"}"#), 403, "begins with \"shop:\"");
        assert_refused(&refused(KEY, ""), 403, "begins with \"shop:\"");
        let long = format!(r#"{{"user": "shop:{}"}}"#, "x".repeat(500));
        assert_refused(&refused(KEY, &long), 400, "the maximum is 508");
        assert_refused(&send(&server, "GET", "/v1/ice-servers", &bearer(KEY), ""), 405, "use POST");
        assert_eq!(refused(KEY, r#"{"user": "shop:ann"}"#).status, 201);
        let page = send(&server, "GET", "/metrics", "", "").body;
        for (outcome, count) in [("issued", 1), ("unknown-key", 2), ("bad-request", 4), ("user-denied", 2)] {
            let sample = format!("turnserver_credential_requests_total{{outcome=\"{outcome}\"}} {count}\n");
            assert!(page.contains(&sample), "{sample} is not in {page}");
        }
        let logs = server.terminate().logs;
        let of_event = |line: &&_| LogLine::field(line, "event").as_deref() == Some("credential-refused");
        let refusals: Vec<_> = logs.iter().filter(of_event).collect();
        assert_eq!(refusals.len(), 5, "eight refusals within a minute");
        assert_eq!(refusals[2].field("key").as_deref(), Some("app"));
        assert!(!format!("{logs:?}").contains("a-wrong-key") && !format!("{logs:?}").contains(KEY));
    }

    fn sorted(urls: &Value) -> Vec<String> {
        let mut urls: Vec<String> = serde_json::from_value(urls.clone()).unwrap();
        urls.sort_unstable();
        urls
    }

    #[test]
    fn whoever_has_a_key_learns_whether_the_relay_drains() {
        let server = Controlled::start(&format!("{HTTP}{}", key("app", KEY, &format!("origins = [{PAGE:?}]"))));
        let get = |headers: &str| send(&server.server, "GET", "/v1/ice-servers/draining", headers, "");
        let urls = || {
            let response = get(&bearer(KEY));
            assert_eq!((response.status, response.header("cache-control")), (200, Some("no-store")), "{response:?}");
            sorted(&json(&response)["urls"])
        };
        assert_eq!(urls(), [""; 0]);
        // A server that drains ends with its last session.
        let _session = server.allocate("ann");
        server.lines(&["drain"]);
        assert_eq!(urls(), sorted(&expected_urls(&server.server)));
        server.lines(&["resume"]);
        assert_eq!(urls(), [""; 0]);

        assert_refused(&get(""), 401, "there is no key");
        assert_refused(&get(&bearer("turn_wrong")), 401, "the key is not valid");
        assert_refused(&get(&format!("Origin: https://evil.example\r\n{}", bearer(KEY))), 403, "`origins`");
        let page = get(&format!("Origin: {PAGE}\r\n{}", bearer(KEY)));
        assert_eq!((page.status, page.header("access-control-allow-origin")), (200, Some(PAGE)));
        let page = send(&server.server, "GET", "/metrics", "", "").body;
        let counted = page.lines().find(|line| line.contains("outcome=\"draining\""));
        assert_eq!(counted, Some("turnserver_credential_requests_total{outcome=\"draining\"} 4"));
        let post = send(&server.server, "POST", "/v1/ice-servers/draining", &bearer(KEY), "");
        assert_refused(&post, 405, "use GET");
    }

    #[test]
    fn only_pages_of_configured_origins_may_use_a_key() {
        let more = format!("origins = [{PAGE:?}]");
        let with_pages = format!("{HTTP}{}{}", key("app", KEY, &more), key("backend", "turn_other", ""));
        let server = Server::start(&config(&["127.0.0.1"], &with_pages));
        let from = |method: &str, origin: &str, key: &str| {
            let headers = format!("Origin: {origin}\r\n{}", bearer(key));
            send(&server, method, "/v1/ice-servers", &headers, "")
        };
        let allowed = |response: &Response| response.header("access-control-allow-origin").map(str::to_owned);
        let preflight = from("OPTIONS", PAGE, "");
        assert_eq!((preflight.status, allowed(&preflight).as_deref()), (204, Some(PAGE)));
        assert_eq!(preflight.header("access-control-allow-headers"), Some("authorization, content-type"));
        assert!(preflight.header("access-control-allow-methods").unwrap().contains("POST"));
        assert_eq!(preflight.header("vary"), Some("Origin"));
        let credential = from("POST", PAGE, KEY);
        assert_eq!((credential.status, allowed(&credential).as_deref()), (201, Some(PAGE)));
        // The page can read why a request fails.
        let unknown = from("POST", PAGE, "turn_wrong");
        assert_eq!((unknown.status, allowed(&unknown).as_deref()), (401, Some(PAGE)));
        for (method, origin, key) in [
            ("OPTIONS", "https://evil.example", ""),
            ("POST", "https://evil.example", KEY),
            ("POST", "null", KEY),
            ("POST", PAGE, "turn_other"),
        ] {
            let denied = from(method, origin, key);
            assert_refused(&denied, 403, if key.is_empty() { "not allowed" } else { "`origins`" });
            assert_eq!(allowed(&denied).is_some(), origin == PAGE, "{denied:?}");
        }
        // So can it for errors of the HTTP server itself.
        let headers = format!("Origin: {PAGE}\r\n{}", bearer(KEY));
        let long = send(&server, "POST", "/v1/ice-servers", &headers, &"x".repeat(100_000));
        assert_eq!((long.status, allowed(&long).as_deref()), (413, Some(PAGE)));
        let method = from("PUT", PAGE, KEY);
        assert_eq!((method.status, allowed(&method).as_deref()), (405, Some(PAGE)));
        assert_eq!(post(&server, "").status, 201);
    }

    #[test]
    fn a_key_has_a_rate_limit_of_its_own() {
        let keys = format!("{HTTP}{}{}", key("app", KEY, "requests-per-second = 1"), key("other", "turn_other", ""));
        let server = Server::start(&config(&["127.0.0.1"], &keys));
        // More than the burst and what a slow run adds to it.
        let limited = (0..1_000).map(|_| post(&server, "")).find(|response| response.status != 201).unwrap();
        assert_refused(&limited, 429, "requests-per-second");
        assert_eq!(limited.header("retry-after"), Some("1"));
        assert_eq!(send(&server, "POST", "/v1/ice-servers", &bearer("turn_other"), "").status, 201);
    }

    #[test]
    fn a_source_without_a_valid_key_has_to_wait() {
        in_own_network(&["link set lo up", "addr add 192.0.2.7/24 dev lo"], || {
            let http = "[http]\nlisten = [\"0.0.0.0:9641\"]\n";
            let server = Server::start(&config(&["127.0.0.1"], &format!("{http}{}", key("app", KEY, ""))));
            let send = |host: &str, key: &str| {
                let address = SocketAddr::new(host.parse().unwrap(), http_address(&server).port());
                Http::tcp(address).request("POST", "/v1/ice-servers", &bearer(key), b"")
            };
            let limited = (0..1_000).map(|_| send("192.0.2.7", "turn_wrong")).find(|response| response.status != 401);
            assert_refused(&limited.unwrap(), 429, "too many requests of this source");
            // A proxy on another host has clients with and without a key.
            assert_eq!(send("192.0.2.7", KEY).status, 201);
            let broken = Http::tcp(SocketAddr::new("192.0.2.7".parse().unwrap(), http_address(&server).port()));
            assert_refused(&broken.get("/turn?username=%ff"), 429, "too many requests of this source");
            // A proxy on this machine serves many clients.
            assert_eq!(send("127.0.0.1", KEY).status, 201);
            assert!((0..40).all(|_| send("127.0.0.1", "turn_wrong").status == 401));
        });
    }

    #[test]
    fn without_a_key_there_are_no_credentials_and_without_a_secret_neither() {
        let none = Server::start(&config(&["127.0.0.1"], HTTP));
        assert_refused(&post(&none, ""), 404, "there is no such resource");
        let line = none.wait_for_log(|line| line.field("event").as_deref() == Some("credential-refused"));
        assert!(line.field("reason").unwrap().contains("`turn-credential key` makes one"), "{line:?}");
        let users = "[auth]\nusers = [{ name = \"ann\", password = \"north wind north\" }]\n";
        let fixed = config_without_secret(&["127.0.0.1"], &format!("{users}{HTTP}{}", key("app", KEY, "")));
        assert_refused(&post(&Server::start(&fixed), ""), 503, "auth.secrets");
        // The secret of a trial.
        let trial = Server::start(&config_without_secret(&["127.0.0.1"], &format!("{HTTP}{}", key("app", KEY, ""))));
        allocate(&trial, &login(&json(&post(&trial, ""))["iceServers"][0]));
    }

    #[test]
    fn the_control_socket_serves_no_credentials_and_a_warning_says_so() {
        let directory = TempDir::new();
        let socket = directory.path().join("s");
        let control = format!("[control]\nsocket = {socket:?}\n{}", key("app", KEY, ""));
        let server = Server::start(&config(&["127.0.0.1"], &control));
        let response = Http::unix(&socket).request("POST", "/v1/ice-servers", &bearer(KEY), b"");
        assert_refused(&response, 404, "there is no such resource");
        server.wait_for_log(|line| line.message().contains("the control socket does not serve credentials"));
    }

    #[test]
    fn the_urls_have_the_name_of_the_certificate() {
        let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
        let files = authority.write(&authority.issue(&["turn.example.org"]), directory.path());
        let more = format!("{HTTP}{}", key("app", KEY, ""));
        let server = Server::start(&with_tls(&config(&["127.0.0.1"], &more), &["127.0.0.1"], &files));
        let turns = |name: &str| json!(format!("turns:{name}:{}?transport=tcp", server.tls_address().port()));
        let last_url = || json(&post(&server, ""))["iceServers"][0]["urls"][2].clone();
        assert_eq!(last_url(), turns("turn.example.org"));
        let serial = |line: &LogLine| line.field("serial");
        let first = serial(&server.wait_for_log(|line| serial(line).is_some()));
        authority.write(&authority.issue(&["new.example.org"]), directory.path());
        server.wait_for_log(|line| serial(line).is_some_and(|other| Some(other) != first));
        assert_eq!(last_url(), turns("new.example.org"));
    }

    #[test]
    fn the_urls_follow_the_addresses_of_the_machine() {
        in_own_network(&["link set lo up"], || {
            let more = format!("{HTTP}{}", key("app", KEY, ""));
            let (_, rest) =
                config(&["127.0.0.1"], &more).split_once("[relay]").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
            let listen = "realm = \"test.example\"\n[listen]\nudp = [\"0.0.0.0:3478\"]\ntcp = []\n[relay]";
            let config = format!("{listen}{}", rest.replace("[\"127.0.0.1\"]", "[\"192.0.2.7\"]"));
            let server = Server::start(&config);
            assert_refused(&post(&server, ""), 503, "no address");
            ip("addr add 192.0.2.7/24 dev lo");
            server.wait_for_log(|line| line.field("event").as_deref() == Some("relay-address"));
            let entry = json(&post(&server, ""))["iceServers"][0].clone();
            assert_eq!(entry["urls"], json!(["turn:192.0.2.7:3478?transport=udp"]));
        });
    }

    #[test]
    fn the_file_of_keys_is_read_again_at_a_reload() {
        let directory = TempDir::new();
        let file = directory.write("keys", &key("app", KEY, ""));
        let server = Server::start(&config(&["127.0.0.1"], &format!("{HTTP}keys-file = {file:?}\n")));
        let status = |key: &str| send(&server, "POST", "/v1/ice-servers", &bearer(key), "").status;
        let reload = |keys: &str, event: &str| {
            directory.write("keys", keys);
            server.signal(Signal::SIGHUP);
            server.wait_for_log(|line| line.field("event").as_deref() == Some(event))
        };
        assert_eq!((status(KEY), status("turn_other")), (201, 401));
        // Nothing changes if the file is invalid.
        let refused = reload("[[http.keys]]\nname = \"app\"\n", "reload-refused");
        let expected = format!("{}:1:1: a key has no `sha256`", file.display());
        assert!(refused.field("error").unwrap().contains(&expected), "{refused:?}");
        assert_eq!(status(KEY), 201);
        reload(&key("other", "turn_other", ""), "reload-done");
        let changed = |line: &LogLine| line.field("key").as_deref() == Some("http.keys.name");
        let line = server.wait_for_log(changed);
        assert_eq!((line.field("from").as_deref(), line.field("to").as_deref()), (Some("app"), Some("other")));
        assert_eq!((status(KEY), status("turn_other")), (401, 201));
    }

    #[test]
    fn the_key_that_turn_credential_makes_is_valid_with_the_block_that_it_prints() {
        let made =
            run(Command::new(env!("CARGO_BIN_EXE_turn-credential")).args(["key", "--name", "shop"]), None, TIMEOUT);
        let (key, block) = (made.stdout[1].clone(), made.stdout[3..].join("\n"));
        assert!(key.starts_with("turn_") && key.len() == 48, "{made:?}");
        assert!(!block.contains(&key));
        let server = Server::start(&config(&["127.0.0.1"], &format!("{HTTP}{block}\n")));
        assert_eq!(send(&server, "POST", "/v1/ice-servers", &bearer(&key), "").status, 201);
    }
}
