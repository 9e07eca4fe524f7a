//! Subscriptions, as their sessions and their filters hold them.
//!
//! Owns, in each [`Session`](super::session::Session), the list of its subscriptions, and in the
//! topic tree what stands with a filter. Invariants: each plain subscription of a session that has
//! begun stands once in its filter's list, at the place that it names; a filter is in the tree
//! exactly while somebody here or elsewhere has it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use smallvec::SmallVec;

use crate::codec::mqtt::SubscriptionOptions;

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

/// What the topic tree keeps for a filter.
#[derive(Debug, Default)]
pub(crate) struct FilterState {
    /// Plain subscriptions of this shard that have begun. Most filters have one, which needs no
    /// memory of its own.
    pub(crate) subscribers: SmallVec<[Subscriber; 1]>,
    /// Of those, durable ones.
    pub(crate) durable: u32,
    /// Those in the barrier.
    pub(super) waiting: u32,
    /// Groups of this filter, wherever their members are.
    pub(crate) groups: Vec<GroupId>,
    /// Other shards that want it, if it has wildcards.
    pub(crate) remote: Wanted,
    /// What they were told of us, if it has wildcards.
    pub(super) announced: Announced,
    /// The hash of the topic that it is, if it has none.
    pub(super) exact: Option<u64>,
}

impl FilterState {
    pub(super) fn is_unused(&self) -> bool {
        self.subscribers.is_empty()
            && self.waiting == 0
            && self.groups.is_empty()
            && self.remote.is_empty()
            && self.announced.is_idle()
    }
}

/// The subscriptions of one session.
#[derive(Debug, Default)]
pub(crate) struct SessionSubscriptions {
    pub(super) plain: BTreeMap<FilterId, Held>,
    pub(super) shared: BTreeMap<GroupId, ()>,
    /// While there is something in it.
    pub(super) barrier: Option<Box<Barrier>>,
    /// Replays of retained messages, while some are under way.
    pub(crate) replays: Option<Box<Running>>,
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
        let waiting = self.barrier.as_ref().map_or(0, |barrier| barrier.waiting.len());
        self.plain.len() + self.shared.len() + waiting
    }

    /// The plain subscription to this filter, if it has begun.
    pub(crate) fn plain(&self, filter: FilterId) -> Option<&Subscription> {
        self.plain.get(&filter).map(|held| &held.subscription)
    }

    /// Whether a plain subscription to this filter is in the barrier.
    pub(super) fn is_waiting(&self, filter: FilterId) -> bool {
        self.barrier.as_ref().is_some_and(|barrier| barrier.waiting.contains_key(&filter))
    }

    /// One in the barrier has begun or was taken back.
    pub(super) fn stop_waiting(&mut self, filter: FilterId) {
        let barrier = self.barrier.as_mut().expect("invariant: there while something is in it");
        let Entry::Occupied(mut entry) = barrier.waiting.entry(filter) else {
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
        if let Some(barrier) = &mut self.barrier {
            barrier.packets.retain(|other| *other != turn);
        }
        self.drop_barrier();
    }

    fn drop_barrier(&mut self) {
        let is_empty =
            |barrier: &mut Box<Barrier>| barrier.waiting.is_empty() && barrier.packets.is_empty();
        self.barrier.take_if(is_empty);
    }
}

/// A plain subscription of a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    /// Its place among the filter's subscribers.
    pub(super) at: u32,
    /// Whether it was announced as durable.
    pub(super) durable: bool,
    pub(super) subscription: Subscription,
}
