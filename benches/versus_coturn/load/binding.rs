//! Clients that send Binding requests only.

use std::net::UdpSocket;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde_json::{Value, json};
use turnserver::stun::{Class, Message};

use super::datagrams::{self, Receiver};
use super::link::{binding_request, udp};
use super::{Commands, Job, Outcome, Report, allocation::transaction, clock};

/// Time without a response after which a client regards all outstanding requests as lost.
const LOSS_TIMEOUT: u64 = 50 * clock::MILLISECOND;

struct Client {
    socket: UdpSocket,
    outstanding: u64,
    /// Time of the last response, or the last time without outstanding requests.
    active_at: u64,
}

/// Keeps `window` requests of each client outstanding. Returns the number of responses within the measurement.
pub(crate) fn run(job: &Job, clients: usize, window: u64, commands: &Commands, report: Report<'_>) -> Outcome<Value> {
    let poll = Epoll::new(EpollCreateFlags::empty())?;
    let mut all = Vec::new();
    for index in 0..clients {
        let socket = udp(job.own, job.server)?;
        datagrams::prepare(&socket)?;
        poll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
        all.push(Client { socket, outstanding: 0, active_at: 0 });
    }
    let request = binding_request(transaction())?;
    report("ready");
    let measured = commands.window()?;
    clock::sleep_until(measured.start);

    let (mut responses, mut sent, mut damaged) = (0_u64, 0_u64, 0_u64);
    let mut receiver = Receiver::new(8);
    let mut ready = vec![EpollEvent::empty(); clients];
    loop {
        let now = clock::now();
        if now >= measured.to {
            return Ok(json!({ "responses": responses, "sent": sent, "damaged": damaged }));
        }
        for client in &mut all {
            if client.outstanding == 0 || now.saturating_sub(client.active_at) > LOSS_TIMEOUT {
                (client.outstanding, client.active_at) = (0, now);
            }
            while client.outstanding < window && client.socket.send(&request).is_ok() {
                client.outstanding += 1;
                sent += u64::from(measured.counts(now));
            }
        }
        let count = poll.wait(&mut ready, EpollTimeout::from(1_u8))?;
        for event in ready.iter().take(count) {
            let client = usize::try_from(event.data()).ok().and_then(|index| all.get_mut(index));
            let Some(client) = client else { continue };
            receiver.drain(&client.socket, &mut |message, arrival| {
                client.outstanding = client.outstanding.saturating_sub(1);
                client.active_at = arrival;
                let success = Message::parse(message).is_ok_and(|message| message.class() == Class::Success);
                damaged += u64::from(!success);
                responses += u64::from(success && measured.counts(arrival));
            })?;
        }
    }
}
