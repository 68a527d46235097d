use rand::SeedableRng as _;
use turnserver::auth::Secret;
use turnserver::client::write_message;
use turnserver::stun::attribute::{ErrorCodeAttribute, Lifetime, XorMappedAddress, XorRelayedAddress};
use turnserver::stun::{Class, Message, MessageWriter, Method};

use super::*;

/// A server without authentication.
struct Server {
    keeper: Keeper,
    /// The requests that came, with their time in seconds.
    requests: Vec<(u64, Method)>,
    /// The data that came on channels.
    data: Vec<Vec<u8>>,
    refuses: bool,
    /// Requests with this method are lost.
    loses: Option<Method>,
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

impl Server {
    fn new() -> Self {
        let credentials = Credentials { username: "user".to_owned(), password: Secret::new("password").unwrap() };
        let keeper = Keeper::new(false, credentials, StdRng::from_seed([7; 32]));
        Self { keeper, requests: Vec::new(), data: Vec::new(), refuses: false, loses: None }
    }

    /// Exchanges what waits. Returns what the keeper reports.
    fn exchange(&mut self, now: Duration) -> Vec<Output> {
        let mut outputs = Vec::new();
        while let Some(sent) = self.keeper.transmit() {
            if sent[0] > 3 {
                self.data.push(sent[4..].to_vec());
                continue;
            }
            let request = Message::parse(&sent).unwrap();
            self.requests.push((now.as_secs(), request.method()));
            if self.loses == Some(request.method()) {
                continue;
            }
            let response = self.respond(&request);
            outputs.extend(self.keeper.receive(&response, now));
        }
        outputs
    }

    fn respond(&self, request: &Message<'_>) -> Vec<u8> {
        let class = if self.refuses { Class::Error } else { Class::Success };
        let fill = |writer: &mut MessageWriter<'_>| match request.method() {
            _ if self.refuses => writer.push(&ErrorCodeAttribute { code: ErrorCode::FORBIDDEN, reason: "" }),
            Method::ALLOCATE => {
                writer.push(&XorRelayedAddress(address("192.0.2.1:50000")));
                writer.push(&XorRelayedAddress(address("[2001:db8::1]:50000")));
                writer.push(&XorMappedAddress(address("192.0.2.9:1000")));
                writer.push(&Lifetime(600));
            }
            Method::REFRESH => writer.push(&Lifetime(600)),
            _ => {}
        };
        write_message(class, request.method(), request.transaction_id(), 512, fill).unwrap()
    }

    /// Lets time pass until `end`.
    fn run(&mut self, end: Duration) -> Vec<Output> {
        // What is sent before the first deadline is sent at the beginning.
        let mut outputs = self.exchange(Duration::ZERO);
        while self.keeper.deadline() <= end {
            let now = self.keeper.deadline();
            outputs.extend(self.keeper.expire(now).unwrap());
            outputs.extend(self.exchange(now));
        }
        outputs
    }

    fn times(&self, method: Method) -> Vec<u64> {
        self.requests.iter().filter(|(_, of)| *of == method).map(|(at, _)| *at).collect()
    }
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn an_allocation_is_refreshed_a_minute_before_its_end() {
    let mut server = Server::new();
    server.keeper.allocate(Duration::ZERO).unwrap();
    let outputs = server.run(30 * MINUTE);
    let relayed = vec![address("192.0.2.1:50000"), address("[2001:db8::1]:50000")];
    assert_eq!(outputs, [Output::Allocated(relayed)]);
    assert_eq!(server.times(Method::REFRESH), [540, 1_080, 1_620]);
}

#[test]
fn the_first_data_waits_for_its_channel_which_is_bound_again_while_it_is_used() {
    let (mut server, peer) = (Server::new(), address("198.51.100.1:4000"));
    server.keeper.allocate(Duration::ZERO).unwrap();
    server.run(Duration::ZERO);
    server.keeper.send(peer, b"one", Duration::ZERO).unwrap();
    server.keeper.send(peer, b"two", Duration::ZERO).unwrap();
    assert_eq!(server.data, [b""; 0]);
    server.exchange(Duration::ZERO);
    assert_eq!(server.data, [b"one", b"two"]);
    server.keeper.send(peer, b"used", Duration::from_secs(200)).unwrap();
    server.run(20 * MINUTE);
    assert_eq!(server.times(Method::CHANNEL_BIND), [0, 240], "nothing is sent from then on");
    server.keeper.send(peer, b"again", 12 * MINUTE).unwrap();
    server.exchange(12 * MINUTE);
    assert_eq!(server.times(Method::CHANNEL_BIND), [0, 240, 720]);
}

#[test]
fn data_to_a_peer_that_is_refused_is_lost_and_it_is_tried_again_after_a_minute() {
    let (mut server, peer) = (Server::new(), address("10.0.0.1:4000"));
    server.keeper.allocate(Duration::ZERO).unwrap();
    server.run(Duration::ZERO);
    server.refuses = true;
    for second in 0..=60 {
        server.keeper.send(peer, b"data", Duration::from_secs(second)).unwrap();
        server.exchange(Duration::from_secs(second));
        server.keeper.expire(Duration::from_secs(second)).unwrap();
    }
    server.keeper.send(peer, b"data", Duration::from_secs(61)).unwrap();
    server.exchange(Duration::from_secs(61));
    assert_eq!((server.times(Method::CHANNEL_BIND), server.data.len()), (vec![0, 60], 0));
}

#[test]
fn a_lost_refresh_is_repeated_while_the_allocation_lasts() {
    let mut server = Server::new();
    server.keeper.allocate(Duration::ZERO).unwrap();
    server.run(Duration::from_secs(539));
    server.loses = Some(Method::REFRESH);
    let outputs = server.run(Duration::from_secs(555));
    assert_eq!(outputs, [], "each request is repeated for 5 s");
    server.loses = None;
    assert_eq!(server.run(20 * MINUTE), []);
    let times = server.times(Method::REFRESH);
    assert!(times.contains(&540) && times.contains(&555) && times.contains(&(555 + 540)), "{times:?}");
    server.loses = Some(Method::REFRESH);
    assert!(matches!(server.run(40 * MINUTE)[..], [Output::Ended(Failure::NoResponse { .. })]));
    let end = *server.times(Method::REFRESH).last().unwrap();
    assert!((1_695..=1_700).contains(&end), "the last request comes before the end: {end}");
}

#[test]
fn peers_that_the_server_refuses_take_no_channel_number() {
    let mut server = Server::new();
    server.keeper.allocate(Duration::ZERO).unwrap();
    server.run(Duration::ZERO);
    server.refuses = true;
    for port in 1..=5_000 {
        server.keeper.send(SocketAddr::from(([10, 0, 0, 1], port)), b"data", Duration::ZERO).unwrap();
        server.exchange(Duration::ZERO);
    }
    assert_eq!(server.times(Method::CHANNEL_BIND).len(), 5_000);
    server.refuses = false;
    server.keeper.send(address("192.0.2.7:4000"), b"data", Duration::ZERO).unwrap();
    server.exchange(Duration::ZERO);
    assert_eq!(server.data, [b"data"]);
}

#[test]
fn a_number_that_the_server_may_have_bound_is_used_for_no_other_peer() {
    let (mut server, peer) = (Server::new(), address("198.51.100.1:4000"));
    server.keeper.allocate(Duration::ZERO).unwrap();
    server.run(Duration::ZERO);
    server.loses = Some(Method::CHANNEL_BIND);
    server.keeper.send(peer, b"lost", Duration::ZERO).unwrap();
    server.run(2 * MINUTE);
    server.loses = None;
    server.keeper.send(address("198.51.100.2:4000"), b"another", 2 * MINUTE).unwrap();
    server.keeper.send(peer, b"the same", 2 * MINUTE).unwrap();
    server.exchange(2 * MINUTE);
    assert_eq!(server.data, [&b"another"[..], b"the same"]);
    assert_eq!(server.keeper.channels[&peer].number, *CHANNELS.start());
}

#[test]
fn an_allocation_that_is_requested_when_it_is_given_back_is_given_back_when_it_comes() {
    let mut server = Server::new();
    server.keeper.allocate(Duration::ZERO).unwrap();
    assert_eq!(server.keeper.release(Duration::ZERO), None);
    assert_eq!(server.exchange(Duration::ZERO), [Output::Released]);
    assert_eq!((server.times(Method::ALLOCATE), server.times(Method::REFRESH)), (vec![0], vec![0]));
    let mut idle = Server::new();
    assert_eq!(idle.keeper.release(Duration::ZERO), Some(Output::Released));
}

#[test]
fn a_server_that_refuses_the_allocation_or_is_silent_ends_it() {
    let mut refusing = Server::new();
    refusing.refuses = true;
    refusing.keeper.allocate(Duration::ZERO).unwrap();
    assert!(matches!(refusing.run(Duration::ZERO)[..], [Output::Ended(Failure::Rejected(_))]));
    let mut silent = Server::new();
    silent.keeper.allocate(Duration::ZERO).unwrap();
    let mut outputs = Vec::new();
    while outputs.is_empty() {
        outputs = silent.keeper.expire(silent.keeper.deadline()).unwrap();
        while silent.keeper.transmit().is_some() {}
    }
    assert!(matches!(outputs[..], [Output::Ended(Failure::NoResponse { .. })]));
}
