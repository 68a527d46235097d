//! `/v1/sessions`: allocations are listed, described and ended.
//!
//! A worker lists its allocations in pages, one page between two batches of packets, so packets wait for a page and not
//! for the whole listing.

use std::cmp::Reverse;
use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Bytes;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::Api;
use super::query::Query;
use super::refusal::Refusal;
use crate::http::Handler as _;
use crate::privacy::Privacy;
use crate::turn::{AllocationDetail, AllocationId, AllocationInfo, Cursor, Filter, Instant, Operator, Page};
use crate::worker::{SessionId, WorkerEnded};

/// The number of sessions in a response, unless the request has a limit.
const DEFAULT_LIMIT: usize = 100;

/// The greatest limit. A response of that many sessions has about 400 KiB.
const GREATEST_LIMIT: usize = 1_000;

/// The time in which a worker carries out a command, unless it is stalled.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest time over which the rate of a session is measured, in seconds.
const LONGEST_MEASUREMENT: u64 = 10;

/// Where a listing goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    worker: usize,
    cursor: Cursor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it must be the `next` of an earlier response")]
struct NotAPlace;

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.worker, self.cursor.place())
    }
}

impl FromStr for Place {
    type Err = NotAPlace;

    fn from_str(text: &str) -> Result<Self, NotAPlace> {
        let (worker, place) = text.split_once('-').ok_or(NotAPlace)?;
        let (worker, place) = (worker.parse().map_err(|_| NotAPlace)?, place.parse().map_err(|_| NotAPlace)?);
        Ok(Self { worker, cursor: Cursor::from_place(place) })
    }
}

/// The order of a listing of the greatest sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Top {
    Bytes,
    Packets,
    Age,
}

impl FromStr for Top {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "bytes" => Ok(Self::Bytes),
            "packets" => Ok(Self::Packets),
            "age" => Ok(Self::Age),
            _ => Err("it must be bytes, packets or age"),
        }
    }
}

impl Top {
    /// Returns the rank of a session. `start` is when the listing began: its pages are read at different times.
    fn rank(self, info: &AllocationInfo, start: Instant) -> u128 {
        let traffic = &info.traffic;
        match self {
            Self::Bytes => u128::from(traffic.bytes_to_peers) + u128::from(traffic.bytes_to_client),
            Self::Packets => u128::from(traffic.packets_to_peers) + u128::from(traffic.packets_to_client),
            Self::Age => start.since(info.created).as_micros(),
        }
    }
}

/// An allocation with the index of its worker.
type Listed = (usize, AllocationInfo);

impl Api {
    /// Lists sessions.
    pub(super) async fn sessions(&self, request: &Request<Bytes>) -> Result<Value, Refusal> {
        let mut query = Query::of(request);
        let filter = Arc::new(filter(&mut query)?);
        let limit = query.value("limit")?.unwrap_or(DEFAULT_LIMIT);
        let (top, start) = (query.value("top")?, query.value("cursor")?);
        query.finish()?;
        if !(1..=GREATEST_LIMIT).contains(&limit) {
            return Err(Refusal::bad_request(format!("limit must be between 1 and {GREATEST_LIMIT}")));
        }
        let (sessions, next) = match (top, start) {
            (None, start) => self.list(&filter, limit, start.unwrap_or_default()).await?,
            (Some(top), None) => (self.list_top(&filter, limit, top).await?, None),
            (Some(_), Some(_)) => return Err(Refusal::bad_request("a listing with top has no cursor")),
        };
        let sessions: Vec<Value> = sessions.iter().map(|(worker, info)| session(*worker, info)).collect();
        Ok(json!({ "sessions": sessions, "next": next.map(|place| place.to_string()) }))
    }

    async fn list(
        &self,
        filter: &Arc<Filter>,
        limit: usize,
        mut place: Place,
    ) -> Result<(Vec<Listed>, Option<Place>), Refusal> {
        let mut sessions: Vec<Listed> = Vec::new();
        while place.worker < self.workers.len() {
            if sessions.len() >= limit {
                return Ok((sessions, Some(place)));
            }
            let Place { worker, cursor } = place;
            let mut page = self.sessions_page(worker, cursor, filter).await?;
            let room = limit - sessions.len();
            if page.allocations.len() > room {
                page.allocations.truncate(room);
                page.next = page.allocations.last().map(|last| Cursor::after(last.id));
            }
            sessions.extend(page.allocations.into_iter().map(|info| (worker, info)));
            place = match page.next {
                Some(cursor) => Place { worker, cursor },
                None => Place { worker: worker + 1, cursor: Cursor::default() },
            };
        }
        Ok((sessions, None))
    }

    async fn list_top(&self, filter: &Arc<Filter>, limit: usize, top: Top) -> Result<Vec<Listed>, Refusal> {
        let (mut sessions, start): (Vec<Listed>, _) = (Vec::new(), self.now());
        let select = |sessions: &mut Vec<Listed>| {
            sessions.sort_by_key(|(_, info)| Reverse(top.rank(info, start)));
            sessions.truncate(limit);
        };
        for worker in 0..self.workers.len() {
            let mut next = Some(Cursor::default());
            while let Some(cursor) = next {
                let page = self.sessions_page(worker, cursor, filter).await?;
                sessions.extend(page.allocations.into_iter().map(|info| (worker, info)));
                // Not all of them have to be in memory.
                if sessions.len() > 2 * GREATEST_LIMIT {
                    select(&mut sessions);
                }
                next = page.next;
            }
        }
        select(&mut sessions);
        Ok(sessions)
    }

    /// Describes a session, with its rate.
    pub(super) async fn session(&self, id: &str, request: &Request<Bytes>) -> Result<Value, Refusal> {
        let mut query = Query::of(request);
        let seconds = query.value("seconds")?.unwrap_or(1);
        query.finish()?;
        if seconds > LONGEST_MEASUREMENT {
            return Err(Refusal::bad_request(format!("seconds must be at most {LONGEST_MEASUREMENT}")));
        }
        let id = parse(id)?;
        let before = self.describe(id).await?;
        if seconds == 0 {
            return Ok(detail(id, &before, Value::Null));
        }
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let after = self.describe(id).await?;
        let rate = rate(&before.info, &after.info);
        Ok(detail(id, &after, rate))
    }

    async fn describe(&self, id: SessionId) -> Result<AllocationDetail, Refusal> {
        let worker = self.workers.get(id.worker).ok_or_else(|| gone(id))?;
        let described = patiently(id.worker, worker.handle.describe(id.allocation)).await?;
        described.flatten().ok_or_else(|| gone(id))
    }

    /// Ends one session.
    pub(super) async fn end_session(&self, id: &str, operator: Operator) -> Result<Value, Refusal> {
        let id = parse(id)?;
        let mut kick = Kick::new(format!("session {id}"), operator);
        self.end(id.worker, vec![id.allocation], &mut kick).await?;
        match kick.complete() {
            0 => Err(gone(id)),
            ended => Ok(json!({ "ended": ended })),
        }
    }

    /// Ends all sessions that a filter accepts.
    pub(super) async fn end_sessions(&self, request: &Request<Bytes>, operator: Operator) -> Result<Value, Refusal> {
        let mut query = Query::of(request);
        let filter = filter(&mut query)?;
        query.finish()?;
        if filter == Filter::default() {
            return Err(Refusal::bad_request("say which sessions end: with user, client or peer"));
        }
        let mut kick = Kick::new(describe_filter(&filter, &self.privacy()), operator);
        let filter = Arc::new(filter);
        for worker in 0..self.workers.len() {
            let mut next = Some(Cursor::default());
            while let Some(cursor) = next {
                let page = self.sessions_page(worker, cursor, &filter).await?;
                let ids: Vec<AllocationId> = page.allocations.iter().map(|info| info.id).collect();
                if !ids.is_empty() {
                    self.end(worker, ids, &mut kick).await?;
                }
                next = page.next;
            }
        }
        Ok(json!({ "ended": kick.complete() }))
    }

    /// Returns a page of a worker. A worker that has ended has no sessions.
    async fn sessions_page(&self, worker: usize, cursor: Cursor, filter: &Arc<Filter>) -> Result<Page, Refusal> {
        let Some(control) = self.workers.get(worker) else { return Ok(Page::default()) };
        let page = patiently(worker, control.handle.list(cursor, Arc::clone(filter))).await?;
        Ok(page.unwrap_or_default())
    }

    async fn end(&self, worker: usize, ids: Vec<AllocationId>, kick: &mut Kick) -> Result<(), Refusal> {
        let Some(control) = self.workers.get(worker) else { return Ok(()) };
        kick.requested = ids.len();
        kick.ended += patiently(worker, control.handle.end(ids, kick.operator)).await?.unwrap_or_default();
        kick.requested = 0;
        Ok(())
    }
}

/// Waits for a worker; `None` if it has ended.
async fn patiently<T>(
    worker: usize,
    command: impl Future<Output = Result<T, WorkerEnded>>,
) -> Result<Option<T>, Refusal> {
    match tokio::time::timeout(PATIENCE, command).await {
        Ok(result) => Ok(result.ok()),
        Err(_) => Err(Refusal::unavailable(format!("worker {worker} does not respond; the log may say why"))),
    }
}

fn filter(query: &mut Query) -> Result<Filter, Refusal> {
    Ok(Filter { user: query.text("user"), client: query.network("client")?, peer: query.network("peer")? })
}

/// Describes a filter for the log, with the values that the log may show.
fn describe_filter(filter: &Filter, privacy: &Privacy) -> String {
    let Filter { user, client, peer } = filter;
    let shown =
        |what: &str, value: Option<String>| value.map_or_else(|| what.to_owned(), |value| format!("{what} {value}"));
    let network = |net: &IpNet| privacy.network(*net).map(|net| net.to_string());
    let user = user.as_ref().map(|user| shown("user", privacy.user(user).map(|user| format!("{user:?}"))));
    let client = client.as_ref().map(|client| shown("client", network(client)));
    let peer = peer.as_ref().map(|peer| shown("peer", network(peer)));
    [user, client, peer].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn parse(id: &str) -> Result<SessionId, Refusal> {
    id.parse().map_err(|error: crate::worker::NotASessionId| Refusal::bad_request(error.to_string()))
}

fn gone(id: SessionId) -> Refusal {
    Refusal::not_found(format!("there is no session {id}; it may have ended"))
}

/// Sessions that the operator ends. Dropping it logs them, also if the operator does not wait for the response or a
/// worker does not respond.
#[derive(Debug)]
struct Kick {
    filter: String,
    operator: Operator,
    ended: usize,
    /// The sessions that a worker has been asked to end, and whose result is not known yet.
    requested: usize,
    is_complete: bool,
}

impl Kick {
    fn new(filter: String, operator: Operator) -> Self {
        Self { filter, operator, ended: 0, requested: 0, is_complete: false }
    }

    /// Returns the number of sessions that have ended.
    fn complete(mut self) -> usize {
        self.is_complete = true;
        self.ended
    }

    /// Describes what happened.
    fn message(&self) -> String {
        match self {
            Self { is_complete: true, .. } => "the operator ended sessions".to_owned(),
            Self { requested: 0, .. } => {
                "the operator ended sessions; the command was interrupted, so others that it selects may be left"
                    .to_owned()
            }
            Self { requested, .. } => format!(
                "the operator ended sessions; the command was interrupted, so up to {requested} more may have ended, \
                 and others that it selects may be left"
            ),
        }
    }
}

impl Drop for Kick {
    fn drop(&mut self) {
        let Operator { process: pid, user: uid } = self.operator;
        let (filter, ended) = (self.filter.as_str(), self.ended);
        tracing::info!(event = "sessions-ended", filter, ended, uid, pid, "{}", self.message());
    }
}

/// Returns a session as JSON.
pub(super) fn session(worker: usize, info: &AllocationInfo) -> Value {
    let AllocationInfo { id, user, tuple, relay, age, expires_in, traffic, permissions, channels, created: _ } = info;
    json!({
        "id": SessionId { worker, allocation: *id }.to_string(),
        "user": user,
        "client": tuple.client,
        "server": tuple.server,
        "transport": tuple.transport.as_str(),
        "relay": relay.iter().collect::<Vec<_>>(),
        "age": age.as_secs(),
        "expires_in": expires_in,
        "permissions": permissions,
        "channels": channels,
        "packets_to_peers": traffic.packets_to_peers,
        "bytes_to_peers": traffic.bytes_to_peers,
        "packets_to_client": traffic.packets_to_client,
        "bytes_to_client": traffic.bytes_to_client,
    })
}

/// Returns a session with its permissions and channels in place of their numbers.
fn detail(id: SessionId, detail: &AllocationDetail, rate: Value) -> Value {
    let AllocationDetail { info, permissions, channels, drops } = detail;
    let permissions = permissions.iter().map(|(peer, left)| json!({ "peer": peer, "expires_in": left }));
    let channel = |(number, peer, left): &(u16, _, u32)| json!({ "channel": format!("{number:#06x}"), "peer": peer, "expires_in": left });
    let mut value = session(id.worker, info);
    if let Some(fields) = value.as_object_mut() {
        fields.insert("permissions".to_owned(), permissions.collect());
        fields.insert("channels".to_owned(), channels.iter().map(channel).collect());
        let drops = drops.iter().map(|(reason, packets)| (reason.label().to_owned(), Value::from(*packets)));
        fields.insert("drops".to_owned(), Value::Object(drops.collect()));
        fields.insert("rate".to_owned(), rate);
    }
    value
}

/// Returns what was relayed per second between two descriptions of a session.
#[expect(clippy::cast_precision_loss, reason = "a rate has no more than a few significant digits")]
fn rate(before: &AllocationInfo, after: &AllocationInfo) -> Value {
    let seconds = after.age.saturating_sub(before.age).as_secs_f64();
    let (before, after) = (&before.traffic, &after.traffic);
    let per_second = |before: u64, after: u64| {
        let rate = after.saturating_sub(before) as f64 / seconds.max(0.001);
        (rate * 10.0).round() / 10.0
    };
    json!({
        "seconds": (seconds * 10.0).round() / 10.0,
        "packets_to_peers": per_second(before.packets_to_peers, after.packets_to_peers),
        "bytes_to_peers": per_second(before.bytes_to_peers, after.bytes_to_peers),
        "packets_to_client": per_second(before.packets_to_client, after.packets_to_client),
        "bytes_to_client": per_second(before.bytes_to_client, after.bytes_to_client),
    })
}
