//! TLS handshakes of a worker: bounded in time, in bytes (by [`Acceptor`]) and in number.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::{CloseReason, stream};
use crate::net::tls::Acceptor;
use crate::turn::{FiveTuple, Ticket};
use crate::worker::Worker;

/// The number of unfinished handshakes of a worker. Another one evicts the oldest: a handshake takes two round trips, so clients that
/// keep theirs unfinished do not block others.
const MAX_HANDSHAKES: usize = 512;

/// The unfinished handshakes, the oldest first. Each is notified when it is evicted.
#[derive(Debug, Default)]
pub(super) struct Handshakes(VecDeque<Rc<Notify>>);

impl Handshakes {
    fn begin(&mut self) -> Rc<Notify> {
        if self.0.len() >= MAX_HANDSHAKES
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.notify_one();
        }
        let place = Rc::new(Notify::new());
        self.0.push_back(Rc::clone(&place));
        place
    }

    fn end(&mut self, place: &Rc<Notify>) {
        self.0.retain(|other| !Rc::ptr_eq(other, place));
    }
}

/// Carries out the handshake of a new connection, then serves it.
pub(in crate::worker) async fn serve(
    worker: Weak<RefCell<Worker>>,
    tuple: FiveTuple,
    ticket: Ticket,
    stream: TcpStream,
    acceptor: Acceptor,
) {
    let (place, timeout) = match worker.upgrade() {
        Some(worker) => {
            let mut worker = worker.borrow_mut();
            let timeout = worker.shell.snapshot.timeouts.tls_handshake;
            (worker.shell.connections.handshakes.begin(), timeout)
        }
        None => return,
    };
    let handshake = tokio::select! {
        done = acceptor.accept(stream) => done.map_err(CloseReason::from),
        () = tokio::time::sleep(timeout) => Err(CloseReason::HandshakeTimeout),
        () = place.notified() => Err(CloseReason::HandshakeEvicted),
    };
    if let Some(this) = worker.upgrade() {
        this.borrow_mut().shell.connections.handshakes.end(&place);
    }
    match handshake {
        Ok((stream, usage)) => stream::serve(worker, tuple, ticket, stream, usage).await,
        Err(close) => {
            if let Some(worker) = worker.upgrade() {
                worker.borrow_mut().connection_ended(&tuple, close);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn one_handshake_too_many_ends_the_oldest() {
        let mut handshakes = Handshakes::default();
        let places: Vec<_> = (0..MAX_HANDSHAKES).map(|_| handshakes.begin()).collect();
        handshakes.end(&places[0]);
        let _ = handshakes.begin();
        let evicted = |place: &Rc<Notify>| {
            let place = Rc::clone(place);
            async move { tokio::time::timeout(std::time::Duration::ZERO, place.notified()).await.is_ok() }
        };
        assert!(!evicted(&places[1]).await);
        let _ = handshakes.begin();
        assert!(evicted(&places[1]).await);
        assert!(!evicted(&places[2]).await);
        assert_eq!(handshakes.0.len(), MAX_HANDSHAKES);
    }
}
