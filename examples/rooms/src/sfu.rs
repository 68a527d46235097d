//! The forwarding unit: participants send their media to it once, and it sends them on to all others.
//!
//! Each room has a task of its own ([`unit`]), which begins when the room needs it. It is a peer of the participants like
//! any other, with an address at the relay, so that participants reach it who can use nothing but the relay.

mod layers;
mod police;
mod publication;
mod remotes;
mod source;
mod subscription;
mod timeline;
mod unit;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep_until};
use turnserver::clock::unix_seconds;

use crate::connect::Trust;
use crate::ice_servers::IceServers;
use crate::id::ParticipantId;
use crate::message::{Ice, LayerChoice, Link, Signal, Token};
use crate::outbox::WeakOutbox;
use crate::webrtc::Network;
use unit::Unit;

/// How many signals and choices wait for the task.
const WAITING: usize = 1_024;

/// The bytes that these take.
const SPACE: usize = 8 * 1_024 * 1_024;

/// The pause before the next attempt to get credentials.
const RETRY: Duration = Duration::from_secs(10);

/// How forwarding units reach participants.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The addresses of this machine.
    pub(crate) hosts: Vec<IpAddr>,
    /// The relay.
    pub(crate) ice: Arc<IceServers>,
    /// Which certificates of the relay are trusted.
    pub(crate) trust: Trust,
    /// The server waits at its end until all receivers are dropped.
    pub(crate) _stop: watch::Receiver<bool>,
}

/// The forwarding unit of a room. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Sfu {
    /// Who takes part, and who may send. Nothing of this may be dropped, and it is as much as participants come and go.
    roster: mpsc::UnboundedSender<Command>,
    requests: mpsc::Sender<(Command, OwnedSemaphorePermit)>,
    space: Arc<Semaphore>,
}

/// The commands for the task.
#[derive(Debug)]
struct Commands {
    roster: mpsc::UnboundedReceiver<Command>,
    requests: mpsc::Receiver<(Command, OwnedSemaphorePermit)>,
}

/// What a room wants of its forwarding unit.
#[derive(Debug)]
pub(crate) enum Command {
    /// A participant takes part.
    Enter { id: ParticipantId, outbox: WeakOutbox },
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
        let (sfu, commands) = channel();
        tokio::spawn(run(Arc::clone(settings), user, commands));
        sfu
    }

    /// Returns whether the task has ended, because it could not start or has panicked.
    pub(crate) fn has_ended(&self) -> bool {
        self.roster.is_closed()
    }

    /// Commands something. `false` if too many signals wait, or the task has failed.
    pub(crate) fn command(&self, command: Command) -> bool {
        let size = match &command {
            Command::Enter { .. } | Command::Leave(_) | Command::Sender(_) => {
                return self.roster.send(command).is_ok();
            }
            Command::Signal { signal, .. } => signal.size(),
            Command::Layer { .. } => 0,
        };
        let Ok(size) = u32::try_from(size) else { return false };
        let permit = Arc::clone(&self.space).try_acquire_many_owned(size);
        permit.is_ok_and(|permit| self.requests.try_send((command, permit)).is_ok())
    }
}

impl Commands {
    /// Waits for the next command: who takes part comes before what participants want. `None` if the room needs no
    /// forwarding unit. Nothing is lost if the caller stops waiting.
    async fn next(&mut self) -> Option<Command> {
        tokio::select! {
            biased;
            command = self.roster.recv() => command,
            Some((command, _)) = self.requests.recv() => Some(command),
        }
    }
}

fn channel() -> (Sfu, Commands) {
    let (roster, from_roster) = mpsc::unbounded_channel();
    let (requests, from_requests) = mpsc::channel(WAITING);
    let sfu = Sfu { roster, requests, space: Arc::new(Semaphore::new(SPACE)) };
    (sfu, Commands { roster: from_roster, requests: from_requests })
}

async fn run(settings: Arc<Settings>, user: String, commands: Commands) {
    let (sender, credentials) = watch::channel(Ice::default());
    let renewal = keep_credentials(&settings.ice, &user, sender);
    match Network::open(&settings.hosts, credentials, settings.trust.clone()).await {
        Ok(network) => tokio::select! {
            () = Unit::new(network).run(commands) => {}
            () = renewal => {}
        },
        Err(error) => tracing::error!("the forwarding unit does not start: {error}. Set its address with --sfu"),
    }
}

/// Renews the credentials of the unit, for ever.
async fn keep_credentials(ice: &IceServers, user: &str, sender: watch::Sender<Ice>) {
    let (mut moves, mut next) = (ice.moves(), ice.get(user).await);
    loop {
        let renewal = match next {
            Ok(new) => {
                let lifetime = new.expires.saturating_sub(unix_seconds());
                moves.note(&new);
                sender.send_replace(new);
                Duration::from_secs((lifetime * 2 / 3).max(1))
            }
            Err(error) => {
                tracing::error!("the forwarding unit has no credentials for the relay: {error}");
                RETRY
            }
        };
        let renewal = Instant::now() + renewal;
        next = loop {
            tokio::select! {
                () = sleep_until(renewal) => break ice.get(user).await,
                () = moves.due() => if let Some(new) = moves.elsewhere(ice, user).await {
                    break Ok(new);
                },
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Description, DescriptionKind};

    fn signal(from: &ParticipantId, length: usize) -> Command {
        let description = Description { kind: DescriptionKind::Offer, sdp: "x".repeat(length) };
        Command::Signal { from: from.clone(), link: Link::Publish, signal: Signal::Description(description) }
    }

    #[tokio::test]
    async fn participants_come_and_go_even_if_no_further_signal_can_wait() {
        let ((sfu, mut commands), id) = (channel(), ParticipantId::random().unwrap());
        let (outbox, _inbox) = crate::outbox::channel(&crate::outbox::Memory::default());
        while sfu.command(signal(&id, 1)) {}
        assert!(sfu.command(Command::Enter { id: id.clone(), outbox: outbox.downgrade() }));
        assert!(sfu.command(Command::Leave(id.clone())));
        assert!(matches!(commands.next().await, Some(Command::Enter { .. })), "before the signals");
        assert!(matches!(commands.next().await, Some(Command::Leave(_))));
        for _ in 0..WAITING {
            assert!(matches!(commands.next().await, Some(Command::Signal { .. })));
        }
    }

    #[tokio::test]
    async fn signals_that_wait_are_limited_in_bytes() {
        let ((sfu, mut commands), id) = (channel(), ParticipantId::random().unwrap());
        let waiting = (0..WAITING).take_while(|_| sfu.command(signal(&id, 64_000))).count();
        assert_eq!(waiting, SPACE / 64_000);
        commands.next().await.unwrap();
        assert!(sfu.command(signal(&id, 64_000)));
        drop(sfu);
        assert!(commands.next().await.is_none(), "the unit ends at once");
    }
    #[tokio::test]
    async fn a_unit_that_cannot_start_has_ended_and_takes_no_commands() {
        let key = std::env::temp_dir().join(format!("rooms-{}-key-of-a-unit", std::process::id()));
        std::fs::write(&key, "a_key").unwrap();
        let endpoint = crate::ice_servers::Endpoint::new(&["http://127.0.0.1:1/".to_owned()], &key, String::new(), 60);
        std::fs::remove_file(&key).unwrap();
        let (ice, (_, stop)) = (IceServers::Fetched(Box::new(endpoint.unwrap())), watch::channel(false));
        // RFC 5737: no machine has this address.
        let hosts = vec![IpAddr::from([192, 0, 2, 1])];
        let settings = Settings { hosts, ice: Arc::new(ice), trust: Trust::default(), _stop: stop };
        let sfu = Sfu::start(&Arc::new(settings), "sfu".to_owned());
        sfu.roster.closed().await;
        assert!(sfu.has_ended());
        let id = ParticipantId::random().unwrap();
        assert!(!sfu.command(signal(&id, 1)) && !sfu.command(Command::Leave(id)));
    }
}
