//! A plain HTTP/1.1 client: one request per connection.
#![allow(dead_code, reason = "each test binary compiles this module and uses a part of it")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::support::TIMEOUT;

/// A stream whose reads time out.
pub(crate) trait Stream: Read + Write {}

impl<S: Read + Write> Stream for S {}

/// A connection.
pub(crate) struct Http(Box<dyn Stream>);

/// A response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Http {
    pub(crate) fn tcp(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self::over(stream)
    }

    pub(crate) fn unix(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self::over(stream)
    }

    pub(crate) fn over(stream: impl Stream + 'static) -> Self {
        Self(Box::new(stream))
    }

    pub(crate) fn get(self, path: &str) -> Response {
        self.request("GET", path, "", b"")
    }

    /// Sends a request with further headers, each with its line end.
    pub(crate) fn request(self, method: &str, path: &str, headers: &str, body: &[u8]) -> Response {
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
        );
        self.raw(&[head.as_bytes(), body].concat())
    }

    /// Like [`get`](Self::get). Returns `None` if the server does not respond with HTTP.
    pub(crate) fn try_get(self, path: &str) -> Option<Response> {
        self.exchange(format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").as_bytes()).ok()
    }

    /// Like [`raw`](Self::raw). Returns `None` if the server does not respond with HTTP.
    pub(crate) fn try_raw(self, request: &[u8]) -> Option<Response> {
        self.exchange(request).ok()
    }

    /// Sends bytes and reads the response.
    pub(crate) fn raw(self, request: &[u8]) -> Response {
        self.exchange(request).unwrap_or_else(|bytes| panic!("no response: {:?}", String::from_utf8_lossy(&bytes)))
    }

    /// Returns the response, or the bytes that are none.
    fn exchange(mut self, request: &[u8]) -> Result<Response, Vec<u8>> {
        // The server may respond, and close the connection, before it has read everything.
        let _ = self.0.write_all(request);
        let mut bytes = Vec::new();
        let _ = self.0.read_to_end(&mut bytes);
        Response::parse(&bytes).ok_or(bytes)
    }

    /// Sends the beginning of a request.
    pub(crate) fn begin(mut self, request: &[u8]) -> Self {
        self.0.write_all(request).unwrap();
        self
    }
}

impl Response {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers =
            lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        Some(Self { status, headers: headers.collect(), body: body.to_owned() })
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}
