//! A Redis server for one test, with users and secrets as coturn keeps them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use turnserver::auth::LongTermKey;

use crate::support::certificates::Authority;
use crate::support::{Process, REALM, TIMEOUT, TempDir, skip};

/// A running Redis server at a Unix socket. Dropping it kills it.
pub(crate) struct Redis {
    process: Option<Process>,
    directory: TempDir,
    /// Further lines of the configuration.
    more: String,
    password: Option<&'static str>,
}

impl Redis {
    /// Starts a server. `None` if this machine has none.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with(None)
    }

    /// Starts a server with a password.
    pub(crate) fn start_with(password: Option<&'static str>) -> Option<Self> {
        if Command::new("redis-server").arg("--version").output().is_err() {
            skip("there is no redis-server (Debian: apt-get install redis-server)");
            return None;
        }
        let mut redis = Self { process: None, directory: TempDir::new(), more: String::new(), password };
        redis.start_again();
        Some(redis)
    }

    /// Starts the server again, without data.
    pub(crate) fn start_again(&mut self) {
        self.process = None;
        let password = self.password.map(|password| format!("requirepass {password}\n")).unwrap_or_default();
        let (socket, directory) = (self.socket(), self.directory.path().display());
        let text =
            format!("port 0\nunixsocket {}\nsave \"\"\ndir {directory}\n{password}{}", socket.display(), self.more);
        let file = self.directory.write("redis.conf", &text);
        let process = Process::start(Command::new("redis-server").arg(file), Some("redis-server"));
        let is_ready = |lines: &[String]| lines.iter().any(|line| line.contains("eady to accept")).then_some(());
        process.stdout.wait_for(TIMEOUT, is_ready).unwrap_or_else(|| panic!("{}", process.output()));
        self.process = Some(process);
    }

    /// Starts the server again, with TLS at a port. Returns its URL, and the file with the authority.
    pub(crate) fn start_with_tls(&mut self) -> (String, PathBuf) {
        let authority = Authority::new(turnserver::clock::unix_seconds());
        let [certificate, key] = authority.write(&authority.issue(&["localhost"]), self.directory.path());
        let root = self.directory.write("root.pem", &authority.root());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        self.more = format!(
            "bind 127.0.0.1\ntls-port {port}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\ntls-auth-clients no\n",
            certificate.display(),
            key.display(),
            root.display()
        );
        self.start_again();
        (format!("rediss://localhost:{port}"), root)
    }

    /// Starts the server again, with a port for programs that do not know Unix sockets. Returns the port.
    pub(crate) fn start_with_port(&mut self) -> u16 {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        self.more = format!("bind 127.0.0.1\nport {port}\n");
        self.start_again();
        port
    }

    /// Returns the commands that other connections send from now on.
    pub(crate) fn monitor(&self) -> Monitor {
        let mut stream = BufReader::new(connect(&self.socket()));
        stream.get_mut().write_all(b"MONITOR\r\n").unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        assert_eq!(line, "+OK\r\n");
        Monitor(stream)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }

    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.as_ref().unwrap().signal(signal);
    }

    /// Ends the server.
    pub(crate) fn stop(&mut self) {
        self.process = None;
    }

    /// Writes a file beside the socket.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        self.directory.write(name, text)
    }

    /// Sends a command and returns the reply as text: the value, or the line.
    pub(crate) fn command(&self, words: &[&str]) -> String {
        let mut stream = BufReader::new(connect(&self.socket()));
        let auth = self.password.map(|password| vec!["AUTH", password]);
        let mut reply = String::new();
        for words in auth.iter().map(Vec::as_slice).chain([words]) {
            let words = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
            let (count, words) = (words.len(), words.collect::<String>());
            stream.get_mut().write_all(format!("*{count}\r\n{words}").as_bytes()).unwrap();
            reply.clear();
            stream.read_line(&mut reply).unwrap();
            if let Some(length) = reply.strip_prefix('$').map(|length| length.trim().parse::<usize>()) {
                let mut value = vec![0; length.unwrap()];
                stream.read_exact(&mut value).unwrap();
                reply = String::from_utf8(value).unwrap();
            }
        }
        reply
    }

    /// Sets the key of a user.
    pub(crate) fn set_user(&self, name: &str, password: &str) {
        let key = LongTermKey::derive(name, REALM, password.as_bytes());
        let key: String = key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(self.command(&["SET", &user_key(name), &key]), "+OK\r\n");
    }

    pub(crate) fn delete_user(&self, name: &str) {
        assert_eq!(self.command(&["DEL", &user_key(name)]), ":1\r\n");
    }

    pub(crate) fn add_secret(&self, secret: &str) {
        assert_eq!(self.command(&["SADD", &format!("turn/realm/{REALM}/secret"), secret]), ":1\r\n");
    }

    /// Returns how often the server was asked for a key.
    pub(crate) fn look_ups(&self) -> u64 {
        let statistics = self.command(&["INFO", "commandstats"]);
        let calls = statistics.split_once("cmdstat_get:calls=").map_or("0", |(_, rest)| rest);
        calls.split(',').next().unwrap().parse().unwrap()
    }
}

/// The commands that a server gets.
pub(crate) struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// Returns the words of commands about allocations until one whose text contains `last`.
    pub(crate) fn until(&mut self, last: &str) -> Vec<Vec<String>> {
        let mut commands = Vec::new();
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            // +TIME [DATABASE ADDRESS] "WORD" "WORD"
            let (_, words) = line.split_once("] \"").unwrap_or_default();
            let words = words.trim_end();
            let words = words.strip_suffix('"').unwrap_or(words);
            let mut words: Vec<String> = words.split("\" \"").map(str::to_owned).collect();
            words[0].make_ascii_uppercase();
            if words.get(1).is_some_and(|key| key.contains("/allocation/") && !key.contains('*')) {
                commands.push(words);
                if line.contains(last) {
                    return commands;
                }
            }
        }
    }
}

fn user_key(name: &str) -> String {
    format!("turn/realm/{REALM}/user/{name}/key")
}

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}
