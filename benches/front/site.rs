//! The web site: it reads what a visitor sends first, and responds with so many bytes.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::load::Outcome;

/// A prime number, after which the bytes repeat, so that a part which is lost, doubled or exchanged shows.
const PERIOD: usize = 65_521;

/// The length of one write.
const PIECE: usize = 1 << 20;

/// A web site that runs until the process ends.
pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    length: Arc<AtomicU64>,
}

/// Writes the bytes of a response from a position on.
pub(crate) fn fill(at: u64, buffer: &mut [u8]) {
    let mut offset = usize::try_from(at % PERIOD as u64).unwrap_or_default();
    for byte in buffer {
        *byte = offset.to_le_bytes()[0] ^ offset.to_le_bytes()[1];
        offset = if offset + 1 == PERIOD { 0 } else { offset + 1 };
    }
}

impl Site {
    pub(crate) fn start() -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (address, length) = (listener.local_addr()?, Arc::new(AtomicU64::new(0)));
        let shared = Arc::clone(&length);
        // A piece can begin anywhere in the period.
        let mut content = vec![0; PERIOD + PIECE];
        fill(0, &mut content);
        let content: Arc<[u8]> = content.into();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (length, content) = (shared.load(Ordering::SeqCst), Arc::clone(&content));
                thread::spawn(move || respond(stream, length, &content));
            }
        });
        Ok(Self { address, length })
    }

    /// Sets the length of the next responses in bytes.
    pub(crate) fn respond_with(&self, length: u64) {
        self.length.store(length, Ordering::SeqCst);
    }
}

/// A visitor that goes early gets no more.
fn respond(mut stream: TcpStream, length: u64, content: &[u8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    if stream.read(&mut [0; 16 * 1024])? == 0 {
        return Ok(());
    }
    let mut at = 0;
    while at < length {
        let piece = usize::try_from(length - at).unwrap_or(PIECE).min(PIECE);
        let begin = usize::try_from(at % PERIOD as u64).unwrap_or_default();
        stream.write_all(&content[begin..begin + piece])?;
        at += piece as u64;
    }
    Ok(())
}
