//! The listeners: whether their ports are free, or who uses them, and the relay path through a running server.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use super::socket_unit::SocketUnit;
use super::{certificates, reachable};
use crate::client::{Allocate, Failure, Request};
use crate::config::{Config, Front, StaticUser};
use crate::control::Choice;
use crate::doctor::finding::{Finding, Status};
use crate::doctor::ice_servers::IceServer;
use crate::doctor::link::{Link, LinkError};
use crate::doctor::remote::{self, Expected, Report};
use crate::doctor::session::{Problem, Session};
use crate::doctor::trust::Trust;
use crate::net::tls;
use crate::setting::LISTEN_PROXIES;
use crate::transport::{Endpoint, Transport, TurnUri};

/// The time for a connection to this machine.
const CONNECT: Duration = Duration::from_secs(2);

/// The lifetime of the credential for the relay path, in seconds.
const LIFETIME: u64 = 600;

/// The beginning of SOFTWARE of this server.
const SOFTWARE: &str = concat!(env!("CARGO_PKG_NAME"), "/");

/// The listeners of a machine.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Those of a running server with this configuration.
    pub(super) running: Vec<Endpoint>,
    /// Whether something is wrong with a listener, which explains why no such server responds.
    is_wrong: bool,
}

/// Examines the ports.
pub(super) fn examine(config: &Config, sockets: Option<&SocketUnit>, trust: &Trust, report: Report<'_>) -> Found {
    let mut found = Found::default();
    let is_passed = |endpoint| sockets.is_some_and(|sockets| sockets.passes(endpoint));
    // A front serves TURN over TCP at once, and over TLS by the server name.
    let of_fronts = config.fronts.iter().map(|front| Endpoint::new(Transport::Tcp, front.listen));
    let all: Vec<Endpoint> = config.listen.iter().copied().chain(of_fronts).collect();
    for endpoint in all.iter().filter(|endpoint| endpoint.address.port() > 0) {
        let (port, protocol) = (endpoint.address.port(), endpoint.transport.port_protocol());
        let finding = match bind(*endpoint) {
            Ok(()) => Finding::ok("listener", "the port is free; the server does not run"),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let occupant = occupant(*endpoint, config, trust);
                if occupant.is_this() {
                    found.running.push(*endpoint);
                }
                match occupant {
                    Occupant::Program(_) if is_passed(*endpoint) => held_by_systemd(),
                    occupant => occupant.finding(port),
                }
            }
            // The kernel says this also if the port is in use.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let occupant = occupant(*endpoint, config, trust);
                if occupant.is_this() {
                    found.running.push(*endpoint);
                }
                match occupant {
                    Occupant::Program(_) if is_passed(*endpoint) => held_by_systemd(),
                    occupant => occupant.finding_without_privilege(protocol, port),
                }
            }
            // The relay addresses say it.
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => continue,
            Err(error) => Finding::fault("listener", error.to_string(), "correct the address"),
        };
        found.is_wrong |= finding.status != Status::Ok;
        report(finding.of(endpoint));
    }
    found
}

/// Judges a port that systemd holds for the service.
fn held_by_systemd() -> Finding {
    Finding::warning(
        "listener",
        "turnserver.socket holds the port for the service, and no server responds there",
        "start the service, and look into its log: journalctl -u turnserver",
    )
}

fn bind(endpoint: Endpoint) -> io::Result<()> {
    if endpoint.transport.is_connection() {
        TcpListener::bind(endpoint.address).map(drop)
    } else {
        UdpSocket::bind(endpoint.address).map(drop)
    }
}

/// Who uses a port.
enum Occupant {
    /// A server that accepts the credentials of the configuration, with its SOFTWARE if it says it.
    Server(Option<String>),
    /// A server that cannot be told apart, because the configuration has no credentials.
    Unknown,
    /// A server that refuses the credentials of the configuration.
    Refuses,
    /// A server that responds to Binding requests, and why it makes no allocation.
    Stun(String),
    /// A program that does not respond like a TURN server.
    Program(String),
    /// The server expects a PROXY header from this address of this machine.
    BehindProxy(IpAddr),
}

impl Occupant {
    /// Whether it is the server of the configuration, as far as it can be told.
    fn is_this(&self) -> bool {
        match self {
            Self::Server(software) => software.as_ref().is_none_or(|software| software.starts_with(SOFTWARE)),
            Self::Unknown => true,
            Self::Refuses | Self::Stun(_) | Self::Program(_) | Self::BehindProxy(_) => false,
        }
    }

    /// Judges the occupant of a port that this user may not use. Without a server, it may be free.
    fn finding_without_privilege(&self, protocol: &str, port: u16) -> Finding {
        match self {
            Self::Program(_) => Finding::warning(
                "listener",
                format!("this user may not listen on {protocol} port {port}, and no TURN server responds there"),
                "run the server by its unit, which has CAP_NET_BIND_SERVICE, or pass it the socket (docs/install.md), and \
                 run this command as root",
            ),
            _ => self.finding(port),
        }
    }

    fn finding(&self, port: u16) -> Finding {
        let stop = || format!("stop it (`ss -lnp 'sport = :{port}'` names it), or use another port");
        match self {
            Self::Server(software) if self.is_this() => {
                Finding::ok("listener", format!("{} runs and responds", software.as_deref().unwrap_or("the server")))
            }
            Self::Server(software) => {
                let software = software.as_deref().unwrap_or_default();
                Finding::fault("listener", format!("another server uses the port: {software}"), stop())
            }
            Self::Unknown => Finding::ok("listener", "a server runs and responds"),
            Self::Refuses => Finding::fault(
                "listener",
                "a TURN server uses the port and refuses the credentials of this configuration",
                "if it is this server, reload or restart it; otherwise, stop it or use another port",
            ),
            Self::Stun(problem) => Finding::fault(
                "listener",
                format!("a STUN server uses the port and responds, but Allocate fails: {problem}"),
                "if it is this server, look into its log; otherwise, stop it or use another port",
            ),
            Self::BehindProxy(own) => Finding::warning(
                "listener",
                format!("the port is in use and not examined: {LISTEN_PROXIES} has {own}, so this machine is a proxy"),
                "run this command against the proxy, with --url, or remove the address",
            ),
            Self::Program(error) => Finding::fault(
                "listener",
                format!("another program uses the port, and it is not a TURN server: {error}"),
                stop(),
            ),
        }
    }
}

fn occupant(endpoint: Endpoint, config: &Config, trust: &Trust) -> Occupant {
    // A connection to an own address comes from the same address.
    let own: &[IpAddr] = match endpoint.address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => &[IpAddr::V4(Ipv4Addr::LOCALHOST)],
        IpAddr::V6(ip) if ip.is_unspecified() => &[IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)],
        ip => &[ip],
    };
    let is_proxy = |own: &&IpAddr| config.proxies.iter().any(|network| network.contains(*own));
    if let Some(own) = own.iter().find(is_proxy) {
        return Occupant::BehindProxy(*own);
    }
    let server = credential(config);
    let open = |ip: IpAddr| {
        let address = SocketAddr::new(ip, endpoint.address.port());
        let name = name(config).unwrap_or_else(|| ip.to_string());
        let (link, _) = Link::open(endpoint.transport, address, &name, trust, CONNECT)?;
        Ok::<_, LinkError>(Session::new(link, server.as_ref().and_then(IceServer::credentials))?)
    };
    let session = match endpoint.address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => open(Ipv4Addr::LOCALHOST.into()),
        // Such a socket also receives IPv4, and IPv6 may be off.
        IpAddr::V6(ip) if ip.is_unspecified() => {
            open(Ipv6Addr::LOCALHOST.into()).or_else(|_| open(Ipv4Addr::LOCALHOST.into()))
        }
        ip => open(ip),
    };
    let mut session = match session {
        Ok(session) => session,
        Err(error) => return Occupant::Program(error.to_string()),
    };
    if let Err(problem) = session.request(Request::Binding) {
        return Occupant::Program(problem.to_string());
    }
    if server.is_none() {
        let software = session.client().software();
        // A server need not send its name.
        return match software.filter(|software| !software.starts_with(SOFTWARE)) {
            Some(software) => Occupant::Server(Some(software.to_owned())),
            None => Occupant::Unknown,
        };
    }
    match session.request(Request::Allocate(Allocate::default())) {
        Ok(_) => {
            let _ = session.request(Request::Refresh(0));
            Occupant::Server(session.client().software().map(str::to_owned))
        }
        // A server that rejects an authenticated request, for example because it drains, has accepted the credentials.
        Err(Problem::Failure(Failure::Rejected(_) | Failure::TryAlternate { .. }))
            if session.client().session().is_some() =>
        {
            Occupant::Server(session.client().software().map(str::to_owned))
        }
        Err(Problem::Failure(Failure::CredentialsRefused { .. })) => Occupant::Refuses,
        Err(problem) => Occupant::Stun(problem.to_string()),
    }
}

/// Returns the name that the certificate has to have. `None` if the configuration does not say it.
fn name(config: &Config) -> Option<String> {
    let hostname = config.hostname.as_deref()?;
    let address = hostname.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    Some(address.unwrap_or(hostname).to_owned())
}

/// Examines the relay path through each listener of a running server.
pub(super) fn examine_relaying(
    config: &Config,
    choice: &Choice,
    Found { running, is_wrong }: &Found,
    trust: &Trust,
    report: Report<'_>,
) {
    if running.is_empty() && *is_wrong {
        return;
    }
    if running.is_empty() {
        return report(Finding::warning(
            "relay",
            "the server does not run, so the path through it was not examined",
            "start it and run this command again",
        ));
    }
    let Some(server) = credential(config) else {
        return report(Finding::warning(
            "relay",
            "neither a secret nor a user with a password is configured, so the path through the server was not examined",
            "set auth.secrets: otherwise credentials change with each start",
        ));
    };
    let name = name(config);
    let setups = certificates(config).unwrap_or_default();
    let certificate = |name: Option<&str>| tls::for_client(&setups, name).map(|own| own.certificate.clone());
    let expected = Expected { certificate: certificate(name.as_deref()), name };
    for endpoint in running {
        for ip in reachable(*endpoint, choice) {
            let uri = TurnUri::new(endpoint.transport, &ip.to_string(), endpoint.address.port());
            let address = SocketAddr::new(ip, endpoint.address.port());
            remote::examine_at(uri, address, expected.clone(), &server, trust, report);
        }
        let is_it = |front: &&Front| config.tls.is_some() && front.listen == endpoint.address;
        let front = config.fronts.iter().find(is_it).filter(|_| endpoint.transport == Transport::Tcp);
        for name in front.into_iter().flat_map(|front| &front.names) {
            let expected = Expected { name: Some(name.clone()), certificate: certificate(Some(name)) };
            for ip in reachable(*endpoint, choice).into_iter().take(1) {
                let (port, name) = (endpoint.address.port(), name.as_str());
                let uri = TurnUri::new(Transport::Tls, name, port);
                remote::examine_at(uri, SocketAddr::new(ip, port), expected.clone(), &server, trust, report);
            }
        }
    }
}

/// Examines whether this machine reaches the server at its public address, if a router maps it.
pub(super) fn examine_hairpin(choice: &Choice, running: &[Endpoint], trust: &Trust, report: Report<'_>) {
    let Some(udp) = running.iter().find(|endpoint| !endpoint.transport.is_connection()) else { return };
    for relay in choice.addresses.iter().filter(|relay| relay.advertised != relay.bind) {
        let public = SocketAddr::new(relay.advertised, udp.address.port());
        let opened = Link::open(udp.transport, public, "", trust, CONNECT);
        let session = opened.and_then(|(link, _)| Ok(Session::new(link, None)?));
        let result = session.map_err(Problem::from).and_then(|mut session| session.request(Request::Binding));
        let finding = match result {
            Ok(_) => Finding::ok("hairpin", "the router returns packets from inside for the public address"),
            Err(problem) => Finding::warning(
                "hairpin",
                format!(
                    "from inside, the server does not respond at its public address ({problem}): clients in this network \
                     cannot use it by that address"
                ),
                "turn on hairpinning (NAT loopback) in the router, or let the name of the server resolve to its inner \
                 address in this network",
            ),
        };
        report(finding.of(public));
    }
}

fn credential(config: &Config) -> Option<IceServer> {
    let uris = Vec::new();
    if let Some(secret) = config.auth.secrets.first() {
        return Some(IceServer::minted(uris, secret, LIFETIME));
    }
    let with_password = |user: &StaticUser| Some((user.name.clone(), user.password()?.clone()));
    let (username, password) = config.auth.users.iter().find_map(with_password)?;
    Some(IceServer { uris, username: Some(username), password: Some(password), secret: None })
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::stun::attribute::{ErrorCodeAttribute, XorMappedAddress};
    use crate::stun::{Class, ErrorCode, Message, MessageWriter, Method};

    const CONFIG: &str = "realm = \"r\"\n[auth]\nsecrets = [\"0123456789abcdef0123456789abcdef\"]\n";

    #[test]
    fn only_a_privileged_port_without_a_server_is_a_warning() {
        let server = |software: Option<&str>| Occupant::Server(software.map(str::to_owned));
        for (occupant, status) in [
            (server(None), Status::Ok),
            (server(Some(&format!("{SOFTWARE}0"))), Status::Ok),
            (server(Some("Coturn")), Status::Fault),
            (Occupant::Unknown, Status::Ok),
            (Occupant::Refuses, Status::Fault),
            (Occupant::Stun("no".to_owned()), Status::Fault),
            (Occupant::Program("no".to_owned()), Status::Warning),
        ] {
            let finding = occupant.finding_without_privilege("udp", 443);
            assert_eq!((finding.status, finding.check), (status, "listener"), "{finding:?}");
            assert_eq!(occupant.is_this(), status == Status::Ok);
        }
    }

    /// Returns the occupant that responds to Binding requests, and to Allocate with an error before any challenge.
    /// `None`: not at all.
    fn with_response(code: Option<ErrorCode>) -> Occupant {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::new(Transport::Udp, socket.local_addr().unwrap());
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut buffer = [0; 1_500];
                loop {
                    let (length, client) = socket.recv_from(&mut buffer).unwrap();
                    let Ok(request) = Message::parse(&buffer[..length]) else { return };
                    let is_binding = request.method() == Method::BINDING;
                    let (mut response, id) = ([0; 256], request.transaction_id());
                    let class = if is_binding { Class::Success } else { Class::Error };
                    let mut writer = MessageWriter::new(&mut response, class, request.method(), id);
                    match code {
                        _ if is_binding => writer.push(&XorMappedAddress(client)),
                        Some(code) => writer.push(&ErrorCodeAttribute { code, reason: "" }),
                        None => continue,
                    }
                    let length = writer.finish().unwrap().len();
                    socket.send_to(&response[..length], client).unwrap();
                }
            });
            let config = Config::parse(CONFIG, "turnserver.toml").unwrap();
            let occupant = occupant(endpoint, &config, &Trust::new(None).unwrap());
            // It ends the server.
            UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"end", endpoint.address).unwrap();
            occupant
        })
    }

    #[test]
    fn a_certificate_has_to_name_the_hostname_without_the_brackets_of_an_ipv6_address() {
        let of = |hostname: Option<&str>| {
            name(&Config { hostname: hostname.map(str::to_owned), ..Config::parse(CONFIG, "turnserver.toml").unwrap() })
        };
        assert_eq!(of(Some("[2001:db8::1]")).as_deref(), Some("2001:db8::1"));
        assert_eq!(of(Some("turn.example.org")).as_deref(), Some("turn.example.org"));
        assert_eq!(of(None), None);
    }

    #[test]
    fn a_stun_server_that_rejects_allocations_before_a_challenge_has_not_accepted_the_credentials() {
        for code in [ErrorCode::BAD_REQUEST, ErrorCode::FORBIDDEN] {
            let occupant = with_response(Some(code));
            assert!(matches!(&occupant, Occupant::Stun(why) if why.contains(&code.code().to_string())), "{code:?}");
            assert!(occupant.finding(3478).what.starts_with("a STUN server uses the port and responds, but "));
        }
        assert!(matches!(with_response(None), Occupant::Stun(why) if why.contains("no response")));
    }
}
