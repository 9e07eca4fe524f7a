//! Shared Subscriptions: groups of which one member gets each message (4.8.2).
//!
//! The publisher's shard picks a shard by what it knows of the members of all shards and names the
//! group in the entry (SHARDS.md S1); the chosen shard picks the member. A shard that has nobody
//! for a message sends it back to the sender, which picks again (S2); the counts that say "none
//! here" stand before it in the lane, so that ends.
//!
//! Owns the groups: the members here, the counts of the other shards, and what these were told of
//! ours. A group exists while it has members here or elsewhere, or others believe that it has.
//!
//! Invariants: members that are online stand before those that are not; `places` says where each
//! member stands; counts are said before any message that was sent back because of them.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use foldhash::fast::FixedState;
use slab::Slab;

use crate::ids::ShardId;

use super::Place;
use super::entry::Members;
use super::session::SessionKey;
use super::subscribe::Subscription;
use super::topic_tree::FilterId;

/// A group: a ShareName and a filter. A slot is used again with a new serial, so that an id
/// outlives its group without naming another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct GroupId {
    index: u32,
    serial: u32,
}

/// One member here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    pub(crate) session: SessionKey,
    pub(crate) subscription: Subscription,
    pub(crate) durable: bool,
}

/// One group.
#[derive(Debug)]
pub(crate) struct Group {
    serial: u32,
    /// `share name/filter`; a ShareName has no slash, so this is unique.
    pub(crate) key: Box<str>,
    pub(crate) filter: FilterId,
    /// Its place among the filter's groups.
    pub(crate) at: u32,
    members: Vec<Member>,
    places: HashMap<SessionKey, u32, FixedState>,
    online: u32,
    durable: u32,
    /// Whose turn it is, among those of whom one is picked.
    turn: usize,
    /// What the others were told.
    announced: Members,
    /// The change that raised a count from zero last.
    pub(crate) raised: u64,
    /// Per shard, what it said; of this one, nothing. Empty with one shard.
    remote: Vec<Members>,
    /// Per shard, its credit in the weighted round.
    credits: Vec<i64>,
}

/// What a change of the members makes necessary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// The others need not know yet.
    None,
    /// They are told, and nobody waits for it.
    Say(Members),
    /// They are told, and SUBACK waits until all know: a count was zero (I3).
    Raise(Members),
}

/// All groups of which this shard knows.
#[derive(Debug)]
pub(crate) struct SharedSubs {
    place: Place,
    groups: Slab<Group>,
    by_key: HashMap<Box<str>, GroupId, FixedState>,
    serial: u32,
    seed: u64,
}

impl SharedSubs {
    pub(crate) fn new(place: Place, seed: u64) -> Self {
        let by_key = HashMap::with_hasher(FixedState::with_seed(seed ^ 4));
        Self { place, groups: Slab::new(), by_key, serial: 0, seed }
    }

    pub(crate) fn find(&self, key: &str) -> Option<GroupId> {
        self.by_key.get(key).copied()
    }

    /// A new group, which stands `at` this place of its filter; there is none of this key.
    pub(crate) fn insert(&mut self, key: &str, filter: FilterId, at: u32) -> GroupId {
        let shards = if self.place.shards == 1 { 0 } else { self.place.shards };
        self.serial = self.serial.wrapping_add(1);
        let serial = self.serial;
        let index = self.groups.insert(Group {
            serial,
            key: key.into(),
            filter,
            at,
            members: Vec::new(),
            places: HashMap::with_hasher(FixedState::with_seed(self.seed ^ 5)),
            online: 0,
            durable: 0,
            turn: 0,
            announced: Members::default(),
            raised: 0,
            remote: vec![Members::default(); shards],
            credits: vec![0; shards],
        });
        let index = u32::try_from(index).expect("invariant: fewer than 2^32 groups");
        let id = GroupId { index, serial };
        self.by_key.insert(key.into(), id);
        id
    }

    /// Forgets a group of which there is nothing to know, and says where it stood.
    pub(crate) fn remove_if_idle(&mut self, id: GroupId) -> Option<(FilterId, u32)> {
        if !self.get(id).is_idle() {
            return None;
        }
        let group = self.groups.remove(id.index as usize);
        self.by_key.remove(&group.key);
        Some((group.filter, group.at))
    }

    /// Whether this group still exists.
    pub(crate) fn contains(&self, id: GroupId) -> bool {
        self.groups.get(id.index as usize).is_some_and(|group| group.serial == id.serial)
    }

    pub(crate) fn get(&self, id: GroupId) -> &Group {
        let group = &self.groups[id.index as usize];
        assert_eq!(group.serial, id.serial, "invariant: this group exists");
        group
    }

    pub(crate) fn get_mut(&mut self, id: GroupId) -> &mut Group {
        let group = &mut self.groups[id.index as usize];
        assert_eq!(group.serial, id.serial, "invariant: this group exists");
        group
    }

    /// The shard that is to take a message for this group: by members online, by all where none
    /// is. None when no shard is known to have members.
    pub(crate) fn pick_shard(&mut self, id: GroupId) -> Option<ShardId> {
        let me = self.place.shard;
        self.get_mut(id).pick_shard(me)
    }
}

impl Group {
    fn is_idle(&self) -> bool {
        self.members.is_empty()
            && self.announced == Members::default()
            && self.remote.iter().all(|members| members.all == 0)
    }

    fn here(&self) -> Members {
        let all = self.members.len() as u32;
        Members { all, online: self.online, durable: self.durable }
    }

    /// Whether anybody of any shard would have a message recorded.
    pub(crate) fn is_durable(&self) -> bool {
        self.durable > 0 || self.remote.iter().any(|members| members.durable > 0)
    }

    /// Whether another shard is known to have members online.
    pub(crate) fn is_online_elsewhere(&self) -> bool {
        self.remote.iter().any(|members| members.online > 0)
    }

    /// Shards known to have members, this one aside.
    pub(crate) fn remote_shards(&self) -> impl Iterator<Item = ShardId> {
        let has_members =
            |(index, members): (usize, &Members)| (members.all > 0).then(|| ShardId::new(index));
        self.remote.iter().enumerate().filter_map(has_members)
    }

    /// Members here, connected or not.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// Members here that are connected.
    pub(crate) fn online(&self) -> u32 {
        self.online
    }

    /// What another shard says of its members.
    pub(crate) fn set_remote(&mut self, shard: ShardId, members: Members) {
        self.remote[shard.index()] = members;
        self.credits[shard.index()] = 0;
    }

    /// A session joins, or changes its options. Tells whether it is new.
    pub(crate) fn join(&mut self, member: Member, online: bool) -> bool {
        if let Some(&at) = self.places.get(&member.session) {
            let held = &mut self.members[at as usize];
            self.durable = self.durable - u32::from(held.durable) + u32::from(member.durable);
            *held = member;
            return false;
        }
        self.durable += u32::from(member.durable);
        self.places.insert(member.session, self.members.len() as u32);
        self.members.push(member);
        if online {
            self.swap(self.members.len() - 1, self.online as usize);
            self.online += 1;
        }
        true
    }

    /// A session leaves. Tells whether it was a member.
    pub(crate) fn leave(&mut self, session: SessionKey) -> bool {
        self.set_online(session, false);
        let Some(at) = self.places.get(&session).copied() else { return false };
        self.swap(at as usize, self.members.len() - 1);
        let member = self.members.pop().expect("invariant: places names members");
        self.places.remove(&session);
        self.durable -= u32::from(member.durable);
        true
    }

    /// A member's connection comes or goes.
    pub(crate) fn set_online(&mut self, session: SessionKey, online: bool) {
        let Some(&at) = self.places.get(&session) else { return };
        let was_online = at < self.online;
        if online && !was_online {
            self.swap(at as usize, self.online as usize);
            self.online += 1;
        } else if !online && was_online {
            self.swap(at as usize, self.online as usize - 1);
            self.online -= 1;
        }
    }

    /// The member whose turn it is: round-robin among those online, among all where none is.
    pub(crate) fn pick_member(&mut self) -> Option<Member> {
        let count = if self.online > 0 { self.online as usize } else { self.members.len() };
        if count == 0 {
            return None;
        }
        self.turn = if self.turn + 1 < count { self.turn + 1 } else { 0 };
        Some(self.members[self.turn])
    }

    /// What the others should hear after a change here. Counts are weights, so they hear of them
    /// when one comes from or goes to zero, or has moved by an eighth.
    pub(crate) fn take_news(&mut self) -> News {
        if self.remote.is_empty() {
            return News::None;
        }
        let (here, said) = (self.here(), self.announced);
        let pairs =
            [(here.all, said.all), (here.online, said.online), (here.durable, said.durable)];
        let from_zero = pairs.iter().any(|(here, said)| *said == 0 && *here > 0);
        let to_zero = pairs.iter().any(|(here, said)| *said > 0 && *here == 0);
        let moved = pairs.iter().any(|(here, said)| here.abs_diff(*said) > said / 8);
        if !from_zero && !to_zero && !moved {
            return News::None;
        }
        self.announced = here;
        if from_zero { News::Raise(here) } else { News::Say(here) }
    }

    fn swap(&mut self, a: usize, b: usize) {
        if a == b {
            return;
        }
        self.members.swap(a, b);
        for at in [a, b] {
            self.places.insert(self.members[at].session, at as u32);
        }
    }

    fn pick_shard(&mut self, me: ShardId) -> Option<ShardId> {
        if self.remote.is_empty() {
            return (!self.members.is_empty()).then_some(me);
        }
        let here = self.here();
        let by_online = here.online > 0 || self.is_online_elsewhere();
        let weight = |members: Members| if by_online { members.online } else { members.all };
        // Each shard gains its weight, the richest is picked and pays the sum: shares are exact
        // and interleaved.
        let mut total = 0;
        let mut richest: Option<usize> = None;
        for (index, members) in self.remote.iter().enumerate() {
            let members = if index == me.index() { here } else { *members };
            let gain = i64::from(weight(members));
            if gain == 0 {
                self.credits[index] = 0;
                continue;
            }
            total += gain;
            self.credits[index] += gain;
            if richest.is_none_or(|best| self.credits[index] > self.credits[best]) {
                richest = Some(index);
            }
        }
        let picked = richest?;
        self.credits[picked] -= total;
        Some(ShardId::new(picked))
    }
}
