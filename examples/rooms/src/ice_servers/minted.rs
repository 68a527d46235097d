//! Credentials that are made here. Whoever has the secret of the relay needs nothing else (draft-uberti-behave-turn-rest).

use std::path::Path;

use turnserver::auth::{Secret, time_limited};
use turnserver::clock::unix_seconds;
use turnserver::config::Config;
use turnserver::control::client_urls;

use super::IceError;
use crate::message::{Ice, IceServer};
use crate::own_relay::OwnRelay;

/// Makes credentials.
#[derive(Debug)]
pub struct Minted {
    secret: Secret,
    urls: Vec<String>,
    lifetime: u64,
}

impl Minted {
    /// Takes the secret from the configuration of the relay, and the URLs, too, if none are given. If there are neither
    /// secrets nor users, starts a relay.
    ///
    /// # Errors
    /// If the configuration is invalid, has users but no secret, or does not name a port, or if the relay does not start.
    pub(crate) async fn from_config(
        path: &Path,
        mut urls: Vec<String>,
        lifetime: u64,
    ) -> Result<(Self, Option<OwnRelay>), IceError> {
        let config = Config::load(path)?;
        let are_given = !urls.is_empty();
        if urls.is_empty() {
            urls = client_urls(&config)?;
        }
        if urls.is_empty() {
            return Err(IceError::NoUrl(path.to_owned()));
        }
        let (secret, relay) = match config.auth.secrets.first() {
            Some(secret) => (secret.clone(), None),
            None if !config.auth.users.is_empty() => return Err(IceError::NoSecret(path.to_owned())),
            None => {
                let relay = OwnRelay::start(path).await?;
                tracing::info!("{} has no secret, so a relay was started with one of this run", path.display());
                if are_given {
                    tracing::warn!("the URLs of --turn-url have to lead to that relay: no other one knows its secret");
                }
                (relay.secret().clone(), Some(relay))
            }
        };
        Ok((Self { secret, urls, lifetime }, relay))
    }

    /// Makes credentials for a user.
    #[must_use]
    pub fn get(&self, user: &str) -> Ice {
        let expires = unix_seconds() + self.lifetime;
        let credential = time_limited::mint(&self.secret, Some(user), expires);
        let server = IceServer {
            urls: self.urls.clone(),
            username: credential.username,
            credential: credential.password.as_str().to_owned(),
        };
        Ice { ice_servers: vec![server], expires, lifetime: self.lifetime, at_once: false }
    }
}
