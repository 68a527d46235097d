//! A connection to a Redis server. Whatever the server sends is bounded in size, and the caller bounds the time.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::protocol::{Received, Reply, write_command};
use crate::config::{RedisAccess, RedisServer};
use crate::control::outbound::{self, connect};
use crate::setting;

/// The longest time until a connection can be used.
const OPEN_TIME: Duration = Duration::from_secs(5);
/// The most bytes of one read.
const READ: usize = 4096;

/// The names of the keys that a message about a connection advises to change.
#[derive(Debug)]
pub(super) struct Keys {
    url: &'static str,
    password_file: &'static str,
    ca_file: &'static str,
}

/// Those of `[auth.redis]`.
pub(super) const USERS: Keys = Keys {
    url: setting::AUTH_REDIS_URL,
    password_file: setting::AUTH_REDIS_PASSWORD_FILE,
    ca_file: setting::AUTH_REDIS_CA_FILE,
};

/// Those of `[redis-status]`.
pub(super) const STATUS: Keys = Keys {
    url: setting::REDIS_STATUS_URL,
    password_file: setting::REDIS_STATUS_PASSWORD_FILE,
    ca_file: setting::REDIS_STATUS_CA_FILE,
};

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

/// A connection on which the user is authenticated and the database is selected.
pub(super) struct Connection {
    stream: Box<dyn Duplex>,
    received: Received,
    /// What was not written yet.
    commands: Zeroizing<Vec<u8>>,
}

impl Connection {
    /// Opens a connection.
    ///
    /// # Errors
    /// Why it cannot be used, with advice. The text contains no password.
    pub(super) async fn open(access: &RedisAccess, keys: &Keys) -> Result<Self, String> {
        match timeout(OPEN_TIME, Self::open_slowly(access, keys)).await {
            Ok(opened) => opened,
            Err(_) => Err(format!("it does not respond within {} seconds", OPEN_TIME.as_secs())),
        }
    }

    async fn open_slowly(access: &RedisAccess, keys: &Keys) -> Result<Self, String> {
        let stream: Box<dyn Duplex> = match &access.server {
            RedisServer::Unix(path) => {
                let stream = UnixStream::connect(path).await;
                Box::new(stream.map_err(|error| format!("cannot connect: {error} (`{}`)", keys.url))?)
            }
            RedisServer::Tcp { host, port, tls } => {
                let stream = connect(host, *port).await?;
                // Without it, a look-up could wait for the acknowledgement of an earlier one.
                let _ = stream.set_nodelay(true);
                if *tls {
                    let connector = outbound::tls_connector(access.ca.as_deref());
                    let connector = connector.map_err(|why| format!("`{}`: {why}", keys.ca_file))?;
                    Box::new(outbound::tls(&connector, host, stream, keys.ca_file).await?)
                } else {
                    Box::new(stream)
                }
            }
        };
        // Enough for the password, so that it is not copied when the buffer grows.
        let commands = Zeroizing::new(Vec::with_capacity(READ));
        let mut this = Self { stream, received: Received::default(), commands };
        if let Some(password) = &access.password {
            let user = access.username.as_ref().map(String::as_bytes);
            let words: Vec<&[u8]> = [&b"AUTH"[..]].into_iter().chain(user).chain([password.as_bytes()]).collect();
            match this.call(&words).await? {
                Reply::Status(_) => {}
                reply => {
                    let why = describe(&reply);
                    return Err(format!("it refuses the user or the password ({why}): check `{}`", keys.password_file));
                }
            }
        }
        match this.call(&[b"SELECT", access.database.to_string().as_bytes()]).await? {
            Reply::Status(_) => Ok(this),
            Reply::Error(error) if error.starts_with("NOAUTH") => {
                Err(format!("it requires a password: set `{}`", keys.password_file))
            }
            reply => Err(format!("it refuses database {} ({})", access.database, describe(&reply))),
        }
    }

    /// Queues a command, which the next calls write.
    pub(super) fn queue(&mut self, words: &[&[u8]]) {
        write_command(&mut self.commands, words);
    }

    /// Sends a command and waits for its reply. No reply may be outstanding.
    pub(super) async fn call(&mut self, words: &[&[u8]]) -> Result<Reply, String> {
        self.queue(words);
        self.reply().await
    }

    /// Writes the commands, and waits for the next reply. Cancel-safe.
    pub(super) async fn reply(&mut self) -> Result<Reply, String> {
        poll_fn(|cx| self.poll_reply(cx)).await
    }

    fn poll_reply(&mut self, cx: &mut Context<'_>) -> Poll<Result<Reply, String>> {
        let failed = |error: io::Error| format!("the connection has failed: {error}");
        while !self.commands.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.commands) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(CLOSED.to_owned())),
                Poll::Ready(Ok(written)) => drop(self.commands.drain(..written)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(failed(error))),
                Poll::Pending => break,
            }
        }
        if let Poll::Ready(Err(error)) = Pin::new(&mut self.stream).poll_flush(cx) {
            return Poll::Ready(Err(failed(error)));
        }
        loop {
            match self.received.next() {
                Ok(Some(reply)) => return Poll::Ready(Ok(reply)),
                Ok(None) => {}
                Err(malformed) => return Poll::Ready(Err(malformed.to_string())),
            }
            let mut buffer = Zeroizing::new([0; READ]);
            let mut buffer = ReadBuf::new(buffer.as_mut());
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if buffer.filled().is_empty() => return Poll::Ready(Err(CLOSED.to_owned())),
                Ok(()) => self.received.push(buffer.filled()),
                Err(error) => return Poll::Ready(Err(failed(error))),
            }
        }
    }
}

const CLOSED: &str = "it has closed the connection";

/// Describes a reply that was not expected. Of an error, only the first word is shown: the rest may repeat the command,
/// which has a password or a name.
pub(super) fn describe(reply: &Reply) -> String {
    match reply {
        Reply::Error(text) => {
            let word = text.split(' ').next().unwrap_or_default();
            let is_code = !word.is_empty() && word.len() <= 32 && word.bytes().all(|byte| byte.is_ascii_uppercase());
            if is_code { word.to_owned() } else { "an error".to_owned() }
        }
        Reply::TooLong => "a reply that is too long".to_owned(),
        _ => "an unexpected reply".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_error_only_the_first_word_is_shown() {
        let describe = |text: &str| describe(&Reply::Error(text.to_owned()));
        assert_eq!(describe("WRONGPASS invalid username-password pair"), "WRONGPASS");
        assert_eq!(describe("ERR unknown command 'AUTH', with args beginning with: 'hunter2'"), "ERR");
        assert_eq!(describe("hunter2"), "an error");
        assert_eq!(super::describe(&Reply::Nil), "an unexpected reply");
    }
}
