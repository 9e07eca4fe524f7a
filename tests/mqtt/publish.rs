//! PUBLISH and its acknowledgements, in both directions.

use std::time::Duration;

use noctule::codec::mqtt::{
    Connect, ConnectProperties, Packet, PacketId, PacketKind, Publish, PublishProperties, QoS,
    ReasonCode, UserProperties, Version,
};

use super::notation::packet;
use super::support::packets::{connect, publish};
use super::support::{Broker, Wire, combinations, on_all, on_all_at_once};

use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};
use Version::{V5, V31, V311};

const ALL_QOS: [QoS; 3] = [AtMostOnce, AtLeastOnce, ExactlyOnce];

fn online(broker: &Broker, version: Version, id: &str) -> Wire {
    let mut wire = broker.connect();
    wire.handshake(connect(version, id));
    wire
}

fn with_id(publish: Publish<'_>, id: u16) -> Packet<'_> {
    Packet::Publish(Publish { packet_id: PacketId::new(id), ..publish })
}

/// The smaller QoS counts, between all versions; each exchange is whole, and what is new has no DUP.
///
/// v5: 2.2.1-5, 3.3.4-1, 3.8.4-8, 4.3.1-1, 4.3.2-2, 4.3.3-2, 4.3.3-4, 3.3.2-3
/// v3.1.1: 2.3.1-6, 3.3.1-9, 3.3.4-1, 3.8.4-6, 4.3.1-1, 3.3.2-3
/// v3.1: 3.3
#[test]
fn every_qos_to_every_qos_in_every_version() {
    on_all(|broker| {
        for from in [V31, V311, V5] {
            let mut publisher = online(broker, from, &format!("from-{from:?}"));
            for to in [V31, V311, V5] {
                let mut subscriber = online(broker, to, &format!("to-{to:?}"));
                for granted in ALL_QOS {
                    let topic = format!("{from:?}/{to:?}/{granted:?}");
                    subscriber.subscribe(&topic, granted);
                    for sent in ALL_QOS {
                        publisher.publish(publish(&topic, sent, b"payload"));
                        let flags = subscriber.take_publish(&topic, sent.min(granted), b"payload");
                        assert_eq!(flags, (false, false));
                    }
                }
            }
        }
    });
}

/// The bytes of acknowledgements: a reason only where there is one to give.
///
/// v5: 2.2.1-5, 3.3.4-1, 3.4.2-1, 3.5.2-1, 3.7.2-1, 4.3.2-4, 4.3.3-8, 4.3.3-11
/// v3.1.1: 2.3.1-6, 3.3.4-1
/// family: 54
#[test]
fn acknowledgements() {
    on_all(|broker| {
        let mut wire = online(broker, V311, "v311");
        wire.send_bytes(&packet(0x32, "'nobody' 1234"));
        wire.expect_hex("40 02 1234");
        wire.send_bytes(&packet(0x34, "'nobody' ffff"));
        wire.expect_hex("50 02 ffff");
        wire.send_hex("62 02 ffff");
        wire.expect_hex("70 02 ffff");
        let mut wire = online(broker, V5, "v5");
        wire.send_bytes(&packet(0x32, "'nobody' 0001 {}"));
        wire.expect_hex("40 03 0001 10");
        wire.send_bytes(&packet(0x34, "'nobody' 0001 {}"));
        wire.expect_hex("50 03 0001 10");
        wire.send_hex("62 02 0001");
        wire.expect_hex("70 02 0001");
        // "No matching subscribers" only when there is truly none, also on another shard.
        for number in 0..4 {
            let topic = format!("somebody/{number}");
            let mut subscriber = online(broker, V5, &format!("subscriber-{number}"));
            subscriber.subscribe(&topic, AtMostOnce);
            wire.send_bytes(&packet(0x32, &format!("'{topic}' 0002 {{}}")));
            wire.expect_hex("40 02 0002");
            wire.send_bytes(&packet(0x34, &format!("'{topic}' 0003 {{}}")));
            wire.expect_hex("50 02 0003");
            wire.send_hex("62 02 0003");
            wire.expect_hex("70 02 0003");
        }
    });
}

/// A QoS 2 message is had once, however often it comes before its PUBREL; then its identifier is a new
/// message's. DUP is not passed on.
///
/// v5: 3.3.1-3, 4.3.3-10, 4.3.3-12
/// v3.1.1: 3.3.1-3, 4.3.3-2, 2.3.1-3
/// family: 38, 39
#[test]
fn a_repeated_qos_2_publish_is_one_message() {
    on_all(|broker| {
        for (version, properties) in [(V311, ""), (V5, "{}")] {
            let mut subscriber = online(broker, V311, "subscriber");
            subscriber.subscribe("a", ExactlyOnce);
            let mut wire = online(broker, version, "publisher");
            wire.send_bytes(&packet(0x34, &format!("'a' 0001 {properties} 31")));
            wire.expect_hex("50 02 0001");
            for _ in 0..5 {
                wire.send_bytes(&packet(0x3c, &format!("'a' 0001 {properties} 31")));
                wire.expect_hex("50 02 0001");
            }
            wire.send_hex("62 02 0001");
            wire.expect_hex("70 02 0001");
            wire.send_bytes(&packet(0x3c, &format!("'a' 0001 {properties} 32")));
            wire.expect_hex("50 02 0001");
            assert_eq!(subscriber.take_publish("a", ExactlyOnce, b"1"), (false, false));
            assert_eq!(subscriber.take_publish("a", ExactlyOnce, b"2"), (false, false));
        }
    });
}

/// PUBCOMP always, with 0x92 for what was never sent or is done.
///
/// v5: 3.7.2-1, 4.3.3-11
/// family: 42
#[test]
fn pubrel_of_an_unknown_identifier() {
    on_all(|broker| {
        let mut wire = online(broker, V5, "v5");
        for _ in 0..2 {
            wire.send_hex("62 02 0007");
            wire.expect_hex("70 03 0007 92");
        }
        let mut wire = online(broker, V311, "v311");
        wire.send_hex("62 02 0007");
        wire.expect_hex("70 02 0007");
    });
}

/// Acknowledgements of what was never sent are no reason to close.
///
/// v5: 3.6.2-1
/// family: 42
#[test]
fn unexpected_acknowledgements_are_counted() {
    on_all(|broker| {
        for version in [V311, V5] {
            let mut wire = online(broker, version, "acks");
            wire.send_hex("40 02 0009");
            wire.send_hex("70 02 0009");
            wire.expect_nothing_before_ping();
        }
        assert!(broker.count("broker", "acks_unknown") >= 4);
        let mut wire = online(broker, V5, "acks");
        // [MQTT-4.3.3-4] presumes a PUBLISH; 0x92 says that there was none.
        wire.send_hex("50 02 0009");
        wire.expect_hex("62 03 0009 92");
        wire.expect_nothing_before_ping();
    });
}

/// A PUBREC with an error ends the exchange: no PUBREL, and its slot is free. The same for PUBACK.
///
/// v5: 4.3.3-4, 4.4.0-2
/// family: 43
#[test]
fn an_error_from_the_receiver_ends_the_exchange() {
    on_all(|broker| {
        let mut publisher = online(broker, V311, "publisher");
        for (qos, refusal) in [(AtLeastOnce, 0x40), (ExactlyOnce, 0x50)] {
            let mut subscriber = broker.connect();
            let properties =
                ConnectProperties { receive_maximum: Some(1), ..ConnectProperties::default() };
            subscriber.handshake(Connect { properties, ..connect(V5, "subscriber") });
            subscriber.subscribe("a", qos);
            for payload in [b"1", b"2", b"3"] {
                publisher.publish(publish("a", qos, payload));
            }
            for payload in [b"1", b"2", b"3"] {
                let id = subscriber.expect_publish("a", qos, payload).expect("an id").get();
                let [high, low] = id.to_be_bytes();
                subscriber.send_bytes(&[refusal, 3, high, low, 0x97]);
            }
            subscriber.expect_nothing_before_ping();
        }
    });
}

/// No more than Receive Maximum on the way. QoS 0 is not held up; PUBREC frees nothing, PUBACK and
/// PUBCOMP do.
///
/// v5: 2.2.1-4, 3.3.4-9, 3.3.4-10, 4.9.0-1, 4.9.0-2, 4.9.0-3
/// family: 47
#[test]
fn receive_maximum_of_the_client() {
    on_all(|broker| {
        let mut subscriber = broker.connect();
        let properties =
            ConnectProperties { receive_maximum: Some(2), ..ConnectProperties::default() };
        subscriber.handshake(Connect { properties, ..connect(V5, "subscriber") });
        subscriber.subscribe("#", ExactlyOnce);
        let mut publisher = online(broker, V5, "publisher");
        publisher.publish(publish("q2", ExactlyOnce, b"1"));
        publisher.publish(publish("q1", AtLeastOnce, b"2"));
        publisher.publish(publish("q2", ExactlyOnce, b"3"));
        publisher.publish(publish("q1", AtLeastOnce, b"4"));
        publisher.publish(publish("q0", AtMostOnce, b"5"));
        let first = subscriber.expect_publish("q2", ExactlyOnce, b"1").expect("an id").get();
        let second = subscriber.expect_publish("q1", AtLeastOnce, b"2").expect("an id").get();
        subscriber.expect_publish("q0", AtMostOnce, b"5");
        subscriber.expect_nothing_before_ping();
        subscriber.send_ack(PacketKind::PubRec, first);
        subscriber.expect_ack(PacketKind::PubRel, first);
        subscriber.expect_nothing_before_ping();
        subscriber.send_ack(PacketKind::PubAck, second);
        let third = subscriber.expect_publish("q2", ExactlyOnce, b"3").expect("an id").get();
        // [MQTT-2.2.1-3]: not one that is in use.
        assert_ne!(third, first);
        subscriber.expect_nothing_before_ping();
        subscriber.send_ack(PacketKind::PubComp, first);
        subscriber.take_publish("q1", AtLeastOnce, b"4");
        subscriber.expect_nothing_before_ping();
    });
}

/// Who has more under way than we allow, is told 0x93. What is sent again takes no slot, and a PUBREL
/// frees one.
///
/// v5: 3.3.4-7, 4.9.0-2
/// family: 48
#[test]
fn receive_maximum_of_the_broker() {
    for combination in combinations() {
        let broker = Broker::build(combination).arg("--receive-maximum=2").start();
        let mut wire = online(&broker, V5, "publisher");
        for id in ["0001", "0002"] {
            wire.send_bytes(&packet(0x34, &format!("'a' {id} {{}}")));
            wire.expect_ack(PacketKind::PubRec, id.parse().expect("a number"));
        }
        wire.send_bytes(&packet(0x3c, "'a' 0002 {}"));
        wire.expect_ack(PacketKind::PubRec, 2);
        wire.send_ack(PacketKind::PubRel, 1);
        wire.expect_ack(PacketKind::PubComp, 1);
        wire.send_bytes(&packet(0x34, "'a' 0003 {}"));
        wire.expect_ack(PacketKind::PubRec, 3);
        wire.send_bytes(&packet(0x34, "'a' 0004 {}"));
        wire.expect_disconnect(ReasonCode::RECEIVE_MAXIMUM_EXCEEDED);
        broker.stop();
    }
}

/// An alias stands for its topic on one connection, until it stands for another; nobody else ever sees
/// it.
///
/// v5: 3.3.2-7, 3.3.2-12
/// family: 50
#[test]
fn topic_alias_of_the_publisher() {
    on_all(|broker| {
        let mut subscriber = broker.connect();
        let properties =
            ConnectProperties { topic_alias_maximum: Some(10), ..ConnectProperties::default() };
        subscriber.handshake(Connect { properties, ..connect(V5, "subscriber") });
        subscriber.subscribe("#", AtMostOnce);
        let session =
            ConnectProperties { session_expiry_interval: Some(60), ..ConnectProperties::default() };
        let session = Connect { clean_start: false, properties: session, ..connect(V5, "alias") };
        let mut wire = broker.connect();
        wire.handshake(session);
        for (sent, topic) in [
            ("'one' {23 0001} 31", "one"),
            ("'' {23 0001} 32", "one"),
            ("'two' {23 0020} 33", "two"),
            ("'' {23 0001} 34", "one"),
            ("'other' {23 0001} 35", "other"),
            ("'' {23 0001} 36", "other"),
            ("'' {23 0020} 37", "two"),
        ] {
            wire.send_bytes(&packet(0x30, sent));
            let payload = sent.as_bytes()[sent.len() - 1..].to_vec();
            match subscriber.recv() {
                Packet::Publish(got) => {
                    assert_eq!((got.topic, got.payload), (topic, &payload[..]));
                    assert_eq!(got.properties.topic_alias, None);
                }
                other => panic!("{other:?}"),
            }
        }
        // It ends with the connection, not with the session.
        let mut again = broker.connect();
        assert!(again.handshake(session));
        again.send_bytes(&packet(0x30, "'' {23 0001}"));
        again.expect_disconnect(ReasonCode::PROTOCOL_ERROR);
    });
}

/// As the publisher gave them, in order; dropped for who speaks an older version.
///
/// v5: 3.3.2-4, 3.3.2-15, 3.3.2-16, 3.3.2-17, 3.3.2-18, 3.3.2-20
/// family: 57
#[test]
fn properties_are_passed_on() {
    on_all(|broker| {
        let mut new = online(broker, V5, "new");
        let mut old = online(broker, V311, "old");
        for wire in [&mut new, &mut old] {
            wire.subscribe("a", AtLeastOnce);
        }
        let users = [("k", "1"), ("", ""), ("k", "0"), ("k", "1"), ("ä", "ö")];
        let properties = PublishProperties {
            payload_format: Some(true),
            message_expiry_interval: Some(1000),
            response_topic: Some("answer/here"),
            correlation_data: Some(b"\0\x01\xff"),
            content_type: Some("text/plain"),
            user_properties: UserProperties::new(&users),
            ..PublishProperties::default()
        };
        let mut publisher = online(broker, V5, "publisher");
        publisher.publish(Publish { properties, ..publish("a", AtLeastOnce, b"payload") });
        match new.recv() {
            Packet::Publish(got) => {
                let seconds = got.properties.message_expiry_interval.expect("the time left");
                assert!((900..=1000).contains(&seconds), "{seconds}");
                let got =
                    PublishProperties { message_expiry_interval: Some(1000), ..got.properties };
                assert_eq!(got, properties);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(old.take_publish("a", AtLeastOnce, b"payload"), (false, false));
    });
}

/// A byte order mark is a character like any other; nothing is normalised.
///
/// v5: 1.5.4-3, 4.7.3-4
/// v3.1.1: 1.5.3-3, 4.7.3-4
/// family: 6
#[test]
fn topics_are_compared_byte_by_byte() {
    on_all(|broker| {
        for version in [V31, V311, V5] {
            let mut wire = online(broker, version, "bytes");
            wire.subscribe("\u{feff}a", AtMostOnce);
            wire.subscribe("e\u{301}", AtMostOnce);
            for topic in ["a", "\u{e9}", "\u{feff}a", "e\u{301}"] {
                wire.publish(publish(topic, AtMostOnce, b""));
            }
            wire.expect_publish("\u{feff}a", AtMostOnce, b"");
            wire.expect_publish("e\u{301}", AtMostOnce, b"");
            wire.expect_nothing_before_ping();
        }
    });
}

/// From nothing to 1 MiB, and around every size at which something is done differently.
#[test]
fn payloads_of_every_size() {
    let sizes = [0, 1, 117, 4063, 4064, 4095, 4096, 4097, 16_383, 65_536, 300_000, 1 << 20];
    on_all(|broker| {
        let mut subscribers: Vec<_> =
            (0..3).map(|number| online(broker, V5, &format!("subscriber-{number}"))).collect();
        for subscriber in &mut subscribers {
            subscriber.subscribe("sizes", AtLeastOnce);
        }
        let mut publisher = online(broker, V311, "publisher");
        for (size, fill) in sizes.into_iter().zip(1_u8..) {
            let payload = vec![fill; size];
            publisher.publish(publish("sizes", AtLeastOnce, &payload));
            for subscriber in &mut subscribers {
                subscriber.take_publish("sizes", AtLeastOnce, &payload);
            }
        }
    });
}

/// Per publisher, topic and QoS, in the order of sending; the acknowledgements in the order of the
/// messages.
///
/// v5: 4.6.0-5, 4.6.0-6
/// v3.1.1: 4.6.0-5, 4.6.0-6
/// v3.1: 4.3
/// family: 55
#[test]
fn order() {
    const COUNT: u16 = 600;
    on_all(|broker| {
        let mut subscribers: Vec<_> =
            (0..3).map(|number| online(broker, V5, &format!("subscriber-{number}"))).collect();
        for subscriber in &mut subscribers {
            subscriber.subscribe("order/+", AtLeastOnce);
        }
        let mut publisher = online(broker, V311, "publisher");
        let mut all = Vec::new();
        for number in 1..=COUNT {
            let payload = number.to_be_bytes();
            let qos = if number % 2 == 0 { AtLeastOnce } else { AtMostOnce };
            let topic = if qos == AtLeastOnce { "order/1" } else { "order/0" };
            let publish = publish(topic, qos, &payload);
            match qos {
                AtMostOnce => Packet::Publish(publish).encode(V311, &mut all),
                _ => with_id(publish, number).encode(V311, &mut all),
            }
        }
        publisher.send_bytes(&all);
        for number in (2..=COUNT).step_by(2) {
            publisher.expect_ack(PacketKind::PubAck, number);
        }
        for subscriber in &mut subscribers {
            let mut last = [0, 0];
            for _ in 0..COUNT {
                let Packet::Publish(got) = subscriber.recv() else { panic!("a PUBLISH") };
                let number = u16::from_be_bytes(got.payload.try_into().expect("two bytes"));
                let last = &mut last[got.qos as usize];
                assert!(number > *last, "{number} behind {last}");
                *last = number;
                if let Some(id) = got.packet_id {
                    subscriber.send_ack(PacketKind::PubAck, id.get());
                }
            }
            assert_eq!(last, [COUNT - 1, COUNT]);
        }
    });
}

/// Expired, a message is not sent; else with the time that is left. Its slot in the queue is nobody's
/// loss.
///
/// v5: 3.3.2-5, 3.3.2-6
/// family: 46
#[test]
fn message_expiry() {
    on_all_at_once(
        |builder| builder,
        |broker, _| {
            let session = ConnectProperties {
                session_expiry_interval: Some(60),
                ..ConnectProperties::default()
            };
            let session =
                Connect { clean_start: false, properties: session, ..connect(V5, "sleeper") };
            let mut sleeper = broker.connect();
            sleeper.handshake(session);
            sleeper.subscribe("#", AtLeastOnce);
            sleeper.send_hex("e0 00");
            sleeper.expect_closed();
            let mut publisher = online(broker, V5, "publisher");
            for (topic, seconds) in [("short", Some(1)), ("long", Some(100)), ("for/ever", None)] {
                let properties = PublishProperties {
                    message_expiry_interval: seconds,
                    ..PublishProperties::default()
                };
                let retain = true;
                publisher.publish(Publish {
                    retain,
                    properties,
                    ..publish(topic, AtLeastOnce, b"x")
                });
            }
            std::thread::sleep(Duration::from_millis(2100));
            let mut sleeper = broker.connect();
            assert!(sleeper.handshake(session));
            // From the queue, and as retained messages.
            for round in 0..2 {
                if round == 1 {
                    let subscribe = packet(0x82, "0001 {} '#' 01");
                    sleeper.send_bytes(&subscribe);
                    sleeper.expect_among_others(&packet(0x90, "0001 {} 01"));
                }
                let mut topics = Vec::new();
                for _ in 0..2 {
                    let Packet::Publish(got) = sleeper.recv() else { panic!("a PUBLISH") };
                    let left = got.properties.message_expiry_interval;
                    match got.topic {
                        "long" => {
                            assert!(left.is_some_and(|left| (1..=98).contains(&left)), "{left:?}");
                        }
                        _ => assert_eq!(left, None),
                    }
                    topics.push(got.topic.to_owned());
                    let id = got.packet_id.expect("an id").get();
                    sleeper.send_ack(PacketKind::PubAck, id);
                }
                topics.sort();
                assert_eq!(topics, ["for/ever", "long"]);
                sleeper.expect_nothing_before_ping();
            }
            assert!(broker.count("broker", "dropped_expired") >= 1);
        },
    );
}

/// A topic under `$share/` matches no subscription, ever: 0x90 says so where it can be said, and nobody
/// gets it. Many levels are no reason.
///
/// v5: 3.4.2-1, 3.5.2-1
/// family: 52
#[test]
fn topics_that_nobody_can_subscribe_to() {
    let deep = "/".repeat(65_535);
    on_all(|broker| {
        let mut wire = online(broker, V5, "subscriber");
        wire.subscribe("#", AtMostOnce);
        wire.subscribe("$share/g/#", AtMostOnce);
        let mut new = online(broker, V5, "new");
        let mut old = online(broker, V311, "old");
        for (qos, ack) in [(AtLeastOnce, PacketKind::PubAck), (ExactlyOnce, PacketKind::PubRec)] {
            new.send(&Packet::Publish(publish("$share/g/a", qos, b"")));
            assert_eq!(new.expect_ack(ack, 1), ReasonCode::TOPIC_NAME_INVALID);
        }
        for publisher in [&mut new, &mut old] {
            publisher.publish(publish("$share/g/a", AtMostOnce, b""));
            publisher.publish(publish(&deep, AtMostOnce, b""));
            for _ in 0..2 {
                wire.expect_publish(&deep, AtMostOnce, b"");
            }
        }
        old.publish(publish("$share/g/a", ExactlyOnce, b""));
        wire.expect_nothing_before_ping();
    });
}

/// Identifiers run around: 65,535 messages and then some, one at a time and several.
///
/// v3.1.1: 2.3.1-4
/// family: 44
#[test]
fn packet_identifiers_wrap_around() {
    // One combination of each kind is enough for this much traffic.
    let Some(combination) = combinations().pop() else { return };
    let broker = Broker::start(combination);
    let mut subscriber = online(&broker, V311, "subscriber");
    subscriber.subscribe("a", AtLeastOnce);
    let mut publisher = online(&broker, V311, "publisher");
    // One stays unacknowledged all the time; its identifier is passed over.
    publisher.publish(publish("a", AtLeastOnce, b"kept"));
    let kept = subscriber.expect_publish("a", AtLeastOnce, b"kept").expect("an id");
    let mut sent = 0_u32;
    let burst = 1000_u16;
    while sent < 66_000 {
        let mut all = Vec::new();
        for id in 1..=burst {
            with_id(publish("a", AtLeastOnce, b"x"), id).encode(V311, &mut all);
        }
        publisher.send_bytes(&all);
        let mut acks = Vec::new();
        for _ in 0..burst {
            let id = subscriber.expect_publish("a", AtLeastOnce, b"x").expect("an id");
            assert_ne!(id, kept);
            let [high, low] = id.get().to_be_bytes();
            acks.extend([0x40, 2, high, low]);
        }
        subscriber.send_bytes(&acks);
        for id in 1..=burst {
            publisher.expect_ack(PacketKind::PubAck, id);
        }
        sent += u32::from(burst);
    }
    broker.stop();
}
