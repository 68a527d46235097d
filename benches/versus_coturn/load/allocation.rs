//! A client's requests: creating, refreshing and deleting an allocation.

use std::net::SocketAddr;

use turnserver::auth::Secret;
use turnserver::client::{Algorithms, Allocate, Credentials, Request, write_message};
use turnserver::stun::attribute::{ErrorCodeAttribute, XorRelayedAddress};
use turnserver::stun::{Class, Message, MessageWriter, TransactionId};

pub(crate) use turnserver::client::Session;

use super::link::Link;
use super::{Outcome, PASSWORD, USER, clock};

/// The channel of each flow's peer.
pub(crate) const CHANNEL: u16 = 0x4000;

/// Maximum number of transmissions of a request over UDP.
const ATTEMPTS: usize = 10;

/// The longest request in bytes.
const LONGEST: usize = 512;

/// Reads a 401.
pub(crate) fn session_from(challenge: &[u8]) -> Outcome<Session> {
    let credentials = Credentials { username: USER.to_owned(), password: Secret::new(PASSWORD)? };
    Ok(Session::from_challenge(&Message::parse(challenge)?, credentials, Algorithms::Rfc5389)?)
}

/// Writes a request, with credentials if there is a session.
pub(crate) fn write(request: &Request, transaction: TransactionId, session: Option<&Session>) -> Outcome<Vec<u8>> {
    let fill = |writer: &mut MessageWriter<'_>| {
        request.encode(writer);
        if let Some(session) = session {
            session.sign(writer);
        }
    };
    Ok(write_message(Class::Request, request.method(), transaction, LONGEST, fill)?)
}

/// Returns the code of an error response. `None` for a success response.
pub(crate) fn error_of(response: &[u8]) -> Outcome<Option<u16>> {
    let message = Message::parse(response)?;
    Ok(match message.class() {
        Class::Success => None,
        _ => Some(message.get::<ErrorCodeAttribute<'_>>()?.map_or(0, |error| error.code.code())),
    })
}

/// The request for an allocation.
pub(crate) fn allocation() -> Request {
    Request::Allocate(Allocate::default())
}

/// The request that binds [`CHANNEL`] to `peer`.
pub(crate) fn channel(peer: SocketAddr) -> Request {
    Request::ChannelBind { channel: CHANNEL, peer }
}

/// Returns a transaction ID that is unique in this process.
pub(crate) fn transaction() -> TransactionId {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut id = [0; 12];
    if let Some(place) = id.first_chunk_mut() {
        *place = (clock::now() ^ NEXT.fetch_add(1 << 40, Ordering::Relaxed)).to_be_bytes();
    }
    TransactionId::new(id)
}

/// Creates an allocation.
pub(crate) fn allocate(link: &mut Link) -> Outcome<Session> {
    Ok(allocate_relayed(link)?.0)
}

/// Creates an allocation, and returns its relayed transport address.
pub(crate) fn allocate_relayed(link: &mut Link) -> Outcome<(Session, SocketAddr)> {
    let challenge = exchange(link, &allocation(), None)?;
    if error_of(&challenge)? != Some(401) {
        return Err("an Allocate request without credentials was not challenged".into());
    }
    let session = session_from(&challenge)?;
    let response = expect_success(link, &allocation(), &session)?;
    let relayed =
        Message::parse(&response)?.get::<XorRelayedAddress>()?.ok_or("the response has no relayed address")?;
    Ok((session, relayed.0))
}

/// Binds [`CHANNEL`] to `peer`, which also installs a permission.
pub(crate) fn bind_channel(link: &mut Link, session: &Session, peer: SocketAddr) -> Outcome<()> {
    expect_success(link, &channel(peer), session).map(drop)
}

/// Installs a permission for the peer.
pub(crate) fn permit(link: &mut Link, session: &Session, peer: SocketAddr) -> Outcome<()> {
    expect_success(link, &Request::CreatePermission(vec![peer]), session).map(drop)
}

fn expect_success(link: &mut Link, request: &Request, session: &Session) -> Outcome<Vec<u8>> {
    let response = exchange(link, request, Some(session))?;
    match error_of(&response)? {
        None => Ok(response),
        Some(code) => Err(format!("the server rejected {} with {code}", request.method()).into()),
    }
}

/// Sends a request and waits for its response. Retransmits over UDP.
pub(crate) fn exchange(link: &mut Link, request: &Request, session: Option<&Session>) -> Outcome<Vec<u8>> {
    let transaction = transaction();
    let message = write(request, transaction, session)?;
    for _ in 0..if link.is_lossy() { ATTEMPTS } else { 1 } {
        link.send(&message)?;
        while let Some(response) = link.receive()? {
            if Message::parse(&response).is_ok_and(|response| response.transaction_id() == transaction) {
                return Ok(response);
            }
        }
    }
    Err(format!("{} got no response", request.method()).into())
}
