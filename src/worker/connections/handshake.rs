//! TLS handshakes of a worker: bounded in time, in bytes (by [`Acceptor`]), in number, and in their share of the worker.
//!
//! A signature of the server takes up to a few milliseconds. At most one is made per iteration of the event loop. While
//! packets arrive, the next one waits as long as the last ones took. So relayed data waits for at most one signature,
//! and at least half of the worker's time remains for it, even if the client closes the connection or the handshake is
//! evicted. The server signs after the first ClientHello, or after the second one if it requested another key share
//! (RFC 8446 §4.1.4), so every step of a handshake has a turn. Sources take turns: a source that starts many handshakes
//! delays mostly its own. Handshakes that continue take turns with those that begin, so a client whose first step has
//! waited among many sources does not wait as long again. A connection that the client has closed while it waited costs
//! no signature.

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::{Admitted, CloseReason};
use crate::by_source::{BySource, Source};
use crate::net::tls::{Acceptor, Failure, Stream, Usage};
use crate::turn::Instant;
use crate::worker::Worker;
use crate::worker::tasks::yield_to_tasks;

#[cfg(test)]
mod tests;

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
    turn: Turn,
    beginning: Queue,
    continuing: Queue,
    /// Whether the last turn was that of a handshake that continues.
    continued: bool,
    /// The time that the last signatures took.
    debt: Duration,
    /// Notified at the end of an iteration in which no packet arrived.
    idle: Rc<Notify>,
}

/// Handshakes that wait for their turn to sign.
#[derive(Debug, Default)]
struct Queue {
    /// Each is notified when its turn has come.
    waiting: BySource<Rc<Notify>>,
    /// The source of the last turn.
    last: Option<Source>,
}

/// What a handshake waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The response to its first ClientHello.
    Begin,
    /// The response to what the client sent after that.
    Continue,
}

/// Who may sign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Turn {
    #[default]
    Free,
    Of(u64),
    /// None: other tasks have their share.
    Paused,
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

    /// Ends a pause, if there is one, after an iteration of the event loop in which no packet arrived.
    pub(super) fn worker_is_idle(&self) {
        self.idle.notify_waiters();
    }

    fn queue(&mut self, step: Step) -> &mut Queue {
        match step {
            Step::Begin => &mut self.beginning,
            Step::Continue => &mut self.continuing,
        }
    }

    fn take_turn(&mut self, step: Step, source: Source, number: u64) {
        (self.turn, self.continued) = (Turn::Of(number), step == Step::Continue);
        self.queue(step).last = Some(source);
    }

    /// Gives the turn to the next handshake.
    fn pass_on(&mut self) {
        self.turn = Turn::Free;
        let order = if self.continued { [Step::Begin, Step::Continue] } else { [Step::Continue, Step::Begin] };
        for step in order {
            let queue = self.queue(step);
            if let Some((source, number, turn)) = queue.waiting.pop_next(queue.last) {
                self.take_turn(step, source, number);
                return turn.notify_one();
            }
        }
    }
}

impl Handshake {
    /// Waits until this handshake may sign.
    async fn turn(&self, step: Step) {
        let turn = {
            let mut all = self.all.borrow_mut();
            if all.turn == Turn::Free {
                return all.take_turn(step, self.source, self.number);
            }
            let turn = Rc::<Notify>::default();
            all.queue(step).waiting.insert(self.source, self.number, Rc::clone(&turn));
            turn
        };
        turn.notified().await;
    }

    /// Ends the turn. The next one begins after other tasks have had their share, whatever happens to this handshake.
    fn end_turn(&self, took: Duration) {
        let mut this = self.all.borrow_mut();
        this.turn = Turn::Paused;
        this.debt += took;
        let pause = if this.debt > MAX_DEBT { std::mem::take(&mut this.debt) } else { Duration::ZERO };
        let (all, idle) = (Rc::clone(&self.all), Rc::clone(&this.idle));
        tokio::task::spawn_local(async move {
            if pause == Duration::ZERO {
                yield_to_tasks().await;
            } else {
                // The event loop looks for packets between this wait and the next signature.
                let _ = tokio::time::timeout(pause, idle.notified()).await;
            }
            all.borrow_mut().pass_on();
        });
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut all = self.all.borrow_mut();
        all.unfinished.remove(self.source, self.number);
        for step in [Step::Begin, Step::Continue] {
            all.queue(step).waiting.remove(self.source, self.number);
        }
        if all.turn == Turn::Of(self.number) {
            all.pass_on();
        }
    }
}

/// A connection whose handshake is complete, and when that was.
pub(super) struct Done {
    pub(super) admitted: Admitted,
    pub(super) stream: Stream<TcpStream>,
    pub(super) usage: Usage,
    pub(super) at: Instant,
}

/// Carries out the handshake of a new connection. Without it, the connection ends.
pub(super) async fn complete(
    worker: Weak<RefCell<Worker>>,
    admitted: Admitted,
    stream: TcpStream,
    acceptor: Acceptor,
    timeout: Duration,
) -> Option<Done> {
    let (handshake, began) = match worker.upgrade() {
        Some(worker) => {
            let shell = &worker.borrow().shell;
            (Handshakes::begin(&shell.connections.handshakes, admitted.place.source()), shell.now().monotonic)
        }
        None => return None,
    };
    let evicted = admitted.place.evicted();
    let done = tokio::select! {
        // An evicted handshake whose turn has come does not sign.
        biased;
        () = handshake.evicted.notified() => Err(CloseReason::HandshakeEvicted),
        () = evicted.notified() => Err(CloseReason::Evicted),
        done = carry_out(&worker, &handshake, stream, &acceptor) => done.map_err(CloseReason::from),
        () = tokio::time::sleep(timeout) => Err(CloseReason::HandshakeTimeout),
    };
    drop(handshake);
    let this = worker.upgrade()?;
    let at = this.borrow().shell.now().monotonic;
    let result = done.as_ref().map(|_| at.since(began)).map_err(|close| *close);
    this.borrow().shell.statistics.count_handshake(result);
    match done {
        Ok((stream, usage)) => Some(Done { admitted, stream, usage, at }),
        Err(close) => {
            this.borrow_mut().connection_ended(&admitted.tuple, close);
            None
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
    handshake.turn(Step::Begin).await;
    if is_closed(hello.get_ref()) {
        return Err(Failure::Truncated);
    }
    in_turns(handshake, now, || acceptor.respond(hello)).await
}

/// Returns whether the client has closed the connection, without a wait.
fn is_closed(stream: &TcpStream) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    match stream.try_io(Interest::READABLE, || SockRef::from(stream).peek(&mut byte)) {
        Ok(length) => length == 0,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}

/// Begins the rest of a handshake that has its turn, and polls it to its end. Every later poll has a turn, too.
async fn in_turns<F: Future>(
    handshake: &Handshake,
    now: impl Fn() -> Duration,
    begin: impl FnOnce() -> F,
) -> F::Output {
    let mut began = now();
    let mut rest = pin!(begin());
    let progress = Arc::<Progress>::default();
    let waker = Waker::from(Arc::clone(&progress));
    loop {
        // The first poll sends the response to the ClientHello.
        let polled = rest.as_mut().poll(&mut Context::from_waker(&waker));
        handshake.end_turn(now().saturating_sub(began));
        if let Poll::Ready(output) = polled {
            return output;
        }
        progress.0.notified().await;
        handshake.turn(Step::Continue).await;
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
