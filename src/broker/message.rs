//! Messages that are kept: in flight, queued, retained, or waiting for a commit.
//!
//! Owns one arena per shard. A message is stored once, however many receivers hold it; each holder
//! owns one reference, counted in a plain integer. Small payloads stand behind the topic and the
//! properties in one recycled buffer; large ones are shared with whoever else has them.
//!
//! Invariant: a [`MessageKey`] is valid exactly while its holder's reference is not released.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::num::NonZeroU64;
use std::rc::Rc;

use bytes::Bytes;

use crate::clock::Time;
use crate::codec::mqtt::QoS;
use crate::ids::ShardId;
use crate::limits::{MEMORY_HELD_PART, SHARDS_MAX, SHARE_PAYLOAD_FROM};

use super::alias::TopicId;

/// A reference to a stored message, owned by its holder: it ends with [`Messages::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MessageKey(u32);

impl MessageKey {
    /// Of no message.
    pub(super) const NONE: Self = Self(u32::MAX);

    /// To be kept in a compact form by its holder.
    pub(super) const fn to_bits(self) -> u32 {
        self.0
    }

    /// From [`MessageKey::to_bits`].
    pub(super) const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }
}

/// Names a message in the journal: the shard that received it from its publisher, and a number that
/// this shard gives once, restarts included.
///
/// Numbers of one shard ascend, and each is above those of all messages that the shard had seen
/// before, whoever named them: so [`MessageId::order`] never puts an answer before its question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageId(NonZeroU64);

/// Bits of a [`MessageId`] that are its sequence number.
const SEQUENCE_BITS: u32 = 56;

impl MessageId {
    /// The message of this number, which is above 0 and below 2^56.
    ///
    /// # Panics
    /// If it is not.
    pub fn new(origin: ShardId, sequence: u64) -> Self {
        assert!(sequence >> SEQUENCE_BITS == 0, "invariant: a sequence number has 56 bits");
        let bits = (origin.index() as u64) << SEQUENCE_BITS | sequence;
        assert!(sequence > 0, "invariant: sequence numbers count from 1");
        Self(NonZeroU64::new(bits).expect("invariant: the sequence number is not 0"))
    }

    /// From [`MessageId::to_bits`]; None if no message has these bits.
    pub fn from_bits(bits: u64) -> Option<Self> {
        let (origin, sequence) = (bits >> SEQUENCE_BITS, bits & ((1 << SEQUENCE_BITS) - 1));
        let is_one = sequence > 0 && (origin as usize) < SHARDS_MAX;
        NonZeroU64::new(bits).filter(|_| is_one).map(Self)
    }

    /// To be written.
    pub const fn to_bits(self) -> u64 {
        self.0.get()
    }

    /// The shard that named it, in the start of its time: there may be fewer by now.
    pub const fn origin(self) -> ShardId {
        ShardId::new((self.0.get() >> SEQUENCE_BITS) as usize)
    }

    /// Its number.
    pub const fn sequence(self) -> u64 {
        self.0.get() & ((1 << SEQUENCE_BITS) - 1)
    }

    /// By number, then by origin.
    pub const fn order(self) -> u64 {
        self.0.get().rotate_left(u64::BITS - SEQUENCE_BITS)
    }
}

/// A payload as it came: borrowed, and shared if it was received into a buffer of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Payload<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) shared: Option<&'a Bytes>,
}

impl Payload<'_> {
    /// A reference that can be kept: the one that exists, else a copy.
    pub(crate) fn to_shared(self) -> Bytes {
        self.shared.cloned().unwrap_or_else(|| Bytes::copy_from_slice(self.bytes))
    }
}

/// What is stored.
#[derive(Debug)]
pub(crate) struct Stored {
    references: u32,
    topic_len: u32,
    forwarded_len: u32,
    /// QoS of the publication; receivers may have less.
    pub(crate) qos: QoS,
    /// Retain flag of the publication.
    pub(crate) retain: bool,
    pub(crate) deadline: Option<Time>,
    pub(crate) id: Option<MessageId>,
    /// Its topic, as routing remembers it.
    pub(crate) topic_id: TopicId,
    /// Client id of the publisher, where a holder needs it.
    pub(crate) publisher: Option<Rc<str>>,
    /// Topic, forwarded properties, small payload.
    bytes: Vec<u8>,
    shared: Bytes,
}

impl Stored {
    fn empty(references: u32) -> Self {
        Self {
            references,
            topic_len: 0,
            forwarded_len: 0,
            qos: QoS::AtMostOnce,
            retain: false,
            deadline: None,
            id: None,
            topic_id: TopicId::NONE,
            publisher: None,
            bytes: Vec::new(),
            shared: Bytes::new(),
        }
    }

    pub(crate) fn topic(&self) -> &str {
        std::str::from_utf8(self.topic_bytes()).expect("invariant: a topic is stored from a str")
    }

    /// The same, unchecked.
    pub(crate) fn topic_bytes(&self) -> &[u8] {
        &self.bytes[..self.topic_len as usize]
    }

    /// Properties as `append_forwarded` wrote them.
    pub(crate) fn forwarded(&self) -> &[u8] {
        let start = self.topic_len as usize;
        &self.bytes[start..start + self.forwarded_len as usize]
    }

    pub(crate) fn payload(&self) -> Payload<'_> {
        let small = &self.bytes[(self.topic_len + self.forwarded_len) as usize..];
        if self.shared.is_empty() {
            Payload { bytes: small, shared: None }
        } else {
            Payload { bytes: &self.shared, shared: Some(&self.shared) }
        }
    }

    /// Whether its time is over.
    pub(crate) fn is_expired(&self, now: Time) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Bytes that count against bounds and budget.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len() + self.shared.len() + STORED_OVERHEAD
    }
}

/// What a message costs beyond its bytes, for the bounds.
pub(crate) const STORED_OVERHEAD: usize = 64;
/// A free slot keeps a buffer of at most this size.
const RECYCLED_BYTES_MAX: usize = 1024;
/// As long as not so many slots are free.
const RECYCLED_MAX: usize = 4096;
/// What a queued message of which only the journal has the bytes takes all the same: in its queue,
/// and where the journal keeps its books of it.
pub(crate) const EVICTED_BYTES: usize = 96;

/// What to store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewMessage<'a> {
    pub(crate) topic: &'a str,
    pub(crate) forwarded: &'a [u8],
    pub(crate) payload: Payload<'a>,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) deadline: Option<Time>,
    pub(crate) id: Option<MessageId>,
    pub(crate) topic_id: TopicId,
    pub(crate) publisher: Option<&'a Rc<str>>,
}

impl NewMessage<'_> {
    /// What [`Stored::size`] will be.
    pub(crate) fn size(&self) -> usize {
        self.topic.len() + self.forwarded.len() + self.payload.bytes.len() + STORED_OVERHEAD
    }
}

/// Memory that something else than a message takes, of the budget for messages, as long as this
/// exists.
#[derive(Debug)]
pub(crate) struct Charge {
    charged: Rc<Cell<usize>>,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.charged.set(self.charged.get() - self.bytes);
    }
}

/// The arena.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    slots: Vec<Stored>,
    free: Vec<u32>,
    bytes: usize,
    /// Of those, entries of [`EVICTED_BYTES`].
    evicted: usize,
    /// Bytes ever copied into slots.
    copied: u64,
    /// What all [`Charge`]s take.
    charged: Rc<Cell<usize>>,
}

impl Messages {
    /// Stores a message; the caller owns one reference.
    pub(crate) fn insert(&mut self, new: NewMessage<'_>) -> MessageKey {
        let large = new.payload.bytes.len() >= SHARE_PAYLOAD_FROM;
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Stored::empty(0));
                (self.slots.len() - 1) as u32
            }
        };
        let slot = &mut self.slots[index as usize];
        debug_assert!(slot.references == 0 && slot.bytes.is_empty());
        slot.references = 1;
        slot.topic_len = new.topic.len() as u32;
        slot.forwarded_len = new.forwarded.len() as u32;
        slot.qos = new.qos;
        slot.retain = new.retain;
        slot.deadline = new.deadline;
        slot.id = new.id;
        slot.topic_id = new.topic_id;
        slot.publisher = new.publisher.cloned();
        let small = if large { 0 } else { new.payload.bytes.len() };
        slot.bytes.reserve_exact(new.topic.len() + new.forwarded.len() + small);
        slot.bytes.extend_from_slice(new.topic.as_bytes());
        slot.bytes.extend_from_slice(new.forwarded);
        if large {
            slot.shared = new.payload.to_shared();
        } else {
            slot.bytes.extend_from_slice(new.payload.bytes);
        }
        self.copied += slot.bytes.len() as u64;
        self.bytes += slot.size();
        MessageKey(index)
    }

    /// One more holder.
    pub(crate) fn retain(&mut self, key: MessageKey) -> MessageKey {
        self.slots[key.0 as usize].references += 1;
        key
    }

    /// One holder less; the last one frees it.
    pub(crate) fn release(&mut self, key: MessageKey) {
        let slot = &mut self.slots[key.0 as usize];
        debug_assert!(slot.references > 0, "released once per reference");
        slot.references -= 1;
        if slot.references > 0 {
            return;
        }
        self.bytes -= slot.size();
        slot.shared = Bytes::new();
        slot.publisher = None;
        slot.bytes.clear();
        let is_kept = self.free.len() < RECYCLED_MAX;
        slot.bytes.shrink_to(if is_kept { RECYCLED_BYTES_MAX } else { 0 });
        self.free.push(key.0);
    }

    /// Takes the content out, to be used while the arena changes; [`Messages::give_back`] ends
    /// that, and the caller's reference with it. Nobody else holds one.
    pub(crate) fn take(&mut self, key: MessageKey) -> Stored {
        let slot = &mut self.slots[key.0 as usize];
        debug_assert_eq!(slot.references, 1, "taken by its only holder");
        std::mem::replace(slot, Stored::empty(1))
    }

    /// Ends [`Messages::take`].
    pub(crate) fn give_back(&mut self, key: MessageKey, stored: Stored) {
        self.slots[key.0 as usize] = stored;
        self.release(key);
    }

    #[inline]
    pub(crate) fn get(&self, key: MessageKey) -> &Stored {
        &self.slots[key.0 as usize]
    }

    /// A queue has one more message that only the journal has.
    pub(crate) fn add_evicted(&mut self) {
        self.bytes += EVICTED_BYTES;
        self.evicted += 1;
    }

    /// A queue has one less of those.
    pub(crate) fn forget_evicted(&mut self) {
        debug_assert!(self.evicted > 0, "invariant: forgotten once each");
        self.bytes -= EVICTED_BYTES;
        self.evicted -= 1;
    }

    /// Messages in queues that only the journal has, once for each queue.
    pub(crate) fn evicted(&self) -> usize {
        self.evicted
    }

    /// Bytes that were copied to be stored, since the start; shared payloads are not.
    pub(crate) fn copied(&self) -> u64 {
        self.copied
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + self.charged.get()
    }

    /// Whether a charge of so many bytes may be taken of this budget.
    pub(crate) fn may_charge(&self, bytes: usize, budget: usize) -> bool {
        let charged = self.charged.get() + bytes;
        charged <= budget / MEMORY_HELD_PART && self.bytes + charged <= budget
    }

    /// Takes so many bytes of the budget.
    pub(crate) fn charge(&self, bytes: usize) -> Charge {
        self.charged.set(self.charged.get() + bytes);
        Charge { charged: self.charged.clone(), bytes }
    }

    /// Messages held.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_message<'a>(topic: &'a str, payload: &'a [u8]) -> NewMessage<'a> {
        NewMessage {
            topic,
            forwarded: b"xy",
            payload: Payload { bytes: payload, shared: None },
            qos: QoS::AtLeastOnce,
            retain: false,
            deadline: None,
            id: None,
            topic_id: TopicId::NONE,
            publisher: None,
        }
    }

    #[test]
    fn an_id_is_its_number_and_its_origin() {
        let id = |origin, sequence| MessageId::new(ShardId::new(origin), sequence);
        let last = id(63, (1 << 56) - 1);
        assert_eq!((last.origin().index(), last.sequence()), (63, (1 << 56) - 1));
        assert_eq!(MessageId::from_bits(last.to_bits()), Some(last));
        for none in [0, 5 << 56, 64 << 56 | 1] {
            assert_eq!(MessageId::from_bits(none), None);
        }
        assert!(id(7, 1).order() < id(0, 2).order() && id(0, 2).order() < id(1, 2).order());
    }

    #[test]
    fn the_last_holder_frees_it_and_its_buffer_is_used_again() {
        let mut messages = Messages::default();
        let key = messages.insert(new_message("a/b", b"payload"));
        messages.retain(key);
        messages.release(key);
        let stored = messages.get(key);
        assert_eq!((stored.topic(), stored.forwarded()), ("a/b", &b"xy"[..]));
        assert_eq!(stored.payload().bytes, b"payload");
        messages.release(key);
        assert_eq!((messages.bytes(), messages.len()), (0, 0));
        assert_eq!(messages.insert(new_message("c", b"")), key);
        assert_eq!(messages.get(key).payload().bytes, b"");
    }

    #[test]
    fn large_payloads_are_shared_and_counted() {
        let mut messages = Messages::default();
        let large = Bytes::from(vec![7u8; SHARE_PAYLOAD_FROM]);
        let payload = Payload { bytes: &large, shared: Some(&large) };
        let key = messages.insert(NewMessage { payload, ..new_message("t", b"") });
        assert_eq!(messages.get(key).payload().bytes.as_ptr(), large.as_ptr());
        assert!(messages.bytes() >= SHARE_PAYLOAD_FROM);
        messages.release(key);
        assert_eq!(messages.bytes(), 0);
    }
}
