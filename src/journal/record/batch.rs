//! Changes of one shard as they travel: bytes, encoded at their origin.
#![forbid(unsafe_code)]

use super::{Clocks, Entry, encode};
use crate::broker::Record;
use crate::ids::ShardId;
use crate::journal::wire::Reader;

/// Changes of one shard, encoded, on their way to the journal's host. To be used again.
#[derive(Debug, Default)]
pub struct Batch {
    /// Bodies, each behind its length (4 bytes).
    bytes: Vec<u8>,
    lists: Vec<u8>,
    records: u32,
    last: u64,
    /// One of them must survive a power cut before it is acknowledged: the commit is synced.
    pub sync: bool,
}

impl Batch {
    /// Appends a record that has this number among its shard's changes.
    pub fn push(&mut self, origin: ShardId, number: u64, record: &Record, clocks: Clocks) {
        debug_assert!(number > self.last, "invariant: changes are numbered in order");
        let mut lists = std::mem::take(&mut self.lists);
        self.push_entry(origin, number, &Entry::of(record, clocks, &mut lists));
        self.lists = lists;
    }

    /// The same for one that is an entry already.
    pub fn push_entry(&mut self, origin: ShardId, number: u64, entry: &Entry<'_>) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        encode(&mut self.bytes, origin, entry);
        let len = (self.bytes.len() - start - 4) as u32;
        self.bytes[start..start + 4].copy_from_slice(&len.to_le_bytes());
        self.records += 1;
        self.last = number;
    }

    /// The number of the last change in it; 0 when it is empty.
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// How many records.
    pub const fn len(&self) -> usize {
        self.records as usize
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// How many bytes it has.
    pub const fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Empties it; it keeps up to `kept` bytes of memory.
    pub fn clear(&mut self, kept: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(kept);
        (self.records, self.last, self.sync) = (0, 0, false);
    }

    /// The bodies, in order.
    pub fn bodies(&self) -> impl Iterator<Item = &[u8]> {
        let mut reader = Reader(&self.bytes);
        std::iter::from_fn(move || {
            let len = reader.u32().ok()? as usize;
            let (body, rest) = reader.0.split_at_checked(len)?;
            reader.0 = rest;
            Some(body)
        })
    }
}
