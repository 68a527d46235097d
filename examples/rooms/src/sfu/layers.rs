//! Which simulcast layer of each picture a viewer gets.

use crate::message::{Layer, LayerChoice};

/// A higher layer than the present one has to fit with this much to spare, in percent. Otherwise layers would alternate.
const SPARE: u64 = 15;

/// A picture that a viewer receives.
#[derive(Clone, Debug)]
pub(super) struct Picture {
    /// The layers that its sender sends, with their bits per second, the lowest first.
    pub(super) sent: Vec<(Layer, u64)>,
    /// What the viewer wants.
    pub(super) choice: LayerChoice,
    /// What it gets at present.
    pub(super) present: Option<Layer>,
}

impl LayerChoice {
    /// Returns the highest layer that is wanted.
    pub(super) fn highest(self) -> Layer {
        match self {
            Self::Auto | Self::High => Layer::High,
            Self::Medium => Layer::Medium,
            Self::Low => Layer::Low,
        }
    }
}

impl Picture {
    /// Returns the layers to choose from: those that are wanted, or the lowest one.
    fn wanted(&self) -> &[(Layer, u64)] {
        let wanted = self.sent.iter().filter(|(layer, _)| *layer <= self.choice.highest()).count();
        self.sent.get(..wanted.max(1)).unwrap_or(&self.sent)
    }

    /// Returns the bits per second of the highest layer that is wanted.
    pub(super) fn most(&self) -> u64 {
        self.wanted().last().map_or(0, |(_, rate)| *rate)
    }
}

/// Returns the layer of each picture, `None` if nothing is sent. All get their lowest layer; what is left of the
/// estimated bits per second raises them in turn.
pub(super) fn choose(estimate: u64, pictures: &[Picture]) -> Vec<Option<Layer>> {
    let mut steps = vec![0; pictures.len()];
    let rate = |picture: &Picture, step: usize| picture.wanted().get(step).map_or(0, |(_, rate)| *rate);
    let mut total: u64 = pictures.iter().map(|picture| rate(picture, 0)).sum();
    loop {
        let mut is_raised = false;
        for (picture, step) in pictures.iter().zip(&mut steps) {
            let Some((layer, next)) = picture.wanted().get(*step + 1) else { continue };
            let raised = total - rate(picture, *step) + next;
            let is_new = picture.present.is_none_or(|present| *layer > present);
            let needed = if is_new { raised + raised * SPARE / 100 } else { raised };
            if needed <= estimate {
                (total, *step, is_raised) = (raised, *step + 1, true);
            }
        }
        if !is_raised {
            break;
        }
    }
    let layer = |(picture, step): (&Picture, &usize)| picture.wanted().get(*step).map(|(layer, _)| *layer);
    pictures.iter().zip(&steps).map(layer).collect()
}

#[cfg(test)]
mod tests {
    use super::Layer::{High, Low, Medium};
    use super::*;

    fn picture(choice: LayerChoice, present: Option<Layer>) -> Picture {
        Picture { sent: vec![(Low, 100), (Medium, 400), (High, 1_500)], choice, present }
    }

    fn auto(estimate: u64, present: Option<Layer>) -> Option<Layer> {
        choose(estimate, &[picture(LayerChoice::Auto, present)])[0]
    }

    #[test]
    fn the_layer_falls_with_the_estimate_and_never_below_the_lowest() {
        let of = [2_000, 1_600, 1_499, 399, 50].map(|estimate| auto(estimate, Some(High)));
        assert_eq!(of, [Some(High), Some(High), Some(Medium), Some(Low), Some(Low)]);
    }

    #[test]
    fn a_higher_layer_needs_bandwidth_to_spare() {
        assert_eq!(auto(459, Some(Low)), Some(Low));
        assert_eq!(auto(460, Some(Low)), Some(Medium));
        assert_eq!(auto(400, Some(Medium)), Some(Medium), "the present one does not");
    }

    #[test]
    fn a_viewer_gets_no_higher_layer_than_it_has_chosen() {
        let of = [LayerChoice::Low, LayerChoice::Medium, LayerChoice::High, LayerChoice::Auto]
            .map(|choice| choose(10_000, &[picture(choice, None)])[0]);
        assert_eq!(of, [Some(Low), Some(Medium), Some(High), Some(High)]);
    }

    #[test]
    fn pictures_share_the_bandwidth() {
        let two = [picture(LayerChoice::Auto, None), picture(LayerChoice::Auto, None)];
        assert_eq!(choose(1_000, &two), [Some(Medium), Some(Medium)]);
        assert_eq!(choose(2_300, &two), [Some(High), Some(Medium)]);
    }

    #[test]
    fn what_is_not_sent_is_not_chosen() {
        let only_high = Picture { sent: vec![(High, 1_500)], choice: LayerChoice::Low, present: None };
        let nothing = Picture { sent: vec![], choice: LayerChoice::Auto, present: None };
        assert_eq!(choose(100, &[only_high, nothing]), [Some(High), None]);
    }
}
