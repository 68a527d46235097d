//! The users of the sample configuration of the engine.

use async_nats::jetstream::consumer::{self, Consumer, pull, push};
use async_nats::jetstream::{self, stream};
use async_nats::{Client, Subscriber};
use futures_util::{FutureExt as _, StreamExt as _};

use super::*;

const SAMPLE: &str = include_str!("../../packaging/nats/nats-server.conf");
/// The prefix of JetStream for billing.
const BILLING_API: &str = "events.API";
/// An entry of the common state that nobody has made.
const FORGED: &str = "$KV.turn_state.secret.forged";

/// Two nodes on an engine with the sample configuration.
struct Sample {
    engine: Engine,
    fleet: Fleet,
    _place: TempDir,
}

fn password(user: &str) -> String {
    let plural = if ["events", "billing"].contains(&user) { "" } else { "s" };
    format!("change-this-password-of-{user}{plural}")
}

impl Sample {
    fn start() -> Self {
        let engine = Engine::start_with(SAMPLE, Some(("events", &password("events"))));
        engine.run(async |jetstream| {
            let (name, subjects) = ("turn_events".to_owned(), vec!["turn.events.>".to_owned()]);
            let config = stream::Config { name, subjects, num_replicas: 3, ..stream::Config::default() };
            let events = jetstream.create_stream(config).await.unwrap();
            let billing = pull::Config { durable_name: Some("billing".to_owned()), ..pull::Config::default() };
            events.create_consumer(billing).await.unwrap();
        });
        let place = TempDir::new();
        let file = place.write("password", &format!("{}\n", password("node")));
        let fleet = Fleet::start(2, "", &format!("user = \"node\"\npassword-file = {file:?}\nlimits = \"fleet\""));
        fleet.wait_for_nodes(2);
        Self { engine, fleet, _place: place }
    }

    fn run_as<T>(&self, user: &str, work: impl AsyncFnOnce(Client, jetstream::Context) -> T) -> T {
        self.engine.run_as(user, &password(user), work)
    }

    /// Returns the response to a request of a user, if there is one.
    fn request(&self, user: &str, subject: &str, payload: &str) -> Option<Value> {
        let (subject, payload) = (subject.to_owned(), payload.to_owned());
        self.run_as(user, async |client, _| {
            let response = client.request(subject, payload.into()).await.ok()?;
            Some(serde_json::from_slice(&response.payload).unwrap())
        })
    }

    /// Returns how many allocations of a user a moderator ends.
    fn kick(&self, user: &str) -> Value {
        let order = format!(r#"{{"user":{user:?}}}"#);
        let response = self.request("moderator", "turn.order.kick.node.node-0", &order).unwrap();
        assert_eq!(response["ok"], true, "{response}");
        response["result"]["ended"].clone()
    }

    /// Returns the last revision of the common state.
    fn revision(&self) -> u64 {
        self.run_as("node", async |_, jetstream| {
            let mut state = jetstream.get_stream("KV_turn_state").await.unwrap();
            state.info().await.unwrap().state.last_sequence
        })
    }

    /// Returns the state of the stream of events.
    fn events(&self) -> stream::State {
        self.engine.run(async |jetstream| {
            let mut events = jetstream.get_stream("turn_events").await.unwrap();
            events.info().await.unwrap().state.clone()
        })
    }

    /// Returns a metric of the first node.
    fn metric(&self, name: &str) -> String {
        let page = Http::unix(&self.fleet.node(0).socket).get("/metrics").body;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap().to_owned()
    }

    fn wait_for_metric(&self, name: &str, wanted: &str) {
        wait(|| {
            let found = self.metric(name);
            if found == wanted { Ok(()) } else { Err(format!("{name} {found}")) }
        });
    }
}

#[test]
fn each_user_of_the_sample_configuration_can_do_what_it_is_for_and_nothing_else() {
    with_engine(|| {
        let sample = Sample::start();
        let node = sample.fleet.node(0);
        let ann = Login::mint("ann", 600);
        let _call = Call::start(0, &ann).unwrap();
        // Everything that a node needs is permitted.
        node.lines(&["--fleet", "revoke", "1999999999:nobody"]);
        sample.wait_for_metric("turnserver_fleet_leases", "1");
        // After a delay of the engine, a node looks for the stream of events.
        let mut refused = sample.engine.violations("node");
        refused.retain(|line| !line.contains("turn_events"));
        assert!(refused.is_empty(), "{refused:?}");
        // Moderators kick and revoke, and operators give every order.
        assert!(sample.request("moderator", "turn.order.drain.all", "").is_none());
        assert!(sample.request("billing", "turn.order.kick.node.node-0", r#"{"user":"ann"}"#).is_none());
        assert_eq!(sample.kick("ann"), 1);
        let result = |user: &str, subject: &str, payload: &str| {
            let response = sample.request(user, subject, payload).unwrap();
            assert_eq!(response["ok"], true, "{subject} {response}");
            response["result"].clone()
        };
        let both = serde_json::json!(["node-0", "node-1"]);
        let bob = Login::mint("bob", 600);
        let order = format!(r#"{{"username":{:?}}}"#, bob.username);
        assert_eq!(result("moderator", "turn.order.revoke", &order)["nodes"], both);
        assert_eq!(Call::start(1, &bob).err(), Some(401));
        let secret = r#"{"id":"new","secret":"a secret of the fleet for tests"}"#;
        assert!(sample.request("moderator", "turn.order.secret-add", secret).is_none());
        assert_eq!(result("operator", "turn.order.secret-add", secret)["nodes"], both);
        assert_eq!(result("operator", "turn.order.secrets", "")["secrets"][0]["id"], "new");
        assert_eq!(result("operator", "turn.order.secret-retire", r#"{"id":"new"}"#)["nodes"], both);
        let wrong = sample.request("operator", "turn.order.secret-retire", r#"{"id":"other"}"#).unwrap();
        assert!(wrong["error"].as_str().unwrap().contains("no secret other"), "{wrong}");
        assert!(result("operator", "turn.order.sessions.node.node-1", "")["sessions"].is_array());
        assert!(result("operator", "turn.order.status.node.node-1", "").is_object());
        assert_eq!(result("operator", "turn.order.drain.node.node-1", "")["draining"], true);
        // Only nodes read the secrets.
        let read = ("$JS.API.STREAM.MSG.GET.KV_turn_state", r#"{"seq":1}"#);
        for user in ["moderator", "operator"] {
            assert!(sample.request(user, read.0, read.1).is_none(), "{user}");
        }
        for user in ["billing", "events"] {
            let response = sample.request(user, read.0, read.1).unwrap();
            assert!(response["error"].is_object(), "{user} {response}");
        }
        // Billing reads the events.
        let mut events = Vec::new();
        wait(|| {
            events.extend(read_as_billing(&sample));
            let kinds = engine::kinds(&events);
            let count = |kind: &str| kinds.get(kind).copied();
            let counts = (count("allocation.started"), count("allocation.ended"), unacknowledged(&sample));
            if counts == (Some(1), Some(1), 0) { Ok(()) } else { Err(format!("{counts:?} {kinds:?}")) }
        });
        only_reads(&sample);
    });
}

/// Reads and acknowledges events as billing does.
fn read_as_billing(sample: &Sample) -> Vec<Value> {
    sample.run_as("billing", async |client, _| {
        let jetstream = jetstream::with_prefix(client.clone(), BILLING_API);
        let billing: Consumer<pull::Config> =
            jetstream.get_consumer_from_stream("billing", "turn_events").await.unwrap();
        let mut batch = billing.fetch().max_messages(1_000).messages().await.unwrap();
        let mut events = Vec::new();
        while let Some(message) = batch.next().await {
            let message = message.unwrap();
            message.ack().await.unwrap();
            events.push(serde_json::from_slice(&message.payload).unwrap());
        }
        // The acknowledgements are on their way before the response to this.
        billing.get_info().await.unwrap();
        events
    })
}

/// Returns how many events billing has read and not acknowledged.
fn unacknowledged(sample: &Sample) -> usize {
    sample.engine.run(async |jetstream| {
        let events = jetstream.get_stream("turn_events").await.unwrap();
        events.consumer_info("billing").await.unwrap().num_ack_pending
    })
}

/// Billing can neither create nor delete consumers, nor let JetStream write for it.
fn only_reads(sample: &Sample) {
    let (revision, events) = (sample.revision(), sample.events());
    sample.run_as("billing", async |client, jetstream| {
        for jetstream in [jetstream, jetstream::with_prefix(client.clone(), BILLING_API)] {
            let push = push::Config {
                name: Some("push".to_owned()),
                deliver_subject: "$KV.turn_state.secret.x".to_owned(),
                ..push::Config::default()
            };
            jetstream.create_consumer_on_stream(push, "turn_events").await.unwrap_err();
            jetstream.delete_consumer_from_stream("billing", "turn_events").await.map(drop).unwrap_err();
        }
        let next = format!("{BILLING_API}.CONSUMER.MSG.NEXT.turn_events.billing");
        for reply in [FORGED, "$JS.API.STREAM.DELETE.turn_events", "$JS.API.STREAM.PURGE.turn_events"] {
            for _ in 0..3 {
                client.publish_with_reply(next.clone(), reply, r#"{"batch":1,"no_wait":true}"#.into()).await.unwrap();
            }
        }
        round_trip("billing", &client).await;
    });
    let consumers: Vec<consumer::Info> = sample.engine.run(async |jetstream| {
        let events = jetstream.get_stream("turn_events").await.unwrap();
        events.consumers().map(Result::unwrap).collect().await
    });
    assert_eq!(consumers.iter().map(|consumer| consumer.name.as_str()).collect::<Vec<_>>(), ["billing"]);
    assert_eq!((sample.revision(), sample.events().first_sequence), (revision, events.first_sequence));
}

#[test]
fn no_other_user_receives_what_the_engine_delivers_to_nodes() {
    with_engine(|| {
        let sample = Sample::start();
        const SUBJECTS: [&str; 4] = ["_INBOX.>", "_INBOX_turn_node.>", "$KV.>", "turn.>"];
        let mut spies: Vec<(&str, Client, Vec<Subscriber>)> = Vec::new();
        for user in ["moderator", "operator", "billing", "events"] {
            let (client, subscribers) = sample.run_as(user, async |client, _| {
                let mut subscribers = Vec::new();
                for subject in SUBJECTS {
                    subscribers.push(client.subscribe(subject).await.unwrap());
                }
                round_trip(user, &client).await;
                (client, subscribers)
            });
            spies.push((user, client, subscribers));
        }
        // The node that starts reads the whole state, and both read the change.
        let mut fleet = sample.fleet;
        fleet.kill(1);
        fleet.restart(1);
        fleet.wait_for_nodes(2);
        let new = fleet.directory.write("secret", "a secret of the fleet for tests\n");
        fleet.node(0).lines(&["--fleet", "secret", "add", "--id", "new", "--file", new.to_str().unwrap()]);
        for (user, client, subscribers) in &mut spies {
            sample.engine.wait_for(round_trip(user, client));
            for (subject, subscriber) in SUBJECTS.iter().zip(subscribers) {
                // The stream of events is the account of `events`.
                let received = sample.engine.wait_for(async { subscriber.next().now_or_never().flatten() });
                let received =
                    received.filter(|message| *user != "events" || !message.subject.starts_with("turn.events."));
                assert!(received.is_none(), "{user} {subject} {received:?}");
            }
        }
    });
}

/// Waits until the engine has sent everything that it had for a user before.
async fn round_trip(user: &str, client: &Client) {
    let (subject, payload) = match user {
        "billing" => ("events.API.CONSUMER.INFO.turn_events.billing", ""),
        "events" => ("$JS.API.INFO", ""),
        // Refused by a node.
        _ => ("turn.order.kick.node.node-0", "[]"),
    };
    client.request(subject, payload.into()).await.unwrap();
}

#[test]
fn an_order_with_a_reply_subject_that_is_no_inbox_changes_nothing() {
    with_engine(|| {
        let sample = Sample::start();
        let ann = Login::mint("ann", 600);
        let mut call = Call::start(0, &ann).unwrap();
        let revision = sample.revision();
        const SUBJECTS: [&str; 4] =
            [FORGED, "$JS.API.STREAM.PURGE.KV_turn_state", "turn.events.x", "turn.order.kick.node.node-0"];
        sample.run_as("moderator", async |client, _| {
            for reply in SUBJECTS {
                let (order, payload) = ("turn.order.kick.node.node-0", r#"{"user":"ann"}"#);
                client.publish_with_reply(order, reply, payload.into()).await.unwrap();
            }
            client.flush().await.unwrap();
        });
        sample.wait_for_metric("turnserver_fleet_malformed_messages_total", &SUBJECTS.len().to_string());
        call.exchange(100);
        assert_eq!(sample.kick("ann"), 1);
        assert_eq!(sample.revision(), revision);
        let subjects = sample.engine.events();
        assert!(subjects.iter().all(|event| event["type"].is_string()), "{subjects:?}");
    });
}

#[test]
fn a_user_of_a_node_can_neither_purge_nor_delete_the_events() {
    with_engine(|| {
        let sample = Sample::start();
        let before = wait(|| {
            let events = sample.events();
            if events.messages >= 2 { Ok(events) } else { Err(format!("{events:?}")) }
        });
        sample.run_as("node", async |client, jetstream| {
            jetstream.delete_stream("turn_events").await.map(drop).unwrap_err();
            client.request("$JS.API.STREAM.PURGE.turn_events", "".into()).await.unwrap_err();
            // JetStream sends a response to any subject.
            let (purge, delete) = ("$JS.API.STREAM.PURGE.turn_events", "$JS.API.STREAM.DELETE.turn_events");
            let event = r#"{"type":"node.started"}"#;
            client.publish_with_reply("turn.events.node.started.x", purge, event.into()).await.unwrap();
            let missing = "$JS.API.DIRECT.GET.KV_turn_state.$KV.turn_state.secret.none";
            client.publish_with_reply(missing, delete, "".into()).await.unwrap();
            for subject in [purge, delete] {
                let push =
                    push::OrderedConfig { deliver_subject: subject.to_owned(), ..push::OrderedConfig::default() };
                let _ = jetstream.create_consumer_on_stream(push, "KV_turn_nodes").await;
            }
            // Its own event comes after what it has tried.
            jetstream.publish("turn.events.node.started.y", event.into()).await.unwrap().await.unwrap();
        });
        // Two heartbeats would have gone to the consumers.
        let beats = |sample: &Sample| {
            sample.metric("turnserver_fleet_heartbeats_total{result=\"stored\"}").parse::<u64>().unwrap()
        };
        let first = beats(&sample);
        wait(|| if beats(&sample) >= first + 2 { Ok(()) } else { Err("no heartbeat".to_owned()) });
        let after = sample.events();
        assert_eq!((after.first_sequence, after.messages >= before.messages + 2), (1, true), "{before:?} {after:?}");
    });
}
