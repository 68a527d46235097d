//! The test page: a browser calls itself through the relay and shows how well that works. docs/test-page.md describes
//! it.
//!
//! `turnserver ctl test-link` makes a link that starts the page once. The token is in the fragment of the link, which
//! browsers do not put into the request line, so no log of a proxy has it. The credential of the page reaches only relayed
//! transport addresses of this server, relays a limited amount of data, and expires with the link.

mod links;
mod report;

use std::cell::RefCell;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use hyper::{Request, Response, StatusCode};
use serde_json::{Value, json};

use super::body::Fields;
use super::refusal::Refusal;
use super::{Api, not_found};
use crate::auth::{HumanSeconds, time_limited};
use crate::clock;
use crate::http::{Client, response};
use crate::turn::Operator;
use links::{Links, RESULTS_PER_LINK, TestResult, Unusable, random_text};

/// The lifetime of a link in seconds.
const LIFETIME: std::ops::RangeInclusive<u64> = 60..=86_400;
const DEFAULT_LIFETIME: u64 = 600;
/// What one test of one URL may relay, in both directions of all its allocations. It takes about 30 MB: 12 MB cross two
/// allocations, and a picture.
const BYTES_PER_TEST: u64 = 48 << 20;
/// The shortest key of a page, in bytes. The page makes it.
const SHORTEST_KEY: usize = 16;

/// The page needs nothing from outside, and no other page may show it in a frame.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'",
);
const PERMISSIONS_POLICY: HeaderName = HeaderName::from_static("permissions-policy");

/// What a path below `/test` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    Html,
    Style,
    Script,
    /// Starts the page of a link.
    Start,
    /// Tells a page what its link may still relay.
    Remaining,
    /// Takes the result of a test.
    Report,
}

impl Page {
    pub(super) fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/test" => Self::Html,
            "/test/page.css" => Self::Style,
            "/test/page.js" => Self::Script,
            "/test/start" => Self::Start,
            "/test/remaining" => Self::Remaining,
            "/test/report" => Self::Report,
            _ => return None,
        })
    }

    fn methods(self) -> &'static str {
        match self {
            Self::Html | Self::Style | Self::Script => "GET, HEAD",
            Self::Start | Self::Remaining | Self::Report => "POST",
        }
    }

    /// Returns the file of the page: its type and its content.
    fn file(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Html => Some(("text/html; charset=utf-8", include_str!("page.html"))),
            Self::Style => Some(("text/css; charset=utf-8", include_str!("page.css"))),
            Self::Script => Some(("text/javascript; charset=utf-8", include_str!("page.js"))),
            Self::Start | Self::Remaining | Self::Report => None,
        }
    }
}

/// The links and results of this run.
#[derive(Debug, Default)]
pub(super) struct State(RefCell<Links>);

impl Api {
    /// Returns the response to a request for the page that is refused before its body is read. Before the first link, a
    /// server has no page.
    pub(super) fn refuse_page<B>(&self, page: Page, request: &Request<B>) -> Option<Response<Full<Bytes>>> {
        if !self.test_page.0.borrow().were_made() {
            return Some(not_found());
        }
        response::refuse_method(request.method(), page.methods())
    }

    /// Responds to a request for the page that is not refused.
    pub(super) fn serve_page(&self, page: Page, client: &Client, request: &Request<Bytes>) -> Response<Full<Bytes>> {
        if let Some((content_type, content)) = page.file() {
            return file(content_type, content);
        }
        let result = match page {
            Page::Report => self.take_report(client, request),
            Page::Remaining => self.tell_remaining(client, request),
            _ => self.start_page(client, request),
        };
        match result {
            Ok(value) => response::json(StatusCode::OK, &value),
            Err(Refusal { status, message }) => response::error(status, &message),
        }
    }

    /// Starts the page of the link whose token is in the body.
    fn start_page(&self, client: &Client, request: &Request<Bytes>) -> Result<Value, Refusal> {
        let mut fields = Fields::of(request)?;
        let (token, key) = (fields.text("token")?.unwrap_or_default(), fields.text("key")?.unwrap_or_default());
        fields.finish()?;
        if key.len() < SHORTEST_KEY {
            return Err(Refusal::bad_request(format!("key must have at least {SHORTEST_KEY} bytes")));
        }
        let published = self.published.borrow();
        let urls = &published.urls;
        if urls.is_empty() {
            return Err(Refusal::unavailable("the server has no address for clients at present; try again later"));
        }
        let now = clock::unix_seconds();
        let is_revoked = |username: &str| published.snapshot.core.authenticator.is_revoked(username, now);
        let started = self.test_page.0.borrow_mut().start(token.as_bytes(), key.as_bytes(), now, &is_revoked);
        let usable = started.map_err(|why| self.refuse_link(why, client))?;
        if usable.is_first {
            let bytes = BYTES_PER_TEST * urls.len() as u64 * u64::from(RESULTS_PER_LINK);
            self.ledger.test_links.open(usable.link, bytes);
        }
        let user = usable.link.user(&usable.id);
        let credential = time_limited::mint(&published.test_links, Some(&user), usable.expires);
        let privacy = &published.snapshot.privacy;
        // Logs only the first start.
        if usable.is_first {
            tracing::info!(
                event = "test-link-used",
                link = usable.id,
                client = client.logged(privacy),
                "a browser has opened a test link"
            );
        }
        Ok(json!({
            "urls": urls,
            "username": credential.username,
            "credential": credential.password.as_str(),
            "expires": usable.expires,
            "lifetime": usable.expires.saturating_sub(now),
            "tests": RESULTS_PER_LINK,
        }))
    }

    /// Responds with the bytes that the link of a page may still relay, or why it may relay none.
    fn tell_remaining(&self, client: &Client, request: &Request<Bytes>) -> Result<Value, Refusal> {
        let mut fields = Fields::of(request)?;
        let key = fields.text("key")?.unwrap_or_default();
        fields.finish()?;
        let (now, published) = (clock::unix_seconds(), self.published.borrow());
        let is_revoked = |username: &str| published.snapshot.core.authenticator.is_revoked(username, now);
        let found = self.test_page.0.borrow_mut().of_page(key.as_bytes(), now, &is_revoked);
        let usable = found.map_err(|why| self.refuse_link(why, client))?;
        Ok(json!({ "bytes": self.ledger.test_links.left(usable.link) }))
    }

    /// Takes the result of a test.
    fn take_report(&self, client: &Client, request: &Request<Bytes>) -> Result<Value, Refusal> {
        let mut fields = Fields::of(request)?;
        let key = fields.text("key")?.unwrap_or_default();
        let report = report::checked(&fields.value("report")).map_err(Refusal::bad_request)?;
        fields.finish()?;
        let published = self.published.borrow();
        let privacy = &published.snapshot.privacy;
        let shown = client.logged(privacy).map(|client| client.to_string());
        let kept = self.test_page.0.borrow_mut().keep(key.as_bytes(), shown, &report, clock::unix_seconds());
        let usable = kept.map_err(|why| self.refuse_link(why, client))?;
        let ways = report.get("ways").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let ok = ways.iter().filter(|way| way.get("ok") == Some(&Value::Bool(true))).count();
        tracing::info!(
            event = "test-result",
            link = usable.id,
            client = client.logged(privacy),
            ways = ways.len(),
            ok,
            "a browser has tested the relay: {ok} of {} ways to the server work; see `turnserver ctl test-results`",
            ways.len()
        );
        Ok(json!({}))
    }

    /// Returns the refusal of a link, and counts an unknown one against the client.
    fn refuse_link(&self, why: Unusable, client: &Client) -> Refusal {
        const NEW: &str = "ask the operator for a new one (turnserver ctl test-link)";
        if why == Unusable::Unknown && self.has_failed_often(client) {
            return Refusal { status: StatusCode::TOO_MANY_REQUESTS, message: "too many wrong links; wait".to_owned() };
        }
        let (status, what) = match why {
            Unusable::Unknown => (StatusCode::NOT_FOUND, "there is no such test link"),
            Unusable::Expired => (StatusCode::GONE, "this test link has expired"),
            Unusable::Revoked => (StatusCode::GONE, "the operator has revoked this test link"),
            Unusable::Used => (StatusCode::GONE, "this test link has been used already"),
            Unusable::Exhausted => (StatusCode::TOO_MANY_REQUESTS, "this test link has sent all its results"),
        };
        Refusal { status, message: format!("{what}; {NEW}") }
    }

    /// Makes a test link.
    pub(super) fn make_test_link(&self, request: &Request<Bytes>, operator: Operator) -> Result<Value, Refusal> {
        let mut fields = Fields::of(request)?;
        let lifetime = fields.number("ttl")?.unwrap_or(DEFAULT_LIFETIME);
        fields.finish()?;
        if !LIFETIME.contains(&lifetime) {
            let (least, most) = (HumanSeconds(*LIFETIME.start()), HumanSeconds(*LIFETIME.end()));
            return Err(Refusal::bad_request(format!("ttl must be between {least} and {most}")));
        }
        let published = self.published.borrow();
        if published.pages.is_empty() {
            return Err(Refusal::conflict(
                "the test page has no URL: set `http.listen`, for example to [\"[::]:9641\"]. If it is set, clients have no \
                 name or address for it: set `hostname` or `http.url`",
            ));
        }
        let random = |error| Refusal::unavailable(format!("no random number: {error}"));
        let (token, id) = (random_text::<16>().map_err(random)?, random_text::<4>().map_err(random)?);
        let now = clock::unix_seconds();
        let expires = now + lifetime + links::LAST_START;
        let is_revoked = |username: &str| published.snapshot.core.authenticator.is_revoked(username, now);
        let made = self.test_page.0.borrow_mut().make(&id, token.as_bytes(), expires, now, &is_revoked);
        let link = made.ok_or_else(|| {
            Refusal::conflict(
                "there are as many test links as there can be at a time; wait until one has expired, or revoke one",
            )
        })?;
        // Nothing, until its page starts.
        self.ledger.test_links.open(link, 0);
        let Operator { process: pid, user: uid } = operator;
        tracing::info!(
            event = "test-link-made",
            link = id.as_str(),
            lifetime,
            uid,
            pid,
            "the operator has made a test link"
        );
        let urls: Vec<String> = published.pages.iter().map(|page| format!("{page}/test#{}", token.as_str())).collect();
        let username = format!("{expires}:{}", link.user(&id));
        Ok(json!({
            "link": id.as_str(), "urls": urls, "username": username, "expires": expires, "lifetime": lifetime,
        }))
    }

    /// Lists the results of tests, the oldest first.
    pub(super) fn test_results(&self) -> Value {
        let links = self.test_page.0.borrow();
        let result = |result: &TestResult| {
            let TestResult { link, received, client, report } = result;
            let report: Value = serde_json::from_str(report).unwrap_or_default();
            json!({ "link": link, "received": received, "client": client, "report": report })
        };
        json!({ "results": links.results().map(result).collect::<Vec<_>>() })
    }
}

/// Returns the response with a file of the page.
fn file(content_type: &'static str, content: &'static str) -> Response<Full<Bytes>> {
    let mut response = response::with(StatusCode::OK, content_type, content);
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, POLICY);
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(PERMISSIONS_POLICY, HeaderValue::from_static("camera=(), microphone=(), geolocation=()"));
    response
}
