//! Answers to a client that takes only small packets, and to PINGREQ.

use noctule::codec::mqtt::{
    Connect, ConnectProperties, Packet, PacketKind, QoS, ReasonCode, Version,
};

use super::notation::packet;
use super::support::packets::{connect, publish};
use super::support::{Broker, Next, Wire, on_all, on_all_at_once};

use std::time::Duration;

use QoS::{AtLeastOnce, AtMostOnce};
use Version::{V5, V31, V311};

/// A client that takes no packet larger than its CONNACK was.
fn small(broker: &Broker, id: &str) -> (Wire, usize) {
    let mut wire = broker.connect();
    let properties =
        ConnectProperties { maximum_packet_size: Some(1000), ..ConnectProperties::default() };
    wire.send(&Packet::Connect(Connect { properties, ..connect(V5, id) }));
    let connack = wire.frame();
    assert_eq!((connack[0], connack[3]), (0x20, 0));
    // Without what a CONNACK may leave out, this is certainly enough.
    let size = connack.len().min(24);
    let mut wire = broker.connect();
    let properties = ConnectProperties {
        maximum_packet_size: Some(size as u32),
        request_problem_information: Some(true),
        ..ConnectProperties::default()
    };
    wire.handshake(Connect { properties, ..connect(V5, id) });
    (wire, size)
}

/// What fits is answered, whatever it says, and nothing is larger than the client takes: reasons
/// and properties that have no room are left out.
///
/// v5: 3.1.2-24, 3.2.2-19, 3.2.2-20, 3.4.2-2, 3.4.2-3, 3.5.2-2, 3.5.2-3, 3.6.2-2, 3.6.2-3
/// v5: 3.7.2-2, 3.7.2-3, 3.9.2-1, 3.9.2-2, 3.11.2-1, 3.11.2-2, 3.14.2-3, 3.14.2-4
/// family: 25
#[test]
fn answers_fit_the_client() {
    on_all(|broker| {
        let (mut wire, size) = small(broker, "small");
        // Each of these is refused, or something is to be said of it.
        for (asked, answer, code) in [
            (packet(0x32, "'$share/g/a' 0001 {}"), PacketKind::PubAck, 0x90),
            (packet(0x32, "'nobody' 0001 {}"), PacketKind::PubAck, 0x10),
            (packet(0x34, "'$share/g/a' 0001 {}"), PacketKind::PubRec, 0x90),
            (packet(0x50, "0009"), PacketKind::PubRel, 0x92),
            (packet(0x62, "0009"), PacketKind::PubComp, 0x92),
            (packet(0x82, "0001 {} 'a#' 00"), PacketKind::SubAck, 0x8f),
            (packet(0xa2, "0001 {} 'a'"), PacketKind::UnsubAck, 0x11),
            (packet(0xa2, "0001 {} 'a#'"), PacketKind::UnsubAck, 0x8f),
            (packet(0x36, "'a' 0001 {}"), PacketKind::Disconnect, 0x81),
        ] {
            wire.send_bytes(&asked);
            let frame = wire.frame();
            assert!(frame.len() <= size, "{} bytes of {size}: {frame:?}", frame.len());
            assert_eq!(frame[0] >> 4, answer as u8, "{frame:?}");
            let at = match answer {
                PacketKind::SubAck | PacketKind::UnsubAck => frame.len() - 1,
                PacketKind::Disconnect => 2,
                _ => 4,
            };
            assert_eq!(frame[at], code, "{frame:?}");
        }
        wire.expect_closed();
    });
}

/// An answer that cannot be made small enough is not sent, and the connection goes on: a SUBACK
/// for more filters than the client has room for.
///
/// v5: 3.1.2-24, 3.1.2-25
/// family: 25, 49
#[test]
fn an_answer_that_cannot_fit_is_not_sent() {
    on_all(|broker| {
        let (mut wire, _) = small(broker, "small");
        let filters: String = (0..30).map(|n| format!("'{n}' 00")).collect();
        wire.send_bytes(&packet(0x82, &format!("0001 {{}} {filters}")));
        wire.expect_nothing_before_ping();
        wire.publish(publish("7", AtMostOnce, b""));
        wire.expect_publish("7", AtMostOnce, b"");
    });
}

/// A PINGRESP for each PINGREQ, in its place among the other answers.
///
/// v5: 3.12.4-1
/// v3.1.1: 3.12.4-1
/// v3.1: 3.12
/// family: 77
#[test]
fn pings() {
    on_all(|broker| {
        for version in [V31, V311, V5] {
            let none = if version == V5 { "{}" } else { "" };
            let mut wire = broker.connect();
            wire.handshake(connect(version, "pings"));
            let mut all = Vec::from([0xc0, 0, 0xc0, 0]);
            all.extend(packet(0x82, &format!("0001 {none} 'a' 00")));
            all.extend([0xc0, 0]);
            wire.send_bytes(&all);
            wire.expect_hex("d0 00");
            wire.expect_hex("d0 00");
            assert_eq!(wire.frame()[0], 0x90);
            wire.expect_hex("d0 00");
        }
    });
}

/// Nobody is sent a PINGRESP, or anything else, who did not ask for it; and nobody is answered
/// before CONNACK.
///
/// v5: 3.2.0-1, 3.14.0-1
/// v3.1.1: 3.2.0-1
/// family: 19, 77
#[test]
fn nothing_comes_unasked() {
    on_all_at_once(
        |builder| builder,
        |broker, _| {
            let mut wires = Vec::new();
            for version in [V31, V311, V5] {
                let mut wire = broker.connect();
                let keep_alive = 1;
                wire.handshake(Connect { keep_alive, ..connect(version, &format!("{version:?}")) });
                wires.push(wire);
            }
            let mut stranger = broker.connect();
            stranger.send_hex("c0 00");
            stranger.expect_closed();
            let mut silent = broker.connect();
            silent.expect_silence(Duration::from_millis(200));
            for wire in &mut wires {
                // Any packet keeps it alive; none of these has an answer.
                for _ in 0..5 {
                    let topic = publish("nobody", AtMostOnce, b"");
                    wire.send(&Packet::Publish(topic));
                    assert_eq!(wire.next_within(Duration::from_millis(50)), Next::Silence);
                }
            }
            // A CONNECT that waits for the rest of its bytes is no reason to say anything.
            let connect = packet(0x10, "'MQTT' 05 02 003c {} 'late'");
            let (first, rest) = connect.split_at(10);
            silent.send_bytes(first);
            silent.expect_silence(Duration::from_millis(200));
            silent.send_bytes(rest);
            assert_eq!(silent.frame()[0], 0x20);
        },
    );
}

/// What is sent right behind CONNECT is answered behind CONNACK.
///
/// v5: 3.2.0-1, 3.2.0-2, 3.1.4-5
/// v3.1.1: 3.2.0-1, 3.1.4-4
/// family: 12, 19
#[test]
fn connack_comes_first() {
    on_all(|broker| {
        // The session has something to say at once, too.
        let mut publisher = broker.connect();
        publisher.handshake(connect(V311, "publisher"));
        let mut queued = 0;
        for (level, none, expiry) in [("04", "", ""), ("05", "{}", "{11 0000003c}")] {
            for round in 0..8 {
                let mut all =
                    packet(0x10, &format!("'MQTT' {level} 00 003c {expiry} '{level} {round}'"));
                all.extend(packet(0x82, &format!("0001 {none} 'a/{level}/{round}' 01")));
                all.extend([0xc0, 0]);
                all.extend(packet(0x32, &format!("'x' 0001 {none}")));
                for present in [0, 1] {
                    let mut wire = broker.connect();
                    wire.send_bytes(&all);
                    let connack = wire.frame();
                    assert_eq!(connack[..1], [0x20]);
                    assert_eq!(connack[2..4], [present, 0]);
                    let mut kinds = Vec::new();
                    while kinds.len() < 3 + usize::from(present) {
                        kinds.push(wire.frame()[0] >> 4);
                    }
                    let answers: Vec<_> = kinds.iter().copied().filter(|kind| *kind != 3).collect();
                    assert_eq!(answers, [9, 13, 4]);
                    wire.send_hex("e0 00");
                    wire.expect_closed();
                    let topic = format!("a/{level}/{round}");
                    publisher.publish(publish(&topic, AtLeastOnce, b"waits"));
                    queued += 1;
                    broker.wait_for_count("broker", "messages_queued", |count| count == queued);
                }
            }
        }
    });
}

/// Behind a DISCONNECT nothing counts: what the client sent after its own is not done, and the
/// broker sends nothing after its own.
///
/// v5: 3.14.4-1, 3.14.4-2
/// v3.1.1: 3.14.4-2
/// v3.1: 3.14
/// family: 78
#[test]
fn nothing_counts_behind_disconnect() {
    on_all(|broker| {
        let mut watching = broker.connect();
        watching.handshake(connect(V311, "watching"));
        watching.subscribe("#", AtMostOnce);
        for version in [V31, V311, V5] {
            let none = if version == V5 { "{}" } else { "" };
            let mut wire = broker.connect();
            wire.handshake(connect(version, "leaves"));
            let mut all = packet(0x30, &format!("'a' {none} 31"));
            all.extend([0xe0, 0]);
            all.extend(packet(0x30, &format!("'a' {none} 32")));
            all.extend([0xc0, 0]);
            wire.send_bytes(&all);
            wire.expect_closed();
            let mut wire = broker.connect();
            wire.handshake(connect(version, "errs"));
            let mut all = packet(0x36, &format!("'a' 0001 {none} 33"));
            all.extend([0xc0, 0]);
            all.extend(packet(0x30, &format!("'a' {none} 34")));
            wire.send_bytes(&all);
            wire.expect_disconnect(ReasonCode::MALFORMED_PACKET);
            let mut wire = broker.connect();
            wire.handshake(connect(version, "errs"));
            wire.publish(publish("a", AtMostOnce, b"5"));
            watching.expect_publish("a", AtMostOnce, b"1");
            watching.expect_publish("a", AtMostOnce, b"5");
        }
    });
}
