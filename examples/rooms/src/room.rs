//! A room: who is in it, how media are sent, and what everyone in it receives.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::id::{ParticipantId, RoomId};
use crate::message::{Address, ErrorCode, LayerChoice, Limits, Link, Mode, Peer, Signal, ToParticipant, Token};
use crate::sfu::{self, Command, Sfu};

/// The greatest numbers of participants.
pub const LIMITS: Limits = Limits { mesh: 6, room: 50 };

/// How many messages may wait for a participant.
const WAITING: usize = 512;

/// The messages that wait for a participant, as JSON. The connection is closed after the last one.
pub(crate) type Inbox = mpsc::Receiver<Arc<str>>;

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
    /// `None` if the connection has to be closed.
    outbox: Option<mpsc::Sender<Arc<str>>>,
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
    /// How the forwarding unit is started, and its name at the relay.
    sfu_settings: Arc<sfu::Settings>,
    sfu_name: String,
    /// Runs except in a mesh.
    sfu: Option<Sfu>,
}

/// What a participant learns about the room that it enters.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) mode: Mode,
    pub(crate) sender: Option<ParticipantId>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) inbox: Inbox,
}

impl Room {
    pub(crate) fn new(id: &RoomId, sfu_settings: Arc<sfu::Settings>, now: Instant) -> Self {
        Self {
            created: now,
            empty_since: Some(now),
            mode: Mode::default(),
            sender: None,
            participants: Vec::new(),
            sfu_settings,
            sfu_name: format!("sfu-{}", id.short()),
            sfu: None,
        }
    }

    /// Lets a participant in.
    pub(crate) fn enter(&mut self, peer: Peer) -> Result<Entry, Refusal> {
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
        let peers = self.participants.iter().map(|participant| participant.peer.clone()).collect();
        let (outbox, inbox) = mpsc::channel(WAITING);
        if let Some(sfu) = &self.sfu {
            sfu.command(Command::Enter { id: peer.id.clone(), outbox: outbox.downgrade() });
        }
        self.participants.push(Participant { peer, outbox: Some(outbox) });
        self.empty_since = None;
        Ok(Entry { mode: self.mode, sender: self.sender.clone(), peers, inbox })
    }

    /// Lets a participant out.
    pub(crate) fn leave(&mut self, id: &ParticipantId, now: Instant) {
        let before = self.participants.len();
        self.participants.retain(|participant| participant.peer.id != *id);
        if self.participants.len() == before {
            return;
        }
        if let Some(sfu) = &self.sfu {
            sfu.command(Command::Leave(id.clone()));
        }
        self.send_to_all(&ToParticipant::PeerLeft { id: id.clone() });
        if self.participants.is_empty() {
            self.empty_since = Some(now);
            (self.mode, self.sender, self.sfu) = (Mode::default(), None, None);
        } else if self.sender.as_ref() == Some(id) {
            // A broadcast without its sender would show nothing.
            (self.mode, self.sender) = (Mode::Sfu, None);
            self.send_to_all(&ToParticipant::Mode { mode: self.mode, by: id.clone(), sender: None });
            self.update_sfu();
        }
    }

    /// Changes how media are sent. In a broadcast, who starts it is the sender.
    pub(crate) fn set_mode(&mut self, mode: Mode, by: &ParticipantId) -> Result<(), Refusal> {
        if mode == Mode::Mesh && self.participants.len() > LIMITS.mesh {
            let message = format!("A mesh has at most {} participants. Stay with the forwarding unit.", LIMITS.mesh);
            return Err(Refusal::new(ErrorCode::MeshFull, message));
        }
        let sender = (mode == Mode::Broadcast).then(|| by.clone());
        if (mode, &sender) == (self.mode, &self.sender) {
            return Ok(());
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
            for Participant { peer, outbox } in &self.participants {
                if let Some(outbox) = outbox {
                    sfu.command(Command::Enter { id: peer.id.clone(), outbox: outbox.downgrade() });
                }
            }
            self.sfu = Some(sfu);
        }
        self.command_sfu(Command::Sender(self.sender.clone())).unwrap_or_default();
    }

    fn command_sfu(&self, command: Command) -> Result<(), Refusal> {
        let refusal = |message: &str| Refusal::new(ErrorCode::Sfu, message);
        let Some(sfu) = &self.sfu else { return Err(refusal("This room has no forwarding unit: it is a mesh.")) };
        if sfu.command(command) { Ok(()) } else { Err(refusal("The forwarding unit is too busy, or has failed.")) }
    }

    /// Passes a signal on to the forwarding unit.
    pub(crate) fn signal_sfu(&self, from: &ParticipantId, link: Link, signal: Signal) -> Result<(), Refusal> {
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
    /// Sends a message. The connection of a participant that reads too slowly to receive it is closed, because its view
    /// of the room would be wrong from then on.
    fn send(&mut self, message: &Arc<str>) {
        let is_sent = self.outbox.as_ref().is_some_and(|outbox| outbox.try_send(Arc::clone(message)).is_ok());
        if !is_sent {
            self.outbox = None;
        }
    }
}

/// Returns a message as JSON.
pub(crate) fn text(message: &ToParticipant) -> Arc<str> {
    serde_json::to_string(message).unwrap_or_default().into()
}
