//! From every version to every version: what only 5.0 can say reaches 5.0, and no trace of it the
//! others. Frames are compared whole, so that nothing in them is more than it should be.

use noctule::codec::mqtt::{
    Connect, Packet, PacketKind, Publish, PublishProperties, QoS, UserProperties, Version, Will,
};

use super::notation::packet;
use super::support::packets::{connect, lasting, publish};
use super::support::{Broker, Wire, on_all};

use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};
use Version::{V5, V31, V311};

const VERSIONS: [Version; 3] = [V31, V311, V5];
const ALL_QOS: [QoS; 3] = [AtMostOnce, AtLeastOnce, ExactlyOnce];
const USERS: [(&str, &str); 4] = [("b", "1"), ("a", ""), ("b", "0"), ("b", "1")];
/// Those properties that travel as they are, in the notation; the order is the broker's own.
const ALL: &str =
    "{01 01 08 'answer' 09 0002 00ff 03 'text' 26 'b' '1' 26 'a' '' 26 'b' '0' 26 'b' '1'}";

fn online(broker: &Broker, version: Version, id: &str) -> Wire {
    let mut wire = broker.connect();
    wire.handshake(connect(version, id));
    wire
}

/// All that a publisher can say of a message, if its version can say anything.
fn properties(version: Version) -> PublishProperties<'static> {
    if version != V5 {
        return PublishProperties::default();
    }
    PublishProperties {
        payload_format: Some(true),
        response_topic: Some("answer"),
        correlation_data: Some(b"\0\xff"),
        content_type: Some("text"),
        user_properties: UserProperties::new(&USERS),
        ..PublishProperties::default()
    }
}

/// The next packet is this message from a publisher of version `from`: to older clients exactly its
/// bytes, to 5.0 with all properties that it was given, and no other.
fn expect(wire: &mut Wire, from: Version, topic: &str, qos: QoS, flags: u8, payload: &str) {
    let frame = wire.frame();
    let id = match qos {
        AtMostOnce => String::new(),
        _ => {
            let at = 2 + 2 + topic.len();
            format!("{:02x}{:02x}", frame[at], frame[at + 1])
        }
    };
    let first = 0x30 | (qos as u8) << 1 | flags;
    if wire.version == V5 {
        let decoded =
            noctule::codec::mqtt::decode(&frame, Some(V5), noctule::codec::mqtt::Side::Client);
        let Ok(Packet::Publish(got)) = decoded else { panic!("a PUBLISH, not {frame:?}") };
        assert_eq!(got.properties, properties(from));
        let section = if from == V5 { ALL } else { "{}" };
        let expected = packet(first, &format!("'{topic}' {id} {section} {payload}"));
        assert_eq!(frame.len(), expected.len(), "{frame:02x?}");
        assert_eq!((frame[0], got.topic), (first, topic));
    } else {
        assert_eq!(frame, packet(first, &format!("'{topic}' {id} {payload}")));
    }
    if qos > AtMostOnce {
        let id = u16::from_str_radix(&id, 16).expect("hex");
        match qos {
            AtLeastOnce => wire.send_ack(PacketKind::PubAck, id),
            _ => {
                wire.send_ack(PacketKind::PubRec, id);
                wire.expect_ack(PacketKind::PubRel, id);
                wire.send_ack(PacketKind::PubComp, id);
            }
        }
    }
}

/// Live messages, in all pairs, at every QoS.
///
/// v5: 2.2.2-1, 3.3.2-4, 3.3.2-15, 3.3.2-16, 3.3.2-17, 3.3.2-18, 3.3.2-20, 3.8.4-8, 4.3.1-1
/// v3.1.1: 3.8.4-6, 4.3.1-1
/// v3.1: 3.3
/// family: 38, 57
#[test]
fn live_messages() {
    on_all(|broker| {
        for from in VERSIONS {
            let mut publisher = online(broker, from, &format!("from {from:?}"));
            for to in VERSIONS {
                let mut wire = online(broker, to, &format!("to {to:?}"));
                for granted in ALL_QOS {
                    let topic = format!("{from:?}/{to:?}/{granted:?}");
                    wire.subscribe(&topic, granted);
                    for qos in ALL_QOS {
                        let message = publish(&topic, qos, b"x");
                        publisher.publish(Publish { properties: properties(from), ..message });
                        expect(&mut wire, from, &topic, qos.min(granted), 0, "78");
                    }
                }
                wire.expect_nothing_before_ping();
            }
        }
    });
}

/// Retained messages, in all pairs, at every QoS.
///
/// v5: 3.3.1-5, 3.3.1-9, 3.3.2-4, 3.3.2-15, 3.3.2-16, 3.3.2-17, 3.3.2-18, 3.3.2-20
/// v3.1.1: 3.3.1-5, 3.3.1-6, 3.3.1-8
/// v3.1: 2.1
/// family: 57, 59, 68
#[test]
fn retained_messages() {
    on_all(|broker| {
        for from in VERSIONS {
            for qos in ALL_QOS {
                let topic = format!("{from:?}/{qos:?}");
                let mut publisher = online(broker, from, &format!("from {from:?}"));
                let message = Publish { retain: true, ..publish(&topic, qos, b"x") };
                publisher.publish(Publish { properties: properties(from), ..message });
                // Done with it, on whichever shard it is kept.
                publisher.subscribe(&topic, AtMostOnce);
                expect(&mut publisher, from, &topic, AtMostOnce, 1, "78");
                for to in VERSIONS {
                    for granted in ALL_QOS {
                        let mut wire = online(broker, to, &format!("to {to:?}"));
                        wire.subscribe(&topic, granted);
                        expect(&mut wire, from, &topic, qos.min(granted), 1, "78");
                        wire.expect_nothing_before_ping();
                    }
                }
            }
        }
    });
}

/// Messages that waited for their receiver, in all pairs; the receiver may come back in another
/// version than it left in.
///
/// v5: 3.1.2-5, 3.3.2-4, 3.3.2-15, 3.3.2-16, 3.3.2-17, 3.3.2-18, 3.3.2-20, 4.5.0-1
/// v3.1.1: 3.1.2-5, 4.5.0-1
/// v3.1: 3.1
/// family: 38, 57
#[test]
fn messages_that_waited() {
    on_all(|broker| {
        let mut queued = 0;
        for left in VERSIONS {
            for back in VERSIONS {
                let id = format!("{left:?} {back:?}");
                let mut wire = broker.connect();
                wire.handshake(lasting(left, &id));
                for from in VERSIONS {
                    wire.subscribe(&format!("{id}/{from:?}"), ExactlyOnce);
                }
                wire.send_hex("e0 00");
                wire.expect_closed();
                for from in VERSIONS {
                    let mut publisher = online(broker, from, "publisher");
                    for qos in [AtLeastOnce, ExactlyOnce] {
                        let topic = format!("{id}/{from:?}");
                        let message = publish(&topic, qos, b"x");
                        publisher.publish(Publish { properties: properties(from), ..message });
                        queued += 1;
                        // One after the other: publishers on several shards have no order.
                        broker.wait_for_count("broker", "messages_queued", |n| n == queued);
                    }
                }
                let mut wire = broker.connect();
                assert_eq!(wire.handshake(lasting(back, &id)), back != V31);
                // What waits is sent on at once, those of one QoS in order; between the two there is
                // none.
                let mut seen: Vec<_> = (0..6).map(|_| wire.frame()).collect();
                seen.sort_by_key(|frame| frame[0]);
                for (frame, (qos, from)) in seen.iter().zip(
                    [AtLeastOnce, ExactlyOnce]
                        .into_iter()
                        .flat_map(|qos| VERSIONS.map(|from| (qos, from))),
                ) {
                    let topic = format!("{id}/{from:?}");
                    let section = match (back, from) {
                        (V5, V5) => ALL,
                        (V5, _) => "{}",
                        _ => "",
                    };
                    let at = 4 + topic.len();
                    let packet_id = format!("{:02x}{:02x}", frame[at], frame[at + 1]);
                    let body = format!("'{topic}' {packet_id} {section} 78");
                    let expected = packet(0x30 | (qos as u8) << 1, &body);
                    assert_eq!(frame.len(), expected.len(), "{frame:02x?}");
                    assert_eq!(frame[..at], expected[..at]);
                    let got = noctule::codec::mqtt::decode(
                        frame,
                        Some(back),
                        noctule::codec::mqtt::Side::Client,
                    );
                    let Ok(Packet::Publish(got)) = got else { panic!("a PUBLISH") };
                    let given = if back == V5 { properties(from) } else { Default::default() };
                    assert_eq!(got.properties, given);
                }
                for from in VERSIONS {
                    wire.send_bytes(&unsubscribe(back, &format!("{id}/{from:?}")));
                    assert_eq!(wire.frame()[0], 0xb0);
                }
            }
        }
    });
}

fn unsubscribe(version: Version, filter: &str) -> Vec<u8> {
    let none = if version == V5 { "{}" } else { "" };
    packet(0xa2, &format!("0001 {none} '{filter}'"))
}

/// Wills, in all pairs, at every QoS.
///
/// v5: 3.1.2-9, 3.1.2-14, 3.1.3-10, 3.3.2-4, 3.3.2-15, 3.3.2-16, 3.3.2-17, 3.3.2-20
/// v3.1.1: 3.1.2-8, 3.1.2-9, 3.1.2-14, 3.1.2-16
/// v3.1: 3.1
/// family: 33, 57
#[test]
fn wills() {
    on_all(|broker| {
        let mut wires: Vec<_> =
            VERSIONS.iter().map(|to| online(broker, *to, &format!("to {to:?}"))).collect();
        for wire in &mut wires {
            wire.subscribe("will", ExactlyOnce);
        }
        for from in VERSIONS {
            for qos in ALL_QOS {
                let mut owner = broker.connect();
                let will = Will {
                    topic: "will",
                    payload: b"x",
                    qos,
                    retain: false,
                    delay_interval: 0,
                    properties: properties(from),
                };
                owner.handshake(Connect { will: Some(will), ..connect(from, "owner") });
                owner.finish();
                for wire in &mut wires {
                    expect(wire, from, "will", qos, 0, "78");
                }
            }
        }
        for wire in &mut wires {
            wire.expect_nothing_before_ping();
        }
    });
}

/// What 5.0 may say of a subscription is nothing for the others, and does nothing to them: theirs
/// are sent retained messages always, RETAIN never on live ones, and their own messages.
///
/// v5: 3.3.1-12, 3.8.3-3
/// v3.1.1: 3.3.1-6, 3.3.1-9
/// v3.1: 3.3
/// family: 57, 68, 70
#[test]
fn subscriptions_of_older_versions() {
    on_all(|broker| {
        let mut new = online(broker, V5, "new");
        // No Local, Retain As Published, never a retained message, an identifier.
        new.send_bytes(&packet(0x82, "0001 {0b05} 'a' 2d"));
        new.expect_bytes(&packet(0x90, "0001 {} 01"));
        for version in [V31, V311] {
            let mut old = online(broker, version, "old");
            for _ in 0..2 {
                old.publish(Publish { retain: true, ..publish("a", AtMostOnce, b"x") });
                new.expect_bytes(&packet(0x31, "'a' {0b05} 78"));
                old.subscribe("a", AtMostOnce);
                old.expect_bytes(&packet(0x31, "'a' 78"));
                old.publish(Publish { retain: true, ..publish("a", AtMostOnce, b"y") });
                old.expect_bytes(&packet(0x30, "'a' 79"));
                new.expect_bytes(&packet(0x31, "'a' {0b05} 79"));
                old.expect_nothing_before_ping();
                old.unsubscribe("a");
            }
        }
        new.publish(publish("a", AtMostOnce, b"own"));
        new.expect_nothing_before_ping();
    });
}
