//! The sockets that the service manager has passed: which of them are used.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::net::passed::{PassedSocket, PassedSockets, Place};
use crate::transport::Endpoint;

/// What uses sockets.
#[derive(Debug)]
pub(super) struct Users {
    endpoints: Vec<Endpoint>,
    services: Vec<SocketAddr>,
    control: Option<PathBuf>,
}

impl Users {
    /// `endpoints`: the listeners for clients. `services`: those of HTTP and of the fronts. Both with their actual ports.
    pub(super) fn new(config: &Config, endpoints: &[Endpoint], services: &[SocketAddr]) -> Self {
        let control = config.control.socket.path().map(Path::to_owned);
        Self { endpoints: endpoints.to_vec(), services: services.to_vec(), control }
    }

    /// Returns whether a listener has the place of a socket.
    pub(super) fn has(&self, place: &Place) -> bool {
        let endpoint = |is_connection: bool, address: &SocketAddr| {
            let mut endpoints = self.endpoints.iter();
            endpoints.any(|own| own.transport.is_connection() == is_connection && own.address == *address)
        };
        match place {
            Place::Udp(address) => endpoint(false, address),
            Place::Tcp(address) => endpoint(true, address) || self.services.contains(address),
            Place::Unix(path) => self.control.as_ref() == Some(path),
        }
    }
}

/// Logs which sockets are used.
pub(super) fn report(passed: &PassedSockets, users: &Users) {
    for socket in passed.all().iter().filter(|socket| users.has(socket.place())) {
        tracing::info!(event = "socket-passed", %socket, "a listener uses a socket that the service manager has passed");
    }
    for socket in passed.all().iter().filter(|socket| !users.has(socket.place())) {
        tracing::error!(event = "socket-unused", %socket, "{}", unused(socket));
    }
    for why in passed.unusable() {
        tracing::error!(
            event = "socket-unusable",
            "the service manager has passed a socket that cannot be used, {why}"
        );
    }
}

/// Explains why a socket is not used.
fn unused(socket: &PassedSocket) -> String {
    let key = match socket.place() {
        Place::Udp(_) => "listen.udp",
        Place::Tcp(_) => "listen.tcp, listen.tls, http.listen or front.listen",
        Place::Unix(_) => "control.socket",
    };
    format!(
        "no listener has the address of a socket that the service manager has passed, so it serves no clients: set exactly \
         this address in {key} and reload, or remove it from the .socket unit"
    )
}
