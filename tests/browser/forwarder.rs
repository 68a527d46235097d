//! A network path between the browser and the server over UDP, which drops what a test names.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use turnserver::stun::Message;
use turnserver::stun::attribute::Data;

/// What the path drops of the data that the server relays. Requests and responses of TURN pass, except with
/// [`Everything`](Self::Everything).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drops {
    Nothing,
    /// All data, also the connectivity checks of ICE.
    Data,
    /// The records of DTLS: handshakes, and the messages of data channels.
    Dtls,
    /// The records of DTLS that do not fit into a small datagram.
    LargeDtls,
    /// The video.
    Rtp,
    /// Every 25th record of DTLS.
    SomeDtls,
    Everything,
}

impl Drops {
    /// `records` is the number of records of DTLS so far.
    fn includes(self, packet: &[u8], records: &mut u64) -> bool {
        if matches!(self, Self::Nothing | Self::Everything) {
            return self == Self::Everything;
        }
        let Some(data) = relayed(packet) else { return false };
        // RFC 7983 §7.
        let (is_dtls, is_rtp) = match data.first() {
            Some(20..=63) => (true, false),
            Some(128..=191) => (false, true),
            _ => (false, false),
        };
        *records += u64::from(is_dtls);
        match self {
            Self::Nothing | Self::Everything => false,
            Self::Data => true,
            Self::Dtls => is_dtls,
            Self::LargeDtls => is_dtls && data.len() > 600,
            Self::Rtp => is_rtp,
            Self::SomeDtls => is_dtls && records.is_multiple_of(25),
        }
    }
}

/// Returns the data that the server relays with this packet.
fn relayed(packet: &[u8]) -> Option<&[u8]> {
    match packet.first()? {
        // RFC 8656 §12.4: ChannelData.
        0x40..=0x7f => packet.get(4..),
        _ => Some(Message::parse(packet).ok()?.get::<Data<'_>>().ok()??.0),
    }
}

/// The path. Its address has the port of the server, and another IP address.
pub(crate) struct Forwarder {
    path: Arc<Path>,
}

struct Path {
    to_server: IpAddr,
    server: SocketAddr,
    /// Receives from clients, and sends to them.
    front: UdpSocket,
    /// What is dropped, and the number of records of DTLS so far.
    drops: Mutex<(Drops, u64)>,
    is_ended: AtomicBool,
}

impl Forwarder {
    /// `ip` receives from clients, and `to_server` sends to the server.
    pub(crate) fn start(ip: IpAddr, to_server: IpAddr, server: SocketAddr, drops: Drops) -> Self {
        let front = socket(SocketAddr::new(ip, server.port()));
        let path = Path { to_server, server, front, drops: Mutex::new((drops, 0)), is_ended: AtomicBool::new(false) };
        let path = Arc::new(path);
        let of_clients = Arc::clone(&path);
        thread::spawn(move || of_clients.forward_from_clients());
        Self { path }
    }

    pub(crate) fn drop_from_now_on(&self, drops: Drops) {
        self.path.drops.lock().unwrap().0 = drops;
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.path.is_ended.store(true, Ordering::Relaxed);
    }
}

impl Path {
    fn forward_from_clients(self: Arc<Self>) {
        // The server distinguishes clients by their addresses.
        let mut sockets = HashMap::new();
        let mut buffer = vec![0; 65_536];
        while let Some(received) = self.receive(|| self.front.recv_from(&mut buffer)) {
            let Some((length, client)) = received else { continue };
            let own = sockets.entry(client).or_insert_with(|| {
                let own = Arc::new(socket(SocketAddr::new(self.to_server, 0)));
                own.connect(self.server).unwrap();
                let (path, to_client) = (Arc::clone(&self), Arc::clone(&own));
                thread::spawn(move || path.forward_to(client, &to_client));
                own
            });
            if let Some(packet) = buffer.get(..length).filter(|packet| self.passes(packet)) {
                // The server may have ended.
                let _ = own.send(packet);
            }
        }
    }

    fn forward_to(&self, client: SocketAddr, own: &UdpSocket) {
        let mut buffer = vec![0; 65_536];
        while let Some(received) = self.receive(|| own.recv(&mut buffer)) {
            if let Some(packet) = received.and_then(|length| buffer.get(..length)).filter(|packet| self.passes(packet))
            {
                // The browser may have closed its socket.
                let _ = self.front.send_to(packet, client);
            }
        }
    }

    fn passes(&self, packet: &[u8]) -> bool {
        let (drops, records) = &mut *self.drops.lock().unwrap();
        !drops.includes(packet, records)
    }

    /// Returns what was received, or nothing in this turn, until the path ends.
    fn receive<T>(&self, receive: impl FnOnce() -> io::Result<T>) -> Option<Option<T>> {
        let received = receive().ok();
        (!self.is_ended.load(Ordering::Relaxed)).then_some(received)
    }
}

/// A socket whose threads look from time to time whether the path has ended.
fn socket(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket
}
