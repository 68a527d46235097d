//! Identifiers of rooms and participants. They cannot be guessed: the identifier of a room lets everyone enter it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The random bytes of a room's identifier.
const ROOM_BYTES: usize = 16;

/// The characters of a room's identifier.
const ROOM_CHARACTERS: usize = 22;

/// The random bytes of a participant's identifier.
const PARTICIPANT_BYTES: usize = 9;

/// The identifier of a room: 128 random bits in base64url.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct RoomId(String);

/// The identifier of a participant: 72 random bits in base64url. It is also the user's name in credentials.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ParticipantId(String);

/// What a participant has to know to come back as itself after its connection was lost: 128 random bits in base64url.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ResumeKey(String);

/// The text is neither the identifier of a room nor a [`ResumeKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an identifier of a room, or a key to come back, has {ROOM_CHARACTERS} letters, digits, - or _")]
pub struct NotAnId;

impl RoomId {
    /// Makes a new identifier.
    ///
    /// # Errors
    /// If the random source of the system fails.
    pub fn random() -> Result<Self, getrandom::Error> {
        random::<ROOM_BYTES>().map(Self)
    }

    /// Returns the beginning, for the log. All of it would let the readers of the log enter.
    #[must_use]
    pub fn short(&self) -> &str {
        self.0.get(..6).unwrap_or_default()
    }
}

impl ParticipantId {
    /// Makes a new identifier.
    ///
    /// # Errors
    /// If the random source of the system fails.
    pub fn random() -> Result<Self, getrandom::Error> {
        random::<PARTICIPANT_BYTES>().map(Self)
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ResumeKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// If the random source of the system fails.
    pub fn random() -> Result<Self, getrandom::Error> {
        random::<ROOM_BYTES>().map(Self)
    }
}

// The time of the comparison of two hashes says nothing about the keys.
impl PartialEq for ResumeKey {
    fn eq(&self, other: &Self) -> bool {
        Sha256::digest(&self.0) == Sha256::digest(&other.0)
    }
}

impl Eq for ResumeKey {}

// The key is a secret.
impl fmt::Debug for ResumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResumeKey")
    }
}

impl TryFrom<String> for ResumeKey {
    type Error = NotAnId;

    fn try_from(text: String) -> Result<Self, NotAnId> {
        RoomId::try_from(text).map(|RoomId(text)| Self(text))
    }
}

fn random<const BYTES: usize>() -> Result<String, getrandom::Error> {
    let mut bytes = [0; BYTES];
    getrandom::getrandom(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

impl TryFrom<String> for RoomId {
    type Error = NotAnId;

    fn try_from(text: String) -> Result<Self, NotAnId> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if text.len() == ROOM_CHARACTERS && text.bytes().all(is_allowed) { Ok(Self(text)) } else { Err(NotAnId) }
    }
}

impl fmt::Display for RoomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ParticipantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_of_rooms_have_128_random_bits_and_are_read_again() {
        let (one, other) = (RoomId::random().unwrap(), RoomId::random().unwrap());
        assert_ne!(one, other);
        assert_eq!(RoomId::try_from(one.to_string()), Ok(one));
    }

    #[test]
    fn other_texts_are_no_identifiers() {
        for text in ["", "short", "AAAAAAAAAAAAAAAAAAAAAAA", "../../../etc/passwd/AA", "AAAAAAAAAAAAAAAAAAAAA="] {
            assert_eq!(RoomId::try_from(text.to_owned()), Err(NotAnId), "{text}");
        }
    }
}
