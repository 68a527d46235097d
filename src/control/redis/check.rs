//! Whether a Redis server can be used, for `turnserver doctor`.

use std::time::Duration;

use tokio::time::timeout;

use super::Settings;
use super::connection::{self, Connection, describe};
use super::protocol::Reply;
use crate::config::{Config, RedisAccess};
use crate::control::outbound;

/// The most steps of a search for users, each over about this many keys.
const STEPS: usize = 200;
const KEYS_PER_STEP: &[u8] = b"500";
/// The longest time for all steps.
const SEARCH_TIME: Duration = Duration::from_secs(10);

/// What was found in a Redis server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// At least one user of the realm.
    Users,
    /// None among all keys.
    NoUsers,
    /// None among the keys that were looked at. There are more.
    Unknown,
}

/// Connects to the Redis server of a configuration and looks for users of the realm. `None` without `[auth.redis]`.
pub(crate) fn check(config: &Config) -> Option<Result<Found, String>> {
    let settings = Settings::of(config)?;
    Some(outbound::runtime().and_then(|runtime| runtime.block_on(search(&settings))))
}

/// Connects to the Redis server that gets the status of allocations.
pub(crate) fn check_status(access: &RedisAccess) -> Result<(), String> {
    outbound::runtime()?.block_on(Connection::open(access, &connection::STATUS)).map(drop)
}

async fn search(settings: &Settings) -> Result<Found, String> {
    let mut connection = Connection::open(&settings.access, &connection::USERS).await?;
    match timeout(SEARCH_TIME, search_over(settings, &mut connection)).await {
        Ok(found) => found,
        Err(_) => Ok(Found::Unknown),
    }
}

async fn search_over(settings: &Settings, connection: &mut Connection) -> Result<Found, String> {
    let pattern = settings.user_key("*");
    let mut cursor = b"0".to_vec();
    for _ in 0..STEPS {
        let reply = connection.call(&[b"SCAN", &cursor, b"MATCH", pattern.as_bytes(), b"COUNT", KEYS_PER_STEP]).await?;
        let Reply::Array(parts) = reply else {
            // A user of Redis who may only read keys cannot search.
            return if let Reply::Error(_) | Reply::TooLong = reply {
                Ok(Found::Unknown)
            } else {
                Err(describe(&reply))
            };
        };
        let [Reply::Value(next), Reply::Array(keys)] = parts.as_slice() else {
            return Err("it has sent an unexpected reply".to_owned());
        };
        if !keys.is_empty() {
            return Ok(Found::Users);
        }
        if next.as_slice() == b"0" {
            return Ok(Found::NoUsers);
        }
        cursor = next.to_vec();
    }
    Ok(Found::Unknown)
}
