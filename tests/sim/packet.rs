//! The packets of clients.

use std::net::SocketAddr;
use std::rc::Rc;

use turnserver::auth::{KeyAlgorithm, LongTermKey};
use turnserver::stun::attribute::{Data, Nonce, RawAttribute, Realm, Userhash, Username, XorPeerAddress};
use turnserver::stun::{AttributeType, Class, MessageWriter, Method, TransactionId};

use crate::rng::SplitMix;
use crate::setup::{REALM, userhash};

/// The integrity of a packet as far as the simulation knows it, so that the model need not compute it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signed {
    /// Valid with this key of this credential, if the packet has an integrity attribute.
    With(usize, KeyAlgorithm),
    /// Invalid with every key.
    Invalid,
    /// Not known.
    Unknown,
}

#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) client: usize,
    pub(crate) bytes: Rc<[u8]>,
    pub(crate) signed: Signed,
}

/// The authentication attributes of a request.
#[derive(Debug)]
pub(crate) struct Authentication {
    pub(crate) username: Option<String>,
    /// Whether the name is sent as USERHASH.
    pub(crate) as_userhash: bool,
    /// The value of PASSWORD-ALGORITHMS.
    pub(crate) listed: Option<&'static [u8]>,
    /// The value of PASSWORD-ALGORITHM.
    pub(crate) named: Option<&'static [u8]>,
    pub(crate) realm: bool,
    pub(crate) nonce: Option<String>,
    pub(crate) key: Option<LongTermKey>,
    pub(crate) sha256: bool,
}

impl Authentication {
    pub(crate) const NONE: Self = Self {
        username: None,
        as_userhash: false,
        listed: None,
        named: None,
        realm: false,
        nonce: None,
        key: None,
        sha256: false,
    };
}

pub(crate) fn transaction(rng: &mut SplitMix) -> TransactionId {
    let (high, low) = (rng.next().to_be_bytes(), rng.next().to_be_bytes());
    TransactionId::new(std::array::from_fn(|at| if at < 8 { high[at] } else { low[at - 8] }))
}

/// Writes a message with these attributes.
pub(crate) fn message(
    class: Class,
    method: Method,
    id: TransactionId,
    fingerprint: bool,
    by: &Authentication,
    attributes: impl FnOnce(&mut MessageWriter<'_>),
) -> Rc<[u8]> {
    let mut buffer = [0; 1_600];
    let mut writer = MessageWriter::new(&mut buffer, class, method, id);
    attributes(&mut writer);
    match &by.username {
        Some(username) if by.as_userhash => writer.push(&Userhash(&userhash(username))),
        Some(username) => writer.push(&Username(username)),
        None => {}
    }
    if by.realm {
        writer.push(&Realm(REALM));
    }
    if let Some(nonce) = &by.nonce {
        writer.push(&Nonce(nonce));
    }
    for (kind, value) in [(0x8002, by.listed), (0x001d, by.named)] {
        if let Some(value) = value {
            raw(&mut writer, kind, value);
        }
    }
    if let Some(key) = &by.key {
        if by.sha256 {
            writer.message_integrity_sha256(key.as_bytes());
        } else {
            writer.message_integrity(key.as_bytes());
        }
    }
    if fingerprint {
        writer.fingerprint();
    }
    writer.finish().expect("the message fits").into()
}

/// Writes an attribute with any content.
pub(crate) fn raw(writer: &mut MessageWriter<'_>, kind: u16, value: &[u8]) {
    writer.push(&RawAttribute { kind: AttributeType::new(kind), value });
}

pub(crate) fn send_indication(rng: &mut SplitMix, peer: SocketAddr, payload: &[u8]) -> Rc<[u8]> {
    let (id, fingerprint) = (transaction(rng), rng.percent(10));
    let flaw = rng.below(60);
    let data_first = rng.percent(20);
    message(Class::Indication, Method::SEND, id, fingerprint, &Authentication::NONE, |writer| {
        if data_first && flaw != 0 {
            writer.push(&Data(payload));
        }
        match flaw {
            1 => {}
            2 => raw(writer, 0x0012, &[0, 1, 2]),
            3 => raw(writer, 0x001a, &[]),
            4 => raw(writer, 0x8022, b"a name"),
            5 => {
                // Only the first attribute of a type counts.
                writer.push(&XorPeerAddress(peer));
                writer.push(&XorPeerAddress(SocketAddr::from(([127, 0, 0, 1], 22))));
            }
            _ => writer.push(&XorPeerAddress(peer)),
        }
        if !data_first && flaw != 0 {
            writer.push(&Data(payload));
        }
    })
}

pub(crate) fn channel_data(rng: &mut SplitMix, number: u16, payload: &[u8]) -> Rc<[u8]> {
    let mut bytes = Vec::with_capacity(4 + payload.len() + 3);
    bytes.extend(number.to_be_bytes());
    let length = match rng.below(40) {
        0 => payload.len() + 1,
        1 => payload.len() / 2,
        2 => 0xffff,
        _ => payload.len(),
    };
    bytes.extend((length as u16).to_be_bytes());
    bytes.extend(payload);
    if rng.percent(10) {
        bytes.resize(bytes.len().next_multiple_of(4), 0xff);
    }
    bytes.into()
}
