//! Ports that the real server shares with a web site (`[[front]]`).

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "http/client.rs"]
mod client;
#[cfg(test)]
#[path = "front/destinations.rs"]
mod destinations;
#[cfg(test)]
#[path = "front/limits.rs"]
mod limits;
#[cfg(test)]
#[path = "front/proxies.rs"]
mod proxies;
#[cfg(test)]
#[path = "front/reload.rs"]
mod reload;
#[cfg(test)]
#[path = "front/site.rs"]
mod site;
#[cfg(test)]
mod support;
#[cfg(test)]
#[path = "front/transfer.rs"]
mod transfer;

#[cfg(test)]
mod common {
    use std::io::{self, Read as _, Write as _};
    use std::net::{SocketAddr, TcpStream};

    use socket2::{Domain, Socket, Type};
    use turnserver::clock::{Clock, unix_seconds};

    use crate::client::Http;
    use crate::site::{GREETING, Site};
    use crate::support::certificates::Authority;
    use crate::support::client::{Client, Login};
    use crate::support::tls::{ANY, Offer, session_with};
    use crate::support::{Controlled, LogLine, TIMEOUT, TempDir, config, skip, with_tls};

    /// Returns how many of `wanted` clients this process can have at a web site, which is in this process, too.
    pub(crate) fn visitors(wanted: usize) -> usize {
        let limit = turnserver::net::limits::raise_open_files().unwrap();
        let own = usize::try_from(limit).unwrap_or(usize::MAX);
        // All fronts together get half of the files of the server, which has the same limit.
        let most = (own.saturating_sub(200) / 2).min(own / 4);
        if most < wanted {
            skip(&format!("only {most} of {wanted} connections are possible with {limit} open files"));
        }
        wanted.min(most)
    }

    /// A server with a front, and the authority that issued its certificate for `localhost`.
    pub(crate) struct Fixture {
        pub(crate) server: Controlled,
        pub(crate) authority: Authority,
        _directory: TempDir,
    }

    impl Fixture {
        /// Starts a server whose front belongs to a web site. `keys` are added to the front, and `more` are further
        /// tables, or keys that precede them.
        pub(crate) fn new(site: &Site, keys: &str, more: &str) -> Self {
            Self::at(&site.address().to_string(), keys, more)
        }

        pub(crate) fn at(web: &str, keys: &str, more: &str) -> Self {
            Self::start(web, keys, more, "")
        }

        /// The same with further keys of `[listen]`.
        pub(crate) fn with_keys(site: &Site, keys: &str, listen: &str) -> Self {
            Self::start(&site.address().to_string(), keys, "", listen)
        }

        pub(crate) fn start(web: &str, keys: &str, more: &str, listen: &str) -> Self {
            let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
            let files = authority.write(&authority.issue(&["localhost"]), directory.path());
            let (first, tables) = if more.starts_with('[') { ("", more) } else { (more, "") };
            let front = format!(
                "{tables}[peers]\nallow = [\"127.0.0.1\"]\n[[front]]\nlisten = \"127.0.0.1:0\"\nweb = {web:?}\n\
                 names = [\"localhost\"]\n{keys}"
            );
            let config = with_tls(&config(&["127.0.0.1"], &front), &["127.0.0.1"], &files);
            let config = config.replace("[log]\n", "[log]\nlevel = \"debug\"\n");
            let config = config.replace("[listen]\n", &format!("[listen]\n{listen}"));
            let server = Controlled::start_with(&format!("{first}{config}"));
            Self { server, authority, _directory: directory }
        }

        pub(crate) fn address(&self) -> SocketAddr {
            self.server.event("front-listening").field("address").unwrap().parse().unwrap()
        }

        pub(crate) fn visit(&self) -> TcpStream {
            connect(self.address())
        }

        /// Returns the first flight of a client.
        pub(crate) fn hello(&self, name: &str, alpn: &[&str]) -> Vec<u8> {
            let mut flight = Vec::new();
            session_with(name, &self.authority, &Offer { alpn, ..ANY }).write_tls(&mut flight).unwrap();
            flight
        }

        /// Makes a TURN allocation over TLS at the front.
        pub(crate) fn allocate_over_tls(&self) -> Client {
            let stream = crate::support::tls::handshake(self.address(), &self.authority, &ANY).unwrap();
            let client = Client::on_tls(stream);
            client.allocate(&Login::mint("alice", 600)).unwrap();
            client
        }

        pub(crate) fn page(&self) -> String {
            Http::unix(&self.server.socket).get("/metrics").body
        }

        /// Waits until the metrics have this line.
        pub(crate) fn wait_for_metric(&self, line: &str) {
            let start = Clock::start();
            loop {
                let page = self.page();
                if page.lines().any(|other| other == line) {
                    return;
                }
                let of_front: Vec<&str> = page.lines().filter(|line| line.starts_with("turnserver_front")).collect();
                assert!(start.elapsed() < TIMEOUT, "no {line} in {of_front:#?}");
            }
        }

        /// Returns the lines of the log about an event.
        pub(crate) fn events(&self, event: &str) -> Vec<LogLine> {
            self.server.server.logs().into_iter().filter(|line| line.field("event").as_deref() == Some(event)).collect()
        }
    }

    pub(crate) fn connect(address: SocketAddr) -> TcpStream {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Connects to a front from another address of loopback.
    pub(crate) fn connect_from(ip: &str, front: &Fixture) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(ip.parse().unwrap(), 0).into()).unwrap();
        socket.connect(&front.address().into()).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket.into()
    }

    /// Opens a connection to an echo, sends a header of a proxy before anything else, and waits until the web site has
    /// what follows.
    pub(crate) fn visit_from(ip: &str, front: &Fixture, header: &[u8]) -> TcpStream {
        let mut stream = connect_from(ip, front);
        stream.write_all(&[header, b"GET /"].concat()).unwrap();
        let mut echoed = [0; GREETING.len() + 5];
        stream.read_exact(&mut echoed).unwrap();
        stream
    }

    /// Sends bytes and says that no more come. Returns all that the other side sends.
    pub(crate) fn exchange(mut stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        read_all(&mut stream)
    }

    /// Reads until the connection is reset, which says that there would have been more.
    pub(crate) fn read_to_reset(stream: &mut TcpStream) -> Vec<u8> {
        let mut all = Vec::new();
        let ended = stream.read_to_end(&mut all);
        assert_eq!(ended.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset));
        all
    }

    /// Reads to the end. A connection that was reset has ended, too.
    pub(crate) fn read_all(stream: &mut TcpStream) -> Vec<u8> {
        let mut all = Vec::new();
        match stream.read_to_end(&mut all) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the connection did not end: {error}; it has sent {all:?}"),
        }
        all
    }
}
