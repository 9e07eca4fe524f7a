//! Which shards want which topics: to be filled.
#![forbid(unsafe_code)]

use super::Place;

/// What the shards want.
#[derive(Debug)]
pub(crate) struct Interest;

impl Interest {
    pub(crate) fn new(_place: Place, _seed: u64) -> Self {
        Self
    }
}
