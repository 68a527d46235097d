//! The clients: threads, each of which runs one client of its kind after the other.

use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use turnserver::client::{Allocate, Request, write_message};
use turnserver::clock::Clock;
use turnserver::stun::attribute::{Data, RequestedTransport, XorPeerAddress};
use turnserver::stun::{Class, Method, TransactionId};
use turnserver::transport::Transport;

use crate::call::{Broken, Caller};
use crate::link::{Link, connect};
use crate::support::Server;
use crate::support::certificates::Authority;
use crate::support::client::Login;
use crate::tally::Tally;
use crate::{PEERS, source};

/// The user whose calls the operator ends.
pub(crate) const VICTIM: &str = "victim";

const TRANSPORTS: [Transport; 3] = [Transport::Udp, Transport::Tcp, Transport::Tls];

/// How long the credentials of a client are valid, in seconds.
const VALIDITY: i64 = 3600;

/// What a client is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Makes calls, of which none may break.
    Call,
    /// Makes calls that the operator ends.
    Victim,
    /// Allocates and does not come back.
    Lazy,
    /// Sends invalid messages, or stops in the middle of one.
    Broken,
    /// Floods, opens many connections, and does not read what it gets.
    Hostile,
}

/// What all clients share.
struct Shared {
    listeners: [SocketAddr; 3],
    authority: Arc<Authority>,
    tally: Arc<Tally>,
    is_over: AtomicBool,
}

/// All clients.
pub(crate) struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    pub(crate) fn new(server: &Server, authority: &Arc<Authority>, tally: &Arc<Tally>) -> Self {
        let shared = Shared {
            listeners: [server.udp_address(), server.tcp_address(), server.tls_address()],
            authority: Arc::clone(authority),
            tally: Arc::clone(tally),
            is_over: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared), threads: Vec::new() }
    }

    /// Runs twelve clients of each of three kinds, one after the other: every variant of these kinds.
    pub(crate) fn run_each(&self) {
        for kind in [Kind::Call, Kind::Broken, Kind::Hostile] {
            for number in 0..12 {
                Run::new(&self.shared, kind, number).client(number);
            }
        }
    }

    pub(crate) fn add(&mut self, kind: Kind, count: u32) {
        for number in 0..count {
            let shared = Arc::clone(&self.shared);
            self.threads.push(thread::spawn(move || {
                let mut run = Run::new(&shared, kind, number);
                for client in number.. {
                    if shared.is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    run.client(client);
                }
            }));
        }
    }

    /// Waits until all have ended.
    pub(crate) fn stop(self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a client ends");
        }
    }
}

/// Clients of a kind, one after the other.
struct Run<'s> {
    shared: &'s Shared,
    kind: Kind,
    number: u32,
    rng: StdRng,
}

impl<'s> Run<'s> {
    fn new(shared: &'s Shared, kind: Kind, number: u32) -> Self {
        Self { shared, kind, number, rng: StdRng::seed_from_u64(u64::from(number) << 8 | kind as u64) }
    }

    /// Runs the client of this number. The number selects the transport, or the variant of the kind.
    fn client(&mut self, client: u32) {
        match self.kind {
            Kind::Call => self.call(client),
            Kind::Victim => self.victim(client),
            Kind::Lazy => self.lazy(client),
            // Their requests may fail.
            Kind::Broken => {
                let _ = self.broken(client);
                self.shared.tally.broken.add(1);
                self.pause(200);
            }
            Kind::Hostile => {
                let _ = self.hostile(client);
                self.shared.tally.hostile.add(1);
                self.pause(100);
            }
        }
    }

    /// Pauses about this many milliseconds.
    fn pause(&mut self, about: u64) {
        thread::sleep(Duration::from_millis(self.rng.random_range(about / 2..about * 3 / 2)));
    }

    fn source(&self) -> IpAddr {
        source(self.kind, self.number)
    }

    /// Returns another source for each client.
    fn fresh_source(&self, client: u32) -> IpAddr {
        source(self.kind, self.number << 8 | client & 0xff)
    }

    fn listener(&self, transport: Transport) -> SocketAddr {
        let [udp, tcp, tls] = self.shared.listeners;
        match transport {
            Transport::Udp => udp,
            Transport::Tcp => tcp,
            Transport::Tls => tls,
        }
    }

    fn caller(&mut self, transport: Transport, user: &str) -> Result<Caller, Broken> {
        let link = Link::open(transport, self.source(), self.listener(transport), &self.shared.authority)?;
        Ok(Caller::new(link, Login::mint(user, VALIDITY), self.rng.next_u64()))
    }

    fn call(&mut self, client: u32) {
        let transport = TRANSPORTS[client as usize % 3];
        let length = Duration::from_millis(self.rng.random_range(500..8_000));
        let tally = &self.shared.tally;
        let user = format!("caller-{}", self.number);
        let before = tally.drain_phase.get();
        match self.caller(transport, &user).and_then(|mut caller| caller.call(length, tally)) {
            Ok(()) => tally.calls.add(1),
            // The server drains, or has drained during this attempt.
            Err(broken) if broken.code() == Some(508) && tally.has_drained_since(before) => {
                tally.postponed.add(1);
                self.pause(200);
            }
            Err(broken) => tally.problem(format!("a valid call over {transport:?} of {user} broke: {broken:?}")),
        }
    }

    fn victim(&mut self, client: u32) {
        let length = Duration::from_millis(self.rng.random_range(1_000..10_000));
        // These packets may be lost, so they are counted elsewhere.
        let others = Tally::default();
        let caller = self.caller(TRANSPORTS[client as usize % 3], VICTIM);
        let _ = caller.and_then(|mut caller| caller.call(length, &others));
        self.shared.tally.victims.add(1);
        self.pause(100);
    }

    /// Allocates with many channels and never comes back. Over UDP, the allocation is left behind.
    fn lazy(&mut self, client: u32) {
        let user = format!("lazy-{}-{client}", self.number);
        let transport = TRANSPORTS[client as usize % 3];
        if let Ok(mut caller) = self.caller(transport, &user)
            && caller.allocate().is_ok()
        {
            self.shared.tally.left.add(u64::from(transport == Transport::Udp));
            for channel in 0..self.rng.random_range(0..40_u16) {
                let peer = SocketAddr::new(PEERS.parse().expect("an address"), 10_000 + channel);
                let _ = caller.request(Request::ChannelBind { channel: 0x4000 + channel, peer });
            }
        }
        for _ in 0..300 {
            if self.shared.is_over.load(Ordering::Relaxed) {
                return;
            }
            self.pause(100);
        }
    }

    fn broken(&mut self, client: u32) -> Result<(), Broken> {
        let mut noise = vec![0; self.rng.random_range(0..1500)];
        self.rng.fill_bytes(&mut noise);
        let request = message(Class::Request, Method::ALLOCATE, |_| {});
        let [udp, tcp, tls] = self.shared.listeners;
        match client % 12 {
            0 => udp_from(self.source())?.send_to(&noise, udp).map(|_| ())?,
            1 => {
                let cut = self.rng.random_range(0..request.len());
                udp_from(self.source())?.send_to(&request[..cut], udp)?;
            }
            2 => connect(self.source(), tcp)?.write_all(&noise)?,
            3 => {
                let mut stream = connect(self.source(), tcp)?;
                stream.write_all(&request[..request.len() / 2])?;
                self.pause(500);
            }
            // A ClientHello that ends in the middle.
            4 => connect(self.source(), tls)?.write_all(&[0x16, 3, 1, 1, 0, 1, 0, 0, 0xfc, 3, 3])?,
            5 => connect(self.source(), tls)?.write_all(b"GET / HTTP/1.1\r\n\r\n")?,
            6 => drop(connect(self.source(), tls)?),
            7 => {
                let link = Link::open(Transport::Tls, self.source(), tls, &self.shared.authority)?;
                let wrong = Login::new("4000000000:nobody", "a wrong password");
                Caller::new(link, wrong, u64::from(client)).allocate()?;
            }
            8 => {
                let link = Link::open(Transport::Tcp, self.source(), tcp, &self.shared.authority)?;
                Caller::new(link, Login::mint("late", -60), u64::from(client)).allocate()?;
            }
            9 => {
                let link = Link::open(Transport::Udp, self.source(), udp, &self.shared.authority)?;
                let wrong = Login::new("4000000000:nobody", "a wrong password");
                Caller::new(link, wrong, u64::from(client)).allocate()?;
            }
            // Everything about an allocation that is not there.
            10 => {
                let mut caller = self.caller(Transport::Tcp, "confused")?;
                let peer = SocketAddr::new(IpAddr::from([10, 0, 0, 1]), 1);
                let _ = caller.request(Request::Refresh(600));
                let _ = caller.request(Request::ChannelBind { channel: 1, peer });
                caller.allocate()?;
                let _ = caller.request(Request::CreatePermission(vec![peer]));
                let _ =
                    caller.request(Request::Allocate(Allocate { reservation: Some([9; 8]), ..Allocate::default() }));
            }
            // A client that ends in the middle of a message, with an allocation.
            _ => {
                let mut link = Link::open(Transport::Tcp, self.source(), tcp, &self.shared.authority)?;
                link.send(&request)?;
                link.receive(Duration::from_secs(5))?;
                link.send(&[0x40, 0, 0xff, 0xff, 1, 2, 3])?;
            }
        }
        Ok(())
    }

    fn hostile(&mut self, client: u32) -> Result<(), Broken> {
        let [udp, tcp, tls] = self.shared.listeners;
        match client % 6 {
            // Floods of a source each: noise, challenges, and ChannelData without an allocation.
            0..=2 => {
                let socket = udp_from(self.fresh_source(client))?;
                let allocate =
                    message(Class::Request, Method::ALLOCATE, |writer| writer.push(&RequestedTransport::UDP));
                for number in 0..500_u32 {
                    let packet = match client % 3 {
                        0 => number.to_le_bytes().repeat(50),
                        1 => allocate.clone(),
                        _ => [&[0x40, 0, 0, 100][..], &[7; 100]].concat(),
                    };
                    let _ = socket.send_to(&packet, udp); // its own buffers are full
                }
            }
            // Silent connections.
            3 => {
                let source = self.fresh_source(client);
                let open: Vec<_> =
                    (0..60_u8).map(|number| connect(source, if number % 2 == 0 { tcp } else { tls })).collect();
                self.pause(2_000);
                drop(open);
            }
            // Allocates and deletes as fast as possible.
            4 => {
                let begin = Clock::start();
                while begin.elapsed() < Duration::from_secs(1) {
                    let mut caller = self.caller(Transport::Udp, "fast")?;
                    caller.allocate()?;
                    caller.request(Request::Refresh(0))?;
                }
            }
            // Does not read what peers send, and sends to an address that is denied.
            _ => {
                let mut caller = self.caller(Transport::Tcp, "unread")?;
                let relay = caller.allocate()?;
                let peer = udp_from(PEERS.parse().expect("an address"))?;
                caller.request(Request::CreatePermission(vec![peer.local_addr()?]))?;
                let indication = message(Class::Indication, Method::SEND, |writer| {
                    writer.push(&XorPeerAddress(SocketAddr::new(IpAddr::from([10, 0, 0, 1]), 1)));
                    writer.push(&Data(&[1; 500]));
                });
                for _ in 0..2_000 {
                    let _ = peer.send_to(&[5; 1_200], relay); // its own buffers are full
                    caller.send(&indication)?;
                }
            }
        }
        Ok(())
    }
}

fn udp_from(source: IpAddr) -> io::Result<UdpSocket> {
    UdpSocket::bind((source, 0))
}

fn message(class: Class, method: Method, fill: impl FnOnce(&mut turnserver::stun::MessageWriter<'_>)) -> Vec<u8> {
    write_message(class, method, TransactionId::new(*b"soak message"), 2048, fill).expect("a short message")
}
