//! SUBSCRIBE, UNSUBSCRIBE, and which topics a filter matches.

use std::collections::BTreeSet;

use noctule::codec::mqtt::{Connect, ConnectProperties, Packet, PacketKind, Publish, QoS, Version};
use noctule::limits::FILTERS_PER_PACKET_MAX;

use super::notation::packet;
use super::support::packets::{connect, publish};
use super::support::{Broker, Wire, combinations, on_all};

use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};
use Version::{V5, V31, V311};

/// A client of 5.0 that wants no Reason Strings: its acknowledgements are what they must be.
fn wordless(broker: &Broker, id: &str) -> Wire {
    let mut connect = connect(V5, id);
    connect.properties.request_problem_information = Some(false);
    let mut wire = broker.connect();
    wire.handshake(connect);
    wire
}

fn online(broker: &Broker, version: Version, id: &str) -> Wire {
    let mut wire = broker.connect();
    wire.handshake(connect(version, id));
    wire
}

/// The next packet is a SUBACK of 5.0 with this identifier and these codes, whatever it says of them.
fn expect_codes(wire: &mut Wire, packet_id: u16, codes: &[u8]) {
    let Packet::SubAck(ack) = wire.recv() else { panic!("a SUBACK") };
    assert_eq!((ack.packet_id.get(), ack.codes), (packet_id, codes));
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

/// Which topics a filter matches, for live messages and for retained ones.
///
/// v5: 3.3.2-3, 3.3.1-9, 4.7.1-2, 4.7.2-1, 4.7.3-4
/// v3.1.1: 3.3.2-3, 3.3.1-6, 4.7.1-3, 4.7.2-1, 4.7.3-4
/// v3.1: A
/// family: 63, 64
#[test]
fn matching() {
    on_all(|broker| {
        let mut publisher = online(broker, V5, "publisher");
        let both = [(false, AtMostOnce), (true, AtLeastOnce)];
        for ((retain, qos), version) in
            both.into_iter().flat_map(|kind| [V31, V311, V5].map(|version| (kind, version)))
        {
            let mut subscribers = Vec::new();
            if retain {
                for topic in TOPICS {
                    publisher.publish(Publish { retain, ..publish(topic, qos, b"!") });
                }
            }
            for (number, (filter, _)) in FILTERS.iter().enumerate() {
                let mut wire = online(broker, version, &format!("{number}"));
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

/// One code per filter, in order; a filter that is none spoils no other. 3.1 has no code for it,
/// and tells QoS 0.
///
/// v5: 2.2.1-6, 3.8.4-1, 3.8.4-2, 3.8.4-5, 3.8.4-6, 3.8.4-7, 3.9.3-1, 3.9.3-2, 4.7.1-1, 4.7.1-2
/// v5: 4.7.3-1, 4.8.2-1, 4.8.2-2
/// v3.1.1: 2.3.1-7, 3.8.4-1, 3.8.4-2, 3.8.4-4, 3.8.4-5, 3.9.3-1, 3.9.3-2, 4.7.1-2, 4.7.1-3
/// v3.1.1: 4.7.3-1
/// v3.1: 3.8, 3.9
/// family: 61, 62, 65, 72, 82
#[test]
fn suback_has_a_code_for_every_filter() {
    let filters = "'a' 01 'a/#/b' 00 '+/+' 02 'a+' 01 '#' 00 '' 01 'a/b#' 02 '$share//a' 01 \
                   '$share/g' 01 '$share/g/' 01 '$share/g+/a' 01 '$share/g/a' 02 '/' 01";
    let codes = [1, 0x8f, 2, 0x8f, 0, 0x8f, 0x8f, 0x8f, 0x8f, 0x8f, 0x8f, 2, 1];
    let v3 = codes.map(|code| if code == 0x8f { 0x80 } else { code });
    let body = filters;
    on_all(|broker| {
        let mut wire = wordless(broker, "v5");
        wire.send_bytes(&packet(0x82, &format!("1234 {{}} {body}")));
        expect_codes(&mut wire, 0x1234, &codes);
        let mut wire = online(broker, V311, "v311");
        wire.send_bytes(&packet(0x82, &format!("ffff {body}")));
        let mut expected = packet(0x90, "ffff");
        expected.extend(v3);
        expected[1] += v3.len() as u8;
        wire.expect_bytes(&expected);
        let mut wire = online(broker, V31, "v31");
        wire.send_bytes(&packet(0x82, &format!("ffff {body}")));
        let mut expected = packet(0x90, "ffff");
        expected.extend(v3.map(|code| code & 3));
        expected[1] += v3.len() as u8;
        wire.expect_bytes(&expected);
        // What was refused is not there, whatever the code said.
        wire.unsubscribe("#");
        wire.unsubscribe("+/+");
        wire.unsubscribe("/");
        wire.unsubscribe("$share/g/a");
        for topic in ["a/b", "a", "a/x"] {
            wire.publish(publish(topic, AtMostOnce, b""));
        }
        wire.expect_publish("a", AtMostOnce, b"");
        wire.expect_nothing_before_ping();
    });
}

/// UNSUBACK has the identifier of its UNSUBSCRIBE, and in 5.0 a code per filter. Filters are
/// compared character by character.
///
/// v5: 2.2.1-6, 3.10.4-1, 3.10.4-2, 3.10.4-4, 3.10.4-5, 3.10.4-6, 3.11.3-1, 3.11.3-2
/// v3.1.1: 2.3.1-7, 3.10.4-1, 3.10.4-2, 3.10.4-4, 3.10.4-5, 3.10.4-6
/// v3.1: 3.10
/// family: 75
#[test]
fn unsuback() {
    on_all(|broker| {
        for version in [V31, V311, V5] {
            let none = if version == V5 { "{}" } else { "" };
            let mut wire = online(broker, version, "compares");
            wire.send_bytes(&packet(0x82, &format!("0001 {none} 'a/+' 01 'a/b' 01 'a/c' 01")));
            wire.expect_bytes(&packet(0x90, &format!("0001 {none} 01 01 01")));
            // All of them match what was subscribed to, and two of them are the same.
            wire.send_bytes(&packet(0xa2, &format!("fffe {none} '#' 'a/+' '+/b' 'a/c' 'A/b'")));
            let codes = if version == V5 { "{} 11 00 11 00 11" } else { "" };
            wire.expect_bytes(&packet(0xb0, &format!("fffe {codes}")));
            for topic in ["a/x", "a/c", "a/b"] {
                wire.publish(publish(topic, AtMostOnce, b""));
            }
            wire.expect_publish("a/b", AtMostOnce, b"");
            wire.expect_nothing_before_ping();
            // Nothing was there, and it is answered all the same.
            wire.send_bytes(&packet(0xa2, &format!("0003 {none} 'x/#'")));
            let codes = if version == V5 { "{} 11" } else { "" };
            wire.expect_bytes(&packet(0xb0, &format!("0003 {codes}")));
        }
        let mut wire = online(broker, V5, "shared");
        wire.send_bytes(&packet(0x82, "0001 {} '$share/g/a' 01"));
        wire.expect_bytes(&packet(0x90, "0001 {} 01"));
        wire.send_bytes(&packet(0xa2, "0002 {} 'a' '$share/h/a' '$share/g/a' '$share/g/a' 'a#'"));
        wire.expect_bytes(&packet(0xb0, "0002 {} 11 11 00 11 8f"));
    });
}

/// The same filter again replaces what was, identifier and all.
///
/// v5: 3.8.4-3, 3.3.4-3
/// family: 66
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

/// Nothing is lost and nothing doubled while a subscription is replaced: a stream of numbers meets
/// a stream of SUBSCRIBEs.
///
/// v5: 3.8.4-3, 3.8.4-4
/// v3.1.1: 3.8.4-3
/// family: 66
#[test]
fn replacing_a_subscription_loses_nothing() {
    const COUNT: u32 = 300;
    on_all(|broker| {
        for (version, subscribe) in [
            (V311, "0001 'stream/+' 00"),
            (V5, "0001 {} 'stream/+' 20"),
            (V5, "0001 {} 'stream/+' 00"),
        ] {
            let mut wire = online(broker, version, "again");
            wire.send_bytes(&packet(0x82, subscribe));
            assert_eq!(wire.frame()[0], 0x90);
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
                    wire.send_bytes(&packet(0x82, subscribe));
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
        }
    });
}

/// What is subscribed to again is the same subscription with another QoS: one copy, at the new
/// one, and the retained messages once more.
///
/// v5: 3.8.4-3, 3.8.4-4, 3.8.4-8
/// v3.1.1: 3.8.4-3, 3.8.4-6, 3.3.1-6
/// v3.1: 3.8
/// family: 66
#[test]
fn subscribing_again_with_another_qos() {
    on_all(|broker| {
        let mut publisher = online(broker, V5, "publisher");
        publisher.publish(Publish { retain: true, ..publish("a/b", ExactlyOnce, b"kept") });
        for version in [V31, V311, V5] {
            let mut wire = online(broker, version, "again");
            for qos in [ExactlyOnce, AtMostOnce, AtLeastOnce] {
                wire.subscribe("a/+", qos);
                assert_eq!(wire.take_publish("a/b", qos, b"kept"), (false, true));
                publisher.publish(publish("a/c", ExactlyOnce, b"live"));
                assert_eq!(wire.take_publish("a/c", qos, b"live"), (false, false));
                wire.expect_nothing_before_ping();
            }
            wire.unsubscribe("a/+");
            publisher.publish(publish("a/c", AtLeastOnce, b"live"));
            wire.expect_nothing_before_ping();
        }
    });
}

/// One copy for overlapping subscriptions, with the highest QoS and all identifiers of this
/// client, and of no other.
///
/// v5: 3.3.4-2, 3.3.4-3, 3.3.4-4
/// v3.1.1: 3.3.5-1
/// family: 70
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
        // Whichever of them has the highest.
        let filters = ["a/#", "a/+", "#", "a/b"];
        for (version, highest) in
            [V31, V311, V5].into_iter().flat_map(|v| filters.map(|filter| (v, filter)))
        {
            let mut all = online(broker, version, "all");
            for filter in filters {
                all.subscribe(filter, if filter == highest { AtLeastOnce } else { AtMostOnce });
            }
            publisher.publish(publish("a/b", ExactlyOnce, b"y"));
            all.take_publish("a/b", AtLeastOnce, b"y");
            all.expect_nothing_before_ping();
        }
    });
}

/// Not to who published it, by that subscription; by another one still.
///
/// v5: 3.8.3-3
/// family: 70
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

/// SUBACK says that it has begun: whatever is published after it arrives, wherever it is
/// published. UNSUBACK says that it has ended.
///
/// v5: 3.10.4-2, 4.5.0-1
/// v3.1.1: 3.10.4-2, 4.5.0-1
/// family: 65
#[test]
fn suback_and_unsuback_are_the_truth() {
    on_all(|broker| {
        let mut publishers: Vec<_> =
            (0..4).map(|number| online(broker, V5, &format!("publisher-{number}"))).collect();
        for round in 0..20 {
            let topic = format!("t/{round}");
            let filter = if round % 2 == 0 { topic.clone() } else { format!("+/{round}") };
            let version = if round / 2 % 2 == 0 { V311 } else { V5 };
            let mut wire = online(broker, version, &format!("subscriber-{round}"));
            wire.subscribe(&filter, AtMostOnce);
            for (publisher, payload) in publishers.iter_mut().zip(["0", "1", "2", "3"]) {
                publisher.publish(publish(&topic, AtMostOnce, payload.as_bytes()));
            }
            let mut got: Vec<_> = (0..4).map(|_| wire.frame().split_off(2)).collect();
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
///
/// v5: 3.8.4-7, 3.9.3-2
/// v3.1.1: 3.8.4-5, 3.9.3-2
/// family: 76
#[test]
fn subscriptions_are_bounded() {
    for combination in combinations() {
        let broker = Broker::build(combination).arg("--subscriptions-per-session-max=2").start();
        let mut wire = wordless(&broker, "v5");
        wire.send_bytes(&packet(0x82, "0001 {} 'a' 00 '$share/g/b' 00 'c' 00"));
        expect_codes(&mut wire, 1, &[0, 0, 0x97]);
        wire.send_bytes(&packet(0x82, "0002 {} 'a' 01 'c' 01 '$share/g/b' 01"));
        expect_codes(&mut wire, 2, &[1, 0x97, 1]);
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
///
/// v5: 3.8.4-6, 3.8.4-7
/// v3.1.1: 3.8.4-5
/// family: 76
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

/// Giving up a subscription stops what has not begun, and nothing that has: what was sent is
/// finished, on this connection and on the next.
///
/// v5: 3.10.4-2, 3.10.4-3, 4.4.0-1
/// v3.1.1: 3.10.4-2, 3.10.4-3, 4.4.0-1
/// family: 75
#[test]
fn what_has_begun_outlives_its_subscription() {
    on_all(|broker| {
        let mut publisher = online(broker, V311, "publisher");
        for version in [V31, V311, V5] {
            let id = format!("gives up {version:?}");
            let expiry = (version == V5).then_some(60);
            let properties =
                ConnectProperties { session_expiry_interval: expiry, ..Default::default() };
            let session = Connect { clean_start: false, properties, ..connect(version, &id) };
            let mut wire = broker.connect();
            wire.handshake(session);
            wire.subscribe("a", ExactlyOnce);
            for qos in [AtLeastOnce, ExactlyOnce, ExactlyOnce] {
                publisher.publish(publish("a", qos, b"begun"));
            }
            let mut ids = Vec::new();
            for qos in [AtLeastOnce, ExactlyOnce, ExactlyOnce] {
                ids.push(wire.expect_publish("a", qos, b"begun").expect("an id").get());
            }
            wire.send_ack(PacketKind::PubRec, ids[2]);
            wire.expect_ack(PacketKind::PubRel, ids[2]);
            wire.unsubscribe("a");
            publisher.publish(publish("a", ExactlyOnce, b"never"));
            wire.send_ack(PacketKind::PubRec, ids[1]);
            wire.expect_ack(PacketKind::PubRel, ids[1]);
            wire.reset();
            let mut wire = broker.connect();
            wire.handshake(session);
            for id in [ids[2], ids[1]] {
                wire.expect_ack(PacketKind::PubRel, id);
                wire.send_ack(PacketKind::PubComp, id);
            }
            assert_eq!(wire.take_publish("a", AtLeastOnce, b"begun"), (true, false));
            wire.expect_nothing_before_ping();
        }
    });
}

/// One SUBSCRIBE with many filters is as many one after the other: the last of the same filter
/// holds.
///
/// v5: 3.8.4-3, 3.8.4-5, 3.9.3-1
/// v3.1.1: 3.8.4-3, 3.8.4-4, 3.9.3-1
/// family: 65, 66
#[test]
fn many_filters_are_many_subscribes() {
    on_all(|broker| {
        let mut publisher = online(broker, V311, "publisher");
        for (version, none) in [(V31, ""), (V311, ""), (V5, "{}")] {
            let mut wire = online(broker, version, "many");
            wire.send_bytes(&packet(0x82, &format!("0001 {none} 'a' 02 '+' 01 'a' 00 'b' 01")));
            wire.expect_bytes(&packet(0x90, &format!("0001 {none} 02 01 00 01")));
            wire.unsubscribe("+");
            publisher.publish(publish("a", ExactlyOnce, b"live"));
            wire.expect_publish("a", AtMostOnce, b"live");
            wire.expect_nothing_before_ping();
        }
    });
}

/// Subscription Identifiers from 1 to the largest, each with what it matches; a session keeps them.
///
/// v5: 3.3.4-3, 3.8.4-3, 3.1.2-5
/// family: 11, 69
#[test]
fn subscription_identifiers() {
    on_all(|broker| {
        let properties =
            ConnectProperties { session_expiry_interval: Some(60), ..Default::default() };
        let session = Connect { clean_start: false, properties, ..connect(V5, "identified") };
        let mut wire = broker.connect();
        wire.handshake(session);
        let ids = [("01", "one"), ("7f", "two"), ("8001", "three"), ("ffffff7f", "four")];
        for (id, topic) in ids {
            wire.send_bytes(&packet(0x82, &format!("0001 {{0b {id}}} '{topic}' 01")));
            wire.expect_bytes(&packet(0x90, "0001 {} 01"));
        }
        let mut publisher = online(broker, V311, "publisher");
        for round in 0..2 {
            for (id, topic) in ids {
                publisher.publish(publish(topic, AtMostOnce, b""));
                wire.expect_bytes(&packet(0x30, &format!("'{topic}' {{0b {id}}}")));
            }
            if round == 0 {
                wire.reset();
                wire = broker.connect();
                assert!(wire.handshake(session));
            }
        }
    });
}

/// What was queued for a subscription before it was given up is delivered, behind what was under
/// way.
///
/// v5: 3.10.4-3
/// family: 75
#[test]
fn what_is_queued_outlives_its_subscription() {
    on_all(|broker| {
        let mut publisher = online(broker, V311, "publisher");
        let properties = ConnectProperties { receive_maximum: Some(1), ..Default::default() };
        let mut wire = broker.connect();
        wire.handshake(Connect { properties, ..connect(V5, "narrow") });
        wire.subscribe("a", AtLeastOnce);
        publisher.publish(publish("a", AtLeastOnce, b"sent"));
        let id = wire.expect_publish("a", AtLeastOnce, b"sent").expect("an id").get();
        publisher.publish(publish("a", AtLeastOnce, b"queued"));
        broker.wait_for_count("broker", "messages_queued", |count| count == 1);
        wire.unsubscribe("a");
        publisher.publish(publish("a", AtLeastOnce, b"never"));
        wire.send_ack(PacketKind::PubAck, id);
        assert_eq!(wire.take_publish("a", AtLeastOnce, b"queued"), (false, false));
        wire.expect_nothing_before_ping();
    });
}

/// The longest topic and the longest filter there can be, of 65,535 bytes, live and retained.
///
/// v5: 4.7.3-3
/// v3.1.1: 4.7.3-3
#[test]
fn the_longest_topics() {
    let topic = format!("{}\u{fc}/x", "t".repeat(65_531));
    let filter = format!("{}\u{fc}/#", "t".repeat(65_531));
    assert_eq!((topic.len(), filter.len()), (65_535, 65_535));
    on_all(|broker| {
        for version in [V31, V311, V5] {
            let mut wire = online(broker, version, "long");
            wire.subscribe(&topic, AtLeastOnce);
            wire.subscribe(&filter, AtLeastOnce);
            wire.publish(Publish { retain: true, ..publish(&topic, AtMostOnce, b"kept") });
            assert_eq!(wire.take_publish(&topic, AtMostOnce, b"kept"), (false, false));
            wire.subscribe(&topic, AtLeastOnce);
            assert_eq!(wire.take_publish(&topic, AtMostOnce, b"kept"), (false, true));
            wire.unsubscribe(&filter);
            wire.unsubscribe(&topic);
            wire.publish(Publish { retain: true, ..publish(&topic, AtMostOnce, b"") });
            wire.expect_nothing_before_ping();
        }
    });
}

/// No Local holds for retained messages as well, and for one of several overlapping subscriptions
/// alone: what the others add is that of the others.
///
/// v5: 3.8.3-3, 3.3.4-2, 3.3.4-4, 3.3.1-9
/// family: 69, 70
#[test]
fn no_local_among_others() {
    on_all(|broker| {
        for round in 0..4 {
            let topic = format!("own/{round}");
            let mut one = online(broker, V5, &format!("one {round}"));
            let mut two = online(broker, V5, &format!("two {round}"));
            one.publish(Publish { retain: true, ..publish(&topic, AtMostOnce, b"kept") });
            // Else it may come behind the subscription, live.
            one.expect_nothing_before_ping();
            // Seen by somebody else, it is there.
            two.send_bytes(&packet(0x82, &format!("0001 {{0b09}} '{topic}' 04")));
            two.expect_bytes(&packet(0x90, "0001 {} 00"));
            two.expect_bytes(&packet(0x31, &format!("'{topic}' {{0b09}} 6b657074")));
            one.send_bytes(&packet(0x82, &format!("0001 {{0b01}} '{topic}' 06")));
            one.expect_bytes(&packet(0x90, "0001 {} 02"));
            one.expect_nothing_before_ping();
            // Another subscription, that gets its own at a lower QoS and with its identifier.
            one.send_bytes(&packet(0x82, "0001 {0b02} 'own/+' 20"));
            one.expect_bytes(&packet(0x90, "0001 {} 00"));
            one.send(&Packet::Publish(publish(&topic, AtLeastOnce, b"mine")));
            one.expect_among_others(&[0x40, 2, 0, 1]);
            one.expect_bytes(&packet(0x30, &format!("'{topic}' {{0b02}} 6d696e65")));
            two.expect_bytes(&packet(0x30, &format!("'{topic}' {{0b09}} 6d696e65")));
            two.publish(publish(&topic, ExactlyOnce, b"theirs"));
            {
                let Packet::Publish(got) = one.recv() else { panic!("a PUBLISH") };
                assert_eq!((got.payload, got.qos), (&b"theirs"[..], ExactlyOnce));
                let mut ids: Vec<_> = got.properties.subscription_ids.iter().collect();
                ids.sort();
                assert_eq!(ids, [1, 2]);
            }
            one.expect_nothing_before_ping();
            two.expect_nothing_before_ping();
        }
    });
}

/// Everything in one write: each packet finds what those before it have done, and is answered in
/// its place.
///
/// v5: 3.8.4-1, 3.10.4-2, 3.10.4-4
/// v3.1.1: 3.8.4-1, 3.10.4-2, 3.10.4-4
/// v3.1: 3.8, 3.10
/// family: 12, 65
#[test]
fn subscribing_and_publishing_in_one_write() {
    on_all(|broker| {
        for version in [V31, V311, V5] {
            let none = if version == V5 { "{}" } else { "" };
            for round in 0..8 {
                let mut wire = online(broker, version, &format!("pipelined {round}"));
                let mut all = Vec::new();
                let mut expected = Vec::new();
                for (number, filter) in ["a/b", "a/+", "#", "a/b"].into_iter().enumerate() {
                    let publish = |payload: usize| {
                        packet(0x30, &format!("'a/b' {none} {number:02x}{payload:02x}"))
                    };
                    all.extend(packet(0x82, &format!("010{number} {none} '{filter}' 00")));
                    expected.push(packet(0x90, &format!("010{number} {none} 00")));
                    all.extend(publish(1));
                    expected.push(publish(1));
                    all.extend(packet(0xa2, &format!("020{number} {none} '{filter}'")));
                    let code = if version == V5 { "{} 00" } else { "" };
                    expected.push(packet(0xb0, &format!("020{number} {code}")));
                    all.extend(publish(2));
                }
                all.extend([0xc0, 0]);
                wire.send_bytes(&all);
                for expected in expected {
                    wire.expect_bytes(&expected);
                }
                wire.expect_hex("d0 00");
                wire.send_hex("e0 00");
                wire.expect_closed();
            }
        }
    });
}
