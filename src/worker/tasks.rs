//! The tasks of a worker: one for each listener, one for each connection, one for all relay sockets, and one for the
//! mailbox. The main task ([`serve`]) runs the ticks.

use std::cell::RefCell;
use std::io;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::MissedTickBehavior;

use super::mailbox::ListenerChange;
use super::{BoundListener, Listener, ListenerSocket, Plan, Worker, connections, mailbox};
use crate::net::limits::{SpareFiles, too_many_open_files};
use crate::net::timer;
use crate::net::watch::{Events, Readable, Watch};
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
    let (worker, commands) = Worker::new(plan)?;
    WORKER.set(Rc::downgrade(&worker));
    let panicked = Rc::clone(&worker.borrow().shell.panicked);
    for listener in listeners {
        open_listener(&worker, listener)?;
    }
    spawn(&panicked, serve_relays(Rc::downgrade(&worker))?);
    spawn(&panicked, mailbox::serve(Rc::downgrade(&worker), commands));
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
    worker.shell.flush_to_clients();
    worker.abandon_data();
    worker.shell.count_drops();
    worker.shell.end_connections();
    worker.publish();
    Ok(())
}

/// Serves clients at a listener.
///
/// # Errors
/// If its socket cannot be registered with the runtime.
fn open_listener(worker: &Rc<RefCell<Worker>>, listener: BoundListener) -> io::Result<()> {
    let BoundListener { endpoint, socket, plain } = listener;
    let panicked = Rc::clone(&worker.borrow().shell.panicked);
    let task = match socket {
        ListenerSocket::Udp(socket) => {
            let listener = Rc::new(Listener::new(socket)?);
            let shell = &mut worker.borrow_mut().shell;
            shell.listeners.push(Rc::clone(&listener));
            shell.to_clients.add_listener();
            spawn(&panicked, serve_listener(Rc::clone(worker), listener))
        }
        ListenerSocket::Tcp(socket) => {
            let listener = TcpListener::from_std(socket)?;
            let (spare, guard) = (worker.borrow().shell.spare, Rc::clone(&panicked));
            spawn(&panicked, accept(Rc::downgrade(worker), guard, listener, spare, endpoint.transport, plain))
        }
    };
    worker.borrow_mut().listening.push((endpoint, task));
    Ok(())
}

/// Stops serving clients at a listener. Its socket is closed when the task that this returns has ended.
fn close_listener(worker: &mut Worker, endpoint: Endpoint) -> Option<JoinHandle<()>> {
    let at = worker.listening.iter().position(|(own, _)| *own == endpoint)?;
    let (_, task) = worker.listening.remove(at);
    task.abort();
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
    Some(task)
}

/// Changes the listeners of a running worker. Returns the tasks of those whose sockets are about to be closed.
pub(super) fn change_listeners(worker: &Rc<RefCell<Worker>>, change: ListenerChange) -> Vec<JoinHandle<()>> {
    let close = |endpoint| close_listener(&mut worker.borrow_mut(), endpoint);
    let closed = change.close.into_iter().filter_map(close).collect();
    for listener in change.open {
        let endpoint = listener.endpoint;
        if let Err(error) = open_listener(worker, listener) {
            tracing::error!(
                event = "listener-failed", address = %endpoint.address, transport = endpoint.transport.as_str(), %error,
                "a worker cannot serve clients at a new listener; restart the server"
            );
        }
    }
    closed
}

/// Accepts connections. It backs off after an error. The most frequent error is that the process has too many open
/// files.
async fn accept(
    worker: Weak<RefCell<Worker>>,
    panicked: Rc<Notify>,
    listener: TcpListener,
    spare: SpareFiles,
    transport: Transport,
    plain: bool,
) {
    'next: loop {
        match listener.accept().await {
            Ok((mut stream, _)) => {
                // The client waits, as if its connection could not be accepted.
                while !spare.permit(&stream) {
                    let Some(worker) = worker.upgrade() else { return };
                    worker.borrow_mut().accept_failed(&too_many_open_files());
                    drop(worker);
                    tokio::time::sleep(ACCEPT_BACK_OFF).await;
                    match renumbered(stream) {
                        Ok(again) => stream = again,
                        Err(_) => continue 'next,
                    }
                }
                let Some(this) = worker.upgrade() else { return };
                let accepted = this.borrow_mut().accept(&stream, transport);
                drop(this);
                if let Some(admitted) = accepted {
                    spawn(&panicked, connections::serve(Weak::clone(&worker), admitted, stream, plain));
                }
                // Connections that this one evicts are closed before the next one is accepted, so that their descriptors
                // are free.
                yield_now().await;
            }
            Err(error) => {
                let Some(worker) = worker.upgrade() else { return };
                worker.borrow_mut().accept_failed(&error);
                drop(worker);
                // A connection that broke before it was accepted does not delay the others.
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    tokio::time::sleep(ACCEPT_BACK_OFF).await;
                }
            }
        }
    }
}

/// Returns the connection with the lowest file number that is free.
fn renumbered(stream: TcpStream) -> io::Result<TcpStream> {
    let stream = stream.into_std()?;
    TcpStream::from_std(stream.try_clone().unwrap_or(stream))
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
            yield_now().await;
        }
    }
}

/// Lets other tasks run, or backs off after an error.
async fn wait_for_more(more: io::Result<bool>) {
    match more {
        Ok(false) => {}
        Ok(true) => yield_now().await,
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
