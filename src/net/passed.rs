//! Sockets that the service manager has bound and passed to this process (socket activation, `sd_listen_fds(3)`).
//!
//! They stay open as long as the process runs, because the service manager keeps its own descriptors of them: a listener
//! that a reload drops and another one adds again gets the same socket.

use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockRef, Type};

use super::sys::descriptors;
use super::{tcp, udp};

/// The most descriptors that are taken.
const MAX: u16 = 1_024;

/// What the service manager sets.
const VARIABLES: [&str; 4] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID"];

/// The sockets that the service manager has passed.
#[derive(Debug, Default)]
pub struct PassedSockets {
    all: Vec<PassedSocket>,
    /// Why the others cannot be used.
    unusable: Vec<String>,
}

/// A socket that the service manager has passed.
#[derive(Debug)]
pub(crate) struct PassedSocket {
    socket: OwnedFd,
    name: Option<String>,
    place: Place,
}

/// Where a passed socket is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Udp(SocketAddr),
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(address) => write!(f, "udp {address}"),
            Self::Tcp(address) => write!(f, "tcp {address}"),
            Self::Unix(path) => write!(f, "unix {}", path.display()),
        }
    }
}

impl fmt::Display for PassedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.fmt(f)?;
        self.name.iter().try_for_each(|name| write!(f, " (FileDescriptorName={name})"))
    }
}

impl PassedSockets {
    /// Takes the sockets that the environment announces for this process, and removes the variables from it. To be called
    /// before further threads are started.
    #[must_use]
    pub fn from_environment() -> Self {
        let number = |name: &str| env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
        // The variables may be those of a parent process.
        if number("LISTEN_PID") != Some(std::process::id()) {
            return Self::default();
        }
        let count = number("LISTEN_FDS").and_then(|count| u16::try_from(count).ok()).unwrap_or_default().min(MAX);
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        descriptors::remove_variables(&VARIABLES);
        let mut names = names.split(':').map(str::to_owned);
        let mut passed = Self::default();
        for (index, socket) in descriptors::take(count).into_iter().enumerate() {
            let name = names.next().filter(|name| !name.is_empty());
            let place = socket.and_then(|socket| Ok((place(&socket)?, socket)));
            match place {
                Ok((place, socket)) => passed.all.push(PassedSocket { socket, name, place }),
                Err(error) => {
                    let name = name.unwrap_or_default();
                    passed.unusable.push(format!("number {} ({name}): {error}", index + 1));
                }
            }
        }
        passed
    }

    /// Returns the sockets.
    pub(crate) fn all(&self) -> &[PassedSocket] {
        &self.all
    }

    /// Returns why further sockets cannot be used.
    pub(crate) fn unusable(&self) -> &[String] {
        &self.unusable
    }

    fn at(&self, wanted: Place) -> impl Iterator<Item = &PassedSocket> {
        self.all.iter().filter(move |own| own.place == wanted)
    }

    /// Returns the UDP sockets with this address, as [`udp::bind_listener`] makes them.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(crate) fn udp(&self, address: SocketAddr) -> io::Result<Vec<UdpSocket>> {
        let adopt = |own: &PassedSocket| {
            let socket = UdpSocket::from(own.socket.try_clone()?);
            udp::adopt_listener(&socket, address)?;
            Ok(socket)
        };
        self.at(Place::Udp(address)).map(adopt).collect()
    }

    /// Returns the TCP sockets with this address, which listen. What does not use them has to call
    /// [`refuse_unused`](Self::refuse_unused).
    ///
    /// # Errors
    /// Those of the kernel.
    pub(crate) fn tcp(&self, address: SocketAddr) -> io::Result<Vec<TcpListener>> {
        let adopt = |own: &PassedSocket| {
            let socket = TcpListener::from(own.socket.try_clone()?);
            socket.set_nonblocking(true)?;
            // Before it is watched: the kernel reports a socket that does not listen as closed for good.
            tcp::listen(&socket)?;
            // If the kernel had chosen its port, the socket lost it in `refuse_unused`.
            if socket.local_addr()? != address {
                return Err(io::Error::other("the service manager has bound the socket to port 0"));
            }
            // Further sockets of this user may share the port.
            SockRef::from(&socket).set_reuse_port(true)?;
            Ok(socket)
        };
        self.at(Place::Tcp(address)).map(adopt).collect()
    }

    /// Returns the Unix socket with this path.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(crate) fn unix(&self, path: &Path) -> io::Result<Option<UnixListener>> {
        let mut found = self.at(Place::Unix(path.to_owned()));
        found.next().map(|own| own.socket.try_clone().map(UnixListener::from)).transpose()
    }

    /// Lets the kernel refuse connections to the TCP sockets that are not used, until they listen again. It would
    /// otherwise accept them, because the service manager keeps the sockets open.
    pub(crate) fn refuse_unused(&self, is_used: impl Fn(&Place) -> bool) {
        let unused = self.all.iter().filter(|own| matches!(own.place, Place::Tcp(_)) && !is_used(&own.place));
        for own in unused {
            // It fails if the socket does not listen.
            let _ = SockRef::from(&own.socket).shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Drop for PassedSockets {
    /// Lets all TCP sockets listen again: when the service has stopped, systemd regards the unit of a socket that does not
    /// listen as failed.
    fn drop(&mut self) {
        for own in self.all.iter().filter(|own| matches!(own.place, Place::Tcp(_))) {
            // If it fails, systemd says so.
            let _ = tcp::listen(&own.socket);
        }
    }
}

impl PassedSocket {
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }
}

/// Returns whether the file of a socket is gone, as far as this user can see.
fn is_gone(path: &Path) -> bool {
    match fs::metadata(path) {
        Ok(file) => !file.file_type().is_socket(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Returns where a socket is bound.
fn place(socket: &OwnedFd) -> io::Result<Place> {
    let refused = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, why.to_owned()));
    let fd = socket.as_fd();
    let socket = SockRef::from(&fd);
    let (domain, kind, address) = (socket.domain()?, socket.r#type()?, socket.local_addr()?);
    let is_stream = kind == Type::STREAM;
    if is_stream && !socket.is_listener()? {
        return refused("it does not listen: set Accept=no in the .socket unit");
    }
    if domain == Domain::UNIX {
        return match address.as_pathname() {
            // systemd deletes RuntimeDirectory= at each stop, and keeps the socket.
            Some(path) if is_stream && is_gone(path) => refused(&format!(
                "its file {} is gone, so no program can connect to it: remove it from the .socket unit, or set \
                 RuntimeDirectoryPreserve=yes in the .service unit",
                path.display()
            )),
            Some(path) if is_stream => Ok(Place::Unix(path.to_owned())),
            _ => refused("it is neither a stream socket nor bound to a path"),
        };
    }
    let Some(address) = address.as_socket() else { return refused("it is not a socket of IP or Unix") };
    if udp::dual_stack(address) && socket.only_v6()? {
        return refused("[::] accepts only IPv6 on it: set BindIPv6Only=both in the .socket unit");
    }
    match kind {
        Type::STREAM => Ok(Place::Tcp(address)),
        Type::DGRAM => Ok(Place::Udp(address)),
        _ => refused("it is neither of TCP nor of UDP"),
    }
}
