//! Clients on TLS connections to the real server (RFC 8489 §6.2.3, RFC 7443), and its certificates.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "tls/certificate.rs"]
mod certificate;
#[cfg(test)]
#[path = "tls/connections.rs"]
mod connections;
#[cfg(test)]
#[path = "tls/groups.rs"]
mod groups;
#[cfg(test)]
#[path = "tls/reload.rs"]
mod reload;
#[cfg(test)]
#[path = "tls/selection.rs"]
mod selection;
#[cfg(test)]
mod support;

#[cfg(test)]
mod common {
    use std::net::SocketAddr;
    use std::path::PathBuf;

    use turnserver::clock::unix_seconds;

    use crate::support::certificates::{Authority, Issued};
    use crate::support::client::Client;
    use crate::support::tls::{ANY, Offer, TlsStream, handshake};
    use crate::support::{Ended, LogLine, Server, TempDir, config, with_tls};

    /// A server with a TLS listener, and the authority that issued its certificate.
    pub(crate) struct Fixture {
        pub(crate) server: Server,
        pub(crate) authority: Authority,
        pub(crate) issued: Issued,
        pub(crate) files: [PathBuf; 2],
        pub(crate) directory: TempDir,
    }

    impl Fixture {
        pub(crate) fn new(more: &str) -> Self {
            Self::on("127.0.0.1", more)
        }

        pub(crate) fn on(ip: &str, more: &str) -> Self {
            Self::start("", ip, more)
        }

        /// The connections of all clients belong to one worker.
        pub(crate) fn one_worker(more: &str) -> Self {
            Self::start("workers = 1\n", "127.0.0.1", more)
        }

        fn start(first: &str, ip: &str, more: &str) -> Self {
            let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
            let issued = authority.issue(&["localhost"]);
            let files = authority.write(&issued, directory.path());
            // The end of a connection is logged at level debug.
            let config = config(&[ip], more).replace("[log]\n", "[log]\nlevel = \"debug\"\n");
            let server = Server::start(&format!("{first}{}", with_tls(&config, &[ip], &files)));
            Self { server, authority, issued, files, directory }
        }

        pub(crate) fn address(&self) -> SocketAddr {
            self.server.tls_address()
        }

        pub(crate) fn stream(&self) -> TlsStream {
            self.offering(&ANY)
        }

        pub(crate) fn offering(&self, offer: &Offer<'_>) -> TlsStream {
            handshake(self.address(), &self.authority, offer).unwrap()
        }

        /// Stops the server after it has logged the end of this many connections.
        pub(crate) fn finish(self, connections: usize) -> Ended {
            let is_end = |line: &LogLine| line.message() == "connection ended";
            let seen = std::cell::RefCell::new(Vec::new());
            self.server.wait_for_log(|line| {
                let mut seen = seen.borrow_mut();
                if is_end(line) && !seen.contains(&line.text().to_owned()) {
                    seen.push(line.text().to_owned());
                }
                seen.len() == connections
            });
            self.server.terminate()
        }

        pub(crate) fn client(&self) -> Client {
            Client::on_tls(self.stream())
        }
    }

    /// Returns the connection totals of a stopped server.
    pub(crate) fn connections(ended: &Ended) -> Vec<(String, u64)> {
        let stopped = ended.logs.iter().find(|line| line.message() == "stopped").unwrap();
        let field = stopped.field("connection_ends").unwrap();
        let entry = |entry: &str| {
            let (name, count) = entry.split_once(": ").unwrap();
            (name.to_owned(), count.parse().unwrap())
        };
        field.split(", ").filter(|entry| !entry.is_empty()).map(entry).collect()
    }

    #[track_caller]
    pub(crate) fn assert_connections(ended: &Ended, expected: &[(&str, u64)]) {
        let expected: Vec<(String, u64)> = expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        assert_eq!(connections(ended), expected);
    }
}
