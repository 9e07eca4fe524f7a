//! Flow control (4.9): how many messages may be under way, and what that does not hold up.

use noctule::codec::mqtt::{Connect, ConnectProperties, PacketKind, Publish, QoS, Version};

use super::notation::packet;
use super::support::packets::{connect, lasting, publish};
use super::support::{Broker, Wire, on_all};

use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};
use Version::{V5, V311};

fn online(broker: &Broker, version: Version, id: &str) -> Wire {
    let mut wire = broker.connect();
    wire.handshake(connect(version, id));
    wire
}

/// A client that takes so many at once.
fn narrow(broker: &Broker, id: &str, receive_maximum: u16) -> Wire {
    let mut wire = broker.connect();
    let base = lasting(V5, id);
    let receive_maximum = Some(receive_maximum);
    let properties = ConnectProperties { receive_maximum, ..base.properties };
    wire.handshake(Connect { properties, ..base });
    wire
}

/// With the quota used up, everything that is no QoS 1 or 2 PUBLISH goes on as ever, in both
/// directions.
///
/// v5: 3.3.4-9, 3.3.4-10, 4.9.0-1, 4.9.0-2, 4.9.0-3
/// family: 47
#[test]
fn a_quota_of_zero_holds_up_nothing_else() {
    on_all(|broker| {
        let mut publisher = online(broker, V311, "publisher");
        for (used_up_by, pubrec) in
            [(AtLeastOnce, false), (ExactlyOnce, false), (ExactlyOnce, true)]
        {
            let mut wire = narrow(broker, &format!("{used_up_by:?} {pubrec}"), 1);
            wire.subscribe("a", ExactlyOnce);
            publisher.publish(publish("a", used_up_by, b"first"));
            let id = wire.expect_publish("a", used_up_by, b"first").expect("an id").get();
            if pubrec {
                wire.send_ack(PacketKind::PubRec, id);
                wire.expect_ack(PacketKind::PubRel, id);
            }
            publisher.publish(publish("a", AtLeastOnce, b"waits"));
            wire.expect_nothing_before_ping();
            wire.subscribe("b", AtLeastOnce);
            wire.unsubscribe("b");
            wire.publish(publish("x", AtLeastOnce, b""));
            wire.publish(publish("x", ExactlyOnce, b""));
            publisher.publish(publish("a", AtMostOnce, b"passes"));
            wire.expect_publish("a", AtMostOnce, b"passes");
            wire.expect_nothing_before_ping();
            match (used_up_by, pubrec) {
                (ExactlyOnce, false) => {
                    wire.send_ack(PacketKind::PubRec, id);
                    wire.expect_ack(PacketKind::PubRel, id);
                    wire.expect_nothing_before_ping();
                    wire.send_ack(PacketKind::PubComp, id);
                }
                (ExactlyOnce, true) => wire.send_ack(PacketKind::PubComp, id),
                _ => wire.send_ack(PacketKind::PubAck, id),
            }
            wire.take_publish("a", AtLeastOnce, b"waits");
            wire.unsubscribe("a");
        }
    });
}

/// The quota is the connection's: the next one begins with all of its own.
///
/// v5: 4.9.0-1, 4.9.0-2, 3.3.4-9, 4.4.0-1
/// family: 47
#[test]
fn the_quota_begins_anew_with_the_connection() {
    on_all(|broker| {
        let mut publisher = online(broker, V311, "publisher");
        let mut wire = narrow(broker, "quota", 2);
        wire.subscribe("a", ExactlyOnce);
        for number in 0..6_u8 {
            publisher.publish(publish("a", ExactlyOnce, &[number]));
        }
        let mut ids = Vec::new();
        for number in 0..2_u8 {
            ids.push(wire.expect_publish("a", ExactlyOnce, &[number]).expect("an id").get());
        }
        wire.send_ack(PacketKind::PubRec, ids[0]);
        wire.expect_ack(PacketKind::PubRel, ids[0]);
        wire.expect_nothing_before_ping();
        wire.reset();
        // What is owed takes two; two more have room now.
        let mut wire = narrow(broker, "quota", 4);
        wire.expect_ack(PacketKind::PubRel, ids[0]);
        for number in 1..4_u8 {
            let id = wire.expect_publish("a", ExactlyOnce, &[number]).expect("an id").get();
            assert_eq!(id == ids[1], number == 1);
            assert_ne!(id, ids[0]);
            ids.push(id);
        }
        wire.expect_nothing_before_ping();
        wire.send_ack(PacketKind::PubComp, ids[0]);
        wire.expect_publish("a", ExactlyOnce, &[4]);
        wire.expect_nothing_before_ping();
    });
}

/// Without a Receive Maximum a client takes as many as it likes; 65,535 is the most it may say.
///
/// v5: 4.9.0-1
/// family: 47
#[test]
fn the_largest_receive_maximum() {
    const COUNT: u16 = 200;
    on_all(|broker| {
        let mut publisher = online(broker, V311, "publisher");
        let mut wires = [narrow(broker, "most", u16::MAX), online(broker, V5, "default")];
        for wire in &mut wires {
            wire.subscribe("a", AtLeastOnce);
        }
        for number in 0..COUNT {
            publisher.publish(publish("a", AtLeastOnce, &number.to_be_bytes()));
        }
        for wire in &mut wires {
            for number in 0..COUNT {
                wire.expect_publish("a", AtLeastOnce, &number.to_be_bytes());
            }
        }
    });
}

/// A retained message counts like any other: what has no room waits.
///
/// v5: 3.3.4-9, 4.9.0-2
/// family: 47, 69
#[test]
fn retained_messages_count() {
    on_all(|broker| {
        let mut publisher = online(broker, V311, "publisher");
        for number in 0..5 {
            let topic = format!("r/{number}");
            publisher.publish(Publish { retain: true, ..publish(&topic, AtLeastOnce, b"kept") });
        }
        let mut wire = narrow(broker, "narrow", 2);
        wire.send_bytes(&packet(0x82, "0001 {} 'r/+' 01"));
        wire.expect_among_others(&packet(0x90, "0001 {} 01"));
        let mut ids = Vec::new();
        for number in 0..5 {
            // Never a third one while two are open.
            if ids.len() == 2 {
                wire.expect_nothing_before_ping();
                wire.send_ack(PacketKind::PubAck, ids.remove(0));
            }
            let frame = wire.frame();
            assert_eq!(frame[0], 0x33, "number {number}");
            ids.push(u16::from_be_bytes([frame[7], frame[8]]));
        }
        wire.send_ack(PacketKind::PubAck, ids[0]);
        wire.send_ack(PacketKind::PubAck, ids[1]);
        wire.expect_nothing_before_ping();
    });
}
