//! The bytes of a message.

use std::net::SocketAddr;

use turnserver::auth::{LongTermKey, Secret};
use turnserver::client::{self, Algorithms, Session, write_message};
use turnserver::stun::attribute::{
    Data, DontFragment, EvenPort, Lifetime, Nonce, Realm, RequestedTransport, ReservationToken, Software, Username,
    XorPeerAddress,
};
use turnserver::stun::{self, AttributeType, MessageWriter, RawAttribute, TransactionId};

use crate::operations::{Attribute, Credentials, Damage, Fingerprint, Message, Target, Token};
use crate::side::USERS;
use crate::support::REALM;

/// What the bytes depend on besides the message.
pub(crate) struct Wire<'w> {
    pub(crate) transaction: TransactionId,
    /// The last challenge of the client.
    pub(crate) challenge: Option<&'w [u8]>,
    /// That of another client.
    pub(crate) foreign: Option<&'w [u8]>,
    pub(crate) target: &'w dyn Fn(Target) -> SocketAddr,
    /// The token of a client.
    pub(crate) token: &'w dyn Fn(usize) -> [u8; 8],
}

pub(crate) fn encode(message: &Message, wire: &Wire<'_>) -> Vec<u8> {
    let mut bytes = write_message(message.class, message.method, wire.transaction, 4096, |writer| {
        message.attributes.iter().for_each(|attribute| push(writer, attribute, wire));
        sign(writer, message.credentials, wire);
        message.after.iter().for_each(|attribute| push(writer, attribute, wire));
        match message.fingerprint {
            Fingerprint::None => {}
            Fingerprint::Right => writer.fingerprint(),
            Fingerprint::Wrong => raw(writer, AttributeType::FINGERPRINT.number(), &[1, 2, 3, 4]),
            Fingerprint::NotLast => {
                writer.fingerprint();
                writer.push(&Software("after the fingerprint"));
            }
        }
    })
    .unwrap();
    let length = u16::from_be_bytes([bytes[2], bytes[3]]);
    match message.damage {
        None => {}
        Some(Damage::Truncated(count)) => bytes.truncate(bytes.len() - count),
        Some(Damage::Trailing(count)) => bytes.resize(bytes.len() + count, 0),
        Some(Damage::Cookie) => bytes[4] ^= 1,
        Some(Damage::LeadingBits) => bytes[0] |= 0x80,
        Some(Damage::LongLength(by)) => bytes[2..4].copy_from_slice(&(length + by).to_be_bytes()),
    }
    bytes
}

fn raw(writer: &mut MessageWriter<'_>, kind: u16, value: &[u8]) {
    writer.push(&RawAttribute { kind: AttributeType::new(kind), value });
}

fn push(writer: &mut MessageWriter<'_>, attribute: &Attribute, wire: &Wire<'_>) {
    let kind = attribute.kind().number();
    match attribute {
        Attribute::RequestedTransport(protocol) => writer.push(&RequestedTransport(*protocol)),
        Attribute::Lifetime(seconds) => writer.push(&Lifetime(*seconds)),
        Attribute::EvenPort(reserve_next) => writer.push(&EvenPort { reserve_next: *reserve_next }),
        Attribute::Token(Token::Of(client)) => writer.push(&ReservationToken((wire.token)(*client))),
        Attribute::Token(Token::Garbage) => writer.push(&ReservationToken(*b"no token")),
        Attribute::Family(family) | Attribute::AdditionalFamily(family) | Attribute::DraftAdditionalFamily(family) => {
            raw(writer, kind, &[*family, 0, 0, 0]);
        }
        Attribute::DontFragment => writer.push(&DontFragment),
        Attribute::Peer(target) => writer.push(&XorPeerAddress((wire.target)(*target))),
        Attribute::Channel(number) => {
            let [high, low] = number.to_be_bytes();
            raw(writer, kind, &[high, low, 0, 0]);
        }
        Attribute::Data(payload) => writer.push(&Data(payload)),
        Attribute::Raw(_, value) => raw(writer, kind, value),
    }
}

fn nonce(challenge: Option<&[u8]>) -> String {
    let challenge = challenge.and_then(|challenge| stun::Message::parse(challenge).ok());
    let nonce = challenge.and_then(|challenge| challenge.get::<Nonce<'_>>().ok().flatten().map(|nonce| nonce.0));
    nonce.unwrap_or("none").to_owned()
}

/// Writes the attributes that authenticate a request.
fn sign(writer: &mut MessageWriter<'_>, credentials: Credentials, wire: &Wire<'_>) {
    let [(alice, password), (bob, other_password)] = USERS;
    let (username, password) = match credentials {
        Credentials::None => return,
        Credentials::Sha256 => return sign_sha256(writer, wire),
        Credentials::OtherUser => (bob, other_password),
        Credentials::UnknownUser => ("carol", password),
        Credentials::WrongPassword => (alice, "not the password"),
        _ => (alice, password),
    };
    let realm = if credentials == Credentials::WrongRealm { "another realm" } else { REALM };
    let nonce = match credentials {
        Credentials::MadeUpNonce => "0123456789abcdef".to_owned(),
        Credentials::ForeignNonce => nonce(wire.foreign),
        _ => nonce(wire.challenge),
    };
    if credentials != Credentials::NoUsername {
        writer.push(&Username(username));
    }
    if credentials != Credentials::NoRealm {
        writer.push(&Realm(realm));
    }
    if credentials != Credentials::NoNonce {
        writer.push(&Nonce(&nonce));
    }
    match credentials {
        Credentials::NoIntegrity => {}
        Credentials::ShortIntegrity => raw(writer, AttributeType::MESSAGE_INTEGRITY.number(), &[7; 19]),
        _ => writer.message_integrity(LongTermKey::derive(username, realm, password.as_bytes()).as_bytes()),
    }
}

/// Signs as a client of RFC 8489 does. With a server that does not offer password algorithms, that is MD5.
fn sign_sha256(writer: &mut MessageWriter<'_>, wire: &Wire<'_>) {
    let Some(challenge) = wire.challenge else { return };
    let challenge = stun::Message::parse(challenge).unwrap();
    let (username, password) = USERS[0];
    let password = Secret::new(password.as_bytes()).unwrap();
    let credentials = client::Credentials { username: username.to_owned(), password };
    Session::from_challenge(&challenge, credentials, Algorithms::Rfc8489).unwrap().sign(writer);
}
