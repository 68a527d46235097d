//! `/v1/sessions`: allocations are listed, described and ended.
//!
//! A worker lists its allocations in pages, one page between two batches of packets, so packets wait for a page and not
//! for the whole listing.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Bytes;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::Api;
use super::all::all;
use super::query::Query;
use super::refusal::Refusal;
use crate::http::Handler as _;
use crate::privacy::Privacy;
use crate::turn::{AllocationDetail, AllocationId, AllocationInfo, Cursor, Filter, Instant, Operator, Page};
use crate::worker::{Described, SessionId, WorkerEnded};

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

/// A part of a listing.
#[derive(Debug, Default)]
struct Listing {
    sessions: Vec<Listed>,
    /// Where it goes on, if it does.
    next: Option<Place>,
    /// The workers whose sessions are missing, because they do not respond.
    missing: Vec<usize>,
}

/// A worker is stalled or very busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("worker {0} does not respond; the log may say why")]
struct NotResponding(usize);

impl From<NotResponding> for Refusal {
    fn from(error: NotResponding) -> Self {
        Self::unavailable(error.to_string())
    }
}

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
        let Listing { sessions, next, missing } = match (top, start) {
            (None, start) => self.list(&filter, limit, start.unwrap_or_default()).await,
            (Some(top), None) => self.list_top(&filter, limit, top).await,
            (Some(_), Some(_)) => return Err(Refusal::bad_request("a listing with top has no cursor")),
        };
        let sessions: Vec<Value> = sessions.iter().map(|(worker, info)| session(*worker, info)).collect();
        let next = next.map(|place| place.to_string());
        Ok(json!({ "sessions": sessions, "next": next, "missing_workers": missing }))
    }

    /// Lists the sessions of one worker after the other, because a few workers may fill the response.
    async fn list(&self, filter: &Arc<Filter>, limit: usize, mut place: Place) -> Listing {
        let mut listing = Listing::default();
        while place.worker < self.workers.len() {
            let sessions = &mut listing.sessions;
            if sessions.len() >= limit {
                listing.next = Some(place);
                break;
            }
            let Place { worker, cursor } = place;
            let mut page = self.sessions_page(worker, cursor, filter).await.unwrap_or_else(|NotResponding(worker)| {
                listing.missing.push(worker);
                Page::default()
            });
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
        listing
    }

    async fn list_top(&self, filter: &Arc<Filter>, limit: usize, top: Top) -> Listing {
        let (found, start) = (RefCell::<Vec<Listed>>::default(), self.now());
        let select = |sessions: &mut Vec<Listed>| {
            sessions.sort_by_key(|(_, info)| Reverse(top.rank(info, start)));
            sessions.truncate(limit);
        };
        let collect = async |worker: usize, page: Page| {
            let mut sessions = found.borrow_mut();
            sessions.extend(page.allocations.into_iter().map(|info| (worker, info)));
            // Not all of them have to be in memory.
            if sessions.len() > 2 * GREATEST_LIMIT {
                select(&mut sessions);
            }
            Ok(())
        };
        let missing = self.for_each_page(filter, collect).await;
        let mut sessions = found.into_inner();
        select(&mut sessions);
        Listing { sessions, next: None, missing }
    }

    /// Passes the sessions of all workers, page by page, to `visit`. The workers do not wait for each other. Returns
    /// those that have not responded to all requests.
    async fn for_each_page(
        &self,
        filter: &Arc<Filter>,
        visit: impl AsyncFn(usize, Page) -> Result<(), NotResponding>,
    ) -> Vec<usize> {
        let visit_all = async |worker: usize| {
            let mut next = Some(Cursor::default());
            while let Some(cursor) = next {
                let page = self.sessions_page(worker, cursor, filter).await?;
                next = page.next;
                visit(worker, page).await?;
            }
            Ok(())
        };
        let results: Vec<Result<(), NotResponding>> = all((0..self.workers.len()).map(&visit_all)).await;
        results.into_iter().filter_map(Result::err).map(|NotResponding(worker)| worker).collect()
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
        let rate = rate(&before.detail.info, &after.detail.info);
        Ok(detail(id, &after, rate))
    }

    async fn describe(&self, id: SessionId) -> Result<Described, Refusal> {
        let worker = self.workers.get(id.worker).ok_or_else(|| gone(id))?;
        let described = self.ask(id.worker, worker.handle.describe(id.allocation)).await?;
        described.flatten().ok_or_else(|| gone(id))
    }

    /// Ends one session.
    pub(super) async fn end_session(&self, id: &str, operator: Operator) -> Result<Value, Refusal> {
        let id = parse(id)?;
        let kick = Kick::new(format!("session {id}"), operator);
        let result = self.end(id.worker, vec![id.allocation], &kick).await;
        let missing: Vec<usize> = result.err().map(|NotResponding(worker)| worker).into_iter().collect();
        match kick.complete(&missing) {
            0 if missing.is_empty() => Err(gone(id)),
            ended => Ok(json!({ "ended": ended, "missing_workers": missing })),
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
        let kick = Kick::new(describe_filter(&filter, &self.privacy()), operator);
        let end = async |worker: usize, page: Page| {
            let ids: Vec<AllocationId> = page.allocations.iter().map(|info| info.id).collect();
            if ids.is_empty() { Ok(()) } else { self.end(worker, ids, &kick).await }
        };
        let missing = self.for_each_page(&Arc::new(filter), end).await;
        Ok(json!({ "ended": kick.complete(&missing), "missing_workers": missing }))
    }

    /// Returns a page of a worker. A worker that has ended has no sessions.
    async fn sessions_page(&self, worker: usize, cursor: Cursor, filter: &Arc<Filter>) -> Result<Page, NotResponding> {
        let Some(control) = self.workers.get(worker) else { return Ok(Page::default()) };
        let page = self.ask(worker, control.handle.list(cursor, Arc::clone(filter))).await?;
        Ok(page.unwrap_or_default())
    }

    async fn end(&self, worker: usize, ids: Vec<AllocationId>, kick: &Kick) -> Result<(), NotResponding> {
        let Some(control) = self.workers.get(worker) else { return Ok(()) };
        if self.is_stalled(worker) {
            return Err(NotResponding(worker));
        }
        let requested = ids.len();
        kick.requested.update(|sum| sum + requested);
        let ended = self.ask(worker, control.handle.end(ids, kick.operator)).await?.unwrap_or_default();
        kick.requested.update(|sum| sum - requested);
        kick.ended.update(|sum| sum + ended);
        Ok(())
    }

    /// Waits for the response of a worker; `None` if the worker has ended. A stalled worker is not waited for.
    async fn ask<T>(
        &self,
        worker: usize,
        command: impl Future<Output = Result<T, WorkerEnded>>,
    ) -> Result<Option<T>, NotResponding> {
        if self.is_stalled(worker) {
            return Err(NotResponding(worker));
        }
        let response = tokio::time::timeout(PATIENCE, command).await;
        response.map(Result::ok).map_err(|_| NotResponding(worker))
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
    ended: Cell<usize>,
    /// The sessions that workers have been asked to end, and whose result is not known.
    requested: Cell<usize>,
    /// Why sessions that the command selects may be left; `None` if there are none.
    gap: Option<String>,
}

impl Kick {
    fn new(filter: String, operator: Operator) -> Self {
        let gap = Some("the command was interrupted".to_owned());
        Self { filter, operator, ended: Cell::default(), requested: Cell::default(), gap }
    }

    /// Returns the number of sessions that have ended. `missing` has the workers that do not respond.
    fn complete(mut self, missing: &[usize]) -> usize {
        self.set_gap(missing);
        self.ended.get()
    }

    fn set_gap(&mut self, missing: &[usize]) {
        let workers = missing.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        self.gap = match missing.len() {
            0 => None,
            1 => Some(format!("worker {workers} does not respond")),
            _ => Some(format!("workers {workers} do not respond")),
        };
    }

    /// Describes what happened.
    fn message(&self) -> String {
        match (&self.gap, self.requested.get()) {
            (None, _) if self.ended.get() == 0 => {
                "the operator ended no session, because there is none that the command selects".to_owned()
            }
            (Some(gap), 0) if self.ended.get() == 0 => {
                format!("the operator ended no session; {gap}, so those that it selects may be left")
            }
            (None, _) => "the operator ended sessions".to_owned(),
            (Some(gap), 0) => format!("the operator ended sessions; {gap}, so others that it selects may be left"),
            (Some(gap), requested) => format!(
                "the operator ended sessions; {gap}, so up to {requested} more may have ended, and others that it \
                 selects may be left"
            ),
        }
    }
}

impl Drop for Kick {
    fn drop(&mut self) {
        let Operator { process: pid, user: uid } = self.operator;
        let (filter, ended) = (self.filter.as_str(), self.ended.get());
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
fn detail(id: SessionId, described: &Described, rate: Value) -> Value {
    let AllocationDetail { info, permissions, channels, drops } = &described.detail;
    let permissions = permissions.iter().map(|(peer, left)| json!({ "peer": peer, "expires_in": left }));
    let channels = channels.iter().enumerate().map(|(at, (number, peer, left))| {
        let offload = described.offload.get(at).and_then(Option::as_ref).map(|[to_peer, to_client]| {
            let way = |why: &Option<String>| json!({ "in_kernel": why.is_none(), "why_not": why });
            json!({ "to_peer": way(to_peer), "to_client": way(to_client) })
        });
        json!({ "channel": format!("{number:#06x}"), "peer": peer, "expires_in": left, "offload": offload })
    });
    let mut value = session(id.worker, info);
    if let Some(fields) = value.as_object_mut() {
        fields.insert("permissions".to_owned(), permissions.collect());
        fields.insert("channels".to_owned(), channels.collect());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_of_a_kick_says_what_is_not_known() {
        let kick = |requested: usize| {
            let kick = Kick::new("user \"ann\"".to_owned(), Operator { process: None, user: Some(0) });
            kick.requested.set(requested);
            kick.ended.set(1);
            kick
        };
        let others = "others that it selects may be left";
        let interrupted = "the operator ended sessions; the command was interrupted, so";
        assert_eq!(kick(0).message(), format!("{interrupted} {others}"));
        assert_eq!(kick(7).message(), format!("{interrupted} up to 7 more may have ended, and {others}"));
        for (missing, gap) in
            [(vec![], ""), (vec![1], "worker 1 does not respond"), (vec![0, 2], "workers 0, 2 do not respond")]
        {
            let mut kick = kick(0);
            kick.set_gap(&missing);
            let message = kick.message();
            assert!(if gap.is_empty() { message == "the operator ended sessions" } else { message.contains(gap) });
            kick.ended.set(0);
            let message = kick.message();
            assert!(message.starts_with("the operator ended no session") && message.contains(gap), "{message}");
            // A request whose result is not known may have ended some.
            kick.requested.set(1);
            assert_eq!(kick.message().starts_with("the operator ended sessions; "), !gap.is_empty());
        }
    }
}
