//! A participant that is no browser: it plays a test picture and a tone, and echoes what it receives on data channels.

mod link;
mod media;

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::{Value, json};
use str0m::media::{Frequency, MediaAdded, MediaKind, MediaTime};
use str0m::{Event, IceConnectionState};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::{HeaderValue, Uri};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async};
use turnserver::clock::unix_seconds;

use crate::arguments::Bot as Options;
use crate::connect::{Stream, Trust, TrustError, connect};
use crate::message::{
    self, Candidate, Description, DescriptionKind, Ice, Layer, LayerChoice, Mode, Restart, Token, Why,
};
use crate::webrtc::{Network, NetworkEvent};
use link::Link;
use media::{Frames, PICTURE_RATE, TONE_RATE, height, pictures, tone};

/// The time for a relayed address before the first offer.
const ALLOCATION: Duration = Duration::from_secs(3);

/// How many layers are remembered.
const LAYERS: usize = 100;

type Socket = WebSocketStream<Box<dyn Stream>>;

/// Why a bot has ended.
#[derive(Debug, thiserror::Error)]
pub enum BotError {
    /// The URL is none of a room.
    #[error("{0} is not the URL of a room, as in https://localhost:8443/room/…")]
    Url(String),
    /// The server is not reached.
    #[error("cannot connect to {host}: {error}")]
    Connect {
        /// The host.
        host: String,
        /// Why not.
        error: std::io::Error,
    },
    /// The signalling failed.
    #[error("the signalling ended: {0}")]
    Signalling(#[from] tungstenite::Error),
    /// The server rejects the bot.
    #[error("the server says: {0}")]
    Rejected(String),
    /// The server sends something unexpected.
    #[error("a message of the server is not understood: {0}")]
    Message(#[from] serde_json::Error),
    /// There are no sockets.
    #[error("cannot open a socket: {0}")]
    Socket(#[from] std::io::Error),
    /// The certificates for the relay cannot be used.
    #[error("{0}")]
    Trust(#[from] TrustError),
}

/// What a bot has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The connections with other participants that work.
    pub peers: usize,
    /// The connections with the forwarding unit that work.
    pub unit: usize,
    /// The frames of pictures that it has received.
    pub frames: u64,
    /// The packets of tones that it has received.
    pub packets: u64,
    /// The messages that it has echoed.
    pub echoed: u64,
    /// Its own messages that came back.
    pub returned: u64,
    /// The last layers that the forwarding unit says it sends, and why.
    pub layers: Vec<(Layer, Why)>,
    /// The height of the last picture that was a key frame.
    pub height: u16,
    /// How often the other sides have restarted ICE.
    pub restarts: u64,
    /// The requests for key frames that it has received.
    pub keyframe_requests: u64,
}

/// A message of the server, as far as the bot uses it.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum FromServer {
    Joined {
        id: String,
        mode: Mode,
        sender: Option<String>,
        peers: Vec<PeerId>,
        ice: Ice,
        limits: MeshLimit,
    },
    PeerJoined {
        peer: PeerId,
    },
    PeerLeft {
        id: String,
    },
    Signal {
        from: String,
        link: Option<message::Link>,
        description: Option<Description>,
        candidate: Option<Candidate>,
        restart: Option<Restart>,
    },
    Mode {
        mode: Mode,
        sender: Option<String>,
    },
    Ice(Ice),
    Tracks {
        tracks: Vec<TrackId>,
    },
    Layer {
        layer: Layer,
        why: Why,
    },
    Error {
        code: message::ErrorCode,
        message: String,
    },
    Closing {
        reason: String,
    },
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
struct PeerId {
    id: String,
}

#[derive(Debug, Deserialize)]
struct MeshLimit {
    mesh: usize,
}

#[derive(Debug, Deserialize)]
struct TrackId {
    track: Token,
    kind: message::MediaKind,
}

/// With whom a connection is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum With {
    Peer(String),
    Sfu(message::Link),
}

impl With {
    fn is_publish(&self) -> bool {
        *self == Self::Sfu(message::Link::Publish)
    }

    /// Returns the beginning of a signal.
    fn signal(&self) -> Value {
        match self {
            Self::Peer(id) => json!({ "type": "signal", "to": id }),
            Self::Sfu(link) => json!({ "type": "signal", "to": "sfu", "link": link }),
        }
    }
}

/// The sockets of a bot. Both connections with the forwarding unit have the same remote address, so each needs a local
/// address of its own.
struct Networks {
    hosts: Vec<IpAddr>,
    credentials: watch::Receiver<Ice>,
    trust: Trust,
    most: Network,
    /// Open while the bot publishes.
    publish: Option<Network>,
}

impl Networks {
    async fn open(hosts: Vec<IpAddr>, credentials: watch::Receiver<Ice>, trust: Trust) -> Result<Self, BotError> {
        let most = open_network(&hosts, &credentials, &trust).await?;
        Ok(Self { hosts, credentials, trust, most, publish: None })
    }

    /// Opens the sockets for a connection, if they are not open.
    async fn prepare(&mut self, with: &With) -> Result<(), BotError> {
        if with.is_publish() && self.publish.is_none() {
            self.publish = Some(open_network(&self.hosts, &self.credentials, &self.trust).await?);
        }
        Ok(())
    }

    /// Returns the sockets of a connection.
    fn of(&self, with: &With) -> &Network {
        self.publish.as_ref().filter(|_| with.is_publish()).unwrap_or(&self.most)
    }

    /// Gives the relayed addresses back.
    async fn close(self) {
        let Self { most, publish, .. } = self;
        let publish = async {
            if let Some(publish) = publish {
                publish.close().await;
            }
        };
        tokio::join!(most.close(), publish);
    }

    /// Waits for the next event, which is of the connection on which the bot publishes, or of the others.
    async fn next(&mut self) -> (bool, NetworkEvent) {
        let publish = async {
            match &mut self.publish {
                Some(network) => network.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = publish => (true, event),
            event = self.most.next() => (false, event),
        }
    }
}

/// Opens sockets and waits for the relayed address, so that the first offer has it. Without a relay, the bot goes on.
async fn open_network(
    hosts: &[IpAddr],
    credentials: &watch::Receiver<Ice>,
    trust: &Trust,
) -> Result<Network, BotError> {
    let mut network = Network::open(hosts, credentials.clone(), trust.clone()).await?;
    if timeout(ALLOCATION, network.next()).await.is_err() {
        tracing::warn!("there is no relayed address yet");
    }
    Ok(network)
}

/// A bot in a room.
pub struct Bot {
    id: String,
    outgoing: SplitSink<Socket, Message>,
    incoming: SplitStream<Socket>,
    networks: Networks,
    ice: watch::Sender<Ice>,
    links: HashMap<With, Link>,
    /// The other participants, and whether they were in the room before. Then the bot connects, as pages do.
    peers: HashMap<String, bool>,
    /// The greatest number of participants in a mesh.
    mesh: usize,
    mode: Mode,
    layer: LayerChoice,
    /// The tracks whose layer has been chosen.
    tracks: Vec<Token>,
    /// The URLs of the relay, if they are not those of the server.
    turn_urls: Vec<String>,
    greeting: Option<String>,
    status: watch::Sender<Status>,
    pictures: [(Layer, Frames); 3],
    tone: Frames,
}

/// Runs a bot until its room ends, or for a given time.
///
/// # Errors
/// If it cannot enter the room, or the signalling ends.
pub async fn run(options: Options) -> Result<(), BotError> {
    let duration = options.duration;
    let bot = Bot::join(options).await?;
    let end = async {
        match duration {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    let mut status = bot.status();
    let end = async {
        tokio::select! {
            () = end => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    bot.run_until(end).await?;
    let Status { frames, packets, echoed, .. } = status.borrow_and_update().clone();
    tracing::info!("received {frames} pictures and {packets} packets of sound, echoed {echoed} messages");
    Ok(())
}

impl Bot {
    /// Enters a room.
    ///
    /// # Errors
    /// If the room or its server cannot be reached, or rejects the bot.
    pub async fn join(options: Options) -> Result<Self, BotError> {
        let trust_of_relay = Trust::from_file(options.relay_ca.as_deref())?;
        let invalid = || BotError::Url(options.url.clone());
        let url: Uri = options.url.parse().map_err(|_| invalid())?;
        let room = url.path().strip_prefix("/room/").ok_or_else(invalid)?;
        let host = url.host().ok_or_else(invalid)?;
        let (trust, default_port, scheme) = match url.scheme_str() {
            Some("https") => {
                (Some(options.certificate_sha256.map_or(Trust::Authorities, Trust::Fingerprint)), 443, "wss")
            }
            Some("http") => (None, 80, "ws"),
            _ => return Err(invalid()),
        };
        let failed = |error| BotError::Connect { host: host.to_owned(), error };
        let stream = connect(host, url.port_u16().unwrap_or(default_port), trust).await.map_err(failed)?;
        let authority = url.authority().ok_or_else(invalid)?;
        let mut request = format!("{scheme}://{authority}/ws").into_client_request()?;
        let origin = format!("{}://{authority}", url.scheme_str().unwrap_or_default());
        request.headers_mut().insert("Origin", HeaderValue::from_str(&origin).map_err(|_| invalid())?);
        let (mut socket, _) = client_async(request, stream).await?;
        let join = json!({ "type": "join", "room": room, "name": options.name, "kind": "bot" });
        socket.send(Message::text(join.to_string())).await?;
        let (outgoing, mut incoming) = socket.split();
        let (id, mode, sender, peers, ice, limits) = loop {
            match receive(&mut incoming).await? {
                FromServer::Joined { id, mode, sender, peers, ice, limits } => {
                    break (id, mode, sender, peers, ice, limits);
                }
                FromServer::Error { message, .. } => return Err(BotError::Rejected(message)),
                FromServer::Closing { reason } => return Err(BotError::Rejected(reason)),
                _ => {}
            }
        };
        let (ice, credentials) = watch::channel(with_urls(ice, &options.turn_url));
        let networks = Networks::open(options.host, credentials, trust_of_relay).await?;
        let mut bot = Self {
            id,
            outgoing,
            incoming,
            networks,
            ice,
            links: HashMap::new(),
            peers: peers.into_iter().map(|PeerId { id }| (id, true)).collect(),
            mesh: limits.mesh,
            mode,
            layer: options.layer,
            tracks: Vec::new(),
            turn_urls: options.turn_url,
            greeting: options.say,
            status: watch::Sender::default(),
            pictures: pictures(),
            tone: tone(),
        };
        bot.set_mode(mode, sender.as_deref()).await?;
        if let Some(mode) = options.mode {
            bot.send(json!({ "type": "mode", "mode": mode })).await?;
        }
        Ok(bot)
    }

    /// Returns what the bot has seen.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Takes part until the room ends.
    ///
    /// # Errors
    /// If the signalling ends.
    pub async fn run(self) -> Result<(), BotError> {
        self.run_until(std::future::pending()).await
    }

    /// Takes part until the room ends, or until `end`. Then, the relayed addresses are given back.
    ///
    /// # Errors
    /// If the signalling ends.
    pub async fn run_until(mut self, end: impl Future<Output = ()>) -> Result<(), BotError> {
        let result = tokio::select! {
            result = self.take_part() => result,
            () = end => Ok(()),
        };
        self.networks.close().await;
        result
    }

    async fn take_part(&mut self) -> Result<(), BotError> {
        let ticks = |rate: u32| {
            let mut ticks = interval(Duration::from_secs(1) / rate);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            ticks
        };
        let (mut picture_ticks, mut tone_ticks) = (ticks(PICTURE_RATE), ticks(TONE_RATE));
        let (mut pictures, mut tones) = (0_u64, 0_u64);
        loop {
            let next = self.links.values().map(|link| link.connection.timeout()).min();
            let next = next.unwrap_or_else(|| Instant::now() + Duration::from_secs(60));
            tokio::select! {
                message = receive(&mut self.incoming) => match message? {
                    FromServer::Closing { reason } => {
                        tracing::info!("the room has ended: {reason}");
                        return Ok(());
                    }
                    message => self.take(message).await?,
                },
                (is_publish, event) = self.networks.next() => match event {
                    NetworkEvent::Datagram(datagram) => {
                        let links = self.links.iter_mut().filter(|(with, _)| with.is_publish() == is_publish);
                        let networks = &self.networks;
                        for (with, link) in links {
                            if link.connection.receive(networks.of(with), &datagram) {
                                break;
                            }
                        }
                    }
                    NetworkEvent::Candidates(candidates) => self.add_candidates(is_publish, &candidates).await?,
                    NetworkEvent::Moved { new, old } => self.move_candidates(is_publish, &new, &old).await?,
                },
                () = sleep_until(next) => {
                    let (networks, now) = (&self.networks, Instant::now());
                    let due = self.links.iter_mut().filter(|(_, link)| link.connection.timeout() <= now);
                    due.for_each(|(with, link)| link.connection.advance(networks.of(with)));
                }
                _ = picture_ticks.tick() => {
                    let time = MediaTime::new(pictures * u64::from(90_000 / PICTURE_RATE), Frequency::NINETY_KHZ);
                    for (layer, frames) in &self.pictures {
                        let Some(frame) = frames.get(pictures) else { continue };
                        for (with, link) in sending(&mut self.links, self.mode) {
                            link.play(MediaKind::Video, *layer, time, &frame, self.networks.of(with));
                        }
                    }
                    pictures += 1;
                }
                _ = tone_ticks.tick() => {
                    let time = MediaTime::new(tones * u64::from(48_000 / TONE_RATE), Frequency::FORTY_EIGHT_KHZ);
                    if let Some(frame) = self.tone.get(tones) {
                        for (with, link) in sending(&mut self.links, self.mode) {
                            link.play(MediaKind::Audio, Layer::Medium, time, &frame, self.networks.of(with));
                        }
                    }
                    tones += 1;
                }
            }
            for with in self.handle_events() {
                self.restart(with).await?;
            }
        }
    }

    async fn send(&mut self, message: Value) -> Result<(), BotError> {
        Ok(self.outgoing.send(Message::text(message.to_string())).await?)
    }

    async fn signal(&mut self, with: &With, key: &str, value: Value) -> Result<(), BotError> {
        let mut signal = with.signal();
        if let Some(fields) = signal.as_object_mut() {
            fields.insert(key.to_owned(), value);
        }
        self.send(signal).await
    }

    async fn describe(&mut self, with: &With, kind: DescriptionKind, sdp: String) -> Result<(), BotError> {
        self.signal(with, "description", json!(Description { kind, sdp })).await
    }

    /// Offers what a connection needs, if it needs something.
    async fn offer(&mut self, with: With) -> Result<(), BotError> {
        let network = self.networks.of(&with);
        match self.links.get_mut(&with).and_then(|link| link.offer(network)) {
            Some(sdp) => self.describe(&with, DescriptionKind::Offer, sdp).await,
            None => Ok(()),
        }
    }

    /// Restarts ICE on a connection whose path is broken, if this is the task of this side.
    async fn restart(&mut self, with: With) -> Result<(), BotError> {
        let offers = match &with {
            With::Peer(id) => self.peers.get(id) == Some(&true),
            With::Sfu(link) => *link == message::Link::Publish,
        };
        match (offers, &with) {
            (true, _) => {
                if let Some(link) = self.links.get_mut(&with) {
                    link.restart();
                }
                self.offer(with).await
            }
            (false, With::Sfu(_)) => self.signal(&with, "restart", json!(Restart::default())).await,
            (false, With::Peer(_)) => Ok(()),
        }
    }

    /// Moves the connections that use some sockets to new candidates, by an ICE restart.
    async fn move_candidates(
        &mut self,
        is_publish: bool,
        new: &[str0m::Candidate],
        old: &[str0m::Candidate],
    ) -> Result<(), BotError> {
        self.add_candidates(is_publish, new).await?;
        let mut moved = Vec::new();
        for (with, link) in self.links.iter_mut().filter(|(with, _)| with.is_publish() == is_publish) {
            link.connection.remove_local_candidates(old, self.networks.of(with));
            if let With::Peer(_) = with {
                // Not only if this is the task of this side: the other one does not know of the move.
                link.restart();
            }
            moved.push(with.clone());
        }
        for with in moved {
            match with {
                With::Peer(_) => self.offer(with).await?,
                With::Sfu(_) => self.restart(with).await?,
            }
        }
        Ok(())
    }

    /// Gives new candidates to the connections that use their sockets, and to the other sides.
    async fn add_candidates(&mut self, is_publish: bool, candidates: &[str0m::Candidate]) -> Result<(), BotError> {
        let mut signals = Vec::new();
        for (with, link) in self.links.iter_mut().filter(|(with, _)| with.is_publish() == is_publish) {
            for candidate in candidates {
                link.connection.add_local_candidate(candidate.clone(), self.networks.of(with));
                let candidate = json!({ "candidate": candidate.to_sdp_string(), "sdpMLineIndex": 0 });
                signals.push((with.clone(), candidate));
            }
        }
        for (with, candidate) in signals {
            self.signal(&with, "candidate", candidate).await?;
        }
        Ok(())
    }

    async fn take(&mut self, message: FromServer) -> Result<(), BotError> {
        match message {
            FromServer::PeerJoined { peer } => drop(self.peers.insert(peer.id, false)),
            FromServer::PeerLeft { id } => {
                self.peers.remove(&id);
                self.links.remove(&With::Peer(id));
            }
            FromServer::Mode { mode, sender } => self.set_mode(mode, sender.as_deref()).await?,
            FromServer::Ice(ice) => drop(self.ice.send_replace(with_urls(ice, &self.turn_urls))),
            FromServer::Tracks { tracks } => self.choose_layers(tracks).await?,
            FromServer::Layer { layer, why } => self.status.send_modify(|status| {
                if status.layers.len() >= LAYERS {
                    status.layers.remove(0);
                }
                status.layers.push((layer, why));
            }),
            FromServer::Error { code, message } => tracing::warn!("the server says ({code:?}): {message}"),
            FromServer::Signal { from, link, description, candidate, restart } => {
                let with = match link {
                    Some(link) if from == "sfu" => With::Sfu(link),
                    _ => With::Peer(from),
                };
                if let Some(description) = description {
                    self.take_description(with, description).await?;
                } else if restart.is_some() {
                    self.restart(with).await?;
                } else if let (Some(candidate), Some(link)) = (candidate, self.links.get_mut(&with)) {
                    link.add_remote_candidate(&candidate, self.networks.of(&with));
                }
            }
            FromServer::Joined { .. } | FromServer::Closing { .. } | FromServer::Other => {}
        }
        Ok(())
    }

    /// Chooses the layer of new tracks.
    async fn choose_layers(&mut self, tracks: Vec<TrackId>) -> Result<(), BotError> {
        let pictures = tracks.into_iter().filter(|track| track.kind == message::MediaKind::Video);
        let tracks: Vec<Token> = pictures.map(|track| track.track).collect();
        let known = std::mem::replace(&mut self.tracks, tracks.clone());
        if self.layer != LayerChoice::Auto {
            for track in tracks.iter().filter(|track| !known.contains(track)) {
                self.send(json!({ "type": "layer", "track": track, "layer": self.layer })).await?;
            }
        }
        Ok(())
    }

    async fn take_description(&mut self, with: With, description: Description) -> Result<(), BotError> {
        let Description { kind, sdp } = description;
        let result = match kind {
            DescriptionKind::Offer => {
                let network = self.networks.of(&with);
                let link = self.links.entry(with.clone()).or_insert_with(|| Link::new(network));
                if !link.fits(&sdp) {
                    *link = Link::new(network);
                }
                if link.is_restarted_by(&sdp) {
                    self.status.send_modify(|status| status.restarts += 1);
                }
                match link.accept_offer(&sdp, network) {
                    Ok(answer) => self.describe(&with, DescriptionKind::Answer, answer).await.map(Ok)?,
                    Err(error) => Err(error),
                }
            }
            DescriptionKind::Answer => match self.links.get_mut(&with) {
                Some(link) => link.accept_answer(&sdp, self.networks.of(&with)),
                None => Ok(()),
            },
            DescriptionKind::Pranswer | DescriptionKind::Rollback => Ok(()),
        };
        if let Err(error) = result {
            tracing::warn!("a description is not used: {error}");
        }
        // What had to wait until this negotiation was over.
        self.offer(with).await
    }

    /// Connects as the mode says: with the forwarding unit, and with the other participants, for data channels in all modes.
    async fn set_mode(&mut self, mode: Mode, sender: Option<&str>) -> Result<(), BotError> {
        self.mode = mode;
        let publish = With::Sfu(message::Link::Publish);
        let sends = match mode {
            Mode::Mesh => false,
            Mode::Sfu => true,
            Mode::Broadcast => sender == Some(self.id.as_str()),
        };
        self.links.retain(|with, _| match with {
            With::Peer(_) => true,
            With::Sfu(message::Link::Publish) => sends,
            With::Sfu(message::Link::Subscribe) => mode != Mode::Mesh,
        });
        if !sends {
            self.networks.publish = None;
        } else if !self.links.contains_key(&publish) {
            self.networks.prepare(&publish).await?;
            self.links.insert(publish.clone(), Link::to_sfu(self.networks.of(&publish)));
            self.offer(publish).await?;
        }
        // A room that is too large for a mesh has no data channels for its later members.
        if mode == Mode::Mesh || self.peers.len() < self.mesh {
            let before = self.peers.iter().filter(|(_, is_before)| **is_before);
            let peers: Vec<With> = before.map(|(id, _)| With::Peer(id.clone())).collect();
            for with in peers {
                let network = self.networks.of(&with);
                let link = self.links.entry(with.clone()).or_insert_with(|| Link::to_peer(network));
                if mode == Mode::Mesh {
                    link.add_own_media();
                }
                self.offer(with).await?;
            }
        }
        Ok(())
    }

    /// Handles what has happened on the connections. Returns those whose path is broken.
    fn handle_events(&mut self) -> Vec<With> {
        let greeting = self.greeting.as_deref();
        let mut broken = Vec::new();
        for (with, link) in &mut self.links {
            let network = self.networks.of(with);
            while let Some(event) = link.connection.event() {
                match event {
                    Event::MediaAdded(MediaAdded { mid, kind, .. }) => link.add_media(mid, kind),
                    Event::MediaData(data) => {
                        let is_picture = data.params.spec().codec.is_video();
                        self.status.send_modify(|status| {
                            let count = if is_picture { &mut status.frames } else { &mut status.packets };
                            *count += 1;
                            status.height = height(&data.data).filter(|_| is_picture).unwrap_or(status.height);
                        });
                    }
                    Event::KeyframeRequest(_) => self.status.send_modify(|status| status.keyframe_requests += 1),
                    Event::ChannelOpen(id, label) => {
                        if link.open_channel(id)
                            && let (Some(text), "chat") = (greeting, label.as_str())
                        {
                            link.say(id, false, chat(text).into_bytes(), network);
                        }
                    }
                    Event::ChannelData(data) => {
                        // Two bots would echo each other's echoes for ever.
                        if greeting.is_some_and(|greeting| is_chat(&data.data, greeting)) {
                            self.status.send_modify(|status| status.returned += 1);
                        } else {
                            self.status.send_modify(|status| status.echoed += 1);
                            link.say(data.id, data.binary, data.data, network);
                        }
                    }
                    Event::ChannelBufferedAmountLow(id) => link.flush(id, network),
                    Event::ChannelClose(id) => link.close_channel(id),
                    Event::IceConnectionStateChange(state) => {
                        tracing::debug!("a connection is {state:?}");
                        if state == IceConnectionState::Disconnected {
                            tracing::info!("a connection is interrupted");
                            broken.push(with.clone());
                        }
                    }
                    _ => {}
                }
            }
        }
        let connected = self.links.iter().filter(|(_, link)| link.connection.rtc().is_connected());
        let (peers, unit): (Vec<_>, Vec<_>) = connected.partition(|(with, _)| matches!(with, With::Peer(_)));
        let new = (peers.len(), unit.len());
        self.status.send_if_modified(|status| {
            let is_changed = (status.peers, status.unit) != new;
            (status.peers, status.unit) = new;
            is_changed
        });
        broken
    }
}

/// Returns the connections on which the bot plays: those with participants in a mesh, otherwise that with the forwarding
/// unit.
fn sending(links: &mut HashMap<With, Link>, mode: Mode) -> impl Iterator<Item = (&With, &mut Link)> {
    links.iter_mut().filter(move |(with, _)| matches!(with, With::Peer(_)) == (mode == Mode::Mesh))
}

/// Returns the credentials for other URLs, if there are any.
fn with_urls(mut ice: Ice, urls: &[String]) -> Ice {
    if !urls.is_empty() {
        ice.ice_servers.iter_mut().for_each(|server| server.urls = urls.to_vec());
    }
    ice
}

/// Returns a message of the chat.
fn chat(text: &str) -> String {
    json!({ "text": text, "at": unix_seconds() * 1_000 }).to_string()
}

/// Whether a message of the chat has this text.
fn is_chat(message: &[u8], text: &str) -> bool {
    serde_json::from_slice::<Value>(message).is_ok_and(|message| message.get("text") == Some(&json!(text)))
}

/// Receives the next message.
async fn receive(incoming: &mut SplitStream<Socket>) -> Result<FromServer, BotError> {
    loop {
        match incoming.next().await.ok_or(tungstenite::Error::ConnectionClosed)?? {
            Message::Text(text) => return Ok(serde_json::from_str(&text)?),
            Message::Close(_) => return Err(tungstenite::Error::ConnectionClosed.into()),
            _ => {}
        }
    }
}
