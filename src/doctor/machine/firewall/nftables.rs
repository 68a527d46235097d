//! The rules of nftables, as `nft --json list ruleset` writes them.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;

use serde_json::Value;

use super::filter::{Condition, Filter, Kind, Rule, Truth, Verdict};
use crate::stun::attribute::AddressFamily;

/// Statements that change no decision.
const HARMLESS: [&str; 4] = ["counter", "log", "mangle", "notrack"];

/// Protocols above IP. A rule about their headers applies to no other packet.
const TRANSPORTS: [&str; 11] = ["tcp", "udp", "udplite", "sctp", "dccp", "icmp", "icmpv6", "igmp", "ah", "esp", "comp"];

/// A table of the rules.
struct Table<'r> {
    /// Elements of its sets and maps.
    elements: HashMap<&'r str, &'r [Value]>,
    /// Whether no rule of any table exempts packets from connection tracking.
    is_tracked: bool,
}

/// Returns the chains for received packets. Tables of iptables, whose rules are shown without content, are left out.
pub(super) fn parse(text: &str) -> Vec<Filter> {
    let Ok(rules) = serde_json::from_str::<Value>(text) else { return Vec::new() };
    let entries = rules.get("nftables").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let of_kind = |kind: &'static str| entries.iter().filter_map(move |entry| entry.get(kind));
    let foreign: HashSet<(&str, &str)> =
        of_kind("rule").filter(|rule| expressions(rule).iter().any(is_foreign)).map(table_of).collect();
    let is_dormant = |table: (&str, &str)| {
        let mut tables = of_kind("table").filter(|own| (text_of(own, "family"), text_of(own, "name")) == table);
        tables.any(|own| own.get("flags").is_some_and(|flags| flags.to_string().contains("dormant")))
    };
    let mut all = of_kind("rule").flat_map(expressions);
    let is_tracked = !all.any(|expression| expression.get("notrack").is_some());
    let mut filters = Vec::new();
    for chain in of_kind("chain").filter(|chain| ["prerouting", "input"].contains(&text_of(chain, "hook"))) {
        let table = table_of(chain);
        if foreign.contains(&table) || text_of(chain, "type") != "filter" || is_dormant(table) {
            continue;
        }
        let family = match table.0 {
            "inet" => None,
            "ip" => Some(AddressFamily::V4),
            "ip6" => Some(AddressFamily::V6),
            _ => continue,
        };
        let sets = of_kind("set").chain(of_kind("map")).filter(|set| table_of(set) == table);
        let elements =
            |set| (text_of(set, "name"), set.get("elem").and_then(Value::as_array).map_or(&[][..], Vec::as_slice));
        let table_of_sets = Table { elements: sets.map(elements).collect(), is_tracked };
        let mut filter = Filter {
            program: "nftables",
            entry: text_of(chain, "name").to_owned(),
            drops_by_default: text_of(chain, "policy") == "drop",
            family,
            ..Filter::default()
        };
        for rule in of_kind("rule").filter(|rule| table_of(rule) == table) {
            let rules = table_of_sets.rules(expressions(rule));
            filter.chains.entry(text_of(rule, "chain").to_owned()).or_default().extend(rules);
        }
        filters.push(filter);
    }
    filters
}

fn text_of<'v>(value: &'v Value, field: &str) -> &'v str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn table_of(value: &Value) -> (&str, &str) {
    (text_of(value, "family"), text_of(value, "table"))
}

fn expressions(rule: &Value) -> &[Value] {
    rule.get("expr").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn is_foreign(expression: &Value) -> bool {
    expression.get("xt").is_some()
}

impl Table<'_> {
    /// Returns the rules that a rule represents: a map of verdicts is one for each element.
    fn rules(&self, expressions: &[Value]) -> Vec<Rule> {
        let (mut conditions, mut rules) = (Vec::new(), Vec::new());
        for expression in expressions {
            let Some((name, content)) = expression.as_object().and_then(|object| object.iter().next()) else {
                // Some statements have no form in JSON.
                conditions.push(Condition::unknown(false));
                continue;
            };
            match name.as_str() {
                "match" => conditions.extend(self.conditions(content)),
                "vmap" => {
                    let data = content.get("data");
                    for pair in data.map_or(&[][..], |data| self.values(data)) {
                        let Some([key, verdict]) = pair.as_array().map(Vec::as_slice) else { continue };
                        let equal = self.equal(content.get("key").unwrap_or(&Value::Null), key);
                        if let Some(verdict) = verdict_of(verdict) {
                            rules.push(Rule { conditions: [&conditions[..], &equal].concat(), verdict });
                        }
                    }
                }
                name if HARMLESS.contains(&name) => {}
                _ => match verdict_of(expression) {
                    Some(verdict) => rules.push(Rule { conditions: conditions.clone(), verdict }),
                    None => conditions.push(Condition::unknown(false)),
                },
            }
        }
        rules
    }

    /// Returns the elements of a set: of an anonymous one, or of a named one, as in `"@name"`.
    fn values<'v>(&'v self, value: &'v Value) -> &'v [Value] {
        if let Some(name) = value.as_str().and_then(|text| text.strip_prefix('@')) {
            return self.elements.get(name).copied().unwrap_or_default();
        }
        match value.get("set").unwrap_or(value) {
            Value::Array(values) => values,
            other => std::slice::from_ref(other),
        }
    }

    fn conditions(&self, content: &Value) -> Vec<Condition> {
        match (content.get("left"), content.get("right")) {
            (Some(left), Some(right)) => self.compare(left, text_of(content, "op"), right),
            _ => vec![Condition::unknown(false)],
        }
    }

    /// Returns the conditions that a key of a map has a value.
    fn equal(&self, key: &Value, value: &Value) -> Vec<Condition> {
        let parts = |value: &Value| value.get("concat").and_then(Value::as_array).cloned();
        match (parts(key), parts(value)) {
            // The default.
            _ if value == "*" => Vec::new(),
            (Some(keys), Some(values)) => {
                keys.iter().zip(&values).flat_map(|(key, value)| self.equal(key, value)).collect()
            }
            _ => self.compare(key, "==", value),
        }
    }

    /// Returns the conditions of a comparison, with those that it implies.
    fn compare(&self, left: &Value, operator: &str, right: &Value) -> Vec<Condition> {
        let is_negated = operator == "!=";
        let unknown = Condition::unknown(is_negated);
        let values = self.values(right);
        let texts = || values.iter().map(|value| text_or_number(element(value))).collect::<Option<Vec<_>>>();
        let of = |kind: Kind| Condition { kind, is_negated };
        // A value that is not understood makes the whole comparison unknown.
        let with =
            |make: &dyn Fn(Vec<String>) -> Kind| texts().map_or_else(|| unknown.clone(), |texts| of(make(texts)));
        if !["==", "!=", "in", ""].contains(&operator) && left.pointer("/payload/field") != Some(&"dport".into()) {
            return vec![unknown];
        }
        let key = left.pointer("/meta/key").or_else(|| left.pointer("/ct/key")).and_then(Value::as_str);
        match key {
            Some("l4proto") => return vec![with(&Kind::Protocols)],
            Some("state") => {
                let has = |texts: &[String], state: &str| texts.iter().any(|text| text == state);
                return vec![with(&|states| {
                    let (new, untracked) = (has(&states, "new"), has(&states, "untracked"));
                    Kind::Always(Truth::of_states(new, untracked, self.is_tracked))
                })];
            }
            // Packets of a flow that the machine itself redirects.
            Some("status") if texts().is_some_and(|texts| texts == ["dnat"]) => {
                return vec![of(Kind::Always(Truth::No))];
            }
            Some("iifname" | "iif") => return vec![with(&Kind::Interfaces)],
            Some("nfproto") => {
                return vec![with(&|families| match families.as_slice() {
                    [one] if one == "ipv6" => Kind::Family(AddressFamily::V6),
                    [one] if one == "ipv4" => Kind::Family(AddressFamily::V4),
                    _ => Kind::Always(Truth::Yes),
                })];
            }
            Some(_) => return vec![unknown],
            None => {}
        }
        let Some(payload) = left.get("payload") else { return vec![unknown] };
        match (text_of(payload, "protocol"), text_of(payload, "field")) {
            ("ip", field) => {
                let is_protocol = field == "protocol";
                let second = if is_protocol { with(&Kind::Protocols) } else { unknown.clone() };
                vec![Condition::new(Kind::Family(AddressFamily::V4)), second]
            }
            ("ip6", field) => {
                let is_protocol = field == "nexthdr";
                let second = if is_protocol { with(&Kind::Protocols) } else { unknown.clone() };
                vec![Condition::new(Kind::Family(AddressFamily::V6)), second]
            }
            (protocol, field) => {
                let ports = (field == "dport").then(|| ports(operator, values)).flatten();
                let second = ports.map_or_else(|| unknown.clone(), |ports| of(Kind::Ports(ports)));
                if TRANSPORTS.contains(&protocol) {
                    vec![Condition::new(Kind::Protocols(vec![protocol.to_owned()])), second]
                } else {
                    vec![second]
                }
            }
        }
    }
}

/// Returns an element of a set without its comment and counters.
fn element(value: &Value) -> &Value {
    value.pointer("/elem/val").unwrap_or(value)
}

fn text_or_number(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned).or_else(|| value.as_u64().map(|number| number.to_string()))
}

/// Returns the ports of a comparison. `None` if one of them is not known.
fn ports(operator: &str, values: &[Value]) -> Option<Vec<RangeInclusive<u16>>> {
    let number = |value: &Value| u16::try_from(value.as_u64()?).ok();
    values
        .iter()
        .map(|value| {
            let value = element(value);
            if let Some([first, last]) = value.get("range").and_then(Value::as_array).map(Vec::as_slice) {
                return Some(number(first)?..=number(last)?);
            }
            let port = number(value)?;
            Some(match operator {
                "<" => 0..=port.checked_sub(1)?,
                "<=" => 0..=port,
                ">" => port.checked_add(1)?..=u16::MAX,
                ">=" => port..=u16::MAX,
                _ => port..=port,
            })
        })
        .collect()
}

/// Returns the verdict of a statement, if it is one.
fn verdict_of(statement: &Value) -> Option<Verdict> {
    let (name, content) = statement.as_object()?.iter().next()?;
    let target = || text_of(content, "target").to_owned();
    Some(match name.as_str() {
        "accept" => Verdict::Accept,
        "drop" | "reject" => Verdict::Drop,
        "queue" => Verdict::Queue,
        "return" => Verdict::Return,
        "continue" => Verdict::Continue,
        "jump" => Verdict::Jump(target()),
        "goto" => Verdict::Goto(target()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::filter::{Outcome, Packet};
    use super::*;

    /// Returns a table of `inet` with the chains `input`, which drops by default, and `own`. Each rule is the name of its
    /// chain and its expressions.
    fn table(rules: &[(&str, &str)]) -> Vec<Filter> {
        let entry =
            |kind: &str, content: &str| format!(r#", {{"{kind}": {{"family": "inet", "table": "t", {content}}}}}"#);
        let mut text = r#"{"nftables": [{"metainfo": {}}"#.to_owned();
        text += &entry("chain", r#""name": "input", "type": "filter", "hook": "input", "policy": "drop""#);
        text += &entry("chain", r#""name": "own""#);
        text += &entry("set", r#""name": "ports", "elem": [3478, {"range": [49152, 65535]}, {"elem": {"val": 7}}]"#);
        for (chain, expressions) in rules {
            text += &entry("rule", &format!(r#""chain": "{chain}", "expr": [{expressions}]"#));
        }
        parse(&(text + "]}"))
    }

    fn judgements(rules: &[(&str, &str)], packets: &[(&'static str, u16)]) -> Vec<Outcome> {
        let [filter] = table(rules).try_into().map_err(|_| "one chain").unwrap();
        let judgement = |(protocol, port): &(&'static str, u16)| {
            filter.judge(&Packet { family: AddressFamily::V4, protocol, port: *port, interfaces: &[] })
        };
        packets.iter().map(judgement).collect()
    }

    const ACCEPT: &str = r#"{"accept": null}"#;

    /// Returns a comparison of a destination port.
    fn port(protocol: &str, operator: &str, right: &str) -> String {
        format!(
            r#"{{"match": {{"op": "{operator}", "left": {{"payload": {{"protocol": "{protocol}", "field": "dport"}}}}, "right": {right}}}}}"#
        )
    }

    #[test]
    fn ports_are_compared_in_every_way() {
        use Outcome::{Closed, Open};
        let udp = [("udp", 3477), ("udp", 3478), ("udp", 65_535), ("tcp", 3478)];
        for (operator, right, expected) in [
            ("==", "3478", [Closed, Open, Closed, Closed]),
            ("==", r#""@ports""#, [Closed, Open, Open, Closed]),
            ("==", r#""@other""#, [Closed; 4]),
            ("==", r#"{"set": [7, {"range": [3477, 3478]}]}"#, [Open, Open, Closed, Closed]),
            ("==", r#"{"range": [3478, 65535]}"#, [Closed, Open, Open, Closed]),
            ("!=", "3478", [Open, Closed, Open, Closed]),
            ("<", "3478", [Open, Closed, Closed, Closed]),
            (">=", "3478", [Closed, Open, Open, Closed]),
        ] {
            let rule = format!("{}, {{\"counter\": {{}}}}, {ACCEPT}", port("udp", operator, right));
            assert_eq!(judgements(&[("input", &rule)], &udp), expected, "{operator} {right}");
        }
        let any = format!("{}, {ACCEPT}", port("th", "==", "3478"));
        assert_eq!(judgements(&[("input", &any)], &udp), [Closed, Open, Closed, Open]);
    }

    #[test]
    fn conditions_about_other_packets_do_not_apply_and_unknown_ones_may() {
        let of_meta = |kind: &str, key: &str, right: &str| {
            format!(
                r#"{{"match": {{"op": "==", "left": {{"{kind}": {{"key": "{key}"}}}}, "right": {right}}}}}, {ACCEPT}"#
            )
        };
        let of_address = |family: &str| {
            format!(
                r#"{{"match": {{"op": "==", "left": {{"payload": {{"protocol": "{family}", "field": "saddr"}}}}, "right": "x"}}}}, {ACCEPT}"#
            )
        };
        for (rule, expected) in [
            (of_meta("meta", "iifname", r#""lo""#), Outcome::Closed),
            (of_meta("meta", "iifname", r#""eth0""#), Outcome::Uncertain),
            (of_meta("meta", "l4proto", r#"{"set": ["tcp", "udp"]}"#), Outcome::Open),
            (of_meta("meta", "l4proto", r#""icmp""#), Outcome::Closed),
            (of_meta("meta", "nfproto", r#""ipv6""#), Outcome::Closed),
            (of_meta("meta", "mark", "1"), Outcome::Uncertain),
            (of_meta("ct", "state", r#"["established", "related"]"#), Outcome::Closed),
            (of_meta("ct", "state", r#"{"set": ["established", "new"]}"#), Outcome::Open),
            (of_address("ip"), Outcome::Uncertain),
            (of_address("ip6"), Outcome::Closed),
            (of_address("ether"), Outcome::Uncertain),
            (of_address("icmp"), Outcome::Closed),
            (of_meta("meta", "nfproto", r#"{"set": ["ipv4", "ipv6"]}"#), Outcome::Open),
            (of_meta("meta", "l4proto", r#"{"range": ["tcp", "udp"]}"#), Outcome::Uncertain),
            (of_meta("ct", "state", r#"["established", "untracked"]"#), Outcome::Closed),
            (of_meta("ct", "status", r#""dnat""#), Outcome::Closed),
            (format!(r#"{{"limit": {{"rate": 3}}}}, {ACCEPT}"#), Outcome::Uncertain),
            (format!(r#"{{"set": {{"op": "update", "stmt": [{{"limit": {{}}}}]}}}}, {ACCEPT}"#), Outcome::Uncertain),
            (format!(r#""a statement", {ACCEPT}"#), Outcome::Uncertain),
            (of_address("ip").replace("==", "!=").replace("accept", "drop"), Outcome::Closed),
            (format!(r#"{{"log": {{}}}}, {ACCEPT}"#), Outcome::Open),
            (r#"{"reject": null}"#.to_owned(), Outcome::Closed),
        ] {
            assert_eq!(judgements(&[("input", &rule)], &[("udp", 3478)]), [expected], "{rule}");
        }
    }

    #[test]
    fn maps_of_verdicts_are_one_rule_for_each_element() {
        let states = r#"{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["invalid", {"drop": null}],
                         ["established", {"accept": null}]]}}}"#;
        let ports = r#"{"vmap": {"key": {"payload": {"protocol": "udp", "field": "dport"}}, "data": {"set":
                        [[7, {"accept": null}], [{"range": [100, 200]}, {"jump": {"target": "own"}}]]}}}"#;
        let both = r#"{"vmap": {"key": {"concat": [{"meta": {"key": "l4proto"}}, {"payload": {"protocol": "th", "field": "dport"}}]},
                       "data": {"set": [[{"concat": ["udp", 8]}, {"accept": null}], ["*", {"drop": null}]]}}}"#;
        let then = [("input", both), ("input", ACCEPT)];
        assert_eq!(
            judgements(&then, &[("udp", 8), ("tcp", 8), ("udp", 9)]),
            [Outcome::Open, Outcome::Closed, Outcome::Closed]
        );
        let own = format!("{}, {ACCEPT}", port("udp", "!=", "150"));
        assert_eq!(
            judgements(
                &[("input", states), ("input", ports), ("own", &own)],
                &[("udp", 7), ("udp", 100), ("udp", 150), ("tcp", 7)]
            ),
            [Outcome::Open, Outcome::Open, Outcome::Closed, Outcome::Closed]
        );
    }

    #[test]
    fn tables_of_iptables_are_left_out() {
        assert_eq!(table(&[("input", r#"{"xt": {"type": "match"}}"#)]).len(), 0);
        assert_eq!(parse("no JSON").len(), 0);
    }
}
