//! The tasks of a worker: one for each listener, one for each connection, one for all relay sockets, and those for the
//! mailbox. The main task ([`serve`]) runs the ticks.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::MissedTickBehavior;

use super::mailbox::{AlteredListener, FailedListener, ListenerChange, Mailbox};
use super::{BoundListener, Listener, ListenerSocket, Listening, Plan, Worker, connections, lookups, mailbox, offload};
use crate::net::limits::{SpareFiles, too_many_open_files};
use crate::net::watch::{Events, Readable, Watch};
use crate::net::{tcp, timer, watch};
use crate::proxy_protocol::Addresses;
use crate::transport::{Endpoint, Transport};

/// The time for which reading from a socket backs off after an error.
const BACK_OFF: Duration = Duration::from_millis(10);

/// The time for which accepting connections backs off after an error.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(100);

/// The interval of ticks, which advance the time of the core and publish the statistics.
const TICK: Duration = Duration::from_secs(1);

/// The time that clients on connections get to read their last responses when the worker stops.
const LAST_RESPONSES: Duration = Duration::from_millis(500);

/// Runs a worker until it stops.
pub(super) async fn serve(mut plan: Plan, started: impl FnOnce()) -> io::Result<()> {
    let mut stop = plan.stop.clone();
    let listeners = std::mem::take(&mut plan.listeners);
    let (worker, Mailbox { commands, connections, looked_up }) = Worker::new(plan)?;
    WORKER.set(Rc::downgrade(&worker));
    let panicked = Rc::clone(&worker.borrow().shell.panicked);
    for listener in listeners {
        open_listener(&worker, listener)?;
    }
    spawn(&panicked, serve_relays(Rc::downgrade(&worker))?);
    spawn(&panicked, mailbox::serve(Rc::downgrade(&worker), commands));
    spawn(&panicked, mailbox::serve_connections(Rc::downgrade(&worker), connections));
    let began = Rc::clone(worker.borrow().shell.lookups.began());
    spawn(&panicked, lookups::serve(Rc::downgrade(&worker), looked_up, began));
    spawn(&panicked, offload::serve(Rc::downgrade(&worker)));
    started();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stopped = async {
        // If the sender is dropped, the process ends, and the worker stops as well.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            () = &mut stopped => break,
            () = panicked.notified() => return Err(io::Error::other("a task panicked")),
            _ = ticks.tick() => {
                while advance(&worker) {
                    yield_to_tasks().await;
                }
                let mut worker = worker.borrow_mut();
                let now = worker.shell.now();
                worker.shell.tick(now);
                worker.drop_old_data();
                worker.forget_asked();
            }
        }
    }
    let none_left = {
        let shell = &mut worker.borrow_mut().shell;
        let now = shell.now();
        shell.stop(now);
        Rc::clone(shell.connections.none_left())
    };
    let last_responses = async {
        while !worker.borrow().shell.connections.is_empty() {
            none_left.notified().await;
        }
    };
    // A client that does not read in time loses its last responses.
    let _ = tokio::time::timeout(LAST_RESPONSES, last_responses).await;
    let mut worker = worker.borrow_mut();
    while worker.resume_requests(usize::MAX) {}
    worker.shell.flush_to_clients();
    worker.abandon_data();
    worker.shell.count_drops();
    worker.shell.end_connections();
    worker.publish();
    Ok(())
}

/// Ends what has expired, of some allocations. Returns whether there may be more.
fn advance(worker: &RefCell<Worker>) -> bool {
    let shell = &mut worker.borrow_mut().shell;
    let now = shell.now();
    shell.advance(now)
}

/// Serves clients at a listener.
///
/// # Errors
/// If its socket cannot be registered with the runtime.
fn open_listener(worker: &Rc<RefCell<Worker>>, listener: BoundListener) -> io::Result<()> {
    let BoundListener { endpoint, socket, plain } = listener;
    let panicked = Rc::clone(&worker.borrow().shell.panicked);
    let (task, acceptor) = match socket {
        ListenerSocket::Udp(socket) => {
            let listener = Rc::new(Listener::new(socket)?);
            let shell = &mut worker.borrow_mut().shell;
            shell.listeners.push(Rc::clone(&listener));
            shell.to_clients.add_listener();
            (spawn(&panicked, serve_listener(Rc::clone(worker), listener)), None)
        }
        ListenerSocket::Tcp(socket) => {
            let listener = watch::readable(socket)?;
            // The last step that may fail, because the kernel resets the connections of a listener that is closed.
            tcp::listen(&listener)?;
            let kind = Cell::new(Kind { transport: endpoint.transport, plain });
            let (spare, panicked) = (worker.borrow().shell.spare.clone(), Rc::clone(&panicked));
            let acceptor = Rc::new(Acceptor { worker: Rc::downgrade(worker), panicked, listener, spare, kind });
            (spawn(&acceptor.panicked, accept(Rc::clone(&acceptor))), Some(acceptor))
        }
    };
    worker.borrow_mut().listening.push(Listening { endpoint, task, acceptor });
    Ok(())
}

/// Serves a connection that a front has accepted, like one of a TCP listener.
pub(super) fn adopt(worker: &Weak<RefCell<Worker>>, connection: std::net::TcpStream, addresses: Addresses) {
    let Some(this) = worker.upgrade() else { return };
    // If this fails, the client has gone, or it connects again.
    let Ok(stream) = TcpStream::from_std(connection) else { return };
    let (accepted, panicked) = {
        let mut this = this.borrow_mut();
        (this.admit(&stream, addresses, Transport::Tcp), Rc::clone(&this.shell.panicked))
    };
    if let Some(admitted) = accepted {
        spawn(&panicked, connections::serve(Weak::clone(worker), admitted, stream, true));
    }
}

/// Stops serving clients at a listener. [`Changed::complete`] closes its socket.
fn close_listener(worker: &mut Worker, endpoint: Endpoint) -> Option<Listening> {
    let at = worker.listening.iter().position(|own| own.endpoint == endpoint)?;
    let closed = worker.listening.remove(at);
    closed.task.abort();
    let shell = &mut worker.shell;
    let of = |listener: &Rc<Listener>| listener.address == endpoint.address;
    if endpoint.transport == Transport::Udp
        && let Some(at) = shell.listeners.iter().position(of)
    {
        shell.flush_to_clients();
        shell.count_drops();
        shell.to_clients.remove_listener(at);
        shell.listeners.remove(at);
    }
    Some(closed)
}

fn alter_listener(worker: &mut Worker, altered: AlteredListener) -> Option<(Rc<Acceptor>, Kind)> {
    let AlteredListener { endpoint, transport, plain } = altered;
    let own = worker.listening.iter_mut().find(|own| own.endpoint == endpoint)?;
    own.endpoint.transport = transport;
    Some((Rc::clone(own.acceptor.as_ref()?), Kind { transport, plain }))
}

/// A change of the listeners that is not complete yet.
#[must_use]
pub(super) struct Changed {
    closed: Vec<Listening>,
    altered: Vec<(Rc<Acceptor>, Kind)>,
    failed: Vec<FailedListener>,
}

/// Changes the listeners of a running worker.
pub(super) fn change_listeners(worker: &Rc<RefCell<Worker>>, change: ListenerChange) -> Changed {
    let ListenerChange { open, alter, close: closing } = change;
    let close = |endpoint| close_listener(&mut worker.borrow_mut(), endpoint);
    let closed = closing.into_iter().filter_map(close).collect();
    let altered = alter.into_iter().filter_map(|altered| alter_listener(&mut worker.borrow_mut(), altered)).collect();
    let mut failed = Vec::new();
    for listener in open {
        let endpoint = listener.endpoint;
        if let Err(error) = open_listener(worker, listener) {
            worker.borrow().shell.events.listener_failed(endpoint, &error);
            failed.push(FailedListener { endpoint, error });
        }
    }
    Changed { closed, altered, failed }
}

impl Changed {
    /// Serves the connections that wait at the listeners, as before the change. Otherwise the kernel would reset them.
    /// Returns the new listeners that could not be opened, when the sockets of the closed ones are closed.
    pub(super) async fn complete(self) -> Vec<FailedListener> {
        for (acceptor, kind) in self.altered {
            acceptor.accept_waiting().await;
            acceptor.kind.set(kind);
        }
        for Listening { task, acceptor, .. } in self.closed {
            // It serves each connection that it has accepted, because it is aborted only while it waits.
            let _ = task.await;
            if let Some(acceptor) = acceptor {
                acceptor.accept_waiting().await;
            }
        }
        self.failed
    }
}

/// The clients that a listener serves.
#[derive(Clone, Copy, Debug)]
struct Kind {
    transport: Transport,
    /// As in [`BoundListener`].
    plain: bool,
}

/// Accepts connections at a listener.
#[derive(Debug)]
pub(super) struct Acceptor {
    worker: Weak<RefCell<Worker>>,
    panicked: Rc<Notify>,
    listener: Readable,
    spare: SpareFiles,
    kind: Cell<Kind>,
}

impl Acceptor {
    /// Serves a connection. Returns whether the worker still runs.
    async fn admit(&self, stream: TcpStream) -> bool {
        let Kind { transport, plain } = self.kind.get();
        let Some(worker) = self.worker.upgrade() else { return false };
        let accepted = worker.borrow_mut().accept(&stream, transport);
        drop(worker);
        if let Some(admitted) = accepted {
            spawn(&self.panicked, connections::serve(Weak::clone(&self.worker), admitted, stream, plain));
        }
        // Connections that this one evicts are closed before the next one is accepted, so that their descriptors are
        // free.
        yield_to_tasks().await;
        true
    }

    /// Counts and logs a failure to accept a connection. Returns whether the worker still runs.
    fn failed(&self, error: &io::Error) -> bool {
        let Some(worker) = self.worker.upgrade() else { return false };
        worker.borrow_mut().accept_failed(error);
        true
    }

    /// Accepts a connection that waits, unless it would use a spare file. It then waits on: until it is accepted later,
    /// or until the listener is closed, which resets it.
    fn accept_now(&self) -> io::Result<TcpStream> {
        if self.spare.have_room(&self.listener) {
            tcp::accept_now(&self.listener).and_then(TcpStream::from_std)
        } else {
            Err(too_many_open_files())
        }
    }

    /// Serves the connections that wait.
    async fn accept_waiting(&self) {
        // A listener whose clients never stop connecting is left with as many as can wait.
        for _ in 0..tcp::BACKLOG {
            let goes_on = match self.accept_now() {
                Ok(stream) => self.admit(stream).await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => self.failed(&error) && error.kind() == io::ErrorKind::ConnectionAborted,
            };
            if !goes_on {
                return;
            }
        }
    }
}

/// Accepts connections. It backs off after an error. The most frequent error is that the process has too many open
/// files.
async fn accept(acceptor: Rc<Acceptor>) {
    loop {
        let accepted = match acceptor.listener.readable().await {
            Err(error) => Err(error),
            Ok(mut ready) => match acceptor.accept_now() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                    continue;
                }
                accepted => accepted,
            },
        };
        match accepted {
            Ok(stream) => {
                if !acceptor.admit(stream).await {
                    return;
                }
            }
            Err(error) => {
                if !acceptor.failed(&error) {
                    return;
                }
                // A connection that broke before it was accepted does not delay the others.
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
            tracing::debug!(event = "receive-failed", address = %listener.address, %error, "listener not readable");
            tokio::time::sleep(BACK_OFF).await;
            continue;
        }
        let more = {
            let mut worker = worker.borrow_mut();
            let now = worker.shell.now();
            worker.serve_clients(now, &listener)
        };
        wait_for_more(more).await;
    }
}

/// Spawns a task whose panic ends the worker. A panic is a bug, and a worker cannot go on without one of its tasks.
fn spawn(panicked: &Rc<Notify>, task: impl Future<Output = ()> + 'static) -> JoinHandle<()> {
    let guard = PanicGuard(Rc::clone(panicked));
    let guarded = async move {
        let _guard = guard;
        task.await;
    };
    tokio::task::spawn_local(guarded)
}

struct PanicGuard(Rc<Notify>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.notify_one();
        }
    }
}

/// Serves the relay sockets. One descriptor reports which of them are ready to read.
/// A tick wakes the task if it leaves sockets ready, because no event reports these again.
///
/// # Errors
/// Those of [`Watch::readable`](crate::net::watch::Watch::readable).
pub(super) fn serve_relays(worker: Weak<RefCell<Worker>>) -> io::Result<impl Future<Output = ()> + 'static> {
    let strong = worker.upgrade().ok_or(io::ErrorKind::NotFound)?;
    let (watch, left) = {
        let relays = &strong.borrow().shell.relays;
        (Rc::clone(relays.watch()), Rc::clone(relays.left()))
    };
    let readable = watch.readable()?;
    Ok(serve_watched(worker, readable, watch, left))
}

async fn serve_watched(worker: Weak<RefCell<Worker>>, readable: Readable, watch: Rc<Watch>, left: Rc<Notify>) {
    let (mut events, mut more) = (Events::default(), false);
    loop {
        if !more {
            let ready = tokio::select! {
                ready = readable.readable() => ready.map(drop),
                () = left.notified() => Ok(()),
            };
            if let Err(error) = ready {
                tracing::error!(event = "relay-watch-failed", %error, "relay sockets cannot be watched");
                tokio::time::sleep(BACK_OFF).await;
            }
        }
        // If no other socket is ready, the runtime waits for the next event without another system call.
        let read = readable.try_io(Interest::READABLE, |_| match watch.ready(&mut events)? {
            true => Err(io::ErrorKind::WouldBlock.into()),
            false => Ok(()),
        });
        more = {
            let Some(worker) = worker.upgrade() else { return };
            let mut worker = worker.borrow_mut();
            events.drain().for_each(|ready| worker.shell.relays.set_ready(ready));
            let now = worker.shell.now();
            worker.shell.serve_relays(now) || read.is_ok()
        };
        if more {
            yield_to_tasks().await;
        }
    }
}

/// Lets other tasks run, or backs off after an error.
async fn wait_for_more(more: io::Result<bool>) {
    match more {
        Ok(false) => {}
        Ok(true) => yield_to_tasks().await,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(error) => {
            tracing::debug!(event = "receive-failed", %error, "cannot receive");
            tokio::time::sleep(BACK_OFF).await;
        }
    }
}

thread_local! {
    /// The worker of this thread.
    static WORKER: RefCell<Weak<RefCell<Worker>>> = const { RefCell::new(Weak::new()) };
}

/// Lets other tasks run, and the runtime look for events.
pub(super) async fn yield_to_tasks() {
    let worker = || WORKER.with_borrow(Weak::upgrade);
    let iteration = worker().map(|worker| worker.borrow().shell.iterations.number());
    yield_now().await;
    if let (Some(worker), Some(iteration)) = (worker(), iteration) {
        worker.borrow_mut().shell.next_iteration(iteration);
    }
}

/// Begins an iteration: the thread has waited for events.
pub(super) fn begin_iteration() {
    if let Some(worker) = WORKER.with_borrow(Weak::upgrade) {
        worker.borrow_mut().shell.begin_iteration();
    }
}

/// Ends an iteration: every task waits, and the thread is about to wait.
pub(super) fn end_iteration() {
    let worker = WORKER.with_borrow(Weak::upgrade);
    if let Some(pause) = worker.and_then(|worker| worker.borrow_mut().shell.end_iteration()) {
        timer::pause(pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn only_a_panic_of_a_task_is_reported() {
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
