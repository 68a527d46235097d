//! The messages that wait for a participant: as many as one that reads leaves unread, in number and in bytes.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// How many messages may wait, and how many bytes they may have.
const WAITING: (usize, usize) = (512, 4 * 1_024 * 1_024);

type Waiting = (Arc<str>, OwnedSemaphorePermit);

/// Sends to a participant.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    messages: mpsc::Sender<Waiting>,
    space: Arc<Semaphore>,
}

/// An [`Outbox`] that does not keep the connection open.
#[derive(Clone, Debug)]
pub(crate) struct WeakOutbox {
    messages: mpsc::WeakSender<Waiting>,
    space: Arc<Semaphore>,
}

/// Receives what is sent to a participant, as JSON. The connection is closed after the last message.
#[derive(Debug)]
pub(crate) struct Inbox {
    messages: mpsc::Receiver<Waiting>,
    space: Arc<Semaphore>,
}

/// Returns both ends.
pub(crate) fn channel() -> (Outbox, Inbox) {
    let ((sender, receiver), space) = (mpsc::channel(WAITING.0), Arc::new(Semaphore::new(WAITING.1)));
    (Outbox { messages: sender, space: Arc::clone(&space) }, Inbox { messages: receiver, space })
}

impl Outbox {
    /// Sends a message. `false` if too much waits, and from then on: the participant would have a wrong view of the room.
    pub(crate) fn send(&self, message: &Arc<str>) -> bool {
        let size = u32::try_from(message.len()).unwrap_or(u32::MAX);
        let place = Arc::clone(&self.space).try_acquire_many_owned(size);
        let is_sent = place.is_ok_and(|place| self.messages.try_send((Arc::clone(message), place)).is_ok());
        if !is_sent {
            self.space.close();
        }
        is_sent
    }

    pub(crate) fn downgrade(&self) -> WeakOutbox {
        WeakOutbox { messages: self.messages.downgrade(), space: Arc::clone(&self.space) }
    }
}

impl WeakOutbox {
    /// Sends a message, if the connection still exists.
    pub(crate) fn send(&self, message: &Arc<str>) {
        if let Some(messages) = self.messages.upgrade() {
            Outbox { messages, space: Arc::clone(&self.space) }.send(message);
        }
    }
}

impl Inbox {
    /// Waits for the next message. `None` after the last one, and after the last one before too much waited. Nothing is
    /// lost if the caller stops waiting.
    pub(crate) async fn recv(&mut self) -> Option<Arc<str>> {
        if self.space.is_closed() && self.messages.is_empty() {
            return None;
        }
        self.messages.recv().await.map(|(message, _)| message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_participant_that_does_not_read_gets_what_waits_and_nothing_after_it() {
        for (length, expected) in [(10, WAITING.0), (64_000, WAITING.1 / 64_000)] {
            let (outbox, mut inbox) = channel();
            let message: Arc<str> = "x".repeat(length).into();
            let sent = (0..1_000).filter(|_| outbox.send(&message)).count();
            assert_eq!(sent, expected, "{length} bytes each");
            for _ in 0..sent {
                assert_eq!(inbox.recv().await.as_ref(), Some(&message));
                outbox.downgrade().send(&message);
            }
            assert_eq!(inbox.recv().await, None, "although the outbox still exists");
        }
    }

    #[tokio::test]
    async fn messages_that_are_read_make_room_for_others() {
        let (outbox, mut inbox) = channel();
        for _ in 0..1_000 {
            assert!(outbox.send(&"x".repeat(64_000).into()));
            inbox.recv().await.unwrap();
        }
        drop(outbox);
        assert_eq!(inbox.recv().await, None);
    }
}
