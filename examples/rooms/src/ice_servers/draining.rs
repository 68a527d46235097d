//! Relays that drain, and the participants that have to leave them.

use std::collections::HashSet;
use std::future::pending;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::IceServers;
use crate::message::Ice;
use crate::relay::random_part;

/// The longest time until a participant moves. Not all move at the same moment, and not both sides of a connection.
const SPREAD: Duration = Duration::from_secs(5);

/// The time until the next attempt if there is no other relay.
const RETRY: Duration = Duration::from_secs(30);

/// The URLs of the relays that drain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Draining(HashSet<String>);

impl Draining {
    /// Whether credentials name one of them.
    #[must_use]
    pub fn concerns(&self, ice: &Ice) -> bool {
        ice.urls().any(|url| self.0.contains(url))
    }
}

/// The relays of a participant, which leaves them when one of them drains.
pub(crate) struct Moves {
    draining: watch::Receiver<Draining>,
    /// The URLs of the relays that its connections may use.
    used: HashSet<String>,
    /// When it moves, if one of them drains.
    at: Option<Instant>,
}

impl Moves {
    pub(super) fn new(draining: watch::Receiver<Draining>) -> Self {
        Self { draining, used: HashSet::new(), at: None }
    }

    /// Takes note of credentials that the participant gets. Its connections may go on with the relays of those before.
    pub(crate) fn note(&mut self, ice: &Ice) {
        if ice.at_once {
            self.used.clear();
        }
        self.used.extend(ice.urls().cloned());
    }

    /// Waits until the participant has to move. Nothing is lost if the caller stops waiting.
    pub(crate) async fn due(&mut self) {
        let Self { draining, used, at } = self;
        if draining.borrow().0.is_disjoint(used) {
            // The next drain is another one.
            *at = None;
        }
        if draining.wait_for(|Draining(urls)| !urls.is_disjoint(used)).await.is_err() {
            // Nothing says which relays drain.
            pending::<()>().await;
        }
        sleep_until(*at.get_or_insert_with(|| Instant::now() + random_part(SPREAD))).await;
    }

    /// Returns credentials for a user that name no relay that drains. If there are none, the next attempt is due later.
    pub(crate) async fn elsewhere(&mut self, ice: &IceServers, user: &str) -> Option<Ice> {
        let new = ice.get(user).await.ok().filter(|new| !self.draining.borrow().concerns(new));
        self.at = new.is_none().then(|| Instant::now() + RETRY);
        new.map(|new| Ice { at_once: true, ..new })
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::message::IceServer;

    fn ice(url: &str) -> Ice {
        let server = IceServer { urls: vec![url.to_owned()], username: String::new(), credential: String::new() };
        Ice { ice_servers: vec![server], ..Ice::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn who_may_use_a_relay_that_drains_has_to_move() {
        let (sender, receiver) = watch::channel(Draining::default());
        let mut moves = Moves::new(receiver);
        let is_due = async |moves: &mut Moves| timeout(2 * SPREAD, moves.due()).await.is_ok();
        let drain = |url: &str| drop(sender.send_replace(Draining([url.to_owned()].into())));
        // Connections may go on with the first ones.
        moves.note(&ice("turn:a"));
        moves.note(&ice("turn:b"));
        assert!(!is_due(&mut moves).await);
        for (url, due) in [("turn:a", true), ("turn:b", true), ("turn:c", false)] {
            drain(url);
            assert_eq!(is_due(&mut moves).await, due, "{url}");
        }
        // Those for use at once leave all others.
        moves.note(&Ice { at_once: true, ..ice("turn:c") });
        assert!(is_due(&mut moves).await);
        drain("turn:a");
        assert!(!is_due(&mut moves).await);
    }
}
