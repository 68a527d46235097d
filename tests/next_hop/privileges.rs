//! The watcher of a process without capabilities.

use std::env;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use turnserver::offload::next_hop::resolve;

use crate::hosts::{FAR, Server, pair, skip, through, with_neighbours};
use crate::network::ip;

const CHILD: &str = "NEXT_HOP_WITHOUT_CAPABILITIES";
const NOBODY: u32 = 65534;

#[test]
fn no_capability_and_no_forwarding_is_needed() {
    with_neighbours([1], |_, _| {
        assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim(), "0");
        ip("route add default via 10.0.1.2");
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "privileges::child", "--ignored", "--nocapture", "--test-threads=1"])
            .env(CHILD, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .uid(NOBODY)
            .gid(NOBODY)
            .spawn();
        let mut child = match child {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return skip("another user may not run the test program");
            }
            child => child.unwrap(),
        };
        // The child writes this when it waits for the change.
        let mut output = child.stdout.take().unwrap();
        let mut text = String::new();
        while !text.contains("READY") {
            let mut byte = [0];
            assert_eq!(output.read(&mut byte).unwrap(), 1, "the child ended: {text}");
            text.push(char::from(byte[0]));
        }
        ip("link set n1 mtu 1400");
        output.read_to_string(&mut text).unwrap();
        assert!(child.wait().unwrap().success(), "{text}");
        assert!(text.contains("1 passed"), "{text}");
    });
}

#[test]
#[ignore = "a part of the test above"]
fn child() {
    if env::var_os(CHILD).is_none() {
        return;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    assert!(status.lines().any(|line| line.split_whitespace().eq(["CapEff:", "0000000000000000"])), "{status}");
    let pair = pair("10.0.1.1", FAR);
    assert_eq!(resolve(pair).unwrap(), Ok(through(1)));
    let mut server = Server::new();
    assert_eq!(server.ask(pair), Ok(through(1)));
    writeln!(io::stdout(), "READY").unwrap();
    server.wait(pair, |resolution| resolution.as_ref().is_ok_and(|next_hop| next_hop.longest_packet == 1400));
}
