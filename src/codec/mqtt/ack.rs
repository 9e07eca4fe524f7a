//! The acknowledgements: PUBACK, PUBREC, PUBREL, PUBCOMP (3.4 to 3.7), SUBACK (3.9) and UNSUBACK
//! (3.11).
#![forbid(unsafe_code)]

use super::error::Cause;
use super::properties::{Diagnostics, UserProperties, read_diagnostics};
use super::reason::ReasonCode;
use super::wire::{Encode, Reader, Sink};
use super::{PacketId, PacketKind, Version};

/// A step of a QoS 1 or 2 exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack<'a> {
    /// Of the PUBLISH.
    pub packet_id: PacketId,
    /// Always success before MQTT 5.0.
    pub reason: ReasonCode,
    /// For people.
    pub reason_string: Option<&'a str>,
    /// Anything else.
    pub user_properties: UserProperties<'a>,
}

/// SUBACK and UNSUBACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubAck<'a> {
    /// Of the request.
    pub packet_id: PacketId,
    /// For people.
    pub reason_string: Option<&'a str>,
    /// Anything else.
    pub user_properties: UserProperties<'a>,
    /// One reason code per filter, in order; a 3.x UNSUBACK has none.
    pub codes: &'a [u8],
}

impl<'a> Ack<'a> {
    /// Without reason string and User Properties.
    pub const fn new(packet_id: PacketId, reason: ReasonCode) -> Self {
        Self { packet_id, reason, reason_string: None, user_properties: UserProperties::EMPTY }
    }

    fn diagnostics(&self) -> Diagnostics<'a> {
        Diagnostics { reason_string: self.reason_string, user_properties: self.user_properties }
    }

    #[inline]
    pub(super) fn read(
        kind: PacketKind,
        packet: &mut Reader<'a>,
        version: Version,
    ) -> Result<Self, Cause> {
        let mut ack = Self::new(packet.packet_id()?, ReasonCode::SUCCESS);
        if packet.is_empty() {
            return Ok(ack);
        }
        if version != Version::V5 {
            return Err(Cause::TrailingBytes);
        }
        ack.reason = check_reason(kind, ReasonCode(packet.u8()?))?;
        // The length of the properties may be missing when there are none (3.4.2.2.1).
        if !packet.is_empty() {
            (ack.reason_string, ack.user_properties) = read_diagnostics(packet)?;
            packet.finish()?;
        }
        Ok(ack)
    }

    pub(super) fn put<S: Sink>(&self, version: Version, out: &mut S) {
        out.u16(self.packet_id.get());
        let diagnostics = self.diagnostics();
        let bare = diagnostics.is_empty();
        if version != Version::V5 || (bare && self.reason == ReasonCode::SUCCESS) {
            return;
        }
        out.u8(self.reason.0);
        if !bare {
            diagnostics.put_with_len(out);
        }
    }
}

/// `[MQTT-3.4.2-1]`, `[MQTT-3.5.2-1]`, `[MQTT-3.6.2-1]`, `[MQTT-3.7.2-1]`
fn check_reason(kind: PacketKind, reason: ReasonCode) -> Result<ReasonCode, Cause> {
    let allowed = match kind {
        PacketKind::PubAck | PacketKind::PubRec => {
            matches!(reason.0, 0x00 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99)
        }
        _ => matches!(reason.0, 0x00 | 0x92),
    };
    if allowed { Ok(reason) } else { Err(Cause::ReasonCode) }
}

impl<'a> SubAck<'a> {
    /// Without reason string and User Properties.
    pub const fn new(packet_id: PacketId, codes: &'a [u8]) -> Self {
        Self { packet_id, reason_string: None, user_properties: UserProperties::EMPTY, codes }
    }

    fn diagnostics(&self) -> Diagnostics<'a> {
        Diagnostics { reason_string: self.reason_string, user_properties: self.user_properties }
    }

    pub(super) fn read(
        kind: PacketKind,
        packet: &mut Reader<'a>,
        version: Version,
    ) -> Result<Self, Cause> {
        let mut ack = Self::new(packet.packet_id()?, &[]);
        if version == Version::V5 {
            (ack.reason_string, ack.user_properties) = read_diagnostics(packet)?;
        } else if kind == PacketKind::UnsubAck {
            packet.finish()?;
            return Ok(ack);
        }
        ack.codes = packet.take_rest();
        if ack.codes.is_empty() {
            return Err(Cause::PayloadEmpty);
        }
        if ack.codes.iter().all(|&code| code_allowed(kind, version, code)) {
            Ok(ack)
        } else {
            Err(Cause::ReasonCode)
        }
    }

    pub(super) fn put<S: Sink>(&self, kind: PacketKind, version: Version, out: &mut S) {
        out.u16(self.packet_id.get());
        match (version, kind) {
            (Version::V5, _) => {
                self.diagnostics().put_with_len(out);
                out.bytes(self.codes);
            }
            (_, PacketKind::UnsubAck) => {}
            (Version::V311, _) => {
                for &code in self.codes {
                    out.u8(if code <= 2 { code } else { 0x80 });
                }
            }
            // 3.1 cannot refuse: "It must therefore make a positive acknowledgement" (3.8).
            (Version::V31, _) => {
                for &code in self.codes {
                    out.u8(if code <= 2 { code } else { 0 });
                }
            }
        }
    }
}

/// `[MQTT-3.9.3-2]`, `[MQTT-3.11.3-2]`, `[MQTT-3.9.3-2 of 3.1.1]`
fn code_allowed(kind: PacketKind, version: Version, code: u8) -> bool {
    match (version, kind) {
        (Version::V5, PacketKind::UnsubAck) => {
            matches!(code, 0x00 | 0x11 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91)
        }
        (Version::V5, _) => matches!(
            code,
            0x00..=0x02 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91 | 0x97 | 0x9E | 0xA1 | 0xA2
        ),
        // Servers refuse 3.1 clients so, whatever 3.1 says.
        _ => matches!(code, 0x00..=0x02 | 0x80),
    }
}
