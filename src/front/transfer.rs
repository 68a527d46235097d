//! Moves data between a visitor and the web site until both have finished.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{Interest, Ready};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use super::statistics::{Direction, End, Statistics};
use crate::net::limits::SpareFiles;
use crate::net::splice::{Buffer, Carrier, Pipe};

/// The number of bytes after which other connections have their turn.
const SHARE: usize = 1 << 20;

/// The most pipes of the thread. Further directions have buffers, so that visitors who read slowly hold up no others.
pub(crate) const PIPES: usize = 256;

/// The longest time without data once one side has finished. Most of these connections are never closed by the other
/// side.
const HALF_CLOSED: Duration = Duration::from_secs(60);

/// A stream socket.
pub(super) trait Socket: AsFd + Sized {
    async fn until_ready(&self, interest: Interest) -> io::Result<Ready>;
    fn attempt<R>(&self, interest: Interest, call: impl FnOnce() -> io::Result<R>) -> io::Result<R>;

    /// Says to the other end that no more data comes.
    fn finish(&self) -> io::Result<()> {
        SockRef::from(self).shutdown(std::net::Shutdown::Write)
    }
}

macro_rules! socket {
    ($($stream:ty),+) => {$(
        impl Socket for $stream {
            async fn until_ready(&self, interest: Interest) -> io::Result<Ready> {
                self.ready(interest).await
            }

            fn attempt<R>(&self, interest: Interest, call: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
                self.try_io(interest, call)
            }
        }
    )+};
}

socket!(TcpStream, UnixStream);

/// The pipes of a thread. A direction has one only while it has data, so that connections that wait need none.
#[derive(Debug)]
pub(super) struct Pipes {
    empty: RefCell<Vec<Pipe>>,
    /// The number of pipes, in use or not.
    count: Cell<usize>,
    spare: SpareFiles,
}

impl Pipes {
    pub(super) fn new(spare: SpareFiles) -> Self {
        Self { empty: RefCell::default(), count: Cell::default(), spare }
    }

    /// Returns an empty pipe, or a buffer if there is none.
    fn take(&self) -> Borrowed<'_> {
        let pipe = self.empty.borrow_mut().pop().or_else(|| {
            let new = if self.count.get() < PIPES { Pipe::new().ok() } else { None };
            let permitted = new.filter(|pipe| self.spare.permit(pipe));
            self.count.update(|count| count + usize::from(permitted.is_some()));
            permitted
        });
        Borrowed { pipes: self, carrier: pipe.map_or_else(|| Carrier::Buffer(Buffer::default()), Carrier::Pipe) }
    }
}

/// A pipe or a buffer in use. Dropping it returns the pipe, if that is empty.
struct Borrowed<'a> {
    pipes: &'a Pipes,
    carrier: Carrier,
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        let is_empty = self.carrier.is_empty();
        if let Carrier::Pipe(pipe) = std::mem::replace(&mut self.carrier, Carrier::none()) {
            if is_empty {
                self.pipes.empty.borrow_mut().push(pipe);
            } else {
                self.pipes.count.update(|count| count - 1);
            }
        }
    }
}

/// The side of a connection that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    Source,
    Sink,
}

/// What the two directions share.
struct Transfer<'a> {
    pipes: &'a Pipes,
    statistics: &'a Statistics,
    last_data: Cell<Instant>,
    /// The longest time without data.
    idle: Cell<Duration>,
    /// The directions with data that the sink has not taken yet.
    blocked: Cell<u8>,
}

/// Both sides of a connection. Dropping it resets them unless `is_complete`: what was cut off must not look complete.
struct Cut<'a, V: Socket, S: Socket> {
    visitor: &'a V,
    site: &'a S,
    is_complete: bool,
}

impl<V: Socket, S: Socket> Drop for Cut<'_, V, S> {
    fn drop(&mut self) {
        if !self.is_complete {
            // The sockets are closed next.
            let _ = SockRef::from(self.visitor).set_linger(Some(Duration::ZERO));
            let _ = SockRef::from(self.site).set_linger(Some(Duration::ZERO));
        }
    }
}

/// Moves data in both directions. Returns when both sides have finished, one has failed, or no data came for `idle`.
pub(super) async fn run(
    (visitor, site): (&impl Socket, &impl Socket),
    idle: Duration,
    pipes: &Pipes,
    statistics: &Statistics,
) -> End {
    let (last_data, idle, blocked) = (Cell::new(Instant::now()), Cell::new(idle), Cell::default());
    let transfer = Transfer { pipes, statistics, last_data, idle, blocked };
    // It is also dropped when the connection is evicted, or the server stops.
    let mut cut = Cut { visitor, site, is_complete: false };
    let to_web_site = transfer.one(visitor, site, Direction::ToWebSite);
    let to_visitor = transfer.one(site, visitor, Direction::ToVisitor);
    let end = tokio::select! {
        end = transfer.both(to_web_site, to_visitor) => end,
        () = transfer.idle() => if transfer.blocked.get() == 0 { Ok(End::Idle) } else { Err(End::Idle) },
    };
    cut.is_complete = end.is_ok();
    end.unwrap_or_else(|end| end)
}

impl Transfer<'_> {
    /// Moves data in both directions. If a side takes no more data, what it has sent still arrives. The error is how the
    /// connection ends if a side has broken off what it sends.
    async fn both(
        &self,
        to_web_site: impl Future<Output = Result<(), Failed>>,
        to_visitor: impl Future<Output = Result<(), Failed>>,
    ) -> Result<End, End> {
        tokio::pin!(to_web_site, to_visitor);
        let (mut up, mut down, mut end) = (false, false, End::Complete);
        while !(up && down) {
            // The side that sends and the side that takes.
            let (moved, source, sink) = tokio::select! {
                moved = &mut to_web_site, if !up => {
                    up = true;
                    (moved, End::ByVisitor, End::ByWebSite)
                }
                moved = &mut to_visitor, if !down => {
                    down = true;
                    (moved, End::ByWebSite, End::ByVisitor)
                }
            };
            match moved {
                Ok(()) => {}
                Err(Failed::Source) => return Err(source),
                Err(Failed::Sink) => end = sink,
            }
            self.idle.set(self.idle.get().min(HALF_CLOSED));
        }
        Ok(end)
    }

    /// Moves data in one direction until the source has finished, and says so to the sink.
    async fn one(&self, source: &impl Socket, sink: &impl Socket, direction: Direction) -> Result<(), Failed> {
        let mut since_yield = 0;
        loop {
            source.until_ready(Interest::READABLE).await.map_err(|_| Failed::Source)?;
            let mut borrowed = self.pipes.take();
            let carrier = &mut borrowed.carrier;
            loop {
                let taken = match source.attempt(Interest::READABLE, || carrier.fill(source)) {
                    Ok(0) => return sink.finish().map_err(|_| Failed::Sink),
                    Ok(taken) => taken,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => return Err(Failed::Source),
                };
                self.last_data.set(Instant::now());
                self.blocked.update(|directions| directions + 1);
                let emptied = self.empty(carrier, sink, direction).await;
                self.blocked.update(|directions| directions - 1);
                emptied?;
                since_yield += taken;
                if since_yield >= SHARE {
                    since_yield = 0;
                    yield_now().await;
                }
            }
        }
    }

    /// Gives all data in a carrier to the sink.
    async fn empty(&self, carrier: &mut Carrier, sink: &impl Socket, direction: Direction) -> Result<(), Failed> {
        while !carrier.is_empty() {
            match sink.attempt(Interest::WRITABLE, || carrier.drain(sink)) {
                Ok(given) => {
                    self.statistics.count_bytes(direction, given);
                    self.last_data.set(Instant::now());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    sink.until_ready(Interest::WRITABLE).await.map_err(|_| Failed::Sink)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Failed::Sink),
            }
        }
        Ok(())
    }

    /// Waits until no data has come for the idle time.
    async fn idle(&self) {
        loop {
            let end = self.last_data.get() + self.idle.get();
            let now = Instant::now();
            if now >= end {
                return;
            }
            // The time may become shorter while this waits.
            sleep_until(end.min(now + HALF_CLOSED)).await;
        }
    }
}
