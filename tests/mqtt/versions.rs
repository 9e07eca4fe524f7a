//! Clients of different versions with each other: what one can say and the other cannot know.

use noctule::codec::mqtt::{
    Connect, ConnectProperties, Publish, PublishProperties, QoS, UserProperties, Version, Will,
};

use super::notation::packet;
use super::support::packets::{connect, publish};
use super::support::{Broker, Wire, on_all};

use QoS::{AtLeastOnce, AtMostOnce};
use Version::{V5, V31, V311};

const ALL: [Version; 3] = [V31, V311, V5];

fn online(broker: &Broker, version: Version, id: &str) -> Wire {
    let mut wire = broker.connect();
    wire.handshake(connect(version, id));
    wire
}

/// A QoS 0 PUBLISH without properties, as this version reads it.
fn plain(version: Version, first: u8, topic: &str) -> Vec<u8> {
    let properties = if version == V5 { "{}" } else { "" };
    packet(first, &format!("'{topic}' {properties} 78"))
}

/// Retained messages and Wills, from every version to every version, by the bytes: properties for
/// those who know them, nothing of them for the others, and none that the sender could not give.
///
/// v5: 2.2.2-1, 3.3.2-17
/// v3.1.1: 2.3.1-5, 3.3.1-8
/// v3.1: 3.3
/// family: 57
#[test]
fn retained_messages_and_wills() {
    let properties = PublishProperties {
        content_type: Some("text"),
        user_properties: UserProperties::new(&[("k", "1"), ("k", "1")]),
        ..PublishProperties::default()
    };
    let with_properties = "{03 'text' 26 'k' '1' 26 'k' '1'}";
    on_all(|broker| {
        for from in ALL {
            let given = if from == V5 { properties } else { PublishProperties::default() };
            let expected = |to: Version, first: u8, topic: &str| match (from, to) {
                (V5, V5) => packet(first, &format!("'{topic}' {with_properties} 78")),
                _ => plain(to, first, topic),
            };
            let mut publisher = online(broker, from, "publisher");
            publisher.publish(Publish {
                retain: true,
                properties: given,
                ..publish("kept", AtLeastOnce, b"x")
            });
            for to in ALL {
                let mut wire = online(broker, to, "subscriber");
                wire.subscribe("kept", AtMostOnce);
                wire.expect_bytes(&expected(to, 0x31, "kept"));
                wire.subscribe("will", AtMostOnce);
                let will = Will {
                    topic: "will",
                    payload: b"x",
                    qos: AtMostOnce,
                    retain: false,
                    delay_interval: 0,
                    properties: given,
                };
                let mut owner = broker.connect();
                owner.handshake(Connect { will: Some(will), ..connect(from, "owner") });
                owner.reset();
                wire.expect_bytes(&expected(to, 0x30, "will"));
            }
        }
    });
}

/// What a client does not know it is not sent: subscription identifiers, aliases, reason codes.
/// Errors of 3.x close, without a packet.
///
/// v5: 3.4.2-1
/// family: 54, 57, 79
#[test]
fn nothing_of_5_for_an_older_client() {
    on_all(|broker| {
        let mut publisher = online(broker, V5, "publisher");
        for version in [V31, V311] {
            let mut wire = online(broker, version, "older");
            wire.send_bytes(&packet(0x82, "0001 'a' 01 'b' 01"));
            wire.expect_hex("90 04 0001 01 01");
            for _ in 0..3 {
                publisher.publish(publish("a", AtMostOnce, b"x"));
                wire.expect_bytes(&plain(version, 0x30, "a"));
            }
            // Nobody wants it, nobody can: no reason is given.
            wire.send_bytes(&packet(0x32, "'nobody' 0002 78"));
            wire.expect_hex("40 02 0002");
            wire.send_bytes(&packet(0x32, "'$share/g/a' 0003 78"));
            wire.expect_hex("40 02 0003");
            wire.send_bytes(&packet(0xa2, "0004 'never subscribed' 'b'"));
            wire.expect_hex("b0 02 0004");
            wire.send_bytes(&packet(0x30, "'#' 78"));
            wire.expect_closed();
        }
    });
}

/// Receive Maximum is the connection's: the next one begins with a whole window, of the size that it
/// asks for, and what is sent again counts.
///
/// v5: 3.3.4-9, 4.9.0-1, 4.9.0-2
/// family: 47
#[test]
fn receive_maximum_of_the_next_connection() {
    on_all(|broker| {
        let with = |receive_maximum| {
            let properties = ConnectProperties {
                receive_maximum,
                session_expiry_interval: Some(60),
                ..ConnectProperties::default()
            };
            Connect { clean_start: false, properties, ..connect(V5, "subscriber") }
        };
        let mut wire = broker.connect();
        wire.handshake(with(Some(2)));
        wire.subscribe("a", AtLeastOnce);
        let mut publisher = online(broker, V311, "publisher");
        for number in 0..6_u8 {
            publisher.publish(publish("a", AtLeastOnce, &[number]));
        }
        for (receive_maximum, count) in [(Some(2), 2), (Some(1), 1), (Some(4), 4), (None, 6)] {
            if receive_maximum != Some(2) {
                wire = broker.connect();
                assert!(wire.handshake(with(receive_maximum)));
            }
            for number in 0..count {
                wire.expect_publish("a", AtLeastOnce, &[number]);
            }
            wire.expect_nothing_before_ping();
        }
    });
}
