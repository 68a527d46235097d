//! The start of a connection: the header of a proxy, and the first byte, which distinguishes TLS from TURN.

use std::cell::RefCell;
use std::rc::Weak;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::sleep;

use super::handshake::Done;
use super::{Admitted, CloseReason, handshake, proxy_header, stream};
use crate::net::tls::{self, Usage};
use crate::proxy_protocol;
use crate::transport::Transport;
use crate::turn::Deadline;
use crate::worker::Worker;

/// Serves a client that has just connected. `plain`: the listener also serves clients without TLS.
pub(in crate::worker) async fn serve(
    worker: Weak<RefCell<Worker>>,
    admitted: Admitted,
    stream: TcpStream,
    plain: bool,
) {
    let Some((began, timeouts)) = worker.upgrade().map(|worker| {
        let worker = worker.borrow();
        (worker.shell.now().monotonic, worker.shell.snapshot.timeouts)
    }) else {
        return;
    };
    let limit = if plain { timeouts.first_request } else { timeouts.tls_handshake };
    // A connection keeps the memory of its present part alone.
    let started = Box::pin(start(&worker, admitted, &stream, plain, Deadline::after(began, limit))).await;
    let Some((mut admitted, first)) = started else { return };
    let Some(this) = worker.upgrade() else { return };
    let now = this.borrow().shell.now().monotonic;
    let acceptor = this.borrow().shell.snapshot.tls.clone();
    let is_tls = first == tls::HANDSHAKE_RECORD;
    match (acceptor, plain) {
        (Some(acceptor), plain) if is_tls || !plain => {
            if !is_tls && first <= LAST_STUN {
                this.borrow_mut().shell.events.plain_on_tls(now, admitted.tuple);
            }
            this.borrow_mut().set_transport(&mut admitted, Transport::Tls);
            let left = timeouts.tls_handshake.saturating_sub(now.since(began));
            drop(this);
            // As above: the memory of a handshake is large.
            let done = Box::pin(handshake::complete(Weak::clone(&worker), admitted, stream, acceptor, left)).await;
            if let Some(Done { admitted, stream, usage, at }) = done {
                Box::pin(stream::serve(worker, admitted, stream, usage, at)).await;
            }
        }
        // A reload has removed the certificate together with the listener, just after the client connected.
        (_, false) => this.borrow_mut().connection_ended(&admitted.tuple, CloseReason::Incompatible),
        (None | Some(_), true) => {
            if is_tls {
                this.borrow_mut().shell.events.tls_without_certificate(now, admitted.tuple);
            }
            this.borrow_mut().set_transport(&mut admitted, Transport::Tcp);
            drop(this);
            Box::pin(stream::serve(worker, admitted, stream, Usage::Turn, began)).await;
        }
    }
}

/// Reads the header if the connection is from a proxy, and returns the first byte after it, which remains in the socket.
/// `None` if the connection has ended.
async fn start(
    worker: &Weak<RefCell<Worker>>,
    admitted: Admitted,
    stream: &TcpStream,
    plain: bool,
    until: Deadline,
) -> Option<(Admitted, u8)> {
    let admitted = if admitted.wait.is_some() { identify(worker, admitted, stream, until).await? } else { admitted };
    let evicted = admitted.place.evicted();
    let first = async {
        match first_byte(stream).await {
            // A header begins like neither TLS nor STUN, and no client sends ChannelData first.
            Ok(first) if proxy_protocol::FIRST_BYTES.contains(&first) => Err(unexpected(stream, plain).await),
            first => first,
        }
    };
    let late = if plain { CloseReason::Idle } else { CloseReason::HandshakeTimeout };
    let first = tokio::select! {
        first = first => first,
        () = sleep(left(worker, until)) => Err(late),
        () = evicted.notified() => Err(CloseReason::Evicted),
    };
    match first {
        Ok(first) => Some((admitted, first)),
        Err(close) => {
            let this = worker.upgrade()?;
            let mut this = this.borrow_mut();
            if close == CloseReason::ProxyHeaderUnexpected {
                let now = this.shell.now().monotonic;
                this.shell.events.proxy_not_listed(now, admitted.tuple);
            }
            this.connection_ended(&admitted.tuple, close);
            None
        }
    }
}

/// Returns the time until a deadline; zero if the worker has ended.
fn left(worker: &Weak<RefCell<Worker>>, until: Deadline) -> Duration {
    worker.upgrade().map_or(Duration::ZERO, |worker| until.left(worker.borrow().shell.now().monotonic))
}

/// Reads the header of a proxy, and gives the connection the addresses in it. `None` if the connection has ended.
async fn identify(
    worker: &Weak<RefCell<Worker>>,
    admitted: Admitted,
    stream: &TcpStream,
    until: Deadline,
) -> Option<Admitted> {
    let (proxy, evicted) = (admitted.tuple, admitted.place.evicted());
    let wait = admitted.wait.as_ref()?;
    let header = tokio::select! {
        header = wait.header(stream) => header,
        () = sleep(left(worker, until)) => Err(CloseReason::ProxyHeaderTimeout),
        () = evicted.notified() => Err(CloseReason::Evicted),
    };
    let this = worker.upgrade()?;
    let mut this = this.borrow_mut();
    let identified = match header {
        Ok(header) => this.identify(admitted, header.addresses),
        Err(close) => {
            // A proxy may open and close a connection to see whether the server lives.
            if !matches!(close, CloseReason::ByClient | CloseReason::Broken | CloseReason::Evicted) {
                let now = this.shell.now().monotonic;
                this.shell.events.proxy_header_failed(now, proxy, close.label());
            }
            Err(close)
        }
    };
    identified.inspect_err(|close| this.connection_ended(&proxy, *close)).ok()
}

/// Returns why a connection ends that begins like a PROXY header, although its source is not a proxy.
async fn unexpected(stream: &TcpStream, plain: bool) -> CloseReason {
    match proxy_header::read(stream).await {
        Err(CloseReason::ProxyHeaderMissing) if plain => CloseReason::Garbage,
        Err(CloseReason::ProxyHeaderMissing) => CloseReason::NotTls,
        Err(close @ (CloseReason::ByClient | CloseReason::Broken)) => close,
        _ => CloseReason::ProxyHeaderUnexpected,
    }
}

/// The largest first byte of a STUN message (RFC 7983 §7).
const LAST_STUN: u8 = 3;

/// Returns the first byte, which remains in the socket.
async fn first_byte(stream: &TcpStream) -> Result<u8, CloseReason> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(0) => Err(CloseReason::ByClient),
        Ok(_) => Ok(first[0]),
        Err(_) => Err(CloseReason::Broken),
    }
}
