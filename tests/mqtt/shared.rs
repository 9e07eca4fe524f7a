//! Shared Subscriptions (4.8.2).

use std::collections::BTreeSet;
use std::time::Duration;

use noctule::codec::mqtt::{Connect, ConnectProperties, Packet, PacketKind, Publish, QoS, Version};

use super::notation::packet;
use super::support::packets::{connect, lasting, publish};
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

/// Each member gets what it is chosen for at its own granted QoS.
///
/// v5: 4.8.2-3, 3.8.4-8
/// family: 73
#[test]
fn each_member_has_its_own_qos() {
    on_all(|broker| {
        let mut publisher = online(broker, V311, "publisher");
        for granted in [AtMostOnce, AtLeastOnce, ExactlyOnce] {
            for sent in [AtMostOnce, AtLeastOnce, ExactlyOnce] {
                let mut other = online(broker, V5, "other");
                let mut wire = online(broker, V5, &format!("member {granted:?} {sent:?}"));
                // A group of their own: what earlier members have left unacknowledged moves on.
                let filter = format!("$share/{granted:?} {sent:?}/a");
                for member in [&mut other, &mut wire] {
                    member.subscribe(&filter, granted);
                }
                for _ in 0..6 {
                    publisher.publish(publish("a", sent, b"x"));
                }
                let mut came = 0;
                let deadline = std::time::Instant::now() + Duration::from_secs(15);
                while came < 6 {
                    assert!(std::time::Instant::now() < deadline, "{came} have come");
                    for member in [&mut wire, &mut other] {
                        if let Next::Frame(frame) = member.next_within(Duration::from_millis(1)) {
                            assert_eq!(frame[0], 0x30 | (sent.min(granted) as u8) << 1);
                            came += 1;
                        }
                    }
                }
            }
        }
    });
}

/// A QoS 2 message that was sent to a member is that member's: its delivery is completed when it is
/// back, and nobody else gets it, whatever happens meanwhile.
///
/// v5: 4.8.2-4, 4.4.0-1
/// family: 73, 74
#[test]
fn a_qos_2_message_waits_for_its_member() {
    on_all(|broker| {
        let mut publisher = online(broker, V311, "publisher");
        for round in 0..4 {
            let (id, topic) = (format!("first {round}"), format!("a/{round}"));
            let filter = format!("$share/g/{topic}");
            let mut wire = broker.connect();
            wire.handshake(lasting(V5, &id));
            wire.subscribe(&filter, ExactlyOnce);
            let mut ids = Vec::new();
            for number in 0..3_u8 {
                publisher.publish(publish(&topic, ExactlyOnce, &[number]));
                ids.push(wire.expect_publish(&topic, ExactlyOnce, &[number]).expect("an id").get());
            }
            wire.send_ack(PacketKind::PubRec, ids[1]);
            wire.expect_ack(PacketKind::PubRel, ids[1]);
            let mut other = online(broker, V5, &format!("second {round}"));
            other.subscribe(&filter, ExactlyOnce);
            wire.finish();
            wire.expect_closed();
            publisher.publish(publish(&topic, ExactlyOnce, b"next"));
            other.take_publish(&topic, ExactlyOnce, b"next");
            let mut wire = broker.connect();
            assert!(wire.handshake(lasting(V5, &id)));
            wire.expect_ack(PacketKind::PubRel, ids[1]);
            wire.send_ack(PacketKind::PubComp, ids[1]);
            for number in [0_u8, 2] {
                assert_eq!(wire.take_publish(&topic, ExactlyOnce, &[number]), (true, false));
            }
            wire.expect_nothing_before_ping();
            other.expect_nothing_before_ping();
        }
    });
}

/// When the session of the member ends instead, its QoS 2 messages that were sent end with it;
/// those that were not sent yet move on.
///
/// v5: 4.8.2-5
/// family: 73
#[test]
fn a_qos_2_message_ends_with_its_member() {
    on_all(|broker| {
        let mut publisher = online(broker, V311, "publisher");
        for round in 0..4 {
            let topic = format!("a/{round}");
            let filter = format!("$share/g/{topic}");
            let mut wire = broker.connect();
            let base = lasting(V5, "first");
            let properties = ConnectProperties { receive_maximum: Some(2), ..base.properties };
            wire.handshake(Connect { properties, ..base });
            wire.subscribe(&filter, ExactlyOnce);
            for number in 0..4_u8 {
                publisher.publish(publish(&topic, ExactlyOnce, &[number]));
            }
            for number in 0..2_u8 {
                wire.expect_publish(&topic, ExactlyOnce, &[number]);
            }
            wire.expect_nothing_before_ping();
            let mut other = online(broker, V5, &format!("second {round}"));
            other.subscribe(&filter, ExactlyOnce);
            // The session ends with this.
            wire.send_hex("e0 07 00 05 11 00000000");
            wire.expect_closed();
            for number in 2..4_u8 {
                other.take_publish(&topic, ExactlyOnce, &[number]);
            }
            publisher.publish(publish(&topic, ExactlyOnce, b"next"));
            other.take_publish(&topic, ExactlyOnce, b"next");
            other.expect_nothing_before_ping();
        }
    });
}

/// A QoS 2 message that its receiver refuses is discarded as well.
///
/// v5: 4.8.2-6, 4.3.3-4
/// family: 43, 73
#[test]
fn a_refused_qos_2_message_is_discarded() {
    on_all(|broker| {
        let mut publisher = online(broker, V311, "publisher");
        let mut one = online(broker, V5, "one");
        one.subscribe("$share/g/a", ExactlyOnce);
        for reason in [0x80, 0x97] {
            publisher.publish(publish("a", ExactlyOnce, b"refused"));
            let id = one.expect_publish("a", ExactlyOnce, b"refused").expect("an id").get();
            let mut two = online(broker, V5, "two");
            two.subscribe("$share/g/a", ExactlyOnce);
            let [high, low] = id.to_be_bytes();
            one.send_bytes(&[0x50, 3, high, low, reason]);
            one.expect_nothing_before_ping();
            one.unsubscribe("$share/g/a");
            publisher.publish(publish("a", ExactlyOnce, b"next"));
            two.take_publish("a", ExactlyOnce, b"next");
            two.expect_nothing_before_ping();
            one.expect_nothing_before_ping();
            two.unsubscribe("$share/g/a");
            one.subscribe("$share/g/a", ExactlyOnce);
        }
    });
}

/// A group is its ShareName and its filter, character by character: another name, another filter,
/// is another group, and each gets the message.
///
/// v5: 4.8.2-1, 4.8.2-2, 3.10.4-1
/// family: 72, 73
#[test]
fn groups_are_told_apart() {
    on_all(|broker| {
        let mut publisher = online(broker, V311, "publisher");
        let filters =
            ["$share/g/a/b", "$share/G/a/b", "$share/g/a/+", "$share/g/#", "$share/\u{fc} $/a/b"];
        let mut members: Vec<_> = filters
            .iter()
            .enumerate()
            .map(|(number, filter)| {
                let mut wire = online(broker, V5, &format!("member {number}"));
                wire.subscribe(filter, AtLeastOnce);
                wire
            })
            .collect();
        publisher.publish(publish("a/b", AtLeastOnce, b"x"));
        for member in &mut members {
            member.take_publish("a/b", AtLeastOnce, b"x");
            member.expect_nothing_before_ping();
        }
        members[0]
            .send_bytes(&packet(0xa2, "0001 {} '$share/G/a/b' '$share/g/a/+' '$share/g/a/b'"));
        members[0].expect_bytes(&packet(0xb0, "0001 {} 11 11 00"));
        publisher.publish(publish("a/b", AtLeastOnce, b"y"));
        members[0].expect_nothing_before_ping();
        for member in &mut members[1..] {
            member.take_publish("a/b", AtLeastOnce, b"y");
            member.expect_nothing_before_ping();
        }
    });
}

/// Topics that begin with $ are matched in a group as they are outside, and the group's own name is
/// no part of what is matched.
///
/// v5: 4.7.2-1, 3.3.2-3
/// family: 64, 72
#[test]
fn matching_in_groups() {
    on_all(|broker| {
        let mut publisher = online(broker, V311, "publisher");
        for (number, (filter, topics)) in [
            ("#", &["a", "a/b"][..]),
            ("+", &["a"]),
            ("a/#", &["a", "a/b"]),
            ("+/b", &["a/b"]),
            ("$x/#", &["$x/b"]),
            ("$x/+", &["$x/b"]),
        ]
        .into_iter()
        .enumerate()
        {
            let mut wire = online(broker, V5, &format!("member {number}"));
            wire.subscribe(&format!("$share/g/{filter}"), AtMostOnce);
            wire.subscribe("$end", AtMostOnce);
            for topic in ["a", "a/b", "$x/b", "$end"] {
                publisher.publish(publish(topic, AtMostOnce, topic.as_bytes()));
            }
            for topic in topics.iter().chain(&["$end"]) {
                wire.expect_publish(topic, AtMostOnce, topic.as_bytes());
            }
            wire.send_hex("e0 00");
            wire.expect_closed();
        }
    });
}
