//! The unsafe code of the crate: `recvmsg`, `sendmsg`, `recvmmsg` and `sendmmsg` with their control messages, socket
//! options, the registration of a descriptor with the runtime, the size of a terminal, the memory and the priority of
//! threads, the state of the clock, and in modules of its own the calls of `bpf` that the crate `aya` lacks and the
//! descriptors that the service manager passes.
//!
//! The control messages carry the destination of a datagram, its IP header fields, the length of its segments, and the
//! error of an earlier datagram.
//!
//! The safe wrappers of other crates allocate control buffers on the heap. These functions run once per packet, so
//! their control buffers are on the stack or reused.
#![allow(
    unsafe_code,
    reason = "these system calls take raw pointers; all files but this one and its modules deny unsafe code"
)]

use std::alloc::{self, Layout};
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::ip_fields::IpFields;

#[cfg(feature = "offload")]
pub(crate) mod bpf;
pub(super) mod descriptors;

/// The metadata of a received datagram. Addresses are not canonical: a dual-stack socket reports IPv4 as mapped.
pub(super) struct RecvMeta {
    pub(super) len: usize,
    pub(super) source: Option<SocketAddr>,
    pub(super) destination: Option<IpAddr>,
    pub(super) truncated: bool,
    pub(super) fields: IpFields,
    /// If the kernel merged datagrams, the length of each. The last may be shorter.
    pub(super) segment: Option<NonZeroUsize>,
    /// The number of datagrams that the socket had dropped when this one arrived, if any.
    pub(super) dropped: Option<u32>,
}

/// The parameters of a datagram to send.
#[derive(Clone, Copy)]
pub(super) struct Outgoing {
    pub(super) to: SocketAddr,
    /// The local address to send from, of the family of `to`.
    pub(super) from: Option<IpAddr>,
    pub(super) fields: IpFields,
    /// The kernel splits the payload into datagrams of this length in bytes.
    pub(super) segment: Option<u16>,
    /// A datagram to an IPv6 address must not be fragmented. IPv4 has only a socket option for that.
    pub(super) unfragmented: bool,
}

/// An entry of a socket's error queue.
pub(super) struct QueuedError {
    /// The destination of the datagram that failed.
    pub(super) destination: Option<SocketAddr>,
    pub(super) error: libc::sock_extended_err,
}

/// The size of a control buffer in bytes.
///
/// It holds both kinds of packet information (72 bytes on a 64-bit machine) and six small messages (24 bytes each).
const CONTROL_LEN: usize = 216;

/// A buffer for control messages, aligned for `cmsghdr`.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_LEN]);

impl Control {
    const EMPTY: Self = Self([0; CONTROL_LEN]);
}

const _: () = assert!(align_of::<libc::cmsghdr>() <= align_of::<Control>());
const _: () = assert!(
    space_for::<libc::in_pktinfo>() + space_for::<libc::in6_pktinfo>() + 6 * space_for::<libc::c_int>() <= CONTROL_LEN
);

/// Sends one datagram without waiting.
pub(super) fn send(fd: BorrowedFd<'_>, payload: &[u8], outgoing: &Outgoing) -> io::Result<usize> {
    let (mut name, mut control) = (Name::EMPTY, Control::EMPTY);
    let mut slice = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    let mut header = empty_header();
    header.msg_namelen = name.set(outgoing.to);
    header.msg_name = (&raw mut name).cast();
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    let mut writer = ControlWriter::new(&mut control);
    writer.write_all(outgoing);
    header.msg_controllen = writer.used as _;
    header.msg_control = (&raw mut control).cast();
    // SAFETY: every pointer in `header` points to a live buffer of at least the length given with it, and `sendmsg`
    // only reads them.
    retry(|| unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT) })
}

/// Sends one datagram without control messages and without waiting. It costs less than `sendmmsg` with one message.
pub(super) fn send_plain(fd: BorrowedFd<'_>, payload: &[u8], to: SocketAddr) -> io::Result<usize> {
    let mut name = Name::EMPTY;
    let length = name.set(to);
    // SAFETY: both pointers point to live buffers of at least the length given with them, and the kernel only reads
    // them.
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
        reset_header(&mut header);
        // SAFETY: every pointer in `header` points to a live buffer of the length given with it, and nothing else
        // refers to these buffers during the call. There is no buffer for the payload, which is discarded.
        unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, libc::MSG_ERRQUEUE) }
    })?;
    // SAFETY: `recvmsg` succeeded on `header`, whose control buffer is alive.
    let control = unsafe { read_control(&header) };
    Ok(control.error.map(|error| QueuedError { destination: name.get(header.msg_namelen), error }))
}

/// Slots into which one call receives many datagrams.
///
/// `headers` points into the other vectors, so none of them may grow or be replaced.
pub(super) struct Receiver {
    arena: Vec<u8>,
    stride: usize,
    offset: usize,
    names: Vec<Name>,
    _controls: Vec<Control>,
    /// Points into the arena during a call.
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl Receiver {
    /// Creates `slots` slots of `stride` bytes, each of which receives up to `len` bytes at `offset`.
    ///
    /// The system provides the memory zeroed, page by page as it is used.
    ///
    /// # Errors
    /// `ENOMEM` if the slots do not fit into the address space.
    ///
    /// # Panics
    /// If `offset + len` exceeds `stride`.
    pub(super) fn new(slots: usize, stride: usize, offset: usize, len: usize) -> io::Result<Self> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= stride), "the payload fits into its slot");
        let arena = zeroed(slots.saturating_mul(stride))?;
        let (mut names, mut controls) = (vec![Name::EMPTY; slots], vec![Control::EMPTY; slots]);
        // The pointers below are used only in system calls, and the vectors that they point into do not change: a
        // pointer from `as_mut_ptr` stays valid after later calls of `as_mut_ptr`. Pointers into the arena are made for
        // each call, because `arena_mut` returns mutable slices of it.
        let (name, control) = (names.as_mut_ptr(), controls.as_mut_ptr());
        let mut vectors = vec![libc::iovec { iov_base: ptr::null_mut(), iov_len: len }; slots];
        let vector = vectors.as_mut_ptr();
        let header = |slot| {
            let mut header = empty_header();
            header.msg_name = name.wrapping_add(slot).cast();
            header.msg_iov = vector.wrapping_add(slot);
            header.msg_iovlen = 1;
            header.msg_control = control.wrapping_add(slot).cast();
            reset_header(&mut header);
            libc::mmsghdr { msg_hdr: header, msg_len: 0 }
        };
        let headers = (0..slots).map(header).collect();
        Ok(Self { arena, stride, offset, names, _controls: controls, vectors, headers })
    }

    pub(super) fn arena(&self) -> &[u8] {
        &self.arena
    }

    pub(super) fn arena_mut(&mut self) -> &mut [u8] {
        &mut self.arena
    }

    /// Receives into at most `max` slots, starting with `first`, without waiting. Returns how many were filled.
    ///
    /// Calls `each` with the slot and the metadata of every datagram, in order.
    pub(super) fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        first: usize,
        max: usize,
        mut each: impl FnMut(usize, RecvMeta),
    ) -> io::Result<usize> {
        let headers = self.headers.get_mut(first..).unwrap_or_default();
        let wanted = libc::c_uint::try_from(max.min(headers.len())).unwrap_or(libc::c_uint::MAX);
        let (base, vector) = (self.arena.as_mut_ptr(), self.vectors.as_mut_ptr());
        for slot in first..first + wanted as usize {
            // SAFETY: each header has a vector and a slot of the arena.
            unsafe { (*vector.add(slot)).iov_base = base.add(slot * self.stride + self.offset).cast() };
        }
        let count = retry(|| {
            // SAFETY: there are `wanted` headers, whose pointers point to buffers of the length given with them. `self`
            // owns the buffers and is borrowed mutably, so that nothing else refers to them during the call.
            let count = unsafe {
                libc::recvmmsg(fd.as_raw_fd(), headers.as_mut_ptr(), wanted, libc::MSG_DONTWAIT as _, ptr::null_mut())
            };
            count as isize
        })?;
        for (slot, (message, name)) in
            headers.iter_mut().zip(self.names.get(first..).unwrap_or_default()).enumerate().take(count)
        {
            // SAFETY: `recvmmsg` filled the first `count` headers, whose buffers are alive.
            each(first + slot, unsafe { recv_meta(&message.msg_hdr, name, message.msg_len as usize) });
            reset_header(&mut message.msg_hdr);
        }
        Ok(count)
    }
}

/// The buffers for `sendmmsg`, whose memory is reused. The pointers in them are valid only during the call that set
/// them.
#[derive(Default)]
pub(super) struct Sender {
    names: Vec<Name>,
    controls: Vec<Control>,
    vectors: Vec<libc::iovec>,
    /// The index of the first vector of each message.
    starts: Vec<usize>,
    headers: Vec<libc::mmsghdr>,
}

/// The most messages that one `sendmmsg` accepts (`UIO_MAXIOV`).
const MAX_MESSAGES: usize = 1_024;

impl Sender {
    /// Sends `messages`, each consisting of pieces, in order and without waiting, until one fails.
    ///
    /// Returns how many were sent, or the error of the first message.
    pub(super) fn send<'a, P: Iterator<Item = &'a [u8]>>(
        &mut self,
        fd: BorrowedFd<'_>,
        messages: impl Iterator<Item = (Outgoing, P)>,
    ) -> io::Result<usize> {
        self.names.clear();
        self.vectors.clear();
        self.starts.clear();
        self.headers.clear();
        for (index, (outgoing, pieces)) in messages.take(MAX_MESSAGES).enumerate() {
            let mut header = empty_header();
            let mut name = Name::EMPTY;
            header.msg_namelen = name.set(outgoing.to);
            self.names.push(name);
            if index == self.controls.len() {
                self.controls.push(Control::EMPTY);
            }
            if let Some(control) = self.controls.get_mut(index) {
                let mut writer = ControlWriter::new(control);
                writer.write_all(&outgoing);
                header.msg_controllen = writer.used as _;
            }
            let start = self.vectors.len();
            self.starts.push(start);
            self.vectors.extend(
                pieces.map(|piece| libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() }),
            );
            header.msg_iovlen = (self.vectors.len() - start) as _;
            self.headers.push(libc::mmsghdr { msg_hdr: header, msg_len: 0 });
        }
        // The pointers are set only after the vectors have stopped growing.
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
            // SAFETY: there are `wanted` headers. Their names, control messages and vectors are in `self`, to which
            // nothing else refers, and the pieces that the vectors point to outlive this call. The kernel only reads
            // these, and writes `msg_len` in the headers.
            let count =
                unsafe { libc::sendmmsg(fd.as_raw_fd(), self.headers.as_mut_ptr(), wanted, libc::MSG_DONTWAIT as _) };
            count as isize
        })
    }
}

/// Registers a descriptor with the runtime for reading only.
pub(super) fn watch_reading(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `AsyncFd` owns the descriptor, which stays open and unchanged until the `AsyncFd` is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Returns the number of datagrams that the kernel has dropped at a socket; `None` if it does not report the number.
pub(super) fn dropped(fd: BorrowedFd<'_>) -> Option<u32> {
    // `SK_MEMINFO_DROPS` of linux/sock_diag.h, the last of nine values.
    const DROPS: usize = 8;
    let mut values = [0_u32; DROPS + 1];
    #[expect(clippy::cast_possible_truncation, reason = "the size of nine integers")]
    let mut length = size_of_val(&values) as libc::socklen_t;
    // SAFETY: both pointers point to live values, and `length` is the size of `values`, which every bit pattern fits.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    (result == 0 && length as usize == size_of_val(&values)).then_some(values[DROPS])
}

/// Sets a socket option whose value is an integer.
pub(super) fn set_option(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    #[expect(clippy::cast_possible_truncation, reason = "the size of an integer")]
    // SAFETY: `value` outlives the call, and its size is passed along.
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

/// A socket address of either family in the layout of the kernel.
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
    // SAFETY: `msghdr` consists of pointers and integers, for which null and zero are valid. A literal is not possible,
    // because the struct has private padding with musl.
    unsafe { mem::zeroed() }
}

/// Sets the sizes of the name and control buffers, which the kernel overwrites with the lengths that it used.
#[expect(clippy::cast_possible_truncation, reason = "the size of a small union")]
fn reset_header(header: &mut libc::msghdr) {
    header.msg_namelen = size_of::<Name>() as _;
    header.msg_controllen = CONTROL_LEN as _;
    header.msg_flags = 0;
}

/// Reads the metadata that the kernel wrote about a datagram.
///
/// # Safety
///
/// `recvmsg` must have succeeded on `header`, and its control buffer must be alive.
unsafe fn recv_meta(header: &libc::msghdr, name: &Name, len: usize) -> RecvMeta {
    // SAFETY: the contract is the same.
    let control = unsafe { read_control(header) };
    RecvMeta {
        len,
        source: name.get(header.msg_namelen),
        destination: control.destination,
        truncated: header.msg_flags & libc::MSG_TRUNC != 0,
        fields: control.fields,
        segment: control.segment,
        dropped: control.dropped,
    }
}

/// Returns the number of bytes that a control message with a `T` occupies.
const fn space_for<T>() -> usize {
    // SAFETY: plain arithmetic; `T` is a struct of a few bytes.
    #[expect(clippy::cast_possible_truncation, reason = "a few bytes, and checked against CONTROL_LEN above")]
    unsafe {
        libc::CMSG_SPACE(size_of::<T>() as u32) as usize
    }
}

/// Writes consecutive control messages.
struct ControlWriter<'a> {
    control: &'a mut Control,
    used: usize,
}

impl<'a> ControlWriter<'a> {
    fn new(control: &'a mut Control) -> Self {
        Self { control, used: 0 }
    }

    /// Writes the source address.
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
                // A link-local source needs an interface, which the kernel takes from the scope id of the destination.
                let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: from.octets() }, ipi6_ifindex: 0 };
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
        }
    }

    /// Writes the fields that differ from the default of the kernel.
    fn fields(&mut self, fields: IpFields, v6: bool) {
        match (fields.tos, v6) {
            (0, _) => {}
            (tos, false) => self.push(libc::IPPROTO_IP, libc::IP_TOS, libc::c_int::from(tos)),
            (tos, true) => self.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, libc::c_int::from(tos)),
        }
        match (fields.hop_limit, v6) {
            (None, _) => {}
            (Some(limit), false) => self.push(libc::IPPROTO_IP, libc::IP_TTL, libc::c_int::from(limit)),
            (Some(limit), true) => self.push(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, libc::c_int::from(limit)),
        }
    }

    /// Writes every control message that a datagram needs.
    fn write_all(&mut self, outgoing: &Outgoing) {
        self.from(outgoing.from);
        self.fields(outgoing.fields, outgoing.to.is_ipv6());
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
        debug_assert!(end <= CONTROL_LEN, "the buffer holds every control message that a datagram can have");
        if end > CONTROL_LEN {
            return;
        }
        #[expect(clippy::cast_possible_truncation, reason = "the size of a struct of a few bytes")]
        // SAFETY: `used` is a sum of `CMSG_SPACE`s, so that the message is aligned for `cmsghdr`. The
        // `space_for::<T>()` bytes from `used` on are within `control`, and hold a header followed by a `T`.
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

/// The contents of the control messages of a datagram.
#[derive(Default)]
struct ControlMessages {
    destination: Option<IpAddr>,
    fields: IpFields,
    segment: Option<NonZeroUsize>,
    dropped: Option<u32>,
    error: Option<libc::sock_extended_err>,
}

/// Reads the control messages of a datagram. An IPv4 datagram on a dual-stack socket has both kinds of packet
/// information.
///
/// # Safety
///
/// `recvmsg` must have succeeded on `header`, and its control buffer must be alive.
unsafe fn read_control(header: &libc::msghdr) -> ControlMessages {
    let mut control = ControlMessages::default();
    // The last message may be incomplete.
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return control;
    }
    // SAFETY: by the contract above, `header` describes complete control messages that the kernel wrote, and the two
    // macros stay within them. The level and type of a message determine its data, which is copied without an
    // assumption about its alignment.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            let data = libc::CMSG_DATA(message);
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = ptr::read_unaligned(data.cast::<libc::in_pktinfo>());
                    control.destination = Some(IpAddr::V4(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes())));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = ptr::read_unaligned(data.cast::<libc::in6_pktinfo>());
                    control.destination = Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)));
                }
                (libc::IPPROTO_IP, libc::IP_TOS) => control.fields.tos = ptr::read(data),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    control.fields.tos = ptr::read_unaligned(data.cast::<libc::c_int>()).to_le_bytes()[0];
                }
                (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    let limit = ptr::read_unaligned(data.cast::<libc::c_int>()).to_le_bytes()[0];
                    control.fields.hop_limit = Some(limit);
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let segment = usize::try_from(ptr::read_unaligned(data.cast::<libc::c_int>()));
                    control.segment = segment.ok().and_then(NonZeroUsize::new);
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => {
                    control.dropped = Some(ptr::read_unaligned(data.cast::<u32>()));
                }
                (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) => {
                    control.error = Some(ptr::read_unaligned(data.cast::<libc::sock_extended_err>()));
                }
                _ => {}
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    control
}

/// Lets all threads allocate from one arena. glibc otherwise reserves at least 64 MiB of address space for each thread.
pub(super) fn share_arena() {
    // If it fails, only the address space that glibc reserves is larger.
    // SAFETY: the function has no preconditions.
    #[cfg(target_env = "gnu")]
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Raises the nice value of the calling thread, so that it has about a tenth of the weight of the others.
pub(super) fn lower_priority() -> io::Result<()> {
    const MORE: libc::c_int = 10;
    // The function returns the new value, which may be -1.
    Errno::clear();
    // SAFETY: the function has no preconditions. On Linux, it concerns the calling thread only.
    match unsafe { libc::nice(MORE) } {
        -1 if Errno::last_raw() != 0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Returns the columns and the rows of a terminal; `None` if the descriptor is none.
pub(super) fn window_size(terminal: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes a `winsize`, and `size` lives until the call returns.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0).then_some((size.ws_col, size.ws_row))
}

/// Returns `size` zero bytes, which the system provides page by page as they are used. Unlike `vec!`, it does not abort
/// the process if the address space is too small.
fn zeroed(size: usize) -> io::Result<Vec<u8>> {
    let no_memory = || io::Error::from_raw_os_error(libc::ENOMEM);
    let layout = Layout::array::<u8>(size).map_err(|_| no_memory())?;
    if size == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the size of `layout` is not 0.
    let start = unsafe { alloc::alloc_zeroed(layout) };
    if start.is_null() {
        return Err(no_memory());
    }
    // SAFETY: the global allocator, which a vector uses, returned `start` for `size` bytes with the alignment of `u8`,
    // and all of them are initialized.
    Ok(unsafe { Vec::from_raw_parts(start, size, size) })
}

/// Repeats a system call until no signal interrupts it. A negative result means that the error is in `errno`.
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

/// Returns whether the kernel counts the clock as synchronized.
pub(super) fn is_clock_synchronized() -> io::Result<bool> {
    // SAFETY: all fields are integers, for which zero is valid; without modes, the kernel only writes.
    let state = unsafe {
        let mut state: libc::timex = mem::zeroed();
        if libc::adjtimex(&raw mut state) == -1 {
            return Err(io::Error::last_os_error());
        }
        state
    };
    Ok(state.status & libc::STA_UNSYNC == 0)
}
