//! What the generator of requests knows about their credentials. The server under test is not asked.

use super::requests::{LINK_SECRET, SECRET, USERS};
use super::world::UNIX;
use crate::auth::{LongTermKey, Secret, TestLink, time_limited};
use crate::stun::attribute::Nonce;
use crate::stun::{AttributeType, IntegrityStatus, Message};
use crate::test_world::Blueprint;

/// What a credential is derived from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The name and the password are in the configuration, or are made up.
    Static,
    /// A shared secret.
    Secret(&'static str),
    /// The secret of test links.
    TestLink,
}

/// A username and its password.
#[derive(Clone, Debug)]
pub(super) struct Credential {
    pub(super) username: String,
    pub(super) password: String,
    /// The user for whom the quota counts.
    pub(super) user: String,
    origin: Origin,
    pub(super) expires: Option<u64>,
}

impl Credential {
    /// Returns the credential with this number: valid ones, expired ones and forged ones.
    pub(super) fn numbered(number: u8) -> Self {
        match number % 8 {
            at @ 0..=1 => Self::of_user(USERS[usize::from(at)]),
            2 => Self::minted(SECRET, "carol", UNIX + 50_000),
            3 => Self::minted(SECRET, "carol", UNIX + 100),
            4 => {
                let user = TestLink::at(0).unwrap().user("k");
                Self { origin: Origin::TestLink, ..Self::minted(LINK_SECRET, &user, UNIX + 2_000) }
            }
            5 => Self::minted(SECRET, "", UNIX + 5_000),
            6 => Self::of_user((USERS[0].0, "guess")),
            _ => Self::minted("another secret", "carol", UNIX + 5_000),
        }
    }

    /// Returns the credential of a static user.
    pub(super) fn of_user((name, password): (&str, &str)) -> Self {
        let (username, password) = (name.to_owned(), password.to_owned());
        Self { user: username.clone(), username, password, origin: Origin::Static, expires: None }
    }

    /// Returns the same username with a password that nobody has.
    pub(super) fn guessed(self) -> Self {
        Self { password: "a guess".to_owned(), origin: Origin::Static, ..self }
    }

    fn minted(secret: &'static str, user: &str, expires: u64) -> Self {
        let minted = time_limited::mint(&Secret::new(secret).unwrap(), Some(user), expires);
        // Without a name, the quota counts for the whole username.
        let user = if user.is_empty() { minted.username.clone() } else { user.to_owned() };
        let (password, expires) = (minted.password.to_string(), Some(expires));
        Self { username: minted.username, password, user, origin: Origin::Secret(secret), expires }
    }

    /// Whether a configuration has it. It may have expired.
    pub(super) fn is_in(&self, blueprint: &Blueprint) -> bool {
        let has = |secret: &Secret, text: &str| secret.as_bytes() == text.as_bytes();
        !self.is_revoked(blueprint)
            && match self.origin {
                Origin::Static => {
                    let is_own =
                        |(name, password): &(String, Secret)| *name == self.username && has(password, &self.password);
                    blueprint.users.iter().any(is_own)
                }
                Origin::Secret(text) => blueprint.secrets.iter().any(|secret| has(secret, text)),
                Origin::TestLink => blueprint.test_links.iter().any(|secret| has(secret, LINK_SECRET)),
            }
    }

    pub(super) fn is_revoked(&self, blueprint: &Blueprint) -> bool {
        blueprint.revoked.contains(&self.username)
    }

    pub(super) fn is_of_test_link(&self) -> bool {
        self.origin == Origin::TestLink
    }

    /// Whether a server can find the username by its hash.
    fn has_findable_name(&self, blueprint: &Blueprint) -> bool {
        self.origin == Origin::Static && blueprint.users.iter().any(|(name, _)| *name == self.username)
    }
}

/// The names for which the quota may count.
pub(super) fn users() -> [String; 5] {
    [0, 1, 2, 4, 5].map(|number| Credential::numbered(number).user)
}

/// How a request is signed.
#[derive(Clone, Debug)]
pub(super) struct Signature {
    pub(super) credential: Credential,
    pub(super) realm: String,
    /// The key of the credential; that of another password, if the request is forged.
    pub(super) key: LongTermKey,
    /// Whether the username is sent as its hash.
    pub(super) is_anonymous: bool,
    /// The nonce, if the server made it for this client, and when it did.
    pub(super) nonce: Option<(String, u64)>,
    /// Whether the request is as the generator wrote it: not mutated, and not damaged.
    pub(super) is_intact: bool,
}

impl Signature {
    /// Whether it is that of a message. MESSAGE-INTEGRITY-SHA256 takes precedence (RFC 8489 §9.2.4).
    pub(super) fn signs(&self, message: &Message<'_>) -> bool {
        let key = self.key.as_bytes();
        let status = if message.contains(AttributeType::MESSAGE_INTEGRITY_SHA256) {
            message.verify_integrity_sha256(key)
        } else {
            message.verify_integrity(key)
        };
        status == IntegrityStatus::Valid
    }

    /// Whether a message has a nonce that the server made for its client less than a lifetime ago.
    pub(super) fn has_fresh_nonce(&self, message: &Message<'_>, unix: u64, lifetime: u64) -> bool {
        let sent = message.get::<Nonce<'_>>().ok().flatten();
        self.nonce.as_ref().zip(sent).is_some_and(|((nonce, made), Nonce(sent))| {
            // One from the future is valid, too: another server may have made it.
            let is_alive = if unix >= *made { unix - made < lifetime } else { made - unix <= lifetime };
            sent == nonce && is_alive
        })
    }

    /// Whether a configuration accepts the credential for new requests. It may have expired.
    pub(super) fn is_known(&self, blueprint: &Blueprint) -> bool {
        self.realm == blueprint.realm && self.credential.is_in(blueprint) && self.has_name(blueprint)
    }

    /// Whether it is that with which an allocation was made. The client keeps it when a configuration removes it, and
    /// when the realm changes, until its next Refresh.
    pub(super) fn is_that_of(&self, own: &Self, blueprint: &Blueprint) -> bool {
        self.key == own.key
            && self.credential.username == own.credential.username
            && !self.credential.is_revoked(blueprint)
            && self.has_name(blueprint)
    }

    fn has_name(&self, blueprint: &Blueprint) -> bool {
        !self.is_anonymous || self.credential.has_findable_name(blueprint)
    }

    pub(super) fn has_expired(&self, unix: u64) -> bool {
        self.credential.expires.is_some_and(|expires| unix >= expires)
    }
}
