//! The signalling of one participant: a WebSocket from the upgrade to its end.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout, timeout_at};
use turnserver::clock::unix_seconds;

use crate::http::Application;
use crate::id::ParticipantId;
use crate::message::{Address, ErrorCode, FromParticipant, Ice, Kind, Name, Peer, Signal, ToParticipant};
use crate::rate::{Bucket, Rate};
use crate::room::{Entry, Inbox, LIMITS, Refusal, text};
use crate::rooms::Membership;

/// The time for the first message.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);

/// The interval of pings.
const PING: Duration = Duration::from_secs(20);

/// After this time without any message or pong, the participant is gone.
const SILENCE: Duration = Duration::from_secs(60);

/// The time in which a message has to leave.
const SEND: Duration = Duration::from_secs(10);

/// How fast messages are read. More messages wait in the network: a burst of candidates at the start of a call is
/// normal, and a lost one would be a call that fails.
const MESSAGES: Rate = Rate { burst: 50, interval: Duration::from_millis(50) };

/// After so many messages that no page sends, the connection is closed.
const MISTAKES: u32 = 3;

/// Why a connection ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The participant left, or the connection is broken. There is nothing to say.
    Gone,
    /// The server closes the connection.
    Closed(u16, &'static str),
}

/// Serves a participant until the connection ends.
pub(crate) async fn serve(socket: WebSocket, application: Arc<Application>) {
    let now = Instant::now();
    let mut connection = Connection { socket, bucket: Bucket::new(now), next: now, mistakes: 0 };
    let end = match connection.run(&application).await {
        Ok(()) => End::Gone,
        Err(end) => end,
    };
    if let End::Closed(code, reason) = end {
        let frame = CloseFrame { code, reason: reason.into() };
        let _ = timeout(SEND, connection.socket.send(Message::Close(Some(frame)))).await;
    }
}

/// The connection of a participant.
struct Connection {
    socket: WebSocket,
    bucket: Bucket,
    /// When the next message is read.
    next: Instant,
    mistakes: u32,
}

impl Connection {
    async fn run(&mut self, application: &Application) -> Result<(), End> {
        let Some((membership, mut inbox, ice)) = self.enter(application).await? else { return Ok(()) };
        tracing::info!(room = %membership.room.short(), "a participant has entered a room");
        let end = self.participate(application, &membership, &mut inbox, ice).await;
        tracing::info!(room = %membership.room.short(), "a participant has left a room");
        end
    }

    /// Waits for `join` and lets the participant in. `None` if it gets no place.
    async fn enter<'a>(&mut self, application: &'a Application) -> Result<Option<(Membership<'a>, Inbox, Ice)>, End> {
        let deadline = Instant::now() + FIRST_MESSAGE;
        let (room, name, kind) = loop {
            let late = End::Closed(close_code::POLICY, "no join within 10 s");
            let received = timeout_at(deadline, self.receive()).await.map_err(|_| late)??;
            match self.read(received).await? {
                Some(FromParticipant::Join { room, name, kind }) => break (room, name, kind),
                Some(_) => self.mistake(ErrorCode::BadOrder, "The first message is join.").await?,
                None => {}
            }
        };
        match self.try_enter(application, room, &name, kind).await {
            Ok((membership, entry, ice)) => {
                let Entry { mode, sender, peers, inbox } = entry;
                let (id, room) = (membership.id.clone(), membership.room.clone());
                let joined = ToParticipant::Joined { id, room, mode, sender, peers, ice: ice.clone(), limits: LIMITS };
                self.send(&joined).await?;
                Ok(Some((membership, inbox, ice)))
            }
            Err(refusal) => {
                self.refuse(refusal).await?;
                Err(End::Closed(close_code::NORMAL, "not in a room"))
            }
        }
    }

    async fn try_enter<'a>(
        &mut self,
        application: &'a Application,
        room: crate::id::RoomId,
        name: &str,
        kind: Kind,
    ) -> Result<(Membership<'a>, Entry, Ice), Refusal> {
        let name = Name::new(name).map_err(|error| Refusal::new(ErrorCode::BadName, error.to_string()))?;
        let id = ParticipantId::random().map_err(|error| {
            tracing::error!("a participant was refused: {error}");
            Refusal::new(ErrorCode::Internal, "The random source of the server failed.")
        })?;
        let ice = credentials(application, &id).await?;
        let (membership, entry) = application.rooms.enter(&room, Peer { id, name, kind })?;
        Ok((membership, entry, ice))
    }

    /// Passes messages between the participant and the room.
    async fn participate(
        &mut self,
        application: &Application,
        membership: &Membership<'_>,
        inbox: &mut Inbox,
        ice: Ice,
    ) -> Result<(), End> {
        let now = Instant::now();
        let mut ping = interval_at(now + PING, PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut last_heard, mut renewal) = (now, renewal(&ice));
        loop {
            tokio::select! {
                received = self.receive() => {
                    last_heard = Instant::now();
                    let Some(message) = self.read(received?).await? else { continue };
                    match self.handle(application, membership, message).await? {
                        ControlFlow::Continue(None) => {}
                        ControlFlow::Continue(Some(ice)) => renewal = self.send_ice(ice).await?,
                        ControlFlow::Break(()) => return Ok(()),
                    }
                }
                message = inbox.recv() => match message {
                    Some(message) => self.send_text(&message).await?,
                    None => return Err(End::Closed(close_code::AWAY, "the room has ended, or messages were not read")),
                },
                _ = ping.tick() => {
                    if Instant::now() >= last_heard + SILENCE {
                        return Err(End::Closed(close_code::POLICY, "no message for 60 s"));
                    }
                    self.send_frame(Message::Ping(Default::default())).await?;
                }
                () = sleep_until(renewal) => match credentials(application, &membership.id).await {
                    Ok(ice) => renewal = self.send_ice(ice).await?,
                    // The call goes on without. The next ICE restart needs new ones.
                    Err(_) => renewal = Instant::now() + Duration::from_secs(30),
                },
            }
        }
    }

    async fn send_ice(&mut self, ice: Ice) -> Result<Instant, End> {
        let renewal = renewal(&ice);
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
            FromParticipant::Signal { to, link, description, candidate } => {
                match (Signal::new(description, candidate), to, link) {
                    (Ok(signal), Address::Participant(to), None) => {
                        membership.with(|room| room.signal(id, &to, signal))
                    }
                    (Ok(signal), Address::Sfu, Some(link)) => membership.with(|room| room.signal_sfu(id, link, signal)),
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
            FromParticipant::Mode { mode } => membership.with(|room| room.set_mode(mode, id)),
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
        let message = self.socket.recv().await.ok_or(End::Gone)?.map_err(|_| End::Gone)?;
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
            Message::Close(_) => return Err(End::Gone),
        }
        Ok(None)
    }

    /// Counts a message that no page of this server sends.
    async fn mistake(&mut self, code: ErrorCode, message: &str) -> Result<(), End> {
        self.refuse(Refusal::new(code, message)).await?;
        self.mistakes += 1;
        if self.mistakes >= MISTAKES {
            return Err(End::Closed(close_code::POLICY, "too many messages of a wrong form"));
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
        sent.map_err(|_| End::Gone)?.map_err(|_| End::Gone)
    }
}

/// Returns credentials for a participant.
async fn credentials(application: &Application, id: &ParticipantId) -> Result<Ice, Refusal> {
    application.ice.get(id.as_str()).await.map_err(|error| {
        tracing::error!("no credentials for a participant: {error}");
        Refusal::new(ErrorCode::Relay, "The server has no credentials for the relay. Try again later.")
    })
}

/// Returns when credentials are renewed: when two thirds of their lifetime have passed.
fn renewal(ice: &Ice) -> Instant {
    let left = ice.expires.saturating_sub(unix_seconds());
    Instant::now() + Duration::from_secs((left * 2 / 3).max(1))
}
