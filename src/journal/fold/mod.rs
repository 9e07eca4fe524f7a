//! The durable state as the fold over the log (SHARDS.md section 5), one record at a time.
//!
//! The journal's host has one while it runs: so it knows to whom each message is owed when its PUB
//! is taken (J7) and writes that with it, what of a segment is still needed (J10), and where the
//! messages of a queue lie. Recovery builds the same one from what is on disk, without matching a
//! topic. Payloads are not kept.
//!
//! - A PUB is owed to each durable session that has a plain subscription at QoS 1 or 2 that matches
//!   when it is taken, No Local regarded, unless it is a QoS 1 publication or a Will that is not above
//!   what the subscription's `seen` says of its origin; and to each group with such a member.
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
mod early;
mod exchanges;
pub mod export;
mod known;
mod messages;
mod publications;
mod queue;
mod sessions;
mod subs;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use foldhash::fast::FixedState;
use slab::Slab;

use super::record::Entry;
use crate::broker::topic_tree::{FilterId, TopicTree};
use crate::limits::{JOURNAL_COMMIT_BYTES, SHARDS_MAX};
use known::Known;
pub use messages::At;
use messages::{Messages, Owed};
use queue::Queue;
use sessions::{Group, Session};
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
}
