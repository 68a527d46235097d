//! The rules of iptables, as `iptables-save` writes them.

use std::ops::RangeInclusive;

use super::filter::{Condition, Filter, Kind, Rule, Truth, Verdict};
use crate::stun::attribute::AddressFamily;

/// The chains that received packets enter, with their tables.
const ENTRIES: [(&str, &str); 4] =
    [("raw", "PREROUTING"), ("mangle", "PREROUTING"), ("mangle", "INPUT"), ("filter", "INPUT")];

/// Reads the output of `iptables-save` or `ip6tables-save`.
pub(super) fn parse(text: &str, family: AddressFamily) -> Vec<Filter> {
    let is_tracked = !text.contains("-j NOTRACK") && !text.contains("--notrack");
    let filter = |(table, entry): (&str, &str)| {
        let mut filter = Filter {
            program: if family == AddressFamily::V4 { "iptables" } else { "ip6tables" },
            entry: entry.to_owned(),
            family: Some(family),
            ..Filter::default()
        };
        let header = format!("*{table}");
        for line in text.lines().skip_while(|line| *line != header).take_while(|line| *line != "COMMIT") {
            if let Some(chain) = line.strip_prefix(':') {
                let mut words = chain.split(' ');
                let (name, policy) = (words.next()?, words.next()?);
                filter.drops_by_default |= name == entry && policy == "DROP";
                filter.chains.insert(name.to_owned(), Vec::new());
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let words = words(rule);
                let (chain, rest) = words.split_first()?;
                let rule = parse_rule(rest, is_tracked, &|target| filter.chains.contains_key(target));
                filter.chains.entry(chain.clone()).or_default().push(rule);
            }
        }
        filter.chains.contains_key(entry).then_some(filter)
    };
    ENTRIES.into_iter().filter_map(filter).collect()
}

/// Splits a rule at spaces outside quotation marks.
fn words(rule: &str) -> Vec<String> {
    let (mut words, mut word, mut is_quoted) = (Vec::new(), String::new(), false);
    let mut characters = rule.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => is_quoted = !is_quoted,
            '\\' if is_quoted => word.extend(characters.next()),
            ' ' if !is_quoted => words.push(std::mem::take(&mut word)),
            other => word.push(other),
        }
    }
    words.push(word);
    words
}

fn parse_rule(words: &[String], is_tracked: bool, is_chain: &dyn Fn(&str) -> bool) -> Rule {
    let mut rule = Rule { conditions: Vec::new(), verdict: Verdict::Continue };
    let mut words = words.iter().map(String::as_str);
    let mut is_negated = false;
    while let Some(option) = words.next() {
        let kind = match option {
            "!" => {
                is_negated = true;
                continue;
            }
            // Its own options follow.
            "-m" => {
                words.next();
                continue;
            }
            "--comment" => {
                words.next();
                continue;
            }
            // The options of the target follow.
            "-j" | "-g" => {
                rule.verdict = verdict(option, words.next().unwrap_or_default(), is_chain);
                return rule;
            }
            "-p" => Kind::Protocols(vec![words.next().unwrap_or_default().to_owned()]),
            "--dport" | "--dports" => Kind::Ports(ports(words.next().unwrap_or_default())),
            "--ctstate" | "--state" => {
                let states: Vec<&str> = words.next().unwrap_or_default().split(',').collect();
                Kind::Always(Truth::of_states(states.contains(&"NEW"), states.contains(&"UNTRACKED"), is_tracked))
            }
            "-i" => Kind::Interfaces(vec![words.next().unwrap_or_default().to_owned()]),
            "--dst-type" => {
                let is_local = words.next().unwrap_or_default() == "LOCAL";
                Kind::Always(is_local.into())
            }
            _ => {
                // Up to the next option.
                while words.clone().next().is_some_and(|word| !word.starts_with('-') && word != "!") {
                    words.next();
                }
                rule.conditions.push(Condition::unknown(is_negated));
                is_negated = false;
                continue;
            }
        };
        rule.conditions.push(Condition { kind, is_negated });
        is_negated = false;
    }
    rule
}

fn verdict(option: &str, target: &str, is_chain: &dyn Fn(&str) -> bool) -> Verdict {
    match target {
        "ACCEPT" => Verdict::Accept,
        "DROP" | "REJECT" => Verdict::Drop,
        "RETURN" => Verdict::Return,
        "NFQUEUE" | "QUEUE" => Verdict::Queue,
        chain if is_chain(chain) && option == "-g" => Verdict::Goto(chain.to_owned()),
        chain if is_chain(chain) => Verdict::Jump(chain.to_owned()),
        // LOG and others that change or count a packet.
        _ => Verdict::Continue,
    }
}

/// Reads ports and ranges, as in `80,443,49152:65535`.
fn ports(text: &str) -> Vec<RangeInclusive<u16>> {
    let range = |entry: &str| {
        let (first, last) = entry.split_once(':').unwrap_or((entry, entry));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.split(',').filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::super::filter::{Outcome, Packet};
    use super::*;

    /// Rules like those of ufw.
    const RULES: &str = "\
# Generated by iptables-save
*nat
:PREROUTING ACCEPT [0:0]
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:before - [0:0]
:not-local - [0:0]
:user - [0:0]
:last - [0:0]
-A INPUT -j before
-A INPUT -j user
-A INPUT -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix \"[BLOCK] -j ACCEPT \"
-A before -i lo -j ACCEPT
-A before -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A before -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A before -j not-local
-A not-local -m addrtype --dst-type LOCAL -j RETURN
-A not-local -j DROP
-A user -p udp -m multiport --dports 3478,49152:65535 -m comment --comment \"it is -j DROP\" -j ACCEPT
-A user -p tcp -m tcp ! --dport 1:5348 -m conntrack --ctstate NEW -g last
-A user -p tcp -s 192.0.2.0/24 -m tcp --dport 22 -j ACCEPT
-A user -p udp -m udp --dport 80 -j REJECT --reject-with icmp-port-unreachable
COMMIT
";

    #[test]
    fn the_rules_decide_about_each_port() {
        let [filter] = parse(RULES, AddressFamily::V4).try_into().map_err(|_| "one table").unwrap();
        let judgement = |family, protocol, port| filter.judge(&Packet { family, protocol, port, interfaces: &[] });
        let of_v6 = judgement(AddressFamily::V6, "udp", 1);
        let judgement = |protocol, port| judgement(AddressFamily::V4, protocol, port);
        for port in [3478, 49_152, 65_535] {
            assert_eq!(judgement("udp", port), Outcome::Open, "{port}");
        }
        for (protocol, port, expected) in [
            ("udp", 3479, Outcome::Closed),
            ("udp", 80, Outcome::Closed),
            ("tcp", 3478, Outcome::Closed),
            ("tcp", 22, Outcome::Uncertain),
        ] {
            assert_eq!(judgement(protocol, port), expected, "{protocol} {port}");
        }
        assert_eq!(of_v6, Outcome::Open);
        assert!(parse("*nat\n:INPUT DROP [0:0]\nCOMMIT\n", AddressFamily::V4).is_empty());
    }

    #[test]
    fn packets_that_are_not_tracked_are_not_new() {
        let outcome = |raw: &str, states: &str| {
            let text = format!(
                "*raw\n:PREROUTING ACCEPT [0:0]\n{raw}COMMIT\n*filter\n:INPUT DROP [0:0]\n\
                 -A INPUT -m conntrack --ctstate {states} -j ACCEPT\nCOMMIT\n"
            );
            let packet = Packet { family: AddressFamily::V4, protocol: "udp", port: 3478, interfaces: &[] };
            parse(&text, AddressFamily::V4).iter().map(|filter| filter.judge(&packet)).max().unwrap()
        };
        let notrack = "-A PREROUTING -p udp -j CT --notrack\n";
        for (raw, states, expected) in [
            ("", "NEW", Outcome::Open),
            ("", "RELATED,UNTRACKED", Outcome::Closed),
            (notrack, "NEW", Outcome::Uncertain),
            (notrack, "RELATED,UNTRACKED", Outcome::Uncertain),
            (notrack, "NEW,UNTRACKED", Outcome::Open),
            ("-A PREROUTING -p udp -j DROP\n", "NEW", Outcome::Closed),
        ] {
            assert_eq!(outcome(raw, states), expected, "{raw}{states}");
        }
    }

    #[test]
    fn words_are_split_outside_quotation_marks() {
        assert_eq!(words(r#"-j LOG --log-prefix "a \"b\" c" x"#), ["-j", "LOG", "--log-prefix", "a \"b\" c", "x"]);
    }
}
