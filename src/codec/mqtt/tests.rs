//! What the tables of hex at the foot of each file are written with, and the properties that hold
//! for all packets: what is written is read, whatever is read does not panic, lengths are exact.
#![forbid(unsafe_code)]

use std::num::NonZeroU16;

use proptest::prelude::*;

use super::*;

pub(super) const ALL_VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];

/// A frame: the first byte, and a body of hex digits, strings in quotes, which get their length,
/// and sections in brackets, which get theirs. The remaining length is put between.
pub(super) fn frame(first: u8, body: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut outside = None;
    for token in body.split_ascii_whitespace() {
        match token {
            "[" => outside = Some(std::mem::take(&mut bytes)),
            "]" => {
                let section = std::mem::replace(&mut bytes, outside.take().expect("a bracket"));
                bytes.vbi(section.len());
                bytes.extend(section);
            }
            _ if token.starts_with('\'') => bytes.string(token.trim_matches('\'')),
            _ => {
                assert!(token.len() % 2 == 0, "{token}");
                for at in (0..token.len()).step_by(2) {
                    let byte = u8::from_str_radix(&token[at..at + 2], 16);
                    bytes.push(byte.expect("hex digits"));
                }
            }
        }
    }
    let mut frame = vec![first];
    frame.vbi(bytes.len());
    frame.extend_from_slice(&bytes);
    frame
}

fn before(packet: &Packet<'_>, version: Version) -> Option<Version> {
    if packet.kind() == PacketKind::Connect { None } else { Some(version) }
}

/// The frame is this packet, and this packet is written as this frame.
#[track_caller]
pub(super) fn good(version: Version, side: Side, first: u8, body: &str, expected: Packet<'_>) {
    accepted(version, side, first, body, expected);
    written(version, expected, first, body);
}

/// The frame is this packet, which would be written otherwise.
#[track_caller]
pub(super) fn accepted(version: Version, side: Side, first: u8, body: &str, expected: Packet<'_>) {
    let frame = frame(first, body);
    assert_eq!(frame_len(&frame), Ok(Some(frame.len())));
    assert_eq!(decode(&frame, before(&expected, version), side), Ok(expected), "{version}");
}

/// The packet is written as this frame.
#[track_caller]
pub(super) fn written(version: Version, packet: Packet<'_>, first: u8, body: &str) {
    let mut encoded = vec![0xEE];
    packet.encode(version, &mut encoded);
    assert_eq!(encoded[1..], frame(first, body), "{version}");
    assert_eq!(packet.encoded_len(version), encoded.len() - 1);
}

/// The frame is refused for this cause.
#[track_caller]
pub(super) fn bad(
    version: impl Into<Option<Version>>,
    side: Side,
    first: u8,
    body: &str,
    cause: Cause,
) -> DecodeError {
    let error = decode(&frame(first, body), version.into(), side).expect_err("to be refused");
    assert_eq!(error.cause, cause);
    assert_eq!(error.kind, PacketKind::of(first));
    assert_eq!(error.reason, cause.reason());
    error
}

pub(super) fn packet_id(value: u16) -> PacketId {
    PacketId::new(value).expect("not zero")
}

#[test]
fn pings() {
    for version in ALL_VERSIONS {
        good(version, Side::Server, 0xC0, "", Packet::PingReq);
        good(version, Side::Client, 0xD0, "", Packet::PingResp);
        bad(version, Side::Server, 0xC0, "00", Cause::TrailingBytes);
        bad(version, Side::Client, 0xC0, "", Cause::Direction);
        bad(version, Side::Server, 0xD0, "", Cause::Direction);
    }
    bad(Version::V5, Side::Server, 0xC1, "", Cause::FixedHeaderFlags);
    accepted(Version::V31, Side::Server, 0xCB, "", Packet::PingReq);
}

/// PITFALLS A1 to A3: `[MQTT-3.1.0-1]`, `[MQTT-3.1.0-2]`, `[MQTT-2.1.3-1]`, reserved types.
#[test]
fn types_and_flags() {
    for first in (0..=0xFF_u8).filter(|first| first >> 4 != 1) {
        bad(None, Side::Server, first, "", Cause::ConnectExpected);
    }
    let connect = "'MQTT' 04 02 003C 'id'";
    for version in ALL_VERSIONS {
        let error = bad(version, Side::Server, 0x10, connect, Cause::SecondConnect);
        assert_eq!(error.version, Some(version));
        bad(version, Side::Client, 0x10, connect, Cause::Direction);
        let error = bad(version, Side::Server, 0x00, "", Cause::PacketType);
        assert_eq!(error.reason.0, 0x81);
    }
    bad(None, Side::Client, 0x10, connect, Cause::ConnectExpected);
    bad(Version::V311, Side::Server, 0xF0, "", Cause::PacketType);
    bad(Version::V31, Side::Client, 0xF0, "", Cause::PacketType);
    for kind in PacketKind::ALL {
        if matches!(kind, PacketKind::Reserved | PacketKind::Publish) {
            continue;
        }
        for flags in (0..16).filter(|&flags| flags != kind.flags()) {
            let first = (kind as u8) << 4 | flags;
            let error = bad(Version::V5, Side::Server, first, "0001", Cause::FixedHeaderFlags);
            assert_eq!(error.reason.0, 0x81, "[MQTT-3.6.1-1], [MQTT-3.14.1-1] and their like");
            if kind != PacketKind::Auth {
                bad(Version::V311, Side::Client, first, "0001", Cause::FixedHeaderFlags);
            }
        }
    }
}

/// PITFALLS A4, A12.
#[test]
fn frame_lengths() {
    assert_eq!(frame_len(&[]), Ok(None));
    assert_eq!(frame_len(&[0x30]), Ok(None));
    assert_eq!(frame_len(&[0x30, 0x80]), Ok(None));
    assert_eq!(frame_len(&[0x30, 0x80, 0x01]), Ok(Some(131)));
    assert_eq!(frame_len(&[0x30, 0xFF, 0xFF, 0xFF, 0x7F]), Ok(Some(5 + 268_435_455)));
    let error = frame_len(&[0x30, 0x80, 0x00]).expect_err("not minimal");
    assert_eq!(error.cause, Cause::VariableByteIntegerNotMinimal);
    assert_eq!((error.kind, error.reason.0), (PacketKind::Publish, 0x81));
    let error = frame_len(&[0x30, 0xFF, 0xFF, 0xFF, 0xFF]).expect_err("too long");
    assert_eq!(error.cause, Cause::VariableByteIntegerTooLong);
    // Whoever cuts frames wrongly gets an error, not a panic.
    for (bytes, cause) in [
        (&[][..], Cause::Truncated),
        (&[0xC0], Cause::Truncated),
        (&[0xC0, 0x01], Cause::Truncated),
        (&[0xC0, 0x00, 0x00], Cause::TrailingBytes),
        (&[0xC0, 0x80, 0x00], Cause::VariableByteIntegerNotMinimal),
    ] {
        let error = decode(bytes, Some(Version::V5), Side::Server).expect_err("cut wrongly");
        assert_eq!(error.cause, cause);
    }
}

/// The rules that hold for every property section, shown on PUBACK (2.2.2).
#[test]
fn property_sections() {
    let bad = |body: &str, cause| bad(Version::V5, Side::Client, 0x40, body, cause).reason.0;
    assert_eq!(bad("0001 00 01", Cause::Truncated), 0x81);
    assert_eq!(bad("0001 00 00 00", Cause::TrailingBytes), 0x81);
    assert_eq!(bad("0001 00 8000", Cause::VariableByteIntegerNotMinimal), 0x81);
    assert_eq!(bad("0001 00 FFFFFFFF01", Cause::VariableByteIntegerTooLong), 0x81);
    assert_eq!(bad("0001 00 01 00", Cause::PropertyUnknown), 0x81);
    assert_eq!(bad("0001 00 02 7F00", Cause::PropertyUnknown), 0x81);
    assert_eq!(bad("0001 00 03 9F0000", Cause::PropertyUnknown), 0x81);
    assert_eq!(bad("0001 00 02 0101", Cause::PropertyNotAllowed), 0x81);
    assert_eq!(bad("0001 00 06 1F0000 1F0000", Cause::PropertyRepeated), 0x82);
    assert_eq!(bad("0001 00 03 1F0001", Cause::Truncated), 0x81);
    assert_eq!(bad("0001 00 01 1F", Cause::Truncated), 0x81);
    assert_eq!(bad("0001 00 04 1F 0001 FF", Cause::Utf8), 0x81);
    assert_eq!(bad("0001 00 03 26 0000", Cause::Truncated), 0x81);
    assert_eq!(bad("0001 00 06 26 0000 0001 FF", Cause::Utf8), 0x81);
    assert_eq!(bad("0001 00 06 26 0001 00 0000", Cause::NullCharacter), 0x81);
    // Each property that exists is refused where it does not belong, none is unknown.
    for known in 0..=0x2A {
        let body = frame(0x40, &format!("0001 00 01 {known:02X}"));
        let error = decode(&body, Some(Version::V5), Side::Client).expect_err("cut short at least");
        if matches!(known, properties::id::REASON_STRING | properties::id::USER_PROPERTY) {
            assert_eq!(error.cause, Cause::Truncated);
        } else {
            let refused = matches!(error.cause, Cause::PropertyUnknown | Cause::PropertyNotAllowed);
            assert!(refused, "{known}: {error}");
        }
    }
}

/// User Properties keep their order and their repetitions, whatever lies between them.
#[test]
fn user_properties() {
    let body = "0001 00 [ 26 'a' '1' 26 'b' '2' 1F 'why' 26 'a' '3' 26 '' '' ]";
    let pairs = [("a", "1"), ("b", "2"), ("a", "3"), ("", "")];
    let expected = Ack {
        reason_string: Some("why"),
        user_properties: UserProperties::new(&pairs),
        ..Ack::new(packet_id(1), ReasonCode::SUCCESS)
    };
    accepted(Version::V5, Side::Client, 0x40, body, Packet::PubAck(expected));
    let bytes = frame(0x40, body);
    let Ok(Packet::PubAck(ack)) = decode(&bytes, Some(Version::V5), Side::Client) else {
        panic!("a PUBACK")
    };
    let mut encoded = Vec::new();
    Packet::PubAck(ack).encode(Version::V5, &mut encoded);
    assert_eq!(
        encoded,
        frame(0x40, "0001 00 [ 1F 'why' 26 'a' '1' 26 'b' '2' 26 'a' '3' 26 '' '' ]")
    );
}

/// The seeds of the fuzz target are understood to their end, so that it starts from somewhere.
#[test]
fn seeds_of_the_fuzz_target() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/corpus/codec");
    let mut understood = 0;
    for entry in std::fs::read_dir(corpus).expect("the corpus") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let input = std::fs::read(&path).expect("a file");
        let (&choice, mut bytes) = input.split_first().expect("not empty");
        let mut version = [None, Some(Version::V31), Some(Version::V311), Some(Version::V5)]
            [usize::from(choice & 0b11)];
        let side = if choice & 0b100 == 0 { Side::Server } else { Side::Client };
        if !name.starts_with("client_") && !name.starts_with("server_") {
            continue;
        }
        while let Some(len) = frame_len(bytes).expect("a frame") {
            let (frame, rest) = bytes.split_at(len);
            match decode(frame, version, side) {
                Ok(Packet::Connect(connect)) => version = Some(connect.version),
                Ok(_) => {}
                Err(error) => panic!("{name}: {error}"),
            }
            bytes = rest;
        }
        assert!(bytes.is_empty(), "{name}");
        understood += 1;
    }
    assert_eq!(understood, 6);
}

/// What packets are made of: they borrow from it.
#[derive(Clone, Debug)]
struct Pool {
    strings: [String; 6],
    topics: [String; 2],
    blobs: [Vec<u8>; 2],
    pairs: Vec<(String, String)>,
    filters: Vec<(String, u8)>,
    ids: Vec<u32>,
    codes: Vec<u8>,
    numbers: [u32; 4],
    packet_id: u16,
    bits: u64,
}

fn pool() -> impl Strategy<Value = Pool> {
    let string = || "[^\\x00]{0,12}";
    let topic = || "[^\\x00+#]{1,12}";
    (
        prop::array::uniform6(string()),
        prop::array::uniform2(topic()),
        prop::array::uniform2(prop::collection::vec(any::<u8>(), 0..200)),
        prop::collection::vec((string(), string()), 0..4),
        prop::collection::vec((string(), 0..36_u8), 1..4),
        prop::collection::vec(1..=wire::VBI_MAX, 0..4),
        prop::collection::vec(0..=2_u8, 1..5),
        prop::array::uniform4(1..=u32::MAX),
        1..=u16::MAX,
        any::<u64>(),
    )
        .prop_map(
            |(strings, topics, blobs, pairs, filters, ids, codes, numbers, packet_id, bits)| Pool {
                strings,
                topics,
                blobs,
                pairs,
                filters,
                ids,
                codes,
                numbers,
                packet_id,
                bits,
            },
        )
}

/// The pool with its lists in the form that packets borrow, and a supply of decisions.
struct Source<'a> {
    pool: &'a Pool,
    pairs: Vec<(&'a str, &'a str)>,
    filters: Vec<SubscribeFilter<'a>>,
    names: Vec<&'a str>,
    version: Version,
}

impl<'a> Source<'a> {
    fn new(pool: &'a Pool, version: Version) -> Self {
        let line = |(filter, byte): &'a (String, u8)| {
            let byte = if version == Version::V5 { *byte } else { *byte & 0b11 };
            let options = SubscriptionOptions::from_byte(byte).unwrap_or_default();
            let no_local = options.no_local && !filter.starts_with("$share/");
            SubscribeFilter { filter, options: SubscriptionOptions { no_local, ..options } }
        };
        Self {
            pool,
            pairs: pool.pairs.iter().map(|(name, value)| (&name[..], &value[..])).collect(),
            filters: pool.filters.iter().map(line).collect(),
            names: pool.filters.iter().map(|(filter, _)| &filter[..]).collect(),
            version,
        }
    }

    fn bit(&self, index: u32) -> bool {
        self.pool.bits >> index & 1 != 0
    }

    /// Something that exists in MQTT 5.0 only, if the bit says so.
    fn new_in_5<T>(&self, index: u32, value: T) -> Option<T> {
        (self.version == Version::V5 && self.bit(index)).then_some(value)
    }

    fn string(&self, index: usize) -> &'a str {
        &self.pool.strings[index]
    }

    fn qos(&self, index: u32) -> QoS {
        QoS::from_bits((self.pool.bits >> index & 0b11) as u8).unwrap_or_default()
    }

    fn user_properties(&self) -> UserProperties<'_> {
        self.new_in_5(63, UserProperties::new(&self.pairs)).unwrap_or_default()
    }

    fn non_zero_u16(&self, index: usize) -> u16 {
        (self.pool.numbers[index] as u16).max(1)
    }

    fn publish_properties(&self, will: bool) -> PublishProperties<'_> {
        let alias = NonZeroU16::new(self.pool.packet_id);
        PublishProperties {
            payload_format: self.new_in_5(0, self.bit(1)),
            message_expiry_interval: self.new_in_5(2, self.pool.numbers[0]),
            topic_alias: if will { None } else { self.new_in_5(3, alias).flatten() },
            response_topic: self.new_in_5(4, &self.pool.topics[1]),
            correlation_data: self.new_in_5(5, &self.pool.blobs[1]),
            content_type: self.new_in_5(6, self.string(0)),
            user_properties: self.user_properties(),
            subscription_ids: if will || self.bit(7) || self.version != Version::V5 {
                SubscriptionIds::EMPTY
            } else {
                SubscriptionIds::new(&self.pool.ids)
            },
            verbatim: Verbatim::default(),
        }
    }

    fn publish(&self) -> Publish<'_> {
        let properties = self.publish_properties(false);
        let qos = self.qos(10);
        let aliased = properties.topic_alias.is_some() && self.bit(12);
        Publish {
            dup: self.bit(13) && qos > QoS::AtMostOnce,
            qos,
            retain: self.bit(14),
            topic: if aliased { "" } else { &self.pool.topics[0] },
            packet_id: (qos > QoS::AtMostOnce).then_some(packet_id(self.pool.packet_id)),
            properties,
            payload: &self.pool.blobs[0],
        }
    }

    fn connect(&self) -> Connect<'_> {
        let will = Will {
            topic: &self.pool.topics[0],
            payload: &self.pool.blobs[0],
            qos: self.qos(20),
            retain: self.bit(22),
            delay_interval: self.new_in_5(23, self.pool.numbers[1]).unwrap_or_default(),
            properties: self.publish_properties(true),
        };
        let user_name = self.bit(24);
        let method = self.new_in_5(30, self.string(4));
        let data = self.new_in_5(31, &self.pool.blobs[1][..]);
        Connect {
            version: self.version,
            bridge: self.bit(25) && self.version != Version::V5,
            clean_start: self.bit(26),
            keep_alive: self.pool.packet_id,
            client_id: self.string(1),
            user_name: user_name.then_some(self.string(2)),
            password: (self.bit(27) && (user_name || self.version == Version::V5))
                .then_some(self.string(3).as_bytes()),
            will: self.bit(28).then_some(will),
            properties: ConnectProperties {
                session_expiry_interval: self.new_in_5(32, self.pool.numbers[0]),
                receive_maximum: self.new_in_5(33, self.non_zero_u16(1)),
                maximum_packet_size: self.new_in_5(34, self.pool.numbers[2]),
                topic_alias_maximum: self.new_in_5(35, self.pool.packet_id),
                request_response_information: self.new_in_5(36, self.bit(37)),
                request_problem_information: self.new_in_5(38, self.bit(39)),
                user_properties: self.user_properties(),
                authentication_method: method,
                authentication_data: method.and(data),
            },
        }
    }

    fn connack(&self) -> ConnAck<'_> {
        let refused = ReasonCode::from_connack_v3(self.pool.codes[0]).expect("0 to 2");
        let reason = if self.bit(0) { ReasonCode::SUCCESS } else { refused };
        let method = self.new_in_5(30, self.string(4));
        let maximum_qos = self.new_in_5(19, QoS::AtLeastOnce);
        ConnAck {
            session_present: self.bit(1)
                && reason == ReasonCode::SUCCESS
                && self.version != Version::V31,
            reason,
            properties: ConnAckProperties {
                session_expiry_interval: self.new_in_5(2, self.pool.numbers[0]),
                receive_maximum: self.new_in_5(3, self.non_zero_u16(1)),
                maximum_qos: if self.bit(18) { maximum_qos } else { None },
                retain_available: self.new_in_5(4, self.bit(5)),
                maximum_packet_size: self.new_in_5(6, self.pool.numbers[2]),
                assigned_client_id: self.new_in_5(7, self.string(0)),
                topic_alias_maximum: self.new_in_5(8, self.pool.packet_id),
                reason_string: self.new_in_5(9, self.string(1)),
                user_properties: self.user_properties(),
                wildcard_subscription_available: self.new_in_5(10, self.bit(11)),
                subscription_ids_available: self.new_in_5(12, self.bit(13)),
                shared_subscription_available: self.new_in_5(14, self.bit(15)),
                server_keep_alive: self.new_in_5(16, self.pool.packet_id),
                response_information: self.new_in_5(17, self.string(2)),
                server_reference: self.new_in_5(20, self.string(3)),
                authentication_method: method,
                authentication_data: method.and(self.new_in_5(31, &self.pool.blobs[1])),
            },
        }
    }

    fn ack(&self, failure: ReasonCode) -> Ack<'_> {
        Ack {
            packet_id: packet_id(self.pool.packet_id),
            reason: self.new_in_5(0, failure).unwrap_or_default(),
            reason_string: self.new_in_5(1, self.string(0)),
            user_properties: self.user_properties(),
        }
    }

    fn suback(&self, codes: &'a [u8]) -> SubAck<'_> {
        SubAck {
            packet_id: packet_id(self.pool.packet_id),
            reason_string: self.new_in_5(1, self.string(0)),
            user_properties: self.user_properties(),
            codes,
        }
    }

    fn disconnect(&self, side: Side) -> Disconnect<'_> {
        let from_client = side == Side::Server;
        Disconnect {
            reason: self.new_in_5(0, ReasonCode::QUOTA_EXCEEDED).unwrap_or_default(),
            session_expiry_interval: self.new_in_5(1, self.pool.numbers[0]).filter(|_| from_client),
            reason_string: self.new_in_5(2, self.string(0)),
            server_reference: self.new_in_5(3, self.string(1)),
            user_properties: self.user_properties(),
        }
    }

    fn auth(&self) -> Auth<'_> {
        Auth {
            reason: ReasonCode::CONTINUE_AUTHENTICATION,
            authentication_method: Some(self.string(0)),
            authentication_data: self.new_in_5(1, &self.pool.blobs[0]),
            reason_string: self.new_in_5(2, self.string(1)),
            user_properties: self.user_properties(),
        }
    }

    /// One of each, with the side that reads it.
    fn packets(&self) -> Vec<(Packet<'_>, Side)> {
        let mut from_client = self.publish();
        from_client.properties.subscription_ids = SubscriptionIds::EMPTY;
        let from_server = self.publish();
        let five = self.version == Version::V5;
        let unsuback: &[u8] = if five { &[0x00, 0x11] } else { &[] };
        let subscribe = Subscribe {
            packet_id: packet_id(self.pool.packet_id),
            subscription_id: self.new_in_5(8, self.pool.numbers[3] % wire::VBI_MAX + 1),
            user_properties: self.user_properties(),
            filters: SubscribeFilters::new(&self.filters),
        };
        let unsubscribe = Unsubscribe {
            packet_id: packet_id(self.pool.packet_id),
            user_properties: self.user_properties(),
            filters: UnsubscribeFilters::new(&self.names),
        };
        let unknown = ReasonCode::PACKET_IDENTIFIER_NOT_FOUND;
        let mut packets = vec![
            (Packet::Connect(self.connect()), Side::Server),
            (Packet::ConnAck(self.connack()), Side::Client),
            (Packet::Publish(from_client), Side::Server),
            (Packet::Publish(from_server), Side::Client),
            (Packet::PubAck(self.ack(ReasonCode::NO_MATCHING_SUBSCRIBERS)), Side::Client),
            (Packet::PubRec(self.ack(ReasonCode::QUOTA_EXCEEDED)), Side::Server),
            (Packet::PubRel(self.ack(unknown)), Side::Server),
            (Packet::PubComp(self.ack(unknown)), Side::Client),
            (Packet::Subscribe(subscribe), Side::Server),
            (Packet::SubAck(self.suback(&self.pool.codes)), Side::Client),
            (Packet::Unsubscribe(unsubscribe), Side::Server),
            (Packet::UnsubAck(self.suback(unsuback)), Side::Client),
            (Packet::PingReq, Side::Server),
            (Packet::PingResp, Side::Client),
            (Packet::Disconnect(self.disconnect(Side::Server)), Side::Server),
        ];
        if five {
            packets.push((Packet::Disconnect(self.disconnect(Side::Client)), Side::Client));
            packets.push((Packet::Auth(self.auth()), Side::Server));
        }
        packets
    }
}

/// Reads it as everybody could and looks at all of it.
fn read_everyhow(frame: &[u8]) {
    let _ = frame_len(frame);
    for side in [Side::Server, Side::Client] {
        for version in [None, Some(Version::V31), Some(Version::V311), Some(Version::V5)] {
            if let Ok(packet) = decode(frame, version, side) {
                // Debug walks through every list.
                assert!(!format!("{packet:?}").is_empty());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn written_is_read(pool in pool()) {
        for version in ALL_VERSIONS {
            let source = Source::new(&pool, version);
            for (packet, side) in source.packets() {
                let mut encoded = vec![0xEE];
                packet.encode(version, &mut encoded);
                let encoded = &encoded[1..];
                prop_assert_eq!(packet.encoded_len(version), encoded.len());
                prop_assert_eq!(frame_len(encoded), Ok(Some(encoded.len())));
                let decoded = decode(encoded, before(&packet, version), side);
                prop_assert_eq!(decoded, Ok(packet), "{}", version);
                // What was decoded, not built, is written alike.
                let mut again = Vec::new();
                decoded.expect("equal").encode(version, &mut again);
                prop_assert_eq!(&again, encoded);
            }
        }
    }

    /// The length depends on the bytes, not on how many of the frame are there (PITFALLS A12).
    #[test]
    fn frame_len_of_a_split_frame(pool in pool(), cut in any::<prop::sample::Index>()) {
        let source = Source::new(&pool, Version::V5);
        for (packet, _) in source.packets() {
            let mut encoded = Vec::new();
            packet.encode(Version::V5, &mut encoded);
            let head = &encoded[..cut.index(encoded.len())];
            let len = frame_len(head).expect("a good frame");
            prop_assert!(len.is_none_or(|len| len == encoded.len()));
            prop_assert!(len.is_some() || head.len() < 5);
            encoded.extend_from_slice(b"the next frame");
            prop_assert_eq!(frame_len(&encoded), Ok(Some(encoded.len() - 14)));
        }
    }

    /// A cut frame whose header says that it is whole is refused, or is another packet, but does
    /// not panic; the same for changed bytes.
    #[test]
    fn damaged_frames(
        pool in pool(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        insert in any::<bool>(),
    ) {
        for version in ALL_VERSIONS {
            let source = Source::new(&pool, version);
            for (packet, _) in source.packets() {
                let mut encoded = Vec::new();
                packet.encode(version, &mut encoded);
                let at = at.index(encoded.len());
                let mut changed = encoded.clone();
                changed[at] = byte;
                read_everyhow(&changed);
                if insert {
                    changed.insert(at, byte);
                    read_everyhow(&changed);
                }
                let body = &encoded[1 + vbi_len(encoded.len() - 2)..];
                let mut cut = vec![encoded[0]];
                let len = at.min(body.len());
                cut.vbi(len);
                cut.extend_from_slice(&body[..len]);
                read_everyhow(&cut);
            }
        }
    }

    #[test]
    fn random_bytes(first in any::<u8>(), body in prop::collection::vec(any::<u8>(), 0..100)) {
        let mut frame = vec![first];
        frame.vbi(body.len());
        frame.extend_from_slice(&body);
        read_everyhow(&frame);
        read_everyhow(&body);
    }

    /// `Delivery` writes what `Publish` writes.
    #[test]
    fn delivery_is_a_publish(pool in pool()) {
        for version in ALL_VERSIONS {
            let source = Source::new(&pool, version);
            let publish = source.publish();
            let mut forwarded = Vec::new();
            publish.properties.append_forwarded(&mut forwarded);
            prop_assert_eq!(publish.properties.forwarded_len(), forwarded.len());
            let ids: Vec<u32> = publish.properties.subscription_ids.iter().collect();
            let delivery = Delivery {
                topic: publish.topic,
                qos: publish.qos,
                dup: publish.dup,
                retain: publish.retain,
                packet_id: publish.packet_id,
                message_expiry_interval: publish.properties.message_expiry_interval,
                topic_alias: publish.properties.topic_alias.map(NonZeroU16::get),
                subscription_ids: &ids,
                forwarded: &forwarded,
                payload_len: publish.payload.len(),
            };
            let mut expected = Vec::new();
            Packet::Publish(publish).encode(version, &mut expected);
            let mut written = vec![0xEE; 3];
            let packet_id_at = delivery.encode_head(version, &mut written);
            if let Some(packet_id) = publish.packet_id {
                let at = 3 + packet_id_at;
                prop_assert_eq!(&written[at..at + 2], packet_id.get().to_be_bytes());
            } else {
                prop_assert_eq!(packet_id_at, 0);
            }
            written.extend_from_slice(publish.payload);
            prop_assert_eq!(&written[3..], &expected[..]);
            prop_assert_eq!(delivery.encoded_len(version), expected.len());
        }
    }

    /// Forwarding byte by byte and field by field say the same.
    #[test]
    fn verbatim_is_the_fields(pool in pool()) {
        let source = Source::new(&pool, Version::V5);
        let publish = source.publish();
        let mut encoded = Vec::new();
        Packet::Publish(publish).encode(Version::V5, &mut encoded);
        let Ok(Packet::Publish(decoded)) = decode(&encoded, Some(Version::V5), Side::Client) else {
            panic!("a PUBLISH")
        };
        let (mut built, mut copied) = (Vec::new(), Vec::new());
        publish.properties.append_forwarded(&mut built);
        decoded.properties.append_forwarded(&mut copied);
        prop_assert_eq!(built, copied);
    }
}
