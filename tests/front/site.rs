//! A web site behind a front: it responds to each connection with what it has received.

use std::io::{Read as _, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

/// What a web site says before it repeats what it has received.
pub(crate) const GREETING: &[u8] = b"the web site: ";

/// A web site that runs until the process ends.
pub(crate) struct Site {
    address: SocketAddr,
}

impl Site {
    /// Starts a site that sends the greeting and all that it receives, to the end of both.
    pub(crate) fn echo() -> Self {
        Self::start("127.0.0.1:0", |mut stream| {
            stream.write_all(GREETING)?;
            let mut buffer = vec![0; 64 * 1024];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    read => stream.write_all(&buffer[..read])?,
                }
            }
        })
    }

    /// Starts a site that serves each connection on a thread of its own.
    pub(crate) fn start(
        address: &str,
        serve: impl Fn(std::net::TcpStream) -> std::io::Result<()> + Clone + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, serve) = (stream.unwrap(), serve.clone());
                // A visitor may leave at any time.
                thread::Builder::new().stack_size(256 * 1024).spawn(move || serve(stream)).unwrap();
            }
        });
        Self { address }
    }

    /// Starts an echo at a Unix socket.
    pub(crate) fn at_path(path: &Path) {
        let listener = UnixListener::bind(path).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                stream.write_all(GREETING).unwrap();
                let mut all = Vec::new();
                stream.read_to_end(&mut all).unwrap();
                stream.write_all(&all).unwrap();
            }
        });
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}
