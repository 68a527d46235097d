//! What the kernel of this machine permits.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::path::Path;

use super::unit;
use crate::doctor::finding::Finding;
use crate::net::{limits, udp};
use crate::transport::Endpoint;

/// The part of the relay ports that other programs may use without a warning, in percent.
const TOLERATED_USE: usize = 1;

/// The ports that other programs need for their connections.
const EPHEMERAL_PORTS: usize = 4_096;

/// The part of the table of connections in use from which it is a warning, in percent.
const CONNECTIONS_USED: u64 = 80;

/// Returns the findings about the kernel. `root` is `/`. `listener`: one of the running server, if it runs; then relay ports
/// in use may be its own.
pub(super) fn examine(
    root: &Path,
    ports: &RangeInclusive<u16>,
    files: u64,
    listener: Option<Endpoint>,
) -> Vec<Finding> {
    let mut findings = vec![buffers(root), open_files(root, files, listener)];
    findings.extend(relay_ports(root, ports, listener.is_some()));
    findings.extend(connection_tracking(root));
    findings.extend(offloads());
    findings.extend(container(root));
    findings
}

fn read(root: &Path, path: &str) -> Option<String> {
    fs::read_to_string(root.join(path)).ok()
}

fn number(root: &Path, path: &str) -> Option<u64> {
    read(root, path)?.trim().parse().ok()
}

/// The buffers of UDP listeners.
fn buffers(root: &Path) -> Finding {
    let wanted = udp::LISTENER_BUFFER as u64;
    let limit = |name: &str| number(root, &format!("proc/sys/net/core/{name}"));
    let small: Vec<(&str, u64)> = ["rmem_max", "wmem_max"]
        .into_iter()
        .filter_map(|name| Some((name, limit(name)?)))
        .filter(|(_, limit)| *limit < wanted)
        .collect();
    if small.is_empty() {
        return Finding::ok("udp-buffers", format!("UDP listeners get buffers of {} KiB", wanted / 1024));
    }
    let least = small.iter().map(|(_, limit)| *limit).min().unwrap_or_default();
    let commands: String = small.iter().map(|(name, _)| format!(" net.core.{name}={wanted}")).collect();
    Finding::warning(
        "udp-buffers",
        format!(
            "the system limits the buffers of UDP listeners to {} KiB in place of {} KiB, so packets are lost in bursts",
            least / 1024,
            wanted / 1024
        ),
        format!("run sysctl{commands}, and write that into /etc/sysctl.d/turnserver.conf"),
    )
}

/// Compares the files that the server can use with its limit: of its process, of its unit, or of this process.
fn open_files(root: &Path, needed: u64, listener: Option<Endpoint>) -> Finding {
    let of_server =
        listener.and_then(|listener| process_of(root, listener)).and_then(|process| limit_of(root, process));
    let (whose, limit) = match (of_server, unit::open_files(root)) {
        (Some(limit), _) => ("the server may open", limit),
        (None, Some(limit)) => ("the unit lets the server open", limit),
        (None, None) => ("this process may open", limits::hard_open_files().unwrap_or(u64::MAX)),
    };
    if limit >= needed {
        return Finding::ok("open-files", format!("{whose} {limit} files; the configuration can use {needed}"));
    }
    Finding::warning(
        "open-files",
        format!("{whose} {limit} files, but allocations and connections can use {needed}"),
        "raise LimitNOFILE in the unit, or `ulimit -Hn`, or lower limits.allocations and limits.connections",
    )
}

/// Returns the process that listens, if this one may see it.
fn process_of(root: &Path, listener: Endpoint) -> Option<u32> {
    let protocol = listener.transport.port_protocol();
    let tables = [protocol.to_owned(), format!("{protocol}6")];
    let local = in_table(listener.address);
    let sockets: Vec<String> = tables
        .iter()
        .filter_map(|table| read(root, &format!("proc/net/{table}")))
        .flat_map(|table| sockets_of(&table, &local))
        .collect();
    let has_socket = |process: &u32| {
        let files = fs::read_dir(root.join(format!("proc/{process}/fd"))).into_iter().flatten().flatten();
        files
            .filter_map(|file| fs::read_link(file.path()).ok())
            .any(|target| target.to_str().is_some_and(|target| sockets.iter().any(|socket| target == socket)))
    };
    let processes = fs::read_dir(root.join("proc")).ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(has_socket)
}

/// Returns an address as the tables of sockets have it: words in the byte order of the machine.
fn in_table(address: SocketAddr) -> String {
    let word = |bytes: &[u8]| format!("{:08X}", u32::from_ne_bytes(bytes.try_into().unwrap_or_default()));
    let words: String = match address.ip() {
        IpAddr::V4(ip) => word(&ip.octets()),
        IpAddr::V6(ip) => ip.octets().chunks(4).map(word).collect(),
    };
    format!("{words}:{:04X}", address.port())
}

/// Returns the unconnected sockets of an address, as `/proc/PID/fd` names them, in a table like `/proc/net/udp`.
fn sockets_of(table: &str, wanted: &str) -> Vec<String> {
    let of_line = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (local, remote, inode) = (columns.get(1)?, columns.get(2)?, columns.get(9)?);
        let is_wanted = *local == wanted && remote.ends_with(":0000");
        is_wanted.then(|| format!("socket:[{inode}]"))
    };
    table.lines().skip(1).filter_map(of_line).collect()
}

fn limit_of(root: &Path, process: u32) -> Option<u64> {
    let limits = read(root, &format!("proc/{process}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let soft = line.split_whitespace().next()?;
    if soft == "unlimited" { Some(u64::MAX) } else { soft.parse().ok() }
}

/// Other programs that use relay ports now, or may get them.
fn relay_ports(root: &Path, ports: &RangeInclusive<u16>, is_running: bool) -> Vec<Finding> {
    let (first, last) = (ports.start(), ports.end());
    let mut findings = Vec::new();
    if !is_running {
        let used = ["proc/net/udp", "proc/net/udp6"].iter().filter_map(|table| read(root, table));
        let used = used.map(|table| udp_ports(&table).filter(|port| ports.contains(port)).count()).sum::<usize>();
        findings.push(if used * 100 <= ports.len() * TOLERATED_USE {
            Finding::ok(
                "relay-ports",
                format!("{} of {} ports are free", ports.len() - used.min(ports.len()), ports.len()),
            )
        } else {
            Finding::warning(
                "relay-ports",
                format!("other programs use {used} of the {} relay ports", ports.len()),
                "choose another range in relay.ports, or stop the other programs (for example a second TURN server)",
            )
        });
    }
    let range = read(root, "proc/sys/net/ipv4/ip_local_port_range").and_then(|text| {
        let mut bounds = text.split_whitespace().map(str::parse::<u16>);
        Some((bounds.next()?.ok()?, bounds.next()?.ok()?))
    });
    let reserved = read(root, "proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    if let Some((low, high)) = range
        && low <= *last
        && high >= *first
    {
        let shared = low.max(*first)..=high.min(*last);
        findings.push(if shared.clone().all(|port| is_reserved(&reserved, port)) {
            Finding::ok("ephemeral-ports", "the kernel gives no relay port to other programs")
        } else {
            let range = format!("{}-{}", shared.start(), shared.end());
            let left = (low..=high).filter(|port| !shared.contains(port) && !is_reserved(&reserved, *port)).count();
            let advice = if left < EPHEMERAL_PORTS {
                "to keep them apart, choose a range in relay.ports that leaves ports to other programs".to_owned()
            } else {
                // The setting replaces the list.
                let before = Some(reserved.trim()).filter(|list| !list.is_empty());
                let list = before.map_or_else(|| range.clone(), |list| format!("{list},{range}"));
                format!("to keep them for the server: sysctl net.ipv4.ip_local_reserved_ports={list}")
            };
            Finding {
                advice: Some(advice),
                ..Finding::ok(
                    "ephemeral-ports",
                    format!(
                        "the kernel may give the relay ports {range} to other programs; the server skips ports in use"
                    ),
                )
            }
        });
    }
    findings
}

/// Returns the local ports of a table of UDP sockets, as in `/proc/net/udp`.
fn udp_ports(table: &str) -> impl Iterator<Item = u16> {
    table.lines().skip(1).filter_map(|line| {
        let (_, port) = line.split_whitespace().nth(1)?.rsplit_once(':')?;
        u16::from_str_radix(port, 16).ok()
    })
}

/// Whether a list of ports and ranges, as in `ip_local_reserved_ports`, has a port.
fn is_reserved(list: &str, port: u16) -> bool {
    list.trim().split(',').any(|entry| {
        let (first, last) = entry.split_once('-').unwrap_or((entry, entry));
        let bounds = first.parse().ok().zip(last.parse().ok());
        bounds.is_some_and(|(first, last): (u16, u16)| (first..=last).contains(&port))
    })
}

fn connection_tracking(root: &Path) -> Option<Finding> {
    let most = number(root, "proc/sys/net/netfilter/nf_conntrack_max")?;
    let used = number(root, "proc/sys/net/netfilter/nf_conntrack_count")?;
    let what = format!("the firewall tracks {used} of at most {most} connections");
    Some(if used * 100 < most * CONNECTIONS_USED {
        Finding::ok("connection-tracking", what)
    } else {
        Finding::warning(
            "connection-tracking",
            format!("{what}; when the table is full, it drops packets of new ones"),
            "raise net.netfilter.nf_conntrack_max, or exempt the relay ports (notrack in the raw table)",
        )
    })
}

/// Whether the kernel sends and receives several datagrams at once.
fn offloads() -> Option<Finding> {
    let socket = UdpSocket::bind("127.0.0.1:0").ok()?;
    Some(if udp::enable_gro(&socket) {
        Finding::ok("udp-offload", "the kernel joins received datagrams (GRO)")
    } else {
        Finding::warning(
            "udp-offload",
            "the kernel cannot join datagrams (GRO), so each packet costs more",
            "use Linux 5.10 or later, not gVisor",
        )
    })
}

fn container(root: &Path) -> Option<Finding> {
    let is_container = ["run/.containerenv", ".dockerenv"].iter().any(|file| root.join(file).exists());
    if !is_container {
        return None;
    }
    let table = read(root, "proc/net/route").unwrap_or_default();
    let default = table.lines().skip(1).filter_map(|line| {
        let mut columns = line.split_whitespace();
        let (interface, destination) = (columns.next()?, columns.next()?);
        (destination == "00000000").then_some(interface)
    });
    Some(if default.into_iter().any(|interface| is_virtual_pair(root, interface)) {
        Finding::warning(
            "container",
            "this container is in a bridge network: each relay port has to be published, and clients seem to be the bridge",
            "run the container with the network of the host (--network host)",
        )
    } else {
        Finding::ok("container", "this container has no bridge network of Docker or Podman")
    })
}

/// Whether an interface is one end of a pair (veth), whose other end is at a bridge of the host. Other interfaces above
/// another one, such as a VLAN, have a type.
fn is_virtual_pair(root: &Path, interface: &str) -> bool {
    let directory = format!("sys/class/net/{interface}");
    let value = |name: &str| number(root, &format!("{directory}/{name}"));
    let is_typed = read(root, &format!("{directory}/uevent")).is_some_and(|text| text.contains("DEVTYPE="));
    let has_device = root.join(&directory).join("device").exists();
    !is_typed && !has_device && value("iflink").zip(value("ifindex")).is_some_and(|(link, own)| link != own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Status;
    use crate::transport::Transport;

    /// Returns a directory with files like those of `/`.
    fn root(name: &str, files: &[(&str, &str)]) -> std::path::PathBuf {
        let root = std::env::temp_dir().join(format!("turnserver-kernel-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn small_buffers_are_a_warning_with_the_command() {
        let small =
            root("small", &[("proc/sys/net/core/rmem_max", "212992\n"), ("proc/sys/net/core/wmem_max", "8388608")]);
        let finding = buffers(&small);
        assert!(finding.what.contains("208 KiB in place of 4096 KiB"), "{finding:?}");
        assert!(finding.advice.unwrap().starts_with("run sysctl net.core.rmem_max=4194304,"));
        let large =
            root("large", &[("proc/sys/net/core/rmem_max", "4194304"), ("proc/sys/net/core/wmem_max", "4194304")]);
        assert_eq!(buffers(&large).status, Status::Ok);
    }

    #[test]
    fn the_limit_of_open_files_is_that_of_the_server_of_its_unit_or_of_this_process() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1000                 2000                 files     \n";
        let sockets = "  sl  local_address rem_address   st\n  \
                       1: 00000000:0D96 0100007F:9999 01 0:0 0:0 0 0 0 41\n  \
                       3: 0100007F:0D96 00000000:0000 07 0:0 0:0 0 0 0 42\n  \
                       2: 00000000:0D96 00000000:0000 07 0:0 0:0 0 0 0 43 2 0\n";
        let files = [
            ("proc/net/udp", sockets),
            ("proc/77/limits", limits),
            ("etc/systemd/system/turnserver.service", "[Service]\nLimitNOFILE=3000\n"),
        ];
        let machine = root("files", &files);
        fs::create_dir_all(machine.join("proc/77/fd")).unwrap();
        std::os::unix::fs::symlink("socket:[43]", machine.join("proc/77/fd/5")).unwrap();
        let listener = |port| Some(Endpoint::new(Transport::Udp, ([0, 0, 0, 0], port).into()));
        let check = |needed, listener| {
            let finding = open_files(&machine, needed, listener);
            (finding.status, finding.what)
        };
        let warning = (Status::Warning, "the server may open 1000 files, but allocations and connections can use 1001");
        assert_eq!(check(1_001, listener(3478)), (warning.0, warning.1.to_owned()));
        let ok = (Status::Ok, "the unit lets the server open 3000 files; the configuration can use 1001");
        for listener in [None, listener(3479)] {
            assert_eq!(check(1_001, listener), (ok.0, ok.1.to_owned()));
        }
        assert!(open_files(Path::new("/nowhere"), 1, None).what.starts_with("this process may open "));
        // This process is found by its socket.
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let own = Endpoint::new(Transport::Udp, socket.local_addr().unwrap());
        assert_eq!(process_of(Path::new("/"), own), Some(std::process::id()));
        assert_eq!(in_table("[::1]:3478".parse().unwrap()), "00000000000000000000000001000000:0D96");
        assert_eq!(limit_of(Path::new("/"), std::process::id()), limits::open_files().ok());
    }

    #[test]
    fn relay_ports_of_other_programs_are_counted_and_shared_ranges_are_named() {
        let rows: String = (0..3).map(|n| format!("  1: 00000000:{:04X} 00000000:0000 07\n", 50_000 + n)).collect();
        let files = |reserved: &'static str| {
            [
                ("proc/net/udp", format!("  sl  local_address rem_address   st\n{rows}")),
                ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n".to_owned()),
                ("proc/sys/net/ipv4/ip_local_reserved_ports", reserved.to_owned()),
            ]
        };
        let check = |name: &str, reserved, ports: RangeInclusive<u16>, is_running| {
            let files = files(reserved);
            let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
            relay_ports(&root(name, &files), &ports, is_running)
        };
        let few = check("few", "", 50_000..=50_009, false);
        assert_eq!((few[0].status, few[1].status), (Status::Warning, Status::Ok));
        assert_eq!(few[0].what, "other programs use 3 of the 10 relay ports");
        assert!(few[1].advice.as_ref().unwrap().ends_with("ip_local_reserved_ports=50000-50009"));
        let added = check("added", "8080,30000-30010\n", 50_000..=50_009, false);
        assert!(added[1].advice.as_ref().unwrap().ends_with("_ports=8080,30000-30010,50000-50009"));
        // Reserving nearly all of them would leave none for connections.
        let all = check("all", "", 32_768..=65_535, false);
        assert!(all[1].advice.as_ref().unwrap().contains("choose a range in relay.ports"), "{all:?}");
        let many = check("many", "8080,49152-61000\n", 49_152..=65_535, false);
        assert_eq!(many[0].what, "16381 of 16384 ports are free");
        assert_eq!((many[1].status, &many[1].advice), (Status::Ok, &None));
        // The ports in use may be its own.
        assert_eq!(check("running", "", 50_000..=50_009, true).len(), 1);
        assert_eq!(check("below", "", 20_000..=30_000, true), []);
    }

    #[test]
    fn a_table_of_connections_that_is_almost_full_is_a_warning() {
        let table = |name: &str, count: &str| {
            let most = ("proc/sys/net/netfilter/nf_conntrack_max", "1000");
            connection_tracking(&root(name, &[most, ("proc/sys/net/netfilter/nf_conntrack_count", count)])).unwrap()
        };
        assert_eq!(table("full", "800").status, Status::Warning);
        assert_eq!(table("empty", "799").status, Status::Ok);
        assert_eq!(connection_tracking(&root("none", &[])), None);
    }

    #[test]
    fn a_container_in_a_bridge_network_is_a_warning() {
        const OF_NETWORK: &str = "eth0\t0000FEA9\t00000000\t0001\n";
        let header = "Iface\tDestination\tGateway\n";
        // The gateway is 172.31.0.1, as in the default network of EC2.
        let route = format!("{header}{OF_NETWORK}eth0\t00000000\t01001FAC\t0003\n");
        let status = |name: &str, files: &[(&str, &str)]| {
            let all = [&[("proc/net/route", route.as_str())], files].concat();
            container(&root(name, &all)).map(|finding| finding.status)
        };
        let [ifindex, iflink] = ["sys/class/net/eth0/ifindex", "sys/class/net/eth0/iflink"];
        let uevent = "sys/class/net/eth0/uevent";
        let pair = [(ifindex, "2\n"), (iflink, "17\n"), (uevent, "INTERFACE=eth0\nIFINDEX=2\n")];
        let docker = [&[(".dockerenv", "")], &pair[..]].concat();
        assert_eq!(status("docker", &docker), Some(Status::Warning));
        let podman = [&[("run/.containerenv", "")], &pair[..]].concat();
        assert_eq!(status("podman", &podman), Some(Status::Warning));
        // A pair that is not in a container.
        assert_eq!(status("no-container", &pair), None);
        let host = [(".dockerenv", ""), (ifindex, "2\n"), (iflink, "2\n"), ("sys/class/net/eth0/device/vendor", "")];
        assert_eq!(status("host", &host), Some(Status::Ok));
        let bridge = [(".dockerenv", ""), (ifindex, "2\n"), (iflink, "2\n")];
        assert_eq!(status("host-with-bridge", &bridge), Some(Status::Ok));
        let vlan = [(".dockerenv", ""), (ifindex, "3\n"), (iflink, "2\n"), (uevent, "DEVTYPE=vlan\nINTERFACE=eth0\n")];
        assert_eq!(status("host-with-vlan", &vlan), Some(Status::Ok));
        let without = [(".dockerenv", ""), ("proc/net/route", header)];
        assert_eq!(container(&root("none-routed", &without)).unwrap().status, Status::Ok);
    }
}
