//! When the memory for messages is used up (SHARDS.md L6).
//!
//! Nobody is made to wait for memory, since what would free it may stand behind what waits. A
//! publication is refused instead (QoS 1 and 2, with a reason) or dropped (QoS 0), and always
//! before a copy of it has left: after that it is accepted, whatever the budget says. So each shard
//! tells the others when it is short of memory, and nobody sends to one that is.
//!
//! With a journal, queues are left to it first ([`evict`]): only what cannot be is refused.
//!
//! Owns what was said. Invariant: what this shard holds stays below its share of the budget, and
//! what was accepted already when the others heard of it: no more than the lanes hold.
#![forbid(unsafe_code)]

use crate::ids::{ShardId, ShardSet};
use crate::limits::{EVICT_PER_TICK, LANE_BYTES_MAX, STORED_PER_LANE_BYTE};

use super::{Broker, Config, Place, evict, route};

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    is_short: bool,
    /// What the others were told.
    said: bool,
    /// The other shards that are short.
    others: ShardSet,
}

impl Memory {
    /// Whether this shard is short of memory now. It is from seven eighths of its budget on, until
    /// a further thirty-second is free, so that not every acknowledgement is news.
    #[inline]
    fn is_short(&mut self, bytes: usize, budget: usize) -> bool {
        let mark = budget - budget / 8;
        let mark = if self.is_short { mark - budget / 32 } else { mark };
        self.is_short = bytes > mark;
        self.is_short
    }

    /// Another shard is short, or no longer.
    pub(crate) fn hear(&mut self, from: ShardId, is_short: bool) {
        match is_short {
            true => self.others.insert(from),
            false => self.others.remove(from),
        }
    }
}

/// Bytes of messages beyond which even what was accepted is dropped, and counted.
#[inline]
pub(crate) fn bytes_max(config: &Config, place: Place) -> usize {
    let on_the_way = (place.shards - 1) * LANE_BYTES_MAX * STORED_PER_LANE_BYTE;
    config.memory_budget.saturating_add(on_the_way)
}

/// Whether a publication is not to be taken because this shard or one that would receive it is
/// short of memory. `size` is what it would take here; 0 if it is not to be kept.
#[inline]
pub(crate) fn is_short_for(broker: &mut Broker, topic: &str, retain: bool, size: usize) -> bool {
    if is_short_here(broker, size) {
        evict::relieve(broker, EVICT_PER_TICK);
        if is_short_here(broker, size) {
            return true;
        }
    }
    let others = broker.memory.others;
    !others.is_empty()
        && !route::find_targets(broker, topic, retain).intersection(others).is_empty()
}

#[inline]
fn is_short_here(broker: &mut Broker, size: usize) -> bool {
    let (bytes, budget) = (broker.messages.bytes(), broker.config.memory_budget);
    broker.memory.is_short(bytes, budget) || bytes + size > budget
}

/// Tells the other shards, if they do not know.
pub(crate) fn say(broker: &mut Broker) {
    if is_short_here(broker, 0) {
        evict::relieve(broker, EVICT_PER_TICK);
    }
    let Broker { memory, messages, config, place, out, .. } = broker;
    let is_short = memory.is_short(messages.bytes(), config.memory_budget);
    if is_short == memory.said || place.shards == 1 || broker.ending.has_begun() {
        return;
    }
    memory.said = is_short;
    for (index, batch) in out.batches.iter_mut().enumerate() {
        if index != place.shard.index() {
            batch.push_memory(is_short);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_does_not_flap() {
        let mut memory = Memory::default();
        assert!(!memory.is_short(56_000, 64_000));
        assert!(memory.is_short(56_001, 64_000));
        assert!(memory.is_short(54_001, 64_000));
        assert!(!memory.is_short(54_000, 64_000));
        assert!(!memory.is_short(56_000, 64_000));
    }
}
