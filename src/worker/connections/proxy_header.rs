//! The PROXY header at the start of a connection from a proxy.

use std::cell::RefCell;
use std::rc::Rc;

use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::CloseReason;
use crate::by_source::{BySource, Source};
use crate::proxy_protocol::{self, Header, Malformed, Parsed};

/// The maximum number of connections of a worker that wait for their header. A further one evicts the oldest of the proxy
/// with the most of them. Proxies send the header at once, so more wait only if something is wrong.
const MAX_WAITING: usize = 512;

/// The number of bytes that one step reads. Most headers are shorter.
const STEP: usize = 128;

/// The connections of a worker that wait for their header.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    next: u64,
    /// Each is notified when it is evicted.
    all: BySource<Rc<Notify>>,
}

/// A connection that waits for its header. Dropping it ends the wait.
#[derive(Debug)]
pub(super) struct Wait {
    waiting: Rc<RefCell<Waiting>>,
    number: u64,
    proxy: Source,
    evicted: Rc<Notify>,
}

impl Waiting {
    pub(super) fn begin(waiting: &Rc<RefCell<Self>>, proxy: Source) -> Wait {
        let mut this = waiting.borrow_mut();
        if this.all.len() >= MAX_WAITING
            && let Some((_, oldest)) = this.all.pop_fullest()
        {
            oldest.notify_one();
        }
        let (number, evicted) = (this.next, Rc::<Notify>::default());
        this.next += 1;
        this.all.insert(proxy, number, Rc::clone(&evicted));
        Wait { waiting: Rc::clone(waiting), number, proxy, evicted }
    }
}

impl Wait {
    /// Returns the header, and leaves what follows it in the socket.
    pub(super) async fn header(&self, stream: &TcpStream) -> Result<Header, CloseReason> {
        tokio::select! {
            header = read(stream) => header,
            () = self.evicted.notified() => Err(CloseReason::ProxyHeaderEvicted),
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.waiting.borrow_mut().all.remove(self.proxy, self.number);
    }
}

/// Reads a header, and nothing that follows it.
pub(super) async fn read(stream: &TcpStream) -> Result<Header, CloseReason> {
    let mut bytes = Vec::new();
    loop {
        let mut step = [0; STEP];
        let length = match stream.peek(&mut step).await {
            Ok(0) => return Err(CloseReason::ByClient),
            Ok(length) => length,
            Err(_) => return Err(CloseReason::Broken),
        };
        let before = bytes.len();
        bytes.extend(step.iter().take(length));
        match proxy_protocol::parse(&bytes) {
            Ok(Parsed::Header(header)) => {
                consume(stream, header.length.saturating_sub(before)).await?;
                return Ok(header);
            }
            // All these bytes belong to the header.
            Ok(Parsed::Incomplete { .. }) => consume(stream, length).await?,
            Ok(Parsed::NotAHeader) => return Err(CloseReason::ProxyHeaderMissing),
            Err(Malformed::TooLong) => return Err(CloseReason::ProxyHeaderTooLong),
            Err(_) => return Err(CloseReason::ProxyHeaderMalformed),
        }
    }
}

/// Reads bytes that have arrived, at most [`STEP`] of them.
async fn consume(stream: &TcpStream, count: usize) -> Result<(), CloseReason> {
    let (mut step, mut left) = ([0; STEP], count);
    while left > 0 {
        match stream.try_read(step.get_mut(..left).unwrap_or_default()) {
            Ok(0) => return Err(CloseReason::ByClient),
            Ok(read) => left = left.saturating_sub(read),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                stream.readable().await.map_err(|_| CloseReason::Broken)?;
            }
            Err(_) => return Err(CloseReason::Broken),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_evicted(wait: &Wait) -> bool {
        wait.waiting.borrow_mut().all.remove(wait.proxy, wait.number).is_none()
    }

    #[test]
    fn too_many_connections_that_wait_evict_the_oldest_of_the_proxy_with_the_most() {
        let waiting = Rc::default();
        let begin = |host| Waiting::begin(&waiting, Source::of([10, 0, 0, host].into()));
        let other = begin(1);
        let mut full: Vec<Wait> = (1..MAX_WAITING).map(|_| begin(2)).collect();
        let newest = begin(1);
        assert_eq!(waiting.borrow().all.len(), MAX_WAITING);
        assert!(is_evicted(&full[0]) && !is_evicted(&full[1]) && !is_evicted(&other) && !is_evicted(&newest));
        full.clear();
        drop((other, newest));
        assert_eq!(waiting.borrow().all.len(), 0);
    }
}
