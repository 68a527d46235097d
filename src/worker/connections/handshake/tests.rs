use std::future::poll_fn;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::{LocalSet, yield_now};
use tokio::time::Instant;
use tokio_rustls::rustls::HandshakeKind;

use super::*;

fn source(host: u8) -> Source {
    Source::of([192, 0, 2, host].into())
}

async fn is_notified(notify: &Notify) -> bool {
    tokio::time::timeout(Duration::ZERO, notify.notified()).await.is_ok()
}

#[tokio::test(flavor = "current_thread")]
async fn a_handshake_above_the_limit_evicts_the_oldest_of_the_fullest_source() {
    let all = Rc::<RefCell<Handshakes>>::default();
    let other = Handshakes::begin(&all, source(1));
    let mut handshakes: Vec<_> = (1..MAX_HANDSHAKES).map(|_| Handshakes::begin(&all, source(2))).collect();
    drop(handshakes.pop());
    let _fits = Handshakes::begin(&all, source(1));
    assert!(!is_notified(&handshakes[0].evicted).await);
    let _exceeds = Handshakes::begin(&all, source(3));
    assert!(is_notified(&handshakes[0].evicted).await);
    assert!(!is_notified(&handshakes[1].evicted).await && !is_notified(&other.evicted).await);
    assert_eq!(all.borrow().unfinished.len(), MAX_HANDSHAKES);
}

/// Returns whether the handshake has its turn.
fn has_turn(handshake: &Handshake) -> bool {
    handshake.all.borrow().turn == Turn::Of(handshake.number)
}

/// Carries out one step of each handshake, in the order in which they get their turns.
async fn order_of(handshakes: &[(&Handshake, Step)]) -> Vec<u64> {
    let order = RefCell::new(Vec::new());
    let mut steps: Vec<_> = handshakes
        .iter()
        .map(|(handshake, step)| {
            Box::pin(async {
                handshake.turn(*step).await;
                assert!(has_turn(handshake));
                order.borrow_mut().push(handshake.number);
                handshake.end_turn(SIGNATURE);
            })
        })
        .collect();
    let all_of_them = poll_fn(|cx| {
        steps.retain_mut(|step| step.as_mut().poll(cx).is_pending());
        if steps.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    });
    LocalSet::new().run_until(all_of_them).await;
    order.take()
}

const SIGNATURE: Duration = Duration::from_micros(500);

#[tokio::test(flavor = "current_thread")]
async fn handshakes_sign_one_after_the_other_and_their_sources_take_turns() {
    let all = Rc::<RefCell<Handshakes>>::default();
    let flood: Vec<_> = (0..100).map(|_| Handshakes::begin(&all, source(1))).collect();
    let single = Handshakes::begin(&all, source(2));
    let steps: Vec<_> = flood.iter().chain([&single]).map(|handshake| (handshake, Step::Begin)).collect();
    let began = Instant::now();
    let order = order_of(&steps).await;
    assert_eq!(order.len(), 101);
    assert_eq!(order[..3], [0, single.number, 1]);
    // The pauses are as long as the signatures, of which the last ones are not paid yet.
    assert!(began.elapsed() >= SIGNATURE * 101 - Duration::from_micros(1_500), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "current_thread")]
async fn handshakes_that_continue_take_turns_with_those_that_begin() {
    let all = Rc::<RefCell<Handshakes>>::default();
    let begin: Vec<_> = (0..100).map(|host| Handshakes::begin(&all, source(host))).collect();
    let continuing = [200, 201].map(|host| Handshakes::begin(&all, source(host)));
    let mut steps: Vec<_> = begin.iter().map(|handshake| (handshake, Step::Begin)).collect();
    steps.extend(continuing.iter().map(|handshake| (handshake, Step::Continue)));
    assert_eq!(order_of(&steps).await[..5], [0, 100, 1, 101, 2]);
}

#[tokio::test(flavor = "current_thread")]
async fn the_pause_after_a_signature_remains_if_its_handshake_ends() {
    let all = Rc::<RefCell<Handshakes>>::default();
    let [first, second] = [1, 2].map(|host| Handshakes::begin(&all, source(host)));
    let test = async {
        first.turn(Step::Begin).await;
        let began = Instant::now();
        let pause = Duration::from_millis(30);
        first.end_turn(pause);
        drop(first);
        second.turn(Step::Begin).await;
        assert!(began.elapsed() >= pause, "{:?}", began.elapsed());
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_pause_ends_early_if_no_packet_arrives() {
    let all = Rc::<RefCell<Handshakes>>::default();
    let [first, second] = [1, 2].map(|host| Handshakes::begin(&all, source(host)));
    let test = async {
        first.turn(Step::Begin).await;
        first.end_turn(Duration::from_secs(3600));
        yield_now().await;
        all.borrow().worker_is_idle();
        second.turn(Step::Begin).await;
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn a_connection_that_the_client_has_closed_is_noticed_before_the_signature() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    assert!(!is_closed(&stream));
    client.try_write(b"early data").unwrap();
    stream.readable().await.unwrap();
    assert!(!is_closed(&stream));
    stream.try_read(&mut [0; 100]).unwrap();
    client.set_zero_linger().unwrap();
    drop(client);
    stream.readable().await.unwrap();
    assert!(is_closed(&stream));
    // Without a reset.
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    drop(client);
    stream.readable().await.unwrap();
    assert!(is_closed(&stream));
}

#[tokio::test(flavor = "current_thread")]
async fn a_connection_that_was_closed_while_its_handshake_waited_costs_no_signature() {
    let (acceptor, mut client) = crate::net::tls::tests::session_without_usable_key_share();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    near.write_all(&hello).await.unwrap();
    let all = Rc::<RefCell<Handshakes>>::default();
    let [other, handshake] = [1, 2].map(|host| Handshakes::begin(&all, source(host)));
    other.turn(Step::Begin).await;
    let closed = async {
        while all.borrow().beginning.waiting.len() == 0 {
            yield_now().await;
        }
        drop(near);
        let_others_run().await;
        drop(other);
    };
    let worker = Weak::new();
    let served = carry_out(&worker, &handshake, stream, &acceptor);
    let (result, ()) = LocalSet::new().run_until(async { tokio::join!(served, closed) }).await;
    assert_eq!(result.map(drop), Err(Failure::Truncated));
    assert!(has_turn(&handshake), "only a signature ends the turn");
}

#[tokio::test(flavor = "current_thread")]
async fn a_handshake_that_ends_during_its_turn_passes_the_turn_on() {
    let all = Rc::<RefCell<Handshakes>>::default();
    let [first, second, third] = [1, 2, 3].map(|host| Handshakes::begin(&all, source(host)));
    first.turn(Step::Begin).await;
    assert!(tokio::time::timeout(Duration::ZERO, second.turn(Step::Begin)).await.is_err());
    assert!(tokio::time::timeout(Duration::ZERO, third.turn(Step::Begin)).await.is_err());
    drop(second);
    drop(first);
    assert!(has_turn(&third));
    drop(third);
    assert_eq!(all.borrow().turn, Turn::Free);
}

/// Lets the other future run until it waits.
async fn let_others_run() {
    for _ in 0..100 {
        yield_now().await;
    }
}

// RFC 8446 §4.1.4: the server signs after the second ClientHello.
#[tokio::test(flavor = "current_thread")]
async fn a_handshake_with_a_second_hello_has_a_turn_for_it() {
    let (acceptor, mut client) = crate::net::tls::tests::session_without_usable_key_share();
    let (mut near, far) = tokio::io::duplex(64 * 1024);
    let all = Rc::<RefCell<Handshakes>>::default();
    let [other, handshake] = [1, 2].map(|host| Handshakes::begin(&all, source(host)));
    let served = async {
        let hello = Acceptor::hello(far).await.unwrap();
        handshake.turn(Step::Begin).await;
        in_turns(&handshake, || Duration::ZERO, || acceptor.respond(hello)).await
    };
    let driven = async {
        let mut exchange = async |expected: bool| {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            near.write_all(&bytes).await.unwrap();
            let_others_run().await;
            let mut response = vec![0; 16 * 1024];
            let read = tokio::time::timeout(Duration::ZERO, near.read(&mut response)).await;
            assert_eq!(read.is_ok(), expected);
            if let Ok(read) = read {
                let mut response = &response[..read.unwrap()];
                while client.read_tls(&mut response).unwrap() > 0 {
                    client.process_new_packets().unwrap();
                }
            }
        };
        exchange(true).await;
        other.turn(Step::Begin).await;
        exchange(false).await;
        other.end_turn(Duration::ZERO);
        exchange(true).await;
        exchange(false).await;
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::FullWithHelloRetryRequest));
        assert!(!client.is_handshaking());
    };
    // The connection remains open until both have ended.
    assert!(LocalSet::new().run_until(async { tokio::join!(served, driven) }).await.0.is_ok());
}
