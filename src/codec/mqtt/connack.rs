//! CONNACK (3.2).
#![forbid(unsafe_code)]

use super::error::Cause;
use super::properties::{
    Section, UserProperties, id, put_binary, put_bool, put_string, put_u16, put_u32, set,
};
use super::reason::ReasonCode;
use super::wire::{Encode, Reader, Sink};
use super::{QoS, Version};

const CONNACK_ALLOWED: u64 = set(&[
    id::SESSION_EXPIRY_INTERVAL,
    id::RECEIVE_MAXIMUM,
    id::MAXIMUM_QOS,
    id::RETAIN_AVAILABLE,
    id::MAXIMUM_PACKET_SIZE,
    id::ASSIGNED_CLIENT_IDENTIFIER,
    id::TOPIC_ALIAS_MAXIMUM,
    id::REASON_STRING,
    id::USER_PROPERTY,
    id::WILDCARD_SUBSCRIPTION_AVAILABLE,
    id::SUBSCRIPTION_IDENTIFIER_AVAILABLE,
    id::SHARED_SUBSCRIPTION_AVAILABLE,
    id::SERVER_KEEP_ALIVE,
    id::RESPONSE_INFORMATION,
    id::SERVER_REFERENCE,
    id::AUTHENTICATION_METHOD,
    id::AUTHENTICATION_DATA,
]);

/// The server's answer to a CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnAck<'a> {
    /// The server has state for this client `[MQTT-3.2.2-3]`; never in a refusal, and not expressed
    /// in MQTT 3.1.
    pub session_present: bool,
    /// Success or why not; a 3.x return code is translated.
    pub reason: ReasonCode,
    /// Default before MQTT 5.0.
    pub properties: ConnAckProperties<'a>,
}

/// Properties of a CONNACK (3.2.2.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnAckProperties<'a> {
    /// Present when it is not what the client asked for.
    pub session_expiry_interval: Option<u32>,
    /// Not zero; absent means 65,535.
    pub receive_maximum: Option<u16>,
    /// Absent means QoS 2, which cannot be said otherwise.
    pub maximum_qos: Option<QoS>,
    /// Absent means yes.
    pub retain_available: Option<bool>,
    /// Bytes, not zero; absent means no limit.
    pub maximum_packet_size: Option<u32>,
    /// For a client that gave none.
    pub assigned_client_id: Option<&'a str>,
    /// Absent means 0.
    pub topic_alias_maximum: Option<u16>,
    /// For people.
    pub reason_string: Option<&'a str>,
    /// Anything else.
    pub user_properties: UserProperties<'a>,
    /// Absent means yes.
    pub wildcard_subscription_available: Option<bool>,
    /// Absent means yes.
    pub subscription_ids_available: Option<bool>,
    /// Absent means yes.
    pub shared_subscription_available: Option<bool>,
    /// Seconds; replaces what the client asked for.
    pub server_keep_alive: Option<u16>,
    /// What to build a Response Topic from.
    pub response_information: Option<&'a str>,
    /// Another server to use.
    pub server_reference: Option<&'a str>,
    /// As in the CONNECT.
    pub authentication_method: Option<&'a str>,
    /// Only with a method.
    pub authentication_data: Option<&'a [u8]>,
}

impl<'a> ConnAck<'a> {
    pub(super) fn read(packet: &mut Reader<'a>, version: Version) -> Result<Self, Cause> {
        let flags = packet.u8()?;
        let code = packet.u8()?;
        if version != Version::V31 && flags & !1 != 0 {
            return Err(Cause::ConnAckFlags);
        }
        // 3.1 does not use the first byte.
        let session_present = version != Version::V31 && flags & 1 != 0;
        // A server that does not speak MQTT 5.0 says so in the form that it knows.
        let short = version == Version::V5 && packet.is_empty() && matches!(code, 1..=5);
        let (reason, properties) = if version == Version::V5 && !short {
            let reason = check_connack_reason(ReasonCode(code))?;
            (reason, ConnAckProperties::read(packet)?)
        } else {
            let reason = ReasonCode::from_connack_v3(code).ok_or(Cause::ReasonCode)?;
            (reason, ConnAckProperties::default())
        };
        packet.finish()?;
        if session_present && reason != ReasonCode::SUCCESS {
            return Err(Cause::SessionPresent);
        }
        Ok(Self { session_present, reason, properties })
    }

    pub(super) fn put<S: Sink>(&self, version: Version, out: &mut S) {
        let accepted = self.reason == ReasonCode::SUCCESS;
        let session_present = self.session_present && accepted && version != Version::V31;
        out.u8(u8::from(session_present));
        if version == Version::V5 {
            out.u8(self.reason.0);
            self.properties.put_with_len(out);
        } else {
            out.u8(self.reason.connack_v3());
        }
    }
}

/// `[MQTT-3.2.2-8]`
fn check_connack_reason(reason: ReasonCode) -> Result<ReasonCode, Cause> {
    match reason.0 {
        0x00 | 0x80..=0x8A | 0x8C | 0x90 | 0x95 | 0x97 | 0x99..=0x9D | 0x9F => Ok(reason),
        _ => Err(Cause::ReasonCode),
    }
}

impl<'a> ConnAckProperties<'a> {
    fn read(packet: &mut Reader<'a>) -> Result<Self, Cause> {
        let mut section = Section::take(packet, CONNACK_ALLOWED)?;
        let mut properties = Self::default();
        while let Some(found) = section.next()? {
            properties.read_one(found, &mut section)?;
        }
        if properties.authentication_data.is_some() && properties.authentication_method.is_none() {
            return Err(Cause::AuthenticationData);
        }
        properties.user_properties = section.user_properties();
        Ok(properties)
    }

    fn read_one(&mut self, found: u8, section: &mut Section<'a>) -> Result<(), Cause> {
        match found {
            id::SESSION_EXPIRY_INTERVAL => {
                self.session_expiry_interval = Some(section.reader.u32()?);
            }
            id::RECEIVE_MAXIMUM => self.receive_maximum = section.non_zero_u16()?,
            id::MAXIMUM_QOS => {
                self.maximum_qos = match section.reader.u8()? {
                    0 => Some(QoS::AtMostOnce),
                    1 => Some(QoS::AtLeastOnce),
                    _ => return Err(Cause::PropertyValue),
                }
            }
            id::RETAIN_AVAILABLE => self.retain_available = section.boolean()?,
            id::MAXIMUM_PACKET_SIZE => self.maximum_packet_size = section.non_zero_u32()?,
            id::ASSIGNED_CLIENT_IDENTIFIER => {
                self.assigned_client_id = Some(section.reader.string()?);
            }
            id::TOPIC_ALIAS_MAXIMUM => self.topic_alias_maximum = Some(section.reader.u16()?),
            id::REASON_STRING => self.reason_string = Some(section.reader.string()?),
            id::WILDCARD_SUBSCRIPTION_AVAILABLE => {
                self.wildcard_subscription_available = section.boolean()?;
            }
            id::SUBSCRIPTION_IDENTIFIER_AVAILABLE => {
                self.subscription_ids_available = section.boolean()?;
            }
            id::SHARED_SUBSCRIPTION_AVAILABLE => {
                self.shared_subscription_available = section.boolean()?;
            }
            id::SERVER_KEEP_ALIVE => self.server_keep_alive = Some(section.reader.u16()?),
            id::RESPONSE_INFORMATION => {
                self.response_information = Some(section.reader.string()?);
            }
            id::SERVER_REFERENCE => self.server_reference = Some(section.reader.string()?),
            id::AUTHENTICATION_METHOD => {
                self.authentication_method = Some(section.reader.string()?);
            }
            _ => self.authentication_data = Some(section.reader.binary()?),
        }
        Ok(())
    }
}

impl Encode for ConnAckProperties<'_> {
    fn put<S: Sink>(&self, out: &mut S) {
        put_u32(out, id::SESSION_EXPIRY_INTERVAL, self.session_expiry_interval);
        put_u16(out, id::RECEIVE_MAXIMUM, self.receive_maximum);
        match self.maximum_qos {
            // The value 2 does not exist (3.2.2.3.4).
            None | Some(QoS::ExactlyOnce) => {}
            Some(qos) => out.bytes(&[id::MAXIMUM_QOS, qos as u8]),
        }
        put_bool(out, id::RETAIN_AVAILABLE, self.retain_available);
        put_u32(out, id::MAXIMUM_PACKET_SIZE, self.maximum_packet_size);
        put_string(out, id::ASSIGNED_CLIENT_IDENTIFIER, self.assigned_client_id);
        put_u16(out, id::TOPIC_ALIAS_MAXIMUM, self.topic_alias_maximum);
        put_string(out, id::REASON_STRING, self.reason_string);
        self.user_properties.put(out);
        put_bool(out, id::WILDCARD_SUBSCRIPTION_AVAILABLE, self.wildcard_subscription_available);
        put_bool(out, id::SUBSCRIPTION_IDENTIFIER_AVAILABLE, self.subscription_ids_available);
        put_bool(out, id::SHARED_SUBSCRIPTION_AVAILABLE, self.shared_subscription_available);
        put_u16(out, id::SERVER_KEEP_ALIVE, self.server_keep_alive);
        put_string(out, id::RESPONSE_INFORMATION, self.response_information);
        put_string(out, id::SERVER_REFERENCE, self.server_reference);
        put_string(out, id::AUTHENTICATION_METHOD, self.authentication_method);
        put_binary(out, id::AUTHENTICATION_DATA, self.authentication_data);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{accepted, bad, good, written};
    use super::super::{Packet, Side};
    use super::*;

    fn connack(session_present: bool, reason: ReasonCode) -> ConnAck<'static> {
        ConnAck { session_present, reason, properties: ConnAckProperties::default() }
    }

    #[test]
    fn connack_before_5() {
        let new = connack(false, ReasonCode::SUCCESS);
        for version in [Version::V31, Version::V311] {
            good(version, Side::Client, 0x20, "0000", Packet::ConnAck(new));
            let refused = connack(false, ReasonCode::NOT_AUTHORIZED);
            good(version, Side::Client, 0x20, "0005", Packet::ConnAck(refused));
            let banned = Packet::ConnAck(connack(true, ReasonCode::BANNED));
            written(version, banned, 0x20, "0005");
            bad(version, Side::Client, 0x20, "0006", Cause::ReasonCode);
            bad(version, Side::Client, 0x20, "0000 00", Cause::TrailingBytes);
            bad(version, Side::Client, 0x20, "00", Cause::Truncated);
        }
        let present = Packet::ConnAck(connack(true, ReasonCode::SUCCESS));
        good(Version::V311, Side::Client, 0x20, "0100", present);
        // [MQTT-3.2.2-4 of 3.1.1]
        bad(Version::V311, Side::Client, 0x20, "0101", Cause::SessionPresent);
        bad(Version::V311, Side::Client, 0x20, "0200", Cause::ConnAckFlags);
        // 3.1 has no such flag.
        accepted(Version::V31, Side::Client, 0x20, "FF00", Packet::ConnAck(new));
        written(Version::V31, present, 0x20, "0000");
    }

    #[test]
    fn connack_of_5() {
        let five = |body, expected| {
            good(Version::V5, Side::Client, 0x20, body, Packet::ConnAck(expected));
        };
        five("00 00 00", connack(false, ReasonCode::SUCCESS));
        five("01 00 00", connack(true, ReasonCode::SUCCESS));
        five("00 8C 00", connack(false, ReasonCode::BAD_AUTHENTICATION_METHOD));
        let pairs = [("k", "v")];
        let properties = ConnAckProperties {
            session_expiry_interval: Some(1),
            receive_maximum: Some(2),
            maximum_qos: Some(QoS::AtLeastOnce),
            retain_available: Some(false),
            maximum_packet_size: Some(3),
            assigned_client_id: Some("i"),
            topic_alias_maximum: Some(4),
            reason_string: Some("r"),
            user_properties: UserProperties::new(&pairs),
            wildcard_subscription_available: Some(true),
            subscription_ids_available: Some(false),
            shared_subscription_available: Some(true),
            server_keep_alive: Some(5),
            response_information: Some("p"),
            server_reference: Some("s"),
            authentication_method: Some("M"),
            authentication_data: Some(&[6]),
        };
        let body = "00 00 [ 1100000001 210002 2401 2500 2700000003 12 'i' 220004 1F 'r' \
                    26 'k' 'v' 2801 2900 2A01 130005 1A 'p' 1C 's' 15 'M' 16 0001 06 ]";
        five(body, ConnAck { properties, ..connack(false, ReasonCode::SUCCESS) });
        // PITFALLS B20: there is no Maximum QoS 2.
        let two = ConnAckProperties { maximum_qos: Some(QoS::ExactlyOnce), ..Default::default() };
        let two = ConnAck { properties: two, ..connack(false, ReasonCode::SUCCESS) };
        written(Version::V5, Packet::ConnAck(two), 0x20, "00 00 00");
        // PITFALLS B18, [MQTT-3.2.2-6]
        let refusal = Packet::ConnAck(connack(true, ReasonCode::SERVER_BUSY));
        written(Version::V5, refusal, 0x20, "00 89 00");
        // A server of 3.1.1 answers in its own words.
        let old = Packet::ConnAck(connack(false, ReasonCode::UNSUPPORTED_PROTOCOL_VERSION));
        accepted(Version::V5, Side::Client, 0x20, "00 01", old);
    }

    #[test]
    fn refused_connacks() {
        let bad = |body, cause| bad(Version::V5, Side::Client, 0x20, body, cause).reason.0;
        assert_eq!(bad("00 00", Cause::Truncated), 0x81);
        assert_eq!(bad("00 84", Cause::Truncated), 0x81);
        assert_eq!(bad("02 00 00", Cause::ConnAckFlags), 0x81);
        assert_eq!(bad("01 89 00", Cause::SessionPresent), 0x82);
        // [MQTT-3.2.2-8]
        assert_eq!(bad("00 8B 00", Cause::ReasonCode), 0x82);
        assert_eq!(bad("00 01 00", Cause::ReasonCode), 0x82);
        assert_eq!(bad("00 00 02 2402", Cause::PropertyValue), 0x82);
        assert_eq!(bad("00 00 02 2502", Cause::PropertyValue), 0x82);
        assert_eq!(bad("00 00 03 210000", Cause::PropertyValue), 0x82);
        assert_eq!(bad("00 00 05 2700000000", Cause::PropertyValue), 0x82);
        assert_eq!(bad("00 00 06 130001 130001", Cause::PropertyRepeated), 0x82);
        assert_eq!(bad("00 00 02 1701", Cause::PropertyNotAllowed), 0x81);
        assert_eq!(bad("00 00 04 16 0001 06", Cause::AuthenticationData), 0x82);
        assert_eq!(bad("00 00 00 00", Cause::TrailingBytes), 0x81);
        super::super::tests::bad(Version::V5, Side::Server, 0x20, "00 00 00", Cause::Direction);
    }
}
