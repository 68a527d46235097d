//! Visitors of a web site behind a front, and behind HAProxy: `cargo bench --bench front`.
//!
//! docs/performance.md explains the figures. Both get the same connections over loopback, in turns.

#![allow(clippy::indexing_slicing, reason = "a benchmark fails by panicking")]

#[path = "../versus_coturn/interrupt.rs"]
mod interrupt;
/// What the files of the other benchmark refer to.
mod load {
    pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
}
#[path = "../versus_coturn/output.rs"]
mod output;
#[path = "../versus_coturn/process.rs"]
#[allow(dead_code, reason = "another benchmark uses the rest of it")]
mod process;
#[path = "../versus_coturn/setup.rs"]
mod setup;
mod site;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Parser;
use rcgen::{CertificateParams, KeyPair};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore};
use turnserver::clock::Clock;

use load::Outcome;
use output::{print, print_progress};
use process::{Process, Server};
use setup::{Directory, build_server};
use site::{Site, fill};

/// The name of the web site, and that of the relay.
const WEB: &str = "www.example.org";
const RELAY: &str = "turn.example.org";

const GIB: u64 = 1 << 30;

/// The most that the median of the ratios to HAProxy may be.
const GOAL: f64 = 1.2;

/// The connections whose latency a round measures.
const REQUESTS: usize = 2_000;
/// The length of their responses in bytes.
const SMALL: u64 = 1_000;

/// Measures what visitors of a web site cost behind a front and behind HAProxy, and fails if the front costs more than 1.2
/// times as much. Requires Debian's haproxy.
#[derive(Parser)]
#[command(name = "front", bin_name = "cargo bench --bench front --")]
struct Arguments {
    /// Measurements of each program.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Gibibytes of each download.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=1000))]
    gibibytes: u64,
    /// Only check that a download of so many gibibytes through the front arrives byte for byte.
    #[arg(long)]
    check: bool,
    /// Path of the server's program. By default, the benchmark builds it first.
    #[arg(long, value_name = "FILE")]
    ours: Option<PathBuf>,
    /// Added by Cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match interrupt::catch().map_err(Into::into).and_then(|()| run(&arguments)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            print_progress(&format!("error: {error}"));
            ExitCode::from(2)
        }
    }
}

/// Returns whether the goals are reached.
fn run(arguments: &Arguments) -> Outcome<bool> {
    let program = arguments.ours.clone().map_or_else(build_server, Ok)?;
    let directory = Directory::make()?;
    let site = Site::start()?;
    let (front, ours) = start_front(&program, &directory.0, site.address)?;
    let bytes = arguments.gibibytes * GIB;
    if arguments.check {
        let began = Clock::start();
        site.respond_with(bytes);
        let received = download(ours, true)?;
        let took = began.elapsed().as_secs_f64();
        print(&format!("{received} of {bytes} bytes, all as they were sent, in {took:.1} s"));
        drop(front);
        return Ok(received == bytes);
    }
    let (haproxy, theirs) = start_haproxy(&directory.0, site.address)?;
    let sides = [Side { process: &front.process, address: ours }, Side { process: &haproxy.process, address: theirs }];
    let mut rows = Vec::new();
    for (name, streams) in [("one download", 1), ("16 downloads", 16)] {
        let costs = alternate(arguments.rounds, &sides, |side| side.cost(&site, bytes, streams))?;
        rows.push(Row { name, unit: "CPU ms/GiB", costs });
    }
    let [mut added, mut half, mut most] = [Vec::new(), Vec::new(), Vec::new()];
    let direct = Side { address: site.address, ..sides[0] };
    // Each side together with the web site itself, right before it.
    let both = |side: &Side<'_>| Ok([direct.latencies(&site)?, side.latencies(&site)?]);
    for [[direct_before_ours, ours], [direct_before_theirs, theirs]] in alternate(arguments.rounds, &sides, both)? {
        added.push([ours[0] - direct_before_ours[0], theirs[0] - direct_before_theirs[0]]);
        half.push([ours[0], theirs[0]]);
        most.push([ours[1], theirs[1]]);
    }
    rows.push(Row { name: "first byte of a response, p50", unit: "µs", costs: half });
    rows.push(Row { name: "of that, added to the web site's own, p50", unit: "µs", costs: added });
    rows.push(Row { name: "first byte of a response, p99", unit: "µs", costs: most });
    let costs = alternate(arguments.rounds, &sides, |side| side.cost_of_requests(&site))?;
    rows.push(Row { name: "one connection with a short response", unit: "CPU µs", costs });
    print("| visitors | figure | front | HAProxy | ratio |");
    print("|---|---|---|---|---|");
    rows.iter().for_each(|row| print(&row.line()));
    // The tail of latencies depends on what else the machine does.
    Ok(rows.iter().filter(|row| !row.name.ends_with("p99")).all(|row| row.ratio() <= GOAL))
}

/// Measures both sides in turns. Each round begins with the other one.
fn alternate<T>(
    rounds: u32,
    sides: &[Side<'_>; 2],
    mut measure: impl FnMut(&Side<'_>) -> Outcome<T>,
) -> Outcome<Vec<[T; 2]>> {
    let [ours, theirs] = sides;
    for side in sides {
        measure(side)?;
    }
    let mut all = Vec::new();
    for round in 0..rounds {
        if interrupt::interrupted() {
            return Err("interrupted".into());
        }
        all.push(if round % 2 == 0 {
            let first = measure(ours)?;
            [first, measure(theirs)?]
        } else {
            let first = measure(theirs)?;
            [measure(ours)?, first]
        });
    }
    Ok(all)
}

/// A line of the table: the figures of the front and of HAProxy in each round.
struct Row {
    name: &'static str,
    unit: &'static str,
    costs: Vec<[f64; 2]>,
}

impl Row {
    fn ratio(&self) -> f64 {
        median(self.costs.iter().map(|[ours, theirs]| ours / theirs).collect())
    }

    fn line(&self) -> String {
        let of = |side: usize| {
            let values: Vec<f64> = self.costs.iter().map(|costs| costs[side]).collect();
            let (least, most) =
                (values.iter().copied().fold(f64::MAX, f64::min), values.iter().copied().fold(0.0, f64::max));
            format!("{:.0} ({least:.0}–{most:.0})", median(values))
        };
        format!("| {} | {} | {} | {} | {:.2} |", self.name, self.unit, of(0), of(1), self.ratio())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A program in front of the web site.
struct Side<'a> {
    process: &'a Process,
    address: SocketAddr,
}

impl Side<'_> {
    fn cpu(&self) -> Outcome<Duration> {
        Ok(Duration::from_nanos(self.process.cpu()?))
    }

    /// Returns the CPU time for a gibibyte in milliseconds, when so many visitors download `bytes` together.
    fn cost(&self, site: &Site, bytes: u64, streams: u64) -> Outcome<f64> {
        site.respond_with(bytes / streams);
        let before = self.cpu()?;
        let address = self.address;
        let visitors: Vec<_> = (0..streams).map(|_| thread::spawn(move || download(address, false))).collect();
        let mut received = 0;
        for visitor in visitors {
            received += visitor.join().map_err(|_| "a visitor has panicked")??;
        }
        if received != bytes / streams * streams {
            return Err(format!("{received} of {bytes} bytes have arrived").into());
        }
        let used = self.cpu()? - before;
        Ok(used.as_secs_f64() * 1e3 / (received as f64 / GIB as f64))
    }

    /// Returns the median and the 99th percentile of the time from the connection to the first byte, in microseconds.
    fn latencies(&self, site: &Site) -> Outcome<[f64; 2]> {
        site.respond_with(SMALL);
        let hello = hello()?;
        let mut times = Vec::with_capacity(REQUESTS);
        for _ in 0..REQUESTS {
            let began = Clock::start();
            let mut stream = TcpStream::connect(self.address)?;
            stream.write_all(&hello)?;
            stream.read_exact(&mut [0])?;
            times.push(began.elapsed().as_secs_f64() * 1e6);
            stream.read_to_end(&mut Vec::new())?;
        }
        times.sort_by(f64::total_cmp);
        Ok([times[REQUESTS / 2], times[REQUESTS * 99 / 100]])
    }

    /// Returns the CPU time for a connection with a short response, in microseconds.
    fn cost_of_requests(&self, site: &Site) -> Outcome<f64> {
        let before = self.cpu()?;
        self.latencies(site)?;
        Ok((self.cpu()? - before).as_secs_f64() * 1e6 / REQUESTS as f64)
    }
}

/// Returns the first flight of a visitor.
fn hello() -> Outcome<Vec<u8>> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions()?.with_root_certificates(RootCertStore::empty());
    let mut client = ClientConnection::new(Arc::new(config.with_no_client_auth()), WEB.try_into()?)?;
    let mut flight = Vec::new();
    client.write_tls(&mut flight)?;
    Ok(flight)
}

/// Returns the number of bytes that a visitor receives. If it is `checked`, each is compared.
fn download(address: SocketAddr, checked: bool) -> Outcome<u64> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(&hello()?)?;
    let (mut received, mut buffer, mut expected) = (0, vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(received);
        }
        if checked {
            fill(received, &mut expected[..read]);
            if buffer[..read] != expected[..read] {
                return Err(format!("the data differ after {received} bytes").into());
            }
        }
        received += read as u64;
    }
}

/// Returns an address of loopback that is free at present.
fn free() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Waits until a program accepts connections.
fn wait_for(address: SocketAddr, server: &Server) -> Outcome<()> {
    let began = Clock::start();
    while TcpStream::connect(address).is_err() {
        if began.elapsed() > Duration::from_secs(20) {
            return Err(format!("nothing listens at {address}:\n{}", server.last_lines()).into());
        }
        thread::yield_now();
    }
    Ok(())
}

fn start_front(program: &Path, directory: &Path, web: SocketAddr) -> Outcome<(Server, SocketAddr)> {
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec![RELAY.to_owned()])?.self_signed(&key)?;
    let files = ["certificate.pem", "key.pem"].map(|name| directory.join(name));
    for (file, text) in files.iter().zip([certificate.pem(), key.serialize_pem()]) {
        fs::write(file, text)?;
    }
    let ([certificate, key], address, path) = (files, free()?, directory.join("turnserver.toml"));
    fs::write(
        &path,
        format!(
            "[listen]\nudp = [\"127.0.0.1:0\"]\ntcp = []\n[tls]\ncertificate = {certificate:?}\nprivate-key = {key:?}\n\
             [relay]\naddresses = [\"127.0.0.1\"]\n[control]\nsocket = \"\"\n\
             [[front]]\nlisten = \"{address}\"\nweb = \"{web}\"\nnames = [\"{RELAY}\"]\n"
        ),
    )?;
    let server = Server::start(Command::new(program).arg("--config").arg(path))?;
    wait_for(address, &server)?;
    Ok((server, address))
}

fn start_haproxy(directory: &Path, web: SocketAddr) -> Outcome<(Server, SocketAddr)> {
    let (address, path) = (free()?, directory.join("haproxy.cfg"));
    // As a front does: the name decides, one thread serves, and data stay in the kernel.
    fs::write(
        &path,
        format!(
            "global\n  nbthread 1\n  maxconn 4000\ndefaults\n  mode tcp\n  option splice-auto\n  timeout connect 5s\n  \
             timeout client 1h\n  timeout server 1h\nfrontend front\n  bind {address}\n  \
             tcp-request inspect-delay 10s\n  tcp-request content accept if {{ req.ssl_hello_type 1 }}\n  \
             use_backend relay if {{ req.ssl_sni -i {RELAY} }}\n  default_backend web\nbackend web\n  server web {web}\n\
             backend relay\n  server relay 127.0.0.1:9\n"
        ),
    )?;
    let server = Server::start(Command::new("haproxy").arg("-db").arg("-f").arg(path))?;
    wait_for(address, &server)?;
    Ok((server, address))
}
