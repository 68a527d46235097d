//! Authentication: shared secrets, time-limited credentials, long-term keys and stateless nonces
//! (RFC 8489 §9.2).
//!
//! Pure: the wall-clock second and every random byte arrive as arguments. Nothing in here prints a secret: `Debug`
//! is redacted, secrets are zeroised when dropped and compared in constant time.

mod authenticator;
mod features;
mod identity;
mod long_term;
mod nonce;
mod seconds;
mod secret;
pub mod time_limited;

pub use authenticator::{AuthFailure, Authenticator};
pub use features::SecurityFeatures;
pub use identity::{Identity, KnownIdentities};
#[cfg(test)]
pub(crate) use long_term::DERIVATIONS;
pub use long_term::{KeyAlgorithm, LongTermKey};
pub use nonce::{Nonce, NonceError, NonceMint};
pub use seconds::HumanSeconds;
pub use secret::{EmptySecret, Secret};
