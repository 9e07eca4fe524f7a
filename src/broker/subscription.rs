//! Subscriptions, as their sessions and their filters hold them.
//!
//! Owns, in each [`Session`](super::session::Session), the list of its subscriptions, and in the
//! topic tree what stands with a filter. Invariants: each plain subscription of a session that has
//! begun stands once in its filter's list, at the place that it names; a filter is in the tree
//! exactly while somebody here or elsewhere has it.
#![forbid(unsafe_code)]

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};

use smallvec::SmallVec;

use crate::codec::mqtt::SubscriptionOptions;
use crate::limits::SESSIONS_MAX;

use super::Broker;
use super::interest::{Announced, Wanted};
use super::replay::Running;
use super::session::SessionKey;
use super::shared_sub::GroupId;
use super::subscribe::Turn;
use super::topic_tree::FilterId;

/// How a client wants what a filter matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subscription {
    pub(crate) options: SubscriptionOptions,
    /// Subscription Identifier; 0 is none.
    pub(crate) id: u32,
}

impl Subscription {
    /// The identifiers to be delivered with what it matches.
    pub(crate) fn ids(&self) -> &[u32] {
        if self.id == 0 { &[] } else { std::slice::from_ref(&self.id) }
    }
}

/// A session that subscribes to a filter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subscriber {
    pub(crate) session: SessionKey,
    pub(crate) subscription: Subscription,
}

/// The sessions that subscribe to a filter. Most filters have one, which needs no memory of its own.
#[derive(Debug, Default)]
pub(crate) enum Subscribers {
    #[default]
    None,
    One(Subscriber),
    #[expect(clippy::box_collection, reason = "a pointer is as large as the one subscriber allows")]
    Many(Box<Vec<Subscriber>>),
}

impl Subscribers {
    pub(super) fn push(&mut self, new: Subscriber) {
        match self {
            Self::None => *self = Self::One(new),
            Self::One(one) => *self = Self::Many(Box::new(vec![*one, new])),
            Self::Many(all) => all.push(new),
        }
    }

    /// Takes out the one at `at`; the last one takes its place.
    pub(super) fn swap_remove(&mut self, at: usize) {
        match self {
            Self::Many(all) => {
                all.swap_remove(at);
                match all[..] {
                    [one] => *self = Self::One(one),
                    _ if all.len() * 4 < all.capacity() => all.shrink_to(all.len() * 2),
                    _ => {}
                }
            }
            Self::One(_) if at == 0 => *self = Self::None,
            _ => unreachable!("invariant: a subscription names its place"),
        }
    }
}

impl Deref for Subscribers {
    type Target = [Subscriber];

    #[inline]
    fn deref(&self) -> &[Subscriber] {
        match self {
            Self::None => &[],
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(all) => all,
        }
    }
}

impl DerefMut for Subscribers {
    fn deref_mut(&mut self) -> &mut [Subscriber] {
        match self {
            Self::None => &mut [],
            Self::One(one) => std::slice::from_mut(one),
            Self::Many(all) => all,
        }
    }
}

/// What the topic tree keeps for a filter.
#[derive(Debug, Default)]
pub(crate) struct FilterState {
    /// Plain subscriptions of this shard that have begun.
    pub(crate) subscribers: Subscribers,
    /// Of those, durable ones.
    pub(crate) durable: u32,
    /// Those in the barrier.
    pub(super) waiting: u32,
    /// While there is something in it.
    rare: Option<Box<RareState>>,
}

/// What the topic tree keeps for few filters: those of groups, and with several shards those with
/// wildcards.
#[derive(Debug, Default)]
struct RareState {
    /// Groups of this filter, wherever their members are.
    groups: Vec<GroupId>,
    /// Other shards that want it, if it has wildcards.
    remote: Wanted,
    /// What they were told of us, if it has wildcards.
    announced: Announced,
}

impl FilterState {
    pub(super) fn is_unused(&self) -> bool {
        self.subscribers.is_empty() && self.waiting == 0 && self.rare.is_none()
    }

    /// Groups of this filter, wherever their members are.
    #[inline]
    pub(crate) fn groups(&self) -> &[GroupId] {
        self.rare.as_ref().map_or(&[], |rare| &rare.groups)
    }

    /// Other shards that want it, if it has wildcards.
    #[inline]
    pub(crate) fn remote(&self) -> Wanted {
        self.rare.as_ref().map_or_else(Wanted::default, |rare| rare.remote)
    }

    pub(super) fn change_groups<R>(&mut self, change: impl FnOnce(&mut Vec<GroupId>) -> R) -> R {
        self.change_rare(|rare| change(&mut rare.groups))
    }

    pub(super) fn change_remote(&mut self, change: impl FnOnce(&mut Wanted)) {
        self.change_rare(|rare| change(&mut rare.remote));
    }

    /// What other shards were told of us, if it has wildcards.
    pub(super) fn change_announced<R>(&mut self, change: impl FnOnce(&mut Announced) -> R) -> R {
        self.change_rare(|rare| change(&mut rare.announced))
    }

    fn change_rare<R>(&mut self, change: impl FnOnce(&mut RareState) -> R) -> R {
        let result = change(self.rare.get_or_insert_default());
        self.rare.take_if(|rare| {
            rare.groups.is_empty() && rare.remote.is_empty() && rare.announced.is_idle()
        });
        result
    }
}

/// The subscriptions of one session.
#[derive(Debug, Default)]
pub(crate) struct SessionSubscriptions {
    /// By their filters' numbers, in order. Most sessions have one or two, which need no memory of
    /// their own.
    plain: SmallVec<[Held; 2]>,
    /// While there is something in it.
    rare: Option<Box<Rare>>,
}

/// What few sessions have, or for a moment.
#[derive(Debug, Default)]
struct Rare {
    shared: BTreeSet<GroupId>,
    /// While there is something in it.
    barrier: Option<Box<Barrier>>,
    /// Replays of retained messages, while some are under way.
    replays: Option<Box<Running>>,
}

/// What of one session waits until all shards know of it.
#[derive(Debug, Default)]
pub(super) struct Barrier {
    /// Plain subscriptions: how often each.
    pub(super) waiting: BTreeMap<FilterId, u32>,
    /// The SUBSCRIBEs: of this connection one, and of earlier ones.
    pub(super) packets: Vec<Turn>,
}

impl SessionSubscriptions {
    /// How many, those in the barrier too.
    pub(crate) fn len(&self) -> usize {
        let rare = self.rare.as_ref().map_or(0, |rare| {
            rare.shared.len() + rare.barrier.as_ref().map_or(0, |barrier| barrier.waiting.len())
        });
        self.plain.len() + rare
    }

    fn place_of(&self, filter: FilterId) -> Result<usize, usize> {
        self.plain.binary_search_by_key(&filter, |held| held.filter)
    }

    /// The plain subscription to this filter, if it has begun.
    pub(super) fn plain(&self, filter: FilterId) -> Option<Held> {
        self.place_of(filter).ok().map(|at| self.plain[at])
    }

    /// A plain subscription has begun, or another one of its filter takes its place.
    pub(super) fn set_plain(&mut self, held: Held) {
        match self.place_of(held.filter) {
            Ok(at) => self.plain[at] = held,
            Err(at) => self.plain.insert(at, held),
        }
    }

    pub(super) fn remove_plain(&mut self, filter: FilterId) -> Option<Held> {
        let held = self.plain.remove(self.place_of(filter).ok()?);
        if self.plain.len() * 4 < self.plain.capacity() {
            self.plain.shrink_to_fit();
        }
        Some(held)
    }

    /// All plain ones, out of it.
    pub(super) fn take_plain(&mut self) -> impl Iterator<Item = Held> + use<> {
        std::mem::take(&mut self.plain).into_iter()
    }

    pub(super) fn is_member(&self, group: GroupId) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.shared.contains(&group))
    }

    pub(super) fn groups(&self) -> Vec<GroupId> {
        self.rare.iter().flat_map(|rare| &rare.shared).copied().collect()
    }

    pub(super) fn join(&mut self, group: GroupId) {
        self.rare.get_or_insert_default().shared.insert(group);
    }

    pub(super) fn leave(&mut self, group: GroupId) {
        if let Some(rare) = &mut self.rare {
            rare.shared.remove(&group);
        }
        self.drop_rare();
    }

    /// What is in the barrier.
    pub(super) fn barrier(&mut self) -> &mut Barrier {
        self.rare.get_or_insert_default().barrier.get_or_insert_default()
    }

    /// The SUBSCRIBEs in the barrier.
    pub(super) fn waiting_packets(&self) -> impl Iterator<Item = &Turn> {
        let barrier = self.rare.as_ref().and_then(|rare| rare.barrier.as_ref());
        barrier.into_iter().flat_map(|barrier| &barrier.packets)
    }

    pub(crate) fn replays(&self) -> Option<&Running> {
        self.rare.as_ref()?.replays.as_deref()
    }

    /// Those under way; there may be some from now on.
    pub(crate) fn replays_mut(&mut self) -> &mut Running {
        self.rare.get_or_insert_default().replays.get_or_insert_default()
    }

    /// Changes those under way, if there are any; what is empty afterwards goes.
    pub(crate) fn change_replays<R>(
        &mut self,
        change: impl FnOnce(&mut Option<Box<Running>>) -> R,
    ) -> Option<R> {
        let result = self.rare.as_mut().map(|rare| change(&mut rare.replays));
        self.drop_rare();
        result
    }

    fn drop_rare(&mut self) {
        self.rare.take_if(|rare| {
            rare.shared.is_empty() && rare.barrier.is_none() && rare.replays.is_none()
        });
    }

    /// Whether a plain subscription to this filter is in the barrier.
    pub(super) fn is_waiting(&self, filter: FilterId) -> bool {
        let barrier = self.rare.as_ref().and_then(|rare| rare.barrier.as_ref());
        barrier.is_some_and(|barrier| barrier.waiting.contains_key(&filter))
    }

    /// One in the barrier has begun or was taken back.
    pub(super) fn stop_waiting(&mut self, filter: FilterId) {
        let Entry::Occupied(mut entry) = self.barrier().waiting.entry(filter) else {
            unreachable!("invariant: what is in the barrier is counted");
        };
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
        }
        self.drop_barrier();
    }

    /// A SUBSCRIBE is answered.
    pub(super) fn end_packet(&mut self, turn: Turn) {
        self.barrier().packets.retain(|other| *other != turn);
        self.drop_barrier();
    }

    fn drop_barrier(&mut self) {
        let is_empty =
            |barrier: &mut Box<Barrier>| barrier.waiting.is_empty() && barrier.packets.is_empty();
        if let Some(rare) = &mut self.rare {
            rare.barrier.take_if(is_empty);
        }
        self.drop_rare();
    }
}

/// A plain subscription of a session; how it wants its messages stands with the filter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) filter: FilterId,
    /// Its place among the filter's subscribers, and as the lowest bit, whether it was announced as
    /// durable: a session may have very many of these.
    place: u32,
}

const _: () = assert!(SESSIONS_MAX < u32::MAX as usize / 2, "a place has room for its bit");

impl Held {
    pub(super) fn new(filter: FilterId, at: usize, durable: bool) -> Self {
        let at = u32::try_from(at).ok().and_then(|at| at.checked_mul(2));
        let at = at.expect("invariant: a filter has fewer than 2^31 subscribers");
        Self { filter, place: at | u32::from(durable) }
    }

    /// Its place among the filter's subscribers.
    pub(super) fn at(self) -> usize {
        (self.place >> 1) as usize
    }

    /// Whether it was announced as durable.
    pub(super) fn durable(self) -> bool {
        self.place & 1 != 0
    }
}

/// How a session wants what a filter matches, if it subscribes to it and that has begun.
pub(crate) fn plain_of(
    broker: &Broker,
    session: SessionKey,
    filter: FilterId,
) -> Option<Subscription> {
    let held = broker.sessions.get(session)?.subscriptions.plain(filter)?;
    Some(broker.topic_tree[filter].subscribers[held.at()].subscription)
}

/// What a filter of one subscriber takes, in bytes: in the topic tree, if two of its levels are no
/// other filter's, and with its session.
#[cfg(test)]
pub(crate) const FILTER_BYTES: usize =
    super::topic_tree::TopicTree::<FilterState>::bytes_per_filter(2) + size_of::<Held>();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_takes_few_bytes() {
        let parts = [size_of::<Subscribers>(), size_of::<FilterState>(), size_of::<Held>()];
        assert_eq!(parts, [16, 32, 8]);
        const { assert!(FILTER_BYTES <= crate::limits::FILTER_BYTES) };
        assert_eq!(size_of::<SessionSubscriptions>(), 32);
    }
}
