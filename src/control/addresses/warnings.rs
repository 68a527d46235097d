//! Warnings about relay addresses and mappings.

use std::net::IpAddr;

use super::reachability::{Reachability, reachability};
use super::{Candidate, Family, available, enumerate};
use crate::setting::{RELAY_ADDRESSES, RELAY_EXTERNAL};

/// Warns of mappings that have no effect or that advertise an address that clients elsewhere cannot reach.
pub(super) fn of_mappings(external: &[(IpAddr, IpAddr)], candidates: &[Candidate<'_>]) -> Vec<String> {
    let is_own = |ip: IpAddr| candidates.iter().any(|candidate| candidate.ip == ip);
    let canonical = external.iter().map(|(inside, outside)| (inside.to_canonical(), outside.to_canonical()));
    let warning = |(inside, outside): (IpAddr, IpAddr)| {
        // Exchanging a private address on the left and a public one on the right would not help.
        let public_outside =
            reachability(outside) == Reachability::Global && reachability(inside) != Reachability::Global;
        if is_own(outside) && !is_own(inside) && !public_outside {
            return Some(format!(
                "{RELAY_EXTERNAL} maps {inside} to {outside}, but {outside} is the address of this machine. The address \
                 of this machine is on the left: external = {{ \"{outside}\" = \"{inside}\" }}"
            ));
        }
        if !is_own(inside) {
            let available = available(candidates);
            return Some(format!(
                "{RELAY_EXTERNAL} maps {inside}, which is not among the addresses of this machine: {available}"
            ));
        }
        match reachability(outside) {
            Reachability::Global => None,
            Reachability::Private("documentation") => Some(format!(
                "{RELAY_EXTERNAL} advertises {outside}, which is an address for examples in documentation: set the \
                 public address of this server in its place, or no client elsewhere can use the relay"
            )),
            Reachability::Private(kind) => Some(format!(
                "{RELAY_EXTERNAL} advertises {outside}, which is a {kind} address: clients in other networks cannot \
                 reach it. Set the public address of this server in its place"
            )),
            Reachability::LinkLocal | Reachability::Loopback => Some(format!(
                "{RELAY_EXTERNAL} advertises {outside}, which no other network can reach: set the public address of \
                 this server in its place"
            )),
        }
    };
    canonical.filter_map(warning).collect()
}

/// Warns of unmapped addresses that some clients cannot reach. The private ones have one warning for all.
pub(super) fn of_limited_reach(chosen: &[&Candidate<'_>], detected: bool) -> Vec<String> {
    let (mut warnings, mut private, mut loopback) = (Vec::new(), Vec::new(), Vec::new());
    for candidate in chosen.iter().filter(|candidate| candidate.external.is_none()) {
        let Candidate { ip, interface, .. } = candidate;
        match candidate.reachability {
            Reachability::Global => {}
            Reachability::Loopback => loopback.push(*ip),
            Reachability::LinkLocal => {
                warnings.push(format!(
                    "relay address {ip} of {} is link-local: it is reachable only from its own link",
                    interface.name
                ));
            }
            Reachability::Private(kind) => private.push((*ip, kind)),
        }
    }
    let is_public =
        |candidate: &&&Candidate<'_>| candidate.external.is_some() || candidate.reachability == Reachability::Global;
    let public: Vec<String> = chosen.iter().filter(is_public).map(|public| format!("\"{}\"", public.ip)).collect();
    if let Some((first, _)) = private.first() {
        let list: Vec<String> = private.iter().map(|(ip, kind)| format!("{ip} ({kind})")).collect();
        let list = list.join(" and ");
        warnings.push(if detected && !public.is_empty() {
            let public = public.join(", ");
            format!(
                "other networks cannot reach the relay address {list}. To omit it, set addresses = [{public}] in [relay]"
            )
        } else {
            format!(
                "other networks cannot reach the relay address {list}. A trial on this machine or in its network works \
                 all the same. To serve others, set external = {{ \"{first}\" = \"PUBLIC ADDRESS\" }} in [relay]"
            )
        });
    }
    if !loopback.is_empty() {
        let list = enumerate(&loopback);
        warnings.push(if detected {
            format!(
                "only programs on this machine can use the relay, because it has only loopback addresses: {list}. \
                 Browsers do not use them, so a browser on this machine gathers no candidates"
            )
        } else {
            format!("only programs on this machine can use the relay at its loopback address {list}")
        });
    }
    warnings
}

/// Warns of configured addresses that the machine does not have or cannot use, and of a machine without any relay
/// address.
pub(super) fn of_missing(missing: &[IpAddr], none: bool, candidates: &[Candidate<'_>]) -> Vec<String> {
    if missing.is_empty() && none {
        return vec![format!(
            "the server waits for a relay address: no network interface has a usable one yet. Until then it rejects \
             allocations with 508. To use it only on this machine, set {RELAY_ADDRESSES} to [\"127.0.0.1\"]"
        )];
    }
    let is_own = |ip: &IpAddr| candidates.iter().any(|candidate| candidate.ip == *ip);
    let (unusable, absent): (Vec<IpAddr>, Vec<IpAddr>) = missing.iter().partition(|ip| is_own(ip));
    of_absent(&absent, candidates).into_iter().chain(of_unusable(&unusable, candidates)).collect()
}

/// Warns of configured addresses that the machine does not have.
fn of_absent(absent: &[IpAddr], candidates: &[Candidate<'_>]) -> Option<String> {
    let &outside = absent.first()?;
    let same_family = candidates.iter().filter(|candidate| Family::of(candidate.ip) == Family::of(outside));
    let usable = same_family.filter(|candidate| candidate.is_routable() && candidate.is_usable());
    let inside = usable.min_by_key(|candidate| candidate.rank());
    let example = inside.map_or(String::new(), |inside| {
        format!(": addresses = [\"{0}\"] and external = {{ \"{0}\" = \"{outside}\" }}", inside.ip)
    });
    let (is, it) = number(absent);
    Some(format!(
        "{RELAY_ADDRESSES}: {} {is} not among the addresses of this machine: {}. The server waits for {it}. Behind 1:1 \
         NAT, set `addresses` to the inside address and map it in `external`{example}",
        enumerate(absent),
        available(candidates),
    ))
}

/// Warns of configured addresses that the machine has and cannot use at present.
fn of_unusable(unusable: &[IpAddr], candidates: &[Candidate<'_>]) -> Option<String> {
    let reason = |candidate: &Candidate<'_>| {
        let obstacle = candidate.obstacle()?;
        let name = &candidate.interface.name;
        Some(if candidate.interface.up { format!("{} is {obstacle}", candidate.ip) } else { format!("{name} is down") })
    };
    let mut reasons: Vec<String> =
        candidates.iter().filter(|candidate| unusable.contains(&candidate.ip)).filter_map(reason).collect();
    reasons.dedup();
    let (is, it) = number(unusable);
    (!unusable.is_empty()).then(|| {
        format!(
            "{RELAY_ADDRESSES}: {} {is} not usable at present ({}). The server waits for {it}",
            enumerate(unusable),
            reasons.join(", ")
        )
    })
}

/// Returns the verb and the pronoun for a number of addresses.
fn number(addresses: &[IpAddr]) -> (&'static str, &'static str) {
    if addresses.len() == 1 { ("is", "it") } else { ("are", "them") }
}
