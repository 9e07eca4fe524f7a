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

impl<'a> Publish<'a> {
    /// At QoS 0, not retained, without properties.
    pub fn plain(topic: &'a str, payload: &'a [u8]) -> Self {
        Self {
            dup: false,
            qos: QoS::AtMostOnce,
            retain: false,
            topic,
            packet_id: None,
            properties: PublishProperties::default(),
            payload,
        }
    }
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

impl Verbatim<'_> {
    /// They cannot, or were never encoded.
    pub const NONE: Self = Self(None);
}

impl PartialEq for Verbatim<'_> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Verbatim<'_> {}

impl<'a> PublishProperties<'a> {
    /// Whether all of them are forwarded, as they came.
    pub fn are_verbatim(&self) -> bool {
        self.verbatim.0.is_some()
    }

    /// In the encoding of MQTT 5.0 and without a length, the properties that travel unchanged from
    /// publisher to subscriber `[MQTT-3.3.2-4]`, `[MQTT-3.3.2-15]` to `[MQTT-3.3.2-20]`: all but
    /// expiry, alias and Subscription Identifiers. As they came, if that is possible, else written
    /// to `buf`.
    pub fn forwarded<'b>(&self, buf: &'b mut Vec<u8>) -> &'b [u8]
    where
        'a: 'b,
    {
        if let Some(bytes) = self.verbatim.0 {
            return bytes;
        }
        buf.clear();
        self.put_forwarded(buf);
        buf
    }

    /// Appends what [`PublishProperties::forwarded`] gives.
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
        known: &'a str,
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
        let topic = topic::read_name(packet, known)?;
        let packet_id = if qos == QoS::AtMostOnce { None } else { Some(packet.packet_id()?) };
        // There are none.
        let mut properties =
            PublishProperties { verbatim: Verbatim(Some(&[])), ..PublishProperties::default() };
        if version == Version::V5 {
            if packet.rest().first() == Some(&0) {
                packet.u8()?;
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
    fn ids_len(&self) -> usize {
        self.subscription_ids.iter().map(|&id| 1 + vbi_len(id as usize)).sum()
    }

    fn properties_len(&self) -> usize {
        let expiry = if self.message_expiry_interval.is_some() { 5 } else { 0 };
        let alias = if self.topic_alias.is_some() { 3 } else { 0 };
        expiry + alias + self.ids_len() + self.forwarded.len()
    }

    /// Bytes of the head, as MQTT 5.0 has it, that follow the Topic Alias: with this a copy of the
    /// head can be given another one.
    pub fn len_behind_alias(&self) -> usize {
        self.ids_len() + self.forwarded.len()
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

#[cfg(test)]
mod tests {
    use super::super::tests::{ALL_VERSIONS, accepted, bad, frame, good, packet_id, written};
    use super::super::{Packet, ReasonCode, decode, decode_publish};
    use super::*;

    fn at(qos: QoS, id: u16, publish: Publish<'_>) -> Publish<'_> {
        Publish { qos, packet_id: Some(packet_id(id)), ..publish }
    }

    #[test]
    fn before_5() {
        for version in [Version::V31, Version::V311] {
            for side in [Side::Server, Side::Client] {
                let plain = Publish::plain("a/b", b"hi");
                good(version, side, 0x30, "'a/b' 6869", Packet::Publish(plain));
                let retained = Publish { retain: true, ..plain };
                good(version, side, 0x31, "'a/b' 6869", Packet::Publish(retained));
                let one = at(QoS::AtLeastOnce, 0x1234, plain);
                good(version, side, 0x32, "'a/b' 1234 6869", Packet::Publish(one));
                let two = Publish { dup: true, ..at(QoS::ExactlyOnce, 0xFFFF, plain) };
                good(version, side, 0x3C, "'a/b' FFFF 6869", Packet::Publish(two));
                good(version, side, 0x30, "'/'", Packet::Publish(Publish::plain("/", b"")));
            }
        }
    }

    #[test]
    fn refused_in_all_versions() {
        for version in ALL_VERSIONS {
            let bad = |first, body, cause| bad(version, Side::Server, first, body, cause).reason.0;
            // [MQTT-3.3.1-4]
            assert_eq!(bad(0x36, "'a' 0001 00", Cause::Qos), 0x81);
            // [MQTT-3.3.2-2]
            assert_eq!(bad(0x30, "'a/+' 00", Cause::TopicWildcard), 0x82);
            assert_eq!(bad(0x30, "'#' 00", Cause::TopicWildcard), 0x82);
            assert_eq!(bad(0x30, "'a+b' 00", Cause::TopicWildcard), 0x82);
            // [MQTT-2.2.1-3]
            assert_eq!(bad(0x32, "'a' 0000 00", Cause::PacketIdZero), 0x82);
            assert_eq!(bad(0x34, "'a' 0000 00", Cause::PacketIdZero), 0x82);
            // [MQTT-4.7.3-1], and in 5.0 "zero length and there is no Topic Alias"
            assert_eq!(bad(0x30, "'' 00", Cause::TopicEmpty), 0x82);
            assert_eq!(bad(0x30, "0002 C080 00", Cause::Utf8), 0x81);
            assert_eq!(bad(0x30, "0003 EDA080 00", Cause::Utf8), 0x81);
            assert_eq!(bad(0x30, "0003 610062 00", Cause::NullCharacter), 0x81);
            assert_eq!(bad(0x30, "", Cause::Truncated), 0x81);
            assert_eq!(bad(0x30, "00", Cause::Truncated), 0x81);
            assert_eq!(bad(0x30, "0005 61", Cause::Truncated), 0x81);
            assert_eq!(bad(0x32, "'a' 01", Cause::Truncated), 0x81);
        }
        bad(Version::V5, Side::Server, 0x30, "'a'", Cause::Truncated);
    }

    /// A topic that is known is compared, and nothing else is let through with it.
    #[test]
    fn a_known_topic() {
        for (body, cause) in [
            ("'a/b' 6869", None),
            ("'a/c' 6869", None),
            ("'a/+' 6869", Some(Cause::TopicWildcard)),
            ("'' 6869", Some(Cause::TopicEmpty)),
            ("0003 C08061 00", Some(Cause::Utf8)),
        ] {
            for known in ["", "a/b", "a"] {
                let bytes = frame(0x30, body);
                let direct = decode_publish(&bytes, Version::V311, Side::Server, known);
                let whole = decode(&bytes, Some(Version::V311), Side::Server);
                assert_eq!(direct.map(Packet::Publish), whole, "{body} {known}");
                assert_eq!(direct.err().map(|error| error.cause), cause);
            }
        }
    }

    /// `[MQTT-3.3.1-2]`; 3.1 gives the flag no meaning at QoS 0.
    #[test]
    fn dup_at_qos_0() {
        bad(Version::V311, Side::Server, 0x38, "'a'", Cause::DuplicateFlag);
        let error = bad(Version::V5, Side::Server, 0x39, "'a' 00", Cause::DuplicateFlag);
        assert_eq!(error.reason, ReasonCode::MALFORMED_PACKET);
        accepted(
            Version::V31,
            Side::Server,
            0x38,
            "'a'",
            Packet::Publish(Publish::plain("a", b"")),
        );
        let never = Publish { dup: true, ..Publish::plain("a", b"") };
        written(Version::V311, Packet::Publish(never), 0x30, "'a'");
    }

    #[test]
    fn properties() {
        let five = |side, body, properties| {
            let expected = Publish { properties, ..Publish::plain("a", b"x") };
            accepted(Version::V5, side, 0x30, body, Packet::Publish(expected));
        };
        let none = PublishProperties::default();
        good(
            Version::V5,
            Side::Server,
            0x30,
            "'a' 00 78",
            Packet::Publish(Publish::plain("a", b"x")),
        );
        five(
            Side::Server,
            "'a' 02 0101 78",
            PublishProperties { payload_format: Some(true), ..none },
        );
        five(
            Side::Server,
            "'a' 02 0100 78",
            PublishProperties { payload_format: Some(false), ..none },
        );
        five(
            Side::Server,
            "'a' 05 0200000000 78",
            PublishProperties { message_expiry_interval: Some(0), ..none },
        );
        five(
            Side::Server,
            "'a' 03 23FFFF 78",
            PublishProperties { topic_alias: NonZeroU16::new(0xFFFF), ..none },
        );
        five(
            Side::Server,
            "'a' 06 08 'r/t' 78",
            PublishProperties { response_topic: Some("r/t"), ..none },
        );
        five(
            Side::Server,
            "'a' 05 09 0002 00FF 78",
            PublishProperties { correlation_data: Some(&[0, 0xFF]), ..none },
        );
        five(Side::Server, "'a' 03 03 '' 78", PublishProperties { content_type: Some(""), ..none });
        let pairs = [("k", "v"), ("k", "w")];
        five(
            Side::Server,
            "'a' 0E 26 'k' 'v' 26 'k' 'w' 78",
            PublishProperties { user_properties: UserProperties::new(&pairs), ..none },
        );
        // Identifiers apart, something between, the largest one (PITFALLS A11).
        let ids = [1, 268_435_455, 128];
        five(
            Side::Client,
            "'a' 0C 0B01 0BFFFFFF7F 0101 0B8001 78",
            PublishProperties {
                payload_format: Some(true),
                subscription_ids: SubscriptionIds::new(&ids),
                ..none
            },
        );
    }

    #[test]
    fn refused_properties() {
        let bad = |side, body, cause| bad(Version::V5, side, 0x30, body, cause).reason.0;
        let server = |body, cause| bad(Side::Server, body, cause);
        assert_eq!(server("'a' 02 0102", Cause::PropertyValue), 0x82);
        assert_eq!(server("'a' 04 0101 0101", Cause::PropertyRepeated), 0x82);
        assert_eq!(server("'a' 06 230001 230001", Cause::PropertyRepeated), 0x82);
        assert_eq!(server("'a' 0A 0200000001 0200000001", Cause::PropertyRepeated), 0x82);
        // [MQTT-3.3.2-8]
        assert_eq!(server("'a' 03 230000", Cause::TopicAliasZero), 0x94);
        // [MQTT-3.3.2-14]
        assert_eq!(server("'a' 06 08 'r/#'", Cause::ResponseTopic), 0x82);
        assert_eq!(server("'a' 04 08 '+'", Cause::ResponseTopic), 0x82);
        assert_eq!(server("'a' 03 08 ''", Cause::ResponseTopic), 0x82);
        // [MQTT-3.3.4-6]
        assert_eq!(server("'a' 02 0B01", Cause::SubscriptionIdFromClient), 0x82);
        assert_eq!(bad(Side::Client, "'a' 02 0B00", Cause::PropertyValue), 0x82);
        assert_eq!(
            bad(Side::Client, "'a' 06 0BFFFFFFFF7F", Cause::VariableByteIntegerTooLong),
            0x81
        );
        assert_eq!(bad(Side::Client, "'a' 03 0B8100", Cause::VariableByteIntegerNotMinimal), 0x81);
        // A Will's and a SUBACK's.
        assert_eq!(server("'a' 05 1800000001", Cause::PropertyNotAllowed), 0x81);
        assert_eq!(server("'a' 03 1F ''", Cause::PropertyNotAllowed), 0x81);
        assert_eq!(server("'a' 04 03 0001 FF", Cause::Utf8), 0x81);
        assert_eq!(server("'a' 7F 0101", Cause::Truncated), 0x81);
        assert_eq!(server("'' 02 0101", Cause::TopicEmpty), 0x82);
    }

    #[test]
    fn alias_instead_of_a_topic() {
        let properties =
            PublishProperties { topic_alias: NonZeroU16::new(3), ..Default::default() };
        let expected = Publish { properties, ..Publish::plain("", b"x") };
        good(Version::V5, Side::Server, 0x30, "'' 03 230003 78", Packet::Publish(expected));
    }

    /// `[MQTT-3.3.2-4]`, `[MQTT-3.3.2-15]` to `[MQTT-3.3.2-20]`, PITFALLS D57.
    #[test]
    fn forwarding() {
        let forwarded = |body: &str| {
            let bytes = frame(0x30, body);
            let Ok(Packet::Publish(publish)) = decode(&bytes, Some(Version::V5), Side::Server)
            else {
                panic!("a PUBLISH: {body}")
            };
            let mut out = Vec::new();
            publish.properties.append_forwarded(&mut out);
            assert_eq!(publish.properties.forwarded_len(), out.len());
            let Ok(Packet::Publish(publish)) = decode(&bytes, Some(Version::V5), Side::Client)
            else {
                panic!("a PUBLISH: {body}")
            };
            assert!(publish.properties.verbatim.0.is_none_or(|bytes| bytes == out));
            out
        };
        let bytes = |body: &str| frame(0, body).split_off(2);
        assert_eq!(forwarded("'a' 00"), bytes(""));
        // As they came, in the order in which they came.
        let all = "26 'k' 'v' 09 0001 07 26 'k' 'v' 03 'c' 0101 08 'r'";
        assert_eq!(forwarded(&format!("'a' [ {all} ]")), bytes(all));
        // Without what does not travel.
        assert_eq!(
            forwarded("'a' [ 26 'k' 'v' 0200000009 26 'k' 'w' 230001 0100 ]"),
            bytes("0100 26 'k' 'v' 26 'k' 'w'")
        );
        assert_eq!(forwarded("'a' 05 0200000009"), bytes(""));
    }

    #[test]
    fn delivery() {
        let delivery = Delivery {
            topic: "a/b",
            qos: QoS::AtLeastOnce,
            dup: true,
            retain: true,
            packet_id: Some(packet_id(0x0A0B)),
            message_expiry_interval: Some(9),
            topic_alias: Some(3),
            subscription_ids: &[1, 200],
            forwarded: &[0x01, 0x01],
            payload_len: 200,
        };
        let mut out = Vec::new();
        assert_eq!(delivery.encode_head(Version::V5, &mut out), 8);
        let expected = "3BDF01 0003 612F62 0A0B 0F 0200000009 230003 0B01 0BC801 0101";
        assert_eq!(out, frame(0, expected).split_off(2));
        assert_eq!(delivery.encoded_len(Version::V5), out.len() + 200);
        for version in [Version::V31, Version::V311] {
            out.clear();
            assert_eq!(delivery.encode_head(version, &mut out), 8);
            assert_eq!(out, frame(0, "3BCF01 0003 612F62 0A0B").split_off(2));
            assert_eq!(delivery.encoded_len(version), out.len() + 200);
        }
        let plain = Delivery { qos: QoS::AtMostOnce, payload_len: 0, ..delivery };
        out.clear();
        assert_eq!(plain.encode_head(Version::V311, &mut out), 0);
        assert_eq!(out, [0x31, 5, 0, 3, b'a', b'/', b'b'], "no DUP, no packet identifier");
    }
}
