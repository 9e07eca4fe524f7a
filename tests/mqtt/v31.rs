//! MQTT 3.1, in what it differs from 3.1.1: by the bytes, because the codec of the tests knows no
//! packets that only 3.1 allows.

use noctule::codec::mqtt::{PacketKind, QoS, Version};

use super::notation::packet;
use super::support::packets::{connect, publish};
use super::support::{Broker, Wire, combinations, on_all};

use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};
use Version::{V5, V31, V311};

fn online(broker: &Broker, version: Version, id: &str) -> Wire {
    let mut wire = broker.connect();
    wire.handshake(connect(version, id));
    wire
}

/// A connection that has sent this CONNECT; `flags` begin behind the version, the payload follows.
fn connected(broker: &Broker, rest: &str) -> Wire {
    let mut wire = broker.connect();
    wire.version = V31;
    wire.send_bytes(&packet(0x10, &format!("'MQIsdp' 03 {rest}")));
    wire.expect_hex("20 02 0000");
    wire
}

/// What 3.1 disregards in CONNECT is disregarded: the reserved bit, QoS and RETAIN of a Will that is
/// not there, and flags of its fixed header; in 3.1.1 each of them ends the connection.
///
/// v3.1: 2.6, 3.1
/// family: 14, 15, 82
#[test]
fn unused_bits_of_connect() {
    on_all(|broker| {
        for flags in ["03", "0a", "12", "22", "3b"] {
            connected(broker, &format!("{flags} 003c 'unused'")).expect_nothing_before_ping();
            let mut wire = broker.connect();
            wire.send_bytes(&packet(0x10, &format!("'MQTT' 04 {flags} 003c 'unused'")));
            wire.expect_closed();
        }
        let mut wire = broker.connect();
        wire.send_bytes(&packet(0x1f, "'MQIsdp' 03 02 003c 'unused'"));
        wire.expect_hex("20 02 0000");
    });
}

/// A user name or password that is announced and missing is valid in 3.1: the Remaining Length takes
/// precedence. A password without the flag of a user name is not.
///
/// v3.1: 3.1
/// family: 16, 82
#[test]
fn user_names_and_passwords_may_be_missing() {
    on_all(|broker| {
        for rest in
            ["c2 003c 'id'", "82 003c 'id'", "c2 003c 'id' 'user'", "c2 003c 'id' 'user' 'p'"]
        {
            connected(broker, rest).expect_nothing_before_ping();
        }
        let mut wire = broker.connect();
        wire.send_bytes(&packet(0x10, "'MQIsdp' 03 42 003c 'id' 'password'"));
        wire.expect_closed();
    });
}

/// DUP may stand on SUBSCRIBE, UNSUBSCRIBE and PUBREL, and bits without a use in the QoS byte of a
/// SUBSCRIBE and in the fixed header; in 3.1.1 each of them ends the connection.
///
/// v3.1: 2.1, 2.6, 3.6, 3.8, 3.10
/// family: 2, 82
#[test]
fn duplicates_of_other_packets_than_publish() {
    let steps = [
        ("8a", "0001 'a' 01", "90 03 0001 01"),
        ("82", "0002 'b' fd", "90 03 0002 01"),
        ("aa", "0003 'b'", "b0 02 0003"),
        ("6a", "0004", "70 02 0004"),
        ("cf", "", "d0 00"),
    ];
    let first = |hex: &str| u8::from_str_radix(hex, 16).expect("hex");
    on_all(|broker| {
        let mut wire = connected(broker, "02 003c 'dup'");
        for (kind, body, answer) in steps {
            wire.send_bytes(&packet(first(kind), body));
            wire.expect_hex(answer);
            let mut other = online(broker, V311, "other");
            other.send_bytes(&packet(first(kind), body));
            other.expect_closed();
        }
    });
}

/// SUBACK of 3.1 has no failure: what is refused elsewhere with 0x80 is granted QoS 0 in words, and
/// nothing comes of it.
///
/// v3.1: 3.9
/// family: 82
#[test]
fn a_subscription_that_fails_is_not_told() {
    for combination in combinations() {
        let broker = Broker::build(combination).arg("--subscriptions-per-session-max=1").start();
        let mut publisher = online(&broker, V5, "publisher");
        for (version, failed) in [(V31, "00"), (V311, "80")] {
            let mut wire = online(&broker, version, "subscriber");
            wire.send_bytes(&packet(0x82, "0001 'a' 01 'b' 02"));
            wire.expect_hex(&format!("90 04 0001 01 {failed}"));
            publisher.publish(publish("b", AtLeastOnce, b""));
            publisher.publish(publish("a", AtLeastOnce, b""));
            wire.take_publish("a", AtLeastOnce, b"");
            wire.expect_nothing_before_ping();
        }
        broker.stop();
    }
}

/// A QoS 1 message that comes again is published again; a QoS 2 one is not, until its PUBREL.
///
/// v3.1: 4.1
#[test]
fn messages_that_come_again() {
    on_all(|broker| {
        let mut subscriber = online(broker, V311, "subscriber");
        subscriber.subscribe("a", ExactlyOnce);
        let mut wire = connected(broker, "02 003c 'again'");
        for first in [0x32, 0x3a] {
            wire.send_bytes(&packet(first, "'a' 0001 31"));
            wire.expect_hex("40 02 0001");
            subscriber.take_publish("a", AtLeastOnce, b"1");
        }
        for first in [0x34, 0x3c, 0x3c] {
            wire.send_bytes(&packet(first, "'a' 0001 32"));
            wire.expect_hex("50 02 0001");
        }
        wire.send_bytes(&packet(0x6a, "0001"));
        wire.expect_hex("70 02 0001");
        wire.send_bytes(&packet(0x30, "'a' 33"));
        subscriber.take_publish("a", ExactlyOnce, b"2");
        subscriber.take_publish("a", AtMostOnce, b"3");
    });
}

/// DUP without a QoS means nothing, and is no error.
///
/// v3.1: 2.1, 3.3
/// family: 10, 82
#[test]
fn dup_on_qos_0_is_disregarded() {
    on_all(|broker| {
        let mut subscriber = online(broker, V311, "subscriber");
        subscriber.subscribe("a", AtMostOnce);
        let mut wire = connected(broker, "02 003c 'dup'");
        wire.send_bytes(&packet(0x38, "'a' 31"));
        subscriber.expect_bytes(&packet(0x30, "'a' 31"));
    });
}

/// At the next connection what is in flight comes again, with its identifier and DUP: PUBLISH, and
/// PUBREL, which has DUP in 3.1 only.
///
/// v3.1: 3.6, 4.2
/// family: 82
#[test]
fn what_is_in_flight_comes_again() {
    on_all(|broker| {
        for (version, pubrel) in [(V31, 0x6a), (V311, 0x62)] {
            let keep = noctule::codec::mqtt::Connect {
                clean_start: false,
                ..connect(version, "in flight")
            };
            let mut wire = broker.connect();
            wire.handshake(keep);
            wire.subscribe("a", ExactlyOnce);
            let mut publisher = online(broker, V5, "publisher");
            publisher.publish(publish("a", AtLeastOnce, b"1"));
            publisher.publish(publish("a", ExactlyOnce, b"2"));
            publisher.publish(publish("a", ExactlyOnce, b"3"));
            let ids: Vec<_> = [(AtLeastOnce, b"1"), (ExactlyOnce, b"2"), (ExactlyOnce, b"3")]
                .map(|(qos, payload)| wire.expect_publish("a", qos, payload).expect("an id").get())
                .into();
            wire.send_ack(PacketKind::PubRec, ids[2]);
            // The first one is not sent again, and has no DUP.
            let [high, low] = ids[2].to_be_bytes();
            wire.expect_bytes(&[0x62, 2, high, low]);
            wire.reset();
            let mut wire = broker.connect();
            assert_eq!(wire.handshake(keep), version == V311);
            wire.expect_bytes(&[pubrel, 2, high, low]);
            wire.send_ack(PacketKind::PubComp, ids[2]);
            for (id, first, payload) in [(ids[0], 0x3a, "31"), (ids[1], 0x3c, "32")] {
                wire.expect_bytes(&packet(first, &format!("'a' {id:04x} {payload}")));
            }
            wire.expect_nothing_before_ping();
            let mut wire = broker.connect();
            wire.handshake(connect(version, "in flight"));
        }
    });
}

/// The sample of its appendix: a leading separator is a level.
///
/// v3.1: A
#[test]
fn wildcards() {
    on_all(|broker| {
        for (filter, topic, matches) in [
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("finance/#", "finance", true),
            ("finance/#", "finance/stock/ibm", true),
            ("finance/+", "finance", false),
            ("finance/+", "finance/stock/ibm", false),
            ("finance/+/ibm", "finance/stock/ibm", true),
            ("Finance", "finance", false),
            ("/finance", "finance", false),
        ] {
            let mut wire = online(broker, V31, "wildcards");
            wire.subscribe(filter, AtMostOnce);
            wire.subscribe("end", AtMostOnce);
            wire.publish(publish(topic, AtMostOnce, b""));
            wire.publish(publish("end", AtMostOnce, b""));
            if matches {
                wire.expect_publish(topic, AtMostOnce, b"");
            }
            wire.expect_publish("end", AtMostOnce, b"");
        }
    });
}
