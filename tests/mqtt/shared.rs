//! Shared Subscriptions (4.8.2).

use std::collections::BTreeSet;
use std::time::Duration;

use noctule::codec::mqtt::{Connect, ConnectProperties, Packet, PacketKind, Publish, QoS, Version};

use super::notation::packet;
use super::support::packets::{connect, publish};
use super::support::{Broker, Next, Wire, on_all};

use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};
use Version::{V5, V311};

fn online(broker: &Broker, version: Version, id: &str) -> Wire {
    let mut wire = broker.connect();
    wire.handshake(connect(version, id));
    wire
}

fn members(broker: &Broker, group: &str, count: usize, qos: QoS) -> Vec<Wire> {
    (0..count)
        .map(|number| {
            let version = if number % 2 == 0 { V5 } else { V311 };
            let mut wire = online(broker, version, &format!("{group}-{number}"));
            wire.subscribe(&format!("$share/{group}/a/+"), qos);
            wire
        })
        .collect()
}

/// Everything that comes to these until `wanted` messages have come; each at most once.
fn gather(wires: &mut [Wire], wanted: usize) -> BTreeSet<Vec<u8>> {
    let mut all = BTreeSet::new();
    let deadline = std::time::Instant::now() + Duration::from_secs(15);
    while all.len() < wanted {
        assert!(std::time::Instant::now() < deadline, "{} of {wanted} have come", all.len());
        for wire in &mut *wires {
            while let Next::Frame(frame) = wire.next_within(Duration::from_millis(1)) {
                let frame = noctule::codec::mqtt::decode(
                    &frame,
                    Some(wire.version),
                    noctule::codec::mqtt::Side::Client,
                );
                let Ok(Packet::Publish(got)) = frame else { panic!("a PUBLISH") };
                assert!(!got.retain);
                let payload = got.payload.to_vec();
                if let Some(id) = got.packet_id {
                    wire.send_ack(PacketKind::PubAck, id.get());
                }
                assert!(all.insert(payload.clone()), "{payload:?} twice");
            }
        }
    }
    for wire in wires {
        wire.expect_nothing_before_ping();
    }
    all
}

/// Each message goes to one member of each group, and to every plain subscription.
///
/// v5: 4.5.0-1
/// family: 73
#[test]
fn one_member_of_each_group() {
    const COUNT: usize = 60;
    on_all(|broker| {
        let mut first = members(broker, "first", 4, AtLeastOnce);
        let mut second = members(broker, "second", 2, AtMostOnce);
        let mut plain = vec![online(broker, V5, "plain")];
        plain[0].subscribe("a/#", AtMostOnce);
        let mut publisher = online(broker, V311, "publisher");
        for number in 0..COUNT as u8 {
            publisher.publish(publish("a/b", AtLeastOnce, &[number]));
        }
        let all: BTreeSet<_> = (0..COUNT as u8).map(|number| vec![number]).collect();
        assert_eq!(gather(&mut first, COUNT), all);
        assert_eq!(gather(&mut second, COUNT), all);
        assert_eq!(gather(&mut plain, COUNT), all);
    });
}

/// A member that has a plain subscription, too, gets the message by both, each with its
/// identifier.
///
/// v5: 3.3.4-5
/// family: 70, 73
#[test]
fn a_member_with_a_plain_subscription_gets_both() {
    on_all(|broker| {
        let mut wire = online(broker, V5, "both");
        wire.send_bytes(&packet(0x82, "0001 {0b01} '$share/g/a' 01"));
        wire.expect_bytes(&packet(0x90, "0001 {} 01"));
        wire.send_bytes(&packet(0x82, "0001 {0b02} 'a' 00"));
        wire.expect_bytes(&packet(0x90, "0001 {} 00"));
        wire.publish(publish("a", AtMostOnce, b""));
        let mut ids: Vec<u32> = (0..2)
            .map(|_| {
                let Packet::Publish(got) = wire.recv() else { panic!("a PUBLISH") };
                got.properties.subscription_ids.iter().next().expect("an identifier")
            })
            .collect();
        ids.sort();
        assert_eq!(ids, [1, 2]);
    });
}

/// Retained messages are not sent to a Shared Subscription when it is made.
///
/// family: 73
#[test]
fn no_retained_messages() {
    on_all(|broker| {
        let mut wire = online(broker, V5, "member");
        wire.publish(Publish { retain: true, ..publish("a", AtLeastOnce, b"kept") });
        wire.subscribe("$share/g/a", AtLeastOnce);
        wire.subscribe("$share/g/#", AtLeastOnce);
        wire.expect_nothing_before_ping();
        wire.unsubscribe("$share/g/#");
        wire.publish(publish("a", AtMostOnce, b"live"));
        wire.expect_publish("a", AtMostOnce, b"live");
    });
}

/// Who leaves the group, or is gone, gets nothing more; the others get it all.
///
/// v5: 3.10.4-2
/// family: 73
#[test]
fn members_come_and_go() {
    const COUNT: usize = 40;
    on_all(|broker| {
        let mut publisher = online(broker, V5, "publisher");
        let mut members = members(broker, "g", 4, AtLeastOnce);
        let mut numbers = 0..;
        let mut left = None;
        while members.len() > 1 {
            let mut leaving = members.remove(0);
            match members.len() {
                3 => {
                    leaving.unsubscribe("$share/g/a/+");
                    left = Some(leaving);
                }
                2 => {
                    leaving.send_hex("e0 00");
                    leaving.expect_closed();
                }
                _ => {
                    // The loss is its end, as of the one that had left.
                    leaving.reset();
                    left.take().expect("the first to leave").expect_nothing_before_ping();
                    broker.wait_for_count("loop", "connections", |count| count == 2);
                }
            }
            let all: BTreeSet<_> = numbers.by_ref().take(COUNT).map(|n: u8| vec![n]).collect();
            for payload in &all {
                publisher.publish(publish("a/x", AtLeastOnce, payload));
            }
            assert_eq!(gather(&mut members, COUNT), all);
        }
    });
}

/// With nobody there, the group's messages wait for a member whose session stays; a member that is
/// there is preferred.
///
/// v5: 4.5.0-1
/// family: 73
#[test]
fn a_group_that_sleeps() {
    on_all(|broker| {
        let mut publisher = online(broker, V311, "publisher");
        let properties =
            ConnectProperties { session_expiry_interval: Some(60), ..ConnectProperties::default() };
        let sleeper = Connect { clean_start: false, properties, ..connect(V5, "sleeper") };
        let mut wire = broker.connect();
        wire.handshake(sleeper);
        wire.subscribe("$share/g/a", ExactlyOnce);
        wire.send_hex("e0 00");
        wire.expect_closed();
        for number in 0..3_u8 {
            publisher.publish(publish("a", ExactlyOnce, &[number]));
        }
        let mut awake = online(broker, V5, "awake");
        awake.subscribe("$share/g/a", ExactlyOnce);
        for number in 3..6_u8 {
            publisher.publish(publish("a", AtLeastOnce, &[number]));
            awake.take_publish("a", AtLeastOnce, &[number]);
        }
        let mut wire = broker.connect();
        assert!(wire.handshake(sleeper));
        for number in 0..3_u8 {
            wire.take_publish("a", ExactlyOnce, &[number]);
        }
        wire.expect_nothing_before_ping();
    });
}

/// Refused by its receiver, a message is discarded, and no other member gets it.
///
/// v5: 4.8.2-6, 4.4.0-2
/// family: 73
#[test]
fn a_refused_message_is_discarded() {
    on_all(|broker| {
        let mut publisher = online(broker, V311, "publisher");
        let mut one = online(broker, V5, "one");
        one.subscribe("$share/g/a", AtLeastOnce);
        publisher.publish(publish("a", AtLeastOnce, b"refused"));
        let id = one.expect_publish("a", AtLeastOnce, b"refused").expect("an id").get();
        let mut two = online(broker, V5, "two");
        two.subscribe("$share/g/a", AtLeastOnce);
        let [high, low] = id.to_be_bytes();
        one.send_bytes(&[0x40, 3, high, low, 0x97]);
        one.expect_nothing_before_ping();
        one.unsubscribe("$share/g/a");
        publisher.publish(publish("a", AtLeastOnce, b"next"));
        two.take_publish("a", AtLeastOnce, b"next");
        two.expect_nothing_before_ping();
        one.expect_nothing_before_ping();
    });
}

/// A member whose session ends hands on what it has not acknowledged.
///
/// family: 73
#[test]
fn what_a_member_leaves_behind_moves_on() {
    on_all(|broker| {
        let mut publisher = online(broker, V311, "publisher");
        let mut one = online(broker, V5, "one");
        one.subscribe("$share/g/a", AtLeastOnce);
        for number in 0..3_u8 {
            publisher.publish(publish("a", AtLeastOnce, &[number]));
            one.expect_publish("a", AtLeastOnce, &[number]);
        }
        let mut two = online(broker, V5, "two");
        two.subscribe("$share/g/a", AtLeastOnce);
        one.send_hex("e0 00");
        one.expect_closed();
        let all: BTreeSet<_> = (0..3_u8).map(|number| vec![number]).collect();
        assert_eq!(gather(&mut [two], 3), all);
    });
}
