//! `[auth]` and the limits that belong to users.

use std::collections::HashSet;

use zeroize::Zeroizing;

use super::Verdict::{Cannot, Default, Dropped, Taken};
use super::convert::{COMMENT_IN_VALUE, Converter, toml_number};
use super::value::{self, uncommented};
use super::write::{User, list};

const DAY: u64 = 86_400;

/// The databases of coturn, and how to read their users.
const DATABASES: [(&str, &str); 6] = [
    ("db", SQLITE),
    ("userdb", SQLITE),
    ("psql-userdb", SQL),
    ("sql-userdb", SQL),
    ("mysql-userdb", SQL),
    ("mongo-userdb", MONGO),
];
const SQLITE: &str = "`sqlite3 FILE 'SELECT realm, name, hmackey FROM turnusers_lt; SELECT * FROM turn_secret; \
                      SELECT * FROM allowed_peer_ip; SELECT * FROM denied_peer_ip'`";
const SQL: &str = "`SELECT realm, name, hmackey FROM turnusers_lt`, `SELECT * FROM turn_secret`, \
                   `SELECT * FROM allowed_peer_ip` and `SELECT * FROM denied_peer_ip`";
const MONGO: &str = "the collections `turnusers_lt` (`hmackey`), `turn_secret` and `realm` (`allowed_peer_ip` and \
                     `denied_peer_ip`)";
/// Where the peer rules of a database belong.
const PEER_RULES: &str = "ranges of denied peers into `peers.deny`, and those of allowed ones into `peers.allow`";

impl Converter<'_> {
    pub(super) fn auth(&mut self) {
        let has_secrets = self.secrets();
        // An option whose value is wrong turns time-limited credentials on, too.
        let is_time_limited = self.is_given("use-auth-secret") || self.is_given("static-auth-secret");
        self.separator();
        self.nonce_lifetime();
        self.databases(is_time_limited);
        let has_redis = self.redis(is_time_limited);
        self.redis_status();
        let has_users = self.users(is_time_limited) || has_redis;
        self.user_quota(is_time_limited || has_redis || !has_users);
        if !has_secrets && !has_users {
            self.differences.push(
                "the new configuration has neither a secret nor a user: the server makes a secret at each start and \
                 prints a credential for a test. Set `auth.secrets` to the secret of your application"
                    .to_owned(),
            );
        }
    }

    fn secrets(&mut self) -> bool {
        let mut secrets: Vec<Zeroizing<String>> = Vec::new();
        let all = self.all("static-auth-secret");
        for at in &all {
            let secret = Zeroizing::new(self.value(*at).to_owned());
            let text = "`auth.secrets`; an application with this secret needs no change";
            self.decide(*at, Taken, text);
            if secret.contains(" #") {
                self.remark(*at, COMMENT_IN_VALUE);
            }
            if !secrets.contains(&secret) {
                secrets.push(secret);
            }
        }
        if !secrets.is_empty() {
            let from = self.from(&all);
            self.out.set("auth.secrets", list(secrets.iter().map(|secret| secret.as_str())), from);
        }
        !secrets.is_empty()
    }

    fn separator(&mut self) {
        let Some(at) = self.one("rest-api-separator") else { return };
        if self.value(at).starts_with(':') {
            self.decide(at, Default, "a colon separates the expiry from the name");
        } else {
            let text = "a colon always separates the expiry from the name: let the application write `EXPIRY:NAME`";
            self.decide(at, Cannot, text);
        }
    }

    fn nonce_lifetime(&mut self) {
        let Some((at, seconds)) = self.parsed("stale-nonce", |value| match uncommented(value) {
            "" => Ok(600),
            value => value::number(value),
        }) else {
            return;
        };
        match seconds {
            3600 => self.decide(at, Default, "`auth.nonce-lifetime` is \"1h\""),
            1..=DAY => self.take(at, "auth.nonce-lifetime", toml_number(seconds)),
            _ => {
                self.take(at, "auth.nonce-lifetime", "1d");
                self.remark(at, "a day is the longest lifetime; a client then needs one more round trip");
            }
        }
    }

    fn databases(&mut self, is_time_limited: bool) {
        let users = if is_time_limited {
            "With `use-auth-secret`, coturn ignores the users in it"
        } else {
            "Write each user as `[[auth.users]]` with `name` and the `hmackey` as `key`, or let your application make \
             time-limited credentials (`turn-credential`, docs/credentials.md)"
        };
        let is_other = DATABASES.iter().any(|(name, _)| self.is_given(name)) || self.is_given("redis-userdb");
        if !is_other {
            self.differences.push(format!(
                "without an option for a database, coturn also uses the users, secrets and peer rules in a default one \
                 (in Debian /var/lib/turn/turndb, elsewhere /var/db/turndb or /usr/local/var/db/turndb). If it exists, \
                 read it with {SQLITE}. {users}; write each secret into `auth.secrets`, {PEER_RULES}"
            ));
        }
        for (name, how) in DATABASES {
            let Some(at) = self.one(name) else { continue };
            let text = format!(
                "of databases, the server reads only that of Redis: read its users, secrets and peer rules once, with {how}. {users}; write \
                 each secret into `auth.secrets`, {PEER_RULES}"
            );
            self.decide(at, Cannot, text);
        }
    }

    /// Takes over the static users. Returns whether there are any.
    fn users(&mut self, is_time_limited: bool) -> bool {
        let quota = self.one("user-quota").and_then(|at| value::number(self.value(at)).ok());
        let mut seen = HashSet::new();
        let mut users = Vec::new();
        // Of several users with one name, coturn knows the last one.
        for at in self.all("user").into_iter().rev() {
            if is_time_limited {
                let text = "with `use-auth-secret` or a secret, coturn ignores static users. To let this one in, add it as \
                            `[[auth.users]]`; both kinds work together here";
                self.decide(at, Dropped, text);
                continue;
            }
            let Some((name, kind, credential)) = self.user(at) else { continue };
            if !seen.insert(name.clone()) {
                self.decide(at, Dropped, "a later line has the same user, and coturn uses the last one");
                continue;
            }
            let allocations = quota.filter(|quota| *quota > 0);
            users.push(User { name, kind, credential, allocations, from: self.from(&[at]) });
            self.decide(at, Taken, "`[[auth.users]]`");
            if kind == "password" && self.value(at).contains(" #") {
                self.remark(at, COMMENT_IN_VALUE);
            }
        }
        users.reverse();
        let any = !users.is_empty();
        users.into_iter().for_each(|user| self.out.add_user(user));
        any
    }

    /// Returns the name of a user, the key of the configuration for its credential, and the credential.
    fn user(&mut self, at: usize) -> Option<(String, &'static str, Zeroizing<String>)> {
        let has_realm = self.one("realm").is_some() || self.is_given("realm");
        let parsed = match self.value(at).split_once(':') {
            Some((name, rest)) if !name.is_empty() && !rest.trim_start().is_empty() => {
                let rest = rest.trim_start_matches([' ', '\t']);
                match rest.strip_prefix("0x") {
                    None => Ok((name.to_owned(), "password", rest)),
                    Some(_) if !has_realm => Err(
                        "a key is valid in one realm only, and `realm` is missing: coturn used the domain name of the \
                         machine. Give the realm with --arguments '--realm NAME'",
                    ),
                    Some(digits) => match digits.get(..32) {
                        Some(key) if key.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                            Ok((name.to_owned(), "key", key))
                        }
                        _ => Err("after `0x`, coturn expects the 32 hexadecimal digits of a key (`turnadmin -k`)"),
                    },
                }
            }
            _ => Err(
                "it is not of the form NAME:PASSWORD or NAME:0xKEY, so coturn ignores it: add the user as `[[auth.users]]`",
            ),
        };
        match parsed {
            Ok((name, kind, credential)) => Some((name, kind, Zeroizing::new(credential.to_owned()))),
            Err(why) => {
                self.decide(at, Cannot, why);
                None
            }
        }
    }

    fn user_quota(&mut self, of_credentials: bool) {
        match self.parsed("user-quota", value::number) {
            Some((at, quota)) if of_credentials => self.take(at, "limits.allocations-per-user", toml_number(quota)),
            Some((at, 0)) => self.decide(at, Default, "static users have no limit on allocations"),
            Some((at, _)) => self.decide(at, Taken, "`allocations` of each user in `[[auth.users]]`"),
            None if of_credentials => self.differences.push(
                "coturn has no limit on the allocations of a user unless `user-quota` is set; here \
                 `limits.allocations-per-user` is 32. Set it to 0 if all users of your application share one name"
                    .to_owned(),
            ),
            None => {}
        }
    }

    pub(super) fn limits(&mut self) {
        if let Some((at, quota)) = self.parsed("total-quota", value::number) {
            if quota == 0 {
                self.decide(at, Default, "there can be as many allocations as relay ports");
            } else {
                self.take(at, "limits.allocations", toml_number(quota));
            }
        }
        let rate = self.parsed("max-bps", value::number);
        match rate {
            Some((at, 0)) => self.decide(at, Default, "the data of an allocation is not limited"),
            Some((at, bytes)) => {
                let key = "limits.bytes-per-second-per-allocation";
                self.take(at, key, toml_number(bytes.min(u32::MAX.into())));
                self.remark(at, "as in coturn, it is in bytes per second and direction");
            }
            None => {}
        }
        if let Some((at, capacity)) = self.parsed("bps-capacity", value::number) {
            let bound = match rate {
                Some((_, bytes @ 1..)) => format!("`limits.allocations = {}`", (capacity / bytes).max(1)),
                _ => "`limits.allocations` together with `limits.bytes-per-second-per-allocation`".to_owned(),
            };
            if capacity == 0 {
                self.decide(at, Default, "the data of all allocations together is not limited");
            } else {
                let text = format!(
                    "there is no limit on the data of all allocations together: {bound} bounds it, or `tc` on the \
                     interface"
                );
                self.decide(at, Cannot, text);
            }
        }
        if let Some((at, rate)) = self.parsed("unauthorized-ratelimit-rps", |value| match uncommented(value) {
            "" => Ok(10),
            value => value::number(value),
        }) {
            if self.is_given("unauthorized-ratelimit") {
                self.take(at, "limits.unverified-responses", toml_number(rate.clamp(1, 1000)));
            } else {
                self.decide(at, Dropped, "`unauthorized-ratelimit` is not set, so coturn does not use it");
            }
        }
    }
}
