//! MQTT 3.1, 3.1.1 and 5.0 packets.
//!
//! One model for all versions: a [`Packet`] is decoded from a frame and borrows from it, and is
//! encoded for a version; what a version cannot express is left out where its specification says
//! so. Entry points: [`frame_len`] finds where a frame ends, [`decode`] reads one,
//! [`Packet::encoded_len`] and [`Packet::encode`] write one, [`Delivery`] is the broker's short
//! way to write a PUBLISH.
//!
//! Decoding never allocates and never panics, and takes nothing that the specification calls
//! malformed or, as far as one packet shows it, a protocol error. What depends on more than the
//! packet (aliases, quotas, what the server supports, filters that it does not like) is the
//! broker's. MQTT 3.1 says of many bits that they are not used; those are not looked at.

#![forbid(unsafe_code)]

use std::fmt;
use std::num::NonZeroU16;

pub mod ack;
pub mod connack;
pub mod connect;
pub mod disconnect;
pub mod error;
pub mod properties;
pub mod publish;
pub mod reason;
pub mod subscribe;
pub mod topic;
mod wire;

#[cfg(test)]
mod tests;

pub use ack::{Ack, BareAck, SubAck};
pub use connack::{ConnAck, ConnAckProperties};
pub use connect::{Connect, ConnectProperties, Will, version_of_connect};
pub use disconnect::{Auth, Disconnect};
pub use error::{Cause, DecodeError};
pub use properties::{SubscriptionIds, UserProperties};
pub use publish::{Delivery, Publish, PublishProperties, Verbatim};
pub use reason::ReasonCode;
pub use subscribe::{
    RetainHandling, Subscribe, SubscribeFilter, SubscribeFilters, SubscriptionOptions, Unsubscribe,
    UnsubscribeFilters,
};

use wire::{Encode, Reader, Sink, read_vbi, vbi_len};

/// The protocol that a connection speaks, by the level in its CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Version {
    /// MQTT 3.1
    V31 = 3,
    /// MQTT 3.1.1
    V311 = 4,
    /// MQTT 5.0
    V5 = 5,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V31 => "3.1",
            Self::V311 => "3.1.1",
            Self::V5 => "5.0",
        })
    }
}

/// How often a message arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum QoS {
    /// At most once.
    #[default]
    AtMostOnce = 0,
    /// At least once.
    AtLeastOnce = 1,
    /// Exactly once.
    ExactlyOnce = 2,
}

impl QoS {
    /// From its number.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// Names an exchange between one client and its server while it lasts; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketId(NonZeroU16);

impl PacketId {
    /// The smallest.
    pub const MIN: Self = Self(NonZeroU16::MIN);

    /// `None` for zero.
    pub const fn new(value: u16) -> Option<Self> {
        match NonZeroU16::new(value) {
            Some(value) => Some(Self(value)),
            None => None,
        }
    }

    /// Its number.
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for PacketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who decodes. A server refuses what only servers send, a client what only clients send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The bytes come from a client.
    Server,
    /// The bytes come from a server.
    Client,
}

/// The type of a packet, numbered as in its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub enum PacketKind {
    /// Type 0, which does not exist.
    Reserved = 0,
    Connect = 1,
    ConnAck = 2,
    Publish = 3,
    PubAck = 4,
    PubRec = 5,
    PubRel = 6,
    PubComp = 7,
    Subscribe = 8,
    SubAck = 9,
    Unsubscribe = 10,
    UnsubAck = 11,
    PingReq = 12,
    PingResp = 13,
    Disconnect = 14,
    Auth = 15,
}

impl PacketKind {
    /// How many there are, for an array indexed by `kind as usize`.
    pub const COUNT: usize = 16;

    /// All of them, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Reserved,
        Self::Connect,
        Self::ConnAck,
        Self::Publish,
        Self::PubAck,
        Self::PubRec,
        Self::PubRel,
        Self::PubComp,
        Self::Subscribe,
        Self::SubAck,
        Self::Unsubscribe,
        Self::UnsubAck,
        Self::PingReq,
        Self::PingResp,
        Self::Disconnect,
        Self::Auth,
    ];

    /// From the first byte of a frame.
    pub const fn of(first: u8) -> Self {
        Self::ALL[(first >> 4) as usize]
    }

    /// As the specification writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reserved => "reserved packet",
            Self::Connect => "CONNECT",
            Self::ConnAck => "CONNACK",
            Self::Publish => "PUBLISH",
            Self::PubAck => "PUBACK",
            Self::PubRec => "PUBREC",
            Self::PubRel => "PUBREL",
            Self::PubComp => "PUBCOMP",
            Self::Subscribe => "SUBSCRIBE",
            Self::SubAck => "SUBACK",
            Self::Unsubscribe => "UNSUBSCRIBE",
            Self::UnsubAck => "UNSUBACK",
            Self::PingReq => "PINGREQ",
            Self::PingResp => "PINGRESP",
            Self::Disconnect => "DISCONNECT",
            Self::Auth => "AUTH",
        }
    }

    /// The flags in the first byte of all but PUBLISH (table 2-2).
    const fn flags(self) -> u8 {
        match self {
            Self::PubRel | Self::Subscribe | Self::Unsubscribe => 0b0010,
            _ => 0,
        }
    }

    const fn may_come_to(self, side: Side) -> bool {
        match self {
            Self::Connect | Self::Subscribe | Self::Unsubscribe | Self::PingReq => {
                matches!(side, Side::Server)
            }
            Self::ConnAck | Self::SubAck | Self::UnsubAck | Self::PingResp => {
                matches!(side, Side::Client)
            }
            _ => true,
        }
    }
}

impl fmt::Display for PacketKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Any packet of any version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is documented by its type")]
#[allow(clippy::large_enum_variant, reason = "borrowed, never stored, never moved far")]
pub enum Packet<'a> {
    Connect(Connect<'a>),
    ConnAck(ConnAck<'a>),
    Publish(Publish<'a>),
    PubAck(Ack<'a>),
    PubRec(Ack<'a>),
    PubRel(Ack<'a>),
    PubComp(Ack<'a>),
    Subscribe(Subscribe<'a>),
    SubAck(SubAck<'a>),
    Unsubscribe(Unsubscribe<'a>),
    UnsubAck(SubAck<'a>),
    PingReq,
    PingResp,
    Disconnect(Disconnect<'a>),
    Auth(Auth<'a>),
}

/// Total length of the frame at the start of `buf`, fixed header included, or `None` when more
/// bytes are needed to know it.
#[inline]
pub fn frame_len(buf: &[u8]) -> Result<Option<usize>, DecodeError> {
    let Some((&first, rest)) = buf.split_first() else {
        return Ok(None);
    };
    match read_vbi(rest) {
        Ok(Some((remaining, len))) => Ok(Some(1 + len + remaining as usize)),
        Ok(None) => Ok(None),
        Err(cause) => Err(DecodeError::new(PacketKind::of(first), cause, None)),
    }
}

/// Reads `frame`, which is exactly one frame as [`frame_len`] measures it.
///
/// `version` is `None` before CONNECT, when nothing else is legal `[MQTT-3.1.0-1]`; with a version
/// a CONNECT is the second one `[MQTT-3.1.0-2]`.
#[inline]
pub fn decode<'a>(
    frame: &'a [u8],
    version: Option<Version>,
    side: Side,
) -> Result<Packet<'a>, DecodeError> {
    let (first, kind, mut packet) = open(frame, version)?;
    let fail = |cause| DecodeError::new(kind, cause, version);
    match (kind, version) {
        (PacketKind::Publish, Some(version)) => {
            Publish::read(first, &mut packet, version, side, "").map(Packet::Publish).map_err(fail)
        }
        (PacketKind::Connect, None) if side == Side::Server => {
            // 3.1 does not use the flags; which version it is, is only known further on.
            let connect = Connect::read(&mut packet)
                .map_err(|(cause, version)| DecodeError::new(kind, cause, version))?;
            if first & 0x0F != 0 && connect.version != Version::V31 {
                let version = Some(connect.version);
                return Err(DecodeError::new(kind, Cause::FixedHeaderFlags, version));
            }
            Ok(Packet::Connect(connect))
        }
        (_, None) => Err(fail(Cause::ConnectExpected)),
        (_, Some(version)) => decode_control(kind, first, packet, version, side),
    }
}

/// [`decode`] for a frame that is a PUBLISH: most are, and it is not copied into a [`Packet`], which
/// has room for the largest of them.
///
/// `known` is a Topic Name that has been checked already, such as that of the packet before: the
/// same one is compared instead of being checked again. Empty is none.
#[inline]
pub fn decode_publish<'a>(
    frame: &'a [u8],
    version: Version,
    side: Side,
    known: &'a str,
) -> Result<Publish<'a>, DecodeError> {
    let (first, kind, mut packet) = open(frame, Some(version))?;
    debug_assert_eq!(kind, PacketKind::Publish);
    Publish::read(first, &mut packet, version, side, known)
        .map_err(|cause| DecodeError::new(kind, cause, Some(version)))
}

/// The fixed header of `frame`, and what follows it.
#[inline]
fn open(
    frame: &[u8],
    version: Option<Version>,
) -> Result<(u8, PacketKind, Reader<'_>), DecodeError> {
    let mut packet = Reader::new(frame);
    let first =
        packet.u8().map_err(|cause| DecodeError::new(PacketKind::Reserved, cause, version))?;
    let kind = PacketKind::of(first);
    let fail = |cause| DecodeError::new(kind, cause, version);
    let remaining = packet.vbi().map_err(fail)? as usize;
    match packet.rest().len() {
        len if len < remaining => Err(fail(Cause::Truncated)),
        len if len > remaining => Err(fail(Cause::TrailingBytes)),
        _ => Ok((first, kind, packet)),
    }
}

/// All but PUBLISH and the first CONNECT. Errors are made complete here, packet by packet, so that
/// the result is built where it goes and never copied.
fn decode_control<'a>(
    kind: PacketKind,
    first: u8,
    mut packet: Reader<'a>,
    version: Version,
    side: Side,
) -> Result<Packet<'a>, DecodeError> {
    let fail = |cause| DecodeError::new(kind, cause, Some(version));
    let packet = &mut packet;
    if kind == PacketKind::Reserved || (kind == PacketKind::Auth && version != Version::V5) {
        return Err(fail(Cause::PacketType));
    }
    if !flags_allowed(kind, first & 0x0F, version) {
        return Err(fail(Cause::FixedHeaderFlags));
    }
    if !kind.may_come_to(side) {
        return Err(fail(Cause::Direction));
    }
    Ok(match kind {
        PacketKind::PubAck => Packet::PubAck(Ack::read(kind, packet, version).map_err(fail)?),
        PacketKind::PubRec => Packet::PubRec(Ack::read(kind, packet, version).map_err(fail)?),
        PacketKind::PubRel => Packet::PubRel(Ack::read(kind, packet, version).map_err(fail)?),
        PacketKind::PubComp => Packet::PubComp(Ack::read(kind, packet, version).map_err(fail)?),
        PacketKind::PingReq => {
            packet.finish().map_err(fail)?;
            Packet::PingReq
        }
        PacketKind::PingResp => {
            packet.finish().map_err(fail)?;
            Packet::PingResp
        }
        PacketKind::Subscribe => Packet::Subscribe(Subscribe::read(packet, version).map_err(fail)?),
        PacketKind::SubAck => Packet::SubAck(SubAck::read(kind, packet, version).map_err(fail)?),
        PacketKind::Unsubscribe => {
            Packet::Unsubscribe(Unsubscribe::read(packet, version).map_err(fail)?)
        }
        PacketKind::UnsubAck => {
            Packet::UnsubAck(SubAck::read(kind, packet, version).map_err(fail)?)
        }
        PacketKind::ConnAck => Packet::ConnAck(ConnAck::read(packet, version).map_err(fail)?),
        PacketKind::Disconnect => {
            Packet::Disconnect(Disconnect::read(packet, version, side).map_err(fail)?)
        }
        PacketKind::Auth => Packet::Auth(Auth::read(packet, side).map_err(fail)?),
        PacketKind::Connect => return Err(fail(Cause::SecondConnect)),
        // Those two have been dealt with.
        PacketKind::Reserved | PacketKind::Publish => return Err(fail(Cause::PacketType)),
    })
}

/// `[MQTT-2.1.3-1]`. In 3.1 PUBREL, SUBSCRIBE and UNSUBSCRIBE are messages of QoS 1 and may have
/// DUP; what it calls not used is not looked at.
fn flags_allowed(kind: PacketKind, flags: u8, version: Version) -> bool {
    match version {
        Version::V31 => kind.flags() == 0 || flags & 0b0110 == kind.flags(),
        _ => flags == kind.flags(),
    }
}

impl Packet<'_> {
    /// Its type.
    pub const fn kind(&self) -> PacketKind {
        match self {
            Self::Connect(_) => PacketKind::Connect,
            Self::ConnAck(_) => PacketKind::ConnAck,
            Self::Publish(_) => PacketKind::Publish,
            Self::PubAck(_) => PacketKind::PubAck,
            Self::PubRec(_) => PacketKind::PubRec,
            Self::PubRel(_) => PacketKind::PubRel,
            Self::PubComp(_) => PacketKind::PubComp,
            Self::Subscribe(_) => PacketKind::Subscribe,
            Self::SubAck(_) => PacketKind::SubAck,
            Self::Unsubscribe(_) => PacketKind::Unsubscribe,
            Self::UnsubAck(_) => PacketKind::UnsubAck,
            Self::PingReq => PacketKind::PingReq,
            Self::PingResp => PacketKind::PingResp,
            Self::Disconnect(_) => PacketKind::Disconnect,
            Self::Auth(_) => PacketKind::Auth,
        }
    }

    /// Bytes that [`Packet::encode`] appends, fixed header included: what the receiver's Maximum
    /// Packet Size bounds. Who finds it too large leaves out the reason string or the User
    /// Properties and asks again.
    pub fn encoded_len(&self, version: Version) -> usize {
        let remaining = Body { packet: self, version }.len();
        1 + vbi_len(remaining) + remaining
    }

    /// Appends it in the form of `version`; a CONNECT, which names its version, in that.
    ///
    /// The fields keep what their types promise: strings and binary data of at most 65,535 bytes,
    /// a packet identifier from QoS 1 on, at least one filter, numbers within their range. Those
    /// that would shift the frame are asserted.
    pub fn encode(&self, version: Version, out: &mut Vec<u8>) {
        let start = out.len();
        let body = Body { packet: self, version };
        let remaining = body.len();
        let len = 1 + vbi_len(remaining) + remaining;
        out.reserve(len);
        out.u8(self.first_byte());
        out.vbi(remaining);
        body.put(out);
        debug_assert_eq!(out.len() - start, len, "the announced length");
    }

    fn first_byte(&self) -> u8 {
        match self {
            Self::Publish(publish) => publish.first_byte(),
            _ => (self.kind() as u8) << 4 | self.kind().flags(),
        }
    }
}

/// A packet in the form of a version, without its fixed header.
struct Body<'p, 'a> {
    packet: &'p Packet<'a>,
    version: Version,
}

impl Encode for Body<'_, '_> {
    fn put<S: Sink>(&self, out: &mut S) {
        let version = self.version;
        match self.packet {
            Packet::Connect(connect) => connect.put(out),
            Packet::ConnAck(connack) => connack.put(version, out),
            Packet::Publish(publish) => publish.put(version, out),
            Packet::PubAck(ack) | Packet::PubRec(ack) => ack.put(version, out),
            Packet::PubRel(ack) | Packet::PubComp(ack) => ack.put(version, out),
            Packet::Subscribe(subscribe) => subscribe.put(version, out),
            Packet::SubAck(ack) => ack.put(PacketKind::SubAck, version, out),
            Packet::Unsubscribe(unsubscribe) => unsubscribe.put(version, out),
            Packet::UnsubAck(ack) => ack.put(PacketKind::UnsubAck, version, out),
            Packet::PingReq | Packet::PingResp => {}
            Packet::Disconnect(disconnect) => disconnect.put(version, out),
            Packet::Auth(auth) => auth.put_packet(out),
        }
    }
}
