//! The connections of one listener.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::Notify;

/// The open connections, oldest first.
#[derive(Debug)]
pub(super) struct Connections {
    most: usize,
    open: RefCell<VecDeque<Rc<Connection>>>,
}

#[derive(Debug, Default)]
struct Connection {
    /// A request is being responded to.
    busy: Cell<bool>,
    evicted: Notify,
}

/// The place of a connection. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct Place {
    all: Rc<Connections>,
    connection: Rc<Connection>,
}

impl Connections {
    pub(super) fn new(most: usize) -> Self {
        Self { most, open: RefCell::default() }
    }

    /// Admits a connection. If there are as many as allowed, the oldest one that waits for a request is evicted, or else
    /// the oldest one.
    pub(super) fn admit(this: &Rc<Self>) -> Place {
        let connection = Rc::<Connection>::default();
        let mut open = this.open.borrow_mut();
        if open.len() >= this.most {
            let waits = open.iter().position(|connection| !connection.busy.get()).unwrap_or_default();
            if let Some(evicted) = open.remove(waits) {
                evicted.evicted.notify_one();
            }
        }
        open.push_back(Rc::clone(&connection));
        Place { all: Rc::clone(this), connection }
    }
}

impl Place {
    pub(super) fn busy(&self, busy: bool) {
        self.connection.busy.set(busy);
    }

    pub(super) async fn evicted(&self) {
        self.connection.evicted.notified().await;
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

    fn is_evicted(place: &Place) -> bool {
        pin!(place.evicted()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn a_connection_above_the_limit_evicts_the_oldest_that_waits_for_a_request() {
        let all = Rc::new(Connections::new(3));
        let [first, second, third] = [(); 3].map(|()| Connections::admit(&all));
        first.busy(true);
        let fourth = Connections::admit(&all);
        assert_eq!([&first, &second, &third, &fourth].map(is_evicted), [false, true, false, false]);
        drop(second);
        third.busy(true);
        fourth.busy(true);
        let fifth = Connections::admit(&all);
        assert_eq!([&first, &third, &fourth, &fifth].map(is_evicted), [true, false, false, false]);
        drop([first, third, fourth, fifth]);
        assert!(all.open.borrow().is_empty());
    }
}
