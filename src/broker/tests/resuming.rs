//! Sessions that are continued: what is sent again, and what is not.
#![forbid(unsafe_code)]

use crate::broker::testing::*;
use crate::codec::mqtt::{Ack, Connect, Packet, Publish, QoS, ReasonCode, Version};

fn ack(n: u16) -> Ack<'static> {
    Ack::new(id(n), ReasonCode::SUCCESS)
}

/// Payload, packet id and DUP of PUBLISHes; PUBRELs by their packet id.
fn seen(got: &[Got]) -> Vec<(String, u16, bool)> {
    let one = |got: &Got| match got {
        Got::Publish(p) => (String::from_utf8(p.payload.clone()).unwrap(), p.id, p.dup),
        Got::PubRel(n, ReasonCode::SUCCESS) => ("PUBREL".into(), *n, false),
        other => panic!("{other:?}"),
    };
    got.iter().map(one).collect()
}

fn list(items: &[(&str, u16, bool)]) -> Vec<(String, u16, bool)> {
    items.iter().map(|(text, n, dup)| ((*text).into(), *n, *dup)).collect()
}

/// What is unfinished comes again with the next connection, in order, and never on the same one,
/// not after a day.
///
/// v5: 3.3.1-1, 4.4.0-1
/// v3.1.1: 3.3.1-1, 4.4.0-1, 4.6.0-1
/// family: 38, 41, 55, 56
#[test]
fn unfinished_exchanges_are_sent_again_in_order() {
    for version in [Version::V311, Version::V5] {
        let mut world = World::new(1);
        let (publisher, _) = world.join(&hello(version, "p"));
        let (subscriber, _) = world.join(&stay(version, "s"));
        world.subscribe(subscriber, "t", QoS::ExactlyOnce);
        let both = [QoS::AtLeastOnce, QoS::ExactlyOnce];
        for n in 1..=6 {
            world.publish(publisher, "t", &n.to_string(), both[usize::from(n) % 2], n);
        }
        assert_eq!(world.take(subscriber).len(), 6);
        // QoS 2 are 1, 3, 5. PUBRECs for 3, then 1; 5 stays; 2 is finished.
        world.send(subscriber, &Packet::PubRec(ack(3)));
        world.send(subscriber, &Packet::PubRec(ack(1)));
        world.send(subscriber, &Packet::PubAck(ack(2)));
        assert_eq!(world.take(subscriber).len(), 2);
        world.advance(24 * 60 * 60);
        assert!(world.take(subscriber).is_empty(), "nothing is sent again on a live connection");
        world.cut(subscriber);
        world.publish(publisher, "t", "7", QoS::AtLeastOnce, 7);
        let client = world.connect(&stay(version, "s"));
        let got = world.take(client);
        let expected = [
            ("PUBREL", 3, false),
            ("PUBREL", 1, false),
            ("4", 4, true),
            ("5", 5, true),
            ("6", 6, true),
            ("7", 7, false),
        ];
        assert_eq!(seen(&got[1..]), list(&expected));
        // All of it can be finished, once; then a new id follows.
        for packet in [
            Packet::PubComp(ack(3)),
            Packet::PubComp(ack(1)),
            Packet::PubAck(ack(4)),
            Packet::PubRec(ack(5)),
            Packet::PubComp(ack(5)),
            Packet::PubAck(ack(6)),
            Packet::PubAck(ack(7)),
        ] {
            world.send(client, &packet);
        }
        assert_eq!(seen(&world.take(client)), list(&[("PUBREL", 5, false)]));
        assert_eq!(world.brokers[0].stats().acks_unknown, 0);
        assert_eq!(world.brokers[0].message_bytes(), 0);
    }
}

/// PITFALLS 47: the quota is the new connection's; what does not fit waits, before what is newer.
#[test]
fn a_smaller_window_after_a_reconnect() {
    let mut world = World::new(1);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    let (subscriber, _) = world.join(&stay(Version::V5, "s"));
    world.subscribe(subscriber, "t", QoS::ExactlyOnce);
    for n in 1..=4 {
        world.publish(publisher, "t", &n.to_string(), QoS::ExactlyOnce, n);
    }
    world.take(subscriber);
    world.send(subscriber, &Packet::PubRec(ack(1)));
    world.cut(subscriber);
    let mut connect = stay(Version::V5, "s");
    connect.properties.receive_maximum = Some(2);
    let client = world.connect(&connect);
    world.publish(publisher, "t", "5", QoS::ExactlyOnce, 5);
    let got = world.take(client);
    assert_eq!(seen(&got[1..]), list(&[("PUBREL", 1, false), ("2", 2, true)]));
    world.send(client, &Packet::PubComp(ack(1)));
    assert_eq!(seen(&world.take(client)), list(&[("3", 3, true)]));
    world.send_all(client, &[Packet::PubRec(ack(2)), Packet::PubComp(ack(2))]);
    let expected = [("PUBREL", 2, false), ("4", 4, true)];
    assert_eq!(seen(&world.take(client)), list(&expected));
    world.send_all(client, &[Packet::PubRec(ack(3)), Packet::PubComp(ack(3))]);
    let expected = [("PUBREL", 3, false), ("5", 5, false)];
    assert_eq!(seen(&world.take(client)), list(&expected));
}

/// [MQTT-4.3.3-10], PITFALLS 40: what the client has not released survives its connection.
#[test]
fn inbound_qos_2_survives_a_reconnect() {
    for version in [Version::V311, Version::V5] {
        let mut world = World::new(1);
        let (watcher, _) = world.join(&hello(version, "w"));
        world.subscribe(watcher, "t", QoS::AtMostOnce);
        let (client, _) = world.join(&stay(version, "c"));
        world.publish(client, "t", "x", QoS::ExactlyOnce, 3);
        world.cut(client);
        let (client, _) = world.join(&stay(version, "c"));
        let again = Publish { dup: true, ..publish("t", b"x", QoS::ExactlyOnce, 3) };
        world.send(client, &Packet::Publish(again));
        assert_eq!(world.take(client), [Got::PubRec(3, ReasonCode::SUCCESS)]);
        assert_eq!(world.take_payloads(watcher), ["x"]);
        world.cut(client);
        let (client, _) = world.join(&stay(version, "c"));
        world.send(client, &Packet::PubRel(ack(3)));
        assert_eq!(world.take(client), [Got::PubComp(3, ReasonCode::SUCCESS)]);
        // With the session it is gone.
        world.publish(client, "t", "y", QoS::ExactlyOnce, 3);
        world.cut(client);
        let (client, _) = world.join(&hello(version, "c"));
        world.publish(client, "t", "z", QoS::ExactlyOnce, 3);
        assert_eq!(world.take_payloads(watcher), ["y", "z"]);
    }
}

/// [MQTT-4.3.3-7], PITFALLS 36, 45: expiry ends no exchange that has begun.
#[test]
fn expiry_does_not_end_what_was_sent() {
    let mut world = World::new(1);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    let (subscriber, _) = world.join(&stay(Version::V5, "s"));
    world.subscribe(subscriber, "t", QoS::ExactlyOnce);
    for n in 1..=2 {
        let mut publish = publish("t", b"x", QoS::ExactlyOnce, n);
        publish.properties.message_expiry_interval = Some(5);
        world.send(publisher, &Packet::Publish(publish));
    }
    world.take(subscriber);
    world.send(subscriber, &Packet::PubRec(ack(1)));
    world.cut(subscriber);
    world.advance(10);
    let client = world.connect(&stay(Version::V5, "s"));
    let got = world.take(client);
    assert_eq!(seen(&got[1..]), list(&[("PUBREL", 1, false), ("x", 2, true)]));
}

/// [MQTT-4.1.0-2]: what a session held is gone with it.
#[test]
fn the_end_of_a_session_frees_what_it_held() {
    let mut world = World::new(1);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    for ends_by_expiry in [true, false] {
        let (subscriber, _) = world.join(&stay(Version::V5, "s"));
        world.subscribe(subscriber, "t", QoS::AtLeastOnce);
        world.publish(publisher, "t", "1", QoS::AtLeastOnce, 1);
        world.cut(subscriber);
        world.publish(publisher, "t", "2", QoS::AtLeastOnce, 1);
        assert!(world.brokers[0].message_bytes() > 0);
        if ends_by_expiry {
            world.advance(1001);
        } else {
            let (client, _) = world.join(&Connect { clean_start: true, ..stay(Version::V5, "s") });
            assert!(world.take(client).is_empty());
            world.publish(publisher, "t", "3", QoS::AtLeastOnce, 1);
            assert!(world.take(client).is_empty(), "its subscriptions are gone");
        }
        assert_eq!(world.brokers[0].message_bytes(), 0);
    }
    assert_eq!(world.brokers[0].stats().dropped_session_ended, 4);
}

/// A session may come back in another version.
#[test]
fn versions_may_change() {
    let mut world = World::new(1);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    let (subscriber, _) = world.join(&stay(Version::V5, "s"));
    world.subscribe(subscriber, "t", QoS::ExactlyOnce);
    world.publish(publisher, "t", "1", QoS::ExactlyOnce, 1);
    world.cut(subscriber);
    let client = world.connect(&stay(Version::V311, "s"));
    let got = world.take(client);
    assert_eq!(got[0], Got::ConnAck { session_present: true, reason: ReasonCode::SUCCESS });
    assert_eq!(seen(&got[1..]), list(&[("1", 1, true)]));
}

/// [MQTT-3.10.4-3], PITFALLS 75: what was begun for a filter is finished after UNSUBSCRIBE.
#[test]
fn unsubscribing_ends_no_exchange() {
    let mut world = World::new(1);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    let (subscriber, _) = world.join(&stay(Version::V5, "s"));
    world.subscribe(subscriber, "t", QoS::AtLeastOnce);
    world.publish(publisher, "t", "1", QoS::AtLeastOnce, 1);
    world.unsubscribe(subscriber, "t");
    world.publish(publisher, "t", "2", QoS::AtLeastOnce, 2);
    world.cut(subscriber);
    let (subscriber, _) = world.join(&stay(Version::V5, "s"));
    assert_eq!(seen(&world.take(subscriber)), list(&[("1", 1, true)]));
}
