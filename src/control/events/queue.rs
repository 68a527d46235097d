//! The events that wait for the receiver. The ends and starts of allocations are in the spool; running sums are in memory
//! only, because the next ones make up for them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::rc::Rc;

use serde_json::Value;

use super::lost::{Lost, since};
use crate::control::events::event::{Event, Kind, Source};
use crate::control::spool::{PushError, Spool};
use crate::turn::Traffic;
use crate::worker::{LostRecords, SessionId};

/// The most bytes of running sums that wait.
const MAX_USAGE: usize = 16 << 20;
/// The most bytes of events from the spool in one request.
const MAX_BATCH: usize = 1 << 20;

#[derive(Debug)]
pub(in crate::control) struct Queue {
    spool: Spool,
    /// Running sums, each with the number of the record in the spool that it comes before.
    usage: VecDeque<(u64, Rc<Event>)>,
    usage_bytes: usize,
    /// The latest running sums of each allocation that the receiver has got, or may have got.
    reported: HashMap<SessionId, Traffic>,
    /// The allocations that have ended lately: since a change of the two sets, and before.
    ended: [HashSet<SessionId>; 2],
    lost: Lost,
    /// The events that were dropped. Their sums are in `lost`.
    dropped: u64,
}

/// Events for one request.
#[derive(Debug)]
pub(in crate::control) struct Taken {
    pub(in crate::control) events: Vec<Vec<u8>>,
    /// The last one from the spool.
    last: u64,
}

impl Queue {
    /// Creates the queue, with the sums that an earlier process could not report.
    ///
    /// # Errors
    /// If they cannot be read. They are lost then.
    pub(in crate::control) fn new(spool: Spool) -> (Self, io::Result<()>) {
        let (lost, result) = match spool.note() {
            Ok(None) => (Lost::default(), Ok(())),
            Ok(Some(note)) => match Lost::from_note(&note) {
                Some(lost) => (lost, Ok(())),
                None => (Lost::default(), Err(io::ErrorKind::InvalidData.into())),
            },
            Err(error) => (Lost::default(), Err(error)),
        };
        let (usage, reported) = (VecDeque::new(), HashMap::new());
        (Self { spool, usage, usage_bytes: 0, reported, ended: Default::default(), lost, dropped: 0 }, result)
    }

    /// Adds an event. What does not fit is counted, and its sums are kept for an `events.lost`.
    ///
    /// # Errors
    /// Why it does not fit.
    pub(in crate::control) fn push(&mut self, event: &Event) -> Result<(), PushError> {
        if event.kind == Kind::Lost {
            // It becomes part of the running sums of all that is lost.
            let fields: Value = serde_json::from_str(&event.json).unwrap_or_default();
            let number = |key: &str| fields.get(key).and_then(Value::as_u64).unwrap_or_default();
            self.lose(number("started"), number("ended"), event.traffic);
            return Ok(());
        }
        let reported = event.session.filter(|_| event.kind == Kind::Ended).map(|session| {
            self.note_end(session);
            // The end has these sums.
            self.usage.retain(|(_, usage)| {
                let is_kept = usage.session != Some(session);
                if !is_kept {
                    self.usage_bytes = self.usage_bytes.saturating_sub(usage.json.len());
                }
                is_kept
            });
            self.reported.remove(&session).unwrap_or_default()
        });
        let result = self.spool.push(event.json.as_bytes());
        if result.is_err() {
            self.dropped += 1;
            match event.kind {
                Kind::Started => self.lose(1, 0, Traffic::default()),
                Kind::Ended => self.lose(0, 1, since(&event.traffic, &reported.unwrap_or_default())),
                Kind::Usage | Kind::Lost | Kind::NodeStarted | Kind::NodeStopped => {}
            }
        }
        result
    }

    /// Forgets an allocation that has ended, if its end is not sent.
    pub(in crate::control) fn forget(&mut self, event: &Event) {
        if let Some(session) = event.session.filter(|_| event.kind == Kind::Ended) {
            self.note_end(session);
            self.reported.remove(&session);
        }
    }

    fn lose(&mut self, started: u64, ended: u64, traffic: Traffic) {
        self.lost.add(started, ended, traffic);
        // Without room even for this, the sums are in memory, and the next loss writes them.
        let _ = self.spool.keep_note(self.lost.to_note().as_bytes());
    }

    /// Remembers for a while that an allocation has ended: its running sums may come later than its end.
    fn note_end(&mut self, session: SessionId) {
        const MOST: usize = 16_384;
        let [recent, older] = &mut self.ended;
        if recent.len() >= MOST {
            *older = std::mem::take(recent);
        }
        recent.insert(session);
    }

    /// Adds running sums, unless too many wait.
    pub(in crate::control) fn push_usage(&mut self, event: &Rc<Event>) {
        if event.session.is_some_and(|session| self.ended.iter().any(|ended| ended.contains(&session))) {
            return;
        }
        if self.usage_bytes + event.json.len() <= MAX_USAGE {
            self.usage_bytes += event.json.len();
            self.usage.push_back((self.spool.end(), Rc::clone(event)));
        }
    }

    /// Drops the running sums that wait.
    pub(in crate::control) fn clear_usage(&mut self) {
        self.usage.clear();
        self.usage_bytes = 0;
    }

    /// Puts the sums of what was lost into the spool, if there is room.
    fn report_lost(&mut self, source: &Source) {
        if !self.lost.is_pending {
            return;
        }
        let Lost { started, ended, traffic, .. } = self.lost;
        let event = source.lost(&LostRecords { started, ended, traffic });
        let Some(fields) = event.json.strip_suffix('}') else { return };
        let json = format!("{fields},\"lost\":\"{}\"}}", self.lost.id);
        self.lost.is_pending = self.spool.push(json.as_bytes()).is_err();
    }

    /// Returns the oldest events for a request, at most `most`, and leaves those from the spool where they are. `None` if
    /// none wait.
    ///
    /// # Errors
    /// If the file system fails.
    pub(in crate::control) fn take(&mut self, most: usize, source: &Source) -> io::Result<Option<Taken>> {
        self.report_lost(source);
        let front = self.spool.front();
        let before_usage = self.usage.front().map_or(u64::MAX, |(before, _)| before.saturating_sub(front));
        let room = most.min(usize::try_from(before_usage).unwrap_or(usize::MAX));
        let batch = if room > 0 { self.spool.read(room, MAX_BATCH)? } else { Default::default() };
        let last = batch.last.max(front.saturating_sub(1));
        let mut events = batch.records;
        while events.len() < most
            && let Some((_, usage)) = self.usage.pop_front_if(|(before, _)| *before <= last + 1)
        {
            self.usage_bytes = self.usage_bytes.saturating_sub(usage.json.len());
            if let Some(session) = usage.session {
                self.reported.insert(session, usage.traffic);
            }
            events.push(usage.json.clone().into_bytes());
        }
        Ok((!events.is_empty()).then_some(Taken { events, last }))
    }

    /// Removes events that the receiver has taken.
    ///
    /// # Errors
    /// If that cannot be written: after a restart, they are sent again.
    pub(in crate::control) fn acknowledge(&mut self, taken: &Taken) -> io::Result<()> {
        self.spool.acknowledge(taken.last)
    }

    /// Makes what waits outlive a crash of the machine.
    ///
    /// # Errors
    /// If the file system fails.
    pub(in crate::control) fn sync(&mut self) -> io::Result<()> {
        self.spool.sync()
    }

    pub(in crate::control) fn spool(&self) -> &Spool {
        &self.spool
    }

    pub(in crate::control) fn set_limit(&mut self, limit: u64) {
        self.spool.set_limit(limit);
    }

    /// Returns the number of events that wait, the one of what was lost included.
    pub(in crate::control) fn waiting(&self) -> u64 {
        self.spool.records() + self.usage.len() as u64 + u64::from(self.lost.is_pending)
    }

    /// Returns the numbers of events that were dropped, and of those that are damaged.
    pub(in crate::control) fn dropped(&self) -> u64 {
        let damage = self.spool.damage();
        self.dropped + damage.torn + damage.lost
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::config::Config;
    use crate::transport::Transport;
    use crate::turn::{EndReason, FiveTuple};
    use crate::worker::SessionRecord;

    fn source() -> Source {
        Source::new(&Config::default(), "b00t")
    }

    fn session(number: usize) -> SessionId {
        format!("0-{number}-1").parse().unwrap()
    }

    fn traffic(bytes: u64) -> Traffic {
        Traffic { packets_to_peers: 1, bytes_to_peers: bytes, packets_to_client: 2, bytes_to_client: 2 * bytes }
    }

    fn started(number: usize) -> Event {
        let address = "192.0.2.1:1".parse().unwrap();
        source()
            .record(SessionRecord::Started {
                session: session(number),
                user: "ann".to_owned(),
                tuple: FiveTuple { client: address, server: address, transport: Transport::Udp },
                lifetime: 600,
            })
            .unwrap()
    }

    fn ended(number: usize, bytes: u64) -> Event {
        source()
            .record(SessionRecord::Ended {
                session: session(number),
                user: "ann".to_owned(),
                transport: Transport::Udp,
                duration: Duration::ZERO,
                traffic: traffic(bytes),
                reason: EndReason::Expired,
            })
            .unwrap()
    }

    fn usage(number: usize, bytes: u64) -> Rc<Event> {
        Rc::new(Event { kind: Kind::Usage, json: format!("{{\"usage\":{bytes}}}"), ..ended(number, bytes) })
    }

    fn queue(limit: u64) -> Queue {
        Queue::new(Spool::in_memory(limit)).0
    }

    /// Takes and acknowledges everything. Returns what was in each request.
    fn drain(queue: &mut Queue, most: usize) -> Vec<Vec<Value>> {
        let mut all = Vec::new();
        while let Some(taken) = queue.take(most, &source()).unwrap() {
            assert!(taken.events.len() <= most);
            all.push(taken.events.iter().map(|event| serde_json::from_slice(event).unwrap()).collect());
            queue.acknowledge(&taken).unwrap();
        }
        all
    }

    #[test]
    fn running_sums_keep_their_place_among_the_events_of_the_spool() {
        for most in [1, 2, 3, 100] {
            let mut queue = queue(1 << 20);
            queue.push(&started(1)).unwrap();
            queue.push_usage(&usage(1, 7));
            queue.push(&started(2)).unwrap();
            queue.push_usage(&usage(1, 8));
            queue.push_usage(&usage(2, 9));
            queue.push(&ended(3, 0)).unwrap();
            let events: Vec<Value> = drain(&mut queue, most).concat();
            let order: Vec<Value> = events
                .iter()
                .map(|event| match event.get("usage") {
                    Some(usage) => usage.clone(),
                    None => event["session"].clone(),
                })
                .collect();
            assert_eq!(json!(order), json!(["0-1-1", 7, "0-2-1", 8, 9, "0-3-1"]), "{most}");
        }
    }

    #[test]
    fn running_sums_that_wait_are_bounded_and_dropped_when_the_allocation_ends() {
        let mut queue = queue(1 << 20);
        let long = Rc::new(Event { json: "x".repeat(1 << 20), ..(*usage(1, 1)).clone() });
        for _ in 0..20 {
            queue.push_usage(&long);
        }
        assert_eq!((queue.waiting(), queue.usage_bytes), (16, MAX_USAGE));
        queue.push(&ended(1, 5)).unwrap();
        assert_eq!((queue.waiting(), queue.usage_bytes), (1, 0));
    }

    #[test]
    fn the_sums_of_what_does_not_fit_are_reported_once_there_is_room_without_what_was_reported_already() {
        let filler = Event { json: format!("\"{}\"", "x".repeat(500)), ..started(9) };
        let both = filler.json.len() + started(8).json.len() + 40;
        let mut queue = queue(both as u64 + 50);
        queue.push_usage(&usage(1, 40));
        assert_eq!(drain(&mut queue, 100).concat(), [json!({ "usage": 40 })]);
        queue.push(&started(8)).unwrap();
        queue.push(&filler).unwrap();
        for event in [ended(1, 100), ended(2, 10), started(3)] {
            assert!(matches!(queue.push(&event), Err(PushError::Full)));
        }
        let feed = source().lost(&LostRecords { started: 4, ended: 5, traffic: traffic(1_000) });
        queue.push(&feed).unwrap();
        assert_eq!(queue.dropped(), 3);
        let events = drain(&mut queue, 1).concat();
        let lost = events.last().unwrap();
        assert_eq!((&lost["type"], &lost["started"], &lost["ended"]), (&"events.lost".into(), &5.into(), &7.into()));
        // 100 - 40, 10 and 1000.
        assert_eq!((&lost["bytes_to_peers"], &lost["bytes_to_client"]), (&1_070.into(), &2_140.into()));
        // The next one has the same identifier, and the sums from the beginning.
        queue.push(&filler).unwrap();
        queue.push(&started(8)).unwrap();
        assert!(queue.push(&ended(4, 1)).is_err());
        let events = drain(&mut queue, 100).concat();
        let next = events.last().unwrap();
        assert_eq!((&next["lost"], &next["bytes_to_peers"]), (&lost["lost"], &1_071.into()));
    }

    #[test]
    fn events_that_are_taken_and_not_acknowledged_are_taken_again() {
        let mut queue = queue(1 << 20);
        for number in 0..5 {
            queue.push(&started(number)).unwrap();
        }
        let first = queue.take(3, &source()).unwrap().unwrap();
        queue.push(&started(5)).unwrap();
        assert_eq!(queue.take(3, &source()).unwrap().unwrap().events, first.events);
        queue.acknowledge(&first).unwrap();
        assert_eq!(queue.waiting(), 3);
    }
}
