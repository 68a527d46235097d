//! Clients that connect, perform a handshake, exchange one Binding request, and disconnect.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned, SupportedProtocolVersion};

use turnserver::clock::Clock;

use crate::Outcome;
use crate::any_certificate::AnyCertificate;

/// A Binding request (RFC 8489 §5) without attributes.
const BINDING: [u8; 20] = [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

/// How long a client waits for the server.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the clients do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    clients: usize,
    version: &'static SupportedProtocolVersion,
    /// Whether the clients resume sessions if the server permits it.
    resumes: bool,
}

/// What the clients have done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) handshakes: u64,
    pub(crate) resumed: u64,
    pub(crate) elapsed: Duration,
}

impl Load {
    pub(crate) fn all(clients: usize) -> [Self; 4] {
        [(&TLS13, false), (&TLS13, true), (&TLS12, false), (&TLS12, true)].map(|(version, resumes)| Self {
            clients,
            version,
            resumes,
        })
    }

    pub(crate) fn version_name(&self) -> &'static str {
        if std::ptr::eq(self.version, &raw const TLS13) { "1.3" } else { "1.2" }
    }

    pub(crate) fn kind_name(&self) -> &'static str {
        if self.resumes { "resuming" } else { "full" }
    }

    /// Runs the clients for a while.
    pub(crate) fn run(&self, server: SocketAddr, duration: Duration) -> Outcome<Tally> {
        let clock = Clock::start();
        let tallies: Outcome<Vec<Tally>> = std::thread::scope(|scope| {
            let clients: Vec<_> =
                (0..self.clients).map(|_| scope.spawn(move || self.run_client(server, clock, duration))).collect();
            clients
                .into_iter()
                .map(|client| client.join().unwrap_or_else(|_| Err("a client panicked".into())))
                .collect()
        });
        let elapsed = clock.elapsed();
        Ok(tallies?.iter().fold(Tally { elapsed, ..Tally::default() }, |sum, tally| Tally {
            handshakes: sum.handshakes + tally.handshakes,
            resumed: sum.resumed + tally.resumed,
            elapsed,
        }))
    }

    fn run_client(&self, server: SocketAddr, clock: Clock, duration: Duration) -> Outcome<Tally> {
        let config = Arc::new(self.config()?);
        let mut tally = Tally::default();
        while clock.elapsed() < duration {
            let kind = connect(&config, server)?;
            tally.handshakes += 1;
            tally.resumed += u64::from(kind == Some(HandshakeKind::Resumed));
        }
        Ok(tally)
    }

    fn config(&self) -> Outcome<ClientConfig> {
        let provider = Arc::new(ring::default_provider());
        let signatures = provider.signature_verification_algorithms.supported_schemes();
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[self.version])?
            .dangerous()
            // So the clients need less time of the processor. There are few configurations.
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(signatures.leak())))
            .with_no_client_auth();
        if !self.resumes {
            config.resumption = Resumption::disabled();
        }
        Ok(config)
    }
}

/// Connects once.
fn connect(config: &Arc<ClientConfig>, server: SocketAddr) -> Outcome<Option<HandshakeKind>> {
    let tcp = TcpStream::connect(server)?;
    tcp.set_nodelay(true)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    let connection = ClientConnection::new(Arc::clone(config), ServerName::try_from("localhost")?)?;
    let mut stream = StreamOwned::new(connection, tcp);
    stream.write_all(&BINDING)?;
    // The response shows that the server has completed the handshake. A ticket precedes it.
    let mut response = [0; 20];
    stream.read_exact(&mut response)?;
    Ok(stream.conn.handshake_kind())
}
