//! The certificate that the server orders and renews by itself (RFC 8555), on a thread of its own: it waits for names to
//! be resolved and for disks, which must hold up neither packets nor control.
//!
//! The certificate goes into a file of the state directory, which `tls` polls like any other one. So a new certificate
//! takes the way of every replacement, and an old one stays in use until then.

mod agent;
mod ari;
mod challenges;
mod client;
mod connect;
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
}

/// The thread `acme`, which runs from the first configuration with `[tls.acme]` until the process ends.
#[derive(Debug)]
pub(super) struct Acme {
    settings: watch::Sender<Option<Arc<Settings>>>,
    pending: mpsc::Receiver<Pending>,
    published: watch::Receiver<Published>,
    /// Until the thread is started.
    agent: Option<Agent>,
}

impl Acme {
    pub(super) fn new() -> Self {
        let (settings, received) = watch::channel(None);
        let (sender, pending) = ChallengeSender::new();
        let (publisher, published) = watch::channel(Published::default());
        let agent = Agent { settings: received, sender, published: publisher };
        Self { settings, pending, published, agent: Some(agent) }
    }

    /// Follows a configuration. If the last order has failed, the next one is made at once.
    pub(super) fn configure(&mut self, config: &Config) {
        let settings = Settings::of(config).map(Arc::new);
        if settings.is_some()
            && let Some(agent) = self.agent.take()
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
