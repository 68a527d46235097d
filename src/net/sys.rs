//! The unsafe code of the crate: `recvmsg`, `sendmsg` and their plural forms, with the control messages that say where a
//! datagram was sent to, how it is marked, how long its segments are and why an earlier one was not delivered. And what
//! the runtime calls unsafe: to watch a descriptor.
//!
//! The safe wrappers of other crates allocate their control buffers on the heap; here they live on the stack or are used
//! again, because these functions run once per packet.
#![allow(unsafe_code, reason = "these system calls take raw pointers; every other file denies unsafe code")]

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What the kernel says about one datagram, addresses as the kernel writes them (IPv4 on a dual-stack socket: mapped).
pub(super) struct Arrival {
    pub(super) len: usize,
    pub(super) source: Option<SocketAddr>,
    pub(super) destination: Option<IpAddr>,
    pub(super) truncated: bool,
    /// DSCP and ECN: the second byte of the IPv4 header, the traffic class of IPv6.
    pub(super) tos: u8,
    /// How long the datagrams are that the kernel has merged into this one; the last may be shorter.
    pub(super) segment: Option<NonZeroUsize>,
    /// How many datagrams the socket had dropped when this one arrived, if any.
    pub(super) dropped: Option<u32>,
}

/// Where and how a datagram is to be sent.
#[derive(Clone, Copy)]
pub(super) struct Outgoing {
    pub(super) to: SocketAddr,
    /// The local address to send from, of the family of `to`.
    pub(super) from: Option<IpAddr>,
    pub(super) tos: u8,
    /// Cut what is sent into datagrams of this many bytes.
    pub(super) segment: Option<u16>,
    /// Not to be fragmented if the destination is an IPv6 address; IPv4 has only an option of the socket for that.
    pub(super) unfragmented: bool,
}

/// An entry of a socket's error queue.
pub(super) struct QueuedError {
    /// Where the datagram that failed was sent to.
    pub(super) destination: Option<SocketAddr>,
    pub(super) error: libc::sock_extended_err,
}

/// Room for both kinds of packet information (72 bytes on a 64-bit machine) and five small messages (24 bytes each).
const CONTROL_LEN: usize = 192;

/// Storage for control messages, aligned as `cmsghdr` has to be.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_LEN]);

impl Control {
    const EMPTY: Self = Self([0; CONTROL_LEN]);
}

const _: () = assert!(align_of::<libc::cmsghdr>() <= align_of::<Control>());
const _: () = assert!(
    space_for::<libc::in_pktinfo>() + space_for::<libc::in6_pktinfo>() + 5 * space_for::<libc::c_int>() <= CONTROL_LEN
);

/// Receives one datagram into `buffer`.
pub(super) fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Arrival> {
    let (mut name, mut control) = (Name::EMPTY, Control::EMPTY);
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut header = empty_header();
    header.msg_name = (&raw mut name).cast();
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    let len = retry(|| {
        make_room(&mut header);
        // SAFETY: every pointer in `header` names a live buffer of the length that stands beside it, and nothing else
        // refers to these buffers during the call.
        unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, 0) }
    })?;
    // SAFETY: `recvmsg` succeeded on `header`, whose buffers are alive.
    Ok(unsafe { arrival(&header, &name, len) })
}

/// Sends one datagram.
pub(super) fn send(fd: BorrowedFd<'_>, payload: &[u8], outgoing: &Outgoing) -> io::Result<usize> {
    let (mut name, mut control) = (Name::EMPTY, Control::EMPTY);
    let mut slice = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    let mut header = empty_header();
    header.msg_namelen = name.set(outgoing.to);
    header.msg_name = (&raw mut name).cast();
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    let mut notes = ControlWriter::new(&mut control);
    notes.all(outgoing);
    header.msg_controllen = notes.used as _;
    header.msg_control = (&raw mut control).cast();
    // SAFETY: every pointer in `header` names a live buffer of at least the length that stands beside it; sendmsg only
    // reads them.
    retry(|| unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const header, 0) })
}

/// Sends one datagram that needs nothing but its destination, without waiting: what `sendmmsg` does for a single one, for less.
pub(super) fn send_plain(fd: BorrowedFd<'_>, payload: &[u8], to: SocketAddr) -> io::Result<usize> {
    let mut name = Name::EMPTY;
    let length = name.set(to);
    // SAFETY: both pointers name live buffers of at least the length that stands beside them, which the kernel only reads.
    retry(|| unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            payload.as_ptr().cast(),
            payload.len(),
            libc::MSG_DONTWAIT,
            (&raw const name).cast(),
            length,
        )
    })
}

/// Takes one entry from the error queue.
pub(super) fn receive_error(fd: BorrowedFd<'_>) -> io::Result<Option<QueuedError>> {
    let (mut name, mut control) = (Name::EMPTY, Control::EMPTY);
    let mut header = empty_header();
    header.msg_name = (&raw mut name).cast();
    header.msg_control = (&raw mut control).cast();
    retry(|| {
        make_room(&mut header);
        // SAFETY: as in `receive`; there is no room for the payload, which is cut.
        unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, libc::MSG_ERRQUEUE) }
    })?;
    // SAFETY: `recvmsg` succeeded on `header`, whose control buffer is alive.
    let noted = unsafe { read_control(&header) };
    Ok(noted.error.map(|error| QueuedError { destination: name.get(header.msg_namelen), error }))
}

/// Slots for datagrams to be received into, one call for many.
pub(super) struct Receiver {
    /// Never grows and is never replaced, as none of the others is: `headers` points into them.
    arena: Vec<u8>,
    stride: usize,
    offset: usize,
    names: Vec<Name>,
    _controls: Vec<Control>,
    /// Points into the arena, during a call.
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl Receiver {
    /// `slots` slots of `stride` bytes, of which `len` from `offset` on are received into. The memory comes zeroed from
    /// the system, page by page as it is used.
    ///
    /// # Panics
    /// If the room does not fit into its slot, or the slots into memory.
    pub(super) fn new(slots: usize, stride: usize, offset: usize, len: usize) -> Self {
        assert!(offset.checked_add(len).is_some_and(|end| end <= stride), "the room is within its slot");
        let size = slots.checked_mul(stride).expect("the arena fits into memory");
        let (arena, mut names, mut controls) = (vec![0; size], vec![Name::EMPTY; slots], vec![Control::EMPTY; slots]);
        // None of the pointers below are used before a system call, and the vectors that they point into stay as they
        // are: `as_mut_ptr` promises that its pointer remains valid beside later ones. Into the arena, of which mutable
        // slices are given out, pointers are made for each call.
        let (name, control) = (names.as_mut_ptr(), controls.as_mut_ptr());
        let mut vectors = vec![libc::iovec { iov_base: ptr::null_mut(), iov_len: len }; slots];
        let vector = vectors.as_mut_ptr();
        let header = |slot| {
            let mut header = empty_header();
            header.msg_name = name.wrapping_add(slot).cast();
            header.msg_iov = vector.wrapping_add(slot);
            header.msg_iovlen = 1;
            header.msg_control = control.wrapping_add(slot).cast();
            make_room(&mut header);
            libc::mmsghdr { msg_hdr: header, msg_len: 0 }
        };
        let headers = (0..slots).map(header).collect();
        Self { arena, stride, offset, names, _controls: controls, vectors, headers }
    }

    pub(super) fn arena(&self) -> &[u8] {
        &self.arena
    }

    pub(super) fn arena_mut(&mut self) -> &mut [u8] {
        &mut self.arena
    }

    /// Receives into the slots from `first` on, into `max` of them at most, without waiting. `each` is told of every
    /// datagram and its slot, in order.
    pub(super) fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        first: usize,
        max: usize,
        mut each: impl FnMut(usize, Arrival),
    ) -> io::Result<usize> {
        let headers = self.headers.get_mut(first..).unwrap_or_default();
        let wanted = libc::c_uint::try_from(max.min(headers.len())).unwrap_or(libc::c_uint::MAX);
        let (base, vector) = (self.arena.as_mut_ptr(), self.vectors.as_mut_ptr());
        for slot in first..first + wanted as usize {
            // SAFETY: there is a vector and a slot of the arena for each header.
            unsafe { (*vector.add(slot)).iov_base = base.add(slot * self.stride + self.offset).cast() };
        }
        let count = retry(|| {
            // SAFETY: there are `wanted` headers, whose pointers name buffers of the length that stands beside them.
            // `self` owns these and is borrowed mutably, so that nothing else refers to them during the call.
            let count = unsafe {
                libc::recvmmsg(fd.as_raw_fd(), headers.as_mut_ptr(), wanted, libc::MSG_DONTWAIT as _, ptr::null_mut())
            };
            count as isize
        })?;
        for (slot, (message, name)) in
            headers.iter_mut().zip(self.names.get(first..).unwrap_or_default()).enumerate().take(count)
        {
            // SAFETY: `recvmmsg` filled the first `count` headers, whose buffers are alive.
            each(first + slot, unsafe { arrival(&message.msg_hdr, name, message.msg_len as usize) });
            make_room(&mut message.msg_hdr);
        }
        Ok(count)
    }
}

/// What `sendmmsg` is given, kept so that its memory is used again. The pointers in it are of the call that made them.
#[derive(Default)]
pub(super) struct Sender {
    names: Vec<Name>,
    controls: Vec<Control>,
    vectors: Vec<libc::iovec>,
    /// For each message, where its vectors begin.
    starts: Vec<usize>,
    headers: Vec<libc::mmsghdr>,
}

/// The most messages that one `sendmmsg` takes (`UIO_MAXIOV`).
const MOST_MESSAGES: usize = 1_024;

impl Sender {
    /// Sends `messages`, each in pieces, in order and without waiting, until one fails. Returns how many were sent, or
    /// the error of the first.
    pub(super) fn send<'a, P: Iterator<Item = &'a [u8]>>(
        &mut self,
        fd: BorrowedFd<'_>,
        messages: impl Iterator<Item = (Outgoing, P)>,
    ) -> io::Result<usize> {
        self.names.clear();
        self.vectors.clear();
        self.starts.clear();
        self.headers.clear();
        for (index, (outgoing, pieces)) in messages.take(MOST_MESSAGES).enumerate() {
            let mut header = empty_header();
            let mut name = Name::EMPTY;
            header.msg_namelen = name.set(outgoing.to);
            self.names.push(name);
            if index == self.controls.len() {
                self.controls.push(Control::EMPTY);
            }
            if let Some(control) = self.controls.get_mut(index) {
                let mut notes = ControlWriter::new(control);
                notes.all(&outgoing);
                header.msg_controllen = notes.used as _;
            }
            let start = self.vectors.len();
            self.starts.push(start);
            self.vectors.extend(
                pieces.map(|piece| libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() }),
            );
            header.msg_iovlen = (self.vectors.len() - start) as _;
            self.headers.push(libc::mmsghdr { msg_hdr: header, msg_len: 0 });
        }
        // Only here have the vectors stopped growing and moving.
        let (name, control) = (self.names.as_mut_ptr(), self.controls.as_mut_ptr());
        let vector = self.vectors.as_mut_ptr();
        for (index, (message, start)) in self.headers.iter_mut().zip(&self.starts).enumerate() {
            let header = &mut message.msg_hdr;
            header.msg_name = name.wrapping_add(index).cast();
            header.msg_control = control.wrapping_add(index).cast();
            header.msg_iov = vector.wrapping_add(*start);
        }
        let wanted = libc::c_uint::try_from(self.headers.len()).unwrap_or(libc::c_uint::MAX);
        retry(|| {
            // SAFETY: there are `wanted` headers. Their names, control messages and vectors are in `self`, which nothing
            // else refers to, and the pieces that the vectors name outlive this call; the kernel only reads them. It
            // writes `msg_len` in the headers.
            let count =
                unsafe { libc::sendmmsg(fd.as_raw_fd(), self.headers.as_mut_ptr(), wanted, libc::MSG_DONTWAIT as _) };
            count as isize
        })
    }
}

/// Has the runtime watch a descriptor for reading alone.
pub(super) fn watch_reading(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `AsyncFd` owns the descriptor, which is open and stays the same as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Sets an option of a socket that is an integer.
pub(super) fn set_option(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    #[expect(clippy::cast_possible_truncation, reason = "the size of an integer")]
    // SAFETY: `value` lives through the call, and its size is what it is said to be.
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

/// An address of either family as the kernel has it.
#[derive(Clone, Copy)]
#[repr(C)]
union Name {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Name {
    const EMPTY: Self = Self {
        v6: libc::sockaddr_in6 {
            sin6_family: 0,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
            sin6_scope_id: 0,
        },
    };

    /// Writes an address and returns its length in bytes.
    #[expect(clippy::cast_possible_truncation, reason = "AF_INET, AF_INET6 and the sizes of two small structs")]
    fn set(&mut self, addr: SocketAddr) -> libc::socklen_t {
        match addr {
            SocketAddr::V4(addr) => {
                self.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as _,
                    sin_port: addr.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(addr.ip().octets()) },
                    sin_zero: [0; 8],
                };
                size_of::<libc::sockaddr_in>() as _
            }
            SocketAddr::V6(addr) => {
                self.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as _,
                    sin6_port: addr.port().to_be(),
                    sin6_flowinfo: addr.flowinfo().to_be(),
                    sin6_addr: libc::in6_addr { s6_addr: addr.ip().octets() },
                    sin6_scope_id: addr.scope_id(),
                };
                size_of::<libc::sockaddr_in6>() as _
            }
        }
    }

    /// Reads the address of `len` bytes that the kernel wrote.
    fn get(&self, len: libc::socklen_t) -> Option<SocketAddr> {
        // SAFETY: both structs are integers and nothing else, and every byte of the union is initialised: it starts as
        // `EMPTY`, and neither the kernel nor `set` makes a byte uninitialised.
        let (v4, v6) = unsafe { (self.v4, self.v6) };
        match libc::c_int::from(v4.sin_family) {
            libc::AF_INET if len as usize >= size_of_val(&v4) => {
                let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 if len as usize >= size_of_val(&v6) => {
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                let flow = u32::from_be(v6.sin6_flowinfo);
                Some(SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), flow, v6.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

fn empty_header() -> libc::msghdr {
    // SAFETY: a C struct of pointers and integers, for which null and zero are values. It is not written as a literal
    // because musl has private padding in it.
    unsafe { mem::zeroed() }
}

/// Says how much room for a name and for control messages there is, which the kernel overwrites with what it used.
#[expect(clippy::cast_possible_truncation, reason = "the size of a small union")]
fn make_room(header: &mut libc::msghdr) {
    header.msg_namelen = size_of::<Name>() as _;
    header.msg_controllen = CONTROL_LEN as _;
    header.msg_flags = 0;
}

/// Reads what the kernel wrote about a datagram.
///
/// # Safety
///
/// `recvmsg` must have succeeded on `header`, and its control buffer must be alive.
unsafe fn arrival(header: &libc::msghdr, name: &Name, len: usize) -> Arrival {
    // SAFETY: the contract is the same.
    let noted = unsafe { read_control(header) };
    Arrival {
        len,
        source: name.get(header.msg_namelen),
        destination: noted.destination,
        truncated: header.msg_flags & libc::MSG_TRUNC != 0,
        tos: noted.tos,
        segment: noted.segment,
        dropped: noted.dropped,
    }
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

    /// Everything that a datagram needs besides its destination.
    fn all(&mut self, outgoing: &Outgoing) {
        self.from(outgoing.from);
        self.tos(outgoing.tos, outgoing.to.is_ipv6());
        if let Some(segment) = outgoing.segment {
            self.push(libc::SOL_UDP, libc::UDP_SEGMENT, segment);
        }
        if outgoing.unfragmented && outgoing.to.is_ipv6() {
            self.push(libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1 as libc::c_int);
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
}

/// What control messages say about a datagram.
#[derive(Default)]
struct Noted {
    destination: Option<IpAddr>,
    tos: u8,
    segment: Option<NonZeroUsize>,
    dropped: Option<u32>,
    error: Option<libc::sock_extended_err>,
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
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let segment = usize::try_from(ptr::read_unaligned(data.cast::<libc::c_int>()));
                    noted.segment = segment.ok().and_then(NonZeroUsize::new);
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => {
                    noted.dropped = Some(ptr::read_unaligned(data.cast::<u32>()));
                }
                (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) => {
                    noted.error = Some(ptr::read_unaligned(data.cast::<libc::sock_extended_err>()));
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
