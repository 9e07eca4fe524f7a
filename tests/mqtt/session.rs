//! Sessions: what outlives a connection, and for how long.

use std::time::Duration;

use noctule::codec::mqtt::{
    Connect, ConnectProperties, Packet, PacketKind, Publish, QoS, ReasonCode, Version,
};

use super::notation::packet;
use super::support::packets::{
    begin, connect, lasting as session, leave, publish, publisher, resume,
};
use super::support::{on_all, on_all_at_once};

use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};
use Version::{V5, V31, V311};

/// Subscriptions outlive the connection, and QoS 1 and 2 messages wait, each QoS in order; they are
/// new to the client, so without DUP. QoS 0 does not wait.
///
/// v5: 3.1.2-5, 3.1.2-23, 3.2.2-3, 4.5.0-1, 4.3.2-2, 4.3.3-2
/// v3.1.1: 3.1.2-4, 3.1.2-5, 3.2.2-2, 3.2.2-3, 4.1.0-1, 4.5.0-1
/// v3.1: 3.1
/// family: 38, 55
#[test]
fn messages_wait_for_the_client() {
    on_all(|broker| {
        let mut publisher = publisher(broker);
        let mut queued = 0;
        for version in [V31, V311, V5] {
            let id = format!("sleeper-{version:?}");
            let mut wire = begin(broker, version, &id);
            wire.subscribe("q/+", ExactlyOnce);
            leave(wire);
            for number in 0..50_u8 {
                let qos = [AtLeastOnce, ExactlyOnce, AtMostOnce][usize::from(number % 3)];
                publisher.publish(publish("q/x", qos, &[number]));
            }
            // On their way between shards they might still meet the client.
            queued += 50 - 50 / 3;
            broker.wait_for_count("broker", "messages_queued", |count| count == queued);
            let mut wire = resume(broker, version, &id);
            let numbers: Vec<[u8; 1]> = (0..50).map(|number| [number]).collect();
            let expected: Vec<(_, &[u8])> = numbers
                .iter()
                .filter(|number| number[0] % 3 != 2)
                .map(|number| ([AtLeastOnce, ExactlyOnce][usize::from(number[0] % 3)], &number[..]))
                .collect();
            wire.take_publishes("q/x", &expected);
            publisher.publish(publish("q/y", AtMostOnce, b"live"));
            wire.expect_publish("q/y", AtMostOnce, b"live");
            wire.unsubscribe("q/+");
            leave(wire);
        }
    });
}

/// What was not acknowledged comes again, with its identifier, in its order, before anything
/// newer; what was acknowledged does not.
///
/// v5: 4.3.2-3, 4.3.3-3, 4.4.0-1
/// v3.1.1: 2.3.1-3, 2.3.1-4, 4.3.2-1, 4.3.3-1, 4.4.0-1, 4.6.0-1
/// v3.1: 4.2, 4.3
/// family: 38, 55
#[test]
fn unacknowledged_messages_come_again() {
    on_all(|broker| {
        let mut publisher = publisher(broker);
        for version in [V31, V311, V5] {
            let id = format!("again-{version:?}");
            let mut wire = begin(broker, version, &id);
            wire.subscribe("a", ExactlyOnce);
            let mut ids = Vec::new();
            for number in 0..6_u8 {
                let qos = if number % 2 == 0 { AtLeastOnce } else { ExactlyOnce };
                publisher.publish(publish("a", qos, &[number]));
                ids.push(wire.expect_publish("a", qos, &[number]).expect("an id").get());
            }
            wire.send_ack(PacketKind::PubAck, ids[2]);
            wire.expect_nothing_before_ping();
            wire.reset();
            // A reset is noticed after what was sent before it; the next message tells nothing new.
            publisher.publish(publish("a", AtLeastOnce, &[6]));
            for round in 0..3 {
                let mut wire = resume(broker, version, &id);
                for number in [0_u8, 1, 3, 4, 5] {
                    let qos = if number % 2 == 0 { AtLeastOnce } else { ExactlyOnce };
                    let again = wire.expect_publish("a", qos, &[number]).expect("an id").get();
                    assert_eq!(again, ids[usize::from(number)]);
                }
                let Packet::Publish(newer) = wire.recv() else { panic!("a PUBLISH") };
                assert_eq!(newer.payload, [6]);
                // It was sent in an earlier round, or before the reset was noticed.
                assert!(newer.dup || round == 0);
                wire.expect_nothing_before_ping();
                wire.reset();
            }
        }
    });
}

/// What comes again has DUP; what comes for the first time has not.
///
/// v5: 3.3.1-1, 4.3.2-2, 4.3.3-2, 4.4.0-1
/// v3.1.1: 3.3.1-1, 4.3.2-1, 4.3.3-1, 4.4.0-1
/// v3.1: 2.1, 4.2
/// family: 38
#[test]
fn what_comes_again_has_dup() {
    on_all(|broker| {
        let mut publisher = publisher(broker);
        for version in [V311, V5] {
            let id = format!("dup-{version:?}");
            let mut wire = begin(broker, version, &id);
            wire.subscribe("a", ExactlyOnce);
            for qos in [AtLeastOnce, ExactlyOnce] {
                publisher.publish(publish("a", qos, b"x"));
                assert_eq!(wire.frame()[0], 0x30 | (qos as u8) << 1);
            }
            leave(wire);
            let mut wire = resume(broker, version, &id);
            for qos in [AtLeastOnce, ExactlyOnce] {
                assert_eq!(wire.take_publish("a", qos, b"x"), (true, false));
            }
            leave(wire);
        }
    });
}

/// After PUBREC it is the PUBREL that comes again, in the order of the PUBRECs, and never the
/// message; PUBCOMP ends it.
///
/// v5: 4.3.3-4, 4.3.3-5, 4.3.3-6, 4.4.0-1
/// v3.1.1: 4.3.3-1, 4.4.0-1, 2.3.1-6
/// v3.1: 4.2, 4.3
/// family: 41
#[test]
fn an_owed_pubrel_comes_again() {
    on_all(|broker| {
        let mut publisher = publisher(broker);
        for version in [V311, V5] {
            let id = format!("pubrel-{version:?}");
            let mut wire = begin(broker, version, &id);
            wire.subscribe("a", ExactlyOnce);
            let mut ids = Vec::new();
            for number in 0..4_u8 {
                publisher.publish(publish("a", ExactlyOnce, &[number]));
                ids.push(wire.expect_publish("a", ExactlyOnce, &[number]).expect("an id").get());
            }
            // Received in another order than sent.
            for index in [2, 0, 3] {
                wire.send_ack(PacketKind::PubRec, ids[index]);
                wire.expect_ack(PacketKind::PubRel, ids[index]);
            }
            wire.send_ack(PacketKind::PubComp, ids[3]);
            wire.expect_nothing_before_ping();
            wire.reset();
            let mut wire = resume(broker, version, &id);
            let mut released = Vec::new();
            for _ in 0..3 {
                match wire.recv() {
                    Packet::PubRel(ack) => {
                        assert_eq!(ack.reason, ReasonCode::SUCCESS);
                        released.push(ack.packet_id.get());
                    }
                    Packet::Publish(publish) => {
                        assert!(publish.dup);
                        assert_eq!(publish.payload, [1]);
                        assert_eq!(publish.packet_id.map(|id| id.get()), Some(ids[1]));
                    }
                    other => panic!("{other:?}"),
                }
            }
            // [MQTT-4.6.0-4 of 3.1.1]: in the order of the PUBRECs.
            assert_eq!(released, [ids[2], ids[0]]);
            wire.send_ack(PacketKind::PubRec, ids[1]);
            wire.expect_ack(PacketKind::PubRel, ids[1]);
            for id in ids.iter().take(3) {
                wire.send_ack(PacketKind::PubComp, *id);
            }
            wire.expect_nothing_before_ping();
            leave(wire);
            resume(broker, version, &id).expect_nothing_before_ping();
        }
    });
}

/// A publisher's QoS 2 message is had once, though it comes again on the next connection.
///
/// v5: 4.3.3-10, 4.3.3-11, 4.3.3-12
/// v3.1.1: 4.3.3-2
/// v3.1: 4.1
/// family: 39, 40
#[test]
fn inbound_qos_2_outlives_the_connection() {
    on_all(|broker| {
        let mut subscriber = broker.connect();
        subscriber.handshake(connect(V311, "subscriber"));
        subscriber.subscribe("a", AtMostOnce);
        for (version, properties) in [(V31, ""), (V311, ""), (V5, "{}")] {
            let id = format!("inbound-{version:?}");
            let mut wire = begin(broker, version, &id);
            for packet_id in ["0001", "0002"] {
                let body = format!("'a' {packet_id} {properties} {packet_id}");
                wire.send_bytes(&packet(0x34, &body));
                wire.expect_ack(PacketKind::PubRec, packet_id.parse().expect("a number"));
            }
            wire.reset();
            let mut wire = resume(broker, version, &id);
            wire.send_bytes(&packet(0x3c, &format!("'a' 0001 {properties} 0001")));
            wire.expect_hex("50 02 0001");
            wire.send_hex("62 02 0001");
            wire.expect_hex("70 02 0001");
            wire.reset();
            let mut wire = resume(broker, version, &id);
            wire.send_hex("62 02 0002");
            wire.expect_hex("70 02 0002");
            wire.send_bytes(&packet(0x34, &format!("'a' 0001 {properties} 0003")));
            wire.expect_ack(PacketKind::PubRec, 1);
            for payload in [[0, 1], [0, 2], [0, 3]] {
                subscriber.expect_publish("a", AtMostOnce, &payload);
            }
            leave(wire);
        }
    });
}

/// A clean start ends what was, for good.
///
/// v5: 3.1.2-4, 3.1.4-4, 3.2.2-2, 3.2.2-3
/// v3.1.1: 3.1.2-6, 3.1.4-3, 3.2.2-1, 3.2.2-3
/// v3.1: 3.1
/// family: 18
#[test]
fn a_clean_start_forgets() {
    on_all(|broker| {
        let mut publisher = publisher(broker);
        for version in [V31, V311, V5] {
            let id = format!("clean-{version:?}");
            let mut wire = begin(broker, version, &id);
            wire.subscribe("a", AtLeastOnce);
            leave(wire);
            publisher.publish(publish("a", AtLeastOnce, b"waits"));
            let mut wire = broker.connect();
            assert!(!wire.handshake(Connect { clean_start: true, ..session(version, &id) }));
            wire.expect_nothing_before_ping();
            leave(wire);
            publisher.publish(publish("a", AtLeastOnce, b"nobody's"));
            let mut wire = broker.connect();
            // In 5.0 a clean start with an expiry begins a session that stays; before, one that goes.
            assert_eq!(wire.handshake(session(version, &id)), version == V5);
            wire.expect_nothing_before_ping();
        }
    });
}

/// With an expiry of 0, or none, a session ends with its connection, however that ends.
///
/// v5: 3.1.2-6, 3.2.2-3, 4.1.0-2
/// family: 18, 30
#[test]
fn sessions_that_end_with_their_connection() {
    on_all(|broker| {
        let brief = || Connect { clean_start: false, ..connect(V5, "brief") };
        let mut wire = broker.connect();
        assert!(!wire.handshake(brief()));
        wire.subscribe("a", AtLeastOnce);
        leave(wire);
        let mut wire = broker.connect();
        assert!(!wire.handshake(brief()));
        wire.reset();
        let mut wire = broker.connect();
        assert!(!wire.handshake(brief()));
        // Still connected: the new connection does not inherit it either (PITFALLS 30).
        let mut newer = broker.connect();
        assert!(!newer.handshake(brief()));
        wire.expect_disconnect(ReasonCode::SESSION_TAKEN_OVER);
        newer.publish(publish("a", AtMostOnce, b""));
        newer.expect_nothing_before_ping();
    });
}

/// A session ends when its time is over, not before, never while it is connected; a DISCONNECT may
/// change its time.
///
/// v5: 3.1.2-23, 4.1.0-1, 4.1.0-2
/// family: 22, 23
#[test]
fn session_expiry() {
    on_all_at_once(
        |builder| builder,
        |broker, _| {
            let with = |expiry, id| {
                let properties = ConnectProperties {
                    session_expiry_interval: Some(expiry),
                    ..ConnectProperties::default()
                };
                Connect { clean_start: false, properties, ..connect(V5, id) }
            };
            for (id, expiry, last) in [
                ("one second", 1, "e0 00"),
                ("for ever", u32::MAX, "e0 00"),
                ("shortened", u32::MAX, "e0 07 00 05 11 00000001"),
                ("prolonged", 1, "e0 07 00 05 11 000000ff"),
                ("ended", 100, "e0 07 00 05 11 00000000"),
            ] {
                let mut wire = broker.connect();
                assert!(!wire.handshake(with(expiry, id)));
                wire.subscribe("a", AtLeastOnce);
                wire.send_hex(last);
                wire.expect_closed();
            }
            let mut ended = broker.connect();
            assert!(!ended.handshake(with(1, "ended")));
            std::thread::sleep(Duration::from_millis(2200));
            // Still connected: its time has not begun.
            drop(ended);
            for (id, present) in [
                ("one second", false),
                ("for ever", true),
                ("shortened", false),
                ("prolonged", true),
                ("ended", true),
            ] {
                assert_eq!(broker.connect().handshake(with(1, id)), present, "{id}");
            }
            let ended = broker.wait_for_count("broker", "sessions_ended", |count| count >= 3);
            assert!(ended >= 3);
        },
    );
}

/// A cap of the operator's is told, and holds.
///
/// v5: 4.1.0-2
/// family: 22, 23
#[test]
fn session_expiry_is_capped() {
    on_all_at_once(
        |builder| builder.arg("--session-expiry-max=1s"),
        |broker, _| {
            let mut wire = broker.connect();
            wire.send(&Packet::Connect(session(V5, "capped")));
            let Packet::ConnAck(ack) = wire.recv() else { panic!("a CONNACK") };
            assert_eq!(ack.properties.session_expiry_interval, Some(1));
            let mut old = begin(broker, V311, "capped, old");
            leave(wire);
            old.send_hex("e0 00");
            old.expect_closed();
            broker.wait_for_count("broker", "sessions_ended", |count| count == 2);
            begin(broker, V5, "capped");
            begin(broker, V311, "capped, old");
        },
    );
}

/// One session, three versions: what began in one goes on in another.
///
/// v5: 3.1.2-5, 4.4.0-1, 3.3.2-17
/// v3.1.1: 3.1.2-4, 4.4.0-1
/// family: 57
#[test]
fn a_session_may_change_its_version() {
    on_all(|broker| {
        let mut publisher = publisher(broker);
        let mut wire = begin(broker, V5, "many");
        wire.send_bytes(&packet(0x82, "0001 {0b05} 'a' 01"));
        wire.expect_bytes(&packet(0x90, "0001 {} 01"));
        leave(wire);
        publisher.send_bytes(&packet(0x32, "'a' 0001 {26 'k' 'v'} 31"));
        publisher.expect_hex("40 02 0001");
        let mut wire = resume(broker, V311, "many");
        let id = wire.expect_publish("a", AtLeastOnce, b"1").expect("an id");
        leave(wire);
        let mut wire = resume(broker, V5, "many");
        let Packet::Publish(again) = wire.recv() else { panic!("a PUBLISH") };
        assert_eq!((again.packet_id, again.dup, again.payload), (Some(id), true, &b"1"[..]));
        assert_eq!(again.properties.user_properties.iter().collect::<Vec<_>>(), [("k", "v")]);
        assert_eq!(again.properties.subscription_ids.iter().collect::<Vec<_>>(), [5]);
    });
}

/// The window is the new connection's; what is sent again counts against it.
///
/// v5: 3.3.4-9, 4.9.0-1, 4.9.0-2
/// family: 47
#[test]
fn resuming_with_a_smaller_window() {
    on_all(|broker| {
        let mut publisher = publisher(broker);
        let mut wire = begin(broker, V5, "window");
        wire.subscribe("a", AtLeastOnce);
        for number in 0..5_u8 {
            publisher.publish(publish("a", AtLeastOnce, &[number]));
            wire.expect_publish("a", AtLeastOnce, &[number]);
        }
        leave(wire);
        let base = session(V5, "window");
        let properties = ConnectProperties { receive_maximum: Some(2), ..base.properties };
        let mut wire = broker.connect();
        assert!(wire.handshake(Connect { properties, ..base }));
        let mut ids = Vec::new();
        for number in 0..2_u8 {
            ids.push(wire.expect_publish("a", AtLeastOnce, &[number]).expect("an id").get());
        }
        wire.expect_nothing_before_ping();
        for id in ids {
            wire.send_ack(PacketKind::PubAck, id);
        }
        for number in 2..5_u8 {
            wire.take_publish("a", AtLeastOnce, &[number]);
        }
        wire.expect_nothing_before_ping();
    });
}

/// A CONNECT with this expiry, to a session that may be there.
fn expiring(id: &str, expiry: Option<u32>) -> Connect<'_> {
    let properties =
        ConnectProperties { session_expiry_interval: expiry, ..ConnectProperties::default() };
    Connect { clean_start: false, properties, ..connect(V5, id) }
}

/// The expiry of the last CONNECT, or of the DISCONNECT behind it, is the one that counts; its time
/// begins anew with each end of a connection.
///
/// v5: 3.1.2-5, 3.1.2-6, 3.1.2-23, 3.2.2-3, 4.1.0-1, 4.1.0-2
/// family: 22, 23
#[test]
fn the_last_expiry_counts() {
    on_all_at_once(
        |builder| builder,
        |broker, _| {
            /// The expiry of CONNECT, and the DISCONNECT.
            type Visit = (Option<u32>, &'static str);
            let never = Some(u32::MAX);
            let table: [(&str, &[Visit], bool); 9] = [
                ("absent at last", &[(never, "e0 00"), (None, "e0 00")], false),
                ("0 at last", &[(never, "e0 00"), (Some(0), "e0 00")], false),
                ("1 at last", &[(never, "e0 00"), (Some(1), "e0 00")], false),
                ("never at last", &[(Some(1), "e0 00"), (never, "e0 00")], true),
                ("nearly never", &[(Some(u32::MAX - 1), "e0 00")], true),
                ("never by DISCONNECT", &[(Some(1), "e0 07 00 05 11 ffffffff")], true),
                ("0 by DISCONNECT", &[(never, "e0 07 00 05 11 00000000")], false),
                (
                    "back to CONNECT's",
                    &[(Some(1), "e0 07 00 05 11 00000064"), (Some(1), "e0 00")],
                    false,
                ),
                (
                    "from DISCONNECT's",
                    &[(Some(1), "e0 07 00 05 11 00000064"), (Some(100), "e0 00")],
                    true,
                ),
            ];
            for (id, visits, _) in &table {
                for (number, (expiry, last)) in visits.iter().enumerate() {
                    let mut wire = broker.connect();
                    assert_eq!(wire.handshake(expiring(id, *expiry)), number > 0, "{id}");
                    wire.send_hex(last);
                    wire.expect_closed();
                }
            }
            // One that comes back each time before its three seconds are over.
            for round in 0..4 {
                let mut wire = broker.connect();
                assert_eq!(wire.handshake(expiring("again", Some(3))), round > 0);
                wire.send_hex("e0 00");
                wire.expect_closed();
                std::thread::sleep(Duration::from_millis(1200));
            }
            for (id, _, present) in &table {
                let wire = &mut broker.connect();
                assert_eq!(wire.handshake(expiring(id, None)), *present, "{id}");
            }
        },
    );
}

/// Of a session whose time was over nothing is left, whoever asks for it first.
///
/// v5: 3.1.2-6, 4.1.0-2
/// family: 23, 30
#[test]
fn nothing_is_left_of_a_session_that_expired() {
    on_all_at_once(
        |builder| builder,
        |broker, _| {
            let mut publisher = publisher(broker);
            for number in 0..4 {
                let id = format!("expires {number}");
                let mut wire = broker.connect();
                assert!(!wire.handshake(expiring(&id, Some(1))));
                wire.subscribe("a", ExactlyOnce);
                publisher.publish(publish("a", ExactlyOnce, b"open"));
                let open = wire.expect_publish("a", ExactlyOnce, b"open").expect("an id").get();
                wire.send_ack(PacketKind::PubRec, open);
                wire.expect_ack(PacketKind::PubRel, open);
                wire.send_bytes(&packet(0x34, "'up' 0005 {}"));
                wire.expect_ack(PacketKind::PubRec, 5);
                leave(wire);
                publisher.publish(publish("a", AtLeastOnce, b"waits"));
            }
            broker.wait_for_count("broker", "sessions_ended", |count| count == 4);
            for number in 0..4 {
                let id = format!("expires {number}");
                let mut wire = broker.connect();
                assert!(!wire.handshake(expiring(&id, Some(60))));
                publisher.publish(publish("a", AtLeastOnce, b"nobody's"));
                wire.expect_nothing_before_ping();
                wire.send_hex("62 02 0005");
                wire.expect_hex("70 03 0005 92");
                // Its own again.
                wire.subscribe("a", AtLeastOnce);
                publisher.publish(publish("a", AtLeastOnce, b"new"));
                wire.take_publish("a", AtLeastOnce, b"new");
                wire.unsubscribe("a");
            }
        },
    );
}

/// A session lasts as long as its connection, whatever its time or the operator's cap would say.
///
/// v5: 4.1.0-1
/// v3.1.1: 4.1.0-1, 4.1.0-2, 3.1.2-6
/// v3.1: 3.1
/// family: 23
#[test]
fn a_session_lasts_as_long_as_its_connection() {
    on_all_at_once(
        |builder| builder.arg("--session-expiry-max=1s"),
        |broker, _| {
            let mut publisher = publisher(broker);
            let mut wires = Vec::new();
            for version in [V31, V311, V5] {
                for clean_start in [true, false] {
                    let id = format!("stays {version:?} {clean_start}");
                    let mut wire = broker.connect();
                    wire.handshake(Connect { clean_start, ..session(version, &id) });
                    wire.subscribe("a", ExactlyOnce);
                    wires.push(wire);
                }
            }
            publisher.publish(publish("a", ExactlyOnce, b"open"));
            let mut ids = Vec::new();
            for wire in &mut wires {
                ids.push(wire.expect_publish("a", ExactlyOnce, b"open").expect("an id").get());
            }
            std::thread::sleep(Duration::from_millis(2500));
            publisher.publish(publish("a", AtLeastOnce, b"later"));
            for (wire, id) in wires.iter_mut().zip(ids) {
                wire.take_publish("a", AtLeastOnce, b"later");
                wire.send_ack(PacketKind::PubRec, id);
                wire.expect_ack(PacketKind::PubRel, id);
                wire.send_ack(PacketKind::PubComp, id);
                wire.expect_nothing_before_ping();
            }
            assert_eq!(broker.count("broker", "sessions_ended"), 0);
        },
    );
}

/// A session of 3.1 or 3.1.1 that stays does so for ever, and so it does when 5.0 has had it and
/// said so; what 5.0 says last ends it.
///
/// v5: 3.1.2-5, 4.1.0-2
/// v3.1.1: 3.1.2-4, 3.1.2-6, 3.2.2-2, 3.2.2-3
/// family: 18, 30
#[test]
fn how_long_each_version_keeps_a_session() {
    on_all(|broker| {
        for (round, old) in [V31, V311].into_iter().enumerate() {
            let id = format!("kept {round}");
            leave(begin(broker, old, &id));
            leave(resume(broker, V311, &id));
            let mut wire = broker.connect();
            assert!(wire.handshake(expiring(&id, Some(u32::MAX))));
            leave(wire);
            leave(resume(broker, old, &id));
            let mut wire = broker.connect();
            assert!(wire.handshake(expiring(&id, None)));
            leave(wire);
            // 3.1.1 finds none, begins one, and ends it by starting clean.
            leave(begin(broker, V311, &id));
            let mut wire = broker.connect();
            assert!(!wire.handshake(connect(V311, &id)));
            leave(wire);
            leave(begin(broker, V311, &id));
        }
    });
}

/// Retained messages are nobody's session: they stay when the session of their publisher ends, and
/// when that of a subscriber does.
///
/// v3.1.1: 3.1.2-7
/// v3.1: 2.1
/// family: 59
#[test]
fn retained_messages_are_of_no_session() {
    on_all(|broker| {
        for version in [V31, V311, V5] {
            let topic = format!("kept {version:?}");
            let mut wire = broker.connect();
            wire.handshake(connect(version, "publisher"));
            wire.subscribe("other", AtMostOnce);
            let message = Publish { retain: true, ..publish(&topic, AtLeastOnce, b"kept") };
            wire.publish(message);
            wire.reset();
            for end in ["e0 00", "00 00"] {
                let mut wire = broker.connect();
                wire.handshake(connect(version, "subscriber"));
                wire.subscribe(&topic, AtLeastOnce);
                assert_eq!(wire.take_publish(&topic, AtLeastOnce, b"kept"), (false, true));
                wire.send_hex(end);
                let _ = wire.next_within(Duration::from_secs(10));
            }
        }
    });
}

/// Everything in its order after a reconnect: what was sent and not acknowledged, then what waited,
/// then what is new, whatever part of it each connection takes.
///
/// v5: 4.4.0-1, 4.5.0-1, 4.6.0-5, 4.6.0-6
/// v3.1.1: 4.4.0-1, 4.5.0-1, 4.6.0-1, 4.6.0-6
/// v3.1: 4.3
/// family: 38, 41, 55
#[test]
fn order_across_reconnects() {
    const COUNT: u8 = 60;
    on_all(|broker| {
        let mut publisher = publisher(broker);
        for version in [V31, V311, V5] {
            for qos in [AtLeastOnce, ExactlyOnce] {
                let id = format!("order {version:?} {qos:?}");
                let mut wire = begin(broker, version, &id);
                wire.subscribe("a", qos);
                let mut sent = 0..COUNT;
                let mut send = |count| {
                    for number in sent.by_ref().take(count) {
                        publisher.publish(publish("a", qos, &[number]));
                    }
                };
                send(10);
                let mut first_new = 0;
                let mut done = 0;
                while done < COUNT {
                    // Half of what is open is finished, from the front.
                    let mut open = Vec::new();
                    for number in done..done + 10 {
                        let Packet::Publish(got) = wire.recv() else { panic!("a PUBLISH") };
                        assert_eq!((got.payload, got.qos), (&[number][..], qos));
                        assert_eq!(got.dup, number < first_new, "{number}");
                        open.push(got.packet_id.expect("an id").get());
                    }
                    first_new = done + 10;
                    let finished = if first_new == COUNT { 10 } else { 5 };
                    for id in &open[..finished] {
                        match qos {
                            AtLeastOnce => wire.send_ack(PacketKind::PubAck, *id),
                            _ => {
                                wire.send_ack(PacketKind::PubRec, *id);
                                wire.expect_ack(PacketKind::PubRel, *id);
                                wire.send_ack(PacketKind::PubComp, *id);
                            }
                        }
                    }
                    wire.expect_nothing_before_ping();
                    done += finished as u8;
                    // Two wait, three come live.
                    wire.finish();
                    wire.expect_closed();
                    send(2);
                    wire = resume(broker, version, &id);
                    send(3);
                }
                wire.expect_nothing_before_ping();
                wire.unsubscribe("a");
            }
        }
    });
}

/// An identifier is not used again while it is live, on whichever connection it was given.
///
/// v5: 2.2.1-4, 4.3.2-1, 4.3.3-1
/// v3.1.1: 2.3.1-4, 4.3.2-1, 4.3.3-1
/// family: 44
#[test]
fn live_identifiers_outlive_the_connection() {
    on_all(|broker| {
        let mut publisher = publisher(broker);
        for version in [V311, V5] {
            let id = format!("ids {version:?}");
            let mut wire = begin(broker, version, &id);
            wire.subscribe("a", ExactlyOnce);
            let mut live = Vec::new();
            for round in 0..6_u8 {
                for number in 0..3 {
                    publisher.publish(publish("a", ExactlyOnce, &[round, number]));
                    let id = wire.expect_publish("a", ExactlyOnce, &[round, number]);
                    let id = id.expect("an id").get();
                    assert!(!live.contains(&id), "{id} is in use");
                    live.push(id);
                }
                // The middle one is released, the last one finished, the first one stays.
                let last = live.pop().expect("three");
                wire.send_ack(PacketKind::PubRec, last);
                wire.expect_ack(PacketKind::PubRel, last);
                wire.send_ack(PacketKind::PubComp, last);
                let middle = live[live.len() - 1];
                wire.send_ack(PacketKind::PubRec, middle);
                wire.expect_ack(PacketKind::PubRel, middle);
                wire.finish();
                wire.expect_closed();
                wire = resume(broker, version, &id);
                let mut again: Vec<_> = (0..live.len())
                    .map(|_| match wire.recv() {
                        Packet::Publish(got) => got.packet_id.expect("an id").get(),
                        Packet::PubRel(ack) => ack.packet_id.get(),
                        other => panic!("{other:?}"),
                    })
                    .collect();
                again.sort();
                let mut expected = live.clone();
                expected.sort();
                assert_eq!(again, expected);
            }
            wire.unsubscribe("a");
        }
    });
}
