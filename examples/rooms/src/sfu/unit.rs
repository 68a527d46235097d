//! The task of a forwarding unit: all connections of a room.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use str0m::bwe::BweKind;
use str0m::media::{MediaAdded, MediaChanged, MediaData, MediaKind, Mid};
use str0m::{Candidate, Event, IceConnectionState};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::Command;
use super::publication::Publication;
use super::source::{Source, SourceId, layer};
use super::subscription::Subscription;
use crate::id::ParticipantId;
use crate::message::{
    self, Address, Description, DescriptionKind, ErrorCode, Layer, Link, Signal, ToParticipant, Track,
};
use crate::room::text;
use crate::webrtc::{Connection, Datagram, Network, NetworkEvent, remote_candidate};

/// The interval in which layers are chosen.
const LAYERS: Duration = Duration::from_millis(250);

/// The tracks of a kind that one participant may send: camera or microphone, and screen.
const SOURCES: usize = 2;

/// A participant.
struct Member {
    id: ParticipantId,
    outbox: mpsc::WeakSender<Arc<str>>,
    publication: Option<Publication>,
    subscription: Option<Subscription>,
}

/// A connection of a member.
type Key = (u32, Link);

/// The connections of a room.
pub(super) struct Unit {
    network: Network,
    /// By number. Numbers are not used again.
    members: BTreeMap<u32, Member>,
    sources: BTreeMap<SourceId, Source>,
    /// The only participant that may send.
    sender: Option<ParticipantId>,
    /// Which connection a remote address belongs to.
    routes: HashMap<SocketAddr, Key>,
    /// Events that have not been handled.
    events: VecDeque<(Key, Event)>,
    next_member: u32,
    next_source: u32,
}

impl Member {
    fn send(&self, message: &ToParticipant) {
        if let Some(outbox) = self.outbox.upgrade() {
            // The room closes the connection of a participant that does not read.
            let _ = outbox.try_send(text(message));
        }
    }

    fn signal(&self, link: Link, signal: Signal) {
        self.send(&ToParticipant::Signal { from: Address::Sfu, link: Some(link), signal });
    }

    fn describe(&self, link: Link, kind: DescriptionKind, sdp: String) {
        self.signal(link, Signal::Description(Description { kind, sdp }));
    }

    fn refuse(&self, message: String) {
        self.send(&ToParticipant::Error { code: ErrorCode::Sfu, message });
    }

    fn connection(&mut self, link: Link) -> Option<&mut Connection> {
        match link {
            Link::Publish => self.publication.as_mut().map(|publication| &mut publication.connection),
            Link::Subscribe => self.subscription.as_mut().map(|subscription| &mut subscription.connection),
        }
    }
}

impl Unit {
    pub(super) fn new(network: Network) -> Self {
        Self {
            network,
            members: BTreeMap::new(),
            sources: BTreeMap::new(),
            sender: None,
            routes: HashMap::new(),
            events: VecDeque::new(),
            next_member: 0,
            next_source: 0,
        }
    }

    /// Forwards until the room needs no forwarding unit.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut layers = interval(LAYERS);
        layers.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let timeout = self.connections().map(|connection| connection.timeout()).min();
            let timeout = timeout.unwrap_or_else(|| Instant::now() + Duration::from_secs(60));
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                event = self.network.next() => match event {
                    NetworkEvent::Datagram(datagram) => self.receive(&datagram),
                    NetworkEvent::Candidates(candidates) => self.add_candidates(&candidates),
                },
                () = sleep_until(timeout) => self.advance(),
                _ = layers.tick() => self.choose_layers(),
            }
            self.handle_events();
        }
    }

    fn connections(&mut self) -> impl Iterator<Item = &mut Connection> {
        self.members.values_mut().flat_map(|Member { publication, subscription, .. }| {
            let publication = publication.as_mut().map(|publication| &mut publication.connection);
            publication.into_iter().chain(subscription.as_mut().map(|subscription| &mut subscription.connection))
        })
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Enter { id, outbox } => {
                if let Some(number) = self.number(&id) {
                    self.resume(number, outbox);
                    return;
                }
                let member = Member { id, outbox, publication: None, subscription: None };
                self.members.insert(self.next_member, member);
                self.next_member += 1;
                self.distribute();
            }
            Command::Leave(id) => {
                let Some(number) = self.number(&id) else { return };
                self.members.remove(&number);
                self.sources.retain(|_, source| source.owner != number);
                self.routes.retain(|_, (owner, _)| *owner != number);
                self.distribute();
            }
            Command::Sender(sender) => {
                self.sender = sender;
                self.distribute();
            }
            Command::Signal { from, link, signal } => {
                let Some(number) = self.number(&from) else { return };
                if let Err(reason) = self.signal(number, link, signal)
                    && let Some(member) = self.members.get(&number)
                {
                    member.refuse(reason);
                }
            }
            Command::Layer { from, track, choice } => {
                let source = self.sources.keys().find(|source| source.token() == track).copied();
                let member = self.number(&from).and_then(|number| self.members.get_mut(&number));
                let (Some(source), Some(member)) = (source, member) else { return };
                match &mut member.subscription {
                    Some(subscription) if subscription.receives(source) => subscription.choose(source, choice),
                    _ => {}
                }
                self.choose_layers();
            }
        }
    }

    /// Gives a participant its new signalling connection, and what it may have missed.
    fn resume(&mut self, number: u32, outbox: mpsc::WeakSender<Arc<str>>) {
        let Some(member) = self.members.get_mut(&number) else { return };
        member.outbox = outbox;
        if let Some(offer) = member.subscription.as_ref().and_then(Subscription::pending) {
            member.describe(Link::Subscribe, DescriptionKind::Offer, offer.to_owned());
        }
        self.announce(number);
    }

    fn number(&self, id: &ParticipantId) -> Option<u32> {
        self.members.iter().find(|(_, member)| member.id == *id).map(|(number, _)| *number)
    }

    fn signal(&mut self, number: u32, link: Link, signal: Signal) -> Result<(), String> {
        let network = &self.network;
        let Some(member) = self.members.get_mut(&number) else { return Ok(()) };
        match (link, signal) {
            (_, Signal::Candidate(candidate)) => {
                let candidate = candidate.as_ref().and_then(remote_candidate);
                if let (Some(candidate), Some(connection)) = (candidate, member.connection(link)) {
                    connection.add_remote_candidate(candidate, network);
                }
            }
            (Link::Publish, Signal::Description(Description { kind: DescriptionKind::Offer, sdp })) => {
                if !member.publication.as_ref().is_some_and(|publication| publication.fits(&sdp)) {
                    member.publication = Some(Publication::new(&sdp, network));
                    self.sources.retain(|_, source| source.owner != number);
                }
                let Some(publication) = &mut member.publication else { return Ok(()) };
                let answer = publication.answer(&sdp, network)?;
                member.describe(link, DescriptionKind::Answer, answer);
                self.collect((number, link));
                self.handle_events();
                self.distribute();
            }
            (Link::Subscribe, Signal::Description(Description { kind: DescriptionKind::Answer, sdp })) => {
                let Some(subscription) = &mut member.subscription else { return Ok(()) };
                subscription.answer(&sdp, network)?;
                self.distribute();
                self.choose_layers();
            }
            _ => return Err("On publish, participants offer. On subscribe, they answer.".to_owned()),
        }
        self.collect((number, link));
        Ok(())
    }

    /// Assigns all sources to the media sections of those who receive them, and offers new sections.
    fn distribute(&mut self) {
        let allowed = self.sender.as_ref().map(|sender| self.number(sender));
        let numbers: Vec<u32> = self.members.keys().copied().collect();
        for number in numbers {
            let is_for =
                |source: &Source| source.owner != number && allowed.is_none_or(|owner| owner == Some(source.owner));
            let wanted: Vec<(SourceId, MediaKind)> = self
                .sources
                .iter()
                .filter(|(_, source)| is_for(source))
                .map(|(id, source)| (*id, source.kind))
                .collect();
            let Some(member) = self.members.get_mut(&number) else { continue };
            if wanted.is_empty() && member.subscription.is_none() {
                continue;
            }
            if member.subscription.as_ref().is_some_and(|subscription| !subscription.connection.rtc().is_alive()) {
                member.subscription = None;
            }
            let network = &self.network;
            let subscription = member.subscription.get_or_insert_with(|| Subscription::new(network));
            let is_assigned = subscription.assign(&wanted);
            let offer = subscription.offer(&wanted, network);
            if is_assigned || offer.is_some() {
                self.announce(number);
            }
            if let (Some(sdp), Some(member)) = (offer, self.members.get(&number)) {
                member.describe(Link::Subscribe, DescriptionKind::Offer, sdp);
            }
            self.collect((number, Link::Subscribe));
        }
    }

    /// Tells a participant which media section carries whose media.
    fn announce(&self, number: u32) {
        let Some(member) = self.members.get(&number) else { return };
        let Some(subscription) = &member.subscription else { return };
        let mut tracks: Vec<(SourceId, Mid)> = subscription.tracks().collect();
        tracks.sort_unstable_by_key(|(source, _)| *source);
        let tracks = tracks.into_iter().filter_map(|(id, mid)| {
            let source = self.sources.get(&id)?;
            let kind = match source.kind {
                MediaKind::Audio => message::MediaKind::Audio,
                MediaKind::Video => message::MediaKind::Video,
            };
            let peer = self.members.get(&source.owner)?.id.clone();
            Some(Track { track: id.token(), mid: mid.to_string(), peer, kind, layers: source.layers.clone() })
        });
        member.send(&ToParticipant::Tracks { tracks: tracks.collect() });
    }

    /// Gives new candidates to all connections, and to their participants.
    fn add_candidates(&mut self, candidates: &[Candidate]) {
        let network = &self.network;
        for member in self.members.values_mut() {
            for candidate in candidates {
                let signal = Signal::Candidate(Some(message::Candidate {
                    candidate: candidate.to_sdp_string(),
                    sdp_mid: None,
                    sdp_m_line_index: Some(0),
                    username_fragment: None,
                }));
                for link in [Link::Publish, Link::Subscribe] {
                    if let Some(connection) = member.connection(link) {
                        connection.add_local_candidate(candidate.clone(), network);
                        member.signal(link, signal.clone());
                    }
                }
            }
        }
    }

    fn receive(&mut self, datagram: &Datagram) {
        if let Some(key) = self.routes.get(&datagram.source).copied()
            && self.offer_datagram(key, datagram)
        {
            return;
        }
        let keys: Vec<Key> =
            self.members.keys().flat_map(|number| [(*number, Link::Publish), (*number, Link::Subscribe)]).collect();
        for key in keys {
            if self.offer_datagram(key, datagram) {
                self.routes.insert(datagram.source, key);
                return;
            }
        }
    }

    fn offer_datagram(&mut self, key: Key, datagram: &Datagram) -> bool {
        let (number, link) = key;
        let connection = self.members.get_mut(&number).and_then(|member| member.connection(link));
        let is_taken = connection.is_some_and(|connection| connection.receive(&self.network, datagram));
        if is_taken {
            self.collect(key);
        }
        is_taken
    }

    /// Lets time pass for the connections whose timeout has come.
    fn advance(&mut self) {
        let now = Instant::now();
        let keys: Vec<Key> =
            self.members.keys().flat_map(|number| [(*number, Link::Publish), (*number, Link::Subscribe)]).collect();
        for key in keys {
            let Some(connection) = self.members.get_mut(&key.0).and_then(|member| member.connection(key.1)) else {
                continue;
            };
            if connection.timeout() <= now {
                connection.advance(&self.network);
                self.collect(key);
            }
        }
    }

    /// Queues the events of a connection.
    fn collect(&mut self, key: Key) {
        let Some(connection) = self.members.get_mut(&key.0).and_then(|member| member.connection(key.1)) else { return };
        while let Some(event) = connection.event() {
            self.events.push_back((key, event));
        }
    }

    fn handle_events(&mut self) {
        while let Some((key, event)) = self.events.pop_front() {
            self.handle(key, event);
        }
    }

    fn handle(&mut self, key: Key, event: Event) {
        let (number, link) = key;
        match (link, event) {
            (Link::Publish, Event::MediaAdded(MediaAdded { mid, kind, direction, simulcast }))
                if direction.is_receiving() =>
            {
                let layers = simulcast.iter().flat_map(|simulcast| &simulcast.recv);
                let rids: Vec<_> = layers.map(|layer| layer.rid).collect();
                self.add_source(Source::new(number, mid, kind, &rids));
            }
            (Link::Publish, Event::MediaChanged(MediaChanged { mid, direction })) => {
                let existing = self.source_at(number, mid);
                match (existing, direction.is_receiving()) {
                    (Some(id), false) => {
                        self.sources.remove(&id);
                        self.distribute();
                    }
                    (None, true) => {
                        let member = self.members.get_mut(&number).and_then(|member| member.publication.as_ref());
                        let kind = member
                            .and_then(|publication| publication.connection.rtc().media(mid))
                            .map(|media| media.kind());
                        if let Some(kind) = kind {
                            self.add_source(Source::new(number, mid, kind, &[]));
                        }
                    }
                    _ => {}
                }
            }
            (Link::Publish, Event::MediaData(data)) => self.forward(number, &data),
            (Link::Subscribe, Event::KeyframeRequest(request)) => {
                let subscription = self.members.get(&number).and_then(|member| member.subscription.as_ref());
                if let Some((source, layer)) = subscription.and_then(|subscription| subscription.source_of(request.mid))
                {
                    self.request_keyframe(source, layer);
                }
            }
            (Link::Subscribe, Event::EgressBitrateEstimate(BweKind::Twcc { estimate, .. })) => {
                if let Some(subscription) =
                    self.members.get_mut(&number).and_then(|member| member.subscription.as_mut())
                {
                    subscription.estimated(estimate.as_u64());
                }
            }
            (Link::Subscribe, Event::IceConnectionStateChange(IceConnectionState::Disconnected)) => {
                if let Some(subscription) =
                    self.members.get_mut(&number).and_then(|member| member.subscription.as_mut())
                {
                    subscription.restart();
                }
                self.distribute();
            }
            _ => {}
        }
    }

    fn add_source(&mut self, source: Source) {
        let is_alike = |other: &&Source| other.owner == source.owner && other.kind == source.kind;
        if self.sources.values().filter(is_alike).count() >= SOURCES {
            tracing::debug!(
                "a participant sends more than {SOURCES} tracks of a kind, of which the others are not forwarded"
            );
            return;
        }
        self.sources.insert(SourceId(self.next_source), source);
        self.next_source += 1;
        self.distribute();
    }

    fn source_at(&self, owner: u32, mid: Mid) -> Option<SourceId> {
        let is_at = |source: &Source| source.owner == owner && source.mid == mid;
        self.sources.iter().find(|(_, source)| is_at(source)).map(|(id, _)| *id)
    }

    /// Sends a frame to all who receive its source.
    fn forward(&mut self, owner: u32, data: &MediaData) {
        let Some(id) = self.source_at(owner, data.mid) else { return };
        let layer = layer(data.rid);
        if let Some(source) = self.sources.get_mut(&id) {
            source.count(layer, data.data.len(), data.network_time);
        }
        let mut needed = Vec::new();
        let mut changed = Vec::new();
        for (number, member) in &mut self.members {
            let Some(subscription) = &mut member.subscription else { continue };
            let result = subscription.forward(id, layer, data, &self.network);
            needed.extend(result.needs_keyframe);
            if let Some((layer, why)) = result.switched {
                member.send(&ToParticipant::Layer { track: id.token(), layer, why });
            }
            changed.push((*number, Link::Subscribe));
        }
        changed.into_iter().for_each(|key| self.collect(key));
        needed.into_iter().for_each(|layer| self.request_keyframe(id, layer));
    }

    fn request_keyframe(&mut self, id: SourceId, layer: Layer) {
        let now = Instant::now().into_std();
        let Some(source) = self.sources.get_mut(&id) else { return };
        if !source.may_request(layer, now) {
            return;
        }
        let (owner, mid, rid) = (source.owner, source.mid, source.rid(layer));
        let Some(publication) = self.members.get_mut(&owner).and_then(|member| member.publication.as_mut()) else {
            return;
        };
        publication.request_keyframe(mid, rid, &self.network);
        self.collect((owner, Link::Publish));
    }

    /// Chooses the layers that each participant gets.
    fn choose_layers(&mut self) {
        let now = Instant::now().into_std();
        let mut needed = Vec::new();
        let mut changed = Vec::new();
        for (number, member) in &mut self.members {
            let Some(subscription) = &mut member.subscription else { continue };
            needed.extend(subscription.choose_layers(&mut self.sources, now, &self.network));
            changed.push((*number, Link::Subscribe));
        }
        changed.into_iter().for_each(|key| self.collect(key));
        needed.into_iter().for_each(|(id, layer)| self.request_keyframe(id, layer));
    }
}
