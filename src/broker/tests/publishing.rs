//! PUBLISH in: QoS, aliases, quotas; PUBLISH out: windows, sizes, expiry.
#![forbid(unsafe_code)]

use crate::broker::Config;
use crate::broker::testing::*;
use crate::codec::mqtt::{Ack, Packet, Publish, QoS, ReasonCode, UserProperties, Version};
use crate::limits::SHARE_PAYLOAD_FROM;

const QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

fn ack(n: u16) -> Ack<'static> {
    Ack::new(id(n), ReasonCode::SUCCESS)
}

/// [MQTT-3.8.4-8], PITFALLS 59: every pair of versions, QoS published and QoS granted.
#[test]
fn delivered_at_the_lower_qos() {
    for from in [Version::V31, Version::V311, Version::V5] {
        for to in [Version::V311, Version::V5] {
            let mut world = World::new(1);
            let (publisher, _) = world.join(&hello(from, "p"));
            for granted in QOS {
                let name = format!("s{}", granted as u8);
                let (subscriber, _) = world.join(&hello(to, &name));
                world.subscribe(subscriber, "a/+", granted);
                for qos in QOS {
                    world.publish(publisher, "a/b", "x", qos, 7);
                    let got = world.take_messages(subscriber);
                    let lower = qos.min(granted) as u8;
                    assert_eq!((got.len(), got[0].qos, &*got[0].topic), (1, lower, "a/b"));
                    assert!(!got[0].retain && !got[0].dup);
                    if qos == QoS::ExactlyOnce {
                        world.send(publisher, &Packet::PubRel(ack(7)));
                    }
                }
            }
        }
    }
}

/// [MQTT-4.3.2-4], [MQTT-4.3.3-8], [MQTT-4.3.3-11], PITFALLS 54
#[test]
fn acknowledgements_say_whether_anybody_listens() {
    for (version, nobody) in
        [(Version::V311, ReasonCode::SUCCESS), (Version::V5, ReasonCode::NO_MATCHING_SUBSCRIBERS)]
    {
        let mut world = World::new(1);
        let (client, _) = world.join(&hello(version, "c"));
        for reason in [nobody, ReasonCode::SUCCESS] {
            world.publish(client, "t", "x", QoS::AtLeastOnce, 1);
            world.publish(client, "t", "x", QoS::ExactlyOnce, 2);
            world.send(client, &Packet::PubRel(ack(2)));
            let expected = [
                Got::PubAck(1, reason),
                Got::PubRec(2, reason),
                Got::PubComp(2, ReasonCode::SUCCESS),
            ];
            assert_eq!(world.take(client), expected);
            let (other, _) = world.join(&hello(version, "other"));
            world.subscribe(other, "#", QoS::AtMostOnce);
        }
    }
}

/// [MQTT-4.3.3-10], [MQTT-4.3.3-12], PITFALLS 39, 42
#[test]
fn qos_2_arrives_once_however_often_it_is_sent() {
    let mut world = World::new(1);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    let (subscriber, _) = world.join(&hello(Version::V5, "s"));
    world.subscribe(subscriber, "t", QoS::ExactlyOnce);
    let publish = publish("t", b"x", QoS::ExactlyOnce, 5);
    for n in 0..4 {
        world.send(publisher, &Packet::Publish(Publish { dup: n > 0, ..publish }));
        assert_eq!(world.take(publisher), [Got::PubRec(5, ReasonCode::SUCCESS)]);
    }
    assert_eq!(world.take_payloads(subscriber), ["x"]);
    world.send(publisher, &Packet::PubRel(ack(5)));
    assert_eq!(world.take(publisher), [Got::PubComp(5, ReasonCode::SUCCESS)]);
    world.send(publisher, &Packet::PubRel(ack(5)));
    let gone = ReasonCode::PACKET_IDENTIFIER_NOT_FOUND;
    assert_eq!(world.take(publisher), [Got::PubComp(5, gone)]);
    // The id is free: this is a new message, whatever its DUP flag says.
    world.send(publisher, &Packet::Publish(Publish { dup: true, ..publish }));
    assert_eq!(world.take_payloads(subscriber), ["x"]);
    assert_eq!(world.brokers[0].stats().duplicates_in, 3);
    assert_eq!(world.brokers[0].message_bytes(), 0);
}

/// [MQTT-3.3.4-9], PITFALLS 48
#[test]
fn the_clients_quota() {
    let config = Config { receive_maximum: 2, ..Config::default() };
    let mut world = World::with_config(1, &config);
    let (client, _) = world.join(&hello(Version::V5, "c"));
    world.connack(client, |p| assert_eq!(p.receive_maximum, Some(2)));
    world.publish(client, "t", "x", QoS::ExactlyOnce, 1);
    // QoS 1 is answered at once, so it holds no slot.
    for n in 10..20 {
        world.publish(client, "t", "x", QoS::AtLeastOnce, n);
    }
    world.publish(client, "t", "x", QoS::ExactlyOnce, 2);
    // A repeated one takes none, and completing one frees it.
    world.publish(client, "t", "x", QoS::ExactlyOnce, 2);
    world.send(client, &Packet::PubRel(ack(1)));
    world.publish(client, "t", "x", QoS::ExactlyOnce, 3);
    assert!(!world.is_closed(client));
    world.take(client);
    world.publish(client, "t", "x", QoS::ExactlyOnce, 4);
    let told = [Got::Disconnect(ReasonCode::RECEIVE_MAXIMUM_EXCEEDED)];
    assert_eq!(world.take(client), told);
    assert!(world.is_closed(client));
    // 3.x knows no such thing.
    let (client, _) = world.join(&hello(Version::V311, "d"));
    for n in 1..100 {
        world.publish(client, "t", "x", QoS::ExactlyOnce, n);
    }
    assert!(!world.is_closed(client));
}

/// [MQTT-3.2.2-11], [MQTT-3.2.2-14], PITFALLS 53
#[test]
fn what_the_server_does_not_support() {
    let config =
        Config { maximum_qos: QoS::AtLeastOnce, retain_available: false, ..Config::default() };
    let mut world = World::with_config(1, &config);
    let (client, _) = world.join(&hello(Version::V5, "c"));
    world.publish(client, "t", "x", QoS::ExactlyOnce, 1);
    assert_eq!(world.take(client), [Got::Disconnect(ReasonCode::QOS_NOT_SUPPORTED)]);
    let (client, _) = world.join(&hello(Version::V5, "c"));
    let retained = Publish { retain: true, ..publish("t", b"x", QoS::AtMostOnce, 0) };
    world.send(client, &Packet::Publish(retained));
    assert_eq!(world.take(client), [Got::Disconnect(ReasonCode::RETAIN_NOT_SUPPORTED)]);
}

/// [MQTT-3.3.2-9], [MQTT-3.3.2-10], [MQTT-3.3.2-12], PITFALLS 50
#[test]
fn topic_aliases() {
    let mut world = World::new(2);
    let (watcher, _) = world.join(&hello(Version::V5, "w"));
    world.subscribe(watcher, "#", QoS::AtMostOnce);
    let (client, _) = world.join(&stay(Version::V5, "c"));
    let send = |world: &mut World, client, topic, n| {
        let mut publish = publish(topic, b"x", QoS::AtMostOnce, 0);
        publish.properties.topic_alias = alias(n);
        world.send(client, &Packet::Publish(publish));
        let topics = world.take_messages(watcher).into_iter().map(|m| m.topic);
        topics.collect::<Vec<String>>()
    };
    assert_eq!(send(&mut world, client, "a", 1), ["a"]);
    assert_eq!(send(&mut world, client, "b", 32), ["b"]);
    assert_eq!(send(&mut world, client, "", 1), ["a"]);
    assert_eq!(send(&mut world, client, "c", 1), ["c"]);
    assert_eq!(send(&mut world, client, "", 1), ["c"]);
    assert_eq!(send(&mut world, client, "", 32), ["b"]);
    // They end with the connection.
    world.cut(client);
    let (client, _) = world.join(&stay(Version::V5, "c"));
    assert!(send(&mut world, client, "", 1).is_empty());
    assert_eq!(world.take(client), [Got::Disconnect(ReasonCode::PROTOCOL_ERROR)]);
    let (client, _) = world.join(&stay(Version::V5, "c"));
    assert!(send(&mut world, client, "a", 33).is_empty());
    assert_eq!(world.take(client), [Got::Disconnect(ReasonCode::TOPIC_ALIAS_INVALID)]);
}

/// [MQTT-3.3.4-7], [MQTT-4.9.0-2], [MQTT-4.9.0-3], PITFALLS 47
#[test]
fn the_window_of_a_subscriber() {
    let mut world = World::new(1);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    let mut connect = hello(Version::V5, "s");
    connect.properties.receive_maximum = Some(2);
    let (subscriber, _) = world.join(&connect);
    world.subscribe(subscriber, "t", QoS::ExactlyOnce);
    for n in 1..=5 {
        world.publish(publisher, "t", &n.to_string(), QOS[1 + n as usize % 2], n);
    }
    let got = world.take(subscriber);
    let ids: Vec<u16> = got
        .iter()
        .map(|got| match got {
            Got::Publish(publish) => publish.id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids, [1, 2]);
    // QoS 0 and everything else passes a full window.
    world.publish(publisher, "t", "0", QoS::AtMostOnce, 0);
    world.send(subscriber, &Packet::PingReq);
    let got = world.take(subscriber);
    assert!(matches!(&got[..], [Got::Publish(p), Got::PingResp] if p.qos == 0));
    // PUBREC does not free a slot [4.9]; PUBCOMP does. The first was QoS 2.
    world.send(subscriber, &Packet::PubRec(ack(1)));
    assert_eq!(world.take(subscriber), [Got::PubRel(1, ReasonCode::SUCCESS)]);
    world.send(subscriber, &Packet::PubComp(ack(1)));
    let got = world.take(subscriber);
    assert!(matches!(&got[..], [Got::Publish(p)] if p.payload == b"3" && p.id == 3));
    world.send(subscriber, &Packet::PubAck(ack(2)));
    let got = world.take(subscriber);
    assert!(matches!(&got[..], [Got::Publish(p)] if p.payload == b"4"));
}

/// [MQTT-4.4.0-2], [MQTT-4.3.3-4], PITFALLS 43
#[test]
fn an_error_ends_the_exchange() {
    let mut world = World::new(1);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    let mut connect = stay(Version::V5, "s");
    connect.properties.receive_maximum = Some(1);
    let (subscriber, _) = world.join(&connect);
    world.subscribe(subscriber, "t", QoS::ExactlyOnce);
    world.publish(publisher, "t", "1", QoS::ExactlyOnce, 1);
    world.publish(publisher, "t", "2", QoS::AtLeastOnce, 2);
    let error = |n| Ack::new(id(n), ReasonCode::QUOTA_EXCEEDED);
    assert!(matches!(world.take(subscriber)[..], [Got::Publish(_)]));
    world.send(subscriber, &Packet::PubRec(error(1)));
    let got = world.take(subscriber);
    assert!(matches!(&got[..], [Got::Publish(p)] if p.payload == b"2"), "no PUBREL: {got:?}");
    world.send(subscriber, &Packet::PubAck(error(2)));
    world.cut(subscriber);
    let (subscriber, present) = world.join(&connect);
    assert!(present && world.take(subscriber).is_empty(), "nothing is sent again");
    assert_eq!(world.brokers[0].message_bytes(), 0);
}

/// PITFALLS 42 and 4.13: acknowledgements of nothing, and of the wrong kind.
#[test]
fn unexpected_acknowledgements() {
    let mut world = World::new(1);
    let (client, _) = world.join(&hello(Version::V5, "c"));
    world.send(client, &Packet::PubAck(ack(9)));
    world.send(client, &Packet::PubComp(ack(9)));
    world.send(client, &Packet::PubRec(ack(9)));
    let gone = ReasonCode::PACKET_IDENTIFIER_NOT_FOUND;
    assert_eq!(world.take(client), [Got::PubRel(9, gone)]);
    assert_eq!(world.brokers[0].stats().acks_unknown, 3);
    world.subscribe(client, "t", QoS::AtLeastOnce);
    world.publish(client, "t", "x", QoS::AtLeastOnce, 1);
    world.take(client);
    world.send(client, &Packet::PubRec(ack(1)));
    assert_eq!(world.take(client), [Got::Disconnect(ReasonCode::PROTOCOL_ERROR)]);
}

/// [MQTT-3.1.2-24], [MQTT-3.1.2-25], PITFALLS 49: to the byte; what is too large takes no id.
#[test]
fn maximum_packet_size() {
    for queued in [false, true] {
        let mut world = World::new(1);
        let (publisher, _) = world.join(&hello(Version::V5, "p"));
        // Fixed header 2, topic 3, packet id 2, properties 1: 8 bytes and the payload.
        let mut connect = stay(Version::V5, "s");
        connect.properties.maximum_packet_size = Some(28);
        let (subscriber, _) = world.join(&connect);
        world.subscribe(subscriber, "t", QoS::AtLeastOnce);
        if queued {
            world.cut(subscriber);
        }
        for (n, len) in [(1, 21), (2, 20), (3, 21), (4, 20)] {
            world.publish(publisher, "t", &"x".repeat(len), QoS::AtLeastOnce, n);
        }
        // At QoS 0 there are two bytes more.
        if !queued {
            world.publish(publisher, "t", &"y".repeat(22), QoS::AtMostOnce, 0);
            world.publish(publisher, "t", &"y".repeat(23), QoS::AtMostOnce, 0);
        }
        let subscriber = if queued { world.join(&connect).0 } else { subscriber };
        let got = world.take_messages(subscriber);
        let got: Vec<(u16, usize)> = got.iter().map(|m| (m.id, m.payload.len())).collect();
        let expected: &[(u16, usize)] =
            if queued { &[(1, 20), (2, 20)] } else { &[(1, 20), (2, 20), (0, 22)] };
        assert_eq!(got, expected);
        let dropped = world.brokers[0].stats().dropped_too_large;
        assert_eq!(dropped, if queued { 2 } else { 3 });
        assert_eq!(world.brokers[0].message_bytes(), 0);
    }
}

/// PITFALLS 38, 57: what travels and what does not.
#[test]
fn properties_travel_and_dup_does_not() {
    let mut world = World::new(2);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    let (five, _) = world.join(&hello(Version::V5, "five"));
    let (three, _) = world.join(&hello(Version::V311, "three"));
    for subscriber in [five, three] {
        world.subscribe(subscriber, "t", QoS::AtLeastOnce);
    }
    let pairs = [("k", "1"), ("k", "2"), ("a", "")];
    let mut publish = publish("t", b"x", QoS::AtLeastOnce, 1);
    publish.dup = true;
    publish.properties.user_properties = UserProperties::new(&pairs);
    publish.properties.message_expiry_interval = Some(30);
    world.send(publisher, &Packet::Publish(publish));
    let got = &world.take_messages(five)[0];
    assert!(!got.dup);
    assert_eq!(got.expiry, Some(30));
    let user: Vec<(&str, &str)> = got.user_properties.iter().map(|(n, v)| (&**n, &**v)).collect();
    assert_eq!(user, pairs);
    let got = &world.take_messages(three)[0];
    assert_eq!((&*got.payload, got.dup), (&b"x"[..], false));
}

/// [MQTT-3.3.2-5], [MQTT-3.3.2-6], PITFALLS 46
#[test]
fn expiry_in_the_queue() {
    let mut world = World::new(1);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    let (subscriber, _) = world.join(&stay(Version::V5, "s"));
    world.subscribe(subscriber, "t", QoS::AtLeastOnce);
    world.cut(subscriber);
    for (n, secs) in [(1, 10), (2, 100), (3, 5)] {
        let payload = n.to_string();
        let mut publish = publish("t", payload.as_bytes(), QoS::AtLeastOnce, n);
        publish.properties.message_expiry_interval = Some(secs);
        world.send(publisher, &Packet::Publish(publish));
    }
    world.advance(40);
    let (subscriber, _) = world.join(&stay(Version::V5, "s"));
    let got = world.take_messages(subscriber);
    assert_eq!((got.len(), &*got[0].payload, got[0].expiry), (1, &b"2"[..], Some(60)));
    assert!(!got[0].dup, "PITFALLS 38");
    assert_eq!(world.brokers[0].stats().dropped_expired, 2);
    assert_eq!(world.brokers[0].message_bytes(), 0);
}

/// A slow subscriber: QoS 0 is dropped, QoS 1 waits, nothing is lost of it.
#[test]
fn a_subscriber_that_does_not_read() {
    let config = Config { outbox_bytes_max: 10_000, ..Config::default() };
    let mut world = World::with_config(1, &config);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    let (subscriber, _) = world.join(&hello(Version::V5, "s"));
    world.subscribe(subscriber, "t", QoS::AtLeastOnce);
    world.stall(subscriber, true);
    let payload = "x".repeat(1000);
    for _ in 0..20 {
        world.publish(publisher, "t", &payload, QoS::AtMostOnce, 0);
    }
    let dropped = world.brokers[0].stats().dropped_outbox;
    assert!((9..12).contains(&dropped), "{dropped}");
    for n in 0..600 {
        world.publish(publisher, "t", &n.to_string().repeat(300), QoS::AtLeastOnce, 1);
    }
    assert!(world.brokers[0].stats().messages_queued > 0);
    world.stall(subscriber, false);
    let got = world.take_messages(subscriber);
    let got: Vec<&[u8]> = got.iter().filter(|m| m.qos == 1).map(|m| &*m.payload).collect();
    let sent: Vec<String> = (0..600).map(|n| n.to_string().repeat(300)).collect();
    assert_eq!(got, sent.iter().map(String::as_bytes).collect::<Vec<_>>(), "in order, all");
    assert_eq!(world.brokers[0].message_bytes(), 0);
}

/// The queue's policy: the new one is refused, and counted; the memory budget is one more bound.
#[test]
fn bounds_of_the_queue_and_of_memory() {
    let config = Config { queue_len_max: 3, ..Config::default() };
    let mut world = World::with_config(1, &config);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    let (subscriber, _) = world.join(&stay(Version::V311, "s"));
    world.subscribe(subscriber, "t", QoS::AtLeastOnce);
    world.cut(subscriber);
    for n in 1..=5 {
        world.publish(publisher, "t", &n.to_string(), QoS::AtLeastOnce, n);
    }
    assert_eq!(world.brokers[0].stats().dropped_queue_full, 2);
    world.publish(publisher, "t", "0", QoS::AtMostOnce, 0);
    assert_eq!(world.brokers[0].stats().dropped_offline, 1);
    let (subscriber, _) = world.join(&stay(Version::V311, "s"));
    assert_eq!(world.take_payloads(subscriber), ["1", "2", "3"]);

    let config = Config { memory_budget: 1000, ..Config::default() };
    let mut world = World::with_config(1, &config);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    let (subscriber, _) = world.join(&stay(Version::V311, "s"));
    world.subscribe(subscriber, "t", QoS::AtLeastOnce);
    world.cut(subscriber);
    for n in 1..=5 {
        world.publish(publisher, "t", &"x".repeat(300), QoS::AtLeastOnce, n);
    }
    assert!(world.brokers[0].message_bytes() <= 1000);
    assert_eq!(world.brokers[0].stats().dropped_memory, 0);
    assert_eq!(world.brokers[0].stats().publishes_refused, 3);
    let codes = [ReasonCode::SUCCESS; 2].into_iter().chain([ReasonCode::QUOTA_EXCEEDED; 3]);
    let acks: Vec<Got> = (1..).zip(codes).map(|(n, code)| Got::PubAck(n, code)).collect();
    assert_eq!(world.take(publisher), acks);
}

/// SHARDS.md L6: what a shard has no memory for is refused before it is forwarded, wherever its
/// publisher is at home, windows included; never acknowledged and then dropped. When the
/// subscriber has acknowledged, it goes on.
#[test]
fn short_memory_elsewhere_refuses_publications() {
    for shards in [1, 2] {
        let config = Config { memory_budget: 100_000, ..Config::default() };
        let mut world = World::with_config(shards, &config);
        let (here, there) = (world.id_on(0, 0), world.id_on(shards - 1, 1));
        let (publisher, _) = world.join(&hello(Version::V5, &here));
        let (subscriber, _) = world.join(&hello(Version::V5, &there));
        world.subscribe(subscriber, "t", QoS::AtLeastOnce);
        world.take(subscriber);
        let payload = vec![b'x'; 10_000];
        let all: Vec<_> = (1..=60)
            .map(|n| Packet::Publish(publish("t", &payload, QoS::AtLeastOnce, n)))
            .collect();
        world.send_all(publisher, &all);
        let acks = world.take(publisher);
        let count = |reason| {
            acks.iter().filter(|got| matches!(got, Got::PubAck(_, r) if *r == reason)).count()
        };
        let taken = count(ReasonCode::SUCCESS);
        assert!((8..60).contains(&taken), "{shards} shards took {taken}");
        assert_eq!(taken + count(ReasonCode::QUOTA_EXCEEDED), 60);
        let received = world.take(subscriber);
        assert_eq!(received.len(), taken, "{shards} shards");
        world.publish(publisher, "t", "0", QoS::AtMostOnce, 0);
        assert_eq!(world.take(subscriber), []);
        let sum = |world: &World, of: fn(&crate::broker::Stats) -> u64| {
            world.brokers.iter().map(|broker| of(broker.stats())).sum::<u64>()
        };
        assert_eq!(sum(&world, |stats| stats.dropped_memory), 1, "QoS 0");
        assert_eq!(world.brokers[0].stats().publishes_refused, 60 - taken as u64);
        // What gives memory back is taken.
        let mut clear = publish("t", b"", QoS::AtLeastOnce, 61);
        clear.retain = true;
        world.send(publisher, &Packet::Publish(clear));
        assert!(matches!(world.take(publisher)[..], [Got::PubAck(61, ReasonCode::SUCCESS)]));
        for got in received.iter().chain(&world.take(subscriber)) {
            let Got::Publish(got) = got else { panic!("{got:?}") };
            world.send(subscriber, &Packet::PubAck(Ack::new(id(got.id), ReasonCode::SUCCESS)));
        }
        world.send(publisher, &Packet::Publish(publish("t", &payload, QoS::AtLeastOnce, 62)));
        assert_eq!(world.take(publisher), [Got::PubAck(62, ReasonCode::SUCCESS)]);
    }
}

/// PITFALLS 52, 83: what looks like the server's own, or like a filter, is not published.
#[test]
fn reserved_topics() {
    for (version, reason) in
        [(Version::V311, ReasonCode::SUCCESS), (Version::V5, ReasonCode::TOPIC_NAME_INVALID)]
    {
        let mut world = World::new(1);
        let (client, _) = world.join(&hello(version, "c"));
        world.subscribe(client, "$SYS/#", QoS::AtMostOnce);
        for topic in ["$SYS/broker", "$share/g/t"] {
            world.publish(client, topic, "x", QoS::AtMostOnce, 0);
            world.publish(client, topic, "x", QoS::AtLeastOnce, 1);
            assert_eq!(world.take(client), [Got::PubAck(1, reason)]);
        }
    }
}

/// [MQTT-4.8.2-5], SHARDS.md S4, PITFALLS 73: at the end of a member's session, what it did not
/// finish moves; QoS 2 that was sent does not.
#[test]
fn messages_move_to_another_member() {
    for shards in [1, 2] {
        let mut world = World::new(shards);
        let (publisher, _) = world.join(&hello(Version::V5, "p"));
        let mut connect = hello(Version::V5, "");
        connect.properties.receive_maximum = Some(2);
        connect.client_id = "first";
        let (first, _) = world.join(&connect);
        world.subscribe(first, "$share/g/t", QoS::ExactlyOnce);
        for (n, qos) in [(1, QoS::ExactlyOnce), (2, QoS::AtLeastOnce), (3, QoS::ExactlyOnce)] {
            world.publish(publisher, "t", &n.to_string(), qos, n);
        }
        let id = world.id_on(shards - 1, 0);
        let (second, _) = world.join(&hello(Version::V5, &id));
        world.subscribe(second, "$share/g/t", QoS::ExactlyOnce);
        assert_eq!(world.take(first).len(), 2);
        world.cut(first);
        let got = world.take_messages(second);
        let got: Vec<(&[u8], u8, bool)> = got.iter().map(|m| (&*m.payload, m.qos, m.dup)).collect();
        assert_eq!(got, [(&b"2"[..], 1, false), (&b"3"[..], 2, false)]);
        assert_eq!(world.brokers.iter().map(|b| b.message_bytes()).sum::<usize>(), 0);
    }
}

/// Large payloads are shared between receivers, small ones copied: the bytes are the same.
#[test]
fn large_payloads() {
    let mut world = World::new(2);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    let subscribers: Vec<Client> = (0..6)
        .map(|n| {
            let version = if n % 2 == 0 { Version::V5 } else { Version::V311 };
            let (client, _) = world.join(&hello(version, &format!("s{n}")));
            world.subscribe(client, "t", QOS[n % 3]);
            client
        })
        .collect();
    for len in [SHARE_PAYLOAD_FROM - 1, SHARE_PAYLOAD_FROM, 100_000] {
        let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
        world.send(publisher, &Packet::Publish(publish("t", &payload, QoS::ExactlyOnce, 1)));
        world.send(publisher, &Packet::PubRel(ack(1)));
        for subscriber in &subscribers {
            let got = world.take_messages(*subscriber);
            assert!(got.len() == 1 && got[0].payload == payload, "{len}");
        }
    }
    assert_eq!(world.brokers[0].message_bytes() + world.brokers[1].message_bytes(), 0);
}
