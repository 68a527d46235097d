//! Short datagrams that the kernel has merged: one of them becomes many that wait to be sent.

use super::*;
use crate::stun::attribute::ChannelNumber;

/// The most datagrams that every kernel merges into one.
const MERGED: usize = 64;

/// The number of merged datagrams that wait for the worker, after one that is not. That is four times as many datagrams as
/// are sent at once.
const DATAGRAMS: usize = 64;
const ALL: u64 = (1 + DATAGRAMS * MERGED) as u64;

/// Sends one datagram, and then those that the kernel has merged, each of `length` bytes. They consist of `bytes`, again
/// and again. Returns whether the kernel can send them.
fn send_merged(socket: &UdpSocket, to: SocketAddr, bytes: &[u8], length: u16) -> bool {
    // Unlike the first merged one, if they differ.
    let single = &bytes[bytes.len() - usize::from(length)..];
    assert_eq!(socket.send_to(single, to).unwrap(), single.len());
    if setsockopt(socket, sockopt::UdpGsoSegment, &i32::from(length)).is_err() {
        return false;
    }
    let merged = bytes.repeat(MERGED * single.len() / bytes.len());
    (0..DATAGRAMS).for_each(|_| assert_eq!(socket.send_to(&merged, to).unwrap(), merged.len()));
    setsockopt(socket, sockopt::UdpGsoSegment, &0).unwrap();
    true
}

fn bind_channel(nonce: &str, channel: u16, peer: SocketAddr) -> Vec<u8> {
    let mut buffer = [0; 256];
    let transaction = TransactionId::new(channel.to_be_bytes().repeat(6).try_into().unwrap());
    let mut writer = MessageWriter::new(&mut buffer, Class::Request, Method::CHANNEL_BIND, transaction);
    writer.push(&ChannelNumber(channel));
    writer.push(&XorPeerAddress(peer));
    writer.push(&Username("ann"));
    writer.push(&Realm(REALM));
    writer.push(&Nonce(nonce));
    writer.message_integrity(LongTermKey::derive("ann", REALM, b"password").as_bytes());
    writer.finish().unwrap().to_vec()
}

/// Serves the listener until this many packets more have their outcome.
async fn serve_all(worker: &RefCell<Worker>) {
    let before = counted(worker);
    let all = async {
        while counted(worker) < before + ALL {
            serve(worker).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
}

fn assert_documented(topic: &str, bytes: usize) {
    let most = crate::test_memory_table::documented(topic);
    println!("{topic}: {bytes} bytes");
    assert!(bytes <= most && most < bytes + bytes / 4, "{topic}: {bytes} bytes, and {most} are documented");
}

// Few of them can be sent together.
#[tokio::test(flavor = "current_thread")]
async fn what_waits_to_be_sent_takes_what_is_documented_however_short_it_is() {
    let mut blueprint = blueprint(15_740..=15_743);
    blueprint.policy.allow = vec!["127.0.0.2/32".parse().unwrap()];
    let (worker, _, plan) = worker_of(&blueprint);
    let client = &allocate_for(&worker, &plan, 1).await[0];
    let [bound, other, permitted] = [(); 3].map(|()| UdpSocket::bind("127.0.0.2:0").unwrap());
    let nonce = plan.snapshot.nonces.mint(UNIX, client.local_addr().unwrap());
    for (channel, peer) in [(0x4000, &bound), (0x4001, &other)] {
        client.send_to(&bind_channel(nonce.as_str(), channel, peer.local_addr().unwrap()), plan.address).unwrap();
        serve(&worker).await;
    }
    // Data between two channels in turn.
    if !send_merged(client, plan.address, &[0x40, 0, 0, 4, 1, 2, 3, 4, 0x40, 1, 0, 4, 1, 2, 3, 4], 8) {
        return;
    }
    serve_all(&worker).await;
    // Requests whose responses differ in their lengths.
    let mut requests = [0; 56];
    let (binding, allocate) = requests.split_at_mut(28);
    let mut writer = MessageWriter::new(binding, Class::Request, Method::BINDING, TransactionId::new([1; 12]));
    writer.fingerprint();
    writer.finish().unwrap();
    let mut writer = MessageWriter::new(allocate, Class::Request, Method::ALLOCATE, TransactionId::new([2; 12]));
    writer.push(&RequestedTransport::UDP);
    writer.finish().unwrap();
    assert!(send_merged(client, plan.address, &requests, 28));
    serve_all(&worker).await;
    // Data indications, each with a header and padding.
    let (id, relay) = worker.borrow().shell.relays.iter().map(|relay| (relay.id, relay.address)).next().unwrap();
    assert!(send_merged(&permitted, relay, b"dat", 3));
    worker.borrow_mut().shell.relays.set_ready(ready(id, false));
    while worker.borrow_mut().shell.serve_relays(now()) {}
    let binding = Outcome::Answered(turn::RequestMethod::Binding);
    let sent = [Outcome::RelayedToPeer, binding, Outcome::RelayedToClient];
    assert_eq!(sent.map(|outcome| counters(&worker).get(outcome)), [ALL, ALL / 2, ALL]);
    let worker = worker.borrow();
    assert_documented("Datagrams of a worker that wait for peers", worker.datagrams.outbox_memory());
    assert_documented("Datagrams of a worker that wait for clients", worker.shell.to_clients.outbox_memory());
}
