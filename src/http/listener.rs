//! The sockets on which the server accepts connections.

use std::future::pending;
use std::net::{self, IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net as unix;
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use socket2::{Domain, SockRef, Socket, Type};
use tokio::sync::mpsc;
use tracing::field::{DisplayValue, display};

use super::HandedOver;
use crate::net::limits::{SpareFiles, too_many_open_files};
use crate::net::udp::allow_missing_address;
use crate::privacy::{LoggedAddress, Privacy};

/// A bound socket.
#[derive(Debug)]
pub(crate) enum Listener {
    /// The control socket.
    Unix(UnixSocket),
    /// A TCP listener.
    Tcp(net::TcpListener),
}

/// A Unix socket.
#[derive(Debug)]
pub(crate) struct UnixSocket {
    socket: unix::UnixListener,
    file: SocketFile,
}

/// The file of a Unix socket. Dropping it removes the file, unless another server has replaced it.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// The device and the inode; `None` for a file of the service manager, which keeps it.
    identity: Option<(u64, u64)>,
}

/// Why a socket cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another server uses the path.
    #[error("another server uses {}", .0.display())]
    InUse(PathBuf),
    /// The path names something other than a socket.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// The kernel refused it.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The client of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Client {
    /// A process on this machine.
    Process(PeerCredentials),
    /// An address.
    Address(SocketAddr),
    /// This process, on behalf of the fleet.
    Fleet,
}

/// The process at the other end of a Unix socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerCredentials {
    pub(crate) process: Option<i32>,
    pub(crate) user: u32,
}

impl Client {
    /// Returns the address of the client; `None` on the control socket.
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Process(_) | Self::Fleet => None,
            Self::Address(address) => Some(address.ip().to_canonical()),
        }
    }

    /// Returns the client for a field of a log line; `None` omits the field.
    pub(crate) fn logged(&self, privacy: &Privacy) -> Option<DisplayValue<LoggedClient>> {
        let client = match self {
            Self::Process(process) => LoggedClient::Process(*process),
            Self::Fleet => LoggedClient::Fleet,
            Self::Address(address) => LoggedClient::Address(privacy.address(*address)?),
        };
        Some(display(client))
    }

    /// Returns the source whose connections are limited: an IPv4 address or an IPv6 /64. A client on this machine has
    /// none, because it may be a proxy, which hides its clients.
    pub(super) fn source(&self) -> Option<IpAddr> {
        match self.ip().filter(|ip| !ip.is_loopback())? {
            IpAddr::V4(ip) => Some(ip.into()),
            IpAddr::V6(ip) => Some(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into()),
        }
    }
}

impl fmt::Display for PeerCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { process, user } = self;
        match process {
            Some(process) => write!(f, "process {process} of user {user}"),
            None => write!(f, "a process of user {user}"),
        }
    }
}

/// A client, as the log shows it.
#[derive(Clone, Debug)]
pub(crate) enum LoggedClient {
    Process(PeerCredentials),
    Fleet,
    Address(DisplayValue<LoggedAddress>),
}

impl fmt::Display for LoggedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(process) => process.fmt(f),
            Self::Fleet => f.write_str("fleet"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// The most connections that wait to be accepted.
const BACKLOG: i32 = 64;

impl Listener {
    /// Binds a TCP listener, and returns it with its actual address. `[::]` also accepts IPv4. This machine may get the
    /// address later. `is_shared`: this process has another listener at its port, so the new one gets connections only
    /// when it is served.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(crate) fn tcp(address: SocketAddr, is_shared: bool) -> io::Result<(Self, SocketAddr)> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        allow_missing_address(&socket, address);
        socket.set_nonblocking(true)?;
        socket.set_reuse_port(is_shared)?;
        socket.bind(&address.into())?;
        if !is_shared {
            socket.listen(BACKLOG)?;
        }
        // After `bind`, so that it does not share the port of another server. A reload may share it.
        socket.set_reuse_port(true)?;
        let socket = net::TcpListener::from(socket);
        let actual = socket.local_addr()?;
        Ok((Self::Tcp(socket), actual))
    }

    pub(super) fn into_async(self) -> io::Result<AsyncListener> {
        Ok(match self {
            Self::Unix(UnixSocket { socket, file }) => {
                socket.set_nonblocking(true)?;
                AsyncListener::Unix(tokio::net::UnixListener::from_std(socket)?, file)
            }
            Self::Tcp(socket) => {
                let listener = tokio::net::TcpListener::from_std(socket)?;
                SockRef::from(&listener).listen(BACKLOG)?;
                AsyncListener::Tcp(listener)
            }
        })
    }
}

/// The permissions of the control socket: its user and its group.
const MODE: u32 = 0o660;

impl UnixSocket {
    /// Binds a socket to a path. A file that a server has left behind is replaced.
    ///
    /// # Errors
    /// If another server uses the path, or the file cannot be created.
    pub(crate) fn bind(path: &Path) -> Result<Self, BindError> {
        match fs::symlink_metadata(path) {
            Ok(existing) if !existing.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
            Ok(_) if unix::UnixStream::connect(path).is_ok() => return Err(BindError::InUse(path.to_owned())),
            _ => {}
        }
        // The file has its permissions before it has its name, so no other user can connect in between.
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        let new = path.with_file_name(name);
        let _ = fs::remove_file(&new);
        let socket = unix::UnixListener::bind(&new)?;
        let named = fs::set_permissions(&new, fs::Permissions::from_mode(MODE)).and_then(|()| fs::rename(&new, path));
        if let Err(error) = named {
            let _ = fs::remove_file(&new);
            return Err(error.into());
        }
        let file = fs::symlink_metadata(path)?;
        Ok(Self { socket, file: SocketFile { path: path.to_owned(), identity: Some((file.dev(), file.ino())) } })
    }

    /// Wraps a socket that the service manager has passed.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(crate) fn passed(socket: unix::UnixListener, path: &Path) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, file: SocketFile { path: path.to_owned(), identity: None } })
    }
}

impl UnixSocket {
    pub(crate) fn path(&self) -> &Path {
        &self.file.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let present = fs::symlink_metadata(&self.path).map(|file| (file.dev(), file.ino()));
        if present.is_ok_and(|identity| Some(identity) == self.identity) {
            // Without the file there is nothing to remove; otherwise the next start replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A socket that is registered with the runtime, or another source of connections.
#[derive(Debug)]
pub(crate) enum AsyncListener {
    Unix(tokio::net::UnixListener, #[expect(dead_code, reason = "dropping it removes the file")] SocketFile),
    Tcp(tokio::net::TcpListener),
    /// Connections that a front has accepted.
    HandedOver(mpsc::Receiver<HandedOver>),
}

/// An accepted connection.
#[derive(Debug)]
pub(super) enum Stream {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream),
}

impl AsyncListener {
    /// Accepts a connection. Those over TCP leave files to the control socket.
    ///
    /// # Errors
    /// Those of `accept`; `EMFILE` if no other than the spare files are free.
    pub(super) async fn accept(&mut self, spare: &SpareFiles) -> io::Result<(Stream, Client)> {
        match self {
            Self::Unix(socket, _) => {
                let (stream, _) = socket.accept().await?;
                let credentials = stream.peer_cred()?;
                let client = PeerCredentials { process: credentials.pid(), user: credentials.uid() };
                Ok((Stream::Unix(stream), Client::Process(client)))
            }
            Self::Tcp(socket) => {
                let (stream, address) = socket.accept().await?;
                if !spare.permit(&stream) {
                    return Err(too_many_open_files());
                }
                accepted(stream, address)
            }
            Self::HandedOver(connections) => match connections.recv().await {
                Some((stream, address)) => accepted(tokio::net::TcpStream::from_std(stream)?, address),
                // The front has ended. No more connections come.
                None => pending().await,
            },
        }
    }

    /// Returns the socket of a TCP listener.
    pub(crate) fn into_tcp(self) -> Option<tokio::net::TcpListener> {
        if let Self::Tcp(socket) = self { Some(socket) } else { None }
    }

    /// Returns the connections that wait at a TCP listener, which is about to be closed: the kernel would reset them.
    /// It resets those that would use a spare file.
    pub(super) fn waiting(self, spare: &SpareFiles) -> Vec<(Stream, Client)> {
        let Self::Tcp(socket) = self else { return Vec::new() };
        let Ok(socket) = socket.into_std() else { return Vec::new() };
        accept_waiting(|| socket.accept(), spare)
    }
}

/// Accepts connections until none waits, or until one would use a spare file.
fn accept_waiting(
    mut accept: impl FnMut() -> io::Result<(net::TcpStream, SocketAddr)>,
    spare: &SpareFiles,
) -> Vec<(Stream, Client)> {
    let register = |stream: net::TcpStream, address| {
        stream.set_nonblocking(true)?;
        accepted(tokio::net::TcpStream::from_std(stream)?, address)
    };
    let mut waiting = Vec::new();
    // The queue of the kernel has room for one connection more than the backlog.
    for _ in 0..=BACKLOG {
        match accept() {
            Ok((stream, _)) if !spare.permit(&stream) => break,
            // An error concerns this connection only.
            Ok((stream, address)) => waiting.extend(register(stream, address)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // Such as that of a connection that its client has reset (accept(2)).
            Err(_) => {}
        }
    }
    waiting
}

fn accepted(stream: tokio::net::TcpStream, address: SocketAddr) -> io::Result<(Stream, Client)> {
    // Without it, responses may wait for an acknowledgement.
    stream.set_nodelay(true)?;
    Ok((Stream::Tcp(stream), Client::Address(address)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a path in a new directory.
    fn path() -> (PathBuf, PathBuf) {
        let unique = format!("turnserver-socket-{}-{:?}", std::process::id(), std::thread::current().id());
        let directory = std::env::temp_dir().join(unique.replace(['(', ')'], ""));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory).unwrap();
        let path = directory.join("control.sock");
        (directory, path)
    }

    #[test]
    fn the_source_of_a_client_is_its_ipv4_address_or_its_ipv6_network() {
        for (client, source) in [
            ("192.0.2.7:5", Some("192.0.2.7")),
            ("[::ffff:192.0.2.7]:5", Some("192.0.2.7")),
            ("[2001:db8:1:2:3:4:5:6]:5", Some("2001:db8:1:2::")),
            ("127.0.0.1:5", None),
            ("[::1]:5", None),
        ] {
            let expected = source.map(|source| source.parse().unwrap());
            assert_eq!(Client::Address(client.parse().unwrap()).source(), expected, "{client}");
        }
    }

    #[tokio::test]
    async fn waiting_connections_of_a_closed_listener_leave_the_spare_files() {
        const CLIENTS: usize = 5;
        for (limit, expected) in [(0, 0), (u64::MAX, CLIENTS)] {
            let (listener, address) = Listener::tcp("127.0.0.1:0".parse().unwrap(), false).unwrap();
            let listener = listener.into_async().unwrap();
            // The kernel completes these connections.
            let clients = [(); CLIENTS].map(|()| net::TcpStream::connect(address).unwrap());
            assert_eq!(listener.waiting(&SpareFiles::new(limit, 0)).len(), expected);
            drop(clients);
        }
    }

    #[tokio::test]
    async fn all_waiting_connections_of_a_closed_listener_are_accepted_whatever_happens_to_one() {
        const CLIENTS: usize = BACKLOG as usize + 1;
        let (listener, address) = Listener::tcp("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let AsyncListener::Tcp(listener) = listener.into_async().unwrap() else { unreachable!() };
        let listener = listener.into_std().unwrap();
        let spare = SpareFiles::new(u64::MAX, 0);
        // The kernel completes these connections.
        let clients = [(); CLIENTS].map(|()| net::TcpStream::connect(address).unwrap());
        assert_eq!(accept_waiting(|| listener.accept(), &spare).len(), CLIENTS);
        let clients_after_error = [(); 3].map(|()| net::TcpStream::connect(address).unwrap());
        let mut calls = 0;
        let accept = || {
            calls += 1;
            if calls == 2 { Err(io::ErrorKind::ConnectionAborted.into()) } else { listener.accept() }
        };
        assert_eq!((accept_waiting(accept, &spare).len(), calls), (3, 5));
        drop((clients, clients_after_error));
    }

    #[test]
    fn the_file_of_the_socket_has_its_mode_and_goes_with_the_socket() {
        let (directory, path) = path();
        let socket = UnixSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        drop(socket);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        fs::remove_dir(&directory).unwrap();
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let (directory, path) = path();
        // A socket whose process has ended leaves its file.
        drop(unix::UnixListener::bind(&path).unwrap());
        let socket = UnixSocket::bind(&path).unwrap();
        assert!(matches!(UnixSocket::bind(&path), Err(BindError::InUse(_))));
        assert!(unix::UnixStream::connect(&path).is_ok());
        drop(socket);
        fs::write(&path, "a file").unwrap();
        assert!(matches!(UnixSocket::bind(&path), Err(BindError::NotASocket(_))));
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_file_that_another_server_has_replaced_remains() {
        let (directory, path) = path();
        let socket = UnixSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let other = unix::UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
        drop(other);
        fs::remove_dir_all(&directory).unwrap();
    }
}
