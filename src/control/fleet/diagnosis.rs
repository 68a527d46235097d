//! Why the engine cannot be reached. The library that connects to it says little more than that it cannot.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::config::{Fleet, FleetServer};
use crate::control::outbound;
use crate::printable;
use crate::setting::{FLEET_CA_FILE, FLEET_SERVERS};

/// The most servers that are examined.
const SERVERS: usize = 4;
/// The time for one.
const TIME: Duration = Duration::from_secs(4);
/// The longest first line of a server, in bytes.
const MAX_INFO: u64 = 32 * 1024;

/// Examines the servers up to TLS. Returns what is wrong with them, with advice; `None` if nothing is.
pub(super) async fn diagnose(fleet: &Fleet) -> Option<String> {
    let tls = match outbound::tls_connector(fleet.ca_file.as_deref()) {
        Ok(tls) => tls,
        Err(why) => return Some(format!("`{FLEET_CA_FILE}`: {why}")),
    };
    let examined = fleet.servers.iter().take(SERVERS).map(async |server| {
        let seconds = TIME.as_secs();
        let slow =
            || format!("it does not begin within {seconds} seconds, so it is no NATS server, or has `handshake_first`");
        let examined = timeout(TIME, examine(server, &tls)).await.unwrap_or_else(|_| Err(slow()));
        examined.err().map(|why| format!("{server}: {}", printable::shown(&why)))
    });
    let wrong: Vec<String> = join_all(examined).await.into_iter().flatten().collect();
    (!wrong.is_empty()).then(|| wrong.join("; "))
}

/// Connects as a client does, without a user and a password.
async fn examine(server: &FleetServer, tls: &TlsConnector) -> Result<(), String> {
    let host = server.host.trim_matches(['[', ']']);
    let stream = outbound::connect(host, server.port).await?;
    let (info, stream) = read_info(stream).await?;
    let says = |key: &str| info.get(key).and_then(Value::as_bool).unwrap_or_default();
    if server.tls && !says("tls_required") && !says("tls_available") {
        return Err(format!(
            "it has no TLS: begin its URL in `{FLEET_SERVERS}` with nats://, or give it a certificate"
        ));
    }
    if server.tls || says("tls_required") {
        outbound::tls(tls, host, stream, FLEET_CA_FILE).await?;
    }
    Ok(())
}

/// Reads what a server says of itself.
async fn read_info(stream: TcpStream) -> Result<(Value, TcpStream), String> {
    let mut reader = BufReader::new(stream.take(MAX_INFO));
    let mut line = Vec::new();
    let read = reader.read_until(b'\n', &mut line).await;
    read.map_err(|error| format!("the connection has failed: {error}"))?;
    let info = line.strip_prefix(b"INFO ").and_then(|json| serde_json::from_slice(json).ok());
    let info = info.ok_or_else(|| "it is no NATS server".to_owned())?;
    // It says nothing more until the client does.
    Ok((info, reader.into_inner().into_inner()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpListener;

    use super::*;
    use crate::config::Config;

    fn fleet(server: &str) -> Fleet {
        let text = format!("[fleet]\nservers = [\"{server}\"]\n");
        Config::parse(&text, "t.toml").unwrap().fleet.unwrap()
    }

    /// Returns what is wrong with a server that begins like this.
    async fn wrong(scheme: &str, begin: &'static str) -> Option<String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("{scheme}://127.0.0.1:{}", listener.local_addr().unwrap().port());
        std::thread::spawn(move || listener.accept().unwrap().0.write_all(begin.as_bytes()));
        diagnose(&fleet(&url)).await
    }

    #[tokio::test]
    async fn each_thing_that_can_be_wrong_up_to_tls_is_named() {
        let info = "INFO {\"server_id\":\"a\"}\r\n";
        assert_eq!(wrong("nats", info).await, None);
        assert!(wrong("tls", info).await.unwrap().contains("it has no TLS: begin its URL in `fleet.servers`"));
        assert!(wrong("nats", "SSH-2.0-x\r\n").await.unwrap().contains("it is no NATS server"));
        assert!(wrong("nats", "").await.unwrap().contains("it is no NATS server"));
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let refused = diagnose(&fleet(&format!("nats://{closed}"))).await.unwrap();
        assert!(refused.starts_with(&format!("nats://{closed}: cannot connect to 127.0.0.1: ")), "{refused}");
    }
}
