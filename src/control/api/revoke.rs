//! `POST /v1/revocations`: a credential no longer works.

use hyper::Request;
use hyper::body::Bytes;
use serde_json::Value;

use super::Api;
use super::body::Fields;
use super::refusal::Refusal;
use crate::auth::{HumanSeconds, time_limited};
use crate::clock;
use crate::control::commands::Command;
use crate::turn::Operator;

/// The longest value of USERNAME in bytes (RFC 8489 §14.3).
const LONGEST_USERNAME: usize = 763;

impl Api {
    /// Revokes a username. A time-limited one is revoked until neither it nor its allocations can be used, unless the
    /// request has a time.
    pub(super) async fn revoke(&self, request: &Request<Bytes>, operator: Operator) -> Result<Value, Refusal> {
        let mut fields = Fields::of(request)?;
        let (username, until) = (fields.text("username")?, fields.number("until")?);
        fields.finish()?;
        let Some(username) = username.filter(|name| !name.is_empty() && name.len() <= LONGEST_USERNAME) else {
            return Err(Refusal::bad_request(format!("username must have 1 to {LONGEST_USERNAME} bytes")));
        };
        let until = match until {
            Some(until) => until,
            None => self.end_of_use(&username)?,
        };
        self.command(Command::Revoke { username, until }, operator).await
    }

    /// Returns when a credential and its allocations can no longer be used.
    fn end_of_use(&self, username: &str) -> Result<u64, Refusal> {
        let parsed = time_limited::check_username(username)
            .map_err(|error| Refusal::bad_request(format!("{error}. To revoke another username, say until when")))?;
        let end = parsed.expires.saturating_add(self.published.borrow().snapshot.core.expiry_grace);
        match time_limited::expired_for(end, clock::unix_seconds()) {
            None => Ok(end),
            Some(ago) => Err(Refusal::conflict(format!(
                "the credential expired {} ago, so there is nothing to revoke",
                HumanSeconds(ago + end - parsed.expires)
            ))),
        }
    }
}
