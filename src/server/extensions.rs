//! What a program that embeds the broker adds to it.
#![forbid(unsafe_code)]

use std::fmt;

use crate::broker::{Auth, Method};
use crate::ids::ShardId;

/// Made once per shard, on the shard's own thread: what comes out is that shard's alone, and
/// needs no lock.
pub trait Extensions: fmt::Debug + Send + Sync {
    /// Who decides about connections and topics; everybody may everything if not said.
    fn auth(&self, _shard: ShardId) -> Auth {
        Auth::AllowAll
    }

    /// The methods of enhanced authentication that clients may choose; none if not said.
    fn methods(&self, _shard: ShardId) -> Vec<Box<dyn Method>> {
        Vec::new()
    }
}

/// Nothing.
impl Extensions for () {}
