//! A connection of the bot: with another participant, or with the forwarding unit.

use std::collections::{HashMap, VecDeque};

use str0m::change::{SdpAnswer, SdpApi, SdpOffer, SdpPendingOffer};
use str0m::channel::{ChannelConfig, ChannelId, Reliability};
use str0m::media::{Direction, MediaKind, MediaTime, Mid, Rid, Simulcast, SimulcastLayer};
use tokio::time::Instant;

use crate::message::{Candidate, Layer};
use crate::webrtc::{Connection, Network, configuration, fingerprint, ice_user, remote_candidate};

/// How many messages wait until a data channel has room, and how many bytes they have on all channels of a connection.
/// Others are dropped.
const WAITING: (usize, usize) = (4_096, 8 * 1_024 * 1_024);

/// The greatest number of data channels of a connection that are echoed.
const CHANNELS: usize = 16;

/// The longest message that is echoed: the longest that can be received.
const LONGEST: usize = 256 * 1_024;

/// A connection.
pub(super) struct Link {
    pub(super) connection: Connection,
    /// The offer that waits for its answer.
    pending: Option<Offer>,
    /// What the next offer has.
    needs: Needs,
    /// The hash of the certificate of the other side, and its ICE user.
    fingerprint: Option<String>,
    user: Option<String>,
    channels: HashMap<ChannelId, VecDeque<(bool, Vec<u8>)>>,
    /// The bytes of the messages that wait.
    waiting: usize,
    mids: Vec<(Mid, MediaKind)>,
    layers: bool,
}

/// What an offer has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Needs {
    channels: bool,
    media: bool,
    restart: bool,
}

struct Offer {
    pending: SdpPendingOffer,
    has: Needs,
    mids: Vec<(Mid, MediaKind)>,
}

impl Link {
    pub(super) fn new(network: &Network) -> Self {
        let connection = Connection::new(configuration().set_sctp_max_buffered_amount(LONGEST), network);
        Self {
            connection,
            pending: None,
            needs: Needs::default(),
            fingerprint: None,
            user: None,
            channels: HashMap::new(),
            waiting: 0,
            mids: Vec::new(),
            layers: false,
        }
    }

    /// Creates a connection with a participant who was in the room before, for data channels.
    pub(super) fn to_peer(network: &Network) -> Self {
        Self { needs: Needs { channels: true, ..Needs::default() }, ..Self::new(network) }
    }

    /// Creates a connection on which the forwarding unit receives picture, in three layers, and tone.
    pub(super) fn to_sfu(network: &Network) -> Self {
        Self { needs: Needs { media: true, ..Needs::default() }, layers: true, ..Self::new(network) }
    }

    /// Lets the next offer have picture and tone, if there are no media sections yet.
    pub(super) fn add_own_media(&mut self) {
        let is_offered = self.pending.as_ref().is_some_and(|offer| offer.has.media);
        self.needs.media = self.mids.is_empty() && !is_offered;
    }

    /// Lets the next offer restart ICE.
    pub(super) fn restart(&mut self) {
        self.needs.restart = true;
    }

    /// Returns an offer, if one is needed and none waits for its answer.
    pub(super) fn offer(&mut self, network: &Network) -> Option<String> {
        if self.pending.is_some() || self.needs == Needs::default() {
            return None;
        }
        let (mut has, layers) = (std::mem::take(&mut self.needs), self.layers);
        // Before the first answer, there is nothing to restart.
        has.restart &= self.user.is_some();
        let (offer, mids) = self.connection.change(network, |rtc| {
            let (mut change, mut mids) = (rtc.sdp_api(), Vec::new());
            if has.media {
                mids.extend(
                    [MediaKind::Audio, MediaKind::Video].map(|kind| (add_media(&mut change, kind, layers), kind)),
                );
            }
            if has.channels {
                add_channels(&mut change);
            }
            if has.restart {
                change.ice_restart(true);
            }
            (change.apply(), mids)
        });
        let (offer, pending) = offer?;
        self.pending = Some(Offer { pending, has, mids });
        Some(offer.to_sdp_string())
    }

    /// Whether an offer is for this connection. A page that has been loaded again has another certificate.
    pub(super) fn fits(&self, offer: &str) -> bool {
        let is_same = self.fingerprint.as_deref().is_none_or(|known| Some(known) == fingerprint(offer));
        self.connection.rtc().is_alive() && is_same
    }

    /// Takes an offer and returns the answer. An own offer that waits for its answer is taken back, and made again later.
    pub(super) fn accept_offer(&mut self, sdp: &str, network: &Network) -> Result<String, String> {
        let offer = SdpOffer::from_sdp_string(sdp).map_err(|error| error.to_string())?;
        let is_restarted = self.is_restarted_by(sdp);
        if let Some(Offer { has, .. }) = self.pending.take() {
            self.needs.channels |= has.channels;
            self.needs.media |= has.media;
            // Another restart than that of this offer would do nothing more.
            self.needs.restart |= has.restart && !is_restarted;
        }
        self.know(sdp);
        let answer = self.connection.change(network, |rtc| rtc.sdp_api().accept_offer(offer));
        answer.map(|answer| answer.to_sdp_string()).map_err(|error| error.to_string())
    }

    /// Takes the answer to the last offer.
    pub(super) fn accept_answer(&mut self, sdp: &str, network: &Network) -> Result<(), String> {
        // An answer may come to an offer that was taken back.
        let Some(Offer { pending, mids, .. }) = self.pending.take() else { return Ok(()) };
        let answer = SdpAnswer::from_sdp_string(sdp).map_err(|error| error.to_string())?;
        self.know(sdp);
        self.connection
            .change(network, |rtc| rtc.sdp_api().accept_answer(pending, answer))
            .map_err(|error| error.to_string())?;
        mids.into_iter().for_each(|(mid, kind)| self.add_media(mid, kind));
        Ok(())
    }

    /// Whether an offer restarts ICE.
    pub(super) fn is_restarted_by(&self, offer: &str) -> bool {
        self.user.as_deref().is_some_and(|user| Some(user) != ice_user(offer))
    }

    fn know(&mut self, sdp: &str) {
        self.fingerprint = fingerprint(sdp).map(str::to_owned);
        self.user = ice_user(sdp).map(str::to_owned);
    }

    pub(super) fn add_remote_candidate(&mut self, candidate: &Candidate, network: &Network) {
        if let Some(candidate) = remote_candidate(candidate) {
            self.connection.add_remote_candidate(candidate, network);
        }
    }

    /// Remembers a media section of the other side.
    pub(super) fn add_media(&mut self, mid: Mid, kind: MediaKind) {
        if !self.mids.iter().any(|(known, _)| *known == mid) {
            self.mids.push((mid, kind));
        }
    }

    /// Sends a frame of the picture or the tone.
    pub(super) fn play(
        &mut self,
        kind: MediaKind,
        layer: Layer,
        time: MediaTime,
        frame: &std::sync::Arc<[u8]>,
        network: &Network,
    ) {
        if !self.connection.rtc().is_connected() {
            return;
        }
        let rid = (self.layers && kind == MediaKind::Video).then(|| Rid::from(layer.name()));
        // Without layers, the middle one is the picture.
        if rid.is_none() && layer != Layer::Medium {
            return;
        }
        // One media section of each kind: a page may have more, for a screen.
        let rtc = self.connection.rtc();
        let sends = |mid| rtc.media(mid).is_some_and(|media| media.direction().is_sending());
        let Some((mid, _)) = self.mids.iter().find(|(mid, of)| *of == kind && sends(*mid)).copied() else { return };
        self.connection.change(network, |rtc| {
            let Some(mut writer) = rtc.writer(mid) else { return };
            let Some(payload_type) = writer.payload_params().next().map(|parameters| parameters.pt()) else { return };
            if let Some(rid) = rid {
                writer = writer.rid(rid);
            }
            if let Err(error) = writer.write(payload_type, Instant::now().into_std(), time, frame.clone()) {
                tracing::debug!("a frame is not sent: {error}");
            }
        });
    }

    /// Echoes on a data channel from now on, if there are not too many. Returns whether it does so.
    pub(super) fn open_channel(&mut self, id: ChannelId) -> bool {
        let has_place = self.channels.len() < CHANNELS;
        if has_place {
            self.channels.entry(id).or_default();
        }
        has_place
    }

    /// Forgets a data channel.
    pub(super) fn close_channel(&mut self, id: ChannelId) {
        let dropped = self.channels.remove(&id).unwrap_or_default();
        self.waiting -= dropped.iter().map(|(_, message)| message.len()).sum::<usize>();
    }

    /// Sends a message on a data channel, after those that wait.
    pub(super) fn say(&mut self, id: ChannelId, is_binary: bool, message: Vec<u8>, network: &Network) {
        let Some(waiting) = self.channels.get_mut(&id) else { return };
        if waiting.len() < WAITING.0 && self.waiting + message.len() <= WAITING.1 {
            self.waiting += message.len();
            waiting.push_back((is_binary, message));
        }
        self.flush(id, network);
    }

    /// Sends the messages that wait for a data channel, as far as it has room.
    pub(super) fn flush(&mut self, id: ChannelId, network: &Network) {
        let Some(waiting) = self.channels.get_mut(&id) else { return };
        while let Some((is_binary, message)) = waiting.front() {
            let sent = self.connection.change(network, |rtc| {
                rtc.channel(id).map_or(Ok(false), |mut channel| channel.write(*is_binary, message))
            });
            match sent {
                Ok(false) => break,
                Ok(true) => {}
                // A longer message than the other side takes would stop all others.
                Err(error) => tracing::debug!("a message is not echoed: {error}"),
            }
            self.waiting -= message.len();
            waiting.pop_front();
        }
    }
}

fn add_media(change: &mut SdpApi<'_>, kind: MediaKind, has_layers: bool) -> Mid {
    let (direction, layers) = match (has_layers, kind) {
        (true, MediaKind::Video) => {
            let mut layers = Simulcast::new();
            for layer in [Layer::Low, Layer::Medium, Layer::High] {
                layers.add_send_layer(SimulcastLayer::new(layer.name()));
            }
            (Direction::SendOnly, Some(layers))
        }
        (true, MediaKind::Audio) => (Direction::SendOnly, None),
        (false, _) => (Direction::SendRecv, None),
    };
    change.add_media(kind, direction, Some("bot".to_owned()), None, layers)
}

/// Adds the data channels of the pages.
fn add_channels(change: &mut SdpApi<'_>) {
    for (label, ordered, reliability) in [
        ("chat", true, Reliability::Reliable),
        ("files", true, Reliability::Reliable),
        ("game", false, Reliability::MaxRetransmits { retransmits: 0 }),
    ] {
        let label = label.to_owned();
        change.add_channel_with_config(ChannelConfig { label, ordered, reliability, ..ChannelConfig::default() });
    }
}

impl Layer {
    /// Returns the name of a layer in descriptions.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::connect::Trust;
    use crate::message::Ice;

    /// Returns a network without addresses.
    async fn network() -> Network {
        let (_, credentials) = watch::channel(Ice::default());
        Network::open(&[], credentials, Trust::default()).await.unwrap()
    }

    /// Returns two sides that are connected.
    fn pair(network: &Network) -> (Link, Link) {
        let (mut one, mut other) = (Link::to_peer(network), Link::new(network));
        let answer = other.accept_offer(&one.offer(network).unwrap(), network).unwrap();
        one.accept_answer(&answer, network).unwrap();
        (one, other)
    }

    #[tokio::test]
    async fn a_restart_whose_offer_was_taken_back_is_offered_again() {
        let network = network().await;
        let (mut one, mut other) = pair(&network);
        one.restart();
        assert!(other.is_restarted_by(&one.offer(&network).unwrap()), "the other side ignores it: it offers, too");
        other.add_own_media();
        let answer = one.accept_offer(&other.offer(&network).unwrap(), &network).unwrap();
        other.accept_answer(&answer, &network).unwrap();
        let again = one.offer(&network).unwrap();
        assert!(other.is_restarted_by(&again));
        one.accept_answer(&other.accept_offer(&again, &network).unwrap(), &network).unwrap();
        assert_eq!((one.offer(&network), other.offer(&network)), (None, None));
    }

    #[tokio::test]
    async fn one_restart_is_enough_if_both_sides_offer_it() {
        let network = network().await;
        let (mut one, mut other) = pair(&network);
        one.restart();
        one.offer(&network).unwrap();
        other.restart();
        let answer = one.accept_offer(&other.offer(&network).unwrap(), &network).unwrap();
        assert!(other.is_restarted_by(&answer));
        other.accept_answer(&answer, &network).unwrap();
        assert_eq!((one.offer(&network), other.offer(&network)), (None, None));
    }
}
