//! Who is interested in a topic on this shard and elsewhere, found once and remembered.
//!
//! A topic that is published again finds its receivers by one comparison, as long as no subscription
//! has changed. One that finds its slot taken by another takes it when it comes for the second time:
//! topics that come once push nobody out, and all of them use the same memory.
//!
//! Invariants: a remembered match is used only in the generation in which it was made; publishing does
//! not allocate once that memory is warm.
#![forbid(unsafe_code)]

use crate::ids::ShardSet;
use crate::limits::{MATCH_CACHE_LEN, MATCH_CACHE_MERGED_MAX, MATCH_CACHE_TOPIC_MAX};

use super::Broker;
use super::alias::TopicId;
use super::interest::Wanted;
use super::session::SessionKey;
use super::shared_sub::{GroupId, Named};
use super::subscription::{FilterState, Subscription};
use super::topic_tree::{FilterId, TopicTree};

/// Who is interested in a topic.
#[derive(Debug, Default)]
pub(super) struct Matches {
    /// Filters with subscribers here.
    pub(super) filters: Vec<FilterId>,
    /// If there are several filters, their subscribers by session.
    pub(super) merged: Vec<Merged>,
    pub(super) parts: Vec<Subscription>,
    pub(super) groups: Vec<GroupId>,
    pub(super) remote: ShardSet,
    /// A durable session of some shard wants it at QoS 1 or 2; groups aside.
    durable: bool,
}

/// A session with the subscriptions by which it wants a topic: a range of `parts`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merged {
    pub(super) session: SessionKey,
    pub(super) start: u32,
    pub(super) end: u32,
}

/// Where a topic goes, as it is remembered. Taken with [`find`], given back with [`put_back`].
#[derive(Debug, Default)]
pub(crate) struct Route {
    topic: String,
    pub(super) hash: u64,
    /// None of a topic that is too long to be remembered.
    pub(super) id: TopicId,
    /// Whether it goes back to its slot.
    is_kept: bool,
    generation: u64,
    pub(super) matches: Matches,
}

/// The memory of matches.
#[derive(Debug)]
pub(crate) struct Remembered {
    /// By the topic's hash.
    slots: Vec<Slot>,
    /// The one that was used last, out of its slot: a publisher mostly repeats its topic.
    in_hand: Option<Box<Route>>,
    /// Memory for one that has no slot.
    spare: Option<Box<Route>>,
    generation: u64,
    /// Topics that were remembered so far.
    topics: u64,
}

#[derive(Debug, Default)]
struct Slot {
    /// Boxed, so that taking one moves a pointer.
    route: Option<Box<Route>>,
    /// Of the hash of its topic, the half by which it did not get here.
    tag: u32,
    /// The same of the topic that last found the slot taken.
    passed: u32,
}

impl Remembered {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new(), in_hand: None, spare: None, generation: 1, topics: 0 }
    }

    /// A subscription or a shard's interest has changed.
    pub(crate) fn forget(&mut self) {
        self.generation += 1;
    }

    /// Subscriptions and groups that are remembered for topics.
    #[cfg(test)]
    pub(crate) fn held_len(&self) -> usize {
        let slots = self.slots.iter().map(|slot| &slot.route);
        let all = slots.chain([&self.in_hand, &self.spare]).flatten();
        all.map(|route| route.matches.held()).sum()
    }

    /// Takes what is remembered of a topic with this hash, or else memory for it, with what stood
    /// there before; it goes back with [`Remembered::put_back`].
    fn take(&mut self, hash: u64, may_keep: bool) -> Box<Route> {
        if self.slots.is_empty() {
            self.slots.resize_with(MATCH_CACHE_LEN, Slot::default);
        }
        match self.in_hand.take() {
            Some(other) if other.is_kept => {
                let at = slot(other.hash);
                self.slots[at].route = Some(other);
            }
            Some(other) => self.spare = Some(other),
            None => {}
        }
        let (slot, tag) = (&mut self.slots[slot(hash)], (hash >> 32) as u32);
        let is_free = slot.route.is_none() || slot.tag == tag || slot.passed == tag;
        let known = if may_keep && is_free {
            slot.tag = tag;
            slot.route.take()
        } else {
            slot.passed = tag;
            None
        };
        let mut route = known.or_else(|| self.spare.take()).unwrap_or_default();
        route.is_kept = may_keep && is_free;
        route
    }

    #[inline]
    fn put_back(&mut self, mut route: Box<Route>) {
        if route.matches.held() > MATCH_CACHE_MERGED_MAX {
            route.matches = Matches::default();
            route.generation = 0;
        }
        self.in_hand = Some(route);
    }

    fn next_topic(&mut self, topic: &str) -> TopicId {
        if !may_keep(topic) {
            return TopicId::NONE;
        }
        self.topics += 1;
        TopicId::new(self.topics)
    }
}

fn may_keep(topic: &str) -> bool {
    topic.len() <= MATCH_CACHE_TOPIC_MAX
}

#[inline]
fn slot(hash: u64) -> usize {
    hash as usize & (MATCH_CACHE_LEN - 1)
}

impl Matches {
    fn fill(&mut self, tree: &TopicTree<FilterState>, exactly: Wanted, topic: &str) {
        self.filters.clear();
        self.merged.clear();
        self.parts.clear();
        self.groups.clear();
        self.remote = exactly.shards;
        self.durable = !exactly.durable.is_empty();
        tree.visit_matches(topic, |id, state| {
            if !state.subscribers.is_empty() {
                self.filters.push(id);
            }
            self.groups.extend_from_slice(state.groups());
            let remote = state.remote();
            self.remote = self.remote.union(remote.shards);
            self.durable |= state.durable > 0 || !remote.durable.is_empty();
        });
        if self.filters.len() > 1 {
            self.merge(tree);
        }
    }

    /// Of the subscribers of several filters, each session once.
    fn merge(&mut self, tree: &TopicTree<FilterState>) {
        let subscribers = self.filters.iter().flat_map(|filter| tree[*filter].subscribers.iter());
        let mut all: Vec<_> = subscribers.map(|s| (s.session, s.subscription)).collect();
        all.sort_by_key(|(session, _)| *session);
        for (session, subscription) in all {
            let end = self.parts.len() as u32 + 1;
            self.parts.push(subscription);
            match self.merged.last_mut() {
                Some(last) if last.session == session => last.end = end,
                _ => self.merged.push(Merged { session, start: end - 1, end }),
            }
        }
    }

    /// What it holds beyond the topic tree's own lists.
    fn held(&self) -> usize {
        self.parts.len() + self.groups.len()
    }

    pub(super) fn has_receivers(&self) -> bool {
        !self.filters.is_empty() || !self.remote.is_empty()
    }
}

/// Who is interested in this topic, remembered or found.
#[inline]
pub(crate) fn find(broker: &mut Broker, topic: &str) -> Box<Route> {
    let matches = &mut broker.matches;
    let generation = matches.generation;
    match matches.in_hand.take_if(|it| it.generation == generation && it.topic == topic) {
        Some(found) => found,
        None => find_remembered(broker, topic),
    }
}

fn find_remembered(broker: &mut Broker, topic: &str) -> Box<Route> {
    let generation = broker.matches.generation;
    let hash = broker.interest.topic_hash(topic);
    let mut found = broker.matches.take(hash, may_keep(topic));
    if found.generation != generation || found.topic != topic {
        found.generation = generation;
        if found.topic != topic || found.id == TopicId::NONE {
            found.topic.clear();
            found.topic.push_str(topic);
            found.hash = hash;
            found.id = broker.matches.next_topic(topic);
        }
        let exactly = broker.interest.wanted_exactly(hash);
        found.matches.fill(&broker.topic_tree, exactly, topic);
    }
    found
}

/// The other end of [`find`].
#[inline]
pub(crate) fn put_back(broker: &mut Broker, route: Box<Route>) {
    broker.matches.put_back(route);
}

/// Whether a session that outlives its connection wants messages of this topic at QoS 1 or 2, on
/// whichever shard (SHARDS.md I3).
pub(crate) fn is_wanted_durably(broker: &Broker, route: &Route) -> bool {
    let mut groups = route.matches.groups.iter();
    route.matches.durable || groups.any(|group| broker.shared_subs.get(*group).is_durable())
}

/// The groups among them that may keep a message: its PUB names them (SHARDS.md J9).
pub(crate) fn name_groups(broker: &Broker, route: &Route) -> Named {
    let all = route.matches.groups.iter().map(|group| broker.shared_subs.get(*group));
    let mut named = all.filter(|group| group.is_durable()).map(|group| group.name.clone());
    let first = named.next()?;
    Some(std::iter::once(first).chain(named).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{PlacementKey, ShardId};

    fn find_id(broker: &mut Broker, topic: &str) -> TopicId {
        let route = find(broker, topic);
        assert_eq!(route.topic, topic);
        let id = route.id;
        put_back(broker, route);
        id
    }

    #[test]
    fn a_topic_that_comes_once_pushes_nobody_out() {
        let config = super::super::Config::default();
        let mut broker = Broker::new(config, ShardId::new(0), 1, PlacementKey(1), 1);
        let wanted = slot(broker.interest.topic_hash("0"));
        let mut alike = (1..).map(|n| n.to_string());
        let mut next = || {
            let is_alike = |topic: &String| slot(broker.interest.topic_hash(topic)) == wanted;
            alike.find(is_alike).expect("numbers do not end")
        };
        let (second, third) = (next(), next());
        let first = find_id(&mut broker, "0");
        let ids = [&*second, &third].map(|topic| find_id(&mut broker, topic));
        assert_eq!(find_id(&mut broker, "0"), first, "it is remembered");
        // The third was the last that had to pass: now it is kept, and the first is not.
        let kept = find_id(&mut broker, &third);
        assert!(!ids.contains(&kept));
        let now = find_id(&mut broker, "0");
        assert_eq!((find_id(&mut broker, &third), now == first), (kept, false));
    }

    #[test]
    fn a_topic_without_a_slot_is_found_in_hand_and_its_memory_is_used_again() {
        let config = super::super::Config::default();
        let mut broker = Broker::new(config, ShardId::new(0), 1, PlacementKey(1), 1);
        let long = |n: usize| "x".repeat(MATCH_CACHE_TOPIC_MAX + n);
        let mut memory = Vec::new();
        for n in [1, 1, 2, 3] {
            let route = find(&mut broker, &long(n));
            memory.push(std::ptr::from_ref(&*route));
            assert_eq!((route.id, route.topic.len()), (TopicId::NONE, MATCH_CACHE_TOPIC_MAX + n));
            put_back(&mut broker, route);
        }
        assert!(memory.iter().all(|place| *place == memory[0]));
    }
}
