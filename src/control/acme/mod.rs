//! The certificate that the server orders and renews (RFC 8555), on a thread of its own: it waits for names to be
//! resolved and for disks, which must hold up neither packets nor control.
//!
//! The certificate goes into a file of the state directory, which `tls` polls like any other one. So a new certificate
//! takes the way of every replacement, and an old one stays in use until then.

mod account;
mod agent;
mod ari;
mod back_off;
mod challenges;
mod client;
mod dates;
mod failure;
mod order;
mod schedule;
mod status;
mod store;

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::config::{self, AcmeChallenge, Config};
use crate::net::background;
use agent::Agent;
use challenges::ChallengeSender;

pub(super) use challenges::Pending;
pub(super) use dates::http_date;
pub(super) use status::{Published, State, Status};

/// What the thread needs of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Settings {
    acme: config::Acme,
    /// The challenges that it tries, in this order. Never empty.
    challenges: Vec<AcmeChallenge>,
}

impl Settings {
    fn of(config: &Config) -> Option<Self> {
        let acme = config.tls.as_ref()?.acme.clone()?;
        let challenges = acme.challenge.of_listeners(&config.listen, &config.http, &config.fronts);
        Some(Self { acme, challenges })
    }

    /// Returns whether an order that was begun with other settings, and this challenge, can continue with these.
    fn permits(&self, begun: &Self, challenge: AcmeChallenge) -> bool {
        let wanted = |acme: &config::Acme| config::Acme {
            // The next order uses them.
            contact: None,
            challenge: AcmeChallenge::Auto,
            ..acme.clone()
        };
        wanted(&self.acme) == wanted(&begun.acme) && self.challenges.contains(&challenge)
    }
}

/// Returns whether the certificate in the state directory is the one that `acme` wants, apart from its validity. `None` if
/// there is none that this user can read.
pub(crate) fn ordered_certificate_fits(acme: &config::Acme) -> Option<bool> {
    store::read_certificate(&acme.files().certificate).ok()?.map(|stored| stored.fits(acme))
}

/// Returns whether two lists have the same names.
fn same_names(one: &[String], other: &[String]) -> bool {
    let contains = |all: &[String], name: &String| all.iter().any(|other| other.eq_ignore_ascii_case(name));
    one.iter().all(|name| contains(other, name)) && other.iter().all(|name| contains(one, name))
}

/// The thread `acme`, which runs from the first configuration with `[tls.acme]` until the process ends.
#[derive(Debug)]
pub(super) struct Acme {
    settings: watch::Sender<Option<Arc<Settings>>>,
    pending: mpsc::Receiver<Pending>,
    published: watch::Receiver<Published>,
    /// Until the thread is started.
    agent: Option<Agent>,
    /// Whether there was an earlier configuration.
    is_reloaded: bool,
}

impl Acme {
    pub(super) fn new() -> Self {
        let (settings, received) = watch::channel(None);
        let (sender, pending) = ChallengeSender::new();
        let (publisher, published) = watch::channel(Published::default());
        let agent = Agent { settings: received, sender, published: publisher, is_reloaded: false };
        Self { settings, pending, published, agent: Some(agent), is_reloaded: false }
    }

    /// Follows the configuration of the start, and then each one that the operator loads: if the last order has failed, the
    /// next one is made at once.
    pub(super) fn configure(&mut self, config: &Config) {
        let settings = Settings::of(config).map(Arc::new);
        let is_reloaded = std::mem::replace(&mut self.is_reloaded, true);
        if settings.is_some()
            && let Some(agent) = self.agent.take().map(|agent| Agent { is_reloaded, ..agent })
            && let Err(error) = background::start("acme", move || run(agent))
        {
            tracing::error!(
                event = "acme-ended", %error, "cannot start the thread that orders the certificate; restart the server"
            );
        }
        self.settings.send_replace(settings);
    }

    /// Returns the status, which is always the present one.
    pub(super) fn published(&self) -> watch::Receiver<Published> {
        self.published.clone()
    }

    /// Waits for challenges that the workers and the HTTP server have to respond to. Cancel-safe.
    pub(super) async fn pending(&mut self) -> Pending {
        match self.pending.recv().await {
            Some(pending) => pending,
            // The thread has ended.
            None => std::future::pending().await,
        }
    }
}

async fn run(agent: Agent) {
    if let Err(error) = tokio::spawn(agent.run()).await {
        tracing::error!(
            event = "acme-ended", %error,
            "the thread that orders the certificate has ended, so that the certificate will not be renewed; restart the \
             server"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_continues_while_its_names_directory_and_challenge_are_wanted() {
        let acme = config::Acme::of(&["turn.example.org"]);
        let begun = Settings { acme: acme.clone(), challenges: vec![AcmeChallenge::TlsAlpn01] };
        let permits = |acme: config::Acme, challenges: &[AcmeChallenge]| {
            Settings { acme, challenges: challenges.to_vec() }.permits(&begun, AcmeChallenge::TlsAlpn01)
        };
        let both = [AcmeChallenge::Http01, AcmeChallenge::TlsAlpn01];
        assert!(permits(acme.clone(), &both));
        assert!(!permits(acme.clone(), &[AcmeChallenge::Http01]));
        assert!(permits(config::Acme { challenge: AcmeChallenge::TlsAlpn01, ..acme.clone() }, &both));
        assert!(permits(config::Acme { contact: Some("mailto:a@example.org".to_owned()), ..acme.clone() }, &both));
        for other in [
            config::Acme { domains: vec!["a.example.org".to_owned()], ..acme.clone() },
            config::Acme { directory: "https://other.example.org/".to_owned(), ..acme.clone() },
            config::Acme { state_directory: "/other".into(), ..acme.clone() },
        ] {
            assert!(!permits(other.clone(), &both), "{other:?}");
        }
    }
}
