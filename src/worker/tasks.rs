//! The tasks of a worker: one for each listener, one for each relay socket, and the one that keeps time.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, yield_now};
use tokio::time::MissedTickBehavior;

use super::{Listener, Plan, Totals, Worker, handshake, stream};
use crate::net::timer;
use crate::net::tls::{Acceptor, Usage};
use crate::turn::{RelayId, Transport};

/// How long a socket is left alone after an error that is none of "nothing there".
const BACK_OFF: Duration = Duration::from_millis(10);

/// How long after an error no connection is accepted.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(100);

/// How often a worker tells the core that time passes, and others that its loop turns.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long clients on connections have at the end to take the answers that are due to them.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// Runs a worker to its end.
pub(super) async fn serve(mut plan: Plan, started: impl FnOnce()) -> io::Result<Totals> {
    let (mut stop, heartbeat) = (plan.stop.clone(), Arc::clone(&plan.heartbeat));
    let mut streams = Vec::new();
    for listener in std::mem::take(&mut plan.tcp_listeners) {
        streams.push((TcpListener::from_std(listener)?, None));
    }
    for listener in std::mem::take(&mut plan.tls_listeners) {
        streams.push((TcpListener::from_std(listener)?, plan.tls.clone()));
    }
    let worker = Worker::new(plan)?;
    WORKER.set(Rc::downgrade(&worker));
    let (listeners, panicked) = (worker.borrow().listeners.clone(), Rc::clone(&worker.borrow().panicked));
    for (listener, tls) in streams {
        spawn(&panicked, accept(Rc::downgrade(&worker), Rc::clone(&panicked), listener, tls));
    }
    for listener in listeners {
        spawn(&panicked, serve_listener(Rc::clone(&worker), listener));
    }
    started();
    let mut ticks = tokio::time::interval(HEARTBEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stopped = async {
        // The sender is gone only if the process is ending otherwise; that is a stop too.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            () = &mut stopped => break,
            () = panicked.notified() => return Err(io::Error::other("a task panicked")),
            _ = ticks.tick() => {
                let mut worker = worker.borrow_mut();
                let now = worker.now();
                worker.tick(now);
                heartbeat.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    let disconnected = {
        let mut worker = worker.borrow_mut();
        let now = worker.now();
        worker.stop(now);
        Rc::clone(&worker.disconnected)
    };
    let last_answers = async {
        while !worker.borrow().connections.is_empty() {
            disconnected.notified().await;
        }
    };
    // Whoever does not read by then does not get them.
    let _ = tokio::time::timeout(LAST_ANSWERS, last_answers).await;
    let mut worker = worker.borrow_mut();
    worker.flush_to_clients();
    worker.connection_counters.server_stopped();
    Ok(Totals { packets: worker.counters.clone(), connections: worker.connection_counters.clone() })
}

/// Accepts connections for ever: an error is over when a descriptor is free again, and no reason to give up.
async fn accept(
    worker: Weak<RefCell<Worker>>,
    panicked: Rc<Notify>,
    listener: TcpListener,
    tls: Option<watch::Receiver<Acceptor>>,
) {
    let transport = if tls.is_some() { Transport::Tls } else { Transport::Tcp };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let Some(this) = worker.upgrade() else { return };
                let admitted = this.borrow_mut().admit(&stream, transport);
                drop(this);
                if let Some((tuple, ticket)) = admitted {
                    let worker = Weak::clone(&worker);
                    match &tls {
                        Some(tls) => {
                            let acceptor = tls.borrow().clone();
                            spawn(&panicked, handshake::serve(worker, tuple, ticket, stream, acceptor));
                        }
                        None => {
                            spawn(&panicked, stream::serve(worker, tuple, ticket, stream, Usage::Turn));
                        }
                    }
                }
            }
            Err(error) => {
                let Some(worker) = worker.upgrade() else { return };
                worker.borrow_mut().accept_failed(&error);
                drop(worker);
                // A connection that broke before it was accepted is no reason to keep the others waiting.
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    tokio::time::sleep(ACCEPT_BACK_OFF).await;
                }
            }
        }
    }
}

async fn serve_listener(worker: Rc<RefCell<Worker>>, listener: Rc<Listener>) {
    loop {
        if let Err(error) = listener.socket.readable().await {
            tracing::debug!(address = %listener.address, %error, "listener not readable");
            tokio::time::sleep(BACK_OFF).await;
            continue;
        }
        let more = {
            let mut worker = worker.borrow_mut();
            let now = worker.now();
            worker.serve_clients(now, &listener)
        };
        pause(more).await;
    }
}

/// The task that reads a relay socket.
pub(super) struct Reader {
    /// What the task does, within reach of the worker: it has a part in the socket.
    future: Rc<RefCell<Option<LocalFuture>>>,
    task: AbortHandle,
}

type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

impl Reader {
    pub(super) fn spawn(
        worker: Weak<RefCell<Worker>>,
        panicked: &Rc<Notify>,
        relay: RelayId,
        socket: &Rc<UdpSocket>,
    ) -> Self {
        let future: LocalFuture = Box::pin(serve_relay(worker, relay, Rc::clone(socket)));
        let future = Rc::new(RefCell::new(Some(future)));
        let polled = Rc::clone(&future);
        let task = spawn(
            panicked,
            poll_fn(move |cx| match polled.borrow_mut().as_mut() {
                Some(future) => future.as_mut().poll(cx),
                None => Poll::Ready(()),
            }),
        );
        Self { future, task }
    }

    /// Ends the task, which has no part in the socket any more when this returns. An abort alone would take until the
    /// task's next turn.
    pub(super) fn end(&self) {
        self.task.abort();
        // It is not being polled: nothing that a peer sends ends an allocation.
        let future = self.future.try_borrow_mut().ok().and_then(|mut future| future.take());
        debug_assert!(future.is_some(), "a relay socket is not closed by its own task, and once");
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("task", &self.task).finish_non_exhaustive()
    }
}

/// Starts a task whose panic ends the worker: a panic is a bug, and half a worker helps nobody.
fn spawn(panicked: &Rc<Notify>, task: impl Future<Output = ()> + 'static) -> AbortHandle {
    let guard = PanicGuard(Rc::clone(panicked));
    let guarded = async move {
        let _guard = guard;
        task.await;
    };
    tokio::task::spawn_local(guarded).abort_handle()
}

struct PanicGuard(Rc<Notify>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.notify_one();
        }
    }
}

async fn serve_relay(worker: Weak<RefCell<Worker>>, relay: RelayId, socket: Rc<UdpSocket>) {
    let lost = Cell::default();
    loop {
        let Ok(ready) = socket.ready(Interest::READABLE | Interest::ERROR).await else {
            tokio::time::sleep(BACK_OFF).await;
            continue;
        };
        let more = {
            let Some(worker) = worker.upgrade() else { return };
            let mut worker = worker.borrow_mut();
            let now = worker.now();
            let more_errors = ready.is_error() && worker.serve_errors(now, relay, &socket, None);
            match worker.serve_peers(now, relay, &socket, &lost) {
                // Whoever floods us with ICMP errors does not keep the others waiting.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && more_errors => Ok(true),
                served => served.map(|more| more || more_errors),
            }
        };
        pause(more).await;
    }
}

/// Waits until a socket's turn comes again, by whether there was more.
async fn pause(more: io::Result<bool>) {
    match more {
        Ok(false) => {}
        Ok(true) => yield_now().await,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(error) => {
            tracing::debug!(%error, "cannot receive");
            tokio::time::sleep(BACK_OFF).await;
        }
    }
}

thread_local! {
    /// The worker of this thread.
    static WORKER: RefCell<Weak<RefCell<Worker>>> = const { RefCell::new(Weak::new()) };
}

/// Runs when every task waits, before the thread does.
pub(super) fn end_turn() {
    let worker = WORKER.with_borrow(Weak::upgrade);
    if let Some(pause) = worker.and_then(|worker| worker.borrow_mut().end_turn()) {
        timer::pause(pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_panic_in_a_task_is_told_and_the_end_of_one_is_not() {
        let panicked = Rc::new(Notify::new());
        let tasks = tokio::task::LocalSet::new();
        tasks
            .run_until(async {
                spawn(&panicked, async {});
                yield_now().await;
                assert!(tokio::time::timeout(Duration::ZERO, panicked.notified()).await.is_err());
                spawn(&panicked, async { panic!("a bug, planted by a test") });
                panicked.notified().await;
            })
            .await;
    }
}
