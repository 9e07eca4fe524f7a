//! Bytes on their way out: contiguous small frames, with large payloads shared between them.
#![forbid(unsafe_code)]

use bytes::Bytes;

/// Bytes for one connection, in order. Small frames are copied into one contiguous buffer; a large
/// payload is a reference-counted piece between two of its bytes, so that a fan-out of a large
/// message holds the payload once.
#[derive(Debug, Default)]
pub struct OutBuf {
    copied: Vec<u8>,
    /// From the first large payload on.
    shared: Option<Box<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Each with the length that `copied` had when it was appended; ascending.
    pieces: Vec<(usize, Bytes)>,
    /// Bytes of all.
    len: usize,
}

impl OutBuf {
    /// An empty buffer that owns no memory.
    pub const fn new() -> Self {
        Self { copied: Vec::new(), shared: None }
    }

    /// Bytes in it.
    #[inline]
    pub fn len(&self) -> usize {
        self.copied.len() + self.shared.as_ref().map_or(0, |shared| shared.len)
    }

    /// Whether it holds nothing.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.copied.is_empty() && self.is_contiguous()
    }

    /// The contiguous part, to encode frames at its end.
    #[inline]
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.copied
    }

    /// Appends a copy.
    #[inline]
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.copied.extend_from_slice(bytes);
    }

    /// Appends a reference.
    pub fn push_shared(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        let shared = self.shared.get_or_insert_default();
        shared.len += bytes.len();
        shared.pieces.push((self.copied.len(), bytes));
    }

    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.copied.clear();
        if let Some(shared) = &mut self.shared {
            shared.pieces.clear();
            shared.len = 0;
        }
    }

    /// Gives memory back that the next turns do not need: above `keep` bytes.
    pub fn shrink(&mut self, keep: usize) {
        if self.copied.capacity() > keep {
            self.copied.shrink_to(keep);
        }
    }

    /// The contiguous part's allocated bytes.
    pub fn capacity(&self) -> usize {
        self.copied.capacity()
    }

    /// Whether it is one slice; then that slice is [`OutBuf::contiguous`].
    pub fn is_contiguous(&self) -> bool {
        self.pieces().is_empty()
    }

    /// The copied bytes; all of the buffer when it [is contiguous](OutBuf::is_contiguous).
    pub fn contiguous(&self) -> &[u8] {
        &self.copied
    }

    fn pieces(&self) -> &[(usize, Bytes)] {
        self.shared.as_ref().map_or(&[], |shared| &shared.pieces)
    }

    /// The bytes from offset `skip` on, as slices in order; none of them empty.
    pub fn slices_from(&self, skip: usize) -> impl Iterator<Item = &[u8]> {
        let mut at = 0;
        let pieces = self.pieces().iter().flat_map(move |(copied_before, piece)| {
            let copied = &self.copied[at..*copied_before];
            at = *copied_before;
            [copied, &piece[..]]
        });
        let last = self.pieces().last().map_or(0, |(copied_before, _)| *copied_before);
        let mut skip = skip;
        pieces.chain(std::iter::once(&self.copied[last..])).filter_map(move |slice| {
            let cut = skip.min(slice.len());
            skip -= cut;
            let slice = &slice[cut..];
            (!slice.is_empty()).then_some(slice)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn collect(buf: &OutBuf, skip: usize) -> Vec<u8> {
        buf.slices_from(skip).flatten().copied().collect()
    }

    #[test]
    fn pieces_stand_where_they_were_appended() {
        let mut buf = OutBuf::new();
        buf.push_shared(Bytes::from_static(b"01"));
        buf.extend_from_slice(b"23");
        buf.push_shared(Bytes::from_static(b"45"));
        buf.push_shared(Bytes::from_static(b"6"));
        buf.extend_from_slice(b"7");
        assert_eq!(buf.len(), 8);
        for skip in 0..=8 {
            assert_eq!(collect(&buf, skip), &b"01234567"[skip..], "skip {skip}");
        }
        buf.clear();
        assert!(buf.is_empty() && buf.slices_from(0).next().is_none());
    }

    proptest! {
        #[test]
        fn equals_the_concatenation(
            parts in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..20)), 0..20),
            skip in 0usize..400,
        ) {
            let mut buf = OutBuf::new();
            let mut all = Vec::new();
            for (shared, part) in &parts {
                all.extend_from_slice(part);
                if *shared {
                    buf.push_shared(Bytes::copy_from_slice(part));
                } else {
                    buf.extend_from_slice(part);
                }
            }
            prop_assert_eq!(buf.len(), all.len());
            let skip = skip.min(all.len());
            prop_assert_eq!(collect(&buf, skip), &all[skip..]);
            prop_assert!(buf.slices_from(skip).all(|slice| !slice.is_empty()));
        }
    }
}
