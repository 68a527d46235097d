//! Responses.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Response, StatusCode};
use serde_json::{Value, json};

/// Returns a response. What it says is true now and not later, so it is not cached.
pub(crate) fn with(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    with(status, "text/plain; charset=utf-8", body)
}

pub(crate) fn json(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    with(status, "application/json", format!("{value}\n"))
}

/// Returns an error response: a JSON object whose `error` says what is wrong and what to do.
pub(crate) fn error(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    json(status, &json!({ "error": message }))
}

/// Returns the response to a request whose method the path does not support. `allowed` has the supported ones, separated
/// by `, `.
pub(crate) fn refuse_method(method: &Method, allowed: &'static str) -> Option<Response<Full<Bytes>>> {
    if allowed.split(", ").any(|supported| supported == method.as_str()) {
        return None;
    }
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, &format!("use {allowed}"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    Some(response)
}
