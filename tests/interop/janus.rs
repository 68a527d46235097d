//! Janus (Debian package `janus`), a media server that gets its TURN credentials over HTTP
//! (draft-uberti-behave-turn-rest-00).

use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};
use turnserver::auth::KeyHash;

use crate::interfaces::wait_until;
use crate::site::Version::V4;
use crate::site::{Site, on_each_site};
use crate::support::{LogLine, Process, TIMEOUT, TempDir};

const KEY: &str = "turn_a-key-for-janus";
const PACKAGE: Option<&str> = Some("janus");
const TRANSPORT: &str = "janus/transports/libjanus_pfunix.so";
const PLUGIN: &str = "janus/plugins/libjanus_echotest.so";

/// How often a Janus is started, if its API ends at once.
const ATTEMPTS: usize = 10;

/// The offer of a browser, as far as Janus needs it.
const OFFER: &str = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\n\
                     m=audio 9 UDP/TLS/RTP/SAVPF 111\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\na=sendrecv\r\na=rtcp-mux\r\n\
                     a=ice-ufrag:abcd\r\na=ice-pwd:0123456789abcdef01234567\r\na=setup:actpass\r\n\
                     a=fingerprint:sha-256 00:01:02:03:04:05:06:07:08:09:0A:0B:0C:0D:0E:0F:10:11:12:13:14:15:16:17:18:\
                     19:1A:1B:1C:1D:1E:1F\r\na=rtpmap:111 opus/48000/2\r\n";

/// A running Janus, and a connection to its API.
struct Janus {
    process: Process,
    api: Socket,
    _directory: TempDir,
}

impl Janus {
    /// Starts a Janus that gets credentials at `url` by `method`.
    fn start(url: &str, method: &str) -> Self {
        (0..ATTEMPTS).find_map(|_| Self::try_start(url, method)).expect("janus serves its API")
    }

    /// The same. `None`: the thread that serves the API has ended at once, because Janus starts it before it notes that it
    /// is initialized.
    fn try_start(url: &str, method: &str) -> Option<Self> {
        let directory = TempDir::new();
        let path = |name: &str| directory.path().join(name);
        let libraries = Path::new("/usr/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH));
        for (folder, library) in [("transports", TRANSPORT), ("plugins", PLUGIN)] {
            std::fs::create_dir(path(folder)).unwrap();
            let library = libraries.join(library);
            symlink(&library, path(folder).join(library.file_name().unwrap())).unwrap();
        }
        let main = format!(
            "general: {{ configs_folder = {directory:?}; plugins_folder = {:?}; transports_folder = {:?}; \
             events_folder = {none:?}; loggers_folder = {none:?}; }}\n\
             nat: {{ turn_rest_api = {url:?}; turn_rest_api_key = {KEY:?}; turn_rest_api_method = {method:?}; }}\n",
            path("plugins"),
            path("transports"),
            directory = directory.path(),
            none = path("none"),
        );
        let socket = path("janus.sock");
        let transport = format!("general: {{ enabled = true; path = {socket:?}; type = \"SOCK_SEQPACKET\"; }}\n");
        directory.write("janus.transport.pfunix.jcfg", &transport);
        let main = directory.write("janus.jcfg", &main);
        let process =
            Process::start(Command::new("janus").arg("-F").arg(directory.path()).arg("-C").arg(main), PACKAGE);
        let listens =
            |lines: &[String]| lines.iter().any(|line| line.contains("Unix Sockets thread started")).then_some(());
        let ready = process.stdout.wait_for(TIMEOUT, listens);
        ready.unwrap_or_else(|| panic!("janus does not listen; its output:\n{}", process.output()));
        // Janus says so before it has made the socket.
        let api = wait_until(|| match connect(&socket) {
            Ok(api) => Ok(Some(api)),
            Err(_) if process.output().contains("Unix Sockets thread ended") => Ok(None),
            Err(error) => Err(format!("{error}; the output of janus:\n{}", process.output())),
        });
        Some(Self { process, api: api?, _directory: directory })
    }

    /// Sends a request and returns the first response that `wanted` accepts.
    fn request(&self, request: &Value, wanted: fn(&Value) -> bool) -> Value {
        self.api.send(request.to_string().as_bytes()).unwrap();
        loop {
            let mut buffer = vec![0; 1 << 16];
            let length = match std::io::Read::read(&mut &self.api, &mut buffer) {
                // A socket with a time limit does not go on after a signal by itself (signal(7)).
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                read => read.unwrap_or_else(|error| panic!("{error}; the output of janus:\n{}", self.process.output())),
            };
            let response: Value = serde_json::from_slice(&buffer[..length]).unwrap();
            assert_ne!(response["janus"], "error", "{response}");
            if wanted(&response) {
                return response;
            }
        }
    }

    /// Opens a session as `user`, and returns the answer to an offer, with the candidates.
    fn answer(&self, user: &str) -> String {
        let is_success = |response: &Value| response["janus"] == "success";
        let created = self.request(&json!({ "janus": "create", "transaction": "1" }), is_success);
        let session = &created["data"]["id"];
        let attach = json!({
            "janus": "attach", "transaction": "2", "session_id": session, "plugin": "janus.plugin.echotest",
            "opaque_id": user,
        });
        let attached = self.request(&attach, is_success);
        let offer = json!({
            "janus": "message", "transaction": "3", "session_id": session, "handle_id": attached["data"]["id"],
            "body": { "audio": true }, "jsep": { "type": "offer", "sdp": OFFER },
        });
        let event = self.request(&offer, |response| response["jsep"]["type"] == "answer");
        event["jsep"]["sdp"].as_str().unwrap().to_owned()
    }
}

/// Connects to the API, and waits for a response.
fn connect(socket: &Path) -> std::io::Result<Socket> {
    let api = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    api.connect(&SockAddr::unix(socket)?)?;
    api.set_read_timeout(Some(TIMEOUT))?;
    api.send(json!({ "janus": "ping", "transaction": "0" }).to_string().as_bytes())?;
    match std::io::Read::read(&mut &api, &mut [0; 1024])? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(api),
    }
}

/// Whether a line says that `user` has the allocation of one of these candidates.
fn is_allocation(line: &LogLine, user: &str, candidates: &[&str]) -> bool {
    let relay = line.field("relay").and_then(|relay| relay.parse::<SocketAddr>().ok());
    let is_of = |relay: SocketAddr| {
        let part = format!(" {} {} typ relay ", relay.ip(), relay.port());
        candidates.iter().any(|candidate| candidate.contains(&part))
    };
    line.message() == "allocation created" && line.field("user").as_deref() == Some(user) && relay.is_some_and(is_of)
}

on_each_site! {
    // draft-uberti-behave-turn-rest-00 §2
    janus_gathers_a_relayed_candidate_with_credentials_that_it_gets_over_http: gather;
}

fn gather(site: &Site) {
    let hash = KeyHash::of(KEY.as_bytes()).to_hex();
    let listen = format!("[http]\nlisten = [\"{}:0\"]\n", site.server(V4));
    let http = format!("{listen}[[http.keys]]\nname = \"janus\"\nsha256 = {hash:?}\n");
    let server = site.start(&site.config(&[V4], &http));
    let http = server.wait_for_log(|line| line.message() == "HTTP listening").field("address").unwrap();
    for method in ["GET", "POST"] {
        let janus = Janus::start(&format!("http://{http}/turn"), method);
        let answer = janus.answer(method);
        let relayed: Vec<&str> = answer.lines().filter(|line| line.contains(" typ relay ")).collect();
        println!("janus, {method}: {relayed:?}");
        server.wait_for_log(|line| is_allocation(line, method, &relayed));
    }
}
