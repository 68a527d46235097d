//! The signalling over real sockets: who gets what, and what is refused.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "support/mod.rs"]
mod support;

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use support::relay::{KEY, RelayProcess};
use support::{PATIENCE, Running, SECRET, file};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use turnserver::auth::{Secret, time_limited};
use turnserver::clock::unix_seconds;

#[tokio::test]
async fn participants_see_each_other_come_and_go_and_signals_reach_their_recipient_only() {
    let server = Running::start(&[]).await;
    let room = server.room().await;
    let (mut one, joined) = server.join(&room, "one").await;
    assert_eq!((&joined["mode"], &joined["peers"], &joined["sender"]), (&json!("mesh"), &json!([]), &Value::Null));
    assert_eq!(joined["limits"], json!({"mesh": 6, "room": 50}));
    let (mut two, joined_two) = server.join(&room, "two").await;
    let (mut three, _) = server.join(&room, "three").await;
    let (id_one, id_two) = (&joined["id"], &joined_two["id"]);
    assert_eq!(joined_two["peers"], json!([{"id": id_one, "name": "one", "kind": "browser"}]));
    assert_eq!(
        one.receive().await,
        json!({"type": "peer-joined", "peer": {"id": id_two, "name": "two", "kind": "browser"}})
    );
    assert_eq!(one.receive().await["peer"]["name"], "three");
    assert_eq!(two.receive().await["peer"]["name"], "three");

    let description = json!({"type": "offer", "sdp": "v=0\r\n"});
    two.send(json!({"type": "signal", "to": id_one, "description": description})).await;
    assert_eq!(one.receive().await, json!({"type": "signal", "from": id_two, "description": description}));
    two.send(json!({"type": "leave"})).await;
    for rest in [&mut one, &mut three] {
        assert_eq!(rest.receive().await, json!({"type": "peer-left", "id": id_two}), "and no signal before");
    }
    one.send(json!({"type": "signal", "to": id_two, "candidate": null})).await;
    assert_eq!(one.error().await, "no-such-peer");
}

#[tokio::test]
async fn credentials_are_those_of_the_participant_and_valid_for_the_lifetime() {
    let server = Running::start(&["--lifetime", "600"]).await;
    let (mut socket, joined) = server.join(&server.room().await, "a").await;
    let ice = &joined["ice"];
    let expires = ice["expires"].as_u64().unwrap();
    assert!((unix_seconds() + 590..=unix_seconds() + 600).contains(&expires));
    let entry = &ice["iceServers"][0];
    assert_eq!(entry["urls"], json!(["turn:127.0.0.1:3478?transport=udp"]));
    let (username, credential) = (entry["username"].as_str().unwrap(), entry["credential"].as_str().unwrap());
    let secret = Secret::new(SECRET).unwrap();
    let valid = time_limited::verify(&[secret], username, credential, unix_seconds()).unwrap();
    assert_eq!((valid.user, valid.expires), (joined["id"].as_str().unwrap(), expires));

    socket.send(json!({"type": "ice"})).await;
    let renewed = socket.receive().await;
    assert_eq!((&renewed["type"], &renewed["iceServers"][0]["urls"]), (&json!("ice"), &entry["urls"]));
}

#[tokio::test]
async fn urls_of_the_relay_can_be_given() {
    let urls = ["turn:a.example:1?transport=udp", "turns:b.example:2?transport=tcp"];
    let server = Running::start(&["--turn-url", urls[0], "--turn-url", urls[1]]).await;
    let (_socket, joined) = server.join(&server.room().await, "a").await;
    assert_eq!(joined["ice"]["iceServers"][0]["urls"], json!(urls));
}

#[tokio::test]
async fn credentials_are_fetched_from_the_endpoint_of_the_relay_and_kept() {
    let relay = RelayProcess::start();
    let (url, key) = (format!("http://{}/v1/ice-servers", relay.http), file("key", &format!("{KEY}\n")));
    let options = ["--credentials-url", &url, "--credentials-key-file", key.to_str().unwrap(), "--lifetime", "600"];
    let server = Running::start_with(&[&options[..], &["--user-prefix", "rooms:"]].concat()).await;
    let (mut socket, joined) = server.join(&server.room().await, "a").await;
    let entry = &joined["ice"]["iceServers"][0];
    assert_eq!(entry["urls"], json!([relay.url("udp"), relay.url("tcp")]));
    let expires = joined["ice"]["expires"].as_u64().unwrap();
    let expected = format!("{expires}:rooms:{}", joined["id"].as_str().unwrap());
    assert_eq!(entry["username"], expected);
    assert!((unix_seconds() + 580..=unix_seconds() + 600).contains(&expires));
    // A page that asks again and again does not disturb the relay.
    drop(relay);
    socket.send(json!({"type": "ice"})).await;
    assert_eq!(socket.receive().await["iceServers"][0], *entry);

    let other = server.room().await;
    let mut refused = server.socket().await;
    refused.send(json!({"type": "join", "room": other, "name": "b", "kind": "browser"})).await;
    assert_eq!(refused.error().await, "relay");
}

#[tokio::test]
async fn everyone_learns_the_mode_and_who_sends_a_broadcast() {
    let server = Running::start(&[]).await;
    let room = server.room().await;
    let (mut one, joined) = server.join(&room, "one").await;
    let (mut two, _) = server.join(&room, "two").await;
    one.receive().await;
    for (mode, sender) in [("sfu", &Value::Null), ("broadcast", &joined["id"]), ("mesh", &Value::Null)] {
        one.send(json!({"type": "mode", "mode": mode})).await;
        let expected = json!({"type": "mode", "mode": mode, "by": joined["id"], "sender": sender});
        assert_eq!((one.receive().await, two.receive().await), (expected.clone(), expected));
    }
}

#[tokio::test]
async fn the_seventh_of_a_mesh_gets_the_advice_to_switch() {
    let server = Running::start(&[]).await;
    let room = server.room().await;
    let mut inside = Vec::new();
    for _ in 0..6 {
        inside.push(server.join(&room, "a").await);
    }
    let mut seventh = server.socket().await;
    let join = json!({"type": "join", "room": room, "name": "g", "kind": "browser"});
    seventh.send(join.clone()).await;
    assert_eq!(seventh.error().await, "mesh-full");
    assert_eq!(seventh.closed().await, "not in a room");
    inside[0].0.send(json!({"type": "mode", "mode": "sfu"})).await;
    while inside[0].0.receive().await["type"] != "mode" {}
    server.join(&room, "g").await;
}

#[tokio::test]
async fn a_refusal_says_why() {
    let server = Running::start(&[]).await;
    let room = server.room().await;
    let absent = "AAAAAAAAAAAAAAAAAAAAAA";
    for (room, name, code) in [(absent, "a", "no-such-room"), (&room, "\u{202e}", "bad-name"), (&room, " ", "bad-name")]
    {
        let mut socket = server.socket().await;
        socket.send(json!({"type": "join", "room": room, "name": name, "kind": "browser"})).await;
        assert_eq!(socket.error().await, code);
        socket.closed().await;
    }
}

#[tokio::test]
async fn after_three_messages_of_a_wrong_form_the_connection_is_closed() {
    let server = Running::start(&[]).await;
    let room = server.room().await;
    let (mut socket, _) = server.join(&room, "a").await;
    socket.send_frame(Message::text("not JSON")).await;
    assert_eq!(socket.error().await, "bad-message");
    socket.send(json!({"type": "join", "room": room, "name": "a", "kind": "browser"})).await;
    assert_eq!(socket.error().await, "bad-order");
    socket.send_frame(Message::binary(vec![0; 10])).await;
    assert_eq!(socket.error().await, "bad-message");
    assert_eq!(socket.closed().await, "too many messages of a wrong form");
}

#[tokio::test]
async fn the_first_message_must_be_join() {
    let server = Running::start(&[]).await;
    let mut socket = server.socket().await;
    socket.send(json!({"type": "ice"})).await;
    assert_eq!(socket.error().await, "bad-order");
}

#[tokio::test]
async fn a_message_that_is_too_long_ends_the_connection_of_its_sender_only() {
    let server = Running::start(&[]).await;
    let room = server.room().await;
    let (mut long, _) = server.join(&room, "long").await;
    let (mut other, joined_other) = server.join(&room, "other").await;
    let offer = |length: usize| {
        let sdp = "x".repeat(length);
        json!({"type": "signal", "to": joined_other["id"], "description": {"type": "offer", "sdp": sdp}})
    };
    long.send(offer(60_000)).await;
    assert_eq!(other.receive().await["type"], "signal");
    long.send(offer(262_144)).await;
    while let Some(Ok(_)) = timeout(PATIENCE, long.0.next()).await.unwrap() {}
    other.send(json!({"type": "ice"})).await;
    assert_eq!(other.receive().await["type"], "ice");
}

#[tokio::test]
async fn a_participant_whose_connection_is_lost_comes_back_as_itself() {
    let server = Running::start(&[]).await;
    let room = server.room().await;
    let (mut lost, joined) = server.join(&room, "lost").await;
    let (mut other, joined_other) = server.join(&room, "other").await;
    lost.receive().await;
    assert_eq!(joined["resumed"], false);
    let again = json!({
        "type": "join", "room": room, "name": "lost", "kind": "browser", "resume": joined["resume"],
    });

    // Its network has changed: the server does not know yet that the connection is dead.
    let (mut resumed, message) = server.join_with(again.clone()).await;
    assert_eq!((&message["id"], &message["resumed"]), (&joined["id"], &json!(true)));
    assert_eq!(message["peers"], json!([{"id": joined_other["id"], "name": "other", "kind": "browser"}]));
    assert_eq!(other.receive().await, json!({"type": "peer-resumed", "id": joined["id"]}));
    assert!(lost.closed().await.ends_with("or another connection came"));

    // The server knows that the connection is dead.
    drop(resumed);
    resumed = server.join_with(again).await.0;
    assert_eq!(other.receive().await, json!({"type": "peer-resumed", "id": joined["id"]}));
    resumed.send(json!({"type": "signal", "to": joined_other["id"], "candidate": null})).await;
    assert_eq!(other.receive().await["from"], joined["id"]);
    other.send(json!({"type": "signal", "to": joined["id"], "candidate": null})).await;
    assert_eq!(resumed.receive().await["from"], joined_other["id"]);

    // After it has left, the key is worth nothing.
    resumed.send(json!({"type": "leave"})).await;
    assert_eq!(other.receive().await["type"], "peer-left");
    let late = json!({"type": "join", "room": room, "name": "l", "kind": "browser", "resume": joined["resume"]});
    let (_late, message) = server.join_with(late).await;
    assert_eq!(message["resumed"], false);
    assert_ne!(message["id"], joined["id"]);
}

#[tokio::test]
async fn a_source_enters_a_hundred_times_at_once_and_then_has_to_wait() {
    let server = Running::start(&[]).await;
    let room = server.room().await;
    for number in 0..101 {
        let mut socket = server.socket().await;
        socket.send(json!({"type": "join", "room": room, "name": " ", "kind": "browser"})).await;
        assert_eq!(socket.error().await, if number < 100 { "bad-name" } else { "too-fast" }, "{number}");
    }
}

#[tokio::test]
async fn a_client_of_a_proxy_has_four_hundred_connections_and_leaves_the_others() {
    let server = Running::start(&["--proxy", "127.0.0.1"]).await;
    let origin = format!("http://{}", server.address);
    let open = async |client| server.open_with(&origin, &[("x-forwarded-for", client)]).await;
    let mut sockets = Vec::new();
    for _ in 0..400 {
        sockets.push(open("198.51.100.1").await.unwrap());
    }
    assert!(open("198.51.100.1").await.err().unwrap().to_string().contains("503"));
    open("198.51.100.2").await.unwrap();
}

#[tokio::test]
async fn the_word_of_a_proxy_on_its_clients_is_believed_and_no_other() {
    let server = Running::start(&["--proxy", "127.0.0.0/8", "--proxy", "192.0.2.1"]).await;
    let make = async |forwarded: &str| {
        let header = format!("X-Forwarded-For: {forwarded}\r\n");
        server.request_with("POST /api/rooms", &header).await.starts_with("HTTP/1.1 201")
    };
    for number in 0..10 {
        // What the client wrote itself changes nothing.
        assert!(make(&format!("203.0.113.{number}, 198.51.100.1, 192.0.2.1")).await);
    }
    assert!(!make("198.51.100.1").await);
    assert!(make("198.51.100.2:443").await, "with a port");

    let server = Running::start(&[]).await;
    for number in 0..10 {
        let header = format!("X-Forwarded-For: 203.0.113.{number}\r\n");
        server.request_with("POST /api/rooms", &header).await;
    }
    let response = server.request_with("POST /api/rooms", "X-Forwarded-For: 203.0.113.99\r\n").await;
    assert!(response.starts_with("HTTP/1.1 429"), "{response}");
}

#[tokio::test]
async fn messages_above_the_rate_are_delayed_and_none_is_lost() {
    let server = Running::start(&[]).await;
    let room = server.room().await;
    let (mut fast, _) = server.join(&room, "fast").await;
    let (mut other, joined) = server.join(&room, "other").await;
    let begin = tokio::time::Instant::now();
    for number in 0..80 {
        let candidate = json!({"candidate": number.to_string(), "sdpMid": "0"});
        fast.send(json!({"type": "signal", "to": joined["id"], "candidate": candidate})).await;
    }
    for number in 0..80 {
        assert_eq!(other.receive().await["candidate"]["candidate"], number.to_string());
    }
    // `join` is the first of 50 at once; 31 more take 50 ms each.
    assert!(begin.elapsed().as_millis() >= 1_400, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn other_origins_may_not_use_the_signalling() {
    let server = Running::start(&[]).await;
    for origin in ["http://example.org", "null", &format!("ftp://{}", server.address), "http://"] {
        let error = server.open(origin).await.err().unwrap();
        assert!(error.to_string().contains("403"), "{origin}: {error}");
    }
    assert!(server.request("GET /ws").await.starts_with("HTTP/1.1 400"), "no upgrade");
}

#[tokio::test]
async fn pages_have_their_type_and_a_strict_policy() {
    let server = Running::start(&[]).await;
    let room = server.room().await;
    for path in ["/".to_owned(), format!("/room/{room}")] {
        let response = server.request(&format!("GET {path}")).await.to_lowercase();
        assert!(response.starts_with("http/1.1 200"), "{response}");
        for header in [
            "content-type: text/html; charset=utf-8",
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; ",
            "permissions-policy: camera=(self)",
            "referrer-policy: no-referrer",
            "x-content-type-options: nosniff",
        ] {
            assert!(response.contains(header), "{header}: {response}");
        }
    }
    assert!(server.request("GET /api/health").await.ends_with("ok\n"));
    for path in ["/room/short", "/static/absent.js", "/static/../Cargo.toml", "/static/%2e%2e/index.html", "/absent"] {
        assert!(server.request(&format!("GET {path}")).await.starts_with("HTTP/1.1 404"), "{path}");
    }
}

#[tokio::test]
async fn a_source_makes_ten_rooms_at_once_and_then_has_to_wait() {
    let server = Running::start(&[]).await;
    for _ in 0..10 {
        server.room().await;
    }
    let response = server.request("POST /api/rooms").await.to_lowercase();
    assert!(response.starts_with("http/1.1 429") && response.contains("\r\nretry-after: "), "{response}");
}

#[tokio::test]
async fn the_server_says_goodbye_and_stops() {
    let server = Running::start(&[]).await;
    let (mut socket, _) = server.join(&server.room().await, "a").await;
    let stopped = tokio::spawn(server.stop());
    let closing = socket.receive().await;
    assert_eq!(closing["type"], "closing");
    socket.closed().await;
    drop(socket);
    timeout(PATIENCE, stopped).await.unwrap().unwrap();
}

#[tokio::test]
async fn with_tls_the_server_has_the_certificate_whose_fingerprint_it_prints() {
    let server = Running::start(&["--tls", "on"]).await;
    let (host, port) = ("localhost", server.address.port());
    let trust = |fingerprint| Some(rooms::connect::Trust::Fingerprint(fingerprint));
    let fingerprint = server.fingerprint.unwrap();
    assert!(rooms::connect::connect(host, port, trust([7; 32])).await.is_err());
    let mut stream = rooms::connect::connect(host, port, trust(fingerprint)).await.unwrap();
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    stream.write_all(b"GET /api/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert!(response.ends_with("ok\n"), "{response}");
}
