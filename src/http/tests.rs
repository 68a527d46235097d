//! Clients that are slow: each exceeds one time, while the others are longer than the test.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::*;
use crate::privacy::{ClientAddresses, Usernames};

/// The time that a client exceeds.
const SHORT: Duration = Duration::from_millis(50);
/// The timeout of the test.
const TIMEOUT: Duration = Duration::from_secs(60);
const TIMES: Times = Times { head: MUCH_LONGER, body: MUCH_LONGER, handshake: MUCH_LONGER, connection: MUCH_LONGER };
const MUCH_LONGER: Duration = Duration::from_secs(3_600);

/// The length of a response that does not fit into the buffers of the kernel.
const LONG: usize = 64 << 20;

/// Responds with a long body.
struct LongResponses;

impl Handler for LongResponses {
    fn refuse<B>(&self, _: &Client, _: &Request<B>) -> Option<Response<Full<Bytes>>> {
        None
    }

    fn complete(&self, _: &Client, _: &Request<()>, _: &mut Response<Full<Bytes>>) {}

    async fn handle(&self, _: &Client, _: Request<Bytes>) -> Response<Full<Bytes>> {
        response::text(StatusCode::OK, vec![b'x'; LONG])
    }

    fn privacy(&self) -> Arc<Privacy> {
        Arc::new(Privacy::new(ClientAddresses::Full, Usernames::Full, [0; 32]))
    }
}

fn new(listener: Listener, address: SocketAddr) -> NewListener {
    NewListener { listener, address, generation: 7 }
}

/// Returns a change of nothing.
fn change() -> ListenerChange {
    ListenerChange { open: vec![], close: vec![], is_encrypted: false }
}

struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: thread::JoinHandle<()>,
    handle: Handle,
}

impl Server {
    fn start(times: Times) -> Self {
        Self::start_with(times, None, SpareFiles::new(u64::MAX, 0))
    }

    fn start_with(times: Times, control_socket: Option<Listener>, spare: SpareFiles) -> Self {
        let (listener, address) = Listener::tcp("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let (handle, changes) = changes();
        handle.change(1, ListenerChange { open: vec![new(listener, address)], ..change() });
        let (stop, stopped) = watch::channel(false);
        let plan = Plan {
            control_socket,
            handed_over: [mpsc::channel(1).1, mpsc::channel(1).1],
            internal: mpsc::channel(1).1,
            changes,
            certificate: Box::new(|| panic!("no certificate")),
            spare,
            stop: stopped,
        };
        let thread = start_with(times, plan, || LongResponses).unwrap();
        Self { address, stop, thread, handle }
    }

    fn send(&self, request: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(request).unwrap();
        stream
    }

    fn failed(&mut self) -> FailedListener {
        match self.handle.blocking_report() {
            Some(Report::Failed(failed)) => failed,
            other => panic!("{other:?}"),
        }
    }

    /// Returns the number of the change that is complete.
    fn completed(&mut self) -> u64 {
        match self.handle.blocking_report() {
            Some(Report::Complete(number)) => number,
            other => panic!("{other:?}"),
        }
    }

    fn stop(self) {
        self.stop.send(true).unwrap();
        self.thread.join().unwrap();
    }
}

/// Reads until the server closes the connection.
fn read_to_end(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => panic!("the connection stays open: {error}"),
        _ => bytes,
    }
}

#[test]
fn a_client_that_sends_no_whole_head_in_time_is_disconnected() {
    let server = Server::start(Times { head: SHORT, ..TIMES });
    for part in ["", "GET / HTTP/1.1\r\nHost: "] {
        assert_eq!(read_to_end(server.send(part.as_bytes())), b"", "{part}");
    }
    server.stop();
}

#[test]
fn a_client_that_sends_no_whole_body_in_time_gets_408() {
    let server = Server::start(Times { body: SHORT, ..TIMES });
    let head = "POST / HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: 9\r\n\r\n12345678";
    let response = read_to_end(server.send(head.as_bytes()));
    assert!(response.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&response));
    server.stop();
}

#[test]
fn a_connection_ends_after_its_time_whatever_the_client_does() {
    let server = Server::start(Times { connection: SHORT, ..TIMES });
    assert_eq!(read_to_end(server.send(b"GET / HTTP/1.1\r\n")), b"");
    // This client reads its response only after its time, which ends before that of a later connection.
    let slow = server.send(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n");
    let later = server.send(b"");
    assert_eq!(read_to_end(later), b"");
    assert!(read_to_end(slow).len() < LONG);
    server.stop();
}

#[test]
fn only_the_control_socket_uses_the_spare_files() {
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: t\r\n\r\n";
    const RESPONSE: &[u8] = b"HTTP/1.1 200 ";
    let path = std::env::temp_dir().join(format!("turnserver-spare-files-{}", std::process::id()));
    let control_socket = Listener::Unix(UnixSocket::bind(&path).unwrap());
    let spare = SpareFiles::new(0, 0);
    let server = Server::start_with(TIMES, Some(control_socket), spare.clone());
    assert_eq!(read_to_end(server.send(REQUEST)), b"");
    let mut start = [0; RESPONSE.len()];
    let mut control = UnixStream::connect(&path).unwrap();
    control.set_read_timeout(Some(TIMEOUT)).unwrap();
    control.write_all(REQUEST).unwrap();
    control.read_exact(&mut start).unwrap();
    assert_eq!(start, RESPONSE);
    spare.set(u64::MAX, 0);
    let mut stream = server.send(REQUEST);
    stream.read_exact(&mut start).unwrap();
    assert_eq!(start, RESPONSE);
    drop((control, stream));
    server.stop();
}

#[test]
fn a_change_is_complete_when_its_listeners_are_open_and_closed_and_says_which_could_not_be_opened() {
    let mut server = Server::start(TIMES);
    // A listener that shares a port does not listen before it is served.
    let (shared, opened) = Listener::tcp(server.address, true).unwrap();
    // The kernel does not watch regular files.
    let file = TcpListener::from(OwnedFd::from(File::open("Cargo.toml").unwrap()));
    file.set_nonblocking(true).unwrap();
    let broken = SocketAddr::from(([192, 0, 2, 1], 80));
    let wildcard = SocketAddr::from(([0, 0, 0, 0], opened.port()));
    let open = vec![new(Listener::Tcp(file), broken), new(shared, wildcard)];
    assert_eq!(server.completed(), 1);
    server.handle.change(2, ListenerChange { open, close: vec![opened], ..change() });
    let FailedListener { address, generation, error } = server.failed();
    assert_eq!((address, generation, error.raw_os_error()), (broken, 7, Some(libc::EPERM)));
    assert_eq!(server.completed(), 2);
    drop(server.send(b""));
    server.handle.change(3, ListenerChange { close: vec![wildcard], ..change() });
    assert_eq!(server.completed(), 3);
    assert_eq!(TcpStream::connect(opened).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    server.stop();
}

#[test]
fn a_listener_whose_task_panics_is_reported_and_a_server_that_panics_reports_no_change_as_complete() {
    let mut server = Server::start(TIMES);
    assert_eq!(server.completed(), 1);
    // With TLS, the task of a listener asks for the certificate.
    server.handle.change(2, ListenerChange { is_encrypted: true, ..change() });
    assert_eq!(server.completed(), 2);
    drop(server.send(b""));
    let FailedListener { address, generation, .. } = server.failed();
    assert_eq!((address, generation), (server.address, 7));
    server.stop();

    let (mut handle, changes) = changes();
    let (_stop, stop) = watch::channel(false);
    let spare = SpareFiles::new(u64::MAX, 0);
    let handed_over = [mpsc::channel(1).1, mpsc::channel(1).1];
    let (internal, certificate) = (mpsc::channel(1).1, Box::new(|| None));
    let plan = Plan { control_socket: None, handed_over, internal, changes, certificate, spare, stop };
    handle.change(1, change());
    let thread = start_with(TIMES, plan, || -> LongResponses { panic!("a bug") }).unwrap();
    assert!(handle.blocking_report().is_none());
    assert!(thread.join().is_err());
}
