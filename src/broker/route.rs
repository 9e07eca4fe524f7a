//! From a publisher to its receivers: to be filled.
#![forbid(unsafe_code)]

use crate::clock::Time;
use crate::ids::{ShardId, ShardSet};

use super::deliver::Publication;
use super::{Batch, Broker, Place, Wait};

/// What became of a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Routed {
    /// Whether anybody receives it.
    pub(crate) receivers: bool,
}

/// State of the routing.
#[derive(Debug)]
pub(crate) struct Routing;

impl Routing {
    pub(crate) fn new(_place: Place, _seed: u64) -> Self {
        Self
    }
}

/// Whether a publication to this topic may be taken now.
pub(crate) fn may_publish(_broker: &Broker, _topic: &str) -> Result<(), Wait> {
    Ok(())
}

/// Whether a session that outlives its connection wants this topic at QoS 1 or 2, anywhere.
pub(crate) fn is_wanted_durably(_broker: &Broker, _topic: &str) -> bool {
    false
}

/// Gives a publication to all its receivers.
pub(crate) fn publish(
    broker: &mut Broker,
    _now: Time,
    publication: &mut Publication<'_>,
) -> Routed {
    let _ = (broker, publication);
    Routed { receivers: false }
}

/// Everything that another shard said in one parcel.
pub(crate) fn on_batch(_broker: &mut Broker, _now: Time, _from: ShardId, _batch: &Batch) {}

/// The lanes whose spill is above the mark; whether one is no longer.
pub(crate) fn set_full_lanes(_broker: &mut Broker, _full: ShardSet) -> bool {
    true
}
