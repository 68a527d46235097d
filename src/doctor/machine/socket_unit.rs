//! The unit `turnserver.socket`, with which systemd binds listeners and passes them to the service.

use std::fs;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::unit::DIRECTORIES;
use crate::config::Config;
use crate::control;
use crate::doctor::finding::Finding;
use crate::transport::{Endpoint, Transport};

const NAME: &str = "turnserver.socket";

/// The unit in use.
#[derive(Debug, Default)]
pub(super) struct SocketUnit {
    path: PathBuf,
    sockets: Vec<PassedSocket>,
}

#[derive(Debug)]
struct PassedSocket {
    is_stream: bool,
    /// As in the unit.
    value: String,
}

impl PassedSocket {
    /// Returns the address of a socket of IP. A port alone is one on `[::]`.
    fn address(&self) -> Option<SocketAddr> {
        let port = self.value.parse().map(|port: u16| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
        port.ok().or_else(|| self.value.parse().ok())
    }

    fn fits(&self, endpoint: Endpoint) -> bool {
        self.is_stream == endpoint.transport.is_connection() && self.address() == Some(endpoint.address)
    }
}

impl SocketUnit {
    /// Reads the unit. `root` is `/`. `None` if there is none. Drop-ins are not read.
    pub(super) fn read(root: &Path) -> Option<Self> {
        let read = |directory: &&str| {
            let path = root.join(directory).join(NAME);
            fs::read_to_string(&path).ok().map(|text| (path, text))
        };
        let (path, text) = DIRECTORIES.iter().find_map(read)?;
        let socket = |line: &str| {
            let (name, value) = line.split_once('=')?;
            let is_stream = match name.trim() {
                "ListenStream" => true,
                "ListenDatagram" => false,
                _ => return None,
            };
            Some(PassedSocket { is_stream, value: value.trim().to_owned() })
        };
        Some(Self { path, sockets: text.lines().filter_map(socket).collect() })
    }

    /// Returns whether systemd passes a socket for a listener.
    pub(super) fn passes(&self, endpoint: Endpoint) -> bool {
        self.sockets.iter().any(|socket| socket.fits(endpoint))
    }

    /// Compares the sockets with the listeners of a configuration.
    pub(super) fn examine(&self, config: &Config) -> Vec<Finding> {
        let counted = self.miscounted(config, control::worker_count(config));
        let named = std::iter::once(self.unused(config)).chain(counted).map(|finding| finding.of(self.path.display()));
        named.collect()
    }

    /// Returns what is wrong with the numbers of sockets.
    fn miscounted(&self, config: &Config, workers: usize) -> Vec<Finding> {
        let count = |endpoint: Endpoint| self.sockets.iter().filter(|socket| socket.fits(endpoint)).count();
        // A TLS listener may have the address of a TCP listener, and then its sockets.
        let mut places: Vec<(bool, SocketAddr)> = Vec::new();
        let mut all = Vec::new();
        for endpoint in &config.listen {
            let place = (endpoint.transport.is_connection(), endpoint.address);
            let lines = count(*endpoint);
            if lines == 0 || places.contains(&place) {
                continue;
            }
            places.push(place);
            if lines > workers {
                all.push(Finding::fault(
                    "unit",
                    format!(
                        "{NAME} has {lines} sockets for {endpoint}, and there are only {workers} workers, so the \
                             server does not start if the unit is in use"
                    ),
                    format!("list the address at most {workers} times, or set more `workers`"),
                ));
            } else if lines < workers && !endpoint.transport.is_connection() {
                all.push(Finding::warning(
                    "unit",
                    format!(
                        "{NAME} has sockets for {endpoint} for {lines} of {workers} workers, so the others do not \
                             serve it if the unit is in use"
                    ),
                    format!("list the address {workers} times, with ReusePort=yes, or set fewer `workers`"),
                ));
            }
        }
        let fronts = config.fronts.iter().map(|front| front.listen);
        for address in config.http.listen.iter().copied().chain(fronts) {
            let lines = count(Endpoint::new(Transport::Tcp, address));
            if lines > 1 {
                all.push(Finding::fault(
                    "unit",
                    format!(
                        "{NAME} has {lines} sockets for {address}, which is one of http.listen or front.listen, so \
                             the server does not start if the unit is in use"
                    ),
                    "list the address once",
                ));
            }
        }
        all
    }

    fn unused(&self, config: &Config) -> Finding {
        let control = config.control.socket.path();
        let is_used = |socket: &&PassedSocket| {
            let is_http = socket.is_stream && socket.address().is_some_and(|at| config.http.listen.contains(&at));
            let is_control = socket.is_stream && control == Some(Path::new(&socket.value));
            let is_front = |at: SocketAddr| config.fronts.iter().any(|front| front.listen == at);
            let is_front = socket.is_stream && socket.address().is_some_and(is_front);
            is_http || is_control || is_front || config.listen.iter().any(|endpoint| socket.fits(*endpoint))
        };
        let (used, unused): (Vec<&PassedSocket>, Vec<&PassedSocket>) = self.sockets.iter().partition(is_used);
        if unused.is_empty() {
            Finding::ok("unit", format!("{NAME}, if it is in use, passes sockets to the service: {}", used.len()))
        } else {
            let names: Vec<&str> = unused.iter().map(|socket| socket.value.as_str()).collect();
            Finding::warning(
                "unit",
                format!("{NAME} has sockets that no listener of the configuration has: {}", names.join(", ")),
                "set exactly these addresses in listen.udp, listen.tcp, listen.tls, http.listen, front.listen or \
                 control.socket, or remove them from the unit",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::doctor::finding::Status;

    const UNIT: &str = "[Socket]\nListenDatagram=[::]:3478\nListenStream = 443\nListenStream=127.0.0.1:9641\n\
                        ListenStream=/run/turnserver/control.sock\nReusePort=yes\n";

    fn read(text: &str) -> SocketUnit {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("turnserver-socket-unit-{}-{number}", std::process::id()));
        let directory = root.join("etc/systemd/system");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(NAME), text).unwrap();
        let unit = SocketUnit::read(&root).unwrap();
        fs::remove_dir_all(root).unwrap();
        unit
    }

    #[test]
    fn the_sockets_of_the_unit_are_compared_with_the_listeners() {
        assert!(SocketUnit::read(Path::new("/nowhere")).is_none());
        let unit = read(UNIT);
        let endpoint = |transport, address: &str| Endpoint::new(transport, address.parse().unwrap());
        assert!(unit.passes(endpoint(Transport::Tls, "[::]:443")));
        assert!(unit.passes(endpoint(Transport::Udp, "[::]:3478")));
        assert!(!unit.passes(endpoint(Transport::Udp, "[::]:443")));
        assert!(!unit.passes(endpoint(Transport::Tcp, "0.0.0.0:443")));
        let config = |text: &str| Config::parse(text, "turnserver.toml").unwrap();
        let fitting = config("[listen]\ntcp = [\"[::]:443\"]\n[http]\nlisten = [\"127.0.0.1:9641\"]\n");
        let finding = unit.unused(&fitting);
        let expected = "turnserver.socket, if it is in use, passes sockets to the service: 4";
        assert_eq!((finding.status, finding.what.as_str()), (Status::Ok, expected));
        let front = "[[front]]\nlisten = \"[::]:443\"\nweb = \"127.0.0.1:8443\"\nnames = [\"turn.example.org\"]\n";
        let with_front = config(&format!("[http]\nlisten = [\"127.0.0.1:9641\"]\n{front}"));
        assert_eq!(unit.unused(&with_front).status, Status::Ok);
        let finding = unit.unused(&config("[control]\nsocket = \"\"\n"));
        assert_eq!(finding.status, Status::Warning);
        assert!(finding.what.ends_with(": 443, 127.0.0.1:9641, /run/turnserver/control.sock"), "{finding:?}");
    }

    #[test]
    fn udp_takes_a_socket_for_each_worker_and_nothing_takes_more_than_it_can_use() {
        let config = |text: &str| Config::parse(text, "turnserver.toml").unwrap();
        let found = |unit: &str, text: &str, workers| -> Vec<(Status, String)> {
            let all = read(unit).miscounted(&config(text), workers);
            all.into_iter().map(|finding| (finding.status, finding.what)).collect()
        };
        let twice = "ListenDatagram=[::]:3478\nListenDatagram=[::]:3478\nListenStream=3478\nListenStream=3478\n";
        assert_eq!(found(twice, "", 2), []);
        // The workers can share sockets of TCP.
        let few = found(twice, "", 3);
        assert!(
            matches!(&few[..], [(Status::Warning, what)] if what.contains(" udp [::]:3478 for 2 of 3 ")),
            "{few:?}"
        );
        let with_tls = "[listen]\ntls = [\"[::]:3478\"]\n[tls]\ncertificate = \"/c\"\nprivate-key = \"/k\"\n";
        let many = found(twice, with_tls, 1);
        assert!(matches!(&many[..], [(Status::Fault, _), (Status::Fault, _)]), "{many:?}");
        let services = "[listen]\ntcp = []\n[http]\nlisten = [\"[::]:3478\"]\n";
        let services = found(twice, services, 2);
        assert!(matches!(&services[..], [(Status::Fault, what)] if what.contains("http.listen")), "{services:?}");
    }
}
