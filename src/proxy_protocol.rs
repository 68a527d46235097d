//! The PROXY protocol: the header with which a proxy names its client, in versions 1 (text) and 2 (binary).
//!
//! The specification is `doc/proxy-protocol.txt` of HAProxy. The section numbers are those of its version of 2020/03/05.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The first bytes of a header of version 2 (§2.2).
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// The first byte of a header of each version.
pub const FIRST_BYTES: [u8; 2] = [b'P', b'\r'];

/// The first bytes of a header of version 1 (§2.1).
const V1_PREFIX: &[u8] = b"PROXY ";

/// The length of the shortest header of version 1, which has no addresses.
const V1_SHORTEST: usize = b"PROXY UNKNOWN\r\n".len();

/// The length of the longest header of version 1, with its end of line (§2.1).
const V1_LONGEST: usize = 107;

/// The part of a header of version 2 that has a fixed length: signature, version and command, family, length.
const V2_FIXED: usize = 16;

/// The longest header that is read. The addresses take at most 216 bytes. Certificates' names and the like may follow;
/// the specification sets no limit of its own.
pub const LONGEST: usize = V2_FIXED + 4_096;

/// The type of the checksum field of version 2 (§2.2.3).
const TYPE_CRC32C: u8 = 0x03;

/// The addresses of a connection or datagram, as a proxy has seen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The source: the client.
    pub client: SocketAddr,
    /// The destination, to which the client sends.
    pub server: SocketAddr,
}

impl Addresses {
    /// Converts IPv4-mapped addresses to IPv4 addresses.
    #[must_use]
    pub fn canonical(self) -> Self {
        let canonical = |address: SocketAddr| match address.ip().to_canonical() {
            IpAddr::V4(v4) => SocketAddr::from((v4, address.port())),
            IpAddr::V6(_) => address,
        };
        Self { client: canonical(self.client), server: canonical(self.server) }
    }
}

/// A header at the start of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The number of bytes of the header.
    pub length: usize,
    /// The addresses; `None` if those of the connection to the proxy count: the proxy itself is the client (LOCAL), or it
    /// does not know the client's IP address (UNKNOWN, AF_UNSPEC, AF_UNIX).
    pub addresses: Option<Addresses>,
}

/// What some bytes begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A whole header.
    Header(Header),
    /// The start of a header, or nothing.
    Incomplete {
        /// The least number of bytes that the whole header has.
        at_least: usize,
    },
    /// Something else.
    NotAHeader,
}

/// Why a header is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A header of version 1 has no end of line within 107 bytes, or one of version 2 is longer than [`LONGEST`].
    #[error("the header is too long")]
    TooLong,
    /// A line of version 1 has a wrong family, address or port.
    #[error("the line of version 1 is not valid")]
    Line,
    /// The version of a binary header is not 2.
    #[error("the version is not 2")]
    Version,
    /// The command is neither LOCAL nor PROXY.
    #[error("the command is neither LOCAL nor PROXY")]
    Command,
    /// The address family or the transport protocol has no defined value.
    #[error("the address family is not valid")]
    Family,
    /// The length has no room for the addresses.
    #[error("the addresses do not fit into the length")]
    Length,
    /// A field after the addresses is longer than the rest of the header.
    #[error("a field (TLV) does not fit into the length")]
    Field,
    /// The checksum differs.
    #[error("the checksum (CRC32C) differs")]
    Checksum,
}

/// Finds a header at the start of `bytes`.
///
/// # Errors
/// If the header is not valid. Bytes that are not the start of any header are no error.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Malformed> {
    if let Some(parsed) = prefixed(bytes, &SIGNATURE, V2_FIXED) {
        return parsed.map_or_else(Ok, |rest| parse_v2(bytes, rest));
    }
    if let Some(parsed) = prefixed(bytes, V1_PREFIX, V1_SHORTEST) {
        return parsed.map_or_else(Ok, |_| parse_v1(bytes));
    }
    Ok(Parsed::NotAHeader)
}

/// Whether bytes begin with a header of a version, whatever its rest is.
#[must_use]
pub fn begins(bytes: &[u8]) -> bool {
    bytes.starts_with(&SIGNATURE) || bytes.starts_with(V1_PREFIX)
}

/// Returns what follows a prefix; [`Parsed::Incomplete`] if the bytes end within it; `None` if they differ from it.
fn prefixed<'a>(bytes: &'a [u8], prefix: &[u8], at_least: usize) -> Option<Result<&'a [u8], Parsed>> {
    if let Some(rest) = bytes.strip_prefix(prefix) {
        return Some(Ok(rest));
    }
    prefix.starts_with(bytes).then_some(Err(Parsed::Incomplete { at_least }))
}

/// Parses a line such as `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443` (§2.1).
fn parse_v1(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let within = bytes.get(..V1_LONGEST).unwrap_or(bytes);
    let Some(end) = within.windows(2).position(|pair| pair == b"\r\n") else {
        // At least the end of the line is missing, or half of it.
        let missing = if within.ends_with(b"\r") { 1 } else { 2 };
        let at_least = (within.len() + missing).max(V1_SHORTEST);
        return if at_least > V1_LONGEST { Err(Malformed::TooLong) } else { Ok(Parsed::Incomplete { at_least }) };
    };
    let line = within.get(..end).and_then(|line| std::str::from_utf8(line).ok()).ok_or(Malformed::Line)?;
    let mut words = line.split(' ').skip(1);
    let addresses = match words.next() {
        // What follows is ignored.
        Some("UNKNOWN") => None,
        Some("TCP4") => Some(v1_addresses::<Ipv4Addr>(words)?),
        Some("TCP6") => Some(v1_addresses::<Ipv6Addr>(words)?),
        _ => return Err(Malformed::Line),
    };
    Ok(Parsed::Header(Header { length: end + 2, addresses }))
}

fn v1_addresses<'a, A: FromStr + Into<IpAddr>>(words: impl Iterator<Item = &'a str>) -> Result<Addresses, Malformed> {
    let words: Vec<&str> = words.take(5).collect();
    let &[client, server, client_port, server_port] = words.as_slice() else { return Err(Malformed::Line) };
    let address = |ip: &str, port: &str| {
        // A port has no sign and no leading zeros.
        let is_decimal = port == "0" || port.starts_with(|first| matches!(first, '1'..='9'));
        let port = port.parse().ok().filter(|_: &u16| is_decimal).ok_or(Malformed::Line)?;
        let ip: A = ip.parse().map_err(|_| Malformed::Line)?;
        Ok(SocketAddr::new(ip.into(), port))
    };
    Ok(Addresses { client: address(client, client_port)?, server: address(server, server_port)? })
}

/// Parses a binary header (§2.2). `rest` follows the signature.
fn parse_v2(bytes: &[u8], rest: &[u8]) -> Result<Parsed, Malformed> {
    let Some((&[command, family, high, low], rest)) = rest.split_first_chunk() else {
        return Ok(Parsed::Incomplete { at_least: V2_FIXED });
    };
    if command >> 4 != 2 {
        return Err(Malformed::Version);
    }
    let is_local = match command & 0xF {
        0 => true,
        1 => false,
        _ => return Err(Malformed::Command),
    };
    let rest_length = usize::from(u16::from_be_bytes([high, low]));
    let length = V2_FIXED + rest_length;
    if length > LONGEST {
        return Err(Malformed::TooLong);
    }
    let (Some(whole), Some(rest)) = (bytes.get(..length), rest.get(..rest_length)) else {
        return Ok(Parsed::Incomplete { at_least: length });
    };
    // §2.2: a receiver has to skip the addresses of LOCAL, whatever their family is.
    if is_local {
        return Ok(Parsed::Header(Header { length, addresses: None }));
    }
    let (addresses, fields) = match family {
        0x00 => (None, rest),
        0x11 | 0x12 => {
            let (block, fields) = rest.split_first_chunk::<12>().ok_or(Malformed::Length)?;
            let &[a, b, c, d, e, f, g, h, ports @ ..] = block;
            (Some(addresses([a, b, c, d], [e, f, g, h], ports)), fields)
        }
        0x21 | 0x22 => {
            let (client, others) = rest.split_first_chunk::<16>().ok_or(Malformed::Length)?;
            let (server, others) = others.split_first_chunk::<16>().ok_or(Malformed::Length)?;
            let (ports, fields) = others.split_first_chunk::<4>().ok_or(Malformed::Length)?;
            (Some(addresses(*client, *server, *ports)), fields)
        }
        // The paths of Unix sockets say nothing about the client.
        0x31 | 0x32 => (None, rest.get(216..).ok_or(Malformed::Length)?),
        _ => return Err(Malformed::Family),
    };
    check_fields(whole, fields)?;
    Ok(Parsed::Header(Header { length, addresses }))
}

fn addresses<A: Into<IpAddr>>(client: A, server: A, ports: [u8; 4]) -> Addresses {
    let [a, b, c, d] = ports;
    Addresses {
        client: SocketAddr::new(client.into(), u16::from_be_bytes([a, b])),
        server: SocketAddr::new(server.into(), u16::from_be_bytes([c, d])),
    }
}

/// Checks the lengths of the fields after the addresses, and the checksum if it is among them (§2.2.3).
fn check_fields(whole: &[u8], mut fields: &[u8]) -> Result<(), Malformed> {
    while let Some((&kind, rest)) = fields.split_first() {
        let (length, rest) = rest.split_first_chunk::<2>().ok_or(Malformed::Field)?;
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length))).ok_or(Malformed::Field)?;
        if kind == TYPE_CRC32C {
            let expected = u32::from_be_bytes(value.try_into().map_err(|_| Malformed::Field)?);
            // The checksum is computed as if its own bytes were zero.
            let after = whole.len() - rest.len();
            let (before, after) = whole.split_at_checked(after).unwrap_or((whole, &[]));
            let before = before.strip_suffix(value).unwrap_or(before);
            let all = before.iter().chain(&[0; 4]).chain(after);
            if crc32c(all.copied()) != expected {
                return Err(Malformed::Checksum);
            }
        }
        fields = rest;
    }
    Ok(())
}

/// The checksum of RFC 4960 appendix B. Bit by bit: headers are short, and few of them have it.
fn crc32c(bytes: impl Iterator<Item = u8>) -> u32 {
    const REVERSED_POLYNOMIAL: u32 = 0x82F6_3B78;
    !bytes.fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (REVERSED_POLYNOMIAL * (crc & 1)))
    })
}

/// Appends a header of version 2 for a TCP connection; LOCAL without addresses. Addresses of two families are written as
/// IPv6 addresses, the IPv4 address in its mapped form.
pub fn write(addresses: Option<Addresses>, into: &mut Vec<u8>) {
    into.extend(SIGNATURE);
    let Some(Addresses { client, server }) = addresses else {
        return into.extend([0x20, 0x00, 0, 0]);
    };
    match (client.ip(), server.ip()) {
        (IpAddr::V4(client), IpAddr::V4(server)) => {
            into.extend([0x21, 0x11, 0, 12]);
            into.extend([client, server].iter().flat_map(Ipv4Addr::octets));
        }
        (client, server) => {
            into.extend([0x21, 0x21, 0, 36]);
            into.extend([client, server].map(mapped).iter().flat_map(Ipv6Addr::octets));
        }
    }
    into.extend([client, server].iter().flat_map(|address| address.port().to_be_bytes()));
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests;
