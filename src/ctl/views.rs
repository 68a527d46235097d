//! The responses of the server as text.

use serde_json::Value;

use super::text::{Table, bit_rate, bytes, counted, duration, list, number, printable, text};

/// Returns the lines of `sessions`.
pub(crate) fn sessions(sessions: &[Value]) -> Vec<String> {
    let mut lines = detailed(sessions).lines();
    lines.push(counted(sessions.len() as u64, "session"));
    lines
}

/// Returns the sessions that are left while the server drains, of a response of `/v1/status`.
pub(crate) fn remaining(status: &Value) -> Vec<String> {
    let named = list(status, "remaining");
    if named.is_empty() {
        return Vec::new();
    }
    let mut lines = detailed(named).lines();
    let more = number(status, "allocations").saturating_sub(named.len() as u64);
    if more > 0 {
        lines.push(format!("and {}", counted(more, "younger session")));
    }
    lines
}

/// Returns the table of sessions with the numbers of their permissions and channels.
fn detailed(sessions: &[Value]) -> Table {
    session_table(sessions, &[">PERMISSIONS", ">CHANNELS"], |session| {
        ["permissions", "channels"].map(|field| number(session, field).to_string()).to_vec()
    })
}

/// Returns the table of sessions with further columns: their headers, and the cells of a session.
pub(crate) fn session_table(
    sessions: &[Value],
    headers: &[&'static str],
    cells: impl Fn(&Value) -> Vec<String>,
) -> Table {
    let common = ["SESSION", "USER", "CLIENT", "VIA", "RELAY", ">AGE", ">TO PEERS", ">TO CLIENT"];
    let mut table = Table::new(&[&common, headers].concat());
    for session in sessions {
        let common = vec![
            text(session, "id").to_owned(),
            text(session, "user").to_owned(),
            text(session, "client").to_owned(),
            text(session, "transport").to_owned(),
            relay(session),
            duration(number(session, "age")),
            bytes(number(session, "bytes_to_peers")),
            bytes(number(session, "bytes_to_client")),
        ];
        table.row([common, cells(session)].concat());
    }
    table
}

fn relay(session: &Value) -> String {
    list(session, "relay").iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
}

/// Returns the lines of `reload`.
pub(crate) fn reload(reload: &Value) -> Vec<String> {
    let (changes, is_trial) = (list(reload, "changes"), flag(reload, "dry_run"));
    let count = counted(changes.len() as u64, "change");
    let mut lines = vec![if is_trial {
        format!("the configuration has no errors; {count} since it was last read")
    } else {
        format!("the configuration is in use (generation {}); {count}", number(reload, "generation"))
    }];
    let mut table = Table::new(&["KEY", "FROM", "TO", ""]);
    for change in changes {
        let value = |field: &str| change.get(field).and_then(Value::as_str).unwrap_or("(hidden)").to_owned();
        let effect = if flag(change, "needs_restart") { "needs a restart" } else { "" };
        table.row(vec![text(change, "key").to_owned(), value("from"), value("to"), effect.to_owned()]);
    }
    if !changes.is_empty() {
        lines.extend(table.lines());
    }
    let warnings = list(reload, "warnings").iter().filter_map(Value::as_str);
    lines.extend(warnings.map(|warning| format!("warning: {}", printable(warning))));
    let revoked = [("permission", "revoked_permissions"), ("channel", "revoked_channels")];
    let revoked =
        revoked.map(|(noun, field)| (number(reload, field), noun)).into_iter().filter(|(count, _)| *count > 0);
    let revoked: Vec<String> = revoked.map(|(count, noun)| counted(count, noun)).collect();
    lines.extend(list(reload, "failed_listeners").iter().filter(|failed| flag(failed, "old")).map(|failed| {
        let failed = failed_listener(failed);
        format!(
            "warning: since an earlier reload, {failed}; the other workers do. To open it there, restart the server"
        )
    }));
    if !revoked.is_empty() {
        lines.push(format!("{} ended, because the configuration no longer allows them", revoked.join(" and ")));
    }
    lines
}

fn flag(value: &Value, field: &str) -> bool {
    value.get(field).and_then(Value::as_bool).unwrap_or_default()
}

/// Describes a listener that a worker could not open.
fn failed_listener(failed: &Value) -> String {
    format!(
        "worker {} cannot serve clients at the listener {} {}: {}",
        number(failed, "worker"),
        text(failed, "transport"),
        text(failed, "address"),
        printable(text(failed, "error")),
    )
}

/// Returns why a response is incomplete: a line for all missing workers, and one for each other cause. None if it is
/// complete.
pub(crate) fn gaps(response: &Value) -> Vec<String> {
    let numbers = |field: &str| list(response, field).iter().filter_map(Value::as_u64).map(|number| number.to_string());
    let mut gaps = Vec::new();
    let missing = numbers("missing_workers").collect::<Vec<_>>().join(", ");
    if !missing.is_empty() {
        gaps.push(format!(
            "no response from worker {missing}, whose sessions are missing; see the log for `worker-stalled`, and try \
             again"
        ));
    }
    let pending = numbers("pending_workers");
    gaps.extend(pending.map(|worker| {
        format!(
            "worker {worker} is busy and does not apply the change yet; it will do so when it is less busy. If the log \
             has `worker-stalled`, restart the server"
        )
    }));
    // One of an earlier reload does not make this one incomplete.
    gaps.extend(list(response, "failed_listeners").iter().filter(|failed| !flag(failed, "old")).map(|failed| {
        let advice = if flag(failed, "retried") { "reload again" } else { "restart the server" };
        format!("{}; {advice}", failed_listener(failed))
    }));
    for (failed, pending, name) in [
        ("failed_http_listeners", "http_pending", "the HTTP server"),
        ("failed_front_listeners", "front_pending", "the thread of the fronts"),
    ] {
        gaps.extend(list(response, failed).iter().map(|failed| {
            let (address, error) = (text(failed, "address"), printable(text(failed, "error")));
            format!("{name} cannot use the listener {address}: {error}; reload again")
        }));
        if flag(response, pending) {
            gaps.push(format!(
                "{name} is busy and has not changed its listeners yet; it will do so when it is less busy"
            ));
        }
    }
    if gaps.is_empty() && response.get("complete").and_then(Value::as_bool) == Some(false) {
        gaps.push("the log of the server says why".to_owned());
    }
    gaps.into_iter().map(|gap| format!("incomplete: {gap}")).collect()
}

/// Returns the lines of `session`.
pub(crate) fn session(session: &Value) -> Vec<String> {
    let mut fields = Fields::default();
    fields.add("session", text(session, "id"));
    fields.add("user", text(session, "user"));
    fields.add("client", &format!("{} over {}", text(session, "client"), text(session, "transport")));
    fields.add("server", text(session, "server"));
    fields.add("relay", &relay(session));
    fields.add("age", &duration(number(session, "age")));
    fields.add("expires in", &duration(number(session, "expires_in")));
    for (name, to) in [("to peers", "to_peers"), ("to client", "to_client")] {
        let [packets, size] = ["packets", "bytes"].map(|what| format!("{what}_{to}"));
        let total = format!("{} in {}", bytes(number(session, &size)), counted(number(session, &packets), "packet"));
        let rate = session.get("rate").filter(|rate| !rate.is_null()).map(|rate| {
            let per_second = |field: &str| rate.get(field).and_then(Value::as_f64).unwrap_or_default();
            format!("; at present {}, {:.0} packets/s", bit_rate(per_second(&size)), per_second(&packets))
        });
        fields.add(name, &(total + &rate.unwrap_or_default()));
    }
    let mut lines = fields.lines();
    lines.push(String::new());
    let (permissions, channels) = (list(session, "permissions"), list(session, "channels"));
    let mut table = Table::new(&["PEER", "CHANNEL", ">EXPIRES IN", "RELAYED BY"]);
    for entry in permissions.iter().chain(channels) {
        let channel = entry.get("channel").and_then(Value::as_str).unwrap_or("permission");
        table.row(vec![
            text(entry, "peer").to_owned(),
            channel.to_owned(),
            duration(number(entry, "expires_in")),
            relayed_by(entry),
        ]);
    }
    if permissions.is_empty() && channels.is_empty() {
        lines.push("no permissions, no channels".to_owned());
    } else {
        lines.extend(table.lines());
    }
    lines.push(String::new());
    lines.extend(drops(session));
    lines
}

/// Returns what relays a channel; nothing without offload.
fn relayed_by(channel: &Value) -> String {
    let Some(offload) = channel.get("offload").filter(|offload| !offload.is_null()) else { return String::new() };
    let why_not = |direction: &str| offload.get(direction).map_or("", |way| text(way, "why_not"));
    match (why_not("to_peer"), why_not("to_client")) {
        ("", "") => "kernel".to_owned(),
        (to_peer, to_client) if to_peer == to_client => format!("this process: {to_peer}"),
        (to_peer, "") => format!("kernel, but to the peer this process: {to_peer}"),
        ("", to_client) => format!("kernel, but to the client this process: {to_client}"),
        (to_peer, to_client) => format!("this process: to the peer, {to_peer}; to the client, {to_client}"),
    }
}

/// Returns the dropped packets of a session by reason, the most frequent first.
fn drops(session: &Value) -> Vec<String> {
    let reasons = by_frequency(session, "drops");
    if reasons.is_empty() {
        return vec!["no dropped packets".to_owned()];
    }
    let mut table = Table::new(&["DROPPED BECAUSE", ">PACKETS"]);
    for (reason, packets) in reasons {
        table.row(vec![reason.to_owned(), packets.to_string()]);
    }
    table.lines()
}

/// Returns the lines of `status`.
pub(crate) fn status(status: &Value) -> Vec<String> {
    let mut fields = Fields::default();
    let state = match (status.get("ready").and_then(Value::as_bool), text(status, "not_ready_because")) {
        (Some(true), _) => "ready".to_owned(),
        (_, why) => format!("makes no new allocations: {why}"),
    };
    fields.add("turnserver", &format!("{}, process {}", text(status, "version"), number(status, "pid")));
    fields.add("state", &state);
    fields.add("uptime", &duration(number(status, "uptime")));
    fields.add("workers", &number(status, "workers").to_string());
    fields.add("sessions", &number(status, "allocations").to_string());
    fields.add("channels", &number(status, "channels").to_string());
    fields.add("connections", &number(status, "connections").to_string());
    for (name, to) in [("to peers", "to_peers"), ("to clients", "to_clients")] {
        let [packets, size] = ["packets", "bytes"].map(|what| number(status, &format!("{what}_{to}")));
        fields.add(name, &format!("{} in {}", bytes(size), counted(packets, "packet")));
    }
    fields.add("dropped", &dropped(status));
    if let Some(webhook) = status.get("webhook").filter(|webhook| webhook.is_object()) {
        fields.add("webhook", &webhook_state(webhook));
    }
    if let Some(fleet) = status.get("fleet").filter(|fleet| fleet.is_object()) {
        fields.add("fleet", &fleet_state(fleet));
    }
    if status.get("log_level").is_some() {
        fields.add("log level", text(status, "log_level"));
    }
    let (mut lines, left) = (fields.lines(), remaining(status));
    if !left.is_empty() {
        lines.push(String::new());
        lines.extend(left);
    }
    lines
}

/// Returns what the webhook has sent, and what waits.
fn webhook_state(webhook: &Value) -> String {
    let [queued, failures, dropped] = ["queued", "failures", "dropped"].map(|field| number(webhook, field));
    let mut line = format!("{} sent, {queued} waiting", counted(number(webhook, "sent"), "event"));
    if dropped > 0 {
        line += &format!(", {dropped} dropped");
    }
    if failures > 0 {
        line += &format!("; the last {} failed", counted(failures, "request"));
    }
    line
}

/// Returns which node of the fleet this is, and whether its engine can be reached.
fn fleet_state(fleet: &Value) -> String {
    let (name, node, nodes) = (text(fleet, "name"), text(fleet, "node"), number(fleet, "nodes"));
    let mut line = format!("{node} in {name}, with {}", counted(nodes, "live node"));
    match number(fleet, "events_queued") {
        0 => {}
        waiting => line += &format!(", {} waiting", counted(waiting, "event")),
    }
    if fleet.get("connected").and_then(Value::as_bool) == Some(false) {
        line += &format!("; the engine cannot be reached: {}", text(fleet, "error"));
    }
    line
}

/// Returns the line of `revoke`. `now` is the time in seconds since the Unix epoch.
pub(crate) fn revocation(response: &Value, now: u64) -> String {
    if response.get("revoked").and_then(Value::as_bool) == Some(true) {
        format!("revoked for {}", duration(number(response, "until").saturating_sub(now)))
    } else {
        "no longer revoked".to_owned()
    }
}

/// Returns the lines of `certificates`. `now` is the time in seconds since the Unix epoch.
pub(crate) fn certificates(response: &Value, now: u64) -> Vec<String> {
    let mut lines = Vec::new();
    for certificate in list(response, "certificates") {
        let all = |field: &str| list(certificate, field).iter().filter_map(Value::as_str);
        let not_after = number(certificate, "not_after");
        let expires = match not_after.checked_sub(now) {
            Some(left) => format!("in {}", duration(left)),
            None => format!("{} ago", duration(now - not_after)),
        };
        let mut fields = Fields::default();
        fields.add("file", text(certificate, "file"));
        if list(response, "certificates").len() > 1 {
            let is_default = certificate.get("default").and_then(Value::as_bool) == Some(true);
            fields.add(
                "used",
                if is_default { "for its names, other names and clients without a name" } else { "for its names" },
            );
            fields.add("key", text(certificate, "key"));
        }
        fields.add("names", &all("names").chain(all("addresses")).collect::<Vec<_>>().join(", "));
        fields.add("issuer", text(certificate, "issuer"));
        fields.add("serial", text(certificate, "serial"));
        fields.add("expires", &expires);
        lines.extend(fields.lines());
    }
    match response.get("acme") {
        Some(acme) => lines.extend(orders(acme, now)),
        None if lines.is_empty() => lines.push("no certificate: [tls] is not set".to_owned()),
        None => {}
    }
    lines
}

/// Returns the lines about the certificate that the server orders.
fn orders(acme: &Value, now: u64) -> Vec<String> {
    let time = |field: &str| acme.get(field).and_then(Value::as_u64);
    let ago = |field: &str| time(field).map(|at| format!("{} ago", duration(now.saturating_sub(at))));
    let mut fields = Fields::default();
    fields.add("ordered for", &list(acme, "domains").iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "));
    fields.add("ordered from", text(acme, "directory"));
    fields.add("state", text(acme, "state"));
    if let Some(next) = time("next_try") {
        let name = if number(acme, "failures") == 0 { "renewal" } else { "next try" };
        fields.add(name, &format!("in {}", duration(next.saturating_sub(now))));
    }
    fields.add("last success", &ago("last_success").unwrap_or_else(|| "none".to_owned()));
    if let Some(at) = ago("last_error_time") {
        fields.add("last error", &format!("{at}: {}", text(acme, "last_error")));
        fields.add("failures", &number(acme, "failures").to_string());
    }
    fields.lines()
}

/// Returns the lines of `offload`.
pub(crate) fn offload(offload: &Value) -> Vec<String> {
    let mut fields = Fields::default();
    fields.add("mode", text(offload, "mode"));
    if !flag(offload, "active") {
        fields.add("state", &format!("this process relays all data itself: {}", text(offload, "why_not")));
        return fields.lines();
    }
    fields.add("state", &format!("the kernel relays up to {}", counted(number(offload, "channels"), "channel")));
    for interface in list(offload, "interfaces") {
        let driver = match text(interface, "driver") {
            "" => String::new(),
            driver => format!(" ({driver})"),
        };
        let state = match text(interface, "why_not") {
            "" => "has the program".to_owned(),
            why => format!("does not have the program: {why}"),
        };
        fields.add("interface", &format!("{}{driver} {state}", text(interface, "name")));
    }
    let part = |field: &str, direction: &str| offload.get(field).map_or(0, |field| number(field, direction));
    for (name, direction) in [("to peers", "to_peers"), ("to clients", "to_clients")] {
        let [entries, packets, size] = ["entries", "packets", "bytes"].map(|field| part(field, direction));
        let entries = match entries {
            1 => "1 entry".to_owned(),
            entries => format!("{entries} entries"),
        };
        fields.add(name, &format!("{entries}; {} in {}", bytes(size), counted(packets, "packet")));
    }
    let mut lines = fields.lines();
    for (field, title, unit) in
        [("in_user_space", "RELAYED BY THIS PROCESS BECAUSE", ">DIRECTIONS"), ("outcomes", "OUTCOME", ">PACKETS")]
    {
        let counts = by_frequency(offload, field);
        if !counts.is_empty() {
            let mut table = Table::new(&[title, unit]);
            counts.into_iter().for_each(|(name, count)| table.row(vec![name.to_owned(), count.to_string()]));
            lines.push(String::new());
            lines.extend(table.lines());
        }
    }
    lines
}

/// Returns the packets that the server has dropped, by reason.
pub(crate) fn dropped(status: &Value) -> String {
    let reasons = by_frequency(status, "dropped");
    if reasons.is_empty() {
        return "no packets".to_owned();
    }
    reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect::<Vec<_>>().join(", ")
}

/// Returns the counts of a field by name, the greatest first.
fn by_frequency<'v>(value: &'v Value, field: &str) -> Vec<(&'v str, u64)> {
    let counts = value.get(field).and_then(Value::as_object).into_iter().flatten();
    let mut counts: Vec<(&str, u64)> =
        counts.map(|(name, count)| (name.as_str(), count.as_u64().unwrap_or_default())).collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts
}

/// Names with their values.
#[derive(Debug, Default)]
pub(crate) struct Fields(Vec<(&'static str, String)>);

impl Fields {
    pub(crate) fn add(&mut self, name: &'static str, value: &str) {
        self.0.push((name, printable(value)));
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        self.0.iter().map(|(name, value)| format!("{name:<width$}  {value}").trim_end().to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_reload_that_is_not_complete_says_where_and_why() {
        let response = json!({
            "dry_run": false, "generation": 2, "changes": [], "warnings": [], "complete": false,
            "pending_workers": [3],
            "failed_listeners": [
                { "worker": 1, "transport": "udp", "address": "192.0.2.1:3478", "error": "no\x1b room", "old": false,
                    "retried": false },
                { "worker": 2, "transport": "tcp", "address": "192.0.2.1:3478", "error": "no room", "old": false,
                    "retried": true },
                { "worker": 0, "transport": "udp", "address": "192.0.2.1:443", "error": "no room", "old": true,
                    "retried": false },
            ],
            "failed_http_listeners": [{ "address": "192.0.2.1:80", "error": "in use" }], "http_pending": true,
            "failed_front_listeners": [{ "address": "192.0.2.1:443", "error": "in use" }], "front_pending": true,
            "revoked_permissions": 1, "revoked_channels": 2,
        });
        let expected = [
            "the configuration is in use (generation 2); 0 changes",
            "warning: since an earlier reload, worker 0 cannot serve clients at the listener udp 192.0.2.1:443: no room; \
             the other workers do. To open it there, restart the server",
            "1 permission and 2 channels ended, because the configuration no longer allows them",
        ];
        assert_eq!(reload(&response), expected);
        let [pending, failed, retried, http_failed, http_pending, front_failed, front_pending] =
            gaps(&response).try_into().unwrap();
        assert!(pending.starts_with("incomplete: worker 3 is busy and does not apply the change yet; "), "{pending}");
        let expected = "incomplete: worker 1 cannot serve clients at the listener udp 192.0.2.1:3478: no\\u{1b} room; \
                        restart the server";
        assert_eq!(failed, expected);
        assert!(retried.ends_with(" tcp 192.0.2.1:3478: no room; reload again"), "{retried}");
        let expected = "incomplete: the HTTP server cannot use the listener 192.0.2.1:80: in use; reload again";
        assert_eq!(http_failed, expected);
        assert!(http_pending.starts_with("incomplete: the HTTP server is busy"), "{http_pending}");
        let expected =
            "incomplete: the thread of the fronts cannot use the listener 192.0.2.1:443: in use; reload again";
        assert_eq!(front_failed, expected);
        assert!(front_pending.starts_with("incomplete: the thread of the fronts is busy"), "{front_pending}");
    }

    #[test]
    fn a_response_that_is_not_complete_has_a_gap() {
        let old = json!({ "complete": true, "failed_listeners": [{ "worker": 0, "old": true }] });
        for complete in [json!({}), json!({ "complete": true, "pending_workers": [] }), old] {
            assert_eq!(gaps(&complete), [""; 0], "{complete}");
        }
        for incomplete in [json!({ "complete": false }), json!({ "missing_workers": [0] })] {
            assert_eq!(gaps(&incomplete).len(), 1, "{incomplete}");
        }
    }

    #[test]
    fn a_revocation_shows_how_long_it_holds() {
        let response = |revoked: bool| json!({ "revoked": revoked, "until": 70, "complete": true });
        assert_eq!(revocation(&response(true), 10), "revoked for 1 min 00 s");
        assert_eq!(revocation(&response(false), 100), "no longer revoked");
    }
}
