//! Wills: when they are published, when not, and what they carry.

use std::time::Duration;

use noctule::codec::mqtt::{
    Connect, ConnectProperties, Packet, PacketKind, PublishProperties, QoS, ReasonCode,
    UserProperties, Version, Will,
};
use rustix::process::Signal;

use super::notation::packet;
use super::support::packets::{connect, lasting, publish};
use super::support::{Broker, Next, Wire, combinations, on_all, on_all_at_once};

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
            watching.send_ack(PacketKind::PubAck, id);
        }
        watching.expect_nothing_before_ping();
        assert_eq!(broker.count("broker", "wills_published"), COUNT as u64);
    });
}

fn expiring(secs: u32) -> ConnectProperties<'static> {
    ConnectProperties { session_expiry_interval: Some(secs), ..ConnectProperties::default() }
}

/// Silence for one and a half times the keep alive is a lost connection: the Will comes, and where
/// it has a delay, after that.
///
/// v5: 3.1.2-8, 3.1.2-22
/// v3.1.1: 3.1.2-8, 3.1.2-24
/// v3.1: 3.1
/// family: 24, 31, 32
#[test]
fn keep_alive_and_the_will() {
    on_all_at_once(
        |builder| builder,
        |broker, _| {
            let mut watching = watching(broker);
            let mut silent = Vec::new();
            for (version, delay_interval) in [(V5, 1), (V31, 0), (V311, 0), (V5, 0)] {
                let id = format!("{version:?} {delay_interval}");
                let mut wire = broker.connect();
                let last = Will { delay_interval, ..will("will/silent", id.as_bytes()) };
                let properties = if version == V5 { expiring(60) } else { Default::default() };
                let owner = Connect { will: Some(last), properties, ..connect(version, &id) };
                wire.handshake(Connect { keep_alive: 1, ..owner });
                silent.push(wire);
            }
            let mut seen: Vec<_> = (0..4)
                .map(|_| {
                    let Packet::Publish(got) = watching.recv() else { panic!("a PUBLISH") };
                    String::from_utf8(got.payload.to_vec()).expect("an id")
                })
                .collect();
            assert_eq!(seen.pop().as_deref(), Some("V5 1"));
            seen.sort();
            assert_eq!(seen, ["V31 0", "V311 0", "V5 0"]);
            for wire in &mut silent {
                wire.expect_disconnect(ReasonCode::KEEP_ALIVE_TIMEOUT);
            }
        },
    );
}

/// A DISCONNECT that asks for the Will may change when the session ends, and so when the Will
/// comes; one that does not ask deletes it, whatever it says of the session.
///
/// v5: 3.1.2-8, 3.1.2-10, 3.14.4-3, 4.1.0-2
/// family: 31, 32
#[test]
fn session_expiry_of_disconnect_and_the_will() {
    on_all_at_once(
        |builder| builder,
        |broker, _| {
            let mut watching = watching(broker);
            for (delay_interval, expiry, last, published) in [
                (100, 60, "e0 07 04 05 11 00000001", "later"),
                (1, 60, "e0 07 04 05 11 ffffffff", "later"),
                (1, u32::MAX, "e0 01 04", "later"),
                (100, 1, "e0 07 04 05 11 0000003c", "never"),
                (100, 1, "e0 01 00", "never"),
                (100, 60, "e0 07 00 05 11 00000000", "never"),
                (100, 60, "e0 07 00 05 11 00000001", "never"),
                (100, 60, "e0 07 04 05 11 00000000", "at once"),
                (0, 60, "e0 07 04 05 11 0000000a", "at once"),
            ] {
                let id = format!("{delay_interval} {expiry} {last}");
                let mut wire = broker.connect();
                let payload = format!("{published}: {id}");
                let last_will = Will { delay_interval, ..will("will/end", payload.as_bytes()) };
                let properties = expiring(expiry);
                wire.handshake(Connect { will: Some(last_will), properties, ..connect(V5, &id) });
                wire.send_hex(last);
                wire.expect_closed();
            }
            for expected in ["at once", "at once", "later", "later", "later"] {
                let Packet::Publish(got) = watching.recv() else { panic!("a PUBLISH") };
                assert!(got.payload.starts_with(expected.as_bytes()), "{got:?}");
            }
            std::thread::sleep(Duration::from_millis(500));
            watching.expect_nothing_before_ping();
            assert_eq!(broker.count("broker", "wills_published"), 5);
        },
    );
}

/// Whoever comes back before the delay is over, in whatever version, has no Will to fear: neither
/// then, nor when this connection ends, nor when the session does.
///
/// v5: 3.1.3-9, 3.1.2-10
/// v3.1.1: 3.1.2-12
/// family: 31, 34
#[test]
fn coming_back_in_time() {
    on_all_at_once(
        |builder| builder,
        |broker, _| {
            let mut watching = watching(broker);
            let mut back = Vec::new();
            for number in 0..9 {
                let version = [V31, V311, V5][number % 3];
                let id = format!("back {number}");
                let mut wire = broker.connect();
                let last = Will { delay_interval: 1, ..will("will/back", id.as_bytes()) };
                let properties = expiring(60);
                wire.handshake(Connect { will: Some(last), properties, ..connect(V5, &id) });
                wire.send_hex("e0 01 04");
                wire.expect_closed();
                let mut wire = broker.connect();
                let present =
                    wire.handshake(Connect { clean_start: false, ..connect(version, &id) });
                assert_eq!(present, version != V31);
                back.push(wire);
            }
            std::thread::sleep(Duration::from_millis(1500));
            for mut wire in back {
                wire.expect_nothing_before_ping();
                wire.reset();
            }
            broker.wait_for_count("loop", "connections", |count| count == 1);
            expect_end(broker, "somebody", &mut watching);
            assert_eq!(broker.count("broker", "wills_published"), 0);
        },
    );
}

/// A CONNECT that is refused leaves no Will, and does nothing to the connection that this client
/// has, or to its Will.
///
/// v5: 3.1.2-7, 3.1.4-2
/// v3.1.1: 3.1.2-8, 3.1.4-5
/// family: 33
#[test]
fn a_refused_connect_leaves_no_will() {
    on_all(|broker| {
        let mut watching = watching(broker);
        let mut owner = broker.connect();
        owner.handshake(Connect { will: Some(will("will/of", b"owner")), ..connect(V5, "owner") });
        for refused in [
            // No identifier, and a session that is to stay.
            packet(0x10, "'MQTT' 04 04 003c '' 'will/refused' 'x'"),
            packet(0x10, "'MQIsdp' 03 06 003c '' 'will/refused' 'x'"),
            // A method that nobody has.
            packet(0x10, "'MQTT' 05 04 003c {15 'no such'} 'owner' {} 'will/refused' 'x'"),
            // A version that nobody has.
            packet(0x10, "'MQTT' 06 06 003c {} 'owner' {} 'will/refused' 'x'"),
            // Reserved bits; a Will QoS of 3; a Will topic with a wildcard.
            packet(0x10, "'MQTT' 05 07 003c {} 'owner' {} 'will/refused' 'x'"),
            packet(0x10, "'MQTT' 04 1e 003c 'owner' 'will/refused' 'x'"),
            packet(0x10, "'MQTT' 05 06 003c {} 'owner' {} 'will/#' 'x'"),
        ] {
            let mut wire = broker.connect();
            // What follows is not done, either.
            let mut all = refused;
            all.extend(packet(0x30, "'will/behind' {} 78"));
            wire.send_bytes(&all);
            if let Next::Frame(frame) = wire.next_within(Duration::from_secs(10)) {
                assert_eq!((frame[0], frame[2]), (0x20, 0), "{frame:?}");
                assert_ne!(frame[3], 0, "{frame:?}");
                wire.expect_closed();
            }
        }
        owner.expect_nothing_before_ping();
        expect_end(broker, "somebody", &mut watching);
        owner.reset();
        watching.expect_publish("will/of", AtMostOnce, b"owner");
    });
}

/// A client that reconnects again and again: of each connection its own Will, once, in order; a
/// Will that was published is gone.
///
/// v5: 3.1.2-8, 3.1.2-10
/// v3.1.1: 3.1.2-8, 3.1.2-10, 3.1.2-12
/// family: 29, 34
#[test]
fn every_connection_has_its_own_will() {
    on_all(|broker| {
        let mut watching = watching(broker);
        for version in [V31, V311, V5] {
            let id = format!("again {version:?}");
            let owner = lasting(version, &id);
            let mut wires: Vec<Wire> = Vec::new();
            for number in 0..10_u8 {
                let mut wire = broker.connect();
                let payload = [number];
                let last = Some(will("will/again", &payload));
                // Every other one starts clean.
                let clean_start = number % 2 == 1;
                wire.handshake(Connect { will: last, clean_start, ..owner });
                if number > 0 {
                    watching.expect_publish("will/again", AtMostOnce, &[number - 1]);
                }
                wires.push(wire);
            }
            drop(wires);
            watching.expect_publish("will/again", AtMostOnce, &[9]);
            // The next one has none.
            let mut wire = broker.connect();
            wire.handshake(owner);
            wire.reset();
            let mut wire = broker.connect();
            wire.handshake(Connect { clean_start: true, ..connect(version, &id) });
            wire.publish(publish("end", AtMostOnce, b""));
            watching.expect_publish("end", AtMostOnce, b"");
        }
        assert_eq!(broker.count("broker", "wills_published"), 30);
    });
}

/// The Will comes behind all that its client has published, on whichever shard it is seen.
///
/// v5: 4.6.0-5, 3.1.2-8
/// v3.1.1: 4.6.0-6, 3.1.2-8
/// family: 55
#[test]
fn the_will_comes_last() {
    const COUNT: u8 = 100;
    on_all(|broker| {
        let mut watchers: Vec<_> = (0..4)
            .map(|number| {
                let mut wire = broker.connect();
                wire.handshake(connect(V311, &format!("watcher {number}")));
                wire.subscribe("will/order", AtMostOnce);
                wire
            })
            .collect();
        for version in [V311, V5] {
            let none = if version == V5 { "{}" } else { "" };
            let mut wire = broker.connect();
            let last = will("will/order", &[COUNT]);
            wire.handshake(Connect { will: Some(last), ..connect(version, "owner") });
            let mut all = Vec::new();
            for number in 0..COUNT {
                all.extend(packet(0x30, &format!("'will/order' {none} {number:02x}")));
            }
            wire.send_bytes(&all);
            wire.finish();
            for watcher in &mut watchers {
                for number in 0..=COUNT {
                    watcher.expect_publish("will/order", AtMostOnce, &[number]);
                }
            }
        }
    });
}

/// A Will is a message of its client: its own session gets it, too, unless No Local says otherwise.
///
/// v5: 3.8.3-3, 4.5.0-1, 3.1.2-8
/// v3.1.1: 4.5.0-1
/// family: 70
#[test]
fn a_will_to_its_own_session() {
    on_all(|broker| {
        let mut watching = watching(broker);
        for (version, subscribe, comes) in [
            (V31, "0001 'will/own' 01", true),
            (V311, "0001 'will/own' 01", true),
            (V5, "0001 {} 'will/own' 01", true),
            (V5, "0001 {} 'will/own' 05", false),
        ] {
            let id = format!("own {version:?} {comes}");
            let mut wire = broker.connect();
            let last = Will { qos: AtLeastOnce, ..will("will/own", b"mine") };
            wire.handshake(Connect { will: Some(last), ..lasting(version, &id) });
            wire.send_bytes(&packet(0x82, subscribe));
            assert_eq!(wire.frame()[0], 0x90);
            wire.finish();
            watching.take_publish("will/own", AtLeastOnce, b"mine");
            let mut wire = broker.connect();
            wire.handshake(lasting(version, &id));
            if comes {
                assert_eq!(wire.take_publish("will/own", AtLeastOnce, b"mine"), (false, false));
            }
            wire.expect_nothing_before_ping();
            wire.unsubscribe("will/own");
        }
    });
}

/// A retained Will is the retained message of its topic; an empty one clears it; one that is not
/// retained leaves it.
///
/// v5: 3.1.2-14, 3.1.2-15, 3.3.1-5, 3.3.1-6, 3.3.1-8
/// v3.1.1: 3.1.2-9, 3.1.2-14, 3.1.2-16, 3.1.2-17, 3.3.1-5, 3.3.1-10, 3.3.1-12
/// v3.1: 3.1
/// family: 33, 59
#[test]
fn retained_wills() {
    on_all(|broker| {
        for version in [V31, V311, V5] {
            for qos in [AtMostOnce, AtLeastOnce, ExactlyOnce] {
                let topic = format!("will/{version:?}/{qos:?}");
                let mut live = broker.connect();
                live.handshake(connect(V5, "live"));
                live.subscribe(&topic, ExactlyOnce);
                for (payload, retain, kept) in [
                    (&b"one"[..], true, &b"one"[..]),
                    (b"two", true, b"two"),
                    (b"passing", false, b"two"),
                    (b"", false, b"two"),
                    (b"", true, b""),
                ] {
                    let mut wire = broker.connect();
                    let last = Will { qos, retain, ..will(&topic, payload) };
                    wire.handshake(Connect { will: Some(last), ..connect(version, "owner") });
                    wire.finish();
                    assert_eq!(live.take_publish(&topic, qos, payload), (false, false));
                    let mut late = broker.connect();
                    late.handshake(connect(V311, "late"));
                    late.subscribe(&topic, ExactlyOnce);
                    if !kept.is_empty() {
                        assert_eq!(late.take_publish(&topic, qos, kept), (false, true));
                    }
                    late.expect_nothing_before_ping();
                }
            }
        }
    });
}

/// The Message Expiry Interval of a Will counts from its publication, not from CONNECT; then it
/// runs, in a queue and as a retained message.
///
/// v5: 3.3.2-5, 3.3.2-6
/// family: 46
#[test]
fn expiry_of_wills() {
    on_all_at_once(
        |builder| builder,
        |broker, _| {
            let mut watching = watching(broker);
            let mut sleeper = broker.connect();
            sleeper.handshake(lasting(V5, "sleeper"));
            sleeper.subscribe("will/#", AtLeastOnce);
            sleeper.send_hex("e0 00");
            sleeper.expect_closed();
            for (topic, secs) in [("will/brief", 1), ("will/long", 100)] {
                let mut wire = broker.connect();
                let properties = PublishProperties {
                    message_expiry_interval: Some(secs),
                    ..PublishProperties::default()
                };
                let last = Will {
                    properties,
                    qos: AtLeastOnce,
                    retain: true,
                    delay_interval: 2,
                    ..will(topic, b"x")
                };
                let owner = Connect { will: Some(last), ..connect(V5, topic) };
                wire.handshake(Connect { properties: expiring(60), ..owner });
                wire.send_hex("e0 01 04");
                wire.expect_closed();
            }
            for _ in 0..2 {
                let Packet::Publish(got) = watching.recv() else { panic!("a PUBLISH") };
                // Though two seconds have passed.
                let whole = if got.topic == "will/brief" { 1 } else { 100 };
                assert_eq!(got.properties.message_expiry_interval, Some(whole), "{got:?}");
            }
            std::thread::sleep(Duration::from_millis(1500));
            let mut sleeper = broker.connect();
            assert!(sleeper.handshake(lasting(V5, "sleeper")));
            for retained in [false, true] {
                if retained {
                    sleeper.send_bytes(&packet(0x82, "0001 {} 'will/#' 01"));
                    sleeper.expect_among_others(&packet(0x90, "0001 {} 01"));
                }
                let Packet::Publish(got) = sleeper.recv() else { panic!("a PUBLISH") };
                assert_eq!((got.topic, got.retain), ("will/long", retained));
                let left = got.properties.message_expiry_interval;
                assert!(left.is_some_and(|left| (50..100).contains(&left)), "{left:?}");
                let id = got.packet_id.expect("an id").get();
                sleeper.send_ack(PacketKind::PubAck, id);
                sleeper.expect_nothing_before_ping();
            }
        },
    );
}

/// A Will to a topic that nobody can subscribe to is dropped and counted, like a PUBLISH to it.
///
/// family: 33, 52
#[test]
fn a_will_is_checked_like_a_publish() {
    on_all(|broker| {
        let mut watching = watching(broker);
        watching.subscribe("$share/g/#", AtMostOnce);
        for version in [V311, V5] {
            let mut wire = broker.connect();
            let last = will("$share/g/a", b"x");
            wire.handshake(Connect { will: Some(last), ..connect(version, "owner") });
            wire.finish();
            wire.expect_closed();
        }
        watching.expect_nothing_before_ping();
        assert_eq!(broker.count("broker", "dropped_not_authorized"), 2);
        assert_eq!(broker.count("broker", "wills_published"), 0);
    });
}

/// A session that was to end with its connection cannot be kept by DISCONNECT: that is a protocol
/// error, the session ends, and the Will comes.
///
/// v5: 3.1.2-8, 4.13.1-1
/// family: 32, 78
#[test]
fn raising_the_expiry_from_zero() {
    on_all(|broker| {
        let mut watching = watching(broker);
        for (properties, secs) in [
            (ConnectProperties::default(), "00000001"),
            (expiring(0), "00000001"),
            (expiring(0), "ffffffff"),
        ] {
            for reason in ["00", "04"] {
                let mut wire = broker.connect();
                let last = Will { delay_interval: 100, ..will("will/zero", b"x") };
                let owner = Connect { will: Some(last), properties, ..connect(V5, "owner") };
                wire.handshake(owner);
                wire.send_hex(&format!("e0 07 {reason} 05 11 {secs}"));
                wire.expect_disconnect(ReasonCode::PROTOCOL_ERROR);
                watching.expect_publish("will/zero", AtMostOnce, b"x");
                let mut wire = broker.connect();
                let present =
                    wire.handshake(Connect { clean_start: false, ..connect(V5, "owner") });
                assert!(!present);
                // And 0 to 0 is no error.
                wire.send_hex("e0 07 00 05 11 00000000");
                wire.expect_closed();
            }
        }
    });
}

/// At the end of the broker clients are told so, and no Will is published: who would hear it is
/// told to go as well.
///
/// v5: 3.14.4-1, 3.14.4-2, 4.13.2-1
/// family: 79
#[test]
fn the_end_of_the_broker() {
    for combination in combinations() {
        let mut broker = Broker::start(combination);
        let mut watching = watching(&broker);
        let mut wires: Vec<_> = (0..12)
            .map(|number| {
                let version = [V31, V311, V5][number % 3];
                let id = format!("owner {number}");
                let mut wire = broker.connect();
                let last = will("will/end", b"x");
                wire.handshake(Connect { will: Some(last), ..connect(version, &id) });
                wire
            })
            .collect();
        broker.signal(Signal::TERM);
        for wire in &mut wires {
            wire.expect_disconnect(ReasonCode::SERVER_SHUTTING_DOWN);
        }
        watching.expect_disconnect(ReasonCode::SERVER_SHUTTING_DOWN);
        let ended = broker.wait(Duration::from_secs(15));
        assert!(ended.status.success(), "{ended:?}");
    }
}

/// A Will that waits is cancelled by who takes the session, and not by a CONNECT that is refused.
///
/// v5: 3.1.2-8, 3.1.3-9
/// family: 31, 33
#[test]
fn a_refused_connect_cancels_no_will() {
    on_all_at_once(
        |builder| builder,
        |broker, _| {
            let mut watching = watching(broker);
            for number in 0..4 {
                let id = format!("waits {number}");
                let mut wire = broker.connect();
                let last = Will { delay_interval: 1, ..will("will/waits", b"x") };
                let owner = Connect { will: Some(last), ..connect(V5, &id) };
                wire.handshake(Connect { properties: expiring(60), ..owner });
                wire.send_hex("e0 01 04");
                wire.expect_closed();
                let mut wire = broker.connect();
                let body = format!("'MQTT' 05 00 003c {{15 'no such'}} '{id}'");
                wire.send_bytes(&packet(0x10, &body));
                assert_eq!(wire.frame()[3], 0x8c);
            }
            for _ in 0..4 {
                watching.expect_publish("will/waits", AtMostOnce, b"x");
            }
            watching.expect_nothing_before_ping();
        },
    );
}

/// What a client said before it left is done, its DISCONNECT as well, though it left at once and
/// waited for no answer: all in one write, on whichever shard it arrived.
///
/// v5: 3.14.4-3, 4.2.0-1
/// v3.1.1: 3.14.4-3, 7.1.1-1
/// v3.1: 3.14
/// family: 12, 32, 81
#[test]
fn a_whole_visit_in_one_write() {
    on_all(|broker| {
        let mut watching = watching(broker);
        for number in 0..24_u8 {
            let (head, none) = [
                ("'MQIsdp' 03 06 003c 'visit", ""),
                ("'MQTT' 04 06 003c 'visit", ""),
                ("'MQTT' 05 06 003c {} 'visit", "{}"),
            ][usize::from(number % 3)];
            let mut all = packet(0x10, &format!("{head} {number}' {none} 'will/visit' 'x'"));
            all.extend(packet(0x30, &format!("'will/said' {none} {number:02x}")));
            all.extend([0xe0, 0]);
            let mut wire = broker.connect();
            wire.send_bytes(&all);
            wire.finish();
            watching.expect_publish("will/said", AtMostOnce, &[number]);
            assert_eq!(wire.frame()[0], 0x20);
            wire.expect_closed();
        }
        expect_end(broker, "somebody", &mut watching);
        assert_eq!(broker.count("broker", "wills_published"), 0);
    });
}
