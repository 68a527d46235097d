//! Credentials from the endpoint of the relay (docs/credentials.md): this server needs a key, but not the secret.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, timeout};
use turnserver::auth::{Secret, time_limited};
use turnserver::clock::unix_seconds;

use super::IceError;
use crate::connect::{Trust, connect};
use crate::message::{Ice, IceServer};

/// The time for a response.
const DEADLINE: Duration = Duration::from_secs(5);

/// For this time after a failure, there is no other request: those of many participants would fail alike.
const FAILED: Duration = Duration::from_secs(5);

/// The longest response in bytes.
const LONGEST: usize = 64 * 1024;

/// Fetches credentials.
pub struct Endpoint {
    url: Uri,
    key: Secret,
    user_prefix: String,
    lifetime: u64,
    trust: Trust,
    /// The credentials of each user until two thirds of their lifetime have passed, in seconds since the Unix epoch.
    kept: Mutex<HashMap<String, (Ice, u64)>>,
    /// The last failure.
    failure: Mutex<Option<(Instant, String)>>,
}

/// The response of the endpoint.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    ice_servers: Vec<IceServer>,
}

impl Endpoint {
    /// Reads the key. `user_prefix` is what the names of users begin with.
    ///
    /// # Errors
    /// If the URL or the file cannot be used.
    pub fn new(url: &str, key_file: &Path, user_prefix: String, lifetime: u64) -> Result<Self, IceError> {
        let invalid = || IceError::Url(url.to_owned());
        let parsed: Uri = url.parse().map_err(|_| invalid())?;
        if !matches!(parsed.scheme_str(), Some("http" | "https")) || parsed.host().is_none() {
            return Err(invalid());
        }
        let unusable = |reason: String| IceError::Key { path: key_file.to_owned(), reason };
        let text = fs::read_to_string(key_file).map_err(|error| unusable(error.to_string()))?;
        let key = Secret::new(text.trim()).map_err(|_| unusable("it is empty".to_owned()))?;
        Ok(Self {
            url: parsed,
            key,
            user_prefix,
            lifetime,
            trust: Trust::default(),
            kept: Mutex::default(),
            failure: Mutex::default(),
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
        {
            return Ok(ice.clone());
        }
        let failed = |reason: String| IceError::Endpoint { url: self.url.to_string(), reason };
        if let Some((at, reason)) = &*self.failure.lock().unwrap_or_else(PoisonError::into_inner)
            && at.elapsed() < FAILED
        {
            return Err(failed(reason.clone()));
        }
        let late = |_| Err(format!("no response within {} s", DEADLINE.as_secs()));
        let ice = timeout(DEADLINE, self.fetch(user)).await.unwrap_or_else(late).map_err(|reason| {
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), reason.clone()));
            let error = failed(reason);
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

    async fn fetch(&self, user: &str) -> Result<Ice, String> {
        let is_encrypted = self.url.scheme_str() == Some("https");
        let port = self.url.port_u16().unwrap_or(if is_encrypted { 443 } else { 80 });
        let host = self.url.host().unwrap_or_default();
        let trust = is_encrypted.then(|| self.trust.clone());
        let stream = connect(host, port, trust).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        // The connection ends with the sender.
        let connection = tokio::spawn(connection);
        let response = sender.send_request(self.request(user)?).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LONGEST).collect().await.map_err(|error| error.to_string())?;
        connection.abort();
        if !status.is_success() {
            return Err(format!("it responded with {status}; the log of the relay has the reason"));
        }
        let Response { ice_servers } = serde_json::from_slice(&body.to_bytes())
            .map_err(|error| format!("its response is not understood: {error}"))?;
        let expires = ice_servers.iter().filter_map(|server| time_limited::check_username(&server.username).ok());
        let expires = expires.map(|username| username.expires).min();
        let expires = expires.ok_or("its response has no credential that names its expiry")?;
        Ok(Ice { ice_servers, expires, lifetime: 0 })
    }

    fn request(&self, user: &str) -> Result<Request<Full<Bytes>>, String> {
        let key = String::from_utf8_lossy(self.key.as_bytes());
        let mut authorization = HeaderValue::from_str(&format!("Bearer {key}"))
            .map_err(|_| "the key is no text for a header".to_owned())?;
        authorization.set_sensitive(true);
        let body = json!({ "ttl": self.lifetime, "user": format!("{}{user}", self.user_prefix) }).to_string();
        let authority = self.url.authority().map(ToString::to_string).unwrap_or_default();
        Request::builder()
            .method(Method::POST)
            .uri(self.url.path_and_query().map_or("/", |path| path.as_str()))
            .header(HOST, authority)
            .header(CONTENT_TYPE, "application/json")
            .header(AUTHORIZATION, authorization)
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| error.to_string())
    }
}

// The key is a secret.
impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("url", &self.url).finish_non_exhaustive()
    }
}
