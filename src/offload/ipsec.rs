//! The IPsec policies of the kernel (XFRM), past which the program would relay. Needs `CAP_NET_ADMIN`.

use std::io::{self, Read as _};

use netlink_packet_core::{NetlinkBuffer, NlasIterator};
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

// Constants that the crate `libc` lacks, from linux/xfrm.h.
const XFRM_MSG_NEWPOLICY: u16 = 0x13;
const XFRM_MSG_GETPOLICY: u16 = 0x15;
const XFRM_MSG_GETDEFAULT: u16 = 0x28;
const XFRMA_IF_ID: u16 = 31;
/// The directions in, out and forward are less than this; those of the policies of sockets are not.
const XFRM_POLICY_MAX: u8 = 3;
const XFRM_USERPOLICY_BLOCK: u8 = 1;
/// The length of `struct xfrm_userpolicy_info`, and the offset of the direction in it.
const POLICY: usize = 168;
const DIRECTION: usize = 160;
/// The length of `struct xfrm_userpolicy_id`.
const POLICY_ID: usize = 64;

/// The most that the kernel sends at a time.
const BUFFER: usize = 32 << 10;

/// Why the program is not attached to any interface: IPsec. The text is for the operator.
#[derive(Debug, Error)]
pub enum Ipsec {
    /// There are policies.
    #[error(
        "this machine has IPsec policies ({0}; `ip xfrm policy` lists them), and the XDP program would relay past \
         them: it would send unencrypted what they encrypt, and accept what they reject. Packets are relayed in user \
         space. To use the offload, remove the policies, or use IPsec through XFRM interfaces only; otherwise set \
         `offload.mode = \"off\"`"
    )]
    Policies(usize),
    /// It is not known whether there are any.
    #[error(
        "this process cannot find out whether this machine has IPsec policies, past which the XDP program would relay: \
         {0}. Run `turnserver offload attach` as root, or with CAP_NET_ADMIN"
    )]
    Unknown(io::Error),
}

/// Checks that there are no [`policies`].
///
/// The kernel's response to the request for a route does not consider policies, so nothing else finds them. Policies
/// that are made later are not found.
///
/// # Errors
/// If there are policies, or it is not known. Then the program is not to be attached, and an attached one is to be
/// detached.
pub fn check() -> Result<(), Ipsec> {
    match policies() {
        Ok(0) => Ok(()),
        Ok(count) => Err(Ipsec::Policies(count)),
        Err(error) => Err(Ipsec::Unknown(error)),
    }
}

/// Returns the number of IPsec policies of the network namespace of this thread. A default policy that blocks counts
/// as one.
///
/// Policies of single sockets, such as those of an IKE daemon, do not count, because they do not concern the server;
/// nor do those of XFRM interfaces, because routes select them and an XFRM interface is not an Ethernet interface.
///
/// # Errors
/// Those of netlink sockets: `EPERM` without `CAP_NET_ADMIN`.
pub fn policies() -> io::Result<usize> {
    let socket = match Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(libc::NETLINK_XFRM)))
    {
        // A kernel without IPsec.
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(0),
        socket => socket?,
    };
    Ok(listed(&socket)? + blocking(&socket)?)
}

/// Counts the policies in the list of the kernel.
fn listed(socket: &Socket) -> io::Result<usize> {
    socket.send(&request(XFRM_MSG_GETPOLICY, libc::NLM_F_DUMP, POLICY_ID))?;
    let mut count = 0;
    let mut buffer = vec![0; BUFFER];
    loop {
        for (kind, body) in messages(receive(socket, &mut buffer)?) {
            match i32::from(kind) {
                libc::NLMSG_DONE => return status(body).map(|()| count),
                libc::NLMSG_ERROR => status(body)?,
                _ => count += usize::from(kind == XFRM_MSG_NEWPOLICY && counts(body)),
            }
        }
    }
}

/// Counts the default policies that block packets which have no other policy.
fn blocking(socket: &Socket) -> io::Result<usize> {
    socket.send(&request(XFRM_MSG_GETDEFAULT, 0, 4))?;
    let mut buffer = vec![0; BUFFER];
    // Before Linux 5.15, the response is an error.
    let defaults = messages(receive(socket, &mut buffer)?).find(|(kind, _)| *kind == XFRM_MSG_GETDEFAULT);
    // `struct xfrm_userpolicy_default`: in, forward, out. The server's packets are not forwarded.
    Ok(match defaults {
        Some((_, [incoming, _, outgoing, ..])) => {
            [incoming, outgoing].into_iter().filter(|policy| **policy == XFRM_USERPOLICY_BLOCK).count()
        }
        _ => 0,
    })
}

/// Returns whether a policy concerns the packets of the server. One that cannot be read does.
fn counts(body: &[u8]) -> bool {
    let of_socket = body.get(DIRECTION).is_some_and(|direction| *direction >= XFRM_POLICY_MAX);
    let mut attributes = NlasIterator::new(body.get(POLICY..).unwrap_or_default()).map_while(Result::ok);
    let of_interface = attributes.any(|attribute| attribute.kind() == XFRMA_IF_ID && attribute.value() != [0; 4]);
    !of_socket && !of_interface
}

/// Returns a request with a body of zeros.
fn request(kind: u16, flags: libc::c_int, body: usize) -> Vec<u8> {
    let length = 16 + body;
    let flags = u16::try_from(libc::NLM_F_REQUEST | flags).unwrap_or_default();
    let mut bytes = u32::try_from(length).unwrap_or_default().to_ne_bytes().to_vec();
    bytes.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
    bytes.resize(length, 0);
    bytes
}

fn receive<'a>(mut socket: &Socket, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
    loop {
        match socket.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            length => return Ok(buffer.get(..length?).unwrap_or_default()),
        }
    }
}

/// Splits received bytes into messages: type and body.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let buffer = NetlinkBuffer::new_checked(bytes).ok()?;
        let length = usize::try_from(buffer.length()).ok()?;
        let message = (buffer.message_type(), buffer.payload());
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Returns the error in the body of an `NLMSG_ERROR` or `NLMSG_DONE`.
fn status(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes)) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error.saturating_neg())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A policy of this direction with this attribute.
    fn policy(direction: u8, kind: u16, value: [u8; 4]) -> Vec<u8> {
        let mut body = vec![0; POLICY];
        body[DIRECTION] = direction;
        body.extend([[8, 0], kind.to_ne_bytes(), [value[0], value[1]], [value[2], value[3]]].concat());
        body
    }

    #[test]
    fn policies_of_sockets_and_of_xfrm_interfaces_do_not_count() {
        const MARK: u16 = 21;
        for (direction, kind, value, expected) in [
            (0, MARK, [7, 0, 0, 0], true),
            (1, XFRMA_IF_ID, [0; 4], true),
            (2, MARK, [0; 4], true),
            (0, XFRMA_IF_ID, [0, 0, 0, 7], false),
            (1, XFRMA_IF_ID, [7, 0, 0, 0], false),
            (3, MARK, [0; 4], false),
            (4, MARK, [0; 4], false),
        ] {
            let body = policy(direction, kind, value);
            assert_eq!(counts(&body), expected, "{direction} {kind} {value:?}");
        }
        assert!(counts(&[]), "what cannot be read counts");
    }

    #[test]
    fn errors_of_the_kernel_are_returned() {
        assert!(status(&0_i32.to_ne_bytes()).is_ok());
        let error = status(&(-libc::EPERM).to_ne_bytes()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }
}
