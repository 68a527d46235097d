//! Relays, a server and a browser.

use std::process::Command;

use serde_json::{Value, json};
use turnserver::clock::Clock;

use crate::participant::Participant;
use crate::relay::Relay;
use crate::support::{Process, TIMEOUT};
use crate::webdriver::Browser;

const ROOMS: &str = env!("CARGO_BIN_EXE_rooms");

/// One or several relays with the same secret, the server of the rooms, and a browser with a window per participant.
/// Dropping it ends them and prints how long the test took.
pub(crate) struct Place {
    pub(crate) browser: Browser,
    pub(crate) url: String,
    pub(crate) relays: Vec<Relay>,
    server: Process,
    started: Clock,
}

impl Place {
    /// A place with one relay.
    pub(crate) fn new() -> Self {
        Self::with(1, &[])
    }

    /// A place with a number of relays, and options of the server.
    pub(crate) fn with(relays: usize, options: &[&str]) -> Self {
        let started = Clock::start();
        let relays: Vec<Relay> = (0..relays).map(|_| Relay::start()).collect();
        let mut command = Command::new(ROOMS);
        command.args(["--listen", "127.0.0.1:0"]).args(options).arg("--config").arg(relays[0].config());
        for url in relays.iter().flat_map(Relay::urls) {
            command.args(["--turn-url", url]);
        }
        let server = Process::start(&mut command, None);
        let url = server.stderr.wait_for(TIMEOUT, |lines| {
            lines.iter().find_map(|line| Some(line.split_once("open ")?.1.trim_end_matches('/').to_owned()))
        });
        let url = url.unwrap_or_else(|| panic!("the server does not start; its output:\n{}", server.output()));
        let browser = Browser::start();
        browser.navigate(&url);
        Self { browser, url, relays, server, started }
    }

    /// Makes a room and returns its id.
    pub(crate) fn room(&self) -> String {
        // Only windows with a page of the server may ask for rooms.
        self.new_window();
        self.browser.navigate(&self.url);
        let room = self.browser.execute_async(
            "const [done] = arguments;
             fetch('/api/rooms', { method: 'POST' }).then((response) => response.json()).then(({ room }) => done(room));",
            &[],
        );
        room.as_str().expect("a room has an id").to_owned()
    }

    /// Opens a page in which someone enters a room.
    pub(crate) fn enter(&self, room: &str, name: &str, transport: &str) -> Participant<'_> {
        let participant = self.open(room, name, transport);
        participant.wait("to have joined", "state.joined");
        participant
    }

    /// Opens a page in which someone tries to enter a room.
    pub(crate) fn open(&self, room: &str, name: &str, transport: &str) -> Participant<'_> {
        let query = format!("relay=only&capture=synthetic&join=1&name={name}&transport={transport}");
        Participant::open(self, &format!("{}/room/{room}?{query}", self.url))
    }

    /// Lets two participants enter a new room.
    pub(crate) fn pair(&self, transport: &str) -> [Participant<'_>; 2] {
        let room = self.room();
        ["Ann", "Ben"].map(|name| self.enter(&room, name, transport))
    }

    /// Starts a bot that enters a room.
    pub(crate) fn bot(&self, room: &str) -> Process {
        Process::start(Command::new(ROOMS).args(["bot", &format!("{}/room/{room}", self.url)]), None)
    }

    /// Opens a window, to which commands go from now on, and returns its handle.
    pub(crate) fn new_window(&self) -> Value {
        let window = self.browser.in_session("POST", "/window/new", &json!({ "type": "window" }))["handle"].take();
        self.switch_to(&window);
        window
    }

    /// Sends further commands to a window.
    pub(crate) fn switch_to(&self, window: &Value) {
        self.browser.in_session("POST", "/window", &json!({ "handle": window }));
    }

    /// Returns what relays and server have logged, for messages.
    pub(crate) fn output(&self) -> String {
        let relays: Vec<String> = self.relays.iter().map(Relay::output).collect();
        format!("server:\n{}\nrelays:\n{}", self.server.output(), relays.join("\n"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        print!("{:.1} s: ", self.started.elapsed().as_secs_f64());
    }
}
