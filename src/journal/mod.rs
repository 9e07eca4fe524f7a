//! What must last. There is no disk yet: this journal commits everything at once and keeps
//! nothing, so that the broker's one path (emit a change, park the answer, release it at the
//! commit) is the path from the first day.
#![forbid(unsafe_code)]

pub mod record;
#[cfg(test)]
mod testing;
pub mod wire;

use crate::broker::Change;

/// The journal of one shard's changes.
#[derive(Debug, Default)]
pub struct Journal {
    appended: u64,
}

impl Journal {
    /// Takes the changes, in order; the number of the last one that is committed, if any were
    /// taken. Numbers count all changes since the start, from 1.
    pub fn append(&mut self, changes: &mut Vec<Change>) -> Option<u64> {
        if changes.is_empty() {
            return None;
        }
        self.appended += changes.len() as u64;
        changes.clear();
        Some(self.appended)
    }
}
