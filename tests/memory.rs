//! What clients can make the real server keep: each test fills one of the bounds of docs/threat-model.md, "Memory", goes
//! on beyond it, and compares the memory of the process with the document.

#[cfg(test)]
#[path = "http/client.rs"]
mod client;
#[cfg(test)]
#[path = "support/memory_table.rs"]
mod memory_table;
#[cfg(test)]
mod support;

#[cfg(test)]
mod memory {
    mod front;
    mod http;
    mod sum;

    use std::fs::{self, File};
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
    use std::process::{Command, Stdio};
    use std::sync::{Mutex, MutexGuard, PoisonError};
    use std::thread;

    use nix::sys::signal::Signal;
    use socket2::{Domain, Socket, Type};
    use turnserver::clock::{Clock, unix_seconds};
    use turnserver::stun::attribute::{ChannelNumber, XorPeerAddress};
    use turnserver::stun::{Class, Method, TransactionId};

    use crate::memory_table::documented;
    use crate::support::certificates::Authority;
    use crate::support::client::{Client, Login, Session, allocate, message};
    use crate::support::{LogLine, Process, REALM, Server, TIMEOUT, TempDir, config, tls, with_tls};

    /// What the memory of a process changes by itself, in bytes: buffers that grow once, and pages that are partly used.
    const NOISE: usize = 384 * 1024;

    /// The limits that would end a test early.
    const NO_LIMITS: &str = "allocations-per-user = 0\nconnections-per-source = 0\nunverified-responses = 0\n";
    const PATIENT: &str = "[timeouts]\ntls-handshake = \"5m\"\nfirst-request = \"5m\"\nidle = \"5m\"\n";

    /// Lets one test run at a time, with as many files as it may have.
    fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        turnserver::net::limits::raise_open_files().unwrap();
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the configuration of one worker, with these limits.
    fn one_worker(limits: &str, more: &str) -> String {
        workers(1, limits, more)
    }

    fn workers(count: usize, limits: &str, more: &str) -> String {
        let more = format!("[limits]\n{NO_LIMITS}{limits}{PATIENT}{more}");
        format!("workers = {count}\n{}", config(&["127.0.0.1"], &more))
    }

    /// Adds relay ports to a configuration: more than the clients of a test need, since other programs use some.
    fn with_many_ports(config: &str) -> String {
        let (before, after) = config.split_once("ports = \"").unwrap();
        let (_, after) = after.split_once('"').unwrap();
        format!("{before}ports = \"20000-31999\"{after}")
    }

    /// Measures a process.
    struct Memory {
        process: u32,
        before: usize,
    }

    impl Memory {
        /// Measures from now on.
        fn of(process: u32) -> Self {
            Self { process, before: anonymous(process) }
        }

        fn grown(&self) -> usize {
            anonymous(self.process).saturating_sub(self.before)
        }
    }

    /// Returns the resident memory of a process in bytes, without the pages of its program.
    fn anonymous(process: u32) -> usize {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
    }

    /// Compares `count` of something with the document: at the bound, after more was tried, and after all have gone.
    fn judge(topic: &str, count: usize, [bound, beyond, after]: [usize; 3]) {
        let most = documented(topic);
        let each = bound / count;
        assert!(count * most >= 10 * NOISE, "{topic}: with {count}, what is measured may be noise");
        println!("{topic}: {count} took {bound} bytes, {each} each; beyond the bound {beyond}, afterwards {after}");
        assert!(bound <= count * most + NOISE, "{topic}: {each} bytes each, and {most} are documented");
        assert!(2 * (bound + NOISE) > count * most, "{topic}: {each} bytes each, and {most} are documented");
        // The allocator does not reuse all that is free.
        let no_more = bound + bound / 4 + NOISE;
        assert!(beyond <= no_more, "{topic}: {bound} bytes at the bound, {beyond} beyond it");
        assert!(after <= no_more, "{topic}: {bound} bytes at the bound, {after} after all have gone");
    }

    /// Waits until something is so.
    fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        let clock = Clock::start();
        while !is_so() {
            assert!(clock.elapsed() < TIMEOUT, "{what}: not within {TIMEOUT:?}");
            thread::yield_now();
        }
    }

    /// The TCP sockets of a port, as the kernel lists them: the state, and the number of bytes that were not read.
    fn sockets(port: u16) -> Vec<(String, usize)> {
        let of_port = |line: &str| {
            let mut words = line.split_whitespace();
            let (local, state, queues) = (words.nth(1)?, words.nth(1)?, words.next()?);
            let unread = usize::from_str_radix(queues.split_once(':')?.1, 16).ok()?;
            local.ends_with(&format!(":{port:04X}")).then(|| (state.to_owned(), unread))
        };
        fs::read_to_string("/proc/net/tcp").unwrap().lines().skip(1).filter_map(of_port).collect()
    }

    /// Returns the number of bytes that wait at a UDP port.
    fn unread(port: u16) -> usize {
        let of_port = |line: &str| {
            let mut words = line.split_whitespace();
            let (local, queues) = (words.nth(1)?, words.nth(2)?);
            let unread = usize::from_str_radix(queues.split_once(':')?.1, 16).ok()?;
            local.ends_with(&format!(":{port:04X}")).then_some(unread)
        };
        fs::read_to_string("/proc/net/udp").unwrap().lines().skip(1).filter_map(of_port).sum()
    }

    /// Waits until the server has accepted all connections and read all that their clients have sent.
    fn until_read(server: SocketAddr) {
        until("everything is read", || sockets(server.port()).iter().all(|(_, unread)| *unread == 0));
    }

    /// Waits until the server has no connection.
    fn until_closed(server: SocketAddr) {
        const OPEN: [&str; 2] = ["01", "08"];
        until("all are closed", || !sockets(server.port()).iter().any(|(state, _)| OPEN.contains(&state.as_str())));
    }

    /// Returns a name that makes the username nearly as long as it may be.
    fn long_name(number: usize) -> String {
        format!("{number:0>740}")
    }

    fn login(number: usize) -> Login {
        Login::mint(&long_name(number), 600)
    }

    /// Authenticates a user, without an allocation.
    fn authenticate(client: &Client, number: usize) {
        let session = client.challenge(&login(number));
        // RFC 8656 §7.3
        assert_eq!(client.request(&session, Method::REFRESH, &|_| {}).error(), Some(437));
    }

    /// Binds channels to peers of their own, and thereby permits these. Returns the codes of the error responses.
    fn bind(client: &Client, session: &Session, numbers: std::ops::Range<u16>) -> Vec<u16> {
        let all: Vec<u16> = numbers.collect();
        let mut errors = Vec::new();
        for some in all.chunks(32) {
            for number in some {
                let [high, low] = number.to_be_bytes();
                let peer = SocketAddr::from(([9, 9, high, low], 9));
                client.send(&client.signed(session, Method::CHANNEL_BIND, &|writer| {
                    writer.push(&ChannelNumber(*number));
                    writer.push(&XorPeerAddress(peer));
                }));
            }
            errors.extend(some.iter().filter_map(|_| client.receive().error()));
        }
        errors
    }

    #[test]
    fn allocations_with_all_their_permissions_and_channels_take_what_is_documented() {
        fill_allocations("An allocation with all its permissions and channels", 160, 256);
        fill_allocations("An allocation with 32 permissions and 32 channels", 1_200, 32);
    }

    /// Fills this many allocations with channels, as many as the configuration allows.
    fn fill_allocations(topic: &str, count: usize, channels: u16) {
        let _alone = alone();
        let limits = format!(
            "allocations = {count}\nchannels-per-allocation = {channels}\npermissions-per-allocation = {channels}\n"
        );
        let server = Server::start(&with_many_ports(&one_worker(&limits, "")));
        let channels = 0x4000..0x4000 + channels;
        let allocate = |number| {
            let client = Client::new(server.udp_address());
            client.allocate(&login(number)).map(|(session, _)| (client, session))
        };
        let (first, session) = allocate(count).unwrap();
        assert_eq!(bind(&first, &session, channels.clone()), [0; 0]);
        first.delete(&session);
        // Their keys are in the cache, which is not a part of the allocations.
        (0..count).for_each(|number| authenticate(&first, number));
        let memory = Memory::of(server.id());
        let clients: Vec<(Client, Session)> = (0..count).map(|number| allocate(number).unwrap()).collect();
        for (client, session) in &clients {
            assert_eq!(bind(client, session, channels.clone()), [0; 0]);
        }
        let bound = memory.grown();
        for (number, (client, session)) in clients.iter().enumerate() {
            assert_eq!(bind(client, session, channels.end..channels.end + 32), [508; 32]);
            assert_eq!(allocate(number).map(drop).unwrap_err(), 508);
        }
        let beyond = memory.grown();
        clients.iter().for_each(|(client, session)| client.delete(session));
        judge(topic, count, [bound, beyond, memory.grown()]);
    }

    /// The server and the authority of its certificate.
    struct Encrypted {
        server: Server,
        authority: Authority,
        _directory: TempDir,
    }

    fn encrypted(limits: &str) -> Encrypted {
        let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
        let files = authority.write(&authority.issue(&["localhost"]), directory.path());
        let server = Server::start(&with_tls(&one_worker(limits, ""), &["127.0.0.1"], &files));
        Encrypted { server, authority, _directory: directory }
    }

    impl Encrypted {
        /// Connects over TCP or over TLS.
        fn connect(&self, is_tls: bool) -> Client {
            if is_tls {
                Client::on_tls(tls::handshake(self.address(is_tls), &self.authority, &tls::ANY).unwrap())
            } else {
                Client::connect(self.address(is_tls))
            }
        }

        /// Connects over TCP, from an address that depends on this number.
        fn connect_from(&self, number: usize) -> Client {
            let [.., high, low] = number.to_be_bytes();
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from(([127, 1, high, low], 0)).into()).unwrap();
            socket.connect(&self.address(false).into()).unwrap();
            Client::on_tcp(TcpStream::from(socket))
        }

        fn address(&self, is_tls: bool) -> SocketAddr {
            if is_tls { self.server.tls_address() } else { self.server.tcp_address() }
        }
    }

    /// The beginning of the longest request that a client without an allocation may send.
    fn longest_request_without_its_end() -> Vec<u8> {
        [&[0, 3, 0x10, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 4_096]].concat()
    }

    #[test]
    fn connections_without_an_allocation_take_what_is_documented() {
        const COUNT: usize = 400;
        let _alone = alone();
        let (tcp, tls) = ("A TCP connection without an allocation", "A TLS connection without an allocation");
        for (is_tls, topic, are_apart) in [(false, tcp, false), (false, tcp, true), (true, tls, false)] {
            let world = encrypted(&format!("connections = {COUNT}\n"));
            let fill = || -> Vec<Client> {
                let connect = |number: usize| {
                    let client = if are_apart { world.connect_from(number) } else { world.connect(is_tls) };
                    client.binding();
                    client.send(&longest_request_without_its_end());
                    client
                };
                (0..COUNT).map(connect).collect()
            };
            drop(world.connect(is_tls));
            let memory = Memory::of(world.server.id());
            let clients = fill();
            until_read(world.address(is_tls));
            let bound = memory.grown();
            let more = fill();
            until_read(world.address(is_tls));
            let beyond = memory.grown();
            drop((clients, more));
            until_closed(world.address(is_tls));
            judge(topic, COUNT, [bound, beyond, memory.grown()]);
        }
    }

    #[test]
    fn requests_that_wait_to_be_served_take_no_more_than_one_that_is_incomplete() {
        const COUNT: usize = 400;
        let _alone = alone();
        let world = encrypted(&format!("connections = {COUNT}\n"));
        let request = message(Class::Request, Method::BINDING, TransactionId::new([7; 12]), &|_| {});
        let connect = |_| {
            let client = world.connect(false);
            client.binding();
            client
        };
        drop(connect(0));
        let memory = Memory::of(world.server.id());
        let clients: Vec<Client> = (0..COUNT).map(connect).collect();
        // All requests are there before the server reads the first one.
        world.server.signal(Signal::SIGSTOP);
        clients.iter().for_each(|client| client.send(&request.repeat(40_000 / request.len())));
        world.server.signal(Signal::SIGCONT);
        let mut most = 0;
        until("everything is read", || {
            most = most.max(memory.grown());
            sockets(world.address(false).port()).iter().all(|(_, unread)| *unread == 0)
        });
        most = most.max(memory.grown());
        println!("{COUNT} clients with many requests: {most} bytes");
        assert!(most <= COUNT * documented("A TCP connection without an allocation") + NOISE, "{most}");
    }

    #[test]
    fn connections_with_an_allocation_take_what_is_documented() {
        const COUNT: usize = 100;
        let _alone = alone();
        for (is_tls, topic) in
            [(false, "A TCP connection with an allocation"), (true, "A TLS connection with an allocation")]
        {
            let world = encrypted(&format!("allocations = {COUNT}\n"));
            let connect = |number| {
                let client = world.connect(is_tls);
                client.allocate(&login(number)).map(|_| client)
            };
            drop(connect(COUNT).unwrap());
            until_closed(world.address(is_tls));
            let memory = Memory::of(world.server.id());
            let clients: Vec<Client> = (0..COUNT).map(|number| connect(number).unwrap()).collect();
            for client in &clients {
                // Nearly all of the longest message.
                client.send(&[&[0x40, 0, 0xff, 0xf0][..], &[7; 0xffe0]].concat());
            }
            until_read(world.address(is_tls));
            let bound = memory.grown();
            for number in 0..COUNT {
                assert_eq!(connect(2 * COUNT + number).map(drop).unwrap_err(), 508);
            }
            let beyond = memory.grown();
            drop(clients);
            until_closed(world.address(is_tls));
            judge(topic, COUNT, [bound, beyond, memory.grown()]);
        }
    }

    #[test]
    fn unfinished_handshakes_take_what_is_documented() {
        const COUNT: usize = 512;
        let _alone = alone();
        let world = encrypted("connections = 2000\n");
        let address = world.server.tls_address();
        let begin = |_| {
            let (mut session, mut stream) = (tls::session(&world.authority, &tls::ANY), tls::tcp(address));
            session.write_tls(&mut stream).unwrap();
            // The server has made its signature.
            assert!(stream.read(&mut [0; 64]).unwrap() > 0);
            // A record without its end, which is as long as a handshake may be.
            stream.write_all(&[&[0x17, 3, 3, 0x3f, 0xff][..], &[7; 15_000]].concat()).unwrap();
            stream
        };
        drop(begin(0));
        until_closed(address);
        let memory = Memory::of(world.server.id());
        // The memory of a handshake that is evicted is free only when the new one is there already.
        let handshakes: Vec<TcpStream> = (0..COUNT + COUNT / 2).map(begin).collect();
        until_read(address);
        let bound = memory.grown();
        let more: Vec<TcpStream> = (0..COUNT).map(begin).collect();
        until_read(address);
        let beyond = memory.grown();
        drop((handshakes, more));
        until_closed(address);
        judge("An unfinished TLS handshake", COUNT, [bound, beyond, memory.grown()]);
    }

    #[test]
    fn responses_that_clients_do_not_read_take_what_is_documented() {
        /// The first of them fill the queues.
        const COUNT: usize = 400;
        const MORE: usize = 80;
        let _alone = alone();
        // A long realm makes a response long.
        let realm = "r".repeat(127);
        let server = Server::start(&with_many_ports(&one_worker("", "").replacen(REALM, &realm, 1)));
        let connect = |number: usize| {
            let client = connect_with_small_buffer(server.tcp_address());
            client.allocate(&Login::mint(&number.to_string(), 600)).unwrap();
            client
        };
        // Without credentials, so each gets a challenge of 220 bytes.
        let requests = allocate(TransactionId::new([7; 12])).repeat(400);
        let clients: Vec<Client> = (0..COUNT + MORE).map(connect).collect();
        let memory = Memory::of(server.id());
        let push = |some: &[Client]| {
            let mut most = 0;
            for clients in some.chunks(8) {
                // Those with the largest queues have ended.
                clients.iter().for_each(|client| client.send(&requests));
                until_read(server.tcp_address());
                most = most.max(memory.grown());
            }
            most
        };
        let (first, second) = clients.split_at(COUNT);
        let (bound, beyond) = (push(first), push(second));
        drop(clients);
        until_closed(server.tcp_address());
        judge("Responses and data that wait for clients on connections", 1, [bound, beyond, memory.grown()]);
    }

    #[test]
    fn data_that_clients_do_not_read_takes_what_is_documented() {
        const COUNT: usize = 64;
        let _alone = alone();
        let server = Server::start(&one_worker("", "[peers]\nallow = [\"127.0.0.2\"]\n"));
        let peer = UdpSocket::bind("127.0.0.2:0").unwrap();
        let connect = |number: usize| {
            let client = connect_with_small_buffer(server.tcp_address());
            let (session, relay) = client.allocate(&Login::mint(&number.to_string(), 600)).unwrap();
            client.permit(&session, peer.local_addr().unwrap());
            (client, relay)
        };
        let clients: Vec<(Client, SocketAddr)> = (0..COUNT).map(connect).collect();
        // Datagrams from another address are dropped, after they have filled the buffers of the worker.
        let denied = UdpSocket::bind("127.0.0.3:0").unwrap();
        server.signal(Signal::SIGSTOP);
        for (_, relay) in clients.iter().cycle().take(16 * clients.len()) {
            assert_eq!(denied.send_to(&[7; 60_000], relay).unwrap(), 60_000);
        }
        server.signal(Signal::SIGCONT);
        until("everything is read", || clients.iter().all(|(_, relay)| unread(relay.port()) == 0));
        let topic = "Responses and data that wait for clients on connections";
        let memory = Memory::of(server.id());
        let (mut most, mut rounds) = (0, 0);
        // Data waits for 300 ms, and up to 512 KiB for a client. On a busy machine, a part is gone before the rest is read.
        while rounds < 5 || (rounds < 50 && 2 * most < documented(topic)) {
            rounds += 1;
            for some in clients.chunks(8) {
                for (_, relay) in some.iter().cycle().take(9 * some.len()) {
                    assert_eq!(peer.send_to(&[7; 60_000], relay).unwrap(), 60_000);
                }
                until("everything is read", || some.iter().all(|(_, relay)| unread(relay.port()) == 0));
                most = most.max(memory.grown());
            }
        }
        drop(clients);
        until_closed(server.tcp_address());
        judge(topic, 1, [most, most, memory.grown()]);
    }

    /// Connects over TCP. The kernel keeps little of what the client does not read.
    fn connect_with_small_buffer(server: SocketAddr) -> Client {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        socket.connect(&server.into()).unwrap();
        Client::on_tcp(TcpStream::from(socket))
    }

    #[test]
    fn users_in_the_cache_of_keys_take_what_is_documented() {
        const WORKERS: usize = 3;
        const COUNT: usize = WORKERS * 2_048;
        let _alone = alone();
        let server = Server::start(&workers(WORKERS, "", ""));
        // The kernel assigns each to a worker.
        let clients: Vec<Client> = (0..WORKERS * 32).map(|_| Client::new(server.udp_address())).collect();
        let authenticate = |number: usize| authenticate(&clients[number % clients.len()], number);
        (0..clients.len()).for_each(authenticate);
        let memory = Memory::of(server.id());
        // A hash selects the place of a user, so it takes more of them to fill nearly all places.
        (clients.len()..3 * COUNT).for_each(authenticate);
        let bound = memory.grown();
        (3 * COUNT..5 * COUNT).for_each(authenticate);
        let beyond = memory.grown();
        judge("A user in the cache of keys", COUNT, [bound, beyond, beyond]);
    }

    #[test]
    fn the_table_of_sources_takes_what_is_documented() {
        /// Twice as many as there are rows.
        const COUNT: u32 = 2 * 65_536;
        let _alone = alone();
        let server = Server::start(&format!("workers = 1\n{}", config(&["127.0.0.1"], "")));
        let request = message(Class::Request, Method::BINDING, TransactionId::new([7; 12]), &|_| {});
        let send = |number: u32| {
            let source = Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 0).to_bits() + number);
            let socket = UdpSocket::bind((source, 0)).unwrap();
            assert_eq!(socket.send_to(&request, server.udp_address()).unwrap(), request.len());
            if number.is_multiple_of(64) {
                let own = server.udp_address().port();
                until("all requests are read", || unread(own) == 0);
            }
        };
        send(0);
        let memory = Memory::of(server.id());
        (1..COUNT).for_each(send);
        let bound = memory.grown();
        (COUNT..2 * COUNT).for_each(send);
        let beyond = memory.grown();
        // Without optimization, making the table touches all of it.
        let most = documented("The table of sources");
        println!("the table of sources has grown by {bound} bytes, and then to {beyond} bytes");
        assert!(bound <= most + NOISE && beyond <= bound + NOISE, "{bound} bytes, and then {beyond}");
    }

    /// A server whose log is not read once it is ready.
    struct Unread {
        process: Process,
        log: BufReader<File>,
        address: SocketAddr,
    }

    impl Unread {
        fn start(config: &str, directory: &TempDir) -> Self {
            let path = directory.write("turnserver.toml", config);
            let (read, write) = nix::unistd::pipe().unwrap();
            let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
            let process = Process::start_with(command.arg("--config").arg(path), Stdio::null(), Stdio::from(write));
            drop(command);
            let (mut log, mut line, mut address) = (BufReader::new(File::from(read)), String::new(), None);
            loop {
                line.clear();
                assert!(log.read_line(&mut line).unwrap() > 0, "the server has ended");
                let line = LogLine::parse(&line);
                if line.field("transport").as_deref() == Some("udp") && line.message() == "listening" {
                    address = Some(line.field("address").unwrap().parse().unwrap());
                }
                if line.message() == "ready" {
                    return Self { process, log, address: address.unwrap() };
                }
            }
        }

        /// Reads a number of lines.
        fn read(&mut self, count: usize) {
            let mut line = String::new();
            for _ in 0..count {
                line.clear();
                assert!(self.log.read_line(&mut line).unwrap() > 0, "the server has ended");
            }
        }
    }

    #[test]
    fn log_lines_that_wait_take_what_is_documented() {
        const QUEUE: usize = 4_096;
        let (_alone, directory) = (alone(), TempDir::new());
        let mut server = Unread::start(&one_worker("allocations-per-second-per-user = 0\n", ""), &directory);
        let lines_of = |number: usize| {
            // Each byte of the name takes six in the log, which shows a part of it.
            let name = format!("{number}{}", "\u{1}".repeat(735));
            let client = Client::new(server.address);
            let (session, _) = client.allocate(&Login::mint(&name, 600)).unwrap();
            client.delete(&session);
        };
        lines_of(0);
        let memory = Memory::of(server.process.id());
        (1..QUEUE / 2 + 50).for_each(lines_of);
        let bound = memory.grown();
        // The log has at most 6000 lines about allocations in a minute.
        (QUEUE / 2 + 50..QUEUE / 2 + 450).for_each(lines_of);
        let beyond = memory.grown();
        server.read(QUEUE);
        judge("A log line that waits", QUEUE, [bound, beyond, memory.grown()]);
    }
}
