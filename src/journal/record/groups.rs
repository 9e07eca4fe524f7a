//! The groups that a PUB names, between its origin and the journal's host (SHARDS.md J9).
#![forbid(unsafe_code)]

use std::rc::Rc;

use crate::broker::GroupName;
use crate::journal::wire::{Reader, put_bytes};

/// See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Groups<'a> {
    /// Where they are said.
    Said(&'a [Rc<GroupName>]),
    /// As they travel.
    Sent(&'a [u8]),
}

impl Default for Groups<'_> {
    fn default() -> Self {
        Self::Said(&[])
    }
}

impl Groups<'_> {
    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        match self {
            Self::Said(names) => names.is_empty(),
            Self::Sent(bytes) => bytes.is_empty(),
        }
    }

    /// Whether a group is among them, by its `share name/filter`.
    pub fn contains(&self, key: &str) -> bool {
        match *self {
            Self::Said(names) => names.iter().any(|name| name.key() == key),
            Self::Sent(bytes) => {
                let mut reader = Reader(bytes);
                std::iter::from_fn(|| reader.bytes().ok()).any(|name| name == key.as_bytes())
            }
        }
    }

    /// Appends them as they travel.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Said(names) => {
                names.iter().for_each(|name| put_bytes(out, name.key().as_bytes()));
            }
            Self::Sent(bytes) => out.extend_from_slice(bytes),
        }
    }
}
