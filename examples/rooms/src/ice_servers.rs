//! The credentials for the relay: made here with the secret of the relay, or fetched from its endpoint.

mod draining;
mod endpoint;
mod minted;

use std::future::pending;
use std::path::PathBuf;

pub use draining::Draining;
pub(crate) use draining::Moves;
pub use endpoint::Endpoint;
pub use minted::Minted;

use tokio::sync::watch;
use turnserver::clock::unix_seconds;

use crate::message::Ice;
use crate::own_relay::RelayError;

/// Where credentials come from.
#[derive(Debug)]
pub enum IceServers {
    /// Made with the secret in the configuration of the relay.
    Minted(Minted),
    /// Fetched from the endpoint of the relay.
    Fetched(Box<Endpoint>),
}

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum IceError {
    /// The configuration of the relay is invalid or missing.
    #[error("{0}")]
    Config(#[from] turnserver::config::ConfigErrors),
    /// The configuration has no secret.
    #[error(
        "{} has auth.users, but neither auth.secrets nor auth.secrets-file, with which credentials are made. Add a \
         secret (`openssl rand -hex 32`) and restart the relay, or use --credentials-url", .0.display()
    )]
    NoSecret(PathBuf),
    /// The relay of this program does not run.
    #[error("{0}")]
    Relay(#[from] RelayError),
    /// The URLs of the relay do not follow from the configuration.
    #[error("the URLs of the relay do not follow from its configuration: {0}. Name them with --turn-url")]
    Urls(#[from] turnserver::control::StartError),
    /// The relay has no listener with a known port.
    #[error("{} has no listener with a known port. Name the URLs of the relay with --turn-url", .0.display())]
    NoUrl(PathBuf),
    /// The file with the key cannot be used.
    #[error("cannot use {}: {reason}", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The URL of the endpoint is invalid.
    #[error("--credentials-url {0} is not an http or https URL")]
    Url(String),
    /// The endpoint did not give credentials.
    #[error("there are no credentials: {0}")]
    Endpoint(String),
}

impl IceServers {
    /// Returns credentials for a user.
    ///
    /// # Errors
    /// If the endpoint gives none.
    pub async fn get(&self, user: &str) -> Result<Ice, IceError> {
        let mut ice = match self {
            Self::Minted(minted) => minted.get(user),
            Self::Fetched(endpoint) => endpoint.get(user).await?,
        };
        ice.lifetime = ice.expires.saturating_sub(unix_seconds());
        Ok(ice)
    }

    /// Learns which relays drain, until the caller stops.
    pub(crate) async fn follow(&self) {
        match self {
            // Its relay has no other one to move to.
            Self::Minted(_) => pending().await,
            Self::Fetched(endpoint) => endpoint.follow().await,
        }
    }

    /// Returns the relays of a participant, of which there are none yet.
    pub(crate) fn moves(&self) -> Moves {
        Moves::new(match self {
            Self::Minted(_) => watch::channel(Draining::default()).1,
            Self::Fetched(endpoint) => endpoint.draining(),
        })
    }
}
