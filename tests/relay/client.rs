//! The `turn` crate's client on a socket that counts relayed data.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use stun::attributes::{
    ATTR_FINGERPRINT, ATTR_MESSAGE_INTEGRITY, ATTR_REQUESTED_ADDRESS_FAMILY, ATTR_REQUESTED_TRANSPORT, ATTR_USERNAME,
};
use stun::fingerprint::FINGERPRINT;
use stun::integrity::MessageIntegrity;
use stun::message::{Message, Setter, is_message};
use tokio::net::UdpSocket;
use tokio::time::timeout;
use turn::client::ClientConfig;
use webrtc_util::Conn;

use crate::support::{Credential, REALM, TIMEOUT};

/// One client with one allocation.
pub(crate) struct Client {
    pub(crate) socket: Arc<Socket>,
    relay: Box<dyn Conn + Send + Sync>,
    _turn: turn::client::Client,
}

impl Client {
    /// Allocates a relayed address of the same family as `server`.
    pub(crate) async fn allocate(server: SocketAddr, credential: &Credential) -> Result<Self, turn::Error> {
        let socket = Arc::new(Socket::new(server, credential).await);
        let turn = client(&socket, server, credential).await;
        let relay = Box::new(turn.allocate().await?);
        Ok(Self { socket, relay, _turn: turn })
    }

    pub(crate) fn relayed_address(&self) -> SocketAddr {
        self.relay.local_addr().unwrap()
    }

    /// Sends through the relay. With the first datagram for a peer, the crate creates a permission, sends a Send
    /// indication and starts to bind a channel. After the binding it sends ChannelData.
    pub(crate) async fn send(&self, payload: &[u8], peer: SocketAddr) {
        self.try_send(payload, peer).await.unwrap();
    }

    pub(crate) async fn try_send(&self, payload: &[u8], peer: SocketAddr) -> Result<(), webrtc_util::Error> {
        let sent = timeout(TIMEOUT, self.relay.send_to(payload, peer)).await;
        sent.expect("responses to the requests before sending").map(drop)
    }

    /// Receives the next datagram from any peer.
    pub(crate) async fn receive(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = vec![0; 2048];
        let received = timeout(TIMEOUT, self.relay.recv_from(&mut buffer)).await;
        let (len, peer) = received.expect("a datagram comes back through the relay").unwrap();
        buffer.truncate(len);
        (buffer, peer)
    }

    /// Ends the allocation (a Refresh with lifetime 0).
    pub(crate) async fn close(&self) {
        self.relay.close().await.unwrap();
    }
}

/// Returns a client's address as `server` sees it, and its local address.
pub(crate) async fn mapped_address(server: SocketAddr, credential: &Credential) -> (SocketAddr, SocketAddr) {
    let socket = Arc::new(Socket::new(server, credential).await);
    let turn = client(&socket, server, credential).await;
    let mapped = timeout(TIMEOUT, turn.send_binding_request_to(&server.to_string())).await;
    (mapped.expect("a Binding response").unwrap(), socket.local_addr().unwrap())
}

async fn client(socket: &Arc<Socket>, server: SocketAddr, credential: &Credential) -> turn::client::Client {
    let turn = turn::client::Client::new(ClientConfig {
        stun_serv_addr: server.to_string(),
        turn_serv_addr: server.to_string(),
        username: credential.username.clone(),
        password: credential.password.clone(),
        realm: REALM.to_owned(),
        software: String::new(),
        rto_in_ms: 0,
        conn: Arc::<Socket>::clone(socket),
        vnet: None,
    });
    let turn = turn.await.unwrap();
    turn.listen().await.unwrap();
    turn
}

/// The client's UDP socket. It counts relayed data by its form. Over IPv6 it requests an IPv6 relayed address, for
/// which the crate has no option.
pub(crate) struct Socket {
    udp: UdpSocket,
    ipv6: bool,
    key: MessageIntegrity,
    pub(crate) sent: Counters,
    pub(crate) received: Counters,
}

/// Counts relayed data by its form between client and server.
#[derive(Default)]
pub(crate) struct Counters {
    indications: AtomicUsize,
    channel_data: AtomicUsize,
}

impl Counters {
    /// Send or Data indications.
    pub(crate) fn indications(&self) -> usize {
        self.indications.load(Ordering::Relaxed)
    }

    pub(crate) fn channel_data(&self) -> usize {
        self.channel_data.load(Ordering::Relaxed)
    }

    fn count(&self, datagram: &[u8]) {
        match datagram {
            // RFC 8656 §12: a channel number is in 0x4000..=0x4FFF.
            [0x40..=0x4F, ..] => self.channel_data.fetch_add(1, Ordering::Relaxed),
            // RFC 8656 §17: the message types of Send and Data indications.
            [0x00, 0x16 | 0x17, ..] => self.indications.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
    }
}

impl Socket {
    async fn new(server: SocketAddr, credential: &Credential) -> Self {
        let Credential { username, password, .. } = credential;
        Self {
            udp: UdpSocket::bind(SocketAddr::new(server.ip(), 0)).await.unwrap(),
            ipv6: server.is_ipv6(),
            key: MessageIntegrity::new_long_term_integrity(username.clone(), REALM.to_owned(), password.clone()),
            sent: Counters::default(),
            received: Counters::default(),
        }
    }

    /// Adds REQUESTED-ADDRESS-FAMILY (RFC 8656 §18.6) to an Allocate request and recomputes its integrity.
    fn with_address_family(&self, request: &Message) -> Result<Message, stun::Error> {
        let mut changed = Message { typ: request.typ, transaction_id: request.transaction_id, ..Message::new() };
        changed.write_header();
        for attribute in &request.attributes.0 {
            if attribute.typ != ATTR_MESSAGE_INTEGRITY && attribute.typ != ATTR_FINGERPRINT {
                changed.add(attribute.typ, &attribute.value);
            }
        }
        changed.add(ATTR_REQUESTED_ADDRESS_FAMILY, &[0x02, 0, 0, 0]);
        if request.contains(ATTR_USERNAME) {
            self.key.add_to(&mut changed)?;
        }
        FINGERPRINT.add_to(&mut changed)?;
        Ok(changed)
    }
}

#[async_trait]
impl Conn for Socket {
    async fn connect(&self, server: SocketAddr) -> webrtc_util::Result<()> {
        Ok(self.udp.connect(server).await?)
    }

    async fn recv(&self, _: &mut [u8]) -> webrtc_util::Result<usize> {
        Err(io::Error::from(io::ErrorKind::Unsupported).into())
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> webrtc_util::Result<(usize, SocketAddr)> {
        let (len, from) = self.udp.recv_from(buffer).await?;
        self.received.count(&buffer[..len]);
        Ok((len, from))
    }

    async fn send(&self, _: &[u8]) -> webrtc_util::Result<usize> {
        Err(io::Error::from(io::ErrorKind::Unsupported).into())
    }

    async fn send_to(&self, datagram: &[u8], server: SocketAddr) -> webrtc_util::Result<usize> {
        self.sent.count(datagram);
        if self.ipv6 && is_message(datagram) {
            let mut message = Message::new();
            message.unmarshal_binary(datagram).unwrap();
            // Only Allocate requests have a REQUESTED-TRANSPORT.
            if message.contains(ATTR_REQUESTED_TRANSPORT) {
                return Ok(self.udp.send_to(&self.with_address_family(&message).unwrap().raw, server).await?);
            }
        }
        Ok(self.udp.send_to(datagram, server).await?)
    }

    fn local_addr(&self) -> webrtc_util::Result<SocketAddr> {
        Ok(self.udp.local_addr()?)
    }

    fn remote_addr(&self) -> Option<SocketAddr> {
        None
    }

    async fn close(&self) -> webrtc_util::Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &(dyn std::any::Any + Send + Sync) {
        self
    }
}
