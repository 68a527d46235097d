//! Who may read metrics and health.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Request, Response, StatusCode};
use ipnet::IpNet;
use subtle::ConstantTimeEq as _;

use crate::auth::Secret;
use crate::config::Http;
use crate::http::{Client, response};

/// What the log says about a denied request.
// The literal repeats names of `setting`; a test compares them.
pub(super) const DENIED: &str = "request for metrics or health denied: add the client to http.metrics-from, or let it send the token of \
     http.metrics-token-file";

/// The clients that may read metrics and health: those of `http.metrics-from`, those with the token, and, if there is no
/// token, those of this machine. With a token, a client of this machine may be a proxy whose clients must not read them.
#[derive(Clone, Debug)]
pub(in crate::control) struct Access {
    pub(in crate::control) from: Vec<IpNet>,
    pub(in crate::control) token: Option<Secret>,
}

impl Access {
    pub(in crate::control) fn new(config: &Http) -> Self {
        Self { from: config.metrics_from.clone(), token: config.metrics_token.clone() }
    }

    /// Returns the response to a request that is not allowed.
    pub(super) fn denies<B>(&self, client: &Client, request: &Request<B>) -> Option<Response<Full<Bytes>>> {
        let ip = client.ip()?;
        let is_local = self.token.is_none() && ip.is_loopback();
        if is_local || self.from.iter().any(|net| net.contains(&ip)) || self.has_token(request) {
            return None;
        }
        // The client learns neither the program nor its settings. The log has the advice.
        if self.token.is_none() {
            return Some(response::error(StatusCode::FORBIDDEN, "this client may not read this"));
        }
        let mut denied = response::error(StatusCode::UNAUTHORIZED, "there is no valid token");
        denied.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        Some(denied)
    }

    fn has_token<B>(&self, request: &Request<B>) -> bool {
        let Some(token) = &self.token else { return false };
        bearer(request).is_some_and(|sent| bool::from(sent.ct_eq(token.as_bytes())))
    }
}

/// Returns the token of a request (RFC 6750 §2.1).
pub(super) fn bearer<B>(request: &Request<B>) -> Option<&[u8]> {
    let value = request.headers().get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setting::{HTTP_METRICS_FROM, HTTP_METRICS_TOKEN_FILE};

    #[test]
    fn the_log_names_the_settings_that_give_access() {
        assert!(DENIED.contains(HTTP_METRICS_FROM) && DENIED.contains(HTTP_METRICS_TOKEN_FILE));
    }

    fn access(token: Option<&str>) -> Access {
        let token = token.map(|token| Secret::new(token).unwrap());
        Access { from: vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()], token }
    }

    fn status(access: &Access, from: &str, authorization: Option<&str>) -> StatusCode {
        let mut request = Request::new(());
        if let Some(value) = authorization {
            request.headers_mut().insert(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        let client = Client::Address(from.parse().unwrap());
        access.denies(&client, &request).map_or(StatusCode::OK, |denied| denied.status())
    }

    #[test]
    fn this_machine_and_the_configured_sources_may_read_metrics() {
        let access = access(None);
        for allowed in
            ["127.0.0.1:5", "[::1]:5", "[::ffff:127.0.0.1]:5", "10.1.2.3:5", "[::ffff:10.1.2.3]:5", "[2001:db8::5]:5"]
        {
            assert_eq!(status(&access, allowed, None), StatusCode::OK, "{allowed}");
        }
        for denied in ["192.0.2.1:5", "[2001:db9::5]:5"] {
            assert_eq!(
                status(&access, denied, Some("Bearer a token of some length")),
                StatusCode::FORBIDDEN,
                "{denied}"
            );
        }
    }

    #[test]
    fn with_a_token_this_machine_needs_it_unless_it_is_a_configured_source() {
        let mut access = access(Some("a-token-of-some-length"));
        for local in ["127.0.0.1:5", "127.3.2.1:5", "[::1]:5", "[::ffff:127.0.0.1]:5"] {
            assert_eq!(status(&access, local, None), StatusCode::UNAUTHORIZED, "{local}");
            assert_eq!(status(&access, local, Some("Bearer a-token-of-some-length")), StatusCode::OK, "{local}");
        }
        access.from.push("127.0.0.1/32".parse().unwrap());
        assert_eq!(status(&access, "127.0.0.1:5", None), StatusCode::OK);
        assert_eq!(status(&access, "[::1]:5", None), StatusCode::UNAUTHORIZED);
        let process = Client::Process(crate::http::PeerCredentials { process: None, user: 0 });
        assert!(access.denies(&process, &Request::new(())).is_none());
    }

    #[test]
    fn whoever_has_the_token_may_read_metrics() {
        let access = access(Some("a-token-of-some-length"));
        let status = |authorization| status(&access, "192.0.2.1:5", authorization);
        for right in ["Bearer a-token-of-some-length", "bearer  a-token-of-some-length "] {
            assert_eq!(status(Some(right)), StatusCode::OK, "{right}");
        }
        for wrong in [
            "Bearer a-token-of-some-lengt",
            "Bearer a-token-of-some-length2",
            "Basic a-token-of-some-length",
            "Bearer",
            "é",
        ] {
            assert_eq!(status(Some(wrong)), StatusCode::UNAUTHORIZED, "{wrong}");
        }
        assert_eq!(status(None), StatusCode::UNAUTHORIZED);
    }
}
