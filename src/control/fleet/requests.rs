//! Requests of the operator for the whole fleet, and changes of the common state.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream::kv::Store;
use futures_util::StreamExt as _;
use hyper::body::Bytes;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use super::agent::Session;
use super::common;
use super::engine::{Bucket, with_source};
use super::orders::{self, StateOrder};
use super::state::{FleetRevocation, FleetSecret, FleetState, REVOKED, SECRET, revocation_key, secret_key};
use crate::clock;

/// The longest time for the responses of all nodes.
const PATIENCE: Duration = Duration::from_secs(3);
/// The interval at which a change looks which nodes use it.
const LOOK: Duration = Duration::from_millis(50);

/// Carries out an order of the operator: `{"order": …, "node": …, "with": {…}}`. Without a node, it is for all.
pub(super) async fn carry_out(session: &Session, order: &Value) -> Result<Value, String> {
    let verb = order.get("order").and_then(Value::as_str).unwrap_or_default();
    let empty = Map::new();
    let arguments = order.get("with").and_then(Value::as_object).unwrap_or(&empty);
    if orders::OF_STATE.contains(&verb) {
        return change_state(session, verb, arguments).await;
    }
    // A wrong order is refused here, not by each node.
    orders::request(verb, arguments)?;
    check_connection(session)?;
    let live: BTreeSet<String> = {
        let (nodes, now) = (session.view.nodes(), session.inputs.now());
        nodes.live(now).map(|beat| beat.name.clone()).collect()
    };
    let (subject, mut waiting) = match order.get("node").and_then(Value::as_str) {
        Some(node) if live.contains(node) => {
            (format!("{}.order.{verb}.node.{node}", session.settings.fleet.name), BTreeSet::from([node.to_owned()]))
        }
        Some(node) => {
            let known = live.into_iter().collect::<Vec<_>>().join(", ");
            return Err(format!("there is no node {}; the nodes are {known}", crate::printable::shown(node)));
        }
        None => (format!("{}.order.{verb}.all", session.settings.fleet.name), live),
    };
    let client = &session.engine.client;
    let inbox = client.new_inbox();
    let mut responses = client.subscribe(inbox.clone()).await.map_err(|error| error.to_string())?;
    let payload = Bytes::from(Value::Object(arguments.clone()).to_string());
    client.publish_with_reply(subject, inbox, payload).await.map_err(|error| error.to_string())?;
    let deadline = Instant::now() + PATIENCE;
    let mut received = Vec::new();
    while !waiting.is_empty()
        && let Ok(Some(message)) = timeout_at(deadline, responses.next()).await
    {
        let Ok(response) = serde_json::from_slice::<Value>(&message.payload) else { continue };
        if let Some(node) = response.get("node").and_then(Value::as_str)
            && waiting.remove(node)
        {
            received.push(response);
        }
    }
    received.sort_by(|one, other| one["node"].as_str().cmp(&other["node"].as_str()));
    Ok(json!({ "responses": received, "missing_nodes": waiting }))
}

fn check_connection(session: &Session) -> Result<(), String> {
    if session.connection.borrow().is_up {
        return Ok(());
    }
    Err("the engine of the fleet cannot be reached; the log says why".to_owned())
}

/// Waits until this node has read the common state.
async fn wait_until_read(session: &Session) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    while !session.is_read.get() {
        if deadline <= Instant::now() {
            return Err("this node has not read the state of the fleet yet: try again".to_owned());
        }
        sleep(LOOK).await;
    }
    Ok(())
}

/// Changes the common state, and waits until all live nodes use it.
pub(super) async fn change_state(
    session: &Session,
    verb: &str,
    arguments: &Map<String, Value>,
) -> Result<Value, String> {
    if !matches!(verb, "secrets") {
        check_connection(session)?;
        wait_until_read(session).await?;
    }
    let now = clock::unix_seconds();
    let grace = session.inputs.published.borrow().snapshot.core.expiry_grace;
    let order = orders::state_order(verb, arguments, now, grace)?;
    let (mut is_new, mut present) = (true, None);
    let revision_of = |key: &str| session.common.borrow().entries.get(key).map(|held| held.revision);
    // Later than what it replaces, whatever the clock of the node says that made that.
    let changed = |key: &str| {
        let known = session.common.borrow().state.entry(key).map_or(0, |(changed, _)| changed.saturating_add(1));
        clock::unix_milliseconds().max(known)
    };
    let (key, entry, mut result) = match order {
        StateOrder::ListSecrets => return Ok(list_secrets(&session.common.borrow().state, now)),
        StateOrder::Revoke(revocation) => {
            let result = json!({ "username": revocation.username, "until": revocation.until });
            let key = revocation_key(&revocation.username);
            let known = session.common.borrow().state.revocation(&key).cloned();
            let is_shortened = known.is_some_and(|known| known.is_shortened || revocation.until < known.until);
            let entry = FleetRevocation { is_shortened, changed: changed(&key), ..revocation }.to_json();
            (key, entry, result)
        }
        StateOrder::EndRevocation(username) => {
            is_new = false;
            if session.common.borrow().state.entry(&revocation_key(&username)).is_none() {
                return Err("the fleet has not revoked this username".to_owned());
            }
            let result = json!({ "username": username, "until": null });
            // It is removed like every other one that has ended.
            let key = revocation_key(&username);
            let entry = FleetRevocation { username, until: now, is_shortened: true, changed: changed(&key) }.to_json();
            (key, entry, result)
        }
        StateOrder::AddSecret(id, secret) => {
            let is_lost = || {
                let common = session.common.borrow();
                common.repairs && common.state.secrets.contains_key(&id)
            };
            // The nodes may have to restore it first.
            if revision_of(&secret_key(&id)).is_some() || is_lost() {
                return Err(format!("there is a secret {id} already: choose another id, or retire that one"));
            }
            let result = json!({ "id": id, "from": secret.from });
            let key = secret_key(&id);
            let entry = FleetSecret { changed: changed(&key), ..secret }.to_json();
            (key, entry, result)
        }
        StateOrder::RetireSecret(id, until) => {
            let known = session.common.borrow().state.secrets.get(&id).cloned();
            let known = known.ok_or_else(|| format!("the fleet has no secret {id}"))?;
            let key = secret_key(&id);
            (is_new, present) = (false, revision_of(&key));
            let result = json!({ "id": id, "until": until });
            let entry = FleetSecret { until: Some(until), changed: changed(&key), ..known }.to_json();
            (key, entry, result)
        }
    };
    if is_new && let Some(why) = session.common.borrow().state.refuses(&key, now) {
        return Err(why);
    }
    let is_further = revision_of(&key).is_none();
    // Secrets have a limit of their own, so that revocations do not take their room.
    if key.starts_with(REVOKED) && is_new && is_further && session.common.borrow().holds_most_revocations() {
        return Err("too many revocations of the fleet were ended within the last day: try again later".to_owned());
    }
    let store = open_known(session).await?;
    let entry = Bytes::from(entry);
    let revision = match present {
        // Another node may have changed it meanwhile.
        Some(revision) => store.update(&key, entry, revision).await.map_err(|error| with_source(&error))?,
        None if is_new && key.starts_with(SECRET) => {
            store.create(&key, entry).await.map_err(|error| with_source(&error))?
        }
        None => store.put(&key, entry).await.map_err(|error| with_source(&error))?,
    };
    let (used, pending) = wait_for(session, session.revision.get().of(revision)).await;
    if let Some(fields) = result.as_object_mut() {
        fields.insert("revision".to_owned(), revision.into());
        fields.insert("nodes".to_owned(), used.into());
        fields.insert("missing_nodes".to_owned(), pending.into());
    }
    Ok(result)
}

/// Opens the bucket of the common state. If the engine has lost it, this node reads it first: a change would hide the loss,
/// and its revision would say nothing about which nodes use it.
async fn open_known(session: &Session) -> Result<Store, String> {
    let store = session.engine.bucket(Bucket::State).await?;
    if common::is_known(session, store.stream.cached_info()) {
        return Ok(store);
    }
    session.is_read.set(false);
    session.reread.notify_one();
    wait_until_read(session).await?;
    let store = session.engine.bucket(Bucket::State).await?;
    if common::is_known(session, store.stream.cached_info()) {
        return Ok(store);
    }
    Err("the engine loses its state again and again: check it".to_owned())
}

/// Waits until all live nodes use a revision of the state. Returns those that do, and the others.
async fn wait_for(session: &Session, revision: u64) -> (Vec<String>, Vec<String>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (mut used, mut pending): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
        {
            let (nodes, now) = (session.view.nodes(), session.inputs.now());
            for beat in nodes.live(now) {
                if beat.state >= revision { &mut used } else { &mut pending }.push(beat.name.clone());
            }
        }
        let is_own_used = used.contains(&session.settings.node);
        if (pending.is_empty() && is_own_used) || deadline <= Instant::now() {
            used.sort_unstable();
            pending.sort_unstable();
            return (used, pending);
        }
        sleep(LOOK).await;
    }
}

/// Returns the secrets without their content.
fn list_secrets(state: &FleetState, now: u64) -> Value {
    let in_use = state.at(now);
    let minting = in_use.mints.then(|| in_use.secrets.first()).flatten();
    let secret = |(id, secret): (&String, &FleetSecret)| {
        json!({
            "id": id,
            "from": secret.from,
            "until": secret.until,
            "accepted": secret.until.is_none_or(|until| until > now),
            "makes_credentials": minting == Some(&secret.secret),
        })
    };
    json!({ "secrets": state.secrets.iter().map(secret).collect::<Vec<_>>() })
}

/// Removes an entry of the bucket, up to a revision of it.
///
/// # Errors
/// If the engine does not do it.
pub(super) async fn purge(session: &Session, key: &str, revision: u64) -> Result<(), String> {
    let bucket = Bucket::State.name(&session.settings.fleet.name);
    let stream = session.engine.jetstream.get_stream_no_info(format!("KV_{bucket}")).await;
    let stream = stream.map_err(|error| with_source(&error))?;
    let purge = stream.purge().sequence(revision + 1).filter(format!("$KV.{bucket}.{key}"));
    purge.await.map(drop).map_err(|error| with_source(&error))
}
