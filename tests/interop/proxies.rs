//! HAProxy and nginx (Debian packages `haproxy`, `nginx` and `libnginx-mod-stream`) in front of the server, with the
//! configurations of docs/install.md. Only over loopback: clients have the address 127.0.0.3, and the proxies reach the
//! server from 127.0.0.2.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use socket2::{Domain, Socket, Type};
use tokio_rustls::rustls::StreamOwned;
use turnserver::clock::unix_seconds;
use turnserver::stun::attribute::Data;

use crate::interfaces::wait_until;
use crate::support::certificates::Authority;
use crate::support::client::{Client, Login, receive, socket};
use crate::support::tls::{ANY, session};
use crate::support::{Controlled, Process, TIMEOUT, TempDir, config, run, with_tls};

const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// The server, and what is needed to reach it with TLS.
struct Fixture {
    controlled: Controlled,
    authority: Authority,
    directory: TempDir,
    /// The ports of the proxy that replace 443, 5349 and 3478 of the document.
    ports: [u16; 3],
}

/// A port of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// TLS ends at the server.
    PassedThrough,
    /// TLS ends at the proxy.
    Ended,
    Udp,
}

impl Fixture {
    fn new() -> Self {
        let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
        let [certificate, key] = authority.write(&authority.issue(&["localhost"]), directory.path());
        directory.write("turn.pem", &fs::read_to_string(&certificate).unwrap());
        directory.write("turn.key", &fs::read_to_string(&key).unwrap());
        let both = [&certificate, &key].map(|file| fs::read_to_string(file).unwrap()).concat();
        directory.write("both.pem", &both);
        let more = "[compat]\nrfc5766-channels = true\n[peers]\nallow = [\"127.0.0.1\"]\n";
        let config = config(&["127.0.0.1"], more).replace("[listen]\n", "[listen]\nproxies = [\"127.0.0.2\"]\n");
        let config = with_tls(&config, &["127.0.0.1"], &[certificate, key]);
        let controlled = Controlled::start_with(&config.replace("[log]\n", "[log]\nlevel = \"debug\"\n"));
        // The proxies do not report a port that the kernel picks.
        let free = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = free.map(|listener| listener.local_addr().unwrap().port());
        Self { controlled, authority, directory, ports }
    }

    /// Returns a configuration of docs/install.md with the addresses and files of this test.
    fn configuration(&self, language: &str) -> String {
        let document = include_str!("../../docs/install.md");
        let (_, block) =
            document.split_once(&format!("\n```{language}\n")).expect("a configuration in docs/install.md");
        let (text, _) = block.split_once("\n```\n").unwrap();
        let server = &self.controlled.server;
        let [first, second, third] = self.ports.map(|port| format!("127.0.0.1:{port}"));
        let file = |name: &str| self.directory.path().join(name).display().to_string();
        let mut text = format!("{text}\n");
        for (documented, own) in [
            ("10.0.0.20:5349", &*server.tls_address().to_string()),
            ("10.0.0.20:3478", &*server.tcp_address().to_string()),
            ("bind :443", &*format!("bind {first}")),
            ("bind :5349", &*format!("bind {second}")),
            ("listen 443;", &*format!("listen {first};")),
            ("listen 5349 ssl;", &*format!("listen {second} ssl;")),
            ("listen 3478 udp;", &*format!("listen {third} udp;")),
            ("/etc/haproxy/turn.pem", &*file("both.pem")),
            ("/etc/nginx/turn.pem", &*file("turn.pem")),
            ("/etc/nginx/turn.key", &*file("turn.key")),
        ] {
            text = text.replace(documented, own);
        }
        // The last one is the UDP server, whose port is another than that of TCP here.
        let (before, after) = text.rsplit_once(&server.tcp_address().to_string()).unwrap();
        if language == "nginx" { format!("{before}{}{after}", server.udp_address()) } else { text }
    }

    /// Starts HAProxy with a version of its headers.
    fn haproxy(&self, send: &str) -> Process {
        let text = self.configuration("haproxy").replace("send-proxy-v2", &format!("source 127.0.0.2 {send}"));
        assert_eq!(text.matches(send).count(), 2, "{text}");
        let file = self.directory.write("haproxy.cfg", &text);
        let process = Process::start(Command::new("haproxy").arg("-db").arg("-f").arg(file), Some("haproxy"));
        self.ready(process)
    }

    fn nginx(&self) -> Process {
        let text = self.configuration("nginx").replace("stream {\n", "stream {\n    proxy_bind 127.0.0.2;\n");
        let pid = self.directory.path().join("nginx.pid");
        let text = format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n\
             daemon off;\nmaster_process off;\nerror_log stderr;\npid {};\nevents {{}}\n{text}",
            pid.display()
        );
        let file = self.directory.write("nginx.conf", &text);
        let mut command = Command::new("nginx");
        command.arg("-e").arg("stderr").arg("-p").arg(self.directory.path()).arg("-c").arg(file);
        self.ready(Process::start(&mut command, Some("nginx libnginx-mod-stream")))
    }

    /// Waits until a proxy listens on both TCP ports. UDP is there before.
    fn ready(&self, process: Process) -> Process {
        for port in &self.ports[..2] {
            wait_until(|| {
                let connected = TcpStream::connect(("127.0.0.1", *port));
                connected.map_err(|error| format!("{error}; the proxy:\n{}", process.output()))
            });
        }
        process
    }

    /// Connects to the proxy.
    fn client(&self, way: Way) -> Client {
        let proxy = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.ports[way as usize]);
        if way == Way::Udp {
            return Client::on(socket(SocketAddr::new(CLIENT.into(), 0)), proxy);
        }
        let stream = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        stream.bind(&SocketAddr::new(CLIENT.into(), 0).into()).unwrap();
        stream.connect(&proxy.into()).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_tcp_nodelay(true).unwrap();
        let mut stream = StreamOwned::new(session(&self.authority, &ANY), TcpStream::from(stream));
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).unwrap();
        }
        Client::on_tls(stream)
    }

    /// Checks that the server sees the client, and relays for it.
    fn check(&self, proxy: &str, way: Way) {
        let client = self.client(way);
        let real = client.address();
        assert_eq!(client.binding(), real, "{proxy} {way:?}");
        let peer = socket("127.0.0.1:0".parse().unwrap());
        let user = format!("{proxy}-{way:?}").to_lowercase();
        let (session, relayed) = client.allocate(&Login::mint(&user, 600)).unwrap();
        client.permit(&session, peer.local_addr().unwrap());
        client.send_to_peer(peer.local_addr().unwrap(), b"to the peer");
        assert_eq!(receive(&peer), (b"to the peer".to_vec(), relayed));
        peer.send_to(b"to the client", relayed).unwrap();
        assert_eq!(client.receive().get::<Data<'_>>(), Some(Data(b"to the client")));

        let sessions = self.controlled.json(&["sessions", "--user", &user]);
        let [own] = sessions["sessions"].as_array().unwrap().as_slice() else { panic!("{sessions}") };
        let transport = match way {
            Way::PassedThrough => "tls",
            Way::Ended => "tcp",
            Way::Udp => "udp",
        };
        assert_eq!(own["client"], real.to_string(), "{own}");
        assert_eq!(own["transport"], transport, "{own}");
        // The client has reached the proxy, and not the server.
        assert_eq!(own["server"], format!("127.0.0.1:{}", self.ports[way as usize]), "{own}");
        client.delete(&session);
        println!("{proxy} {way:?}: {real} is seen as {}", own["client"]);
    }

    /// Runs coturn's client through TLS that the server ends.
    fn uclient(&self) {
        let login = Login::mint("uclient", 600);
        let mut command = Command::new("turnutils_uclient");
        command.args(["-t", "-S", "-y", "-n", "20", "-m", "2", "-u", &login.username, "-w", &login.password]);
        command.args(["-p", &self.ports[0].to_string(), "-L", &CLIENT.to_string(), "127.0.0.1"]);
        let finished = run(&mut command, Some("coturn"), TIMEOUT);
        assert_eq!(finished.code, Some(0), "{finished:#?}");
        let created = self.controlled.server.wait_for_log(|line| {
            line.message() == "allocation created" && line.field("user").is_some_and(|user| user.contains("uclient"))
        });
        let client: SocketAddr = created.field("client").unwrap().parse().unwrap();
        assert_eq!(client.ip(), IpAddr::from(CLIENT));
    }

    /// Checks that no connection or datagram of the proxy was rejected.
    fn finish(self) {
        let logs = self.controlled.server.terminate().logs;
        let rejected =
            |line: &&crate::support::LogLine| line.field("event").is_some_and(|event| event.starts_with("proxy-"));
        assert_eq!(logs.iter().filter(rejected).count(), 0, "{logs:#?}");
    }
}

#[test]
fn haproxy_names_its_clients_in_both_versions_and_checks_the_health_of_the_server() {
    let fixture = Fixture::new();
    for (send, count) in [("send-proxy", 2), ("send-proxy-v2", 4)] {
        let _proxy = fixture.haproxy(send);
        for way in [Way::PassedThrough, Way::Ended] {
            fixture.check(send, way);
        }
        // The checks of its two backends begin with a header, too.
        fixture.controlled.server.wait_for_logs(|lines| {
            let closed = |line: &&crate::support::LogLine| line.field("reason").as_deref() == Some("closed-by-client");
            lines.iter().filter(closed).count() >= count
        });
        fixture.uclient();
    }
    fixture.finish();
}

#[test]
fn nginx_names_its_clients_over_tcp_tls_and_udp() {
    let fixture = Fixture::new();
    let _proxy = fixture.nginx();
    for way in [Way::PassedThrough, Way::Ended, Way::Udp] {
        fixture.check("nginx", way);
    }
    fixture.uclient();
    fixture.finish();
}
