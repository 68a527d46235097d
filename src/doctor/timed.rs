//! A blocking connection with a deadline for all that is read and written.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::clock;

/// The shortest timeout: the kernel does not accept zero.
const SHORTEST: Duration = Duration::from_millis(1);

/// A connection whose reads and writes fail with `TimedOut` from the deadline on. A timeout of the socket would begin
/// again with each byte that a server sends.
#[derive(Debug)]
pub(super) struct TimedStream {
    stream: TcpStream,
    /// On the monotonic clock.
    end: Duration,
}

impl TimedStream {
    pub(super) fn new(stream: TcpStream, end: Duration) -> Self {
        Self { stream, end }
    }

    /// Sets the deadline, on the monotonic clock.
    pub(super) fn set_end(&mut self, end: Duration) {
        self.end = end;
    }

    pub(super) fn get(&self) -> &TcpStream {
        &self.stream
    }

    /// Returns the time that is left.
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.end.checked_sub(clock::monotonic()).filter(|left| !left.is_zero());
        left.map(|left| Some(left.max(SHORTEST))).ok_or_else(|| io::ErrorKind::TimedOut.into())
    }
}

impl Read for TimedStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for TimedStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
