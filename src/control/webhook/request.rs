//! The requests to the receiver: batches of events, signed as Standard Webhooks does.

use std::convert::Infallible;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsConnector;

use crate::auth::Secret;
use crate::clock;
use crate::config;
use crate::control::outbound::{self, Connection, Destination};
use crate::setting::{WEBHOOK_CA_FILE, WEBHOOK_SECRET_FILE, WEBHOOK_URL};

/// The longest time that a connection waits for the next batch: many servers close theirs after a minute.
const REUSE: Duration = Duration::from_secs(30);
/// The longest time that a connection is used: the name may get another address.
const LONGEST_USE: Duration = Duration::from_secs(600);

/// A batch of events. Each try has the same identifier and body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) id: String,
    pub(super) body: Bytes,
}

impl Batch {
    /// Makes a batch of events, each a JSON object. Their content determines the identifier.
    pub(super) fn new(node: &str, events: &[impl AsRef<[u8]>]) -> Self {
        let mut joined = Vec::new();
        for event in events {
            if !joined.is_empty() {
                joined.push(b',');
            }
            joined.extend_from_slice(event.as_ref());
        }
        let hash = Sha256::digest(&joined);
        let id: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let id = format!("msg_{id}");
        let head = format!("{{\"v\":1,\"batch\":\"{id}\",\"node\":{},\"events\":[", json!(node));
        let body = [head.as_bytes(), &joined, b"]}"].concat();
        Self { id, body: body.into() }
    }

    /// Returns the signatures with each of the secrets: the header `webhook-signature`.
    fn signatures(&self, timestamp: u64, secrets: &[Secret]) -> String {
        let sign = |secret: &Secret| {
            let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).ok()?;
            mac.update(format!("{}.{timestamp}.", self.id).as_bytes());
            mac.update(&self.body);
            Some(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
        };
        secrets.iter().filter_map(sign).collect::<Vec<_>>().join(" ")
    }
}

/// Why the receiver has not taken a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    /// What happened, with advice.
    pub(super) message: String,
    /// Whether it will not take it until someone changes something.
    pub(super) is_permanent: bool,
    /// Whether it may take a smaller one.
    pub(super) is_too_large: bool,
    /// How long it wants the server to wait, in seconds.
    pub(super) wait: Option<u64>,
}

impl From<String> for Refusal {
    fn from(message: String) -> Self {
        Self { message, ..Self::default() }
    }
}

/// The way to the receiver: a TLS client, and the connection of the last batch, which the next one uses if it comes soon.
pub(super) struct Link {
    /// How long the connection waits for the next batch.
    reuse: Duration,
    /// The version of the settings that the rest is of.
    version: u64,
    tls: Option<TlsConnector>,
    /// A connection with a response whose body was not read.
    unread: Option<(Open, Response<Incoming>)>,
    kept: Option<Open>,
}

/// A connection to the receiver.
struct Open {
    connection: Connection<Full<Bytes>>,
    since: Instant,
    /// When the last batch was sent.
    used: Instant,
}

impl Default for Link {
    fn default() -> Self {
        Self { reuse: REUSE, version: 0, tls: None, unread: None, kept: None }
    }
}

impl Open {
    fn new(connection: Connection<Full<Bytes>>) -> Self {
        let now = Instant::now();
        Self { connection, since: now, used: now }
    }

    /// Returns when it has to be closed.
    fn end(&self, reuse: Duration) -> Instant {
        (self.used + reuse).min(self.since + LONGEST_USE)
    }
}

impl Link {
    /// Closes the connection if there are other settings. `version` counts their changes.
    pub(super) fn follow(&mut self, version: u64) {
        if self.version != version {
            *self = Self { version, ..Self::default() };
        }
    }

    /// Closes the connection when it has waited for too long, and never returns.
    pub(super) async fn close_when_idle(&mut self) -> Infallible {
        if let Some(end) = self.kept.as_ref().map(|open| open.end(self.reuse)) {
            sleep_until(end).await;
            self.kept = None;
        }
        std::future::pending().await
    }

    /// Reads the rest of the last response, so that the connection can be used again.
    pub(super) async fn settle(&mut self) {
        if let Some((Open { connection, since, used }, response)) = self.unread.take() {
            self.kept = connection.after(response).await.map(|connection| Open { connection, since, used });
        }
    }

    /// Sends a batch. [`settle`](Self::settle) has to follow.
    ///
    /// # Errors
    /// If the receiver has not taken it, or not in time.
    pub(super) async fn post(&mut self, webhook: &config::Webhook, batch: &Batch) -> Result<(), Refusal> {
        let time = webhook.timeout;
        let sent = timeout(time, self.send(webhook, batch)).await.unwrap_or_else(|_| Err(too_slow(time).into()));
        match sent {
            Ok(unread) => {
                // The head has said that the receiver has the batch. Whatever the body is must not repeat it.
                self.unread = Some(unread);
                Ok(())
            }
            Err(refusal) => {
                // The file of authorities may be another one now.
                self.tls = None;
                Err(refusal)
            }
        }
    }

    async fn send(&mut self, webhook: &config::Webhook, batch: &Batch) -> Result<(Open, Response<Incoming>), Refusal> {
        let wrong = || Refusal::from(format!("`{WEBHOOK_URL}` cannot be used"));
        let uri: Uri = webhook.url.parse().map_err(|_| wrong())?;
        let is_plain = uri.scheme_str() == Some("http");
        let to = Destination::of(&uri, if is_plain { 80 } else { 443 }).ok_or_else(wrong)?;
        let timestamp = clock::unix_seconds();
        let request = Request::post(uri)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header("webhook-id", &batch.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", batch.signatures(timestamp, &webhook.secrets))
            .body(Full::new(batch.body.clone()))
            .map_err(|_| wrong())?;
        if let Some(mut open) = self.kept.take().filter(|open| Instant::now() < open.end(self.reuse)) {
            match open.connection.send(&to, request.clone()).await {
                Ok(response) => {
                    taken(&response, timestamp)?;
                    return Ok((Open { used: Instant::now(), ..open }, response));
                }
                // The receiver may just have closed it, which is no failure.
                Err(error) if error.is_closed => {}
                Err(error) => return Err(error.to_string().into()),
            }
        }
        let stream = outbound::connect(&to.host, to.port).await?;
        let mut connection = if is_plain {
            Connection::over(stream).await?
        } else {
            let tls = self.tls(webhook)?;
            Connection::over(outbound::tls(&tls, &to.host, stream, WEBHOOK_CA_FILE).await?).await?
        };
        let response = connection.send(&to, request).await.map_err(|error| error.to_string())?;
        taken(&response, timestamp).map(|()| (Open::new(connection), response))
    }

    fn tls(&mut self, webhook: &config::Webhook) -> Result<TlsConnector, Refusal> {
        if let Some(tls) = &self.tls {
            return Ok(tls.clone());
        }
        let tls = outbound::tls_connector(webhook.ca.as_deref());
        let tls = tls.map_err(|why| Refusal::from(format!("`{WEBHOOK_CA_FILE}`: {why}")))?;
        Ok(self.tls.insert(tls).clone())
    }
}

fn too_slow(time: Duration) -> String {
    format!("it sent no response within {} seconds (`webhook.timeout`)", time.as_secs())
}

/// Checks that a response says that the receiver has taken the batch.
fn taken(response: &Response<Incoming>, now: u64) -> Result<(), Refusal> {
    if response.status().is_success() {
        return Ok(());
    }
    Err(Refusal { wait: outbound::retry_after(response.headers(), now), ..refusal(response.status()) })
}

/// Returns what a status other than success means.
fn refusal(status: StatusCode) -> Refusal {
    let advice = match status {
        StatusCode::GONE => format!("it is gone for good: set `{WEBHOOK_URL}` to the new one, or remove [webhook]"),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => format!(
            "it does not accept the signature, or demands something else: compare the secret in `{WEBHOOK_SECRET_FILE}` \
             with that of the receiver, and the clocks of both"
        ),
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => format!("check `{WEBHOOK_URL}`"),
        StatusCode::PAYLOAD_TOO_LARGE => "the next batches are smaller".to_owned(),
        _ if status.is_redirection() => {
            format!("it redirects, which is not followed: set `{WEBHOOK_URL}` to the URL of the receiver itself")
        }
        _ => String::new(),
    };
    let is_later =
        matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS);
    let is_too_large = status == StatusCode::PAYLOAD_TOO_LARGE;
    let is_permanent = !status.is_server_error() && !is_later && !is_too_large;
    let colon = if advice.is_empty() { "" } else { ": " };
    Refusal { message: format!("it responded with {status}{colon}{advice}"), is_permanent, is_too_large, wait: None }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    // The example of the specification of Standard Webhooks and of its libraries.
    #[test]
    fn the_signature_is_that_of_standard_webhooks() {
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let batch = Batch { id: "msg_p5jXN8AQM9LWM0D4loKWxJek".to_owned(), body: r#"{"test": 2432232314}"#.into() };
        let secret = Secret::new(secret).unwrap();
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(batch.signatures(1_614_265_330, std::slice::from_ref(&secret)), expected);
        // While secrets rotate, there is one of each.
        let other = Secret::new([7; 32]).unwrap();
        let both = batch.signatures(1_614_265_330, &[other, secret]);
        assert!(both.starts_with("v1,") && both.ends_with(&format!(" {expected}")), "{both}");
    }

    #[test]
    fn a_batch_has_an_identifier_of_its_content() {
        let batch = Batch::new("fra \"1\"", &["{\"a\":1}", "{\"b\":2}"]);
        let body: serde_json::Value = serde_json::from_slice(&batch.body).unwrap();
        let expected = json!({ "v": 1, "batch": batch.id, "node": "fra \"1\"", "events": [{ "a": 1 }, { "b": 2 }] });
        assert_eq!(body, expected);
        assert_eq!(Batch::new("fra \"1\"", &["{\"a\":1}", "{\"b\":2}"]), batch);
        assert_ne!(Batch::new("fra \"1\"", &["{\"a\":1}"]).id, batch.id);
    }

    #[tokio::test]
    async fn a_connection_that_waits_for_too_long_is_closed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let webhook = config::Webhook {
            url: format!("http://{}/", listener.local_addr().unwrap()),
            secrets: Vec::new(),
            events: Vec::new(),
            batch: 1,
            interval: Duration::ZERO,
            spool: 0,
            timeout: Duration::from_secs(10),
            ca: None,
            allow_http: false,
        };
        let receiver = tokio::task::spawn_blocking(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut bytes, mut responses) = (vec![0; 4096], 0);
            // Until the server closes the connection.
            while stream.read(&mut bytes).unwrap() > 0 {
                if responses == 0 {
                    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
                    responses += 1;
                }
            }
        });
        let mut link = Link { reuse: Duration::from_millis(50), ..Link::default() };
        link.post(&webhook, &Batch::new("a", &["{}"])).await.unwrap();
        link.settle().await;
        assert!(link.kept.is_some());
        tokio::select! {
            ended = receiver => ended.unwrap(),
            never = link.close_when_idle() => match never {},
        }
    }

    #[test]
    fn a_status_says_whether_another_try_may_succeed() {
        let of = |status: u16| refusal(StatusCode::from_u16(status).unwrap());
        for later in [500, 502, 503, 429, 408, 425] {
            assert!(!of(later).is_permanent, "{later}");
        }
        for permanent in [301, 307, 400, 401, 404, 410] {
            assert!(of(permanent).is_permanent, "{permanent}");
        }
        assert!(of(413).is_too_large && !of(413).is_permanent);
        assert_eq!(of(500).message, "it responded with 500 Internal Server Error");
        assert!(of(302).message.contains("redirects") && of(410).message.contains("[webhook]"));
    }
}
