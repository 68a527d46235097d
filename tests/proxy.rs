//! Clients behind proxies that send PROXY headers, at the real server. Proxies have the address 127.0.0.2 or ::1, clients
//! without a proxy 127.0.0.1.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "proxy/connections.rs"]
mod connections;
#[cfg(test)]
#[path = "proxy/datagrams.rs"]
mod datagrams;
#[cfg(test)]
mod support;

#[cfg(test)]
mod common {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};

    use socket2::{Domain, Socket, Type};
    use turnserver::proxy_protocol::{self, Addresses};

    use crate::support::client::socket;
    use crate::support::{LogLine, Server, TIMEOUT, config};

    pub(crate) const PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

    /// Returns the configuration of a server on `ip` whose proxies are 127.0.0.2 and ::1.
    pub(crate) fn behind_proxies(ip: &str, more: &str) -> String {
        let config = config(&[ip], more).replace("[log]\n", "[log]\nlevel = \"debug\"\n");
        format!("workers = 1\n{}", config.replace("[listen]\n", "[listen]\nproxies = [\"127.0.0.2/31\", \"::1\"]\n"))
    }

    pub(crate) fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// Returns the address of a proxy from which a server is reached.
    pub(crate) fn proxy_for(server: SocketAddr) -> IpAddr {
        if server.is_ipv4() { PROXY.into() } else { server.ip() }
    }

    /// Connects to a server from a proxy.
    pub(crate) fn connect(server: SocketAddr) -> TcpStream {
        connect_from(proxy_for(server), server)
    }

    pub(crate) fn connect_from(from: IpAddr, server: SocketAddr) -> TcpStream {
        let socket = Socket::new(Domain::for_address(server), Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
        socket.connect(&server.into()).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket.set_tcp_nodelay(true).unwrap();
        socket.into()
    }

    /// Binds a UDP socket of a proxy for a server.
    pub(crate) fn proxy_socket(server: SocketAddr) -> UdpSocket {
        socket(SocketAddr::new(proxy_for(server), 0))
    }

    pub(crate) fn v2(client: &str, server: &str) -> Vec<u8> {
        let mut header = Vec::new();
        proxy_protocol::write(Some(Addresses { client: address(client), server: address(server) }), &mut header);
        header
    }

    pub(crate) fn v1(client: &str, server: &str) -> Vec<u8> {
        let [client, server] = [client, server].map(address);
        let family = if client.is_ipv4() { 4 } else { 6 };
        let (from, to) = (client.ip(), server.ip());
        format!("PROXY TCP{family} {from} {to} {} {}\r\n", client.port(), server.port()).into_bytes()
    }

    pub(crate) fn local() -> Vec<u8> {
        let mut header = Vec::new();
        proxy_protocol::write(None, &mut header);
        header
    }

    /// The headers of both versions for clients with addresses of both families.
    pub(crate) fn headers() -> Vec<(Vec<u8>, SocketAddr)> {
        let pairs = [("198.51.100.7:4711", "203.0.113.1:443"), ("[2001:db8::7]:4711", "[2001:db8::1]:443")];
        let of = |header: fn(&str, &str) -> Vec<u8>| pairs.map(|(from, to)| (header(from, to), address(from)));
        [of(v1), of(v2)].concat()
    }

    /// Stops the server and returns a field of its last line.
    pub(crate) fn stopped(server: Server, field: &str) -> String {
        let logs = server.terminate().logs;
        let stopped = logs.iter().find(|line| line.message() == "stopped").unwrap();
        stopped.field(field).unwrap_or_default()
    }

    pub(crate) fn is(line: &LogLine, event: &str) -> bool {
        line.field("event").as_deref() == Some(event)
    }
}
