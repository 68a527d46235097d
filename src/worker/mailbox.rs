//! Commands to a worker, from control and from other workers.
//!
//! Each worker has a bounded channel, which it serves in small steps between batches of packets. Each command of control
//! has a response, unless the worker has ended. Connections that a front hands over have a channel of their own, so that a
//! flood of them does not hold up commands, and so do the responses of the user database.

use std::cell::RefCell;
use std::io;
use std::net::TcpStream;
use std::rc::Weak;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::connections::EvictionRequest;
use super::lookups::LookedUp;
use super::tasks::{self, yield_to_tasks};
use super::{BoundListener, Described, Snapshot, Worker};
use crate::proxy_protocol::Addresses;
use crate::transport::{Endpoint, Transport};
use crate::turn::{AllocationId, AllocationInfo, Cursor, Filter, Operator, Page};

/// The maximum number of commands that wait for a worker, and that of connections.
const CAPACITY: usize = 16;

/// The maximum number of responses of the user database that wait for a worker: one for each request that waits for one.
const LOOKED_UP: usize = 256;

/// The number of allocations that a worker reviews or lists before it serves packets again.
const BUDGET: usize = 16;

/// The number of allocations that a worker ends before it serves packets again. Each may have many channels.
const ENDED: usize = 2;

/// The number of allocations that a worker looks at before it serves packets again, if it does nothing with most of them.
const LOOKS: usize = 128;

/// A command to a worker.
#[derive(Debug)]
pub(crate) enum Command {
    /// Replace the configuration and listeners, and revoke everything that the new configuration does not allow.
    /// The response is what could not be opened.
    Reconfigure { snapshot: Arc<Snapshot>, listeners: ListenerChange, done: oneshot::Sender<Vec<FailedListener>> },
    /// List one page of the allocations that a filter accepts, starting at the cursor.
    List { cursor: Cursor, filter: Arc<Filter>, response: oneshot::Sender<Page> },
    /// List the oldest allocations, up to `most`, the oldest first.
    Oldest { most: usize, response: oneshot::Sender<Vec<AllocationInfo>> },
    /// Describe an allocation.
    Describe { id: AllocationId, response: oneshot::Sender<Option<Described>> },
    /// End allocations. The response is the number of those that existed.
    End { ids: Vec<AllocationId>, operator: Operator, response: oneshot::Sender<usize> },
    /// Publish the gauges of the statistics now. Otherwise they are published once per second.
    Publish { done: oneshot::Sender<()> },
    /// Evict a connection for another worker. There is no response.
    Evict(EvictionRequest),
}

/// A change of the listeners of a worker.
#[derive(Debug, Default)]
pub(crate) struct ListenerChange {
    pub(crate) open: Vec<BoundListener>,
    pub(crate) alter: Vec<AlteredListener>,
    /// The endpoints that the worker no longer serves, with their actual ports. Connections on them continue.
    pub(crate) close: Vec<Endpoint>,
}

/// A TCP listener that keeps its socket and serves other clients after the change. Connections on it continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AlteredListener {
    /// The endpoint before the change, with its actual port.
    pub(crate) endpoint: Endpoint,
    pub(crate) transport: Transport,
    /// As in [`BoundListener`].
    pub(crate) plain: bool,
}

/// A new listener at which a worker cannot serve clients.
#[derive(Debug)]
pub(crate) struct FailedListener {
    pub(crate) endpoint: Endpoint,
    pub(crate) error: io::Error,
}

impl ListenerChange {
    /// Whether the same UDP listeners serve their clients as before.
    fn keeps_udp(&self) -> bool {
        let opened = self.open.iter().map(|listener| listener.endpoint);
        opened.chain(self.close.iter().copied()).all(|endpoint| endpoint.transport.is_connection())
    }
}

/// The worker has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the worker has ended")]
pub(crate) struct WorkerEnded;

/// The end of the mailbox of a worker that control and other workers have.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    connections: mpsc::Sender<Connection>,
    looked_up: mpsc::Sender<LookedUp>,
}

/// A connection that a front has accepted, between these addresses.
type Connection = (TcpStream, Addresses);

/// The worker's end of its mailbox.
#[derive(Debug)]
pub(crate) struct Mailbox {
    pub(super) commands: Commands,
    pub(super) connections: Connections,
    pub(super) looked_up: mpsc::Receiver<LookedUp>,
}

/// The commands to a worker.
#[derive(Debug)]
pub(super) struct Commands(mpsc::Receiver<Command>);

/// The connections that fronts hand over to a worker.
#[derive(Debug)]
pub(super) struct Connections(mpsc::Receiver<Connection>);

/// Creates the mailbox of a worker.
pub(crate) fn mailbox() -> (Handle, Mailbox) {
    let (commands, receiver) = mpsc::channel(CAPACITY);
    let (connections, adopted) = mpsc::channel(CAPACITY);
    let (looked_up, responses) = mpsc::channel(LOOKED_UP);
    let (commands_end, connections_end) = (Commands(receiver), Connections(adopted));
    let mailbox = Mailbox { commands: commands_end, connections: connections_end, looked_up: responses };
    (Handle { commands, connections, looked_up }, mailbox)
}

impl Handle {
    /// Replaces the configuration and listeners. Returns when everything that the configuration does not allow has been
    /// revoked: the new listeners that could not be opened.
    pub(crate) async fn reconfigure(
        &self,
        snapshot: Arc<Snapshot>,
        listeners: ListenerChange,
    ) -> Result<Vec<FailedListener>, WorkerEnded> {
        self.call(|done| Command::Reconfigure { snapshot, listeners, done }).await
    }

    /// Lists one page of the allocations that a filter accepts, starting at the cursor. The default cursor is the
    /// beginning. A page may be empty although there are more.
    pub(crate) async fn list(&self, cursor: Cursor, filter: Arc<Filter>) -> Result<Page, WorkerEnded> {
        self.call(|response| Command::List { cursor, filter, response }).await
    }

    /// Lists the oldest allocations, up to `most`, the oldest first.
    pub(crate) async fn oldest(&self, most: usize) -> Result<Vec<AllocationInfo>, WorkerEnded> {
        self.call(|response| Command::Oldest { most, response }).await
    }

    /// Describes an allocation; `None` if it has ended.
    pub(crate) async fn describe(&self, id: AllocationId) -> Result<Option<Described>, WorkerEnded> {
        self.call(|response| Command::Describe { id, response }).await
    }

    /// Ends allocations. Returns the number of those that existed.
    pub(crate) async fn end(&self, ids: Vec<AllocationId>, operator: Operator) -> Result<usize, WorkerEnded> {
        self.call(|response| Command::End { ids, operator, response }).await
    }

    /// Publishes the gauges of the statistics now.
    pub(crate) async fn publish(&self) -> Result<(), WorkerEnded> {
        self.call(|done| Command::Publish { done }).await
    }

    /// Gives the worker a connection whose first bytes are still in its socket. Waits while the worker is busy. A worker
    /// that has ended closes it.
    pub(crate) async fn adopt(&self, connection: TcpStream, addresses: Addresses) {
        let _ = self.connections.send((connection, addresses)).await;
    }

    /// Asks the worker to evict a connection. If the mailbox is full, the request is lost. Then the client is rejected
    /// again, and its next attempt makes a new request.
    pub(super) fn evict(&self, eviction: EvictionRequest) {
        let _ = self.commands.try_send(Command::Evict(eviction));
    }

    /// Tells the worker what the user database has said. If its mailbox is full, the response is lost, and the requests that
    /// wait for it time out.
    pub(crate) fn looked_up(&self, looked_up: LookedUp) {
        let _ = self.looked_up.try_send(looked_up);
    }

    /// Sends a command and waits for its response.
    async fn call<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, WorkerEnded> {
        let (sender, response) = oneshot::channel();
        self.commands.send(command(sender)).await.map_err(|_| WorkerEnded)?;
        response.await.map_err(|_| WorkerEnded)
    }
}

/// Serves commands until the worker has ended.
pub(super) async fn serve(worker: Weak<RefCell<Worker>>, mut commands: Commands) {
    while let Some(command) = commands.0.recv().await {
        // A sender that no longer waits gets no response.
        match command {
            Command::Reconfigure { snapshot, listeners, done } => {
                let Some(this) = worker.upgrade() else { return };
                this.borrow_mut().reconfigure(snapshot);
                let before = this.borrow().listener_addresses();
                let mut unserved = (!listeners.keeps_udp()).then(Cursor::default);
                let changed = tasks::change_listeners(&this, listeners);
                drop(this);
                // The kernel gives the packets of their clients to another listener only when the sockets are closed.
                let failed = changed.complete().await;
                while let Some(cursor) = unserved {
                    let Some(worker) = worker.upgrade() else { return };
                    unserved = worker.borrow_mut().end_unserved(cursor, ENDED, &before);
                    drop(worker);
                    yield_to_tasks().await;
                }
                while worker.upgrade().is_some_and(|worker| worker.borrow_mut().review(BUDGET)) {
                    yield_to_tasks().await;
                }
                let _ = done.send(failed);
            }
            Command::List { cursor, filter, response } => {
                let Some(worker) = worker.upgrade() else { return };
                let _ = response.send(worker.borrow().list(cursor, BUDGET, &filter));
            }
            Command::Oldest { most, response } => {
                let Some(this) = worker.upgrade() else { return };
                let mut oldest = this.borrow().begin_oldest(most);
                drop(this);
                let mut next = Some(Cursor::default());
                while let Some(cursor) = next
                    && !response.is_closed()
                {
                    let Some(this) = worker.upgrade() else { return };
                    next = this.borrow().seek_oldest(cursor, LOOKS, &mut oldest);
                    drop(this);
                    yield_to_tasks().await;
                }
                let Some(this) = worker.upgrade() else { return };
                let _ = response.send(this.borrow().found_oldest(&oldest));
            }
            Command::Describe { id, response } => {
                let Some(worker) = worker.upgrade() else { return };
                let _ = response.send(worker.borrow_mut().describe(id));
            }
            Command::End { ids, operator, response } => {
                let mut ended = 0;
                for ids in ids.chunks(ENDED) {
                    let Some(this) = worker.upgrade() else { return };
                    ended += this.borrow_mut().end_allocations(ids, operator);
                    drop(this);
                    yield_to_tasks().await;
                }
                let _ = response.send(ended);
            }
            Command::Publish { done } => {
                let Some(worker) = worker.upgrade() else { return };
                worker.borrow().publish();
                let _ = done.send(());
            }
            Command::Evict(eviction) => {
                let Some(worker) = worker.upgrade() else { return };
                worker.borrow().evict_for_other(eviction);
            }
        }
        yield_to_tasks().await;
    }
}

/// Serves the connections that fronts hand over until the worker has ended.
pub(super) async fn serve_connections(worker: Weak<RefCell<Worker>>, mut connections: Connections) {
    while let Some((connection, addresses)) = connections.0.recv().await {
        if worker.strong_count() == 0 {
            return;
        }
        tasks::adopt(&worker, connection, addresses);
        yield_to_tasks().await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::task::{LocalSet, spawn_local};

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn connections_of_fronts_that_wait_do_not_hold_up_a_command() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let (handle, mut mailbox) = mailbox();
        let test = async {
            for _ in 0..=CAPACITY {
                let (handle, connection) = (handle.clone(), TcpStream::connect(server).unwrap());
                let addresses = Addresses { client: connection.local_addr().unwrap(), server };
                spawn_local(async move { handle.adopt(connection, addresses).await });
            }
            let publish = spawn_local(async move { handle.publish().await });
            match mailbox.commands.0.recv().await {
                Some(Command::Publish { done }) => done.send(()).unwrap(),
                other => panic!("{other:?}"),
            }
            publish.await.unwrap().unwrap();
            assert_eq!(mailbox.connections.0.len(), CAPACITY);
        };
        LocalSet::new().run_until(test).await;
    }
}
