//! A receiver of a webhook, which stores what it gets and misbehaves on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};
use turnserver::clock::Clock;

use crate::support::TIMEOUT;

/// What the receiver does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Mode {
    Accept,
    /// Closes the connection after each response, and does not say so in it.
    AcceptOne,
    /// Responds with a status line and header fields.
    Respond(&'static str),
    /// Responds after a while.
    Slow(Duration),
    /// Never responds.
    Hang,
    /// Closes the connection in the middle of the request.
    CutRequest,
    /// Responds with a status line and a body that does not end.
    Endless(&'static str),
    /// Takes at most this many events in a request, else responds with 413.
    AtMost(usize),
    /// Takes the request, and closes the connection in the middle of the response.
    CutResponse,
}

/// A request that arrived as a whole.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) head: String,
    pub(crate) body: String,
    /// Whether the receiver has kept it. It responds with an error to others.
    pub(crate) is_taken: bool,
    /// Since the receiver was created.
    pub(crate) at: Duration,
}

impl Got {
    pub(crate) fn header(&self, name: &str) -> &str {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value.trim())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

#[derive(Debug)]
struct State {
    mode: Mode,
    got: Vec<Got>,
    /// The connections that were accepted.
    connections: usize,
    /// Those of them that are not closed.
    open: usize,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    clock: Clock,
}

pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    /// Until it listens.
    socket: Option<Socket>,
    tls: Option<Arc<ServerConfig>>,
}

/// What arrived, without repeats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) started: u64,
    pub(crate) ended: u64,
    pub(crate) packets_to_peers: u64,
    pub(crate) bytes_to_peers: u64,
    pub(crate) packets_to_client: u64,
    pub(crate) bytes_to_client: u64,
}

const SUMS: [&str; 4] = ["packets_to_peers", "bytes_to_peers", "packets_to_client", "bytes_to_client"];

impl Receiver {
    /// Creates a receiver at a port that refuses connections.
    pub(crate) fn away(tls: Option<Arc<ServerConfig>>) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let state = Mutex::new(State { mode: Mode::Accept, got: Vec::new(), connections: 0, open: 0 });
        let shared = Arc::new(Shared { state, changed: Condvar::new(), clock: Clock::start() });
        Self { address, shared, socket: Some(socket), tls }
    }

    /// Creates a receiver that listens.
    pub(crate) fn start() -> Self {
        let mut receiver = Self::away(None);
        receiver.listen();
        receiver
    }

    pub(crate) fn listen(&mut self) {
        let socket = self.socket.take().expect("it does not listen yet");
        socket.listen(128).unwrap();
        let listener = TcpListener::from(socket);
        let (shared, tls) = (Arc::clone(&self.shared), self.tls.clone());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (shared, tls) = (Arc::clone(&shared), tls.clone());
                {
                    let mut state = shared.lock();
                    (state.connections, state.open) = (state.connections + 1, state.open + 1);
                }
                shared.changed.notify_all();
                thread::spawn(move || {
                    match tls {
                        None => shared.serve(stream),
                        Some(tls) => shared.serve(StreamOwned::new(ServerConnection::new(tls).unwrap(), stream)),
                    }
                    shared.lock().open -= 1;
                    shared.changed.notify_all();
                });
            }
        });
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/hook?token=url-token", self.address)
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.shared.lock().mode = mode;
        self.shared.changed.notify_all();
    }

    /// Waits until `find` returns a value for what arrived.
    pub(crate) fn wait_for<T>(&self, mut find: impl FnMut(&[Got]) -> Option<T>) -> T {
        self.wait_longer(TIMEOUT, &mut find)
    }

    pub(crate) fn wait_longer<T>(&self, limit: Duration, find: &mut dyn FnMut(&[Got]) -> Option<T>) -> T {
        let mut found = None;
        let waiting = |state: &mut State| {
            found = find(&state.got);
            found.is_none()
        };
        let (state, _) = self.shared.changed.wait_timeout_while(self.shared.lock(), limit, waiting).unwrap();
        let got = state.got.clone();
        drop(state);
        found.unwrap_or_else(|| panic!("it did not arrive; what did: {got:#?}"))
    }

    /// Waits for this many requests, and returns all.
    pub(crate) fn wait_for_requests(&self, count: usize) -> Vec<Got> {
        self.wait_for(|got| (got.len() >= count).then(|| got.to_vec()))
    }

    /// Waits for this many connections.
    pub(crate) fn wait_for_connections(&self, count: usize) {
        let few = |state: &mut State| state.connections < count;
        let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), TIMEOUT, few).unwrap();
        assert!(waited.0.connections >= count, "{waited:?}");
    }

    /// Waits until this many connections are open.
    pub(crate) fn wait_for_open(&self, count: usize) {
        let others = |state: &mut State| state.open != count;
        let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), TIMEOUT, others).unwrap();
        assert_eq!(waited.0.open, count, "{waited:?}");
    }

    pub(crate) fn got(&self) -> Vec<Got> {
        self.shared.lock().got.clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.shared.lock().connections
    }

    /// Waits until all of these have arrived, and nothing else.
    pub(crate) fn wait_for_totals(&self, expected: Totals) {
        let mut last = Totals::default();
        let mut find = |got: &[Got]| {
            last = totals(got);
            (last == expected).then_some(())
        };
        let mut found = None;
        let waiting = |state: &mut State| {
            found = find(&state.got);
            found.is_none()
        };
        drop(self.shared.changed.wait_timeout_while(self.shared.lock(), TIMEOUT, waiting).unwrap());
        assert_eq!(last, expected);
    }
}

/// Returns the events of the requests that were taken, with repeats.
pub(crate) fn events(got: &[Got]) -> Vec<Value> {
    got.iter().filter(|got| got.is_taken).flat_map(|got| got.json()["events"].as_array().unwrap().clone()).collect()
}

/// Returns the totals as docs/webhook.md computes them.
pub(crate) fn totals(got: &[Got]) -> Totals {
    let (mut started, mut ended) = (BTreeSet::new(), BTreeSet::new());
    let mut sums: BTreeMap<String, [u64; 4]> = BTreeMap::new();
    let mut lost: BTreeMap<String, [u64; 2]> = BTreeMap::new();
    for event in events(got) {
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let number = |key: &str| event[key].as_u64().unwrap_or_default();
        let session = format!("{} {}", text("boot"), text("session"));
        let key = match text("type").as_str() {
            "allocation.started" => {
                started.insert(session.clone());
                session
            }
            "allocation.ended" => {
                ended.insert(session.clone());
                session
            }
            "allocation.usage" => session,
            "events.lost" => {
                let counts = lost.entry(text("lost")).or_default();
                *counts = [counts[0].max(number("started")), counts[1].max(number("ended"))];
                text("lost")
            }
            _ => continue,
        };
        let of_key = sums.entry(key).or_default();
        for (sum, name) in of_key.iter_mut().zip(SUMS) {
            *sum = number(name).max(*sum);
        }
    }
    let sum = |index: usize| sums.values().map(|sums| sums[index]).sum();
    Totals {
        started: started.len() as u64 + lost.values().map(|counts| counts[0]).sum::<u64>(),
        ended: ended.len() as u64 + lost.values().map(|counts| counts[1]).sum::<u64>(),
        packets_to_peers: sum(0),
        bytes_to_peers: sum(1),
        packets_to_client: sum(2),
        bytes_to_client: sum(3),
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Serves the requests of a connection.
    fn serve(&self, mut stream: impl Read + Write) {
        while self.serve_one(&mut stream) {}
    }

    /// Serves a request. Returns whether another one can follow.
    fn serve_one(&self, mut stream: impl Read + Write) -> bool {
        let mut begin = vec![0; 64];
        let Ok(length @ 1..) = stream.read(&mut begin) else { return false };
        begin.truncate(length);
        let mode = self.lock().mode.clone();
        if matches!(mode, Mode::CutRequest) {
            return false;
        }
        let Ok((head, body)) = read_request(begin, &mut stream) else { return false };
        let response = match mode {
            Mode::Accept | Mode::AcceptOne | Mode::Slow(_) => "204 No Content\r\n",
            Mode::Respond(response) | Mode::Endless(response) => response,
            Mode::AtMost(most) if count(&body) > most => "413 Content Too Large\r\n",
            Mode::AtMost(_) => "204 No Content\r\n",
            Mode::Hang => {
                // Until the client gives up.
                let _ = stream.read(&mut [0; 64]);
                return false;
            }
            Mode::CutResponse => "200",
            Mode::CutRequest => return false,
        };
        if let Mode::Slow(time) = mode {
            let waited =
                self.changed.wait_timeout_while(self.lock(), time, |state| matches!(state.mode, Mode::Slow(_)));
            drop(waited.unwrap());
        }
        let is_taken = response.starts_with('2');
        self.lock().got.push(Got { head, body, is_taken, at: self.clock.elapsed() });
        self.changed.notify_all();
        let end = match mode {
            Mode::CutResponse => String::new(),
            Mode::Endless(_) => format!("Content-Length: 1000000\r\n\r\n{}", "x".repeat(20_000)),
            _ => "Content-Length: 0\r\n\r\n".to_owned(),
        };
        let _ = stream.write_all(format!("HTTP/1.1 {response}{end}").as_bytes());
        let _ = stream.flush();
        if matches!(mode, Mode::Endless(_)) {
            // Until the client closes the connection.
            let _ = stream.read(&mut [0; 64]);
        }
        !matches!(mode, Mode::Endless(_) | Mode::CutResponse | Mode::AcceptOne)
    }
}

/// Returns the number of events in the body of a request.
fn count(body: &str) -> usize {
    let body: Value = serde_json::from_str(body).unwrap();
    body["events"].as_array().unwrap().len()
}

/// Reads a request that begins with these bytes.
fn read_request(mut bytes: Vec<u8>, stream: &mut impl Read) -> io::Result<(String, String)> {
    let mut part = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().filter_map(|line| line.split_once(": "));
            let length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            let length: usize = length.map(|(_, value)| value.parse().unwrap()).next().unwrap_or_default();
            if body.len() >= length {
                return Ok((head.to_owned(), body.to_owned()));
            }
        }
        match stream.read(&mut part)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => bytes.extend_from_slice(&part[..count]),
        }
    }
}
