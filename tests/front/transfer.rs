//! Data between visitors and the web site.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use socket2::SockRef;

use crate::common::{Fixture, read_all, read_to_reset};
use crate::site::{GREETING, Site};
use crate::support::TIMEOUT;

const MIB: usize = 1 << 20;

/// Returns the bytes of a stream from a position on. They repeat after a prime number, so a part that is lost, doubled
/// or exchanged shows.
fn fill(at: usize, buffer: &mut [u8]) {
    for (offset, byte) in buffer.iter_mut().enumerate() {
        *byte = u8::try_from((at + offset) % 251).unwrap();
    }
}

/// Writes so many bytes of the stream, in pieces of changing length.
fn write_stream(mut stream: &TcpStream, length: usize) -> std::io::Result<()> {
    let (mut at, mut pieces) = (0, [1, 1400, 65_000, 3 * MIB, 17, 250_000].into_iter().cycle());
    let mut buffer = vec![0; 3 * MIB];
    while at < length {
        let piece = &mut buffer[..pieces.next().unwrap().min(length - at)];
        fill(at, piece);
        stream.write_all(piece)?;
        at += piece.len();
    }
    stream.shutdown(Shutdown::Write)
}

/// Reads the stream to its end. Returns its length.
fn read_stream(mut stream: &TcpStream) -> usize {
    let (mut at, mut buffer, mut expected) = (0, vec![0; 256 * 1024], vec![0; 256 * 1024]);
    loop {
        let read = stream.read(&mut buffer).unwrap();
        if read == 0 {
            return at;
        }
        fill(at, &mut expected[..read]);
        assert!(buffer[..read] == expected[..read], "the data differ after {at} bytes");
        at += read;
    }
}

#[test]
fn much_data_arrives_whole_in_both_directions_at_once() {
    const UP: usize = 100 * MIB + 7;
    const DOWN: usize = 256 * MIB + 1;
    let site = Site::start("127.0.0.1:0", |stream| {
        thread::scope(|scope| {
            let sent = scope.spawn(|| write_stream(&stream, DOWN));
            // The first byte is that which the front has decided by.
            let mut first = [0; 1];
            (&stream).read_exact(&mut first)?;
            assert_eq!(first, *b"P");
            assert_eq!(read_stream(&stream), UP);
            sent.join().unwrap()
        })
    });
    let front = Fixture::new(&site, "", "");
    let stream = front.visit();
    (&stream).write_all(b"P").unwrap();
    thread::scope(|scope| {
        let sent = scope.spawn(|| write_stream(&stream, UP));
        assert_eq!(read_stream(&stream), DOWN);
        sent.join().unwrap().unwrap();
    });
    front.wait_for_metric(&format!("turnserver_front_bytes_total{{direction=\"to_web_site\"}} {}", UP + 1));
    front.wait_for_metric(&format!("turnserver_front_bytes_total{{direction=\"to_visitor\"}} {DOWN}"));
    front.wait_for_metric("turnserver_front_closed_connections_total{reason=\"complete\"} 1");
}

#[test]
fn a_side_that_has_finished_still_receives() {
    let front = Fixture::new(&Site::echo(), "", "");
    let mut stream = front.visit();
    stream.write_all(b"GET /").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut stream), [GREETING, b"GET /"].concat());
    // The web site finishes first.
    let site = Site::start("127.0.0.1:0", |mut stream| {
        stream.write_all(GREETING)?;
        stream.shutdown(Shutdown::Write)?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        assert_eq!(all, b"GET / and more");
        Ok(())
    });
    let front = Fixture::new(&site, "", "");
    let mut stream = front.visit();
    stream.write_all(b"GET /").unwrap();
    assert_eq!(read_all(&mut stream), GREETING);
    stream.write_all(b" and more").unwrap();
    drop(stream);
    front.wait_for_metric("turnserver_front_closed_connections_total{reason=\"complete\"} 1");
    front.wait_for_metric("turnserver_front_bytes_total{direction=\"to_web_site\"} 14");
}

// Otherwise the server would hold the data of whoever reads slowly.
#[test]
fn a_visitor_who_does_not_read_holds_up_the_web_site() {
    let (sender, written) = mpsc::channel();
    let site = Site::start("127.0.0.1:0", move |mut stream| {
        let buffer = vec![7; MIB];
        stream.read_exact(&mut [0; 5])?;
        stream.set_write_timeout(Some(Duration::from_secs(2)))?;
        let mut all = 0;
        let stopped = loop {
            match stream.write(&buffer) {
                Ok(bytes) => all += bytes,
                Err(error) => break error.kind(),
            }
        };
        sender.send((all, stopped)).unwrap();
        stream.shutdown(Shutdown::Write)
    });
    let front = Fixture::new(&site, "", "");
    let mut stream = front.visit();
    stream.write_all(b"GET /").unwrap();
    let (sent, stopped) = written.recv().unwrap();
    assert_eq!(stopped, ErrorKind::WouldBlock);
    // What the buffers of the four sockets hold.
    assert!(sent < 64 * MIB, "{sent}");
    assert_eq!(read_all(&mut stream).len(), sent);
}

// TCP_USER_TIMEOUT, which the connections of clients of the relay have, also ends those whose window stays closed.
#[test]
#[ignore = "a visitor does not read for 40 seconds"]
fn a_visitor_may_stop_to_read() {
    const PAUSE: Duration = Duration::from_secs(40);
    // More than the buffers of the four sockets hold.
    const DOWN: usize = 96 * MIB;
    let (sender, finished) = mpsc::channel();
    let site = Site::start("127.0.0.1:0", move |stream| {
        (&stream).read_exact(&mut [0; 5])?;
        let sent = write_stream(&stream, DOWN);
        sender.send(sent.as_ref().err().map(|error| error.kind())).unwrap();
        sent
    });
    let front = Fixture::new(&site, "", "");
    let mut stream = front.visit();
    stream.write_all(b"GET /").unwrap();
    // The web site waits meanwhile.
    assert_eq!(finished.recv_timeout(PAUSE), Err(mpsc::RecvTimeoutError::Timeout));
    assert_eq!(read_stream(&stream), DOWN);
    assert_eq!(finished.recv().unwrap(), None);
    drop(stream);
    front.wait_for_metric("turnserver_front_closed_connections_total{reason=\"complete\"} 1");
}

#[test]
fn a_connection_without_data_ends_after_the_idle_time() {
    let front = Fixture::new(&Site::echo(), "idle = \"1s\"\n", "");
    let mut stream = front.visit();
    stream.write_all(b"GET /").unwrap();
    // Nothing more comes from either side.
    assert_eq!(read_all(&mut stream), [GREETING, b"GET /"].concat());
    front.wait_for_metric("turnserver_front_closed_connections_total{reason=\"idle\"} 1");
}

// A response that is cut off must not look complete. HTTP without TLS may end it by the end of the connection.
#[test]
fn a_web_site_that_breaks_resets_the_visitor() {
    let site = Site::start("127.0.0.1:0", |mut stream| {
        stream.read_exact(&mut [0; 5])?;
        stream.write_all(GREETING)?;
        // The visitor has the greeting.
        stream.read_exact(&mut [0])?;
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))
    });
    let front = Fixture::new(&site, "", "");
    let mut stream = front.visit();
    stream.write_all(b"GET /").unwrap();
    stream.read_exact(&mut [0; GREETING.len()]).unwrap();
    stream.write_all(b"!").unwrap();
    assert_eq!(read_to_reset(&mut stream), b"");
    front.wait_for_metric("turnserver_front_closed_connections_total{reason=\"broken-by-web-site\"} 1");
}

#[test]
fn a_visitor_who_breaks_resets_the_web_site() {
    let (sender, ended) = mpsc::channel();
    let site = Site::start("127.0.0.1:0", move |mut stream| {
        stream.write_all(GREETING)?;
        stream.read_exact(&mut [0; 5])?;
        sender.send(stream.read(&mut [0]).map_err(|error| error.kind())).unwrap();
        Ok(())
    });
    let front = Fixture::new(&site, "", "");
    let mut stream = front.visit();
    stream.write_all(b"GET /").unwrap();
    stream.read_exact(&mut [0; GREETING.len()]).unwrap();
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    assert_eq!(ended.recv_timeout(TIMEOUT).unwrap(), Err(ErrorKind::ConnectionReset));
    front.wait_for_metric("turnserver_front_closed_connections_total{reason=\"broken-by-visitor\"} 1");
}

#[test]
fn a_download_that_is_not_read_for_the_idle_time_is_reset() {
    let site = Site::start("127.0.0.1:0", |stream| write_stream(&stream, 64 * MIB));
    let front = Fixture::new(&site, "idle = \"1s\"\n", "");
    let mut stream = front.visit();
    stream.write_all(b"GET /").unwrap();
    front.wait_for_metric("turnserver_front_closed_connections_total{reason=\"idle\"} 1");
    assert!(read_to_reset(&mut stream).len() < 64 * MIB);
}
