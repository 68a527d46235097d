//! `redis-userdb`: the Redis server with coturn's users and secrets, which this server can use, too. `redis-statsdb`: the one
//! that gets the status of allocations.

use super::Verdict::{Cannot, Taken};
use super::convert::Converter;

/// Where the peer rules of the database belong.
const PEER_RULES: &str = "peer rules in it (`KEYS turn/*allowed-peer-ip*`, `KEYS turn/*denied-peer-ip*`) are not read: \
                          write ranges of denied peers into `peers.deny`, and those of allowed ones into `peers.allow`";

/// What a connection string says, apart from the password.
#[derive(Default)]
struct Connection {
    host: String,
    port: Option<u16>,
    database: u32,
    username: Option<String>,
    has_password: bool,
    /// In seconds.
    timeout: Option<u64>,
}

impl Connection {
    /// Parses `ip=… dbname=… password=… port=… connect_timeout=…`, with the names that coturn accepts. The error does not
    /// contain the text, which has a password.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let mut connection = Self { host: "127.0.0.1".to_owned(), ..Self::default() };
        for part in text.split(' ').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or("a part of it is not of the form NAME=VALUE")?;
            match name {
                "host" | "ip" | "addr" | "ipaddr" | "hostaddr" => value.clone_into(&mut connection.host),
                "dbname" | "db" | "database" => {
                    connection.database = value.parse().map_err(|_| "the name of the database is not a number")?;
                }
                "port" | "p" => connection.port = Some(value.parse().map_err(|_| "the port is not a number")?),
                "password" | "pwd" | "passwd" | "secret" => connection.has_password = !value.is_empty(),
                "user" | "uname" | "name" | "username" => {
                    connection.username = Some(value.to_owned()).filter(|name| !name.is_empty());
                }
                "connect_timeout" | "timeout" => {
                    connection.timeout = Some(value.parse().map_err(|_| "the timeout is not a number")?);
                }
                _ => return Err("it has a name that coturn does not know"),
            }
        }
        let is_plain = |character: char| character.is_ascii_alphanumeric() || ".-_:[]".contains(character);
        if connection.port == Some(0) || connection.host.is_empty() || !connection.host.chars().all(is_plain) {
            return Err("the host or the port is not valid");
        }
        Ok(connection)
    }

    fn url(&self) -> String {
        let bare = self.host.trim_matches(['[', ']']);
        let host = if bare.contains(':') { format!("[{bare}]") } else { bare.to_owned() };
        format!("redis://{host}:{}", self.port.unwrap_or(6379))
    }
}

/// What differs for programs that read the status.
const STATUS_DIFFERENCES: &str = "keys, channels and values are coturn's; docs/migrating-from-coturn.md says what the \
                                  numbers of `traffic` contain, and when they are sent";

impl Converter<'_> {
    /// Takes over the Redis server for the status of allocations.
    pub(super) fn redis_status(&mut self) {
        let Some(at) = self.one("redis-statsdb") else { return };
        let connection = match Connection::parse(self.value(at)) {
            Ok(connection) => connection,
            Err(why) => {
                self.decide(at, Cannot, format!("{why}: write the Redis server into `[redis-status]`"));
                return;
            }
        };
        let from = self.from(&[at]);
        self.out.set("redis-status.url", connection.url(), from.clone());
        if connection.database != 0 {
            self.out.set("redis-status.database", i64::from(connection.database), from);
        }
        if connection.has_password {
            let text = format!(
                "`[redis-status]` has all of it except for the password, which does not belong into the new file: write \
                 it into a file of its own, and name that in `redis-status.password-file`; {STATUS_DIFFERENCES}"
            );
            self.decide(at, Cannot, text);
        } else {
            self.decide(at, Taken, format!("`[redis-status]`; {STATUS_DIFFERENCES}"));
        }
    }

    /// Takes over the Redis server. Returns whether there is one.
    pub(super) fn redis(&mut self, is_time_limited: bool) -> bool {
        let Some(at) = self.one("redis-userdb") else { return false };
        let connection = match Connection::parse(self.value(at)) {
            Ok(connection) => connection,
            Err(why) => {
                self.decide(at, Cannot, format!("{why}: write the Redis server into `[auth.redis]`"));
                return false;
            }
        };
        let from = self.from(&[at]);
        self.out.set("auth.redis.url", connection.url(), from.clone());
        if connection.database != 0 {
            self.out.set("auth.redis.database", i64::from(connection.database), from.clone());
        }
        if let Some(seconds) = connection.timeout {
            self.out.set("auth.redis.time-limit", format!("{}s", seconds.clamp(1, 10)), from);
        }
        if connection.has_password {
            let user = connection
                .username
                .map_or(String::new(), |_| " If Redis knows the user, set `username`, too.".to_owned());
            let text = format!(
                "`[auth.redis]` has all of it except for the password, which does not belong into the new file: write it \
                 into a file of its own, and name that in `auth.redis.password-file`.{user} The {PEER_RULES}"
            );
            self.decide(at, Cannot, text);
        } else {
            self.decide(at, Taken, format!("`[auth.redis]`. The {PEER_RULES}"));
        }
        if is_time_limited {
            self.remark(at, "with `use-auth-secret`, coturn ignores the users in it; here they can log in");
        }
        if !self.is_given("realm") {
            self.remark(at, "without `realm`, coturn uses the domain name of the machine: set `realm` to it");
        }
        true
    }
}
