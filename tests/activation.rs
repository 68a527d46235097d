//! Sockets that the service manager has bound and passed to the server (socket activation).

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "http/client.rs"]
mod client;
#[cfg(test)]
mod support;

#[cfg(test)]
mod activation {
    use std::fs;
    use std::io;
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener};
    use std::path::PathBuf;
    use std::process::Command;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use nix::unistd::geteuid;
    use socket2::{Domain, SockRef, Socket, Type};
    use turnserver::clock::{Clock, unix_seconds};
    use turnserver::stun::TransactionId;

    use crate::client::Http;
    use crate::support::certificates::Authority;
    use crate::support::client::{Client, Login, allocate};
    use crate::support::tls::{ANY, handshake};
    use crate::support::{Controlled, LogLine, Server, TIMEOUT, TempDir, config, has_ipv6, skip, with_tls};

    /// An account without rights.
    const NOBODY: &str = "65534";

    /// A command that passes sockets to the program that it becomes, as systemd does.
    struct Manager {
        command: Command,
        /// Those that the command inherits.
        _inherited: Vec<OwnedFd>,
        /// Other tests of this process would pass them on, too.
        _alone: MutexGuard<'static, ()>,
    }

    impl Manager {
        fn new(sockets: &[BorrowedFd<'_>]) -> Self {
            Self::with("exec \"$@\"", sockets)
        }

        /// `exec` becomes the program in the parameters of the shell.
        fn with(exec: &str, sockets: &[BorrowedFd<'_>]) -> Self {
            static ALONE: Mutex<()> = Mutex::new(());
            let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
            let inherit = |socket: &BorrowedFd<'_>| {
                let inherited = socket.try_clone_to_owned().unwrap();
                fcntl(&inherited, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
                inherited
            };
            let inherited: Vec<OwnedFd> = sockets.iter().map(inherit).collect();
            let mut script = String::new();
            // First to numbers that are in the way of none.
            for (high, socket) in (100..).zip(&inherited) {
                let from = socket.as_raw_fd();
                script += &format!("exec {high}<&{from} {from}<&-; ");
            }
            for (number, high) in (3..).zip(100..).take(inherited.len()) {
                script += &format!("exec {number}<&{high} {high}<&-; ");
            }
            script += &format!("export LISTEN_PID=$$ LISTEN_FDS={}; {exec}", inherited.len());
            let mut command = Command::new("bash");
            command.args(["-c", &script, "bash", env!("CARGO_BIN_EXE_turnserver")]);
            Self { command, _inherited: inherited, _alone: alone }
        }

        fn start(mut self, config: &str) -> Server {
            Server::start_by(&mut self.command, config)
        }

        fn start_controlled(mut self, config: &str) -> Controlled {
            Controlled::start_by(&mut self.command, config)
        }
    }

    /// Returns a configuration whose listeners have these addresses.
    fn with_listeners(udp: &[SocketAddr], tcp: &[SocketAddr], more: &str) -> String {
        let list =
            |addresses: &[SocketAddr]| format!("{:?}", addresses.iter().map(ToString::to_string).collect::<Vec<_>>());
        let config = config(&["127.0.0.1"], more);
        let any = "[\"127.0.0.1:0\"]";
        let replaced = config.replacen(any, &list(udp), 1).replacen(any, &list(tcp), 1);
        assert_ne!(replaced, config);
        replaced
    }

    /// Binds a free port by its number, as systemd does: a socket that stops listening keeps only such a port.
    fn tcp() -> (TcpListener, SocketAddr) {
        loop {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            if let Ok(socket) = TcpListener::bind(address) {
                return (socket, address);
            }
        }
    }

    fn udp() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    fn is(event: &str) -> impl Fn(&LogLine) -> bool + '_ {
        move |line| line.field("event").as_deref() == Some(event)
    }

    fn count(server: &Server, event: &str) -> usize {
        server.logs().iter().filter(|line| is(event)(line)).count()
    }

    fn has_allocation(client: &Client) {
        // Each has a user of its own, because a user has a rate limit.
        let user = format!("user-{}", client.address().port());
        let (session, _) = client.allocate(&Login::mint(&user, 600)).unwrap();
        client.delete(&session);
    }

    // The kernel has kept the destination of what arrived before the server requested it (IP_PKTINFO). Such a client has
    // started the server.
    #[test]
    fn clients_that_came_before_the_server_get_a_response_from_the_address_to_which_they_wrote() {
        if !has_ipv6() {
            return;
        }
        let wildcard = Socket::new(Domain::IPV6, Type::DGRAM, None).unwrap();
        wildcard.set_only_v6(false).unwrap();
        wildcard.bind(&"[::]:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        let udp_at = wildcard.local_addr().unwrap().as_socket().unwrap();
        let (tcp, tcp_at) = tcp();
        let places = ["127.0.0.2", "::1"].map(|ip| SocketAddr::new(ip.parse().unwrap(), udp_at.port()));
        let mut clients: Vec<Client> = places.into_iter().map(Client::new).collect();
        clients.push(Client::connect(tcp_at));
        clients.iter().for_each(|client| client.send(&allocate(TransactionId::new([7; 12]))));
        let _server = Manager::new(&[wildcard.as_fd(), tcp.as_fd()]).start(&with_listeners(&[udp_at], &[tcp_at], ""));
        for client in &clients {
            assert_eq!(client.receive().error(), Some(401), "{}", client.address());
        }
    }

    // Each socket is bound by this process without SO_REUSEPORT, so the server could not bind another one.
    #[test]
    fn listeners_of_every_kind_use_the_sockets_with_their_addresses() {
        let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
        let files = authority.write(&authority.issue(&["localhost"]), directory.path());
        let path = directory.path().join("control.sock");
        let control = UnixListener::bind(&path).unwrap();
        let ((udp, udp_at), (tcp, tcp_at), (tls, tls_at), (http, http_at)) = (udp(), tcp(), tcp(), tcp());
        let (front, front_at) = self::tcp();
        let more = format!(
            "[http]\nlisten = [\"{http_at}\"]\n[control]\nsocket = {path:?}\n\
             [[front]]\nlisten = \"{front_at}\"\nweb = \"127.0.0.1:9\"\nnames = [\"localhost\"]\n"
        );
        let config = with_tls(&with_listeners(&[udp_at], &[tcp_at], &more), &["127.0.0.1"], &files);
        let config = config.replacen("tls = [\"127.0.0.1:0\"]", &format!("tls = [\"{tls_at}\"]"), 1);
        // In an order that is not that of the configuration.
        let streams = [http.as_fd(), front.as_fd(), control.as_fd(), tls.as_fd(), tcp.as_fd()];
        let manager = Manager::new(&[&streams[..], &[udp.as_fd()]].concat());
        let server = manager.start(&format!("workers = 1\n{config}"));
        assert_eq!((server.udp_address(), server.tcp_address(), server.tls_address()), (udp_at, tcp_at, tls_at));
        has_allocation(&Client::new(udp_at));
        has_allocation(&Client::connect(tcp_at));
        has_allocation(&Client::on_tls(handshake(tls_at, &authority, &ANY).unwrap()));
        has_allocation(&Client::connect(front_at));
        assert_eq!(Http::tcp(http_at).get("/healthz").status, 200);
        assert_eq!(Http::unix(&path).get("/healthz").status, 200);
        assert_eq!((count(&server, "socket-passed"), count(&server, "socket-unused")), (6, 0));
        server.terminate();
        // The file is that of the service manager.
        assert!(path.exists());
    }

    #[test]
    fn each_worker_has_a_socket_if_the_sockets_belong_to_the_user_of_the_server() {
        let ((udp, udp_at), (tcp, tcp_at)) = (udp(), tcp());
        let config = with_listeners(&[udp_at], &[tcp_at], "");
        let server = Manager::new(&[udp.as_fd(), tcp.as_fd()]).start(&format!("workers = 3\n{config}"));
        // With many clients, each worker has some.
        let clients: Vec<Client> = (0..24).flat_map(|_| [Client::new(udp_at), Client::connect(tcp_at)]).collect();
        clients.iter().for_each(has_allocation);
        assert_eq!(count(&server, "socket-missing"), 0);
    }

    /// A directory that every user may enter, deleted when dropped.
    struct Open(PathBuf);

    impl Drop for Open {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Starts the server as a user who may not share the ports of this process.
    fn start_as_nobody(sockets: &[BorrowedFd<'_>], config: &str) -> Option<(Server, Open)> {
        if !geteuid().is_root() {
            skip("it needs root to become another user");
            return None;
        }
        // This user may not enter the directory of the build.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let place = std::env::temp_dir().join(format!("turnserver-activation-{}-{number}", std::process::id()));
        fs::create_dir_all(&place).unwrap();
        let open = Open(place.clone());
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
        let program = place.join("turnserver");
        fs::copy(env!("CARGO_BIN_EXE_turnserver"), &program).unwrap();
        let file = place.join("turnserver.toml");
        let write = format!("cat \"$3\" > {file:?}; chmod 644 {file:?}");
        let change =
            format!("exec setpriv --reuid {NOBODY} --clear-groups --bounding-set=-all {program:?} --config {file:?}");
        Some((Manager::with(&format!("{write}; {change}"), sockets).start(config), open))
    }

    // As with a socket of systemd, whose owner is root. TCP sockets are shared. A UDP socket has one worker, which gets all
    // packets of a client.
    #[test]
    fn without_the_right_to_share_the_port_one_worker_serves_udp_and_all_serve_tcp() {
        let ((udp, udp_at), (tcp, tcp_at)) = (udp(), tcp());
        let config = format!("workers = 2\n{}", with_listeners(&[udp_at], &[tcp_at], ""));
        let Some((server, _open)) = start_as_nobody(&[udp.as_fd(), tcp.as_fd()], &config) else { return };
        let missing = server.wait_for_log(is("socket-missing"));
        assert!(missing.message().starts_with("only 1 of 2 workers serve this listener"), "{missing:?}");
        assert_eq!((missing.field("transport").as_deref(), count(&server, "socket-missing")), (Some("udp"), 1));
        let clients: Vec<Client> = (0..16).flat_map(|_| [Client::new(udp_at), Client::connect(tcp_at)]).collect();
        clients.iter().for_each(has_allocation);
    }

    fn reuse_port(address: SocketAddr) -> Socket {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&address.into()).unwrap();
        socket
    }

    #[test]
    fn of_several_sockets_with_one_address_each_worker_gets_one() {
        let first = reuse_port("127.0.0.1:0".parse().unwrap());
        let address = first.local_addr().unwrap().as_socket().unwrap();
        let second = reuse_port(address);
        let config = with_listeners(&[address], &[], "");
        let sockets = [first.as_fd(), second.as_fd()];
        let Some((server, _open)) = start_as_nobody(&sockets, &format!("workers = 2\n{config}")) else { return };
        let clients: Vec<Client> = (0..24).map(|_| Client::new(address)).collect();
        clients.iter().for_each(has_allocation);
        assert_eq!(count(&server, "socket-missing"), 0);
        drop(server);

        // The kernel would give some clients to a socket that no worker has.
        let mut manager = Manager::new(&sockets);
        let refused = Server::try_start_by(&mut manager.command, &format!("workers = 1\n{config}")).err().unwrap();
        assert!(refused.contains("passed 2 sockets with this address, but there are only 1 workers"), "{refused}");
    }

    fn is_refused(address: SocketAddr) -> bool {
        matches!(TcpStream::connect(address), Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
    }

    #[test]
    fn a_socket_without_a_listener_is_an_error_in_the_log_and_a_reload_can_use_it() {
        let ((tcp, address), (other, other_at)) = (tcp(), tcp());
        let directory = TempDir::new();
        let control = UnixListener::bind(directory.path().join("unused.sock")).unwrap();
        let config = with_listeners(&[], &[other_at], "");
        let fixture = Manager::new(&[tcp.as_fd(), other.as_fd(), control.as_fd()]).start_controlled(&config);
        let unused = |line: &LogLine| is("socket-unused")(line);
        let line = fixture.server.wait_for_log(|line| unused(line) && line.text().contains(&address.to_string()));
        assert_eq!(line.level(), "ERROR");
        assert!(line.message().contains("set exactly this address in listen.tcp"), "{line:?}");
        assert_eq!(count(&fixture.server, "socket-unused"), 2);
        // It would otherwise accept connections that nothing serves. The server waits until it has reported that it is
        // ready.
        let clock = Clock::start();
        while !is_refused(address) {
            assert!(clock.elapsed() < TIMEOUT, "connections are accepted");
            std::thread::yield_now();
        }
        has_allocation(&Client::connect(other_at));

        let both = fixture.config.replacen(&format!("\"{other_at}\""), &format!("\"{other_at}\", \"{address}\""), 1);
        for _ in 0..2 {
            fixture.server.write_config(&both);
            assert_eq!(fixture.json(&["reload"])["complete"], true);
            has_allocation(&Client::connect(address));
            let kept = Client::connect(address);
            // A reload that drops the address closes the listener, although this process has the socket, too.
            fixture.server.write_config(&fixture.config);
            assert_eq!(fixture.json(&["reload"])["complete"], true);
            assert!(is_refused(address));
            has_allocation(&kept);
            has_allocation(&Client::connect(other_at));
        }
        // The service manager waits for connections while the server does not run.
        assert!(!SockRef::from(&tcp).is_listener().unwrap());
        fixture.server.terminate();
        assert!(SockRef::from(&tcp).is_listener().unwrap() && SockRef::from(&other).is_listener().unwrap());
    }

    #[test]
    fn an_http_listener_gets_its_socket_again() {
        let (http, address) = tcp();
        let config = config(&["127.0.0.1"], &format!("[http]\nlisten = [\"{address}\"]\n"));
        let fixture = Manager::new(&[http.as_fd()]).start_controlled(&config);
        for _ in 0..2 {
            assert_eq!(Http::tcp(address).get("/healthz").status, 200);
            let without = fixture.config.replacen(&format!("\"{address}\""), "", 1);
            fixture.server.write_config(&without);
            assert_eq!(fixture.json(&["reload"])["complete"], true);
            assert!(is_refused(address));
            fixture.server.write_config(&fixture.config);
            assert_eq!(fixture.json(&["reload"])["complete"], true);
        }
        assert_eq!(Http::tcp(address).get("/healthz").status, 200);
    }

    #[test]
    fn sockets_that_cannot_be_used_are_named() {
        let stream = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        stream.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        let file = fs::File::open("/dev/null").unwrap();
        // systemd deletes the directory of the control socket when the service stops.
        let directory = TempDir::new();
        let path = directory.path().join("control.sock");
        let control = UnixListener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let only_v6 = Socket::new(Domain::IPV6, Type::DGRAM, None).unwrap();
        only_v6.set_only_v6(true).unwrap();
        only_v6.bind(&"[::]:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        let datagram = UnixDatagram::bind(directory.path().join("datagram.sock")).unwrap();
        let name = format!("turnserver-activation-{}", std::process::id());
        let nameless = UnixListener::bind_addr(&UnixAddr::from_abstract_name(name).unwrap()).unwrap();
        let unusable = [
            (stream.as_fd(), "number 1 (): it does not listen: set Accept=no"),
            (file.as_fd(), "number 2 ()"),
            (only_v6.as_fd(), "number 3 (): [::] accepts only IPv6 on it: set BindIPv6Only=both"),
            (datagram.as_fd(), "number 4 (): it is neither a stream socket nor bound to a path"),
            (nameless.as_fd(), "number 5 (): it is neither a stream socket nor bound to a path"),
            (control.as_fd(), "control.sock is gone"),
        ];
        let config = config(&["127.0.0.1"], &format!("[control]\nsocket = {path:?}\n"));
        let server = Manager::new(&unusable.map(|(socket, _)| socket)).start(&config);
        server.wait_for_logs(|lines| lines.iter().filter(|line| is("socket-unusable")(line)).count() == unusable.len());
        let logs = server.logs();
        let lines: Vec<&LogLine> = logs.iter().filter(|line| is("socket-unusable")(line)).collect();
        for (line, (_, reason)) in lines.iter().zip(unusable) {
            assert!(line.message().contains(reason), "{reason}: {lines:?}");
        }
        // The server has made another one.
        assert_eq!(Http::unix(&path).get("/healthz").status, 200);
        has_allocation(&Client::new(server.udp_address()));
    }

    // The variables may be those that a parent process got.
    #[test]
    fn sockets_for_another_process_are_ignored() {
        let (tcp, address) = tcp();
        let script = "LISTEN_PID=1 exec \"$@\"";
        let server = Manager::with(script, &[tcp.as_fd()]).start(&config(&["127.0.0.1"], ""));
        assert_eq!((count(&server, "socket-passed"), count(&server, "socket-unused")), (0, 0));
        // It still listens, and nothing accepts.
        drop(TcpStream::connect(address).unwrap());
        assert!(SockRef::from(&tcp).is_listener().unwrap());
    }
}
