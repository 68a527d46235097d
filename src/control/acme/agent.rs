//! Decides when a certificate is ordered, and orders it.

use std::sync::Arc;
use std::time::Duration;

use instant_acme::Account;
use tokio::sync::watch;

use super::account::{account, new_account};
use super::back_off::BackOff;
use super::challenges::ChallengeSender;
use super::client::Client;
use super::failure::{Failure, Kind, text};
use super::order::{Issued, Request};
use super::schedule::{self, HOUR, MINUTE, Window};
use super::status::{Published, State, Status};
use super::store::{Store, StoredCertificate};
use super::{Settings, ari, same_names};
use crate::auth::HumanSeconds;
use crate::clock;
use crate::config::{Acme, AcmeChallenge};
use crate::control::random;
use crate::net::tls::{self, date};
use crate::setting::TLS_ACME;

/// The longest sleep in seconds. The clock may be set meanwhile.
const LONGEST_SLEEP: u64 = 10;

/// The greatest difference, in seconds, between the clocks of this machine and of the authority at which a certificate is
/// ordered. A greater one would make the new certificate seem expired, or not yet valid.
const MAX_SKEW: u64 = HOUR;

/// How often an order is begun if the authority refuses nonces. The library tries each request three times.
const NONCE_TRIES: u32 = 3;

/// The longest time for one order.
const ORDER_TIME: Duration = Duration::from_secs(600);

/// Orders certificates.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) settings: watch::Receiver<Option<Arc<Settings>>>,
    pub(super) sender: ChallengeSender,
    pub(super) published: watch::Sender<Published>,
    /// Whether the operator has loaded the next settings: those of a start may be one of many after crashes.
    pub(super) is_reloaded: bool,
}

/// What a message from control changes.
enum Change {
    /// The settings are the same: the operator has reloaded the configuration.
    None,
    /// There are others, or none.
    Settings,
    /// Control has ended.
    End,
}

impl Agent {
    /// Runs until control ends.
    pub(super) async fn run(mut self) {
        let mut earlier: Option<Managed> = None;
        loop {
            let settings = self.settings.borrow_and_update().clone();
            let is_reloaded = std::mem::replace(&mut self.is_reloaded, true);
            let Some(settings) = settings else {
                earlier = None;
                self.published.send_modify(|published| published.status = None);
                if self.settings.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let mut certificate = match earlier.take() {
                Some(earlier) => earlier.with(settings),
                None => Managed::new(settings, self.sender.clone(), is_reloaded),
            };
            if !self.follow(&mut certificate).await {
                return;
            }
            earlier = Some(certificate);
        }
    }

    /// Follows the settings of a certificate until there are others. Returns `false` if control has ended.
    async fn follow(&mut self, certificate: &mut Managed) -> bool {
        let settings = Arc::clone(&certificate.settings);
        let last_success = self.published.borrow().status.as_ref().and_then(|before| before.last_success);
        certificate.last_success = certificate.last_success.or(last_success);
        let mut is_announced = false;
        loop {
            let now = clock::unix_seconds();
            certificate.follow_clock(now);
            if let Err(failure) = certificate.prepare(now) {
                certificate.record_closed(failure, now);
                self.published.send_modify(|published| published.failed += 1);
            }
            let due = certificate.due(now);
            if due > now {
                self.publish(certificate.status(due));
                if !std::mem::replace(&mut is_announced, true) && certificate.back_off.failures == 0 {
                    certificate.log_waiting(due);
                }
                if certificate.wants_suggestion(now) {
                    tokio::select! {
                        change = other_settings(&mut self.settings, &settings) => {
                            return !matches!(change, Change::End);
                        }
                        () = certificate.ask(now) => continue,
                    }
                }
                let sleep = Duration::from_secs((due - now).min(LONGEST_SLEEP));
                tokio::select! {
                    change = change(&mut self.settings, &settings) => match change {
                        Change::None => certificate.retry(),
                        Change::Settings => return true,
                        Change::End => return false,
                    },
                    () = tokio::time::sleep(sleep) => {}
                }
                continue;
            }
            is_announced = true;
            self.publish(certificate.status(due));
            let challenge = certificate.challenge();
            let mut is_reloaded = false;
            let result = tokio::select! {
                // A certificate that is no longer wanted is not ordered.
                change = end_of_order(&mut self.settings, &settings, challenge, &mut is_reloaded) => {
                    // The order has ended without its last step, and it is not a failure.
                    certificate.keep_back_off();
                    if matches!(change, Change::End) {
                        return false;
                    }
                    self.sender.publish(Arc::default()).await;
                    return true;
                }
                result = tokio::time::timeout(ORDER_TIME, certificate.order()) => result,
            };
            let result = result.unwrap_or_else(|_| Err(Failure::new("the authority did not issue it in time")));
            if result.is_err() {
                self.sender.publish(Arc::default()).await;
            }
            let succeeded = result.is_ok();
            certificate.record(result, clock::unix_seconds());
            if is_reloaded {
                // The operator may have removed the cause of the failure meanwhile.
                certificate.retry();
            }
            self.published.send_modify(
                |published| {
                    if succeeded { published.succeeded += 1 } else { published.failed += 1 }
                },
            );
            if self.settings.borrow().as_ref() != Some(&settings) {
                return true;
            }
        }
    }

    fn publish(&self, status: Status) {
        self.published.send_modify(|published| published.status = Some(status));
    }
}

/// Waits for the next message from control. Cancel-safe.
async fn change(settings: &mut watch::Receiver<Option<Arc<Settings>>>, present: &Settings) -> Change {
    if settings.changed().await.is_err() {
        return Change::End;
    }
    let is_same = settings.borrow_and_update().as_deref() == Some(present);
    if is_same { Change::None } else { Change::Settings }
}

/// Waits until control wants something else.
async fn other_settings(settings: &mut watch::Receiver<Option<Arc<Settings>>>, present: &Settings) -> Change {
    loop {
        match change(settings, present).await {
            // It is about a failure, and there is none.
            Change::None => {}
            other => return other,
        }
    }
}

/// Waits until control no longer wants a running order with this challenge. Sets `is_reloaded` if the operator reloads the
/// configuration meanwhile.
async fn end_of_order(
    settings: &mut watch::Receiver<Option<Arc<Settings>>>,
    begun: &Settings,
    challenge: AcmeChallenge,
    is_reloaded: &mut bool,
) -> Change {
    loop {
        match change(settings, begun).await {
            Change::None => {}
            // Listeners that were opened or closed do not matter.
            Change::Settings
                if settings.borrow().as_ref().is_some_and(|settings| settings.permits(begun, challenge)) => {}
            other => return other,
        }
        *is_reloaded = true;
    }
}

/// The certificate that some settings want.
struct Managed {
    settings: Arc<Settings>,
    sender: ChallengeSender,
    /// `None` until the state directory could be opened.
    store: Option<Store>,
    /// The certificate in the state directory, if it is the one that the settings want.
    certificate: Option<StoredCertificate>,
    /// A certificate that could not be written. It is not ordered again.
    unsaved: Option<Issued>,
    /// The wait after failures.
    back_off: BackOff,
    /// Whether the failures are about opening the state directory.
    is_closed: bool,
    /// Whether the operator wants an order at once, as soon as the state directory is open.
    is_reloaded: bool,
    /// The failures since the last success or reload: each one moves on to the next challenge.
    tried: usize,
    /// No certificate is ordered earlier.
    not_before: u64,
    /// What the authority suggests, and when it is asked again.
    suggested: Option<Window>,
    ask_at: u64,
    /// Spreads the orders of many servers: between 0 and 1.
    fraction: f64,
    /// Whether the account has been made anew. That happens once.
    account_renewed: bool,
    last_success: Option<u64>,
}

impl Managed {
    fn new(settings: Arc<Settings>, sender: ChallengeSender, is_reloaded: bool) -> Self {
        Self {
            settings,
            sender,
            store: None,
            certificate: None,
            unsaved: None,
            back_off: BackOff::default(),
            is_closed: false,
            is_reloaded,
            tried: 0,
            not_before: 0,
            suggested: None,
            ask_at: 0,
            fraction: random::fraction(),
            account_renewed: false,
            last_success: None,
        }
    }

    /// Follows other settings, which the operator has loaded. If they want the same certificate from the same authority,
    /// what is known about it stays known.
    fn with(mut self, settings: Arc<Settings>) -> Self {
        let (old, new) = (&self.settings.acme, &settings.acme);
        if old.directory != new.directory || !same_names(&old.domains, &new.domains) {
            return Self::new(settings, self.sender, true);
        }
        if old.state_directory != new.state_directory {
            (self.store, self.certificate) = (None, None);
        }
        self.settings = settings;
        self.account_renewed = false;
        self.retry();
        self
    }

    fn acme(&self) -> &Acme {
        &self.settings.acme
    }

    /// Brings the times of waits into reach, in case that the clock was ahead when they were chosen.
    fn follow_clock(&mut self, now: u64) {
        self.back_off.follow_clock(now);
        self.not_before = self.not_before.min(now + schedule::LONGEST_INTERVAL);
        self.ask_at = self.ask_at.min(now + schedule::LONGEST_ARI_INTERVAL);
    }

    /// Opens the state directory if it is not open, and reads it.
    fn prepare(&mut self, now: u64) -> Result<(), Failure> {
        if self.store.is_some() || self.is_closed && self.due(now) > now {
            return Ok(());
        }
        let store = Store::open(self.acme())?;
        self.read_certificate(&store)?;
        if std::mem::take(&mut self.is_closed) {
            (self.back_off, self.tried) = (BackOff::default(), 0);
        }
        if self.back_off.failures == 0
            && let Some(back_off) = store.back_off(self.acme())
        {
            self.continue_wait(back_off, now);
        }
        (self.store, self.is_reloaded) = (Some(store), false);
        Ok(())
    }

    /// Continues a wait that began before the start. Only a reload ends it: a start may be one of many after crashes.
    fn continue_wait(&mut self, back_off: BackOff, now: u64) {
        let failed_at = back_off.last_error.as_ref().map_or(0, |(at, _)| *at);
        // The server ended after it had written the certificate.
        if self.certificate.as_ref().is_some_and(|own| own.written >= failed_at) {
            return;
        }
        self.tried = usize::try_from(back_off.failures).unwrap_or_default();
        self.back_off = back_off;
        if self.is_reloaded {
            self.retry();
        }
        self.follow_clock(now);
        if self.back_off.retry_at > now {
            tracing::warn!(
                event = "acme-back-off",
                names = self.acme().domains.join(", "),
                directory = self.acme().directory,
                error = self.back_off.last_error.as_ref().map(|(_, error)| error.as_str()).unwrap_or_default(),
                failures = self.back_off.failures,
                next = date(self.back_off.retry_at),
                "the last order failed before the start. The server tries again in {}{}",
                HumanSeconds(self.back_off.retry_at - now),
                self.or_earlier()
            );
        }
    }

    /// Returns what else ends a wait after a failure, as the end of a sentence.
    fn or_earlier(&self) -> &'static str {
        if self.back_off.is_demanded() { ", as the authority demands" } else { ", or at a reload" }
    }

    /// Returns whether it is time to ask the authority when it suggests to renew the certificate.
    fn wants_suggestion(&self, now: u64) -> bool {
        self.certificate.is_some() && self.back_off.failures == 0 && now >= self.ask_at
    }

    fn read_certificate(&mut self, store: &Store) -> Result<(), Failure> {
        self.certificate = store.certificate()?.filter(|stored| stored.fits(self.acme()));
        if let Some(stored) = &self.certificate {
            self.last_success = self.last_success.or(Some(stored.written));
            let next = stored.written.saturating_add(schedule::shortest_interval(stored.validity));
            self.not_before = self.not_before.max(next);
        }
        Ok(())
    }

    /// Asks the authority when it suggests to renew the certificate.
    async fn ask(&mut self, now: u64) {
        self.ask_at = now + schedule::ARI_INTERVAL;
        let Some(certificate) = &self.certificate else { return };
        let acme = self.acme();
        let asked = match Client::new(acme.directory_ca.as_deref()) {
            Ok(client) => ari::ask(&client, &acme.directory, &certificate.der).await,
            Err(failure) => Err(failure),
        };
        match asked {
            Ok(suggestion) => {
                let is_new = suggestion.window != self.suggested;
                self.suggested = suggestion.window;
                self.ask_at = now + schedule::ari_interval(suggestion.ask_again);
                // RFC 9773 §4.2: the operator should see it.
                if let Some(explanation) = suggestion.explanation.filter(|_| is_new) {
                    tracing::info!(
                        event = "acme-renewal-suggested",
                        names = self.acme().domains.join(", "),
                        next = date(self.due(now)),
                        explanation,
                        "the authority explains when the certificate is to be renewed"
                    );
                }
            }
            // The certificate is renewed in time without it.
            Err(error) => tracing::debug!(
                event = "acme-renewal-info", %error, "the authority did not say when it suggests to renew the certificate"
            ),
        }
    }

    /// Returns when a certificate has to be ordered.
    fn due(&self, now: u64) -> u64 {
        if self.back_off.failures > 0 {
            return self.back_off.retry_at;
        }
        match &self.certificate {
            Some(certificate) if now <= certificate.validity.to => {
                schedule::renewal(certificate.validity, self.suggested, self.fraction).max(self.not_before)
            }
            _ => now.max(self.not_before),
        }
    }

    /// Makes the next order at once, unless the authority has chosen another time.
    fn retry(&mut self) {
        self.tried = 0;
        self.back_off.end();
        self.is_reloaded = self.store.is_none();
    }

    /// Writes the wait after failures as it is.
    fn keep_back_off(&self) {
        let Some(Err(failure)) = self.store.as_ref().map(|store| store.keep_back_off(&self.back_off, self.acme()))
        else {
            return;
        };
        tracing::warn!(
            event = "acme-back-off-unsaved",
            error = failure.message,
            "the wait for the next order could not be written, so that a restart changes it"
        );
    }

    fn status(&self, due: u64) -> Status {
        let is_due = due <= clock::unix_seconds();
        Status {
            domains: self.acme().domains.clone(),
            directory: self.acme().directory.clone(),
            state: match self.back_off.failures {
                _ if is_due => State::Ordering,
                0 => State::Waiting,
                _ => State::Failed,
            },
            expires: self.certificate.as_ref().map(|certificate| certificate.validity.to),
            next_try: (!is_due).then_some(due),
            last_success: self.last_success,
            last_error: self.back_off.last_error.clone(),
            failures: self.back_off.failures,
        }
    }

    fn log_waiting(&self, due: u64) {
        tracing::info!(
            event = "acme-waiting",
            names = self.acme().domains.join(", "),
            directory = self.acme().directory,
            next = date(due),
            "the server renews its certificate itself"
        );
    }

    /// Orders a certificate and keeps it.
    async fn order(&mut self) -> Result<(), Failure> {
        let settings = Arc::clone(&self.settings);
        let acme = &settings.acme;
        let Some(store) = &self.store else { return Err(Failure::new("the state directory is not open")) };
        // Before anything is ordered, so that no certificate is lost.
        let reserved = store.reserve()?;
        if self.unsaved.is_none() {
            // A crash counts as a failure, so that a server which crashes again and again does not order again and again.
            let mut unfinished = self.back_off.clone();
            let now = clock::unix_seconds();
            unfinished.add(&Failure::new("the server ended before the order did"), now, self.left(now), self.fraction);
            store.keep_back_off(&unfinished, acme)?;
            let message = if self.certificate.is_some() {
                "ordering a certificate; the present one stays in use until then"
            } else {
                "ordering a certificate; until it is there, TLS handshakes end with an alert, or use another \
                 certificate"
            };
            tracing::info!(
                event = "acme-ordering",
                names = acme.domains.join(", "),
                directory = acme.directory,
                "{message}"
            );
            let mut issued = self.issue(store).await;
            for _ in 1..NONCE_TRIES {
                if !matches!(&issued, Err(Failure { kind: Kind::BadNonce, .. })) {
                    break;
                }
                issued = self.issue(store).await;
            }
            self.unsaved = Some(issued?);
        }
        if let Some(issued) = &self.unsaved {
            reserved.keep(&acme.directory, &issued.chain, &issued.key)?;
        }
        self.unsaved = None;
        // If it cannot be read, that is tried again when the directory is opened again.
        if let Some(store) = self.store.take()
            && self.read_certificate(&store).is_ok()
        {
            self.store = Some(store);
        }
        Ok(())
    }

    async fn issue(&self, store: &Store) -> Result<Issued, Failure> {
        let acme = self.acme();
        let client = Client::new(acme.directory_ca.as_deref())?;
        let account = account(&client, store, acme).await;
        let result = match account {
            Ok(account) => self.issue_for(&client, &account).await,
            Err(failure) => Err(failure),
        };
        let Err(Failure { kind: Kind::AccountGone, message, .. }) = &result else { return result };
        if self.account_renewed || store.account(&acme.directory)?.is_none() {
            return result;
        }
        tracing::warn!(
            event = "acme-account-lost",
            directory = acme.directory,
            error = message,
            "the authority no longer accepts the account of this server, so the server makes another one"
        );
        // The file of the present one stays until there is another one.
        let account = new_account(&client, store, acme).await?;
        self.issue_for(&client, &account).await
    }

    async fn issue_for(&self, client: &Client, account: &Account) -> Result<Issued, Failure> {
        check_clock(client.ahead())?;
        let replaced = self.certificate.as_ref().filter(|_| self.suggested.is_some() && self.back_off.failures == 0);
        let request = Request {
            client,
            account,
            domains: &self.acme().domains,
            profile: self.acme().profile.as_deref(),
            challenge: self.challenge(),
            replaces: replaced.and_then(|certificate| ari::identifier(&certificate.der)),
            sender: &self.sender,
        };
        let issued = request.carry_out().await?;
        // The certificate may be valid from this second on.
        self.check(&issued, clock::unix_seconds())?;
        Ok(issued)
    }

    /// Returns the challenge of the next order.
    fn challenge(&self) -> AcmeChallenge {
        let index = self.tried % self.settings.challenges.len().max(1);
        self.settings.challenges.get(index).copied().unwrap_or(AcmeChallenge::TlsAlpn01)
    }

    /// Checks that an issued certificate can be used.
    fn check(&self, issued: &Issued, now: u64) -> Result<(), Failure> {
        let certificate = tls::check(issued.chain.as_bytes(), issued.key.as_bytes()).map_err(|error| {
            Failure::new(format!("the authority has issued a certificate that cannot be used: {error}"))
        })?;
        // With other names, it would be ordered again at once.
        if !same_names(&certificate.names, &self.acme().domains) {
            return Err(Failure::new(format!(
                "the authority has issued a certificate for other names: {}",
                text(&certificate.all_names())
            )));
        }
        // The clock may be a little late: the certificate is in use as soon as it is valid.
        if certificate.not_before > now + MAX_SKEW || certificate.not_after < now {
            return Err(Failure::new(format!(
                "the authority has issued a certificate that is valid from {} to {}, but the clock of this machine shows \
                 {}: check the clock",
                date(certificate.not_before),
                date(certificate.not_after),
                date(now)
            )));
        }
        Ok(())
    }

    /// Returns the life that the certificate has left; `None` if there is none that has not expired.
    fn left(&self, now: u64) -> Option<u64> {
        self.certificate.as_ref().and_then(|own| own.validity.to.checked_sub(now))
    }

    /// Records and logs that the state directory could not be opened.
    fn record_closed(&mut self, failure: Failure, now: u64) {
        self.is_closed = true;
        self.record_failure(&failure, now);
    }

    /// Records and logs the result of an order.
    fn record(&mut self, result: Result<(), Failure>, now: u64) {
        match result {
            Ok(()) => {
                (self.back_off, self.account_renewed, self.tried) = (BackOff::default(), false, 0);
                (self.suggested, self.ask_at) = (None, now);
                (self.fraction, self.last_success) = (random::fraction(), Some(now));
                self.not_before =
                    now + self.certificate.as_ref().map_or(MINUTE, |own| schedule::shortest_interval(own.validity));
                self.keep_back_off();
                tracing::info!(
                    event = "acme-ordered",
                    names = self.acme().domains.join(", "),
                    directory = self.acme().directory,
                    next = date(self.due(now)),
                    "the authority has issued a certificate; the server renews it in time"
                );
            }
            Err(failure) => {
                self.record_failure(&failure, now);
                // If nothing can be written, the failure has said it.
                if failure.kind != Kind::Unwritable {
                    self.keep_back_off();
                }
            }
        }
    }

    fn record_failure(&mut self, failure: &Failure, now: u64) {
        self.account_renewed |= failure.kind == Kind::AccountGone;
        self.tried = self.tried.wrapping_add(1);
        self.back_off.add(failure, now, self.left(now), self.fraction);
        tracing::warn!(
            event = "acme-failed",
            names = self.acme().domains.join(", "),
            directory = self.acme().directory,
            error = failure.message,
            failures = self.back_off.failures,
            next = date(self.back_off.retry_at),
            "no certificate was ordered ({TLS_ACME}). The server tries again in {}{}. The present certificate, if there is \
             one, stays in use",
            HumanSeconds(self.back_off.wait),
            self.or_earlier()
        );
    }
}

/// Checks the clock of this machine against that of the authority.
fn check_clock(ahead: Option<i64>) -> Result<(), Failure> {
    let Some(ahead) = ahead.filter(|ahead| ahead.unsigned_abs() > MAX_SKEW) else { return Ok(()) };
    Err(Failure::new(format!(
        "the clock of this machine shows {}, which is {} {} the clock of the authority: set the clock",
        date(clock::unix_seconds()),
        HumanSeconds(ahead.unsigned_abs()),
        if ahead > 0 { "ahead of" } else { "behind" }
    )))
}

#[cfg(test)]
mod tests;
