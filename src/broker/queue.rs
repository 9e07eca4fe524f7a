//! QoS 1 and 2 messages that wait behind a session's in-flight window, or for its connection.
//!
//! An entry names a message that is in memory, with one reference to it, or one that is evicted:
//! only the journal has its bytes, and the entry what is needed without them. Evicted ones are read
//! back before they are sent (see [`evict`](super::evict)); the order is that of the queue all the
//! while. Bounded by count, and by bytes in memory and on disk; a full queue first forgets what has
//! expired, then refuses the new message: what was queued first was promised first.
//!
//! Invariant: `ready` entries stand before the first that is evicted.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Time;
use crate::codec::mqtt::QoS;

use super::message::{MessageId, MessageKey, Messages};
use super::shared_sub::Chosen;

/// The Subscription Identifiers that a delivery carries; nearly always none or one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum SubscriptionIds {
    #[default]
    None,
    One(u32),
    Many(Box<[u32]>),
}

impl SubscriptionIds {
    pub(crate) fn new(ids: &[u32]) -> Self {
        match ids {
            [] => Self::None,
            [id] => Self::One(*id),
            _ => Self::Many(ids.into()),
        }
    }

    pub(crate) fn as_slice(&self) -> &[u32] {
        match self {
            Self::None => &[],
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(ids) => ids,
        }
    }
}

/// One message for one session.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) message: MessageKey,
    /// At which it is delivered, 1 or 2.
    pub(crate) qos: QoS,
    /// Retain flag that it is delivered with.
    pub(crate) retain: bool,
    pub(crate) subscription_ids: SubscriptionIds,
    /// The group that it was picked for, if that is how the session came by it.
    pub(crate) group: Option<Chosen>,
}

/// Where a queued message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// In memory: a reference.
    Held(MessageKey),
    /// Only in the journal.
    Evicted(MessageId),
    /// It was evicted, and the journal could not give it back. It will not be sent.
    Lost(MessageId),
}

impl Body {
    /// Ends what the holder has of it; the message's name in the journal.
    pub(crate) fn release(self, messages: &mut Messages) -> Option<MessageId> {
        match self {
            Self::Held(key) => {
                let id = messages.get(key).id;
                messages.release(key);
                id
            }
            Self::Evicted(id) | Self::Lost(id) => {
                messages.forget_evicted();
                Some(id)
            }
        }
    }
}

/// What leaves a queue without being sent.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) body: Body,
    pub(crate) qos: QoS,
    pub(crate) group: Option<Chosen>,
}

/// The first in line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Front {
    pub(crate) body: Body,
    pub(crate) is_expired: bool,
}

/// What only few entries have.
#[derive(Debug)]
struct Extra {
    subscription_ids: SubscriptionIds,
    group: Option<Chosen>,
}

/// Where an entry's message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Held,
    Evicted,
    Lost,
}

/// One message, in as few bytes as it takes: there may be millions.
#[derive(Debug)]
struct Entry {
    /// Of a [`MessageKey`] if it is held, else of a [`MessageId`].
    bits: u64,
    /// [`Time::MAX`] for never.
    deadline: Time,
    extra: Option<Box<Extra>>,
    size: u32,
    state: State,
    qos: QoS,
    retain: bool,
}

const _: () = assert!(size_of::<Entry>() <= 32);

impl Entry {
    fn body(&self) -> Body {
        let id = || MessageId::from_bits(self.bits).expect("invariant: from an id");
        match self.state {
            State::Held => Body::Held(MessageKey::from_bits(self.bits as u32)),
            State::Evicted => Body::Evicted(id()),
            State::Lost => Body::Lost(id()),
        }
    }

    /// Not for a group that its PUB does not name (SHARDS.md J9).
    fn is_owed(&self) -> bool {
        let group = self.extra.as_ref().and_then(|extra| extra.group.as_ref());
        group.is_none_or(|chosen| chosen.is_owed)
    }

    fn is_expired(&self, now: Time) -> bool {
        self.deadline <= now && self.deadline < Time::MAX
    }

    fn into_left(self) -> Left {
        let body = self.body();
        Left { body, qos: self.qos, group: self.extra.and_then(|extra| extra.group) }
    }
}

/// Entries of one piece.
const PIECE: usize = 512;

/// A list in pieces: it grows without being moved, and gives memory back as it empties.
#[derive(Debug, Default)]
struct Pieces {
    /// None is empty; all between the first and the last are full.
    pieces: VecDeque<VecDeque<Entry>>,
    len: usize,
}

impl Pieces {
    fn push(&mut self, entry: Entry) {
        match self.pieces.back_mut().filter(|piece| piece.len() < PIECE) {
            Some(piece) => piece.push_back(entry),
            None => {
                let first = if self.len == 0 { 4 } else { PIECE };
                let mut piece = VecDeque::with_capacity(first);
                piece.push_back(entry);
                self.pieces.push_back(piece);
            }
        }
        self.len += 1;
    }

    fn pop(&mut self) -> Option<Entry> {
        let first = self.pieces.front_mut()?;
        let entry = first.pop_front()?;
        self.len -= 1;
        let is_over = first.is_empty();
        let is_large = first.capacity() > 64;
        if is_over && (is_large || self.pieces.len() > 1) {
            self.pieces.pop_front();
        }
        Some(entry)
    }

    fn front(&self) -> Option<&Entry> {
        self.pieces.front()?.front()
    }

    fn place(&self, index: usize) -> (usize, usize) {
        let first = self.pieces.front().map_or(0, VecDeque::len);
        match index.checked_sub(first) {
            None => (0, index),
            Some(behind) => (1 + behind / PIECE, behind % PIECE),
        }
    }

    fn get(&self, index: usize) -> Option<&Entry> {
        let (piece, at) = self.place(index);
        self.pieces.get(piece)?.get(at)
    }

    fn get_mut(&mut self, index: usize) -> Option<&mut Entry> {
        let (piece, at) = self.place(index);
        self.pieces.get_mut(piece)?.get_mut(at)
    }

    fn take(&mut self) -> impl Iterator<Item = Entry> + use<> {
        self.len = 0;
        std::mem::take(&mut self.pieces).into_iter().flatten()
    }
}

/// How much one queue may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Messages.
    pub(crate) len: usize,
    /// Bytes of those in memory.
    pub(crate) held: usize,
    /// Bytes of those that are evicted.
    pub(crate) evicted: usize,
}

/// The queue of one session.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    entries: Pieces,
    /// Entries before the first that is evicted.
    ready: usize,
    held_bytes: usize,
    evicted_bytes: usize,
    evicted: usize,
    /// No deadline in it is earlier.
    earliest: Option<Time>,
    /// Not before then the whole of it is searched again for what has expired.
    search_at: Time,
    /// Marks of [`evict`](super::evict): it stands in the list of those that hold something, it
    /// waits to ask, it has asked.
    pub(super) is_listed: bool,
    pub(super) is_waiting: bool,
    pub(super) is_asking: bool,
}

impl Queue {
    /// Whether a message of `size` bytes has room, in memory or evicted, once what has expired is
    /// forgotten; `expired` gets that, references included.
    pub(crate) fn make_room(
        &mut self,
        now: Time,
        size: usize,
        evicted: bool,
        bounds: Bounds,
        expired: &mut Vec<Left>,
    ) -> bool {
        while !self.has_room(size, evicted, bounds) {
            // Those that came first are mostly the first to expire.
            if self.entries.front().is_some_and(|first| first.is_expired(now)) {
                expired.extend(self.pop_left());
                continue;
            }
            let may_find = self.earliest.is_some_and(|earliest| earliest <= now);
            if !may_find || now < self.search_at {
                return false;
            }
            self.search_at = now + EXPIRY_SEARCH;
            self.take_expired(now, expired);
        }
        true
    }

    fn has_room(&self, size: usize, evicted: bool, bounds: Bounds) -> bool {
        self.entries.len < bounds.len
            && match evicted {
                true => self.evicted_bytes + size <= bounds.evicted,
                false => self.held_bytes + size <= bounds.held,
            }
    }

    /// Takes a message with its reference; there is room.
    pub(crate) fn push(&mut self, queued: Queued, messages: &Messages) {
        let stored = messages.get(queued.message);
        self.held_bytes += stored.size();
        let (size, deadline) = (stored.size() as u32, stored.deadline);
        self.ready += usize::from(self.evicted == 0);
        let bits = u64::from(queued.message.to_bits());
        self.push_entry(queued, (bits, State::Held), size, deadline);
    }

    /// Takes a message that the journal has, and will be asked for; there is room. Its terms are
    /// those of `queued`, whose message says nothing.
    pub(crate) fn push_evicted(
        &mut self,
        (id, size, deadline): (MessageId, usize, Option<Time>),
        terms: Queued,
        messages: &mut Messages,
    ) {
        messages.add_evicted();
        self.evicted += 1;
        self.evicted_bytes += size;
        self.push_entry(terms, (id.to_bits(), State::Evicted), size as u32, deadline);
    }

    fn push_entry(
        &mut self,
        queued: Queued,
        (bits, state): (u64, State),
        size: u32,
        deadline: Option<Time>,
    ) {
        let Queued { qos, retain, subscription_ids, group, .. } = queued;
        self.earliest = match (self.earliest, deadline) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let is_plain = group.is_none() && subscription_ids == SubscriptionIds::None;
        let extra = (!is_plain).then(|| Box::new(Extra { subscription_ids, group }));
        let deadline = deadline.unwrap_or(Time::MAX);
        self.entries.push(Entry { bits, deadline, extra, size, state, qos, retain });
    }

    /// The first in line.
    #[inline]
    pub(crate) fn front(&self, now: Time) -> Option<Front> {
        let entry = self.entries.front()?;
        let is_expired = entry.is_expired(now);
        Some(Front { body: entry.body(), is_expired })
    }

    /// Takes the first in line, and its reference, if it is held.
    pub(crate) fn pop(&mut self) -> Option<Queued> {
        let Body::Held(message) = self.entries.front()?.body() else { return None };
        let Entry { qos, retain, extra, .. } = self.pop_entry()?;
        let (subscription_ids, group) = match extra {
            Some(extra) => (extra.subscription_ids, extra.group),
            None => (SubscriptionIds::None, None),
        };
        Some(Queued { message, qos, retain, subscription_ids, group })
    }

    /// Takes the first in line to be dropped.
    pub(crate) fn pop_left(&mut self) -> Option<Left> {
        self.pop_entry().map(Entry::into_left)
    }

    fn pop_entry(&mut self) -> Option<Entry> {
        let entry = self.entries.pop()?;
        self.uncount(entry.state, entry.size);
        if self.ready > 0 {
            self.ready -= 1;
        } else {
            self.find_ready();
        }
        if self.entries.len == 0 {
            self.earliest = None;
        }
        Some(entry)
    }

    fn uncount(&mut self, state: State, size: u32) {
        match state {
            State::Held => self.held_bytes -= size as usize,
            State::Evicted => {
                self.evicted_bytes -= size as usize;
                self.evicted -= 1;
            }
            State::Lost => {}
        }
    }

    /// `ready` is too low, if anything.
    fn find_ready(&mut self) {
        if self.evicted == 0 {
            self.ready = self.entries.len;
            return;
        }
        while self.entries.get(self.ready).is_some_and(|entry| entry.state != State::Evicted) {
            self.ready += 1;
        }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.len == 0
    }

    /// Messages in it.
    pub(crate) fn len(&self) -> usize {
        self.entries.len
    }

    /// Messages of it that only the journal has.
    pub(crate) fn evicted(&self) -> usize {
        self.evicted
    }

    /// Bytes of those in memory.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Gives every entry away, references included.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Left> + use<> {
        let entries = std::mem::take(self).entries.take();
        entries.map(Entry::into_left)
    }

    fn take_expired(&mut self, now: Time, expired: &mut Vec<Left>) {
        let entries = self.entries.take();
        self.earliest = None;
        for entry in entries {
            if entry.is_expired(now) {
                self.uncount(entry.state, entry.size);
                expired.push(entry.into_left());
                continue;
            }
            if entry.deadline < Time::MAX {
                self.earliest =
                    Some(self.earliest.map_or(entry.deadline, |e| e.min(entry.deadline)));
            }
            self.entries.push(entry);
        }
        self.ready = 0;
        self.find_ready();
    }

    // ---- evicting, and reading back ----

    /// Evicts the last of those that are ready, of messages that the journal has and owes: whether
    /// there was one. What stands behind it is evicted already, or cannot be.
    pub(super) fn evict_one(&mut self, bytes_max: usize, messages: &mut Messages) -> bool {
        let from = self.ready.saturating_sub(EVICT_LOOKS);
        for index in (from..self.ready).rev() {
            let Some(entry) = self.entries.get_mut(index) else { return false };
            let Body::Held(key) = entry.body() else { continue };
            let Some(id) = messages.get(key).id.filter(|_| entry.is_owed()) else { continue };
            let size = entry.size as usize;
            if self.evicted_bytes + size > bytes_max {
                return false;
            }
            (entry.bits, entry.state) = (id.to_bits(), State::Evicted);
            messages.release(key);
            messages.add_evicted();
            self.held_bytes -= size;
            self.evicted_bytes += size;
            self.evicted += 1;
            self.ready = index;
            return true;
        }
        false
    }

    /// Whether it is time to read back, for a client that takes what is ready, of which there is to
    /// be up to `window` bytes: as soon as an eighth of them is free, so that the disk is kept busy.
    #[inline]
    pub(super) fn wants_read(&self, window: usize) -> bool {
        self.evicted > 0
            && !self.is_asking
            && (self.ready == 0 || self.held_bytes < window - window / 8)
    }

    /// The first messages that are evicted and have not expired: at least one if there is one among
    /// those looked at, up to so many and so many bytes.
    pub(super) fn to_read(&self, now: Time, len: usize, bytes: usize) -> Vec<MessageId> {
        let (mut ids, mut left) = (Vec::new(), bytes);
        for index in self.ready..self.entries.len.min(self.ready + 4 * len) {
            let Some(entry) = self.entries.get(index) else { break };
            let Body::Evicted(id) = entry.body() else { continue };
            if entry.is_expired(now) {
                continue;
            }
            let size = entry.size as usize;
            if !ids.is_empty() && size > left {
                break;
            }
            left = left.saturating_sub(size);
            ids.push(id);
            if ids.len() == len {
                break;
            }
        }
        ids
    }

    /// Finds an evicted message among those near the front, from the entry `from` on.
    pub(super) fn find_evicted(&self, from: usize, id: MessageId) -> Option<usize> {
        (from..self.entries.len.min(from + FIND_LOOKS)).find(|index| {
            self.entries
                .get(*index)
                .is_some_and(|entry| (entry.state, entry.bits) == (State::Evicted, id.to_bits()))
        })
    }

    /// An evicted message is in memory again, with a reference, or is lost.
    pub(super) fn fill(&mut self, index: usize, key: Option<MessageKey>, messages: &mut Messages) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        debug_assert_eq!(entry.state, State::Evicted);
        let size = entry.size as usize;
        self.evicted_bytes -= size;
        self.evicted -= 1;
        match key {
            Some(key) => {
                messages.forget_evicted();
                let stored = messages.get(key);
                (entry.bits, entry.state) = (u64::from(key.to_bits()), State::Held);
                entry.size = stored.size() as u32;
                if let Some(deadline) = stored.deadline {
                    entry.deadline = entry.deadline.min(deadline);
                    self.earliest = Some(self.earliest.map_or(deadline, |e| e.min(deadline)));
                }
                self.held_bytes += entry.size as usize;
            }
            None => entry.state = State::Lost,
        }
        self.find_ready();
    }
}

/// A full queue is searched for what has expired behind its front once in this time: a search looks at
/// all of it, and a message must not cost that.
const EXPIRY_SEARCH: Duration = Duration::from_secs(1);
/// Entries looked at to find one that can be evicted.
const EVICT_LOOKS: usize = 64;
/// Entries looked at to find one that was asked for.
const FIND_LOOKS: usize = 8192;

#[cfg(test)]
mod tests {
    use super::super::message::{NewMessage, Payload};
    use super::*;
    use crate::ids::ShardId;
    use proptest::prelude::*;

    const MUCH: usize = usize::MAX;

    fn message(
        messages: &mut Messages,
        payload: &[u8],
        deadline: Option<Time>,
        id: Option<MessageId>,
    ) -> Queued {
        let message = messages.insert(NewMessage {
            topic: "t",
            forwarded: &[],
            payload: Payload { bytes: payload, shared: None },
            qos: QoS::AtLeastOnce,
            retain: false,
            deadline,
            id,
            topic_id: Default::default(),
            publisher: None,
        });
        let subscription_ids = SubscriptionIds::None;
        Queued { message, qos: QoS::AtLeastOnce, retain: false, subscription_ids, group: None }
    }

    fn offer(
        queue: &mut Queue,
        messages: &mut Messages,
        queued: Queued,
        now: Time,
        (len, held): (usize, usize),
    ) -> (bool, u64) {
        let (size, mut expired) = (messages.get(queued.message).size(), Vec::new());
        let bounds = Bounds { len, held, evicted: MUCH };
        let room = queue.make_room(now, size, false, bounds, &mut expired);
        let count = expired.len() as u64;
        expired.into_iter().for_each(|left| _ = left.body.release(messages));
        if room {
            queue.push(queued, messages);
        } else {
            messages.release(queued.message);
        }
        (room, count)
    }

    #[test]
    fn refuses_the_new_one_after_forgetting_the_expired() {
        let (mut messages, mut queue) = (Messages::default(), Queue::default());
        let bounds = (2, MUCH);
        let now = Time::from_nanos(10);
        for deadline in [Some(Time::from_nanos(5)), None] {
            let queued = message(&mut messages, b"1", deadline, None);
            assert_eq!(offer(&mut queue, &mut messages, queued, Time::ZERO, bounds), (true, 0));
        }
        let third = message(&mut messages, b"3", None, None);
        assert_eq!(offer(&mut queue, &mut messages, third, now, bounds), (true, 1));
        assert_eq!((queue.len(), messages.len()), (2, 2));
        let fourth = message(&mut messages, b"4", None, None);
        assert_eq!(offer(&mut queue, &mut messages, fourth, now, bounds), (false, 0));
        assert_eq!((queue.len(), messages.len()), (2, 2));
        for _ in 0..2 {
            let queued = queue.pop().unwrap();
            messages.release(queued.message);
        }
        assert_eq!((queue.held_bytes, messages.len()), (0, 0));
    }

    /// A full queue, in which each message expires when the next one comes, is not gone through for
    /// each: what is at the front goes, and what is hidden behind it waits for the next search.
    #[test]
    fn a_full_queue_is_searched_seldom() {
        let (mut messages, mut queue) = (Messages::default(), Queue::default());
        let at = |secs: u64| Time::from_nanos(secs * 1_000_000_000);
        let bounds = (3, MUCH);
        let mut offer = |deadline: Option<u64>, now: Time| {
            let queued = message(&mut messages, b"m", deadline.map(at), None);
            offer(&mut queue, &mut messages, queued, now, bounds)
        };
        for deadline in [Some(1), None, Some(2)] {
            assert_eq!(offer(deadline, Time::ZERO), (true, 0));
        }
        assert_eq!(offer(Some(3), at(1)), (true, 1), "the front");
        assert_eq!(offer(Some(4), at(2)), (true, 1), "found by a search");
        let soon = at(2) + EXPIRY_SEARCH / 2;
        assert_eq!(offer(Some(9), soon), (false, 0));
        let later = at(2) + EXPIRY_SEARCH;
        assert_eq!(offer(Some(9), later), (true, 1), "the third is over");
        assert_eq!(offer(Some(9), later + EXPIRY_SEARCH / 2), (false, 0), "the fourth not yet");
    }

    #[test]
    fn is_bounded_in_bytes() {
        let (mut messages, mut queue) = (Messages::default(), Queue::default());
        let first = message(&mut messages, &[0; 100], None, None);
        let bounds = (100, messages.get(first.message).size());
        assert!(offer(&mut queue, &mut messages, first, Time::ZERO, bounds).0);
        let second = message(&mut messages, b"", None, None);
        assert!(!offer(&mut queue, &mut messages, second, Time::ZERO, bounds).0);
    }

    fn id(n: u64) -> MessageId {
        MessageId::new(ShardId::new(0), n)
    }

    proptest! {
        /// Whatever is evicted, read back, lost and dropped: the order holds, nothing is forgotten,
        /// and the books are right.
        #[test]
        fn keeps_its_order_however_it_is_evicted(
            steps in prop::collection::vec((0u8..8, 0u64..9), 0..4000),
        ) {
            let (mut messages, mut queue) = (Messages::default(), Queue::default());
            let (mut next, mut expected) = (0u64, VecDeque::new());
            let mut lost = std::collections::BTreeSet::new();
            for (what, n) in steps {
                let now = Time::from_nanos(1);
                match what {
                    0 | 1 => {
                        next += 1;
                        expected.push_back(next);
                        let name = (n != 3).then(|| id(next));
                        let queued = message(&mut messages, &next.to_le_bytes(), None, name);
                        queue.push(queued, &messages);
                    }
                    2 => {
                        next += 1;
                        expected.push_back(next);
                        let terms = Queued {
                            message: MessageKey::NONE,
                            qos: QoS::AtLeastOnce,
                            retain: false,
                            subscription_ids: SubscriptionIds::new(&[7; 2][..n as usize % 3]),
                            group: None,
                        };
                        queue.push_evicted((id(next), 50, None), terms, &mut messages);
                    }
                    3 => {
                        for _ in 0..n {
                            queue.evict_one(MUCH, &mut messages);
                        }
                    }
                    4 | 5 => {
                        let wanted = queue.to_read(now, 4, 200);
                        prop_assert_eq!(wanted.is_empty(), queue.evicted == 0);
                        let mut from = 0;
                        for name in wanted {
                            let index = queue.find_evicted(from, name).unwrap();
                            from = index + 1;
                            let payload = name.sequence().to_le_bytes();
                            let key = (n != 0).then(|| {
                                message(&mut messages, &payload, None, Some(name)).message
                            });
                            if key.is_none() {
                                lost.insert(name.sequence());
                            }
                            queue.fill(index, key, &mut messages);
                        }
                    }
                    _ => {
                        let Some(front) = queue.front(now) else { continue };
                        match front.body {
                            Body::Held(key) => {
                                let payload = messages.get(key).payload().bytes.to_vec();
                                let first = expected.pop_front().unwrap();
                                prop_assert_eq!(payload, first.to_le_bytes());
                                let queued = queue.pop().unwrap();
                                prop_assert_eq!(queued.message, key);
                                messages.release(key);
                            }
                            Body::Evicted(name) => {
                                prop_assert_eq!(expected.front(), Some(&name.sequence()));
                                prop_assert!(queue.pop().is_none());
                            }
                            Body::Lost(name) => {
                                prop_assert_eq!(expected.pop_front(), Some(name.sequence()));
                                prop_assert!(lost.remove(&name.sequence()));
                                queue.pop_left().unwrap().body.release(&mut messages);
                            }
                        }
                    }
                }
                let all: Vec<State> =
                    (0..queue.len()).map(|i| queue.entries.get(i).unwrap().state).collect();
                let evicted = all.iter().filter(|state| **state == State::Evicted).count();
                let first = all.iter().position(|state| *state == State::Evicted);
                prop_assert_eq!(queue.evicted, evicted);
                prop_assert_eq!(queue.ready, first.unwrap_or(all.len()));
                prop_assert_eq!(queue.len(), expected.len());
                prop_assert_eq!(messages.evicted(), evicted + lost.len());
            }
            queue.drain().for_each(|left| _ = left.body.release(&mut messages));
            prop_assert_eq!((messages.bytes(), queue.len()), (0, 0));
        }
    }
}
