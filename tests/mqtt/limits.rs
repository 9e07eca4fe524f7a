//! Bounds, ours and the client's: what is too large or too much, and that nothing else suffers.

use std::time::{Duration, Instant};

use noctule::codec::mqtt::{
    Connect, ConnectProperties, Packet, PacketKind, Publish, QoS, ReasonCode, Version,
};

use super::support::packets::{connect, publish};
use super::support::{Broker, Next, Wire, combinations, on_all};

use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};
use Version::{V5, V31, V311};

fn online(broker: &Broker, version: Version, id: &str) -> Wire {
    let mut wire = broker.connect();
    wire.handshake(connect(version, id));
    wire
}

/// The payload that makes a PUBLISH to "a" exactly `size` bytes; below 16 KiB.
fn payload_for(version: Version, qos: QoS, size: usize) -> Vec<u8> {
    let header = 3 + 3 + usize::from(version == V5) + if qos == AtMostOnce { 0 } else { 2 };
    vec![b'x'; size - header]
}

/// Up to our Maximum Packet Size, that included; beyond it 0x95, before the rest has come.
///
/// v5: 3.2.2-15
/// family: 49
#[test]
fn maximum_packet_size_of_the_broker() {
    for combination in combinations() {
        let broker = Broker::build(combination).arg("--packet-size-max=4096").start();
        let mut subscriber = online(&broker, V5, "subscriber");
        subscriber.subscribe("a", AtMostOnce);
        let mut refused = 0;
        for version in [V31, V311, V5] {
            let mut wire = online(&broker, version, "publisher");
            let payload = payload_for(version, AtLeastOnce, 4096);
            wire.publish(publish("a", AtLeastOnce, &payload));
            subscriber.expect_publish("a", AtMostOnce, &payload);
            let payload = payload_for(version, AtLeastOnce, 4097);
            let mut bytes = Vec::new();
            Packet::Publish(publish("a", AtLeastOnce, &payload)).encode(version, &mut bytes);
            assert_eq!(bytes.len(), 4097);
            wire.send_bytes(&bytes);
            wire.expect_disconnect(ReasonCode::PACKET_TOO_LARGE);
            // Its first bytes are enough to know.
            let mut wire = online(&broker, version, "publisher");
            wire.send_bytes(&bytes[..3]);
            wire.expect_disconnect(ReasonCode::PACKET_TOO_LARGE);
            refused += 2;
        }
        assert_eq!(broker.count("decode_errors", "packet larger than allowed"), refused);
        subscriber.expect_nothing_before_ping();
        broker.stop();
    }
}

/// A stranger cannot make us hold much: a CONNECT is bounded more tightly than other packets.
///
/// family: 12
#[test]
fn what_comes_before_connect_is_bounded() {
    on_all(|broker| {
        for announced in ["10 ffffff7f", "10 818008"] {
            let mut wire = broker.connect();
            wire.send_hex(announced);
            wire.expect_closed();
        }
        // Most of what a CONNECT may carry is still possible.
        let mut wire = broker.connect();
        let will = noctule::codec::mqtt::Will {
            topic: "will",
            payload: &vec![b'w'; 60_000],
            qos: AtMostOnce,
            retain: false,
            delay_interval: 0,
            properties: Default::default(),
        };
        let password = vec![b'p'; 60_000];
        wire.handshake(Connect {
            will: Some(will),
            user_name: Some("user"),
            password: Some(&password),
            ..connect(V311, "large")
        });
        wire.expect_nothing_before_ping();
    });
}

/// What the client cannot take is dropped as if it had been sent. It blocks nothing and holds no slot of
/// the window: live, from the queue, as a retained message.
///
/// v5: 3.1.2-24, 3.1.2-25
/// family: 49
#[test]
fn maximum_packet_size_of_the_client() {
    const SIZE: usize = 200;
    on_all(|broker| {
        let properties = ConnectProperties {
            session_expiry_interval: Some(60),
            maximum_packet_size: Some(SIZE as u32),
            receive_maximum: Some(1),
            ..ConnectProperties::default()
        };
        let session = Connect { clean_start: false, properties, ..connect(V5, "small") };
        let mut publisher = online(broker, V311, "publisher");
        let mut publish_all = |retain| {
            for qos in [AtMostOnce, AtLeastOnce, ExactlyOnce] {
                for size in [SIZE + 1, SIZE, SIZE + 1] {
                    let payload = payload_for(V5, qos, size);
                    publisher.publish(Publish { retain, ..publish("a", qos, &payload) });
                }
            }
        };
        let mut wire = broker.connect();
        wire.handshake(session);
        wire.subscribe("a", ExactlyOnce);
        publish_all(false);
        for qos in [AtMostOnce, AtLeastOnce, ExactlyOnce] {
            wire.take_publish("a", qos, &payload_for(V5, qos, SIZE));
        }
        wire.expect_nothing_before_ping();
        wire.send_hex("e0 00");
        wire.expect_closed();
        publish_all(false);
        broker.wait_for_count("broker", "dropped_offline", |count| count == 3);
        let mut wire = broker.connect();
        assert!(wire.handshake(session));
        for qos in [AtLeastOnce, ExactlyOnce] {
            wire.take_publish("a", qos, &payload_for(V5, qos, SIZE));
        }
        wire.expect_nothing_before_ping();
        // The last one stays, and is too large.
        publish_all(true);
        wire.send_hex("e0 00");
        let mut wire = broker.connect();
        wire.handshake(Connect { clean_start: true, ..session });
        wire.subscribe("a", AtLeastOnce);
        wire.subscribe("b", AtLeastOnce);
        wire.expect_nothing_before_ping();
        assert!(broker.count("broker", "dropped_too_large") > 6 + 4);
    });
}

/// Resumed by a client that takes less than before: what is under way and too large ends there.
///
/// v5: 3.1.2-24, 3.1.2-25
/// family: 49
#[test]
fn resuming_with_a_smaller_maximum_packet_size() {
    on_all(|broker| {
        let expiry =
            ConnectProperties { session_expiry_interval: Some(60), ..ConnectProperties::default() };
        let session = Connect { clean_start: false, properties: expiry, ..connect(V5, "shrinks") };
        let mut publisher = online(broker, V311, "publisher");
        let mut wire = broker.connect();
        wire.handshake(session);
        wire.subscribe("a", ExactlyOnce);
        let payload = [b'x'; 500];
        for (qos, payload) in
            [(AtLeastOnce, &payload[..]), (ExactlyOnce, &payload), (AtLeastOnce, b"s")]
        {
            publisher.publish(publish("a", qos, payload));
            wire.expect_publish("a", qos, payload);
        }
        wire.send_hex("e0 00");
        wire.expect_closed();
        let mut wire = broker.connect();
        let small = ConnectProperties { maximum_packet_size: Some(200), ..expiry };
        assert!(wire.handshake(Connect { properties: small, ..session }));
        wire.take_publish("a", AtLeastOnce, b"s");
        wire.expect_nothing_before_ping();
    });
}

/// A session's queue holds so many; what comes then is dropped and counted, and the publisher is
/// not held up.
#[test]
fn queues_are_bounded() {
    for combination in combinations() {
        let broker = Broker::build(combination).arg("--queue-len-max=5").start();
        let properties =
            ConnectProperties { session_expiry_interval: Some(60), ..ConnectProperties::default() };
        let session = Connect { clean_start: false, properties, ..connect(V5, "sleeper") };
        let mut wire = broker.connect();
        wire.handshake(session);
        wire.subscribe("a", AtLeastOnce);
        wire.send_hex("e0 00");
        wire.expect_closed();
        let mut publisher = online(&broker, V311, "publisher");
        for number in 0..10_u8 {
            publisher.publish(publish("a", AtLeastOnce, &[number]));
        }
        broker.wait_for_count("broker", "dropped_queue_full", |count| count == 5);
        let mut wire = broker.connect();
        assert!(wire.handshake(session));
        for number in 0..5_u8 {
            wire.take_publish("a", AtLeastOnce, &[number]);
        }
        wire.expect_nothing_before_ping();
        publisher.publish(publish("a", AtLeastOnce, b"again"));
        wire.take_publish("a", AtLeastOnce, b"again");
        broker.stop();
    }
}

/// Whatever the client allows, so many are under way and no more.
#[test]
fn the_window_is_bounded() {
    for combination in combinations() {
        let broker = Broker::build(combination).arg("--in-flight-max=3").start();
        let mut publisher = online(&broker, V311, "publisher");
        for version in [V311, V5] {
            let mut wire = online(&broker, version, "subscriber");
            wire.subscribe("a", AtLeastOnce);
            for number in 0..5_u8 {
                publisher.publish(publish("a", AtLeastOnce, &[number]));
            }
            let mut ids = Vec::new();
            for number in 0..3_u8 {
                ids.push(wire.expect_publish("a", AtLeastOnce, &[number]).expect("an id").get());
            }
            wire.expect_nothing_before_ping();
            wire.send_ack(PacketKind::PubAck, ids[1]);
            wire.expect_publish("a", AtLeastOnce, &[3]);
            wire.expect_nothing_before_ping();
        }
        broker.stop();
    }
}

/// Over the memory budget messages are refused (0x97) or dropped, and counted; what makes room is
/// always accepted, and soon all is as before.
#[test]
fn the_memory_budget() {
    const COUNT: usize = 60;
    for combination in combinations() {
        let broker = Broker::build(combination).arg("--memory-budget=2MiB").start();
        let mut publisher = online(&broker, V5, "publisher");
        let payload = vec![b'x'; 100_000];
        let mut send = |number: usize, payload: &[u8]| {
            let topic = format!("kept/{number}");
            let message = Publish { retain: true, ..publish(&topic, AtLeastOnce, payload) };
            publisher.send(&Packet::Publish(message));
            publisher.expect_ack(PacketKind::PubAck, 1)
        };
        let refused =
            (0..COUNT).filter(|n| send(*n, &payload) == ReasonCode::QUOTA_EXCEEDED).count();
        let dropped = broker.count("broker", "dropped_memory");
        assert!(refused as u64 + dropped > 0, "{combination}: all was kept");
        for number in 0..COUNT {
            let reason = send(number, b"");
            assert!(!reason.is_error(), "{combination}: clearing {number}: {reason}");
        }
        // Another shard says so, and is heard a moment later.
        let deadline = Instant::now() + Duration::from_secs(10);
        while send(0, b"kept again").is_error() {
            assert!(Instant::now() < deadline, "{combination}: still refused");
        }
        let mut wire = online(&broker, V311, "subscriber");
        wire.subscribe("kept/+", AtMostOnce);
        wire.expect_publish("kept/0", AtMostOnce, b"kept again");
        wire.expect_nothing_before_ping();
        broker.stop();
    }
}

/// Over the memory budget an older client cannot be told: the exchange is not acknowledged, and the
/// connection is closed. What makes room is always accepted.
///
/// v3.1.1: 4.8.0-2
#[test]
fn the_memory_budget_of_older_clients() {
    for combination in combinations() {
        let broker = Broker::build(combination).arg("--memory-budget=2MiB").start();
        let payload = vec![b'x'; 100_000];
        for (version, qos) in [(V31, AtLeastOnce), (V311, AtLeastOnce), (V311, ExactlyOnce)] {
            let mut wire = online(&broker, version, "publisher");
            let ack = if qos == AtLeastOnce { 0x40 } else { 0x50 };
            let mut acknowledged = 0;
            for number in 1..=60_u16 {
                let topic = format!("kept/{number}");
                let message = Publish {
                    retain: true,
                    packet_id: noctule::codec::mqtt::PacketId::new(number),
                    ..publish(&topic, qos, &payload)
                };
                let mut bytes = Vec::new();
                Packet::Publish(message).encode(version, &mut bytes);
                // It may close while this is being sent.
                if wire.try_send_bytes(&bytes).is_err() {
                    break;
                }
                match wire.next_within(Duration::from_secs(10)) {
                    Next::Frame(frame) => {
                        assert_eq!((frame[0], frame[1]), (ack, 2), "{combination}");
                        acknowledged += 1;
                    }
                    Next::Closed => break,
                    Next::Silence => panic!("{combination}: neither acknowledged nor closed"),
                }
            }
            assert!(acknowledged < 60, "{combination}: all was kept");
            let mut wire = online(&broker, version, "publisher");
            for number in 1..=60_u16 {
                let topic = format!("kept/{number}");
                wire.publish(Publish { retain: true, ..publish(&topic, AtLeastOnce, b"") });
            }
        }
        broker.stop();
    }
}
