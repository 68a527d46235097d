//! Relays, a server and a browser.

use std::process::Command;

use turnserver::clock::Clock;

use crate::driver::Driver;
use crate::participant::Participant;
use crate::relay::Relay;
use crate::support::{Process, TIMEOUT};
use crate::webdriver::Browser;

const ROOMS: &str = env!("CARGO_BIN_EXE_rooms");

/// One or several relays with the same secret, and the server of the rooms. Dropping it ends them and prints how long the
/// test took.
pub(crate) struct Servers {
    pub(crate) url: String,
    pub(crate) relays: Vec<Relay>,
    server: Process,
    started: Clock,
}

impl Servers {
    /// Starts the server at an address and with options.
    pub(crate) fn start(relays: Vec<Relay>, listen: &str, options: &[&str]) -> Self {
        let mut command = Command::new(ROOMS);
        command.args(options).arg("--config").arg(relays[0].config());
        for url in relays.iter().flat_map(Relay::urls) {
            command.args(["--turn-url", url]);
        }
        Self::start_by(command, relays, listen)
    }

    /// Starts the server at an address, without relays: the options name where credentials come from.
    pub(crate) fn without_relays(listen: &str, options: &[String]) -> Self {
        let mut command = Command::new(ROOMS);
        command.args(options);
        Self::start_by(command, Vec::new(), listen)
    }

    fn start_by(mut command: Command, relays: Vec<Relay>, listen: &str) -> Self {
        let started = Clock::start();
        command.args(["--listen", listen]);
        let server = Process::start(&mut command, None);
        let url = server.stderr.wait_for(TIMEOUT, |lines| {
            lines.iter().find_map(|line| Some(line.split_once("open ")?.1.trim_end_matches('/').to_owned()))
        });
        let url = url.unwrap_or_else(|| panic!("the server does not start; its output:\n{}", server.output()));
        Self { url, relays, server, started }
    }

    /// Makes a room and returns its id.
    pub(crate) fn room(&self, driver: &dyn Driver) -> String {
        // Only windows with a page of the server may ask for rooms.
        let window = driver.open("");
        driver.navigate(&window, &self.url);
        let room = driver.execute_async(
            &window,
            "const [done] = arguments;
             fetch('/api/rooms', { method: 'POST' }).then((response) => response.json()).then(({ room }) => done(room));",
            &[],
        );
        room.as_str().expect("a room has an id").to_owned()
    }

    /// Opens a page in which someone tries to enter a room, with a test picture and a tone unless the query, which the
    /// page also has, names another capture.
    pub(crate) fn open<'p>(&'p self, driver: &'p dyn Driver, room: &str, name: &str, query: &str) -> Participant<'p> {
        // The page takes the first one of each parameter.
        let query = format!("{query}&capture=synthetic&join=1&name={name}");
        Participant::open(self, driver, &format!("{}/room/{room}?{query}", self.url))
    }

    /// Opens a page in which someone enters a room.
    pub(crate) fn enter<'p>(&'p self, driver: &'p dyn Driver, room: &str, name: &str, query: &str) -> Participant<'p> {
        let participant = self.open(driver, room, name, query);
        participant.wait("to have joined", "state.joined");
        participant
    }

    /// Lets two participants enter a new room, each in its browser, with the same query.
    pub(crate) fn pair<'p>(&'p self, drivers: [&'p dyn Driver; 2], query: &str) -> [Participant<'p>; 2] {
        let room = self.room(drivers[0]);
        let [first, second] = drivers;
        [self.enter(first, &room, "Ann", query), self.enter(second, &room, "Ben", query)]
    }

    /// Starts a bot that enters a room.
    pub(crate) fn bot(&self, room: &str, options: &[&str]) -> Process {
        Process::start(Command::new(ROOMS).args(["bot", &format!("{}/room/{room}", self.url)]).args(options), None)
    }

    /// Ends the server. The relays go on.
    pub(crate) fn end_server(&self) {
        self.server.terminate();
        assert!(self.server.stderr.wait_for_end(TIMEOUT), "the server does not end");
    }

    /// Returns what relays and server have logged, for messages.
    pub(crate) fn output(&self) -> String {
        let relays: Vec<String> = self.relays.iter().map(Relay::output).collect();
        format!("server:\n{}\nrelays:\n{}", self.server.output(), relays.join("\n"))
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        print!("{:.1} s: ", self.started.elapsed().as_secs_f64());
    }
}

/// Servers on loopback addresses, and a Chromium with a window per participant.
pub(crate) struct Place {
    pub(crate) browser: Browser,
    pub(crate) servers: Servers,
}

impl Place {
    /// A place with one relay.
    pub(crate) fn new() -> Self {
        Self::with(1, &[])
    }

    /// A place with a number of relays, and options of the server.
    pub(crate) fn with(relays: usize, options: &[&str]) -> Self {
        let relays = (0..relays).map(|_| Relay::start()).collect();
        let servers = Servers::start(relays, "127.0.0.1:0", options);
        Self { browser: Browser::start(), servers }
    }

    /// A place with one relay, and a browser with cameras, microphones and speakers.
    pub(crate) fn with_devices() -> Self {
        let servers = Servers::start(vec![Relay::start()], "127.0.0.1:0", &[]);
        Self { browser: Browser::with_devices(), servers }
    }

    /// Makes a room and returns its id.
    pub(crate) fn room(&self) -> String {
        self.servers.room(&self.browser)
    }

    /// Opens a page in which someone enters a room.
    pub(crate) fn enter(&self, room: &str, name: &str, transport: &str) -> Participant<'_> {
        self.servers.enter(&self.browser, room, name, &only(transport))
    }

    /// Opens a page in which someone tries to enter a room.
    pub(crate) fn open(&self, room: &str, name: &str, transport: &str) -> Participant<'_> {
        self.servers.open(&self.browser, room, name, &only(transport))
    }

    /// Lets participants enter a room that have no page and open no connection.
    pub(crate) fn enter_silently(&self, room: &str, count: usize) {
        let window = self.browser.open("");
        Driver::navigate(&self.browser, &window, &self.servers.url);
        let entered = Driver::execute_async(
            &self.browser,
            &window,
            "const [room, count, done] = arguments;
             window.sockets = Array.from({ length: count }, () => new WebSocket(`ws://${location.host}/ws`));
             let joined = 0;
             for (const socket of sockets) {
               socket.onopen = () => socket.send(JSON.stringify({ type: 'join', room, name: 'Silent', kind: 'browser' }));
               socket.onmessage = ({ data }) => {
                 if (JSON.parse(data).type === 'joined' && (joined += 1) === count) done(joined);
               };
             }",
            &[room.into(), count.into()],
        );
        assert_eq!(entered, count);
    }

    /// Lets two participants enter a new room.
    pub(crate) fn pair(&self, transport: &str) -> [Participant<'_>; 2] {
        self.servers.pair([&self.browser; 2], &only(transport))
    }
}

/// Returns the parameters of a page that uses nothing but the relay, over a transport.
pub(crate) fn only(transport: &str) -> String {
    format!("relay=only&transport={transport}")
}
