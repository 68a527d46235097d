//! The ports that the relay shares with a web site, on a thread of their own.
//!
//! The first bytes of a connection decide who serves it ([`rules`]). They stay in the socket, so whoever serves it reads
//! the connection from its beginning. Connections for TURN go to a worker, those for HTTP to the HTTP server, and all
//! others are connected to the web site, which sees what the visitor sends ([`transfer`]). They have limits of their own:
//! whatever visitors of the web site do, it takes nothing from the limits of the relay.

pub(crate) mod hello;
mod log;
pub(crate) mod rules;
mod site;
mod statistics;
mod transfer;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{self, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::by_source::{BySource, Source};
use crate::config::WebSite;
use crate::http::{
    AsyncListener, BACK_OFF, Changes, Closed, FailedListener, ListenerChange, Service, closing, follow, stopped,
};
use crate::net::limits::{SpareFiles, is_out_of_files, too_many_open_files};
use crate::net::tls::Challenges;
use crate::net::{background, tcp};
use crate::privacy::Privacy;
use crate::proxy_protocol::{self, Addresses, Header, Malformed, Parsed};
use log::Log;
use rules::{Decision, Destination};
use site::{Connected, Reachability};
use statistics::End;
use transfer::Pipes;

pub(crate) use rules::Rules;
pub(crate) use statistics::Statistics;
pub(crate) use transfer::PIPES;

/// What the thread of the fronts needs.
pub(crate) struct Plan {
    /// The first one opens the listeners.
    pub(crate) changes: Changes,
    pub(crate) settings: watch::Receiver<Arc<Settings>>,
    pub(crate) statistics: Arc<Statistics>,
    /// The files that visitors leave to the relay and to the operator.
    pub(crate) spare: SpareFiles,
    pub(crate) stop: watch::Receiver<bool>,
}

/// The configuration of all fronts. A reload replaces it as a whole.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) fronts: Vec<Arc<Front>>,
    /// The sources whose connections begin with a PROXY header.
    pub(crate) proxies: Vec<IpNet>,
    /// The challenges of an authority that are pending.
    pub(crate) challenges: Arc<Challenges>,
    /// The time for the bytes that decide where a connection belongs.
    pub(crate) first_bytes: Duration,
    pub(crate) privacy: Arc<Privacy>,
}

/// A front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Front {
    /// The address of its listener, with the actual port.
    pub(crate) address: SocketAddr,
    pub(crate) rules: Rules,
    pub(crate) site: WebSite,
    /// Whether the web site gets the addresses of its visitors in a PROXY header of version 2.
    pub(crate) proxy_protocol: bool,
    /// The most connections at the same time.
    pub(crate) connections: usize,
    /// The longest time without data between a visitor and the web site.
    pub(crate) idle: Duration,
}

/// Takes the connections that are not for the web site.
pub(crate) trait Handler: 'static {
    /// Gives a connection between these addresses to a worker. Returns when the worker has it.
    fn relay(&self, connection: net::TcpStream, addresses: Addresses) -> impl Future<Output = ()>;

    /// Gives a connection to the HTTP server.
    fn http(&self, connection: net::TcpStream, client: SocketAddr, is_encrypted: bool) -> impl Future<Output = ()>;
}

/// Starts the thread. `handler` is called on it.
///
/// # Errors
/// If the thread or its runtime cannot be created.
pub(crate) fn start<H: Handler>(
    plan: Plan,
    handler: impl FnOnce() -> H + Send + 'static,
) -> io::Result<thread::JoinHandle<()>> {
    // Calls come before downloads.
    background::start("front", move || serve(plan, handler()))
}

async fn serve<H: Handler>(plan: Plan, handler: H) {
    let Plan { changes, settings, statistics, spare, stop } = plan;
    let pipes = Pipes::new(spare.clone());
    let first = RefCell::new(vec![0; hello::MAX_HELLO].into());
    let (stopping, log, places) = (stop.clone(), Log::default(), RefCell::default());
    let shared = Shared { settings, statistics, spare, stop: stopping, pipes, first, log, places, handler };
    follow(changes, stop, JoinSet::new(), &Fronts(Rc::new(shared))).await;
}

/// What the tasks of all listeners share.
struct Shared<H> {
    settings: watch::Receiver<Arc<Settings>>,
    statistics: Arc<Statistics>,
    spare: SpareFiles,
    stop: watch::Receiver<bool>,
    pipes: Pipes,
    /// The first bytes of one connection at a time.
    first: RefCell<Box<[u8]>>,
    log: Log,
    /// Those of each address, also of fronts that are closed and whose connections continue.
    places: RefCell<HashMap<SocketAddr, Rc<Places>>>,
    handler: H,
}

impl<H> Shared<H> {
    fn places(&self, address: SocketAddr) -> Rc<Places> {
        Rc::clone(self.places.borrow_mut().entry(address).or_default())
    }
}

struct Fronts<H>(Rc<Shared<H>>);

impl<H: Handler> Service for Fronts<H> {
    fn begin(&self, _change: &ListenerChange) {}

    fn serve(
        &self,
        listener: AsyncListener,
        address: SocketAddr,
        close: oneshot::Receiver<Closed>,
    ) -> impl Future<Output = ()> + 'static {
        accept(listener, address, close, Rc::clone(&self.0))
    }

    fn log_failure(&self, FailedListener { address, error, .. }: &FailedListener) {
        tracing::error!(
            event = "front-failed", %address, %error,
            "cannot serve this front, so neither the web site nor the relay can be reached there; a reload or a restart \
             tries again"
        );
    }

    fn other_panicked(&self, _task: tokio::task::Id) {}
}

/// Accepts connections until the server stops, or until `close`.
async fn accept<H: Handler>(
    socket: AsyncListener,
    address: SocketAddr,
    close: oneshot::Receiver<Closed>,
    shared: Rc<Shared<H>>,
) {
    let Some(socket) = socket.into_tcp() else { return };
    // Visitors may come many at once. The listener works in any case.
    let _ = tcp::listen(&socket);
    let (mut tasks, places) = (JoinSet::new(), shared.places(address));
    let reachability = Rc::new(Reachability::default());
    let mut settings = shared.settings.clone();
    settings.mark_changed();
    let mut front = None;
    let begin = |tasks: &mut JoinSet<()>, front: &Arc<Front>, stream: TcpStream| {
        let Some(connection) = Connection::admit(&shared, &places, front, stream) else { return };
        let (shared, reachability) = (Rc::clone(&shared), Rc::clone(&reachability));
        tasks.spawn_local(async move { connection.serve(&shared, &reachability).await });
    };
    let (stopping, closing) = (stopped(shared.stop.clone()), closing(Some(close)));
    tokio::pin!(stopping, closing);
    let closed = loop {
        let accepted = tokio::select! {
            () = &mut stopping => break None,
            closed = &mut closing => break Some(closed),
            // A connection that has ended leaves nothing.
            Some(_) = tasks.join_next() => continue,
            Ok(()) = settings.changed() => None,
            accepted = socket.accept() => Some(accepted),
        };
        // A reload that removes the front leaves the connections that wait at it.
        if let Some(present) = settings.borrow_and_update().fronts.iter().find(|front| front.address == address) {
            front = Some(Arc::clone(present));
        }
        let (Some(accepted), Some(front)) = (accepted, &front) else { continue };
        match accepted.and_then(|(stream, _)| permitted(stream, &shared.spare)) {
            Ok(stream) => begin(&mut tasks, front, stream),
            Err(error) => {
                shared.statistics.count_accept_failed();
                shared.log.accept_failed(address, &error);
                sleep(BACK_OFF).await;
            }
        }
    };
    if let (Some(_), Some(front)) = (&closed, &front) {
        // The kernel would reset the connections that wait.
        let waiting = std::iter::from_fn(|| tcp::accept_now(&socket).and_then(TcpStream::from_std).ok());
        for stream in waiting.take(usize::try_from(tcp::BACKLOG).unwrap_or_default()) {
            permitted(stream, &shared.spare).into_iter().for_each(|stream| begin(&mut tasks, front, stream));
        }
    }
    drop(socket);
    drop(closed);
    // Connections to a listener that has been closed continue.
    tokio::select! {
        () = stopped(shared.stop.clone()) => {}
        () = async { while tasks.join_next().await.is_some() {} } => {}
    }
}

impl rules::Pending for Challenges {
    fn has_http(&self) -> bool {
        self.has_any_token()
    }

    fn has_token(&self, token: &str) -> bool {
        self.key_authorization(token).is_some()
    }

    fn has_name(&self, name: &str) -> bool {
        self.has_tls_alpn(name)
    }
}

/// Returns an accepted connection, unless it would use a spare file.
fn permitted(stream: TcpStream, spare: &SpareFiles) -> io::Result<TcpStream> {
    if spare.permit(&stream) { Ok(stream) } else { Err(too_many_open_files()) }
}

/// The connections of a front.
#[derive(Debug, Default)]
struct Places {
    open: RefCell<BySource<Rc<Notify>>>,
    next: Cell<u64>,
}

/// The place of a connection. Dropping it frees the place.
#[derive(Debug)]
struct Place {
    all: Rc<Places>,
    source: Cell<Source>,
    number: u64,
    evicted: Rc<Notify>,
}

impl Places {
    /// Makes a place. If there are `most` connections, the oldest of the source with the most of them is evicted.
    fn admit(this: &Rc<Self>, source: Source, most: usize) -> Place {
        let mut open = this.open.borrow_mut();
        while open.len() >= most.max(1) {
            let Some((_, evicted)) = open.pop_fullest() else { break };
            evicted.notify_one();
        }
        let (number, evicted) = (this.next.replace(this.next.get() + 1), Rc::<Notify>::default());
        open.insert(source, number, Rc::clone(&evicted));
        Place { all: Rc::clone(this), source: Cell::new(source), number, evicted }
    }
}

impl Place {
    /// Gives the place to another source: the client behind a proxy. An evicted connection has none.
    fn belongs_to(&self, source: Source) {
        let mut open = self.all.open.borrow_mut();
        if let Some(evicted) = open.remove(self.source.get(), self.number) {
            open.insert(source, self.number, evicted);
            self.source.set(source);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.open.borrow_mut().remove(self.source.get(), self.number);
    }
}

/// How a connection ends. Dropping it counts and logs that.
struct Ending {
    end: Cell<End>,
    client: Cell<SocketAddr>,
    statistics: Arc<Statistics>,
    privacy: Arc<Privacy>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let end = self.end.get();
        self.statistics.count_ended(end);
        tracing::debug!(
            event = "front-connection-ended",
            client = self.privacy.address(self.client.get()),
            reason = end.label(),
            "a connection to a front ended"
        );
    }
}

/// A connection to a front.
struct Connection {
    stream: TcpStream,
    addresses: Addresses,
    front: Arc<Front>,
    first_bytes: Duration,
    /// Whether it must begin with a PROXY header.
    is_proxy: bool,
    ending: Ending,
    place: Place,
}

impl Connection {
    /// Returns `None` if the client has gone already.
    fn admit<H>(shared: &Shared<H>, places: &Rc<Places>, front: &Arc<Front>, stream: TcpStream) -> Option<Self> {
        let (settings, front) = (Arc::clone(&shared.settings.borrow()), Arc::clone(front));
        let (Ok(client), Ok(server)) = (stream.peer_addr(), stream.local_addr()) else { return None };
        let addresses = Addresses { client, server }.canonical();
        let (client, first_bytes) = (addresses.client, settings.first_bytes);
        let is_proxy = settings.proxies.iter().any(|network| network.contains(&client.ip()));
        let place = Places::admit(places, Source::of(client.ip()), front.connections);
        shared.statistics.count_accepted();
        let (statistics, privacy) = (Arc::clone(&shared.statistics), Arc::clone(&settings.privacy));
        let ending = Ending { end: Cell::new(End::Stopped), client: Cell::new(client), statistics, privacy };
        Some(Self { stream, addresses, front, first_bytes, is_proxy, ending, place })
    }

    async fn serve<H: Handler>(self, shared: &Shared<H>, reachability: &Reachability) {
        // Both are dropped at the end.
        let Self { stream, addresses, front, first_bytes, is_proxy, ending, place } = self;
        let served = async {
            let first = &shared.first;
            let known = async {
                let addresses = identify(&stream, addresses, is_proxy, first).await?;
                place.belongs_to(Source::of(addresses.client.ip()));
                ending.client.set(addresses.client);
                if is_proxy {
                    refuse_second_header(&stream, first).await?;
                }
                Ok((addresses, destination(&stream, &front.rules, &shared.settings, first).await?))
            };
            let (addresses, destination) = match timeout(first_bytes, known).await.unwrap_or(Err(End::Late)) {
                Ok(known) => known,
                Err(end) => {
                    shared.log.header_failed(end, addresses, &ending.privacy);
                    return end;
                }
            };
            shared.statistics.count_decided(destination);
            if destination == Destination::Web {
                return serve_web(stream, addresses, &front, shared, reachability).await;
            }
            let Ok(stream) = stream.into_std() else { return End::ByVisitor };
            if destination == Destination::Relay {
                shared.handler.relay(stream, addresses).await;
                return End::ToRelay;
            }
            shared.handler.http(stream, addresses.client, destination == Destination::Http).await;
            End::ToHttp
        };
        let end = tokio::select! {
            end = served => end,
            () = place.evicted.notified() => End::Evicted,
        };
        ending.end.set(end);
    }
}

/// What some first bytes of a connection tell.
enum Step<T> {
    Done(T),
    /// At least this number of bytes is needed.
    Needs(usize),
}

/// Waits for as many first bytes of a connection as `decide` needs. They stay in the socket. `first` is the buffer.
async fn peek_until<T>(
    stream: &TcpStream,
    first: &RefCell<Box<[u8]>>,
    decide: impl Fn(&[u8]) -> Step<T>,
) -> Result<T, End> {
    let wait_for = |bytes| tcp::set_receive_low_water(stream, bytes).map_err(|_| End::ByVisitor);
    let mut needed = 1;
    loop {
        let ready = stream.ready(Interest::READABLE).await.map_err(|_| End::ByVisitor)?;
        let step = stream.try_io(Interest::READABLE, || {
            let mut first = first.borrow_mut();
            let length = tcp::peek(stream, &mut first)?;
            let first = first.get(..length).filter(|first| first.len() >= needed);
            // With fewer bytes than that, the socket waits for more.
            first.map(&decide).ok_or(io::ErrorKind::WouldBlock.into()).map(|step| match step {
                // Otherwise this would never wait, and hold up the thread.
                Step::Needs(more) => Step::Needs(more.max(length + 1)),
                done @ Step::Done(_) => done,
            })
        });
        match step {
            // Whoever serves the connection waits for each byte.
            Ok(Step::Done(done)) => return wait_for(1).map(|()| done),
            Ok(Step::Needs(more)) => {
                needed = more;
                // A client that sends single bytes does not wake this task before that.
                wait_for(more)?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !ready.is_read_closed() => {}
            Err(_) => return Err(End::ByVisitor),
        }
    }
}

/// Takes the PROXY header from a connection, which must have one if it comes from a proxy, and none otherwise. Returns
/// the addresses that count.
async fn identify(
    stream: &TcpStream,
    real: Addresses,
    is_proxy: bool,
    first: &RefCell<Box<[u8]>>,
) -> Result<Addresses, End> {
    match (header(stream, first).await?, is_proxy) {
        (Ok(None), false) => Ok(real),
        (Ok(None), true) => Err(End::ProxyHeaderMissing),
        (Ok(Some(_)) | Err(_), false) => Err(End::ProxyHeaderUnexpected),
        (Err(_), true) => Err(End::ProxyHeaderMalformed),
        (Ok(Some(header)), true) => {
            let taken = first.borrow_mut().get_mut(..header.length).map(|bytes| stream.try_read(bytes));
            // All of it is there.
            let is_taken = taken.is_some_and(|taken| taken.is_ok_and(|taken| taken == header.length));
            if is_taken { Ok(header.addresses.map_or(real, Addresses::canonical)) } else { Err(End::ByVisitor) }
        }
    }
}

/// Reads a PROXY header, which stays in the socket. `None` if the connection does not begin with one.
async fn header(stream: &TcpStream, first: &RefCell<Box<[u8]>>) -> Result<Result<Option<Header>, Malformed>, End> {
    let header = peek_until(stream, first, |first| match proxy_protocol::parse(first) {
        Ok(Parsed::Header(header)) => Step::Done(Ok(Some(header))),
        Ok(Parsed::NotAHeader) => Step::Done(Ok(None)),
        Ok(Parsed::Incomplete { at_least }) => Step::Needs(at_least),
        Err(malformed) => Step::Done(Err(malformed)),
    });
    header.await
}

/// Two proxies may both have sent one. The second would be data of the client.
async fn refuse_second_header(stream: &TcpStream, first: &RefCell<Box<[u8]>>) -> Result<(), End> {
    match header(stream, first).await? {
        Ok(None) => Ok(()),
        Ok(Some(_)) | Err(_) => Err(End::ProxyHeaderMalformed),
    }
}

/// Reads from the first bytes of a connection where it belongs.
async fn destination(
    stream: &TcpStream,
    rules: &Rules,
    settings: &watch::Receiver<Arc<Settings>>,
    first: &RefCell<Box<[u8]>>,
) -> Result<Destination, End> {
    let decision = peek_until(stream, first, |first| match rules.decide(first, &*settings.borrow().challenges) {
        Decision::To(destination) => Step::Done(Ok(destination)),
        Decision::Needs(bytes) => Step::Needs(bytes),
        Decision::TooLong => Step::Done(Err(End::TooLong)),
    });
    decision.await?
}

/// Connects a visitor to the web site.
async fn serve_web<H: Handler>(
    stream: TcpStream,
    addresses: Addresses,
    front: &Arc<Front>,
    shared: &Shared<H>,
    reachability: &Reachability,
) -> End {
    let connected = site::connect(&front.site, &shared.spare).await;
    // After a reload with another web site, only that one is of interest.
    let is_present = shared.settings.borrow().fronts.contains(front);
    let mut site = match connected.and_then(|site| site.unless_a_front(&shared.settings.borrow().fronts)) {
        Ok(site) => site,
        Err(error) => {
            let end = if is_out_of_files(&error) { End::OutOfFiles } else { End::Unreachable };
            if is_present {
                reachability.failed(front.address, &front.site, &error);
            }
            site::refuse(stream).await;
            return end;
        }
    };
    if is_present {
        reachability.reached(front.address, &front.site);
    }
    let _counted = shared.statistics.count_web_site();
    if front.proxy_protocol {
        let mut header = Vec::new();
        proxy_protocol::write(Some(addresses), &mut header);
        if site.send(&header).await.is_err() {
            return End::ByWebSite;
        }
    }
    // Both sides decide what they send at once. A visitor may stop to read for as long as the idle time.
    if stream.set_nodelay(true).and_then(|()| tcp::detect_lost_visitor(&stream)).is_err() {
        return End::ByVisitor;
    }
    match &site {
        Connected::Tcp(site) => transfer::run((&stream, site), front.idle, &shared.pipes, &shared.statistics).await,
        Connected::Unix(site) => transfer::run((&stream, site), front.idle, &shared.pipes, &shared.statistics).await,
    }
}
