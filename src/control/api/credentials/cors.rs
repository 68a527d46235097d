//! Cross-origin requests (the CORS protocol of the Fetch standard): which pages may read responses.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, HeaderValue, ORIGIN, VARY,
};
use hyper::{Request, Response, StatusCode};

use super::refusal::Refusal;
use crate::config::HttpKey;

/// The origin of a request, if a key allows it.
///
/// A preflight request has no key, so an origin of any key may read errors. Only an origin of the key itself gets
/// credentials.
#[derive(Debug)]
pub(super) struct Cors<'r>(Option<&'r HeaderValue>);

/// Returns the origin of the page that sends a request; `None` if it is not sent by a page.
pub(super) fn origin<B>(request: &Request<B>) -> Option<&str> {
    // An origin that is no text is that of no key.
    request.headers().get(ORIGIN).map(|origin| origin.to_str().unwrap_or_default())
}

impl<'r> Cors<'r> {
    pub(super) fn new<B>(request: &'r Request<B>, keys: &[HttpKey]) -> Self {
        let origin = request.headers().get(ORIGIN);
        let is_known = |origin: &&HeaderValue| {
            keys.iter().flat_map(|key| &key.origins).any(|own| own.as_bytes() == origin.as_bytes())
        };
        Self(origin.filter(is_known))
    }

    /// Lets the page read a response.
    pub(super) fn allow(&self, response: &mut Response<Full<Bytes>>) {
        let headers = response.headers_mut();
        headers.insert(VARY, HeaderValue::from_static("Origin"));
        if let Some(origin) = self.0 {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("Retry-After"));
        }
    }

    /// Returns the response to a preflight request.
    pub(super) fn preflight(&self, methods: &'static str) -> Result<Response<Full<Bytes>>, Refusal> {
        if self.0.is_none() {
            return Err(Refusal::of_preflight());
        }
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::NO_CONTENT;
        self.allow(&mut response);
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(methods));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("authorization, content-type"));
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
        Ok(response)
    }
}
