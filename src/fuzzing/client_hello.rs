//! The first bytes of a connection to a front: the ClientHello and the decision.

use tokio_rustls::rustls::server::Acceptor;

use crate::front::Rules;
use crate::front::hello::{MAX_HELLO, Read, normalized, read};
use crate::front::rules::{Decision, Destination};
use crate::net::tls::Challenges;

/// Reads the first bytes of a connection as they arrive, and compares what is read with what rustls reads.
pub fn client_hello(data: &[u8]) {
    let whole = read(data);
    if let Read::Needs(needed) = whole {
        assert!((data.len() + 1..=MAX_HELLO).contains(&needed));
    }
    // A decision is final: more bytes do not change it.
    let mut have = 0;
    loop {
        match read(&data[..have]) {
            Read::Needs(needed) if needed <= data.len() => {
                assert!(needed > have);
                have = needed;
            }
            early @ Read::Needs(_) => {
                assert!(matches!((early, &whole), (Read::Needs(one), Read::Needs(other)) if one == *other));
                break;
            }
            early => {
                assert_eq!(early, whole);
                break;
            }
        }
    }
    if let Read::Hello(hello) = &whole {
        let name = hello.server_name.as_deref();
        assert!(name.is_none_or(|name| !name.is_empty() && name == normalized(name)));
    }
    agrees_with_rustls(data, &whole);

    let rules = Rules::new(&["turn.example.org".to_owned()], false, true);
    let is_turn = data.first().is_some_and(|first| *first <= 3);
    let has_name = matches!(&whole, Read::Hello(hello) if hello.server_name.as_deref() == Some("turn.example.org"));
    match rules.decide(data, &Challenges::default()) {
        Decision::To(Destination::Relay) => assert!(is_turn || has_name),
        Decision::To(Destination::Http) => assert!(!is_turn && has_name),
        Decision::To(Destination::Challenge) => panic!("no challenge is pending"),
        Decision::To(Destination::Web) => assert!(!is_turn && !data.is_empty()),
        Decision::Needs(needed) => assert!(needed > data.len()),
        Decision::TooLong => assert_eq!(whole, Read::TooLong),
    }
}

/// Whatever else rustls demands: where it accepts a ClientHello, both read the same in it.
fn agrees_with_rustls(mut data: &[u8], ours: &Read) {
    let mut acceptor = Acceptor::default();
    while !data.is_empty() {
        if !matches!(acceptor.read_tls(&mut data), Ok(1..)) {
            return;
        }
    }
    let (Ok(Some(accepted)), Read::Hello(hello)) = (acceptor.accept(), ours) else { return };
    let theirs = accepted.client_hello();
    if let Some(name) = theirs.server_name() {
        assert_eq!(hello.server_name.as_deref(), Some(&*normalized(name)));
    }
    let protocols: Vec<&[u8]> = theirs.alpn().into_iter().flatten().collect();
    assert_eq!(hello.protocols, protocols);
}
