//! STUN messages from clients (RFC 8489 §6.3, §9.2.4; RFC 8656 §7.2, §8.2, §10.2, §12.2).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use turnserver::auth::time_limited::Reading;
use turnserver::auth::{AuthFailure, KeyAlgorithm};
use turnserver::stun::attribute::{
    AddressFamily, ChannelNumber, Lifetime, Nonce, PasswordAlgorithm, PasswordAlgorithms, Realm,
    RequestedAddressFamily, Userhash, Username, XorPeerAddress,
};
use turnserver::stun::{AttributeError, AttributeType, Class, FingerprintStatus, IntegrityStatus, Message, Method};
use turnserver::turn::{Action, AuthCause, DropReason, EndReason, Event, FiveTuple, Limit, Transport};

use super::{Body, Expect, ExpectedResponse, Model, Now, error, seconds_left};
use crate::packet::Signed;
use crate::setup::userhash;

/// The comprehension-required attributes of RFC 8489 §18.3 and RFC 8656 §18 that this server understands.
const UNDERSTOOD: [u16; 21] = [
    0x0001, 0x0006, 0x0008, 0x0009, 0x000a, 0x000c, 0x000d, 0x0012, 0x0013, 0x0014, 0x0015, 0x0016, 0x0017, 0x0018,
    0x0019, 0x001a, 0x001c, 0x001d, 0x001e, 0x0020, 0x0022,
];

/// Returns the unknown comprehension-required attributes, each once.
pub(super) fn unknown(message: &Message<'_>) -> Vec<u16> {
    let mut unknown = Vec::new();
    for kind in message.attributes().map(|attribute| attribute.kind.number()) {
        if kind < 0x8000 && !UNDERSTOOD.contains(&kind) && !unknown.contains(&kind) {
            unknown.push(kind);
        }
    }
    unknown
}

impl Model {
    pub(super) fn stun(&mut self, now: Now, tuple: &FiveTuple, bytes: &[u8], signed: Signed) -> Expect {
        let Ok(message) = Message::parse(bytes) else { return Expect::Drop(DropReason::MalformedStun) };
        let fingerprint = match message.fingerprint() {
            FingerprintStatus::Absent => false,
            FingerprintStatus::Valid => true,
            FingerprintStatus::Wrong => return Expect::Drop(DropReason::WrongFingerprint),
        };
        let method = message.method();
        match message.class() {
            Class::Success | Class::Error => return Expect::Drop(DropReason::UnexpectedResponse),
            Class::Indication if method == Method::SEND => return self.send_indication(now, tuple, &message),
            Class::Indication if method == Method::BINDING => return Expect::Drop(DropReason::Keepalive),
            Class::Indication => return Expect::Drop(DropReason::UnsupportedMethod),
            Class::Request => {}
        }
        let transaction = message.transaction_id();
        let has = |kinds: &[u16]| kinds.iter().any(|kind| message.contains(AttributeType::new(*kind)));
        // RFC 8489 §9.2.4, and the kind of integrity of the request.
        let uses_algorithms = has(&[0x001d, 0x8002]);
        let integrity = (!uses_algorithms || has(&[0x0008]), uses_algorithms);
        let (signer, keyed) = (None, KeyAlgorithm::Md5);
        let mut response =
            ExpectedResponse { method, transaction, fingerprint, signer, keyed, integrity, body: Body::Empty };
        if method == Method::BINDING {
            let unknown = unknown(&message);
            response.body = if unknown.is_empty() {
                Body::Mapped(tuple.client)
            } else {
                Body::Error { code: 420, challenge: false, unknown }
            };
            return Expect::Respond(response);
        }
        if tuple.transport == Transport::Udp && self.is_relayed(tuple.client) {
            return Expect::Drop(DropReason::RelayedClient);
        }
        if ![Method::ALLOCATE, Method::REFRESH, Method::CREATE_PERMISSION, Method::CHANNEL_BIND].contains(&method) {
            return Expect::Drop(DropReason::UnsupportedMethod);
        }
        // Over UDP, only the first request of a client gets a challenge if the client has proved nothing.
        let has_integrity = [0x0008, 0x001c].into_iter().any(|kind| message.contains(AttributeType::new(kind)));
        let first = method == Method::ALLOCATE && message.contains(AttributeType::new(0x0019));
        let has_nonce = message.get().is_ok_and(|nonce| nonce.is_some_and(|Nonce(nonce)| self.made(tuple, nonce)));
        let proved = tuple.transport != Transport::Udp || has_nonce || self.live(now, tuple).is_some();
        if !has_integrity && !first && !proved {
            return Expect::Drop(DropReason::NoCredentials);
        }
        match self.authenticate(now, tuple, &message, signed) {
            Ok((credential, keyed)) => (response.signer, response.keyed) = (Some(credential), keyed),
            Err(body) => return Expect::Respond(ExpectedResponse { body, ..response }),
        }
        let unknown = unknown(&message);
        if !unknown.is_empty() {
            response.body = Body::Error { code: 420, challenge: false, unknown };
            return Expect::Respond(response);
        }
        if method == Method::ALLOCATE {
            return self.allocate(now, tuple, &message, response).unwrap_or_else(|expect| expect);
        }
        let credential = response.signer.expect("it was just set");
        // RFC 8656 §5.
        let done = match self.live(now, tuple) {
            None => Err(error(437)),
            Some(at) if self.allocs[at].username != self.credentials[credential].username => Err(error(441)),
            Some(at) => {
                self.allocs[at].modern |= is_modern(&message);
                match method {
                    Method::REFRESH => self.refresh(now, at, &message, credential),
                    Method::CREATE_PERMISSION => self.create_permission(now, at, &message),
                    _ => self.channel_bind(now, at, &message),
                }
            }
        };
        response.body = done.unwrap_or_else(|body| body);
        // RFC 8489 §9.2.4: a 401 has no integrity.
        if let Body::Error { challenge: true, .. } = response.body {
            response.signer = None;
        }
        Expect::Respond(response)
    }

    /// RFC 8489 §9.2.4. Returns the credential and which of its keys is used.
    fn authenticate(
        &mut self,
        now: Now,
        tuple: &FiveTuple,
        message: &Message<'_>,
        signed: Signed,
    ) -> Result<(usize, KeyAlgorithm), Body> {
        let integrity = [AttributeType::MESSAGE_INTEGRITY, AttributeType::MESSAGE_INTEGRITY_SHA256];
        if !integrity.into_iter().any(|kind| message.contains(kind)) {
            return Err(challenge(401));
        }
        let (Ok(Some(Realm(_))), Ok(Some(Nonce(nonce)))) = (message.get(), message.get()) else {
            return Err(error(400));
        };
        let (username, shown) = match (message.get(), message.get()) {
            (Ok(Some(Username(username))), _) => {
                // RFC 8489 §9.2.2: without trailing nulls.
                let username = username.trim_end_matches('\0').to_owned();
                (Some(username.clone()), username)
            }
            (Ok(None), Ok(Some(Userhash(hash)))) => {
                let mut names = self.setup.statics.iter().map(|(name, _)| name.clone());
                let name = names.find(|name| userhash(name) == *hash);
                let [a, b, c, d, ..] = hash;
                (name.clone(), name.unwrap_or_else(|| format!("USERHASH {a:02x}{b:02x}{c:02x}{d:02x}…")))
            }
            _ => return Err(error(400)),
        };
        let algorithm = self.algorithm(tuple, message, nonce)?;
        // Anyone can make up a nonce: the response does not depend on the password.
        if !self.made(tuple, nonce) {
            return Err(challenge(438));
        }
        let fresh = self.nonce_is_good(now, tuple.client, nonce);
        // One username can have two credentials, from two secrets.
        let named = |at: &usize| Some(&self.credentials[*at].username) == username.as_ref();
        let mut named = (0..self.credentials.len()).filter(named);
        let right = named.find(|at| match signed {
            Signed::With(signer, keyed) => signer == *at && keyed == algorithm,
            Signed::Invalid => false,
            Signed::Unknown => {
                let key = self.credentials[*at].key(algorithm);
                let key = key.as_bytes();
                let sha256 = message.contains(AttributeType::MESSAGE_INTEGRITY_SHA256);
                let status = if sha256 { message.verify_integrity_sha256(key) } else { message.verify_integrity(key) };
                status == IntegrityStatus::Valid
            }
        });
        let Some(credential) = right else {
            if fresh {
                let failure = match &username {
                    Some(username) => self.failure_of(now, username),
                    None => AuthFailure::UnknownUserhash,
                };
                self.authentication_failed(now, &shown, tuple, AuthCause::Failure(failure));
            }
            return Err(challenge(401));
        };
        if !fresh {
            return Err(challenge(438));
        }
        match self.credentials[credential].expires {
            // RFC 8489 §6.3.1: a retransmission gets the same response, even after the credential has expired.
            Some(expires)
                if message.method() == Method::ALLOCATE
                    && expires <= now.unix
                    && !self.is_retransmission(now, tuple, message, &shown) =>
            {
                let cause = AuthCause::Expired { ago: now.unix - expires, reading: time_of(&shown).1 };
                self.authentication_failed(now, &shown, tuple, cause);
                Err(challenge(401))
            }
            _ => Ok((credential, algorithm)),
        }
    }

    /// Whether the server has made this nonce for the client.
    fn made(&self, tuple: &FiveTuple, nonce: &str) -> bool {
        self.nonces.get(nonce).is_some_and(|(_, owner)| *owner == tuple.client)
    }

    /// The bid-down checks of RFC 8489 §9.2.4.
    fn algorithm(&self, tuple: &FiveTuple, message: &Message<'_>, nonce: &str) -> Result<KeyAlgorithm, Body> {
        let (Ok(listed), Ok(named)) = (message.get::<PasswordAlgorithms<'_>>(), message.get::<PasswordAlgorithm<'_>>())
        else {
            return Err(error(400));
        };
        if listed.is_none() && named.is_none() {
            return Ok(KeyAlgorithm::Md5);
        }
        if announces_algorithms(nonce) {
            let (Some(listed), Some(named)) = (listed, named) else { return Err(error(400)) };
            let entries: Vec<_> = listed.iter().map(|entry| (entry.algorithm, entry.parameters)).collect();
            // The server does not know which list it sent with the nonce of another client.
            let as_sent = !self.made(tuple, nonce) || entries == [(2, &[][..]), (1, &[])];
            if !as_sent || !entries.contains(&(named.algorithm, named.parameters)) {
                return Err(error(400));
            }
        }
        match named.map(|named| (named.algorithm, named.parameters)) {
            None | Some((1, [])) => Ok(KeyAlgorithm::Md5),
            Some((2, [])) => Ok(KeyAlgorithm::Sha256),
            Some(_) => Err(challenge(401)),
        }
    }

    /// Whether the message is the one that created the allocation of its 5-tuple.
    fn is_retransmission(&self, now: Now, tuple: &FiveTuple, message: &Message<'_>, username: &str) -> bool {
        self.find(tuple).map(|at| &self.allocs[at]).is_some_and(|alloc| {
            !alloc.has_ended(now) && alloc.transaction == message.transaction_id() && alloc.username == username
        })
    }

    fn authentication_failed(&mut self, now: Now, username: &str, tuple: &FiveTuple, cause: AuthCause) {
        let (id, username) = (self.live(now, tuple).map(|at| self.allocs[at].id()), username.to_owned());
        self.announced.push(Action::Log(Event::AuthenticationFailed { id, username, tuple: *tuple, cause }));
    }

    /// Returns the logged reason for a failed authentication.
    fn failure_of(&self, now: Now, username: &str) -> AuthFailure {
        if self.setup.statics.iter().any(|(name, _)| name == username) {
            return AuthFailure::WrongPassword;
        }
        let (Some(expires), reading) = time_of(username) else { return AuthFailure::UnknownUser };
        let tried = self.setup.secrets.len();
        if expires >= 100_000_000_000 {
            AuthFailure::ExpiryInMilliseconds { expires }
        } else if tried == 0 {
            AuthFailure::NoSecret
        } else if expires <= now.unix {
            AuthFailure::WrongSecretAndExpired { tried, ago_seconds: now.unix - expires, reading }
        } else {
            AuthFailure::WrongSecret { tried, reading }
        }
    }

    /// RFC 8656 §8.2, and the expiry of time-limited credentials: the allocation of an expired credential keeps its
    /// lifetime, and can be extended to the end of the grace period.
    fn refresh(&mut self, now: Now, at: usize, message: &Message<'_>, credential: usize) -> Result<Body, Body> {
        let asked = match message.get::<RequestedAddressFamily>() {
            Ok(asked) => asked.map(|RequestedAddressFamily(asked)| asked == AddressFamily::V6),
            Err(AttributeError::UnknownFamily) => return Err(error(443)),
            Err(_) => return Err(error(400)),
        };
        if asked.is_some_and(|v6| !self.allocs[at].has(now, v6)) {
            return Err(error(443));
        }
        let Ok(lifetime) = message.get::<Lifetime>() else { return Err(error(400)) };
        let desired = desired_lifetime(lifetime);
        if desired == 0 {
            match asked {
                Some(v6) => self.end_address(now, at, v6),
                None => self.end(now, at, EndReason::Deleted),
            }
            return Ok(Body::Refreshed(0));
        }
        let mut last = u64::MAX;
        if let Some(expires) = self.credentials[credential].expires {
            let end = expires + self.setup.expiry_grace;
            if end <= now.unix {
                let (username, tuple) = (self.allocs[at].username.clone(), self.allocs[at].tuple);
                let cause = AuthCause::Expired { ago: now.unix - expires, reading: time_of(&username).1 };
                self.authentication_failed(now, &username, &tuple, cause);
                return Err(challenge(401));
            }
            last = now.ms + (end - now.unix) * 1_000;
        }
        let mut shortest = u32::MAX;
        for address in self.allocs[at].live_mut(now, asked) {
            address.deadline = (now.ms + desired * 1_000).min(last.max(address.deadline));
            shortest = shortest.min(seconds_left(address.deadline, now));
        }
        Ok(Body::Refreshed(shortest))
    }

    /// RFC 8656 §10.2.
    fn create_permission(&mut self, now: Now, at: usize, message: &Message<'_>) -> Result<Body, Body> {
        let peers: Result<Vec<XorPeerAddress>, _> = message.all::<XorPeerAddress>().collect();
        let peers: Vec<SocketAddr> = peers.map_err(|_| error(400))?.into_iter().map(|peer| peer.0).collect();
        if peers.is_empty() {
            return Err(error(400));
        }
        if peers.iter().map(SocketAddr::ip).collect::<BTreeSet<_>>().len() > self.setup.permissions {
            self.limit_reached(at, Limit::Permissions);
            return Err(Body::LimitReached(Limit::Permissions));
        }
        if peers.iter().any(|peer| !self.allocs[at].has(now, peer.is_ipv6())) {
            return Err(error(443));
        }
        for peer in &peers {
            // A permission covers every port, and a relay address may have ports that are allowed.
            if !self.setup.is_relay_address(peer.ip()) {
                self.allowed(at, *peer)?;
            }
        }
        self.allocs[at].purge(now);
        let mut after = self.allocs[at].permissions.clone();
        for peer in &peers {
            permit(&mut after, now, *peer);
        }
        if let Err(limit) = self.admit_permissions(now, at, &after) {
            self.limit_reached(at, limit);
            return Err(Body::LimitReached(limit));
        }
        self.allocs[at].permissions = after;
        Ok(Body::Empty)
    }

    /// RFC 8656 §12.2.
    fn channel_bind(&mut self, now: Now, at: usize, message: &Message<'_>) -> Result<Body, Body> {
        let (Ok(Some(ChannelNumber(number))), Ok(Some(XorPeerAddress(peer)))) = (message.get(), message.get()) else {
            return Err(error(400));
        };
        let alloc = &mut self.allocs[at];
        let tuple = alloc.tuple;
        if !(0x4000..=0x4fff).contains(&number) {
            let rfc5766 = (0x5000..=0x7fff).contains(&number);
            if rfc5766 && !self.setup.rfc5766_channels {
                let (id, user) = (alloc.id(), alloc.user.clone());
                self.announced.push(Action::Log(Event::Rfc5766Channel { id, user, tuple, number }));
            }
            if !rfc5766 || !self.setup.rfc5766_channels {
                return Err(error(400));
            }
        }
        alloc.purge(now);
        let bound = alloc.channels.iter();
        if bound.clone().any(|(other, to, _)| (*other == number) != (*to == peer)) {
            return Err(error(400));
        }
        if !alloc.has(now, peer.is_ipv6()) {
            return Err(error(443));
        }
        if peer.port() == 0 {
            return Err(error(403));
        }
        self.allowed(at, peer)?;
        let mut channels = self.allocs[at].channels.clone();
        channels.retain(|(other, _, _)| *other != number);
        channels.push((number, peer, now.ms + 600_000));
        let mut permissions = self.allocs[at].permissions.clone();
        permit(&mut permissions, now, peer);
        let admitted = if channels.len() > self.setup.channels {
            Err(Limit::Channels)
        } else {
            self.admit_permissions(now, at, &permissions)
        };
        if let Err(limit) = admitted {
            self.limit_reached(at, limit);
            return Err(Body::LimitReached(limit));
        }
        (self.allocs[at].channels, self.allocs[at].permissions) = (channels, permissions);
        Ok(Body::Empty)
    }

    /// Checks a peer against the policy. The error is a 403.
    fn allowed(&mut self, at: usize, peer: SocketAddr) -> Result<(), Body> {
        let Err(denial) = self.peer(peer) else { return Ok(()) };
        let alloc = &self.allocs[at];
        let (id, user, tuple) = (alloc.id(), alloc.user.clone(), alloc.tuple);
        self.announced.push(Action::Log(Event::PeerDenied { id, user, tuple, peer, denial }));
        Err(error(403))
    }
}

/// Returns whether bit 0 of the security features after the nonce cookie (RFC 8489 §9.2) is set. Bits may be counted
/// from either end. Only bits 0 and 1 of each end may be set.
fn announces_algorithms(nonce: &str) -> bool {
    let text = nonce.strip_prefix("obMatJos2").and_then(|rest| rest.get(..4));
    let bits = text.and_then(|text| STANDARD.decode(text).ok());
    bits.is_some_and(|bits| match bits[..] {
        [high, 0, low] => high & !0xc0 == 0 && low & !0x03 == 0 && (high & 0x80 != 0 || low & 0x01 != 0),
        _ => false,
    })
}

/// Returns whether a request has an attribute that came with RFC 8489 or RFC 8656: MESSAGE-INTEGRITY-SHA256,
/// PASSWORD-ALGORITHM, USERHASH, ADDITIONAL-ADDRESS-FAMILY or PASSWORD-ALGORITHMS.
pub(super) fn is_modern(message: &Message<'_>) -> bool {
    message.attributes().any(|attribute| matches!(attribute.kind.number(), 0x001c..=0x001e | 0x8000 | 0x8002))
}

/// Returns the expiry in a username of this simulation, whose names are no numbers, and which part it is.
fn time_of(username: &str) -> (Option<u64>, Reading) {
    let parts: Vec<&str> = username.split(':').collect();
    let number = |text: &str| text.chars().all(|c| c.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    match (number(parts[0]), number(parts[parts.len() - 1])) {
        (Some(expires), _) => (Some(expires), Reading::ExpiryFirst),
        (None, expires) => (expires, Reading::ExpiryLast),
    }
}

fn challenge(code: u16) -> Body {
    Body::Error { code, challenge: true, unknown: Vec::new() }
}

/// Returns the lifetime in seconds. RFC 8656 §7.2 and §8.2 have the same limits.
pub(super) fn desired_lifetime(asked: Option<Lifetime>) -> u64 {
    match asked {
        None => 600,
        Some(Lifetime(0)) => 0,
        Some(Lifetime(seconds)) => u64::from(seconds).clamp(600, 3_600),
    }
}

fn permit(permissions: &mut Vec<(IpAddr, u64)>, now: Now, peer: SocketAddr) {
    permissions.retain(|(address, _)| *address != peer.ip());
    permissions.push((peer.ip(), now.ms + 300_000));
}
