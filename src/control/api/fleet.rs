//! `/v1/fleet`: the nodes of the fleet, and orders for them.

use hyper::Request;
use hyper::body::Bytes;
use serde_json::Value;
use tokio::sync::oneshot;

use super::Api;
use super::refusal::Refusal;
use crate::control::fleet as nodes;

/// Why there is no fleet.
const NO_FLEET: &str = "this server is not part of a fleet: set `[fleet]`";

impl Api {
    /// Returns the nodes.
    pub(super) fn fleet(&self) -> Result<Value, Refusal> {
        let view = self.inputs.fleet.view.borrow();
        if view.settings.is_none() {
            return Err(Refusal::conflict(NO_FLEET));
        }
        Ok(view.to_json(self.now()))
    }

    /// Sends an order to nodes, or changes what they have in common.
    pub(super) async fn order_fleet(&self, request: &Request<Bytes>) -> Result<Value, Refusal> {
        if self.inputs.fleet.view.borrow().settings.is_none() {
            return Err(Refusal::conflict(NO_FLEET));
        }
        let order: Value = serde_json::from_slice(request.body())
            .map_err(|error| Refusal::bad_request(format!("the body is no JSON: {error}")))?;
        let fields = order.as_object().ok_or_else(|| Refusal::bad_request("the body is no JSON object"))?;
        if let Some(other) = fields.keys().find(|key| !["order", "node", "with"].contains(&key.as_str())) {
            let other = crate::printable::shown(other);
            return Err(Refusal::bad_request(format!("unknown key {other}: there are order, node and with")));
        }
        let (response, result) = oneshot::channel();
        let sent = self.inputs.fleet.requests.send(nodes::Request { order, response }).await;
        let stopping = || Refusal::unavailable("the server is stopping".to_owned());
        sent.map_err(|_| stopping())?;
        result.await.map_err(|_| stopping())?.map_err(Refusal::conflict)
    }
}
