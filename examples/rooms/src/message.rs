//! The messages of the signalling: JSON in text frames of a WebSocket.

use clap::ValueEnum;
use serde::{Deserialize, Deserializer, Serialize};

use crate::id::{ParticipantId, ResumeKey, RoomId};

/// The longest message in bytes: an answer with the media of all others in a full room.
pub const LONGEST: usize = 256 * 1024;

/// The longest description in bytes that is no answer.
const LONGEST_OFFER: usize = 64 * 1024;

/// The longest text of a candidate in bytes.
const LONGEST_CANDIDATE: usize = 1_024;

/// The longest name of a media section, an ICE user or a track in bytes.
const LONGEST_TOKEN: usize = 256;

/// The longest name of a participant in characters.
const LONGEST_NAME: usize = 40;

/// A message of a participant.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum FromParticipant {
    /// Enters a room: the first message.
    Join {
        /// The room.
        room: RoomId,
        /// The name, as the participant wrote it: see [`Name`].
        name: String,
        /// The kind of program.
        kind: Kind,
        /// The key of an earlier `joined`, with which a participant whose connection was lost comes back as itself.
        resume: Option<ResumeKey>,
    },
    /// Signals a connection with another participant, or with the forwarding unit.
    Signal {
        /// To whom.
        to: Address,
        /// Which connection with the forwarding unit.
        link: Option<Link>,
        /// A session description.
        description: Option<Description>,
        /// A candidate; `Some(None)` after the last one.
        #[serde(default, deserialize_with = "present")]
        candidate: Option<Option<Candidate>>,
        /// A request to the side that offers.
        restart: Option<Restart>,
    },
    /// Changes how media are sent in the room.
    Mode {
        /// The mode.
        mode: Mode,
    },
    /// Chooses the simulcast layer of a track.
    Layer {
        /// The track.
        track: Token,
        /// The choice.
        layer: LayerChoice,
    },
    /// Requests new credentials.
    Ice {},
    /// Leaves the room.
    Leave {},
}

/// A message to a participant.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ToParticipant {
    /// The participant is in the room.
    Joined {
        /// The participant.
        id: ParticipantId,
        /// With which it comes back as itself after its connection was lost.
        resume: ResumeKey,
        /// Whether it has come back. What the others sent meanwhile is lost.
        resumed: bool,
        /// The room.
        room: RoomId,
        /// How media are sent.
        mode: Mode,
        /// The only sender of a broadcast.
        sender: Option<ParticipantId>,
        /// Who is in the room already.
        peers: Vec<Peer>,
        /// How to reach the relay. A participant that has come back goes on with what it has if this is missing.
        #[serde(skip_serializing_if = "Option::is_none")]
        ice: Option<Ice>,
        /// The greatest numbers of participants.
        limits: Limits,
    },
    /// Another participant has entered the room.
    PeerJoined {
        /// The participant.
        peer: Peer,
    },
    /// Another participant, whose connection was lost, is there again. What was sent to it meanwhile is lost.
    PeerResumed {
        /// The participant.
        id: ParticipantId,
    },
    /// Another participant has left the room.
    PeerLeft {
        /// The participant.
        id: ParticipantId,
    },
    /// Signals a connection.
    Signal {
        /// Who sends it.
        from: Address,
        /// Which connection with the forwarding unit.
        #[serde(skip_serializing_if = "Option::is_none")]
        link: Option<Link>,
        /// What it carries.
        #[serde(flatten)]
        signal: Signal,
    },
    /// The way in which media are sent has changed.
    Mode {
        /// The mode.
        mode: Mode,
        /// Who changed it.
        by: ParticipantId,
        /// The only sender of a broadcast.
        sender: Option<ParticipantId>,
    },
    /// New credentials.
    Ice(Ice),
    /// Which section of the subscribe connection carries whose media.
    Tracks {
        /// All tracks.
        tracks: Vec<Track>,
    },
    /// The simulcast layer that the forwarding unit sends.
    Layer {
        /// The track.
        track: Token,
        /// The layer.
        layer: Layer,
        /// Why this one.
        why: Why,
    },
    /// The server did not do what the participant wanted.
    Error {
        /// The reason, for programs.
        code: ErrorCode,
        /// The reason, for the user.
        message: String,
    },
    /// The server closes the connection.
    Closing {
        /// The reason, for the user.
        reason: String,
    },
}

/// What a [`FromParticipant::Signal`] carries: exactly one of these.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Signal {
    /// A session description.
    Description(Description),
    /// A candidate; `None` after the last one.
    Candidate(Option<Candidate>),
    /// Requests an offer that restarts ICE, on a connection on which only the other side offers.
    Restart(Restart),
}

/// Requests an offer that restarts ICE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restart {
    /// Whether the offer has to begin a new connection. A browser keeps the path of one that works.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub anew: bool,
}

/// Whom a signal is for, or from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Address {
    /// The forwarding unit.
    Sfu,
    /// A participant. It may not exist.
    Participant(String),
}

/// A connection with the forwarding unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Link {
    /// On which the participant sends.
    Publish,
    /// On which the participant receives.
    Subscribe,
}

/// A session description (`RTCSessionDescriptionInit`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: DescriptionKind,
    /// The description; empty for a rollback.
    #[serde(default)]
    pub sdp: String,
}

/// The type of a session description.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DescriptionKind {
    /// An offer.
    Offer,
    /// An answer.
    Answer,
    /// An answer that may change.
    Pranswer,
    /// Takes an offer back.
    Rollback,
}

/// A candidate (`RTCIceCandidateInit`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Candidate {
    /// The candidate; empty after the last one of a generation.
    pub candidate: String,
    /// The media section.
    pub sdp_mid: Option<String>,
    /// The index of the media section.
    pub sdp_m_line_index: Option<u16>,
    /// The ICE user of the sender.
    pub username_fragment: Option<String>,
}

/// The kind of program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A browser.
    Browser,
    /// `rooms bot`.
    Bot,
}

/// How media are sent in a room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// From each to each.
    #[default]
    Mesh,
    /// From each to the forwarding unit, and from there to all others.
    Sfu,
    /// From one to the forwarding unit, and from there to all others.
    Broadcast,
}

/// A simulcast layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// A quarter of the width and height.
    Low,
    /// Half of the width and height.
    Medium,
    /// The whole.
    High,
}

/// What a viewer wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LayerChoice {
    /// What the bandwidth allows.
    #[default]
    Auto,
    /// At most [`Layer::High`].
    High,
    /// At most [`Layer::Medium`].
    Medium,
    /// At most [`Layer::Low`].
    Low,
}

/// Why a layer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The viewer has chosen it.
    Chosen,
    /// The bandwidth allows it and no higher one.
    Bandwidth,
}

/// Whether a track is heard or seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MediaKind {
    /// Heard.
    Audio,
    /// Seen.
    Video,
}

/// A participant, as the others see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// Its identifier.
    pub id: ParticipantId,
    /// Its name.
    pub name: Name,
    /// The kind of program.
    pub kind: Kind,
}

/// A track that a participant receives from the forwarding unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Track {
    /// Its identifier.
    pub track: Token,
    /// The media section of the subscribe connection.
    pub mid: String,
    /// Whose media it carries.
    pub peer: ParticipantId,
    /// Whether it is heard or seen.
    pub kind: MediaKind,
    /// The layers to choose from, the highest first.
    pub layers: Vec<Layer>,
}

/// The greatest numbers of participants.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Limits {
    /// In a mesh.
    pub mesh: usize,
    /// In a room.
    pub room: usize,
}

/// How to reach the relay (`RTCConfiguration`), and until when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ice {
    /// The URLs with credentials.
    pub ice_servers: Vec<IceServer>,
    /// When the credentials expire, in seconds since the Unix epoch.
    pub expires: u64,
    /// How many seconds that is from now. The clock of a participant may be wrong.
    #[serde(default)]
    pub lifetime: u64,
    /// Whether connections use these at once: a relay of those before drains.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_once: bool,
}

impl Ice {
    /// Returns the URLs of the relays.
    pub(crate) fn urls(&self) -> impl Iterator<Item = &String> {
        self.ice_servers.iter().flat_map(|server| &server.urls)
    }
}

/// URLs with a credential (`RTCIceServer`).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IceServer {
    /// The URLs.
    pub urls: Vec<String>,
    /// The username.
    pub username: String,
    /// The password.
    pub credential: String,
}

// The credential is a secret.
impl std::fmt::Debug for IceServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IceServer").field("urls", &self.urls).finish_non_exhaustive()
    }
}

/// Why the server did not do what a participant wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The message has not the expected form.
    BadMessage,
    /// The name is empty, too long or has characters that are not shown.
    BadName,
    /// The first message is not `join`, or a second one is.
    BadOrder,
    /// The room does not exist.
    NoSuchRoom,
    /// The room has no place.
    RoomFull,
    /// The mesh has no place.
    MeshFull,
    /// The participant is not in the room.
    NoSuchPeer,
    /// The forwarding unit does not accept the signal.
    Sfu,
    /// There are no credentials for the relay.
    Relay,
    /// Something happens too often.
    TooFast,
    /// A failure of the server.
    Internal,
}

/// The name of a participant: 1 to 40 characters that are shown, without white space around it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Name(String);

/// The text is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("A name has 1 to {LONGEST_NAME} characters that can be shown. Choose another one.")]
pub struct BadName;

impl Name {
    /// Reads a name.
    ///
    /// # Errors
    /// If it is empty, too long, or has control or formatting characters.
    pub fn new(text: &str) -> Result<Self, BadName> {
        let text = text.trim();
        let length = text.chars().count();
        if !(1..=LONGEST_NAME).contains(&length) || text.chars().any(is_invisible) {
            return Err(BadName);
        }
        Ok(Self(text.to_owned()))
    }
}

/// Whether a character is not shown itself: control characters, and those that change the direction or the shape of
/// others, with which one name can look like another.
fn is_invisible(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{2800}' | '\u{3164}' | '\u{ffa0}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// A short text that identifies something.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Token(String);

impl Token {
    /// Makes one of a number.
    pub(crate) fn number(number: u32) -> Self {
        Self(number.to_string())
    }
}

/// A part of a message is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a part of the message is too long")]
pub struct TooLong;

impl TryFrom<String> for Token {
    type Error = TooLong;

    fn try_from(text: String) -> Result<Self, TooLong> {
        if text.len() <= LONGEST_TOKEN { Ok(Self(text)) } else { Err(TooLong) }
    }
}

impl Signal {
    /// Reads what a signal carries.
    ///
    /// # Errors
    /// What is wrong, for the developer of the page.
    pub fn new(
        description: Option<Description>,
        candidate: Option<Option<Candidate>>,
        restart: Option<Restart>,
    ) -> Result<Self, &'static str> {
        let is_long = |token: &Option<String>| token.as_ref().is_some_and(|token| token.len() > LONGEST_TOKEN);
        match (description, candidate, restart) {
            (Some(description), None, None) if description.sdp.is_empty() != description.kind.is_rollback() => {
                Err("every description except a rollback has an sdp")
            }
            (Some(description), None, None)
                if description.sdp.len() > LONGEST_OFFER && description.kind != DescriptionKind::Answer =>
            {
                Err("the description is too long")
            }
            (Some(description), None, None) => Ok(Self::Description(description)),
            (None, Some(Some(candidate)), None)
                if candidate.candidate.len() > LONGEST_CANDIDATE
                    || is_long(&candidate.sdp_mid)
                    || is_long(&candidate.username_fragment) =>
            {
                Err("the candidate is too long")
            }
            (None, Some(candidate), None) => Ok(Self::Candidate(candidate)),
            (None, None, Some(restart)) => Ok(Self::Restart(restart)),
            _ => Err("a signal has either a description, a candidate or a restart"),
        }
    }

    /// Returns about how many bytes it takes.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Description(description) => description.sdp.len(),
            Self::Candidate(Some(candidate)) => candidate.candidate.len(),
            Self::Candidate(None) | Self::Restart(_) => 0,
        }
    }
}

impl DescriptionKind {
    fn is_rollback(self) -> bool {
        self == Self::Rollback
    }
}

impl From<String> for Address {
    fn from(text: String) -> Self {
        if text == "sfu" { Self::Sfu } else { Self::Participant(text) }
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        match address {
            Address::Sfu => "sfu".to_owned(),
            Address::Participant(id) => id,
        }
    }
}

/// Distinguishes `null` from a missing field.
fn present<'de, D: Deserializer<'de>>(field: D) -> Result<Option<Option<Candidate>>, D::Error> {
    Option::deserialize(field).map(Some)
}

#[cfg(test)]
mod tests {
    use serde_json::{from_str, json, to_value};

    use super::*;

    #[test]
    fn a_candidate_may_be_null_but_not_missing_beside_a_missing_description() {
        let signal = |rest: &str| {
            let FromParticipant::Signal { description, candidate, restart, .. } =
                from_str(&format!(r#"{{"type":"signal","to":"x"{rest}}}"#)).unwrap()
            else {
                panic!("not a signal")
            };
            Signal::new(description, candidate, restart)
        };
        assert_eq!(signal(r#","candidate":null"#), Ok(Signal::Candidate(None)));
        assert!(signal("").is_err());
        assert_eq!(signal(r#","restart":{}"#), Ok(Signal::Restart(Restart { anew: false })));
        assert_eq!(signal(r#","restart":{"anew":true}"#), Ok(Signal::Restart(Restart { anew: true })));
        assert!(signal(r#","restart":{},"candidate":null"#).is_err());
        assert!(signal(r#","candidate":null,"description":{"type":"offer","sdp":"v=0"}"#).is_err());
        assert!(signal(r#","description":{"type":"offer"}"#).is_err());
        assert!(signal(r#","description":{"type":"rollback"}"#).is_ok());
        let long = "x".repeat(LONGEST_OFFER + 1);
        assert!(signal(&format!(r#","description":{{"type":"offer","sdp":"{long}"}}"#)).is_err());
        assert!(signal(&format!(r#","description":{{"type":"answer","sdp":"{long}"}}"#)).is_ok());
        let long = "x".repeat(LONGEST_CANDIDATE + 1);
        assert!(signal(&format!(r#","candidate":{{"candidate":"{long}"}}"#)).is_err());
    }

    #[test]
    fn unknown_types_and_fields_are_errors() {
        for text in [
            r#"{"type":"fly"}"#,
            r#"{"type":"leave","now":true}"#,
            r#"{"type":"mode","mode":"star"}"#,
            r#"{"type":"join","room":"short","name":"a","kind":"browser"}"#,
            r#"{"type":"signal","to":"x","candidate":{"candidate":"","extra":1}}"#,
            "[]",
            "",
        ] {
            assert!(from_str::<FromParticipant>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_trimmed_and_have_no_invisible_characters() {
        assert_eq!(Name::new("  Zoë 🎈 "), Ok(Name("Zoë 🎈".to_owned())));
        assert!(Name::new(&"ü".repeat(40)).is_ok());
        for text in ["", "  ", "a\u{202e}b", "a\nb", "\u{200b}", &"x".repeat(41)] {
            assert_eq!(Name::new(text), Err(BadName), "{text:?}");
        }
    }

    #[test]
    fn signals_are_passed_on_as_browsers_write_them() {
        let candidate = Candidate {
            candidate: "candidate:1".to_owned(),
            sdp_mid: Some("0".to_owned()),
            sdp_m_line_index: Some(0),
            username_fragment: None,
        };
        let signal = Signal::Candidate(Some(candidate));
        let message = ToParticipant::Signal { from: Address::Participant("a".to_owned()), link: None, signal };
        let expected = json!({"type": "signal", "from": "a", "candidate":
            {"candidate": "candidate:1", "sdpMid": "0", "sdpMLineIndex": 0, "usernameFragment": null}});
        assert_eq!(to_value(message).unwrap(), expected);
        let end =
            ToParticipant::Signal { from: Address::Sfu, link: Some(Link::Publish), signal: Signal::Candidate(None) };
        assert_eq!(
            to_value(end).unwrap(),
            json!({"type": "signal", "from": "sfu", "link": "publish", "candidate": null})
        );
        let signal = Signal::Restart(Restart::default());
        let restart = ToParticipant::Signal { from: Address::Sfu, link: Some(Link::Publish), signal };
        assert_eq!(
            to_value(restart).unwrap(),
            json!({"type": "signal", "from": "sfu", "link": "publish", "restart": {}})
        );
    }
}
