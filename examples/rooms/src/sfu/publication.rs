//! What a participant sends to the forwarding unit. The participant offers, and the unit answers.

use str0m::change::SdpOffer;
use str0m::media::{KeyframeRequestKind, Mid, Rid};

use crate::webrtc::{Connection, Network, configuration, fingerprint};

/// The connection on which a participant sends.
pub(super) struct Publication {
    pub(super) connection: Connection,
    /// The hash of the certificate of the participant.
    fingerprint: Option<String>,
}

impl Publication {
    /// Creates the connection for a first offer.
    pub(super) fn new(offer: &str, network: &Network) -> Self {
        let fingerprint = fingerprint(offer).map(str::to_owned);
        Self { connection: Connection::new(configuration(), network), fingerprint }
    }

    /// Whether an offer is for this connection. A page that has been loaded again has another certificate.
    pub(super) fn fits(&self, offer: &str) -> bool {
        self.connection.rtc().is_alive() && self.fingerprint.as_deref() == fingerprint(offer)
    }

    /// Takes an offer and returns the answer.
    ///
    /// # Errors
    /// If the offer cannot be used.
    pub(super) fn answer(&mut self, sdp: &str, network: &Network) -> Result<String, String> {
        let offer = SdpOffer::from_sdp_string(sdp).map_err(|error| format!("The offer is not understood: {error}."))?;
        let answer = self.connection.change(network, |rtc| rtc.sdp_api().accept_offer(offer));
        answer.map(|answer| answer.to_sdp_string()).map_err(|error| format!("The offer is not accepted: {error}."))
    }

    /// Requests a key frame.
    pub(super) fn request_keyframe(&mut self, mid: Mid, rid: Option<Rid>, network: &Network) {
        self.connection.change(network, |rtc| {
            if let Some(mut writer) = rtc.writer(mid) {
                let _ = writer.request_keyframe(rid, KeyframeRequestKind::Pli);
            }
        });
    }
}
