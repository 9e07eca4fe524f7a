//! Which shards want which topics, and when all of them know that this one does.
//!
//! Each shard numbers its changes of interest and says them to all others; each answers "applied
//! through k" (SHARDS.md section 2). A change raises (somebody here wants it, or wants it durably)
//! or lowers. Raising is said at once and SUBACK waits for it; lowering lingers, so that a client
//! that comes back or another one that follows costs nothing.
//!
//! Owns the numbers, what others have applied, our announcements for filters without wildcards and
//! the other shards' (both by the hash of the topic, 16 bytes a filter). What is kept for filters
//! with wildcards stands in the topic tree, what is kept for groups with the groups; both use
//! [`Announced`] and [`Wanted`] from here.
//!
//! Invariants: what others believe is always a superset of what is wanted here (they may forward
//! too much, never too little) once a change is applied; numbers are said in order on every lane.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;

use crate::clock::Time;
use crate::ids::{ShardId, ShardSet};
use crate::limits::{INTEREST_LINGER, INTEREST_LINGER_MAX};

use super::entry::Interest as Change;
use super::topic_tree::FilterId;
use super::{Batch, Place};

/// Somebody wants it.
const PLAIN: u8 = 1;
/// A session that outlives its connection wants it at QoS 1 or 2.
const DURABLE: u8 = 2;

/// The shards that want a filter: a set of them, and of those who want it durably.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) shards: ShardSet,
    pub(crate) durable: ShardSet,
}

impl Wanted {
    /// What `shard` says now replaces what it said before.
    pub(crate) fn set(&mut self, shard: ShardId, state: u8) {
        self.shards.remove(shard);
        self.durable.remove(shard);
        if state & PLAIN != 0 {
            self.shards.insert(shard);
        }
        if state & DURABLE != 0 {
            self.durable.insert(shard);
        }
    }

    pub(crate) fn is_empty(self) -> bool {
        self.shards.is_empty()
    }
}

/// Who wants a filter here, and what the other shards were told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Announced {
    /// Subscriptions that hold it: begun, or waiting for the barrier.
    holders: u32,
    /// Of those, durable ones.
    durable: u32,
    state: u8,
    /// It stands in the queue of those that may be lowered.
    lingers: bool,
    /// The change that raised it last; who joins waits for that one (I2).
    raised: u64,
}

impl Announced {
    fn wanted(&self) -> u8 {
        (u8::from(self.holders > 0) * PLAIN) | (u8::from(self.durable > 0) * DURABLE)
    }

    /// Whether nothing is held and nothing was said.
    pub(crate) fn is_idle(&self) -> bool {
        self.holders == 0 && self.state == 0 && !self.lingers
    }
}

/// A filter, as far as interest tells filters apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// Without wildcards: the hash of the topic.
    Exact(u64),
    /// With wildcards: what is announced of it stands in the topic tree.
    Wild(FilterId),
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Interest {
    place: Place,
    /// Our last change.
    number: u64,
    /// Per shard, our changes that it has applied; of ourselves, all.
    applied: Vec<u64>,
    /// The smallest of them.
    applied_by_all: u64,
    /// Per shard, its last change that we have applied.
    heard: Vec<u64>,
    ours: HashMap<u64, Announced, foldhash::fast::FixedState>,
    theirs: HashMap<u64, Wanted, foldhash::fast::FixedState>,
    lingering: VecDeque<(Time, Key)>,
    topics: foldhash::quality::FixedState,
}

impl Interest {
    pub(crate) fn new(place: Place, seed: u64) -> Self {
        let mut applied = vec![0; place.shards];
        applied[place.shard.index()] = u64::MAX;
        Self {
            place,
            number: 0,
            applied_by_all: applied.iter().copied().min().unwrap_or(u64::MAX),
            applied,
            heard: vec![0; place.shards],
            ours: HashMap::with_hasher(foldhash::fast::FixedState::with_seed(seed ^ 2)),
            theirs: HashMap::with_hasher(foldhash::fast::FixedState::with_seed(seed ^ 3)),
            lingering: VecDeque::new(),
            // The same on all shards: they name topics to each other by it.
            topics: foldhash::quality::FixedState::with_seed(place.key.0),
        }
    }

    /// The hash by which shards name a topic, and a filter that is one.
    #[inline]
    pub(crate) fn topic_hash(&self, topic: &str) -> u64 {
        self.topics.hash_one(topic.as_bytes())
    }

    /// Other shards that want this very topic by filters without wildcards.
    #[inline]
    pub(crate) fn wanted_exactly(&self, hash: u64) -> Wanted {
        if self.theirs.is_empty() {
            return Wanted::default();
        }
        self.theirs.get(&hash).copied().unwrap_or_default()
    }

    /// Whether all shards have applied our changes up to this one (I1).
    pub(crate) fn is_applied(&self, number: u64) -> bool {
        number <= self.applied_by_all
    }

    /// Whether all shards have applied all of our changes.
    pub(crate) fn is_applied_everywhere(&self) -> bool {
        self.is_applied(self.number)
    }

    /// The last change that all shards have applied.
    pub(crate) fn applied_by_all(&self) -> u64 {
        self.applied_by_all
    }

    /// Our next change; the caller says it to all others.
    pub(crate) fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// What is announced of a filter without wildcards.
    pub(crate) fn ours(&mut self, hash: u64) -> &mut Announced {
        self.ours.entry(hash).or_default()
    }

    /// Forgets a filter without wildcards of which there is nothing to know.
    pub(crate) fn forget_if_idle(&mut self, hash: u64) {
        if self.ours.get(&hash).is_some_and(Announced::is_idle) {
            self.ours.remove(&hash);
        }
    }

    /// One more holder. Tells which change its SUBACK has to wait for, and what is to be said.
    pub(crate) fn hold(&mut self, announced: &mut Announced, durable: bool) -> (u64, Option<Said>) {
        announced.holders += 1;
        announced.durable += u32::from(durable);
        let wanted = announced.wanted() | announced.state;
        if wanted == announced.state {
            return (announced.raised, None);
        }
        announced.state = wanted;
        announced.raised = self.next_number();
        (announced.raised, Some(Said { number: announced.raised, state: wanted }))
    }

    /// One holder less. What it leaves behind lingers.
    pub(crate) fn release(
        &mut self,
        now: Time,
        announced: &mut Announced,
        key: Key,
        durable: bool,
    ) {
        announced.holders -= 1;
        announced.durable -= u32::from(durable);
        if announced.wanted() != announced.state && !announced.lingers {
            announced.lingers = true;
            self.lingering.push_back((now + INTEREST_LINGER, key));
        }
    }

    /// Whether more linger than may.
    pub(crate) fn lingers_too_many(&self) -> bool {
        self.lingering.len() > INTEREST_LINGER_MAX
    }

    /// How many linger.
    #[cfg(test)]
    pub(crate) fn lingering_len(&self) -> usize {
        self.lingering.len()
    }

    /// The next filter whose lowering is due: in time, or because too many linger.
    pub(crate) fn take_due(&mut self, now: Time) -> Option<Key> {
        let (due, key) = *self.lingering.front()?;
        if due > now && self.lingering.len() <= INTEREST_LINGER_MAX {
            return None;
        }
        self.lingering.pop_front();
        Some(key)
    }

    /// It was due: what is to be said, if it is wanted less than was said.
    pub(crate) fn lower(&mut self, announced: &mut Announced) -> Option<Said> {
        announced.lingers = false;
        let state = announced.wanted();
        if state == announced.state {
            return None;
        }
        announced.state = state;
        Some(Said { number: self.next_number(), state })
    }

    /// When [`Interest::take_due`] has something.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        self.lingering.front().map(|(due, _)| *due)
    }

    /// Says a change to all other shards.
    pub(crate) fn say(&self, batches: &mut [Batch], number: u64, change: Change<'_>) {
        for (index, batch) in batches.iter_mut().enumerate() {
            if index != self.place.shard.index() {
                batch.push_interest(number, change);
            }
        }
    }

    /// Another shard's change is applied. They come in order, without a gap.
    pub(crate) fn on_change(&mut self, from: ShardId, number: u64) {
        let heard = &mut self.heard[from.index()];
        assert_eq!(number, *heard + 1, "invariant: changes come in order");
        *heard = number;
    }

    /// Another shard's change of a filter without wildcards.
    pub(crate) fn on_exact(&mut self, from: ShardId, hash: u64, state: u8) {
        let wanted = self.theirs.entry(hash).or_default();
        wanted.set(from, state);
        if wanted.is_empty() {
            self.theirs.remove(&hash);
        }
    }

    /// The last change of that shard that we have applied.
    pub(crate) fn heard(&self, from: ShardId) -> u64 {
        self.heard[from.index()]
    }

    /// Whether nothing is wanted, here or elsewhere, by filters without wildcards.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.ours.is_empty() && self.theirs.is_empty() && self.lingering.is_empty()
    }

    /// That shard has applied our changes up to this one. Tells whether all shards have applied
    /// more than before.
    pub(crate) fn on_applied(&mut self, from: ShardId, through: u64) -> bool {
        let applied = &mut self.applied[from.index()];
        *applied = (*applied).max(through);
        let before = self.applied_by_all;
        self.applied_by_all = self.applied.iter().copied().min().unwrap_or(u64::MAX);
        self.applied_by_all > before
    }
}

/// A change that has to be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) number: u64,
    pub(crate) state: u8,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PlacementKey;

    fn interest(shards: usize) -> Interest {
        Interest::new(Place { shard: ShardId::new(0), shards, key: PlacementKey(1) }, 1)
    }

    #[test]
    fn with_one_shard_everything_is_applied_at_once() {
        assert!(interest(1).is_applied(u64::MAX));
        assert!(!interest(2).is_applied(1));
    }

    /// I1: numbers; I2: who joins waits for the change that raised it; I3: durable is a change.
    #[test]
    fn raising_has_a_number_and_joining_waits_for_it() {
        let mut interest = interest(3);
        let mut filter = Announced::default();
        assert_eq!(interest.hold(&mut filter, false), (1, Some(Said { number: 1, state: 1 })));
        assert_eq!(interest.hold(&mut filter, false), (1, None), "I2");
        assert_eq!(interest.hold(&mut filter, true), (2, Some(Said { number: 2, state: 3 })), "I3");
        assert!(!interest.on_applied(ShardId::new(1), 2));
        assert!(!interest.is_applied(1));
        assert!(interest.on_applied(ShardId::new(2), 1));
        assert!(interest.is_applied(1) && !interest.is_applied(2));
    }

    #[test]
    fn lowering_lingers_and_a_holder_who_comes_back_costs_nothing() {
        let mut interest = interest(2);
        let mut filter = Announced::default();
        let (key, start) = (Key::Exact(9), Time::from_nanos(1));
        interest.hold(&mut filter, false);
        interest.release(start, &mut filter, key, false);
        assert_eq!(interest.take_due(start), None);
        assert_eq!(interest.hold(&mut filter, false), (1, None), "nothing is said");
        let due = interest.next_deadline().expect("it lingers");
        assert_eq!(interest.take_due(due), Some(key));
        assert_eq!(interest.lower(&mut filter), None, "it is wanted again");
        interest.release(due, &mut filter, key, false);
        let due = interest.next_deadline().expect("it lingers");
        assert_eq!(interest.take_due(due), Some(key));
        assert_eq!(interest.lower(&mut filter), Some(Said { number: 2, state: 0 }));
        assert!(filter.is_idle());
        assert_eq!(interest.hold(&mut filter, false).0, 3, "it is raised anew");
    }

    #[test]
    fn too_many_that_linger_are_lowered_early() {
        let mut interest = interest(2);
        for hash in 0..=INTEREST_LINGER_MAX as u64 {
            let mut filter = Announced::default();
            interest.hold(&mut filter, false);
            interest.release(Time::ZERO, &mut filter, Key::Exact(hash), false);
        }
        assert_eq!(interest.take_due(Time::ZERO), Some(Key::Exact(0)));
        assert_eq!(interest.take_due(Time::ZERO), None);
    }
}
