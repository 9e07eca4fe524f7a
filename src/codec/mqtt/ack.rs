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

/// One that says success and nothing else: the same four bytes in every version, and what nearly
/// all acknowledgements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BareAck {
    /// PUBACK, PUBREC, PUBREL or PUBCOMP.
    pub kind: PacketKind,
    /// Of the PUBLISH.
    pub packet_id: PacketId,
}

impl BareAck {
    /// Bytes of the packet.
    pub const LEN: usize = 4;

    /// Reads `frame` if it is one. What is not may still be another packet, or a malformed one.
    #[inline]
    pub fn decode(frame: &[u8]) -> Option<Self> {
        let &[first, 2, high, low] = frame else { return None };
        let kind = PacketKind::of(first);
        let is_ack = PacketKind::PubAck <= kind && kind <= PacketKind::PubComp;
        let packet_id = PacketId::new(u16::from_be_bytes([high, low]))?;
        (is_ack && first & 0x0F == kind.flags()).then_some(Self { kind, packet_id })
    }

    /// The packet.
    #[inline]
    pub fn encode(self) -> [u8; Self::LEN] {
        let [high, low] = self.packet_id.get().to_be_bytes();
        [(self.kind as u8) << 4 | self.kind.flags(), 2, high, low]
    }

    /// As any other.
    pub const fn to_ack(self) -> Ack<'static> {
        Ack::new(self.packet_id, ReasonCode::SUCCESS)
    }
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

#[cfg(test)]
mod tests {
    use super::super::tests::{ALL_VERSIONS, accepted, bad, good, packet_id, written};
    use super::super::{Packet, Side, decode};
    use super::*;

    const FOUR: [u8; 4] = [0x40, 0x50, 0x62, 0x70];

    fn packet(first: u8, ack: Ack<'_>) -> Packet<'_> {
        match first {
            0x40 => Packet::PubAck(ack),
            0x50 => Packet::PubRec(ack),
            0x62 => Packet::PubRel(ack),
            _ => Packet::PubComp(ack),
        }
    }

    /// The short way knows what the long way knows, and nothing else.
    #[test]
    fn bare_acks() {
        for first in 0..=255_u8 {
            for rest in [&[2, 0x12, 0x34][..], &[2, 0, 0], &[3, 0x12, 0x34, 0], &[1, 0x12], &[2, 1]]
            {
                let frame = [&[first], rest].concat();
                let bare = BareAck::decode(&frame);
                if let Some(bare) = bare {
                    assert_eq!(bare.encode(), frame[..]);
                }
                let bare = bare.map(|bare| packet(first, bare.to_ack()));
                let is_bare = FOUR.contains(&first) && rest.len() == 3;
                let expected = decode(&frame, Some(Version::V311), Side::Server).ok();
                assert_eq!(bare, expected.filter(|_| is_bare), "{frame:02x?}");
            }
        }
    }

    #[test]
    fn acks_in_all_versions() {
        let ack = Ack::new(packet_id(0x1234), ReasonCode::SUCCESS);
        for version in ALL_VERSIONS {
            for side in [Side::Server, Side::Client] {
                for first in FOUR {
                    good(version, side, first, "1234", packet(first, ack));
                    bad(version, side, first, "0000", Cause::PacketIdZero);
                    bad(version, side, first, "12", Cause::Truncated);
                    bad(version, side, first, "", Cause::Truncated);
                }
            }
        }
        for version in [Version::V31, Version::V311] {
            for first in FOUR {
                bad(version, Side::Server, first, "1234 00", Cause::TrailingBytes);
                // What the version cannot say is left out.
                let refusal = Ack { reason: ReasonCode::QUOTA_EXCEEDED, ..ack };
                let refusal = Ack { reason_string: Some("full"), ..refusal };
                written(version, packet(first, refusal), first, "1234");
            }
        }
        // 3.1 sends PUBREL again with DUP.
        accepted(Version::V31, Side::Server, 0x6A, "1234", Packet::PubRel(ack));
        bad(Version::V311, Side::Server, 0x6A, "1234", Cause::FixedHeaderFlags);
        bad(Version::V31, Side::Server, 0x60, "1234", Cause::FixedHeaderFlags);
    }

    #[test]
    fn acks_of_5() {
        let ack = Ack::new(packet_id(1), ReasonCode::SUCCESS);
        for first in FOUR {
            let code = if first < 0x60 { "97" } else { "92" };
            let reason = ReasonCode(if first < 0x60 { 0x97 } else { 0x92 });
            let other = Ack { reason, ..ack };
            let short = format!("0001 {code}");
            good(Version::V5, Side::Server, first, &short, packet(first, other));
            // Longer than need be.
            accepted(Version::V5, Side::Server, first, "0001 00", packet(first, ack));
            accepted(Version::V5, Side::Server, first, "0001 00 00", packet(first, ack));
            let long = format!("0001 {code} 00");
            accepted(Version::V5, Side::Server, first, &long, packet(first, other));
            let pairs = [("k", "v")];
            let full = Ack {
                reason_string: Some("why"),
                user_properties: UserProperties::new(&pairs),
                ..other
            };
            let body = format!("0001 {code} 0D 1F 'why' 26 'k' 'v'");
            good(Version::V5, Side::Client, first, &body, packet(first, full));
            let error = bad(Version::V5, Side::Server, first, "0001 03", Cause::ReasonCode);
            assert_eq!(error.reason.0, 0x82);
        }
        // [MQTT-3.4.2-1], [MQTT-3.6.2-1]: of each other's table.
        bad(Version::V5, Side::Server, 0x40, "0001 92", Cause::ReasonCode);
        bad(Version::V5, Side::Server, 0x50, "0001 92", Cause::ReasonCode);
        bad(Version::V5, Side::Server, 0x62, "0001 10", Cause::ReasonCode);
        bad(Version::V5, Side::Server, 0x70, "0001 80", Cause::ReasonCode);
    }

    #[test]
    fn suback() {
        let codes = [0x00, 0x01, 0x02, 0x80];
        let ack = SubAck::new(packet_id(5), &codes);
        good(Version::V311, Side::Client, 0x90, "0005 00010280", Packet::SubAck(ack));
        accepted(Version::V31, Side::Client, 0x90, "0005 00010280", Packet::SubAck(ack));
        written(Version::V31, Packet::SubAck(ack), 0x90, "0005 00010200");
        good(Version::V5, Side::Client, 0x90, "0005 00 00010280", Packet::SubAck(ack));
        let refusals = [0x87, 0x8F, 0x02];
        let ack = SubAck { reason_string: Some("no"), ..SubAck::new(packet_id(5), &refusals) };
        good(Version::V5, Side::Client, 0x90, "0005 05 1F 'no' 878F02", Packet::SubAck(ack));
        written(Version::V311, Packet::SubAck(ack), 0x90, "0005 808002");
        for version in ALL_VERSIONS {
            let five = if version == Version::V5 { "00" } else { "" };
            let bad = |id: &str, codes: &str, cause| {
                let body = format!("{id} {five} {codes}");
                bad(version, Side::Client, 0x90, &body, cause);
            };
            bad("0000", "00", Cause::PacketIdZero);
            bad("0005", "", Cause::PayloadEmpty);
            bad("0005", "03", Cause::ReasonCode);
            bad("0005", "0011", Cause::ReasonCode);
        }
        bad(Version::V311, Side::Client, 0x90, "0005 87", Cause::ReasonCode);
        bad(Version::V5, Side::Client, 0x90, "0005", Cause::Truncated);
        bad(Version::V5, Side::Server, 0x90, "0005 00 00", Cause::Direction);
    }

    #[test]
    fn unsuback() {
        let none = SubAck::new(packet_id(5), &[]);
        for version in [Version::V31, Version::V311] {
            good(version, Side::Client, 0xB0, "0005", Packet::UnsubAck(none));
            bad(version, Side::Client, 0xB0, "0005 00", Cause::TrailingBytes);
        }
        let codes = [0x00, 0x11, 0x87];
        let ack = SubAck::new(packet_id(5), &codes);
        good(Version::V5, Side::Client, 0xB0, "0005 00 001187", Packet::UnsubAck(ack));
        written(Version::V311, Packet::UnsubAck(ack), 0xB0, "0005");
        bad(Version::V5, Side::Client, 0xB0, "0005 00", Cause::PayloadEmpty);
        bad(Version::V5, Side::Client, 0xB0, "0005 00 01", Cause::ReasonCode);
        bad(Version::V5, Side::Client, 0xB0, "0000 00 00", Cause::PacketIdZero);
    }
}
