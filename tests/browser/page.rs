//! Serves page.html.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

const PAGE: &str = include_str!("page.html");

/// Serves the page until the test process ends. 127.0.0.1 is a secure context, which `crypto.subtle` requires.
pub(crate) fn serve_page() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            // A browser opens connections that it does not use, so each has its own thread.
            thread::spawn(|| stream.and_then(respond));
        }
    });
    address
}

fn respond(mut stream: TcpStream) -> std::io::Result<()> {
    let request: Vec<String> =
        BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let (status, body) = match request.first() {
        Some(line) if line.starts_with("GET / ") => ("200 OK", PAGE),
        Some(_) => ("404 Not Found", ""),
        None => return Ok(()),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}
