//! What one shard says to another: entries in a [`Batch`], written and read only here.
//!
//! An entry names what its target is to do (SHARDS.md L9): plain delivery, groups for which the
//! target was chosen, retained store. Shards of one process run the same code, so a batch that
//! does not decode is our own mistake: reading asserts, it never reports.
//!
//! Form: a tag, then fields in the order of the structs below; numbers are little-endian, lengths
//! and counters are LEB128, texts and bytes have their length before them. A payload of at least
//! [`SHARE_PAYLOAD_FROM`] bytes that is already shared stands beside the bytes, in the order of
//! the entries.
#![forbid(unsafe_code)]

use bytes::Bytes;

use crate::clock::Time;
use crate::codec::mqtt::QoS;
use crate::ids::ShardId;
use crate::limits::SHARE_PAYLOAD_FROM;

use super::Batch;
use super::alias::TopicId;
use super::message::{MessageId, NewMessage, Payload};
use super::publication::{Memo, Publication};

const PUBLISH: u8 = 1;
const BACK: u8 = 2;
const INTEREST_EXACT: u8 = 3;
const INTEREST_WILD: u8 = 4;
const INTEREST_GROUP: u8 = 5;
const APPLIED: u8 = 6;
const QUERY: u8 = 7;
const REPLY: u8 = 8;
const END: u8 = 9;
const MEMORY: u8 = 10;
/// As PUBLISH and BACK, of a message that has a record.
const PUBLISH_RECORDED: u8 = 11;
const BACK_RECORDED: u8 = 12;

const QOS: u8 = 0b11;
const RETAIN: u8 = 1 << 2;
const PLAIN: u8 = 1 << 3;
const SHARED: u8 = 1 << 4;
const DEADLINE: u8 = 1 << 5;
const STAMP: u8 = 1 << 6;
const STORE: u8 = 1 << 7;

/// Flags of a group.
const RETURNED: u8 = 1;
const IS_OWED: u8 = 1 << 1;

/// Which retained publish of its pair (origin, owner) this is; the origin is who sends the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) owner: ShardId,
    pub(crate) number: u64,
}

/// A message on its way, as it travels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) topic: &'a str,
    pub(crate) payload: &'a [u8],
    /// The same bytes, if they are shared.
    pub(crate) shared: Option<&'a Bytes>,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) deadline: Option<Time>,
    /// Properties that travel unchanged.
    pub(crate) forwarded: &'a [u8],
    /// Client id of the publisher; travels with a retained store only (No Local of a replay).
    pub(crate) publisher_id: &'a str,
    /// Its name in the journal, if it has a record there.
    pub(crate) id: Option<MessageId>,
}

impl<'a> Message<'a> {
    pub(crate) fn of(publication: &Publication<'a>) -> Self {
        Self {
            topic: publication.topic,
            payload: publication.payload.bytes,
            shared: publication.payload.shared,
            qos: publication.qos,
            retain: publication.retain,
            deadline: publication.deadline,
            forwarded: publication.forwarded,
            publisher_id: publication.publisher_id,
            id: publication.id,
        }
    }

    /// To be delivered here. Its publisher is at home elsewhere.
    pub(crate) fn to_publication(self) -> Publication<'a> {
        Publication {
            topic: self.topic,
            payload: Payload { bytes: self.payload, shared: self.shared },
            qos: self.qos,
            retain: self.retain,
            deadline: self.deadline,
            forwarded: self.forwarded,
            as_received: None,
            publisher: None,
            publisher_id: self.publisher_id,
            id: self.id,
            named: None,
            memo: Memo::default(),
        }
    }

    /// To be stored as its topic's value. Who gets it from there is owed nothing by the journal.
    pub(crate) fn to_new(self) -> NewMessage<'a> {
        NewMessage {
            topic: self.topic,
            forwarded: self.forwarded,
            payload: Payload { bytes: self.payload, shared: self.shared },
            qos: self.qos,
            retain: self.retain,
            deadline: self.deadline,
            id: None,
            topic_id: TopicId::NONE,
            publisher: None,
        }
    }
}

/// What the target of a message is to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Duty {
    /// Deliver to its plain subscriptions.
    pub(crate) plain: bool,
    /// Store it as the topic's retained message, or clear that.
    pub(crate) store: bool,
    pub(crate) stamp: Option<Stamp>,
}

/// One group for which the target was chosen, by its key `share name/filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ToGroup<'a> {
    pub(crate) key: &'a str,
    /// What the strategies by hash choose by; else 0.
    pub(crate) spread: u32,
    /// It came back once from a shard that had only offline members: whoever has any takes it.
    pub(crate) returned: bool,
    /// The message's PUB names the group.
    pub(crate) is_owed: bool,
}

/// What a change of interest is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest<'a> {
    /// A filter without wildcards, by the hash of the topic.
    Exact {
        hash: u64,
        state: u8,
    },
    Wild {
        filter: &'a str,
        state: u8,
    },
    Group {
        key: &'a str,
        members: Members,
    },
}

/// Members of a group on one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Members {
    pub(crate) all: u32,
    pub(crate) online: u32,
    /// Those with a session that outlives its connection, at QoS 1 or 2.
    pub(crate) durable: u32,
}

/// A question of a replay to the owner of a part of the retained messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query<'a> {
    pub(crate) id: u32,
    pub(crate) limit: u32,
    pub(crate) filter: &'a str,
    /// Only topics behind this one; empty is "from the first".
    pub(crate) after: &'a str,
    /// What the asker knows of each origin's retained publishes to this owner.
    pub(crate) known: Row<'a>,
}

/// The answer; its values follow, see [`Reader::value`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reply<'a> {
    pub(crate) id: u32,
    /// Where the next question begins; empty when this one was the last.
    pub(crate) next: &'a str,
    /// Per origin, the last retained publish that the owner had processed.
    pub(crate) marks: Row<'a>,
    pub(crate) values: u32,
}

/// One retained message of an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Value<'a> {
    pub(crate) message: Message<'a>,
    pub(crate) origin: ShardId,
    pub(crate) number: u64,
}

/// One entry.
#[derive(Debug)]
pub(crate) enum Entry<'a> {
    Publish {
        message: Message<'a>,
        duty: Duty,
        groups: Groups<'a>,
    },
    /// The target of a message to a group has nobody for it (SHARDS.md S2).
    Back {
        message: Message<'a>,
        group: ToGroup<'a>,
    },
    Interest {
        number: u64,
        change: Interest<'a>,
    },
    /// All changes up to this number are applied; with the sender's retained counters.
    Applied {
        through: u64,
        /// The sequence number of the sender's last message with a record, at QoS 1 or 2.
        seen: u64,
        counters: Row<'a>,
    },
    Query(Query<'a>),
    Reply(Reply<'a>),
    /// The sender will say no more of the kind that this step ends (SHARDS.md section 7).
    End {
        step: u8,
    },
    /// The sender is short of memory for messages, or no longer (SHARDS.md L6).
    Memory {
        is_short: bool,
    },
}

/// One counter per shard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a>(&'a [u8]);

impl<'a> Row<'a> {
    /// In the order of the shards.
    pub(crate) fn iter(self) -> impl ExactSizeIterator<Item = u64> + use<'a> {
        self.0
            .chunks_exact(8)
            .map(|eight| u64::from_le_bytes(eight.try_into().expect("invariant: chunks of eight")))
    }
}

/// The groups of a message.
#[derive(Clone, Debug)]
pub(crate) struct Groups<'a> {
    rest: u32,
    reader: Reader<'a>,
}

impl Groups<'_> {
    /// How many are left.
    pub(crate) fn len(&self) -> usize {
        self.rest as usize
    }
}

impl<'a> Iterator for Groups<'a> {
    type Item = ToGroup<'a>;

    fn next(&mut self) -> Option<ToGroup<'a>> {
        self.rest = self.rest.checked_sub(1)?;
        Some(self.reader.group())
    }
}

/// Writing. A batch only grows.
impl Batch {
    /// Bytes that were copied into it; shared payloads are not.
    pub fn copied(&self) -> usize {
        self.bytes.len()
    }

    /// `groups` of [`Batch::push_group`] must follow.
    pub(crate) fn push_publish(&mut self, message: &Message<'_>, duty: Duty, groups: usize) {
        self.push_tag(message, (PUBLISH, PUBLISH_RECORDED));
        let flags =
            flag(duty.plain, PLAIN) | flag(duty.store, STORE) | flag(duty.stamp.is_some(), STAMP);
        self.push_head(message, flags);
        if let Some(stamp) = duty.stamp {
            self.bytes.push(stamp.owner.index() as u8);
            self.push_number(stamp.number);
        }
        if duty.store {
            self.push_text(message.publisher_id);
        }
        self.push_body(message);
        self.push_number(groups as u64);
    }

    pub(crate) fn push_group(&mut self, group: ToGroup<'_>) {
        self.bytes.push(flag(group.returned, RETURNED) | flag(group.is_owed, IS_OWED));
        self.push_number(u64::from(group.spread));
        self.push_text(group.key);
    }

    pub(crate) fn push_back(&mut self, message: &Message<'_>, group: ToGroup<'_>) {
        self.push_tag(message, (BACK, BACK_RECORDED));
        self.push_head(message, 0);
        self.push_body(message);
        self.push_group(group);
    }

    pub(crate) fn push_interest(&mut self, number: u64, change: Interest<'_>) {
        match change {
            Interest::Exact { hash, state } => {
                self.bytes.push(INTEREST_EXACT);
                self.push_number(number);
                self.bytes.extend_from_slice(&hash.to_le_bytes());
                self.bytes.push(state);
            }
            Interest::Wild { filter, state } => {
                self.bytes.push(INTEREST_WILD);
                self.push_number(number);
                self.push_text(filter);
                self.bytes.push(state);
            }
            Interest::Group { key, members } => {
                self.bytes.push(INTEREST_GROUP);
                self.push_number(number);
                self.push_text(key);
                for count in [members.all, members.online, members.durable] {
                    self.push_number(u64::from(count));
                }
            }
        }
    }

    pub(crate) fn push_applied(&mut self, through: u64, seen: u64, counters: &[u64]) {
        self.bytes.push(APPLIED);
        self.push_number(through);
        self.push_number(seen);
        self.push_row(counters);
    }

    pub(crate) fn push_query(
        &mut self,
        (id, limit): (u32, u32),
        (filter, after): (&str, &str),
        known: &[u64],
    ) {
        self.bytes.push(QUERY);
        self.push_number(u64::from(id));
        self.push_number(u64::from(limit));
        self.push_text(filter);
        self.push_text(after);
        self.push_row(known);
    }

    /// `values` of [`Batch::push_value`] must follow.
    pub(crate) fn push_reply(&mut self, id: u32, next: &str, marks: &[u64], values: u32) {
        self.bytes.push(REPLY);
        self.push_number(u64::from(id));
        self.push_text(next);
        self.push_row(marks);
        self.push_number(u64::from(values));
    }

    pub(crate) fn push_value(&mut self, message: &Message<'_>, origin: ShardId, number: u64) {
        self.push_head(message, 0);
        self.bytes.push(origin.index() as u8);
        self.push_number(number);
        self.push_text(message.publisher_id);
        self.push_body(message);
    }

    pub(crate) fn push_end(&mut self, step: u8) {
        self.bytes.extend_from_slice(&[END, step]);
    }

    pub(crate) fn push_memory(&mut self, is_short: bool) {
        self.bytes.extend_from_slice(&[MEMORY, u8::from(is_short)]);
    }

    #[inline]
    fn push_tag(&mut self, message: &Message<'_>, (plain, recorded): (u8, u8)) {
        match message.id {
            None => self.bytes.push(plain),
            Some(id) => {
                self.bytes.push(recorded);
                self.bytes.extend_from_slice(&id.to_bits().to_le_bytes());
            }
        }
    }

    fn push_head(&mut self, message: &Message<'_>, flags: u8) {
        let flags = flags
            | message.qos as u8
            | flag(message.retain, RETAIN)
            | flag(travels_shared(message), SHARED)
            | flag(message.deadline.is_some(), DEADLINE);
        self.bytes.push(flags);
        if let Some(deadline) = message.deadline {
            self.bytes.extend_from_slice(&deadline.as_nanos().to_le_bytes());
        }
    }

    fn push_body(&mut self, message: &Message<'_>) {
        self.push_text(message.topic);
        self.push_bytes(message.forwarded);
        match message.shared {
            Some(shared) if travels_shared(message) => {
                self.shared_bytes += shared.len();
                self.shared.push(shared.clone());
            }
            _ => self.push_bytes(message.payload),
        }
    }

    fn push_text(&mut self, text: &str) {
        self.push_bytes(text.as_bytes());
    }

    fn push_bytes(&mut self, bytes: &[u8]) {
        self.push_number(bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    fn push_row(&mut self, row: &[u64]) {
        self.bytes.push(row.len() as u8);
        for number in row {
            self.bytes.extend_from_slice(&number.to_le_bytes());
        }
    }

    fn push_number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }
}

const fn flag(is_set: bool, bit: u8) -> u8 {
    if is_set { bit } else { 0 }
}

fn travels_shared(message: &Message<'_>) -> bool {
    message.payload.len() >= SHARE_PAYLOAD_FROM && message.shared.is_some()
}

/// Reads a batch from its first entry to its last.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    shared: &'a [Bytes],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(batch: &'a Batch) -> Self {
        Self { bytes: &batch.bytes, shared: &batch.shared }
    }

    /// The next value of the [`Reply`] that was read last.
    pub(crate) fn value(&mut self) -> Value<'a> {
        let (flags, deadline) = self.head();
        let origin = ShardId::new(usize::from(self.byte()));
        let number = self.number();
        let publisher_id = self.text();
        let message = self.body((None, flags), deadline, publisher_id);
        Value { message, origin, number }
    }

    /// The name of a message with a record.
    fn id(&mut self) -> Option<MessageId> {
        let id = MessageId::from_bits(self.word());
        assert!(id.is_some(), "invariant: an id");
        id
    }

    fn publish(&mut self, id: Option<MessageId>) -> Entry<'a> {
        let (flags, deadline) = self.head();
        let stamp = (flags & STAMP != 0).then(|| Stamp {
            owner: ShardId::new(usize::from(self.byte())),
            number: self.number(),
        });
        let store = flags & STORE != 0;
        let publisher_id = if store { self.text() } else { "" };
        let message = self.body((id, flags), deadline, publisher_id);
        let rest = self.length();
        let groups = Groups { rest, reader: self.clone() };
        for _ in 0..rest {
            self.group();
        }
        Entry::Publish { message, duty: Duty { plain: flags & PLAIN != 0, store, stamp }, groups }
    }

    fn interest(&mut self, tag: u8) -> Entry<'a> {
        let number = self.number();
        let change = match tag {
            INTEREST_EXACT => Interest::Exact { hash: self.word(), state: self.byte() },
            INTEREST_WILD => Interest::Wild { filter: self.text(), state: self.byte() },
            _ => {
                let key = self.text();
                let [all, online, durable] = [(); 3].map(|()| self.length());
                Interest::Group { key, members: Members { all, online, durable } }
            }
        };
        Entry::Interest { number, change }
    }

    fn head(&mut self) -> (u8, Option<Time>) {
        let flags = self.byte();
        (flags, (flags & DEADLINE != 0).then(|| Time::from_nanos(self.word())))
    }

    fn back(&mut self, id: Option<MessageId>) -> Entry<'a> {
        let (flags, deadline) = self.head();
        let message = self.body((id, flags), deadline, "");
        Entry::Back { message, group: self.group() }
    }

    fn group(&mut self) -> ToGroup<'a> {
        let (flags, spread) = (self.byte(), self.length());
        let (returned, is_owed) = (flags & RETURNED != 0, flags & IS_OWED != 0);
        ToGroup { key: self.text(), spread, returned, is_owed }
    }

    fn body(
        &mut self,
        (id, flags): (Option<MessageId>, u8),
        deadline: Option<Time>,
        publisher_id: &'a str,
    ) -> Message<'a> {
        let topic = self.text();
        let forwarded = self.slice();
        let shared = (flags & SHARED != 0).then(|| {
            let (first, rest) = self.shared.split_first().expect("invariant: a shared payload");
            self.shared = rest;
            first
        });
        let payload = match shared {
            Some(shared) => &shared[..],
            None => self.slice(),
        };
        let qos = QoS::from_bits(flags & QOS).expect("invariant: a QoS");
        let retain = flags & RETAIN != 0;
        Message { topic, payload, shared, qos, retain, deadline, forwarded, publisher_id, id }
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.bytes.split_at_checked(len).expect("invariant: a whole entry");
        self.bytes = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take(1)[0]
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().expect("invariant: eight were taken"))
    }

    fn number(&mut self) -> u64 {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte();
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return number;
            }
        }
        panic!("invariant: a number has at most ten bytes");
    }

    fn length(&mut self) -> u32 {
        u32::try_from(self.number()).expect("invariant: 32 bits suffice here")
    }

    fn slice(&mut self) -> &'a [u8] {
        let len = self.length() as usize;
        self.take(len)
    }

    fn text(&mut self) -> &'a str {
        // The check costs less than what it excludes: unsafe code in a pure layer.
        std::str::from_utf8(self.slice()).expect("invariant: text was written as text")
    }

    fn row(&mut self) -> Row<'a> {
        let len = usize::from(self.byte());
        Row(self.take(8 * len))
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        if self.bytes.is_empty() {
            assert!(self.shared.is_empty(), "invariant: every shared payload has its entry");
            return None;
        }
        Some(match self.byte() {
            PUBLISH => self.publish(None),
            PUBLISH_RECORDED => {
                let id = self.id();
                self.publish(id)
            }
            BACK => self.back(None),
            BACK_RECORDED => {
                let id = self.id();
                self.back(id)
            }
            tag @ (INTEREST_EXACT | INTEREST_WILD | INTEREST_GROUP) => self.interest(tag),
            APPLIED => {
                Entry::Applied { through: self.number(), seen: self.number(), counters: self.row() }
            }
            QUERY => Entry::Query(Query {
                id: self.length(),
                limit: self.length(),
                filter: self.text(),
                after: self.text(),
                known: self.row(),
            }),
            REPLY => Entry::Reply(Reply {
                id: self.length(),
                next: self.text(),
                marks: self.row(),
                values: self.length(),
            }),
            END => Entry::End { step: self.byte() },
            MEMORY => Entry::Memory { is_short: self.byte() != 0 },
            tag => panic!("invariant: no entry has tag {tag}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message<'a>(payload: &'a [u8], shared: Option<&'a Bytes>) -> Message<'a> {
        Message {
            topic: "a/b",
            payload,
            shared,
            qos: QoS::AtLeastOnce,
            retain: true,
            deadline: Some(Time::from_nanos(300)),
            forwarded: &[1, 2, 3],
            publisher_id: "client",
            id: None,
        }
    }

    fn assert_same(read: &Message<'_>, written: &Message<'_>) {
        assert_eq!(read.topic, written.topic);
        assert_eq!(read.payload, written.payload);
        assert_eq!((read.qos, read.retain), (written.qos, written.retain));
        assert_eq!((read.deadline, read.forwarded), (written.deadline, written.forwarded));
    }

    #[test]
    fn entries_are_read_as_they_were_written() {
        let large = Bytes::from(vec![7; SHARE_PAYLOAD_FROM]);
        let small = message(b"payload", None);
        let id = Some(MessageId::new(ShardId::new(3), 1 << 40));
        let shared = Message { id, ..message(&large, Some(&large)) };
        let stamp = Some(Stamp { owner: ShardId::new(5), number: u64::MAX });
        let duty = Duty { plain: true, store: true, stamp };
        let light = Duty { plain: false, store: false, stamp: None };
        let groups_of_first = [
            ToGroup { key: "g/a/+", spread: 0, returned: false, is_owed: true },
            ToGroup { key: "h/a/b", spread: u32::MAX, returned: true, is_owed: false },
        ];
        let members = Members { all: 300, online: 2, durable: 0 };
        let mut batch = Batch::default();
        batch.push_publish(&small, duty, groups_of_first.len());
        groups_of_first.iter().for_each(|group| batch.push_group(*group));
        batch.push_publish(&shared, light, 0);
        batch.push_back(&shared, ToGroup { spread: 300, ..groups_of_first[0] });
        batch.push_interest(129, Interest::Exact { hash: 1 << 63, state: 1 });
        batch.push_interest(130, Interest::Wild { filter: "a/#", state: 3 });
        batch.push_interest(131, Interest::Group { key: "g/a/+", members });
        batch.push_applied(131, 1 << 41, &[1, 2, u64::MAX]);
        batch.push_query((9, 64), ("a/#", "a/b"), &[4, 5, 6]);
        batch.push_reply(9, "", &[7, 8], 1);
        batch.push_value(&shared, ShardId::new(1), 77);
        batch.push_end(2);
        batch.push_memory(true);
        assert_eq!(batch.shared.len(), 3, "large payloads are not copied");

        let mut reader = Reader::new(&batch);
        let Some(Entry::Publish { message, duty: read, groups: named }) = reader.next() else {
            panic!("a publish")
        };
        assert_same(&message, &small);
        assert_eq!(message.id, None);
        assert_eq!((read, message.publisher_id), (duty, "client"));
        assert_eq!(named.collect::<Vec<_>>(), groups_of_first);
        let Some(Entry::Publish { message, duty: read, mut groups }) = reader.next() else {
            panic!("a publish")
        };
        assert_same(&message, &shared);
        assert_eq!(message.id, id);
        assert!(read == light && groups.next().is_none() && message.shared.is_some());
        let Some(Entry::Back { message, group }) = reader.next() else {
            panic!("a message that comes back")
        };
        assert_eq!(group, ToGroup { spread: 300, ..groups_of_first[0] });
        assert_eq!(message.id, id);
        for expected in [
            (129, Interest::Exact { hash: 1 << 63, state: 1 }),
            (130, Interest::Wild { filter: "a/#", state: 3 }),
            (131, Interest::Group { key: "g/a/+", members }),
        ] {
            let Some(Entry::Interest { number, change }) = reader.next() else {
                panic!("interest")
            };
            assert_eq!((number, change), expected);
        }
        let Some(Entry::Applied { through: 131, seen, counters }) = reader.next() else {
            panic!("applied")
        };
        assert_eq!((seen, counters.iter().collect::<Vec<_>>()), (1 << 41, vec![1, 2, u64::MAX]));
        let Some(Entry::Query(query)) = reader.next() else { panic!("a query") };
        assert_eq!((query.id, query.limit, query.filter, query.after), (9, 64, "a/#", "a/b"));
        let Some(Entry::Reply(reply)) = reader.next() else { panic!("a reply") };
        assert_eq!((reply.id, reply.next, reply.values), (9, "", 1));
        assert_eq!(reply.marks.iter().collect::<Vec<_>>(), [7, 8]);
        let value = reader.value();
        assert_same(&value.message, &shared);
        assert_eq!((value.origin, value.number), (ShardId::new(1), 77));
        assert_eq!(value.message.publisher_id, "client");
        assert!(matches!(reader.next(), Some(Entry::End { step: 2 })));
        assert!(matches!(reader.next(), Some(Entry::Memory { is_short: true })));
        assert!(reader.next().is_none());
    }

    #[test]
    #[should_panic(expected = "invariant: a whole entry")]
    fn a_cut_batch_is_our_own_mistake() {
        let mut batch = Batch::default();
        batch.push_publish(
            &message(b"payload", None),
            Duty { plain: true, store: false, stamp: None },
            0,
        );
        batch.bytes.pop();
        Reader::new(&batch).for_each(drop);
    }
}
