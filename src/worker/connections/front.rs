//! The first byte of a connection, which distinguishes TLS from TURN.

use std::cell::RefCell;
use std::rc::Weak;

use tokio::net::TcpStream;
use tokio::time::sleep;

use super::handshake::Done;
use super::{Admitted, CloseReason, handshake, stream};
use crate::net::tls::{self, Usage};
use crate::transport::Transport;
use crate::worker::Worker;

/// Serves a client that has just connected. `plain`: the listener also serves clients without TLS.
pub(in crate::worker) async fn serve(
    worker: Weak<RefCell<Worker>>,
    mut admitted: Admitted,
    stream: TcpStream,
    plain: bool,
) {
    let Some((began, timeouts)) = worker.upgrade().map(|worker| {
        let worker = worker.borrow();
        (worker.shell.now().monotonic, worker.shell.snapshot.timeouts)
    }) else {
        return;
    };
    let (deadline, late) = if plain {
        (timeouts.first_request, CloseReason::Idle)
    } else {
        (timeouts.tls_handshake, CloseReason::HandshakeTimeout)
    };
    let evicted = admitted.place.evicted();
    let first = tokio::select! {
        first = first_byte(&stream) => first,
        () = sleep(deadline) => Err(late),
        () = evicted.notified() => Err(CloseReason::Evicted),
    };
    let Some(this) = worker.upgrade() else { return };
    let first = match first {
        Ok(first) => first,
        Err(close) => return this.borrow_mut().connection_ended(&admitted.tuple, close),
    };
    let now = this.borrow().shell.now().monotonic;
    let acceptor = this.borrow().shell.snapshot.tls.clone();
    let is_tls = first == tls::HANDSHAKE_RECORD;
    match (acceptor, plain) {
        (Some(acceptor), plain) if is_tls || !plain => {
            if !is_tls && first <= LAST_STUN {
                this.borrow_mut().shell.events.plain_on_tls(now, admitted.tuple);
            }
            this.borrow_mut().set_transport(&mut admitted, Transport::Tls);
            let left = timeouts.tls_handshake.saturating_sub(now.since(began));
            drop(this);
            // A connection keeps the memory of its present part alone: that of a handshake is large.
            let done = Box::pin(handshake::complete(Weak::clone(&worker), admitted, stream, acceptor, left)).await;
            if let Some(Done { admitted, stream, usage, at }) = done {
                Box::pin(stream::serve(worker, admitted, stream, usage, at)).await;
            }
        }
        // A reload has removed the certificate together with the listener, just after the client connected.
        (_, false) => this.borrow_mut().connection_ended(&admitted.tuple, CloseReason::Incompatible),
        (None | Some(_), true) => {
            if is_tls {
                this.borrow_mut().shell.events.tls_without_certificate(now, admitted.tuple);
            }
            this.borrow_mut().set_transport(&mut admitted, Transport::Tcp);
            drop(this);
            Box::pin(stream::serve(worker, admitted, stream, Usage::Turn, began)).await;
        }
    }
}

/// The largest first byte of a STUN message (RFC 7983 §7).
const LAST_STUN: u8 = 3;

/// Returns the first byte, which remains in the socket.
async fn first_byte(stream: &TcpStream) -> Result<u8, CloseReason> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(0) => Err(CloseReason::ByClient),
        Ok(_) => Ok(first[0]),
        Err(_) => Err(CloseReason::Broken),
    }
}
