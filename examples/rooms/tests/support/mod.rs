//! A server in this process, and a client of its signalling.
#![allow(dead_code, reason = "each test uses a part")]

mod program;
pub(crate) mod relay;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{env, fs, process};

use clap::Parser as _;
use futures_util::{SinkExt as _, StreamExt as _};
use rooms::arguments::Arguments;
use rooms::serve::Server;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

/// The time within which everything happens.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The secret of the relay.
pub(crate) const SECRET: &str = "a secret of the tests";

/// Writes a file that is unique in this process. It is in the directory of the tests' temporary files.
pub(crate) fn file(name: &str, content: &str) -> PathBuf {
    static FILES: AtomicU32 = AtomicU32::new(0);
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{number}-{name}", process::id()));
    fs::write(&path, content).unwrap();
    path
}

/// A server that runs until it is dropped or stopped.
pub(crate) struct Running {
    at: At,
    pub(crate) fingerprint: Option<[u8; 32]>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Running {
    /// Starts a server with the configuration of a relay that is not there, and with further options.
    pub(crate) async fn start(options: &[&str]) -> Self {
        let config = format!("[auth]\nsecrets = ['{SECRET}']\n[listen]\nudp = ['127.0.0.1:3478']\ntcp = []\n");
        let config = file("turnserver.toml", &config);
        let config = config.to_str().unwrap();
        Self::start_with(&[&["--config", config], options].concat()).await
    }

    /// Starts a server with these options.
    pub(crate) async fn start_with(options: &[&str]) -> Self {
        let arguments = [&["rooms", "--listen", "127.0.0.1:0"], options].concat();
        let server = Server::start(Arguments::parse_from(arguments).serve).await.unwrap();
        let (address, fingerprint) = (server.address(), server.identity().map(|identity| identity.fingerprint));
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move { server.run(async { drop(stopped.await) }).await.unwrap() });
        Self { at: At { address }, fingerprint, stop: Some(stop), task }
    }

    /// Stops the server and waits for its end.
    pub(crate) async fn stop(mut self) {
        drop(self.stop.take());
        timeout(PATIENCE, &mut self.task).await.unwrap().unwrap();
    }
}

impl std::ops::Deref for Running {
    type Target = At;

    fn deref(&self) -> &At {
        &self.at
    }
}

/// A server, as its clients know it.
pub(crate) struct At {
    pub(crate) address: SocketAddr,
}

impl At {
    /// Sends a request, and returns the response as text.
    pub(crate) async fn request(&self, line: &str) -> String {
        self.request_with(line, "").await
    }

    /// Sends a request with further headers, each with its end of line, and returns the response as text.
    pub(crate) async fn request_with(&self, line: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let address = self.address;
        let request =
            format!("{line} HTTP/1.1\r\nHost: {address}\r\n{headers}Connection: close\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut response)).await.unwrap().unwrap();
        String::from_utf8_lossy(&response).into_owned()
    }

    /// Makes a room.
    pub(crate) async fn room(&self) -> String {
        let response = self.request("POST /api/rooms").await;
        assert!(response.starts_with("HTTP/1.1 201"), "{response}");
        let body: Value = serde_json::from_str(response.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!(body["url"], format!("/room/{}", body["room"].as_str().unwrap()));
        body["room"].as_str().unwrap().to_owned()
    }

    /// Opens a WebSocket as a page of `origin` does.
    pub(crate) async fn open(&self, origin: &str) -> Result<Socket, Error> {
        self.open_with(origin, &[]).await
    }

    /// Opens a WebSocket as a page of `origin` does, with further headers.
    pub(crate) async fn open_with(
        &self,
        origin: &str,
        headers: &[(&'static str, &'static str)],
    ) -> Result<Socket, Error> {
        let mut request = format!("ws://{}/ws", self.address).into_client_request()?;
        for (name, value) in headers {
            request.headers_mut().insert(*name, HeaderValue::from_static(value));
        }
        request.headers_mut().insert("Origin", HeaderValue::from_str(origin).unwrap());
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (socket, _) = client_async(request, stream).await?;
        Ok(Socket(socket))
    }

    /// Opens a WebSocket.
    pub(crate) async fn socket(&self) -> Socket {
        self.open(&format!("http://{}", self.address)).await.unwrap()
    }

    /// Enters a room, and returns `joined`, too.
    pub(crate) async fn join(&self, room: &str, name: &str) -> (Socket, Value) {
        self.join_with(json!({"type": "join", "room": room, "name": name, "kind": "browser"})).await
    }

    /// Enters a room with this message, and returns `joined`, too.
    pub(crate) async fn join_with(&self, join: Value) -> (Socket, Value) {
        let mut socket = self.socket().await;
        socket.send(join).await;
        let joined = socket.receive().await;
        assert_eq!(joined["type"], "joined", "{joined}");
        (socket, joined)
    }
}

/// The WebSocket of a participant.
pub(crate) struct Socket(pub(crate) WebSocketStream<TcpStream>);

impl Socket {
    /// Sends a message.
    pub(crate) async fn send(&mut self, message: Value) {
        self.send_frame(Message::text(message.to_string())).await;
    }

    /// Sends a frame.
    pub(crate) async fn send_frame(&mut self, frame: Message) {
        self.0.send(frame).await.unwrap();
    }

    /// Receives a message.
    pub(crate) async fn receive(&mut self) -> Value {
        match self.next().await {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// Receives the next frame that is not a ping.
    pub(crate) async fn next(&mut self) -> Message {
        loop {
            match timeout(PATIENCE, self.0.next()).await.unwrap().unwrap().unwrap() {
                Message::Ping(_) | Message::Pong(_) => {}
                frame => return frame,
            }
        }
    }

    /// Receives an error and returns its code.
    pub(crate) async fn error(&mut self) -> String {
        let message = self.receive().await;
        assert_eq!(message["type"], "error", "{message}");
        assert!(message["message"].as_str().unwrap().ends_with('.'), "a sentence: {message}");
        message["code"].as_str().unwrap().to_owned()
    }

    /// Receives the close frame and returns its reason.
    pub(crate) async fn closed(&mut self) -> String {
        match self.next().await {
            Message::Close(Some(frame)) => frame.reason.to_string(),
            other => panic!("{other:?}"),
        }
    }
}
