//! The connections of a front, whose limit is its own.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};

use super::{Memory, alone, judge, one_worker, until, until_closed};
use crate::client::Http;
use crate::support::{Controlled, TIMEOUT};

/// The most pipes of the thread of the fronts.
const PIPES: usize = 256;

const FIRST: &[u8] = b"GET /";

/// A server with a front, and the listener of its web site.
struct World {
    server: Controlled,
    front: SocketAddr,
    site: TcpListener,
}

/// The two ends of a connection through the front.
struct Visit {
    visitor: TcpStream,
    site: TcpStream,
}

/// Returns a socket of which the kernel keeps little.
fn small() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    socket.set_send_buffer_size(4_096).unwrap();
    setsockopt(&socket, sockopt::TcpMaxSeg, &536).unwrap();
    socket
}

impl World {
    /// Starts a server with this limit of connections to its front.
    fn new(connections: usize) -> Self {
        let site = small();
        site.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        site.listen(128).unwrap();
        let site = TcpListener::from(site);
        let web = site.local_addr().unwrap();
        let front = format!("[[front]]\nlisten = \"127.0.0.1:0\"\nweb = \"{web}\"\nconnections = {connections}\n");
        let server = Controlled::start_with(&one_worker("", &front));
        let front = server.event("front-listening").field("address").unwrap().parse().unwrap();
        Self { server, front, site }
    }

    fn memory(&self) -> Memory {
        Memory::of(self.server.server.id())
    }

    /// Returns the sum of the metrics of fronts that begin like this.
    fn metric(&self, name: &str) -> usize {
        let page = Http::unix(&self.server.socket).get("/metrics").body;
        let values = page.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' ')?.1.parse::<usize>().ok());
        values.sum()
    }

    /// Whether the thread of the fronts waits for something.
    fn front_sleeps(&self) -> bool {
        let tasks = format!("/proc/{}/task", self.server.server.id());
        let mut tasks = fs::read_dir(tasks).unwrap().map(|task| fs::read_to_string(task.unwrap().path().join("stat")));
        // Number, name and state of the thread.
        tasks.any(|stat| stat.is_ok_and(|stat| stat.contains(" (front) S ")))
    }

    /// Connects, and sends nothing.
    fn connect(&self) -> TcpStream {
        let socket = small();
        socket.connect(&self.front.into()).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket.into()
    }

    /// Connects to the web site, and exchanges a few bytes with it.
    fn visit(&self) -> Visit {
        let mut visitor = self.connect();
        visitor.write_all(FIRST).unwrap();
        let (mut site, _) = self.site.accept().unwrap();
        let mut bytes = [0; FIRST.len()];
        site.read_exact(&mut bytes).unwrap();
        site.write_all(&bytes).unwrap();
        visitor.read_exact(&mut bytes).unwrap();
        Visit { visitor, site }
    }

    /// Connects to the web site. Both sides send as much as all buffers hold, and read nothing of it.
    fn fill(&self, count: usize) -> Vec<Visit> {
        let visits: Vec<Visit> = (0..count).map(|_| self.visit()).collect();
        let streams = || visits.iter().flat_map(|Visit { visitor, site }| [visitor, site]);
        streams().for_each(|stream| stream.set_nonblocking(true).unwrap());
        until("the buffers are full", || {
            let moved = self.metric("turnserver_front_bytes_total");
            // An evicted connection takes nothing either.
            let taken: usize = streams().map(|stream| write_all_that_fits(stream).unwrap_or(0)).sum();
            taken == 0 && self.front_sleeps() && moved == self.metric("turnserver_front_bytes_total")
        });
        visits
    }
}

/// Returns the number of bytes that the socket has taken.
fn write_all_that_fits(mut stream: &TcpStream) -> io::Result<usize> {
    let mut all = 0;
    loop {
        match stream.write(&[7; 16 * 1024]) {
            Ok(taken) => all += taken,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(all),
            Err(error) => return Err(error),
        }
    }
}

#[test]
fn connections_to_a_front_take_what_is_documented() {
    const COUNT: usize = 1_000;
    const TOPIC: &str = "A connection to a front";
    let _alone = alone();
    let world = World::new(COUNT);
    drop(world.visit());
    until_closed(world.front);
    let memory = world.memory();
    let wait = |count: usize| -> Vec<TcpStream> {
        let accepted = world.metric("turnserver_front_accepted_connections_total");
        let waiting = (0..count).map(|_| world.connect()).collect();
        until("all are accepted", || world.metric("turnserver_front_accepted_connections_total") == accepted + count);
        waiting
    };
    let waiting = wait(COUNT);
    let bound = memory.grown();
    let more = wait(COUNT);
    let beyond = memory.grown();
    drop((waiting, more));
    until_closed(world.front);
    judge(TOPIC, COUNT, [bound, beyond, memory.grown()]);

    let world = World::new(COUNT);
    drop(world.visit());
    until_closed(world.front);
    let visit = || -> Vec<Visit> { (0..COUNT).map(|_| world.visit()).collect() };
    let memory = world.memory();
    let visits = visit();
    let bound = memory.grown();
    let more = visit();
    let beyond = memory.grown();
    drop((visits, more));
    until_closed(world.front);
    judge(TOPIC, COUNT, [bound, beyond, memory.grown()]);
}

#[test]
fn data_of_visitors_that_waits_in_buffers_takes_what_is_documented() {
    const COUNT: usize = 300;
    let _alone = alone();
    let world = World::new(PIPES / 2 + COUNT);
    // Each of them has two pipes, so there are none for the others.
    let with_pipes = world.fill(PIPES / 2);
    let memory = world.memory();
    let with_buffers = world.fill(COUNT);
    let bound = memory.grown();
    let more = world.fill(COUNT);
    let beyond = memory.grown();
    drop((with_pipes, with_buffers, more));
    until_closed(world.front);
    judge("A connection to a front whose data waits in buffers", COUNT, [bound, beyond, memory.grown()]);
}
