//! A client identifier has one connection: the newest.

use std::collections::BTreeMap;
use std::time::Duration;

use noctule::codec::mqtt::{
    Connect, ConnectProperties, Packet, PacketId, PacketKind, Publish, QoS, ReasonCode, Version,
    Will,
};

use super::notation::packet;
use super::support::packets::{connect, lasting, publish};
use super::support::{Next, Wire, has_faults, on_all};

use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};
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
            new.publish(publish("a", AtMostOnce, &[round, 50]));
            let mut next = 0;
            while next < 50 {
                match subscriber.recv() {
                    Packet::Publish(p) if p.payload == [round, next] => next += 1,
                    // Faults tell of two connections in any order: what comes of the old one behind
                    // the new one does not count, and what does comes whole and first.
                    Packet::Publish(p) if p.payload == [round, 50] && has_faults() => break,
                    other => panic!("expected message {next} of round {round}, got {other:?}"),
                }
            }
            if next == 50 {
                subscriber.expect_publish("a", AtMostOnce, &[round, 50]);
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

/// A session with something in every state: its identifiers are those of [`Kept::begin`].
struct Kept {
    /// QoS 1, sent and not acknowledged.
    published_1: u16,
    /// QoS 2, sent and not acknowledged.
    published_2: u16,
    /// QoS 2, received, and PUBCOMP is owed.
    released: u16,
}

impl Kept {
    /// Subscribes to `topic`, and leaves: three messages on their way to the client, and of the
    /// client's own QoS 2 messages to `up` the one with identifier 9 unreleased.
    fn begin(wire: &mut Wire, publisher: &mut Wire, topic: &str, up: &str) -> Self {
        wire.subscribe(topic, ExactlyOnce);
        let mut ids = [0; 3];
        for (id, (qos, payload)) in
            ids.iter_mut().zip([(AtLeastOnce, b"1"), (ExactlyOnce, b"2"), (ExactlyOnce, b"3")])
        {
            publisher.publish(publish(topic, qos, payload));
            *id = wire.expect_publish(topic, qos, payload).expect("an id").get();
        }
        wire.send_ack(PacketKind::PubRec, ids[2]);
        wire.expect_ack(PacketKind::PubRel, ids[2]);
        Self::send_up(wire, up, false);
        let [published_1, published_2, released] = ids;
        Self { published_1, published_2, released }
    }

    fn send_up(wire: &mut Wire, up: &str, dup: bool) {
        let message =
            Publish { dup, packet_id: PacketId::new(9), ..publish(up, ExactlyOnce, b"up") };
        wire.send(&Packet::Publish(message));
        assert!(!wire.expect_ack(PacketKind::PubRec, 9).is_error());
    }

    /// All of it comes again, in its order, and `again` says that it is a repetition.
    fn expect_again(&self, wire: &mut Wire, topic: &str) {
        // 3.1 has DUP on a PUBREL that comes again.
        let first = if wire.version == V31 { 0x6a } else { 0x62 };
        let [high, low] = self.released.to_be_bytes();
        wire.expect_bytes(&[first, 2, high, low]);
        for (id, qos, payload) in
            [(self.published_1, AtLeastOnce, b"1"), (self.published_2, ExactlyOnce, b"2")]
        {
            let Packet::Publish(got) = wire.recv() else { panic!("a PUBLISH") };
            assert_eq!((got.topic, got.qos, got.payload), (topic, qos, &payload[..]));
            assert_eq!((got.dup, got.retain), (true, false));
            assert_eq!(got.packet_id.map(|id| id.get()), Some(id));
        }
    }

    /// Every exchange ends as it should, and none is there afterwards.
    fn finish(&self, wire: &mut Wire, up: &str) {
        wire.send_ack(PacketKind::PubAck, self.published_1);
        wire.send_ack(PacketKind::PubRec, self.published_2);
        wire.expect_ack(PacketKind::PubRel, self.published_2);
        for id in [self.released, self.published_2] {
            wire.send_ack(PacketKind::PubComp, id);
        }
        Self::send_up(wire, up, true);
        wire.send_ack(PacketKind::PubRel, 9);
        assert_eq!(wire.expect_ack(PacketKind::PubComp, 9), ReasonCode::SUCCESS);
        wire.expect_nothing_before_ping();
    }
}

/// Between all versions, a session goes over while it is connected, and between connections, with
/// what is under way in both directions: PUBREL first, then each PUBLISH with DUP under its
/// identifier; what the client had published is not published again.
///
/// v5: 3.1.2-5, 3.1.4-3, 3.3.1-1, 3.14.2-2, 4.3.3-5, 4.3.3-6, 4.3.3-10, 4.4.0-1
/// v3.1.1: 3.1.2-4, 3.1.4-2, 2.3.1-3, 3.3.1-1, 4.3.3-1, 4.3.3-2, 4.4.0-1, 4.6.0-1
/// v3.1: 3.1, 3.6, 4.1, 4.2
/// family: 36, 38, 40, 41, 55
#[test]
fn a_session_goes_over_between_all_versions() {
    on_all(|broker| {
        let mut publisher = broker.connect();
        publisher.handshake(connect(V5, "publisher"));
        let mut watching = broker.connect();
        watching.handshake(connect(V311, "watching"));
        watching.subscribe("up/+", AtMostOnce);
        for old in [V31, V311, V5] {
            for new in [V31, V311, V5] {
                for taken_over in [true, false] {
                    let id = format!("{old:?} {new:?} {taken_over}");
                    let (topic, up) = (format!("down/{id}"), format!("up/{id}"));
                    let mut first = broker.connect();
                    first.handshake(lasting(old, &id));
                    let kept = Kept::begin(&mut first, &mut publisher, &topic, &up);
                    watching.expect_publish(&up, AtMostOnce, b"up");
                    if !taken_over {
                        first.finish();
                        first.expect_closed();
                    }
                    let mut second = broker.connect();
                    assert_eq!(second.handshake(lasting(new, &id)), new != V31);
                    if taken_over {
                        first.expect_disconnect(ReasonCode::SESSION_TAKEN_OVER);
                    }
                    kept.expect_again(&mut second, &topic);
                    // And back, before anything was acknowledged.
                    let mut third = broker.connect();
                    assert_eq!(third.handshake(lasting(old, &id)), old != V31);
                    second.expect_disconnect(ReasonCode::SESSION_TAKEN_OVER);
                    kept.expect_again(&mut third, &topic);
                    kept.finish(&mut third, &up);
                    // Nothing was published twice: this one is the next.
                    third.publish(publish(&up, AtMostOnce, b"last"));
                    watching.expect_publish(&up, AtMostOnce, b"last");
                }
            }
        }
    });
}

/// A clean start takes over and leaves nothing of the old: neither subscriptions, nor what was under
/// way, nor the client's own unreleased messages.
///
/// v5: 3.1.2-4, 3.1.4-3, 3.1.4-4, 3.2.2-2
/// v3.1.1: 3.1.2-6, 3.1.4-2, 3.1.4-3, 3.2.2-1
/// v3.1: 3.1
/// family: 18, 30
#[test]
fn a_clean_start_takes_over() {
    on_all(|broker| {
        let mut publisher = broker.connect();
        publisher.handshake(connect(V5, "publisher"));
        let mut watching = broker.connect();
        watching.handshake(connect(V311, "watching"));
        watching.subscribe("up/+", AtMostOnce);
        for old in [V31, V311, V5] {
            for new in [V31, V311, V5] {
                let id = format!("{old:?} {new:?}");
                let (topic, up) = (format!("down/{id}"), format!("up/{id}"));
                let mut first = broker.connect();
                first.handshake(lasting(old, &id));
                let kept = Kept::begin(&mut first, &mut publisher, &topic, &up);
                watching.expect_publish(&up, AtMostOnce, b"up");
                let mut second = broker.connect();
                let properties = lasting(new, &id).properties;
                assert!(!second.handshake(Connect { properties, ..connect(new, &id) }));
                first.expect_disconnect(ReasonCode::SESSION_TAKEN_OVER);
                publisher.publish(publish(&topic, ExactlyOnce, b"nobody's"));
                second.expect_nothing_before_ping();
                // The identifier means nothing: this is a new message.
                Kept::send_up(&mut second, &up, true);
                watching.expect_publish(&up, AtMostOnce, b"up");
                let [high, low] = kept.released.to_be_bytes();
                second.send_bytes(&[0x70, 2, high, low]);
                second.expect_nothing_before_ping();
            }
        }
    });
}

/// A session ends when the last CONNECT said: a takeover may keep one that would have ended no more
/// than it may end one that would have stayed.
///
/// v5: 3.1.2-5, 3.1.2-6, 3.1.2-23, 4.1.0-2, 3.2.2-3
/// family: 30
#[test]
fn expiry_at_takeover() {
    on_all(|broker| {
        for round in 0..4 {
            for (old, new, second_present, third_present) in [
                (60, 0, true, false),
                (0, 60, false, true),
                (0, 0, false, false),
                (60, 60, true, true),
            ] {
                let id = format!("{old} {new} {round}");
                let with = |expiry| Connect {
                    clean_start: false,
                    properties: expiring(expiry),
                    ..connect(V5, &id)
                };
                let mut first = broker.connect();
                assert!(!first.handshake(with(old)));
                first.subscribe("a", AtMostOnce);
                let mut second = broker.connect();
                assert_eq!(second.handshake(with(new)), second_present, "{id}");
                first.expect_disconnect(ReasonCode::SESSION_TAKEN_OVER);
                second.publish(publish("a", AtMostOnce, b"x"));
                if second_present {
                    second.expect_publish("a", AtMostOnce, b"x");
                }
                second.expect_nothing_before_ping();
                second.send_hex("e0 00");
                second.expect_closed();
                let mut third = broker.connect();
                assert_eq!(third.handshake(with(0)), third_present, "{id}");
            }
        }
    });
}

/// A stream of messages while its receiver is taken over again and again, by all versions: each
/// comes at least once, and new ones in their order; QoS 2 exactly once.
///
/// v5: 4.4.0-1, 4.5.0-1, 4.6.0-5, 4.6.0-6, 4.3.3-6
/// v3.1.1: 4.4.0-1, 4.5.0-1, 4.6.0-1, 4.6.0-6
/// v3.1: 4.2, 4.3
/// family: 35, 38, 55
#[test]
fn a_stream_across_takeovers() {
    const COUNT: u16 = 400;
    on_all(|broker| {
        for qos in [AtLeastOnce, ExactlyOnce] {
            let id = format!("receiver {qos:?}");
            let topic = format!("stream/{qos:?}");
            let mut wire = broker.connect();
            wire.handshake(lasting(V5, &id));
            wire.subscribe(&topic, qos);
            let (addr, name) = (broker.addr(), topic.clone());
            let sender = std::thread::spawn(move || {
                let mut publisher = Wire::open(addr);
                publisher.handshake(connect(V311, "publisher"));
                for number in 0..COUNT {
                    publisher.publish(publish(&name, qos, &number.to_be_bytes()));
                }
                publisher
            });
            let (mut next, mut versions) = (0, [V311, V5, V31].into_iter().cycle());
            // QoS 2 messages by identifier: which, and whether PUBREL came.
            let mut open = BTreeMap::new();
            while next < COUNT || !open.is_empty() {
                // Some of what comes is answered, some is not.
                let mut unanswered = 0;
                for step in 0..17 {
                    // The broker waits for us: for nothing, or for PUBCOMPs alone.
                    if next == COUNT && open.len() <= unanswered {
                        break;
                    }
                    match wire.recv() {
                        Packet::Publish(got) => {
                            let number = u16::from_be_bytes(got.payload.try_into().expect("two"));
                            let (dup, id) = (got.dup, got.packet_id.expect("an id").get());
                            assert!(dup || number == next, "{number} is new, {next} is due");
                            assert!(number <= next, "{number} before {next}");
                            if qos == ExactlyOnce {
                                // Our PUBREC may have been lost with its connection, not more.
                                let before = open.insert(id, (number, false));
                                let due = (number < next).then_some((number, false));
                                assert_eq!(before, due, "{number} twice");
                                wire.send_ack(PacketKind::PubRec, id);
                            } else if step < 13 {
                                wire.send_ack(PacketKind::PubAck, id);
                            }
                            next = next.max(number + 1);
                        }
                        Packet::PubRel(ack) => {
                            let id = ack.packet_id.get();
                            if let Some((_, is_released)) = open.get_mut(&id) {
                                *is_released = true;
                            }
                            if step < 13 {
                                open.remove(&id);
                                wire.send_ack(PacketKind::PubComp, id);
                            } else {
                                unanswered += 1;
                            }
                        }
                        other => panic!("{other:?}"),
                    }
                }
                let mut newer = broker.connect();
                newer.handshake(lasting(versions.next().expect("no end"), &id));
                wire = newer;
            }
            drop(sender.join().expect("the publisher"));
        }
    });
}

/// Who is taken over need not be well: one that does not read, and one that is in the middle of a
/// packet, go as fast as any other.
///
/// v5: 3.1.4-3
/// v3.1.1: 3.1.4-2
/// family: 35
#[test]
fn taking_over_from_who_is_stuck() {
    on_all(|broker| {
        let mut publisher = broker.connect();
        publisher.handshake(connect(V311, "publisher"));
        for version in [V311, V5] {
            let id = format!("stuck {version:?}");
            let mut old = broker.connect();
            old.handshake(lasting(version, &id));
            old.subscribe("flood", AtLeastOnce);
            let payload = vec![b'x'; 100_000];
            for _ in 0..40 {
                publisher.publish(publish("flood", AtLeastOnce, &payload));
            }
            old.send_bytes(&[0x30, 0xff, 0xff, 0x03, 0, 1]);
            let mut new = broker.connect();
            assert!(new.handshake(lasting(V5, &id)));
            for _ in 0..40 {
                new.take_publish("flood", AtLeastOnce, &payload);
            }
            new.expect_nothing_before_ping();
            new.unsubscribe("flood");
        }
    });
}
