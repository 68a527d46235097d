//! Why packets cannot leave this machine without the kernel's network stack.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

/// Why there is no next hop. The text is for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The addresses are no pair of unicast addresses of one IP version, or one is link-local.
    Addresses,
    /// The destination is an address of this machine.
    ThisMachine,
    /// The destination is a broadcast, multicast or anycast address.
    NotUnicast,
    /// There is no route, or the source is not an address of this machine.
    NoRoute,
    /// A route or rule rejects the packets (`unreachable`).
    Unreachable,
    /// A route or rule rejects the packets (`prohibit`).
    Prohibited,
    /// A route or rule drops the packets (`blackhole`).
    Blackhole,
    /// The kernel reports another error.
    Refused(i32),
    /// The kernel's response has another form than expected.
    Unread,
    /// The route adds a header, such as MPLS.
    Encapsulated,
    /// A policy rule selects the route by properties that differ from packet to packet.
    Rule {
        /// Its priority.
        priority: u32,
    },
    /// The sockets that watch routes and neighbours have failed; the log has the error.
    Unwatched,
    /// The interface has been removed.
    NoInterface,
    /// The interface is of a kind through which the program does not send.
    Kind {
        /// The name of the interface.
        interface: Arc<str>,
        /// Its kind as `ip -details link` shows it.
        kind: Arc<str>,
    },
    /// The mode or the hash policy of the bond does not permit XDP.
    Bond {
        /// The name of the bond.
        interface: Arc<str>,
    },
    /// The interface is not Ethernet.
    NotEthernet {
        /// The name of the interface.
        interface: Arc<str>,
    },
    /// The interface is down.
    Down {
        /// The name of the interface.
        interface: Arc<str>,
    },
    /// The interface is up but has no link.
    NoCarrier {
        /// The name of the interface.
        interface: Arc<str>,
    },
    /// The kernel does not know the link address of the neighbour yet.
    Unresolved {
        /// The gateway, or the destination.
        neighbour: IpAddr,
        /// The name of the interface.
        interface: Arc<str>,
    },
    /// The neighbour does not respond.
    Failed {
        /// The gateway, or the destination.
        neighbour: IpAddr,
        /// The name of the interface.
        interface: Arc<str>,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addresses => {
                f.write_str("source and destination are no unicast addresses of one IP version, or one is link-local")
            }
            Self::ThisMachine => f.write_str("the destination is on this machine"),
            Self::NotUnicast => f.write_str("the destination is a broadcast, multicast or anycast address"),
            Self::NoRoute => f.write_str(
                "there is no route from the source to the destination, or the source is not an address of this machine",
            ),
            Self::Unreachable => f.write_str("the destination is unreachable: see `ip route` and `ip rule`"),
            Self::Prohibited => f.write_str("a route or rule of the type `prohibit` applies to the destination"),
            Self::Blackhole => f.write_str("a route or rule of the type `blackhole` applies to the destination"),
            Self::Refused(errno) => {
                let error = io::Error::from_raw_os_error(*errno);
                write!(f, "the kernel reports no route to the destination: {error}")
            }
            Self::Unread => f.write_str("the kernel describes the route in an unknown form"),
            Self::Encapsulated => f.write_str("the route adds a header to packets: see `encap` in `ip route`"),
            Self::Rule { priority } => write!(
                f,
                "the policy rule with priority {priority} selects a route by port, traffic class or flow label: see \
                 `ip rule`"
            ),
            Self::Unwatched => {
                f.write_str("routes and neighbours cannot be watched at the moment: the log has the error")
            }
            Self::NoInterface => f.write_str("the interface of the route has been removed"),
            Self::Kind { interface, kind } => {
                write!(f, "the route leads through the interface {interface} of the kind {kind}")
            }
            Self::Bond { interface } => write!(
                f,
                "the bond {interface} has a mode without XDP: balance-rr, active-backup, balance-xor and 802.3ad have \
                 it, unless xmit_hash_policy is vlan+srcmac"
            ),
            Self::NotEthernet { interface } => write!(f, "the interface {interface} is not Ethernet"),
            Self::Down { interface } => write!(f, "the interface {interface} is down"),
            Self::NoCarrier { interface } => write!(f, "the interface {interface} has no link"),
            Self::Unresolved { neighbour, interface } => {
                write!(f, "the link address of the neighbour {neighbour} at {interface} is not known yet")
            }
            Self::Failed { neighbour, interface } => {
                write!(f, "the neighbour {neighbour} at {interface} does not respond")
            }
        }
    }
}

impl std::error::Error for Obstacle {}
