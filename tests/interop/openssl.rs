//! What `openssl s_client` and `curl` find at the TLS listeners, and at a front as if it was such a listener. Only over
//! loopback, because no data is relayed.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rcgen::KeyPair;
use turnserver::clock::unix_seconds;

use crate::nginx::Nginx;
use crate::support::certificates::{Authority, Issued};
use crate::support::{Controlled, Finished, LogLine, TIMEOUT, TempDir, config, run, with_tls};

const DAY: u64 = 86_400;

/// A server with certificates for `turn.example.org` of ECDSA, the default, and of RSA, and one for `web.example.org`;
/// and the web site `www.example.org` behind its two fronts.
pub(crate) struct Fixture {
    pub(crate) server: Controlled,
    _site: Nginx,
    http: SocketAddr,
    ecdsa: Issued,
    rsa: Issued,
    web: Issued,
    root: PathBuf,
    _directory: TempDir,
}

/// A port of the server, as these programs reach it.
#[derive(Clone, Copy)]
pub(crate) struct Port<'f> {
    fixture: &'f Fixture,
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
}

/// The address of the front whose keys are all at their defaults.
const PLAIN_FRONT: &str = "127.0.0.2";

/// The address of the front at which clients without a server name, and HTTP, are the server's.
const FULL_FRONT: &str = "127.0.0.3";

/// Returns the standard output of a program that succeeds.
fn output(command: &mut Command, package: &str) -> String {
    let finished = run(command, Some(package), TIMEOUT);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    finished.stdout.join("\n")
}

/// Returns a certificate with a key of RSA.
fn issue_rsa(authority: &Authority, names: &[&str]) -> Issued {
    let key = output(Command::new("openssl").args(["genpkey", "-algorithm", "RSA"]), "openssl");
    let now = unix_seconds();
    authority.issue_with(KeyPair::from_pem(&key).unwrap(), names, now - DAY, now + 90 * DAY)
}

impl Fixture {
    pub(crate) fn start() -> Self {
        let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
        let ecdsa = authority.issue(&["turn.example.org"]);
        let rsa = issue_rsa(&authority, &["turn.example.org"]);
        let web = authority.issue(&["web.example.org"]);
        let write = |name: &str, issued: &Issued| {
            let place = directory.path().join(name);
            std::fs::create_dir_all(&place).unwrap();
            authority.write(issued, &place)
        };
        let further = [write("rsa", &rsa), write("web", &web)].map(|[certificate, key]| {
            format!("[[tls.certificates]]\ncertificate = {certificate:?}\nprivate-key = {key:?}\n")
        });
        directory.write("index.html", PAGE);
        // Clients of any age may visit a web site.
        let old = "ssl_protocols TLSv1 TLSv1.1 TLSv1.2 TLSv1.3;\n ssl_ciphers ALL:@SECLEVEL=0;\n";
        let site = Nginx::start(&authority, "www.example.org", &directory, old);
        let front = |ip: &str, keys: &str| {
            format!(
                "[[front]]\nlisten = \"{ip}:0\"\nweb = \"{}\"\nproxy-protocol = true\n\
                 names = [\"turn.example.org\", \"web.example.org\"]\n{keys}",
                site.address
            )
        };
        let more = [
            &further.concat(),
            "[http]\nlisten = [\"127.0.0.1:0\"]\ntls = true\n",
            &front(PLAIN_FRONT, ""),
            &front(FULL_FRONT, "without-name = \"relay\"\nhttp = true\n"),
        ];
        let config = config(&["127.0.0.1"], &more.concat());
        let server = Controlled::start_with(&with_tls(&config, &["127.0.0.1"], &write("ecdsa", &ecdsa)));
        let http = server.event("http-listening").field("address").unwrap();
        let root = directory.write("root.pem", &authority.root());
        Self { server, _site: site, http: http.parse().unwrap(), ecdsa, rsa, web, root, _directory: directory }
    }

    fn http(&self) -> Port<'_> {
        Port { fixture: self, name: "HTTP", address: self.http }
    }

    /// Returns the TLS listener.
    fn listener(&self) -> Port<'_> {
        Port { fixture: self, name: "listener", address: self.server.server.tls_address() }
    }

    fn front(&self, name: &'static str, ip: &str) -> Port<'_> {
        let own =
            |line: &LogLine| line.field("address")?.parse().ok().filter(|own: &SocketAddr| own.ip().to_string() == ip);
        let line = self
            .server
            .server
            .wait_for_log(|line| line.field("event").as_deref() == Some("front-listening") && own(line).is_some());
        Port { fixture: self, name, address: own(&line).unwrap() }
    }

    /// Returns the front whose keys are all at their defaults.
    pub(crate) fn plain_front(&self) -> Port<'_> {
        self.front("front", PLAIN_FRONT)
    }

    /// Returns the front at which clients without a server name, and HTTP, are the server's.
    pub(crate) fn full_front(&self) -> Port<'_> {
        self.front("front with all keys", FULL_FRONT)
    }

    /// Returns the ports at which clients without a server name are those of the relay.
    fn ports(&self) -> [Port<'_>; 2] {
        [self.listener(), self.full_front()]
    }
}

/// The page of the web site.
pub(crate) const PAGE: &str = "<title>The web site</title>";

impl Port<'_> {
    fn client(&self, arguments: &str) -> Command {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &self.address.to_string(), "-CAfile"]).arg(&self.fixture.root);
        command.args(arguments.split_whitespace());
        command
    }

    /// Returns what the client says, and whether the handshake was complete.
    pub(crate) fn connect(&self, arguments: &str) -> (String, bool) {
        let finished = self.client(arguments).stdin(Stdio::null()).output().expect("openssl");
        let text = [finished.stdout, finished.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        (text, finished.status.success())
    }

    #[track_caller]
    pub(crate) fn assert_connects(&self, arguments: &str, expected: &str) {
        let (text, is_complete) = self.connect(arguments);
        assert!(is_complete && text.contains(expected), "{}: {arguments}: {expected}\n{text}", self.name);
    }

    #[track_caller]
    pub(crate) fn assert_refused(&self, arguments: &str, alert: &str) {
        let (text, is_complete) = self.connect(arguments);
        assert!(!is_complete && text.contains(alert), "{}: {arguments}: {alert}\n{text}", self.name);
    }

    /// Returns whether the server begins a second handshake when a client requests it.
    pub(crate) fn renegotiates(&self, arguments: &str) -> bool {
        let mut client = self.client(arguments);
        let client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut client = client.expect("openssl");
        client.stdin.take().unwrap().write_all(b"R\n").unwrap();
        let finished = client.wait_with_output().unwrap();
        let text = [finished.stdout, finished.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        let (_, after) = text.split_once("RENEGOTIATING").unwrap_or_else(|| panic!("{text}"));
        after.contains("depth=")
    }

    /// Runs curl, for which a name leads to this port.
    pub(crate) fn curl(&self, scheme: &str, name: &str, path: &str, arguments: &[&str]) -> Finished {
        let (port, ip) = (self.address.port(), self.address.ip());
        let mut command = Command::new("curl");
        command.args(["-sSv", "--resolve", &format!("{name}:{port}:{ip}"), "--cacert"]).arg(&self.fixture.root);
        command.args(arguments).arg(format!("{scheme}://{name}:{port}{path}"));
        run(&mut command, Some("curl"), TIMEOUT)
    }

    /// Returns the certificate that a client gets: its serial number.
    fn serial(&self, arguments: &str) -> String {
        let (text, is_complete) = self.connect(arguments);
        assert!(is_complete, "{}: {arguments}\n{text}", self.name);
        let of = |issued: &Issued| text.replace("\r\n", "\n").contains(issued.own.replace("\r\n", "\n").trim());
        let Fixture { ecdsa, rsa, web, .. } = self.fixture;
        let found = [ecdsa, rsa, web].into_iter().find(|issued| of(issued));
        found.unwrap_or_else(|| panic!("{}: {arguments}\n{text}", self.name)).serial.clone()
    }
}

// RFC 8996
#[test]
fn tls_1_2_and_1_3_are_accepted_and_older_versions_refused() {
    let fixture = Fixture::start();
    for port in fixture.ports() {
        port.assert_connects("-tls1_3 -verify_return_error -servername turn.example.org -brief", "version: TLSv1.3");
        port.assert_connects("-tls1_2 -verify_return_error -servername turn.example.org -brief", "version: TLSv1.2");
        for version in ["-tls1_1", "-tls1"] {
            // This client offers it: the alert is that of the server.
            port.assert_refused(&format!("{version} -cipher ALL:@SECLEVEL=0"), "SSL alert number");
        }
    }
}

#[test]
fn only_cipher_suites_with_forward_secrecy_and_authenticated_encryption_are_accepted() {
    let fixture = Fixture::start();
    let all = output(
        Command::new("openssl").args(["ciphers", "-tls1_2", "-s", "ALL:COMPLEMENTOFALL:@SECLEVEL=0"]),
        "openssl",
    );
    let all: Vec<&str> = all.trim().split(':').filter(|name| !name.starts_with("TLS_")).collect();
    assert!(all.len() > 50, "{all:?}");
    let expected = ["ECDSA", "RSA"].map(|key| {
        ["AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305"].map(|cipher| format!("ECDHE-{key}-{cipher}"))
    });
    let expected: BTreeSet<String> = expected.into_iter().flatten().collect();
    for port in fixture.ports() {
        let is_accepted = |name: &&&str| port.connect(&format!("-tls1_2 -cipher {name}:@SECLEVEL=0")).1;
        let accepted: BTreeSet<&str> = all.iter().filter(is_accepted).copied().collect();
        assert!(accepted.iter().copied().eq(expected.iter().map(String::as_str)), "{}: {accepted:#?}", port.name);
    }
}

// RFC 8446 §4.1.2, RFC 5746
#[test]
fn there_is_neither_compression_nor_resumption_nor_renegotiation() {
    let fixture = Fixture::start();
    for port in fixture.ports() {
        port.assert_connects("-tls1_2 -comp", "Compression: NONE");
        port.assert_connects("-tls1_2", "Secure Renegotiation IS supported");
        let (text, _) = port.connect("-tls1_2 -reconnect");
        assert_eq!((text.matches("\nNew, TLSv1.2").count(), text.matches("\nReused, ").count()), (6, 0), "{text}");
        assert!(!port.renegotiates("-tls1_2"), "{}", port.name);
    }
}

// RFC 7301 §3.2, RFC 7443 §3
#[test]
fn the_application_protocols_of_turn_are_negotiated_and_others_refused() {
    let fixture = Fixture::start();
    for port in fixture.ports() {
        port.assert_connects("-alpn stun.turn", "ALPN protocol: stun.turn");
        port.assert_connects("-alpn h2,stun.nat-discovery", "ALPN protocol: stun.nat-discovery");
        port.assert_connects("", "No ALPN negotiated");
    }
    fixture.listener().assert_refused("-alpn h2,http/1.1", "alert no application protocol");
}

#[test]
fn the_name_and_the_signature_algorithms_select_the_certificate() {
    let fixture = Fixture::start();
    for port in fixture.ports() {
        for (arguments, expected) in [
            ("-servername turn.example.org", &fixture.ecdsa),
            ("-servername web.example.org", &fixture.web),
            ("-noservername", &fixture.ecdsa),
            ("-servername turn.example.org -sigalgs RSA-PSS+SHA256", &fixture.rsa),
            ("-noservername -sigalgs RSA-PSS+SHA256", &fixture.rsa),
            ("-servername turn.example.org -sigalgs ECDSA+SHA256:RSA-PSS+SHA256", &fixture.ecdsa),
            ("-tls1_2 -servername turn.example.org -sigalgs RSA+SHA256", &fixture.rsa),
            ("-tls1_2 -servername turn.example.org -cipher ECDHE-RSA-AES128-GCM-SHA256", &fixture.rsa),
            ("-tls1_2 -servername turn.example.org -cipher ECDHE-ECDSA-AES128-GCM-SHA256", &fixture.ecdsa),
        ] {
            assert_eq!(port.serial(arguments), expected.serial, "{}: {arguments}", port.name);
        }
        // There is no RSA certificate for this name.
        port.assert_refused("-servername web.example.org -sigalgs RSA-PSS+SHA256", "alert handshake failure");
    }
    // At a front, it is a name of the web site.
    assert_eq!(fixture.listener().serial("-servername other.example"), fixture.ecdsa.serial);
}

#[test]
fn curl_gets_the_pages_of_the_http_listener_over_tls() {
    let fixture = Fixture::start();
    for port in [fixture.http(), fixture.full_front()] {
        for name in ["turn.example.org", "web.example.org"] {
            let finished = port.curl("https", name, "/healthz", &[]);
            assert_eq!((finished.code, finished.stdout.as_slice()), (Some(0), &["ok".to_owned()][..]), "{finished:?}");
            assert!(
                finished.stderr.iter().any(|line| line.contains("ALPN") && line.ends_with("accepted http/1.1")),
                "{finished:?}"
            );
        }
        // 60: the certificate is not for the name. 35: no handshake.
        assert_eq!(port.curl("https", "other.example", "/healthz", &[]).code, Some(60));
        let old = ["--tls-max", "1.1", "--ciphers", "ALL:@SECLEVEL=0"];
        assert_eq!(port.curl("https", "turn.example.org", "/healthz", &old).code, Some(35));
    }
}

#[test]
fn a_certificate_of_openssl_with_sha_1_is_a_warning_and_a_short_key_an_error() {
    let directory = TempDir::new();
    let check = |key: &str, hash: &str| {
        let [certificate, private_key] = ["c.pem", "k.pem"].map(|name| directory.path().join(name));
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-nodes", "-days", "9", "-subj", "/CN=turn.example.org", "-addext"]);
        command.args(["subjectAltName=DNS:turn.example.org", "-newkey", key, hash, "-out"]).arg(&certificate);
        output(command.arg("-keyout").arg(&private_key), "openssl");
        let config = with_tls(&config(&["127.0.0.1"], ""), &["127.0.0.1"], &[certificate, private_key]);
        let path = directory.write("turnserver.toml", &config);
        let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
        let finished = run(command.arg("check-config").arg("--config").arg(path), None, TIMEOUT);
        (finished.code, [finished.stdout, finished.stderr].concat().join("\n"))
    };
    let (code, text) = check("rsa:2048", "-sha1");
    assert!(code == Some(0) && text.contains("is self-signed, so browsers reject it"), "{text}");
    assert!(
        text.contains("warning: `tls.certificate`: the certificate is signed with SHA-1, so browsers reject"),
        "{text}"
    );
    let (code, text) = check("rsa:1024", "-sha256");
    assert!(code == Some(1) && text.contains("the key cannot be used"), "{text}");
}
