//! Password algorithms and USERHASH (RFC 8489 §9.2.1, §9.2.4, §14.4, §14.11, §14.12).

use sha2::{Digest as _, Sha256};

use crate::auth::{AuthFailure, KeyAlgorithm, LongTermKey, NonceMint, SecurityFeatures};
use crate::stun::attribute::{
    ChannelNumber, Lifetime, Nonce, PasswordAlgorithm, PasswordAlgorithms, Realm, RequestedTransport, Userhash,
    Username, XorPeerAddress,
};
use crate::stun::{AttributeType, Class, EncodeAttribute, IntegrityStatus, Method};
use crate::turn::tests::authentication::CHALLENGE;
use crate::turn::tests::support::*;
use crate::turn::{AuthCause, Epoch, Event, FromClient};

/// The list in the challenge: SHA-256, then MD5, both without parameters.
const LISTED: [u8; 8] = [0, 2, 0, 0, 0, 1, 0, 0];
const SHA256: [u8; 4] = [0, 2, 0, 0];
const MD5: [u8; 4] = [0, 1, 0, 0];

/// A client that uses password algorithms, and the attributes that it sends.
#[derive(Clone)]
struct AlgorithmClient {
    client: Client,
    by_hash: bool,
    listed: Option<Vec<u8>>,
    named: Option<Vec<u8>>,
    key: LongTermKey,
    sha1: bool,
}

fn key_of(client: &Client, algorithm: KeyAlgorithm) -> LongTermKey {
    LongTermKey::derive_by(algorithm, &client.username, REALM, client.password.as_bytes())
}

fn userhash(username: &str) -> [u8; 32] {
    Sha256::digest(format!("{username}:{REALM}")).into()
}

impl AlgorithmClient {
    /// Returns a client that follows the challenge: it repeats the list and uses the first algorithm in it.
    fn new(client: &Client) -> Self {
        let key = key_of(client, KeyAlgorithm::Sha256);
        let client = client.clone();
        Self { client, by_hash: false, listed: Some(LISTED.to_vec()), named: Some(SHA256.to_vec()), key, sha1: false }
    }

    fn request(&self, world: &mut World, method: Method, attributes: &[&dyn EncodeAttribute]) -> Vec<u8> {
        write(Class::Request, method, world.transaction(), |writer| {
            attributes.iter().for_each(|attribute| writer.push(*attribute));
            if self.by_hash {
                writer.push(&Userhash(&userhash(&self.client.username)));
            } else {
                writer.push(&Username(&self.client.username));
            }
            writer.push(&Realm(REALM));
            writer.push(&Nonce(&self.client.nonce));
            if let Some(listed) = &self.listed {
                writer.push(&Raw(AttributeType::PASSWORD_ALGORITHMS, listed));
            }
            if let Some(named) = &self.named {
                writer.push(&Raw(AttributeType::PASSWORD_ALGORITHM, named));
            }
            if self.sha1 {
                writer.message_integrity(self.key.as_bytes());
            } else {
                writer.message_integrity_sha256(self.key.as_bytes());
            }
        })
    }

    fn send_request(&self, world: &mut World, method: Method, attributes: &[&dyn EncodeAttribute]) -> CheckedResponse {
        let request = self.request(world, method, attributes);
        match world.client_packet(&self.client.tuple, &request) {
            (FromClient::Respond(response), buffer) => CheckedResponse::new(&request, &buffer, &response),
            (FromClient::Open(open), _) => world.opened(&request, &open, Ok(())),
            (other, _) => panic!("a response is expected, not {other:?}"),
        }
    }

    /// Whether the response has a valid MESSAGE-INTEGRITY-SHA256, and a valid MESSAGE-INTEGRITY if the request had one.
    fn verifies(&self, response: &CheckedResponse) -> bool {
        let (message, key) = (response.message(), self.key.as_bytes());
        let sha1 = if self.sha1 { IntegrityStatus::Valid } else { IntegrityStatus::Absent };
        message.verify_integrity(key) == sha1 && message.verify_integrity_sha256(key) == IntegrityStatus::Valid
    }
}

// A rejected request changes nothing, not even the key of the allocation.
#[test]
fn a_refresh_after_the_grace_period_keeps_the_key_of_the_allocation() {
    let mut world = World::new();
    let client = world.client(1).with_credential("carol", UNIX + 100);
    world.allocate_with(&client, &[&Lifetime(3_600)]);
    world.pass(seconds(100 + EXPIRY_GRACE));
    let key = |world: &World| {
        let epoch = Epoch { now: world.now, unix: seconds(world.unix) };
        world.server.export(epoch).map(|record| record.key).collect::<Vec<_>>()
    };
    let before = key(&world);
    assert_eq!(AlgorithmClient::new(&client).send_request(&mut world, Method::REFRESH, &[]).code(), Some(401));
    assert!(matches!(world.event(), Event::AuthenticationFailed { cause: AuthCause::Expired { .. }, .. }));
    assert_eq!(key(&world), before);
}

fn assert_allocated(world: &mut World, response: &CheckedResponse) -> String {
    assert_eq!(response.code(), None, "{}", response.reason());
    match world.event() {
        Event::AllocationCreated { user, .. } => user,
        other => panic!("a log entry about a new allocation is expected, not {other:?}"),
    }
}

fn logged_failure(world: &mut World) -> (String, AuthFailure) {
    match world.event() {
        Event::AuthenticationFailed { username, cause: AuthCause::Failure(failure), .. } => (username, failure),
        other => panic!("a log entry about a failed authentication is expected, not {other:?}"),
    }
}

// RFC 8489 §9.2.4: PASSWORD-ALGORITHMS in order of preference, and the corresponding feature bit in the nonce.
#[test]
fn a_challenge_prefers_sha256_and_its_nonce_announces_password_algorithms() {
    let mut world = World::new();
    let client = world.client(1);
    let response =
        world.response_to(&client.tuple, &plain(Class::Request, Method::ALLOCATE, &[&RequestedTransport::UDP]));
    let listed: PasswordAlgorithms<'_> = response.get().unwrap();
    assert!(listed.iter().eq([PasswordAlgorithm::SHA256, PasswordAlgorithm::MD5]));
    assert!(response.bytes.windows(LISTED.len()).any(|bytes| bytes == LISTED));
    let features = SecurityFeatures { password_algorithms: true, username_anonymity: false };
    assert_eq!(SecurityFeatures::of(&response.nonce().unwrap()), Some(features));
}

// RFC 8489 §9.2.4: MESSAGE-INTEGRITY-SHA256 in all responses to a client that sends PASSWORD-ALGORITHM. Some clients sign
// with MESSAGE-INTEGRITY nevertheless, and check only that in the response.
#[test]
fn a_client_that_sends_password_algorithm_gets_sha256_integrity_and_its_own_kind() {
    let algorithms = [(SHA256, KeyAlgorithm::Sha256), (MD5, KeyAlgorithm::Md5)];
    for ((named, algorithm), sha1) in algorithms.into_iter().flat_map(|each| [(each, false), (each, true)]) {
        let mut world = World::new();
        let mut client = AlgorithmClient { sha1, ..AlgorithmClient::new(&world.client(1)) };
        (client.named, client.key) = (Some(named.to_vec()), key_of(&client.client, algorithm));
        let mismatch = client.send_request(&mut world, Method::REFRESH, &[]);
        assert_eq!((mismatch.code(), client.verifies(&mismatch)), (Some(437), true));
        let allocated = client.send_request(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
        assert!(client.verifies(&allocated));
        assert_eq!(assert_allocated(&mut world, &allocated), "alice");
        let unknown = client.send_request(&mut world, Method::REFRESH, &[&Raw(AttributeType::new(0x7f01), &[])]);
        assert_eq!((unknown.code(), client.verifies(&unknown)), (Some(420), true));
        let bind: [&dyn EncodeAttribute; 2] = [&ChannelNumber(0x4000), &XorPeerAddress(peer(1))];
        for (method, attributes) in [
            (Method::REFRESH, &[][..]),
            (Method::CREATE_PERMISSION, &[&XorPeerAddress(peer(1)) as &dyn EncodeAttribute]),
            (Method::CHANNEL_BIND, &bind),
        ] {
            let response = client.send_request(&mut world, method, attributes);
            assert_eq!((response.code(), client.verifies(&response)), (None, true), "{method}");
        }
    }
}

// RFC 8489 §9.2.4: without MESSAGE-INTEGRITY-SHA256, MESSAGE-INTEGRITY is checked, with either key.
#[test]
fn a_client_with_a_sha256_key_may_sign_with_sha1() {
    let mut world = World::new();
    let client = AlgorithmClient { sha1: true, ..AlgorithmClient::new(&world.client(1)) };
    let response = client.send_request(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
    assert!(client.verifies(&response));
    assert_allocated(&mut world, &response);
}

#[test]
fn time_limited_credentials_have_keys_of_both_kinds() {
    for (named, algorithm) in [(SHA256, KeyAlgorithm::Sha256), (MD5, KeyAlgorithm::Md5)] {
        let mut world = World::new();
        let mut client = AlgorithmClient::new(&world.client(1).with_credential("carol", UNIX + 1_000));
        (client.named, client.key) = (Some(named.to_vec()), key_of(&client.client, algorithm));
        let response = client.send_request(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
        assert!(client.verifies(&response));
        assert_eq!(assert_allocated(&mut world, &response), "carol");
    }
}

#[test]
fn the_key_of_another_algorithm_is_a_wrong_password() {
    let mut world = World::new();
    let mut client = AlgorithmClient::new(&world.client(1));
    client.key = key_of(&client.client, KeyAlgorithm::Md5);
    let response = client.send_request(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
    assert_eq!((response.code(), response.kinds()), (Some(401), CHALLENGE.to_vec()));
    assert_eq!(logged_failure(&mut world), ("alice".to_owned(), AuthFailure::WrongPassword));
    assert_eq!(world.footprint(), EMPTY);
}

// RFC 8489 §9.2.4: one of the attributes is missing, the list is not the one that was sent, or the algorithm is not in
// it → 400, before the username, the integrity and the age of the nonce are checked.
#[test]
fn a_modified_algorithm_list_or_an_algorithm_outside_it_is_400() {
    let mut world = World::new();
    let good = AlgorithmClient::new(&world.client(1));
    let lists: [&[u8]; 6] = [
        // SHA-256 removed: a bid-down attack.
        &MD5,
        &SHA256,
        &[0, 1, 0, 0, 0, 2, 0, 0],
        &[0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0],
        &[0, 2, 0, 1, 9, 0, 0, 0, 0, 1, 0, 0],
        &[],
    ];
    let mut cases: Vec<AlgorithmClient> = Vec::new();
    for listed in lists {
        for (named, algorithm) in [(SHA256, KeyAlgorithm::Sha256), (MD5, KeyAlgorithm::Md5)] {
            let key = key_of(&good.client, algorithm);
            cases.push(AlgorithmClient {
                listed: Some(listed.to_vec()),
                named: Some(named.to_vec()),
                key,
                ..good.clone()
            });
        }
    }
    cases.push(AlgorithmClient { listed: None, ..good.clone() });
    cases.push(AlgorithmClient { named: None, ..good.clone() });
    cases.push(AlgorithmClient { named: Some(vec![0, 3, 0, 0]), ..good.clone() });
    cases.push(AlgorithmClient { named: Some(vec![0, 2, 0, 1, 9, 0, 0, 0]), ..good.clone() });
    let malformed: [&[u8]; 4] = [&[], &[0, 2], &[0, 2, 0, 1], &[0, 2, 0, 0, 0]];
    cases.extend(malformed.map(|named| AlgorithmClient { named: Some(named.to_vec()), ..good.clone() }));
    cases.push(AlgorithmClient { listed: Some(vec![0, 2, 0, 0, 0, 1, 0]), ..good.clone() });
    let mut unknown = cases[0].clone();
    unknown.client.username = "mallory".to_owned();
    cases.push(unknown);
    for _ in 0..2 {
        for case in &cases {
            for method in [Method::ALLOCATE, Method::REFRESH, Method::CREATE_PERMISSION, Method::CHANNEL_BIND] {
                let response = case.send_request(&mut world, method, &[&RequestedTransport::UDP]);
                let shown = (&case.listed, &case.named);
                assert_eq!(
                    (response.code(), response.kinds()),
                    (Some(400), vec![AttributeType::ERROR_CODE]),
                    "{shown:?}"
                );
            }
        }
        // An expired nonce makes no difference.
        world.pass(seconds(NONCE_LIFETIME));
    }
    assert_eq!(world.footprint(), EMPTY);
}

// RFC 8489 §9.2.1: a nonce with changed feature bits is invalid. The 438 has a nonce with the correct bits.
#[test]
fn a_nonce_with_modified_feature_bits_is_438() {
    let mut world = World::new();
    let honest = world.client(1);
    for features in ["AAAA", "gAAA", "AAAB", "wAAD"] {
        let nonce = honest.nonce.replacen("gAAB", features, 1);
        assert_ne!(nonce, honest.nonce);
        // A client that sees no feature bits uses MD5. A client that sees them uses password algorithms.
        let misled = Client { nonce: nonce.clone(), ..honest.clone() };
        let response = world.send_request(&misled, Method::ALLOCATE, &[&RequestedTransport::UDP]);
        assert_eq!((response.code(), response.kinds()), (Some(438), CHALLENGE.to_vec()));
        let with_algorithms = AlgorithmClient::new(&misled);
        let response = with_algorithms.send_request(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
        assert_eq!((response.code(), response.nonce()), (Some(438), Some(honest.nonce.clone())));
    }
    assert_eq!(world.footprint(), EMPTY);
}

// This server does not know the list of another server. It sends a challenge with its own nonce and list, because the
// client would have to ignore a 400 without integrity (RFC 8489 §9.2.5).
#[test]
fn a_client_with_the_nonce_and_the_list_of_another_server_is_challenged() {
    let mut world = World::new();
    let client = world.client(1);
    for nonce in ["obMatJos2gAABanother", "obMatJos2AAAAanother", "obMatJos2IAAAanother", "another"] {
        let mut with_algorithms = AlgorithmClient::new(&Client { nonce: nonce.to_owned(), ..client.clone() });
        let lists: [&[u8]; 2] = [&SHA256, &[0, 2, 0, 0, 0, 9, 0, 0]];
        for listed in lists {
            with_algorithms.listed = Some(listed.to_vec());
            let response = with_algorithms.send_request(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
            assert_eq!((response.code(), response.kinds()), (Some(438), CHALLENGE.to_vec()), "{nonce}");
        }
        (with_algorithms.listed, with_algorithms.named) = (Some(vec![0, 9, 0, 0]), Some(vec![0, 9, 0, 0]));
        let response = with_algorithms.send_request(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
        assert_eq!((response.code(), response.kinds()), (Some(401), CHALLENGE.to_vec()), "{nonce}");
    }
    assert_eq!(world.footprint(), EMPTY);
}

// Nonces of another server version, with the same key and without feature bits, are valid.
#[test]
fn a_nonce_without_feature_bits_requires_no_algorithm_list() {
    let mut world = World::new();
    let mint = NonceMint::from_random(NONCE_KEY, NONCE_LIFETIME).with_features(SecurityFeatures::default());
    let mut client = world.client(1);
    client.nonce = mint.mint(world.unix, client.tuple.client).to_string();
    world.allocate(&client);
    for (listed, named, algorithm) in [
        (None, Some(SHA256), KeyAlgorithm::Sha256),
        (None, Some(MD5), KeyAlgorithm::Md5),
        (Some(LISTED), Some(SHA256), KeyAlgorithm::Sha256),
        (Some(LISTED), None, KeyAlgorithm::Md5),
    ] {
        let mut with_algorithms = AlgorithmClient::new(&client);
        (with_algorithms.listed, with_algorithms.named) = (listed.map(Into::into), named.map(Into::into));
        with_algorithms.key = key_of(&client, algorithm);
        let response = with_algorithms.send_request(&mut world, Method::REFRESH, &[]);
        assert_eq!((response.code(), with_algorithms.verifies(&response)), (None, true));
    }
}

// RFC 8489 §14.5: attributes after the integrity are ignored, so an attacker cannot add password algorithms.
#[test]
fn password_algorithms_after_the_integrity_are_ignored() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate(&client);
    let transaction = world.transaction();
    let request = client.request_sealed(transaction, Method::REFRESH, &[], |writer, key| {
        writer.message_integrity(key);
        writer.push(&Raw(AttributeType::PASSWORD_ALGORITHMS, &LISTED));
        writer.push(&PasswordAlgorithm::SHA256);
    });
    let response = world.response_to(&client.tuple, &request);
    assert!(response.code().is_none() && response.is_signed_for(&client));
}

// RFC 8656 §7.2: the retransmission gets the same response with the same integrity.
#[test]
fn a_retransmitted_allocate_with_sha256_integrity_gets_the_same_response() {
    let mut world = World::new();
    let client = AlgorithmClient::new(&world.client(1));
    let request = client.request(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
    let open = world.open_for(&client.client.tuple, &request);
    let first = world.opened(&request, &open, Ok(()));
    assert_allocated(&mut world, &first);
    assert_eq!(world.response_to(&client.client.tuple, &request), first);
}

// RFC 8489 §14.4: USERHASH replaces USERNAME. The user and the allocation are the same (RFC 8656 §5).
#[test]
fn a_static_user_is_found_by_its_userhash() {
    for with_secrets in [true, false] {
        let mut world = World::with(|setup| setup.secrets.truncate(usize::from(with_secrets)));
        let plain = AlgorithmClient::new(&world.client(1));
        let hidden = AlgorithmClient { by_hash: true, ..plain.clone() };
        let response = hidden.send_request(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
        assert!(hidden.verifies(&response));
        assert_eq!(assert_allocated(&mut world, &response), "alice");
        // RFC 8489 §9.2.4: the response has neither USERNAME nor USERHASH.
        assert!(!response.kinds().contains(&AttributeType::USERNAME));
        assert!(!response.kinds().contains(&AttributeType::USERHASH));
        assert_eq!(plain.send_request(&mut world, Method::REFRESH, &[]).code(), None);
        assert_eq!(hidden.send_request(&mut world, Method::REFRESH, &[&Lifetime(700)]).code(), None);
        let bob = AlgorithmClient { by_hash: true, ..AlgorithmClient::new(&world.client(1).as_user(1)) };
        assert_eq!(bob.send_request(&mut world, Method::REFRESH, &[]).code(), Some(441));
    }
}

#[test]
fn userhash_is_accepted_without_password_algorithms() {
    let mut world = World::new();
    let client = world.client(1);
    let old = AlgorithmClient {
        by_hash: true,
        listed: None,
        named: None,
        key: client.key(),
        sha1: true,
        ..AlgorithmClient::new(&client)
    };
    let response = old.send_request(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
    assert!(response.is_signed_for(&client));
    assert_eq!(assert_allocated(&mut world, &response), "alice");
}

// RFC 8489 §9.2.4: an unknown USERHASH → 401, as for USERNAME. Time-limited usernames cannot be found by their hash.
#[test]
fn an_unknown_userhash_is_401_and_logged() {
    let mut world = World::new();
    let mut mallory = world.client(1);
    mallory.username = "mallory".to_owned();
    for client in [mallory, world.client(1).with_credential("carol", UNIX + 1_000)] {
        let hidden = AlgorithmClient { by_hash: true, ..AlgorithmClient::new(&client) };
        let response = hidden.send_request(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
        assert_eq!((response.code(), response.kinds()), (Some(401), CHALLENGE.to_vec()));
        let [a, b, c, d, ..] = userhash(&client.username);
        let shown = format!("USERHASH {a:02x}{b:02x}{c:02x}{d:02x}…");
        assert_eq!(logged_failure(&mut world), (shown, AuthFailure::UnknownUserhash));
    }
    assert_eq!(world.footprint(), EMPTY);
}

#[test]
fn a_wrong_password_with_a_userhash_is_401_and_logged_with_the_username() {
    let mut world = World::new();
    let mut hidden = AlgorithmClient { by_hash: true, ..AlgorithmClient::new(&world.client(1)) };
    hidden.key = LongTermKey::derive_by(KeyAlgorithm::Sha256, "alice", REALM, b"looking-glass");
    let response = hidden.send_request(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
    assert_eq!((response.code(), response.kinds()), (Some(401), CHALLENGE.to_vec()));
    assert_eq!(logged_failure(&mut world), ("alice".to_owned(), AuthFailure::WrongPassword));
}

// RFC 8489 §14.4: USERHASH has 32 bytes.
#[test]
fn a_userhash_of_another_length_is_400() {
    let mut world = World::new();
    let client = world.client(1);
    for length in [0, 31, 33] {
        let request = write(Class::Request, Method::ALLOCATE, world.transaction(), |writer| {
            writer.push(&Raw(AttributeType::USERHASH, &[7; 33][..length]));
            writer.push(&Realm(REALM));
            writer.push(&Nonce(&client.nonce));
            writer.message_integrity(client.key().as_bytes());
        });
        assert_eq!(world.response_to(&client.tuple, &request).code(), Some(400));
    }
}

// RFC 8489 §9.2.4, §9.2.5: the bit obliges clients to send USERHASH. So it is set only if every username can be found.
#[test]
fn username_anonymity_is_announced_if_all_users_are_static() {
    for with_secrets in [true, false] {
        let mut world = World::with(|setup| setup.secrets.truncate(usize::from(with_secrets)));
        let tuple = world.client(1).tuple;
        let response = world.response_to(&tuple, &plain(Class::Request, Method::ALLOCATE, &[&RequestedTransport::UDP]));
        let features = SecurityFeatures::of(&response.nonce().unwrap()).unwrap();
        assert_eq!(features.username_anonymity, !with_secrets);
    }
}
