//! A PUBLISH that goes on byte by byte as it came: most do.
//!
//! Invariant: what is passed on so is what [`variant`](super::variant) would have encoded for that
//! receiver.
#![forbid(unsafe_code)]

use crate::codec::mqtt::{PacketId, Publish, QoS, Version};
use crate::ids::ConnId;
use crate::limits::SHARE_PAYLOAD_FROM;

use super::conn::Conn;
use super::publication::Terms;
use super::{Dirty, Frame};

/// Of a PUBLISH.
const DUP: u8 = 0x08;

/// Of a PUBLISH without DUP and RETAIN.
#[inline]
const fn first_byte(qos: QoS) -> u8 {
    0x30 | (qos as u8) << 1
}

const _: () = assert!(SHARE_PAYLOAD_FROM <= 0x3FFF, "a length of two bytes");

/// A PUBLISH that who gets it at its own QoS, without RETAIN, by its topic's name and without
/// Subscription Identifiers gets as it came, but for DUP and the packet id, if they speak the same
/// version.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AsReceived<'a> {
    is_v5: bool,
    qos: QoS,
    packet_id_at: usize,
    pub(crate) bytes: &'a [u8],
}

impl<'a> AsReceived<'a> {
    /// A large payload is shared and not copied; an expiry counts down; what says nothing to the
    /// receiver (an alias, flags of 3.1 without meaning) is not passed on.
    #[inline]
    pub(crate) fn of(publish: &Publish<'_>, frame: Frame<'a>, version: Version) -> Option<Self> {
        let (bytes, qos) = (frame.bytes, publish.qos);
        let has_no_flags =
            bytes[0] & !DUP == first_byte(qos) && publish.dup == (bytes[0] & DUP != 0);
        let is_same = has_no_flags
            && frame.shared.is_none()
            && bytes.len() < SHARE_PAYLOAD_FROM
            && publish.properties.are_verbatim();
        // Of a frame of this length, the length takes one byte or two.
        let header_len = 2 + usize::from(bytes[1] >> 7);
        let packet_id_at = header_len + 2 + publish.topic.len();
        is_same.then_some(Self { is_v5: version == Version::V5, qos, packet_id_at, bytes })
    }

    /// Whether this client gets it so, on these terms.
    #[inline]
    pub(crate) fn fits(&self, conn: &Conn, qos: QoS, terms: &Terms<'_>) -> bool {
        let is_v5 = conn.version() == Version::V5;
        is_v5 == self.is_v5
            && qos == self.qos
            && conn.aliases.is_none()
            && (!is_v5 || terms.subscription_ids.is_empty())
            && self.bytes.len() <= conn.packet_size_max as usize
    }

    #[inline]
    pub(crate) fn append(
        self,
        (id, conn): (ConnId, &mut Conn),
        dirty: &mut Dirty,
        packet_id: PacketId,
    ) {
        conn.append(id, dirty, |outbox| {
            let tail = outbox.tail();
            let start = tail.len();
            tail.extend_from_slice(self.bytes);
            let packet = &mut tail[start..];
            packet[0] = first_byte(self.qos);
            let at = self.packet_id_at;
            packet[at..at + 2].copy_from_slice(&packet_id.get().to_be_bytes());
        });
    }
}
