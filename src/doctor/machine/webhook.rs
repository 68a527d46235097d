//! The webhook: its spool, and what the running server says about its receiver.

use std::io;
use std::path::Path;

use serde_json::Value;

use super::orders::{ask, state_directory};
use crate::config::Config;
use crate::doctor::finding::Finding;
use crate::doctor::remote::Report;

/// Examines the webhook if `[webhook]` is set. `path` is the configuration file.
pub(super) fn examine(config: &Config, path: Option<&Path>, report: Report<'_>) {
    let Some(webhook) = &config.webhook else { return };
    if let Some(directory) = &config.state_directory {
        report(state_directory(directory, path));
    }
    let Some(socket) = config.control.socket.path() else { return };
    let finding = match ask(socket, "/v1/status") {
        Ok(status) => judge(status.get("webhook").unwrap_or(&Value::Null)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => return,
        Err(error) => Finding::warning(
            "webhook",
            format!("the running server cannot be asked about its receiver: {}: {error}", socket.display()),
            "use root or a member of the group of the control socket, for example with `sudo`",
        ),
    };
    report(finding.of(webhook.origin()));
}

/// Judges what the running server says.
fn judge(status: &Value) -> Finding {
    let number = |key: &str| status.get(key).and_then(Value::as_u64);
    let (Some(sent), Some(queued), Some(failures)) = (number("sent"), number("queued"), number("failures")) else {
        return Finding::warning(
            "webhook",
            "the running server uses an earlier configuration, without [webhook]",
            "reload it: systemctl reload turnserver",
        );
    };
    if failures > 0 {
        return Finding::warning(
            "webhook",
            format!("the last {failures} requests have failed, and {queued} events wait"),
            "the log (webhook-failed) has the reason; docs/webhook.md says how the receiver has to respond",
        );
    }
    Finding::ok("webhook", format!("{sent} events were sent since the start, and {queued} wait"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::doctor::finding::Status;

    #[test]
    fn a_receiver_that_takes_nothing_is_a_warning() {
        let of = |sent: u64, queued: u64, failures: u64| {
            judge(&json!({ "sent": sent, "queued": queued, "failures": failures })).status
        };
        assert_eq!([of(5, 0, 0), of(5, 3, 2)], [Status::Ok, Status::Warning]);
        assert_eq!(judge(&Value::Null).status, Status::Warning);
    }
}
