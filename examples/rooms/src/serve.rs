//! The server: from the command line to its end.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{interval, sleep, timeout};

use crate::arguments::{Serve, TlsMode};
use crate::connect::{Trust, TrustError};
use crate::http::{self, Application, Client};
use crate::ice_servers::{Endpoint, IceError, IceServers, Minted};
use crate::own_relay::OwnRelay;
use crate::pages::Pages;
use crate::places::Places;
use crate::rooms::Rooms;
use crate::sfu;
use crate::tls::{CertificateError, Identity};

/// The time for a TLS handshake, and for the headers of a request. An idle connection ends after it, too.
const PATIENCE: Duration = Duration::from_secs(20);

/// The interval in which participants and rooms are forgotten whose time has passed.
const SWEEP: Duration = Duration::from_secs(5);

/// The time for the last messages when the server stops.
const FAREWELL: Duration = Duration::from_secs(5);

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be used.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        error: io::Error,
    },
    /// There is no certificate.
    #[error("{0}")]
    Certificate(#[from] CertificateError),
    /// There are no credentials.
    #[error("{0}")]
    Ice(#[from] IceError),
    /// The certificates for the relay cannot be used.
    #[error("{0}")]
    Trust(#[from] TrustError),
    /// The relay that was started with the server has ended.
    #[error("the relay has ended, without which no call comes about: its last line says why. Start rooms again")]
    RelayEnded,
    /// The signals cannot be received.
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
}

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    identity: Option<Identity>,
    application: Arc<Application>,
    proxies: Arc<[IpNet]>,
    relay: Option<OwnRelay>,
    stop: watch::Sender<bool>,
}

/// Serves until SIGINT or SIGTERM.
///
/// # Errors
/// If the server does not start.
pub async fn run(options: Serve) -> Result<(), ServeError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    let server = Server::start(options).await?;
    tracing::info!("open {}", server.url());
    if let Some(identity) = &server.identity {
        tracing::info!("SHA-256 fingerprint of the certificate: {}", identity.shown());
    }
    let stopped = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    server.run(stopped).await
}

impl Server {
    /// Starts to listen. Connections wait until [`run`](Self::run).
    ///
    /// # Errors
    /// If the options cannot be used.
    pub async fn start(options: Serve) -> Result<Self, ServeError> {
        let identity = identity(&options)?;
        let trust = Trust::from_file(options.relay_ca.as_deref())?;
        let failed = |error| ServeError::Listen { address: options.listen, error };
        let listener = TcpListener::bind(options.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (ice, relay) = ice_servers(&options, &trust).await?;
        let ice = Arc::new(ice);
        let pages = options.pages.map_or(Pages::Embedded, Pages::Directory);
        let (stop, stopped) = watch::channel(false);
        let (hosts, ice_of_sfu) = (sfu_hosts(options.sfu, address.ip()), Arc::clone(&ice));
        let sfu = sfu::Settings { hosts, ice: ice_of_sfu, trust, _stop: stopped.clone() };
        let rooms = Rooms::new(options.rooms, Arc::new(sfu));
        let proxies: Arc<[IpNet]> = options.proxy.into();
        let application = Arc::new(Application::new(rooms, ice, pages, Arc::clone(&proxies), stopped));
        Ok(Self { listener, address, identity, application, proxies, relay, stop })
    }

    /// Returns the address of the listener.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the certificate, if there is TLS.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Returns the URL of the start page.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.identity.is_some() { "https" } else { "http" };
        let ip = self.address.ip();
        let host = match ip {
            IpAddr::V4(Ipv4Addr::LOCALHOST | Ipv4Addr::UNSPECIFIED) => "localhost".to_owned(),
            IpAddr::V6(Ipv6Addr::LOCALHOST | Ipv6Addr::UNSPECIFIED) => "localhost".to_owned(),
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        format!("{scheme}://{host}:{}/", self.address.port())
    }

    /// Serves until `stopped` is ready. Participants then learn that the server stops.
    ///
    /// # Errors
    /// If the relay that was started with the server has ended.
    pub async fn run(self, stopped: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self { listener, identity, application, proxies, mut relay, stop, .. } = self;
        let (places, routes) = (Arc::<Places>::default(), http::routes(Arc::clone(&application)));
        let mut sweep = interval(SWEEP);
        let ice = Arc::clone(&application.ice);
        let draining = ice.follow();
        tokio::pin!(draining);
        tokio::pin!(stopped);
        let result = loop {
            tokio::select! {
                () = &mut stopped => break Ok(()),
                () = &mut draining => {}
                () = ended(&mut relay) => break Err(ServeError::RelayEnded),
                _ = sweep.tick() => application.rooms.sweep(),
                accepted = listener.accept() => match accepted {
                    Ok((stream, address)) => {
                        // Without a place, the connection is closed.
                        let ip = address.ip().to_canonical();
                        let is_proxy = proxies.iter().any(|proxies| proxies.contains(&ip));
                        let Some(place) = places.take((!is_proxy).then_some(ip)) else { continue };
                        let (identity, routes) = (identity.clone(), routes.clone());
                        let client = Client { address, is_proxy, place: Arc::new(place) };
                        tokio::spawn(serve_connection(stream, client, identity, routes, stop.subscribe()));
                    }
                    Err(error) => {
                        // Open files may be exhausted. Connections that end release some.
                        tracing::warn!("cannot accept a connection: {error}");
                        sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        };
        tracing::info!("stopping");
        drop(listener);
        application.rooms.close("The server stops.");
        let _ = stop.send(true);
        // Each connection has a receiver, and each forwarding unit.
        drop((application, routes));
        if timeout(FAREWELL, stop.closed()).await.is_err() {
            tracing::warn!("some connections or forwarding units did not end in time");
        }
        if let Some(relay) = relay {
            relay.stop().await;
        }
        result
    }
}

/// Waits for the end of a relay that should go on.
async fn ended(relay: &mut Option<OwnRelay>) {
    match relay {
        Some(relay) => relay.ended().await,
        None => std::future::pending().await,
    }
}

/// Serves a connection until it ends.
async fn serve_connection(
    stream: TcpStream,
    client: Client,
    identity: Option<Identity>,
    routes: Router,
    stop: watch::Receiver<bool>,
) {
    // Signalling is small messages.
    let _ = stream.set_nodelay(true);
    match identity {
        None => serve_http(stream, client, routes, stop).await,
        Some(identity) => match timeout(PATIENCE, identity.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => serve_http(stream, client, routes, stop).await,
            Ok(Err(error)) => tracing::debug!("a TLS handshake failed: {error}"),
            Err(_) => tracing::debug!("a TLS handshake was not finished in time"),
        },
    }
}

async fn serve_http<S>(stream: S, client: Client, routes: Router, mut stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = TowerToHyperService::new(routes.layer(Extension(client)));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(64 * 1024);
    let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::pin!(connection);
    let result = tokio::select! {
        result = &mut connection => result,
        () = async { drop(stop.wait_for(|stop| *stop).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!("a connection ended: {error}");
    }
}

fn identity(options: &Serve) -> Result<Option<Identity>, ServeError> {
    let is_given = options.certificate.is_some();
    let is_encrypted = match options.tls {
        TlsMode::Auto => is_given || !options.listen.ip().is_loopback(),
        TlsMode::On => true,
        TlsMode::Off => false,
    };
    if !is_encrypted {
        return Ok(None);
    }
    Ok(Some(match (&options.certificate, &options.private_key) {
        (Some(certificate), Some(key)) => Identity::load(certificate, key)?,
        _ => {
            let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
            if !options.listen.ip().is_unspecified() && !options.listen.ip().is_loopback() {
                names.push(options.listen.ip().to_string());
            }
            names.extend(options.name.iter().cloned());
            Identity::make(names)?
        }
    }))
}

/// Returns the host addresses of the forwarding unit: the given one, that of the listener, or those from which this
/// machine reaches others.
fn sfu_hosts(given: Option<IpAddr>, listener: IpAddr) -> Vec<IpAddr> {
    if let Some(given) = given {
        return vec![given];
    }
    if !listener.is_unspecified() {
        return vec![listener];
    }
    // Connecting a UDP socket sends nothing. The addresses are those of documentation (RFC 5737, RFC 3849).
    let towards = |own: IpAddr, other: &str| {
        let socket = UdpSocket::bind((own, 0)).ok()?;
        socket.connect((other, 9)).ok()?;
        socket.local_addr().ok().map(|address| address.ip())
    };
    let v4 = towards(Ipv4Addr::UNSPECIFIED.into(), "192.0.2.1");
    let v6 = if listener.is_ipv6() { towards(Ipv6Addr::UNSPECIFIED.into(), "2001:db8::1") } else { None };
    v4.into_iter().chain(v6).collect()
}

async fn ice_servers(options: &Serve, trust: &Trust) -> Result<(IceServers, Option<OwnRelay>), IceError> {
    Ok(match &options.credentials_key_file {
        Some(key_file) => {
            let urls = &options.credentials_url;
            let endpoint = Endpoint::new(urls, key_file, options.user_prefix.clone(), options.lifetime)?;
            (IceServers::Fetched(Box::new(endpoint.with_trust(trust.clone()))), None)
        }
        None => {
            let urls = options.turn_url.clone();
            let (minted, relay) = Minted::from_config(&options.config, urls, options.lifetime).await?;
            (IceServers::Minted(minted), relay)
        }
    })
}
