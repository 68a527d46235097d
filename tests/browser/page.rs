//! Serves page.html, and other pages.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

const PAGE: &str = include_str!("page.html");

/// What is sent for a request.
pub(crate) struct Resource {
    /// The beginning of the request: method, path and a blank.
    pub(crate) request: &'static str,
    /// The Content-Type.
    pub(crate) kind: &'static str,
    pub(crate) body: String,
}

/// Serves page.html until the test process ends.
pub(crate) fn serve_page() -> SocketAddr {
    serve(vec![Resource { request: "GET / ", kind: "text/html", body: PAGE.to_owned() }])
}

/// Serves resources until the test process ends. 127.0.0.1 is a secure context, which `crypto.subtle` requires.
pub(crate) fn serve(resources: Vec<Resource>) -> SocketAddr {
    let resources = Arc::new(resources);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            // A browser opens connections that it does not use, so each has its own thread.
            let resources = Arc::clone(&resources);
            thread::spawn(move || stream.and_then(|stream| respond(stream, &resources)));
        }
    });
    address
}

fn respond(mut stream: TcpStream, resources: &[Resource]) -> std::io::Result<()> {
    let request: Vec<String> =
        BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let Some(line) = request.first() else { return Ok(()) };
    let (status, kind, body) = match resources.iter().find(|resource| line.starts_with(resource.request)) {
        Some(Resource { kind, body, .. }) => ("200 OK", *kind, body.as_str()),
        None => ("404 Not Found", "text/plain", ""),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}
