//! How the broker ends a connection: an MQTT 5 client is told why, in one DISCONNECT that arrives
//! whatever the client still sends, then the stream ends; before CONNACK, and before MQTT 5.0, it
//! just ends. Other files show which mistake has which code; this one, that the code arrives.

use std::io::Read;
use std::time::Duration;

use noctule::codec::mqtt::{Connect, Version};

use super::notation::packet;
use super::support::packets::connect;
use super::support::wire::{from_hex, hex};
use super::support::{Broker, Wire, combinations, has_faults, on_all, on_all_at_once};

use Version::{V5, V31, V311};

/// All that still comes, to the end of the stream; a reset is no end.
fn rest(wire: &Wire) -> Vec<u8> {
    let mut all = Vec::new();
    let mut stream = wire.stream();
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a read timeout");
    stream.read_to_end(&mut all).expect("the end of the stream, and not a reset");
    all
}

/// The whole DISCONNECT of a server to a client that wants no words: no property, least of all one
/// that only clients may send.
fn disconnect(version: Version, reason: u8) -> Vec<u8> {
    if version == V5 { vec![0xe0, 1, reason] } else { Vec::new() }
}

/// What clients may still be sending when the broker is done with them.
fn more() -> Vec<u8> {
    packet(0x30, "'t' 00").repeat(10_000)
}

fn online(broker: &Broker, version: Version, id: &str) -> Wire {
    let mut wire = broker.connect();
    wire.handshake(plain(connect(version, id)));
    wire
}

/// Wants no words for people: what comes can be compared byte by byte.
fn plain(connect: Connect<'_>) -> Connect<'_> {
    let mut plain = connect;
    if plain.version == V5 {
        plain.properties.request_problem_information = Some(false);
    }
    plain
}

/// An UNSUBSCRIBE with more filters than one packet may have.
fn too_many_filters(properties: &str) -> Vec<u8> {
    packet(0xa2, &format!("0001 {properties} {}", "'a' ".repeat(8193)))
}

/// Each mistake has its code, in a DISCONNECT that is the last packet and comes
/// before the end of the stream, though more was sent.
///
/// v5: 3.14.1-1, 3.14.2-1, 3.14.2-2, 3.14.4-1, 3.14.4-2, 4.13.1-1
/// family: 78, 79
#[test]
fn the_code_then_the_end_of_the_stream() {
    let qos_2 = |id: u16| packet(0x34, &format!("'t' {id:04x} {{}}"));
    let rows = [
        ("reserved bits of DISCONNECT", 0x81, packet(0xe1, "")),
        ("reserved bits of PINGREQ", 0x81, packet(0xc3, "")),
        ("a QoS of 3", 0x81, packet(0x36, "'t' 0001 {}")),
        ("a second CONNECT", 0x82, packet(0x10, "'MQTT' 05 02 003c {} 'c'")),
        ("a packet of servers", 0x82, packet(0x20, "00 00 {}")),
        ("AUTH without a method", 0x82, packet(0xf0, "18 {15 'M'}")),
        ("a reason that DISCONNECT has not", 0x82, packet(0xe0, "01 {}")),
        ("an expiry that grows from zero", 0x82, packet(0xe0, "00 {11 00000001}")),
        ("more than Receive Maximum", 0x93, [qos_2(1), qos_2(2), qos_2(3)].concat()),
        ("an alias that is not there", 0x82, packet(0x30, "0000 {23 0001}")),
        ("an alias beyond the maximum", 0x94, packet(0x30, "'t' {23 ffff}")),
        (
            "a packet that is too large",
            0x95,
            packet(0x30, &format!("'t' {{}} {}", "00".repeat(200_000))),
        ),
        ("too many filters", 0x97, too_many_filters("{}")),
    ];
    for combination in combinations() {
        println!("on {combination}");
        let broker = Broker::build(combination)
            .arg("--receive-maximum=2")
            .arg("--packet-size-max=150000")
            .start();
        for (what, reason, bytes) in &rows {
            println!("{what}");
            let wire = {
                let mut wire = online(&broker, V5, "c");
                let mut all = [bytes.clone(), more()].concat();
                if has_faults() && bytes.len() > 100_000 {
                    // In pieces and late, all of it takes longer than the broker reads on behind
                    // its last word: then the kernel takes that back.
                    all.truncate(4096);
                }
                let _ = wire.try_send_bytes(&all);
                wire
            };
            let got = rest(&wire);
            let last = disconnect(V5, *reason);
            // What came before the mistake has its answers.
            let before = if *reason == 0x93 { "5003 0001 10 5003 0002 10" } else { "" };
            let before = from_hex(before);
            assert_eq!(hex(&got), hex(&[before, last].concat()), "{what}");
        }
        broker.stop();
    }
}

/// Before MQTT 5.0 a server has no DISCONNECT: the stream ends, without a reset.
///
/// v3.1.1: 3.14.1-1
/// family: 79
#[test]
fn older_clients_are_just_closed() {
    on_all(|broker| {
        for version in [V31, V311] {
            let level = if version == V31 { "'MQIsdp' 03" } else { "'MQTT' 04" };
            let rows = [
                packet(0xe1, ""),
                packet(0x36, "'t' 0001"),
                packet(0x10, &format!("{level} 02 003c 'c'")),
                packet(0xf0, ""),
                too_many_filters(""),
            ];
            for bytes in rows {
                let mut wire = online(broker, version, "c");
                wire.send_bytes(&[bytes, more()].concat());
                assert_eq!(hex(&rest(&wire)), "");
            }
        }
    });
}

/// What ends a connection from outside, while half a packet of its client is on its way: taken over,
/// silent for too long.
///
/// v5: 3.1.4-3, 3.1.2-22, 3.14.4-1, 3.14.4-2
/// family: 79
#[test]
fn ended_from_outside_amid_a_packet() {
    on_all_at_once(
        |builder| builder,
        |broker, _| {
            for version in [V31, V311, V5] {
                let mut old = online(broker, version, "taken");
                old.send_hex("30 ff01 0001 74");
                let mut new = online(broker, V5, "taken");
                assert_eq!(hex(&rest(&old)), hex(&disconnect(version, 0x8e)));
                new.send_hex("e0 00");
                new.expect_closed();
            }
            for version in [V311, V5] {
                let mut wire = broker.connect();
                wire.handshake(plain(Connect { keep_alive: 1, ..connect(version, "silent") }));
                wire.send_hex("30 ff01 0001 74");
                assert_eq!(hex(&rest(&wire)), hex(&disconnect(version, 0x8d)));
            }
        },
    );
}

/// The broker stops: who is online is told, amid a packet too; who is not yet is not.
///
/// v5: 3.14.0-1, 3.14.2-1
/// family: 78, 79
#[test]
fn the_broker_stops() {
    for combination in combinations() {
        let mut broker = Broker::start(combination);
        let mut clients = Vec::new();
        for (number, version) in [V31, V311, V5, V5, V5, V5].into_iter().enumerate() {
            let mut wire = online(&broker, version, &format!("client-{number}"));
            wire.send_hex("30 ff01 0001 74");
            clients.push((wire, disconnect(version, 0x8b)));
        }
        let silent = broker.connect();
        let mut half = broker.connect();
        half.send_hex("10 11 0004 4d515454 05");
        broker.wait_for_count("loop", "bytes_received", |bytes| bytes > 0);
        broker.signal(rustix::process::Signal::TERM);
        for (wire, told) in &clients {
            assert_eq!(hex(&rest(wire)), hex(told));
        }
        assert_eq!(hex(&rest(&silent)), "");
        assert_eq!(hex(&rest(&half)), "");
        assert!(broker.wait(Duration::from_secs(15)).status.success());
    }
}

/// Who has no successful CONNACK gets no DISCONNECT: not after a CONNACK that refuses, not for a
/// first packet that is none, not when no CONNECT comes in time.
///
/// v5: 3.14.0-1, 3.1.0-1, 3.2.0-1
/// family: 1, 78
#[test]
fn nothing_is_said_before_connack() {
    on_all_at_once(
        |builder| builder.arg("--connect-timeout=1s"),
        |broker, _| {
            let rows = [
                // Refused: by us, or because it cannot be read.
                (packet(0x10, "'MQTT' 05 02 003c {15 'M'} 'c'"), "8c"),
                (packet(0x10, "'MQTT' 05 03 003c {} 'c'"), "81"),
                (packet(0x10, "'MQTT' 05 02 003c {16 'M'} 'c'"), "82"),
                (packet(0x10, "'MQTT' 06 02 003c {} 'c'"), ""),
                // No CONNECT at all.
                (packet(0xc0, ""), ""),
                (packet(0xe0, ""), ""),
                (packet(0x30, "'t' {}"), ""),
                (packet(0xf0, "18 {15 'M'}"), ""),
                (vec![0x00, 0x00], ""),
            ];
            for (bytes, told) in rows {
                let mut wire = broker.connect();
                wire.send_bytes(&bytes);
                let got = rest(&wire);
                println!("{}: {}", hex(&bytes), hex(&got));
                let is_unknown = bytes.get(8) == Some(&6);
                match from_hex(told)[..] {
                    // The version is not known: what a client of any version understands.
                    _ if is_unknown => assert_eq!(got[..1], [0x20]),
                    [reason] => {
                        assert_eq!(got[..4], [0x20, got[1], 0, reason]);
                        assert_eq!(got.len(), 2 + usize::from(got[1]), "one packet");
                    }
                    _ => assert_eq!(got, b""),
                }
            }
            let silent = broker.connect();
            assert_eq!(rest(&silent), b"");
            broker.wait_for_count("loop", "connect_timeouts", |count| count == 1);
        },
    );
}
