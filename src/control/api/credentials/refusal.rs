//! Why a request for credentials is refused.
//!
//! The log gets a fixed text. What the request contains is quoted only in the response, because it may be the name of a
//! user or an address, and as long as the client likes. A client without a valid key learns neither the program nor its
//! settings.

use std::borrow::Cow;

use http_body_util::Full;
use hyper::Response;
use hyper::body::Bytes;
use hyper::header::{HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};

use super::Form;
use super::outcome::Outcome;
use crate::config::HttpKey;
use crate::http::response;

// The literals repeat names of `setting`; a test compares them.
pub(super) const NO_KEYS: &str =
    "no key is configured: set http.keys or http.keys-file; `turn-credential key` makes one";
pub(super) const NO_SECRET: &str = "the server has no secret for credentials: set auth.secrets";
pub(super) const NO_ADDRESS: &str =
    "the server has no address for clients at present: its log says why; hostname may be missing";

/// The characters of a request that a response quotes.
const MAX_QUOTED: usize = 80;

/// What a request is refused for.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) outcome: Outcome,
    /// The reason for the log.
    pub(super) reason: &'static str,
    /// The reason for the client.
    pub(super) message: Cow<'static, str>,
    /// The name of the key, if the request has a valid one.
    pub(super) key: Option<String>,
}

impl Refusal {
    /// Returns a refusal with one reason for the log and for the client.
    pub(super) fn new(outcome: Outcome, reason: &'static str) -> Self {
        Self { outcome, reason, message: Cow::Borrowed(reason), key: None }
    }

    /// Sets the reason for the client.
    pub(super) fn for_client(self, message: impl Into<Cow<'static, str>>) -> Self {
        Self { message: message.into(), ..self }
    }

    /// Names the key of the request.
    pub(super) fn with_key(self, key: &HttpKey) -> Self {
        Self { key: Some(key.name.clone()), ..self }
    }

    pub(super) fn bad_request(reason: &'static str) -> Self {
        Self::new(Outcome::BadRequest, reason)
    }

    /// Returns the refusal of a request without a valid key.
    pub(super) fn without_key(form: Form<'_>, given: Option<&[u8]>) -> Self {
        let (reason, message) = match (given, form) {
            (None, Form::TurnRest) => ("the request has no key", "there is no key: send it as the parameter `key`"),
            (None, _) => {
                ("the request has no key", "there is no key: send it in the header `Authorization: Bearer KEY`")
            }
            (Some(_), Form::CloudflareList(_) | Form::CloudflareOne(_)) => (
                "the key is unknown (its SHA-256 is in no key of the configuration), or the path does not contain the \
                 name of the key",
                "the key is not valid for this path",
            ),
            (Some(_), _) => {
                ("the key is unknown: its SHA-256 is in no key of the configuration", "the key is not valid")
            }
        };
        Self::new(Outcome::UnknownKey, reason).for_client(message)
    }

    pub(super) fn of_source() -> Self {
        Self::new(Outcome::SourceLimited, "too many requests of this source had no valid key")
            .for_client("too many requests of this source had no valid key: correct the key, then try again")
    }

    pub(super) fn of_origin(origin: &str) -> Self {
        let origin = quoted(origin);
        Self::new(Outcome::OriginDenied, "the origin of the page is not in the `origins` of the key")
            .for_client(format!("pages of {origin} may not use this key: add it to the `origins` of the key"))
    }

    pub(super) fn of_preflight() -> Self {
        Self::new(Outcome::OriginDenied, "no key has the origin of the page in its `origins` (preflight request)")
            .for_client("pages of this origin are not allowed")
    }

    pub(super) fn of_rate(key: &HttpKey) -> Self {
        let most = key.requests_per_second;
        Self::new(Outcome::KeyLimited, "the key has reached its `requests-per-second`")
            .for_client(format!("the key has reached its limit (`requests-per-second`, {most}): try again later"))
    }

    pub(super) fn of_ttl(longest: u64) -> Self {
        Self::bad_request("the `ttl` of the request is 0 or longer than the `ttl` of the key")
            .for_client(format!("`ttl` must be between 1 and {longest} seconds, the `ttl` of the key"))
    }

    pub(super) fn of_user(key: &HttpKey) -> Self {
        let prefix = &key.user_prefix;
        Self::new(Outcome::UserDenied, "the name of the user does not begin with the `user-prefix` of the key")
            .for_client(format!(
                "this key needs a user whose name begins with {prefix:?}, the `user-prefix` of the key"
            ))
    }

    pub(super) fn of_username(length: usize, most: usize) -> Self {
        Self::bad_request("the username with its expiry is too long")
            .for_client(format!("the username with its expiry has {length} bytes; the maximum is {most}"))
    }

    pub(super) fn response(&self) -> Response<Full<Bytes>> {
        let mut response = response::error(self.outcome.status(), &self.message);
        let headers = response.headers_mut();
        match self.outcome {
            Outcome::UnknownKey => _ = headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
            // Every limit is at least one request per second.
            Outcome::KeyLimited | Outcome::SourceLimited => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}

/// Quotes a part of a request for a response, truncated if it is long.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setting::{AUTH_SECRETS, HOSTNAME, HTTP_KEYS, HTTP_KEYS_FILE};

    #[test]
    fn the_reasons_name_the_settings() {
        for (reason, names) in
            [(NO_KEYS, &[HTTP_KEYS, HTTP_KEYS_FILE][..]), (NO_SECRET, &[AUTH_SECRETS]), (NO_ADDRESS, &[HOSTNAME])]
        {
            assert!(names.iter().all(|name| reason.contains(name)), "{reason}");
        }
    }

    #[test]
    fn a_long_part_of_a_request_is_truncated() {
        assert_eq!(quoted("a\"b"), r#""a\"b""#);
        assert_eq!(quoted(&"ü".repeat(80)), format!("\"{}\"", "ü".repeat(80)));
        assert_eq!(quoted(&"ü".repeat(60_000)), format!("\"{}\"…", "ü".repeat(80)));
    }
}
