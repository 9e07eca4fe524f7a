//! SUBSCRIBE (3.8) and UNSUBSCRIBE (3.10).
//!
//! Whether a filter is a valid one is not judged here but by [`super::topic::check_filter`], whose
//! failure is answered per filter.
#![forbid(unsafe_code)]

use std::fmt;

use super::error::Cause;
use super::properties::{Diagnostics, List, Section, UserProperties, id, put_subscription_id, set};
use super::topic::SHARE_PREFIX;
use super::wire::{Encode, Reader, Sink};
use super::{PacketId, QoS, Version};

const SUBSCRIBE_ALLOWED: u64 = set(&[id::SUBSCRIPTION_IDENTIFIER, id::USER_PROPERTY]);
const UNSUBSCRIBE_ALLOWED: u64 = set(&[id::USER_PROPERTY]);

const NO_LOCAL: u8 = 0x04;
const RETAIN_AS_PUBLISHED: u8 = 0x08;

/// A client asks for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscribe<'a> {
    /// To be repeated in the SUBACK.
    pub packet_id: PacketId,
    /// To come with each message that matches; 1 to 268,435,455.
    pub subscription_id: Option<u32>,
    /// Anything else.
    pub user_properties: UserProperties<'a>,
    /// At least one `[MQTT-3.8.3-2]`.
    pub filters: SubscribeFilters<'a>,
}

/// A client wants no more of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsubscribe<'a> {
    /// To be repeated in the UNSUBACK.
    pub packet_id: PacketId,
    /// Anything else.
    pub user_properties: UserProperties<'a>,
    /// At least one `[MQTT-3.10.3-2]`.
    pub filters: UnsubscribeFilters<'a>,
}

/// One line of a SUBSCRIBE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscribeFilter<'a> {
    /// As sent, `$share/name/` and all; UTF-8, otherwise unchecked.
    pub filter: &'a str,
    /// How to deliver.
    pub options: SubscriptionOptions,
}

/// How a subscription is served (3.8.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct SubscriptionOptions {
    /// Messages are sent with this QoS at most.
    pub qos: QoS,
    /// Not my own messages `[MQTT-3.8.3-3]`. False before MQTT 5.0.
    pub no_local: bool,
    /// Keep the RETAIN flag of the publisher `[MQTT-3.3.1-13]`. False before MQTT 5.0.
    pub retain_as_published: bool,
    /// What of the retained messages to send. All before MQTT 5.0.
    pub retain_handling: RetainHandling,
}

/// When retained messages are sent in answer to a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum RetainHandling {
    /// At every subscribe `[MQTT-3.3.1-9]`.
    #[default]
    Send = 0,
    /// When the subscription did not exist `[MQTT-3.3.1-10]`.
    SendIfNew = 1,
    /// Never `[MQTT-3.3.1-11]`.
    DoNotSend = 2,
}

impl SubscriptionOptions {
    /// For this QoS, the rest as before MQTT 5.0.
    pub const fn new(qos: QoS) -> Self {
        Self {
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Send,
        }
    }

    /// The byte of MQTT 5.0. Also good for storing them.
    pub const fn to_byte(self) -> u8 {
        let mut byte = self.qos as u8 | (self.retain_handling as u8) << 4;
        if self.no_local {
            byte |= NO_LOCAL;
        }
        if self.retain_as_published {
            byte |= RETAIN_AS_PUBLISHED;
        }
        byte
    }

    /// From the byte of MQTT 5.0.
    pub const fn from_byte(byte: u8) -> Result<Self, Cause> {
        if byte & 0xC0 != 0 {
            return Err(Cause::SubscriptionOptions);
        }
        let Some(qos) = QoS::from_bits(byte & 0b11) else {
            return Err(Cause::SubscriptionQos);
        };
        let retain_handling = match byte >> 4 & 0b11 {
            0 => RetainHandling::Send,
            1 => RetainHandling::SendIfNew,
            2 => RetainHandling::DoNotSend,
            _ => return Err(Cause::RetainHandling),
        };
        Ok(Self {
            qos,
            no_local: byte & NO_LOCAL != 0,
            retain_as_published: byte & RETAIN_AS_PUBLISHED != 0,
            retain_handling,
        })
    }

    fn read(byte: u8, version: Version) -> Result<Self, Cause> {
        match version {
            // "The upper 6 bits of this byte are not used" (3.8 of 3.1).
            Version::V31 => Self::from_byte(byte & 0b11),
            // [MQTT-3.8.3-4 of 3.1.1]
            Version::V311 if byte & 0xFC != 0 => Err(Cause::SubscriptionOptions),
            _ => Self::from_byte(byte),
        }
    }
}

/// The lines of a SUBSCRIBE.
#[derive(Clone, Copy)]
pub struct SubscribeFilters<'a> {
    list: List<'a, SubscribeFilter<'a>>,
    version: Version,
}

impl<'a> SubscribeFilters<'a> {
    /// These, for a packet that is to be encoded; at least one.
    pub const fn new(filters: &'a [SubscribeFilter<'a>]) -> Self {
        Self { list: List::Items(filters), version: Version::V5 }
    }

    /// In order.
    pub fn iter(&self) -> SubscribeFiltersIter<'a> {
        SubscribeFiltersIter(*self)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        match self.list {
            List::Items(filters) => filters.len(),
            List::Encoded(_) => self.iter().count(),
        }
    }

    fn read(packet: &mut Reader<'a>, version: Version) -> Result<Self, Cause> {
        if packet.is_empty() {
            return Err(Cause::PayloadEmpty);
        }
        let list = List::Encoded(packet.rest());
        while !packet.is_empty() {
            let filter = packet.string()?;
            let options = SubscriptionOptions::read(packet.u8()?, version)?;
            if options.no_local && filter.starts_with(SHARE_PREFIX) {
                return Err(Cause::NoLocalShared);
            }
        }
        Ok(Self { list, version })
    }
}

impl PartialEq for SubscribeFilters<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for SubscribeFilters<'_> {}

impl fmt::Debug for SubscribeFilters<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a> IntoIterator for SubscribeFilters<'a> {
    type Item = SubscribeFilter<'a>;
    type IntoIter = SubscribeFiltersIter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Iterator of [`SubscribeFilters::iter`].
#[derive(Clone)]
pub struct SubscribeFiltersIter<'a>(SubscribeFilters<'a>);

impl<'a> Iterator for SubscribeFiltersIter<'a> {
    type Item = SubscribeFilter<'a>;

    fn next(&mut self) -> Option<SubscribeFilter<'a>> {
        match &mut self.0.list {
            List::Items(filters) => filters.split_off_first().copied(),
            List::Encoded([]) => None,
            List::Encoded(bytes) => {
                let mut reader = Reader::new(bytes);
                let filter = reader.string().expect("invariant: checked when decoded");
                let byte = reader.u8().expect("invariant: checked when decoded");
                let options = SubscriptionOptions::read(byte, self.0.version)
                    .expect("invariant: checked when decoded");
                *bytes = reader.rest();
                Some(SubscribeFilter { filter, options })
            }
        }
    }
}

/// The lines of an UNSUBSCRIBE.
#[derive(Clone, Copy)]
pub struct UnsubscribeFilters<'a>(List<'a, &'a str>);

impl<'a> UnsubscribeFilters<'a> {
    /// These, for a packet that is to be encoded; at least one.
    pub const fn new(filters: &'a [&'a str]) -> Self {
        Self(List::Items(filters))
    }

    /// In order.
    pub fn iter(&self) -> UnsubscribeFiltersIter<'a> {
        UnsubscribeFiltersIter(self.0)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        match self.0 {
            List::Items(filters) => filters.len(),
            List::Encoded(_) => self.iter().count(),
        }
    }

    fn read(packet: &mut Reader<'a>) -> Result<Self, Cause> {
        if packet.is_empty() {
            return Err(Cause::PayloadEmpty);
        }
        let list = List::Encoded(packet.rest());
        while !packet.is_empty() {
            packet.string()?;
        }
        Ok(Self(list))
    }
}

impl PartialEq for UnsubscribeFilters<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for UnsubscribeFilters<'_> {}

impl fmt::Debug for UnsubscribeFilters<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a> IntoIterator for UnsubscribeFilters<'a> {
    type Item = &'a str;
    type IntoIter = UnsubscribeFiltersIter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Iterator of [`UnsubscribeFilters::iter`].
#[derive(Clone)]
pub struct UnsubscribeFiltersIter<'a>(List<'a, &'a str>);

impl<'a> Iterator for UnsubscribeFiltersIter<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        match &mut self.0 {
            List::Items(filters) => filters.split_off_first().copied(),
            List::Encoded([]) => None,
            List::Encoded(bytes) => {
                let mut reader = Reader::new(bytes);
                let filter = reader.string().expect("invariant: checked when decoded");
                *bytes = reader.rest();
                Some(filter)
            }
        }
    }
}

impl<'a> Subscribe<'a> {
    pub(super) fn read(packet: &mut Reader<'a>, version: Version) -> Result<Self, Cause> {
        let packet_id = packet.packet_id()?;
        let mut subscription_id = None;
        let mut user_properties = UserProperties::EMPTY;
        if version == Version::V5 {
            let mut section = Section::take(packet, SUBSCRIBE_ALLOWED)?;
            while section.next()?.is_some() {
                subscription_id = Some(section.subscription_id()?);
            }
            user_properties = section.user_properties();
        }
        let filters = SubscribeFilters::read(packet, version)?;
        Ok(Self { packet_id, subscription_id, user_properties, filters })
    }

    pub(super) fn put<S: Sink>(&self, version: Version, out: &mut S) {
        out.u16(self.packet_id.get());
        if version == Version::V5 {
            SubscribeProperties(self).put_with_len(out);
        }
        for SubscribeFilter { filter, options } in self.filters {
            out.string(filter);
            let byte = options.to_byte();
            out.u8(if version == Version::V5 { byte } else { byte & 0b11 });
        }
    }
}

struct SubscribeProperties<'p, 'a>(&'p Subscribe<'a>);

impl Encode for SubscribeProperties<'_, '_> {
    fn put<S: Sink>(&self, out: &mut S) {
        if let Some(value) = self.0.subscription_id {
            put_subscription_id(out, value);
        }
        self.0.user_properties.put(out);
    }
}

impl<'a> Unsubscribe<'a> {
    pub(super) fn read(packet: &mut Reader<'a>, version: Version) -> Result<Self, Cause> {
        let packet_id = packet.packet_id()?;
        let mut user_properties = UserProperties::EMPTY;
        if version == Version::V5 {
            let mut section = Section::take(packet, UNSUBSCRIBE_ALLOWED)?;
            let other = section.next()?;
            debug_assert!(other.is_none(), "only User Properties are allowed");
            user_properties = section.user_properties();
        }
        let filters = UnsubscribeFilters::read(packet)?;
        Ok(Self { packet_id, user_properties, filters })
    }

    pub(super) fn put<S: Sink>(&self, version: Version, out: &mut S) {
        out.u16(self.packet_id.get());
        if version == Version::V5 {
            let user_properties = self.user_properties;
            Diagnostics { reason_string: None, user_properties }.put_with_len(out);
        }
        for filter in self.filters {
            out.string(filter);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ALL_VERSIONS, accepted, bad, good, packet_id, written};
    use super::super::{Packet, Side};
    use super::*;

    fn line(filter: &str, byte: u8) -> SubscribeFilter<'_> {
        let options = SubscriptionOptions::from_byte(byte).expect("good options");
        SubscribeFilter { filter, options }
    }

    fn subscribe<'a>(filters: &'a [SubscribeFilter<'a>]) -> Subscribe<'a> {
        Subscribe {
            packet_id: packet_id(10),
            subscription_id: None,
            user_properties: UserProperties::EMPTY,
            filters: SubscribeFilters::new(filters),
        }
    }

    fn unsubscribe<'a>(filters: &'a [&'a str]) -> Unsubscribe<'a> {
        Unsubscribe {
            packet_id: packet_id(10),
            user_properties: UserProperties::EMPTY,
            filters: UnsubscribeFilters::new(filters),
        }
    }

    #[test]
    fn subscribe_before_5() {
        let lines = [line("a/b", 1), line("c/#", 2), line("", 0)];
        let packet = Packet::Subscribe(subscribe(&lines));
        for version in [Version::V31, Version::V311] {
            good(version, Side::Server, 0x82, "000A 'a/b' 01 'c/#' 02 '' 00", packet);
            let options = [line("a", 0x2D)];
            let packet = Packet::Subscribe(subscribe(&options));
            written(version, packet, 0x82, "000A 'a' 01");
        }
        for byte in ["03", "04", "08", "10", "40", "80"] {
            let body = format!("000A 'a' {byte}");
            let three = byte == "03";
            let cause = if three { Cause::SubscriptionQos } else { Cause::SubscriptionOptions };
            bad(Version::V311, Side::Server, 0x82, &body, cause);
        }
        // 3.1: DUP when sent again, bits that are not used.
        let lines = [line("a", 1)];
        let packet = Packet::Subscribe(subscribe(&lines));
        accepted(Version::V31, Side::Server, 0x8A, "000A 'a' F9", packet);
        bad(Version::V31, Side::Server, 0x82, "000A 'a' 03", Cause::SubscriptionQos);
        bad(Version::V31, Side::Server, 0x84, "000A 'a' 01", Cause::FixedHeaderFlags);
    }

    #[test]
    fn subscribe_5() {
        let lines = [line("a", 0x2E), line("$share/g/b", 0x18)];
        let pairs = [("k", "v")];
        let expected = Subscribe {
            subscription_id: Some(268_435_455),
            user_properties: UserProperties::new(&pairs),
            ..subscribe(&lines)
        };
        let body = "000A 0C 0BFFFFFF7F 26 'k' 'v' 'a' 2E '$share/g/b' 18";
        good(Version::V5, Side::Server, 0x82, body, Packet::Subscribe(expected));
        let options = lines[0].options;
        assert_eq!(options.qos, QoS::ExactlyOnce);
        assert!(options.no_local && options.retain_as_published);
        assert_eq!(options.retain_handling, RetainHandling::DoNotSend);
        assert_eq!(expected.filters.count(), 2);
    }

    #[test]
    fn refused_subscribes() {
        for version in ALL_VERSIONS {
            let five = if version == Version::V5 { "00" } else { "" };
            let bad = |first: &str, body: &str, cause| {
                let body = format!("{first} {five} {body}");
                bad(version, Side::Server, 0x82, &body, cause).reason.0
            };
            assert_eq!(bad("0000", "'a' 00", Cause::PacketIdZero), 0x82);
            // [MQTT-3.8.3-2]
            assert_eq!(bad("000A", "", Cause::PayloadEmpty), 0x82);
            assert_eq!(bad("000A", "'a'", Cause::Truncated), 0x81);
            assert_eq!(bad("000A", "'a' 00 00", Cause::Truncated), 0x81);
            // [MQTT-3.8.3-1]
            assert_eq!(bad("000A", "0001 FF 00", Cause::Utf8), 0x81);
            assert_eq!(bad("000A", "0001 00 00", Cause::NullCharacter), 0x81);
        }
        let bad = |body, cause| bad(Version::V5, Side::Server, 0x82, body, cause).reason.0;
        assert_eq!(bad("000A", Cause::Truncated), 0x81);
        assert_eq!(bad("000A 00 'a' 03", Cause::SubscriptionQos), 0x82);
        assert_eq!(bad("000A 00 'a' 30", Cause::RetainHandling), 0x82);
        // [MQTT-3.8.3-5]
        assert_eq!(bad("000A 00 'a' 40", Cause::SubscriptionOptions), 0x81);
        assert_eq!(bad("000A 00 'a' 80", Cause::SubscriptionOptions), 0x81);
        // [MQTT-3.8.3-4]
        assert_eq!(bad("000A 00 '$share/g/a' 04", Cause::NoLocalShared), 0x82);
        assert_eq!(bad("000A 02 0B00 'a' 00", Cause::PropertyValue), 0x82);
        assert_eq!(bad("000A 04 0B01 0B02 'a' 00", Cause::PropertyRepeated), 0x82);
        assert_eq!(bad("000A 03 1F0000 'a' 00", Cause::PropertyNotAllowed), 0x81);
    }

    #[test]
    fn unsubscribe_packets() {
        let filters = ["a/b", "#"];
        let packet = Packet::Unsubscribe(unsubscribe(&filters));
        for version in [Version::V31, Version::V311] {
            good(version, Side::Server, 0xA2, "000A 'a/b' '#'", packet);
            bad(version, Side::Server, 0xA2, "000A", Cause::PayloadEmpty);
            bad(version, Side::Server, 0xA2, "0000 'a'", Cause::PacketIdZero);
            bad(version, Side::Server, 0xA2, "000A 'a' 00", Cause::Truncated);
        }
        accepted(Version::V31, Side::Server, 0xAA, "000A 'a/b' '#'", packet);
        let pairs = [("k", "v")];
        let user_properties = UserProperties::new(&pairs);
        let packet = Packet::Unsubscribe(Unsubscribe { user_properties, ..unsubscribe(&filters) });
        good(Version::V5, Side::Server, 0xA2, "000A 07 26 'k' 'v' 'a/b' '#'", packet);
        assert_eq!(UnsubscribeFilters::new(&filters).count(), 2);
        let bad = |body, cause| bad(Version::V5, Side::Server, 0xA2, body, cause).reason.0;
        // [MQTT-3.10.3-2]
        assert_eq!(bad("000A 00", Cause::PayloadEmpty), 0x82);
        assert_eq!(bad("000A 00 0001 FF", Cause::Utf8), 0x81);
        assert_eq!(bad("000A 02 0B01 'a'", Cause::PropertyNotAllowed), 0x81);
    }
}
