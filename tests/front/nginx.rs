//! A web site of Debian's nginx, with the configuration of docs/install.md.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use turnserver::clock::Clock;

use crate::support::certificates::Authority;
use crate::support::{Process, TIMEOUT, TempDir};

/// A running web site. Dropping it ends it.
pub(crate) struct Nginx {
    pub(crate) address: SocketAddr,
    _process: Process,
    _certificate: TempDir,
}

/// Returns the beginning of the server in docs/install.md, with the address of this test.
fn documented(address: SocketAddr) -> String {
    let document = include_str!("../../docs/install.md");
    let (_, block) = document.split_once("```web-site\n").expect("a configuration in docs/install.md");
    let (text, _) = block.split_once("}\n").unwrap();
    text.replace("127.0.0.1:8443", &address.to_string())
}

/// The number of sites of this process.
static SITES: AtomicU32 = AtomicU32::new(0);

impl Nginx {
    /// Starts a web site with HTTP/2 and with a certificate for `name`. `directory` has its pages, and the page
    /// `/visitor` is the address of the visitor. `more` is added to its server.
    pub(crate) fn start(authority: &Authority, name: &str, directory: &TempDir, more: &str) -> Self {
        let own = TempDir::new();
        let [certificate, key] = authority.write(&authority.issue(&[name]), own.path());
        // It does not report a port that the kernel picks. At an address of its own, no other test can take it.
        let number = std::process::id() % 1_000 * 64 + SITES.fetch_add(1, Ordering::Relaxed) % 64;
        let ip = Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 0).to_bits() + number);
        let address = TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap();
        let (server, path) = (documented(address), directory.path().display());
        let text = format!(
            "daemon off;\nmaster_process off;\npid {path}/nginx.pid;\nerror_log stderr;\nevents {{}}\n\
             http {{\n access_log {path}/access.log;\n types {{ text/html html; }}\n\
             client_body_temp_path {path}/body;\n proxy_temp_path {path}/proxy;\n fastcgi_temp_path {path}/fastcgi;\n\
             uwsgi_temp_path {path}/uwsgi;\n scgi_temp_path {path}/scgi;\n\
             {server}ssl_certificate {certificate:?};\n ssl_certificate_key {key:?};\n root {path};\n\
             location = /visitor {{\n default_type text/plain;\n return 200 \"$proxy_protocol_addr\";\n }}\n\
             {more}\n }}\n}}\n"
        );
        let file = directory.write("nginx.conf", &text);
        let mut command = Command::new("nginx");
        command.arg("-e").arg("stderr").arg("-p").arg(directory.path()).arg("-c").arg(file);
        let process = Process::start(&mut command, Some("nginx"));
        let clock = Clock::start();
        while TcpStream::connect(address).is_err() {
            assert!(clock.elapsed() < TIMEOUT, "nginx does not listen: {}", process.output());
            std::thread::yield_now();
        }
        Self { address, _process: process, _certificate: own }
    }
}
