//! A change of the status of an allocation, and coturn's keys, channels and values for it.

use std::fmt::Display;

use super::super::connection::Connection;
use crate::transport::Transport;
use crate::turn::{FiveTuple, Traffic};
use crate::worker::SessionId;

/// How much longer a key is kept than its allocation lasts, in seconds. The allocation's end deletes it, unless the server
/// has crashed.
const GRACE: u64 = 60;

/// A change of the status of an allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It was created or refreshed.
    Status { session: SessionId, user: Box<str>, is_new: bool, tuple: FiveTuple, lifetime: u32 },
    /// What it has relayed so far.
    Traffic { session: SessionId, user: Box<str>, traffic: Traffic },
    /// It has ended; what it has relayed in all.
    Ended { session: SessionId, user: Box<str>, traffic: Traffic },
}

/// Returns the ID of an allocation in coturn's form: 18 digits. They are the three numbers of the session.
fn id(session: SessionId) -> String {
    let SessionId { worker, allocation } = session;
    format!("{worker:03}{:07}{:08}", allocation.place, allocation.generation)
}

fn channel(realm: &str, user: &str, session: SessionId, what: &str) -> String {
    format!("turn/realm/{realm}/user/{user}/allocation/{}/{what}", id(session))
}

fn status(is_new: bool, lifetime: u32, tuple: &FiveTuple) -> String {
    let status = if is_new { "new" } else { "refreshed" };
    let (kind, tls) = match tuple.transport {
        Transport::Udp => ("UDP", "NONE"),
        Transport::Tcp => ("TCP", "NONE"),
        // coturn names the version and the cipher here.
        Transport::Tls => ("TLS/TCP", "UNKNOWN"),
    };
    let FiveTuple { server, client, .. } = tuple;
    format!("{status} lifetime={lifetime}, type={kind}, local={server}, remote={client}, ssl={tls}, cipher={tls}")
}

fn counts(received: [u64; 2], sent: [u64; 2]) -> String {
    let ([rcvp, rcvb], [sentp, sentb]) = (received, sent);
    format!("rcvp={rcvp}, rcvb={rcvb}, sentp={sentp}, sentb={sentb}")
}

/// The channels of the traffic with the client and with peers, and the values for them.
fn traffic(realm: &str, user: &str, session: SessionId, what: &str, traffic: &Traffic) -> [(String, String); 2] {
    let to_peers = [traffic.packets_to_peers, traffic.bytes_to_peers];
    let to_client = [traffic.packets_to_client, traffic.bytes_to_client];
    let channel = channel(realm, user, session, what);
    let of_peers = format!("{channel}/peer");
    [(channel, counts(to_peers, to_client)), (of_peers, counts(to_client, to_peers))]
}

impl Change {
    /// Returns the commands for it, in coturn's order. `since` is the traffic since the last change.
    pub(super) fn commands(&self, realm: &str, since: &Traffic) -> Vec<Vec<String>> {
        let publish = |(channel, value): (String, String)| vec!["PUBLISH".to_owned(), channel, value];
        match self {
            Self::Status { session, user, is_new, tuple, lifetime } => {
                let channel = channel(realm, user, *session, "status");
                let value = status(*is_new, *lifetime, tuple);
                let words: [&dyn Display; 5] = [&"SET", &channel, &value, &"EX", &(u64::from(*lifetime) + GRACE)];
                vec![words.iter().map(ToString::to_string).collect(), publish((channel.clone(), value.clone()))]
            }
            // coturn publishes traffic when there is some.
            Self::Traffic { .. } if *since == Traffic::default() => Vec::new(),
            Self::Traffic { session, user, .. } => traffic(realm, user, *session, "traffic", since).map(publish).into(),
            Self::Ended { session, user, traffic: total } => {
                let channel = channel(realm, user, *session, "status");
                let last = traffic(realm, user, *session, "traffic", since).map(publish);
                let deleted = [vec!["DEL".to_owned(), channel.clone()], publish((channel, "deleted".to_owned()))];
                let total = traffic(realm, user, *session, "total_traffic", total).map(publish);
                last.into_iter().chain(deleted).chain(total).collect()
            }
        }
    }
}

/// A change that is being sent, with the traffic since the last change of the allocation.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) number: u64,
    pub(super) change: Change,
    pub(super) since: Traffic,
}

impl Sent {
    /// Whether it changes a key, which a replica refuses; it takes what is only published.
    pub(super) fn has_key(&self) -> bool {
        !matches!(self.change, Change::Traffic { .. })
    }

    /// Queues the commands. Returns the number of replies.
    pub(super) fn write(&self, connection: &mut Connection, realm: &str) -> usize {
        let commands = self.change.commands(realm, &self.since);
        for command in &commands {
            let words: Vec<&[u8]> = command.iter().map(String::as_bytes).collect();
            connection.queue(&words);
        }
        commands.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRAFFIC: Traffic =
        Traffic { packets_to_peers: 1, bytes_to_peers: 100, packets_to_client: 2, bytes_to_client: 300 };

    fn lines(change: &Change, since: &Traffic) -> Vec<String> {
        change.commands("example.org", since).iter().map(|words| words.join(" ")).collect()
    }

    #[test]
    fn a_status_is_written_and_published_as_coturn_does() {
        let address = |text: &str| text.parse().unwrap();
        let (server, client) = (address("10.9.9.1:3478"), address("[2001:db8::1]:42516"));
        let change = |is_new, transport| Change::Status {
            session: "0-17-42".parse().unwrap(),
            user: "ann b".into(),
            is_new,
            tuple: FiveTuple { client, server, transport },
            lifetime: 777,
        };
        let channel = "turn/realm/example.org/user/ann b/allocation/000000001700000042/status";
        let value =
            "new lifetime=777, type=UDP, local=10.9.9.1:3478, remote=[2001:db8::1]:42516, ssl=NONE, cipher=NONE";
        assert_eq!(
            lines(&change(true, Transport::Udp), &TRAFFIC),
            [format!("SET {channel} {value} EX 837"), format!("PUBLISH {channel} {value}")]
        );
        let [_, refreshed] = lines(&change(false, Transport::Tls), &TRAFFIC).try_into().unwrap();
        assert!(refreshed.contains("refreshed lifetime=777, type=TLS/TCP,") && refreshed.ends_with("cipher=UNKNOWN"));
    }

    #[test]
    fn an_end_is_published_with_the_last_and_the_total_traffic() {
        let (session, user) = ("3-1-2".parse().unwrap(), Box::from("ann"));
        let none = Traffic::default();
        assert!(lines(&Change::Traffic { session, user: Box::from("ann"), traffic: TRAFFIC }, &none).is_empty());
        let of = "turn/realm/example.org/user/ann/allocation/003000000100000002";
        assert_eq!(
            lines(&Change::Ended { session, user, traffic: TRAFFIC }, &none),
            [
                format!("PUBLISH {of}/traffic rcvp=0, rcvb=0, sentp=0, sentb=0"),
                format!("PUBLISH {of}/traffic/peer rcvp=0, rcvb=0, sentp=0, sentb=0"),
                format!("DEL {of}/status"),
                format!("PUBLISH {of}/status deleted"),
                format!("PUBLISH {of}/total_traffic rcvp=1, rcvb=100, sentp=2, sentb=300"),
                format!("PUBLISH {of}/total_traffic/peer rcvp=2, rcvb=300, sentp=1, sentb=100"),
            ]
        );
    }
}
