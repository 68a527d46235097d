//! `POST /v1/revocations`: a credential no longer works, or works again.

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
    /// Revokes a username, or ends its revocation. A time-limited one is revoked until neither it nor its allocations can
    /// be used, unless the request has a time.
    pub(super) async fn revoke(&self, request: &Request<Bytes>, operator: Operator) -> Result<Value, Refusal> {
        let mut fields = Fields::of(request)?;
        let (username, until) = (fields.text("username")?, fields.number("until")?);
        let ends = fields.flag("end")?.unwrap_or_default();
        fields.finish()?;
        let Some(username) = username.filter(|name| !name.is_empty() && name.len() <= LONGEST_USERNAME) else {
            return Err(Refusal::bad_request(format!("username must have 1 to {LONGEST_USERNAME} bytes")));
        };
        let until = match (until, ends) {
            (None, true) => None,
            (Some(_), true) => return Err(Refusal::bad_request("a revocation that ends has no until")),
            (Some(until), false) => Some(check_until(until, clock::unix_seconds())?),
            (None, false) => Some(self.end_of_use(&username)?),
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

/// Checks the time until which a username is revoked.
fn check_until(until: u64, now: u64) -> Result<u64, Refusal> {
    if !time_limited::is_plausible_time(until) {
        return Err(Refusal::bad_request(format!(
            "until={until} is no time in seconds since the Unix epoch of the years 2001 to 5138; now is {now}"
        )));
    }
    match time_limited::expired_for(until, now) {
        None => Ok(until),
        Some(ago) => Err(Refusal::bad_request(format!(
            "until={until} was {} ago; to end a revocation, use `turnserver ctl revoke --end` or \"end\": true",
            HumanSeconds(ago)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_is_not_in_the_future_or_not_in_seconds_is_refused() {
        const NOW: u64 = 1_767_225_600;
        assert_eq!(check_until(NOW + 1, NOW).unwrap(), NOW + 1);
        assert_eq!(check_until(99_999_999_999, NOW).unwrap(), 99_999_999_999);
        for implausible in [0, 3_600, 999_999_999, 100_000_000_000, NOW * 1_000, u64::MAX] {
            let message = check_until(implausible, NOW).unwrap_err().message;
            assert!(message.starts_with(&format!("until={implausible} is no time in seconds")), "{message}");
        }
        for past in [NOW, NOW - 120] {
            assert!(check_until(past, NOW).unwrap_err().message.contains("ago; to end a revocation, use"));
        }
    }
}
