//! The listeners of one transport: claimed once for the process, bound once more for each further worker.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use crate::net::{interfaces, tcp, udp};

/// Why nobody can be served at an address. Each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// It is taken.
    #[error(
        "cannot listen on {transport} {address}: another program has the port; `ss -{flag}lpn sport = :{port}` shows \
         which, listen.{transport} in the configuration chooses another",
        flag = if *.transport == "udp" { 'u' } else { 't' },
        port = .address.port()
    )]
    InUse {
        /// `udp`, `tcp` or `tls`.
        transport: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// It is not of this machine.
    #[error(
        "cannot listen on {transport} {address}: this machine has no such address, but {available}; \
         listen.{transport} names it"
    )]
    NotOurs {
        /// `udp`, `tcp` or `tls`.
        transport: &'static str,
        /// The address.
        address: SocketAddr,
        /// Those that the machine has.
        available: String,
    },
    /// A port below 1024, without the right to it.
    #[error(
        "cannot listen on {transport} {address}: ports below 1024 need a privilege; the systemd unit grants it with \
         AmbientCapabilities=CAP_NET_BIND_SERVICE"
    )]
    NotPermitted {
        /// `udp`, `tcp` or `tls`.
        transport: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// Another error of the kernel.
    #[error("cannot listen on {transport} {address}: {error}")]
    Other {
        /// `udp`, `tcp` or `tls`.
        transport: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
}

/// How the listeners of a transport are made.
#[derive(Debug)]
struct Transport<S> {
    /// As the configuration and the log name it.
    name: &'static str,
    claim: fn(SocketAddr) -> io::Result<S>,
    join: fn(SocketAddr) -> io::Result<S>,
    local_addr: fn(&S) -> io::Result<SocketAddr>,
}

/// The addresses of a transport that are listened on, and the sockets that hold them until the first worker has them.
#[derive(Debug)]
pub(super) struct Listeners<S> {
    transport: Transport<S>,
    addresses: Vec<SocketAddr>,
    claimed: Option<Vec<S>>,
}

impl Listeners<UdpSocket> {
    /// Claims each address, if nobody else has it; port 0 becomes a real one.
    pub(super) fn udp(wanted: &[SocketAddr]) -> Result<Self, ListenError> {
        let (claim, join) = (udp::claim_listener, udp::bind_listener);
        Self::claim(Transport { name: "udp", claim, join, local_addr: UdpSocket::local_addr }, wanted)
    }
}

impl Listeners<TcpListener> {
    /// Claims each address, if nobody else has it; port 0 becomes a real one.
    pub(super) fn tcp(wanted: &[SocketAddr]) -> Result<Self, ListenError> {
        Self::stream("tcp", wanted)
    }

    /// The same for TLS.
    pub(super) fn tls(wanted: &[SocketAddr]) -> Result<Self, ListenError> {
        Self::stream("tls", wanted)
    }

    fn stream(name: &'static str, wanted: &[SocketAddr]) -> Result<Self, ListenError> {
        let (claim, join) = (tcp::claim_listener, tcp::bind_listener);
        Self::claim(Transport { name, claim, join, local_addr: TcpListener::local_addr }, wanted)
    }
}

impl<S> Listeners<S> {
    fn claim(transport: Transport<S>, wanted: &[SocketAddr]) -> Result<Self, ListenError> {
        let mut claimed: Vec<(usize, SocketAddr, S)> = Vec::with_capacity(wanted.len());
        // Wildcards first: they hold their port on every address, so that the specific ones beside them can share it.
        for wildcards in [true, false] {
            let these = wanted.iter().enumerate().filter(|(_, address)| address.ip().is_unspecified() == wildcards);
            for (place, address) in these {
                let shared = claimed.iter().any(|(_, own, _)| covers(*own, *address));
                let socket = if shared { (transport.join)(*address) } else { transport.claim_one(*address) };
                let (local, socket) = socket
                    .and_then(|socket| Ok(((transport.local_addr)(&socket)?, socket)))
                    .map_err(|error| transport.refused(*address, error))?;
                claimed.push((place, local, socket));
            }
        }
        claimed.sort_by_key(|(place, _, _)| *place);
        let (addresses, sockets) = claimed.into_iter().map(|(_, address, socket)| (address, socket)).unzip();
        Ok(Self { transport, addresses, claimed: Some(sockets) })
    }

    /// The transport and each address, in the order of the configuration, with their real ports.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        self.addresses.iter().map(|address| (self.transport.name, *address))
    }

    /// The sockets of one more worker: the first has those that hold the ports, the others join it.
    pub(super) fn for_next_worker(&mut self) -> Result<Vec<S>, ListenError> {
        let join = |address: &SocketAddr| {
            (self.transport.join)(*address).map_err(|error| self.transport.refused(*address, error))
        };
        match self.claimed.take() {
            Some(sockets) => Ok(sockets),
            None => self.addresses.iter().map(join).collect(),
        }
    }
}

impl<S> Transport<S> {
    fn claim_one(&self, address: SocketAddr) -> io::Result<S> {
        match (self.claim)(address) {
            Err(error) if udp::no_ipv6(&error) && address.is_ipv6() && address.ip().is_unspecified() => {
                let transport = self.name;
                tracing::warn!(transport, %address, "this kernel has no IPv6: listening on 0.0.0.0 only");
                (self.claim)(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
            }
            other => other,
        }
    }

    fn refused(&self, address: SocketAddr, error: io::Error) -> ListenError {
        refused(self.name, address, error)
    }
}

/// Whether this machine has these addresses.
pub(super) fn check_addresses(transport: &'static str, wanted: &[SocketAddr]) -> Result<(), ListenError> {
    let is_foreign = |ip: IpAddr| !ip.is_unspecified() && !interfaces::is_local(ip);
    match wanted.iter().find(|address| is_foreign(address.ip())) {
        Some(address) => Err(refused(transport, *address, io::ErrorKind::AddrNotAvailable.into())),
        None => Ok(()),
    }
}

fn refused(transport: &'static str, address: SocketAddr, error: io::Error) -> ListenError {
    match error.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse { transport, address },
        io::ErrorKind::PermissionDenied => ListenError::NotPermitted { transport, address },
        io::ErrorKind::AddrNotAvailable => {
            let own = interfaces::addresses().unwrap_or_default();
            let own: Vec<String> = own.iter().map(|own| format!("{} ({})", own.address, own.name)).collect();
            let available = if own.is_empty() { "no address at all".to_owned() } else { own.join(", ") };
            ListenError::NotOurs { transport, address, available }
        }
        _ => ListenError::Other { transport, address, error },
    }
}

/// Whether a socket at the wildcard `own` takes what is sent to `address` unless another is bound to just that.
fn covers(own: SocketAddr, address: SocketAddr) -> bool {
    own.ip().is_unspecified() && own.port() == address.port() && (own.is_ipv6() || address.is_ipv4())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each(text: &str) -> [ListenError; 4] {
        let address = text.parse().unwrap();
        let available = "10.0.0.5 (eth0)".to_owned();
        [
            ListenError::InUse { transport: "udp", address },
            ListenError::InUse { transport: "tcp", address },
            ListenError::NotOurs { transport: "tcp", address, available },
            ListenError::NotPermitted { transport: "tcp", address },
        ]
    }

    #[test]
    fn each_error_names_the_transport_and_what_to_do() {
        let lines = each("192.0.2.7:80").map(|error| error.to_string());
        for (line, (begin, part)) in lines.iter().zip([
            ("cannot listen on udp 192.0.2.7:80: ", "`ss -ulpn sport = :80` shows which, listen.udp "),
            ("cannot listen on tcp 192.0.2.7:80: ", "`ss -tlpn sport = :80` shows which, listen.tcp "),
            ("cannot listen on tcp 192.0.2.7:80: ", "but 10.0.0.5 (eth0); listen.tcp names it"),
            ("cannot listen on tcp 192.0.2.7:80: ", "CAP_NET_BIND_SERVICE"),
        ]) {
            assert!(line.starts_with(begin) && line.contains(part), "{line}");
        }
    }

    #[test]
    fn every_worker_has_a_socket_for_each_address_in_the_order_of_the_configuration() {
        let free = Listeners::tcp(&["0.0.0.0:0".parse().unwrap()]).unwrap();
        let port = free.addresses().next().unwrap().1.port();
        drop(free);
        // The specific one shares the port of the wildcard behind it.
        let wanted = ["127.0.0.2", "0.0.0.0"].map(|ip| SocketAddr::new(ip.parse().unwrap(), port));
        let mut listeners = Listeners::tcp(&wanted).unwrap();
        assert_eq!(listeners.addresses().collect::<Vec<_>>(), wanted.map(|address| ("tcp", address)));
        let workers: Vec<_> = (0..3).map(|_| listeners.for_next_worker().unwrap()).collect();
        for worker in &workers {
            assert_eq!(worker.iter().map(|socket| socket.local_addr().unwrap()).collect::<Vec<_>>(), wanted);
        }
        drop(listeners);
        for address in wanted {
            assert!(matches!(Listeners::tcp(&[address]), Err(ListenError::InUse { transport: "tcp", .. })));
        }
        assert!(Listeners::udp(&wanted).is_ok());
    }
}
