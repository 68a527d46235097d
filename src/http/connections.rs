//! The connections of one listener.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::rc::Rc;

use tokio::sync::Notify;

/// The open connections, oldest first.
#[derive(Debug)]
pub(super) struct Connections {
    most: usize,
    most_per_source: usize,
    open: RefCell<VecDeque<Rc<Connection>>>,
}

/// A connection.
#[derive(Debug, Default)]
pub(super) struct Connection {
    /// The client, as far as the number of its connections is limited.
    source: Option<IpAddr>,
    progress: Cell<Progress>,
    evicted: Notify,
    sent: Notify,
}

/// The progress of the present request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Progress {
    /// The server waits for a whole request.
    #[default]
    Waiting,
    /// The request is being responded to.
    Responding,
    /// The whole response is in the buffer of the connection.
    Buffered,
}

impl Connection {
    /// Whether the server waits for a whole request.
    pub(super) fn waits(&self) -> bool {
        self.progress.get() == Progress::Waiting
    }

    /// Records that a whole request is there.
    pub(super) fn responds(&self) {
        self.progress.set(Progress::Responding);
    }

    /// Records that the whole response is in the buffer of the connection.
    pub(super) fn buffered(&self) {
        self.progress.set(Progress::Buffered);
    }

    /// Records that the buffer of the connection is empty.
    pub(super) fn flushed(&self) {
        if self.progress.get() == Progress::Buffered {
            self.progress.set(Progress::Waiting);
            self.sent.notify_one();
        }
    }

    /// Waits until the response to the present request, if there is one, has been sent.
    pub(super) async fn until_it_waits(&self) {
        while !self.waits() {
            self.sent.notified().await;
        }
    }

    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }
}

/// The place of a connection. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct Place {
    all: Rc<Connections>,
    pub(super) connection: Rc<Connection>,
}

impl Connections {
    /// Creates a list with at most so many connections, in total and per source.
    pub(super) fn new(most: usize, most_per_source: usize) -> Self {
        Self { most, most_per_source, open: RefCell::default() }
    }

    /// Admits a connection. If there are as many as allowed of its source or in total, the oldest one of them that
    /// waits for a request is evicted, or else the oldest one of them.
    pub(super) fn admit(this: &Rc<Self>, source: Option<IpAddr>) -> Place {
        let mut open = this.open.borrow_mut();
        let is_of_source = |other: &Connection| source.is_some() && other.source == source;
        if open.iter().filter(|other| is_of_source(other)).count() >= this.most_per_source {
            evict(&mut open, is_of_source);
        }
        if open.len() >= this.most {
            evict(&mut open, |_| true);
        }
        let connection = Rc::new(Connection { source, ..Connection::default() });
        open.push_back(Rc::clone(&connection));
        Place { all: Rc::clone(this), connection }
    }
}

/// Evicts the oldest connection among `some` that waits for a request, or else the oldest one of them.
fn evict(open: &mut VecDeque<Rc<Connection>>, some: impl Fn(&Connection) -> bool) {
    let waiting = open.iter().position(|connection| some(connection) && connection.waits());
    let oldest = || open.iter().position(|connection| some(connection));
    if let Some(evicted) = waiting.or_else(oldest).and_then(|at| open.remove(at)) {
        evicted.evicted.notify_one();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.open.borrow_mut().retain(|connection| !Rc::ptr_eq(connection, &self.connection));
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn is_ready(future: impl Future<Output = ()>) -> bool {
        pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    fn is_evicted(place: &Place) -> bool {
        is_ready(place.connection.evicted())
    }

    #[test]
    fn a_connection_above_the_limit_evicts_the_oldest_that_waits_for_a_request() {
        let all = Rc::new(Connections::new(3, 3));
        let [first, second, third] = [(); 3].map(|()| Connections::admit(&all, None));
        first.connection.responds();
        let fourth = Connections::admit(&all, None);
        assert_eq!([&first, &second, &third, &fourth].map(is_evicted), [false, true, false, false]);
        drop(second);
        third.connection.responds();
        fourth.connection.responds();
        let fifth = Connections::admit(&all, None);
        assert_eq!([&first, &third, &fourth, &fifth].map(is_evicted), [true, false, false, false]);
        drop([first, third, fourth, fifth]);
        assert!(all.open.borrow().is_empty());
    }

    #[test]
    fn a_source_with_many_connections_evicts_its_own() {
        let all = Rc::new(Connections::new(4, 2));
        let admit = |source: &str| Connections::admit(&all, Some(source.parse().unwrap()));
        let (other, first, second) = (admit("192.0.2.1"), admit("192.0.2.2"), admit("192.0.2.2"));
        first.connection.responds();
        let third = admit("192.0.2.2");
        assert_eq!([&other, &first, &second, &third].map(is_evicted), [false, false, true, false]);
        third.connection.responds();
        let fourth = admit("192.0.2.2");
        assert_eq!([&other, &first, &third, &fourth].map(is_evicted), [false, true, false, false]);
        // Those without a source have no limit of their own.
        let more = [(); 2].map(|()| Connections::admit(&all, None));
        assert_eq!([&other, &third, &fourth, &more[0], &more[1]].map(is_evicted), [true, false, false, false, false]);
    }

    #[test]
    fn a_connection_waits_again_when_its_response_has_been_sent() {
        let connection = Connection::default();
        assert!(connection.waits() && is_ready(connection.until_it_waits()));
        connection.responds();
        // The buffer may be flushed before the whole response is in it.
        connection.flushed();
        assert!(!is_ready(connection.until_it_waits()));
        connection.buffered();
        assert!(!is_ready(connection.until_it_waits()));
        connection.flushed();
        assert!(is_ready(connection.until_it_waits()));
    }
}
