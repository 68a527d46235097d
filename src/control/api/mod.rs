//! The responses of the server over HTTP: on the control socket, and on `[http] listen`.

mod access;
mod all;
mod body;
mod certificates;
mod credentials;
mod fleet;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzzing;
mod health;
mod log_level;
mod log_limit;
mod metrics;
mod offload;
mod query;
mod refusal;
mod reload;
mod revoke;
mod sessions;
mod status;
mod steer;
mod test_page;

use std::cell::RefCell;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Response, StatusCode};
use tokio::sync::watch;

use super::acme;
use super::commands::Commands;
use super::fleet as nodes;
use super::offload::Offload;
use super::redis;
use super::start::WorkerControl;
use super::webhook;
use crate::auth::Secret;
use crate::clock::Clock;
use crate::config::{HttpKey, LogLevel};
use crate::front;
use crate::http::{Client, Handler, PeerCredentials, response};
use crate::net::tls::{Certificate, KeyType};
use crate::privacy::Privacy;
use crate::turn::{Instant, Ledger, Operator};
use crate::worker::Totals;
pub(super) use access::Access;
use credentials::{Form, draining};
use health::Health;
use log_limit::LogLimit;
pub(super) use reload::Reload;
use steer::Resource;
use test_page::Page;

/// What control publishes for the HTTP server.
#[derive(Clone, Debug)]
pub(super) struct Published {
    /// The configuration that the workers read.
    pub(super) snapshot: Arc<crate::worker::Snapshot>,
    /// The certificates in use, the default one first.
    pub(super) certificates: Arc<[PublishedCertificate]>,
    pub(super) log_level: LogLevel,
    /// When the configuration was last read, and the result.
    pub(super) reload: Reload,
    /// The secret for new credentials; `None` if there are only static users.
    pub(super) secret: Option<Secret>,
    /// The secret of the credentials of test links.
    pub(super) test_links: Secret,
    /// The URLs of the HTTP listeners, or the one that the configuration names.
    pub(super) pages: Vec<String>,
    /// The TURN URLs of the server. None if it has no address for clients.
    pub(super) urls: Vec<String>,
    /// The keys with which applications get credentials.
    pub(super) keys: Vec<HttpKey>,
    /// Who may read metrics and health.
    pub(super) access: Access,
}

/// A certificate in use.
#[derive(Debug)]
pub(super) struct PublishedCertificate {
    pub(super) file: PathBuf,
    pub(super) certificate: Certificate,
    pub(super) key_type: KeyType,
    /// Whether clients get it that name no server or an unknown one.
    pub(super) is_default: bool,
}

/// The state of the server, as far as the HTTP server reads it.
#[derive(Debug)]
pub(super) struct Inputs {
    pub(super) acme: watch::Receiver<acme::Published>,
    /// What the thread for Redis counts.
    pub(super) redis: Arc<redis::Statistics>,
    /// What the sink of the status of allocations counts.
    pub(super) status: Arc<redis::status::Statistics>,
    pub(super) workers: Vec<WorkerControl>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) published: watch::Receiver<Published>,
    pub(super) clock: Clock,
    /// When the server started, in seconds since the Unix epoch.
    pub(super) started: u64,
    /// To the thread of control.
    pub(super) commands: Commands,
    pub(super) offload: Arc<Offload>,
    /// What the fronts count.
    pub(super) front: Arc<front::Statistics>,
    /// To the thread of the fleet.
    pub(super) fleet: nodes::Handle,
    /// What the webhook counts.
    pub(super) webhook: Arc<webhook::Statistics>,
}

/// Responds to requests.
#[derive(Debug)]
pub(super) struct Api {
    inputs: Inputs,
    credentials: credentials::State,
    test_page: test_page::State,
    denials: RefCell<LogLimit>,
    health: Health,
}

impl Api {
    /// Must be called within a `LocalSet`.
    pub(super) fn new(inputs: Inputs) -> Self {
        let health = Health::watch(&inputs.workers);
        Self {
            inputs,
            credentials: credentials::State::default(),
            test_page: test_page::State::default(),
            denials: RefCell::default(),
            health,
        }
    }

    fn now(&self) -> Instant {
        Instant::from_elapsed(self.clock.elapsed())
    }
}

impl Deref for Api {
    type Target = Inputs;

    fn deref(&self) -> &Inputs {
        &self.inputs
    }
}

/// What a path names for a client.
#[derive(Clone, Copy, Debug)]
enum Route<'p> {
    Health,
    Readiness,
    Metrics,
    /// What only the operator may see and change.
    Steer(Resource<'p>, Operator),
    Credentials(Form<'p>),
    /// The relays that drain, for applications with credentials.
    Draining,
    Test(Page),
    /// The token of a challenge (RFC 8555 §8.3).
    Challenge(&'p str),
}

/// The path of a challenge, before its token.
const CHALLENGE: &str = "/.well-known/acme-challenge/";

impl<'p> Route<'p> {
    fn of(client: &Client, path: &'p str) -> Option<Self> {
        match (path, client) {
            ("/healthz", _) => Some(Self::Health),
            ("/readyz", _) => Some(Self::Readiness),
            ("/metrics", _) => Some(Self::Metrics),
            (_, Client::Process(PeerCredentials { process, user })) => {
                Some(Self::Steer(Resource::at(path)?, Operator { process: *process, user: Some(*user) }))
            }
            // What an order of the fleet may become. Such a request makes no further order.
            (_, Client::Fleet) => match Resource::at(path)? {
                Resource::Fleet | Resource::FleetOrders => None,
                resource => Some(Self::Steer(resource, Operator::FLEET)),
            },
            (_, Client::Address(_)) if path.starts_with(CHALLENGE) => {
                Some(Self::Challenge(path.strip_prefix(CHALLENGE)?))
            }
            (draining::PATH, Client::Address(_)) => Some(Self::Draining),
            (_, Client::Address(_)) => Form::of(path).map(Self::Credentials).or_else(|| Page::of(path).map(Self::Test)),
        }
    }
}

fn not_found() -> Response<Full<Bytes>> {
    response::error(StatusCode::NOT_FOUND, "there is no such resource")
}

impl Handler for Api {
    fn privacy(&self) -> Arc<Privacy> {
        Arc::clone(&self.published.borrow().snapshot.privacy)
    }

    fn refuse<B>(&self, client: &Client, request: &Request<B>) -> Option<Response<Full<Bytes>>> {
        let Some(route) = Route::of(client, request.uri().path()) else { return Some(not_found()) };
        match route {
            Route::Health | Route::Readiness | Route::Metrics => {
                const METHODS: &str = "GET, HEAD";
                response::refuse_method(request.method(), METHODS).or_else(|| self.deny(client, request))
            }
            Route::Challenge(_) => response::refuse_method(request.method(), "GET, HEAD"),
            Route::Steer(resource, _) => response::refuse_method(request.method(), resource.methods()),
            Route::Credentials(form) => self.refuse_credentials(form, form.methods(), client, request),
            Route::Draining => self.refuse_credentials(Form::IceServers, draining::METHODS, client, request),
            Route::Test(page) => self.refuse_page(page, request),
        }
    }

    fn complete(&self, client: &Client, request: &Request<()>, response: &mut Response<Full<Bytes>>) {
        if let Some(Route::Credentials(_) | Route::Draining) = Route::of(client, request.uri().path()) {
            self.allow_page(request, response);
        }
    }

    async fn handle(&self, client: &Client, request: Request<Bytes>) -> Response<Full<Bytes>> {
        match Route::of(client, request.uri().path()) {
            None => not_found(),
            Some(Route::Challenge(token)) => self.challenge(token),
            Some(Route::Health) => self.health(),
            Some(Route::Readiness) => self.readiness(),
            Some(Route::Metrics) => self.metrics(&request).await,
            Some(Route::Steer(resource, operator)) => self.steer(resource, operator, &request).await,
            Some(Route::Credentials(form)) => self.credentials(form, client, &request),
            Some(Route::Draining) => self.draining(client, &request),
            Some(Route::Test(page)) => self.serve_page(page, client, &request),
        }
    }
}

impl Api {
    /// Returns the response to a request for metrics or health that is not allowed, and logs it.
    fn deny<B>(&self, client: &Client, request: &Request<B>) -> Option<Response<Full<Bytes>>> {
        let published = self.published.borrow();
        let denied = published.access.denies(client, request)?;
        if let Some(count) = self.denials.borrow_mut().may_log(self.now()) {
            let privacy = &published.snapshot.privacy;
            tracing::warn!(event = "http-denied", client = client.logged(privacy), count, "{}", access::DENIED);
        }
        Some(denied)
    }

    /// Returns the statistics of all workers together.
    fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.workers.iter().for_each(|worker| totals.add(&worker.statistics.read()));
        totals
    }

    fn is_stalled(&self, worker: usize) -> bool {
        self.health.stalled().contains(&worker)
    }

    /// Lets each worker publish its gauges, which otherwise are up to a second old. A worker that is busy is not waited
    /// for long, and a stalled one not at all.
    async fn publish_gauges(&self) {
        const MOST: std::time::Duration = std::time::Duration::from_millis(200);
        let workers = self.workers.iter().enumerate().filter(|(worker, _)| !self.is_stalled(*worker));
        // A worker that has ended publishes nothing.
        all::all(workers.map(|(_, control)| tokio::time::timeout(MOST, control.handle.publish()))).await;
    }
}
