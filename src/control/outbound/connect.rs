//! Connects to a server, which may have several addresses (RFC 8305).

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// The time from one attempt to the next (RFC 8305 §5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// The longest time for a connection to one address.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// The most addresses that an error names.
const MAX_SHOWN: usize = 4;

/// Connects to a host.
///
/// # Errors
/// Why it cannot be reached.
pub(in crate::control) async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    match tokio::net::lookup_host((host, port)).await {
        Ok(addresses) => connect_to_one(addresses.collect()).await,
        Err(error) => Err(format!("the name cannot be resolved ({error}): check the DNS of this machine")),
    }
}

/// Connects to the address that accepts first. The next attempt begins when one fails, or after a short time, while the
/// earlier ones go on. The resolver has sorted the addresses.
async fn connect_to_one(addresses: Vec<SocketAddr>) -> Result<TcpStream, String> {
    let mut waiting = interleaved(addresses).into_iter();
    let mut attempts = JoinSet::new();
    let mut errors = Vec::new();
    loop {
        if let Some(address) = waiting.next() {
            attempts.spawn(attempt(address));
        }
        let ended = if waiting.len() > 0 {
            timeout(ATTEMPT_DELAY, attempts.join_next()).await
        } else {
            Ok(attempts.join_next().await)
        };
        match ended {
            Ok(Some(Ok(Ok(stream)))) => return Ok(stream),
            Ok(Some(Ok(Err(error)))) => errors.push(error),
            Ok(Some(Err(error))) => errors.push(error.to_string()),
            Ok(None) => break,
            Err(_) => {}
        }
    }
    if errors.is_empty() {
        return Err("the name has no address".to_owned());
    }
    errors.truncate(MAX_SHOWN);
    Err(errors.join("; "))
}

async fn attempt(address: SocketAddr) -> Result<TcpStream, String> {
    match timeout(CONNECT_TIME, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("cannot connect to {}: {error}", address.ip())),
        Err(_) => Err(format!("cannot connect to {} within {} seconds", address.ip(), CONNECT_TIME.as_secs())),
    }
}

/// Alternates the families, and keeps the order of each (RFC 8305 §4).
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let count = addresses.len();
    let first_is_ipv6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_ipv6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut sorted = Vec::with_capacity(count);
    while sorted.len() < count {
        sorted.extend(first.next());
        sorted.extend(second.next());
    }
    sorted
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use socket2::{Domain, Socket, Type};

    use super::*;
    use crate::clock::Clock;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_alternate_beginning_with_that_of_the_first_address() {
        let given = ["[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8::3]:1", "192.0.2.1:1", "192.0.2.2:1"];
        let expected = ["[2001:db8::1]:1", "192.0.2.1:1", "[2001:db8::2]:1", "192.0.2.2:1", "[2001:db8::3]:1"];
        assert_eq!(interleaved(addresses(&given)), addresses(&expected));
        assert_eq!(interleaved(addresses(&["192.0.2.1:1", "[2001:db8::1]:1"])).len(), 2);
        assert!(interleaved(Vec::new()).is_empty());
    }

    /// A listener that drops every SYN, because its queue is full.
    struct Silent {
        address: SocketAddr,
        _listener: Socket,
        _queued: Vec<Socket>,
    }

    impl Silent {
        fn start() -> Self {
            let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
            listener.listen(0).unwrap();
            let address = listener.local_addr().unwrap();
            let queued = (0..8).map(|_| {
                let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                client.set_nonblocking(true).unwrap();
                let _ = client.connect(&address);
                client
            });
            Self { address: address.as_socket().unwrap(), _queued: queued.collect(), _listener: listener }
        }
    }

    // RFC 8305 §5
    #[tokio::test]
    async fn an_address_that_does_not_respond_holds_up_the_next_one_by_a_quarter_of_a_second() {
        let (silent, accepting) = (Silent::start(), TcpListener::bind("127.0.0.1:0").unwrap());
        let clock = Clock::start();
        let other = accepting.local_addr().unwrap();
        let stream = connect_to_one(vec![silent.address, silent.address, other]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), other);
        assert!((2 * ATTEMPT_DELAY..CONNECT_TIME).contains(&clock.elapsed()), "{:?}", clock.elapsed());
    }

    #[tokio::test]
    async fn an_address_that_refuses_does_not_hold_up_the_next_one_and_all_errors_are_named() {
        let closed = |ip: &str| {
            let listener = TcpListener::bind((ip, 0)).unwrap();
            listener.local_addr().unwrap()
        };
        let refused = [closed("127.0.0.2"), closed("127.0.0.3")];
        let clock = Clock::start();
        let error = connect_to_one(refused.to_vec()).await.unwrap_err();
        assert!(error.starts_with("cannot connect to 127.0.0.2: "), "{error}");
        assert!(error.contains("; cannot connect to 127.0.0.3: "), "{error}");
        assert!(clock.elapsed() < CONNECT_TIME, "{:?}", clock.elapsed());
        assert_eq!(connect_to_one(Vec::new()).await.unwrap_err(), "the name has no address");
    }
}
