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
    use crate::net::testing::{has_ipv6, in_own_network};

    #[test]
    fn each_change_of_an_address_a_route_or_an_interface_is_notified() {
        if !has_ipv6() {
            return;
        }
        in_own_network(&["link set lo up"], || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let changes = Changes::subscribe().unwrap();
                for command in [
                    "addr add 192.0.2.1/32 dev lo",
                    "addr change 192.0.2.1/32 dev lo preferred_lft 100 valid_lft 200",
                    "addr del 192.0.2.1/32 dev lo",
                    "addr add 2001:db8::1/128 dev lo nodad",
                    "addr change 2001:db8::1/128 dev lo preferred_lft 0",
                    "route add local 203.0.113.0/24 dev lo",
                    "-6 route add local 2001:db8:1::/64 dev lo",
                    "link set lo mtu 1500",
                ] {
                    assert!(Command::new("ip").args(command.split(' ')).status().unwrap().success());
                    let changed = timeout(Duration::from_secs(10), changes.next()).await;
                    assert!(matches!(changed, Ok(Ok(()))), "{command}: {changed:?}");
                    // The notifications of this command are complete, because `ip` has ended.
                    discard(changes.0.get_ref()).unwrap();
                }
            });
        });
    }
}
