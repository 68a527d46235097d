//! A line that delays and loses packets in both directions. The kernel's netem does the same, but many kernels lack it.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike as _, bind, recv, send, socket,
};
use turnserver::clock::Clock;

use crate::support::network::{Host, ip};
use crate::support::{TIMEOUT, run};

/// One packet in this number is lost.
const LOSS: u64 = 20;
const DELAY: Duration = Duration::from_millis(100);

/// Creates the namespace of a participant, whose line to the namespace of this thread is the network `network`. Each
/// packet takes 100 ms, and every twentieth is lost.
pub(crate) fn slow_line(network: u8) -> Arc<Host> {
    // The frames pass a namespace between the two, which has no addresses.
    let far = network + 100;
    let middle = Host::new(network);
    whole_packets(network);
    let participant = middle.run(move || {
        let participant = Arc::new(Host::new(far));
        let interfaces = [network, far].map(|network| {
            ip(&format!("addr flush dev n{network}"));
            open(&format!("n{network}"))
        });
        let [near, far] = interfaces.map(Arc::new);
        forward(Arc::clone(&near), Arc::clone(&far));
        forward(far, near);
        participant
    });
    participant.run(move || {
        whole_packets(far);
        ip(&format!("addr flush dev n{far}"));
        ip(&format!("addr add 10.0.{network}.2/24 dev n{far}"));
    });
    participant
}

/// Lets the kernel send only packets that have their checksum and fit on the line.
fn whole_packets(network: u8) {
    let mut ethtool = Command::new("ethtool");
    let finished = run(ethtool.args(["-K", &format!("n{network}"), "tx", "off"]), Some("ethtool"), TIMEOUT);
    assert_eq!(finished.code, Some(0), "{finished:?}");
}

/// Opens an interface of the namespace of this thread for frames.
fn open(interface: &str) -> OwnedFd {
    let frames = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll).unwrap();
    let mut addresses = getifaddrs().unwrap().filter(|one| one.interface_name == interface);
    let address = addresses.find_map(|one| one.address.filter(|of| of.family() == Some(AddressFamily::Packet)));
    bind(frames.as_raw_fd(), address.unwrap().as_link_addr().unwrap()).unwrap();
    frames
}

/// Sends on what an interface receives, until the interface or its other end is removed.
fn forward(from: Arc<OwnedFd>, to: Arc<OwnedFd>) {
    let (queue, queued) = mpsc::channel::<(Clock, Vec<u8>)>();
    thread::spawn(move || {
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut frame = [0; 2_048];
        while let Ok(length) = recv(from.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            if !random.is_multiple_of(LOSS) && queue.send((Clock::start(), frame[..length].to_vec())).is_err() {
                break;
            }
        }
    });
    thread::spawn(move || {
        for (received, frame) in queued {
            thread::sleep(DELAY.saturating_sub(received.elapsed()));
            // The line may have been removed meanwhile.
            if send(to.as_raw_fd(), &frame, MsgFlags::empty()).is_err() {
                break;
            }
        }
    });
}
