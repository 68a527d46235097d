//! The credentials for the relay: made here with the secret of the relay, or fetched from its endpoint.

mod endpoint;
mod minted;

use std::path::PathBuf;

pub use endpoint::Endpoint;
pub use minted::Minted;

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
    #[error("{url} gave no credentials: {reason}")]
    Endpoint {
        /// The URL.
        url: String,
        /// Why not.
        reason: String,
    },
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
}
