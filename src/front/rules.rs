//! Where a connection to a port that the relay shares with a web site belongs, by its first bytes.

use super::hello::{self, ClientHello, Read};
use crate::net::tls::ACME_TLS;

/// The application protocol of HTTP/1.1 over TLS (RFC 7301 §6), the only one of the server of this process.
const HTTP: &[u8] = b"http/1.1";

/// The application protocols of STUN and TURN (RFC 7443 §2).
const STUN: [&[u8]; 2] = [b"stun.turn", b"stun.nat-discovery"];

/// The largest first byte of a STUN message (RFC 7983 §7).
const LAST_STUN: u8 = 3;

/// The beginning of a request for the response to a challenge http-01 (RFC 8555 §8.3), up to its token.
const CHALLENGE: &[u8] = b"GET /.well-known/acme-challenge/";

/// The longest token that is looked for. An authority chooses it; Let's Encrypt's have 43 characters.
const LONGEST_TOKEN: usize = 256;

/// The challenges of an authority that are pending.
pub(crate) trait Pending {
    /// Whether one is pending over HTTP.
    fn has_http(&self) -> bool;

    /// Whether one over HTTP has this token.
    fn has_token(&self, token: &str) -> bool;

    /// Whether one over TLS is for this name.
    fn has_name(&self, name: &str) -> bool;
}

/// Who serves a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// A worker: TURN over TCP or TLS.
    Relay,
    /// The HTTP server of this process, over TLS.
    Http,
    /// The same without TLS: the response to a challenge of an authority.
    Challenge,
    /// The web site.
    Web,
}

/// The decision about the first bytes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    To(Destination),
    /// At least this number of bytes is needed to decide.
    Needs(usize),
    /// The ClientHello is longer than any that a client sends.
    TooLong,
}

/// The rules of a front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// The names of the relay, as [`normalized`](hello::normalized) returns them.
    names: Vec<String>,
    /// Whether clients that send no server name are those of the relay.
    relay_without_name: bool,
    /// Whether the HTTP server of this process serves browsers that use a name of the relay.
    serves_http: bool,
}

impl Rules {
    pub(crate) fn new(names: &[String], relay_without_name: bool, serves_http: bool) -> Self {
        let names = names.iter().map(|name| hello::normalized(name)).collect();
        Self { names, relay_without_name, serves_http }
    }

    /// Decides by the first bytes of a connection, of which there may be more.
    pub(crate) fn decide(&self, first: &[u8], pending: &impl Pending) -> Decision {
        match first.first() {
            None => Decision::Needs(1),
            Some(..=LAST_STUN) => Decision::To(Destination::Relay),
            Some(&hello::HANDSHAKE) => match hello::read(first) {
                Read::Hello(hello) => Decision::To(self.of_tls(&hello, pending)),
                Read::Needs(bytes) => Decision::Needs(bytes),
                Read::TooLong => Decision::TooLong,
                // The web site knows how to refuse it.
                Read::Malformed => Decision::To(Destination::Web),
            },
            // HTTP begins with a letter, and so may ChannelData; but a client has no channel before its first request.
            Some(_) if pending.has_http() => of_http(first, pending),
            Some(_) => Decision::To(Destination::Web),
        }
    }

    fn of_tls(&self, hello: &ClientHello, pending: &impl Pending) -> Destination {
        // RFC 8737 §3: it offers this protocol alone.
        let is_challenge = hello.protocols.len() == 1 && hello.offers(ACME_TLS);
        if is_challenge && hello.server_name.as_deref().is_some_and(|name| pending.has_name(name)) {
            return Destination::Relay;
        }
        let is_own = match &hello.server_name {
            Some(name) => self.names.contains(name),
            None => self.relay_without_name,
        };
        if !is_own {
            Destination::Web
        } else if hello.protocols.is_empty() || STUN.into_iter().any(|protocol| hello.offers(protocol)) {
            Destination::Relay
        } else if self.serves_http && hello.offers(HTTP) {
            Destination::Http
        } else {
            // Also another protocol, such as that of an ACME challenge for the web site's certificate.
            Destination::Web
        }
    }
}

/// Decides by the first bytes of an HTTP request, while a challenge is pending.
fn of_http(first: &[u8], pending: &impl Pending) -> Decision {
    if let Some(rest) = first.strip_prefix(CHALLENGE) {
        return match rest.iter().take(LONGEST_TOKEN).position(|byte| *byte == b' ') {
            Some(end) => {
                let token = rest.get(..end).and_then(|token| std::str::from_utf8(token).ok());
                let is_own = token.is_some_and(|token| pending.has_token(token));
                Decision::To(if is_own { Destination::Challenge } else { Destination::Web })
            }
            None if rest.len() < LONGEST_TOKEN => Decision::Needs(first.len() + 1),
            None => Decision::To(Destination::Web),
        };
    }
    if CHALLENGE.starts_with(first) { Decision::Needs(first.len() + 1) } else { Decision::To(Destination::Web) }
}

#[cfg(test)]
mod tests {
    use super::super::hello::tests::first_flight;
    use super::*;

    /// No challenge, or one for a name and one with a token.
    struct Challenges(Option<(&'static str, &'static str)>);

    impl Pending for Challenges {
        fn has_http(&self) -> bool {
            self.0.is_some()
        }

        fn has_token(&self, token: &str) -> bool {
            self.0.is_some_and(|(_, own)| own == token)
        }

        fn has_name(&self, name: &str) -> bool {
            self.0.is_some_and(|(own, _)| own == name)
        }
    }

    const NONE: Challenges = Challenges(None);

    fn rules(relay_without_name: bool, serves_http: bool) -> Rules {
        Rules::new(&["Turn.example.org".to_owned(), "relay.example.org.".to_owned()], relay_without_name, serves_http)
    }

    fn of(rules: &Rules, name: &str, protocols: &[&[u8]]) -> Destination {
        match rules.decide(&first_flight(name, protocols), &NONE) {
            Decision::To(destination) => destination,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_server_name_decides() {
        let rules = rules(false, false);
        for (name, destination) in [
            ("turn.example.org", Destination::Relay),
            ("TURN.example.org", Destination::Relay),
            ("relay.example.org", Destination::Relay),
            ("www.example.org", Destination::Web),
            ("turn.example.org.evil.example", Destination::Web),
            ("x.turn.example.org", Destination::Web),
            ("192.0.2.7", Destination::Web),
        ] {
            assert_eq!(of(&rules, name, &[]), destination, "{name}");
        }
    }

    #[test]
    fn clients_without_a_name_are_those_of_the_relay_if_that_is_configured() {
        assert_eq!(of(&rules(true, false), "192.0.2.7", &[]), Destination::Relay);
        assert_eq!(of(&rules(true, false), "192.0.2.7", &[b"h2"]), Destination::Web);
        assert_eq!(of(&rules(true, false), "www.example.org", &[]), Destination::Web);
    }

    // One name can then be that of the web site and of the relay: browsers offer HTTP, and clients of TURN do not.
    #[test]
    fn browsers_that_use_a_name_of_the_relay_get_the_web_site_or_http() {
        let name = "turn.example.org";
        for (serves_http, browser) in [(false, Destination::Web), (true, Destination::Http)] {
            let rules = rules(false, serves_http);
            assert_eq!(of(&rules, name, &[b"h2", b"http/1.1"]), browser);
            assert_eq!(of(&rules, name, &[b"http/1.1"]), browser);
            assert_eq!(of(&rules, name, &[b"h2"]), Destination::Web);
            assert_eq!(of(&rules, name, &[b"stun.turn"]), Destination::Relay);
            assert_eq!(of(&rules, name, &[b"stun.turn", b"http/1.1"]), Destination::Relay);
            assert_eq!(of(&rules, name, &[b"stun.nat-discovery"]), Destination::Relay);
            assert_eq!(of(&rules, name, &[b"acme-tls/1"]), Destination::Web);
            assert_eq!(of(&rules, "www.example.org", &[b"http/1.1"]), Destination::Web);
        }
    }

    #[test]
    fn the_first_byte_tells_turn_from_everything_else_but_tls() {
        let rules = rules(false, true);
        assert_eq!(rules.decide(&[], &NONE), Decision::Needs(1));
        for first in [0, 1, 3] {
            assert_eq!(rules.decide(&[first], &NONE), Decision::To(Destination::Relay));
        }
        for first in [4, b'G', b'P', 0x14, 0x17, 0x80, 0xff] {
            assert_eq!(rules.decide(&[first], &NONE), Decision::To(Destination::Web));
        }
    }

    #[test]
    fn a_client_hello_that_is_not_complete_or_too_long_or_malformed_is_told_apart() {
        let (rules, flight) = (rules(false, false), first_flight("turn.example.org", &[]));
        assert_eq!(rules.decide(&flight[..1], &NONE), Decision::Needs(5));
        assert_eq!(rules.decide(&flight[..5], &NONE), Decision::Needs(6));
        assert_eq!(rules.decide(&flight[..100], &NONE), Decision::Needs(flight.len()));
        assert_eq!(rules.decide(&[22, 3, 1, 0x40, 0, 1, 0, 0x40, 1], &NONE), Decision::TooLong);
        assert_eq!(rules.decide(&[22, 9, 9, 0, 1, 1], &NONE), Decision::To(Destination::Web));
    }

    #[test]
    fn a_challenge_of_the_server_reaches_it_and_those_of_the_web_site_reach_that() {
        let rules = rules(false, false);
        let pending = Challenges(Some(("turn.example.org", "a-token")));
        let tls = |name: &str, protocols: &[&[u8]]| rules.decide(&first_flight(name, protocols), &pending);
        assert_eq!(tls("turn.example.org", &[b"acme-tls/1"]), Decision::To(Destination::Relay));
        assert_eq!(tls("turn.example.org", &[b"acme-tls/1", b"h2"]), Decision::To(Destination::Web));
        assert_eq!(tls("www.example.org", &[b"acme-tls/1"]), Decision::To(Destination::Web));
        let http = |request: &str| rules.decide(request.as_bytes(), &pending);
        let path = "GET /.well-known/acme-challenge/";
        assert_eq!(http(&format!("{path}a-token HTTP/1.1\r\n")), Decision::To(Destination::Challenge));
        for (request, destination) in [
            ("another HTTP/1.1\r\n", Destination::Web),
            (" HTTP/1.1\r\n", Destination::Web),
            (&*"a".repeat(256), Destination::Web),
        ] {
            assert_eq!(http(&format!("{path}{request}")), Decision::To(destination), "{request}");
        }
        for part in ["G", "GET /.well", path, &format!("{path}a-tok")] {
            assert_eq!(http(part), Decision::Needs(part.len() + 1));
            assert_eq!(
                rules.decide(part.as_bytes(), &NONE),
                Decision::To(Destination::Web),
                "nothing waits for nothing"
            );
        }
        for other in ["GET / HTTP/1.1", "GET /.well-known/security.txt", "POST /.well-known/acme-challenge/a-token "] {
            assert_eq!(http(other), Decision::To(Destination::Web));
        }
    }
}
