//! The form of events. docs/fleet.md describes it, and a test compares the two.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::clock;
use crate::config::{Config, HttpKey};
use crate::transport::Transport;
use crate::turn::{AllocationInfo, EndReason, FiveTuple, Traffic};
use crate::worker::{LostRecords, SessionId, SessionRecord};

/// The version of the form. A new field does not change it; a field that goes or gets another meaning does.
const VERSION: u32 = 1;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// The process has started. All earlier allocations of the node have ended.
    NodeStarted,
    /// The process ends. All of its allocations have ended.
    NodeStopped,
    /// An allocation was created.
    Started,
    /// The running sums of an allocation.
    Usage,
    /// An allocation has ended; the final sums.
    Ended,
    /// Events did not fit; the sums of the allocations whose end is missing.
    Lost,
}

impl Kind {
    /// Returns the value of `type`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::NodeStarted => "node.started",
            Self::NodeStopped => "node.stopped",
            Self::Started => "allocation.started",
            Self::Usage => "allocation.usage",
            Self::Ended => "allocation.ended",
            Self::Lost => "events.lost",
        }
    }
}

/// An event.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    pub(crate) kind: Kind,
    /// The allocation, if the event is about one.
    pub(crate) session: Option<SessionId>,
    /// The user of the allocation; empty if there is none.
    pub(crate) user: String,
    /// The 5-tuple of the client and the time-to-expiry in seconds, if the event is a start.
    pub(crate) start: Option<(FiveTuple, u32)>,
    /// The traffic of the allocation, or of all whose end is missing.
    pub(crate) traffic: Traffic,
    /// The event as a JSON object on one line.
    pub(crate) json: String,
}

/// Makes events of one node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Source {
    node: String,
    /// Identifies the run of the process.
    boot: String,
    /// The prefix of the users of each API key, and its name.
    keys: Vec<(String, String)>,
}

impl Source {
    pub(crate) fn new(config: &Config, boot: &str) -> Self {
        let key = |key: &HttpKey| (!key.user_prefix.is_empty()).then(|| (key.user_prefix.clone(), key.name.clone()));
        Self {
            node: config.node_name(),
            boot: boot.to_owned(),
            keys: config.http.keys.iter().filter_map(key).collect(),
        }
    }

    /// Returns the API key with which the credentials of a user were made: the one with the longest prefix of the name.
    fn key_of(&self, user: &str) -> Option<&str> {
        let keys = self.keys.iter().filter(|(prefix, _)| user.starts_with(prefix));
        keys.max_by_key(|(prefix, _)| prefix.len()).map(|(_, name)| name.as_str())
    }

    pub(crate) fn node_started(&self) -> Event {
        self.about_node(Kind::NodeStarted)
    }

    pub(crate) fn node_stopped(&self) -> Event {
        self.about_node(Kind::NodeStopped)
    }

    fn about_node(&self, kind: Kind) -> Event {
        let mut fields = self.fields(kind);
        fields.insert("version".to_owned(), env!("CARGO_PKG_VERSION").into());
        Event {
            kind,
            session: None,
            user: String::new(),
            start: None,
            traffic: Traffic::default(),
            json: Value::Object(fields).to_string(),
        }
    }

    /// Returns the event of a record. A refresh is none.
    pub(crate) fn record(&self, record: SessionRecord) -> Option<Event> {
        Some(match record {
            SessionRecord::Started { session, user, tuple, lifetime } => {
                let (none, transport) = (Traffic::default(), tuple.transport);
                let event = self.about(Kind::Started, session, user, transport, Duration::ZERO, none, None);
                Event { start: Some((tuple, lifetime)), ..event }
            }
            SessionRecord::Ended { session, user, transport, duration, traffic, reason } => {
                self.about(Kind::Ended, session, user, transport, duration, traffic, Some(reason))
            }
            SessionRecord::Refreshed { .. } => return None,
        })
    }

    /// Returns the running sums of an allocation.
    pub(crate) fn usage(&self, worker: usize, info: &AllocationInfo) -> Event {
        let session = SessionId { worker, allocation: info.id };
        let (user, transport) = (info.user.clone(), info.tuple.transport);
        self.about(Kind::Usage, session, user, transport, info.age, info.traffic, None)
    }

    /// Returns the event for records that are lost.
    pub(crate) fn lost(&self, lost: &LostRecords) -> Event {
        let mut fields = self.fields(Kind::Lost);
        fields.insert("started".to_owned(), lost.started.into());
        fields.insert("ended".to_owned(), lost.ended.into());
        insert_traffic(&mut fields, &lost.traffic);
        Event {
            kind: Kind::Lost,
            session: None,
            user: String::new(),
            start: None,
            traffic: lost.traffic,
            json: Value::Object(fields).to_string(),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of an event")]
    fn about(
        &self,
        kind: Kind,
        session: SessionId,
        user: String,
        transport: Transport,
        duration: Duration,
        traffic: Traffic,
        reason: Option<EndReason>,
    ) -> Event {
        let mut fields = self.fields(kind);
        fields.insert("session".to_owned(), session.to_string().into());
        fields.insert("user".to_owned(), user.as_str().into());
        fields.insert("key".to_owned(), self.key_of(&user).into());
        fields.insert("transport".to_owned(), transport.as_str().into());
        if kind != Kind::Started {
            let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
            fields.insert("duration_ms".to_owned(), milliseconds.into());
            insert_traffic(&mut fields, &traffic);
        }
        if let Some(reason) = reason {
            fields.insert("cause".to_owned(), reason.as_str().into());
        }
        Event { kind, session: Some(session), user, start: None, traffic, json: Value::Object(fields).to_string() }
    }

    /// Returns the fields of every event.
    fn fields(&self, kind: Kind) -> Map<String, Value> {
        let fields = json!({
            "v": VERSION,
            "type": kind.as_str(),
            "time_ms": clock::unix_milliseconds(),
            "node": self.node,
            "boot": self.boot,
        });
        match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        }
    }
}

fn insert_traffic(fields: &mut Map<String, Value>, traffic: &Traffic) {
    for (name, value) in [
        ("packets_to_peers", traffic.packets_to_peers),
        ("bytes_to_peers", traffic.bytes_to_peers),
        ("packets_to_client", traffic.packets_to_client),
        ("bytes_to_client", traffic.bytes_to_client),
    ] {
        fields.insert(name.to_owned(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn source() -> Source {
        let keys = [("app-", "app"), ("app-test-", "test")].map(|(prefix, name)| (prefix.to_owned(), name.to_owned()));
        Source { node: "fra-1".to_owned(), boot: "b00t".to_owned(), keys: keys.into() }
    }

    fn session() -> SessionId {
        "1-2-3".parse().unwrap()
    }

    #[test]
    fn an_ended_allocation_has_its_final_sums_and_the_key_with_the_longest_prefix() {
        let traffic = Traffic { packets_to_peers: 1, bytes_to_peers: 2, packets_to_client: 3, bytes_to_client: 4 };
        let event = source()
            .record(SessionRecord::Ended {
                session: session(),
                user: "app-test-ann".to_owned(),
                transport: Transport::Tls,
                duration: Duration::from_millis(61_500),
                traffic,
                reason: EndReason::Expired,
            })
            .unwrap();
        let mut fields: Value = serde_json::from_str(&event.json).unwrap();
        assert!(fields["time_ms"].as_u64().unwrap() > 1_700_000_000_000);
        fields.as_object_mut().unwrap().remove("time_ms");
        assert_eq!(
            fields,
            json!({
                "v": 1, "type": "allocation.ended", "node": "fra-1", "boot": "b00t", "session": "1-2-3",
                "user": "app-test-ann", "key": "test", "transport": "tls", "duration_ms": 61_500, "cause": "expired",
                "packets_to_peers": 1, "bytes_to_peers": 2, "packets_to_client": 3, "bytes_to_client": 4,
            })
        );
        assert!(!event.json.contains('\n'));
    }

    /// Returns the names in backticks.
    fn names(text: &str) -> BTreeSet<String> {
        text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    fn keys(event: &Event) -> BTreeSet<String> {
        let fields: Map<String, Value> = serde_json::from_str(&event.json).unwrap();
        fields.into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn the_document_has_each_kind_of_event_with_its_fields_and_each_cause() {
        const DOCUMENT: &str = include_str!("../../../docs/fleet.md");
        let (_, section) = DOCUMENT.split_once("\n## Events\n").unwrap();
        let section = section.split("\n## ").next().unwrap();
        let rows: Vec<Vec<&str>> = section
            .lines()
            .filter_map(|line| Some(line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").collect()))
            .collect();
        let row_of = |name: &str| rows.iter().find(|row| row[0] == format!("`{name}`")).unwrap();
        let described: BTreeSet<String> =
            rows.iter().skip_while(|row| row[0] != "Field").flat_map(|row| names(row[0])).collect();
        let of_every = names("`v` `type` `time_ms` `node` `boot`");
        let sums = names("`packets_to_peers` `bytes_to_peers` `packets_to_client` `bytes_to_client`");
        let about = |kind, reason| {
            let (udp, none) = (Transport::Udp, Traffic::default());
            source().about(kind, session(), "ann".to_owned(), udp, Duration::ZERO, none, reason)
        };
        let events = [
            source().node_started(),
            source().node_stopped(),
            about(Kind::Started, None),
            about(Kind::Usage, None),
            about(Kind::Ended, Some(EndReason::Deleted)),
            source().lost(&LostRecords::default()),
        ];
        for event in &events {
            let fields = row_of(event.kind.as_str())[2];
            let mut expected = &of_every | &names(fields);
            if fields.contains("the same") {
                expected = &expected | &names(row_of("allocation.started")[2]);
            }
            if fields.contains("duration_ms`, the sums") || fields.contains("and the sums") {
                expected = &expected | &sums;
            }
            // The queue adds what identifies the running sums.
            let own = if event.kind == Kind::Lost { &keys(event) | &names("`lost`") } else { keys(event) };
            assert_eq!(own, expected, "{}", event.json);
            assert!(own.is_subset(&described), "{own:?} {described:?}");
        }
        let kinds = rows.iter().take_while(|row| row[0] != "Field").skip(1).map(|row| row[0]);
        assert_eq!(kinds.count(), events.len());
        let operator = crate::turn::Operator::FLEET;
        let causes = [
            EndReason::Deleted,
            EndReason::Expired,
            EndReason::ConnectionClosed,
            EndReason::ServerStopped,
            EndReason::CredentialsRevoked,
            EndReason::CredentialsRemoved,
            EndReason::ListenerRemoved,
            EndReason::RelayAddressGone,
            EndReason::EndedByOperator(operator),
        ];
        // A new reason belongs into the list above.
        match causes[0] {
            EndReason::Deleted | EndReason::Expired | EndReason::ConnectionClosed | EndReason::ServerStopped => {}
            EndReason::CredentialsRevoked | EndReason::CredentialsRemoved | EndReason::ListenerRemoved => {}
            EndReason::RelayAddressGone | EndReason::EndedByOperator(_) => {}
        }
        assert_eq!(names(row_of("cause")[2]), causes.iter().map(|cause| cause.as_str().to_owned()).collect());
    }

    #[test]
    fn a_user_without_a_prefix_has_no_key() {
        let address = "192.0.2.1:1".parse().unwrap();
        let event = source()
            .record(SessionRecord::Started {
                session: session(),
                user: "bob".to_owned(),
                tuple: FiveTuple { transport: Transport::Udp, client: address, server: address },
                lifetime: 600,
            })
            .unwrap();
        let fields: Value = serde_json::from_str(&event.json).unwrap();
        assert_eq!((&fields["key"], &fields["type"]), (&Value::Null, &json!("allocation.started")));
        assert!(fields.get("bytes_to_peers").is_none());
    }
}
