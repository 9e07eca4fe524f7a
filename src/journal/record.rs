//! What one record is on disk.
//!
//! An [`Entry`] is a [`Record`] as it is written: borrowed, with wall-clock times (milliseconds
//! since 1970 in UTC, since the monotonic clock ends with the machine's run), and with what the
//! journal's host adds to it: the number of a session, the receivers of a message. The origin shard
//! encodes ([`Batch`]), so that only bytes travel; the host appends what it adds behind the fields,
//! and never encodes twice.
//!
//! A body is a byte for its kind, a byte for its origin shard, and the kind's fields. Integers are
//! little-endian, lengths and most numbers LEB128. Around it stand its length and its checksum (see
//! [`put`] and [`take`]): CRC-32C over the number of its commit, its length, and its bytes. With the
//! commit's number in it, what an earlier use of a segment has left never counts as a record.
//!
//! [`decode`] never panics, whatever the bytes.
#![forbid(unsafe_code)]

mod batch;
mod groups;

use crate::broker::Record;
use crate::broker::durable::MessageId;
use crate::clock::Time;
use crate::ids::ShardId;
use crate::limits::SHARDS_MAX;

use super::wire::{Malformed, Numbers, Reader, put_bytes, put_number};

pub use batch::Batch;
pub use groups::Groups;

/// Bytes in front of each body: its length and its checksum.
pub const RECORD_HEADER: usize = 8;

/// The same moment on both clocks: what turns deadlines into wall time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clocks {
    /// On the monotonic clock.
    pub monotonic: Time,
    /// In milliseconds since 1970, UTC.
    pub unix_ms: u64,
}

impl Clocks {
    /// The wall time of a point on the monotonic clock, rounded up to a millisecond.
    pub fn unix_ms_of(self, time: Time) -> u64 {
        if time >= self.monotonic {
            let ahead = time.since(self.monotonic).as_nanos().div_ceil(1_000_000);
            self.unix_ms.saturating_add(u64::try_from(ahead).unwrap_or(u64::MAX))
        } else {
            let ago = self.monotonic.since(time).as_nanos() / 1_000_000;
            self.unix_ms.saturating_sub(u64::try_from(ago).unwrap_or(u64::MAX))
        }
    }

    /// The point on the monotonic clock of a wall time; [`Time::ZERO`] for one before its epoch.
    pub fn time_of(self, unix_ms: u64) -> Time {
        let by = std::time::Duration::from_millis(unix_ms.abs_diff(self.unix_ms));
        if unix_ms >= self.unix_ms { self.monotonic + by } else { self.monotonic - by }
    }
}

/// PUB, or FORWARD if `is_copy` is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Message id, see [`message_of`].
    pub message: u64,
    /// It was copied to free a segment (SHARDS.md J10).
    pub is_copy: bool,
    /// Of a copy: it is the retained value of its topic.
    pub is_value: bool,
    /// Client id of the publisher.
    pub publisher: &'a str,
    /// Of a QoS 2 publication.
    pub packet_id: Option<u16>,
    /// 0 to 2.
    pub qos: u8,
    /// As published.
    pub retain: bool,
    /// It is the publisher's Will.
    pub is_will: bool,
    /// When it expires, in Unix milliseconds.
    pub deadline: Option<u64>,
    /// Topic Name.
    pub topic: &'a str,
    /// Properties as `append_forwarded` wrote them.
    pub forwarded: &'a [u8],
    /// The payload.
    pub payload: &'a [u8],
    /// The groups that its origin has given it to. They travel with it to the host, and are not
    /// written: whom of them it is owed stands among the receivers.
    pub groups: Groups<'a>,
    /// To whom it is owed, and on which terms. Empty as long as only the origin has written.
    pub receivers: Receivers<'a>,
}

/// ASSIGN: the terms on which a QoS 2 message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assign<'a> {
    /// To whom.
    pub client_id: &'a str,
    /// Under which packet id.
    pub packet_id: u16,
    /// Which message; None for one that no journal holds.
    pub message: Option<u64>,
    /// Retain flag that it is sent with.
    pub retain: bool,
    /// `share name/filter` of the group that it was picked for.
    pub group: Option<&'a str>,
    /// Subscription Identifiers that it carries.
    pub subscription_ids: Numbers<'a>,
    /// Of a copy (J10): the place of the first one, and whether RECEIVED came since.
    pub copied: Option<(u64, bool)>,
}

impl<'a> Publish<'a> {
    fn of(record: &'a Record, clocks: Clocks) -> Self {
        let Record::Publish {
            message,
            publisher,
            packet_id,
            content,
            qos,
            retain,
            deadline,
            is_will,
            groups,
        } = record
        else {
            unreachable!("invariant: the caller has looked")
        };
        Self {
            message: message.order(),
            is_copy: false,
            is_value: false,
            publisher,
            packet_id: packet_id.map(|id| id.get()),
            qos: *qos as u8,
            retain: *retain,
            is_will: *is_will,
            deadline: deadline.map(|time| clocks.unix_ms_of(time)),
            topic: content.topic(),
            forwarded: content.forwarded(),
            payload: content.payload(),
            groups: Groups::Said(groups.as_deref().unwrap_or_default()),
            receivers: Receivers::default(),
        }
    }
}

impl<'a> Will<'a> {
    fn of(record: &'a Record) -> Self {
        let Record::WillSet {
            client_id,
            topic,
            forwarded,
            payload,
            qos,
            retain,
            delay_secs,
            expiry_secs,
        } = record
        else {
            unreachable!("invariant: the caller has looked")
        };
        Self {
            client_id,
            qos: *qos as u8,
            retain: *retain,
            delay_secs: *delay_secs,
            expiry_secs: *expiry_secs,
            topic,
            forwarded,
            payload,
        }
    }
}

/// One to whom a message is owed, and on which terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receiver<'a> {
    /// The host's number of the session or group.
    pub number: u64,
    /// It is a group.
    pub is_group: bool,
    /// An exchange holds it, by an ASSIGN that may stand before a copy.
    pub is_assigned: bool,
    /// At which it is delivered, 1 or 2.
    pub qos: u8,
    /// Retain flag that it is delivered with.
    pub retain: bool,
    /// Subscription Identifiers that it carries.
    pub subscription_ids: Numbers<'a>,
}

impl Receiver<'_> {
    /// Appends it to a body that ends with receivers.
    pub fn put(&self, out: &mut Vec<u8>) {
        put_number(out, self.number);
        let flags = flag(self.is_group, 1) | flag(self.qos == 2, 2) | flag(self.retain, 4);
        out.push(flags | flag(self.is_assigned, 8));
        self.subscription_ids.put(out);
    }
}

/// Receivers as they stand in a record: checked when it was read, taken apart when asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receivers<'a>(&'a [u8]);

impl<'a> Receivers<'a> {
    /// Receivers as [`Receiver::put`] has written them.
    ///
    /// # Errors
    /// When they are none.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        while !reader.0.is_empty() {
            receiver(&mut reader)?;
        }
        Ok(Self(bytes))
    }

    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let all = std::mem::take(&mut reader.0);
        Self::parse(all)
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = Receiver<'a>> + use<'a> {
        let mut reader = Reader(self.0);
        std::iter::from_fn(move || {
            (!reader.0.is_empty()).then(|| receiver(&mut reader).ok()).flatten()
        })
    }
}

fn receiver<'a>(r: &mut Reader<'a>) -> Result<Receiver<'a>, Malformed> {
    let (number, flags) = (r.number()?, r.byte()?);
    if flags > 15 {
        return Err(Malformed::Value("the flags of a receiver"));
    }
    Ok(Receiver {
        number,
        is_group: flags & 1 != 0,
        qos: 1 + u8::from(flags & 2 != 0),
        retain: flags & 4 != 0,
        is_assigned: flags & 8 != 0,
        subscription_ids: Numbers::read(r)?,
    })
}

/// A Will as it is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Will<'a> {
    /// Whose.
    pub client_id: &'a str,
    /// 0 to 2.
    pub qos: u8,
    /// To be published with.
    pub retain: bool,
    /// Will Delay Interval in seconds.
    pub delay_secs: u32,
    /// Message Expiry Interval in seconds.
    pub expiry_secs: Option<u32>,
    /// Topic Name.
    pub topic: &'a str,
    /// Properties as `append_forwarded` wrote them.
    pub forwarded: &'a [u8],
    /// The payload.
    pub payload: &'a [u8],
}

/// A record as it stands on disk. See [`Record`] for what each means.
#[expect(missing_docs, reason = "the fields are those of broker::Record")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// PUB and FORWARD.
    Publish(Publish<'a>),
    /// SESSION; `number` is the host's, 0 as long as only the origin has written.
    Session { client_id: &'a str, expiry_secs: u32, offline_since: Option<u64>, number: u64 },
    /// SESSION: ended.
    SessionEnded { client_id: &'a str },
    /// SUB; `seen` names per origin the last message that its home had seen.
    Subscribe {
        client_id: &'a str,
        filter: &'a str,
        options: u8,
        subscription_id: Option<u32>,
        seen: Numbers<'a>,
    },
    /// UNSUB.
    Unsubscribe { client_id: &'a str, filter: &'a str, seen: Numbers<'a> },
    /// WILL: set.
    WillSet(Will<'a>),
    /// WILL: deleted.
    WillDeleted { client_id: &'a str },
    /// ASSIGN.
    Assign(Assign<'a>),
    /// RECEIVED.
    Received { client_id: &'a str, packet_id: u16, message: Option<u64> },
    /// ACKED.
    Acked { client_id: &'a str, message: u64 },
    /// DONE.
    Done { client_id: &'a str, packet_id: u16, message: Option<u64> },
    /// RELEASED.
    Released { client_id: &'a str, packet_id: u16 },
    /// GROUPACK.
    GroupAck { group: &'a str, message: u64 },
    /// A copy of what a PUB says of its QoS 2 publisher: this packet id is not released (J10).
    Unreleased { client_id: &'a str, packet_id: u16, message: u64 },
    /// The host's number of a group: a shared subscription that is a receiver.
    Group { group: &'a str, number: u64 },
    /// What an UNSUB has ended, as the host has found it.
    Ended { client_id: &'a str, messages: Numbers<'a> },
}

const PUBLISH: u8 = 1;
const SESSION: u8 = 2;
const SESSION_ENDED: u8 = 3;
const SUBSCRIBE: u8 = 4;
const UNSUBSCRIBE: u8 = 5;
const WILL_SET: u8 = 6;
const WILL_DELETED: u8 = 7;
const ASSIGN: u8 = 8;
const RECEIVED: u8 = 9;
const ACKED: u8 = 10;
const DONE: u8 = 11;
const RELEASED: u8 = 12;
const GROUP_ACK: u8 = 13;
const UNRELEASED: u8 = 14;
const GROUP: u8 = 15;
const ENDED: u8 = 16;

/// The kinds that say which sessions and groups there are.
pub(super) const SESSION_KINDS: &[u8] = &[SESSION, SESSION_ENDED, GROUP];

const RETAIN: u8 = 1 << 2;
const IS_WILL: u8 = 1 << 3;
const HAS_PACKET_ID: u8 = 1 << 4;
const HAS_DEADLINE: u8 = 1 << 5;
const IS_COPY: u8 = 1 << 6;
const IS_VALUE: u8 = 1 << 7;

const ASSIGN_COPY: u8 = 1;
const ASSIGN_RECEIVED: u8 = 1 << 1;
const ASSIGN_RETAIN: u8 = 1 << 2;
const ASSIGN_GROUP: u8 = 1 << 3;

const fn flag(on: bool, bit: u8) -> u8 {
    if on { bit } else { 0 }
}

/// How a message is named on disk: [`MessageId::order`], so that names ascend with their messages.
pub fn message_of(name: u64) -> Option<MessageId> {
    MessageId::from_bits(name.rotate_right(8))
}

impl<'a> Entry<'a> {
    /// The client that it is of; None of a group's.
    pub const fn client_id(&self) -> Option<&'a str> {
        match self {
            Self::Publish(publish) => Some(publish.publisher),
            Self::WillSet(will) => Some(will.client_id),
            Self::Assign(assign) => Some(assign.client_id),
            Self::Session { client_id, .. }
            | Self::SessionEnded { client_id }
            | Self::Subscribe { client_id, .. }
            | Self::Unsubscribe { client_id, .. }
            | Self::WillDeleted { client_id }
            | Self::Received { client_id, .. }
            | Self::Acked { client_id, .. }
            | Self::Done { client_id, .. }
            | Self::Released { client_id, .. }
            | Self::Unreleased { client_id, .. }
            | Self::Ended { client_id, .. } => Some(client_id),
            Self::GroupAck { .. } | Self::Group { .. } => None,
        }
    }

    /// The record as it is to be written; its lists go into `lists`, which is overwritten.
    pub fn of(record: &'a Record, clocks: Clocks, lists: &'a mut Vec<u8>) -> Self {
        lists.clear();
        let name = |message: &Option<MessageId>| message.map(MessageId::order);
        let names = |seen: &[MessageId], lists: &'a mut Vec<u8>| {
            Numbers::write(seen.iter().map(|id| id.order()), lists)
        };
        match record {
            Record::Publish { .. } => Self::Publish(Publish::of(record, clocks)),
            Record::Session { client_id, expiry_secs, offline_since } => Self::Session {
                client_id,
                expiry_secs: *expiry_secs,
                offline_since: offline_since.map(|time| clocks.unix_ms_of(time)),
                number: 0,
            },
            Record::SessionEnded { client_id } => Self::SessionEnded { client_id },
            Record::Subscribe { client_id, filter, options, subscription_id, seen } => {
                Self::Subscribe {
                    client_id,
                    filter,
                    options: *options,
                    subscription_id: *subscription_id,
                    seen: names(seen, lists),
                }
            }
            Record::Unsubscribe { client_id, filter, seen } => {
                Self::Unsubscribe { client_id, filter, seen: names(seen, lists) }
            }
            Record::WillSet { .. } => Self::WillSet(Will::of(record)),
            Record::WillDeleted { client_id } => Self::WillDeleted { client_id },
            Record::Assign { client_id, packet_id, message, retain, subscription_ids, group } => {
                Self::Assign(Assign {
                    client_id,
                    packet_id: packet_id.get(),
                    message: name(message),
                    retain: *retain,
                    group: group.as_deref(),
                    subscription_ids: Numbers::write(
                        subscription_ids.iter().map(|id| u64::from(*id)),
                        lists,
                    ),
                    copied: None,
                })
            }
            Record::Received { client_id, packet_id, message } => {
                Self::Received { client_id, packet_id: packet_id.get(), message: name(message) }
            }
            Record::Acked { client_id, message } => {
                Self::Acked { client_id, message: message.order() }
            }
            Record::Done { client_id, packet_id, message } => {
                Self::Done { client_id, packet_id: packet_id.get(), message: name(message) }
            }
            Record::Released { client_id, packet_id } => {
                Self::Released { client_id, packet_id: packet_id.get() }
            }
            Record::GroupAck { group, message } => {
                Self::GroupAck { group: group.key(), message: message.order() }
            }
        }
    }

    /// Its name, as SHARDS.md and `noctule journal` call it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Publish(publish) if publish.is_copy => "FORWARD",
            Self::Publish(_) => "PUB",
            Self::Session { .. } | Self::SessionEnded { .. } => "SESSION",
            Self::Subscribe { .. } => "SUB",
            Self::Unsubscribe { .. } => "UNSUB",
            Self::WillSet(_) | Self::WillDeleted { .. } => "WILL",
            Self::Assign(_) => "ASSIGN",
            Self::Received { .. } => "RECEIVED",
            Self::Acked { .. } => "ACKED",
            Self::Done { .. } => "DONE",
            Self::Released { .. } => "RELEASED",
            Self::GroupAck { .. } => "GROUPACK",
            Self::Unreleased { .. } => "UNRELEASED",
            Self::Group { .. } => "GROUP",
            Self::Ended { .. } => "ENDED",
        }
    }
}

/// About how many bytes a body takes.
pub(super) const fn len_hint(entry: &Entry<'_>) -> usize {
    const REST: usize = 256;
    match entry {
        Entry::Publish(publish) => {
            let text = publish.publisher.len() + publish.topic.len();
            text + publish.forwarded.len() + publish.payload.len() + REST
        }
        Entry::WillSet(will) => will.topic.len() + will.forwarded.len() + will.payload.len() + REST,
        _ => REST,
    }
}

/// Appends a body.
pub fn encode(out: &mut Vec<u8>, origin: ShardId, entry: &Entry<'_>) {
    let origin = origin.index() as u8;
    let client = |out: &mut Vec<u8>, kind: u8, client_id: &str| {
        out.extend_from_slice(&[kind, origin]);
        put_bytes(out, client_id.as_bytes());
    };
    let packet = |out: &mut Vec<u8>, kind: u8, client_id: &str, packet_id: u16| {
        client(out, kind, client_id);
        out.extend_from_slice(&packet_id.to_le_bytes());
    };
    match entry {
        Entry::Publish(publish) => encode_publish(out, origin, publish),
        Entry::Session { client_id, expiry_secs, offline_since, number } => {
            client(out, SESSION, client_id);
            put_number(out, u64::from(*expiry_secs));
            put_option(out, *offline_since);
            put_number(out, *number);
        }
        Entry::SessionEnded { client_id } => client(out, SESSION_ENDED, client_id),
        Entry::Subscribe { client_id, filter, options, subscription_id, seen } => {
            client(out, SUBSCRIBE, client_id);
            put_bytes(out, filter.as_bytes());
            out.push(*options);
            put_option(out, subscription_id.map(u64::from));
            seen.put(out);
        }
        Entry::Unsubscribe { client_id, filter, seen } => {
            client(out, UNSUBSCRIBE, client_id);
            put_bytes(out, filter.as_bytes());
            seen.put(out);
        }
        Entry::WillSet(will) => encode_will(out, origin, will),
        Entry::WillDeleted { client_id } => client(out, WILL_DELETED, client_id),
        Entry::Assign(assign) => {
            packet(out, ASSIGN, assign.client_id, assign.packet_id);
            encode_assign(out, assign);
        }
        Entry::Received { client_id, packet_id, message } => {
            packet(out, RECEIVED, client_id, *packet_id);
            put_number(out, message.unwrap_or(0));
        }
        Entry::Acked { client_id, message } => {
            client(out, ACKED, client_id);
            put_number(out, *message);
        }
        Entry::Done { client_id, packet_id, message } => {
            packet(out, DONE, client_id, *packet_id);
            put_number(out, message.unwrap_or(0));
        }
        Entry::Released { client_id, packet_id } => packet(out, RELEASED, client_id, *packet_id),
        Entry::GroupAck { group, message } => {
            client(out, GROUP_ACK, group);
            put_number(out, *message);
        }
        Entry::Unreleased { client_id, packet_id, message } => {
            packet(out, UNRELEASED, client_id, *packet_id);
            put_number(out, *message);
        }
        Entry::Group { group, number } => {
            client(out, GROUP, group);
            put_number(out, *number);
        }
        Entry::Ended { client_id, messages } => {
            client(out, ENDED, client_id);
            messages.put(out);
        }
    }
}

fn encode_publish(out: &mut Vec<u8>, origin: u8, publish: &Publish<'_>) {
    let flags = publish.qos
        | flag(publish.retain, RETAIN)
        | flag(publish.is_will, IS_WILL)
        | flag(publish.packet_id.is_some(), HAS_PACKET_ID)
        | flag(publish.deadline.is_some(), HAS_DEADLINE)
        | flag(publish.is_copy, IS_COPY)
        | flag(publish.is_value, IS_VALUE);
    out.extend_from_slice(&[PUBLISH, origin, flags]);
    out.extend_from_slice(&publish.message.to_le_bytes());
    if let Some(packet_id) = publish.packet_id {
        out.extend_from_slice(&packet_id.to_le_bytes());
    }
    if let Some(deadline) = publish.deadline {
        out.extend_from_slice(&deadline.to_le_bytes());
    }
    put_bytes(out, publish.publisher.as_bytes());
    put_bytes(out, publish.topic.as_bytes());
    put_bytes(out, publish.forwarded);
    put_bytes(out, publish.payload);
    // The host adds them behind what the origin has written.
    out.extend_from_slice(publish.receivers.0);
}

fn encode_assign(out: &mut Vec<u8>, assign: &Assign<'_>) {
    put_number(out, assign.message.unwrap_or(0));
    let (copy, place) = match assign.copied {
        None => (0, 0),
        Some((place, is_received)) => (ASSIGN_COPY | flag(is_received, ASSIGN_RECEIVED), place),
    };
    out.push(
        copy | flag(assign.retain, ASSIGN_RETAIN) | flag(assign.group.is_some(), ASSIGN_GROUP),
    );
    put_number(out, place);
    if let Some(group) = assign.group {
        put_bytes(out, group.as_bytes());
    }
    assign.subscription_ids.put(out);
}

fn encode_will(out: &mut Vec<u8>, origin: u8, will: &Will<'_>) {
    out.extend_from_slice(&[WILL_SET, origin, will.qos | if will.retain { RETAIN } else { 0 }]);
    put_bytes(out, will.client_id.as_bytes());
    put_number(out, u64::from(will.delay_secs));
    put_option(out, will.expiry_secs.map(u64::from));
    put_bytes(out, will.topic.as_bytes());
    put_bytes(out, will.forwarded);
    put_bytes(out, will.payload);
}

/// None as 0, others by one more: all values but the largest, which no time and no id is.
fn put_option(out: &mut Vec<u8>, number: Option<u64>) {
    put_number(out, number.map_or(0, |number| number.saturating_add(1)));
}

fn option(reader: &mut Reader<'_>) -> Result<Option<u64>, Malformed> {
    Ok(reader.number()?.checked_sub(1))
}

fn option32(reader: &mut Reader<'_>) -> Result<Option<u32>, Malformed> {
    let number = option(reader)?;
    number.map(|n| u32::try_from(n).map_err(|_| Malformed::Number)).transpose()
}

fn id(reader: &mut Reader<'_>) -> Result<Option<u64>, Malformed> {
    match reader.number()? {
        0 => Ok(None),
        name => message(name).map(Some),
    }
}

fn packet_id(reader: &mut Reader<'_>) -> Result<u16, Malformed> {
    Some(reader.u16()?).filter(|id| *id != 0).ok_or(Malformed::Value("a packet id"))
}

/// Takes a body apart: all of it is one record.
///
/// # Errors
/// When it is none, and why.
pub fn decode(body: &[u8]) -> Result<(ShardId, Entry<'_>), Malformed> {
    let mut reader = Reader(body);
    let r = &mut reader;
    let kind = r.byte()?;
    let origin = usize::from(r.byte()?);
    if origin >= SHARDS_MAX {
        return Err(Malformed::Value("the origin shard"));
    }
    let entry = match kind {
        PUBLISH => Entry::Publish(decode_publish(r)?),
        SESSION => Entry::Session {
            client_id: r.text()?,
            expiry_secs: r.number32()?,
            offline_since: option(r)?,
            number: r.number()?,
        },
        SESSION_ENDED => Entry::SessionEnded { client_id: r.text()? },
        SUBSCRIBE => Entry::Subscribe {
            client_id: r.text()?,
            filter: r.text()?,
            options: r.byte()?,
            subscription_id: option32(r)?,
            seen: Numbers::read(r)?,
        },
        UNSUBSCRIBE => {
            Entry::Unsubscribe { client_id: r.text()?, filter: r.text()?, seen: Numbers::read(r)? }
        }
        WILL_SET => Entry::WillSet(decode_will(r)?),
        WILL_DELETED => Entry::WillDeleted { client_id: r.text()? },
        ASSIGN => Entry::Assign(decode_assign(r)?),
        RECEIVED => {
            Entry::Received { client_id: r.text()?, packet_id: packet_id(r)?, message: id(r)? }
        }
        ACKED => Entry::Acked { client_id: r.text()?, message: message(r.number()?)? },
        DONE => Entry::Done { client_id: r.text()?, packet_id: packet_id(r)?, message: id(r)? },
        RELEASED => Entry::Released { client_id: r.text()?, packet_id: packet_id(r)? },
        GROUP_ACK => Entry::GroupAck { group: r.text()?, message: message(r.number()?)? },
        UNRELEASED => Entry::Unreleased {
            client_id: r.text()?,
            packet_id: packet_id(r)?,
            message: message(r.number()?)?,
        },
        GROUP => Entry::Group { group: r.text()?, number: r.number()? },
        ENDED => Entry::Ended { client_id: r.text()?, messages: Numbers::read(r)? },
        other => return Err(Malformed::Kind(other)),
    };
    if !reader.0.is_empty() {
        return Err(Malformed::Trailing(reader.0.len()));
    }
    Ok((ShardId::new(origin), entry))
}

fn message(name: u64) -> Result<u64, Malformed> {
    message_of(name).map(|_| name).ok_or(Malformed::Value("a message id"))
}

fn qos(flags: u8) -> Result<u8, Malformed> {
    Some(flags & 3).filter(|qos| *qos < 3).ok_or(Malformed::Value("a QoS"))
}

fn decode_publish<'a>(r: &mut Reader<'a>) -> Result<Publish<'a>, Malformed> {
    let flags = r.byte()?;
    let qos = qos(flags)?;
    let message = message(r.u64()?)?;
    let packet_id = if flags & HAS_PACKET_ID != 0 { Some(packet_id(r)?) } else { None };
    let deadline = if flags & HAS_DEADLINE != 0 { Some(r.u64()?) } else { None };
    Ok(Publish {
        message,
        is_copy: flags & IS_COPY != 0,
        is_value: flags & IS_VALUE != 0,
        packet_id,
        qos,
        retain: flags & RETAIN != 0,
        is_will: flags & IS_WILL != 0,
        deadline,
        publisher: r.text()?,
        topic: r.text()?,
        forwarded: r.bytes()?,
        payload: r.bytes()?,
        groups: Groups::default(),
        receivers: Receivers::read(r)?,
    })
}

fn decode_assign<'a>(r: &mut Reader<'a>) -> Result<Assign<'a>, Malformed> {
    let (client_id, packet_id, message) = (r.text()?, packet_id(r)?, id(r)?);
    let (flags, place) = (r.byte()?, r.number()?);
    let copied = match (flags & (ASSIGN_COPY | ASSIGN_RECEIVED), place) {
        (0, 0) => None,
        (ASSIGN_COPY, place) => Some((place, false)),
        (copy, place) if copy & ASSIGN_COPY != 0 => Some((place, true)),
        _ => return Err(Malformed::Value("a copy's state")),
    };
    if flags > 2 * ASSIGN_GROUP - 1 {
        return Err(Malformed::Value("the flags of an ASSIGN"));
    }
    Ok(Assign {
        client_id,
        packet_id,
        message,
        retain: flags & ASSIGN_RETAIN != 0,
        group: if flags & ASSIGN_GROUP != 0 { Some(r.text()?) } else { None },
        subscription_ids: Numbers::read(r)?,
        copied,
    })
}

fn decode_will<'a>(r: &mut Reader<'a>) -> Result<Will<'a>, Malformed> {
    let flags = r.byte()?;
    if flags & !(3 | RETAIN) != 0 {
        return Err(Malformed::Value("the flags of a Will"));
    }
    Ok(Will {
        qos: qos(flags)?,
        retain: flags & RETAIN != 0,
        client_id: r.text()?,
        delay_secs: r.number32()?,
        expiry_secs: option32(r)?,
        topic: r.text()?,
        forwarded: r.bytes()?,
        payload: r.bytes()?,
    })
}

/// The checksum of a body in this commit.
fn checksum(commit: u64, body: &[u8]) -> u32 {
    let mut head = [0; 12];
    head[..8].copy_from_slice(&commit.to_le_bytes());
    head[8..].copy_from_slice(&(body.len() as u32).to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&head), body)
}

/// Appends a record of this commit: `body`, which writes a body of less than 4 GiB, behind length
/// and checksum.
pub fn put(out: &mut Vec<u8>, commit: u64, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; RECORD_HEADER]);
    body(out);
    let (head, body) = out[start..].split_at_mut(RECORD_HEADER);
    head[..4].copy_from_slice(&(body.len() as u32).to_le_bytes());
    head[4..].copy_from_slice(&checksum(commit, body).to_le_bytes());
}

/// The body of the record of this commit at the beginning of `bytes`, which is behind the first
/// [`RECORD_HEADER`] of them.
///
/// # Errors
/// When there is none.
pub fn take(bytes: &[u8], commit: u64) -> Result<&[u8], Malformed> {
    let mut reader = Reader(bytes);
    let len = reader.u32()? as usize;
    let expected = reader.u32()?;
    let body = reader.0.get(..len).ok_or(Malformed::Short)?;
    if len < 2 || checksum(commit, body) != expected {
        return Err(Malformed::Checksum);
    }
    Ok(body)
}

#[cfg(test)]
mod tests;
