//! Clients that ask for their address and nothing else.

use std::net::UdpSocket;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde_json::{Value, json};
use turnserver::stun::{Class, Message};

use super::datagrams::{self, Receiver};
use super::link::{binding_request, udp};
use super::{Job, Orders, Outcome, Say, allocation::transaction, clock};

/// How long a client waits before it takes what it asked for lost.
const GIVEN_UP: u64 = 50 * clock::MILLISECOND;

struct Client {
    socket: UdpSocket,
    unanswered: u64,
    /// When it last heard something or had nothing to wait for.
    heard: u64,
}

/// Keeps `window` requests of each client on their way; says how many were answered within the measured time.
pub(crate) fn run(job: &Job, clients: usize, window: u64, orders: &Orders, say: Say<'_>) -> Outcome<Value> {
    let poll = Epoll::new(EpollCreateFlags::empty())?;
    let mut all = Vec::new();
    for index in 0..clients {
        let socket = udp(job.own, job.server)?;
        datagrams::prepare(&socket)?;
        poll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
        all.push(Client { socket, unanswered: 0, heard: 0 });
    }
    let request = binding_request(transaction())?;
    say("ready");
    let measured = orders.window()?;
    clock::sleep_until(measured.start);

    let (mut answers, mut sent, mut wrong) = (0_u64, 0_u64, 0_u64);
    let mut receiver = Receiver::new(8);
    let mut ready = vec![EpollEvent::empty(); clients];
    loop {
        let now = clock::now();
        if now >= measured.to {
            return Ok(json!({ "answers": answers, "sent": sent, "damaged": wrong }));
        }
        for client in &mut all {
            if client.unanswered == 0 || now.saturating_sub(client.heard) > GIVEN_UP {
                (client.unanswered, client.heard) = (0, now);
            }
            while client.unanswered < window && client.socket.send(&request).is_ok() {
                client.unanswered += 1;
                sent += u64::from(measured.counts(now));
            }
        }
        let count = poll.wait(&mut ready, EpollTimeout::from(1_u8))?;
        for event in ready.iter().take(count) {
            let client = usize::try_from(event.data()).ok().and_then(|index| all.get_mut(index));
            let Some(client) = client else { continue };
            receiver.drain(&client.socket, &mut |message, arrival| {
                client.unanswered = client.unanswered.saturating_sub(1);
                client.heard = arrival;
                let success = Message::parse(message).is_ok_and(|message| message.class() == Class::Success);
                wrong += u64::from(!success);
                answers += u64::from(success && measured.counts(arrival));
            })?;
        }
    }
}
