//! CONNECT (3.1).
#![forbid(unsafe_code)]

use super::error::Cause;
use super::properties::{
    Section, UserProperties, id, put_binary, put_bool, put_string, put_u16, put_u32, set,
};
use super::publish::{PublishProperties, WillProperties};
use super::wire::{Encode, Reader, Sink};
use super::{QoS, Version, topic};

const CONNECT_ALLOWED: u64 = set(&[
    id::SESSION_EXPIRY_INTERVAL,
    id::RECEIVE_MAXIMUM,
    id::MAXIMUM_PACKET_SIZE,
    id::TOPIC_ALIAS_MAXIMUM,
    id::REQUEST_RESPONSE_INFORMATION,
    id::REQUEST_PROBLEM_INFORMATION,
    id::USER_PROPERTY,
    id::AUTHENTICATION_METHOD,
    id::AUTHENTICATION_DATA,
]);

/// Bit of the protocol level by which a bridge makes itself known to some servers.
const BRIDGE: u8 = 0x80;

const USER_NAME: u8 = 0x80;
const PASSWORD: u8 = 0x40;
const WILL_RETAIN: u8 = 0x20;
const WILL_QOS: u8 = 0x18;
const WILL: u8 = 0x04;
const CLEAN_START: u8 = 0x02;
const RESERVED: u8 = 0x01;

/// A client introduces itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect<'a> {
    /// The version that the whole connection speaks.
    pub version: Version,
    /// The protocol level has bit 0x80 set, as bridges do before MQTT 5.0; whether that is welcome
    /// is a question of configuration.
    pub bridge: bool,
    /// Called Clean Session before MQTT 5.0.
    pub clean_start: bool,
    /// Seconds; 0 turns it off.
    pub keep_alive: u16,
    /// May be empty; what that means depends on the version and is not judged here.
    pub client_id: &'a str,
    /// Empty is not the same as absent.
    pub user_name: Option<&'a str>,
    /// Bytes, in MQTT 3.1 too.
    pub password: Option<&'a [u8]>,
    /// What to publish when the connection ends badly.
    pub will: Option<Will<'a>>,
    /// Default before MQTT 5.0.
    pub properties: ConnectProperties<'a>,
}

/// Properties of a CONNECT (3.1.2.11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectProperties<'a> {
    /// Seconds that the session outlives the connection; `u32::MAX` is for ever.
    pub session_expiry_interval: Option<u32>,
    /// Not zero; absent means 65,535.
    pub receive_maximum: Option<u16>,
    /// Bytes, not zero; absent means no limit.
    pub maximum_packet_size: Option<u32>,
    /// Absent means 0.
    pub topic_alias_maximum: Option<u16>,
    /// Absent means no.
    pub request_response_information: Option<bool>,
    /// Absent means yes.
    pub request_problem_information: Option<bool>,
    /// Anything else.
    pub user_properties: UserProperties<'a>,
    /// Begins an extended authentication.
    pub authentication_method: Option<&'a str>,
    /// Only with a method.
    pub authentication_data: Option<&'a [u8]>,
}

/// A message left with the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Will<'a> {
    /// Without wildcards, not empty.
    pub topic: &'a str,
    /// The message.
    pub payload: &'a [u8],
    /// To publish it with.
    pub qos: QoS,
    /// To publish it with.
    pub retain: bool,
    /// Seconds between the end of the connection and the message.
    pub delay_interval: u32,
    /// Of the message; never an alias or Subscription Identifiers.
    pub properties: PublishProperties<'a>,
}

/// Protocol name and level. The second is the version to answer in when the first is an error.
fn read_version(packet: &mut Reader<'_>) -> Result<(Version, bool), (Cause, Option<Version>)> {
    let name = packet.binary().map_err(|cause| (cause, None))?;
    if name != b"MQTT" && name != b"MQIsdp" {
        return Err((Cause::ProtocolName, None));
    }
    let level = packet.u8().map_err(|cause| (cause, None))?;
    match (name, level & !BRIDGE) {
        (b"MQIsdp", 3) => Ok((Version::V31, level & BRIDGE != 0)),
        (b"MQTT", 4) => Ok((Version::V311, level & BRIDGE != 0)),
        (b"MQTT", 5) if level & BRIDGE == 0 => Ok((Version::V5, false)),
        (b"MQIsdp", _) => Err((Cause::ProtocolVersion, Some(Version::V31))),
        (_, 0..=4) => Err((Cause::ProtocolVersion, Some(Version::V311))),
        _ => Err((Cause::ProtocolVersion, Some(Version::V5))),
    }
}

/// The version of a CONNECT of which only the first bytes are there, with its fixed header; `None`
/// when they do not say it yet, or name none that we speak.
pub fn version_of_connect(begin: &[u8]) -> Option<Version> {
    let fixed = begin.iter().skip(1).take(4).position(|byte| byte & 0x80 == 0)? + 2;
    read_version(&mut Reader::new(begin.get(fixed..)?)).ok().map(|(version, _)| version)
}

impl<'a> Connect<'a> {
    /// One with Clean Start, without Keep Alive and all that may be left out.
    pub fn new(version: Version, client_id: &'a str) -> Self {
        Self {
            version,
            bridge: false,
            clean_start: true,
            keep_alive: 0,
            client_id,
            user_name: None,
            password: None,
            will: None,
            properties: ConnectProperties::default(),
        }
    }

    pub(super) fn read(packet: &mut Reader<'a>) -> Result<Self, (Cause, Option<Version>)> {
        let (version, bridge) = read_version(packet)?;
        Self::read_rest(packet, version, bridge).map_err(|cause| (cause, Some(version)))
    }

    fn read_rest(packet: &mut Reader<'a>, version: Version, bridge: bool) -> Result<Self, Cause> {
        let flags = packet.u8()?;
        check_flags(flags, version)?;
        let keep_alive = packet.u16()?;
        let properties = if version == Version::V5 {
            ConnectProperties::read(packet)?
        } else {
            ConnectProperties::default()
        };
        let client_id = packet.string()?;
        let will = if flags & WILL == 0 { None } else { Some(Will::read(flags, packet, version)?) };
        // In 3.1 the remaining length takes precedence over both flags (its section 3.1).
        let missing = |packet: &Reader<'_>| version == Version::V31 && packet.is_empty();
        let user_name =
            if flags & USER_NAME == 0 || missing(packet) { None } else { Some(packet.string()?) };
        let password =
            if flags & PASSWORD == 0 || missing(packet) { None } else { Some(packet.binary()?) };
        packet.finish()?;
        let clean_start = flags & CLEAN_START != 0;
        Ok(Self {
            version,
            bridge,
            clean_start,
            keep_alive,
            client_id,
            user_name,
            password,
            will,
            properties,
        })
    }

    fn flags(&self) -> u8 {
        let mut flags = 0;
        if self.user_name.is_some() {
            flags |= USER_NAME;
        }
        if self.password.is_some() {
            flags |= PASSWORD;
        }
        if self.clean_start {
            flags |= CLEAN_START;
        }
        if let Some(will) = &self.will {
            flags |= WILL | (will.qos as u8) << 3;
            if will.retain {
                flags |= WILL_RETAIN;
            }
        }
        flags
    }

    /// Its own version counts.
    pub(super) fn put<S: Sink>(&self, out: &mut S) {
        let name = if self.version == Version::V31 { "MQIsdp" } else { "MQTT" };
        out.string(name);
        let bridge = self.bridge && self.version != Version::V5;
        out.u8(self.version as u8 | if bridge { BRIDGE } else { 0 });
        out.u8(self.flags());
        out.u16(self.keep_alive);
        if self.version == Version::V5 {
            self.properties.put_with_len(out);
        }
        out.string(self.client_id);
        if let Some(will) = &self.will {
            if self.version == Version::V5 {
                let properties = &will.properties;
                WillProperties { delay_interval: will.delay_interval, properties }
                    .put_with_len(out);
            }
            out.string(will.topic);
            out.binary(will.payload);
        }
        if let Some(user_name) = self.user_name {
            out.string(user_name);
        }
        if let Some(password) = self.password {
            out.binary(password);
        }
    }
}

fn check_flags(flags: u8, version: Version) -> Result<(), Cause> {
    if flags & WILL != 0 && flags & WILL_QOS == WILL_QOS {
        return Err(Cause::WillQos);
    }
    if version == Version::V31 {
        // 3.1 disregards a flag whose field is not there; only this is not valid (its section 3.1).
        if flags & PASSWORD != 0 && flags & USER_NAME == 0 {
            return Err(Cause::PasswordWithoutUserName);
        }
        return Ok(());
    }
    if flags & RESERVED != 0 {
        return Err(Cause::ConnectFlags);
    }
    if flags & WILL == 0 && flags & (WILL_QOS | WILL_RETAIN) != 0 {
        return Err(Cause::WillFlags);
    }
    if version == Version::V311 && flags & PASSWORD != 0 && flags & USER_NAME == 0 {
        return Err(Cause::PasswordWithoutUserName);
    }
    Ok(())
}

impl<'a> ConnectProperties<'a> {
    fn read(packet: &mut Reader<'a>) -> Result<Self, Cause> {
        let mut section = Section::take(packet, CONNECT_ALLOWED)?;
        let mut properties = Self::default();
        while let Some(found) = section.next()? {
            match found {
                id::SESSION_EXPIRY_INTERVAL => {
                    properties.session_expiry_interval = Some(section.reader.u32()?);
                }
                id::RECEIVE_MAXIMUM => properties.receive_maximum = section.non_zero_u16()?,
                id::MAXIMUM_PACKET_SIZE => {
                    properties.maximum_packet_size = section.non_zero_u32()?;
                }
                id::TOPIC_ALIAS_MAXIMUM => {
                    properties.topic_alias_maximum = Some(section.reader.u16()?);
                }
                id::REQUEST_RESPONSE_INFORMATION => {
                    properties.request_response_information = section.boolean()?;
                }
                id::REQUEST_PROBLEM_INFORMATION => {
                    properties.request_problem_information = section.boolean()?;
                }
                id::AUTHENTICATION_METHOD => {
                    properties.authentication_method = Some(section.reader.string()?);
                }
                _ => properties.authentication_data = Some(section.reader.binary()?),
            }
        }
        if properties.authentication_data.is_some() && properties.authentication_method.is_none() {
            return Err(Cause::AuthenticationData);
        }
        properties.user_properties = section.user_properties();
        Ok(properties)
    }
}

impl Encode for ConnectProperties<'_> {
    fn put<S: Sink>(&self, out: &mut S) {
        put_u32(out, id::SESSION_EXPIRY_INTERVAL, self.session_expiry_interval);
        put_u16(out, id::RECEIVE_MAXIMUM, self.receive_maximum);
        put_u32(out, id::MAXIMUM_PACKET_SIZE, self.maximum_packet_size);
        put_u16(out, id::TOPIC_ALIAS_MAXIMUM, self.topic_alias_maximum);
        put_bool(out, id::REQUEST_RESPONSE_INFORMATION, self.request_response_information);
        put_bool(out, id::REQUEST_PROBLEM_INFORMATION, self.request_problem_information);
        self.user_properties.put(out);
        put_string(out, id::AUTHENTICATION_METHOD, self.authentication_method);
        put_binary(out, id::AUTHENTICATION_DATA, self.authentication_data);
    }
}

impl<'a> Will<'a> {
    fn read(flags: u8, packet: &mut Reader<'a>, version: Version) -> Result<Self, Cause> {
        let (properties, delay_interval) = if version == Version::V5 {
            PublishProperties::read_will(packet)?
        } else {
            (PublishProperties::default(), 0)
        };
        let topic = topic::read_name(packet, "")?;
        if topic.is_empty() {
            return Err(Cause::TopicEmpty);
        }
        let payload = packet.binary()?;
        let qos = QoS::from_bits((flags & WILL_QOS) >> 3).ok_or(Cause::WillQos)?;
        let retain = flags & WILL_RETAIN != 0;
        Ok(Self { topic, payload, qos, retain, delay_interval, properties })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{accepted, bad, good, written};
    use super::super::{Packet, ReasonCode, Side};
    use super::*;

    fn connect(version: Version) -> Connect<'static> {
        Connect {
            version,
            bridge: false,
            clean_start: true,
            keep_alive: 60,
            client_id: "id",
            user_name: None,
            password: None,
            will: None,
            properties: ConnectProperties::default(),
        }
    }

    const WILL: Will<'static> = Will {
        topic: "w",
        payload: &[1],
        qos: QoS::AtMostOnce,
        retain: false,
        delay_interval: 0,
        properties: PublishProperties {
            payload_format: None,
            message_expiry_interval: None,
            topic_alias: None,
            response_topic: None,
            correlation_data: None,
            content_type: None,
            user_properties: UserProperties::EMPTY,
            subscription_ids: super::super::SubscriptionIds::EMPTY,
            verbatim: super::super::Verbatim::NONE,
        },
    };

    #[track_caller]
    fn good_connect(body: &str, expected: Connect<'_>) {
        good(expected.version, Side::Server, 0x10, body, Packet::Connect(expected));
    }

    #[track_caller]
    fn bad_connect(body: &str, cause: Cause) -> Option<Version> {
        bad(None, Side::Server, 0x10, body, cause).version
    }

    #[test]
    fn in_all_versions() {
        good_connect("'MQIsdp' 03 02 003C 'id'", connect(Version::V31));
        good_connect("'MQTT' 04 02 003C 'id'", connect(Version::V311));
        good_connect("'MQTT' 05 02 003C 00 'id'", connect(Version::V5));
        // Empty is there, and none of the codec's business (PITFALLS B16, B17).
        let empty = Connect { client_id: "", ..connect(Version::V311) };
        let empty = Connect { user_name: Some(""), password: Some(b""), ..empty };
        good_connect("'MQTT' 04 C2 003C '' '' ''", empty);
        let will = Will { qos: QoS::ExactlyOnce, retain: true, ..WILL };
        let all = Connect {
            clean_start: false,
            keep_alive: 0xFFFF,
            user_name: Some("u"),
            password: Some(&[0, 0xFF]),
            will: Some(will),
            ..connect(Version::V311)
        };
        good_connect("'MQTT' 04 F4 FFFF 'id' 'w' 0001 01 'u' 0002 00FF", all);
        let all = Connect { version: Version::V31, ..all };
        good_connect("'MQIsdp' 03 F4 FFFF 'id' 'w' 0001 01 'u' 0002 00FF", all);
        let password = Connect { password: Some(b"p"), ..connect(Version::V5) };
        good_connect("'MQTT' 05 42 003C 00 'id' 'p'", password);
    }

    /// `[MQTT-3.1.2-1]`, `[MQTT-3.1.2-2]`; PITFALLS B13.
    #[test]
    fn names_and_levels() {
        for (body, answer) in [
            ("'MQTT' 03 02 003C 'id'", Some(Version::V311)),
            ("'MQTT' 00", Some(Version::V311)),
            ("'MQTT' 06 02 003C 00 'id'", Some(Version::V5)),
            ("'MQTT' 7F", Some(Version::V5)),
            ("'MQTT' 85 02 003C 00 'id'", Some(Version::V5)),
            ("'MQTT' FF", Some(Version::V5)),
            ("'MQIsdp' 04 02 003C 'id'", Some(Version::V31)),
            ("'MQIsdp' 05", Some(Version::V31)),
        ] {
            assert_eq!(bad_connect(body, Cause::ProtocolVersion), answer, "{body}");
        }
        for body in ["'mqtt' 04 02 003C 'id'", "'' 04", "'MQTTX' 05", "'MQTs' 04"] {
            assert_eq!(bad_connect(body, Cause::ProtocolName), None, "{body}");
        }
        let error = bad(None, Side::Server, 0x10, "'MQTT' 06", Cause::ProtocolVersion);
        assert_eq!(error.reason, ReasonCode::UNSUPPORTED_PROTOCOL_VERSION);
        assert_eq!(error.reason.connack_v3(), 1);
        let bridge = Connect { bridge: true, ..connect(Version::V311) };
        good_connect("'MQTT' 84 02 003C 'id'", bridge);
        good_connect("'MQIsdp' 83 02 003C 'id'", Connect { version: Version::V31, ..bridge });
    }

    /// PITFALLS A5, A6.
    #[test]
    fn cut_and_trailing() {
        for body in ["", "0004 4D51", "'MQTT'"] {
            assert_eq!(bad_connect(body, Cause::Truncated), None, "{body}");
        }
        for body in [
            "'MQTT' 04",
            "'MQTT' 04 02 00",
            "'MQTT' 04 02 003C",
            "'MQTT' 04 02 003C 00",
            "'MQTT' 04 82 003C 'id'",
            "'MQTT' 04 C2 003C 'id' 'u'",
            "'MQTT' 04 06 003C 'id'",
            "'MQTT' 04 06 003C 'id' 'w'",
            "'MQTT' 04 06 003C 'id' 'w' 0002 01",
        ] {
            assert_eq!(bad_connect(body, Cause::Truncated), Some(Version::V311), "{body}");
        }
        bad_connect("'MQTT' 04 02 003C 'id' 00", Cause::TrailingBytes);
        bad_connect("'MQTT' 05 02 003C 00 'id' 'u'", Cause::TrailingBytes);
        bad_connect("'MQTT' 04 02 003C 0001 FF", Cause::Utf8);
        bad_connect("'MQTT' 04 02 003C 0002 6100", Cause::NullCharacter);
        bad_connect("'MQTT' 04 82 003C 'id' 0001 FF", Cause::Utf8);
        bad_connect("'MQTT' 04 06 003C 'id' 0001 FF ''", Cause::Utf8);
    }

    /// `[MQTT-3.1.2-3]`, `[MQTT-3.1.2-11]` to `[MQTT-3.1.2-13]`; PITFALLS B14 to B16.
    #[test]
    fn flags() {
        for (version, level, properties) in
            [(Version::V311, "'MQTT' 04", ""), (Version::V5, "'MQTT' 05", "00")]
        {
            let bad = |flags, cause| {
                let body = format!("{level} {flags} 003C {properties} 'id'");
                assert_eq!(bad_connect(&body, cause), Some(version), "{body}");
                cause.reason().0
            };
            assert_eq!(bad("03", Cause::ConnectFlags), 0x81);
            assert_eq!(bad("0A", Cause::WillFlags), 0x82);
            assert_eq!(bad("12", Cause::WillFlags), 0x82);
            assert_eq!(bad("1A", Cause::WillFlags), 0x82);
            assert_eq!(bad("22", Cause::WillFlags), 0x82);
            assert_eq!(bad("1E", Cause::WillQos), 0x81);
        }
        // [MQTT-3.1.2-22 of 3.1.1]; 5.0 allows it.
        bad_connect("'MQTT' 04 42 003C 'id' 'p'", Cause::PasswordWithoutUserName);
        bad_connect("'MQIsdp' 03 42 003C 'id' 'p'", Cause::PasswordWithoutUserName);
        // The fixed header's flags.
        let body = "'MQTT' 04 02 003C 'id'";
        bad(None, Side::Server, 0x11, body, Cause::FixedHeaderFlags);
        bad(None, Side::Server, 0x18, "'MQTT' 05 02 003C 00 'id'", Cause::FixedHeaderFlags);
    }

    /// Section 3.1 of MQTT 3.1: the remaining length takes precedence, unused bits are not used.
    #[test]
    fn leniency_of_31() {
        let packet = Packet::Connect(connect(Version::V31));
        let accept = |first, body| accepted(Version::V31, Side::Server, first, body, packet);
        accept(0x10, "'MQIsdp' 03 82 003C 'id'");
        accept(0x10, "'MQIsdp' 03 C2 003C 'id'");
        accept(0x10, "'MQIsdp' 03 3B 003C 'id'");
        accept(0x1B, "'MQIsdp' 03 02 003C 'id'");
        let named = Packet::Connect(Connect { user_name: Some("u"), ..connect(Version::V31) });
        accepted(Version::V31, Side::Server, 0x10, "'MQIsdp' 03 C2 003C 'id' 'u'", named);
        bad_connect("'MQIsdp' 03 1E 003C 'id' 'w' ''", Cause::WillQos);
        bad_connect("'MQIsdp' 03 02 003C 'id' 'u'", Cause::TrailingBytes);
    }

    #[test]
    fn properties() {
        let pairs = [("k", "v")];
        let properties = ConnectProperties {
            session_expiry_interval: Some(u32::MAX),
            receive_maximum: Some(1),
            maximum_packet_size: Some(1),
            topic_alias_maximum: Some(0),
            request_response_information: Some(true),
            request_problem_information: Some(false),
            user_properties: UserProperties::new(&pairs),
            authentication_method: Some("M"),
            authentication_data: Some(&[7]),
        };
        let body = "'MQTT' 05 02 003C [ 11FFFFFFFF 210001 2700000001 220000 1901 1700 26 'k' 'v' \
                    15 'M' 16 0001 07 ] 'id'";
        good_connect(body, Connect { properties, ..connect(Version::V5) });
        let bad = |properties: &str, cause| {
            let body = format!("'MQTT' 05 02 003C {properties} 'id'");
            assert_eq!(bad_connect(&body, cause), Some(Version::V5));
            cause.reason().0
        };
        assert_eq!(bad("03 210000", Cause::PropertyValue), 0x82);
        assert_eq!(bad("05 2700000000", Cause::PropertyValue), 0x82);
        assert_eq!(bad("02 1902", Cause::PropertyValue), 0x82);
        assert_eq!(bad("02 17FF", Cause::PropertyValue), 0x82);
        assert_eq!(bad("04 1700 1700", Cause::PropertyRepeated), 0x82);
        assert_eq!(bad("0A 1100000000 1100000000", Cause::PropertyRepeated), 0x82);
        assert_eq!(bad("04 16 0001 07", Cause::AuthenticationData), 0x82);
        assert_eq!(bad("02 2401", Cause::PropertyNotAllowed), 0x81);
        assert_eq!(bad("05 1800000001", Cause::PropertyNotAllowed), 0x81);
        assert_eq!(bad("03 1F ''", Cause::PropertyNotAllowed), 0x81);
        assert_eq!(bad("7F", Cause::Truncated), 0x81);
    }

    #[test]
    fn will() {
        let pairs = [("k", "v")];
        let will = Will {
            qos: QoS::AtLeastOnce,
            delay_interval: 5,
            properties: PublishProperties {
                payload_format: Some(true),
                message_expiry_interval: Some(9),
                content_type: Some("c"),
                response_topic: Some("r"),
                correlation_data: Some(&[1]),
                user_properties: UserProperties::new(&pairs),
                ..WILL.properties
            },
            ..WILL
        };
        let body = "'MQTT' 05 0E 003C 00 'id' [ 1800000005 0200000009 0101 03 'c' 08 'r' \
                    09 0001 01 26 'k' 'v' ] 'w' 0001 01";
        good_connect(body, Connect { will: Some(will), ..connect(Version::V5) });
        // Versions without properties drop them.
        let packet = Packet::Connect(Connect { will: Some(will), ..connect(Version::V311) });
        written(Version::V311, packet, 0x10, "'MQTT' 04 0E 003C 'id' 'w' 0001 01");
        let bad = |will: &str, cause| {
            bad_connect(&format!("'MQTT' 05 06 003C 00 'id' {will}"), cause);
            cause.reason().0
        };
        assert_eq!(bad("00 '' ''", Cause::TopicEmpty), 0x82);
        assert_eq!(bad("00 'w/#' ''", Cause::TopicWildcard), 0x82);
        assert_eq!(bad("03 230001 'w' ''", Cause::PropertyNotAllowed), 0x81);
        assert_eq!(bad("02 0B01 'w' ''", Cause::PropertyNotAllowed), 0x81);
        assert_eq!(bad("02 0102 'w' ''", Cause::PropertyValue), 0x82);
        assert_eq!(bad("04 08 '#' 'w' ''", Cause::ResponseTopic), 0x82);
        assert_eq!(bad("0A 1800000001 1800000001 'w' ''", Cause::PropertyRepeated), 0x82);
        assert_eq!(
            bad_connect("'MQTT' 04 06 003C 'id' '+' ''", Cause::TopicWildcard),
            Some(Version::V311)
        );
    }
}
