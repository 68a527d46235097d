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

/// The maximum number of unfinished handshakes of a worker. A further one evicts the oldest, so clients that do not
/// finish theirs do not block others.
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
        let eviction = Rc::new(Notify::new());
        self.0.push_back(Rc::clone(&eviction));
        eviction
    }

    fn end(&mut self, eviction: &Rc<Notify>) {
        self.0.retain(|other| !Rc::ptr_eq(other, eviction));
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
    let (eviction, timeout) = match worker.upgrade() {
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
        () = eviction.notified() => Err(CloseReason::HandshakeEvicted),
    };
    if let Some(this) = worker.upgrade() {
        this.borrow_mut().shell.connections.handshakes.end(&eviction);
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
    async fn a_handshake_above_the_limit_evicts_the_oldest() {
        let mut handshakes = Handshakes::default();
        let evictions: Vec<_> = (0..MAX_HANDSHAKES).map(|_| handshakes.begin()).collect();
        handshakes.end(&evictions[0]);
        let _ = handshakes.begin();
        let evicted = |eviction: &Rc<Notify>| {
            let eviction = Rc::clone(eviction);
            async move { tokio::time::timeout(std::time::Duration::ZERO, eviction.notified()).await.is_ok() }
        };
        assert!(!evicted(&evictions[1]).await);
        let _ = handshakes.begin();
        assert!(evicted(&evictions[1]).await);
        assert!(!evicted(&evictions[2]).await);
        assert_eq!(handshakes.0.len(), MAX_HANDSHAKES);
    }
}
