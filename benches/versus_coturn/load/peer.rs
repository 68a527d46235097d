//! The peer of a load: one socket that all allocations of the load send to and receive from.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::json;

use super::datagrams::{self, Receiver};
use super::frame::Template;
use super::link::in_time;
use super::sink::{self, Inlet};
use super::source::{self, Feedback, Outlet, Packet, Reporter};
use super::stamp::{PRIMER, Stamp};
use super::{Job, Orders, Outcome, Say, Window, clock, tell};
use crate::scenario::{Direction, Shape};

/// How often a peer that answers primers looks whether the load begins.
const LOOK: Duration = Duration::from_millis(5);

/// Plays the peer of a job to its end.
pub(crate) fn run(job: &Job, orders: &Orders, say: Say<'_>) -> Outcome<()> {
    clock::sleep_precisely();
    let load = job.load()?;
    let socket = UdpSocket::bind((job.own, 0))?;
    datagrams::prepare(&socket)?;
    let feedback = if load.direction == Direction::Down { Some(Feedback::open(load, &job.feedback)?) } else { None };
    say(&format!("address {}", socket.local_addr()?));

    let mut relayed = vec![None; load.flows];
    let window = answer_primers(&socket, &mut relayed, orders)?;
    let template = Template::bare(load.payload);
    let relayed = relayed.into_iter().collect::<Option<Vec<_>>>();
    let mut end = End { socket, template, shape: load.shape, relayed: Vec::new(), receiver: Receiver::new(64) };
    let result = match feedback {
        Some(feedback) => {
            end.relayed = relayed.ok_or("a flow has not said where it is")?;
            json!({ "sent": source::run(load, &mut end, window, feedback)? })
        }
        None => sink::run(load, &mut end, window, Reporter::connect(load, &job.feedback)?)?.result(),
    };
    tell(say, &result);
    Ok(())
}

/// Learns the relayed address of each flow and sends its primer back, until the load begins.
fn answer_primers(socket: &UdpSocket, relayed: &mut [Option<SocketAddr>], orders: &Orders) -> Outcome<Window> {
    socket.set_read_timeout(Some(LOOK))?;
    let mut buffer = [0; 2048];
    loop {
        if let Some(window) = orders.window_by_now()? {
            return Ok(window);
        }
        let Some((length, from)) = received(socket.recv_from(&mut buffer))? else { continue };
        let payload = buffer.get(..length).unwrap_or_default();
        let Some(stamp) = Stamp::read(payload).filter(|stamp| stamp.sequence == PRIMER) else { continue };
        if let Some(place) = usize::try_from(stamp.flow).ok().and_then(|flow| relayed.get_mut(flow)) {
            *place = Some(from);
            socket.send_to(payload, from)?;
        }
    }
}

fn received<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match in_time(result) {
        // What was sent to an allocation that is gone.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(None),
        result => result,
    }
}

/// The peer's socket during the load.
struct End {
    socket: UdpSocket,
    template: Template,
    shape: Shape,
    relayed: Vec<SocketAddr>,
    receiver: Receiver,
}

impl End {
    fn address(&self, packet: &Packet) -> Option<SocketAddr> {
        self.relayed.get(usize::try_from(packet.flow).ok()?).copied()
    }
}

impl Outlet for End {
    fn send(&mut self, packets: &[Packet]) {
        let addresses: Vec<SocketAddr> = packets.iter().filter_map(|packet| self.address(packet)).collect();
        let mut messages = Vec::with_capacity(packets.len() * self.template.len());
        packets.iter().for_each(|packet| self.template.append(packet, &mut messages));
        match (self.shape, u16::try_from(self.template.len())) {
            (Shape::Merged, Ok(length)) => {
                let mut rest = messages.as_slice();
                for same in addresses.chunk_by(|one, next| one == next) {
                    let Some((first, behind)) = rest.split_at_checked(same.len() * self.template.len()) else { return };
                    datagrams::send_merged(&self.socket, first, length, same.first().copied());
                    rest = behind;
                }
            }
            _ => datagrams::send_each(&self.socket, &messages, self.template.len(), &addresses),
        }
    }
}

impl Inlet for End {
    fn wait(&mut self, tick: u64) -> Outcome<()> {
        clock::sleep_until(tick);
        Ok(())
    }

    fn drain(&mut self, each: &mut dyn FnMut(&[u8], u64)) -> Outcome<()> {
        Ok(self.receiver.drain(&self.socket, each)?)
    }
}
