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
    /// DSCP and ECN: the second byte of the IPv4 header, the traffic class of IPv6.
    pub(super) tos: u8,
}

/// Room for both kinds of packet information (72 bytes on a 64-bit machine) and five small messages (24 bytes each).
const CONTROL_LEN: usize = 192;

/// Storage for control messages, aligned as `cmsghdr` has to be.
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

const _: () = assert!(align_of::<libc::cmsghdr>() <= align_of::<Control>());
const _: () = assert!(
    space_for::<libc::in_pktinfo>() + space_for::<libc::in6_pktinfo>() + 5 * space_for::<libc::c_int>() <= CONTROL_LEN
);

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
    // SAFETY: `recvmsg` succeeded on `header`, and `control`, which it points to, is alive.
    let noted = unsafe { read_control(&header) };
    Ok(Arrival {
        len,
        source: name.as_socket(),
        destination: noted.destination,
        truncated: header.msg_flags & libc::MSG_TRUNC != 0,
        tos: noted.tos,
    })
}

/// Sends one datagram, from the local address `from` where one is named; it has to be of the family of `to`.
pub(super) fn send(
    fd: BorrowedFd<'_>,
    payload: &[u8],
    to: SocketAddr,
    from: Option<IpAddr>,
    tos: u8,
) -> io::Result<usize> {
    let name = SockAddr::from(to);
    let mut control = Control([0; CONTROL_LEN]);
    let mut slice = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    let mut header = empty_header();
    header.msg_name = name.as_ptr().cast_mut().cast();
    header.msg_namelen = name.len();
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    let mut notes = ControlWriter::new(&mut control);
    notes.from(from);
    notes.tos(tos, to.is_ipv6());
    notes.attach(&mut header);
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

/// Writes control messages one behind the other.
struct ControlWriter<'a> {
    control: &'a mut Control,
    used: usize,
}

impl<'a> ControlWriter<'a> {
    fn new(control: &'a mut Control) -> Self {
        Self { control, used: 0 }
    }

    /// The local address to send from.
    fn from(&mut self, from: Option<IpAddr>) {
        match from {
            None => {}
            Some(IpAddr::V4(from)) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(from.octets()) },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            Some(IpAddr::V6(from)) => {
                // A link-local source needs its interface; the kernel takes that from the scope of the destination.
                let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: from.octets() }, ipi6_ifindex: 0 };
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
        }
    }

    /// DSCP and ECN of a datagram to an address of this family; 0 is what the kernel sends anyway.
    fn tos(&mut self, tos: u8, v6: bool) {
        match (tos, v6) {
            (0, _) => {}
            (_, false) => self.push(libc::IPPROTO_IP, libc::IP_TOS, libc::c_int::from(tos)),
            (_, true) => self.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, libc::c_int::from(tos)),
        }
    }

    fn push<T: Copy>(&mut self, level: libc::c_int, kind: libc::c_int, info: T) {
        const { assert!(align_of::<T>() <= align_of::<Control>()) };
        let end = self.used + space_for::<T>();
        debug_assert!(end <= CONTROL_LEN, "there is room for every message that a datagram may have");
        if end > CONTROL_LEN {
            return;
        }
        #[expect(clippy::cast_possible_truncation, reason = "the size of a struct of a few bytes")]
        // SAFETY: `used` is a sum of `CMSG_SPACE`s, so that the place is aligned for `cmsghdr`, and `space_for::<T>()`
        // bytes from there on are within `control`: a header and, behind it, a `T`.
        unsafe {
            let message = (&raw mut *self.control).cast::<u8>().add(self.used).cast::<libc::cmsghdr>();
            (*message).cmsg_level = level;
            (*message).cmsg_type = kind;
            (*message).cmsg_len = libc::CMSG_LEN(size_of::<T>() as u32) as _;
            ptr::write_unaligned(libc::CMSG_DATA(message).cast::<T>(), info);
        }
        self.used = end;
    }

    fn attach(self, header: &mut libc::msghdr) {
        if self.used > 0 {
            header.msg_control = (&raw mut *self.control).cast();
            header.msg_controllen = self.used as _;
        }
    }
}

/// What control messages say about a datagram.
#[derive(Default)]
struct Noted {
    destination: Option<IpAddr>,
    tos: u8,
}

/// Reads the control messages of a datagram. An IPv4 datagram on a dual-stack socket brings both kinds of destination.
///
/// # Safety
///
/// `recvmsg` must have succeeded on `header`, and its control buffer must be alive.
unsafe fn read_control(header: &libc::msghdr) -> Noted {
    let mut noted = Noted::default();
    // The last message may have been cut.
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return noted;
    }
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
                    noted.destination = Some(IpAddr::V4(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes())));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = ptr::read_unaligned(data.cast::<libc::in6_pktinfo>());
                    noted.destination = Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)));
                }
                (libc::IPPROTO_IP, libc::IP_TOS) => noted.tos = ptr::read(data),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    noted.tos = ptr::read_unaligned(data.cast::<libc::c_int>()).to_le_bytes()[0];
                }
                _ => {}
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    noted
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
