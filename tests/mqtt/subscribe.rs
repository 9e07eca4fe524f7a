//! SUBSCRIBE, UNSUBSCRIBE, and which topics a filter matches.

use std::collections::BTreeSet;

use noctule::codec::mqtt::{Packet, Publish, QoS, Version};
use noctule::limits::FILTERS_PER_PACKET_MAX;

use super::notation::packet;
use super::support::packets::{connect, publish};
use super::support::{Broker, Wire, combinations, on_all};

use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};
use Version::{V5, V311};

fn online(broker: &Broker, version: Version, id: &str) -> Wire {
    let mut wire = broker.connect();
    wire.handshake(connect(version, id));
    wire
}

/// 4.7, by hand: a filter, what it matches of [`TOPICS`].
const FILTERS: &[(&str, &[&str])] = &[
    ("#", &["a", "a/b", "a/b/c", "a/", "/a", "/", "//", "a//c", "A", "b/a", " "]),
    ("+", &["a", "A", " "]),
    ("/#", &["/a", "/", "//"]),
    ("/+", &["/a", "/"]),
    ("+/+", &["a/b", "a/", "/a", "/", "b/a"]),
    ("a", &["a"]),
    ("a/#", &["a", "a/b", "a/b/c", "a/", "a//c"]),
    ("a/+", &["a/b", "a/"]),
    ("a/+/#", &["a/b", "a/b/c", "a/", "a//c"]),
    ("+/b/#", &["a/b", "a/b/c"]),
    ("+/a", &["/a", "b/a"]),
    ("a/+/c", &["a/b/c", "a//c"]),
    ("+/", &["a/", "/"]),
    ("+/+/+", &["a/b/c", "//", "a//c"]),
    ("a/b/c/d", &[]),
    ("$test/#", &["$test", "$test/a", "$test/$a"]),
    ("$test/+", &["$test/a", "$test/$a"]),
    ("$test/$a", &["$test/$a"]),
    ("+/$a", &[]),
    ("$test", &["$test"]),
];
const TOPICS: &[&str] = &[
    "a", "a/b", "a/b/c", "a/", "/a", "/", "//", "a//c", "A", "b/a", " ", "$test", "$test/a",
    "$test/$a",
];

/// `[MQTT-4.7.1-1]` to `[MQTT-4.7.3-4]`, `[MQTT-4.7.2-1]`, for live messages and for retained ones.
#[test]
fn matching() {
    on_all(|broker| {
        let mut publisher = online(broker, V5, "publisher");
        for (retain, qos) in [(false, AtMostOnce), (true, AtLeastOnce)] {
            let mut subscribers = Vec::new();
            if retain {
                for topic in TOPICS {
                    publisher.publish(Publish { retain, ..publish(topic, qos, b"!") });
                }
            }
            for (number, (filter, _)) in FILTERS.iter().enumerate() {
                let mut wire = online(broker, V311, &format!("{number}"));
                wire.subscribe(filter, qos);
                subscribers.push(wire);
            }
            if !retain {
                for topic in TOPICS {
                    publisher.publish(publish(topic, qos, b"!"));
                }
            }
            for ((filter, matched), wire) in FILTERS.iter().zip(&mut subscribers) {
                let mut got = BTreeSet::new();
                for _ in *matched {
                    let Packet::Publish(publish) = wire.recv() else { panic!("a PUBLISH") };
                    assert_eq!(publish.retain, retain);
                    assert!(got.insert(publish.topic.to_owned()), "{filter}: {publish:?} twice");
                }
                let matched: BTreeSet<_> = matched.iter().map(|&topic| topic.to_owned()).collect();
                assert_eq!(got, matched, "{filter}, retained: {retain}");
            }
            // And nothing more: what comes last comes next.
            for wire in &mut subscribers {
                wire.subscribe("last", AtMostOnce);
            }
            publisher.publish(publish("last", AtMostOnce, b"!"));
            for wire in &mut subscribers {
                wire.expect_publish("last", AtMostOnce, b"!");
            }
        }
    });
}

/// `[MQTT-3.8.4-2]`, `[MQTT-3.8.4-6]`, `[MQTT-3.9.3-1]`: one code per filter, in order; a filter that
/// is none spoils no other. 3.1 has no code for it.
#[test]
fn suback_has_a_code_for_every_filter() {
    let filters = "'a' 01 'a/#/b' 00 '+/+' 02 'a+' 01 '#' 00 '' 01 'a/b#' 02 '$share//a' 01 \
                   '$share/g' 01 '$share/g/' 01 '$share/g+/a' 01 '$share/g/a' 02 '/' 01";
    let codes = [1, 0x8f, 2, 0x8f, 0, 0x8f, 0x8f, 0x8f, 0x8f, 0x8f, 0x8f, 2, 1];
    let v3 = codes.map(|code| if code == 0x8f { 0x80 } else { code });
    let body = filters;
    on_all(|broker| {
        let mut wire = online(broker, V5, "v5");
        wire.send_bytes(&packet(0x82, &format!("1234 {{}} {body}")));
        let mut expected = packet(0x90, "1234 {}");
        expected.extend(codes);
        expected[1] += codes.len() as u8;
        wire.expect_bytes(&expected);
        let mut wire = online(broker, V311, "v311");
        wire.send_bytes(&packet(0x82, &format!("ffff {body}")));
        let mut expected = packet(0x90, "ffff");
        expected.extend(v3);
        expected[1] += v3.len() as u8;
        wire.expect_bytes(&expected);
    });
}

/// `[MQTT-3.10.4-4]`, `[MQTT-3.10.4-5]`, `[MQTT-3.11.3-1]`, `[MQTT-3.10.4-1]`: compared character by
/// character; 3.x has no codes.
#[test]
fn unsuback() {
    on_all(|broker| {
        let mut wire = online(broker, V5, "v5");
        wire.send_bytes(&packet(0x82, "0001 {} 'a/+' 01 'a/b' 01 '$share/g/a' 01"));
        wire.expect_bytes(&packet(0x90, "0001 {} 01 01 01"));
        wire.send_bytes(&packet(0xa2, "0002 {} 'a/#' 'a/+' 'a/+' '$share/h/a' '$share/g/a' 'a#'"));
        wire.expect_bytes(&packet(0xb0, "0002 {} 11 00 11 11 00 8f"));
        wire.publish(publish("a/c", AtMostOnce, b""));
        wire.publish(publish("a", AtMostOnce, b""));
        wire.publish(publish("a/b", AtMostOnce, b""));
        wire.expect_publish("a/b", AtMostOnce, b"");
        let mut wire = online(broker, V311, "v311");
        wire.send_bytes(&packet(0xa2, "0003 'a/#' 'a/+'"));
        wire.expect_hex("b0 02 0003");
    });
}

/// `[MQTT-3.8.4-3]`: the same filter again replaces what was, identifier and all.
#[test]
fn subscribing_again_replaces() {
    on_all(|broker| {
        let mut wire = online(broker, V5, "again");
        wire.send_bytes(&packet(0x82, "0001 {0b07} 'a/+' 02"));
        wire.expect_bytes(&packet(0x90, "0001 {} 02"));
        wire.send_bytes(&packet(0x82, "0002 {0b ffffff7f} 'a/+' 00"));
        wire.expect_bytes(&packet(0x90, "0002 {} 00"));
        let mut publisher = online(broker, V311, "publisher");
        publisher.publish(publish("a/b", ExactlyOnce, b""));
        wire.expect_bytes(&packet(0x30, "'a/b' {0b ffffff7f}"));
        wire.send_bytes(&packet(0x82, "0003 {} 'a/+' 01"));
        wire.expect_bytes(&packet(0x90, "0003 {} 01"));
        publisher.publish(publish("a/b", AtMostOnce, b""));
        wire.expect_bytes(&packet(0x30, "'a/b' {}"));
        wire.expect_nothing_before_ping();
    });
}

/// Nothing is lost and nothing doubled while a subscription is replaced (PITFALLS 66): a stream of
/// numbers meets a stream of SUBSCRIBEs.
#[test]
fn replacing_a_subscription_loses_nothing() {
    const COUNT: u32 = 400;
    on_all(|broker| {
        let mut wire = online(broker, V5, "again");
        wire.send_bytes(&packet(0x82, "0001 {} 'stream/+' 20"));
        wire.expect_bytes(&packet(0x90, "0001 {} 00"));
        let addr = broker.addr();
        let sender = std::thread::spawn(move || {
            let mut publisher = Wire::open(addr);
            publisher.handshake(connect(V5, "publisher"));
            for number in 0..COUNT {
                publisher.publish(publish("stream/1", AtLeastOnce, &number.to_be_bytes()));
            }
            publisher
        });
        let mut expected = 0;
        let mut acks = 0;
        let mut open = 0;
        while expected < COUNT {
            if open < 3 {
                wire.send_bytes(&packet(0x82, "0001 {} 'stream/+' 20"));
                open += 1;
            }
            match wire.recv() {
                Packet::Publish(publish) => {
                    assert_eq!(publish.payload, expected.to_be_bytes());
                    expected += 1;
                }
                Packet::SubAck(_) => {
                    acks += 1;
                    open -= 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(acks > 0);
        drop(sender.join().expect("the publisher"));
    });
}

/// `[MQTT-3.3.4-2]` to `[MQTT-3.3.4-5]`: one copy for overlapping subscriptions, with the highest
/// QoS and all identifiers of this client, and of no other.
#[test]
fn overlapping_subscriptions() {
    on_all(|broker| {
        let mut wire = online(broker, V5, "overlap");
        for subscribe in ["0001 {0b01} 'a/#' 00", "0001 {0b02} 'a/+' 02", "0001 {} '#' 01"] {
            wire.send_bytes(&packet(0x82, subscribe));
            wire.frame();
        }
        let mut other = online(broker, V5, "other");
        other.send_bytes(&packet(0x82, "0001 {0b09} 'a/b' 00"));
        other.frame();
        let mut publisher = online(broker, V311, "publisher");
        publisher.publish(publish("a/b", ExactlyOnce, b"x"));
        {
            let Packet::Publish(got) = wire.recv() else { panic!("a PUBLISH") };
            assert_eq!((got.topic, got.qos), ("a/b", ExactlyOnce));
            let mut ids: Vec<_> = got.properties.subscription_ids.iter().collect();
            ids.sort();
            assert_eq!(ids, [1, 2]);
        }
        wire.expect_nothing_before_ping();
        other.expect_bytes(&packet(0x30, "'a/b' {0b09} 78"));
    });
}

/// `[MQTT-3.8.3-3]`: not to who published it, by that subscription; by another one still.
#[test]
fn no_local() {
    on_all(|broker| {
        let mut one = online(broker, V5, "one");
        let mut two = online(broker, V5, "two");
        for wire in [&mut one, &mut two] {
            wire.send_bytes(&packet(0x82, "0001 {0b01} 'a/#' 04"));
            wire.expect_bytes(&packet(0x90, "0001 {} 00"));
        }
        one.publish(publish("a/1", AtMostOnce, b""));
        two.expect_bytes(&packet(0x30, "'a/1' {0b01}"));
        one.expect_nothing_before_ping();
        one.send_bytes(&packet(0x82, "0001 {0b02} 'a/+' 00"));
        one.expect_bytes(&packet(0x90, "0001 {} 00"));
        one.publish(publish("a/2", AtMostOnce, b""));
        one.expect_bytes(&packet(0x30, "'a/2' {0b02}"));
        one.expect_nothing_before_ping();
    });
}

/// SUBACK says that it has begun: whatever is published after it arrives, wherever it is published.
/// UNSUBACK says that it has ended `[MQTT-3.10.4-2]`.
#[test]
fn suback_and_unsuback_are_the_truth() {
    on_all(|broker| {
        let mut publishers: Vec<_> =
            (0..4).map(|number| online(broker, V5, &format!("publisher-{number}"))).collect();
        for round in 0..20 {
            let topic = format!("t/{round}");
            let filter = if round % 2 == 0 { topic.clone() } else { format!("+/{round}") };
            let mut wire = online(broker, V311, &format!("subscriber-{round}"));
            wire.subscribe(&filter, AtMostOnce);
            for (publisher, payload) in publishers.iter_mut().zip(["0", "1", "2", "3"]) {
                publisher.publish(publish(&topic, AtMostOnce, payload.as_bytes()));
            }
            let mut got: Vec<_> = (0..4).map(|_| wire.frame()[6..].to_vec()).collect();
            got.sort();
            assert!(got.iter().zip(b"0123").all(|(got, n)| got.last() == Some(n)), "{got:?}");
            wire.unsubscribe(&filter);
            for publisher in &mut publishers {
                publisher.publish(publish(&topic, AtLeastOnce, b"late"));
            }
            wire.expect_nothing_before_ping();
        }
    });
}

/// A client may have so many, and no more (0x97, 0x80); replacing one is always possible.
#[test]
fn subscriptions_are_bounded() {
    for combination in combinations() {
        let broker = Broker::build(combination).arg("--subscriptions-per-session-max=2").start();
        let mut wire = online(&broker, V5, "v5");
        wire.send_bytes(&packet(0x82, "0001 {} 'a' 00 '$share/g/b' 00 'c' 00"));
        wire.expect_bytes(&packet(0x90, "0001 {} 00 00 97"));
        wire.send_bytes(&packet(0x82, "0002 {} 'a' 01 'c' 01 '$share/g/b' 01"));
        wire.expect_bytes(&packet(0x90, "0002 {} 01 97 01"));
        wire.send_bytes(&packet(0xa2, "0003 {} 'a'"));
        wire.expect_bytes(&packet(0xb0, "0003 {} 00"));
        wire.send_bytes(&packet(0x82, "0004 {} 'c' 01"));
        wire.expect_bytes(&packet(0x90, "0004 {} 01"));
        let mut wire = online(&broker, V311, "v311");
        wire.send_bytes(&packet(0x82, "0001 'a' 00 'b' 00 'c' 00"));
        wire.expect_bytes(&packet(0x90, "0001 00 00 80"));
        broker.stop();
    }
}

/// Many filters in one packet, which is a packet of many fragments. There is a bound to what one
/// packet makes the broker do; what is beyond is refused, and the rest holds.
#[test]
fn a_subscribe_of_ten_thousand_filters() {
    on_all(|broker| {
        for (version, refusal) in [(V311, 0x80), (V5, 0x97)] {
            let mut wire = online(broker, version, "many");
            let properties = if version == V5 { "{}" } else { "" };
            let filters: String = (0..10_000).map(|n| format!("'many/{n}/+' 01")).collect();
            wire.send_bytes(&packet(0x82, &format!("0001 {properties} {filters}")));
            let Packet::SubAck(ack) = wire.recv() else { panic!("a SUBACK") };
            let expected: Vec<u8> =
                (0..10_000).map(|n| if n < FILTERS_PER_PACKET_MAX { 1 } else { refusal }).collect();
            assert!(ack.codes == expected);
            wire.publish(publish("many/9999/x", AtMostOnce, b""));
            wire.publish(publish("many/4999/x", AtMostOnce, b""));
            wire.expect_publish("many/4999/x", AtMostOnce, b"");
        }
    });
}
