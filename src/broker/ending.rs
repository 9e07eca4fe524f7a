//! END, said to the other shards: at the start, when what this shard wants stands before it
//! (SHARDS.md I6), and at the stop (SHARDS.md section 7).
//!
//! Invariant: nobody leaves while something may still come to it.
#![forbid(unsafe_code)]

use crate::ids::{ShardId, ShardSet};

use super::Broker;

/// The protocol of section 7: nobody leaves while something may still come to it.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    /// Shards whose full interest has come at the start.
    restored: ShardSet,
    said_restored: bool,
    began: bool,
    first: ShardSet,
    said_second: bool,
    second: ShardSet,
    last: ShardSet,
}

/// The step of an END that says at the start: what I want stands before this.
const RESTORED: u8 = 0;

/// The step of the END behind which there are no more changes.
const LAST: u8 = 3;

impl Ending {
    /// Whether no new questions are to be asked.
    pub(crate) fn has_begun(&self) -> bool {
        self.began
    }

    pub(super) fn hear(&mut self, from: ShardId, step: u8) {
        match step {
            RESTORED => self.restored.insert(from),
            1 => self.first.insert(from),
            2 => self.second.insert(from),
            _ => self.last.insert(from),
        }
    }
}

/// Says the second END once all have said the first and no question is open: the journal's, too.
pub(crate) fn go_on(broker: &mut Broker) {
    let Broker { ending, place, .. } = broker;
    let others = place.shards - 1;
    if !ending.began || ending.said_second || ending.first.len() < others {
        return;
    }
    if broker.replays.is_idle()
        && broker.retained.is_idle()
        && broker.subscribing.is_idle()
        && broker.changes.pending().is_none()
    {
        ending.said_second = true;
        say_end(broker, 2);
    }
}

fn say_end(broker: &mut Broker, step: u8) {
    let me = broker.place.shard.index();
    for (index, batch) in broker.out.batches.iter_mut().enumerate() {
        if index != me {
            batch.push_end(step);
        }
    }
}

impl Broker {
    /// What the journal gave back is safe where it is: the others may hear that it is all. Clients
    /// may come when [`Broker::is_open`]. Idempotent.
    pub fn handle_restored(&mut self) {
        if !std::mem::replace(&mut self.ending.said_restored, true) {
            say_end(self, RESTORED);
        }
    }

    /// Whether all shards know what each other wants, after [`Broker::handle_restored`] was called
    /// on each: only then may clients come (SHARDS.md I6).
    pub fn is_open(&self) -> bool {
        self.ending.said_restored
            && self.ending.restored.len() == self.place.shards - 1
            && self.interest.is_applied_everywhere()
    }

    /// The shard reads no more: the first END goes out behind everything else (SHARDS.md section
    /// 7). Idempotent. Lanes are drained on until [`Broker::has_ended`]; then
    /// [`Broker::handle_shutdown`] closes the connections.
    pub fn handle_end(&mut self) {
        if !std::mem::replace(&mut self.ending.began, true) {
            say_end(self, 1);
            go_on(self);
        }
    }

    /// The connections are closed: this shard says no more changes. The journal's host stays until
    /// all have said so.
    pub fn handle_last_end(&mut self) {
        say_end(self, LAST);
    }

    /// Whether all other shards have said their last change.
    pub fn has_heard_last(&self) -> bool {
        self.ending.last.len() == self.place.shards - 1
    }

    /// Whether nothing can come from another shard any more, and no other shard waits for us.
    pub fn has_ended(&self) -> bool {
        let ending = &self.ending;
        ending.said_second && ending.second.len() == self.place.shards - 1
    }
}
