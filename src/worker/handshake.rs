//! TLS handshakes of a worker: bounded in time, in bytes (by [`Acceptor`]) and in number.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::{Close, Worker, stream};
use crate::net::tls::Acceptor;
use crate::turn::{FiveTuple, Ticket};

/// How many handshakes a worker has under way. One more ends the oldest: an honest client is done in two round trips, and
/// whoever wants to hold places can hold none against those that come after.
const MOST: usize = 512;

/// The handshakes under way, the oldest first; each can be told to end.
#[derive(Debug, Default)]
pub(super) struct Handshakes(VecDeque<Rc<Notify>>);

impl Handshakes {
    fn begin(&mut self) -> Rc<Notify> {
        if self.0.len() >= MOST
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

/// Carries out the handshake of a new connection and serves it.
pub(super) async fn serve(
    worker: Weak<RefCell<Worker>>,
    tuple: FiveTuple,
    ticket: Ticket,
    stream: TcpStream,
    acceptor: Acceptor,
) {
    let (place, limit) = match worker.upgrade() {
        Some(worker) => {
            let mut worker = worker.borrow_mut();
            (worker.handshakes.begin(), worker.timeouts.tls_handshake)
        }
        None => return,
    };
    let handshake = tokio::select! {
        done = acceptor.accept(stream) => done.map_err(Close::from),
        () = tokio::time::sleep(limit) => Err(Close::HandshakeTimeout),
        () = place.notified() => Err(Close::HandshakeGaveWay),
    };
    if let Some(this) = worker.upgrade() {
        this.borrow_mut().handshakes.end(&place);
    }
    match handshake {
        Ok((stream, usage)) => stream::serve(worker, tuple, ticket, stream, usage).await,
        Err(close) => {
            if let Some(worker) = worker.upgrade() {
                worker.borrow_mut().connection_ended(&tuple, ticket, close);
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
        let places: Vec<_> = (0..MOST).map(|_| handshakes.begin()).collect();
        handshakes.end(&places[0]);
        let _ = handshakes.begin();
        let told = |place: &Rc<Notify>| {
            let place = Rc::clone(place);
            async move { tokio::time::timeout(std::time::Duration::ZERO, place.notified()).await.is_ok() }
        };
        assert!(!told(&places[1]).await);
        let _ = handshakes.begin();
        assert!(told(&places[1]).await);
        assert!(!told(&places[2]).await);
        assert_eq!(handshakes.0.len(), MOST);
    }
}
