//! What is no packet, or breaks the protocol: an MQTT 5 client is told why and is closed, an older
//! one is closed, a counter names the cause, and the broker goes on.

use std::collections::BTreeMap;

use noctule::codec::mqtt::{Cause, Packet, ReasonCode, Version};

use super::notation::{bytes, packet};
use super::support::packets::connect;
use super::support::wire::hex;
use super::support::{Broker, Wire, on_all};

use Version::{V5, V31, V311};

/// What the client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// A DISCONNECT with this reason code; nothing before MQTT 5.0.
    Disconnect(u8),
    /// A CONNACK with this (return or reason) code.
    ConnAck(u8),
    /// Nothing.
    Nothing,
}
use Told::{ConnAck, Disconnect, Nothing};

const MALFORMED: Told = Disconnect(0x81);
const PROTOCOL: Told = Disconnect(0x82);

/// Sends `bytes`, as the first of the connection or after a handshake in `version`, and checks the
/// whole answer.
fn check(broker: &Broker, version: Option<Version>, bytes: &[u8], told: Told) {
    let mut wire = broker.connect();
    if let Some(version) = version {
        wire.handshake(connect(version, "malformed"));
    }
    wire.send_bytes(bytes);
    match told {
        Disconnect(code) => wire.expect_disconnect(ReasonCode(code)),
        ConnAck(code) => {
            let frame = wire.frame();
            assert_eq!((frame[0], &frame[2..4]), (0x20, &[0, code][..]), "{}", hex(&frame));
            wire.expect_closed();
        }
        Nothing => wire.expect_closed(),
    }
}

/// Runs a table on all brokers. Behind it each cause has been counted as often as it stands in the
/// table, and no other.
fn check_all(rows: &[(Option<Version>, Vec<u8>, Told, Cause)]) {
    let mut expected = BTreeMap::new();
    for (.., cause) in rows {
        *expected.entry(cause.as_str()).or_insert(0) += 1;
    }
    on_all(|broker| {
        for (version, bytes, told, cause) in rows {
            println!("{version:?} {}: {told:?}, {cause:?}", hex(bytes));
            check(broker, *version, bytes, *told);
        }
        let stats = broker.stats();
        let counted = stats["total"]["decode_errors"].as_object().expect("the causes").iter();
        let counted: BTreeMap<_, _> =
            counted.map(|(cause, count)| (cause.as_str(), count.as_u64().unwrap_or(0))).collect();
        assert_eq!(counted, expected);
        still_serves(broker);
    });
}

/// The broker is up, and takes a new client and a message.
fn still_serves(broker: &Broker) {
    let mut wire = broker.connect();
    wire.handshake(connect(V311, "well-formed"));
    wire.send_bytes(&packet(0x82, "0001 'a' 00"));
    wire.expect_hex("90 03 0001 00");
    wire.send_bytes(&packet(0x30, "'a' 78"));
    wire.expect_bytes(&packet(0x30, "'a' 78"));
}

/// Whatever is no CONNECT is closed without an answer.
///
/// v5: 3.1.0-1, 3.14.0-1, 4.13.1-1
/// v3.1.1: 3.1.0-1, 3.2.0-1, 4.8.0-1
/// family: 1, 3, 77
#[test]
fn the_first_packet_is_connect() {
    let first = [
        "c000",
        "e000",
        "300300 0161",
        "82060001 0001 6100",
        "40020001",
        "20020000",
        "0000",
        "f000",
        // A browser: "GET / HTTP/1.1".
        "474554202f20485454502f312e310d0a0d0a",
    ];
    let mut rows = Vec::from(first.map(|hex| (None, bytes(hex), Nothing, Cause::ConnectExpected)));
    // TLS: a ClientHello looks like a very short CONNECT.
    let hello = bytes("160301 0200 0100 01fc 0303");
    rows.push((None, hello, Nothing, Cause::Truncated));
    check_all(&rows);
}

/// A second CONNECT ends the connection, without a second CONNACK.
///
/// v5: 3.1.0-2, 3.2.0-2, 3.14.4-1, 3.14.4-2
/// v3.1.1: 3.1.0-2, 4.8.0-1
/// family: 1, 19
#[test]
fn a_second_connect_ends_the_connection() {
    let again = |level| packet(0x10, &format!("'MQTT' {level} 02 003c '2'"));
    check_all(&[
        (Some(V5), packet(0x10, "'MQTT' 05 02 003c {} '2'"), PROTOCOL, Cause::SecondConnect),
        (Some(V311), again("04"), PROTOCOL, Cause::SecondConnect),
        (Some(V31), packet(0x10, "'MQIsdp' 03 02 003c '2'"), PROTOCOL, Cause::SecondConnect),
    ]);
}

/// Reserved flags of the fixed header are malformed, of every packet.
///
/// v5: 2.1.3-1, 3.1.4-1, 3.6.1-1, 3.8.1-1, 3.10.1-1, 3.14.1-1, 3.15.1-1, 4.13.1-1
/// v3.1.1: 2.2.2-1, 2.2.2-2, 3.1.4-1, 3.6.1-1, 3.8.1-1, 3.10.1-1, 3.14.1-1
/// family: 2, 79
#[test]
fn reserved_flags_of_the_fixed_header() {
    let mut rows = Vec::new();
    for version in [V311, V5] {
        let properties = if version == V5 { "{}" } else { "" };
        let subscribe = format!("0001 {properties} 'a' 00");
        let unsubscribe = format!("0001 {properties} 'a'");
        for (first, body) in [
            (0x41, "0001"),
            (0x52, "0001"),
            (0x60, "0001"),
            (0x63, "0001"),
            (0x71, "0001"),
            (0x80, &*subscribe),
            (0x83, &*subscribe),
            (0xa0, &*unsubscribe),
            (0xa6, &*unsubscribe),
            (0xc1, ""),
            (0xe8, ""),
        ] {
            rows.push((Some(version), packet(first, body), MALFORMED, Cause::FixedHeaderFlags));
        }
    }
    rows.push((Some(V5), packet(0xf1, "18 {}"), MALFORMED, Cause::FixedHeaderFlags));
    let connect = packet(0x11, "'MQTT' 05 02 003c {} 'a'");
    rows.push((None, connect, ConnAck(0x81), Cause::FixedHeaderFlags));
    // [MQTT-3.1.4-1 of 3.1.1]: closed "without sending a CONNACK".
    let connect = packet(0x12, "'MQTT' 04 02 003c 'a'");
    rows.push((None, connect, Nothing, Cause::FixedHeaderFlags));
    check_all(&rows);
}

/// Reserved packet types, those of servers, and AUTH before 5.0.
///
/// v5: 4.13.1-1
/// v3.1.1: 4.8.0-1
/// family: 3
#[test]
fn packet_types_that_are_not_the_clients_to_send() {
    let mut rows = Vec::new();
    for version in [V31, V311, V5] {
        rows.push((Some(version), packet(0x00, ""), MALFORMED, Cause::PacketType));
        rows.push((Some(version), packet(0x20, "0000"), PROTOCOL, Cause::Direction));
        rows.push((Some(version), packet(0x90, "0001 00"), PROTOCOL, Cause::Direction));
        rows.push((Some(version), packet(0xb0, "0001"), PROTOCOL, Cause::Direction));
        rows.push((Some(version), packet(0xd0, ""), PROTOCOL, Cause::Direction));
    }
    for version in [V31, V311] {
        rows.push((Some(version), packet(0xf0, ""), MALFORMED, Cause::PacketType));
        rows.push((Some(version), packet(0xf0, "18 00"), MALFORMED, Cause::PacketType));
    }
    check_all(&rows);
}

/// Variable Byte Integers are minimal, and of four bytes at most.
///
/// v5: 1.5.5-1
/// family: 4
#[test]
fn variable_byte_integers() {
    use Cause::{VariableByteIntegerNotMinimal as Needless, VariableByteIntegerTooLong as TooLong};
    check_all(&[
        (Some(V5), bytes("30 ffffffff7f"), MALFORMED, TooLong),
        (Some(V5), bytes("30 80808080"), MALFORMED, TooLong),
        (Some(V311), bytes("30 ffffffff01"), MALFORMED, TooLong),
        (Some(V5), bytes("c0 8000"), MALFORMED, Needless),
        (Some(V5), bytes("30 85 8000 0001 61 00 78"), MALFORMED, Needless),
        (Some(V311), bytes("c0 808000"), MALFORMED, Needless),
        // The length of the properties, and a Subscription Identifier.
        (Some(V5), packet(0x30, "'a' 8000"), MALFORMED, Needless),
        (Some(V5), packet(0x30, "'a' ffffffff7f"), MALFORMED, TooLong),
        (Some(V5), packet(0x82, "0001 {0b 8100} 'a' 00"), MALFORMED, Needless),
        (Some(V5), packet(0x82, "0001 {0b 8080808001} 'a' 00"), MALFORMED, TooLong),
        (None, bytes("10 ffffffff7f"), Nothing, TooLong),
        (None, bytes("10 8000"), Nothing, Needless),
    ]);
}

/// Every field that must be there is missed: packet identifiers, topics, and what flags announce.
///
/// v5: 3.1.2-9, 3.1.2-17, 3.1.2-19, 3.1.3-3, 3.1.4-1, 3.3.2-1
/// v3.1.1: 3.1.2-9, 3.1.2-19, 3.1.2-21, 3.1.3-3, 3.1.4-1, 3.2.2-6, 3.3.2-1
/// family: 5, 15, 16
#[test]
fn packets_that_end_before_their_fields_do() {
    let mut rows = Vec::new();
    for version in [V31, V311, V5] {
        for (first, body) in [
            (0x30, ""),
            (0x30, "00"),
            (0x30, "0005 6162"),
            (0x32, "'a'"),
            (0x32, "'a' 00"),
            (0x34, "'a' 01"),
            (0x40, ""),
            (0x40, "00"),
            (0x50, "00"),
            (0x62, ""),
            (0x70, "01"),
            (0x82, ""),
            (0x82, "00"),
            (0xa2, "01"),
        ] {
            rows.push((Some(version), packet(first, body), MALFORMED, Cause::Truncated));
        }
    }
    for (first, body) in [
        (0x30, "'a' 05 01"),
        (0x30, "'a' 02 0901"),
        (0x30, "'a' 03 020000"),
        (0x32, "'a' 0001"),
        (0x40, "0001 00 05"),
        (0x82, "0001"),
        (0x82, "0001 {} 'a'"),
        (0x82, "0001 {} 0002 61"),
        (0x82, "0001 {0b} 'a' 00"),
        (0xa2, "0001 {} 0002 61"),
        (0xe0, "00 05"),
        (0xe0, "00 {11 0000}"),
        (0xf0, "18"),
    ] {
        rows.push((Some(V5), packet(first, body), MALFORMED, Cause::Truncated));
    }
    for (first, body) in [(0x82, "0001 'a'"), (0x82, "0001 0002 61"), (0xa2, "0001 0005 61")] {
        rows.push((Some(V311), packet(first, body), MALFORMED, Cause::Truncated));
    }
    for (body, told) in [
        ("", Nothing),
        ("0004 4d", Nothing),
        ("'MQTT'", Nothing),
        ("'MQTT' 04", Nothing),
        ("'MQTT' 04 02 00", Nothing),
        ("'MQTT' 04 02 003c", Nothing),
        ("'MQTT' 04 82 003c 'a'", Nothing),
        ("'MQTT' 04 c2 003c 'a' 'u'", Nothing),
        // A Will without a topic, without a message.
        ("'MQTT' 04 06 003c 'a'", Nothing),
        ("'MQTT' 04 06 003c 'a' 't'", Nothing),
        ("'MQTT' 05 02 003c", ConnAck(0x81)),
        ("'MQTT' 05 02 003c {}", ConnAck(0x81)),
        ("'MQTT' 05 02 003c 09 11", ConnAck(0x81)),
        ("'MQTT' 05 82 003c {} 'a'", ConnAck(0x81)),
        ("'MQTT' 05 42 003c {} 'a'", ConnAck(0x81)),
        ("'MQTT' 05 c2 003c {} 'a' 'u'", ConnAck(0x81)),
        ("'MQTT' 05 06 003c {} 'a'", ConnAck(0x81)),
        ("'MQTT' 05 06 003c {} 'a' {}", ConnAck(0x81)),
        ("'MQTT' 05 06 003c {} 'a' {} 't'", ConnAck(0x81)),
    ] {
        rows.push((None, packet(0x10, body), told, Cause::Truncated));
    }
    check_all(&rows);
}

/// Nothing may follow the last field: also none that its flag has not announced.
///
/// v5: 3.1.2-16, 3.1.2-18, 3.1.4-1
/// v3.1.1: 3.1.2-11, 3.1.2-18, 3.1.2-20, 3.1.4-1
/// family: 5, 16
#[test]
fn bytes_after_the_last_field() {
    let mut rows = Vec::new();
    for version in [V31, V311, V5] {
        rows.push((Some(version), packet(0xc0, "00"), MALFORMED, Cause::TrailingBytes));
    }
    for (first, body) in [
        (0x40, "0001 00"),
        (0x50, "0001 00"),
        (0x62, "0001 00"),
        (0x70, "0001 00 00"),
        (0xe0, "00"),
    ] {
        rows.push((Some(V311), packet(first, body), MALFORMED, Cause::TrailingBytes));
    }
    for (first, body) in [
        (0x40, "0001 00 {} 00"),
        (0x62, "0001 00 {} 00"),
        (0xe0, "00 {} 00"),
        (0xf0, "18 {15 'm'} 00"),
    ] {
        rows.push((Some(V5), packet(first, body), MALFORMED, Cause::TrailingBytes));
    }
    let trailing = |told, body| (None, packet(0x10, body), told, Cause::TrailingBytes);
    rows.push(trailing(Nothing, "'MQTT' 04 02 003c 'a' 00"));
    rows.push(trailing(Nothing, "'MQTT' 04 02 003c 'a' 't' 'm'"));
    rows.push(trailing(Nothing, "'MQTT' 04 02 003c 'a' 'user without flag'"));
    rows.push(trailing(Nothing, "'MQTT' 04 82 003c 'a' 'user' 'password without flag'"));
    rows.push(trailing(ConnAck(0x81), "'MQTT' 05 02 003c {} 'a' 'user without flag'"));
    rows.push(trailing(ConnAck(0x81), "'MQTT' 05 82 003c {} 'a' 'user' 'password without flag'"));
    check_all(&rows);
}

/// Ill-formed UTF-8 and U+0000 are refused in every string of every packet.
///
/// v5: 1.5.4-1, 1.5.4-2, 1.5.7-1, 3.1.3-4, 3.1.3-11, 3.1.3-12, 3.3.2-1, 3.3.2-13, 3.3.2-19, 3.8.3-1
/// v5: 3.10.3-1, 4.7.3-2
/// v3.1.1: 1.5.3-1, 1.5.3-2, 3.1.3-4, 3.1.3-10, 3.1.3-11, 3.3.2-1, 3.8.3-1, 3.10.3-1, 4.7.3-2
/// family: 6
#[test]
fn ill_formed_strings() {
    // In the notation, the string that is to be wrong is "@".
    let fields = [
        (None, 0x10, "'MQTT' 05 02 003c {} @"),
        (None, 0x10, "'MQTT' 05 82 003c {} 'a' @"),
        (None, 0x10, "'MQTT' 05 06 003c {} 'a' {} @ 'm'"),
        (None, 0x10, "'MQTT' 05 06 003c {} 'a' {03 @} 't' 'm'"),
        (None, 0x10, "'MQTT' 05 02 003c {26 @ 'v'} 'a'"),
        (None, 0x10, "'MQTT' 05 02 003c {15 @} 'a'"),
        (Some(V5), 0x30, "@ {}"),
        (Some(V5), 0x30, "'a' {03 @}"),
        (Some(V5), 0x30, "'a' {08 @}"),
        (Some(V5), 0x30, "'a' {26 @ 'v'}"),
        (Some(V5), 0x30, "'a' {26 'k' @}"),
        (Some(V5), 0x82, "0001 {} @ 00"),
        (Some(V5), 0x82, "0001 {} 'a' 00 @ 00"),
        (Some(V5), 0x82, "0001 {26 'k' @} 'a' 00"),
        (Some(V5), 0xa2, "0001 {} @"),
        (Some(V5), 0x40, "0001 00 {1f @}"),
        (Some(V5), 0x50, "0001 00 {26 @ 'v'}"),
        (Some(V5), 0x62, "0001 00 {1f @}"),
        (Some(V5), 0x70, "0001 00 {1f @}"),
        (Some(V5), 0xe0, "00 {1f @}"),
        (Some(V5), 0xf0, "19 {15 @}"),
        (Some(V311), 0x30, "@"),
        (Some(V311), 0x82, "0001 @ 00"),
        (Some(V311), 0xa2, "0001 @"),
        (None, 0x10, "'MQTT' 04 02 003c @"),
        (None, 0x10, "'MQTT' 04 82 003c 'a' @"),
        (None, 0x10, "'MQTT' 04 06 003c 'a' @ 'm'"),
        (Some(V31), 0x30, "@"),
    ];
    let told = |version: Option<_>, body: &str| match version {
        Some(_) => MALFORMED,
        None if body.contains("'MQTT' 05") => ConnAck(0x81),
        None => Nothing,
    };
    let mut rows = Vec::new();
    for (version, first, body) in fields {
        for (string, cause) in [("0003 eda080", Cause::Utf8), ("0001 00", Cause::NullCharacter)] {
            let bytes = packet(first, &body.replacen('@', string, 1));
            rows.push((version, bytes, told(version, body), cause));
        }
    }
    // Of all ways to be wrong: a lone continuation, a cut sequence, overlong forms, beyond U+10FFFF,
    // both ends of the surrogates, bytes that never occur.
    for string in [
        "0001 80",
        "0002 61c3",
        "0002 c080",
        "0003 e08080",
        "0004 f0808080",
        "0004 f4908080",
        "0003 edbfbf",
        "0006 eda081edb080",
        "0001 ff",
        "0002 fe61",
    ] {
        rows.push((Some(V5), packet(0x30, &format!("{string} {{}}")), MALFORMED, Cause::Utf8));
    }
    check_all(&rows);
}

/// Packet Identifier 0 is none.
///
/// v5: 2.2.1-3
/// v3.1.1: 2.3.1-1
/// v3.1: 2.4
/// family: 7
#[test]
fn packet_identifier_zero() {
    let mut rows = Vec::new();
    for (version, properties) in [(V31, ""), (V311, ""), (V5, "{}")] {
        for (first, body) in [
            (0x32, format!("'a' 0000 {properties}")),
            (0x34, format!("'a' 0000 {properties}")),
            (0x40, "0000".to_owned()),
            (0x50, "0000".to_owned()),
            (0x62, "0000".to_owned()),
            (0x70, "0000".to_owned()),
            (0x82, format!("0000 {properties} 'a' 00")),
            (0xa2, format!("0000 {properties} 'a'")),
        ] {
            rows.push((Some(version), packet(first, &body), PROTOCOL, Cause::PacketIdZero));
        }
    }
    check_all(&rows);
}

/// What may be there once is refused twice.
///
/// v5: 4.13.1-1
/// family: 8
#[test]
fn properties_given_twice() {
    let mut rows = Vec::new();
    for property in ["01 00", "02 00000001", "03 't'", "08 'r'", "09 0001 00", "23 0001"] {
        let bytes = packet(0x30, &format!("'a' {{{property} {property}}}"));
        rows.push((Some(V5), bytes, PROTOCOL, Cause::PropertyRepeated));
    }
    for property in
        ["11 00000001", "17 01", "19 01", "21 0001", "22 0001", "27 00001000", "15 'm'", "16 'd'"]
    {
        let bytes = packet(0x10, &format!("'MQTT' 05 02 003c {{{property} {property}}} 'a'"));
        rows.push((None, bytes, ConnAck(0x82), Cause::PropertyRepeated));
    }
    let delay = packet(0x10, "'MQTT' 05 06 003c {} 'a' {18 00000001 18 00000001} 't' 'm'");
    rows.push((None, delay, ConnAck(0x82), Cause::PropertyRepeated));
    for (first, body) in [
        (0x82, "0001 {0b01 0b02} 'a' 00"),
        (0x40, "0001 00 {1f 'a' 1f 'b'}"),
        (0x62, "0001 00 {1f 'a' 1f 'b'}"),
        (0xe0, "00 {11 00000000 11 00000000}"),
        (0xe0, "00 {1f 'a' 1f 'b'}"),
        (0xf0, "19 {15 'm' 15 'm'}"),
    ] {
        rows.push((Some(V5), packet(first, body), PROTOCOL, Cause::PropertyRepeated));
    }
    check_all(&rows);
}

/// 2.2.2.2: "an Identifier which is not valid for its packet type … is a Malformed Packet".
///
/// family: 9
#[test]
fn properties_of_other_packets_and_of_none() {
    use Cause::{PropertyNotAllowed as Foreign, PropertyUnknown as Unknown};
    let mut rows = Vec::new();
    for property in ["11 00000001", "18 00000001", "1f 'a'", "21 0001", "24 01", "25 01"] {
        let bytes = packet(0x30, &format!("'a' {{{property}}}"));
        rows.push((Some(V5), bytes, MALFORMED, Foreign));
    }
    for property in ["01 00", "0b 01", "12 'a'", "13 0001", "18 00000001", "1f 'a'", "24 01"] {
        let bytes = packet(0x10, &format!("'MQTT' 05 02 003c {{{property}}} 'a'"));
        rows.push((None, bytes, ConnAck(0x81), Foreign));
    }
    for property in ["11 00000001", "23 0001", "0b 01"] {
        let body = format!("'MQTT' 05 06 003c {{}} 'a' {{{property}}} 't' 'm'");
        rows.push((None, packet(0x10, &body), ConnAck(0x81), Foreign));
    }
    for (first, body) in [
        (0x40, "0001 00 {01 00}"),
        (0x50, "0001 00 {11 00000001}"),
        (0x62, "0001 00 {0b01}"),
        (0x70, "0001 00 {23 0001}"),
        (0x82, "0001 {1f 'a'} 'a' 00"),
        (0xa2, "0001 {0b01} 'a'"),
        (0xe0, "00 {23 0001}"),
        (0xf0, "19 {11 00000001}"),
    ] {
        rows.push((Some(V5), packet(first, body), MALFORMED, Foreign));
    }
    for id in ["00", "04", "0a", "2b", "3f", "40", "7f", "a6"] {
        rows.push((Some(V5), packet(0x30, &format!("'a' {{{id} 00}}")), MALFORMED, Unknown));
    }
    check_all(&rows);
}

/// Values that a property cannot have, and properties that a client cannot send.
///
/// v5: 3.3.2-8, 3.3.2-14, 3.3.4-6
/// family: 11, 27, 50, 51, 52
#[test]
fn property_values_out_of_range() {
    let mut rows = Vec::new();
    for property in ["17 02", "19 02", "21 0000", "27 00000000"] {
        let bytes = packet(0x10, &format!("'MQTT' 05 02 003c {{{property}}} 'a'"));
        rows.push((None, bytes, ConnAck(0x82), Cause::PropertyValue));
    }
    rows.push((Some(V5), packet(0x30, "'a' {01 02}"), PROTOCOL, Cause::PropertyValue));
    rows.push((Some(V5), packet(0x82, "0001 {0b00} 'a' 00"), PROTOCOL, Cause::PropertyValue));
    // [MQTT-3.3.2-8]; 0x94 says which.
    rows.push((Some(V5), packet(0x30, "'a' {23 0000}"), Disconnect(0x94), Cause::TopicAliasZero));
    // [MQTT-3.3.4-6]
    let with_id = packet(0x30, "'a' {0b01}");
    rows.push((Some(V5), with_id, PROTOCOL, Cause::SubscriptionIdFromClient));
    // [MQTT-3.3.2-14]
    for topic in ["'a/+'", "'#'", "''"] {
        let bytes = packet(0x30, &format!("'a' {{08 {topic}}}"));
        rows.push((Some(V5), bytes, PROTOCOL, Cause::ResponseTopic));
    }
    // 3.1.2.11.10, 3.15.2.2.2
    let data = packet(0x10, "'MQTT' 05 02 003c {16 'd'} 'a'");
    rows.push((None, data, ConnAck(0x82), Cause::AuthenticationData));
    rows.push((Some(V5), packet(0xf0, "19 {}"), PROTOCOL, Cause::AuthenticationMethod));
    check_all(&rows);
}

/// QoS 3, and QoS 0 with DUP.
///
/// v5: 3.3.1-2, 3.3.1-4
/// v3.1.1: 3.3.1-2, 3.3.1-4
/// family: 10
#[test]
fn flags_of_publish() {
    let mut rows = Vec::new();
    for (version, properties) in [(V31, ""), (V311, ""), (V5, "{}")] {
        let qos3 = packet(0x36, &format!("'a' 0001 {properties}"));
        rows.push((Some(version), qos3, MALFORMED, Cause::Qos));
        if version != V31 {
            let dup = packet(0x38, &format!("'a' {properties}"));
            rows.push((Some(version), dup, MALFORMED, Cause::DuplicateFlag));
        }
    }
    check_all(&rows);
}

/// A topic name has no wildcards and is not empty, of a Will neither.
///
/// v5: 3.3.2-2, 4.7.0-1, 4.7.3-1
/// v3.1.1: 3.3.2-2, 4.7.1-1, 4.7.3-1
/// family: 52
#[test]
fn topic_names() {
    let mut rows = Vec::new();
    for (version, properties) in [(V31, ""), (V311, ""), (V5, "{}")] {
        for topic in ["'#'", "'+'", "'a/+/b'", "'a/#'", "'a+'"] {
            let bytes = packet(0x30, &format!("{topic} {properties}"));
            rows.push((Some(version), bytes, PROTOCOL, Cause::TopicWildcard));
        }
        let empty = packet(0x30, &format!("'' {properties}"));
        rows.push((Some(version), empty, PROTOCOL, Cause::TopicEmpty));
    }
    let will = |level, told, properties, topic, cause| {
        let body = format!("'MQTT' {level} 06 003c {properties} 'a' {properties} {topic} 'm'");
        (None, packet(0x10, &body), told, cause)
    };
    rows.push(will("05", ConnAck(0x82), "{}", "'a/#'", Cause::TopicWildcard));
    rows.push(will("05", ConnAck(0x82), "{}", "''", Cause::TopicEmpty));
    rows.push(will("04", Nothing, "", "'a/+'", Cause::TopicWildcard));
    check_all(&rows);
}

/// Flags of CONNECT that are reserved, or contradict each other.
///
/// v5: 3.1.2-3, 3.1.2-11, 3.1.2-12, 3.1.2-13, 3.2.2-8
/// v3.1.1: 3.1.2-3, 3.1.2-11, 3.1.2-13, 3.1.2-14, 3.1.2-15, 3.1.2-22
/// family: 14, 15, 16
#[test]
fn flags_of_connect() {
    let v5 = |flags, told, cause| {
        (None, packet(0x10, &format!("'MQTT' 05 {flags} 003c {{}} 'a'")), told, cause)
    };
    let v311 = |flags, rest, cause| {
        (None, packet(0x10, &format!("'MQTT' 04 {flags} 003c 'a' {rest}")), Nothing, cause)
    };
    check_all(&[
        v5("03", ConnAck(0x81), Cause::ConnectFlags),
        v5("0a", ConnAck(0x82), Cause::WillFlags),
        v5("22", ConnAck(0x82), Cause::WillFlags),
        v5("1e", ConnAck(0x81), Cause::WillQos),
        v311("03", "", Cause::ConnectFlags),
        v311("0a", "", Cause::WillFlags),
        v311("22", "", Cause::WillFlags),
        v311("1e", "'t' 'm'", Cause::WillQos),
        v311("42", "'password'", Cause::PasswordWithoutUserName),
    ]);
}

/// Who speaks another version is told so; what is not MQTT is closed.
///
/// v5: 3.1.2-1, 3.1.2-2, 3.2.2-8
/// v3.1.1: 3.1.2-1, 3.1.2-2
/// v3.1: 2.2
/// family: 13
#[test]
fn protocol_names_and_levels() {
    let other = |name, level, told| {
        let bytes = packet(0x10, &format!("{name} {level} 02 003c 'a'"));
        (None, bytes, told, Cause::ProtocolVersion)
    };
    check_all(&[
        other("'MQTT'", "06", ConnAck(0x84)),
        other("'MQTT'", "ff", ConnAck(0x84)),
        other("'MQTT'", "03", ConnAck(0x01)),
        other("'MQTT'", "00", ConnAck(0x01)),
        other("'MQIsdp'", "04", ConnAck(0x01)),
        other("'MQIsdp'", "05", ConnAck(0x01)),
        (None, packet(0x10, "'MQTt' 04 02 003c 'a'"), Nothing, Cause::ProtocolName),
        (None, packet(0x10, "'AMQP' 05 02 003c {} 'a'"), Nothing, Cause::ProtocolName),
        (None, packet(0x10, "'' 04 02 003c 'a'"), Nothing, Cause::ProtocolName),
    ]);
}

/// Payloads without a filter, reserved bits and values of the options.
///
/// v5: 3.8.3-2, 3.8.3-4, 3.8.3-5, 3.10.3-2
/// v3.1.1: 3.8.3-3, 3.8.3-4, 3.10.3-2
/// family: 60, 61, 71
#[test]
fn payloads_of_subscribe_and_unsubscribe() {
    let mut rows = Vec::new();
    for (version, properties) in [(V31, ""), (V311, ""), (V5, "{}")] {
        for first in [0x82, 0xa2] {
            let bytes = packet(first, &format!("0001 {properties}"));
            rows.push((Some(version), bytes, PROTOCOL, Cause::PayloadEmpty));
        }
        let qos3 = packet(0x82, &format!("0001 {properties} 'a' 03"));
        rows.push((Some(version), qos3, PROTOCOL, Cause::SubscriptionQos));
    }
    for (options, told, cause) in [
        ("40", MALFORMED, Cause::SubscriptionOptions),
        ("80", MALFORMED, Cause::SubscriptionOptions),
        ("30", PROTOCOL, Cause::RetainHandling),
    ] {
        rows.push((Some(V5), packet(0x82, &format!("0001 {{}} 'a' {options}")), told, cause));
    }
    let local = packet(0x82, "0001 {} '$share/g/a' 04");
    rows.push((Some(V5), local, PROTOCOL, Cause::NoLocalShared));
    let upper = packet(0x82, "0001 'a' 04");
    rows.push((Some(V311), upper, MALFORMED, Cause::SubscriptionOptions));
    check_all(&rows);
}

/// Reason codes that do not exist, or that only a server gives.
///
/// v5: 3.4.2-1, 3.5.2-1, 3.6.2-1, 3.7.2-1, 3.14.2-1, 3.15.2-1
/// family: 78
#[test]
fn reason_codes() {
    let rows = [
        (0x40, "0001 01"),
        (0x40, "0001 92"),
        (0x50, "0001 7f"),
        (0x62, "0001 10"),
        (0x70, "0001 97"),
        (0xe0, "01"),
        (0xe0, "8b"),
        (0xe0, "8e"),
        (0xf0, "00 {15 'm'}"),
        (0xf0, "42 {15 'm'}"),
    ]
    .map(|(first, body)| (Some(V5), packet(first, body), PROTOCOL, Cause::ReasonCode));
    check_all(&rows);
}

/// Rules that only the state of the connection shows to be broken. They have one counter.
///
/// v5: 3.2.2-17, 3.3.2-9, 4.12.0-7
/// family: 27, 50, 78
#[test]
fn protocol_errors_of_well_formed_packets() {
    on_all(|broker| {
        for (count, (bytes, code)) in [
            // An alias beyond our maximum [MQTT-3.3.2-9], and one that nothing was said of.
            (packet(0x30, "'a' {23 ffff}"), 0x94),
            (packet(0x30, "'' {23 0001}"), 0x82),
            // AUTH where no method was agreed on [MQTT-4.12.0-7].
            (packet(0xf0, "19 {15 'm'}"), 0x82),
            (packet(0xf0, "18 {15 'm'}"), 0x82),
            // A session that was to end with its connection cannot be kept (3.14.2.2.2).
            (packet(0xe0, "00 {11 00000001}"), 0x82),
        ]
        .into_iter()
        .enumerate()
        {
            check(broker, Some(V5), &bytes, Disconnect(code));
            assert_eq!(broker.count("broker", "protocol_errors"), count as u64 + 1);
        }
        still_serves(broker);
    });
}

/// Nothing behind a malformed packet is looked at, and what was before it has been done.
///
/// v5: 2.2.1-2, 3.3.1-4, 4.13.1-1, 2.2.2-1
/// family: 79
#[test]
fn a_malformed_packet_is_the_last_that_counts() {
    on_all(|broker| {
        let mut other = broker.connect();
        other.handshake(connect(V5, "other"));
        other.subscribe("#", noctule::codec::mqtt::QoS::AtMostOnce);
        let mut wire = broker.connect();
        wire.handshake(connect(V5, "malformed"));
        let mut all = packet(0x30, "'a' {} 31");
        all.extend(packet(0x36, "'a' 0001 {} 32"));
        all.extend(packet(0x30, "'a' {} 33"));
        wire.send_bytes(&all);
        wire.expect_disconnect(ReasonCode::MALFORMED_PACKET);
        other.expect_bytes(&packet(0x30, "'a' {} 31"));
        let mut last = broker.connect();
        last.handshake(connect(V5, "malformed"));
        last.send_bytes(&packet(0x30, "'a' {} 34"));
        other.expect_bytes(&packet(0x30, "'a' {} 34"));
    });
}

/// The whole of a conversation, one byte at a time: nothing depends on how bytes are cut.
///
/// family: 12
#[test]
fn bytes_may_come_one_by_one() {
    let mut all = packet(0x10, "'MQTT' 05 02 003c {26 'k' 'v'} 'one by one'");
    all.extend(packet(0x82, "0001 {} 'a/#' 01"));
    all.extend(packet(0x32, "'a/b' 0007 {03 'text'} 68656c6c6f"));
    all.extend(packet(0xc0, ""));
    on_all(|broker| {
        let mut wire = broker.connect();
        for byte in &all {
            wire.send_bytes(&[*byte]);
        }
        assert!(matches!(wire.recv(), Packet::ConnAck(ack) if ack.reason == ReasonCode::SUCCESS));
        wire.expect_bytes(&packet(0x90, "0001 {} 01"));
        // The message and its acknowledgement: which comes first is not said.
        let mut frames = [wire.frame(), wire.frame()];
        frames.sort();
        assert_eq!(frames[0][0], 0x32, "{frames:?}");
        assert_eq!(frames[1], packet(0x40, "0007"));
        wire.expect_hex("d0 00");
    });
}

/// A client that goes away in the middle of a packet costs nobody anything.
///
/// family: 12
#[test]
fn a_packet_cut_by_the_end_of_the_connection() {
    on_all(|broker| {
        for cut in 1..14 {
            let connect = packet(0x10, "'MQTT' 04 02 003c 'cut'");
            let wire = &mut broker.connect();
            wire.send_bytes(&connect[..cut]);
            wire.finish();
            wire.expect_closed();
        }
        let mut wire: Wire = broker.connect();
        wire.handshake(connect(V5, "cut"));
        wire.send_bytes(&packet(0x30, "'a' {} 68656c6c6f")[..8]);
        wire.finish();
        wire.expect_closed();
        still_serves(broker);
    });
}
