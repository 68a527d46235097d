//! What the forwarding unit signals. There is no network here, so the tests add the sources that media would make.

use futures_util::FutureExt as _;
use serde_json::Value;
use str0m::Rtc;
use str0m::change::SdpOffer;
use str0m::media::Direction;
use tokio::sync::watch;
use tokio::time::advance;

use super::*;
use crate::connect::Trust;
use crate::message::Ice;
use crate::outbox::{self, Inbox, Memory, Outbox};
use crate::webrtc::{configuration, fingerprint};

/// Returns a unit without addresses.
async fn unit() -> Unit {
    let (_, credentials) = watch::channel(Ice::default());
    Unit::new(Network::open(&[], credentials, Trust::default()).await.unwrap())
}

impl Unit {
    /// Does what follows after a moment.
    async fn settle(&mut self) {
        self.handle_events();
        advance(DISTRIBUTION).await;
        self.distribute_changes();
    }

    /// Lets a participant send another track.
    async fn add(&mut self, sender: &Participant, kind: MediaKind) {
        let number = self.number(&sender.id).unwrap();
        self.add_source(Source::new(number, Mid::from("0"), kind, &[]));
        self.settle().await;
    }
}

/// A participant.
struct Participant {
    id: ParticipantId,
    rtc: Rtc,
    /// `None` while its signalling is lost.
    signalling: Option<(Outbox, Inbox)>,
}

impl Participant {
    fn enter(unit: &mut Unit) -> Self {
        let id = ParticipantId::random().unwrap();
        let mut new = Self { id, rtc: configuration().build(Instant::now().into_std()), signalling: None };
        new.come_back(unit);
        new
    }

    /// Enters, or comes back with another signalling connection.
    fn come_back(&mut self, unit: &mut Unit) {
        let (outbox, inbox) = outbox::channel(&Memory::default());
        unit.command(Command::Enter { id: self.id.clone(), outbox: outbox.downgrade() });
        self.signalling = Some((outbox, inbox));
    }

    fn signal(&self, unit: &mut Unit, link: Link, signal: Signal) {
        unit.command(Command::Signal { from: self.id.clone(), link, signal });
    }

    /// Sends an offer.
    fn publish(&self, unit: &mut Unit, sdp: &str) {
        let offer = Description { kind: DescriptionKind::Offer, sdp: sdp.to_owned() };
        self.signal(unit, Link::Publish, Signal::Description(offer));
    }

    /// Sends an answer.
    fn answer(&self, unit: &mut Unit, sdp: &str) {
        let answer = Description { kind: DescriptionKind::Answer, sdp: sdp.to_owned() };
        self.signal(unit, Link::Subscribe, Signal::Description(answer));
    }

    /// Returns the answer to an offer.
    fn accept(&mut self, offer: &str) -> String {
        self.rtc.sdp_api().accept_offer(SdpOffer::from_sdp_string(offer).unwrap()).unwrap().to_sdp_string()
    }

    /// Returns the messages that have come.
    fn messages(&mut self) -> Vec<Value> {
        let (_, inbox) = self.signalling.as_mut().unwrap();
        let messages = std::iter::from_fn(|| inbox.recv().now_or_never().map(Option::unwrap));
        messages.map(|message| serde_json::from_str(&message).unwrap()).collect()
    }

    /// Returns the only description that has come. There is no error.
    fn description(&mut self) -> String {
        let messages = self.messages();
        assert!(messages.iter().all(|message| message["type"] != "error"), "{messages:?}");
        let descriptions = messages.iter().filter_map(|message| message["description"]["sdp"].as_str());
        let [description] = descriptions.collect::<Vec<_>>()[..] else { panic!("one description: {messages:?}") };
        description.to_owned()
    }

    /// Returns the text of the only error that has come.
    fn error(&mut self) -> String {
        let messages = self.messages();
        let errors = messages.iter().filter(|message| message["type"] == "error");
        let [error] = errors.collect::<Vec<_>>()[..] else { panic!("one error: {messages:?}") };
        error["message"].as_str().unwrap().to_owned()
    }
}

/// Returns an offer of a new connection.
fn offer() -> String {
    let mut rtc = configuration().build(Instant::now().into_std());
    let mut change = rtc.sdp_api();
    change.add_media(MediaKind::Audio, Direction::SendOnly, None, None, None);
    change.apply().unwrap().0.to_sdp_string()
}

/// Returns the number of media sections.
fn sections(sdp: &str) -> usize {
    sdp.lines().filter(|line| line.starts_with("m=")).count()
}

#[tokio::test(start_paused = true)]
async fn a_participant_that_was_absent_when_the_unit_offered_gets_the_offer_when_it_comes_back() {
    let mut unit = unit().await;
    let (sender, mut viewer) = (Participant::enter(&mut unit), Participant::enter(&mut unit));
    viewer.signalling = None;
    unit.add(&sender, MediaKind::Audio).await;
    viewer.come_back(&mut unit);
    let [signal, tracks] = &viewer.messages()[..] else { panic!("an offer and its tracks") };
    assert_eq!(tracks["tracks"][0]["peer"], sender.id.to_string());
    let answer = viewer.accept(signal["description"]["sdp"].as_str().unwrap());
    viewer.answer(&mut unit, &answer);
    unit.add(&sender, MediaKind::Video).await;
    assert_eq!(sections(&viewer.description()), 2, "the unit has taken the answer");
    viewer.come_back(&mut unit);
    viewer.come_back(&mut unit);
    assert_eq!(sections(&viewer.description()), 2, "not answered");
}

#[tokio::test(start_paused = true)]
async fn a_participant_that_changes_its_sources_often_does_not_flood_the_others() {
    let mut unit = unit().await;
    let (sender, mut viewer) = (Participant::enter(&mut unit), Participant::enter(&mut unit));
    unit.settle().await;
    let number = unit.number(&sender.id).unwrap();
    let begin = Instant::now();
    for _ in 0..100 {
        unit.add_source(Source::new(number, Mid::from("0"), MediaKind::Video, &[]));
        unit.distribute_changes();
        unit.sources.clear();
        unit.is_changed = true;
        unit.distribute_changes();
        advance(Duration::from_millis(50)).await;
    }
    let most = begin.elapsed().as_millis() / DISTRIBUTION.as_millis();
    let tracks = viewer.messages().iter().filter(|message| message["type"] == "tracks").count() as u128;
    assert!(0 < tracks && tracks <= most, "{tracks}, and not {most}");
}

#[tokio::test(start_paused = true)]
async fn changes_that_wait_are_distributed_without_another_event() {
    let mut unit = unit().await;
    let sender = Participant::enter(&mut unit);
    let mut viewer = Participant::enter(&mut unit);
    unit.settle().await;
    unit.add_source(Source::new(unit.number(&sender.id).unwrap(), Mid::from("0"), MediaKind::Audio, &[]));
    let (_sfu, commands) = crate::sfu::channel();
    tokio::spawn(unit.run(commands));
    let (_, inbox) = viewer.signalling.as_mut().unwrap();
    let begin = Instant::now();
    assert!(inbox.recv().await.unwrap().contains("tracks"));
    assert!(begin.elapsed() <= DISTRIBUTION, "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_participant_offers_thirty_times_at_once_and_then_once_a_second() {
    let mut unit = unit().await;
    let (mut sender, offer) = (Participant::enter(&mut unit), offer());
    for _ in 0..30 {
        sender.publish(&mut unit, &offer);
        sender.description();
    }
    sender.publish(&mut unit, &offer);
    assert!(sender.error().contains("too many offers"));
    advance(OFFERS.interval).await;
    sender.publish(&mut unit, &offer);
    sender.description();
}

#[tokio::test(start_paused = true)]
async fn an_offer_that_is_rejected_leaves_the_present_connection_and_its_sources() {
    let mut unit = unit().await;
    let (mut sender, mut viewer) = (Participant::enter(&mut unit), Participant::enter(&mut unit));
    sender.publish(&mut unit, &offer());
    let before = sender.description();
    unit.add(&sender, MediaKind::Audio).await;
    viewer.messages();
    sender.publish(&mut unit, &offer().replace("a=ice-pwd", "a=no-pwd"));
    assert!(sender.error().contains("The offer is not accepted"));
    let number = unit.number(&sender.id).unwrap();
    let publication = unit.members[&number].publication.as_ref().unwrap();
    let own = publication.connection.rtc().is_alive();
    assert!(own && unit.sources.len() == 1);
    unit.settle().await;
    assert_eq!(viewer.messages(), Vec::<Value>::new());
    sender.publish(&mut unit, &offer());
    assert_ne!(fingerprint(&sender.description()), fingerprint(&before), "another one replaces it");
    assert!(unit.sources.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_second_answer_to_an_earlier_offer_is_ignored() {
    let mut unit = unit().await;
    let (sender, mut viewer) = (Participant::enter(&mut unit), Participant::enter(&mut unit));
    unit.add(&sender, MediaKind::Audio).await;
    let first = viewer.description();
    let answer = viewer.accept(&first);
    viewer.answer(&mut unit, &answer);
    unit.add(&sender, MediaKind::Video).await;
    let second = viewer.description();
    // The unit waits for an answer with another section.
    viewer.answer(&mut unit, &answer);
    let answer = viewer.accept(&second);
    viewer.answer(&mut unit, &answer);
    viewer.signal(&mut unit, Link::Subscribe, Signal::Restart(Restart::default()));
    unit.settle().await;
    let restart = viewer.description();
    // It waits for one that restarts ICE.
    viewer.answer(&mut unit, &answer);
    let answer = viewer.accept(&restart);
    viewer.answer(&mut unit, &answer);
    unit.add(&sender, MediaKind::Audio).await;
    let last = viewer.description();
    assert_eq!((sections(&second), sections(&restart), sections(&last)), (2, 2, 3));
    assert_eq!(fingerprint(&first), fingerprint(&last), "the same connection");
    let answer = viewer.accept(&last);
    viewer.answer(&mut unit, &answer);
    assert_eq!(viewer.messages().iter().find(|message| message["type"] == "error"), None);
}

#[tokio::test(start_paused = true)]
async fn after_an_answer_that_does_not_fit_the_unit_begins_another_connection() {
    let mut unit = unit().await;
    let (sender, mut viewer) = (Participant::enter(&mut unit), Participant::enter(&mut unit));
    unit.add(&sender, MediaKind::Audio).await;
    let mut before = viewer.description();
    let sections: String = before.split_inclusive('\n').filter(|line| line.starts_with("m=")).collect();
    for _ in 0..RESTARTS.burst {
        viewer.answer(&mut unit, &sections);
        assert!(viewer.error().contains("The answer is not"));
        unit.settle().await;
        let next = viewer.description();
        assert_ne!(fingerprint(&before), fingerprint(&next));
        before = next;
    }
    viewer.answer(&mut unit, &sections);
    assert!(viewer.error().contains("too many new connections"));
    unit.settle().await;
    assert_eq!(viewer.messages(), Vec::<Value>::new(), "it has to request the next one");
    advance(RESTARTS.interval).await;
    viewer.signal(&mut unit, Link::Subscribe, Signal::Restart(Restart::default()));
    unit.settle().await;
    let last = viewer.description();
    let answer = viewer.accept(&last);
    viewer.answer(&mut unit, &answer);
    assert_eq!(viewer.messages(), Vec::<Value>::new());
}

#[tokio::test(start_paused = true)]
async fn a_participant_that_requests_a_connection_anew_gets_the_offer_of_another_one_with_its_sources() {
    let mut unit = unit().await;
    let (sender, mut viewer) = (Participant::enter(&mut unit), Participant::enter(&mut unit));
    unit.add(&sender, MediaKind::Audio).await;
    unit.add(&sender, MediaKind::Video).await;
    let first = viewer.description();
    let answer = viewer.accept(&first);
    viewer.answer(&mut unit, &answer);
    let mut before = first;
    // The second request comes before the answer to the first offer.
    for _ in 0..2 {
        viewer.signal(&mut unit, Link::Subscribe, Signal::Restart(Restart { anew: true }));
        unit.settle().await;
        let offer = viewer.description();
        assert_ne!(fingerprint(&before), fingerprint(&offer));
        assert_eq!(sections(&offer), 2);
        before = offer;
    }
    viewer.rtc = configuration().build(Instant::now().into_std());
    let answer = viewer.accept(&before);
    viewer.answer(&mut unit, &answer);
    unit.add(&sender, MediaKind::Video).await;
    let last = viewer.description();
    assert_eq!((fingerprint(&before), sections(&last)), (fingerprint(&last), 3));
}
