//! The test picture and the tone: two seconds that are repeated. `assets/make` makes the files.

use std::sync::Arc;

use crate::message::Layer;

/// The layers of the picture as IVF files with VP8.
const PICTURES: [(Layer, &[u8]); 3] = [
    (Layer::Low, include_bytes!("../../assets/low.ivf")),
    (Layer::Medium, include_bytes!("../../assets/medium.ivf")),
    (Layer::High, include_bytes!("../../assets/high.ivf")),
];

/// The tone as an Ogg file with Opus.
const TONE: &[u8] = include_bytes!("../../assets/tone.ogg");

/// The pictures per second.
pub(super) const PICTURE_RATE: u32 = 15;

/// The packets of the tone per second.
pub(super) const TONE_RATE: u32 = 50;

/// The frames of a medium, which are repeated.
#[derive(Clone, Debug)]
pub(super) struct Frames(Vec<Arc<[u8]>>);

impl Frames {
    /// Returns a frame.
    pub(super) fn get(&self, number: u64) -> Option<Arc<[u8]>> {
        let length = u64::try_from(self.0.len()).ok().filter(|length| *length > 0)?;
        self.0.get(usize::try_from(number % length).ok()?).cloned()
    }
}

/// Returns the layers of the picture.
pub(super) fn pictures() -> [(Layer, Frames); 3] {
    PICTURES.map(|(layer, file)| (layer, Frames(ivf_frames(file).unwrap_or_default())))
}

/// Returns the tone.
pub(super) fn tone() -> Frames {
    // The first two packets describe the others (RFC 7845 §3).
    Frames(ogg_packets(TONE).unwrap_or_default().into_iter().skip(2).map(Arc::from).collect())
}

/// Returns the height of a picture. `None` if it is no key frame.
pub(super) fn height(frame: &[u8]) -> Option<u16> {
    // RFC 6386 §9.1: the tag with the kind of frame, a start code, the width and the height with their scales.
    let header: &[u8; 10] = frame.first_chunk()?;
    let [tag, _, _, 0x9d, 0x01, 0x2a, _, _, low, high] = *header else { return None };
    (tag & 1 == 0).then(|| u16::from_le_bytes([low, high]) & 0x3fff)
}

/// Returns the frames of an IVF file. `None` if it ends too early.
fn ivf_frames(mut file: &[u8]) -> Option<Vec<Arc<[u8]>>> {
    file = file.split_at_checked(32)?.1;
    let mut frames = Vec::new();
    while !file.is_empty() {
        let (header, rest) = file.split_at_checked(12)?;
        let length = u32::from_le_bytes(header.first_chunk().copied()?);
        let (frame, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
        frames.push(Arc::from(frame));
        file = rest;
    }
    Some(frames)
}

/// Returns the packets of an Ogg file with one stream (RFC 3533 §6). `None` if it ends too early.
fn ogg_packets(mut file: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (mut packets, mut packet) = (Vec::new(), Vec::new());
    while !file.is_empty() {
        let (header, rest) = file.split_at_checked(27)?;
        let (lacing, mut rest) = rest.split_at_checked(usize::from(*header.last()?))?;
        for length in lacing {
            let (segment, others) = rest.split_at_checked(usize::from(*length))?;
            packet.extend_from_slice(segment);
            // A shorter segment is the last one of its packet.
            if *length < 255 {
                packets.push(std::mem::take(&mut packet));
            }
            rest = others;
        }
        file = rest;
    }
    Some(packets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_have_two_seconds_and_a_key_frame_per_second() {
        for (layer, Frames(frames)) in pictures() {
            assert_eq!(frames.len(), 30, "{layer:?}");
            // RFC 6386 §9.1: the lowest bit of a key frame is 0.
            let keys: Vec<usize> = (0..30).filter(|index| frames[*index][0] & 1 == 0).collect();
            assert!(keys.contains(&0) && keys.contains(&15), "{layer:?}: {keys:?}");
            assert!(keys.iter().all(|key| height(&frames[*key]) == height(&frames[0])) && height(&frames[1]).is_none());
        }
        let heights = pictures().map(|(_, Frames(frames))| height(&frames[0]).unwrap());
        assert!(heights[0] * 2 == heights[1] && heights[1] * 2 == heights[2], "{heights:?}");
        let Frames(tone) = tone();
        assert!((100..=102).contains(&tone.len()), "{}", tone.len());
    }
}
