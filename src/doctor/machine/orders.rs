//! The certificate that the server orders: its state directory, and what the running server says about its orders.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::own_fault;
use crate::clock;
use crate::config::{Acme, Config};
use crate::control;
use crate::doctor::finding::Finding;
use crate::doctor::remote::Report;
use crate::net::tls::date;

/// The longest time for a response of the running server.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest response, in bytes.
const MAX_RESPONSE: u64 = 1 << 20;

/// Examines the orders if `[tls.acme]` is set. `path` is the configuration file.
pub(super) fn examine(config: &Config, path: Option<&Path>, report: Report<'_>) {
    let Some(acme) = config.tls.as_ref().and_then(|tls| tls.acme.as_ref()) else { return };
    report(state_directory(&acme.state_directory, path));
    if control::ordered_certificate_fits(acme) == Some(false) {
        report(
            Finding::warning(
                "certificate-order",
                "the certificate in the state directory is for other names, or from another directory, so the server \
                 orders another one",
                "reload the server if the configuration has changed since: systemctl reload turnserver",
            )
            .of(acme.files().certificate.display()),
        );
    }
    if let Some(finding) = running(config, acme) {
        report(finding);
    }
}

/// Examines a directory of the server's state. `path` is the configuration file.
pub(super) fn state_directory(directory: &Path, path: Option<&Path>) -> Finding {
    let ok = |what| Finding::ok("state-directory", what);
    let finding = match (control::may_write(directory, path), fs::metadata(directory)) {
        (Err(why), _) => own_fault("state-directory", why),
        (_, Ok(found)) if !found.is_dir() => {
            own_fault("state-directory", "it is not a directory: remove it".to_owned())
        }
        (Ok(true), Ok(_)) => ok("it exists, and the service may write to it"),
        (Ok(false), Ok(_)) => ok("it exists; whether the service may write to it was not examined"),
        (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            ok("it does not exist yet; the server creates it")
        }
        (_, Err(_)) => ok("this user cannot see it, so it was not examined"),
    };
    finding.of(directory.display())
}

/// Asks the running server. `None` if it does not run, which the listeners show.
fn running(config: &Config, acme: &Acme) -> Option<Finding> {
    let socket = config.control.socket.path()?;
    match ask(socket, "/v1/certificates") {
        Ok(response) => Some(judge(&response, acme, clock::unix_seconds())),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => None,
        Err(error) => Some(Finding::warning(
            "certificate-order",
            format!("the running server cannot be asked about its orders: {}: {error}", socket.display()),
            "use root or a member of the group of the control socket, for example with `sudo`",
        )),
    }
}

/// Requests a page of the control socket.
pub(super) fn ask(socket: &Path, page: &str) -> io::Result<Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // With HTTP/1.0, the response ends with the connection.
    stream.write_all(format!("GET {page} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())?;
    let mut response = String::new();
    stream.take(MAX_RESPONSE).read_to_string(&mut response)?;
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or_default();
    let is_ok = head.split(' ').nth(1) == Some("200");
    let body = if is_ok { body } else { "" };
    serde_json::from_str(body).map_err(|_| io::Error::other("it did not respond like this server"))
}

/// Judges what the running server says.
fn judge(response: &Value, acme: &Acme, now: u64) -> Finding {
    let status = response.get("acme").unwrap_or(&Value::Null);
    let text = |key: &str| status.get(key).and_then(Value::as_str).unwrap_or_default();
    let time = |key: &str| status.get(key).and_then(Value::as_u64);
    let domains = status.get("domains").and_then(Value::as_array).into_iter().flatten();
    if !domains.filter_map(Value::as_str).eq(acme.domains.iter()) || text("directory") != acme.directory {
        return Finding::warning(
            "certificate-order",
            "the running server uses an earlier configuration, with other names or another directory",
            "reload it: systemctl reload turnserver",
        );
    }
    let next = time("next_try").map_or_else(|| "at this moment".to_owned(), |at| format!("on {}", date(at)));
    let failures = status.get("failures").and_then(Value::as_u64).unwrap_or_default();
    if text("state") != "failed" && failures == 0 {
        return Finding::ok("certificate-order", format!("the running server orders the next certificate {next}"));
    }
    let failed = format!("the last order failed: {}. The server tries again {next}.", text("last_error"));
    let advice = "remove the cause, and reload the server; docs/troubleshooting.md explains the messages";
    match time("not_after").filter(|end| *end > now) {
        Some(end) => Finding::warning(
            "certificate-order",
            format!("{failed} The present certificate serves until {}", date(end)),
            advice,
        ),
        None => {
            Finding::fault("certificate-order", format!("{failed} Until then, it has no valid certificate"), advice)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::doctor::finding::Status;

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn the_words_of_the_running_server_are_judged() {
        let acme = Acme::of(&["a.example.org"]);
        let of = |change: Value| {
            let mut status = json!({
                "domains": ["a.example.org"], "directory": acme.directory, "state": "waiting",
                "not_after": NOW + 86_400, "next_try": NOW + 60, "last_error": null,
            });
            status.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            judge(&json!({ "acme": status }), &acme, NOW)
        };
        let waiting = of(json!({}));
        assert_eq!(waiting.status, Status::Ok);
        assert_eq!(waiting.what, format!("the running server orders the next certificate on {}", date(NOW + 60)));
        assert!(of(json!({ "state": "ordering", "next_try": null })).what.ends_with("at this moment"));
        let again = of(json!({ "state": "ordering", "next_try": null, "failures": 3, "last_error": "refused" }));
        assert_eq!(again.status, Status::Warning);
        let failed = of(json!({ "state": "failed", "last_error": "refused" }));
        assert_eq!(failed.status, Status::Warning);
        assert!(failed.what.starts_with("the last order failed: refused. The server tries again on "), "{failed:?}");
        for expired in [json!(NOW), Value::Null] {
            assert_eq!(of(json!({ "state": "failed", "not_after": expired })).status, Status::Fault);
        }
        for earlier in [json!({ "domains": [] }), json!({ "directory": "https://other.example.org/" })] {
            let finding = of(earlier);
            assert_eq!((finding.status, finding.what.contains("earlier configuration")), (Status::Warning, true));
        }
        assert_eq!(judge(&json!({ "certificates": [] }), &acme, NOW).status, Status::Warning);
    }
}
