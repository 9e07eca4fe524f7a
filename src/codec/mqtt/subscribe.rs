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
