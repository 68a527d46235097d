//! The relays that drain, for applications that have given out credentials for them (docs/credentials.md).

use std::collections::BTreeSet;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Response, StatusCode};
use serde_json::json;

use super::cors::Cors;
use super::outcome::Outcome;
use super::{Api, Form, Published, bearer};
use crate::http::{Client, response};

/// The path.
pub(in crate::control::api) const PATH: &str = "/v1/ice-servers/draining";

/// The supported methods.
pub(in crate::control::api) const METHODS: &str = "GET, OPTIONS";

impl Api {
    /// Responds to a request for the URLs of the relays that drain. It needs a key, as one for credentials does.
    pub(in crate::control::api) fn draining(&self, client: &Client, request: &Request<Bytes>) -> Response<Full<Bytes>> {
        let published = self.published.borrow();
        let form = Form::IceServers;
        let checked = self
            .key(form, &published.keys, client, bearer(request))
            .and_then(|key| self.check(key, request).map_err(|refusal| refusal.with_key(key)));
        if let Err(refusal) = checked {
            return self.conclude(form, &published, client, request, Err(refusal));
        }
        self.credentials.counts.add(Outcome::Draining);
        let mut response = response::json(StatusCode::OK, &json!({ "urls": self.draining_urls(&published) }));
        Cors::new(request, &published.keys).allow(&mut response);
        response
    }

    /// Returns the URLs of this server if it drains, and those of the nodes of the fleet that do.
    fn draining_urls(&self, published: &Published) -> BTreeSet<String> {
        let view = Arc::clone(&self.inputs.fleet.view.borrow());
        let nodes = view.nodes();
        let draining = nodes.live(self.now()).filter(|node| node.draining);
        let mut urls: BTreeSet<String> = draining.flat_map(|node| &node.urls).cloned().collect();
        if self.ledger.is_draining() {
            let named = view.settings.as_ref().map(|settings| &settings.fleet.urls).filter(|urls| !urls.is_empty());
            urls.extend(named.unwrap_or(&published.urls).iter().cloned());
        }
        urls
    }
}
