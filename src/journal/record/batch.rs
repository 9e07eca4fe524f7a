//! Changes of one shard as they travel: bytes, encoded at their origin.
#![forbid(unsafe_code)]

use super::{Clocks, Entry, Groups, decode, encode};
use crate::broker::Record;
use crate::ids::ShardId;
use crate::journal::wire::Reader;

/// Of a body's length: behind it stand the groups that its PUB names, and their length (4 bytes) first.
const HAS_GROUPS: u32 = 1 << 31;

fn take<'a>(reader: &mut Reader<'a>, len: u32) -> Option<&'a [u8]> {
    let (bytes, rest) = reader.0.split_at_checked(len as usize)?;
    reader.0 = rest;
    Some(bytes)
}

/// Changes of one shard, encoded, on their way to the journal's host. To be used again.
#[derive(Debug, Default)]
pub struct Batch {
    /// Bodies, each behind its length (4 bytes, see [`HAS_GROUPS`]).
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
        let mut len = (self.bytes.len() - start - 4) as u32;
        if let Entry::Publish(publish) = entry
            && !publish.groups.is_empty()
        {
            len |= HAS_GROUPS;
            let place = self.bytes.len();
            self.bytes.extend_from_slice(&[0; 4]);
            publish.groups.put(&mut self.bytes);
            let groups = (self.bytes.len() - place - 4) as u32;
            self.bytes[place..place + 4].copy_from_slice(&groups.to_le_bytes());
        }
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

    /// The records, in order, each with its body.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], Entry<'_>)> {
        let mut reader = Reader(&self.bytes);
        std::iter::from_fn(move || {
            let len = reader.u32().ok()?;
            let body = take(&mut reader, len & !HAS_GROUPS)?;
            let (_, mut entry) = decode(body).expect("invariant: shards encode records");
            if let Entry::Publish(publish) = &mut entry
                && len & HAS_GROUPS != 0
            {
                let len = reader.u32().ok()?;
                publish.groups = Groups::Sent(take(&mut reader, len)?);
            }
            Some((body, entry))
        })
    }
}
