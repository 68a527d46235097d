//! The tasks of a worker: one for each listener, one for all relay sockets, and the one that keeps time.

use std::cell::RefCell;
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch as channel};
use tokio::task::yield_now;
use tokio::time::MissedTickBehavior;

use super::{Listener, Plan, Totals, Worker, handshake, stream};
use crate::net::timer;
use crate::net::tls::{Acceptor, Usage};
use crate::net::watch::{Events, Readable, Watch};
use crate::turn::Transport;

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
    let watch = Rc::clone(&worker.borrow().watch);
    spawn(&panicked, serve_relays(Rc::downgrade(&worker), watch.readable()?, watch));
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
    tls: Option<channel::Receiver<Acceptor>>,
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
        if let Err(error) = listener.socket.readable().await.map(drop) {
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

/// Starts a task whose panic ends the worker: a panic is a bug, and half a worker helps nobody.
fn spawn(panicked: &Rc<Notify>, task: impl Future<Output = ()> + 'static) {
    let guard = PanicGuard(Rc::clone(panicked));
    let guarded = async move {
        let _guard = guard;
        task.await;
    };
    tokio::task::spawn_local(guarded);
}

struct PanicGuard(Rc<Notify>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.notify_one();
        }
    }
}

/// Serves the relay sockets, of which one descriptor says which have something to read.
async fn serve_relays(worker: Weak<RefCell<Worker>>, readable: Readable, watch: Rc<Watch>) {
    let (mut events, mut more) = (Events::default(), false);
    loop {
        if !more && let Err(error) = readable.readable().await {
            tracing::error!(%error, "relay sockets cannot be watched");
            tokio::time::sleep(BACK_OFF).await;
        }
        // If those are all, the runtime has to wait for news: it is told without another call.
        let told = readable.try_io(Interest::READABLE, |_| match watch.ready(&mut events)? {
            true => Err(io::ErrorKind::WouldBlock.into()),
            false => Ok(()),
        });
        more = {
            let Some(worker) = worker.upgrade() else { return };
            let mut worker = worker.borrow_mut();
            events.drain().for_each(|ready| worker.relay_ready(ready));
            let now = worker.now();
            worker.serve_relays(now) || told.is_ok()
        };
        if more {
            yield_now().await;
        }
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
