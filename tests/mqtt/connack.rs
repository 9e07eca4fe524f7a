//! What a CONNECT leads to, by the bytes: the order of its fields, the flags of CONNACK, and what
//! comes of a CONNECT that is refused.

use noctule::codec::mqtt::{Connect, ConnectProperties, Packet, QoS, Version, Will};

use super::notation::packet;
use super::support::packets::{connect, publish};
use super::support::wire::hex;
use super::support::{Broker, Next, Wire, combinations, on_all};

use QoS::{AtLeastOnce, AtMostOnce};
use Version::{V5, V31, V311};

fn online(broker: &Broker, version: Version, id: &str) -> Wire {
    let mut wire = broker.connect();
    wire.handshake(connect(version, id));
    wire
}

/// A session that stays, of any version.
fn session(version: Version, id: &str) -> Connect<'_> {
    let properties = ConnectProperties {
        session_expiry_interval: (version == V5).then_some(300),
        ..ConnectProperties::default()
    };
    Connect { clean_start: false, properties, ..connect(version, id) }
}

/// The reason or return code of the CONNACK that comes next, and its flags.
fn connack(wire: &mut Wire) -> (u8, u8) {
    let frame = wire.frame();
    assert_eq!(frame[0], 0x20, "{}", hex(&frame));
    (frame[2], frame[3])
}

/// All fields of the payload are there, each of a kind that no other can be: client identifier, Will
/// properties, topic and message, user name (UTF-8), password (not UTF-8). The Will then is what its
/// place says, and the identifier is the one that can be taken over.
///
/// v5: 3.1.2-9, 3.1.3-1
/// v3.1.1: 3.1.2-9, 3.1.3-1
#[test]
fn the_fields_of_connect_stand_in_their_order() {
    on_all(|broker| {
        let mut watching = online(broker, V5, "watching");
        watching.subscribe("#", AtMostOnce);
        for (start, properties) in [("'MQIsdp' 03", ""), ("'MQTT' 04", ""), ("'MQTT' 05", "{}")] {
            // Flags: user name, password, Will with QoS 1, clean.
            let fields = "'first' WILL 'second' 'third' 'fourth' 0002 fffe";
            let body = format!("{start} ce 003c {properties} {fields}");
            let will = if properties.is_empty() { "" } else { "{03 'type'}" };
            let mut wire = broker.connect();
            wire.send_bytes(&packet(0x10, &body.replace("WILL", will)));
            assert_eq!(connack(&mut wire), (0, 0));
            let mut newer = online(broker, V311, "first");
            match wire.next_within(std::time::Duration::from_secs(10)) {
                Next::Frame(frame) => assert_eq!(frame, [0xe0, 1, 0x8e], "{}", hex(&frame)),
                other => assert!(other == Next::Closed && properties.is_empty(), "{other:?}"),
            }
            let got = packet(
                0x30,
                &format!("'second' {} 7468697264", if will.is_empty() { "{}" } else { will }),
            );
            watching.expect_bytes(&got);
            newer.expect_nothing_before_ping();
        }
    });
}

/// Two clients, two sessions: each gets its own back, by its identifier alone, wherever it lives.
///
/// v5: 3.1.2-4, 3.1.2-5, 3.1.3-2
/// v3.1.1: 3.1.2-4, 3.1.2-6, 3.1.3-2
#[test]
fn the_client_identifier_is_the_key_of_the_session() {
    on_all(|broker| {
        let mut publisher = online(broker, V5, "publisher");
        for version in [V311, V5] {
            let ids = ["a", "A", "b", "a ", "\u{e9}", "e\u{301}"];
            for id in ids {
                let mut wire = broker.connect();
                assert!(!wire.handshake(session(version, id)), "{id:?}");
                wire.subscribe(&format!("to/{id}"), AtLeastOnce);
                wire.send_hex("e0 00");
                wire.expect_closed();
            }
            for id in ids {
                publisher.publish(publish(&format!("to/{id}"), AtLeastOnce, id.as_bytes()));
            }
            for id in ids {
                let mut wire = broker.connect();
                assert!(wire.handshake(session(version, id)), "{id:?}");
                wire.take_publish(&format!("to/{id}"), AtLeastOnce, id.as_bytes());
                wire.expect_nothing_before_ping();
                // A clean start: nothing of it is left, and nothing of it comes back.
                let mut wire = broker.connect();
                assert!(!wire.handshake(connect(version, id)));
                publisher.publish(publish(&format!("to/{id}"), AtLeastOnce, b"nobody's"));
                wire.expect_nothing_before_ping();
                wire.send_hex("e0 00");
                wire.expect_closed();
                let mut wire = broker.connect();
                assert!(!wire.handshake(session(version, id)));
                publisher.publish(publish(&format!("to/{id}"), AtLeastOnce, b"nobody's"));
                wire.expect_nothing_before_ping();
                broker.connect().handshake(connect(version, id));
            }
        }
    });
}

/// Session Present is the lowest bit of a byte whose others are zero; it is set on success only.
///
/// v5: 3.2.2-1, 3.2.2-2, 3.2.2-3, 3.2.2-6
/// v3.1.1: 3.2.2-1, 3.2.2-2, 3.2.2-3, 3.2.2-4
/// v3.1: 3.2
/// family: 18
#[test]
fn the_flags_of_connack() {
    on_all(|broker| {
        for version in [V31, V311, V5] {
            let flags = |connect: Connect<'_>| {
                let mut wire = broker.connect();
                wire.send(&Packet::Connect(connect));
                connack(&mut wire)
            };
            let present = u8::from(version != V31);
            assert_eq!(flags(session(version, "flags")), (0, 0));
            assert_eq!(flags(session(version, "flags")), (present, 0));
            assert_eq!(flags(connect(version, "flags")), (0, 0));
        }
        // A session is there, and the CONNECT is refused.
        let mut wire = broker.connect();
        wire.handshake(session(V5, "flags"));
        let mut wire = broker.connect();
        wire.send_bytes(&packet(0x10, "'MQTT' 05 00 003c {15 'unknown'} 'flags'"));
        assert_eq!(connack(&mut wire), (0, 0x8c));
        wire.expect_closed();
        let mut wire = broker.connect();
        wire.send_bytes(&packet(0x10, "'MQTT' 84 00 003c 'flags'"));
        assert_eq!(connack(&mut wire), (0, 1));
        wire.expect_closed();
    });
}

/// Behind a CONNECT that is refused nothing counts: no message, no subscription, and there is one
/// CONNACK or none.
///
/// v5: 3.1.4-6, 3.2.0-2, 3.2.2-7
/// v3.1.1: 3.1.4-5, 3.2.2-5
/// family: 19, 33
#[test]
fn nothing_behind_a_refused_connect_counts() {
    on_all(|broker| {
        let mut watching = online(broker, V5, "watching");
        watching.subscribe("#", AtMostOnce);
        for (connect, code, properties) in [
            // With a Will, which is published by nobody either.
            ("'MQTT' 05 06 003c {15 'unknown'} 'refused' {} 'will' 'w'", Some(0x8c), "{}"),
            ("'MQTT' 05 03 003c {} 'refused'", Some(0x81), "{}"),
            ("'MQTT' 04 04 003c '' 'will' 'w'", Some(0x02), ""),
            ("'MQTT' 04 03 003c 'refused'", None, ""),
            ("'MQIsdp' 03 06 003c '' 'will' 'w'", Some(0x02), ""),
        ] {
            let mut all = packet(0x10, connect);
            all.extend(packet(0x31, &format!("'retained' {properties} 31")));
            all.extend(packet(0x82, &format!("0001 {properties} '#' 00")));
            all.extend(packet(0x32, &format!("'live' 0001 {properties} 31")));
            all.extend(packet(0xc0, ""));
            let mut wire = broker.connect();
            wire.send_bytes(&all);
            if let Some(code) = code {
                assert_eq!(connack(&mut wire), (0, code));
            }
            wire.expect_closed();
        }
        // What had been processed would have come before this.
        for id in ["refused", "another"] {
            let mut wire = online(broker, V311, id);
            wire.publish(publish("end", AtMostOnce, b""));
            watching.expect_publish("end", AtMostOnce, b"");
            wire.subscribe("retained", AtMostOnce);
            wire.expect_nothing_before_ping();
        }
    });
}

/// CONNACK obeys the Maximum Packet Size that its CONNECT gives, to the byte.
///
/// v5: 3.1.2-24
/// family: 25
#[test]
fn a_connack_that_just_fits() {
    on_all(|broker| {
        let with = |size: Option<u32>| {
            let properties =
                ConnectProperties { maximum_packet_size: size, ..ConnectProperties::default() };
            let mut wire = broker.connect();
            // Without an identifier, so that one is assigned and told.
            wire.send(&Packet::Connect(Connect { properties, ..connect(V5, "") }));
            wire
        };
        let size = with(None).frame().len() as u32;
        let mut fits = with(Some(size));
        assert_eq!(fits.frame().len() as u32, size);
        fits.expect_nothing_before_ping();
        with(Some(size - 1)).expect_closed();
    });
}

/// SUBACK and UNSUBACK have the identifier of their request, PUBLISH of QoS 0 has none.
///
/// v5: 2.2.1-2, 2.2.1-6, 2.2.2-1, 3.8.4-2, 3.10.4-5
/// v3.1.1: 2.3.1-5, 2.3.1-7, 3.8.4-2, 3.10.4-4, 3.10.4-5
/// v3.1: 3.8, 3.10
#[test]
fn packet_identifiers_by_the_bytes() {
    on_all(|broker| {
        for (version, properties, codes) in [(V31, "", ""), (V311, "", ""), (V5, "{}", "00")] {
            let mut wire = online(broker, version, "bytes");
            for id in ["0001", "7fff", "ffff", "0001"] {
                wire.send_bytes(&packet(0x82, &format!("{id} {properties} 'a' 00")));
                wire.expect_bytes(&packet(0x90, &format!("{id} {properties} 00")));
            }
            wire.send_bytes(&packet(0x32, &format!("'a' 1234 {properties} 78")));
            let mut frames = [wire.frame(), wire.frame()];
            frames.sort();
            assert_eq!(frames[0], packet(0x30, &format!("'a' {properties} 78")));
            assert_eq!(frames[1], packet(0x40, "1234"));
            wire.send_bytes(&packet(0xa2, &format!("fffe {properties} 'a'")));
            wire.expect_bytes(&packet(0xb0, &format!("fffe {properties} {codes}")));
            let none = if version == V5 { "11" } else { "" };
            wire.send_bytes(&packet(0xa2, &format!("fffe {properties} 'a'")));
            wire.expect_bytes(&packet(0xb0, &format!("fffe {properties} {none}")));
        }
    });
}

/// With a Topic Alias Maximum of 0 the property is absent, and an alias is refused.
///
/// v5: 3.2.2-17, 3.2.2-18
/// family: 50
#[test]
fn without_topic_aliases() {
    for combination in combinations() {
        let broker = Broker::build(combination).arg("--topic-alias-maximum=0").start();
        let mut wire = broker.connect();
        wire.send(&Packet::Connect(connect(V5, "no alias")));
        match wire.recv() {
            Packet::ConnAck(ack) => assert_eq!(ack.properties.topic_alias_maximum, None),
            other => panic!("{other:?}"),
        }
        wire.send_bytes(&packet(0x30, "'a' {23 0001}"));
        wire.expect_disconnect(noctule::codec::mqtt::ReasonCode::TOPIC_ALIAS_INVALID);
        broker.stop();
    }
}

/// The largest Session Expiry Intervals are no overflow: the session is there when its client comes
/// back, and CONNACK tells no other value.
///
/// v5: 3.1.2-23
/// family: 22
#[test]
fn very_long_session_expiry() {
    on_all(|broker| {
        for seconds in [u32::MAX, u32::MAX - 1, i32::MAX as u32 + 1, 4_294_968] {
            let id = format!("long-{seconds}");
            let properties = ConnectProperties {
                session_expiry_interval: Some(seconds),
                ..ConnectProperties::default()
            };
            let long = Connect { clean_start: false, properties, ..connect(V5, &id) };
            for present in [false, true, true] {
                let mut wire = broker.connect();
                wire.send(&Packet::Connect(long));
                match wire.recv() {
                    Packet::ConnAck(ack) => {
                        assert_eq!(ack.session_present, present, "{seconds}");
                        assert_eq!(ack.properties.session_expiry_interval, None, "{seconds}");
                    }
                    other => panic!("{other:?}"),
                }
                wire.send_hex("e0 00");
                wire.expect_closed();
            }
        }
    });
}

/// A retained message is the topic's and not the session's: it stays when its publisher's session
/// ends. A client without a Will leaves without one.
///
/// v3.1.1: 3.1.2-7, 3.1.2-12
#[test]
fn what_a_session_leaves_behind() {
    on_all(|broker| {
        let mut watching = online(broker, V311, "watching");
        watching.subscribe("#", AtMostOnce);
        for (number, version) in [V31, V311, V5].into_iter().enumerate() {
            let topic = format!("kept/{number}");
            let mut wire = online(broker, version, "publisher");
            let kept = noctule::codec::mqtt::Publish {
                retain: true,
                ..publish(&topic, AtLeastOnce, b"kept")
            };
            wire.publish(kept);
            watching.expect_publish(&topic, AtMostOnce, b"kept");
            wire.reset();
            let mut wire = online(broker, version, "publisher");
            wire.subscribe(&topic, AtMostOnce);
            assert_eq!(wire.take_publish(&topic, AtMostOnce, b"kept"), (false, true));
        }
        let mut last = online(broker, V5, "publisher");
        last.publish(publish("end", AtMostOnce, b""));
        watching.expect_publish("end", AtMostOnce, b"");
    });
}

/// Wills of 3.1.1: RETAIN as it was asked for, and QoS.
///
/// v3.1.1: 3.1.2-14, 3.1.2-16, 3.1.2-17
#[test]
fn wills_are_retained_as_they_ask() {
    on_all(|broker| {
        for version in [V31, V311] {
            for (qos, retain) in
                [(AtMostOnce, false), (AtLeastOnce, true), (QoS::ExactlyOnce, false)]
            {
                let topic = format!("will/{version:?}/{qos:?}");
                let mut watching = online(broker, V5, "watching");
                watching.subscribe(&topic, QoS::ExactlyOnce);
                let properties = Default::default();
                let will = Will {
                    topic: &topic,
                    payload: b"w",
                    qos,
                    retain,
                    delay_interval: 0,
                    properties,
                };
                let mut wire = broker.connect();
                wire.handshake(Connect { will: Some(will), ..connect(version, "owner") });
                wire.reset();
                assert_eq!(watching.take_publish(&topic, qos, b"w"), (false, false));
                let mut late = online(broker, V311, "late");
                late.subscribe(&topic, QoS::ExactlyOnce);
                if retain {
                    assert_eq!(late.take_publish(&topic, qos, b"w"), (false, true));
                }
                late.expect_nothing_before_ping();
            }
        }
    });
}

/// A shared and a plain subscription of one client are two messages, each with its own identifier.
///
/// v5: 3.3.4-5
/// family: 70, 73
#[test]
fn each_copy_has_the_identifier_of_its_subscription() {
    on_all(|broker| {
        let mut wire = online(broker, V5, "both");
        wire.send_bytes(&packet(0x82, "0001 {0b01} 'a' 00"));
        wire.expect_bytes(&packet(0x90, "0001 {} 00"));
        wire.send_bytes(&packet(0x82, "0002 {0bffffff7f} '$share/g/a' 00"));
        wire.expect_bytes(&packet(0x90, "0002 {} 00"));
        let mut publisher = online(broker, V311, "publisher");
        publisher.publish(publish("a", AtMostOnce, b"x"));
        let mut frames = [wire.frame(), wire.frame()];
        frames.sort();
        assert_eq!(frames[0], packet(0x30, "'a' {0b01} 78"));
        assert_eq!(frames[1], packet(0x30, "'a' {0bffffff7f} 78"));
        wire.expect_nothing_before_ping();
    });
}
