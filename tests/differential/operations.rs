//! What the clients and peers of a sequence do, in a form that a person can read.

use std::fmt;

use turnserver::stun::{AttributeType, Class, Method};

/// The transport of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Transport {
    Udp,
    Udp6,
    Tcp,
}

/// What the clients of one test do, in order.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    pub(crate) clients: Vec<Transport>,
    pub(crate) operations: Vec<Operation>,
}

#[derive(Clone, Debug)]
pub(crate) enum Operation {
    /// A client sends a STUN message.
    Message { client: usize, message: Message },
    /// A client repeats its last message, byte for byte.
    Again { client: usize },
    /// A client sends ChannelData. Its length field is `excess` larger than the payload.
    ChannelData { client: usize, number: u16, payload: Vec<u8>, excess: i16, padding: usize },
    /// A client sends a datagram that is neither.
    Bytes { client: usize, bytes: Vec<u8> },
    /// A peer sends a datagram to the relayed address of a client.
    FromPeer { peer: Peer, client: usize, payload: Vec<u8> },
}

/// A socket of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Peer {
    A,
    /// The address of `A` with another port.
    A2,
    B,
    /// An IPv6 address.
    V6,
}

impl Peer {
    pub(crate) const ALL: [Self; 4] = [Self::A, Self::A2, Self::B, Self::V6];
}

/// A STUN message.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Message {
    pub(crate) class: Class,
    pub(crate) method: Method,
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) credentials: Credentials,
    /// Attributes after MESSAGE-INTEGRITY.
    pub(crate) after: Vec<Attribute>,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) damage: Option<Damage>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fingerprint {
    None,
    Right,
    Wrong,
    /// Followed by SOFTWARE.
    NotLast,
}

/// The attributes that authenticate a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Credentials {
    None,
    /// Of the user that all clients use.
    Right,
    /// Of another user.
    OtherUser,
    UnknownUser,
    WrongPassword,
    /// Signed with the key of the realm that the request names.
    WrongRealm,
    MadeUpNonce,
    /// The nonce of the next client.
    ForeignNonce,
    NoUsername,
    NoRealm,
    NoNonce,
    NoIntegrity,
    /// MESSAGE-INTEGRITY of 19 bytes.
    ShortIntegrity,
    /// PASSWORD-ALGORITHMS, PASSWORD-ALGORITHM and MESSAGE-INTEGRITY-SHA256 (RFC 8489).
    Sha256,
}

/// An attribute.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Attribute {
    RequestedTransport(u8),
    Lifetime(u32),
    EvenPort(bool),
    Token(Token),
    Family(u8),
    AdditionalFamily(u8),
    /// ADDITIONAL-ADDRESS-FAMILY under the number of the draft that coturn implements.
    DraftAdditionalFamily(u8),
    DontFragment,
    Peer(Target),
    Channel(u16),
    Data(Vec<u8>),
    Raw(u16, Vec<u8>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Token {
    /// The token that this client has received, or zeros.
    Of(usize),
    Garbage,
}

/// The address of a peer in a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    Peer(Peer),
    /// The IPv4 relayed address of a client, or peer B if it has none.
    Relay(usize),
    /// An address that both servers deny.
    Denied,
    Loopback,
    Unspecified,
    Multicast,
    Broadcast,
    /// ::ffff:10.0.3.9, the denied address.
    MappedDenied,
    ZeroPort,
}

/// What is wrong with the bytes of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Damage {
    /// The last bytes are missing.
    Truncated(usize),
    Trailing(usize),
    Cookie,
    LeadingBits,
    /// The length in the header is larger than the message.
    LongLength(u16),
}

impl Operation {
    pub(crate) fn message(&self) -> Option<&Message> {
        match self {
            Self::Message { message, .. } => Some(message),
            _ => None,
        }
    }

    pub(crate) fn client(&self) -> usize {
        match self {
            Self::Message { client, .. }
            | Self::Again { client }
            | Self::ChannelData { client, .. }
            | Self::Bytes { client, .. }
            | Self::FromPeer { client, .. } => *client,
        }
    }

    /// Whether other clients and peers may receive something.
    pub(crate) fn is_data(&self) -> bool {
        match self {
            Self::Message { message, .. } => message.class == Class::Indication,
            Self::Again { .. } | Self::ChannelData { .. } | Self::Bytes { .. } | Self::FromPeer { .. } => true,
        }
    }
}

impl Message {
    pub(crate) fn request(method: Method, attributes: Vec<Attribute>) -> Self {
        Self {
            class: Class::Request,
            method,
            attributes,
            credentials: Credentials::Right,
            after: Vec::new(),
            fingerprint: Fingerprint::None,
            damage: None,
        }
    }

    pub(crate) fn is(&self, method: Method) -> bool {
        self.class == Class::Request && self.method == method
    }

    pub(crate) fn has(&self, wanted: impl Fn(&Attribute) -> bool) -> bool {
        self.attributes.iter().any(wanted)
    }

    /// Whether a server has to ignore later attributes because they have the type of an earlier one (RFC 8489 §14).
    pub(crate) fn has_duplicates(&self) -> bool {
        (0..self.attributes.len()).any(|at| self.is_duplicate(at))
    }

    /// Whether a server has to ignore the attributes of `after` (RFC 8489 §9).
    pub(crate) fn has_attributes_after_integrity(&self) -> bool {
        !self.after.is_empty() && self.credentials.have_integrity()
    }

    /// Whether the attribute at this place is one that has to be ignored because of an earlier one.
    fn is_duplicate(&self, at: usize) -> bool {
        let kind = self.attributes[at].kind();
        // RFC 8656 §10.2: CreatePermission has an XOR-PEER-ADDRESS for each peer.
        let may_repeat = self.method == Method::CREATE_PERMISSION && kind == AttributeType::XOR_PEER_ADDRESS;
        !may_repeat && self.attributes[..at].iter().any(|earlier| earlier.kind() == kind)
    }

    /// Returns the later attributes of a type, and those after the integrity.
    pub(crate) fn ignored(&self) -> impl Iterator<Item = &Attribute> {
        let duplicates = self.attributes.iter().enumerate().filter(|(at, _)| self.is_duplicate(*at));
        let after = self.after.iter().filter(|_| self.has_attributes_after_integrity());
        duplicates.map(|(_, attribute)| attribute).chain(after)
    }

    /// Returns the message without everything that a server has to ignore: attributes after the integrity, repeated
    /// types, and attributes that the method does not use.
    pub(crate) fn without_ignored(&self) -> Self {
        let mut message = self.clone();
        if self.has_attributes_after_integrity() {
            message.after.clear();
        }
        let attributes = self.attributes.iter().enumerate().filter(|(at, _)| !self.is_duplicate(*at));
        let attributes = attributes.map(|(_, attribute)| attribute);
        message.attributes = attributes.filter(|one| !is_ignored(one.kind(), self.method)).cloned().collect();
        message
    }

    /// Whether the method uses a type of attributes.
    pub(crate) fn uses(&self, kind: AttributeType) -> bool {
        attributes_of(self.method).contains(&kind)
    }
}

/// Returns the attributes that a request or a Send indication can have, except those that authenticate it.
fn attributes_of(method: Method) -> &'static [AttributeType] {
    match method {
        Method::ALLOCATE => &[
            AttributeType::REQUESTED_TRANSPORT,
            AttributeType::LIFETIME,
            AttributeType::EVEN_PORT,
            AttributeType::RESERVATION_TOKEN,
            AttributeType::REQUESTED_ADDRESS_FAMILY,
            AttributeType::ADDITIONAL_ADDRESS_FAMILY,
            AttributeType::DRAFT_ADDITIONAL_ADDRESS_FAMILY,
            AttributeType::DONT_FRAGMENT,
        ],
        Method::REFRESH => &[AttributeType::LIFETIME, AttributeType::REQUESTED_ADDRESS_FAMILY],
        Method::CREATE_PERMISSION => &[AttributeType::XOR_PEER_ADDRESS],
        Method::CHANNEL_BIND => &[AttributeType::CHANNEL_NUMBER, AttributeType::XOR_PEER_ADDRESS],
        Method::SEND => &[AttributeType::XOR_PEER_ADDRESS, AttributeType::DATA, AttributeType::DONT_FRAGMENT],
        _ => &[],
    }
}

/// Whether a server ignores a type of attributes in a message of a method (RFC 8489 §6.3): it does not use it, and
/// knows it or need not know it.
fn is_ignored(kind: AttributeType, method: Method) -> bool {
    let is_known = attributes_of(Method::ALLOCATE).contains(&kind)
        || attributes_of(Method::CHANNEL_BIND).contains(&kind)
        || kind == AttributeType::DATA;
    !attributes_of(method).contains(&kind) && (is_known || !kind.is_comprehension_required())
}

impl Credentials {
    /// Whether the request has an attribute after which others are ignored.
    pub(crate) fn have_integrity(self) -> bool {
        !matches!(self, Self::None | Self::NoIntegrity)
    }
}

impl Attribute {
    /// Returns the value of DATA.
    pub(crate) fn data(&self) -> Option<&Vec<u8>> {
        match self {
            Self::Data(payload) => Some(payload),
            _ => None,
        }
    }

    pub(crate) fn kind(&self) -> AttributeType {
        match self {
            Self::RequestedTransport(_) => AttributeType::REQUESTED_TRANSPORT,
            Self::Lifetime(_) => AttributeType::LIFETIME,
            Self::EvenPort(_) => AttributeType::EVEN_PORT,
            Self::Token(_) => AttributeType::RESERVATION_TOKEN,
            Self::Family(_) => AttributeType::REQUESTED_ADDRESS_FAMILY,
            Self::AdditionalFamily(_) => AttributeType::ADDITIONAL_ADDRESS_FAMILY,
            Self::DraftAdditionalFamily(_) => AttributeType::DRAFT_ADDITIONAL_ADDRESS_FAMILY,
            Self::DontFragment => AttributeType::DONT_FRAGMENT,
            Self::Peer(_) => AttributeType::XOR_PEER_ADDRESS,
            Self::Channel(_) => AttributeType::CHANNEL_NUMBER,
            Self::Data(_) => AttributeType::DATA,
            Self::Raw(kind, _) => AttributeType::new(*kind),
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind())?;
        match self {
            Self::RequestedTransport(value)
            | Self::Family(value)
            | Self::AdditionalFamily(value)
            | Self::DraftAdditionalFamily(value) => write!(f, "={value}"),
            Self::Lifetime(value) => write!(f, "={value}"),
            Self::EvenPort(value) => write!(f, "={}", u8::from(*value)),
            Self::Token(value) => write!(f, "={value:?}"),
            Self::DontFragment => Ok(()),
            Self::Peer(value) => write!(f, "={value:?}"),
            Self::Channel(value) => write!(f, "=0x{value:04x}"),
            Self::Data(value) | Self::Raw(_, value) => write!(f, "=[{}]", hex(value)),
        }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.method, self.class)?;
        self.attributes.iter().try_for_each(|attribute| write!(f, ", {attribute}"))?;
        if self.credentials != Credentials::None {
            write!(f, ", credentials: {:?}", self.credentials)?;
        }
        self.after.iter().try_for_each(|attribute| write!(f, ", after the integrity: {attribute}"))?;
        if self.fingerprint != Fingerprint::None {
            write!(f, ", FINGERPRINT: {:?}", self.fingerprint)?;
        }
        self.damage.iter().try_for_each(|damage| write!(f, ", damage: {damage:?}"))
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message { client, message } => write!(f, "client {client}: {message}"),
            Self::Again { client } => write!(f, "client {client}: its last message again"),
            Self::ChannelData { client, number, payload, excess, padding } => {
                write!(f, "client {client}: ChannelData 0x{number:04x} [{}]", hex(payload))?;
                write!(f, ", length {excess:+}, {padding} bytes of padding")
            }
            Self::Bytes { client, bytes } => write!(f, "client {client}: bytes [{}]", hex(bytes)),
            Self::FromPeer { peer, client, payload } => {
                write!(f, "peer {peer:?}: [{}] to the relayed address of client {client}", hex(payload))
            }
        }
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "clients: {:?}", self.clients)?;
        self.operations.iter().enumerate().try_for_each(|(at, operation)| writeln!(f, "{at:3}. {operation}"))
    }
}
