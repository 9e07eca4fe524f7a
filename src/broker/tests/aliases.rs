//! Topic Aliases towards subscribers (3.3.2.3.4, PITFALLS 50).
#![forbid(unsafe_code)]

use std::collections::HashMap;

use crate::broker::Config;
use crate::broker::testing::*;
use crate::codec::mqtt::{Connect, Packet, Publish, QoS, SubscriptionOptions, Version};
use crate::limits::{SHARE_PAYLOAD_FROM, TOPIC_ALIAS_LEN_MIN};

const LONG: &str = "a/topic/that/is/long/enough/to/be/saved/x";

fn allowing(mut connect: Connect<'_>, aliases: u16) -> Connect<'_> {
    connect.properties.topic_alias_maximum = Some(aliases);
    connect
}

/// Topic and alias of what came.
fn named(world: &mut World, client: Client) -> Vec<(String, u16)> {
    world.take_messages(client).into_iter().map(|m| (m.topic, m.alias)).collect()
}

fn publish_each(world: &mut World, publisher: Client, topics: &[&str], qos: QoS) {
    for (n, topic) in (1..).zip(topics) {
        world.publish(publisher, topic, "x", qos, n);
    }
}

/// [MQTT-3.1.2-26], [MQTT-3.1.2-27]: never above what the client said; none where it said nothing.
#[test]
fn a_topic_that_repeats_is_named_by_a_number() {
    for (shards, qos) in [(1, QoS::AtMostOnce), (2, QoS::AtLeastOnce), (2, QoS::ExactlyOnce)] {
        let mut world = World::new(shards);
        let (publisher, _) = world.join(&hello(Version::V5, "p"));
        let elsewhere = world.id_on(shards - 1 - world.home_of("p"), 0);
        let (aliased, _) = world.join(&allowing(hello(Version::V5, &elsewhere), 1));
        let (plain, _) = world.join(&hello(Version::V5, "plain"));
        let (old, _) = world.join(&hello(Version::V311, "old"));
        for client in [aliased, plain, old] {
            world.subscribe(client, "#", qos);
        }
        let short = "x".repeat(TOPIC_ALIAS_LEN_MIN - 1);
        let other = format!("{LONG}/other");
        let topics = [LONG, LONG, LONG, &short, &short, &short, &other, &other, LONG];
        publish_each(&mut world, publisher, &topics, qos);
        let got = named(&mut world, aliased);
        let expected = [(LONG, 1), ("", 1), ("", 1), (&short, 0), (&short, 0), (&short, 0)];
        for (got, (topic, alias)) in got.iter().zip(expected) {
            assert_eq!((got.0.as_str(), got.1), (topic, alias));
        }
        // The other one takes the number, since the first was not used since it came.
        let other = [(other.clone(), 0), (other.clone(), 1)];
        assert_eq!(got[6..8], other);
        assert_eq!(got[8], (LONG.to_owned(), 0));
        for client in [plain, old] {
            let names: Vec<_> = topics.iter().map(|topic| ((*topic).to_owned(), 0)).collect();
            assert_eq!(named(&mut world, client), names);
        }
    }
}

/// The publisher's alias is its own; what it saves does not reach subscribers as it came.
#[test]
fn the_publishers_alias_is_not_forwarded() {
    let mut world = World::new(1);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    let (plain, _) = world.join(&hello(Version::V5, "s"));
    let (aliased, _) = world.join(&allowing(hello(Version::V5, "a"), 10));
    world.subscribe(plain, "#", QoS::AtMostOnce);
    world.subscribe(aliased, "#", QoS::AtMostOnce);
    for topic in [LONG, "", ""] {
        let mut publish = publish(topic, b"x", QoS::AtMostOnce, 0);
        publish.properties.topic_alias = alias(7);
        world.send(publisher, &Packet::Publish(publish));
    }
    assert_eq!(named(&mut world, plain), vec![(LONG.to_owned(), 0); 3]);
    let expected = [(LONG.to_owned(), 1), (String::new(), 1), (String::new(), 1)];
    assert_eq!(named(&mut world, aliased), expected);
}

/// [MQTT-3.3.2-7]: a mapping ends with its connection; what is sent again has its name, also if it
/// was sent by its alias alone.
#[test]
fn another_connection_begins_without_any() {
    let mut world = World::new(1);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    let (client, _) = world.join(&allowing(stay(Version::V5, "s"), 10));
    world.subscribe(client, "#", QoS::AtLeastOnce);
    publish_each(&mut world, publisher, &[LONG; 4], QoS::AtLeastOnce);
    let aliases = |got: Vec<Got>| -> Vec<(String, u16, bool)> {
        let one = |got| match got {
            Got::Publish(p) => (p.topic, p.alias, p.dup),
            other => panic!("{other:?}"),
        };
        got.into_iter().map(one).collect()
    };
    let name = |alias, dup| (LONG.to_owned(), alias, dup);
    let number = |dup| (String::new(), 1, dup);
    let expected = [name(1, false), number(false), number(false), number(false)];
    assert_eq!(aliases(world.take(client)), expected);
    world.cut(client);
    // Three more are queued meanwhile.
    publish_each(&mut world, publisher, &[LONG; 3], QoS::AtLeastOnce);
    let client = world.connect(&allowing(stay(Version::V5, "s"), 10));
    let mut got = world.take(client);
    got.remove(0);
    let mut expected = vec![name(0, true); 4];
    expected.extend([name(1, false), number(false), number(false)]);
    assert_eq!(aliases(got), expected);
}

/// PITFALLS 49, 50: what a client cannot take leaves nothing behind; sizes are those of what is
/// sent, to the byte.
#[test]
fn the_size_is_that_of_what_is_sent() {
    // Type, length, topic, no properties.
    let by_name = 1 + 1 + 2 + LONG.len() + 1;
    let payload = [b'x'; 20];
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
        let id = if qos == QoS::AtMostOnce { 0 } else { 2 };
        // What has its name just fits; with an alias beside it, it would not.
        let mut connect = allowing(hello(Version::V5, "s"), 10);
        connect.properties.maximum_packet_size = Some((by_name + id + payload.len()) as u32);
        let mut world = World::new(1);
        let (publisher, _) = world.join(&hello(Version::V5, "p"));
        let (client, _) = world.join(&connect);
        world.subscribe(client, "#", qos);
        let send = |world: &mut World, len: usize| {
            let payload = vec![b'x'; len];
            world.send(publisher, &Packet::Publish(publish(LONG, &payload, qos, 1)));
            let got: Vec<_> = world.take_messages(client);
            got.into_iter().map(|m| (m.topic.len(), m.alias, m.len)).collect::<Vec<_>>()
        };
        let dropped = |world: &World| world.brokers[0].stats().dropped_too_large;
        let full = by_name + id + payload.len();
        for _ in 0..3 {
            assert_eq!(send(&mut world, payload.len()), [(LONG.len(), 0, full)]);
        }
        assert!(send(&mut world, payload.len() + 1).is_empty());
        assert_eq!(dropped(&world), 1);
        // With room for both it is defined, and then saves its length but for three bytes.
        assert_eq!(send(&mut world, payload.len() - 3), [(LONG.len(), 1, full)]);
        assert_eq!(send(&mut world, payload.len()), [(0, 1, full - LONG.len() + 3)]);
        let most = payload.len() + LONG.len() - 3;
        assert_eq!(send(&mut world, most), [(0, 1, full)]);
        assert!(send(&mut world, most + 1).is_empty());
        assert_eq!(dropped(&world), 2);
        assert_eq!(send(&mut world, 0), [(0, 1, full - LONG.len() + 3 - payload.len())]);
    }
}

/// Queued, retained, large, with identifiers, dropped, at every QoS, in turns that a seed chooses:
/// what the client makes of topic and alias is always the topic that was published.
#[test]
fn a_client_always_understands() {
    for seed in 1..60_u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut below = |n: u64| {
            random ^= random >> 12;
            random ^= random << 25;
            random ^= random >> 27;
            (random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
        };
        let config = Config { outbox_bytes_max: 3000, in_flight_max: 3, ..Config::default() };
        let mut world = World::with_config(1 + below(2) as usize, &config);
        let (publisher, _) = world.join(&hello(Version::V5, "p"));
        let max = 1 + below(3) as u16;
        let mut connect = allowing(stay(Version::V5, "s"), max);
        connect.properties.maximum_packet_size = [None, Some(90)][below(2) as usize];
        let (mut client, _) = world.join(&connect);
        let id = [None, Some(5)][below(2) as usize];
        world.subscribe_with(client, "+/#", SubscriptionOptions::new(QoS::ExactlyOnce), id);
        let mut known: HashMap<u16, String> = HashMap::new();
        let mut by_alias = 0;
        for _ in 0..150 {
            match below(12) {
                0 => world.stall(client, true),
                1 => {
                    world.cut(client);
                    known.clear();
                    (client, _) = world.join(&connect);
                }
                2 => world.stall(client, false),
                _ => {
                    let topic = format!("t/{}/of-some-length", below(5));
                    let len = [20, 45, 60, SHARE_PAYLOAD_FROM as u64][below(4) as usize];
                    let payload = format!("{topic:len$}", len = len as usize);
                    let qos = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];
                    let n = 1 + below(60_000) as u16;
                    let retain = below(4) == 0;
                    let qos = qos[below(3) as usize];
                    let publish = Publish { retain, ..publish(&topic, payload.as_bytes(), qos, n) };
                    world.send(publisher, &Packet::Publish(publish));
                    world.take(publisher);
                    if qos == QoS::ExactlyOnce {
                        let ack = crate::codec::mqtt::Ack::new(
                            self::id(n),
                            crate::codec::mqtt::ReasonCode::SUCCESS,
                        );
                        world.send(publisher, &Packet::PubRel(ack));
                        world.take(publisher);
                    }
                }
            }
            if below(3) == 0 {
                world.stall(client, false);
            }
            for message in world.take_messages(client) {
                assert!(message.alias <= max);
                assert!(
                    message.len
                        <= connect.properties.maximum_packet_size.map_or(9999, |n| n as usize)
                );
                let topic = match (message.topic.is_empty(), message.alias) {
                    (true, alias) => {
                        by_alias += 1;
                        known[&alias].clone()
                    }
                    (false, 0) => message.topic,
                    (false, alias) => {
                        known.insert(alias, message.topic.clone());
                        message.topic
                    }
                };
                let said = String::from_utf8(message.payload).unwrap();
                assert_eq!(said.trim_end(), topic, "seed {seed}");
            }
        }
        assert!(by_alias > 0, "seed {seed}");
    }
}
