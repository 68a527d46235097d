//! Credentials over HTTP, for applications with an API key. docs/credentials.md describes the requests and responses.

mod cors;
pub(super) mod draining;
mod limits;
mod outcome;
mod refusal;
mod request;

use std::cell::RefCell;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;

use super::access::bearer;
use super::log_limit::LogLimit;
use super::{Api, Published};
use crate::auth::KeyHash;
use crate::auth::time_limited::{self, Credential};
use crate::clock;
use crate::config::HttpKey;
use crate::control::fleet::with_rng;
use crate::fleet::choose;
use crate::http::{Client, response};
use crate::privacy::Privacy;
use cors::Cors;
use limits::Limits;
use outcome::{Counts, Outcome};
use refusal::{NO_ADDRESS, NO_KEYS, NO_SECRET, Refusal};
use request::{Parameters, Wish};

/// The lifetime of a credential if the request gives none, in seconds: that of draft-uberti-behave-turn-rest-00 §2.2.
const DEFAULT_TTL: u64 = 86_400;
/// RFC 8489 §14.3: fewer than 509 bytes.
const MAX_USERNAME: usize = 508;

/// The form of a request and its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form<'p> {
    /// `/v1/ice-servers`: an `RTCConfiguration`.
    IceServers,
    /// `/v1/turn/keys/NAME/credentials/generate-ice-servers`, as of Cloudflare: the same with a STUN server.
    CloudflareList(&'p str),
    /// `/v1/turn/keys/NAME/credentials/generate`, as of Cloudflare: one `RTCIceServer`.
    CloudflareOne(&'p str),
    /// `/turn` of draft-uberti-behave-turn-rest-00.
    TurnRest,
}

impl<'p> Form<'p> {
    /// Returns the form of the requests at a path, if it is one for credentials.
    pub(super) fn of(path: &'p str) -> Option<Self> {
        if let Some(rest) = path.strip_prefix("/v1/turn/keys/") {
            return match rest.split_once('/')? {
                (name, "credentials/generate-ice-servers") => Some(Self::CloudflareList(name)),
                (name, "credentials/generate") => Some(Self::CloudflareOne(name)),
                _ => None,
            };
        }
        match path {
            "/v1/ice-servers" => Some(Self::IceServers),
            "/turn" => Some(Self::TurnRest),
            _ => None,
        }
    }

    /// Returns the supported methods.
    pub(super) fn methods(self) -> &'static str {
        match self {
            Self::TurnRest => "GET, POST, OPTIONS",
            _ => "POST, OPTIONS",
        }
    }

    /// Returns the name of the key in the path.
    fn key_name(self) -> Option<&'p str> {
        match self {
            Self::CloudflareList(name) | Self::CloudflareOne(name) => Some(name),
            Self::IceServers | Self::TurnRest => None,
        }
    }

    fn response(self, credential: &Credential, urls: &[String], ttl: u64) -> Response<Full<Bytes>> {
        let (username, password) = (&credential.username, credential.password.as_str());
        match self {
            Self::IceServers => {
                let body = format!("{}\n", credential.ice_servers(urls));
                response::with(StatusCode::CREATED, "application/json", body)
            }
            Self::CloudflareList(_) => {
                let stun = stun_urls(urls);
                let turn = json!({ "urls": urls, "username": username, "credential": password });
                let servers = if stun.is_empty() { json!([turn]) } else { json!([{ "urls": stun }, turn]) };
                response::json(StatusCode::CREATED, &json!({ "iceServers": servers }))
            }
            Self::CloudflareOne(_) => {
                let urls: Vec<String> = stun_urls(urls).into_iter().chain(urls.iter().cloned()).collect();
                let server = json!({ "urls": urls, "username": username, "credential": password });
                response::json(StatusCode::CREATED, &json!({ "iceServers": server }))
            }
            Self::TurnRest => {
                let body = json!({ "username": username, "password": password, "ttl": ttl, "uris": urls });
                response::json(StatusCode::OK, &body)
            }
        }
    }
}

/// Returns the STUN URLs (RFC 7064) of the UDP listeners among TURN URLs.
fn stun_urls(urls: &[String]) -> Vec<String> {
    let udp = urls.iter().filter_map(|url| url.strip_prefix("turn:")?.strip_suffix("?transport=udp"));
    udp.map(|host| format!("stun:{host}")).collect()
}

/// The counts and limits of the requests for credentials.
#[derive(Debug, Default)]
pub(super) struct State {
    counts: Counts,
    limits: RefCell<Limits>,
    log_limit: RefCell<LogLimit>,
}

impl State {
    /// Returns the number of requests with each outcome: a label and the count.
    pub(super) fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counts.iter()
    }
}

/// A credential that has been minted, and for which key.
struct Issued {
    credential: Credential,
    urls: Vec<String>,
    ttl: u64,
    key: String,
}

impl Api {
    /// Returns the response to a request that is refused before its body is read. A preflight request gets its response
    /// here, too, because it has no body. The key of draft-uberti-behave-turn-rest-00 may be in the body.
    pub(super) fn refuse_credentials<B>(
        &self,
        form: Form<'_>,
        methods: &'static str,
        client: &Client,
        request: &Request<B>,
    ) -> Option<Response<Full<Bytes>>> {
        let published = self.published.borrow();
        if published.keys.is_empty() {
            let refusal = Refusal::new(Outcome::NotConfigured, NO_KEYS).for_client("there is no such resource");
            return Some(self.conclude(form, &published, client, request, Err(refusal)));
        }
        let cors = Cors::new(request, &published.keys);
        if *request.method() == Method::OPTIONS {
            let response = cors.preflight(methods);
            return Some(
                response.unwrap_or_else(|refusal| self.conclude(form, &published, client, request, Err(refusal))),
            );
        }
        if let Some(mut refusal) = response::refuse_method(request.method(), methods) {
            cors.allow(&mut refusal);
            return Some(refusal);
        }
        if form == Form::TurnRest {
            return None;
        }
        let refusal = self.key(form, &published.keys, client, bearer(request)).err()?;
        Some(self.conclude(form, &published, client, request, Err(refusal)))
    }

    /// Lets the page that sends a request read a response that is not made here.
    pub(super) fn allow_page<B>(&self, request: &Request<B>, response: &mut Response<Full<Bytes>>) {
        Cors::new(request, &self.published.borrow().keys).allow(response);
    }

    /// Responds to a request for credentials that is not refused.
    pub(super) fn credentials(
        &self,
        form: Form<'_>,
        client: &Client,
        request: &Request<Bytes>,
    ) -> Response<Full<Bytes>> {
        let published = self.published.borrow();
        let result = self.issue(form, &published, client, request);
        self.conclude(form, &published, client, request, result)
    }

    /// Counts and logs the outcome of a request, and returns the response.
    fn conclude<B>(
        &self,
        form: Form<'_>,
        published: &Published,
        client: &Client,
        request: &Request<B>,
        result: Result<Issued, Refusal>,
    ) -> Response<Full<Bytes>> {
        self.record(client, &published.snapshot.privacy, &result);
        let mut response = match result {
            Ok(Issued { credential, urls, ttl, .. }) => form.response(&credential, &urls, ttl),
            Err(refusal) => refusal.response(),
        };
        Cors::new(request, &published.keys).allow(&mut response);
        response
    }

    fn issue(
        &self,
        form: Form<'_>,
        published: &Published,
        client: &Client,
        request: &Request<Bytes>,
    ) -> Result<Issued, Refusal> {
        let parameters = match form {
            Form::TurnRest => Parameters::of(request),
            _ => Parameters::default(),
        };
        let given = parameters.key().or_else(|| bearer(request));
        let key = self.key(form, &published.keys, client, given)?;
        let with_name = |refusal: Refusal| refusal.with_key(key);
        self.check(key, request).map_err(with_name)?;
        let wish = match form {
            Form::TurnRest => Wish::of_parameters(&parameters),
            Form::IceServers => Wish::of_body(request.body()),
            Form::CloudflareList(_) | Form::CloudflareOne(_) => Wish::of_cloudflare(request.body()),
        };
        let urls = |wish: &Wish| self.urls(wish, client, published);
        wish.and_then(|wish| mint(key, &wish, published, urls)).map_err(with_name)
    }

    /// Returns the URLs for a credential: of nodes of the fleet near the client, or else of this server.
    fn urls(&self, wish: &Wish, client: &Client, published: &Published) -> Vec<String> {
        let view = Arc::clone(&self.inputs.fleet.view.borrow());
        let Some(settings) = &view.settings else { return published.urls.clone() };
        // All clients of a proxy on this machine have one source.
        let address = wish.client.or_else(|| client.ip().filter(|ip| !ip.is_loopback()));
        let found = address.and_then(|address| settings.fleet.regions.region(address));
        let regions: Vec<&str> =
            wish.region.as_deref().or(found).into_iter().chain([&*settings.fleet.region]).collect();
        let mut nodes = view.nodes();
        let count = settings.fleet.nodes_per_credential.into();
        let chosen = with_rng(|rng| choose(&mut nodes, &regions, count, self.now(), rng));
        let urls: Vec<String> = chosen.into_iter().flat_map(|node| &node.urls).cloned().collect();
        if urls.is_empty() { published.urls.clone() } else { urls }
    }

    /// Returns the key of a request, or why there is none. The limit of a source does not apply to valid keys: other
    /// clients, for example of the same proxy, must not be able to make one useless.
    fn key<'k>(
        &self,
        form: Form<'_>,
        keys: &'k [HttpKey],
        client: &Client,
        given: Option<&[u8]>,
    ) -> Result<&'k HttpKey, Refusal> {
        let key = given.and_then(|given| {
            let hash = KeyHash::of(given);
            keys.iter().find(|key| key.hash == hash)
        });
        let key = key.filter(|key| form.key_name().is_none_or(|name| name == key.name));
        key.ok_or_else(|| {
            if self.has_failed_often(client) { Refusal::of_source() } else { Refusal::without_key(form, given) }
        })
    }

    /// Counts a request without a valid key. Returns whether there were too many of this client.
    pub(super) fn has_failed_often(&self, client: &Client) -> bool {
        // All clients of a proxy on this machine have one source.
        let Some(source) = client.ip().filter(|ip| !ip.is_loopback()) else { return false };
        let (mut limits, now) = (self.credentials.limits.borrow_mut(), self.now());
        let is_exhausted = limits.is_exhausted(source, now);
        if !is_exhausted {
            limits.failed(source, now);
        }
        is_exhausted
    }

    /// Checks the origin and the rate of a request with a valid key.
    fn check(&self, key: &HttpKey, request: &Request<Bytes>) -> Result<(), Refusal> {
        if let Some(origin) = cors::origin(request).filter(|origin| !key.origins.iter().any(|own| own == origin)) {
            return Err(Refusal::of_origin(origin));
        }
        if !self.credentials.limits.borrow_mut().admit(&key.name, key.requests_per_second, self.now()) {
            return Err(Refusal::of_rate(key));
        }
        Ok(())
    }

    /// Counts and logs the outcome of a request.
    fn record(&self, client: &Client, privacy: &Privacy, result: &Result<Issued, Refusal>) {
        match result {
            Ok(Issued { credential, ttl, key, .. }) => {
                self.credentials.counts.add(Outcome::Issued);
                let user = credential.username.split_once(':').map(|(_, user)| user);
                tracing::debug!(
                    event = "credential-issued",
                    client = client.logged(privacy),
                    key,
                    user = user.and_then(|user| privacy.user(user)).as_deref(),
                    lifetime = *ttl,
                    "credential issued"
                );
            }
            Err(refusal) => {
                self.credentials.counts.add(refusal.outcome);
                let Some(count) = self.credentials.log_limit.borrow_mut().may_log(self.now()) else { return };
                tracing::warn!(
                    event = "credential-refused",
                    client = client.logged(privacy),
                    key = refusal.key.as_deref(),
                    reason = refusal.reason,
                    count,
                    "credential refused"
                );
            }
        }
    }
}

/// Mints the credential that a client with this key asks for.
fn mint(
    key: &HttpKey,
    wish: &Wish,
    published: &Published,
    urls: impl FnOnce(&Wish) -> Vec<String>,
) -> Result<Issued, Refusal> {
    let longest = key.ttl.as_secs();
    let ttl = wish.ttl.unwrap_or(DEFAULT_TTL.min(longest));
    if ttl == 0 || ttl > longest {
        return Err(Refusal::of_ttl(longest));
    }
    let user = wish.user.as_deref();
    if !user.unwrap_or_default().starts_with(&key.user_prefix) {
        return Err(Refusal::of_user(key));
    }
    let urls = urls(wish);
    if urls.is_empty() {
        return Err(Refusal::new(Outcome::Unavailable, NO_ADDRESS));
    }
    let secret = published.secret.as_ref().ok_or_else(|| Refusal::new(Outcome::Unavailable, NO_SECRET))?;
    let credential = time_limited::mint(secret, user, clock::unix_seconds().saturating_add(ttl));
    if credential.username.len() > MAX_USERNAME {
        return Err(Refusal::of_username(credential.username.len(), MAX_USERNAME));
    }
    Ok(Issued { credential, urls, ttl, key: key.name.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_determines_the_form() {
        for (path, form) in [
            ("/v1/ice-servers", Some(Form::IceServers)),
            ("/turn", Some(Form::TurnRest)),
            ("/v1/turn/keys/app/credentials/generate-ice-servers", Some(Form::CloudflareList("app"))),
            ("/v1/turn/keys/app/credentials/generate", Some(Form::CloudflareOne("app"))),
            ("/v1/turn/keys/app/credentials/revoke", None),
            ("/v1/turn/keys/app", None),
            ("/v1/ice-servers/", None),
        ] {
            assert_eq!(Form::of(path), form, "{path}");
        }
    }

    #[test]
    fn stun_urls_are_those_of_the_udp_listeners() {
        let urls = [
            "turn:a:1?transport=udp",
            "turn:[::1]:2?transport=udp",
            "turn:a:1?transport=tcp",
            "turns:a:3?transport=tcp",
        ];
        assert_eq!(stun_urls(&urls.map(str::to_owned)), ["stun:a:1", "stun:[::1]:2"]);
    }
}
