//! Commands to a worker, from control and from other workers.
//!
//! Each worker has a bounded channel, which it serves in small steps between batches of packets. Each command of control
//! has a response, unless the worker has ended.

use std::cell::RefCell;
use std::io;
use std::net::TcpStream;
use std::rc::Weak;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::connections::EvictionRequest;
use super::tasks::{self, yield_to_tasks};
use super::{BoundListener, Described, Snapshot, Worker};
use crate::proxy_protocol::Addresses;
use crate::transport::{Endpoint, Transport};
use crate::turn::{AllocationId, AllocationInfo, Cursor, Filter, Operator, Page};

/// The maximum number of commands that wait for a worker.
const CAPACITY: usize = 16;

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
    /// Serve a connection between these addresses, which a front has accepted. There is no response.
    Adopt(TcpStream, Addresses),
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
pub(crate) struct Handle(mpsc::Sender<Command>);

/// The worker's end of its mailbox.
#[derive(Debug)]
pub(crate) struct Mailbox(mpsc::Receiver<Command>);

/// Creates the mailbox of a worker.
pub(crate) fn mailbox() -> (Handle, Mailbox) {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    (Handle(sender), Mailbox(receiver))
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
        let _ = self.0.send(Command::Adopt(connection, addresses)).await;
    }

    /// Asks the worker to evict a connection. If the mailbox is full, the request is lost. Then the client is rejected
    /// again, and its next attempt makes a new request.
    pub(super) fn evict(&self, eviction: EvictionRequest) {
        let _ = self.0.try_send(Command::Evict(eviction));
    }

    /// Sends a command and waits for its response.
    async fn call<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, WorkerEnded> {
        let (sender, response) = oneshot::channel();
        self.0.send(command(sender)).await.map_err(|_| WorkerEnded)?;
        response.await.map_err(|_| WorkerEnded)
    }
}

/// Serves commands until the worker has ended.
pub(super) async fn serve(worker: Weak<RefCell<Worker>>, mut mailbox: Mailbox) {
    while let Some(command) = mailbox.0.recv().await {
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
            Command::Adopt(connection, addresses) => tasks::adopt(&worker, connection, addresses),
            Command::Evict(eviction) => {
                let Some(worker) = worker.upgrade() else { return };
                worker.borrow().evict_for_other(eviction);
            }
        }
        yield_to_tasks().await;
    }
}
