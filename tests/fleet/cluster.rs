//! The processes of a cluster of NATS servers.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Process, TempDir};

/// The servers of the cluster. They have fixed ports in the network namespace of the test.
pub(crate) const SERVERS: usize = 3;

/// The configuration of the first server without users. The others differ in names, ports and directories.
pub(crate) const OPEN: &str = r#"
server_name: engine-1
listen: "127.0.0.1:4222"
jetstream { store_dir: "/var/lib/nats", max_mem: 512M, max_file: 512M }
cluster {
    name: engine
    listen: "127.0.0.1:6222"
    routes: ["nats://127.0.0.1:6222", "nats://127.0.0.1:6223", "nats://127.0.0.1:6224"]
}
"#;

/// Returns whether Debian's `nats-server` is there.
pub(crate) fn is_installed() -> bool {
    program().is_some()
}

fn program() -> Option<&'static str> {
    // Debian installs it where only root's PATH may lead.
    ["nats-server", "/usr/sbin/nats-server"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok())
}

/// Starts a server with a configuration file.
pub(crate) fn start_one(file: &Path) -> Process {
    Process::start(Command::new(program().unwrap()).arg("-c").arg(file), Some("nats-server"))
}

/// Returns the `servers` of `[fleet]`.
pub(crate) fn servers() -> String {
    let servers: Vec<String> = (0..SERVERS).map(|index| format!("nats://127.0.0.1:{}", 4222 + index)).collect();
    format!("{servers:?}")
}

/// A cluster of three servers with JetStream. Dropping it kills them.
pub(crate) struct Cluster {
    directory: TempDir,
    servers: Vec<Option<Process>>,
    /// The configuration of the first server.
    config: &'static str,
}

impl Cluster {
    /// Starts the servers with the configuration of the first one.
    pub(crate) fn start(config: &'static str) -> Self {
        let mut cluster = Self { directory: TempDir::new(), servers: Vec::new(), config };
        for index in 0..SERVERS {
            cluster.servers.push(None);
            cluster.restart(index);
        }
        cluster
    }

    /// Starts a server that does not run.
    pub(crate) fn restart(&mut self, index: usize) {
        let store = self.path("js").join(index.to_string());
        let mut config = self.config.to_owned();
        for (first, own) in [
            ("server_name: engine-1", format!("server_name: engine-{index}")),
            ("listen: \"127.0.0.1:4222\"", format!("listen: \"127.0.0.1:{}\"", 4222 + index)),
            ("listen: \"127.0.0.1:6222\"", format!("listen: \"127.0.0.1:{}\"", 6222 + index)),
            ("\"/var/lib/nats\"", format!("{store:?}")),
        ] {
            assert_eq!(config.matches(first).count(), 1, "{first}");
            config = config.replace(first, &own);
        }
        let file = self.directory.write(&format!("engine-{index}.conf"), &config);
        self.servers[index] = Some(start_one(&file));
    }

    /// Returns the lines that the servers have logged.
    pub(crate) fn logs(&self) -> impl Iterator<Item = String> {
        self.servers.iter().flatten().flat_map(|server| server.stderr.so_far())
    }

    /// Kills a server.
    pub(crate) fn kill(&mut self, index: usize) {
        drop(self.servers[index].take());
        while TcpStream::connect(("127.0.0.1", u16::try_from(4222 + index).unwrap())).is_ok() {}
    }

    /// Kills all servers, removes what they have stored, and starts them again.
    pub(crate) fn lose_everything(&mut self) {
        self.while_it_is_away(|cluster| fs::remove_dir_all(cluster.path("js")).unwrap());
    }

    /// Kills all servers, copies what they have stored, and starts them again.
    pub(crate) fn back_up(&mut self) {
        self.while_it_is_away(|cluster| copy(&cluster.path("js"), &cluster.path("backup")));
    }

    /// Kills all servers, puts back what they had stored at the time of the backup, and starts them again.
    pub(crate) fn roll_back(&mut self) {
        self.while_it_is_away(|cluster| {
            fs::remove_dir_all(cluster.path("js")).unwrap();
            copy(&cluster.path("backup"), &cluster.path("js"));
        });
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn while_it_is_away(&mut self, work: impl FnOnce(&Self)) {
        (0..SERVERS).for_each(|index| self.kill(index));
        work(self);
        (0..SERVERS).for_each(|index| self.restart(index));
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(copied.success());
}
