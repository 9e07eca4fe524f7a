//! PUBLISH (3.3): the packet, its properties, and [`Delivery`], the broker's way out.
#![forbid(unsafe_code)]

use std::num::NonZeroU16;

use super::error::Cause;
use super::properties::{
    Section, SubscriptionIds, UserProperties, id, put_binary, put_bool, put_string,
    put_subscription_id, put_u16, put_u32, set,
};
use super::wire::{Encode, Reader, Sink, vbi_len};
use super::{PacketId, QoS, Side, Version, topic};

/// First byte of a PUBLISH without flags.
const TYPE: u8 = 0x30;
const DUP: u8 = 0x08;
const RETAIN: u8 = 0x01;

/// What a PUBLISH may carry.
const ALLOWED: u64 =
    FORWARDED | set(&[id::MESSAGE_EXPIRY_INTERVAL, id::TOPIC_ALIAS, id::SUBSCRIPTION_IDENTIFIER]);
/// What the properties of a Will may be.
const ALLOWED_IN_WILL: u64 =
    FORWARDED | set(&[id::MESSAGE_EXPIRY_INTERVAL, id::WILL_DELAY_INTERVAL]);
/// What goes from publisher to subscriber unchanged.
const FORWARDED: u64 = set(&[
    id::PAYLOAD_FORMAT_INDICATOR,
    id::RESPONSE_TOPIC,
    id::CORRELATION_DATA,
    id::CONTENT_TYPE,
    id::USER_PROPERTY,
]);

/// An Application Message under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Sent before; never so at QoS 0 `[MQTT-3.3.1-2]`.
    pub dup: bool,
    /// How hard to try.
    pub qos: QoS,
    /// Keep it for later subscribers, or: it was kept.
    pub retain: bool,
    /// Without wildcards; empty only when a Topic Alias stands for it.
    pub topic: &'a str,
    /// There from QoS 1 on, and only then.
    pub packet_id: Option<PacketId>,
    /// Default before MQTT 5.0.
    pub properties: PublishProperties<'a>,
    /// The message itself.
    pub payload: &'a [u8],
}

/// Properties of a PUBLISH, or of the message in a Will.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublishProperties<'a> {
    /// Whether the payload is UTF-8; `Some(false)` says as much as `None`, but is passed on.
    pub payload_format: Option<bool>,
    /// Seconds.
    pub message_expiry_interval: Option<u32>,
    /// Stands for the topic on this connection.
    pub topic_alias: Option<NonZeroU16>,
    /// Where to answer; without wildcards.
    pub response_topic: Option<&'a str>,
    /// What tells the asker which question was answered.
    pub correlation_data: Option<&'a [u8]>,
    /// What the payload is.
    pub content_type: Option<&'a str>,
    /// Anything else.
    pub user_properties: UserProperties<'a>,
    /// The subscriptions that it matched; servers send these.
    pub subscription_ids: SubscriptionIds<'a>,
    /// Set by the decoder; leave it as [`Default`] makes it. Who changes a decoded field that is
    /// forwarded must reset this.
    pub verbatim: Verbatim<'a>,
}

/// The encoded properties when they can be forwarded as they came. Equal to any other: it says
/// nothing that the fields beside it do not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Verbatim<'a>(Option<&'a [u8]>);

impl PartialEq for Verbatim<'_> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Verbatim<'_> {}

impl<'a> PublishProperties<'a> {
    /// Appends, in the encoding of MQTT 5.0 and without a length, the properties that travel
    /// unchanged from publisher to subscriber `[MQTT-3.3.2-4]`, `[MQTT-3.3.2-15]` to
    /// `[MQTT-3.3.2-20]`: all but expiry, alias and Subscription Identifiers.
    pub fn append_forwarded(&self, out: &mut Vec<u8>) {
        self.put_forwarded(out);
    }

    /// Bytes that [`PublishProperties::append_forwarded`] appends.
    pub fn forwarded_len(&self) -> usize {
        match self.verbatim.0 {
            Some(bytes) => bytes.len(),
            None => Forwarded(self).len(),
        }
    }

    fn put_forwarded<S: Sink>(&self, out: &mut S) {
        if let Some(bytes) = self.verbatim.0 {
            return out.bytes(bytes);
        }
        put_bool(out, id::PAYLOAD_FORMAT_INDICATOR, self.payload_format);
        put_string(out, id::CONTENT_TYPE, self.content_type);
        put_string(out, id::RESPONSE_TOPIC, self.response_topic);
        put_binary(out, id::CORRELATION_DATA, self.correlation_data);
        self.user_properties.put(out);
    }

    fn read(section: &mut Section<'a>, side: Side) -> Result<(Self, u32), Cause> {
        let mut properties = Self::default();
        let mut will_delay = 0;
        // From the first to the end of the last Subscription Identifier.
        let mut ids: Option<(usize, usize)> = None;
        let mut forwarded_only = true;
        while let Some(found) = section.next()? {
            match found {
                id::PAYLOAD_FORMAT_INDICATOR => properties.payload_format = section.boolean()?,
                id::MESSAGE_EXPIRY_INTERVAL => {
                    properties.message_expiry_interval = Some(section.reader.u32()?);
                }
                id::TOPIC_ALIAS => {
                    let alias = NonZeroU16::new(section.reader.u16()?);
                    properties.topic_alias = Some(alias.ok_or(Cause::TopicAliasZero)?);
                }
                id::RESPONSE_TOPIC => {
                    let response_topic = section.reader.string()?;
                    if response_topic.is_empty() || topic::has_wildcard(response_topic) {
                        return Err(Cause::ResponseTopic);
                    }
                    properties.response_topic = Some(response_topic);
                }
                id::CORRELATION_DATA => {
                    properties.correlation_data = Some(section.reader.binary()?);
                }
                id::CONTENT_TYPE => properties.content_type = Some(section.reader.string()?),
                id::SUBSCRIPTION_IDENTIFIER => {
                    if side == Side::Server {
                        return Err(Cause::SubscriptionIdFromClient);
                    }
                    let start = section.position() - 1;
                    section.subscription_id()?;
                    section.allow_again(id::SUBSCRIPTION_IDENTIFIER);
                    let first = ids.map_or(start, |(first, _)| first);
                    ids = Some((first, section.position()));
                }
                _ => will_delay = section.reader.u32()?,
            }
            forwarded_only &= FORWARDED & (1 << found) != 0;
        }
        properties.user_properties = section.user_properties();
        if let Some((start, end)) = ids {
            properties.subscription_ids = SubscriptionIds::encoded(&section.whole()[start..end]);
        }
        if forwarded_only {
            properties.verbatim = Verbatim(Some(section.whole()));
        }
        Ok((properties, will_delay))
    }

    /// Reads the properties of a Will and its delay.
    pub(super) fn read_will(packet: &mut Reader<'a>) -> Result<(Self, u32), Cause> {
        let mut section = Section::take(packet, ALLOWED_IN_WILL)?;
        Self::read(&mut section, Side::Server)
    }
}

/// The forwarded properties, to be counted.
struct Forwarded<'p, 'a>(&'p PublishProperties<'a>);

impl Encode for Forwarded<'_, '_> {
    fn put<S: Sink>(&self, out: &mut S) {
        self.0.put_forwarded(out);
    }
}

impl Encode for PublishProperties<'_> {
    fn put<S: Sink>(&self, out: &mut S) {
        put_u32(out, id::MESSAGE_EXPIRY_INTERVAL, self.message_expiry_interval);
        put_u16(out, id::TOPIC_ALIAS, self.topic_alias.map(NonZeroU16::get));
        self.subscription_ids.put(out);
        self.put_forwarded(out);
    }
}

/// The property section of a Will.
pub(super) struct WillProperties<'p, 'a> {
    pub(super) delay_interval: u32,
    pub(super) properties: &'p PublishProperties<'a>,
}

impl Encode for WillProperties<'_, '_> {
    fn put<S: Sink>(&self, out: &mut S) {
        let delay = (self.delay_interval != 0).then_some(self.delay_interval);
        put_u32(out, id::WILL_DELAY_INTERVAL, delay);
        put_u32(out, id::MESSAGE_EXPIRY_INTERVAL, self.properties.message_expiry_interval);
        self.properties.put_forwarded(out);
    }
}

impl<'a> Publish<'a> {
    #[inline]
    pub(super) fn read(
        first: u8,
        packet: &mut Reader<'a>,
        version: Version,
        side: Side,
    ) -> Result<Self, Cause> {
        let qos = QoS::from_bits(first >> 1 & 0b11).ok_or(Cause::Qos)?;
        let mut dup = first & DUP != 0;
        if dup && qos == QoS::AtMostOnce {
            // 3.1 says only that the flag has no meaning then.
            if version != Version::V31 {
                return Err(Cause::DuplicateFlag);
            }
            dup = false;
        }
        let topic = packet.string()?;
        if topic::has_wildcard(topic) {
            return Err(Cause::TopicWildcard);
        }
        let packet_id = if qos == QoS::AtMostOnce { None } else { Some(packet.packet_id()?) };
        let mut properties = PublishProperties::default();
        if version == Version::V5 {
            if packet.rest().first() == Some(&0) {
                packet.u8()?;
                properties.verbatim = Verbatim(Some(&[]));
            } else {
                let mut section = Section::take(packet, ALLOWED)?;
                (properties, _) = PublishProperties::read(&mut section, side)?;
            }
        }
        if topic.is_empty() && properties.topic_alias.is_none() {
            return Err(Cause::TopicEmpty);
        }
        let retain = first & RETAIN != 0;
        Ok(Self { dup, qos, retain, topic, packet_id, properties, payload: packet.take_rest() })
    }

    pub(super) fn first_byte(&self) -> u8 {
        first_byte(self.dup, self.qos, self.retain)
    }

    pub(super) fn put<S: Sink>(&self, version: Version, out: &mut S) {
        out.string(self.topic);
        put_packet_id(out, self.qos, self.packet_id);
        if version == Version::V5 {
            self.properties.put_with_len(out);
        }
        out.bytes(self.payload);
    }
}

#[inline]
fn first_byte(dup: bool, qos: QoS, retain: bool) -> u8 {
    let dup = dup && qos != QoS::AtMostOnce;
    TYPE | u8::from(dup) << 3 | (qos as u8) << 1 | u8::from(retain)
}

#[inline]
fn put_packet_id<S: Sink>(out: &mut S, qos: QoS, packet_id: Option<PacketId>) {
    if qos != QoS::AtMostOnce {
        let packet_id = packet_id.expect("invariant: a packet identifier from QoS 1 on");
        out.u16(packet_id.get());
    }
}

/// A message on its way to a subscriber, without its payload: the broker appends that itself, or
/// shares it.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    /// Empty when a Topic Alias known to the receiver stands for it.
    pub topic: &'a str,
    /// As delivered.
    pub qos: QoS,
    /// Sent before.
    pub dup: bool,
    /// As delivered.
    pub retain: bool,
    /// There from QoS 1 on.
    pub packet_id: Option<PacketId>,
    /// Seconds that are left.
    pub message_expiry_interval: Option<u32>,
    /// Not zero.
    pub topic_alias: Option<u16>,
    /// Of the subscriptions that it matched.
    pub subscription_ids: &'a [u32],
    /// What [`PublishProperties::append_forwarded`] made of the publisher's properties.
    pub forwarded: &'a [u8],
    /// Length of the payload that follows.
    pub payload_len: usize,
}

impl Delivery<'_> {
    fn properties_len(&self) -> usize {
        let ids: usize = self.subscription_ids.iter().map(|&id| 1 + vbi_len(id as usize)).sum();
        let expiry = if self.message_expiry_interval.is_some() { 5 } else { 0 };
        let alias = if self.topic_alias.is_some() { 3 } else { 0 };
        expiry + alias + ids + self.forwarded.len()
    }

    fn remaining_len(&self, version: Version) -> usize {
        let packet_id = if self.qos == QoS::AtMostOnce { 0 } else { 2 };
        let properties = if version == Version::V5 {
            let len = self.properties_len();
            vbi_len(len) + len
        } else {
            0
        };
        2 + self.topic.len() + packet_id + properties + self.payload_len
    }

    /// Length of the whole packet, payload included.
    pub fn encoded_len(&self, version: Version) -> usize {
        let remaining = self.remaining_len(version);
        1 + vbi_len(remaining) + remaining
    }

    /// Appends all but the payload. Returns where in what it appended the packet identifier is, 0
    /// when there is none: the head can be copied for the next receiver and only those two bytes
    /// written anew.
    pub fn encode_head(&self, version: Version, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        let remaining = self.remaining_len(version);
        let head_len = 1 + vbi_len(remaining) + remaining - self.payload_len;
        out.reserve(head_len);
        out.u8(first_byte(self.dup, self.qos, self.retain));
        out.vbi(remaining);
        out.string(self.topic);
        let packet_id_at = if self.qos == QoS::AtMostOnce { 0 } else { out.len() - start };
        put_packet_id(out, self.qos, self.packet_id);
        if version == Version::V5 {
            out.vbi(self.properties_len());
            put_u32(out, id::MESSAGE_EXPIRY_INTERVAL, self.message_expiry_interval);
            put_u16(out, id::TOPIC_ALIAS, self.topic_alias);
            for &id in self.subscription_ids {
                put_subscription_id(out, id);
            }
            out.bytes(self.forwarded);
        }
        debug_assert_eq!(out.len() - start, head_len, "the announced length");
        packet_id_at
    }
}
