//! Calls of bots through a relay: in a mesh, and with the forwarding unit. No bot has another candidate than that of the
//! relay.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "support/mod.rs"]
mod support;

use clap::Parser as _;
use rooms::arguments::{Arguments, Command};
use rooms::bot::{Bot, Status};
use rooms::message::{Layer, Why};
use serde_json::{Value, json};
use str0m::Rtc;
use str0m::change::SdpOffer;
use str0m::media::{Direction, MediaKind};
use support::relay::{RelayProcess, SlowPath};
use support::{Running, Socket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant, timeout};

/// The time within which everything happens, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A relay, a server and a room.
struct Setup {
    relay: RelayProcess,
    server: Running,
    room: String,
}

impl Setup {
    async fn new() -> Self {
        Self::with(&[]).await
    }

    async fn with(options: &[&str]) -> Self {
        let relay = RelayProcess::start();
        let given = relay.options();
        let given: Vec<&str> = given.iter().map(String::as_str).chain(options.iter().copied()).collect();
        let server = Running::start_with(&given).await;
        let room = server.room().await;
        Self { relay, server, room }
    }

    async fn bot(&self, options: &[&str]) -> Seat {
        let url = format!("http://{}/room/{}", self.server.address, self.room);
        let arguments = [&["rooms", "bot", &url], options].concat();
        let Some(Command::Bot(options)) = Arguments::parse_from(arguments).command else { panic!("no bot") };
        let bot = timeout(PATIENCE, Bot::join(options)).await.unwrap().unwrap();
        Seat { status: bot.status(), task: tokio::spawn(async { drop(bot.run().await) }) }
    }

    /// Enters and changes the mode.
    async fn switch(&self, mode: &str) -> Socket {
        let (mut socket, _) = self.server.join(&self.room, "switch").await;
        socket.send(json!({"type": "mode", "mode": mode})).await;
        socket
    }
}

/// A bot that runs until it is dropped.
struct Seat {
    status: watch::Receiver<Status>,
    task: JoinHandle<()>,
}

impl Seat {
    /// Waits until the bot has seen something.
    async fn sees(&mut self, what: &str, seen: impl FnMut(&Status) -> bool) {
        assert!(!self.task.is_finished(), "{what}: the bot has ended");
        let result = timeout(PATIENCE, self.status.wait_for(seen)).await.map(|result| result.map(drop));
        assert!(matches!(result, Ok(Ok(()))), "{what}: {:?}", self.status.borrow());
    }

    /// Waits for further pictures and tones.
    async fn sees_more(&mut self, what: &str) {
        let Status { frames, packets, .. } = self.now();
        self.sees(what, |status| status.frames >= frames + 20 && status.packets >= packets + 50).await;
    }

    fn now(&self) -> Status {
        self.status.borrow().clone()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_bots_see_and_hear_each_other_and_echo_data() {
    let setup = Setup::new().await;
    let mut one = setup.bot(&[]).await;
    let mut two = setup.bot(&["--say", "hello"]).await;
    for bot in [&mut one, &mut two] {
        bot.sees("picture and tone", |status| status.frames >= 20 && status.packets >= 50).await;
    }
    two.sees("its echo", |status| status.returned == 1).await;
    one.sees("the message", |status| status.echoed == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_reaches_the_relay_over_tcp() {
    let setup = Setup::new().await;
    let url = setup.relay.url("tcp");
    let mut one = setup.bot(&["--turn-url", &url]).await;
    let mut two = setup.bot(&["--turn-url", &url]).await;
    for bot in [&mut one, &mut two] {
        bot.sees("picture and tone", |status| status.frames >= 20 && status.packets >= 50).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_forwarding_unit_sends_the_media_of_each_to_all_others_and_asks_for_key_frames() {
    let setup = Setup::new().await;
    let _switch = setup.switch("sfu").await;
    let mut bots = [setup.bot(&[]).await, setup.bot(&[]).await, setup.bot(&[]).await];
    for bot in &mut bots {
        bot.sees("one connection each way", |status| status.unit == 2).await;
        bot.sees("pictures and tones", |status| status.frames >= 60 && status.packets >= 150).await;
        bot.sees("the highest layer", |status| is_last(status, Layer::High)).await;
    }
    // The others entered later, and a picture begins with a key frame.
    assert!(bots[0].now().keyframe_requests > 0);
}

/// Whether a layer is the last one of which the forwarding unit says that it sends it.
fn is_last(status: &Status, layer: Layer) -> bool {
    status.layers.last().is_some_and(|(last, _)| *last == layer)
}

/// Whether the pictures that come are of a layer, too.
fn is_seen(status: &Status, layer: Layer) -> bool {
    is_last(status, layer) && status.height == height(layer)
}

/// Returns the height of the bot's picture.
fn height(layer: Layer) -> u16 {
    match layer {
        Layer::Low => 90,
        Layer::Medium => 180,
        Layer::High => 360,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_change_from_a_mesh_to_the_forwarding_unit_and_back() {
    let setup = Setup::new().await;
    let mut one = setup.bot(&[]).await;
    let mut two = setup.bot(&["--say", "hello"]).await;
    for bot in [&mut one, &mut two] {
        bot.sees_more("the mesh").await;
    }
    two.sees("its echo", |status| status.returned == 1).await;
    let mut switch = setup.switch("sfu").await;
    for bot in [&mut one, &mut two] {
        bot.sees("both connections with the unit", |status| status.unit == 2).await;
        bot.sees_more("pictures of the unit").await;
        assert_eq!(bot.now().peers, 1, "data go on without the unit");
    }
    switch.send(json!({"type": "mode", "mode": "mesh"})).await;
    for bot in [&mut one, &mut two] {
        bot.sees("no connection with the unit", |status| status.unit == 0).await;
        bot.sees_more("the mesh again").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_enters_while_media_are_forwarded_has_data_channels_and_the_mesh_later() {
    let setup = Setup::new().await;
    let mut one = setup.bot(&["--mode", "sfu"]).await;
    one.sees("the way to the unit", |status| status.unit == 1).await;
    let mut two = setup.bot(&["--say", "hello"]).await;
    two.sees("its echo", |status| status.returned == 1).await;
    two.sees("pictures of the unit", |status| status.unit == 2 && status.frames >= 20).await;
    let mut switch = setup.switch("mesh").await;
    for bot in [&mut one, &mut two] {
        bot.sees("no connection with the unit", |status| status.unit == 0).await;
        bot.sees_more("the mesh").await;
    }
    switch.send(json!({"type": "leave"})).await;
}

/// A participant without media, which reads what the forwarding unit signals.
struct Viewer {
    socket: Socket,
    rtc: Rtc,
}

impl Viewer {
    async fn enter(setup: &Setup) -> Self {
        let (socket, _) = setup.server.join(&setup.room, "viewer").await;
        Self { socket, rtc: rtc() }
    }

    /// Answers the offers of the forwarding unit until another message comes.
    async fn receive(&mut self) -> Value {
        loop {
            let message = self.socket.receive().await;
            match offer_in(&message) {
                Some(offer) => self.answer(offer).await,
                None => return message,
            }
        }
    }

    /// Waits for an offer of the forwarding unit.
    async fn offer(&mut self) -> String {
        loop {
            let message = self.socket.receive().await;
            assert_ne!(message["type"], "error", "{message}");
            if let Some(offer) = offer_in(&message) {
                return offer.to_owned();
            }
        }
    }

    async fn answer(&mut self, offer: &str) {
        let answer = self.rtc.sdp_api().accept_offer(SdpOffer::from_sdp_string(offer).unwrap()).unwrap();
        let answer = answer.to_sdp_string();
        self.signal("subscribe", json!({"description": {"type": "answer", "sdp": answer}})).await;
    }

    /// Signals something to the forwarding unit.
    async fn signal(&mut self, link: &str, mut what: Value) {
        what.as_object_mut().unwrap().extend([
            ("type".to_owned(), json!("signal")),
            ("to".to_owned(), json!("sfu")),
            ("link".to_owned(), json!(link)),
        ]);
        self.socket.send(what).await;
    }

    /// Waits for the message with the tracks of certain participants.
    async fn tracks_of(&mut self, peers: &[&Value]) {
        loop {
            let message = self.receive().await;
            if message["type"] != "tracks" {
                continue;
            }
            let tracks = message["tracks"].as_array().unwrap();
            for video in tracks.iter().filter(|track| track["kind"] == "video") {
                assert_eq!(video["layers"], json!(["high", "medium", "low"]));
            }
            let has = |peer: &Value, kind| tracks.iter().any(|track| track["peer"] == *peer && track["kind"] == kind);
            let has_all = peers.iter().all(|peer| has(peer, "audio") && has(peer, "video"));
            if has_all && tracks.len() == 2 * peers.len() {
                return;
            }
        }
    }

    /// Waits for a participant and returns its identifier.
    async fn arrival(&mut self) -> Value {
        loop {
            let message = self.receive().await;
            if message["type"] == "peer-joined" {
                return message["peer"]["id"].clone();
            }
        }
    }

    /// Waits for an error and returns its code and text.
    async fn rejection(&mut self) -> (String, String) {
        loop {
            let message = self.receive().await;
            if message["type"] == "error" {
                let field = |name: &str| message[name].as_str().unwrap().to_owned();
                return (field("code"), field("message"));
            }
        }
    }
}

/// Returns a connection with the codecs of the forwarding unit.
fn rtc() -> Rtc {
    Rtc::builder().clear_codecs().enable_vp8(true).enable_opus(true, false).build(Instant::now().into_std())
}

fn offer_in(message: &Value) -> Option<&str> {
    let is_offer = message["link"] == "subscribe" && message["description"]["type"] == "offer";
    message["description"]["sdp"].as_str().filter(|_| is_offer)
}

/// Returns the rest of the line of a description that begins with a text.
fn line<'s>(sdp: &'s str, begin: &str) -> &'s str {
    sdp.lines().find_map(|line| line.strip_prefix(begin)).unwrap()
}

/// Returns the offer of a participant that sends tracks of these kinds.
fn publish(kinds: &[MediaKind]) -> Value {
    let mut rtc = rtc();
    let mut change = rtc.sdp_api();
    for kind in kinds {
        change.add_media(*kind, Direction::SendOnly, None, None, None);
    }
    json!({"description": {"type": "offer", "sdp": change.apply().unwrap().0.to_sdp_string()}})
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_broadcast_only_its_sender_is_forwarded() {
    let setup = Setup::new().await;
    let mut viewer = Viewer::enter(&setup).await;
    viewer.socket.send(json!({"type": "mode", "mode": "sfu"})).await;
    let mut one = setup.bot(&[]).await;
    let first = viewer.arrival().await;
    let mut two = setup.bot(&[]).await;
    let second = viewer.arrival().await;
    viewer.tracks_of(&[&first, &second]).await;
    one.sees_more("pictures of the other").await;
    let mut sender = setup.bot(&["--mode", "broadcast"]).await;
    let third = viewer.arrival().await;
    viewer.tracks_of(&[&third]).await;
    for bot in [&mut one, &mut two] {
        bot.sees("no way to the unit", |status| status.unit == 1).await;
    }
    sender.sees("its way to the unit", |status| status.unit >= 1).await;
    one.sees_more("the broadcast").await;
    // What was sent before the change of the mode has arrived.
    let before = sender.now();
    for bot in [&mut one, &mut two] {
        bot.sees_more("the broadcast").await;
    }
    let after = sender.now();
    assert_eq!((after.frames, after.packets), (before.frames, before.packets), "the sender receives nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_layer_falls_when_the_path_of_a_viewer_becomes_slow_and_rises_again() {
    let setup = Setup::new().await;
    let _sender = setup.bot(&["--mode", "broadcast"]).await;
    let path = SlowPath::open(setup.relay.udp).await;
    let url = format!("turn:{}?transport=udp", path.address);
    let mut viewer = setup.bot(&["--turn-url", &url]).await;
    viewer.sees("the highest layer", |status| is_seen(status, Layer::High)).await;
    path.set_rate(250_000);
    viewer.sees("a lower layer", |status| is_seen(status, Layer::Low) || is_seen(status, Layer::Medium)).await;
    path.set_rate(u64::MAX);
    viewer.sees("the highest layer again", |status| is_seen(status, Layer::High)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_gets_the_layer_that_it_has_chosen_and_the_reason() {
    let setup = Setup::new().await;
    let _sender = setup.bot(&["--mode", "broadcast"]).await;
    let mut all = setup.bot(&[]).await;
    let mut low = setup.bot(&["--layer", "low"]).await;
    let mut medium = setup.bot(&["--layer", "medium"]).await;
    all.sees("the highest layer", |status| is_seen(status, Layer::High)).await;
    for (viewer, layer) in [(&mut low, Layer::Low), (&mut medium, Layer::Medium)] {
        let is_chosen = |status: &Status| status.layers.last() == Some(&(layer, Why::Chosen)) && is_seen(status, layer);
        viewer.sees("the chosen layer, as chosen", is_chosen).await;
        viewer.sees_more("its pictures").await;
        let layers = viewer.now().layers;
        assert!(layers.iter().all(|(sent, _)| *sent <= layer), "{layers:?}");
    }
    let layers = all.now().layers;
    assert!(layers.iter().all(|(_, why)| *why == Why::Bandwidth), "it has chosen nothing: {layers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_forwarding_unit_restarts_ice_when_a_viewer_requests_it() {
    let setup = Setup::new().await;
    let _sender = setup.bot(&["--mode", "broadcast"]).await;
    let mut viewer = Viewer::enter(&setup).await;
    let first = viewer.offer().await;
    viewer.answer(&first).await;
    let mut user = line(&first, "a=ice-ufrag:").to_owned();
    for _ in 0..2 {
        viewer.signal("subscribe", json!({"restart": {}})).await;
        // An offer of another section may come before.
        loop {
            let offer = viewer.offer().await;
            viewer.answer(&offer).await;
            assert_eq!(line(&first, "a=fingerprint:"), line(&offer, "a=fingerprint:"), "the same connection");
            let new = line(&offer, "a=ice-ufrag:").to_owned();
            if std::mem::replace(&mut user, new.clone()) != new {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_comes_back_after_an_interruption_of_its_path() {
    let setup = Setup::new().await;
    let _sender = setup.bot(&["--mode", "broadcast"]).await;
    let path = SlowPath::open(setup.relay.udp).await;
    let url = format!("turn:{}?transport=udp", path.address);
    let mut viewer = setup.bot(&["--turn-url", &url]).await;
    viewer.sees_more("the broadcast").await;
    path.set_rate(0);
    viewer.sees("a restart", |status| status.unit == 0 && status.restarts > 0).await;
    path.set_rate(u64::MAX);
    viewer.sees("the connection", |status| status.unit == 1).await;
    viewer.sees_more("the broadcast again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_candidates_of_a_participant_are_rejected() {
    let setup = Setup::new().await;
    let _sender = setup.bot(&["--mode", "broadcast"]).await;
    let mut viewer = Viewer::enter(&setup).await;
    let offer = viewer.offer().await;
    viewer.answer(&offer).await;
    for port in 1..=17 {
        let candidate = json!({"candidate": format!("candidate:1 1 udp 1 192.0.2.1 {port} typ host")});
        viewer.signal("subscribe", json!({"candidate": candidate})).await;
    }
    let (code, message) = viewer.rejection().await;
    assert!(code == "sfu" && message.contains("too many candidates"), "{code}: {message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_media_sections_data_channels_and_too_many_new_connections_are_rejected() {
    let setup = Setup::new().await;
    let mut sender = Viewer::enter(&setup).await;
    sender.socket.send(json!({"type": "mode", "mode": "sfu"})).await;
    sender.signal("publish", publish(&[MediaKind::Audio; 17])).await;
    let (code, message) = sender.rejection().await;
    assert!(code == "sfu" && message.contains("16 media sections"), "{code}: {message}");
    let mut rtc = rtc();
    let mut change = rtc.sdp_api();
    change.add_channel("chat".to_owned());
    let offer = change.apply().unwrap().0.to_sdp_string();
    sender.signal("publish", json!({"description": {"type": "offer", "sdp": offer}})).await;
    let (code, message) = sender.rejection().await;
    assert!(code == "sfu" && message.contains("no data channels"), "{code}: {message}");
    for _ in 0..10 {
        sender.signal("publish", publish(&[MediaKind::Audio])).await;
    }
    let (code, message) = sender.rejection().await;
    assert!(code == "sfu" && message.contains("too many new connections"), "{code}: {message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_to_a_sender_has_a_ceiling_for_pictures() {
    let setup = Setup::new().await;
    let mut sender = Viewer::enter(&setup).await;
    sender.socket.send(json!({"type": "mode", "mode": "sfu"})).await;
    sender.signal("publish", publish(&[MediaKind::Audio, MediaKind::Video])).await;
    let answer = loop {
        let message = sender.receive().await;
        if message["description"]["type"] == "answer" {
            break message["description"]["sdp"].as_str().unwrap().to_owned();
        }
    };
    assert_eq!(answer.matches("b=AS:4000").count(), 1, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_reports_a_room_that_does_not_exist() {
    let setup = Setup::new().await;
    let url = format!("http://{}/room/AAAAAAAAAAAAAAAAAAAAAA", setup.server.address);
    let Some(Command::Bot(options)) = Arguments::parse_from(["rooms", "bot", &url]).command else { panic!("no bot") };
    let error = Bot::join(options).await.err().unwrap();
    assert!(error.to_string().contains("There is no such room"), "{error}");
}

// The relay ends an allocation with the credentials with which it was made: there is no grace here.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_goes_on_after_the_credentials_with_which_it_began_have_expired() {
    let setup = Setup::with(&["--lifetime", "30"]).await;
    let _switch = setup.switch("sfu").await;
    let _sender = setup.bot(&[]).await;
    let mut viewer = setup.bot(&[]).await;
    viewer.sees("pictures", |status| status.frames >= 10).await;
    let end = Instant::now() + Duration::from_secs(50);
    let mut longest = Duration::ZERO;
    while Instant::now() < end {
        let (frames, begin) = (viewer.now().frames, Instant::now());
        viewer.sees("the next picture", |status| status.frames > frames).await;
        longest = longest.max(begin.elapsed());
    }
    assert!(longest < Duration::from_secs(4), "no picture for {longest:?}");
}
