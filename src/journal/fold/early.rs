//! What stands in the log before the PUB that it is about (J6), and what is no longer of use behind it.
#![forbid(unsafe_code)]

use super::messages::Owed;
use super::sessions::Exchange;
use super::{Fold, origin_of, sequence_of};
use crate::limits::{JOURNAL_EARLY_MAX, JOURNAL_ENDING_STEP};

impl Fold {
    /// ASSIGNs that stood before their PUB hold it (J6, J7).
    pub(super) fn hold_for_early(&mut self, name: u64) {
        for slot in self.early_assigns.remove(&name).unwrap_or_default() {
            let holds = |e: &Exchange| e.message == Some(name) && !e.is_received;
            let session = self.sessions.get(slot as usize);
            if !session.is_some_and(|session| session.exchanges.values().any(holds)) {
                continue;
            }
            match self.resolved.iter_mut().find(|o| (o.holder, o.is_group) == (slot, false)) {
                Some(owed) => owed.is_assigned = true,
                None => self.resolved.push(Owed::assigned(slot)),
            }
        }
        while let Some(first) = self.early_assigns.first_entry()
            && sequence_of(*first.key()) <= self.last_pub[origin_of(*first.key())]
        {
            first.remove();
        }
    }

    /// This holder is done with it, or will be when its PUB comes.
    pub(super) fn done_with(&mut self, name: u64, holder: u32, is_group: bool) {
        if let Some(message) = self.messages.get(name) {
            if message.receivers.find(holder, is_group).is_some_and(|owed| !owed.is_assigned) {
                self.settle(name, holder, is_group);
            }
        } else if sequence_of(name) > self.last_pub[origin_of(name)] {
            self.early[origin_of(name)].entry(name).or_default().push((holder, is_group));
            self.early_len += 1;
            if self.early_len > JOURNAL_EARLY_MAX
                && let Some(most) = self.early.iter_mut().max_by_key(|early| early.len())
                && let Some((_, forgotten)) = most.pop_first()
            {
                self.early_len -= forgotten.len();
                self.counts.early_forgotten += forgotten.len() as u64;
            }
        }
    }

    /// What was early for this message, or for one of its origin that will not come any more, is
    /// of no use.
    pub(super) fn forget_early(&mut self, name: u64) {
        while let Some(first) = self.early[origin_of(name)].first_entry()
            && *first.key() <= name
        {
            self.early_len -= first.remove().len();
        }
    }

    /// What SUBs have seen of this origin, and has been taken, is of no use: some in a turn.
    pub(super) fn forget_seen(&mut self, origin: usize) {
        let Self { passing, plain, last_pub, .. } = self;
        for _ in 0..JOURNAL_ENDING_STEP {
            let Some((sequence, filter, session)) = passing[origin].first().copied() else {
                return;
            };
            if sequence > last_pub[origin] {
                return;
            }
            passing[origin].pop_first();
            if let Some(sub) = plain[filter].get_mut(session) {
                sub.seen
                    .retain(|name| (origin_of(*name), sequence_of(*name)) != (origin, sequence));
                sub.seen.shrink_to_fit();
            }
        }
    }
}
