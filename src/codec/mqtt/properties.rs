//! Property sections of MQTT 5.0 (2.2.2): reading one with the rules that hold for all (known,
//! allowed in this packet, given once), and the lists in them, User Properties and Subscription
//! Identifiers, which stay in their encoded form.
#![forbid(unsafe_code)]

use std::fmt;

use super::error::Cause;
use super::wire::{Encode, Reader, Sink, VBI_MAX};

/// Property identifiers by their names in table 2-4.
pub(super) mod id {
    pub const PAYLOAD_FORMAT_INDICATOR: u8 = 0x01;
    pub const MESSAGE_EXPIRY_INTERVAL: u8 = 0x02;
    pub const CONTENT_TYPE: u8 = 0x03;
    pub const RESPONSE_TOPIC: u8 = 0x08;
    pub const CORRELATION_DATA: u8 = 0x09;
    pub const SUBSCRIPTION_IDENTIFIER: u8 = 0x0B;
    pub const SESSION_EXPIRY_INTERVAL: u8 = 0x11;
    pub const ASSIGNED_CLIENT_IDENTIFIER: u8 = 0x12;
    pub const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub const AUTHENTICATION_METHOD: u8 = 0x15;
    pub const AUTHENTICATION_DATA: u8 = 0x16;
    pub const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub const WILL_DELAY_INTERVAL: u8 = 0x18;
    pub const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub const RESPONSE_INFORMATION: u8 = 0x1A;
    pub const SERVER_REFERENCE: u8 = 0x1C;
    pub const REASON_STRING: u8 = 0x1F;
    pub const RECEIVE_MAXIMUM: u8 = 0x21;
    pub const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub const TOPIC_ALIAS: u8 = 0x23;
    pub const MAXIMUM_QOS: u8 = 0x24;
    pub const RETAIN_AVAILABLE: u8 = 0x25;
    pub const USER_PROPERTY: u8 = 0x26;
    pub const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub const WILDCARD_SUBSCRIPTION_AVAILABLE: u8 = 0x28;
    pub const SUBSCRIPTION_IDENTIFIER_AVAILABLE: u8 = 0x29;
    pub const SHARED_SUBSCRIPTION_AVAILABLE: u8 = 0x2A;
}

/// A set of property identifiers: all of them are below 64.
pub(super) const fn set(ids: &[u8]) -> u64 {
    let mut bits = 0;
    let mut index = 0;
    while index < ids.len() {
        bits |= 1 << ids[index];
        index += 1;
    }
    bits
}

const KNOWN: u64 = set(&[
    0x01, 0x02, 0x03, 0x08, 0x09, 0x0B, 0x11, 0x12, 0x13, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1A, 0x1C,
    0x1F, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2A,
]);

/// What PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK and UNSUBACK may carry.
pub(super) const ACK: u64 = set(&[id::REASON_STRING, id::USER_PROPERTY]);

/// One property section while it is read. [`Section::next`] holds the rules that are the same for
/// all packets; whoever asked reads the value.
#[derive(Debug)]
pub(super) struct Section<'a> {
    pub(super) reader: Reader<'a>,
    whole: &'a [u8],
    allowed: u64,
    seen: u64,
    /// From the first to the end of the last User Property.
    user: (usize, usize),
}

impl<'a> Section<'a> {
    /// Reads the length and takes the section from `packet`.
    pub(super) fn take(packet: &mut Reader<'a>, allowed: u64) -> Result<Self, Cause> {
        let len = packet.vbi()?;
        let whole = packet.take(len as usize)?;
        Ok(Self { reader: Reader::new(whole), whole, allowed, seen: 0, user: (0, 0) })
    }

    /// The next identifier other than User Property, whose values it checks on the way.
    pub(super) fn next(&mut self) -> Result<Option<u8>, Cause> {
        loop {
            let start = self.position();
            if self.reader.is_empty() {
                return Ok(None);
            }
            let id = self.reader.u8()?;
            let bit = if id < 64 { 1 << id } else { 0 };
            if bit & KNOWN == 0 {
                return Err(Cause::PropertyUnknown);
            }
            if bit & self.allowed == 0 {
                return Err(Cause::PropertyNotAllowed);
            }
            if id != id::USER_PROPERTY {
                if bit & self.seen != 0 {
                    return Err(Cause::PropertyRepeated);
                }
                self.seen |= bit;
                return Ok(Some(id));
            }
            self.reader.string()?;
            self.reader.string()?;
            if self.seen & bit == 0 {
                self.user.0 = start;
            }
            self.user.1 = self.position();
            self.seen |= bit;
        }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.whole.len() - self.reader.rest().len()
    }

    /// Lets the property just read come again.
    pub(super) fn allow_again(&mut self, id: u8) {
        self.seen &= !(1 << id);
    }

    /// The encoded section.
    pub(super) fn whole(&self) -> &'a [u8] {
        self.whole
    }

    /// The User Properties, once all has been read.
    pub(super) fn user_properties(&self) -> UserProperties<'a> {
        UserProperties(List::Encoded(&self.whole[self.user.0..self.user.1]))
    }

    /// A byte that is a truth value.
    pub(super) fn boolean(&mut self) -> Result<Option<bool>, Cause> {
        match self.reader.u8()? {
            0 => Ok(Some(false)),
            1 => Ok(Some(true)),
            _ => Err(Cause::PropertyValue),
        }
    }

    /// A Two Byte Integer that is not zero.
    pub(super) fn non_zero_u16(&mut self) -> Result<Option<u16>, Cause> {
        match self.reader.u16()? {
            0 => Err(Cause::PropertyValue),
            value => Ok(Some(value)),
        }
    }

    /// A Four Byte Integer that is not zero.
    pub(super) fn non_zero_u32(&mut self) -> Result<Option<u32>, Cause> {
        match self.reader.u32()? {
            0 => Err(Cause::PropertyValue),
            value => Ok(Some(value)),
        }
    }

    /// A Subscription Identifier, 1 to 268,435,455.
    pub(super) fn subscription_id(&mut self) -> Result<u32, Cause> {
        match self.reader.vbi()? {
            0 => Err(Cause::PropertyValue),
            value => Ok(value),
        }
    }
}

/// Reason String and User Properties, all that most acknowledgements carry.
pub(super) fn read_diagnostics<'a>(
    packet: &mut Reader<'a>,
) -> Result<(Option<&'a str>, UserProperties<'a>), Cause> {
    let mut section = Section::take(packet, ACK)?;
    let mut reason_string = None;
    while section.next()?.is_some() {
        reason_string = Some(section.reader.string()?);
    }
    Ok((reason_string, section.user_properties()))
}

/// A property section of [`read_diagnostics`]'s kind, to be written.
pub(super) struct Diagnostics<'a> {
    pub(super) reason_string: Option<&'a str>,
    pub(super) user_properties: UserProperties<'a>,
}

impl Diagnostics<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.reason_string.is_none() && self.user_properties.is_empty()
    }
}

impl Encode for Diagnostics<'_> {
    fn put<S: Sink>(&self, out: &mut S) {
        put_string(out, id::REASON_STRING, self.reason_string);
        self.user_properties.put(out);
    }
}

pub(super) fn put_bool<S: Sink>(out: &mut S, id: u8, value: Option<bool>) {
    if let Some(value) = value {
        out.bytes(&[id, u8::from(value)]);
    }
}

pub(super) fn put_u16<S: Sink>(out: &mut S, id: u8, value: Option<u16>) {
    if let Some(value) = value {
        out.u8(id);
        out.u16(value);
    }
}

pub(super) fn put_u32<S: Sink>(out: &mut S, id: u8, value: Option<u32>) {
    if let Some(value) = value {
        out.u8(id);
        out.u32(value);
    }
}

pub(super) fn put_string<S: Sink>(out: &mut S, id: u8, value: Option<&str>) {
    put_binary(out, id, value.map(str::as_bytes));
}

pub(super) fn put_binary<S: Sink>(out: &mut S, id: u8, value: Option<&[u8]>) {
    if let Some(value) = value {
        out.u8(id);
        out.binary(value);
    }
}

pub(super) fn put_subscription_id<S: Sink>(out: &mut S, value: u32) {
    debug_assert!(
        (1..=VBI_MAX).contains(&value),
        "invariant: {value} is a Subscription Identifier"
    );
    out.u8(id::SUBSCRIPTION_IDENTIFIER);
    out.vbi(value as usize);
}

/// Steps over the value of a property that has been checked before.
fn skip(id: u8, reader: &mut Reader<'_>) -> Result<(), Cause> {
    match id {
        0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28..=0x2A => reader.take(1).map(|_| ()),
        0x13 | 0x21..=0x23 => reader.take(2).map(|_| ()),
        0x02 | 0x11 | 0x18 | 0x27 => reader.take(4).map(|_| ()),
        id::SUBSCRIPTION_IDENTIFIER => reader.vbi().map(|_| ()),
        id::USER_PROPERTY => reader.binary().and_then(|_| reader.binary()).map(|_| ()),
        _ => reader.binary().map(|_| ()),
    }
}

/// Bytes that a decoder has checked, or items that somebody wants to have encoded.
#[derive(Clone, Copy)]
pub(super) enum List<'a, T> {
    /// Part of a checked property section; properties of other kinds may lie between.
    Encoded(&'a [u8]),
    /// The items themselves.
    Items(&'a [T]),
}

impl<'a, T> List<'a, T> {
    pub(super) const EMPTY: Self = Self::Encoded(&[]);

    fn is_empty(&self) -> bool {
        match self {
            Self::Encoded(bytes) => bytes.is_empty(),
            Self::Items(items) => items.is_empty(),
        }
    }
}

/// The User Properties of a packet, in order, repeated names and all `[MQTT-3.3.2-18]`.
#[derive(Clone, Copy)]
pub struct UserProperties<'a>(List<'a, (&'a str, &'a str)>);

impl<'a> UserProperties<'a> {
    /// None.
    pub const EMPTY: Self = Self(List::EMPTY);

    /// These pairs, for a packet that is to be encoded.
    pub const fn new(pairs: &'a [(&'a str, &'a str)]) -> Self {
        Self(List::Items(pairs))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names and values in order.
    pub fn iter(&self) -> UserPropertiesIter<'a> {
        UserPropertiesIter(self.0)
    }
}

impl Encode for UserProperties<'_> {
    fn put<S: Sink>(&self, out: &mut S) {
        match self.0 {
            List::Items(pairs) => {
                for (name, value) in pairs {
                    out.u8(id::USER_PROPERTY);
                    out.string(name);
                    out.string(value);
                }
            }
            List::Encoded(bytes) => {
                let mut reader = Reader::new(bytes);
                while find(&mut reader, id::USER_PROPERTY).is_some() {
                    let rest = reader.rest();
                    skip(id::USER_PROPERTY, &mut reader).expect("invariant: checked when decoded");
                    out.u8(id::USER_PROPERTY);
                    out.bytes(&rest[..rest.len() - reader.rest().len()]);
                }
            }
        }
    }
}

impl Default for UserProperties<'_> {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl PartialEq for UserProperties<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for UserProperties<'_> {}

impl fmt::Debug for UserProperties<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a> IntoIterator for UserProperties<'a> {
    type Item = (&'a str, &'a str);
    type IntoIter = UserPropertiesIter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Iterator of [`UserProperties::iter`].
#[derive(Clone)]
pub struct UserPropertiesIter<'a>(List<'a, (&'a str, &'a str)>);

impl<'a> Iterator for UserPropertiesIter<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            List::Items(pairs) => pairs.split_off_first().copied(),
            List::Encoded(bytes) => {
                let mut reader = Reader::new(bytes);
                find(&mut reader, id::USER_PROPERTY)?;
                let name = reader.string().expect("invariant: checked when decoded");
                let value = reader.string().expect("invariant: checked when decoded");
                *bytes = reader.rest();
                Some((name, value))
            }
        }
    }
}

/// The Subscription Identifiers of a PUBLISH that a server sends; a set, order says nothing.
#[derive(Clone, Copy)]
pub struct SubscriptionIds<'a>(List<'a, u32>);

impl<'a> SubscriptionIds<'a> {
    /// None.
    pub const EMPTY: Self = Self(List::EMPTY);

    /// These, each 1 to 268,435,455, for a packet that is to be encoded.
    pub const fn new(ids: &'a [u32]) -> Self {
        Self(List::Items(ids))
    }

    pub(super) const fn encoded(bytes: &'a [u8]) -> Self {
        Self(List::Encoded(bytes))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The identifiers.
    pub fn iter(&self) -> SubscriptionIdsIter<'a> {
        SubscriptionIdsIter(self.0)
    }
}

impl Encode for SubscriptionIds<'_> {
    fn put<S: Sink>(&self, out: &mut S) {
        for value in self.iter() {
            put_subscription_id(out, value);
        }
    }
}

impl Default for SubscriptionIds<'_> {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl PartialEq for SubscriptionIds<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for SubscriptionIds<'_> {}

impl fmt::Debug for SubscriptionIds<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a> IntoIterator for SubscriptionIds<'a> {
    type Item = u32;
    type IntoIter = SubscriptionIdsIter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Iterator of [`SubscriptionIds::iter`].
#[derive(Clone)]
pub struct SubscriptionIdsIter<'a>(List<'a, u32>);

impl Iterator for SubscriptionIdsIter<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        match &mut self.0 {
            List::Items(ids) => ids.split_off_first().copied(),
            List::Encoded(bytes) => {
                let mut reader = Reader::new(bytes);
                find(&mut reader, id::SUBSCRIPTION_IDENTIFIER)?;
                let value = reader.vbi().expect("invariant: checked when decoded");
                *bytes = reader.rest();
                Some(value)
            }
        }
    }
}

/// Goes to the value of the next property `wanted` in a checked section.
fn find(reader: &mut Reader<'_>, wanted: u8) -> Option<()> {
    while !reader.is_empty() {
        let id = reader.u8().expect("invariant: not empty");
        if id == wanted {
            return Some(());
        }
        skip(id, reader).expect("invariant: checked when decoded");
    }
    None
}
