//! A client identifier has one connection: the newest.

use std::time::Duration;

use noctule::codec::mqtt::{Connect, ConnectProperties, Publish, QoS, ReasonCode, Version, Will};

use super::notation::packet;
use super::support::packets::{connect, publish};
use super::support::{Next, Wire, on_all};

use QoS::{AtLeastOnce, AtMostOnce};
use Version::{V5, V31, V311};

fn will(payload: &[u8], delay_interval: u32) -> Option<Will<'_>> {
    let properties = Default::default();
    let (qos, retain) = (AtLeastOnce, false);
    Some(Will { topic: "will", payload, qos, retain, delay_interval, properties })
}

fn expiring(secs: u32) -> ConnectProperties<'static> {
    ConnectProperties { session_expiry_interval: Some(secs), ..ConnectProperties::default() }
}

/// The older connection is told (0x8E) and closed; between all versions.
///
/// v5: 3.1.4-3, 3.14.4-2, 4.13.2-1
/// v3.1.1: 3.1.4-2
/// v3.1: 3.1
/// family: 28, 35
#[test]
fn the_older_connection_is_closed() {
    on_all(|broker| {
        for old in [V31, V311, V5] {
            for new in [V31, V311, V5] {
                let mut first = broker.connect();
                first.handshake(connect(old, "taken"));
                let mut second = broker.connect();
                second.handshake(connect(new, "taken"));
                first.expect_disconnect(ReasonCode::SESSION_TAKEN_OVER);
                second.expect_nothing_before_ping();
            }
        }
        // And some of the nine that were there before.
        assert!(broker.count("broker", "takeovers") >= 9);
    });
}

/// The session goes over whole: subscriptions, and what is unacknowledged. Retained messages do
/// not come again.
///
/// v5: 3.1.2-5, 3.1.4-3, 4.4.0-1
/// family: 36
#[test]
fn the_session_goes_over() {
    on_all(|broker| {
        let session = Connect { clean_start: false, properties: expiring(60), ..connect(V5, "s") };
        let mut publisher = broker.connect();
        publisher.handshake(connect(V311, "publisher"));
        publisher.publish(Publish { retain: true, ..publish("a", AtLeastOnce, b"retained") });
        let mut wire = broker.connect();
        wire.handshake(session);
        wire.subscribe("a", AtLeastOnce);
        assert_eq!(wire.take_publish("a", AtLeastOnce, b"retained"), (false, true));
        for number in 0..3_u8 {
            publisher.publish(publish("a", AtLeastOnce, &[number]));
            wire.expect_publish("a", AtLeastOnce, &[number]);
        }
        for _ in 0..3 {
            let mut next = broker.connect();
            assert!(next.handshake(session));
            wire.expect_disconnect(ReasonCode::SESSION_TAKEN_OVER);
            for number in 0..3_u8 {
                next.expect_publish("a", AtLeastOnce, &[number]);
            }
            next.expect_nothing_before_ping();
            wire = next;
        }
        publisher.publish(publish("a", AtLeastOnce, b"live"));
        wire.expect_publish("a", AtLeastOnce, b"live");
    });
}

/// What the old connection has sent before the new one came is done before it.
///
/// v3.1.1: 3.1.4-2
/// family: 35
#[test]
fn what_was_sent_before_counts() {
    on_all(|broker| {
        let mut subscriber = broker.connect();
        subscriber.handshake(connect(V311, "subscriber"));
        subscriber.subscribe("a", AtMostOnce);
        for round in 0..20_u8 {
            let mut old = broker.connect();
            old.handshake(connect(V311, "publisher"));
            let mut all = Vec::new();
            for number in 0..50 {
                all.extend(packet(0x30, &format!("'a' {round:02x}{number:02x}")));
            }
            old.send_bytes(&all);
            let mut new = broker.connect();
            new.handshake(connect(V311, "publisher"));
            for number in 0..50 {
                subscriber.expect_publish("a", AtMostOnce, &[round, number]);
            }
        }
    });
}

/// The Will of the connection that is taken over, once, with its own data: published when its
/// delay is 0, when the session ends with it, or when the new one starts clean; else never.
///
/// v5: 3.1.2-8, 3.1.2-10, 3.1.3-9
/// v3.1.1: 3.1.2-8
/// family: 29
#[test]
fn the_will_of_the_older_connection() {
    on_all(|broker| {
        let mut watching = broker.connect();
        watching.handshake(connect(V311, "watching"));
        watching.subscribe("will", AtMostOnce);
        watching.subscribe("end", AtMostOnce);
        for (number, (delay, expiry, clean_start, published)) in [
            (0, 60, false, true),
            (100, 60, false, false),
            (100, 60, true, true),
            (100, 0, false, true),
            (0, 0, true, true),
        ]
        .into_iter()
        .enumerate()
        {
            let id = format!("owner-{number}");
            let payload = format!("will of {number}");
            let mut old = broker.connect();
            let properties = expiring(expiry);
            let first = Connect { properties, ..connect(V5, &id) };
            old.handshake(Connect { will: will(payload.as_bytes(), delay), ..first });
            let mut new = broker.connect();
            new.handshake(Connect { clean_start, will: will(b"of the new", 100), ..first });
            old.expect_disconnect(ReasonCode::SESSION_TAKEN_OVER);
            if published {
                watching.expect_publish("will", AtMostOnce, payload.as_bytes());
            }
            new.publish(publish("end", AtMostOnce, payload.as_bytes()));
            watching.expect_publish("end", AtMostOnce, payload.as_bytes());
            new.send_hex("e0 00");
            new.expect_closed();
        }
        // 3.x: a Will without a delay.
        let mut old = broker.connect();
        old.handshake(Connect { will: will(b"3", 0), ..connect(V311, "old") });
        let mut new = broker.connect();
        new.handshake(connect(V5, "old"));
        old.expect_closed();
        watching.expect_publish("will", AtMostOnce, b"3");
    });
}

/// The old connection's end, however late it is noticed, is not the new one's.
///
/// v5: 3.1.4-3
/// v3.1.1: 3.1.4-2
/// family: 37
#[test]
fn the_end_of_the_older_connection_is_its_own() {
    on_all(|broker| {
        let mut watching = broker.connect();
        watching.handshake(connect(V311, "watching"));
        watching.subscribe("#", AtMostOnce);
        for version in [V311, V5] {
            let session = Connect { clean_start: false, ..connect(version, "owner") };
            let mut old = broker.connect();
            old.handshake(session);
            let mut new = broker.connect();
            new.handshake(Connect { will: will(b"alive", 0), ..session });
            // It does not know yet, and says its last.
            let _ = old.try_send_bytes(&[0xe0, 0]);
            old.reset();
            new.subscribe("mine", AtMostOnce);
            new.publish(publish("mine", AtMostOnce, b""));
            new.expect_publish("mine", AtMostOnce, b"");
            watching.expect_publish("mine", AtMostOnce, b"");
            new.send_hex("e0 00");
            new.expect_closed();
        }
    });
}

/// Never two owners, never none: of many connections of one client at once exactly one survives.
///
/// v5: 3.1.4-3, 3.2.0-2, 3.1.3-2
/// family: 35
#[test]
fn a_crowd_with_one_identifier() {
    on_all(|broker| {
        for round in 0..5 {
            let id = format!("crowd-{round}");
            let mut all = packet(0x10, &format!("'MQTT' 05 00 003c {{11 0000003c}} '{id}'"));
            all.extend(packet(0x82, "0001 {} 'a' 01"));
            let mut crowd: Vec<Wire> = (0..30).map(|_| broker.connect()).collect();
            for wire in &mut crowd {
                wire.send_bytes(&all);
            }
            // All CONNECTs have been judged when each has its CONNACK, or was closed as too late.
            let next = |wire: &mut Wire| wire.next_within(Duration::from_secs(10));
            crowd.retain_mut(|wire| match next(wire) {
                Next::Frame(frame) => {
                    assert_eq!(frame[0], 0x20);
                    true
                }
                other => {
                    assert_eq!(other, Next::Closed);
                    false
                }
            });
            let mut alive = 0;
            for wire in &mut crowd {
                let _ = wire.try_send_bytes(&[0xc0, 0]);
                loop {
                    match next(wire) {
                        Next::Frame(frame) if frame == [0xd0, 0] => break alive += 1,
                        Next::Frame(frame) => assert!([0x90, 0xe0].contains(&frame[0])),
                        Next::Closed => break,
                        Next::Silence => panic!("neither alive nor closed"),
                    }
                }
            }
            assert_eq!(alive, 1, "round {round}");
        }
    });
}
