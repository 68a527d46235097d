//! `GET /v1/offload`.

use serde_json::Value;

use super::Api;

impl Api {
    /// Describes what the kernel relays, and why not the rest.
    pub(super) async fn offload(&self) -> Value {
        self.publish_gauges().await;
        self.offload.show(&self.totals().offload)
    }
}
