//! Credentials from the endpoint of the relay (docs/credentials.md): this server needs a key, but not the secret.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use turnserver::auth::{Secret, time_limited};
use turnserver::clock::unix_seconds;

use super::{Draining, IceError};
use crate::connect::{Trust, connect};
use crate::message::{Ice, IceServer};

/// The time for a response, which all URLs share.
const DEADLINE: Duration = Duration::from_secs(5);

/// For this time after a failure, there is no other request: those of many participants would fail alike.
const FAILED: Duration = Duration::from_secs(5);

/// How often the endpoint is asked which relays drain.
const POLL: Duration = Duration::from_secs(5);

/// The longest response in bytes.
const LONGEST: usize = 64 * 1024;

/// Fetches credentials.
pub struct Endpoint {
    /// The URLs: those of several relays of a fleet, or one.
    urls: Vec<Uri>,
    /// The index of the one that has responded last.
    last: AtomicUsize,
    key: Secret,
    user_prefix: String,
    lifetime: u64,
    trust: Trust,
    /// The credentials of each user until two thirds of their lifetime have passed, in seconds since the Unix epoch.
    kept: Mutex<HashMap<String, (Ice, u64)>>,
    /// The last failure.
    failure: Mutex<Option<(Instant, String)>>,
    draining: watch::Sender<Draining>,
}

/// The response of the endpoint.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    ice_servers: Vec<IceServer>,
}

/// The response about relays that drain.
#[derive(Deserialize)]
struct DrainingResponse {
    urls: Draining,
}

impl Endpoint {
    /// Reads the key. Each URL is that of the endpoint at another relay. `user_prefix` is what the names of users begin with.
    ///
    /// # Errors
    /// If a URL or the file cannot be used.
    pub fn new(urls: &[String], key_file: &Path, user_prefix: String, lifetime: u64) -> Result<Self, IceError> {
        let parse = |url: &String| {
            let parsed = url
                .parse()
                .ok()
                .filter(|url: &Uri| matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some());
            parsed.ok_or_else(|| IceError::Url(url.clone()))
        };
        let parsed = urls.iter().map(parse).collect::<Result<_, _>>()?;
        let unusable = |reason: String| IceError::Key { path: key_file.to_owned(), reason };
        let text = fs::read_to_string(key_file).map_err(|error| unusable(error.to_string()))?;
        let key = Secret::new(text.trim()).map_err(|_| unusable("it is empty".to_owned()))?;
        Ok(Self {
            urls: parsed,
            last: AtomicUsize::new(0),
            key,
            user_prefix,
            lifetime,
            trust: Trust::default(),
            kept: Mutex::default(),
            failure: Mutex::default(),
            draining: watch::Sender::default(),
        })
    }

    /// Sets which certificates are trusted, in place of those of authorities that browsers trust.
    #[must_use]
    pub fn with_trust(self, trust: Trust) -> Self {
        Self { trust, ..self }
    }

    /// Returns credentials for a user.
    ///
    /// # Errors
    /// If the endpoint gives none in time.
    pub async fn get(&self, user: &str) -> Result<Ice, IceError> {
        let now = unix_seconds();
        if let Some((ice, until)) = self.lock().get(user)
            && now < *until
            && !self.draining.borrow().concerns(ice)
        {
            return Ok(ice.clone());
        }
        if let Some((at, reason)) = &*self.failure.lock().unwrap_or_else(PoisonError::into_inner)
            && at.elapsed() < FAILED
        {
            return Err(IceError::Endpoint(reason.clone()));
        }
        let ice = self.fetch(user).await.map_err(|reason| {
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), reason.clone()));
            let error = IceError::Endpoint(reason);
            tracing::error!("{error}");
            error
        })?;
        let until = now + ice.expires.saturating_sub(now) * 2 / 3;
        let mut kept = self.lock();
        kept.retain(|_, (_, until)| now < *until);
        kept.insert(user.to_owned(), (ice.clone(), until));
        Ok(ice)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Ice, u64)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns which relays drain, until the caller stops.
    pub(super) async fn follow(&self) {
        loop {
            sleep(POLL).await;
            match self.ask("/draining", None).await.and_then(|body| read::<DrainingResponse>(&body)) {
                Ok(DrainingResponse { urls }) => self.draining.send_if_modified(|known| {
                    let is_new = *known != urls;
                    *known = urls;
                    is_new
                }),
                // What was known stays.
                Err(reason) => {
                    tracing::debug!("it is not known which relays drain: {reason}");
                    false
                }
            };
        }
    }

    /// Returns the relays that drain.
    pub(super) fn draining(&self) -> watch::Receiver<Draining> {
        self.draining.subscribe()
    }

    async fn fetch(&self, user: &str) -> Result<Ice, String> {
        let wish = json!({ "ttl": self.lifetime, "user": format!("{}{user}", self.user_prefix) }).to_string();
        let Response { ice_servers } = read(&self.ask("", Some(wish)).await?)?;
        let expires = ice_servers.iter().filter_map(|server| time_limited::check_username(&server.username).ok());
        let expires = expires.map(|username| username.expires).min();
        let expires = expires.ok_or("the response has no credential that names its expiry")?;
        Ok(Ice { ice_servers, expires, ..Ice::default() })
    }

    /// Sends a request to the first URL that responds, beginning with the one that has done so last: a POST request if
    /// there is a body. `more` is added to the path.
    async fn ask(&self, more: &str, body: Option<String>) -> Result<Bytes, String> {
        let (first, count) = (self.last.load(Ordering::Relaxed), self.urls.len());
        let share = DEADLINE / u32::try_from(count).unwrap_or(u32::MAX);
        let late = |_| Err(format!("no response within {} ms", share.as_millis()));
        let mut failures = Vec::new();
        for (index, url) in self.urls.iter().enumerate().cycle().skip(first).take(count) {
            match timeout(share, self.exchange(url, more, body.clone())).await.unwrap_or_else(late) {
                Ok(body) => {
                    self.last.store(index, Ordering::Relaxed);
                    return Ok(body);
                }
                Err(reason) => failures.push(format!("{url}: {reason}")),
            }
        }
        Err(failures.join("; "))
    }

    async fn exchange(&self, url: &Uri, more: &str, body: Option<String>) -> Result<Bytes, String> {
        let is_encrypted = url.scheme_str() == Some("https");
        let port = url.port_u16().unwrap_or(if is_encrypted { 443 } else { 80 });
        let host = url.host().unwrap_or_default();
        let trust = is_encrypted.then(|| self.trust.clone());
        let stream = connect(host, port, trust).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        // The connection ends with the sender.
        let connection = tokio::spawn(connection);
        let request = self.request(url, more, body)?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LONGEST).collect().await.map_err(|error| error.to_string())?;
        connection.abort();
        if !status.is_success() {
            return Err(format!("it responded with {status}; the log of the relay has the reason"));
        }
        Ok(body.to_bytes())
    }

    fn request(&self, url: &Uri, more: &str, body: Option<String>) -> Result<Request<Full<Bytes>>, String> {
        let key = String::from_utf8_lossy(self.key.as_bytes());
        let mut authorization = HeaderValue::from_str(&format!("Bearer {key}"))
            .map_err(|_| "the key is no text for a header".to_owned())?;
        authorization.set_sensitive(true);
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        Request::builder()
            .method(method)
            .uri(format!("{}{more}{query}", url.path()))
            .header(HOST, url.authority().map(ToString::to_string).unwrap_or_default())
            .header(CONTENT_TYPE, "application/json")
            .header(AUTHORIZATION, authorization)
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| error.to_string())
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| format!("the response is not understood: {error}"))
}

// The key is a secret.
impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("urls", &self.urls).finish_non_exhaustive()
    }
}
