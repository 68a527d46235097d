//! The HTTPS client that talks to the directory of an authority. Whatever the directory sends is bounded in size and time.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{DATE, HeaderValue, RETRY_AFTER};
use hyper::{HeaderMap, Request, Response, StatusCode, Uri};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::dates::http_date;
use super::failure::{Failure, of_problem, text};
use crate::clock;
use crate::control::outbound::{self, Destination};
use crate::setting::{TLS_ACME_DIRECTORY, TLS_ACME_DIRECTORY_CA_FILE};

/// The longest time for a request and its response.
const REQUEST_TIME: Duration = Duration::from_secs(30);
/// The longest response, in bytes. A chain of certificates has a few thousand.
const MAX_BODY: usize = 256 * 1024;
/// The most bytes of a URL from the directory.
const MAX_URL: usize = 2_048;
/// The longest wait between two requests of one order, in seconds, whatever the directory demands.
const MAX_POLL: u64 = 30;

/// A client of one directory. Clones share what it has observed.
#[derive(Clone)]
pub(super) struct Client {
    tls: TlsConnector,
    observed: Arc<Mutex<Observed>>,
}

/// What the last response said.
#[derive(Clone, Copy, Debug, Default)]
struct Observed {
    /// The time that the directory demands until the next request, in seconds.
    retry_after: Option<u64>,
    /// How far the clock of this machine is ahead of that of the directory, in seconds.
    ahead: Option<i64>,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NoResponse(String);

impl Client {
    /// Creates a client that trusts the authorities in a PEM file; `None`: those that browsers trust.
    ///
    /// # Errors
    /// If the file cannot be used.
    pub(super) fn new(ca: Option<&Path>) -> Result<Self, Failure> {
        let tls = outbound::tls_connector(ca);
        let tls = tls.map_err(|why| Failure::new(format!("`{TLS_ACME_DIRECTORY_CA_FILE}`: {why}")))?;
        Ok(Self { tls, observed: Arc::default() })
    }

    /// Returns how far the clock of this machine is ahead of that of the directory, in seconds.
    pub(super) fn ahead(&self) -> Option<i64> {
        self.observed().ahead
    }

    /// Returns the failure that an error of the library means.
    pub(super) fn failure(&self, error: &Error) -> Failure {
        let wait = self.observed().retry_after;
        match error {
            Error::Api(problem) => of_problem(problem, wait),
            Error::Timeout(_) => Failure::new("the authority did not finish in time"),
            Error::Json(error) => Failure::new(format!(
                "the authority sent something other than RFC 8555 describes: {}",
                text(&error.to_string())
            )),
            other => Failure { wait, ..Failure::new(text(&other.to_string())) },
        }
    }

    /// Requests a document without authentication.
    pub(super) async fn get(&self, url: &str) -> Result<Bytes, Failure> {
        let failure = |error: Error| self.failure(&error);
        let request = Request::builder().uri(url).body(BodyWrapper::default()).map_err(Error::from).map_err(failure)?;
        let mut response = self.request(request).await.map_err(failure)?;
        response.body.into_bytes().await.map_err(|error| Failure::new(error.to_string()))
    }

    /// Returns the time that the last response demands until the next request, in seconds.
    pub(super) fn retry_after(&self) -> Option<u64> {
        self.observed().retry_after
    }

    fn observed(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, request: Request<BodyWrapper<Bytes>>) -> Result<Response<Full<Bytes>>, NoResponse> {
        let to = destination(request.uri())?;
        let failed = |why: String| NoResponse(format!("{}: {why}", to.authority()));
        let stream = outbound::connect(&to.host, to.port).await.map_err(&failed)?;
        let stream = outbound::tls(&self.tls, &to.host, stream, TLS_ACME_DIRECTORY_CA_FILE).await.map_err(&failed)?;
        let response = outbound::exchange(stream, &to, request, MAX_BODY).await;
        let (mut head, body) = response.map_err(&failed)?;
        self.observe(&mut head.headers);
        check(head.status, &body).map_err(failed)?;
        Ok(Response::from_parts(head, Full::new(body)))
    }

    /// Remembers what the head of a response says.
    fn observe(&self, headers: &mut HeaderMap) {
        let now = clock::unix_seconds();
        let retry_after = outbound::retry_after(headers, now);
        let date = headers.get(DATE).and_then(|value| value.to_str().ok()).and_then(http_date);
        let ahead = date.map(|at| now.cast_signed().saturating_sub(at.cast_signed()));
        *self.observed() = Observed { retry_after, ahead };
        // instant-acme waits that long between two requests, and it adds the value to the present time, which panics if
        // the sum is out of range.
        if let Some(seconds) = retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds.min(MAX_POLL)));
        } else {
            headers.remove(RETRY_AFTER);
        }
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let this = self.clone();
        Box::pin(async move {
            *this.observed() = Observed::default();
            let host = request.uri().host().unwrap_or_default().to_owned();
            match timeout(REQUEST_TIME, this.send(request)).await {
                Ok(Ok(response)) => Ok(BytesResponse::from(response)),
                Ok(Err(error)) => Err(Error::Other(Box::new(error))),
                Err(_) => Err(Error::Other(Box::new(NoResponse(format!(
                    "{host}: it sent no complete response within {} seconds",
                    REQUEST_TIME.as_secs()
                ))))),
            }
        })
    }
}

/// Returns where a request for a URL of the directory goes.
fn destination(uri: &Uri) -> Result<Destination, NoResponse> {
    let shown = || text(&uri.to_string());
    if uri.scheme_str() != Some("https") || uri.to_string().len() > MAX_URL {
        return Err(NoResponse(format!("the directory names a URL that does not begin with https://: {}", shown())));
    }
    Destination::of(uri, 443).ok_or_else(|| NoResponse(format!("a URL without a host: {}", shown())))
}

/// Checks that a response is one of RFC 8555, and not that of a proxy or of another service.
fn check(status: StatusCode, body: &Bytes) -> Result<(), String> {
    if status.is_redirection() {
        return Err(format!("it redirects ({status}); set `{TLS_ACME_DIRECTORY}` to the URL of the directory itself"));
    }
    let is_problem = || serde_json::from_slice::<instant_acme::Problem>(body).is_ok();
    if status.is_client_error() || status.is_server_error() {
        return if is_problem() { Ok(()) } else { Err(format!("it responded with {status}")) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_urls_of_the_directory_are_requested() {
        let parse = |url: &str| destination(&url.parse().unwrap());
        let to = parse("https://acme.example.org/dir?x=1").unwrap();
        assert_eq!((to.host.as_str(), to.port, to.path.to_string().as_str()), ("acme.example.org", 443, "/dir?x=1"));
        assert_eq!(to.authority(), "acme.example.org:443");
        let to = parse("https://[::1]:14000/dir").unwrap();
        assert_eq!((to.host.as_str(), to.port, to.authority().as_str()), ("::1", 14_000, "[::1]:14000"));
        for url in ["http://acme.example.org/dir", "/dir", &format!("https://a.example.org/{}", "x".repeat(MAX_URL))] {
            assert!(parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_response_of_something_else_than_an_authority_is_an_error() {
        let check = |status: u16, body: &'static str| check(StatusCode::from_u16(status).unwrap(), &body.into());
        assert_eq!(check(200, "anything"), Ok(()));
        assert_eq!(check(429, r#"{"type":"urn:ietf:params:acme:error:rateLimited"}"#), Ok(()));
        assert!(check(302, "").unwrap_err().contains("tls.acme.directory"));
        assert_eq!(check(502, "<html>").unwrap_err(), "it responded with 502 Bad Gateway");
        assert_eq!(check(400, "[]").unwrap_err(), "it responded with 400 Bad Request");
    }

    // `SystemTime::now() + Duration::from_secs(u64::MAX)` panics.
    #[test]
    fn what_the_library_sees_of_retry_after_is_short_and_the_rest_is_remembered() {
        let client = Client::new(None).unwrap();
        let observe = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            client.observe(&mut headers);
            (headers.get(RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned()), client.retry_after())
        };
        assert_eq!(observe("18446744073709551615"), (Some("30".to_owned()), Some(u64::MAX)));
        assert_eq!(observe("5"), (Some("5".to_owned()), Some(5)));
        assert_eq!(observe("Sun, 06 Nov 1994 08:49:37 GMT"), (Some("0".to_owned()), Some(0)));
        assert_eq!(observe("Fri, 31 Dec 9999 23:59:59 GMT").0, Some("30".to_owned()));
        for nonsense in ["18446744073709551616", "-1", "soon"] {
            assert_eq!(observe(nonsense), (None, None), "{nonsense}");
        }
    }
}
