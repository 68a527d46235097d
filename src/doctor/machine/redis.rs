//! The Redis server with users.

use crate::config::Config;
use crate::control::{FoundInRedis, check_redis, check_redis_status};
use crate::doctor::finding::Finding;

/// Examines the Redis server if `[auth.redis]` is set.
pub(super) fn examine(config: &Config) -> Option<Finding> {
    let redis = config.auth.redis.as_ref()?;
    let finding = match check_redis(config)? {
        Ok(FoundInRedis::Users) => Finding::ok("redis", "it can be used, and has users of the realm"),
        Ok(FoundInRedis::NoUsers) => Finding::warning(
            "redis",
            format!(
                "it can be used, but has no key turn/realm/{}/user/NAME/key, so nobody is found in it",
                config.realm
            ),
            "compare `realm` and `auth.redis.database` with coturn's; look at the keys with: redis-cli --scan",
        ),
        Ok(FoundInRedis::Unknown) => {
            Finding::ok("redis", "it can be used; whether it has users of the realm was not found out")
        }
        Err(why) => Finding::fault(
            "redis",
            format!("it cannot be used: {why}"),
            "correct `[auth.redis]`, or start the Redis server; known users go on meanwhile",
        ),
    };
    Some(finding.of(&redis.access.server))
}

/// Examines the Redis server that gets the status of allocations if `[redis-status]` is set.
pub(super) fn examine_status(config: &Config) -> Option<Finding> {
    let access = config.redis_status.as_ref()?;
    let finding = match check_redis_status(access) {
        Ok(()) => Finding::ok("redis-status", "it can be used"),
        Err(why) => Finding::fault(
            "redis-status",
            format!("it cannot be used: {why}"),
            "correct `[redis-status]`, or start the Redis server; its readers get no status of allocations meanwhile",
        ),
    };
    Some(finding.of(&access.server))
}
