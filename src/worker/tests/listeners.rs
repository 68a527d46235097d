//! Listeners that a reload opens, alters and closes.

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::OwnedFd;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::net::tcp;
use crate::worker::connections::ConnectionOutcome;

fn change(open: Vec<BoundListener>) -> ListenerChange {
    ListenerChange { open, ..ListenerChange::default() }
}

fn plain_tcp(address: SocketAddr, socket: TcpListener) -> BoundListener {
    let endpoint = Endpoint::new(Transport::Tcp, address);
    BoundListener { endpoint, socket: ListenerSocket::Tcp(socket), plain: true }
}

fn binding() -> Vec<u8> {
    let mut buffer = [0; 64];
    let writer = MessageWriter::new(&mut buffer, Class::Request, Method::BINDING, TransactionId::new([1; 12]));
    writer.finish().unwrap().to_vec()
}

#[tokio::test(flavor = "current_thread")]
async fn connections_that_wait_at_a_listener_are_served_when_it_is_closed_or_altered() {
    for is_closed in [true, false] {
        let (worker, handle, plan) = worker_with_mailbox(15_620..=15_623);
        let same = Arc::new(snapshot(plan.snapshot));
        let test = async {
            let socket = tcp::claim_listener(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
            let address = socket.local_addr().unwrap();
            let opened = change(vec![plain_tcp(address, socket)]);
            assert!(handle.reconfigure(Arc::clone(&same), opened).await.unwrap().is_empty());
            // The kernel completes these connections. The worker does not run in the meantime.
            let clients: Vec<_> = (0..20).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
            let endpoint = Endpoint::new(Transport::Tcp, address);
            let changed = if is_closed {
                ListenerChange { close: vec![endpoint], ..ListenerChange::default() }
            } else {
                let altered = AlteredListener { endpoint, transport: Transport::Tls, plain: false };
                ListenerChange { alter: vec![altered], ..ListenerChange::default() }
            };
            assert!(handle.reconfigure(Arc::clone(&same), changed).await.unwrap().is_empty());
            for client in clients {
                client.set_nonblocking(true).unwrap();
                let mut client = TcpStream::from_std(client).unwrap();
                client.write_all(&binding()).await.unwrap();
                let mut response = [0; 256];
                let length = client.read(&mut response).await.unwrap();
                assert_eq!(Message::parse(&response[..length]).unwrap().class(), Class::Success);
            }
            if is_closed {
                assert!(std::net::TcpStream::connect(address).is_err());
            } else {
                // A client without TLS that connects after the change gets no response.
                let mut client = TcpStream::connect(address).await.unwrap();
                client.write_all(&binding()).await.unwrap();
                let read = client.read(&mut [0; 256]).await;
                assert!(read.as_ref().map_or(true, |length| *length == 0), "{read:?}");
                let closed =
                    ListenerChange { close: vec![Endpoint::new(Transport::Tls, address)], ..ListenerChange::default() };
                handle.reconfigure(Arc::clone(&same), closed).await.unwrap();
                assert!(std::net::TcpStream::connect(address).is_err());
            }
        };
        with_served_mailbox(&worker, plan.mailbox, test).await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_listener_that_cannot_be_opened_is_reported_and_the_others_are_opened() {
    let (worker, handle, plan) = worker_with_mailbox(15_624..=15_627);
    let same = Arc::new(snapshot(plan.snapshot));
    // The kernel does not watch regular files.
    let file = TcpListener::from(OwnedFd::from(File::open("Cargo.toml").unwrap()));
    file.set_nonblocking(true).unwrap();
    let socket = tcp::claim_listener(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = socket.local_addr().unwrap();
    let broken = SocketAddr::from(([192, 0, 2, 1], 3478));
    let test = async {
        let opened = change(vec![plain_tcp(broken, file), plain_tcp(address, socket)]);
        let failed = handle.reconfigure(same, opened).await.unwrap();
        let [FailedListener { endpoint, error }] = failed.as_slice() else { panic!("{failed:?}") };
        assert_eq!((endpoint.address, error.raw_os_error()), (broken, Some(libc::EPERM)));
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(&binding()).await.unwrap();
        assert!(client.read(&mut [0; 256]).await.unwrap() > 0);
    };
    with_served_mailbox(&worker, plan.mailbox, test).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_connection_that_would_use_a_spare_file_waits_until_there_is_another_file() {
    let spare = SpareFiles::new(0, 0);
    let (worker, handle, plan) = worker_with(&blueprint(15_628..=15_631), |plan| plan.spare = spare.clone());
    let same = Arc::new(snapshot(plan.snapshot));
    let test = async {
        let socket = tcp::claim_listener(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = socket.local_addr().unwrap();
        handle.reconfigure(same, change(vec![plain_tcp(address, socket)])).await.unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(&binding()).await.unwrap();
        let rejected = async {
            while worker.borrow().shell.statistics.read().connections.get(ConnectionOutcome::AcceptFailed) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            read = client.readable() => panic!("the connection was accepted: {read:?}"),
            () = rejected => {}
        }
        spare.set(u64::MAX, 0);
        let mut response = [0; 256];
        let length = client.read(&mut response).await.unwrap();
        assert_eq!(Message::parse(&response[..length]).unwrap().class(), Class::Success);
    };
    with_served_mailbox(&worker, plan.mailbox, test).await;
}
