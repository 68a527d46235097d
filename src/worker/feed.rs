//! The records of allocations that begin and end, for accounting.
//!
//! A worker collects records and passes them on in batches over a bounded channel. It never waits: what does not fit
//! stays with the worker until the next attempt. If the reader stands still for long, records are lost, which is counted
//! with their traffic.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::SessionId;
use crate::transport::Transport;
use crate::turn::{EndReason, Event, FiveTuple, Traffic};

/// The greatest number of records in a batch, unless it is the last one of a worker.
const BATCH: usize = 1_024;

/// The number of records that are passed on before the next tick, so that a batch is not one record.
const ENOUGH: usize = 64;

/// The greatest number of batches that wait for the reader.
const BATCHES: usize = 16;

/// The greatest number of records that wait for space in the channel.
const WAITING: usize = 65_536;

/// What happened to an allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SessionRecord {
    Started {
        session: SessionId,
        user: String,
        tuple: FiveTuple,
        /// In seconds.
        lifetime: u32,
    },
    /// Only if the snapshot says that refreshes are wanted.
    Refreshed {
        session: SessionId,
        user: String,
        tuple: FiveTuple,
        /// In seconds; 0 if the client deletes the allocation.
        lifetime: u32,
    },
    Ended {
        session: SessionId,
        user: String,
        transport: Transport,
        duration: Duration,
        traffic: Traffic,
        reason: EndReason,
    },
}

/// Records that did not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LostRecords {
    /// The number of allocations whose start was not recorded.
    pub(crate) started: u64,
    /// The number of allocations whose end was not recorded.
    pub(crate) ended: u64,
    /// The traffic of the latter.
    pub(crate) traffic: Traffic,
}

impl LostRecords {
    /// Returns whether no record is lost.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Records in the order in which they were made, and what was lost after them.
#[derive(Debug, Default)]
pub(crate) struct RecordBatch {
    pub(crate) lost: LostRecords,
    pub(crate) records: Vec<SessionRecord>,
}

/// The end of a feed that its reader has.
pub(crate) type FeedReader = mpsc::Receiver<RecordBatch>;

/// The worker's end of its feed.
#[derive(Debug)]
pub(crate) struct Feed {
    sender: mpsc::Sender<RecordBatch>,
    /// The place of the last batch, which may be long.
    last: Option<mpsc::OwnedPermit<RecordBatch>>,
    waiting: VecDeque<SessionRecord>,
    lost: LostRecords,
    /// Whether anyone wants the records.
    is_wanted: bool,
}

/// Creates the feed of a worker.
pub(crate) fn feed() -> (Feed, FeedReader) {
    let (sender, receiver) = mpsc::channel(BATCHES + 1);
    let last = sender.clone().try_reserve_owned().ok();
    let feed = Feed { sender, last, waiting: VecDeque::new(), lost: LostRecords::default(), is_wanted: false };
    (feed, receiver)
}

impl Feed {
    /// Sets whether records are made from now on.
    pub(super) fn set_wanted(&mut self, is_wanted: bool) {
        self.is_wanted = is_wanted;
    }

    /// Records an event if it begins, refreshes or ends an allocation.
    pub(super) fn record(&mut self, worker: usize, event: &Event) {
        if !self.is_wanted {
            return;
        }
        let record = match event {
            Event::AllocationCreated { id, user, tuple, lifetime, .. } => SessionRecord::Started {
                session: SessionId { worker, allocation: *id },
                user: user.clone(),
                tuple: *tuple,
                lifetime: *lifetime,
            },
            Event::AllocationRefreshed { id, user, tuple, lifetime } => SessionRecord::Refreshed {
                session: SessionId { worker, allocation: *id },
                user: user.clone(),
                tuple: *tuple,
                lifetime: *lifetime,
            },
            Event::AllocationEnded(ended) => SessionRecord::Ended {
                session: SessionId { worker, allocation: ended.id },
                user: ended.user.clone(),
                transport: ended.tuple.transport,
                duration: ended.duration,
                traffic: ended.traffic,
                reason: ended.reason,
            },
            _ => return,
        };
        if self.waiting.len() >= WAITING {
            self.lose(&record);
        } else {
            self.waiting.push_back(record);
        }
        if self.waiting.len() == ENOUGH {
            self.flush();
        }
    }

    fn lose(&mut self, record: &SessionRecord) {
        match record {
            SessionRecord::Started { .. } => self.lost.started += 1,
            // The next one makes up for it.
            SessionRecord::Refreshed { .. } => {}
            SessionRecord::Ended { traffic, .. } => {
                self.lost.ended += 1;
                self.lost.traffic += *traffic;
            }
        }
    }

    /// Passes on what waits, as far as there is space. The worker does so once a second.
    pub(super) fn flush(&mut self) {
        while !self.waiting.is_empty() {
            match self.sender.try_reserve() {
                Ok(permit) => {
                    let records = self.waiting.drain(..self.waiting.len().min(BATCH)).collect();
                    permit.send(RecordBatch { lost: std::mem::take(&mut self.lost), records });
                }
                Err(TrySendError::Full(())) => return,
                // The reader has ended, and with it every sink.
                Err(TrySendError::Closed(())) => return self.waiting.clear(),
            }
        }
    }

    /// Passes on all that waits when the worker stops.
    pub(super) fn finish(&mut self) {
        self.flush();
        let Some(last) = self.last.take() else { return };
        let records = std::mem::take(&mut self.waiting).into();
        last.send(RecordBatch { lost: std::mem::take(&mut self.lost), records });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::{AllocationId, AllocationSummary};

    const TRAFFIC: Traffic =
        Traffic { packets_to_peers: 1, bytes_to_peers: 100, packets_to_client: 2, bytes_to_client: 300 };

    fn ended(number: usize) -> Event {
        let id: AllocationId = format!("{number}-0").parse().unwrap();
        let address = "192.0.2.1:1".parse().unwrap();
        Event::AllocationEnded(Box::new(AllocationSummary {
            id,
            user: "ann".to_owned(),
            tuple: FiveTuple { transport: Transport::Udp, client: address, server: address },
            relay: address.into(),
            duration: Duration::from_secs(3),
            traffic: TRAFFIC,
            reason: EndReason::Expired,
        }))
    }

    fn number(record: &SessionRecord) -> String {
        let (SessionRecord::Started { session, .. }
        | SessionRecord::Refreshed { session, .. }
        | SessionRecord::Ended { session, .. }) = record;
        session.to_string()
    }

    #[test]
    fn records_come_in_order_and_wait_while_the_reader_does_not_read() {
        let (mut feed, mut reader) = feed();
        feed.set_wanted(true);
        let most = BATCH * BATCHES + 10;
        for at in 0..most {
            feed.record(1, &ended(at));
            feed.flush();
        }
        assert!(!feed.waiting.is_empty());
        feed.finish();
        let mut read = Vec::new();
        while let Ok(batch) = reader.try_recv() {
            assert!(batch.lost.is_empty());
            read.extend(batch.records.iter().map(number));
        }
        assert_eq!(read, (0..most).map(|at| format!("1-{at}-0")).collect::<Vec<_>>());
    }

    #[test]
    fn what_does_not_fit_is_counted_with_its_traffic() {
        let (mut feed, mut reader) = feed();
        feed.set_wanted(true);
        for at in 0..BATCHES * ENOUGH + WAITING + 3 {
            feed.record(0, &ended(at));
        }
        for _ in 0..BATCHES {
            assert!(reader.try_recv().unwrap().lost.is_empty());
        }
        feed.flush();
        let first = reader.try_recv().unwrap();
        let traffic = Traffic { packets_to_peers: 3, bytes_to_peers: 300, packets_to_client: 6, bytes_to_client: 900 };
        assert_eq!(first.lost, LostRecords { started: 0, ended: 3, traffic });
        assert!(reader.try_recv().unwrap().lost.is_empty());
    }

    #[test]
    fn nothing_is_kept_if_nobody_wants_it_or_the_reader_has_ended() {
        let (mut feed, reader) = feed();
        feed.record(0, &ended(0));
        assert!(feed.waiting.is_empty());
        feed.set_wanted(true);
        feed.record(0, &ended(0));
        drop(reader);
        feed.flush();
        assert!(feed.waiting.is_empty());
        feed.finish();
    }
}
