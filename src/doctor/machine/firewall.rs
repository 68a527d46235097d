//! The packet filter of this machine: whether it drops what the server has to receive.

use std::ops::RangeInclusive;
use std::process::Command;

use nix::unistd::geteuid;
use serde_json::Value;

use crate::config::Config;
use crate::doctor::finding::Finding;

/// A protocol (`udp` or `tcp`) and ports that have to be open.
type Needed = (&'static str, RangeInclusive<u16>);

/// Examines the rules of nftables and iptables, as far as they can be read. `None` if there are none, or this process is
/// not root.
pub(super) fn examine(config: &Config) -> Option<Finding> {
    if !geteuid().is_root() {
        return None;
    }
    let output = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok()
    };
    let mut needed: Vec<Needed> = config
        .listen
        .iter()
        .filter(|endpoint| endpoint.address.port() > 0 && !endpoint.address.ip().is_loopback())
        .map(|endpoint| (endpoint.transport.port_protocol(), endpoint.address.port()..=endpoint.address.port()))
        .collect();
    needed.dedup();
    needed.push(("udp", config.relay.ports.clone()));
    let nftables = output("nft", &["--json", "list", "ruleset"]).and_then(|rules| of_nftables(&rules, &needed));
    nftables.or_else(|| output("iptables-save", &["-t", "filter"]).and_then(|rules| of_iptables(&rules, &needed)))
}

/// Returns what a filter does that drops everything but the ports in `open`.
fn judge(program: &str, needed: &[Needed], is_open: impl Fn(&str, u16) -> bool) -> Finding {
    let is_closed = |(protocol, ports): &&Needed| {
        // The ends of a range stand for it: rules name ranges.
        !is_open(protocol, *ports.start()) || !is_open(protocol, *ports.end())
    };
    let closed: Vec<String> = needed
        .iter()
        .filter(is_closed)
        .map(|(protocol, ports)| match (ports.start(), ports.end()) {
            (first, last) if first == last => format!("{protocol} {first}"),
            (first, last) => format!("{protocol} {first}-{last}"),
        })
        .collect();
    if closed.is_empty() {
        return Finding::ok(
            "firewall",
            format!("{program} drops other packets, and has rules for all ports of the server"),
        );
    }
    let closed = closed.join(", ");
    Finding::warning(
        "firewall",
        format!("{program} drops packets, and no rule was found that accepts {closed}"),
        format!("accept {closed}, unless a rule does it in another way"),
    )
}

/// Reads the output of `nft --json list ruleset`. `None` if no chain for received packets drops by default.
fn of_nftables(rules: &str, needed: &[Needed]) -> Option<Finding> {
    let rules: Value = serde_json::from_str(rules).ok()?;
    let entries = rules.get("nftables")?.as_array()?;
    let drops = |entry: &&Value| {
        let is = |field: &str, value: &str| entry.pointer(field).is_some_and(|found| found == value);
        is("/chain/hook", "input") && is("/chain/policy", "drop")
    };
    entries.iter().find(drops)?;
    // Rules of iptables are shown without their content.
    let is_foreign = |entry: &Value| expressions(entry).iter().any(|part| part.get("xt").is_some());
    if entries.iter().any(is_foreign) {
        return None;
    }
    let accepts = |entry: &&Value| expressions(entry).iter().any(|part| part.get("accept").is_some());
    let accepting: Vec<&Value> = entries.iter().filter(accepts).collect();
    let is_open = |protocol: &str, port: u16| {
        accepting.iter().any(|entry| expressions(entry).iter().any(|part| matches_port(part, protocol, port)))
    };
    Some(judge("nftables", needed, is_open))
}

fn expressions(entry: &Value) -> &[Value] {
    entry.pointer("/rule/expr").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Whether a match of nftables is one for this destination port.
fn matches_port(part: &Value, protocol: &str, port: u16) -> bool {
    let text = |field: &str| part.pointer(field).and_then(Value::as_str).unwrap_or_default();
    let is_protocol = [protocol, "th"].contains(&text("/match/left/payload/protocol"));
    let is_port = text("/match/left/payload/field") == "dport" && text("/match/op") != "!=";
    is_protocol && is_port && part.pointer("/match/right").is_some_and(|value| contains(value, port))
}

/// Whether a value of nftables, which may be a set or a range, contains a port.
fn contains(value: &Value, port: u16) -> bool {
    if let Some(values) = value.get("set").and_then(Value::as_array) {
        return values.iter().any(|value| contains(value, port));
    }
    if let Some([first, last]) = value.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        let bounds = first.as_u64().zip(last.as_u64());
        return bounds.is_some_and(|(first, last)| (first..=last).contains(&port.into()));
    }
    value.as_u64() == Some(port.into())
}

/// Reads the output of `iptables-save`. `None` if received packets are accepted by default.
fn of_iptables(rules: &str, needed: &[Needed]) -> Option<Finding> {
    rules.lines().find(|line| line.starts_with(":INPUT DROP"))?;
    let is_open = |protocol: &str, port: u16| {
        let accepting = rules.lines().filter(|line| line.starts_with("-A ") && line.ends_with("-j ACCEPT"));
        accepting.map(|line| line.split_whitespace().collect::<Vec<_>>()).any(|words| {
            let after = |name: &str| {
                let at = words.iter().position(|word| *word == name)?;
                words.get(at + 1).copied()
            };
            let ports = after("--dport").or_else(|| after("--dports"));
            after("-p") == Some(protocol) && ports.is_some_and(|ports| lists(ports, port))
        })
    };
    Some(judge("iptables", needed, is_open))
}

/// Whether a list of ports and ranges of iptables, as in `80,443,49152:65535`, has a port.
fn lists(ports: &str, port: u16) -> bool {
    ports.split(',').any(|entry| {
        let (first, last) = entry.split_once(':').unwrap_or((entry, entry));
        let bounds = first.parse().ok().zip(last.parse().ok());
        bounds.is_some_and(|(first, last): (u16, u16)| (first..=last).contains(&port))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Status;

    fn needed() -> Vec<Needed> {
        vec![("udp", 3478..=3478), ("tcp", 3478..=3478), ("udp", 49_152..=65_535)]
    }

    /// Returns rules like those of `nft --json list ruleset`.
    fn nftables(policy: &str, matches: &[(&str, &str)]) -> String {
        let chain = format!(
            r#"{{"chain": {{"family": "inet", "table": "t", "name": "in", "hook": "input", "policy": "{policy}"}}}}"#
        );
        let rules = matches.iter().map(|(protocol, right)| {
            format!(
                r#", {{"rule": {{"chain": "in", "expr": [{{"match": {{"op": "==", "left": {{"payload": {{"protocol": "{protocol}",
                   "field": "dport"}}}}, "right": {right}}}}}, {{"accept": null}}]}}}}"#
            )
        });
        format!(r#"{{"nftables": [{chain}{}]}}"#, rules.collect::<String>())
    }

    #[test]
    fn closed_ports_of_nftables_are_named() {
        let check = |policy, matches: &[(&str, &str)]| of_nftables(&nftables(policy, matches), &needed());
        assert_eq!(check("accept", &[]), None);
        let closed = check("drop", &[("tcp", r#"{"set": [22, 3478]}"#)]).unwrap();
        assert_eq!(closed.status, Status::Warning);
        assert!(closed.what.ends_with("no rule was found that accepts udp 3478, udp 49152-65535"), "{closed:?}");
        let open = [("th", "3478"), ("udp", r#"{"range": [49152, 65535]}"#)];
        assert_eq!(check("drop", &open).unwrap().status, Status::Ok);
        let short = [("th", "3478"), ("udp", r#"{"set": [{"range": [49152, 60000]}]}"#)];
        assert!(check("drop", &short).unwrap().what.ends_with("accepts udp 49152-65535"));
        // Rules of iptables have no content there.
        let foreign = nftables("drop", &[]).replace("]}", r#", {"rule": {"expr": [{"xt": {"type": "match"}}]}}]}"#);
        assert_eq!(of_nftables(&foreign, &needed()), None);
    }

    #[test]
    fn closed_ports_of_iptables_are_named() {
        let rules = |lines: &str| format!("*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n{lines}COMMIT\n");
        let one = "-A INPUT -p udp -m udp --dport 3478 -j ACCEPT\n";
        let closed = of_iptables(&rules(one), &needed()).unwrap();
        assert!(closed.what.ends_with("no rule was found that accepts tcp 3478, udp 49152-65535"), "{closed:?}");
        let rest = "-A ufw-user-input -p tcp -m multiport --dports 80,3478 -j ACCEPT\n\
                    -A ufw-user-input -p udp -m multiport --dports 49152:65535 -j ACCEPT\n";
        assert_eq!(of_iptables(&rules(&format!("{one}{rest}")), &needed()).unwrap().status, Status::Ok);
        assert_eq!(of_iptables("*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n", &needed()), None);
    }
}
