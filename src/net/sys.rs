//! The unsafe code of the crate: `recvmsg` and `sendmsg` with the control messages that carry a local address.
//!
//! The safe wrappers of other crates allocate their control buffers on the heap; here they live on the stack, because
//! these two functions run once per packet.
#![allow(unsafe_code, reason = "recvmsg and sendmsg take raw pointers; every other file denies unsafe code")]

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use socket2::SockAddr;

/// What the kernel says about one datagram, addresses as the kernel writes them (IPv4 on a dual-stack socket: mapped).
pub(super) struct Arrival {
    pub(super) len: usize,
    pub(super) source: Option<SocketAddr>,
    pub(super) destination: Option<IpAddr>,
    pub(super) truncated: bool,
}

/// Room for both kinds of packet information (72 bytes on a 64-bit machine) and a few small messages more.
const CONTROL_LEN: usize = 128;

/// Storage for control messages, aligned as `cmsghdr` has to be.
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

const _: () = assert!(align_of::<libc::cmsghdr>() <= align_of::<Control>());
const _: () = assert!(space_for::<libc::in_pktinfo>() <= CONTROL_LEN);
const _: () = assert!(space_for::<libc::in6_pktinfo>() <= CONTROL_LEN);

/// Receives one datagram into `buffer`.
pub(super) fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Arrival> {
    let mut control = Control([0; CONTROL_LEN]);
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut header = empty_header();
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;

    // SAFETY: on success the closure has let the kernel write an address of `*len` bytes into `name`, which is at most
    // the `*len` bytes of storage it was given; on failure `try_init` drops the storage unread.
    let (len, name) = unsafe {
        SockAddr::try_init(|name, name_len| {
            header.msg_name = name.cast();
            let received = retry(|| {
                // The kernel overwrites the three of them, so that each try needs them anew.
                header.msg_namelen = *name_len;
                header.msg_control = (&raw mut control).cast();
                header.msg_controllen = CONTROL_LEN as _;
                // SAFETY: every pointer in `header` names a live buffer of the length that stands beside it, and
                // nothing else refers to these buffers during the call.
                libc::recvmsg(fd.as_raw_fd(), &raw mut header, 0)
            })?;
            *name_len = header.msg_namelen;
            Ok(received)
        })?
    };
    Ok(Arrival {
        len,
        source: name.as_socket(),
        // SAFETY: `recvmsg` succeeded on `header` and cut no control message, and `control`, which it points to, is alive.
        destination: if header.msg_flags & libc::MSG_CTRUNC == 0 { unsafe { destination(&header) } } else { None },
        truncated: header.msg_flags & libc::MSG_TRUNC != 0,
    })
}

/// Sends one datagram, from the local address `from` where one is named; it has to be of the family of `to`.
pub(super) fn send(fd: BorrowedFd<'_>, payload: &[u8], to: SocketAddr, from: Option<IpAddr>) -> io::Result<usize> {
    let name = SockAddr::from(to);
    let mut control = Control([0; CONTROL_LEN]);
    let mut slice = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    let mut header = empty_header();
    header.msg_name = name.as_ptr().cast_mut().cast();
    header.msg_namelen = name.len();
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    match from {
        None => {}
        Some(IpAddr::V4(from)) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(from.octets()) },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            attach(&mut header, &mut control, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
        }
        Some(IpAddr::V6(from)) => {
            // A link-local source needs its interface; the kernel takes that from the scope of `to`.
            let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: from.octets() }, ipi6_ifindex: 0 };
            attach(&mut header, &mut control, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
        }
    }
    // SAFETY: every pointer in `header` is null with length zero or names a live buffer of the length that stands
    // beside it; sendmsg only reads them.
    retry(|| unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const header, 0) })
}

/// Switches path MTU discovery off: the network may fragment what the socket sends (`DF` is 0 in IPv4).
pub(super) fn let_fragment(fd: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    let (level, option, value) = if v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)
    };
    #[expect(clippy::cast_possible_truncation, reason = "the size of an integer")]
    // SAFETY: the option is an integer, and `value` is one that lives through the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn empty_header() -> libc::msghdr {
    // SAFETY: a C struct of pointers and integers, for which null and zero are values. It is not written as a literal
    // because musl has private padding in it.
    unsafe { mem::zeroed() }
}

/// The bytes that a control message of a `T` takes.
const fn space_for<T>() -> usize {
    // SAFETY: plain arithmetic; `T` is a struct of a few bytes.
    #[expect(clippy::cast_possible_truncation, reason = "a few bytes, and checked against CONTROL_LEN above")]
    unsafe {
        libc::CMSG_SPACE(size_of::<T>() as u32) as usize
    }
}

/// Makes `info` the only control message of `header`.
fn attach<T>(header: &mut libc::msghdr, control: &mut Control, level: libc::c_int, kind: libc::c_int, info: T) {
    const { assert!(space_for::<T>() <= CONTROL_LEN) };
    header.msg_control = (&raw mut *control).cast();
    header.msg_controllen = space_for::<T>() as _;
    // SAFETY: `msg_control` is aligned for `cmsghdr` and holds `space_for::<T>()` bytes, so that the first header is
    // there and its data part has room for a `T`, written without an assumption about its alignment.
    #[expect(clippy::cast_possible_truncation, reason = "the size of a struct of a few bytes")]
    unsafe {
        let message = libc::CMSG_FIRSTHDR(header);
        (*message).cmsg_level = level;
        (*message).cmsg_type = kind;
        (*message).cmsg_len = libc::CMSG_LEN(size_of::<T>() as u32) as _;
        ptr::write_unaligned(libc::CMSG_DATA(message).cast::<T>(), info);
    }
}

/// The address that the datagram was sent to. An IPv4 datagram on a dual-stack socket brings both kinds of message.
///
/// # Safety
///
/// `recvmsg` must have succeeded on `header` without `MSG_CTRUNC`, and its control buffer must be alive.
unsafe fn destination(header: &libc::msghdr) -> Option<IpAddr> {
    let mut found = None;
    // SAFETY: by the contract above `header` describes whole control messages that the kernel wrote; the two macros stay
    // within them. The level and type of a message say what its data is, which is copied out without an assumption about
    // its alignment.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            let data = libc::CMSG_DATA(message);
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = ptr::read_unaligned(data.cast::<libc::in_pktinfo>());
                    found = Some(IpAddr::V4(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes())));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = ptr::read_unaligned(data.cast::<libc::in6_pktinfo>());
                    found = Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)));
                }
                _ => {}
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    found
}

/// Repeats a system call that a signal interrupted; a negative result is the error in `errno`.
fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
