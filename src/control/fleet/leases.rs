//! The leases of users over all nodes: carries out what [`Leases`] decides.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use async_nats::jetstream::kv::{CreateErrorKind, Operation, Store, UpdateErrorKind};
use futures_util::StreamExt as _;
use hyper::body::Bytes;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::agent::Session;
use super::engine::Bucket;
use super::with_rng;
use crate::clock;
use crate::config::FleetLimits;
use crate::fleet::lease::Limits;
use crate::fleet::{Key, Leases, Output, Record};

/// The longest time between two looks at what is due.
const LOOK: Duration = Duration::from_secs(1);

/// The leases of this node.
struct Holder {
    session: Rc<Session>,
    /// There may be outputs, or something is due earlier.
    changed: Notify,
    /// Whether a request has failed.
    has_failed: Cell<bool>,
    /// How often the engine has gone away or come back.
    connections: Cell<u64>,
}

/// Starts the tasks of the leases, if limits apply to all nodes together.
pub(super) fn start(session: &Rc<Session>, tasks: &mut JoinSet<()>) {
    if session.settings.fleet.limits != FleetLimits::Fleet {
        session.inputs.ledger.quota.set_first_share(None);
        session.leases.take();
        return;
    }
    let limits = limits(session);
    {
        let mut leases = session.leases.borrow_mut();
        match leases.as_mut().filter(|leases| leases.node() == session.settings.node) {
            // What was asked in the last session has no response.
            Some(leases) => with_rng(|rng| leases.engine(false, session.inputs.now(), rng)),
            None => {
                // New leases begin with the first share.
                session.inputs.ledger.quota.clear_shares();
                *leases = Some(Leases::new(&session.settings.node, limits));
            }
        }
    }
    session.inputs.ledger.quota.set_first_share(Some(limits.first().into()));
    let holder = Rc::new(Holder {
        session: Rc::clone(session),
        changed: Notify::new(),
        has_failed: Cell::new(false),
        connections: Cell::new(0),
    });
    tasks.spawn_local(follow_users(Rc::clone(&holder)));
    tasks.spawn_local(follow_engine(Rc::clone(&holder)));
    tasks.spawn_local(follow_hints(Rc::clone(&holder)));
    tasks.spawn_local(carry_out(holder));
}

impl Holder {
    /// Calls `with` with the leases.
    fn with<T>(&self, with: impl FnOnce(&mut Leases) -> T) -> T {
        let mut leases = self.session.leases.borrow_mut();
        with(leases.get_or_insert_with(|| Leases::new(&self.session.settings.node, limits(&self.session))))
    }
}

/// Returns the limits over all nodes at present.
fn limits(session: &Session) -> Limits {
    let (nodes, now) = (session.view.nodes(), session.inputs.now());
    // Until this node sees itself, it does not know how many others there are.
    let is_known = nodes.get(&session.settings.node, now).is_some();
    let nodes = if is_known { u32::try_from(nodes.live(now).count()).unwrap_or(u32::MAX) } else { u32::MAX };
    Limits { allocations: session.settings.allocations_per_user, nodes }
}

/// Follows the numbers of allocations of users.
async fn follow_users(holder: Rc<Holder>) {
    let session = &holder.session;
    let mut users = session.inputs.users.lock().await;
    while let Some(user) = users.recv().await {
        let used = session.inputs.ledger.quota.count(&user);
        holder.with(|leases| leases.count_changed(&user, used, session.inputs.now()));
        holder.changed.notify_one();
    }
}

/// Follows the connection to the engine, and the number of nodes.
async fn follow_engine(holder: Rc<Holder>) {
    let session = &holder.session;
    let mut connection = session.connection.clone();
    let mut was_up = false;
    loop {
        let is_up = connection.borrow_and_update().is_up;
        let limits = limits(session);
        if is_up != was_up {
            was_up = is_up;
            holder.connections.update(|count| count + 1);
            with_rng(|rng| holder.with(|leases| leases.engine(is_up, session.inputs.now(), rng)));
            holder.changed.notify_one();
        }
        // While the engine is away, the last number of nodes stays.
        if is_up {
            holder.with(|leases| leases.set_limits(limits));
            session.inputs.ledger.quota.set_first_share(Some(limits.first().into()));
        }
        let held = holder.with(|leases| leases.len()) as u64;
        session.count(|counts| counts.leases = held);
        tokio::select! {
            changed = connection.changed() => if changed.is_err() { return },
            () = sleep(LOOK) => {}
        }
    }
}

/// Follows what other nodes say about records that they have changed.
async fn follow_hints(holder: Rc<Holder>) {
    let session = &holder.session;
    let subject = hint_subject(session, &session.settings.node);
    let Ok(mut hints) = session.engine.client.subscribe(subject).await else { return };
    while let Some(message) = hints.next().await {
        if let Some(key) = str::from_utf8(&message.payload).ok().and_then(Key::from_hex) {
            holder.with(|leases| leases.hinted(key, session.inputs.now()));
            holder.changed.notify_one();
        }
    }
}

fn hint_subject(session: &Session, node: &str) -> String {
    format!("{}.lease.{node}", session.settings.fleet.name)
}

/// Carries out the outputs of the leases.
async fn carry_out(holder: Rc<Holder>) {
    let session = &holder.session;
    let mut store = Rc::new(session.open(Bucket::Leases).await);
    let mut running = JoinSet::new();
    loop {
        if holder.has_failed.take() {
            // The engine may have lost the bucket.
            store = Rc::new(session.open(Bucket::Leases).await);
        }
        let now = session.inputs.now();
        let quota = &session.inputs.ledger.quota;
        holder.with(|leases| {
            leases.recount(|user| quota.count(user), now);
            leases.advance(now, clock::unix_seconds());
        });
        while let Some(output) = holder.with(Leases::next_output) {
            match output {
                Output::Share { key, user, share } => {
                    let used = quota.set_share(&user, Some(share.into()));
                    holder.with(|leases| leases.applied(key, used, session.inputs.now(), clock::unix_seconds()));
                }
                Output::Forget { user } => {
                    quota.set_share(&user, None);
                }
                Output::Hint { node, key } => {
                    let subject = hint_subject(session, &node);
                    // It may get lost.
                    let _ = session.engine.client.publish(subject, Bytes::from(key.to_string())).await;
                }
                request => {
                    running.spawn_local(respond(Rc::clone(&holder), Rc::clone(&store), request));
                }
            }
        }
        while running.try_join_next().is_some() {}
        let due = holder.with(|leases| leases.next_due(session.inputs.now())).unwrap_or(LOOK);
        tokio::select! {
            () = holder.changed.notified() => {}
            () = sleep(due.min(LOOK)) => {}
        }
    }
}

/// Sends a request of the leases to the engine, and passes the response to them.
async fn respond(holder: Rc<Holder>, store: Rc<Store>, request: Output) {
    let (session, connections) = (&holder.session, holder.connections.get());
    enum Response {
        Read(Option<(u64, Record)>),
        Unreadable,
        Written(u64),
        Refused,
        Failed,
    }
    let (key, response) = match request {
        Output::Read { key } => {
            let response = match store.entry(key.to_string()).await {
                Ok(Some(entry)) if entry.operation == Operation::Put => match Record::from_json(&entry.value) {
                    Ok(record) => Response::Read(Some((entry.revision, record))),
                    // Of a later version.
                    Err(_) => Response::Unreadable,
                },
                Ok(_) => Response::Read(None),
                Err(_) => Response::Failed,
            };
            (key, response)
        }
        Output::Write { key, revision: 0, record } => {
            let response = match store.create(key.to_string(), Bytes::from(record.to_json())).await {
                Ok(revision) => Response::Written(revision),
                Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Response::Refused,
                Err(_) => Response::Failed,
            };
            (key, response)
        }
        Output::Write { key, revision, record } => {
            let response = match store.update(key.to_string(), Bytes::from(record.to_json()), revision).await {
                Ok(revision) => Response::Written(revision),
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Response::Refused,
                Err(_) => Response::Failed,
            };
            (key, response)
        }
        Output::Delete { key, revision } => {
            let response = match store.delete_expect_revision(key.to_string(), Some(revision)).await {
                Ok(()) => Response::Written(0),
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Response::Refused,
                Err(_) => Response::Failed,
            };
            (key, response)
        }
        Output::Share { .. } | Output::Forget { .. } | Output::Hint { .. } => return,
    };
    let (now, unix) = (session.inputs.now(), clock::unix_seconds());
    // What was asked before the engine went away or came back has no response.
    if holder.connections.get() != connections {
        return;
    }
    holder.with(|leases| match response {
        Response::Unreadable => leases.unreadable(key, now),
        Response::Read(found) => leases.read(key, found, now, unix),
        Response::Written(revision) => leases.written(key, revision, now, unix),
        Response::Refused => with_rng(|rng| leases.refused(key, now, rng)),
        Response::Failed => {
            holder.has_failed.set(true);
            with_rng(|rng| leases.failed(key, now, rng));
        }
    });
    holder.changed.notify_one();
}
