//! Shared Subscriptions: groups of which one member gets each message (4.8.2).
//!
//! The publisher's shard picks a shard by what it knows of the members of all shards and names the
//! group in the entry (SHARDS.md S1); the chosen shard picks the member. A shard that has nobody
//! for a message sends it back to the sender, which picks again (S2); the counts that say "none
//! here" stand before it in the lane, so that ends.
//!
//! Who is chosen follows the group's [`Strategy`]. Between shards it rests on the counts that they
//! say to each other (S5), so some strategies are approximations there:
//! - round-robin and least in flight: by weight of the members online between shards, exact within
//!   one;
//! - random: each member alike, as far as the counts are fresh;
//! - sticky: every shard remembers the shard of the first member it heard of, until nobody is online
//!   there, and that shard the member. If members of several shards join at the same moment, shards
//!   may remember different ones: then one member for the publishers of each;
//! - by hash: weighted rendezvous for the shard, rendezvous for the member, so that few move when
//!   members come or go. The weights are those that all shards were told, this one's own too.
//!
//! Members that are online come first, of all shards; only if there is none, one that is not, and
//! then one that can keep the message, if there is one. For each message the two hashes look at all
//! members of this shard, and least in flight at up to [`LEAST_IN_FLIGHT_LOOKS`].
//!
//! Owns the groups: the members here, the counts of the other shards, and what these were told of
//! ours. A group exists while it has members here or elsewhere, or others believe that it has.
//!
//! Invariants: members that are online stand before those that are not; `places` says where each
//! member stands; counts are said before any message that was sent back because of them.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::rc::Rc;

use foldhash::fast::FixedState;
use slab::Slab;

use crate::ids::ShardId;
use crate::limits::LEAST_IN_FLIGHT_LOOKS;

use super::Place;
use super::entry::{Members, ToGroup};
use super::session::SessionKey;
use super::strategy::{Strategies, Strategy};
use super::subscription::Subscription;
use super::topic_tree::FilterId;

/// A group: a ShareName and a filter. A slot is used again with a new serial, so that an id
/// outlives its group without naming another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct GroupId {
    index: u32,
    serial: u32,
}

/// What a group is called. It outlives the group while a message refers to it: whoever is done with
/// that one says so by name, whether anybody is still known to be in the group or not (SHARDS.md J9).
#[derive(Debug, PartialEq, Eq)]
pub struct GroupName {
    id: GroupId,
    key: Box<str>,
}

impl GroupName {
    /// Of a group of which this shard knows nothing: `share name/filter`.
    pub fn of_none(key: &str) -> Self {
        Self { id: GroupId { index: u32::MAX, serial: 0 }, key: key.into() }
    }

    /// `share name/filter`; a ShareName has no slash, so this is unique.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The group, which may be gone.
    pub(crate) fn id(&self) -> GroupId {
        self.id
    }
}

/// The groups that a PUB names. None for no group: that takes no memory.
pub type Named = Option<Rc<[Rc<GroupName>]>>;

/// The group for which a session was chosen, and by what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) group: Rc<GroupName>,
    /// What the strategies by hash choose by: the hash of the publisher's client id, or of the
    /// topic. It travels with the message, since where it goes on only this is known.
    pub(crate) spread: u32,
    /// The message's PUB names this group: it is owed to it until GROUPACK (SHARDS.md J9).
    pub(crate) is_owed: bool,
}

const _: () = assert!(size_of::<Option<Chosen>>() == 16);

impl Chosen {
    /// As it travels.
    pub(crate) fn to_lane(&self, returned: bool) -> ToGroup<'_> {
        let Self { group, spread, is_owed } = self;
        ToGroup { key: group.key(), spread: *spread, returned, is_owed: *is_owed }
    }
}

/// One member here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    pub(crate) session: SessionKey,
    pub(crate) subscription: Subscription,
    pub(crate) durable: bool,
    /// Of its client id: the same whenever it comes.
    pub(crate) hash: u64,
}

/// One group.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) name: Rc<GroupName>,
    pub(crate) filter: FilterId,
    /// Its place among the filter's groups.
    pub(crate) at: u32,
    strategy: Strategy,
    members: Vec<Member>,
    places: HashMap<SessionKey, u32, FixedState>,
    online: u32,
    durable: u32,
    /// Whose turn it is, among those of whom one is picked.
    turn: usize,
    /// Who gets all, if it is sticky: of this shard's members, and of the shards.
    sticky: Option<SessionKey>,
    sticky_shard: Option<ShardId>,
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
    strategies: Strategies,
    /// The state of [`SharedSubs::roll`].
    random: u64,
}

impl SharedSubs {
    pub(crate) fn new(place: Place, seed: u64, strategies: Strategies) -> Self {
        let by_key = HashMap::with_hasher(FixedState::with_seed(seed ^ 4));
        let random = mix(seed ^ 6);
        Self { place, groups: Slab::new(), by_key, serial: 0, seed, strategies, random }
    }

    /// A number by chance, if the group's strategy is that.
    fn roll(&mut self, id: GroupId) -> u64 {
        if self.get(id).strategy != Strategy::Random {
            return 0;
        }
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.random)
    }

    pub(crate) fn find(&self, key: &str) -> Option<GroupId> {
        self.by_key.get(key).copied()
    }

    /// For which group a message has come.
    pub(crate) fn chosen(&self, ToGroup { key, spread, is_owed, .. }: ToGroup<'_>) -> Chosen {
        let group = match self.find(key) {
            Some(group) => self.get(group).name.clone(),
            None => Rc::new(GroupName::of_none(key)),
        };
        Chosen { group, spread, is_owed }
    }

    /// A new group, which stands `at` this place of its filter; there is none of this key.
    pub(crate) fn insert(&mut self, key: &str, filter: FilterId, at: u32) -> GroupId {
        let shards = if self.place.shards == 1 { 0 } else { self.place.shards };
        self.serial = self.serial.wrapping_add(1);
        let serial = self.serial;
        let slot = self.groups.vacant_entry();
        let index = u32::try_from(slot.key()).expect("invariant: fewer than 2^32 groups");
        let id = GroupId { index, serial };
        slot.insert(Group {
            name: Rc::new(GroupName { id, key: key.into() }),
            filter,
            at,
            strategy: self.strategies.of(key),
            sticky: None,
            sticky_shard: None,
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
        self.by_key.insert(key.into(), id);
        id
    }

    /// Forgets a group of which there is nothing to know, and says where it stood.
    pub(crate) fn remove_if_idle(&mut self, id: GroupId) -> Option<(FilterId, u32)> {
        if !self.get(id).is_idle() {
            return None;
        }
        let group = self.groups.remove(id.index as usize);
        self.by_key.remove(group.name.key());
        Some((group.filter, group.at))
    }

    /// Whether this group still exists.
    pub(crate) fn contains(&self, id: GroupId) -> bool {
        self.groups.get(id.index as usize).is_some_and(|group| group.name.id == id)
    }

    pub(crate) fn get(&self, id: GroupId) -> &Group {
        let group = &self.groups[id.index as usize];
        assert_eq!(group.name.id, id, "invariant: this group exists");
        group
    }

    pub(crate) fn get_mut(&mut self, id: GroupId) -> &mut Group {
        let group = &mut self.groups[id.index as usize];
        assert_eq!(group.name.id, id, "invariant: this group exists");
        group
    }

    /// The shard that is to take a message for this group: of those with members online, of all
    /// with members where none is. None when no shard is known to have members.
    pub(crate) fn pick_shard(&mut self, chosen: &Chosen) -> Option<ShardId> {
        let (me, roll) = (self.place.shard, self.roll(chosen.group.id));
        self.get_mut(chosen.group.id).pick_shard(me, chosen.spread, roll)
    }

    /// The member of this shard that gets a message for this group: of those online, of all where
    /// none is; `is_kept` if the message could be kept for one that is not. `load` tells how much
    /// waits for a session.
    pub(crate) fn pick_member(
        &mut self,
        chosen: &Chosen,
        is_kept: bool,
        load: impl Fn(SessionKey) -> usize,
    ) -> Option<Member> {
        let roll = self.roll(chosen.group.id);
        let group = self.get_mut(chosen.group.id);
        let index = group.pick_index(chosen.spread, roll, is_kept, load)?;
        Some(group.members[index])
    }

    /// What another shard says of its members.
    pub(crate) fn set_remote(&mut self, id: GroupId, shard: ShardId, members: Members) {
        let me = self.place.shard;
        let group = self.get_mut(id);
        group.remote[shard.index()] = members;
        group.credits[shard.index()] = 0;
        group.settle_sticky(me);
    }
}

/// SplitMix64's last step: every bit of the result depends on every bit of `z`.
fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

/// How much something with this hash is wanted by what spreads by `spread`, as a weighted lot: the
/// highest wins, as often as its weight says, and a weight that changes moves only its own share
/// (rendezvous hashing). Never positive.
fn lot(hash: u64, spread: u32, weight: u32) -> f64 {
    const UNIT: f64 = (1_u64 << 53) as f64;
    let mixed = mix(hash ^ mix(u64::from(spread)));
    let unit = ((mixed >> 11) as f64 + 0.5) / UNIT;
    unit.ln() / f64::from(weight)
}

impl Group {
    /// What the spread of its messages is made from, if anything.
    #[inline]
    pub(crate) fn strategy(&self) -> Strategy {
        self.strategy
    }

    fn is_idle(&self) -> bool {
        self.members.is_empty()
            && self.announced == Members::default()
            && self.remote.iter().all(|members| members.all == 0)
    }

    fn here(&self) -> Members {
        let all = self.members.len() as u32;
        Members { all, online: self.online, durable: self.durable }
    }

    /// Whether a message for it is to be recorded: somebody of some shard may keep it.
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

    fn pick_index(
        &mut self,
        spread: u32,
        roll: u64,
        is_kept: bool,
        load: impl Fn(SessionKey) -> usize,
    ) -> Option<usize> {
        let count = if self.online > 0 { self.online as usize } else { self.members.len() };
        if count == 0 {
            return None;
        }
        // Of members that are not there some can keep it, perhaps.
        let picky = self.online == 0 && is_kept && self.durable > 0;
        let takes = |member: &Member| !picky || member.durable;
        let next = |at: usize| if at + 1 < count { at + 1 } else { 0 };
        let members = &self.members[..count];
        // From this one on the first that takes it; `picky` says that there is one.
        let first_from = |start: usize| {
            let mut at = start;
            while !takes(&members[at]) {
                at = next(at);
            }
            at
        };
        let by_turn = first_from(next(self.turn));
        let picked = match self.strategy {
            Strategy::RoundRobin => by_turn,
            Strategy::Random => first_from((roll % count as u64) as usize),
            Strategy::Sticky => {
                let held = self.sticky.and_then(|held| self.places.get(&held));
                let held = held.map(|at| *at as usize).filter(|at| *at < count);
                held.filter(|at| takes(&members[*at])).unwrap_or(by_turn)
            }
            Strategy::HashClientId | Strategy::HashTopic => {
                let of = |at: &usize| mix(members[*at].hash ^ mix(u64::from(spread)));
                (0..count).filter(|at| takes(&members[*at])).max_by_key(of)?
            }
            Strategy::LeastInFlight => {
                let around = (by_turn..count).chain(0..by_turn);
                let all = around.filter(|at| takes(&members[*at])).take(LEAST_IN_FLIGHT_LOOKS);
                let mut least = (usize::MAX, by_turn);
                for (load, at) in all.map(|at| (load(members[at].session), at)) {
                    if load < least.0 {
                        least = (load, at);
                    }
                    if load == 0 {
                        break;
                    }
                }
                least.1
            }
        };
        self.turn = picked;
        self.sticky = Some(members[picked].session);
        Some(picked)
    }

    /// What the others should hear after a change here. Counts are weights, so they hear of them
    /// when one comes from or goes to zero, or has moved by an eighth.
    pub(crate) fn take_news(&mut self, me: ShardId) -> News {
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
        self.settle_sticky(me);
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

    /// The counts that weigh: of those online, of all where none is anywhere.
    fn weigh(&self, here: Members) -> impl Fn(Members) -> u32 + use<> {
        let by_online = here.online > 0 || self.is_online_elsewhere();
        move |members| if by_online { members.online } else { members.all }
    }

    /// Each shard with its weight, this one with that of `here`; those with none are left out.
    fn weights(&self, me: ShardId, here: Members) -> impl Iterator<Item = (usize, u32)> {
        let weigh = self.weigh(here);
        let of = move |(index, members): (usize, &Members)| {
            (index, weigh(if index == me.index() { here } else { *members }))
        };
        self.remote.iter().enumerate().map(of).filter(|(_, weight)| *weight > 0)
    }

    fn pick_shard(&mut self, me: ShardId, spread: u32, roll: u64) -> Option<ShardId> {
        if self.remote.is_empty() {
            return (!self.members.is_empty()).then_some(me);
        }
        match self.strategy {
            Strategy::RoundRobin | Strategy::LeastInFlight => self.pick_in_turn(me),
            Strategy::Random => {
                let here = self.here();
                let total: u64 = self.weights(me, here).map(|(_, weight)| u64::from(weight)).sum();
                let mut at = roll.checked_rem(total)?;
                let is_it = |(_, weight): &(usize, u32)| match at.checked_sub(u64::from(*weight)) {
                    Some(rest) => {
                        at = rest;
                        false
                    }
                    None => true,
                };
                let picked = self.weights(me, here).find(is_it);
                picked.map(|(index, _)| ShardId::new(index))
            }
            Strategy::Sticky => {
                self.settle_sticky(me);
                self.sticky_shard
            }
            Strategy::HashClientId | Strategy::HashTopic => self.pick_by_lot(me, spread),
        }
    }

    /// Each shard gains its weight, the richest is picked and pays the sum: shares are exact and
    /// interleaved.
    fn pick_in_turn(&mut self, me: ShardId) -> Option<ShardId> {
        let here = self.here();
        let weigh = self.weigh(here);
        let mut total = 0;
        let mut richest: Option<usize> = None;
        for (index, members) in self.remote.iter().enumerate() {
            let members = if index == me.index() { here } else { *members };
            let gain = i64::from(weigh(members));
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

    /// By weighted rendezvous, with the counts that all shards know.
    fn pick_by_lot(&self, me: ShardId, spread: u32) -> Option<ShardId> {
        let of = |(index, weight): (usize, u32)| (index, lot(index as u64 + 1, spread, weight));
        let best = self.weights(me, self.announced).map(of).max_by(|a, b| a.1.total_cmp(&b.1));
        best.map(|(index, _)| ShardId::new(index))
    }

    /// A sticky group holds a shard as long as that has members to weigh.
    fn settle_sticky(&mut self, me: ShardId) {
        if self.strategy != Strategy::Sticky || self.remote.is_empty() {
            return;
        }
        let holds = |held: ShardId| self.weights(me, self.here()).any(|(i, _)| i == held.index());
        if self.sticky_shard.is_none_or(|held| !holds(held)) {
            self.sticky_shard = self.pick_by_lot(me, 0);
        }
    }
}
