//! Users of a user database, whose keys the core does not have.
//!
//! The core keeps what the database has said in a cache. If it does not know a user, or no longer, it sets the request
//! aside, and asks for a look-up ([`Action::LookUp`]). The shell reports the result with [`Server::looked_up`], and lets
//! the core decide about the requests again ([`Server::next_resumed`], [`Server::resume`]). No request waits for longer
//! than the time limit.
//!
//! The client of an allocation goes on with the key of its allocation. Only its Refresh needs the database, and ends the
//! allocation if the database has another key or none.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::contract::{Action, Context, FiveTuple, FromClient};
use super::outcome::DropReason;
use super::rate::Rate;
use super::server::Server;
use super::shared::ledger::Ledger;
use super::shared::snapshot::UserDatabase;
use super::tables::user_cache::{Known, UserCache};
use super::tables::waiting::{ResumedRequest, Waited, WaitingRequests};
use super::time::{Deadline, Instant};
use crate::auth::{AuthFailure, Authenticator, Identity, LongTermKey};
use crate::ip_fields::IpFields;
use crate::stun::Message;

/// RFC 8489 §14.3: fewer than 509 bytes.
const LONGEST_USERNAME: usize = 508;
/// If the integrity does not match the key that is known, the key may have changed since. The database is asked again
/// after this time.
const RECHECK: Duration = Duration::from_secs(5);

/// The user database did not respond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatabaseUnavailable;

/// What the user database says about a username: its key, or that it does not have the user.
pub type DatabaseReply = Result<Option<LongTermKey>, DatabaseUnavailable>;

/// What a worker knows about the users of the database.
#[derive(Debug)]
pub(crate) struct DatabaseUsers {
    cache: UserCache,
    waiting: WaitingRequests,
    /// The result for the request that is being resumed.
    resuming: Option<Waited>,
}

/// A request of a user about whom the configuration does not decide.
pub(crate) struct Asked<'a> {
    pub(crate) username: &'a str,
    /// The identity of the client's allocation, if the request may be of it and it is of the database.
    pub(crate) own: Option<&'a Rc<Identity>>,
    pub(crate) is_refresh: bool,
}

/// The result for a request.
pub(crate) enum Verdict {
    Authenticated(Rc<Identity>),
    /// The request has the key of its allocation, which the database no longer has.
    Removed(Rc<Identity>),
    Failed(AuthFailure),
    /// The database has to be asked.
    Unknown,
}

impl DatabaseUsers {
    pub(crate) fn new(settings: Option<&UserDatabase>) -> Self {
        Self { cache: UserCache::new(settings), waiting: WaitingRequests::default(), resuming: None }
    }

    /// Uses other settings. What another database has said is forgotten.
    pub(crate) fn reconfigure(&mut self, before: Option<&UserDatabase>, settings: Option<&UserDatabase>) {
        let of = |settings: Option<&UserDatabase>| settings.map(|it| (Arc::clone(&it.source), it.cached_users));
        if of(before) != of(settings) {
            self.cache = UserCache::new(settings);
        }
        if settings.is_none() {
            self.waiting.abandon_all();
        }
    }

    /// Authenticates a request.
    pub(crate) fn authenticate(
        &mut self,
        now: Instant,
        authenticator: &Authenticator,
        asked: &Asked<'_>,
        matches: &mut dyn FnMut(&LongTermKey) -> bool,
    ) -> Verdict {
        let Asked { username, own, is_refresh } = *asked;
        if let Some(own) = own.filter(|_| !is_refresh)
            && matches(own.key())
        {
            return Verdict::Authenticated(Rc::clone(own));
        }
        let fail = |failure, matches: &mut dyn FnMut(&LongTermKey) -> bool| {
            authenticator.try_dummy_key(matches);
            Verdict::Failed(failure)
        };
        if username.is_empty() || username.len() > LONGEST_USERNAME {
            return fail(AuthFailure::UnknownToDatabase, matches);
        }
        let known = self.cache.get(username, now, self.resuming == Some(Waited::Unavailable));
        match known {
            Some(Known::User { identity, age }) => {
                let own_same = own.filter(|own| own.key() == identity.key());
                if matches(identity.key()) {
                    return Verdict::Authenticated(Rc::clone(own_same.unwrap_or(&identity)));
                }
                if self.resuming.is_none() && age >= RECHECK {
                    return Verdict::Unknown;
                }
                match own.filter(|own| own_same.is_none() && matches(own.key())) {
                    Some(own) => Verdict::Removed(Rc::clone(own)),
                    None => Verdict::Failed(AuthFailure::WrongDatabaseKey),
                }
            }
            Some(Known::Absent) => match own.filter(|own| matches(own.key())) {
                Some(own) => Verdict::Removed(Rc::clone(own)),
                None => fail(AuthFailure::UnknownToDatabase, matches),
            },
            None if self.resuming.is_some() => Verdict::Failed(AuthFailure::DatabaseUnavailable),
            None => Verdict::Unknown,
        }
    }

    /// Authenticates a request with what is known, because the database cannot be asked.
    pub(crate) fn authenticate_without(
        &mut self,
        now: Instant,
        authenticator: &Authenticator,
        asked: &Asked<'_>,
        matches: &mut dyn FnMut(&LongTermKey) -> bool,
    ) -> Verdict {
        let resuming = self.resuming.replace(Waited::Unavailable);
        let verdict = self.authenticate(now, authenticator, asked, matches);
        self.resuming = resuming;
        verdict
    }

    /// Sets a request aside. Returns whether the database has to be asked; the error is why the request cannot wait.
    pub(crate) fn set_aside(
        &mut self,
        now: Instant,
        settings: &UserDatabase,
        ledger: &Ledger,
        username: &str,
        tuple: &FiveTuple,
        message: &Message<'_>,
    ) -> Result<bool, CannotWait> {
        if self.waiting.contains(tuple, message.transaction_id()) {
            return Err(CannotWait::Dropped(DropReason::LookupPending));
        }
        // Each request is charged, so that one source cannot take all places.
        if !ledger.sources.admit_lookup(tuple.client.ip(), settings.lookups_per_second_per_source, now) {
            return Err(CannotWait::Dropped(DropReason::LookupLimit));
        }
        if !self.waiting.have_room(message.as_bytes()) {
            return Err(CannotWait::Unavailable);
        }
        let asks = !self.waiting.is_asked(username);
        let rate = Rate::new(settings.lookups_per_second, settings.lookups_per_second);
        if asks && rate.is_some_and(|rate| !ledger.lookups.take(&rate, now, 1)) {
            return Err(CannotWait::Unavailable);
        }
        let deadline = Deadline::after(now, settings.time_limit);
        self.waiting.push(username, tuple, message.transaction_id(), message.as_bytes(), deadline);
        Ok(asks)
    }

    /// Ends the wait of the requests of a client whose connection has ended.
    pub(crate) fn abandon(&mut self, tuple: &FiveTuple) {
        self.waiting.abandon(tuple);
    }
}

/// Why a request cannot wait for the database.
pub(crate) enum CannotWait {
    Dropped(DropReason),
    /// As if the database did not respond.
    Unavailable,
}

impl Server {
    /// Reports what a database has said about a username: its key, or that it does not have the user.
    pub fn looked_up(&mut self, now: Instant, source: &str, username: &str, result: DatabaseReply) {
        let Some(settings) = &self.snapshot.database else { return };
        if *settings.source != *source {
            // Another configuration has another database.
            if self.database.waiting.is_asked(username) {
                self.actions.push_back(Action::LookUp(username.into()));
            }
            return;
        }
        let waited = match result {
            Ok(key) => {
                self.database.cache.insert(settings, username, key, now);
                Waited::Known
            }
            Err(DatabaseUnavailable) => {
                self.database.cache.postpone(username, now);
                Waited::Unavailable
            }
        };
        self.database.waiting.end(username, waited);
    }

    /// Returns the next request whose wait for the database has ended. The caller lets the core decide about it again with
    /// [`resume`](Self::resume).
    pub fn next_resumed(&mut self, now: Instant) -> Option<ResumedRequest> {
        while let Some(username) = self.database.waiting.overdue(now).map(str::to_owned) {
            self.database.cache.postpone(&username, now);
            self.database.waiting.end(&username, Waited::Unavailable);
        }
        self.database.waiting.pop()
    }

    /// Returns when [`next_resumed`](Self::next_resumed) returns a request, unless the database responds before; `None` if
    /// no request waits.
    #[must_use]
    pub fn resumes_at(&self) -> Option<Deadline> {
        self.database.waiting.until()
    }

    /// Decides about a request that has waited, as [`client_packet`](Self::client_packet) does.
    pub fn resume(&mut self, cx: &mut Context<'_>, request: &ResumedRequest, response: &mut [u8]) -> FromClient {
        if request.waited == Waited::Abandoned {
            return FromClient::Drop(DropReason::LookupAbandoned);
        }
        self.database.resuming = Some(request.waited);
        let decision = self.decide(cx, &request.tuple, &request.packet, IpFields::default(), response);
        self.database.resuming = None;
        decision
    }

    /// Ends the wait of all requests, because the server stops. [`next_resumed`](Self::next_resumed) returns them.
    pub(crate) fn abandon_waiting(&mut self) {
        self.database.waiting.abandon_all();
    }
}
