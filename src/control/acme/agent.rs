//! Decides when a certificate is ordered, and orders it.

use std::sync::Arc;
use std::time::Duration;

use instant_acme::{Account, ExternalAccountKey, NewAccount};
use tokio::sync::watch;

use super::challenges::ChallengeSender;
use super::client::Client;
use super::failure::{Failure, Kind, text};
use super::order::{Issued, Request};
use super::schedule::{self, HOUR, MINUTE, Window};
use super::status::{Published, State, Status};
use super::store::{Store, StoredCertificate, is_for};
use super::{Settings, ari};
use crate::auth::HumanSeconds;
use crate::clock;
use crate::config::{Acme, AcmeChallenge};
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
        loop {
            let settings = self.settings.borrow_and_update().clone();
            let Some(settings) = settings else {
                self.published.send_modify(|published| published.status = None);
                if self.settings.changed().await.is_err() {
                    return;
                }
                continue;
            };
            if !self.follow(&settings).await {
                return;
            }
        }
    }

    /// Follows these settings until there are others. Returns `false` if control has ended.
    async fn follow(&mut self, settings: &Settings) -> bool {
        let mut certificate = Managed::new(settings, self.sender.clone());
        certificate.last_success = self.published.borrow().status.as_ref().and_then(|before| before.last_success);
        let mut is_announced = false;
        loop {
            let now = clock::unix_seconds();
            certificate.follow_clock(now);
            if let Err(failure) = certificate.prepare(now) {
                certificate.record(Err(failure), now);
                self.published.send_modify(|published| published.failed += 1);
            }
            let due = certificate.due(now);
            if due > now {
                self.publish(certificate.status(due));
                if !std::mem::replace(&mut is_announced, true) && certificate.failures == 0 {
                    certificate.log_waiting(due);
                }
                if certificate.wants_suggestion(now) {
                    // It has no effect on a failure, because there is none.
                    let mut is_reloaded = false;
                    tokio::select! {
                        change = other_settings(&mut self.settings, settings, &mut is_reloaded) => {
                            return !matches!(change, Change::End);
                        }
                        () = certificate.ask(now) => continue,
                    }
                }
                let sleep = Duration::from_secs((due - now).min(LONGEST_SLEEP));
                tokio::select! {
                    change = change(&mut self.settings, settings) => match change {
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
            let mut is_reloaded = false;
            let result = tokio::select! {
                // A certificate that is no longer wanted is not ordered.
                change = other_settings(&mut self.settings, settings, &mut is_reloaded) => {
                    // The order has ended without its last step.
                    self.sender.publish(Arc::default()).await;
                    return !matches!(change, Change::End);
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
                // The operator may have mended the reason of the failure meanwhile.
                certificate.retry();
            }
            self.published.send_modify(
                |published| {
                    if succeeded { published.succeeded += 1 } else { published.failed += 1 }
                },
            );
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

/// Waits until control wants something else. Sets `is_reloaded` if the operator reloads the configuration meanwhile.
async fn other_settings(
    settings: &mut watch::Receiver<Option<Arc<Settings>>>,
    present: &Settings,
    is_reloaded: &mut bool,
) -> Change {
    loop {
        match change(settings, present).await {
            Change::None => *is_reloaded = true,
            other => return other,
        }
    }
}

/// The certificate that some settings want.
struct Managed<'s> {
    settings: &'s Settings,
    sender: ChallengeSender,
    /// `None` until the state directory could be opened.
    store: Option<Store>,
    /// The certificate in the state directory, if it is the one that the settings want.
    certificate: Option<StoredCertificate>,
    /// A certificate that could not be written. It is not ordered again.
    unsaved: Option<Issued>,
    /// The failures since the last success.
    failures: u32,
    /// The failures since the last success or reload: each one moves on to the next challenge.
    tried: usize,
    /// When the next order is made after a failure.
    retry_at: u64,
    /// The time from the failure to the next order.
    wait: u64,
    /// Whether the authority has chosen that time.
    is_demanded: bool,
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
    last_error: Option<(u64, String)>,
}

impl<'s> Managed<'s> {
    fn new(settings: &'s Settings, sender: ChallengeSender) -> Self {
        Self {
            settings,
            sender,
            store: None,
            certificate: None,
            unsaved: None,
            failures: 0,
            tried: 0,
            retry_at: 0,
            wait: 0,
            is_demanded: false,
            not_before: 0,
            suggested: None,
            ask_at: 0,
            fraction: random_fraction(),
            account_renewed: false,
            last_success: None,
            last_error: None,
        }
    }

    fn acme(&self) -> &'s Acme {
        &self.settings.acme
    }

    /// Brings the times of waits into reach, in case that the clock was ahead when they were chosen.
    fn follow_clock(&mut self, now: u64) {
        self.retry_at = self.retry_at.min(now + self.wait);
        self.not_before = self.not_before.min(now + schedule::LONGEST_INTERVAL);
        self.ask_at = self.ask_at.min(now + schedule::LONGEST_ARI_INTERVAL);
    }

    /// Opens the state directory if a certificate has to be ordered and it is not open.
    fn prepare(&mut self, now: u64) -> Result<(), Failure> {
        if self.store.is_none() && self.due(now) <= now {
            let store = Store::open(self.acme())?;
            self.read_certificate(&store)?;
            self.store = Some(store);
            // Those failures were about the directory.
            (self.failures, self.tried, self.last_error) = (0, 0, None);
        }
        Ok(())
    }

    /// Returns whether it is time to ask the authority when it suggests to renew the certificate.
    fn wants_suggestion(&self, now: u64) -> bool {
        self.certificate.is_some() && self.failures == 0 && now >= self.ask_at
    }

    fn read_certificate(&mut self, store: &Store) -> Result<(), Failure> {
        self.certificate = store.certificate()?.filter(|stored| stored.fits(self.acme()));
        // It is at most a little later.
        self.last_success = self.last_success.or(self.certificate.as_ref().map(|stored| stored.validity.from));
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
                self.suggested = suggestion.window;
                self.ask_at = now + schedule::ari_interval(suggestion.ask_again);
            }
            // The certificate is renewed in time without it.
            Err(error) => tracing::debug!(
                event = "acme-renewal-info", %error, "the authority did not say when it suggests to renew the certificate"
            ),
        }
    }

    /// Returns when a certificate has to be ordered.
    fn due(&self, now: u64) -> u64 {
        if self.failures > 0 {
            return self.retry_at;
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
        if !self.is_demanded {
            self.retry_at = 0;
        }
    }

    fn status(&self, due: u64) -> Status {
        let is_due = due <= clock::unix_seconds();
        Status {
            domains: self.acme().domains.clone(),
            directory: self.acme().directory.clone(),
            state: match self.failures {
                _ if is_due => State::Ordering,
                0 => State::Waiting,
                _ => State::Failed,
            },
            expires: self.certificate.as_ref().map(|certificate| certificate.validity.to),
            next_try: (!is_due).then_some(due),
            last_success: self.last_success,
            last_error: self.last_error.clone(),
            failures: self.failures,
        }
    }

    fn log_waiting(&self, due: u64) {
        tracing::info!(
            event = "acme-waiting",
            names = self.acme().domains.join(", "),
            directory = self.acme().directory,
            next = date(due),
            "the server renews its certificate by itself"
        );
    }

    /// Orders a certificate and keeps it.
    async fn order(&mut self) -> Result<(), Failure> {
        let acme = self.acme();
        let Some(store) = &self.store else { return Err(Failure::new("the state directory is not open")) };
        // Before anything is ordered, so that no certificate is lost.
        let reserved = store.reserve()?;
        if self.unsaved.is_none() {
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
        let replaced = self.certificate.as_ref().filter(|_| self.suggested.is_some() && self.failures == 0);
        let request = Request {
            client,
            account,
            domains: &self.acme().domains,
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
        if !is_for(&certificate.names, &self.acme().domains) {
            return Err(Failure::new(format!(
                "the authority has issued a certificate for other names: {}",
                text(&certificate.all_names())
            )));
        }
        // A clock that is a little late mends itself: the certificate is in use when it is valid.
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

    /// Records and logs the result of an order.
    fn record(&mut self, result: Result<(), Failure>, now: u64) {
        match result {
            Ok(()) => {
                (self.failures, self.last_error, self.account_renewed) = (0, None, false);
                self.tried = 0;
                (self.suggested, self.ask_at) = (None, now);
                (self.fraction, self.last_success) = (random_fraction(), Some(now));
                self.not_before =
                    now + self.certificate.as_ref().map_or(MINUTE, |own| schedule::shortest_interval(own.validity));
                tracing::info!(
                    event = "acme-ordered",
                    names = self.acme().domains.join(", "),
                    directory = self.acme().directory,
                    next = date(self.due(now)),
                    "the authority has issued a certificate; it is renewed by itself"
                );
            }
            Err(failure) => {
                self.account_renewed |= failure.kind == Kind::AccountGone;
                self.failures = self.failures.saturating_add(1);
                self.tried = self.tried.wrapping_add(1);
                let left = self.certificate.as_ref().and_then(|own| own.validity.to.checked_sub(now));
                let wait = schedule::wait(self.failures, failure.wait, left, self.fraction);
                self.is_demanded = failure.wait.is_some_and(|demanded| demanded > MINUTE);
                (self.retry_at, self.wait) = (now + wait, wait);
                let or = if self.is_demanded { ", as the authority demands" } else { ", or at a reload" };
                tracing::warn!(
                    event = "acme-failed",
                    names = self.acme().domains.join(", "),
                    directory = self.acme().directory,
                    error = failure.message,
                    failures = self.failures,
                    next = date(self.retry_at),
                    "no certificate was ordered ({TLS_ACME}). The server tries again in {}{or}. The present certificate, \
                     if there is one, stays in use",
                    HumanSeconds(wait)
                );
                self.last_error = Some((now, failure.message));
            }
        }
    }
}

/// Returns the account of this server with the authority, which is made if there is none.
async fn account(client: &Client, store: &Store, acme: &Acme) -> Result<Account, Failure> {
    let failed = |error| client.failure(&error);
    let builder = Account::builder_with_http(Box::new(client.clone()));
    let contact: Vec<&str> = acme.contact.as_deref().into_iter().collect();
    if let Some(stored) = store.account(&acme.directory)? {
        let account = builder.from_credentials(stored.credentials).await.map_err(failed)?;
        if stored.contact != acme.contact {
            account.update_contacts(&contact).await.map_err(failed)?;
            if let Some(stored) = store.account(&acme.directory)? {
                store.keep_account(&acme.directory, &stored.credentials, acme.contact.as_deref())?;
            }
        }
        return Ok(account);
    }
    new_account(client, store, acme).await
}

/// Makes an account for this server with the authority, and keeps it in place of an earlier one.
async fn new_account(client: &Client, store: &Store, acme: &Acme) -> Result<Account, Failure> {
    let failed = |error| client.failure(&error);
    let builder = Account::builder_with_http(Box::new(client.clone()));
    let contact: Vec<&str> = acme.contact.as_deref().into_iter().collect();
    let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let external = acme.external_account.as_ref();
    let external = external.map(|own| ExternalAccountKey::new(own.key_id.clone(), own.key.as_bytes()));
    let created = builder.create(&new, acme.directory.clone(), external.as_ref()).await;
    let (account, credentials) =
        created.map_err(|error| failed(error).context("the authority has made no account for this server"))?;
    store.keep_account(&acme.directory, &credentials, acme.contact.as_deref())?;
    tracing::info!(
        event = "acme-account",
        directory = acme.directory,
        "the authority has made an account for this server"
    );
    Ok(account)
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

fn random_fraction() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness, orders are less spread.
    let _ = getrandom::getrandom(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_differs_from_that_of_the_authority_by_more_than_an_hour_stops_an_order() {
        for ahead in [None, Some(0), Some(3_600), Some(-3_600)] {
            assert_eq!(check_clock(ahead), Ok(()), "{ahead:?}");
        }
        let message = |ahead| check_clock(Some(ahead)).unwrap_err().message;
        assert!(
            message(60 * 86_400).contains("which is 60 d ahead of the clock of the authority"),
            "{}",
            message(5_184_000)
        );
        assert!(message(i64::MIN).contains(" behind the clock of the authority: set the clock"));
    }

    #[test]
    fn a_clock_that_was_ahead_does_not_put_off_the_next_order_after_it_is_set() {
        const NOW: u64 = 1_800_000_000;
        let ahead = NOW + 60 * 86_400;
        let settings = settings();
        let mut certificate = Managed::new(&settings, ChallengeSender::new().0);
        certificate.record(Err(Failure::new("the clock is wrong")), ahead);
        certificate.follow_clock(NOW);
        let due = certificate.due(NOW);
        assert!((NOW + 60..=NOW + 75).contains(&due), "{due}");
        // The time passes.
        certificate.follow_clock(NOW + 30);
        assert_eq!(certificate.due(NOW + 30), due);
        certificate.record(Ok(()), ahead);
        certificate.follow_clock(NOW);
        assert!(certificate.due(NOW) <= NOW + HOUR && certificate.ask_at <= NOW + 24 * HOUR);
    }

    #[test]
    fn a_certificate_that_is_valid_a_moment_later_is_kept() {
        const NOW: u64 = 1_800_000_000;
        let (settings, authority) = (settings(), crate::test_certificates::Authority::new(NOW));
        let certificate = Managed::new(&settings, ChallengeSender::new().0);
        let check = |from: u64, to: u64| {
            let issued = authority.issue_for(&["turn.example.org"], from, to);
            let chain = authority.chain(&issued);
            certificate.check(&Issued { chain, key: issued.key.clone().into() }, NOW)
        };
        assert_eq!(check(NOW - 60, NOW + 60), Ok(()));
        assert_eq!(check(NOW + 1, NOW + 86_400), Ok(()));
        assert_eq!(check(NOW + MAX_SKEW, NOW + 86_400), Ok(()));
        assert!(check(NOW + MAX_SKEW + 1, NOW + 86_400).is_err());
        assert!(check(NOW - 60, NOW - 1).is_err());
    }

    // A proxy in the way, for example: the next try goes to the other challenge, and a reload begins with the first one.
    #[test]
    fn each_failure_moves_on_to_the_next_challenge_until_a_reload() {
        let settings = settings();
        let mut certificate = Managed::new(&settings, ChallengeSender::new().0);
        assert_eq!(certificate.challenge(), AcmeChallenge::TlsAlpn01);
        certificate.record(Err(Failure::new("refused")), 1_800_000_000);
        assert_eq!(certificate.challenge(), AcmeChallenge::Http01);
        certificate.retry();
        assert_eq!(certificate.challenge(), AcmeChallenge::TlsAlpn01);
    }

    fn settings() -> Settings {
        let acme = Acme {
            domains: vec!["turn.example.org".to_owned()],
            contact: None,
            directory: "https://acme.example.org/directory".to_owned(),
            directory_ca: None,
            external_account: None,
            challenge: AcmeChallenge::Auto,
            state_directory: "/nonexistent".into(),
        };
        Settings { acme, challenges: vec![AcmeChallenge::TlsAlpn01, AcmeChallenge::Http01] }
    }
}
