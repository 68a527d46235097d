//! Look-ups in the user database: a thread of control makes them, while the requests that need them wait in the core.

use std::cell::RefCell;
use std::future::pending;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use tokio::sync::{Notify, mpsc};

use super::Worker;
use super::tasks::yield_to_tasks;
use crate::turn::{Context, DatabaseReply};

/// The maximum number of look-ups that wait for the thread.
const CAPACITY: usize = 1024;

/// The number of requests that a worker resumes before it serves packets again.
const RESUMED: usize = 16;

/// A look-up that a worker needs.
#[derive(Debug)]
pub(crate) struct Lookup {
    pub(crate) worker: usize,
    pub(crate) username: Box<str>,
}

/// What a user database has said about a username: its key, or that it does not have the user.
#[derive(Debug)]
pub(crate) struct LookedUp {
    /// The database, as in [`UserDatabase::source`](crate::turn::UserDatabase::source).
    pub(crate) source: Arc<str>,
    pub(crate) username: Box<str>,
    pub(crate) result: DatabaseReply,
}

/// Creates the channel from the workers to the thread.
pub(crate) fn lookups() -> (mpsc::Sender<Lookup>, mpsc::Receiver<Lookup>) {
    mpsc::channel(CAPACITY)
}

/// The end of the channel that a worker has.
#[derive(Debug)]
pub(super) struct Lookups {
    worker: usize,
    thread: mpsc::Sender<Lookup>,
    /// Notified when a request begins to wait.
    began: Rc<Notify>,
}

impl Lookups {
    pub(super) fn new(worker: usize, thread: mpsc::Sender<Lookup>) -> Self {
        Self { worker, thread, began: Rc::default() }
    }

    pub(super) fn began(&self) -> &Rc<Notify> {
        &self.began
    }

    /// Asks for a look-up. Returns whether there was room.
    pub(super) fn ask(&self, username: Box<str>) -> bool {
        self.began.notify_one();
        self.thread.try_send(Lookup { worker: self.worker, username }).is_ok()
    }
}

/// Resumes requests when the database has responded, or has not for too long, until the worker has ended.
pub(super) async fn serve(worker: Weak<RefCell<Worker>>, mut responses: mpsc::Receiver<LookedUp>, began: Rc<Notify>) {
    loop {
        let Some(left) = worker.upgrade().map(|worker| {
            let shell = &worker.borrow().shell;
            shell.server.resumes_at().map(|deadline| deadline.left(shell.now().monotonic))
        }) else {
            return;
        };
        let timer = async {
            match left {
                Some(left) => tokio::time::sleep(left).await,
                None => pending().await,
            }
        };
        tokio::select! {
            Some(looked_up) = responses.recv() => {
                let Some(worker) = worker.upgrade() else { return };
                worker.borrow_mut().looked_up(looked_up);
            }
            () = began.notified() => {}
            () = timer => {}
        }
        while worker.upgrade().is_some_and(|worker| worker.borrow_mut().resume_requests(RESUMED)) {
            yield_to_tasks().await;
        }
        yield_to_tasks().await;
    }
}

impl Worker {
    fn looked_up(&mut self, looked_up: LookedUp) {
        let LookedUp { source, username, result } = looked_up;
        let now = self.shell.now();
        self.shell.server.looked_up(now.monotonic, &source, &username, result);
        self.shell.carry_out(now);
    }

    /// Lets the core decide about up to `most` requests that have waited. Returns whether there may be more.
    pub(super) fn resume_requests(&mut self, most: usize) -> bool {
        let now = self.shell.now();
        let mut resumed = 0;
        while resumed < most
            && let Some(request) = self.shell.server.next_resumed(now.monotonic)
        {
            resumed += 1;
            let shell = &mut self.shell;
            let mut cx = Context { now: now.monotonic, unix: now.unix, rng: &mut shell.rng };
            let decision = shell.server.resume(&mut cx, &request, &mut shell.response);
            shell.carry_out_decision(now, &request.tuple, &mut self.stream, decision);
            shell.connections.resumed(&request.tuple);
        }
        if resumed > 0 {
            self.shell.flush_to_peers(&mut self.stream);
            self.shell.carry_out(now);
            self.shell.flush_to_clients();
        }
        resumed == most
    }
}
