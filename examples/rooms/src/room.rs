//! A room: who is in it, how media are sent, and what everyone in it receives.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::id::{ParticipantId, ResumeKey, RoomId};
use crate::message::{Address, ErrorCode, Kind, LayerChoice, Limits, Link, Mode, Peer, Signal, ToParticipant, Token};
use crate::outbox::{self, Inbox, Memory, Outbox};
use crate::rate::{Bucket, Rate};
use crate::sfu::{self, Command, Sfu};

/// The greatest numbers of participants.
pub const LIMITS: Limits = Limits { mesh: 6, room: 50 };

/// How long the place of a participant is kept whose connection was lost.
pub(crate) const ABSENCE: Duration = Duration::from_secs(30);

/// How fast the mode may change. Each change makes and ends connections of everyone.
const MODES: Rate = Rate { burst: 10, interval: Duration::from_secs(2) };

/// How fast forwarding units that have failed are started again.
const SFU_STARTS: Rate = Rate { burst: 3, interval: Duration::from_secs(20) };

/// Why the server does not do what a participant wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// A participant in a room.
#[derive(Debug)]
struct Participant {
    peer: Peer,
    /// With which it comes back after its connection was lost.
    resume: ResumeKey,
    /// Its connection. An earlier one of the same participant may not have ended yet.
    connection: u64,
    /// `None` if the connection was lost, or has to be closed.
    outbox: Option<Outbox>,
    /// Since when the connection is lost.
    absent_since: Option<Instant>,
}

/// A room.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) created: Instant,
    /// Since when it is empty.
    pub(crate) empty_since: Option<Instant>,
    mode: Mode,
    sender: Option<ParticipantId>,
    participants: Vec<Participant>,
    next_connection: u64,
    mode_changes: Bucket,
    /// How often a failed forwarding unit was started again.
    sfu_starts: Bucket,
    /// For the messages of all rooms.
    memory: Memory,
    /// How the forwarding unit is started, and its name at the relay.
    sfu_settings: Arc<sfu::Settings>,
    sfu_name: String,
    /// Runs except in a mesh.
    sfu: Option<Sfu>,
}

/// What a participant learns about the room that it enters.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) connection: u64,
    pub(crate) mode: Mode,
    pub(crate) sender: Option<ParticipantId>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) inbox: Inbox,
}

impl Room {
    pub(crate) fn new(id: &RoomId, sfu_settings: Arc<sfu::Settings>, memory: Memory, now: Instant) -> Self {
        Self {
            created: now,
            empty_since: Some(now),
            mode: Mode::default(),
            sender: None,
            participants: Vec::new(),
            next_connection: 0,
            mode_changes: Bucket::new(now),
            sfu_starts: Bucket::new(now),
            memory,
            sfu_settings,
            sfu_name: format!("sfu-{}", id.short()),
            sfu: None,
        }
    }

    /// Lets a participant in.
    pub(crate) fn enter(&mut self, peer: Peer, resume: ResumeKey) -> Result<Entry, Refusal> {
        let present = self.participants.len();
        if present >= LIMITS.room {
            return Err(Refusal::new(
                ErrorCode::RoomFull,
                format!("This room is full: it has {} places.", LIMITS.room),
            ));
        }
        if self.mode == Mode::Mesh && present >= LIMITS.mesh {
            let message = format!(
                "This call has {} participants already, each connected to each. Ask one of them to switch the room to \
                 the forwarding unit; then there is place for {}.",
                LIMITS.mesh, LIMITS.room
            );
            return Err(Refusal::new(ErrorCode::MeshFull, message));
        }
        self.send_to_all(&ToParticipant::PeerJoined { peer: peer.clone() });
        self.empty_since = None;
        let participant = Participant { peer, resume, connection: 0, outbox: None, absent_since: None };
        Ok(self.connect(participant))
    }

    /// Lets a participant come back as itself, and closes its earlier connection. `None` if its place is not kept.
    pub(crate) fn resume(&mut self, key: &ResumeKey) -> Option<(ParticipantId, Entry)> {
        let index = self.participants.iter().position(|participant| participant.resume == *key)?;
        let participant = self.participants.remove(index);
        let id = participant.peer.id.clone();
        self.send_to_all(&ToParticipant::PeerResumed { id: id.clone() });
        Some((id, self.connect(participant)))
    }

    /// Adds a participant with a new connection. What waits for an earlier one is lost.
    fn connect(&mut self, mut participant: Participant) -> Entry {
        let (outbox, inbox) = outbox::channel(&self.memory);
        if let Some(sfu) = &self.sfu {
            sfu.command(Command::Enter { id: participant.peer.id.clone(), outbox: outbox.downgrade() });
        }
        let connection = self.next_connection;
        self.next_connection += 1;
        (participant.connection, participant.outbox, participant.absent_since) = (connection, Some(outbox), None);
        let peers = self.participants.iter().map(|participant| participant.peer.clone()).collect();
        self.participants.push(participant);
        Entry { connection, mode: self.mode, sender: self.sender.clone(), peers, inbox }
    }

    /// Keeps the place of a participant whose connection was lost. Bots do not come back.
    pub(crate) fn lose(&mut self, id: &ParticipantId, connection: u64, now: Instant) {
        let Some(participant) = self.find(id, connection) else { return };
        if participant.peer.kind == Kind::Bot {
            self.remove(id, now);
        } else {
            (participant.outbox, participant.absent_since) = (None, Some(now));
        }
    }

    /// Lets a participant out.
    pub(crate) fn leave(&mut self, id: &ParticipantId, connection: u64, now: Instant) {
        if self.find(id, connection).is_some() {
            self.remove(id, now);
        }
    }

    /// Lets those out who have been absent for too long.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let is_gone = |participant: &&Participant| participant.absent_since.is_some_and(|since| now >= since + ABSENCE);
        let gone: Vec<_> =
            self.participants.iter().filter(is_gone).map(|participant| participant.peer.id.clone()).collect();
        gone.iter().for_each(|id| self.remove(id, now));
    }

    /// Finds a participant, unless this connection is an earlier one.
    fn find(&mut self, id: &ParticipantId, connection: u64) -> Option<&mut Participant> {
        let is_it = |participant: &&mut Participant| participant.peer.id == *id && participant.connection == connection;
        self.participants.iter_mut().find(is_it)
    }

    fn remove(&mut self, id: &ParticipantId, now: Instant) {
        self.participants.retain(|participant| participant.peer.id != *id);
        if let Some(sfu) = &self.sfu {
            sfu.command(Command::Leave(id.clone()));
        }
        self.send_to_all(&ToParticipant::PeerLeft { id: id.clone() });
        if self.participants.is_empty() {
            self.empty_since = Some(now);
            (self.mode, self.sender, self.sfu) = (Mode::default(), None, None);
        }
        // A broadcast without its sender stays one: in another mode, the pages of all viewers would begin to send.
    }

    /// Changes how media are sent. The participant that starts a broadcast is its sender.
    pub(crate) fn set_mode(&mut self, mode: Mode, by: &ParticipantId, now: Instant) -> Result<(), Refusal> {
        if mode == Mode::Mesh && self.participants.len() > LIMITS.mesh {
            let message = format!("A mesh has at most {} participants. Stay with the forwarding unit.", LIMITS.mesh);
            return Err(Refusal::new(ErrorCode::MeshFull, message));
        }
        let sender = (mode == Mode::Broadcast).then(|| by.clone());
        if (mode, &sender) == (self.mode, &self.sender) {
            self.revive_sfu(now);
            return Ok(());
        }
        if let Err(wait) = self.mode_changes.take(MODES, now) {
            let message = format!("The mode of this room was changed often. Try again in {} s.", wait.as_secs() + 1);
            return Err(Refusal::new(ErrorCode::TooFast, message));
        }
        (self.mode, self.sender) = (mode, sender);
        self.send_to_all(&ToParticipant::Mode { mode, by: by.clone(), sender: self.sender.clone() });
        self.update_sfu();
        Ok(())
    }

    /// Starts the forwarding unit if the mode needs it, and stops it otherwise.
    fn update_sfu(&mut self) {
        if self.mode == Mode::Mesh {
            self.sfu = None;
            return;
        }
        if self.sfu.as_ref().is_none_or(Sfu::has_ended) {
            let sfu = Sfu::start(&self.sfu_settings, self.sfu_name.clone());
            for Participant { peer, outbox, .. } in &self.participants {
                if let Some(outbox) = outbox {
                    sfu.command(Command::Enter { id: peer.id.clone(), outbox: outbox.downgrade() });
                }
            }
            self.sfu = Some(sfu);
        }
        self.command_sfu(Command::Sender(self.sender.clone())).unwrap_or_default();
    }

    pub(crate) fn sfu_has_failed(&self) -> bool {
        self.sfu.as_ref().is_some_and(Sfu::has_ended)
    }

    /// Starts the forwarding unit again if it has failed. Its participants notice another certificate.
    fn revive_sfu(&mut self, now: Instant) {
        if self.sfu_has_failed() && self.sfu_starts.take(SFU_STARTS, now).is_ok() {
            tracing::warn!("a forwarding unit has failed, and another one takes its place");
            self.update_sfu();
        }
    }

    fn command_sfu(&self, command: Command) -> Result<(), Refusal> {
        let refusal = |message: &str| Refusal::new(ErrorCode::Sfu, message);
        let Some(sfu) = &self.sfu else { return Err(refusal("This room has no forwarding unit: it is a mesh.")) };
        if sfu.command(command) {
            Ok(())
        } else if sfu.has_ended() {
            Err(refusal("The forwarding unit has failed. Try again in some seconds, or choose the mesh."))
        } else {
            Err(refusal("The forwarding unit is too busy. Try again in some seconds."))
        }
    }

    /// Passes a signal on to the forwarding unit.
    pub(crate) fn signal_sfu(
        &mut self,
        from: &ParticipantId,
        link: Link,
        signal: Signal,
        now: Instant,
    ) -> Result<(), Refusal> {
        self.revive_sfu(now);
        self.command_sfu(Command::Signal { from: from.clone(), link, signal })
    }

    /// Chooses the layer of a track of the forwarding unit.
    pub(crate) fn choose_layer(&self, from: &ParticipantId, track: Token, choice: LayerChoice) -> Result<(), Refusal> {
        self.command_sfu(Command::Layer { from: from.clone(), track, choice })
    }

    /// Passes a signal on to another participant.
    pub(crate) fn signal(&mut self, from: &ParticipantId, to: &str, signal: Signal) -> Result<(), Refusal> {
        let recipient = self.participants.iter_mut().find(|participant| participant.peer.id.as_str() == to);
        let Some(recipient) = recipient.filter(|recipient| recipient.peer.id != *from) else {
            return Err(Refusal::new(ErrorCode::NoSuchPeer, "This participant has left the room."));
        };
        let from = Address::Participant(from.to_string());
        recipient.send(&text(&ToParticipant::Signal { from, link: None, signal }));
        Ok(())
    }

    /// Sends a last message to everyone.
    pub(crate) fn close(&mut self, reason: &str) {
        self.send_to_all(&ToParticipant::Closing { reason: reason.to_owned() });
        self.participants.clear();
    }

    fn send_to_all(&mut self, message: &ToParticipant) {
        let message = text(message);
        self.participants.iter_mut().for_each(|participant| participant.send(&message));
    }
}

impl Participant {
    /// Sends a message, unless the connection is lost. The connection of a participant that reads too slowly to receive
    /// it is closed, because its view of the room would be wrong from then on.
    fn send(&mut self, message: &Arc<str>) {
        let is_sent = self.outbox.as_ref().is_some_and(|outbox| outbox.send(message));
        if !is_sent {
            self.outbox = None;
        }
    }
}

/// Returns a message as JSON.
pub(crate) fn text(message: &ToParticipant) -> Arc<str> {
    serde_json::to_string(message).unwrap_or_default().into()
}
