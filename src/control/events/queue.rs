//! The events that wait for the receiver. The ends and starts of allocations are in the spool; running sums are in memory
//! only, because the next ones make up for them.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::rc::Rc;

use serde_json::Value;

use super::lost::{Lost, since};
use super::reported::Reported;
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
    reported: Reported,
    /// The running sums that were taken and not acknowledged, of allocations that have not ended.
    taken: HashMap<SessionId, Traffic>,
    /// What `lost` does not have because these sums have it. If they are not acknowledged, `lost` gets it.
    owed: Traffic,
    lost: Lost,
    /// Whether the spool keeps the present `lost`.
    is_noted: bool,
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
        let queue = Self {
            spool,
            usage: VecDeque::new(),
            usage_bytes: 0,
            reported: Reported::default(),
            taken: HashMap::new(),
            owed: Traffic::default(),
            lost,
            is_noted: true,
            dropped: 0,
        };
        (queue, result)
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
        let (reported, taken) = self.end(event);
        let result = self.spool.push(event.json.as_bytes());
        if result.is_err() {
            self.dropped += 1;
            match event.kind {
                Kind::Started => self.lose(1, 0, Traffic::default()),
                Kind::Ended => {
                    self.lose(0, 1, since(&event.traffic, &taken.unwrap_or(reported)));
                    self.owed += taken.map_or(Traffic::default(), |taken| since(&taken, &reported));
                }
                Kind::Usage | Kind::Lost | Kind::NodeStarted | Kind::NodeStopped => {}
            }
        }
        result
    }

    /// Forgets an allocation that has ended, if its end is not sent.
    pub(in crate::control) fn forget(&mut self, event: &Event) {
        self.end(event);
    }

    /// Notes an end. Returns the running sums that the receiver has got, and those that were taken for it.
    fn end(&mut self, event: &Event) -> (Traffic, Option<Traffic>) {
        let Some(session) = event.session.filter(|_| event.kind == Kind::Ended) else { return Default::default() };
        self.reported.end(session);
        (self.reported.remove(session), self.taken.remove(&session))
    }

    fn lose(&mut self, started: u64, ended: u64, traffic: Traffic) {
        self.lost.add(started, ended, traffic);
        // Without room even for this, the sums are in memory, and `sync` tries again.
        self.is_noted = self.spool.keep_note(&self.lost.to_note()).is_ok();
    }

    /// Adds running sums, unless too many wait.
    pub(in crate::control) fn push_usage(&mut self, event: &Rc<Event>) {
        if event.session.is_some_and(|session| !self.reported.list(session)) {
            return;
        }
        if self.usage_bytes + event.json.len() <= MAX_USAGE {
            self.usage_bytes += event.json.len();
            self.usage.push_back((self.spool.end(), Rc::clone(event)));
        }
    }

    /// Drops the running sums that wait, because they are not wanted at present.
    pub(in crate::control) fn clear_usage(&mut self) {
        self.usage.clear();
        self.usage_bytes = 0;
        self.reported.interrupt();
    }

    /// Notes that the running sums of all allocations have come.
    pub(in crate::control) fn usage_is_complete(&mut self) {
        self.reported.complete();
    }

    /// Gives up what was taken and not acknowledged. What is in the spool is taken again, running sums are not.
    pub(in crate::control) fn give_up(&mut self) {
        self.taken.clear();
        let owed = std::mem::take(&mut self.owed);
        if owed != Traffic::default() {
            self.lose(0, 0, owed);
        }
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
    /// none wait. What was taken before and not acknowledged is given up.
    ///
    /// # Errors
    /// If the file system fails.
    pub(in crate::control) fn take(&mut self, most: usize, source: &Source) -> io::Result<Option<Taken>> {
        self.give_up();
        self.report_lost(source);
        // The end of an allocation has their sums.
        while let Some((_, usage)) = self.usage.front()
            && usage.session.is_some_and(|session| self.reported.has_ended(session))
        {
            self.pop_usage(u64::MAX);
        }
        let front = self.spool.front();
        let before_usage = self.usage.front().map_or(u64::MAX, |(before, _)| before.saturating_sub(front));
        let room = most.min(usize::try_from(before_usage).unwrap_or(usize::MAX));
        let batch = if room > 0 { self.spool.read(room, MAX_BATCH)? } else { Default::default() };
        let last = batch.last.max(front.saturating_sub(1));
        let mut events = batch.records;
        while events.len() < most
            && let Some(usage) = self.pop_usage(last + 1)
        {
            let Some(session) = usage.session.filter(|session| !self.reported.has_ended(*session)) else { continue };
            self.taken.insert(session, usage.traffic);
            events.push(usage.json.clone().into_bytes());
        }
        Ok((!events.is_empty()).then_some(Taken { events, last }))
    }

    /// Removes the first running sums if they come before this record.
    fn pop_usage(&mut self, record: u64) -> Option<Rc<Event>> {
        let (_, usage) = self.usage.pop_front_if(|(before, _)| *before <= record)?;
        self.usage_bytes = self.usage_bytes.saturating_sub(usage.json.len());
        Some(usage)
    }

    /// Removes events that the receiver has taken.
    ///
    /// # Errors
    /// If that cannot be written: after a restart, they are sent again.
    pub(in crate::control) fn acknowledge(&mut self, taken: &Taken) -> io::Result<()> {
        for (session, traffic) in self.taken.drain() {
            self.reported.insert(session, traffic);
        }
        self.owed = Traffic::default();
        self.spool.acknowledge(taken.last)
    }

    /// Makes what waits outlive a crash of the machine.
    ///
    /// # Errors
    /// If the file system fails.
    pub(in crate::control) fn sync(&mut self) -> io::Result<()> {
        let noted = if self.is_noted { Ok(()) } else { self.spool.keep_note(&self.lost.to_note()) };
        self.is_noted = noted.is_ok();
        self.spool.sync().and(noted)
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
        let events = drain(&mut queue, 100).concat();
        assert_eq!(events.iter().map(|event| &event["session"]).collect::<Vec<_>>(), ["0-1-1"]);
        assert_eq!((queue.waiting(), queue.usage_bytes), (0, 0));
    }

    #[test]
    fn running_sums_of_an_allocation_that_has_ended_are_left_out() {
        for most in [1, 2, 100] {
            let mut queue = queue(1 << 20);
            for number in [1, 2, 1] {
                queue.push_usage(&usage(number, number as u64));
            }
            queue.push(&ended(1, 9)).unwrap();
            queue.push_usage(&usage(1, 3));
            let events = drain(&mut queue, most).concat();
            assert_eq!(json!(events)[0], json!({ "usage": 2 }), "{most}");
            assert_eq!((events.len(), queue.waiting(), queue.usage_bytes), (2, 0, 0), "{most}");
            assert_eq!(queue.reported.len(), 1);
        }
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

    /// Fills a small queue, so that ends do not fit.
    fn fill(queue: &mut Queue) {
        queue.push(&started(8)).unwrap();
        queue.set_limit(0);
    }

    #[test]
    fn running_sums_that_the_receiver_has_not_got_are_not_subtracted_from_what_was_lost() {
        let bytes = |queue: &Queue| queue.lost.traffic.bytes_to_peers;
        // The receiver has refused the batch, which is taken again without the running sums.
        let mut refused = queue(1 << 20);
        refused.push_usage(&usage(1, 40));
        assert_eq!(refused.take(100, &source()).unwrap().unwrap().events.len(), 1);
        assert!(refused.take(50, &source()).unwrap().is_none());
        fill(&mut refused);
        assert!(refused.push(&ended(1, 100)).is_err());
        assert_eq!(bytes(&refused), 100);
        // It has not responded yet when the end comes.
        for is_acknowledged in [true, false] {
            let mut waiting = queue(1 << 20);
            for sums in [30, 40] {
                waiting.push_usage(&usage(1, sums));
                let taken = waiting.take(100, &source()).unwrap().unwrap();
                if sums == 30 || is_acknowledged {
                    waiting.acknowledge(&taken).unwrap();
                }
            }
            waiting.push_usage(&usage(1, 50));
            let taken = waiting.take(100, &source()).unwrap();
            assert!(taken.is_some());
            fill(&mut waiting);
            assert!(waiting.push(&ended(1, 100)).is_err());
            assert_eq!(bytes(&waiting), 50);
            if is_acknowledged {
                waiting.acknowledge(&taken.unwrap()).unwrap();
            }
            waiting.give_up();
            let expected = match is_acknowledged {
                true => 50,
                // 30 is what it has got.
                false => 70,
            };
            assert_eq!((bytes(&waiting), waiting.reported.len()), (expected, 0));
        }
    }

    #[test]
    fn sums_of_a_batch_that_was_given_up_outlive_a_restart() {
        let directory = std::env::temp_dir().join(format!("turnserver-queue-{}", std::process::id()));
        let open = |limit| Queue::new(Spool::open(&directory, limit).unwrap()).0;
        let mut queue = open(1 << 20);
        queue.push_usage(&usage(1, 40));
        assert!(queue.take(100, &source()).unwrap().is_some());
        fill(&mut queue);
        assert!(queue.push(&ended(1, 100)).is_err());
        queue.give_up();
        queue.sync().unwrap();
        drop(queue);
        let events = drain(&mut open(1 << 20), 100).concat();
        std::fs::remove_dir_all(&directory).unwrap();
        let lost = events.last().unwrap();
        assert_eq!((&lost["type"], &lost["bytes_to_peers"]), (&"events.lost".into(), &100.into()));
    }

    #[test]
    fn sums_that_could_not_be_written_are_written_later() {
        let directory = std::env::temp_dir().join(format!("turnserver-queue-note-{}", std::process::id()));
        let mut queue = Queue::new(Spool::open(&directory, 1 << 20).unwrap()).0;
        fill(&mut queue);
        // Directories in the place of the files: root can write everything else.
        let obstacle = directory.join("note.next.new");
        std::fs::create_dir(&obstacle).unwrap();
        assert!(queue.push(&ended(1, 100)).is_err());
        assert!(queue.sync().is_err());
        std::fs::remove_dir(&obstacle).unwrap();
        queue.sync().unwrap();
        drop(queue);
        let queue = Queue::new(Spool::open(&directory, 1 << 20).unwrap()).0;
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(queue.lost.traffic.bytes_to_peers, 100);
    }
}
