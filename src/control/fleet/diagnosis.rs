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

/// The most servers of which the result says what is wrong.
const MOST_NAMED: usize = 4;
/// The time for each step of an examination.
const TIME: Duration = Duration::from_secs(4);
/// The longest first line of a server, in bytes.
const MAX_INFO: u64 = 32 * 1024;

/// Examines the servers up to TLS. Returns what is wrong with them, with advice; `None` if nothing is.
pub(super) async fn diagnose(fleet: &Fleet) -> Option<String> {
    let tls = match outbound::tls_connector(fleet.ca_file.as_deref()) {
        Ok(tls) => tls,
        Err(why) => return Some(format!("`{FLEET_CA_FILE}`: {why}")),
    };
    // With TLS for one server, the client demands it of all.
    let is_tls = fleet.servers.iter().any(|server| server.tls);
    let examined = fleet.servers.iter().map(async |server| {
        let examined = examine(server, is_tls, &tls).await;
        examined.err().map(|why| format!("{server}: {}", printable::shown(&why)))
    });
    let mut wrong: Vec<String> = join_all(examined).await.into_iter().flatten().collect();
    let more = wrong.len().saturating_sub(MOST_NAMED);
    wrong.truncate(MOST_NAMED);
    if more > 0 {
        wrong.push(format!("{more} further ones cannot be used either"));
    }
    (!wrong.is_empty()).then(|| wrong.join("; "))
}

/// Does a step, for a limited time.
async fn step<T>(work: impl Future<Output = Result<T, String>>, slow: &str) -> Result<T, String> {
    let slow = || format!("{slow} within {} seconds", TIME.as_secs());
    timeout(TIME, work).await.unwrap_or_else(|_| Err(slow()))
}

/// Connects as a client does, without a user and a password.
async fn examine(server: &FleetServer, is_tls: bool, tls: &TlsConnector) -> Result<(), String> {
    let host = server.host.trim_matches(['[', ']']);
    let stream = step(outbound::connect(host, server.port), "no connection").await?;
    let silent = "it is no NATS server, or has `handshake_first`: it sends nothing";
    let (info, stream) = step(read_info(stream), silent).await?;
    let says = |key: &str| info.get(key).and_then(Value::as_bool).unwrap_or_default();
    if is_tls && !says("tls_required") && !says("tls_available") {
        return Err(format!(
            "it has no TLS: begin all URLs in `{FLEET_SERVERS}` with nats://, or give it a certificate"
        ));
    }
    if is_tls || says("tls_required") {
        step(outbound::tls(tls, host, stream, FLEET_CA_FILE), "its TLS does not begin").await?;
    }
    Ok(())
}

/// Reads what a server says of itself.
async fn read_info(stream: TcpStream) -> Result<(Value, TcpStream), String> {
    let mut reader = BufReader::new(stream.take(MAX_INFO));
    let mut line = Vec::new();
    let read = reader.read_until(b'\n', &mut line).await;
    read.map_err(|error| format!("the connection has failed: {error}"))?;
    if let Some(error) = line.strip_prefix(b"-ERR ") {
        return Err(format!("it refuses connections: {}", String::from_utf8_lossy(error).trim()));
    }
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
        assert!(wrong("tls", info).await.unwrap().contains("it has no TLS: begin all URLs in `fleet.servers`"));
        let full = "-ERR 'maximum connections exceeded'\r\n";
        assert!(wrong("nats", full).await.unwrap().ends_with("refuses connections: 'maximum connections exceeded'"));
        assert!(wrong("nats", "SSH-2.0-x\r\n").await.unwrap().contains("it is no NATS server"));
        assert!(wrong("nats", "").await.unwrap().contains("it is no NATS server"));
        // The TLS of this one does not go on.
        let stalled = "INFO {\"tls_required\":true}\r\n";
        assert!(wrong("nats", stalled).await.is_some_and(|why| why.contains("TLS")));
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let refused = diagnose(&fleet(&format!("nats://{closed}"))).await.unwrap();
        assert!(refused.starts_with(&format!("nats://{closed}: cannot connect to 127.0.0.1: ")), "{refused}");
    }
}
