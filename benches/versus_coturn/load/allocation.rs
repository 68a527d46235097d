//! A client's requests: what makes an allocation, keeps and ends it.

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

/// How often a request over UDP is sent before it is given up.
const ATTEMPTS: usize = 10;

/// What a client knows after it has been challenged (RFC 8489 §9.2).
#[derive(Clone)]
pub(crate) struct Session {
    realm: String,
    nonce: String,
    key: LongTermKey,
}

/// What is written into a request before its credentials.
pub(crate) type Fill<'f> = &'f dyn Fn(&mut MessageWriter<'_>);

impl Session {
    /// What the 401 or 438 in `answer` tells. The key of `known` is taken over, as its realm is the same.
    pub(crate) fn challenged(answer: &[u8], known: Option<&Self>) -> Outcome<Self> {
        let message = Message::parse(answer)?;
        let Realm(realm) = message.get()?.ok_or("a challenge without a realm")?;
        let Nonce(nonce) = message.get()?.ok_or("a challenge without a nonce")?;
        let key = match known.filter(|known| known.realm == realm) {
            Some(known) => known.key.clone(),
            None => LongTermKey::derive(USER, realm, PASSWORD.as_bytes()),
        };
        Ok(Self { realm: realm.to_owned(), nonce: nonce.to_owned(), key })
    }
}

/// Writes a request, with credentials where there are some.
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

/// The code of an error response; `None` for a success.
pub(crate) fn error_of(answer: &[u8]) -> Outcome<Option<u16>> {
    let message = Message::parse(answer)?;
    Ok(match message.class() {
        Class::Success => None,
        _ => Some(message.get::<ErrorCodeAttribute<'_>>()?.map_or(0, |error| error.code.code())),
    })
}

/// What every Allocate request asks for.
pub(crate) fn allocate_attributes(writer: &mut MessageWriter<'_>) {
    writer.push(&RequestedTransport::UDP);
}

/// What ends an allocation in a Refresh request (RFC 8656 §7).
pub(crate) fn deletion_attributes(writer: &mut MessageWriter<'_>) {
    writer.push(&Lifetime(0));
}

/// What binds [`CHANNEL`] to `peer` (RFC 8656 §12.1).
pub(crate) fn channel_attributes(writer: &mut MessageWriter<'_>, peer: SocketAddr) {
    writer.push(&ChannelNumber(CHANNEL));
    writer.push(&XorPeerAddress(peer));
}

/// A transaction ID that no other request of this process has.
pub(crate) fn transaction() -> TransactionId {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut id = [0; 12];
    if let Some(place) = id.first_chunk_mut() {
        *place = (clock::now() ^ NEXT.fetch_add(1 << 40, Ordering::Relaxed)).to_be_bytes();
    }
    TransactionId::new(id)
}

/// Allocates.
pub(crate) fn allocate(link: &mut Link) -> Outcome<Session> {
    let challenge = ask(link, Method::ALLOCATE, None, &allocate_attributes)?;
    if error_of(&challenge)? != Some(401) {
        return Err("an Allocate request without credentials was not challenged".into());
    }
    let session = Session::challenged(&challenge, None)?;
    succeed(link, Method::ALLOCATE, &session, &allocate_attributes)?;
    Ok(session)
}

/// Binds [`CHANNEL`] to `peer`, which permits the peer too.
pub(crate) fn bind_channel(link: &mut Link, session: &Session, peer: SocketAddr) -> Outcome<()> {
    succeed(link, Method::CHANNEL_BIND, session, &|writer| channel_attributes(writer, peer))
}

/// Permits the peer.
pub(crate) fn permit(link: &mut Link, session: &Session, peer: SocketAddr) -> Outcome<()> {
    succeed(link, Method::CREATE_PERMISSION, session, &|writer| writer.push(&XorPeerAddress(peer)))
}

fn succeed(link: &mut Link, method: Method, session: &Session, fill: Fill<'_>) -> Outcome<()> {
    match error_of(&ask(link, method, Some(session), fill)?)? {
        None => Ok(()),
        Some(code) => Err(format!("the server refused {method} with {code}").into()),
    }
}

/// Sends a request, over UDP as often as it takes, and waits for its answer.
fn ask(link: &mut Link, method: Method, session: Option<&Session>, fill: Fill<'_>) -> Outcome<Vec<u8>> {
    let transaction = transaction();
    let message = request(method, transaction, session, fill)?;
    for _ in 0..if link.loses() { ATTEMPTS } else { 1 } {
        link.send(&message)?;
        while let Some(answer) = link.receive()? {
            if Message::parse(&answer).is_ok_and(|answer| answer.transaction_id() == transaction) {
                return Ok(answer);
            }
        }
    }
    Err(format!("{method} was not answered").into())
}
