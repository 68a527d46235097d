//! ICMP errors that are passed on to the client (RFC 8656 §11.5).

use std::net::SocketAddr;

use crate::stun::attribute::{Icmp, XorPeerAddress};
use crate::stun::{Class, MessageWriter, Method, TransactionId};
use crate::turn::contract::IcmpError;

/// Returns the ICMP attribute for an error about a datagram to `peer`; `None` for types that are not passed on.
pub(crate) fn attribute(peer: SocketAddr, error: IcmpError) -> Option<Icmp> {
    let IcmpError { kind, code, mtu } = error;
    let too_big = match (peer.is_ipv4(), kind) {
        // Destination Unreachable; with code 4, "fragmentation needed and DF set".
        (true, 3) => code == 4,
        // Packet Too Big.
        (false, 2) => true,
        // Time Exceeded in ICMPv4; Destination Unreachable and Time Exceeded in ICMPv6.
        (true, 11) | (false, 1 | 3) => false,
        _ => return None,
    };
    // §18.13: the data of all other errors MUST be zero.
    Some(Icmp { kind, code, data: if too_big { mtu } else { 0 } })
}

/// Writes the Data indication to the beginning of `buffer` and returns its length; `None` if it does not fit.
pub(crate) fn data_indication(
    buffer: &mut [u8],
    peer: SocketAddr,
    icmp: Icmp,
    transaction: TransactionId,
) -> Option<usize> {
    let mut writer = MessageWriter::new(buffer, Class::Indication, Method::DATA, transaction);
    writer.push(&XorPeerAddress(peer));
    writer.push(&icmp);
    writer.finish_len().ok()
}
