//! `PUT /v1/log-level`.

use hyper::Request;
use hyper::body::Bytes;
use serde_json::Value;

use super::Api;
use super::body::Fields;
use super::refusal::Refusal;
use crate::config::LogLevel;
use crate::control::commands::Command;
use crate::turn::Operator;

impl Api {
    /// Changes the log level of this run.
    pub(super) async fn set_log_level(&self, request: &Request<Bytes>, operator: Operator) -> Result<Value, Refusal> {
        let mut fields = Fields::of(request)?;
        let name = fields.text("level")?.unwrap_or_default();
        fields.finish()?;
        let Some(level) = LogLevel::ALL.into_iter().find(|level| level.as_str() == name) else {
            let levels = LogLevel::ALL.map(LogLevel::as_str).join(", ");
            return Err(Refusal::bad_request(format!("level must be one of {levels}")));
        };
        self.command(Command::LogLevel(level), operator).await
    }
}
