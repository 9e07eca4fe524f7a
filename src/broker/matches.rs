//! Who is interested in a topic on this shard and elsewhere, found once and remembered.
//!
//! A topic that is published again finds its receivers by one comparison, as long as no subscription
//! has changed. Invariants: a remembered match is used only in the generation in which it was made;
//! publishing does not allocate once that memory is warm.
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
    generation: u64,
    pub(super) matches: Matches,
}

/// The memory of matches.
#[derive(Debug)]
pub(crate) struct Remembered {
    /// By the topic's hash. Boxed, so that taking one moves a pointer.
    by_hash: Vec<Option<Box<Route>>>,
    /// The one that was used last, out of its slot: a publisher mostly repeats its topic.
    in_hand: Option<Box<Route>>,
    generation: u64,
    /// Topics that were remembered so far.
    topics: u64,
}

impl Remembered {
    pub(crate) fn new() -> Self {
        Self { by_hash: Vec::new(), in_hand: None, generation: 1, topics: 0 }
    }

    /// A subscription or a shard's interest has changed.
    pub(crate) fn forget(&mut self) {
        self.generation += 1;
    }

    /// Subscriptions and groups that are remembered for topics.
    #[cfg(test)]
    pub(crate) fn held_len(&self) -> usize {
        self.by_hash.iter().chain([&self.in_hand]).flatten().map(|topic| topic.matches.held()).sum()
    }

    /// Takes the slot of a hash out of the memory; it goes back with [`Remembered::put_back`].
    fn take(&mut self, hash: u64) -> Box<Route> {
        if self.by_hash.is_empty() {
            self.by_hash.resize_with(MATCH_CACHE_LEN, || None);
        }
        if let Some(other) = self.in_hand.take()
            && other.id != TopicId::NONE
        {
            let at = slot(other.hash);
            self.by_hash[at] = Some(other);
        }
        self.by_hash[slot(hash)].take().unwrap_or_default()
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
        if topic.len() > MATCH_CACHE_TOPIC_MAX {
            return TopicId::NONE;
        }
        self.topics += 1;
        TopicId::new(self.topics)
    }
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
    let mut found = broker.matches.take(hash);
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
