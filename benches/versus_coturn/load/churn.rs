//! Clients that come, allocate, end their allocation and are followed by the next, each from a port of its own.

use std::io;
use std::net::{IpAddr, UdpSocket};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde_json::{Value, json};
use turnserver::stun::{Message, Method, TransactionId};

use super::allocation::{Session, allocate_attributes, deletion_attributes, error_of, request, transaction};
use super::{Job, Orders, Outcome, Say, clock};

/// How long a client waits for an answer before it asks again.
const PATIENCE: u64 = 250 * clock::MILLISECOND;

/// The ports that clients come from, one after the other: as many others as possible come between two clients of one
/// port, because the second is refused as long as the server remembers the first (RFC 8656 §7.2: 437).
const FIRST_PORT: u16 = 10_000;
const LAST_PORT: u16 = 65_535;

/// Gives out the clients' ports.
struct Ports {
    own: IpAddr,
    next: u16,
}

impl Ports {
    fn bind(&mut self) -> io::Result<UdpSocket> {
        loop {
            let port = self.next;
            self.next = if port == LAST_PORT { FIRST_PORT } else { port + 1 };
            match UdpSocket::bind((self.own, port)) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                result => return result,
            }
        }
    }
}

/// A client between two answers.
struct Client {
    socket: UdpSocket,
    step: Step,
    /// What it has asked, and when.
    asked: Vec<u8>,
    transaction: TransactionId,
    at: u64,
    session: Option<Session>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// An Allocate without credentials.
    Challenge,
    Allocate,
    /// A Refresh with a lifetime of 0.
    Delete,
}

/// Keeps `clients` clients busy; says how many allocations were made and ended within the measured time.
pub(crate) fn run(job: &Job, clients: usize, orders: &Orders, say: Say<'_>) -> Outcome<Value> {
    say("ready");
    let window = orders.window()?;
    clock::sleep_until(window.start);

    let poll = Epoll::new(EpollCreateFlags::empty())?;
    let (mut all, mut ports) = (Vec::new(), Ports { own: job.own, next: FIRST_PORT });
    for index in 0..clients {
        all.push(Client::arrive(job, &mut ports, &poll, index)?);
    }
    let (mut allocations, mut failed, mut repeated) = (0_u64, 0_u64, 0_u64);
    let mut why = String::new();
    let (mut known, mut ready, mut buffer) = (None, vec![EpollEvent::empty(); clients], [0; 2048]);
    loop {
        let count = poll.wait(&mut ready, EpollTimeout::from(20_u8))?;
        let now = clock::now();
        if now >= window.to {
            return Ok(json!({ "allocations": allocations, "failed": failed, "repeated": repeated, "why": why }));
        }
        for event in ready.iter().take(count) {
            let index = usize::try_from(event.data())?;
            let Some(client) = all.get_mut(index) else { continue };
            let Ok(length) = client.socket.recv(&mut buffer) else { continue };
            match client.answered(buffer.get(..length).unwrap_or_default(), &mut known) {
                Ok(true) => continue,
                Ok(false) => allocations += u64::from(window.counts(now)),
                Err(error) => {
                    failed += u64::from(window.counts(now));
                    why = error.to_string();
                }
            }
            // The one before leaves the poll with its socket.
            *client = Client::arrive(job, &mut ports, &poll, index)?;
        }
        for client in all.iter_mut().filter(|client| now.saturating_sub(client.at) > PATIENCE) {
            client.at = now;
            repeated += 1;
            let _ = client.socket.send(&client.asked);
        }
    }
}

impl Client {
    fn arrive(job: &Job, ports: &mut Ports, poll: &Epoll, index: usize) -> Outcome<Self> {
        let socket = ports.bind()?;
        socket.connect(job.server)?;
        socket.set_nonblocking(true)?;
        poll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
        let transaction = transaction();
        let mut client = Self { socket, step: Step::Challenge, asked: Vec::new(), transaction, at: 0, session: None };
        client.ask(Step::Challenge)?;
        Ok(client)
    }

    fn ask(&mut self, step: Step) -> Outcome<()> {
        (self.step, self.at, self.transaction) = (step, clock::now(), transaction());
        let session = self.session.as_ref();
        self.asked = match step {
            Step::Challenge | Step::Allocate => {
                request(Method::ALLOCATE, self.transaction, session, &allocate_attributes)?
            }
            Step::Delete => request(Method::REFRESH, self.transaction, session, &deletion_attributes)?,
        };
        self.socket.send(&self.asked)?;
        Ok(())
    }

    /// Takes an answer and asks what comes next; whether the client goes on.
    fn answered(&mut self, answer: &[u8], known: &mut Option<Session>) -> Outcome<bool> {
        if Message::parse(answer)?.transaction_id() != self.transaction {
            return Ok(true);
        }
        match (self.step, error_of(answer)?) {
            (Step::Challenge, Some(401)) => {
                let session = Session::challenged(answer, known.as_ref())?;
                *known = Some(session.clone());
                self.session = Some(session);
                self.ask(Step::Allocate).map(|()| true)
            }
            (Step::Allocate, None) => self.ask(Step::Delete).map(|()| true),
            (Step::Delete, None) => Ok(false),
            (step, Some(code)) => Err(format!("{step:?} with {code}").into()),
            (Step::Challenge, None) => Err("allocated without credentials".into()),
        }
    }
}
