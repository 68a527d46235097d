//! A web site of Debian's nginx behind a front, and a call over TLS at the same port and address.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};
use turnserver::clock::unix_seconds;

use crate::nginx::Nginx;
use crate::support::certificates::Authority;
use crate::support::{Controlled, TempDir, config, with_tls};
use crate::webdriver::Browser;

const WEB: &str = "www.example.org";
const RELAY: &str = "turn.example.org";
const BYTES: usize = 5 << 20;

/// Starts a server that repeats the messages of WebSocket clients (RFC 6455).
fn start_echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            // A client may leave at any time.
            thread::spawn(move || repeat(stream.unwrap()));
        }
    });
    address
}

fn repeat(mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut key = String::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("sec-websocket-key") => key = value.to_owned(),
            _ if line.trim_end().is_empty() => break,
            _ => {}
        }
    }
    let accept = STANDARD.encode(Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11")));
    write!(
        stream,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )?;
    loop {
        let (mut header, mut mask) = ([0; 2], [0; 4]);
        reader.read_exact(&mut header)?;
        let mut payload = vec![0; (header[1] & 0x7f).into()];
        reader.read_exact(&mut mask)?;
        reader.read_exact(&mut payload)?;
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        stream.write_all(&[header[0], header[1] & 0x7f])?;
        stream.write_all(&payload)?;
    }
}

#[test]
fn a_page_a_web_socket_and_a_call_over_tls_share_a_port_with_two_names() {
    let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
    directory.write("index.html", include_str!("page.html"));
    let echo = format!(
        "location /echo {{\n proxy_pass http://{};\n proxy_http_version 1.1;\n\
         proxy_set_header Upgrade $http_upgrade;\n proxy_set_header Connection \"upgrade\";\n }}",
        start_echo()
    );
    let nginx = Nginx::start(&authority, WEB, &directory, &echo);
    let files = authority.write(&authority.issue(&[RELAY]), directory.path());
    let front = format!(
        "[peers]\nallow = [\"127.0.0.1\"]\n[[front]]\nlisten = \"127.0.0.1:0\"\nweb = \"{}\"\n\
         names = [\"{RELAY}\"]\nproxy-protocol = true\n",
        nginx.address
    );
    let config = with_tls(&config(&["127.0.0.1"], &front), &["127.0.0.1"], &files);
    let server = Controlled::start_with(&config);
    let address: SocketAddr = server.event("front-listening").field("address").unwrap().parse().unwrap();
    let port = address.port();

    let browser = Browser::with_hosts(&format!("127.0.0.1 localhost {WEB} {RELAY}\n"));
    browser.navigate(&format!("https://{WEB}:{port}/"));
    let mut configuration = server.server.credential("alice").configuration;
    configuration["iceServers"][0]["urls"] = json!([format!("turns:{RELAY}:{port}?transport=tcp")]);
    let report = browser.execute_async(
        "const [configuration, bytes, port, done] = arguments;
         (async () => {
           const socket = new WebSocket(`wss://${location.host}/echo`);
           await once(socket, 'open');
           const echo = async (text) => {
             socket.send(text);
             return (await once(socket, 'message')).data;
           };
           const before = await echo('before the call');
           const report = await call([configuration, configuration], bytes);
           const visitor = await (await fetch('/visitor')).text();
           const [page] = performance.getEntriesByType('navigation');
           return { ...report, before, after: await echo('after the call'), visitor, protocol: page.nextHopProtocol };
         })().then(done, (error) => done({ error: String(error.message ?? error) }));",
        &[configuration, BYTES.into(), port.into()],
    );
    println!("a page, a WebSocket and a call at {address}: {report}");
    assert_eq!(report["error"], Value::Null, "server output:\n{:#?}", server.server.logs());
    assert_eq!(report["protocol"], "h2");
    assert_eq!([&report["before"], &report["after"]], ["before the call", "after the call"]);
    // Without a header, it is empty.
    assert_eq!(report["visitor"], "127.0.0.1");
    assert_eq!((&report["receivedBytes"], &report["receivedHash"]), (&json!(BYTES), &report["sentHash"]));
    for pair in report["pairs"].as_array().unwrap() {
        assert_eq!(
            (&pair["local"]["candidateType"], &pair["local"]["relayProtocol"]),
            (&json!("relay"), &json!("tls"))
        );
    }
}
