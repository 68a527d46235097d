//! TLS handshakes of a worker: bounded in time, in bytes (by [`Acceptor`]), in number, and in their share of the worker.
//!
//! A signature of the server takes up to a few milliseconds. At most one is made per iteration of the event loop, and
//! the next one waits as long as the last ones took. The server signs after the first ClientHello, or after the second
//! one if it requested another key share (RFC 8446 §4.1.4), so every step of a handshake has a turn. Relayed data waits
//! for at most one signature, and at least half of the worker's time remains for it. Sources take turns: a source that starts many handshakes delays mostly its own.

use std::cell::RefCell;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::yield_now;

use super::by_source::{BySource, Source};
use super::{Admitted, CloseReason, stream};
use crate::net::tls::{Acceptor, Failure, Stream, Usage};
use crate::worker::Worker;

/// The maximum number of unfinished handshakes of a worker. A further one evicts the oldest of the source with the most
/// of them, so clients that do not finish theirs do not block others.
const MAX_HANDSHAKES: usize = 512;

/// The time that signatures take until the next one waits. Timers are not more precise.
const MAX_DEBT: Duration = Duration::from_millis(1);

/// The unfinished handshakes of a worker.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    next: u64,
    /// Each is notified when it is evicted.
    unfinished: BySource<Rc<Notify>>,
    /// Those that wait for their turn to sign. Each is notified when its turn has come.
    waiting: BySource<Rc<Notify>>,
    /// The handshake that signs, or has just signed.
    signing: Option<u64>,
    /// The source of the last signature.
    last: Option<Source>,
    /// The time that the last signatures took.
    debt: Duration,
}

/// An unfinished handshake. Dropping it ends it.
#[derive(Debug)]
struct Handshake {
    all: Rc<RefCell<Handshakes>>,
    number: u64,
    source: Source,
    evicted: Rc<Notify>,
}

impl Handshakes {
    fn begin(all: &Rc<RefCell<Self>>, source: Source) -> Handshake {
        let mut this = all.borrow_mut();
        if this.unfinished.len() >= MAX_HANDSHAKES
            && let Some((_, oldest)) = this.unfinished.pop_fullest()
        {
            oldest.notify_one();
        }
        let (number, evicted) = (this.next, Rc::<Notify>::default());
        this.next += 1;
        this.unfinished.insert(source, number, Rc::clone(&evicted));
        Handshake { all: Rc::clone(all), number, source, evicted }
    }

    /// Gives the turn to the next handshake.
    fn pass_on(&mut self) {
        self.signing = None;
        if let Some((source, number, turn)) = self.waiting.pop_next(self.last) {
            (self.signing, self.last) = (Some(number), Some(source));
            turn.notify_one();
        }
    }
}

impl Handshake {
    /// Waits until this handshake may sign.
    async fn turn(&self) {
        let turn = {
            let mut all = self.all.borrow_mut();
            if all.signing.is_none() {
                (all.signing, all.last) = (Some(self.number), Some(self.source));
                return;
            }
            let turn = Rc::<Notify>::default();
            all.waiting.insert(self.source, self.number, Rc::clone(&turn));
            turn
        };
        turn.notified().await;
    }

    /// Ends the turn, after other tasks have had their share.
    async fn end_turn(&self, took: Duration) {
        yield_now().await;
        let pause = {
            let mut all = self.all.borrow_mut();
            all.debt += took;
            if all.debt > MAX_DEBT { std::mem::take(&mut all.debt) } else { Duration::ZERO }
        };
        if pause > Duration::ZERO {
            tokio::time::sleep(pause).await;
        }
        let mut all = self.all.borrow_mut();
        if all.signing == Some(self.number) {
            all.pass_on();
        }
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut all = self.all.borrow_mut();
        all.unfinished.remove(self.source, self.number);
        all.waiting.remove(self.source, self.number);
        if all.signing == Some(self.number) {
            all.pass_on();
        }
    }
}

/// Carries out the handshake of a new connection, then serves it.
pub(super) async fn serve(
    worker: Weak<RefCell<Worker>>,
    admitted: Admitted,
    stream: TcpStream,
    acceptor: Acceptor,
    timeout: Duration,
) {
    let handshake = match worker.upgrade() {
        Some(worker) => Handshakes::begin(&worker.borrow().shell.connections.handshakes, admitted.place.source()),
        None => return,
    };
    let evicted = admitted.place.evicted();
    let done = tokio::select! {
        done = carry_out(&worker, &handshake, stream, &acceptor) => done.map_err(CloseReason::from),
        () = tokio::time::sleep(timeout) => Err(CloseReason::HandshakeTimeout),
        () = handshake.evicted.notified() => Err(CloseReason::HandshakeEvicted),
        () = evicted.notified() => Err(CloseReason::Evicted),
    };
    drop(handshake);
    match done {
        Ok((stream, usage)) => {
            let Some(now) = worker.upgrade().map(|worker| worker.borrow().shell.now().monotonic) else { return };
            stream::serve(worker, admitted, stream, usage, now).await;
        }
        Err(close) => {
            if let Some(worker) = worker.upgrade() {
                worker.borrow_mut().connection_ended(&admitted.tuple, close);
            }
        }
    }
}

async fn carry_out(
    worker: &Weak<RefCell<Worker>>,
    handshake: &Handshake,
    stream: TcpStream,
    acceptor: &Acceptor,
) -> Result<(Stream<TcpStream>, Usage), Failure> {
    let now = || worker.upgrade().map(|worker| worker.borrow().shell.clock.elapsed()).unwrap_or_default();
    let hello = Acceptor::hello(stream).await?;
    in_turns(handshake, now, || acceptor.respond(hello)).await
}

/// Begins the rest of a handshake and polls it to its end. The beginning and every poll have a turn.
async fn in_turns<F: Future>(
    handshake: &Handshake,
    now: impl Fn() -> Duration,
    begin: impl FnOnce() -> F,
) -> F::Output {
    handshake.turn().await;
    let mut began = now();
    let mut rest = pin!(begin());
    let progress = Arc::<Progress>::default();
    let waker = Waker::from(Arc::clone(&progress));
    loop {
        // The first poll sends the response to the ClientHello.
        let polled = rest.as_mut().poll(&mut Context::from_waker(&waker));
        handshake.end_turn(now().saturating_sub(began)).await;
        if let Poll::Ready(output) = polled {
            return output;
        }
        progress.0.notified().await;
        handshake.turn().await;
        began = now();
    }
}

/// Notified when the client has sent more, or can receive more.
#[derive(Default)]
struct Progress(Notify);

impl Wake for Progress {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::rustls::HandshakeKind;

    use super::*;

    fn source(host: u8) -> Source {
        Source::of([192, 0, 2, host].into())
    }

    async fn is_notified(notify: &Notify) -> bool {
        tokio::time::timeout(Duration::ZERO, notify.notified()).await.is_ok()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_handshake_above_the_limit_evicts_the_oldest_of_the_fullest_source() {
        let all = Rc::<RefCell<Handshakes>>::default();
        let other = Handshakes::begin(&all, source(1));
        let mut handshakes: Vec<_> = (1..MAX_HANDSHAKES).map(|_| Handshakes::begin(&all, source(2))).collect();
        drop(handshakes.pop());
        let _fits = Handshakes::begin(&all, source(1));
        assert!(!is_notified(&handshakes[0].evicted).await);
        let _exceeds = Handshakes::begin(&all, source(3));
        assert!(is_notified(&handshakes[0].evicted).await);
        assert!(!is_notified(&handshakes[1].evicted).await && !is_notified(&other.evicted).await);
        assert_eq!(all.borrow().unfinished.len(), MAX_HANDSHAKES);
    }

    /// Returns whether the handshake has its turn without waiting.
    async fn has_turn(handshake: &Handshake) -> bool {
        handshake.all.borrow().signing == Some(handshake.number)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn handshakes_sign_one_after_the_other_and_their_sources_take_turns() {
        let all = Rc::<RefCell<Handshakes>>::default();
        let flood: Vec<_> = (0..100).map(|_| Handshakes::begin(&all, source(1))).collect();
        let order = RefCell::new(Vec::new());
        let single = Handshakes::begin(&all, source(2));
        let sign = async |handshake: &Handshake| {
            handshake.turn().await;
            assert!(has_turn(handshake).await);
            order.borrow_mut().push(handshake.number);
            handshake.end_turn(Duration::from_micros(500)).await;
        };
        let mut flood_signs: Vec<_> = flood.iter().map(|handshake| Box::pin(sign(handshake))).collect();
        let began = tokio::time::Instant::now();
        let all_of_them = std::future::poll_fn(|cx| {
            flood_signs.retain_mut(|sign| sign.as_mut().poll(cx).is_pending());
            if flood_signs.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::join!(all_of_them, sign(&single));
        let order = order.borrow().clone();
        assert_eq!(order.len(), 101);
        assert_eq!(order[..3], [0, single.number, 1]);
        // The pauses are as long as the signatures, of which the last ones are not paid yet.
        assert!(began.elapsed() >= Duration::from_micros(500 * 101 - 1_500), "{:?}", began.elapsed());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_handshake_that_ends_during_its_turn_passes_the_turn_on() {
        let all = Rc::<RefCell<Handshakes>>::default();
        let [first, second, third] = [1, 2, 3].map(|host| Handshakes::begin(&all, source(host)));
        first.turn().await;
        assert!(tokio::time::timeout(Duration::ZERO, second.turn()).await.is_err());
        assert!(tokio::time::timeout(Duration::ZERO, third.turn()).await.is_err());
        drop(second);
        drop(first);
        assert!(has_turn(&third).await);
        drop(third);
        assert_eq!(all.borrow().signing, None);
    }

    /// Lets the other future run until it waits.
    async fn let_others_run() {
        for _ in 0..100 {
            yield_now().await;
        }
    }

    // RFC 8446 §4.1.4: the server signs after the second ClientHello.
    #[tokio::test(flavor = "current_thread")]
    async fn a_handshake_with_a_second_hello_has_a_turn_for_it() {
        let (acceptor, mut client) = crate::net::tls::tests::session_without_usable_key_share();
        let (mut near, far) = tokio::io::duplex(64 * 1024);
        let all = Rc::<RefCell<Handshakes>>::default();
        let [other, handshake] = [1, 2].map(|host| Handshakes::begin(&all, source(host)));
        let served = async {
            let hello = Acceptor::hello(far).await.unwrap();
            in_turns(&handshake, || Duration::ZERO, || acceptor.respond(hello)).await
        };
        let driven = async {
            let mut exchange = async |expected: bool| {
                let mut bytes = Vec::new();
                client.write_tls(&mut bytes).unwrap();
                near.write_all(&bytes).await.unwrap();
                let_others_run().await;
                let mut response = vec![0; 16 * 1024];
                let read = tokio::time::timeout(Duration::ZERO, near.read(&mut response)).await;
                assert_eq!(read.is_ok(), expected);
                if let Ok(read) = read {
                    let mut response = &response[..read.unwrap()];
                    while client.read_tls(&mut response).unwrap() > 0 {
                        client.process_new_packets().unwrap();
                    }
                }
            };
            exchange(true).await;
            other.turn().await;
            exchange(false).await;
            other.end_turn(Duration::ZERO).await;
            exchange(true).await;
            exchange(false).await;
            assert_eq!(client.handshake_kind(), Some(HandshakeKind::FullWithHelloRetryRequest));
            assert!(!client.is_handshaking());
        };
        // The connection remains open until both have ended.
        assert!(tokio::join!(served, driven).0.is_ok());
    }
}
