//! Clients that allocate, delete the allocation and are replaced by the next, each from its own port.

use std::io;
use std::net::{IpAddr, UdpSocket};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde_json::{Value, json};
use turnserver::client::Request;
use turnserver::stun::{Message, TransactionId};

use super::allocation::{Session, allocation, error_of, session_from, transaction, write};
use super::{Commands, Job, Outcome, Report, clock};

/// Time without a response after which a client retransmits.
const RETRANSMIT_AFTER: u64 = 250 * clock::MILLISECOND;

/// The range of client ports. It is large because a server may keep the 5-tuple of a deleted allocation for some time.
/// During this time it rejects an Allocate request from the same port (RFC 8656 §7.2: 437).
const FIRST_PORT: u16 = 10_000;
const LAST_PORT: u16 = 65_535;

/// Assigns the clients' ports.
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

/// A client that waits for a response.
struct Client {
    socket: UdpSocket,
    step: Step,
    /// The outstanding request, its transaction and its time.
    request: Vec<u8>,
    transaction: TransactionId,
    sent_at: u64,
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

/// Runs `clients` clients at a time. Returns the number of allocations created and deleted within the measurement.
pub(crate) fn run(job: &Job, clients: usize, commands: &Commands, report: Report<'_>) -> Outcome<Value> {
    report("ready");
    let window = commands.window()?;
    clock::sleep_until(window.start);

    let poll = Epoll::new(EpollCreateFlags::empty())?;
    let (mut all, mut ports) = (Vec::new(), Ports { own: job.own, next: FIRST_PORT });
    for index in 0..clients {
        all.push(Client::start(job, &mut ports, &poll, index)?);
    }
    let (mut allocations, mut failed, mut repeated) = (0_u64, 0_u64, 0_u64);
    let mut why = String::new();
    let (mut ready, mut buffer) = (vec![EpollEvent::empty(); clients], [0; 2048]);
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
            match client.handle_response(buffer.get(..length).unwrap_or_default()) {
                Ok(true) => continue,
                Ok(false) => allocations += u64::from(window.counts(now)),
                Err(error) => {
                    failed += u64::from(window.counts(now));
                    why = error.to_string();
                }
            }
            // Dropping the old client's socket removes it from the poll.
            *client = Client::start(job, &mut ports, &poll, index)?;
        }
        for client in all.iter_mut().filter(|client| now.saturating_sub(client.sent_at) > RETRANSMIT_AFTER) {
            client.sent_at = now;
            repeated += 1;
            let _ = client.socket.send(&client.request);
        }
    }
}

impl Client {
    fn start(job: &Job, ports: &mut Ports, poll: &Epoll, index: usize) -> Outcome<Self> {
        let socket = ports.bind()?;
        socket.connect(job.server)?;
        socket.set_nonblocking(true)?;
        poll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
        let transaction = transaction();
        let mut client =
            Self { socket, step: Step::Challenge, request: Vec::new(), transaction, sent_at: 0, session: None };
        client.send(Step::Challenge)?;
        Ok(client)
    }

    fn send(&mut self, step: Step) -> Outcome<()> {
        (self.step, self.sent_at, self.transaction) = (step, clock::now(), transaction());
        let session = self.session.as_ref();
        let request = match step {
            Step::Challenge | Step::Allocate => allocation(),
            Step::Delete => Request::Refresh(0),
        };
        self.request = write(&request, self.transaction, session)?;
        self.socket.send(&self.request)?;
        Ok(())
    }

    /// Handles a response and sends the next request. Returns whether the client continues.
    fn handle_response(&mut self, response: &[u8]) -> Outcome<bool> {
        if Message::parse(response)?.transaction_id() != self.transaction {
            return Ok(true);
        }
        match (self.step, error_of(response)?) {
            (Step::Challenge, Some(401)) => {
                self.session = Some(session_from(response)?);
                self.send(Step::Allocate).map(|()| true)
            }
            (Step::Allocate, None) => self.send(Step::Delete).map(|()| true),
            (Step::Delete, None) => Ok(false),
            (step, Some(code)) => Err(format!("error {code} at step {step:?}").into()),
            (Step::Challenge, None) => Err("the server allocated without credentials".into()),
        }
    }
}
