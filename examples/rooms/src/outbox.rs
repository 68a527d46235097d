//! The messages that wait for a participant: as many as one that reads leaves unread, in number and in bytes.

use std::sync::Arc;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc};

/// How many messages may wait for a participant.
const MESSAGES: usize = 512;

/// The bytes that may wait for a participant, whatever waits for the others.
const OWN: usize = 128 * 1_024;

/// The bytes that may wait for a participant besides.
const MORE: usize = 4 * 1_024 * 1_024;

/// The bytes that may wait besides for all participants together.
const SHARED: usize = 128 * 1_024 * 1_024;

/// One participant may take this part of the shared bytes that are free, so that a few do not take all.
const PART: usize = 16;

/// A message with the bytes that it takes.
type Waiting = (Arc<str>, Permit);

/// The memory that the messages of all participants share.
#[derive(Clone, Debug)]
pub(crate) struct Memory(Arc<Semaphore>);

/// Sends to a participant.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    messages: mpsc::Sender<Waiting>,
    space: Space,
}

/// An [`Outbox`] that does not keep the connection open.
#[derive(Clone, Debug)]
pub(crate) struct WeakOutbox {
    messages: mpsc::WeakSender<Waiting>,
    space: Space,
}

/// Receives what is sent to a participant, as JSON. The connection is closed after the last message.
#[derive(Debug)]
pub(crate) struct Inbox {
    messages: mpsc::Receiver<Waiting>,
    space: Space,
}

/// The bytes that may wait for a participant.
#[derive(Clone, Debug)]
struct Space {
    own: Arc<Semaphore>,
    more: Arc<Semaphore>,
    shared: Arc<Semaphore>,
    /// Wakes the [`Inbox`] when too much waits.
    overflow: Arc<Notify>,
}

/// The bytes that a message takes.
#[derive(Debug)]
struct Permit {
    _of_participant: OwnedSemaphorePermit,
    _shared: Option<OwnedSemaphorePermit>,
}

impl Default for Memory {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(SHARED)))
    }
}

/// Returns both ends.
pub(crate) fn channel(memory: &Memory) -> (Outbox, Inbox) {
    let (sender, receiver) = mpsc::channel(MESSAGES);
    let [own, more] = [OWN, MORE].map(|bytes| Arc::new(Semaphore::new(bytes)));
    let space = Space { own, more, shared: Arc::clone(&memory.0), overflow: Arc::default() };
    (Outbox { messages: sender, space: space.clone() }, Inbox { messages: receiver, space })
}

impl Space {
    /// Takes the bytes of a message. `None` if too many are taken.
    fn take(&self, bytes: usize) -> Option<Permit> {
        let bytes_taken = u32::try_from(bytes).ok()?;
        let take = |of: &Arc<Semaphore>| Arc::clone(of).try_acquire_many_owned(bytes_taken);
        match take(&self.own) {
            Ok(permit) => return Some(Permit { _of_participant: permit, _shared: None }),
            Err(TryAcquireError::Closed) => return None,
            Err(TryAcquireError::NoPermits) => {}
        }
        let after = MORE - self.more.available_permits() + bytes;
        if after > self.shared.available_permits() / PART {
            return None;
        }
        Some(Permit { _of_participant: take(&self.more).ok()?, _shared: Some(take(&self.shared).ok()?) })
    }

    fn close(&self) {
        self.own.close();
        self.overflow.notify_one();
    }
}

impl Outbox {
    /// Sends a message. `false` if too much waits, and from then on: the participant would have a wrong view of the room.
    pub(crate) fn send(&self, message: &Arc<str>) -> bool {
        let permits = self.space.take(message.len());
        let is_sent = permits.is_some_and(|permits| self.messages.try_send((Arc::clone(message), permits)).is_ok());
        if !is_sent {
            self.space.close();
        }
        is_sent
    }

    pub(crate) fn downgrade(&self) -> WeakOutbox {
        WeakOutbox { messages: self.messages.downgrade(), space: self.space.clone() }
    }
}

impl WeakOutbox {
    /// Sends a message, if the connection still exists.
    pub(crate) fn send(&self, message: &Arc<str>) {
        if let Some(messages) = self.messages.upgrade() {
            Outbox { messages, space: self.space.clone() }.send(message);
        }
    }
}

impl Inbox {
    /// Waits for the next message. `None` after the last one, and as soon as too much waits: the rest would only take
    /// memory. Nothing is lost if the caller stops waiting.
    pub(crate) async fn recv(&mut self) -> Option<Arc<str>> {
        if self.space.own.is_closed() {
            return None;
        }
        tokio::select! {
            biased;
            () = self.space.overflow.notified() => None,
            message = self.messages.recv() => message.map(|(message, _)| message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Arc<str> {
        "x".repeat(length).into()
    }

    /// Sends until too much waits.
    fn fill(outbox: &Outbox, message: &Arc<str>) -> usize {
        (0..1_000).take_while(|_| outbox.send(message)).count()
    }

    #[tokio::test]
    async fn a_participant_that_does_not_read_gets_nothing_more() {
        for (length, expected) in [(10, MESSAGES), (64_000, OWN / 64_000 + MORE / 64_000)] {
            let (outbox, mut inbox) = channel(&Memory::default());
            assert_eq!(fill(&outbox, &message(length)), expected, "{length} bytes each");
            assert_eq!(inbox.recv().await, None, "although the outbox still exists");
            outbox.downgrade().send(&message(1));
            assert_eq!(inbox.recv().await, None);
        }
    }

    #[tokio::test]
    async fn a_message_that_is_too_long_ends_the_waiting() {
        let (outbox, mut inbox) = channel(&Memory::default());
        let waiting = tokio::spawn(async move { inbox.recv().await });
        tokio::task::yield_now().await;
        outbox.downgrade().send(&message(MORE + 1));
        let waited = tokio::time::timeout(std::time::Duration::from_secs(20), waiting).await;
        assert_eq!(waited.unwrap().unwrap(), None, "although the outbox still exists");
    }

    #[tokio::test]
    async fn messages_that_are_read_make_room_for_others() {
        let memory = Memory::default();
        let (outbox, mut inbox) = channel(&memory);
        let message = message(OWN + 1);
        for _ in 0..2_000 {
            assert!(outbox.send(&message));
            inbox.recv().await.unwrap();
        }
        drop(outbox);
        assert_eq!(inbox.recv().await, None);
        assert_eq!(memory.0.available_permits(), SHARED);
    }

    #[tokio::test]
    async fn participants_that_do_not_read_leave_memory_for_the_others() {
        let (memory, message) = (Memory::default(), message(64_000));
        let mut idle = Vec::new();
        for _ in 0..2_000 {
            let (outbox, inbox) = channel(&memory);
            // The free bytes become fewer with each message.
            let more = (memory.0.available_permits() / (PART + 1)).min(MORE);
            assert!((0..OWN / message.len() + more / message.len()).all(|_| outbox.send(&message)));
            idle.push((outbox, inbox));
        }
        let free = memory.0.available_permits();
        assert!(free < SHARED / 20, "{free}");
        let (outbox, mut inbox) = channel(&memory);
        assert!((0..OWN / message.len()).all(|_| outbox.send(&message)), "as much as each has");
        assert_eq!(inbox.recv().await.as_ref(), Some(&message));
        let (greedy, greedy_inbox) = channel(&memory);
        fill(&greedy, &message);
        assert!(free - memory.0.available_permits() <= free / PART, "not all that is free");
        drop((outbox, inbox, idle, greedy, greedy_inbox));
        assert_eq!(memory.0.available_permits(), SHARED, "all is free again");
    }
}
