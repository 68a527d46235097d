//! Authentication: shared secrets, time-limited credentials, long-term keys and stateless nonces (RFC 8489 §9.2).
//!
//! The module reads neither clock nor random numbers; both are arguments. `Debug` redacts secrets, which are zeroized
//! when dropped and compared in constant time.

mod api_key;
mod authenticator;
mod features;
mod identity;
mod long_term;
mod nonce;
mod revocations;
mod seconds;
mod secret;
mod test_link;
pub mod time_limited;

pub use api_key::{KeyHash, api_key};
pub(crate) use authenticator::userhash;
pub use authenticator::{AuthFailure, Authenticator, Standing};
pub use features::SecurityFeatures;
pub use identity::{Identity, IdentityCache};
#[cfg(test)]
pub(crate) use long_term::DERIVATIONS;
pub use long_term::{KeyAlgorithm, LongTermKey};
pub use nonce::{Nonce, NonceError, NonceMint};
pub use revocations::{Revocations, TooManyRevocations};
pub use seconds::HumanSeconds;
pub use secret::{EmptySecret, Secret};
pub use test_link::TestLink;
