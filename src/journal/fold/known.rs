//! To whom the messages of the last topic were owed: publishers mostly repeat theirs.
//!
//! Found once, and true until a record changes subscriptions or who has them: each such record begins a
//! new generation. Not kept where more decides than topic, QoS and retain flag: the publisher (No
//! Local), or what a subscription has seen before it began.
#![forbid(unsafe_code)]

use slab::Slab;

use super::messages::Owed;
use super::sessions::{Group, Session};
use super::{Fold, origin_of};
use crate::journal::record::{Entry, Publish, Receiver};
use crate::journal::wire::Numbers;
use crate::limits::{JOURNAL_KNOWN_RECEIVERS, JOURNAL_KNOWN_TOPIC};

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Known {
    generation: u64,
    topic: String,
    qos: u8,
    retain: bool,
    owed: Vec<Owed>,
    /// As they are written.
    written: Vec<u8>,
    /// They are those of the message at hand.
    is_at_hand: bool,
}

impl Known {
    fn is_of(&self, generation: u64, publish: &Publish<'_>) -> bool {
        (self.generation, self.qos, self.retain) == (generation, publish.qos, publish.retain)
            && self.topic == publish.topic
    }
}

/// Whether a record says something of subscriptions, or of who has them.
pub(super) const fn is_changed_by(entry: &Entry<'_>) -> bool {
    match entry {
        Entry::Publish(_)
        | Entry::WillSet(_)
        | Entry::WillDeleted { .. }
        | Entry::Assign(_)
        | Entry::Received { .. }
        | Entry::Acked { .. }
        | Entry::Done { .. }
        | Entry::Released { .. }
        | Entry::GroupAck { .. }
        | Entry::Unreleased { .. }
        | Entry::Ended { .. } => false,
        Entry::Session { .. }
        | Entry::SessionEnded { .. }
        | Entry::Subscribe { .. }
        | Entry::Unsubscribe { .. }
        | Entry::Group { .. } => true,
    }
}

impl Fold {
    /// Finds to whom a message is owed; the host's part, before it writes the PUB.
    pub(in crate::journal) fn resolve(&mut self, publish: &Publish<'_>) {
        self.resolved.clear();
        self.known.is_at_hand = false;
        if publish.qos == 0 {
            return;
        }
        if self.known.is_of(self.generation, publish) {
            debug_assert!(self.is_known_true(publish), "invariant: a change begins a generation");
            self.resolved.extend_from_slice(&self.known.owed);
            self.known.is_at_hand = true;
        } else if self.find_receivers(publish) {
            self.remember(publish);
        }
        let Self { resolved, groups, .. } = self;
        let found = resolved.len();
        resolved.retain(|owed| {
            !owed.is_group || publish.groups.contains(&groups[owed.holder as usize].key)
        });
        self.known.is_at_hand &= resolved.len() == found;
        if let Some(done) = self.early[origin_of(publish.message)].get(&publish.message) {
            self.resolved.retain(|owed| !done.contains(&(owed.holder, owed.is_group)));
            self.known.is_at_hand = false;
        }
    }

    /// Whether to find them would find the same.
    fn is_known_true(&mut self, publish: &Publish<'_>) -> bool {
        let is_general = self.find_receivers(publish);
        let mut written = Vec::new();
        put_receivers(&self.resolved, &self.sessions, &self.groups, &mut written);
        let found = std::mem::take(&mut self.resolved);
        is_general && found == self.known.owed && written == self.known.written
    }

    fn remember(&mut self, publish: &Publish<'_>) {
        let Self { known, resolved, sessions, groups, generation, .. } = self;
        known.generation = 0;
        let is_long = publish.topic.len() > JOURNAL_KNOWN_TOPIC;
        if is_long || resolved.len() > JOURNAL_KNOWN_RECEIVERS {
            return;
        }
        (known.generation, known.qos, known.retain) = (*generation, publish.qos, publish.retain);
        known.topic.clear();
        known.topic.push_str(publish.topic);
        known.owed.clear();
        known.owed.extend_from_slice(resolved);
        known.written.clear();
        put_receivers(resolved.iter(), sessions, groups, &mut known.written);
        known.is_at_hand = true;
    }

    /// Appends what [`Fold::resolve`] has found to a body.
    pub(in crate::journal) fn put_receivers(&self, out: &mut Vec<u8>) {
        if self.known.is_at_hand {
            return out.extend_from_slice(&self.known.written);
        }
        put_receivers(&self.resolved, &self.sessions, &self.groups, out);
    }
}

/// Appends receivers as a PUB holds them; of those that are ending none.
pub(super) fn put_receivers<'a>(
    all: impl IntoIterator<Item = &'a Owed>,
    sessions: &Slab<Session>,
    groups: &Slab<Group>,
    out: &mut Vec<u8>,
) {
    let mut ids = Vec::new();
    for owed in all {
        let is_ending = match owed.is_group {
            true => groups[owed.holder as usize].is_ending,
            false => sessions[owed.holder as usize].is_ending,
        };
        if is_ending {
            continue;
        }
        ids.clear();
        let receiver = Receiver {
            number: match owed.is_group {
                true => groups[owed.holder as usize].number,
                false => sessions[owed.holder as usize].number,
            },
            is_group: owed.is_group,
            is_assigned: owed.is_assigned,
            qos: owed.qos,
            retain: owed.retain,
            subscription_ids: Numbers::write(owed.ids().map(u64::from), &mut ids),
        };
        receiver.put(out);
    }
}
