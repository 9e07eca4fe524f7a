//! Wills: when they are published, when not, and what they carry.

use std::time::Duration;

use noctule::codec::mqtt::{
    Connect, ConnectProperties, Packet, PublishProperties, QoS, ReasonCode, UserProperties,
    Version, Will,
};

use super::notation::packet;
use super::support::packets::{connect, publish};
use super::support::{Broker, Wire, on_all, on_all_at_once};

use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};
use Version::{V5, V31, V311};

fn will<'a>(topic: &'a str, payload: &'a [u8]) -> Will<'a> {
    let properties = PublishProperties::default();
    Will { topic, payload, qos: AtMostOnce, retain: false, delay_interval: 0, properties }
}

/// Somebody who sees all Wills.
fn watching(broker: &Broker) -> Wire {
    let mut wire = broker.connect();
    wire.handshake(connect(V5, "watching"));
    wire.subscribe("will/#", ExactlyOnce);
    wire.subscribe("end", AtMostOnce);
    wire
}

/// Whatever the client with this id did before has been done: its own next message says so.
fn expect_end(broker: &Broker, id: &str, watching: &mut Wire) {
    let mut wire = broker.connect();
    wire.handshake(connect(V311, id));
    wire.publish(publish("end", AtMostOnce, id.as_bytes()));
    watching.expect_publish("end", AtMostOnce, id.as_bytes());
    wire.send_hex("e0 00");
    wire.expect_closed();
}

/// A Will is published by whatever the connection ends but a normal DISCONNECT.
///
/// v5: 3.1.2-7, 3.1.2-8, 3.1.2-9
/// v3.1.1: 3.1.2-8, 3.1.2-9
/// v3.1: 3.1
/// family: 32
#[test]
fn wills_are_published_when_the_connection_is_lost() {
    on_all(|broker| {
        let mut watching = watching(broker);
        for version in [V31, V311, V5] {
            let properties = if version == V5 { "{}" } else { "" };
            let ends: [(&str, &dyn Fn(Wire)); 5] = [
                ("reset", &|wire| wire.reset()),
                ("dropped", &drop),
                ("half closed", &|mut wire| {
                    wire.finish();
                    wire.expect_closed();
                }),
                ("malformed", &|mut wire| {
                    wire.send_bytes(&packet(0x36, &format!("'a' 0001 {properties}")));
                    wire.expect_disconnect(ReasonCode::MALFORMED_PACKET);
                }),
                ("second CONNECT", &|mut wire| {
                    wire.send(&Packet::Connect(connect(version, "again")));
                    wire.expect_disconnect(ReasonCode::PROTOCOL_ERROR);
                }),
            ];
            for (how, end) in ends {
                let id = format!("{how} {version:?}");
                let mut wire = broker.connect();
                let last = will("will/lost", id.as_bytes());
                wire.handshake(Connect { will: Some(last), ..connect(version, &id) });
                end(wire);
                watching.expect_publish("will/lost", AtMostOnce, id.as_bytes());
                expect_end(broker, &id, &mut watching);
            }
        }
    });
}

/// DISCONNECT deletes the Will, except one that asks for it, or that tells of a failure.
///
/// v5: 3.1.2-8, 3.1.2-10, 3.14.4-3
/// v3.1.1: 3.1.2-8, 3.1.2-10, 3.14.4-3
/// v3.1: 3.14
/// family: 32
#[test]
fn disconnect_and_the_will() {
    on_all(|broker| {
        let mut watching = watching(broker);
        for (version, disconnect, published) in [
            (V31, "e0 00", false),
            (V311, "e0 00", false),
            (V5, "e0 00", false),
            (V5, "e0 01 00", false),
            (V5, "e0 02 00 00", false),
            (V5, "e0 01 04", true),
            (V5, "e0 02 04 00", true),
            (V5, "e0 01 80", true),
            (V5, "e0 01 82", true),
        ] {
            let id = format!("{version:?} {disconnect}");
            let mut wire = broker.connect();
            let last = will("will/last", id.as_bytes());
            wire.handshake(Connect { will: Some(last), ..connect(version, &id) });
            wire.send_hex(disconnect);
            wire.expect_closed();
            if published {
                watching.expect_publish("will/last", AtMostOnce, id.as_bytes());
            }
            expect_end(broker, &id, &mut watching);
        }
        assert_eq!(broker.count("broker", "wills_published"), 4);
    });
}

/// A Will is published as it was given, without its delay; at its QoS, and retained when it asks
/// for that.
///
/// v5: 3.1.2-9, 3.1.2-12, 3.1.2-14, 3.1.2-15, 3.1.3-10, 3.3.2-4, 3.3.2-15, 3.3.2-16, 3.3.2-20
/// family: 33, 46
#[test]
fn what_a_will_carries() {
    on_all(|broker| {
        let mut watching = watching(broker);
        let users = [("k", "1"), ("k", "2")];
        let properties = PublishProperties {
            payload_format: Some(true),
            message_expiry_interval: Some(1000),
            response_topic: Some("answer"),
            correlation_data: Some(b"\0"),
            content_type: Some("text"),
            user_properties: UserProperties::new(&users),
            ..PublishProperties::default()
        };
        for qos in [AtMostOnce, AtLeastOnce, ExactlyOnce] {
            for retain in [false, true] {
                let id = format!("{qos:?} {retain}");
                let topic = format!("will/{id}");
                let mut wire = broker.connect();
                let last = Will { qos, retain, properties, ..will(&topic, b"payload") };
                wire.handshake(Connect { will: Some(last), ..connect(V5, &id) });
                wire.reset();
                {
                    let Packet::Publish(got) = watching.recv() else { panic!("a PUBLISH") };
                    assert_eq!((got.topic, got.qos, got.retain), (&*topic, qos, false));
                    let left = got.properties.message_expiry_interval;
                    assert!(left.is_some_and(|left| left > 900), "{left:?}");
                    let got =
                        PublishProperties { message_expiry_interval: Some(1000), ..got.properties };
                    assert_eq!(got, properties);
                }
                let mut late = broker.connect();
                late.handshake(connect(V311, "late"));
                late.subscribe(&topic, ExactlyOnce);
                if retain {
                    assert_eq!(late.take_publish(&topic, qos, b"payload"), (false, true));
                }
                late.expect_nothing_before_ping();
            }
        }
    });
}

/// A Will comes after its delay, or at the end of the session, whichever is first; never when the
/// client is back before.
///
/// v5: 3.1.2-8, 3.1.3-9
/// family: 31
#[test]
fn will_delay() {
    on_all_at_once(
        |builder| builder,
        |broker, _| {
            let mut watching = watching(broker);
            let mut owners = Vec::new();
            for (id, delay_interval, expiry) in [
                ("delayed", 1, 60),
                ("at the end", 100, 1),
                ("at once", 100, 0),
                ("back in time", 1, 60),
                ("later", 100, 60),
            ] {
                let mut wire = broker.connect();
                let properties = ConnectProperties {
                    session_expiry_interval: Some(expiry),
                    ..ConnectProperties::default()
                };
                let last = Will { delay_interval, ..will("will/delay", id.as_bytes()) };
                let owner = Connect { will: Some(last), properties, ..connect(V5, id) };
                wire.handshake(Connect { clean_start: false, ..owner });
                owners.push(wire);
            }
            for wire in owners {
                wire.reset();
            }
            let mut back = broker.connect();
            let properties = ConnectProperties {
                session_expiry_interval: Some(60),
                ..ConnectProperties::default()
            };
            let again = Connect { clean_start: false, properties, ..connect(V5, "back in time") };
            // Its reset may be noticed after this; then it is a takeover, with the same outcome.
            assert!(back.handshake(again));
            watching.expect_publish("will/delay", AtMostOnce, b"at once");
            let mut others = [watching.frame(), watching.frame()];
            others.sort();
            assert!(others[0].ends_with(b"delayed"), "{others:?}");
            assert!(others[1].ends_with(b"at the end"), "{others:?}");
            std::thread::sleep(Duration::from_millis(200));
            back.expect_nothing_before_ping();
            expect_end(broker, "somebody", &mut watching);
            assert_eq!(broker.count("broker", "wills_published"), 3);
        },
    );
}

/// A Will that waits is the old connection's: a clean start ends the session, and with it the
/// waiting.
///
/// v5: 3.1.2-8, 3.1.2-4
/// family: 29, 31
#[test]
fn a_clean_start_publishes_the_will_that_waits() {
    on_all(|broker| {
        let mut watching = watching(broker);
        let mut wire = broker.connect();
        let properties =
            ConnectProperties { session_expiry_interval: Some(60), ..ConnectProperties::default() };
        let last = Will { delay_interval: 100, ..will("will/clean", b"old") };
        wire.handshake(Connect { will: Some(last), properties, ..connect(V5, "owner") });
        wire.send_hex("e0 01 04");
        wire.expect_closed();
        let mut new = broker.connect();
        new.handshake(connect(V5, "owner"));
        watching.expect_publish("will/clean", AtMostOnce, b"old");
        expect_end(broker, "somebody", &mut watching);
    });
}

/// Hundreds of connections lost at once: every Will is published once.
///
/// v3.1.1: 3.1.2-8, 3.1.2-10
/// family: 34
#[test]
fn many_wills_at_once() {
    const COUNT: usize = 300;
    on_all(|broker| {
        let mut watching = watching(broker);
        let owners: Vec<_> = (0..COUNT)
            .map(|number| {
                let id = format!("owner-{number:03}");
                let mut wire = broker.connect();
                let last = Will { qos: AtLeastOnce, ..will("will/many", id.as_bytes()) };
                wire.handshake(Connect { will: Some(last), ..connect(V311, &id) });
                wire
            })
            .collect();
        drop(owners);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..COUNT {
            let Packet::Publish(got) = watching.recv() else { panic!("a PUBLISH") };
            assert!(seen.insert(got.payload.to_vec()), "{got:?} twice");
            let id = got.packet_id.expect("an id").get();
            watching.send_ack(noctule::codec::mqtt::PacketKind::PubAck, id);
        }
        watching.expect_nothing_before_ping();
        assert_eq!(broker.count("broker", "wills_published"), COUNT as u64);
    });
}
