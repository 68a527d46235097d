//! The task of a forwarding unit: all connections of a room.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use str0m::bwe::BweKind;
use str0m::media::{MediaAdded, MediaChanged, MediaData, MediaKind, Mid};
use str0m::{Candidate, Event, IceConnectionState};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::police::{CEILING, Police};
use super::publication::Publication;
use super::remotes::{Admission, Remotes};
use super::source::{Source, SourceId, layer};
use super::subscription::Subscription;
use super::{Command, Commands};
use crate::id::ParticipantId;
use crate::message::{
    self, Address, Description, DescriptionKind, ErrorCode, Layer, Link, Restart, Signal, ToParticipant, Track,
};
use crate::outbox::WeakOutbox;
use crate::rate::{Bucket, Rate};
use crate::room::text;
use crate::webrtc::{Connection, Datagram, Network, NetworkEvent, remote_candidate, split_candidates};

/// The interval in which layers are chosen.
const LAYERS: Duration = Duration::from_millis(250);

/// The shortest time between two distributions of the sources. Each may send all tracks to all participants, so one
/// participant that changes its sources must not cause them at its own pace.
const DISTRIBUTION: Duration = Duration::from_millis(250);

/// The tracks of a kind that one participant may send: camera or microphone, and screen with its sound.
const SOURCES: usize = 2;

/// How fast a participant may offer. A page does so when a screen is shared or not any more.
const OFFERS: Rate = Rate { burst: 30, interval: Duration::from_secs(1) };

/// How fast a participant may begin new connections and restart them.
const RESTARTS: Rate = Rate { burst: 10, interval: Duration::from_secs(5) };

/// A participant.
struct Member {
    id: ParticipantId,
    outbox: WeakOutbox,
    publication: Option<Publication>,
    subscription: Option<Subscription>,
    offers: Bucket,
    restarts: Bucket,
    police: Police,
}

/// A connection of a member.
pub(super) type Key = (u32, Link);

/// The connections of a room.
pub(super) struct Unit {
    network: Network,
    /// By number. Numbers are not used again.
    members: BTreeMap<u32, Member>,
    sources: BTreeMap<SourceId, Source>,
    /// The only participant that may send.
    sender: Option<ParticipantId>,
    remotes: Remotes,
    /// Which connection a remote address belongs to.
    routes: HashMap<SocketAddr, Key>,
    /// Events that have not been handled.
    events: VecDeque<(Key, Event)>,
    next_member: u32,
    next_source: u32,
    /// Whether the sources have to be distributed.
    is_changed: bool,
    /// When the next distribution may be.
    next_distribution: Instant,
}

impl Member {
    fn new(id: ParticipantId, outbox: WeakOutbox) -> Self {
        let now = Instant::now();
        let (bucket, police) = (Bucket::new(now), Police::new(now));
        Self { id, outbox, publication: None, subscription: None, offers: bucket, restarts: bucket, police }
    }

    /// Counts an offer.
    fn count_offer(&mut self) -> Result<(), String> {
        self.offers.take(OFFERS, Instant::now()).map_err(|wait| {
            let wait = wait.as_secs() + 1;
            format!("There are too many offers for the forwarding unit. Wait {wait} s and try again.")
        })
    }

    /// Counts a new connection, or a restart of one.
    fn count_restart(&mut self) -> Result<(), String> {
        self.restarts.take(RESTARTS, Instant::now()).map_err(|wait| {
            let wait = wait.as_secs() + 1;
            format!("There are too many new connections with the forwarding unit. Wait {wait} s and try again.")
        })
    }

    fn send(&self, message: &ToParticipant) {
        self.outbox.send(&text(message));
    }

    fn signal(&self, link: Link, signal: Signal) {
        self.send(&ToParticipant::Signal { from: Address::Sfu, link: Some(link), signal });
    }

    fn describe(&self, link: Link, kind: DescriptionKind, sdp: String) {
        self.signal(link, Signal::Description(Description { kind, sdp }));
    }

    fn report(&self, message: String) {
        self.send(&ToParticipant::Error { code: ErrorCode::Sfu, message });
    }

    fn has(&self, link: Link) -> bool {
        match link {
            Link::Publish => self.publication.is_some(),
            Link::Subscribe => self.subscription.is_some(),
        }
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
            remotes: Remotes::default(),
            routes: HashMap::new(),
            events: VecDeque::new(),
            next_member: 0,
            next_source: 0,
            is_changed: false,
            next_distribution: Instant::now(),
        }
    }

    /// Forwards until the room needs no forwarding unit.
    pub(super) async fn run(mut self, mut commands: Commands) {
        let mut layers = interval(LAYERS);
        layers.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let timeout = self.connections().map(|connection| connection.timeout()).min();
            let timeout = timeout.unwrap_or_else(|| Instant::now() + Duration::from_secs(60));
            let timeout = if self.is_changed { timeout.min(self.next_distribution) } else { timeout };
            tokio::select! {
                command = commands.next() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                event = self.network.next() => match event {
                    NetworkEvent::Datagram(datagram) => self.receive(&datagram),
                    NetworkEvent::Candidates(candidates) => self.add_candidates(&candidates),
                    NetworkEvent::Moved { new, old } => self.move_candidates(&new, &old),
                },
                () = sleep_until(timeout) => self.advance(),
                _ = layers.tick() => {
                    self.forget_dead();
                    self.choose_layers();
                }
            }
            self.handle_events();
            self.distribute_changes();
        }
        self.network.close().await;
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
                self.members.insert(self.next_member, Member::new(id, outbox));
                self.next_member += 1;
                self.is_changed = true;
            }
            Command::Leave(id) => {
                let Some(number) = self.number(&id) else { return };
                self.members.remove(&number);
                self.sources.retain(|_, source| source.owner != number);
                self.remotes.leave(number, Instant::now());
                self.routes.retain(|_, (owner, _)| *owner != number);
                self.is_changed = true;
            }
            Command::Sender(sender) => {
                self.sender = sender;
                // At once: the room limits how often the mode changes.
                (self.is_changed, self.next_distribution) = (true, Instant::now());
            }
            Command::Signal { from, link, signal } => {
                let Some(number) = self.number(&from) else { return };
                if let Err(reason) = self.signal(number, link, signal)
                    && let Some(member) = self.members.get(&number)
                {
                    member.report(reason);
                }
            }
            Command::Layer { from, track, choice } => {
                let source = self.sources.keys().find(|source| source.token() == track).copied();
                let member = self.number(&from).and_then(|number| self.members.get_mut(&number));
                let (Some(source), Some(member)) = (source, member) else { return };
                let Some(subscription) = member.subscription.as_mut().filter(|of| of.receives(source)) else { return };
                subscription.choose(source, choice);
                self.choose_layers();
                // If the layer stays, only the reason changes.
                let member = self.number(&from).and_then(|number| self.members.get(&number));
                let sent = member.and_then(|member| Some((member, member.subscription.as_ref()?.sent(source)?)));
                if let Some((member, (layer, why))) = sent {
                    member.send(&ToParticipant::Layer { track: source.token(), layer, why });
                }
            }
        }
    }

    /// Gives a participant its new signalling connection, and what it may have missed.
    fn resume(&mut self, number: u32, outbox: WeakOutbox) {
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
        match (link, signal) {
            (_, Signal::Candidate(candidate)) => {
                let candidate = candidate.as_ref().and_then(remote_candidate);
                candidate.map_or(Ok(()), |candidate| self.add_remote_candidate((number, link), candidate))?;
            }
            (Link::Publish, Signal::Description(Description { kind: DescriptionKind::Offer, sdp })) => {
                self.take_offer(number, &sdp)?;
            }
            (Link::Subscribe, Signal::Description(Description { kind: DescriptionKind::Answer, sdp })) => {
                self.take_answer(number, &sdp)?;
            }
            (Link::Subscribe, Signal::Restart(Restart { anew })) => {
                let Some(member) = self.members.get_mut(&number) else { return Ok(()) };
                member.count_restart()?;
                if anew { self.replace_subscription(number) } else { self.restart((number, link)) }
            }
            _ => {
                return Err(
                    "On publish, participants offer. On subscribe, they answer, or request a restart.".to_owned()
                );
            }
        }
        self.collect((number, link));
        Ok(())
    }

    /// Takes an offer of a participant that sends, and answers it.
    fn take_offer(&mut self, number: u32, sdp: &str) -> Result<(), String> {
        let (network, key) = (&self.network, (number, Link::Publish));
        let (sdp, candidates) = split_candidates(sdp);
        let Some(member) = self.members.get_mut(&number) else { return Ok(()) };
        member.count_offer()?;
        let fits = member.publication.as_ref().is_some_and(|publication| publication.fits(&sdp));
        let is_restart = member.publication.as_ref().is_none_or(|publication| publication.restarts_with(&sdp)) || !fits;
        if is_restart {
            member.count_restart()?;
        }
        let answer = match &mut member.publication {
            Some(publication) if fits => publication.answer(&sdp, network)?,
            present => {
                // Only an offer that is accepted ends the present connection.
                let mut publication = Publication::new(&sdp, network);
                let answer = publication.answer(&sdp, network)?;
                *present = Some(publication);
                self.sources.retain(|_, source| source.owner != number);
                answer
            }
        };
        if is_restart {
            self.forget_addresses(key);
        }
        if let Some(member) = self.members.get(&number) {
            member.describe(Link::Publish, DescriptionKind::Answer, answer);
        }
        self.collect(key);
        self.handle_events();
        self.is_changed = true;
        candidates.into_iter().try_for_each(|candidate| self.add_remote_candidate(key, candidate))
    }

    /// Takes the answer of a participant that receives.
    fn take_answer(&mut self, number: u32, sdp: &str) -> Result<(), String> {
        let (network, key) = (&self.network, (number, Link::Subscribe));
        let (sdp, candidates) = split_candidates(sdp);
        let Some(member) = self.members.get_mut(&number) else { return Ok(()) };
        let Some(subscription) = &mut member.subscription else { return Ok(()) };
        match subscription.answer(&sdp, network) {
            Ok(false) => {}
            Ok(true) => {
                self.forget_addresses(key);
            }
            Err(reason) => {
                // The connection has ended, and the next distribution begins another one.
                member.count_restart().map_err(|wait| format!("{reason} {wait}"))?;
                self.is_changed = true;
                return Err(reason);
            }
        }
        self.is_changed = true;
        self.choose_layers();
        candidates.into_iter().try_for_each(|candidate| self.add_remote_candidate(key, candidate))
    }

    /// Adds a candidate of a participant, if there are not too many.
    fn add_remote_candidate(&mut self, key: Key, candidate: Candidate) -> Result<(), String> {
        let (number, link) = key;
        let Some(member) = self.members.get_mut(&number).filter(|member| member.has(link)) else { return Ok(()) };
        match self.remotes.admit(key, candidate.addr(), Instant::now()) {
            // A peer may have been reached before its candidate came.
            Admission::Known | Admission::New => {
                if let Some(connection) = member.connection(link) {
                    connection.add_remote_candidate(candidate, &self.network);
                }
                self.collect(key);
                Ok(())
            }
            Admission::Rejected => {
                Err("There are too many candidates for a connection with the forwarding unit, which \
                                        does not use the others."
                    .to_owned())
            }
        }
    }

    /// Forgets the addresses of a connection that begins or restarts.
    fn forget_addresses(&mut self, key: Key) {
        self.remotes.restart(key, Instant::now());
        self.routes.retain(|_, of| *of != key);
    }

    /// Restarts ICE on a connection: on subscribe by an offer, on publish by the request for one.
    fn restart(&mut self, (number, link): Key) {
        let Some(member) = self.members.get_mut(&number).filter(|member| member.has(link)) else { return };
        match (link, &mut member.subscription) {
            (Link::Subscribe, Some(subscription)) => {
                subscription.restart();
                self.is_changed = true;
            }
            _ => member.signal(link, Signal::Restart(Restart::default())),
        }
    }

    /// Begins the connection on which a participant receives anew.
    fn replace_subscription(&mut self, number: u32) {
        let Some(member) = self.members.get_mut(&number) else { return };
        member.subscription = member.subscription.take().map(|subscription| subscription.anew(&self.network));
        self.forget_addresses((number, Link::Subscribe));
        self.is_changed = true;
    }

    /// Forgets the publications whose connection has ended.
    fn forget_dead(&mut self) {
        let before = self.sources.len();
        for (number, member) in &mut self.members {
            if member.publication.as_ref().is_some_and(|publication| !publication.connection.rtc().is_alive()) {
                member.publication = None;
                self.sources.retain(|_, source| source.owner != *number);
            }
        }
        if self.sources.len() != before {
            self.is_changed = true;
        }
    }

    /// Distributes the sources if something has changed, and if the last time was long enough ago.
    fn distribute_changes(&mut self) {
        let now = Instant::now();
        if self.is_changed && now >= self.next_distribution {
            (self.is_changed, self.next_distribution) = (false, now + DISTRIBUTION);
            self.distribute();
            self.handle_events();
        }
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
                self.forget_addresses((number, Link::Subscribe));
            }
            let Some(member) = self.members.get_mut(&number) else { continue };
            let network = &self.network;
            let subscription = member.subscription.get_or_insert_with(|| Subscription::new(network));
            let is_assigned = subscription.assign(&wanted);
            let offer = subscription.offer(&wanted, network, Instant::now().into_std());
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

    /// Moves all connections to new candidates.
    fn move_candidates(&mut self, new: &[Candidate], old: &[Candidate]) {
        self.add_candidates(new);
        let mut keys = Vec::new();
        for (number, member) in &mut self.members {
            for link in [Link::Publish, Link::Subscribe] {
                if let Some(connection) = member.connection(link) {
                    connection.remove_local_candidates(old, &self.network);
                    keys.push((*number, link));
                }
            }
        }
        keys.into_iter().for_each(|key| self.restart(key));
    }

    fn receive(&mut self, datagram: &Datagram) {
        if let Some(key) = self.routes.get(&datagram.source).copied()
            && self.accepts(key, datagram)
        {
            return self.take(key, datagram);
        }
        let keys: Vec<Key> =
            self.members.keys().flat_map(|number| [(*number, Link::Publish), (*number, Link::Subscribe)]).collect();
        let Some(key) = keys.into_iter().find(|key| self.accepts(*key, datagram)) else { return };
        // A source that is no candidate becomes one.
        if self.remotes.admit(key, datagram.source, Instant::now()) == Admission::Rejected {
            tracing::debug!("a participant sends from too many addresses");
            return;
        }
        self.routes.insert(datagram.source, key);
        self.take(key, datagram);
    }

    fn accepts(&mut self, (number, link): Key, datagram: &Datagram) -> bool {
        let connection = self.members.get_mut(&number).and_then(|member| member.connection(link));
        connection.is_some_and(|connection| connection.accepts(datagram))
    }

    /// Takes a datagram that is for a connection.
    fn take(&mut self, key: Key, datagram: &Datagram) {
        let (Some(member), now) = (self.members.get_mut(&key.0), Instant::now()) else { return };
        if !member.police.pass(&datagram.data, now) {
            if let Some(dropped) = member.police.report(now) {
                let most = CEILING / 1_000_000;
                tracing::warn!("a participant sends more than {most} Mbit/s: {dropped} packets dropped");
                member.report(format!("You send more than {most} Mbit/s. The forwarding unit drops the rest."));
            }
            return;
        }
        if let Some(connection) = member.connection(key.1) {
            connection.receive(&self.network, datagram);
        }
        self.collect(key);
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
                        self.is_changed = true;
                    }
                    (None, true) => {
                        let publication = self.members.get(&number).and_then(|member| member.publication.as_ref());
                        let source = publication.and_then(|publication| {
                            let kind = publication.connection.rtc().media(mid)?.kind();
                            Some(Source::new(number, mid, kind, publication.rids(mid)))
                        });
                        if let Some(source) = source {
                            self.add_source(source);
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
                self.restart(key);
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
        self.is_changed = true;
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
