//! The forwarding unit: participants send their media to it once, and it sends them on to all others.
//!
//! Each room has a task of its own ([`unit`]), which begins when the room needs it. It is a peer of the participants like
//! any other, with an address at the relay, so that participants reach it who can use nothing but the relay.

mod layers;
mod publication;
mod source;
mod subscription;
mod timeline;
mod unit;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use turnserver::clock::unix_seconds;

use crate::ice_servers::IceServers;
use crate::id::ParticipantId;
use crate::message::{Ice, LayerChoice, Link, Signal, Token};
use crate::webrtc::Network;
use unit::Unit;

/// How many commands wait for the task.
const WAITING: usize = 1_024;

/// The pause before the next attempt to get credentials.
const RETRY: Duration = Duration::from_secs(10);

/// How forwarding units reach participants.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The addresses of this machine.
    pub(crate) hosts: Vec<IpAddr>,
    /// The relay.
    pub(crate) ice: Arc<IceServers>,
}

/// The forwarding unit of a room. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Sfu {
    commands: mpsc::Sender<Command>,
}

/// What a room wants of its forwarding unit.
#[derive(Debug)]
pub(crate) enum Command {
    /// A participant takes part.
    Enter { id: ParticipantId, outbox: mpsc::WeakSender<Arc<str>> },
    /// A participant has left.
    Leave(ParticipantId),
    /// Only this participant may send, or all.
    Sender(Option<ParticipantId>),
    /// A participant signals.
    Signal { from: ParticipantId, link: Link, signal: Signal },
    /// A participant chooses a layer.
    Layer { from: ParticipantId, track: Token, choice: LayerChoice },
}

impl Sfu {
    /// Starts the forwarding unit of a room. `user` is its name at the relay.
    pub(crate) fn start(settings: &Arc<Settings>, user: String) -> Self {
        let (commands, received) = mpsc::channel(WAITING);
        tokio::spawn(run(Arc::clone(settings), user, received));
        Self { commands }
    }

    /// Returns whether the task has ended, because it could not start or has panicked.
    pub(crate) fn has_ended(&self) -> bool {
        self.commands.is_closed()
    }

    /// Commands something. `false` if too many commands wait, or the task has failed.
    pub(crate) fn command(&self, command: Command) -> bool {
        self.commands.try_send(command).is_ok()
    }
}

async fn run(settings: Arc<Settings>, user: String, commands: mpsc::Receiver<Command>) {
    let nothing = Ice { ice_servers: Vec::new(), expires: 0 };
    let (sender, credentials) = watch::channel(nothing);
    let renewal = keep_credentials(&settings.ice, &user, sender);
    match Network::open(&settings.hosts, Some(credentials)).await {
        Ok(network) => tokio::select! {
            () = Unit::new(network).run(commands) => {}
            () = renewal => {}
        },
        Err(error) => tracing::error!("the forwarding unit does not start: {error}. Set its address with --sfu"),
    }
}

/// Renews the credentials of the unit, for ever.
async fn keep_credentials(ice: &IceServers, user: &str, sender: watch::Sender<Ice>) {
    loop {
        let next = match ice.get(user).await {
            Ok(new) => {
                let lifetime = new.expires.saturating_sub(unix_seconds());
                sender.send_replace(new);
                Duration::from_secs((lifetime * 2 / 3).max(1))
            }
            Err(error) => {
                tracing::error!("the forwarding unit has no credentials for the relay: {error}");
                RETRY
            }
        };
        sleep_until(Instant::now() + next).await;
    }
}
