//! What a participant sends to the forwarding unit. The participant offers, and the unit answers.

use str0m::change::SdpOffer;
use str0m::media::{KeyframeRequestKind, Mid, Rid, Rids};

use super::police;
use crate::webrtc::{Connection, Network, configuration, fingerprint, ice_user};

/// The greatest number of media sections: camera, microphone, and a screen with its sound, which may end and begin anew.
const SECTIONS: usize = 16;

/// The connection on which a participant sends.
pub(super) struct Publication {
    pub(super) connection: Connection,
    /// The hash of the certificate of the participant.
    fingerprint: Option<String>,
    /// Its ICE user.
    user: Option<String>,
}

impl Publication {
    /// Creates the connection for a first offer.
    pub(super) fn new(offer: &str, network: &Network) -> Self {
        let fingerprint = fingerprint(offer).map(str::to_owned);
        let user = ice_user(offer).map(str::to_owned);
        Self { connection: Connection::new(configuration(), network), fingerprint, user }
    }

    /// Whether an offer is for this connection. A page that has been loaded again has another certificate.
    pub(super) fn fits(&self, offer: &str) -> bool {
        self.connection.rtc().is_alive() && self.fingerprint.as_deref() == fingerprint(offer)
    }

    /// Whether an offer restarts ICE.
    pub(super) fn restarts_with(&self, offer: &str) -> bool {
        self.user.as_deref() != ice_user(offer)
    }

    /// Takes an offer and returns the answer.
    ///
    /// # Errors
    /// If the offer cannot be used.
    pub(super) fn answer(&mut self, sdp: &str, network: &Network) -> Result<String, String> {
        if sdp.lines().filter(|line| line.starts_with("m=")).count() > SECTIONS {
            return Err(format!("The offer has more than {SECTIONS} media sections. Use those that have ended again."));
        }
        // Nothing would read them.
        if sdp.lines().any(|line| line.starts_with("m=application")) {
            return Err("The forwarding unit takes no data channels. Open them to each participant.".to_owned());
        }
        let offer = SdpOffer::from_sdp_string(sdp).map_err(|error| format!("The offer is not understood: {error}."))?;
        let answer = self.connection.change(network, |rtc| rtc.sdp_api().accept_offer(offer));
        let answer = answer.map_err(|error| format!("The offer is not accepted: {error}."))?;
        self.user = ice_user(sdp).map(str::to_owned);
        Ok(police::with_ceiling(&answer.to_sdp_string()))
    }

    /// Returns the names of the layers of a media section.
    pub(super) fn rids(&self, mid: Mid) -> &[Rid] {
        match self.connection.rtc().media(mid).map(|media| media.rids_rx()) {
            Some(Rids::Specific(rids)) => rids,
            _ => &[],
        }
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
