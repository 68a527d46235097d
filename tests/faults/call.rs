//! A relayed call: a client with a channel, and its peer.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use turnserver::client::Request;
use turnserver::stun::attribute::Lifetime;
use turnserver::stun::{Class, Message, Method, TransactionId};

use crate::support::client::{Client, Login, Response, Session, message, receive, socket};
use crate::support::{Server, TIMEOUT};

const CHANNEL: u16 = 0x4001;

/// The number of calls so far. Each has a user of its own.
static CALLS: AtomicU32 = AtomicU32::new(0);

pub(super) struct Call {
    pub(super) client: Client,
    login: Login,
    session: RefCell<Session>,
    pub(super) relayed: SocketAddr,
    pub(super) peer: UdpSocket,
}

impl Call {
    /// Starts a call over UDP on loopback.
    pub(super) fn start(server: &Server) -> Self {
        Self::between(Client::new(server.udp_address()), socket("127.0.0.1:0".parse().unwrap()))
    }

    /// Starts a call of a client with a peer.
    pub(super) fn between(client: Client, peer: UdpSocket) -> Self {
        let login = Login::mint(&format!("caller-{}", CALLS.fetch_add(1, Ordering::Relaxed)), 36_000);
        let (session, relayed) = client.allocate(&login).unwrap();
        let call = Self { client, login, session: RefCell::new(session), relayed, peer };
        assert_eq!(call.bind(), Ok(()));
        call.exchange();
        call
    }

    /// Starts the call again, after its allocation has ended.
    pub(super) fn start_again(&mut self) {
        // What has arrived from the former allocation, and errors of its time.
        self.client.socket().set_nonblocking(true).unwrap();
        while !matches!(self.client.socket().recv(&mut [0; 2_000]), Err(error) if error.kind() == ErrorKind::WouldBlock)
        {
        }
        self.client.socket().set_nonblocking(false).unwrap();
        let (session, relayed) = self.client.allocate(&self.login).unwrap();
        (self.session, self.relayed) = (RefCell::new(session), relayed);
        assert_eq!(self.bind(), Ok(()));
        self.settle();
        self.exchange();
    }

    pub(super) fn peer_address(&self) -> SocketAddr {
        self.peer.local_addr().unwrap()
    }

    /// Sends a request, with a new nonce if the server requires one. The error is the code of the response.
    fn request(&self, request: &Request) -> Result<Response, u16> {
        let send = || {
            let session = self.session.borrow();
            let response = self.client.request(&session, request.method(), &|writer| request.encode(writer));
            response.error().map_or(Ok(response), Err)
        };
        match send() {
            // RFC 8489 §9.2.5: a stale nonce.
            Err(438) => {
                let renewed = self.client.renew(&self.session.borrow());
                self.session.replace(renewed);
                send()
            }
            result => result,
        }
    }

    /// Binds the channel, or renews it.
    pub(super) fn bind(&self) -> Result<(), u16> {
        self.request(&Request::ChannelBind { channel: CHANNEL, peer: self.peer_address() }).map(drop)
    }

    /// Refreshes the allocation. Returns its lifetime.
    pub(super) fn refreshed(&self) -> Result<u32, u16> {
        self.refreshed_for(600)
    }

    /// The same, with this lifetime.
    pub(super) fn refreshed_for(&self, seconds: u32) -> Result<u32, u16> {
        self.request(&Request::Refresh(seconds)).map(|response| response.get::<Lifetime>().unwrap().0)
    }

    /// Returns a request that refreshes the allocation for this lifetime.
    pub(super) fn refresh_request(&self, seconds: u32) -> Vec<u8> {
        let request = Request::Refresh(seconds);
        self.client.signed(&self.session.borrow(), request.method(), &|writer| request.encode(writer))
    }

    /// Sends data both ways, and waits for it.
    pub(super) fn exchange(&self) {
        self.exchange_data(b"a word of the call");
    }

    /// The same, with this data.
    pub(super) fn exchange_data(&self, data: &[u8]) {
        self.to_peer(data);
        assert_eq!(receive(&self.peer), (data.to_vec(), self.relayed));
        self.peer.send_to(data, self.relayed).unwrap();
        assert!(receive(self.client.socket()).0 == channel_data(data), "the data of the peer arrives");
    }

    /// Sends data both ways, and waits for it. Earlier data may arrive before it.
    pub(super) fn settle(&self) {
        let last = b"the last of all";
        self.to_peer(last);
        while receive(&self.peer).0 != last {}
        self.peer.send_to(last, self.relayed).unwrap();
        while receive(self.client.socket()).0 != channel_data(last) {}
    }

    /// Sends data to the peer, which may not arrive.
    pub(super) fn to_peer(&self, data: &[u8]) {
        self.client.send(&channel_data(data));
    }

    /// Refreshes the allocation and renews its channel.
    pub(super) fn refresh(&self) {
        assert_eq!((self.refreshed(), self.bind()), (Ok(600), Ok(())));
    }

    /// Ends the call, and asserts that it works until then.
    pub(super) fn end(self) {
        self.exchange();
        self.refresh();
        self.exchange();
        assert_eq!(self.refreshed_for(0), Ok(0));
    }
}

fn channel_data(data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap();
    [&CHANNEL.to_be_bytes(), &length.to_be_bytes(), data].concat()
}

/// Sends Binding requests until there is a response. Some may be lost in full buffers.
pub(super) fn wait_for_response(socket: &UdpSocket) {
    let mut buffer = [0; 2_000];
    let mut received = |number: u8| {
        let id = TransactionId::new([number; 12]);
        // The kernel may report that there was no server a moment ago.
        let _ = socket.send(&message(Class::Request, Method::BINDING, id, &|_| {}));
        while let Ok(length) = socket.recv(&mut buffer) {
            // The responses arrive in order, so that none is left.
            if Message::parse(&buffer[..length]).is_ok_and(|response| response.transaction_id() == id) {
                return true;
            }
        }
        false
    };
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    assert!((0..120).any(&mut received) && received(200), "there is no response");
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
}
