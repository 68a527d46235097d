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
use crate::turn::{AuthCause, Event, FromClient};

/// What the challenge lists, byte for byte: SHA-256, then MD5, both without parameters.
const LISTED: [u8; 8] = [0, 2, 0, 0, 0, 1, 0, 0];
const SHA256: [u8; 4] = [0, 2, 0, 0];
const MD5: [u8; 4] = [0, 1, 0, 0];

/// A client of RFC 8489 and what it writes.
#[derive(Clone)]
struct Modern {
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

impl Modern {
    /// One that does as the challenge bids: echoes the list and uses the first algorithm in it.
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

    fn ask(&self, world: &mut World, method: Method, attributes: &[&dyn EncodeAttribute]) -> Answer {
        let request = self.request(world, method, attributes);
        match world.client_packet(&self.client.tuple, &request) {
            (FromClient::Respond(reply), buffer) => Answer::new(&request, &buffer, &reply),
            (FromClient::Open(open), _) => world.opened(&request, &open, Ok(())),
            (other, _) => panic!("an answer is expected, not {other:?}"),
        }
    }

    /// Whether the answer is signed as clients of RFC 8489 expect it.
    fn has_signed(&self, answer: &Answer) -> bool {
        !answer.message().contains(AttributeType::MESSAGE_INTEGRITY)
            && answer.message().verify_integrity_sha256(self.key.as_bytes()) == IntegrityStatus::Valid
    }
}

fn assert_allocated(world: &mut World, answer: &Answer) -> String {
    assert_eq!(answer.code(), None, "{}", answer.reason());
    match world.event() {
        Event::AllocationCreated { user, .. } => user,
        other => panic!("an allocation is expected in the log, not {other:?}"),
    }
}

fn logged_failure(world: &mut World) -> (String, AuthFailure) {
    match world.event() {
        Event::AuthenticationFailed { username, cause: AuthCause::Failure(failure), .. } => (username, failure),
        other => panic!("a failed authentication is expected in the log, not {other:?}"),
    }
}

// RFC 8489 §9.2.4: PASSWORD-ALGORITHMS in preferential order, and the bit in the nonce that goes with it.
#[test]
fn a_challenge_prefers_sha256_and_says_so_in_its_nonce() {
    let mut world = World::new();
    let client = world.client(1);
    let answer = world.answer_to(&client.tuple, &plain(Class::Request, Method::ALLOCATE, &[]));
    let listed: PasswordAlgorithms<'_> = answer.get().unwrap();
    assert!(listed.iter().eq([PasswordAlgorithm::SHA256, PasswordAlgorithm::MD5]));
    assert!(answer.bytes.windows(LISTED.len()).any(|bytes| bytes == LISTED));
    let features = SecurityFeatures { password_algorithms: true, username_anonymity: false };
    assert_eq!(SecurityFeatures::of(&answer.nonce().unwrap()), Some(features));
}

// RFC 8489 §9.2.4: MESSAGE-INTEGRITY-SHA256 in any response to a client that names its algorithm, errors included.
#[test]
fn a_client_that_names_an_algorithm_is_answered_with_sha256_integrity() {
    for (named, algorithm) in [(SHA256, KeyAlgorithm::Sha256), (MD5, KeyAlgorithm::Md5)] {
        let mut world = World::new();
        let mut client = Modern::new(&world.client(1));
        (client.named, client.key) = (Some(named.to_vec()), key_of(&client.client, algorithm));
        let refused = client.ask(&mut world, Method::REFRESH, &[]);
        assert_eq!((refused.code(), client.has_signed(&refused)), (Some(437), true));
        let allocated = client.ask(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
        assert!(client.has_signed(&allocated));
        assert_eq!(assert_allocated(&mut world, &allocated), "alice");
        let unknown = client.ask(&mut world, Method::REFRESH, &[&Raw(AttributeType::new(0x7f01), &[])]);
        assert_eq!((unknown.code(), client.has_signed(&unknown)), (Some(420), true));
        let bind: [&dyn EncodeAttribute; 2] = [&ChannelNumber(0x4000), &XorPeerAddress(peer(1))];
        for (method, attributes) in [
            (Method::REFRESH, &[][..]),
            (Method::CREATE_PERMISSION, &[&XorPeerAddress(peer(1)) as &dyn EncodeAttribute]),
            (Method::CHANNEL_BIND, &bind),
        ] {
            let answer = client.ask(&mut world, method, attributes);
            assert_eq!((answer.code(), client.has_signed(&answer)), (None, true), "{method}");
        }
    }
}

// RFC 8489 §9.2.4: without MESSAGE-INTEGRITY-SHA256 it is MESSAGE-INTEGRITY that counts, whatever the key.
#[test]
fn a_client_that_names_sha256_may_sign_with_sha1() {
    let mut world = World::new();
    let client = Modern { sha1: true, ..Modern::new(&world.client(1)) };
    let answer = client.ask(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
    assert!(client.has_signed(&answer));
    assert_allocated(&mut world, &answer);
}

#[test]
fn time_limited_credentials_have_keys_of_both_kinds() {
    for (named, algorithm) in [(SHA256, KeyAlgorithm::Sha256), (MD5, KeyAlgorithm::Md5)] {
        let mut world = World::new();
        let mut client = Modern::new(&world.client(1).with_credential("carol", UNIX + 1_000));
        (client.named, client.key) = (Some(named.to_vec()), key_of(&client.client, algorithm));
        let answer = client.ask(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
        assert!(client.has_signed(&answer));
        assert_eq!(assert_allocated(&mut world, &answer), "carol");
    }
}

#[test]
fn the_key_of_another_algorithm_is_a_wrong_password() {
    let mut world = World::new();
    let mut client = Modern::new(&world.client(1));
    client.key = key_of(&client.client, KeyAlgorithm::Md5);
    let answer = client.ask(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
    assert_eq!((answer.code(), answer.kinds()), (Some(401), CHALLENGE.to_vec()));
    assert_eq!(logged_failure(&mut world), ("alice".to_owned(), AuthFailure::WrongPassword));
    assert_eq!(world.footprint(), NOTHING);
}

// RFC 8489 §9.2.4: unless both are there, the list is as it was sent and the algorithm is one of it → 400, before the
// username, the integrity and the age of the nonce are looked at.
#[test]
fn a_list_that_was_tampered_with_or_an_algorithm_outside_it_is_400() {
    let mut world = World::new();
    let good = Modern::new(&world.client(1));
    let lists: [&[u8]; 6] = [
        // SHA-256 stripped: the attack that all this is there to prevent.
        &MD5,
        &SHA256,
        &[0, 1, 0, 0, 0, 2, 0, 0],
        &[0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0],
        &[0, 2, 0, 1, 9, 0, 0, 0, 0, 1, 0, 0],
        &[],
    ];
    let mut cases: Vec<Modern> = Vec::new();
    for listed in lists {
        for (named, algorithm) in [(SHA256, KeyAlgorithm::Sha256), (MD5, KeyAlgorithm::Md5)] {
            let key = key_of(&good.client, algorithm);
            cases.push(Modern { listed: Some(listed.to_vec()), named: Some(named.to_vec()), key, ..good.clone() });
        }
    }
    cases.push(Modern { listed: None, ..good.clone() });
    cases.push(Modern { named: None, ..good.clone() });
    cases.push(Modern { named: Some(vec![0, 3, 0, 0]), ..good.clone() });
    cases.push(Modern { named: Some(vec![0, 2, 0, 1, 9, 0, 0, 0]), ..good.clone() });
    let malformed: [&[u8]; 4] = [&[], &[0, 2], &[0, 2, 0, 1], &[0, 2, 0, 0, 0]];
    cases.extend(malformed.map(|named| Modern { named: Some(named.to_vec()), ..good.clone() }));
    cases.push(Modern { listed: Some(vec![0, 2, 0, 0, 0, 1, 0]), ..good.clone() });
    let mut unknown = cases[0].clone();
    unknown.client.username = "mallory".to_owned();
    cases.push(unknown);
    for _ in 0..2 {
        for case in &cases {
            for method in [Method::ALLOCATE, Method::REFRESH, Method::CREATE_PERMISSION, Method::CHANNEL_BIND] {
                let answer = case.ask(&mut world, method, &[&RequestedTransport::UDP]);
                let shown = (&case.listed, &case.named);
                assert_eq!((answer.code(), answer.kinds()), (Some(400), vec![AttributeType::ERROR_CODE]), "{shown:?}");
            }
        }
        // Nor does a nonce that has grown old make a difference.
        world.pass(seconds(NONCE_LIFETIME));
    }
    assert_eq!(world.footprint(), NOTHING);
}

// RFC 8489 §9.2.1: whoever takes the bit out of the nonce makes it another one, and the way back is a 438 with the bit.
#[test]
fn a_nonce_that_was_stripped_of_its_features_is_438() {
    let mut world = World::new();
    let honest = world.client(1);
    for features in ["AAAA", "gAAA", "AAAB", "wAAD"] {
        let nonce = honest.nonce.replacen("gAAB", features, 1);
        assert_ne!(nonce, honest.nonce);
        // The client that was led to believe that there is nothing but MD5, and the one that would hide its name.
        let led = Client { nonce: nonce.clone(), ..honest.clone() };
        let answer = world.ask(&led, Method::ALLOCATE, &[&RequestedTransport::UDP]);
        assert_eq!((answer.code(), answer.kinds()), (Some(438), CHALLENGE.to_vec()));
        let modern = Modern::new(&led);
        let answer = modern.ask(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
        assert_eq!((answer.code(), answer.nonce()), (Some(438), Some(honest.nonce.clone())));
    }
    assert_eq!(world.footprint(), NOTHING);
}

// What another server listed is not known here. Its client gets a nonce and a list of ours, and not a 400 without
// integrity, which it would have to ignore (RFC 8489 §9.2.5).
#[test]
fn a_client_with_the_nonce_and_the_list_of_another_server_is_challenged() {
    let mut world = World::new();
    let client = world.client(1);
    for nonce in ["obMatJos2gAABanother", "obMatJos2AAAAanother", "obMatJos2IAAAanother", "another"] {
        let mut modern = Modern::new(&Client { nonce: nonce.to_owned(), ..client.clone() });
        let lists: [&[u8]; 2] = [&SHA256, &[0, 2, 0, 0, 0, 9, 0, 0]];
        for listed in lists {
            modern.listed = Some(listed.to_vec());
            let answer = modern.ask(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
            assert_eq!((answer.code(), answer.kinds()), (Some(438), CHALLENGE.to_vec()), "{nonce}");
        }
        (modern.listed, modern.named) = (Some(vec![0, 9, 0, 0]), Some(vec![0, 9, 0, 0]));
        let answer = modern.ask(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
        assert_eq!((answer.code(), answer.kinds()), (Some(401), CHALLENGE.to_vec()), "{nonce}");
    }
    assert_eq!(world.footprint(), NOTHING);
}

// A sibling or an earlier version with the same key that announced nothing: its nonces go on.
#[test]
fn a_nonce_that_announces_nothing_asks_for_no_list() {
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
        let mut modern = Modern::new(&client);
        (modern.listed, modern.named) = (listed.map(Into::into), named.map(Into::into));
        modern.key = key_of(&client, algorithm);
        let answer = modern.ask(&mut world, Method::REFRESH, &[]);
        assert_eq!((answer.code(), modern.has_signed(&answer)), (None, true));
    }
}

// RFC 8489 §14.5: behind the integrity nothing counts, so a client cannot be made to look like a modern one.
#[test]
fn password_algorithms_behind_the_integrity_do_not_count() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate(&client);
    let transaction = world.transaction();
    let request = client.request_sealed(transaction, Method::REFRESH, &[], |writer, key| {
        writer.message_integrity(key);
        writer.push(&Raw(AttributeType::PASSWORD_ALGORITHMS, &LISTED));
        writer.push(&PasswordAlgorithm::SHA256);
    });
    let answer = world.answer_to(&client.tuple, &request);
    assert!(answer.code().is_none() && answer.is_signed_for(&client));
}

// RFC 8656 §7.2: the answer once more, signed as the first one.
#[test]
fn a_retransmitted_allocate_of_a_modern_client_gets_the_same_answer() {
    let mut world = World::new();
    let client = Modern::new(&world.client(1));
    let request = client.request(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
    let open = world.open_for(&client.client.tuple, &request);
    let first = world.opened(&request, &open, Ok(()));
    assert_allocated(&mut world, &first);
    assert_eq!(world.answer_to(&client.client.tuple, &request), first);
}

// RFC 8489 §14.4: USERHASH stands for the USERNAME; it is the same user, and the same allocation (RFC 8656 §5).
#[test]
fn a_static_user_is_known_by_its_userhash() {
    for with_secrets in [true, false] {
        let mut world = World::with(|setup| setup.secrets.truncate(usize::from(with_secrets)));
        let plain = Modern::new(&world.client(1));
        let hidden = Modern { by_hash: true, ..plain.clone() };
        let answer = hidden.ask(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
        assert!(hidden.has_signed(&answer));
        assert_eq!(assert_allocated(&mut world, &answer), "alice");
        // RFC 8489 §9.2.4: neither name is in the answer.
        assert!(!answer.kinds().contains(&AttributeType::USERNAME));
        assert!(!answer.kinds().contains(&AttributeType::USERHASH));
        assert_eq!(plain.ask(&mut world, Method::REFRESH, &[]).code(), None);
        assert_eq!(hidden.ask(&mut world, Method::REFRESH, &[&Lifetime(700)]).code(), None);
        let bob = Modern { by_hash: true, ..Modern::new(&world.client(1).as_user(1)) };
        assert_eq!(bob.ask(&mut world, Method::REFRESH, &[]).code(), Some(441));
    }
}

#[test]
fn a_client_without_password_algorithms_may_hide_its_name_too() {
    let mut world = World::new();
    let client = world.client(1);
    let old =
        Modern { by_hash: true, listed: None, named: None, key: client.key(), sha1: true, ..Modern::new(&client) };
    let answer = old.ask(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
    assert!(answer.is_signed_for(&client));
    assert_eq!(assert_allocated(&mut world, &answer), "alice");
}

// RFC 8489 §9.2.4: a USERHASH that is not valid → 401, as for a USERNAME. A time-limited username is found by no hash.
#[test]
fn a_userhash_of_nobody_is_401_and_logged() {
    let mut world = World::new();
    let mut mallory = world.client(1);
    mallory.username = "mallory".to_owned();
    for client in [mallory, world.client(1).with_credential("carol", UNIX + 1_000)] {
        let hidden = Modern { by_hash: true, ..Modern::new(&client) };
        let answer = hidden.ask(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
        assert_eq!((answer.code(), answer.kinds()), (Some(401), CHALLENGE.to_vec()));
        let [a, b, c, d, ..] = userhash(&client.username);
        let shown = format!("USERHASH {a:02x}{b:02x}{c:02x}{d:02x}…");
        assert_eq!(logged_failure(&mut world), (shown, AuthFailure::UnknownUserhash));
    }
    assert_eq!(world.footprint(), NOTHING);
}

#[test]
fn a_wrong_password_behind_a_userhash_is_401_and_logged_with_the_name() {
    let mut world = World::new();
    let mut hidden = Modern { by_hash: true, ..Modern::new(&world.client(1)) };
    hidden.key = LongTermKey::derive_by(KeyAlgorithm::Sha256, "alice", REALM, b"looking-glass");
    let answer = hidden.ask(&mut world, Method::ALLOCATE, &[&RequestedTransport::UDP]);
    assert_eq!((answer.code(), answer.kinds()), (Some(401), CHALLENGE.to_vec()));
    assert_eq!(logged_failure(&mut world), ("alice".to_owned(), AuthFailure::WrongPassword));
}

// RFC 8489 §14.4: 32 bytes, always.
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
        assert_eq!(world.answer_to(&client.tuple, &request).code(), Some(400));
    }
}

// RFC 8489 §9.2.4, §9.2.5: the bit obliges clients to send USERHASH, so it is set only where every name can be found.
#[test]
fn clients_are_invited_to_hide_their_names_where_all_users_are_static() {
    for with_secrets in [true, false] {
        let mut world = World::with(|setup| setup.secrets.truncate(usize::from(with_secrets)));
        let tuple = world.client(1).tuple;
        let answer = world.answer_to(&tuple, &plain(Class::Request, Method::ALLOCATE, &[]));
        let features = SecurityFeatures::of(&answer.nonce().unwrap()).unwrap();
        assert_eq!(features.username_anonymity, !with_secrets);
    }
}
