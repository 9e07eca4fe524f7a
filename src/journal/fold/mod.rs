//! The durable state as the fold over the log (SHARDS.md section 5), one record at a time.
//!
//! The journal's host has one while it runs: so it knows to whom each message is owed when its PUB
//! is taken (J7) and writes that with it, what of a segment is still needed (J10), and where the
//! messages of a queue lie. Recovery builds the same one from what is on disk, without matching a
//! topic. Payloads are not kept.
//!
//! - A PUB is owed to each durable session that has a plain subscription at QoS 1 or 2 that matches
//!   when it is taken, No Local regarded, unless it is a QoS 1 publication that is not above what
//!   the subscription's `seen` says of its origin; and to each group with such a member.
//! - ACKED, DONE and GROUPACK end that, also when they stand before their PUB (J6): names of one
//!   origin ascend in the log, so one above the last PUB of its origin is early, and any other is
//!   late and says nothing.
//! - ASSIGN holds the message for its session in any case, and ends what had its packet id before.
//! - What an UNSUB ends the host finds among the last messages of the queue, where everything is
//!   that was under way, and writes down (ENDED).
//!
//! Invariants: a message is kept exactly while somebody is owed it, or it is a retained value; a
//! record is live exactly while something here came from it, and `live` has said so.
#![forbid(unsafe_code)]

pub mod copies;
pub mod export;
mod known;
mod messages;
mod queue;
mod sessions;
mod subs;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use foldhash::fast::FixedState;
use slab::Slab;

use super::record::{Assign, Entry, Publish, Receiver};
use super::wire::Numbers;
use crate::broker::topic_tree::{FilterId, TopicTree};
use crate::limits::{
    JOURNAL_COMMIT_BYTES, JOURNAL_EARLY_MAX, JOURNAL_ENDING_STEP, JOURNAL_UNSUBSCRIBE_LOOKS,
    SHARDS_MAX,
};
use known::Known;
pub use messages::At;
use messages::{Message, Messages, Owed, Receivers};
use queue::Queue;
use sessions::{Exchange, Group, Session};
use subs::Subs;

/// See the [module](self).
#[derive(Debug)]
pub struct Fold {
    sessions: Slab<Session>,
    clients: HashMap<Box<str>, u32, FixedState>,
    groups: Slab<Group>,
    group_keys: HashMap<Box<str>, u32, FixedState>,
    /// By the host's number: slot, and whether it is a group's.
    numbers: HashMap<u64, (u32, bool), FixedState>,
    next_number: u64,
    next_serial: u64,
    plain: TopicTree<Subs>,
    /// Groups by the filter without their name.
    shared: TopicTree<Vec<u32>>,
    messages: Messages,
    retained: HashMap<Box<str>, u64, FixedState>,
    /// By origin: the sequence number of the last PUB.
    last_pub: Vec<u64>,
    /// By origin: subscriptions whose SUB has seen a message with this sequence number, until its PUB
    /// or a later one is taken.
    passing: Vec<BTreeSet<(u64, FilterId, u32)>>,
    /// By origin: messages that holders have done with before their PUB was taken.
    early: Vec<BTreeMap<u64, Vec<(u32, bool)>>>,
    early_len: usize,
    /// Sessions that have a message assigned whose PUB was not taken yet.
    early_assigns: BTreeMap<u64, Vec<u32>>,
    /// What holders that are gone were owed, and is not taken apart yet.
    ending: Vec<(u32, bool, Queue)>,
    /// The receivers of the message at hand.
    resolved: Vec<Owed>,
    known: Known,
    /// Goes up with whatever may change who is owed a message.
    generation: u64,
    candidates: Vec<Candidate>,
    /// Bytes of records that are live from now on, or no longer: the commit, and how many.
    pub(super) live: Vec<(u64, i64)>,
    last_sequence: u64,
    /// It is made from what is left of a log: what it lacks may stand further on.
    is_replaying: bool,
    /// What it has counted.
    pub counts: Counts,
}

/// What a fold counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records of sessions that are not there.
    pub strangers: u64,
    /// Receivers of messages whose number nobody has.
    pub unknown_receivers: u64,
    /// ACKED, DONE or GROUPACK before their PUB that were forgotten because there were too many.
    pub early_forgotten: u64,
}

/// What is known of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Its record lies there.
    At(At),
    /// Its PUB was not taken yet.
    ToCome,
    /// Nobody is owed it.
    Gone,
}

#[derive(Debug)]
struct Candidate {
    session: u32,
    serial: u64,
    options: u8,
    subscription_id: u32,
}

const QOS_BITS: u8 = 3;
const NO_LOCAL: u8 = 1 << 2;
const RETAIN_AS_PUBLISHED: u8 = 1 << 3;

fn table<K, V>(seed: u64) -> HashMap<K, V, FixedState> {
    HashMap::with_hasher(FixedState::with_seed(seed))
}

const _: () = assert!(JOURNAL_COMMIT_BYTES < 1 << 28, "where a record begins takes 24 bits");

/// The place of an ASSIGN in the log, for all time: no two are that near each other.
const fn order_of(at: At) -> u64 {
    at.commit << 24 | (at.offset >> 4) as u64
}

fn origin_of(name: u64) -> usize {
    (name & 0xff) as usize % SHARDS_MAX
}

fn sequence_of(name: u64) -> u64 {
    name >> 8
}

impl Fold {
    /// Nothing, to be made from what is left of a log, up to [`Fold::confirm`]. Tables that clients
    /// choose the keys of hash with `seed`.
    pub fn replaying(seed: u64) -> Self {
        Self { is_replaying: true, ..Self::new(seed) }
    }

    fn new(seed: u64) -> Self {
        Self {
            sessions: Slab::new(),
            clients: table(seed),
            groups: Slab::new(),
            group_keys: table(seed ^ 1),
            numbers: table(0),
            next_number: 1,
            next_serial: 1,
            plain: TopicTree::new(seed ^ 2),
            shared: TopicTree::new(seed ^ 3),
            messages: Messages::default(),
            retained: table(seed ^ 4),
            last_pub: vec![0; SHARDS_MAX],
            passing: vec![BTreeSet::new(); SHARDS_MAX],
            early: vec![BTreeMap::new(); SHARDS_MAX],
            early_len: 0,
            early_assigns: BTreeMap::new(),
            ending: Vec::new(),
            resolved: Vec::new(),
            known: Known::default(),
            generation: 1,
            candidates: Vec::new(),
            live: Vec::new(),
            last_sequence: 0,
            is_replaying: false,
            counts: Counts::default(),
        }
    }

    /// The greatest sequence number of a message that was mentioned.
    pub const fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    /// All numbers of sessions and groups so far are below.
    pub const fn next_number(&self) -> u64 {
        self.next_number
    }

    /// What a segment's header says about what came before it.
    pub(super) fn begin_after(&mut self, last_sequence: u64, next_number: u64) {
        self.last_sequence = self.last_sequence.max(last_sequence);
        self.next_number = self.next_number.max(next_number);
    }

    /// Where the record of a message lies that somebody is owed, or that is retained.
    pub fn place_of(&self, name: u64) -> Place {
        match self.messages.get(name) {
            Some(message) => Place::At(message.at),
            None if sequence_of(name) > self.last_pub[origin_of(name)] => Place::ToCome,
            None => Place::Gone,
        }
    }

    /// How many messages are kept.
    pub fn messages(&self) -> usize {
        self.messages.len()
    }

    /// How many sessions there are.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// What is owed: the sequence number of a message, and to which client or group.
    pub fn all_owed(&self) -> impl Iterator<Item = (u64, &str)> {
        self.messages.iter().flat_map(move |(name, message)| {
            message.receivers.iter().map(move |owed| {
                let holder = match owed.is_group {
                    true => &*self.groups[owed.holder as usize].key,
                    false => &*self.sessions[owed.holder as usize].client_id,
                };
                (sequence_of(name), holder)
            })
        })
    }

    /// Bytes of memory that messages take here.
    pub fn message_bytes(&self) -> usize {
        let queues = self.sessions.iter().map(|(_, session)| session.queue.bytes()).sum::<usize>();
        self.messages.bytes() + queues
    }

    /// Takes a record as it stands on disk, with all that the host has added to it.
    pub fn apply(&mut self, at: At, entry: &Entry<'_>) {
        self.mention(entry);
        self.generation += u64::from(known::is_changed_by(entry));
        match entry {
            Entry::Publish(publish) if publish.is_copy => self.copied(at, publish),
            Entry::Publish(publish) => {
                self.resolve_written(publish);
                self.publish(at, publish);
            }
            Entry::Session { client_id, expiry_secs, offline_since, number } => {
                self.session(at, client_id, *expiry_secs, *offline_since, *number);
            }
            Entry::SessionEnded { client_id } => self.end_session(client_id),
            Entry::Subscribe { client_id, filter, options, subscription_id, seen } => {
                let id = subscription_id.unwrap_or(0);
                self.subscribe(at, client_id, filter, *options, id, *seen);
            }
            Entry::Unsubscribe { client_id, filter, .. } => self.unsubscribe(client_id, filter),
            Entry::Ended { client_id, messages } => {
                if let Some(slot) = self.slot(client_id) {
                    for name in messages.iter() {
                        self.settle(name, slot, false);
                    }
                }
            }
            Entry::WillSet(will) => {
                if let Some(slot) = self.slot(will.client_id) {
                    let old = self.sessions[slot as usize].will.replace(at);
                    self.replaced(old, at);
                }
            }
            Entry::WillDeleted { client_id } => self.drop_will(client_id),
            Entry::Assign(assign) => self.assign(at, assign),
            Entry::Received { client_id, packet_id, message } => {
                self.received(at, client_id, *packet_id, *message);
            }
            Entry::Acked { client_id, message } => {
                if let Some(slot) = self.slot(client_id) {
                    self.done_with(*message, slot, false);
                }
            }
            Entry::Done { client_id, packet_id, message } => {
                self.done(client_id, *packet_id, *message);
            }
            Entry::Released { client_id, packet_id } => {
                if let Some(slot) = self.slot(client_id) {
                    let old = self.sessions[slot as usize].unreleased.remove(packet_id);
                    self.gone(old.map(|(_, at)| at));
                }
            }
            Entry::Unreleased { client_id, packet_id, message } => {
                self.hold_packet_id(at, client_id, *packet_id, *message);
            }
            Entry::GroupAck { group, message } => {
                if let Some(slot) = self.group_keys.get(*group).copied() {
                    self.done_with(*message, slot, true);
                }
            }
            Entry::Group { group, number } => self.number_group(at, group, *number),
        }
    }

    fn mention(&mut self, entry: &Entry<'_>) {
        let name = match entry {
            Entry::Publish(publish) => Some(publish.message),
            Entry::Assign(assign) => assign.message,
            Entry::Received { message, .. } | Entry::Done { message, .. } => *message,
            Entry::Acked { message, .. }
            | Entry::GroupAck { message, .. }
            | Entry::Unreleased { message, .. } => Some(*message),
            Entry::Subscribe { seen, .. } | Entry::Unsubscribe { seen, .. } => seen.iter().max(),
            _ => None,
        };
        if let Some(name) = name {
            self.mention_message(name);
        }
    }

    fn mention_message(&mut self, name: u64) {
        self.last_sequence = self.last_sequence.max(sequence_of(name));
    }

    fn slot(&mut self, client_id: &str) -> Option<u32> {
        let slot = self.clients.get(client_id).copied();
        self.counts.strangers += u64::from(slot.is_none());
        slot
    }

    // ---- live records ----

    fn came(&mut self, at: At) {
        self.add_live(at.commit, i64::from(at.len));
    }

    fn gone(&mut self, at: Option<At>) {
        if let Some(at) = at {
            self.add_live(at.commit, -i64::from(at.len));
        }
    }

    /// Mostly of the same commit as the one before.
    fn add_live(&mut self, commit: u64, bytes: i64) {
        match self.live.last_mut() {
            Some((last, sum)) if *last == commit => *sum += bytes,
            _ => self.live.push((commit, bytes)),
        }
    }

    fn replaced(&mut self, old: Option<At>, new: At) {
        self.gone(old);
        self.came(new);
    }

    // ---- messages ----

    /// Finds among all subscriptions to whom a message is owed. Whether it is the same for every later
    /// message of its topic, QoS and retain flag.
    fn find_receivers(&mut self, publish: &Publish<'_>) -> bool {
        let mut is_general = true;
        let Self { candidates, sessions, plain, last_pub, .. } = self;
        candidates.clear();
        let (name, is_at_once) = (publish.message, publish.qos == 1);
        plain.visit_matches(publish.topic, |_, subs| {
            for sub in subs.iter() {
                is_general &= sub.options & NO_LOCAL == 0 && !sub.waits(last_pub);
                let is_own = sub.options & NO_LOCAL != 0
                    && *sessions[sub.session as usize].client_id == *publish.publisher;
                if sub.is_kept() && !is_own && !(is_at_once && sub.had(name)) {
                    candidates.push(Candidate {
                        session: sub.session,
                        serial: sub.serial,
                        options: sub.options,
                        subscription_id: sub.subscription_id,
                    });
                }
            }
        });
        candidates.sort_unstable_by_key(|candidate| (candidate.session, candidate.serial));
        for same in candidates.chunk_by(|a, b| a.session == b.session) {
            let granted = same.iter().map(|c| c.options & QOS_BITS).max().unwrap_or(0);
            let as_published = same.iter().any(|c| c.options & RETAIN_AS_PUBLISHED != 0);
            let mut owed = Owed {
                holder: same[0].session,
                is_group: false,
                is_assigned: false,
                qos: granted.min(publish.qos),
                retain: publish.retain && as_published,
                only: if same.len() == 1 { same[0].serial as u32 } else { 0 },
                subscription_id: 0,
                more_ids: None,
            };
            owed.set_ids(same.iter().map(|c| c.subscription_id).filter(|id| *id != 0));
            self.resolved.push(owed);
        }
        let Self { resolved, groups, shared, last_pub, .. } = self;
        shared.visit_matches(publish.topic, |_, slots| {
            for slot in slots {
                let members = &groups[*slot as usize].members;
                let granted = members.granted();
                is_general &= !members.iter().any(|member| member.waits(last_pub));
                let mut kept = members.iter().filter(|member| member.is_kept());
                if granted > 0 && kept.any(|member| !(is_at_once && member.had(name))) {
                    resolved.push(Owed {
                        holder: *slot,
                        is_group: true,
                        is_assigned: false,
                        qos: granted.min(publish.qos),
                        retain: false,
                        only: 0,
                        subscription_id: 0,
                        more_ids: None,
                    });
                }
            }
        });
        is_general
    }

    fn resolve_written(&mut self, publish: &Publish<'_>) {
        self.resolved.clear();
        for receiver in publish.receivers.iter() {
            match self.numbers.get(&receiver.number) {
                Some((slot, is_group)) if *is_group == receiver.is_group => {
                    let mut owed = Owed {
                        holder: *slot,
                        is_group: *is_group,
                        is_assigned: receiver.is_assigned && !is_group,
                        qos: receiver.qos,
                        retain: receiver.retain,
                        only: 0,
                        subscription_id: 0,
                        more_ids: None,
                    };
                    owed.set_ids(receiver.subscription_ids.iter().map(|id| id as u32));
                    self.resolved.push(owed);
                }
                _ => self.counts.unknown_receivers += 1,
            }
        }
    }

    /// A PUB whose receivers are resolved.
    pub(super) fn publish(&mut self, at: At, publish: &Publish<'_>) {
        let (name, origin) = (publish.message, origin_of(publish.message));
        self.mention_message(name);
        // Names of one origin ascend: one above the last is not here yet.
        let is_new = sequence_of(name) > self.last_pub[origin];
        if is_new {
            self.last_pub[origin] = sequence_of(name);
        }
        if publish.is_will {
            self.drop_will(publish.publisher);
        }
        if publish.packet_id.is_some() && self.clients.contains_key(publish.publisher) {
            let packet_id = publish.packet_id.unwrap_or(0);
            self.hold_packet_id(at, publish.publisher, packet_id, name);
        }
        if is_new || self.messages.get(name).is_none() {
            self.insert(at, publish);
        }
        self.forget_early(name);
        self.forget_seen(origin);
        if publish.retain {
            self.retain(publish.topic, name, !publish.payload.is_empty());
            self.release(name);
        }
    }

    /// Takes in one that is not here.
    fn insert(&mut self, at: At, publish: &Publish<'_>) {
        let name = publish.message;
        if !self.early_assigns.is_empty() {
            self.hold_for_early(name);
        }
        let receivers = Receivers::of(&mut self.resolved);
        for owed in receivers.iter() {
            if owed.is_assigned {
                self.sessions[owed.holder as usize].assigned.push(name);
                continue;
            }
            let holder = match owed.is_group {
                true => &mut self.groups[owed.holder as usize].queue,
                false => &mut self.sessions[owed.holder as usize].queue,
            };
            holder.push(name);
        }
        if receivers.is_empty() && !publish.retain {
            return;
        }
        let Publish { qos, retain, .. } = *publish;
        let message = Message { at, receivers, is_retained: false, qos, retain };
        self.messages.insert(name, message);
        self.came(at);
    }

    /// ASSIGNs that stood before their PUB hold it (J6, J7).
    fn hold_for_early(&mut self, name: u64) {
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

    /// A copy of one (J10): it lies there from now on.
    fn copied(&mut self, at: At, publish: &Publish<'_>) {
        let name = publish.message;
        if let Some(message) = self.messages.get_mut(name) {
            let old = std::mem::replace(&mut message.at, at);
            return self.replaced(Some(old), at);
        }
        self.resolve_written(publish);
        let origin = origin_of(name);
        self.last_pub[origin] = self.last_pub[origin].max(sequence_of(name));
        let retain = publish.retain;
        let publish = Publish { retain: publish.is_value, ..*publish };
        self.insert(at, &publish);
        if let Some(message) = self.messages.get_mut(name) {
            message.retain = retain;
        }
        if publish.is_value {
            self.retain(publish.topic, name, true);
        }
        self.release(name);
    }

    /// It is the value of its topic, or clears it.
    fn retain(&mut self, topic: &str, name: u64, has_value: bool) {
        let old = if has_value {
            if let Some(message) = self.messages.get_mut(name) {
                message.is_retained = true;
            }
            match self.retained.get_mut(topic) {
                Some(value) => Some(std::mem::replace(value, name)),
                None => self.retained.insert(topic.into(), name),
            }
        } else {
            self.retained.remove(topic)
        };
        if let Some(old) = old.filter(|old| *old != name) {
            if let Some(message) = self.messages.get_mut(old) {
                message.is_retained = false;
            }
            self.release(old);
        }
    }

    /// Ends it if nobody holds it.
    fn release(&mut self, name: u64) {
        let is_over =
            self.messages.get(name).is_some_and(|m| m.receivers.is_empty() && !m.is_retained);
        if is_over && let Some(message) = self.messages.remove(name) {
            self.gone(Some(message.at));
        }
    }

    /// This holder is done with it, or will be when its PUB comes.
    fn done_with(&mut self, name: u64, holder: u32, is_group: bool) {
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
    fn forget_early(&mut self, name: u64) {
        while let Some(first) = self.early[origin_of(name)].first_entry()
            && *first.key() <= name
        {
            self.early_len -= first.remove().len();
        }
    }

    /// What SUBs have seen of this origin, and has been taken, is of no use: some in a turn.
    fn forget_seen(&mut self, origin: usize) {
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

    /// Takes a holder off a message.
    fn settle(&mut self, name: u64, holder: u32, is_group: bool) -> Option<Owed> {
        let message = self.messages.get_mut(name)?;
        let owed = message.receivers.remove(holder, is_group)?;
        if message.receivers.is_empty() && !message.is_retained {
            let at = message.at;
            self.messages.remove(name);
            self.gone(Some(at));
        }
        if !owed.is_assigned {
            self.settle_queue(holder, is_group);
        }
        Some(owed)
    }

    fn settle_queue(&mut self, holder: u32, is_group: bool) {
        let Self { messages, sessions, groups, .. } = self;
        let queue = match is_group {
            true => &mut groups[holder as usize].queue,
            false => &mut sessions[holder as usize].queue,
        };
        queue.settle(|name| {
            let owed = messages.get(name).and_then(|m| m.receivers.find(holder, is_group));
            owed.is_some_and(|owed| !owed.is_assigned)
        });
    }

    // ---- exchanges ----

    fn assign(&mut self, at: At, assign: &Assign<'_>) {
        let Some(slot) = self.slot(assign.client_id) else { return };
        let old = self.sessions[slot as usize].exchanges.remove(&assign.packet_id);
        let mut order = assign.copied.map_or(order_of(at), |(order, _)| order);
        if let Some(old) = old {
            self.gone(Some(old.at));
            self.gone(old.received_at);
            if old.message == assign.message {
                // A copy says what the order was; the same that is sent again keeps it.
                if assign.copied.is_none() {
                    order = old.order;
                }
            } else {
                self.end_exchange(slot, old.held());
            }
        }
        let is_received = assign.copied.is_some_and(|(_, is_received)| is_received);
        match assign.message {
            Some(name) if is_received => drop(self.settle(name, slot, false)),
            Some(name) => self.hold_for(slot, name, assign),
            None => {}
        }
        let exchange = Exchange {
            message: assign.message,
            order,
            is_received,
            retain: assign.retain,
            subscription_ids: assign.subscription_ids.iter().map(|id| id as u32).collect(),
            group: assign.group.map(Into::into),
            at,
            received_at: None,
        };
        self.sessions[slot as usize].exchanges.insert(assign.packet_id, exchange);
        self.came(at);
    }

    /// An exchange holds the message from now on, and no queue.
    fn hold_for(&mut self, slot: u32, name: u64, assign: &Assign<'_>) {
        let group = assign.group.and_then(|group| self.group_keys.get(group).copied());
        let Some(message) = self.messages.get_mut(name) else {
            if sequence_of(name) > self.last_pub[origin_of(name)] {
                self.early_assigns.entry(name).or_default().push(slot);
            }
            return;
        };
        match message.receivers.find_mut(slot, false) {
            Some(owed) if owed.is_assigned => {}
            Some(owed) => {
                owed.is_assigned = true;
                self.settle_queue(slot, false);
            }
            None => message.receivers.push(Owed::assigned(slot)),
        }
        if let Some(group) = group {
            self.settle(name, group, true);
        }
    }

    /// The exchange is over, or has had its packet id taken.
    fn end_exchange(&mut self, slot: u32, held: Option<u64>) {
        let Some(name) = held else { return };
        if self.messages.get(name).is_some() {
            self.settle(name, slot, false);
        } else {
            // A Will is not forwarded behind its record, as other QoS 2 is: its PUB may be to come.
            self.done_with(name, slot, false);
        }
    }

    fn received(&mut self, at: At, client_id: &str, packet_id: u16, message: Option<u64>) {
        let Some(slot) = self.slot(client_id) else { return };
        let exchange = self.sessions[slot as usize].exchanges.get_mut(&packet_id);
        // Without one its ASSIGN stood in a segment that is gone.
        let Some(exchange) = exchange else {
            let exchange = Exchange {
                message,
                order: order_of(at),
                is_received: true,
                retain: false,
                subscription_ids: Box::default(),
                group: None,
                at,
                received_at: None,
            };
            self.sessions[slot as usize].exchanges.insert(packet_id, exchange);
            if let Some(name) = message {
                self.settle(name, slot, false);
            }
            return self.came(at);
        };
        let held = exchange.held();
        exchange.is_received = true;
        let old = exchange.received_at.replace(at);
        self.replaced(old, at);
        self.end_exchange(slot, held);
    }

    fn done(&mut self, client_id: &str, packet_id: u16, message: Option<u64>) {
        let Some(slot) = self.slot(client_id) else { return };
        let exchanges = &mut self.sessions[slot as usize].exchanges;
        // Lazy: the packet id may have been taken by another message since.
        let is_it = |e: &Exchange| message.is_none() || e.message == message;
        if exchanges.get(&packet_id).is_some_and(is_it)
            && let Some(exchange) = exchanges.remove(&packet_id)
        {
            self.gone(Some(exchange.at));
            self.gone(exchange.received_at);
            self.end_exchange(slot, exchange.held());
        } else if let Some(name) = message {
            let holds = |e: &Exchange| e.message == Some(name) && !e.is_received;
            if !exchanges.values().any(holds) && self.messages.get(name).is_some() {
                self.settle(name, slot, false);
            } else {
                self.done_with(name, slot, false);
            }
        }
    }

    fn hold_packet_id(&mut self, at: At, client_id: &str, packet_id: u16, message: u64) {
        let Some(slot) = self.slot(client_id) else { return };
        let unreleased = &mut self.sessions[slot as usize].unreleased;
        let old = unreleased.insert(packet_id, (message, at));
        self.replaced(old.map(|(_, at)| at), at);
    }

    /// Messages of this session that its UNSUB ends: those of this subscription alone that were
    /// under way and had not come to its home (`seen`).
    pub(super) fn ended_by_unsubscribe(
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
}

fn put_receivers<'a>(
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
