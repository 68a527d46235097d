//! The control socket and the HTTP listeners.

use std::net::SocketAddr;
use std::path::Path;

use super::listeners::{Neighbours, overlaps};
use super::start::StartError;
use crate::config::{CONTROL_SOCKET as CONTROL_SOCKET_PATH, Config, ControlSocket, Http};
use crate::http::{self, ListenerChange, UnixSocket};
use crate::transport::Endpoint;

/// The HTTP listeners of the process.
#[derive(Debug, Default)]
pub(super) struct HttpListeners {
    bound: Vec<Bound>,
}

/// A listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bound {
    /// As in the configuration.
    wanted: SocketAddr,
    /// With the actual port.
    actual: SocketAddr,
}

/// The listeners of a new configuration. Their sockets are bound; nothing else has changed.
#[derive(Debug)]
pub(super) struct NewHttpListeners {
    pub(super) listeners: HttpListeners,
    pub(super) change: ListenerChange,
    scheme: &'static str,
}

impl HttpListeners {
    /// Returns the addresses that a new configuration keeps or opens, and those that it closes.
    pub(super) fn neighbours(&self, new: &Self) -> Neighbours {
        let stay: Vec<SocketAddr> = new.bound.iter().map(|own| own.actual).collect();
        let go = self.bound.iter().map(|own| own.actual).filter(|own| !stay.contains(own)).collect();
        Neighbours { stay, go }
    }

    /// Binds the listeners of a configuration, except those that these have. `clients`: the TCP listeners of the
    /// clients.
    ///
    /// # Errors
    /// If one of them cannot be bound. Then none is.
    pub(super) fn preview(&self, config: &Http, clients: &Neighbours) -> Result<NewHttpListeners, StartError> {
        let (mut bound, mut open) = (Vec::<Bound>::new(), Vec::new());
        // Wildcards first: they hold their port on every address, so that specific addresses can share it.
        let mut wanted: Vec<SocketAddr> = config.listen.clone();
        wanted.sort_by_key(|address| !address.ip().is_unspecified());
        for wanted in wanted {
            if let Some(own) = self.bound.iter().find(|own| own.wanted == wanted || own.actual == wanted) {
                bound.push(Bound { wanted, actual: own.actual });
                continue;
            }
            if let Some(clients) = clients.conflict(wanted) {
                return Err(StartError::HttpInUse { address: wanted, clients });
            }
            let is_own = self.bound.iter().chain(&bound).any(|own| overlaps(own.actual, wanted));
            let (listener, actual) = http::Listener::tcp(wanted, is_own || clients.share(wanted))
                .map_err(|error| StartError::Http { address: wanted, error })?;
            open.push((listener, actual));
            bound.push(Bound { wanted, actual });
        }
        let listeners = Self { bound };
        let close = self.neighbours(&listeners).go;
        let scheme = if config.tls { "https" } else { "http" };
        let change = ListenerChange { open, close, is_encrypted: config.tls, closed: None };
        Ok(NewHttpListeners { listeners, change, scheme })
    }
}

impl NewHttpListeners {
    /// Takes out the listeners to close whose ports the listeners of the clients need.
    pub(super) fn take_closed_for(&mut self, clients: &[Endpoint]) -> Vec<SocketAddr> {
        let tcp = |endpoint: &&Endpoint| endpoint.transport.is_connection();
        let is_needed = |own: &SocketAddr| clients.iter().filter(tcp).any(|new| overlaps(new.address, *own));
        self.change.close.extract_if(.., |own| is_needed(own)).collect()
    }

    pub(super) fn log(&self) {
        for address in &self.change.close {
            tracing::info!(event = "http-listener-closed", %address, "HTTP no longer listening");
        }
        for (_, address) in &self.change.open {
            tracing::info!(event = "http-listening", %address, scheme = self.scheme, "HTTP listening");
        }
    }
}

/// Binds the control socket. At its default place it is only made if it can be made, so that a trial needs neither the
/// directory nor the permission.
///
/// # Errors
/// If it is configured and cannot be bound.
pub(super) fn control_socket(config: &Config) -> Result<Option<UnixSocket>, StartError> {
    let socket = match &config.control.socket {
        ControlSocket::None => None,
        ControlSocket::At(path) => {
            let error = |error| StartError::Control { path: path.clone(), error };
            Some(UnixSocket::bind(path).map_err(error)?)
        }
        ControlSocket::Default => {
            let path = Path::new(CONTROL_SOCKET_PATH);
            let directory = path.parent().filter(|directory| directory.is_dir());
            directory.and_then(|_| {
                let warn = |error: &http::BindError| {
                    tracing::warn!(
                        event = "no-control-socket", path = CONTROL_SOCKET_PATH, %error,
                        "there is no control socket, so `turnserver ctl` cannot reach this server; set control.socket \
                         to another path"
                    );
                };
                UnixSocket::bind(path).inspect_err(warn).ok()
            })
        }
    };
    if let Some(socket) = &socket {
        tracing::info!(event = "control-socket", path = %socket.path().display(), "control socket");
    }
    Ok(socket)
}
