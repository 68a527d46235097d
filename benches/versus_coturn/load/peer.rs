//! The peer of a load: one socket that exchanges data with all allocations of the load.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::json;

use super::datagrams::{self, Receiver};
use super::frame::Template;
use super::link::unless_timed_out;
use super::sink::{self, Inlet};
use super::source::{self, Feedback, Outlet, Packet, Reporter};
use super::stamp::{PRIMER, Stamp};
use super::{Commands, Job, Outcome, Report, Window, clock, send_result};
use crate::scenario::{Direction, Shape};

/// Interval at which the peer checks for the start of the load.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Runs the peer of a job.
pub(crate) fn run(job: &Job, commands: &Commands, report: Report<'_>) -> Outcome<()> {
    clock::sleep_precisely();
    let load = job.load()?;
    let socket = UdpSocket::bind((job.own, 0))?;
    datagrams::prepare(&socket)?;
    let feedback = if load.direction == Direction::Down { Some(Feedback::open(load, &job.feedback)?) } else { None };
    report(&format!("address {}", socket.local_addr()?));

    let mut relayed = vec![None; load.flows];
    let window = echo_primers(job, &socket, &mut relayed, commands)?;
    let template = Template::bare(load.payload);
    let relayed = relayed.into_iter().collect::<Option<Vec<_>>>();
    let mut end = End { job, socket, template, shape: load.shape, relayed: Vec::new(), receiver: Receiver::new(64) };
    let result = match feedback {
        Some(feedback) => {
            end.relayed = relayed.ok_or("a flow has sent no primer")?;
            json!({ "sent": source::run(load, &mut end, window, feedback)? })
        }
        None => sink::run(load, &mut end, window, Reporter::connect(load, &job.feedback)?)?.result(),
    };
    send_result(report, &result);
    Ok(())
}

/// Learns the address of each flow, which is relayed or forwarded, and echoes its primer, until the load starts.
fn echo_primers(
    job: &Job,
    socket: &UdpSocket,
    relayed: &mut [Option<SocketAddr>],
    commands: &Commands,
) -> Outcome<Window> {
    socket.set_read_timeout(Some(POLL_INTERVAL))?;
    let mut buffer = [0; 2048];
    loop {
        if let Some(window) = commands.try_window()? {
            return Ok(window);
        }
        let Some((length, from)) = received(socket.recv_from(&mut buffer))? else { continue };
        let datagram = buffer.get(..length).unwrap_or_default();
        let Some(stamp) = Stamp::read(job.payload_for_peer(datagram)).filter(|stamp| stamp.sequence == PRIMER) else {
            continue;
        };
        if let Some(place) = usize::try_from(stamp.flow).ok().and_then(|flow| relayed.get_mut(flow)) {
            *place = Some(from);
            socket.send_to(datagram, from)?;
        }
    }
}

fn received<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match unless_timed_out(result) {
        // An ICMP error for an allocation that no longer exists.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(None),
        result => result,
    }
}

/// The peer's socket during the load.
struct End<'j> {
    job: &'j Job,
    socket: UdpSocket,
    template: Template,
    shape: Shape,
    relayed: Vec<SocketAddr>,
    receiver: Receiver,
}

impl End<'_> {
    fn address(&self, packet: &Packet) -> Option<SocketAddr> {
        self.relayed.get(usize::try_from(packet.flow).ok()?).copied()
    }
}

impl Outlet for End<'_> {
    fn send(&mut self, packets: &[Packet]) {
        let addresses: Vec<SocketAddr> = packets.iter().filter_map(|packet| self.address(packet)).collect();
        let mut messages = Vec::with_capacity(packets.len() * self.template.len());
        packets.iter().for_each(|packet| self.template.append(packet, &mut messages));
        match (self.shape, u16::try_from(self.template.len())) {
            _ if self.job.unsent => {}
            (Shape::Merged, Ok(length)) => {
                let mut rest = messages.as_slice();
                for same in addresses.chunk_by(|one, next| one == next) {
                    let Some((first, after)) = rest.split_at_checked(same.len() * self.template.len()) else { return };
                    datagrams::send_merged(&self.socket, first, length, same.first().copied());
                    rest = after;
                }
            }
            _ => datagrams::send_each(&self.socket, &messages, self.template.len(), &addresses),
        }
    }
}

impl Inlet for End<'_> {
    fn wait(&mut self, tick: u64) -> Outcome<()> {
        clock::sleep_until(tick);
        Ok(())
    }

    fn drain(&mut self, each: &mut dyn FnMut(&[u8], u64)) -> Outcome<()> {
        let job = self.job;
        let payload = &mut |datagram: &[u8], arrival| each(job.payload_for_peer(datagram), arrival);
        Ok(self.receiver.drain(&self.socket, payload)?)
    }
}
