//! Network namespaces for a test.

use std::fs::File;
use std::panic::resume_unwind;
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Pid, gettid};

use super::skip;

/// Runs a test in its own network namespace. Each line of `setup` has the arguments of one `ip` command, which
/// configures the namespace. The processes and sockets of the test's thread are in the namespace.
///
/// [Skips](skip) the test without the privilege to create a namespace or without the `ip` command.
pub(crate) fn in_own_network(setup: &[&str], test: impl FnOnce() + Send) {
    if Command::new("ip").arg("-V").output().is_err() {
        return skip("the `ip` command is missing");
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
                return skip(&format!("no privilege to create a network namespace ({error})"));
            }
            setup.iter().for_each(|line| ip(line));
            test();
        });
    });
}

/// Runs one `ip` command in the namespace of this thread.
pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// A namespace of its own on the other end of one interface of the server.
///
/// Network `n` is 10.0.n.0/24 and fd00:n::/64 on the interface `n<n>` at both ends. The server is host 1 there, and the
/// other end is host 2, and fe80::2. The last bytes of the link addresses are n and the host.
pub(crate) struct Host {
    commands: mpsc::Sender<Job>,
    thread: Pid,
}

type Job = Box<dyn FnOnce() + Send>;

impl Host {
    /// Creates the interface of network `network` in the namespace of this thread, and the namespace of its other end.
    pub(crate) fn new(network: u8) -> Self {
        let (commands, received) = mpsc::channel::<Job>();
        let (started, id) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            started.send(gettid()).unwrap();
            // The namespace ends with the thread, when the test drops its sender.
            received.into_iter().for_each(|command| command());
        });
        let host = Self { commands, thread: id.recv().unwrap() };
        host.connect(network);
        host
    }

    /// Creates the interface of another network in the namespace of this thread, whose other end is in this namespace.
    pub(crate) fn connect(&self, network: u8) {
        let (name, thread) = (format!("n{network}"), self.thread);
        ip(&format!("link add {name} type veth peer name {name} netns {thread}"));
        configure(network, 1);
        self.run(move || {
            configure(network, 2);
            ip(&format!("addr add fe80::2/64 dev {name} nodad"));
            wait_for_link(network);
        });
        wait_for_link(network);
    }

    /// Runs something in the namespace.
    pub(crate) fn run<T: Send + 'static>(&self, command: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.commands.send(Box::new(move || done.send(command()).unwrap())).unwrap();
        result.recv().expect("the command succeeds")
    }

    /// Waits until an interface of both ends is up again.
    pub(crate) fn wait_for_link(&self, network: u8) {
        self.run(move || wait_for_link(network));
        wait_for_link(network);
    }

    /// Runs an `ip` command in the namespace.
    pub(crate) fn ip(&self, arguments: &str) {
        let arguments = arguments.to_owned();
        self.run(move || ip(&arguments));
    }
}

fn configure(network: u8, host: u8) {
    let name = format!("n{network}");
    // A link-local address that the kernel adds would take a second.
    set(&format!("ipv6/conf/{name}/addr_gen_mode"), "1");
    for command in [
        "link set lo up".to_owned(),
        format!("link set {name} address {}", text(link_address(network, host))),
        format!("link set {name} up"),
        format!("addr add 10.0.{network}.{host}/24 dev {name}"),
        format!("addr add fd00:{network}::{host}/64 dev {name} nodad"),
    ] {
        ip(&command);
    }
}

/// Waits until the kernel has noticed that both ends of an interface are up, which it does in the background.
fn wait_for_link(network: u8) {
    let name = format!("n{network}");
    let is_up = || {
        let output = Command::new("ip").args(["-o", "link", "show", "dev", &name]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().contains("state UP")
    };
    assert!((0..10_000).any(|_| is_up()), "{name} has no link");
}

/// Sets a parameter of the network stack in the namespace of this thread.
pub(crate) fn set(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
}

pub(crate) fn link_address(network: u8, host: u8) -> [u8; 6] {
    [2, 0, 0, 0, network, host]
}

pub(crate) fn text(link_address: [u8; 6]) -> String {
    link_address.map(|byte| format!("{byte:02x}")).join(":")
}

/// A network namespace. It exists at least as long as this.
pub(crate) struct Namespace(File);

impl Namespace {
    /// The namespace of this thread.
    pub(crate) fn own() -> Self {
        Self(File::open("/proc/thread-self/ns/net").unwrap())
    }

    /// Moves this thread into the namespace.
    pub(crate) fn enter(&self) {
        setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// Runs something in the namespace. Processes that it starts, and sockets, stay there.
    pub(crate) fn run<T: Send>(&self, function: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter();
                function()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }
}
