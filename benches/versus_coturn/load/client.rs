//! The clients of a load: one allocation per flow.

use std::io::{self, Write};
use std::net::UdpSocket;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde_json::{Value, json};

use super::allocation::{CHANNEL, allocate, bind_channel, permit};
use super::datagrams::{self, Receiver};
use super::frame::{Template, payload_of};
use super::link::{Connector, Link, Stream, udp};
use super::sink::{self, Inlet};
use super::source::{self, Feedback, Outlet, Packet, Reporter};
use super::stamp::{PRIMER, Stamp};
use super::{Commands, Job, Outcome, Report, clock};
use crate::scenario::{Direction, Framing, Shape, Transport};

/// Number of attempts to establish the path of a flow.
const PRIMERS: usize = 10;

/// Maximum number of bytes queued for a connection. Further packets are lost.
const BACKLOG: usize = 256 << 10;

/// Maximum number of events per `epoll_wait`.
const READY: usize = 256;

/// Runs the clients of the job's load and returns their counts.
pub(crate) fn run(job: &Job, commands: &Commands, report: Report<'_>) -> Outcome<Value> {
    let load = job.load()?;
    let template = match load.framing {
        // A forwarded payload of a peer arrives without a header, and so do the primers of its flow.
        Framing::Channel if job.forwarded && load.direction == Direction::Down => Template::bare(load.payload),
        Framing::Channel => Template::channel(CHANNEL, load.payload, load.transport != Transport::Udp)?,
        Framing::Indication => Template::indication(job.peer, load.payload)?,
    };
    let connector = Connector::new(job, load.transport)?;
    let mut links = Vec::new();
    for flow in 0..load.flows {
        let mut link = if job.forwarded { Link::Udp(udp(job.own, job.peer)?) } else { connector.connect()? };
        if !job.forwarded {
            let session = allocate(&mut link)?;
            match load.framing {
                Framing::Channel => bind_channel(&mut link, &session, job.peer)?,
                Framing::Indication => permit(&mut link, &session, job.peer)?,
            }
        }
        prime(job, &mut link, flow, &template)?;
        links.push(link);
    }
    let mut ends = Ends::new(job, links, template, load.shape)?;
    let feedback = if load.direction == Direction::Up { Some(Feedback::open(load, &job.feedback)?) } else { None };
    report("ready");
    let window = commands.window()?;
    match feedback {
        Some(feedback) => Ok(json!({ "sent": source::run(load, &mut ends, window, feedback)? })),
        None => Ok(sink::run(load, &mut ends, window, Reporter::connect(load, &job.feedback)?)?.result()),
    }
}

/// Sends a packet to the peer, which learns the relayed address from it, and waits for the echo.
fn prime(job: &Job, link: &mut Link, flow: usize, template: &Template) -> Outcome<()> {
    for _ in 0..PRIMERS {
        let stamp = Stamp { flow: u32::try_from(flow)?, sequence: PRIMER, sent: clock::now() };
        let mut message = Vec::new();
        template.append(&stamp, &mut message);
        link.send(&message)?;
        while let Some(response) = link.receive()? {
            if job.payload_for_client(&response).and_then(Stamp::read).is_some_and(|stamp| stamp.sequence == PRIMER) {
                return Ok(());
            }
        }
    }
    Err(if job.forwarded { "the kernel does not forward data" } else { "the allocation does not relay data" }.into())
}

/// The clients' sockets during the load.
struct Ends<'j> {
    job: &'j Job,
    ends: Vec<End>,
    template: Template,
    shape: Shape,
    poll: Epoll,
    receiver: Receiver,
    /// The messages of one flow that are sent next.
    scratch: Vec<u8>,
}

enum End {
    Udp(UdpSocket),
    /// A connection and its unsent bytes.
    Stream(Stream, Vec<u8>),
}

impl<'j> Ends<'j> {
    fn new(job: &'j Job, links: Vec<Link>, template: Template, shape: Shape) -> Outcome<Self> {
        let (poll, mut ends) = (Epoll::new(EpollCreateFlags::empty())?, Vec::new());
        for (index, link) in links.into_iter().enumerate() {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, index as u64);
            ends.push(match link {
                Link::Udp(socket) => {
                    datagrams::prepare(&socket)?;
                    poll.add(&socket, event)?;
                    End::Udp(socket)
                }
                Link::Stream(stream) => {
                    stream.socket().set_nonblocking(true)?;
                    poll.add(stream.socket(), event)?;
                    End::Stream(stream, Vec::new())
                }
            });
        }
        Ok(Self { job, ends, template, shape, poll, receiver: Receiver::new(8), scratch: Vec::new() })
    }
}

impl Outlet for Ends<'_> {
    fn send(&mut self, packets: &[Packet]) {
        for packets in packets.chunk_by(|one, next| one.flow == next.flow) {
            let flow = packets.first().and_then(|packet| usize::try_from(packet.flow).ok());
            let Some(end) = flow.and_then(|flow| self.ends.get_mut(flow)) else { continue };
            self.scratch.clear();
            for packet in packets {
                self.template.append(packet, &mut self.scratch);
            }
            match end {
                _ if self.job.unsent => {}
                End::Udp(socket) => send_datagrams(socket, &self.scratch, self.template.len(), self.shape),
                End::Stream(stream, backlog) => send_in_stream(stream, backlog, &self.scratch),
            }
        }
    }
}

fn send_datagrams(socket: &UdpSocket, messages: &[u8], length: usize, shape: Shape) {
    match (shape, u16::try_from(length)) {
        (Shape::Merged, Ok(length)) => datagrams::send_merged(socket, messages, length, None),
        // A datagram that the kernel rejects is lost and counted as such.
        _ if messages.len() == length => drop(socket.send(messages)),
        _ => datagrams::send_each(socket, messages, length, &[]),
    }
}

fn send_in_stream(stream: &mut Stream, backlog: &mut Vec<u8>, messages: &[u8]) {
    if backlog.len() < BACKLOG {
        backlog.extend_from_slice(messages);
    }
    while let Ok(written) = stream.write(backlog) {
        backlog.drain(..written);
        if backlog.is_empty() || written == 0 {
            break;
        }
    }
    let _ = stream.flush();
}

impl Inlet for Ends<'_> {
    fn wait(&mut self, tick: u64) -> Outcome<()> {
        // The kernel records no arrival times for connections, so data must be read when it arrives.
        if let Some(End::Stream(..)) = self.ends.first() {
            let milliseconds = u16::try_from(tick.saturating_sub(clock::now()) / clock::MILLISECOND)?.max(1);
            self.poll.wait(&mut [EpollEvent::empty()], EpollTimeout::from(milliseconds))?;
        } else {
            clock::sleep_until(tick);
        }
        Ok(())
    }

    fn drain(&mut self, each: &mut dyn FnMut(&[u8], u64)) -> Outcome<()> {
        let mut ready = vec![EpollEvent::empty(); READY];
        loop {
            let count = self.poll.wait(&mut ready, EpollTimeout::ZERO)?;
            for event in ready.iter().take(count) {
                let end = usize::try_from(event.data()).ok().and_then(|index| self.ends.get_mut(index));
                match end {
                    Some(End::Udp(socket)) => self.receiver.drain(socket, &mut |message, arrival| {
                        self.job.payload_for_client(message).into_iter().for_each(|payload| each(payload, arrival));
                    })?,
                    Some(End::Stream(stream, _)) => drain_stream(stream, each)?,
                    None => {}
                }
            }
            if count < READY {
                return Ok(());
            }
        }
    }
}

fn drain_stream(stream: &mut Stream, each: &mut dyn FnMut(&[u8], u64)) -> Outcome<()> {
    loop {
        match stream.read_more() {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let arrival = clock::now();
        stream.each_message(&mut |message| {
            payload_of(message).into_iter().for_each(|payload| each(payload, arrival));
        });
    }
}
