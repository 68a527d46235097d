//! The body of the fuzz target `http`: the responses to requests, after hyper has parsed them.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a broken invariant has to panic, and a panic here is a finding, too"
)]

use std::sync::Arc;

use http_body_util::BodyExt as _;
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::{Request, StatusCode};
use serde_json::Value;
use tokio::sync::watch;

use super::{Access, Api, Inputs, Published, Reload, draining};
use crate::auth::{KeyHash, Secret};
use crate::clock::Clock;
use crate::config::{Config, HttpKey, LogLevel, Offload as OffloadConfig, OffloadMode};
use crate::control::offload::Offload;
use crate::control::{acme, commands};
use crate::http::{Client, Handler as _, PeerCredentials, limits};
use crate::privacy::{ClientAddresses, Privacy, Usernames};
use crate::test_world::Blueprint;
use crate::worker::{ConnectionLimits, Snapshot, Timeouts};

/// The API key of the application `app`, and the token for metrics.
const KEY: &str = "an-api-key-of-some-length";
const TOKEN: &str = "a-token-of-some-length";
const SECRET: &str = "the-secret-of-this-server";

/// In a request, it stands for the token of the last test link.
const LINK: &str = "{link}";

/// Passes requests, separated by zero bytes, to the handlers. The first byte of each says who sends it: 1 a process on
/// the control socket, 2 a client on this machine, 4 one that may read metrics, else a client on the network. Then come the method and the path, a
/// line for each header field, a blank line, and the body.
pub fn http(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime without I/O");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (api, published) = api();
        let mut link = String::new();
        for request in data.split(|byte| *byte == 0).take(8) {
            respond(&api, request, &mut link).await;
        }
        drop(published);
    });
}

fn api() -> (Api, watch::Sender<Published>) {
    let config =
        Config { offload: OffloadConfig { mode: OffloadMode::Off, ..OffloadConfig::default() }, ..Config::default() };
    let (offload, _) = Offload::start(&config, 0).expect("it is off");
    let blueprint = Blueprint::new("example.org", ("192.0.2.5", "192.0.2.5"), 50_000..=50_007);
    let second = std::time::Duration::from_secs(1);
    let snapshot = Snapshot {
        core: blueprint.snapshot(),
        connection_limits: ConnectionLimits { per_source: 0, allocated_per_source: 0, in_all: 0 },
        timeouts: Timeouts { tls_handshake: second, first_request: second, idle: second, unauthenticated: second },
        tls: None,
        challenges: Arc::default(),
        privacy: Arc::new(Privacy::new(ClientAddresses::Full, Usernames::Full, [7; 32])),
        offload_interfaces: Arc::default(),
        proxies: [].into(),
        records: false,
    };
    let key = HttpKey {
        name: "app".to_owned(),
        hash: KeyHash::of(KEY.as_bytes()),
        ttl: 3_600 * second,
        user_prefix: "app-".to_owned(),
        origins: vec!["https://example.org".to_owned()],
        requests_per_second: 2,
    };
    let secret = |text: &str| Secret::new(text).expect("it is not empty");
    let published = Published {
        snapshot: Arc::new(snapshot),
        certificates: Arc::default(),
        log_level: LogLevel::Info,
        reload: Reload::at_start(1),
        secret: Some(secret(SECRET)),
        test_links: secret(SECRET),
        pages: vec!["http://192.0.2.5:8080".to_owned()],
        urls: vec!["turn:192.0.2.5:3478?transport=udp".to_owned()],
        keys: vec![key],
        access: Access { from: vec!["10.0.0.0/8".parse().expect("a prefix")], token: Some(secret(TOKEN)) },
    };
    let (publisher, published) = watch::channel(published);
    let (commands, mut requests) = commands::commands();
    tokio::task::spawn_local(async move {
        while let Some(commands::Request { response, command, .. }) = requests.recv().await {
            let result =
                if matches!(command, commands::Command::Resume) { Err("no".to_owned()) } else { Ok(Value::Null) };
            // The client may have gone.
            let _ = response.send(result);
        }
    });
    let api = Api::new(Inputs {
        acme: watch::channel(acme::Published::default()).1,
        redis: Arc::default(),
        status: Arc::default(),
        workers: Vec::new(),
        ledger: blueprint.ledger(),
        published,
        clock: Clock::start(),
        started: 1,
        commands,
        offload: Arc::new(offload),
        front: Arc::default(),
        fleet: crate::control::fleet::Handle::none(),
        webhook: Arc::default(),
    });
    (api, publisher)
}

async fn respond(api: &Api, text: &[u8], link: &mut String) {
    let Some((from, text)) = text.split_first() else { return };
    let client = match from {
        1 => Client::Process(PeerCredentials { process: Some(1), user: 0 }),
        2 => Client::Address(([127, 0, 0, 1], 5_000).into()),
        4 => Client::Address(([10, 0, 0, 1], 5_000).into()),
        _ => Client::Address(([192, 0, 2, 1], 5_000).into()),
    };
    let text = String::from_utf8_lossy(text).replace(LINK, link);
    let Some(request) = request(&text) else { return };
    let (has_key, has_token) = (has_bearer(&request, KEY), has_bearer(&request, TOKEN));
    let (path, is_process) = (request.uri().path().to_owned(), matches!(client, Client::Process(_)));
    let response = match api.refuse(&client, &request) {
        Some(response) => response,
        None => api.handle(&client, request).await,
    };
    let (parts, body) = response.into_parts();
    let body = body.collect().await.expect("it is in memory").to_bytes();
    assert!(body.len() < 1 << 20, "a response is bounded");
    assert!(parts.status != StatusCode::INTERNAL_SERVER_ERROR, "no request is an internal error: {path}");
    let body = String::from_utf8(body.to_vec()).expect("each response is text");
    // An error may quote the request.
    let leaks = |secret: &str| body.contains(secret) && !text.contains(secret);
    assert!(!leaks(SECRET) && !leaks(TOKEN), "no response has a secret");
    let is_json = parts.headers.get(CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    let json: Option<Value> = is_json.then(|| serde_json::from_str(&body).expect("JSON is well-formed"));
    let is_form =
        path == "/v1/ice-servers" || path == draining::PATH || path == "/turn" || path.starts_with("/v1/turn/keys/");
    match path.as_str() {
        // Without access, a client learns nothing, not even from an error.
        "/metrics" | "/healthz" | "/readyz" => {
            let refused = [StatusCode::UNAUTHORIZED, StatusCode::METHOD_NOT_ALLOWED];
            assert!(is_process || has_token || *from == 4 || refused.contains(&parts.status), "{path}");
        }
        _ if path.starts_with("/v1/") && !is_form => {
            assert!(is_process || parts.status == StatusCode::NOT_FOUND, "only the operator steers: {path}");
        }
        _ => {}
    }
    if is_form && parts.status.is_success() && parts.status != StatusCode::NO_CONTENT {
        // At `/turn`, the key may be a parameter, in which characters may be escaped.
        let is_escaped = path == "/turn" && (text.contains(KEY) || text.contains('%'));
        assert!(!is_process && (has_key || is_escaped), "an application has a key: {path}");
    }
    if !parts.status.is_success()
        && let Some(error) = json.as_ref().and_then(|json| json.get("error"))
    {
        let error = error.as_str().expect("it is a text");
        assert!(!error.is_empty() && !error.contains(char::is_control), "{error:?}");
    }
    if let Some(fragment) = body.split_once('#').filter(|_| path == "/v1/test-links") {
        *link =
            fragment.1.chars().take_while(|letter| letter.is_ascii_alphanumeric() || "-_".contains(*letter)).collect();
    }
}

/// Whether a request has a token (RFC 6750 §2.1).
fn has_bearer(request: &Request<Bytes>, token: &str) -> bool {
    let value = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let parts = value.and_then(|value| value.split_once(' '));
    parts.is_some_and(|(scheme, sent)| scheme.eq_ignore_ascii_case("bearer") && sent.trim() == token)
}

/// Returns the request in a text; `None` if hyper would reject it.
fn request(text: &str) -> Option<Request<Bytes>> {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut lines = head.lines();
    let (method, path) = lines.next()?.split_once(' ')?;
    let mut request = Request::builder().method(method).uri(path);
    for line in lines {
        let (name, value) = line.split_once(':')?;
        request = request.header(name.trim(), value.trim());
    }
    if head.len() > limits::HEAD || body.len() > limits::BODY || !path.starts_with(['/', 'h']) {
        return None;
    }
    request.body(Bytes::copy_from_slice(body.as_bytes())).ok()
}
