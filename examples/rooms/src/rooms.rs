//! All rooms: made, found, and forgotten when nobody uses them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::id::{ParticipantId, ResumeKey, RoomId};
use crate::message::{ErrorCode, Peer};
use crate::outbox::Memory;
use crate::room::{Entry, Refusal, Room};
use crate::sfu;

/// How long an empty room is kept.
const EMPTY: Duration = Duration::from_secs(10 * 60);

/// How long a room exists at most.
const OLDEST: Duration = Duration::from_secs(24 * 60 * 60);

/// The rooms.
#[derive(Debug)]
pub(crate) struct Rooms {
    rooms: Mutex<HashMap<RoomId, Room>>,
    most: usize,
    sfu: Arc<sfu::Settings>,
    memory: Memory,
}

/// Why no room was made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotMade {
    #[error("This server has no place for another room. Try again in some minutes.")]
    TooMany,
    #[error("The random source of the system failed.")]
    Random(#[from] getrandom::Error),
}

/// A participant in a room. When this is dropped, its connection is lost, and it may come back.
#[derive(Debug)]
pub(crate) struct Membership<'r> {
    rooms: &'r Rooms,
    pub(crate) room: RoomId,
    pub(crate) id: ParticipantId,
    connection: u64,
}

impl Rooms {
    pub(crate) fn new(most: usize, sfu: Arc<sfu::Settings>) -> Self {
        Self { rooms: Mutex::default(), most, sfu, memory: Memory::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RoomId, Room>> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a room.
    pub(crate) fn make(&self) -> Result<RoomId, NotMade> {
        let (mut rooms, id) = (self.lock(), RoomId::random()?);
        if rooms.len() >= self.most {
            return Err(NotMade::TooMany);
        }
        rooms.insert(id.clone(), Room::new(&id, Arc::clone(&self.sfu), self.memory.clone(), Instant::now()));
        Ok(id)
    }

    /// Checks that a room exists.
    pub(crate) fn check(&self, room: &RoomId) -> Result<(), Refusal> {
        self.with(room, |_| ())
    }

    /// Lets a participant into a room.
    pub(crate) fn enter(
        &self,
        room: &RoomId,
        peer: Peer,
        resume: ResumeKey,
    ) -> Result<(Membership<'_>, Entry), Refusal> {
        let id = peer.id.clone();
        let entry = self.with(room, |room| room.enter(peer, resume))??;
        Ok((self.membership(room, id, &entry), entry))
    }

    /// Lets a participant come back as itself. `None` if its place is not kept.
    pub(crate) fn resume(&self, room: &RoomId, key: &ResumeKey) -> Result<Option<(Membership<'_>, Entry)>, Refusal> {
        let resumed = self.with(room, |room| room.resume(key))?;
        Ok(resumed.map(|(id, entry)| (self.membership(room, id, &entry), entry)))
    }

    fn membership(&self, room: &RoomId, id: ParticipantId, entry: &Entry) -> Membership<'_> {
        Membership { rooms: self, room: room.clone(), id, connection: entry.connection }
    }

    fn with<T>(&self, id: &RoomId, action: impl FnOnce(&mut Room) -> T) -> Result<T, Refusal> {
        let missing = || {
            let message = "There is no such room: it was empty for too long, or the link is wrong. Make a new room.";
            Refusal::new(ErrorCode::NoSuchRoom, message)
        };
        self.lock().get_mut(id).map(action).ok_or_else(missing)
    }

    /// Forgets the participants and the rooms whose time has passed.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        self.lock().retain(|_, room| {
            room.sweep(now);
            let is_old = now >= room.created + OLDEST;
            let is_abandoned = room.empty_since.is_some_and(|since| now >= since + EMPTY);
            if is_old {
                room.close("This room is 24 hours old and has ended. Make a new one.");
            }
            !is_old && !is_abandoned
        });
    }

    /// Closes all rooms.
    pub(crate) fn close(&self, reason: &str) {
        self.lock().drain().for_each(|(_, mut room)| room.close(reason));
    }
}

impl Membership<'_> {
    /// Does something with the room.
    pub(crate) fn with<T>(&self, action: impl FnOnce(&mut Room) -> Result<T, Refusal>) -> Result<T, Refusal> {
        self.rooms.with(&self.room, action)?
    }

    /// Leaves the room for good.
    pub(crate) fn leave(self) {
        // A room that has ended needs nothing.
        let _ = self.rooms.with(&self.room, |room| room.leave(&self.id, self.connection, Instant::now()));
    }
}

impl Drop for Membership<'_> {
    fn drop(&mut self) {
        // A room that has ended needs nothing.
        let _ = self.rooms.with(&self.room, |room| room.lose(&self.id, self.connection, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use std::net::IpAddr;

    use super::*;
    use crate::ice_servers::IceServers;
    use crate::message::{Kind, Link, Mode, Name, Signal};
    use crate::room::LIMITS;

    /// Returns rooms whose forwarding units reach nobody.
    fn rooms(most: usize) -> Rooms {
        rooms_with(most, Vec::new())
    }

    /// Returns rooms whose forwarding units have these host addresses.
    fn rooms_with(most: usize, hosts: Vec<IpAddr>) -> Rooms {
        // Any file is as good as one with a key: no request is sent.
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let key =
            crate::ice_servers::Endpoint::new(&["http://127.0.0.1:1/".to_owned()], &path, String::new(), 60).unwrap();
        let (ice, (_, stop)) = (Arc::new(IceServers::Fetched(Box::new(key))), tokio::sync::watch::channel(false));
        let trust = crate::connect::Trust::default();
        Rooms::new(most, Arc::new(sfu::Settings { hosts, ice, trust, _stop: stop }))
    }

    fn peer(name: &str) -> Peer {
        Peer { id: ParticipantId::random().unwrap(), name: Name::new(name).unwrap(), kind: Kind::Browser }
    }

    fn enter<'r>(rooms: &'r Rooms, room: &RoomId, name: &str) -> Result<(Membership<'r>, Entry), Refusal> {
        rooms.enter(room, peer(name), ResumeKey::random().unwrap())
    }

    async fn after(rooms: &Rooms, seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        rooms.sweep();
    }

    #[tokio::test(start_paused = true)]
    async fn a_room_is_forgotten_ten_minutes_after_the_last_one_left() {
        let rooms = rooms(10);
        let room = rooms.make().unwrap();
        after(&rooms, 599).await;
        let (membership, _entry) = enter(&rooms, &room, "a").unwrap();
        after(&rooms, 3_600).await;
        membership.leave();
        after(&rooms, 599).await;
        enter(&rooms, &room, "b").unwrap().0.leave();
        after(&rooms, 599).await;
        enter(&rooms, &room, "c").unwrap().0.leave();
        after(&rooms, 600).await;
        assert_eq!(enter(&rooms, &room, "d").unwrap_err().code, ErrorCode::NoSuchRoom);
    }

    #[tokio::test(start_paused = true)]
    async fn a_room_ends_after_a_day_although_somebody_is_in_it() {
        let rooms = rooms(10);
        let room = rooms.make().unwrap();
        let (_membership, mut entry) = enter(&rooms, &room, "a").unwrap();
        after(&rooms, 24 * 3_600 - 1).await;
        assert!(entry.inbox.recv().now_or_never().is_none());
        after(&rooms, 1).await;
        assert!(entry.inbox.recv().await.unwrap().contains(r#""type":"closing""#));
        assert!(entry.inbox.recv().await.is_none());
        assert!(enter(&rooms, &room, "b").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn there_are_no_more_rooms_than_allowed() {
        let rooms = rooms(2);
        rooms.make().unwrap();
        rooms.make().unwrap();
        assert!(matches!(rooms.make(), Err(NotMade::TooMany)));
        after(&rooms, 600).await;
        rooms.make().unwrap();
    }

    #[tokio::test]
    async fn a_mesh_has_six_places_and_a_room_with_the_forwarding_unit_fifty() {
        let rooms = rooms(1);
        let room = rooms.make().unwrap();
        let enter = || enter(&rooms, &room, "a");
        let mut inside: Vec<_> = (0..LIMITS.mesh).map(|_| enter().unwrap()).collect();
        assert_eq!(enter().unwrap_err().code, ErrorCode::MeshFull);
        let set = |membership: &Membership<'_>, mode| {
            membership.with(|room| room.set_mode(mode, &membership.id, Instant::now()))
        };
        set(&inside[0].0, Mode::Sfu).unwrap();
        inside.extend((LIMITS.mesh..LIMITS.room).map(|_| enter().unwrap()));
        assert_eq!(enter().unwrap_err().code, ErrorCode::RoomFull);
        assert_eq!(set(&inside[0].0, Mode::Mesh).unwrap_err().code, ErrorCode::MeshFull);
        inside.drain(LIMITS.mesh..).for_each(|(membership, _)| membership.leave());
        set(&inside[0].0, Mode::Mesh).unwrap();
    }

    #[tokio::test]
    async fn a_participant_that_does_not_read_is_disconnected() {
        let rooms = rooms(1);
        let room = rooms.make().unwrap();
        let (slow, mut entry) = enter(&rooms, &room, "slow").unwrap();
        let (busy, _entry) = enter(&rooms, &room, "busy").unwrap();
        for _ in 0..600 {
            busy.with(|room| room.signal(&busy.id, slow.id.as_str(), Signal::Candidate(None))).unwrap();
        }
        assert!(entry.inbox.recv().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_participant_comes_back_within_thirty_seconds_and_not_later() {
        let rooms = rooms(1);
        let room = rooms.make().unwrap();
        let key = ResumeKey::random().unwrap();
        let (other, mut inbox) = enter(&rooms, &room, "other").map(|(other, entry)| (other, entry.inbox)).unwrap();
        let (membership, _entry) = rooms.enter(&room, peer("a"), key.clone()).unwrap();
        let id = membership.id.clone();
        let mut next = || {
            inbox.recv().now_or_never().flatten().and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok())
        };
        assert_eq!(next().unwrap()["type"], "peer-joined");

        drop(membership);
        after(&rooms, 29).await;
        assert_eq!(next(), None, "nobody else notices a short absence");
        let (again, entry) = rooms.resume(&room, &key).unwrap().unwrap();
        assert_eq!((&again.id, entry.peers.len()), (&id, 1));
        assert_eq!(next().unwrap(), serde_json::json!({"type": "peer-resumed", "id": id}));
        after(&rooms, 3_600).await;
        assert_eq!(next(), None);

        drop(again);
        after(&rooms, 30).await;
        assert_eq!(next().unwrap(), serde_json::json!({"type": "peer-left", "id": id}));
        assert!(rooms.resume(&room, &key).unwrap().is_none());
        drop(other);
        after(&rooms, 30).await;
        after(&rooms, 600).await;
        assert_eq!(rooms.check(&room).unwrap_err().code, ErrorCode::NoSuchRoom);
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_connection_closes_and_its_end_changes_nothing() {
        let rooms = rooms(1);
        let room = rooms.make().unwrap();
        let key = ResumeKey::random().unwrap();
        let (old, mut entry) = rooms.enter(&room, peer("a"), key.clone()).unwrap();
        let (new, mut new_entry) = rooms.resume(&room, &key).unwrap().unwrap();
        assert!(entry.inbox.recv().await.is_none());
        old.leave();
        after(&rooms, 60).await;
        enter(&rooms, &room, "b").unwrap();
        assert!(new_entry.inbox.recv().await.unwrap().contains("peer-joined"));
        assert!(rooms.resume(&room, &ResumeKey::random().unwrap()).unwrap().is_none());
        drop(new);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bot_leaves_with_its_connection() {
        let rooms = rooms(1);
        let room = rooms.make().unwrap();
        let (_other, mut entry) = enter(&rooms, &room, "other").unwrap();
        let bot = Peer { kind: Kind::Bot, ..peer("bot") };
        drop(rooms.enter(&room, bot, ResumeKey::random().unwrap()).unwrap());
        assert!(entry.inbox.recv().await.unwrap().contains("peer-joined"));
        assert!(entry.inbox.recv().await.unwrap().contains("peer-left"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_broadcast_whose_sender_is_gone_stays_one_until_a_participant_selects_a_mode() {
        let rooms = rooms(1);
        let room = rooms.make().unwrap();
        let (sender, _entry) = enter(&rooms, &room, "sender").unwrap();
        let (viewer, mut entry) = enter(&rooms, &room, "viewer").unwrap();
        sender.with(|room| room.set_mode(Mode::Broadcast, &sender.id, Instant::now())).unwrap();
        let gone = sender.id.clone();
        sender.leave();
        let mut types = Vec::new();
        while let Ok(Some(text)) = tokio::time::timeout(Duration::from_secs(1), entry.inbox.recv()).await {
            types.push(serde_json::from_str::<serde_json::Value>(&text).unwrap()["type"].clone());
        }
        assert_eq!(types, ["mode", "peer-left"]);
        let (_late, entry) = enter(&rooms, &room, "late").unwrap();
        assert_eq!((entry.mode, entry.sender), (Mode::Broadcast, Some(gone)));
        viewer.with(|room| room.set_mode(Mode::Broadcast, &viewer.id, Instant::now())).unwrap();
        let (_later, entry) = enter(&rooms, &room, "later").unwrap();
        assert_eq!(entry.sender, Some(viewer.id.clone()));
    }

    #[tokio::test]
    async fn a_forwarding_unit_that_fails_is_started_again_three_times() {
        // Nobody has this address (RFC 5737).
        let rooms = rooms_with(1, vec!["203.0.113.1".parse().unwrap()]);
        let room = rooms.make().unwrap();
        let (participant, _entry) = enter(&rooms, &room, "a").unwrap();
        participant.with(|room| room.set_mode(Mode::Sfu, &participant.id, Instant::now())).unwrap();
        let signal = || {
            participant
                .with(|room| room.signal_sfu(&participant.id, Link::Publish, Signal::Candidate(None), Instant::now()))
        };
        let has_failed = || rooms.with(&room, |room| room.sfu_has_failed()).unwrap();
        for _ in 0..3 {
            while !has_failed() {
                tokio::task::yield_now().await;
            }
            signal().unwrap();
        }
        while !has_failed() {
            tokio::task::yield_now().await;
        }
        assert!(signal().unwrap_err().message.starts_with("The forwarding unit has failed."));
    }

    #[tokio::test(start_paused = true)]
    async fn a_room_that_becomes_empty_is_a_mesh_again() {
        let rooms = rooms(1);
        let room = rooms.make().unwrap();
        let (last, _entry) = enter(&rooms, &room, "last").unwrap();
        last.with(|room| room.set_mode(Mode::Broadcast, &last.id, Instant::now())).unwrap();
        last.leave();
        let (_next, entry) = enter(&rooms, &room, "next").unwrap();
        assert_eq!((entry.mode, entry.sender), (Mode::Mesh, None));
    }

    #[tokio::test(start_paused = true)]
    async fn the_mode_changes_ten_times_at_once_and_then_every_two_seconds() {
        let rooms = rooms(1);
        let room = rooms.make().unwrap();
        let (busy, _entry) = enter(&rooms, &room, "busy").unwrap();
        let mut modes = [Mode::Sfu, Mode::Mesh].into_iter().cycle();
        let mut change = || busy.with(|room| room.set_mode(modes.next().unwrap(), &busy.id, Instant::now()));
        (0..10).for_each(|_| change().unwrap());
        assert_eq!(change().unwrap_err().code, ErrorCode::TooFast);
        tokio::time::advance(Duration::from_secs(2)).await;
        busy.with(|room| room.set_mode(Mode::Sfu, &busy.id, Instant::now())).unwrap();
    }
}
