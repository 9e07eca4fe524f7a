//! QoS 0, 1 and 2 step by step, in both directions (4.3, 4.4): what each packet is answered with,
//! what it frees, and what comes again.

use std::time::Duration;

use noctule::codec::mqtt::{
    Connect, ConnectProperties, Packet, PacketKind, Publish, PublishProperties, QoS, ReasonCode,
    Version,
};

use super::notation::packet;
use super::support::packets::{connect, lasting, publish};
use super::support::{Broker, Wire, on_all, on_all_at_once};

use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};
use Version::{V5, V31, V311};

fn online(broker: &Broker, version: Version, id: &str) -> Wire {
    let mut wire = broker.connect();
    wire.handshake(connect(version, id));
    wire
}

/// A property section without properties, where there is one.
fn none(version: Version) -> &'static str {
    if version == V5 { "{}" } else { "" }
}

/// The first byte, and the packet identifier of a PUBLISH to "a".
fn first_and_id(frame: &[u8]) -> (u8, [u8; 2]) {
    (frame[0], [frame[5], frame[6]])
}

/// Towards a subscriber: DUP and RETAIN are 0; each new message has an identifier that is not 0 and
/// not in use; one that was acknowledged may come again.
///
/// v5: 2.2.1-2, 2.2.1-4, 4.3.1-1, 4.3.2-1, 4.3.2-2, 4.3.3-1, 4.3.3-2
/// v3.1.1: 2.3.1-4, 2.3.1-5, 4.3.1-1, 4.3.2-1, 4.3.3-1
/// v3.1: 2.4
/// family: 44
#[test]
fn new_messages() {
    on_all(|broker| {
        let mut publisher = online(broker, V5, "publisher");
        for version in [V31, V311, V5] {
            let mut wire = online(broker, version, "subscriber");
            wire.subscribe("a", ExactlyOnce);
            let mut open = Vec::new();
            for round in 0..20 {
                for qos in [AtMostOnce, AtLeastOnce, ExactlyOnce] {
                    publisher.publish(publish("a", qos, b"x"));
                    let frame = wire.frame();
                    if qos == AtMostOnce {
                        let body = format!("'a' {} 78", none(version));
                        assert_eq!(frame, packet(0x30, &body));
                        continue;
                    }
                    let (first, id) = first_and_id(&frame);
                    assert_eq!(first, 0x30 | (qos as u8) << 1);
                    assert_ne!(id, [0, 0]);
                    assert!(!open.contains(&id), "{id:?} is in use");
                    open.push(id);
                }
                // Every other message stays open for good.
                if round % 2 == 0 {
                    let [high, low] = open.pop().expect("just sent");
                    wire.send_bytes(&[0x50, 2, high, low]);
                    wire.expect_bytes(&[0x62, 2, high, low]);
                    wire.send_bytes(&[0x70, 2, high, low]);
                }
            }
        }
    });
}

/// From a publisher: PUBACK and PUBREC have the identifier of the PUBLISH, in the order of the
/// PUBLISHes; after PUBACK the same identifier is a new message, whatever its DUP says.
///
/// v5: 2.2.1-5, 3.3.1-3, 3.3.4-1, 4.3.2-4, 4.3.2-5, 4.3.3-8
/// v3.1.1: 2.3.1-6, 3.3.1-3, 3.3.4-1, 4.3.2-2, 4.3.3-2, 7.0.0-2
/// v3.1: 3.3, 4.1
/// family: 38
#[test]
fn what_a_publisher_is_answered() {
    on_all(|broker| {
        let mut subscriber = online(broker, V311, "subscriber");
        subscriber.subscribe("a", AtLeastOnce);
        for version in [V31, V311, V5] {
            let mut wire = online(broker, version, "publisher");
            let none = none(version);
            let mut all = packet(0x30, &format!("'a' {none} 30"));
            for (first, id, payload) in [
                (0x32, "ffff", "31"),
                (0x34, "0102", "32"),
                (0x32, "0100", "33"),
                (0x34, "0001", "34"),
                // Again, though both were acknowledged: new ones.
                (0x3a, "ffff", "35"),
                (0x32, "ffff", "36"),
            ] {
                all.extend(packet(first, &format!("'a' {id} {none} {payload}")));
            }
            wire.send_bytes(&all);
            for answer in ["4002ffff", "50020102", "40020100", "50020001", "4002ffff", "4002ffff"] {
                wire.expect_hex(answer);
            }
            for payload in [b"0", b"1", b"2", b"3", b"4", b"5", b"6"] {
                let qos = if payload == b"0" { AtMostOnce } else { AtLeastOnce };
                assert_eq!(subscriber.take_publish("a", qos, payload), (false, false));
            }
            wire.send_hex("62020001 62020102");
            wire.expect_hex("70020001");
            wire.expect_hex("70020102");
            wire.expect_nothing_before_ping();
        }
        subscriber.expect_nothing_before_ping();
    });
}

/// A QoS 2 message that was refused is over: the same identifier is a new message, and there is
/// nothing to release.
///
/// v5: 3.5.2-1, 3.7.2-1, 4.3.3-9
/// family: 42, 52
#[test]
fn a_refused_qos_2_message_is_over() {
    on_all(|broker| {
        let mut subscriber = online(broker, V5, "subscriber");
        subscriber.subscribe("#", AtMostOnce);
        let mut wire = online(broker, V5, "publisher");
        for _ in 0..3 {
            wire.send_bytes(&packet(0x34, "'$share/g/a' 0001 {} 31"));
            assert_eq!(wire.expect_ack(PacketKind::PubRec, 1), ReasonCode::TOPIC_NAME_INVALID);
        }
        wire.send_hex("62 02 0001");
        let reason = wire.expect_ack(PacketKind::PubComp, 1);
        assert_eq!(reason, ReasonCode::PACKET_IDENTIFIER_NOT_FOUND);
        // With DUP, as a client that takes it for the same one would send it.
        wire.send_bytes(&packet(0x3c, "'a' 0001 {} 32"));
        wire.expect_hex("50 02 0001");
        subscriber.expect_bytes(&packet(0x30, "'a' {} 32"));
        wire.send_hex("62 02 0001");
        wire.expect_hex("70 02 0001");
        subscriber.expect_nothing_before_ping();
    });
}

/// A PUBREL is answered whatever reason it has, and so is one that comes again.
///
/// v5: 3.7.2-1, 4.3.3-11, 2.2.1-5
/// v3.1.1: 4.3.3-2
/// v3.1: 4.1
/// family: 42
#[test]
fn pubrel() {
    on_all(|broker| {
        for version in [V31, V311, V5] {
            let mut wire = online(broker, version, "publisher");
            wire.send_bytes(&packet(0x34, &format!("'a' 0301 {}", none(version))));
            wire.expect_ack(PacketKind::PubRec, 0x0301);
            let unknown = if version == V5 { "70 03 0103 92" } else { "70 02 0103" };
            wire.send_hex("62 02 0103");
            wire.expect_hex(unknown);
            wire.send_hex("62 02 0301");
            wire.expect_hex("70 02 0301");
            let unknown = if version == V5 { "70 03 0301 92" } else { "70 02 0301" };
            wire.send_hex("62 02 0301");
            wire.expect_hex(unknown);
        }
        let mut wire = online(broker, V5, "publisher");
        for pubrel in ["62 03 0001 00", "62 04 0001 00 00", "62 03 0001 92"] {
            wire.send_bytes(&packet(0x34, "'a' 0001 {}"));
            wire.expect_ack(PacketKind::PubRec, 1);
            wire.send_hex(pubrel);
            wire.expect_hex("70 02 0001");
        }
    });
}

/// Towards a subscriber, step by step: PUBREC is answered by PUBREL as often as it comes; only
/// PUBCOMP ends it, and nothing comes by itself. A PUBREC with a reason below 0x80 is no error.
///
/// v5: 3.6.2-1, 4.3.3-4, 4.3.3-5, 4.3.3-6, 2.2.1-5
/// v3.1.1: 2.3.1-6, 4.3.3-1
/// v3.1: 4.1
/// family: 41, 43
#[test]
fn pubrec() {
    on_all(|broker| {
        let mut publisher = online(broker, V311, "publisher");
        for version in [V31, V311, V5] {
            let mut wire = online(broker, version, "subscriber");
            wire.subscribe("a", ExactlyOnce);
            publisher.publish(publish("a", ExactlyOnce, b"x"));
            let (_, [high, low]) = first_and_id(&wire.frame());
            // Before PUBREC it says nothing.
            wire.send_bytes(&[0x70, 2, high, low]);
            wire.expect_nothing_before_ping();
            for _ in 0..3 {
                wire.send_bytes(&[0x50, 2, high, low]);
                wire.expect_bytes(&[0x62, 2, high, low]);
            }
            wire.send_bytes(&[0x70, 2, high, low]);
            wire.expect_nothing_before_ping();
            if version == V5 {
                publisher.publish(publish("a", ExactlyOnce, b"x"));
                let (_, [high, low]) = first_and_id(&wire.frame());
                wire.send_bytes(&[0x50, 3, high, low, 0x10]);
                wire.expect_bytes(&[0x62, 2, high, low]);
                wire.send_bytes(&[0x70, 3, high, low, 0x92]);
                wire.expect_nothing_before_ping();
            }
        }
    });
}

/// The same identifier in both directions at once: they do not know of each other.
///
/// v5: 2.2.1-5, 4.3.3-10
/// v3.1.1: 2.3.1-6
/// v3.1: 2.4
/// family: 44
#[test]
fn the_directions_have_identifiers_of_their_own() {
    on_all(|broker| {
        for version in [V31, V311, V5] {
            let mut wire = online(broker, version, "both");
            wire.subscribe("a", ExactlyOnce);
            let mut publisher = online(broker, V311, "publisher");
            publisher.publish(publish("a", ExactlyOnce, b"down"));
            let id = wire.expect_publish("a", ExactlyOnce, b"down").expect("an id").get();
            let [high, low] = id.to_be_bytes();
            // Up, with the same identifier, in the middle of the other exchange.
            wire.send_bytes(&packet(0x34, &format!("'b' {high:02x}{low:02x} {}", none(version))));
            wire.expect_ack(PacketKind::PubRec, id);
            wire.send_ack(PacketKind::PubRec, id);
            wire.expect_ack(PacketKind::PubRel, id);
            wire.send_ack(PacketKind::PubRel, id);
            assert_eq!(wire.expect_ack(PacketKind::PubComp, id), ReasonCode::SUCCESS);
            wire.send_ack(PacketKind::PubComp, id);
            wire.expect_nothing_before_ping();
            // A SUBSCRIBE's identifier is no PUBLISH's, either.
            let subscribe = format!("{high:02x}{low:02x} {} 'c' 01", none(version));
            wire.send_bytes(&packet(0x82, &subscribe));
            assert_eq!(wire.frame()[0], 0x90);
            publisher.publish(publish("a", AtLeastOnce, b"next"));
            wire.take_publish("a", AtLeastOnce, b"next");
        }
    });
}

/// Nothing is sent again on a connection that lives: no PUBLISH, no PUBREL, in no version. 3.1
/// allows it, and we do without. That no timer does so later is shown without waiting, in `broker`.
///
/// v5: 4.4.0-1
/// family: 56
#[test]
fn nothing_comes_again_on_a_live_connection() {
    on_all_at_once(
        |builder| builder,
        |broker, _| {
            let mut publisher = online(broker, V311, "publisher");
            let mut wires = Vec::new();
            for version in [V31, V311, V5] {
                let mut wire = online(broker, version, &format!("{version:?}"));
                wire.subscribe("a", ExactlyOnce);
                wires.push(wire);
            }
            publisher.publish(publish("a", AtLeastOnce, b"1"));
            publisher.publish(publish("a", ExactlyOnce, b"2"));
            publisher.publish(publish("a", ExactlyOnce, b"3"));
            for wire in &mut wires {
                wire.expect_publish("a", AtLeastOnce, b"1");
                wire.expect_publish("a", ExactlyOnce, b"2");
                let id = wire.expect_publish("a", ExactlyOnce, b"3").expect("an id").get();
                wire.send_ack(PacketKind::PubRec, id);
                wire.expect_ack(PacketKind::PubRel, id);
            }
            std::thread::sleep(Duration::from_secs(3));
            for wire in &mut wires {
                wire.expect_nothing_before_ping();
            }
        },
    );
}

/// The time of a message being over ends no exchange that has begun: PUBLISH comes again, PUBREL
/// comes again, and a publisher's PUBREL is answered. What has not begun is not sent.
///
/// v5: 3.3.2-5, 4.3.3-7, 4.3.3-13
/// family: 45, 46
#[test]
fn expiry_ends_no_exchange() {
    on_all_at_once(
        |builder| builder,
        |broker, _| {
            let mut publisher = online(broker, V5, "publisher");
            let base = lasting(V5, "subscriber");
            let properties = ConnectProperties { receive_maximum: Some(3), ..base.properties };
            let session = Connect { properties, ..base };
            let mut wire = broker.connect();
            wire.handshake(session);
            wire.subscribe("a", ExactlyOnce);
            let brief = PublishProperties {
                message_expiry_interval: Some(1),
                ..PublishProperties::default()
            };
            let mut ids = Vec::new();
            for (qos, payload) in
                [(AtLeastOnce, b"1"), (ExactlyOnce, b"2"), (ExactlyOnce, b"3"), (AtLeastOnce, b"4")]
            {
                publisher.publish(Publish { properties: brief, ..publish("a", qos, payload) });
                if payload != b"4" {
                    ids.push(wire.expect_publish("a", qos, payload).expect("an id").get());
                }
            }
            wire.send_ack(PacketKind::PubRec, ids[2]);
            wire.expect_ack(PacketKind::PubRel, ids[2]);
            wire.reset();
            // And one in the other direction, which nobody releases in time.
            publisher.send(&Packet::Publish(Publish {
                properties: brief,
                ..publish("b", ExactlyOnce, b"")
            }));
            publisher.expect_ack(PacketKind::PubRec, 1);
            std::thread::sleep(Duration::from_millis(2100));
            publisher.send_hex("62 02 0001");
            publisher.expect_hex("70 02 0001");
            let mut wire = broker.connect();
            assert!(wire.handshake(session));
            wire.expect_ack(PacketKind::PubRel, ids[2]);
            for (qos, payload, id) in [(AtLeastOnce, b"1", ids[0]), (ExactlyOnce, b"2", ids[1])] {
                let Packet::Publish(again) = wire.recv() else { panic!("a PUBLISH") };
                assert!(again.dup, "{again:?}");
                assert_eq!((again.qos, again.payload), (qos, &payload[..]));
                assert_eq!(again.packet_id.map(|id| id.get()), Some(id));
                // Nothing is left of its second.
                assert_eq!(again.properties.message_expiry_interval, Some(0));
            }
            for id in [ids[1], ids[2]] {
                if id == ids[1] {
                    wire.send_ack(PacketKind::PubRec, id);
                    wire.expect_ack(PacketKind::PubRel, id);
                }
                wire.send_ack(PacketKind::PubComp, id);
            }
            wire.send_ack(PacketKind::PubAck, ids[0]);
            wire.expect_nothing_before_ping();
            broker.wait_for_count("broker", "dropped_expired", |count| count == 1);
        },
    );
}

/// An acknowledgement of the wrong kind is a protocol error, which ends the connection and leaves
/// the message: it comes again.
///
/// v5: 4.13.1-1, 4.3.2-3, 4.3.3-3
/// v3.1.1: 4.8.0-1, 4.3.2-1, 4.3.3-1
/// family: 43
#[test]
fn an_acknowledgement_of_the_other_qos() {
    on_all(|broker| {
        let mut publisher = online(broker, V311, "publisher");
        for version in [V31, V311, V5] {
            for (qos, wrong) in
                [(AtLeastOnce, PacketKind::PubRec), (ExactlyOnce, PacketKind::PubAck)]
            {
                let id = format!("{version:?} {qos:?}");
                let mut wire = broker.connect();
                wire.handshake(lasting(version, &id));
                wire.subscribe("a", qos);
                publisher.publish(publish("a", qos, b"x"));
                let packet_id = wire.expect_publish("a", qos, b"x").expect("an id").get();
                wire.send_ack(wrong, packet_id);
                wire.expect_disconnect(ReasonCode::PROTOCOL_ERROR);
                let mut wire = broker.connect();
                wire.handshake(lasting(version, &id));
                assert_eq!(wire.take_publish("a", qos, b"x"), (true, false));
                wire.unsubscribe("a");
                wire.expect_nothing_before_ping();
            }
        }
    });
}

/// A client that refuses a message has had it: it does not come again, neither now nor on the next
/// connection, and its identifier is free.
///
/// v5: 4.4.0-2, 4.3.3-4
/// family: 43
#[test]
fn refused_messages_do_not_come_again() {
    on_all(|broker| {
        let mut publisher = online(broker, V311, "publisher");
        let mut wire = broker.connect();
        wire.handshake(lasting(V5, "refuses"));
        wire.subscribe("a", ExactlyOnce);
        for (qos, refusal) in [(AtLeastOnce, 0x40), (ExactlyOnce, 0x50)] {
            for reason in [0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99] {
                publisher.publish(publish("a", qos, &[reason]));
                let id = wire.expect_publish("a", qos, &[reason]).expect("an id").get();
                let [high, low] = id.to_be_bytes();
                wire.send_bytes(&[refusal, 3, high, low, reason]);
            }
        }
        wire.expect_nothing_before_ping();
        wire.reset();
        let mut wire = broker.connect();
        assert!(wire.handshake(lasting(V5, "refuses")));
        publisher.publish(publish("a", ExactlyOnce, b"next"));
        assert_eq!(wire.take_publish("a", ExactlyOnce, b"next"), (false, false));
        wire.expect_nothing_before_ping();
    });
}
