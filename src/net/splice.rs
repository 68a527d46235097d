//! Moves data between two sockets: inside the kernel (`splice(2)`) through a pipe, or through a buffer.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::fcntl::{OFlag, SpliceFFlags, splice};
use nix::sys::socket::{MsgFlags, recv, send};
use nix::unistd::pipe2;

/// The most bytes that one call moves into a pipe. A pipe may hold less.
const MOST: usize = 1 << 20;

/// The size of a buffer in bytes.
const BUFFER: usize = 8 * 1024;

/// Carries data from one socket to another. Between two transfers it is empty.
#[derive(Debug)]
pub(crate) enum Carrier {
    /// The data stay in the kernel.
    Pipe(Pipe),
    /// The data are copied twice, but it needs no open file.
    Buffer(Buffer),
}

impl Carrier {
    /// Returns one that carries nothing.
    pub(crate) fn none() -> Self {
        Self::Buffer(Buffer { bytes: Box::default(), held: 0..0 })
    }

    /// Whether it holds nothing.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Pipe(pipe) => pipe.held == 0,
            Self::Buffer(buffer) => buffer.held.is_empty(),
        }
    }

    /// Takes data from a socket. It must be empty. Returns the number of bytes; 0 at the end of the data.
    ///
    /// # Errors
    /// `WouldBlock` if the socket has no data, and those of `splice` and `recv`.
    pub(crate) fn fill(&mut self, from: impl AsFd) -> io::Result<usize> {
        debug_assert!(self.is_empty(), "a full pipe would look like a socket without data");
        match self {
            Self::Pipe(pipe) => pipe.fill(from),
            Self::Buffer(buffer) => buffer.fill(from),
        }
    }

    /// Gives data to a socket. Returns the number of bytes.
    ///
    /// # Errors
    /// `WouldBlock` if the socket takes nothing at present, and those of `splice` and `send`.
    pub(crate) fn drain(&mut self, to: impl AsFd) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.drain(to),
            Self::Buffer(buffer) => buffer.drain(to),
        }
    }
}

/// A pipe.
#[derive(Debug)]
pub(crate) struct Pipe {
    end: OwnedFd,
    beginning: OwnedFd,
    /// The number of bytes in the pipe.
    held: usize,
}

/// That of the file that was opened last.
impl AsFd for Pipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }
}

impl Pipe {
    /// Creates an empty pipe.
    ///
    /// # Errors
    /// Those of `pipe2`, such as that the process has too many open files.
    pub(crate) fn new() -> io::Result<Self> {
        let (beginning, end) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        Ok(Self { end, beginning, held: 0 })
    }

    fn fill(&mut self, from: impl AsFd) -> io::Result<usize> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        self.held = splice(from, None, &self.end, None, MOST, flags)?;
        Ok(self.held)
    }

    fn drain(&mut self, to: impl AsFd) -> io::Result<usize> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        let given = splice(&self.beginning, None, to, None, self.held, flags)?;
        self.held = self.held.saturating_sub(given);
        Ok(given)
    }
}

/// A buffer of 8 KiB.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
    held: Range<usize>,
}

impl Default for Buffer {
    fn default() -> Self {
        Self { bytes: vec![0; BUFFER].into(), held: 0..0 }
    }
}

impl Buffer {
    fn fill(&mut self, from: impl AsFd) -> io::Result<usize> {
        let taken = recv(from.as_fd().as_raw_fd(), &mut self.bytes, MsgFlags::MSG_DONTWAIT)?;
        self.held = 0..taken;
        Ok(taken)
    }

    fn drain(&mut self, to: impl AsFd) -> io::Result<usize> {
        let bytes = self.bytes.get(self.held.clone()).unwrap_or_default();
        let given = send(to.as_fd().as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?;
        self.held.start += given;
        Ok(given)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_pipe_and_a_buffer_carry_the_same_data() {
        for mut carrier in [Carrier::Pipe(Pipe::new().unwrap()), Carrier::Buffer(Buffer::default())] {
            let [(mut source, from), (to, mut sink)] = [(); 2].map(|()| UnixStream::pair().unwrap());
            from.set_nonblocking(true).unwrap();
            to.set_nonblocking(true).unwrap();
            assert_eq!(carrier.fill(&from).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            let sent: Vec<u8> = (0..100_000).map(|at: u32| u8::try_from(at % 251).unwrap()).collect();
            source.write_all(&sent).unwrap();
            let mut received = Vec::new();
            while received.len() < sent.len() {
                let taken = carrier.fill(&from).unwrap();
                let mut part = vec![0; taken];
                let mut given = 0;
                while !carrier.is_empty() {
                    given += carrier.drain(&to).unwrap();
                }
                assert_eq!(given, taken);
                sink.read_exact(&mut part).unwrap();
                received.extend(part);
            }
            assert!(received == sent);
            // A sink that is full takes a part, and the rest stays.
            let mut held = 0;
            let full = loop {
                source.write_all(&[7; 4096]).unwrap();
                held += carrier.fill(&from).unwrap();
                while !carrier.is_empty() {
                    match carrier.drain(&to) {
                        Ok(given) => held -= given,
                        Err(_) => break,
                    }
                }
                if !carrier.is_empty() {
                    break held;
                }
            };
            assert!(full > 0 && !carrier.is_empty());
            drop(sink);
            assert_eq!(carrier.drain(&to).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        }
    }
}
