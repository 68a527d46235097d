//! Floods of clients that have real addresses: one source, and users with an allocation.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use turnserver::stun::TransactionId;

use crate::attack::{Attack, AttackArguments};
use crate::load::allocation::{CHANNEL, allocate, allocate_relayed, bind_channel};
use crate::load::datagrams::{self, Receiver};
use crate::load::frame::Template;
use crate::load::link::{Link, binding_request, udp};
use crate::load::{Commands, Outcome, clock};
use crate::output::print;

/// The number of packets per system call.
const BATCH: usize = 64;

/// The address of the peer that does not read, in the network of the attacker.
const UNREAD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));

/// Packets that each client of the circle sends at the beginning.
const CIRCULATING: usize = 256;

/// Sends Binding requests or empty ChannelData from one socket as fast as possible.
pub(crate) fn one_source(attack: &AttackArguments, commands: &Commands) -> Outcome<u64> {
    let socket = udp(attack.own, attack.server)?;
    let message = match attack.flood {
        Attack::EmptyMerged => vec![0x40, 0, 0, 0],
        _ => binding_request(TransactionId::new([9; 12]))?,
    };
    send_at_line_rate(&socket, &message, attack.flood != Attack::OneSource, commands)
}

/// Sends ChannelData as fast as possible to a peer that does not read.
pub(crate) fn line_rate(attack: &AttackArguments, commands: &Commands) -> Outcome<u64> {
    let peer = UdpSocket::bind((UNREAD, 0))?;
    let socket = udp(attack.own, attack.server)?;
    let mut link = Link::Udp(socket.try_clone()?);
    let session = allocate(&mut link)?;
    bind_channel(&mut link, &session, peer.local_addr()?)?;
    let message = [&CHANNEL.to_be_bytes()[..], &1000_u16.to_be_bytes(), &[0x5a; 1000]].concat();
    send_at_line_rate(&socket, &message, false, commands)
}

/// Sends a message as fast as possible, each as a datagram or merged, and returns how many were sent within the
/// measurement.
fn send_at_line_rate(socket: &UdpSocket, message: &[u8], is_merged: bool, commands: &Commands) -> Outcome<u64> {
    print("ready");
    let window = commands.window()?;
    clock::sleep_until(window.start);
    let (messages, mut counted) = (message.repeat(BATCH), 0);
    loop {
        let now = clock::now();
        if now >= window.to {
            return Ok(counted);
        }
        if is_merged {
            datagrams::send_merged(socket, &messages, u16::try_from(message.len())?, None);
        } else {
            datagrams::send_each(socket, &messages, message.len(), &[]);
        }
        counted += if window.counts(now) { BATCH as u64 } else { 0 };
    }
}

/// Lets packets circulate between two allocations, whose clients send back what they receive.
pub(crate) fn circle(attack: &AttackArguments, commands: &Commands) -> Outcome<u64> {
    let sockets = [udp(attack.own, attack.server)?, udp(attack.own, attack.server)?];
    let mut links = Vec::new();
    for socket in &sockets {
        let mut link = Link::Udp(socket.try_clone()?);
        let (session, relayed) = allocate_relayed(&mut link)?;
        links.push((link, session, relayed));
    }
    let relayed: Vec<_> = links.iter().map(|(_, _, relayed)| *relayed).rev().collect();
    for ((link, session, _), other) in links.iter_mut().zip(relayed) {
        bind_channel(link, session, other)?;
    }
    for socket in &sockets {
        datagrams::prepare(socket)?;
    }
    let template = Template::channel(CHANNEL, 200, false)?;
    let mut first = Vec::new();
    template.append(&crate::load::stamp::Stamp { flow: 0, sequence: 0, sent: 0 }, &mut first);
    let length = first.len();
    print("ready");
    let window = commands.window()?;
    clock::sleep_until(window.start);
    for socket in &sockets {
        datagrams::send_each(socket, &first.repeat(CIRCULATING), length, &[]);
    }
    let (mut receiver, mut counted, mut back) = (Receiver::new(8), 0, Vec::new());
    loop {
        let now = clock::now();
        if now >= window.to {
            return Ok(counted);
        }
        for socket in &sockets {
            back.clear();
            receiver.drain(socket, &mut |message, _| back.extend_from_slice(message))?;
            if !back.is_empty() {
                datagrams::send_each(socket, &back, length, &[]);
                counted += if window.counts(now) { (back.len() / length) as u64 } else { 0 };
            }
        }
    }
}
