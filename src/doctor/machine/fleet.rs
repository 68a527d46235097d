//! The fleet: what the running server says about its engine and the other nodes.

use std::io;

use serde_json::Value;

use super::orders::ask;
use crate::config::Config;
use crate::control::{FoundInFleet, check_fleet};
use crate::doctor::finding::Finding;

const CORRECT: &str = "start the engine, or correct `[fleet]`; calls and new allocations go on meanwhile";

/// Examines the fleet if `[fleet]` is set: what the running server says, or else whether the engine can be reached.
pub(super) fn examine(config: &Config) -> Option<Finding> {
    let fleet = config.fleet.as_ref()?;
    let asked = config.control.socket.path().map(|socket| (socket, ask(socket, "/v1/status")));
    let finding = match asked {
        Some((_, Ok(status))) => judge(status.get("fleet").unwrap_or(&Value::Null)),
        Some((socket, Err(error)))
            if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
        {
            Finding::warning(
                "fleet",
                format!("the running server cannot be asked about the other nodes: {}: {error}", socket.display()),
                "use root or a member of the group of the control socket, for example with `sudo`",
            )
        }
        _ => judge_engine(check_fleet(config)?),
    };
    let servers: Vec<String> = fleet.servers.iter().map(ToString::to_string).collect();
    Some(finding.of(servers.join(", ")))
}

/// Judges what a connection to the engine has shown.
fn judge_engine(FoundInFleet { is_up, wrong }: FoundInFleet) -> Finding {
    match (is_up, wrong) {
        (true, None) => Finding::ok("fleet", "the engine can be reached, and accepts the user of this node"),
        (true, Some(wrong)) => Finding::warning(
            "fleet",
            format!("the engine can be reached, but not each of its servers: {wrong}"),
            "start these servers, or correct `fleet.servers`",
        ),
        (false, wrong) => Finding::fault("fleet", unreachable(wrong.as_deref()), CORRECT),
    }
}

fn unreachable(why: Option<&str>) -> String {
    format!("the engine cannot be reached: {}", why.filter(|why| !why.is_empty()).unwrap_or("no response yet"))
}

/// Judges what the running server says.
fn judge(fleet: &Value) -> Finding {
    let is = |key: &str| fleet.get(key).and_then(Value::as_bool);
    let number = |key: &str| fleet.get(key).and_then(Value::as_u64).unwrap_or_default();
    let text = |key: &str| fleet.get(key).and_then(Value::as_str).unwrap_or_default();
    let (Some(is_connected), Some(is_member)) = (is("connected"), is("is_member")) else {
        return Finding::warning(
            "fleet",
            "the running server uses an earlier configuration, without [fleet]",
            "reload it: systemctl reload turnserver",
        );
    };
    if !is_connected {
        return Finding::fault("fleet", unreachable(Some(text("error"))), CORRECT);
    }
    if !is_member {
        return Finding::fault(
            "fleet",
            "the engine does not give back the heartbeats of this node",
            "the log (fleet-bucket-unusable, fleet-node-twice) has the reason: the permissions of its user, JetStream, or \
             another node with its name",
        );
    }
    let (node, nodes, waiting) = (text("node"), number("nodes"), number("events_queued"));
    Finding::ok("fleet", format!("this is {node}, live nodes: {nodes}, events that wait: {waiting}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::doctor::finding::Status;

    #[test]
    fn a_node_that_the_others_do_not_see_is_a_fault() {
        let of = |connected: bool, is_member: bool| {
            let fleet =
                json!({ "node": "a", "connected": connected, "is_member": is_member, "nodes": 3, "error": "x" });
            judge(&fleet).status
        };
        assert_eq!([of(true, true), of(true, false), of(false, true)], [Status::Ok, Status::Fault, Status::Fault]);
        assert_eq!(judge(&Value::Null).status, Status::Warning);
    }
}
