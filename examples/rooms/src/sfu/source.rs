//! A track that a participant sends to the forwarding unit.

use std::time::{Duration, Instant};

use str0m::media::{MediaKind, Mid, Rid};

use crate::message::{Layer, Token};

/// The time between two requests for a key frame of a layer: a key frame is large.
const KEYFRAME_INTERVAL: Duration = Duration::from_millis(500);

/// The time in which the bits of a layer are counted. A layer without any in it is not sent.
const WINDOW: Duration = Duration::from_secs(1);

/// Identifies a track in a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SourceId(pub(super) u32);

impl SourceId {
    /// Returns the identifier for messages.
    pub(super) fn token(self) -> Token {
        Token::number(self.0)
    }
}

/// A track.
#[derive(Debug)]
pub(super) struct Source {
    /// The participant that sends it.
    pub(super) owner: u32,
    pub(super) mid: Mid,
    pub(super) kind: MediaKind,
    /// The layers that its description names, the highest first.
    pub(super) layers: Vec<Layer>,
    rates: [Rate; 3],
    requested: [Option<Instant>; 3],
}

/// The bits per second of a layer.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    window: Option<Instant>,
    bits: u64,
    last: u64,
}

impl Source {
    pub(super) fn new(owner: u32, mid: Mid, kind: MediaKind, rids: &[Rid]) -> Self {
        let mut layers: Vec<Layer> = rids.iter().map(|rid| layer(Some(*rid))).collect();
        layers.sort_unstable_by(|one, other| other.cmp(one));
        layers.dedup();
        if layers.is_empty() && kind == MediaKind::Video {
            layers.push(Layer::High);
        }
        Self { owner, mid, kind, layers, rates: [Rate::default(); 3], requested: [None; 3] }
    }

    /// Counts a frame.
    pub(super) fn count(&mut self, layer: Layer, bytes: usize, now: Instant) {
        if let Some(rate) = self.rates.get_mut(layer as usize) {
            rate.advance(now);
            rate.bits += bytes as u64 * 8;
        }
    }

    /// Returns the layers that are sent, with their bits per second, the lowest first.
    pub(super) fn sent(&mut self, now: Instant) -> Vec<(Layer, u64)> {
        let layers = [Layer::Low, Layer::Medium, Layer::High];
        let rates = layers.into_iter().zip(&mut self.rates).map(|(layer, rate)| {
            rate.advance(now);
            (layer, rate.last.max(rate.bits))
        });
        rates.filter(|(_, rate)| *rate > 0).collect()
    }

    /// Whether a key frame of a layer may be requested. Then it counts as requested.
    pub(super) fn may_request(&mut self, layer: Layer, now: Instant) -> bool {
        let Some(requested) = self.requested.get_mut(layer as usize) else { return false };
        let is_due = requested.is_none_or(|at| now.saturating_duration_since(at) >= KEYFRAME_INTERVAL);
        if is_due {
            *requested = Some(now);
        }
        is_due
    }

    /// Returns the name of a layer in the description. `None` if the track has no layers.
    pub(super) fn rid(&self, layer: Layer) -> Option<Rid> {
        (self.layers.len() > 1).then(|| Rid::from(layer.name()))
    }
}

impl Rate {
    fn advance(&mut self, now: Instant) {
        let began = *self.window.get_or_insert(now);
        let passed = now.saturating_duration_since(began);
        if passed >= WINDOW {
            // The window may be longer than it should be: by the time without any frame.
            let millis = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).max(1);
            self.last = if passed >= WINDOW * 2 { 0 } else { self.bits * 1_000 / millis };
            (self.window, self.bits) = (Some(now), 0);
        }
    }
}

/// Returns the layer with a name. Other names, and none, are the whole picture.
pub(super) fn layer(rid: Option<Rid>) -> Layer {
    match rid.as_deref() {
        Some("low") => Layer::Low,
        Some("medium") => Layer::Medium,
        _ => Layer::High,
    }
}
