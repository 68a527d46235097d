//! What a participant receives from the forwarding unit. The unit offers, and the participant answers.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use str0m::bwe::Bitrate;
use str0m::change::{SdpAnswer, SdpPendingOffer};
use str0m::media::{Direction, MediaData, MediaKind, Mid};

use super::layers::{self, Picture};
use super::source::{Source, SourceId};
use super::timeline::Timeline;
use crate::message::{Layer, LayerChoice, Why};
use crate::webrtc::{Connection, Network, configuration, ice_user};

/// The bandwidth with which the estimate begins.
const FIRST_ESTIMATE: u64 = 1_000_000;

/// The bits per second that a voice takes.
const VOICE: u64 = 40_000;

/// After this time, an offer or its answer is lost.
const ANSWER: Duration = Duration::from_secs(10);

/// The bandwidth that is looked for, as a part of what the pictures would take, in percent.
const DESIRED: u64 = 130;

/// The connection on which a participant receives.
pub(super) struct Subscription {
    pub(super) connection: Connection,
    /// The media sections. They are used again when their source ends, so no negotiation is necessary then.
    slots: Vec<Slot>,
    /// The offer that waits for its answer.
    pending: Option<Offer>,
    /// The next offer restarts ICE.
    needs_restart: bool,
    /// The ICE user of the participant. `None` before the first answer.
    user: Option<String>,
    estimate: u64,
    choices: HashMap<SourceId, LayerChoice>,
}

/// An offer.
struct Offer {
    pending: SdpPendingOffer,
    sdp: String,
    made: Instant,
    /// Whether it restarts ICE.
    restarts: bool,
}

/// A media section.
#[derive(Debug)]
struct Slot {
    mid: Mid,
    kind: MediaKind,
    /// Whether the participant has answered the offer with it.
    is_open: bool,
    source: Option<SourceId>,
    timeline: Timeline,
    /// The layer that is wanted. It is sent from its next key frame on.
    target: Layer,
    /// The layer that is sent. `None` until a key frame comes.
    present: Option<Layer>,
}

/// What has to be done after a frame.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Forwarded {
    /// Another layer is sent from this frame on.
    pub(super) switched: Option<(Layer, Why)>,
    /// A key frame of this layer is needed.
    pub(super) needs_keyframe: Option<Layer>,
}

impl Offer {
    /// Whether a description may be the answer. An offer that was repeated has two answers, and the second one may come after
    /// the next offer, which has more sections or restarts ICE. `user` is the present ICE user of the participant.
    fn is_answered_by(&self, sdp: &str, user: Option<&str>) -> bool {
        let sections = |sdp: &str| sdp.lines().filter(|line| line.starts_with("m=")).count();
        sections(sdp) == sections(&self.sdp) && !(self.restarts && ice_user(sdp) == user)
    }
}

impl Subscription {
    pub(super) fn new(network: &Network) -> Self {
        let configuration = configuration().enable_bwe(Some(Bitrate::bps(FIRST_ESTIMATE)));
        Self {
            connection: Connection::new(configuration, network),
            slots: Vec::new(),
            pending: None,
            needs_restart: false,
            user: None,
            estimate: FIRST_ESTIMATE,
            choices: HashMap::new(),
        }
    }

    /// Returns a new connection for the same participant, which keeps its choices.
    pub(super) fn anew(self, network: &Network) -> Self {
        Self { choices: self.choices, ..Self::new(network) }
    }

    /// Assigns the sources that the participant receives to media sections. Returns whether something has changed.
    pub(super) fn assign(&mut self, sources: &[(SourceId, MediaKind)]) -> bool {
        let mut is_changed = false;
        for slot in &mut self.slots {
            if slot.source.is_some_and(|source| !sources.iter().any(|(wanted, _)| *wanted == source)) {
                slot.source = None;
                is_changed = true;
            }
        }
        self.choices.retain(|source, _| sources.iter().any(|(wanted, _)| wanted == source));
        for (source, kind) in sources {
            if self.slots.iter().any(|slot| slot.source == Some(*source)) {
                continue;
            }
            if let Some(slot) = self.slots.iter_mut().find(|slot| slot.source.is_none() && slot.kind == *kind) {
                slot.source = Some(*source);
                slot.timeline.switch();
                (slot.target, slot.present) = (Layer::Low, None);
                is_changed = true;
            }
        }
        is_changed
    }

    /// Makes an offer if one is needed and none waits for its answer: for sources without a media section, and to restart
    /// ICE. A restart does not wait for a lost answer.
    pub(super) fn offer(
        &mut self,
        sources: &[(SourceId, MediaKind)],
        network: &Network,
        now: Instant,
    ) -> Option<String> {
        let is_lost = |offer: &Offer| self.needs_restart && now.saturating_duration_since(offer.made) >= ANSWER;
        if !self.pending.as_ref().is_none_or(is_lost) {
            return None;
        }
        let has_slot = |source| self.slots.iter().any(|slot| slot.source == Some(source));
        let missing: Vec<_> = sources.iter().filter(|(source, _)| !has_slot(*source)).copied().collect();
        if missing.is_empty() && !self.needs_restart {
            return None;
        }
        // Before the first answer, there is nothing to restart.
        let restarts = std::mem::take(&mut self.needs_restart) && self.user.is_some();
        let (slots, lost) = (&mut self.slots, self.pending.take());
        let (offer, pending) = self.connection.change(network, |rtc| {
            let mut change = rtc.sdp_api();
            if let Some(lost) = lost {
                change.merge(lost.pending);
            }
            for (source, kind) in missing {
                let stream = Some(format!("slot-{}", slots.len()));
                let mid = change.add_media(kind, Direction::SendOnly, stream, None, None);
                let (target, present, timeline) = (Layer::Low, None, Timeline::default());
                slots.push(Slot { mid, kind, is_open: false, source: Some(source), timeline, target, present });
            }
            if restarts {
                change.ice_restart(true);
            }
            change.apply()
        })?;
        let sdp = offer.to_sdp_string();
        self.pending = Some(Offer { pending, sdp: sdp.clone(), made: now, restarts });
        Some(sdp)
    }

    /// Returns the offer that waits for its answer. It or the answer may have been lost with the signalling.
    pub(super) fn pending(&self) -> Option<&str> {
        self.pending.as_ref().map(|offer| offer.sdp.as_str())
    }

    /// Takes the answer to the last offer, and ignores that to an earlier one. Returns whether it restarts ICE.
    ///
    /// # Errors
    /// If it does not fit to the offer. Then the connection ends, because both sides have another view of it.
    pub(super) fn answer(&mut self, sdp: &str, network: &Network) -> Result<bool, String> {
        let user = ice_user(sdp).map(str::to_owned);
        let Some(Offer { pending, .. }) = self.pending.take_if(|offer| offer.is_answered_by(sdp, self.user.as_deref()))
        else {
            return Ok(false);
        };
        let accepted = SdpAnswer::from_sdp_string(sdp)
            .map_err(|error| format!("The answer is not understood: {error}."))
            .and_then(|answer| {
                let accepted = self.connection.change(network, |rtc| rtc.sdp_api().accept_answer(pending, answer));
                accepted.map_err(|error| format!("The answer does not fit to the offer: {error}."))
            });
        if let Err(reason) = accepted {
            self.connection.end();
            return Err(reason);
        }
        self.slots.iter_mut().for_each(|slot| slot.is_open = true);
        let is_restart = self.user != user;
        self.user = user;
        Ok(is_restart)
    }

    /// Lets the next offer restart ICE.
    pub(super) fn restart(&mut self) {
        self.needs_restart = true;
    }

    /// Returns the sources with their media sections.
    pub(super) fn tracks(&self) -> impl Iterator<Item = (SourceId, Mid)> + '_ {
        self.slots.iter().filter_map(|slot| Some((slot.source?, slot.mid)))
    }

    /// Returns the source of a media section, and the layer that is sent.
    pub(super) fn source_of(&self, mid: Mid) -> Option<(SourceId, Layer)> {
        let slot = self.slots.iter().find(|slot| slot.mid == mid)?;
        Some((slot.source?, slot.present.unwrap_or(slot.target)))
    }

    /// Whether the participant receives a source.
    pub(super) fn receives(&self, source: SourceId) -> bool {
        self.slots.iter().any(|slot| slot.source == Some(source))
    }

    /// Remembers what the participant wants of a source.
    pub(super) fn choose(&mut self, source: SourceId, choice: LayerChoice) {
        self.choices.insert(source, choice);
    }

    /// Returns the layer that is sent of a source, and why. `None` if another one comes first.
    pub(super) fn sent(&self, source: SourceId) -> Option<(Layer, Why)> {
        let slot = self.slots.iter().find(|slot| slot.source == Some(source) && slot.present == Some(slot.target))?;
        Some((slot.target, self.why(source, slot.target)))
    }

    fn why(&self, source: SourceId, layer: Layer) -> Why {
        let choice = self.choices.get(&source).copied().unwrap_or_default();
        let is_chosen = choice != LayerChoice::Auto && layer == choice.highest();
        if is_chosen { Why::Chosen } else { Why::Bandwidth }
    }

    /// Takes an estimate of the bandwidth, in bits per second.
    pub(super) fn estimated(&mut self, estimate: u64) {
        self.estimate = estimate;
    }

    /// Chooses the layers that follow from the estimate. Returns those of which a key frame is needed.
    pub(super) fn choose_layers(
        &mut self,
        sources: &mut std::collections::BTreeMap<SourceId, Source>,
        now: Instant,
        network: &Network,
    ) -> Vec<(SourceId, Layer)> {
        let voices =
            self.slots.iter().filter(|slot| slot.source.is_some() && slot.kind == MediaKind::Audio).count() as u64;
        let mut pictures = Vec::new();
        let mut slots = Vec::new();
        for (index, slot) in self.slots.iter().enumerate().filter(|(_, slot)| slot.kind == MediaKind::Video) {
            let Some((id, source)) = slot.source.and_then(|id| Some((id, sources.get_mut(&id)?))) else { continue };
            let choice = self.choices.get(&id).copied().unwrap_or_default();
            pictures.push(Picture { sent: source.sent(now), choice, present: slot.present });
            slots.push((index, id));
        }
        let desired = (pictures.iter().map(Picture::most).sum::<u64>() + voices * VOICE) * DESIRED / 100;
        self.connection.change(network, |rtc| rtc.bwe().set_desired_bitrate(Bitrate::bps(desired)));
        let chosen = layers::choose(self.estimate.saturating_sub(voices * VOICE), &pictures);
        let mut needed = Vec::new();
        for ((index, id), layer) in slots.into_iter().zip(chosen) {
            let (Some(slot), Some(layer)) = (self.slots.get_mut(index), layer) else { continue };
            slot.target = layer;
            if slot.is_open && slot.present != Some(layer) {
                needed.push((id, layer));
            }
        }
        needed
    }

    /// Sends a frame of a source on, if the participant gets its layer.
    pub(super) fn forward(&mut self, source: SourceId, layer: Layer, data: &MediaData, network: &Network) -> Forwarded {
        let mut result = Forwarded::default();
        let why = self.why(source, layer);
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.source == Some(source) && slot.is_open) else {
            return result;
        };
        if slot.kind == MediaKind::Video {
            if layer == slot.target && slot.present != Some(layer) {
                if !data.is_keyframe() {
                    result.needs_keyframe = Some(layer);
                } else {
                    slot.present = Some(layer);
                    slot.timeline.switch();
                    result.switched = Some((layer, why));
                }
            }
            if slot.present != Some(layer) {
                return result;
            }
            if !data.contiguous && !data.is_keyframe() {
                // The next frames refer to one that was lost.
                slot.present = None;
                result.needs_keyframe = Some(layer);
                return result;
            }
        }
        let (mid, time) = (slot.mid, slot.timeline.map(data.time, data.network_time));
        self.connection.change(network, |rtc| {
            let Some(writer) = rtc.writer(mid) else { return };
            let Some(payload_type) = writer.match_params(data.params) else { return };
            if let Err(error) = writer.write(payload_type, data.network_time, time, data.data.clone()) {
                tracing::debug!("a frame is not sent: {error}");
            }
        });
        result
    }
}
