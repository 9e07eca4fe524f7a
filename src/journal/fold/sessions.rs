//! Sessions, their subscriptions, and groups, as the fold knows them.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use super::subs::{Members, Sub, Subs};
use super::{At, FilterId, Fold, QOS_BITS, Queue, origin_of, sequence_of};
use crate::journal::wire::Numbers;
use crate::limits::{JOURNAL_ENDING_STEP, JOURNAL_UNSUBSCRIBE_LOOKS, TOPIC_LEVELS_MAX};

/// No number that a host gives.
const NO_NUMBER: u64 = 0;

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client_id: Box<str>,
    /// The host's.
    pub(crate) number: u64,
    pub(crate) expiry_secs: u32,
    pub(crate) offline_since: Option<u64>,
    pub(crate) at: At,
    pub(crate) subs: BTreeSet<FilterId>,
    /// Slots of its groups.
    pub(crate) groups: BTreeSet<u32>,
    pub(crate) will: Option<At>,
    /// Packet ids of its QoS 2 publications, with the message.
    pub(crate) unreleased: BTreeMap<u16, (u64, At)>,
    /// By packet id.
    pub(crate) exchanges: BTreeMap<u16, Exchange>,
    pub(crate) queue: Queue,
    /// Messages that a copy says an exchange holds, which may be over, or not read yet.
    pub(crate) assigned: Vec<u64>,
    /// It is gone, and what it is owed is taken apart.
    pub(crate) is_ending: bool,
}

/// A QoS 2 message on its way to a session.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) message: Option<u64>,
    /// Ascends with the first sending.
    pub(crate) order: u64,
    pub(crate) is_received: bool,
    pub(crate) retain: bool,
    pub(crate) subscription_ids: Box<[u32]>,
    pub(crate) group: Option<Box<str>>,
    /// Its ASSIGN.
    pub(crate) at: At,
    /// Its RECEIVED.
    pub(crate) received_at: Option<At>,
}

/// A shared subscription's group.
#[derive(Debug)]
pub(crate) struct Group {
    /// `share name/filter`.
    pub(crate) key: Box<str>,
    /// The host's.
    pub(crate) number: u64,
    pub(crate) at: At,
    pub(crate) members: Members,
    pub(crate) queue: Queue,
    /// What it is owed is taken apart: no record means it any more.
    pub(crate) is_ending: bool,
}

impl Exchange {
    /// The message that it holds.
    pub(crate) fn held(&self) -> Option<u64> {
        self.message.filter(|_| !self.is_received)
    }
}

/// The key of a shared filter, and the filter in it.
fn shared(filter: &str) -> Option<(&str, &str)> {
    let key = filter.strip_prefix("$share/")?;
    Some((key, key.split_once('/')?.1))
}

/// What no broker has accepted, no topic tree takes.
fn has_few_levels(filter: &str) -> bool {
    filter.split('/').nth(TOPIC_LEVELS_MAX).is_none()
}

impl Fold {
    /// The number of this client's session, or of the one that it will get.
    pub(crate) fn number_of(&self, client_id: &str) -> u64 {
        match self.clients.get(client_id) {
            Some(slot) => self.sessions[*slot as usize].number,
            None => self.next_number,
        }
    }

    /// The number that the group of this filter has to get before a SUB with these options, if it
    /// is shared: when there is none, and when what it was owed has ended. A replay knows by the new
    /// number that this is so, whichever members it knows.
    pub(crate) fn new_group<'a>(&self, filter: &'a str, options: u8) -> Option<(&'a str, u64)> {
        let (key, _) = shared(filter)?;
        let begins = match self.group_keys.get(key).map(|slot| &self.groups[*slot as usize]) {
            None => true,
            Some(group) => {
                let is_raised = group.members.granted() == 0 && options & QOS_BITS > 0;
                is_raised && group.queue.names().next().is_none()
            }
        };
        begins.then_some((key, self.next_number))
    }

    pub(super) fn session(
        &mut self,
        at: At,
        client_id: &str,
        expiry_secs: u32,
        offline_since: Option<u64>,
        number: u64,
    ) {
        if expiry_secs == 0 {
            return self.end_session(client_id);
        }
        if let Some(slot) = self.clients.get(client_id).copied() {
            let session = &mut self.sessions[slot as usize];
            (session.expiry_secs, session.offline_since) = (expiry_secs, offline_since);
            let old = std::mem::replace(&mut session.at, at);
            return self.replaced(Some(old), at);
        }
        let session = Session {
            client_id: client_id.into(),
            number,
            expiry_secs,
            offline_since,
            at,
            subs: BTreeSet::new(),
            groups: BTreeSet::new(),
            will: None,
            unreleased: BTreeMap::new(),
            exchanges: BTreeMap::new(),
            queue: Queue::default(),
            assigned: Vec::new(),
            is_ending: false,
        };
        let slot = self.sessions.insert(session) as u32;
        self.clients.insert(client_id.into(), slot);
        self.give_number(number, slot, false);
        self.came(at);
    }

    /// A session whose record stands further on in what is left of the log: it was copied there
    /// (J10), and what stands before it is its too. See [`Fold::confirm`].
    pub(in crate::journal) fn expect_session(&mut self, client_id: &str, number: u64) {
        if !self.clients.contains_key(client_id) {
            self.session(At::default(), client_id, 1, None, number);
        }
    }

    /// The same for a group.
    pub(in crate::journal) fn expect_group(&mut self, key: &str, number: u64) {
        if !self.group_keys.contains_key(key) {
            self.number_group(At::default(), key, number);
        }
    }

    /// What was expected and did not come is not there.
    pub(in crate::journal) fn confirm(&mut self) {
        self.generation += 1;
        let missing = self.sessions.iter().filter(|(_, session)| session.at == At::default());
        let missing: Vec<Box<str>> = missing.map(|(_, s)| s.client_id.clone()).collect();
        missing.iter().for_each(|client_id| self.end_session(client_id));
        for slot in self.clients.values().copied().collect::<Vec<u32>>() {
            let session = &mut self.sessions[slot as usize];
            let held: BTreeSet<u64> =
                session.exchanges.values().filter_map(Exchange::held).collect();
            let mut over = std::mem::take(&mut session.assigned);
            over.retain(|name| !held.contains(name));
            over.iter().for_each(|name| drop(self.settle(*name, slot, false)));
        }
        self.is_replaying = false;
        for slot in self.group_keys.values().copied().collect::<Vec<u32>>() {
            self.end_if_over(slot);
        }
        for slot in self.group_keys.values().copied().collect::<Vec<u32>>() {
            // Its GROUP record cannot be read.
            if self.groups[slot as usize].number == NO_NUMBER {
                let number = self.next_number;
                self.groups[slot as usize].number = number;
                self.give_number(number, slot, true);
            }
        }
        while self.take_apart(usize::MAX) {}
    }

    pub(super) fn end_session(&mut self, client_id: &str) {
        let Some(slot) = self.clients.remove(client_id) else { return };
        let session = &mut self.sessions[slot as usize];
        session.is_ending = true;
        self.numbers.remove(&session.number);
        let (subs, groups) =
            (std::mem::take(&mut session.subs), std::mem::take(&mut session.groups));
        let exchanges = std::mem::take(&mut session.exchanges);
        let unreleased = std::mem::take(&mut session.unreleased);
        let queue = std::mem::take(&mut session.queue);
        let own = [Some(session.at), session.will.take()];
        own.into_iter().for_each(|at| self.gone(at));
        unreleased.into_values().for_each(|(_, at)| self.gone(Some(at)));
        subs.into_iter().for_each(|filter| self.remove_sub(slot, filter));
        groups.into_iter().for_each(|group| self.leave(slot, group));
        for exchange in exchanges.into_values() {
            self.gone(Some(exchange.at));
            self.gone(exchange.received_at);
            self.end_exchange(slot, exchange.held());
        }
        for name in std::mem::take(&mut self.sessions[slot as usize].assigned) {
            self.settle(name, slot, false);
        }
        self.forget_early_of(slot, false);
        // The slot is free when nothing names it.
        self.ending.push((slot, false, queue));
        self.take_apart(JOURNAL_ENDING_STEP);
    }

    fn forget_early_of(&mut self, slot: u32, is_group: bool) {
        for holders in self.early.iter_mut().flat_map(BTreeMap::values_mut) {
            let before = holders.len();
            holders.retain(|holder| *holder != (slot, is_group));
            self.early_len -= before - holders.len();
        }
    }

    /// Takes apart what holders that are gone were owed, up to so many messages. Whether there is
    /// more.
    pub fn take_apart(&mut self, most: usize) -> bool {
        let mut left = most;
        while left > 0
            && let Some((slot, is_group, queue)) = self.ending.last_mut()
        {
            let (slot, is_group) = (*slot, *is_group);
            let names = queue.take(left);
            left = left.saturating_sub(names.len().max(1));
            if names.is_empty() {
                self.ending.pop();
                if is_group {
                    self.groups.remove(slot as usize);
                } else {
                    self.sessions.remove(slot as usize);
                }
            }
            for name in names {
                let Some(message) = self.messages.get_mut(name) else { continue };
                message.receivers.remove(slot, is_group);
                self.release(name);
            }
        }
        !self.ending.is_empty()
    }

    /// Whether [`Fold::take_apart`] has something to do.
    pub(in crate::journal) fn is_ending(&self) -> bool {
        !self.ending.is_empty()
    }

    pub(super) fn drop_will(&mut self, client_id: &str) {
        if let Some(slot) = self.clients.get(client_id).copied() {
            let old = self.sessions[slot as usize].will.take();
            self.gone(old);
        }
    }

    // ---- subscriptions ----

    pub(super) fn sub(&self, slot: u32, filter: &str) -> Option<&Sub> {
        if let Some((key, _)) = shared(filter) {
            let group = &self.groups[*self.group_keys.get(key)? as usize];
            return group.members.get(slot);
        }
        self.plain.get(filter)?.get(slot)
    }

    pub(super) fn subscribe(
        &mut self,
        at: At,
        client_id: &str,
        filter: &str,
        options: u8,
        subscription_id: u32,
        seen: Numbers<'_>,
    ) {
        if !has_few_levels(filter) {
            return;
        }
        let Some(slot) = self.slot(client_id) else { return };
        let seen = seen
            .iter()
            .filter(|name| sequence_of(*name) > self.last_pub[origin_of(*name)])
            .collect();
        let serial = self.next_serial;
        self.next_serial += 1;
        let new = Sub { session: slot, options, subscription_id, serial, seen, at };
        let old = if let Some((key, inner)) = shared(filter) {
            let group = self.group(at, key, inner);
            self.sessions[slot as usize].groups.insert(group);
            self.groups[group as usize].members.put(new)
        } else {
            let id = self.plain.insert_with(filter, Subs::default);
            self.sessions[slot as usize].subs.insert(id);
            let Self { plain, passing, .. } = self;
            let old = plain[id].put(new).map(|(at, seen)| {
                for name in seen {
                    passing[origin_of(name)].remove(&(sequence_of(name), id, slot));
                }
                at
            });
            for name in plain[id].get(slot).map_or(&[][..], |sub| &sub.seen) {
                passing[origin_of(*name)].insert((sequence_of(*name), id, slot));
            }
            old
        };
        self.replaced(old, at);
    }

    pub(super) fn unsubscribe(&mut self, client_id: &str, filter: &str) {
        let Some(slot) = self.slot(client_id) else { return };
        if let Some((key, _)) = shared(filter) {
            if let Some(group) = self.group_keys.get(key).copied() {
                self.sessions[slot as usize].groups.remove(&group);
                self.leave(slot, group);
            }
        } else if let Some(id) = self.plain.find(filter) {
            self.sessions[slot as usize].subs.remove(&id);
            self.remove_sub(slot, id);
        }
    }

    /// Messages of this session that its UNSUB ends: those of this subscription alone that were
    /// under way and had not come to its home (`seen`).
    pub(in crate::journal) fn ended_by_unsubscribe(
        &self,
        client_id: &str,
        filter: &str,
        seen: Numbers<'_>,
    ) -> Vec<u64> {
        let Some(slot) = self.clients.get(client_id).copied() else { return Vec::new() };
        let Some(sub) = self.sub(slot, filter) else { return Vec::new() };
        let session = &self.sessions[slot as usize];
        let is_ended = |name: &u64| {
            let Some(message) = self.messages.get(*name) else { return false };
            let owed = message.receivers.find(slot, false).filter(|owed| !owed.is_assigned);
            let had = message.qos == 1
                && seen.iter().any(|last| {
                    origin_of(last) == origin_of(*name) && sequence_of(*name) <= sequence_of(last)
                });
            !had && owed.is_some_and(|owed| owed.only == sub.serial as u32)
        };
        session.queue.latest().take(JOURNAL_UNSUBSCRIBE_LOOKS).filter(is_ended).collect()
    }

    fn remove_sub(&mut self, slot: u32, filter: FilterId) {
        let subs = &mut self.plain[filter];
        let Some(sub) = subs.remove(slot) else { return };
        for name in &sub.seen {
            self.passing[origin_of(*name)].remove(&(sequence_of(*name), filter, slot));
        }
        if subs.is_empty() {
            self.plain.remove_id(filter);
        }
        self.gone(Some(sub.at));
    }

    // ---- groups ----

    /// The group of this key, made if there is none.
    fn group(&mut self, at: At, key: &str, filter: &str) -> u32 {
        if let Some(slot) = self.group_keys.get(key) {
            return *slot;
        }
        // A replay does not make up a number that another gets further on.
        let number = if self.is_replaying { NO_NUMBER } else { self.next_number };
        self.add_group(At { len: 0, ..at }, key, filter, number)
    }

    /// From now on it means this holder.
    fn give_number(&mut self, number: u64, slot: u32, is_group: bool) {
        if number != NO_NUMBER {
            self.numbers.insert(number, (slot, is_group));
            self.next_number = self.next_number.max(number.saturating_add(1));
        }
    }

    fn add_group(&mut self, at: At, key: &str, filter: &str, number: u64) -> u32 {
        let members = Members::default();
        let (key, queue) = (Box::from(key), Queue::default());
        let group = Group { key, number, at, members, queue, is_ending: false };
        let slot = self.groups.insert(group) as u32;
        self.group_keys.insert(self.groups[slot as usize].key.clone(), slot);
        self.give_number(number, slot, true);
        let id = self.shared.insert_with(filter, Vec::new);
        self.shared[id].push(slot);
        self.came(at);
        slot
    }

    /// GROUP: its number.
    pub(super) fn number_group(&mut self, at: At, key: &str, number: u64) {
        let Some((_, filter)) = key.split_once('/') else { return };
        match self.group_keys.get(key).copied() {
            None if !has_few_levels(filter) => {}
            None => {
                self.add_group(at, key, filter, number);
            }
            Some(slot) => {
                let is_new = self.groups[slot as usize].number != number;
                let slot = if is_new { self.owe_nothing(slot) } else { slot };
                let group = &mut self.groups[slot as usize];
                let (old, before) = (group.at, group.number);
                (group.at, group.number) = (at, number);
                self.numbers.remove(&before);
                self.give_number(number, slot, true);
                self.replaced(Some(old), at);
            }
        }
    }

    fn end_group(&mut self, group: u32) {
        let Group { key, number, at, is_ending, .. } = &mut self.groups[group as usize];
        *is_ending = true;
        let (key, number, at) = (std::mem::take(key), *number, *at);
        self.gone(Some(at));
        self.group_keys.remove(&key);
        self.numbers.remove(&number);
        if let Some((_, filter)) = key.split_once('/')
            && let Some(id) = self.shared.find(filter)
        {
            let groups = &mut self.shared[id];
            groups.retain(|other| *other != group);
            if groups.is_empty() {
                self.shared.remove_id(id);
            }
        }
        self.forget_early_of(group, true);
        let queue = std::mem::take(&mut self.groups[group as usize].queue);
        self.ending.push((group, true, queue));
        self.take_apart(JOURNAL_ENDING_STEP);
    }

    /// A member is gone; what the group is owed ends with the last that could have it.
    fn leave(&mut self, slot: u32, group: u32) {
        let Some(member) = self.groups[group as usize].members.remove(slot) else { return };
        self.gone(Some(member.at));
        // The SUBs of others may stand further on, copied there (J10): a replay knows at its end.
        if !self.is_replaying {
            self.end_if_over(group);
        }
    }

    /// Nobody is left who could have what the group is owed.
    fn end_if_over(&mut self, group: u32) {
        let members = &self.groups[group as usize].members;
        if members.is_empty() {
            self.end_group(group);
        } else if members.granted() == 0 {
            self.owe_nothing(group);
        }
    }

    /// A group that goes on and is owed nothing any more, however much that was: it gets a place of
    /// its own, which is returned, and what it was owed is taken apart in the old one.
    fn owe_nothing(&mut self, old: u32) -> u32 {
        let group = &mut self.groups[old as usize];
        let queue = std::mem::take(&mut group.queue);
        if queue.names().next().is_none() {
            return old;
        }
        group.is_ending = true;
        let (number, at) = (group.number, group.at);
        let members = std::mem::take(&mut group.members);
        let key = group.key.clone();
        let (new, is_ending) = (Queue::default(), false);
        let group = Group { key: key.clone(), number, at, members, queue: new, is_ending };
        let new = self.groups.insert(group) as u32;
        for member in self.groups[new as usize].members.iter() {
            let groups = &mut self.sessions[member.session as usize].groups;
            groups.remove(&old);
            groups.insert(new);
        }
        self.give_number(number, new, true);
        if let Some((_, filter)) = key.split_once('/')
            && let Some(places) = self.shared.get_mut(filter)
        {
            places.iter_mut().filter(|place| **place == old).for_each(|place| *place = new);
        }
        self.group_keys.insert(key, new);
        self.forget_early_of(old, true);
        self.ending.push((old, true, queue));
        self.take_apart(JOURNAL_ENDING_STEP);
        new
    }
}
