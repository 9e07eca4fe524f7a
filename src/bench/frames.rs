//! Frames out of reads, and the short way for the one packet that comes by the million.
//!
//! A QoS 0 PUBLISH without properties is found with a few comparisons; everything else goes to the
//! client's state machine or the decoder, whole.
#![forbid(unsafe_code)]

use crate::codec::mqtt::{DecodeError, Version, frame_len};

/// The first byte of a PUBLISH at QoS 0 without flags.
pub(super) const PLAIN_PUBLISH: u8 = 0x30;
/// A buffer for a cut frame that has grown beyond this is given back.
const PARTIAL_KEEP: usize = 64 * 1024;

/// The beginning of a frame that the end of a read has cut.
#[derive(Debug, Default)]
pub(super) struct Frames {
    partial: Vec<u8>,
}

impl Frames {
    /// Forgets what was cut: another connection begins.
    pub(super) fn reset(&mut self) {
        self.partial = Vec::new();
    }

    /// Calls `on_frame` for each whole frame, in order.
    ///
    /// # Errors
    /// When the bytes cannot be frames.
    #[inline]
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut on_frame: impl FnMut(&[u8]),
    ) -> Result<(), DecodeError> {
        while !self.partial.is_empty() && !bytes.is_empty() {
            // As many bytes as are known to be missing, one when not even that is known.
            let missing = frame_len(&self.partial)?.map_or(1, |len| len - self.partial.len());
            let (piece, rest) = bytes.split_at(missing.min(bytes.len()));
            self.partial.extend_from_slice(piece);
            bytes = rest;
            if frame_len(&self.partial)? == Some(self.partial.len()) {
                on_frame(&self.partial);
                self.partial.clear();
                if self.partial.capacity() > PARTIAL_KEEP {
                    self.partial = Vec::new();
                }
            }
        }
        while !bytes.is_empty() {
            match frame_len(bytes)? {
                Some(len) if len <= bytes.len() => {
                    let (frame, rest) = bytes.split_at(len);
                    bytes = rest;
                    on_frame(frame);
                }
                _ => {
                    self.partial.extend_from_slice(bytes);
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Topic and payload of a frame, if it is a QoS 0 PUBLISH without flags and properties.
#[inline]
pub(super) fn plain_publish(frame: &[u8], version: Version) -> Option<(&[u8], &[u8])> {
    if frame.first() != Some(&PLAIN_PUBLISH) {
        return None;
    }
    // The length is well-formed: it was used to find the frame.
    let header = 1 + frame[1..].iter().position(|byte| byte & 0x80 == 0)? + 1;
    let rest = &frame[header..];
    let (len, rest) = rest.split_first_chunk::<2>()?;
    let (topic, rest) = rest.split_at_checked(u16::from_be_bytes(*len).into())?;
    if topic.is_empty() {
        return None;
    }
    match version {
        Version::V5 => rest.strip_prefix(&[0]).map(|payload| (topic, payload)),
        _ => Some((topic, rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::mqtt::{Packet, Publish};
    use proptest::prelude::*;

    fn publish(topic: &str, payload: &[u8], version: Version) -> Vec<u8> {
        let mut frame = Vec::new();
        Packet::Publish(Publish::plain(topic, payload)).encode(version, &mut frame);
        frame
    }

    #[test]
    fn finds_topic_and_payload() {
        for version in [Version::V311, Version::V5] {
            for len in [0, 5, 200, 20_000] {
                let payload = vec![7; len];
                let frame = publish("a/b", &payload, version);
                let found = plain_publish(&frame, version);
                assert_eq!(found, Some((&b"a/b"[..], &payload[..])), "{version} {len}");
            }
        }
        let mut retained = publish("a", b"b", Version::V311);
        retained[0] |= 1;
        assert_eq!(plain_publish(&retained, Version::V311), None);
        let with_properties = [0x30, 7, 0, 1, b'a', 2, 1, 0, b'b'];
        assert_eq!(plain_publish(&with_properties, Version::V5), None);
        assert_eq!(plain_publish(&[0x30, 3, 0, 9, b'a'], Version::V311), None);
    }

    proptest! {
        #[test]
        fn frames_are_found_however_reads_cut_them(
            lens in prop::collection::vec(0usize..400, 1..20),
            cuts in prop::collection::vec(1usize..300, 1..20),
        ) {
            let sent: Vec<Vec<u8>> =
                lens.iter().map(|len| publish("t", &vec![1; *len], Version::V311)).collect();
            let all = sent.concat();
            let mut rest = &all[..];
            let mut frames = Frames::default();
            let mut received = Vec::new();
            for cut in cuts.iter().cycle() {
                let (piece, behind) = rest.split_at((*cut).min(rest.len()));
                rest = behind;
                frames.feed(piece, |frame| received.push(frame.to_vec())).unwrap();
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(received, sent);
        }
    }
}
