//! A proxy in front of pebble, which responds to some requests itself: what pebble cannot do, and what it would never do.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};
use turnserver::clock::unix_seconds;

use crate::pebble::{Place, connect};

const ADDRESS: &str = "127.0.0.1:14001";
const PEBBLE: &str = "127.0.0.1:14000";

/// What the proxy does with a request.
pub(crate) enum Reply {
    Forward,
    /// Forwards it, and adds the URL of renewal information to the directory.
    Directory(&'static str),
    /// Renewal information with the start and the end of a window.
    RenewalInfo(u64, u64),
    /// A status, header fields, and a body.
    Own(u16, &'static str, &'static str),
    /// A body that never ends.
    Endless,
    /// Nothing, until the client closes the connection.
    Silence,
}

/// A running proxy.
pub(crate) struct Proxy {
    requests: Arc<Mutex<Vec<Request>>>,
}

/// What the server has sent.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) path: String,
    /// What it has signed (RFC 8555 §6.2).
    pub(crate) payload: String,
}

type Rule = dyn Fn(&str) -> Reply + Send + Sync;

impl Proxy {
    /// `rule` gets the path of each request.
    pub(crate) fn start(place: &Place, rule: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        let read = |name: &str| std::fs::read(place.directory.path().join(name)).unwrap();
        let chain = CertificateDer::pem_slice_iter(&read("fullchain.pem")).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(&read("privkey.pem")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let (config, rule, requests): (_, Arc<Rule>, _) = (Arc::new(config), Arc::new(rule), Arc::default());
        let proxy = Self { requests: Arc::clone(&requests) };
        let listener = TcpListener::bind(ADDRESS).unwrap();
        // The network, and with it every connection, ends with the test. The thread ends with the process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, rule, requests) = (Arc::clone(&config), Arc::clone(&rule), Arc::clone(&requests));
                // An error concerns this connection only.
                thread::spawn(move || serve(stream, config, &*rule, &requests));
            }
        });
        proxy
    }

    pub(crate) fn directory(&self) -> &'static str {
        "https://127.0.0.1:14001/dir"
    }

    /// Returns the paths of all requests so far.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.path).collect()
    }

    /// Returns all requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Returns the number of requests with a path.
    pub(crate) fn count(&self, path: &str) -> usize {
        self.paths().iter().filter(|own| *own == path).count()
    }
}

/// Holds up requests until it is opened.
#[derive(Default)]
pub(crate) struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub(crate) fn pass(&self) {
        drop(self.opened.wait_while(self.is_open.lock().unwrap(), |is_open| !*is_open).unwrap());
    }

    pub(crate) fn open(&self) {
        *self.is_open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

/// The time in which the proxy suggests to renew every certificate: a day, ten days ahead.
pub(crate) fn window() -> (u64, u64) {
    static START: OnceLock<u64> = OnceLock::new();
    let start = *START.get_or_init(|| unix_seconds() + 10 * 86_400);
    (start, start + 86_400)
}

fn rfc3339(unix: u64) -> String {
    let output = std::process::Command::new("date").args(["-u", "+%FT%TZ", "-d", &format!("@{unix}")]).output();
    String::from_utf8(output.unwrap().stdout).unwrap().trim().to_owned()
}

fn serve(stream: TcpStream, config: Arc<ServerConfig>, rule: &Rule, requests: &Mutex<Vec<Request>>) -> io::Result<()> {
    let mut stream = BufReader::new(StreamOwned::new(ServerConnection::new(config).unwrap(), stream));
    let mut head = String::new();
    let mut length = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
        head += &line;
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    requests.lock().unwrap().push(Request { path: path.clone(), payload: payload(&body) });
    let mut client = stream.into_inner();
    let own = |status: u16, fields: &str, body: &str| {
        format!(
            "HTTP/1.1 {status} x\r\nContent-Type: application/problem+json\r\nReplay-Nonce: x\r\n{fields}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    };
    match rule(&path) {
        Reply::Own(status, fields, body) => client.write_all(own(status, fields, body).as_bytes())?,
        Reply::RenewalInfo(start, end) => {
            let window = format!(
                r#"{{"suggestedWindow":{{"start":"{}","end":"{}"}},"explanationURL":"https://example.org/why"}}"#,
                rfc3339(start),
                rfc3339(end)
            );
            client.write_all(own(200, "Retry-After: 3600\r\n", &window).as_bytes())?;
        }
        Reply::Endless => {
            client.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
            // Until the client closes the connection.
            while client.write_all(chunk.as_bytes()).is_ok() {}
        }
        Reply::Silence => drop(client.read(&mut [0])?),
        reply => {
            let response = forward(&head, &body)?;
            match reply {
                Reply::Directory(url) => {
                    let text = String::from_utf8_lossy(&response).into_owned();
                    let (_, json) = text.split_once("\r\n\r\n").unwrap();
                    let json = json.replacen('{', &format!("{{\"renewalInfo\":{url:?},"), 1);
                    client.write_all(own(200, "", &json).as_bytes())?;
                }
                _ => client.write_all(&response)?,
            }
        }
    }
    client.conn.send_close_notify();
    client.flush()
}

/// Returns the payload of a signed request; empty without one.
fn payload(body: &[u8]) -> String {
    let signed: Value = serde_json::from_slice(body).unwrap_or_default();
    let payload = URL_SAFE_NO_PAD.decode(signed["payload"].as_str().unwrap_or_default()).unwrap();
    String::from_utf8(payload).unwrap()
}

/// Returns the response of pebble.
fn forward(head: &str, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut pebble = connect(PEBBLE, "127.0.0.1", None).map_err(io::Error::other)?;
    // HTTP/1.0, so that the response has no chunks, and ends with the connection.
    let head = head.replacen("HTTP/1.1", "HTTP/1.0", 1);
    pebble.write_all(format!("{head}\r\n").as_bytes())?;
    pebble.write_all(body)?;
    pebble.flush()?;
    let mut response = Vec::new();
    match pebble.read_to_end(&mut response) {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
        _ => Ok(response),
    }
}
