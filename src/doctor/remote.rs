//! A TURN server as its clients see it.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use super::finding::{Finding, Status};
use super::ice_servers::{IceServer, is_stun};
use super::link::{Link, LinkError, is_timeout};
use super::relay::{self, Exchange, Relayed};
use super::session::{Problem, Session};
use super::trust::{Judgement, Trust};
use crate::auth::{HumanSeconds, time_limited};
use crate::client::{Discarded, Failure, Rejection, Request, Success};
use crate::clock;
use crate::net::tls::{Certificate, date};
use crate::special_purpose::{self, Reach};
use crate::stun::ErrorCode;
use crate::stun::attribute::AddressFamily;
use crate::transport::{Transport, TurnUri};

/// The time for a connection and its TLS handshake.
const CONNECT: Duration = Duration::from_secs(5);

/// The servers that are examined one after the other because each refers to the next one.
const REFERRALS: u32 = 3;

/// Reports findings as they come.
pub(super) type Report<'r> = &'r mut dyn FnMut(Finding);

/// Examines the servers of a list, each with each URI.
pub(super) fn examine(servers: &[IceServer], trust: &Trust, report: Report<'_>) {
    let mut bindings = Vec::new();
    for server in servers {
        for uri in &server.uris {
            match uri.parse::<TurnUri>() {
                Ok(uri) => {
                    let expected = Expected { name: Some(uri.host().to_owned()), certificate: None };
                    Examination { uri, expected, server, trust, referrals: 0 }.run(report, &mut bindings);
                }
                Err(_) if is_stun(uri) => {}
                // Some write the password in front of the host.
                Err(_) if uri.contains('@') => report(Finding::fault(
                    "uri",
                    "a URI of TURN contains no username and no password (RFC 7065)",
                    "write turn:HOST:PORT, and give username and password apart from it",
                )),
                Err(error) => report(Finding::fault("uri", error.to_string(), "correct it").of(uri)),
            }
        }
    }
    report_nat(&bindings, report);
}

/// Examines a server at an address.
pub(super) fn examine_at(
    uri: TurnUri,
    address: SocketAddr,
    expected: Expected,
    server: &IceServer,
    trust: &Trust,
    report: Report<'_>,
) {
    Examination { uri, expected, server, trust, referrals: 0 }.examine_address(address, report, &mut Vec::new());
}

/// What is known about the certificate of a server.
#[derive(Clone, Debug, Default)]
pub(super) struct Expected {
    /// What it has to name. `None`: this is not known, so its names are not judged.
    pub(super) name: Option<String>,
    /// The one in the file of the configuration.
    pub(super) certificate: Option<Certificate>,
}

impl Expected {
    /// Returns the warning if a listener serves another certificate than that of the file.
    fn differs_from(&self, judgement: &Judgement) -> Option<Finding> {
        let (file, served) = (self.certificate.as_ref()?, judgement.chain.first()?);
        (file != served).then(|| {
            Finding::warning(
                "certificate",
                format!(
                    "the listener serves another certificate (valid until {}) than that of the file (until {})",
                    date(served.not_after),
                    date(file.not_after)
                ),
                "reload the server: systemctl reload turnserver",
            )
        })
    }
}

/// How a network maps an address of this machine.
struct Binding {
    server: SocketAddr,
    local: SocketAddr,
    mapped: SocketAddr,
}

/// The examination of a URI.
struct Examination<'e> {
    uri: TurnUri,
    expected: Expected,
    server: &'e IceServer,
    trust: &'e Trust,
    /// How many servers have referred to this one.
    referrals: u32,
}

impl Examination<'_> {
    fn run(&self, report: Report<'_>, bindings: &mut Vec<Binding>) {
        let Some(addresses) = self.resolve(report) else { return };
        for address in addresses {
            self.examine_address(address, report, bindings);
        }
    }

    /// Returns the addresses of the host, in ascending order.
    fn resolve(&self, report: Report<'_>) -> Option<BTreeSet<SocketAddr>> {
        let host = self.uri.host();
        let found = (host, self.uri.port()).to_socket_addrs().map(Iterator::collect::<BTreeSet<_>>);
        let finding = match &found {
            Err(error) => Finding::fault(
                "dns",
                format!("{host} has no address: {error}"),
                "add an A record (and an AAAA record if the server has IPv6), or correct the name",
            ),
            Ok(addresses) if addresses.is_empty() => {
                Finding::fault("dns", format!("{host} has no address"), "add an A record, or correct the name")
            }
            Ok(addresses) => {
                let shown: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
                Finding::ok("dns", shown.join(", "))
            }
        };
        report(finding.of(&self.uri));
        found.ok().filter(|addresses| !addresses.is_empty())
    }

    fn examine_address(&self, address: SocketAddr, outer: Report<'_>, bindings: &mut Vec<Binding>) {
        let subject = if self.referrals == 0 {
            format!("{} ({})", self.uri, address.ip())
        } else {
            format!("{} ({address})", self.uri)
        };
        let mut report = |finding: Finding| outer(finding.of(&subject));
        let Some(mut session) = self.open(address, &mut report) else { return };
        match session.request(Request::Binding) {
            Ok(Success::Binding(mapped)) => {
                let local = session.link().local().ok();
                let nat = match local {
                    Some(local) if local == mapped => "without NAT".to_owned(),
                    Some(local) => format!("through NAT: {local} here"),
                    None => "from here".to_owned(),
                };
                report(Finding::ok("binding", format!("the server responds; it sees {mapped}, {nat}")));
                if let (Some(local), Transport::Udp) = (local, self.uri.transport()) {
                    bindings.push(Binding { server: address, local, mapped });
                }
            }
            Ok(_) => {}
            Err(problem) => return report(self.no_binding(&problem, session.link().text())),
        }
        let family = AddressFamily::of(address.ip());
        let relayed = match Relayed::allocate(session, family) {
            Ok(relayed) => relayed,
            Err(problem) => {
                if let Some((next, address)) = self.referral(address, &problem) {
                    report(Finding::ok("alternate", problem.to_string()));
                    return next.examine_address(address, outer, bindings);
                }
                let finding = self.clocks_differ(address, family, &problem);
                return report(finding.unwrap_or_else(|| self.no_allocation(&problem)));
            }
        };
        report(about_allocation(&relayed));
        report(about_relayed(relayed.address(), address));
        let mut failure = None;
        let Some(second) = self.open(address, &mut |finding| failure = Some(finding.what)) else {
            relayed.end();
            return report(Finding::fault(
                "relay",
                format!("a second connection does not work: {}", failure.unwrap_or_default()),
                "look for a limit of connections per client in the firewall and in the server",
            ));
        };
        match Relayed::allocate(second, family) {
            Ok(second) => self.examine_path(relayed, second, &mut report),
            Err(problem) => {
                relayed.end();
                report(Finding::warning(
                    "relay",
                    format!("one allocation works, a second one does not: {problem}"),
                    "raise the limit of allocations per user; a call needs one for each media stream of old clients",
                ));
            }
        }
    }

    /// Returns the examination of the server that this one refers to, and its address (RFC 8489 §10).
    fn referral(&self, address: SocketAddr, problem: &Problem) -> Option<(Self, SocketAddr)> {
        let Problem::Failure(Failure::TryAlternate { servers, domain }) = problem else { return None };
        let is_usable = |other: &&SocketAddr| other.is_ipv4() == address.is_ipv4() && **other != address;
        let next = servers.iter().find(is_usable).filter(|_| self.referrals < REFERRALS)?;
        let name = domain.clone().or_else(|| self.expected.name.clone());
        let expected = Expected { name, certificate: None };
        let Self { server, trust, .. } = *self;
        Some((Self { uri: self.uri.clone(), expected, server, trust, referrals: self.referrals + 1 }, *next))
    }

    /// Opens a path and reports how that went.
    fn open(&self, address: SocketAddr, report: Report<'_>) -> Option<Session> {
        let transport = self.uri.transport();
        let name = self.expected.name.clone().unwrap_or_else(|| address.ip().to_string());
        match Link::open(transport, address, &name, self.trust, CONNECT) {
            Ok((link, judgement)) => {
                if let Some(judgement) = judgement {
                    report(about_certificate(&judgement, self.expected.name.as_deref()));
                    self.expected.differs_from(&judgement).into_iter().for_each(&mut *report);
                }
                let opened = Session::new(link, self.server.credentials());
                opened.map_err(|error| report(Finding::fault("reachable", error.to_string(), "try again"))).ok()
            }
            Err(error) => {
                report(unreachable(transport, address, &error));
                None
            }
        }
    }

    /// `text`: what the server sent in place of a response.
    fn no_binding(&self, problem: &Problem, text: Option<&str>) -> Finding {
        let port = self.uri.port();
        let (what, advice) = match problem {
            _ if text.is_some() => (
                format!("the server does not speak TURN; it sends: {}", text.unwrap_or_default()),
                "something else listens on this port, for example a web server: correct the port".to_owned(),
            ),
            Problem::Failure(Failure::NoResponse { .. }) if self.uri.transport() == Transport::Udp => (
                format!("no response on UDP: {problem}"),
                format!(
                    "check that the server listens on UDP port {port}, and that firewalls (of the machine and of its \
                     provider) let it through in both directions; if other UDP works, the network of this machine is not \
                     the cause"
                ),
            ),
            Problem::Link(LinkError::Io(error)) if error.kind() == io::ErrorKind::ConnectionRefused => (
                format!("nothing listens on UDP port {port}, or a firewall rejects it"),
                "start the server, or correct the port".to_owned(),
            ),
            Problem::Link(LinkError::Io(error))
                if matches!(error.kind(), io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) =>
            {
                (
                    format!("a firewall or a router rejects packets to UDP port {port}: {error}"),
                    "open the port in the firewalls of the machine and of its provider".to_owned(),
                )
            }
            Problem::Link(LinkError::NotFramed(_)) => (
                problem.to_string(),
                "something else listens on this port, for example a web server: correct the port or the protocol"
                    .to_owned(),
            ),
            Problem::Link(LinkError::Closed) => (
                "the server closed the connection after a Binding request".to_owned(),
                "check that the port is one of TURN with this transport (TLS or not), and look into the log of the server"
                    .to_owned(),
            ),
            _ => (problem.to_string(), "look into the log of the server".to_owned()),
        };
        Finding::fault("binding", what, advice)
    }

    fn no_allocation(&self, problem: &Problem) -> Finding {
        let Problem::Failure(failure) = problem else {
            return Finding::fault("allocation", problem.to_string(), "look into the log of the server");
        };
        let (check, advice) = match failure {
            Failure::CredentialsRequired { .. } => {
                ("credentials", "give a username and a password, or a secret".to_owned())
            }
            Failure::CredentialsRefused { .. } => return self.refused(failure),
            Failure::Rejected(rejection) => ("allocation", advice_for(rejection.code).to_owned()),
            Failure::NotAuthentic(Discarded::WrongIntegrity) => (
                "credentials",
                "the server accepts the username, but uses another password or realm for its response".to_owned(),
            ),
            Failure::NotAuthentic(Discarded::Unauthenticated(Some(code))) => {
                ("allocation", advice_for(*code).to_owned())
            }
            Failure::TryAlternate { .. } => (
                "allocation",
                "let it refer to a server with another address of the same family, and not in a circle".to_owned(),
            ),
            Failure::Missing(_) | Failure::Malformed(..) | Failure::NotUnderstood(_) | Failure::FamilyMissing(_) => {
                ("allocation", "the server breaks RFC 8656: report it to its authors".to_owned())
            }
            _ => ("allocation", "look into the log of the server".to_owned()),
        };
        Finding::fault(check, failure.to_string(), advice)
    }

    /// Returns the fault if the server refuses the credential only because it has expired there.
    fn clocks_differ(&self, address: SocketAddr, family: AddressFamily, problem: &Problem) -> Option<Finding> {
        const LIFETIMES: [u64; 5] = [2 * 3_600, 86_400, 30 * 86_400, 365 * 86_400, 3_650 * 86_400];
        let (Problem::Failure(Failure::CredentialsRefused { .. }), Some(secret)) = (problem, &self.server.secret)
        else {
            return None;
        };
        let is_accepted = |lifetime: u64| -> Option<()> {
            let server = IceServer::minted(Vec::new(), secret, lifetime);
            let (uri, expected) = (self.uri.clone(), self.expected.clone());
            let again = Examination { uri, expected, server: &server, trust: self.trust, referrals: self.referrals };
            let session = again.open(address, &mut |_| {})?;
            Relayed::allocate(session, family).ok()?.end();
            Some(())
        };
        let [.., longest] = LIFETIMES;
        is_accepted(longest)?;
        let accepted = LIFETIMES.into_iter().find(|lifetime| is_accepted(*lifetime).is_some()).unwrap_or(longest);
        Some(Finding::fault(
            "clock",
            format!(
                "the server accepts the secret, but takes a new credential for an expired one: the clock of this machine is \
                 behind that of the server, by less than {}",
                HumanSeconds(accepted)
            ),
            "compare both clocks with the right time, and turn on a time service where it is wrong: timedatectl set-ntp true",
        ))
    }

    /// The server does not accept the credentials.
    fn refused(&self, failure: &Failure) -> Finding {
        let now = clock::unix_seconds();
        let username = self.server.username.as_deref().unwrap_or_default();
        // A name of digits, such as that of a telephone, is no time.
        let parsed = time_limited::TimeLimitedUsername::parse(username)
            .filter(|parsed| time_limited::is_plausible_time(parsed.expires));
        if let Some(ago) = parsed.and_then(|parsed| time_limited::expired_for(parsed.expires, now)) {
            return Finding::fault(
                "credentials",
                format!("the credential expired {} ago: {failure}", HumanSeconds(ago)),
                "get a new one; if it is new, compare the clocks of this machine and of the one that made it",
            );
        }
        let advice = match (parsed, self.server.secret.is_some()) {
            (_, true) => {
                "compare the secret with that of the server (auth.secrets; coturn: static-auth-secret with \
                 use-auth-secret), and the clocks of both machines"
            }
            (Some(_), false) => {
                "the username has an expiry in the future, so the password was made with another secret, or the clock of \
                 the server is wrong"
            }
            (None, false) => {
                "check the username and the password; a user that is stored with a key also depends on the realm above"
            }
        };
        Finding::fault("credentials", failure.to_string(), advice)
    }

    fn examine_path(&self, mut first: Relayed, mut second: Relayed, report: Report<'_>) {
        self.examine_data(&mut first, &mut second, report);
        first.end();
        second.end();
    }

    fn examine_data(&self, first: &mut Relayed, second: &mut Relayed, report: Report<'_>) {
        match relay::permit(first, second) {
            Ok(()) => {}
            Err(problem @ Problem::Failure(Failure::Rejected(Rejection { code: ErrorCode::FORBIDDEN, .. }))) => {
                return report(Finding::fault(
                    "relay",
                    format!("the server does not permit its own relayed addresses as peers: {problem}"),
                    "allow them (peers.allow; coturn: allowed-peer-ip): calls in which both sides use this server need it",
                ));
            }
            Err(problem) => return report(broken(&problem)),
        }
        match relay::exchange(first, second, false) {
            Ok(exchange) => {
                report(about_exchange("indications", &exchange, first.address()));
                // Channels use the same path.
                if exchange.returned == 0 {
                    return;
                }
            }
            Err(problem) => return report(broken(&problem)),
        }
        if let Err(problem) = relay::bind_channels(first, second) {
            return report(Finding::fault("channels", problem.to_string(), "look into the log of the server"));
        }
        match relay::exchange(first, second, true) {
            Ok(exchange) => {
                let works = exchange.returned > 0;
                report(about_exchange("channels", &exchange, first.address()));
                if works {
                    examine_mtu(first, second, report);
                }
            }
            Err(problem) => report(broken(&problem)),
        }
    }
}

fn examine_mtu(first: &mut Relayed, second: &mut Relayed, report: Report<'_>) {
    let Some(socket) = first.session.link().udp() else { return };
    if crate::net::udp::forbid_fragments(socket).is_err() {
        return;
    }
    match relay::largest_data(first, second) {
        Ok(Some(largest)) if largest >= 1_200 => {
            report(Finding::ok(
                "mtu",
                format!("{largest} bytes of data pass from here to the server without fragments"),
            ));
        }
        Ok(largest) => report(Finding::warning(
            "mtu",
            format!(
                "only {} bytes of data pass from here to the server without fragments; WebRTC sends up to 1200",
                largest.unwrap_or_default()
            ),
            "raise the MTU on the way (tunnels and VPNs lower it), or let ICMP messages about it pass",
        )),
        Err(problem) => report(broken(&problem)),
    }
}

fn broken(problem: &Problem) -> Finding {
    Finding::fault("relay", format!("the path broke: {problem}"), "look into the log of the server")
}

fn unreachable(transport: Transport, address: SocketAddr, error: &LinkError) -> Finding {
    let (protocol, port) = (transport.port_protocol().to_uppercase(), address.port());
    let (what, advice) = match error {
        LinkError::Io(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => (
                format!("nothing listens on {protocol} port {port}, or a firewall rejects it"),
                "start the server, correct the port, or remove the URI".to_owned(),
            ),
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => (
                format!("no response on {protocol} port {port} within {} s", CONNECT.as_secs()),
                "open the port in the firewalls of the machine and of its provider; check the address".to_owned(),
            ),
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => (
                format!("there is no route to {}: {error}", address.ip()),
                "this machine lacks that address family or a route; the server may work from elsewhere".to_owned(),
            ),
            io::ErrorKind::PermissionDenied => (
                format!("this machine forbids packets to {}: {error}", address.ip()),
                "look into the firewall and the rules of routing (ip rule) here".to_owned(),
            ),
            _ => (error.to_string(), "check address and port".to_owned()),
        },
        LinkError::Tls(error) => (
            if is_timeout(error) {
                format!(
                    "{protocol} port {port} accepts connections, but the TLS handshake does not end within {} s",
                    CONNECT.as_secs()
                )
            } else {
                format!("the TLS handshake failed: {error}")
            },
            "check that this port has TLS (in nginx: a stream, not http), and look into the log of the server"
                .to_owned(),
        ),
        other => (other.to_string(), "check that the server speaks TURN on this port".to_owned()),
    };
    Finding::fault("reachable", what, advice)
}

fn about_certificate(judgement: &Judgement, host: Option<&str>) -> Finding {
    match judgement.complaint(host) {
        Some((what, advice)) => Finding::fault("certificate", what, advice),
        None => Finding::ok("certificate", judgement.description()),
    }
}

fn about_allocation(relayed: &Relayed) -> Finding {
    let client = relayed.session.client();
    let realm = client.session().map_or("no realm", |session| session.realm());
    let software = client.software().map_or_else(String::new, |software| format!(", software {software}"));
    let lifetime = HumanSeconds(relayed.allocation.lifetime.as_secs());
    Finding::ok(
        "allocation",
        format!("the credentials are accepted in the realm {realm}{software}; lifetime {lifetime}"),
    )
}

fn about_relayed(relayed: SocketAddr, server: SocketAddr) -> Finding {
    let shown = format!("the relayed address is {relayed}");
    match special_purpose::find(relayed.ip()) {
        Some(range) if range.reach != Reach::Global => {
            let what = format!("{shown}, which is {}: peers elsewhere cannot reach it", range.kind);
            let advice = "set the public address of the server (relay.external; coturn: external-ip)";
            // A server in the same network is reached by this address.
            let is_near = special_purpose::find(server.ip()).is_some_and(|range| range.reach != Reach::Global);
            if is_near {
                Finding::warning("relayed-address", what, advice)
            } else {
                Finding::fault("relayed-address", what, advice)
            }
        }
        _ => Finding::ok("relayed-address", shown),
    }
}

fn about_exchange(check: &'static str, exchange: &Exchange, relayed: SocketAddr) -> Finding {
    let Exchange { sent, arrived, returned, .. } = exchange;
    let icmp = exchange.icmp.map_or_else(String::new, |icmp| format!("; ICMP type {} code {}", icmp.kind, icmp.code));
    if *arrived == 0 {
        return Finding::fault(
            check,
            format!("no data passes from one relayed address to another{icmp}"),
            format!(
                "open the UDP relay ports in the firewalls (port {} is one); behind 1:1 NAT, the router has to return \
                 packets for the public address (hairpinning), or the server has to know it",
                relayed.port()
            ),
        );
    }
    if *returned == 0 {
        return Finding::fault(
            check,
            format!("data arrives in one direction only: {arrived} of {sent} messages arrived, none came back{icmp}"),
            "look for a firewall that lets the relay ports through in one direction only",
        );
    }
    let times = format!(
        "round trip {:.1} ms median, {:.1} ms 95 %, {:.1} ms at most",
        exchange.quantile(50).as_secs_f64() * 1e3,
        exchange.quantile(95).as_secs_f64() * 1e3,
        exchange.quantile(100).as_secs_f64() * 1e3
    );
    let lost = (sent - arrived) + (arrived - returned);
    let messages = sent + arrived;
    if lost > 0 {
        let what = format!("{lost} of {messages} messages were lost; {times}{icmp}");
        return Finding::warning(check, what, "look for overload, for small socket buffers, and for a bad link");
    }
    if let Some(source) = exchange.other_source {
        let what = format!("data of {relayed} comes from {source}; {times}");
        return Finding::warning(check, what, "peers check that; the router of the server changes its source address");
    }
    Finding::ok(check, format!("{messages} of {messages} messages arrived; {times}"))
}

fn advice_for(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::FORBIDDEN => "the server forbids this to this user or this peer: look into its configuration",
        ErrorCode::ALLOCATION_MISMATCH => "an allocation of this port is left over: try again later",
        ErrorCode::ADDRESS_FAMILY_NOT_SUPPORTED => "the server has no relay address of this family: add one",
        ErrorCode::ALLOCATION_QUOTA_REACHED => {
            "the user has as many allocations as the server permits: raise the limit"
        }
        ErrorCode::INSUFFICIENT_CAPACITY => {
            "the server has no free port or relay address, drains, or is full: look into its log"
        }
        ErrorCode::UNSUPPORTED_TRANSPORT_PROTOCOL => "the server does not relay UDP: it is no server for WebRTC",
        _ => "look into the log of the server",
    }
}

/// Compares the addresses that servers saw, those of each family.
fn report_nat(bindings: &[Binding], report: Report<'_>) {
    let (v4, v6): (Vec<&Binding>, Vec<&Binding>) = bindings.iter().partition(|binding| binding.local.is_ipv4());
    report_nat_of("IPv4", &v4, report);
    report_nat_of("IPv6", &v6, report);
}

fn report_nat_of(family: &str, bindings: &[&Binding], report: Report<'_>) {
    if bindings.is_empty() {
        return;
    }
    let is_mapped = |binding: &&&Binding| binding.local.ip() != binding.mapped.ip();
    let bindings: Vec<&Binding> = bindings.iter().filter(is_mapped).copied().collect();
    let [first, others @ ..] = bindings.as_slice() else {
        return report(Finding::ok("nat", format!("{family}: there is no NAT between this machine and the servers")));
    };
    let keeps_port = bindings.iter().all(|binding| binding.local.port() == binding.mapped.port());
    let addresses: Vec<String> = bindings
        .iter()
        .map(|binding| format!("{} → {} (seen by {})", binding.local, binding.mapped, binding.server))
        .collect();
    let one_address = others.iter().all(|binding| binding.mapped.ip() == first.mapped.ip());
    let what = format!(
        "{family}: {}; {}, {}",
        addresses.join(", "),
        if one_address { "one public address" } else { "several public addresses" },
        if keeps_port { "ports are kept" } else { "ports change" }
    );
    let finding = Finding::ok("nat", what);
    let advice = "calls from this network need a relay: peers see other addresses than the STUN server does";
    let several = || Finding { status: Status::Warning, advice: Some(advice.to_owned()), ..finding.clone() };
    report(if one_address { finding } else { several() });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Secret;
    use crate::stun::attribute::Icmp;

    fn at(address: &str) -> SocketAddr {
        address.parse().unwrap()
    }

    #[test]
    fn an_exchange_is_judged_by_what_arrives_in_each_direction() {
        let relayed = at("203.0.113.1:50000");
        let judge = |exchange: &Exchange| {
            let Finding { check, status, what, .. } = about_exchange("channels", exchange, relayed);
            assert_eq!(check, "channels");
            (status, what)
        };
        let counts = |sent, arrived, returned| Exchange { sent, arrived, returned, ..Exchange::default() };
        let icmp = Some(Icmp { kind: 3, code: 13, data: 0 });
        let nothing = judge(&Exchange { icmp, ..counts(3, 0, 0) });
        let text = "no data passes from one relayed address to another; ICMP type 3 code 13".to_owned();
        assert_eq!(nothing, (Status::Fault, text));
        let one_way = judge(&counts(3, 3, 0));
        let text = "data arrives in one direction only: 3 of 3 messages arrived, none came back".to_owned();
        assert_eq!(one_way, (Status::Fault, text));
        let (status, text) = judge(&counts(20, 19, 17));
        assert_eq!(status, Status::Warning);
        assert!(text.starts_with("3 of 39 messages were lost; round trip "), "{text}");
        let other_source = Some(at("192.0.2.1:50000"));
        let (status, text) = judge(&Exchange { other_source, ..counts(20, 20, 20) });
        assert_eq!(status, Status::Warning);
        assert!(text.starts_with("data of 203.0.113.1:50000 comes from 192.0.2.1:50000; "), "{text}");
        let (status, text) = judge(&counts(20, 20, 20));
        assert_eq!(status, Status::Ok);
        assert!(text.starts_with("40 of 40 messages arrived; "), "{text}");
    }

    #[test]
    fn the_nat_of_each_family_is_reported_for_itself() {
        let judge = |bindings: &[[&str; 3]]| {
            let binding = |[server, local, mapped]: &[&str; 3]| Binding {
                server: at(server),
                local: at(local),
                mapped: at(mapped),
            };
            let (bindings, mut found) = (bindings.iter().map(binding).collect::<Vec<_>>(), Vec::new());
            report_nat(&bindings, &mut |finding| found.push((finding.status, finding.what)));
            found
        };
        assert_eq!(judge(&[]), []);
        let first = ["192.0.2.1:3478", "10.0.0.2:4000", "203.0.113.1:4000"];
        let same = ["192.0.2.2:3478", "10.0.0.2:4001", "203.0.113.1:5001"];
        let other = ["192.0.2.2:3478", "10.0.0.2:4001", "203.0.113.2:4001"];
        let without = ["[2001:db8::1]:3478", "[2001:db8::2]:4000", "[2001:db8::2]:4000"];
        let text =
            "IPv4: 10.0.0.2:4000 → 203.0.113.1:4000 (seen by 192.0.2.1:3478); one public address, ports are kept";
        let no_nat = (Status::Ok, "IPv6: there is no NAT between this machine and the servers".to_owned());
        assert_eq!(judge(&[first, without]), [(Status::Ok, text.to_owned()), no_nat.clone()]);
        let [(status, text)] = judge(&[first, same]).try_into().unwrap();
        assert!(status == Status::Ok && text.ends_with("; one public address, ports change"), "{text}");
        let [(status, text), ipv6] = judge(&[first, without, other]).try_into().unwrap();
        assert!(status == Status::Warning && text.ends_with("; several public addresses, ports are kept"), "{text}");
        assert_eq!(ipv6, no_nat);
    }

    #[test]
    fn credentials_that_are_refused_are_explained_by_their_kind() {
        let trust = Trust::new(None).unwrap();
        let judge = |username: &str, is_minted: bool| {
            let secret = is_minted.then(|| Secret::new("a secret").unwrap());
            let (uris, username) = (Vec::new(), Some(username.to_owned()));
            let server = IceServer { uris, username, password: None, secret };
            let uri = "turn:192.0.2.1".parse().unwrap();
            let (code, reason, unknown) = (ErrorCode::UNAUTHENTICATED, "no".to_owned(), Vec::new());
            let rejection = Rejection { code, reason, unknown };
            let failure = Failure::CredentialsRefused { realm: "r".to_owned(), rejection };
            let examination =
                Examination { uri, expected: Expected::default(), server: &server, trust: &trust, referrals: 0 };
            let finding = examination.refused(&failure);
            assert_eq!((finding.check, finding.status), ("credentials", Status::Fault));
            (finding.what, finding.advice.unwrap())
        };
        let now = clock::unix_seconds();
        let (what, advice) = judge(&format!("{}:ann", now - 7_200), false);
        assert!(what.starts_with("the credential expired 2 h"), "{what}");
        assert!(advice.starts_with("get a new one"), "{advice}");
        let future = format!("{}:ann", now + 7_200);
        assert!(judge(&future, false).1.starts_with("the username has an expiry in the future"));
        assert!(judge(&future, true).1.starts_with("compare the secret"));
        // A telephone number and an extension are no times.
        for username in ["ann", "491234567:ann", "4711"] {
            let (what, advice) = judge(username, false);
            assert!(!what.contains("expired") && advice.starts_with("check the username"), "{username}: {what}");
        }
    }
}
