//! Starting: output, log, and the absence of secrets in both.

use serde_json::Value;

use turnserver::auth::{LongTermKey, Secret, time_limited};
use turnserver::clock::unix_seconds;
use turnserver::stun::attribute::{ErrorCodeAttribute, Nonce, Realm, Username};
use turnserver::stun::{Class, Message, Method, TransactionId};

use super::running::{Running, as_text, command, text_config, turnserver};
use crate::support::client::{Client, Login, allocate, message, receive, socket};
use crate::support::{Process, REALM, SECRET, Server, TIMEOUT, TempDir, config, config_without_secret, has_ipv6};

#[test]
fn a_server_with_a_secret_prints_nothing_on_standard_output_and_logs_that_it_is_ready() {
    let server = Server::start(&config(&["127.0.0.1"], ""));
    let ready = server.wait_for_log(|line| line.message() == "ready");
    assert_eq!(ready.level(), "INFO");
    assert!(ready.field("workers").is_some(), "{ready:?}");
    let ended = server.terminate();
    assert_eq!((ended.code, ended.stdout.as_slice()), (Some(0), &[][..]));
}

#[test]
fn a_server_with_a_static_user_prints_nothing_and_accepts_that_user() {
    let users = "[[auth.users]]\nname = \"alice\"\npassword = \"an old password\"\n";
    let server = Server::start(&config_without_secret(&["127.0.0.1"], users));
    assert!(Client::new(server.udp_address()).allocate(&Login::new("alice", "an old password")).is_ok());
    assert_eq!(Client::new(server.udp_address()).allocate(&Login::new("alice", "another")).map(drop), Err(401));
    assert_eq!(server.terminate().stdout, [""; 0]);
}

/// Makes this many allocations with a credential. Returns how many succeed.
fn allocations(server: &Server, login: &Login, count: usize) -> usize {
    let clients: Vec<Client> = (0..count).map(|_| Client::new(server.udp_address())).collect();
    clients.iter().filter(|client| client.allocate(login).is_ok()).count()
}

// One static user often stands for all visitors of a site.
#[test]
fn a_static_user_has_only_a_limit_of_its_own() {
    let users = "[[auth.users]]\nname = \"site\"\npassword = \"an old password\"\n\
                 [[auth.users]]\nname = \"ann\"\npassword = \"an old password\"\nallocations = 5\n";
    let server = Server::start(&config_without_secret(&["127.0.0.1"], users));
    assert_eq!(allocations(&server, &Login::new("site", "an old password"), 80), 80);
    assert_eq!(allocations(&server, &Login::new("ann", "an old password"), 8), 5);
    let reached = server.wait_for_log(|line| line.message().starts_with("allocation rejected"));
    assert_eq!(reached.field("limit").as_deref(), Some("auth.users.allocations"));
}

#[test]
fn limits_per_user_apply_to_usernames_that_name_somebody() {
    let server = Server::start(&config(&["127.0.0.1"], ""));
    let secret = Secret::new(SECRET).unwrap();
    let nameless = time_limited::mint(&secret, None, unix_seconds() + 600);
    assert_eq!(allocations(&server, &Login::new(&nameless.username, &nameless.password), 80), 80);
    assert_eq!(allocations(&server, &Login::mint("alice", 600), 40), 32);
    // The burst of allocations-per-second-per-user is 32, too.
    let rejected = server.wait_for_log(|line| line.field("user").as_deref() == Some("alice") && line.level() == "WARN");
    assert_eq!(rejected.field("limit").as_deref(), Some("limits.allocations-per-user"));
}

// A browser makes about eight allocations at the start of a call, and leaves them behind when it is closed.
#[test]
fn the_printed_credential_survives_a_day_of_tests() {
    let server = Server::start(&config_without_secret(&["127.0.0.1"], ""));
    let printed = server.printed_credential();
    assert_eq!(allocations(&server, &Login::new(&printed.username, &printed.password), 20 * 8), 20 * 8);
}

// Keys and ports come from the system's random generator, so one run reveals nothing about another.
#[test]
fn two_runs_share_neither_nonces_nor_relay_ports() {
    let users = "[[auth.users]]\nname = \"alice\"\npassword = \"an old password\"\n";
    let config = format!("workers = 1\n{}", config_without_secret(&["127.0.0.1"], users));
    let socket = socket("127.0.0.1:0".parse().unwrap());
    let (id, key) = (TransactionId::new([1; 12]), LongTermKey::derive("alice", REALM, b"an old password"));
    let mut nonces: Vec<String> = Vec::new();
    let ports = [(); 2].map(|()| {
        let server = Server::start(&config);
        let exchange = |request: &[u8]| {
            socket.send_to(request, server.udp_address()).unwrap();
            receive(&socket).0
        };
        let challenge = exchange(&allocate(id));
        let Nonce(nonce) = Message::parse(&challenge).unwrap().get().unwrap().unwrap();
        nonces.push(nonce.to_owned());
        let codes = nonces.iter().map(|nonce| {
            let response = exchange(&message(Class::Request, Method::REFRESH, id, &|writer| {
                writer.push(&Username("alice"));
                writer.push(&Realm(REALM));
                writer.push(&Nonce(nonce));
                writer.message_integrity(key.as_bytes());
            }));
            Message::parse(&response).unwrap().get::<ErrorCodeAttribute<'_>>().unwrap().unwrap().code.code()
        });
        // The nonce of this run is valid, but there is no allocation (437). The nonce of the previous run is stale
        // (438).
        assert_eq!(codes.collect::<Vec<_>>(), [438, 437][2 - nonces.len()..]);
        let login = Login::new("alice", "an old password");
        let clients = [(); 4].map(|()| Client::new(server.udp_address()));
        clients.map(|client| client.allocate(&login).unwrap().1.port())
    });
    assert_ne!(ports[0], ports[1]);
}

#[test]
fn without_a_secret_one_line_with_a_valid_credential_is_printed() {
    if !has_ipv6() {
        return;
    }
    let server = Server::start(&config_without_secret(&["127.0.0.1", "::1"], ""));
    let printed = server.printed_credential();
    let (v4, v6) = ("127.0.0.1".parse().unwrap(), "::1".parse().unwrap());
    let urls = [
        [v4, v6].map(|ip| format!("turn:{}?transport=udp", server.udp_address_on(ip))),
        [v4, v6].map(|ip| format!("turn:{}?transport=tcp", server.tcp_address_on(ip))),
    ]
    .concat();
    assert_eq!(
        printed.configuration,
        serde_json::json!({ "iceServers": [
            { "urls": urls, "username": printed.username, "credential": printed.password }
        ] })
    );
    let login = Login::new(&printed.username, &printed.password);
    for ip in [v4, v6] {
        let (_, relayed) = Client::new(server.udp_address_on(ip)).allocate(&login).unwrap();
        assert_eq!(relayed.ip(), ip);
    }
    assert_eq!(server.terminate().stdout.len(), 1);
}

#[test]
fn on_a_terminal_the_printed_entry_follows_its_explanation_and_is_separate_from_the_log() {
    let directory = TempDir::new();
    directory.write("turnserver.toml", &as_text(&config_without_secret(&["127.0.0.1"], "")));
    let server = Process::start_on_terminal(command(&directory, &[]));
    let ready = |lines: &[String]| lines.iter().any(|line| line.contains("ready")).then(|| lines.to_vec());
    let lines = server.stdout.wait_for(TIMEOUT, ready).unwrap_or_else(|| panic!("{}", server.output()));
    let entry = lines.iter().position(|line| line.starts_with("{\"iceServers\":")).unwrap();
    let start = lines.iter().position(|line| line.starts_with("No secret is configured")).unwrap();
    assert!(lines[start..entry].iter().all(|line| !line.contains("INFO") && !line.contains("WARN")), "{lines:#?}");
    assert_eq!([start - 1, entry - 1, entry + 1].map(|line| lines[line].as_str()), [""; 3], "{lines:#?}");
    assert!(lines[start..entry].join(" ").contains("RTCPeerConnection"), "{lines:#?}");
    assert!(lines[..start].iter().any(|line| line.contains("relay address")), "{lines:#?}");
    server.interrupt();
    assert_eq!(server.finish(TIMEOUT).code, Some(0));
}

#[test]
fn the_printed_url_has_the_configured_hostname() {
    let config = format!("hostname = \"turn.example.org\"\n{}", config_without_secret(&["127.0.0.1"], ""));
    let server = Server::start(&config);
    let urls = [
        format!("turn:turn.example.org:{}?transport=udp", server.udp_address().port()),
        format!("turn:turn.example.org:{}?transport=tcp", server.tcp_address().port()),
    ];
    assert_eq!(server.printed_credential().configuration["iceServers"][0]["urls"], serde_json::json!(urls));
}

#[test]
fn without_a_secret_the_log_explains_how_to_set_one_and_contains_no_secret() {
    let config = as_text(&config_without_secret(&["127.0.0.1"], ""));
    let server = Running::start(&config, &["--log-level", "trace"]);
    let printed = server.process.stdout.wait_for(TIMEOUT, |lines| lines.first().cloned()).unwrap();
    let printed: Value = serde_json::from_str(&printed).unwrap();
    let [username, password] = ["username", "credential"].map(|key| printed["iceServers"][0][key].as_str().unwrap());
    assert!(Client::new(server.address()).allocate(&Login::new(username, password)).is_ok());

    let stderr = server.terminate().stderr;
    let place = |part: &str| stderr.iter().position(|line| line.contains(part)).unwrap();
    // The explanation is logged before the server is ready, as the entry is printed.
    assert!(place("no secret is configured") < place(" ready "), "{stderr:?}");
    let hint = &stderr[place("no secret is configured")];
    for part in ["auth.secrets", "openssl rand -hex 32", "turn-credential"] {
        assert!(hint.contains(part), "{hint}");
    }
    for line in &stderr {
        assert!(!line.contains(password), "{line}");
        // A secret of 256 bits has 43 characters in base64.
        let mut words = line.split(|c: char| !c.is_ascii_alphanumeric() && !"-_".contains(c));
        assert!(words.all(|word| word.len() < 43), "{line}");
    }
}

#[test]
fn the_log_never_contains_a_configured_secret_or_password() {
    let users = "[[auth.users]]\nname = \"bob\"\npassword = \"builder-of-things\"\n";
    let server = Running::start(&text_config(&["127.0.0.1"], users), &["--log-level", "trace"]);
    let minted = Login::mint("alice", 600);
    for login in [&minted, &Login::new("bob", "builder-of-things"), &Login::new("bob", "wrong-guess")] {
        let _ = Client::new(server.address()).allocate(login);
    }
    for line in server.terminate().stderr {
        for word in [SECRET, &minted.password, "builder-of-things", "wrong-guess"] {
            assert!(!line.contains(word), "{line}");
        }
    }
}

#[test]
fn the_file_in_the_working_directory_is_found_and_logged() {
    let server = Running::start(&text_config(&["127.0.0.1"], ""), &[]);
    let first = server.wait_for_line(|line| line.contains(" starting "));
    assert!(first.contains("configuration=\"turnserver.toml\""), "{first}");
    assert!(first.contains(env!("CARGO_PKG_VERSION")), "{first}");
}

#[test]
fn help_and_version_are_printed_on_standard_output() {
    let directory = TempDir::new();
    let help = turnserver(&directory, &["--help"]);
    assert_eq!((help.code, help.stderr.as_slice()), (Some(0), &[][..]));
    let text = help.stdout.join("\n");
    for part in ["Usage: turnserver", "--config <FILE>", "--log-level <LEVEL>", "check-config", "turnserver.toml"] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    for arguments in [&["--help"][..], &["-h"], &["check-config", "--help"]] {
        for line in turnserver(&directory, arguments).stdout {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
    let version = turnserver(&directory, &["--version"]);
    assert_eq!((version.code, version.stdout), (Some(0), vec![format!("turnserver {}", env!("CARGO_PKG_VERSION"))]));
}
