//! Notifications of the kernel that the interfaces, the addresses or the routes of this machine have changed.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};

use super::watch::{Readable, readable};

/// The changes that matter. A route decides which address the kernel prefers.
const GROUPS: libc::c_int = libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_ROUTE;

/// A subscription to the kernel's notifications. Only their arrival matters; their content is discarded.
#[derive(Debug)]
pub(crate) struct Changes(Readable);

impl Changes {
    /// Subscribes to changes of the network namespace of this thread.
    ///
    /// # Errors
    /// Those of `socket` and `bind`: a sandbox may deny netlink sockets.
    ///
    /// # Panics
    /// If called outside a runtime.
    pub(crate) fn subscribe() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS.cast_unsigned()))?;
        Ok(Self(readable(socket)?))
    }

    /// Waits for a change. Further notifications that have arrived are part of it.
    ///
    /// # Errors
    /// If the kernel has closed the subscription.
    pub(crate) async fn next(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let changed = discard(self.0.get_ref())?;
            ready.clear_ready();
            if changed {
                return Ok(());
            }
        }
    }
}

/// Reads until no notification is left. Returns whether there was one.
fn discard(socket: &OwnedFd) -> io::Result<bool> {
    let mut any = false;
    let mut buffer = [0; 4096];
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            // The kernel has dropped notifications because the buffer was full.
            Ok(_) | Err(Errno::ENOBUFS) => any = true,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(any),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use tokio::runtime::Builder;
    use tokio::time::timeout;

    use super::*;
    use crate::net::testing::in_own_network;

    #[test]
    fn a_new_address_and_its_removal_are_notified() {
        in_own_network(&["link set lo up"], || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let changes = Changes::subscribe().unwrap();
                for command in ["addr add 192.0.2.1/32 dev lo", "addr del 192.0.2.1/32 dev lo"] {
                    assert!(Command::new("ip").args(command.split(' ')).status().unwrap().success());
                    timeout(Duration::from_secs(10), changes.next()).await.unwrap().unwrap();
                    // The notifications of this command are complete, because `ip` has ended.
                    discard(changes.0.get_ref()).unwrap();
                }
            });
        });
    }
}
