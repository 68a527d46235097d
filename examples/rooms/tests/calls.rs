//! Calls of bots through a relay: in a mesh, and with the forwarding unit. No bot has another candidate than that of the
//! relay.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "support/mod.rs"]
mod support;

use clap::Parser as _;
use rooms::arguments::{Arguments, Command};
use rooms::bot::{Bot, Status};
use serde_json::json;
use support::relay::{RelayProcess, SlowPath};
use support::{Running, Socket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Duration, timeout};

/// The time within which everything happens, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A relay, a server and a room.
struct Place {
    relay: RelayProcess,
    server: Running,
    room: String,
}

impl Place {
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
        let result = timeout(PATIENCE, self.status.wait_for(seen)).await.map(|result| result.map(drop));
        assert!(matches!(result, Ok(Ok(()))), "{what}: {:?}", self.status.borrow());
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
    let place = Place::new().await;
    let mut one = place.bot(&[]).await;
    let mut two = place.bot(&["--say", "hello"]).await;
    for bot in [&mut one, &mut two] {
        bot.sees("picture and tone", |status| status.frames >= 20 && status.packets >= 50).await;
    }
    two.sees("its echo", |status| status.returned == 1).await;
    one.sees("the message", |status| status.echoed == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_reaches_the_relay_over_tcp() {
    let place = Place::new().await;
    let url = place.relay.url("tcp");
    let mut one = place.bot(&["--turn-url", &url]).await;
    let mut two = place.bot(&["--turn-url", &url]).await;
    for bot in [&mut one, &mut two] {
        bot.sees("picture and tone", |status| status.frames >= 20 && status.packets >= 50).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_forwarding_unit_sends_the_media_of_each_to_all_others_and_asks_for_key_frames() {
    let place = Place::new().await;
    let _switch = place.switch("sfu").await;
    let mut bots = [place.bot(&[]).await, place.bot(&[]).await, place.bot(&[]).await];
    for bot in &mut bots {
        bot.sees("one connection each way", |status| status.connected == 2).await;
        bot.sees("pictures and tones", |status| status.frames >= 60 && status.packets >= 150).await;
        bot.sees("the highest layer", |status| status.layers.iter().any(|layer| layer == "high")).await;
    }
    // The others entered later, and a picture begins with a key frame.
    assert!(bots[0].now().keyframe_requests > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_change_from_a_mesh_to_the_forwarding_unit_and_back() {
    let place = Place::new().await;
    let mut one = place.bot(&[]).await;
    let mut two = place.bot(&[]).await;
    two.sees("the mesh", |status| status.frames >= 10).await;
    let mut switch = place.switch("sfu").await;
    for bot in [&mut one, &mut two] {
        bot.sees("both connections with the unit", |status| status.connected == 2).await;
    }
    let before = two.now().frames;
    two.sees("pictures of the unit", |status| status.frames >= before + 10).await;
    switch.send(json!({"type": "mode", "mode": "mesh"})).await;
    two.sees("no connection with the unit", |status| status.connected < 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_broadcast_only_its_sender_is_forwarded() {
    let place = Place::new().await;
    let mut switch = place.switch("sfu").await;
    let _one = place.bot(&[]).await;
    let mut two = place.bot(&[]).await;
    two.sees("pictures", |status| status.frames >= 10).await;
    switch.send(json!({"type": "mode", "mode": "broadcast"})).await;
    // The switch is the sender. It received the tracks of both bots, and receives nothing from now on.
    let mut most = 0;
    loop {
        let message = switch.receive().await;
        if message["type"] == "tracks" {
            let tracks = message["tracks"].as_array().unwrap();
            for video in tracks.iter().filter(|track| track["kind"] == "video") {
                assert_eq!(video["layers"], json!(["high", "medium", "low"]));
            }
            let tracks = tracks.len();
            most = most.max(tracks);
            if most > 0 && tracks == 0 {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_layer_falls_when_the_path_of_a_viewer_becomes_slow_and_rises_again() {
    let place = Place::new().await;
    let _switch = place.switch("sfu").await;
    let _sender = place.bot(&[]).await;
    let path = SlowPath::open(place.relay.udp).await;
    let url = format!("turn:{}?transport=udp", path.address);
    let mut viewer = place.bot(&["--turn-url", &url]).await;
    viewer.sees("the highest layer", |status| status.layers.last().is_some_and(|layer| layer == "high")).await;
    path.set_rate(250_000);
    viewer.sees("a lower layer", |status| status.layers.last().is_some_and(|layer| layer != "high")).await;
    path.set_rate(u64::MAX);
    viewer.sees("the highest layer again", |status| status.layers.last().is_some_and(|layer| layer == "high")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_does_not_exist_is_said_to_the_bot() {
    let place = Place::new().await;
    let url = format!("http://{}/room/AAAAAAAAAAAAAAAAAAAAAA", place.server.address);
    let Some(Command::Bot(options)) = Arguments::parse_from(["rooms", "bot", &url]).command else { panic!("no bot") };
    let error = Bot::join(options).await.err().unwrap();
    assert!(error.to_string().contains("There is no such room"), "{error}");
}
