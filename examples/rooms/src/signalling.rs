//! The signalling of one participant: a WebSocket from the upgrade to its end.

use std::net::IpAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout, timeout_at};
use turnserver::clock::unix_seconds;

use crate::http::Application;
use crate::ice_servers::Moves;
use crate::id::{ParticipantId, ResumeKey, RoomId};
use crate::message::{Address, ErrorCode, FromParticipant, Ice, Kind, Name, Peer, Signal, ToParticipant};
use crate::outbox::Inbox;
use crate::rate::{Bucket, Rate};
use crate::room::{Entry, LIMITS, Refusal, text};
use crate::rooms::Membership;

/// The time for the first message.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);

/// The interval of pings.
const PING: Duration = Duration::from_secs(20);

/// After this time without any message or pong, the connection ends at the next ping.
const SILENCE: Duration = Duration::from_secs(60);

/// The time in which a message has to leave.
const SEND: Duration = Duration::from_secs(10);

/// The time until credentials are requested again that could not be had.
const RENEWAL_RETRY: Duration = Duration::from_secs(30);

/// How fast messages are read. More messages wait in the network: a burst of candidates at the start of a call is
/// normal, and a lost one would be a call that fails.
const MESSAGES: Rate = Rate { burst: 50, interval: Duration::from_millis(50) };

/// After so many messages that no page sends, the connection is closed.
const MISTAKES: u32 = 3;

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The participant left.
    Left,
    /// The connection is broken.
    Lost,
    /// The participant did not join in time.
    Late,
    /// The participant was not let in.
    Refused,
    /// The participant sends what no page sends.
    Mistakes,
    /// Nothing has come for some time.
    Silent,
    /// The room has ended, the participant does not read its messages, or it has another connection.
    Closed,
}

impl End {
    /// Returns what the close frame says, if the other side may still read it.
    fn reason(self) -> Option<(u16, &'static str)> {
        Some(match self {
            Self::Left | Self::Lost => return None,
            Self::Late => (close_code::POLICY, "no join within 10 s"),
            Self::Refused => (close_code::NORMAL, "not in a room"),
            Self::Mistakes => (close_code::POLICY, "too many messages of a wrong form"),
            Self::Silent => (close_code::POLICY, "no message for 60 s"),
            Self::Closed => {
                (close_code::AWAY, "the room has ended, messages were not read, or another connection came")
            }
        })
    }
}

/// A participant that has entered.
struct Entered<'a> {
    membership: Membership<'a>,
    inbox: Inbox,
    /// The credentials, if there are any.
    ice: Option<Ice>,
}

/// Serves a participant at an address until the connection ends.
pub(crate) async fn serve(socket: WebSocket, source: IpAddr, application: Arc<Application>) {
    let now = Instant::now();
    let mut connection = Connection { socket, source, bucket: Bucket::new(now), next: now, mistakes: 0 };
    if let Some((code, reason)) = connection.run(&application).await.reason() {
        let frame = CloseFrame { code, reason: reason.into() };
        let _ = timeout(SEND, connection.socket.send(Message::Close(Some(frame)))).await;
    }
}

/// The connection of a participant.
struct Connection {
    socket: WebSocket,
    source: IpAddr,
    bucket: Bucket,
    /// When the next message is read.
    next: Instant,
    mistakes: u32,
}

impl Connection {
    async fn run(&mut self, application: &Application) -> End {
        let Entered { membership, mut inbox, ice } = match self.enter(application).await {
            Ok(entered) => entered,
            Err(end) => return end,
        };
        let room = membership.room.short().to_owned();
        let end = self.participate(application, &membership, &mut inbox, ice).await.err().unwrap_or(End::Left);
        if matches!(end, End::Left | End::Mistakes) {
            membership.leave();
            tracing::info!(%room, "a participant has left a room");
        } else {
            tracing::info!(%room, "the connection of a participant has ended");
        }
        end
    }

    /// Waits for `join` and lets the participant in.
    async fn enter<'a>(&mut self, application: &'a Application) -> Result<Entered<'a>, End> {
        let deadline = Instant::now() + FIRST_MESSAGE;
        let (room, name, kind, resume) = loop {
            let received = timeout_at(deadline, self.receive()).await.map_err(|_| End::Late)??;
            match self.read(received).await? {
                Some(FromParticipant::Join { room, name, kind, resume }) => break (room, name, kind, resume),
                Some(_) => self.mistake(ErrorCode::BadOrder, "The first message is join.").await?,
                None => {}
            }
        };
        match self.try_enter(application, room, &name, kind, resume).await {
            Ok((joined, entered)) => {
                self.send(&joined).await?;
                Ok(entered)
            }
            Err(refusal) => {
                self.refuse(refusal).await?;
                Err(End::Refused)
            }
        }
    }

    async fn try_enter<'a>(
        &mut self,
        application: &'a Application,
        room: RoomId,
        name: &str,
        kind: Kind,
        resume: Option<ResumeKey>,
    ) -> Result<(ToParticipant, Entered<'a>), Refusal> {
        if let Err(wait) = application.joins.take(self.source, Instant::now()) {
            let message = format!("Many participants enter from your address. Try again in {} s.", wait.as_secs() + 1);
            return Err(Refusal::new(ErrorCode::TooFast, message));
        }
        let name = Name::new(name).map_err(|error| Refusal::new(ErrorCode::BadName, error.to_string()))?;
        // Before the credentials, which may need a request to the relay.
        application.rooms.check(&room)?;
        let resumed = match &resume {
            Some(key) => application.rooms.resume(&room, key)?,
            None => None,
        };
        let is_resumed = resumed.is_some();
        let (membership, entry, resume, ice) = match (resumed, resume) {
            (Some((membership, entry)), Some(key)) => {
                // Without new credentials, its calls go on with the old ones.
                let ice = credentials(application, &membership.id).await.ok();
                (membership, entry, key, ice)
            }
            _ => {
                let (id, key) = identity().map_err(|error| {
                    tracing::error!("a participant was refused: {error}");
                    Refusal::new(ErrorCode::Internal, "The random source of the server failed.")
                })?;
                let ice = credentials(application, &id).await?;
                let (membership, entry) = application.rooms.enter(&room, Peer { id, name, kind }, key.clone())?;
                (membership, entry, key, Some(ice))
            }
        };
        let what = if is_resumed { "come back to" } else { "entered" };
        tracing::info!(room = %room.short(), "a participant has {what} a room");
        let Entry { mode, sender, peers, inbox, .. } = entry;
        let (id, ice_sent, resumed) = (membership.id.clone(), ice.clone(), is_resumed);
        let joined =
            ToParticipant::Joined { id, resume, resumed, room, mode, sender, peers, ice: ice_sent, limits: LIMITS };
        Ok((joined, Entered { membership, inbox, ice }))
    }

    /// Passes messages between the participant and the room.
    async fn participate(
        &mut self,
        application: &Application,
        membership: &Membership<'_>,
        inbox: &mut Inbox,
        ice: Option<Ice>,
    ) -> Result<(), End> {
        let now = Instant::now();
        let mut ping = interval_at(now + PING, PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut last_heard, mut renewal) = (now, ice.as_ref().map_or(now + RENEWAL_RETRY, renewal));
        let mut moves = application.ice.moves();
        ice.iter().for_each(|ice| moves.note(ice));
        loop {
            tokio::select! {
                received = self.receive() => {
                    last_heard = Instant::now();
                    let Some(message) = self.read(received?).await? else { continue };
                    match self.handle(application, membership, message).await? {
                        ControlFlow::Continue(None) => {}
                        ControlFlow::Continue(Some(ice)) => renewal = self.send_ice(ice, &mut moves).await?,
                        ControlFlow::Break(()) => return Ok(()),
                    }
                }
                message = inbox.recv() => match message {
                    Some(message) => self.send_text(&message).await?,
                    None => return Err(End::Closed),
                },
                _ = ping.tick() => {
                    if Instant::now() >= last_heard + SILENCE {
                        return Err(End::Silent);
                    }
                    self.send_frame(Message::Ping(Default::default())).await?;
                }
                () = sleep_until(renewal) => match credentials(application, &membership.id).await {
                    Ok(ice) => renewal = self.send_ice(ice, &mut moves).await?,
                    // The call goes on without. The next ICE restart needs new ones.
                    Err(_) => renewal = Instant::now() + RENEWAL_RETRY,
                },
                () = moves.due() => if let Some(ice) = moves.elsewhere(&application.ice, membership.id.as_str()).await {
                    tracing::info!(room = %membership.room.short(), "a participant moves: its relay drains");
                    renewal = self.send_ice(ice, &mut moves).await?;
                },
            }
        }
    }

    async fn send_ice(&mut self, ice: Ice, moves: &mut Moves) -> Result<Instant, End> {
        let renewal = renewal(&ice);
        moves.note(&ice);
        self.send(&ToParticipant::Ice(ice)).await?;
        Ok(renewal)
    }

    /// Handles a message of a participant in a room. Returns new credentials if it requests them.
    async fn handle(
        &mut self,
        application: &Application,
        membership: &Membership<'_>,
        message: FromParticipant,
    ) -> Result<ControlFlow<(), Option<Ice>>, End> {
        let id = &membership.id;
        let mut ice = None;
        let result = match message {
            FromParticipant::Join { .. } => {
                self.mistake(ErrorCode::BadOrder, "This connection is in a room already.").await?;
                Ok(())
            }
            FromParticipant::Signal { to, link, description, candidate, restart } => {
                match (Signal::new(description, candidate, restart), to, link) {
                    // Each participant offers, and restarts, on its own.
                    (Ok(Signal::Restart(_)), Address::Participant(_), _) => {
                        self.mistake(ErrorCode::BadMessage, "Only sfu takes a restart.").await?;
                        Ok(())
                    }
                    (Ok(signal), Address::Participant(to), None) => {
                        membership.with(|room| room.signal(id, &to, signal))
                    }
                    (Ok(signal), Address::Sfu, Some(link)) => {
                        membership.with(|room| room.signal_sfu(id, link, signal, Instant::now()))
                    }
                    (Ok(_), ..) => {
                        self.mistake(ErrorCode::BadMessage, "A signal to sfu, and no other, has a link.").await?;
                        Ok(())
                    }
                    (Err(reason), ..) => {
                        self.mistake(ErrorCode::BadMessage, reason).await?;
                        Ok(())
                    }
                }
            }
            FromParticipant::Mode { mode } => membership.with(|room| room.set_mode(mode, id, Instant::now())),
            FromParticipant::Layer { track, layer } => membership.with(|room| room.choose_layer(id, track, layer)),
            FromParticipant::Ice {} => credentials(application, id).await.map(|new| ice = Some(new)),
            FromParticipant::Leave {} => return Ok(ControlFlow::Break(())),
        };
        if let Err(refusal) = result {
            self.refuse(refusal).await?;
        }
        Ok(ControlFlow::Continue(ice))
    }

    /// Receives a frame. Nothing is lost if the caller stops waiting.
    async fn receive(&mut self) -> Result<Message, End> {
        sleep_until(self.next).await;
        let message = self.socket.recv().await.ok_or(End::Lost)?.map_err(|_| End::Lost)?;
        self.next = self.bucket.spend(MESSAGES, Instant::now());
        Ok(message)
    }

    /// Reads a frame. `None` for a ping, and for a message that has not the expected form.
    async fn read(&mut self, frame: Message) -> Result<Option<FromParticipant>, End> {
        match frame {
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(message) => return Ok(Some(message)),
                Err(error) => {
                    self.mistake(ErrorCode::BadMessage, &format!("The message is not understood: {error}.")).await?;
                }
            },
            Message::Binary(_) => self.mistake(ErrorCode::BadMessage, "Messages are text.").await?,
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(_) => return Err(End::Lost),
        }
        Ok(None)
    }

    /// Counts a message that no page of this server sends.
    async fn mistake(&mut self, code: ErrorCode, message: &str) -> Result<(), End> {
        self.refuse(Refusal::new(code, message)).await?;
        self.mistakes += 1;
        if self.mistakes >= MISTAKES {
            return Err(End::Mistakes);
        }
        Ok(())
    }

    async fn refuse(&mut self, Refusal { code, message }: Refusal) -> Result<(), End> {
        self.send(&ToParticipant::Error { code, message }).await
    }

    async fn send(&mut self, message: &ToParticipant) -> Result<(), End> {
        self.send_text(&text(message)).await
    }

    async fn send_text(&mut self, text: &str) -> Result<(), End> {
        self.send_frame(Message::text(text)).await
    }

    async fn send_frame(&mut self, frame: Message) -> Result<(), End> {
        let sent = timeout(SEND, self.socket.send(frame)).await;
        sent.map_err(|_| End::Lost)?.map_err(|_| End::Lost)
    }
}

/// Makes a new participant.
fn identity() -> Result<(ParticipantId, ResumeKey), getrandom::Error> {
    Ok((ParticipantId::random()?, ResumeKey::random()?))
}

/// Returns credentials for a participant.
async fn credentials(application: &Application, id: &ParticipantId) -> Result<Ice, Refusal> {
    // Where they come from, the reason is in the log.
    application
        .ice
        .get(id.as_str())
        .await
        .map_err(|_| Refusal::new(ErrorCode::Relay, "The server has no credentials for the relay. Try again later."))
}

/// Returns when credentials are renewed: when two thirds of their lifetime have passed.
fn renewal(ice: &Ice) -> Instant {
    let left = ice.expires.saturating_sub(unix_seconds());
    Instant::now() + Duration::from_secs((left * 2 / 3).max(1))
}
