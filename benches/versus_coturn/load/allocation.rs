//! A client's requests: creating, refreshing and deleting an allocation.

use std::net::SocketAddr;

use turnserver::auth::LongTermKey;
use turnserver::stun::attribute::{
    ChannelNumber, ErrorCodeAttribute, Lifetime, Nonce, Realm, RequestedTransport, Username, XorPeerAddress,
};
use turnserver::stun::{Class, Message, MessageWriter, Method, TransactionId};

use super::link::Link;
use super::{Outcome, PASSWORD, USER, clock};

/// The channel of each flow's peer.
pub(crate) const CHANNEL: u16 = 0x4000;

/// Maximum number of transmissions of a request over UDP.
const ATTEMPTS: usize = 10;

/// A client's credentials after a challenge (RFC 8489 §9.2).
#[derive(Clone)]
pub(crate) struct Session {
    realm: String,
    nonce: String,
    key: LongTermKey,
}

/// Writes a request's attributes before its credentials.
pub(crate) type Fill<'f> = &'f dyn Fn(&mut MessageWriter<'_>);

impl Session {
    /// Reads the 401 or 438 in `response`. Reuses the key of `known` if the realm is the same.
    pub(crate) fn from_challenge(response: &[u8], known: Option<&Self>) -> Outcome<Self> {
        let message = Message::parse(response)?;
        let Realm(realm) = message.get()?.ok_or("a challenge without a realm")?;
        let Nonce(nonce) = message.get()?.ok_or("a challenge without a nonce")?;
        let key = match known.filter(|known| known.realm == realm) {
            Some(known) => known.key.clone(),
            None => LongTermKey::derive(USER, realm, PASSWORD.as_bytes()),
        };
        Ok(Self { realm: realm.to_owned(), nonce: nonce.to_owned(), key })
    }
}

/// Writes a request, with credentials if there is a session.
pub(crate) fn request(
    method: Method,
    transaction: TransactionId,
    session: Option<&Session>,
    fill: Fill<'_>,
) -> Outcome<Vec<u8>> {
    let mut buffer = [0; 512];
    let mut writer = MessageWriter::new(&mut buffer, Class::Request, method, transaction);
    fill(&mut writer);
    if let Some(session) = session {
        writer.push(&Username(USER));
        writer.push(&Realm(&session.realm));
        writer.push(&Nonce(&session.nonce));
        writer.message_integrity(session.key.as_bytes());
    }
    Ok(writer.finish()?.to_vec())
}

/// Returns the code of an error response. `None` for a success response.
pub(crate) fn error_of(response: &[u8]) -> Outcome<Option<u16>> {
    let message = Message::parse(response)?;
    Ok(match message.class() {
        Class::Success => None,
        _ => Some(message.get::<ErrorCodeAttribute<'_>>()?.map_or(0, |error| error.code.code())),
    })
}

/// Writes the attributes of an Allocate request.
pub(crate) fn allocate_attributes(writer: &mut MessageWriter<'_>) {
    writer.push(&RequestedTransport::UDP);
}

/// Writes the attribute of a Refresh request that deletes an allocation (RFC 8656 §7).
pub(crate) fn deletion_attributes(writer: &mut MessageWriter<'_>) {
    writer.push(&Lifetime(0));
}

/// Writes the attributes that bind [`CHANNEL`] to `peer` (RFC 8656 §12.1).
pub(crate) fn channel_attributes(writer: &mut MessageWriter<'_>, peer: SocketAddr) {
    writer.push(&ChannelNumber(CHANNEL));
    writer.push(&XorPeerAddress(peer));
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
    let challenge = exchange(link, Method::ALLOCATE, None, &allocate_attributes)?;
    if error_of(&challenge)? != Some(401) {
        return Err("an Allocate request without credentials was not challenged".into());
    }
    let session = Session::from_challenge(&challenge, None)?;
    expect_success(link, Method::ALLOCATE, &session, &allocate_attributes)?;
    Ok(session)
}

/// Binds [`CHANNEL`] to `peer`, which also installs a permission.
pub(crate) fn bind_channel(link: &mut Link, session: &Session, peer: SocketAddr) -> Outcome<()> {
    expect_success(link, Method::CHANNEL_BIND, session, &|writer| channel_attributes(writer, peer))
}

/// Installs a permission for the peer.
pub(crate) fn permit(link: &mut Link, session: &Session, peer: SocketAddr) -> Outcome<()> {
    expect_success(link, Method::CREATE_PERMISSION, session, &|writer| writer.push(&XorPeerAddress(peer)))
}

fn expect_success(link: &mut Link, method: Method, session: &Session, fill: Fill<'_>) -> Outcome<()> {
    match error_of(&exchange(link, method, Some(session), fill)?)? {
        None => Ok(()),
        Some(code) => Err(format!("the server rejected {method} with {code}").into()),
    }
}

/// Sends a request and waits for its response. Retransmits over UDP.
fn exchange(link: &mut Link, method: Method, session: Option<&Session>, fill: Fill<'_>) -> Outcome<Vec<u8>> {
    let transaction = transaction();
    let message = request(method, transaction, session, fill)?;
    for _ in 0..if link.is_lossy() { ATTEMPTS } else { 1 } {
        link.send(&message)?;
        while let Some(response) = link.receive()? {
            if Message::parse(&response).is_ok_and(|response| response.transaction_id() == transaction) {
                return Ok(response);
            }
        }
    }
    Err(format!("{method} got no response").into())
}
