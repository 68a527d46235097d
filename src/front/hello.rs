//! The beginning of a TLS connection: the server name and the application protocols of the ClientHello (RFC 8446 §4.1.2,
//! RFC 6066 §3, RFC 7301 §3.1), without a decision whether TLS is possible at all. The bytes remain with the caller.

use std::borrow::Cow;

/// The longest ClientHello that is read, with the headers of its records, in bytes. With post-quantum keys and ECH,
/// browsers send less than 3000.
pub(crate) const MAX_HELLO: usize = 16 * 1024;

/// The most records of a ClientHello. Some clients split it into many, to get past filters.
const MAX_RECORDS: usize = 128;

/// The length of a record's header (RFC 8446 §5.1), and of a handshake message's (§4).
const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;

/// The type of records of the handshake.
pub(crate) const HANDSHAKE: u8 = 22;
/// The type of the message.
const CLIENT_HELLO: u8 = 1;

/// The extensions that are read.
const SERVER_NAME: u16 = 0;
const APPLICATION_PROTOCOLS: u16 = 16;
/// The type of a DNS name in the server name extension.
const HOST_NAME: u8 = 0;

/// What a ClientHello says about its destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClientHello {
    /// The server name, in lower case and without a dot at its end.
    pub(crate) server_name: Option<String>,
    /// The application protocols, in the client's order.
    pub(crate) protocols: Vec<Vec<u8>>,
}

impl ClientHello {
    /// Returns whether the client offers an application protocol.
    pub(crate) fn offers(&self, protocol: &[u8]) -> bool {
        self.protocols.iter().any(|own| own == protocol)
    }
}

/// The result of reading the first bytes of a connection that begins with a record of the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// The ClientHello is complete.
    Hello(ClientHello),
    /// At least this number of bytes, counted from the beginning of the connection, is needed.
    Needs(usize),
    /// It is longer than [`MAX_HELLO`], or has too many records.
    TooLong,
    /// It is not a ClientHello as the RFCs define it.
    Malformed,
}

/// Reads the ClientHello at the beginning of a connection.
pub(crate) fn read(bytes: &[u8]) -> Read {
    let message = match message(bytes) {
        Ok(message) => message,
        Err(other) => return other,
    };
    parse(&message).map_or(Read::Malformed, Read::Hello)
}

/// Joins the fragments of the first message of the handshake. Returns its body, or why it is not there.
fn message(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Read> {
    let (mut at, mut message) = (0, Cow::Borrowed(&[][..]));
    for _ in 0..MAX_RECORDS {
        let Some(header) = bytes.get(at..at + RECORD_HEADER) else { return Err(needs(at + RECORD_HEADER)) };
        let &[kind, major, _, high, low] = header else { return Err(Read::Malformed) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        // An empty fragment is not allowed (RFC 8446 §5.1).
        if kind != HANDSHAKE || major != 3 || length == 0 {
            return Err(Read::Malformed);
        }
        at += RECORD_HEADER;
        let fragment = bytes.get(at..bytes.len().min(at + length)).unwrap_or_default();
        if message.is_empty() {
            message = Cow::Borrowed(fragment);
        } else {
            message.to_mut().extend_from_slice(fragment);
        }
        // The type shows at once whether more is worth waiting for.
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(Read::Malformed);
        }
        let whole = match message.get(1..MESSAGE_HEADER) {
            Some(&[high, middle, low]) => {
                MESSAGE_HEADER + (usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low))
            }
            _ => MESSAGE_HEADER,
        };
        if whole > MAX_HELLO {
            return Err(Read::TooLong);
        }
        let has_length = message.len() >= MESSAGE_HEADER;
        // An empty one is no ClientHello, and nothing would be left to wait for.
        if has_length && whole == MESSAGE_HEADER {
            return Err(Read::Malformed);
        }
        if has_length && message.len() >= whole {
            return Ok(match message {
                Cow::Borrowed(message) => message.get(MESSAGE_HEADER..whole).map(Cow::Borrowed).unwrap_or_default(),
                Cow::Owned(mut message) => {
                    message.truncate(whole);
                    message.drain(..MESSAGE_HEADER);
                    Cow::Owned(message)
                }
            });
        }
        if fragment.len() < length {
            // The type comes first.
            let rest = if message.is_empty() { 1 } else { whole - message.len() };
            let rest = rest.min(length - fragment.len());
            return Err(needs(at + fragment.len() + rest));
        }
        at += length;
    }
    Err(Read::TooLong)
}

fn needs(bytes: usize) -> Read {
    if bytes > MAX_HELLO { Read::TooLong } else { Read::Needs(bytes) }
}

/// A cursor over the fields of a message. Each method takes a field; `None` if the bytes end before it does.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn short(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    /// Takes a vector with a length of one byte.
    fn small_vector(&mut self) -> Option<Fields<'a>> {
        let length = self.byte()?;
        self.take(length.into()).map(Fields)
    }

    /// Takes a vector with a length of two bytes.
    fn vector(&mut self) -> Option<Fields<'a>> {
        let length = self.short()?;
        self.take(length.into()).map(Fields)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Parses the body of a ClientHello.
fn parse(body: &[u8]) -> Option<ClientHello> {
    let mut fields = Fields(body);
    fields.take(2 + 32)?; // legacy_version, random
    fields.small_vector()?; // legacy_session_id
    fields.vector()?; // cipher_suites
    fields.small_vector()?; // legacy_compression_methods
    let mut hello = ClientHello::default();
    if fields.is_empty() {
        // Old clients have no extensions.
        return Some(hello);
    }
    let mut extensions = fields.vector()?;
    let (mut has_name, mut has_protocols) = (false, false);
    while !extensions.is_empty() {
        let kind = extensions.short()?;
        let content = extensions.vector()?;
        // Two with one type are not allowed (RFC 8446 §4.2), and another program may see the other one.
        let seen = match kind {
            SERVER_NAME => &mut has_name,
            APPLICATION_PROTOCOLS => &mut has_protocols,
            _ => continue,
        };
        if std::mem::replace(seen, true) {
            return None;
        }
        if kind == SERVER_NAME {
            hello.server_name = Some(server_name(content)?);
        } else {
            hello.protocols = protocols(content)?;
        }
    }
    Some(hello)
}

/// Parses the server name extension (RFC 6066 §3).
fn server_name(mut content: Fields<'_>) -> Option<String> {
    let mut names = content.vector()?;
    let mut host = None;
    while !names.is_empty() {
        let kind = names.byte()?;
        let name = names.vector()?;
        if kind == HOST_NAME && host.replace(name.0).is_some() {
            return None;
        }
    }
    let host = host.filter(|host| !host.is_empty() && host.iter().all(u8::is_ascii_graphic))?;
    let name = normalized(std::str::from_utf8(host).ok()?);
    // It may be the root, or have an empty label at its end.
    (!name.is_empty() && !name.ends_with('.')).then_some(name)
}

/// Returns a DNS name as names are compared: in lower case and without the dot of the root.
pub(crate) fn normalized(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Parses the extension of the application protocols (RFC 7301 §3.1).
fn protocols(mut content: Fields<'_>) -> Option<Vec<Vec<u8>>> {
    let mut list = content.vector()?;
    let mut protocols = Vec::new();
    while !list.is_empty() {
        protocols.push(list.small_vector()?.0.to_vec());
    }
    Some(protocols)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::ServerName;
    use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, server};

    use super::*;

    /// Returns the first flight of a real client.
    pub(crate) fn first_flight(name: &str, protocols: &[&[u8]]) -> Vec<u8> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut flight = Vec::new();
        client.write_tls(&mut flight).unwrap();
        flight
    }

    /// Splits the only record of a flight into records with fragments of `length` bytes.
    pub(crate) fn in_records(flight: &[u8], length: usize) -> Vec<u8> {
        let (header, fragment) = flight.split_at(RECORD_HEADER);
        let record = |part: &[u8]| [&header[..3], &u16::try_from(part.len()).unwrap().to_be_bytes(), part].concat();
        fragment.chunks(length).flat_map(record).collect()
    }

    fn hello(name: &str, protocols: &[&[u8]]) -> Read {
        let protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Read::Hello(ClientHello { server_name: Some(name.to_owned()), protocols })
    }

    #[test]
    fn the_name_and_the_protocols_of_a_real_client_are_read_from_one_record_and_from_several() {
        let flight = first_flight("Turn.Example.org", &[b"h2", b"http/1.1"]);
        let expected = hello("turn.example.org", &[b"h2", b"http/1.1"]);
        assert_eq!(read(&flight), expected);
        // What follows is not a part of it.
        assert_eq!(read(&[&flight[..], &[0; 100]].concat()), expected);
        for length in [20, 100, flight.len()] {
            assert_eq!(read(&in_records(&flight, length)), expected, "{length}");
        }
        assert_eq!(read(&in_records(&flight, 1)), Read::TooLong, "too many records");
        let without = first_flight("192.0.2.7", &[]);
        assert_eq!(read(&without), Read::Hello(ClientHello::default()), "no name is sent for an address");
    }

    // A client may send its bytes one by one. The caller waits for as many as are needed.
    #[test]
    fn each_beginning_says_how_many_bytes_are_needed_at_least() {
        for flight in [first_flight("turn.example.org", &[]), in_records(&first_flight("turn.example.org", &[]), 50)] {
            for length in 0..flight.len() {
                match read(&flight[..length]) {
                    Read::Needs(needed) => assert!((length + 1..=flight.len()).contains(&needed), "{length}: {needed}"),
                    other => panic!("{length}: {other:?}"),
                }
            }
            // Without a step for each byte.
            let (mut have, mut steps) = (0, 0);
            while let Read::Needs(needed) = read(&flight[..have]) {
                (have, steps) = (needed, steps + 1);
            }
            assert!(have == flight.len() && steps <= 2 * MAX_RECORDS + 1, "{steps}");
        }
    }

    #[test]
    fn what_is_not_a_client_hello_is_recognized_early() {
        let flight = first_flight("turn.example.org", &[]);
        let with = |at: usize, byte: u8| {
            let mut bytes = flight.clone();
            bytes[at] = byte;
            read(&bytes)
        };
        assert_eq!(with(0, 23), Read::Malformed, "a record of application data");
        assert_eq!(with(1, 2), Read::Malformed, "a version that does not exist");
        assert_eq!(with(5, 2), Read::Malformed, "a ServerHello");
        assert_eq!(read(&[22, 3, 1, 0, 0]), Read::Malformed, "an empty fragment");
        assert_eq!(read(&[22, 3, 1, 0x40, 0, 1, 0, 0x40, 1]), Read::TooLong);
        assert_eq!(read(&[22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff]), Read::TooLong);
    }

    /// Returns a ClientHello with these extensions.
    fn with_extensions(extensions: &[u8]) -> Vec<u8> {
        let length = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap().to_be_bytes();
        let body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], &length(extensions), extensions].concat();
        let message = [&[CLIENT_HELLO, 0], &length(&body)[..], &body].concat();
        [&[22, 3, 1], &length(&message)[..], &message].concat()
    }

    #[test]
    fn ambiguous_names_are_malformed() {
        let one = name(b"a.example");
        assert_eq!(read(&with_extensions(&one)), hello("a.example", &[]));
        assert_eq!(read(&with_extensions(&name(b"a.example."))), hello("a.example", &[]));
        assert_eq!(read(&with_extensions(&[one.clone(), name(b"b.example")].concat())), Read::Malformed);
        for bad in [&b""[..], b".", b"a.example..", b"a\0b", "ä.example".as_bytes(), b"a b"] {
            assert_eq!(read(&with_extensions(&name(bad))), Read::Malformed);
        }
        let cut = &one[..one.len() - 1];
        assert_eq!(read(&with_extensions(cut)), Read::Malformed);
        // An extension of another kind, as that of ECH, is skipped.
        let other = [&[0xfe, 0x0d, 0, 3][..], &[1, 2, 3]].concat();
        assert_eq!(read(&with_extensions(&[other, one].concat())), hello("a.example", &[]));
    }

    #[test]
    fn a_client_without_extensions_has_no_name() {
        let body = [&[3, 1][..], &[7; 32], &[0], &[0, 2, 0, 5], &[1, 0]].concat();
        let length = u8::try_from(body.len()).unwrap();
        let flight = [&[22, 3, 1, 0, length + 4, CLIENT_HELLO, 0, 0, length][..], &body].concat();
        assert_eq!(read(&flight), Read::Hello(ClientHello::default()));
    }

    /// Returns the extension with this one name.
    fn name(name: &[u8]) -> Vec<u8> {
        let length = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
        let entry = [&[HOST_NAME], &length(name.len())[..], name].concat();
        [&SERVER_NAME.to_be_bytes(), &length(entry.len() + 2)[..], &length(entry.len()), &entry].concat()
    }

    /// Returns records of the handshake with these fragments.
    fn records(fragments: &[Vec<u8>]) -> Vec<u8> {
        let record = |fragment: &Vec<u8>| {
            let length = u16::try_from(fragment.len()).unwrap().to_be_bytes();
            [&[HANDSHAKE, 3, 1], &length[..], fragment].concat()
        };
        fragments.iter().flat_map(record).collect()
    }

    #[test]
    fn an_empty_message_is_malformed_wherever_it_is_cut() {
        for message in [
            records(&[[&[CLIENT_HELLO, 0, 0, 0][..], &[7; 16]].concat()]),
            records(&[1, 0, 0, 0, 7].map(|byte| vec![byte])),
        ] {
            let cut = (0..message.len())
                .find(|length| !matches!(read(&message[..*length]), Read::Needs(needed) if needed > *length));
            let cut = cut.unwrap();
            assert!((cut..=message.len()).all(|length| read(&message[..length]) == Read::Malformed), "{message:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_needed_is_more_than_what_is_there(
            fragments in prop::collection::vec(prop::collection::vec(prop_oneof![0..2u8, any::<u8>()], 1..6), 1..6),
            length in 0..60usize,
        ) {
            let flight = records(&fragments);
            let length = length.min(flight.len());
            if let Read::Needs(needed) = read(&flight[..length]) {
                prop_assert!(needed > length, "{needed}");
            }
        }

        // Whatever else rustls demands: where it accepts a ClientHello, both read the same in it.
        #[test]
        fn a_changed_client_hello_is_read_as_rustls_reads_it(
            server in "[a-z]{1,20}\\.example",
            changes in prop::collection::vec((0..600usize, any::<u8>()), 0..4),
            length in 100..700usize,
        ) {
            let mut flight = first_flight(&server, &[b"stun.turn"]);
            for (at, byte) in changes {
                if let Some(changed) = flight.get_mut(at) {
                    *changed = byte;
                }
            }
            let read = read(&if flight.len() > RECORD_HEADER { in_records(&flight, length) } else { flight.clone() });
            let mut acceptor = server::Acceptor::default();
            acceptor.read_tls(&mut &flight[..]).unwrap();
            if let Ok(Some(accepted)) = acceptor.accept() {
                let theirs = accepted.client_hello();
                let Read::Hello(ours) = read else {
                    // rustls ignores what it does not know in a name, and what follows the name.
                    let whole = theirs.server_name().map(|theirs| name(theirs.as_bytes()));
                    let is_whole = whole.is_some_and(|whole| flight.windows(whole.len()).any(|part| part == whole));
                    prop_assert!(!is_whole, "{read:?} {flight:02x?}");
                    return Ok(());
                };
                if let Some(name) = theirs.server_name() {
                    prop_assert_eq!(ours.server_name, Some(normalized(name)));
                }
                let protocols: Vec<Vec<u8>> = theirs.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect();
                prop_assert_eq!(ours.protocols, protocols);
            }
        }
    }
}
