//! Rules of packet filters, and what they do with a packet.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use crate::stun::attribute::AddressFamily;

/// The depth of nested jumps. Kernels permit 16.
const DEEPEST: u32 = 32;

/// A new packet from another machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'p> {
    pub(super) family: AddressFamily,
    /// `udp` or `tcp`.
    pub(super) protocol: &'static str,
    /// The destination port.
    pub(super) port: u16,
    /// The interfaces through which it may come. Empty: they are not known.
    pub(super) interfaces: &'p [String],
}

/// What happens to a packet. The later ones prevail over the earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    Open,
    /// It is dropped unless a rule about addresses or rates accepts it.
    Uncertain,
    Closed,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Truth {
    No,
    Maybe,
    Yes,
}

/// A condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) kind: Kind,
    pub(super) is_negated: bool,
}

/// What a condition is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Family(AddressFamily),
    Protocols(Vec<String>),
    /// Destination ports.
    Ports(Vec<RangeInclusive<u16>>),
    /// Names of interfaces, or their beginnings with `*` or `+`.
    Interfaces(Vec<String>),
    Always(Truth),
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    /// Another program decides.
    Queue,
    Return,
    Jump(String),
    Goto(String),
    Continue,
}

/// A rule: if all conditions hold, the verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) verdict: Verdict,
}

/// A chain for received packets, and those that it jumps to.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    /// The program that administers it.
    pub(super) program: &'static str,
    pub(super) chains: HashMap<String, Vec<Rule>>,
    /// The chain that packets enter.
    pub(super) entry: String,
    pub(super) drops_by_default: bool,
    /// The only family that enters it.
    pub(super) family: Option<AddressFamily>,
}

/// How a chain ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Accept,
    Drop,
    Return,
}

/// The ends of a chain that are possible for a packet.
struct Ends {
    may_accept: bool,
    may_return: bool,
    /// The end if each uncertain condition is false.
    usual: End,
}

impl Condition {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, is_negated: false }
    }

    /// Returns one that cannot be judged, such as one about addresses. Its negation usually holds.
    pub(super) fn unknown(is_negated: bool) -> Self {
        Self::new(Kind::Always(if is_negated { Truth::Yes } else { Truth::Maybe }))
    }

    fn holds(&self, packet: &Packet<'_>) -> Truth {
        let truth = match &self.kind {
            Kind::Family(family) => Truth::from(*family == packet.family),
            Kind::Protocols(protocols) => Truth::from(protocols.iter().any(|name| is_protocol(name, packet.protocol))),
            Kind::Ports(ports) => Truth::from(ports.iter().any(|range| range.contains(&packet.port))),
            Kind::Interfaces(names) => is_through(names, packet.interfaces),
            Kind::Always(truth) => *truth,
        };
        match truth {
            Truth::No if self.is_negated => Truth::Yes,
            Truth::Yes if self.is_negated => Truth::No,
            truth => truth,
        }
    }
}

/// Whether `name`, which may be a number, is that of a protocol.
fn is_protocol(name: &str, protocol: &str) -> bool {
    let number = if protocol == "udp" { "17" } else { "6" };
    name.eq_ignore_ascii_case(protocol) || name == number || name == "all"
}

impl Truth {
    /// Whether the first packet of a flow has one of some states of connection tracking. `is_tracked`: no rule exempts any
    /// packet from it.
    pub(super) fn of_states(has_new: bool, has_untracked: bool, is_tracked: bool) -> Self {
        match (has_new, has_untracked) {
            (true, true) => Self::Yes,
            (false, false) => Self::No,
            (has_new, _) if is_tracked => has_new.into(),
            _ => Self::Maybe,
        }
    }
}

/// Whether a packet from elsewhere comes through one of these interfaces.
fn is_through(names: &[String], interfaces: &[String]) -> Truth {
    let fits = |name: &String, interface: &String| match name.strip_suffix(['*', '+']) {
        Some(beginning) => interface.starts_with(beginning),
        None => interface == name,
    };
    if names.iter().all(|name| name == "lo") {
        Truth::No
    } else if interfaces.is_empty() {
        Truth::Maybe
    } else {
        Truth::from(names.iter().any(|name| interfaces.iter().any(|interface| fits(name, interface))))
    }
}

impl From<bool> for Truth {
    fn from(is_true: bool) -> Self {
        if is_true { Self::Yes } else { Self::No }
    }
}

impl Rule {
    fn applies(&self, packet: &Packet<'_>) -> Truth {
        self.conditions.iter().map(|condition| condition.holds(packet)).min().unwrap_or(Truth::Yes)
    }
}

impl Filter {
    /// Whether it can drop a packet at all.
    pub(super) fn can_drop(&self) -> bool {
        let mut reached = vec![self.entry.as_str()];
        let mut at = 0;
        while let Some(chain) = reached.get(at) {
            for rule in self.chains.get(*chain).map_or(&[][..], Vec::as_slice) {
                match &rule.verdict {
                    Verdict::Drop => return true,
                    Verdict::Jump(next) | Verdict::Goto(next) if !reached.contains(&next.as_str()) => {
                        reached.push(next);
                    }
                    _ => {}
                }
            }
            at += 1;
        }
        self.drops_by_default
    }

    /// Returns the ports at which the outcome can change, in no order.
    pub(super) fn bounds(&self) -> impl Iterator<Item = u16> {
        let conditions = self.chains.values().flatten().flat_map(|rule| &rule.conditions);
        conditions
            .flat_map(|condition| match &condition.kind {
                Kind::Ports(ports) => ports.as_slice(),
                _ => &[],
            })
            .flat_map(|range| [*range.start(), range.end().saturating_add(1)])
    }

    /// Returns what happens to a packet.
    pub(super) fn judge(&self, packet: &Packet<'_>) -> Outcome {
        if self.family.is_some_and(|family| family != packet.family) {
            return Outcome::Open;
        }
        let ends = self.walk(&self.entry, packet, 0);
        let may_be_accepted = ends.may_accept || (ends.may_return && !self.drops_by_default);
        match ends.usual {
            End::Accept => Outcome::Open,
            End::Return if !self.drops_by_default => Outcome::Open,
            End::Drop | End::Return if may_be_accepted => Outcome::Uncertain,
            End::Drop | End::Return => Outcome::Closed,
        }
    }

    /// Returns how a chain can end for a packet.
    fn walk(&self, chain: &str, packet: &Packet<'_>, depth: u32) -> Ends {
        let (mut may_accept, mut may_return, mut usual) = (false, false, None);
        let rules = if depth > DEEPEST { None } else { self.chains.get(chain) };
        for rule in rules.map_or(&[][..], Vec::as_slice) {
            let truth = rule.applies(packet);
            if truth == Truth::No {
                continue;
            }
            let only = |end| Ends { may_accept: end == End::Accept, may_return: end == End::Return, usual: end };
            let (ends, comes_back) = match &rule.verdict {
                Verdict::Continue => continue,
                Verdict::Accept => (only(End::Accept), false),
                Verdict::Drop => (only(End::Drop), false),
                Verdict::Queue => (Ends { may_accept: true, ..only(End::Drop) }, false),
                Verdict::Return => (only(End::Return), false),
                Verdict::Jump(target) => (self.walk(target, packet, depth + 1), true),
                Verdict::Goto(target) => (self.walk(target, packet, depth + 1), false),
            };
            may_accept |= ends.may_accept;
            may_return |= ends.may_return && !comes_back;
            if truth == Truth::Yes && !(comes_back && ends.usual == End::Return) {
                usual = usual.or(Some(ends.usual));
            }
            if truth == Truth::Yes && !(comes_back && ends.may_return) {
                return Ends { may_accept, may_return, usual: usual.unwrap_or(End::Return) };
            }
        }
        Ends { may_accept, may_return: true, usual: usual.unwrap_or(End::Return) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: Packet<'_> = Packet { family: AddressFamily::V4, protocol: "udp", port: 3478, interfaces: &[] };

    fn rule(truth: Truth, verdict: Verdict) -> Rule {
        Rule { conditions: vec![Condition::new(Kind::Always(truth))], verdict }
    }

    fn judgement(drops_by_default: bool, chains: &[(&str, Vec<Rule>)]) -> Outcome {
        let chains = chains.iter().map(|(name, rules)| ((*name).to_owned(), rules.clone())).collect();
        Filter { program: "test", chains, entry: "in".to_owned(), drops_by_default, family: None }.judge(&PACKET)
    }

    #[test]
    fn the_first_rule_that_applies_decides_and_what_is_not_known_leaves_it_open() {
        use Truth::{Maybe, No, Yes};
        use Verdict::{Accept, Continue, Drop, Queue, Return};
        for (rules, by_default, expected) in [
            (vec![], false, Outcome::Open),
            (vec![], true, Outcome::Closed),
            (vec![rule(Yes, Continue), rule(Yes, Accept), rule(Yes, Drop)], true, Outcome::Open),
            (vec![rule(No, Accept), rule(Yes, Drop)], false, Outcome::Closed),
            (vec![rule(Maybe, Drop)], false, Outcome::Open),
            (vec![rule(Maybe, Accept)], true, Outcome::Uncertain),
            (vec![rule(Maybe, Accept), rule(Yes, Drop)], false, Outcome::Uncertain),
            (vec![rule(Yes, Queue)], false, Outcome::Uncertain),
            (vec![rule(Yes, Return), rule(Yes, Accept)], true, Outcome::Closed),
            (vec![rule(Maybe, Return), rule(Yes, Accept)], true, Outcome::Open),
            (vec![rule(Maybe, Return), rule(Yes, Drop)], false, Outcome::Uncertain),
        ] {
            assert_eq!(judgement(by_default, &[("in", rules.clone())]), expected, "{rules:?} {by_default}");
        }
    }

    #[test]
    fn chains_are_entered_and_left() {
        use Truth::{Maybe, Yes};
        let jump = |truth| rule(truth, Verdict::Jump("own".to_owned()));
        let goto = |truth| rule(truth, Verdict::Goto("own".to_owned()));
        let accepts = || vec![rule(Yes, Verdict::Accept)];
        let returns = || vec![rule(Yes, Verdict::Return)];
        for (first, own, expected) in [
            (jump(Yes), accepts(), Outcome::Open),
            (jump(Maybe), accepts(), Outcome::Open),
            (jump(Yes), returns(), Outcome::Open),
            (goto(Yes), returns(), Outcome::Closed),
            (jump(Yes), vec![rule(Yes, Verdict::Drop)], Outcome::Closed),
            (jump(Maybe), vec![rule(Yes, Verdict::Drop)], Outcome::Open),
            // A chain that is not there, and one that enters itself.
            (rule(Yes, Verdict::Jump("none".to_owned())), vec![], Outcome::Open),
            (jump(Yes), vec![jump(Yes)], Outcome::Open),
        ] {
            let rules = vec![first.clone(), rule(Yes, Verdict::Accept)];
            assert_eq!(judgement(true, &[("in", rules), ("own", own.clone())]), expected, "{first:?} {own:?}");
        }
    }

    #[test]
    fn interfaces_are_compared_with_those_of_the_server() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let own = names(&["eth0"]);
        for (listed, known, unknown) in [
            (&["lo"][..], Truth::No, Truth::No),
            (&["lo", "eth0"], Truth::Yes, Truth::Maybe),
            (&["eth*"], Truth::Yes, Truth::Maybe),
            (&["docker+"], Truth::No, Truth::Maybe),
        ] {
            assert_eq!(
                (is_through(&names(listed), &own), is_through(&names(listed), &[])),
                (known, unknown),
                "{listed:?}"
            );
        }
    }

    #[test]
    fn only_chains_that_a_packet_reaches_can_drop_it() {
        let filter = |entry: &str| {
            let rules = |verdict| vec![rule(Truth::Yes, verdict)];
            let chains =
                [("in", rules(Verdict::Jump("own".to_owned()))), ("own", rules(Verdict::Drop)), ("other", vec![])];
            let chains = chains.map(|(name, rules)| (name.to_owned(), rules)).into();
            Filter { program: "test", chains, entry: entry.to_owned(), drops_by_default: false, family: None }
        };
        assert_eq!([filter("in").can_drop(), filter("other").can_drop()], [true, false]);
    }
}
