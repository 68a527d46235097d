//! Passes the pending challenges to control, which passes them to the workers and to the HTTP server.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::net::tls::Challenges;

/// The challenges that are pending, and the sender whose end means that every thread uses them.
#[derive(Debug)]
pub(in crate::control) struct Pending {
    pub(in crate::control) challenges: Arc<Challenges>,
    pub(in crate::control) in_use: oneshot::Sender<()>,
}

/// Passes challenges to control.
#[derive(Clone, Debug)]
pub(super) struct ChallengeSender(mpsc::Sender<Pending>);

impl ChallengeSender {
    pub(super) fn new() -> (Self, mpsc::Receiver<Pending>) {
        let (sender, receiver) = mpsc::channel(1);
        (Self(sender), receiver)
    }

    /// Returns when the workers and the HTTP server respond to these challenges, and to no others.
    pub(super) async fn publish(&self, challenges: Arc<Challenges>) {
        let (in_use, used) = oneshot::channel();
        // Control may have ended.
        if self.0.send(Pending { challenges, in_use }).await.is_ok() {
            let _ = used.await;
        }
    }
}
