//! A machine where everything is right, and machines that each have one fault more, in a network namespace with files of
//! their own. The diagnosis names the fault and no other.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use turnserver::clock::unix_seconds;

use crate::report::{Report, examine_by};
use crate::support::blocked_ports::BLOCKED_RELAY_PORTS;
use crate::support::certificates::Authority;
use crate::support::network::{in_own_network, ip};
use crate::support::{SECRET, Server, TempDir};

/// The public address of the machine.
const ADDRESS: &str = "9.9.9.9";
const NETWORK: [&str; 3] = ["link set lo up", "address add 9.9.9.9/32 dev lo", "route add default dev lo"];

/// A machine, with the server that runs on it.
struct Machine<'t> {
    directory: TempDir,
    config: String,
    /// What the server uses, if it differs from the configuration that is examined.
    served: Option<String>,
    /// Shell commands before the diagnosis, in its own mount namespace.
    mounts: String,
    authority: &'t Authority,
    /// Whether a user who cannot read every file examines it.
    is_limited: bool,
}

impl<'t> Machine<'t> {
    fn good(authority: &'t Authority) -> Self {
        let directory = TempDir::new();
        let [certificate, key] = authority.write(&authority.issue(&["turn.example.org"]), directory.path());
        let config = format!(
            "realm = \"turn.example.org\"\nhostname = \"turn.example.org\"\n\
             [listen]\nudp = [\"{ADDRESS}:3478\"]\ntcp = [\"{ADDRESS}:3478\"]\ntls = [\"{ADDRESS}:443\"]\n\
             [tls]\ncertificate = {certificate:?}\nprivate-key = {key:?}\n\
             [relay]\naddresses = [\"{ADDRESS}\"]\nports = \"20000-20499\"\n\
             [auth]\nsecrets = [{SECRET:?}]\n\
             [log]\nformat = \"json\"\n"
        );
        let mut good = Self { directory, config, served: None, mounts: String::new(), authority, is_limited: false };
        good.replace_file("/etc/hosts", &format!("127.0.0.1 localhost\n{ADDRESS} turn.example.org\n"));
        good.replace_file("/proc/sys/net/core/rmem_max", "8388608\n");
        good.replace_file("/proc/sys/net/core/wmem_max", "8388608\n");
        good
    }

    /// Lets the diagnosis see another file.
    fn replace_file(&mut self, path: &str, content: &str) {
        let file = self.directory.write(&path.replace('/', "_"), content);
        self.mounts += &format!("mount --bind {} {path}\n", file.display());
    }

    fn replace(&mut self, from: &str, to: &str) {
        assert!(self.config.contains(from), "{from} in {}", self.config);
        self.config = self.config.replace(from, to);
    }

    /// Leaves the server as it is.
    fn examine_other(&mut self, from: &str, to: &str) {
        self.served = Some(self.config.clone());
        self.replace(from, to);
    }

    /// Returns the file that a key of `[tls]` names.
    fn file(&self, key: &str) -> PathBuf {
        let (_, rest) = self.config.split_once(&format!("{key} = \"")).unwrap();
        rest.split('"').next().unwrap().into()
    }

    /// Examines the machine while its server runs.
    fn examine(&self) -> Report {
        let _server = Server::start(self.served.as_ref().unwrap_or(&self.config));
        let config = self.directory.write("turnserver.toml", &self.config);
        let root = self.directory.write("root.pem", &self.authority.root());
        let script = format!(
            "set -e\n{}exec {}{} doctor --json --config {} --ca-file {}\n",
            self.mounts,
            if self.is_limited { "setpriv --bounding-set=-dac_override,-dac_read_search " } else { "" },
            env!("CARGO_BIN_EXE_turnserver"),
            config.display(),
            root.display()
        );
        examine_by(Command::new("unshare").args(["--mount", "sh", "-c", &script]), "")
    }
}

/// The warnings and faults of a report: the status, the check, and the text.
fn complaints(report: &Report) -> BTreeSet<(String, String)> {
    let of = |status: &'static str| {
        report.with(status).into_iter().map(move |(check, text)| (format!("{status} {check}"), text.to_owned()))
    };
    of("warning").chain(of("fault")).collect()
}

/// Breaks the good machine in one way, and asserts that the diagnosis complains of exactly that.
fn breaks(name: &str, network: &[&str], expected: &[(&str, &str)], spoil: impl FnOnce(&mut Machine<'_>) + Send) {
    breaks_for(false, name, network, expected, spoil);
}

/// The same, for a user who cannot read every file, or for root.
fn breaks_for(
    is_limited: bool,
    name: &str,
    network: &[&str],
    expected: &[(&str, &str)],
    spoil: impl FnOnce(&mut Machine<'_>) + Send,
) {
    let authority = Authority::new(unix_seconds());
    in_own_network(&NETWORK, || {
        let good = Machine { is_limited, ..Machine::good(&authority) };
        let usual = complaints(&good.examine());
        // What no namespace can have: a synchronized clock, and the unit of a service.
        assert!(
            usual
                .iter()
                .all(|(about, _)| ["warning clock", "warning unit", "warning open-files"].contains(&about.as_str())),
            "{usual:#?}"
        );
        let mut spoilt = Machine { is_limited, ..Machine::good(&authority) };
        network.iter().for_each(|line| ip(line));
        spoil(&mut spoilt);
        let report = spoilt.examine();
        let found: Vec<(String, String)> = complaints(&report).difference(&usual).cloned().collect();
        println!("{name}: {found:#?}");
        let fits = |(found, expected): (&(String, String), &(&str, &str))| {
            found.0 == expected.0 && found.1.contains(expected.1)
        };
        assert!(
            found.len() == expected.len() && found.iter().zip(expected).all(fits),
            "{name}: {expected:?} and not {found:#?} in {:#?}",
            report.findings
        );
    });
}

#[test]
fn wrong_dns() {
    breaks("wrong DNS", &[], &[("fault dns", "9.9.9.10")], |machine| {
        machine.replace_file("/etc/hosts", "127.0.0.1 localhost\n9.9.9.10 turn.example.org\n");
    });
}

// In the file, and as the server sends it.
#[test]
fn missing_intermediate() {
    let expected = [
        ("fault certificate", "does not send the certificate of its issuer"),
        ("warning certificate", "the certificate of the issuer (CN=Test Intermediate) is missing"),
    ];
    breaks("missing intermediate", &[], &expected, |machine| {
        let file = machine.file("certificate");
        let text = fs::read_to_string(&file).unwrap();
        let (own, _) = text.split_once("-----END CERTIFICATE-----").unwrap();
        fs::write(&file, format!("{own}-----END CERTIFICATE-----\n")).unwrap();
    });
}

#[test]
fn relay_ports_that_the_kernel_gives_to_other_programs() {
    let authority = Authority::new(unix_seconds());
    in_own_network(&NETWORK, || {
        let machine = Machine::good(&authority);
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", "20100 60999").unwrap();
        let advice = |report: &Report| {
            let finding = report.findings.iter().find(|finding| finding["check"] == "ephemeral-ports");
            finding.unwrap()["advice"].as_str().map(str::to_owned)
        };
        let expected = "to keep them for the server: sysctl net.ipv4.ip_local_reserved_ports=20100-20499";
        assert_eq!(advice(&machine.examine()).as_deref(), Some(expected));
        fs::write("/proc/sys/net/ipv4/ip_local_reserved_ports", "20100-20499").unwrap();
        assert_eq!(advice(&machine.examine()), None);
    });
}

#[test]
fn small_receive_buffers() {
    breaks("small rmem", &[], &[("warning udp-buffers", "208 KiB")], |machine| {
        machine.replace_file("/proc/sys/net/core/rmem_max", "212992\n");
    });
}

#[test]
fn a_port_that_another_program_has() {
    breaks("port taken", &[], &[("fault listener", "another program uses the port")], |machine| {
        machine.examine_other("tcp = [\"9.9.9.9:3478\"]", "tcp = [\"9.9.9.9:22\"]");
        let other = std::net::TcpListener::bind("9.9.9.9:22").unwrap();
        std::thread::spawn(move || {
            for stream in other.incoming().map_while(Result::ok) {
                let _ = std::io::Write::write_all(&mut &stream, b"SSH-2.0-OpenSSH_9.2\r\n");
            }
        });
    });
}

#[test]
fn a_secret_that_differs_from_that_of_the_server() {
    breaks("wrong secret", &[], &[("fault listener", "refuses the credentials")], |machine| {
        machine.examine_other(SECRET, "another secret of 32 characters!");
    });
}

#[test]
fn relay_ports_that_are_blocked() {
    breaks("blocked relay ports", &BLOCKED_RELAY_PORTS[1..], &[("fault indications", "no data passes")], |_| {});
}

#[test]
fn ipv6_without_a_route() {
    let address = ["address add 2620:fe::fe/128 dev lo"];
    breaks("IPv6 without route", &address, &[("fault route", "IPv6 has no route")], |machine| {
        machine.replace("addresses = [\"9.9.9.9\"]", "addresses = [\"9.9.9.9\", \"2620:fe::fe\"]");
        let hosts = "127.0.0.1 localhost\n9.9.9.9 turn.example.org\n2620:fe::fe turn.example.org\n";
        machine.replace_file("/etc/hosts", hosts);
    });
}

#[test]
fn a_key_that_the_user_cannot_read() {
    let expected = [("fault certificate", "cannot be read: permission denied")];
    breaks_for(true, "unreadable key", &[], &expected, |machine| {
        let key = machine.file("private-key");
        let closed = machine.directory.write("closed.pem", &fs::read_to_string(&key).unwrap());
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        machine.examine_other(&format!("{key:?}"), &format!("{closed:?}"));
    });
}

#[test]
fn a_key_that_is_missing() {
    breaks("missing key", &[], &[("fault certificate", "cannot be read: file not found")], |machine| {
        let key = machine.file("private-key");
        machine.examine_other(&format!("{key:?}"), &format!("{:?}", key.with_extension("missing")));
    });
}

#[test]
fn a_key_of_another_certificate() {
    breaks("other key", &[], &[("fault certificate", "does not belong")], |machine| {
        let other = TempDir::new();
        let [_, key] = machine.authority.write(&machine.authority.issue(&["turn.example.org"]), other.path());
        let key = machine.directory.write("other.pem", &fs::read_to_string(key).unwrap());
        machine.examine_other(&format!("{:?}", machine.file("private-key")), &format!("{key:?}"));
    });
}

#[test]
fn a_short_secret() {
    breaks("short secret", &[], &[("warning configuration", "bytes")], |machine| machine.replace(SECRET, "short"));
}
