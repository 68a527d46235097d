//! A connection of the bot: with another participant, or with the forwarding unit.

use std::collections::{HashMap, VecDeque};

use str0m::change::{SdpAnswer, SdpOffer, SdpPendingOffer};
use str0m::channel::{ChannelConfig, ChannelId, Reliability};
use str0m::media::{Direction, MediaKind, MediaTime, Mid, Rid, Simulcast, SimulcastLayer};
use tokio::time::Instant;

use crate::message::{Candidate, Layer};
use crate::webrtc::{Connection, Network, configuration, fingerprint, remote_candidate};

/// How many messages wait until a data channel has room. More are lost.
const WAITING: usize = 4_096;

/// A connection.
pub(super) struct Link {
    pub(super) connection: Connection,
    pending: Option<SdpPendingOffer>,
    /// The hash of the certificate of the other side.
    fingerprint: Option<String>,
    pub(super) channels: HashMap<ChannelId, VecDeque<(bool, Vec<u8>)>>,
    mids: Vec<(Mid, MediaKind)>,
    has_layers: bool,
}

impl Link {
    pub(super) fn new(network: &Network) -> Self {
        let connection = Connection::new(configuration(), network);
        let (channels, mids) = (HashMap::new(), Vec::new());
        Self { connection, pending: None, fingerprint: None, channels, mids, has_layers: false }
    }

    /// Offers data channels, picture and tone, as who enters a mesh does.
    pub(super) fn offer_to_peer(&mut self, network: &Network) -> Option<String> {
        let offer = self.connection.change(network, |rtc| {
            let mut change = rtc.sdp_api();
            let mids = [MediaKind::Audio, MediaKind::Video]
                .map(|kind| (change.add_media(kind, Direction::SendRecv, Some("bot".to_owned()), None, None), kind));
            for (label, ordered, reliability) in [
                ("chat", true, Reliability::Reliable),
                ("files", true, Reliability::Reliable),
                ("game", false, Reliability::MaxRetransmits { retransmits: 0 }),
            ] {
                let label = label.to_owned();
                change.add_channel_with_config(ChannelConfig {
                    label,
                    ordered,
                    reliability,
                    ..ChannelConfig::default()
                });
            }
            change.apply().map(|offer| (offer, mids))
        });
        let ((offer, pending), mids) = offer?;
        self.mids.extend(mids);
        self.pending = Some(pending);
        Some(offer.to_sdp_string())
    }

    /// Offers picture, in three layers, and tone to the forwarding unit.
    pub(super) fn offer_to_sfu(&mut self, network: &Network) -> Option<String> {
        let offer = self.connection.change(network, |rtc| {
            let mut change = rtc.sdp_api();
            let stream = || Some("bot".to_owned());
            let audio = change.add_media(MediaKind::Audio, Direction::SendOnly, stream(), None, None);
            let mut layers = Simulcast::new();
            for layer in [Layer::Low, Layer::Medium, Layer::High] {
                layers.add_send_layer(SimulcastLayer::new(layer.name()));
            }
            let video = change.add_media(MediaKind::Video, Direction::SendOnly, stream(), None, Some(layers));
            change.apply().map(|offer| (offer, [(audio, MediaKind::Audio), (video, MediaKind::Video)]))
        });
        let ((offer, pending), mids) = offer?;
        self.mids.extend(mids);
        (self.pending, self.has_layers) = (Some(pending), true);
        Some(offer.to_sdp_string())
    }

    /// Whether an offer is for this connection. A page that has been loaded again has another certificate.
    pub(super) fn fits(&self, offer: &str) -> bool {
        let is_same = self.fingerprint.as_deref().is_none_or(|known| Some(known) == fingerprint(offer));
        self.connection.rtc().is_alive() && is_same
    }

    /// Takes an offer and returns the answer. An own offer that waits for its answer is taken back.
    pub(super) fn accept_offer(&mut self, sdp: &str, network: &Network) -> Result<String, String> {
        let offer = SdpOffer::from_sdp_string(sdp).map_err(|error| error.to_string())?;
        self.pending = None;
        self.fingerprint = fingerprint(sdp).map(str::to_owned);
        let answer = self.connection.change(network, |rtc| rtc.sdp_api().accept_offer(offer));
        answer.map(|answer| answer.to_sdp_string()).map_err(|error| error.to_string())
    }

    /// Takes the answer to the last offer.
    pub(super) fn accept_answer(&mut self, sdp: &str, network: &Network) -> Result<(), String> {
        // An answer may come to an offer that was taken back.
        let Some(pending) = self.pending.take() else { return Ok(()) };
        let answer = SdpAnswer::from_sdp_string(sdp).map_err(|error| error.to_string())?;
        self.fingerprint = fingerprint(sdp).map(str::to_owned);
        self.connection
            .change(network, |rtc| rtc.sdp_api().accept_answer(pending, answer))
            .map_err(|error| error.to_string())
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
        let rid = (self.has_layers && kind == MediaKind::Video).then(|| Rid::from(layer.name()));
        // Without layers, the middle one is the picture.
        if rid.is_none() && layer != Layer::Medium {
            return;
        }
        // One media section of each kind: a page may have more, for a screen.
        let Some((mid, _)) = self.mids.iter().find(|(_, of)| *of == kind).copied() else { return };
        self.connection.change(network, |rtc| {
            if !rtc.media(mid).is_some_and(|media| media.direction().is_sending()) {
                return;
            }
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

    /// Sends a message on a data channel, after those that wait.
    pub(super) fn say(&mut self, id: ChannelId, is_binary: bool, message: Vec<u8>, network: &Network) {
        let Some(waiting) = self.channels.get_mut(&id) else { return };
        if waiting.len() < WAITING {
            waiting.push_back((is_binary, message));
        }
        self.flush(id, network);
    }

    /// Sends the messages that wait for a data channel, as far as it has room.
    pub(super) fn flush(&mut self, id: ChannelId, network: &Network) {
        let Some(waiting) = self.channels.get_mut(&id) else { return };
        while let Some((is_binary, message)) = waiting.front() {
            let is_sent = self.connection.change(network, |rtc| {
                rtc.channel(id).is_some_and(|mut channel| channel.write(*is_binary, message).unwrap_or(false))
            });
            if !is_sent {
                break;
            }
            waiting.pop_front();
        }
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
