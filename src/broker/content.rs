//! What a recorded publication consists of, in memory that is used again.
//!
//! A record lives for less than a turn: until it is encoded. Without an allocation for each, its
//! parts lie in buffers that come back with [`super::Outputs::contents`]; a large payload is shared.
#![forbid(unsafe_code)]

use bytes::Bytes;

use super::message::Payload;
use crate::limits::CONTENT_BYTES_KEPT;

/// Topic, properties and payload of a recorded publication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    topic: String,
    /// Properties as `append_forwarded` wrote them, and behind them the payload if it is not shared.
    bytes: Vec<u8>,
    forwarded_len: usize,
    shared: Option<Bytes>,
}

impl Content {
    /// One that shares its payload.
    pub fn new(topic: &str, forwarded: &[u8], payload: Bytes) -> Self {
        let mut content = Self::default();
        content.fill(topic, forwarded, Payload { bytes: &payload, shared: Some(&payload) });
        content
    }

    /// Takes these in.
    pub(crate) fn fill(&mut self, topic: &str, forwarded: &[u8], payload: Payload<'_>) {
        self.clear();
        self.topic.push_str(topic);
        self.bytes.extend_from_slice(forwarded);
        self.forwarded_len = forwarded.len();
        match payload.shared {
            Some(shared) => self.shared = Some(shared.clone()),
            None => self.bytes.extend_from_slice(payload.bytes),
        }
    }

    /// Empties it, for its next use.
    pub fn clear(&mut self) {
        self.topic.clear();
        self.topic.shrink_to(CONTENT_BYTES_KEPT);
        self.bytes.clear();
        self.bytes.shrink_to(CONTENT_BYTES_KEPT);
        (self.forwarded_len, self.shared) = (0, None);
    }

    /// Topic Name.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Properties as `append_forwarded` wrote them.
    pub fn forwarded(&self) -> &[u8] {
        &self.bytes[..self.forwarded_len]
    }

    /// The payload.
    pub fn payload(&self) -> &[u8] {
        self.shared.as_deref().unwrap_or(&self.bytes[self.forwarded_len..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_in_it_is_gone() {
        let mut content = Content::new("a/b", b"properties", Bytes::from_static(b"large"));
        let parts = |content: &Content| {
            (content.topic().to_owned(), content.forwarded().to_vec(), content.payload().to_vec())
        };
        assert_eq!(parts(&content), ("a/b".into(), b"properties".to_vec(), b"large".to_vec()));
        content.fill("c", b"", Payload { bytes: b"small", shared: None });
        assert_eq!(parts(&content), ("c".into(), Vec::new(), b"small".to_vec()));
        let long = "x".repeat(2 * CONTENT_BYTES_KEPT);
        content.fill(&long, b"", Payload { bytes: long.as_bytes(), shared: None });
        content.clear();
        assert_eq!(content, Content::default());
        assert!(content.topic.capacity() + content.bytes.capacity() <= 2 * CONTENT_BYTES_KEPT);
    }
}
